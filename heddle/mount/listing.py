"""What git's index says of a mount: every file and directory of a tree, with what the view shows in its place.

Owns how a tree is listed for it. The tree itself comes from stock git in one answer, with the sizes of its files; where
git can't say, directory by directory from the store. What is in the upper is looked at in the loop; the rest is known.
The bytes are ``repo/gitindex.py``'s, when they are written ``gitview.py``'s.
"""

from __future__ import annotations

import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, cast

from heddle.mount.everything import InLoop
from heddle.mount.lower import GITLINK, Lower, is_safe_name
from heddle.mount.nodes import DirNode, FileNode
from heddle.mount.shell import Attrs
from heddle.mount.snapshot import found
from heddle.mount.view import lower_number
from heddle.repo import gitindex
from heddle.repo.gitindex import NO_STAT, Directory

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.mount.core import ContentAddressedMount

_LOW = 0xFFFFFFFF
_TREE = b"040000"
_DIRECTORY_BYTES = 4096
_AT_ONCE = 256  # names looked at between two turns of the loop
_SETTLED_NS = 50_000_000
"""How old a change has to be to be told from a later one by its time: clocks tick every few milliseconds."""
_SECOND_NS = 1_000_000_000
_SETTLED_WHOLE_NS = 2_000_000_000
"""The same where a file system keeps whole seconds."""


class Look(NamedTuple):
    """A directory with a place in the upper.

    Attributes:
        names: what its upper has, True for a whiteout.
        status: of the directory, as ``gitindex.stat_bytes``.
        settled: whether a later change would give it another time.
    """

    ino: int
    lower: ObjectID | None
    names: dict[bytes, bool]
    status: bytes
    settled: bool


class _Shown(NamedTuple):
    """A file of the upper; ``id`` is None where only its bytes could tell."""

    mode: int
    id: ObjectID | None
    status: bytes


class _Unsized(NamedTuple):
    """A captured file whose entry lacks its size: which entry it is, and what else it says."""

    number: int
    low: bytes
    mode: int
    id: ObjectID
    path: bytes


class _Recorded:
    """Everything below a tree, as lines of ``git ls-tree -r -t -l -z``: each directory before what is in it."""

    def __init__(self, lower: Lower, tree: ObjectID | None) -> None:
        self._lines: Sequence[bytes] = ()
        if tree is not None:
            self._lines = lower.store.list_tree(tree) or list(_walked(lower, b"", tree))
        self._behind: dict[bytes, int] = {}

    def below(self, directory: bytes) -> Iterator[bytes]:
        """The lines of what lies below a directory, whose path ends in a slash; of all for the root."""
        if not directory:
            yield from self._lines
            return
        if not self._behind:
            for number, line in enumerate(self._lines):
                if line.startswith(_TREE):
                    self._behind[line.partition(b"\t")[2]] = number + 1
        for line in islice(self._lines, self._behind[directory[:-1]], None):
            if not line.partition(b"\t")[2].startswith(directory):
                break
            yield line


def _walked(lower: Lower, above: bytes, tree: ObjectID) -> Iterator[bytes]:
    for name, mode, id in lower.all_entries(tree):
        yield b"%06o - %s -\t%s%s" % (mode, id, above, name)
        if stat.S_ISDIR(mode) and is_safe_name(name):
            yield from _walked(lower, above + name + b"/", id)


class _Open:
    """A directory that shows a tree as it is, while what is in it is listed."""

    __slots__ = ("first", "ino", "inside", "is_whole", "name", "path", "rules", "tree")

    def __init__(self, path: bytes, name: bytes, tree: bytes, ino: int, first: int) -> None:
        self.path, self.name, self.tree, self.ino, self.first = path, name, tree, ino, first
        self.inside: list[Directory] = []
        self.is_whole = True
        self.rules: bytes | None = None


class Listing:
    """Everything that a tree holds, with what the view shows of it.

    The view belongs to the loop: what has a place in the upper is looked at there, a few names at a time, the rest is
    known from the tree. What changes meanwhile has another stat than the index says, and git looks for itself.

    Args:
        core: the view.
        in_loop: runs a function where nothing else changes the view.

    Attributes:
        entries: the index's entries, as ``gitindex.entry``.
        knew_all: whether the size of every captured file was known.
    """

    def __init__(self, core: ContentAddressedMount, in_loop: InLoop) -> None:
        self._core = core
        self._lower = core.lower
        self._in_loop = in_loop
        self._recorded: _Recorded | None = None
        usual = gitindex.stat_bytes(0, 0, core.uid, core.gid, 0, core.time_ns, core.time_ns)
        self._times, self._owner = usual[:20], usual[24:36]
        self._now_ns = time.time_ns()
        self._sizes: dict[ObjectID, int] = {}
        self._unsized: list[_Unsized] = []
        self.entries: list[bytes] = []
        self.knew_all = True

    def look_at_root(self) -> Look:
        """What `run` begins with."""
        return self._look(b"")

    def run(self, look: Look, tree: ObjectID | None) -> Directory:
        """List it; returns its root."""
        self._recorded = _Recorded(self._lower, tree)
        root = self._seen(b"", b"", look, tree)
        unsized = self._unsized
        sizes = self._lower.learn_sizes([each.id for each in unsized])
        for each, size in zip(unsized, sizes, strict=True):
            if size is None:
                self.knew_all = False
            else:
                status = self._status_of(each.low, size)
                self.entries[each.number] = _entry(status, each.mode, each.id, each.path)
        self._lower.keep_sizes(self._sizes)
        return root

    # directories

    def _seen(self, path: bytes, name: bytes, look: Look, base: ObjectID | None) -> Directory:
        """A directory with a place in the upper, or the root."""
        if look.lower == base and not look.names and base is not None:
            shown = self._captured(path, name, look.ino, base)
            return shown._replace(status=look.status if look.settled else None)
        first = len(self.entries)
        recorded = self._lower.entries(base)
        below = self._lower.entries(look.lower)
        in_both = {each: recorded[each][1] for each in look.names if each in recorded}
        files = self._files(path, in_both, look.names)
        inside = []
        for each, (mode, id) in recorded.items():
            where = path + each
            if each not in look.names:
                one = self._through(where, each, look.ino, below.get(each), (mode, id))
            elif stat.S_ISDIR(mode) and each not in files and not look.names[each]:
                one = self._seen(where + b"/", each, self._look(where), id)
            else:
                one = self._instead(where, each, files.get(each), (mode, id))
            if one is not None:
                inside.append(one)
        extra = any(not gone and each not in recorded for each, gone in look.names.items())
        is_plain = look.settled and look.lower == base and not extra
        return self._directory(name, base, first, look.status if is_plain else None, inside)

    def _through(
        self,
        path: bytes,
        name: bytes,
        parent: int,
        shown: tuple[int, ObjectID] | None,
        base: tuple[int, ObjectID],
    ) -> Directory | None:
        """A name that is not in the upper."""
        if shown is not None and stat.S_ISDIR(shown[0]) and stat.S_ISDIR(base[0]):
            ino = lower_number(parent, name)
            if shown[1] == base[1]:
                return self._captured(path + b"/", name, ino, base[1])
            look = Look(ino, shown[1], {}, NO_STAT, False)
            return self._seen(path + b"/", name, look, base[1])
        if shown == base:
            self._captured_file(path, *base, _low(lower_number(parent, name)), None)
            return None
        return self._instead(path, name, None, base)

    def _instead(
        self, path: bytes, name: bytes, shown: _Shown | None, base: tuple[int, ObjectID]
    ) -> Directory | None:
        """A name that shows something else than the base has, perhaps nothing."""
        if stat.S_ISDIR(base[0]):
            first = len(self.entries)
            entries = self._lower.entries(base[1]).items()
            inside = [self._instead(path + b"/" + each, each, None, its) for each, its in entries]
            listed = [one for one in inside if one is not None]
            return self._directory(name, base[1], first, None, listed)
        is_same = shown is not None and (gitindex.git_mode(shown.mode), shown.id) == (
            gitindex.git_mode(base[0]),
            base[1],
        )
        self.entries.append(_entry(shown.status if is_same and shown else NO_STAT, *base, path))
        return None

    def _directory(
        self,
        name: bytes,
        tree: ObjectID | None,
        first: int,
        status: bytes | None,
        inside: list[Directory],
    ) -> Directory:
        rules = self._lower.entries(tree).get(b".gitignore")
        is_file = rules is not None and stat.S_ISREG(rules[0])
        is_whole = tree is not None and not self._lower.hidden_entries(tree)
        return Directory(
            name=name,
            tree=bytes.fromhex(tree.decode()) if tree is not None and is_whole else None,
            entries=len(self.entries) - first,
            status=status,
            rules=bytes.fromhex(rules[1].decode()) if rules is not None and is_file else None,
            inside=sorted(inside, key=lambda one: one.name),
        )

    # what shows a tree as it is

    def _captured(self, path: bytes, name: bytes, ino: int, tree: ObjectID) -> Directory:
        """A directory that shows a tree as it is, and all below it."""
        assert self._recorded is not None
        outer = _Open(path, name, tree, ino, len(self.entries))
        under_way = [outer]
        for line in self._recorded.below(path):
            said, _, where = line.partition(b"\t")
            end = where.rfind(b"/") + 1
            above, each = where[:end], where[end:]
            while under_way[-1].path != above and len(under_way) > 1:
                self._close(under_way)
            parent = under_way[-1]
            if parent.path != above or not is_safe_name(each):
                parent.is_whole = False
                continue
            number = lower_number(parent.ino, each)
            digits, _, id, size = said.split()
            if digits == _TREE:
                under_way.append(_Open(where + b"/", each, id, number, len(self.entries)))
                continue
            mode = int(digits, 8)
            if each == b".gitignore" and stat.S_ISREG(mode):
                parent.rules = id
            known = int(size) if size.isdigit() else None
            self._captured_file(where, mode, cast("ObjectID", id), _low(number), known)
        while len(under_way) > 1:
            self._close(under_way)
        return self._closed(outer)

    def _close(self, under_way: list[_Open]) -> None:
        one = under_way.pop()
        under_way[-1].inside.append(self._closed(one))

    def _closed(self, one: _Open) -> Directory:
        return Directory(
            name=one.name,
            tree=bytes.fromhex(one.tree.decode()) if one.is_whole else None,
            entries=len(self.entries) - one.first,
            status=self._status_of(_low(one.ino), _DIRECTORY_BYTES),
            rules=None if one.rules is None else bytes.fromhex(one.rules.decode()),
            inside=sorted(one.inside, key=lambda each: each.name),
        )

    def _captured_file(
        self, path: bytes, mode: int, id: ObjectID, low: bytes, size: int | None
    ) -> None:
        """A file that shows what the base has.

        Args:
            low: of its number, the lower 32 bits.
            size: in bytes; None: the store has to be asked.
        """
        status = NO_STAT  # git looks at none of a submodule
        if size is not None:
            self._sizes[id] = size
            status = self._status_of(low, size)
        elif mode != GITLINK:
            self._unsized.append(_Unsized(len(self.entries), low, mode, id, path))
        self.entries.append(_entry(status, mode, id, path))

    def _status_of(self, low: bytes, size: int) -> bytes:
        """As ``gitindex.stat_bytes``, of what has the time and the owner of everything captured."""
        return b"".join((self._times, low, self._owner, (size & _LOW).to_bytes(4, "big")))

    # in the loop

    def _look(self, path: bytes) -> Look:
        def look() -> Look:
            core = self._core
            with found(core, path) as node:
                assert isinstance(node, DirNode)
                attrs = core.attrs_of(node)
                names = dict(core.names(node)) if node.upper else {}
                status, settled = self._status(attrs)
                return Look(node.ino, node.lower, names, status, settled)

        return self._in_loop(look)

    def _files(
        self, path: bytes, recorded: Mapping[bytes, ObjectID], whiteouts: dict[bytes, bool]
    ) -> dict[bytes, _Shown]:
        """The files among some names of an upper directory, with what is recorded there."""
        wanted = [(name, id) for name, id in recorded.items() if not whiteouts[name]]
        shown: dict[bytes, _Shown] = {}
        for start in range(0, len(wanted), _AT_ONCE):
            part = wanted[start : start + _AT_ONCE]
            shown.update(self._in_loop(partial(self._some, path, part)))
        return shown

    def _some(self, path: bytes, recorded: Sequence[tuple[bytes, ObjectID]]) -> dict[bytes, _Shown]:
        core = self._core
        shown = {}
        with found(core, path.rstrip(b"/")) as directory:
            if not isinstance(directory, DirNode):
                return {}
            for name, base in recorded:
                node = core.child(directory, name)
                if isinstance(node, FileNode):
                    attrs = core.attrs_of(node)
                    status, settled = self._status(attrs)
                    id = core.recorded(node, base) if settled else None
                    shown[name] = _Shown(attrs.mode, id, status)
                core.drop_if_unused(node)
        return shown

    def _status(self, attrs: Attrs) -> tuple[bytes, bool]:
        status = gitindex.stat_bytes(
            *(attrs.ino, 0, attrs.uid, attrs.gid, attrs.size, attrs.mtime_ns, attrs.ctime_ns)
        )
        changed_ns = max(attrs.mtime_ns, attrs.ctime_ns)
        needed_ns = _SETTLED_NS if changed_ns % _SECOND_NS else _SETTLED_WHOLE_NS
        is_as_captured = changed_ns == self._core.time_ns
        return status, is_as_captured or changed_ns + needed_ns < self._now_ns


def _entry(status: bytes, mode: int, id: ObjectID, path: bytes) -> bytes:
    return gitindex.entry(status, gitindex.git_mode(mode), bytes.fromhex(id.decode()), path)


def _low(ino: int) -> bytes:
    return (ino & _LOW).to_bytes(4, "big")
