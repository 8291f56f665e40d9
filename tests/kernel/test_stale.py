"""Sessions that died, hang, or disagree with what is written down: seen for what they are, cleaned up, recovered.

Nothing unsaved is dropped by any of it. Nobody starts a crashed session again here; that is ``test_restart``.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from world import processes_of, sessions_of, wait_until

import heddle
from heddle import api
from heddle.errors import Busy
from heddle.mount import control, ending, mountinfo, mountpoint
from heddle.mount.process import ProcessIdentity

pytestmark = pytest.mark.usefixtures("no_restarts")


def is_mounted(path: Path) -> bool:
    return mountinfo.topmost(mountinfo.heddle_mounts(), path) is not None


def detach(repo: api.Repository, done: Any) -> None:
    """umount -l, as somebody might do by hand."""
    mountpoint.detach_all(done.mountpoint, mountinfo.format_source(repo.path, done.spec))


def kill(done: Any) -> None:
    """kill -9 of a session, until it is gone."""
    identity = ProcessIdentity.of(done.pid)
    assert identity is not None
    os.kill(done.pid, signal.SIGKILL)
    assert identity.wait(10)


@pytest.fixture
def dead(repo: api.Repository, mounted: Any, tmp_path: Path) -> Any:
    """A mount whose session was killed, with one unsaved file of five bytes."""
    done = mounted("agent-1", tmp_path / "place")
    (done.mountpoint / "note").write_text("saved")
    wait_until(lambda: repo.database.mounts() != [], "the row")
    kill(done)
    return done


@pytest.fixture
def only_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done to all mounts of the user is done to those of this test only."""
    real = mountinfo.heddle_mounts
    monkeypatch.setattr(
        mountinfo,
        "heddle_mounts",
        lambda *args: [it for it in real(*args) if tmp_path in it.mountpoint.parents],
    )


def states(repo: api.Repository) -> dict[str | None, str]:
    return {it.thread: it.state for it in repo.mounts()}


# a session that was killed


def test_killed_is_stale_and_never_empty(repo: api.Repository, dead: Any) -> None:
    """After kill -9 the path answers ENOTCONN, not like an empty directory, and ``mounts`` says stale."""
    with pytest.raises(OSError) as caught:
        os.listdir(dead.mountpoint)
    [info] = repo.mounts()

    assert caught.value.strerror == "Transport endpoint is not connected"
    assert (info.state, info.pid, info.dirty_files, info.dirty_bytes) == ("stale", None, 1, 5)
    assert dead.mountpoint == info.mountpoint


def test_mount_recovers_in_place(repo: api.Repository, mounted: Any, dead: Any) -> None:
    """``mount`` of the thread mounts it where it was, says what was unsaved, and shows it."""
    again = mounted("agent-1")

    assert dead.mountpoint == again.mountpoint
    assert again.recovered is not None
    assert (again.recovered.files, again.recovered.bytes) == (1, 5)
    assert (again.mountpoint / "note").read_text() == "saved"
    assert states(repo) == {"agent-1": "live"}


def test_recovered_mountpoint_still_goes_with_the_mount(
    repo: api.Repository, mounted: Any, dead: Any
) -> None:
    """A directory made for a mount that died is removed when its recovered mount ends."""
    mounted("agent-1")
    repo.unmount("agent-1")

    assert not dead.mountpoint.exists()


def test_recovered_elsewhere(repo: api.Repository, mounted: Any, dead: Any, tmp_path: Path) -> None:
    """Asked for another place, the thread is mounted there and the dead mount is taken away."""
    again = mounted("agent-1", tmp_path / "elsewhere")

    assert (again.mountpoint / "note").read_text() == "saved"
    assert again.recovered is not None
    assert not dead.mountpoint.exists()
    assert states(repo) == {"agent-1": "live"}


def test_another_thread_can_not_take_a_dead_mountpoint(
    repo: api.Repository, dead: Any, tmp_path: Path
) -> None:
    """A dead mount is not silently covered by another thread's."""
    with pytest.raises(api.HeddleError, match="agent-1"):
        repo.mount("other", dead.mountpoint, create=True)

    assert "other" not in repo.threads
    assert states(repo) == {"agent-1": "stale"}


def test_unmount_stale_cleans_up(repo: api.Repository, mounted: Any, dead: Any) -> None:
    """``unmount --stale`` ends what died and only that; what was unsaved is told and kept."""
    mounted("agent-2")
    [end] = repo.unmount(stale=True).unmounted

    assert (end.thread, end.was, end.method) == ("agent-1", "stale", "detached")
    assert end.dirty is not None and (end.dirty.files, end.dirty.bytes) == (1, 5)
    assert not dead.mountpoint.exists()
    assert states(repo) == {"agent-2": "live"}
    assert (mounted("agent-1").mountpoint / "note").read_text() == "saved"


def test_unmount_of_a_dead_mount_by_name_and_by_path(
    repo: api.Repository, mounted: Any, dead: Any
) -> None:
    """A dead mount is unmounted like a living one, by its thread or by a path in it."""
    repo.unmount("agent-1")
    assert repo.mounts() == []

    second = mounted("agent-1")
    kill(second)
    repo.unmount(second.mountpoint / "note")
    assert repo.mounts() == []


def test_unmount_stale_of_all_repositories(
    repo: api.Repository, dead: Any, only_ours: None
) -> None:
    """From anywhere, all of a user's dead mounts are cleaned up, whatever repository they are of."""
    other = heddle.init(repo.path.parent / "other")
    second = other.mount("agent-2", create=True)
    kill(second)
    done = api.unmount(stale=True)

    assert {"agent-1", "agent-2"} == {it.thread for it in done.unmounted}
    assert repo.mounts() + other.mounts() == []


def test_dead_mount_of_a_repository_that_is_gone(
    repo: api.Repository, dead: Any, only_ours: None
) -> None:
    """A dead mount can be cleaned up after its repository was deleted."""
    import shutil

    repo.close()
    shutil.rmtree(repo.path)
    [end] = api.unmount(stale=True).unmounted

    assert (end.thread, end.dirty) == ("agent-1", None)
    assert not is_mounted(dead.mountpoint)
    assert api.mounts() == []


def test_a_dead_mount_that_is_a_working_directory(
    repo: api.Repository, mounted: Any, tmp_path: Path
) -> None:
    """A process standing in a dead mount is no obstacle to cleaning up or to recovering."""
    done = mounted("agent-1", tmp_path / "place")
    holder = subprocess.Popen(["/bin/sleep", "1000"], cwd=done.mountpoint)
    try:
        kill(done)
        again = mounted("agent-1")
        assert states(repo)["agent-1"] == "live"
        holder2 = subprocess.Popen(["/bin/sleep", "1000"], cwd=again.mountpoint)
        kill(again)
        [end] = repo.unmount(stale=True).unmounted
        holder2.kill()
        holder2.wait()
    finally:
        holder.kill()
        holder.wait()

    assert end.method == "detached"
    assert not done.mountpoint.exists()


def test_opened_in_a_dead_mount(repo: api.Repository, dead: Any) -> None:
    """A path in a dead mount still tells its repository and its thread."""
    inside = heddle.open(dead.mountpoint / "sub" / "dir")

    assert (repo.path, "agent-1", dead.mountpoint) == (
        inside.path,
        inside.current_thread,
        inside.mountpoint,
    )


def test_every_command_says_what_to_do(cli: Any, repo: api.Repository, dead: Any) -> None:
    """In a dead mount a command works or says what to do; none shows a traceback."""
    for words in (["status"], ["capture", "-m", "x"], ["mounts"], ["log"], ["whoami"], ["diff"]):
        ran = cli("-C", str(dead.mountpoint), *words, code=None)
        assert "Traceback" not in ran.stderr
        assert ran.code == 0 or "hint:" in ran.stderr, (words, ran)


def test_a_dead_reader_is_told_what_to_do(cli: Any, dead: Any) -> None:
    """``status`` of the repository names its dead mounts."""
    stale = cli("status", "--json").json["mounts_stale"]

    assert [("agent-1", str(dead.mountpoint))] == [(it["thread"], it["mountpoint"]) for it in stale]


def test_a_loop_that_ends_leaves_no_empty_directory(
    repo: api.Repository, mounted: Any, tmp_path: Path
) -> None:
    """A session whose loop ends while it is mounted leaves a dead mount, not a directory that looks emptied."""
    done = mounted("agent-1")
    (done.mountpoint / "f").write_text("x")
    [socket] = repo.runtime.path.glob("*.sock")
    control.call(socket, "stop")
    wait_until(lambda: sessions_of(tmp_path) == [], "the session to end")

    with pytest.raises(OSError, match="not connected"):
        os.listdir(done.mountpoint)
    assert states(repo) == {"agent-1": "stale"}
    again = mounted("agent-1")
    assert again.recovered is not None
    assert again.recovered.files == 1


# pids, boots, registries


def test_a_reused_pid_is_not_the_session(
    repo: api.Repository, mounted: Any, dead: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When another process has the dead session's pid, the session is stale and the other is left alone."""
    other = subprocess.Popen(["/bin/sleep", "1000"])
    try:
        _rewrite(repo, dead, pid=other.pid)
        assert states(repo) == {"agent-1": "stale"}
        repo.unmount(stale=True)
        assert other.poll() is None
        assert repo.mounts() == []
    finally:
        other.kill()
        other.wait()


def test_after_a_reboot(
    repo: api.Repository, mounted: Any, dead: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine restarted: the kernel has no mount, the pid may be anybody's; the record is stale and recoverable."""
    detach(repo, dead)
    for path in repo.runtime.path.glob("*.[js]*"):
        path.unlink()  # a runtime directory does not survive a boot
    row = _row(repo)
    _put(repo, row, boot_id="another-boot", pid=os.getpid())
    [info] = repo.mounts()
    assert (info.state, info.pid, info.dirty_files) == ("stale", None, 1)

    again = mounted("agent-1")
    assert dead.mountpoint == again.mountpoint
    assert again.recovered is not None and again.recovered.files == 1


def test_after_a_reboot_stale_is_cleaned(repo: api.Repository, dead: Any) -> None:
    """A record without mount and process is forgotten by ``unmount --stale``, and its directory removed."""
    detach(repo, dead)
    [end] = repo.unmount(stale=True).unmounted

    assert (end.was, end.method) == ("stale", "forgotten")
    assert repo.mounts() == []
    assert not dead.mountpoint.exists()


def test_a_dead_mount_that_nobody_recorded(repo: api.Repository, mounted: Any, dead: Any) -> None:
    """The kernel shows a mount and nothing is written down: found, judged by a probe, recovered."""
    _forget_all(repo)
    [info] = repo.mounts()

    assert (info.thread, info.state, info.pid) == ("agent-1", "stale", None)
    assert (mounted("agent-1").mountpoint / "note").read_text() == "saved"
    assert states(repo) == {"agent-1": "live"}


def test_a_live_mount_whose_record_is_lost(
    repo: api.Repository, mounted: Any, tmp_path: Path
) -> None:
    """A session whose records were deleted is found by its socket, says who it is, and ends as usual."""
    done = mounted("agent-1")
    wait_until(lambda: repo.database.mounts() != [], "the row")
    _forget_all(repo)
    [info] = repo.mounts()
    assert ("live", done.pid) == (info.state, info.pid)

    repo.unmount("agent-1")
    assert sessions_of(tmp_path) == []


def test_a_live_mount_without_record_and_socket(
    repo: api.Repository, mounted: Any, tmp_path: Path
) -> None:
    """Even a session that nobody can ask any more is seen to serve, and can be unmounted."""
    done = mounted("agent-1")
    wait_until(lambda: repo.database.mounts() != [], "the row")
    _forget_all(repo)
    for path in repo.runtime.path.glob("*.sock"):
        path.unlink()
    [info] = repo.mounts()
    assert info.state == "live"

    repo.unmount("agent-1")
    wait_until(lambda: sessions_of(tmp_path) == [], "the session to end")
    assert not is_mounted(done.mountpoint)


def test_a_runtime_directory_that_was_removed(
    repo: api.Repository, mounted: Any, tmp_path: Path
) -> None:
    """A session whose runtime directory was cleaned away serves on, is reached again, and ends as usual."""
    done = mounted("agent-1", tmp_path / "place")
    wait_until(lambda: repo.database.mounts() != [], "the row")
    with (done.mountpoint / "open").open("w") as file:
        shutil.rmtree(repo.runtime.path)
        file.write("kept")
        again = heddle.open(repo.path)
        [info] = again.mounts()
        assert ("live", done.pid) == (info.state, info.pid)
        file.write(" open")
    assert again.capture(message="m", thread="agent-1").added == 1

    again.unmount("agent-1")
    assert sessions_of(tmp_path) == []
    assert [name for name in os.listdir(repo.runtime.path) if not name.endswith(".lock")] == []


def test_a_stopped_session_without_socket(
    repo: api.Repository, mounted: Any, tmp_path: Path
) -> None:
    """A session that is stopped, and whose socket was removed, hangs until ``mount`` wakes it."""
    done = mounted("agent-1", tmp_path / "place")
    wait_until(lambda: repo.database.mounts() != [], "the row")
    os.kill(done.pid, signal.SIGSTOP)
    shutil.rmtree(repo.runtime.path)
    again = heddle.open(repo.path)
    [info] = again.mounts()
    assert info.state == "hung"

    woken = again.mount("agent-1")
    assert (woken.already_mounted, woken.pid) == (True, done.pid)


def test_a_hung_mount_without_record_does_not_hang_mounts(
    repo: api.Repository, mounted: Any, tmp_path: Path
) -> None:
    """A stopped session that nobody recorded is found to hang, in bounded time."""
    done = mounted("agent-1")
    wait_until(lambda: repo.database.mounts() != [], "the row")
    _forget_all(repo)
    os.kill(done.pid, signal.SIGSTOP)
    began = time.monotonic()
    [info] = repo.mounts()
    took_s = time.monotonic() - began
    os.kill(done.pid, signal.SIGCONT)

    assert info.state == "hung"
    assert took_s < 20


def test_a_session_known_to_the_database_only(
    repo: api.Repository, mounted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody with another runtime directory finds the session through the repository's database."""
    done = mounted("agent-1")
    wait_until(lambda: repo.database.mounts() != [], "the row")
    (tmp_path / "other-runtime").mkdir(mode=0o700)
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path / "other-runtime")}
    other = heddle.open(repo.path, environment=environment)
    [info] = other.mounts()
    assert ("live", done.pid, 0) == (info.state, info.pid, info.dirty_files)
    assert other.mount("agent-1").already_mounted

    other.unmount("agent-1")
    wait_until(lambda: sessions_of(tmp_path) == [], "the idle session to end")
    assert repo.mounts() == []


# sessions that hang


@pytest.fixture
def hung(repo: api.Repository, mounted: Any, tmp_path: Path) -> Iterator[Any]:
    """A mount whose session is stopped, with one unsaved file."""
    done = mounted("agent-1", tmp_path / "place")
    (done.mountpoint / "note").write_text("saved")
    while stopped_while_it_writes(done.pid, repo.database_path):
        os.kill(done.pid, signal.SIGCONT)
    yield done
    for pid in sessions_of(tmp_path):
        with contextlib.suppress(ProcessLookupError):  # it ends by itself
            os.kill(pid, signal.SIGCONT)


def stopped_while_it_writes(pid: int, database: Path) -> bool:
    """Stop a session; whether it holds the database, as it may when it has just begun: nobody else could write."""
    os.kill(pid, signal.SIGSTOP)
    with closing(sqlite3.connect(database, timeout=0)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
    return False


def test_hung_is_told_in_bounded_time(repo: api.Repository, hung: Any, mounted: Any) -> None:
    """``mounts`` says hung and never hangs itself; other sessions are listed as ever."""
    mounted("agent-2")
    began = time.monotonic()
    found = states(repo)
    took_s = time.monotonic() - began

    assert found == {"agent-1": "hung", "agent-2": "live"}
    assert took_s < 20


def test_mount_wakes_a_stopped_session(repo: api.Repository, hung: Any) -> None:
    """``mount`` continues a session that was only stopped: nothing had to be recovered."""
    again = repo.mount("agent-1")

    assert (True, hung.pid) == (again.already_mounted, again.pid)
    assert states(repo) == {"agent-1": "live"}


def test_unmount_stale_ends_a_stopped_session_gently(
    repo: api.Repository, hung: Any, tmp_path: Path
) -> None:
    """``unmount --stale`` wakes a stopped session and unmounts it, so that not even dirty pages are lost."""
    [end] = repo.unmount(stale=True).unmounted

    assert (end.was, end.method) == ("hung", "unmounted")
    assert sessions_of(tmp_path) == []
    assert (repo.heddle_dir / "overlays/agent-1/upper/note").read_text() == "saved"


def test_unmount_wakes_a_stopped_session(repo: api.Repository, hung: Any, tmp_path: Path) -> None:
    """A plain unmount of a stopped session wakes it and works."""
    repo.unmount("agent-1")

    assert sessions_of(tmp_path) == []


def test_capture_wakes_a_stopped_session(repo: api.Repository, hung: Any) -> None:
    """A capture from outside wakes a stopped session and records what it holds."""
    captured = repo.capture(message="m", thread="agent-1")

    assert captured.added == 1


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions that can't be woken: SIGCONT does nothing, and nobody has much patience."""
    real = ProcessIdentity.signal
    monkeypatch.setattr(
        ProcessIdentity,
        "signal",
        lambda self, number: True if number == signal.SIGCONT else real(self, number),
    )
    monkeypatch.setattr(ending, "PATIENCE_S", 1.0)
    monkeypatch.setattr(ending.wake, "__defaults__", (0.5,))


def test_unmount_of_a_stuck_session_needs_force(
    repo: api.Repository, hung: Any, stuck: None, tmp_path: Path
) -> None:
    """A session that can't be woken is not killed unasked; ``force`` ends it and keeps what is on disk."""
    with pytest.raises(Busy) as caught:
        repo.unmount("agent-1")
    assert caught.value.hint is not None and "--force" in caught.value.hint
    assert states(repo) == {"agent-1": "hung"}

    [end] = repo.unmount("agent-1", force=True).unmounted
    assert (end.was, end.method) == ("hung", "detached")
    assert hung.pid not in sessions_of(tmp_path)
    assert end.dirty is not None and end.dirty.files == 1
    # its supervisor began another one before it saw that nobody wants it
    wait_until(lambda: processes_of(tmp_path) == {}, "all processes to end")


def test_mount_recovers_from_a_stuck_session(
    repo: api.Repository, mounted: Any, hung: Any, stuck: None
) -> None:
    """``mount`` ends a session that can't be woken and recovers in place."""
    again = mounted("agent-1")

    assert again.recovered is not None and again.recovered.files == 1
    assert hung.mountpoint == again.mountpoint
    assert (again.mountpoint / "note").read_text() == "saved"


def test_unmount_stale_ends_a_stuck_session(
    repo: api.Repository, hung: Any, stuck: None, tmp_path: Path
) -> None:
    """``unmount --stale`` clears a session that can't be woken as well."""
    [end] = repo.unmount(stale=True).unmounted

    assert (end.was, end.method) == ("hung", "detached")
    assert repo.mounts() == []


def test_status_of_a_stuck_mount_says_what_to_do(
    repo: api.Repository, hung: Any, stuck: None
) -> None:
    """Whoever asks a stuck mount for its changes is told how to get out, in bounded time."""
    with pytest.raises(Busy) as caught:
        heddle.open(hung.mountpoint).status()

    assert caught.value.hint is not None and "heddle mount agent-1" in caught.value.hint


# mounts that somebody took away


def test_a_mount_that_was_detached_behind_our_back(
    repo: api.Repository, mounted: Any, tmp_path: Path
) -> None:
    """umount -l while a process is in it: the session lives on without a name; stale, and ``mount`` recovers."""
    done = mounted("agent-1", tmp_path / "place")
    (done.mountpoint / "note").write_text("saved")
    holder = subprocess.Popen(["/bin/sleep", "1000"], cwd=done.mountpoint)
    try:
        subprocess.run(["umount", "-l", done.mountpoint], check=True)
        [info] = repo.mounts()
        assert ("stale", done.pid) == (info.state, info.pid)
        again = mounted("agent-1")
        assert again.pid != done.pid
        assert (again.mountpoint / "note").read_text() == "saved"
        assert states(repo) == {"agent-1": "live"}
    finally:
        holder.kill()
        holder.wait()


def test_a_detached_session_is_stopped(repo: api.Repository, mounted: Any, tmp_path: Path) -> None:
    """``unmount --stale`` ends a session whose mount was pulled away, and removes the directory made for it."""
    done = mounted("agent-1", tmp_path / "place")
    holder = subprocess.Popen(["/bin/sleep", "1000"], cwd=done.mountpoint)
    try:
        subprocess.run(["umount", "-l", done.mountpoint], check=True)
        [end] = repo.unmount(stale=True).unmounted
    finally:
        holder.kill()
        holder.wait()

    assert (end.was, end.method) == ("stale", "stopped")
    assert sessions_of(tmp_path) == []
    assert not done.mountpoint.exists()


def test_a_mount_that_another_name_space_keeps(
    repo: api.Repository, mounted: Any, tmp_path: Path
) -> None:
    """Unmounted here while a copy of the mount is in another mount name space: the session ends all the same."""
    done = mounted("agent-1", tmp_path / "place")
    (done.mountpoint / "note").write_text("saved")
    keeper = subprocess.Popen(["unshare", "--mount", "sleep", "1000"])
    try:
        ours = os.readlink("/proc/self/ns/mnt")
        wait_until(lambda: os.readlink(f"/proc/{keeper.pid}/ns/mnt") != ours, "the name space")
        [end] = repo.unmount("agent-1").unmounted
        assert sessions_of(tmp_path) == []
    finally:
        keeper.kill()
        keeper.wait()

    assert (end.method, end.dirty) == ("unmounted", (1, 5))
    assert not done.mountpoint.exists()


@pytest.mark.parametrize("alive", [True, False])
def test_a_directory_above_was_renamed(
    repo: api.Repository, mounted: Any, tmp_path: Path, alive: bool
) -> None:
    """A mount that is elsewhere since a directory above it was renamed is the same session, live or dead."""
    (tmp_path / "above").mkdir()
    repo.config.set("mount.restarts", "0")
    done = mounted("agent-1", tmp_path / "above" / "place")
    (done.mountpoint / "note").write_text("saved")
    if not alive:
        kill(done)
    (tmp_path / "above").rename(tmp_path / "renamed")
    place = tmp_path / "renamed" / "place"

    [seen] = repo.mounts()
    assert (seen.mountpoint, seen.state) == (place, "live" if alive else "stale")
    if alive:
        assert heddle.open(place).status().changes
        assert repo.capture(thread="agent-1", message="Moved").state.message == "Moved\n"
        assert mounted("agent-1", place).already_mounted
    [ended] = repo.unmount("agent-1").unmounted
    assert (ended.mountpoint, ended.was) == (place, "live" if alive else "stale")
    assert repo.mounts() == []
    wait_until(lambda: sessions_of(tmp_path) == [], "the session to end")


def test_a_bind_mount_of_a_mount(repo: api.Repository, mounted: Any, tmp_path: Path) -> None:
    """A copy of a mount that somebody made elsewhere is theirs: no session, and not taken away."""
    done = mounted("agent-1", tmp_path / "place")
    (tmp_path / "copy").mkdir()
    subprocess.run(["mount", "--bind", done.mountpoint, tmp_path / "copy"], check=True)
    try:
        assert [it.mountpoint for it in repo.mounts()] == [done.mountpoint]
        [ended] = repo.unmount("agent-1").unmounted
        assert ended.was == "live"
        assert os.path.ismount(tmp_path / "copy") or sessions_of(tmp_path) == []
    finally:
        subprocess.run(["umount", "-l", tmp_path / "copy"], check=False)
    wait_until(lambda: sessions_of(tmp_path) == [], "the session to end")
    assert mounted("agent-1", tmp_path / "place").already_mounted is False


def test_a_mountpoint_whose_directory_was_removed(
    repo: api.Repository, mounted: Any, dead: Any
) -> None:
    """Detached and removed by hand: the record is stale, and ``mount`` makes the place again."""
    detach(repo, dead)
    dead.mountpoint.rmdir()
    assert states(repo) == {"agent-1": "stale"}

    again = mounted("agent-1")
    assert dead.mountpoint == again.mountpoint
    assert (again.mountpoint / "note").read_text() == "saved"
    repo.unmount("agent-1")
    assert not dead.mountpoint.exists()


def test_a_mount_covered_by_a_dead_one(repo: api.Repository, mounted: Any, dead: Any) -> None:
    """Two dead mounts on one place, one over the other, are both taken away."""
    # the kernel's own helper can't mount over a dead mount; a bind mount of another one can
    second = mounted("agent-2")
    subprocess.run(["mount", "--bind", second.mountpoint, dead.mountpoint], check=False)
    kill(second)
    repo.unmount(stale=True)

    assert not is_mounted(dead.mountpoint)
    assert repo.mounts() == []


@pytest.mark.parametrize("point", ["session.mounted", "session.registered"])
def test_a_session_that_dies_while_it_mounts(
    repo: api.Repository,
    mounted: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    point: str,
) -> None:
    """Killed between mounting and saying so: the caller gets an error, what is left is stale and recoverable."""
    repo.threads.create("agent-1", None)
    monkeypatch.setenv("HEDDLE_FAULT", point)
    with pytest.raises(api.HeddleError):
        repo.mount("agent-1", tmp_path / "place")
    monkeypatch.delenv("HEDDLE_FAULT")

    wait_until(lambda: states(repo) == {"agent-1": "stale"}, "the session's last thread")
    assert (mounted("agent-1") and states(repo)["agent-1"]) == "live"


@pytest.mark.parametrize("point", ["session.unmounted", "session.closed"])
def test_a_session_that_dies_while_it_ends(
    repo: api.Repository,
    mounted: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    point: str,
) -> None:
    """Killed between the unmount and its tidying up: the unmount tidies up in its place."""
    monkeypatch.setenv("HEDDLE_FAULT", point)
    done = mounted("agent-1", tmp_path / "place")
    monkeypatch.delenv("HEDDLE_FAULT")
    (done.mountpoint / "f").write_text("x")
    [end] = repo.unmount("agent-1").unmounted

    assert end.dirty is not None
    assert (end.was, end.dirty.files) == ("live", 1)
    assert repo.mounts() == []
    assert not done.mountpoint.exists()
    assert (mounted("agent-1").mountpoint / "f").read_text() == "x"


# capturing without a session


def test_capture_of_a_dead_mount(repo: api.Repository, dead: Any, mounted: Any) -> None:
    """What a killed session left is captured as it is on disk; the mount recovers clean afterwards."""
    captured = repo.capture(message="m", thread="agent-1")
    again = mounted("agent-1")

    assert captured.added == 1
    assert again.recovered is not None and again.recovered.files == 0
    assert (again.mountpoint / "note").read_text() == "saved"


def test_status_and_diff_of_a_dead_mount(repo: api.Repository, dead: Any) -> None:
    """Asked from inside a dead mount, what is unsaved is told from disk."""
    inside = heddle.open(dead.mountpoint)
    status = inside.status()

    assert [(it.path, it.kind) for it in status.changes] == [(b"note", "added")]
    assert [it.path for it in inside.diff()] == [b"note"]


# the ways into what is written down


def _row(repo: api.Repository) -> Any:
    [row] = repo.database.mounts()
    return row


def _put(repo: api.Repository, row: Any, **changes: Any) -> None:
    repo.database.put_mount(row._replace(**changes))


def _rewrite(repo: api.Repository, done: Any, **changes: Any) -> None:
    """Change what was written down of a session, in both places."""
    _put(repo, _row(repo), **changes)
    [path] = repo.runtime.path.glob("*.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _forget_all(repo: api.Repository) -> None:
    for row in repo.database.mounts():
        repo.database.remove_mount(row.mountpoint)
    for path in repo.runtime.path.glob("*.json"):
        path.unlink()
