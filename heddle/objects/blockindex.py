"""The index of a pack that has blocks: shorter rows, since one entry of the pack holds many objects.

Owns version 2 of the index file, and telling the versions apart. What both have in common (header, slots, checksum,
searching) is ``index.py``'s.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import cast
from zlib import crc32

from heddle.objects import index
from heddle.objects.index import Index, encode_fanout, encode_header, slot_bits
from heddle.objects.layout import BLOCK, CRC, Entry, with_crc

VERSION = 2
_VERSION_AT = slice(8, 10)
_ROW = "IHHBH"
_PLACE = struct.Struct("<QQQBBH")
_PLACE_SIZE = _PLACE.size + CRC.size
_CHECK_SIZE = 2


def open_index(path: Path, id_length: int) -> Index:
    """Open an index of either version; raises as ``Index``."""
    data = index.load(path)
    version = int.from_bytes(data[_VERSION_AT], "little")
    return (BlockIndex if version == VERSION else Index)(path, id_length, data)


def encode_index(
    entries: Iterable[Entry],
    *,
    id_length: int,
    pack_size: int,
    pack_digest: bytes,
    collected: bool = False,
) -> bytes:
    """Write the index of a pack: version 2 if it has a block or was ``collected``, else version 1.

    The other arguments are those of ``index.encode_index``.
    """
    ordered = sorted(entries)
    if not collected and all(entry.kind != BLOCK for entry in ordered):
        return index.encode_index(
            ordered, id_length=id_length, pack_size=pack_size, pack_digest=pack_digest
        )
    from hashlib import sha256

    bits = slot_bits(len(ordered))
    places, rows = _encode_rows(ordered, id_length)
    header = encode_header(
        len(ordered), id_length, bits, pack_size, pack_digest, version=VERSION, places=len(places)
    )
    body = b"".join([header, encode_fanout(ordered, bits), *rows, *places])
    return body + sha256(body).digest()


def _encode_rows(ordered: list[Entry], id_length: int) -> tuple[list[bytes], list[bytes]]:
    """The places, in order of offsets, and a row for each object."""
    row = struct.Struct(f"<{id_length}s{_ROW[:-1]}")
    places: list[bytes] = []
    numbers: dict[int, int] = {}
    by_offset = groupby(sorted(ordered, key=lambda each: each.offset), lambda each: each.offset)
    for offset, group in by_offset:
        entry = next(group)
        raw_size = 0 if entry.kind == BLOCK else entry.raw_size
        numbers[offset] = len(places)
        places.append(
            with_crc(
                _PLACE.pack(offset, raw_size, entry.stored_size, entry.kind, entry.type_num, 0)
            )
        )
    rows = []
    for entry in ordered:
        size = entry.raw_size if entry.kind == BLOCK else 0
        fields = row.pack(entry.id, numbers[entry.offset], entry.member, size & 0xFFFF, size >> 16)
        rows.append(fields + CRC.pack(crc32(fields))[:_CHECK_SIZE])
    return places, rows


class BlockIndex(Index):
    """An opened index of version 2; gc leaves such a pack alone while it is large and all of it is needed."""

    _version = VERSION
    _row_format = _ROW

    def _length_of(self, places: int) -> int:
        self._places = places
        return places * _PLACE_SIZE

    def _decode(self, rows: bytes, at: int) -> Entry:
        try:
            raw_id, number, member, low, high, check = self._row.unpack_from(rows, at)
        except struct.error:  # a damaged fanout led behind the last row
            raise self._damaged("its table of slots is wrong") from None
        if crc32(rows[at : at + self._width - _CHECK_SIZE]) & 0xFFFF != check:
            raise self._damaged("a row's checksum is wrong", raw_id)
        offset, raw_size, stored_size, kind, type_num = self._place(number, raw_id)
        if kind == BLOCK:
            raw_size = low | high << 16
        return Entry(raw_id, offset, raw_size, stored_size, kind, type_num, member)

    def _place(self, number: int, raw_id: bytes) -> tuple[int, int, int, int, int]:
        at = self._end + number * _PLACE_SIZE
        fields = self._data[at : at + _PLACE.size]
        if (
            number >= self._places
            or crc32(fields) != CRC.unpack_from(self._data, at + _PLACE.size)[0]
        ):
            raise self._damaged("a place's checksum is wrong", raw_id)
        return cast("tuple[int, int, int, int, int]", _PLACE.unpack(fields)[:5])
