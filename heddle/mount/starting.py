"""Starting a session's process: as early as possible, and told what to serve when that is known.

Owns the process and its pipes until it serves. The interpreter and the event loop take longer to start than everything
that is checked before a mount, so both happen at once. What is asked and answered is ``session``'s.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any, NoReturn

from heddle.errors import HeddleError, Unavailable

if TYPE_CHECKING:
    from heddle.mount.session import Request

_ahead: Starting | None = None

# -P keeps the current directory, which an agent may write to, out of the module path.
_COMMAND = ("-P", "-X", "utf8", "-m", "heddle.mount.supervisor")
_BESIDE_S = 10.0
"""Whoever tells a session more than its request ends by then."""
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGHUP, signal.SIGALRM)


class Starting:
    """A session's process that waits for its request.

    Args:
        pid: the process that was started; it ends at once and leaves the supervisor to init.
        request: write end of the session's stdin.
        reply: read end of its stdout and, until it has a log, of its stderr.
    """

    def __init__(self, pid: int, request: int, reply: int) -> None:
        self._pid = pid
        self._request = request
        self._reply = reply
        self._session: int | None = None

    @classmethod
    def spawn(cls, environment: Mapping[str, str]) -> Starting:
        """Start the process in a session (setsid(2)) of its own; returns at once.

        Args:
            environment: of the command.
        """
        request_read, request_write = os.pipe()
        reply_read, reply_write = os.pipe()
        actions = [
            (os.POSIX_SPAWN_DUP2, request_read, 0),
            (os.POSIX_SPAWN_DUP2, reply_write, 1),
            (os.POSIX_SPAWN_DUP2, reply_write, 2),
        ]
        arguments = [sys.executable, *_COMMAND]
        try:
            pid = os.posix_spawn(
                sys.executable, arguments, environment, file_actions=actions, setsid=True
            )
        except BaseException:
            os.close(request_write)
            os.close(reply_read)
            raise
        finally:
            os.close(request_read)
            os.close(reply_write)
        return cls(pid, request_write, reply_read)

    @classmethod
    def ahead(cls, environment: Mapping[str, str]) -> None:
        """Start a process for the mount that this command will probably make, before anything else is done.

        ``take`` hands it out; ``abandon`` ends one that nobody took.
        """
        global _ahead
        try:
            _ahead = cls.spawn(environment)
        except OSError:
            _ahead = None  # it will be tried again, and then reported

    @classmethod
    def take(cls, environment: Mapping[str, str]) -> Starting:
        """The process that was started ahead, or a new one."""
        global _ahead
        started, _ahead = _ahead, None
        return started if started is not None else cls.spawn(environment)

    @staticmethod
    def abandon() -> None:
        """End a process that was started ahead and not taken."""
        global _ahead
        if _ahead is not None:
            _ahead.close()
            _ahead = None

    def finish(
        self, request: Request, beside: Callable[[IO[bytes]], None] | None = None
    ) -> dict[str, Any]:
        """Tell the session what to serve and wait until it does.

        Args:
            request: what to serve.
            beside: tells the session more, in a process of its own that may outlive this one by seconds; there it
                finds no open file.

        Returns:
            What it says of its mount.

        Raises:
            HeddleError: what kept it from mounting, as its own class.
        """
        try:
            try:
                os.write(self._request, request.to_line())
            except BrokenPipeError:
                pass  # it has died, and said why
            else:
                if beside is not None:
                    self._tell(beside)
            os.close(self._request)
            self._request = -1
            return self._result()
        except BaseException:
            if self._session is not None:
                self._end_session(self._session)
            raise

    def close(self) -> None:
        """Let go of the process: one that was told nothing ends."""
        for descriptor in (self._request, self._reply):
            if descriptor >= 0:
                os.close(descriptor)
        _reap(self._pid)

    def _tell(self, beside: Callable[[IO[bytes]], None]) -> None:
        """Fork twice, so that init has what may outlive us; where that can't be, nothing more is told."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            with suppress(OSError):
                pid = os.fork()
                if pid == 0:
                    self._beside(beside)
                _reap(pid)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _beside(self, tell: Callable[[IO[bytes]], None]) -> NoReturn:
        """In the child, with all signals blocked: nothing of the command's is kept, its directory neither."""
        try:
            if os.fork() == 0:
                os.setsid()  # a terminal's signals are for the command
                os.chdir("/")
                null = os.open(os.devnull, os.O_RDWR)
                for descriptor in (0, 1, 2):
                    os.dup2(null, descriptor)
                os.closerange(3, self._request)
                os.closerange(self._request + 1, os.sysconf("SC_OPEN_MAX"))
                for number in _ENDING:
                    signal.signal(number, signal.SIG_DFL)
                signal.setitimer(signal.ITIMER_REAL, _BESIDE_S)
                signal.pthread_sigmask(signal.SIG_SETMASK, ())
                with open(self._request, "wb") as session:
                    tell(session)
        finally:
            os._exit(0)

    def _result(self) -> dict[str, Any]:
        from heddle.mount.control import error_from

        said: list[str] = []
        with open(self._reply, "rb", closefd=False) as lines:
            for line in lines:
                message = _message(line)
                if message is None:
                    said.append(line.decode("utf-8", "replace").rstrip())
                elif "pid" in message:
                    self._session = int(message["pid"])
                elif "error" in message:
                    self._session = None
                    raise error_from(message["error"])
                else:
                    ready: dict[str, Any] = message["ready"]
                    return ready
        self._session = None
        raise _died(said)

    def _end_session(self, pid: int) -> None:
        """We were interrupted: the session unmounts and ends, or was not mounted yet."""
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            pass


def _reap(pid: int) -> None:
    with suppress(ChildProcessError):  # this program has its children reaped elsewhere
        os.waitpid(pid, 0)


def _message(line: bytes) -> dict[str, Any] | None:
    """A line of the session's, or None for anything else that was printed (a traceback)."""
    import json

    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None


def _died(said: list[str]) -> HeddleError:
    last = next((line for line in reversed(said) if line.strip()), "it said nothing")
    return Unavailable(f"the session ended before it could mount: {last}")
