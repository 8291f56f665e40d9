"""The session's process before it mounts: started ahead, told nothing, told nonsense, broken."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import IO, Any

import pytest
from world import processes_of, sessions_of, wait_until

from heddle import api
from heddle.errors import HeddleError, NotARepository, ThreadNotFound, Unavailable
from heddle.mount.session import Request
from heddle.mount.starting import Starting


def request(repo: api.Repository, **changes: Any) -> Request:
    """What a session can be asked that fails before the kernel is."""
    asked = Request(
        repository=str(repo.path),
        thread="nobody",
        spec="nobody",
        state=None,
        mountpoint=str(repo.path.parent / "place"),
        made_mountpoint=False,
        allow_other=False,
        runtime=str(repo.runtime.path),
        agent={},
        recover=False,
    )
    return asked._replace(**changes)


def outcome(repo: api.Repository, asked: Request) -> HeddleError:
    """The error that a session's process ends with."""
    starting = Starting.spawn(os.environ)
    try:
        with pytest.raises(HeddleError) as caught:
            starting.finish(asked)
    finally:
        starting.close()
    return caught.value


def test_a_request_survives_its_line(repo: api.Repository) -> None:
    """A request is the same behind the pipe, names that are not UTF-8 included."""
    asked = request(repo, mountpoint=os.fsdecode(b"/m\xff\n"), agent={"agent.model": "m"})

    assert Request.from_line(asked.to_line()) == asked
    assert asked.to_line().count(b"\n") == 1


def test_a_session_that_is_told_nothing_ends(repo: api.Repository, tmp_path: Path) -> None:
    """A process whose command changed its mind ends by itself and leaves nothing."""
    starting = Starting.spawn(os.environ)
    starting.close()

    wait_until(lambda: not processes_of(tmp_path), "the processes to end")


def test_an_error_crosses_the_pipe_whole(repo: api.Repository) -> None:
    """What a session meets before it serves comes back as its own class, with hint and exit code."""
    error = outcome(repo, request(repo))
    assert isinstance(error, ThreadNotFound)
    assert (error.exit_code, error.hint) == (65, "heddle thread list")

    error = outcome(repo, request(repo, repository=str(repo.path.parent)))
    assert isinstance(error, NotARepository)
    assert error.exit_code == 78


def test_a_bug_in_a_session_is_told(repo: api.Repository) -> None:
    """An error that nobody expected names itself instead of looking like a mount."""
    error = outcome(repo, request(repo, repository=7))

    assert error.exit_code == 70
    assert "TypeError" in error.message


def test_an_interpreter_that_does_not_start(
    repo: api.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that dies with a message of its own: the message is passed on."""
    monkeypatch.setenv("PYTHONHOME", "/nonexistent")
    error = outcome(repo, request(repo))

    assert isinstance(error, Unavailable)
    assert "ended before it could mount" in error.message


def test_a_library_that_is_missing(
    repo: api.Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without libfuse the error is that a part is missing, exit code 69, with what to install."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "pyfuse3.py").write_text(
        "raise ImportError('libfuse3.so.3: cannot open shared object file')\n"
    )
    before = os.environ.get("PYTHONPATH")
    path = str(tmp_path / "broken") + (f":{before}" if before else "")
    monkeypatch.setenv("PYTHONPATH", path)
    error = outcome(repo, request(repo))

    assert (type(error), error.exit_code) == (Unavailable, 69)
    assert "libfuse3.so.3" in error.message
    assert error.hint is not None
    assert "apt-get install" in error.hint


def test_the_current_directory_is_not_on_the_module_path(
    repo: api.Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A file of an agent's that is named like a module is not run by the session."""
    (tmp_path / "trio.py").write_text("raise SystemExit('run!')\n")
    monkeypatch.chdir(tmp_path)

    assert isinstance(outcome(repo, request(repo)), ThreadNotFound)


def test_a_process_started_ahead_is_taken_once(repo: api.Repository, tmp_path: Path) -> None:
    """The process that was started ahead is used for the first mount; the next one gets its own."""
    Starting.ahead(os.environ)
    first = Starting.take(os.environ)
    second = Starting.take(os.environ)
    try:
        assert first is not second
        with pytest.raises(ThreadNotFound):
            first.finish(request(repo))
    finally:
        first.close()
        second.close()
    Starting.abandon()
    Starting.ahead(os.environ)
    Starting.abandon()

    wait_until(lambda: sessions_of(tmp_path) == [], "the processes to end")


def test_what_is_told_beside(repo: api.Repository, tmp_path: Path) -> None:
    """A process of its own tells it, which nobody has to wait for, and which holds none of our streams."""
    request_read, request_write = os.pipe()
    starting = Starting(os.spawnlp(os.P_NOWAIT, "true", "true"), request_write, os.dup(0))
    starting._result = dict  # type: ignore[method-assign, assignment]
    before = os.getpid(), os.getsid(0)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)

    def tell(session: IO[bytes]) -> None:
        assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
        ours = [os.readlink(f"/proc/self/fd/{number}") for number in range(3)]
        count = len(os.listdir("/proc/self/fd")) - 1  # but for the listing's own
        session.write(
            json.dumps(
                [os.getpid(), os.getsid(0), os.getppid(), count, os.getcwd(), *ours]
            ).encode()
        )
        session.flush()
        signal.pause()

    starting.finish(request(repo), tell)
    with os.fdopen(request_read, "rb") as session:
        session.readline()
        pid, sid, above, count, directory, *streams = json.loads(session.read1())
        try:
            assert (count, directory) == (4, "/")
            assert pid != before[0] and sid != before[1] and above != before[0]
            assert streams == ["/dev/null"] * 3
            starting.close()
            with pytest.raises(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        finally:
            os.kill(pid, signal.SIGTERM)
        assert session.read() == b""  # it has ended, and with it the pipe
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def test_who_tells_and_fails(repo: api.Repository, capfd: pytest.CaptureFixture[str]) -> None:
    """An error of whoever tells is nobody's but the session's, which gets no more."""
    request_read, request_write = os.pipe()
    starting = Starting(os.spawnlp(os.P_NOWAIT, "true", "true"), request_write, os.dup(0))
    starting._result = dict  # type: ignore[method-assign, assignment]

    def tell(session: IO[bytes]) -> None:
        session.write(b"half")
        raise RuntimeError("no more")

    starting.finish(request(repo), tell)
    starting.close()
    with os.fdopen(request_read, "rb") as session:
        session.readline()
        assert session.read() in (b"half", b"")
    assert capfd.readouterr() == ("", "")


def test_an_interrupted_start_ends_the_session(
    repo: api.Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ctrl-C while a mount starts: the session is told to end."""
    starting = Starting.spawn(os.environ)
    told: list[int] = []
    real = os.kill

    def kill(pid: int, number: int) -> None:
        told.append(number)
        real(pid, number)

    monkeypatch.setattr(os, "kill", kill)
    monkeypatch.setattr(starting, "_result", lambda: interrupt(starting))
    with pytest.raises(KeyboardInterrupt):
        starting.finish(request(repo))
    starting.close()

    assert told == [signal.SIGTERM]


def interrupt(starting: Starting) -> None:
    """Let the session say its pid, then be interrupted."""
    with open(starting._reply, "rb", closefd=False) as lines:
        starting._session = json.loads(lines.readline())["pid"]
    raise KeyboardInterrupt
