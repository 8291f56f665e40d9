"""``heddle log``, ``show`` and ``diff``: what was, and what differs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from .conftest import Heddle


@pytest.fixture
def history(heddle: Heddle, captured: Path) -> Path:
    """Three states: the first, one by an agent that changes ``a.txt``, one that changes ``sub``."""
    (captured / "a.txt").write_text("one\n2\nthree\n")
    heddle("capture", "-m", "Second", "--agent-provider", "anthropic", "--agent-model", "opus")
    (captured / "sub" / "b.txt").write_text("b\nb\n")
    heddle("capture", "-m", "Third\n\nWith more to say.")
    return captured


def subjects(heddle: Heddle, *args: str) -> list[str]:
    states = heddle("log", "--json", *args).json["states"]
    return [state["message"].splitlines()[0] for state in states]


def test_log_has_every_field(heddle: Heddle, history: Path) -> None:
    """Each state of a log has all that the contract names."""
    newest, second, first = heddle("log", "--json").json["states"]

    assert set(newest) == {
        "state", "change_id", "parents", "tree", "thread", "message", "principal", "agent", "time",
        "changes",
    }  # fmt: skip
    assert newest["parents"] == [second["state"]]
    assert newest["thread"] == "main"
    assert newest["changes"] == {"added": 0, "modified": 1, "deleted": 0}
    assert first["changes"] == {"added": 2, "modified": 0, "deleted": 0}
    assert first["parents"] == []
    assert second["principal"] == {"name": "Ann Lee", "email": "ann@example.org"}


def test_log_filters(heddle: Heddle, history: Path) -> None:
    """-n, --agent, --since, a spec and paths choose states."""
    assert subjects(heddle) == ["Third", "Second", "First state"]
    assert subjects(heddle, "-n", "1") == ["Third"]
    assert subjects(heddle, "-n", "0") == []
    assert subjects(heddle, "HEAD~1") == ["Second", "First state"]
    assert subjects(heddle, "--agent", "OPUS") == ["Second"]
    assert subjects(heddle, "--since", "1 hour ago") == ["Third", "Second", "First state"]
    assert subjects(heddle, "--since", "2100-01-01") == []
    assert subjects(heddle, "main", "--", "sub") == ["Third", "First state"]
    assert subjects(heddle, "--", "a.txt") == ["Second", "First state"]


def test_log_paths_are_relative_to_here(
    heddle: Heddle, history: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path after -- is told from the current directory."""
    monkeypatch.chdir("sub")

    assert subjects(heddle, "--", "b.txt") == ["Third", "First state"]


def test_log_as_text(heddle: Heddle, history: Path) -> None:
    """A state has its ids and names, who and when, and the whole message."""
    lines = heddle("log", "-n", "1").lines

    assert lines[0].endswith(" (HEAD = main)")
    assert lines[1].startswith("Ann Lee <ann@example.org> on main, 20")
    assert lines[2:] == ["  Third", "", "  With more to say.", ""]


def test_log_oneline(heddle: Heddle, history: Path) -> None:
    """--oneline gives a line for each state, with the agent."""
    lines = heddle("log", "--oneline").lines

    assert len(lines) == 3
    assert lines[1].endswith(" Second [anthropic/opus]")


def test_log_graph_of_all_threads(heddle: Heddle, history: Path) -> None:
    """--graph --all draws every thread, names included, HEAD as a diamond."""
    heddle("switch", "other", "--create")
    (history / "other.txt").write_text("")
    heddle("capture", "-m", "On other")
    heddle("switch", "main")
    (history / "main.txt").write_text("")
    heddle("capture", "-m", "On main")
    heddle("marker", "create", "v1", "HEAD~1")
    lines = heddle("log", "--graph", "--all", "--oneline").lines
    text = "\n".join(lines)

    assert [line[0] for line in lines if "On main" in line] == ["◆"]
    assert any(line.startswith("│ ● ") and "(other) On other" in line for line in lines)
    assert "├─╯" in lines
    assert "(HEAD = main) On main" in text and "(marker v1) Third" in text


def test_graph_of_chosen_states_has_no_gaps(heddle: Heddle, history: Path) -> None:
    """With paths, a hidden state between two shown ones does not end the line."""
    lines = heddle("log", "--graph", "--oneline", "--", "sub").lines

    assert [line[0] for line in lines] == ["◆", "●"]
    rows = heddle("log", "--graph", "--", "sub").lines
    assert rows[1].startswith("│ ")


def test_log_of_nothing(heddle: Heddle, work: Path) -> None:
    """Before the first capture there is no state to begin at; --all has nothing to show."""
    assert heddle("log", "--json", code=65).error["hint"] == "heddle capture"
    assert heddle("log", "--all", "--json").json == {"states": []}


@pytest.mark.parametrize("words", [["log"], ["show"], ["diff"]], ids=" ".join)
def test_specs_that_nothing_answers_to(heddle: Heddle, history: Path, words: list[str]) -> None:
    """A spec without a state is 65 everywhere."""
    for spec in ("no-such", "HEAD~9", "zzzz", "0000"):
        error = heddle(*words, spec, "--json", code=65).error
        assert error["kind"] == "state_not_found", spec


def test_every_kind_of_spec(heddle: Heddle, history: Path) -> None:
    """HEAD, @, names, ids, change ids, their beginnings and ~N name states."""
    heddle("marker", "create", "v1", "HEAD~1")
    third, second, first = heddle("log", "--json").json["states"]
    specs = {
        "HEAD": third, "@": third, "main": third, "main~1": second, "v1": second, "v1~1": first,
        "HEAD~2": first, third["state"]: third, second["state"][:12]: second,
        first["change_id"]: first, first["change_id"][:8]: first,
    }  # fmt: skip

    for spec, state in specs.items():
        assert heddle("show", spec, "--json").json["state"] == state["state"], spec


def test_show_has_the_state_and_its_files(heddle: Heddle, history: Path) -> None:
    """show gives a state and what it changed against its first parent."""
    found = heddle("show", "HEAD~1", "--json").json

    assert found["message"] == "Second"
    assert found["files"] == [
        {
            "path": "a.txt",
            "kind": "modified",
            "from": None,
            "additions": 2,
            "deletions": 1,
            "binary": False,
        }
    ]


def test_show_as_text(heddle: Heddle, history: Path) -> None:
    """Text is the state with whole ids, then its patch."""
    state = heddle("show", "HEAD~1", "--json").json
    text = heddle("show", "HEAD~1").text

    assert text.startswith(f"{state['state']} {state['change_id']}")
    assert "anthropic/opus" in text
    assert "\n-two\n+2\n+three\n" in text


def test_show_of_the_first_state(heddle: Heddle, history: Path) -> None:
    """A state without a parent is compared with nothing."""
    files = heddle("show", "HEAD~2", "--json").json["files"]

    assert [(file["path"], file["kind"]) for file in files] == [
        ("a.txt", "added"),
        ("sub/b.txt", "added"),
    ]


def test_show_a_file(heddle: Heddle, history: Path) -> None:
    """SPEC:PATH writes a file's bytes as they were."""
    (history / "bytes").write_bytes(bytes(range(256)))
    heddle("capture", "-m", "Bytes")

    assert heddle("show", "HEAD~3:a.txt").stdout == b"one\ntwo\n"
    assert heddle("show", ":a.txt").stdout == b"one\n2\nthree\n"
    assert heddle("show", "HEAD:bytes").stdout == bytes(range(256))


def test_show_a_file_as_json(heddle: Heddle, history: Path) -> None:
    """With --json a path has its mode, id, size and content; what is not UTF-8 also in base64."""
    (history / "bytes").write_bytes(b"\xff\0")
    (history / "bytes").chmod(0o755)
    heddle("capture", "-m", "Bytes")
    text = heddle("show", "HEAD:a.txt", "--json").json
    found = heddle("show", "HEAD:bytes", "--json").json

    assert (text["content"], text["mode"], text["size"]) == ("one\n2\nthree\n", "100644", 12)
    assert "content_b64" not in text and text["entries"] is None
    assert (found["content_b64"], found["mode"], found["size"]) == ("/wA=", "100755", 2)


def test_show_a_directory_and_a_link(heddle: Heddle, history: Path) -> None:
    """A directory lists its names, a symbolic link is its target."""
    (history / "link").symlink_to("a.txt")
    heddle("capture", "-m", "Link")
    found = heddle("show", "HEAD:", "--json").json

    assert heddle("show", "HEAD:link").stdout == b"a.txt"
    assert heddle("show", "HEAD:").lines == ["a.txt", "link", "sub/"]
    assert [entry["name"] for entry in found["entries"]] == ["a.txt", "link", "sub"]
    assert [entry["mode"] for entry in found["entries"]] == ["100644", "120000", "040000"]


def test_show_a_path_that_is_not_there(heddle: Heddle, history: Path) -> None:
    """A path that the state does not hold is 65."""
    assert heddle("show", "HEAD:no", "--json", code=65).error["kind"] == "path_not_found"
    assert heddle("show", "HEAD:a.txt/x", "--json", code=65).error["kind"] == "path_not_found"


def test_diff_of_what_is_unsaved(heddle: Heddle, history: Path) -> None:
    """Without states diff shows what a capture would record, as text, names, counts and JSON."""
    (history / "a.txt").write_text("one\n2\n")
    (history / "new").write_bytes(b"\0binary")
    (history / "sub" / "b.txt").rename(history / "moved")
    found = heddle("diff", "--json").json["files"]

    assert [(file["path"], file["kind"], file["from"]) for file in found] == [
        ("a.txt", "modified", None),
        ("moved", "renamed", "sub/b.txt"),
        ("new", "added", None),
    ]
    assert [file["binary"] for file in found] == [False, False, True]
    assert set(found[0]) == {"path", "kind", "from", "additions", "deletions", "binary"}
    assert heddle("diff", "--name-only").lines == ["a.txt", "moved", "new"]
    assert "-three" in heddle("diff").lines


def test_diff_of_two_states(heddle: Heddle, history: Path) -> None:
    """diff A B compares states, diff A compares one with what is here."""
    assert heddle("diff", "HEAD~2", "HEAD~1", "--name-only").lines == ["a.txt"]
    assert heddle("diff", "HEAD~2", "HEAD", "--name-only").lines == ["a.txt", "sub/b.txt"]
    (history / "new").write_text("new\n")
    assert heddle("diff", "HEAD~1", "--name-only").lines == ["new", "sub/b.txt"]


def test_diff_of_paths(heddle: Heddle, history: Path) -> None:
    """Paths after -- limit a diff."""
    assert heddle("diff", "HEAD~2", "HEAD", "--name-only", "--", "sub").lines == ["sub/b.txt"]


def test_diff_stat(heddle: Heddle, history: Path) -> None:
    """--stat counts lines for each file and in all."""
    assert heddle("diff", "HEAD~2", "HEAD", "--stat").lines == [
        " a.txt     |    3 ++-",
        " sub/b.txt |    1 +",
        " 2 paths changed, 3 added, 1 deleted",
    ]


def test_diff_exit_code(heddle: Heddle, history: Path) -> None:
    """--exit-code says by 1 that there are differences, in every form."""
    for form in ([], ["--json"], ["--stat"], ["--name-only"]):
        heddle("diff", "--exit-code", *form, code=0)
        heddle("diff", "HEAD~1", "HEAD", "--exit-code", *form, code=1)
        heddle("diff", "HEAD~1", "HEAD", *form, code=0)


def test_git_applies_a_diff(heddle: Heddle, history: Path, tmp_path: Path) -> None:
    """What diff prints makes one state out of the other with ``git apply``."""
    (history / "a.txt").chmod(0o755)
    (history / "bytes").write_bytes(bytes(range(256)))
    (history / "sub" / "b.txt").rename(history / "moved")
    (history / "link").symlink_to("a.txt")
    (history / "no newline").write_text("x")
    heddle("capture", "-m", "Everything")
    other = tmp_path / "other"
    subprocess.run(["git", "init", "-q", str(other)], check=True)
    first = heddle("diff", "HEAD~3", "HEAD").stdout
    start = heddle("show", "HEAD~3:a.txt").stdout
    (other / "a.txt").write_bytes(start)
    (other / "sub").mkdir()
    (other / "sub" / "b.txt").write_text("b\n")
    subprocess.run(["git", "apply", "-"], input=first, cwd=other, check=True)

    for name in ("a.txt", "bytes", "moved", "no newline"):
        assert (other / name).read_bytes() == (history / name).read_bytes()
    assert os.access(other / "a.txt", os.X_OK)
    assert (other / "link").readlink() == Path("a.txt")
    assert not (other / "sub" / "b.txt").exists()


def test_a_colored_patch_is_the_same_patch(heddle: Heddle, history: Path) -> None:
    """Colour adds escapes to a patch and changes nothing else."""
    plain = heddle("diff", "HEAD~2", "HEAD").stdout
    colored = heddle("diff", "HEAD~2", "HEAD", "--color", "always").stdout

    assert b"\x1b[32m+2\x1b[0m\n" in colored
    for escape in (b"\x1b[0m", b"\x1b[1m", b"\x1b[31m", b"\x1b[32m", b"\x1b[36m"):
        colored = colored.replace(escape, b"")
    assert colored == plain
