"""The object store: every object of a repository, wherever it lies, by its git id.

Owns where objects are looked for: the packs, then the alternates, then the remote that has promised them
(``promised.py``). Packs are ``packs.py``'s and those below it; what needs dulwich imported (its full interface, git's
own object directories) is ``bridge.py``'s and ``gitdir.py``'s, which are loaded only when asked for, because most
commands never ask.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from heddle import faults
from heddle.atomic import fsync_directory, write_file
from heddle.errors import CorruptObject, StorageError
from heddle.objects.cache import ContentCache
from heddle.objects.check import Problem, reindex, verify, verify_indexes
from heddle.objects.gitformat import BLOB, ID_LENGTHS, TREE, decode_tree, to_hex, to_raw
from heddle.objects.holding import Hold
from heddle.objects.layout import Entry, is_large
from heddle.objects.output import remove_abandoned
from heddle.objects.pack import PackWriter
from heddle.objects.packfile import PackFile
from heddle.objects.packs import PackDirectory
from heddle.objects.promised import ObjectNotHere, Progress, Promises, Provider
from heddle.objects.told import ToldSizes

if TYPE_CHECKING:
    from dulwich.object_format import ObjectFormat
    from dulwich.object_store import PackCapableObjectStore as _Interface
    from dulwich.objects import ObjectID, ShaFile

    from heddle.objects.index import Index

    class Alternate(Protocol):
        """Another object directory, read as it is; raises KeyError and CorruptObject as the store does."""

        path: Path

        @property
        def is_partial(self) -> bool: ...
        def promises_id(self, raw_id: bytes) -> bool: ...
        def holds(self, raw_id: bytes) -> bool: ...
        def contains(self, raw_id: bytes) -> bool: ...
        def kind(self, object_id: bytes) -> int: ...
        def size(self, object_id: bytes) -> int: ...
        def asking_sizes(
            self, raw_ids: Sequence[bytes]
        ) -> AbstractContextManager[Callable[[], dict[bytes, int]]]: ...
        def list_tree(self, tree: bytes) -> list[bytes]: ...
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
_UNLIST = "bring the directory back, or heddle fsck --repair takes its line out"
_T = TypeVar("_T")
_KIND, _SIZE = attrgetter("type_num"), attrgetter("raw_size")


class ObjectStore(_Interface):
    """All objects of a repository, behind dulwich's object-store interface.

    Safe for several threads; readers take no lock against other processes. A lookup that misses looks at the
    directory again before it says so with a KeyError, as dulwich expects. An id is taken in hex or in binary.

    It can be given to dulwich's functions as it is. What dulwich's own class adds beyond the methods here is found on
    ``dulwich_store``, made when first needed: importing dulwich costs more than a whole ``heddle status``.

    Args:
        path: ``.heddle/objects``.
        object_format: ``sha1`` or ``sha256``.
        git_objects: says where git's objects are now, which is asked for when an alternate is not there: git's
            directory may have been moved.

    Attributes:
        path: ``.heddle/objects``.
        format_name: ``sha1`` or ``sha256``.
        id_length: bytes of a binary id.
        promises: what remotes have promised to deliver (a partial clone).
        hurried_thread: a thread that must not wait for a remote: it gets ObjectNotHere instead.
    """

    def __init__(
        self,
        path: Path,
        *,
        object_format: str = "sha1",
        git_objects: Callable[[], Path | None] = lambda: None,
    ) -> None:
        self.path = Path(path)
        self._git_objects = git_objects
        self.format_name = object_format
        self.id_length = ID_LENGTHS[object_format]
        self.promises = Promises(self.path / "promised", self.id_length)
        self.hurried_thread: int | None = None
        self._find_provider: Callable[[], Provider] | None = None
        self._provider: Provider | None = None
        self._told_sizes = ToldSizes(self.promises.path / "sizes", self.id_length)
        self._packs = PackDirectory(self.path / "packs", self.id_length)
        self._cache = ContentCache[bytes](_CACHE_BYTES)
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

    def _from_alternates(self, ask: Callable[[Alternate], _T]) -> _T | None:
        """What the first alternate that has an object says of it; None where none has it."""
        for alternate in self.alternates:
            with suppress(KeyError):
                return ask(alternate)
        return None

    def _told(
        self, raw_id: bytes, of: Callable[[Entry], int], ask: Callable[[Alternate], int]
    ) -> int | None:
        """What an index or an alternate says of an object; None where none has it."""
        if found := self._packs.find(raw_id):
            return of(found[1])
        told = self._from_alternates(ask)
        if told is None and (found := self._packs.find_anew(raw_id)):
            return of(found[1])
        return told

    def _explain_miss(self, raw_id: bytes) -> KeyError:
        """The error for an object that nobody has.

        Raises:
            CorruptObject: a pack has it, but no sound index.
        """
        self._packs.explain_miss(raw_id)
        return KeyError(to_hex(raw_id))

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
        kind = self._told(raw_id, _KIND, lambda alternate: alternate.kind(raw_id))
        if kind is not None:
            return kind
        if self.promises_id(raw_id):
            return BLOB
        raise self._explain_miss(raw_id)

    def size(self, object_id: bytes) -> int:
        """The length of an object's content in bytes, without reading the object.

        Of a promised one that is not here the remote is asked, and if it can't say, the object is fetched.
        Raises as ``get_raw``.
        """
        raw_id = to_raw(object_id, self.id_length)
        size = self._told(raw_id, _SIZE, lambda alternate: alternate.size(raw_id))
        if size is not None:
            return size
        if not self.promises_id(raw_id):
            raise self._explain_miss(raw_id)
        told = self._told_sizes.get(raw_id)
        if told is not None:
            return told
        self.learn_sizes([raw_id])
        told = self._told_sizes.get(raw_id)
        return self.size(raw_id) if told is None else told

    def sizes(self, object_ids: Iterable[bytes]) -> list[int]:
        """The length of each object's content in bytes; raises as ``kind``. For many, far quicker than one by one."""
        raw_ids = [to_raw(object_id, self.id_length) for object_id in object_ids]
        with self.asking_sizes(raw_ids) as told:
            known = told()
        return [known[raw_id] if raw_id in known else self.size(raw_id) for raw_id in raw_ids]

    @contextmanager
    def asking_sizes(self, raw_ids: Sequence[bytes]) -> Iterator[Callable[[], dict[bytes, int]]]:
        """Ask for the sizes of objects, while whoever asks does something else.

        Args:
            raw_ids: their binary ids.

        Yields:
            A function that returns the sizes, in bytes, by binary id. Some may be left out: promised ones, and those
            that came since the directories were looked at.
        """
        found: dict[bytes, int] = {}
        left = []
        find = self._packs.find
        for raw_id in raw_ids:
            place = find(raw_id)
            if place is None:
                left.append(raw_id)
            else:
                found[raw_id] = place[1].raw_size
        with ExitStack() as asked:
            answers = [
                asked.enter_context(each.asking_sizes(left)) for each in self.alternates if left
            ]

            def told() -> dict[bytes, int]:
                for answer in answers:
                    found.update(answer())
                return found

            yield told

    def list_tree(self, tree: bytes) -> list[bytes]:
        """All that lies below a tree, as stock git lists it where the tree is in git; empty where git can't.

        Args:
            tree: its hex id.

        Returns:
            Lines of ``git ls-tree -r -t -l -z`` (git-ls-tree(1)).
        """
        return next(filter(None, (each.list_tree(tree) for each in self.alternates)), [])

    def is_chunked(self, object_id: bytes) -> bool:
        """Say whether ``read_at`` reaches parts of an object without decompressing the whole; raises as ``get_raw``."""
        raw_id = self._raw(object_id)
        return self._read(
            raw_id,
            lambda pack, entry: is_large(entry),
            lambda alternate: alternate.is_chunked(raw_id),
        )

    def get_raw(self, name: bytes) -> tuple[int, bytes]:
        """An object's type number and content, checked against the recorded length and checksum.

        A promised object that is not here is fetched.

        Args:
            name: the id, in hex or binary.

        Raises:
            KeyError: there is no such object.
            CorruptObject: the stored bytes are not what was written.
            HeddleError: it is promised and could not be fetched; says why.
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
        """Read an object where it is; looks again when its pack went away meanwhile, is damaged, or was fetched."""
        while True:
            found = self._packs.find(raw_id)
            if found is None:
                answer = self._from_alternates(from_alternate)
                if answer is not None:
                    return answer
                found = self._packs.find_anew(raw_id)
            if found is None:
                self._bring(raw_id)
                continue
            index, entry = found
            try:
                return from_pack(self._packs.open(index), entry)
            except FileNotFoundError:
                self._packs.forget(index)
            except StorageError:  # not named: a frame that keeps its own error keeps the pack open
                for copy in self._copies(raw_id, index, from_pack, from_alternate):
                    return copy
                raise

    def _copies(
        self,
        raw_id: bytes,
        damaged: Index,
        from_pack: Callable[[PackFile, Entry], _T],
        from_alternate: Callable[[Alternate], _T],
    ) -> Iterator[_T]:
        """What can be read of an object that is damaged in one pack: from the other packs, then the alternates."""
        for index, entry in self._packs.copies(raw_id, damaged):
            with suppress(StorageError, FileNotFoundError):
                yield from_pack(self._packs.open(index), entry)
        for alternate in self.alternates:
            with suppress(StorageError, KeyError):
                yield from_alternate(alternate)

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

    # Promised objects

    def provide_with(self, find_provider: Callable[[], Provider]) -> None:
        """Say who brings promised objects; asked for when the first is needed."""
        self._find_provider = find_provider

    def is_promised(self, object_id: bytes) -> bool:
        """Say whether an object is not here and a remote has promised it."""
        raw_id = self._raw(object_id)
        return not self.contains(raw_id) and self.promises_id(raw_id)

    def promises_id(self, raw_id: bytes) -> bool:
        """Say whether a remote has promised an object (binary id), be it here or not."""
        return self.promises.holds(raw_id) or any(
            alternate.promises_id(raw_id) for alternate in self.alternates
        )

    @property
    def is_partial(self) -> bool:
        """Whether anything may be promised: the repository, or one that it reads, is a lazy clone."""
        return bool(self.promises) or any(alternate.is_partial for alternate in self.alternates)

    def absent(self, object_ids: Iterable[bytes]) -> list[bytes]:
        """Those of some objects that are promised and not here, as binary ids, each once."""
        if not self.is_partial:
            return []
        raw_ids = dict.fromkeys(map(self._raw, object_ids))
        return [raw_id for raw_id in raw_ids if self.is_promised(raw_id)]

    def fetch(self, object_ids: Iterable[bytes], progress: Progress | None = None) -> int:
        """Have some objects here: those that are promised are fetched in one request, the rest is left alone.

        What another thread or process is fetching already is waited for.

        Args:
            progress: called with what has come and the total.

        Returns:
            How many came.

        Raises:
            ObjectNotHere: this thread must not wait, or nobody brings objects.
            HeddleError: the remote can't be reached, or does not send them; what came is kept.
        """
        wanted = self.absent(object_ids)
        count = len(wanted)
        heed_others = True
        while wanted:
            provider = self._provider_for(wanted[0])
            with self.promises.claimed(wanted, heed_others=heed_others) as claim:
                # Claimed first, looked at again then: whoever had claimed it before may just have stored it.
                mine = self.absent(claim.mine)
                if mine:
                    provider.fetch(mine, progress)
                heed_others = claim.wait_for_others(provider.patience_s)
            wanted = self.absent(wanted)
        return count

    def learn_sizes(self, object_ids: Iterable[bytes]) -> None:
        """Have ``size`` answer for some objects without a question of its own; raises as ``fetch``.

        The remote is asked for the sizes of all that are not here in one request. Those that it doesn't say are
        fetched.
        """
        wanted = self._told_sizes.unknown(self.absent(object_ids))
        if not wanted:
            return
        told = self._provider_for(wanted[0]).sizes(wanted)
        self._told_sizes.add(told, self.holds)
        self.fetch([each for each in wanted if each not in told])

    def _provider_for(self, raw_id: bytes) -> Provider:
        if threading.get_ident() == self.hurried_thread or self._find_provider is None:
            raise ObjectNotHere.of(raw_id)
        if self._provider is None:
            self._provider = self._find_provider()
        return self._provider

    def _bring(self, raw_id: bytes) -> None:
        """Have an object here that was not found; raises as ``get_raw`` if it can't be had."""
        if not self.promises_id(raw_id) or (self.fetch([raw_id]) and not self.contains(raw_id)):
            raise self._explain_miss(raw_id)

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

    def ids_of_type(self, type_num: int) -> Iterator[ObjectID]:
        """The id of every object of a type in this store's own packs, some more than once; from indexes alone."""
        for index in self._packs.indexes():
            yield from (to_hex(entry.id) for entry in index if entry.type_num == type_num)

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
        hold = self.hold()
        remove_abandoned(self._packs.path, self._packs.temporary)
        return PackWriter(self, hold)

    def hold(self) -> Hold:
        """Keep every pack that is there now, until what relies on them has a name; see ``Hold``."""
        hold = Hold(self._packs.path)
        self.refresh()  # after the lock: what gc removed before it is not relied on
        return hold

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
    def packs_directory(self) -> PackDirectory:
        """This store's own packs, for whoever puts others in their place."""
        return self._packs

    @property
    def packs(self) -> list[Any]:
        """Git's packs that dulwich could copy deltas from: none."""
        return []

    @property
    def alternates(self) -> list[Alternate]:
        """The other object directories that are read as they are, in the order of their file."""
        if self._alternates is None:
            with self._lock:
                paths = [self.path / path for path in self.alternate_paths()]
                moved = self._git_objects() if self.missing_alternates() else None
                if moved is not None and not any(map(moved.samefile, filter(_is_directory, paths))):
                    paths.append(moved)
                opened = [self._open_alternate(path) for path in paths if _is_directory(path)]
                self._alternates = [each for each in opened if each is not None]
        return self._alternates

    def alternate_paths(self) -> list[Path]:
        """The lines of the file ``alternates``; relative ones begin at ``path``.

        Raises:
            StorageError: the file can't be read.
        """
        file = self.path / "alternates"
        try:
            lines = file.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StorageError(f"reading {file} failed: {error.strerror}") from error
        return [Path(os.fsdecode(line)) for line in lines if line]

    def missing_alternates(self) -> list[Path]:
        """The alternates whose directories are not there."""
        return [path for path in self.alternate_paths() if not _is_directory(self.path / path)]

    def _open_alternate(self, path: Path) -> Alternate | None:
        """Open a directory, unless it is one of those that led here."""
        if not (path / "packs").is_dir():
            from heddle.objects.gitdir import GitObjects

            return GitObjects(path, self.format_name, spool=self.path)
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
            paths = self.alternate_paths()
            if path not in paths:
                self.write_alternates([*paths, path])
            self._alternates = None

    def write_alternates(self, paths: Iterable[Path]) -> None:
        """Replace the file ``alternates``; takes effect when the store is opened again."""
        lines = [os.fsencode(path) + b"\n" for path in paths]
        write_file(self.path / "alternates", b"".join(lines))

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
        yield from self.verify_alternates()
        yield from self.promises.verify()
        yield from verify(self._packs.path, self.id_length, full=full, progress=progress)

    def verify_alternates(self) -> Iterator[Problem]:
        """Check that every alternate is there."""
        for path in self.missing_alternates():
            yield Problem("missing_alternate", f"the alternate {path} is not there", _UNLIST)

    def verify_indexes(self) -> Iterator[Problem]:
        """Check that every pack has a sound index; reads no pack."""
        yield from verify_indexes(self.path / "packs", self.id_length)

    def reindex(self) -> list[str]:
        """Rebuild every missing or damaged index from its pack.

        Returns:
            The names of the packs that have a new index.
        """
        rebuilt = reindex(self._packs.path, self.id_length)
        self.reload()
        return rebuilt

    def reload(self) -> None:
        """Begin again from the directory, since packs or indexes were replaced."""
        self._packs.reload()
        self._cache = ContentCache(_CACHE_BYTES)


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a damaged line can be no path at all
        return False
