"""Pushing to git servers.

Owns the check that nothing is lost over there, made before anything is sent, and what the server's answer means.
The conversation is ``transport.py``'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from heddle.errors import DataError, HeddleError
from heddle.git import remotes
from heddle.git.branches import Diverged, is_ancestor, reflog_identity
from heddle.git.export import RefChange
from heddle.git.packing import packed
from heddle.git.refs import HEADS, TAGS, GitRefs
from heddle.git.remotes import Remote
from heddle.git.sending import Refs, Request, send
from heddle.git.transport import NotTaken, is_progress, shown, sideband, talk

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.git.pack import Progress
    from heddle.repo.repository import Repository


_SAID_AT_MOST = 500
_BY_RULE = ("fsck error", "exceeds maximum allowed size", "shallow update not allowed")
"""What a server's git says of a pack that it may take and will not (git-config(1), ``receive.*``)."""


class PushRejected(DataError):
    """The server took the objects, perhaps, but not the ref: a hook, a rule, or somebody was faster."""

    kind = "push_rejected"


@dataclass(frozen=True, slots=True)
class PushedTo:
    """What moved at one address of a remote."""

    url: str
    refs: list[RefChange]


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push did: to where, and the refs that moved at each address."""

    remote: Remote
    to: list[PushedTo]

    @property
    def refs(self) -> list[RefChange]:
        """The refs that moved anywhere, each once."""
        return list({each.ref: each for to in reversed(self.to) for each in to.refs}.values())


def push(
    repo: Repository,
    name: str = "origin",
    threads: Sequence[str] = (),
    *,
    markers: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Pushed:
    """Send threads to a remote as branches, and markers as tags; to each of its addresses, also if one fails.

    Args:
        name: a remote.
        threads: these; none means the one that we are on.
        markers: all markers as well.
        force: also where the remote's branch holds commits that the thread does not.

    Raises:
        DataError: no such remote, or a thread without a state.
        Diverged: the remote's branch holds commits that the thread does not; nothing was moved.
        PushRejected: the server refused; says why.
        RemoteUnreachable, RemoteFailed, RemoteNotFound, NotPermitted: as they say.
    """
    remote = remotes.remote(repo, name)
    wanted = _wanted(repo, threads or [repo.current_thread], markers)
    done, failed = list[PushedTo](), list[tuple[str, HeddleError]]()
    for url in remote.push_urls:
        try:
            done.append(PushedTo(url, _push_to(repo, remote, url, wanted, force, progress)))
        except HeddleError as error:
            failed.append((url, error))
    if failed:
        raise _failure(remote, failed, done)
    return Pushed(remote, done)


def _failure(
    remote: Remote, failed: Sequence[tuple[str, HeddleError]], done: Sequence[PushedTo]
) -> HeddleError:
    """The first error; where there are several addresses, it says what came of each."""
    error = failed[0][1]
    if len(remote.push_urls) == 1:
        return error
    said = [f"{shown(url)}: {each.message}" for url, each in failed]
    said += [f"{shown(each.url)} has it" for each in done]
    return type(error)("; ".join(said), hint=error.hint)


def _push_to(
    repo: Repository,
    remote: Remote,
    url: str,
    wanted: Mapping[bytes, bytes],
    force: bool,
    progress: Progress | None,
) -> list[RefChange]:
    """Push to one address; raises as `push`."""
    name = remote.name
    changes: list[RefChange] = []
    words: list[bytes] = []
    report = sideband(progress)

    def hear(text: bytes) -> None:
        words.append(text)
        if report is not None:
            report(text)

    def choose(there: Refs) -> list[RefChange]:
        changes[:] = _to_push(repo, wanted, there, force)
        return changes

    def pack(there: Refs, changes: list[RefChange], offered: Set[bytes]) -> Iterable[bytes]:
        return packed(repo, there.values(), [each.new for each in changes], offered, progress)

    request = Request(name, repo.object_format, choose, pack, hear, repo.shallow)
    try:
        result = talk(
            repo,
            url,
            lambda client, path: send(client, path, request),
            push_instead=not remote.pushes_apart,
        )
    except NotTaken as error:
        raise _not_taken(error, _in_its_words(words)) from error
    refused = {ref: why for ref, why in result.items() if why}
    moved = [each for each in changes if each.ref.encode() not in refused]
    try:
        _remember_pushed(repo, remote, moved)
    except HeddleError as error:
        names = ", ".join(each.ref for each in moved)
        message = f"{name} has taken {names}, and here that can't be noted: {error.message}"
        raise type(error)(message, hint=error.hint) from error
    if refused:
        said = "; ".join(f"{ref.decode(errors='replace')}: {why}" for ref, why in refused.items())
        taken = f", and took {', '.join(each.ref for each in moved)}" if moved else ""
        hint = f"heddle pull {name}, or ask who runs the server"
        if "cannot create" in said:  # as git says that a branch is in the way of its directory
            hint = "heddle thread rename gives it a name that can stand beside those there"
        raise PushRejected(f"{name} refused {said}{taken}{_in_its_words(words)}", hint=hint)
    return changes


def _not_taken(error: NotTaken, said: str) -> HeddleError:
    """The same with the server's reason, which may be a rule of its own."""
    hint = "what the server said is in brackets; ask who runs it"
    if any(word in said for word in _BY_RULE):
        return PushRejected(f"{error.message}{said}", hint=hint)
    return NotTaken(f"{error.message}{said}", hint=hint if said else None)


def _in_its_words(words: Iterable[bytes]) -> str:
    """What a server said beside its answer and its progress, which is where its hooks say why."""
    lines = [line.strip() for line in b"".join(words).splitlines()]
    said = b"; ".join(line for line in lines if line and not is_progress(line))
    return f" ({said[:_SAID_AT_MOST].decode(errors='replace')})" if said else ""


def _wanted(repo: Repository, threads: Sequence[str], markers: bool) -> dict[bytes, bytes]:
    wanted: dict[bytes, bytes] = {}
    for name in threads:
        state = repo.threads.get(name).state
        if state is None:
            raise DataError(f"thread '{name}' has no state yet", hint="heddle capture")
        wanted[HEADS + name.encode()] = state
    if markers:
        tags = repo.database.refs()
        for marker in repo.markers:
            ref = TAGS + marker.name.encode()
            wanted[ref] = tags.get(ref, marker.state)
    return wanted


def _to_push(
    repo: Repository, wanted: Mapping[bytes, bytes], there: Refs, force: bool
) -> list[RefChange]:
    """What moves on the server; raises if any of it must not."""
    changes = []
    for ref, new in wanted.items():
        old = there.get(ref)
        if old == new:
            continue
        change = RefChange(ref.decode(), old, cast("ObjectID", new))
        if old is not None and not force:
            _require_forward(repo, change)
        changes.append(change)
    return changes


def _require_forward(repo: Repository, change: RefChange) -> None:
    assert change.old is not None
    ids = f"at {change.old[:12].decode()} there and at {change.new[:12].decode()} here"
    if change.ref.startswith("refs/tags/"):
        raise DataError(f"{change.ref} is {ids}; tags do not move", hint="--force moves it anyway")
    if not is_ancestor(repo, change.old, change.new):
        raise Diverged(
            f"{change.ref} is {ids}, and holds commits that this one does not",
            hint="heddle pull goes forward, or says how to keep both; --force moves it anyway",
        )


def _remember_pushed(repo: Repository, remote: Remote, changes: Iterable[RefChange]) -> None:
    """Move the remote branches here to where the server has them now."""
    rows = {
        remote.tracking + each.ref.removeprefix("refs/heads/").encode(): each.new
        for each in changes
        if each.ref.startswith("refs/heads/") and not remote.is_mirrored
    }
    if repo.git is None:
        if rows:
            repo.database.move_names([], kind="push", refs=cast("dict[bytes, bytes | None]", rows))
        return
    from heddle.git.pack import missing_objects, packs_kept, write_pack
    from heddle.objects.gitdir import GitObjects

    have = GitObjects(repo.git.objects, repo.object_format)
    missing = missing_objects(repo.store, rows.values(), have.holds)
    have.close()
    refs, who = GitRefs(repo.git), reflog_identity(repo)
    with packs_kept():
        write_pack(repo.store, missing, repo.git.objects)
        for ref, new in rows.items():
            refs.move(ref, refs.get(ref), new, who=who, message=b"heddle: push")
