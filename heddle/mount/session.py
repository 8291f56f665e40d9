"""The session: the background process that serves one mountpoint.

Owns a session's life: becoming a daemon, its log, taking the overlay, mounting, saying it is ready, answering the
control socket, ending cleanly. What the mount shows is ``overlay``'s and ``core``'s, the FUSE loop is ``loop``'s;
``lifecycle`` and ``ending`` start and end sessions.

It reads one JSON line, the request, from stdin and answers on stdout: its process id, then what is mounted or the
error that a user shall see. What can go wrong goes wrong before that line. Its process is made by ``supervisor``.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar

from heddle import faults

if TYPE_CHECKING:
    import trio

    from heddle.mount.control import Emit, Message
    from heddle.mount.foretold import Command
    from heddle.mount.gitview import GitView
    from heddle.mount.overlay import Overlay
    from heddle.mount.registry import SessionRecord
    from heddle.mount.runtime import RuntimeDirectory
    from heddle.repo.repository import Repository

LOG_MAX_BYTES = 1 << 20
_CHANGES_PER_LINE = 500
_WORK = ("status", "dirty", "capture", "rebase")  # operations that may have to wait for a disk
_HEARTBEAT_S = 2.0
_GOODBYE_S = 5.0
_PATIENCE_S = 5.0  # with commands that look into the overlay of a session that died

T = TypeVar("T")


class Request(NamedTuple):
    """What a session is asked to serve; everything was checked by ``lifecycle``.

    Attributes:
        repository: the directory that holds ``.heddle``.
        thread: the thread to mount, or None for a read-only mount of ``state``.
        spec: the thread, or the state spec as it was given.
        state: the state to show read-only, as hex; None for a thread or the empty tree.
        mountpoint: an empty directory.
        made_mountpoint: whether the directory was made for this mount.
        allow_other: whether other users may use the mount.
        runtime: the runtime directory.
        agent: attribution defaults of captures from this mount.
        recover: whether an earlier session of this thread ended badly, so that what it left is counted.
        crashes: of the sessions before this one, when their supervisor asks; as in ``registry.Crash``.
        provider: who brings what remotes have promised, as ``Repository.provider``.
        environment: of the command, for the provider: the user's settings, credentials, ssh's agent. It may hold
            secrets and is never written to a disk.
        is_told: whether more is told behind the request (``foretold``).
    """

    repository: str
    thread: str | None
    spec: str
    state: str | None
    mountpoint: str
    made_mountpoint: bool
    allow_other: bool
    runtime: str
    agent: Mapping[str, str]
    recover: bool
    crashes: Sequence[Sequence[Any]] = ()
    provider: str | None = None
    environment: Mapping[str, str] = MappingProxyType({})
    is_told: bool = False

    def to_line(self) -> bytes:
        """The request as the line that a session reads."""
        import json

        fields = self._asdict() | {"environment": dict(self.environment)}
        return json.dumps(fields).encode("ascii") + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Request:
        """The request again."""
        import json

        values = json.loads(line)
        values["crashes"] = tuple(map(tuple, values["crashes"]))
        return cls(**values)


# the process


def main(supervisor: int) -> NoReturn:
    """Become a daemon, serve the mount that stdin asks for, end with the process.

    Args:
        supervisor: write end of a pipe to the supervisor, which is told what is mounted before the command is.
    """
    Path("/proc/self/comm").write_text("heddle-session")
    reply = _keep_reply()
    try:
        _preload()
        from heddle.mount.foretold import Command

        line, more = _read_request()
        if not line:
            os._exit(0)  # whoever started us changed their mind
        reply({"pid": os.getpid()})
        request = Request.from_line(line)
        command = Command(os.dup(0), more) if request.is_told else None
        _daemonize()
    except BaseException as error:
        reply(_failure(error))
        os._exit(1)
    os._exit(_run(request, command, reply, supervisor))


def _read_request() -> tuple[bytes, bytes]:
    """The request's line, empty if there will be none, and what was read behind it."""
    content = b""
    while b"\n" not in content and (piece := os.read(0, 1 << 16)):
        content += piece
    line, _, more = content.partition(b"\n")
    return line, more


def _run(
    request: Request, command: Command | None, reply: Callable[[Message], None], supervisor: int
) -> int:
    def ready(mounted: Message) -> None:
        _tell_supervisor(supervisor, mounted | {"provider": request.provider})
        reply({"ready": mounted})

    try:
        return run(request, ready, command)
    except BaseException as error:
        import logging

        logging.getLogger(__name__).exception("the session could not start")
        reply(_failure(error))
        return 1


def _preload() -> None:
    """Import everything a mount needs while the command that started us still checks its arguments.

    The collector would run dozens of times over objects that all stay; they are put out of its sight.
    """
    import gc

    gc.disable()
    import heddle.mount.gitview
    import heddle.mount.loop
    import heddle.mount.overlay
    import heddle.mount.registry
    import heddle.repo.repository  # noqa: F401

    gc.freeze()
    gc.enable()


def _keep_reply() -> Callable[[Message], None]:
    """Put the reply pipe (stdout) where no library prints; the returned function sends one line.

    The line that says how it went is the last: the pipe is closed behind it.
    """
    descriptor = os.dup(1)

    def reply(message: Message) -> None:
        nonlocal descriptor
        if descriptor < 0:
            return
        import json

        try:
            os.write(descriptor, json.dumps(message).encode("ascii") + b"\n")
        except BrokenPipeError:
            pass  # the command was interrupted, and has sent SIGTERM
        if "pid" not in message:
            os.close(descriptor)
            descriptor = -1

    return reply


def _tell_supervisor(pipe: int, mounted: Message) -> None:
    """From here on an end other than an unmount is a crash."""
    import json

    try:
        os.write(pipe, json.dumps(mounted).encode("ascii"))
    except BrokenPipeError:
        pass  # it is gone: nobody will start us again
    os.close(pipe)


def _failure(error: BaseException) -> Message:
    from heddle.errors import HeddleError, Unavailable, error_record

    if isinstance(error, ImportError):
        hint = "apt-get install fuse3 libfuse3-3, then pip install heddle again"
        error = Unavailable(f"a library that mounts need can't be loaded: {error}", hint=hint)
    if isinstance(error, OSError):
        from heddle.errors import StorageError

        where = f"{error.filename}: " if error.filename else ""
        cause, error = error, StorageError(f"{where}{error.strerror or error}")
        error.__cause__ = cause
    if not isinstance(error, HeddleError):
        error = HeddleError(f"the session failed: {type(error).__name__}: {error}")
    return {"error": error_record(error)}


def _daemonize() -> None:
    """Let go of what was inherited: the directory, the terminal's hang-up, a shell's low limits."""
    import resource
    import signal

    os.chdir("/")
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE):
        _soft, hard = resource.getrlimit(limit)
        resource.setrlimit(limit, (hard, hard))


def log_to(path: Path, *, take_stdio: bool) -> None:
    """Send the log, and when asked all that anything prints, to a file of bounded size."""
    import logging
    from logging.handlers import RotatingFileHandler

    class BoundedFile(RotatingFileHandler):
        def _open(self) -> Any:
            descriptor = os.open(
                path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600
            )
            stream = os.fdopen(descriptor, "a", encoding="utf-8", errors="backslashreplace")
            if take_stdio:
                for descriptor in (1, 2):
                    os.dup2(stream.fileno(), descriptor)
            return stream

    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handler = BoundedFile(path, maxBytes=LOG_MAX_BYTES, backupCount=1)
    layout = "%(asctime)s %(levelname)s %(name)s[%(process)d] %(message)s"
    if path.stat().st_size >= LOG_MAX_BYTES:
        handler.doRollover()
    handler.setFormatter(logging.Formatter(layout))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    if take_stdio:
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        _watch_for_crashes()


def _watch_for_crashes() -> None:
    import faulthandler

    faulthandler.enable(2)


# the mount


def run(
    request: Request,
    ready: Callable[[Message], None],
    command: Command | None = None,
    *,
    foreground: bool = False,
) -> int:
    """Serve one mount until it is unmounted.

    Args:
        request: what to serve.
        ready: called once with what is mounted, when the mount answers.
        command: tells more; None: it does not.
        foreground: leave the standard streams alone.

    Returns:
        The process's exit code: 0 when it was unmounted, 1 when it was left behind dead.

    Raises:
        HeddleError: it could not be mounted.
    """
    from heddle.mount.overlay import Overlay
    from heddle.mount.runtime import RuntimeDirectory
    from heddle.repo.repository import Repository

    runtime = RuntimeDirectory(Path(request.runtime))
    repo = Repository.open(Path(request.repository))
    repo.environment, repo.provider = request.environment, request.provider
    log = _log_path(runtime, repo, request)
    log_to(log, take_stdio=not foreground)
    if request.thread is None:
        state: Any = None if request.state is None else request.state.encode("ascii")
        overlay = Overlay.open(repo, request.spec, read_only=True, base=state)
    else:
        repo.current_thread = request.thread
        overlay = Overlay.open(repo, request.thread, patience_s=_PATIENCE_S)
    try:
        session = _Session(request, command, runtime, repo, overlay, log, ready)
    except BaseException:
        overlay.close()
        raise
    return session.serve()


def _log_path(runtime: RuntimeDirectory, repo: Repository, request: Request) -> Path:
    if request.thread is None:
        mountpoint = Path(request.mountpoint)
        return runtime.log(runtime.session_id(repo.path, request.spec, mountpoint))
    from heddle.repo.names import overlay_dir

    return overlay_dir(repo, request.thread) / "session.log"


class _Session:
    """A session's moving parts: the trio loop in the main thread, the control socket's threads beside it.

    The core belongs to the loop: other threads reach it through ``_in_loop``, between two awaits. What may take long
    and touches only the store (``prestore``) runs in the thread of the request.
    """

    def __init__(
        self,
        request: Request,
        command: Command | None,
        runtime: RuntimeDirectory,
        repo: Repository,
        overlay: Overlay,
        log: Path,
        ready: Callable[[Message], None],
    ) -> None:
        from heddle.mount.control import ControlServer
        from heddle.mount.wire import Amount

        self._request = request
        self._command = command
        self._runtime = runtime
        self._repo = repo
        self._overlay = overlay
        self._mountpoint = Path(request.mountpoint)
        self._ready = ready
        self._record = self._make_record(log)
        self._is_restart = bool(request.crashes)
        asked = request.recover and not self._is_restart
        unsaved = overlay.dirty_if_known() if asked else None
        self._recovered = unsaved and Amount(*unsaved)
        self._untold: Amount | None = None
        self._counted = threading.Event()
        self._git: GitView | None = None
        self._control = ControlServer(self._record.socket, self._answer, _warn)
        self._token: trio.lowlevel.TrioToken | None = None
        self._scope: trio.CancelScope | None = None
        self._doing: str | None = None
        self._capturing = threading.Lock()
        self._end_awaited = False
        self._loop_thread = threading.get_ident()
        self._loop_task = threading.get_native_id()
        self._device = os.stat(repo.heddle_dir).st_dev
        self._ended = threading.Event()
        self._left_dirty: tuple[int, int] | None = None
        self._operations: dict[str, Callable[[Message, Emit], Message]] = {
            "ping": self._ping,
            "status": self._status,
            "dirty": self._dirty,
            "recovered": self._tell_recovered,
            "writers": self._writers,
            "capture": self._capture,
            "rebase": self._rebase,
            "adopt": self._adopt,
            "stop": self._stop,
            "end": self._end,
        }

    def _make_record(self, log: Path) -> SessionRecord:
        from heddle.mount.process import ProcessIdentity
        from heddle.mount.registry import Crash, SessionRecord

        request = self._request
        process = ProcessIdentity.of(os.getpid())
        assert process is not None
        where = None if request.thread is not None else self._mountpoint
        name = self._runtime.session_id(self._repo.path, request.spec, where)
        return SessionRecord(
            repository=self._repo.path,
            thread=request.thread,
            spec=request.spec,
            mountpoint=self._mountpoint,
            process=process,
            since_ns=time.time_ns(),
            read_only=request.thread is None,
            allow_other=request.allow_other,
            socket=self._runtime.socket(name),
            log=log,
            made_mountpoint=request.made_mountpoint,
            agent=request.agent,
            crashes=tuple(Crash(*crash) for crash in request.crashes),
        )

    # life

    def serve(self) -> int:
        """Mount, serve until unmounted, clean up; the exit code."""
        import trio

        try:
            trio.run(self._main)
        except BaseException as error:
            if self._token is None:
                self._give_up()
                raise _why_refused(_single(error), self._record) from error
            import logging

            logging.getLogger(__name__).exception("the mount's loop failed")
        faults.reach("session.unmounted")
        return self._finish()

    async def _main(self) -> None:
        import trio

        from heddle.mount import loop, mountpoint

        request = self._request
        os.umask(0)  # of what is made through the mount the kernel has taken the caller's already
        async with trio.open_nursery() as nursery:
            await nursery.start(self._watch_signals)
            with trio.CancelScope() as self._scope:
                if request.recover:
                    mountpoint.detach_all(self._mountpoint, self._record.source)
                self._git = self._begin_git()
                faults.reach("session.before-mount")
                await loop.serve(
                    self._overlay.core,
                    self._mountpoint,
                    source=self._record.source,
                    allow_other=request.allow_other,
                    read_only=request.thread is None,
                    ready=lambda: self._mounted(nursery),
                )
            nursery.cancel_scope.cancel()

    def _begin_git(self) -> GitView | None:
        if self._repo.git is None:
            return None
        from heddle.mount.gitview import GitView

        name = self._record.socket.stem
        request = self._request
        return GitView.begin(
            self._overlay,
            name,
            self._mountpoint,
            request.thread,
            agent=request.agent,
            command=self._command,
        )

    async def _watch_signals(self, task_status: trio.TaskStatus[None]) -> None:
        """SIGTERM and SIGINT mean: unmount, whoever still uses it, and lose nothing that was written.

        SIGUSR1 means: nobody can reach the control socket.
        """
        import signal

        import trio

        from heddle.mount.registry import CALL_BACK

        signal.signal(CALL_BACK, signal.SIG_IGN)  # as it is again behind the loop
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, CALL_BACK) as signals:
            task_status.started()
            async for number in signals:
                if number == CALL_BACK:
                    self._be_found_again()
                    continue
                _note(f"{signal.Signals(number).name}: unmounting")
                try:
                    await trio.to_thread.run_sync(self._unmount, abandon_on_cancel=True)
                except (
                    RuntimeError
                ) as error:  # no memory for a thread; the next signal may find some
                    _warn(f"not unmounted: {error}")

    def _be_found_again(self) -> None:
        """Make what somebody has removed from the runtime directory, a cleaner of old files perhaps."""
        from heddle.errors import HeddleError
        from heddle.mount import registry
        from heddle.mount.runtime import RuntimeDirectory

        if self._token is None or self._record.socket.exists():
            return
        try:
            RuntimeDirectory.at(self._runtime.path)
            self._control.listen_again()
            registry.register(self._runtime, self._record)
        except (OSError, HeddleError, RuntimeError) as error:
            _warn(f"the control socket is gone, and no new one can be made: {error}")
        else:
            _warn("the control socket was gone: there is a new one")

    def _mounted(self, nursery: trio.Nursery) -> None:
        """The mount answers: open the control socket, leave a record, tell whoever waits."""
        import trio

        from heddle.mount import registry

        faults.reach("session.mounted")
        self._token = trio.lowlevel.current_trio_token()
        self._overlay.in_loop = self._in_loop
        self._overlay.mountpoint = self._mountpoint
        self._repo.store.hurried_thread = self._loop_thread
        self._control.start()
        registry.register(self._runtime, self._record)
        faults.reach("session.registered")
        recovered = self._recovered and self._recovered._asdict()
        base = self._overlay.base
        self._ready(
            {
                "record": self._record.to_json(),
                "state": None if base is None else base.decode("ascii"),
                "recovered": recovered,
            }
        )
        nursery.start_soon(self._write_row)
        if self._git is not None:
            _in_background(self._list_ahead)
        elif self._command is not None:
            self._command.close()
        if self._is_restart and not _in_background(self._count):
            self._counted.set()
        _note(f"serving {self._request.spec} at {self._mountpoint}")

    async def _write_row(self) -> None:
        """The row in the database helps those with another runtime directory; a mount works without it."""
        import trio

        from heddle.errors import HeddleError

        try:
            await trio.to_thread.run_sync(self._repo.database.put_mount, self._record.to_row())
        except HeddleError as error:
            _warn(f"the mount is not in the database: {error.message}")
        except (MemoryError, RuntimeError) as error:  # no memory, or none for a thread
            _warn(f"the mount is not in the database: {error}")

    def _list_ahead(self) -> None:
        assert self._git is not None
        self._git.hear()
        with self._capturing:  # the end waits for it, as for the next
            self._git.list_ahead()

    def _count(self) -> None:
        """What was recovered, for whoever asks; after a restart nobody waits for it, and the mount need not."""
        from heddle.mount.wire import Amount

        try:
            with self._capturing:  # the end waits for it, before it closes what is read here
                unsaved = self._overlay.dirty_if_known()
                self._untold = unsaved and Amount(*unsaved)
        finally:
            self._counted.set()

    def _unmount(self) -> None:
        """Unmount from a thread while the loop serves, so that the kernel can bring its dirty pages."""
        from heddle.mount import mountpoint

        if mountpoint.unmount(self._mountpoint).reason is None:
            return
        writers = self._in_loop(self._overlay.writers)
        mountpoint.flush(self._mountpoint, writers)
        mountpoint.unmount(self._mountpoint, lazy=True)
        self._end_loop()

    def _end_loop(self) -> None:
        scope = self._scope
        assert scope is not None
        self._in_loop(scope.cancel)

    def _give_up(self) -> None:
        """It never was mounted."""
        self._control.close()
        if self._git is not None:
            self._git.end()
        self._overlay.close()

    def _finish(self) -> int:
        """Tidy up behind an unmount; behind a lost mount leave all as it is, so that it is seen to be stale."""
        from heddle.mount import mountinfo, mountpoint, registry

        self._overlay.leave_loop()
        self._repo.store.hurried_thread = None
        self._capturing.acquire(
            timeout=_GOODBYE_S
        )  # a capture under way reads what is closed below
        if mountinfo.is_mounted(self._mountpoint, self._record.source):
            _warn("the session ends and the mount is still there: it is stale now")
            if self._git is not None:
                self._git.leave()
            self._overlay.close()
            self._ended.set()
            self._control.drain(_GOODBYE_S)
            return 1
        if self._end_awaited and not self._record.read_only:
            self._left_dirty = self._overlay.dirty_if_known()
        if self._git is not None:
            self._git.end()
        self._overlay.close()
        faults.reach("session.closed")
        registry.forget(self._runtime, self._record, self._repo)
        if self._request.made_mountpoint:
            mountpoint.remove(self._mountpoint)
        if self._record.read_only:
            self._record.log.unlink(missing_ok=True)
        _note("unmounted")
        self._say_goodbye()
        return 0

    def _say_goodbye(self) -> None:
        """Let the request that waits for the end be answered before the process goes."""
        self._ended.set()
        self._control.close()
        self._control.drain(_GOODBYE_S)

    # control operations, each in a thread of its own

    def _answer(self, request: Message, emit: Emit) -> Message:
        from heddle.errors import UsageError
        from heddle.mount import jobs

        name = str(request.get("op"))
        operation = self._operations.get(name)
        if operation is None:
            raise UsageError(f"a session knows no operation {name!r}")
        with jobs.noted(name) if name in _WORK else nullcontext():
            return operation(request, emit)

    def _in_loop(self, function: Callable[[], T]) -> T:
        """Run something in the loop's thread, with no await in it.

        If it needs what a remote has promised, it is run again when that has come: it has to say so before it
        changes anything.
        """
        import trio

        from heddle.errors import NotMounted
        from heddle.mount import jobs
        from heddle.objects.promised import ObjectNotHere

        if threading.get_ident() == self._loop_thread:
            return function()

        def run() -> T:
            jobs.turned_s = time.monotonic()
            return function()

        while True:
            try:
                return trio.from_thread.run_sync(run, trio_token=self._token)
            except trio.RunFinishedError as error:
                raise NotMounted("the session is ending") from error
            except ObjectNotHere as missing:
                self._repo.store.fetch([missing.raw_id])

    def _ping(self, _request: Message, _emit: Emit) -> Message:
        """Who this is, and whether it serves, works slowly or is stuck; asks no disk."""
        import trio

        from heddle.mount import jobs, waits

        turned = threading.Event()
        before = waits.Watch(self._device, [self._loop_task, *jobs.running])
        try:
            assert self._token is not None
            self._token.run_sync_soon(turned.set)
        except trio.RunFinishedError:
            pass
        loop = turned.wait(before.left_s())
        doing = self._doing
        under_way = dict(jobs.running)
        if not loop:
            step = waits.operation_of(sys._current_frames().get(self._loop_thread))
            under_way[self._loop_task] = (self._doing or step, jobs.turned_s)
        stuck = before.stuck(under_way)
        if not loop and not doing:
            stuck = stuck or before.endless(step, jobs.turned_s)
            doing = None if stuck else step
        return {
            "record": self._record.to_json(),
            "loop": loop,
            "doing": doing,
            "stuck": stuck and stuck._asdict(),
        }

    def _status(self, _request: Message, emit: Emit) -> Message:
        from heddle.mount.wire import change_to_json, not_recorded_to_json

        found = self._overlay.status()
        for start in range(0, len(found.changes), _CHANGES_PER_LINE):
            part = found.changes[start : start + _CHANGES_PER_LINE]
            emit([change_to_json(one) for one in part])
        return {
            "ignored_count": found.ignored_count,
            "not_recorded": not_recorded_to_json(found.not_recorded),
            "state": _text(self._overlay.base),
        }

    def _dirty(self, _request: Message, _emit: Emit) -> Message:
        files, size = self._overlay.dirty()
        return {"files": files, "bytes": size}

    def _tell_recovered(self, _request: Message, _emit: Emit) -> Message:
        """What an automatic restart recovered, to the first that asks."""
        if self._is_restart:
            self._counted.wait()
        told, self._untold = self._untold, None
        return {"recovered": told and told._asdict()}

    def _writers(self, _request: Message, emit: Emit) -> Message:
        from heddle.mount.wire import text_of

        writers = self._in_loop(self._overlay.writers)
        for start in range(0, len(writers), _CHANGES_PER_LINE):
            emit([text_of(path) for path in writers[start : start + _CHANGES_PER_LINE]])
        return {}

    def _capture(self, request: Message, _emit: Emit) -> Message:
        from heddle.mount import wire

        attribution = wire.attribution_from_json(request["attribution"])
        paths = [wire.path_of(path) for path in request["paths"]]
        with self._capturing, self._busy_with("capture"), self._repo.store.writer() as writer:
            captured = self._overlay.record(
                message=request["message"],
                attribution=attribution,
                paths=paths,
                allow_empty=request["allow_empty"],
                writer=writer,
            )
        return wire.captured_to_json(captured)

    def _rebase(self, _request: Message, _emit: Emit) -> Message:
        """Follow the thread, and have the kernel forget what it knows of the names that changed."""
        if self._git is not None:
            self._git.require_on_thread()
        with self._capturing, self._busy_with("rebase"):
            stale = self._overlay.rebase()
        for directory, name, node in stale:
            self._make_kernel_forget(directory, name, node)
        return {"state": _text(self._overlay.base)}

    def _adopt(self, request: Message, _emit: Emit) -> Message:
        """Be relative to where git went in this mount; nothing that is seen changes."""
        from heddle.mount import wire

        moved_from = request["moved_from"]
        thread = None if moved_from is None else (wire.id_from_json(moved_from[0]),)
        with self._capturing, self._busy_with("adopt"):
            agents = self._git.agents() if self._git is not None else {}
            state = wire.id_from_json(request["state"])
            self._overlay.adopt(state, thread=thread, agents=agents)
        return {"state": _text(self._overlay.base)}

    def _make_kernel_forget(self, directory: int, name: bytes, node: int) -> None:
        """A file has to be said to be deleted: with the write-back cache its size is the kernel's own until then.

        A directory that is still one only loses the name; its inode is somebody's working directory perhaps. Of a name
        that the kernel did not know it forgets nothing, not even how many links the directory above has.
        """
        from contextlib import suppress

        import pyfuse3

        from heddle.mount.nodes import DirNode

        is_directory = isinstance(self._overlay.core.nodes.get(node), DirNode)
        deleted, above = pyfuse3.InodeT(0 if is_directory else node), pyfuse3.InodeT(directory)
        with suppress(OSError):  # the kernel did not know it
            pyfuse3.invalidate_entry(above, name, deleted)
        with suppress(OSError):
            pyfuse3.invalidate_inode(above, attr_only=True)

    def _stop(self, request: Message, _emit: Emit) -> Message:
        """End without a mount in the name space of who asks: what others still hold open gets ENOTCONN.

        In our own name space there may still be one, which goes as well if it shall.
        """
        from heddle.mount import mountinfo

        wanted = bool(request.get("unmount"))
        if wanted and mountinfo.is_mounted(self._mountpoint, self._record.source):
            self._unmount()
        else:
            self._end_loop()
        return {}

    def _end(self, _request: Message, emit: Emit) -> Message:
        """Answer when the session is over; ``emit`` fails as soon as the client has lost interest."""
        self._end_awaited = True
        emit("waiting")
        while not self._ended.wait(_HEARTBEAT_S):
            emit("waiting")
        dirty = self._left_dirty
        return {"dirty": dirty and {"files": dirty[0], "bytes": dirty[1]}}

    def _busy_with(self, what: str) -> _Doing:
        return _Doing(self, what)


class _Doing:
    """Says, while the block runs, why the loop may be slow to answer."""

    def __init__(self, session: _Session, what: str) -> None:
        self._session = session
        self._what = what

    def __enter__(self) -> None:
        self._session._doing = self._what

    def __exit__(self, *_error: object) -> None:
        self._session._doing = None


def _single(error: BaseException) -> BaseException:
    """The one error in the group that a nursery makes of it."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _why_refused(error: BaseException, record: SessionRecord) -> BaseException:
    """What libfuse said of a mount that it could not make; it writes that to stderr, which is the log."""
    if not isinstance(error, RuntimeError):
        return error
    from heddle.errors import CannotCreate

    lines = record.log.read_text(errors="replace").splitlines()
    said = [line for line in lines if line.startswith(("fuse", "mount"))]
    reason = said[-1].rpartition(": ")[2] if said else str(error)
    return CannotCreate(f"cannot mount at {record.mountpoint}: {reason}")


def _text(object_id: bytes | None) -> str | None:
    return None if object_id is None else object_id.decode("ascii")


def _in_background(function: Callable[[], None]) -> bool:
    """Run something that nobody waits for; whether it could be begun."""
    try:
        threading.Thread(target=function, daemon=True).start()
    except RuntimeError as error:  # no memory for a thread
        _warn(f"{function.__name__}: {error}")
        return False
    return True


def _note(line: str) -> None:
    import logging

    logging.getLogger(__name__).info(line)


def _warn(line: str) -> None:
    import logging

    logging.getLogger(__name__).warning(line)
