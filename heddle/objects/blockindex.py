"""The index of a pack that has blocks: shorter rows, since one entry of the pack holds many objects.

Owns version 2 of the index file, and telling the versions apart. What both have in common (header, slots, checksum,
searching) is ``index.py``'s.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from operator import itemgetter
from pathlib import Path
from typing import cast
from zlib import crc32

from heddle.objects import index
from heddle.objects.index import Columns, Index, encode_fanout, encode_header, slot_bits
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
    ordered = sorted(entries, key=itemgetter(0))
    if not collected and all(entry.kind != BLOCK for entry in ordered):
        return index.encode_ordered(
            ordered, id_length=id_length, pack_size=pack_size, pack_digest=pack_digest
        )
    from hashlib import sha256

    bits = slot_bits(len(ordered))
    places, rows = _encode_rows(ordered, id_length)
    header = encode_header(
        len(ordered), id_length, bits, pack_size, pack_digest, version=VERSION, places=len(places)
    )
    fanout = encode_fanout((entry.id for entry in ordered), bits)
    body = b"".join([header, fanout, *rows, *places])
    return body + sha256(body).digest()


def _encode_rows(ordered: list[Entry], id_length: int) -> tuple[list[bytes], list[bytes]]:
    """The places, in order of offsets, and a row for each object."""
    places: list[bytes] = []
    numbers: dict[int, int] = {}
    for entry in sorted({entry[1]: entry for entry in ordered}.values(), key=itemgetter(1)):
        raw_size = 0 if entry.kind == BLOCK else entry.raw_size
        numbers[entry.offset] = len(places)
        places.append(
            with_crc(
                _PLACE.pack(
                    entry.offset, raw_size, entry.stored_size, entry.kind, entry.type_num, 0
                )
            )
        )
    encode = struct.Struct(f"<{id_length}s{_ROW[:-1]}").pack
    rows = []
    for raw_id, offset, raw_size, _, kind, _, member in ordered:
        size = raw_size if kind == BLOCK else 0
        fields = encode(raw_id, numbers[offset], member, size & 0xFFFF, size >> 16)
        rows.append(fields + (crc32(fields) & 0xFFFF).to_bytes(_CHECK_SIZE, "little"))
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

    def _columns(self, rows: bytes) -> Columns:
        ids, numbers, members, low, high, _ = zip(*self._row.iter_unpack(rows), strict=True)
        places = map(self._place, numbers, ids)
        offsets, raw_sizes, stored_sizes, kinds, types = zip(*places, strict=True)
        sizes = [
            low | high << 16 if kind == BLOCK else raw_size
            for low, high, kind, raw_size in zip(low, high, kinds, raw_sizes, strict=True)
        ]
        return ids, offsets, sizes, stored_sizes, kinds, types, members

    def _place(self, number: int, raw_id: bytes) -> tuple[int, int, int, int, int]:
        at = self._end + number * _PLACE_SIZE
        fields = self._data[at : at + _PLACE.size]
        if (
            number >= self._places
            or crc32(fields) != CRC.unpack_from(self._data, at + _PLACE.size)[0]
        ):
            raise self._damaged("a place's checksum is wrong", raw_id)
        return cast("tuple[int, int, int, int, int]", _PLACE.unpack(fields)[:5])
