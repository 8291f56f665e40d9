"""A pack that is kept as git sent it, with the face of a pack of our own.

Owns what is checked when an object of one is read. What its entries look like is ``gitpack.py``'s, how one gets here
``keeping.py``'s.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from heddle.errors import StorageError
from heddle.objects.blockindex import open_index
from heddle.objects.cache import ContentCache
from heddle.objects.gitformat import is_id_of, new_hash
from heddle.objects.gitpack import Damaged, PackEntries, make
from heddle.objects.layout import Entry, is_large
from heddle.objects.packfile import PackFile
from heddle.objects.spool import Spools, hashed, stream

if TYPE_CHECKING:
    from heddle.objects.index import Index

_BASES_BYTES = 8 << 20
"""Contents kept for the deltas that build on them."""
_DAMAGE = (zlib.error, ValueError, KeyError, OSError)

Find = Callable[[bytes], int | None]


class KeptPack(PackFile):
    """One pack of git's in ``packs/``; see ``PackFile``.

    No object of it refers to another pack. Large ones are inflated once, into a file without a name.

    Args:
        path: the pack.
        id_length: bytes of an id.
        find: where an object lies in the pack; None: as its index says.

    Raises:
        FileNotFoundError, StorageError: as ``PackFile``.
    """

    def __init__(self, path: Path, id_length: int, find: Find | None = None) -> None:
        super().__init__(path, id_length)
        self._entries = _Entries(path, id_length, self._fd, find)
        self._bases = ContentCache[tuple[_Entries, int]](_BASES_BYTES)
        self._spools = Spools(path.parent.parent)

    def get(self, entry: Entry) -> bytes:
        """Return an object's content; raises CorruptObject where it has not the id."""
        try:
            kind, content = make(self._entries, entry.offset, self._bases, _elsewhere)
        except _DAMAGE as error:
            raise self._named(error, entry) from error
        if (
            kind != entry.type_num
            or len(content) != entry.raw_size
            or not is_id_of(entry.id, kind, content)
        ):
            raise self.corrupt(entry, "its content has another id")
        return content

    def contents(self, entry: Entry) -> Iterator[bytes]:
        """Yield an object's content, a large one's in pieces; what is wrong with it may show only at its end."""
        if not is_large(entry):
            yield self.get(entry)
            return
        with self._naming_damage(entry):
            digest = new_hash(self._id_length, entry.type_num, entry.raw_size)
            yield from hashed(self._stream(entry), digest, entry.id)

    def read_at(self, entry: Entry, offset: int, size: int) -> bytes:
        """Return up to ``size`` bytes of content from ``offset``, short at its end; raises as ``get``."""
        if not is_large(entry):
            return self.get(entry)[offset : offset + size]
        with self._naming_damage(entry):
            spool = self._spools.get(
                entry.id, entry.type_num, entry.raw_size, lambda: self._stream(entry)
            )
            return spool.read_at(offset, size)

    def _stream(self, entry: Entry) -> Iterator[bytes]:
        return stream(self._entries, entry.offset, _read_elsewhere, self._spools.directory)

    @contextmanager
    def _naming_damage(self, entry: Entry) -> Iterator[None]:
        try:
            yield
        except _DAMAGE as error:
            raise self._named(error, entry) from error

    def _named(self, error: Exception, entry: Entry) -> StorageError:
        if isinstance(error, OSError):
            return StorageError(f"reading {self.path} failed: {error.strerror}")
        return self.corrupt(entry, str(error))

    def check(self, entries: Iterable[Entry]) -> Iterator[tuple[Entry, StorageError | None]]:
        """Go through objects; all are made in one pass, and what did not come out of it is tried alone."""
        sound = {entry.id: entry.offset for entry in self._salvaged()}
        left = []
        for entry in entries:
            if sound.get(entry.id) == entry.offset:
                yield entry, None
            else:
                left.append(entry)
        yield from super().check(left)

    def scan(self) -> Iterator[Entry]:
        """Find the objects without an index: all that can be made of what is sound, in order of offsets."""
        found = sorted(self._salvaged(), key=lambda entry: entry.offset)
        self._entries.find = {entry.id: entry.offset for entry in found}.get
        return iter(found)

    def _salvaged(self) -> Iterator[Entry]:
        from heddle.objects.listing import salvage

        self.refresh_size()
        yield from salvage(self._scanned, self.size, self._id_length)


class _Entries(PackEntries):
    """The bytes of a kept pack; refers to no KeptPack, which closes its file when nobody refers to it.

    Attributes:
        find: where an object lies, for a delta that names its base by its id; None: as the index says.
    """

    def __init__(self, path: Path, id_length: int, fd: int, find: Find | None) -> None:
        super().__init__(path, id_length)
        self._fd = fd
        self.find = find

    def _pread(self, size: int, offset: int) -> bytes:
        return os.pread(self._fd, size, offset)

    def _find(self, raw_id: bytes) -> int | None:
        if self.find is None:
            self.find = offsets(open_index(self.path.with_suffix(".idx"), self._id_length))
        return self.find(raw_id)


def offsets(index: Index) -> Find:
    """Where the objects of an index lie."""

    def find(raw_id: bytes) -> int | None:
        entry = index.find(raw_id)
        return None if entry is None else entry.offset

    return find


def _elsewhere(raw_id: bytes) -> tuple[int, bytes]:
    raise Damaged(f"its base {raw_id.hex()} is not in the pack")


def _read_elsewhere(raw_id: bytes, offset: int, size: int) -> bytes:
    return _elsewhere(raw_id)[1]
