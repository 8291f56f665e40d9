"""The bytes of a pack: magic numbers, field layouts and the checks on them.

Owns what ``docs/format.md`` says under "Packs" and nothing else: no file is opened here. What is done with the bytes
is ``packfile.py``'s (reading) and ``output.py``'s (writing). Change that page in the same commit as this module.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple
from zlib import crc32

from heddle.errors import CorruptObject
from heddle.objects.gitformat import TYPE_NAMES, to_hex

WHOLE, CHUNKED, BLOCK, OF_GIT = 1, 2, 3, 4
"""What an entry stores: an object in one zstd frame; one in many and a table; several objects in one frame; an object
as git stores it, in a pack of git's."""

FRAME_SIZE = 1 << 20
"""Bytes of content in each frame of a chunked entry, except the last."""
WHOLE_LIMIT = 4 << 20
"""Content longer than this, in bytes, is stored chunked; a whole entry or a block never decodes to more."""
BASE_DEPTH = 50
"""The longest chain of blocks and their bases that a reader follows."""
MEMBER_LIMIT = 0xFFFF
"""A block has fewer objects than this."""
BASES_LIMIT = 4096
"""A block has at most so many bases."""

VERSION = 1
PACK_MAGIC = b"HDLPACK\0"
GIT_PACK_MAGIC = b"PACK"
"""How a pack begins that is kept as git sent it."""
PACK_END_MAGIC = b"HDLPEND\0"
ENTRY_MAGIC = b"\xf5OBJ"
TEMPORARY_PREFIX = ".tmp-"

CRC = struct.Struct("<I")
_PACK_HEADER = struct.Struct("<8sHBB")
_PACK_TRAILER = struct.Struct("<8sQI")
_CHUNK = struct.Struct("<QII")
_CHUNK_CHECK = struct.Struct("<QQI")
_BLOCK = struct.Struct("<II")
_BASE_SIZE = 8
_LENGTH_SIZE = 3

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
        id: the object's id, binary; in the header of a block, that of its first object.
        offset: of the entry's header in the pack, in bytes.
        raw_size: length of the object's content, in bytes; in the header of a block, of all its objects'.
        stored_size: length of the payload behind the entry's header, in bytes; in git's packs, of the entry.
        kind: WHOLE, CHUNKED, BLOCK or OF_GIT.
        type_num: git's type number.
        member: which of a block's objects it is, from 0.
    """

    id: bytes
    offset: int
    raw_size: int
    stored_size: int
    kind: int
    type_num: int
    member: int = 0


class BlockTable(NamedTuple):
    """What stands in front of a block's frame.

    Attributes:
        bases: offsets of the entries whose content is the frame's dictionary, one after the other.
        ends: where each object ends in the block's content, in bytes.
        size: length of the table, in bytes: where the frame begins in the payload.
    """

    bases: tuple[int, ...]
    ends: tuple[int, ...]
    size: int


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
        raw_id, _, raw_size, stored_size, kind, type_num, _ = entry
        return with_crc(
            self._fields.pack(ENTRY_MAGIC, kind, type_num, 0, raw_size, stored_size, raw_id)
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
    _, _, raw_size, stored_size, kind, type_num, _ = entry
    if type_num not in TYPE_NAMES:
        return False
    if kind == WHOLE:
        return raw_size <= WHOLE_LIMIT and stored_size <= stored_bound(raw_size)
    if kind == CHUNKED:
        return raw_size > WHOLE_LIMIT and stored_size > frame_count(raw_size) * CHUNK_SIZE
    return kind == BLOCK and raw_size <= WHOLE_LIMIT and stored_size <= _BLOCK_BOUND


def is_large(entry: Entry) -> bool:
    """Say whether an object is read in parts: in our own packs it is chunked then."""
    return entry.raw_size > WHOLE_LIMIT


def stored_bound(raw_size: int) -> int:
    """More bytes than zstd ever makes of ``raw_size`` bytes of content."""
    return raw_size + (raw_size >> 7) + 256


def table_size(members: int, bases: int) -> int:
    """Length of a block's table in bytes."""
    return _BLOCK.size + bases * _BASE_SIZE + members * _LENGTH_SIZE + CRC.size


_BLOCK_BOUND = stored_bound(WHOLE_LIMIT) + table_size(MEMBER_LIMIT, BASES_LIMIT)


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


def encode_table(raw_id: bytes, bases: Sequence[int], lengths: Sequence[int]) -> bytes:
    """The table in front of a block's frame.

    Args:
        raw_id: of the block's first object.
        bases: offsets in the pack of what the frame's dictionary is made of.
        lengths: of the objects' contents, in bytes.
    """
    fields = b"".join(
        [
            _BLOCK.pack(len(lengths), len(bases)),
            *(base.to_bytes(_BASE_SIZE, "little") for base in bases),
            *(length.to_bytes(_LENGTH_SIZE, "little") for length in lengths),
        ]
    )
    return fields + CRC.pack(crc32(raw_id + fields))


def decode_table(entry: Entry, payload: memoryview) -> BlockTable | None:
    """Read a block's table, or return None when it is damaged.

    Args:
        entry: what the block's header says.
        payload: what lies behind the header.
    """
    if len(payload) < _BLOCK.size:
        return None
    members, count = _BLOCK.unpack_from(payload)
    size = table_size(members, count)
    if not 0 < members < MEMBER_LIMIT or count > BASES_LIMIT or size > len(payload):
        return None
    fields = bytes(payload[: size - CRC.size])
    if CRC.unpack_from(payload, len(fields))[0] != crc32(entry.id + fields):
        return None
    lengths_at = _BLOCK.size + count * _BASE_SIZE
    ends = tuple(accumulate(_integers(fields[lengths_at:], _LENGTH_SIZE)))
    if ends[-1] != entry.raw_size:
        return None
    bases = tuple(_integers(fields[_BLOCK.size : lengths_at], _BASE_SIZE))
    return BlockTable(bases, ends, size)


def _integers(data: bytes, width: int) -> Iterator[int]:
    return (int.from_bytes(data[at : at + width], "little") for at in range(0, len(data), width))


def encode_pack_header(id_length: int) -> bytes:
    return with_crc(_PACK_HEADER.pack(PACK_MAGIC, VERSION, id_length, 0))


def encode_pack_trailer(entries: int) -> bytes:
    return with_crc(_PACK_TRAILER.pack(PACK_END_MAGIC, entries, 0))
