"""A mount's ordinary life on a real kernel: mount, work, list, unmount, and what is refused."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from world import sessions_of, wait_until

import heddle
from heddle import api
from heddle.errors import (
    CannotCreate,
    DataError,
    HeddleError,
    InvalidName,
    MountpointUnusable,
    NotMounted,
    NotPermitted,
    StateNotFound,
    ThreadExists,
    ThreadNotFound,
    Unavailable,
    UsageError,
)
from heddle.mount import mountinfo, mountpoint
from heddle.mount.ending import MountBusy


def is_mounted(path: Path) -> bool:
    return mountinfo.topmost(mountinfo.heddle_mounts(), path) is not None


def holding(directory: Path) -> subprocess.Popen[bytes]:
    """A process whose working directory keeps a mount busy, and nothing else."""
    return subprocess.Popen(["/bin/sleep", "1000"], cwd=directory)


def ended(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


# mount and unmount


def test_unsaved_work_is_there_at_the_next_mount(repo: api.Repository, mounted: Any) -> None:
    """What was written through a mount is there again at the next one."""
    first = mounted("agent-1")
    (first.mountpoint / "note").write_text("kept")
    end = repo.unmount("agent-1").unmounted[0]
    second = mounted("agent-1")

    assert (end.was, end.method) == ("live", "unmounted")
    assert end.dirty is not None and (end.dirty.files, end.dirty.bytes) == (1, 4)
    assert (second.mountpoint / "note").read_text() == "kept"
    assert second.recovered is None
    assert first.pid != second.pid


def test_unmount_returns_when_the_session_is_over(
    repo: api.Repository, mounted: Any, tmp_path: Path
) -> None:
    """After unmount there is no process, no mount, no socket, no record, and the overlay is free."""
    done = mounted("agent-1")
    repo.unmount("agent-1")

    assert sessions_of(tmp_path) == []
    assert not is_mounted(done.mountpoint)
    assert list(repo.runtime.path.glob("*.[js]*")) == []
    assert repo.database.mounts() == []
    from heddle.mount.overlay import Overlay

    Overlay.open(repo, "agent-1").close()


def test_session_is_nobodys_child(mounted: Any) -> None:
    """Session and supervisor outlive the command: init has adopted them, and they keep no directory busy."""
    pid = mounted("agent-1").pid
    supervisor = parent_of(pid)

    assert (parent_of(supervisor), parent_of(pid)) == (1, supervisor)
    assert os.getsid(0) not in (os.getsid(pid), os.getsid(supervisor))
    assert {"/"} == {os.readlink(f"/proc/{it}/cwd") for it in (pid, supervisor)}


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_session_holds_no_descriptor_of_the_command(repo: api.Repository, tmp_path: Path) -> None:
    """A pipe that reads the command's output ends when the command does: the session keeps none of it."""
    command = [sys.executable, "-m", "heddle", "-C", str(repo.path), "mount", "x", "--create"]
    done = subprocess.run(command, capture_output=True, timeout=120, check=True)
    repo.unmount("x")

    assert done.stderr == b""


def test_default_mountpoint_is_made_and_removed(repo: api.Repository, mounted: Any) -> None:
    """Without a MOUNTPOINT it is below the runtime directory, closed to others, and gone after the unmount."""
    done = mounted("deep/name")

    assert repo.runtime.path in done.mountpoint.parents
    assert done.mountpoint.name == "deep%2Fname"
    repo.unmount("deep/name")
    assert not done.mountpoint.parent.exists()


def test_existing_mountpoint_stays(repo: api.Repository, mounted: Any, tmp_path: Path) -> None:
    """A directory that was there before the mount is there, empty, after it."""
    place = tmp_path / "place"
    place.mkdir()
    mounted("agent-1", place)
    (place / "f").touch()
    repo.unmount("agent-1")

    assert os.listdir(place) == []


def test_a_name_to_make_is_made_and_removed(
    repo: api.Repository, mounted: Any, tmp_path: Path
) -> None:
    """A mountpoint that did not exist is made, and goes again."""
    place = tmp_path / "place"
    mounted("agent-1", place)
    assert is_mounted(place)

    repo.unmount("agent-1")
    assert not place.exists()


def test_plain_umount_ends_the_session_cleanly(
    repo: api.Repository, mounted: Any, tmp_path: Path
) -> None:
    """Who unmounts with fusermount3 instead leaves nothing behind either."""
    place = tmp_path / "place"
    mounted("agent-1", place)
    (place / "f").write_text("x")
    subprocess.run(["fusermount3", "-u", place], check=True)
    wait_until(lambda: sessions_of(tmp_path) == [], "the session to end")

    assert not place.exists()
    assert repo.mounts() == []
    assert repo.database.mounts() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_unmounts_cleanly(
    repo: api.Repository, mounted: Any, tmp_path: Path, number: signal.Signals
) -> None:
    """SIGTERM and SIGINT unmount; what was written is in the overlay."""
    done = mounted("agent-1")
    (done.mountpoint / "f").write_text("x")
    os.kill(done.pid, number)
    wait_until(lambda: sessions_of(tmp_path) == [], "the session to end")

    assert not is_mounted(done.mountpoint)
    assert (repo.heddle_dir / "overlays/agent-1/upper/f").read_text() == "x"
    assert repo.mounts() == []


def test_a_signal_with_an_open_file_loses_nothing_written(
    repo: api.Repository, mounted: Any, tmp_path: Path
) -> None:
    """SIGTERM while a file is open and unsynced: its bytes reach the overlay before the mount is pulled away."""
    done = mounted("agent-1")
    with open(done.mountpoint / "f", "wb", buffering=0) as file:
        file.write(b"y" * 100_000)
        os.kill(done.pid, signal.SIGTERM)
        wait_until(lambda: sessions_of(tmp_path) == [], "the session to end")

    assert (repo.heddle_dir / "overlays/agent-1/upper/f").stat().st_size == 100_000


def test_mounting_again_is_the_same_answer(
    repo: api.Repository, mounted: Any, tmp_path: Path
) -> None:
    """Mounting what is mounted there already succeeds and says so; no second session is started."""
    place = tmp_path / "place"
    first = mounted("agent-1", place)
    second = repo.mount("agent-1", place)
    third = repo.mount("agent-1")

    assert tuple(it.already_mounted for it in (first, second, third)) == (False, True, True)
    assert {first.pid} == {second.pid, third.pid}
    assert {place} == {second.mountpoint, third.mountpoint}


def test_many_mounts_of_one_thread_at_once_are_one(repo: api.Repository, mounted: Any) -> None:
    """Of several mounts of a thread at the same time one starts a session and all get the same answer."""
    repo.threads.create("agent-1", None)
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(mounted("agent-1", create=False)))
        for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(found) == 5
    assert len({it.pid for it in found}) == 1
    assert sum(it.already_mounted for it in found) == 4


def test_threads_are_mounted_side_by_side(repo: api.Repository, mounted: Any) -> None:
    """Two threads' mounts do not see each other's changes, and are listed both."""
    one, two = mounted("one"), mounted("two")
    (one.mountpoint / "f").write_text("1")

    assert os.listdir(two.mountpoint) == []
    listed = {it.thread: (it.state, it.dirty_files, it.dirty_bytes) for it in repo.mounts()}
    assert listed == {"one": ("live", 1, 1), "two": ("live", 0, 0)}


def test_source_names_repository_and_thread(repo: api.Repository, mounted: Any) -> None:
    """The mount table says of which repository and thread a mount is."""
    done = mounted("a/b")
    location = mountinfo.locate(done.mountpoint / "x" / "y")

    assert location is not None
    assert (repo.path, "a/b", done.mountpoint, b"x/y", False) == (
        location.repository,
        location.thread,
        location.mountpoint,
        location.path,
        location.read_only,
    )


def test_opened_inside_a_mount_it_means_the_thread(repo: api.Repository, mounted: Any) -> None:
    """``heddle.open`` on a path in a mount gives its repository, its thread and its mountpoint."""
    done = mounted("agent-1")
    (done.mountpoint / "sub").mkdir()
    inside = heddle.open(done.mountpoint / "sub")

    assert (repo.path, "agent-1", done.mountpoint) == (
        inside.path,
        inside.current_thread,
        inside.mountpoint,
    )


def test_context_manager_mounts_and_unmounts(repo: api.Repository) -> None:
    """``heddle.mounted`` gives a directory and takes it away, also when the block fails."""
    with heddle.mounted(repo, "agent-1", create=True) as path:
        (path / "f").write_text("x")
    assert repo.mounts() == []

    with (
        pytest.raises(ZeroDivisionError),
        heddle.mounted(repo.path, "agent-1", create=True) as path,
    ):
        assert (path / "f").read_text() == "x"
        1 / 0  # noqa: B018
    assert repo.mounts() == []


def test_context_manager_leaves_what_was_mounted(repo: api.Repository, mounted: Any) -> None:
    """A thread that was mounted before the block is mounted after it."""
    done = mounted("agent-1")
    with heddle.mounted(repo, "agent-1") as path:
        assert done.mountpoint == path

    assert is_mounted(done.mountpoint)


def test_a_program_that_ignores_its_children(repo: api.Repository) -> None:
    """Mounting and unmounting work in a program whose children the kernel reaps (SIGCHLD ignored)."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with heddle.mounted(repo, "agent-1", create=True) as path:
            (path / "f").write_text("x")
            with open(path / "f"), pytest.raises(MountBusy):
                repo.unmount("agent-1")
    finally:
        signal.signal(signal.SIGCHLD, before)

    assert repo.mounts() == []


def test_mount_creates_a_thread_at_a_state(repo: api.Repository, mounted: Any) -> None:
    """``create`` with ``start`` makes the thread there; its mount shows that state."""
    done = mounted("one")
    (done.mountpoint / "f").write_text("1")
    state = repo.capture(message="m", thread="one").state.id
    other = mounted("two", create=True, start="one")

    assert state == repo.threads.get("two").state == other.state
    assert (other.mountpoint / "f").read_text() == "1"


def test_read_only_mount_shows_any_state(
    repo: api.Repository, mounted: Any, tmp_path: Path
) -> None:
    """A state is mounted read-only, several at once, beside its thread's own mount; writing is EROFS."""
    work = mounted("one")
    (work.mountpoint / "f").write_text("1")
    repo.capture(message="first", thread="one")
    (work.mountpoint / "f").write_text("2")
    repo.capture(message="second", thread="one")
    old = mounted("one~1", tmp_path / "old", read_only=True)
    new = mounted("one", tmp_path / "new", read_only=True)

    assert [(it.mountpoint / "f").read_text() for it in (old, new)] == ["1", "2"]
    assert (old.read_only, old.thread is None) == (True, True)
    with pytest.raises(OSError, match="Read-only"):
        (old.mountpoint / "g").touch()
    assert {"one~1", "one"} == {it.spec for it in repo.mounts() if it.read_only}
    repo.unmount(old.mountpoint)
    assert not (tmp_path / "old").exists()
    assert is_mounted(work.mountpoint) and is_mounted(new.mountpoint)


def test_long_paths_are_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_left: None
) -> None:
    """A control socket is reached however long the runtime directory and the repository's path are."""
    runtime = tmp_path / ("r" * 120)
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    repo = heddle.init(tmp_path / ("d" * 200) / "repo")
    with heddle.mounted(repo, "agent-1", create=True) as path:
        (path / "f").write_text("x")
        [info] = repo.mounts()

    assert (info.state, info.dirty_files) == ("live", 1)


def test_a_repository_with_an_awkward_name(tmp_path: Path, nothing_left: None) -> None:
    """Spaces, commas, colons, a newline and bytes that are no UTF-8 in a path don't confuse the mount table."""
    awkward = tmp_path / os.fsdecode(b"a b,c:d\\e\nf\xff")
    repo = heddle.init(awkward)
    where = tmp_path / os.fsdecode(b"m, \t\xfe")
    repo.threads.create("t", None)
    with heddle.mounted(repo, "t", where) as path:
        assert where == path
        inside = heddle.open(path)
        [info] = repo.mounts()

    assert (repo.path, where) == (inside.path, inside.mountpoint)
    assert info.state == "live"


def test_session_makes_files_private(repo: api.Repository, mounted: Any) -> None:
    """Nobody else can read or write a session's log, record or socket."""
    done = mounted("agent-1")
    [record], [socket] = (list(repo.runtime.path.glob(f"*.{kind}")) for kind in ("json", "sock"))
    for path in (done.log, record, socket):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    assert stat.S_IMODE(done.log.parent.stat().st_mode) == 0o700


def test_umask_of_the_caller_holds_in_the_mount(mounted: Any) -> None:
    """A file made through the mount has the mode that the creating process's umask gives."""
    done = mounted("agent-1")
    old = os.umask(0o027)
    try:
        (done.mountpoint / "f").touch()
    finally:
        os.umask(old)

    assert stat.S_IMODE((done.mountpoint / "f").stat().st_mode) == 0o640


def test_log_is_bounded(repo: api.Repository, mounted: Any) -> None:
    """A session's log that grew large is put aside when the next session begins."""
    log = mounted("agent-1").log
    repo.unmount("agent-1")
    log.write_bytes(b"x" * (2 << 20))
    mounted("agent-1")

    assert log.stat().st_size < 10_000
    assert log.with_name("session.log.1").stat().st_size == (2 << 20)


# unmount


def test_busy_names_the_processes(repo: api.Repository, mounted: Any) -> None:
    """A mount in use is not ended; the processes that use it are named."""
    done = mounted("agent-1")
    holder = holding(done.mountpoint)
    try:
        with pytest.raises(MountBusy) as caught:
            repo.unmount("agent-1")
        assert [holder.pid] == [it.pid for it in caught.value.holders]
        assert "sleep 1000" in caught.value.holders[0].command
        assert caught.value.exit_code == 75
        assert is_mounted(done.mountpoint)
        (done.mountpoint / "still").write_text("works")
    finally:
        ended(holder)
    repo.unmount("agent-1")


def test_busy_by_an_open_file_and_a_mapping(repo: api.Repository, mounted: Any) -> None:
    """Open files and mappings without a descriptor keep a mount busy too, and are found."""
    import mmap

    done = mounted("agent-1")
    (done.mountpoint / "f").write_bytes(b"x" * 4096)
    with open(done.mountpoint / "f", "rb") as file:
        mapping = mmap.mmap(file.fileno(), 4096, access=mmap.ACCESS_READ)
    os.stat(done.mountpoint)
    with mapping, pytest.raises(MountBusy) as caught:
        repo.unmount("agent-1")

    assert [os.getpid()] == [it.pid for it in caught.value.holders]


def test_force_detaches_and_ends_the_session(
    repo: api.Repository, mounted: Any, tmp_path: Path
) -> None:
    """``force`` pulls a busy mount away; what a program had written to an open file is kept."""
    done = mounted("agent-1")
    with open(done.mountpoint / "f", "wb", buffering=0) as file:
        file.write(b"z" * 70_000)
        end = repo.unmount("agent-1", force=True).unmounted[0]
        assert end.method == "detached"
        assert sessions_of(tmp_path) == []
        with pytest.raises(OSError):
            os.pread(file.fileno(), 1, 0)

    assert not is_mounted(done.mountpoint)
    assert (repo.heddle_dir / "overlays/agent-1/upper/f").stat().st_size == 70_000


def test_dirty_pages_survive_an_unmount(repo: api.Repository, mounted: Any) -> None:
    """Bytes written and closed just before the unmount, and not synced, are in the overlay."""
    done = mounted("agent-1")
    (done.mountpoint / "f").write_bytes(b"q" * (5 << 20))
    repo.unmount("agent-1")

    upper = repo.heddle_dir / "overlays/agent-1/upper/f"
    assert upper.read_bytes() == b"q" * (5 << 20)


def test_unmount_by_path_inside(repo: api.Repository, mounted: Any) -> None:
    """A path in a mount means the mount, from whatever repository one asks."""
    done = mounted("agent-1")
    (done.mountpoint / "sub").mkdir()
    other = heddle.init(repo.path.parent / "other")
    other.unmount(done.mountpoint / "sub")

    assert not is_mounted(done.mountpoint)


def test_unmount_all_ends_every_session(repo: api.Repository, mounted: Any) -> None:
    """Without a target all sessions of the repository end; a busy one is reported, not in the way."""
    one, _two, _three = mounted("one"), mounted("two"), mounted("three")
    holder = holding(one.mountpoint)
    try:
        done = repo.unmount(keep_going=True)
    finally:
        ended(holder)

    assert {"two", "three"} == {it.thread for it in done.unmounted}
    assert [(one.mountpoint, [holder.pid])] == [
        (it.mountpoint, [holder.pid for holder in it.holders]) for it in done.failed
    ]


def test_discard_puts_unsaved_work_aside(repo: api.Repository, mounted: Any) -> None:
    """Only ``discard`` drops unsaved work; it says how much and where it is kept."""
    done = mounted("agent-1")
    (done.mountpoint / "f").write_text("12345")
    end = repo.unmount("agent-1", discard=True).unmounted[0]

    assert end.discarded is not None and end.kept_in is not None
    assert (end.discarded.files, end.discarded.bytes) == (1, 5)
    assert [path.read_text() for path in end.kept_in.rglob("f")] == ["12345"]
    assert os.listdir(mounted("agent-1").mountpoint) == []


def test_discard_after_the_session_is_over(repo: api.Repository, mounted: Any) -> None:
    """An unmount that ended the session and was interrupted before it discarded can be given again; only that."""
    (mounted("agent-1").mountpoint / "f").write_text("12345")
    repo.unmount("agent-1")
    [end] = repo.unmount("agent-1", discard=True).unmounted

    assert (end.method, end.was, end.mountpoint) == ("discarded", None, None)
    assert end.discarded is not None and end.kept_in is not None
    assert (end.discarded.files, end.discarded.bytes) == (1, 5)
    assert [path.read_text() for path in end.kept_in.rglob("f")] == ["12345"]
    with pytest.raises(NotMounted):
        repo.unmount("agent-1", discard=True)
    repo.threads.create("never-mounted", None)
    with pytest.raises(NotMounted):
        repo.unmount("never-mounted", discard=True)


def test_capture_at_the_unmount(repo: api.Repository, mounted: Any) -> None:
    """``capture`` records first; a mount without changes is simply ended."""
    done = mounted("agent-1")
    (done.mountpoint / "f").write_text("x")
    end = repo.unmount("agent-1", capture="Last words").unmounted[0]
    assert repo.state("agent-1").message.strip() == "Last words"
    assert end.dirty is not None and end.dirty.files == 0

    mounted("agent-1")
    before = repo.threads.get("agent-1").state
    repo.unmount("agent-1", capture="Nothing")
    assert before == repo.threads.get("agent-1").state


def test_unmounting_what_is_not_mounted(repo: api.Repository) -> None:
    """A thread that is not mounted, one that is not there, and a path in no mount are three clear errors."""
    repo.threads.create("agent-1", None)
    for target, kind in (
        ("agent-1", NotMounted),
        ("nobody", ThreadNotFound),
        ("a//b", NotMounted),
        (repo.path, NotMounted),
    ):
        with pytest.raises(kind):
            repo.unmount(target)


# bad input: a clear error, the right exit code, nothing changed


@pytest.fixture
def unchanged(repo: api.Repository, tmp_path: Path) -> Any:
    """Nothing is made or left by a mount that is refused: no thread, no directory, no session."""
    repo.threads.create("agent-1", None)

    def picture() -> Any:
        runtime = sorted(repo.runtime.path.glob("*.[js]*"))
        files = sorted(
            str(path) for path in tmp_path.rglob("*") if not {"runtime", "work"} & set(path.parts)
        )
        return files, runtime, [it.name for it in repo.threads], repo.database.mounts()

    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    before = picture()
    yield
    assert before == picture()
    wait_until(lambda: sessions_of(tmp_path) == [], "the idle session to end")


@pytest.mark.parametrize(
    ("place", "kind", "exit_code"),
    [
        ("file", MountpointUnusable, 65),
        ("full", MountpointUnusable, 65),
        ("missing/deeper", CannotCreate, 73),
        ("file/below", CannotCreate, 73),
        ("repo/.heddle/here", MountpointUnusable, 65),
        ("repo/.heddle/objects", MountpointUnusable, 65),
        ("repo", MountpointUnusable, 65),
    ],
)
def test_a_mountpoint_that_is_none(
    repo: api.Repository,
    unchanged: None,
    tmp_path: Path,
    place: str,
    kind: type[HeddleError],
    exit_code: int,
) -> None:
    """A file, a full directory, a missing parent, the repository's own directory: refused."""
    with pytest.raises(kind) as caught:
        repo.mount("agent-1", tmp_path / place)

    assert exit_code == caught.value.exit_code
    assert str(tmp_path) in caught.value.message


def test_a_mountpoint_inside_another_mount(
    repo: api.Repository, mounted: Any, unchanged: None, tmp_path: Path
) -> None:
    """A mount inside a mount is refused, whoever's it is."""
    done = mounted("outer")
    (done.mountpoint / "inner").mkdir()
    with pytest.raises(MountpointUnusable, match="outer"):
        repo.mount("agent-1", done.mountpoint / "inner")
    with pytest.raises(MountpointUnusable, match="outer"):
        repo.mount("agent-1", done.mountpoint)
    repo.unmount("outer", discard=True)
    repo.threads.delete("outer", force=True)
    _remove_tree(repo.heddle_dir / "overlays" / ".parked")


def _remove_tree(path: Path) -> None:
    import shutil

    shutil.rmtree(path)


def test_a_thread_that_is_mounted_elsewhere(
    repo: api.Repository, mounted: Any, tmp_path: Path
) -> None:
    """A thread has one mount; asking for a second says where the first is."""
    done = mounted("agent-1", tmp_path / "here")
    with pytest.raises(DataError, match=str(done.mountpoint)) as caught:
        repo.mount("agent-1", tmp_path / "there")

    assert caught.value.exit_code == 65
    assert not (tmp_path / "there").exists()


def test_names_and_threads_that_can_not_be(repo: api.Repository, unchanged: None) -> None:
    """Invalid names, missing threads, threads that exist and specs that mean nothing are refused."""
    for name in ("..", "a//b", "a\nb", "-x", ""):
        with pytest.raises(InvalidName):
            repo.mount(name, create=True)
    with pytest.raises(ThreadNotFound) as caught:
        repo.mount("nobody")
    assert caught.value.hint is not None and "--create" in caught.value.hint
    with pytest.raises(ThreadExists):
        repo.mount("agent-1", create=True)
    with pytest.raises(StateNotFound):
        repo.mount("new", create=True, start="nothing-like-it")
    with pytest.raises(StateNotFound):
        repo.mount("nothing-like-it", read_only=True)
    with pytest.raises(UsageError):
        repo.mount("agent-1", start="main")


def test_no_fusermount(
    repo: api.Repository, unchanged: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without fusermount3 the error says what to install."""
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(Unavailable) as caught:
        repo.mount("agent-1")

    assert (caught.value.exit_code, caught.value.hint) == (69, "apt-get install fuse3")


def test_no_fuse_device(
    repo: api.Repository, unchanged: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without /dev/fuse the error says what the kernel or the container lacks."""
    monkeypatch.setattr(mountpoint, "FUSE_DEVICE", tmp_path / "no-fuse")
    with pytest.raises(Unavailable) as caught:
        repo.mount("agent-1")

    assert caught.value.exit_code == 69
    assert caught.value.hint is not None and "--device" in caught.value.hint


def test_a_fuse_device_that_is_closed(
    repo: api.Repository, unchanged: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A /dev/fuse that this user may not open is told before anything is tried."""
    real = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: path != mountpoint.FUSE_DEVICE and real(path, mode)
    )
    with pytest.raises(Unavailable, match="closed to user") as caught:
        repo.mount("agent-1")

    assert caught.value.exit_code == 69


def test_allow_other_needs_a_line(
    repo: api.Repository, unchanged: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Somebody who is not root needs ``user_allow_other`` to let others in, and is told so."""
    (tmp_path / "runtime" / "fuse.conf").write_text("#user_allow_other\n")
    monkeypatch.setattr(mountpoint, "FUSE_CONF", tmp_path / "runtime" / "fuse.conf")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NotPermitted, match="user_allow_other"):
        repo.mount("agent-1", allow_other=True)


def test_allow_other_lets_others_in(mounted: Any) -> None:
    """With ``allow_other`` the kernel does not keep other users out."""
    done = mounted("agent-1", allow_other=True)
    line = next(
        line
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if f" {done.mountpoint} " in line
    )

    assert "allow_other" in line and "default_permissions" in line


def test_an_open_runtime_directory_is_refused(
    repo: api.Repository, unchanged: None, tmp_path: Path
) -> None:
    """A runtime directory that others may enter is not used: exit code 77."""
    runtime = tmp_path / "runtime" / "heddle"
    runtime.mkdir(mode=0o700, exist_ok=True)
    runtime.chmod(0o755)
    try:
        with pytest.raises(NotPermitted) as caught:
            repo.mount("agent-1")
    finally:
        runtime.chmod(0o700)

    assert caught.value.exit_code == 77


def test_a_mount_that_is_refused_by_the_kernel_says_why(
    repo: api.Repository, unchanged: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What the session meets before it serves reaches the caller as the error it was, and undoes what was made."""
    monkeypatch.setenv("HEDDLE_FAULT", "session.before-mount")
    with pytest.raises(Unavailable, match="ended before it could mount"):
        repo.mount("agent-1", tmp_path / "place")
    _remove_tree(repo.heddle_dir / "overlays" / "agent-1")
    _forget_sockets(repo)


def _forget_sockets(repo: api.Repository) -> None:
    for path in repo.runtime.path.glob("*.sock"):
        path.unlink()
