"""Where the object store meets dulwich: its full store interface over ours, and git's own object directories.

Owns everything of the object store that needs dulwich imported, which is why it is a module of its own: only what
walks, compares or exchanges history loads it. Storing and finding objects is ``store.py``'s.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dulwich.object_format import get_object_format
from dulwich.object_store import DiskObjectStore, PackCapableObjectStore
from dulwich.objects import ObjectID, RawObjectID, ShaFile

if TYPE_CHECKING:
    from dulwich.pack import Pack

    from heddle.objects.store import ObjectStore

_SPOOL_BYTES = 16 << 20


class DulwichStore(PackCapableObjectStore):
    """An ObjectStore as dulwich's own store class, for dulwich's functions."""

    def __init__(self, store: ObjectStore) -> None:
        super().__init__(object_format=get_object_format(store.format_name))
        self._store = store

    def contains_loose(self, sha: ObjectID) -> bool:
        return self._store.contains_loose(sha)

    def contains_packed(self, sha: ObjectID | RawObjectID) -> bool:
        return self._store.contains_packed(sha)

    def __contains__(self, sha1: ObjectID) -> bool:
        return sha1 in self._store

    @property
    def packs(self) -> list[Pack]:
        return []

    def get_raw(self, name: RawObjectID | ObjectID) -> tuple[int, bytes]:
        return self._store.get_raw(name)

    def __getitem__(self, sha1: ObjectID | RawObjectID) -> ShaFile:
        return self._store[sha1]

    def __iter__(self) -> Iterator[ObjectID]:
        return iter(self._store)

    def iter_prefix(self, prefix: bytes) -> Iterator[ObjectID]:
        return self._store.iter_prefix(prefix)

    def add_object(self, obj: ShaFile) -> None:
        self._store.add_object(obj)

    def add_objects(
        self,
        objects: Iterable[tuple[ShaFile, str | None]],
        progress: Callable[..., None] | None = None,
    ) -> None:
        self._store.add_objects(objects, progress)

    def close(self) -> None:
        self._store.close()


class GitAlternate:
    """A ``.git/objects`` directory, read where it is through dulwich.

    One lock around it: dulwich's packs are not meant for several threads.
    """

    def __init__(self, path: Path, format_name: str) -> None:
        self.path = path
        self._store = DiskObjectStore(path, object_format=get_object_format(format_name))
        self._lock = threading.Lock()

    def find_raw(self, raw_id: bytes) -> bool:
        with self._lock:
            return ObjectID(raw_id.hex().encode()) in self._store

    def get_raw(self, object_id: bytes) -> tuple[int, bytes]:
        with self._lock:
            return self._store.get_raw(ObjectID(object_id))

    def kind(self, object_id: bytes) -> int:
        return self.get_raw(object_id)[0]

    def size(self, object_id: bytes) -> int:
        return len(self.get_raw(object_id)[1])

    def iter_ids(self) -> Iterator[bytes]:
        with self._lock:
            ids = list(self._store)
        return (bytes.fromhex(each.decode()) for each in ids)

    def iter_prefix(self, prefix: bytes) -> Iterator[ObjectID]:
        with self._lock:
            found = list(self._store.iter_prefix(prefix))
        return iter(found)
