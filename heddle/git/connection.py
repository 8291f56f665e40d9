"""Connections to git servers, on which silence has an end.

Owns how a server is reached that is not spoken to over HTTP: a TCP socket, ``ssh`` as git runs it, stock git for what
is local; and the timeout of each. The conversation is dulwich's, and what it means ``transport.py``'s.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from select import POLLIN, poll
from tempfile import TemporaryFile
from typing import IO, cast

from dulwich.client import TraditionalGitClient
from dulwich.protocol import Protocol

from heddle.errors import Unavailable, UsageError

GIT_PORT = 9418
_END_S = 5.0  # for a program whose connection was closed
_PROTOCOL = "version=2"

Dial = Callable[[str, bytes], "Line"]
"""Reach a service (``upload-pack`` or ``receive-pack``) for a path."""


class Line:
    """An open connection.

    Args:
        end: our end.
        process: the program at the other end, if it is one that we started.
        said: where that program's stderr goes.
    """

    def __init__(
        self,
        end: socket.socket,
        process: subprocess.Popen[bytes] | None = None,
        said: IO[bytes] | None = None,
    ) -> None:
        self.end = end
        self._process = process
        self._said = said
        self._reader = end.makefile("rb")
        self._patience_s = _END_S

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes, fewer only at the end; raises TimeoutError after too long a silence."""
        try:
            return self._reader.read(size)
        except TimeoutError:
            self._patience_s = 0.0
            raise

    def can_read(self) -> bool:
        """Whether something has come that was not read."""
        waiting = poll()
        waiting.register(self.end, POLLIN)
        return bool(waiting.poll(0))

    def end_writing(self) -> None:
        """Tell the other end that all is said."""
        try:
            self.end.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has hung up; reading says so

    def readlines(self) -> list[bytes]:
        """What the program said on stderr, once it is over."""
        if self._process is None or self._said is None:
            return []
        self._wait()
        self._said.seek(0)
        return self._said.readlines()

    def close(self) -> None:
        """Hang up, and let the program end."""
        self._reader.close()
        self.end.close()
        if self._process is not None:
            self._wait()
            self._process = None
        if self._said is not None:
            self._said.close()

    def _wait(self) -> None:
        assert self._process is not None
        try:
            self._process.wait(self._patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Conversation(TraditionalGitClient):
    """Dulwich's client over a connection of ours."""

    def __init__(self, dial: Dial) -> None:
        super().__init__(quiet=True)
        self._dial = dial
        self._line: Line | None = None

    def close(self) -> None:
        """Hang up, also where dulwich left the connection open because something failed."""
        if self._line is not None:
            self._line.close()

    def _connect(
        self, cmd: bytes, path: str | bytes, protocol_version: int | None = None
    ) -> tuple[Protocol, Callable[[], bool], IO[bytes] | None]:
        self.close()
        self._line = line = self._dial(
            cmd.decode(), path if isinstance(path, bytes) else os.fsencode(path)
        )
        protocol = Protocol(
            line.read, line.end.sendall, line.close, shutdown_write=line.end_writing
        )
        return protocol, line.can_read, cast("IO[bytes]", line)


def over_tcp(host: str, port: int | None, timeout_s: float) -> Dial:
    """``git://``: the request is one line, with the protocol's version behind a second NUL (gitprotocol-pack(5))."""

    def dial(service: str, path: bytes) -> Line:
        end = socket.create_connection((host, port or GIT_PORT), timeout_s)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if path.startswith(b"/~"):
            path = path[1:]
        extra = f"\0{_PROTOCOL}\0" if service == "upload-pack" else ""
        request = f"git-{service} ".encode() + path + f"\0host={host}\0{extra}".encode()
        end.sendall(b"%04x" % (len(request) + 4) + request)
        return Line(end)

    return dial


def over_ssh(
    host: str,
    port: int | None,
    username: str | None,
    environment: Mapping[str, str],
    command: str | None,
    timeout_s: float,
) -> Dial:
    """``ssh``, run as git runs it (git-config(1), core.sshCommand).

    Args:
        environment: of the program; ``GIT_SSH_COMMAND`` and ``GIT_SSH`` in it name another one.
        command: ``core.sshCommand``.

    Raises:
        UsageError: the host could be taken for an option.
    """
    if host.startswith("-") or (username or "").startswith("-"):
        raise UsageError(f"{host!r} can't be the name of a server")
    said = environment.get("GIT_SSH_COMMAND") or command
    program = ["sh", "-c", said + ' "$@"', said] if said else [environment.get("GIT_SSH") or "ssh"]
    options = ["-o", "SendEnv=GIT_PROTOCOL", *(["-p", str(port)] if port else [])]
    where = f"{username}@{host}" if username else host
    hint = "install it; which ssh is run says GIT_SSH_COMMAND or core.sshCommand"

    def dial(service: str, path: bytes) -> Line:
        if path.startswith(b"/~"):
            path = path[1:]
        remote = f"git-{service} {_quoted(os.fsdecode(path))}"
        return _run([*program, *options, where, remote], service, environment, timeout_s, hint)

    return dial


def _quoted(path: str) -> str:
    """A path for a shell there, as git quotes it, always: git-shell(1) takes no other spelling."""
    return "'" + re.sub("['!]", lambda found: f"'\\{found[0]}'", path) + "'"


def to_local_git(environment: Mapping[str, str], timeout_s: float, here: Path) -> Dial:
    """Stock git serves what is local, so that its hooks and its refusals hold.

    Args:
        here: what a relative path begins at.
    """

    def dial(service: str, path: bytes) -> Line:
        command = ["git", service, str(here / os.fsdecode(path))]
        return _run(command, service, environment, timeout_s, "install it")

    return dial


def _run(
    command: list[str],
    service: str,
    environment: Mapping[str, str],
    timeout_s: float,
    hint: str,
) -> Line:
    ours, theirs = socket.socketpair()
    said = TemporaryFile()  # noqa: SIM115 - a pipe would have to be emptied meanwhile
    if service == "upload-pack":
        environment = {**environment, "GIT_PROTOCOL": _PROTOCOL}
    try:
        with theirs:
            process = subprocess.Popen(
                command,
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=said,
                env=dict(environment),
            )
    except BaseException as error:
        ours.close()
        said.close()
        if isinstance(error, FileNotFoundError | PermissionError):
            raise Unavailable(f"{command[0]} can't be run: {error.strerror}", hint=hint) from error
        raise
    ours.settimeout(timeout_s)
    return Line(ours, process, said)
