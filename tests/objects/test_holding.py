"""Who relies on stored objects, and who removes packs."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import time
from pathlib import Path

import pytest

from heddle.errors import StorageError
from heddle.objects import holding
from heddle.objects.holding import Hold, exclusive

TURN = """
import sys, time
from pathlib import Path
from heddle.objects.holding import Hold
packs = Path(sys.argv[1])
print("begun", flush=True)
while True:
    with Hold(packs), Hold(packs):
        time.sleep(0.05)
"""


@pytest.fixture
def packs(tmp_path: Path) -> Path:
    directory = tmp_path / "objects" / "packs"
    directory.mkdir(parents=True)
    return directory


def test_holders_that_overlap_do_not_keep_the_remover_out(
    packs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory that is held at every moment by one of many, each for a moment, is had by the remover."""
    monkeypatch.setattr(holding, "_OPEN_S", 0.05)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", TURN, str(packs)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    try:
        for process in started:
            assert process.stdout is not None and process.stdout.readline() == "begun\n"
        for _ in range(3):
            with exclusive(packs, timeout_s=30) as free:
                assert free
        assert [process.poll() for process in started] == [None] * 4
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_a_process_that_holds_the_directory_passes_the_gate(packs: Path) -> None:
    """A second hold of one process does not wait for the remover, which waits for the first."""
    with Hold(packs), holding._gate(packs, fcntl.LOCK_EX):
        before = time.monotonic()
        with Hold(packs):
            assert time.monotonic() - before < holding._CLOSED_S
    with exclusive(packs, timeout_s=0) as free:
        assert free


def test_a_hold_that_stays_is_not_removed_under(packs: Path) -> None:
    """Who holds on keeps the remover out for as long as it was to wait, and lets go when it is released."""
    hold = Hold(packs)
    with exclusive(packs, timeout_s=0.1) as free:
        assert not free
    hold.release()
    with exclusive(packs, timeout_s=0) as free:
        assert free


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    """A missing directory is a clear error, and leaves no hold behind."""
    with pytest.raises(StorageError):
        Hold(tmp_path / "objects" / "packs")
