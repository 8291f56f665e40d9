"""Talking to git servers: dulwich's clients, and what their failures mean to a user.

Owns the choice of a client for an address, credentials from git's helpers, and one table from dulwich's and the
network's exceptions to heddle's errors. What is fetched and pushed is ``fetching.py``'s and ``pushing.py``'s.
"""

from __future__ import annotations

import re
import subprocess
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
    from dulwich.client import HTTPUnauthorized

    with talking_to(url):
        try:
            return use(*_client(repo, url, operation, {}))
        except HTTPUnauthorized:
            credentials = _credentials(repo, url)
            if credentials is None:
                raise
        try:
            done = use(*_client(repo, url, operation, credentials))
        except HTTPUnauthorized:
            _tell_git(repo, "reject", url, credentials)
            raise
        _tell_git(repo, "approve", url, credentials)
        return done


def _client(
    repo: Repository, url: str, operation: str, credentials: Mapping[str, Any]
) -> tuple[GitClient, Any]:
    """The client for an address. What is local is served by stock git, so that its hooks and refusals hold."""
    from dulwich.client import (
        LocalGitClient,
        SubprocessGitClient,
        get_transport_and_path,
    )

    if url.startswith("-") or "::" in url.split("/", 1)[0]:
        raise UsageError(f"{url!r} can't be the address of a remote")
    client, path = get_transport_and_path(
        url, config=_config(repo), operation=operation, quiet=True, **credentials
    )
    if isinstance(client, LocalGitClient):
        from shutil import which

        if which("git") is None:
            raise Unavailable("git is not installed, and serves local addresses", hint="install it")
        client = SubprocessGitClient(quiet=True)
    return client, path


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

    from heddle.objects.gitdir import DAMAGE

    if isinstance(error, NotGitRepository):
        return RemoteNotFound(f"there is no git repository at {url}", hint="heddle remote list")
    if isinstance(error, HTTPUnauthorized | HTTPProxyUnauthorized):
        return NotPermitted(
            f"{url} wants credentials, and git's helpers have none that it takes",
            hint="git credential-store, or credential.helper in git's configuration",
        )
    if isinstance(error, GitProtocolError):
        return _protocol_error(url, error, hung_up=isinstance(error, HangupException))
    if isinstance(error, UnresolvedDeltas | KeyError):
        return RemoteFailed(f"{url} sent a pack that needs objects which are not here: {error}")
    if isinstance(error, ConnectionResetError | BrokenPipeError | TimeoutError):
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
    if "ermission denied" in said:
        return NotPermitted(f"{url} does not let us in: {said}")
    what = "ended the connection" if hung_up else "does not speak as a git server does"
    return RemoteFailed(f"{url} {what}: {said}", hint="run it again")


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
