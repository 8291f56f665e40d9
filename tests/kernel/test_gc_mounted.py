"""Collecting under live mounts: readers and captures go on, and nothing that they rely on goes."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from world import wait_until

import heddle
from heddle import api

FILES = 60
ROUNDS = 6


def text(number: int, version: int) -> str:
    return "".join(
        f"{number} {hashlib.sha1(b'%d %d' % (line, version * (line % 7 == 0))).hexdigest()}\n"
        for line in range(60)
    )


def with_history(repo: api.Repository, versions: int) -> dict[str, str]:
    """Files with a history on ``main``; returns what the newest state holds."""
    (repo.path / "dir").mkdir()
    for version in range(versions):
        for number in range(FILES):
            (repo.path / "dir" / f"f{number}").write_text(text(number, version))
        repo.capture(message=f"Version {version}")
    return {f"f{number}": text(number, versions - 1) for number in range(FILES)}


class Failing:
    """A thread whose exception is raised where it is joined."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=[work], daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = error

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def join(self) -> None:
        self._thread.join(120)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error


def test_a_mount_from_before(repo: api.Repository, mounted: Any) -> None:
    """A session that had the old packs open reads on, and sees what others captured since, also of the past."""
    newest = with_history(repo, 5)
    done = mounted("agent-1")
    assert (done.mountpoint / "dir" / "f0").read_text() == newest["f0"]
    collected = repo.collect(before_ns=time.time_ns()).objects
    assert collected.packs_after == 1

    found = {path.name: path.read_text() for path in (done.mountpoint / "dir").iterdir()}
    assert newest == found
    (done.mountpoint / "dir" / "f1").write_text("by the agent\n")
    repo.capture(message="by the agent", thread="agent-1")
    repo.collect(before_ns=time.time_ns())
    assert (done.mountpoint / "dir" / "f1").read_text() == "by the agent\n"
    assert repo.fsck(full=True).problems == []


def test_reading_and_capturing_while_collecting(repo: api.Repository, mounted: Any) -> None:
    """Two mounts capture and one reads, cold again and again, while collections drop all that nothing needs."""
    newest = with_history(repo, 4)
    agents = {name: mounted(name).mountpoint for name in ("agent-1", "agent-2")}
    wrote: dict[str, list[str]] = {name: [] for name in agents}

    def capture(name: str, place: Path) -> None:
        mine = heddle.open(place)
        for version in range(ROUNDS):
            content = f"{name} {version}\n" * 500
            (place / "dir" / f"{name}.txt").write_text(content)
            (place / "dir" / f"f{version}").write_text(text(version, 100 + version))
            mine.capture(message=f"{name} {version}")
            wrote[name].append(content)

    def read() -> None:
        for _ in range(ROUNDS):
            reader = heddle.open(repo.path)
            for commit in reader.log("main"):
                tree = {n: i for n, _, i in reader.store.tree_entries(commit.tree)}[b"dir"]
                for _, _, object_id in reader.store.tree_entries(tree):
                    reader.store.get_raw(object_id)
            reader.close()

    working = [Failing(lambda n=name, p=place: capture(n, p)) for name, place in agents.items()]  # type: ignore[misc]
    working.append(Failing(read))
    rounds = 0
    while any(each.is_alive() for each in working):
        repo.collect(before_ns=time.time_ns())
        rounds += 1
    for each in working:
        each.join()
    repo.collect(before_ns=time.time_ns())

    assert rounds > 1
    assert repo.fsck(full=True).problems == []
    for name, place in agents.items():
        states = [each for each in repo.log(name) if each.message.startswith(name)]
        for state, content in zip(states, reversed(wrote[name]), strict=True):
            _, object_id = repo.lookup_path(state.id, b"dir/%s.txt" % name.encode())
            assert repo.store.get_raw(object_id)[1].decode() == content
        expected = newest | {
            f"f{version}": text(version, 100 + version) for version in range(ROUNDS)
        }
        expected[f"{name}.txt"] = wrote[name][-1]
        assert expected == {path.name: path.read_text() for path in (place / "dir").iterdir()}


def test_a_mount_of_a_state_without_a_name(repo: api.Repository, mounted: Any) -> None:
    """A state that only a read-only mount shows, given by its id, stays as long as the mount does."""
    with repo.store.writer() as writer:
        tree = writer.add_tree([(b"only", 0o100644, writer.add_blob(b"here"))])
        raw = b"tree %s\nauthor A <a> 0 +0000\ncommitter A <a> 0 +0000\n\nm\n" % tree
        state = writer.add(1, raw)
        writer.commit()
    done = mounted(state.decode(), read_only=True)
    wait_until(lambda: bool(repo.database.mounts()), "the row of the mount")
    assert repo.collect(before_ns=time.time_ns()).objects.dropped == 0

    assert (done.mountpoint / "only").read_bytes() == b"here"
    repo.unmount(done.mountpoint)
    assert repo.collect(before_ns=time.time_ns()).objects.dropped == 3
