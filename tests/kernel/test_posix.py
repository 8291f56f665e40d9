"""What POSIX and Linux promise programs about files, held to on a real mount: maps, locks, links, renames, watchers."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import select
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from world import wait_until

import heddle
from heddle import api

LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100
RENAME_NOREPLACE = 1  # renameat2(2)
RENAME_EXCHANGE = 2

Remount = Callable[[], Path]


@pytest.fixture
def where(captured_repo: api.Repository, mounted: Any) -> Path:
    """A mount of a thread on the state of ``captured_repo``."""
    path: Path = mounted("agent-1").mountpoint
    return path


@pytest.fixture
def remount(repo: api.Repository, mounted: Any) -> Remount:
    """Unmount the thread and mount it again; returns where."""

    def again() -> Path:
        repo.unmount("agent-1")
        path: Path = mounted("agent-1").mountpoint
        return path

    return again


def capture(repo: api.Repository) -> None:
    repo.capture(message="m", thread="agent-1", allow_empty=True)


def captured(repo: api.Repository, path: bytes) -> bytes:
    """What the thread's state holds at a path."""
    return b"".join(repo.store.iter_blob(repo.lookup_path("agent-1", path)[1]))


def names(repo: api.Repository, path: bytes = b"") -> list[bytes]:
    tree = repo.lookup_path("agent-1", path)[1] if path else repo.state("agent-1").tree
    return [name for name, _mode, _id in repo.store.tree_entries(tree)]


def changes(where: Path) -> list[tuple[bytes, str]]:
    return [(it.path, it.kind) for it in heddle.open(where).status().changes]


def python(program: str, *arguments: str | Path, code: int = 0) -> str:
    """Run a program in another process; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    return done.stdout


def renameat2(old: Path, new: Path, flags: int) -> None:
    if LIBC.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(old))


@contextmanager
def fails_with(number: int) -> Iterator[None]:
    with pytest.raises(OSError) as caught:
        yield
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number]


# maps


def test_a_private_map_stays_private(repo: api.Repository, where: Path) -> None:
    """What is written to a private map of a captured file reaches nobody: no reader, no status, no capture."""
    with (
        open(where / "a.txt", "rb") as file,
        mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as mapping,
    ):
        mapping[:3] = b"XXX"
        assert mapping[:] == b"XXX\ntwo\n"
        assert (where / "a.txt").read_bytes() == b"one\ntwo\n"
        assert changes(where) == []
        capture(repo)
    assert captured(repo, b"a.txt") == b"one\ntwo\n"


def test_a_shared_map_reaches_readers_and_captures(
    repo: api.Repository, where: Path, remount: Remount
) -> None:
    """Bytes written to a shared map of a captured file are what others read, map and capture, and stay."""
    read = "import sys; print(open(sys.argv[1]).read(), end='')"
    with open(where / "a.txt", "r+b") as file:
        mapping = mmap.mmap(file.fileno(), 0)
        other = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with mapping, other:
        mapping[:3] = b"ONE"
        assert other[:] == b"ONE\ntwo\n"
        assert python(read, where / "a.txt") == "ONE\ntwo\n"
        capture(repo)
        assert captured(repo, b"a.txt") == b"ONE\ntwo\n"
        mapping[4:7] = b"TWO"
        assert python(read, where / "a.txt") == "ONE\nTWO\n"
        mapping.flush()
        assert changes(where) == [(b"a.txt", "modified")]
    assert (remount() / "a.txt").read_bytes() == b"ONE\nTWO\n"
    capture(repo)
    assert captured(repo, b"a.txt") == b"ONE\nTWO\n"


def test_a_map_of_a_large_captured_file(captured_repo: api.Repository, mounted: Any) -> None:
    """Any page of a large captured file is there through a map, and one changed page leaves the others as they were."""
    content = os.urandom(9 * 1024 * 1024 + 123)
    (captured_repo.path / "large").write_bytes(content)
    captured_repo.capture(message="large")
    path = mounted("agent-1").mountpoint / "large"
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
        for offset in (len(content) - 1, 0, 5_000_000, 4095, 4096, 8 * 1024 * 1024):
            assert mapping[offset : offset + 5000] == content[offset : offset + 5000]
    with open(path, "r+b") as changed, mmap.mmap(changed.fileno(), 0) as mapping:
        mapping[7_000_000:7_000_004] = b"here"
    expected = content[:7_000_000] + b"here" + content[7_000_004:]
    assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(expected).digest()


# files without a name, files held open


@pytest.mark.parametrize("name", ["a.txt", "new"])
def test_a_file_without_a_name(repo: api.Repository, where: Path, name: str) -> None:
    """A file unlinked while open, captured or new, is read, written and grown until closed, also over a capture."""
    (where / "new").write_bytes(b"one\ntwo\n")
    with open(where / name, "r+b", buffering=0) as file:
        (where / name).unlink()
        assert os.fstat(file.fileno()).st_nlink == 0
        assert file.read() == b"one\ntwo\n"
        file.write(b"three\n")
        capture(repo)
        assert os.pread(file.fileno(), 100, 0) == b"one\ntwo\nthree\n"
        file.truncate(4)
        file.seek(100_000)
        file.write(b"!")
        assert os.fstat(file.fileno()).st_size == 100_001
        assert os.pread(file.fileno(), 6, 0) == b"one\n\0\0"
        assert not (where / name).exists()
    assert name.encode() not in names(repo)
    assert name not in os.listdir(where)


@pytest.mark.parametrize("name", ["a.txt", "new"])
def test_attributes_of_a_file_without_a_name(where: Path, name: str) -> None:
    """A file unlinked while open, captured or new, keeps its extended attributes and takes more until closed."""
    (where / "new").write_bytes(b"new")
    with open(where / name, "rb") as file:
        os.setxattr(where / name, "user.before", b"1")
        (where / name).unlink()
        os.setxattr(file.fileno(), "user.after", b"2")

        assert sorted(os.listxattr(file.fileno())) == ["user.after", "user.before"]
        assert os.getxattr(file.fileno(), "user.before") == b"1"
        os.removexattr(file.fileno(), "user.before")
        assert os.listxattr(file.fileno()) == ["user.after"]


@pytest.mark.parametrize("way", ["removed", "replaced"])
def test_a_directory_without_a_name(where: Path, way: str) -> None:
    """A directory removed while open keeps its mode, owner and time; it shows nothing and takes nothing."""
    (where / "dir").mkdir()
    (where / "dir").chmod(0o1711)
    (where / "other").mkdir()
    below = os.open(where / "dir", os.O_RDONLY)
    try:
        before = os.fstat(below)
        if way == "removed":
            (where / "dir").rmdir()
        else:
            (where / "other").rename(where / "dir")
        after = os.fstat(below)

        assert (after.st_mode, after.st_uid, after.st_gid) == (
            before.st_mode,
            before.st_uid,
            before.st_gid,
        )
        assert (after.st_nlink, after.st_mtime_ns) == (0, before.st_mtime_ns)
        assert os.listdir(below) == []
        with fails_with(errno.ENOENT):
            os.mkdir("new", dir_fd=below)
    finally:
        os.close(below)


def test_a_new_file_under_the_name_of_an_open_one(repo: api.Repository, where: Path) -> None:
    """A name whose file is gone but open can be taken again: two files, each with its bytes."""
    with open(where / "a.txt", "rb") as old:
        (where / "a.txt").unlink()
        (where / "a.txt").write_text("another")
        assert os.fstat(old.fileno()).st_ino != (where / "a.txt").stat().st_ino
        capture(repo)
        assert old.read() == b"one\ntwo\n"
    assert captured(repo, b"a.txt") == b"another"


def test_open_files_go_on_over_a_capture(
    repo: api.Repository, where: Path, remount: Remount
) -> None:
    """Readers, writers, appenders, maps, listings and a current directory go on over captures as if there were none."""
    size = 8 * 4096
    (where / "map").write_bytes(b"." * size)
    with (
        open(where / "a.txt", "rb", buffering=0) as reader,
        open(where / "w", "w+b", buffering=0) as writer,
        open(where / "sub" / "b.txt", "ab", buffering=0) as appender,
        open(where / "map", "r+b") as mapped,
        mmap.mmap(mapped.fileno(), 0) as mapping,
        os.scandir(where) as listing,
    ):
        seen = [next(listing).name]
        assert reader.read(4) == b"one\n"
        for number in range(3):
            writer.write(b"%d" % number)
            appender.write(b"%d" % number)
            mapping[number * 4096] = ord("0") + number
            capture(repo)
            assert captured(repo, b"w") == b"012"[: number + 1]
            assert captured(repo, b"sub/b.txt") == b"b\n" + b"012"[: number + 1]
            assert captured(repo, b"map")[number * 4096] == ord("0") + number
        assert reader.read() == b"two\n"
        assert os.pread(writer.fileno(), 10, 0) == b"012"
        seen += [entry.name for entry in listing]
        assert sorted(seen) == ["a.txt", "link", "map", "run", "sub", "w"]
        directory = os.open(where / "sub", os.O_RDONLY)
        assert os.listdir(directory) == ["b.txt"]
        os.close(directory)
    assert changes(where) == []
    assert (remount() / "sub" / "b.txt").read_text() == "b\n012"


def test_unsynced_bytes_are_captured(repo: api.Repository, where: Path) -> None:
    """Bytes that another process wrote and holds open, neither closed nor synced, are in the capture."""
    program = (
        "import os, sys\n"
        "files = [open(name, 'r+b', buffering=0) for name in sys.argv[1:]]\n"
        "for file in files: file.write(b'held'); os.ftruncate(file.fileno(), 6)\n"
        "print('ready', flush=True); sys.stdin.read()\n"
    )
    (where / "new").write_bytes(b"........")
    holder = subprocess.Popen(
        [sys.executable, "-c", program, where / "new", where / "a.txt"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        capture(repo)
        assert (captured(repo, b"new"), captured(repo, b"a.txt")) == (b"held..", b"heldtw")
        assert changes(where) == []
    finally:
        holder.communicate(timeout=60)
    assert changes(where) == []


# renames


@pytest.mark.parametrize("target", ["captured", "new", "missing"])
def test_a_captured_directory_is_renamed(
    captured_repo: api.Repository, mounted: Any, remount: Remount, target: str
) -> None:
    """A captured directory with contents takes an empty one's place or a free name, with all below it, to stay."""
    repo = captured_repo
    deep = repo.path / "sub" / "deep" / "deeper"
    deep.mkdir(parents=True)
    (deep / "c.txt").write_text("c\n")
    (repo.path / "sub" / "hollow").mkdir()
    (repo.path / "target").mkdir()
    repo.capture(message="more")
    where = mounted("agent-1").mountpoint
    if target != "captured":
        (where / "target").rmdir()
    if target == "new":
        (where / "target").mkdir()
    inode = (where / "sub").stat().st_ino
    with open(where / "sub" / "b.txt") as file:
        (where / "sub").rename(where / "target")
        assert file.read() == "b\n"

    for step in ("renamed", "captured", "mounted again"):
        if step == "captured":
            capture(repo)
        if step == "mounted again":
            where = remount()
        assert not (where / "sub").exists(), step
        assert sorted(os.listdir(where / "target")) == ["b.txt", "deep", "hollow"], step
        assert (where / "target" / "deep" / "deeper" / "c.txt").read_text() == "c\n", step
        assert (where / "target").stat().st_ino == inode, step
    assert names(repo, b"target") == [b"b.txt", b"deep", b"hollow"]
    assert b"sub" not in names(repo)


def test_renames_that_are_refused(where: Path) -> None:
    """A directory onto one with contents, a file onto a directory, a directory below itself: each its own error."""
    (where / "empty").mkdir()
    with fails_with(errno.ENOTEMPTY):
        (where / "empty").rename(where / "sub")
    with fails_with(errno.EISDIR):
        (where / "a.txt").rename(where / "sub")
    with fails_with(errno.ENOTDIR):
        (where / "sub").rename(where / "a.txt")
    with fails_with(errno.EINVAL):
        (where / "sub").rename(where / "sub" / "inside")
    with fails_with(errno.EXDEV):
        (where / "a.txt").rename(where.parent / "outside")
    (where / "empty").rmdir()
    assert changes(where) == []


def test_rename_noreplace(repo: api.Repository, where: Path) -> None:
    """RENAME_NOREPLACE takes no name that exists, captured or new, and takes a free one, also one that was captured."""
    (where / "new").write_text("new")
    for taken in ("a.txt", "sub", "link", "new"):
        with fails_with(errno.EEXIST):
            renameat2(where / "run", where / taken, RENAME_NOREPLACE)
    (where / "a.txt").unlink()
    renameat2(where / "new", where / "a.txt", RENAME_NOREPLACE)
    renameat2(where / "sub", where / "free", RENAME_NOREPLACE)
    capture(repo)

    assert names(repo) == [b"a.txt", b"free", b"link", b"run"]
    assert captured(repo, b"a.txt") == b"new"


def test_rename_exchange(repo: api.Repository, where: Path, remount: Remount) -> None:
    """RENAME_EXCHANGE swaps files, directories with contents, and one with the other; captured and new alike."""
    (where / "new").mkdir()
    (where / "new" / "n").write_text("n")
    renameat2(where / "new", where / "sub", RENAME_EXCHANGE)
    assert (os.listdir(where / "new"), os.listdir(where / "sub")) == (["b.txt"], ["n"])
    renameat2(where / "a.txt", where / "sub", RENAME_EXCHANGE)
    renameat2(where / "run", where / "link", RENAME_EXCHANGE)
    with fails_with(errno.ENOENT):
        renameat2(where / "run", where / "missing", RENAME_EXCHANGE)

    for step in ("exchanged", "captured", "mounted again"):
        if step == "captured":
            capture(repo)
        if step == "mounted again":
            where = remount()
        assert (where / "a.txt" / "n").read_text() == "n", step
        assert (where / "sub").read_text() == "one\ntwo\n", step
        assert (where / "new" / "b.txt").read_text() == "b\n", step
        assert os.readlink(where / "run") == "a.txt", step
        assert os.access(where / "link", os.X_OK), step
    assert names(repo, b"a.txt") == [b"n"]
    assert captured(repo, b"sub") == b"one\ntwo\n"


# links, attributes, times, numbers


def test_hard_links(repo: api.Repository, where: Path, remount: Remount) -> None:
    """Two names of one file, captured before or new, share inode, count and bytes: over a capture and another mount."""
    (where / "new").write_text("new")
    for name in ("a.txt", "new"):
        os.link(where / name, where / "sub" / f"{name}-2")
    (where / "sub" / "a.txt-2").write_text("by the second name")
    assert (where / "a.txt").read_text() == "by the second name"

    for step in ("linked", "captured", "mounted again"):
        if step == "captured":
            capture(repo)
        if step == "mounted again":
            where = remount()
        for name in ("a.txt", "new"):
            one, two = (where / name).stat(), (where / "sub" / f"{name}-2").stat()
            assert (one.st_ino, one.st_nlink, two.st_nlink) == (two.st_ino, 2, 2), (step, name)
    (where / "a.txt").unlink()
    assert (where / "sub" / "a.txt-2").stat().st_nlink == 1
    assert captured(repo, b"a.txt") == captured(repo, b"sub/a.txt-2") == b"by the second name"


def test_extended_attributes(repo: api.Repository, where: Path, remount: Remount) -> None:
    """Attributes of captured and new files and directories: set, listed, replaced, removed, kept; no others shown."""
    (where / "new").write_text("new")
    for name in ("a.txt", "sub", "new"):
        path = where / name
        assert os.listxattr(path) == []
        os.setxattr(path, "user.one", b"1\0\xff")
        os.setxattr(path, "user.two", b"2" * 2000)
        with fails_with(errno.EEXIST):
            os.setxattr(path, "user.one", b"x", os.XATTR_CREATE)
        with fails_with(errno.ENODATA):
            os.setxattr(path, "user.none", b"x", os.XATTR_REPLACE)
        with fails_with(errno.ENODATA):
            os.getxattr(path, "user.none")
        os.setxattr(path, "user.two", b"", os.XATTR_REPLACE)
        os.setxattr(path, "user.three", b"3")
        os.removexattr(path, "user.three")
    with fails_with(errno.EPERM):
        os.setxattr(where / "link", "user.one", b"1", follow_symlinks=False)

    for step in ("set", "captured", "mounted again"):
        if step == "captured":
            capture(repo)
        if step == "mounted again":
            where = remount()
        for name in ("a.txt", "sub", "new"):
            assert sorted(os.listxattr(where / name)) == ["user.one", "user.two"], (step, name)
            assert os.getxattr(where / name, "user.one") == b"1\0\xff"
            assert os.getxattr(where / name, "user.two") == b""
    assert (where / "a.txt").read_text() == "one\ntwo\n"


def test_times_are_kept_to_the_nanosecond(
    repo: api.Repository, where: Path, remount: Remount
) -> None:
    """Times that utimensat(2) sets on files, directories and links stay to the nanosecond: captured, mounted again."""
    (where / "new").write_text("new")
    paths = ("new", "a.txt", "link", "run", "sub", "sub/b.txt")
    expected = {}
    for number, name in enumerate(paths, 1):
        times = (1_000_000_000_000_000_000 + number, 1_500_000_000_999_999_990 + number)
        os.utime(where / name, ns=times, follow_symlinks=False)
        expected[name] = times[1]

    def found() -> dict[str, int]:
        return {name: (where / name).lstat().st_mtime_ns for name in paths}

    assert (where / "new").stat().st_atime_ns == 1_000_000_000_000_000_001
    assert found() == expected
    capture(repo)
    assert found() == expected
    where = remount()
    assert found() == expected


def test_inode_numbers_stay(repo: api.Repository, where: Path, remount: Remount) -> None:
    """A file keeps its inode number when first written, renamed, captured, mounted again, and no two share one."""
    (where / "new").write_text("new")
    (where / "dir").mkdir()
    paths = {name: name for name in ("new", "dir", "a.txt", "run", "link", "sub", "sub/b.txt", ".")}

    def found() -> dict[str, int]:
        return {name: (where / at).lstat().st_ino for name, at in paths.items()}

    first = found()
    assert len(set(first.values())) == len(paths)
    (where / "a.txt").write_text("copied up")
    (where / "run").chmod(0o700)
    with open(where / "sub" / "b.txt", "a") as file:
        file.write("more")
    assert found() == first, "copied up"
    for old, new in (("a.txt", "sub/moved"), ("new", "dir/new"), ("sub", "dir/sub")):
        (where / old).rename(where / new)
    paths |= {"a.txt": "dir/sub/moved", "new": "dir/new", "sub": "dir/sub"}
    paths |= {"sub/b.txt": "dir/sub/b.txt"}
    assert found() == first, "renamed"
    capture(repo)
    assert found() == first, "captured"
    where = remount()
    assert found() == first, "mounted again"
    listed = {entry.name: entry.inode() for entry in os.scandir(where / "dir")}
    assert listed == {"new": first["new"], "sub": first["sub"]}


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o137])
def test_the_umask_of_the_program_counts(where: Path, mask: int) -> None:
    """Files, directories and fifos get the mode that was asked for, less the umask of who asks, not the session's."""
    program = (
        "import os, sys\n"
        "os.chdir(sys.argv[1]); os.umask(int(sys.argv[2]))\n"
        "os.close(os.open('file', os.O_CREAT | os.O_WRONLY, 0o777))\n"
        "os.mkdir('dir', 0o777); os.mkfifo('pipe', 0o666)\n"
    )
    python(program, where, str(mask))
    found = [stat.S_IMODE((where / name).lstat().st_mode) for name in ("file", "dir", "pipe")]
    assert found == [0o777 & ~mask, 0o777 & ~mask, 0o666 & ~mask]


# between processes


def test_a_fifo_between_two_processes(where: Path) -> None:
    """A fifo in a mount carries bytes from one process to another."""
    os.mkfifo(where / "pipe")
    program = "import sys; open(sys.argv[1], 'wb').write(b'x' * 200_000)"
    with subprocess.Popen([sys.executable, "-c", program, where / "pipe"]) as writer:
        with open(where / "pipe", "rb") as pipe:
            assert pipe.read() == b"x" * 200_000
        assert writer.wait(60) == 0


LOCKER = """\
import errno, fcntl, sys
file = open(sys.argv[1], "r+b")
lock = fcntl.flock if sys.argv[2] == "flock" else fcntl.lockf
kind = fcntl.LOCK_SH if sys.argv[3] == "shared" else fcntl.LOCK_EX
try:
    lock(file, kind | fcntl.LOCK_NB)
    print("got")
except OSError as error:
    print(errno.errorcode[error.errno])
"""


@pytest.mark.parametrize("way", ["flock", "fcntl"])
def test_locks_between_processes(cli: Any, where: Path, way: str) -> None:
    """A lock of one process keeps another's out, a shared one lets shared ones in, and a capture releases none."""
    lock = fcntl.flock if way == "flock" else fcntl.lockf

    def other(kind: str) -> str:
        return python(LOCKER, where / "a.txt", way, kind).strip()

    with open(where / "a.txt", "r+b", buffering=0) as file:
        lock(file, fcntl.LOCK_EX)
        file.write(b"locked")
        assert (other("exclusive"), other("shared")) == ("EAGAIN", "EAGAIN")
        # as a process of its own: one that closes any descriptor of a file loses its fcntl locks
        cli("capture", "-m", "m", cwd=where)
        assert other("shared") == "EAGAIN"
        lock(file, fcntl.LOCK_SH)
        assert (other("exclusive"), other("shared")) == ("EAGAIN", "got")
        lock(file, fcntl.LOCK_UN)
        assert other("exclusive") == "got"


def test_byte_ranges_are_locked_apart(where: Path) -> None:
    """fcntl locks hold for their bytes only, and end when their process does."""
    program = (
        "import fcntl, sys\n"
        "file = open(sys.argv[1], 'r+b')\n"
        "fcntl.lockf(file, fcntl.LOCK_EX, 4, 0)\n"
        "print('ready', flush=True); sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, where / "a.txt"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with open(where / "a.txt", "r+b") as file:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"ready\n"
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 4, 4)
            with pytest.raises(BlockingIOError):
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 4, 0)
        finally:
            holder.communicate(timeout=60)
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 4, 0)


class Watcher:
    """An inotify(7) instance; events are (names of the bits set, name in the directory)."""

    BITS = {0x2: "modify", 0x4: "attrib", 0x8: "close-write", 0x40: "moved-from"} | {
        0x80: "moved-to",
        0x100: "create",
        0x200: "delete",
    }

    def __init__(self, *directories: Path) -> None:
        self.fd = LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self.fd >= 0
        for directory in directories:
            assert LIBC.inotify_add_watch(self.fd, os.fsencode(directory), sum(self.BITS)) >= 0
        self.seen: set[tuple[str, str]] = set()

    def close(self) -> None:
        os.close(self.fd)

    def read(self) -> set[tuple[str, str]]:
        """Everything seen so far."""
        ready = select.poll()  # select(2) takes no descriptor above 1,023
        ready.register(self.fd, select.POLLIN)
        while ready.poll(0):
            data = os.read(self.fd, 65536)
            while data:
                _watch, mask, _cookie, length = struct.unpack_from("iIII", data)
                name = os.fsdecode(data[16 : 16 + length].rstrip(b"\0"))
                self.seen |= {(name, text) for bit, text in self.BITS.items() if mask & bit}
                data = data[16 + length :]
        return self.seen


@pytest.fixture
def watcher(where: Path) -> Iterator[Watcher]:
    """Watches the top of the mount and ``sub``."""
    watching = Watcher(where, where / "sub")
    yield watching
    watching.close()


def test_watchers_see_changes(repo: api.Repository, where: Path, watcher: Watcher) -> None:
    """inotify tells of everything that another process changes through the mount, in captured directories and new."""
    script = (
        'cd "$1" && echo new > new && echo more >> a.txt && chmod 600 run && mv link moved && '
        "rm sub/b.txt && mkdir dir && mv new sub/new && truncate -s 2 a.txt"
    )
    subprocess.run(["sh", "-c", script, "sh", where], check=True, timeout=60)
    expected = {
        ("new", "create"),
        ("new", "modify"),
        ("new", "close-write"),
        ("a.txt", "modify"),
        ("a.txt", "close-write"),
        ("run", "attrib"),
        ("link", "moved-from"),
        ("moved", "moved-to"),
        ("b.txt", "delete"),
        ("dir", "create"),
        ("new", "moved-from"),
        ("new", "moved-to"),
    }
    wait_until(lambda: watcher.read() >= expected, f"{expected - watcher.read()}")


def test_a_capture_is_no_change_to_watchers(
    repo: api.Repository, where: Path, watcher: Watcher
) -> None:
    """A capture makes no watcher build again: inotify tells of no change, and of the next one after it."""
    (where / "a.txt").write_text("changed")
    (where / "sub" / "new").write_text("new")
    watcher.read()
    watcher.seen.clear()
    capture(repo)
    heddle.open(where).status()
    (where / "last").mkdir()
    wait_until(lambda: ("last", "create") in watcher.read(), "the change after the capture")
    assert watcher.seen == {("last", "create")}


# sizes


def test_a_hundred_thousand_entries(captured_repo: api.Repository, mounted: Any) -> None:
    """A listing of 100,000 entries, captured and new, has each exactly once while others are removed and made."""
    repo = captured_repo
    (repo.path / "big").mkdir()
    for number in range(99_500):
        os.close(os.open(repo.path / "big" / f"{number:06}", os.O_CREAT | os.O_WRONLY))
    repo.capture(message="many")
    big = mounted("agent-1").mountpoint / "big"
    for number in range(99_500, 100_000):
        (big / f"{number:06}").touch()
    everything = {f"{number:06}" for number in range(100_000)}
    assert sorted(os.listdir(big)) == sorted(everything)

    seen: list[str] = []
    gone: set[str] = set()
    with os.scandir(big) as listing:
        for entry in listing:
            seen.append(entry.name)
            if len(seen) % 500 == 0:  # one just seen, one from the other end, and a new one
                other = f"{(int(entry.name) + 50_000) % 100_000:06}"
                for name in {entry.name, other} - gone:
                    (big / name).unlink()
                    gone.add(name)
                (big / f"made-{len(seen)}").touch()
    old = [name for name in seen if not name.startswith("made-")]
    assert len(seen) == len(set(seen))
    assert set(old) >= everything - gone
    assert len(gone) > 300
    assert set(os.listdir(big)) >= everything - gone
    assert not set(os.listdir(big)) & gone

    with os.scandir(big) as listing:  # rewinddir(3) and rm -r at once
        for entry in listing:
            if entry.name < "000200" or entry.name.startswith("made-"):
                os.unlink(entry.path)
    assert min(os.listdir(big)) >= "000200"


def test_sparse_files(repo: api.Repository, where: Path, remount: Remount) -> None:
    """Holes take no space in the mount, read as zeros, are captured as zeros, and stay holes after another mount."""
    size = 64 * 1024 * 1024
    with open(where / "sparse", "wb") as file:
        file.seek(size - 3)
        file.write(b"end")
    os.truncate(where / "a.txt", size)

    def blocks() -> list[int]:
        return [(where / name).stat().st_blocks * 512 for name in ("sparse", "a.txt")]

    assert max(blocks()) < 1024 * 1024
    capture(repo)
    assert max(blocks()) < 1024 * 1024
    where = remount()
    assert max(blocks()) < 1024 * 1024
    assert captured(repo, b"sparse") == bytes(size - 3) + b"end"
    assert (where / "a.txt").read_bytes() == b"one\ntwo\n".ljust(size, b"\0")
    assert changes(where) == []


def test_statfs_is_that_of_the_file_system_below(repo: api.Repository, where: Path) -> None:
    """A mount has as much space and as many files left as the file system that its overlay is on."""

    def figures(path: Path) -> list[int]:
        all_of_it = os.statvfs(path)
        counted = ("bsize", "frsize", "blocks", "bfree", "bavail", "files", "ffree", "favail")
        return [getattr(all_of_it, f"f_{name}") for name in counted]

    below = repo.heddle_dir / "overlays"
    wait_until(lambda: figures(where) == figures(below), "a moment when nobody else writes")
    assert figures(where)[2] > 0
    assert os.statvfs(where).f_namemax == os.statvfs(below).f_namemax == 255


DEEP = """\
import os, sys
os.chdir(sys.argv[1])
for _ in range(int(sys.argv[2])):
    if sys.argv[3] == "make":
        os.mkdir("d" * 250)
    os.chdir("d" * 250)
if sys.argv[3] == "make":
    open("file", "w").write("deep")
print(open("file").read(), end="")
"""


def test_paths_longer_than_path_max(repo: api.Repository, where: Path, remount: Remount) -> None:
    """Directories deeper than any path can name work by chdir(2), are captured, mounted again and found whole."""
    levels = 30
    assert levels * 251 > 4096 + 2000
    assert python(DEEP, where, str(levels), "make") == "deep"
    path = b"/".join([b"d" * 250] * levels + [b"file"])
    assert [it[0] for it in changes(where)] == [path]
    capture(repo)
    assert captured(repo, path) == b"deep"
    assert python(DEEP, where, str(levels), "read") == "deep"
    where = remount()
    assert python(DEEP, where, str(levels), "read") == "deep"
    assert changes(where) == []
    assert repo.fsck().problems == []
    subprocess.run(["rm", "-r", where / ("d" * 250)], check=True, timeout=60)
    assert [it[0] for it in changes(where)] == [path]


# what a mount has not


def test_what_is_missing_has_a_way_around(where: Path) -> None:
    """O_TMPFILE, fallocate(2) and SEEK_HOLE: an error or a plain answer that C's and Python's ways around work on."""
    with fails_with(errno.EOPNOTSUPP):
        os.open(where, os.O_TMPFILE | os.O_RDWR, 0o600)
    with tempfile.TemporaryFile(dir=where) as temporary:
        temporary.write(b"x")
        temporary.seek(0)
        assert temporary.read() == b"x"

    with open(where / "a.txt", "r+b") as file:
        number = file.fileno()
        assert LIBC.fallocate(number, 0, ctypes.c_long(0), ctypes.c_long(10_000)) == -1
        assert ctypes.get_errno() == errno.EOPNOTSUPP
        os.posix_fallocate(number, 0, 10_000)
        assert os.fstat(number).st_size == 10_000
        assert file.read() == b"one\ntwo\n".ljust(10_000, b"\0")
        assert os.lseek(number, 0, os.SEEK_DATA) == 0
        assert os.lseek(number, 0, os.SEEK_HOLE) == 10_000
        with open(where / "copy", "wb") as copy:
            assert os.copy_file_range(number, copy.fileno(), 10_000, 0, 0) == 10_000
    assert (where / "copy").read_bytes() == (where / "a.txt").read_bytes()
    assert sorted(os.listdir(where)) == ["a.txt", "copy", "link", "run", "sub"]


def test_a_time_that_nobody_set_is_kept_too(
    repo: api.Repository, where: Path, remount: Remount
) -> None:
    """What a file's time is when it was written is its time after a capture and another mount, to the nanosecond."""
    for number in range(50):
        (where / f"new{number}").write_text("new" * number)
    (where / "a.txt").write_text("changed")
    (where / "sub" / "made").mkdir()
    paths = ("a.txt", "sub", "sub/made", "sub/b.txt", *(f"new{number}" for number in range(50)))

    def found() -> dict[str, int]:
        return {name: (where / name).stat().st_mtime_ns for name in paths}

    before = found()
    capture(repo)
    assert before == found()
    where = remount()
    assert before == found()


def test_a_truncation_to_the_same_size(where: Path, remount: Remount) -> None:
    """What truncate(2) shows of a file that has that size already, it shows when mounted again too."""
    (where / "new").write_text("new")
    paths = [where / "new", where / "a.txt"]
    for path in paths:
        os.truncate(path, path.stat().st_size)

    def found() -> list[tuple[int, int]]:
        stats = [(where / path.name).stat() for path in paths]
        return [(it.st_mtime_ns, it.st_ctime_ns) for it in stats]

    before = found()
    where = remount()
    assert before == found()


@pytest.mark.parametrize("change", ["renamed", "touched", "linked"])
def test_a_captured_link_keeps_its_inode_number(where: Path, remount: Remount, change: str) -> None:
    """A captured symlink that is renamed, touched or linked has its inode number still, also when mounted again."""
    before, name = os.lstat(where / "link").st_ino, "link"
    if change == "renamed":
        name = "moved"
        (where / "link").rename(where / name)
    elif change == "touched":
        os.utime(where / "link", ns=(1, 2), follow_symlinks=False)
    else:
        os.link(where / "link", where / "second", follow_symlinks=False)

    for _ in range(3):
        assert os.lstat(where / name).st_ino == before
        where = remount()
    assert change != "linked" or os.lstat(where / "second").st_ino == before


def test_links_and_fifos_in_the_place_of_removed_ones(where: Path, remount: Remount) -> None:
    """A symlink or fifo whose real number was that of a removed one that is still held has one of its own, to stay."""
    held = []
    for number in range(40):
        old, new = where / f"old{number}", where / f"new{number}"
        old.symlink_to("x" * 100)
        held.append(os.open(old, os.O_PATH | os.O_NOFOLLOW))
        old.unlink()
        new.symlink_to("y" * 100) if number % 2 else os.mkfifo(new)

    def found() -> list[int]:
        return [os.lstat(where / f"new{number}").st_ino for number in range(40)]

    before = found()
    assert len(set(before) | {os.fstat(fd).st_ino for fd in held}) == 80
    for fd in held:
        os.close(fd)
    where = remount()
    assert found() == before


def test_the_number_of_a_removed_link_is_forgotten(repo: api.Repository, where: Path) -> None:
    """What was noted of a symlink goes with its last name."""
    (where / "link").rename(where / "moved")
    noted = repo.heddle_dir / "overlays" / "agent-1" / "numbers"
    assert len(list(noted.iterdir())) == 1
    (where / "moved").unlink()
    assert list(noted.iterdir()) == []
