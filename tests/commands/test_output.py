"""What every command shares on its way out: JSON, names on a terminal, progress, what a state looks like."""

from __future__ import annotations

import base64
import io
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heddle.attribution import Agent, Principal
from heddle.commands import output, views
from heddle.commands.settings import settings
from heddle.objects.state import State


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain() -> None:
    """Settings as at the start of an invocation."""
    settings.reset()


@given(st.binary(max_size=20))
def test_any_name_survives_json(name: bytes) -> None:
    """JSON is ASCII on one line and holds every name exactly: by itself, or in base64 beside it."""
    line = output.to_json({"path": name, "nested": [{"path": name}]})
    found = json.loads(line)

    assert line.isascii() and "\n" not in line
    for record in (found, found["nested"][0]):
        exact = record.get("path_b64")
        assert (base64.b64decode(exact) if exact else record["path"].encode()) == name
        assert record["path"].encode("utf-8", "surrogateescape") == name


@given(st.binary(max_size=20))
def test_no_name_moves_the_cursor(name: bytes) -> None:
    """A printable name holds no control character, and a harmless one is left as it is."""
    shown = output.printable(name)

    assert not any(ord(char) < 32 or 127 <= ord(char) < 160 for char in shown)
    if name.decode("utf-8", "surrogateescape").isprintable():
        assert shown.encode("utf-8", "surrogateescape") == name


def test_nobody_watches_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal, or with -q, there is nothing to report progress to."""
    with output.progress("working") as report:
        assert report is None
    monkeypatch.setattr(sys, "stderr", Terminal())
    settings.quiet = True
    with output.progress("working") as report:
        assert report is None


def test_short_work_has_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a second has gone by nothing is drawn, and rich is not imported for it."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(output, "PROGRESS_DELAY_S", 3600.0)
    with output.progress("working") as report:
        assert report is not None
        report(1, 2)

    assert terminal.getvalue() == ""


def test_long_work_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal, work that takes longer is shown as a bar on stderr, and nothing on stdout."""
    terminal, out = Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(output, "PROGRESS_DELAY_S", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    with output.progress("working hard") as report:
        assert report is not None
        report(1, 2)
        report(2, 2)

    assert "working hard" in terminal.getvalue()
    assert out.getvalue() == ""


@pytest.mark.parametrize(
    ("time_s", "timezone_s", "text"),
    [
        (0, 0, "1970-01-01T00:00:00+00:00"),
        (1_700_000_000, 7200, "2023-11-15T00:13:20+02:00"),
        (1_700_000_000, -12_600, "2023-11-14T18:43:20-03:30"),
        (1 << 62, 0, f"@{1 << 62}"),
    ],
)
def test_times_are_rfc_3339(time_s: int, timezone_s: int, text: str) -> None:
    """A time is given at its own offset; one that no calendar holds stays a number."""
    assert views.iso_time(time_s, timezone_s) == text


def make_state(message: str = "Message", agent: Agent | None = None) -> State:
    return State(
        id=b"1" * 40,
        tree=b"2" * 40,
        parents=(),
        principal=Principal("Ann", "ann@x"),
        committer=Principal("Ann", "ann@x"),
        agent=agent,
        change_id="k" * 32,
        thread="main",
        message=message,
        time_s=0,
        timezone_s=0,
        committed_s=0,
    )


def test_a_state_without_a_message() -> None:
    """An empty message is said to be none."""
    assert views.state_line(make_state("")).endswith(" (no message)")
    assert list(views.state_lines(make_state("")))[1:] == [
        "Ann <ann@x> on main, 1970-01-01 00:00:00+00:00"
    ]


def test_a_state_in_full() -> None:
    """In full, ids are whole and the agent's session and task are told."""
    state = make_state(agent=Agent(None, "opus", "s-1", "t-1"))

    assert list(views.state_lines(state, ["main"], full=True)) == [
        f"{'1' * 40} {'k' * 32} (main)",
        "Ann <ann@x> via opus on main, 1970-01-01 00:00:00+00:00",
        "session s-1",
        "task t-1",
        "  Message",
    ]


def test_a_message_can_not_color_the_terminal() -> None:
    """Escape sequences of a message are shown, not sent."""
    lines = list(views.state_lines(make_state("a\x1b[31mb\n\x07")))

    assert lines[2:] == ["  a\\x1b[31mb", "  \\x07"]
