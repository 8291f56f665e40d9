"""Git's own object directories, read where they are as an alternate.

Owns finding an object's type and size there without inflating it, and one lock, because dulwich's stores are not
meant for several threads. Everything else about git's files is dulwich's.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

from dulwich.errors import ChecksumMismatch, ObjectFormatException
from dulwich.object_format import get_object_format
from dulwich.object_store import DiskObjectStore
from dulwich.objects import ObjectID, RawObjectID

from heddle.errors import CorruptObject
from heddle.objects.gitformat import TYPE_NAMES, to_hex

_TYPE_NUMS = {name: number for number, name in TYPE_NAMES.items()}
_OFS_DELTA, _REF_DELTA = 6, 7
_HEAD_BYTES = 128
"""Enough for any object header, a delta's reference to its base and, deflated, the two sizes it begins with."""


class GitObjects:
    """A ``.git/objects`` directory with its packs, loose objects and alternates.

    Args:
        path: the directory.
        format_name: ``sha1`` or ``sha256``.
    """

    def __init__(self, path: Path, format_name: str) -> None:
        self.path = path
        self._format = get_object_format(format_name)
        self._store = DiskObjectStore(path, object_format=self._format)
        self._lock = threading.RLock()
        self._loose: dict[str, frozenset[str]] = {}

    # Looking up

    def contains(self, raw_id: bytes) -> bool:
        with self._lock:
            return to_hex(raw_id) in self._store

    def holds(self, raw_id: bytes) -> bool:
        """As ``contains``, but each directory of loose objects is listed only once."""
        with self._lock:
            if self._store.contains_packed(RawObjectID(raw_id)):
                return True
            name = raw_id.hex()
            if name[2:] in self._loose_names(name[:2]):
                return True
            return any(to_hex(raw_id) in each for each in self._store.alternates)

    def _loose_names(self, prefix: str) -> frozenset[str]:
        names = self._loose.get(prefix)
        if names is None:
            try:
                names = frozenset(os.listdir(self.path / prefix))
            except FileNotFoundError:
                names = frozenset()
            self._loose[prefix] = names
        return names

    def kind(self, object_id: bytes) -> int:
        return self._head(self._hex(object_id))[0]

    def size(self, object_id: bytes) -> int:
        return self._head(self._hex(object_id))[1]

    def is_chunked(self, object_id: bytes) -> bool:
        return False

    def _hex(self, object_id: bytes) -> ObjectID:
        if len(object_id) == self._format.oid_length:
            return to_hex(object_id)
        return ObjectID(object_id)

    # Reading

    def get_raw(self, name: bytes) -> tuple[int, bytes]:
        """An object's type number and content; KeyError or CorruptObject as the store raises them."""
        object_id = self._hex(name)
        try:
            with self._lock:
                return self._store.get_raw(object_id)
        except KeyError:
            raise
        except (ChecksumMismatch, ObjectFormatException, zlib.error, ValueError, OSError) as error:
            raise self._corrupt(object_id, str(error)) from error

    def _corrupt(self, object_id: bytes, why: str) -> CorruptObject:
        return CorruptObject(
            f"{self.path} is damaged at object {object_id.decode()}: {why}",
            hint="run `git fsck --full` there",
        )

    def read_at(self, object_id: bytes, offset: int, size: int) -> bytes:
        return self.get_raw(object_id)[1][offset : offset + size]

    def iter_ids(self) -> Iterator[bytes]:
        with self._lock:
            ids = list(self._store)
        return (bytes.fromhex(each.decode()) for each in ids)

    def iter_prefix(self, prefix: bytes) -> Iterator[ObjectID]:
        with self._lock:
            return iter(list(self._store.iter_prefix(prefix)))

    # Type and size from the first bytes

    def _head(self, object_id: ObjectID) -> tuple[int, int]:
        """An object's type number and size in bytes, from its header alone where that is possible."""
        try:
            with self._lock:
                found = self._packed_head(object_id) or self._loose_head(object_id)
        except (zlib.error, ValueError, IndexError) as error:
            raise self._corrupt(object_id, str(error)) from error
        if found is not None:
            return found
        type_num, content = self.get_raw(object_id)  # in an alternate of this one
        return type_num, len(content)

    def _loose_head(self, object_id: ObjectID) -> tuple[int, int] | None:
        name = object_id.decode()
        try:
            with open(self.path / name[:2] / name[2:], "rb") as file:
                head = zlib.decompressobj().decompress(file.read(_HEAD_BYTES), _HEAD_BYTES)
        except FileNotFoundError:
            return None
        type_name, size = head[: head.index(b"\0")].split(b" ")
        return _TYPE_NUMS[type_name], int(size)

    def _packed_head(self, object_id: ObjectID) -> tuple[int, int] | None:
        raw_id = RawObjectID(bytes.fromhex(object_id.decode()))
        for pack in self._store.packs:
            try:
                offset = pack.index.object_offset(raw_id)
            except KeyError:
                continue
            with open(pack.data.path, "rb", buffering=0) as file:
                return self._entry_head(file.fileno(), offset)
        return None

    def _entry_head(self, fd: int, offset: int) -> tuple[int, int]:
        """Read the header at an offset; a delta's type is its base's, its size is in its first bytes."""
        size: int | None = None
        while True:
            head = os.pread(fd, _HEAD_BYTES, offset)
            type_num = head[0] >> 4 & 7
            entry_size, at = _little_endian_varint(head, 0, first_bits=4)
            if type_num not in (_OFS_DELTA, _REF_DELTA):
                return type_num, entry_size if size is None else size
            if type_num == _OFS_DELTA:
                back, at = _offset_varint(head, at)
                base = offset - back
            else:
                base_id = RawObjectID(head[at : at + self._format.oid_length])
                at += self._format.oid_length
            if size is None:
                size = _delta_result_size(head[at:])
            if type_num == _REF_DELTA:
                return self.kind(base_id), size
            offset = base


def _little_endian_varint(data: bytes, at: int, *, first_bits: int = 7) -> tuple[int, int]:
    """Read seven bits per byte, lowest first (the first byte may hold fewer); returns (value, next position)."""
    value = data[at] & ((1 << first_bits) - 1)
    shift = first_bits
    while data[at] & 0x80:
        at += 1
        value |= (data[at] & 0x7F) << shift
        shift += 7
    return value, at + 1


def _offset_varint(data: bytes, at: int) -> tuple[int, int]:
    """Read how far back a delta's base lies; returns (bytes, next position)."""
    value = data[at] & 0x7F
    while data[at] & 0x80:
        at += 1
        value = ((value + 1) << 7) | (data[at] & 0x7F)
    return value, at + 1


def _delta_result_size(deflated: bytes) -> int:
    """The length of what a delta makes, from the beginning of its deflated bytes."""
    sizes = zlib.decompressobj().decompress(deflated, 20)
    _, at = _little_endian_varint(sizes, 0)
    return _little_endian_varint(sizes, at)[0]
