"""Whether the disk below a repository answers at all, asked by a process that may be left behind.

Owns the question. A disk that has stopped answering (a frozen file system, a suspended device, a server that is gone)
keeps whoever touches it, and nothing can end a process that waits in the kernel for it; a thread that waited so would
keep us from ending as well.
"""

from __future__ import annotations

import mmap
import os
import select
import signal
from contextlib import suppress
from pathlib import Path

from heddle.mount import mountinfo

_ABSENT = ".no-such-entry"
_BLOCK = 4096  # bytes: what O_DIRECT reads, a multiple of every disk's sector


class DiskProbe:
    """Asks the disk of the repository that a path lies in; makes no mark on it.

    The question is asked at once, so that the caller can do something else meanwhile.

    Args:
        start: any path in a working directory or in a mount, dead or alive.
    """

    def __init__(self, start: Path) -> None:
        self._pid = os.fork()
        if self._pid == 0:
            _answer(start)
        self._process = os.pidfd_open(self._pid)

    def answers(self, timeout_s: float = 2.0) -> bool:
        """Whether the disk answers, if need be after ``timeout_s`` seconds; to be asked once."""
        try:
            poll = select.poll()
            poll.register(self._process, select.POLLIN)
            ended = bool(poll.poll(timeout_s * 1000))
        finally:
            os.close(self._process)
        if not ended:
            os.kill(self._pid, signal.SIGKILL)  # when the disk is back
        with suppress(ChildProcessError):  # a program that has its children reaped elsewhere
            os.waitpid(self._pid, 0 if ended else os.WNOHANG)
        return ended


def _answer(start: Path) -> None:
    """In the process that may hang: hold nothing that others wait for, ask, end."""
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        location = mountinfo.locate(start)
        where = start if location is None else location.repository
        for directory in (where, *where.parents):
            if (directory / ".heddle").is_dir():
                _touch(directory / ".heddle")
                break
    finally:
        os._exit(0)


def _touch(heddle_dir: Path) -> None:
    """A change that is none, and a read that no cache answers."""
    with suppress(OSError):
        os.unlink(heddle_dir / _ABSENT)  # waits for a frozen file system before it looks
    with suppress(OSError):
        descriptor = os.open(heddle_dir / "heddle.db", os.O_RDONLY | os.O_DIRECT)
        os.preadv(descriptor, [mmap.mmap(-1, _BLOCK)], 0)
