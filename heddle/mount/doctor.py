"""What is missing or wrong on this machine and in a repository, each with the command that mends it.

Owns the list of checks and what counts as wrong. It looks and changes nothing; whether every stored byte is right is
``fsck``'s question.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from heddle.errors import HeddleError, next_command
from heddle.mount import mountpoint
from heddle.mount.runtime import RuntimeDirectory
from heddle.repo.names import overlay_dir

if TYPE_CHECKING:
    from heddle.mount.lifecycle import MountInfo
    from heddle.repo.repository import Repository

Level = Literal["ok", "note", "wrong"]

LOW_BYTES = 256 << 20
"""Less free space than this is wrong, in bytes: a capture writes what it records a second time."""
LOW_INODES = 1000
_SEE_DISK = "dmesg | tail; what waits for the disk goes on when it is back"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        check: the check's stable name.
        level: ``ok``; ``note``: works, and there is something to know; ``wrong``.
        what: one line for the user.
        repair: the command that mends it, or None.
    """

    check: str
    level: Level
    what: str
    repair: str | None = None


def examine(repo: Repository | None, environment: Mapping[str, str]) -> list[Finding]:
    """Make every check there is.

    Args:
        repo: the repository to look at as well; None: only the machine.
        environment: of the command: where the runtime directory is.
    """
    checks = [_fuse_device, _helper, _others, lambda: _runtime(environment)]
    if repo is not None:
        checks += [
            lambda: _space(repo.heddle_dir),
            lambda: _file_system(repo.heddle_dir),
            lambda: _settings(repo),
            lambda: _database(repo),
            lambda: _indexes(repo),
            lambda: _sessions(repo, environment),
            lambda: _overlays(repo),
            lambda: _park(repo),
            lambda: _aside(repo),
        ]
    return list(dict.fromkeys(finding for check in checks for finding in _guarded(check)))


def examine_stalled(here: Path, environment: Mapping[str, str]) -> list[Finding]:
    """What can be said of a repository whose disk does not answer: nothing here asks it.

    Args:
        here: in its working directory or in one of its mounts.
        environment: as for ``examine``.
    """
    what = f"the disk below {here} does not answer"
    found = [*examine(None, environment), Finding("disk", "wrong", what, _SEE_DISK)]
    return found + _guarded(lambda: _judged(_around(here, environment)))


def _around(here: Path, environment: Mapping[str, str]) -> list[MountInfo]:
    from heddle.mount import lifecycle

    return lifecycle.mounts_around(RuntimeDirectory.from_environment(environment), here)


def _guarded(check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """A check that fails has found something."""
    found: list[Finding] = []
    try:
        found.extend(check())
    except HeddleError as error:
        found.append(Finding(error.kind, "wrong", error.message, next_command(error)))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        found.append(Finding("io_error", "wrong", f"{where}{error.strerror}"))
    return found


# the machine


def _fuse_device() -> Iterator[Finding]:
    device = mountpoint.FUSE_DEVICE
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        repair = f"modprobe fuse; in a container --device {device} --cap-add SYS_ADMIN"
        yield Finding("fuse_device", "wrong", f"there is no {device}", repair)
    except OSError as error:
        what = f"{device} can't be opened: {error.strerror}"
        yield Finding("fuse_device", "wrong", what, f"sudo chmod 666 {device}")
    else:
        yield Finding("fuse_device", "ok", f"{device} can be opened")


def _helper() -> Iterator[Finding]:
    path = mountpoint.helper_path()
    if os.geteuid() != 0 and not os.stat(path).st_mode & stat.S_ISUID:
        what = f"{path} is not set-user-id, so only root can mount"
        yield Finding(
            "fusermount3", "wrong", what, f"sudo chown root {path}; sudo chmod 4755 {path}"
        )
    else:
        yield Finding("fusermount3", "ok", f"{path} is there")


def _others() -> Iterator[Finding]:
    if os.geteuid() == 0 or mountpoint.others_allowed():
        yield Finding("allow_other", "ok", "mount --allow-other is permitted")
    else:
        repair = f"echo user_allow_other | sudo tee -a {mountpoint.FUSE_CONF}"
        yield Finding("allow_other", "note", "mount --allow-other is not permitted", repair)


def _runtime(environment: Mapping[str, str]) -> Iterator[Finding]:
    runtime = RuntimeDirectory.from_environment(environment)
    yield Finding("runtime_directory", "ok", f"{runtime.path} is ours and closed to others")
    yield from _space(runtime.path)


def _space(directory: Path) -> Iterator[Finding]:
    found = os.statvfs(directory)
    free = found.f_bavail * found.f_frsize
    if free < LOW_BYTES:
        what = f"{free >> 20} MiB are free at {directory}"
        yield Finding("disk_space", "wrong", what, f"df -h {directory}")
    elif found.f_files and found.f_favail < LOW_INODES:
        what = f"{found.f_favail} more files can be made at {directory}"
        yield Finding("disk_space", "wrong", what, f"df -i {directory}")
    else:
        yield Finding("disk_space", "ok", f"{free >> 20} MiB are free at {directory}")


# the repository


def _file_system(directory: Path) -> Iterator[Finding]:
    """An overlay needs extended attributes and whiteouts of the file system below."""
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=directory) as place:
            missing = _missing_features(place)
    except OSError as error:
        what = f"{directory} can't be written: {error.strerror}"
        yield Finding("writable", "wrong", what, f"ls -ld {directory}; df {directory}")
        return
    if missing:
        what = f"the file system of {directory} has no {' and no '.join(missing)}"
        yield Finding("file_system", "wrong", what, "move the repository to another file system")
    else:
        yield Finding("file_system", "ok", f"{directory} can hold overlays")


def _missing_features(place: str) -> list[str]:
    missing = []
    if not _works(lambda: os.setxattr(place, "user.heddle.doctor", b"1")):
        missing.append("extended attributes")
    if not _works(lambda: os.mknod(os.path.join(place, "w"), stat.S_IFCHR | 0o600, 0)):
        missing.append("whiteouts")
    return missing


def _works(call: Callable[[], None]) -> bool:
    try:
        call()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        return False
    return True


def _settings(repo: Repository) -> Iterator[Finding]:
    values = repo.config.list()
    yield Finding("settings", "ok", f"{len(values)} settings")
    repo.attribution()
    yield Finding("principal", "ok", "captures know who answers for them")


def _database(repo: Repository) -> Iterator[Finding]:
    problems = repo.database.check(lambda _state: True)
    for problem in problems:
        yield Finding("database", "wrong", problem.what, problem.repair)
    if not problems:
        yield Finding("database", "ok", f"{repo.database_path} is whole")


def _indexes(repo: Repository) -> Iterator[Finding]:
    problems = list(repo.store.verify_indexes())
    problems += repo.store.verify_alternates()
    for problem in problems:
        yield Finding(problem.kind, "wrong", problem.what, problem.repair)
    if not problems:
        yield Finding("indexes", "ok", "every pack has a sound index")


def _overlays(repo: Repository) -> Iterator[Finding]:
    """What overlays say of themselves; whether their bytes are right is for ``fsck --full``."""
    from heddle.mount import mend

    found = 0
    for label, directory, _base in mend.overlays(repo):
        for flaw in mend.flaws(directory, repo.store, full=False):
            found += 1
            repair = "heddle unmount it if it is mounted, then heddle fsck --repair"
            yield Finding("overlays", "wrong", f"{label}: {flaw.what}", repair)
    if not found:
        yield Finding("overlays", "ok", "every overlay can be read")


def _sessions(repo: Repository, environment: Mapping[str, str]) -> Iterator[Finding]:
    from heddle.mount import lifecycle

    mounts = lifecycle.mounts(RuntimeDirectory.from_environment(environment), repo)
    yield from _judged(mounts)
    for each in mounts:
        if each.state == "live" and each.thread is not None:
            yield from _upper(repo, each.thread)


def _upper(repo: Repository, thread: str) -> Iterator[Finding]:
    """Somebody may have removed what a live session needs to keep changes in."""
    upper = overlay_dir(repo, thread) / "upper"
    if not upper.is_dir():
        what = f"{upper} was removed under a live mount: it keeps no changes any more"
        repair = f"heddle unmount {thread}; heddle mount {thread}"
        yield Finding("upper", "wrong", what, repair)


def _judged(mounts: list[MountInfo]) -> Iterator[Finding]:
    for each in mounts:
        if each.state != "live":
            yield _ill(each)
    live = sum(each.state == "live" for each in mounts)
    yield Finding("sessions", "ok", f"{live} live")


def _ill(mount: MountInfo) -> Finding:
    why = f": {mount.reason}" if mount.reason else ""
    if mount.state == "hung":
        what = f"the session of {mount.mountpoint} hangs{why}"
        repair = f"heddle mount {mount.spec} wakes or replaces it"
        return Finding("sessions", "wrong", what, _SEE_DISK if mount.waits else repair)
    what = f"the session of {mount.mountpoint} is dead{why}; what it had unsaved is kept"
    if mount.gave_up:
        what += f"; see {mount.log}"
    return Finding(
        "sessions", "wrong", what, f"heddle mount {mount.spec}, or heddle unmount --stale"
    )


def _park(repo: Repository) -> Iterator[Finding]:
    from heddle.repo.parked import list_parked, measure

    parked = list_parked(repo)
    expired = [each for each in parked if each.expires_ns <= time.time_ns()]
    size = sum(measure(each.path / "upper").bytes for each in expired)
    if expired:
        what = f"{len(expired)} parked overlays have expired, {size} bytes"
        yield Finding("parked", "note", what, "heddle overlay drop --expired")
    else:
        yield Finding("parked", "ok", f"{len(parked)} parked overlays, none expired")


def _aside(repo: Repository) -> Iterator[Finding]:
    """What repairs have set aside is nobody's but people's to remove."""
    from heddle.repo.aside import DAMAGED, unfinished

    damaged = repo.heddle_dir / DAMAGED
    if left := unfinished(repo.heddle_dir):
        yield Finding(
            "damaged", "wrong", f"{left[-1]}: a repair was killed", "heddle fsck --repair"
        )
    elif damaged.is_dir():
        what = f"{damaged} holds what repairs have set aside"
        yield Finding("damaged", "note", what, f"when it is not needed any more: rm -r {damaged}")
    else:
        yield Finding("damaged", "ok", "nothing is set aside")
