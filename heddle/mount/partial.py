"""Files of which only some bytes are in the upper: the rest is still a blob's.

A large captured file is not copied when somebody changes a byte of it. Its real file stays a hole, into which the
units around a change are copied, and its marks say which they are. Owns that map, what to read from where, and the
order that makes a unit the file's; when that happens, and what a truncation means for it, is ``files.py``'s.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, cast

from heddle import faults
from heddle.atomic import write_all
from heddle.mount.lower import FRAME

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

Reader: TypeAlias = "Callable[[int], bytes]"
"""Gives at most so many of a file's next bytes; none at its end."""

Fetch: TypeAlias = "Callable[[ObjectID, int, int], bytes]"
"""Gives bytes of a blob: which, from where, how many; short at its end."""

_UNITS = 8192  # at most; the map has to fit into an xattr, which ext4 limits to 4 KiB with all others of the file
_AHEAD = 16  # units copied at once for whoever changes one after the other


class Partial(NamedTuple):
    """Which bytes of a real file are a blob's instead.

    Attributes:
        blob: whose the missing bytes are.
        limit: bytes of it that count; what lies behind is the file's, and zeros where it has nothing.
        unit: bytes that come to the file together.
        units: bit *k* is set once unit *k* is the file's.
    """

    blob: ObjectID
    limit: int
    unit: int
    units: int

    @classmethod
    def of(cls, blob: ObjectID, size: int) -> Partial:
        """Nothing is in the file yet."""
        unit = FRAME
        while size > unit * _UNITS:
            unit *= 2
        return cls(blob, size, unit, 0)

    def encode(self) -> bytes:
        return b"%s:%d:%d:%x" % self

    @classmethod
    def decode(cls, text: bytes) -> Partial:
        """Parse a map.

        Raises:
            ValueError: it is not one of ours.
        """
        blob, limit, unit, units = text.split(b":")
        found = cls(object_id(blob), int(limit), int(unit), int(units, 16))
        if found.limit < 0 or found.unit < FRAME or found.units < 0:
            raise ValueError(f"not a map of units: {text!r}")
        return found

    def _missing(self, offset: int, size: int) -> int:
        """The units of a range that are not in the file, as bits."""
        stop = min(offset + size, self.limit)
        if stop <= offset:
            return 0
        first, last = offset // self.unit, (stop - 1) // self.unit
        return ((1 << (last - first + 1)) - 1) << first & ~self.units

    def lacks(self, offset: int, size: int) -> bool:
        """Say whether bytes of a range are not in the file."""
        return self._missing(offset, size) != 0

    def to_copy(self, offset: int, size: int) -> int:
        """The units to bring up before a range is changed, as bits; more of them, the more lie before it already."""
        missing = self._missing(offset, size)
        if missing:
            first = (missing & -missing).bit_length() - 1
            before = 0
            while before < _AHEAD and first > before and self.units >> (first - 1 - before) & 1:
                before += 1
            missing |= self._missing(first * self.unit, (before + 1) * self.unit)
        return missing

    def with_units(self, units: int) -> Partial | None:
        """The map once these are in the file too; None when nothing is missing any more."""
        now = self._replace(units=self.units | units)
        return now if now.lacks(0, now.limit) else None

    def cut(self, size: int) -> Partial | None:
        """The map once nothing of the blob counts behind a size."""
        now = self._replace(limit=min(self.limit, size))
        return now if now.lacks(0, now.limit) else None

    def _runs(self, offset: int, stop: int) -> Iterator[tuple[int, int, bool]]:
        """A range in pieces that come from one place: start, end, and whether they are in the file."""
        while offset < stop:
            if offset >= self.limit:
                yield offset, stop, True
                return
            number = offset // self.unit
            end = min((number + 1) * self.unit, self.limit, stop)
            yield offset, end, bool(self.units >> number & 1)
            offset = end

    def read(self, fetch: Fetch, fd: int, offset: int, size: int) -> bytes:
        """Bytes of the file as it is shown, short at its end. Touches no node, so any thread may do it."""
        stop = min(offset + size, os.fstat(fd).st_size)
        pieces = []
        for start, end, is_here in self._runs(offset, stop):
            if is_here:
                pieces.append(os.pread(fd, end - start, start).ljust(end - start, b"\0"))
            else:
                pieces.append(fetch(self.blob, start, end - start))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def copy(self, fetch: Fetch, fd: int, units: int) -> None:
        """Bring units up, as bits; durable on return, so that the map may say so. For any thread."""
        end_of_file = min(self.limit, os.fstat(fd).st_size)
        while units:
            number = (units & -units).bit_length() - 1
            units &= units - 1
            stop = min((number + 1) * self.unit, end_of_file)
            for offset in range(number * self.unit, stop, FRAME):
                piece = fetch(self.blob, offset, min(FRAME, stop - offset))
                if piece.count(0) != len(piece):
                    faults.reach("partial.before-copy")
                    write_all(fd, piece, offset)
        os.fdatasync(fd)


def object_id(text: bytes) -> ObjectID:
    """Check that a word of a file's marks is an object's id.

    Raises:
        ValueError: it is not.
    """
    if len(text) not in (40, 64) or not all(c in b"0123456789abcdef" for c in text):
        raise ValueError(f"not an object id: {text!r}")
    return cast("ObjectID", text)


def plain_reader(fd: int) -> Reader:
    """What gives a real file's own bytes from where it stands."""
    return lambda count: os.read(fd, count)


def reader(fetch: Fetch, fd: int, partial: Partial | None) -> Reader:
    """What gives a real file's bytes as they are shown, from its beginning on."""
    if partial is None:
        return plain_reader(fd)
    offset = 0

    def read(count: int) -> bytes:
        nonlocal offset
        piece = partial.read(fetch, fd, offset, count)
        offset += len(piece)
        return piece

    return read
