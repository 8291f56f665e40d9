"""Reading a pack file: one object out of it, checked, or every entry in turn.

Owns every check on bytes that come from a pack. Which pack holds an object is ``store.py``'s question; what a pack
looks like is ``layout.py``'s.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heddle.errors import CorruptObject, StorageError
from heddle.objects.gitformat import new_hash
from heddle.objects.layout import (
    BASE_DEPTH,
    BLOCK,
    CHUNK_SIZE,
    CHUNKED,
    ENTRY_MAGIC,
    FRAME_SIZE,
    PACK_HEADER_SIZE,
    BlockTable,
    Entry,
    EntryHeader,
    corrupt,
    decode_chunk,
    decode_table,
    frame_count,
    frame_length,
    is_plausible,
    stored_bound,
)

if TYPE_CHECKING:
    from zstandard import ZstdDecompressor

_SECTOR = 4096
_NOT_HERE = "another object or none is where the index says it is"
_KEPT_BLOCKS = 4 << 20
"""Bytes of decompressed blocks that a pack file keeps: neighbours in a block are asked for one after the other."""


class PackFile:
    """One pack file, read at offsets; it is closed when nothing refers to it any more.

    Safe for several threads: it has no position and its bytes never change. It is read with pread(2), never mapped,
    so that its pages do not count as the reader's memory.

    Args:
        path: the pack.
        id_length: bytes of an id.

    Raises:
        FileNotFoundError: the pack is gone, for instance because gc merged it into another.
        StorageError: it can't be opened.
    """

    def __init__(self, path: Path, id_length: int) -> None:
        self._fd = -1
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StorageError(f"opening {path} failed: {error.strerror}") from error
        self._id_length = id_length
        self._header = EntryHeader(id_length)
        self._blocks = _Blocks(_KEPT_BLOCKS)
        self.size = 0
        self.refresh_size()

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def refresh_size(self) -> None:
        """Take the file's length again; only a pack that is still being written changes it."""
        self.size = os.fstat(self._fd).st_size

    def begin(self, size: int) -> bytes:
        """The first bytes, or none where the disk can't read them: whoever reads on is told."""
        with suppress(StorageError):
            return self._bytes(size, 0)
        return b""

    # One object

    def get(self, entry: Entry) -> bytes:
        """Return an object's content.

        Raises:
            CorruptObject: the stored bytes are not what was written.
        """
        if entry.kind == CHUNKED:
            return b"".join(self.frames(entry))
        return self._get_single(entry)

    def contents(self, entry: Entry) -> Iterator[bytes]:
        """Yield an object's content, in pieces when it is chunked; raises as ``get``."""
        if entry.kind == CHUNKED:
            yield from self.frames(entry)
        else:
            yield self._get_single(entry)

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

    def stored(self, entry: Entry) -> Iterator[bytes]:
        """Yield the payload of a whole or chunked entry as it is, in pieces; only its header is checked."""
        self._check_header(self._pread(entry, entry.offset, self._header.size), entry)
        at, end = entry.offset + self._header.size, self._end_of(entry)
        while at < end:
            yield self._pread(entry, at, min(FRAME_SIZE, end - at))
            at += FRAME_SIZE

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

    def _get_single(self, entry: Entry) -> bytes:
        if not is_plausible(entry):
            raise self.corrupt(entry, _NOT_HERE)
        if entry.kind == BLOCK:
            return self._get_member(entry)
        header = self._header.encode(entry)
        data = self._pread(entry, entry.offset, len(header) + entry.stored_size)
        if not data.startswith(header):
            raise self.corrupt(entry, _NOT_HERE)
        return self._decompress(memoryview(data)[len(header) :], entry.raw_size, entry)

    # Blocks

    def _get_member(self, entry: Entry) -> bytes:
        """One object of a block; hashed, since no header says that it is the one."""
        content, ends = self._blocks.get(entry.offset) or self._read_block(entry)
        if entry.member >= len(ends):
            raise self.corrupt(entry, _NOT_HERE)
        start = ends[entry.member - 1] if entry.member else 0
        found = content[start : ends[entry.member]]
        digest = new_hash(self._id_length, entry.type_num, len(found))
        digest.update(found)
        if len(found) != entry.raw_size or digest.digest() != entry.id:
            raise self.corrupt(entry, _NOT_HERE)
        return found

    def _read_block(self, entry: Entry) -> tuple[bytes, tuple[int, ...]]:
        """The content of the block that an object is in, and where in it each object ends.

        The first object alone is had without the rest: where a chain of blocks leads through it, and where it is
        newer than the others.
        """
        block, table, frame = self._open_block(entry)
        if entry.member == 0 and len(table.ends) > 1:
            return self._first(block, table, frame, entry, BASE_DEPTH), table.ends[:1]
        dictionary = self._dictionary(table, entry, block.offset, BASE_DEPTH)
        content = self._decompress(frame, block.raw_size, entry, dictionary)
        self._blocks.put(block.offset, (content, table.ends))
        return content, table.ends

    def _open_block(self, entry: Entry) -> tuple[Entry, BlockTable, memoryview]:
        """The header, table and frame of the block at an object's offset."""
        data = self._pread(entry, entry.offset, self._header.size + entry.stored_size)
        block = self._header.decode(data, entry.offset)
        if block is None or (block.kind, block.type_num, block.stored_size) != (
            BLOCK,
            entry.type_num,
            entry.stored_size,
        ):
            raise self.corrupt(entry, _NOT_HERE)
        payload = memoryview(data)[self._header.size :]
        table = decode_table(block, payload)
        if table is None:
            raise self.corrupt(entry, "the table of its block is damaged")
        return block, table, payload[table.size :]

    def _dictionary(self, table: BlockTable, entry: Entry, before: int, depth: int) -> bytes:
        """What a block's frame was compressed against: the bases' content, one after the other."""
        if table.bases and (depth == 0 or max(table.bases) >= before):
            raise self.corrupt(entry, "its chain of bases is broken or too long")
        return b"".join([self._base(offset, entry, depth - 1) for offset in table.bases])

    def _base(self, offset: int, entry: Entry, depth: int) -> bytes:
        """The content of a whole entry, or of the first object of a block."""
        kept = self._blocks.get(offset)
        if kept is not None:
            return kept[0][: kept[1][0]]
        base = self._header.decode(self._pread(entry, offset, self._header.size), offset)
        if base is None or base.kind == CHUNKED:
            raise self.corrupt(entry, "its base is not a whole object or a block")
        if base.kind != BLOCK:
            return self._get_single(base)
        return self._first(*self._open_block(base), entry, depth)

    def _first(
        self, block: Entry, table: BlockTable, frame: memoryview, entry: Entry, depth: int
    ) -> bytes:
        """A block's first object, decompressed alone."""
        zstandard = _zstandard()
        size = table.ends[0]
        dictionary = self._dictionary(table, entry, block.offset, depth)
        try:
            if zstandard.frame_content_size(frame) == block.raw_size:
                with _decompressor(dictionary).stream_reader(frame) as reader:
                    content = reader.read(size)
                if len(content) == size:
                    return content
        except zstandard.ZstdError as error:
            raise self.corrupt(entry, str(error)) from error
        raise self.corrupt(entry, "its length is not the recorded one")

    def members(self, block: Entry) -> Iterator[Entry]:
        """The objects of a block, by their content: no id but the first is written down.

        Args:
            block: what its header says.

        Raises:
            CorruptObject: it can't be read.
        """
        _, table, _ = self._open_block(block)
        last = block._replace(member=len(table.ends) - 1)
        content, ends = self._blocks.get(block.offset) or self._read_block(last)
        start = 0
        for number, end in enumerate(ends):
            digest = new_hash(self._id_length, block.type_num, end - start)
            digest.update(content[start:end])
            yield block._replace(id=digest.digest(), raw_size=end - start, member=number)
            start = end

    # Bytes and their checks

    def _pread(self, entry: Entry, offset: int, size: int) -> bytes:
        """Read exactly ``size`` bytes; the file's length bounds what is allocated."""
        if offset + size > self.size:
            self.refresh_size()
            if offset + size > self.size:
                raise self.corrupt(entry, "the pack ends before it")
        data = self._bytes(size, offset)
        if len(data) != size:
            raise self.corrupt(entry, "the pack ends before it")
        return data

    def _check_header(self, data: bytes, entry: Entry) -> None:
        if self._header.decode(data, entry.offset) != entry:
            raise self.corrupt(entry, _NOT_HERE)

    def _decompress(
        self, frame: bytes | memoryview, size: int, entry: Entry, dictionary: bytes = b""
    ) -> bytes:
        zstandard = _zstandard()
        try:
            # Asked first, because the decompressor allocates what the frame says.
            if zstandard.frame_content_size(frame) == size:
                content = _decompressor(dictionary).decompress(frame, allow_extra_data=False)
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

    def check(self, entries: Iterable[Entry]) -> Iterator[tuple[Entry, StorageError | None]]:
        """Go through objects in the order that is cheapest; yields each, and what is wrong with it."""
        for entry in sorted(entries, key=_place):
            problem = None
            try:
                self.rehash(entry)
            except StorageError as error:
                problem = error
            yield entry, problem

    def is_named_right(self) -> bool:
        """Say whether the file's name is its SHA-256: every byte is as it was written."""
        try:
            return self._digest() == self.path.stem
        except StorageError:
            return False

    def _digest(self) -> str:
        from hashlib import sha256

        digest = sha256()
        offset = 0
        while data := self._bytes(FRAME_SIZE, offset):
            digest.update(data)
            offset += len(data)
        return digest.hexdigest()

    def _bytes(self, size: int, offset: int) -> bytes:
        """Up to ``size`` bytes from an offset.

        Raises:
            StorageError: the disk can't read them.
        """
        try:
            return os.pread(self._fd, size, offset)
        except OSError as error:
            raise StorageError(f"reading {self.path} failed: {error.strerror}") from error

    def scan(self) -> Iterator[Entry]:
        """Find the objects without an index, stepping over what is damaged.

        Yields:
            Each object, in order of offsets: of those with a header of their own, all whose header is sound and
            whose payload lies within the file; of those in blocks, all whose block can be read.
        """
        for entry in self._scan_entries():
            if entry.kind != BLOCK:
                yield entry
                continue
            with suppress(CorruptObject):
                yield from self.members(entry)

    def _scan_entries(self) -> Iterator[Entry]:
        offset: int | None = PACK_HEADER_SIZE
        while offset is not None and offset + self._header.size <= self.size:
            entry = self._header.decode(self._scanned(self._header.size, offset), offset)
            if entry is not None and self._end_of(entry) <= self.size:
                yield entry
                offset = self._end_of(entry)
            else:
                offset = self._next_header(offset + 1)

    def _scanned(self, size: int, offset: int) -> bytes:
        """As ``_bytes``; what the disk can't read is a hole like any other damage."""
        try:
            return self._bytes(size, offset)
        except StorageError:
            return self._readable_pieces(size, offset)

    def _readable_pieces(self, size: int, offset: int) -> bytes:
        """A range of which the disk can't read a part: sector by sector, zeros for what is not to be had."""
        found = bytearray()
        end = min(offset + size, self.size)
        while offset < end:
            length = min(_SECTOR - offset % _SECTOR, end - offset)
            try:
                found += self._bytes(length, offset).ljust(length, b"\0")
            except StorageError:
                found += bytes(length)
            offset += length
        return bytes(found)

    def _end_of(self, entry: Entry) -> int:
        return entry.offset + self._header.size + entry.stored_size

    def _next_header(self, offset: int) -> int | None:
        """Where the next sound entry header begins, from ``offset`` on."""
        while offset < self.size:
            window = self._scanned(FRAME_SIZE + self._header.size, offset)
            at = window.find(ENTRY_MAGIC)
            while 0 <= at < FRAME_SIZE:
                if self._header.decode(window, offset + at, at=at) is not None:
                    return offset + at
                at = window.find(ENTRY_MAGIC, at + 1)
            offset += FRAME_SIZE
        return None


def _place(entry: Entry) -> tuple[int, int]:
    """In this order a block is decompressed once."""
    return entry.offset, entry.member


class _Blocks:
    """Blocks decompressed last, by their offsets: content, and where in it each object ends."""

    def __init__(self, limit_bytes: int) -> None:
        self._left = limit_bytes
        self._kept: OrderedDict[int, tuple[bytes, tuple[int, ...]]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, offset: int) -> tuple[bytes, tuple[int, ...]] | None:
        if not self._kept:
            return None
        with self._lock:
            found = self._kept.get(offset)
            if found is not None:
                self._kept.move_to_end(offset)
            return found

    def put(self, offset: int, block: tuple[bytes, tuple[int, ...]]) -> None:
        with self._lock:
            if offset in self._kept:
                return
            self._kept[offset] = block
            self._left -= len(block[0])
            while self._left < 0:
                self._left += len(self._kept.popitem(last=False)[1][0])


_local = threading.local()


def _decompressor(dictionary: bytes) -> ZstdDecompressor:
    """This thread's decompressor (its context is not for several), or one with a dictionary."""
    if dictionary:
        zstandard = _zstandard()
        data = zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        made: ZstdDecompressor = zstandard.ZstdDecompressor(dict_data=data)
        return made
    decompressor: ZstdDecompressor | None = getattr(_local, "decompressor", None)
    if decompressor is None:
        decompressor = _local.decompressor = _zstandard().ZstdDecompressor()
    return decompressor


@cache
def _zstandard() -> Any:
    """The module, loaded when the first object is read; looked up sooner than an import statement finds it."""
    import zstandard

    return zstandard
