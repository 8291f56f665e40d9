"""Talking to git servers: dulwich's clients, and what their failures mean to a user.

Owns the choice of a client for an address, credentials from git's helpers, and one table from dulwich's and the
network's exceptions to heddle's errors. What is fetched and pushed is ``fetching.py``'s and ``pushing.py``'s.
"""

from __future__ import annotations

import errno
import os
import re
import subprocess
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from shutil import which
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote_to_bytes

from heddle.errors import (
    ConfigError,
    DataError,
    HeddleError,
    NotPermitted,
    StorageError,
    Unavailable,
    UsageError,
)

if TYPE_CHECKING:
    from dulwich.client import GitClient
    from dulwich.config import ConfigDict

    from heddle.git.pack import Progress
    from heddle.repo.repository import Repository

_T = TypeVar("_T")
DEFAULT_TIMEOUT = "30"
"""Seconds that a server may be silent, where ``fetch.timeout`` does not say it."""
_SCHEMES = ("https", "http", "ssh", "git", "file", "git+ssh", "ssh+git")
_SSH = ("ssh", "git+ssh", "ssh+git")
_HOST = re.compile(
    r"(?:(?P<user>[^\[]*)@)?(?:\[(?P<inside>[^\]]*)\]|(?P<host>[^\[:]*))(?::(?P<port>\d*))?"
)
_SHORT = re.compile(r"((?:[^\[:]*@)?(?:\[[^\]]*\]|[^\[:]*)):(.*)", re.DOTALL)
_HELPER = re.compile(r"[A-Za-z0-9+.-]*::")
"""What git runs a program of that name for (gitremote-helpers(7))."""
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


class NotTaken(RemoteFailed):
    """The server could not take in the pack of a push, or would not."""


class RemoteNotFound(DataError):
    """There is no git repository at the address."""

    kind = "remote_not_found"


class OtherIds(DataError):
    """A server's repository has ids of another format.

    Attributes:
        found: its format.
    """

    kind = "other_ids"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.found = ""


def require_format(name: str, found: str | None, ours: str) -> None:
    """Check that a remote has ids of our format, where it says which.

    Raises:
        OtherIds: it has others.
    """
    if found is not None and found != ours:
        error = OtherIds(f"{name} has {found} ids, and this repository {ours} ids")
        error.found = found
        raise error


def format_of(id: bytes | None) -> str | None:
    """The format of an id (hex), where it can be told."""
    return {40: "sha1", 64: "sha256"}.get(len(id or b""))


def talk(
    repo: Repository,
    url: str,
    use: Callable[[GitClient, Any], _T],
    *,
    push_instead: bool = False,
) -> _T:
    """Call ``use`` with a client for an address and the path there; asks git for credentials if the server does.

    Args:
        push_instead: git's ``url.<base>.pushInsteadOf`` holds for the address.

    Raises:
        UsageError: the address is none.
        ConfigError: git's settings can't be read.
        RemoteUnreachable, RemoteFailed, RemoteNotFound, NotPermitted: as they say.
    """
    import logging

    from dulwich.client import HTTPUnauthorized

    # What dulwich warns of (a server without filters) is said where it matters, and not on stderr.
    logging.getLogger("dulwich.client").addHandler(logging.NullHandler())
    config = _config(repo)
    address = _rewritten(config, url, push_instead)
    with talking_to(url):
        try:
            return _use(repo, use, *_client(repo, address, config, {}))
        except HTTPUnauthorized:
            credentials = _credentials(repo, address)
            if credentials is None:
                raise
        try:
            done = _use(repo, use, *_client(repo, address, config, credentials))
        except HTTPUnauthorized:
            _tell_git(repo, "reject", address, credentials)
            raise
        _tell_git(repo, "approve", address, credentials)
        return done


def _use(repo: Repository, use: Callable[[GitClient, Any], _T], client: GitClient, path: Any) -> _T:
    from dulwich.client import AbstractHttpGitClient, TraditionalGitClient
    from dulwich.protocol import capability_object_format

    # Before version 2 a server takes ids for SHA-1 that nobody has said more of.
    if isinstance(client, AbstractHttpGitClient | TraditionalGitClient):
        client._fetch_capabilities.add(capability_object_format(repo.object_format))
    try:
        return use(client, path)
    finally:
        client.close()


def _client(
    repo: Repository, address: str, config: ConfigDict, credentials: Mapping[str, Any]
) -> tuple[GitClient, Any]:
    """The client for an address. What is local is served by stock git, so that its hooks and refusals hold."""
    from dulwich import client as clients

    from heddle.git import connection

    if address.startswith("-") or _HELPER.match(address):
        raise UsageError(f"{address!r} can't be the address of a remote")
    scheme, has_scheme, _ = address.partition("://")
    if has_scheme and _SCHEME.fullmatch(scheme) and scheme.lower() not in _SCHEMES:
        raise UsageError(f"no way is known to {address!r}", hint=f"one of {', '.join(_SCHEMES)}")
    silence_s = timeout_s(repo)
    environment = repo.environment
    if is_path(address) and not (repo.path / address).is_file():  # a file may be a bundle
        return _local(repo, silence_s), address
    if scheme.lower() in _SSH if has_scheme else not is_path(address):
        command = _get(config, b"core", b"sshCommand")
        user, host, port, path = ssh_place(address)
        dial = connection.over_ssh(host, port, user, environment, command, silence_s)
        return connection.Conversation(dial), path
    pool = None
    if scheme.lower() in ("http", "https"):
        from heddle.git import http  # here: TLS alone takes as long to load as all the rest

        try:
            pool = http.connections(config, environment, address, silence_s)
        except ValueError as error:
            raise UsageError(f"{address!r} can't be the address of a remote") from error
    client, path = clients.get_transport_and_path(
        address, config=config, quiet=True, pool_manager=pool, **credentials
    )
    if has_scheme and pool is None:
        path = _path_in(address)
    if isinstance(client, clients.LocalGitClient | clients.SubprocessGitClient):
        return _local(repo, silence_s), path
    if isinstance(client, clients.SSHGitClient):  # what dulwich makes of what it can't read
        raise UsageError(f"{address!r} can't be the address of a remote")
    if isinstance(client, clients.TCPGitClient) and client._proxy_command is None:
        dial = connection.over_tcp(client._host, client._port, silence_s)
        return connection.Conversation(dial), path
    return client, path


def _rewritten(config: ConfigDict, url: str, push_instead: bool) -> str:
    """The address that git's ``url.<base>.insteadOf`` makes of one; the settings lose it, so that it is done once."""
    rules: list[tuple[bytes, bytes, bytes]] = []
    for section in [each for each in config.sections() if each[0] == b"url"]:
        rules += [(*rule, base) for base in section[1:] for rule in config.items(section)]
        del config[section]
    address = os.fsencode(url)
    for key in (b"pushinsteadof", b"insteadof") if push_instead else (b"insteadof",):
        found = [(prefix, base) for name, prefix, base in rules if name == key]
        found = [each for each in found if address.startswith(each[0])]
        if found:
            prefix, base = max(found, key=lambda each: len(each[0]))
            return os.fsdecode(base + address[len(prefix) :])
    return url


def is_path(address: str) -> bool:
    """Whether git takes an address for a path here: a colon comes behind a slash or not at all (git-clone(1))."""
    slash = address.find("/")
    return ":" not in (address if slash < 0 else address[:slash])


def ssh_place(address: str) -> tuple[str | None, str, int | None, str]:
    """User, host, port and path of an address for ssh (git-clone(1), GIT URLS).

    What git takes an address in brackets for is in them: ``[::1]:path``, and ``[host:port]:path``.

    Raises:
        UsageError: it can't be one.
    """
    if "://" in address:
        where, has_path, _ = address.partition("://")[2].partition("/")
        where = os.fsdecode(unquote_to_bytes(os.fsencode(where)))
        path = _path_in(address) if has_path else ""
    else:
        found = _SHORT.fullmatch(address)
        where, path = (found[1], found[2]) if found else ("", "")
    found = _HOST.fullmatch(where)
    if found is None or not path:
        raise UsageError(f"{address!r} can't be the address of a remote")
    user, host, port = found["user"], found["host"], found["port"]
    if host is None:
        before, at, host = found["inside"].rpartition("@")
        user = before if at else user
        if not port and re.fullmatch(r"[^:]*:\d+", host):
            host, _, port = host.partition(":")
    if not host or int(port or 0) > 65535:
        raise UsageError(f"{address!r} can't be the address of a remote")
    return user, host, int(port) if port else None, path


def _path_in(address: str) -> str:
    """The path in an address with a scheme: all behind the host, its escapes resolved, as git reads it."""
    rest = address.partition("://")[2]
    return os.fsdecode(unquote_to_bytes(os.fsencode(rest[max(rest.find("/"), 0) :])))


def _local(repo: Repository, silence_s: float) -> GitClient:
    from heddle.git import connection

    environment = repo.environment
    if which("git", path=environment.get("PATH")) is None:
        raise Unavailable("git is not installed, and serves local addresses", hint="install it")
    return connection.Conversation(connection.to_local_git(environment, silence_s, repo.path))


def timeout_s(repo: Repository) -> float:
    """How long a server may be silent: ``fetch.timeout``, in seconds."""
    return repo.config.number("fetch.timeout", DEFAULT_TIMEOUT)


def _get(config: ConfigDict, section: bytes, key: bytes) -> str | None:
    """One of git's settings, or None."""
    try:
        found = config.get((section,), key)
    except KeyError:
        return None
    return found.decode(errors="surrogateescape") if found else None


def _config(repo: Repository) -> ConfigDict:
    """Git's settings, as git reads them: the repository's, where it lies on one, the user's, the environment's."""
    from dulwich.config import ConfigDict

    config = ConfigDict()
    where = os.devnull if repo.git is None else repo.git.path
    command = ["git", f"--git-dir={where}", "config", "--list", "-z"]
    try:
        done = subprocess.run(command, env=dict(repo.environment), capture_output=True)
    except FileNotFoundError:
        return config
    if done.returncode != 0:
        said = "; ".join(done.stderr.decode(errors="replace").splitlines())
        raise ConfigError(
            f"git can't read its settings: {said}",
            hint="mend what it names, until git config --list works",
        )
    for entry in done.stdout.split(b"\0")[:-1]:
        name, is_set, value = entry.partition(b"\n")
        section, _, key = name.rpartition(b".")
        config.add(tuple(section.split(b".", 1)), key, value if is_set else b"true")
    return config


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


def shown(url: str) -> str:
    """An address without a password."""
    return re.sub(r"(://)[^/@]*@", r"\1", url)


@contextmanager
def talking_to(url: str) -> Iterator[None]:
    """Turn what dulwich and the network raise in the block into heddle's errors; they name the address."""
    try:
        yield
    except HeddleError:
        raise
    except Exception as error:
        problem = _as_error(shown(url), error)
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
        return RemoteNotFound(f"there is no git repository at {url}", hint=_LOOK_AT_IT)
    if isinstance(error, HTTPProxyUnauthorized):
        return _status_error(url, "407")
    if isinstance(error, HTTPUnauthorized):
        return NotPermitted(
            f"{url} wants credentials, and git's helpers have none that it takes",
            hint="git credential-store, or credential.helper in git's configuration",
        )
    if isinstance(error, GitProtocolError):
        return _protocol_error(url, error, hung_up=isinstance(error, HangupException))
    if isinstance(error, UnresolvedDeltas | KeyError):
        return RemoteFailed(f"{url} sent a pack that needs objects which are not here: {error}")
    if isinstance(error, OSError) and error.errno in _OF_OUR_DISK:
        return None
    if isinstance(error, TimeoutError) or any(word in repr(error) for word in _SILENT):
        return _silent(url)
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


_LOOK_AT_IT = "git ls-remote ADDRESS tries one; heddle remote list shows those known here"
_OF_OUR_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG)
_UNREACHABLE = (
    *("NewConnectionError", "NameResolution", "ConnectTimeout", "Connection refused"),
    *("Could not resolve", "timed out", "No route to host"),
)
_SILENT = ("ReadTimeout", "Read timed out")
_HUNG_UP = ("does not match length prefix", "IncompleteRead", "RemoteDisconnected")
_STATUS = re.compile(r"unexpected http resp (\d+)|Tunnel connection failed: (\d+)")
_CAUSE = re.compile(r"\(Caused by \w+\((['\"])(?:.*?\): )?(.*)\1\)\)")
"""What is worth saying of what urllib3 says of a server that it does not reach."""
_NOT_NOW = ("429", "502", "503", "504")
_NO_PROGRAM = re.compile(r": \S+: (command )?not found|: command not found")
"""What a shell says, here or there, of a program that it has not."""
_NOT_THERE = ("does not appear to be a git repo", "not found", "not exported", "no such repo")


def _protocol_error(url: str, error: Exception, *, hung_up: bool) -> HeddleError:
    said = " ".join(str(error).split()) or "it hung up"
    if status := _STATUS.search(said):
        return _status_error(url, status[1] or status[2])
    if any(word in said for word in _SILENT):
        return _silent(url)
    if any(word in said for word in _UNREACHABLE):
        why = _CAUSE.search(said)
        return RemoteUnreachable(
            f"{url} can't be reached: {why[2] if why else said}", hint="run it again later"
        )
    if _NO_PROGRAM.search(said):
        return Unavailable(
            f"{url} can't be reached: {said}",
            hint="install it; which ssh is run says GIT_SSH_COMMAND or core.sshCommand",
        )
    if any(word in said.lower() for word in _NOT_THERE):
        return RemoteNotFound(f"there is no git repository at {url}: {said}", hint=_LOOK_AT_IT)
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
        return NotTaken(f"{url} could not take what was pushed: {found[1]}")
    hung_up = hung_up or any(word in said for word in _HUNG_UP)
    what = "ended the connection" if hung_up else "does not speak as a git server does"
    return RemoteFailed(f"{url} {what}: {said}", hint="run it again")


def _silent(url: str) -> RemoteUnreachable:
    return RemoteUnreachable(
        f"{url} was silent for too long",
        hint="run it again later; heddle config set fetch.timeout SECONDS for longer",
    )


def _status_error(url: str, status: str) -> HeddleError:
    """What it means that a web server, or a proxy on the way, answers with an error (RFC 9110, 15)."""
    if status in ("403", "407"):
        return NotPermitted(
            f"{url} does not let us in: HTTP {status}",
            hint="git credential-store; of a proxy, http.proxy in git's configuration",
        )
    if status in _NOT_NOW:
        return RemoteUnreachable(
            f"{url} can't answer now: HTTP {status}", hint="run it again later"
        )
    if status == "413":
        return RemoteFailed(
            f"{url} takes nothing so large: HTTP 413",
            hint="push fewer threads at a time, over ssh, or ask who runs the server for a higher limit",
        )
    return RemoteFailed(f"{url} answers with HTTP {status}", hint="heddle remote list")


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
