"""The control socket of a session: one JSON line asks, JSON lines answer, errors cross whole.

Owns the wire (a Unix stream socket, versioned, every line bounded, the peer's user checked) for both ends. What an
operation does is the handler's, given by ``session``; the client is plain blocking sockets, no event loop.

A request is one line, ``{"v": 1, "op": …, …arguments}``. The answer is any number of ``{"part": …}`` lines, so that a
long list needs no long line, and then one ``{"ok": …}`` or ``{"error": {kind, message, hint, exit_code}}``.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heddle.errors import (
    Busy,
    HeddleError,
    NotPermitted,
    StaleMount,
    Unavailable,
    error_record,
)

if TYPE_CHECKING:
    import socket

# socket and threading are imported where they are used: most commands find no session to talk to.

VERSION = 1
LINE_MAX_BYTES = 1 << 20
_ADDRESS_MAX_BYTES = 100  # sun_path holds 108 with its NUL (unix(7)); some systems hold 104
_BACKLOG = 64
_CONNECTIONS_MAX = 32
_NOT_NOW = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ECONNABORTED)
_RETRY_S = 0.05
_REQUEST_TIMEOUT_S = 10.0
_SILENCE_S = 5.0
_PING_TIMEOUT_S = 1.0

Message = dict[str, Any]
Emit = Callable[[Any], None]
Handler = Callable[[Message, Emit], Message]


class ProtocolError(HeddleError):
    """The other end of a control socket said something that is not this protocol."""

    kind = "control_protocol"


# addresses


@contextmanager
def _addressed(path: Path) -> Iterator[str]:
    """A short name of a socket path, through a descriptor of its directory when the path itself is too long."""
    if len(os.fsencode(path)) < _ADDRESS_MAX_BYTES:
        yield str(path)
        return
    descriptor = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)


def connect(path: Path) -> socket.socket:
    """A connection to a session's control socket, not waiting.

    Raises:
        OSError: nobody listens there (ECONNREFUSED, ENOENT) or its queue is full (EAGAIN: it hangs).
    """
    import socket

    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        with _addressed(path) as address:
            connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection


# lines


def encode(message: Mapping[str, Any]) -> bytes:
    """One message as its line.

    Raises:
        ProtocolError: it is longer than a line may be.
    """
    line = json.dumps(message, separators=(",", ":")).encode("ascii") + b"\n"
    if len(line) > LINE_MAX_BYTES:
        raise ProtocolError(f"a control message of {len(line)} bytes is over {LINE_MAX_BYTES}")
    return line


def decode(line: bytes) -> Message:
    """One line as its message.

    Raises:
        ProtocolError: it is not a JSON object.
    """
    try:
        message = json.loads(line)
    except ValueError as error:
        raise ProtocolError("a control message is not JSON") from error
    if not isinstance(message, dict):
        raise ProtocolError("a control message is not a JSON object")
    return message


class _Lines:
    """The lines that come in on a connection, each of bounded length."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = bytearray()

    def read(self) -> bytes | None:
        """The next line without its end; None when the peer has closed.

        Raises:
            ProtocolError: the line is too long.
            TimeoutError: the peer said nothing for the connection's timeout.
        """
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > LINE_MAX_BYTES:
                raise ProtocolError(f"a control message is over {LINE_MAX_BYTES} bytes")
            received = self._connection.recv(1 << 16)
            if not received:
                return None
            self._buffer += received
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line


# errors on the wire


def error_from(record: Mapping[str, Any]) -> HeddleError:
    """The error again, of the class that has its kind; a kind that we do not know keeps its exit code."""
    kind = str(record.get("kind"))
    message = str(record.get("message"))
    hint = record.get("hint")
    known = _classes().get(kind, HeddleError)
    error = known(message, hint=None if hint is None else str(hint))
    if error.kind != kind:
        error.kind = kind
        error.exit_code = int(record.get("exit_code", HeddleError.exit_code))
        error.retry = bool(record.get("retry", False))
    return error


def _classes() -> dict[str, type[HeddleError]]:
    found: dict[str, type[HeddleError]] = {}
    todo: list[type[HeddleError]] = [HeddleError]
    while todo:
        cls = todo.pop()
        found.setdefault(cls.kind, cls)
        todo.extend(cls.__subclasses__())
    return found


# the client


def call(
    path: Path, op: str, arguments: Mapping[str, Any] | None = None, *, part: Emit | None = None
) -> Message:
    """Ask a session to do something and wait until it has.

    There is no limit on how long an operation takes; but while the session says nothing it is asked, on a
    second connection, whether it still lives.

    Args:
        path: its control socket.
        op: the operation.
        arguments: what goes with it.
        part: called with each part of a long answer.

    Raises:
        StaleMount: nobody listens there any more, or it ended before it answered.
        Busy: it is there and does not answer.
        HeddleError: whatever the session raised, as its own class.
    """
    with _connected(path) as connection:
        try:
            connection.sendall(encode({"v": VERSION, "op": op, **(arguments or {})}))
            return _answer(path, _Lines(connection), part)
        except ConnectionError as error:
            raise StaleMount(
                "the session ended before it answered", hint="heddle mounts"
            ) from error


@contextmanager
def pending(path: Path, op: str) -> Iterator[Callable[[Emit], Message]]:
    """Ask for something that ends later; the block runs once the session has taken it up.

    Yields:
        A function that waits for the answer, and calls what it is given with each sign of life until then. Leaving
        the block without calling it takes the request back.

    Raises:
        StaleMount, Busy, HeddleError: as ``call``.
    """
    with _connected(path) as connection:
        connection.sendall(encode({"v": VERSION, "op": op}))
        lines = _Lines(connection)
        message = _next(path, lines)
        if "part" not in message:
            _outcome(message)
        yield lambda part: _answer(path, lines, part)


def _answer(path: Path, lines: _Lines, part: Emit | None) -> Message:
    while True:
        message = _next(path, lines)
        if "part" not in message:
            return _outcome(message)
        if part is not None:
            part(message["part"])


def _next(path: Path, lines: _Lines) -> Message:
    """The next line, however long it takes as long as the session lives."""
    while True:
        try:
            line = lines.read()
        except TimeoutError:
            if ping(path) is None:
                raise Busy("the session does not answer", hint="heddle mounts") from None
            continue
        except ConnectionError:
            line = None
        if line is None:
            raise StaleMount("the session ended before it answered", hint="heddle mounts")
        return decode(line)


def _outcome(message: Message) -> Message:
    if "error" in message:
        raise error_from(message["error"])
    outcome = message.get("ok")
    if not isinstance(outcome, dict):
        raise ProtocolError("a control answer is neither a result nor an error")
    return outcome


@contextmanager
def _connected(path: Path) -> Iterator[socket.socket]:
    try:
        connection = connect(path)
    except BlockingIOError as error:
        raise Busy("the session does not answer", hint="heddle mounts") from error
    except OSError as error:
        raise StaleMount("no session listens any more", hint="heddle mounts") from error
    with connection:
        connection.settimeout(_SILENCE_S)
        yield connection


def ping(path: Path, timeout_s: float = _PING_TIMEOUT_S) -> Message | None:
    """What a session says of itself, or None when it does not answer in time."""
    return ping_all([path], timeout_s)[0]


def ping_all(
    paths: list[Path], timeout_s: float = _PING_TIMEOUT_S, *, op: str = "ping"
) -> list[Message | None]:
    """What each of several sessions says of itself, all asked at once.

    Args:
        paths: their control sockets.
        timeout_s: how long to wait for all of them together, in seconds.
        op: another operation without arguments and with an answer of one line.

    Returns:
        For each the answer, or None when nobody listens or nothing came in time.
    """
    import select
    import time

    answers: list[Message | None] = [None] * len(paths)
    poll = select.poll()
    waiting: dict[int, tuple[int, socket.socket]] = {}
    try:
        for index, path in enumerate(paths):
            connection = _asked(path, op)
            if connection is not None:
                waiting[connection.fileno()] = (index, connection)
                poll.register(connection, select.POLLIN)
        deadline = time.monotonic() + timeout_s
        while waiting and (left_s := deadline - time.monotonic()) > 0:
            for descriptor, _event in poll.poll(left_s * 1000):
                poll.unregister(descriptor)
                index, connection = waiting.pop(descriptor)
                answers[index] = _short_answer(connection)
    finally:
        for _index, connection in waiting.values():
            connection.close()
    return answers


def _asked(path: Path, op: str) -> socket.socket | None:
    try:
        connection = connect(path)
    except OSError:
        return None
    try:
        connection.sendall(encode({"v": VERSION, "op": op}))
    except OSError:
        connection.close()
        return None
    return connection


def _short_answer(connection: socket.socket) -> Message | None:
    """Read one short line; it was sent in one piece, so when some of it is readable all of it is."""
    with connection:
        connection.settimeout(_PING_TIMEOUT_S)
        try:
            line = _Lines(connection).read()
            return None if line is None else _outcome(decode(line))
        except (OSError, HeddleError):
            return None


# the server


class ControlServer:
    """Listens on a control socket and runs each request in a thread of its own.

    Nothing here runs in the session's event loop, so a slow or silent client can't delay the mount, and a ping
    is answered while the loop is busy with a capture.

    Args:
        path: where to listen; what is there is a dead session's and is replaced.
        handle: called in a connection's thread with the request and a function that sends one part of the answer;
            its result is the answer.
        log: called with a line for the session's log.
    """

    def __init__(self, path: Path, handle: Handler, log: Callable[[str], None]) -> None:
        import threading

        self._path = path
        self._handle = handle
        self._log = log
        self._serving = 0
        self._changed = threading.Condition()
        self._listener = _listen(path)

    def start(self) -> None:
        """Begin to accept; returns at once."""
        import threading

        threading.Thread(target=self._accept, name="control", daemon=True).start()

    def listen_again(self) -> None:
        """Go on at a new socket, since somebody has removed the one that there was.

        Raises:
            OSError: none can be made.
        """
        gone, self._listener = self._listener, _listen(self._path)
        self.start()
        _stop_listening(gone)

    def close(self) -> None:
        """Stop listening and remove the socket."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
        _stop_listening(self._listener)

    def drain(self, timeout_s: float) -> None:
        """Wait until every request has its answer, or ``timeout_s`` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._serving == 0, timeout_s)

    def _accept(self) -> None:
        import threading

        listener = self._listener
        while True:
            try:
                connection, _address = listener.accept()
            except OSError as error:
                if error.errno in _NOT_NOW:
                    time.sleep(_RETRY_S)
                    continue
                return
            with self._changed:
                self._changed.wait_for(lambda: self._serving < _CONNECTIONS_MAX)
                self._serving += 1
            try:
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()
            except (
                RuntimeError
            ):  # no memory for a thread: this client is told nothing, the next one may be
                connection.close()
                with self._changed:
                    self._serving -= 1
                    self._changed.notify_all()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                connection.settimeout(_REQUEST_TIMEOUT_S)
                self._reply(connection)
        except OSError as error:
            self._log(f"control: the client is gone: {error}")
        finally:
            with self._changed:
                self._serving -= 1
                self._changed.notify_all()

    def _reply(self, connection: socket.socket) -> None:
        try:
            answer: Message = {"ok": self._run(connection)}
        except (BrokenPipeError, ConnectionResetError):
            raise
        except HeddleError as error:
            answer = {"error": error_record(error)}
        except OSError as error:
            answer = {"error": error_record(_from_system(error))}
        except Exception as error:
            import traceback

            self._log(traceback.format_exc())
            answer = {"error": error_record(HeddleError(f"the session failed: {error!r}"))}
        connection.sendall(encode(answer))

    def _run(self, connection: socket.socket) -> Message:
        check_peer(connection)
        line = _Lines(connection).read()
        request = decode(line or b"")
        if request.get("v") != VERSION:
            raise Unavailable(
                f"the session speaks control protocol {VERSION}, this heddle {request.get('v')}",
                hint="unmount and mount again, so that both are the same version",
            )
        return self._handle(request, lambda part: connection.sendall(encode({"part": part})))


def _from_system(error: OSError) -> HeddleError:
    from heddle.errors import StorageError

    said = StorageError(
        f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
    )
    said.__cause__ = error
    return said


def _listen(path: Path) -> socket.socket:
    import socket

    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(listener.fileno(), 0o600)  # bind(2) gives the file the socket's own mode
        path.unlink(missing_ok=True)
        with _addressed(path) as address:
            listener.bind(address)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _stop_listening(listener: socket.socket) -> None:
    import socket

    with suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
    listener.close()


def check_peer(connection: socket.socket) -> None:
    """Refuse a peer that is neither our own user nor root (SO_PEERCRED, unix(7)).

    Raises:
        NotPermitted: it is somebody else.
    """
    import socket
    import struct

    size = struct.calcsize("3i")
    _pid, uid, _gid = struct.unpack(
        "3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    )
    if uid not in (0, os.geteuid()):
        raise NotPermitted(f"user {uid} may not control this session")
