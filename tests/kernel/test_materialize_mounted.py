"""``heddle materialize`` of a live mount: what programs see there is what is written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from heddle import api
from heddle.mount.lifecycle import Mounted

MountThread = Callable[..., Mounted]


def looks(root: Path) -> dict[str, Any]:
    """Every file below a directory: mode, mtime, content."""
    found: dict[str, Any] = {}
    for above, _, names in os.walk(root):
        for name in names:
            path = Path(above, name)
            content = os.readlink(path) if path.is_symlink() else path.read_bytes()
            status = path.lstat()
            found[str(path.relative_to(root))] = (status.st_mode, status.st_mtime_ns, content)
    return found


def test_inside_a_mount_it_is_what_the_mount_shows(
    captured_repo: api.Repository, mounted: MountThread, cli: Any, tmp_path: Path
) -> None:
    """Without a state, unsaved changes and all; with --thread the same from outside; with HEAD, the state."""
    place = mounted("agent-1").mountpoint
    (place / "a.txt").write_text("unsaved\n")
    (place / "run").unlink()
    (place / "new").mkdir()
    (place / "new" / "file").write_text("new\n")
    (place / "new" / "file").chmod(0o750)
    os.mkfifo(place / "fifo")

    inside = cli("materialize", tmp_path / "inside", "--json", cwd=place).json
    cli("materialize", "--thread", "agent-1", tmp_path / "outside")
    cli("materialize", "HEAD", tmp_path / "state", cwd=place)

    shown = looks(tmp_path / "inside")
    os.unlink(place / "fifo")
    assert shown == looks(place) == looks(tmp_path / "outside")
    assert inside["thread"] == "agent-1"
    assert [each["path"] for each in inside["skipped"]] == ["fifo"]
    assert (tmp_path / "state" / "a.txt").read_text() == "one\ntwo\n"
    assert (tmp_path / "state" / "run").exists()


def test_of_a_read_only_mount(
    captured_repo: api.Repository, mounted: MountThread, cli: Any, tmp_path: Path
) -> None:
    """Inside a read-only mount it is the state that is shown, though its name means another one by now."""
    place = mounted("main", tmp_path / "mnt", read_only=True).mountpoint
    (captured_repo.path / "a.txt").write_text("later\n")
    captured_repo.capture(message="later")

    cli("materialize", tmp_path / "out", cwd=place)

    assert looks(place) == looks(tmp_path / "out")
    assert (tmp_path / "out" / "a.txt").read_text() == "one\ntwo\n"


def test_into_the_mount_itself_it_is_refused(
    captured_repo: api.Repository, mounted: MountThread, cli: Any
) -> None:
    """A destination in the mount would be read while it is written."""
    place = mounted("agent-1").mountpoint

    refused = cli("materialize", "out", "--json", cwd=place, code=65)

    assert "inside the mount" in refused.error["message"]
    assert not (place / "out").exists()
