"""Work that several processes share comes back in order, says what went wrong, and leaves no process behind."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from heddle.errors import CorruptObject, StorageError
from heddle.objects import workers
from heddle.objects.workers import results


@pytest.fixture(autouse=True)
def three_processors(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Also makes sure that none of the processes is left, not even as a zombie."""
    monkeypatch.setattr(workers, "processors", lambda: 3)
    before = children()
    yield
    assert children() <= before


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split())


def numbered(number: int) -> tuple[int, int]:
    return number, os.getpid()


@pytest.mark.parametrize("in_a_row", [1, 4])
def test_results_come_in_order(in_a_row: int) -> None:
    """Neighbours are done by one process, shares by one after the other, and none of it here."""
    found = list(results([partial(numbered, at) for at in range(50)], in_a_row=in_a_row))
    assert [number for number, _ in found] == list(range(50))
    pids = [pid for _, pid in found]
    assert len(set(pids)) == 3 and os.getpid() not in pids
    assert pids == [pids[at // in_a_row % 3 * in_a_row] for at in range(50)]


def test_results_that_are_longer_than_a_pipe() -> None:
    """A process that is far ahead waits until its results are taken."""
    tasks = [partial(bytes, 3 << 20) for _ in range(9)]
    assert [len(each) for each in results(tasks, in_a_row=3)] == [3 << 20] * 9


def test_one_processor_or_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where processes would win nothing, or fork would be unsafe, the work is done here."""
    tasks = [partial(numbered, at) for at in range(5)]
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    assert {pid for _, pid in results(tasks)} == {os.getpid()}
    done.set()
    thread.join()
    monkeypatch.setattr(workers, "processors", lambda: 1)
    assert {pid for _, pid in results(tasks)} == {os.getpid()}
    assert list(results([])) == []


def fail(number: int) -> int:
    if number == 7:
        raise CorruptObject("that one", hint="heddle fsck") from OSError(5, "Input/output error")
    return number


def test_errors_are_those_of_the_task() -> None:
    """What a task raises is raised here in its turn, with its hint and what caused it."""
    found = results([partial(fail, at) for at in range(20)])
    assert [next(found) for _ in range(7)] == list(range(7))
    with pytest.raises(CorruptObject, match="that one") as caught:
        next(found)
    assert caught.value.hint == "heddle fsck"
    assert isinstance(caught.value.__cause__, OSError)


def die(number: int) -> int:
    if number == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_killed_process() -> None:
    """A process that comes to an unexpected end is an error, not a result that is missing."""
    found = results([partial(die, at) for at in range(9)])
    assert [next(found) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(StorageError, match="unexpected end"):
        next(found)


def test_whoever_stops_early_leaves_no_process() -> None:
    """Closing the results ends the processes, also those that wait or are at work."""
    found = results([partial(time.sleep, 0 if at == 0 else 3600) for at in range(9)])
    next(found)
    found.close()


def test_none_outlives_who_asked(tmp_path: Path) -> None:
    """When the process that asked is killed, the others end with the result that they are at."""
    pids = tmp_path / "pids"
    pid = os.fork()
    if pid == 0:
        found = results([partial(_note_and_fill, pids) for _ in range(1000)])
        next(found)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    deadline = time.monotonic() + 20
    while left := [each for each in set(pids.read_text().split()) if Path("/proc", each).exists()]:
        assert time.monotonic() < deadline, left


def _note_and_fill(pids: Path) -> bytes:
    with pids.open("a") as file:
        file.write(f"{os.getpid()}\n")
    return bytes(1 << 18)
