"""Which process something is: pid, start time and boot, so that a reused pid is never taken for it.

Owns reading ``/proc`` about processes: identity, state, who keeps a mount busy, and waiting for an end. It never
touches a path inside a mount (a dead or hung server would block the look-up); what a session is lives in
``registry``.
"""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
_DEAD_STATES = "ZXx"
_STOPPED_STATES = "Tt"
_COMMAND_MAX_CHARS = 200


class ProcessIdentity(NamedTuple):
    """One process, for good: no other process ever has the same three values.

    Attributes:
        pid: process id.
        start_ticks: start time since boot in clock ticks, field 22 of ``/proc/<pid>/stat`` (proc(5)).
        boot_id: ``/proc/sys/kernel/random/boot_id`` when it started.
    """

    pid: int
    start_ticks: int
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        """The identity of a running process, or None when there is none (a zombie counts as none)."""
        fields = _stat_fields(pid)
        if fields is None or fields[0] in _DEAD_STATES:
            return None
        return cls(pid, int(fields[19]), boot_id())

    def is_alive(self) -> bool:
        """Whether this very process runs: same pid, start time and boot."""
        return ProcessIdentity.of(self.pid) == self

    def cpu_ticks(self) -> int | None:
        """How much of the processor it has used, in clock ticks; None when it is gone."""
        fields = _stat_fields(self.pid)
        return None if fields is None else int(fields[11]) + int(fields[12])

    def is_stopped(self) -> bool:
        """Whether it is stopped by a signal or a debugger (state T or t)."""
        fields = _stat_fields(self.pid)
        return fields is not None and fields[0] in _STOPPED_STATES

    def catches(self, number: int) -> bool:
        """Whether it has a handler for a signal, which would otherwise end it."""
        try:
            status = (PROC / str(self.pid) / "status").read_text(errors="replace")
        except OSError:
            return False
        masks = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")]
        return any(int(mask, 16) >> (number - 1) & 1 for mask in masks)

    def signal(self, number: int) -> bool:
        """Send a signal to this process and to no other.

        Returns:
            False when it is gone already.

        Raises:
            PermissionError: it belongs to somebody else.
        """
        descriptor = self._open()
        if descriptor is None:
            return False
        import signal

        try:
            signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(descriptor)
        return True

    def wait(self, timeout_s: float) -> bool:
        """Wait until it has ended with all its threads and given its files and locks back, without polling.

        Its first thread may be a zombie before that, and then ``is_alive`` says no already.

        Returns:
            True when it is gone, False when it still runs after ``timeout_s`` seconds.
        """
        descriptor = self._open()
        if descriptor is None:
            return True
        try:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            return bool(poll.poll(timeout_s * 1000))
        finally:
            os.close(descriptor)

    def _open(self) -> int | None:
        """A pidfd of this process; checked after opening, so it can't be another's."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return None
        fields = _stat_fields(self.pid)
        if fields is not None and (int(fields[19]), boot_id()) == (self.start_ticks, self.boot_id):
            return descriptor
        os.close(descriptor)
        return None


class Holder(NamedTuple):
    """A process that keeps a mount busy.

    Attributes:
        pid: its process id.
        command: its command line, or its name when it has none.
    """

    pid: int
    command: str


def boot_id() -> str:
    """This boot's identity; another one after every restart of the machine."""
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


def find_holders(mountpoint: Path) -> list[Holder]:
    """The processes with a directory, a file or a mapping at or below a mountpoint.

    Works from the names that /proc shows, without a look-up inside the mount. Processes of other users stay
    unseen unless we are root.
    """
    inside = os.fsencode(mountpoint)
    pids = sorted(int(name) for name in os.listdir(PROC) if name.isdigit())
    return [Holder(pid, _command(pid)) for pid in pids if _holds(pid, inside)]


def _stat_fields(pid: int) -> list[str] | None:
    """The fields of /proc/<pid>/stat from the state (field 3) on; the name before may hold anything."""
    try:
        content = (PROC / str(pid) / "stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return content[content.rindex(b")") + 2 :].decode("ascii").split()


def _holds(pid: int, inside: bytes) -> bool:
    below = inside.rstrip(b"/") + b"/"
    return any(path == inside or path.startswith(below) for path in _used_paths(pid))


def _used_paths(pid: int) -> Iterator[bytes]:
    base = os.fsencode(PROC / str(pid))
    for name in (b"cwd", b"root"):
        yield from _link(base + b"/" + name)
    try:
        descriptors = os.listdir(base + b"/fd")
    except OSError:
        descriptors = []
    for name in descriptors:
        yield from _link(base + b"/fd/" + name)
    yield from _mapped(base + b"/maps")


def _link(path: bytes) -> Iterator[bytes]:
    try:
        yield os.readlink(path)
    except OSError:
        return


def _mapped(path: bytes) -> Iterator[bytes]:
    try:
        with open(path, "rb") as lines:
            for line in lines:
                fields = line.rstrip(b"\n").split(None, 5)
                if len(fields) == 6:
                    yield fields[5]
    except OSError:
        return


def _command(pid: int) -> str:
    try:
        words = (PROC / str(pid) / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        line = b" ".join(words) or (PROC / str(pid) / "comm").read_bytes().strip()
    except OSError:
        return "?"
    return line.decode("utf-8", "replace")[:_COMMAND_MAX_CHARS]
