"""A git repository on its way in: all its objects and refs, into a repository that stands alone.

Owns the reading of whole git packs in the order that is cheapest for their deltas, and what refs become: branches
threads, tags markers, the rest rows of ``refs``, so that an export gives the same refs again.

The order, and what a crash leaves: all objects become one durable pack; everything that the refs need is checked to
be there; one transaction makes the names (the commit point). A crash before it leaves a pack that nothing refers to
and that the next import finds to be there already.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from heddle import faults
from heddle.errors import CorruptObject, DataError, HeddleError, InvalidName, ObjectMissing
from heddle.git import refs as gitrefs
from heddle.git.branches import Diverged, is_ancestor
from heddle.git.pack import peeled, require_all
from heddle.git.refs import HEADS, TAGS, GitRefs
from heddle.repo.database import Move
from heddle.repo.names import valid_marker_name, valid_thread_name

if TYPE_CHECKING:
    from dulwich.object_format import ObjectFormat
    from dulwich.objects import ObjectID

    from heddle.git.pack import Progress
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
        objects = _take_objects(repo, git.objects, progress)
        names = plan_names(repo, held)
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


def plan_names(repo: Repository, held: dict[bytes, bytes]) -> Names:
    """Turn refs, verbatim by full name, into threads, markers and rows of ``refs``.

    Raises:
        Diverged: a thread holds states that its branch does not.
        DataError: a marker is elsewhere.
        ObjectMissing: something that they need is not in the store.
    """
    ids = {target for target in held.values() if not target.startswith(b"ref: ")}
    require_all(repo.store, ids)
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


def _take_objects(repo: Repository, objects: Path, progress: Progress | None) -> int:
    """Store every object of an object directory and its alternates; returns how many were new."""
    from dulwich.object_store import DiskObjectStore

    source = DiskObjectStore(objects, object_format=repo.store.object_format)
    try:
        with repo.store.writer() as writer:
            _take_store(source, writer, repo.store.object_format, progress)
            count = writer.count
            writer.commit()
    finally:
        with suppress(BufferError):  # dulwich, when an error kept a part of a mapped pack alive
            source.close()
    repo.store.refresh()
    return count


def _take_store(
    source: object, writer: PackWriter, object_format: ObjectFormat, progress: Progress | None
) -> None:
    from dulwich.object_store import DiskObjectStore

    assert isinstance(source, DiskObjectStore)
    loose = list(source._iter_loose_objects())
    total, done = len(loose) + sum(len(pack) for pack in source.packs), 0
    with _naming_damage(source.path):
        for type_num, content in _contents(source, loose):
            writer.add(type_num, content)
            done += 1
            if progress is not None and done % _REPORT_EVERY == 0:
                progress(done, total)
    for alternate in source.alternates:
        _take_store(alternate, writer, object_format, progress)


def _contents(source: object, loose: list[ObjectID]) -> Iterator[tuple[int, bytes]]:
    """Every object's type number and content; packs chain by chain, so that each delta is applied once."""
    from dulwich.object_store import DiskObjectStore
    from dulwich.pack import PackInflater

    assert isinstance(source, DiskObjectStore)
    for pack in source.packs:
        for obj in PackInflater.for_pack_data(pack.data):
            yield obj.type_num, obj.as_raw_string()
    for id in loose:
        found = source._get_loose_object(id)
        if found is None:
            raise ObjectMissing(f"object {id.decode()} went away", hint="run it again")
        yield found.type_num, found.as_raw_string()


@contextmanager
def _naming_damage(path: object) -> Iterator[None]:
    """Turn what dulwich raises for damaged packs into one error that names the directory."""
    from heddle.objects.bridge import DAMAGE

    try:
        yield
    except HeddleError:
        raise
    except DAMAGE as error:
        raise CorruptObject(
            f"{path} is damaged: {error}", hint="run `git fsck --full` there"
        ) from error
