"""Reading a pack file: one object out of it, checked, or every entry in turn.

Owns every check on bytes that come from a pack. Which pack holds an object is ``store.py``'s question; what a pack
looks like is ``layout.py``'s.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from heddle.errors import CorruptObject, StorageError
from heddle.objects.gitformat import new_hash
from heddle.objects.layout import (
    CHUNK_SIZE,
    CHUNKED,
    DELTA,
    DELTA_BASE,
    DELTA_DEPTH,
    ENTRY_MAGIC,
    FRAME_SIZE,
    PACK_HEADER_SIZE,
    PACK_TRAILER_SIZE,
    Entry,
    EntryHeader,
    corrupt,
    decode_chunk,
    decode_pack_trailer,
    encode_pack_header,
    frame_count,
    frame_length,
    is_plausible,
    stored_bound,
)

if TYPE_CHECKING:
    from zstandard import ZstdDecompressor

_NOT_HERE = "another object or none is where the index says it is"


class PackFile:
    """One pack file, read at offsets; it is closed when nothing refers to it any more.

    Safe for several threads: it has no position and its bytes never change. It is read with pread(2), never mapped,
    so that its pages do not count as the reader's memory.

    Args:
        path: the pack.
        id_length: bytes of an id.

    Raises:
        FileNotFoundError: the pack is gone, for instance because gc merged it into another.
    """

    def __init__(self, path: Path, id_length: int) -> None:
        self._fd = -1
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._id_length = id_length
        self._header = EntryHeader(id_length)
        self.size = 0
        self.refresh_size()

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def refresh_size(self) -> None:
        """Take the file's length again; only a pack that is still being written changes it."""
        self.size = os.fstat(self._fd).st_size

    # One object

    def get(self, entry: Entry) -> bytes:
        """Return an object's content.

        Raises:
            CorruptObject: the stored bytes are not what was written.
        """
        if entry.kind == CHUNKED:
            return b"".join(self.frames(entry))
        return self._get_single(entry, DELTA_DEPTH)

    def contents(self, entry: Entry) -> Iterator[bytes]:
        """Yield an object's content, in pieces when it is chunked; raises as ``get``."""
        if entry.kind == CHUNKED:
            yield from self.frames(entry)
        else:
            yield self._get_single(entry, DELTA_DEPTH)

    def read_at(self, entry: Entry, offset: int, size: int) -> bytes:
        """Return up to ``size`` bytes of content from ``offset``, short at its end; raises as ``get``."""
        end = min(offset + size, entry.raw_size)
        if offset >= end:
            return b""
        if entry.kind != CHUNKED:
            return self.get(entry)[offset:end]
        at = offset - offset % FRAME_SIZE
        parts = []
        for frame in self.frames(entry, at // FRAME_SIZE, frame_count(end)):
            parts.append(frame[max(0, offset - at) : end - at])
            at += len(frame)
        return b"".join(parts)

    def frames(self, entry: Entry, first: int = 0, last: int | None = None) -> Iterator[bytes]:
        """Yield the content of a chunked entry's frames ``first`` to ``last`` (not included)."""
        self._check_header(self._pread(entry, entry.offset, self._header.size), entry)
        for number in range(first, frame_count(entry.raw_size) if last is None else last):
            yield self._frame(entry, number)

    def _frame(self, entry: Entry, number: int) -> bytes:
        payload_at = entry.offset + self._header.size
        frames_size = entry.stored_size - frame_count(entry.raw_size) * CHUNK_SIZE
        row_at = payload_at + frames_size + number * CHUNK_SIZE
        place = decode_chunk(entry.id, number, self._pread(entry, row_at, CHUNK_SIZE))
        size = frame_length(entry.raw_size, number)
        if place is None or sum(place) > frames_size or place[1] > stored_bound(size):
            raise self.corrupt(entry, f"the place of frame {number} is wrong")
        start, length = place
        return self._decompress(self._pread(entry, payload_at + start, length), size, entry)

    def _get_single(self, entry: Entry, depth: int) -> bytes:
        if not is_plausible(entry):
            raise self.corrupt(entry, _NOT_HERE)
        data = self._pread(entry, entry.offset, self._header.size + entry.stored_size)
        self._check_header(data, entry)
        payload = memoryview(data)[self._header.size :]
        if entry.kind != DELTA:
            return self._decompress(payload, entry.raw_size, entry)
        base = self._base(entry, payload, depth)
        frame = payload[DELTA_BASE.size :]
        return self._decompress(frame, entry.raw_size, entry, self._get_single(base, depth - 1))

    def _base(self, entry: Entry, payload: memoryview, depth: int) -> Entry:
        """The earlier entry of this pack whose content a delta entry needs."""
        if len(payload) < DELTA_BASE.size or depth == 0:
            raise self.corrupt(entry, "its chain of bases is broken or too long")
        (offset,) = DELTA_BASE.unpack_from(payload)
        if offset < entry.offset:
            base = self._header.decode(self._pread(entry, offset, self._header.size), offset)
            if base is not None and base.kind != CHUNKED:
                return base
        raise self.corrupt(entry, "its base is not an earlier entry")

    # Bytes and their checks

    def _pread(self, entry: Entry, offset: int, size: int) -> bytes:
        """Read exactly ``size`` bytes; the file's length bounds what is allocated."""
        if offset + size > self.size:
            self.refresh_size()
            if offset + size > self.size:
                raise self.corrupt(entry, "the pack ends before it")
        try:
            data = os.pread(self._fd, size, offset)
        except OSError as error:
            raise StorageError(f"reading {self.path} failed: {error.strerror}") from error
        if len(data) != size:
            raise self.corrupt(entry, "the pack ends before it")
        return data

    def _check_header(self, data: bytes, entry: Entry) -> None:
        if self._header.decode(data, entry.offset) != entry:
            raise self.corrupt(entry, _NOT_HERE)

    def _decompress(
        self, frame: bytes | memoryview, size: int, entry: Entry, base: bytes | None = None
    ) -> bytes:
        import zstandard

        try:
            # Asked first, because the decompressor allocates what the frame says.
            if zstandard.frame_content_size(frame) == size:
                content = _decompressor(base).decompress(frame, allow_extra_data=False)
                if len(content) == size:
                    return content
        except zstandard.ZstdError as error:
            raise self.corrupt(entry, str(error)) from error
        raise self.corrupt(entry, "its length is not the recorded one")

    def corrupt(self, entry: Entry, why: str) -> CorruptObject:
        """The error for an object of this pack that is not what was written."""
        return corrupt(str(self.path), entry.id, why)

    # The whole file

    def rehash(self, entry: Entry) -> None:
        """Decompress an object and compare its id; raises CorruptObject."""
        digest = new_hash(self._id_length, entry.type_num, entry.raw_size)
        for data in self.contents(entry):
            digest.update(data)
        if digest.digest() != entry.id:
            raise self.corrupt(entry, f"its content has the id {digest.hexdigest()}")

    def is_whole(self, digest: bytes) -> bool:
        """Say whether the file has this SHA-256 and begins and ends as a finished pack does."""
        if self.size < PACK_HEADER_SIZE + PACK_TRAILER_SIZE:
            return False
        head = os.pread(self._fd, PACK_HEADER_SIZE, 0)
        tail = os.pread(self._fd, PACK_TRAILER_SIZE, self.size - PACK_TRAILER_SIZE)
        return (
            head == encode_pack_header(self._id_length)
            and decode_pack_trailer(tail) is not None
            and self._digest() == digest
        )

    def _digest(self) -> bytes:
        from hashlib import sha256

        digest = sha256()
        offset = 0
        while data := os.pread(self._fd, FRAME_SIZE, offset):
            digest.update(data)
            offset += len(data)
        return digest.digest()

    def scan(self) -> Iterator[Entry]:
        """Find the entries without an index, stepping over what is damaged.

        Yields:
            Each entry whose header is sound and whose payload lies within the file, in order of offsets.
        """
        offset: int | None = PACK_HEADER_SIZE
        while offset is not None and offset + self._header.size <= self.size:
            entry = self._header.decode(os.pread(self._fd, self._header.size, offset), offset)
            if entry is not None and self._end_of(entry) <= self.size:
                yield entry
                offset = self._end_of(entry)
            else:
                offset = self._next_header(offset + 1)

    def _end_of(self, entry: Entry) -> int:
        return entry.offset + self._header.size + entry.stored_size

    def _next_header(self, offset: int) -> int | None:
        """Where the next sound entry header begins, from ``offset`` on."""
        while offset < self.size:
            window = os.pread(self._fd, FRAME_SIZE + self._header.size, offset)
            at = window.find(ENTRY_MAGIC)
            while 0 <= at < FRAME_SIZE:
                if self._header.decode(window, offset + at, at=at) is not None:
                    return offset + at
                at = window.find(ENTRY_MAGIC, at + 1)
            offset += FRAME_SIZE
        return None


_local = threading.local()


def _decompressor(base: bytes | None) -> ZstdDecompressor:
    """This thread's decompressor (its context is not for several), or one for a delta's base."""
    import zstandard

    if base is not None:
        dictionary = zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        return zstandard.ZstdDecompressor(dict_data=dictionary)
    decompressor: ZstdDecompressor | None = getattr(_local, "decompressor", None)
    if decompressor is None:
        decompressor = _local.decompressor = zstandard.ZstdDecompressor()
    return decompressor
