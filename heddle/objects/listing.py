"""What is in a pack of git's: the id, type, length and place of every object, found by making each of them once.

Owns doing that with a whole pack, and with what is left of a damaged one.
"""

from __future__ import annotations

import os
import re
import zlib
from array import array
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import IO, TYPE_CHECKING, cast

from heddle.objects.gitformat import BLOB, ID_LENGTHS, new_hash
from heddle.objects.incoming import ObjectTooLarge, Progress, Reader, Taking, check_size
from heddle.objects.layout import OF_GIT, Entry

if TYPE_CHECKING:
    from heddle.objects.links import Links

Read = Callable[[int, int], bytes]

_HEADER = 12  # bytes before the first entry
_HEAD_BYTES = 4096
_WINDOW = 1 << 16
_DAMAGE = (zlib.error, EOFError, ValueError, ObjectTooLarge)
_STREAM = re.compile(rb"\x78[\x01\x5e\x9c\xda]")
"""How a deflated stream begins (RFC 1950)."""
_LONGEST_HEAD = 42
"""Bytes in front of a stream: type and length, and the longest name of a base."""


def salvage(read: Read, size: int, id_length: int) -> Iterator[Entry]:
    """What can be made of a pack without its index, stepping over what is damaged.

    Args:
        read: gives bytes of the pack: so many, from an offset; zeros where they can't be had.
        size: of the pack, in bytes.
        id_length: bytes of an id.

    Yields:
        Each object once, in order of ids.
    """
    file = cast("IO[bytes]", _Bytes(read, size))
    hash_name = next(name for name, length in ID_LENGTHS.items() if length == id_length)
    try:
        listing = _Salvaging(Reader(file, hash_name), id_length)
    except EOFError:
        return
    listing.run(read, size - id_length)
    yield from listing.entries()


class _Bytes:
    """The bytes of a pack, read as a file is."""

    def __init__(self, read: Read, size: int) -> None:
        self._read = read
        self._size = size
        self._at = 0

    def read(self, size: int) -> bytes:
        data = self._read(max(0, min(size, self._size - self._at)), self._at)
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (self._size if whence == os.SEEK_END else 0)
        return self._at

    def tell(self) -> int:
        return self._at


class Listing(Taking):
    """The objects of a pack being listed: what each is, how long, and where it lies."""

    def __init__(
        self,
        reader: Reader,
        id_length: int,
        max_bytes: int | None = None,
        links: Links | None = None,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(reader, id_length, max_bytes, links, progress)
        self._kinds = bytearray()
        self._sizes = array("Q")
        self._ends = array("Q")

    def entries(self) -> Iterator[Entry]:
        """Every object once, in order of ids."""
        ids = list(map(self._id, range(len(self._offsets))))
        before = b""
        for number in sorted(range(len(ids)), key=ids.__getitem__):
            raw_id = ids[number]
            if raw_id != before:
                start = self._offsets[number]
                size, stored = self._sizes[number], self._ends[number] - start
                yield Entry(raw_id, start, size, stored, OF_GIT, self._kinds[number])
            before = raw_id

    def _take_entry(self, number: int) -> None:
        self._kinds.append(0)
        self._sizes.append(0)
        super()._take_entry(number)
        self._ends.append(self._reader.offset)

    def _take(self, number: int, type_num: int, content: bytes) -> bytes:
        size = len(content)
        self._kinds[number] = type_num
        self._sizes[number] = size
        digest = new_hash(self._length, type_num, size)
        digest.update(content)
        return digest.digest()

    def _take_large(self, number: int, size: int, pieces: Iterator[bytes]) -> bytes:
        self._kinds[number] = BLOB
        self._sizes[number] = size
        digest = new_hash(self._length, BLOB, size)
        for piece in pieces:
            digest.update(piece)
        return digest.digest()

    def _bases(self) -> Iterator[tuple[int | None, bytes]]:
        for number in range(len(self._offsets)) if self._by_id else ():
            if (raw_id := self._id(number)) in self._by_id:
                yield number, raw_id

    def _base(self, number: int | None, raw_id: bytes) -> tuple[int, bytes]:
        """A whole object of the pack: what is made by a delta is at hand when it is needed."""
        assert number is not None
        self._reader.seek(self._offsets[number], self._sizes[number])
        type_num, size = self._reader.entry_header()
        check_size(size, self._limit, whole=True)
        return type_num, self._reader.whole(size)


class _Salvaging(Listing):
    """What is left of a damaged pack."""

    def run(self, read: Read, end: int) -> None:
        at = _HEADER
        while at < end:
            at = self._try_entry(at) or _next_entry(read, at + 1, end)
        self._apply_by_number()
        self._apply_by_id()
        self._forget_unknown()

    def _try_entry(self, at: int) -> int | None:
        """List the entry at an offset; returns where it ends, or None where there is no sound one."""
        number = len(self._offsets)
        if self._reader.offset != at:
            self._reader.seek(at, _HEAD_BYTES)
        with suppress(*_DAMAGE):
            self._take_entry(number)
            return self._reader.offset
        for each in (self._offsets, self._kinds, self._sizes, self._ends):
            del each[number:]
        del self._ids[number * self._length :]
        return None

    def _apply_from(self, number: int | None, raw_id: bytes) -> None:
        with suppress(*_DAMAGE):
            super()._apply_from(number, raw_id)

    def _forget_unknown(self) -> None:
        """Of deltas without a base nobody knows what they are."""
        known = [number for number in range(len(self._offsets)) if any(self._id(number))]
        self._ids = bytearray(b"".join(map(self._id, known)))
        self._kinds = bytearray(self._kinds[number] for number in known)
        for each in (self._offsets, self._sizes, self._ends):
            each[:] = array("Q", [each[number] for number in known])


def _next_entry(read: Read, at: int, end: int) -> int:
    """Where the next entry may begin, from an offset on: a little before what looks like a stream."""
    start = at + 1
    while start < end:
        found = _STREAM.search(read(_WINDOW, start))
        if found is not None:
            return max(at, start + found.start() - _LONGEST_HEAD)
        start += _WINDOW - 1  # its two bytes may lie on both sides
    return end
