"""Fetching from git servers, and pulling: what arrives, and what moves then.

Owns what moves when: objects first, all of them, then the names in one transaction (or, on git, git's own refs).
In a repository that stands alone remote branches are rows of ``refs``; on git they are git's own, and what is fetched
goes into git's object directory. The conversation is ``transport.py``'s.

What a crash leaves: before the names move, objects that nothing refers to, which the next fetch finds to be there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import IO, TYPE_CHECKING, Any, cast

from heddle import faults
from heddle.errors import DataError, HeddleError, InvalidName
from heddle.git import remotes
from heddle.git.branches import Diverged, is_ancestor, reflog_identity
from heddle.git.export import RefChange
from heddle.git.pack import peeled, require_all
from heddle.git.refs import HEADS, TAGS, GitRefs
from heddle.git.remotes import Remote
from heddle.git.transport import RemoteFailed, sideband, talk, talking_to
from heddle.repo.database import Move
from heddle.repo.names import valid_marker_name

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.git.pack import Progress
    from heddle.repo.repository import Repository

_SPOOL_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a fetch did.

    Attributes:
        remote: from where.
        refs: the remote branches and tags that moved, as they are called here.
        objects: how many came.
        default: the branch that the server's HEAD is on; None: it does not say.
    """

    remote: Remote
    refs: list[RefChange]
    objects: int
    default: str | None


@dataclass(frozen=True, slots=True)
class Pulled:
    """What a pull did.

    Attributes:
        fetched: from where, and what came.
        thread: the thread that follows its remote branch.
        old: where it was.
        new: where it is.
        changed_paths: how many paths of the working directory were written.
    """

    fetched: Fetched
    thread: str
    old: ObjectID | None
    new: ObjectID
    changed_paths: int


def fetch(repo: Repository, name: str = "origin", *, progress: Progress | None = None) -> Fetched:
    """Bring a remote's branches and tags here; threads stay where they are.

    Args:
        name: a remote.
        progress: called with what the server counts, and the total.

    Raises:
        DataError: no such remote; it has ids of another format.
        RemoteUnreachable, RemoteFailed, RemoteNotFound, NotPermitted: as they say; no name was moved.
        ObjectMissing: the server did not send everything; no name was moved.
    """
    remote = remotes.remote(repo, name)
    target = _Target(repo, name)
    with _spooled(repo) as pack:
        result = talk(
            repo,
            remote.url,
            "pull",
            lambda client, path: client.fetch_pack(
                path,
                target.wants,
                target.graph_walker(),
                pack.write,
                progress=sideband(progress),
            ),
        )
        _require_format(repo, result.object_format, remote)
        there = target.checked(result.refs)
        with talking_to(remote.url):
            objects = target.take(pack)
    changes = target.planned(there)
    target.require_all(changes)
    faults.reach("fetching.before-names")
    target.move(changes)
    symbolic = next((to for ref, to in (result.symrefs or {}).items() if ref == b"HEAD"), None)
    return Fetched(remote, changes, objects, _branch_name(symbolic))


@contextmanager
def _spooled(repo: Repository) -> Iterator[IO[bytes]]:
    """A file for a pack of unknown length, on the repository's disk when it is long."""
    place = str(repo.heddle_dir / "objects")
    with SpooledTemporaryFile(max_size=_SPOOL_BYTES, dir=place, prefix=".tmp-incoming-") as file:
        yield cast("IO[bytes]", file)


def _require_format(repo: Repository, found: str | None, remote: Remote) -> None:
    if found is not None and found != repo.object_format:
        raise DataError(
            f"{remote.name} has {found} ids, and this repository {repo.object_format} ids"
        )


def _branch_name(ref: bytes | None) -> str | None:
    if ref is None or not ref.startswith(HEADS):
        return None
    return ref[len(HEADS) :].decode(errors="surrogateescape")


class _Target:
    """Where fetched objects and refs go: into this repository, or into the git repository it lies on."""

    def __init__(self, repo: Repository, remote: str) -> None:
        self._repo = repo
        self._prefix = f"refs/remotes/{remote}/".encode()
        self._git = GitRefs(repo.git) if repo.git is not None else None
        self._store = repo.store
        self._known = self._frozen()

    def _frozen(self) -> Callable[[bytes], bool]:
        """Whether an object, with everything below it, was here before the fetch."""
        if self._git is not None:
            tips = {bytes.fromhex(id.decode()) for id in self._git.under(b"refs/").values()}
            return tips.__contains__
        from heddle.objects.store import ObjectStore

        before = ObjectStore(self._store.path, object_format=self._store.format_name)
        before.refresh()
        return before.holds

    def wants(self, refs: Mapping[Any, Any], depth: int | None = None) -> list[Any]:
        """The ids to ask for, of all that a server offers."""
        names = {ref: id for ref, id in refs.items() if ref.startswith((HEADS, TAGS))}
        ids = {id for ref, id in names.items() if id and not ref.endswith(b"^{}")}
        return sorted(id for id in ids if id not in self._store)

    def graph_walker(self) -> Any:
        """What tells the server, newest first, what is here."""
        from dulwich.object_store import ObjectStoreGraphWalker

        def parents(id: Any) -> list[Any]:
            return list(self._repo.state(id).parents)

        heads = self._git.under(b"refs/") if self._git is not None else self._named()
        here = [id for id in set(heads.values()) if self._repo.is_state(id)]
        return ObjectStoreGraphWalker(here, parents, shallow=set(self._repo.shallow))

    def _named(self) -> dict[bytes, ObjectID]:
        refs = self._repo.database.refs()
        names = {ref: cast("ObjectID", id) for ref, id in refs.items() if len(id) in (40, 64)}
        for thread in self._repo.threads:
            if thread.state is not None:
                names[HEADS + thread.name.encode()] = thread.state
        return names

    def checked(self, refs: Mapping[Any, Any]) -> dict[bytes, bytes]:
        """The branches and tags of a server, if all of them have names.

        Raises:
            RemoteFailed: one has not.
        """
        from dulwich.refs import Ref, check_ref_format

        found = {}
        for ref, id in refs.items():
            if id is None or ref.endswith(b"^{}") or not ref.startswith((HEADS, TAGS)):
                continue
            if not check_ref_format(Ref(ref)):
                raise RemoteFailed(f"the server has a ref that can't be one: {ref!r}")
            found[bytes(ref)] = bytes(id)
        return found

    def take(self, pack: IO[bytes]) -> int:
        """Store a received pack; returns how many objects it holds."""
        if pack.tell() == 0:
            return 0
        pack.seek(8)
        count = int.from_bytes(pack.read(4), "big")
        pack.seek(0)
        if count == 0:
            return 0
        if self._git is None:
            self._store.dulwich_store.add_thin_pack(pack.read, None)  # type: ignore[attr-defined]
            return count
        from dulwich.object_store import DiskObjectStore

        objects = DiskObjectStore(self._git.git.objects, object_format=self._store.object_format)
        try:
            objects.add_thin_pack(pack.read, None)
        finally:
            objects.close()
        self._store.close()  # git's packs are listed anew when next read
        return count

    def planned(self, there: Mapping[bytes, bytes]) -> list[RefChange]:
        """What moves: remote branches wherever they went, tags only where there are none yet."""
        here = self._git.under(b"refs/") if self._git is not None else {}
        rows = self._repo.database.refs() if self._git is None else {}
        changes = []
        for ref, new in sorted(there.items()):
            name = ref if ref.startswith(TAGS) else self._prefix + ref[len(HEADS) :]
            old = here.get(name[len(b"refs/") :]) or rows.get(name)
            if self._git is None and ref.startswith(TAGS) and old is None:
                marker = ref[len(TAGS) :].decode(errors="surrogateescape")
                old = marker.encode() if marker in self._repo.markers else None
            if old == new or (old is not None and ref.startswith(TAGS)):
                continue
            text = name.decode(errors="surrogateescape")
            changes.append(RefChange(text, cast("ObjectID | None", old), cast("ObjectID", new)))
        return changes

    def require_all(self, changes: Iterable[RefChange]) -> None:
        """Check that everything that the new refs need has come."""
        require_all(self._store, [each.new for each in changes], self._known)

    def move(self, changes: Iterable[RefChange]) -> None:
        if self._git is not None:
            for each in changes:
                ref = each.ref.encode(errors="surrogateescape")
                self._git.move(
                    ref,
                    each.old,
                    each.new,
                    who=reflog_identity(self._repo),
                    message=b"heddle: fetch",
                )
            return
        moves, rows = [], {}
        for each in changes:
            ref = each.ref.encode(errors="surrogateescape")
            marker = self._as_marker(ref, each.new)
            if marker is not None:
                moves.append(marker)
            if marker is None or marker.new != each.new:
                rows[ref] = cast("bytes | None", each.new)
        self._repo.database.move_names(moves, kind="fetch", refs=rows)

    def _as_marker(self, ref: bytes, id: ObjectID) -> Move | None:
        if not ref.startswith(TAGS):
            return None
        try:
            name = ref[len(TAGS) :].decode()
            valid_marker_name(name)
        except (InvalidName, UnicodeDecodeError):
            return None
        state = cast("ObjectID", peeled(self._store, id))
        return Move("marker", name, None, state) if self._repo.is_state(state) else None


def tracked(repo: Repository, remote: str, thread: str) -> ObjectID | None:
    """Where a remote had the branch of a thread when it was last fetched or pushed."""
    ref = f"refs/remotes/{remote}/{thread}".encode()
    if repo.git is not None:
        return GitRefs(repo.git).get(ref)
    return cast("ObjectID | None", repo.database.refs().get(ref))


# pull


def pull(
    repo: Repository,
    name: str = "origin",
    thread: str | None = None,
    *,
    progress: Progress | None = None,
) -> Pulled:
    """Fetch, and move a thread forward to where its remote branch is; the working directory goes along.

    Args:
        name: a remote.
        thread: None: the one that we are on.

    Raises:
        DataError: the remote has no such branch.
        Diverged: the thread holds states that the branch does not; it was not moved.
        UnsavedChanges: the working directory has changes that would be overwritten; nothing was moved.
        HeddleError: as ``fetch``.
    """
    thread = repo.current_thread if thread is None else thread
    fetched = fetch(repo, name, progress=progress)
    new = tracked(repo, name, thread)
    if new is None:
        raise DataError(f"{name} has no branch '{thread}'", hint=f"heddle push {name} {thread}")
    found = repo.database.thread(thread)
    old = found.state if found else None
    if old is not None and is_ancestor(repo, new, old):
        return Pulled(fetched, thread, old, old, 0)
    if old is not None and not is_ancestor(repo, old, new):
        raise Diverged(
            f"thread '{thread}' is at {old[:12].decode()} and {name}/{thread} at"
            f" {new[:12].decode()}: each has what the other has not",
            hint=f"keep both: heddle thread create {thread}-theirs --from {name}/{thread}",
        )
    repo.database.move_names(
        [Move("thread", thread, old, new)], kind="pull", message=f"from {name}"
    )
    return Pulled(fetched, thread, old, new, _bring_directory(repo, thread, old, new))


def _bring_directory(repo: Repository, thread: str, old: ObjectID | None, new: ObjectID) -> int:
    """Take the working directory along; where it can't come, the thread goes back."""
    if thread != repo.head or repo.worktree_base() != old:
        return 0
    from heddle.repo.switch import switch

    try:
        return switch(repo, thread).changed_paths
    except HeddleError:
        repo.database.move_names(
            [Move("thread", thread, new, old)], kind="pull", message="the working directory stayed"
        )
        raise
