"""``heddle mount``, ``mounts`` and ``unmount`` as scripts meet them, and the other commands inside a mount."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from .conftest import Heddle


@pytest.fixture
def place(heddle: Heddle, captured: Path, tmp_path: Path) -> Any:
    """Thread ``agent-1`` mounted at a directory; unmounted afterwards."""
    place = tmp_path / "place"
    heddle(
        "mount", "agent-1", str(place), "--create", "--agent-provider", "p", "--agent-model", "m"
    )
    yield place
    os.chdir(captured)
    heddle("unmount", "--all", "--force", code=None)


def test_mount_has_every_field(heddle: Heddle, captured: Path, tmp_path: Path) -> None:
    """The answer of a mount has all that the contract names; doing it again is the same answer."""
    place = tmp_path / "place"
    found = heddle("mount", "agent-1", str(place), "--create", "--json").json
    again = heddle("mount", "agent-1", str(place), "--json").json
    heddle("unmount", "agent-1")

    assert found == {
        "thread": "agent-1",
        "state": heddle("show", "--json").json["state"],
        "mountpoint": str(place),
        "pid": found["pid"],
        "log": found["log"],
        "read_only": False,
        "recovered": None,
        "already_mounted": False,
    }
    assert isinstance(found["pid"], int) and Path(found["log"]).name
    assert again == found | {"already_mounted": True}


def test_mounts_has_every_field(heddle: Heddle, place: Path) -> None:
    """Each session is listed with what is unsaved in it."""
    (place / "new").write_text("12345")
    (found,) = heddle("mounts", "--json").json["mounts"]

    assert set(found) == {
        "thread", "mountpoint", "state", "pid", "since", "read_only", "dirty_files", "dirty_bytes",
        "log", "doing", "reason", "crashes", "gave_up",
    }  # fmt: skip
    assert (found["thread"], found["mountpoint"]) == ("agent-1", str(place))
    assert (found["state"], found["read_only"]) == ("live", False)
    assert (found["dirty_files"], found["dirty_bytes"]) == (1, 5)
    assert heddle("mounts").text.startswith("live  agent-1 ")


def test_unmount_has_every_field(heddle: Heddle, place: Path) -> None:
    """What was ended is listed with what stays unsaved."""
    (place / "new").write_text("12345")
    found = heddle("unmount", "agent-1", "--json").json

    assert found == {
        "unmounted": [
            {
                "thread": "agent-1",
                "mountpoint": str(place),
                "was": "live",
                "method": "unmounted",
                "dirty": {"files": 1, "bytes": 5},
                "discarded": None,
                "kept_in": None,
            }
        ],
        "failed": [],
    }
    assert heddle("mounts", "--json").json == {"mounts": []}


def test_a_busy_mount_is_75(heddle: Heddle, place: Path) -> None:
    """While a process uses the mount it is named, nothing is done, and trying again is the advice."""
    with (place / "open").open("w"):
        busy = heddle("unmount", "agent-1", "--json", code=75)
        (failed,) = busy.json["failed"]
        assert failed["mountpoint"] == str(place)
        assert {"pid", "command"} == set(failed["holders"][0])
        assert os.getpid() in [holder["pid"] for holder in failed["holders"]]

    assert heddle("unmount", "agent-1").code == 0


def test_unmount_captures_first(heddle: Heddle, place: Path) -> None:
    """--capture records what is unsaved before the session ends."""
    (place / "new").write_text("new\n")
    heddle("unmount", "agent-1", "--capture", "-m", "Last")

    assert heddle("show", "agent-1:new").stdout == b"new\n"
    assert heddle("show", "agent-1", "--json").json["agent"]["model"] == "m"


def test_inside_a_mount_commands_mean_its_thread(
    heddle: Heddle, place: Path, captured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """status, diff, capture, log, show and whoami mean the mounted thread, from any directory in it."""
    (place / "sub" / "new").write_text("new\n")
    monkeypatch.chdir(place / "sub")
    status = heddle("status", "--json").json

    assert (status["thread"], status["mountpoint"]) == ("agent-1", str(place))
    assert status["repository"] == str(captured)
    assert status["changes"] == [{"path": "sub/new", "kind": "added", "from": None}]
    assert heddle("status").lines[:2][1] == f"mounted at {place}"
    assert heddle("diff", "--name-only", "--", "new").lines == ["sub/new"]
    assert heddle("whoami", "--json").json["agent"]["model"] == {"value": "m", "source": "mount"}
    made = heddle("capture", "-m", "Inside", "--path", "new", "--json").json
    assert (made["thread"], made["agent"]["provider"]) == ("agent-1", "p")
    assert heddle("log", "--json").json["states"][0]["state"] == made["state"]
    assert heddle("show", "HEAD:sub/new").stdout == b"new\n"
    assert heddle("status", "--json").json["changes"] == []
    assert heddle("switch", "main", "--json", code=65).error["kind"] == "refused"


def test_the_working_directory_stays_on_its_thread(
    heddle: Heddle, place: Path, captured: Path
) -> None:
    """What happens in a mount moves neither HEAD nor the working directory."""
    (place / "new").write_text("new\n")
    heddle("capture", "--thread", "agent-1", "-m", "Outside")
    status = heddle("status", "--json").json

    assert (status["thread"], status["changes"], status["mountpoint"]) == ("main", [], None)
    assert not (captured / "new").exists()


def test_a_dead_mount_says_what_to_do(heddle: Heddle, place: Path, no_restarts: None) -> None:
    """After kill -9 status lists the mount, mounts calls it stale, and mount recovers it."""
    (place / "new").write_text("unsaved")
    (before,) = heddle("mounts", "--json").json["mounts"]
    os.kill(before["pid"], signal.SIGKILL)
    stale = {"thread": "agent-1", "mountpoint": str(place), "state": "stale"}

    [listed] = heddle("status", "--json").json["mounts_stale"]
    assert stale == {key: listed[key] for key in stale}
    assert "heddle mount agent-1" in heddle("status").text
    assert heddle("mounts", "--json").json["mounts"][0]["state"] == "stale"
    found = heddle("mount", "agent-1", str(place), "--json").json
    assert found["recovered"] == {"files": 1, "bytes": 7}
    assert (place / "new").read_text() == "unsaved"


def test_what_mount_refuses(heddle: Heddle, captured: Path, tmp_path: Path) -> None:
    """Each bad input is an error of its kind with its code, and nothing is mounted."""
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    where = str(tmp_path)
    refused = {
        ("no-such",): (65, "thread_not_found"),
        ("main", "--create"): (65, "thread_exists"),
        ("a//b", "--create"): (64, "invalid_name"),
        ("x", "--create", "--from", "no-such"): (65, "state_not_found"),
        ("no-such", "--read-only"): (65, "state_not_found"),
        ("main", f"{where}/file"): (65, "mountpoint_unusable"),
        ("main", f"{where}/full"): (65, "mountpoint_unusable"),
        ("main", f"{captured}/.heddle/objects/x"): (65, "mountpoint_unusable"),
    }

    for words, (code, kind) in refused.items():
        error = heddle("mount", *words, "--json", code=code).error
        assert error["kind"] == kind, words
    assert heddle("mounts", "--json").json == {"mounts": []}
    assert len(heddle("thread", "list", "--json").json["threads"]) == 1


def test_a_mountpoint_that_can_not_be_made_is_73(heddle: Heddle, captured: Path) -> None:
    """Where no directory can be made the code says so."""
    assert heddle("mount", "main", "/proc/heddle", "--json", code=None).error["exit_code"] in (
        65,
        73,
    )


def test_without_fusermount_is_69(
    heddle: Heddle, captured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without fusermount3 the error says what to install."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    error = heddle("mount", "main", "--json", code=69).error

    assert error["kind"] == "unavailable"
    assert "apt" in error["hint"] and "fuse3" in error["hint"]


def test_an_open_runtime_directory_is_77(heddle: Heddle, captured: Path, tmp_path: Path) -> None:
    """A runtime directory that others can enter is refused."""
    heddle("mounts")
    (tmp_path / "runtime" / "heddle").mkdir(exist_ok=True)
    (tmp_path / "runtime" / "heddle").chmod(0o777)

    assert heddle("mount", "main", "--json", code=77).error["kind"] == "not_permitted"


def test_what_unmount_refuses(heddle: Heddle, captured: Path) -> None:
    """Nothing to end, or options that contradict each other."""
    assert heddle("unmount", "main", "--json", code=65).error["kind"] == "not_mounted"
    assert heddle("unmount", "no-such", "--json", code=65).error["exit_code"] == 65
    assert heddle("unmount", "--json", code=64).error["kind"] == "usage"
    assert heddle("unmount", "main", "--all", "--json", code=64).error["kind"] == "usage"
    assert heddle("unmount", "main", "-m", "x", "--json", code=64).error["kind"] == "usage"
    words = ["unmount", "main", "--capture", "--discard", "--json"]
    assert heddle(*words, code=64).error["kind"] == "usage"
