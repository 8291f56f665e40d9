"""Running a program to its end, and telling what a tree of files holds."""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path

TIMED_OUT = 124  # the exit code that timeout(1) gives


def execute(
    *arguments: str | Path,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 1800,
) -> tuple[int, str]:
    """Run a program, and end all that it started when its time is over.

    Args:
        arguments: the program and what it is told.
        cwd: where it runs.
        env: what its environment has besides ours.
        timeout_s: seconds.

    Returns:
        Its exit code (`TIMED_OUT` when it did not end), and what it printed, stderr included.
    """
    with subprocess.Popen(
        [str(argument) for argument in arguments],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as running:
        try:
            printed, _ = running.communicate(timeout=timeout_s)
            code = running.returncode
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            printed, _ = running.communicate()
            code = TIMED_OUT
    return code, printed.decode(errors="replace")


Fact = tuple[object, ...]


def tree(top: Path, *, identity: bool = False) -> dict[str, Fact]:
    """What a person can tell of each file below a directory.

    Args:
        top: the directory.
        identity: also what no copy shares: inode number, owner, modification time.

    Returns:
        By path: mode, link count (of files), extended attributes, and bytes, target or device.
    """
    found: dict[str, Fact] = {}
    for parent, directories, files in os.walk(os.fsencode(top)):
        for name in [*directories, *files]:
            path = os.path.join(parent, name)
            found[os.fsdecode(os.path.relpath(path, os.fsencode(top)))] = _fact(path, identity)
    return found


def _fact(path: bytes, identity: bool) -> Fact:
    at = os.lstat(path)
    attributes = tuple(
        (name, os.getxattr(path, name, follow_symlinks=False))
        for name in sorted(os.listxattr(path, follow_symlinks=False))
        if name != "security.selinux"
    )
    links = (
        0 if stat.S_ISDIR(at.st_mode) else at.st_nlink
    )  # a directory's count is up to the file system
    fact: Fact = (oct(at.st_mode), links, attributes, _contents(path, at))
    if identity:
        fact += (at.st_ino, at.st_uid, at.st_gid, at.st_mtime_ns)
    return fact


def _contents(path: bytes, at: os.stat_result) -> object:
    if stat.S_ISREG(at.st_mode):
        with open(path, "rb") as file:
            return (at.st_size, hashlib.file_digest(file, "sha256").hexdigest())
    if stat.S_ISLNK(at.st_mode):
        return os.readlink(path)
    return at.st_rdev if stat.S_ISCHR(at.st_mode) or stat.S_ISBLK(at.st_mode) else None


def _in_short(facts: Mapping[str, Fact], path: str) -> str:
    return ", ".join(str(part)[:80] for part in facts.get(path, ("none",)))


def difference(one: Mapping[str, Fact], other: Mapping[str, Fact]) -> str:
    """The first way in which two trees differ, in words; nothing when they are the same."""
    for path in sorted(one.keys() | other.keys()):
        if one.get(path) != other.get(path):
            count = sum(one.get(each) != other.get(each) for each in one.keys() | other.keys())
            return f"{count} differ, such as {path[-40:]}: {_in_short(one, path)} and {_in_short(other, path)}"
    return ""
