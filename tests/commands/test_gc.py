"""``heddle gc``: what it says, and to whom it is suggested."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from heddle.api import MANY_PACKS
from heddle.objects import packs as packs_module
from heddle.repo.locks import file_locked_nowait

from .conftest import Heddle

DAY_NS = 24 * 3600 * 10**9


def packs(work: Path) -> list[Path]:
    return sorted((work / ".heddle" / "objects" / "packs").glob("*.pack"))


def with_history(heddle: Heddle, work: Path, count: int) -> None:
    for number in range(count):
        (work / "a.txt").write_text(f"{number}\n" * 200)
        heddle("capture", "-m", f"State {number}")


def lose_something(heddle: Heddle, work: Path) -> None:
    """Leave an old blob that nothing leads to."""
    import heddle as library

    repo = library.open(work)
    with repo.store.writer() as writer:
        writer.add_blob(b"lost")
        writer.commit()
    repo.close()
    then = time.time_ns() - 3 * DAY_NS
    for path in packs(work):
        os.utime(path, ns=(then, then))


def test_what_it_says(heddle: Heddle, captured: Path) -> None:
    """The answer counts packs, objects, bytes and what was dropped; for people, in a line or two."""
    with_history(heddle, captured, 4)
    lose_something(heddle, captured)
    found = heddle("gc", "--prune-older-than", "2d", "--json").json
    duration_ms = found.pop("duration_ms")

    assert duration_ms > 0
    assert found.pop("bytes_before") > found.pop("bytes_after") > 0
    assert found.pop("objects") > 10
    assert found == {
        "packs_before": 6,
        "packs_after": 1,
        "dropped": {"objects": 1, "bytes": 4},
        "parked_dropped": 0,
        "dry_run": False,
    }
    with_history(heddle, captured, 1)
    assert heddle("gc").text.startswith("2 packs became ")
    assert heddle("gc", "-q").stdout == b""
    assert heddle("fsck", "--full").code == 0


def test_a_dry_run(heddle: Heddle, captured: Path) -> None:
    """Nothing changes; what would be dropped is said."""
    with_history(heddle, captured, 2)
    lose_something(heddle, captured)
    before = packs(captured)
    found = heddle("gc", "--dry-run", "--prune-older-than", "2d", "--json").json

    assert (found["packs_after"], found["bytes_after"], found["dry_run"]) == (None, None, True)
    assert found["dropped"] == {"objects": 1, "bytes": 4}
    text = heddle("gc", "--dry-run", "--prune-older-than", "2 days ago").text
    assert text == "would drop 1 object (4 bytes) that nothing needs\n"
    assert heddle("gc", "--dry-run").text == "nothing to drop\n"
    assert before == packs(captured)


def test_wrong_times(heddle: Heddle, captured: Path) -> None:
    """An age that is none is a mistake in the command line."""
    assert heddle("gc", "--prune-older-than", "soon", code=64)


def test_another_one_runs(heddle: Heddle, captured: Path) -> None:
    """A second collection is told to try again."""
    with file_locked_nowait(captured / ".heddle" / "gc.lock") as free:
        assert free
        error = heddle("gc", "--json", code=75).error

    assert (error["kind"], error["retry"]) == ("busy", True)


def test_damage(heddle: Heddle, captured: Path) -> None:
    """What can't be read is named, and nothing is removed."""
    with_history(heddle, captured, 2)
    pack = packs(captured)[0]
    content = bytearray(pack.read_bytes())
    for at in range(60, len(content) - 24):
        content[at] ^= 0xFF
    pack.chmod(0o644)
    pack.write_bytes(content)
    before = packs(captured)
    heddle("gc", code=74)

    assert before == packs(captured)


def test_status_suggests_it(heddle: Heddle, captured: Path) -> None:
    """With many packs, and only then, status says what would help."""
    directory = captured / ".heddle" / "objects" / "packs"
    assert heddle("status", "--json").json["many_packs"] is False
    assert "heddle gc" not in heddle("status").stderr
    for number in range(MANY_PACKS):
        for suffix in ("pack", "idx"):
            (directory / f"{number:064x}.{suffix}").write_bytes(b"")

    assert heddle("status", "--json").json["many_packs"] is True
    assert "heddle gc" in heddle("status").stderr


def test_status_suggests_it_after_an_import(
    heddle: Heddle, captured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A history that came in whole is worth a collection, once; one large capture is not."""
    monkeypatch.setattr(packs_module, "_LARGE_BYTES", 20_000)
    (captured / "large").write_bytes(os.urandom(100_000))
    heddle("capture", "-m", "Large")
    assert heddle("status", "--json").json["many_packs"] is False
    source = tmp_path / "source"
    source.mkdir()
    me = ["git", "-c", "user.name=A", "-c", "user.email=a@example.org", "-C", source]
    subprocess.run(["git", "init", "-q", "-b", "other", source], check=True)
    for number in range(30):
        (source / "f").write_text("".join(f"{number * line}\n" for line in range(500)))
        subprocess.run([*me, "add", "."], check=True)
        subprocess.run([*me, "commit", "-q", "-m", str(number)], check=True)
    heddle("git", "import", str(source))

    assert heddle("status", "--json").json["many_packs"] is True
    heddle("gc")
    assert heddle("status", "--json").json["many_packs"] is False
