"""The packs of one directory: which there are, which of them holds an object, and their open files.

Owns listing the directory and looking into indexes in an order that keeps thousands of packs quick. What an object
is worth without a pack (alternates, errors a user reads) is ``store.py``'s.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path

from heddle import faults
from heddle.atomic import fsync_directory
from heddle.errors import CorruptObject, StorageError
from heddle.objects.blockindex import BlockIndex, open_index
from heddle.objects.gitformat import COMMIT
from heddle.objects.index import Index
from heddle.objects.layout import REINDEX_HINT, TEMPORARY_PREFIX, Entry, corrupt
from heddle.objects.opening import open_pack
from heddle.objects.packfile import PackFile

_SMALL = 4096
"""Packs with at most so many objects are looked up through one table in memory, however many packs they are."""
_OPEN_FILES = 64
_LARGE_BYTES = 8 << 20
_SAMPLE = 200
_COMMITS_IN = 50
"""A history has a commit among so many objects, more often several."""
_SETTLED_NS = 50_000_000
"""A directory whose mtime was older than this when it was listed shows every later change by another mtime."""


class PackDirectory:
    """All packs of ``.heddle/objects/packs`` that have an index.

    Safe for several threads, and takes no lock against other processes: packs never change, they appear (the index
    last) and, when gc has merged them, go. Indexes are opened when a lookup gets that far, the newest first.

    Args:
        path: the directory.
        id_length: bytes of an id.

    Attributes:
        temporary: names of the temporary files at the last look.
    """

    def __init__(self, path: Path, id_length: int) -> None:
        self.path = path
        self.temporary: list[str] = []
        self._prefix = f"{path}{os.sep}"
        self._id_length = id_length
        self._lock = threading.RLock()
        self._listed: int | None = None
        self._settled = False
        self._listings = 0
        self._count = 0
        self._opened = 0
        self._unopened: list[str] = []
        self._indexes: dict[str, Index] = {}
        self._small: dict[bytes, Index] = {}
        self._large: tuple[Index, ...] = ()
        self._damaged: dict[str, str] = {}
        self._unindexed: set[str] = set()
        self._ids_without_index: dict[str, frozenset[bytes]] = {}
        self._checked: set[str] = set()
        self._files: OrderedDict[str, PackFile] = OrderedDict()

    # Looking up

    def find(self, raw_id: bytes) -> tuple[Index, Entry] | None:
        """Where an object is among the packs of the last look at the directory.

        Raises:
            CorruptObject: the index says something about it that is damaged.
        """
        if self._listings == 0:
            self.refresh()
        while True:
            opened = self._opened  # read first: an index opened meanwhile was not searched
            index = self._small.get(raw_id)
            if index is not None and (entry := index.find(raw_id)) is not None:
                return index, entry
            for index in self._large:
                if (entry := index.find(raw_id)) is not None:
                    return index, entry
            if not self._unopened and opened == self._opened:
                return None
            self._open_next()

    def find_anew(self, raw_id: bytes) -> tuple[Index, Entry] | None:
        """Where an object is, looking at the directory again before saying that it is nowhere."""
        listings = self._listings
        found = self.find(raw_id)
        if found is None:
            self.refresh()
            if listings != self._listings:
                return self.find(raw_id)
        return found

    def copies(self, raw_id: bytes, damaged: Index) -> Iterator[tuple[Index, Entry]]:
        """Where else an object is, that is damaged in one pack."""
        for index in self.indexes():
            if index is not damaged and (entry := index.find(raw_id)) is not None:
                yield index, entry

    def count(self) -> int:
        """How many packs there are, without opening one."""
        self.refresh()
        return self._count

    def holds_versions(self) -> bool:
        """Whether a large pack, that no collection has made, holds a history: versions that repeat each other.

        Told from the kinds of some of its objects: of a single capture hardly any is a commit.
        """
        self.refresh()
        names = [*self._unopened, *self._indexes]
        if not any(self._size(name) >= _LARGE_BYTES for name in names):
            return False
        for index in self.indexes():
            is_large = index.pack_size >= _LARGE_BYTES and index.count > _COMMITS_IN
            if is_large and not isinstance(index, BlockIndex):
                kinds = [entry.type_num for entry in index.sample(_SAMPLE)]
                if kinds.count(COMMIT) * _COMMITS_IN >= len(kinds):
                    return True
        return False

    def _size(self, name: str) -> int:
        try:
            return os.stat(f"{self._prefix}{name}.pack").st_size
        except FileNotFoundError:
            return 0

    def indexes(self) -> list[Index]:
        """Every sound index."""
        self.refresh()
        while self._unopened:
            self._open_next()
        with self._lock:
            return list(self._indexes.values())

    def _open_next(self) -> None:
        with self._lock:
            if self._unopened:
                self._open_index(self._unopened[-1])
                self._opened += 1
                self._unopened.pop()

    def _open_index(self, name: str) -> None:
        try:
            index = open_index(self.path / f"{name}.idx", self._id_length)
        except CorruptObject as error:
            self._damaged[name] = error.message
        except FileNotFoundError:
            pass
        else:
            self._indexes[name] = index
            if index.count <= _SMALL:
                self._small.update(dict.fromkeys(index.ids(), index))
            else:
                self._large = (*self._large, index)

    # Which packs there are

    def refresh(self) -> None:
        """List the directory again if it may have changed.

        Raises:
            StorageError: there is no such directory.
        """
        with self._lock:
            try:
                modified = os.stat(self.path).st_mtime_ns
                if modified == self._listed and self._settled:
                    return
                self._settled = modified < time.time_ns() - _SETTLED_NS
                self._list()
            except OSError as error:
                raise StorageError(f"listing {self.path} failed: {error.strerror}") from error
            self._listed = modified
            self._listings += 1

    def _list(self) -> None:
        names = os.listdir(self.path)
        self.temporary = [name for name in names if name.startswith(TEMPORARY_PREFIX)]
        packs = {name[:-5] for name in names if name.endswith(".pack")}
        indexed = {name[:-4] for name in names if name.endswith(".idx")} & packs
        self._count = len(indexed)
        self._drop({*self._indexes, *self._unopened} - indexed)
        new = indexed.difference(self._indexes, self._unopened)
        self._unopened += sorted(new, key=self._age)
        self._unindexed = packs - indexed
        self._damaged.clear()  # opened again with the next lookup: they may have been rebuilt

    def _age(self, name: str) -> int:
        try:
            return os.stat(f"{self._prefix}{name}.idx").st_mtime_ns
        except FileNotFoundError:  # gone since it was listed; opening it will say so again
            return 0

    def _drop(self, names: set[str]) -> None:
        if not names:
            return
        self._unopened = [name for name in self._unopened if name not in names]
        for name in names:
            self._indexes.pop(name, None)
            self._files.pop(name, None)
            self._checked.discard(name)
        left = self._indexes.values()
        self._large = tuple(index for index in left if index.count > _SMALL)
        self._small = {raw: index for index in left if index.count <= _SMALL for raw in index.ids()}

    def forget(self, index: Index) -> None:
        """Look again after a pack's file turned out to be gone."""
        with self._lock:
            self._drop({index.name})
            self._settled = False
            self.refresh()

    def reload(self) -> None:
        """Begin again from the directory, since indexes were replaced."""
        with self._lock:
            self._drop({*self._indexes, *self._unopened})
            self._ids_without_index.clear()
            self._settled = False
            self.refresh()

    def remove(self, names: Iterable[str]) -> None:
        """Remove packs, for whoever keeps all others from relying on them; see ``holding.py``.

        Their indexes go first, durably: what a crash leaves is packs without one, which fsck can give theirs again.
        """
        names = list(names)
        for suffix in (".idx", ".pack"):
            for name in names:
                (self.path / f"{name}{suffix}").unlink(missing_ok=True)
                faults.reach("packs.removing")
            fsync_directory(self.path)
        self.refresh()

    # Files

    def open(self, index: Index) -> PackFile:
        """The pack file of an index; raises FileNotFoundError when it is gone."""
        name = index.name
        with self._lock:
            pack = self._files.get(name)
            if pack is None:
                pack = self._files[name] = open_pack(index.pack_path, self._id_length, index)
                if len(self._files) > _OPEN_FILES:
                    self._files.popitem(last=False)
            else:
                self._files.move_to_end(name)
            return pack

    def close(self) -> None:
        """Forget the open files; those in use close when their readers are done."""
        with self._lock:
            self._files.clear()

    # Damage

    def explain_miss(self, raw_id: bytes) -> None:
        """Find out whether an object is missing only because an index is.

        Raises:
            CorruptObject: a pack without a sound index holds the object.
        """
        for index in self.indexes():
            if index.name not in self._checked:
                self._check(index)
        reasons = dict.fromkeys(self._unindexed, "its index is missing") | self._damaged
        for name, why in reasons.items():
            if raw_id in self._scan(name):
                raise corrupt(str(self.path / f"{name}.pack"), raw_id, why, hint=REINDEX_HINT)

    def _check(self, index: Index) -> None:
        """Check an index against its checksum, once: lookups check only the rows that they find."""
        with self._lock:
            name = index.name
            self._checked.add(name)
            try:
                index.check()
            except CorruptObject as error:
                self._drop({name})
                self._damaged[name] = error.message

    def _scan(self, name: str) -> frozenset[bytes]:
        """The ids that a pack holds, without its index."""
        with self._lock:
            ids = self._ids_without_index.get(name)
            if ids is None:
                try:
                    pack = open_pack(self.path / f"{name}.pack", self._id_length)
                except FileNotFoundError:
                    return frozenset()
                ids = frozenset(entry.id for entry in pack.scan())
                self._ids_without_index[name] = ids
            return ids
