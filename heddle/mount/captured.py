"""What git's index says of a tree that a mount shows as it was captured: the same for every mount of it.

Owns how that is listed (at once by ``held.py``, or directory by directory), with the sizes of the files. What a view
shows instead is ``listing.py``'s, the bytes are ``repo/gitindex.py``'s.
"""

from __future__ import annotations

import stat
from binascii import unhexlify
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from heddle.mount import held
from heddle.mount.depth import any_depth
from heddle.mount.held import Held
from heddle.mount.lower import GITLINK, Lower, is_safe_name
from heddle.mount.numbers import low_number, lower_number
from heddle.mount.shell import ROOT
from heddle.objects.gitformat import to_hex
from heddle.repo import gitindex, keptindex
from heddle.repo.gitindex import NO_STAT, Directory, Listed
from heddle.repo.statcache import collector_paused

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

_LOW = 0xFFFFFFFF
_DIRECTORY_LENGTH = (4096).to_bytes(4, "big")
_NO_LENGTH = bytes(4)
_GITLINK = GITLINK.to_bytes(4, "big")
_REGULAR = 0o100000 >> 12
_UNREAD, _UNREAD_OF = 64, 16
"""An index will not do that lacks more directories than this and one in so many of those that it has."""


class _Open:
    """A directory that shows a tree as it is, while what is in it is listed."""

    __slots__ = ("first", "ino", "inside", "modules", "name", "path", "rules", "tree")

    def __init__(self, path: bytes, name: bytes, tree: bytes | None, ino: int, first: int) -> None:
        self.path, self.name, self.tree, self.ino, self.first = path, name, tree, ino, first
        self.inside: list[Directory] = []
        self.modules = 0
        self.rules: bytes | None = None


class CapturedListing:
    """Everything that a tree holds, as a mount of it shows that before anything is changed there.

    Args:
        lower: reads it.
        time_ns: what its files have for a time, in ns since the epoch.
        uid, gid: whose they are.
        index: another index of git's, of which much may be true here too; None: there is none.

    Attributes:
        entries: the index's entries, as ``gitindex.entry``.
        sizes: of the files, in bytes, as far as they are known.
        counts: how many directories are in each.
        knew_all: whether the size of every captured file was known.
    """

    def __init__(
        self, lower: Lower, time_ns: int, uid: int, gid: int, *, index: Path | None = None
    ) -> None:
        self._lower = lower
        self._id_length = lower.store.id_length
        self._shown = time_ns, uid, gid, lower.object_format
        self._index = index
        self._held: Held | None = None
        self._has_asked_git = False
        self._unread_left = 0
        self._base: ObjectID | None = None
        usual = gitindex.stat_bytes(0, 0, uid, gid, 0, time_ns, time_ns)
        self._times, self._owner = usual[:20], usual[28:36]
        self._unsized: list[tuple[int, bytes]] = []  # which entry has to get the size of which blob
        self.entries: list[bytes] = []
        self.sizes: dict[ObjectID, int] = {}
        self.counts: dict[ObjectID, int] = {}
        self.knew_all = True

    def name_of(self, tree: ObjectID) -> str:
        """What the listing of a tree is kept under (``keptindex``)."""
        return keptindex.name_of(tree, *self._shown)

    def of_tree(self, tree: ObjectID) -> Listed:
        """List a tree, and nothing else."""
        with self._listing(tree):
            root = self._captured(b"", b"", ROOT, tree)
        return gitindex.collect(self.entries, root)

    @contextmanager
    def _listing(self, tree: ObjectID | None) -> Iterator[None]:
        """Find out what helps with a tree; when the block ends, put sizes into the entries that it made."""
        self._base = tree
        if self._index is not None:
            self._held = held.by_index(self._index, self._id_length)
        files = []
        if self._held is not None:
            self._unread_left = _UNREAD + len(self._held) // _UNREAD_OF
            files = self._held.files
        ids = [rest[: self._id_length] for _, mode, rest in files if mode != _GITLINK]
        with any_depth(), collector_paused(), self._lower.asking_sizes(ids) as told:
            yield
            self._fill_in(told())

    def _fill_in(self, sizes: dict[bytes, int]) -> None:
        """Put sizes into the entries of captured files.

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
        self.sizes = {to_hex(id): sizes[id] for _, id in self._unsized if id in sizes}

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
            self.counts[to_hex(one.tree)] = len(one.inside) + one.modules
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


def _low(ino: int) -> bytes:
    return (ino & _LOW).to_bytes(4, "big")


def _length(size: int) -> bytes:
    return (size & _LOW).to_bytes(4, "big")
