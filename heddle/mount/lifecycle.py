"""Mounting, unmounting, recovering and listing: what the commands do to sessions.

Owns the order of the steps and what is promised between them. Judging what exists is ``registry``'s, the steps on one
mountpoint are ``mountpoint``'s, ending a session ``ending``'s, the process behind a mount ``session``'s.

One mount or unmount of a thread at a time: both hold ``RuntimeDirectory.changing``. A thread has at most one live
session, because a session holds the lock of the thread's overlay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from heddle import faults
from heddle.errors import (
    Busy,
    DataError,
    HeddleError,
    MountpointUnusable,
    StaleMount,
    ThreadNotFound,
    UsageError,
)
from heddle.mount import control, ending, foretold, mountinfo, mountpoint, registry
from heddle.mount.registry import Crash, Session, SessionRecord, SessionState
from heddle.mount.runtime import RuntimeDirectory
from heddle.mount.starting import Starting
from heddle.mount.wire import Amount
from heddle.repo.names import overlay_name, valid_thread_name

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.mount.session import Request
    from heddle.repo.repository import Repository

_DIRTY_TIMEOUT_S = 2.0
_GLANCE_S = 0.5


class Mounted(NamedTuple):
    """A mount that answers.

    Attributes:
        thread: the thread, or None for a read-only mount of a state.
        spec: the thread, or the state spec of a read-only mount.
        state: what it is relative to; None for an empty tree.
        mountpoint: where it is.
        pid: of the session.
        log: the session's log.
        read_only: whether it takes no writes.
        recovered: what an earlier session that ended badly had left unsaved; None when there was none, or
            when an automatic restart recovered it and that was told before.
        already_mounted: whether nothing had to be done.
    """

    thread: str | None
    spec: str
    state: ObjectID | None
    mountpoint: Path
    pid: int
    log: Path
    read_only: bool
    recovered: Amount | None = None
    already_mounted: bool = False


class MountInfo(NamedTuple):
    """One session as ``heddle mounts`` shows it; fields as in ``registry.Session``.

    Attributes:
        since_ns: when the mount first answered, ns since the epoch; None when nobody knows.
        dirty: what is unsaved; None when it can't be told just now.
        waits: whether it hangs because its disk does not answer.
        crashes: how and when it crashed in the last minutes.
        gave_up: whether it crashed so often that it is not started again.
    """

    repository: Path
    thread: str | None
    spec: str
    mountpoint: Path
    state: SessionState
    pid: int | None
    since_ns: int | None
    read_only: bool
    dirty: Amount | None
    log: Path | None
    doing: str | None = None
    reason: str | None = None
    waits: bool = False
    crashes: tuple[Crash, ...] = ()
    gave_up: bool = False

    @property
    def dirty_files(self) -> int | None:
        """How many paths are unsaved; None when it can't be told just now."""
        return None if self.dirty is None else self.dirty.files

    @property
    def dirty_bytes(self) -> int | None:
        """Size of what is unsaved; None when it can't be told just now."""
        return None if self.dirty is None else self.dirty.bytes


# mount

_MADE_TO_MOUNT = "made to be mounted"


class MountOptions(NamedTuple):
    """How to mount.

    Attributes:
        create: make the thread; an error when it exists, unless an interrupted ``create`` has just made it.
        start: the state spec that a thread made by ``create`` begins at; None: ``HEAD``'s state.
        read_only: show a state, any spec, and take no writes.
        allow_other: let other users in.
        agent: attribution defaults for captures of this mount, keys as in ``heddle.attribution``.
        foreground: serve in this process until unmounted; called when the mount answers.
    """

    create: bool = False
    start: str | None = None
    read_only: bool = False
    allow_other: bool = False
    agent: Mapping[str, str] = MappingProxyType({})
    foreground: Callable[[Mounted], None] | None = None


def mount(
    repo: Repository,
    spec: str,
    where: Path | None,
    options: MountOptions,
    runtime: RuntimeDirectory,
) -> Mounted:
    """Start a session and return when its mount answers.

    What is mounted at that place already is success. What a session that died left is recovered in place. On
    an error nothing was changed.

    Args:
        repo: the repository.
        spec: a thread; with ``read_only`` any state spec.
        where: an absolute path: an empty directory, or a name to make; None: where a dead session of the
            thread was, or a place in the runtime directory.
        options: how.
        runtime: the runtime directory.

    Raises:
        InvalidName, ThreadNotFound, ThreadExists, StateNotFound: about ``spec``.
        MountpointUnusable, CannotCreate, NotPermitted: about ``where``.
        DataError: the thread is mounted elsewhere.
        Unavailable: this machine can't mount.
        Busy: another command is at it, or a session that hangs can't be ended.
    """
    _check_names(spec, options)
    starting = None if options.foreground else Starting.take(repo.environment)
    try:
        mountpoint.check_fuse(allow_other=options.allow_other)
        place = None if where is None else mountinfo.resolve_outside(where)
        if options.read_only:
            plan = _plan_state(repo, spec, place, options, runtime)
        else:
            plan = _plan_thread(repo, spec, place, options, runtime)
        with ExitStack() as held:
            held.enter_context(runtime.changing(plan.session_id))
            if place is not None:  # two threads may be asked for at one place at once
                held.enter_context(runtime.changing(runtime.session_id(place, "place")))
            plan.unlock = held.close
            return _mount(repo, plan, starting)
    finally:
        if starting is not None:
            starting.close()


def remount(
    repo: Repository,
    record: SessionRecord,
    state: ObjectID | None,
    runtime: RuntimeDirectory,
) -> Mounted:
    """Recover what a session that crashed had mounted, at its place; its lock is held by the caller.

    Args:
        repo: its repository, with the environment that its user's settings come from.
        record: of the session, with its crashes.
        state: what it showed, if it was read-only.
        runtime: the runtime directory.

    Raises:
        HeddleError: as ``mount``.
    """
    options = MountOptions(
        read_only=record.read_only, allow_other=record.allow_other, agent=record.agent
    )
    plan = _Plan(
        record.spec,
        record.thread,
        record.mountpoint,
        options,
        runtime,
        registry.session_id(runtime, record),
        state if record.read_only else None,
        crashes=record.crashes,
    )
    starting = Starting.take(repo.environment)
    try:
        return _mount(repo, plan, starting)
    finally:
        starting.close()


def _check_names(spec: str, options: MountOptions) -> None:
    if options.start is not None and not options.create:
        raise UsageError("--from says where a new thread begins", hint="add --create")
    if not options.read_only:
        valid_thread_name(spec)
    elif options.create:
        raise UsageError("a read-only mount makes no thread", hint="leave --create out")


@dataclass(slots=True)
class _Plan:
    """A mount to be made: what is known before its lock is held.

    Attributes:
        place: where; None: to be decided by what a dead session of the thread left.
        state: what a read-only mount shows, or a new thread begins at.
        makes_thread: whether the thread is made along with it.
        started: whether its mount answers, so that nothing may be undone any more.
        crashes: of the sessions before, when their supervisor mounts.
        unlock: give the session's lock back before the end; serving in the foreground must not keep it.
    """

    spec: str
    thread: str | None
    place: Path | None
    options: MountOptions
    runtime: RuntimeDirectory
    session_id: str
    state: ObjectID | None = None
    recover: bool = False
    made: bool = False
    makes_thread: bool = False
    crashes: tuple[Crash, ...] = ()
    clear_elsewhere: list[Session] = field(default_factory=list)
    started: bool = False
    unlock: Callable[[], None] = lambda: None

    def default_place(self, repo: Repository) -> Path:
        return self.runtime.default_mountpoint(repo.path, overlay_name(self.spec))


def _plan_state(
    repo: Repository,
    spec: str,
    place: Path | None,
    options: MountOptions,
    runtime: RuntimeDirectory,
) -> _Plan:
    state = repo.resolve(spec)
    if place is None:
        name = overlay_name(f"{spec}@{state[:12].decode()}")
        place = runtime.default_mountpoint(repo.path, name)
    name = runtime.session_id(repo.path, spec, place)
    return _Plan(spec, None, place, options, runtime, name, state)


def _plan_thread(
    repo: Repository,
    thread: str,
    place: Path | None,
    options: MountOptions,
    runtime: RuntimeDirectory,
) -> _Plan:
    plan = _Plan(thread, thread, place, options, runtime, runtime.session_id(repo.path, thread))
    exists = thread in repo.threads
    if options.create:
        plan.state = _start_state(repo, options.start)
        if exists and not _made_for_this(repo, thread, plan.state):
            raise _thread_exists(thread)
        plan.makes_thread = not exists
    elif not exists:
        raise ThreadNotFound(f"no thread '{thread}'", hint=_instead_of(repo, thread))
    return plan


def _instead_of(repo: Repository, thread: str) -> str:
    """What to give in the place of a thread that there is not; a dead mount may still bear its name."""
    if thread in repo.markers:
        return f"heddle mount {thread} --read-only"
    last = repo.database.operations(limit=1, name=thread)
    if last and last[0].kind == "thread-rename":
        name = last[0].message.rpartition(" ")[2]
        return f"{last[0].message}: heddle unmount --stale, then heddle mount {name}"
    if last and last[0].kind == "thread-delete":
        return f"it was deleted: heddle overlay list; a new one: heddle mount {thread} --create"
    return f"heddle mount {thread} --create"


def _made_for_this(repo: Repository, thread: str, start: ObjectID | None) -> bool:
    """Whether the same command made the thread and was interrupted: nobody has used the thread since."""
    made = repo.database.operations(limit=2, name=thread)
    return (
        [one.message for one in made] == [_MADE_TO_MOUNT]
        and repo.threads.get(thread).state == start
        and not repo.has_unsaved(thread)
    )


def _thread_exists(thread: str) -> HeddleError:
    from heddle.errors import ThreadExists

    return ThreadExists(f"thread '{thread}' exists", hint=f"heddle mount {thread}")


def _start_state(repo: Repository, start: str | None) -> ObjectID | None:
    if start is not None:
        return repo.resolve(start)
    return repo.threads.get(repo.current_thread).state


def _mount(repo: Repository, plan: _Plan, starting: Starting | None) -> Mounted:
    """Mount with the session's lock held."""
    running = _settle(repo, plan)
    if running is not None:
        return running
    if plan.place is None:
        plan.place = plan.default_place(repo)
    if not plan.recover or not _is_dead_mount(plan.place):
        _refuse_taken(plan.place)
        if mountpoint.check(plan.place, repo.heddle_dir):
            mountpoint.make(plan.place)
            plan.made = True
    try:
        return _start(repo, plan, starting)
    except BaseException:
        if plan.made and not plan.recover:
            mountpoint.remove(plan.place)
        raise


def _is_dead_mount(place: Path) -> bool:
    return mountinfo.topmost(mountinfo.heddle_mounts(), place) is not None


def _refuse_taken(place: Path) -> None:
    """Another thread's or repository's mount stands there, dead or alive."""
    location = mountinfo.locate(place)
    if location is not None and location.mountpoint == place:
        raise MountpointUnusable(
            f"'{location.thread}' of {location.repository} is mounted at {place}",
            hint=f"heddle unmount {place}",
        )


def _settle(repo: Repository, plan: _Plan) -> Mounted | None:
    """Look at what there is of this thread: answer with it when it serves, plan to recover it when it does not."""
    sessions = registry.survey(
        plan.runtime,
        repo,
        thread=plan.thread,
        mountpoint=plan.place if plan.thread is None else None,
    )
    for session in sessions:
        if session.spec != plan.spec or session.read_only != plan.options.read_only:
            continue
        session = _woken(session) if session.state == "hung" else session
        if session.state == "live":
            return _already(repo, session, plan)
        _plan_recovery(plan, session)
    return None


def _woken(session: Session) -> Session:
    """A session that hung, live or ended; one that waits for its disk is left to it, since another would wait too.

    Raises:
        Busy: it waits for its disk, or can't be ended.
    """
    if not session.waits or ending.wake(session):
        return ending.revived(session)
    raise Busy(
        f"the session of {session.mountpoint} hangs: {session.reason}",
        hint="it goes on by itself when its disk is back; heddle doctor",
    )


def _plan_recovery(plan: _Plan, session: Session) -> None:
    """What is left of a dead session is recovered where it is asked for, or where it was."""
    plan.recover = True
    ending.end_process(session)
    if plan.place in (None, session.mountpoint):
        plan.place = session.mountpoint
        plan.made = session.record is not None and session.record.made_mountpoint
    else:
        plan.clear_elsewhere.append(session)


def _already(repo: Repository, session: Session, plan: _Plan) -> Mounted:
    if plan.place not in (None, session.mountpoint):
        raise DataError(
            f"thread '{session.spec}' is mounted at {session.mountpoint}",
            hint=f"cd {session.mountpoint}, or heddle unmount {session.spec}",
        )
    record = session.record
    if record is None:
        raise StaleMount(
            f"the session at {session.mountpoint} answers, but nobody knows its control socket",
            hint=f"heddle unmount {session.mountpoint}, then mount again",
        )
    if not mountinfo.is_mounted(session.mountpoint, session.source):
        raise DataError(
            f"'{session.spec}' is mounted at {session.mountpoint} in another mount name space (a container)",
            hint=f"heddle unmount {session.spec}, then mount again",
        )
    thread = session.thread
    state = plan.state if thread is None else repo.overlay_base(thread)
    return Mounted(
        thread=thread,
        spec=session.spec,
        state=state,
        mountpoint=session.mountpoint,
        pid=record.process.pid,
        log=record.log,
        read_only=record.read_only,
        recovered=_untold(record),
        already_mounted=True,
    )


def _untold(record: SessionRecord) -> Amount | None:
    """What an automatic restart recovered, if nobody has been told yet."""
    if not record.crashes:
        return None
    return Amount.from_json(control.call(record.socket, "recovered")["recovered"])


def _start(repo: Repository, plan: _Plan, starting: Starting | None) -> Mounted:
    """Make the thread if asked to, and hand the plan to the session."""
    from heddle.mount.session import Request

    assert plan.place is not None
    if plan.makes_thread:
        repo.threads.create(plan.spec, plan.state, message=_MADE_TO_MOUNT)
    request = Request(
        repository=str(repo.path),
        thread=plan.thread,
        spec=plan.spec,
        state=plan.state.decode("ascii") if plan.state and plan.thread is None else None,
        mountpoint=str(plan.place),
        made_mountpoint=plan.made,
        allow_other=plan.options.allow_other,
        runtime=str(plan.runtime.path),
        agent=dict(plan.options.agent),
        recover=plan.recover,
        crashes=plan.crashes,
        provider=repo.provider,
        environment=dict(repo.environment),
    )
    try:
        faults.reach("mount.before-start")
        if starting is None:
            return _serve_here(repo, plan, request)
        ahead = _ahead(repo, plan)
        said = starting.finish(request._replace(is_told=ahead.tell is not None), ahead.tell)
    except BaseException:
        if plan.makes_thread and not plan.started:
            _unmake_thread(repo, plan)
        raise
    _started(repo, plan)
    if ahead.look:
        foretold.look_around(plan.place)
    return _mounted(said)


def _ahead(repo: Repository, plan: _Plan) -> foretold.Ahead:
    """What is done ahead for a mount; what is wrong with the repository is for the session to find."""
    if plan.recover:
        return foretold.Ahead()
    with suppress(HeddleError, OSError):
        thread, state = plan.thread, plan.state
        if thread is not None and not plan.makes_thread:
            had = repo.database.has_overlay(thread)
            state = repo.overlay_base(thread) if had else repo.threads.get(thread).state
        return foretold.for_mount(repo, thread, state)
    return foretold.Ahead()


def _unmake_thread(repo: Repository, plan: _Plan) -> None:
    """A thread made for a mount that did not come about goes again, unless somebody has it by now.

    It stays below a dead mount, which shows that it was mounted for a moment: the same command recovers both.
    """
    assert plan.place is not None
    if _is_dead_mount(plan.place):
        return
    plan.unlock()  # who asks what is unsaved takes this lock
    try:
        repo.threads.delete(plan.spec)
    except HeddleError:
        pass


def _started(repo: Repository, plan: _Plan) -> None:
    """The thread is mounted: what a dead session left of it elsewhere can go, and others may go on."""
    plan.started = True
    faults.reach("mount.started")
    for session in plan.clear_elsewhere:
        ending.clear(repo, session, plan.runtime)
    plan.unlock()


def _serve_here(repo: Repository, plan: _Plan, request: Request) -> Mounted:
    """Be the session ourselves, for ``--foreground``."""
    from heddle.mount import session

    told: list[Mounted] = []

    def ready(said: control.Message) -> None:
        _started(repo, plan)
        told.append(_mounted(said))
        assert plan.options.foreground is not None
        plan.options.foreground(told[0])

    if session.run(request, ready, foreground=True) != 0:
        raise StaleMount(
            f"the session of {plan.place} ended and left it dead", hint=f"heddle mount {plan.spec}"
        )
    return told[0]


def _mounted(said: control.Message) -> Mounted:
    record = SessionRecord.from_json(said["record"])
    return Mounted(
        thread=record.thread,
        spec=record.spec,
        state=said["state"] and said["state"].encode("ascii"),
        mountpoint=record.mountpoint,
        pid=record.process.pid,
        log=record.log,
        read_only=record.read_only,
        recovered=Amount.from_json(said["recovered"]),
    )


# list


def mounts(runtime: RuntimeDirectory, repo: Repository | None = None) -> list[MountInfo]:
    """Every session of a repository, or of this user, as it is now. Never blocks on a mount.

    Args:
        runtime: the runtime directory.
        repo: only this repository's.
    """
    sessions = registry.survey(runtime, repo)
    live = [it for it in sessions if it.state == "live" and it.record and not it.read_only]
    sockets = [it.record.socket for it in live if it.record]
    answers = control.ping_all(sockets, _DIRTY_TIMEOUT_S, op="dirty") if sockets else []
    dirty = {
        it.mountpoint: Amount(answer["files"], answer["bytes"])
        for it, answer in zip(live, answers, strict=True)
        if answer is not None
    }
    for it in sessions:
        if it.state == "stale" and repo is not None:
            found = ending.dirty_offline(repo, it.thread)
            if found is not None:
                dirty[it.mountpoint] = found
    return [_info(it, dirty.get(it.mountpoint)) for it in sessions]


def mounts_around(runtime: RuntimeDirectory, path: Path) -> list[MountInfo]:
    """The sessions of the repository that a path lies in, as ``mounts``, without asking the repository's disk.

    Args:
        runtime: the runtime directory.
        path: absolute; in the working directory or in a mount.
    """
    found = mounts(runtime)
    above = {path, *path.parents}
    repositories = {it.repository for it in found if {it.repository, it.mountpoint} & above}
    return [it for it in found if it.repository in repositories]


def need_attention(runtime: RuntimeDirectory, repo: Repository) -> list[MountInfo]:
    """The sessions of a repository that died or hang; a quick look that does not ask what is unsaved."""
    sessions = registry.survey(runtime, repo, timeout_s=_GLANCE_S)
    return [_info(session, None) for session in sessions if session.state != "live"]


def _info(session: Session, dirty: Amount | None) -> MountInfo:
    record, process = session.record, session.process
    return MountInfo(
        repository=session.repository,
        thread=session.thread,
        spec=session.spec,
        mountpoint=session.mountpoint,
        state=session.state,
        pid=process.pid if process else None,
        since_ns=record.since_ns if record else None,
        read_only=session.read_only,
        dirty=dirty,
        log=record.log if record else None,
        doing=session.doing,
        reason=session.reason,
        waits=session.waits,
        crashes=record.crashes if record else (),
        gave_up=record is not None and record.gave_up,
    )
