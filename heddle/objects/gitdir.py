"""Git's own object directories, read where they are as an alternate.

Owns finding an object's type and size there without inflating it, and one lock, because dulwich's stores are not
meant for several threads. Everything else about git's files is dulwich's.
"""

from __future__ import annotations

import os
import threading
import weakref
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dulwich.errors import ApplyDeltaError, ChecksumMismatch, ObjectFormatException
from dulwich.object_format import get_object_format
from dulwich.object_store import DiskObjectStore
from dulwich.objects import ObjectID, RawObjectID

from heddle.errors import CorruptObject
from heddle.objects.gitformat import TYPE_NAMES, to_hex, to_raw

_TYPE_NUMS = {name: number for number, name in TYPE_NAMES.items()}
_OFS_DELTA, _REF_DELTA = 6, 7
DAMAGE = (
    ApplyDeltaError,
    ChecksumMismatch,
    ObjectFormatException,
    AssertionError,
    EOFError,
    IndexError,
    OSError,
    ValueError,
    zlib.error,
)
"""What dulwich, and reading headers here, raise for bytes that are not what git wrote."""
_HEAD_BYTES = 1024
"""Enough for any object header and a delta's reference to its base, and for deflate's tables (at most 286 bytes) before
the first deflated bytes."""


class GitObjects:
    """A ``.git/objects`` directory with its packs, its loose objects and its own alternates.

    Args:
        path: the directory.
        format_name: ``sha1`` or ``sha256``.
        opened_by: the directories that led here, so that a circle ends.
    """

    def __init__(
        self, path: Path, format_name: str, opened_by: frozenset[Path] = frozenset()
    ) -> None:
        self.path = path
        self._format = get_object_format(format_name)
        self._store = DiskObjectStore(path, object_format=self._format)
        self._lock = threading.RLock()
        self._loose: dict[str, frozenset[str]] = {}
        opened_by |= {path.resolve()}
        self._alternates = [
            GitObjects(each, format_name, opened_by)
            for each in _read_alternates(path)
            if each.resolve() not in opened_by
        ]
        # Dulwich complains at the end of the process about a store that was not closed.
        weakref.finalize(self, self._store.close)

    def close(self) -> None:
        """Close what is open; the directory can still be read."""
        self._store.close()
        for alternate in self._alternates:
            alternate.close()

    # Looking up

    def contains(self, raw_id: bytes) -> bool:
        with self._lock:
            return (
                self._store.contains_packed(RawObjectID(raw_id))
                or self._loose_path(raw_id).exists()
                or any(alternate.contains(raw_id) for alternate in self._alternates)
            )

    def holds(self, raw_id: bytes) -> bool:
        """As ``contains``, but each directory of loose objects is listed only once."""
        with self._lock:
            path = self._loose_path(raw_id)
            return (
                self._store.contains_packed(RawObjectID(raw_id))
                or path.name in self._loose_names(path.parent)
                or any(alternate.holds(raw_id) for alternate in self._alternates)
            )

    def _loose_path(self, raw_id: bytes) -> Path:
        name = raw_id.hex()
        return self.path / name[:2] / name[2:]

    def _loose_names(self, directory: Path) -> frozenset[str]:
        names = self._loose.get(directory.name)
        if names is None:
            try:
                names = frozenset(os.listdir(directory))
            except FileNotFoundError:
                names = frozenset()
            self._loose[directory.name] = names
        return names

    def _owner(self, raw_id: bytes) -> GitObjects | None:
        """The alternate to ask for an object that is not in this directory itself, or None when it is."""
        if self._store.contains_packed(RawObjectID(raw_id)) or self._loose_path(raw_id).exists():
            return None
        for alternate in self._alternates:
            if alternate.contains(raw_id):
                return alternate
        raise KeyError(to_hex(raw_id))

    def kind(self, object_id: bytes) -> int:
        return self._head(self._raw(object_id))[0]

    def size(self, object_id: bytes) -> int:
        return self._head(self._raw(object_id))[1]

    def is_chunked(self, object_id: bytes) -> bool:
        return False

    def _raw(self, object_id: bytes) -> bytes:
        return to_raw(object_id, self._format.oid_length)

    # Reading

    def get_raw(self, name: bytes) -> tuple[int, bytes]:
        """An object's type number and content; KeyError or CorruptObject as the store raises them."""
        raw_id = self._raw(name)
        with self._lock, self._naming_damage(raw_id):
            owner = self._owner(raw_id)
            return owner.get_raw(raw_id) if owner else self._store.get_raw(to_hex(raw_id))

    @contextmanager
    def _naming_damage(self, raw_id: bytes) -> Iterator[None]:
        try:
            yield
        except DAMAGE as error:
            raise CorruptObject(
                f"{self.path} is damaged at object {raw_id.hex()}: {error}",
                hint="run `git fsck --full` there",
            ) from error

    def read_at(self, object_id: bytes, offset: int, size: int) -> bytes:
        return self.get_raw(object_id)[1][offset : offset + size]

    def iter_ids(self) -> Iterator[bytes]:
        with self._lock:
            ids = list(self._store)
        yield from (bytes.fromhex(each.decode()) for each in ids)
        for alternate in self._alternates:
            yield from alternate.iter_ids()

    def iter_prefix(self, prefix: bytes) -> Iterator[ObjectID]:
        with self._lock:
            yield from list(self._store.iter_prefix(prefix))
        for alternate in self._alternates:
            yield from alternate.iter_prefix(prefix)

    # Type and size from the first bytes

    def _head(self, raw_id: bytes) -> tuple[int, int]:
        """An object's type number and size in bytes."""
        with self._lock, self._naming_damage(raw_id):
            owner = self._owner(raw_id)
            if owner is not None:
                return owner._head(raw_id)
            return self._packed_head(raw_id) or self._loose_head(raw_id)

    def _loose_head(self, raw_id: bytes) -> tuple[int, int]:
        with open(self._loose_path(raw_id), "rb", buffering=0) as file:
            head = zlib.decompressobj().decompress(file.read(_HEAD_BYTES), _HEAD_BYTES)
        type_name, size = head[: head.index(b"\0")].split(b" ")
        return _TYPE_NUMS[type_name], int(size)

    def _packed_head(self, raw_id: bytes) -> tuple[int, int] | None:
        for pack in self._store.packs:
            try:
                offset = pack.index.object_offset(RawObjectID(raw_id))
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


def _read_alternates(path: Path) -> list[Path]:
    """The directories that git itself reads too; relative ones are taken from this one."""
    try:
        lines = (path / "info" / "alternates").read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    return [path / os.fsdecode(line) for line in lines if line and not line.startswith(b"#")]


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
