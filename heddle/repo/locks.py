"""Advisory locks between processes (flock(2)): gone with the process that held them, however it ended.

Owns the two ways of taking one: waiting for a directory, and asking for a lock file. Who locks what is the
caller's.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def directory_locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a directory's lock for the block.

    Args:
        wait: for whoever has it, who needs milliseconds; otherwise that is a BlockingIOError.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(fd)


@contextmanager
def file_locked_nowait(path: Path) -> Iterator[bool]:
    """Try for a lock file's lock and hold it for the block; yields whether it was free.

    The file is made if it is missing; its directory must exist.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)
