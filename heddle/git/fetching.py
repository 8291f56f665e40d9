"""Fetching from git servers, and pulling: what arrives, and what moves then.

Owns what moves when: objects first, all of them, then the names in one transaction (or, on git, git's own refs).
In a repository that stands alone remote branches are rows of ``refs``; on git they are git's own, and what is fetched
goes into git's object directory. The conversation is ``transport.py``'s.

What a crash leaves: before the names move, objects that nothing refers to, and a part of a pack; with that the next
fetch goes on (``receiving.py``).
"""

from __future__ import annotations

import subprocess
from binascii import unhexlify
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Any, cast

from heddle import faults
from heddle.errors import (
    DataError,
    HeddleError,
    InvalidName,
    MarkerExists,
    ObjectMissing,
    Unavailable,
)
from heddle.git import remotes
from heddle.git.branches import Diverged, is_ancestor, reflog_identity
from heddle.git.export import RefChange
from heddle.git.haves import Haves
from heddle.git.pack import (
    WHY_KEPT,
    Arriving,
    all_blobs,
    missing_blobs,
    note_kept,
    packs_kept,
    peeled,
    require_all,
    require_promised,
    write_pack,
)
from heddle.git.receiving import Incoming, incoming, max_object_bytes
from heddle.git.refs import HEADS, TAGS, GitRefs
from heddle.git.remotes import Remote
from heddle.git.transport import (
    RemoteFailed,
    RemoteUnreachable,
    format_of,
    require_format,
    sideband,
    talk,
    talking_to,
)
from heddle.objects.gitdir import GitObjects
from heddle.objects.incoming import DamagedPack, check_sizes, take_pack
from heddle.objects.keeping import KEPT_FROM, Keeper
from heddle.objects.links import Links
from heddle.repo.database import Move
from heddle.repo.names import valid_marker_name

if TYPE_CHECKING:
    from dulwich.client import GitClient
    from dulwich.objects import ObjectID

    from heddle.git.pack import Progress
    from heddle.objects.pack import PackWriter
    from heddle.repo.repository import Repository

BLOBLESS = b"blob:none"
"""What is left out of a lazy clone (git-rev-list(1), --filter)."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a fetch did.

    Attributes:
        remote: from where.
        refs: the remote branches and tags that moved, as they are called here.
        objects: how many came.
        default: the branch that the server's HEAD is on, or at; None: it does not say.
        branches: those that the server has.
        pruned: remote branches that it has no more and that stood in the way of others, by full name.
    """

    remote: Remote
    refs: list[RefChange]
    objects: int
    default: str | None
    branches: frozenset[str] = frozenset()
    pruned: tuple[str, ...] = ()


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


class _CantGoOn(Exception):
    """The server left blobs out and does not give single ones."""


def fetch(repo: Repository, name: str = "origin", *, progress: Progress | None = None) -> Fetched:
    """Bring a remote's branches and tags here; threads stay where they are.

    Args:
        name: a remote.
        progress: called with what the server counts, and the total.

    Raises:
        DataError: no such remote; it has ids of another format; git mirrors it.
        RemoteUnreachable, RemoteFailed, RemoteNotFound, NotPermitted: as they say; no name was moved.
        ObjectMissing: the server did not send everything; nothing of it is kept.
        ObjectTooLarge: it sent an object that is longer than ``fetch.max_object_size``; nothing is kept.
    """
    remote = remotes.remote(repo, name)
    if remote.is_mirrored:
        raise DataError(
            f"git has the branches of {name} for its own here (remote.{name}.fetch)",
            hint=f"git fetch {name}",
        )
    target = _Target(repo, remote)
    if remote.promisor:
        target.mend_promises()
    with incoming(repo, remote) as pack:
        fetched = _fetched(target, pack, progress)
        if not target.lacks_tags():
            return fetched
        # Tags of commits that have just come: what they are at could not be told before.
        return _together(fetched, _fetched(target, pack, progress))


def _fetched(target: _Target, pack: Incoming, progress: Progress | None) -> Fetched:
    """Fetch, as often as it breaks off and brings anything new."""
    while True:
        try:
            return _fetch_once(target, pack, progress)
        except _CantGoOn:
            pack.give_up()
        except (RemoteFailed, RemoteUnreachable):
            if not pack.keep_blobs():
                raise


def _together(first: Fetched, second: Fetched) -> Fetched:
    """Two fetches, one right after the other, as one."""
    moved = {each.ref: each for each in first.refs}
    for each in second.refs:
        before = moved.get(each.ref)
        moved[each.ref] = RefChange(each.ref, before.old, each.new) if before else each
    objects, pruned = first.objects + second.objects, first.pruned + second.pruned
    return replace(second, refs=list(moved.values()), objects=objects, pruned=pruned)


def _fetch_once(target: _Target, pack: Incoming, progress: Progress | None) -> Fetched:
    repo, remote = target.repo, target.remote
    pack.begin()

    def ask(client: GitClient, path: Any) -> Any:
        if remote.follows_tags:  # dulwich says what tags are at only where it fetches nothing
            target.follow(client.get_refs(path, ref_prefix=[HEADS, TAGS]).refs)
        return client.fetch_pack(
            path,
            target.wants,
            target.haves,
            pack.write,
            progress=sideband(progress),
            filter_spec=BLOBLESS if remote.promisor or pack.goes_on else None,
        )

    result = talk(repo, remote.url, ask)
    require_format(remote.name, result.object_format, repo.object_format)
    there = target.checked(result.refs)
    changes = target.planned(there)
    pruned = target.in_the_way(there)
    with repo.store.hold(), packs_kept():
        with talking_to(remote.url):
            try:
                objects = target.take(pack, [each.new for each in changes], progress)
            except ObjectMissing as error:
                raise ObjectMissing(
                    f"{remote.name} did not send everything: {error.message}",
                    hint="run it again; if it stays, on the server: git fsck,"
                    " or git fetch --unshallow if that is a shallow clone",
                ) from error
        faults.reach("fetching.before-names")
        target.move(changes, pruned)
    branches = frozenset(name for ref in result.refs if (name := _branch_name(ref)) is not None)
    symbolic = next((to for ref, to in (result.symrefs or {}).items() if ref == b"HEAD"), None)
    default = _branch_name(symbolic) or _branch_at(
        cast("Mapping[bytes, bytes]", result.refs).get(b"HEAD"), there
    )
    names = tuple(each.decode(errors="surrogateescape") for each in pruned)
    return Fetched(remote, changes, objects, default, branches, names)


def _bring(pack: Incoming, missing: list[bytes], progress: Progress | None) -> None:
    try:
        pack.bring(missing, progress)
    except RemoteFailed as error:
        if "not our ref" in error.message:
            raise _CantGoOn from error
        raise


def _marker_name(ref: bytes) -> str | None:
    """What a tag is called as a marker; None: it is none, or its name can't be one."""
    if not ref.startswith(TAGS):
        return None
    try:
        name = ref[len(TAGS) :].decode()
        valid_marker_name(name)
    except (InvalidName, UnicodeDecodeError):
        return None
    return name


def _branch_name(ref: bytes | None) -> str | None:
    if ref is None or not ref.startswith(HEADS):
        return None
    return ref[len(HEADS) :].decode(errors="surrogateescape")


def _branch_at(head: bytes | None, there: Mapping[bytes, bytes]) -> str | None:
    """The branch that a detached HEAD stands at, one of the usual ones if it can be."""
    found = {name for ref, id in there.items() if id == head and (name := _branch_name(ref))}
    return next((each for each in ("main", "master", *sorted(found)) if each in found), None)


class _Target:
    """Where fetched objects and refs go: into this repository, or into the git repository it lies on.

    In a repository that stands alone every pack is complete before it is seen: what its objects refer to is there
    too, or promised. In git's it need not be, so there only what refs lead to is known to be whole.

    Attributes:
        repo: this repository.
        remote: from where it is fetched.
        haves: what the server is told that is here.
    """

    def __init__(self, repo: Repository, remote: Remote) -> None:
        self.repo = repo
        self.remote = remote
        self._prefix = remote.tracking
        self._git = GitRefs(repo.git) if repo.git is not None else None
        self._store = repo.store
        self._max_bytes = max_object_bytes(repo)
        self._tags: dict[bytes, Any] = {}
        self._followed = frozenset[bytes]()
        self.haves = Haves(repo)

    def mend_promises(self) -> None:
        """List anew what is not here, if a list is damaged; the damaged one is put aside after that."""
        promises = self._store.promises
        if next(promises.verify(), None) is not None:
            promises.add(missing_blobs(self._store, self._named().values()))
            promises.put_damaged_aside()

    def follow(self, refs: Mapping[Any, Any]) -> None:
        """Choose the tags that come along: those at what is here, or at a branch that is fetched.

        Args:
            refs: all that a server offers, with what its annotated tags are at (``^{}``, gitprotocol-pack(5)).
        """
        tips = {id for ref, id in refs.items() if ref.startswith(HEADS) and self._takes(ref)}
        tags = {ref: id for ref, id in refs.items() if ref.startswith(TAGS) and ref[-3:] != b"^{}"}
        self._tags = {ref: refs.get(ref + b"^{}", id) for ref, id in tags.items()}
        self._followed = frozenset(
            ref for ref, id in self._tags.items() if id in tips or id in self._store
        )

    def lacks_tags(self) -> bool:
        """Whether tags did not come along that are at what is here now."""
        return any(id in self._store for ref, id in self._tags.items() if ref not in self._followed)

    def wants(self, refs: Mapping[Any, Any], depth: int | None = None) -> list[Any]:
        """The ids to ask for, of all that a server offers; raises OtherIds before anything is asked for."""
        for id in refs.values():
            require_format(self.remote.name, format_of(id), self.repo.object_format)
        ids = {id for ref, id in refs.items() if id and self._takes(ref)}
        wanted = sorted(id for id in ids if id not in self._store)
        if wanted:
            self._choose_haves(refs)
        return wanted

    def _choose_haves(self, refs: Mapping[Any, Any]) -> None:
        """Tell the server first where it had the branches that it has moved since."""
        named = self._git.under(b"refs/") if self._git is not None else self._named()
        prefix = self._prefix if self._git is None else self._prefix.removeprefix(b"refs/")
        had = {ref: named.get(prefix + ref[len(HEADS) :]) for ref in refs if ref.startswith(HEADS)}
        moved = [id for ref, id in had.items() if id is not None and id != refs[ref]]
        self.haves.begin(moved, named.values())

    def _takes(self, ref: bytes) -> bool:
        """Whether a ref of the server's is to have a name here."""
        if ref.endswith(b"^{}"):
            return False
        if ref.startswith(HEADS):
            return self.remote.takes_branch(ref.decode(errors="surrogateescape"))
        if not ref.startswith(TAGS) or self.remote.tag_option == "--no-tags":
            return False
        return not self.remote.follows_tags or ref in self._followed

    def _named(self) -> dict[bytes, ObjectID]:
        refs = self.repo.database.refs()
        names = {ref: cast("ObjectID", id) for ref, id in refs.items() if len(id) in (40, 64)}
        for thread in self.repo.threads:
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
            if id is None or not self._takes(ref):
                continue
            if not check_ref_format(Ref(ref)):
                raise RemoteFailed(f"the server has a ref that can't be one: {ref!r}")
            found[bytes(ref)] = bytes(id)
        return found

    def take(self, pack: Incoming, tips: list[ObjectID], progress: Progress | None = None) -> int:
        """Store a received pack, if everything that some ids need is in it or here already.

        Args:
            pack: empty where nothing was asked for. Where it goes on, the remote was asked to leave blobs out: those
                that are not here are asked for.
            tips: what names are going to be at.
            progress: called with objects stored and objects in all.

        Returns:
            How many objects came.

        Raises:
            ObjectMissing: something that they need is not here then.
        """
        if self._git is not None:
            return self._take_for_git(self._git, pack, tips, progress)
        store = self._store
        with self._writer(pack) as writer:
            links = Links(store.id_length)
            came = self._read_pack(pack, writer, progress, links)
            missing = None
            if all(id in came or store.holds(id) for id in map(unhexlify, tips)):
                missing = links.missing(came, store.holds)
            if missing is None:
                missing = missing_blobs(Arriving(store, writer), tips, store.holds)
            if self.remote.promisor:
                store.promises.add(store.promises.unlisted(missing))
            elif missing and pack.goes_on:
                _bring(pack, missing, progress)
                came.update(missing)
            else:
                require_promised(store, missing)
            writer.commit()
        return len(came)

    def _writer(self, pack: Incoming) -> Keeper | PackWriter:
        """What a received pack goes into: it is kept, or its objects are stored one by one."""
        if pack.file.tell() >= KEPT_FROM:
            return Keeper(self._store, pack.file, pack.path)
        return self._store.writer()

    def _read_pack(
        self,
        pack: Incoming,
        writer: Keeper | PackWriter,
        progress: Progress | None,
        links: Links | None = None,
    ) -> set[bytes]:
        """Have a writer take in what came; the binary ids of that."""
        if not pack.file.tell():
            return set()
        if isinstance(writer, Keeper):
            return set(writer.take(max_bytes=self._max_bytes, links=links, progress=progress))
        return set(
            take_pack(
                pack.file,
                self._store,
                writer,
                max_bytes=self._max_bytes,
                links=links,
                progress=progress,
            )
        )

    def _take_for_git(
        self, git: GitRefs, pack: Incoming, tips: list[ObjectID], progress: Progress | None
    ) -> int:
        """As ``take``, into git's object directory: what it has of files first, then what they are needed by."""
        known = {bytes.fromhex(id.decode()) for id in git.under(b"refs/").values()}
        count, came = 0, pack.file.tell() > 0
        if pack.goes_on:
            blobs = self._left_out(git, pack, tips, known, progress)
            count += len(blobs)
            write_pack(self._store, blobs, git.git.objects)
        if came:
            count += self._index_pack(pack.file)
        self._store.close()  # git's packs are listed anew when next read
        require_all(self._store, tips, known.__contains__, self.repo.shallow)
        return count

    def _left_out(
        self,
        git: GitRefs,
        pack: Incoming,
        tips: list[ObjectID],
        known: set[bytes],
        progress: Progress | None,
    ) -> list[bytes]:
        """The blobs (binary ids) that are neither in what came nor in git, all of them here on return."""
        store = self._store
        with store.writer() as writer:  # to read the pack by; it is git that keeps it
            came = self._read_pack(pack, writer, progress)
            arriving = Arriving(store, writer)
            blobs = all_blobs(arriving, tips, known.__contains__, self.repo.shallow)
        with closing(GitObjects(git.git.objects, self.repo.object_format)) as have:
            lacking = [blob for blob in blobs if blob not in came and not have.holds(blob)]
        missing = [blob for blob in lacking if not store.contains(blob)]
        if missing:
            _bring(pack, missing, progress)
        return lacking

    def _index_pack(self, pack: IO[bytes]) -> int:
        """Have stock git take in a pack: it does so in bounded memory, and completes a thin one."""
        assert self._git is not None
        if self._max_bytes is not None:
            check_sizes(pack, self._store.format_name, self._max_bytes)
        pack.seek(8)
        count = int.from_bytes(pack.read(4), "big")
        pack.seek(0)
        if count == 0:
            return 0
        command = ["git", f"--git-dir={self._git.git.common}", "index-pack", "--stdin"]
        command.append(f"--keep={WHY_KEPT}")
        environment = self.repo.environment.items()
        try:
            done = subprocess.run(
                [*command, "--fix-thin", *(["--promisor"] if self.remote.promisor else [])],
                stdin=pack.fileno(),
                capture_output=True,
                env={name: value for name, value in environment if name[:4] != "GIT_"},
            )
        except FileNotFoundError as error:
            raise Unavailable(
                "git is not installed, and takes in what is fetched", hint="install git"
            ) from error
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            raise DamagedPack(f"git does not take the pack: {said}", hint="run it again")
        what, _, name = done.stdout.decode(errors="replace").strip().partition("\t")
        if what == "keep":
            note_kept(self._git.git.objects / "pack" / f"pack-{name}.keep")
        return count

    def planned(self, there: Mapping[bytes, bytes]) -> list[RefChange]:
        """What moves: remote branches wherever they went, tags only where there are none yet."""
        here = self._git.under(b"refs/") if self._git is not None else {}
        rows = self.repo.database.refs() if self._git is None else {}
        changes = []
        for ref, new in sorted(there.items()):
            name = ref if ref.startswith(TAGS) else self._prefix + ref[len(HEADS) :]
            old = here.get(name[len(b"refs/") :]) or rows.get(name)
            if self._git is None and ref.startswith(TAGS) and old is None:
                marker = _marker_name(ref)
                old = ref if marker is not None and marker in self.repo.markers else None
            if old == new or (old is not None and ref.startswith(TAGS)):
                continue
            text = name.decode(errors="surrogateescape")
            changes.append(RefChange(text, cast("ObjectID | None", old), cast("ObjectID", new)))
        return changes

    def in_the_way(self, there: Mapping[bytes, bytes]) -> list[bytes]:
        """Remote branches that the server has no more, where it has one that git can't have beside them."""
        offered = {self._prefix + ref[len(HEADS) :] for ref in there if ref.startswith(HEADS)}
        if self._git is None:
            here = [ref for ref in self.repo.database.refs() if ref.startswith(self._prefix)]
        else:
            here = [self._prefix + name for name in self._git.under(self._prefix)]
        stale = [ref for ref in here if ref not in offered]
        above = {above for ref in offered for above in _directories(ref)}
        return [ref for ref in stale if ref in above or not offered.isdisjoint(_directories(ref))]

    def move(self, changes: Iterable[RefChange], pruned: Iterable[bytes]) -> None:
        if self._git is not None:
            for ref in pruned:
                old = self._git.get(ref)
                if old is not None:
                    self._git.remove(ref, old)
            self._git.move_all(
                (
                    (each.ref.encode(errors="surrogateescape"), each.old, each.new)
                    for each in changes
                ),
                who=reflog_identity(self.repo),
                message=b"heddle: fetch",
                environment=self.repo.environment,
            )
            return
        moves: dict[str, Move] = {}
        rows: dict[bytes, bytes | None] = dict.fromkeys(pruned)
        for each in changes:
            ref = each.ref.encode(errors="surrogateescape")
            marker = self._as_marker(ref, each.new)
            if marker is not None:
                moves[marker.name] = marker
            if marker is None or marker.new != each.new:
                rows[ref] = each.new
        while True:
            try:
                self.repo.database.move_names(moves.values(), kind="fetch", refs=rows)
                return
            except MarkerExists:  # another fetch made it meanwhile
                here = {marker.name for marker in self.repo.markers}
                if here.isdisjoint(moves):
                    raise
                moves = {name: move for name, move in moves.items() if name not in here}

    def _as_marker(self, ref: bytes, id: ObjectID) -> Move | None:
        name = _marker_name(ref)
        if name is None:
            return None
        state = cast("ObjectID", peeled(self._store, id))
        return Move("marker", name, None, state) if self.repo.is_state(state) else None


def _directories(ref: bytes) -> Iterator[bytes]:
    """What would have to be directories for a ref to be a file."""
    parts = ref.split(b"/")
    return (b"/".join(parts[:length]) for length in range(1, len(parts)))


def tracked(repo: Repository, remote: str, thread: str) -> ObjectID | None:
    """Where a remote had the branch of a thread when it was last fetched or pushed."""
    ref = remotes.remote(repo, remote).tracking + thread.encode()
    if repo.git is not None:
        return GitRefs(repo.git).get(ref)
    return cast("ObjectID | None", repo.database.refs().get(ref))


# pull


def pull(
    repo: Repository,
    name: str = "origin",
    thread: str | None = None,
    *,
    show: Callable[[str], object] = lambda thread: None,
    progress: Progress | None = None,
) -> Pulled:
    """Fetch, and move a thread forward to where its remote branch is; the working directory or its mount goes along.

    Args:
        name: a remote.
        thread: None: the one that we are on.
        show: has a live mount of a thread show where that is now; raises a HeddleError if it can't.

    Raises:
        DataError: the remote has no such branch.
        Diverged: the thread holds states that the branch does not; it was not moved.
        UnsavedChanges: the working directory has changes that would be overwritten; nothing was moved.
        HeddleError: as ``fetch``.
    """
    thread = repo.current_thread if thread is None else thread
    fetched = fetch(repo, name, progress=progress)
    new = tracked(repo, name, thread)
    if thread not in fetched.branches:
        raise DataError(f"{name} has no branch '{thread}'", hint=f"heddle push {name} {thread}")
    if new is None or not fetched.remote.takes_branch(f"refs/heads/{thread}"):
        raise DataError(
            f"{name} has a branch '{thread}', which is not among those that are fetched",
            hint=f"git remote set-branches --add {name} {thread}",
        )
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
    try:
        show(thread)
        changed_paths = _bring_directory(repo, thread, old)
    except HeddleError:
        message = "the working directory or the mount stayed"
        repo.database.move_names([Move("thread", thread, new, old)], kind="pull", message=message)
        with suppress(HeddleError):
            show(thread)
        raise
    return Pulled(fetched, thread, old, new, changed_paths)


def _bring_directory(repo: Repository, thread: str, old: ObjectID | None) -> int:
    """Take the working directory along, if it was where the thread was."""
    if thread != repo.head or repo.worktree_base() != old:
        return 0
    from heddle.repo.switch import switch

    return switch(repo, thread).changed_paths
