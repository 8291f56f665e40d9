"""Objects on their way to git: which are missing there, and one git pack of them.

Owns the walk from ids to everything below them and the order of a pack's durable steps in a git object directory.
The pack format's pieces are dulwich's (gitformat-pack(5)). Objects are streamed: none is held whole that the store
can read in parts.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from heddle import atomic, faults
from heddle.errors import CannotCreate, CorruptObject, ObjectMissing, StorageError
from heddle.objects.gitformat import BLOB, TAG, TREE, decode_tree, to_hex, to_raw
from heddle.objects.links import referred

if TYPE_CHECKING:
    from dulwich.object_format import ObjectFormat
    from dulwich.objects import ObjectID

    from heddle.objects.keeping import Keeper
    from heddle.objects.pack import PackWriter
    from heddle.objects.store import ObjectStore

Progress = Callable[[int, int], None]
GITLINK = 0o160000
_REPORT_EVERY = 256
_TEMPORARY = "tmp_pack_heddle_"
_ABANDONED_S = 86400
WHY_KEPT = "heddle: until refs lead to it"


def missing_objects(
    store: ObjectStore,
    tips: Iterable[bytes],
    has: Callable[[bytes], bool],
    shallow: Set[bytes] = frozenset(),
) -> list[bytes]:
    """Everything reachable from some objects, but not past what somebody has already.

    Args:
        store: where the objects are.
        tips: hex ids to begin with.
        has: whether the other side has an object (binary id) and so everything below it.
        shallow: commits (hex ids) whose parents were left out on purpose.

    Returns:
        Binary ids: tags and commits, then trees, then blobs, each once.

    Raises:
        ObjectMissing: one of them is nowhere.
    """
    return _walked(store, tips, has, shallow).all()


def missing_with_paths(
    store: ObjectStore,
    tips: Iterable[bytes],
    has: Callable[[bytes], bool],
    shallow: Set[bytes] = frozenset(),
) -> tuple[list[bytes], dict[bytes, bytes]]:
    """As `missing_objects`, and by id where each tree and blob was found first, a tree with a slash behind it."""
    paths: dict[bytes, bytes] = {}
    return _walked(store, tips, has, shallow, paths).all(), paths


def objects_below(store: ObjectStore, tops: Iterable[bytes]) -> list[bytes]:
    """Some trees (hex ids) and everything in them, as binary ids, each once.

    Raises:
        ObjectMissing: a tree is not here.
    """
    return _walked(store, tops).all()


def require_all(
    store: Objects,
    tips: Iterable[bytes],
    known: Callable[[bytes], bool] | None = None,
    shallow: Set[bytes] = frozenset(),
) -> None:
    """Check that everything reachable from some objects is here or promised, but not past what is known to be.

    Args:
        shallow: commits (hex ids) whose parents were left out on purpose.

    Raises:
        ObjectMissing: something is not.
    """
    require_promised(store, missing_blobs(store, tips, known, shallow))


def require_promised(store: Objects, blobs: Iterable[bytes]) -> None:
    """Check that blobs that are not here (binary ids) are promised.

    Raises:
        ObjectMissing: one is not.
    """
    for blob in blobs:
        if not store.promises_id(blob):
            raise _gone(blob)


def missing_blobs(
    store: Objects,
    tips: Iterable[bytes],
    known: Callable[[bytes], bool] | None = None,
    shallow: Set[bytes] = frozenset(),
) -> list[bytes]:
    """The blobs (binary ids) reachable from some objects that are not here, though all commits and trees are.

    Args:
        store: where they are looked for.
        tips: hex ids to begin with.
        known: whether an object (binary id) was here before with everything below it.
        shallow: commits (hex ids) whose parents were left out on purpose.

    Raises:
        ObjectMissing: a tag, a commit or a tree is not here.
    """
    blobs = _walked(store, tips, known, shallow).blobs
    return [blob for blob in blobs if not store.contains(blob)]


def all_blobs(
    store: Objects, tips: Iterable[bytes], known: Callable[[bytes], bool], shallow: Set[bytes]
) -> list[bytes]:
    """As `missing_blobs`, whether they are here or not."""
    return _walked(store, tips, known, shallow).blobs


def blobs_below(store: ObjectStore, tops: Iterable[bytes]) -> list[bytes]:
    """The files (binary ids) in some trees (hex ids) and below, each once; a blob is its own.

    Raises:
        ObjectMissing: a tree is not here.
    """
    return _walked(store, tops).blobs


class Objects(Protocol):
    """What a walk asks of an object store."""

    id_length: int

    def promises_id(self, raw_id: bytes) -> bool: ...
    def contains(self, raw_id: bytes) -> bool: ...
    def kind(self, object_id: bytes) -> int: ...
    def get_raw(self, name: bytes) -> tuple[int, bytes]: ...
    def tree_entries(self, object_id: bytes) -> list[tuple[bytes, int, ObjectID]]: ...


class Arriving:
    """A store together with what a writer for it has, which nobody else sees yet."""

    def __init__(self, store: ObjectStore, writer: PackWriter | Keeper) -> None:
        self.id_length = store.id_length
        self.promises_id = store.promises_id
        self._store = store
        self._writer = writer

    def contains(self, raw_id: bytes) -> bool:
        return raw_id in self._writer or self._store.contains(raw_id)

    def kind(self, object_id: bytes) -> int:
        if object_id in self._writer:
            return self._writer.kind(object_id)
        return self._store.kind(object_id)

    def get_raw(self, name: bytes) -> tuple[int, bytes]:
        return self._writer.get_raw(name) if name in self._writer else self._store.get_raw(name)

    def tree_entries(self, object_id: bytes) -> list[tuple[bytes, int, ObjectID]]:
        if object_id not in self._writer:
            return self._store.tree_entries(object_id)
        entries = decode_tree(self._writer.get_raw(object_id)[1], self.id_length)
        if entries is None:
            raise CorruptObject(f"object {object_id.hex()} is not a sound tree")
        return entries


def _walked(
    store: Objects,
    tips: Iterable[bytes],
    has: Callable[[bytes], bool] | None = None,
    shallow: Set[bytes] = frozenset(),
    paths: dict[bytes, bytes] | None = None,
) -> _Walk:
    walk = _Walk(store, has or (lambda raw_id: False), shallow, paths)
    walk.run(to_raw(tip, store.id_length) for tip in tips)
    return walk


class _Walk:
    """A walk from tips to blobs that reads every commit and tree once, and no blob."""

    def __init__(
        self,
        store: Objects,
        has: Callable[[bytes], bool],
        shallow: Set[bytes],
        paths: dict[bytes, bytes] | None,
    ) -> None:
        self._store = store
        self._has = has
        self._shallow = {to_raw(id, store.id_length) for id in shallow}
        self._seen: set[bytes] = set()
        self._paths = paths
        self.history: list[bytes] = []
        self.trees: list[bytes] = []
        self.blobs: list[bytes] = []

    def all(self) -> list[bytes]:
        """Tags and commits, then trees, then blobs."""
        return [*self.history, *self.trees, *self.blobs]

    def run(self, tips: Iterable[bytes]) -> None:
        todo = [(tip, False) for tip in tips]
        while todo:
            raw_id, is_tree = todo.pop()
            if self._is_new(raw_id):
                todo += self._visit_tree(raw_id) if is_tree else self._visit(raw_id)

    def _is_new(self, raw_id: bytes) -> bool:
        if raw_id in self._seen:
            return False
        self._seen.add(raw_id)
        return not self._has(raw_id)

    def _visit(self, raw_id: bytes) -> list[tuple[bytes, bool]]:
        """Note an object down; returns what it refers to, and whether that has to be a tree."""
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
        below = list(referred(kind, content))
        if kind == TAG:
            return [(id, False) for id in below]
        parents = [] if raw_id in self._shallow else below[1:]
        return [(below[0], True), *((id, False) for id in parents)]  # a commit names its tree first

    def _visit_tree(self, raw_id: bytes) -> list[tuple[bytes, bool]]:
        if not self._store.contains(raw_id):
            raise _gone(raw_id)  # or it would be fetched by itself, as thousands of others then
        self.trees.append(raw_id)
        below = []
        paths = self._paths
        here = b"" if paths is None else paths.get(raw_id, b"")
        for name, mode, hex_id in self._store.tree_entries(raw_id):
            child = bytes.fromhex(hex_id.decode())
            if mode == 0o040000:
                below.append((child, True))
                name += b"/"
            elif mode != GITLINK and self._is_new(child):
                self.blobs.append(child)
            if paths is not None:
                paths.setdefault(child, here + name)
        return below


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


_kept: list[set[Path]] = []
"""For each block of `packs_kept` that this process is in, the keep files made in it."""


@contextmanager
def packs_kept() -> Iterator[None]:
    """Keep packs that are written in the block from git until it ends, when refs lead to what is in them.

    A repack that has read the refs before would drop what nothing led to then. A pack with a ``.keep`` is left alone
    (git-repack(1), ``-a``); git's own fetch does the same.
    """
    _kept.append(set())
    try:
        yield
    finally:
        for path in _kept.pop():
            path.unlink(missing_ok=True)


def note_kept(path: Path) -> None:
    """A keep file was made that is to go with the innermost block of `packs_kept`."""
    _kept[-1].add(path)


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
    store.fetch(ids)  # of a lazy clone, what is not here yet; in one request
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
    for path in [*directory.glob(f"{_TEMPORARY}*"), *directory.glob("*.keep")]:
        is_ours = path.suffix != ".keep" or path.read_text(errors="replace").strip() == WHY_KEPT
        if is_ours and path.stat().st_mtime < time.time() - _ABANDONED_S:
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
    if _kept:
        keep = directory / f"{name}.keep"
        if not keep.exists():
            keep.write_text(WHY_KEPT + "\n")
            note_kept(keep)
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
        self._crc = 0
        for piece in _entry(store, raw_id):
            self._put(piece)
        return self._crc

    def finish(self) -> bytes:
        checksum = self._hash.digest()
        self._file.write(checksum)
        _make_durable(self._file)
        return checksum


def pack_pieces(
    store: ObjectStore, ids: Sequence[bytes], progress: Progress | None = None
) -> Iterator[bytes]:
    """A git pack of some objects (binary ids), each once, piece by piece; raises as `write_pack`."""
    from dulwich.pack import pack_header_chunks

    whole = store.object_format.hash_func()
    for piece in pack_header_chunks(len(ids)):
        whole.update(piece)
        yield piece
    for done, raw_id in enumerate(ids, 1):
        for piece in _entry(store, raw_id):
            whole.update(piece)
            yield piece
        if progress is not None and (done % _REPORT_EVERY == 0 or done == len(ids)):
            progress(done, len(ids))
    yield whole.digest()


def _entry(store: ObjectStore, raw_id: bytes) -> Iterator[bytes]:
    """An object as it stands in a pack."""
    from dulwich.pack import pack_object_header

    deflate = zlib.compressobj()
    try:
        kind, size = store.kind(raw_id), store.size(raw_id)
        yield bytes(pack_object_header(kind, None, size, store.object_format))
        for piece in store.iter_blob(raw_id):
            yield deflate.compress(piece)
    except KeyError as error:
        raise _gone(raw_id) from error
    yield deflate.flush()


def _make_durable(file: BinaryIO) -> None:
    file.flush()
    os.fchmod(file.fileno(), 0o444)
    os.fsync(file.fileno())


def _gone(raw_id: bytes) -> ObjectMissing:
    return ObjectMissing(
        f"object {raw_id.hex()} is in no pack and in no alternate",
        hint="heddle fsck; of a shallow or partial clone of git, fetch the rest first",
    )
