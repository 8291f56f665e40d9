"""Objects on their way to git: which are missing there, and one git pack of them.

Owns the walk from ids to everything below them and the order of a pack's durable steps in a git object directory.
The pack format's pieces are dulwich's (gitformat-pack(5)). Objects are streamed: none is held whole that the store
can read in parts.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from heddle import atomic, faults
from heddle.errors import CannotCreate, ObjectMissing, StorageError
from heddle.objects.gitformat import BLOB, TAG, TREE, to_hex, to_raw

if TYPE_CHECKING:
    from dulwich.object_format import ObjectFormat

    from heddle.objects.store import ObjectStore

Progress = Callable[[int, int], None]
GITLINK = 0o160000
_REPORT_EVERY = 256
_TEMPORARY = "tmp_pack_heddle_"
_ABANDONED_S = 86400


def missing_objects(
    store: ObjectStore, tips: Iterable[bytes], has: Callable[[bytes], bool]
) -> list[bytes]:
    """Everything reachable from some objects, but not past what somebody has already.

    Args:
        store: where the objects are.
        tips: hex ids to begin with.
        has: whether the other side has an object (binary id) and so everything below it.

    Returns:
        Binary ids: tags and commits, then trees, then blobs, each once.

    Raises:
        ObjectMissing: one of them is nowhere.
    """
    walk = _Walk(store, has)
    walk.run(to_raw(tip, store.id_length) for tip in tips)
    return [*walk.history, *walk.trees, *walk.blobs]


def require_all(
    store: ObjectStore, tips: Iterable[bytes], known: Callable[[bytes], bool] | None = None
) -> None:
    """Check that everything reachable from some objects is in the store, but not past what is known to be.

    Raises:
        ObjectMissing: something is not.
    """
    has = known or (lambda raw_id: False)
    walk = _Walk(store, has)
    walk.run(to_raw(tip, store.id_length) for tip in tips)
    for blob in walk.blobs:
        if not store.holds(blob) and not store.contains(blob):
            raise _gone(blob)


class _Walk:
    """A walk from tips to blobs that reads every commit and tree once, and no blob."""

    def __init__(self, store: ObjectStore, has: Callable[[bytes], bool]) -> None:
        self._store = store
        self._has = has
        self._seen: set[bytes] = set()
        self.history: list[bytes] = []
        self.trees: list[bytes] = []
        self.blobs: list[bytes] = []

    def run(self, tips: Iterable[bytes]) -> None:
        todo = list(tips)
        while todo:
            raw_id = todo.pop()
            if self._is_new(raw_id):
                todo += self._visit(raw_id)

    def _is_new(self, raw_id: bytes) -> bool:
        if raw_id in self._seen:
            return False
        self._seen.add(raw_id)
        return not self._has(raw_id)

    def _visit(self, raw_id: bytes) -> list[bytes]:
        """Note an object down; returns what it refers to."""
        try:
            kind = self._store.kind(raw_id)
            if kind == BLOB:
                self.blobs.append(raw_id)
                return []
            if kind == TREE:
                return self._visit_tree(raw_id)
            content = self._store.get_raw(raw_id)[1]
        except KeyError as error:
            raise _gone(raw_id) from error
        self.history.append(raw_id)
        return list(referred(kind, content))

    def _visit_tree(self, raw_id: bytes) -> list[bytes]:
        self.trees.append(raw_id)
        below = []
        for _name, mode, hex_id in self._store.tree_entries(raw_id):
            child = bytes.fromhex(hex_id.decode())
            if mode == 0o040000:
                below.append(child)
            elif mode != GITLINK and self._is_new(child):
                self.blobs.append(child)
        return below


def referred(kind: int, content: bytes) -> Iterator[bytes]:
    """The binary ids that a commit's or a tag's header names: its tree, parents or object."""
    wanted = (b"object",) if kind == TAG else (b"tree", b"parent")
    for line in content.split(b"\n\n", 1)[0].split(b"\n"):
        name, _, value = line.partition(b" ")
        if name not in wanted:
            if name in (b"author", b"tagger"):
                return
            continue
        yield bytes.fromhex(value.decode("ascii"))


def peeled(store: ObjectStore, id: bytes) -> bytes:
    """The hex id of what an annotated tag leads to, were it through others; of anything else its own.

    Raises:
        ObjectMissing: it leads to nothing.
    """
    try:
        while store.kind(id) == TAG:
            id = to_hex(next(referred(TAG, store.get_raw(id)[1])))
    except (KeyError, StopIteration) as error:
        raise _gone(to_raw(id, store.id_length)) from error
    return id


def write_pack(
    store: ObjectStore, ids: list[bytes], objects: Path, *, progress: Progress | None = None
) -> str | None:
    """Write objects into a git object directory as one pack; durable and visible to git on return.

    The pack is written under a temporary name, synced and renamed; then the same for its index, whose rename is the
    commit point: without it git does not look at the pack. What a kill left is removed a day later.

    Args:
        store: where the objects are.
        ids: binary ids, each once.
        objects: the directory, ``.git/objects``.
        progress: called with objects written and objects in all.

    Returns:
        The pack's name without suffix, or None when there was nothing to write.

    Raises:
        CannotCreate: the directory can't be written.
        StorageError: the disk is full or failing.
        ObjectMissing, CorruptObject: an object can't be read.
    """
    if not ids:
        return None
    directory = objects / "pack"
    temporary = directory / f"{_TEMPORARY}{os.getpid()}"
    try:
        directory.mkdir(exist_ok=True)
        _remove_abandoned(directory)
        try:
            return _write(store, ids, directory, temporary, progress)
        finally:
            for suffix in ("", "_idx"):
                temporary.with_name(temporary.name + suffix).unlink(missing_ok=True)
    except PermissionError as error:
        raise CannotCreate(f"can't write in {directory}: {error.strerror}") from error
    except OSError as error:
        raise StorageError(f"can't write in {directory}: {error.strerror}") from error


def _remove_abandoned(directory: Path) -> None:
    for path in directory.glob(f"{_TEMPORARY}*"):
        if path.stat().st_mtime < time.time() - _ABANDONED_S:
            path.unlink(missing_ok=True)


def _write(
    store: ObjectStore,
    ids: list[bytes],
    directory: Path,
    temporary: Path,
    progress: Progress | None,
) -> str:
    from dulwich.pack import write_pack_index_v2

    entries = []
    with temporary.open("w+b") as file:
        pack = _PackFile(file, store.object_format)
        pack.begin(len(ids))
        for done, raw_id in enumerate(ids, 1):
            entries.append((raw_id, pack.size, pack.add(store, raw_id)))
            if progress is not None and (done % _REPORT_EVERY == 0 or done == len(ids)):
                progress(done, len(ids))
        checksum = pack.finish()
    name = f"pack-{checksum.hex()}"
    index = temporary.with_name(temporary.name + "_idx")
    with index.open("wb") as file:
        write_pack_index_v2(file, sorted(entries), checksum)
        _make_durable(file)
    faults.reach("gitpack.before-pack")
    os.rename(temporary, directory / f"{name}.pack")
    faults.reach("gitpack.before-index")
    os.rename(index, directory / f"{name}.idx")
    atomic.fsync_directory(directory)
    return name


class _PackFile:
    """A git pack being written: full objects, no deltas, which ``git gc`` makes."""

    def __init__(self, file: BinaryIO, object_format: ObjectFormat) -> None:
        self._file = file
        self._format = object_format
        self._hash = object_format.hash_func()
        self._crc = 0
        self.size = 0

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._crc = zlib.crc32(data, self._crc)
        self.size += len(data)

    def begin(self, count: int) -> None:
        from dulwich.pack import pack_header_chunks

        for chunk in pack_header_chunks(count):
            self._put(chunk)

    def add(self, store: ObjectStore, raw_id: bytes) -> int:
        """Write one object; returns the CRC-32 of its entry."""
        from dulwich.pack import pack_object_header

        self._crc = 0
        deflate = zlib.compressobj()
        try:
            kind, size = store.kind(raw_id), store.size(raw_id)
            self._put(bytes(pack_object_header(kind, None, size, self._format)))
            for piece in store.iter_blob(raw_id):
                self._put(deflate.compress(piece))
        except KeyError as error:
            raise _gone(raw_id) from error
        self._put(deflate.flush())
        return self._crc

    def finish(self) -> bytes:
        checksum = self._hash.digest()
        self._file.write(checksum)
        _make_durable(self._file)
        return checksum


def _make_durable(file: BinaryIO) -> None:
    file.flush()
    os.fchmod(file.fileno(), 0o444)
    os.fsync(file.fileno())


def _gone(raw_id: bytes) -> ObjectMissing:
    return ObjectMissing(
        f"object {raw_id.hex()} is in no pack and in no alternate",
        hint="heddle fsck; of a shallow or partial clone of git, fetch the rest first",
    )
