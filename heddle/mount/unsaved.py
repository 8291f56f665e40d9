"""What a thread's mount holds unsaved, whether a session serves it or not, and capturing that.

Owns the one choice between asking a live session and opening the overlay ourselves, so that nobody above has to make
it. What counts as changed and how it is captured is ``overlay``'s; which session lives is ``registry``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from heddle.attribution import Agent, Attribution
from heddle.errors import Busy, NotMounted, StaleMount
from heddle.mount import control, ending, mountpoint, registry, wire
from heddle.mount.registry import Session
from heddle.mount.runtime import RuntimeDirectory
from heddle.repo import linked
from heddle.repo.names import overlay_dir

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.mount.overlay import Overlay
    from heddle.mount.sources import Source
    from heddle.repo.capture import Captured
    from heddle.repo.changes import Change, Status
    from heddle.repo.repository import Repository

_LAST_BYTES = "open for writing, and closed to us by its mode: its last bytes may be missing"


class Unsaved(Protocol):
    """What is unsaved in one thread's mount."""

    base: ObjectID | None
    """The state that it is relative to; None is the empty tree."""

    def status(self) -> Status:
        """What differs from the base, without what is ignored."""

    def reading(
        self, changes: Sequence[Change]
    ) -> AbstractContextManager[Callable[[bytes], bytes]]:
        """What reads changed paths as they would be captured: a file's content or a link's target."""

    def capture(
        self,
        *,
        message: str,
        attribution: Attribution,
        paths: Sequence[bytes] = (),
        allow_empty: bool = False,
    ) -> Captured:
        """Record what is unsaved as a new state of the thread."""

    def adopt(self, state: ObjectID | None, moved_from: tuple[ObjectID | None] | None) -> None:
        """Be relative to another state and show the same."""


@contextmanager
def unsaved(repo: Repository, thread: str, runtime: RuntimeDirectory) -> Iterator[Unsaved]:
    """What is unsaved in a thread's mount: live, stale or not mounted just now.

    Without a session the overlay is opened here, so no mount of the thread can start before the block ends.

    Args:
        repo: the repository.
        thread: an existing thread.
        runtime: the runtime directory.

    Raises:
        NotMounted: the thread has never been mounted.
        Busy: its session hangs, or another command is at its overlay.
    """
    session = _serving(repo, thread, runtime)
    if session is not None:
        yield _Live(repo, session)
        return
    if not overlay_dir(repo, thread).is_dir():
        raise NotMounted(f"thread '{thread}' has never been mounted", hint=f"heddle mount {thread}")
    with runtime.changing(runtime.session_id(repo.path, thread)):
        from heddle.mount.overlay import Overlay

        overlay = Overlay.open(repo, thread)
        try:
            yield _Offline(repo, overlay)
        finally:
            overlay.close()


@contextmanager
def view(repo: Repository, thread: str, runtime: RuntimeDirectory) -> Iterator[Source]:
    """What a thread's mount shows, live, stale or not mounted just now; of one never mounted, its state.

    Args:
        repo, thread, runtime: as for ``unsaved``.

    Raises:
        ThreadNotFound: no such thread.
        Busy: as for ``unsaved``.
    """
    from heddle.mount.sources import CoreSource, LiveSource

    row = repo.threads.get(thread)
    session = _serving(repo, thread, runtime)
    if session is not None:
        yield LiveSource(session.mountpoint)
    elif not overlay_dir(repo, thread).is_dir():
        with state_view(repo, thread, row.state) as source:
            yield source
    else:
        with runtime.changing(runtime.session_id(repo.path, thread)):
            from heddle.mount.overlay import Overlay

            with Overlay.open(repo, thread) as overlay:
                yield CoreSource(overlay.core)


@contextmanager
def state_view(repo: Repository, spec: str, state: ObjectID | None) -> Iterator[Source]:
    """What a read-only mount of a state would show; None is the empty tree."""
    from heddle.mount.overlay import Overlay
    from heddle.mount.sources import CoreSource

    with Overlay.open(repo, spec, read_only=True, base=state) as overlay:
        yield CoreSource(overlay.core)


def agent_defaults(repo: Repository, thread: str, runtime: RuntimeDirectory) -> Mapping[str, str]:
    """The attribution defaults that a thread was mounted with; empty when it is not mounted."""
    found = [record for record in registry.recorded(runtime, repo) if record.thread == thread]
    return found[-1].agent if found else {}


def follow(repo: Repository, thread: str, runtime: RuntimeDirectory) -> bool:
    """Tell a live mount that its thread was moved by somebody else.

    Returns:
        Whether a mount follows; False when the thread is not mounted.

    Raises:
        DataError: it is, and can't follow.
    """
    session = _serving(repo, thread, runtime)
    if session is None or session.record is None:
        return False
    _Live(repo, session).flush()  # what only the kernel has so far counts as unsaved
    control.call(session.record.socket, "rebase")
    return True


def adopt(
    repo: Repository,
    thread: str,
    state: ObjectID | None,
    runtime: RuntimeDirectory,
    *,
    moved_from: tuple[ObjectID | None] | None,
) -> None:
    """Take the state that git went to in a thread's mount, live or not, for what it is relative to.

    Args:
        state: where git is.
        moved_from: (where the thread is,): the thread goes there too.

    Raises:
        ThreadMoved: it is elsewhere.
        Busy: the session hangs, or another command is at the overlay.
    """
    with unsaved(repo, thread, runtime) as mine:
        mine.adopt(state, moved_from)


def shown_state(mountpoint: Path, runtime: RuntimeDirectory) -> ObjectID | None:
    """The state that a read-only mount shows, which its spec may mean no longer.

    Raises:
        NotMounted: no session serves it.
    """
    for session in registry.survey(runtime, mountpoint=mountpoint):
        if session.state == "live" and session.record is not None:
            said = control.call(session.record.socket, "status")
            state: ObjectID | None = said["state"] and said["state"].encode("ascii")
            return state
    raise NotMounted(
        f"no session serves {mountpoint}", hint=f"heddle unmount {mountpoint}, then mount again"
    )


def _serving(repo: Repository, thread: str, runtime: RuntimeDirectory) -> Session | None:
    """The thread's live session; one that hangs is woken, not killed."""
    for session in registry.survey(runtime, repo, thread=thread):
        if session.state == "live" or (session.state == "hung" and ending.wake(session)):
            return session
        if session.state == "hung":
            raise Busy(
                f"the session of {session.mountpoint} hangs: {session.reason}",
                hint=f"heddle mount {thread} recovers it, heddle unmount --force {thread} ends it",
            )
    return None


class _Live:
    """A session's overlay, through its control socket and its mountpoint."""

    def __init__(self, repo: Repository, session: Session) -> None:
        if session.record is None:
            raise StaleMount(
                f"nobody knows the control socket of {session.mountpoint}",
                hint=f"heddle unmount {session.mountpoint}, then mount again",
            )
        self._repo = repo
        self._socket = session.record.socket
        self._mountpoint = session.mountpoint
        assert session.thread is not None
        self._thread = session.thread
        self.base = repo.overlay_base(session.thread)

    def status(self) -> Status:
        from heddle.repo.changes import Status

        self.flush()
        found: list[Any] = []
        said = control.call(self._socket, "status", part=found.extend)
        changes = [wire.change_from_json(one) for one in found]
        left_out = wire.not_recorded_from_json(said["not_recorded"])
        return Status(changes, said["ignored_count"], left_out)

    def reading(
        self, changes: Sequence[Change]
    ) -> AbstractContextManager[Callable[[bytes], bytes]]:
        from heddle.repo import worktree

        git = next((each.git for each in linked.of(self._repo, self._thread)), None)
        return worktree.reading(self._repo, changes, git=git, root=self._mountpoint)

    def capture(
        self,
        *,
        message: str,
        attribution: Attribution,
        paths: Sequence[bytes] = (),
        allow_empty: bool = False,
    ) -> Captured:
        from heddle.repo.capture import NotRecorded

        missed = self.flush()
        arguments = {
            "message": message,
            "attribution": wire.attribution_to_json(attribution),
            "paths": [wire.text_of(path) for path in paths],
            "allow_empty": allow_empty,
        }
        captured = wire.captured_from_json(
            self._repo, control.call(self._socket, "capture", arguments)
        )
        unsure = tuple(NotRecorded(path, _LAST_BYTES) for path in missed)
        return captured._replace(not_recorded=captured.not_recorded + unsure)

    def adopt(self, state: ObjectID | None, moved_from: tuple[ObjectID | None] | None) -> None:
        arguments = {
            "state": wire.id_to_json(state),
            "moved_from": None if moved_from is None else [wire.id_to_json(moved_from[0])],
        }
        control.call(self._socket, "adopt", arguments)

    def flush(self) -> list[bytes]:
        """Bring the session what the kernel still holds of files open for writing; those that can't be brought."""
        writers: list[str] = []
        control.call(self._socket, "writers", part=writers.extend)
        return mountpoint.flush(self._mountpoint, map(wire.path_of, writers))


class _Offline:
    """An overlay that no session serves, opened by ourselves."""

    def __init__(self, repo: Repository, overlay: Overlay) -> None:
        self._repo = repo
        self._overlay = overlay
        self.base = overlay.base

    def status(self) -> Status:
        return self._overlay.status()

    def reading(
        self, changes: Sequence[Change]
    ) -> AbstractContextManager[Callable[[bytes], bytes]]:
        return self._overlay.reading(changes)

    def capture(
        self,
        *,
        message: str,
        attribution: Attribution,
        paths: Sequence[bytes] = (),
        allow_empty: bool = False,
    ) -> Captured:
        with self._repo.store.writer() as writer:
            return self._overlay.record(
                message=message,
                attribution=attribution,
                paths=paths,
                allow_empty=allow_empty,
                writer=writer,
            )

    def adopt(self, state: ObjectID | None, moved_from: tuple[ObjectID | None] | None) -> None:
        from heddle.mount.makers import Makers

        agents: dict[ObjectID, Agent] = {}
        for each in linked.of(self._repo, self._overlay.thread):
            agents = Makers(
                each.git.path, {}
            ).take()  # as the session, which is gone, wrote it down
        self._overlay.adopt(state, thread=moved_from, agents=agents)
