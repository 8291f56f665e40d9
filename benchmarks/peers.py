"""Heddle and what it is measured against, each behind the few verbs that the measurements use.

Owns which commands are run. Where the time starts and stops is the caller's affair.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks.harness import Bench, mounts_below

UNMOUNT_DEADLINE_S = 20.0


@dataclass
class Heddle:
    """A heddle repository at ``path``."""

    bench: Bench
    path: Path

    def run(self, *arguments: str | Path, cwd: Path | None = None) -> str:
        """Run a heddle command, in the repository unless ``cwd`` says otherwise."""
        return self.bench.run("heddle", *arguments, cwd=cwd or self.path)

    def first_capture(self) -> None:
        """Make a repository of the tree at ``path`` and record all of it."""
        self.run("init")
        self.run("capture", "-m", "all")

    def forget(self) -> None:
        """Remove the repository, keep the tree."""
        shutil.rmtree(self.path / ".heddle", ignore_errors=True)

    def mount(self, thread: str, *options: str) -> Path:
        """Mount a new thread and return where."""
        where = self.bench.work / "mnt" / thread
        self.run("mount", thread, where, "--create", *options)
        return where

    def unmount(self, thread: str) -> None:
        """End the session of a thread."""
        self.run("unmount", thread)

    def session_pid(self, thread: str) -> int:
        """The process that serves a thread's mount."""
        mounts = json.loads(self.run("mounts", "--json"))["mounts"]
        return int(next(mount["pid"] for mount in mounts if mount["thread"] == thread))


@dataclass
class Git:
    """A git repository at ``path``.

    Automatic gc is off: it would go on in the background during the next measurement.
    """

    bench: Bench
    path: Path

    def run(self, *arguments: str | Path, cwd: Path | None = None) -> str:
        """Run a git command, in the repository unless ``cwd`` says otherwise."""
        return self.bench.run("git", "-c", "gc.auto=0", *arguments, cwd=cwd or self.path)

    def first_commit(self) -> None:
        """Make a repository of the tree at ``path`` and record all of it."""
        self.run("init", "-q", "-b", "main")
        self.commit(self.path)

    def commit(self, where: Path) -> None:
        """Record all changes of a working tree."""
        self.run("add", "-A", cwd=where)
        self.run("commit", "-q", "-m", "change", cwd=where)

    def forget(self) -> None:
        """Remove the repository, keep the tree."""
        shutil.rmtree(self.path / ".git", ignore_errors=True)

    def add_worktree(self, branch: str) -> Path:
        """Check out a new branch in a working tree of its own and return where."""
        where = self.bench.work / "mnt" / f"git-{branch}"
        self.run("worktree", "add", "-q", "-b", branch, where)
        return where

    def remove_worktree(self, branch: str) -> None:
        """Remove a working tree that ``add_worktree`` made."""
        self.run("worktree", "remove", "--force", self.bench.work / "mnt" / f"git-{branch}")


class MountPeer(Protocol):
    """Something that shows the same tree in a writable directory."""

    name: str

    def mount(self, number: int) -> Path:
        """Show the tree, freshly; ``number`` is different each time."""

    def unmount(self) -> None:
        """Undo ``mount``."""


class Plain:
    """The tree itself, on the file system that lies under all the others."""

    name = "plain"

    def __init__(self, tree: Path) -> None:
        self.tree = tree

    def mount(self, number: int) -> Path:
        """Nothing to do."""
        return self.tree

    def unmount(self) -> None:
        """Nothing to do."""


class Bindfs:
    """bindfs: passes every call through to the tree, in C."""

    name = "bindfs"

    def __init__(self, bench: Bench, tree: Path) -> None:
        self.bench, self.tree = bench, tree
        self.point = bench.work / "mnt" / "bindfs"

    def mount(self, number: int) -> Path:
        """Mount with bindfs's defaults."""
        self.point.mkdir(exist_ok=True)
        self.bench.run("bindfs", self.tree, self.point)
        return self.point

    def unmount(self) -> None:
        """Unmount and wait until it is gone."""
        unmount_fuse(self.point)


class FuseOverlayfs:
    """fuse-overlayfs: a writable directory over a read-only tree, as heddle's mount is, in C."""

    name = "fuse-overlayfs"

    def __init__(self, bench: Bench, tree: Path) -> None:
        self.bench, self.tree = bench, tree
        self.point = bench.work / "mnt" / "overlay"

    def mount(self, number: int) -> Path:
        """Mount with a new, empty upper directory and fuse-overlayfs's defaults."""
        upper, scratch = (self.bench.work / f"{kind}-{number}" for kind in ("upper", "scratch"))
        for directory in (self.point, upper, scratch):
            directory.mkdir(exist_ok=True)
        options = f"lowerdir={self.tree},upperdir={upper},workdir={scratch}"
        self.bench.run("fuse-overlayfs", "-o", options, self.point)
        return self.point

    def unmount(self) -> None:
        """Unmount and wait until it is gone."""
        unmount_fuse(self.point)


class HeddleMount:
    """A heddle thread's mount; every ``mount`` is a new thread with a new session."""

    name = "heddle"

    def __init__(self, heddle: Heddle) -> None:
        self.heddle = heddle
        self.thread = ""

    def mount(self, number: int) -> Path:
        """Mount a new thread of the captured tree."""
        self.thread = f"work-{number}"
        return self.heddle.mount(self.thread)

    def unmount(self) -> None:
        """End the session."""
        self.heddle.unmount(self.thread)


def unmount_fuse(point: Path) -> None:
    """Unmount a FUSE file system, waiting out whoever still looks at it.

    Raises:
        RuntimeError: it is still mounted after 20 s.
    """
    deadline = time.monotonic() + UNMOUNT_DEADLINE_S
    while mounts_below(point):
        done = subprocess.run(["fusermount3", "-u", os.fspath(point)], capture_output=True)
        if done.returncode and time.monotonic() > deadline:
            raise RuntimeError(f"can't unmount {point}: {done.stderr.decode(errors='replace')}")
