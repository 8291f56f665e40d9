"""``heddle init``."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from .conftest import Heddle


def test_a_new_repository_is_on_main(heddle: Heddle, tmp_path: Path) -> None:
    """init makes the directory and puts HEAD on main."""
    found = heddle("init", str(tmp_path / "new"), "--json").json

    assert found == {
        "path": str(tmp_path / "new"),
        "head": "main",
        "object_format": "sha1",
        "git": None,
        "created": True,
    }
    assert (tmp_path / "new" / ".heddle" / "heddle.db").is_file()


def test_init_without_a_path_is_here(heddle: Heddle, tmp_path: Path) -> None:
    """Without PATH the repository is in the current directory, and text says where."""
    assert heddle("init").text == f"made a repository in {tmp_path}, on thread main\n"


def test_init_again_changes_nothing(heddle: Heddle, work: Path) -> None:
    """In a repository init succeeds and says that it was there."""
    heddle("thread", "create", "kept")

    assert heddle("init", "--json").json["created"] is False
    assert "already" in heddle("init").text
    assert len(heddle("thread", "list", "--json").json["threads"]) == 2


def test_sha256(heddle: Heddle, tmp_path: Path) -> None:
    """--object-format sha256 gives ids of 64 digits."""
    found = heddle("init", "r", "--object-format", "sha256", "--json").json
    (tmp_path / "r" / "file").write_text("x")
    state = heddle("-C", "r", "capture", "-m", "x", "--json").json["state"]

    assert found["object_format"] == "sha256"
    assert len(state) == 64


def test_another_object_format_is_refused(heddle: Heddle, work: Path) -> None:
    """A repository keeps the format it has."""
    assert heddle("init", "--object-format", "sha256", "--json", code=65).error["exit_code"] == 65


def test_on_top_of_git(heddle: Heddle, tmp_path: Path) -> None:
    """In a git checkout HEAD is at git's commit, and the object git has is read where it is."""
    git = ["git", "-C", str(tmp_path / "g")]
    subprocess.run(["git", "init", "-q", "-b", "trunk", tmp_path / "g"], check=True)
    (tmp_path / "g" / "file").write_text("from git\n")
    subprocess.run([*git, "add", "."], check=True)
    commit = [*git, "-c", "user.name=A", "-c", "user.email=a@b", "commit", "-qm", "by git"]
    subprocess.run(commit, check=True)
    found = heddle("init", "g", "--json").json

    assert (found["head"], found["git"]) == ("trunk", str(tmp_path / "g" / ".git"))
    assert heddle("-C", "g", "show", "HEAD:file").stdout == b"from git\n"
    assert heddle("-C", "g", "show", "--json").json["message"].strip() == "by git"


def test_a_place_that_can_not_be_written_is_73(heddle: Heddle) -> None:
    """Where no directory can be made, nothing is, and the code says so."""
    assert heddle("init", "/proc/heddle", "--json", code=73).error["kind"] == "cannot_create"


def test_a_file_is_no_place_for_a_repository(heddle: Heddle, tmp_path: Path) -> None:
    """PATH that is a file can't become a repository."""
    (tmp_path / "file").write_text("")

    assert heddle("init", "file", "--json", code=73).error["kind"] == "cannot_create"


def test_no_repository_inside_dot_heddle(heddle: Heddle, work: Path) -> None:
    """A repository can't be made in another one's .heddle."""
    heddle("init", ".heddle/sub", code=65)

    assert not (work / ".heddle" / "sub").exists()


def test_a_directory_whose_name_is_not_utf8(heddle: Heddle, tmp_path: Path) -> None:
    """A path that is not UTF-8 works, is given in JSON as surrogates, and exactly as base64."""
    place = os.fsdecode(os.fsencode(tmp_path) + b"/r\xff")
    found = heddle("init", place, "--json").json

    assert found["path"].endswith("r\udcff")
    assert found["path_b64"]
    assert heddle("-C", place, "status").code == 0
