"""What git's index says of a mount: every file and directory of a tree, with what the view shows in its place.

Owns how it is listed: what is in the upper is looked at in the loop, the rest is known from the tree
(``held.py``, or directory by directory). The bytes are ``repo/gitindex.py``'s, when they are written ``gitview.py``'s.
"""

from __future__ import annotations

import stat
import time
from binascii import unhexlify
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from heddle.mount import held
from heddle.mount.everything import InLoop
from heddle.mount.held import Held
from heddle.mount.lower import GITLINK, is_safe_name
from heddle.mount.nodes import DirNode, FileNode
from heddle.mount.shell import Attrs
from heddle.mount.snapshot import found
from heddle.mount.view import low_number, lower_number
from heddle.objects.gitformat import to_hex
from heddle.repo import gitindex
from heddle.repo.cachetree import File
from heddle.repo.gitindex import NO_STAT, Directory

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.mount.core import ContentAddressedMount

_LOW = 0xFFFFFFFF
_DIRECTORY_LENGTH = (4096).to_bytes(4, "big")
_NO_LENGTH = bytes(4)
_GITLINK = GITLINK.to_bytes(4, "big")
_REGULAR = 0o100000 >> 12
_UNREAD, _UNREAD_OF = 64, 16
"""An index will not do that lacks more directories than this and one in so many of those that it has."""
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


class _Open:
    """A directory that shows a tree as it is, while what is in it is listed."""

    __slots__ = ("first", "ino", "inside", "modules", "name", "path", "rules", "tree")

    def __init__(self, path: bytes, name: bytes, tree: bytes | None, ino: int, first: int) -> None:
        self.path, self.name, self.tree, self.ino, self.first = path, name, tree, ino, first
        self.inside: list[Directory] = []
        self.modules = 0
        self.rules: bytes | None = None


class Listing:
    """Everything that a tree holds, with what the view shows of it.

    The view belongs to the loop: what has a place in the upper is looked at there, a few names at a time, the rest is
    known from the tree. What changes meanwhile has another stat than the index says, and git looks for itself.

    Args:
        core: the view.
        in_loop: runs a function where nothing else changes the view.
        index: another index of git's, of which much may be true here too; None: there is none.

    Attributes:
        entries: the index's entries, as ``gitindex.entry``.
        knew_all: whether the size of every captured file was known.
    """

    def __init__(
        self,
        core: ContentAddressedMount,
        in_loop: InLoop,
        *,
        index: Path | None = None,
    ) -> None:
        self._core = core
        self._lower = core.lower
        self._id_length = core.lower.store.id_length
        self._in_loop = in_loop
        self._index = index
        self._held: Held | None = None
        self._has_asked_git = False
        self._unread_left = 0
        self._base: ObjectID | None = None
        usual = gitindex.stat_bytes(0, 0, core.uid, core.gid, 0, core.time_ns, core.time_ns)
        self._times, self._owner = usual[:20], usual[28:36]
        self._now_ns = time.time_ns()
        self._unsized: list[tuple[int, bytes]] = []  # which entry has to get the size of which blob
        self._counts: dict[ObjectID, int] = {}  # of the directories in each
        self.entries: list[bytes] = []
        self.knew_all = True

    def look_at_root(self) -> Look:
        """What `run` begins with."""
        return self._look(b"")

    def run(self, look: Look, tree: ObjectID | None) -> Directory:
        """List it; returns its root."""
        self._base = tree
        files: list[File] = []
        if self._index is not None:
            self._held = held.by_index(self._index, self._id_length)
        if self._held is not None:
            self._unread_left = _UNREAD + len(self._held) // _UNREAD_OF
            files = self._held.files
        ids = [rest[: self._id_length] for _, mode, rest in files if mode != _GITLINK]
        with self._lower.asking_sizes(ids) as told:
            root = self._seen(b"", b"", look, tree)
            self._fill_in(told())
        self._lower.keep_counts(self._counts)
        return root

    def _fill_in(self, sizes: dict[bytes, int]) -> None:
        """Put sizes into the entries of captured files, and keep them for whoever looks these up.

        Args:
            sizes: those that are known, by binary id; the others are asked for.
        """
        if self._held is not None:
            sizes |= self._held.sizes
        left = [id for id in {id for _, id in self._unsized} if id not in sizes]
        learned = zip(left, self._lower.learn_sizes(list(map(to_hex, left))), strict=True)
        sizes |= {id: size for id, size in learned if size is not None}
        entries = self.entries
        for number, id in self._unsized:
            before = entries[number]
            size = sizes.get(id)
            if size is None:
                self.knew_all = False
                entries[number] = b"".join((NO_STAT[:24], before[24:28], NO_STAT[28:], before[40:]))
            else:
                entries[number] = b"".join((before[:36], _length(size), before[40:]))
        self._lower.keep_sizes({to_hex(id): sizes[id] for _, id in self._unsized if id in sizes})

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
        mode, id = base
        if shown is not None and stat.S_ISDIR(shown[0]) and stat.S_ISDIR(mode):
            ino = lower_number(parent, name)
            if shown[1] == id:
                return self._captured(path + b"/", name, ino, id)
            look = Look(ino, shown[1], {}, NO_STAT, False)
            return self._seen(path + b"/", name, look, id)
        if shown == base:
            self._captured_file(path, mode, unhexlify(id), lower_number(parent, name))
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
            tree=unhexlify(tree) if tree is not None and is_whole else None,
            entries=len(self.entries) - first,
            status=status,
            rules=unhexlify(rules[1]) if rules is not None and is_file else None,
            inside=sorted(inside, key=lambda one: one.name),
        )

    # what shows a tree as it is

    def _captured(self, path: bytes, name: bytes, ino: int, tree: ObjectID) -> Directory:
        """A directory that shows a tree as it is, and all below it."""
        if (found := self._holder(path, tree)) is not None:
            return self._copied(found, _Open(path, name, unhexlify(tree), ino, len(self.entries)))
        one = _Open(path, name, unhexlify(tree), ino, len(self.entries))
        for each, mode, id in self._lower.all_entries(tree):
            if not is_safe_name(each):
                one.tree = None
                continue
            number = lower_number(ino, each)
            if stat.S_ISDIR(mode):
                one.inside.append(self._captured(path + each + b"/", each, number, id))
                continue
            if each == b".gitignore" and stat.S_ISREG(mode):
                one.rules = unhexlify(id)
            one.modules += mode == GITLINK
            self._captured_file(path + each, mode, unhexlify(id), number)
        return self._closed(one)

    def _holder(self, path: bytes, tree: ObjectID) -> Held | None:
        """What holds all below a directory; where the index that is at hand does not do, stock git lists the base."""
        if self._held is not None and self._held.id(path) == unhexlify(tree):
            return self._held
        self._unread_left -= 1
        if self._has_asked_git or self._unread_left >= 0 or self._base is None:
            return None
        self._has_asked_git = True
        self._held = held.by_git(self._lower.store, self._base)
        return self._holder(path, tree)

    def _copied(self, source: Held, outer: _Open) -> Directory:
        """The same from what somebody holds: only stats are other ones."""
        entries, times, length = self.entries, self._times, self._id_length
        end_of_stat = self._owner + _NO_LENGTH
        under_way = [outer]
        here, prefix = outer, outer.ino.to_bytes(8, "little")
        for path, mode, rest in source.below(outer.path):
            end = path.rfind(b"/") + 1
            if path[:end] != here.path:
                here = self._move_to(under_way, path[:end], source)
                prefix = here.ino.to_bytes(8, "little")
            name = path[end:]
            if name == b".gitignore" and mode[2] >> 4 == _REGULAR:
                here.rules = rest[:length]
            if mode == _GITLINK:  # git looks at none of a submodule
                here.modules += 1
                entries.append(b"".join((NO_STAT[:24], mode, NO_STAT[28:], rest)))
                continue
            self._unsized.append((len(entries), rest[:length]))
            entries.append(b"".join((times, low_number(prefix, name), mode, end_of_stat, rest)))
        while len(under_way) > 1:
            self._close(under_way)
        return self._closed(outer)

    def _move_to(self, under_way: list[_Open], directory: bytes, source: Held) -> _Open:
        """Close the directories that another one is not in, and open it and those above it."""
        while not directory.startswith(under_way[-1].path):
            self._close(under_way)
        here = under_way[-1]
        while here.path != directory:
            end = directory.index(b"/", len(here.path))
            name, path = directory[len(here.path) : end], directory[: end + 1]
            ino = lower_number(here.ino, name)
            here = _Open(path, name, source.id(path), ino, len(self.entries))
            under_way.append(here)
        return here

    def _close(self, under_way: list[_Open]) -> None:
        one = under_way.pop()
        under_way[-1].inside.append(self._closed(one))

    def _closed(self, one: _Open) -> Directory:
        if one.tree is not None:
            self._counts[to_hex(one.tree)] = len(one.inside) + one.modules
        place = (self._times, _low(one.ino), bytes(4), self._owner, _DIRECTORY_LENGTH)
        return Directory(
            name=one.name,
            tree=one.tree,
            entries=len(self.entries) - one.first,
            status=b"".join(place),
            rules=one.rules,
            inside=sorted(one.inside, key=lambda each: each.name),
        )

    def _captured_file(self, path: bytes, mode: int, id: bytes, ino: int) -> None:
        """A file that shows what the base has."""
        status = NO_STAT
        if mode != GITLINK:
            self._unsized.append((len(self.entries), id))
            place = (self._times, _low(ino), bytes(4), self._owner, _NO_LENGTH)
            status = b"".join(place)
        self.entries.append(gitindex.entry(status, gitindex.git_mode(mode), id, path))

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
    return gitindex.entry(status, gitindex.git_mode(mode), unhexlify(id), path)


def _low(ino: int) -> bytes:
    return (ino & _LOW).to_bytes(4, "big")


def _length(size: int) -> bytes:
    return (size & _LOW).to_bytes(4, "big")
