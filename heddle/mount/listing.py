"""What git's index says of a mount: every file and directory of a tree, with what the view shows in its place.

Owns what is in the upper, which is looked at in the loop; the rest is known from the tree (``captured.py``). The bytes
are ``repo/gitindex.py``'s, when they are written ``gitview.py``'s.
"""

from __future__ import annotations

import stat
import time
from binascii import unhexlify
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from heddle.mount.captured import CapturedListing
from heddle.mount.everything import InLoop
from heddle.mount.nodes import DirNode, FileNode
from heddle.mount.numbers import lower_number
from heddle.mount.shell import Attrs
from heddle.mount.snapshot import found
from heddle.repo import gitindex
from heddle.repo.gitindex import NO_STAT, Directory

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.mount.core import ContentAddressedMount

_AT_ONCE = 256  # names looked at between two turns of the loop
SETTLED_NS = 50_000_000
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


class Listing(CapturedListing):
    """Everything that a tree holds, with what the view shows of it.

    The view belongs to the loop: what has a place in the upper is looked at there, a few names at a time, the rest is
    known from the tree. What changes meanwhile has another stat than the index says, and git looks for itself.

    Args:
        core: the view.
        in_loop: runs a function where nothing else changes the view.
        index: as in ``CapturedListing``.
    """

    def __init__(
        self,
        core: ContentAddressedMount,
        in_loop: InLoop,
        *,
        index: Path | None = None,
    ) -> None:
        super().__init__(core.lower, core.time_ns, core.uid, core.gid, index=index)
        self._core = core
        self._in_loop = in_loop
        self._now_ns = time.time_ns()

    def look_at_root(self) -> Look:
        """What `run` begins with."""
        return self._look(b"")

    def run(self, look: Look, tree: ObjectID | None) -> Directory:
        """List it, and keep what will be asked of what is in it; returns its root."""
        with self._listing(tree):
            root = self._seen(b"", b"", look, tree)
        self._lower.keep_sizes(self.sizes)
        self._lower.keep_counts(self.counts)
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
        needed_ns = SETTLED_NS if changed_ns % _SECOND_NS else _SETTLED_WHOLE_NS
        is_as_captured = changed_ns == self._core.time_ns
        return status, is_as_captured or changed_ns + needed_ns < self._now_ns


def _entry(status: bytes, mode: int, id: ObjectID, path: bytes) -> bytes:
    return gitindex.entry(status, gitindex.git_mode(mode), unhexlify(id), path)
