"""Files of a pack while it is written: the pack itself and what a large object needs until its id is known.

Owns the write order, and with it what a crash leaves; ``docs/format.md`` tells it step by step. What goes into the
pack, and when, is ``pack.py``'s. Neither class is safe for several threads.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from heddle import faults
from heddle.atomic import replacing
from heddle.errors import StorageError
from heddle.objects.blockindex import encode_index
from heddle.objects.layout import (
    BLOCK,
    CHUNKED,
    FRAME_SIZE,
    TEMPORARY_PREFIX,
    WHOLE,
    Entry,
    EntryHeader,
    encode_chunk,
    encode_pack_header,
    encode_pack_trailer,
    encode_table,
)
from heddle.objects.packfile import PackFile

LEVEL = 3
"""zstd's level. The files of Linux 6.1 (1.3 GB) on one processor: -1: 316 MB in 2.2 s, 1: 268 MB in 2.5 s, 3: 255 MB in
2.9 s, 4: 250 MB in 4.0 s."""
_GROUP = 4
"""Frames of a large object that are compressed together."""
SYNC_EVERY = 32 << 20
"""Bytes after which what was written is waited for. While ext4 puts a gibibyte on disk in one go, whoever creates a
file waits up to 270 ms; in pieces mostly under 50, and the capture takes no longer."""
_MODE = 0o444
_ABANDONED_AFTER_S = 600


class PackOutput:
    """The temporary file that becomes a pack.

    Args:
        directory: ``.heddle/objects/packs``.
        id_length: bytes of an id.

    Attributes:
        size: bytes written so far.
    """

    def __init__(self, directory: Path, id_length: int) -> None:
        from hashlib import sha256

        self._directory = directory
        self._id_length = id_length
        self._header = EntryHeader(id_length)
        self._renamed = False
        self._fd, self._temporary = temporary_file(directory)
        self._reader: PackFile | None = None
        self._digest = sha256()
        self._entries = 0
        self.size = 0
        self._synced = 0
        self._put(encode_pack_header(id_length))

    def _put(self, data: bytes) -> None:
        self._digest.update(data)
        with _as_storage_error(self._directory):
            _write_all(self._fd, data)
        self.size += len(data)
        if self.size - self._synced >= SYNC_EVERY:
            self.sync()

    def append(self, objects: Iterable[tuple[bytes, int, int]], frames: list[Any]) -> list[Entry]:
        """Write compressed objects in one go.

        Args:
            objects: (id, type number, length of the content in bytes) of each.
            frames: the zstd frame of each.
        """
        entries = []
        parts: list[Any] = []
        offset = self.size
        for (raw_id, type_num, raw_size), frame in zip(objects, frames, strict=True):
            entry = Entry(raw_id, offset, raw_size, len(frame), WHOLE, type_num)
            parts += (self._header.encode(entry), frame)
            offset += self._header.size + len(frame)
            entries.append(entry)
        self._put(b"".join(parts))
        self._entries += len(entries)
        faults.reach("pack.entries-written")
        return entries

    def append_chunked(self, raw_id: bytes, type_num: int, side: SideFile) -> Entry:
        """Copy the frames of one large object and write their table."""
        table = side.table(raw_id)
        stored_size = side.size + len(table)
        entry = Entry(raw_id, self.size, side.raw_size, stored_size, CHUNKED, type_num)
        self._put(self._header.encode(entry))
        for data in side.read():
            self._put(data)
        self._put(table)
        self._entries += 1
        faults.reach("pack.chunks-written")
        return entry

    def append_block(
        self,
        type_num: int,
        objects: Sequence[tuple[bytes, int]],
        bases: Sequence[int],
        frame: bytes,
    ) -> list[Entry]:
        """Write several objects that were compressed together.

        Args:
            objects: (id, length of the content in bytes) of each, in the order of the frame's content.
            bases: offsets in this file of the entries that the frame was compressed against.
            frame: the zstd frame.
        """
        first = objects[0][0]
        table = encode_table(first, bases, [size for _, size in objects])
        raw_size = sum(size for _, size in objects)
        block = Entry(first, self.size, raw_size, len(table) + len(frame), BLOCK, type_num)
        self._put(b"".join((self._header.encode(block), table, frame)))
        self._entries += 1
        faults.reach("pack.block-written")
        _, offset, _, stored_size, kind, _, _ = block
        return [
            Entry(raw_id, offset, size, stored_size, kind, type_num, number)
            for number, (raw_id, size) in enumerate(objects)
        ]

    def append_stored(self, entry: Entry, payload: Iterable[bytes]) -> Entry:
        """Write an object as another pack has it; its payload says nothing of where it lies."""
        copy = entry._replace(offset=self.size)
        self._put(self._header.encode(copy))
        for data in payload:
            self._put(data)
        self._entries += 1
        faults.reach("pack.stored-copied")
        return copy

    def get(self, entry: Entry) -> bytes:
        """Read back an object that was written."""
        if self._reader is None:
            self._reader = PackFile(self._temporary, self._id_length)
        return self._reader.get(entry)

    def sync(self) -> None:
        """Wait until what was written is on disk."""
        with _as_storage_error(self._directory):
            os.fdatasync(self._fd)
        self._synced = self.size
        faults.reach("pack.part-synced")

    def publish(
        self,
        entries: Iterable[Entry],
        *,
        modified_ns: int | None = None,
        collected: bool = False,
    ) -> str:
        """Make the pack durable and then visible; the index's rename is the commit point.

        Args:
            entries: of all objects in it.
            modified_ns: the modification time that the pack shall have, in ns since the epoch; None: now.
            collected: as for ``encode_index``.

        Returns:
            The pack's name: the SHA-256 of its bytes, in hex.
        """
        self._put(encode_pack_trailer(self._entries))
        digest = self._digest.digest()
        index = encode_index(
            entries,
            id_length=self._id_length,
            pack_size=self.size,
            pack_digest=digest,
            collected=collected,
        )
        if modified_ns is not None:
            with _as_storage_error(self._directory):
                os.utime(self._fd, ns=(modified_ns, modified_ns))
        publish(self._fd, self._temporary, self._directory / digest.hex(), index)
        self._renamed = True
        return digest.hex()

    def close(self) -> None:
        """Drop the file unless it was published."""
        os.close(self._fd)
        if not self._renamed:
            self._temporary.unlink(missing_ok=True)


def publish(fd: int, temporary: Path, path: Path, index: bytes) -> None:
    """Make a pack that is written durable and then visible; the index's rename is the commit point.

    Args:
        fd: of the pack, open for writing.
        temporary: where it is, on the same file system.
        path: its place without suffix.
        index: the content of its index.
    """
    with _as_storage_error(path.parent):
        os.fsync(fd)
        faults.reach("pack.synced")
        with replacing(path.with_suffix(".idx"), mode=_MODE) as file:
            file.write(index)
            file.flush()  # a disk without room for it says so before the pack has its name
            os.fchmod(fd, os.fstat(file.fileno()).st_mode & 0o777)  # what the umask leaves
            os.rename(temporary, path.with_suffix(".pack"))
            faults.reach("pack.renamed")
    faults.reach("pack.published")


class SideFile:
    """The compressed frames of one large object until its id is known; a file without a name.

    Attributes:
        raw_size: bytes of content taken so far.
        size: bytes of frames.
    """

    def __init__(self, directory: Path, *, level: int = LEVEL) -> None:
        self._directory = directory
        self._level = level
        self._fd, path = temporary_file(directory)
        path.unlink()
        self._places: list[tuple[int, int]] = []
        self.raw_size = 0
        self.size = 0

    def __enter__(self) -> SideFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def write(self, frames: Iterable[bytes]) -> None:
        """Compress pieces of FRAME_SIZE bytes, the last of which may be shorter, and keep them."""
        group: list[bytes] = []
        for frame in frames:
            group.append(frame)
            if len(group) == _GROUP:
                self._write_group(group)
                group = []
        self._write_group(group)

    def _write_group(self, group: list[bytes]) -> None:
        compressed = compress(group, threads=processors(), level=self._level)
        for raw, frame in zip(group, compressed, strict=True):
            self._places.append((self.size, len(frame)))
            self.size += len(frame)
            self.raw_size += len(raw)
        with _as_storage_error(self._directory):
            _write_all(self._fd, b"".join(compressed))

    def table(self, raw_id: bytes) -> bytes:
        """The chunk table, in which each row is bound to the object's id."""
        return b"".join(
            [encode_chunk(raw_id, number, *place) for number, place in enumerate(self._places)]
        )

    def read(self) -> Iterator[bytes]:
        """Yield the frames' bytes, in pieces that do not follow the frames."""
        offset = 0
        while data := os.pread(self._fd, FRAME_SIZE, offset):
            yield data
            offset += len(data)


def framed(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Some content, in pieces of any length, as a SideFile takes it: FRAME_SIZE bytes at a time, the last fewer."""
    held = bytearray()
    for piece in pieces:
        held += piece
        while len(held) >= FRAME_SIZE:
            yield bytes(held[:FRAME_SIZE])
            del held[:FRAME_SIZE]
    if held:
        yield bytes(held)


def compress(contents: list[bytes], *, threads: int, level: int = LEVEL) -> list[Any]:
    """Compress each into a zstd frame of its own.

    Args:
        contents: what to compress.
        threads: how many to compress at once; none of them holds the interpreter's lock.
        level: zstd's.

    Returns:
        Buffers in the same order.
    """
    import zstandard

    compressor = zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True)
    filled = [content for content in contents if content]  # the bulk call refuses empty content
    if len(filled) < 2:
        return [compressor.compress(content) for content in contents]
    many: Any = compressor.multi_compress_to_buffer
    frames = iter(many(filled, threads=min(threads, len(filled))))
    return [next(frames) if content else compressor.compress(content) for content in contents]


def spare_processors() -> int:
    """How many threads may compress while another one reads and hashes."""
    return max(1, processors() - 1)


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0))


def remove_abandoned(directory: Path, names: Iterable[str]) -> None:
    """Remove temporary files whose writers died.

    A writer holds flock(2) on its file as long as it lives. One that is only just being made is not locked yet, and
    an index that is about to be renamed never is; so a file must also be old.

    Args:
        directory: where they lie.
        names: of temporary files.
    """
    for name in names:
        path = directory / name
        try:
            if time.time() - path.stat().st_mtime > _ABANDONED_AFTER_S and _lock_is_free(path):
                path.unlink()
        except OSError:  # somebody else removed it, or only somebody else can
            continue


def _lock_is_free(path: Path) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def temporary_file(directory: Path) -> tuple[int, Path]:
    """Create a file that is ours as long as its descriptor is open; see ``remove_abandoned``.

    Raises:
        StorageError: it can't be made.
    """
    path = directory / f"{TEMPORARY_PREFIX}{os.urandom(8).hex()}"
    with _as_storage_error(directory):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
        fcntl.flock(fd, fcntl.LOCK_EX)
        return fd, path


@contextmanager
def _as_storage_error(directory: Path) -> Iterator[None]:
    """Say where writing failed; only around our own files, since a caller's reading may fail too."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"writing to {directory} failed: {error.strerror}") from error


def _write_all(fd: int, data: bytes) -> None:
    written = os.write(fd, data)
    while written < len(data):
        written += os.write(fd, memoryview(data)[written:])
