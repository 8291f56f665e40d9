"""One pack's index: which objects the pack holds, of what type and size, and where.

Owns encoding, checking and searching the index file. Every row carries its own checksum, so a lookup trusts
nothing that it has not checked and yet reads only the row it needs; the checksum over the whole file is for fsck.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from zlib import crc32

from heddle.objects.layout import INDEX_MAGIC, REINDEX_HINT, VERSION, Entry, corrupt, plausible

_HEADER = struct.Struct("<8sHBBIQQ32sII")
_HEADER_CHECKED = _HEADER.size - 8
_PAIR = struct.Struct("<II")
_CRC = struct.Struct("<I")
_DIGEST_SIZE = 32
_ROWS_PER_SLOT = 4
_MAPPED_FROM = 1 << 18
"""Index files shorter than this, in bytes, are read; longer ones are mapped."""


def _row_struct(id_length: int) -> struct.Struct:
    return struct.Struct(f"<{id_length}sQQQBBHI")


def encode_index(
    entries: Iterable[Entry], *, id_length: int, pack_size: int, pack_digest: bytes
) -> bytes:
    """Write the index of a pack.

    Args:
        entries: what the pack holds, in any order, each id once.
        id_length: bytes of an id.
        pack_size: length of the pack file, in bytes.
        pack_digest: SHA-256 of the pack file.
    """
    from hashlib import sha256

    ordered = sorted(entries)
    bits = max(0, (len(ordered) // _ROWS_PER_SLOT).bit_length())
    header = _HEADER.pack(
        INDEX_MAGIC, VERSION, id_length, bits, 0, len(ordered), pack_size, pack_digest, 0, 0
    )[:_HEADER_CHECKED]
    parts = [header, _PAIR.pack(crc32(header), 0), _encode_fanout(ordered, bits)]
    row = struct.Struct(f"<{id_length}sQQQBBH")
    for entry in ordered:
        fields = row.pack(*entry, 0)
        parts.append(fields)
        parts.append(_CRC.pack(crc32(fields)))
    body = b"".join(parts)
    return body + sha256(body).digest()


def _encode_fanout(ordered: list[Entry], bits: int) -> bytes:
    """Row numbers at which each slot begins; a slot is the first ``bits`` bits of an id."""
    counts = [0] * ((1 << bits) + 1)
    for entry in ordered:
        counts[_slot(entry.id, bits) + 1] += 1
    total = 0
    for slot, count in enumerate(counts):
        total += count
        counts[slot] = total
    return struct.pack(f"<{len(counts)}I", *counts)


def _slot(raw_id: bytes, bits: int) -> int:
    return int.from_bytes(raw_id[:4], "big") >> (32 - bits)


class Index:
    """An opened index, searched in place.

    Attributes:
        path: the index file.
        pack_path: the pack it belongs to.
        count: number of objects.
        pack_size: length of the pack file when it was indexed, in bytes.
        pack_digest: SHA-256 of the pack file.

    Raises:
        CorruptObject: the file is not a sound index of this object format.
        FileNotFoundError: there is no such file.
    """

    def __init__(self, path: Path, id_length: int) -> None:
        self.path = path
        self.pack_path = path.with_suffix(".pack")
        self._data = _load(path)
        if len(self._data) < _HEADER.size + _DIGEST_SIZE:
            raise self._damaged("it is too short")
        magic, version, length, bits, zero, self.count, self.pack_size, self.pack_digest, crc, _ = (
            _HEADER.unpack_from(self._data)
        )
        if crc32(self._data[:_HEADER_CHECKED]) != crc or magic != INDEX_MAGIC:
            raise self._damaged("its header is not an index's")
        if version != VERSION or length != id_length or zero or bits > 32:
            raise self._damaged(f"version {version} for ids of {length} bytes is not ours")
        self._row = _row_struct(id_length)
        self._shift = 32 - bits
        self._rows_at = _HEADER.size + 4 * ((1 << bits) + 1)
        expected = self._rows_at + self.count * self._row.size + _DIGEST_SIZE
        if len(self._data) != expected:
            raise self._damaged(f"it is {len(self._data)} bytes long instead of {expected}")

    def find(self, raw_id: bytes) -> Entry | None:
        """Look an object up.

        Raises:
            CorruptObject: its row is damaged.
        """
        slot = int.from_bytes(raw_id[:4], "big") >> self._shift
        first, last = _PAIR.unpack_from(self._data, _HEADER.size + 4 * slot)
        if first >= last:
            return None
        width = self._row.size
        rows = self._data[self._rows_at + first * width : self._rows_at + last * width]
        at = rows.find(raw_id)
        while at % width:  # -1 % width is not 0 either: a hit inside a row, or none
            if at < 0:
                return None
            at = rows.find(raw_id, at + 1)
        return self._decode(rows, at)

    def _decode(self, rows: bytes, at: int) -> Entry:
        fields = self._row.unpack_from(rows, at)
        entry = Entry(*fields[:6])
        if crc32(rows[at : at + self._row.size - 4]) != fields[7]:
            raise self._damaged("a row's checksum is wrong", entry.id)
        if not plausible(entry) or entry.offset + entry.stored_size > self.pack_size:
            raise self._damaged("a row's sizes can't be true", entry.id)
        return entry

    def __iter__(self) -> Iterator[Entry]:
        """Every row in order of ids; raises CorruptObject at a damaged one."""
        return self._range(0, self.count)

    def _range(self, first: int, last: int) -> Iterator[Entry]:
        width = self._row.size
        for number in range(first, last):
            at = self._rows_at + number * width
            yield self._decode(self._data[at : at + width], 0)

    def ids(self) -> Iterator[bytes]:
        """Every id in order, unchecked; what is then read through one is checked."""
        width = self._row.size
        length = width - 32
        data = self._data
        end = self._rows_at + self.count * width
        return (data[at : at + length] for at in range(self._rows_at, end, width))

    def starting_with(self, first: bytes, last: bytes) -> Iterator[bytes]:
        """The ids from ``first`` to ``last``, both included, in order."""
        low, high = 0, self.count
        while low < high:
            middle = (low + high) // 2
            if self._id(middle) < first:
                low = middle + 1
            else:
                high = middle
        while low < self.count and (raw_id := self._id(low)) <= last:
            yield raw_id
            low += 1

    def _id(self, number: int) -> bytes:
        at = self._rows_at + number * self._row.size
        return self._data[at : at + self._row.size - 32]

    def check(self) -> None:
        """Check the whole file against its checksum.

        Raises:
            CorruptObject: a byte is not what was written.
        """
        from hashlib import sha256

        body = memoryview(self._data)[:-_DIGEST_SIZE]
        try:
            digest = sha256(body).digest()
        finally:
            body.release()
        if digest != self._data[-_DIGEST_SIZE:]:
            raise self._damaged("its checksum is wrong")

    def _damaged(self, why: str, raw_id: bytes | None = None) -> Exception:
        return corrupt(str(self.path), raw_id, why, hint=REINDEX_HINT)


def _load(path: Path) -> bytes | mmap.mmap:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        if size >= _MAPPED_FROM:
            return mmap.mmap(fd, size, prot=mmap.PROT_READ)
        return os.read(fd, size)
    finally:
        os.close(fd)
