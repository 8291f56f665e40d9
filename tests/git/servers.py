"""Stock git as a server, and servers that break off: what a remote can be in a test."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import socketserver
import ssl
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import IO
from urllib.parse import unquote

from .conftest import run_git


@contextmanager
def git_daemon(root: Path) -> Iterator[str]:
    """``git daemon`` below a directory; yields the address to put a repository's name behind."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["git", "daemon", "--reuseaddr", "--listen=127.0.0.1", f"--port={port}"]
    command += [f"--base-path={root}", "--export-all", "--enable=receive-pack", str(root)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        _wait_for(port)
        yield f"git://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 15)
        process.wait()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.01)
    raise AssertionError("the server does not answer")


class _Backend(BaseHTTPRequestHandler):
    """``git http-backend`` as a CGI program (git-http-backend(1))."""

    root: Path
    password: str | None = None
    status: int | None = None
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._serve(b"")

    def do_POST(self) -> None:
        self._serve(self._body())

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _serve(self, body: bytes) -> None:
        if self.status is not None or self.path.startswith("/moved/"):
            self.send_response(self.status or 302)
            self.send_header("Location", self.path.removeprefix("/moved"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if not self._let_in():
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="test"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        head, _, content = self._run(body).partition(b"\r\n\r\n")
        fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n"))
        self.send_response(int(fields.pop(b"Status", b"200").split()[0]))
        for name, value in fields.items():
            self.send_header(name.decode(), value.decode())
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _let_in(self) -> bool:
        if self.password is None:
            return True
        wanted = base64.b64encode(f"ann:{self.password}".encode()).decode()
        return self.headers.get("Authorization") == f"Basic {wanted}"

    def _run(self, body: bytes) -> bytes:
        path, _, query = self.path.partition("?")
        environment = {
            **os.environ,
            "GIT_PROJECT_ROOT": str(self.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REMOTE_USER": "ann",
            "REMOTE_ADDR": "127.0.0.1",
            "PATH_INFO": unquote(path),
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        command = ["git", "http-backend"]
        return subprocess.run(
            command, input=body, env=environment, capture_output=True, check=True
        ).stdout


@contextmanager
def http_server(
    root: Path,
    *,
    password: str | None = None,
    tls: tuple[Path, Path] | None = None,
    status: int | None = None,
) -> Iterator[str]:
    """``git http-backend`` behind a real HTTP server, which has what is below ``/moved`` one level higher.

    Args:
        root: where the repositories are.
        password: of ``ann``, without which nobody is let in.
        tls: a certificate and its key, for https.
        status: the answer to everything, instead of git's.
    """
    made = {"root": root, "password": password, "status": status}
    handler = type("Backend", (_Backend,), made)
    server = _QuietServer(("127.0.0.1", 0), handler)
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    with _served(server) as port:
        yield f"{'http' if tls is None else 'https'}://127.0.0.1:{port}"


class _Files(SimpleHTTPRequestHandler):
    """What is on disk."""

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@contextmanager
def plain_http_server(root: Path) -> Iterator[str]:
    """A web server that knows nothing of git, for what is below a directory."""
    server = _QuietServer(("127.0.0.1", 0), partial(_Files, directory=str(root)))
    with _served(server) as port:
        yield f"http://127.0.0.1:{port}"


class _QuietServer(ThreadingHTTPServer):
    """A server whose clients may hang up, also in the middle of a handshake."""

    def handle_error(self, *args: object) -> None:
        """Say nothing."""


NOTHING: Mapping[bytes, bytes] = MappingProxyType({})
WAYS = ("path", "file", "git", "http")
"""The ways to a repository that need nothing but stock git."""


@contextmanager
def served_over(way: str, bare: Path) -> Iterator[str]:
    """The address of a bare repository over one of the ``WAYS``."""
    if way in ("path", "file"):
        yield str(bare) if way == "path" else f"file://{bare}"
        return
    with (git_daemon if way == "git" else http_server)(bare.parent) as address:
        yield f"{address}/{bare.name}"


class Middle:
    """A relay before a ``git://`` server, which can be told to misbehave.

    Attributes:
        address: what to clone from instead of the server.
        connections: how many there were.
        says_sizes: leave ``object-info`` among what the server says that it can do (git 2.39 always says it).
        lies: what the server says, and what is passed on instead, of the same length.
        stalled: take connections and say nothing on them until ``go_on``.
        asks: what the client says, and what is passed on instead, of the same length.
        stops_after: pass on so many bytes, wait for ``go_on``, and hang up; 0: never.
        limits: after how many bytes of the server's to hang up, connection by connection; then never.
        passed: the bytes of the server's that were passed on.
    """

    def __init__(self, upstream: int) -> None:
        self._upstream = upstream
        self._port = 0
        self._open: ExitStack | None = None
        self.connections = 0
        self.lies: dict[bytes, bytes] = {}
        self.says_sizes = True
        self.stalled = False
        self.asks: dict[bytes, bytes] = {}
        self.stops_after = 0
        self.limits: list[int] = []
        self.passed = 0
        self.go_on = threading.Event()

    @property
    def address(self) -> str:
        return f"git://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listen, after a ``stop`` at the same port again."""
        middle = self

        class Relay(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                middle.serve(self.request)

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True
            block_on_close = False

        self._open = ExitStack()
        self._port = self._open.enter_context(_served(Server(("127.0.0.1", self._port), Relay)))

    def stop(self) -> None:
        """Be away: connections are refused."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def _count(self, size: int) -> None:
        self.passed += size

    def serve(self, client: socket.socket) -> None:
        """Pass one connection on."""
        self.connections += 1
        if self.stalled:
            self.go_on.wait(60)
        with socket.create_connection(("127.0.0.1", self._upstream)) as server:
            ask = partial(_relay, client, server, -1, changed=self.asks)
            threading.Thread(target=ask, daemon=True).start()
            hidden = {} if self.says_sizes else {b"0010object-info\n": b""}
            limit = self.limits.pop(0) if self.limits else self.stops_after or -1
            _relay(server, client, limit, changed=self.lies | hidden, count=self._count)
            if self.stops_after:
                self.go_on.wait(60)
            for each in (client, server):
                _hang_up(each)


@contextmanager
def in_between(address: str) -> Iterator[Middle]:
    """A relay before the server at a ``git://`` address."""
    middle = Middle(int(address.rsplit(":", 1)[1]))
    middle.start()
    try:
        yield middle
    finally:
        middle.go_on.set()
        middle.stop()


@contextmanager
def cut_off(address: str, after: int) -> Iterator[str]:
    """The server at a ``git://`` address, which hangs up after so many bytes of its answer."""
    upstream = int(address.rsplit(":", 1)[1])

    class Relay(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection(("127.0.0.1", upstream)) as server:
                asking = threading.Thread(target=_relay, args=(self.request, server, -1))
                asking.daemon = True
                asking.start()
                _relay(server, self.request, after)
                for each in (self.request, server):
                    _hang_up(each)

    with _served(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Relay)) as port:
        yield f"git://127.0.0.1:{port}"


def _relay(
    source: socket.socket,
    target: socket.socket,
    limit: int,
    *,
    changed: Mapping[bytes, bytes] = NOTHING,
    count: Callable[[int], None] = lambda size: None,
) -> None:
    """Pass on what is said, up to a limit (-1: none); what is going to be passed on is counted before."""
    held = b""
    try:
        while limit and (data := source.recv(65536 if limit < 0 else min(limit, 65536))):
            data = held + data
            for said, instead in changed.items():
                data = data.replace(said, instead)
            begun = max((_begun(data, said) for said in changed), default=0)
            data, held = data[: len(data) - begun], data[len(data) - begun :]
            count(len(data))
            target.sendall(data)
            limit -= len(data) if limit > 0 else 0
        target.sendall(held)
        target.shutdown(socket.SHUT_WR)  # else the server waits for more, for ever
    except OSError:
        pass


def _begun(data: bytes, said: bytes) -> int:
    """How much of what is looked for stands at the end of what has come so far: git sends a packet's length first.

    Less than a length is passed on: nothing more may come behind it before it is answered.
    """
    lengths = range(min(len(data), len(said) - 1), len(b"0010") - 1, -1)
    return next((length for length in lengths if data.endswith(said[:length])), 0)


def _hang_up(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


@contextmanager
def _served(server: socketserver.TCPServer) -> Iterator[int]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def bare_copy(source: Path, target: Path) -> Path:
    """A bare clone that lets itself be pushed to."""
    run_git(source, "clone", "-q", "--bare", source, target)
    run_git(target, "config", "http.receivepack", "true")
    return target


# servers that are none


class Fake:
    """What a fake server says, in protocol version 2 (gitprotocol-v2(5)).

    Attributes:
        refs: what it says that it has.
        pack: what it sends, whatever is asked for.
        silent_after: how many packets it sends before it says no more; None: all.
    """

    def __init__(self, refs: dict[bytes, bytes], pack: bytes, silent_after: int | None) -> None:
        self.refs = refs
        self.pack = pack
        self.silent_after = silent_after
        self.over = threading.Event()

    def serve(self, connection: socket.socket) -> None:
        """Hold one conversation."""
        with connection, connection.makefile("rb") as asked:
            self._sent = 0
            _read_packet(asked)
            self._say(connection, b"version 2\n", b"ls-refs\n", b"fetch=filter\n", None)
            while request := _read_request(asked):
                if request[0].startswith(b"command=ls-refs"):
                    refs = [id + b" " + name + b"\n" for name, id in self.refs.items()]
                    self._say(connection, *refs, None)
                else:
                    pieces = [
                        b"\1" + self.pack[at : at + 1000] for at in range(0, len(self.pack), 1000)
                    ]
                    self._say(connection, b"packfile\n", *pieces, None)

    def _say(self, connection: socket.socket, *packets: bytes | None) -> None:
        for packet in packets:
            if self.silent_after is not None and self._sent >= self.silent_after:
                self.over.wait(60)
                raise ConnectionAbortedError
            self._sent += 1
            connection.sendall(b"0000" if packet is None else b"%04x%b" % (len(packet) + 4, packet))


def _read_packet(file: IO[bytes]) -> bytes | None:
    length = int(file.read(4) or b"0", 16)
    return file.read(length - 4) if length > 4 else None


def _read_request(file: IO[bytes]) -> list[bytes]:
    lines = []
    while head := file.read(4):
        if head == b"0000":
            break
        length = int(head, 16)
        lines += [file.read(length - 4)] if length > 4 else []
    return lines


@contextmanager
def fake_server(
    refs: dict[bytes, bytes], pack: bytes = b"", *, silent_after: int | None = None
) -> Iterator[str]:
    """A ``git://`` server that says just this; yields its address."""
    fake = Fake(refs, pack, silent_after)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            try:
                fake.serve(self.request)
            except OSError:
                pass  # the client had enough

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with _served(Server(("127.0.0.1", 0), Handler)) as port:
        try:
            yield f"git://127.0.0.1:{port}/project.git"
        finally:
            fake.over.set()


def made_pack(*entries: bytes, count: int | None = None) -> bytes:
    """A git pack of some entries, with its checksum."""
    number = len(entries) if count is None else count
    content = b"PACK" + (2).to_bytes(4, "big") + number.to_bytes(4, "big") + b"".join(entries)
    return content + hashlib.sha1(content).digest()


def pack_entry(
    type_num: int, content: bytes, *, base: bytes = b"", size: int | None = None
) -> bytes:
    """An entry of a git pack; ``base`` is what a delta names, and ``size`` the length that it claims."""
    left = len(content) if size is None else size
    head = [type_num << 4 | left & 15]
    left >>= 4
    while left:
        head[-1] |= 0x80
        head.append(left & 0x7F)
        left >>= 7
    return bytes(head) + base + zlib.compress(content)


# over TLS and ssh


def certificate(directory: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that is its own authority, and its key."""
    made, key = directory / "cert.pem", directory / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(key), "-out", str(made)]
    subprocess.run(command, check=True, capture_output=True)
    return made, key


@contextmanager
def sshd(directory: Path) -> Iterator[tuple[str, str]]:
    """A real ``sshd`` of this user on loopback; yields host:port and the ssh command that is let in."""
    directory.mkdir(mode=0o700)
    for name in ("host", "user"):
        keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)]
        subprocess.run(keygen, check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = directory / "sshd_config"
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {directory}/host\n"
        f"AuthorizedKeysFile {directory}/user.pub\nPidFile none\nUsePAM no\n"
        "StrictModes no\nPasswordAuthentication no\nPermitRootLogin yes\nAcceptEnv GIT_PROTOCOL\n"
    )
    log = directory / "log"
    privileges = Path(
        "/run/sshd"
    )  # where sshd of root separates its privileges; gone after a reboot
    made = os.geteuid() == 0 and not privileges.exists()
    if made:
        privileges.mkdir(mode=0o755)
    process = subprocess.Popen(
        ["/usr/sbin/sshd", "-D", "-E", str(log), "-f", str(config)], start_new_session=True
    )
    try:
        _wait_for(port)
        command = (
            f"ssh -F none -i {directory}/user -o IdentitiesOnly=yes -o BatchMode=yes"
            f" -o StrictHostKeyChecking=accept-new -o UserKnownHostsFile={directory}/known"
        )
        yield f"127.0.0.1:{port}", command
    finally:
        process.terminate()
        process.wait()
        if made:
            privileges.rmdir()
