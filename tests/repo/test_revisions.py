"""State specs: every form, ambiguity, and what nothing answers to."""

from __future__ import annotations

import hashlib

import pytest
from histories import COMMIT

from heddle.errors import AmbiguousSpec, DataError, StateNotFound, UsageError
from heddle.repo.repository import Repository


@pytest.fixture
def chain(history):
    """Four states on main, oldest first."""
    return [history.capture(message=f"m{number}") for number in range(4)]


def test_head_threads_and_markers(repo, chain):
    """HEAD, @, threads and markers mean their states, with any number of steps back."""
    repo.threads.create("agent/1", chain[1])
    repo.markers.create("v1", chain[2])
    expected = {
        "HEAD": 3,
        "@": 3,
        "main": 3,
        "HEAD~0": 3,
        "HEAD~": 2,
        "@~2": 1,
        "HEAD~1~2": 0,
        "agent/1": 1,
        "agent/1~1": 0,
        "v1": 2,
        "v1~2": 0,
    }

    assert {spec: repo.resolve(spec) for spec in expected} == {
        spec: chain[number] for spec, number in expected.items()
    }


def test_head_means_the_mounted_thread(repo, chain):
    """Inside a mount HEAD and @ mean its thread, elsewhere the one of the working directory."""
    repo.threads.create("agent", chain[1])

    repo.current_thread = "agent"

    assert (repo.resolve("HEAD"), repo.resolve("@~1")) == (chain[1], chain[0])
    assert (repo.head, Repository.open(repo.path).resolve("HEAD")) == ("main", chain[3])


def test_ids_and_their_beginnings(repo, chain):
    """Full ids and beginnings of four characters or more, in either case, mean their state."""
    for state in chain:
        text = state.decode()
        for spec in (text, text[:12], text[:12].upper(), f"{text[:12]}~0"):
            assert repo.resolve(spec) == state
    assert repo.resolve(f"{chain[2].decode()}~1") == chain[1]


def test_change_ids_and_their_beginnings(repo, chain):
    """Full change ids and beginnings of four characters or more mean their state."""
    for state in chain:
        change_id = repo.state(state).change_id
        assert repo.resolve(change_id) == repo.resolve(change_id[:10]) == state
    assert repo.resolve(f"{repo.state(chain[2]).change_id}~1") == chain[1]


def test_a_prefix_only_means_states(repo, history):
    """A beginning that a tree or blob shares with a state means the state."""
    state = history.capture(files={b"f": b""})
    tree = repo.state(state).tree.decode()

    with pytest.raises(StateNotFound):
        repo.resolve(tree)
    with pytest.raises(StateNotFound):
        repo.resolve(tree[:10])


def with_a_common_beginning(history, length: int) -> list[bytes]:
    """Two stored states whose ids begin with the same characters."""
    seen = {}
    for number in range(100_000):
        raw = history.encoded(f"twin {number}", time_s=1_700_000_000, change_id="k" * 32)
        id = hashlib.sha1(b"commit %d\0" % len(raw) + raw).hexdigest()
        if id[:length] in seen:
            with history.repo.store.writer() as writer:
                found = [writer.add(COMMIT, content) for content in (seen[id[:length]], raw)]
                writer.commit()
            return found
        seen[id[:length]] = raw
    raise AssertionError("no two ids begin alike")


def test_ambiguous_id(repo, history):
    """A beginning that several states share is an error that lists them; one more character tells them."""
    one, two = with_a_common_beginning(history, 4)

    with pytest.raises(AmbiguousSpec) as caught:
        repo.resolve(one[:4].decode())

    assert caught.value.exit_code == 65
    for state in (one, two):
        assert state[:12].decode() in caught.value.message
        assert repo.state(state).message.rstrip() in caught.value.message
        assert repo.resolve(state[:12].decode()) == state


def test_ambiguous_change_id(repo, history):
    """A beginning that several changes share is an error that lists them."""
    one = history.capture(message="one", change_id="k" * 31 + "l")
    two = history.capture(message="two", change_id="k" * 31 + "m")

    with pytest.raises(AmbiguousSpec) as caught:
        repo.resolve("kkkkk")

    assert one[:12].decode() in caught.value.message
    assert two[:12].decode() in caught.value.message
    assert repo.resolve("k" * 31 + "l") == one


def test_a_rewritten_change_means_its_newest_reached_state(repo, history):
    """Of several states with one change id the newest that a thread reaches is meant."""
    change = "l" * 32
    base = history.capture()
    first = history.capture(message="first", change_id=change)
    second = history.commit("second", parents=[base], change_id=change)
    repo.publish(
        thread="main", expected=first, new=second, kind="amend", message="", attribution=None
    )
    later = history.capture(message="later")
    assert repo.resolve(change) == second

    back = history.commit("back", parents=[first])
    repo.publish(thread="main", expected=later, new=back, kind="undo", message="", attribution=None)
    assert repo.resolve(change) == first


def test_a_change_that_no_thread_reaches(repo, history):
    """Where no thread reaches any state of a change, the one published last is meant."""
    change = "m" * 32
    base = history.capture()
    states = [base]
    for message in ("first", "second"):
        states.append(history.commit(message, parents=[base], change_id=change))
        repo.publish(
            thread="main",
            expected=states[-2],
            new=states[-1],
            kind="amend",
            message="",
            attribution=None,
        )
    repo.publish(
        thread="main", expected=states[-1], new=base, kind="undo", message="", attribution=None
    )

    assert repo.resolve(change) == states[-1]


def test_a_change_id_from_elsewhere(repo, history):
    """A change id that was never published here, as of a state from git, is found in history."""
    change = "n" * 32
    strange = history.commit("strange", change_id=change)
    top = history.commit("top", parents=[strange])
    repo.threads.create("imported", top)

    assert repo.resolve(change) == repo.resolve(change[:6]) == strange


def test_a_name_wins_over_an_id(repo, chain):
    """A thread whose name looks like the beginning of an id means the thread."""
    prefix = chain[0][:6].decode()
    repo.threads.create(prefix, chain[3])

    assert repo.resolve(prefix) == chain[3]


def test_a_thread_and_a_marker_of_one_name(repo, chain):
    """A name of both is ambiguous while they differ."""
    repo.threads.create("both", chain[1])
    repo.markers.create("both", chain[1])
    repo.threads.create("apart", chain[1])
    repo.markers.create("apart", chain[2])

    assert repo.resolve("both") == chain[1]
    with pytest.raises(AmbiguousSpec, match=r"thread apart .*; marker apart"):
        repo.resolve("apart")


def test_a_thread_without_a_state(repo):
    """A thread without a state says so and what to do."""
    for spec in ("HEAD", "@", "main", "main~1"):
        with pytest.raises(DataError, match="no state yet") as caught:
            repo.resolve(spec)
        assert caught.value.hint == "heddle capture"
        assert not isinstance(caught.value, StateNotFound)


@pytest.mark.parametrize(
    "spec", ["nobody", "abc", "klm", "0" * 40, "f" * 39, "f" * 41, "deadbeef", "kkkkkkkk", "HEAD^"]
)
def test_nothing_answers(repo, chain, spec):
    """What nothing answers to is exit code 65 with a hint."""
    with pytest.raises(StateNotFound) as caught:
        repo.resolve(spec)

    assert caught.value.exit_code == 65
    assert caught.value.hint


def test_near_names_are_offered(repo, chain):
    """A mistyped name gets the names that are near."""
    repo.threads.create("agent-one", chain[0])

    with pytest.raises(StateNotFound) as caught:
        repo.resolve("agent-onr")

    assert "agent-one" in caught.value.hint


def test_too_many_steps(repo, chain):
    """Stepping behind the first state says how many there are."""
    with pytest.raises(StateNotFound, match="only 3"):
        repo.resolve("HEAD~4")


@pytest.mark.parametrize("spec", ["", "~1", "main~x", "main~-1"])
def test_what_is_no_spec(repo, chain, spec):
    """What can't be a spec at all is a usage error."""
    with pytest.raises(UsageError):
        repo.resolve(spec)


def test_common_specs_read_a_handful_of_objects(repo, history, monkeypatch):
    """Names, ids and change ids cost no walk: one object or none, whatever the length of history."""
    states = [history.capture() for _ in range(30)]
    specs = ["HEAD", "main", states[3].decode(), states[3][:10].decode()]
    specs += [repo.state(states[5]).change_id, repo.state(states[5]).change_id[:9]]
    read = []
    original = repo.store.get_raw
    monkeypatch.setattr(repo.store, "get_raw", lambda id: read.append(id) or original(id))

    for spec in specs:
        repo.resolve(spec)

    assert read == []
