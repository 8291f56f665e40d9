"""The control socket: both ends in this process, over real sockets, with clients and sessions that misbehave."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from world import wait_until

from heddle import errors
from heddle.errors import Busy, HeddleError, NothingToCapture, NotPermitted, StaleMount, Unavailable
from heddle.mount import control, ending
from heddle.mount.control import ControlServer, ProtocolError

Serve = Callable[..., Path]


@pytest.fixture
def logged() -> list[str]:
    """The lines that servers of the test wrote to their log."""
    return []


@pytest.fixture
def serve(tmp_path: Path, logged: list[str]) -> Iterator[Serve]:
    """Start a server with a handler; gives its socket's path."""
    servers: list[ControlServer] = []

    def start(handle: control.Handler, name: str = "s.sock") -> Path:
        server = ControlServer(tmp_path / name, handle, logged.append)
        server.start()
        servers.append(server)
        return tmp_path / name

    yield start
    for server in servers:
        server.close()


def echo(request: control.Message, emit: control.Emit) -> control.Message:
    """Answer with the request."""
    return request


def raw(path: Path, sent: bytes) -> bytes:
    """What a server answers to bytes, whatever they are."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        connection.sendall(sent)
        received = b""
        while part := connection.recv(1 << 16):
            received += part
        return received


# a call


def test_a_call_brings_the_answer(serve: Serve) -> None:
    """A request's operation and arguments reach the handler, and its result comes back."""
    path = serve(echo)

    assert control.call(path, "op", {"a": [1, "\udcff"]}) == {
        "v": 1,
        "op": "op",
        "a": [1, "\udcff"],
    }


def test_parts_come_before_the_answer(serve: Serve) -> None:
    """A long answer comes in parts, in order, each handed over as it comes."""

    def handle(request: control.Message, emit: control.Emit) -> control.Message:
        for number in range(1000):
            emit([number] * 100)
        return {"done": True}

    parts: list[Any] = []

    assert control.call(serve(handle), "list", part=parts.append) == {"done": True}
    assert parts == [[number] * 100 for number in range(1000)]


def test_an_error_is_raised_as_what_it_was(serve: Serve) -> None:
    """A session's error reaches the caller with its class, message, hint and exit code."""

    def handle(request: control.Message, emit: control.Emit) -> control.Message:
        raise NothingToCapture("nothing changed", hint="change something")

    with pytest.raises(NothingToCapture) as caught:
        control.call(serve(handle), "capture")

    assert (caught.value.message, caught.value.hint, caught.value.exit_code) == (
        "nothing changed",
        "change something",
        65,
    )


def test_every_error_class_crosses() -> None:
    """Each kind of error comes out of its record as the class it went in as."""
    todo: list[type[HeddleError]] = [HeddleError]
    for cls in todo:
        todo += [each for each in cls.__subclasses__() if each.__module__.startswith("heddle.")]
        again = control.error_from(control.error_record(cls("m", hint="h")))
        assert (again.kind, again.exit_code, again.retry) == (cls.kind, cls.exit_code, cls.retry)
        assert type(again).kind == cls.kind

    assert ending.MountBusy in todo
    assert errors.ThreadMoved in todo


def test_an_unknown_kind_keeps_its_exit_code() -> None:
    """An error that only a newer session knows still exits as it said."""
    error = control.error_from(
        {"kind": "brand_new", "message": "m", "hint": None, "exit_code": 65, "retry": True}
    )

    assert (error.kind, error.exit_code, error.retry) == ("brand_new", 65, True)
    assert HeddleError("x").exit_code == 70


def test_an_unexpected_error_is_logged_and_told(serve: Serve, logged: list[str]) -> None:
    """A bug in a handler is a traceback in the log and an error for the caller; the server goes on."""

    def handle(request: control.Message, emit: control.Emit) -> control.Message:
        if request["op"] == "bad":
            raise KeyError("oops")
        return {}

    path = serve(handle)
    with pytest.raises(HeddleError, match="oops"):
        control.call(path, "bad")

    assert control.call(path, "good") == {}
    assert "KeyError" in logged[0]


def test_an_error_of_the_system_is_an_io_error(serve: Serve) -> None:
    """A full disk in the session is told as what it is, with exit code 74."""

    def handle(request: control.Message, emit: control.Emit) -> control.Message:
        raise OSError(28, "No space left on device", "/x")

    with pytest.raises(errors.StorageError, match=r"No space left on device.*/x") as caught:
        control.call(serve(handle), "capture")

    assert caught.value.exit_code == 74


def test_the_other_version_is_told(serve: Serve) -> None:
    """A request of another protocol version is refused with what to do."""
    answer = control.decode(raw(serve(echo), b'{"v": 99, "op": "ping"}\n').rstrip(b"\n"))
    error = control.error_from(answer["error"])

    assert isinstance(error, Unavailable)
    assert "99" in error.message
    assert error.hint is not None


@pytest.mark.parametrize(
    "sent", [b"\n", b"not json\n", b"[1, 2]\n", b"\xff\xfe\n", b'{"v": 1'], ids=repr
)
def test_nonsense_is_refused(serve: Serve, sent: bytes) -> None:
    """What is no request gets an error and harms nobody."""
    path = serve(echo)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(1 << 16)

    assert control.decode(answer)["error"]["kind"] == "control_protocol"
    assert control.call(path, "x")["op"] == "x"


def test_an_endless_line_is_cut_off(serve: Serve) -> None:
    """A request without an end is refused once it is longer than a line may be."""
    path = serve(echo)
    try:
        answer = raw(path, b"x" * (control.LINE_MAX_BYTES + (1 << 17)))
    except (ConnectionResetError, BrokenPipeError):
        answer = b""

    assert answer == b"" or b"control_protocol" in answer
    assert control.call(path, "x")["op"] == "x"


def test_a_message_too_long_to_send_is_an_error() -> None:
    """Nobody sends a line that the other end would refuse."""
    with pytest.raises(ProtocolError):
        control.encode({"x": "y" * control.LINE_MAX_BYTES})


def test_a_silent_client_is_in_nobodys_way(serve: Serve) -> None:
    """Clients that connect and say nothing do not keep others waiting."""
    path = serve(echo)
    silent = [control.connect(path) for _ in range(5)]
    try:
        assert control.call(path, "x")["op"] == "x"
    finally:
        for connection in silent:
            connection.close()


def test_a_client_that_leaves_is_noticed(serve: Serve, logged: list[str]) -> None:
    """A handler whose client has gone stops at its next part."""
    left = threading.Event()

    def handle(request: control.Message, emit: control.Emit) -> control.Message:
        try:
            while True:
                emit("x" * 10_000)
        finally:
            left.set()

    path = serve(handle)
    connection = control.connect(path)
    connection.sendall(control.encode({"v": 1, "op": "x"}))
    connection.close()

    assert left.wait(10)
    wait_until(lambda: bool(logged), "a line in the log")
    assert "gone" in logged[0]


# who may


def test_the_socket_is_private(serve: Serve) -> None:
    """Only its owner can connect: the file is 0600, whatever the umask."""
    old = os.umask(0)
    try:
        path = serve(echo)
    finally:
        os.umask(old)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is neither the session's user nor root may not control it, even if the socket lets them connect."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    connect_as_another(tmp_path / "s", monkeypatch)
    connection, _address = listener.accept()
    with listener, connection, pytest.raises(NotPermitted) as caught:
        control.check_peer(connection)

    assert caught.value.exit_code == 77


def connect_as_another(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connect as a user who is not the one that checks."""
    if os.getuid() != 0:
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        socket.socket(socket.AF_UNIX).connect(str(path))
        return
    directory = os.open(path.parent, os.O_PATH)
    path.parent.chmod(0o711)
    path.chmod(0o666)
    pid = os.fork()
    if pid == 0:
        try:
            os.fchdir(directory)
            os.setuid(65534)
            socket.socket(socket.AF_UNIX).connect(path.name)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(directory)
    assert os.waitpid(pid, 0)[1] == 0


# sessions that are gone or hang


def test_nobody_listens(tmp_path: Path) -> None:
    """A missing socket and one that a dead session left are both told as stale."""
    (tmp_path / "dead").touch()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "left"))
    for name in ("missing", "left", "dead"):
        with pytest.raises(StaleMount):
            control.call(tmp_path / name, "x")


def test_a_session_that_ends_before_it_answers(tmp_path: Path) -> None:
    """A connection that closes without an answer is a session that died."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        threading.Thread(target=lambda: listener.accept()[0].close()).start()
        with pytest.raises(StaleMount, match="before it answered"):
            control.call(tmp_path / "s", "x")


def test_a_hanging_session_is_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that takes a request and says nothing, not even to a ping, is told as busy, in bounded time."""
    monkeypatch.setattr(control, "_SILENCE_S", 0.1)
    monkeypatch.setattr(control.ping, "__defaults__", (0.1,))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        with pytest.raises(Busy, match="does not answer"):
            control.call(tmp_path / "s", "x")


def test_a_slow_session_is_waited_for(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operation that takes long is waited for as long as the session answers pings meanwhile."""
    monkeypatch.setattr(control, "_SILENCE_S", 0.05)
    pinged = threading.Event()

    def handle(request: control.Message, emit: control.Emit) -> control.Message:
        if request["op"] == "ping":
            pinged.set()
            return {}
        assert pinged.wait(10)
        return {"done": 1}

    assert control.call(serve(handle), "slow") == {"done": 1}


def test_all_are_pinged_at_once(serve: Serve, tmp_path: Path) -> None:
    """One that answers, one that hangs and one that is gone: each gets its verdict within one time limit."""
    path = serve(echo)
    with socket.socket(socket.AF_UNIX) as hanging:
        hanging.bind(str(tmp_path / "hanging"))
        hanging.listen()
        paths = [tmp_path / "hanging", path, tmp_path / "missing", path]
        answers = control.ping_all(paths, 0.5)

    assert [None if it is None else it["op"] for it in answers] == [None, "ping", None, "ping"]


def test_a_full_queue_does_not_block(tmp_path: Path) -> None:
    """A session that accepts nobody any more does not block those who ask it."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(0)
        waiting = []
        for _ in range(10):
            try:
                waiting.append(control.connect(tmp_path / "s"))
            except BlockingIOError:
                break
        else:
            pytest.fail("the queue never filled")
        with pytest.raises(Busy):
            control.call(tmp_path / "s", "x")
        assert control.ping(tmp_path / "s") is None
        for connection in waiting:
            connection.close()


# what ends later


def test_a_pending_request_is_answered_later(serve: Serve) -> None:
    """The block runs once the session has taken the request up; the answer comes when it is there."""
    go = threading.Event()

    def handle(request: control.Message, emit: control.Emit) -> control.Message:
        emit("waiting")
        assert go.wait(10)
        return {"dirty": None}

    with control.pending(serve(handle), "end") as result:
        go.set()
        assert result(lambda part: None) == {"dirty": None}


def test_a_pending_request_is_taken_back(serve: Serve) -> None:
    """Leaving the block without waiting frees the session of the request."""
    freed = threading.Event()

    def handle(request: control.Message, emit: control.Emit) -> control.Message:
        try:
            while True:
                emit("waiting")
        finally:
            freed.set()

    with control.pending(serve(handle), "end"):
        pass

    assert freed.wait(10)


def test_drain_waits_for_answers(tmp_path: Path) -> None:
    """A server that ends lets requests under way be answered first, and takes no new ones."""
    started, go = threading.Event(), threading.Event()

    def handle(request: control.Message, emit: control.Emit) -> control.Message:
        started.set()
        assert go.wait(10)
        return {"late": True}

    server = ControlServer(tmp_path / "s", handle, print)
    server.start()
    answers: list[control.Message] = []
    client = threading.Thread(
        target=lambda: answers.append(control.call(tmp_path / "s", "x")), daemon=True
    )
    client.start()
    assert started.wait(10)
    server.close()
    with pytest.raises(StaleMount):
        control.call(tmp_path / "s", "x")
    go.set()
    server.drain(10)
    client.join(10)

    assert answers == [{"late": True}]


def test_a_path_longer_than_an_address(tmp_path: Path) -> None:
    """Sockets work at paths that no socket address can hold, and are where they should be."""
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    server = ControlServer(deep / "s.sock", echo, print)
    server.start()
    try:
        assert control.call(deep / "s.sock", "x")["op"] == "x"
        assert (deep / "s.sock").is_socket()
    finally:
        server.close()

    assert not (deep / "s.sock").exists()
