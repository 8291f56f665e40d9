"""The lock between those who rely on stored objects and whoever removes packs (flock(2) on the directory of packs).

Owns who waits for whom: any number hold a directory together, and packs are removed only while nobody holds it.
flock(2) is not fair: holders that follow each other closely would keep the remover out for ever. So who comes passes
a gate first, the lock of the directory above, which the remover closes for a moment now and then.
Readers need no hold: what they look for and miss they look for again.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from heddle.errors import StorageError

_POLL_S = 0.02
_CLOSED_S = 2.0
"""How long the gate stays closed at a time, and how long a new holder waits at it at most."""
_OPEN_S = 1.0
"""How long it stays open between: whoever waits at it gets in, also one that the remover waits for."""

_held: dict[tuple[int, int], set[int]] = defaultdict(set)
"""The descriptors by which this process holds a directory, by its device and inode numbers."""


class Hold:
    """No pack of a directory is removed as long as this lives; a context manager.

    Held from before the first look at what is stored already until a name leads to what was stored on top of it.
    A process that holds the directory already passes the closed gate: the remover waits for its first hold anyway.

    Args:
        directory: of the packs.

    Raises:
        StorageError: there is no such directory.
    """

    def __init__(self, directory: Path) -> None:
        self._fd = -1
        fd = _open(directory)
        try:
            found = os.fstat(fd)
            self._ours = _held[found.st_dev, found.st_ino]
            with nullcontext() if self._ours else _gate(directory, fcntl.LOCK_SH):
                fcntl.flock(fd, fcntl.LOCK_SH)
        except BaseException:
            os.close(fd)
            raise
        self._ours.add(fd)
        self._fd = fd

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()

    def release(self) -> None:
        """Let go; also done when nothing refers to it any more."""
        if self._fd >= 0:
            self._ours.discard(self._fd)
            os.close(self._fd)
            self._fd = -1


@contextmanager
def exclusive(directory: Path, *, timeout_s: float) -> Iterator[bool]:
    """Keep everybody else from holding a directory for the block.

    Args:
        directory: of the packs.
        timeout_s: how long to wait for those who hold it, in seconds; a holder that stays longer is not interrupted.

    Yields:
        Whether it was had before the time was over.

    Raises:
        StorageError: there is no such directory.
    """
    deadline = time.monotonic() + timeout_s
    fd = _open(directory)
    try:
        while not (free := _lock_behind_the_gate(fd, directory, deadline)):
            if (left := deadline - time.monotonic()) <= 0:
                break
            time.sleep(min(_OPEN_S, left))
        yield free
    finally:
        os.close(fd)


def _lock_behind_the_gate(fd: int, directory: Path, deadline: float) -> bool:
    """Close the gate and see whether all who are inside leave within a moment."""
    if _lock_nowait(fd):
        return True
    until = min(deadline, time.monotonic() + _CLOSED_S)
    with _gate(directory, fcntl.LOCK_EX):
        while not (free := _lock_nowait(fd)) and time.monotonic() < until:
            time.sleep(_POLL_S)
        return free


@contextmanager
def _gate(directory: Path, how: int) -> Iterator[None]:
    """Have the gate of a directory for the block: shared to pass it, exclusively to close it."""
    fd = _open(directory.parent)
    try:
        fcntl.flock(fd, how)
        yield
    finally:
        os.close(fd)


def _lock_nowait(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _open(directory: Path) -> int:
    try:
        return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise StorageError(f"listing {directory} failed: {error.strerror}") from error
