"""A git repository on its way in: all its objects and refs, into a repository that stands alone.

Owns which of git's packs are kept as they are, and what refs become: branches threads, tags markers, the rest rows of
``refs``, so that an export gives the same refs again.

The order, and what a crash leaves: all objects are in durable packs; everything that the refs need is checked to be
there; one transaction makes the names (the commit point). A crash before it leaves packs that nothing refers to and
that the next import finds to be there already.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from heddle import faults
from heddle.errors import CorruptObject, DataError, InvalidName
from heddle.git import refs as gitrefs
from heddle.git.branches import Diverged, is_ancestor
from heddle.git.pack import peeled, require_all
from heddle.git.refs import HEADS, TAGS, GitRefs
from heddle.objects.incoming import DamagedPack, take_pack
from heddle.objects.keeping import KEPT_FROM, keep_copy
from heddle.objects.links import Links
from heddle.repo.database import Move
from heddle.repo.names import valid_marker_name, valid_thread_name

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.git.pack import Progress
    from heddle.objects.gitdir import GitObjects
    from heddle.objects.gitpack import GitPack
    from heddle.objects.pack import PackWriter
    from heddle.repo.repository import Repository

_REPORT_EVERY = 256


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did.

    Attributes:
        source: the git directory.
        threads: those that were made or moved, with their states.
        markers: those that were made, with their states.
        refs: full names of the other refs that were taken along.
        objects: how many objects were new.
    """

    source: Path
    threads: dict[str, ObjectID]
    markers: dict[str, ObjectID]
    refs: list[str]
    objects: int


def import_git(repo: Repository, source: Path, *, progress: Progress | None = None) -> Imported:
    """Take in all objects and refs of a git repository.

    Args:
        source: a checkout, its ``.git``, or a bare repository.
        progress: called with objects read and objects in all.

    Raises:
        DataError: there is no git repository; it is shallow; or it has ids of another format.
        Diverged: a thread of the same name holds states that the branch does not; nothing was changed.
        CorruptObject, ObjectMissing: the git repository is damaged; nothing was changed.
    """
    git = gitrefs.find(source)
    if repo.git is not None and git.common == repo.git.common:
        raise DataError(
            f"{repo.path} lies on this git repository: its objects and branches are here already",
            hint="heddle init elsewhere, and import there, for one that stands alone",
        )
    refs = GitRefs(git)
    if refs.object_format != repo.object_format:
        raise DataError(
            f"{source} has {refs.object_format} ids, and this repository {repo.object_format} ids",
            hint=f"heddle init --object-format {refs.object_format} elsewhere",
        )
    if (git.common / "shallow").exists():
        raise DataError(
            f"{source} is a shallow clone: its history begins in the middle",
            hint=f"git -C {source} fetch --unshallow",
        )
    held = refs.verbatim()
    with repo.store.hold():
        objects, whole = _take_objects(repo, git.objects, progress)
        names = plan_names(repo, held, whole.__contains__)
        faults.reach("importing.before-names")
        head = _head(repo, refs, names)
        repo.database.move_names(
            names.moves, kind="import", message=f"from {source}", head=head, refs=names.refs
        )
    return Imported(
        git.common,
        names.of("thread"),
        names.of("marker"),
        [name.decode(errors="surrogateescape") for name in names.refs],
        objects,
    )


@dataclass(slots=True)
class Names:
    """What refs become here."""

    moves: list[Move] = field(default_factory=list)
    refs: dict[bytes, bytes | None] = field(default_factory=dict)

    def of(self, subject: str) -> dict[str, ObjectID]:
        return {
            each.name: each.new
            for each in self.moves
            if each.subject == subject and each.new is not None
        }


def plan_names(
    repo: Repository, held: dict[bytes, bytes], is_whole: Callable[[bytes], bool] | None = None
) -> Names:
    """Turn refs, verbatim by full name, into threads, markers and rows of ``refs``.

    Args:
        is_whole: whether everything that an object (binary id) needs is known to be there.

    Raises:
        Diverged: a thread holds states that its branch does not.
        DataError: a marker is elsewhere.
        ObjectMissing: something that they need is not in the store.
    """
    ids = {target for target in held.values() if not target.startswith(b"ref: ")}
    require_all(repo.store, ids, is_whole)
    names = Names()
    known = repo.database.refs()
    for ref, target in sorted(held.items()):
        if known.get(ref) != target and not _plan_name(repo, names, ref, target):
            names.refs[ref] = target
    return names


def _plan_name(repo: Repository, names: Names, ref: bytes, target: bytes) -> bool:
    """Plan a thread or a marker; False where a ref has to be kept as it is."""
    if target.startswith(b"ref: "):
        return False
    state = peeled(repo.store, target)
    if not repo.is_state(state):  # type: ignore[arg-type]
        return False
    try:
        if ref.startswith(HEADS):
            name = ref[len(HEADS) :].decode()
            valid_thread_name(name)
            _plan_thread(repo, names, name, target)
        elif ref.startswith(TAGS):
            name = ref[len(TAGS) :].decode()
            valid_marker_name(name)
            _plan_marker(repo, names, name, state)
            return target == state  # an annotated tag is remembered beside its marker
        else:
            return False
    except (InvalidName, UnicodeDecodeError):
        return False
    return True


def _plan_thread(repo: Repository, names: Names, name: str, new: bytes) -> None:
    thread = repo.database.thread(name)
    old = thread.state if thread else None
    if old == new:
        return
    if old is not None and not is_ancestor(repo, old, new):  # type: ignore[arg-type]
        raise Diverged(
            f"thread '{name}' is at {old[:12].decode()} and the branch '{name}' at"
            f" {new[:12].decode()}, which does not contain it",
            hint=f"heddle thread rename {name} NEW-NAME, then run it again",
        )
    names.moves.append(Move("thread", name, old, new))  # type: ignore[arg-type]


def _plan_marker(repo: Repository, names: Names, name: str, state: bytes) -> None:
    marker = repo.database.marker(name)
    if marker is None:
        names.moves.append(Move("marker", name, None, state))  # type: ignore[arg-type]
    elif marker.state != state:
        raise DataError(
            f"marker '{name}' is at {marker.state[:12].decode()} and the tag '{name}' at"
            f" {state[:12].decode()}; markers never move",
            hint=f"heddle marker delete {name}, then run it again",
        )


def _head(repo: Repository, refs: GitRefs, names: Names) -> str | None:
    """Git's HEAD becomes ours where nothing was ever captured."""
    if any(thread.state is not None for thread in repo.threads):
        return None
    ref, _ = refs.head()
    name = ref[len(HEADS) :].decode(errors="replace") if ref and ref.startswith(HEADS) else ""
    return name if name in names.of("thread") else None


# objects


def _take_objects(
    repo: Repository, objects: Path, progress: Progress | None
) -> tuple[int, AbstractSet[bytes]]:
    """Have every object of an object directory and its alternates here.

    Returns:
        How many were new, and the binary ids of those that need nothing but each other.
    """
    from heddle.objects.gitdir import GitObjects

    source = GitObjects(objects, repo.object_format, spool=repo.store.path)
    try:
        with repo.store.writer() as writer:
            taking = _Taking(repo, writer, source, progress)
            taking.run()
            writer.commit()
    finally:
        source.close()
    repo.store.refresh()
    return taking.kept + writer.count, taking.whole()


class _Taking:
    """The objects of one object directory on their way in.

    Attributes:
        kept: how many new ones are in packs that were kept as they are.
    """

    def __init__(
        self, repo: Repository, writer: PackWriter, source: GitObjects, progress: Progress | None
    ) -> None:
        self.kept = 0
        self._store = repo.store
        self._writer = writer
        self._progress = progress
        self._links = Links(repo.store.id_length)
        self._came: set[bytes] = set()
        self._done = 0
        self._directories = list(source.directories())
        self._packs = [pack for each in self._directories for pack in each.packs()]
        self._loose = [(each, list(each.loose_ids())) for each in self._directories]
        self._total = sum(pack.index.count for pack in self._packs)
        self._total += sum(len(ids) for _, ids in self._loose)

    def run(self) -> None:
        for pack in self._packs:
            try:
                self._take_pack(pack)
            except DamagedPack as error:
                raise CorruptObject(
                    f"{pack.path} is damaged: {error}", hint="run `git fsck --full` there"
                ) from error
            self._done += pack.index.count
        for directory, ids in self._loose:
            for raw_id in ids:
                self._take_loose(directory, raw_id)
                self._done += 1
                self._report(0)

    def whole(self) -> AbstractSet[bytes]:
        """What was taken, if that needs nothing else; what was here before may be the half of an import."""
        missing = self._links.missing(self._came, lambda raw_id: False)
        return self._came if missing == [] else frozenset()

    def _take_pack(self, pack: GitPack) -> None:
        """Keep a pack of which most is new; of another one, what is new is stored."""
        new = sum(not self._store.holds(raw_id) for raw_id in pack.index.ids())
        if not new:
            return
        report = lambda done, total: self._report(done)  # noqa: E731
        if 2 * new > pack.index.count and pack.path.stat().st_size >= KEPT_FROM:
            taken = keep_copy(pack.path, self._store, links=self._links, progress=report)
            self.kept += new
        else:
            with pack.path.open("rb", buffering=0) as file:
                store, writer, links = self._store, self._writer, self._links
                taken = take_pack(file, store, writer, links=links, progress=report)
        self._came.update(taken)

    def _take_loose(self, directory: GitObjects, raw_id: bytes) -> None:
        if self._store.holds(raw_id):
            return
        self._came.add(raw_id)
        if not directory.is_chunked(raw_id):
            type_num, content = directory.get_raw(raw_id)
            self._links.follow(type_num, content)
            self._writer.add(type_num, content)
            return
        at = 0

        def read(size: int) -> bytes:
            nonlocal at
            piece = directory.read_at(raw_id, at, size)
            at += len(piece)
            return piece

        self._writer.add_blob_from(read, directory.size(raw_id))

    def _report(self, done: int) -> None:
        done += self._done
        if self._progress is not None and done % _REPORT_EVERY == 0:
            self._progress(done, self._total)
