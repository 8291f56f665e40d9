"""The bytes of a pack: magic numbers, field layouts and the checks on them.

Owns what ``docs/format.md`` says under "Packs" and nothing else: no file is opened here. What is done with the bytes
is ``packfile.py``'s (reading) and ``output.py``'s (writing). Change that page in the same commit as this module.
"""

from __future__ import annotations

import struct
from typing import NamedTuple
from zlib import crc32

from heddle.errors import CorruptObject
from heddle.objects.gitformat import TYPE_NAMES, to_hex

WHOLE, CHUNKED, DELTA = 1, 2, 3
"""How an entry stores its object: one zstd frame; many and a table; one that needs an earlier object's bytes."""

FRAME_SIZE = 1 << 20
"""Bytes of content in each frame of a chunked entry, except the last."""
WHOLE_LIMIT = 4 << 20
"""Content longer than this, in bytes, is stored chunked; a whole or delta entry never decodes to more."""
DELTA_DEPTH = 50
"""The longest chain of delta entries that a reader follows."""

VERSION = 1
PACK_MAGIC = b"HDLPACK\0"
PACK_END_MAGIC = b"HDLPEND\0"
ENTRY_MAGIC = b"\xf5OBJ"
TEMPORARY_PREFIX = ".tmp-"

CRC = struct.Struct("<I")
_PACK_HEADER = struct.Struct("<8sHBB")
_PACK_TRAILER = struct.Struct("<8sQI")
_CHUNK = struct.Struct("<QII")
_CHUNK_CHECK = struct.Struct("<QQI")
DELTA_BASE = struct.Struct("<Q")

PACK_HEADER_SIZE = _PACK_HEADER.size + CRC.size
PACK_TRAILER_SIZE = _PACK_TRAILER.size + CRC.size
CHUNK_SIZE = _CHUNK.size

REINDEX_HINT = "run `heddle fsck --reindex`"
FSCK_HINT = "run `heddle fsck --full` to list everything that is damaged"


def corrupt(file: str, raw_id: bytes | None, why: str, *, hint: str = FSCK_HINT) -> CorruptObject:
    """Make the error for stored bytes that are not what was written.

    Args:
        file: path of the damaged file.
        raw_id: the object that was being read, or None when the whole file is meant.
        why: what was found, in a few words.
        hint: the next command to run.
    """
    about = f" at object {to_hex(raw_id).decode()}" if raw_id is not None else ""
    return CorruptObject(f"{file} is damaged{about}: {why}", hint=hint)


class Entry(NamedTuple):
    """Where one object lies in a pack and how; an index row and an entry header say the same.

    Attributes:
        id: the object's id, binary.
        offset: of the entry's header in the pack, in bytes.
        raw_size: length of the object's content, in bytes.
        stored_size: length of the payload behind the entry's header, in bytes.
        kind: WHOLE, CHUNKED or DELTA.
        type_num: git's type number.
    """

    id: bytes
    offset: int
    raw_size: int
    stored_size: int
    kind: int
    type_num: int


def with_crc(fields: bytes) -> bytes:
    """Append the CRC-32 of some fields to them."""
    return fields + CRC.pack(crc32(fields))


class EntryHeader:
    """The fixed-width header in front of every payload of a pack, for one length of ids.

    Attributes:
        size: its length, in bytes.
    """

    def __init__(self, id_length: int) -> None:
        self._fields = struct.Struct(f"<4sBBHQQ{id_length}s")
        self._crc_at = self._fields.size
        self.size = self._crc_at + CRC.size

    def encode(self, entry: Entry) -> bytes:
        return with_crc(
            self._fields.pack(
                ENTRY_MAGIC,
                entry.kind,
                entry.type_num,
                0,
                entry.raw_size,
                entry.stored_size,
                entry.id,
            )
        )

    def decode(self, data: bytes, offset: int, *, at: int = 0) -> Entry | None:
        """Read a header, or return None when these bytes are not a sound one.

        Args:
            data: bytes that hold the header.
            offset: where the header lies in the pack, for the Entry.
            at: where the header begins in ``data``.
        """
        if len(data) - at < self.size:
            return None
        magic, kind, type_num, zero, raw_size, stored_size, raw_id = self._fields.unpack_from(
            data, at
        )
        end = at + self._crc_at
        if magic != ENTRY_MAGIC or zero or CRC.unpack_from(data, end)[0] != crc32(data[at:end]):
            return None
        entry = Entry(raw_id, offset, raw_size, stored_size, kind, type_num)
        return entry if is_plausible(entry) else None


def is_plausible(entry: Entry) -> bool:
    """Say whether an entry's sizes can be true together, so that nothing is allocated for a lie."""
    if entry.type_num not in TYPE_NAMES:
        return False
    if entry.kind == CHUNKED:
        return (
            entry.raw_size > WHOLE_LIMIT
            and entry.stored_size > frame_count(entry.raw_size) * CHUNK_SIZE
        )
    return (
        entry.kind in (WHOLE, DELTA)
        and entry.raw_size <= WHOLE_LIMIT
        and entry.stored_size <= stored_bound(entry.raw_size)
    )


def stored_bound(raw_size: int) -> int:
    """More bytes than zstd and a delta's base ever make of ``raw_size`` bytes of content."""
    return raw_size + (raw_size >> 7) + 256


def frame_count(raw_size: int) -> int:
    """How many frames a chunked entry of ``raw_size`` bytes of content has."""
    return -(-raw_size // FRAME_SIZE)


def frame_length(raw_size: int, number: int) -> int:
    """Bytes of content in frame ``number`` of a chunked entry."""
    return min(FRAME_SIZE, raw_size - number * FRAME_SIZE)


def encode_chunk(raw_id: bytes, number: int, start: int, length: int) -> bytes:
    """One row of a chunk table: where frame ``number`` lies in the payload, in bytes."""
    return _CHUNK.pack(start, length, crc32(raw_id + _CHUNK_CHECK.pack(number, start, length)))


def decode_chunk(raw_id: bytes, number: int, data: bytes) -> tuple[int, int] | None:
    """Return (start, length) of a frame in the payload, in bytes, or None when the row is damaged."""
    start, length, crc = _CHUNK.unpack(data)
    if crc32(raw_id + _CHUNK_CHECK.pack(number, start, length)) != crc:
        return None
    return start, length


def encode_pack_header(id_length: int) -> bytes:
    return with_crc(_PACK_HEADER.pack(PACK_MAGIC, VERSION, id_length, 0))


def encode_pack_trailer(entries: int) -> bytes:
    return with_crc(_PACK_TRAILER.pack(PACK_END_MAGIC, entries, 0))


def decode_pack_trailer(data: bytes) -> int | None:
    """Return the number of entries, or None when this is not the end of a finished pack."""
    entries: int = _PACK_TRAILER.unpack_from(data)[1]
    return entries if data == encode_pack_trailer(entries) else None
