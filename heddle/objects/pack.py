"""Packs: reading one object out of a pack file, checked, and writing a new pack.

Owns compression, the order in which a pack becomes durable and visible, and every check on bytes that come from a
pack. Which pack holds an object is ``store.py``'s question; the field layouts are ``layout.py``'s.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from heddle import faults
from heddle.atomic import fsync_directory
from heddle.errors import Busy, StorageError
from heddle.objects.index import encode_index
from heddle.objects.layout import (
    BLOB,
    CHUNK_SIZE,
    CHUNKED,
    DELTA,
    DELTA_BASE,
    DELTA_DEPTH,
    FRAME_SIZE,
    PACK_HEADER_SIZE,
    PACK_TRAILER_SIZE,
    TREE,
    TYPE_NAMES,
    WHOLE,
    WHOLE_LIMIT,
    Entry,
    EntryHeader,
    corrupt,
    decode_chunk,
    decode_pack_trailer,
    encode_chunk,
    encode_pack_header,
    encode_pack_trailer,
    frame_count,
    frame_length,
    to_hex,
    to_raw,
)

if TYPE_CHECKING:
    from hashlib import _Hash

    from dulwich.objects import ObjectID

LEVEL = 3
"""zstd's compression level; see docs/format.md for what 1 to 4 measured."""
BATCH_BYTES = 2 << 20
"""Content is compressed and written in batches of about this many bytes."""
QUEUED_BATCHES = 3
"""Batches that may wait for the compressing thread before ``add`` waits too."""
TEMPORARY_PREFIX = ".tmp-"


class ChangedWhileRead(Busy):
    """A file did not have the size it was said to have while it was being stored."""

    kind = "changed_while_read"


# Reading


class PackFile:
    """One pack file, opened for reading at offsets; closed when nothing refers to it any more.

    Safe for several threads: it has no position and never changes.

    Raises:
        FileNotFoundError: the pack is gone, for instance because gc merged it into another.
    """

    def __init__(self, path: Path, id_length: int) -> None:
        self.path = path
        self._fd = -1
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._header = EntryHeader(id_length)

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    @property
    def size(self) -> int:
        """Length of the file, in bytes."""
        return os.fstat(self._fd).st_size

    def get(self, entry: Entry) -> bytes:
        """Return an object's content, checked.

        Raises:
            CorruptObject: the stored bytes are not what was written.
        """
        if entry.kind == CHUNKED:
            return b"".join(self.frames(entry))
        return self._get_whole(entry, DELTA_DEPTH)

    def _get_whole(self, entry: Entry, depth: int) -> bytes:
        data = self._pread(self._header.size + entry.stored_size, entry.offset, entry)
        self._check_header(data, entry)
        if entry.kind == DELTA:
            return self._get_delta(entry, data[self._header.size :], depth)
        return self._decompress(memoryview(data)[self._header.size :], entry.raw_size, entry)

    def _get_delta(self, entry: Entry, payload: bytes, depth: int) -> bytes:
        """Decode an entry stored against the bytes of an earlier one of the same pack."""
        if len(payload) < DELTA_BASE.size or depth == 0:
            raise self.corrupt(entry, "its chain of bases is broken or too long")
        (base_offset,) = DELTA_BASE.unpack_from(payload)
        head = self._pread(self._header.size, base_offset, entry)
        base = self._header.decode(head, base_offset)
        if base is None or base.kind == CHUNKED or base_offset >= entry.offset:
            raise self.corrupt(entry, "its base is not an earlier entry")
        dictionary = self._get_whole(base, depth - 1)
        frame = memoryview(payload)[DELTA_BASE.size :]
        return self._decompress(frame, entry.raw_size, entry, dictionary)

    def contents(self, entry: Entry) -> Iterator[bytes]:
        """Yield an object's content, in pieces when it is chunked."""
        if entry.kind == CHUNKED:
            yield from self.frames(entry)
        else:
            yield self._get_whole(entry, DELTA_DEPTH)

    def frames(self, entry: Entry, first: int = 0) -> Iterator[bytes]:
        """Yield the content of a chunked entry's frames, from frame ``first`` on."""
        self._check_header(self._pread(self._header.size, entry.offset, entry), entry)
        for number in range(first, frame_count(entry.raw_size)):
            yield self._frame(entry, number)

    def _frame(self, entry: Entry, number: int) -> bytes:
        payload_at = entry.offset + self._header.size
        table_size = frame_count(entry.raw_size) * CHUNK_SIZE
        table_at = payload_at + entry.stored_size - table_size
        row = self._pread(CHUNK_SIZE, table_at + number * CHUNK_SIZE, entry)
        place = decode_chunk(entry.id, number, row)
        if place is None or sum(place) > entry.stored_size - table_size:
            raise self.corrupt(entry, f"the place of frame {number} is wrong")
        start, length = place
        data = self._pread(length, payload_at + start, entry)
        return self._decompress(data, frame_length(entry.raw_size, number), entry)

    def read_at(self, entry: Entry, offset: int, size: int) -> bytes:
        """Return up to ``size`` bytes of content from ``offset``; short at the end of the object."""
        end = min(offset + size, entry.raw_size)
        if offset >= end:
            return b""
        if entry.kind != CHUNKED:
            return self.get(entry)[offset:end]
        first = offset // FRAME_SIZE
        parts = []
        have = first * FRAME_SIZE
        for frame in self.frames(entry, first):
            parts.append(frame[max(0, offset - have) : end - have])
            have += len(frame)
            if have >= end:
                break
        return b"".join(parts)

    def _pread(self, size: int, offset: int, entry: Entry) -> bytes:
        """Read exactly ``size`` bytes; the file's size bounds what is allocated."""
        if offset + size > self.size:
            raise self.corrupt(entry, "the pack ends before it")
        try:
            data = os.pread(self._fd, size, offset)
        except OSError as error:
            raise StorageError(f"reading {self.path}: {error.strerror}") from error
        while len(data) < size:
            more = os.pread(self._fd, size - len(data), offset + len(data))
            if not more:
                raise self.corrupt(entry, "the pack ends before it")
            data += more
        return data

    def _check_header(self, data: bytes, entry: Entry) -> None:
        found = self._header.decode(data, entry.offset)
        if found != entry:
            raise self.corrupt(entry, "another object or none is where the index says it is")

    def _decompress(
        self, frame: bytes | memoryview, size: int, entry: Entry, dictionary: bytes | None = None
    ) -> bytes:
        import zstandard

        try:
            if zstandard.frame_content_size(frame) != size:
                raise self.corrupt(entry, "its length is not the recorded one")
            content: bytes = _decompressor(dictionary).decompress(frame, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise self.corrupt(entry, str(error)) from error
        if len(content) != size:
            raise self.corrupt(entry, "its length is not the recorded one")
        return content

    def corrupt(self, entry: Entry, why: str) -> Exception:
        return corrupt(str(self.path), entry.id, why)

    def scan(self) -> Iterator[Entry]:
        """Find every entry from the pack alone, skipping over what is damaged.

        Yields:
            Each entry whose header is sound and whose payload lies within the file, in order of offsets.
        """
        size = self.size
        offset = PACK_HEADER_SIZE
        while offset + self._header.size <= size:
            entry = self._header.decode(os.pread(self._fd, self._header.size, offset), offset)
            if entry is not None and self._end(entry) <= size:
                yield entry
                offset = self._end(entry)
            elif (found := self._resync(offset + 1, size)) is not None:
                offset = found
            else:
                return

    def _end(self, entry: Entry) -> int:
        return entry.offset + self._header.size + entry.stored_size

    def _resync(self, offset: int, size: int) -> int | None:
        """The next offset at which a sound entry header begins."""
        step = 1 << 20
        while offset + self._header.size <= size:
            window = os.pread(self._fd, step + self._header.size, offset)
            at = window.find(b"\xf5OBJ")
            while 0 <= at < step:
                if self._header.decode(window, offset + at, at=at) is not None:
                    return offset + at
                at = window.find(b"\xf5OBJ", at + 1)
            offset += step
        return None

    def is_whole(self) -> bool:
        """Say whether the pack begins and ends as a finished pack does."""
        size = self.size
        if size < PACK_HEADER_SIZE + PACK_TRAILER_SIZE:
            return False
        head = os.pread(self._fd, PACK_HEADER_SIZE, 0)
        tail = os.pread(self._fd, PACK_TRAILER_SIZE, size - PACK_TRAILER_SIZE)
        id_length = self._header.size - 28
        return head == encode_pack_header(id_length) and decode_pack_trailer(tail) is not None

    def digest(self) -> bytes:
        """SHA-256 of the whole file: a finished pack's name."""
        from hashlib import sha256

        digest = sha256()
        offset = 0
        while data := os.pread(self._fd, FRAME_SIZE, offset):
            digest.update(data)
            offset += len(data)
        return digest.digest()


_local = threading.local()


def _decompressor(dictionary: bytes | None) -> Any:
    """This thread's decompressor (zstd contexts must not be shared), or one for a dictionary."""
    import zstandard

    if dictionary is not None:
        raw_content = zstandard.ZstdCompressionDict(
            dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT
        )
        return zstandard.ZstdDecompressor(dict_data=raw_content)
    try:
        return _local.decompressor
    except AttributeError:
        _local.decompressor = zstandard.ZstdDecompressor()
        return _local.decompressor


# Writing


class Known(Protocol):
    """What a writer asks of its store."""

    path: Path
    id_length: int
    format_name: str

    def holds(self, raw_id: bytes) -> bool: ...

    def refresh(self) -> None: ...


class _Pending(NamedTuple):
    """An object that waits to be compressed, or a chunked one that waits to be copied."""

    id: bytes
    type_num: int
    content: bytes


class PackWriter:
    """Collects objects and makes them one durable pack; a context manager, safe for many threads.

    ``add`` hashes in the calling thread; compressing and writing happen in batches in one thread of the writer's
    own, which is started with the first full batch, so a small capture never starts it. Nothing is visible to
    anybody before ``commit``; leaving the block without it leaves no file.

    Args:
        store: where the pack goes, and where objects are looked up so that none is stored twice.

    Attributes:
        count: objects added that were new.
        raw_bytes: their content.
        stored_bytes: what was written for them so far.
    """

    def __init__(self, store: Known) -> None:
        self._store = store
        self._header = EntryHeader(store.id_length)
        self._changed = threading.Condition()
        self._fresh: dict[bytes, _Pending] = {}
        self._entries: dict[bytes, Entry] = {}
        self._batch: list[_Pending] = []
        self._batch_bytes = 0
        self._queue: deque[list[_Pending]] = deque()
        self._worker: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._closed = False
        self._output: _PackOutput | None = None
        self._output_lock = threading.Lock()
        self.count = 0
        self.raw_bytes = 0

    @property
    def stored_bytes(self) -> int:
        return self._output.size if self._output is not None else 0

    def __enter__(self) -> PackWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.abort()

    # Adding

    def add(self, type_num: int, content: bytes) -> ObjectID:
        """Store an object unless the repository has it.

        Args:
            type_num: git's type number.
            content: the object's bytes, without git's header.

        Returns:
            The object's id, in hex.

        Raises:
            StorageError: the disk is full or failing.
        """
        digest = self._new_hash(type_num, len(content))
        digest.update(content)
        raw_id: bytes = digest.digest()
        if not self._has(raw_id):
            if len(content) > WHOLE_LIMIT:
                self._add_chunked(raw_id, type_num, _slices(content))
            else:
                self._enqueue(_Pending(raw_id, type_num, content))
        return to_hex(raw_id)

    def add_blob(self, content: bytes) -> ObjectID:
        """Store a file's bytes; see ``add``."""
        return self.add(BLOB, content)

    def add_blob_from(self, read: Callable[[int], bytes], size: int) -> ObjectID:
        """Store a file's bytes as they are read, never holding a large file whole.

        Args:
            read: called with a number of bytes; returns at most so many, and b"" at the end.
            size: the file's length, in bytes.

        Raises:
            ChangedWhileRead: ``read`` gave fewer or more bytes; nothing was stored.
            StorageError: the disk is full or failing.
        """
        if size <= WHOLE_LIMIT:
            content = _read_exactly(read, size)
            _check_end(read)
            return self.add(BLOB, content)
        digest = self._new_hash(BLOB, size)
        with _SideFile(self._directory) as side:
            side.write(_hashed(_read_frames(read, size), digest))
            _check_end(read)
            raw_id: bytes = digest.digest()
            if not self._has(raw_id):
                self._append_chunked(raw_id, BLOB, size, side)
        return to_hex(raw_id)

    def add_tree(self, entries: Iterable[tuple[bytes, int, bytes]]) -> ObjectID:
        """Store a tree.

        Args:
            entries: (name, mode, hex id) in any order.

        Raises:
            ValueError: a name is empty, holds "/" or NUL, or comes twice.
        """
        return self.add(TREE, encode_tree(entries))

    def _add_chunked(self, raw_id: bytes, type_num: int, frames: Iterable[bytes]) -> None:
        with _SideFile(self._directory) as side:
            side.write(frames)
            self._append_chunked(raw_id, type_num, side.raw_size, side)

    def _append_chunked(self, raw_id: bytes, type_num: int, size: int, side: _SideFile) -> None:
        with self._output_lock:
            if raw_id in self._entries:
                return
            entry = self._open_output().append_chunked(raw_id, type_num, size, side)
        with self._changed:
            self._entries[raw_id] = entry
            self.count += 1
            self.raw_bytes += size

    def _enqueue(self, pending: _Pending) -> None:
        with self._changed:
            self._check_usable()
            if pending.id in self._fresh or pending.id in self._entries:
                return
            self._fresh[pending.id] = pending
            self._batch.append(pending)
            self._batch_bytes += len(pending.content)
            self.count += 1
            self.raw_bytes += len(pending.content)
            if self._batch_bytes >= BATCH_BYTES:
                self._hand_over()

    def _hand_over(self) -> None:
        """Give the batch to the compressing thread; waits while that is too far behind."""
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        if self._worker is None:
            self._worker = threading.Thread(target=self._work, name="heddle-pack", daemon=True)
            self._worker.start()
        self._queue.append(batch)
        self._changed.notify_all()
        while len(self._queue) > QUEUED_BATCHES and not self._closed:
            self._changed.wait()
        self._check_usable()

    def _check_usable(self) -> None:
        if self._failure is not None:
            raise self._as_error(self._failure)
        if self._closed:
            raise ValueError("this pack writer is closed")

    def _as_error(self, failure: BaseException) -> BaseException:
        if isinstance(failure, OSError):
            error = StorageError(f"writing to {self._directory}: {failure.strerror}")
            error.__cause__ = failure
            return error
        return failure

    # What this writer has so far

    def __contains__(self, object_id: bytes) -> bool:
        raw_id = to_raw(object_id, self._store.id_length)
        return raw_id in self._fresh or raw_id in self._entries

    def get_raw(self, object_id: bytes) -> tuple[int, bytes]:
        """Return (type number, content) of an object that this writer has; KeyError otherwise."""
        raw_id = to_raw(object_id, self._store.id_length)
        with self._changed:
            pending = self._fresh.get(raw_id)
            if pending is not None:
                return pending.type_num, pending.content
            entry = self._entries[raw_id]
        assert self._output is not None
        return entry.type_num, self._output.reader().get(entry)

    def _has(self, raw_id: bytes) -> bool:
        return raw_id in self._fresh or raw_id in self._entries or self._store.holds(raw_id)

    # Storing

    def _work(self) -> None:
        """Compress and write batches in their order, until the writer is closed."""
        while True:
            with self._changed:
                while not self._queue:
                    if self._closed:
                        return
                    self._changed.wait()
                batch = self._queue[0]
            try:
                self._write(batch)
            except BaseException as error:
                self._fail(error)
                return
            with self._changed:
                if self._queue:
                    self._queue.popleft()
                self._changed.notify_all()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._failure = error
            self._queue.clear()
            self._changed.notify_all()

    def _write(self, batch: list[_Pending]) -> None:
        frames = compress([pending.content for pending in batch])
        with self._output_lock:
            entries = self._open_output().append(batch, frames)
        with self._changed:
            for entry in entries:
                self._entries[entry.id] = entry
                del self._fresh[entry.id]

    def _drain(self) -> None:
        """Wait until all that was added is in the file."""
        with self._changed:
            self._check_usable()
            batch, self._batch, self._batch_bytes = self._batch, [], 0
            while self._queue:
                self._changed.wait()
            self._check_usable()
        if batch:
            try:
                self._write(batch)
            except OSError as error:
                self._fail(error)
                raise self._as_error(error) from error

    def _open_output(self) -> _PackOutput:
        if self._output is None:
            self._output = _PackOutput(self._directory, self._store.id_length)
        return self._output

    @property
    def _directory(self) -> Path:
        return self._store.path / "packs"

    def _new_hash(self, type_num: int, size: int) -> _Hash:
        return new_hash(self._store.format_name, type_num, size)

    # Finishing

    def sync(self) -> None:
        """Push what was added so far to disk without publishing it, so that ``commit`` is short."""
        self._drain()
        if self._output is not None:
            try:
                self._output.sync()
            except OSError as error:
                raise self._as_error(error) from error

    def commit(self) -> str | None:
        """Make the objects durable and visible.

        The index's rename is the commit point: a crash before it leaves a temporary file or a pack that nobody
        sees, a crash after it the whole pack.

        Returns:
            The pack's name (its SHA-256 in hex), or None when nothing was added.

        Raises:
            StorageError: the disk is full or failing; nothing was published.
        """
        self._drain()
        if self._output is None:
            self.abort()
            return None
        try:
            name = self._output.publish(self._entries.values())
        except OSError as error:
            raise self._as_error(error) from error
        self.abort()
        self._store.refresh()
        return name

    def abort(self) -> None:
        """Drop what was not committed; the writer can't be used any more."""
        with self._changed:
            self._closed = True
            self._queue.clear()
            self._changed.notify_all()
        if self._worker is not None:
            self._worker.join()
            self._worker = None
        if self._output is not None:
            self._output.close()
            self._output = None


class _PackOutput:
    """The temporary file that becomes a pack; not safe for several threads."""

    def __init__(self, directory: Path, id_length: int) -> None:
        from hashlib import sha256

        self._directory = directory
        self._id_length = id_length
        self._header = EntryHeader(id_length)
        self._temporary: Path | None = directory / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
        self._fd = _create(self._temporary)
        self._reader: PackFile | None = None
        self._digest = sha256()
        self._entries = 0
        self.size = 0
        self._put(encode_pack_header(id_length))

    def _put(self, data: bytes) -> None:
        self._digest.update(data)
        _write_all(self._fd, data)
        self.size += len(data)

    def append(self, batch: list[_Pending], frames: list[Any]) -> list[Entry]:
        """Write compressed objects in one go."""
        entries = []
        parts: list[Any] = []
        offset = self.size
        for pending, frame in zip(batch, frames, strict=True):
            size = len(frame)
            entry = Entry(pending.id, offset, len(pending.content), size, WHOLE, pending.type_num)
            parts += (self._header.encode(entry), frame)
            offset += self._header.size + size
            entries.append(entry)
        self._put(b"".join(parts))
        self._entries += len(entries)
        faults.reach("pack.entries-written")
        return entries

    def append_chunked(self, raw_id: bytes, type_num: int, raw_size: int, side: _SideFile) -> Entry:
        """Copy the frames of one large object and their table."""
        table = side.table(raw_id)
        entry = Entry(raw_id, self.size, raw_size, side.size + len(table), CHUNKED, type_num)
        self._put(self._header.encode(entry))
        for data in side.read():
            self._put(data)
        self._put(table)
        self._entries += 1
        faults.reach("pack.chunks-written")
        return entry

    def reader(self) -> PackFile:
        if self._reader is None:
            assert self._temporary is not None
            self._reader = PackFile(self._temporary, self._id_length)
        return self._reader

    def sync(self) -> None:
        os.fdatasync(self._fd)

    def publish(self, entries: Iterable[Entry]) -> str:
        """Pack fsync, index fsync, pack rename, index rename, directory fsync."""
        assert self._temporary is not None
        self._put(encode_pack_trailer(self._entries))
        os.fsync(self._fd)
        faults.reach("pack.synced")
        digest = self._digest.digest()
        index = encode_index(
            entries, id_length=self._id_length, pack_size=self.size, pack_digest=digest
        )
        name = digest.hex()
        index_temporary = self._directory / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
        try:
            write_synced(index_temporary, index)
            faults.reach("pack.index-synced")
            os.rename(self._temporary, self._directory / f"{name}.pack")
            self._temporary = None
            faults.reach("pack.renamed")
            os.rename(index_temporary, self._directory / f"{name}.idx")
        except BaseException:
            index_temporary.unlink(missing_ok=True)
            raise
        faults.reach("pack.index-renamed")
        fsync_directory(self._directory)
        faults.reach("pack.published")
        return name

    def close(self) -> None:
        os.close(self._fd)
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)


class _SideFile:
    """The compressed frames of one large object, until its id is known; has no name on disk."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
        self._places: list[tuple[int, int]] = []
        self.raw_size = 0
        self.size = 0

    def __enter__(self) -> _SideFile:
        self._fd = _create(self._path)
        self._path.unlink()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def write(self, frames: Iterable[bytes]) -> None:
        """Compress and keep pieces of FRAME_SIZE bytes, the last of which may be shorter."""
        group: list[bytes] = []
        for frame in frames:
            group.append(frame)
            if len(group) * FRAME_SIZE >= 2 * BATCH_BYTES:
                self._write_group(group)
                group = []
        self._write_group(group)

    def _write_group(self, group: list[bytes]) -> None:
        compressed = compress(group)
        for frame in compressed:
            self._places.append((self.size, len(frame)))
            self.size += len(frame)
        self.raw_size += sum(map(len, group))
        _write_all(self._fd, b"".join(compressed))

    def table(self, raw_id: bytes) -> bytes:
        return b"".join(
            encode_chunk(raw_id, number, *place) for number, place in enumerate(self._places)
        )

    def read(self) -> Iterator[bytes]:
        offset = 0
        while data := os.pread(self._fd, FRAME_SIZE, offset):
            yield data
            offset += len(data)


def compress(contents: list[bytes]) -> list[Any]:
    """Compress each into a zstd frame of its own, in parallel where there are processors for it.

    Returns:
        Buffers in the same order.
    """
    import zstandard

    compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True, write_content_size=True)
    if len(contents) < 2 or not all(contents):  # the bulk call refuses empty content
        return [compressor.compress(content) for content in contents]
    threads = min(len(contents), max(1, (os.cpu_count() or 2) - 1))
    many: Any = compressor.multi_compress_to_buffer
    return list(many(contents, threads=threads))


def new_hash(format_name: str, type_num: int, size: int) -> _Hash:
    """A hash that has taken in git's header for an object of ``size`` bytes."""
    import hashlib

    header = b"%s %d\0" % (TYPE_NAMES[type_num], size)
    return hashlib.new(format_name, header, usedforsecurity=False)


def encode_tree(entries: Iterable[tuple[bytes, int, bytes]]) -> bytes:
    """Git's form of a tree from (name, mode, hex id) in any order.

    Raises:
        ValueError: a name is empty, holds "/" or NUL, or comes twice.
    """
    ordered = sorted(entries, key=_git_order)
    names = {name for name, _, _ in ordered}
    if len(names) != len(ordered):
        raise ValueError("a name comes twice in a tree")
    for name in names:
        if not name or b"/" in name or b"\0" in name:
            raise ValueError(f"not a name in a tree: {name!r}")
    return b"".join(
        [
            b"%o %s\0%s" % (mode, name, bytes.fromhex(hex_id.decode()))
            for name, mode, hex_id in ordered
        ]
    )


def _git_order(entry: tuple[bytes, int, bytes]) -> bytes:
    name, mode, _ = entry
    return name + b"/" if mode & 0o170000 == 0o040000 else name


def write_synced(path: Path, data: bytes) -> None:
    """Write a new file and fsync it."""
    fd = _create(path)
    try:
        _write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)


def _create(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)


def _write_all(fd: int, data: bytes) -> None:
    written = os.write(fd, data)
    while written < len(data):
        written += os.write(fd, data[written:])


def _slices(content: bytes) -> Iterator[bytes]:
    return (content[at : at + FRAME_SIZE] for at in range(0, len(content), FRAME_SIZE))


def _hashed(pieces: Iterable[bytes], digest: _Hash) -> Iterator[bytes]:
    for piece in pieces:
        digest.update(piece)
        yield piece


def _read_frames(read: Callable[[int], bytes], size: int) -> Iterator[bytes]:
    for number in range(frame_count(size)):
        yield _read_exactly(read, frame_length(size, number))


def _read_exactly(read: Callable[[int], bytes], size: int) -> bytes:
    data = read(size)
    if len(data) == size:
        return data
    parts = [data]
    left = size - len(data)
    while left > 0 and data:
        data = read(left)
        parts.append(data)
        left -= len(data)
    if left:
        raise ChangedWhileRead("a file became shorter or longer while it was read")
    return b"".join(parts)


def _check_end(read: Callable[[int], bytes]) -> None:
    if read(1):
        raise ChangedWhileRead("a file became longer while it was read")
