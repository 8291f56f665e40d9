"""The pack of a push: deltas as git makes them, against what the server has too; and whole objects where git can't."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from dulwich.objects import ObjectID

import heddle
from heddle import api
from heddle.errors import ObjectMissing, StorageError
from heddle.git import packing, remotes
from heddle.git.cloning import clone
from heddle.git.export import export
from heddle.git.pack import pack_pieces
from heddle.git.packing import packed, to_send
from heddle.git.pushing import PushRejected, push
from heddle.repo.locks import directory_locked

from .conftest import Git, commit_file, refs, run_git
from .servers import bare_copy

OFFERED = {b"ofs-delta"}
LINES = [f"{number} {random.Random(number).getrandbits(400):x}\n" for number in range(300)]


def commit_edits(path: Path, count: int) -> list[ObjectID]:
    """Commit edits of a text that does not shrink, in a directory of fifty other files; returns the commits."""
    (path / "src").mkdir(exist_ok=True)
    for number in range(50):
        (path / f"src/{number}").write_text(f"{number}")
    run_git(path, "add", ".")
    lines = list(LINES)
    made = []
    for number in range(count):
        lines[number % len(lines)] = f"edit {number}\n"
        made.append(ObjectID(commit_file(path, "src/text", "".join(lines)).encode()))
    return made


def sizes(repo: api.Repository, there: list[ObjectID], offered: set[bytes]) -> tuple[int, int]:
    """The bytes of what is sent of ``main``, and of the same without deltas."""
    made = sum(map(len, packed(repo, there, [tip(repo)], offered)))
    whole = pack_pieces(repo.store, to_send(repo, there, [tip(repo)]).ids)
    return made, sum(map(len, whole))


def tip(repo: api.Repository) -> ObjectID:
    state = repo.threads.get("main").state
    assert state is not None
    return state


def taken(where: Path, pieces: Iterable[bytes]) -> set[str]:
    """Have stock git take a pack in, into an empty repository; returns which objects that has now."""
    command = ["git", "-C", str(where), "index-pack", "--stdin"]
    subprocess.run(command, input=b"".join(pieces), check=True, capture_output=True)
    listed = run_git(where, "cat-file", "--batch-all-objects", "--batch-check=%(objectname)")
    return set(listed.split())


def empty(tmp_path: Path, form: str = "sha1") -> Path:
    path = tmp_path / "empty.git"
    run_git(tmp_path, "init", "-q", "--bare", f"--object-format={form}", path)
    return path


@pytest.fixture
def edited(checkout: Path) -> Iterator[tuple[api.Repository, list[ObjectID]]]:
    """On a git checkout, a text of 30 kB with 70 edits in a row."""
    commits = commit_edits(checkout, 70)
    repo = heddle.init(checkout)
    yield repo, commits
    repo.close()


@pytest.fixture
def standing_alone(
    edited: tuple[api.Repository, list[ObjectID]], tmp_path: Path
) -> Iterator[api.Repository]:
    """The same history in a repository that is on no git."""
    repo: api.Repository = clone(
        api.Repository, str(edited[0].path), tmp_path / "alone", environment=os.environ
    )[0]
    yield repo
    repo.close()


def test_an_edit_is_sent_as_one(edited: tuple[api.Repository, list[ObjectID]]) -> None:
    """What is sent of an edit of a long file is the edit, against the version that the server has."""
    repo, commits = edited
    made, whole = sizes(repo, [commits[-2]], OFFERED)

    assert made < 1000 < 15_000 < whole


def test_git_finds_out_what_is_missing(
    edited: tuple[api.Repository, list[ObjectID]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where git has what is to be sent, nobody here walks through the history."""
    repo, commits = edited
    monkeypatch.setattr(packing, "to_send", None)

    assert sum(map(len, packed(repo, [commits[3]], [tip(repo)], OFFERED))) < 100_000


def test_a_pack_that_stands_alone(
    edited: tuple[api.Repository, list[ObjectID]], tmp_path: Path
) -> None:
    """A server that takes no thin packs gets one that is whole by itself; each object of it is there after that."""
    repo, commits = edited
    sending = to_send(repo, [commits[-3]], [commits[-1]])
    offered = OFFERED | {b"no-thin"}
    found = taken(empty(tmp_path), packed(repo, [commits[-3]], [commits[-1]], offered))

    assert found == {id.hex() for id in sending.ids}
    with pytest.raises(subprocess.CalledProcessError):  # one that is thin is not
        taken(tmp_path / "empty.git", packed(repo, [commits[0]], [commits[1]], set()))


def test_a_history_is_sent_with_deltas(
    edited: tuple[api.Repository, list[ObjectID]],
    standing_alone: api.Repository,
    tmp_path: Path,
) -> None:
    """Also of a repository that is on no git: a fraction of the bytes, the same objects, and no trace of it here."""
    before = sorted((standing_alone.heddle_dir / "objects").rglob("*"))
    for repo in (edited[0], standing_alone):
        made, whole = sizes(repo, [], OFFERED)
        assert made < whole / 8
    taken(empty(tmp_path), packed(repo, [], [edited[1][-1]], set()))

    run_git(tmp_path / "empty.git", "update-ref", "refs/heads/main", edited[1][-1].decode())
    assert run_git(tmp_path / "empty.git", "fsck", "--strict") == ""
    assert sorted((standing_alone.heddle_dir / "objects").rglob("*")) == before


def test_states_that_git_has_not(
    edited: tuple[api.Repository, list[ObjectID]], tmp_path: Path
) -> None:
    """Threads that are no branches are sent with the rest, few or many."""
    repo = edited[0]
    repo.threads.create("side", repo.resolve("main"))
    target = bare_copy(repo.path, tmp_path / "target.git")
    remotes.add(repo, "target", str(target))
    for number in range(2):
        mounted = repo.mount("side", tmp_path / "mnt").mountpoint
        for name in range(1 + number * packing._FEW):
            (mounted / f"new{name}").write_text(f"{number} {name}")
        state = repo.capture(thread="side", message="New").state.id
        repo.unmount("side")
        run_git(repo.path, "update-ref", "-d", "refs/heads/side")
        run_git(repo.path, "repack", "-adq")
        assert packing._lacking(repo, to_send(repo, [], [state]).ids)
        push(repo, "target", ["side"])
        assert refs(target)["refs/heads/side"] == state.decode()
        assert run_git(target, "fsck", "--strict") == ""


def test_a_few_objects_are_not_worth_it(
    standing_alone: api.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Git is not started for objects that it would have to be given first."""
    (standing_alone.path / "new").write_text("new")
    there = tip(standing_alone)
    new = standing_alone.capture(message="New").state.id
    monkeypatch.setattr(packing, "TemporaryDirectory", None)
    sending = to_send(standing_alone, [there], [new])

    made = packed(standing_alone, [there], [new], OFFERED)
    assert list(made) == list(pack_pieces(standing_alone.store, sending.ids))


@pytest.mark.parametrize("spoil", ["missing", "failing", "full"])
def test_where_git_makes_nothing(
    spoil: str,
    standing_alone: api.Repository,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without git, with one that fails and without room for it everything is sent whole."""
    sending = to_send(standing_alone, [], [tip(standing_alone)])
    whole = list(pack_pieces(standing_alone.store, sending.ids))
    if spoil == "full":

        def full(*_: object, **__: object) -> None:
            raise StorageError("no space left on device")

        monkeypatch.setattr(packing, "write_pack", full)
    else:
        fake_git(tmp_path, monkeypatch, "exit 1" if spoil == "failing" else None)

    assert list(packed(standing_alone, [], [tip(standing_alone)], OFFERED)) == whole


def fake_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None) -> None:
    """Have a git that does something else where a pack is asked for, or none."""
    place = tmp_path / "bin"
    place.mkdir()
    if script is not None:
        (place / "git").write_text(f"#!/bin/sh\n{script}\n")
        (place / "git").chmod(0o755)
    monkeypatch.setattr(packing, "bare_environment", lambda: {"PATH": str(place)})


def test_git_breaks_off(
    edited: tuple[api.Repository, list[ObjectID]],
    tmp_path: Path,
    git: Git,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where git dies in the middle of the pack, the push fails and says so; nothing moves and nothing stays."""
    repo = edited[0]
    target = empty(tmp_path)
    remotes.add(repo, "target", str(target))
    fake_git(tmp_path, monkeypatch, "printf PACK; echo fatal: worn out >&2; exit 3")
    with pytest.raises(StorageError, match="fatal: worn out") as caught:
        push(repo, "target")

    assert caught.value.exit_code == 74
    assert refs(target) == {}
    assert list((repo.heddle_dir / "objects").glob(".tmp-*")) == []


def test_what_a_killed_push_left(edited: tuple[api.Repository, list[ObjectID]]) -> None:
    """It goes with the next push or gc; what somebody holds, or is only just making, stays."""
    repo = edited[0]
    above = repo.heddle_dir / "objects"
    dead, held, new = (above / f".tmp-outgoing-{name}" for name in ("dead", "held", "new"))
    for place in (dead, held, new):
        (place / "objects").mkdir(parents=True)
    for place in (dead, held):
        os.utime(place, (0, time.time() - 100))
    with directory_locked(held):
        sizes(repo, [], OFFERED)
        assert [place.exists() for place in (dead, held, new)] == [False, True, True]
    repo.collect()
    assert [place.exists() for place in (held, new)] == [False, True]


@pytest.mark.parametrize("limit", ["blob:none", "blob:limit=1k"])
def test_a_partial_clone_of_git_s(
    limit: str, edited: tuple[api.Repository, list[ObjectID]], tmp_path: Path
) -> None:
    """What git left out is fetched before it is sent elsewhere."""
    source = bare_copy(edited[0].path, tmp_path / "source.git")
    for key in ("allowFilter", "allowAnySHA1InWant"):
        run_git(source, "config", f"uploadpack.{key}", "true")
    run_git(tmp_path, "clone", "-q", f"--filter={limit}", f"file://{source}", "partial")
    repo = heddle.init(tmp_path / "partial")
    remotes.add(repo, "other", str(empty(tmp_path)))
    push(repo, "other")

    assert refs(tmp_path / "empty.git")["refs/heads/main"] == edited[1][-1].decode()
    assert run_git(tmp_path / "empty.git", "fsck", "--strict") == ""
    repo.close()


def test_a_clone_without_trees(
    edited: tuple[api.Repository, list[ObjectID]], tmp_path: Path
) -> None:
    """Where git left trees out, nothing is exported or pushed that lacks what is in them; both say so."""
    source = bare_copy(edited[0].path, tmp_path / "source.git")
    run_git(source, "config", "uploadpack.allowFilter", "true")
    run_git(tmp_path, "clone", "-q", "--filter=tree:0", f"file://{source}", "partial")
    repo = heddle.init(tmp_path / "partial")
    remotes.add(repo, "other", str(empty(tmp_path)))

    with pytest.raises(ObjectMissing, match="in no pack"):
        export(repo, ["main"], to=tmp_path / "exported.git")
    with pytest.raises(ObjectMissing, match="in no pack"):
        push(repo, "other")
    assert refs(tmp_path / "empty.git") == refs(tmp_path / "exported.git") == {}
    repo.close()


@pytest.mark.parametrize("may", ["true", "false"])
def test_a_shallow_clone_elsewhere(
    may: str, edited: tuple[api.Repository, list[ObjectID]], tmp_path: Path
) -> None:
    """A server that lacks where a shallow clone begins takes it if it may (``receive.shallowUpdate``), or says no."""
    run_git(tmp_path, "clone", "-q", "--depth=3", f"file://{edited[0].path}", "shallow")
    repo = heddle.init(tmp_path / "shallow")
    target = empty(tmp_path)
    run_git(target, "config", "receive.shallowUpdate", may)
    remotes.add(repo, "other", str(target))
    if may == "true":
        push(repo, "other")
        assert run_git(target, "rev-list", "--count", "main") == "3"
        assert run_git(target, "fsck", "--strict") == ""
    else:
        with pytest.raises(PushRejected, match="shallow update not allowed"):
            push(repo, "other")
        assert refs(target) == {}
    repo.close()


@pytest.mark.parametrize("form", ["sha1", "sha256"])
def test_paths_that_git_can_t_be_told(form: str, tmp_path: Path, nothing_left: None) -> None:
    """Names with line breaks and paths longer than any that git reads come along."""
    run_git(tmp_path, "init", "-q", "-b", "main", f"--object-format={form}", "odd")
    path = tmp_path / "odd"
    deep = path.joinpath(*["d" * 200] * 15)
    deep.mkdir(parents=True)
    commit_file(path, "line\nbreak/- x", "1")
    commit_file(path, str(deep.relative_to(path) / "file"), "2")
    blob = run_git(path, "rev-parse", "HEAD:line\nbreak/- x")
    tree = run_git(path, "rev-parse", "HEAD^{tree}")
    for _ in range(8):
        made = subprocess.run(
            ["git", "-C", str(path), "mktree"],
            input=f"040000 tree {tree}\t{'e' * 250}\n100644 blob {blob}\tb\n",
            capture_output=True,
            text=True,
            check=True,
        )
        tree = made.stdout.strip()
    commit = run_git(path, "commit-tree", "-m", "Deep", tree)
    repo = heddle.init(path)
    sending = to_send(repo, [], [ObjectID(commit.encode())])
    assert max(map(len, sending.paths.values())) > 4096

    pieces = packing._of_both(repo, sending, OFFERED, None)
    assert taken(empty(tmp_path, form), pieces) == {id.hex() for id in sending.ids}
    repo.close()
