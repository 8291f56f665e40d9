"""No space, inodes or descriptors, no right to write, unreadable bytes: the program is told, and nothing breaks.

The session lives, the repository is whole, and work goes on when the cause is gone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import heddle
from heddle import api
from heddle.errors import HeddleError, StorageError

MIB = 1 << 20


class Small:
    """A file system of its own with a repository in it, and the mount of its thread ``agent``."""

    def __init__(self, top: Path, place: Path) -> None:
        self.top = top
        self.place = place
        self.repo = heddle.init(top / "repo")
        for number in range(20):
            (self.repo.path / f"f{number}").write_text(f"captured {number}\n")
        self.repo.capture(message="First")

    def mount(self) -> None:
        self.repo.mount("agent", self.place, create="agent" not in self.repo.threads)

    def remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", self.top], check=True)

    def is_whole(self) -> None:
        """The session lives, fsck is clean, and everything that was captured is there."""
        assert [info.state for info in self.repo.mounts()] == ["live"]
        assert self.repo.fsck(full=True).problems == []
        for number in range(20):
            assert (self.place / f"f{number}").read_text().startswith(f"captured {number}\n")

    def can_work(self) -> None:
        """A file can be written, captured, and read back from its state."""
        (self.place / "after").write_text("it goes on")
        captured = self.repo.capture(message="After", thread="agent")
        entry = self.repo.lookup_path(captured.state.id, b"after")
        assert self.repo.store.get_raw(entry[1])[1] == b"it goes on"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Callable[[str], Small]]:
    """Make a small file system with these options of tmpfs(5)."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    made: list[Small] = []

    def make(options: str) -> Small:
        top = tmp_path / "small"
        top.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", top], check=True)
        made.append(Small(top, tmp_path / "place"))
        return made[0]

    yield make
    for each in made:
        with contextlib.suppress(HeddleError):
            each.repo.unmount("agent", force=True)
        each.repo.close()
    subprocess.run(["umount", "-l", tmp_path / "small"], check=True)


def fill(path: Path, size: int) -> int:
    """Write until there is no more space; the errno that the program got."""
    try:
        with path.open("wb", buffering=0) as file:
            for _ in range(size // MIB):
                file.write(os.urandom(MIB))
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno or 0
    return 0


def test_no_space(small: Callable[[str], Small]) -> None:
    """A full disk is ENOSPC for the program and an error for a capture; freeing space is all that is needed."""
    world = small("size=24m")
    world.mount()
    (world.place / "f1").open("a").write("appended")
    assert fill(world.place / "big", 40 * MIB) == errno.ENOSPC
    with pytest.raises(StorageError):
        world.repo.capture(message="Too much", thread="agent")
    world.is_whole()
    outcomes = set()
    for act in (
        lambda: (world.place / "f2").unlink(),
        lambda: (world.place / "f3").rename(world.place / "g3"),
        lambda: (world.place / "f4").chmod(0o755),
        lambda: (world.place / "made").write_text("x" * 10_000),
    ):
        try:
            act()
        except OSError as error:
            outcomes.add(error.errno)
    assert outcomes <= {errno.ENOSPC}

    (world.place / "big").unlink()
    for name, back in (("f2", "f2"), ("g3", "f3")):
        if not (world.place / "f2").exists():
            (world.place / "f2").write_text("captured 2\n")
        if name == "g3" and (world.place / "g3").exists():
            (world.place / "g3").rename(world.place / back)
    world.is_whole()
    world.can_work()
    assert (world.place / "f1").read_text() == "captured 1\nappended"


def test_no_space_in_the_middle_of_a_capture(small: Callable[[str], Small]) -> None:
    """A capture whose pack does not fit changes nothing, leaves no file, and succeeds with more space."""
    world = small("size=24m")
    world.mount()
    assert fill(world.place / "big", 12 * MIB) == 0
    before = world.repo.threads.get("agent").state
    with pytest.raises(StorageError):
        world.repo.capture(message="Does not fit twice", thread="agent")

    assert world.repo.threads.get("agent").state == before
    packs = world.repo.heddle_dir / "objects" / "packs"
    assert [name for name in os.listdir(packs) if name.startswith(".tmp")] == []
    world.is_whole()
    world.remount("size=64m")
    world.repo.capture(message="Fits", thread="agent")
    world.is_whole()


def test_no_inodes(small: Callable[[str], Small]) -> None:
    """A full inode table is ENOSPC; removing files is enough."""
    world = small("size=64m,nr_inodes=200")
    world.mount()
    made = []
    with pytest.raises(OSError) as caught:
        for number in range(1000):
            made.append(world.place / f"n{number}")
            made[-1].touch()
    assert caught.value.errno == errno.ENOSPC

    world.is_whole()
    for path in made[:-1]:
        path.unlink()
    world.can_work()


def test_read_only(small: Callable[[str], Small]) -> None:
    """A repository that can't be written can be read and mounted read-only; what would write says so."""
    world = small("size=64m")
    world.mount()
    (world.place / "unsaved").write_text("kept")
    world.repo.unmount("agent")
    world.repo.close()
    world.remount("ro")

    def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "heddle", *map(str, words)]
        return subprocess.run(command, cwd=world.repo.path, capture_output=True, text=True)

    for words in (["log"], ["show"], ["mounts"], ["thread", "list"], ["status"], ["overlay", "du"]):
        assert run(*words).returncode == 0, (words, run(*words).stderr)
    assert run("mount", "--read-only", "main", world.place).returncode == 0
    assert (world.place / "f1").read_text() == "captured 1\n"
    assert run("unmount", world.place).returncode == 0
    for words in (
        ["capture", "--allow-empty", "-m", "x"],
        ["capture", "--thread", "agent", "-m", "x"],
        ["mount", "agent", world.place],
        ["thread", "create", "other"],
        ["config", "set", "agent.model", "m"],
    ):
        done = run(*words)
        assert done.returncode in (73, 74, 77), (words, done)
        assert "Traceback" not in done.stderr and done.stderr.startswith("heddle: "), done.stderr

    world.remount("rw")
    world.mount()
    assert (world.place / "unsaved").read_text() == "kept"
    world.is_whole()
    world.can_work()


def limited(repo: api.Repository, place: Path) -> None:
    """Mount with at most 64 descriptors, which the session can't raise."""
    done = subprocess.run(
        [sys.executable, "-m", "heddle", "mount", "agent", str(place), "--create"],
        cwd=repo.path,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)),
    )
    assert done.returncode == 0, done.stderr


def test_no_descriptors(captured_repo: api.Repository, tmp_path: Path) -> None:
    """A session with 64 descriptors gives EMFILE to those it can't serve, and serves again when files are closed."""
    place = tmp_path / "place"
    limited(captured_repo, place)
    try:
        held, refused = [], set()
        for number in range(100):
            try:
                held.append((place / f"n{number}").open("w"))
            except OSError as error:
                refused.add(error.errno)
        assert [info.state for info in captured_repo.mounts()] == ["live"]
        captured_repo.capture(message="While they are open", thread="agent")
        for number, file in enumerate(held):
            file.write(f"{number}")
            file.close()
        assert refused == {errno.EMFILE}
        assert [info.state for info in captured_repo.mounts()] == ["live"]
        assert [(place / f"n{n}").read_text() for n in range(len(held))] == [
            str(n) for n in range(len(held))
        ]
    finally:
        captured_repo.unmount("agent")


def test_many_directories_with_few_descriptors(
    captured_repo: api.Repository, tmp_path: Path
) -> None:
    """However many directories are changed, a session with 64 descriptors works in all and captures all."""
    place = tmp_path / "place"
    limited(captured_repo, place)
    try:
        for number in range(150):
            (place / f"d{number}" / "deep").mkdir(parents=True)
            (place / f"d{number}" / "deep" / "file").write_text("x")
        captured = captured_repo.capture(message="Many", thread="agent")
        assert captured.added == 150
    finally:
        captured_repo.unmount("agent")


def test_unreadable_bytes(captured_repo: api.Repository, tmp_path: Path) -> None:
    """A captured file whose bytes are damaged is EIO; the others, the session and what comes are untouched by it."""
    (captured_repo.path / "big").write_bytes(os.urandom(MIB))
    captured_repo.capture(message="Big")
    entry = captured_repo.lookup_path("HEAD", b"big")
    pack = next(
        path
        for path in (captured_repo.heddle_dir / "objects" / "packs").glob("*.pack")
        if path.stat().st_size > MIB
    )
    good = pack.read_bytes()
    pack.chmod(0o644)
    pack.write_bytes(good[: len(good) // 2] + bytes(1000) + good[len(good) // 2 + 1000 :])
    with heddle.mounted(captured_repo, "agent", tmp_path / "place", create=True) as place:
        with pytest.raises(OSError) as caught:
            (place / "big").read_bytes()
        with pytest.raises(OSError), (place / "big").open("ab") as file:
            file.write(b"x")
        assert caught.value.errno == errno.EIO
        assert (place / "a.txt").read_text() == "one\ntwo\n"
        (place / "new").write_text("new")
        captured_repo.capture(message="Beside it", thread="agent")
        pack.write_bytes(good)
        assert len((place / "big").read_bytes()) == captured_repo.store.size(entry[1])
