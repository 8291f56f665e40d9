"""Stock git as a server, and servers that break off: what a remote can be in a test."""

from __future__ import annotations

import base64
import os
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

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
            "PATH_INFO": path,
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
def http_server(root: Path, *, password: str | None = None) -> Iterator[str]:
    """``git http-backend`` behind a real HTTP server, with a password for ``ann`` if one is given."""
    handler = type("Backend", (_Backend,), {"root": root, "password": password})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    with _served(server) as port:
        yield f"http://127.0.0.1:{port}"


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


def _relay(source: socket.socket, target: socket.socket, limit: int) -> None:
    try:
        while limit and (data := source.recv(65536 if limit < 0 else min(limit, 65536))):
            target.sendall(data)
            limit -= len(data) if limit > 0 else 0
    except OSError:
        pass


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
