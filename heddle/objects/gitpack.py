"""One pack of git, read where it is: its index, its entries, their deltas.

Owns the bytes of gitformat-pack(5), versions 1 and 2 of the index included. Which packs there are is ``gitdir.py``'s
and, of those that this repository keeps, ``keptpack.py``'s. Everything is read by pread(2) and a mapped index, so that
any number of threads may read at once. Objects are made whole here; large ones as a stream are ``spool.py``'s.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from heddle.objects.cache import ContentCache

_OFS_DELTA, _REF_DELTA = 6, 7
_TYPES = (1, 2, 3, 4)
_HEAD_BYTES = 4096
"""Read at an entry at first: the header, and all of most entries."""
PIECE = 1 << 20
"""Bytes that a stream holds at a time."""
LONGEST_CHAIN = 4096
"""Git makes none longer than 4,095; a longer one is damage, or a circle."""
_V2_MAGIC = b"\377tOc"
_FANOUT = struct.Struct(">256I")


class Damaged(ValueError):
    """Bytes are not what git writes; says what is wrong with them."""


class Replaced(Damaged):
    """A pack's file is not the one that its index is of: git may have put a new one in its place just now."""


class Entry(NamedTuple):
    """One entry of a pack, and its first bytes.

    Attributes:
        type_num: git's type number; that of a delta when it is one.
        size: bytes of what is deflated in it.
        base: of a delta, the offset of its base in the same pack, or its binary id when it lies elsewhere;
            None for a whole object.
        head: deflated bytes, as many as were read with the header.
        next: offset of the deflated bytes behind ``head``.
    """

    type_num: int
    size: int
    base: int | bytes | None
    head: bytes
    next: int


class GitIndex:
    """A pack's index, searched in place.

    Args:
        path: the ``.idx`` file.
        id_length: bytes of an id.

    Raises:
        Damaged: it is not a sound index of this object format.
        OSError: it can't be read.
    """

    def __init__(self, path: Path, id_length: int) -> None:
        data = _mapped(path)
        if data[:8] == _V2_MAGIC + b"\0\0\0\2":
            fanout, stride, before = 8, id_length, 0
        elif data[:4] == _V2_MAGIC:
            raise Damaged(f"{path} has a version that is not known here")
        else:  # version 1 begins with the table, and each row with its offset
            fanout, stride, before = 0, id_length + 4, 4
        if len(data) < fanout + _FANOUT.size:
            raise Damaged(f"{path} is too short")
        self._data = data
        self._fanout = _FANOUT.unpack_from(data, fanout)
        self._stride = stride
        self._length = id_length
        self._ids_at = fanout + _FANOUT.size + before
        self.count: int = self._fanout[255]
        self._offsets_at = self._ids_at + self.count * (id_length + 4)  # of version 2
        self._far_at = self._offsets_at + 4 * self.count
        least = self._ids_at - before + self.count * (stride if before else stride + 8)
        if len(data) < least + 2 * id_length or list(self._fanout) != sorted(self._fanout):
            raise Damaged(f"{path} is not a sound index")
        self._version = 1 if before else 2

    def find(self, raw_id: bytes) -> int | None:
        """Where an object's entry lies in the pack; None when it is not in there."""
        first = raw_id[0]
        low = self._fanout[first - 1] if first else 0
        high = self._fanout[first]
        data, at, stride, length = self._data, self._ids_at, self._stride, self._length
        while low < high:
            middle = (low + high) >> 1
            start = at + middle * stride
            found = data[start : start + length]
            if found < raw_id:
                low = middle + 1
            elif found == raw_id:
                return self._offset(middle)
            else:
                high = middle
        return None

    @property
    def pack_checksum(self) -> bytes:
        """What the pack ends with."""
        return self._data[-2 * self._length : -self._length]

    def _offset(self, number: int) -> int:
        if self._version == 1:
            at = self._ids_at - 4 + number * self._stride
            return int.from_bytes(self._data[at : at + 4], "big")
        at = self._offsets_at + 4 * number
        offset = int.from_bytes(self._data[at : at + 4], "big")
        if offset < 1 << 31:
            return offset
        at = self._far_at + 8 * (offset - (1 << 31))
        return int.from_bytes(self._data[at : at + 8], "big")

    def ids(self, first_byte: int | None = None) -> Iterator[bytes]:
        """Every binary id, or those that begin with one byte, in order."""
        low, high = 0, self.count
        if first_byte is not None:
            low, high = self._fanout[first_byte - 1] if first_byte else 0, self._fanout[first_byte]
        for number in range(low, high):
            at = self._ids_at + number * self._stride
            yield self._data[at : at + self._length]


class PackEntries(ABC):
    """The entries of a pack, wherever its bytes and its index are.

    Args:
        path: the ``.pack`` file.
        id_length: bytes of an id.
    """

    def __init__(self, path: Path, id_length: int) -> None:
        self.path = path
        self._id_length = id_length

    @abstractmethod
    def _pread(self, size: int, offset: int) -> bytes:
        """Up to so many bytes of the file; raises OSError, and FileNotFoundError when it is gone."""

    @abstractmethod
    def _find(self, raw_id: bytes) -> int | None:
        """Where the entry of an object lies in the file; None when it is not in there."""

    def entry(self, offset: int, head_bytes: int = _HEAD_BYTES) -> Entry:
        """Read an entry's header.

        Raises:
            Damaged: there is no sound one.
            OSError: as ``_pread``.
        """
        head = self._pread(head_bytes, offset)
        base: int | bytes | None = None
        try:
            byte = head[0]
            type_num = byte >> 4 & 7
            if byte & 0x80:
                size, at = _varint(head, 0, first_bits=4)
            else:
                size, at = byte & 15, 1
            if type_num == _OFS_DELTA:
                back, at = offset_varint(head, at)
                base = offset - back
            elif type_num == _REF_DELTA:
                id = head[at : at + self._id_length]
                at += self._id_length
                base = self._find(id) if len(id) == self._id_length else -1
                base = id if base is None else base
            elif type_num not in _TYPES:
                raise Damaged(f"{self.path}: there is no object at {offset}")
        except IndexError:
            raise Damaged(f"{self.path} ends at {offset}") from None
        if isinstance(base, int) and (base <= 0 or base == offset):
            raise Damaged(f"{self.path}: the delta at {offset} has no base")
        return Entry(type_num, size, base, head[at:], offset + len(head))

    def kind(self, offset: int, kind_of: Callable[[bytes], int]) -> int:
        """An object's type number, from headers alone.

        Args:
            offset: of its entry.
            kind_of: the type of an object by its id, for a delta against one.
        """
        entry = self.entry(offset, 64)
        depth = 0
        while isinstance(entry.base, int):
            depth += 1
            self.check_depth(depth, offset)
            entry = self.entry(entry.base, 64)
        return entry.type_num if entry.base is None else kind_of(entry.base)

    def size(self, offset: int) -> int:
        """An object's size in bytes, from the header of its entry alone."""
        entry = self.entry(offset, 512)  # a delta's own size stands behind deflate's tables
        return entry.size if entry.base is None else _result_size(entry.head)

    def check_depth(self, depth: int, offset: int) -> None:
        """Refuse a chain of deltas that git would not have made, such as a circle."""
        if depth > LONGEST_CHAIN:
            raise Damaged(f"{self.path}: the deltas at {offset} have no end")

    def inflate(self, entry: Entry) -> bytes:
        """What is deflated in an entry, whole."""
        try:
            content = zlib.decompress(entry.head, bufsize=entry.size + 1)
        except zlib.error:  # mostly because there is more of it
            return b"".join(self.pieces(entry))
        if len(content) != entry.size:
            raise self._wrong_length(entry)
        return content

    def pieces(self, entry: Entry) -> Iterator[bytes]:
        """What is deflated in an entry, piece by piece; never more than its header says."""
        inflater = zlib.decompressobj()
        left, at, deflated = entry.size, entry.next, entry.head
        try:
            while True:
                piece = inflater.decompress(deflated, min(PIECE, left + 1))
                left -= len(piece)
                if left < 0:
                    break
                if piece:
                    yield piece
                if inflater.eof:
                    break
                deflated = inflater.unconsumed_tail
                if not deflated:
                    deflated = self._pread(min(PIECE, max(_HEAD_BYTES, left)), at)
                    at += len(deflated)
                    if not deflated:
                        raise Damaged(f"{self.path} ends too early")
        except zlib.error as error:
            raise Damaged(f"{self.path}: {error}") from error
        if left:
            raise self._wrong_length(entry)

    def _wrong_length(self, entry: Entry) -> Damaged:
        return Damaged(f"{self.path}: an entry before {entry.next} is not as long as it says")

    def chain(self, offset: int) -> list[Entry]:
        """The entries that make an object: its own, then base after base, as far as this pack has them."""
        found = [self.entry(offset)]
        while isinstance(base := found[-1].base, int):
            self.check_depth(len(found), offset)
            found.append(self.entry(base))
        return found


class GitPack(PackEntries):
    """A pack of git's and its index; the pack's file is opened when it is first read.

    Its methods raise as the constructor does.

    Args:
        path: the ``.pack`` file.
        id_length: bytes of an id.

    Raises:
        Damaged: the index or an entry is.
        OSError: a file can't be opened or read; FileNotFoundError when git has removed it.
    """

    def __init__(self, path: Path, id_length: int) -> None:
        super().__init__(path, id_length)
        self.index = GitIndex(path.with_suffix(".idx"), id_length)
        self._fd = -1
        self._lock = threading.Lock()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            os.close(self._fd)

    def _find(self, raw_id: bytes) -> int | None:
        return self.index.find(raw_id)

    def _pread(self, size: int, offset: int) -> bytes:
        with self._lock:
            if self._fd < 0:
                self._fd = self._opened()
        return os.pread(self._fd, size, offset)

    def _opened(self) -> int:
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        end = os.fstat(fd).st_size - self._id_length
        if os.pread(fd, self._id_length, max(0, end)) != self.index.pack_checksum:
            os.close(fd)
            raise Replaced(f"{self.path} is not what its index is of")
        return fd


_Pack = TypeVar("_Pack", bound=PackEntries)


def make(
    pack: _Pack,
    offset: int,
    kept: ContentCache[tuple[_Pack, int]],
    elsewhere: Callable[[bytes], tuple[int, bytes]],
) -> tuple[int, bytes]:
    """An object of a pack, type number and content, from the nearest base that is still in memory.

    Args:
        offset: of its entry.
        kept: contents made last, by pack and offset; gets those that are made now.
        elsewhere: gives a base that is not in the pack, by its binary id.

    Raises:
        Damaged: an entry that it needs is.
    """
    deltas: list[tuple[int, Entry]] = []
    while True:
        found = kept.get((pack, offset))
        if found is not None:
            break
        entry = pack.entry(offset)
        if entry.base is None:
            found = entry.type_num, pack.inflate(entry)
            kept.put((pack, offset), found)
            break
        deltas.append((offset, entry))
        if isinstance(entry.base, bytes):
            found = elsewhere(entry.base)
            break
        pack.check_depth(len(deltas), offset)
        offset = entry.base
    kind, content = found
    for offset, entry in reversed(deltas):
        content = apply_delta(content, pack.inflate(entry))
        kept.put((pack, offset), (kind, content))
    return kind, content


def apply_delta(base: bytes, delta: bytes) -> bytes:
    """Make an object of its base by an inflated delta; raises Damaged where they don't fit."""
    applier = _applier()
    if applier is None:
        return Delta(delta).apply(base)
    try:
        return b"".join(applier(base, delta))
    except Exception as error:
        from dulwich.errors import ApplyDeltaError  # here, since it costs more than all the rest

        if not isinstance(error, ApplyDeltaError):
            raise
        raise Damaged(f"a delta does not fit its base: {error}") from error


@cache
def _applier() -> Callable[[bytes, bytes], list[bytes]] | None:
    """Dulwich's compiled function, twenty times as fast as ours; it need not be there."""
    try:
        from dulwich._pack import apply_delta  # type: ignore[import-not-found]
    except ImportError:
        return None
    return apply_delta  # type: ignore[no-any-return]


class Delta:
    """What makes an object of another one (gitformat-pack(5), "Deltified representation").

    Args:
        data: the inflated delta.

    Attributes:
        base_size, size: bytes of the object it needs, and of the one it makes.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        try:
            self.base_size, at = _varint(data, 0)
            self.size, self._start = _varint(data, at)
        except IndexError:
            raise Damaged("a delta ends too early") from None

    def apply(self, base: bytes) -> bytes:
        """Make the object."""
        if len(base) != self.base_size:
            raise Damaged("a delta is for another object")
        made = b"".join(
            [base[at : at + size] if literal is None else literal for at, size, literal in self]
        )
        if len(made) != self.size:
            raise Damaged("a delta makes something else than it says")
        return made

    def stream(self, read_base: Callable[[int, int], bytes]) -> Iterator[bytes]:
        """Make the object piece by piece.

        Args:
            read_base: gives bytes of the base at an offset, so many.
        """
        held: list[bytes] = []
        length = made = 0
        for start, size, literal in self:
            for at in range(start, start + size, PIECE) if literal is None else (0,):
                piece = literal or read_base(at, min(PIECE, start + size - at))
                held.append(piece)
                length += len(piece)
                if length >= PIECE:
                    yield b"".join(held)
                    made += length
                    held, length = [], 0
        yield b"".join(held)
        if made + length != self.size:
            raise Damaged("a delta makes something else than it says")

    def __iter__(self) -> Iterator[tuple[int, int, bytes | None]]:
        """Its instructions: (offset, size, None) copies from the base, (0, 0, bytes) inserts these."""
        data, at, end = self._data, self._start, len(self._data)
        try:
            while at < end:
                code = data[at]
                at += 1
                if not code & 0x80:
                    if not code or at + code > end:
                        raise Damaged("a delta has an instruction that there is not")
                    yield 0, 0, data[at : at + code]
                    at += code
                    continue
                start = size = 0
                for bit in range(4):
                    if code >> bit & 1:
                        start |= data[at] << 8 * bit
                        at += 1
                for bit in range(3):
                    if code >> (4 + bit) & 1:
                        size |= data[at] << 8 * bit
                        at += 1
                size = size or 0x10000
                if start + size > self.base_size:
                    raise Damaged("a delta copies from behind its base")
                yield start, size, None
        except IndexError:
            raise Damaged("a delta ends too early") from None


def _mapped(path: Path) -> bytes | mmap.mmap:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        return mmap.mmap(fd, size, prot=mmap.PROT_READ) if size else b""
    finally:
        os.close(fd)


def _varint(data: bytes, at: int, *, first_bits: int = 7) -> tuple[int, int]:
    """Read seven bits per byte, lowest first (the first byte may hold fewer); returns (value, next position)."""
    value = data[at] & ((1 << first_bits) - 1)
    shift = first_bits
    while data[at] & 0x80:
        at += 1
        value |= (data[at] & 0x7F) << shift
        shift += 7
    return value, at + 1


def offset_varint(data: bytes | mmap.mmap, at: int) -> tuple[int, int]:
    """Read a number as git writes offsets (gitformat-pack(5), "offset encoding"); returns (value, next position)."""
    value = data[at] & 0x7F
    while data[at] & 0x80:
        at += 1
        value = ((value + 1) << 7) | (data[at] & 0x7F)
    return value, at + 1


def entry_head(type_num: int, size: int) -> bytes:
    """How the entry of a whole object begins."""
    head = bytearray()
    byte, left = type_num << 4 | size & 15, size >> 4
    while left:
        head.append(byte | 0x80)
        byte, left = left & 0x7F, left >> 7
    return bytes([*head, byte])


def _result_size(deflated: bytes) -> int:
    """The length of what a delta makes, from the beginning of its deflated bytes."""
    try:
        return Delta(zlib.decompressobj().decompress(deflated, 20)).size
    except zlib.error as error:
        raise Damaged(str(error)) from error
