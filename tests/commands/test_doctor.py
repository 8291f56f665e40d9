"""``heddle doctor``: it names what is wrong and what mends it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from commands.test_man import _fields, fields_of
from heddle.mount import doctor, mountpoint
from heddle.mount.process import ProcessIdentity
from heddle.repo.parked import KEPT_NS


def wrong(heddle: Any, code: int = 1) -> dict[str, str]:
    """What is wrong, by check, with its repair."""
    report = heddle("doctor", "--json", code=code).json
    found = {it["check"]: it["repair"] for it in report["checks"] if it["level"] == "wrong"}
    assert report["ok"] == (not found)
    return found


def test_nothing_is_wrong(heddle: Any, captured: Path) -> None:
    """In a sound repository on a machine with FUSE every check is named and none complains."""
    report = heddle("doctor", "--json").json

    assert {it["level"] for it in report["checks"]} == {"ok"}
    assert {"fuse_device", "database", "indexes", "sessions", "parked"} <= {
        it["check"] for it in report["checks"]
    }
    assert fields_of(report) <= _fields("heddle-doctor.1")
    assert heddle("doctor").text.count("mend:") == 0


def test_outside_a_repository(heddle: Any) -> None:
    """Without a repository the machine is looked at."""
    report = heddle("doctor", "--json").json

    assert report["repository"] is None
    assert "database" not in {it["check"] for it in report["checks"]}


def test_no_fuse(
    heddle: Any, captured: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A machine without FUSE is told what to do."""
    monkeypatch.setattr(mountpoint, "FUSE_DEVICE", tmp_path / "fuse")
    monkeypatch.setenv("PATH", str(tmp_path))

    found = wrong(heddle)
    assert "modprobe fuse" in found["fuse_device"]
    assert found["unavailable"] == "apt-get install fuse3"


def test_an_open_runtime_directory(heddle: Any, captured: Path) -> None:
    """A runtime directory that others may write to is wrong."""
    heddle("mounts")
    Path(os.environ["XDG_RUNTIME_DIR"], "heddle").chmod(0o777)

    assert wrong(heddle)["not_permitted"].startswith("chmod 700")


def test_a_dead_session(heddle: Any, captured: Path, tmp_path: Path, no_restarts: None) -> None:
    """A dead session is found, and what is advised mends it."""
    pid = heddle("mount", "agent", str(tmp_path / "place"), "--create", "--json").json["pid"]
    identity = ProcessIdentity.of(pid)
    os.kill(pid, signal.SIGKILL)
    assert identity is not None and identity.wait(20)

    assert "heddle unmount --stale" in wrong(heddle)["sessions"]
    heddle("unmount", "--stale")
    assert wrong(heddle, code=0) == {}


def test_a_lost_index_and_a_damaged_database(heddle: Any, captured: Path) -> None:
    """A pack without an index is mended by what is advised; a damaged database is said to be."""
    for index in (captured / ".heddle" / "objects" / "packs").glob("*.idx"):
        index.unlink()
    assert wrong(heddle)["missing_index"] == "run `heddle fsck --reindex`"
    heddle("fsck", "--reindex")
    assert wrong(heddle, code=0) == {}
    (captured / ".heddle" / "heddle.db").write_bytes(b"not a database" * 100)
    assert "io_error" in wrong(heddle)


def test_unreadable_settings(heddle: Any, captured: Path) -> None:
    """A configuration that can't be read is wrong."""
    (captured / ".heddle" / "config.toml").write_text("= nonsense")

    assert "configuration" in wrong(heddle)


def test_low_space(heddle: Any, captured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Little free space is wrong before a capture fails."""
    monkeypatch.setattr(doctor, "LOW_BYTES", 1 << 60)

    assert "df -h" in wrong(heddle)["disk_space"]


def test_expired_overlays(heddle: Any, captured: Path, tmp_path: Path) -> None:
    """Overlays that have been parked for long are a note, not an error."""
    heddle("mount", "agent", str(tmp_path / "place"), "--create")
    (tmp_path / "place" / "note").write_text("x")
    heddle("unmount", "agent", "--discard")
    [parked] = (captured / ".heddle" / "overlays" / ".parked").iterdir()
    parked.rename(parked.with_name(f"{time.time_ns() - KEPT_NS - 10**15}-agent"))
    notes = [it for it in heddle("doctor", "--json").json["checks"] if it["level"] == "note"]

    assert [(it["check"], it["repair"]) for it in notes] == [
        ("parked", "heddle overlay drop --expired")
    ]


def test_a_lost_database(heddle: Any, captured: Path) -> None:
    """Without its database a repository is still looked at, and what is advised brings it back."""
    (captured / ".heddle" / "heddle.db").unlink()

    assert "heddle fsck --repair" in wrong(heddle)["io_error"]
    heddle("fsck", "--repair", code=None)
    assert wrong(heddle, code=0) == {}


def test_damaged_overlays_and_alternates(heddle: Any, captured: Path, tmp_path: Path) -> None:
    """Marks of an overlay that are damaged, a directory of objects that is gone: one command mends both."""
    heddle("mount", "agent", str(tmp_path / "place"), "--create")
    (tmp_path / "place" / "a.txt").chmod(0o755)
    heddle("unmount", "agent")
    os.setxattr(captured / ".heddle/overlays/agent/upper/a.txt", "user.heddle.node", b"damaged")
    (captured / ".heddle" / "objects" / "alternates").write_text("/nowhere/at/all\n")

    found = wrong(heddle)
    assert {"overlays", "missing_alternate"} == set(found)
    assert all("heddle fsck --repair" in repair for repair in found.values())
    heddle("fsck", "--repair", code=None)
    assert wrong(heddle, code=0) == {}
    notes = [
        it["check"] for it in heddle("doctor", "--json").json["checks"] if it["level"] == "note"
    ]
    assert notes == ["damaged"]
