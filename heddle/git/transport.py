"""Talking to git servers: dulwich's clients, and what their failures mean to a user.

Owns the choice of a client for an address, credentials from git's helpers, and one table from dulwich's and the
network's exceptions to heddle's errors. What is fetched and pushed is ``fetching.py``'s and ``pushing.py``'s.
"""

from __future__ import annotations

import errno
import re
import subprocess
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from shutil import which
from typing import TYPE_CHECKING, Any, TypeVar

from heddle.errors import (
    DataError,
    HeddleError,
    NotPermitted,
    StorageError,
    Unavailable,
    UsageError,
)

if TYPE_CHECKING:
    from dulwich.client import GitClient

    from heddle.git.pack import Progress
    from heddle.repo.repository import Repository

_T = TypeVar("_T")
DEFAULT_TIMEOUT = "30"
"""Seconds that a server may be silent, where ``fetch.timeout`` does not say it."""
_SCHEMES = ("https", "http", "ssh", "git", "file", "git+ssh", "ssh+git")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_UNPACK = re.compile(r"(?:b')?unpack (.*?)'?$")
_PERCENT = re.compile(rb": +\d+(%|, done\.$|$)")
_COUNTED = re.compile(rb"\((\d+)/(\d+)\)")


class RemoteUnreachable(Unavailable):
    """The server does not answer."""

    kind = "remote_unreachable"
    retry = True


class RemoteFailed(StorageError):
    """The server ended the conversation, or said something that it must not."""

    kind = "remote_failed"


class RemoteNotFound(DataError):
    """There is no git repository at the address."""

    kind = "remote_not_found"


def talk(repo: Repository, url: str, operation: str, use: Callable[[GitClient, Any], _T]) -> _T:
    """Call ``use`` with a client for an address and the path there; asks git for credentials if the server does.

    Args:
        operation: ``pull`` or ``push``, for git's ``url.<base>.pushInsteadOf``.

    Raises:
        UsageError: the address is none.
        RemoteUnreachable, RemoteFailed, RemoteNotFound, NotPermitted: as they say.
    """
    import logging

    from dulwich.client import HTTPUnauthorized

    # What dulwich warns of (a server without filters) is said where it matters, and not on stderr.
    logging.getLogger("dulwich.client").addHandler(logging.NullHandler())
    with talking_to(url):
        try:
            return _use(use, *_client(repo, url, operation, {}))
        except HTTPUnauthorized:
            credentials = _credentials(repo, url)
            if credentials is None:
                raise
        try:
            done = _use(use, *_client(repo, url, operation, credentials))
        except HTTPUnauthorized:
            _tell_git(repo, "reject", url, credentials)
            raise
        _tell_git(repo, "approve", url, credentials)
        return done


def _use(use: Callable[[GitClient, Any], _T], client: GitClient, path: Any) -> _T:
    try:
        return use(client, path)
    finally:
        client.close()


def _client(
    repo: Repository, url: str, operation: str, credentials: Mapping[str, Any]
) -> tuple[GitClient, Any]:
    """The client for an address. What is local is served by stock git, so that its hooks and refusals hold."""
    from dulwich import client as clients

    from heddle.git import connection

    if url.startswith("-") or "::" in url.split("/", 1)[0]:
        raise UsageError(f"{url!r} can't be the address of a remote")
    scheme, has_scheme, _ = url.partition("://")
    if has_scheme and _SCHEME.fullmatch(scheme) and scheme.lower() not in _SCHEMES:
        raise UsageError(f"no way is known to {url!r}", hint=f"one of {', '.join(_SCHEMES)}")
    config = _config(repo)
    client, path = clients.get_transport_and_path(
        url, config=config, operation=operation, quiet=True, **credentials
    )
    silence_s = timeout_s(repo)
    environment = repo.environment
    if isinstance(client, clients.LocalGitClient | clients.SubprocessGitClient):
        if which("git", path=environment.get("PATH")) is None:
            raise Unavailable("git is not installed, and serves local addresses", hint="install it")
        dial = connection.to_local_git(environment, silence_s, repo.path)
        return connection.Conversation(dial), path
    if isinstance(client, clients.SSHGitClient):
        # This is also what dulwich makes of an address that does not parse.
        if has_scheme and "ssh" not in scheme:
            raise UsageError(f"{url!r} can't be the address of a remote")
        command = _get(config, b"core", b"sshCommand")
        dial = connection.over_ssh(
            client.host, client.port, client.username, environment, command, silence_s
        )
        return connection.Conversation(dial), path
    if isinstance(client, clients.TCPGitClient) and client._proxy_command is None:
        dial = connection.over_tcp(client._host, client._port, silence_s)
        return connection.Conversation(dial), path
    if isinstance(client, clients.Urllib3HttpGitClient):
        _set_up_http(client, config, environment, silence_s)
    return client, path


def timeout_s(repo: Repository) -> float:
    """How long a server may be silent: ``fetch.timeout``, in seconds."""
    return repo.config.number("fetch.timeout", DEFAULT_TIMEOUT)


def _set_up_http(
    client: Any, config: Any, environment: Mapping[str, str], silence_s: float
) -> None:
    """What dulwich leaves out of git's settings for HTTP (git-config(1), git(1)), and the timeout."""
    import urllib3

    pool = client.pool_manager.connection_pool_kw
    pool["timeout"] = urllib3.Timeout(connect=silence_s, read=silence_s)
    pool["retries"] = urllib3.Retry(0, redirect=10)
    for name, key, variable in (
        ("ca_certs", b"sslCAInfo", "GIT_SSL_CAINFO"),
        ("ca_cert_dir", b"sslCAPath", "GIT_SSL_CAPATH"),
        ("cert_file", b"sslCert", "GIT_SSL_CERT"),
        ("key_file", b"sslKey", "GIT_SSL_KEY"),
    ):
        value = environment.get(variable) or (not pool.get(name) and _get(config, b"http", key))
        if value:
            home = environment.get("HOME", "~")
            pool[name] = home + value[1:] if value.startswith("~/") else value
    if environment.get("GIT_SSL_NO_VERIFY"):
        pool["cert_reqs"] = "CERT_NONE"


def _get(config: Any, section: bytes, key: bytes) -> str | None:
    """One of git's settings, or None."""
    try:
        found = config.get((section,), key)
    except KeyError:
        return None
    return found.decode(errors="surrogateescape") if found else None


def _config(repo: Repository) -> Any:
    """Git's configuration: the repository's, where it lies on one, then the user's and the system's."""
    from dulwich.config import StackedConfig

    backends = StackedConfig.default_backends()
    if repo.git is not None:
        from heddle.git.refs import GitRefs

        backends.insert(0, GitRefs(repo.git).config)
    return StackedConfig(backends)


# credentials


def _credentials(repo: Repository, url: str) -> dict[str, str] | None:
    """What git's credential helpers know for an address (gitcredentials(7)); None: nothing."""
    said = _ask_git(repo, "fill", f"url={url}\n\n")
    known = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    if not known.get("username") or "password" not in known:
        return None
    return {"username": known["username"], "password": known["password"]}


def _tell_git(repo: Repository, verb: str, url: str, credentials: Mapping[str, str]) -> None:
    lines = "".join(f"{key}={value}\n" for key, value in credentials.items())
    _ask_git(repo, verb, f"url={url}\n{lines}\n")


def _ask_git(repo: Repository, verb: str, text: str) -> str:
    quiet = {"GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "", "SSH_ASKPASS": ""}
    try:
        done = subprocess.run(
            ["git", "-c", "core.askPass=", "credential", verb],
            input=text.encode(),
            cwd=repo.path,
            env={**repo.environment, **quiet},
            capture_output=True,
        )
    except FileNotFoundError:
        return ""
    return done.stdout.decode(errors="replace") if done.returncode == 0 else ""


# errors


@contextmanager
def talking_to(url: str) -> Iterator[None]:
    """Turn what dulwich and the network raise in the block into heddle's errors; they name the address."""
    shown = re.sub(r"(://)[^/@]*@", r"\1", url)  # without a password
    try:
        yield
    except HeddleError:
        raise
    except Exception as error:
        problem = _as_error(shown, error)
        if problem is None:
            raise
        raise problem from error


def _as_error(url: str, error: Exception) -> HeddleError | None:
    """What an exception of dulwich or of the network means; None for a bug of ours."""
    from dulwich.client import HTTPProxyUnauthorized, HTTPUnauthorized
    from dulwich.errors import GitProtocolError, HangupException, NotGitRepository
    from dulwich.pack import UnresolvedDeltas

    from heddle.objects.bridge import DAMAGE

    if isinstance(error, NotGitRepository):
        return RemoteNotFound(f"there is no git repository at {url}", hint="heddle remote list")
    if isinstance(error, HTTPUnauthorized | HTTPProxyUnauthorized):
        return NotPermitted(
            f"{url} wants credentials, and git's helpers have none that it takes",
            hint="git credential-store, or credential.helper in git's configuration",
        )
    if isinstance(error, NotImplementedError):
        return RemoteFailed(
            f"{url} is served by a plain web server, to which nothing can be pushed"
        )
    if isinstance(error, GitProtocolError):
        return _protocol_error(url, error, hung_up=isinstance(error, HangupException))
    if isinstance(error, UnresolvedDeltas | KeyError):
        return RemoteFailed(f"{url} sent a pack that needs objects which are not here: {error}")
    if isinstance(error, OSError) and error.errno in _OF_OUR_DISK:
        return None
    if isinstance(error, TimeoutError) or "ReadTimeout" in repr(error):
        return RemoteUnreachable(
            f"{url} was silent for too long",
            hint="run it again later; heddle config set fetch.timeout SECONDS for longer",
        )
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return RemoteFailed(f"{url} ended the connection: {error}", hint="run it again")
    if isinstance(error, ConnectionError) or type(error).__name__ in ("gaierror", "herror"):
        return RemoteUnreachable(f"{url} can't be reached: {error}", hint="run it again later")
    if isinstance(error, OSError) and error.filename is None:
        return RemoteUnreachable(f"{url} can't be reached: {error}", hint="run it again later")
    if isinstance(error, OSError):
        return None
    if isinstance(error, (*DAMAGE, zlib.error, AssertionError)):
        return RemoteFailed(f"{url} sent something damaged: {error}", hint="run it again")
    return None


_OF_OUR_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG)
_UNREACHABLE = (
    *("NewConnectionError", "NameResolution", "ConnectTimeout", "Connection refused"),
    *("Could not resolve", "timed out", "No route to host"),
)
_NOT_THERE = ("does not appear to be a git repo", "not found", "not exported", "no such repo")


def _protocol_error(url: str, error: Exception, *, hung_up: bool) -> HeddleError:
    said = " ".join(str(error).split()) or "it hung up"
    if any(word in said for word in _UNREACHABLE):
        return RemoteUnreachable(f"{url} can't be reached: {said}", hint="run it again later")
    if any(word in said.lower() for word in _NOT_THERE):
        return RemoteNotFound(f"there is no git repository at {url}: {said}")
    if "CERTIFICATE_VERIFY_FAILED" in said:
        return NotPermitted(
            f"{url} has a certificate that is not trusted here",
            hint="git config http.sslCAInfo FILE, if it is one of your own",
        )
    if "dubious ownership" in said:
        return NotPermitted(
            f"{url} belongs to somebody else there: {said}",
            hint="there: git config --global --add safe.directory DIRECTORY",
        )
    if "ermission denied" in said or "Host key verification failed" in said:
        return NotPermitted(f"{url} does not let us in: {said}")
    if found := _UNPACK.match(said):
        return RemoteFailed(f"{url} could not take what was pushed: {found[1]}")
    hung_up = hung_up or "does not match length prefix" in said
    what = "ended the connection" if hung_up else "does not speak as a git server does"
    return RemoteFailed(f"{url} {what}: {said}", hint="run it again")


def is_progress(line: bytes) -> bool:
    """Whether a server counts in a line what it is doing (``Resolving deltas: 50% (1/2)``)."""
    return bool(_COUNTED.search(line)) or bool(_PERCENT.search(line))


def sideband(progress: Progress | None) -> Callable[[bytes], None] | None:
    """Dulwich's progress callback, for what a server says of its own progress, as ``(done/total)``."""
    if progress is None:
        return None
    report = progress

    def hear(text: bytes) -> None:
        found = _COUNTED.findall(text)
        if found:
            report(int(found[-1][0]), int(found[-1][1]))

    return hear
