"""Ending sessions: the unmount, and what becomes of a session that hangs or died.

Owns the order of its steps and what is promised between them: nothing that was written is lost, and when it is done the
process is gone and the overlay free. Judging what exists is ``registry``'s; the steps on one mountpoint are
``mountpoint``'s.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from heddle import faults
from heddle.errors import (
    Busy,
    HeddleError,
    InvalidName,
    NotMounted,
    StaleMount,
    StorageError,
    ThreadNotFound,
)
from heddle.mount import control, mountinfo, mountpoint, registry
from heddle.mount.process import Holder, find_holders
from heddle.mount.registry import Session, SessionState
from heddle.mount.runtime import RuntimeDirectory, lock_within
from heddle.mount.wire import Amount, path_of
from heddle.repo import linked
from heddle.repo.names import overlay_dir, valid_thread_name

if TYPE_CHECKING:
    from heddle.repo.repository import Repository

PATIENCE_S = 10.0
"""How long a session that does not answer is given, once asked to, before it is taken for dead."""
_ELSEWHERE_S = 3.0  # an unmounted session that goes on for so long is kept by another name space


class MountBusy(Busy):
    """Processes still use the mount.

    Attributes:
        holders: those that we may see.
    """

    kind = "mount_busy"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.holders: list[Holder] = []


class Unmounted(NamedTuple):
    """A session that is over.

    Attributes:
        thread: the thread, or None for a read-only mount of a state.
        spec: the thread, or the state spec of a read-only mount.
        mountpoint: where it was; None when it was over already, and only ``discard`` was left to do.
        was: its state before; None as for ``mountpoint``.
        method: ``unmounted``; ``detached`` when it was pulled away lazily; ``stopped`` when only the process was left;
            ``forgotten`` when only a record was; ``discarded`` when it was over already.
        dirty: what stays unsaved in the overlay; None when that is nothing or can't be told.
        discarded: what ``discard`` dropped; None when it was not asked for.
        kept_in: where what was discarded was put aside.
    """

    thread: str | None
    spec: str
    mountpoint: Path | None
    was: SessionState | None
    method: str
    dirty: Amount | None = None
    discarded: Amount | None = None
    kept_in: Path | None = None


# sessions that do not answer


def revived(session: Session) -> Session:
    """Wake a session that hangs, if it can be woken; the session as it is then, live or stale.

    A stopped process is continued: what the kernel still holds for it is then not lost. One that does not
    answer in ``PATIENCE_S`` all the same is killed; all that was closed or synced is in the upper.

    Raises:
        Busy: it can't even be killed.
    """
    if wake(session):
        return session._replace(state="live")
    end_process(session)
    return session._replace(state="stale")


def wake(session: Session, patience_s: float = PATIENCE_S) -> bool:
    """Continue a stopped session and give it time to answer.

    Returns:
        Whether it answers now.
    """
    process = session.process
    if process is None or session.record is None:
        return False
    if process.is_stopped():
        process.signal(signal.SIGCONT)
    registry.call_back([session.record], patience_s)
    deadline = time.monotonic() + patience_s
    while (left_s := deadline - time.monotonic()) > 0:
        answer = control.ping(session.record.socket, left_s)
        if answer is None:
            return False
        if registry.serves(answer):
            return True
    return False


def end_process(session: Session) -> None:
    """Make sure that no process is left behind a session that does not serve its mountpoint any more.

    Raises:
        Busy: it does not end.
    """
    if session.record is None:
        return
    process = session.record.process
    if process.is_alive() and session.state == "stale":  # it answers, only its mount is gone
        _ask_to_stop(session)
        process.wait(PATIENCE_S)
    if process.is_alive():
        process.signal(signal.SIGKILL)
    if not process.wait(PATIENCE_S):
        raise Busy(
            f"session {process.pid} of {session.mountpoint} can't be ended: it waits in the kernel"
        )


def _ask_to_stop(session: Session) -> None:
    assert session.record is not None
    try:
        control.call(session.record.socket, "stop", {"unmount": True})
    except HeddleError:
        pass  # it will be told in another way


def clear(repo: Repository | None, session: Session, runtime: RuntimeDirectory) -> str:
    """Take away what a dead session left: its mount, its process, its records, the directory made for it.

    Returns:
        How, as in ``Unmounted.method``.
    """
    had_process = session.process is not None
    end_process(session)
    faults.reach("unmount.before-detach")
    detached = mountpoint.detach_all(session.mountpoint, session.source)
    faults.reach("unmount.detached")
    if repo is not None:
        linked.clear(repo, registry.session_id(runtime, session))
    if session.record is not None:
        registry.forget(runtime, session.record, repo)
        if session.record.made_mountpoint:
            mountpoint.remove(session.mountpoint)
    return "detached" if detached else "stopped" if had_process else "forgotten"


# unmount


def select(
    runtime: RuntimeDirectory,
    repo: Repository | None,
    *,
    target: str | None = None,
    path: Path | None = None,
    stale: bool = False,
) -> list[Session]:
    """The sessions that an unmount means, the latest mounts first: one may cover another.

    Args:
        runtime: the runtime directory.
        repo: only this repository's; None: all of this user's.
        target: a thread, or None.
        path: an absolute path at or in a mount; tried when ``target`` is no thread with a session.
        stale: only those that do not serve their mountpoint.

    Raises:
        ThreadNotFound, NotMounted: nothing is meant by ``target``.
    """
    sessions = registry.survey(runtime, repo)
    if target is not None:
        sessions = _named(sessions, target, path) or _at(runtime, path)
        if not sessions:
            raise _nothing_there(repo, target)
    if stale:
        sessions = [session for session in sessions if session.state != "live"]
    return sessions[::-1]


def _named(sessions: list[Session], target: str, path: Path | None) -> list[Session]:
    found = [session for session in sessions if session.spec == target]
    if not found and path is not None:
        found = [session for session in sessions if session.mountpoint == path]
    return found


def _at(runtime: RuntimeDirectory, path: Path | None) -> list[Session]:
    """The sessions, of whatever repository, whose mount a path lies in or whose record names it."""
    if path is None:
        return []
    location = mountinfo.locate(path)
    where = mountinfo.resolve_outside(path) if location is None else location.mountpoint
    return registry.survey(runtime, mountpoint=where)


def _nothing_there(repo: Repository | None, target: str) -> HeddleError:
    hint = "heddle mounts"
    if repo is not None and "/" not in target:
        try:
            valid_thread_name(target)
        except InvalidName as error:
            return error
        if target not in repo.threads:
            return ThreadNotFound(f"no thread '{target}'", hint="heddle thread list")
    return NotMounted(f"'{target}' is not mounted", hint=hint)


def unmount(
    repo: Repository | None,
    session: Session,
    runtime: RuntimeDirectory,
    *,
    force: bool = False,
    stale: bool = False,
    discard: bool = False,
) -> Unmounted:
    """End one session; when it returns, its process is gone and its overlay is free.

    Unsaved changes stay in the overlay unless ``discard``, which puts them aside.

    Args:
        repo: the session's repository; None when that is gone.
        session: as ``select`` gave it.
        runtime: the runtime directory.
        force: also when processes use it, or it hangs.
        stale: also when it hangs; if it can be woken, it is unmounted as one that is alive.
        discard: drop what is unsaved.

    Raises:
        MountBusy: processes use it and no ``force``; nothing was changed.
        Busy: it hangs and neither ``force`` nor ``stale``, or another command is at it.
        StorageError: it can't be unmounted.
    """
    with runtime.changing(registry.session_id(runtime, session)):
        now = _now(runtime, repo, session)
        if now.state == "hung":
            now = _answering(now, kill=force or stale)
        if now.state == "live":
            method, dirty = _unmount_live(repo, now, runtime, force)
        else:
            method = clear(repo, now, runtime)
            dirty = dirty_offline(repo, now.thread)
        done = Unmounted(now.thread, now.spec, now.mountpoint, session.state, method, dirty)
        return _discard(repo, done) if discard else done


def _now(runtime: RuntimeDirectory, repo: Repository | None, session: Session) -> Session:
    """The session again, judged with its lock held: another command may have ended it meanwhile."""
    again = registry.survey(runtime, repo, mountpoint=session.mountpoint)
    for found in again:
        if found.spec == session.spec and found.repository == session.repository:
            return found
    raise NotMounted(f"'{session.spec}' is not mounted any more")


def _answering(session: Session, *, kill: bool) -> Session:
    """A session that hangs, woken or, when that is allowed, killed."""
    if kill:
        return revived(session)
    if wake(session):
        return session._replace(state="live")
    raise Busy(
        f"the session of {session.mountpoint} hangs: {session.reason}",
        hint=f"heddle unmount --force {session.spec}",
    )


def _unmount_live(
    repo: Repository | None, session: Session, runtime: RuntimeDirectory, force: bool
) -> tuple[str, Amount | None]:
    """Unmount, and wait until the session has tidied up and ended.

    The kernel writes what it still holds back to the session before the mount is gone.

    Returns:
        How, and what stays unsaved.
    """
    process = session.process
    with ExitStack() as stack:
        result = stack.enter_context(_ending(session)) if session.record else None
        faults.reach("unmount.before-unmount")
        method = "unmounted"
        detached = mountpoint.unmount(session.mountpoint)
        if detached.reason is not None and mountinfo.is_mounted(session.mountpoint, session.source):
            if not force:
                raise _why_not(session, detached)
            _detach(session)
            method = "detached"
        faults.reach("unmount.unmounted")
        said = _last_words(session, result) if result else None
    if process is not None and not process.wait(PATIENCE_S):
        raise Busy(f"{session.mountpoint} is unmounted, but its session {process.pid} does not end")
    if said is not None:
        return method, Amount.from_json(said.get("dirty"))
    if process is None:
        _wait_for_overlay(repo, session)
    clear(repo, session, runtime)
    return method, dirty_offline(repo, session.thread)


def _last_words(
    session: Session, result: Callable[[control.Emit], control.Message]
) -> control.Message | None:
    """What the session says when it has tidied up; None when it died before that, and we have to.

    A mount that lives on in another mount name space (unshare(1), a container) keeps it serving. It is stopped then:
    who unmounts means the session.
    """
    ends_at = time.monotonic() + _ELSEWHERE_S

    def waiting(_sign: object) -> None:
        if time.monotonic() > ends_at:
            _ask_to_stop(session)

    try:
        return result(waiting)
    except StaleMount:
        return None


def _wait_for_overlay(repo: Repository | None, session: Session) -> None:
    """Wait for the end of a session of which we know no process: it holds its overlay's lock until then."""
    if repo is None or session.thread is None:
        return
    descriptor = os.open(overlay_dir(repo, session.thread) / "lock", os.O_RDWR | os.O_CLOEXEC)
    try:
        if not lock_within(descriptor, PATIENCE_S):
            raise Busy(f"{session.mountpoint} is unmounted, but its session does not end")
    finally:
        os.close(descriptor)


def _ending(
    session: Session,
) -> AbstractContextManager[Callable[[control.Emit], control.Message]]:
    assert session.record is not None
    return control.pending(session.record.socket, "end")


def _why_not(session: Session, detached: mountpoint.Detached) -> HeddleError:
    if not detached.busy:
        return StorageError(f"{session.mountpoint} can't be unmounted: {detached.reason}")
    holders = find_holders(session.mountpoint)
    names = ", ".join(f"{holder.pid} ({holder.command})" for holder in holders[:3])
    more = f" and {len(holders) - 3} more" if len(holders) > 3 else ""
    used_by = f"{names}{more}" if holders else "processes that only root may see"
    error = MountBusy(
        f"{session.mountpoint} is in use by {used_by}",
        hint="end them or leave the directory; or heddle unmount --force",
    )
    error.holders = holders
    return error


def _detach(session: Session) -> None:
    """Pull a mount away from under whoever uses it, with all that they have written so far."""
    if session.record is not None:
        writers: list[str] = []
        control.call(session.record.socket, "writers", part=writers.extend)
        mountpoint.flush(session.mountpoint, map(path_of, writers))
    faults.reach("unmount.before-detach")
    detached = mountpoint.unmount(session.mountpoint, lazy=True)
    if detached.reason is not None:
        raise StorageError(f"{session.mountpoint} can't be unmounted: {detached.reason}")
    if session.record is not None:
        control.call(session.record.socket, "stop", {"unmount": True})


# what is unsaved behind a session that is over


def dirty_offline(repo: Repository | None, thread: str | None) -> Amount | None:
    """What a thread's overlay holds; None when that can't be told (its repository is gone, it is in use)."""
    if repo is None or thread is None or not overlay_dir(repo, thread).is_dir():
        return None
    from heddle.mount.overlay import Overlay

    try:
        overlay = Overlay.open(repo, thread)
    except HeddleError:
        return None
    try:
        unsaved = overlay.dirty_if_known()
        return unsaved and Amount(*unsaved)
    finally:
        overlay.close()


def discard_left(repo: Repository, thread: str, runtime: RuntimeDirectory) -> Unmounted:
    """Put aside what a thread's overlay holds that is not mounted: an unmount that discards can be given again.

    Args:
        repo: the repository.
        thread: a thread of it.
        runtime: the runtime directory.

    Raises:
        NotMounted: nothing is there, not even what is ignored.
        Busy: it was mounted meanwhile, or another command is at it.
    """
    with runtime.changing(runtime.session_id(repo.path, thread)):
        upper = overlay_dir(repo, thread) / "upper"
        if not (upper.is_dir() and any(upper.iterdir())):
            raise NotMounted(f"'{thread}' is not mounted, and nothing is unsaved in its overlay")
        done = _discard(repo, Unmounted(thread, thread, None, None, "discarded"))
    if done.discarded is None:
        raise _nothing_there(repo, thread)
    return done


def _discard(repo: Repository | None, done: Unmounted) -> Unmounted:
    """Put aside what an unmounted thread's overlay holds."""
    if repo is None or done.thread is None or not overlay_dir(repo, done.thread).is_dir():
        return done
    from heddle.mount.overlay import Overlay

    with Overlay.open(repo, done.thread) as overlay:
        dropped = Amount(*overlay.discard())
    kept_in = repo.heddle_dir / "overlays" / ".parked"
    return done._replace(dirty=None, discarded=dropped, kept_in=kept_in)
