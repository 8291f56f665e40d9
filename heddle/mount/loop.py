"""The event loop of a session: mounts, serves, and returns when the mount is gone.

Owns how requests are waited for. pyfuse3 takes its event loop from its module attribute ``trio`` (as its asyncio
module shows), so it is given one whose `wait_readable` looks at the FUSE device itself for a moment before it
parks in trio: a request that follows another closely then costs no trip through the scheduler.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyfuse3
import trio

from heddle.mount import jobs

if TYPE_CHECKING:
    from heddle.mount.core import ContentAddressedMount

# Looks at the device before sleeping on it: about as long as a program takes to ask again.
SPINS = 80
LINGER_MS = 1  # how long to sleep on the device before parking; other tasks wait as long
TASKS = 99  # as many as wait in handlers, and one that reads; they are kept, since starting one costs more
FAIRNESS = 64  # requests in a row before other tasks get a turn


class _Waiter:
    """`wait_readable` that lingers on the device, and gives the other tasks their turn."""

    def __init__(self) -> None:
        self._in_a_row = 0
        self._device = select.poll()
        self._fd = -1

    async def wait_readable(self, fd: int) -> None:
        """Return when a request can be read, or the mount is gone. Called by the task whose turn it is."""
        if fd != self._fd:
            self._device.register(fd, select.POLLIN)
            self._fd = fd
        self._in_a_row += 1
        if self._in_a_row >= FAIRNESS:
            self._in_a_row = 0
            await trio.lowlevel.checkpoint()
        for _ in range(SPINS):
            if self._is_ready(0):
                return
        if not jobs.under_way and self._is_ready(LINGER_MS):
            return
        self._in_a_row = 0
        await trio.lowlevel.wait_readable(fd)
        self._is_ready(0)

    def _is_ready(self, timeout_ms: int) -> bool:
        for _, events in self._device.poll(timeout_ms):
            if events != select.POLLIN:  # unmounted: every task has to come and see
                jobs.turn.closing = True
            jobs.turned_s = time.monotonic()
            return True
        return False


def _fast_trio() -> Any:
    """A stand-in for the trio module, with what pyfuse3 uses of it."""
    waiter = _Waiter()
    fast = types.ModuleType("heddle.mount.loop.trio")
    lowlevel = types.ModuleType("heddle.mount.loop.trio.lowlevel")
    vars(lowlevel).update(vars(trio.lowlevel))
    vars(fast).update(vars(trio))
    lowlevel.wait_readable = waiter.wait_readable  # type: ignore[attr-defined]
    fast.lowlevel = lowlevel  # type: ignore[attr-defined]
    fast.Lock = lambda: jobs.turn  # type: ignore[attr-defined]
    return fast


def _widen_read_ahead(mountpoint: Path) -> None:
    """Have the kernel ask for large files in pieces of 1 MiB (sysfs-class-bdi); only root may say so."""
    if os.geteuid() != 0:
        return
    where = str(mountpoint).encode("unicode_escape").replace(b" ", b"\\040")
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        fields = line.split()
        if fields[4] == where:
            setting = Path(f"/sys/class/bdi/{fields[2].decode()}/read_ahead_kb")
            with contextlib.suppress(OSError):
                setting.write_text("1024\n")


def _calm_collector() -> None:
    """What lives now lives as long as the session, and requests leave no cycles: collect seldom."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


async def serve(
    core: ContentAddressedMount,
    mountpoint: Path,
    *,
    source: str,
    allow_other: bool = False,
    read_only: bool = False,
    ready: Callable[[], None],
) -> None:
    """Mount the view and serve it until it is unmounted.

    Args:
        core: what to serve; the caller closes it.
        mountpoint: an existing directory.
        source: what the mount table shows as the file system's name.
        allow_other: let other users in (fuse(8)).
        read_only: mount with ``ro``.
        ready: called once the kernel has the mount.

    Raises:
        RuntimeError: the mount was refused; libfuse said why on stderr.
    """
    from heddle.mount.fuse import Operations

    options = {f"fsname={source}", "subtype=heddle", "default_permissions"}
    if allow_other:
        options.add("allow_other")
    if read_only:
        options.add("ro")
    operations: Any = Operations(core)
    pyfuse3.trio = _fast_trio()  # type: ignore[attr-defined]
    pyfuse3.init(operations, str(mountpoint), options)
    _calm_collector()
    _widen_read_ahead(mountpoint)
    try:
        ready()
        await pyfuse3.main(min_tasks=TASKS, max_tasks=TASKS)
    finally:
        # Not unmounted here: that would pull a mount whose loop failed away from its users, to whom an
        # empty directory would look like everything deleted. Left mounted it answers ENOTCONN.
        pyfuse3.close(unmount=False)
