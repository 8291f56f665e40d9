"""A disk that is full: programs in a mount are told, captures refuse, nothing is lost, and work goes on."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import heddle
from heddle import api

DISK_BYTES = 8 * 1024 * 1024


@pytest.fixture
def disk(tmp_path: Path, nothing_left: None) -> Iterator[Path]:
    """A file system of 8 MiB."""
    if os.geteuid() != 0:
        pytest.fail("mounting a small tmpfs needs root: run this file with sudo", pytrace=False)
    path = tmp_path / "disk"
    path.mkdir()
    options = f"size={DISK_BYTES},mode=755"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "heddle-test", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)


@pytest.fixture
def repo(disk: Path) -> Iterator[api.Repository]:
    """A repository on the small disk, in place of the common one."""
    made = heddle.init(disk / "repo")
    yield made
    made.close()


def fill(disk: Path) -> Path:
    """Take all the space that is left on the disk; returns the file that holds it."""
    filler = disk / "filler"
    with open(filler, "ab", buffering=0) as file:
        for piece in (65536, 4096, 1):
            try:
                while True:
                    file.write(b"x" * piece)
            except OSError as error:
                assert error.errno == errno.ENOSPC
    assert os.statvfs(disk).f_bfree == 0
    return filler


def captured(repo: api.Repository, spec: str, path: bytes) -> bytes:
    return b"".join(repo.store.iter_blob(repo.lookup_path(spec, path)[1]))


def changes(where: Path) -> list[tuple[bytes, str]]:
    with closing(heddle.open(where)) as inside:
        return [(it.path, it.kind) for it in inside.status().changes]


def assert_whole(cli: Any) -> None:
    """Every object is read and checked: ``fsck --full`` exits 0."""
    cli("fsck", "--full")


def test_a_program_is_told_that_the_disk_is_full(
    repo: api.Repository, mounted: Any, disk: Path, cli: Any
) -> None:
    """A program in a mount gets ENOSPC from write or fsync; what was there stays, and freed space is used."""
    where = mounted("agent-1").mountpoint
    (where / "before").write_text("before\n")
    cli("capture", "-m", "before", cwd=where)
    program = ["dd", "if=/dev/zero", "of=large", "bs=64k", "count=1000", "conv=fsync"]
    told = subprocess.run(
        program, cwd=where, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}
    )
    assert (told.returncode, "No space left on device" in told.stderr) == (1, True)
    with pytest.raises(OSError) as caught, open(where / "more", "wb", buffering=0) as file:
        file.write(b"y" * 1_000_000)
        os.fsync(file.fileno())
    assert caught.value.errno == errno.ENOSPC
    assert (where / "before").read_text() == "before\n"

    for name in ("large", "more"):
        (where / name).unlink()
    (where / "after").write_bytes(b"z" * 1_000_000)
    cli("capture", "-m", "after", cwd=where)
    assert captured(repo, "agent-1", b"after") == b"z" * 1_000_000
    assert changes(where) == []
    assert_whole(cli)


def leave(disk: Path, size: int) -> Path:
    """Take the space on the disk but for so many bytes; returns the file that holds it."""
    filler = fill(disk)
    os.truncate(filler, filler.stat().st_size - size)
    return filler


def put(path: Path, content: bytes, at: int) -> int:
    """Write and fsync; returns the errno of what failed, or 0."""
    try:
        with open(path, "r+b" if path.exists() else "wb", buffering=0) as file:
            file.seek(at)
            left = memoryview(content)
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno or -1
    return 0


@pytest.mark.parametrize(
    ("size", "free"), [(100_000, 61_440), (900_000, 4096), (5_000_000, 102_400)]
)
def test_a_disk_that_takes_only_a_part(
    repo: api.Repository, mounted: Any, disk: Path, cli: Any, size: int, free: int
) -> None:
    """A change for which the disk has some room and not enough is an error, and loses nothing of what was captured."""
    subprocess.run(["mount", "-o", "remount,size=24m", disk], check=True)
    content = b"at the start, " + os.urandom(size)
    (repo.path / "f").write_bytes(content)
    cli("capture", "-m", "f")
    (repo.path / "f").unlink()
    where = mounted("agent-1").mountpoint
    filler = leave(disk, free)

    assert put(where / "f", b"X", 10) == errno.ENOSPC
    assert put(where / "new", os.urandom(150_000), 0) == errno.ENOSPC

    filler.unlink()
    (where / "new").unlink(missing_ok=True)
    cli("unmount", "agent-1")
    where = mounted("agent-1").mountpoint
    found = (where / "f").read_bytes()
    assert found[:10] + found[11:] == content[:10] + content[11:]
    assert put(where / "f", b"Y", 10) == 0
    cli("capture", "-m", "after", cwd=where)
    assert captured(repo, "agent-1", b"f") == content[:10] + b"Y" + content[11:]


def test_a_limit_of_the_shell_is_not_the_mounts(
    repo: api.Repository, mounted: Any, tmp_path: Path
) -> None:
    """A session that was started where files may not grow (ulimit -f) cuts nobody's files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        where = mounted("agent-1").mountpoint
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert put(where / "new", bytes(range(256)) * 10_000, 0) == 0
    assert (where / "new").read_bytes() == bytes(range(256)) * 10_000


@pytest.mark.parametrize("live", [True, False], ids=["mounted", "unmounted"])
def test_a_capture_of_a_mount_on_a_full_disk(
    repo: api.Repository, mounted: Any, disk: Path, cli: Any, live: bool
) -> None:
    """A capture that the disk has no room for exits 74 and changes nothing; with room again it takes everything."""
    where = mounted("agent-1").mountpoint
    (where / "first").write_text("first\n")
    before = repo.capture(message="first", thread="agent-1").state.id
    content = os.urandom(600_000)  # does not get smaller in a pack
    (where / "second").write_bytes(content)
    (where / "first").write_text("changed\n")
    unsaved = [(b"first", "modified"), (b"second", "added")]
    assert changes(where) == unsaved
    if not live:
        repo.unmount("agent-1")
    filler = fill(disk)

    for _ in range(2):
        error = cli("capture", "-m", "no", "--thread", "agent-1", "--json", code=74).error
        assert error["message"]
        assert repo.threads.get("agent-1").state == before
        assert repo.overlay_base("agent-1") == before
    assert [state.id for state in repo.log("agent-1")] == [before]

    filler.unlink()
    if not live:
        where = mounted("agent-1").mountpoint
    assert changes(where) == unsaved
    assert (where / "second").read_bytes() == content
    assert_whole(cli)
    repo.capture(message="second", thread="agent-1")
    assert captured(repo, "agent-1", b"second") == content
    assert captured(repo, "agent-1", b"first") == b"changed\n"
    assert changes(where) == []
    assert_whole(cli)


def test_a_capture_of_the_working_directory_on_a_full_disk(
    repo: api.Repository, disk: Path, cli: Any
) -> None:
    """The same for a plain directory: exit 74, nothing changed, whole, and complete once there is room."""
    content = os.urandom(600_000)
    (repo.path / "file").write_bytes(content)
    filler = fill(disk)
    assert cli("capture", "-m", "no", "--json", code=74).error["message"]
    filler.unlink()

    assert repo.threads.get("main").state is None
    assert_whole(cli)
    cli("capture", "-m", "yes")
    assert captured(repo, "main", b"file") == content
    assert_whole(cli)


def test_a_capture_at_every_amount_of_room(
    repo: api.Repository, mounted: Any, disk: Path, cli: Any
) -> None:
    """Whatever step of a capture finds the disk full, it the old state and all work stay until one succeeds."""
    where = mounted("agent-1").mountpoint
    content = os.urandom(100_000)
    (where / "file").write_bytes(content)
    filler, room, refused = fill(disk), 0, 0
    while cli("capture", "-m", "m", cwd=where, code=None).code != 0:
        refused += 1
        assert repo.threads.get("agent-1").state is None
        assert (where / "file").read_bytes() == content
        room += 16_384
        os.truncate(filler, 0)
        assert_whole(cli)
        assert changes(where) == [(b"file", "added")]
        fill(disk)
        os.truncate(filler, filler.stat().st_size - room)
        assert room < 1_000_000

    assert refused > 3
    filler.unlink()
    assert captured(repo, "agent-1", b"file") == content
    assert changes(where) == []
    assert_whole(cli)
