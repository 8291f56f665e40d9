"""Work that processes do side by side, each its share of a list that all of them have from the beginning.

Owns the processes: how they begin, how results and errors come back in the order of the list, and that none outlives
the work. Threads would take turns, since what is done here needs the interpreter at every object.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from typing import Any, NoReturn, TypeVar

from heddle.errors import StorageError
from heddle.objects.output import processors

_Result = TypeVar("_Result")

_MOST = 8
"""Processes at a time: each takes milliseconds to begin, and has what it changes of our memory for itself."""
_PIPE_BYTES = 1 << 20
"""Room for the results that a process is ahead by."""


def processes(shares: int) -> int:
    """How many processes would do so many shares of some work side by side.

    One, this one, where there is one processor, and where this process has threads: fork(2) would copy one of them
    and the locks of all.
    """
    return 1 if threading.active_count() > 1 else max(1, min(processors(), shares, _MOST))


def results(
    tasks: Sequence[Callable[[], _Result]], *, in_a_row: int = 1
) -> Generator[_Result, None, None]:
    """Do some tasks in other processes, or here if there would be but one; yield what each returns, in order.

    Args:
        tasks: change nothing that anybody else sees; what they return can be pickled.
        in_a_row: so many neighbours are done by the same process: a share.

    Raises:
        StorageError: a process came to an unexpected end; besides whatever a task raises.
    """
    count = processes(-(-len(tasks) // in_a_row))
    if count == 1:
        yield from (task() for task in tasks)
        return
    workers: list[_Worker] = []
    try:
        for number in range(count):
            mine = [task for at, task in enumerate(tasks) if at // in_a_row % count == number]
            workers.append(_Worker(mine))
        for at in range(len(tasks)):
            yield workers[at // in_a_row % count].next_result()
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    """A process that does some tasks, one after the other."""

    def __init__(self, tasks: Sequence[Callable[[], Any]]) -> None:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        with suppress(OSError):  # as much as the user may have
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._pid = os.fork()
        if self._pid == 0:
            os.close(reader)
            _work(tasks, writer)
        os.close(writer)
        self._results = os.fdopen(reader, "rb")

    def next_result(self) -> Any:
        """What the next task returned; raises what it raised."""
        try:
            error, result = pickle.load(self._results)
        except (EOFError, pickle.UnpicklingError):
            raise StorageError(
                "a process that was to do part of the work came to an unexpected end",
                hint="run it again; dmesg says whether it was killed for want of memory",
            ) from None
        if error is not None:
            raise error from result
        return result

    def end(self) -> None:
        """Wait for the process, which has nothing more to do for anybody."""
        self._results.close()
        os.kill(self._pid, signal.SIGKILL)
        with suppress(ChildProcessError):  # a program that has its children reaped elsewhere
            os.waitpid(self._pid, 0)


def _work(tasks: Sequence[Callable[[], Any]], writer: int) -> NoReturn:
    """In the other process: do the tasks, and end without a word; whoever waits for results is told what went wrong."""
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # who interrupts the command ends us
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with os.fdopen(writer, "wb") as results:
            for task in tasks:
                pickle.dump(_outcome(task), results)
                results.flush()
        status = 0
    finally:
        os._exit(status)


def _outcome(task: Callable[[], Any]) -> tuple[Exception | None, Any]:
    """What a task raises, and what caused that, or None and what it returns."""
    try:
        return None, task()
    except Exception as error:
        return error, error.__cause__
