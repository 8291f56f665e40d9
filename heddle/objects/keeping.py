"""Git packs that become packs of the store as they came.

Owns that no object of such a pack needs another pack, and its way into ``packs/``. What is kept costs neither the time
to compress it again nor more disk than git needs for it; ``heddle gc`` stores it anew with everything else. What is in
it is found by ``listing.py``, and read by ``keptpack.py``.
"""

from __future__ import annotations

import errno
import hashlib
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from heddle.atomic import write_all
from heddle.errors import StorageError
from heddle.objects.gitformat import to_raw
from heddle.objects.gitpack import entry_head
from heddle.objects.incoming import (
    DamagedPack,
    Progress,
    Reader,
    Taken,
    naming_damage,
)
from heddle.objects.index import Index, encode_ordered
from heddle.objects.keptpack import KeptPack, offsets
from heddle.objects.layout import Entry
from heddle.objects.listing import Listing
from heddle.objects.output import SYNC_EVERY, publish, temporary_file
from heddle.objects.packfile import PackFile

if TYPE_CHECKING:
    from heddle.objects.links import Links
    from heddle.objects.store import ObjectStore

KEPT_FROM = 1 << 20
"""Shorter packs, in bytes, are stored object by object, as captures are: what they win is nothing to anybody, each of
their objects can be read without another, and no base has to be added to a thin one."""
_PIECE = 1 << 20
_COUNT_AT = 8


class Keeper:
    """One git pack on its way to be kept; a context manager, as a `PackWriter` is.

    Whoever uses it holds the store's packs (`ObjectStore.hold`) until a name leads to what is in it.

    Args:
        store: which gets it.
        file: the pack, open for reading and writing, without a buffer. A thin one gets the bases that it lacks.
        path: of that file, on the store's file system; it is renamed when it is kept.
    """

    def __init__(self, store: ObjectStore, file: IO[bytes], path: Path) -> None:
        self._store = store
        self._file = file
        self._path = path
        self._digest = b""
        self._index_data = b""
        self._index: Index | None = None
        self._pack: PackFile | None = None

    def __enter__(self) -> Keeper:
        return self

    def __exit__(self, *_: object) -> None:
        self._index = self._pack = None

    def take(
        self,
        *,
        max_bytes: int | None = None,
        links: Links | None = None,
        progress: Progress | None = None,
    ) -> Taken:
        """Learn what is in the pack; see ``incoming.take_pack``.

        Raises:
            DamagedPack: also where an object has the id of another one that is here.
            ObjectTooLarge, ObjectMissing, StorageError: as there.
        """
        store = self._store
        with naming_damage():
            reader = Reader(self._file, store.format_name)
            listing = _Keeping(reader, store, max_bytes, links, progress)
            taken = listing.run()
        try:
            listing.complete(self._file)
            self._digest, size = _digest_of(self._file)
        except OSError as error:
            raise StorageError(f"writing {self._path} failed: {error.strerror}") from error
        self._index_data = encode_ordered(
            listing.entries(),
            id_length=store.id_length,
            pack_size=size,
            pack_digest=self._digest,
        )
        index = self._index = Index(self._path, store.id_length, self._index_data)
        self._pack = KeptPack(self._path, store.id_length, offsets(index))
        for raw_id in taken:
            if store.holds(raw_id):
                self._require_same(raw_id)
        return taken

    def _require_same(self, raw_id: bytes) -> None:
        """Make sure that an object which is here already is no other one with the same id."""
        entry = self._find(raw_id)
        assert self._pack is not None
        try:
            ours = self._store.kind(raw_id), _hashed(self._store.iter_blob(raw_id))
        except StorageError:
            return  # it is damaged here, and what came can take its place
        if ours != (entry.type_num, _hashed(self._pack.contents(entry))):
            raise DamagedPack(f"the pack has another object with the id {raw_id.hex()}")

    # What it has, for whoever looks whether it is whole

    def _find(self, raw_id: bytes) -> Entry:
        found = None if self._index is None else self._index.find(raw_id)
        if found is None:
            raise KeyError(raw_id)
        return found

    def __contains__(self, object_id: bytes) -> bool:
        try:
            return bool(self._find(to_raw(object_id, self._store.id_length)))
        except KeyError:
            return False

    def kind(self, object_id: bytes) -> int:
        """The type number of an object that the pack has; raises KeyError as ``get_raw``."""
        return self._find(to_raw(object_id, self._store.id_length)).type_num

    def get_raw(self, object_id: bytes) -> tuple[int, bytes]:
        """Return (type number, content) of an object that the pack has.

        Raises:
            KeyError: it has no such object; the store may.
        """
        entry = self._find(to_raw(object_id, self._store.id_length))
        assert self._pack is not None
        return entry.type_num, self._pack.get(entry)

    def commit(self) -> str:
        """Make the pack durable and visible; returns its name.

        A crash before the index's rename, the commit point, leaves the file where it was or a pack that nobody sees.

        Raises:
            StorageError: the disk is full or failing; nothing was published.
        """
        place = self._store.packs_directory.path / self._digest.hex()
        publish(self._file.fileno(), self._path, place, self._index_data)
        self._store.refresh()
        return self._digest.hex()


def keep_copy(
    path: Path,
    store: ObjectStore,
    *,
    links: Links | None = None,
    progress: Progress | None = None,
) -> Taken:
    """Keep a copy of a pack that belongs to somebody else; durable and visible on return.

    Args:
        path: a whole pack, not a thin one.
        store: as for `Keeper`, with whose errors it raises.
        links: gets what its objects refer to.
        progress: called with objects looked at and objects in all.

    Returns:
        What it holds.
    """
    fd, copy = temporary_file(store.packs_directory.path)
    try:
        with os.fdopen(fd, "r+b", buffering=0) as file:
            with path.open("rb", buffering=0) as source:
                _copy(source, file, copy)
            with Keeper(store, file, copy) as keeper:
                taken = keeper.take(links=links, progress=progress)
                keeper.commit()
                return taken
    finally:
        copy.unlink(missing_ok=True)


def _copy(source: IO[bytes], file: IO[bytes], path: Path) -> None:
    """Copy a file, sharing its blocks where the file system can."""
    size = os.fstat(source.fileno()).st_size
    try:
        while (at := file.tell()) < size:
            try:
                copied = os.copy_file_range(source.fileno(), file.fileno(), SYNC_EVERY)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
                copied = os.sendfile(file.fileno(), source.fileno(), at, SYNC_EVERY)
            if not copied:  # it has become shorter
                break
            os.fdatasync(file.fileno())
    except OSError as error:
        raise StorageError(f"writing {path} failed: {error.strerror}") from error


class _Keeping(Listing):
    """The objects of a pack that is to be kept, and the bases that it lacks."""

    def __init__(
        self,
        reader: Reader,
        store: ObjectStore,
        max_bytes: int | None,
        links: Links | None,
        progress: Progress | None,
    ) -> None:
        super().__init__(reader, store.id_length, max_bytes, links, progress)
        self._store = store
        self._lacking: list[bytes] = []

    def run(self) -> Taken:
        self._run()
        if self._by_id:
            self._store.fetch(list(self._by_id))
            self._apply_by_id()
        return self._taken()

    def _bases(self) -> Iterator[tuple[int | None, bytes]]:
        yield from super()._bases()
        yield from ((None, each) for each in list(self._by_id) if each in self._store)

    def _base(self, number: int | None, raw_id: bytes) -> tuple[int, bytes]:
        if number is not None:
            return super()._base(number, raw_id)
        self._lacking.append(raw_id)
        return self._store.get_raw(raw_id)

    def complete(self, file: IO[bytes]) -> None:
        """Add the bases that a thin pack lacks, as git does; raises OSError."""
        if not self._lacking:
            return
        end = file.seek(-self._length, os.SEEK_END)
        file.truncate()
        for raw_id in self._lacking:
            kind, content = self._store.get_raw(raw_id)
            entry = entry_head(kind, len(content)) + zlib.compress(content)
            write_all(file.fileno(), entry, end)
            self._ids += raw_id
            self._offsets.append(end)
            self._kinds.append(kind)
            self._sizes.append(len(content))
            end += len(entry)
            self._ends.append(end)
        write_all(file.fileno(), len(self._offsets).to_bytes(4, "big"), _COUNT_AT)
        digest = hashlib.new(self._store.format_name)
        for piece in _pieces(file):
            digest.update(piece)
        write_all(file.fileno(), digest.digest(), end)


def _digest_of(file: IO[bytes]) -> tuple[bytes, int]:
    """The SHA-256 of a file, and its length in bytes."""
    return _hashed(_pieces(file)), file.tell()


def _hashed(pieces: Iterable[bytes]) -> bytes:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.digest()


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    file.seek(0)
    while piece := file.read(_PIECE):
        yield piece
