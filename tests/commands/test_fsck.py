"""``heddle fsck``: what is whole, what is damaged, and how it is repaired."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from heddle.commands import fsck

from .conftest import Heddle


def packs(work: Path, suffix: str) -> list[Path]:
    return sorted((work / ".heddle" / "objects" / "packs").glob(f"*.{suffix}"))


def damage(path: Path) -> None:
    """Flip bits in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.chmod(0o644)
    path.write_bytes(content)


@pytest.mark.parametrize("options", [[], ["--full"]], ids=["", "full"])
def test_a_whole_repository(heddle: Heddle, captured: Path, options: list[str]) -> None:
    """Nothing is wrong: exit code 0, what was checked is counted, no problem is listed."""
    found = heddle("fsck", *options, "--json").json

    assert found["ok"] is True
    assert (found["problems"], found["reindexed"]) == ([], [])
    assert found["checked"]["objects"] == 5  # two blobs, two trees, one state
    assert found["checked"]["threads"] == 1
    assert heddle("fsck", *options).text.startswith("whole: ")
    assert heddle("fsck", *options, "-q").stdout == b""


def test_a_state_without_a_name(heddle: Heddle, captured: Path, tmp_path: Path) -> None:
    """What a database forgot that lost its last transactions is told, with the command that names it; no damage."""
    database = captured / ".heddle" / "heddle.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copy(database, tmp_path / "before")
    made = []
    for text in ("second", "third"):
        (captured / "new").write_text(text)
        made.append(heddle("capture", "-m", f"The {text}", "--json").json["state"])
    for suffix in ("-wal", "-shm"):
        Path(f"{database}{suffix}").unlink(missing_ok=True)
    shutil.copy(tmp_path / "before", database)
    found = heddle("fsck", "--json").json

    assert (found["ok"], found["problems"]) == (True, [])
    assert [it["state"] for it in found["unnamed"]] == made[1:]
    hint = heddle("fsck").stderr.splitlines()[-1]
    assert "The third" in hint
    heddle(*hint.partition("heddle ")[2].replace("NAME", "found").split())
    assert heddle("fsck", "--json").json["unnamed"] == []
    assert heddle("show", "found:new").stdout == b"third"


def test_threads_at_a_lost_state(heddle: Heddle, captured: Path) -> None:
    """A repair brings a thread at a lost state to the one before it, whoever went there first."""
    first = heddle("log", "--json").json["states"][0]["state"]
    (captured / "new").write_text("lost")
    heddle("capture", "-m", "Lost")
    heddle("thread", "create", "also")
    newest = max(packs(captured, "pack"), key=lambda path: path.stat().st_mtime_ns)
    newest.chmod(0o644)
    newest.write_bytes(newest.read_bytes()[:50])
    said = heddle("fsck", "--repair", code=None).text

    assert said.count("which can't be read") >= 2 and "None" not in said
    states = {it["name"]: it["state"] for it in heddle("thread", "list", "--json").json["threads"]}
    assert states == {"main": first, "also": first}
    left = heddle("fsck", "--json", code=1).json["problems"]
    assert {it["what"].split()[0] for it in left} == {"operation"}


def test_a_damaged_pack_is_1(heddle: Heddle, captured: Path) -> None:
    """A flipped bit is found, named with its file, and comes with what to do; reading it is 74."""
    pack = packs(captured, "pack")[0]
    damage(pack)
    found = heddle("fsck", "--full", "--json", code=1).json

    assert found["ok"] is False
    assert all(set(problem) == {"kind", "what", "repair"} for problem in found["problems"])
    assert any(pack.name in problem["what"] for problem in found["problems"])
    text = heddle("fsck", "--full", code=1).text
    assert pack.name in text and "repair: " in text


@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_reindex_rebuilds_an_index(heddle: Heddle, captured: Path, how: str) -> None:
    """An index that is gone or damaged is reported with the command that rebuilds it, which does."""
    index = packs(captured, "idx")[0]
    if how == "missing":
        index.unlink()
    else:
        damage(index)
    found = heddle("fsck", "--json", code=1).json

    assert any("heddle fsck --reindex" in problem["repair"] for problem in found["problems"])
    rebuilt = heddle("fsck", "--reindex", "--json").json
    assert (rebuilt["ok"], rebuilt["reindexed"]) == (True, [index.stem])
    assert heddle("show", "HEAD:a.txt").stdout == b"one\ntwo\n"


def test_reading_a_damaged_object_is_74(heddle: Heddle, captured: Path) -> None:
    """A damaged object is an I/O error that names the file, never wrong bytes."""
    pack = packs(captured, "pack")[0]
    content = bytearray(pack.read_bytes())
    pack.chmod(0o644)
    pack.write_bytes(bytes(byte ^ 0xFF for byte in content))

    error = heddle("show", "HEAD:a.txt", "--json", code=74).error
    assert error["exit_code"] == 74
    assert pack.name in error["message"]


def test_a_database_that_is_none(heddle: Heddle, captured: Path) -> None:
    """A damaged database is 74 for every command, and a problem to fsck."""
    database = captured / ".heddle" / "heddle.db"
    for extra in ("heddle.db-wal", "heddle.db-shm"):
        (captured / ".heddle" / extra).unlink(missing_ok=True)
    database.write_bytes(b"not a database, and long enough to look at" * 100)

    for words in (["status"], ["log"], ["thread", "list"], ["capture", "-m", "x"]):
        assert heddle(*words, "--json", code=74).error["exit_code"] == 74
    problem = heddle("fsck", "--json", code=1).json["problems"][0]
    assert problem["kind"] == "database"


def test_a_database_of_a_newer_heddle(heddle: Heddle, captured: Path) -> None:
    """A repository that a newer heddle wrote is 78 and left alone."""
    import sqlite3

    connection = sqlite3.connect(captured / ".heddle" / "heddle.db")
    connection.execute("PRAGMA user_version = 9999")
    connection.close()

    assert heddle("status", "--json", code=78).error["kind"] == "repository_too_new"


def test_thousands_of_states_without_names(capsys: pytest.CaptureFixture[str]) -> None:
    """The newest twenty are told to a person, and how many more there are."""
    states = [SimpleNamespace(id=b"%040d" % number, message="Old") for number in range(25)]
    report = SimpleNamespace(problems=[], unnamed=states, checked={"threads": 1})
    fsck._print(report, [], None, False)

    said = capsys.readouterr().err.splitlines()
    assert len(said) == 21
    assert "5 older states" in said[0] and "--json" in said[0]
