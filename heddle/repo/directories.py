"""Directories on disk by descriptor, so that nothing below a place leads out of it.

Owns opening one component after the other without following a symbolic link. What is written there is the caller's.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import TracebackType

OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""Flags to open one component with."""


class Blocked(Exception):
    """A directory is needed at ``path`` and something else is there."""

    def __init__(self, path: bytes) -> None:
        super().__init__(path)
        self.path = path


class Directories:
    """Opens the directories below one by their paths, never through a symbolic link.

    Args:
        root: where paths begin; a symbolic link on the way to it is followed.
    """

    def __init__(self, root: Path) -> None:
        self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._open: list[tuple[bytes, int]] = []

    def __enter__(self) -> Directories:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
        os.close(self._root)

    def close(self) -> None:
        """Forget what is open below the root."""
        while self._open:
            os.close(self._open.pop()[1])

    def open(self, path: bytes, *, make: bool = False) -> int | None:
        """A directory's descriptor, valid until the next call; None when there is no such directory.

        Args:
            make: make it, and those above it, where they are missing.

        Raises:
            Blocked: something else is there, or on the way there.
        """
        while self._open and not (path + b"/").startswith(self._open[-1][0] + b"/"):
            os.close(self._open.pop()[1])
        reached, fd = self._open[-1] if self._open else (b"", self._root)
        for name in filter(None, path[len(reached) :].split(b"/")):
            reached = reached + b"/" + name if reached else name
            try:
                fd = self._step(name, fd, make)
            except FileNotFoundError:
                return None
            except OSError as error:
                if error.errno in (errno.ENOTDIR, errno.ELOOP):
                    raise Blocked(reached) from None
                raise
            self._open.append((reached, fd))
        return fd

    @staticmethod
    def _step(name: bytes, parent: int, make: bool) -> int:
        try:
            return os.open(name, OPEN_DIRECTORY, dir_fd=parent)
        except FileNotFoundError:
            if not make:
                raise
        os.mkdir(name, dir_fd=parent)
        return os.open(name, OPEN_DIRECTORY, dir_fd=parent)
