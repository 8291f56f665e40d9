"""What system calls answer in a mount, each beside the same call on the file system below.

They answer the same, but for what pyfuse3 has no handler for and what a mount keeps for itself: those are named in
`SUPPORTED_BELOW`, with the errno that makes programs fall back. docs/mount.md says the same in words.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import heddle

LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100
LONG = ("readahead", "syscall")  # they return ssize_t or long, the others int

Probe = Callable[[Path], object]
PROBES: dict[str, Probe] = {}


def probe(function: Probe) -> Probe:
    """Have what a function finds in a directory compared: its answer, or the name of the errno that it fails with."""
    PROBES[function.__name__] = function
    return function


def answer(function: Probe, where: Path) -> object:
    """What a probe finds; the descriptors that it leaves open are closed."""
    before = descriptors()
    try:
        return function(where)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    finally:
        for fd in descriptors() - before:
            os.close(fd)


def descriptors() -> set[int]:
    """The open ones of this process."""
    return {fd for fd in map(int, os.listdir("/proc/self/fd")) if is_open(fd)}


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def call(name: str, *arguments: object) -> int:
    """Call libc; raises OSError when it fails."""
    function = getattr(LIBC, name)
    function.restype = ctypes.c_long if name in LONG else ctypes.c_int
    result: int = function(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def number(value: int) -> ctypes.c_long:
    return ctypes.c_long(value)


def full_file(where: Path) -> int:
    """A descriptor of a new file with 64 KiB in it."""
    fd = os.open(where / "full", os.O_RDWR | os.O_CREAT, 0o644)
    os.pwrite(fd, bytes(range(256)) * 256, 0)
    return fd


# space


def fallocate(where: Path, mode: int) -> object:
    fd = full_file(where)
    call("fallocate", fd, mode, number(0), number(8192))
    return os.fstat(fd).st_size, os.pread(fd, 10, 0)


@probe
def fallocate_plain(where: Path) -> object:
    return fallocate(where, 0)


@probe
def fallocate_keep_size(where: Path) -> object:
    return fallocate(where, 0x1)


@probe
def fallocate_punch_hole(where: Path) -> object:
    return fallocate(where, 0x1 | 0x2)


@probe
def fallocate_collapse_range(where: Path) -> object:
    return fallocate(where, 0x8)


@probe
def fallocate_zero_range(where: Path) -> object:
    return fallocate(where, 0x10)


@probe
def fallocate_insert_range(where: Path) -> object:
    return fallocate(where, 0x20)


@probe
def posix_fallocate(where: Path) -> object:
    fd = full_file(where)
    os.posix_fallocate(fd, 0, 1 << 20)
    os.close(fd)
    status = (where / "full").stat()
    return status.st_size, status.st_blocks >= 2048, (where / "full").read_bytes()[:10]


@probe
def seek_data_and_hole_of_a_full_file(where: Path) -> object:
    fd = full_file(where)
    return os.lseek(fd, 0, os.SEEK_DATA), os.lseek(fd, 0, os.SEEK_HOLE)


@probe
def seek_data_of_a_hole(where: Path) -> object:
    fd = full_file(where)
    os.ftruncate(fd, 1 << 20)
    return os.lseek(fd, 1 << 19, os.SEEK_DATA)


@probe
def seek_data_at_the_end(where: Path) -> object:
    return os.lseek(full_file(where), 65536, os.SEEK_DATA)


@probe
def seek_hole_past_the_end(where: Path) -> object:
    return os.lseek(full_file(where), 65537, os.SEEK_HOLE)


@probe
def temporary_file_without_a_name(where: Path) -> object:
    os.close(os.open(where, os.O_TMPFILE | os.O_RDWR, 0o600))
    return "made"


# copies


@probe
def copy_file_range(where: Path) -> object:
    one, two = full_file(where), os.open(where / "copy", os.O_RDWR | os.O_CREAT)
    count = os.copy_file_range(one, two, 65536, 4096, 100)
    return count, os.fstat(two).st_size, os.pread(two, 20, 100)


@probe
def copy_file_range_into_itself(where: Path) -> object:
    fd = full_file(where)
    return os.copy_file_range(fd, fd, 4096, 0, 100)


@probe
def copy_file_range_from_another_file_system(where: Path) -> object:
    with open("/proc/self/exe", "rb") as other:
        return os.copy_file_range(other.fileno(), full_file(where), 4096, 0, 0) > 0


FICLONE, FICLONERANGE = 0x40049409, 0x4020940D


@probe
def clone_a_file(where: Path) -> object:
    return fcntl.ioctl(os.open(where / "clone", os.O_RDWR | os.O_CREAT), FICLONE, full_file(where))


@probe
def clone_a_range(where: Path) -> object:
    fd = os.open(where / "clone", os.O_RDWR | os.O_CREAT)
    return fcntl.ioctl(fd, FICLONERANGE, struct.pack("qQQQ", full_file(where), 0, 4096, 0))


@probe
def sendfile(where: Path) -> object:
    one, two = socket.socketpair()
    with one, two:
        count = os.sendfile(one.fileno(), full_file(where), 100, 5000)
        return count, two.recv(10000)


@probe
def splice_there_and_back(where: Path) -> object:
    fd, copy = full_file(where), os.open(where / "copy", os.O_RDWR | os.O_CREAT)
    out, into = os.pipe()
    counts = os.splice(fd, into, 8192, offset_src=300), os.splice(out, copy, 8192, offset_dst=7)
    return counts, os.pread(copy, 10000, 0)


# renames and links


def renameat2(where: Path, flags: int) -> object:
    (where / "old").write_text("old")
    old, new = os.fsencode(where / "old"), os.fsencode(where / "new")
    call("renameat2", AT_FDCWD, old, AT_FDCWD, new, flags)
    return sorted((path.name, path.read_text()) for path in where.iterdir() if path.is_file())


@probe
def rename_noreplace(where: Path) -> object:
    return renameat2(where, 1)


@probe
def rename_noreplace_over_a_file(where: Path) -> object:
    (where / "new").write_text("new")
    return renameat2(where, 1)


@probe
def rename_exchange(where: Path) -> object:
    (where / "new").write_text("new")
    return renameat2(where, 2)


@probe
def rename_exchange_with_nothing(where: Path) -> object:
    return renameat2(where, 2)


@probe
def rename_noreplace_and_exchange(where: Path) -> object:
    return renameat2(where, 3)


@probe
def rename_whiteout(where: Path) -> object:
    return renameat2(where, 4)


@probe
def rename_with_an_unknown_flag(where: Path) -> object:
    return renameat2(where, 64)


@probe
def link_by_descriptor(where: Path) -> object:
    fd = full_file(where)
    os.link(f"/proc/self/fd/{fd}", where / "second", src_dir_fd=fd)  # linkat(2), AT_SYMLINK_FOLLOW
    return (where / "second").stat().st_nlink


@probe
def link_of_a_file_without_a_name(where: Path) -> object:
    fd = full_file(where)
    (where / "full").unlink()
    os.link(f"/proc/self/fd/{fd}", where / "second", src_dir_fd=fd)  # linkat(2), AT_SYMLINK_FOLLOW
    return "linked"


@probe
def device_that_is_an_overlays_whiteout(where: Path) -> object:
    os.mknod(where / "device", stat.S_IFCHR | 0o600, os.makedev(0, 0))
    return (where / "device").stat().st_rdev


@probe
def device(where: Path) -> object:
    os.mknod(where / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    return (where / "device").stat().st_rdev


# ioctl(2)

FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_IOC_FSGETXATTR = 0x80086601, 0x40086602, 0x801C581F
FS_IOC_FIEMAP, FIGETBSZ, FIONREAD, FITRIM, FIFREEZE = 0xC020660B, 2, 0x541B, 0xC0185879, 0xC0045877


@probe
def ioctl_get_flags(where: Path) -> object:
    return len(fcntl.ioctl(full_file(where), FS_IOC_GETFLAGS, bytes(8)))


@probe
def ioctl_set_flags(where: Path) -> object:
    return len(fcntl.ioctl(full_file(where), FS_IOC_SETFLAGS, struct.pack("l", 0x80)))


@probe
def ioctl_get_project(where: Path) -> object:
    return len(fcntl.ioctl(full_file(where), FS_IOC_FSGETXATTR, bytes(28)))


@probe
def ioctl_extents(where: Path) -> object:
    return len(
        fcntl.ioctl(full_file(where), FS_IOC_FIEMAP, struct.pack("QQIIII", 0, 65536, 1, 0, 0, 0))
    )


@probe
def ioctl_bytes_to_read(where: Path) -> object:
    fd = full_file(where)
    os.lseek(fd, 65000, os.SEEK_SET)
    return struct.unpack("i", fcntl.ioctl(fd, FIONREAD, bytes(4)))


@probe
def ioctl_block_size(where: Path) -> object:
    return struct.unpack("i", fcntl.ioctl(full_file(where), FIGETBSZ, bytes(4)))


@probe
def ioctl_of_a_terminal(where: Path) -> object:
    return fcntl.ioctl(full_file(where), 0x5401, bytes(60))


@probe
def ioctl_that_nobody_knows(where: Path) -> object:
    return fcntl.ioctl(full_file(where), 0xBEEF, bytes(8))


# locks and leases

F_OFD_SETLK, F_OFD_GETLK = 37, 36


def record(kind: int, start: int = 0, length: int = 0) -> bytes:
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0)


@probe
def locks_of_open_files(where: Path) -> object:
    one, two = full_file(where), full_file(where)
    fcntl.fcntl(one, F_OFD_SETLK, record(fcntl.F_WRLCK, 0, 10))
    fcntl.fcntl(two, F_OFD_SETLK, record(fcntl.F_WRLCK, 10, 10))
    met = fcntl.fcntl(two, F_OFD_GETLK, record(fcntl.F_RDLCK, 0, 10))
    try:
        fcntl.fcntl(two, F_OFD_SETLK, record(fcntl.F_RDLCK, 5, 1))
    except BlockingIOError:
        os.close(one)
        fcntl.fcntl(two, F_OFD_SETLK, record(fcntl.F_RDLCK, 5, 1))
        return met
    return "not kept out"


@probe
def lock_of_the_whole_file_twice(where: Path) -> object:
    one, two = full_file(where), full_file(where)
    fcntl.flock(one, fcntl.LOCK_EX)
    try:
        fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "kept out"
    return "not kept out"


@probe
def write_lock_of_a_file_open_for_reading(where: Path) -> object:
    full_file(where)
    fcntl.lockf(os.open(where / "full", os.O_RDONLY), fcntl.LOCK_EX)
    return "locked"


def lease(where: Path, kind: int, flags: int) -> object:
    os.close(full_file(where))
    fd = os.open(where / "full", flags)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, kind)
    return fcntl.fcntl(fd, fcntl.F_GETLEASE)


@probe
def lease_for_reading(where: Path) -> object:
    return lease(where, fcntl.F_RDLCK, os.O_RDONLY)


@probe
def lease_for_writing(where: Path) -> object:
    return lease(where, fcntl.F_WRLCK, os.O_RDWR)


@probe
def directory_notices(where: Path) -> object:
    before = signal.signal(signal.SIGIO, lambda *_: None)
    fd = os.open(where, os.O_RDONLY)
    try:
        return fcntl.fcntl(fd, fcntl.F_NOTIFY, fcntl.DN_CREATE)
    finally:
        os.close(fd)
        signal.signal(signal.SIGIO, before)


# what is told of a file

STATX_BASIC, STATX_BTIME = 0x7FF, 0x800


def statx(path: Path, mask: int) -> bytes:
    buffer = ctypes.create_string_buffer(256)
    call("statx", AT_FDCWD, os.fsencode(path), 0x100, mask, buffer)
    return buffer.raw


@probe
def statx_of_a_file(where: Path) -> object:
    os.close(full_file(where))
    os.link(where / "full", where / "second")
    os.utime(where / "full", ns=(1_000_000_001, 2_000_000_002))
    found = statx(where / "full", STATX_BASIC)
    mask, block_size, _attributes, links, uid, gid, mode = struct.unpack_from("IIQIIIH", found)
    size = struct.unpack_from("Q", found, 40)
    atime, mtime = (struct.unpack_from("qI", found, offset) for offset in (64, 112))
    return mask & STATX_BASIC, block_size, links, uid, gid, mode, size, atime, mtime


@probe
def statx_knows_when_a_file_was_born(where: Path) -> object:
    os.close(full_file(where))
    return bool(struct.unpack_from("I", statx(where / "full", STATX_BTIME))[0] & STATX_BTIME)


@probe
def times_far_away(where: Path) -> object:
    os.close(full_file(where))
    found = []
    for seconds in (-1, 1 - 2**31, 2**31, 2**32 + 5, 15032385534):
        os.utime(where / "full", ns=(seconds * 10**9 + 7, seconds * 10**9 + 7))
        status = (where / "full").stat()
        found.append((status.st_atime_ns, status.st_mtime_ns))
    return found


@probe
def kinds_in_a_listing(where: Path) -> object:
    os.close(full_file(where))
    (where / "link").symlink_to("full")
    (where / "sub").mkdir()
    os.mkfifo(where / "fifo")
    with os.scandir(where) as listing:
        return sorted(
            (it.name, it.is_file(follow_symlinks=False), it.is_dir(), it.is_symlink())
            for it in listing
        )


@probe
def limits(where: Path) -> object:
    names = ("PC_NAME_MAX", "PC_PATH_MAX", "PC_NO_TRUNC", "PC_CHOWN_RESTRICTED", "PC_SYMLINK_MAX")
    return [os.pathconf(where, name) for name in names]


# extended attributes


def attribute(where: Path, name: str, value: bytes = b"value") -> object:
    path = where / "full"
    os.close(full_file(where))
    os.setxattr(path, name, value)
    found = os.getxattr(path, name), name in os.listxattr(path)
    os.removexattr(path, name)
    return found, name in os.listxattr(path)


@probe
def attribute_of_the_user(where: Path) -> object:
    return attribute(where, "user.name")


@probe
def attribute_trusted(where: Path) -> object:
    return attribute(where, "trusted.name")


@probe
def attribute_of_security(where: Path) -> object:
    return attribute(where, "security.name")


@probe
def attribute_of_no_name_space(where: Path) -> object:
    return attribute(where, "other.name")


@probe
def attribute_without_a_name(where: Path) -> object:
    return attribute(where, "user.")


@probe
def attribute_with_a_name_too_long(where: Path) -> object:
    return attribute(where, "user." + "n" * 251)


@probe
def attribute_with_a_value_too_long(where: Path) -> object:
    return attribute(where, "user.name", bytes(65537))


@probe
def attribute_that_exists_made(where: Path) -> object:
    os.close(full_file(where))
    os.setxattr(where / "full", "user.a", b"1", os.XATTR_CREATE)
    os.setxattr(where / "full", "user.a", b"2", os.XATTR_CREATE)
    return os.getxattr(where / "full", "user.a")


@probe
def attribute_that_is_missing_replaced(where: Path) -> object:
    os.close(full_file(where))
    os.setxattr(where / "full", "user.a", b"1", os.XATTR_REPLACE)
    return os.getxattr(where / "full", "user.a")


@probe
def attribute_that_is_missing(where: Path) -> object:
    os.close(full_file(where))
    return os.getxattr(where / "full", "user.none")


@probe
def attribute_of_a_link(where: Path) -> object:
    (where / "link").symlink_to("nothing")
    os.setxattr(where / "link", "user.a", b"1", follow_symlinks=False)
    return "set"


@probe
def attribute_that_heddle_keeps_for_itself(where: Path) -> object:
    return attribute(where, "user.heddle.x")


ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, 7, who)
    for tag, who in ((1, 2**32 - 1), (2, 12345), (4, 2**32 - 1), (16, 2**32 - 1), (32, 2**32 - 1))
)


@probe
def access_control_list(where: Path) -> object:
    os.close(full_file(where))
    os.setxattr(where / "full", "system.posix_acl_access", ACL)
    return len(os.getxattr(where / "full", "system.posix_acl_access"))


# handles, quotas, sockets


@probe
def file_handles(where: Path) -> object:
    os.close(full_file(where))
    handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0), 136)
    mount_id = ctypes.c_int()
    call(
        "name_to_handle_at",
        AT_FDCWD,
        os.fsencode(where / "full"),
        handle,
        ctypes.byref(mount_id),
        0,
    )
    top = os.open(where, os.O_RDONLY)
    fd = call("open_by_handle_at", top, handle, os.O_RDONLY)
    return os.fstat(fd).st_ino == (where / "full").stat().st_ino, os.pread(fd, 10, 5)


@probe
def quotas(where: Path) -> object:
    buffer = ctypes.create_string_buffer(128)
    top = os.open(where, os.O_RDONLY)
    return call("syscall", number(443), top, 0x80000700, 0, buffer)  # quotactl_fd, Q_GETQUOTA


@probe
def unix_socket(where: Path) -> object:
    before = Path.cwd()
    os.chdir(where)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
            server.bind("socket")
            server.listen()
            client.connect("socket")
            peer, _ = server.accept()
            client.sendall(b"hello")
            with peer:
                return peer.recv(10), stat.filemode((where / "socket").stat().st_mode)
    finally:
        os.chdir(before)


# maps, direct and far input and output


@probe
def shared_map(where: Path) -> object:
    fd = full_file(where)
    with mmap.mmap(fd, 65536) as one, mmap.mmap(fd, 65536, access=mmap.ACCESS_READ) as two:
        one[4090:4100] = b"0123456789"
        seen = two[4090:4100], os.pread(fd, 10, 4090)
        os.pwrite(fd, b"written", 9000)
        one.flush()
        return seen, one[9000:9007]


@probe
def map_past_the_end(where: Path) -> object:
    fd = full_file(where)
    os.ftruncate(fd, 5000)
    with mmap.mmap(fd, 0) as view:
        return len(view), view[4990:5000]


@probe
def direct_io(where: Path) -> object:
    os.close(full_file(where))
    fd = os.open(where / "full", os.O_RDWR | os.O_DIRECT)
    with mmap.mmap(-1, 8192) as aligned:
        aligned[:] = b"d" * 8192
        written = os.pwritev(fd, [aligned], 4096)
        read = os.preadv(fd, [aligned], 8192)
        return written, read, aligned[:8192], (where / "full").read_bytes()[4090:4110]


@probe
def append_and_positioned_write(where: Path) -> object:
    os.close(full_file(where))
    fd = os.open(where / "full", os.O_RDWR | os.O_APPEND)
    os.write(fd, b"end")
    os.pwrite(fd, b"also the end", 0)
    return os.fstat(fd).st_size, os.pread(fd, 20, 65536)


@probe
def far_offsets(where: Path) -> object:
    fd = full_file(where)
    found = []
    for offset in (2**31 - 1, 2**32, 2**40 + 1):
        os.pwrite(fd, b"far", offset)
        os.fsync(fd)
        found.append((os.fstat(fd).st_size, os.pread(fd, 10, offset - 1)))
    return found


@probe
def truncation_to_more_than_a_file_can_hold(where: Path) -> object:
    os.ftruncate(full_file(where), 2**62)
    return "grown"


@probe
def offset_that_is_negative(where: Path) -> object:
    return os.pread(full_file(where), 1, -1)


@probe
def sizes_are_limited_by_the_process(where: Path) -> object:
    code = (
        "import os, resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (70000, 70000))\n"
        "fd = os.open('full', os.O_RDWR)\n"
        "print(os.pwrite(fd, bytes(10000), 65536))\n"
        "try: os.pwrite(fd, b'x', 80000)\n"
        "except OSError as error: print(error.errno)\n"
    )
    os.close(full_file(where))
    done = subprocess.run([sys.executable, "-c", code], cwd=where, capture_output=True, timeout=60)
    return done.returncode, done.stdout


@probe
def holes_asked_for_by_advice(where: Path) -> object:
    fd = full_file(where)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.posix_fadvise(fd, 0, 4096, os.POSIX_FADV_WILLNEED)
    call("readahead", fd, number(0), number(65536))
    call("sync_file_range", fd, number(0), number(4096), 7)
    call("syncfs", fd)
    return os.pread(fd, 10, 0)


# names


@probe
def name_of_255_bytes(where: Path) -> object:
    (where / ("n" * 255)).touch()
    return os.listdir(where)


@probe
def name_of_256_bytes(where: Path) -> object:
    (where / ("n" * 256)).touch()
    return os.listdir(where)


@probe
def path_of_4096_bytes(where: Path) -> object:
    return stat.S_ISDIR(os.stat(f"{where}/".ljust(4096, "/")).st_mode)


@probe
def path_of_4095_bytes(where: Path) -> object:
    return stat.S_ISDIR(os.stat(f"{where}/".ljust(4095, "/")).st_mode)


@probe
def link_target_of_4095_bytes(where: Path) -> object:
    (where / "link").symlink_to("t" * 4095)
    return os.readlink(where / "link") == "t" * 4095


@probe
def link_target_of_4096_bytes(where: Path) -> object:
    (where / "link").symlink_to("t" * 4096)
    return "made"


@probe
def link_in_a_circle(where: Path) -> object:
    (where / "link").symlink_to("link")
    return os.open(where / "link", os.O_RDONLY)


@probe
def bytes_that_are_no_text(where: Path) -> object:
    name = os.path.join(os.fsencode(where), b"\xff\n \\x")
    os.close(os.open(name, os.O_CREAT))
    return os.listdir(os.fsencode(where))


# the comparison

SUPPORTED_BELOW = {
    # no handler in pyfuse3, so the kernel answers: programs write zeros, name a file, copy or ask otherwise
    "fallocate_plain": "ENOTSUP",
    "fallocate_keep_size": "ENOTSUP",
    "fallocate_punch_hole": "ENOTSUP",
    "fallocate_collapse_range": "ENOTSUP",
    "fallocate_zero_range": "ENOTSUP",
    "fallocate_insert_range": "ENOTSUP",
    "temporary_file_without_a_name": "ENOTSUP",
    "seek_data_of_a_hole": 1 << 19,  # a hole is data, as POSIX lets it be
    "ioctl_get_flags": "ENOTTY",
    "ioctl_set_flags": "ENOTTY",
    "ioctl_get_project": "ENOTTY",
    "ioctl_extents": "ENOTSUP",
    "statx_knows_when_a_file_was_born": False,
    "quotas": "ENOSYS",
    "access_control_list": "ENOTSUP",
    # as between any two file systems
    "copy_file_range_from_another_file_system": "EXDEV",
    # an overlay's own, as in the kernel's: a whiteout is a deletion, and marks are not for programs
    "rename_whiteout": "EINVAL",
    "device_that_is_an_overlays_whiteout": "EPERM",
    "attribute_that_heddle_keeps_for_itself": "EPERM",
}
"""What a call answers in a mount where the file system below may do more: the errno that programs fall back on."""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """A directory on the file system below, and a mount whose overlay is there."""
    top = tmp_path_factory.mktemp("system-calls")
    (top / "below").mkdir()
    (top / "run").mkdir(mode=0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(top / "run"))
        with heddle.mounted(heddle.init(top / "repo"), "agent-1", create=True) as where:
            yield top / "below", where


@pytest.mark.parametrize("name", PROBES)
def test_a_call_answers_as_below(places: tuple[Path, Path], name: str) -> None:
    """A system call in a mount answers what it answers below, or what is said above that a mount can't do."""
    for place in places:
        (place / name).mkdir()
    below, here = (answer(PROBES[name], place / name) for place in places)
    expected = SUPPORTED_BELOW.get(name, below)

    assert here == expected


def test_what_is_missing_is_there_below(places: tuple[Path, Path]) -> None:
    """The list of what a mount can't do names no call that answers otherwise here."""
    assert SUPPORTED_BELOW.keys() <= PROBES.keys()
