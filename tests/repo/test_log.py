"""History: order, filters, laziness and times as people write them."""

from __future__ import annotations

import random
import time
from itertools import product

import pytest

from heddle.attribution import Agent
from heddle.errors import DataError, ObjectMissing, UsageError
from heddle.repo.log import is_ancestor, parse_time


def messages(states) -> list[str]:
    """The messages of states, without their newlines."""
    return [state.message.rstrip("\n") for state in states]


@pytest.fixture
def diamond(repo, history):
    """first - (left | right) - merge, left made before right."""
    first = history.commit("first")
    left = history.commit("left", parents=[first])
    right = history.commit("right", parents=[first])
    merge = history.commit("merge", parents=[left, right])
    repo.threads.create("work", merge)
    return first, left, right, merge


def test_newest_first_over_all_parents(repo, diamond):
    """Every state once, newest first, through all parents."""
    assert messages(repo.log("work")) == ["merge", "right", "left", "first"]


def test_ties_are_stable(repo, history):
    """States of the same second come in the order they are reached, the first parent's first."""
    first = history.commit("first", time_s=5)
    sides = [history.commit(f"side {n}", parents=[first], time_s=5) for n in range(3)]
    merge = history.commit("merge", parents=sides, time_s=5)

    for _ in range(2):
        assert messages(repo.log([merge])) == ["merge", "side 0", "side 1", "side 2", "first"]


def test_topological_order_with_wrong_clocks(repo, history):
    """Topological order never shows a state before one that comes from it, though clocks were wrong."""
    first = history.commit("first", time_s=100)
    late = history.commit("late", parents=[first], time_s=10)
    base = history.commit("base", parents=[first], time_s=90)
    merge = history.commit("merge", parents=[late, base], time_s=200)

    assert messages(repo.log([merge])) == ["merge", "base", "first", "late"]
    assert messages(repo.log([merge], topological=True)) == ["merge", "base", "late", "first"]


def test_several_starts(repo, diamond):
    """From several states each is shown once."""
    _, left, right, _ = diamond

    assert messages(repo.log([left, right, left])) == ["right", "left", "first"]


def test_limit(repo, diamond):
    """No more than the limit; none for zero."""
    assert messages(repo.log("work", limit=2)) == ["merge", "right"]
    assert messages(repo.log("work", limit=0)) == []


def test_agent(repo, history):
    """The agent filter finds text in provider/model, in any case; people's states don't match."""
    history.capture(message="person")
    history.capture(message="opus", agent=Agent("anthropic", "claude-opus"))
    history.capture(message="other", agent=Agent("acme", None))

    assert messages(repo.log(agent="OPUS")) == ["opus"]
    assert messages(repo.log(agent="anthropic/cl")) == ["opus"]
    assert messages(repo.log(agent="c")) == ["other", "opus"]
    assert messages(repo.log(agent="", limit=1)) == ["other"]


def test_since(repo, history):
    """Only states that are not older; a wrong clock in between hides nothing newer."""
    for time_s in (100, 200, 50, 300):
        history.capture(message=str(time_s), time_s=time_s)

    assert messages(repo.log(since=200)) == ["300", "200"]
    assert messages(repo.log(since=301)) == []


def test_since_stops(repo, history, monkeypatch):
    """Old history is not read when only the newest is asked for."""
    for _ in range(100):
        history.capture()
    newest = repo.state("HEAD").time_s
    read = count_states(repo, monkeypatch)

    assert len(list(repo.log(since=newest - 1))) == 2
    assert len(read) < 30


def test_limit_reads_a_handful(repo, history, monkeypatch):
    """log -n 1 of a long history reads the first state and its parents, no more."""
    for _ in range(100):
        history.capture()
    read = count_states(repo, monkeypatch)

    assert len(list(repo.log(limit=1))) == 1
    assert len(read) <= 2


def count_states(repo, monkeypatch) -> list[bytes]:
    """Record the id of every object that is read from now on."""
    read = []
    original = repo.store.get_raw
    monkeypatch.setattr(repo.store, "get_raw", lambda id: read.append(id) or original(id))
    return read


def test_paths(repo, history):
    """Only states where one of the paths differs from the first parent's, however it differs."""
    steps = {
        "add": {b"d/f": b"1", b"g": b"1"},
        "other": {b"d/f": b"1", b"g": b"2"},
        "change": {b"d/f": b"2", b"g": b"2"},
        "nothing": {b"d/f": b"2", b"g": b"2"},
        "remove": {b"g": b"2"},
        "directory": {b"g/h": b"2"},
    }
    for message, files in steps.items():
        history.capture(message=message, files=files)

    assert messages(repo.log(paths=[b"d/f"])) == ["remove", "change", "add"]
    assert messages(repo.log(paths=[b"d/"])) == ["remove", "change", "add"]
    assert messages(repo.log(paths=[b"g"])) == ["directory", "other", "add"]
    assert messages(repo.log(paths=[b"g/h", b"x"])) == ["directory"]
    assert messages(repo.log(paths=[b""])) == ["directory", "remove", "change", "other", "add"]
    assert messages(repo.log(paths=[b"g"], limit=1)) == ["directory"]


def test_paths_of_a_merge(repo, history):
    """A merge is compared with its first parent alone."""
    base = history.commit("base", files={b"f": b"1"})
    left = history.commit("left", parents=[base], files={b"f": b"1", b"l": b""})
    right = history.commit("right", parents=[base], files={b"f": b"2"})
    merge = history.commit("merge", parents=[left, right], files={b"f": b"2", b"l": b""})

    assert messages(repo.log([merge], paths=[b"f"])) == ["merge", "right", "base"]
    assert messages(repo.log([merge], paths=[b"l"])) == ["left"]


def test_nothing_yet(repo):
    """A thread without a state is an error before the first line."""
    with pytest.raises(DataError):
        repo.log()


def test_a_missing_parent(repo, history):
    """A parent that is not there is an error that names it, not the end of history."""
    missing = b"0123" * 10
    top = history.commit("top", parents=[missing])

    log = repo.log([top])
    assert next(log).message.rstrip() == "top"
    with pytest.raises(ObjectMissing, match=missing.decode()):
        next(log)


NOW = 1_800_000_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("now", NOW),
        ("@1700000000", 1_700_000_000),
        ("2 days ago", NOW - 2 * 86400),
        ("1 day", NOW - 86400),
        ("90s", NOW - 90),
        ("3 Hours Ago", NOW - 3 * 3600),
        ("10 min ago", NOW - 600),
        ("1w", NOW - 604800),
        ("2026-01-31T12:00:00+01:00", 1_769_857_200),
        ("2026-01-31T11:00:00Z", 1_769_857_200),
        (" 2026-01-31 11:00Z ", 1_769_857_200),
    ],
)
def test_times(text, expected):
    """Times read as people write them."""
    assert parse_time(text, NOW) == expected


def test_local_times(monkeypatch):
    """Without a zone a time is local; today and yesterday begin at local midnight."""
    monkeypatch.setenv("TZ", "XXX-02:00")
    time.tzset()
    try:
        midnight = parse_time("2027-01-15", NOW)
        assert midnight == 1_799_964_000
        assert parse_time("today", NOW) == midnight
        assert parse_time("yesterday", NOW) == midnight - 86400
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    "text",
    ["", "soon", "2026-13-01", "5 parsecs ago", "@x", "-1 days", "9" * 30],
)
def test_what_is_no_time(text):
    """What can't be read as a time is a usage error that shows how one looks."""
    with pytest.raises(UsageError) as caught:
        parse_time(text, NOW)

    assert "2026-01-31" in caught.value.hint


@pytest.mark.parametrize("seed", range(8))
def test_ancestors_with_wrong_clocks(repo, history, seed):
    """What comes from what is told rightly in any history, whatever the clocks said."""
    chance = random.Random(seed)
    made, above = [], {}
    for number in range(14):
        parents = chance.sample(made, min(len(made), chance.choice([0, 1, 1, 2, 3])))
        id = history.commit(f"{number}", parents=parents, time_s=chance.randrange(1, 6))
        above[id] = {id}.union(*(above[parent] for parent in parents))
        made.append(id)

    for old, new in product(made, repeat=2):
        assert is_ancestor(repo, old, new) is (old in above[new])


def test_what_moved_apart_near_its_end(repo, history, monkeypatch):
    """Whether two states of a long history come from each other is told without reading all of it."""
    tip = None
    for number in range(200):
        tip = history.commit(f"{number}", parents=[tip] if tip else [])
    sides = [history.commit(side, parents=[tip]) for side in ("left", "right")]
    read, state = [], repo.state
    monkeypatch.setattr(type(repo), "state", lambda _, id: read.append(id) or state(id))

    assert not is_ancestor(repo, *sides)
    assert is_ancestor(repo, tip, sides[0])
    assert len(read) < 12
