"""Which sessions exist, judged by the kernel and the processes; what is written down about them is only a hint.

Owns the record a session leaves (a file in the runtime directory and a row in its repository's ``mounts`` table) and
the judgement live, stale or hung. It looks and never changes a mount: ``lifecycle`` and ``ending`` do. Nothing here
looks a path up inside a mount, so no dead or hung session can block it.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from heddle import faults
from heddle.errors import StorageError
from heddle.mount import control, mountinfo, waits
from heddle.mount import mountpoint as places
from heddle.mount.mountinfo import KernelMount, Location, locate
from heddle.mount.process import ProcessIdentity
from heddle.mount.runtime import RuntimeDirectory

if TYPE_CHECKING:
    from heddle.mount.mountinfo import KernelMount
    from heddle.repo.database import MountRecord
    from heddle.repo.repository import Repository

__all__ = ["Location", "Session", "SessionRecord", "forget", "locate", "register", "survey"]

SessionState = Literal["live", "stale", "hung"]
PROBE_TIMEOUT_S = 1.0
CALL_BACK = signal.SIGUSR1
"""Tells a session that its control socket is gone."""
_CALL_BACK_STEP_S = 0.01


class Crash(NamedTuple):
    """A session that ended in another way than by an unmount.

    Attributes:
        at_ns: when, ns since the epoch.
        how: the signal or the exit code, for people.
    """

    at_ns: int
    how: str


class SessionRecord(NamedTuple):
    """What a session says of itself when its mount first answers, and its supervisor when it crashed.

    Attributes:
        repository: the directory that holds the repository's ``.heddle``.
        thread: the thread it writes to; None for a read-only mount of a state.
        spec: the thread, or the state spec of a read-only mount.
        mountpoint: where it is mounted.
        process: the session's process.
        since_ns: when the mount first answered, ns since the epoch.
        read_only: whether it takes no writes.
        allow_other: whether other users may use the mount.
        socket: its control socket.
        log: its log.
        made_mountpoint: whether the mountpoint's directory was made for it and goes with it.
        agent: attribution defaults given at the mount, keys as in ``heddle.attribution``.
        crashes: of this session and of those that it is an automatic restart of, within the time that counts.
        gave_up: whether it crashed so often that it is not started again.

    The last two are in the record's file only, not in the database.
    """

    repository: Path
    thread: str | None
    spec: str
    mountpoint: Path
    process: ProcessIdentity
    since_ns: int
    read_only: bool
    allow_other: bool
    socket: Path
    log: Path
    made_mountpoint: bool
    agent: Mapping[str, str]
    crashes: tuple[Crash, ...] = ()
    gave_up: bool = False

    @property
    def source(self) -> str:
        """What the mount table shows as the file system's name."""
        return mountinfo.format_source(self.repository, self.spec)

    def to_json(self) -> dict[str, Any]:
        """The record as the JSON object of its file and of a ping's answer."""
        return {
            "repository": str(self.repository),
            "thread": self.thread,
            "spec": self.spec,
            "mountpoint": str(self.mountpoint),
            "pid": self.process.pid,
            "start_ticks": self.process.start_ticks,
            "boot_id": self.process.boot_id,
            "since_ns": self.since_ns,
            "read_only": self.read_only,
            "allow_other": self.allow_other,
            "socket": str(self.socket),
            "log": str(self.log),
            "made_mountpoint": self.made_mountpoint,
            "agent": dict(self.agent),
            "crashes": [list(crash) for crash in self.crashes],
            "gave_up": self.gave_up,
        }

    @classmethod
    def from_json(cls, value: Any) -> SessionRecord:
        """The record again.

        Raises:
            KeyError, TypeError, ValueError: it is not one of ours.
        """
        return cls(
            repository=Path(value["repository"]),
            thread=None if value["thread"] is None else str(value["thread"]),
            spec=str(value["spec"]),
            mountpoint=Path(value["mountpoint"]),
            process=ProcessIdentity(int(value["pid"]), int(value["start_ticks"]), value["boot_id"]),
            since_ns=int(value["since_ns"]),
            read_only=bool(value["read_only"]),
            allow_other=bool(value["allow_other"]),
            socket=Path(value["socket"]),
            log=Path(value["log"]),
            made_mountpoint=bool(value["made_mountpoint"]),
            agent=dict(value["agent"]),
            crashes=tuple(Crash(int(at), str(how)) for at, how in value.get("crashes", ())),
            gave_up=bool(value.get("gave_up", False)),
        )

    def to_row(self) -> MountRecord:
        """The record as a row of the repository's ``mounts`` table."""
        from heddle.repo.database import MountRecord

        return MountRecord(
            mountpoint=os.fsencode(self.mountpoint),
            spec=self.spec,
            thread=self.thread,
            pid=self.process.pid,
            start_ticks=self.process.start_ticks,
            boot_id=self.process.boot_id,
            since_ns=self.since_ns,
            read_only=self.read_only,
            allow_other=self.allow_other,
            socket=os.fsencode(self.socket),
            log=os.fsencode(self.log),
            made_mountpoint=self.made_mountpoint,
            agent=dict(self.agent),
        )

    @classmethod
    def from_row(cls, repository: Path, row: MountRecord) -> SessionRecord:
        """The record that a repository's ``mounts`` table holds."""
        return cls(
            repository=repository,
            thread=row.thread,
            spec=row.spec,
            mountpoint=Path(os.fsdecode(row.mountpoint)),
            process=ProcessIdentity(row.pid, row.start_ticks, row.boot_id),
            since_ns=row.since_ns,
            read_only=row.read_only,
            allow_other=row.allow_other,
            socket=Path(os.fsdecode(row.socket)),
            log=Path(os.fsdecode(row.log)),
            made_mountpoint=row.made_mountpoint,
            agent=row.agent,
        )


class Session(NamedTuple):
    """One session as it is now.

    Attributes:
        repository: the directory of the repository it serves.
        thread: the thread it writes to; None for a read-only mount of a state.
        spec: the thread, or the state spec of a read-only mount.
        mountpoint: where it is, or was, mounted.
        state: ``live``: mounted and answering; ``hung``: its process is there and does not answer; ``stale``:
            its process is gone, or its mount is, and something of it has to be cleaned up.
        mounted: whether the kernel shows a Heddle mount there.
        record: what it wrote down; None when that is lost.
        doing: the operation that keeps it busy, if any.
        reason: of one that is hung or stale, why, as far as that is known.
        waits: whether it hangs because it waits in the kernel, so that nothing but its disk can help it.
    """

    repository: Path
    thread: str | None
    spec: str
    mountpoint: Path
    state: SessionState
    mounted: bool
    record: SessionRecord | None
    doing: str | None = None
    reason: str | None = None
    waits: bool = False

    @property
    def read_only(self) -> bool:
        """Whether it takes no writes."""
        return self.thread is None

    @property
    def source(self) -> str:
        """What the mount table shows as the file system's name."""
        return mountinfo.format_source(self.repository, self.spec)

    @property
    def process(self) -> ProcessIdentity | None:
        """Its process, if that still runs."""
        if self.record is None or not self.record.process.is_alive():
            return None
        return self.record.process


def session_id(runtime: RuntimeDirectory, session: Session | SessionRecord) -> str:
    """The short name of a session's files; a thread has one session, a state may have several."""
    record = session.record if isinstance(session, Session) else session
    if record is not None:
        return record.socket.stem
    where = None if session.thread is not None else session.mountpoint
    return runtime.session_id(session.repository, session.spec, where)


# records


def register(runtime: RuntimeDirectory, record: SessionRecord) -> None:
    """Write a session's record into the runtime directory, whole or not at all.

    It need not survive a crash of the machine, so it is not synced.
    """
    path = runtime.record(session_id(runtime, record))
    temporary = path.with_suffix(".new")  # the next session takes over what a dead one left
    temporary.touch(0o600)
    temporary.write_text(json.dumps(record.to_json()))
    faults.reach("registry.before-rename")
    temporary.rename(path)


def forget(runtime: RuntimeDirectory, record: SessionRecord, repo: Repository | None) -> None:
    """Remove what a session that is over wrote down, unless a later session has replaced it.

    Args:
        runtime: where its file is.
        record: what it wrote.
        repo: its repository, or None when that is gone.
    """
    name = session_id(runtime, record)
    written = read(runtime, record)
    if written is not None and written.process == record.process:
        faults.reach("registry.before-forget")
        runtime.record(name).unlink(missing_ok=True)
        runtime.socket(name).unlink(missing_ok=True)
    if repo is not None:
        faults.reach("registry.before-row-goes")
        try:
            repo.database.remove_mount(os.fsencode(record.mountpoint), pid=record.process.pid)
        except StorageError as error:  # a hint, and ``unmount --stale`` removes what is left
            _row_stays(record, error)


def read(runtime: RuntimeDirectory, record: SessionRecord) -> SessionRecord | None:
    """What is written down now where a session's record was; None when nothing is."""
    return _read_record(runtime.record(session_id(runtime, record)))


def _row_stays(record: SessionRecord, error: StorageError) -> None:
    import logging

    logging.getLogger(__name__).warning("row of %s: %s", record.mountpoint, error.message)


def _read_record(path: Path) -> SessionRecord | None:
    try:
        return SessionRecord.from_json(json.loads(path.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def given_up(runtime: RuntimeDirectory, repository: Path) -> list[SessionRecord]:
    """What is written down of a repository's sessions that are not started again; asks no database."""
    return [it for it in _files(runtime) if it.gave_up and it.repository == repository]


def _files(runtime: RuntimeDirectory) -> list[SessionRecord]:
    found = [
        _read_record(runtime.path / name)
        for name in sorted(os.listdir(runtime.path))
        if name.endswith(".json")
    ]
    return [record for record in found if record is not None]


def recorded(runtime: RuntimeDirectory, repo: Repository | None = None) -> list[SessionRecord]:
    """Every record there is of a repository, or of all of this user's, one for each place."""
    found = _files(runtime)
    if repo is not None:
        found = _rows(repo) + [record for record in found if record.repository == repo.path]
    newest: dict[tuple[Path, str, Path], SessionRecord] = {}
    for record in sorted(found, key=lambda record: record.since_ns):
        newest[record.repository, record.spec, record.mountpoint] = record
    return list(newest.values())


def _rows(repo: Repository) -> list[SessionRecord]:
    """What its ``mounts`` table says; nothing where that is damaged: a hint, which no unmount must fail for."""
    try:
        return [SessionRecord.from_row(repo.path, row) for row in repo.database.mounts()]
    except StorageError:
        return []


# judgement


class _Candidate(NamedTuple):
    """A place where the kernel shows a Heddle mount, a record names one, or both."""

    repository: Path
    spec: str
    mountpoint: Path
    mounted: bool
    read_only: bool
    record: SessionRecord | None

    def socket(self, runtime: RuntimeDirectory) -> Path:
        """Where its session listens, also when its record is lost."""
        if self.record is not None:
            return self.record.socket
        where = self.mountpoint if self.read_only else None
        return runtime.socket(runtime.session_id(self.repository, self.spec, where))


def survey(
    runtime: RuntimeDirectory,
    repo: Repository | None = None,
    *,
    thread: str | None = None,
    mountpoint: Path | None = None,
    timeout_s: float = PROBE_TIMEOUT_S,
) -> list[Session]:
    """Every session of a repository, or of this user, each judged now.

    All are asked at once, so that it takes no longer than one ``timeout_s`` however many hang.

    Args:
        runtime: the user's runtime directory.
        repo: only this repository's sessions; its ``mounts`` table is read as well.
        thread: only those that write to this thread.
        mountpoint: only those at this place.
        timeout_s: how long a session may take to answer, in seconds.
    """
    candidates = [
        it
        for it in _candidates(runtime, repo)
        if (thread is None or (it.spec == thread and not it.read_only))
        and (mountpoint is None or it.mountpoint == mountpoint)
    ]
    if not candidates:
        return []
    worked = [it.record and it.record.process.cpu_ticks() for it in candidates]
    call_back([it.record for it in candidates if it.record is not None], timeout_s)
    answers = control.ping_all([it.socket(runtime) for it in candidates], timeout_s)
    return [
        _judge(candidate, answer, ticks, timeout_s)
        for candidate, answer, ticks in zip(candidates, answers, worked, strict=True)
    ]


def call_back(records: Iterable[SessionRecord], timeout_s: float) -> None:
    """Have sessions listen again whose socket was removed: a runtime directory may be cleaned under them.

    Args:
        records: of any sessions, dead ones too.
        timeout_s: how long to wait for those that were asked to, in seconds.
    """
    deaf = [it for it in records if not os.path.lexists(it.socket)]
    called = [it for it in deaf if it.process.catches(CALL_BACK) and _call(it.process)]
    deadline = time.monotonic() + timeout_s
    while any(not os.path.lexists(it.socket) for it in called) and time.monotonic() < deadline:
        time.sleep(_CALL_BACK_STEP_S)


def _call(process: ProcessIdentity) -> bool:
    """Ask a process to listen again, unless it is stopped."""
    try:
        return not process.is_stopped() and process.signal(CALL_BACK)
    except PermissionError:
        return False


def _candidates(runtime: RuntimeDirectory, repo: Repository | None) -> list[_Candidate]:
    found = {
        (record.repository, record.spec, record.mountpoint): _Candidate(
            record.repository, record.spec, record.mountpoint, False, record.thread is None, record
        )
        for record in recorded(runtime, repo)
    }
    shown: dict[tuple[Path, str, Path], KernelMount] = {}
    for mount in mountinfo.heddle_mounts():
        served = mount.served()
        if served is not None and _is_wanted(mount, served[0], repo):
            shown[(*served, mount.mountpoint)] = mount
    devices = {mount.device for key, mount in shown.items() if key in found}
    places = {it.mountpoint for it in found.values()}
    for key, mount in shown.items():
        if key in found:
            found[key] = found[key]._replace(mounted=True)
        # Otherwise it is a bind mount, somebody else's doing, unless it covers something of ours.
        elif mount.device not in devices or mount.mountpoint in places:
            known = _moved(found, shown, key)
            found[key] = _Candidate(*key, True, mount.read_only, known and known.record)
    return list(found.values())


def _moved(
    found: dict[tuple[Path, str, Path], _Candidate],
    shown: Mapping[tuple[Path, str, Path], KernelMount],
    key: tuple[Path, str, Path],
) -> _Candidate | None:
    """Take the record of a session whose mount is elsewhere now, since a directory above it was renamed."""
    lost = [it for it in found if it[:2] == key[:2] and it not in shown]
    others = [it for it in shown if it[:2] == key[:2]]
    return found.pop(lost[0]) if len(lost) == 1 and others == [key] else None


def _is_wanted(mount: KernelMount, repository: Path, repo: Repository | None) -> bool:
    """Whether it is of this repository or, without one, of this user.

    A bind mount of a part of a session's tree is somebody else's doing and not counted.
    """
    if mount.root != Path("/"):
        return False
    return mount.user_id == os.getuid() if repo is None else repository == repo.path


def _judge(
    it: _Candidate, answer: control.Message | None, ticks: int | None, timeout_s: float
) -> Session:
    """What a session is, by its answer or by what its process does instead of answering.

    Args:
        it: the place and what is written down.
        answer: to the ping; None when nothing came in time.
        ticks: of the processor that its process had used before it was asked.
        timeout_s: for a mount that nobody wrote down.
    """
    record = _speaker(answer)
    began_at = it.mountpoint if it.record is None else it.record.mountpoint
    if record is None or record.mountpoint != began_at:
        record, answer = it.record, None
    thread = record.thread if record is not None else None if it.read_only else it.spec
    session = Session(it.repository, thread, it.spec, it.mountpoint, "stale", it.mounted, record)
    if answer is not None:
        return _by_answer(session, answer)
    process = session.process  # looked at once: it may end at any moment
    if process is not None:
        return _by_process(session, process, ticks)
    if record is not None:
        return session._replace(reason=_crashed(record))
    served = places.answers(session.mountpoint, timeout_s)
    if served is None:
        return session._replace(state="hung", reason="it does not answer")
    return session._replace(state="live" if served else "stale")


def _by_answer(session: Session, answer: control.Message) -> Session:
    if not session.mounted and not _mounted_elsewhere(session):
        return session._replace(reason="its mount was taken away")
    stuck = waits.Stuck.from_json(answer.get("stuck"))
    doing = answer.get("doing")
    if stuck is not None:
        waiting = stuck.where is not None
        return session._replace(state="hung", reason=stuck.describe(), waits=waiting)
    if serves(answer):
        return session._replace(state="live", doing=doing)
    return session._replace(state="hung", reason="its loop does not turn")


def _by_process(session: Session, process: ProcessIdentity, ticks: int | None) -> Session:
    """Its process lives and has said nothing."""
    if process.is_stopped():
        return session._replace(state="hung", reason="its process is stopped")
    if ticks is not None and (process.cpu_ticks() or 0) > ticks and session.mounted:
        return session._replace(state="live", doing="something that leaves it no time to answer")
    function = waits.kernel_wait(process.pid)
    if function is not None:
        reason = f"its process waits in the kernel for a disk ({function})"
        return session._replace(state="hung", reason=reason, waits=True)
    return session._replace(state="hung", reason="it does not answer")


def _crashed(record: SessionRecord) -> str | None:
    """What its supervisor wrote down about its end."""
    if not record.crashes:
        return None
    last = record.crashes[-1].how
    if not record.gave_up:
        return last
    return f"{last}, crash {len(record.crashes)} in five minutes: it is not started again"


def serves(answer: control.Message) -> bool:
    """Whether a session that answers a ping like this works, be it slowly."""
    return not answer.get("stuck") and bool(answer.get("loop") or answer.get("doing"))


def _mounted_elsewhere(session: Session) -> bool:
    """Whether the session's own mount namespace, not ours, shows the mount."""
    process = session.process  # looked at once: it may end at any moment
    if process is None:
        return False
    try:
        mounts = mountinfo.heddle_mounts(str(process.pid))
    except OSError:
        return False
    return mountinfo.topmost(mounts, session.mountpoint) is not None


def _speaker(answer: control.Message | None) -> SessionRecord | None:
    try:
        return None if answer is None else SessionRecord.from_json(answer["record"])
    except (KeyError, TypeError, ValueError):
        return None
