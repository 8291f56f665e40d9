"""One pack's index: which objects the pack holds, of what type and size, and where.

Owns encoding, checking and searching the index file; what it says is ``layout.Entry``. Every row carries its own
checksum, so a lookup trusts nothing that it has not checked and yet touches only the rows it needs. The checksum
over the whole file is for fsck.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from operator import itemgetter
from pathlib import Path
from typing import Any
from zlib import crc32

from heddle.errors import CorruptObject, StorageError
from heddle.objects.layout import CRC, OF_GIT, REINDEX_HINT, VERSION, Entry, corrupt, with_crc

INDEX_MAGIC = b"HDLINDX\0"
_HEADER = struct.Struct("<8sHBBIQQ32sI")
_CHECKED = _HEADER.size - CRC.size
_PAIR = struct.Struct("<II")
_DIGEST_SIZE = 32
_ROW_WITHOUT_ID = 32
_ROWS_PER_SLOT = 4
_MAPPED_FROM = 1 << 18
"""Index files shorter than this, in bytes, are read; longer ones are mapped."""

_CHUNK_ROWS = 1 << 14
Columns = tuple[Sequence[Any], ...]
"""Of many rows, a sequence for each field of ``Entry``."""

_new_entry = (
    tuple.__new__
)  # Entry(*fields) costs twice as much, and listing a directory makes one per file


def encode_index(
    entries: Iterable[Entry], *, id_length: int, pack_size: int, pack_digest: bytes
) -> bytes:
    """Write the index of a pack.

    Args:
        entries: what the pack holds, in any order, each id once.
        id_length: bytes of an id.
        pack_size: length of the pack file, in bytes.
        pack_digest: SHA-256 of the pack file: its name.
    """
    return encode_ordered(
        sorted(entries, key=itemgetter(0)),
        id_length=id_length,
        pack_size=pack_size,
        pack_digest=pack_digest,
    )


def encode_ordered(
    entries: Iterable[Entry], *, id_length: int, pack_size: int, pack_digest: bytes
) -> bytes:
    """As ``encode_index``, of entries in order of their ids, which are not all held at once."""
    from hashlib import sha256

    rows = bytearray()
    row = struct.Struct(f"<{id_length}sQQQBBH")
    pack, pack_crc = row.pack, CRC.pack
    for raw_id, offset, raw_size, stored_size, kind, type_num, _ in entries:
        fields = pack(raw_id, offset, raw_size, stored_size, kind, type_num, 0)
        rows += fields
        rows += pack_crc(crc32(fields))
    width = row.size + CRC.size
    count = len(rows) // width
    bits = slot_bits(count)
    header = encode_header(count, id_length, bits, pack_size, pack_digest)
    firsts = (bytes(rows[at : at + 4]) for at in range(0, len(rows), width))
    body = header + encode_fanout(firsts, bits) + rows
    return body + sha256(body).digest()


def encode_header(
    count: int,
    id_length: int,
    bits: int,
    pack_size: int,
    pack_digest: bytes,
    *,
    version: int = VERSION,
    places: int = 0,
) -> bytes:
    """The first bytes of an index file; ``places`` is only version 2's."""
    header = _HEADER.pack(
        INDEX_MAGIC, version, id_length, bits, places, count, pack_size, pack_digest, 0
    )
    return with_crc(header[:_CHECKED])


def slot_bits(count: int) -> int:
    """How many of an id's first bits are its slot."""
    return (count // _ROWS_PER_SLOT).bit_length()


def encode_fanout(ids: Iterable[bytes], bits: int) -> bytes:
    """The row number at which each slot begins; an id's slot is its first ``bits`` bits, at most 32."""
    starts = [0] * ((1 << bits) + 1)
    for raw_id in ids:
        starts[(int.from_bytes(raw_id[:4], "big") >> (32 - bits)) + 1] += 1
    return struct.pack(f"<{len(starts)}I", *accumulate(starts))


class Index:
    """An opened index, searched in place.

    Args:
        path: the index file.
        id_length: bytes of an id.
        data: the file's bytes, where the caller has them.

    Attributes:
        path: the index file.
        name: of the pack and its index, without what tells them apart.
        count: number of objects.
        pack_size: length of the pack file when it was indexed, in bytes.
        pack_digest: SHA-256 that the pack file should have.

    Raises:
        CorruptObject: the file is not a sound index of this object format.
        FileNotFoundError: there is no such file.
        StorageError: the disk can't read it.
    """

    _version = VERSION
    _row_format = "QQQBB2xI"

    def __init__(self, path: Path, id_length: int, data: bytes | mmap.mmap | None = None) -> None:
        self.path = path
        self.name = path.stem
        self._id_length = id_length
        self._data = load(path) if data is None else data
        bits, places = self._read_header()
        self._row = struct.Struct(f"<{id_length}s{self._row_format}")
        self._width = self._row.size
        self._shift = 32 - bits
        self._rows_at = _HEADER.size + 4 * ((1 << bits) + 1)
        self._end = self._rows_at + self.count * self._width
        self._checked_to = self._end + self._length_of(places)
        if len(self._data) != self._checked_to + _DIGEST_SIZE:
            raise self._damaged("its length is not what its header says")

    def _length_of(self, places: int) -> int:
        """Bytes between the last row and the checksum."""
        if places:
            raise self._damaged("its header is not an index's")
        return 0

    def _read_header(self) -> tuple[int, int]:
        """Set what the header says; returns how many bits of an id make its slot, and how many places there are."""
        if len(self._data) < _HEADER.size:
            raise self._damaged("it is too short")
        magic, version, id_length, bits, places, count, pack_size, digest, crc = (
            _HEADER.unpack_from(self._data)
        )
        if magic != INDEX_MAGIC or crc32(self._data[:_CHECKED]) != crc:
            raise self._damaged("its header is not an index's")
        if (version, id_length) != (self._version, self._id_length) or bits > 32:
            raise self._damaged(f"version {version} for ids of {id_length} bytes is not ours")
        self.count: int = count
        self.pack_size: int = pack_size
        self.pack_digest: bytes = digest
        return int(bits), int(places)

    @property
    def pack_path(self) -> Path:
        """The pack it belongs to."""
        return self.path.with_suffix(".pack")

    def find(self, raw_id: bytes) -> Entry | None:
        """Look an object up.

        Raises:
            CorruptObject: its row is damaged.
        """
        slot = int.from_bytes(raw_id[:4], "big") >> self._shift
        first, last = _PAIR.unpack_from(self._data, _HEADER.size + 4 * slot)
        if first >= last:
            return None
        width = self._width
        rows = self._data[self._rows_at + first * width : self._rows_at + last * width]
        at = rows.find(raw_id)
        while at % width:  # not at the start of a row, or -1: not there at all
            if at < 0:
                return None
            at = rows.find(raw_id, at + 1)
        return self._decode(rows, at)

    def _decode(self, rows: bytes, at: int) -> Entry:
        try:
            fields = self._row.unpack_from(rows, at)
        except struct.error:  # a damaged fanout led behind the last row
            raise self._damaged("its table of slots is wrong") from None
        if crc32(rows[at : at + self._width - 4]) != fields[6]:
            raise self._damaged("a row's checksum is wrong", fields[0])
        return _new_entry(Entry, (*fields[:6], 0))

    def __iter__(self) -> Iterator[Entry]:
        """Every row in order of ids; raises CorruptObject at a damaged one."""
        for at in range(self._rows_at, self._end, self._width):
            yield self._decode(self._data[at : at + self._width], 0)

    def columns(self) -> Iterator[Columns]:
        """Every row in order of ids, some thousands at a time; unchecked, for whoever has called ``check``."""
        step = self._width * _CHUNK_ROWS
        for at in range(self._rows_at, self._end, step):
            yield self._columns(self._data[at : min(at + step, self._end)])

    def _columns(self, rows: bytes) -> Columns:
        *columns, checks = zip(*self._row.iter_unpack(rows), strict=True)
        return *columns, bytes(len(checks))

    def is_of_git(self) -> bool | None:
        """Whether the pack is kept as git sent it; None where a damaged row does not say it, or there is none."""
        try:
            return next((entry.kind == OF_GIT for entry in self.sample(1)), None)
        except CorruptObject:
            return None

    def sample(self, count: int) -> Iterator[Entry]:
        """Up to so many rows, evenly spaced; raises as iterating does."""
        step = self._width * max(1, self.count // count)
        for at in range(self._rows_at, self._end, step):
            yield self._decode(self._data[at : at + self._width], 0)

    def ids(self) -> Iterator[bytes]:
        """Every id in order, unchecked; what is then read through one is checked."""
        length = self._id_length
        data = self._data
        return (data[at : at + length] for at in range(self._rows_at, self._end, self._width))

    def ids_between(self, first: bytes, last: bytes) -> Iterator[bytes]:
        """The ids from ``first`` to ``last``, both included, in order."""
        number = self._first_from(first)
        while number < self.count and (raw_id := self._id(number)) <= last:
            yield raw_id
            number += 1

    def _first_from(self, raw_id: bytes) -> int:
        low, high = 0, self.count
        while low < high:
            middle = (low + high) // 2
            if self._id(middle) < raw_id:
                low = middle + 1
            else:
                high = middle
        return low

    def _id(self, number: int) -> bytes:
        at = self._rows_at + number * self._width
        return self._data[at : at + self._id_length]

    def check(self) -> None:
        """Check the whole file against its checksum.

        Raises:
            CorruptObject: a byte is not what was written.
        """
        from hashlib import sha256

        with memoryview(self._data) as data:
            digest = sha256(data[: self._checked_to]).digest()
        if digest != self._data[self._checked_to :]:
            raise self._damaged("its checksum is wrong")

    def _damaged(self, why: str, raw_id: bytes | None = None) -> CorruptObject:
        return corrupt(str(self.path), raw_id, why, hint=REINDEX_HINT)


def load(path: Path) -> bytes | mmap.mmap:
    """An index file's bytes, mapped where it is long."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size
            if size >= _MAPPED_FROM:
                return mmap.mmap(fd, size, prot=mmap.PROT_READ)
            return os.read(fd, size)
        finally:
            os.close(fd)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageError(f"reading {path} failed: {error.strerror}") from error
