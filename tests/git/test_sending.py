"""What is told to a server and what is sent to it, in comparison with git."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from dulwich.objects import ObjectID

import heddle
from heddle import api
from heddle.git.haves import IN_VAIN, Haves
from heddle.git.packing import packed, to_send
from heddle.repo import log

from .conftest import IDENTITY, run_git


@pytest.fixture
def history(tmp_path: Path, nothing_left: None) -> Path:
    """A bare repository of random merges on twenty branches, some of whose clocks went wrong, and a tag."""
    random.seed(7)
    stream = []
    for number in range(1, 601):
        when = 1_700_000_000 + number * 60 - random.choice((0, 0, 0, 0, 30_000))
        name = f"{random.randrange(5)}/{random.randrange(30)}"
        before = range(max(number - 30, 1), number)
        parents = random.sample(before, min(len(before), random.choice((1, 1, 2))))
        lines = [f"commit refs/heads/b{random.randrange(20)}", f"mark :{number}"]
        lines += [f"committer A <a@b> {when} +0000", "data 1", "m"]
        lines += [f"{'merge' if at else 'from'} :{each}" for at, each in enumerate(parents)]
        lines += [f"M 644 inline {name}", f"data {len(str(number))}", str(number), ""]
        stream.append("\n".join(lines).encode())
    run_git(tmp_path, "init", "-q", "--bare", "history.git")
    path = tmp_path / "history.git"
    made = ["git", "-C", str(path), "fast-import", "--quiet", "--force"]
    subprocess.run(made, input=b"".join(stream), check=True, env={**os.environ, **IDENTITY})
    run_git(path, "tag", "-a", "-m", "Noted", "noted", "b3~1")
    return path


@pytest.fixture
def repo(history: Path) -> Iterator[api.Repository]:
    heddle.init(history).close()
    found = heddle.open(history)
    yield found
    found.close()


def _listed(path: Path, *args: str) -> list[ObjectID]:
    return [
        cast("ObjectID", line.split()[0].encode()) for line in run_git(path, *args).splitlines()
    ]


def _below(path: Path, ids: list[ObjectID]) -> set[ObjectID]:
    names = [id.decode() for id in ids]
    return set(_listed(path, "rev-list", "--objects", *names) if names else ())


def test_what_is_sent_is_what_is_missing(repo: api.Repository, history: Path) -> None:
    """For any branches here and there, also of wrong clocks: all that is missing, and nothing twice."""
    tips = _listed(history, "for-each-ref", "--format=%(objectname)")
    sent = needless = 0
    for number in range(30):
        random.seed(number)
        there, wanted = random.sample(tips, random.randrange(6)), random.sample(tips, 2)
        missing = _below(history, wanted) - _below(history, there)
        found = [each.hex().encode() for each in to_send(repo, there, wanted).ids]

        assert len(set(found)) == len(found)
        assert missing <= set(found) <= _below(history, wanted)
        sent += len(found)
        needless += len(set(found) - missing)
    assert needless < sent / 4


def test_one_new_state_costs_no_walk(
    repo: api.Repository, history: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what a push of one state on top of a branch of the server's looks at, nothing grows with the history."""
    tip = run_git(history, "rev-parse", "b5")
    tree = run_git(history, "rev-parse", "b5^{tree}")
    new = run_git(history, "commit-tree", "-p", tip, "-m", "x", tree).encode()
    reached: list[int] = []
    step = log._Sides.step
    monkeypatch.setattr(log._Sides, "step", lambda self: reached.append(1) or step(self))

    assert to_send(repo, [tip.encode()], [new]).ids == [bytes.fromhex(new.decode())]
    assert len(reached) < 3


def test_a_server_is_told_first_what_it_had(repo: api.Repository, history: Path) -> None:
    """What the server had comes first, then what is here, newest first, and no more than is worth it."""
    old = cast("ObjectID", run_git(history, "rev-parse", "b7~2").encode())
    heads = _listed(history, "for-each-ref", "--format=%(objectname)", "refs/heads/")
    haves = Haves(repo)
    haves.begin([old, cast("ObjectID", b"f" * 40)], heads)
    told = list(iter(haves.__next__, None))
    times = [repo.state(cast("ObjectID", id)).committed_s for id in told[1:]]

    assert (told[0], len(told), len(set(told))) == (old, IN_VAIN + 1, IN_VAIN + 1)
    assert times[0] == max(times) and times[0] > times[-1]


def test_what_the_server_has_is_not_told_again(repo: api.Repository, history: Path) -> None:
    """After a server has said that it has a state, none that this comes from is told."""
    heads = _listed(history, "for-each-ref", "--format=%(objectname)", "refs/heads/")
    haves = Haves(repo)
    haves.begin([], heads)
    for id in heads:
        haves.ack(id)

    assert next(haves) is None


def test_a_large_object_is_sent_in_pieces(tmp_path: Path, nothing_left: None) -> None:
    """A pack that is sent is one to git, and no piece of it is as long as a large blob in it, whoever makes it."""
    repo = heddle.init(tmp_path)
    (tmp_path / "large").write_bytes(os.urandom(20 << 20))
    state = repo.capture(message="Large").state.id
    pieces = list(packed(repo, [], [state], set()))
    run_git(tmp_path, "init", "-q", "--bare", "other.git")
    index = ["git", "-C", str(tmp_path / "other.git"), "index-pack", "--stdin", "--strict"]
    subprocess.run(index, input=b"".join(pieces), check=True, capture_output=True)

    assert max(map(len, pieces)) < 2 << 20
    assert run_git(tmp_path / "other.git", "cat-file", "-t", state.decode()) == "commit"
    repo.close()
