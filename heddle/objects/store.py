"""The object store: every object of a repository, wherever it lies, by its git id.

Owns which packs and alternates there are and which of them holds an object. Reading and writing one pack is
``pack.py``'s; everything that needs dulwich (its full interface, git's own object directories) is ``bridge.py``'s and
is imported only when asked for, because most commands never do.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from heddle.atomic import fsync_directory, write_file
from heddle.errors import CorruptObject
from heddle.objects.index import Index
from heddle.objects.layout import (
    BLOB,
    CHUNKED,
    ID_LENGTHS,
    REINDEX_HINT,
    TREE,
    Entry,
    corrupt,
    to_hex,
    to_raw,
)
from heddle.objects.pack import PackFile, PackWriter

if TYPE_CHECKING:
    from dulwich.object_format import ObjectFormat
    from dulwich.object_store import PackCapableObjectStore as _Interface
    from dulwich.objects import ObjectID, ShaFile
else:
    _Interface = object

__all__ = ["ObjectStore", "PackWriter", "Problem"]

_FILE = re.compile(r"[0-9a-f]{64}\.(pack|idx)")
_TREE_ENTRY = {
    length: re.compile(rb"([0-7]{5,6}) ([^\0/]+)\0(.{%d})" % length, re.DOTALL)
    for length in ID_LENGTHS.values()
}
_SMALL_INDEX = 4096
"""Packs with at most so many objects are looked up through one table in memory."""
_OPEN_PACKS = 64
_CACHE_BYTES = 8 << 20
_SETTLED_NS = 50_000_000
"""A directory whose mtime is older than this when it is listed will show a later change by another mtime."""


class Problem(NamedTuple):
    """One thing that ``verify`` found.

    Attributes:
        kind: stable name: ``damaged_pack``, ``damaged_object``, ``damaged_index``, ``missing_index``,
            ``missing_pack``, ``left_over``.
        what: one line for the user.
        repair: what to do about it, one line.
    """

    kind: str
    what: str
    repair: str


class Alternate(Protocol):
    """Another object directory, read as it is."""

    path: Path

    def find_raw(self, raw_id: bytes) -> bool: ...
    def get_raw(self, object_id: bytes) -> tuple[int, bytes]: ...
    def kind(self, object_id: bytes) -> int: ...
    def size(self, object_id: bytes) -> int: ...
    def iter_ids(self) -> Iterator[bytes]: ...
    def iter_prefix(self, prefix: bytes) -> Iterator[Any]: ...


class ObjectStore(_Interface):
    """All objects of a repository: its packs, then its alternates.

    Safe for several threads. Readers take no lock against other processes: packs never change, and one that appears
    is found when a lookup misses. A missing object is a KeyError, as dulwich expects. Where dulwich wants a
    ``BaseObjectStore`` this object serves; what is not defined here is looked up in ``dulwich_store``.

    Args:
        path: ``.heddle/objects``.
        object_format: ``sha1`` or ``sha256``.
    """

    def __init__(self, path: Path, *, object_format: str = "sha1") -> None:
        self.path = Path(path)
        self.format_name = object_format
        self.id_length = ID_LENGTHS[object_format]
        self._packs = _Packs(self.path / "packs", self.id_length)
        self._alternates: list[Alternate] | None = None
        self._cache = _ContentCache(_CACHE_BYTES)
        self._lock = threading.Lock()
        self._dulwich_store: Any = None

    @classmethod
    def create(cls, path: Path, *, object_format: str = "sha1") -> ObjectStore:
        """Make an empty object directory."""
        (path / "packs").mkdir(parents=True)
        fsync_directory(path)
        return cls(path, object_format=object_format)

    # Dulwich's face

    @property
    def object_format(self) -> ObjectFormat:  # type: ignore[override]
        from dulwich.object_format import get_object_format

        return get_object_format(self.format_name)

    @property
    def dulwich_store(self) -> _Interface:
        """This store as an instance of dulwich's own class."""
        if self._dulwich_store is None:
            from heddle.objects.bridge import DulwichStore

            self._dulwich_store = DulwichStore(self)
        return self._dulwich_store  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.dulwich_store, name)

    # Looking up

    def _find(self, raw_id: bytes) -> tuple[Index, Entry] | None:
        """Where an object of ours is, looking again at the directory before saying nowhere."""
        return self._packs.find(raw_id) or (
            self._packs.find(raw_id) if self._packs.refresh_if_changed() else None
        )

    def _raw(self, object_id: bytes) -> bytes:
        return to_raw(object_id, self.id_length)

    def holds(self, raw_id: bytes) -> bool:
        """Say whether an object is stored, going by what was known at the last look at the directory."""
        return self._packs.find(raw_id) is not None or any(
            alternate.find_raw(raw_id) for alternate in self.alternates
        )

    def find_raw(self, raw_id: bytes) -> bool:
        """Say whether an object is stored, in this store or an alternate."""
        return self._find(raw_id) is not None or any(
            alternate.find_raw(raw_id) for alternate in self.alternates
        )

    def __contains__(self, object_id: bytes) -> bool:
        try:
            return self.find_raw(self._raw(object_id))
        except KeyError:
            return False

    def contains_packed(self, object_id: bytes) -> bool:
        """Say whether one of this store's own packs holds the object."""
        return self._find(self._raw(object_id)) is not None

    def contains_loose(self, object_id: bytes) -> bool:
        """Say whether an alternate holds the object; this store has no loose ones."""
        raw_id = self._raw(object_id)
        return any(alternate.find_raw(raw_id) for alternate in self.alternates)

    def _elsewhere(self, raw_id: bytes) -> Alternate:
        """The alternate that has an object.

        Raises:
            CorruptObject: a pack without a sound index has it.
            KeyError: nobody has it.
        """
        for alternate in self.alternates:
            if alternate.find_raw(raw_id):
                return alternate
        self._packs.check_unindexed(raw_id)
        raise KeyError(to_hex(raw_id))

    # Reading

    def kind(self, object_id: bytes) -> int:
        """An object's type number, without reading the object.

        Raises:
            KeyError: there is no such object.
            CorruptObject: what is stored about it is damaged.
        """
        raw_id = self._raw(object_id)
        found = self._find(raw_id)
        return found[1].type_num if found else self._elsewhere(raw_id).kind(to_hex(raw_id))

    def size(self, object_id: bytes) -> int:
        """The length of an object's content in bytes, without reading the object; raises as ``kind``."""
        raw_id = self._raw(object_id)
        found = self._find(raw_id)
        return found[1].raw_size if found else self._elsewhere(raw_id).size(to_hex(raw_id))

    def sizes(self, object_ids: Iterable[bytes]) -> list[int]:
        """The lengths of many objects; see ``size``."""
        return [self.size(object_id) for object_id in object_ids]

    def is_chunked(self, object_id: bytes) -> bool:
        """Say whether an object is stored as frames that ``read_at`` reaches one by one."""
        found = self._find(self._raw(object_id))
        return found is not None and found[1].kind == CHUNKED

    def get_raw(self, name: bytes) -> tuple[int, bytes]:
        """An object's type number and content, checked against the recorded length and checksum.

        Args:
            name: the id, in hex or binary.

        Raises:
            KeyError: there is no such object.
            CorruptObject: the stored bytes are not what was written.
        """
        raw_id = self._raw(name)
        cached = self._cache.get(raw_id)
        if cached is not None:
            return cached
        return self._with_pack(raw_id, self._read_entry, self._get_elsewhere)  # type: ignore[no-any-return]

    def _read_entry(self, pack: PackFile, entry: Entry) -> tuple[int, bytes]:
        found = entry.type_num, pack.get(entry)
        if entry.type_num != BLOB:
            self._cache.put(entry.id, found)
        return found

    def _get_elsewhere(self, raw_id: bytes) -> tuple[int, bytes]:
        return self._elsewhere(raw_id).get_raw(to_hex(raw_id))

    def _with_pack(
        self,
        raw_id: bytes,
        read: Callable[[PackFile, Entry], Any],
        elsewhere: Callable[[bytes], Any],
    ) -> Any:
        """Read an object from its pack; looks again when gc took the pack away meanwhile."""
        while (found := self._find(raw_id)) is not None:
            index, entry = found
            try:
                pack = self._packs.open(index)
            except FileNotFoundError:
                self._packs.forget(index)
                continue
            return read(pack, entry)
        return elsewhere(raw_id)

    def read_at(self, object_id: bytes, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes of an object's content from ``offset``; short at its end. Raises as ``get_raw``."""
        return self._with_pack(  # type: ignore[no-any-return]
            self._raw(object_id),
            lambda pack, entry: pack.read_at(entry, offset, size),
            lambda raw_id: self._get_elsewhere(raw_id)[1][offset : offset + size],
        )

    def iter_blob(self, object_id: bytes, chunk_size: int = 1 << 20) -> Iterator[bytes]:
        """Yield an object's content in pieces of at most ``chunk_size`` bytes; raises as ``get_raw``."""
        if not self.is_chunked(object_id):
            content = self.get_raw(object_id)[1]
            for at in range(0, len(content), chunk_size):
                yield content[at : at + chunk_size]
            return
        for at in range(0, self.size(object_id), chunk_size):
            yield self.read_at(object_id, at, chunk_size)

    def tree_entries(self, object_id: bytes) -> list[tuple[bytes, int, ObjectID]]:
        """A tree's (name, mode, hex id) in git's order.

        Raises:
            KeyError: there is no such object.
            CorruptObject: it is not a tree, or not a sound one.
        """
        type_num, content = self.get_raw(object_id)
        found = _TREE_ENTRY[self.id_length].findall(content)
        overhead = self.id_length + 2
        length = sum([len(mode) + len(name) + overhead for mode, name, _ in found])
        if type_num != TREE or length != len(content):
            raise CorruptObject(
                f"object {to_hex(self._raw(object_id)).decode()} is not a sound tree"
            )
        return [(name, int(mode, 8), to_hex(raw_id)) for mode, name, raw_id in found]

    def __getitem__(self, object_id: bytes) -> ShaFile:
        """The object as dulwich's ShaFile; raises as ``get_raw``."""
        from dulwich.objects import ShaFile

        type_num, content = self.get_raw(object_id)
        return ShaFile.from_raw_string(type_num, content, object_format=self.object_format)

    def __iter__(self) -> Iterator[ObjectID]:
        """The id of every object here and in the alternates, once each."""
        seen: set[bytes] = set()
        for raw_id in self.iter_ids():
            if raw_id not in seen:
                seen.add(raw_id)
                yield to_hex(raw_id)

    def iter_ids(self) -> Iterator[bytes]:
        """The binary id of every object, possibly more than once."""
        self.refresh()
        for index in self._packs.all():
            yield from index.ids()
        for alternate in self.alternates:
            yield from alternate.iter_ids()

    def iter_prefix(self, prefix: bytes) -> Iterator[ObjectID]:
        """The ids that begin with a hex prefix, once each."""
        width = 2 * self.id_length
        try:
            first = bytes.fromhex(prefix.decode().ljust(width, "0"))
            last = bytes.fromhex(prefix.decode().ljust(width, "f"))
        except ValueError:
            return
        self.refresh()
        found = {
            to_hex(raw_id)
            for index in self._packs.all()
            for raw_id in index.starting_with(first, last)
        }
        for alternate in self.alternates:
            found.update(alternate.iter_prefix(prefix))
        yield from sorted(found)

    # Writing

    def writer(self) -> PackWriter:
        """A writer of one new pack; use it as a context manager and call its ``commit``."""
        self.refresh()
        return PackWriter(self)

    def add_object(self, obj: ShaFile) -> None:
        """Store one object in a pack of its own; for many use ``writer`` or ``add_objects``."""
        self.add_objects([(obj, None)])

    def add_objects(
        self,
        objects: Iterable[tuple[ShaFile, str | None]],
        progress: Callable[..., None] | None = None,
    ) -> None:
        """Store objects as one pack."""
        with self.writer() as writer:
            for obj, _ in objects:
                writer.add(obj.type_num, obj.as_raw_string())
            writer.commit()

    # Packs and alternates

    def refresh(self) -> None:
        """See packs that other processes added."""
        self._packs.refresh_if_changed()

    @property
    def alternates(self) -> list[Alternate]:
        """Other object directories that are read as they are."""
        if self._alternates is None:
            with self._lock:
                self._alternates = self._open_alternates()
        return self._alternates

    def _open_alternates(self) -> list[Alternate]:
        try:
            lines = (self.path / "alternates").read_bytes().splitlines()
        except FileNotFoundError:
            return []
        return [self._open_alternate(Path(os.fsdecode(line))) for line in lines if line.strip()]

    def _open_alternate(self, path: Path) -> Alternate:
        absolute = self.path / path
        if (absolute / "packs").is_dir():
            return ObjectStore(absolute, object_format=self.format_name)
        from heddle.objects.bridge import GitAlternate

        alternate: Alternate = GitAlternate(absolute, self.format_name)
        return alternate

    def add_alternate(self, path: Path) -> None:
        """Read another object directory too: a ``.git/objects`` or another repository's ``.heddle/objects``."""
        file = self.path / "alternates"
        line = os.fsencode(Path(path).absolute())
        lines = file.read_bytes().splitlines() if file.exists() else []
        if line not in lines:
            write_file(file, b"".join(each + b"\n" for each in [*lines, line]))
        self._alternates = None

    @property
    def packs(self) -> list[Any]:
        """Git's own packs that dulwich could copy from: none."""
        return []

    def close(self) -> None:
        """Forget open files; the store can still be used."""
        self._packs.close()

    # Checking and repairing

    def verify(
        self, *, full: bool, progress: Callable[[int, int], None] | None = None
    ) -> Iterator[Problem]:
        """Check every pack and index.

        Args:
            full: also decompress every object and hash it again.
            progress: called with (objects done, objects in all).
        """
        from heddle.objects.check import verify

        return verify(self, full=full, progress=progress)

    def reindex(self) -> list[str]:
        """Rebuild every missing or damaged index from its pack.

        Returns:
            The names of the packs that have a new index.
        """
        from heddle.objects.check import reindex

        rebuilt = reindex(self.path / "packs", self.id_length)
        self._packs.reload()
        return rebuilt


class _Packs:
    """The packs of one directory: which there are, and which holds an object."""

    def __init__(self, directory: Path, id_length: int) -> None:
        self.directory = directory
        self.id_length = id_length
        self._lock = threading.RLock()
        self._listed: tuple[int, bool] | None = None
        self._indexes: dict[str, Index] = {}
        self._unloaded: list[str] = []
        self._damaged: dict[str, str] = {}
        self._unindexed: set[str] = set()
        self._small: dict[bytes, Index] = {}
        self._large: tuple[Index, ...] = ()
        self._files: OrderedDict[str, PackFile] = OrderedDict()

    def find(self, raw_id: bytes) -> tuple[Index, Entry] | None:
        """Where an object is among the packs known so far."""
        if self._listed is None:
            self.refresh_if_changed()
        index = self._small.get(raw_id)
        if index is not None:
            entry = index.find(raw_id)
            if entry is not None:
                return index, entry
        for index in self._large:
            entry = index.find(raw_id)
            if entry is not None:
                return index, entry
        while self._unloaded:
            loaded = self._load_next()
            if loaded is not None and (entry := loaded.find(raw_id)) is not None:
                return loaded, entry
        return None

    def _load_next(self) -> Index | None:
        with self._lock:
            if not self._unloaded:
                return None
            name = self._unloaded[-1]
            index = self._load(name)
            self._unloaded.pop()
            return index

    def _load(self, name: str) -> Index | None:
        path = self.directory / f"{name}.idx"
        try:
            index = Index(path, self.id_length)
        except FileNotFoundError:
            return None
        except CorruptObject as error:
            self._damaged[name] = error.message
            return None
        self._indexes[name] = index
        if index.count <= _SMALL_INDEX:
            self._small.update(dict.fromkeys(index.ids(), index))
        else:
            self._large = (index, *self._large)
        return index

    def all(self) -> list[Index]:
        """Every sound index."""
        if self._listed is None:
            self.refresh_if_changed()
        while self._unloaded:
            self._load_next()
        with self._lock:
            return list(self._indexes.values())

    def refresh_if_changed(self) -> bool:
        """List the directory again if it may have changed; say whether it was listed."""
        with self._lock:
            mtime = os.stat(self.directory).st_mtime_ns
            if self._listed == (mtime, True):
                return False
            self._listed = (mtime, mtime < time.time_ns() - _SETTLED_NS)
            self._list()
            return True

    def _list(self) -> None:
        with os.scandir(self.directory) as entries:
            found = {entry.name: entry for entry in entries if _FILE.fullmatch(entry.name)}
        packs = {name[:64] for name in found if name.endswith(".pack")}
        indexed = {name[:64] for name in found if name.endswith(".idx")} & packs
        known = self._indexes.keys() | self._damaged.keys() | set(self._unloaded)
        for name in known - indexed:
            self._drop(name)
        new = [(found[f"{name}.idx"].stat().st_mtime_ns, name) for name in indexed - known]
        self._unloaded = [name for _, name in sorted(new)] + self._unloaded
        self._unindexed = packs - indexed

    def _drop(self, name: str) -> None:
        self._damaged.pop(name, None)
        self._files.pop(name, None)
        if name in self._unloaded:
            self._unloaded.remove(name)
        index = self._indexes.pop(name, None)
        if index is not None:
            self._large = tuple(each for each in self._large if each is not index)
            self._small = {key: each for key, each in self._small.items() if each is not index}

    def forget(self, index: Index) -> None:
        """Stop looking into a pack whose file is gone."""
        with self._lock:
            self._drop(index.path.stem)
            self._listed = (0, False)

    def reload(self) -> None:
        """Begin again from the directory."""
        with self._lock:
            for name in [*self._indexes, *self._damaged, *self._unloaded]:
                self._drop(name)
            self._listed = None

    def open(self, index: Index) -> PackFile:
        """The pack file of an index; raises FileNotFoundError when it is gone."""
        name = index.path.name
        with self._lock:
            pack = self._files.get(name)
            if pack is None:
                pack = self._files[name] = PackFile(index.pack_path, self.id_length)
                if len(self._files) > _OPEN_PACKS:
                    self._files.popitem(last=False)
            else:
                self._files.move_to_end(name)
            return pack

    def check_unindexed(self, raw_id: bytes) -> None:
        """Raise CorruptObject when a pack without a sound index holds an object that was not found."""
        why = dict.fromkeys(self._unindexed, "it has no index") | self._damaged
        for name, reason in why.items():
            try:
                pack = PackFile(self.directory / f"{name}.pack", self.id_length)
            except FileNotFoundError:
                continue
            if any(entry.id == raw_id for entry in pack.scan()):
                raise corrupt(str(pack.path), raw_id, reason, hint=REINDEX_HINT)

    def close(self) -> None:
        with self._lock:
            self._files.clear()


class _ContentCache:
    """The last contents read, up to a number of bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._contents: OrderedDict[bytes, tuple[int, bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, raw_id: bytes) -> tuple[int, bytes] | None:
        return self._contents.get(raw_id)

    def put(self, raw_id: bytes, found: tuple[int, bytes]) -> None:
        size = len(found[1]) + 200
        if size > self._limit // 4:
            return
        with self._lock:
            if raw_id in self._contents:
                return
            self._contents[raw_id] = found
            self._used += size
            while self._used > self._limit:
                _, (_, content) = self._contents.popitem(last=False)
                self._used -= len(content) + 200
