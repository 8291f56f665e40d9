"""The session's tasks: which of them reads requests, and work that they hand to threads.

pyfuse3 serves with several tasks that take turns at reading the device. A turn given away costs a trip through the
scheduler, so here a task keeps it from request to request and gives it away only when its handler has to wait:
whoever awaits in a handler does so inside `waiting` or through `in_thread`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, TypeVarTuple

import trio

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


class ReaderTurn:
    """A lock that does not pass to a waiting task when it is released, but when `give_away` is called.

    Attributes:
        closing: the device is gone; every release wakes the next task, so that all of them end.
    """

    def __init__(self) -> None:
        self.closing = False
        self._taken = False
        self._waiting = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        while self._taken:
            await self._waiting.park()
        self._taken = True

    async def __aexit__(self, *exc: object) -> None:
        self._taken = False
        if self.closing:
            self._waiting.unpark()

    def give_away(self) -> None:
        """Let another task read, if one waits."""
        if not self._taken:
            self._waiting.unpark()


_FETCHES_AT_ONCE = 8
_fetchers: trio.CapacityLimiter | None = None
turn = ReaderTurn()
under_way = 0  # handlers that wait; the loop sleeps on the device only while there are none
turned_s = 0.0  # when the loop last took something up, on the monotonic clock
running: dict[int, tuple[str, float]] = {}  # by thread: what it does, and since when on that clock


@contextmanager
def waiting() -> Iterator[None]:
    """Await something in a handler: requests are read meanwhile."""
    global under_way
    under_way += 1
    turn.give_away()
    try:
        yield
    finally:
        under_way -= 1


async def from_remote(function: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
    """As `in_thread`, for what waits for a server: it takes no thread from those who only wait for a disk."""
    global _fetchers
    if _fetchers is None:
        _fetchers = trio.CapacityLimiter(_FETCHES_AT_ONCE)
    with waiting():
        return await trio.to_thread.run_sync(
            function, *arguments, limiter=_fetchers, abandon_on_cancel=True
        )


async def in_thread(function: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
    """Run a function in a worker thread and wait for it."""

    def run() -> Result:
        with noted(function.__name__):
            return function(*arguments)

    with waiting():
        return await trio.to_thread.run_sync(run)


@contextmanager
def noted(operation: str) -> Iterator[None]:
    """Let it be known what this thread does while the block runs: it may have to wait for a disk."""
    thread = threading.get_native_id()
    running[thread] = (operation, time.monotonic())
    try:
        yield
    finally:
        del running[thread]
