"""The core's own promises that no single operation shows: who may keep what, and what is let go."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from heddle.mount.shell import Caller
from mount.base import FILES, OpenThread, copy_base
from mount.places import View
from mount.test_model import ordinary_user

SOMEBODY = Caller(1000, 1000)


def mode(view: View, *names: bytes) -> str:
    return f"{stat.S_IMODE(view.walk(names).mode):04o}"


def test_root_keeps_set_id_bits(view: View) -> None:
    """Root's writes leave set-id bits alone, also through a handle that is older than the chmod."""
    view.caller = Caller(0, 0)
    view.open(1, (b"c",), os.O_RDWR)
    view.chmod((b"c",), 0o6755)
    view.write(1, 0, b"x")

    assert mode(view, b"c") == "6755"


@pytest.mark.parametrize("how", ["write", "truncate", "open with O_TRUNC"])
def test_anybody_else_clears_them(view: View, how: str) -> None:
    """A write or truncation by another user clears set-id bits, every time after a chmod sets them."""
    view.caller = SOMEBODY
    view.open(1, (b"c",), os.O_RDWR)
    for _ in range(2):
        view.chmod((b"c",), 0o6755)
        assert mode(view, b"c") == "6755"
        if how == "write":
            view.write(1, 0, b"x")
        elif how == "truncate":
            view.truncate((b"c",), 5)
        else:
            view.open(2, (b"c",), os.O_RDWR | os.O_TRUNC)
            view.close(2)

        assert mode(view, b"c") == "0755"


def test_mandatory_locking_bit_stays(view: View) -> None:
    """A set-gid bit without group execution is no set-id bit, and a write leaves it."""
    view.caller = SOMEBODY
    view.chmod((b"c",), 0o2644)
    view.open(1, (b"c",), os.O_RDWR)
    view.write(1, 0, b"x")

    assert mode(view, b"c") == "2644"


def test_ordinary_session_shows_modes_that_would_lock_it_out(tmp_path: Path) -> None:
    """A session without privileges shows any mode, over a remount too, and still reads and writes what it holds."""
    tmp_path.chmod(0o777)
    for above in tmp_path.parents:
        if above.stat().st_uid == os.getuid() and not above.stat().st_mode & 0o001:
            above.chmod(above.stat().st_mode | 0o011)
    with ordinary_user():
        copy_base(tmp_path / "base")
        thread = OpenThread(tmp_path / "base")
        for path, bits in [((b"c",), 0), ((b"a", b"a"), 0o4444), ((b"b",), 0o111)]:
            thread.view.chmod(path, bits)
        thread.view.mkfifo((b"pipe",))
        thread.view.chmod((b"pipe",), 0o444)
        thread.view.open(1, (b"a", b"a"), os.O_RDWR)
        thread.view.close(1)
        thread.reopen()
        view = thread.view

        assert [mode(view, b"c"), mode(view, b"a", b"a")] == ["0000", "4444"]
        assert [mode(view, b"b"), mode(view, b"pipe")] == ["0111", "0444"]
        assert view.content((b"c",)) == FILES[b"c",]
        view.open(1, (b"a", b"a"), os.O_RDWR)
        view.write(1, 0, b"X")
        assert mode(view, b"a", b"a") == "0444"
        assert view.listing((b"b",)) == [b"b", b"c", b"\xe9"]
        thread.close()


def test_nodes_are_let_go(thread: OpenThread, view: View) -> None:
    """After any work, what the kernel forgets is gone from memory, and so are its descriptors."""
    view.glance()
    view.open(1, (b"a", b"b", b"a"), os.O_RDWR)
    view.write(1, 0, b"x")
    view.unlink((b"a", b"b", b"a"))
    view.rename((b"a", b"b"), (b"b", b"moved"), 0)
    view.mkdir((b"new",), 0o755)
    view.rmdir((b"new",))
    thread.capture()
    view.close(1)
    view.forget()

    assert list(thread.core.nodes) == [1]
    assert thread.core.root.children == {}
