"""The object store: every object of a repository, wherever it lies, by its git id.

Owns where objects are looked for: the packs, then the alternates. Packs are ``packs.py``'s and those below it; what
needs dulwich imported (its full interface, git's own object directories) is ``bridge.py``'s and ``gitdir.py``'s,
which are loaded only when asked for, because most commands never ask.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from heddle import faults
from heddle.atomic import fsync_directory, write_file
from heddle.errors import CorruptObject
from heddle.objects.check import Problem, reindex, verify, verify_indexes
from heddle.objects.gitformat import BLOB, ID_LENGTHS, TREE, decode_tree, to_hex, to_raw
from heddle.objects.layout import CHUNKED, Entry
from heddle.objects.output import remove_abandoned
from heddle.objects.pack import PackWriter
from heddle.objects.packfile import PackFile
from heddle.objects.packs import PackDirectory

if TYPE_CHECKING:
    from dulwich.object_format import ObjectFormat
    from dulwich.object_store import PackCapableObjectStore as _Interface
    from dulwich.objects import ObjectID, ShaFile

    class Alternate(Protocol):
        """Another object directory, read as it is; raises KeyError and CorruptObject as the store does."""

        path: Path

        def holds(self, raw_id: bytes) -> bool: ...
        def contains(self, raw_id: bytes) -> bool: ...
        def kind(self, object_id: bytes) -> int: ...
        def size(self, object_id: bytes) -> int: ...
        def is_chunked(self, object_id: bytes) -> bool: ...
        def get_raw(self, name: bytes) -> tuple[int, bytes]: ...
        def read_at(self, object_id: bytes, offset: int, size: int) -> bytes: ...
        def iter_ids(self) -> Iterator[bytes]: ...
        def iter_prefix(self, prefix: bytes) -> Iterator[ObjectID]: ...
        def close(self) -> None: ...

else:
    _Interface = object

__all__ = ["ObjectStore", "PackWriter", "Problem"]

_CACHE_BYTES = 4 << 20
_UNLIST = "bring the directory back, or take its line out of objects/alternates"
_T = TypeVar("_T")


class ObjectStore(_Interface):
    """All objects of a repository, behind dulwich's object-store interface.

    Safe for several threads; readers take no lock against other processes. A lookup that misses looks at the
    directory again before it says so with a KeyError, as dulwich expects. An id is taken in hex or in binary.

    It can be given to dulwich's functions as it is. What dulwich's own class adds beyond the methods here is found on
    ``dulwich_store``, made when first needed: importing dulwich costs more than a whole ``heddle status``.

    Args:
        path: ``.heddle/objects``.
        object_format: ``sha1`` or ``sha256``.

    Attributes:
        path: ``.heddle/objects``.
        format_name: ``sha1`` or ``sha256``.
        id_length: bytes of a binary id.
    """

    def __init__(self, path: Path, *, object_format: str = "sha1") -> None:
        self.path = Path(path)
        self.format_name = object_format
        self.id_length = ID_LENGTHS[object_format]
        self._packs = PackDirectory(self.path / "packs", self.id_length)
        self._cache = _ContentCache(_CACHE_BYTES)
        self._lock = threading.Lock()
        self._alternates: list[Alternate] | None = None
        self._opened_by: frozenset[Path] = frozenset()
        self._dulwich_store: _Interface | None = None

    @classmethod
    def create(cls, path: Path, *, object_format: str = "sha1") -> ObjectStore:
        """Make an empty object directory and open it."""
        (path / "packs").mkdir(parents=True)
        faults.reach("store.made")
        fsync_directory(path)
        return cls(path, object_format=object_format)

    # Dulwich's face

    @property
    def object_format(self) -> ObjectFormat:  # type: ignore[override]
        """The object format, as dulwich names it."""
        from dulwich.object_format import get_object_format

        return get_object_format(self.format_name)

    @property
    def dulwich_store(self) -> _Interface:
        """This store as an instance of dulwich's own class."""
        if self._dulwich_store is None:
            from heddle.objects.bridge import DulwichStore

            self._dulwich_store = DulwichStore(self)
        return self._dulwich_store

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.dulwich_store, name)

    def __getitem__(self, object_id: bytes) -> ShaFile:
        """The object as dulwich's ShaFile; raises as ``get_raw``."""
        from dulwich.objects import ShaFile

        type_num, content = self.get_raw(object_id)
        # Told its id, dulwich neither hashes the content again nor takes every id for a SHA-1.
        return ShaFile.from_raw_string(
            type_num, content, to_hex(self._raw(object_id)), object_format=self.object_format
        )

    # Looking up

    def _raw(self, object_id: bytes) -> bytes:
        return to_raw(object_id, self.id_length)

    def _elsewhere(self, raw_id: bytes) -> Alternate:
        """The alternate that holds an object which no pack has.

        Raises:
            CorruptObject: a pack has it, but no sound index.
            KeyError: nobody has it.
        """
        for alternate in self.alternates:
            if alternate.contains(raw_id):
                return alternate
        self._packs.explain_miss(raw_id)
        raise KeyError(to_hex(raw_id))

    def holds(self, raw_id: bytes) -> bool:
        """Say whether an object is stored, going by the last look at the directory: costs no system call."""
        return self._packs.find(raw_id) is not None or any(
            alternate.holds(raw_id) for alternate in self.alternates
        )

    def contains(self, raw_id: bytes) -> bool:
        """Say whether an object is stored here or in an alternate."""
        return self._packs.find_anew(raw_id) is not None or any(
            alternate.contains(raw_id) for alternate in self.alternates
        )

    def __contains__(self, object_id: bytes) -> bool:
        try:
            return self.contains(self._raw(object_id))
        except KeyError:
            return False

    def contains_packed(self, object_id: bytes) -> bool:
        """Say whether one of this store's own packs holds the object."""
        return self._packs.find_anew(self._raw(object_id)) is not None

    def contains_loose(self, object_id: bytes) -> bool:
        """Say whether the object is stored but in no pack of this store: in an alternate, then."""
        raw_id = self._raw(object_id)
        return any(alternate.contains(raw_id) for alternate in self.alternates)

    # Reading

    def kind(self, object_id: bytes) -> int:
        """An object's type number, without reading the object.

        Raises:
            KeyError: there is no such object.
            CorruptObject: what is stored about it is damaged.
        """
        raw_id = self._raw(object_id)
        found = self._packs.find_anew(raw_id)
        return found[1].type_num if found else self._elsewhere(raw_id).kind(raw_id)

    def size(self, object_id: bytes) -> int:
        """The length of an object's content in bytes, without reading the object; raises as ``kind``."""
        raw_id = to_raw(object_id, self.id_length)
        found = self._packs.find_anew(raw_id)
        return found[1].raw_size if found else self._elsewhere(raw_id).size(raw_id)

    def sizes(self, object_ids: Iterable[bytes]) -> list[int]:
        """The length of each object's content in bytes; raises as ``kind``."""
        return [self.size(object_id) for object_id in object_ids]

    def is_chunked(self, object_id: bytes) -> bool:
        """Say whether ``read_at`` reaches parts of an object without decompressing the whole; raises as ``kind``."""
        raw_id = self._raw(object_id)
        found = self._packs.find_anew(raw_id)
        return found[1].kind == CHUNKED if found else self._elsewhere(raw_id).is_chunked(raw_id)

    def get_raw(self, name: bytes) -> tuple[int, bytes]:
        """An object's type number and content, checked against the recorded length and checksum.

        Args:
            name: the id, in hex or binary.

        Raises:
            KeyError: there is no such object.
            CorruptObject: the stored bytes are not what was written.
        """
        raw_id = self._raw(name)
        return self._cache.get(raw_id) or self._read(
            raw_id, self._get_entry, lambda alternate: alternate.get_raw(raw_id)
        )

    def _get_entry(self, pack: PackFile, entry: Entry) -> tuple[int, bytes]:
        found = entry.type_num, pack.get(entry)
        if entry.type_num != BLOB:
            self._cache.put(entry.id, found)
        return found

    def _read(
        self,
        raw_id: bytes,
        from_pack: Callable[[PackFile, Entry], _T],
        from_alternate: Callable[[Alternate], _T],
    ) -> _T:
        """Read an object where it is; looks again when gc took its pack away meanwhile."""
        while (found := self._packs.find_anew(raw_id)) is not None:
            index, entry = found
            try:
                pack = self._packs.open(index)
            except FileNotFoundError:
                self._packs.forget(index)
                continue
            return from_pack(pack, entry)
        return from_alternate(self._elsewhere(raw_id))

    def read_at(self, object_id: bytes, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes of an object's content from ``offset``, short at its end.

        Only the frames that hold them are read where the object is chunked. Raises as ``get_raw``.
        """
        raw_id = self._raw(object_id)
        return self._read(
            raw_id,
            lambda pack, entry: pack.read_at(entry, offset, size),
            lambda alternate: alternate.read_at(raw_id, offset, size),
        )

    def iter_blob(self, object_id: bytes, chunk_size: int = 1 << 20) -> Iterator[bytes]:
        """Yield an object's content in pieces of at most ``chunk_size`` bytes; raises as ``get_raw``."""
        if self.is_chunked(object_id):
            for at in range(0, self.size(object_id), chunk_size):
                yield self.read_at(object_id, at, chunk_size)
        else:
            content = self.get_raw(object_id)[1]
            for at in range(0, len(content), chunk_size):
                yield content[at : at + chunk_size]

    def tree_entries(self, object_id: bytes) -> list[tuple[bytes, int, ObjectID]]:
        """A tree's (name, mode, hex id) in git's order.

        Raises:
            KeyError: there is no such object.
            CorruptObject: it is not a tree, or not a sound one.
        """
        type_num, content = self.get_raw(object_id)
        entries = decode_tree(content, self.id_length) if type_num == TREE else None
        if entries is None:
            raise CorruptObject(
                f"object {to_hex(self._raw(object_id)).decode()} is not a sound tree"
            )
        return entries

    # Listing

    def __iter__(self) -> Iterator[ObjectID]:
        """The id of every object here and in the alternates, once each."""
        return map(to_hex, set(self.iter_ids()))

    def iter_ids(self) -> Iterator[bytes]:
        """The binary id of every object here and in the alternates, some more than once."""
        for index in self._packs.indexes():
            yield from index.ids()
        for alternate in self.alternates:
            yield from alternate.iter_ids()

    def iter_prefix(self, prefix: bytes) -> Iterator[ObjectID]:
        """The ids that begin with some hex digits, in order, once each."""
        digits = prefix.decode("ascii", "replace")
        try:
            first = bytes.fromhex(digits.ljust(2 * self.id_length, "0"))
            last = bytes.fromhex(digits.ljust(2 * self.id_length, "f"))
        except ValueError:
            return
        found = {
            to_hex(raw_id)
            for index in self._packs.indexes()
            for raw_id in index.ids_between(first, last)
        }
        for alternate in self.alternates:
            found.update(alternate.iter_prefix(prefix))
        yield from sorted(found)

    # Writing

    def writer(self) -> PackWriter:
        """A writer of one new pack; use it as a context manager and call its ``commit``."""
        self.refresh()
        remove_abandoned(self._packs.path, self._packs.temporary)
        return PackWriter(self)

    def add_object(self, obj: ShaFile) -> None:
        """Store one object in a pack of its own; for many use ``writer`` or ``add_objects``."""
        self.add_objects([(obj, None)])

    def add_objects(
        self,
        objects: Iterable[tuple[ShaFile, str | None]],
        progress: Callable[..., None] | None = None,
    ) -> None:
        """Store objects as one pack; ``progress`` is dulwich's, and there is nothing to tell it."""
        with self.writer() as writer:
            for obj, _ in objects:
                writer.add(obj.type_num, obj.as_raw_string())
            writer.commit()

    # Packs and alternates

    def refresh(self) -> None:
        """See packs that other processes added; lookups that miss do this by themselves."""
        self._packs.refresh()

    @property
    def packs(self) -> list[Any]:
        """Git's packs that dulwich could copy deltas from: none."""
        return []

    @property
    def alternates(self) -> list[Alternate]:
        """The other object directories that are read as they are, in the order of their file."""
        if self._alternates is None:
            with self._lock:
                paths = [self.path / path for path in self._alternate_paths()]
                opened = [self._open_alternate(path) for path in paths if path.is_dir()]
                self._alternates = [each for each in opened if each is not None]
        return self._alternates

    def _alternate_paths(self) -> list[Path]:
        try:
            lines = (self.path / "alternates").read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        return [Path(os.fsdecode(line)) for line in lines if line]

    def missing_alternates(self) -> list[Path]:
        """The alternates whose directories are not there."""
        return [path for path in self._alternate_paths() if not (self.path / path).is_dir()]

    def _open_alternate(self, path: Path) -> Alternate | None:
        """Open a directory, unless it is one of those that led here."""
        if not (path / "packs").is_dir():
            from heddle.objects.gitdir import GitObjects

            return GitObjects(path, self.format_name)
        opened_by = self._opened_by | {self.path.resolve()}
        if path.resolve() in opened_by:
            return None
        store = ObjectStore(path, object_format=self.format_name)
        store._opened_by = opened_by
        return store

    def add_alternate(self, path: Path) -> None:
        """Read another object directory too: a ``.git/objects`` or another repository's ``.heddle/objects``.

        Args:
            path: the directory; a relative path is taken from this process's working directory and stored absolute.
        """
        path = Path(path).absolute()
        with self._lock:
            paths = self._alternate_paths()
            if path not in paths:
                lines = [os.fsencode(each) + b"\n" for each in [*paths, path]]
                write_file(self.path / "alternates", b"".join(lines))
            self._alternates = None

    def close(self) -> None:
        """Close what is open; the store can still be used."""
        self._packs.close()
        with self._lock:
            alternates, self._alternates = self._alternates or [], None
        for alternate in alternates:
            alternate.close()

    # Checking and repairing

    def verify(
        self, *, full: bool, progress: Callable[[int, int], None] | None = None
    ) -> Iterator[Problem]:
        """Check every pack and index; whether all that states refer to is there is not asked here.

        Args:
            full: also decompress every object and compare its id.
            progress: called with (objects done, objects in all).

        Yields:
            What is wrong, in the order in which it is found.
        """
        for path in self.missing_alternates():
            yield Problem("missing_alternate", f"the alternate {path} is not there", _UNLIST)
        yield from verify(self._packs.path, self.id_length, full=full, progress=progress)

    def verify_indexes(self) -> Iterator[Problem]:
        """Check that every pack has a sound index; reads no pack."""
        yield from verify_indexes(self.path / "packs", self.id_length)

    def reindex(self) -> list[str]:
        """Rebuild every missing or damaged index from its pack.

        Returns:
            The names of the packs that have a new index.
        """
        rebuilt = reindex(self._packs.path, self.id_length)
        self._packs.reload()
        return rebuilt


class _ContentCache:
    """The contents read last, up to a number of bytes."""

    _OVERHEAD = 250

    def __init__(self, limit_bytes: int) -> None:
        self._left = limit_bytes
        self._contents: OrderedDict[bytes, tuple[int, bytes]] = OrderedDict()
        self._largest = limit_bytes // 4
        self._lock = threading.Lock()

    def get(self, raw_id: bytes) -> tuple[int, bytes] | None:
        with self._lock:
            found = self._contents.get(raw_id)
            if found is not None:
                self._contents.move_to_end(raw_id)
            return found

    def put(self, raw_id: bytes, found: tuple[int, bytes]) -> None:
        size = len(found[1]) + self._OVERHEAD
        with self._lock:
            if size > self._largest or raw_id in self._contents:
                return
            self._contents[raw_id] = found
            self._left -= size
            while self._left < 0:
                _, (_, content) = self._contents.popitem(last=False)
                self._left += len(content) + self._OVERHEAD
