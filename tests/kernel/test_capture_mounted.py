"""Capturing what a mount holds: from inside, from outside, live or not, with bytes that are still in the kernel."""

from __future__ import annotations

import mmap
import os
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from world import wait_until

import heddle
from heddle import api
from heddle.errors import (
    DataError,
    NoPrincipal,
    NothingToCapture,
    NotMounted,
    ThreadMoved,
    ThreadNotFound,
)


def content(repo: api.Repository, spec: str, path: bytes) -> bytes:
    """What a state holds at a path."""
    _mode, object_id = repo.lookup_path(spec, path)
    return b"".join(repo.store.iter_blob(object_id))


def names(repo: api.Repository, spec: str) -> list[bytes]:
    return [name for name, _mode, _id in repo.store.tree_entries(repo.state(spec).tree)]


def test_capture_from_outside_and_inside(repo: api.Repository, mounted: Any) -> None:
    """Named by its thread or opened by a path in it, a live mount is captured the same way."""
    done = mounted("agent-1")
    (done.mountpoint / "a").write_text("1")
    first = repo.capture(message="outside", thread="agent-1")
    (done.mountpoint / "a").write_text("2")
    (done.mountpoint / "b").write_text("3")
    second = heddle.open(done.mountpoint).capture(message="inside")

    assert (first.added, first.modified, first.deleted) == (1, 0, 0)
    assert (second.added, second.modified, second.deleted) == (1, 1, 0)
    assert second.state.parents == (first.state.id,)
    assert second.state.thread == "agent-1"
    assert repo.threads.get("agent-1").state == second.state.id
    assert content(repo, "agent-1", b"a") == b"2"
    assert repo.overlay_base("agent-1") == second.state.id


def test_nothing_to_capture(repo: api.Repository, mounted: Any) -> None:
    """A mount without changes is refused, across the socket, unless an empty state is wanted."""
    mounted("agent-1")
    with pytest.raises(NothingToCapture) as caught:
        repo.capture(message="m", thread="agent-1")
    empty = repo.capture(message="m", thread="agent-1", allow_empty=True)

    assert caught.value.exit_code == 65
    assert (empty.added, empty.modified, empty.deleted) == (0, 0, 0)


def test_status_is_empty_after_a_capture(repo: api.Repository, mounted: Any) -> None:
    """Before the capture the status names what changed; after it nothing, and open files still work."""
    done = mounted("agent-1")
    inside = heddle.open(done.mountpoint)
    with open(done.mountpoint / "log", "w") as file:
        file.write("one\n")
        file.flush()
        before = inside.status()
        inside.capture(message="m")
        after = inside.status()
        file.write("two\n")

    assert [(it.path, it.kind) for it in before.changes] == [(b"log", "added")]
    assert (list(after.changes), after.state) == ([], repo.threads.get("agent-1").state)
    assert (before.thread, before.mountpoint) == ("agent-1", done.mountpoint)
    assert (done.mountpoint / "log").read_text() == "one\ntwo\n"
    assert [(it.path, it.kind) for it in inside.status().changes] == [(b"log", "modified")]


def test_unsynced_bytes_of_open_files_are_captured(repo: api.Repository, mounted: Any) -> None:
    """What programs wrote to files that are open and not synced is in the state, byte for byte."""
    done = mounted("agent-1")
    blocks = {f"f{number}": os.urandom(300_000) for number in range(3)}
    with ExitStack() as stack:
        for name, block in blocks.items():
            stack.enter_context(open(done.mountpoint / name, "wb", buffering=0)).write(block)
        repo.capture(message="m", thread="agent-1")

    assert {name: content(repo, "agent-1", name.encode()) for name in blocks} == blocks


def test_a_shared_mapping_is_captured(repo: api.Repository, mounted: Any) -> None:
    """Bytes changed through a shared mapping whose descriptor is closed are in the state."""
    done = mounted("agent-1")
    (done.mountpoint / "m").write_bytes(b"-" * 8192)
    with open(done.mountpoint / "m", "r+b") as file:
        mapping = mmap.mmap(file.fileno(), 8192)
    with mapping:
        mapping[5000:5005] = b"12345"
        repo.capture(message="m", thread="agent-1")

    assert content(repo, "agent-1", b"m")[4998:5007] == b"--12345--"


def test_unsynced_bytes_are_in_status_and_diff(repo: api.Repository, mounted: Any) -> None:
    """A captured file that is open for writing and not synced shows as changed, with the bytes that programs see."""
    done = mounted("agent-1")
    (done.mountpoint / "f").write_text("old\n")
    repo.capture(message="m", thread="agent-1")
    inside = heddle.open(done.mountpoint)
    with open(done.mountpoint / "f", "w") as file:
        file.write("new\n")
        file.flush()
        changes = inside.status().changes
        patch = b"".join(it.patch for it in inside.diff())

    assert [(it.path, it.kind) for it in changes] == [(b"f", "modified")]
    assert b"-old\n+new\n" in patch


def test_a_file_nobody_may_open_is_told(repo: api.Repository, mounted: Any) -> None:
    """An open file without any permission is captured all the same when we are root."""
    done = mounted("agent-1")
    with open(done.mountpoint / "f", "wb", buffering=0) as file:
        file.write(b"secret")
        os.fchmod(file.fileno(), 0)
        captured = repo.capture(message="m", thread="agent-1")

    assert content(repo, "agent-1", b"f") == b"secret"
    assert captured.added == 1


def test_capture_of_some_paths(repo: api.Repository, mounted: Any) -> None:
    """Only what was asked for is recorded; the rest stays unsaved."""
    done = mounted("agent-1")
    (done.mountpoint / "a").write_text("1")
    (done.mountpoint / "b").write_text("2")
    repo.capture(message="m", thread="agent-1", paths=[b"a"])

    assert names(repo, "agent-1") == [b"a"]
    assert [it.path for it in heddle.open(done.mountpoint).status().changes] == [b"b"]


def test_names_that_are_no_utf8_cross_the_socket(repo: api.Repository, mounted: Any) -> None:
    """Any name survives status, diff and a capture of that path."""
    done = mounted("agent-1")
    name = b"caf\xe9 \xff\n"
    with open(os.path.join(os.fsencode(done.mountpoint), name), "wb") as file:
        file.write(b"x")
    inside = heddle.open(done.mountpoint)
    assert [it.path for it in inside.status().changes] == [name]
    assert [it.path for it in inside.diff()] == [name]

    inside.capture(message="m", paths=[name])
    assert names(repo, "agent-1") == [name]


def test_a_long_status_crosses_the_socket(repo: api.Repository, mounted: Any) -> None:
    """A status of thousands of paths comes whole, in parts."""
    done = mounted("agent-1")
    for number in range(2500):
        (done.mountpoint / f"{number:05}-{'x' * 200}").touch()
    changes = heddle.open(done.mountpoint).status().changes

    assert len(changes) == 2500
    assert changes[0].path.startswith(b"00000-")
    assert changes[-1].path.startswith(b"02499-")


def test_what_can_not_be_recorded_is_listed(repo: api.Repository, mounted: Any) -> None:
    """A fifo is left where it is and named with the reason."""
    done = mounted("agent-1")
    (done.mountpoint / "f").write_text("x")
    os.mkfifo(done.mountpoint / "pipe")
    captured = repo.capture(message="m", thread="agent-1")

    assert [it.path for it in captured.not_recorded] == [b"pipe"]
    assert names(repo, "agent-1") == [b"f"]
    assert (done.mountpoint / "pipe").is_fifo()


def test_capture_without_a_session(repo: api.Repository, mounted: Any) -> None:
    """An unmounted thread's overlay is captured from disk; its next mount has nothing unsaved."""
    done = mounted("agent-1")
    (done.mountpoint / "f").write_text("x")
    repo.unmount("agent-1")
    captured = repo.capture(message="m", thread="agent-1")
    again = mounted("agent-1")

    assert captured.added == 1
    assert (again.mountpoint / "f").read_text() == "x"
    assert list(heddle.open(again.mountpoint).status().changes) == []


def test_threads_that_can_not_be_captured(repo: api.Repository) -> None:
    """A thread that is not there and one that was never mounted are clear errors."""
    repo.threads.create("agent-1", None)
    with pytest.raises(ThreadNotFound):
        repo.capture(message="m", thread="nobody")
    with pytest.raises(NotMounted, match="never been mounted"):
        repo.capture(message="m", thread="agent-1")


def test_a_read_only_mount_is_not_captured(
    repo: api.Repository, mounted: Any, tmp_path: Path
) -> None:
    """From inside a read-only mount of a state there is nothing to capture, and it says why."""
    done = mounted("agent-1")
    (done.mountpoint / "f").write_text("x")
    repo.capture(message="m", thread="agent-1")
    state = repo.threads.get("agent-1").state
    assert state is not None
    shown = mounted(state.decode(), tmp_path / "shown", read_only=True)
    inside = heddle.open(shown.mountpoint)

    with pytest.raises(DataError, match="read-only"):
        inside.capture(message="m")
    status = inside.status()
    assert (list(status.changes), status.state, status.thread) == ([], state, state.decode())
    assert list(inside.diff()) == []


def test_two_captures_at_once(repo: api.Repository, mounted: Any) -> None:
    """Two captures of one mount at the same time: both are states, or one finds nothing left; none is lost."""
    done = mounted("agent-1")
    (done.mountpoint / "f").write_text("x")
    results: list[str] = []

    def capture() -> None:
        try:
            heddle.open(repo.path).capture(message="m", thread="agent-1")
            results.append("captured")
        except NothingToCapture:
            results.append("nothing")

    threads = [threading.Thread(target=capture) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(results) == ["captured", "nothing", "nothing", "nothing"]
    assert len(list(repo.log("agent-1"))) == 1


def test_writing_goes_on_during_a_capture(repo: api.Repository, mounted: Any) -> None:
    """Programs that write while captures run lose nothing: the last capture has their last bytes."""
    done = mounted("agent-1")
    stop = threading.Event()
    last: list[int] = []

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            temporary = done.mountpoint / "tmp"
            temporary.write_text(str(number))
            temporary.rename(done.mountpoint / "counter")
        last.append(number)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        wait_until((done.mountpoint / "counter").exists, "the first number")
        for _ in range(10):
            repo.capture(message="m", thread="agent-1", allow_empty=True)
    finally:
        stop.set()
        writer.join()
    repo.capture(message="last", thread="agent-1", allow_empty=True)

    assert content(repo, "agent-1", b"counter") == str(last[0]).encode()


# who it is recorded for


def test_attribution_is_the_capturing_commands(
    repo: api.Repository, mounted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The capturing environment counts, not the session's; then the mount's defaults; a flag beats both."""
    done = mounted("agent-1", agent={"agent.provider": "mounted", "agent.model": "default"})
    inside = heddle.open(done.mountpoint)

    def made_by(number: int, **options: Any) -> str:
        (done.mountpoint / "f").write_text(str(number))
        return str(inside.capture(message="m", **options).state.agent)

    assert made_by(1) == "mounted/default"
    monkeypatch.setenv("HEDDLE_AGENT_MODEL", "from-environment")
    assert made_by(2) == "mounted/from-environment"
    assert made_by(3, flags={"agent.provider": "flag"}) == "flag/from-environment"
    assert made_by(4, no_agent=True) == "None"
    assert inside.attribution().sources["agent.provider"].source == "mount"


def test_defaults_of_a_mount_survive_its_session(
    repo: api.Repository, mounted: Any, no_restarts: None
) -> None:
    """A dead session's mount still knows who was said to work there."""
    import signal

    from heddle.mount.process import ProcessIdentity

    done = mounted("agent-1", agent={"agent.provider": "p", "agent.model": "m"})
    (done.mountpoint / "f").write_text("x")
    identity = ProcessIdentity.of(done.pid)
    assert identity is not None
    identity.signal(signal.SIGKILL)
    assert identity.wait(10)

    assert str(repo.capture(message="m", thread="agent-1").state.agent) == "p/m"


def test_without_a_principal_nothing_is_captured(
    repo: api.Repository, mounted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody answers for it: refused before the session is asked; the work stays unsaved."""
    done = mounted("agent-1")
    (done.mountpoint / "f").write_text("x")
    monkeypatch.delenv("HEDDLE_PRINCIPAL_NAME")
    with pytest.raises(NoPrincipal):
        repo.capture(message="m", thread="agent-1")

    assert repo.threads.get("agent-1").state is None


# a thread that others move


def test_a_capture_of_a_thread_that_was_moved(repo: api.Repository, mounted: Any) -> None:
    """Somebody else moved the thread: the mount's capture is refused with what to do, nothing is lost."""
    done = mounted("agent-1")
    (done.mountpoint / "f").write_text("mine")
    other = mounted("other")
    (other.mountpoint / "g").write_text("theirs")
    theirs = repo.capture(message="m", thread="other").state
    repo.publish(
        thread="agent-1",
        expected=None,
        new=theirs.id,
        kind="merge",
        message="m",
        attribution=repo.attribution(),
    )
    with pytest.raises(ThreadMoved) as caught:
        repo.capture(message="m", thread="agent-1")

    assert caught.value.exit_code == 75
    assert caught.value.hint is not None
    assert (done.mountpoint / "f").read_text() == "mine"


def test_a_mount_follows_its_thread(repo: api.Repository, mounted: Any) -> None:
    """A clean mount whose thread is moved by a capture in the working directory shows the new state at once."""
    (repo.path / "f").write_text("1\n")
    repo.capture(message="one")
    done = mounted("main", create=False)
    assert (done.mountpoint / "f").read_text() == "1\n"
    (repo.path / "f").write_text("22\n")
    (repo.path / "g").write_text("new\n")
    assert not (done.mountpoint / "g").exists()
    with open(done.mountpoint / "f") as reading:
        repo.capture(message="two")
        assert (done.mountpoint / "f").read_text() == "22\n"
        assert reading.read() in ("1\n", "22\n")

    assert (done.mountpoint / "f").read_text() == "22\n"
    assert sorted(os.listdir(done.mountpoint)) == ["f", "g"]
    assert list(heddle.open(done.mountpoint).status().changes) == []


def test_a_file_that_became_a_directory_elsewhere(repo: api.Repository, mounted: Any) -> None:
    """The directory above has one more link, also where the kernel had never heard of the name."""
    (repo.path / "f").write_text("1\n")
    repo.capture(message="one")
    place = mounted("main", create=False).mountpoint
    before = place.stat().st_nlink
    (repo.path / "f").unlink()
    (repo.path / "f").mkdir()
    (repo.path / "f" / "g").write_text("2\n")
    repo.capture(message="two")

    assert place.stat().st_nlink == before + 1
    assert (place / "f" / "g").read_text() == "2\n"


# crashes of the session on the way


@pytest.mark.parametrize("point", ["overlay.prestored", "overlay.tree-built", "overlay.captured"])
def test_a_session_that_dies_during_a_capture(
    repo: api.Repository, mounted: Any, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """Killed on the way, before or after the commit point: the work is captured or unsaved, never neither."""
    monkeypatch.setenv("HEDDLE_FAULT", point)
    done = mounted("agent-1")
    monkeypatch.delenv("HEDDLE_FAULT")
    (done.mountpoint / "f").write_text("x")
    with pytest.raises(heddle.errors.StaleMount):
        repo.capture(message="m", thread="agent-1")
    committed = repo.threads.get("agent-1").state is not None
    again = mounted("agent-1")

    assert committed == (point == "overlay.captured")
    assert (again.mountpoint / "f").read_text() == "x"
    assert again.recovered is not None
    assert again.recovered.files == (0 if committed else 1)
