"""The bytes of a pack and of its index: magic numbers, field layouts and the checks on them.

Owns what ``docs/format.md`` describes under "Packs" and "Indexes", and nothing else: no file is opened here. What is
done with the bytes is ``pack.py``'s and ``index.py``'s. Change that page in the same commit as this module.
"""

from __future__ import annotations

import struct
from binascii import hexlify, unhexlify
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

from heddle.errors import CorruptObject

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

COMMIT, TREE, BLOB, TAG = 1, 2, 3, 4
TYPE_NAMES = {COMMIT: b"commit", TREE: b"tree", BLOB: b"blob", TAG: b"tag"}
ID_LENGTHS = {"sha1": 20, "sha256": 32}

WHOLE, CHUNKED, DELTA = 1, 2, 3
KINDS = (WHOLE, CHUNKED, DELTA)

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
INDEX_MAGIC = b"HDLINDX\0"

_CRC = struct.Struct("<I")
_PACK_HEADER = struct.Struct("<8sHBBI")
_PACK_TRAILER = struct.Struct("<8sQII")
_CHUNK = struct.Struct("<QII")
_CHUNK_CHECK = struct.Struct("<QQI")
DELTA_BASE = struct.Struct("<Q")

PACK_HEADER_SIZE = _PACK_HEADER.size
PACK_TRAILER_SIZE = _PACK_TRAILER.size
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
    about = f": object {hexlify(raw_id).decode()}" if raw_id is not None else ""
    return CorruptObject(f"{file} is damaged{about}: {why}", hint=hint)


class Entry(NamedTuple):
    """Where one object lies in a pack and how; an index row and an entry header say the same.

    Attributes:
        id: the object's id.
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


class EntryHeader:
    """The fixed-width header in front of every payload of a pack, for one id length."""

    def __init__(self, id_length: int) -> None:
        self._fields = struct.Struct(f"<4sBBHQQ{id_length}s")
        self._checked = self._fields.size
        self.size = self._checked + _CRC.size

    def encode(self, entry: Entry) -> bytes:
        fields = self._fields.pack(
            ENTRY_MAGIC,
            entry.kind,
            entry.type_num,
            0,
            entry.raw_size,
            entry.stored_size,
            entry.id,
        )
        return fields + _CRC.pack(crc32(fields))

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
        (crc,) = _CRC.unpack_from(data, at + self._checked)
        if magic != ENTRY_MAGIC or crc32(data[at : at + self._checked]) != crc:
            return None
        entry = Entry(raw_id, offset, raw_size, stored_size, kind, type_num)
        return entry if zero == 0 and plausible(entry) else None


def plausible(entry: Entry) -> bool:
    """Say whether the sizes of an entry can be true, so that nothing is allocated for a lie."""
    if entry.type_num not in TYPE_NAMES:
        return False
    if entry.kind == CHUNKED:
        return (
            entry.raw_size > WHOLE_LIMIT
            and entry.stored_size > frame_count(entry.raw_size) * CHUNK_SIZE
        )
    return entry.kind in KINDS and entry.raw_size <= WHOLE_LIMIT


def frame_count(raw_size: int) -> int:
    """How many frames a chunked entry of ``raw_size`` bytes of content has."""
    return -(-raw_size // FRAME_SIZE)


def frame_length(raw_size: int, number: int) -> int:
    """Bytes of content in frame ``number`` of a chunked entry."""
    return min(FRAME_SIZE, raw_size - number * FRAME_SIZE)


def encode_chunk(raw_id: bytes, number: int, start: int, length: int) -> bytes:
    """One row of a chunk table: where frame ``number`` lies in the payload."""
    return _CHUNK.pack(start, length, crc32(raw_id + _CHUNK_CHECK.pack(number, start, length)))


def decode_chunk(raw_id: bytes, number: int, data: bytes) -> tuple[int, int] | None:
    """Return (start, length) in bytes of a frame, or None when the row is damaged."""
    if len(data) != CHUNK_SIZE:
        return None
    start, length, crc = _CHUNK.unpack(data)
    if crc32(raw_id + _CHUNK_CHECK.pack(number, start, length)) != crc:
        return None
    return start, length


def encode_pack_header(id_length: int) -> bytes:
    fields = _PACK_HEADER.pack(PACK_MAGIC, VERSION, id_length, 0, 0)[: -_CRC.size]
    return fields + _CRC.pack(crc32(fields))


def encode_pack_trailer(entries: int) -> bytes:
    fields = _PACK_TRAILER.pack(PACK_END_MAGIC, entries, 0, 0)[: -_CRC.size]
    return fields + _CRC.pack(crc32(fields))


def decode_pack_trailer(data: bytes) -> int | None:
    """Return the number of entries, or None when this is not a whole pack's end."""
    if len(data) != PACK_TRAILER_SIZE:
        return None
    magic, entries, _, _ = _PACK_TRAILER.unpack(data)
    return (
        int(entries) if magic == PACK_END_MAGIC and data == encode_pack_trailer(entries) else None
    )


def to_hex(raw_id: bytes) -> ObjectID:
    """The hex form of an id: dulwich's ObjectID."""
    return hexlify(raw_id)  # type: ignore[return-value]


def to_raw(object_id: bytes, id_length: int) -> bytes:
    """The binary form of an id given in either form.

    Raises:
        KeyError: this can't be an id of this object format.
    """
    if len(object_id) == id_length:
        return object_id
    if len(object_id) == 2 * id_length:
        try:
            return unhexlify(object_id)
        except ValueError:
            pass
    raise KeyError(object_id)
