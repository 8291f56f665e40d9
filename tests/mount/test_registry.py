"""What tells sessions apart without a mount: the kernel's table, processes, records, the runtime directory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from world import wait_until

from heddle.errors import Busy, CannotCreate, HeddleError, NotPermitted
from heddle.mount import mountinfo, mountpoint, process, registry, runtime
from heddle.mount.mountinfo import KernelMount
from heddle.mount.process import ProcessIdentity
from heddle.mount.registry import SessionRecord
from heddle.mount.runtime import RuntimeDirectory

# the kernel's table

LINE = (
    b"76 27 0:45 / %b rw,nosuid - fuse.heddle %b rw,user_id=1000,group_id=0,default_permissions\n"
)

paths = (
    st.binary(min_size=1, max_size=60).filter(lambda it: b"\0" not in it).map(lambda it: b"/" + it)
)


def table(*lines: bytes) -> list[KernelMount]:
    return [mountinfo._parse(line) for line in lines]


def escaped(path: bytes) -> bytes:
    """A path as the kernel writes it in mountinfo."""
    return b"".join(b"\\%03o" % it if it in b" \t\n\\#" else bytes([it]) for it in path)


@given(paths, paths)
@example(b"/a:b,c d\n\\040", b"/\xff\xfe#")
def test_a_source_gives_back_what_it_was_made_of(repository: bytes, name: bytes) -> None:
    """Whatever bytes are in a path or a name, the mount's source holds none that could confuse anybody."""
    where = Path(os.fsdecode(repository))
    source = mountinfo.format_source(where, os.fsdecode(name))

    assert mountinfo.parse_source(source) == (where, os.fsdecode(name))
    assert not set(source) & set(" ,\t\n\\#")
    assert source.isascii()


@given(paths)
@example(b"/with space\\and\nnewline\ttab#hash")
def test_a_mountpoint_is_read_back(path: bytes) -> None:
    """The kernel's octal escapes are undone, for any path."""
    [mount] = table(LINE % (escaped(path), b"heddle:/r:t"))

    assert os.fsencode(mount.mountpoint) == os.fsencode(Path(os.fsdecode(path)))
    assert mount.served() == (Path("/r"), "t")


def test_what_a_line_says() -> None:
    """Fields after a varying number of optional ones are found; ro counts on the mount and on the file system."""
    plain, shared, read_only, ro_super, other = table(
        LINE % (b"/m", b"heddle:/r:a"),
        b"1 2 0:3 /sub /m rw shared:1 master:2 - fuse.heddle heddle:/r:a rw,user_id=0\n",
        b"1 2 0:3 / /m ro,nosuid - fuse.heddle heddle:/r:a rw,user_id=0\n",
        b"1 2 0:3 / /m rw - fuse.heddle heddle:/r:a ro,user_id=0\n",
        b"1 2 0:3 / /m rw,norom - ext4 heddle:/r:a rw,errors=remount-ro\n",
    )

    assert (plain.mount_id, plain.user_id, plain.read_only) == (76, 1000, False)
    assert (shared.root, shared.read_only) == (Path("/sub"), False)
    assert (read_only.read_only, ro_super.read_only, other.read_only) == (True, True, False)
    assert other.served() is None
    assert other.user_id is None


@pytest.mark.parametrize("source", ["heddle", "heddle:", "heddle:/r", "heddle:r:t", "sshfs:/r:t"])
def test_other_sources_are_not_ours(source: str) -> None:
    """A source that we did not write is nobody's session."""
    assert mountinfo.parse_source(source) is None


def test_the_last_mount_at_a_place_is_what_it_shows() -> None:
    """Of several mounts on one place the last is on top."""
    mounts = table(LINE % (b"/m", b"heddle:/r:a"), LINE % (b"/m", b"heddle:/r:b"))
    top = mountinfo.topmost(mounts, Path("/m"))

    assert top is not None
    assert top.served() == (Path("/r"), "b")
    assert mountinfo.topmost(mounts, Path("/n")) is None


def test_links_are_followed_up_to_a_mount_and_no_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resolving looks nothing up at or below a mount, where a look-up might never return."""
    looked_at: list[Path] = []
    real = mountinfo._readlink

    def readlink(path: Path) -> str | None:
        looked_at.append(path)
        return real(path)

    monkeypatch.setattr(mountinfo, "_readlink", readlink)
    place = tmp_path / "place"
    place.mkdir()
    (tmp_path / "link").symlink_to("place")
    (tmp_path / "far").symlink_to(tmp_path / "link")
    [mount] = table(LINE % (os.fsencode(place), b"heddle:/r:t"))
    found = mountinfo.resolve_outside(tmp_path / "far" / "x" / "y", [mount])

    assert found == place / "x" / "y"
    assert mountinfo.resolve_outside(tmp_path / "far" / ".." / "z", [mount]) == tmp_path / "z"
    assert not [path for path in looked_at if place in (path, *path.parents)]


def test_a_ring_of_links_ends(tmp_path: Path) -> None:
    """Links that lead in a circle are given up on."""
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")

    assert mountinfo.resolve_outside(tmp_path / "a", []).parent == tmp_path


def test_resolving_is_what_the_kernel_does(tmp_path: Path) -> None:
    """Without mounts in the way a path resolves as it does for everybody."""
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "l").symlink_to("d/e")
    for path in (tmp_path / "l" / ".." / "e", tmp_path / "l" / "new", tmp_path / "d" / "." / "e"):
        assert mountinfo.resolve_outside(path, []) == path.resolve()


def test_a_place_in_no_mount_has_no_location(tmp_path: Path) -> None:
    """Ordinary directories, also missing ones, are in no session's mount."""
    assert registry.locate(tmp_path) is None
    assert registry.locate(tmp_path / "missing" / "deeper") is None


# processes


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that does nothing."""
    child = subprocess.Popen(["/bin/sleep", "1000"])
    yield child
    child.kill()
    child.wait()


def identity(child: subprocess.Popen[bytes]) -> ProcessIdentity:
    found = ProcessIdentity.of(child.pid)
    assert found is not None
    return found


def test_a_process_is_itself_until_it_ends(sleeper: subprocess.Popen[bytes]) -> None:
    """An identity lives with its process; a zombie is dead already, and so is a reaped pid."""
    it = identity(sleeper)
    assert it.is_alive()
    assert not it.wait(0)

    sleeper.kill()
    assert it.wait(10)
    assert not it.is_alive()
    sleeper.wait()
    assert not it.is_alive()
    assert it.wait(0)


def test_a_reused_pid_is_another_process(sleeper: subprocess.Popen[bytes]) -> None:
    """Same pid with another start time or another boot is not the process: not alive, not waited for, not signalled."""
    it = identity(sleeper)
    for other in (it._replace(start_ticks=it.start_ticks - 1), it._replace(boot_id="before")):
        assert not other.is_alive()
        assert other.wait(0)
        assert not other.signal(signal.SIGKILL)

    assert sleeper.poll() is None


def test_a_stopped_process_is_alive_and_stopped(sleeper: subprocess.Popen[bytes]) -> None:
    """SIGSTOP is seen, and SIGCONT through the identity undoes it."""
    it = identity(sleeper)
    assert not it.is_stopped()
    assert it.signal(signal.SIGSTOP)
    wait_until(it.is_stopped, "the process to stop")
    assert it.is_alive()
    it.signal(signal.SIGCONT)
    wait_until(lambda: not it.is_stopped(), "the process to go on")


def test_a_name_with_brackets_does_not_confuse(tmp_path: Path) -> None:
    """A process may call itself anything, ``) Z 1 (`` included."""
    script = "open('/proc/self/comm', 'w').write(') Z 1 ('); print(flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    child.stdout.readline()
    it = identity(child)
    child.communicate(b"\n")

    assert it.pid == child.pid
    assert it.start_ticks > 0


def test_a_process_whose_first_thread_ended_is_waited_for(tmp_path: Path) -> None:
    """While another thread still runs, the process holds its files: ``wait`` goes on."""
    script = (
        "import ctypes, os, threading\n"
        "threading.Thread(target=lambda: (print(flush=True), os.read(0, 1), os._exit(0))).start()\n"
        "ctypes.CDLL(None).pthread_exit(None)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    it = identity(child)
    assert child.stdout is not None
    child.stdout.readline()
    wait_until(lambda: not it.is_alive(), "the first thread to end")
    assert not it.wait(0)

    child.communicate(b"x")
    assert it.wait(10)


def test_holders_are_found_by_what_they_hold(tmp_path: Path) -> None:
    """A working directory, an open file: found by name, with pid and command; neighbours are not."""
    inside, beside = tmp_path / "m", tmp_path / "m2"
    for directory in (inside, beside):
        directory.mkdir()
    (inside / "f").touch()
    standing = subprocess.Popen(["/bin/sleep", "1001"], cwd=inside)
    neighbour = subprocess.Popen(["/bin/sleep", "1002"], cwd=beside)
    with open(inside / "f") as file:
        reading = subprocess.Popen(["/bin/sleep", "1003"], stdin=file)
    try:
        wait_until(lambda: len(process.find_holders(inside)) >= 2, "the holders to start")
        found = {it.pid: it.command for it in process.find_holders(inside)}
    finally:
        for child in (standing, neighbour, reading):
            child.kill()
            child.wait()

    assert found == {standing.pid: "/bin/sleep 1001", reading.pid: "/bin/sleep 1003"}


# records


def record(directory: Path, **changes: Any) -> SessionRecord:
    values = SessionRecord(
        repository=directory / "repo",
        thread="a/b",
        spec="a/b",
        mountpoint=directory / os.fsdecode(b"m\xff"),
        process=ProcessIdentity(12, 34, "boot"),
        since_ns=56,
        read_only=False,
        allow_other=True,
        socket=directory / "s.sock",
        log=directory / "log",
        made_mountpoint=True,
        agent={"agent.model": "m"},
    )
    return values._replace(**changes)


def test_a_record_is_the_same_in_both_places(tmp_path: Path) -> None:
    """What a session writes about itself is read back whole, from its file's JSON and from its row."""
    for it in (record(tmp_path), record(tmp_path, thread=None, read_only=True, agent={})):
        assert SessionRecord.from_json(it.to_json()) == it
        assert SessionRecord.from_row(it.repository, it.to_row()) == it


def test_a_record_that_is_damaged_is_none(tmp_path: Path) -> None:
    """Half a record, or somebody else's file, is left out; the others are found."""
    where = RuntimeDirectory.at(tmp_path / "run")
    registry.register(where, record(where.path))
    for name, text in (("x.json", "{"), ("y.json", "[]"), ("z.json", '{"repository": 1}')):
        (where.path / name).write_text(text)

    assert registry.recorded(where) == [record(where.path)]


def test_forgetting_spares_a_successor(tmp_path: Path) -> None:
    """A session that ends late does not remove what its successor wrote."""
    where = RuntimeDirectory.at(tmp_path / "run")
    old = record(where.path)
    new = record(where.path, process=ProcessIdentity(13, 35, "boot"))
    registry.register(where, old)
    registry.register(where, new)
    registry.forget(where, old, None)
    assert registry.recorded(where) == [new]

    registry.forget(where, new, None)
    assert registry.recorded(where) == []


def test_the_newest_record_of_a_place_counts(tmp_path: Path) -> None:
    """A file and a row about the same place: the later one is believed."""
    where = RuntimeDirectory.at(tmp_path / "run")
    registry.register(where, record(where.path))

    class Repo:
        path = where.path / "repo"

        class database:
            @staticmethod
            def mounts() -> list[Any]:
                return [record(where.path, since_ns=99).to_row()]

    repo: Any = Repo
    assert [it.since_ns for it in registry.recorded(where, repo)] == [99]


# the runtime directory


def test_the_runtime_directory_follows_the_environment(tmp_path: Path) -> None:
    """$XDG_RUNTIME_DIR/heddle, made closed to others; without it, /tmp/heddle-<uid>."""
    tmp_path.chmod(0o700)
    made = RuntimeDirectory.from_environment({"XDG_RUNTIME_DIR": str(tmp_path)}).path

    assert made == tmp_path / "heddle"
    assert made.stat().st_mode & 0o777 == 0o700
    for environment in ({}, {"XDG_RUNTIME_DIR": ""}):
        default = RuntimeDirectory.from_environment(environment).path
        assert default == Path(f"/tmp/heddle-{os.getuid()}")


def refused(path: Path) -> HeddleError:
    with pytest.raises(HeddleError) as caught:
        RuntimeDirectory.at(path)
    return caught.value


def test_unsafe_runtime_directories_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative, a link, a file, open to others, in a place where others can replace it: exit code 77, and why."""
    tmp_path.chmod(0o700)
    with pytest.raises(NotPermitted, match="absolute"):
        RuntimeDirectory.from_environment({"XDG_RUNTIME_DIR": "relative"})
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "file").touch()
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o750)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    for name in ("link", "file", "open", "shared/inside"):
        error = refused(tmp_path / name)
        assert (error.exit_code, str(tmp_path) in error.message) == (77, True)
        assert error.hint is not None
    assert isinstance(refused(tmp_path / "missing" / "x"), CannotCreate)


def test_somebody_elses_runtime_directory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory of another user is not used, however well it is closed."""
    tmp_path.chmod(0o700)
    (tmp_path / "run").mkdir(mode=0o700)
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)

    assert refused(tmp_path / "run").exit_code == 77


def test_names_are_short_and_apart(tmp_path: Path) -> None:
    """Session names have one short length, and differ by repository, thread and, for states, place."""
    where = RuntimeDirectory(tmp_path)
    names = [
        where.session_id(Path("/r" * 500), "t"),
        where.session_id(Path("/r"), "t"),
        where.session_id(Path("/r"), "t2"),
        where.session_id(Path("/r"), "t", Path("/m")),
        where.session_id(Path("/r"), "t", Path("/n")),
    ]

    assert len(set(names)) == 5
    assert {len(name) for name in names} == {16}


def test_a_change_is_over_when_its_block_is(tmp_path: Path) -> None:
    """Who comes next does not wait for a process that was forked meanwhile."""
    where = RuntimeDirectory.at(tmp_path / "run")
    read, write = os.pipe()
    with where.changing("x"):
        child = os.fork()
        if child == 0:
            os.close(write)
            os.read(read, 1)  # until the other end is closed
            os._exit(0)
    os.close(read)
    try:
        with where.changing("x"):
            assert os.waitpid(child, os.WNOHANG) == (0, 0)
    finally:
        os.close(write)
        os.waitpid(child, 0)


def test_one_change_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second mount or unmount of a session waits for the first; not for ever."""
    where = RuntimeDirectory.at(tmp_path / "run")
    inside, leave, second = threading.Event(), threading.Event(), threading.Event()

    def first() -> None:
        with where.changing("x"):
            inside.set()
            leave.wait(10)

    def follow() -> None:
        with where.changing("x"):
            second.set()

    threads = [threading.Thread(target=first), threading.Thread(target=follow)]
    threads[0].start()
    assert inside.wait(10)
    with where.changing("y"):
        pass
    monkeypatch.setattr(runtime, "_LOCK_TIMEOUT_S", 0.05)
    with pytest.raises(Busy), where.changing("x"):
        pass
    monkeypatch.undo()
    threads[1].start()
    assert not second.is_set()
    leave.set()
    assert second.wait(10)
    for thread in threads:
        thread.join()


# mountpoints


def test_an_ordinary_directory_is_served(tmp_path: Path) -> None:
    """The probe for mounts that nobody speaks for says yes where look-ups work, no where they fail."""
    assert mountpoint.answers(Path("/"), 10) is True
    assert mountpoint.answers(tmp_path / "missing", 10) is False


def test_a_probe_that_hangs_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer in time is told as such, and the helper is not waited for."""
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 1000\n")
    slow.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(slow))

    assert mountpoint.answers(Path("/"), 0.2) is None


def test_flush_skips_what_is_gone(tmp_path: Path) -> None:
    """Files that went away since the session named them need no flush; links are not followed."""
    (tmp_path / "f").write_text("x")
    (tmp_path / "link").symlink_to("f")
    os.mkfifo(tmp_path / "pipe")

    assert mountpoint.flush(tmp_path, [b"f", b"gone", b"no/dir", b"link"]) == []


def test_only_an_empty_directory_made_for_a_mount_is_removed(tmp_path: Path) -> None:
    """Removing a mountpoint never removes anything but an empty directory."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "empty").mkdir()
    for name in ("full", "empty", "missing"):
        mountpoint.remove(tmp_path / name)

    assert sorted(os.listdir(tmp_path / "full")) == ["x"]
    assert not (tmp_path / "empty").exists()
