"""The journal of a view: what changed since a token was given, or that nobody can tell."""

from __future__ import annotations

import pytest

from heddle.mount import journal
from heddle.mount.journal import Journal
from heddle.mount.nodes import DirNode

ROOT = DirNode(1, None, b"", None)


class Clock:
    now_ns = 0

    def pass_s(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The journal's; it stands still."""
    clock = Clock()
    monkeypatch.setattr("heddle.mount.journal.time.monotonic_ns", lambda: clock.now_ns)
    return clock


def paths(kept: Journal, token: bytes) -> list[bytes]:
    changes = kept.since(token)
    assert changes is not None
    assert changes.files == frozenset()
    return sorted(changes.paths)


def test_changes_since_a_token(clock: Clock) -> None:
    """A name is told to everybody who asks with an older token, but to nobody who must have seen it."""
    kept = Journal()
    first = kept.token()
    clock.pass_s(10)
    kept.note(ROOT, b"a")
    kept.note(ROOT, b"a")
    clock.pass_s(10)
    second = kept.token()
    clock.pass_s(1)
    kept.note(ROOT, b"b")

    assert paths(kept, first) == [b"a", b"b"]
    assert paths(kept, second) == [b"b"]
    clock.pass_s(10)
    assert paths(kept, kept.token()) == []


def test_what_may_not_have_been_seen(clock: Clock) -> None:
    """What changed just before a question is told again: the kernel may have shown what was before."""
    kept = Journal()
    kept.note(ROOT, b"a")
    clock.pass_s(1)
    assert paths(kept, kept.token()) == [b"a"]
    kept.forget()
    clock.pass_s(1)
    assert kept.since(kept.token()) is None


def test_files_of_several_names(clock: Clock) -> None:
    """They are told like names, by their inodes."""
    kept = Journal()
    first = kept.token()
    clock.pass_s(10)
    kept.note_file(7)
    clock.pass_s(10)

    assert kept.since(first) == ([], frozenset([7]))
    assert kept.since(kept.token()) == ([], frozenset())


def test_paths_as_they_are_now() -> None:
    """What was noted in a directory that was moved is told by its present path, and nothing of one that is gone."""
    kept = Journal()
    token = kept.token()
    above, gone = DirNode(2, ROOT, b"old", None), DirNode(3, ROOT, b"gone", None)
    kept.note(DirNode(4, above, b"dir", None), b"name")
    kept.note(gone, b"name")
    above.name = b"new"
    gone.parent, gone.orphan = None, True

    assert paths(kept, token) == [b"new/dir/name"]


@pytest.mark.parametrize(
    "token", [b"", b"1", b"heddle:", b"heddle:0:1", b"heddle:0000000000000000:1", b"1600000000"]
)
def test_tokens_of_others(token: bytes) -> None:
    """To whoever comes with a token that was not given here, nothing can be told."""
    kept = Journal()
    kept.token()

    assert kept.since(token) is None
    assert kept.since(Journal().token()) is None
    assert kept.since(kept.token() + b"x") is None


def test_too_much_to_remember(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a limit all is forgotten, and older tokens are worth nothing; new ones are."""
    monkeypatch.setattr(journal, "_LIMIT", 3)
    kept = Journal()
    old = kept.token()
    for number in range(4):
        kept.note(ROOT, b"%d" % number)

    assert kept.since(old) is None
    clock.pass_s(10)
    new = kept.token()
    kept.note(ROOT, b"x")
    assert paths(kept, new) == [b"x"]
