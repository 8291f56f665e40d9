"""``heddle capture``, ``status`` and ``switch`` on a plain working directory."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from .conftest import Heddle

STATE_FIELDS = {
    "state", "change_id", "parents", "tree", "thread", "message", "principal", "agent", "time",
}  # fmt: skip


def test_capture_has_every_field(heddle: Heddle, work: Path) -> None:
    """The answer of a capture has all that the contract names, with its types."""
    (work / "a").write_text("a")
    (work / "b").write_text("b")
    found = heddle("capture", "-m", "First", "--json").json

    assert set(found) == STATE_FIELDS | {"changes", "not_recorded", "duration_ms"}
    assert (len(found["state"]), len(found["change_id"]), len(found["tree"])) == (40, 32, 40)
    assert (found["thread"], found["parents"], found["message"]) == ("main", [], "First")
    assert found["principal"] == {"name": "Ann Lee", "email": "ann@example.org"}
    assert found["agent"] is None
    assert found["changes"] == {"added": 2, "modified": 0, "deleted": 0}
    assert found["not_recorded"] == []
    assert isinstance(found["duration_ms"], float)


def test_a_second_capture_has_the_first_for_a_parent(heddle: Heddle, captured: Path) -> None:
    """States follow each other, and changes are counted by kind."""
    first = heddle("show", "--json").json["state"]
    (captured / "a.txt").write_text("changed\n")
    (captured / "sub" / "b.txt").unlink()
    (captured / "c.txt").write_text("c\n")
    found = heddle("capture", "-m", "Second", "--json").json

    assert found["parents"] == [first]
    assert found["changes"] == {"added": 1, "modified": 1, "deleted": 1}


def test_capture_as_text(heddle: Heddle, work: Path) -> None:
    """Text names the state, says what was done, and nothing with -q."""
    (work / "a").write_text("a")
    first, second = heddle("capture", "-m", "First").lines
    (work / "b").write_text("b")

    assert first.endswith(" First")
    assert second == "1 added, 0 modified, 0 deleted"
    assert heddle("capture", "-q", "-m", "Second").stdout == b""


def test_agent_by_options(heddle: Heddle, work: Path) -> None:
    """The agent options are recorded, and come back from show and log."""
    (work / "a").write_text("a")
    options = ["--agent-provider", "anthropic", "--agent-model", "opus"]
    options += ["--agent-session", "s1", "--agent-task", "t1"]
    agent = {"provider": "anthropic", "model": "opus", "session": "s1", "task": "t1"}

    assert heddle("capture", "-m", "x", *options, "--json").json["agent"] == agent
    assert heddle("show", "--json").json["agent"] == agent
    assert heddle("log", "--json").json["states"][0]["agent"] == agent
    assert "anthropic/opus" in heddle("log").text


def test_agent_by_environment(heddle: Heddle, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment names the agent where no option does; --no-agent opts out."""
    monkeypatch.setenv("HEDDLE_AGENT_PROVIDER", "openai")
    monkeypatch.setenv("HEDDLE_AGENT_MODEL", "gpt")
    (work / "a").write_text("a")
    by_environment = heddle("capture", "-m", "x", "--json").json["agent"]
    by_option = heddle("capture", "--allow-empty", "--agent-model", "other", "--json").json["agent"]
    nobody = heddle("capture", "--allow-empty", "--no-agent", "--json").json["agent"]

    assert (by_environment["provider"], by_environment["model"]) == ("openai", "gpt")
    assert (by_option["provider"], by_option["model"]) == ("openai", "other")
    assert nobody is None


def test_principal_by_options(heddle: Heddle, work: Path) -> None:
    """The principal options win over the environment."""
    (work / "a").write_text("a")
    name = ["--principal-name", "Bo", "--principal-email", "bo@x"]

    found = heddle("capture", "-m", "x", *name, "--json").json
    assert found["principal"] == {"name": "Bo", "email": "bo@x"}


def test_nothing_to_capture(heddle: Heddle, captured: Path) -> None:
    """Without changes capture is 65 and the thread stays; --allow-empty makes a state."""
    before = heddle("show", "--json").json["state"]

    assert heddle("capture", "-m", "x", "--json", code=65).error["kind"] == "nothing_to_capture"
    assert heddle("show", "--json").json["state"] == before
    assert heddle("capture", "-m", "x", "--allow-empty", "--json").json["parents"] == [before]


def test_capture_of_paths(heddle: Heddle, captured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--path records only what changed there, told from where you stand; the rest stays changed."""
    (captured / "a.txt").write_text("changed\n")
    (captured / "sub" / "b.txt").write_text("changed\n")
    (captured / "sub" / "c.txt").write_text("new\n")
    monkeypatch.chdir("sub")
    found = heddle("capture", "-m", "x", "--path", "c.txt", "--path", "../a.txt", "--json").json

    assert found["changes"] == {"added": 1, "modified": 1, "deleted": 0}
    assert [change["path"] for change in heddle("status", "--json").json["changes"]] == [
        "sub/b.txt"
    ]


def test_a_path_outside_is_64(heddle: Heddle, captured: Path) -> None:
    """A path that is not in the repository is an error in itself."""
    for words in (["capture", "--path", ".."], ["log", "--", "/etc"], ["diff", "--", "../x"]):
        assert heddle(*words[:1], "--json", *words[1:], code=64).error["kind"] == "usage"


def test_capture_of_an_unknown_thread(heddle: Heddle, captured: Path) -> None:
    """--thread of a thread that is not there is 65."""
    error = heddle("capture", "--thread", "no-such", "-m", "x", "--json", code=65).error

    assert error["kind"] == "thread_not_found"


def test_what_can_not_be_recorded_is_listed(heddle: Heddle, work: Path) -> None:
    """A fifo is named with a reason, on stderr for people, and stays where it is."""
    (work / "a").write_text("a")
    os.mkfifo(work / "pipe")
    found = heddle("capture", "-m", "x", "--json")

    assert [left["path"] for left in found.json["not_recorded"]] == ["pipe"]
    assert all(left["why"] for left in found.json["not_recorded"])
    (work / "a").write_text("b")
    assert "not recorded: pipe: " in heddle("capture", "-m", "y").stderr


def test_a_name_that_is_not_utf8(heddle: Heddle, work: Path) -> None:
    """Such a name is recorded, shown byte for byte as text, and exact in JSON as base64."""
    name = b"sp\xe4t"
    Path(os.fsdecode(os.fsencode(work) + b"/" + name)).write_bytes(b"content")
    change = heddle("status", "--json").json["changes"][0]

    assert change["path"] == "sp\udce4t"
    assert base64.b64decode(change["path_b64"]) == name
    assert name in heddle("status").stdout
    heddle("capture", "-m", "x")
    assert heddle("show", "HEAD:" + os.fsdecode(name)).stdout == b"content"
    assert heddle("status", "--json").json["changes"] == []


def test_a_message_that_is_not_utf8(heddle: Heddle, work: Path) -> None:
    """Bytes of a message that are not UTF-8 do not stop anything."""
    (work / "a").write_text("a")
    heddle("capture", "-m", os.fsdecode(b"gr\xfcn"))

    assert b"gr" in heddle("log").stdout
    assert heddle("log", "--json").json["states"][0]["message"].startswith("gr")


def test_status_has_every_field(heddle: Heddle, captured: Path) -> None:
    """The answer of status has all that the contract names."""
    (captured / ".gitignore").write_text("*.o\n")
    heddle("capture", "-m", "Ignore")
    (captured / "x.o").write_text("")
    (captured / "a.txt").write_text("changed\n")
    (captured / "sub" / "b.txt").rename(captured / "moved.txt")
    (captured / "new.txt").write_text("new\n")
    found = heddle("status", "--json").json
    changes = {change["path"]: (change["kind"], change["from"]) for change in found["changes"]}

    assert set(found) == {
        "repository", "thread", "state", "mountpoint", "changes", "ignored_count", "mounts_stale",
        "many_packs", "git_branch", "git_doing", "not_recorded",
    }  # fmt: skip
    assert (found["repository"], found["thread"]) == (str(captured), "main")
    assert found["state"] == heddle("show", "--json").json["state"]
    assert (found["mountpoint"], found["mounts_stale"]) == (None, [])
    assert found["ignored_count"] == 1
    assert changes == {
        "a.txt": ("modified", None),
        "moved.txt": ("renamed", "sub/b.txt"),
        "new.txt": ("added", None),
    }


def test_status_of_a_new_repository(heddle: Heddle, work: Path) -> None:
    """Before the first capture everything is added and there is no state."""
    (work / "a").write_text("a")
    found = heddle("status", "--json").json

    assert found["state"] is None
    assert found["changes"] == [{"path": "a", "kind": "added", "from": None}]


def test_status_as_text(heddle: Heddle, captured: Path) -> None:
    """Text has the thread, the place, and a letter before each path."""
    assert "nothing changed" in heddle("status").text
    (captured / "a.txt").write_text("changed\n")
    (captured / "sub" / "b.txt").unlink()
    (captured / "li\nne").write_text("")
    first, second, *changes = heddle("status").lines

    assert first.startswith("on thread main (")
    assert second == f"in {captured}"
    assert changes == ["  M a.txt", "  A li\\nne", "  D sub/b.txt"]


def test_a_file_that_becomes_a_link(heddle: Heddle, captured: Path) -> None:
    """Another type of file is a change of its own kind."""
    (captured / "a.txt").unlink()
    (captured / "a.txt").symlink_to("sub")

    change = {"path": "a.txt", "kind": "type-changed", "from": None}
    assert heddle("status", "--json").json["changes"] == [change]
    assert "  T a.txt" in heddle("status").text


def test_switch(heddle: Heddle, captured: Path) -> None:
    """switch makes the working directory what the thread holds, and HEAD mean it."""
    made = heddle("switch", "other", "--create", "--json").json
    assert (made["thread"], made["changed_paths"]) == ("other", 0)
    (captured / "a.txt").write_text("other\n")
    heddle("capture", "-m", "On other")
    found = heddle("switch", "main", "--json").json

    assert set(found) == {"thread", "state", "changed_paths"}
    assert (found["thread"], found["changed_paths"]) == ("main", 1)
    assert (captured / "a.txt").read_text() == "one\ntwo\n"
    assert heddle("status", "--json").json["thread"] == "main"
    assert "on thread other" in heddle("switch", "other").text


def test_switch_does_not_overwrite(heddle: Heddle, captured: Path) -> None:
    """Unsaved changes that would be lost make it 65, and nothing moves."""
    heddle("switch", "other", "--create")
    (captured / "a.txt").write_text("other\n")
    heddle("capture", "-m", "On other")
    (captured / "a.txt").write_text("unsaved\n")

    assert heddle("switch", "main", "--json", code=65).error["kind"] == "unsaved_changes"
    assert (captured / "a.txt").read_text() == "unsaved\n"
    assert heddle("status", "--json").json["thread"] == "other"


def test_what_switch_refuses(heddle: Heddle, captured: Path) -> None:
    """A thread that is not there, one that is there already, a name that can't be."""
    assert heddle("switch", "no", "--json", code=65).error["kind"] == "thread_not_found"
    assert heddle("switch", "main", "--create", "--json", code=65).error["kind"] == "thread_exists"
    assert heddle("switch", "a//b", "--create", "--json", code=64).error["kind"] == "invalid_name"
