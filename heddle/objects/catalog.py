"""Everything that some packs hold, listed once: for whoever reads most of it.

Owns reading indexes as a whole. A lookup in an index finds a row and checks it; here one check of the file stands for
all of its rows. What is not listed is looked for in the store.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING

from heddle.errors import CorruptObject, StorageError
from heddle.objects.gitformat import BLOB, to_hex
from heddle.objects.layout import WHOLE_LIMIT, Entry
from heddle.objects.workers import processes, results

if TYPE_CHECKING:
    from heddle.objects.index import Index
    from heddle.objects.packfile import PackFile
    from heddle.objects.store import ObjectStore

_KEPT_BYTES = 64 << 20
"""Of the commits, trees and tags that are read so much is kept: whoever walks over them stores them after that."""
_OVERHEAD = 250
"""What one of them takes beside its content, in bytes."""
_BATCH = 256
"""Objects that are read ahead in one go."""

_Found = tuple[int, bytes]

_new_entry = tuple.__new__


class Catalog:
    """The objects of some packs; not safe for several threads.

    Args:
        store: whose packs they are, and where everything else is found.
        indexes: of the packs; one whose checksum is wrong is left out, so that the store looks into it row by row.

    Attributes:
        id_length: bytes of an id.
    """

    def __init__(self, store: ObjectStore, indexes: Iterable[Index]) -> None:
        self._store = store
        self.id_length = store.id_length
        self._large: set[bytes] = set()
        self._numbers: dict[bytes, int] = {}
        self._indexes: list[Index] = []
        self._packs = array("I")
        self._offsets = array("Q")
        self._sizes = array("Q")
        self._stored_sizes = array("Q")
        self._kinds = bytearray()
        self._types = bytearray()
        self._members = array("H")
        self._kept: dict[bytes, _Found] = {}
        self._ahead = results(list[Callable[[], dict[bytes, _Found]]]())
        self._room = _KEPT_BYTES
        self._file: PackFile | None = None
        self._file_of = -1
        for index in indexes:
            self._add(index)

    def _add(self, index: Index) -> None:
        try:
            index.check()
        except CorruptObject:
            return
        pack = len(self._indexes)
        self._indexes.append(index)
        for ids, offsets, sizes, stored_sizes, kinds, types, members in index.columns():
            first = len(self._kinds)
            self._numbers.update(zip(ids, range(first, first + len(ids)), strict=True))
            self._packs.extend([pack] * len(ids))
            self._offsets.extend(offsets)
            self._sizes.extend(sizes)
            self._stored_sizes.extend(stored_sizes)
            self._kinds.extend(kinds)
            self._types.extend(types)
            self._members.extend(members)
            if max(sizes, default=0) > WHOLE_LIMIT:
                self._large.update(
                    raw_id for raw_id, size in zip(ids, sizes, strict=True) if size > WHOLE_LIMIT
                )

    def find(self, raw_id: bytes) -> tuple[Index, Entry]:
        """Where an object lies; raises KeyError where it is in no pack."""
        number = self._numbers.get(raw_id)
        if number is not None:
            return self._indexes[self._packs[number]], self._entry(raw_id, number)
        found = self._store.packs_directory.find(raw_id)
        if found is None:
            raise KeyError(to_hex(raw_id))
        return found

    def _entry(self, raw_id: bytes, number: int) -> Entry:
        fields = (
            raw_id,
            self._offsets[number],
            self._sizes[number],
            self._stored_sizes[number],
            self._kinds[number],
            self._types[number],
            self._members[number],
        )
        return _new_entry(Entry, fields)

    def kind(self, object_id: bytes) -> int:
        """An object's type number; raises as the store's does."""
        number = self._numbers.get(object_id)
        return self._store.kind(object_id) if number is None else self._types[number]

    def size(self, raw_id: bytes) -> int:
        """The length of an object's content in bytes; raises as the store's does."""
        number = self._numbers.get(raw_id)
        return self._store.size(raw_id) if number is None else self._sizes[number]

    def sizes(self, raw_ids: Iterable[bytes]) -> list[int]:
        """As ``size``, of many."""
        numbers, sizes = self._numbers, self._sizes
        try:
            return [sizes[numbers[raw_id]] for raw_id in raw_ids]
        except KeyError:
            return [self.size(raw_id) for raw_id in raw_ids]

    def is_chunked(self, raw_id: bytes) -> bool:
        """Whether an object is stored in frames of its own, and so alone; raises as the store's does."""
        return raw_id in self._large if raw_id in self._numbers else self._store.is_chunked(raw_id)

    def get_raw(self, name: bytes) -> tuple[int, bytes]:
        """An object's type number and content, by its binary id; checked and raises as the store's does."""
        found = self._kept.get(name)
        if found is not None:
            return found
        number = self._numbers.get(name)
        if number is None:
            return self._store.get_raw(name)
        if self._types[number] != BLOB and (found := self._read_ahead(name)) is not None:
            return found
        return self._read(name, number)

    def _read(self, raw_id: bytes, number: int) -> _Found:
        try:
            found = self._types[number], self._pack_of(number).get(self._entry(raw_id, number))
        except (FileNotFoundError, StorageError):  # perhaps there is another copy
            return self._store.get_raw(raw_id)
        if found[0] != BLOB and self._room > 0:
            self._room -= len(found[1]) + _OVERHEAD
            self._kept[raw_id] = found
        return found

    # Commits, trees and tags ahead of the walk

    @contextmanager
    def reading_ahead(self) -> Iterator[None]:
        """Have other processes read what is no blob, for ``get_raw`` to take; nothing where there would be but one."""
        batches = list(self._batches())
        if processes(len(batches)) > 1:
            self._ahead = results([partial(self._read_batch, batch) for batch in batches])
        with closing(self._ahead):
            yield

    def _batches(self) -> Iterator[list[bytes]]:
        """What is to be read ahead, as far as it may be kept, about in the order of a walk.

        Packs of git's hold the newest first, but all commits before all trees; a walk goes through both at once.
        """
        types, packs, offsets = self._types, self._packs, self._offsets
        by_type: dict[int, list[tuple[int, int, bytes]]] = {}
        for raw_id, number in self._numbers.items():
            if types[number] != BLOB:
                place = (packs[number], offsets[number], raw_id)
                by_type.setdefault(types[number], []).append(place)
        ordered: list[tuple[float, bytes]] = []
        for places in by_type.values():
            places.sort()
            ordered += ((at / len(places), raw_id) for at, (_, _, raw_id) in enumerate(places))
        ordered.sort(key=itemgetter(0))
        room = self._room
        batch: list[bytes] = []
        for _, raw_id in ordered:
            room -= self.size(raw_id) + _OVERHEAD
            if room < 0:
                break
            batch.append(raw_id)
            if len(batch) == _BATCH:
                yield batch
                batch = []
        yield batch

    def _read_batch(self, batch: list[bytes]) -> dict[bytes, _Found]:
        """In another process: read some objects; those that can't be read are left to whoever needs them."""
        found = {}
        for raw_id in batch:
            with suppress(StorageError, KeyError):
                found[raw_id] = self._read(raw_id, self._numbers[raw_id])
        return found

    def _read_ahead(self, raw_id: bytes) -> _Found | None:
        """Take what was read ahead, up to an object; None where that is not among it."""
        for batch in self._ahead:
            self._kept.update(batch)
            self._room -= sum(len(content) + _OVERHEAD for _, content in batch.values())
            if (found := batch.get(raw_id)) is not None:
                return found
        return None

    def _pack_of(self, number: int) -> PackFile:
        pack = self._packs[number]
        if self._file is None or pack != self._file_of:
            self._file = self._store.packs_directory.open(self._indexes[pack])
            self._file_of = pack
        return self._file
