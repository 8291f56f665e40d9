"""The FUSE handlers awaited directly: what the kernel would be answered, without a kernel."""

from __future__ import annotations

import errno
import functools
import logging
import os
import stat
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyfuse3
import pytest
import trio
import trio.testing

from heddle.mount.fuse import SMALL, Operations
from heddle.mount.overlay import Overlay
from heddle.mount.shell import ROOT
from mount.base import OpenThread, captured

LARGE = bytes(range(256)) * (3 << 12)  # 3 MiB
LONG = b"n" * 256
PATIENCE_S = 20


@dataclass(frozen=True)
class Asker:
    """Who asks, as pyfuse3's RequestContext says it."""

    uid: int = field(default_factory=os.geteuid)
    gid: int = field(default_factory=os.getegid)


@dataclass(frozen=True)
class Fields:
    """What a setattr changes, as pyfuse3's SetattrFields says it."""

    update_size: bool = False
    update_mode: bool = False
    update_uid: bool = False
    update_gid: bool = False
    update_atime: bool = False
    update_mtime: bool = False
    update_ctime: bool = False


ME = Asker()


def in_trio(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test in trio's loop; the view must not be used from elsewhere meanwhile."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def limited() -> None:
            with trio.fail_after(3 * PATIENCE_S):
                await test(*args, **kwargs)

        trio.run(limited)

    return run


class Kernel:
    """The handlers, asked by path."""

    def __init__(self, operations: Operations) -> None:
        self.ask = operations

    async def find(self, *names: bytes) -> int:
        ino = ROOT
        for name in names:
            ino = (await self.ask.lookup(ino, name, ME)).st_ino
            assert ino, name
        return ino

    async def open(self, ino: int, flags: int = os.O_RDONLY) -> int:
        return (await self.ask.open(ino, flags, ME)).fh

    async def content(self, ino: int) -> bytes:
        fh = await self.open(ino)
        size = (await self.ask.getattr(ino, ME)).st_size
        pieces, offset = [], 0
        while offset < size:
            pieces.append(bytes(await self.ask.read(fh, offset, 1 << 17)))
            offset += len(pieces[-1])
        await self.ask.release(fh)
        return b"".join(pieces)

    async def resize(self, ino: int, size: int) -> None:
        attributes = pyfuse3.EntryAttributes()
        attributes.st_size = size
        await self.ask.setattr(ino, attributes, Fields(update_size=True), None, ME)


@pytest.fixture
def pushed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, bytes]]:
    """What was given to the kernel's page cache."""
    calls: list[tuple[int, int, bytes]] = []
    monkeypatch.setattr(
        pyfuse3, "notify_store", lambda ino, offset, data: calls.append((ino, offset, bytes(data)))
    )
    return calls


@pytest.fixture
def kernel(thread: OpenThread, pushed: object) -> Kernel:
    """Handlers over the base tree."""
    return Kernel(Operations(thread.core))


@pytest.fixture
def large(tmp_path: Path, pushed: object) -> Iterator[OpenThread]:
    """A thread with a captured file above the size that is copied in the loop."""
    thread = captured(tmp_path / "large", {(b"large",): LARGE, (b"small",): b"small\n"})
    yield thread
    thread.close()


async def error_of(awaitable: Awaitable[object]) -> int:
    """The errno that an operation fails with."""
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await awaitable
    return caught.value.errno


# times


@in_trio
async def test_a_change_of_mode_while_a_file_is_written(kernel: Kernel) -> None:
    """The change time that comes with a chmod(2) is the file's when it was written and is closed."""
    ino = await kernel.find(b"c")
    fh = await kernel.open(ino, os.O_WRONLY)
    await kernel.ask.write(fh, 0, b"written")
    before = await kernel.ask.getattr(ino, ME)
    attributes, _ = mode_only(0o600)
    attributes.st_ctime_ns = before.st_ctime_ns + 1
    await kernel.ask.setattr(ino, attributes, Fields(update_mode=True, update_ctime=True), None, ME)
    await kernel.ask.release(fh)

    assert (await kernel.ask.getattr(ino, ME)).st_ctime_ns == before.st_ctime_ns + 1


# errno


def mode_only(mode: int) -> tuple[pyfuse3.EntryAttributes, Fields]:
    attributes = pyfuse3.EntryAttributes()
    attributes.st_mode = mode
    return attributes, Fields(update_mode=True)


REFUSED: dict[str, tuple[int, Callable[[Operations, dict[str, int]], Awaitable[object]]]] = {
    "getattr of a number nobody has": (errno.ESTALE, lambda o, n: o.getattr(12345, ME)),
    "lookup in a file": (errno.ENOTDIR, lambda o, n: o.lookup(n["c"], b"x", ME)),
    "lookup of a long name": (errno.ENAMETOOLONG, lambda o, n: o.lookup(ROOT, LONG, ME)),
    "create over a file": (errno.EEXIST, lambda o, n: o.create(ROOT, b"c", 0o644, 0, ME)),
    "create with a long name": (errno.ENAMETOOLONG, lambda o, n: o.create(ROOT, LONG, 0o644, 0, ME)),
    "create in a file": (errno.ENOTDIR, lambda o, n: o.create(n["c"], b"x", 0o644, 0, ME)),
    "create in a removed directory": (errno.ENOENT, lambda o, n: o.create(n["gone"], b"x", 0o644, 0, ME)),
    "mkdir over a directory": (errno.EEXIST, lambda o, n: o.mkdir(ROOT, b"a", 0o755, ME)),
    "mkdir with a long name": (errno.ENAMETOOLONG, lambda o, n: o.mkdir(ROOT, LONG, 0o755, ME)),
    "mkdir in a removed directory": (errno.ENOENT, lambda o, n: o.mkdir(n["gone"], b"x", 0o755, ME)),
    "mknod over a file": (errno.EEXIST, lambda o, n: o.mknod(ROOT, b"c", stat.S_IFIFO | 0o644, 0, ME)),
    "mknod of what reads as a deletion": (errno.EPERM, lambda o, n: o.mknod(ROOT, b"x", stat.S_IFCHR | 0o644, 0, ME)),
    "symlink over a link": (errno.EEXIST, lambda o, n: o.symlink(n["b"], b"c", b"t", ME)),
    "symlink with a long name": (errno.ENAMETOOLONG, lambda o, n: o.symlink(ROOT, LONG, b"t", ME)),
    "link over a file": (errno.EEXIST, lambda o, n: o.link(n["c"], n["a"], b"a", ME)),
    "link of a directory": (errno.EPERM, lambda o, n: o.link(n["a"], ROOT, b"x", ME)),
    "link with a long name": (errno.ENAMETOOLONG, lambda o, n: o.link(n["c"], ROOT, LONG, ME)),
    "unlink of nothing": (errno.ENOENT, lambda o, n: o.unlink(ROOT, b"x", ME)),
    "unlink of a directory": (errno.EISDIR, lambda o, n: o.unlink(ROOT, b"a", ME)),
    "unlink of a long name": (errno.ENAMETOOLONG, lambda o, n: o.unlink(ROOT, LONG, ME)),
    "rmdir of nothing": (errno.ENOENT, lambda o, n: o.rmdir(ROOT, b"x", ME)),
    "rmdir of a file": (errno.ENOTDIR, lambda o, n: o.rmdir(ROOT, b"c", ME)),
    "rmdir of a full directory": (errno.ENOTEMPTY, lambda o, n: o.rmdir(ROOT, b"a", ME)),
    "rmdir of a long name": (errno.ENAMETOOLONG, lambda o, n: o.rmdir(ROOT, LONG, ME)),
    "rename of nothing": (errno.ENOENT, lambda o, n: o.rename(ROOT, b"x", ROOT, b"y", 0, ME)),
    "rename to a long name": (errno.ENAMETOOLONG, lambda o, n: o.rename(ROOT, b"c", ROOT, LONG, 0, ME)),
    "rename of a file onto a directory": (errno.EISDIR, lambda o, n: o.rename(ROOT, b"c", ROOT, b"a", 0, ME)),
    "rename of a directory onto a file": (errno.ENOTDIR, lambda o, n: o.rename(ROOT, b"a", ROOT, b"c", 0, ME)),
    "rename onto a full directory": (errno.ENOTEMPTY, lambda o, n: o.rename(ROOT, b"a", ROOT, b"b", 0, ME)),
    "rename of a directory into itself": (errno.EINVAL, lambda o, n: o.rename(ROOT, b"a", n["a"], b"x", 0, ME)),
    "rename without replacing": (
        errno.EEXIST,
        lambda o, n: o.rename(ROOT, b"c", n["a"], b"a", pyfuse3.RENAME_NOREPLACE, ME),
    ),
    "exchange with nothing": (
        errno.ENOENT,
        lambda o, n: o.rename(ROOT, b"c", ROOT, b"x", pyfuse3.RENAME_EXCHANGE, ME),
    ),
    "exchange with what is above": (
        errno.EINVAL,
        lambda o, n: o.rename(n["a"], b"b", ROOT, b"a", pyfuse3.RENAME_EXCHANGE, ME),
    ),
    "rename with a whiteout": (errno.EINVAL, lambda o, n: o.rename(ROOT, b"c", ROOT, b"x", 4, ME)),
    "rename into a removed directory": (errno.ENOENT, lambda o, n: o.rename(ROOT, b"c", n["gone"], b"x", 0, ME)),
    "readlink of a directory": (errno.EISDIR, lambda o, n: o.readlink(n["a"], ME)),
    "open of a directory as a file": (errno.EISDIR, lambda o, n: o.open(n["a"], os.O_RDONLY, ME)),
    "getxattr that is not there": (pyfuse3.ENOATTR, lambda o, n: o.getxattr(n["c"], b"user.x", ME)),
    "getxattr of ours": (pyfuse3.ENOATTR, lambda o, n: o.getxattr(n["c"], b"user.heddle.node", ME)),
    "getxattr of an unknown kind": (errno.EOPNOTSUPP, lambda o, n: o.getxattr(n["c"], b"other.x", ME)),
    "setxattr of ours": (errno.EPERM, lambda o, n: o.setxattr(n["c"], b"user.heddle.node", b"v", ME)),
    "setxattr of overlayfs": (errno.EPERM, lambda o, n: o.setxattr(n["c"], b"user.overlay.opaque", b"y", ME)),
    "setxattr of an unknown kind": (errno.EOPNOTSUPP, lambda o, n: o.setxattr(n["c"], b"other.x", b"v", ME)),
    "removexattr that is not there": (pyfuse3.ENOATTR, lambda o, n: o.removexattr(n["c"], b"user.x", ME)),
    "removexattr of ours": (errno.EPERM, lambda o, n: o.removexattr(n["c"], b"user.heddle.node", ME)),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
@in_trio
async def test_refused(kernel: Kernel, thread: OpenThread, what: str) -> None:
    """What the view refuses has the errno that a file system gives, and changes nothing."""
    number, operation = REFUSED[what]
    await kernel.ask.rmdir(await kernel.find(b"b"), b"\xe9", ME)
    numbers = {
        "a": await kernel.find(b"a"),
        "b": await kernel.find(b"b"),
        "c": await kernel.find(b"c"),
    }
    numbers["gone"] = (await kernel.ask.mkdir(ROOT, b"gone", 0o755, ME)).st_ino
    await kernel.ask.rmdir(ROOT, b"gone", ME)
    before = thread.view.glance()

    assert (
        errno.errorcode[await error_of(operation(kernel.ask, numbers))] == errno.errorcode[number]
    )
    assert thread.view.glance() == before


CHANGES: dict[str, Callable[[Operations, int], Awaitable[object]]] = {
    "create": lambda o, n: o.create(ROOT, b"x", 0o644, 0, ME),
    "mkdir": lambda o, n: o.mkdir(ROOT, b"x", 0o755, ME),
    "mknod": lambda o, n: o.mknod(ROOT, b"x", stat.S_IFIFO | 0o644, 0, ME),
    "symlink": lambda o, n: o.symlink(ROOT, b"x", b"t", ME),
    "link": lambda o, n: o.link(n, ROOT, b"x", ME),
    "unlink": lambda o, n: o.unlink(ROOT, b"c", ME),
    "rmdir": lambda o, n: o.rmdir(ROOT, b"a", ME),
    "rename": lambda o, n: o.rename(ROOT, b"c", ROOT, b"x", 0, ME),
    "chmod": lambda o, n: o.setattr(n, *mode_only(0o600), None, ME),
    "setxattr": lambda o, n: o.setxattr(n, b"user.x", b"v", ME),
    "removexattr": lambda o, n: o.removexattr(n, b"user.x", ME),
    "open for writing": lambda o, n: o.open(n, os.O_WRONLY, ME),
    "open for writing, truncating": lambda o, n: o.open(n, os.O_RDWR | os.O_TRUNC, ME),
}


@pytest.mark.parametrize("what", CHANGES)
@in_trio
async def test_read_only(thread: OpenThread, pushed: object, what: str) -> None:
    """A read-only mount refuses every change with EROFS, and still reads."""
    with Overlay.open(thread.repo, "view", read_only=True, base=thread.overlay.base) as overlay:
        kernel = Kernel(Operations(overlay.core))
        number = await error_of(CHANGES[what](kernel.ask, await kernel.find(b"c")))

        assert errno.errorcode[number] == "EROFS"
        assert await kernel.content(await kernel.find(b"a", b"a")) == b"captured a/a\n"


@in_trio
async def test_absent_name_is_an_answer(kernel: Kernel) -> None:
    """A name that is not there is answered with no number and a timeout, for the kernel to remember."""
    answer = await kernel.ask.lookup(ROOT, b"absent", ME)

    assert answer.st_ino == 0
    assert answer.entry_timeout > 1e6


@in_trio
async def test_missing_object_is_eio_and_named(
    tmp_path: Path, kernel: Kernel, thread: OpenThread, caplog: pytest.LogCaptureFixture
) -> None:
    """A blob that no pack has is EIO for the reader, and the log says which one."""
    ino = await kernel.find(b"a", b"a")
    blob = thread.core.nodes[ino].blob
    thread.core.nodes[ino].blob = b"0" * 40

    assert await error_of(kernel.open(ino)) == errno.EIO
    assert "0" * 40 in caplog.text
    thread.core.nodes[ino].blob = blob


class Broken:
    """A core of which nothing works."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"{name} is broken")


ATTRIBUTES, MODE = mode_only(0o600)
EVERY: dict[str, tuple[Any, ...]] = {
    "lookup": (1, b"x", ME),
    "getattr": (1, ME),
    "setattr": (1, ATTRIBUTES, MODE, None, ME),
    "readlink": (1, ME),
    "mkdir": (1, b"x", 0, ME),
    "mknod": (1, b"x", 0, 0, ME),
    "symlink": (1, b"x", b"t", ME),
    "link": (1, 1, b"x", ME),
    "unlink": (1, b"x", ME),
    "rmdir": (1, b"x", ME),
    "rename": (1, b"x", 1, b"y", 0, ME),
    "create": (1, b"x", 0, 0, ME),
    "open": (1, os.O_RDWR, ME),
    "read": (1, 0, 1),
    "write": (1, 0, b"x"),
    "release": (1,),
    "fsync": (1, False),
    "fsyncdir": (1, False),
    "readdir": (1, 0, None),
    "releasedir": (77,),
    "statfs": (ME,),
    "getxattr": (1, b"user.x", ME),
    "setxattr": (1, b"user.x", b"v", ME),
    "listxattr": (1, ME),
    "removexattr": (1, b"user.x", ME),
}


@pytest.mark.parametrize("handler", EVERY)
@in_trio
async def test_unexpected_error_is_eio_and_a_log_line(
    handler: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception that nobody expected is EIO and a traceback in the log: it never leaves the handler."""
    operations = Operations(Broken())  # type: ignore[arg-type]
    await operations.opendir(1, ME)  # handle 1

    assert await error_of(getattr(operations, handler)(*EVERY[handler])) == errno.EIO
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "Traceback" in caplog.text


def test_every_handler_is_tried() -> None:
    """The table above holds every handler that we define, but for those that answer without the core."""
    ours = {
        name
        for name in vars(Operations)
        if not name.startswith("_") and callable(getattr(Operations, name))
    }

    assert ours - set(EVERY) == {"flush", "forget", "opendir"}


@in_trio
async def test_forget_never_fails(caplog: pytest.LogCaptureFixture) -> None:
    """A forget has no answer to carry an error, so that one goes to the log alone."""
    await Operations(Broken()).forget([(1, 1)])  # type: ignore[arg-type]

    assert "forget is broken" in caplog.text


@in_trio
async def test_cancellation_is_not_an_error(large: OpenThread) -> None:
    """A handler that is cancelled while it waits ends with the loop; nobody makes an EIO of it."""
    kernel = Kernel(Operations(large.core))
    ino = await kernel.find(b"large")
    with trio.CancelScope() as scope:
        scope.cancel()
        await kernel.open(ino, os.O_RDWR)

    assert scope.cancelled_caught
    assert await kernel.content(ino) == LARGE


# copy-up of a large file


class Gate:
    """Holds the copy of a large file in its worker thread until it is let through; counts the copies."""

    def __init__(self, thread: OpenThread, monkeypatch: pytest.MonkeyPatch) -> None:
        self.copies = 0
        self._reached, self._open = threading.Event(), threading.Event()
        self._copy = thread.core.copy_bytes_to
        monkeypatch.setattr(thread.core, "copy_bytes_to", self._wait_and_copy)

    def _wait_and_copy(self, blob: bytes, size: int, fd: int) -> None:
        if size == len(LARGE):
            self.copies += 1
            self._reached.set()
            assert self._open.wait(PATIENCE_S)
        self._copy(blob, size, fd)

    async def reached(self) -> None:
        assert await trio.to_thread.run_sync(self._reached.wait, PATIENCE_S)

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def gate(large: OpenThread, monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(large, monkeypatch)


@in_trio
async def test_copy_up_does_not_block_others(large: OpenThread, gate: Gate) -> None:
    """While a large file is copied up, its neighbour is read and written."""
    kernel = Kernel(Operations(large.core))
    ino, other = await kernel.find(b"large"), await kernel.find(b"small")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kernel.open, ino, os.O_RDWR)
        await gate.reached()
        assert await kernel.content(other) == b"small\n"
        fh = await kernel.open(other, os.O_RDWR)
        await kernel.ask.write(fh, 0, b"SMALL")
        gate.open()

    assert await kernel.content(other) == b"SMALL\n"
    assert await kernel.content(ino) == LARGE


@in_trio
async def test_two_openers_copy_once(large: OpenThread, gate: Gate) -> None:
    """Who opens a file for writing while it is copied up waits for that copy, and makes none."""
    kernel = Kernel(Operations(large.core))
    ino = await kernel.find(b"large")
    opened: list[int] = []

    async def open_and_note() -> None:
        opened.append(await kernel.open(ino, os.O_RDWR))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(open_and_note)
        await gate.reached()
        await trio.testing.wait_all_tasks_blocked()
        assert opened == []
        gate.open()
    for number, fh in enumerate(opened):
        await kernel.ask.write(fh, number, b"X")
        await kernel.ask.release(fh)

    assert gate.copies == 1
    assert await kernel.content(ino) == b"XXX" + LARGE[3:]


@pytest.mark.parametrize("how", ["O_TRUNC", "truncate"])
@in_trio
async def test_truncation_during_a_copy_stays(large: OpenThread, gate: Gate, how: str) -> None:
    """A file that is truncated while another opener has it copied up is empty afterwards."""
    kernel = Kernel(Operations(large.core))
    ino = await kernel.find(b"large")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kernel.open, ino, os.O_RDWR)
        await gate.reached()
        if how == "O_TRUNC":
            nursery.start_soon(kernel.open, ino, os.O_RDWR | os.O_TRUNC)
        else:
            nursery.start_soon(kernel.resize, ino, 0)
        await trio.testing.wait_all_tasks_blocked()
        gate.open()

    assert await kernel.content(ino) == b""
    assert large.status() == {b"large": "modified"}


@in_trio
async def test_name_goes_during_a_copy(large: OpenThread, gate: Gate) -> None:
    """A file that is unlinked while it is copied up is whole for its opener, and gone for all others."""
    kernel = Kernel(Operations(large.core))
    ino = await kernel.find(b"large")
    opened: list[int] = []

    async def open_and_note() -> None:
        opened.append(await kernel.open(ino, os.O_RDWR))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(open_and_note)
        await gate.reached()
        await kernel.ask.unlink(ROOT, b"large", ME)
        gate.open()

    assert bytes(await kernel.ask.read(opened[0], len(LARGE) - 3, 10)) == LARGE[-3:]
    assert await kernel.ask.write(opened[0], 0, b"mine") == 4
    assert (await kernel.ask.getattr(ino, ME)).st_nlink == 0
    assert (await kernel.ask.lookup(ROOT, b"large", ME)).st_ino == 0
    await kernel.ask.release(opened[0])
    await kernel.ask.forget([(ino, 1)])
    assert ino not in large.core.nodes


@in_trio
async def test_failed_copy_is_told_and_tried_again(
    large: OpenThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk during a copy-up is ENOSPC for the opener; the file stays whole, and the next open works."""
    kernel = Kernel(Operations(large.core))
    ino = await kernel.find(b"large")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(large.core, "copy_bytes_to", fail)
        assert await error_of(kernel.open(ino, os.O_RDWR)) == errno.ENOSPC
    assert await kernel.content(ino) == LARGE
    assert large.status() == {}
    fh = await kernel.open(ino, os.O_RDWR)
    await kernel.ask.write(fh, 0, b"X")

    assert await kernel.content(ino) == b"X" + LARGE[1:]


@in_trio
async def test_capture_during_a_copy(large: OpenThread, gate: Gate) -> None:
    """A capture while a file is copied up takes it for what it is: unchanged."""
    kernel = Kernel(Operations(large.core))
    ino = await kernel.find(b"large")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kernel.open, ino, os.O_RDWR)
        await gate.reached()
        await kernel.ask.mkdir(ROOT, b"new", 0o755, ME)
        assert large.capture().added == 1
        gate.open()

    assert large.status() == {}
    large.reopen()
    assert large.view.content((b"large",)) == LARGE


# fsync


@in_trio
async def test_fsync_reaches_the_real_file(
    kernel: Kernel, thread: OpenThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsync and fdatasync in the mount are those of the real file; what is captured needs none."""
    synced: list[tuple[str, int]] = []
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(
            os, name, lambda fd, name=name: synced.append((name, os.fstat(fd).st_ino))
        )
    captured_file = await kernel.open(await kernel.find(b"c"))
    await kernel.ask.fsync(captured_file, False)
    assert synced == []
    info, entry = await kernel.ask.create(ROOT, b"new", 0o644, os.O_RDWR, ME)
    await kernel.ask.fsync(info.fh, False)
    await kernel.ask.fsync(info.fh, True)
    directory = await kernel.ask.opendir(ROOT, ME)
    await kernel.ask.fsyncdir(directory, False)

    real = thread.core.nodes[entry.st_ino].real_ino
    root = os.fstat(thread.core.upper.root).st_ino
    assert synced == [("fsync", real), ("fdatasync", real), ("fsync", root)]


# directories


@pytest.fixture
def replies(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, int, int]]:
    """What readdir replied: name, number, position after it; a hundred to a reply, as a page would hold."""
    listed: list[tuple[bytes, int, int]] = []

    def reply(token: list[int], name: bytes, entry: pyfuse3.EntryAttributes, after: int) -> bool:
        if not token[0]:
            return False
        token[0] -= 1
        listed.append((name, entry.st_ino, after))
        return True

    monkeypatch.setattr(pyfuse3, "readdir_reply", reply)
    return listed


@in_trio
async def test_listing_is_stable_under_change(
    tmp_path: Path, replies: list[tuple[bytes, int, int]]
) -> None:
    """Of 20,000 entries each that stays is listed once, whatever comes and goes meanwhile."""
    names = [b"%06d" % number for number in range(20_000)]
    with_many = captured_flat(tmp_path / "many", names)
    kernel = Kernel(Operations(with_many.core))
    fh = await kernel.ask.opendir(ROOT, ME)
    gone: set[bytes] = set()
    position = 0
    while True:
        before = len(replies)
        await kernel.ask.readdir(fh, position, [100])
        if len(replies) == before:
            break
        position = replies[-1][2]
        if position < 3_000:
            for name in (replies[-1][0], names[-position]):
                await kernel.ask.unlink(ROOT, name, ME)
                gone.add(name)
            await kernel.ask.create(ROOT, b"new%d" % position, 0o644, 0, ME)
            await kernel.ask.rename(
                ROOT, names[10_000 + position], ROOT, b"moved%d" % position, 0, ME
            )
            gone.add(names[10_000 + position])
    await kernel.ask.releasedir(fh)
    listed = [name for name, _, _ in replies]

    assert len(gone) > 60
    assert len(listed) == len(set(listed))
    assert set(names) - gone <= set(listed)
    with_many.close()


def captured_flat(to: Path, names: list[bytes]) -> OpenThread:
    """A thread whose root holds these names, all with the same bytes."""
    return captured(to, {(name,): b"same" for name in names})


@in_trio
async def test_rewound_listing_is_new(
    kernel: Kernel, replies: list[tuple[bytes, int, int]]
) -> None:
    """A listing that starts again from the beginning shows what is there now."""
    fh = await kernel.ask.opendir(ROOT, ME)
    await kernel.ask.readdir(fh, 0, [100])
    await kernel.ask.create(ROOT, b"new", 0o644, 0, ME)
    replies.clear()
    await kernel.ask.readdir(fh, 0, [100])

    assert {b".", b"..", b".gitignore", b"a", b"b", b"c", b"new", b"\xe9"} == {
        r[0] for r in replies
    }


@in_trio
async def test_listing_of_a_removed_directory_is_empty(
    kernel: Kernel, replies: list[tuple[bytes, int, int]]
) -> None:
    """A directory that was removed while it is open lists no name, and fails no reader."""
    ino = await kernel.find(b"b", b"\xe9")
    fh = await kernel.ask.opendir(ino, ME)
    await kernel.ask.rmdir(await kernel.find(b"b"), b"\xe9", ME)
    await kernel.ask.readdir(fh, 0, [100])

    assert [name for name, _, _ in replies] == [b".", b".."]


@in_trio
async def test_forget_releases(
    kernel: Kernel, thread: OpenThread, replies: list[tuple[bytes, int, int]]
) -> None:
    """What the kernel was told of in listings and lookups is dropped when it forgets, descriptors too."""
    info, _ = await kernel.ask.create(await kernel.find(b"a", b"b"), b"new", 0o644, 0, ME)
    for path in ((), (b"a",), (b"a", b"b"), (b"b",)):
        fh = await kernel.ask.opendir(await kernel.find(*path), ME)
        await kernel.ask.readdir(fh, 0, [100])
        await kernel.ask.releasedir(fh)
    held = {ino: node.lookups for ino, node in thread.core.nodes.items() if ino != ROOT}
    assert len(held) > 10
    await kernel.ask.release(info.fh)
    await kernel.ask.forget(list(held.items()))

    assert list(thread.core.nodes) == [ROOT]
    assert thread.core.root.children == {}
    root = os.path.realpath(f"/proc/self/fd/{thread.core.upper.root}")
    below = [target for target in open_files() if target.startswith(root + "/")]
    assert below == []


def open_files() -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            continue  # the listing's own
    return found


# the page cache


@in_trio
async def test_small_captured_file_is_pushed(
    kernel: Kernel, pushed: list[tuple[int, int, bytes]]
) -> None:
    """The first opener of a small captured file finds its bytes in the page cache; nobody after it pushes again."""
    ino = await kernel.find(b"a", b"a")
    await kernel.ask.release(await kernel.open(ino))
    await kernel.ask.release(await kernel.open(ino))

    assert pushed == [(ino, 0, b"captured a/a\n")]


@in_trio
async def test_nothing_is_pushed_beside_another_opener(
    kernel: Kernel, pushed: list[tuple[int, int, bytes]], thread: OpenThread
) -> None:
    """With another handle open a push could overwrite what the session has not seen, or wait for itself."""
    ino = await kernel.find(b"a", b"a")
    thread.core.on_open(ino, write=False)
    await kernel.open(ino)

    assert pushed == []


@in_trio
async def test_nothing_is_pushed_for_a_writer(
    kernel: Kernel, pushed: list[tuple[int, int, bytes]]
) -> None:
    """What is opened for writing, and what was changed, is never pushed."""
    ino = await kernel.find(b"a", b"a")
    fh = await kernel.open(ino, os.O_RDWR)
    await kernel.ask.release(fh)
    await kernel.ask.release(await kernel.open(ino))

    assert pushed == []


@in_trio
async def test_large_and_empty_files_are_not_pushed(
    large: OpenThread, pushed: list[tuple[int, int, bytes]]
) -> None:
    """A push is for small files: a large one is read in pieces, an empty one not at all."""
    kernel = Kernel(Operations(large.core))
    await kernel.open(await kernel.find(b"large"))
    _, entry = await kernel.ask.create(ROOT, b"empty", 0o644, 0, ME)
    await kernel.open(entry.st_ino)

    assert len(LARGE) > SMALL
    assert pushed == []


@in_trio
async def test_a_kernel_that_takes_no_push(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A push that fails is no error of the open."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOENT, "no such inode")

    monkeypatch.setattr(pyfuse3, "notify_store", fail)
    caplog.set_level(logging.INFO)

    assert await kernel.content(await kernel.find(b"a", b"a")) == b"captured a/a\n"
    assert caplog.text == ""


@in_trio
async def test_statfs_is_that_of_the_disk_below(kernel: Kernel, thread: OpenThread) -> None:
    """Free and total space are those of the file system that holds the upper."""
    answer = await kernel.ask.statfs(ME)
    below = os.fstatvfs(thread.core.upper.root)

    assert answer.f_blocks * answer.f_frsize == below.f_blocks * below.f_frsize
    assert answer.f_files == below.f_files
    assert answer.f_namemax == 255
