"""Work that the session hands to threads, and how much of it is under way.

The loop sleeps on the FUSE device only while nothing is: a thread's result must not wait for the next request.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import trio

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")

under_way = 0


async def in_thread(function: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
    """Run a function in a worker thread and wait for it."""
    global under_way
    under_way += 1
    try:
        return await trio.to_thread.run_sync(function, *arguments)
    finally:
        under_way -= 1
