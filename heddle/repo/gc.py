"""Small on disk: many packs become one, old versions are stored against newer ones, and what nothing needs goes.

Owns what counts as needed and for how long the rest is kept, which packs are rewritten, and the order of it all. How
objects are found and stored together is ``objects/reach.py``'s and ``objects/repack.py``'s; the marks of overlays and
the park are the mount's, and come in as arguments.

The order: new packs are durable and visible; then, while nobody relies on what is stored (``objects/holding.py``), it
is looked once more whether a name leads to something that was to go; then the old packs are removed. A crash before
the first removal leaves objects twice; one after it leaves some old packs, which the next run takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from heddle import faults
from heddle.errors import Busy, CorruptObject, HeddleError, ObjectMissing, StorageError
from heddle.objects.blockindex import BlockIndex
from heddle.objects.catalog import Catalog
from heddle.objects.gitformat import COMMIT, to_hex, to_raw
from heddle.objects.holding import exclusive
from heddle.objects.output import remove_abandoned
from heddle.objects.reach import Chain, Walk
from heddle.objects.repack import Plan, Repacker
from heddle.repo.locks import file_locked_nowait
from heddle.repo.statcache import collector_paused

if TYPE_CHECKING:
    from heddle.objects.index import Index
    from heddle.repo.repository import Repository

KEPT_NS = 14 * 24 * 3600 * 10**9
"""How long what nothing needs is kept after it was stored, in nanoseconds."""
_GROWTH = 2
"""A pack that was collected before is left alone while it is more than so many times what is new."""
_WAIT_S = 60.0
"""How long captures under way are waited for before old packs are removed."""

Progress = Callable[[int, int], None]
Marked = Callable[[], Iterable[bytes]]


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection did, or would do.

    Attributes:
        packs_before, packs_after: how many packs there were, and are.
        objects: how many different objects there are now.
        bytes_before, bytes_after: of packs and their indexes; None where nothing was done.
        dropped: how many objects went that nothing needs.
        dropped_bytes: the length of their contents.
    """

    packs_before: int
    packs_after: int | None
    objects: int
    bytes_before: int
    bytes_after: int | None
    dropped: int
    dropped_bytes: int


def collect(
    repo: Repository,
    *,
    before_ns: int | None = None,
    dry_run: bool = False,
    marked: Marked = tuple,
    progress: Progress | None = None,
) -> Collected:
    """Merge packs, store versions against each other, and drop what nothing needs.

    Args:
        before_ns: drop only what was stored before then, in ns since the epoch; None: 14 days ago.
        dry_run: only say what would be dropped.
        marked: gives the hex ids that overlays name; a StorageError from it means that they are not all known.
        progress: called with what is done and the total.

    Raises:
        Busy: another collection runs, or captures went on for a minute: the old packs are still there.
        CorruptObject, ObjectMissing: something that is needed can't be read; nothing was removed.
        StorageError: the disk is full or failing, or an alternate is not there.
    """
    with file_locked_nowait(repo.heddle_dir / "gc.lock") as free:
        if not free:
            raise Busy("another heddle gc is running here")
        for path in repo.store.missing_alternates():
            raise StorageError(f"the alternate {path} is not there", hint="heddle fsck")
        if not dry_run:
            repo.store.reindex()
        if before_ns is None:
            before_ns = time.time_ns() - KEPT_NS
        with collector_paused():
            collection = _Collection(repo, before_ns, marked, progress)
            if dry_run:
                return collection.report(None)
            collection.rewrite()
        with exclusive(repo.store.packs_directory.path, timeout_s=_WAIT_S) as free:
            if not free:
                raise Busy(
                    f"captures have been under way for {_WAIT_S:.0f} s, so the old packs are still there",
                    hint="heddle gc",
                )
            collection.remove()
        return collection.report(_packs(repo))


@dataclass(frozen=True, slots=True)
class _Pack:
    """One pack as it was found.

    Attributes:
        name: of its files.
        index: opened.
        size: of pack and index, in bytes.
        modified_ns: when it was written; of one that keeps what is not needed, when that was.
    """

    name: str
    index: Index
    size: int
    modified_ns: int


def _packs(repo: Repository) -> list[_Pack]:
    return list(_stat_packs(repo.store.packs_directory.indexes()))


def _stat_packs(indexes: Iterable[Index]) -> Iterator[_Pack]:
    for index in indexes:
        try:
            found = index.pack_path.stat()
            size = found.st_size + index.path.stat().st_size
        except FileNotFoundError:
            continue
        yield _Pack(index.name, index, size, found.st_mtime_ns)


class _Collection:
    """One collection: at first what it found and means to do.

    Args:
        repo: the repository.
        before_ns: what was stored before then and is not needed goes.
        marked, progress: as for `collect`.
    """

    def __init__(
        self, repo: Repository, before_ns: int, marked: Marked, progress: Progress | None
    ) -> None:
        self._repo = repo
        self._store = repo.store
        self._progress = progress
        self._packs = _packs(repo)
        self._count = sum(pack.index.count for pack in self._packs)
        self._may_drop = True
        self._new: set[str] = set()  # may be a source's name: the same objects make the same bytes
        self._catalog = Catalog(repo.store, (pack.index for pack in self._packs))
        self._walk = self._new_walk()
        with self._catalog.reading_ahead():
            self._reach_needed(marked)
        self._needed = set(self._walk.seen)
        self._chains = self._walk.take_chains()
        young = [pack for pack in self._packs if pack.modified_ns > before_ns]
        self._reach_from(pack.index for pack in young)
        self._kept = self._walk.seen - self._needed
        self._kept_chains = self._walk.take_chains()
        self._sort_packs()

    # What is needed

    def _new_walk(self) -> Walk:
        store, shallow = self._store, self._repo.shallow
        total = self._count
        progress = self._progress
        return Walk(
            self._catalog,
            progress=None
            if progress is None
            else lambda seen: progress(min(seen, total), 2 * total),
            is_ours=store.contains_packed if store.alternates else lambda raw_id: True,
            is_shallow=lambda raw_id: to_hex(raw_id) in shallow,
        )

    def _reach_needed(self, marked: Marked) -> None:
        """Walk from every name. One that leads nowhere may have led to something here: then nothing is dropped."""
        try:
            named = self._named() | set(marked())
        except StorageError:
            named, self._may_drop = self._named(), False
        tips = self._present(named)
        gone = sum(not (each in self._store or self._store.is_promised(each)) for each in named)
        self._may_drop &= not gone
        self._walk.run(tips, heads=self._present(self._heads()))

    def _named(self) -> set[bytes]:
        """What rows of the database name, and the states that mounts show: those may have been given by their ids."""
        found = self._repo.database.named_ids()
        for mount in self._repo.database.mounts():
            with suppress(HeddleError):
                found.add(self._repo.resolve(mount.spec))
        return found

    def _heads(self) -> set[bytes]:
        """The states whose files are read as they are: HEAD's, those under mounts and the working directory's."""
        repo = self._repo
        threads = [thread.name for thread in repo.threads]
        found = {repo.threads.get(repo.head).state, repo.worktree_base()}
        found |= {repo.overlay_base(name) for name in threads}
        return {state for state in found if state is not None}

    def _present(self, ids: Iterable[bytes]) -> list[bytes]:
        return [to_raw(each, self._store.id_length) for each in sorted(ids) if each in self._store]

    def _reach_from(self, indexes: Iterable[Index]) -> None:
        """Walk from everything in some packs, which may well lead nowhere: from commits first, newest first."""
        others: list[bytes] = []
        commits: list[bytes] = []
        for index in indexes:
            for raw_id in index.ids():
                if raw_id not in self._walk.seen:
                    (commits if self._is_commit(raw_id) else others).append(raw_id)
        for some in (commits, *([each] for each in others)):
            try:
                self._walk.run(raw_id for raw_id in some if raw_id not in self._walk.seen)
            except (ObjectMissing, CorruptObject):
                self._may_drop = False

    def _is_commit(self, raw_id: bytes) -> bool:
        try:
            return self._catalog.kind(raw_id) == COMMIT
        except (KeyError, CorruptObject):
            return False  # whoever walks to it is told

    # What becomes of each pack

    def _sort_packs(self) -> None:
        """Choose the packs that are rewritten, and those that hold nothing worth keeping."""
        self._sources: list[_Pack] = []
        self._expired: list[_Pack] = []
        whole: list[_Pack] = []
        for pack in self._packs:
            ids = set(pack.index.ids())
            if self._needed.isdisjoint(ids):
                if self._may_drop and self._kept.isdisjoint(ids):
                    self._expired.append(pack)
            elif isinstance(pack.index, BlockIndex) and self._needed.issuperset(ids):
                whole.append(pack)
            else:
                self._sources.append(pack)
        new = sum(pack.size for pack in self._sources)
        for pack in sorted(whole, key=lambda each: each.size):
            if pack.size <= new * _GROWTH:
                self._sources.append(pack)
                new += pack.size
        self._find_moving()

    def _find_moving(self) -> None:
        """Which objects go from the sources into new packs, and which go for good."""
        names = {pack.name for pack in (*self._sources, *self._expired)}
        going = {raw_id for pack in self._sources for raw_id in pack.index.ids()}
        going |= {raw_id for pack in self._expired for raw_id in pack.index.ids()}
        for pack in self._packs:
            if pack.name not in names:
                going.difference_update(pack.index.ids())
        if not self._may_drop:
            self._kept |= going - self._needed
        self._moving = going
        self._dropped = going - self._needed - self._kept

    # Doing it

    def rewrite(self) -> None:
        """Write what is needed of the sources into one new pack, and what is kept all the same into another."""
        remove_abandoned(self._store.packs_directory.path, self._store.packs_directory.temporary)
        self._write(self._chains, self._walk.whole, None)
        listed = {raw_id for chain in self._kept_chains for raw_id in chain.ids}
        loose = [self._chain_of_kept(raw_id) for raw_id in self._kept - listed]
        newest_ns = max((pack.modified_ns for pack in self._sources), default=None)
        self._write([*self._kept_chains, *loose], [], newest_ns)
        faults.reach("gc.rewritten")

    def _chain_of_kept(self, raw_id: bytes) -> Chain:
        chain = Chain(self._store.kind(raw_id), b"")
        chain.ids.append(raw_id)
        return chain

    def _write(self, chains: list[Chain], whole: list[bytes], modified_ns: int | None) -> None:
        repacker = Repacker(self._store.packs_directory, self._catalog, progress=self._written)
        is_chunked = self._catalog.is_chunked
        alone = {raw_id: None for raw_id in whole if raw_id in self._moving}
        for chain in chains:
            ids = [each for each in chain.ids if each in self._moving and each not in alone]
            alone |= {each: None for each in ids if is_chunked(each)}
            chain.ids = [each for each in ids if each not in alone]
            if chain.head is not None and (chain.head not in alone or is_chunked(chain.head)):
                chain.head = None
        name = repacker.write(Plan(list(alone), chains), modified_ns=modified_ns)
        if name is not None:
            self._new.add(name)

    def _written(self, done: int, total: int) -> None:
        if self._progress is not None:
            count = self._count
            self._progress(count + count * done // max(total, 1), 2 * count)

    def remove(self) -> None:
        """Remove the old packs, for whoever keeps all others from relying on what is stored.

        A name that came meanwhile may lead to what was to be dropped: then the pack that has it stays.
        """
        now = _packs(self._repo)
        known = {pack.name for pack in self._packs}
        before = set(self._walk.seen)
        self._walk.run(self._present(self._named()))
        self._reach_from(pack.index for pack in now if pack.name not in known | self._new)
        saved = self._walk.seen - before if self._may_drop else self._dropped
        self._dropped -= saved
        going = {
            pack.name
            for pack in (*self._sources, *self._expired)
            if pack.name not in self._new and saved.isdisjoint(pack.index.ids())
        }
        self._require_all(pack for pack in now if pack.name not in going)
        faults.reach("gc.before-removal")
        self._store.packs_directory.remove(going)

    def _require_all(self, staying: Iterable[_Pack]) -> None:
        """Make sure, before the only step that loses anything, that nothing is lost by it."""
        left = self._moving - self._dropped
        for pack in staying:
            left.difference_update(pack.index.ids())
        for raw_id in left:
            raise StorageError(
                f"object {to_hex(raw_id).decode()} is in no new pack; nothing was removed"
            )

    def report(self, after: list[_Pack] | None) -> Collected:
        """Say what was done; ``after``: the packs that there are now, or None if nothing was done."""
        return Collected(
            packs_before=len(self._packs),
            packs_after=None if after is None else len(after),
            objects=len({raw_id for pack in after or self._packs for raw_id in pack.index.ids()}),
            bytes_before=sum(map(_size, self._packs)),
            bytes_after=None if after is None else sum(map(_size, after)),
            dropped=len(self._dropped),
            dropped_bytes=self._dropped_bytes(),
        )

    def _dropped_bytes(self) -> int:
        sizes: dict[bytes, int] = {}
        for pack in (*self._sources, *self._expired) if self._dropped else ():
            sizes.update((e.id, e.raw_size) for e in pack.index if e.id in self._dropped)
        return sum(sizes.values())


def _size(pack: _Pack) -> int:
    return pack.size
