"""Errors from below: the program in the mount gets the errno, the session lives, nothing breaks, work goes on.

A disk that can't read or write lies behind a FUSE file of the test's own and a loop device; a quota is btrfs's. The
full disk, the full inode table and the few descriptors are in ``test_scarcity``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from world import wait_until

import heddle
from heddle import api
from heddle.errors import HeddleError, NotPermitted

MIB = 1 << 20
DISK = Path(__file__).parent / "disk.py"

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture(autouse=True)
def as_root() -> None:
    """File systems are mounted."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")


def run(*words: object) -> str:
    done = subprocess.run([str(it) for it in words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout.strip()


class Below:
    """A file system that misbehaves when told, with a repository on it and the mount of its thread ``agent``."""

    def __init__(self, top: Path, place: Path) -> None:
        self.top = top
        self.place = place
        self.repo = heddle.init(top / "repo")
        (self.repo.path / "big").write_bytes(os.urandom(3 * MIB))
        for number in range(5):
            (self.repo.path / f"f{number}").write_text(f"captured {number}\n")
        self.big = (self.repo.path / "big").read_bytes()
        self.repo.capture(message="First")

    def mount(self) -> None:
        self.repo.mount("agent", self.place, create="agent" not in self.repo.threads)

    def lives(self) -> None:
        assert [it.state for it in self.repo.mounts()] == ["live"]

    def is_whole(self) -> None:
        self.lives()
        assert self.repo.fsck(full=True).problems == []
        assert (self.place / "big").read_bytes() == self.big

    def can_work(self) -> None:
        """A file can be written, captured, and read back from its state."""
        (self.place / "after").write_text("it goes on")
        captured = self.repo.capture(message="After", thread="agent")
        entry = self.repo.lookup_path(captured.state.id, b"after")
        assert self.repo.store.get_raw(entry[1])[1] == b"it goes on"


def refused(act: Callable[[], Any]) -> int | None:
    """The errno that a program got."""
    try:
        act()
    except OSError as error:
        return error.errno
    return None


def write_through(path: Path, data: bytes) -> None:
    with path.open("wb", buffering=0) as file:
        file.write(data)
        os.fsync(file.fileno())


# a disk that fails


class Failing(Below):
    """On ext4, on a loop device, on a file whose reads and writes can be made to fail."""

    def __init__(self, tmp_path: Path) -> None:
        self.backing = tmp_path / "backing"
        self.mode = tmp_path / "backing.mode"
        self.mode.write_text("")
        with self.backing.open("wb") as file:
            file.truncate(96 * MIB)
        (tmp_path / "disk").mkdir()
        self.device = ""
        self.server = subprocess.Popen(
            [sys.executable, DISK, tmp_path / "disk", self.backing], stdout=subprocess.PIPE
        )
        assert self.server.stdout is not None and self.server.stdout.readline() == b"ready\n"
        self.device = run("losetup", "--find", "--show", tmp_path / "disk" / "image")
        run(
            "mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", self.device
        )
        (tmp_path / "top").mkdir()
        run("mount", "-o", "errors=remount-ro", self.device, tmp_path / "top")
        super().__init__(tmp_path / "top", tmp_path / "place")

    def fails(self, *what: str) -> None:
        self.mode.write_text(" ".join(what))

    def forget_pages(self) -> None:
        """Have the kernel read files of the repository from the disk again."""
        os.sync()
        for path in (self.repo.heddle_dir).rglob("*"):
            if path.is_file() and not path.name.startswith("heddle.db"):
                fd = os.open(path, os.O_RDONLY)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(fd)

    def close(self) -> None:
        self.fails()
        with contextlib.suppress(HeddleError):
            self.repo.unmount("agent", force=True)
        self.repo.close()
        subprocess.run(["umount", "-l", self.top], check=False)
        try:
            if self.device:
                run("losetup", "-d", self.device)
                wait_until(lambda: self.device not in run("losetup", "-a"), "the loop device to go")
        finally:
            subprocess.run(["umount", "-l", self.backing.parent / "disk"], check=False)
            self.server.wait(20)


@pytest.fixture
def failing(tmp_path: Path) -> Iterator[Failing]:
    world = Failing(tmp_path)
    try:
        yield world
    finally:
        world.close()


def test_a_disk_that_cannot_read(failing: Failing) -> None:
    """Captured and unsaved bytes that the disk can't read are EIO; when it can again, they are there."""
    failing.mount()
    write_through(failing.place / "unsaved", b"u" * MIB)
    failing.repo.unmount("agent")
    failing.mount()
    failing.forget_pages()
    failing.fails("no-read")
    assert refused((failing.place / "big").read_bytes) == errno.EIO
    assert refused((failing.place / "unsaved").read_bytes) == errno.EIO
    failing.lives()

    failing.fails()
    assert (failing.place / "unsaved").read_bytes() == b"u" * MIB
    failing.is_whole()
    failing.can_work()


def test_fsck_on_a_disk_that_cannot_read(failing: Failing) -> None:
    """What can't be read is named, and neither check nor repair takes it for something else."""
    failing.forget_pages()
    failing.fails("no-read")
    assert {it.kind for it in failing.repo.fsck(full=True).problems} >= {"damaged_pack"}

    failing.fails()
    assert failing.repo.fsck(full=True).problems == []


def test_a_disk_that_cannot_write(failing: Failing) -> None:
    """An fsync that the disk refuses is EIO; the file system goes read-only under the session, which lives on.

    What was synced before is there when the disk writes again, and the repository is whole.
    """
    failing.mount()
    write_through(failing.place / "kept", b"kept")
    before = failing.repo.capture(message="Before", thread="agent").state.id
    failing.fails("no-write")
    assert refused(lambda: write_through(failing.place / "new", b"n" * MIB)) == errno.EIO
    wait_until(
        lambda: refused((failing.top / "x").touch) == errno.EROFS, "the file system to go read-only"
    )
    assert refused(lambda: (failing.place / "more").touch()) == errno.EROFS
    with pytest.raises(NotPermitted, match="Read-only"):
        failing.repo.capture(message="Refused", thread="agent")
    assert (failing.place / "kept").read_bytes() == b"kept"
    assert (failing.place / "f1").read_text() == "captured 1\n"
    failing.lives()

    failing.fails()
    failing.repo.unmount("agent", force=True)
    failing.repo.close()
    run("umount", failing.top)
    subprocess.run(["e2fsck", "-p", "-f", failing.device], capture_output=True, check=False)
    run("mount", failing.device, failing.top)
    failing.mount()
    assert failing.repo.threads.get("agent").state == before
    assert (failing.place / "kept").read_bytes() == b"kept"
    failing.is_whole()
    failing.can_work()


# a quota


class Limited(Below):
    """On btrfs, with a quota group that can be limited."""

    def __init__(self, tmp_path: Path) -> None:
        image = tmp_path / "image"
        with image.open("wb") as file:
            file.truncate(160 * MIB)
        run("mkfs.btrfs", "-q", "-M", image)
        (tmp_path / "top").mkdir()
        run("mount", "-o", "loop", image, tmp_path / "top")
        run("btrfs", "quota", "enable", tmp_path / "top")
        run("btrfs", "subvolume", "create", tmp_path / "top" / "mine")
        words = ["btrfs", "inspect-internal", "rootid", tmp_path / "top" / "mine"]
        self._id = subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
        super().__init__(tmp_path / "top" / "mine", tmp_path / "place")

    def limit(self, size: str) -> None:
        """Asked for at the top, which has no limit itself: over quota even this needs some room."""
        os.sync()
        run("btrfs", "qgroup", "limit", size, f"0/{self._id}", self.top.parent)

    def close(self) -> None:
        self.limit("none")  # or closing the database could end the tests themselves by SIGBUS
        with contextlib.suppress(HeddleError):
            self.repo.unmount("agent", force=True)
        self.repo.close()
        run("umount", self.top.parent)


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[Limited]:
    assert shutil.which("mkfs.btrfs"), "script/setup test installs btrfs-progs"
    world = Limited(tmp_path)
    try:
        yield world
    finally:
        world.close()


def test_a_quota(limited: Limited) -> None:
    """Over quota is EDQUOT for the program and a failure for a capture; more quota is all that is needed.

    What SQLite shares between processes is mapped memory, for which btrfs answers SIGBUS instead of EDQUOT: a command
    may end by that, and has changed nothing.
    """
    limited.mount()
    write_through(limited.place / "fits", os.urandom(2 * MIB))
    before = limited.repo.threads.get("agent").state
    limited.repo.close()
    limited.limit("12M")
    told = refused(lambda: write_through(limited.place / "big2", os.urandom(20 * MIB)))
    assert told == errno.EDQUOT
    command = [sys.executable, "-m", "heddle", "capture", "--thread", "agent", "-m", "Refused"]
    done = subprocess.run(command, cwd=limited.top / "repo", capture_output=True, check=False)
    assert done.returncode in (74, -signal.SIGBUS), done
    assert (limited.place / "fits").stat().st_size == 2 * MIB

    limited.limit("none")
    assert limited.repo.threads.get("agent").state == before
    wait_until(lambda: [it.state for it in limited.repo.mounts()] == ["live"], "the session")
    limited.is_whole()
    limited.can_work()


# memory


def test_no_memory(captured_repo: api.Repository, tmp_path: Path) -> None:
    """A session that gets no more memory gives ENOMEM to those it can't serve, lives, and serves again with more."""
    content = os.urandom(24 * MIB)
    (captured_repo.path / "big").write_bytes(content)
    captured_repo.capture(message="Big")
    place = tmp_path / "place"
    pid = captured_repo.mount("agent", place, create=True).pid
    try:
        assert (place / "a.txt").read_text() == "one\ntwo\n"
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
        limits = resource.prlimit(pid, resource.RLIMIT_AS)
        resource.prlimit(pid, resource.RLIMIT_AS, (pages * resource.getpagesize(), limits[1]))
        try:
            told = refused((place / "big").read_bytes)
        finally:
            resource.prlimit(pid, resource.RLIMIT_AS, limits)
        assert told == errno.ENOMEM

        assert (place / "big").read_bytes() == content
        assert [it.state for it in captured_repo.mounts()] == ["live"]
        (place / "after").write_text("it goes on")
        captured_repo.capture(message="After", thread="agent")
        assert captured_repo.fsck(full=True).problems == []
    finally:
        captured_repo.unmount("agent", force=True)
