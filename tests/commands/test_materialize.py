"""``heddle materialize`` as a command: its one object, its codes."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Heddle


@pytest.fixture
def state(work: Path, heddle: Heddle) -> str:
    """A state with a file and a directory; returns its id."""
    (work / "sub").mkdir()
    (work / "sub" / "file").write_text("text\n")
    (work / "top").write_text("top\n")
    found: str = heddle("capture", "-m", "made", "--json").json["state"]
    return found


def test_its_fields(work: Path, heddle: Heddle, state: str) -> None:
    """One object with the fields of the manual page."""
    done = heddle("materialize", "../out", "--json").json

    assert done.pop("duration_ms") > 0
    assert done == {
        "state": state,
        "thread": None,
        "dest": str(work.parent / "out"),
        "files": 2,
        "bytes": 9,
        "skipped": [],
        "renamed": [],
    }


def test_paths_are_relative_to_here(
    work: Path, heddle: Heddle, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PATH and DEST are taken from the current directory."""
    monkeypatch.chdir(work / "sub")

    heddle("materialize", "HEAD", "../../out", "--", "file")

    assert [path.name for path in (work.parent / "out").rglob("*")] == ["sub", "file"]


def test_a_conflict(work: Path, heddle: Heddle, state: str) -> None:
    """Something in the way is 65 with a hint; --on-conflict rename says what is called otherwise."""
    heddle("materialize", "../out")
    refused = heddle("materialize", "../out", "--json", code=65)
    renamed = heddle("materialize", "../out", "--on-conflict", "rename", "--json", "--", "top").json

    assert (refused.error["kind"], refused.stdout) == ("conflict", b"")
    assert "overwrite" in refused.error["hint"]
    assert renamed["renamed"] == [{"path": "top", "to": "top~1"}]


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("nowhere", "../out"), 65),
        (("HEAD", "../out", "--thread", "main"), 64),
        (("HEAD", "main", "../out"), 64),
        (("--jobs", "0", "../out"), 64),
        (("../out", "--thread", "nobody"), 65),
        (("../out", "--", "nothing"), 65),
        (("top",), 73),
        ((".heddle/out",), 65),
    ],
)
def test_what_is_refused(
    work: Path, heddle: Heddle, state: str, args: tuple[str, ...], code: int
) -> None:
    """Each mistake has the code of its kind, and makes nothing."""
    heddle("materialize", *args, code=code)

    assert not (work.parent / "out").exists()
    assert not (work / ".heddle" / "out").exists()
