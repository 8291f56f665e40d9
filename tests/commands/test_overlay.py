"""``heddle overlay``: what was discarded, and what deleted threads held, comes back."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from commands.test_man import _fields, fields_of
from heddle.repo.parked import KEPT_NS


@pytest.fixture
def edited(heddle: Any, captured: Path, tmp_path: Path) -> Path:
    """A thread ``agent`` that was mounted, edited and unmounted: where it is mounted."""
    place = tmp_path / "place"
    heddle("mount", "agent", str(place), "--create")
    (place / "note").write_text("precious")
    (place / "a.txt").unlink()
    heddle("unmount", "agent")
    return place


def discard(heddle: Any, place: Path) -> None:
    heddle("mount", "agent", str(place))
    heddle("unmount", "agent", "--discard")


def show(heddle: Any, thread: str, place: Path) -> list[str]:
    """The names in a thread's mount."""
    heddle("mount", thread, str(place))
    names = sorted(os.listdir(place))
    heddle("unmount", thread)
    return names


def test_a_discard_is_undone(heddle: Any, edited: Path) -> None:
    """What was discarded is listed, restored as it was, and not parked any more."""
    discard(heddle, edited)
    [parked] = heddle("overlay", "list", "--json").json["parked"]
    assert show(heddle, "agent", edited) == ["a.txt", "sub"]
    done = heddle("overlay", "restore", "agent", "--json").json

    assert (
        parked["thread"],
        parked["why"],
        parked["files"],
        parked["bytes"],
        parked["expired"],
    ) == (
        *("agent", "discarded", 1, 8),
        False,
    )
    assert (done["thread"], done["created"], done["files"]) == ("agent", False, 1)
    assert show(heddle, "agent", edited) == ["note", "sub"]
    assert heddle("overlay", "list", "--json").json["parked"] == []
    heddle("fsck")


def test_a_deleted_thread_comes_back(heddle: Any, edited: Path) -> None:
    """Restoring what a deleted thread held makes the thread again, where it was."""
    was = heddle("thread", "show", "agent", "--json").json["state"]
    heddle("thread", "delete", "agent", "--force")
    done = heddle("overlay", "restore", "agent", "--json").json

    assert (done["created"], done["base"]) == (True, was)
    assert heddle("thread", "show", "agent", "--json").json["state"] == was
    assert show(heddle, "agent", edited) == ["note", "sub"]


def test_into_a_new_thread(heddle: Any, edited: Path) -> None:
    """With --thread it becomes a new thread's, also when its own has unsaved changes or has moved on."""
    discard(heddle, edited)
    heddle("mount", "agent", str(edited))
    (edited / "later").write_text("x")
    heddle("unmount", "agent")

    refused = heddle("overlay", "restore", "agent", "--json", code=65).error
    assert refused["kind"] == "unsaved_changes"
    heddle("capture", "--thread", "agent", "-m", "Later")
    assert "another state" in heddle("overlay", "restore", "agent", code=65).stderr
    heddle("overlay", "restore", "agent", "--thread", "agent-before")
    assert show(heddle, "agent-before", edited) == ["note", "sub"]
    assert show(heddle, "agent", edited) == ["a.txt", "later", "sub"]


def test_refused_while_mounted(heddle: Any, edited: Path) -> None:
    """A mounted thread's overlay is not replaced."""
    discard(heddle, edited)
    heddle("mount", "agent", str(edited))
    try:
        assert heddle("overlay", "restore", "agent", "--json", code=75).error["retry"]
    finally:
        heddle("unmount", "agent")
    assert len(heddle("overlay", "list", "--json").json["parked"]) == 1


def test_what_is_ignored_is_parked_in_turn(heddle: Any, edited: Path) -> None:
    """Ignored files of the thread, which no state holds, are not dropped by a restore."""
    discard(heddle, edited)
    heddle("mount", "agent", str(edited))
    (edited / ".gitignore").write_text("*.o\n")
    heddle("capture", "--thread", "agent", "-m", "Rules")
    heddle("unmount", "agent")
    discard(heddle, edited)
    heddle("mount", "agent", str(edited))
    (edited / "x.o").write_text("built")
    heddle("unmount", "agent")
    [newest] = [
        each["id"]
        for each in heddle("overlay", "list", "--json").json["parked"]
        if each["base"] == heddle("thread", "show", "agent", "--json").json["state"]
    ][-1:]
    heddle("overlay", "restore", newest)
    replaced = [
        e for e in heddle("overlay", "list", "--json").json["parked"] if e["why"] == "replaced"
    ]

    assert [Path(each["path"], "upper", "x.o").read_text() for each in replaced] == ["built"]


def test_drop_takes_what_is_named_and_what_expired(heddle: Any, edited: Path) -> None:
    """Nothing goes by itself: an overlay of 15 days is there until it is dropped, a young one stays."""
    discard(heddle, edited)
    heddle("mount", "agent", str(edited))
    (edited / "second").write_text("x")
    heddle("unmount", "agent")
    discard(heddle, edited)
    first, second = heddle("overlay", "list", "--json").json["parked"]
    old = Path(first["path"])
    aged = old.with_name(f"{time.time_ns() - KEPT_NS - 10**15}-agent")
    old.rename(aged)

    assert [each["expired"] for each in heddle("overlay", "list", "--json").json["parked"]] == [
        True,
        False,
    ]
    dropped = heddle("overlay", "drop", "--expired", "--json").json["dropped"]
    assert [aged.name] == [each["id"] for each in dropped]
    assert heddle("overlay", "drop", "--expired", "--json").json["dropped"] == []
    heddle("overlay", "drop", second["id"])
    assert os.listdir(aged.parent) == []


def test_drop_needs_to_be_told(heddle: Any, edited: Path) -> None:
    """Without a name nothing is dropped; an unknown name is an error."""
    discard(heddle, edited)
    heddle("overlay", "drop", code=64)
    heddle("overlay", "drop", "agent", "--expired", code=64)
    heddle("overlay", "drop", "nobody", code=65)
    assert len(heddle("overlay", "list").lines) == 1


def test_usage(heddle: Any, edited: Path) -> None:
    """``du`` counts the overlays of threads and the parked ones."""
    discard(heddle, edited)
    heddle("mount", "agent", str(edited))
    (edited / "ten").write_text("0123456789")
    heddle("unmount", "agent")
    usage = heddle("overlay", "du", "--json").json
    [parked] = [each for each in usage["overlays"] if each["parked"]]

    assert usage["total_bytes"] == 18
    assert (parked["thread"], parked["files"], parked["bytes"]) == ("agent", 1, 8)
    assert heddle("overlay", "du").lines[-1].split() == ["18", "in", "all"]


def test_fields_are_documented(heddle: Any, edited: Path) -> None:
    """Every field is named on the page."""
    discard(heddle, edited)
    listed = heddle("overlay", "list", "--json").json
    restored = heddle("overlay", "restore", "agent", "--json").json
    usage = heddle("overlay", "du", "--json").json
    discard(heddle, edited)
    dropped = heddle("overlay", "drop", "agent", "--json").json

    assert fields_of([listed, restored, usage, dropped]) <= _fields("heddle-overlay.1")


def test_the_park_is_left_alone_until_somebody_drops(
    heddle: Any, edited: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before 14 days nothing drops a parked overlay; after them only ``overlay drop --expired`` and ``gc`` do."""
    discard(heddle, edited)
    began = time.time_ns()
    now = [began + KEPT_NS - 10**12]
    monkeypatch.setattr(time, "time_ns", lambda: now[0])

    def parked() -> int:
        return len(heddle("overlay", "list", "--json").json["parked"])

    assert heddle("overlay", "drop", "--expired", "--json").json["dropped"] == []
    assert heddle("gc", "--json").json["parked_dropped"] == 0
    assert parked() == 1
    now[0] = began + KEPT_NS + 10**12
    for words in (
        *(["status"], ["mounts"], ["doctor"], ["fsck"], ["fsck", "--repair"], ["overlay", "du"]),
        *(["thread", "create", "more"], ["thread", "delete", "more"], ["switch", "agent"]),
    ):
        heddle(*words)
        assert parked() == 1, words
    assert heddle("gc", "--json").json["parked_dropped"] == 1
    assert parked() == 0
