"""What git's index knows of files in a checkout and of trees, so that they need not be read again.

Owns finding entries in gitformat-index(5), versions 2 to 4. A file whose stat is still the one in the index holds what
the index says it holds, by git's own rules: after line endings were converted and filters such as git-lfs's ran. That
can't be told from the bytes alone.
"""

from __future__ import annotations

import mmap
import os
import struct
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from heddle.objects.gitpack import offset_varint
from heddle.repo import gitindex

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

HEADER = struct.Struct(">4sII")
STAT = struct.Struct(">10I")
_FLAGS = struct.Struct(">H")
_EXTENDED, _STAGE, _LENGTH = 0x4000, 0x3000, 0x0FFF
_SKIP_WORKTREE = 0x4000
_LOW = 0xFFFFFFFF
_MISSES = 32
"""So many files that the index does not know, and the others are not looked for: each costs a look at all of it."""


class Seen(NamedTuple):
    """What matters of a file's stat; times in ns since the epoch, size in bytes."""

    ctime_ns: int
    mtime_ns: int
    ino: int
    size: int


class _Entry(NamedTuple):
    """What an entry says of its file (see `_said`), its mode and its blob's binary id."""

    said: tuple[int, ...]
    mode: int
    blob: bytes


class Staged:
    """An index that is asked about files; quickest in the order of their paths.

    Args:
        data: its bytes.
        written_ns: when it was written, in ns since the epoch.
        id_length: bytes of an id.
    """

    def __init__(self, data: mmap.mmap | bytes, written_ns: int, id_length: int) -> None:
        version = HEADER.unpack_from(data)[1] if len(data) >= HEADER.size else 0
        kind = READERS.get(version)
        self._reader = None if kind is None else kind(data, id_length, version)
        self._written_ns = written_ns
        self._misses = 0

    def holds(self, path: bytes, seen: Seen, blob: bytes) -> bool:
        """Whether git knows a file to hold a blob (binary id), from its stat alone.

        That is so if its entry has this stat and this blob, and the index was written after the file: git could not
        have missed a later change of it.
        """
        if self._reader is None or self._misses > _MISSES or seen.mtime_ns >= self._written_ns:
            return False
        entry = self._reader.find(path)
        self._misses += entry is None
        return entry is not None and entry.said == _said(seen) and entry.blob == blob


def read_staged(index: Path, id_length: int) -> Staged:
    """An index that is there to be asked for longer; a missing one knows nothing."""
    with _mapped(index) as (data, written_ns):
        return Staged(bytes(data), written_ns, id_length)


def unchanged(
    index: Path, files: Iterable[tuple[bytes, os.stat_result, bytes]], id_length: int
) -> set[bytes]:
    """Which files git knows to hold a blob.

    Args:
        index: git's index; a missing one knows nothing.
        files: path, lstat(2) and the blob's binary id of each.
        id_length: bytes of an id.

    Returns:
        The paths of those; see `Staged.holds`.
    """
    with _mapped(index) as (data, written_ns):
        staged = Staged(data, written_ns, id_length)
        return {
            path
            for path, status, blob in sorted(files, key=lambda each: each[0])
            if staged.holds(path, _seen(status), blob)
        }


class Skipped:
    """The paths that git leaves out of a checkout (git-update-index(1), "Skip-worktree bit"): nothing there counts.

    Args:
        paths: of files; a directory's, with a slash behind it, stands for all below (a sparse index).
    """

    def __init__(self, paths: Iterable[bytes] = ()) -> None:
        self._paths = frozenset(paths)
        self._sorted = sorted(self._paths)
        self._directories = [path for path in self._sorted if path.endswith(b"/")]

    def __bool__(self) -> bool:
        return bool(self._paths)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Skipped) and self._paths == other._paths

    def __hash__(self) -> int:
        return hash(self._paths)

    def __contains__(self, path: bytes) -> bool:
        return path in self._paths or any(map((path + b"/").startswith, self._directories))

    def lie_below(self, path: bytes) -> bool:
        """Whether a directory is left out, or something in it."""
        at = bisect_left(self._sorted, path + b"/")
        below = at < len(self._sorted) and self._sorted[at].startswith(path + b"/")
        return below or path in self


def skipped(index: Path, id_length: int) -> Skipped:
    """What an index leaves out of its checkout; a missing index nothing.

    Args:
        index: git's index.
        id_length: bytes of an id.
    """
    with _mapped(index) as (data, _):
        version = HEADER.unpack_from(data)[1] if len(data) >= HEADER.size else 0
        if version not in (3, 4):  # version 2 has no place for it
            return Skipped()
        return Skipped(
            path
            for path, _, _, _, extended in each_entry(data, id_length, version)
            if extended & _SKIP_WORKTREE
        )


def paths(index: Path, id_length: int) -> list[bytes]:
    """The paths of an index's entries; a missing index has none.

    Args:
        index: git's index.
        id_length: bytes of an id.
    """
    return [path for path, _ in _flagged(index, id_length)]


def conflicts(index: Path, id_length: int) -> list[bytes]:
    """The paths of an index that are in conflict, each once; as `paths` otherwise.

    One whose cache tree says what tree it is holds none: git takes that back with every entry that is not a file's.
    """
    with _mapped(index) as (data, _):
        found = gitindex.extension_at(data, b"TREE", len(data) - id_length)
        is_whole = found is not None and data[found[0] + 8 : found[0] + 10] not in (b"\0-", b"")
        if is_whole or not _may_conflict(data, id_length):
            return []
    staged = (path for path, flags in _flagged(index, id_length) if flags & _STAGE)
    return list(dict.fromkeys(staged))


def _may_conflict(data: mmap.mmap | bytes, id_length: int) -> bool:
    """Whether an entry is of a stage, by their flags alone: a capture asks that of 80,000."""
    version, count = HEADER.unpack_from(data)[1:] if len(data) >= HEADER.size else (0, 0)
    if version not in (2, 3):
        return True
    unpack, flags_at, at = _FLAGS.unpack_from, STAT.size + id_length, HEADER.size
    with suppress(struct.error):
        for _ in range(count):
            flags = unpack(data, at + flags_at)[0]
            length = flags & _LENGTH
            if flags & _STAGE or length == _LENGTH:
                return True
            at += (flags_at + (4 if flags & _EXTENDED else 2) + length + 8) // 8 * 8
        return False
    return True


def _flagged(index: Path, id_length: int) -> Iterator[tuple[bytes, int]]:
    """The path and flags of each entry of an index of a known version."""
    with _mapped(index) as (data, _):
        version = HEADER.unpack_from(data)[1] if len(data) >= HEADER.size else 0
        if version in READERS:
            for path, _, _, flags, _ in each_entry(data, id_length, version):
                yield path, flags


def entries(
    index: Path, paths: Collection[bytes], id_length: int
) -> dict[bytes, tuple[int, ObjectID]] | None:
    """Mode and id, in hex, of an index's entries that are in no conflict.

    Args:
        index: git's index.
        paths: of those wanted.
        id_length: bytes of an id.

    Returns:
        By path; None where there is no index.
    """
    with _mapped(index) as (data, _):
        version = HEADER.unpack_from(data)[1] if len(data) >= HEADER.size else 0
        if version not in READERS:
            return None
        # A path that is not there costs a look at all of it, unless all entries are read first.
        kind = READERS[version] if len(paths) <= _MISSES else _Walk
        reader = kind(data, id_length, version)
        found = {path: reader.find(path) for path in sorted(paths)}
        return {
            path: (entry.mode, cast("ObjectID", entry.blob.hex().encode()))
            for path, entry in found.items()
            if entry is not None
        }


def _seen(status: os.stat_result) -> Seen:
    return Seen(status.st_ctime_ns, status.st_mtime_ns, status.st_ino, status.st_size)


def _said(seen: Seen) -> tuple[int, ...]:
    """What an entry says of a file that matters: both times, the inode number and the size, cut to 32 bits."""
    changed_s, changed_ns = divmod(seen.ctime_ns, 1_000_000_000)
    modified_s, modified_ns = divmod(seen.mtime_ns, 1_000_000_000)
    times = changed_s & _LOW, changed_ns, modified_s & _LOW, modified_ns
    return (*times, seen.ino & _LOW, seen.size & _LOW)


class _Reader:
    """Finds entries by paths, quickest where these are asked for in order.

    Args:
        data: the index.
        id_length: bytes of an id.
        version: of the index.
    """

    def __init__(self, data: mmap.mmap | bytes, id_length: int, version: int) -> None:
        self._data = data
        self._id_length = id_length
        self._from = HEADER.size
        self._last = b""

    def find(self, path: bytes) -> _Entry | None:
        """The entry of a path; None where there is none, or a conflict."""
        if path < self._last:
            self._from = HEADER.size
        self._last = path
        at = self._data.find(path + b"\0", self._from)
        while at >= 0:
            start = self._start(path, at)
            if start is not None:
                self._from = at
                return _entry(self._data, start, self._id_length)
            at = self._data.find(path + b"\0", at + 1)
        return None

    def _start(self, path: bytes, at: int) -> int | None:
        """Where the entry begins whose path is at ``at``; None when these bytes are something else's."""
        for extra in (0, 2):
            start = at - extra - _FLAGS.size - self._id_length - STAT.size
            if start < HEADER.size or (start - HEADER.size) % 8:
                continue
            flags = _FLAGS.unpack_from(self._data, at - extra - _FLAGS.size)[0]
            if flags & _STAGE or bool(flags & _EXTENDED) != bool(extra):
                continue
            if flags & _LENGTH == min(len(path), _LENGTH):
                return start
        return None


class _Walk:
    """The same with all entries read first: in version 4 a path is said by its difference from the one before."""

    def __init__(self, data: mmap.mmap | bytes, id_length: int, version: int) -> None:
        self._data = data
        self._id_length = id_length
        self._version = version

    @cached_property
    def _starts(self) -> dict[bytes, int]:
        entries = each_entry(self._data, self._id_length, self._version)
        return {path: start for path, start, _, flags, _ in entries if not flags & _STAGE}

    def find(self, path: bytes) -> _Entry | None:
        start = self._starts.get(path)
        return None if start is None else _entry(self._data, start, self._id_length)


READERS: dict[int, type[_Reader | _Walk]] = {2: _Reader, 3: _Reader, 4: _Walk}


def each_entry(
    data: mmap.mmap | bytes, id_length: int, version: int
) -> Iterator[tuple[bytes, int, int, int, int]]:
    """Path, beginning, end, flags and extended flags of every entry, as far as the index is sound."""
    path, at = b"", HEADER.size
    for _ in range(HEADER.unpack_from(data)[2]):
        start, extended, dropped = at, 0, len(path)
        at += STAT.size + id_length
        if at + 2 * _FLAGS.size >= len(data):
            return
        flags = _FLAGS.unpack_from(data, at)[0]
        at += _FLAGS.size
        if flags & _EXTENDED:
            extended = _FLAGS.unpack_from(data, at)[0]
            at += _FLAGS.size
        if version == 4:
            try:
                dropped, at = offset_varint(data, at)
            except IndexError:
                return
        end = data.find(b"\0", at)
        if end < 0:
            return
        path = path[: len(path) - dropped] + data[at:end]
        at = end + 1 if version == 4 else start + (end - start + 8) // 8 * 8
        yield path, start, at, flags, extended


def _entry(data: mmap.mmap | bytes, start: int, id_length: int) -> _Entry:
    said = STAT.unpack_from(data, start)
    id_at = start + STAT.size
    return _Entry((*said[:4], said[5], said[9]), said[6], data[id_at : id_at + id_length])


@contextmanager
def _mapped(path: Path) -> Iterator[tuple[mmap.mmap | bytes, int]]:
    """The bytes of the index and the time at which it was written."""
    try:
        with open(path, "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            if status.st_size == 0:
                yield b"", 0
                return
            with mmap.mmap(file.fileno(), status.st_size, prot=mmap.PROT_READ) as data:
                yield data, status.st_mtime_ns
    except FileNotFoundError:
        yield b"", 0
