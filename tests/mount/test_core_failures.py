"""Every operation with every step of it failing in turn: nothing half done is seen, or found on the disk later."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path as HostPath
from typing import Any

import pytest

from heddle.mount import upper as up
from heddle.mount.shell import AttrUpdate
from heddle.mount.upper import RENAME_EXCHANGE
from mount.base import OpenThread, copy_base
from mount.places import Path, Seen, View, outcome

STEPS = (
    *("open", "mkdir", "rename", "link", "unlink", "rmdir", "symlink", "mknod", "utime", "chmod"),
    *("fchmod", "chown", "fchown", "setxattr", "removexattr", "ftruncate", "pwrite", "fdatasync"),
)

Operation = Callable[[View], object]


def prepare(view: View) -> None:
    """Whiteouts, moved and opaque directories, links and files without bytes of their own, beside what is captured."""
    view.unlink((b"a", b"a"))
    view.rmdir((b"b", b"\xe9"))
    view.rename((b"a", b"b"), (b"moved",), 0)
    view.mkdir((b"a", b"b"), 0o755)
    view.create(0, (b"a", b"b", b"new"), 0o644)
    view.write(0, 0, b"new")
    view.close(0)
    view.link((b"a", b"b", b"new"), (b"linked",))
    view.chmod((b"a", b"x.o"), 0o600)
    view.unlink((b"moved", b"c"))
    view.mkdir((b"emptied",), 0o755)
    view.rename((b"moved", b"a"), (b"emptied", b"a"), 0)
    view.rename((b"emptied", b"a"), (b"moved", b"a"), 0)
    view.rename((b"b",), (b"emptied", b"b"), 0)
    view.rename((b"emptied", b"b"), (b"b",), 0)


def write(path: Path) -> Operation:
    def run(view: View) -> None:
        view.open(1, path, os.O_RDWR)
        view.write(1, 0, b"X")

    return run


def create(path: Path) -> Operation:
    return lambda view: view.create(1, path, 0o640)


def replace(path: Path) -> Operation:
    return lambda view: view.open(1, path, os.O_WRONLY | os.O_TRUNC)


def give_away(path: Path) -> Operation:
    update = AttrUpdate(uid=os.geteuid(), gid=os.getegid(), mode=0o4511, mtime_ns=5)
    return lambda view: view.core.set_attrs(view.walk(path).ino, update, view.caller)


OPERATIONS: dict[str, Operation] = {
    "create": create((b"b", b"n")),
    "create over a whiteout": create((b"a", b"a")),
    "create below what is captured": create((b"moved", b"b", b"n")),
    "write to what is captured": write((b"b", b"b")),
    "write to a file without bytes of its own": write((b"a", b"x.o")),
    "write to a new file": write((b"a", b"b", b"new")),
    "truncate what is captured": lambda view: view.truncate((b"c",), 3),
    "truncate it to nothing": lambda view: view.truncate((b"c",), 0),
    "replace what is captured": replace((b"c",)),
    "replace a file without bytes of its own": replace((b"a", b"x.o")),
    "replace a file that was captured here": replace((b"a", b"b", b"new")),
    "mkdir": lambda view: view.mkdir((b"n",), 0o750),
    "mkdir over a whiteout": lambda view: view.mkdir((b"b", b"\xe9"), 0o750),
    "symlink over a whiteout": lambda view: view.symlink(b"t", (b"a", b"a")),
    "fifo": lambda view: view.mkfifo((b"moved", b"b", b"p")),
    "link what is captured": lambda view: view.link((b"c",), (b"b", b"n")),
    "link over a whiteout": lambda view: view.link((b"linked",), (b"a", b"a")),
    "unlink what is captured": lambda view: view.unlink((b"moved", b"b", b"a")),
    "unlink one of two names": lambda view: view.unlink((b"linked",)),
    "unlink what hides a captured file": lambda view: view.unlink((b"a", b"x.o")),
    "rmdir": lambda view: view.rmdir((b"emptied",)),
    "rename what is captured": lambda view: view.rename((b"c",), (b"a", b"n"), 0),
    "rename onto a whiteout": lambda view: view.rename((b"linked",), (b"a", b"a"), 0),
    "rename a directory": lambda view: view.rename((b"moved", b"b"), (b"b", b"n"), 0),
    "rename a directory onto a whiteout": lambda view: view.rename((b"moved",), (b"b", b"\xe9"), 0),
    "rename a directory onto an empty one": lambda view: view.rename((b"moved",), (b"emptied",), 0),
    "rename onto a file": lambda view: view.rename((b"c",), (b"b", b"b"), 0),
    "exchange": lambda view: view.rename((b"b",), (b"moved", b"b"), RENAME_EXCHANGE),
    "exchange a file and a directory": lambda view: view.rename((b"c",), (b"b",), RENAME_EXCHANGE),
    "chmod of what is captured": lambda view: view.chmod((b"b", b"b"), 0o400),
    "chmod of a captured directory": lambda view: view.chmod((b"moved", b"b"), 0o700),
    "chmod of a new file": lambda view: view.chmod((b"linked",), 0o044),
    "owner, mode and time of what is captured": give_away((b"b", b"b")),
    "owner, mode and time of a captured directory": give_away((b"moved", b"b")),
    "new times": lambda view: view.utimens((b"b", b"b"), 1_000),
    "xattr": lambda view: view.set_xattr((b"moved", b"b"), b"user.a", b"v"),
}


class Failing:
    """Counts the steps that change the disk, and makes one of them fail.

    Attributes:
        count: steps so far.
        failed: which one failed, for people.
        is_removal: it was to remove something.
    """

    def __init__(self, number: int, error: int) -> None:
        self.count = 0
        self.failed = ""
        self.is_removal = False
        self._number = number
        self._error = error

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            if self.count == self._number:
                self.failed = f"step {self.count}, {name}{arguments}"
                self.is_removal = name in ("unlink", "rmdir")
                raise OSError(self._error, os.strerror(self._error))
            return function(*arguments, **options)

        return step


@contextmanager
def failing(number: int, error: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Failing]:
    """Let the step of this number fail; 0 for none."""
    steps = Failing(number, error)
    with monkeypatch.context() as patch:
        for name in STEPS:
            patch.setattr(os, name, steps.wrap(name, getattr(os, name)))
        patch.setattr(up, "renameat2", steps.wrap("renameat2", up.renameat2))
        yield steps


def shape(seen: dict[Path, Seen]) -> dict[Path, Seen]:
    """A tree without its moments and numbers."""
    return {path: one._replace(mtime_ns=0, ctime_ns=0, ino=0) for path, one in seen.items()}


def numbers(seen: dict[Path, Seen]) -> dict[Path, int]:
    return {path: one.ino for path, one in seen.items()}


@pytest.fixture
def prepared(tmp_path: HostPath) -> HostPath:
    """A repository whose overlay holds everything that an overlay can hold."""
    copy_base(tmp_path / "base")
    thread = OpenThread(tmp_path / "base")
    prepare(thread.view)
    thread.close()
    return tmp_path / "base"


@pytest.mark.parametrize("widen", [False, True], ids=["root", "user"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_no_step_leaves_half_a_change(
    tmp_path: HostPath,
    prepared: HostPath,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    error: int,
    widen: bool,
) -> None:
    """Whichever step fails, the view is as before or after, the disk says the same, and it can be tried again."""

    def attempt(number: int) -> tuple[OpenThread, Failing, object]:
        place = tmp_path / str(number)
        subprocess.run(["cp", "-a", prepared, place], check=True)
        thread = OpenThread(place)
        assert thread.core.upper is not None
        thread.core.upper.widen = widen  # as a session does that is not root's
        thread.view.glance()
        with failing(number, error, monkeypatch) as steps:
            return thread, steps, outcome(OPERATIONS[name], thread.view)

    thread, undisturbed, _ = attempt(0)
    after = shape(thread.view.glance())
    thread.close()
    assert undisturbed.count > 0
    for number in range(1, undisturbed.count + 1):
        thread, steps, got = attempt(number)
        check(thread, steps, got, after, OPERATIONS[name])
        thread.close()


def check(
    thread: OpenThread, steps: Failing, got: object, after: dict[Path, Seen], again: Operation
) -> None:
    where = steps.failed
    seen = thread.view.glance()
    was_refused = isinstance(got, tuple) and got[0] == "E"
    assert was_refused or shape(seen) == after, f"{where}: done by half, and nobody was told"
    assert left_in_work(thread) == [] or steps.is_removal, f"{where}: left something in work"
    check_nothing_left(thread, where)
    thread.reopen()
    assert left_in_work(thread) == [], f"{where}: opening left something in work"
    on_disk = thread.view.glance()
    assert shape(on_disk) == shape(seen), f"{where}: the disk says otherwise"
    assert numbers(on_disk) == numbers(seen), f"{where}: new numbers"
    if shape(seen) != after:
        outcome(again, thread.view)
        assert shape(thread.view.glance()) == after, f"{where}: left something else than before"


def left_in_work(thread: OpenThread) -> list[str]:
    assert thread.core.upper is not None
    names = os.listdir(thread.core.upper.work)
    return [name for name in names if not name.startswith("whiteout")]


def check_nothing_left(thread: OpenThread, where: str) -> None:
    """No handle is lost, and no node."""
    for handle in list(thread.view.handles):
        thread.view.close(handle)
    thread.view.forget()
    assert list(thread.core.nodes) == [1], where
