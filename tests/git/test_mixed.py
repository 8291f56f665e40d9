"""Git and heddle in turns, in the checkout and in mounts: neither undoes what the other did or was told to leave."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from world import wait_until

import heddle
from heddle import api
from heddle.commands.failures import as_heddle_error
from heddle.errors import DataError, ThreadMoved, UnsavedChanges

from .conftest import Git, commit_file, run_git, state

Mounted = tuple[api.Repository, Path]


@pytest.fixture
def mine(repo: api.Repository, git: Git, tmp_path: Path) -> Iterator[Mounted]:
    """A repository with two directories, and a mount of its thread ``agent`` in which git was used."""
    for name in ("one/f", "two/g", "two/h"):
        commit_file(repo.path, name, f"{name}\n")
    opened = heddle.open(repo.path)
    place = opened.mount("agent", tmp_path / "mnt", create=True).mountpoint
    assert git("status", "--porcelain", at=place) == ""
    yield opened, place
    opened.unmount(force=True)


def changed(state: str, at: Path) -> list[str]:
    return run_git(at, "diff-tree", "-r", "--name-status", f"{state}~1", state).splitlines()


@pytest.mark.parametrize("where", ["checkout", "mount"])
@pytest.mark.parametrize("sparse_index", ["--no-sparse-index", "--sparse-index"])
def test_a_sparse_checkout(mine: Mounted, git: Git, where: str, sparse_index: str) -> None:
    """What git leaves out of a checkout is not deleted, and can be had again."""
    repo, place = mine
    at = repo.path if where == "checkout" else place
    git("sparse-checkout", "set", sparse_index, "one", at=at)
    (at / "one/f").write_text("changed\n")
    inside = heddle.open(at)
    assert not (at / "two").exists()
    assert [change.path for change in inside.status().changes] == [b"one/f"]
    made = inside.capture(message="Sparse").state.id.decode()

    assert changed(made, repo.path) == ["M\tone/f"]
    assert git("status", "--porcelain", at=at) == ""
    assert not heddle.open(at).status().changes
    git("sparse-checkout", "disable", at=at)
    assert (at / "two/g").read_text() == "two/g\n"
    assert not heddle.open(at).status().changes


def test_a_sparse_checkout_is_switched(mine: Mounted, git: Git) -> None:
    """What git leaves out is nobody's unsaved deletion: a switch writes what differs there."""
    repo, _ = mine
    git("switch", "-q", "-c", "other")
    commit_file(repo.path, "two/g", "another\n")
    commit_file(repo.path, "one/f", "another\n")
    git("switch", "-q", "main")
    git("sparse-checkout", "set", "one")
    assert not (repo.path / "two").exists()

    heddle.open(repo.path).switch("other")
    assert (repo.path / "one/f").read_text() == (repo.path / "two/g").read_text() == "another\n"
    assert git("status", "--porcelain") == ""
    (repo.path / "two/g").unlink()
    with pytest.raises(UnsavedChanges):
        heddle.open(repo.path).switch("main")


@pytest.mark.parametrize("where", ["checkout", "mount"])
@pytest.mark.parametrize("version", ["3", "4"])
def test_what_is_hidden_from_git(mine: Mounted, git: Git, where: str, version: str) -> None:
    """A file with the skip-worktree bit is as its state has it, whatever is there, or nothing."""
    repo, place = mine
    at = repo.path if where == "checkout" else place
    git("update-index", f"--index-version={version}", at=at)
    git("update-index", "--skip-worktree", "one/f", "two/g", at=at)
    (at / "one/f").write_text("password\n")
    (at / "two/g").unlink()
    (at / "two/h").unlink()
    made = heddle.open(at).capture(message="Not that").state.id.decode()

    assert changed(made, repo.path) == ["D\ttwo/h"]
    assert (at / "one/f").read_text() == "password\n"
    assert git("ls-files", "-t", "one", "two", at=at).splitlines() == ["S one/f", "S two/g"]


def test_a_sparse_mount_whose_session_died(mine: Mounted, git: Git) -> None:
    """A capture without a session knows what git left out of the mount too, and so does one after an unmount."""
    repo, place = mine
    repo.config.set("mount.restarts", "0")
    git("sparse-checkout", "set", "one", at=place)
    for number in range(2):
        (place / "one/f").write_text(f"changed {number}\n")
        if number == 0:
            pid = heddle.open(repo.path).mounts()[0].pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not place.is_mount() or repo.mounts()[0].state == "stale", "its end")
        else:
            heddle.open(repo.path).unmount("agent")
        made = heddle.open(repo.path).capture(message="Alone", thread="agent").state.id.decode()

        assert changed(made, repo.path) == ["M\tone/f"]
        heddle.open(repo.path).mount("agent", place)


def test_expired_reflogs(mine: Mounted, git: Git) -> None:
    """A branch that others moved is followed, and not taken back, where no reflog says who moved it."""
    repo, place = mine
    git("reflog", "expire", "--expire=now", "--all")
    to = git("commit-tree", "-p", "main", "-m", "Others", git("rev-parse", "main~1^{tree}"))
    git("update-ref", "refs/heads/agent", to)
    heddle.open(repo.path)

    assert not (place / "two/h").exists()
    assert not heddle.open(place).status().changes
    assert state(heddle.open(place), "agent") == to


def test_a_mount_that_could_not_follow(mine: Mounted, git: Git) -> None:
    """One with unsaved changes follows its branch as soon as it has none."""
    repo, place = mine
    to = git("commit-tree", "-p", "main", "-m", "Others", git("rev-parse", "main~1^{tree}"))
    (place / "one/f").write_text("unsaved\n")
    git("update-ref", "refs/heads/agent", to)
    heddle.open(repo.path)
    assert (place / "two/h").exists()

    git("checkout", "-q", "one/f", at=place)
    heddle.open(repo.path)

    assert not (place / "two/h").exists()
    assert git("status", "--porcelain", at=place) == ""
    assert not heddle.open(place).status().changes


def test_rules_that_come_later(mine: Mounted, git: Git) -> None:
    """What git is told to ignore while a mount lives is not captured, also in a directory that was clean before."""
    repo, place = mine
    (place / "secret").write_text("1")
    (place / "other").write_text("1")
    assert len(heddle.open(place).status().changes) == 2
    with (repo.path / ".git/info/exclude").open("a") as file:
        file.write("secret\n")
    captured = heddle.open(place).capture(message="Not the secret")

    assert changed(captured.state.id.decode(), repo.path) == ["A\tother"]
    assert heddle.open(place).status().ignored_count == 1


def test_a_switch_to_a_mounted_branch(mine: Mounted, git: Git) -> None:
    """As git does, heddle refuses to check a branch out twice; where nobody is on it any more it does not."""
    repo, place = mine
    with pytest.raises(DataError, match=str(place)):
        repo.switch("agent")
    assert git("symbolic-ref", "HEAD") == "refs/heads/main"

    repo.unmount("agent")
    repo.switch("agent")
    assert git("symbolic-ref", "HEAD") == "refs/heads/agent"


def test_a_commit_on_no_branch(mine: Mounted, git: Git) -> None:
    """What git committed in a mount with HEAD detached outlives the mount and git's gc."""
    repo, place = mine
    git("checkout", "-q", "--detach", at=place)
    made = commit_file(place, "precious", "1")
    heddle.open(repo.path).unmount("agent")
    git("gc", "-q", "--prune=now")

    assert git("cat-file", "-t", made) == "commit"


def test_a_mount_that_was_pulled_away(mine: Mounted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever stood in it is told so, and what to do."""
    repo, place = mine
    here = Path.cwd()
    try:
        monkeypatch.chdir(place)
        repo.unmount("agent", force=True)
        with pytest.raises(OSError) as caught:
            os.listdir(".")
        error = as_heddle_error(OSError(caught.value.errno, "gone"))

        assert error is not None and error.exit_code == 65 and error.hint is not None
    finally:
        os.chdir(here)


@pytest.mark.parametrize("where", ["checkout", "mount"])
def test_a_new_submodule(mine: Mounted, git: Git, tmp_path: Path, where: str) -> None:
    """The files of another repository are not taken for ours: its link is git's to record, and stays so."""
    repo, place = mine
    at = repo.path if where == "checkout" else place
    run_git(tmp_path, "init", "-q", "-b", "main", "other")
    link = commit_file(tmp_path / "other", "inside", "1")
    allowed = ("-c", "protocol.file.allow=always")
    git(*allowed, "submodule", "--quiet", "add", tmp_path / "other", "sub", at=at)
    captured = heddle.open(at).capture(message="No files of its")

    assert changed(captured.state.id.decode(), repo.path) == ["A\t.gitmodules"]
    assert [each.path for each in captured.not_recorded] == [b"sub"]
    git("commit", "-q", "-m", "The link", at=at)
    assert git("rev-parse", "HEAD:sub", at=at) == link
    assert not heddle.open(at).status().changes
    (at / "one/f").write_text("more\n")
    heddle.open(at).capture(message="With it")
    assert git("rev-parse", "HEAD:sub", at=at) == link


def test_the_way_out_of_a_moved_thread(
    mine: Mounted, git: Git, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is unsaved while the thread went elsewhere gets a thread of its own by the commands of the hint."""
    repo, place = mine
    (place / "one/f").write_text("unsaved\n")
    to = git("commit-tree", "-p", "main", "-m", "Others", git("rev-parse", "main~1^{tree}"))
    git("update-ref", "refs/heads/agent", to)
    with pytest.raises(ThreadMoved) as caught:
        heddle.open(place).capture(message="Mine")
    assert caught.value.hint is not None
    for command in caught.value.hint.split(", then "):
        words = [sys.executable, "-m", "heddle", *command.split()[1:]]
        subprocess.run(words, cwd=repo.path, check=True)
    other = heddle.open(heddle.open(repo.path).mount("agent-2", place).mountpoint)

    assert (place / "one/f").read_text() == "unsaved\n"
    assert other.capture(message="Mine").modified == 1


def test_what_is_staged(mine: Mounted, git: Git) -> None:
    """What is staged in a mount and nowhere else outlives unmount, git's gc, and mount."""
    repo, place = mine
    (place / "one/f").write_text("staged\n")
    git("add", "one/f", at=place)
    (place / "one/f").write_text("in the works\n")
    heddle.open(repo.path).unmount("agent")
    git("gc", "-q", "--prune=now")
    heddle.open(repo.path).mount("agent", place)

    assert git("status", "--porcelain", at=place) == "MM one/f"
    assert git("show", ":one/f", at=place) == "staged"
    git("commit", "-q", "-m", "The staged", at=place)
    assert git("fsck", "--strict") == ""


def test_a_mount_on_another_branch_that_is_taken(mine: Mounted, git: Git) -> None:
    """Where a mount was on another branch which somebody else has by now, git and heddle see the same changes."""
    repo, place = mine
    git("switch", "-q", "-c", "other", at=place)
    made = commit_file(place, "one/f", "of other\n")
    (place / "two/g").write_text("unsaved\n")
    heddle.open(repo.path).unmount("agent")
    git("switch", "-q", "other")
    heddle.open(repo.path).mount("agent", place)
    inside = heddle.open(place)

    assert git("status", "--porcelain", at=place) == "M two/g"
    assert git("rev-parse", "HEAD", at=place) == made
    assert [change.path for change in inside.status().changes] == [b"two/g"]
    with pytest.raises(ThreadMoved):
        inside.capture(message="Not on agent")
