"""A mountpoint from the outside: check it, make it, flush and unmount what is on it, remove it.

Owns the steps around a mount that need no knowledge of the session behind it. Which session that is and what to do
about it is ``lifecycle``'s; what the kernel has mounted is ``mountinfo``'s.
"""

from __future__ import annotations

import os
import select
import signal
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from heddle.errors import CannotCreate, MountpointUnusable, NotPermitted, StorageError, Unavailable
from heddle.mount import mountinfo

FUSE_DEVICE = Path("/dev/fuse")
FUSE_CONF = Path("/etc/fuse.conf")
_HELPER = "fusermount3"
_APT_LINE = "apt-get install fuse3"


class Detached(NamedTuple):
    """How an unmount went.

    Attributes:
        reason: why it is still mounted; None when it is not.
        busy: whether the reason is that something uses it.
    """

    reason: str | None
    busy: bool = False


def check_fuse(*, allow_other: bool) -> None:
    """Check that this machine and this user can mount at all.

    Raises:
        Unavailable: there is no FUSE device or no ``fusermount3``.
        NotPermitted: ``allow_other`` needs a line in /etc/fuse.conf.
    """
    helper_path()
    if not FUSE_DEVICE.exists():
        raise Unavailable(
            f"there is no {FUSE_DEVICE}: the kernel has no FUSE, or this container was not given it",
            hint=f"modprobe fuse; in a container --device {FUSE_DEVICE} --cap-add SYS_ADMIN",
        )
    if not os.access(FUSE_DEVICE, os.R_OK | os.W_OK):
        raise Unavailable(
            f"{FUSE_DEVICE} is closed to user {os.getuid()}", hint=f"sudo chmod 666 {FUSE_DEVICE}"
        )
    if allow_other and os.geteuid() != 0 and not others_allowed():
        raise NotPermitted(
            f"--allow-other needs the line user_allow_other in {FUSE_CONF}",
            hint=f"echo user_allow_other | sudo tee -a {FUSE_CONF}",
        )


def helper_path() -> str:
    """Where ``fusermount3`` is.

    Raises:
        Unavailable: it is not installed.
    """
    for directory in os.get_exec_path():
        candidate = os.path.join(directory, _HELPER)
        if os.access(candidate, os.X_OK):
            return candidate
    raise Unavailable(f"{_HELPER} is not installed", hint=_APT_LINE)


def check(path: Path, repository_dir: Path) -> bool:
    """Check that something can be mounted at a path.

    Args:
        path: absolute, symbolic links resolved.
        repository_dir: the repository's ``.heddle``.

    Returns:
        Whether the directory is missing and has to be made.

    Raises:
        MountpointUnusable: it is no directory, not empty, or inside a ``.heddle`` or a Heddle mount.
        CannotCreate: it is missing and so is its parent.
        NotPermitted: it can't be read.
    """
    if repository_dir in (path, *path.parents) or ".heddle" in path.parts:
        raise MountpointUnusable(f"{path} is inside a repository's own .heddle")
    location = mountinfo.locate(path)
    if location is not None and location.mountpoint != path:
        raise MountpointUnusable(
            f"{path} is inside another heddle mount: thread '{location.thread}'",
            hint="choose a directory outside it",
        )
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return _check_can_be_made(path)
    except NotADirectoryError as error:
        raise CannotCreate(f"cannot make {path}: its parent is no directory") from error
    if not stat.S_ISDIR(status.st_mode):
        raise MountpointUnusable(f"{path} is not a directory")
    _check_empty(path)
    return False


def _check_can_be_made(path: Path) -> bool:
    if not path.parent.is_dir():
        raise CannotCreate(
            f"cannot make {path}: its parent does not exist", hint=f"mkdir -p {path.parent}"
        )
    return True


def _check_empty(path: Path) -> None:
    try:
        with os.scandir(path) as entries:
            first = next(entries, None)
    except PermissionError as error:
        raise NotPermitted(f"{path} can't be read: {error.strerror}") from error
    if first is not None:
        raise MountpointUnusable(
            f"{path} is not empty", hint="choose an empty directory, or a name that does not exist"
        )


def make(path: Path) -> None:
    """Make a mountpoint's directory, closed to others until the mount covers it.

    Raises:
        CannotCreate: it can't be made.
    """
    try:
        os.mkdir(path, 0o700)
    except OSError as error:
        raise CannotCreate(f"cannot make {path}: {error.strerror}") from error


def remove(path: Path) -> None:
    """Remove a mountpoint's directory that we made, if it is still empty and nothing is mounted there."""
    if mountinfo.topmost(mountinfo.heddle_mounts(), path) is not None:
        return
    try:
        os.rmdir(path)
    except OSError:
        return
    if path.parent.parent.name == "mounts":
        try:
            os.rmdir(path.parent)  # a repository's directory in the runtime directory
        except OSError:
            pass


def flush(mountpoint: Path, writers: Iterable[bytes]) -> list[bytes]:
    """Bring what the kernel still holds of files open for writing to the session, and wait for it.

    fsync(2) through any descriptor of an inode waits for all its dirty pages; syncfs(2) only starts their writing.

    Args:
        mountpoint: where they are mounted.
        writers: paths in the mount of the files that the session says are open for writing.

    Returns:
        The paths whose mode lets us open them in no way, so that their last bytes may still be in the kernel.

    Raises:
        OSError: the session could not store what the kernel sent (ENOSPC, EIO).
    """
    return [path for path in writers if not _fsync(os.path.join(os.fsencode(mountpoint), path))]


def _fsync(path: bytes) -> bool:
    """fsync one file in whichever way its mode lets us open it; a file that is gone needs none."""
    for access in (os.O_RDONLY, os.O_WRONLY):
        try:
            descriptor = os.open(path, access | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except PermissionError:
            continue
        except OSError:
            return True
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return True
    return False


def unmount(path: Path, *, lazy: bool = False) -> Detached:
    """Unmount what is on top at a path, without a look-up inside it.

    The kernel writes dirty pages back first, so the session has to be answering, or be dead.

    Args:
        path: the mountpoint.
        lazy: detach it from the name now, whatever still uses it.

    Raises:
        Unavailable: ``fusermount3`` is not installed.
    """
    arguments = [_HELPER, "-u", *(["-z"] if lazy else []), "--", str(path)]
    code, said = _run(helper_path(), arguments)
    if code == 0:
        return Detached(None)
    said = said.strip().removeprefix(f"{_HELPER}: ") or f"{_HELPER} failed with code {code}"
    return Detached(said, busy="busy" in said)


def detach_all(path: Path, source: str) -> bool:
    """Lazily unmount every mount of one source at a path: a dead one may stand on another.

    Args:
        path: the mountpoint.
        source: of the mounts, as in ``mountinfo.format_source``.

    Returns:
        Whether any was there.

    Raises:
        StorageError: it can't be unmounted, or another mount covers it.
    """
    found = False
    while mountinfo.is_mounted(path, source):
        found = True
        top = mountinfo.topmost(mountinfo.read_mountinfo(), path)
        if top is not None and top.source != source:
            raise StorageError(f"the mount at {path} is covered by another one: {top.source}")
        refused = unmount(path, lazy=True).reason
        if refused is not None:
            raise StorageError(f"{path} can't be unmounted: {refused}")
    return found


def answers(path: Path, timeout_s: float) -> bool | None:
    """Whether a mount that no session speaks for is served, asked by a process that may be left behind.

    A thread could not be abandoned: it would keep us from ending while the mount hangs.

    Returns:
        True when it is served, False when its session is dead, None when nothing came in time.
    """
    import sys

    program = "import os, sys; os.statvfs(sys.argv[1])"
    null = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1, 2)]
    arguments = [sys.executable, "-I", "-S", "-c", program, str(path)]
    pid = os.posix_spawn(sys.executable, arguments, {}, file_actions=null)
    descriptor = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        if not poll.poll(timeout_s * 1000):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, os.WNOHANG)
            return None
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        os.close(descriptor)


def _run(program: str, arguments: list[str]) -> tuple[int, str]:
    """Run a short helper; its exit code and what it said on stderr. (subprocess would cost 5 ms to import.)"""
    reader, writer = os.pipe()
    try:
        actions = [(os.POSIX_SPAWN_DUP2, writer, 2)]
        pid = os.posix_spawn(program, arguments, {}, file_actions=actions)
    except BaseException:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    with open(reader, "rb") as output:
        said = output.read()
    try:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:  # this program has its children reaped elsewhere
        code = 1 if said else 0
    return code, said.decode("utf-8", "replace")


def others_allowed() -> bool:
    """Whether /etc/fuse.conf lets ordinary users use ``allow_other``."""
    try:
        lines = FUSE_CONF.read_text().splitlines()
    except OSError:
        return False
    return any(line.strip() == "user_allow_other" for line in lines)
