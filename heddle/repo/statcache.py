"""What stat(2) said of each file of the working directory when its content was known.

Owns the rows' layout and the rule by which a stat may be trusted. A row remembers one tree, so that an unchanged
directory needs neither its files nor its tree object to be read. Walking is ``worktree.py``'s; the rows lie in the
database, and losing them costs time only.

Layout of a row's ``entries``, little-endian::

    offset  size   what
    0       4      CRC-32 of the row's path, its tree and all that follows
    4       4      F, number of files and symbolic links
    8       4      O, number of other entries (trees, links to other repositories)
    12      36 F   of each file: st_mode (4), st_size (8), st_mtime_ns (8), st_ctime_ns (8), st_ino (8);
                   st_mode 0: what is there was not what the tree says, or could not be trusted
    ...     4 N    git modes of the files, then of the others (N = F + O)
    ...     I N    binary ids in that order, I = 20 or 32
    ...            names in that order, a NUL between two
"""

from __future__ import annotations

import gc
import struct
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast
from zlib import crc32

from heddle.repo.schema import CachedDirectory

if TYPE_CHECKING:
    import os

    from dulwich.objects import ObjectID

    from heddle.repo.database import Database

Stat = tuple[int, int, int, int, int]
"""st_mode, st_size in bytes, st_mtime_ns, st_ctime_ns, st_ino."""
Entry = tuple[int, "ObjectID"]
"""Git mode and hex id."""

UNKNOWN: Stat = (0, 0, 0, 0, 0)
_CRC = struct.Struct("<I")
_COUNTS = struct.Struct("<II")
_STAT = struct.Struct("<IqqqQ")
_MODE = struct.Struct("<I")
_KINDS_OF_FILES = (0o100000, 0o120000)
_COARSE_NS = 2_000_000_000
_FINE_NS = 50_000_000


def stat_of(status: os.stat_result) -> Stat:
    """The part of a stat that tells whether a file is still what it was."""
    return (
        status.st_mode,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_ino,
    )


def is_settled(stat: Stat, read_at_ns: int) -> bool:
    """Whether a later change would show in the stat of a file that was read at ``read_at_ns``.

    A file can change twice within one tick of its file system's clock: git's "racy" entries. Linux ticks every
    10 ms at worst; some file systems keep whole seconds or two.
    """
    return settles_at(max(stat[2], stat[3])) < read_at_ns


def settles_at(changed_ns: int) -> int:
    """From when on a later change would show; times in ns since the epoch."""
    return changed_ns + (_FINE_NS if changed_ns % 1_000_000_000 else _COARSE_NS)


class Remembered:
    """One directory: a tree's entries, and the stats of its files as far as they are known.

    Attributes:
        tree: the tree's id.
        files: stats of files and symbolic links by name; ``UNKNOWN`` where none is.
        others: mode and id of the other entries, by name.
    """

    def __init__(self, tree: ObjectID, entries: Mapping[bytes, Entry] | None = None) -> None:
        self.tree = tree
        self.files: dict[bytes, Stat] = {}
        self.others: dict[bytes, Entry] = {}
        self._entries = entries
        self._coded = b""
        for name, entry in (entries or {}).items():
            if entry[0] & 0o170000 in _KINDS_OF_FILES:
                self.files[name] = UNKNOWN
            else:
                self.others[name] = entry

    @classmethod
    def decode(cls, tree: ObjectID, coded: bytes) -> Remembered:
        """Read a row; the ids of files are decoded when they are asked for.

        Raises:
            ValueError, struct.error: this is not a row.
        """
        row = cls(tree)
        row._coded = coded
        files, others, modes_at, _, names_at = row._layout()
        names = coded[names_at:].split(b"\0") if files + others else []
        if len(names) != files + others:
            raise ValueError("a row of the stat cache has too few or too many names")
        stats = _STAT.iter_unpack(memoryview(coded)[_COUNTS.size : modes_at])
        row.files = dict(zip(names[:files], cast("Iterator[Stat]", stats), strict=True))
        row.others = row._named(names[files:], files)
        return row

    def take_over(self, other: Remembered) -> None:
        """Know the stats of files that are the same in another tree, mode and all."""
        mine, theirs = self.entries(), other.entries()
        for name, stat in other.files.items():
            if name in self.files and mine[name] == theirs[name]:
                self.files[name] = stat

    def entries(self) -> Mapping[bytes, Entry]:
        """Mode and id of everything in the tree, by name."""
        if self._entries is None:
            self._entries = self._named([*self.files, *self.others], 0)
        return self._entries

    def _named(self, names: list[bytes], first: int) -> dict[bytes, Entry]:
        """Mode and id of names that follow each other, ``first`` being the number of the first."""
        if not names:
            return {}
        _, _, modes_at, ids_at, _ = self._layout()
        width = len(self.tree)
        modes = struct.unpack_from(f"<{len(names)}I", self._coded, modes_at + first * _MODE.size)
        ids = self._coded[ids_at + first * width // 2 :][: len(names) * width // 2].hex().encode()
        return {
            name: (mode, cast("ObjectID", ids[at : at + width]))
            for name, mode, at in zip(
                names, modes, range(0, len(names) * width, width), strict=True
            )
        }

    def _layout(self) -> tuple[int, int, int, int, int]:
        """F and O, and where modes, ids and names begin."""
        files, others = _COUNTS.unpack_from(self._coded)
        modes_at = _COUNTS.size + files * _STAT.size
        ids_at = modes_at + (files + others) * _MODE.size
        return files, others, modes_at, ids_at, ids_at + (files + others) * len(self.tree) // 2

    def encode(self) -> bytes:
        """The row."""
        entries = self.entries()
        names = [*self.files, *self.others]
        parts = [_COUNTS.pack(len(self.files), len(self.others))]
        parts += [_STAT.pack(*stat) for stat in self.files.values()]
        parts += [_MODE.pack(entries[name][0]) for name in names]
        parts += [bytes.fromhex(entries[name][1].decode()) for name in names]
        return b"".join(parts) + b"\0".join(names)


def _crc(path: bytes, tree: bytes, coded: bytes) -> int:
    return crc32(coded, crc32(tree, crc32(path)))


def _checked(row: CachedDirectory) -> bytes:
    """The part of a row behind its checksum; raises ValueError or struct.error where that is wrong."""
    coded = row.entries[_CRC.size :]
    if _CRC.unpack_from(row.entries)[0] != _crc(row.path, row.tree, coded):
        raise ValueError("a row of the stat cache is damaged")
    return coded


class StatCache:
    """The rows of a working directory: read at once, written back where they changed."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._rows = {row.path: row for row in database.cached_directories()}
        self._changed: dict[bytes, CachedDirectory] = {}
        self._removed: set[bytes] = set()

    def get(self, path: bytes) -> Remembered | None:
        """What is remembered of a directory."""
        row = self._rows.get(path)
        if row is None:
            return None
        try:
            return Remembered.decode(row.tree, _checked(row))
        except (ValueError, struct.error):
            return None

    def put(self, path: bytes, directory: Remembered) -> None:
        """Remember a directory, once ``save`` is called."""
        coded = directory.encode()
        checksum = _CRC.pack(_crc(path, directory.tree, coded))
        self._changed[path] = CachedDirectory(path, directory.tree, checksum + coded)

    def keep_only(self, paths: Container[bytes]) -> None:
        """Forget every directory but these."""
        self._removed.update(path for path in self._rows if path not in paths)

    def save(self) -> None:
        """Write what changed; where that is not possible, the next command reads some files again."""
        removed = self._removed - set(self._changed)
        if self._changed or removed:
            self._database.cache_directories(self._changed.values(), removed)


@contextmanager
def collector_paused() -> Iterator[None]:
    """Keep the garbage collector from looking at 80,000 new tuples again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
