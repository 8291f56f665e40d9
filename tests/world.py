"""What tests ask of the world outside the library: who runs, and until when to wait for it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

DEADLINE_S = 60.0


def wait_until(condition: Callable[[], bool], what: str = "a condition") -> None:
    """Wait for something that happens elsewhere; fails after a generous while."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {DEADLINE_S} s for {what}")
        time.sleep(0.005)


def processes_of(directory: Path) -> dict[int, str]:
    """The sessions and supervisors whose runtime directory is below a directory: pid and name."""
    ours = b"XDG_RUNTIME_DIR=" + os.fsencode(directory) + b"/"
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            if b"heddle.mount.supervisor" in command and ours in (entry / "environ").read_bytes():
                found[int(entry.name)] = (entry / "comm").read_text().strip()
        except OSError:
            continue
    return found


def sessions_of(directory: Path) -> list[int]:
    """The session processes whose runtime directory is below a directory."""
    return [pid for pid, name in processes_of(directory).items() if name != "heddle-supervis"]


def supervisors_of(directory: Path) -> list[int]:
    """The supervisors of those sessions."""
    return [pid for pid, name in processes_of(directory).items() if name == "heddle-supervis"]
