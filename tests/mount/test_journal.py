"""The journal of a view: what changed since a token was given, or that nobody can tell."""

from __future__ import annotations

import pytest

from heddle.mount import journal
from heddle.mount.journal import Journal
from heddle.mount.nodes import DirNode

ROOT = DirNode(1, None, b"", None)


def told(kept: Journal, token: bytes) -> list[bytes]:
    """The paths that changed after a token, which is a good one."""
    changes = kept.since(token)
    assert changes is not None and not changes.files
    return changes.paths


def test_changes_since_a_token() -> None:
    """Each token begins anew; a name is told to everybody who asks with an older one, once."""
    kept = Journal()
    first = kept.token()
    kept.note(ROOT, b"a")
    kept.note(ROOT, b"a")
    second = kept.token()
    kept.note(ROOT, b"b")

    assert sorted(told(kept, first)) == [b"a", b"b"]
    assert told(kept, second) == [b"b"]
    assert told(kept, kept.token()) == []


def test_paths_as_they_are_now() -> None:
    """What was noted in a directory that was moved is told by its present path, and nothing of one that is gone."""
    kept = Journal()
    token = kept.token()
    above, gone = DirNode(2, ROOT, b"old", None), DirNode(3, ROOT, b"gone", None)
    kept.note(DirNode(4, above, b"dir", None), b"name")
    kept.note(gone, b"name")
    above.name = b"new"
    gone.parent, gone.orphan = None, True

    assert told(kept, token) == [b"new/dir/name"]


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


def test_too_much_to_remember(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a limit all is forgotten, and older tokens are worth nothing; new ones are."""
    monkeypatch.setattr(journal, "_LIMIT", 3)
    kept = Journal()
    old = kept.token()
    for number in range(4):
        kept.note(ROOT, b"%d" % number)

    assert kept.since(old) is None
    new = kept.token()
    kept.note(ROOT, b"x")
    assert told(kept, new) == [b"x"]
