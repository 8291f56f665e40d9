"""``heddle thread`` and ``heddle marker``: names of states."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Heddle

BAD_NAMES = [
    "..",
    "a//b",
    "a/",
    "/a",
    "a\x01b",
    "a\nb",
    "-x",
    "",
    "a b",
    "HEAD",
    "@",
    "x.lock",
    ".x",
]


def names(heddle: Heddle) -> set[str]:
    return {thread["name"] for thread in heddle("thread", "list", "--json").json["threads"]}


def test_a_thread_begins_where_you_are(heddle: Heddle, captured: Path) -> None:
    """create makes a thread at HEAD's state."""
    head = heddle("show", "--json").json["state"]
    made = heddle("thread", "create", "agent/1", "--json").json

    assert made["name"] == "agent/1"
    assert made["state"] == head
    assert heddle("show", "agent/1", "--json").json["state"] == head


def test_a_thread_begins_at_a_spec(heddle: Heddle, captured: Path) -> None:
    """--from takes any state spec."""
    first = heddle("show", "--json").json["state"]
    heddle("capture", "--allow-empty", "-m", "Second")

    assert heddle("thread", "create", "t", "--from", "HEAD~1", "--json").json["state"] == first


def test_list_has_every_field(heddle: Heddle, captured: Path) -> None:
    """list gives each thread with where it is, who made its state, and where HEAD is."""
    heddle("thread", "create", "t")
    threads = heddle("thread", "list", "--json").json["threads"]
    main = threads[0]

    assert [thread["name"] for thread in threads] == ["main", "t"]
    assert [thread["is_head"] for thread in threads] == [True, False]
    assert main["message"] == "First state"
    assert (main["agent"], main["mountpoint"], main["dirty"]) == (None, None, None)
    assert len(main["change_id"]) == 32
    assert main["updated_at"].endswith("+00:00")
    assert set(main) == {
        "name", "state", "change_id", "message", "agent", "updated_at", "mountpoint", "dirty",
        "is_head",
    }  # fmt: skip


def test_list_as_text_marks_head(heddle: Heddle, captured: Path) -> None:
    """Text shows a line for each thread, HEAD's with a star."""
    heddle("thread", "create", "t")
    first, second = heddle("thread", "list").lines

    assert first.startswith("* main ") and first.endswith(" First state")
    assert second.startswith("  t ")


def test_the_star_is_where_you_stand(heddle: Heddle, captured: Path, tmp_path: Path) -> None:
    """In a mount the star is at the mounted thread; HEAD's thread and the mountpoint are told in JSON."""
    place = str(tmp_path / "place")
    heddle("mount", "agent-1", place, "--create")
    Path(place, "new").write_text("unsaved")
    agent, main = heddle("-C", place, "thread", "list").lines
    record = heddle("thread", "list", "--json").json["threads"][0]
    heddle("unmount", "agent-1")

    assert agent.startswith("* agent-1 ") and agent.endswith(f" {place}, unsaved changes")
    assert main.startswith("  main ")
    assert (record["is_head"], record["mountpoint"], record["dirty"]) == (False, place, True)


def test_a_thread_without_a_state(heddle: Heddle, work: Path) -> None:
    """In a new repository a thread has no state, in JSON null."""
    assert heddle("thread", "list").text == "* main (no state yet)\n"
    assert heddle("thread", "show", "main", "--json").json["state"] is None
    assert heddle("thread", "create", "t", "--json").json["state"] is None


def test_show_has_the_state(heddle: Heddle, captured: Path) -> None:
    """show gives one thread, and as text the state it is at."""
    text = heddle("thread", "show", "main").text

    assert "Ann Lee <ann@example.org>" in text
    assert "First state" in text


def test_rename(heddle: Heddle, work: Path) -> None:
    """rename gives a thread another name, HEAD included."""
    heddle("thread", "create", "a")

    assert heddle("thread", "rename", "a", "b", "--json").json["from"] == "a"
    assert names(heddle) == {"b", "main"}
    heddle("thread", "rename", "main", "trunk")
    assert heddle("status", "--json").json["thread"] == "trunk"


def test_delete(heddle: Heddle, captured: Path) -> None:
    """delete forgets the name and keeps the state."""
    state = heddle("thread", "create", "a", "--json").json["state"]

    assert heddle("thread", "delete", "a", "--json").json == {
        "name": "a",
        "state": state,
        "unsaved_kept_in": None,
    }
    assert names(heddle) == {"main"}
    assert heddle("show", state).code == 0


def test_what_threads_refuse(heddle: Heddle, work: Path) -> None:
    """A name taken, a name unknown and HEAD's own thread are 65, each with its kind."""
    heddle("thread", "create", "a")
    refused = {
        ("create", "a"): "thread_exists",
        ("show", "b"): "thread_not_found",
        ("rename", "b", "c"): "thread_not_found",
        ("rename", "a", "main"): "thread_exists",
        ("delete", "b"): "thread_not_found",
        ("delete", "main"): "refused",
        ("create", "b", "--from", "no-such"): "state_not_found",
    }

    for words, kind in refused.items():
        assert heddle("thread", *words, "--json", code=65).error["kind"] == kind, words
    assert names(heddle) == {"a", "main"}


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("words", [["thread", "create"], ["marker", "create"]], ids="-".join)
def test_invalid_names(heddle: Heddle, captured: Path, words: list[str], name: str) -> None:
    """A name that git could not have for a branch is 64, and nothing is made."""
    found = heddle("--json", *words, "--", name, code=64).error

    assert found["kind"] == "invalid_name"
    assert names(heddle) == {"main"}


def test_markers(heddle: Heddle, captured: Path) -> None:
    """A marker is made, listed, shown, used as a spec, and deleted."""
    state = heddle("show", "--json").json
    made = heddle("marker", "create", "v1", "HEAD", "-m", "First release", "--json").json

    assert (made["name"], made["state"]) == ("v1", state["state"])
    assert (made["change_id"], made["message"]) == (state["change_id"], "First release")
    assert heddle("marker", "list", "--json").json == {"markers": [made]}
    assert heddle("marker", "show", "v1", "--json").json == made
    assert heddle("marker", "list").text.startswith("v1 ")
    assert "First state" in heddle("marker", "show", "v1").text
    assert heddle("show", "v1", "--json").json["state"] == state["state"]
    gone = {"name": "v1", "state": state["state"]}
    assert heddle("marker", "delete", "v1", "--json").json == gone
    assert heddle("marker", "list", "--json").json == {"markers": []}


def test_what_markers_refuse(heddle: Heddle, captured: Path) -> None:
    """A marker never moves, and an unknown one is an error."""
    heddle("marker", "create", "v1")
    refused = {
        ("create", "v1"): "marker_exists",
        ("show", "v2"): "marker_not_found",
        ("delete", "v2"): "marker_not_found",
        ("create", "v2", "no-such"): "state_not_found",
    }

    for words, kind in refused.items():
        assert heddle("marker", *words, "--json", code=65).error["kind"] == kind, words
