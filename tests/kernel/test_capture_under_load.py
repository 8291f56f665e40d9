"""Captures while programs write: every captured tree is one that existed.

Writers put rising numbers into several places, always in the same order. In a tree of one moment a place that comes
earlier in that order is as far as a later one, or one step ahead; a tree mixed of two moments breaks that.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from world import wait_until

from heddle import api
from heddle.errors import NothingToCapture

WRITERS = 3
CAPTURES = 10

PROGRAM = """
import os, sys

os.chdir(sys.argv[1])
for name in ("a", "b", "c", "d-00000000"):
    os.mkdir(name)
in_place = os.open("c/in-place", os.O_RDWR | os.O_CREAT)
os.pwrite(in_place, b"%08d" % 0, 0)
number = 0
while os.path.exists(sys.argv[2]):
    number += 1
    stamp = b"%08d" % number
    with open("a/new", "wb") as file:
        file.write(stamp)
    os.rename("a/new", "a/replaced")
    os.rename("d-%08d" % (number - 1), "d-%08d" % number)
    os.pwrite(in_place, stamp, 0)
    os.fsync(in_place)
    with open("b/n-%08d" % number, "wb") as file:
        file.write(stamp)
    if number > 1:
        os.unlink("b/n-%08d" % (number - 1))
    with open("c/truncated", "wb") as file:
        file.write(stamp)
    os.link("c/truncated", "d-%08d/linked" % number)
    os.unlink("d-%08d/linked" % number)
"""


def is_one_moment(stamps: list[int]) -> bool:
    """Whether stamps, in the order in which they are written, were all there at once."""
    falls = all(first >= second for first, second in itertools.pairwise(stamps))
    return falls and stamps[0] - stamps[-1] <= 1


def stamps(repo: api.Repository, state: str, writer: str) -> list[int] | None:
    """What a captured tree holds of a writer, in the order of writing; None before its first round is over."""
    tree = {}
    for path, entry in files(repo, state, writer):
        tree[path] = entry
    names = {path.split("/")[0] for path in tree} | directories(repo, state, writer)
    moved = [name for name in names if name.startswith("d-")]
    created = [path for path in tree if path.startswith("b/n-")]
    assert len(moved) <= 1, (state, names)
    if not created or "c/truncated" not in tree or not moved:
        return None
    assert len(created) <= 2, (state, created)
    for path in created:
        assert tree[path] in (path[-8:].encode(), b""), (state, path, tree[path])
    found = [
        int(tree["a/replaced"]),
        int(moved[0][2:]),
        int(tree["c/in-place"]),
        max(int(path[-8:]) for path in created),
    ]
    if tree["c/truncated"]:  # between being emptied and being written it is empty
        found.append(int(tree["c/truncated"]))
    return found


def files(repo: api.Repository, state: str, writer: str) -> list[tuple[str, bytes]]:
    found = []
    for name in directories(repo, state, writer):
        _mode, tree = repo.lookup_path(state, f"{writer}/{name}".encode())
        for entry, _mode, blob in repo.store.tree_entries(tree):
            content = b"".join(repo.store.iter_blob(blob))
            found.append((f"{name}/{entry.decode()}", content))
    return found


def directories(repo: api.Repository, state: str, writer: str) -> set[str]:
    try:
        _mode, tree = repo.lookup_path(state, writer.encode())
    except KeyError:
        return set()
    return {entry[0].decode() for entry in repo.store.tree_entries(tree)}


@pytest.mark.parametrize(
    ("mixed", "expected"),
    [
        ([5, 5, 5, 5, 5], True),
        ([6, 6, 5, 5, 5], True),
        ([5, 6, 5, 5, 5], False),
        ([7, 6, 6, 6, 5], False),
        ([6, 6, 5, 6, 5], False),
    ],
)
def test_the_check_can_fail(mixed: list[int], expected: bool) -> None:
    """A tree of one moment is told from one of two."""
    assert is_one_moment(mixed) is expected


def test_every_captured_tree_existed(repo: api.Repository, mounted: Any, tmp_path: Path) -> None:
    """Captures taken one after the other under load each hold a tree of one moment."""
    mount = mounted("agent-1").mountpoint
    running = tmp_path / "running"
    running.touch()
    writers = [f"writer-{number}" for number in range(WRITERS)]
    processes = []
    for writer in writers:
        (mount / writer).mkdir()
        command = [sys.executable, "-c", PROGRAM, mount / writer, running]
        processes.append(subprocess.Popen(command))
    try:
        wait_until(lambda: all((mount / each / "c" / "truncated").exists() for each in writers))
        states = [repo.capture(message="m", thread="agent-1").state.id for _ in range(CAPTURES)]
    finally:
        running.unlink()
        ended = [process.wait(60) for process in processes]
    try:
        states.append(repo.capture(message="at rest", thread="agent-1").state.id)
    except NothingToCapture:
        pass
    seen = {
        writer: [found for state in states if (found := stamps(repo, state.decode(), writer))]
        for writer in writers
    }

    assert ended == [0] * WRITERS
    for writer, found in seen.items():
        assert all(map(is_one_moment, found)), (writer, found)
        assert found == sorted(found), f"{writer} went back"
        assert found[0] < found[-1], f"{writer} stood still: nothing was proved"
