"""Hung, slow and dead are told apart, and nobody who asks hangs: a disk that stops answering below a session.

The disk is a file with ext4 on it; freezing it (FIFREEZE, ioctl_fsfreeze(2)) lets everything wait that would change it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from world import wait_until

import heddle
from heddle import api
from heddle.mount import waits

FIFREEZE, FITHAW = 0xC0045877, 0xC0045878
DEADLINE_S = 60.0


class Disk:
    """A small disk that can be stopped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.frozen = False
        self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)

    def freeze(self) -> None:
        """Stop it; not for ever, since whoever waits for it could not be ended."""
        fcntl.ioctl(self._descriptor, FIFREEZE, 0)
        self.frozen = True
        self._limit = threading.Timer(DEADLINE_S, self.thaw)
        self._limit.start()

    def thaw(self) -> None:
        if self.frozen:
            self.frozen = False
            self._limit.cancel()
            fcntl.ioctl(self._descriptor, FITHAW, 0)

    def break_down(self) -> None:
        """Let the file system meet an error of its own, on which it makes itself read-only."""
        device = os.path.realpath(f"/sys/dev/block/{_numbers(self.path)}")
        Path("/sys/fs/ext4", os.path.basename(device), "trigger_fs_error").write_text("test\n")

    def close(self) -> None:
        os.close(self._descriptor)


def _numbers(path: Path) -> str:
    device = os.stat(path).st_dev
    return f"{os.major(device)}:{os.minor(device)}"


@pytest.fixture
def disk(tmp_path: Path, nothing_left: None) -> Iterator[Disk]:
    """An ext4 of 64 MiB, thawed and unmounted after the test."""
    if os.geteuid() != 0:
        pytest.fail("a disk of one's own needs root: run this file with sudo", pytrace=False)
    image, path = tmp_path / "image", tmp_path / "disk"
    with open(image, "wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=0", image], check=True)
    path.mkdir()
    subprocess.run(["mount", "-o", "loop,errors=remount-ro", image, path], check=True)
    disk = Disk(path)
    yield disk
    disk.thaw()
    disk.close()
    subprocess.run(["umount", path], check=True)


@pytest.fixture
def repo(disk: Disk) -> Iterator[api.Repository]:
    """A repository on that disk, in place of the common one."""
    made = heddle.init(disk.path / "repo")
    yield made
    made.close()


class Writing:
    """A program that writes a file in a mount, and may have to wait."""

    def __init__(self, path: Path) -> None:
        program = "import sys; open(sys.argv[1], 'w').write('written all the same')"
        self._process = subprocess.Popen([sys.executable, "-c", program, path])

        self.pid = self._process.pid

    def result(self) -> int:
        return self._process.wait(DEADLINE_S)


def timed(cli: Any, *words: str, **options: Any) -> tuple[Any, float]:
    began = time.monotonic()
    ran = cli(*words, **options)
    return ran, time.monotonic() - began


def test_a_stalled_disk_is_told_and_nothing_hangs(
    repo: api.Repository, mounted: Any, disk: Disk, cli: Any, tmp_path: Path
) -> None:
    """mounts says hung, what waits for what and since when; status refuses, doctor names the disk; then all goes on."""
    done = mounted("agent-1", tmp_path / "place")
    (done.mountpoint / "before").write_text("before")
    (_healthy, healthy_s) = timed(cli, "mounts")
    disk.freeze()
    began = time.time()
    writing = Writing(done.mountpoint / "note")
    found = {}

    def is_hung() -> bool:
        found.update(cli("mounts", "--json").json["mounts"][0])
        return bool(found["state"] == "hung")

    wait_until(is_hung, "the session to be seen to hang")
    (ran, mounts_s) = timed(cli, "mounts")
    (refused, status_s) = timed(cli, "-q", "status", code=75)
    (report, doctor_s) = timed(cli, "doctor", "--json", code=1)
    inside = cli("-C", done.mountpoint, "mounts", "--json").json["mounts"]
    disk.thaw()

    assert writing.result() == 0
    assert (done.mountpoint / "note").read_text() == "written all the same"
    assert found["reason"].startswith("create waits for the disk since ")
    assert time.strftime("%Y-%m-%d %H:%M", time.localtime(began)) in found["reason"]
    assert ran.stdout.startswith("hung  agent-1") and found["reason"] in ran.stdout
    assert "does not answer" in refused.stderr and "hint: heddle doctor" in refused.stderr
    checks = {it["check"]: it["what"] for it in report.json["checks"] if it["level"] == "wrong"}
    assert {"disk", "sessions"} <= checks.keys() and "create waits" in checks["sessions"]
    assert [it["state"] for it in inside] == ["hung"]
    assert max(mounts_s, status_s, doctor_s) < DEADLINE_S / 3 + 3 * healthy_s

    wait_until(lambda: [it.state for it in repo.mounts()] == ["live"], "the session to go on")
    assert [it.pid for it in repo.mounts()] == [done.pid]
    assert repo.capture(message="m", thread="agent-1").added == 2


def test_an_idle_session_on_a_stalled_disk(
    repo: api.Repository, mounted: Any, disk: Disk, cli: Any, tmp_path: Path
) -> None:
    """A session that nobody asks anything is live, its disk is said not to answer, and status does not hang."""
    done = mounted("agent-1", tmp_path / "place")
    disk.freeze()
    ran = cli("mounts")
    cli("-q", "status", code=75)
    cli("-C", done.mountpoint, "status", code=75)
    disk.thaw()

    assert ran.stdout.startswith("live  agent-1")
    assert "does not answer" in ran.stderr
    assert "nothing changed" in cli("-C", done.mountpoint, "status").stdout


def test_a_dead_session_on_a_stalled_disk(
    repo: api.Repository, mounted: Any, disk: Disk, cli: Any, tmp_path: Path
) -> None:
    """A session that was killed is stale whatever its disk does, and comes back when the disk does."""
    done = mounted("agent-1", tmp_path / "place")
    (done.mountpoint / "note").write_text("saved")
    disk.freeze()
    os.kill(done.pid, signal.SIGKILL)

    def state() -> str:
        return str(cli("mounts", "--json").json["mounts"][0]["state"])

    wait_until(lambda: state() == "stale", "the session to be dead")
    disk.thaw()
    wait_until(lambda: state() == "live", "the mount to come back")
    assert (done.mountpoint / "note").read_text() == "saved"


def test_a_stalled_fsync_is_seen(
    repo: api.Repository, mounted: Any, disk: Disk, cli: Any, tmp_path: Path
) -> None:
    """An operation that waits in a thread beside the loop is told as well; what needs no disk is still served."""
    done = mounted("agent-1", tmp_path / "place")
    with open(done.mountpoint / "f", "wb", buffering=0) as file:
        file.write(b"x" * 100_000)
        os.fsync(file.fileno())
        file.write(b"y" * 100_000)
        disk.freeze()
        waiting = threading.Thread(target=os.fsync, args=(file.fileno(),))
        waiting.start()
        wait_until(lambda: api.mounts_around(repo.path)[0].state == "hung", "the wait to be seen")
        [info] = api.mounts_around(repo.path)
        disk.thaw()
        waiting.join()

    assert info.waits and info.reason is not None and "waits for the disk" in info.reason
    assert (done.mountpoint / "f").stat().st_size == 200_000


def test_work_is_not_a_hang(repo: api.Repository, mounted: Any, disk: Disk) -> None:
    """While a session hashes, stores and syncs what is large, it is live each time that somebody asks."""
    done = mounted("agent-1")
    for number in range(10):
        (done.mountpoint / str(number)).write_bytes(os.urandom(1 << 20) * 2)
    states: list[str] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            states.extend(it.state for it in api.mounts_around(repo.path))

    asking = threading.Thread(target=ask)
    asking.start()
    repo.capture(message="m", thread="agent-1")
    over.set()
    asking.join()

    assert states and set(states) == {"live"}


def test_a_session_that_leaves_no_time_to_answer(
    repo: api.Repository, mounted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that computes instead of answering works slowly; one that does nothing at all hangs."""
    done = mounted("agent-1")
    monkeypatch.setattr("heddle.mount.control.ping_all", lambda paths, *_rest, **_more: [None])
    [idle] = repo.mounts()
    end = threading.Event()

    def keep_busy() -> None:
        while not end.is_set():
            os.listdir(done.mountpoint)
            for number in range(50):
                (done.mountpoint / str(number)).touch()

    def look(_paths: Any, *_rest: Any, **_more: Any) -> list[None]:
        end.wait(0.3)
        return [None]

    monkeypatch.setattr("heddle.mount.control.ping_all", look)
    busy = threading.Thread(target=keep_busy)
    busy.start()
    [working] = repo.mounts()
    end.set()
    busy.join()

    assert (idle.state, idle.reason) == ("hung", "it does not answer")
    assert (working.state, working.reason) == ("live", None)


def test_a_stopped_session_says_so(repo: api.Repository, mounted: Any) -> None:
    """SIGSTOP: hung, because its process is stopped."""
    done = mounted("agent-1")
    os.kill(done.pid, signal.SIGSTOP)
    [info] = repo.mounts()
    os.kill(done.pid, signal.SIGCONT)

    assert (info.state, info.reason) == ("hung", "its process is stopped")


def test_a_store_on_a_server_that_hangs(repo: api.Repository, mounted: Any, tmp_path: Path) -> None:
    """A thread that waits for another FUSE server, asleep for the kernel, is seen to wait for a file system."""
    done = mounted("agent-1")
    os.listdir(done.mountpoint)
    os.kill(done.pid, signal.SIGSTOP)
    writing = Writing(done.mountpoint / "f")

    def where() -> str | None:
        found = waits.look(writing.pid, writing.pid)
        return found and found.where

    wait_until(lambda: where() == "request_wait_answer", "the program to wait")
    os.kill(done.pid, signal.SIGCONT)
    assert writing.result() == 0


def test_threads_that_wait_for_each_other_are_not_stuck() -> None:
    """A thread that waits for a lock or for the network, or computes, is not taken for one that waits for a disk."""
    begun, end = threading.Barrier(4), threading.Event()
    near, far = socket.socketpair()
    ids: list[int] = []

    def wait() -> None:
        ids.append(threading.get_native_id())
        begun.wait()
        end.wait()

    def compute() -> None:
        ids.append(threading.get_native_id())
        begun.wait()
        while not end.is_set():
            pass

    def receive() -> None:
        ids.append(threading.get_native_id())
        begun.wait()
        near.recv(1)

    threads = [threading.Thread(target=it) for it in (wait, compute, receive)]
    for thread in threads:
        thread.start()
    begun.wait()
    watch = waits.Watch(os.stat("/").st_dev, ids)
    long_ago = time.monotonic() - 3600
    stuck = watch.stuck(dict.fromkeys(ids, ("work", long_ago)))
    end.set()
    far.send(b"x")
    for thread in threads:
        thread.join()
    near.close()
    far.close()

    assert stuck is None


# a disk that fails


def test_a_disk_that_turns_read_only(
    repo: api.Repository, mounted: Any, disk: Disk, cli: Any, tmp_path: Path
) -> None:
    """Programs get EROFS, what is there can be read, doctor names it, the session lives."""
    done = mounted("agent-1", tmp_path / "place")
    (done.mountpoint / "before").write_text("before")
    disk.break_down()
    for number in range(20):
        with pytest.raises(OSError) as caught:
            (done.mountpoint / f"new-{number}").touch()
        assert caught.value.errno in (errno.EROFS, errno.EIO)

    assert (done.mountpoint / "before").read_text() == "before"
    assert [it["state"] for it in cli("mounts", "--json").json["mounts"]] == ["live"]
    wrong = [it for it in cli("doctor", "--json", code=1).json["checks"] if it["level"] == "wrong"]
    assert any("Read-only" in it["what"] for it in wrong), wrong


def test_an_upper_that_was_removed(
    repo: api.Repository, mounted: Any, cli: Any, tmp_path: Path
) -> None:
    """Programs get an error for what can't be kept, the log says it once, doctor names it, the session lives."""
    import shutil

    done = mounted("agent-1", tmp_path / "place")
    (done.mountpoint / "before").write_text("before")
    shutil.rmtree(repo.heddle_dir / "overlays" / "agent-1" / "upper")
    for number in range(20):
        with pytest.raises(OSError):
            (done.mountpoint / f"new-{number}").touch()

    assert [it["state"] for it in cli("mounts", "--json").json["mounts"]] == ["live"]
    wrong = [it for it in cli("doctor", "--json", code=1).json["checks"] if it["level"] == "wrong"]
    assert "upper" in {it["check"] for it in wrong}
    assert done.log.read_text().count("the file system below") == 1
    cli("unmount", "agent-1")
    again = mounted("agent-1")
    (again.mountpoint / "new").write_text("works again")
    assert repo.capture(message="m", thread="agent-1").added == 1
