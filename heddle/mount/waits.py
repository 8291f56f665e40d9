"""What threads wait for, as the kernel tells it: whether an operation is slow, or stuck on a disk that does not answer.

Owns the evidence and the judgement. A session asks about its own threads, ``registry`` about a session that says
nothing at all. Everything here is read from /proc and /sys, so no disk can keep the answer.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

WINDOW_S = 0.3
"""For how long a thread is watched, in seconds."""
_YOUNG_S = 1.0  # an operation may wait for so long without anybody being told
_OLD_S = 10.0  # and for no longer than this, even on a disk that does serve others
_ENDLESS_S = 30.0  # a handler that computes for so long does not come to an end
_FUSE = (
    "request_wait",
    "fuse_",
)  # a wait for another FUSE server counts as sleep; for a disk it does not
_IO_COUNTERS = (
    0,
    4,
    11,
    15,
)  # reads, writes, discards, flushes that were completed (block/stat.rst)


class Stuck(NamedTuple):
    """An operation that does not come to an end.

    Attributes:
        operation: what the session was asked to do.
        where: what it waits for: the kernel's function, or None when it computes.
        since_ns: when it began, ns since the epoch.
    """

    operation: str
    where: str | None
    since_ns: int

    @classmethod
    def from_json(cls, value: Any) -> Stuck | None:
        """As a session says it; None where it says nothing, or something else."""
        try:
            return cls(str(value["operation"]), value["where"], int(value["since_ns"]))
        except (KeyError, TypeError, ValueError):
            return None

    def describe(self) -> str:
        """For people."""
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since_ns / 1e9))
        if self.where is None:
            return f"{self.operation} has been computing since {since}"
        return f"{self.operation} waits for the disk since {since} ({self.where})"


class Look(NamedTuple):
    """A thread at one moment.

    Attributes:
        switches: how often it has given the processor away.
        where: the kernel's function in which it waits for a file system; None: it runs, or waits for something else.
    """

    switches: int
    where: str | None


def look(thread: int, process: int | str = "self") -> Look | None:
    """Look at a thread; None when it is gone.

    Args:
        thread: its id.
        process: its process.
    """
    directory = f"/proc/{process}/task/{thread}"
    try:
        with open(f"{directory}/status") as file:
            status = file.read()
        with open(f"{directory}/wchan") as file:
            function = file.read().strip()
    except OSError:
        return None
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    switches = int(fields["voluntary_ctxt_switches"]) + int(fields["nonvoluntary_ctxt_switches"])
    waits = fields["State"].startswith("D") or function.startswith(_FUSE)
    return Look(switches, function if waits else None)


def kernel_wait(process: int) -> str | None:
    """The kernel's function in which a thread of a process waits and can't be interrupted; None when none does."""
    try:
        threads = os.listdir(f"/proc/{process}/task")
    except OSError:
        return None
    for thread in threads:
        try:
            with open(f"/proc/{process}/task/{thread}/stat") as file:
                state = file.read().rpartition(") ")[2][:1]
        except OSError:
            continue
        if state == "D":
            found = look(int(thread), process)
            return (found and found.where) or "unknown"
    return None


class Watch:
    """The threads of this process between two moments, and whether the disk below has served anybody.

    Args:
        device: of the disk (``st_dev``); taken while it still answered.
        threads: those that are watched.
    """

    def __init__(self, device: int, threads: list[int]) -> None:
        self._device = device
        self._began_s = time.monotonic()
        self._served = _served(device)
        self._looks = {thread: look(thread) for thread in threads}

    def left_s(self) -> float:
        """How much of the window is left, in seconds."""
        return max(0.0, WINDOW_S - (time.monotonic() - self._began_s))

    def stuck(self, under_way: Mapping[int, tuple[str, float]]) -> Stuck | None:
        """The oldest operation that is stuck; when there are any to suspect it waits for the window's end.

        Args:
            under_way: by thread, the operation and when it began (``time.monotonic``).
        """
        now_s = time.monotonic()
        suspects = sorted(
            (since_s, thread, operation)
            for thread, (operation, since_s) in under_way.items()
            if now_s - since_s >= _YOUNG_S
        )
        if suspects:
            time.sleep(self.left_s())
        for since_s, thread, operation in suspects:
            age_s = now_s - since_s
            before, after = self._looks.get(thread), look(thread)
            if before is None or after is None:
                continue
            waits = after.where is not None and after == before
            if waits and (age_s >= _OLD_S or not self._disk_serves()):
                return Stuck(operation, after.where, _wall_clock_ns(age_s))
        return None

    @staticmethod
    def endless(operation: str, since_s: float) -> Stuck | None:
        """A handler that has held the loop for too long to be only slow.

        Args:
            operation: what it does.
            since_s: when it began (``time.monotonic``).
        """
        age_s = time.monotonic() - since_s
        return Stuck(operation, None, _wall_clock_ns(age_s)) if age_s >= _ENDLESS_S else None

    def _disk_serves(self) -> bool:
        return _served(self._device) != self._served


def _wall_clock_ns(age_s: float) -> int:
    return time.time_ns() - int(age_s * 1e9)


def _served(device: int) -> int | None:
    """How many requests a disk has completed; None for a file system without a disk of its own."""
    path = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat"
    try:
        with open(path) as file:
            fields = file.read().split()
    except OSError:
        return None
    return sum(int(fields[index]) for index in _IO_COUNTERS if index < len(fields))


def operation_of(frame: FrameType | None) -> str:
    """What a thread does, by its stack: the handler of the FUSE protocol, or the outermost step of ours."""
    names = []
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.parts[-3:-1] == ("heddle", "mount") and path.stem not in ("session", "loop"):
            names.append((path.stem, frame.f_code.co_name))
        frame = frame.f_back
    handlers = [name for stem, name in names if stem == "fuse" and name != "run"]
    if handlers:
        return handlers[-1]
    return names[-1][1] if names else "something"
