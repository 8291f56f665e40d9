"""Taking in a git pack: every object out of it, checked, into a pack of ours.

Owns reading the pack format (gitformat-pack(5)) from a file in one pass, and applying its deltas, in memory that does
not grow with the pack: a large blob passes through in pieces, and of deltas only the way down to one is held. What
arrives is believed only as far as its own bytes go: ids are computed here. Where packs come from is not known here.
Packs that are kept as they came are ``keeping.py``'s, which goes through them in the same way.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from hashlib import new as new_hash
from typing import IO, TYPE_CHECKING, NamedTuple

from heddle.errors import CorruptObject, DataError, ObjectMissing
from heddle.objects.gitformat import BLOB, to_raw
from heddle.objects.gitpack import LONGEST_CHAIN, Delta, apply_delta, offset_varint
from heddle.objects.layout import WHOLE_LIMIT

if TYPE_CHECKING:
    from heddle.objects.links import Links
    from heddle.objects.pack import PackWriter
    from heddle.objects.store import ObjectStore

_CHUNK = 256 << 10  # bytes read, and inflated, at a time
_STORED_MORE = 64  # bytes by which a short stream may be longer than what it holds
_OFS_DELTA, _REF_DELTA = 6, 7
_TYPES = (1, 2, 3, 4)
_REPORT_EVERY = 256
_DELTA_HEAD = 20  # bytes that hold the two lengths a delta begins with
_LONGEST_LENGTH = 64  # bits
_LONGEST_NUMBER = 16  # bytes that hold a length or a distance
_SHORT_DELTA = 16 << 10  # bytes
_DELTAS_KEPT = 64 << 20  # bytes of short deltas that are kept until their bases are known
_HELD_WHOLE = 1 << 30
"""A delta's result, or a tree, has to be held whole; a longer one would be an attack."""

Progress = Callable[[int, int], None]


class ObjectTooLarge(DataError):
    """A pack holds an object that is longer than the repository takes."""

    kind = "object_too_large"


class DamagedPack(CorruptObject):
    """What was received is not a sound git pack."""

    kind = "damaged_pack"


def take_pack(
    file: IO[bytes],
    store: ObjectStore,
    writer: PackWriter,
    *,
    max_bytes: int | None = None,
    links: Links | None = None,
    progress: Progress | None = None,
    thin: bool = True,
) -> Taken:
    """Store every object of a git pack; the writer is left for the caller to commit.

    Args:
        file: the pack, from its first byte to its last; seekable.
        store: where the bases of a thin pack's deltas are.
        writer: of that store.
        max_bytes: refuse longer objects before memory or disk is taken for them; None for any length.
        links: gets what they refer to.
        progress: called with objects done and objects in all.
        thin: its deltas may be against promised objects, which are then fetched. Not for a pack that is being fetched
            because it was promised itself: that would wait for itself.

    Returns:
        What it held.

    Raises:
        DamagedPack: it is cut short, or not a sound pack.
        ObjectTooLarge: one object is longer than that.
        ObjectMissing: a delta's base is neither in the pack nor here.
        StorageError: the disk is full or failing.
    """
    with naming_damage():
        reader = Reader(file, store.format_name)
        return _Storing(reader, store, writer, max_bytes, links, progress).run(thin=thin)


def take_blobs(
    file: IO[bytes], store: ObjectStore, writer: PackWriter, *, max_bytes: int | None = None
) -> int:
    """Store the blobs of a pack that may be cut short, as far as it is sound.

    Args:
        file, store, writer, max_bytes: as for ``take_pack``.

    Returns:
        How many were not here before.

    Raises:
        StorageError: the disk is full or failing.
    """
    with _stopping():
        reader = Reader(file, store.format_name)
        return _StoringBlobs(reader, store, writer, max_bytes).run_as_far_as_it_goes()
    return 0


def check_sizes(file: IO[bytes], hash_name: str, max_bytes: int) -> None:
    """Check that no object of a git pack is longer than that, storing none.

    Raises:
        DamagedPack, ObjectTooLarge: as ``take_pack``.
    """
    with naming_damage():
        reader = Reader(file, hash_name)
        for _ in range(reader.pack_header()):
            type_num, size = reader.entry_header()
            if type_num == _OFS_DELTA:
                reader.base_distance()
            elif type_num == _REF_DELTA:
                reader.read(reader.id_length)
            if type_num in (_OFS_DELTA, _REF_DELTA):
                reader.skip_delta(size, lambda made: check_size(made, max_bytes))
            else:
                check_size(size, max_bytes)
                for _piece in reader.inflate(size):
                    pass


@contextmanager
def naming_damage() -> Iterator[None]:
    try:
        yield
    except (zlib.error, EOFError, ValueError) as error:
        raise DamagedPack(f"the pack is damaged: {error}", hint="run it again") from error


def check_size(size: int, max_bytes: int | None, *, whole: bool = False) -> None:
    """Refuse an object that is too long, or too long to be held whole; raises ObjectTooLarge."""
    limit = max_bytes
    if whole and (limit is None or limit > _HELD_WHOLE):
        limit = _HELD_WHOLE
    if limit is not None and size > limit:
        raise ObjectTooLarge(
            f"the pack holds an object of {size} bytes, and {limit} is the limit",
            hint="heddle config set fetch.max_object_size N" if limit == max_bytes else None,
        )


@dataclass(frozen=True, slots=True)
class Taken:
    """What a pack held; iterates over the binary ids, in the order of the pack.

    Attributes:
        count: the number of objects.
    """

    count: int
    _ids: bytes
    _id_length: int

    def __iter__(self) -> Iterator[bytes]:
        length = self._id_length
        return (self._ids[at : at + length] for at in range(0, len(self._ids), length))


class _Delta(NamedTuple):
    """An object that is said by its difference from another.

    Attributes:
        number: its place in the pack.
        start: where its compressed bytes begin in the file.
        size: the length of the difference.
        content: the difference itself, if it is short: it need not be inflated twice.
    """

    number: int
    start: int
    size: int
    content: bytes | None


class Taking(ABC):
    """One pack being taken in: what becomes of its objects is the subclass's to say."""

    def __init__(
        self,
        reader: Reader,
        id_length: int,
        max_bytes: int | None = None,
        links: Links | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._reader = reader
        self._limit = max_bytes
        self._links = links
        self._progress = progress
        self._length = id_length
        self._offsets = array("Q")
        self._ids = bytearray()
        self._by_number: defaultdict[int, list[_Delta]] = defaultdict(list)
        self._by_id: defaultdict[bytes, list[_Delta]] = defaultdict(list)
        self._room = _DELTAS_KEPT
        self._done = 0
        self._count = 0

    @abstractmethod
    def _take(self, number: int, type_num: int, content: bytes) -> bytes:
        """Take an object; returns its binary id."""

    @abstractmethod
    def _take_large(self, number: int, size: int, pieces: Iterator[bytes]) -> bytes:
        """Take a large blob of so many bytes; returns its binary id."""

    @abstractmethod
    def _bases(self) -> Iterator[tuple[int | None, bytes]]:
        """Of the objects that deltas name by their ids, those that can be had now; with their places, if known."""

    @abstractmethod
    def _base(self, number: int | None, raw_id: bytes) -> tuple[int, bytes]:
        """Type number and content of an object; ``number``: its place in the pack, where it is known to have one."""

    def _run(self) -> None:
        """Take every object but those whose deltas have bases that can't be had now."""
        self._count = self._reader.pack_header()
        for number in range(self._count):
            self._take_entry(number)
        self._reader.check_end()
        self._apply_by_number()
        self._apply_by_id()

    def _taken(self) -> Taken:
        """What was taken.

        Raises:
            ObjectMissing: a delta has a base that is not to be had.
            ValueError: deltas have each other as bases.
        """
        if self._by_id:
            missing = next(iter(self._by_id)).hex()
            raise ObjectMissing(
                f"the pack has deltas against objects that are neither in it nor here: {missing}"
            )
        if self._by_number:
            raise ValueError("deltas against each other")
        return Taken(self._count, bytes(self._ids), self._length)

    def _take_entry(self, number: int) -> None:
        reader = self._reader
        start = reader.offset
        type_num, size = reader.entry_header()
        self._offsets.append(start)
        self._ids += bytes(self._length)
        if type_num == _OFS_DELTA:
            base = self._number_at(start - reader.base_distance())
            self._by_number[base].append(self._skip_delta(number, size))
        elif type_num == _REF_DELTA:
            base_id = reader.read(self._length)
            self._by_id[base_id].append(self._skip_delta(number, size))
        elif type_num in _TYPES:
            check_size(size, self._limit, whole=type_num != BLOB)
            self._note(number, self._take_whole(number, type_num, size))
        else:
            raise ValueError(f"an object of type {type_num}")

    def _number_at(self, offset: int) -> int:
        number = bisect_left(self._offsets, offset)
        if number >= len(self._offsets) or self._offsets[number] != offset:
            raise ValueError("a delta against what is no object")
        return number

    def _skip_delta(self, number: int, size: int) -> _Delta:
        """Go to the end of a delta; one that is not kept is read again when its base is known."""
        start = self._reader.offset
        if size > _SHORT_DELTA:
            check = partial(check_size, max_bytes=self._limit, whole=True)
            self._reader.skip_delta(size, check)
            return _Delta(number, start, size, None)
        content = self._reader.whole(size)
        check_size(Delta(content[:_DELTA_HEAD]).size, self._limit, whole=True)
        if size > self._room:
            return _Delta(number, start, size, None)
        self._room -= size
        return _Delta(number, start, size, content)

    def _take_whole(self, number: int, type_num: int, size: int) -> bytes:
        if type_num == BLOB and size > WHOLE_LIMIT:
            return self._take_large(number, size, self._reader.inflate(size))
        return self._followed(number, type_num, self._reader.whole(size))

    def _followed(self, number: int, type_num: int, content: bytes) -> bytes:
        if self._links is not None:
            self._links.follow(type_num, content)
        return self._take(number, type_num, content)

    def _note(self, number: int, raw_id: bytes) -> None:
        at = number * self._length
        self._ids[at : at + self._length] = raw_id
        self._done += 1
        if self._progress is not None and self._done % _REPORT_EVERY == 0:
            self._progress(self._done, self._count)

    def _id(self, number: int) -> bytes:
        at = number * self._length
        return bytes(self._ids[at : at + self._length])

    # Deltas: each is applied once, its base first; a base that is a delta's result is held while it is needed.

    def _apply_by_number(self) -> None:
        for number in sorted(self._by_number):
            raw_id = self._id(number)
            if any(raw_id):  # else its own delta comes first
                self._apply_from(number, raw_id)

    def _apply_by_id(self) -> None:
        for number, raw_id in self._bases():
            self._apply_from(number, raw_id)

    def _waiting(self, number: int | None, raw_id: bytes) -> list[_Delta]:
        """The deltas against an object."""
        found = [] if number is None else self._by_number.pop(number, [])
        return found + self._by_id.pop(raw_id, [])

    def _apply_from(self, number: int | None, raw_id: bytes) -> None:
        deltas = self._waiting(number, raw_id)
        if not deltas:
            return
        kind, content = self._base(number, raw_id)
        way = [(content, deltas, 1)]
        while way:
            content, deltas, depth = way[-1]
            delta = deltas.pop()
            if not deltas:
                way.pop()
            made = apply_delta(content, self._content(delta))
            raw_id = self._followed(delta.number, kind, made)
            self._note(delta.number, raw_id)
            if below := self._waiting(delta.number, raw_id):
                if depth == LONGEST_CHAIN:
                    raise ValueError("a chain of deltas that is too long")
                way.append((made, below, depth + 1))

    def _content(self, delta: _Delta) -> bytes:
        if delta.content is not None:
            return delta.content
        self._reader.seek(delta.start, delta.size)
        return self._reader.whole(delta.size)


class _Storing(Taking):
    """The objects of a pack being stored one by one."""

    def __init__(
        self,
        reader: Reader,
        store: ObjectStore,
        writer: PackWriter,
        max_bytes: int | None,
        links: Links | None = None,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(reader, store.id_length, max_bytes, links, progress)
        self._store = store
        self._writer = writer

    def run(self, *, thin: bool) -> Taken:
        self._run()
        if self._by_id and thin:
            self._store.fetch(list(self._by_id))
            self._apply_by_id()
        return self._taken()

    def _take(self, number: int, type_num: int, content: bytes) -> bytes:
        return to_raw(self._writer.add(type_num, content), self._length)

    def _take_large(self, number: int, size: int, pieces: Iterator[bytes]) -> bytes:
        return to_raw(self._writer.add_blob_from(_Pieces(pieces).read, size), self._length)

    def _bases(self) -> Iterator[tuple[int | None, bytes]]:
        for raw_id in list(self._by_id):
            if raw_id in self._writer or raw_id in self._store:
                yield None, raw_id

    def _base(self, number: int | None, raw_id: bytes) -> tuple[int, bytes]:
        return (self._writer if raw_id in self._writer else self._store).get_raw(raw_id)


class _StoringBlobs(_Storing):
    """The blobs of a pack being stored, as far as it goes; what else is in it is passed over."""

    _new = 0

    def run_as_far_as_it_goes(self) -> int:
        """Returns how many blobs were not here before."""
        with _stopping():
            self._count = self._reader.pack_header()
            for number in range(self._count):
                self._take_entry(number)
        with _stopping():
            self._apply_by_number()
            self._apply_by_id()
        return self._new

    def _take_whole(self, number: int, type_num: int, size: int) -> bytes:
        if type_num == BLOB:
            return super()._take_whole(number, type_num, size)
        for _piece in self._reader.inflate(size):
            pass
        return bytes(self._length)

    def _note(self, number: int, raw_id: bytes) -> None:
        super()._note(number, raw_id)
        self._new += any(raw_id) and not self._store.contains(raw_id)

    def _apply_from(self, number: int | None, raw_id: bytes) -> None:
        source = self._writer if raw_id in self._writer else self._store
        if source.kind(raw_id) == BLOB:
            super()._apply_from(number, raw_id)


def _stopping() -> AbstractContextManager[None]:
    """End the block where a pack is not sound any more."""
    return suppress(zlib.error, EOFError, ValueError, ObjectTooLarge)


class _Pieces:
    """Pieces of bytes, read as a file is."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes, at least one before the end."""
        if not self._rest:
            self._rest = memoryview(next(self._pieces, b""))
        piece, self._rest = self._rest[:size], self._rest[size:]
        return bytes(piece)


class Reader:
    """The bytes of a pack file, hashed as they are first read.

    Attributes:
        id_length: bytes of an id.
    """

    def __init__(self, file: IO[bytes], hash_name: str) -> None:
        self._file = file
        self._hash = new_hash(hash_name)
        file.seek(0, 2)
        self.id_length = self._hash.digest_size
        self._unhashed = file.tell() - self.id_length
        file.seek(0)
        self._start = 0  # offset of the buffer
        self._buffer = b""
        self._at = 0
        if self._unhashed < 12:
            raise EOFError("it ends too early")

    @property
    def offset(self) -> int:
        """Of the next byte."""
        return self._start + self._at

    def _have(self, size: int) -> None:
        """Have so many bytes in the buffer, or all that are left."""
        while len(self._buffer) - self._at < size and (piece := self._file.read(_CHUNK)):
            self._start += self._at
            self._buffer, self._at = self._buffer[self._at :] + piece, 0
            if self._unhashed > 0:
                self._hash.update(piece[: self._unhashed])
                self._unhashed -= len(piece)

    def read(self, size: int) -> bytes:
        """Exactly so many bytes."""
        self._have(size)
        piece = self._buffer[self._at : self._at + size]
        self._at += len(piece)
        if len(piece) < size:
            raise EOFError("it ends too early")
        return piece

    def seek(self, offset: int, size: int) -> None:
        """Go to an offset; so many bytes are going to be read there."""
        self._file.seek(offset)
        self._start, self._at = offset, 0
        self._buffer = self._file.read(min(size + _STORED_MORE, _CHUNK))

    def pack_header(self) -> int:
        """How many objects the pack says that it holds."""
        head = self.read(12)
        version, count = (int.from_bytes(head[at : at + 4], "big") for at in (4, 8))
        if head[:4] != b"PACK" or version not in (2, 3):
            raise ValueError("it does not begin as a pack does")
        return count

    def entry_header(self) -> tuple[int, int]:
        """An object's type and length, without which no memory is taken for it."""
        if len(self._buffer) - self._at < _LONGEST_NUMBER:
            self._have(_LONGEST_NUMBER)
        data, at = self._buffer, self._at
        try:
            byte = data[at]
            type_num, size, shift = byte >> 4 & 7, byte & 15, 4
            while byte & 0x80:
                at += 1
                byte = data[at]
                size |= (byte & 0x7F) << shift
                shift += 7
                if shift > _LONGEST_LENGTH:
                    raise ValueError("an object without a length")
        except IndexError:
            raise EOFError("it ends too early") from None
        self._at = at + 1
        return type_num, size

    def base_distance(self) -> int:
        """How far before its delta a base begins."""
        self._have(_LONGEST_NUMBER)
        try:
            distance, self._at = offset_varint(self._buffer, self._at)
        except IndexError:
            raise EOFError("it ends too early") from None
        return distance

    def whole(self, size: int) -> bytes:
        """One compressed stream, which has to be exactly so long."""
        if size <= _CHUNK:
            enough = size + (size >> 9) + _STORED_MORE
            if len(self._buffer) - self._at < enough:
                self._have(enough)
            stream = zlib.decompressobj()
            data = self._buffer[self._at : self._at + enough]
            content = stream.decompress(data, size + 1)
            if stream.eof and len(content) == size:
                self._at += len(data) - len(stream.unused_data)
                return content
        return b"".join(self.inflate(size))

    def inflate(self, size: int) -> Iterator[bytes]:
        """The pieces of one compressed stream, which has to be exactly so long."""
        stream = zlib.decompressobj()
        left, enough = size, size + (size >> 9) + _STORED_MORE
        while not stream.eof:
            # No more than it can need: zlib copies what is left over, which is the next objects'.
            data = stream.unconsumed_tail or self._next(enough)
            piece = stream.decompress(data, _CHUNK)
            rest = stream.unused_data if stream.eof else stream.unconsumed_tail
            self._at += len(data) - len(rest)
            left -= len(piece)
            if left < 0:
                raise ValueError("an object is longer than it was said to be")
            if piece:
                yield piece
        if left:
            raise ValueError("an object is shorter than it was said to be")

    def _next(self, size: int) -> bytes:
        """Up to so many bytes, at least one, which stay the next ones."""
        self._have(1)
        if self._at == len(self._buffer):
            raise EOFError("it ends too early")
        return self._buffer[self._at : self._at + size]

    def skip_delta(self, size: int, check: Callable[[int], None]) -> None:
        """Go to the end of a delta.

        Args:
            size: its length.
            check: called with the length of what it makes, once that is known.
        """
        head: bytes | None = b""
        for piece in self.inflate(size):
            if head is not None:  # the first pieces may be of a byte each
                head += piece[:_DELTA_HEAD]
                if len(head) >= min(size, _DELTA_HEAD):
                    check(Delta(head).size)
                    head = None

    def check_end(self) -> None:
        """Check that nothing but the right checksum follows."""
        if self.read(self.id_length) != self._hash.digest():
            raise ValueError("its checksum is not that of its content")
        if self._at != len(self._buffer) or self._file.read(1):
            raise ValueError("something follows its end")
