"""A session that crashed is started again at its place, unless somebody does something else about it first.

And not for ever: what crashes again and again stays down, and says so.
"""

from __future__ import annotations

import errno
import inspect
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from world import processes_of, sessions_of, supervisors_of, wait_until

from heddle import api
from heddle.errors import ThreadNotFound
from heddle.mount import control, mountinfo, supervisor
from heddle.mount.process import ProcessIdentity


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """End a process and wait until it is gone."""
    identity = ProcessIdentity.of(pid)
    assert identity is not None
    os.kill(pid, number)
    assert identity.wait(10)


def is_live(place: Path) -> bool:
    try:
        os.listdir(place)
    except OSError as error:
        assert error.errno in (errno.ENOTCONN, errno.ECONNABORTED), error
        return False
    return mountinfo.topmost(mountinfo.heddle_mounts(), place) is not None


def listed(repo: api.Repository) -> dict[str, str]:
    return {it.spec: it.state for it in repo.mounts()}


def pid_of(repo: api.Repository, thread: str = "agent-1") -> int:
    [pid] = [it.pid for it in repo.mounts() if it.thread == thread]
    assert pid is not None
    return pid


@pytest.fixture
def crashed(mounted: Any, tmp_path: Path) -> Any:
    """A mount whose session was just killed, with one unsaved file of five bytes."""
    done = mounted("agent-1", tmp_path / "place")
    (done.mountpoint / "note").write_text("saved")
    kill(done.pid)
    return done


def supervisors_gone(tmp_path: Path, but: int = 0) -> None:
    wait_until(lambda: len(supervisors_of(tmp_path)) == but, "the supervisor to end")


# started again


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_live_again_within_a_second(
    repo: api.Repository, mounted: Any, tmp_path: Path, number: signal.Signals
) -> None:
    """Whatever kills a session, its mount is live at the same place within a second, with all that was closed."""
    done = mounted("agent-1", tmp_path / "place")
    (done.mountpoint / "note").write_text("saved")
    (done.mountpoint / "dir").mkdir()
    began = time.monotonic()
    kill(done.pid, number)
    wait_until(lambda: is_live(done.mountpoint), "the mount to come back")
    took_s = time.monotonic() - began

    assert (done.mountpoint / "note").read_text() == "saved"
    assert sorted(os.listdir(done.mountpoint)) == ["dir", "note"]
    assert listed(repo) == {"agent-1": "live"}
    assert pid_of(repo) != done.pid
    assert took_s < 1.0 or os.getloadavg()[0] > os.cpu_count(), took_s  # type: ignore[operator]


def test_old_handles_are_told_and_new_ones_work(mounted: Any, tmp_path: Path) -> None:
    """What was open when the session crashed gets ENOTCONN, for ever; what is opened afterwards works."""
    done = mounted("agent-1", tmp_path / "place")
    old = os.open(done.mountpoint / "old", os.O_CREAT | os.O_WRONLY)
    directory = os.open(done.mountpoint, os.O_RDONLY | os.O_DIRECTORY)
    os.write(old, b"written")
    os.fsync(old)
    kill(done.pid)
    wait_until(lambda: is_live(done.mountpoint), "the mount to come back")

    for call in (
        lambda: os.fsync(old),
        lambda: os.listdir(directory),
        lambda: os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=directory),
        lambda: os.close(old),
    ):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.ENOTCONN
    os.close(directory)

    assert (done.mountpoint / "old").read_bytes() == b"written"
    (done.mountpoint / "new").write_text("works")


def test_mount_says_what_was_recovered_once(repo: api.Repository, crashed: Any) -> None:
    """After an automatic restart, mount says already mounted, and once what had been unsaved."""
    wait_until(lambda: is_live(crashed.mountpoint), "the mount to come back")
    first, second = repo.mount("agent-1"), repo.mount("agent-1")

    assert (first.already_mounted, second.already_mounted) == (True, True)
    assert first.recovered is not None
    assert (first.recovered.files, first.recovered.bytes) == (1, 5)
    assert second.recovered is None


def test_a_session_whose_loop_ends(repo: api.Repository, mounted: Any, tmp_path: Path) -> None:
    """A session that ends by itself while its mount is there has crashed as well."""
    done = mounted("agent-1")
    (done.mountpoint / "f").write_text("x")
    [socket] = repo.runtime.path.glob("*.sock")
    control.call(socket, "stop")
    wait_until(lambda: done.pid not in sessions_of(tmp_path), "the session to end")
    wait_until(lambda: is_live(done.mountpoint), "the mount to come back")

    assert (done.mountpoint / "f").read_text() == "x"


def test_everything_about_a_mount_stays(repo: api.Repository, mounted: Any, tmp_path: Path) -> None:
    """Options and attribution defaults of a mount outlive the crash; a directory made for it still goes with it."""
    place = tmp_path / "place"
    done = mounted("agent-1", place, allow_other=True, agent={"agent.model": "m"})
    kill(done.pid)
    wait_until(lambda: is_live(place), "the mount to come back")
    wait_until(lambda: [it.pid for it in repo.database.mounts()] == [pid_of(repo)], "the row")
    [row] = repo.database.mounts()
    (place / "f").write_text("x")

    assert (row.allow_other, row.made_mountpoint, row.agent) == (True, True, {"agent.model": "m"})
    repo.unmount("agent-1")
    assert not place.exists()


def test_a_read_only_mount_shows_the_same_state(
    repo: api.Repository, mounted: Any, tmp_path: Path
) -> None:
    """A read-only mount comes back with the state that it showed, also when its spec means another one by now."""
    work = mounted("one")
    (work.mountpoint / "f").write_text("1")
    repo.capture(message="first", thread="one")
    shown = mounted("one", tmp_path / "shown", read_only=True)
    (work.mountpoint / "f").write_text("2")
    repo.capture(message="second", thread="one")
    kill(shown.pid)
    wait_until(lambda: is_live(shown.mountpoint), "the mount to come back")

    assert (shown.mountpoint / "f").read_text() == "1"
    with pytest.raises(OSError, match="Read-only"):
        (shown.mountpoint / "g").touch()


def test_a_capture_of_what_a_crash_left_does_not_keep_it_down(
    repo: api.Repository, crashed: Any
) -> None:
    """A command that works on the dead mount's overlay only delays the restart."""
    captured = repo.capture(message="m", thread="agent-1")
    wait_until(lambda: is_live(crashed.mountpoint), "the mount to come back")

    assert captured.added == 1
    assert (crashed.mountpoint / "note").read_text() == "saved"
    assert repo.unmount("agent-1").unmounted[0].dirty.files == 0  # type: ignore[union-attr]


# whoever acts first has precedence


def test_right_after_a_crash_it_is_stale(repo: api.Repository, crashed: Any) -> None:
    """Until it comes back the mount is what it is: stale."""
    assert listed(repo) == {"agent-1": "stale"}


def test_mount_comes_first(
    repo: api.Repository, crashed: Any, mounted: Any, tmp_path: Path
) -> None:
    """A mount by hand recovers at once, elsewhere if it says so; the supervisor then stands down."""
    again = mounted("agent-1", tmp_path / "elsewhere")

    assert again.recovered is not None and again.recovered.files == 1
    supervisors_gone(tmp_path, but=1)
    assert listed(repo) == {"agent-1": "live"}
    assert (pid_of(repo), again.mountpoint) == (again.pid, tmp_path / "elsewhere")
    assert not crashed.mountpoint.exists()


@pytest.mark.parametrize("words", [{"target": "agent-1"}, {"stale": True}, {"force": True}])
def test_an_unmount_is_final(
    repo: api.Repository, crashed: Any, tmp_path: Path, words: dict[str, Any]
) -> None:
    """What is unmounted after a crash, in whichever way, is not mounted again."""
    repo.unmount(**words)
    wait_until(lambda: processes_of(tmp_path) == {}, "all processes to end")

    assert repo.mounts() == []
    assert not crashed.mountpoint.exists()


def test_umount_by_hand_is_final(repo: api.Repository, crashed: Any, tmp_path: Path) -> None:
    """umount -l of the dead mount: somebody wants it away."""
    subprocess.run(["umount", "-l", crashed.mountpoint], check=True)
    supervisors_gone(tmp_path)

    assert listed(repo) == {"agent-1": "stale"}
    assert os.listdir(crashed.mountpoint) == []
    repo.unmount(stale=True)


def test_a_repository_that_is_gone(repo: api.Repository, crashed: Any, tmp_path: Path) -> None:
    """Nothing is mounted of a repository that was moved away meanwhile, and nothing made at its old place."""
    repo.close()
    repo.path.rename(tmp_path / "moved")
    supervisors_gone(tmp_path)

    assert not repo.path.exists()
    assert not is_live(crashed.mountpoint)
    (tmp_path / "moved").rename(repo.path)
    repo.unmount(stale=True)


def test_a_thread_that_is_gone(repo: api.Repository, crashed: Any, tmp_path: Path) -> None:
    """A thread that was renamed meanwhile is not mounted under its old name, and who tries to is told the new one."""
    repo.threads.rename("agent-1", "agent-2")
    supervisors_gone(tmp_path)

    assert listed(repo) == {"agent-1": "stale"}
    with pytest.raises(ThreadNotFound) as caught:
        repo.mount("agent-1")
    hint = "agent-1 is now agent-2: heddle unmount --stale, then heddle mount agent-2"
    assert caught.value.hint == hint
    repo.unmount(stale=True)

    repo.threads.delete("agent-2", force=True)
    with pytest.raises(ThreadNotFound) as caught:
        repo.mount("agent-2")
    assert "heddle overlay list" in (caught.value.hint or "")


def test_a_killed_hung_session_stays_ended(
    repo: api.Repository, mounted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that heddle itself kills, because it hangs and the user says so, is not started again."""
    done = mounted("agent-1")
    os.kill(done.pid, signal.SIGSTOP)
    monkeypatch.setattr("heddle.mount.ending.wake", lambda _session: False)
    repo.unmount("agent-1", force=True)
    supervisors_gone(tmp_path)

    assert repo.mounts() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_end_is_no_crash(
    repo: api.Repository, mounted: Any, tmp_path: Path, number: signal.Signals
) -> None:
    """SIGTERM and SIGINT unmount, for good."""
    done = mounted("agent-1")
    os.kill(done.pid, number)
    wait_until(lambda: processes_of(tmp_path) == {}, "all processes to end")

    assert repo.mounts() == []


# not for ever


def test_four_crashes_in_five_minutes_are_too_many(
    repo: api.Repository, mounted: Any, cli: Any, tmp_path: Path
) -> None:
    """The fourth crash in five minutes is the last: it stays down, and everything says so and what to do."""
    done = mounted("agent-1", tmp_path / "place")
    for _ in range(3):
        kill(pid_of(repo))
        wait_until(lambda: is_live(done.mountpoint), "the mount to come back")
    kill(pid_of(repo), signal.SIGSEGV)
    supervisors_gone(tmp_path)

    [row] = cli("mounts", "--json").json["mounts"]
    assert (row["state"], row["gave_up"], len(row["crashes"])) == ("stale", True, 4)
    assert row["crashes"][-1]["how"] == "it was killed by SIGSEGV"
    commands = (["mounts"], ["status"], ["-C", done.mountpoint, "diff"])
    capture = ["capture", "--thread", "agent-1", "--allow-empty", "-m", "m"]
    for ran in [cli(*words) for words in (*commands, capture)]:
        said = ran.stdout + ran.stderr
        assert "heddle mount agent-1" in said, ran
        assert str(done.log) in said, ran
    log = done.log.read_text()
    assert [line.split()[2] for line in log.splitlines() if "heddle.mount.supervisor[" in line] == [
        *["WARNING"] * 3,
        "ERROR",
    ]
    again = mounted("agent-1")
    assert again.recovered is not None
    kill(again.pid)  # somebody mounted it again: the count begins anew
    wait_until(lambda: is_live(done.mountpoint), "the mount to come back")


def test_old_crashes_do_not_count(repo: api.Repository, mounted: Any, tmp_path: Path) -> None:
    """Crashes of more than five minutes ago are forgotten."""
    done = mounted("agent-1", tmp_path / "place")
    [path] = repo.runtime.path.glob("*.json")
    record = json.loads(path.read_text())
    long_ago = time.time_ns() - supervisor.WINDOW_NS
    path.write_text(json.dumps({**record, "crashes": [[long_ago, "long ago"]] * 5}))
    kill(done.pid)
    wait_until(lambda: is_live(done.mountpoint), "the mount to come back")

    [info] = repo.mounts()
    assert [crash.how for crash in info.crashes] == ["it was killed by SIGKILL"]


def test_never_when_the_settings_say_so(
    repo: api.Repository, mounted: Any, cli: Any, tmp_path: Path
) -> None:
    """With ``mount.restarts`` 0 a crashed session stays down; the setting counts for mounts that are there."""
    done = mounted("agent-1", tmp_path / "place")
    cli("config", "set", "mount.restarts", "0")
    kill(done.pid)
    supervisors_gone(tmp_path)

    [info] = repo.mounts()
    assert (info.state, info.gave_up) == ("stale", True)
    assert cli("config", "set", "mount.restarts", "often", code=64).stderr


# who supervises


def test_a_supervisor_costs_little(mounted: Any, tmp_path: Path) -> None:
    """A supervisor that waits has less than 5 MiB to itself, and nothing open but its pipe and /dev/null."""
    mounted("agent-1")
    [pid] = supervisors_of(tmp_path)
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    sizes = {line.split()[0]: int(line.split()[1]) for line in rollup[1:]}

    def descriptors() -> set[str]:
        return {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}

    assert sizes["Pss:"] < 5 * 1024
    wait_until(lambda: descriptors() == {"/dev/null"}, "what it was started with to be closed")


def test_without_its_supervisor_a_session_goes_on(
    repo: api.Repository, mounted: Any, tmp_path: Path
) -> None:
    """kill -9 of the supervisor alone changes nothing; after that a killed session leaves a stale mount."""
    done = mounted("agent-1")
    [supervisor_pid] = supervisors_of(tmp_path)
    kill(supervisor_pid)
    (done.mountpoint / "f").write_text("x")
    assert listed(repo) == {"agent-1": "live"}

    kill(done.pid)
    assert processes_of(tmp_path) == {}
    assert listed(repo) == {"agent-1": "stale"}
    assert (mounted("agent-1").mountpoint / "f").read_text() == "x"


def test_a_restarted_session_has_a_supervisor_too(
    repo: api.Repository, mounted: Any, tmp_path: Path
) -> None:
    """The second crash is like the first, and there is one supervisor at a time."""
    done = mounted("agent-1")
    for _ in range(2):
        kill(pid_of(repo))
        wait_until(lambda: is_live(done.mountpoint), "the mount to come back")
        supervisors_gone(tmp_path, but=1)


# crashes in the middle of it

POINTS = (
    "supervisor.before-record",
    "supervisor.recorded",
    "registry.before-rename",
    "mount.before-start",
    "mount.started",
    "session.before-mount",
    "session.mounted",
    "session.registered",
)


def test_every_point_of_a_supervisor_is_tried() -> None:
    """The supervisor's points in the source are among those tried here."""
    ours = set(re.findall(r'"(supervisor\.[a-z-]+)"', inspect.getsource(supervisor)))

    assert ours and ours <= set(POINTS)


@pytest.mark.parametrize("point", POINTS)
def test_killed_while_it_recovers(
    repo: api.Repository, mounted: Any, tmp_path: Path, point: str
) -> None:
    """A supervisor or its new session that dies at any point loses nothing: mount heals, or all comes up by itself."""
    done = mounted("agent-1", tmp_path / "place")
    (done.mountpoint / "note").write_text("saved")
    [socket] = repo.runtime.path.glob("*.sock")
    said = {"record": control.ping(socket)["record"], "state": None}  # type: ignore[index]
    for pid in supervisors_of(tmp_path):
        kill(pid)
    kill(done.pid)
    program = (
        "import os, sys; from heddle import faults; from heddle.mount import supervisor;"
        "supervisor._after_crash(sys.argv[1].encode(), 'killed')"
    )
    command = [sys.executable, "-P", "-c", program, json.dumps(said)]
    subprocess.run(command, env={**os.environ, "HEDDLE_FAULT": point}, timeout=60, check=False)
    wait_until(lambda: len(sessions_of(tmp_path)) == len(supervisors_of(tmp_path)), "an end")

    again = mounted("agent-1")
    assert (again.mountpoint / "note").read_text() == "saved"
    assert os.listdir(again.mountpoint) == ["note"]
    assert again.mountpoint == done.mountpoint
    assert listed(repo) == {"agent-1": "live"}
    repo.unmount("agent-1")
    supervisors_gone(tmp_path)
    assert repo.fsck(full=True).problems == []


# many at once


def test_half_of_fifty_are_killed(repo: api.Repository, tmp_path: Path, cli: Any) -> None:
    """Of fifty sessions that work, twenty-five are killed at random: all come back, nothing is lost or left behind."""
    repo.capture(message="Empty", allow_empty=True)
    names = [f"agent-{number}" for number in range(50)]
    with ThreadPoolExecutor(4) as pool:
        made = pool.map(lambda name: repo.mount(name, tmp_path / name, create=True), names)
        places = dict(zip(names, made, strict=True))
    for name, done in places.items():
        (done.mountpoint / "work").write_text(name)
    killed = random.Random(50).sample(names, 25)
    for name in killed:
        os.kill(places[name].pid, signal.SIGKILL)
    wait_until(lambda: all(is_live(it.mountpoint) for it in places.values()), "all to be live")

    assert {it.spec for it in repo.mounts() if it.state == "live"} == set(names)
    for name, done in places.items():
        assert (done.mountpoint / "work").read_text() == name
        (done.mountpoint / "more").write_text("more")
    recovered = {name for name in names if repo.mount(name).recovered is not None}
    assert recovered == set(killed)
    cli("unmount", "--all")
    wait_until(lambda: processes_of(tmp_path) == {}, "all processes to end")
    assert {path.suffix for path in repo.runtime.path.iterdir()} <= {".lock", ""}
    assert [it for it in mountinfo.heddle_mounts() if tmp_path in it.mountpoint.parents] == []
    assert repo.fsck(full=True).problems == []
