"""Durable files: written whole or not at all.

Owns the temp + fsync + rename + fsync-directory order that every durable file of a repository goes through, so
that the order is written down once. Content and names are the caller's.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from heddle import faults


def fsync_directory(path: Path) -> None:
    """Make the names in a directory durable (fsync(2) on the directory)."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes, offset: int) -> None:
    """Write bytes at an offset, all of them: a disk with little room left takes some and says no error (pwrite(2)).

    Raises:
        OSError: from the file system below; some of them may be written.
    """
    left = memoryview(data)
    while left:
        written = os.pwrite(fd, left, offset)
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left, offset = left[written:], offset + written


@contextmanager
def replacing(path: Path, *, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path`` that becomes ``path`` when the block ends well.

    The rename is the commit point: a crash before it leaves a ``.tmp-*`` file that nothing reads, a crash after
    it the new file. On an exception the temporary file is removed and ``path`` is untouched.

    Args:
        path: the file to make or replace.
        mode: permission bits before the umask.

    Raises:
        OSError: from the file system below.
    """
    temporary = path.with_name(f".tmp-{os.urandom(8).hex()}")
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(fd, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        faults.reach("atomic.before-rename")
        os.rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    faults.reach("atomic.before-directory-fsync")
    fsync_directory(path.parent)


def write_file(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Write ``content`` durably to ``path``, whole or not at all."""
    with replacing(path, mode=mode) as file:
        file.write(content)
