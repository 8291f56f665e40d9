"""The supervisor: the parent of one session, which has the mount recovered when the session crashed.

Owns what lies between a crash and the next session: the pause in which whoever acts first has precedence, the count,
and when to stay down and say so. How a mount is recovered is ``lifecycle``'s, here as for a person's ``heddle mount``.

``python -m heddle.mount.supervisor`` is what a mount starts. The session is forked off before anything heavy is
imported, so that waiting for it costs little memory; after a crash this process does what ``heddle mount`` would, and
ends: the new session has a supervisor of its own.
"""

from __future__ import annotations

import os
import signal
import time

from heddle import faults

TYPE_CHECKING = False  # see heddle/__init__.py
if TYPE_CHECKING:
    from typing import NoReturn

    from dulwich.objects import ObjectID

    from heddle.mount.registry import SessionRecord
    from heddle.repo.repository import Repository

HEAD_START_S = 0.4
"""For so long after a crash nothing is done, so that a person or a script can do something else about it."""
WINDOW_NS = 300 * 10**9
"""Crashes longer ago than this, in ns, do not count any more."""
DEFAULT_RESTARTS = "3"
_LOGGER = "heddle.mount.supervisor"  # which is run as __main__
_NAME = "heddle-supervis"  # comm(5) has room for 15 characters
_KILLED = 128  # and the signal's number is the exit code of what a signal ended, as shells have it


def main() -> NoReturn:
    """Be the session's parent, in the background; the session itself runs in the child."""
    if os.fork() != 0:
        os._exit(0)  # whoever started us waits for this; init adopts the rest
    signal.signal(
        signal.SIGCHLD, signal.SIG_DFL
    )  # one that is ignored would hide how the session ended
    news, tell = os.pipe()
    session = os.fork()
    if session == 0:
        os.close(news)
        _serve(tell)
    os.close(tell)
    os._exit(_supervise(session, news))


def _serve(tell: int) -> NoReturn:
    from heddle.mount import session

    session.main(tell)


def _supervise(session: int, news: int) -> int:
    """Wait for the session's end; the exit code is its own."""
    _let_go(news)
    with open(news, "rb") as pipe:
        mounted = pipe.read()  # to its end, which comes when it serves, or when it is over
    _pid, status = os.waitpid(session, 0)
    code = os.waitstatus_to_exitcode(status)
    if code != 0 and mounted:
        _after_crash(mounted, _how(code))
    return code if code >= 0 else _KILLED - code


def _let_go(news: int) -> None:
    """Keep no directory busy and nothing open but ``news``; live on without the terminal."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with open("/proc/self/comm", "w") as name:
        name.write(_NAME)
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.closerange(3, news)
    os.closerange(news + 1, os.sysconf("SC_OPEN_MAX"))


def _how(code: int) -> str:
    """How a process ended, for people; ``code`` as in ``subprocess.Popen.returncode``."""
    if code >= 0:
        return f"it ended with exit code {code}"
    try:
        return f"it was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"it was killed by signal {-code}"


# after a crash


def _after_crash(mounted: bytes, how: str) -> None:
    """Have the mount recovered, unless somebody acts first; the imports happen during the pause.

    Args:
        mounted: what the session said when it served, as JSON.
        how: how it ended.
    """
    acts_at = time.monotonic() + HEAD_START_S
    from heddle.mount.starting import Starting

    Starting.ahead(os.environ)
    try:
        import json

        from heddle.mount.registry import SessionRecord

        said = json.loads(mounted)
        crashed = SessionRecord.from_json(said["record"])
        state = said["state"] and said["state"].encode("ascii")
        attempt = _Attempt(crashed, state, said["provider"])
        reason: str | None = how
        while reason is not None:
            time.sleep(max(0.0, acts_at - time.monotonic()))
            reason = attempt.make(reason)
            acts_at = time.monotonic() + HEAD_START_S
    except Exception:
        import logging

        logging.getLogger(_LOGGER).exception("the session could not be started again")
    finally:
        Starting.abandon()


class _Attempt:
    """Recovering one mount: once, or again when the new session does not come up either.

    Args:
        crashed: the session.
        state: the state it showed.
        provider: as in its request.
    """

    def __init__(
        self, crashed: SessionRecord, state: ObjectID | None, provider: str | None
    ) -> None:
        from heddle.mount.runtime import RuntimeDirectory

        self._crashed = crashed
        self._state = state
        self._provider = provider
        self._runtime = RuntimeDirectory(crashed.socket.parent)
        self._is_first = True

    def make(self, how: str) -> str | None:
        """Count the crash, and mount again if that is still wanted and not too much.

        Args:
            how: what has happened.

        Returns:
            What has happened this time, when the new session did not come up; None when all is done.
        """
        from contextlib import ExitStack

        from heddle.errors import Busy, HeddleError
        from heddle.mount import lifecycle

        with ExitStack() as held:
            try:
                held.enter_context(self._runtime.changing(self._crashed.socket.stem))
            except Busy:
                return None  # a command is at it, for longer than anybody waits
            found = self._wanted()
            if found is None:
                return None
            repo, record = found
            record, goes_on = _counted(repo, record, how)
            self._record(record, goes_on)
            if not goes_on:
                return None
            try:
                lifecycle.remount(repo, record, self._state, self._runtime)
            except HeddleError as error:
                self._is_first = False
                return f"it could not be started again: {error.message}"
        return None

    def _wanted(self) -> tuple[Repository, SessionRecord] | None:
        """The repository, and what is written down of the session; None when somebody acted meanwhile."""
        from heddle.errors import HeddleError
        from heddle.mount import mountinfo, registry
        from heddle.repo.repository import Repository

        crashed = self._crashed
        record = registry.read(self._runtime, crashed)
        if record is None or record.process.is_alive():
            return None
        if self._is_first and (
            record.process != crashed.process
            or not mountinfo.is_mounted(crashed.mountpoint, crashed.source)
        ):
            return None
        try:
            repo = Repository.open(crashed.repository)
            if crashed.thread is not None and crashed.thread not in repo.threads:
                return None
        except HeddleError:
            return None  # the repository is gone
        repo.environment, repo.provider = os.environ, self._provider
        return repo, record

    def _record(self, record: SessionRecord, goes_on: bool) -> None:
        """Write down the crash before anything is done about it, and tell whoever reads logs."""
        import logging

        from heddle.mount import registry, session

        faults.reach("supervisor.before-record")
        registry.register(self._runtime, record)
        faults.reach("supervisor.recorded")
        if self._is_first:
            session.log_to(record.log, take_stdio=False)
        log = logging.getLogger(_LOGGER)
        last = record.crashes[-1].how
        if goes_on:
            log.warning("the session crashed: %s; starting it again", last)
            return
        text = f"the session of {record.mountpoint} crashed {len(record.crashes)} times in five minutes"
        log.error("%s, and stays down now: %s; heddle mount %s", text, last, record.spec)
        _tell_system(f"{text} and stays down: {last}; see {record.log}")


def _counted(repo: Repository, record: SessionRecord, how: str) -> tuple[SessionRecord, bool]:
    """The record with one more crash, and whether the session may be started again."""
    from heddle.mount.registry import Crash

    now_ns = time.time_ns()
    recent = [each for each in record.crashes if now_ns - each.at_ns < WINDOW_NS]
    crashes = (*recent, Crash(now_ns, how))
    goes_on = len(crashes) <= _allowed(repo)
    return record._replace(crashes=crashes, gave_up=not goes_on), goes_on


def _allowed(repo: Repository) -> int:
    """How often in five minutes a session is started again; settings that can't be read change nothing."""
    from heddle.errors import HeddleError

    try:
        return int(repo.config.number("mount.restarts", DEFAULT_RESTARTS))
    except HeddleError:
        return int(DEFAULT_RESTARTS)


def _tell_system(text: str) -> None:
    import syslog

    syslog.openlog("heddle", syslog.LOG_PID, syslog.LOG_USER)
    syslog.syslog(syslog.LOG_ERR, text)


if __name__ == "__main__":
    main()
