"""Where the suites run: a mount, a directory on the file system below it, and the kernel's overlayfs on the same."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import heddle
from heddle import api

THREAD = "main"


class Place:
    """A directory that a suite runs in.

    Attributes:
        label: "below", "heddle" or "overlayfs".
        path: the directory.
    """

    def __init__(self, label: str, path: Path) -> None:
        self.label = label
        self.path = path

    def capture(self) -> None:
        """Have everything captured, where there is such a thing."""

    def mount_again(self) -> None:
        """Unmount and mount again, where there is such a thing."""


class Mount(Place):
    """A mount of a repository's thread."""

    def __init__(self, repo: api.Repository) -> None:
        super().__init__("heddle", repo.path.with_name(repo.path.name + ".mount"))
        self._repo = repo
        self._mount()

    def _mount(self) -> None:
        self._repo.mount(THREAD, self.path, allow_other=os.geteuid() == 0)

    def capture(self) -> None:
        self._repo.capture(message="conformance", thread=THREAD, allow_empty=True)

    def mount_again(self) -> None:
        self._repo.unmount(THREAD)
        self._mount()

    def end(self) -> None:
        self._repo.unmount(THREAD, force=True)


@contextmanager
def mount_of(path: Path) -> Iterator[Mount]:
    """Make a directory a repository that holds what is in it, and mount that elsewhere.

    Args:
        path: the directory; its mount is beside it.
    """
    repo = heddle.init(path)
    repo.capture(message="what was there", allow_empty=True)
    mount = Mount(repo)
    try:
        yield mount
    finally:
        mount.end()


@contextmanager
def overlayfs(work: Path) -> Iterator[Place]:
    """The kernel's own overlay, for root."""
    names = [work / f"overlayfs-{name}" for name in ("lower", "upper", "scratch", "merged")]
    for name in names:
        name.mkdir()
    lower, upper, scratch, merged = names
    options = f"lowerdir={lower},upperdir={upper},workdir={scratch}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, merged], check=True)
    try:
        yield Place("overlayfs", merged)
    finally:
        subprocess.run(["umount", merged], check=True)
