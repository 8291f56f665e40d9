"""Writing a pack: many objects in, one durable and visible file out.

Owns what is stored (each object once), who compresses it and when it is published. The files themselves and their
write order are ``output.py``'s; reading a finished pack is ``packfile.py``'s.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Protocol

from heddle.errors import Busy
from heddle.objects.gitformat import BLOB, TREE, encode_tree, new_hash, to_hex, to_raw
from heddle.objects.layout import FRAME_SIZE, WHOLE_LIMIT, Entry, frame_count, frame_length
from heddle.objects.output import PackOutput, SideFile, compress, spare_processors

if TYPE_CHECKING:
    from hashlib import _Hash

    from dulwich.objects import ObjectID

    from heddle.objects.holding import Hold

    class Target(Protocol):
        """What a writer asks of the store that it writes for."""

        path: Path
        id_length: int

        def holds(self, raw_id: bytes) -> bool: ...

        def refresh(self) -> None: ...


BATCH_BYTES = 2 << 20
"""Content is compressed and written in batches of about this many bytes."""
QUEUED_BATCHES = 3
"""Batches that may wait for the compressing thread before ``add`` waits too."""


class ChangedWhileRead(Busy):
    """A file did not have the length it was said to have while it was being stored."""

    kind = "changed_while_read"


class _Pending(NamedTuple):
    """An object that is not written yet."""

    id: bytes
    type_num: int
    content: bytes


class PackWriter:
    """Collects objects and makes them one durable pack; a context manager, safe for many threads.

    ``add`` hashes in the calling thread; compressing and writing happen in batches in one thread of the writer's
    own, started with the first full batch, so that a small capture never starts it. Nobody sees anything before
    ``commit``; leaving the block without it leaves no file.

    Args:
        store: where the pack goes, and where objects are looked up so that none is stored twice.
        hold: keeps gc from removing what was found there; let go at the end of the block, so that a name that leads
            to the new objects is best given inside it.

    Attributes:
        count: objects added that were new.
        raw_bytes: the length of their content.
    """

    def __init__(self, store: Target, hold: Hold) -> None:
        self._store = store
        self._hold = hold
        self._id_length = store.id_length
        self._directory = store.path / "packs"
        self._changed = threading.Condition()  # guards what follows, and wakes whoever waits for it
        self._fresh: dict[bytes, _Pending] = {}
        self._entries: dict[bytes, Entry] = {}
        self._batch: list[_Pending] = []
        self._batch_bytes = 0
        self._queue: deque[list[_Pending]] = deque()
        self._worker: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._closed = False
        self._output: PackOutput | None = None
        self._output_lock = threading.Lock()  # guards the file; taken before _changed, never after
        self.count = 0
        self.raw_bytes = 0

    @property
    def stored_bytes(self) -> int:
        """Bytes written so far."""
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
        self._hold.release()

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
        digest = new_hash(self._id_length, type_num, len(content))
        digest.update(content)
        raw_id = digest.digest()
        if not self._has(raw_id):
            if len(content) > WHOLE_LIMIT:
                with SideFile(self._directory) as side:
                    side.write(_slices(content))
                    self._append_chunked(raw_id, type_num, side)
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
        digest = new_hash(self._id_length, BLOB, size)
        with SideFile(self._directory) as side:
            side.write(_hashed(_read_frames(read, size), digest))
            _check_end(read)
            raw_id = digest.digest()
            if not self._has(raw_id):
                self._append_chunked(raw_id, BLOB, side)
        return to_hex(raw_id)

    def add_tree(self, entries: Iterable[tuple[bytes, int, bytes]]) -> ObjectID:
        """Store a tree.

        Args:
            entries: (name, mode, hex id) in any order.

        Raises:
            ValueError: a name is empty, holds "/" or NUL, or comes twice; an id is not hex.
        """
        return self.add(TREE, encode_tree(entries))

    def _append_chunked(self, raw_id: bytes, type_num: int, side: SideFile) -> None:
        with self._output_lock:
            self._check_usable()
            if raw_id in self._entries:
                return
            try:
                entry = self._open_output().append_chunked(raw_id, type_num, side)
            except BaseException as error:
                self._fail(error)
                raise
            with self._changed:
                self._entries[raw_id] = entry
                self.count += 1
                self.raw_bytes += side.raw_size

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
        self._queue.append(self._batch)
        self._batch, self._batch_bytes = [], 0
        if self._worker is None:
            self._worker = threading.Thread(target=self._work, name="heddle-pack", daemon=True)
            self._worker.start()
        self._changed.notify_all()
        while len(self._queue) > QUEUED_BATCHES:
            self._changed.wait()
        self._check_usable()

    def _check_usable(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise ValueError("this pack writer is closed")

    # What this writer has so far

    def __contains__(self, object_id: bytes) -> bool:
        raw_id = to_raw(object_id, self._id_length)
        return raw_id in self._fresh or raw_id in self._entries

    def kind(self, object_id: bytes) -> int:
        """The type number of an object that this writer has; raises KeyError as ``get_raw``."""
        raw_id = to_raw(object_id, self._id_length)
        with self._changed:
            pending = self._fresh.get(raw_id)
            return self._entries[raw_id].type_num if pending is None else pending.type_num

    def get_raw(self, object_id: bytes) -> tuple[int, bytes]:
        """Return (type number, content) of an object that this writer has.

        Raises:
            KeyError: it has no such object; the store may.
        """
        raw_id = to_raw(object_id, self._id_length)
        with self._changed:
            pending = self._fresh.get(raw_id)
            if pending is not None:
                return pending.type_num, pending.content
            entry = self._entries[raw_id]
        with self._output_lock:
            return entry.type_num, self._open_output().get(entry)

    def _has(self, raw_id: bytes) -> bool:
        return raw_id in self._fresh or raw_id in self._entries or self._store.holds(raw_id)

    # Compressing and writing

    def _work(self) -> None:
        """Write batches in their order until the writer is closed; runs in a thread of its own."""
        while (batch := self._next_batch()) is not None:
            try:
                self._write(batch)
            except BaseException as error:  # whoever adds or commits next raises it
                self._fail(error)
                return
            with self._changed:
                if self._queue:
                    self._queue.popleft()
                self._changed.notify_all()

    def _next_batch(self) -> list[_Pending] | None:
        """Wait for a batch, which stays in the queue while it is worked on; None when all is over."""
        with self._changed:
            while not self._queue and not self._closed:
                self._changed.wait()
            return self._queue[0] if self._queue else None

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._failure = error
            self._queue.clear()
            self._changed.notify_all()

    def _write(self, batch: list[_Pending]) -> None:
        frames = compress([each.content for each in batch], threads=spare_processors())
        with self._output_lock:
            entries = self._open_output().append(
                [(each.id, each.type_num, len(each.content)) for each in batch], frames
            )
            with self._changed:
                for entry in entries:
                    self._entries[entry.id] = entry
                    del self._fresh[entry.id]

    def _open_output(self) -> PackOutput:
        if self._output is None:
            self._output = PackOutput(self._directory, self._id_length)
        return self._output

    def _drain(self) -> None:
        """Wait until all that was added is in the file."""
        with self._changed:
            while self._queue:
                self._changed.wait()
            self._check_usable()
            batch, self._batch, self._batch_bytes = self._batch, [], 0
        if batch:
            try:
                self._write(batch)
            except BaseException as error:
                self._fail(error)
                raise

    # Finishing

    def sync(self) -> None:
        """Push what was added so far to disk without publishing it, so that ``commit`` is short.

        Raises:
            StorageError: the disk is full or failing.
        """
        self._drain()
        output = self._output
        if output is not None:
            output.sync()

    def commit(self) -> str | None:
        """Make the objects durable and visible; the writer can't be used afterwards.

        A crash before the index's rename, the commit point, leaves a temporary file or a pack that nobody sees; a
        crash after it leaves the whole pack.

        Returns:
            The pack's name (its SHA-256 in hex), or None when nothing was added.

        Raises:
            StorageError: the disk is full or failing; nothing was published.
        """
        self._drain()
        name = None
        if self._output is not None:
            try:
                with self._output_lock:
                    name = self._output.publish(self._entries.values())
            except BaseException as error:
                self._fail(error)
                raise
        self.abort()
        if name is not None:
            self._store.refresh()
        return name

    def abort(self) -> None:
        """Drop what was not committed; the writer can't be used afterwards."""
        with self._changed:
            self._closed = True
            self._queue.clear()
            self._changed.notify_all()
        if self._worker is not None:
            self._worker.join()
            self._worker = None
        with self._output_lock:
            if self._output is not None:
                self._output.close()
                self._output = None


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
    parts = []
    left = size
    while data and left >= len(data):
        parts.append(data)
        left -= len(data)
        data = read(left) if left else b""
    if left:
        raise ChangedWhileRead("a file became shorter while it was read")
    return b"".join(parts)


def _check_end(read: Callable[[int], bytes]) -> None:
    if read(1):
        raise ChangedWhileRead("a file became longer while it was read")
