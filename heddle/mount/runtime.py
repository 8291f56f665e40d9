"""The runtime directory: where sockets, session records and default mountpoints live until the machine restarts.

Owns where it is, who may own it, and the names inside it. Whoever can write here could pose as a session, so it is
refused unless it is a real directory, ours, and closed to everyone else.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from heddle.errors import Busy, CannotCreate, NotPermitted

_ID_CHARS = 16
_LOCK_TIMEOUT_S = 60.0


class RuntimeDirectory(NamedTuple):
    """Names inside a runtime directory that was checked.

    Attributes:
        path: absolute path of the directory.
    """

    path: Path

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> RuntimeDirectory:
        """The runtime directory that an environment asks for, made when it is missing.

        Args:
            environment: ``XDG_RUNTIME_DIR`` is read from it; unset or empty means ``/tmp/heddle-<uid>``.

        Raises:
            NotPermitted: it is relative, not a real directory, somebody else's or open to others.
            CannotCreate: it can't be made.
        """
        base = environment.get("XDG_RUNTIME_DIR", "")
        if not base:
            return cls.at(Path(f"/tmp/heddle-{os.getuid()}"))
        if not base.startswith("/"):
            raise NotPermitted(
                f"XDG_RUNTIME_DIR is not an absolute path: {base!r}", hint="unset XDG_RUNTIME_DIR"
            )
        return cls.at(Path(base) / "heddle")

    @classmethod
    def at(cls, path: Path) -> RuntimeDirectory:
        """Check, and make when missing, the runtime directory at an absolute path.

        Raises:
            NotPermitted: as for ``from_environment``.
            CannotCreate: as for ``from_environment``.
        """
        _check_parent(path.parent)
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        except OSError as error:
            raise CannotCreate(
                f"cannot make the runtime directory {path}: {error.strerror}",
                hint="set XDG_RUNTIME_DIR to a directory of yours, or unset it",
            ) from error
        _check(path)
        return cls(path)

    def session_id(self, repository: Path, name: str, mountpoint: Path | None = None) -> str:
        """The short name under which a session's files stand here, whatever the length of its paths.

        Args:
            repository: the repository's directory.
            name: the thread, or the state spec of a read-only mount.
            mountpoint: given for a read-only mount, of which there may be several.
        """
        import hashlib

        parts = (repository, name) if mountpoint is None else (repository, name, mountpoint)
        named = b"\0".join(os.fsencode(part) for part in parts)
        return hashlib.sha256(named).hexdigest()[:_ID_CHARS]

    def socket(self, session_id: str) -> Path:
        """The control socket of a session."""
        return self.path / f"{session_id}.sock"

    def record(self, session_id: str) -> Path:
        """The record file of a session."""
        return self.path / f"{session_id}.json"

    def log(self, session_id: str) -> Path:
        """The log of a session that has no overlay (a read-only mount)."""
        return self.path / f"{session_id}.log"

    def default_mountpoint(self, repository: Path, quoted_name: str) -> Path:
        """Where a thread is mounted when nobody says where; the directory above it is made.

        Args:
            repository: the repository's directory.
            quoted_name: the thread's name as one path component.
        """
        short = self.session_id(repository, "")[:8]
        parent = self.path / "mounts" / f"{repository.name or 'root'}-{short}"
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return parent / quoted_name

    @contextmanager
    def changing(self, session_id: str) -> Iterator[None]:
        """Hold off other mounts and unmounts of the same session until the block ends.

        Raises:
            Busy: another command has been at it for a minute.
        """
        import fcntl

        descriptor = os.open(
            self.path / f"{session_id}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        try:
            if not lock_within(descriptor, _LOCK_TIMEOUT_S):
                raise Busy("another heddle command is mounting or unmounting this thread")
            yield
        finally:
            # A process that was forked meanwhile has the descriptor too.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


def lock_within(descriptor: int, timeout_s: float) -> bool:
    """flock(2) with a time limit: the wait is in a thread that is let go when the time is over.

    Returns:
        Whether the lock is held now; it is given back when the descriptor is closed.
    """
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pass
    else:
        return True
    if not timeout_s:
        return False
    import threading

    waiting = threading.Thread(target=fcntl.flock, args=(descriptor, fcntl.LOCK_EX), daemon=True)
    waiting.start()
    waiting.join(timeout_s)
    return not waiting.is_alive()


def _check_parent(parent: Path) -> None:
    """Whoever owns the directory above could put another one in the place of ours."""
    try:
        status = os.stat(parent)
    except OSError as error:
        raise CannotCreate(
            f"no place for the runtime directory: {parent}: {error.strerror}",
            hint="set XDG_RUNTIME_DIR to a directory of yours, or unset it",
        ) from error
    shared = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not status.st_mode & stat.S_ISVTX
    if status.st_uid not in (0, os.getuid()) or shared:
        raise NotPermitted(
            f"others can replace what stands in {parent}",
            hint="set XDG_RUNTIME_DIR to a directory of yours with mode 700, or unset it",
        )


def _check(path: Path) -> None:
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode):
        raise NotPermitted(
            f"the runtime directory is not a real directory: {path}", hint=f"remove {path}"
        )
    if status.st_uid != os.getuid():
        raise NotPermitted(
            f"the runtime directory belongs to user {status.st_uid}: {path}",
            hint="set XDG_RUNTIME_DIR to a directory of yours",
        )
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise NotPermitted(
            f"the runtime directory is open to others: {path}", hint=f"chmod 700 {path}"
        )
