"""Branches and threads in step while a thread is mounted: captures in the mount, commits beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import heddle
from heddle import api
from heddle.errors import HeddleError

from .conftest import Git, commit_file, state


@pytest.fixture
def side(repo: api.Repository, git: Git, tmp_path: Path) -> Iterator[Path]:
    """A mount of the branch ``side``."""
    git("branch", "side")
    opened = heddle.open(repo.path)
    mounted = opened.mount("side", tmp_path / "mnt").mountpoint
    yield mounted
    opened.unmount("side", force=True)


def test_a_capture_in_a_mount_moves_the_branch(side: Path, git: Git) -> None:
    """What an agent captures in its mount is a commit of the branch; the checkout is not touched."""
    (side / "agent.txt").write_text("made in a mount\n")
    captured = heddle.open(side).capture(message="By an agent")

    assert git("rev-parse", "side") == captured.state.id.decode()
    assert git("show", "side:agent.txt") == "made in a mount"
    assert git("status", "--porcelain") == ""
    assert git("fsck", "--strict") == ""


def test_a_mount_follows_what_git_commits(side: Path, repo: api.Repository, git: Git) -> None:
    """A commit that git makes on the branch is in the mount after the next command."""
    made = git("commit-tree", "-p", "main", "-m", "Git", git("rev-parse", "main~1^{tree}"))
    git("update-ref", "refs/heads/side", made)

    again = heddle.open(repo.path)

    assert state(again, "side") == made
    assert sorted(os.listdir(side)) == ["a.txt"]


def test_a_capture_in_a_mount_of_the_checked_out_branch(
    repo: api.Repository, git: Git, tmp_path: Path
) -> None:
    """The branch waits for its checkout: ``heddle switch`` brings directory, index and branch along together."""
    before = git("rev-parse", "main")
    place = repo.mount("main", tmp_path / "mnt").mountpoint
    try:
        (place / "agent.txt").write_text("made in a mount\n")
        inside = heddle.open(place)
        captured = inside.capture(message="By an agent")
    finally:
        repo.unmount("main", force=True)

    assert git("rev-parse", "main") == before
    assert git("status", "--porcelain") == ""
    assert inside.git_problems["main"].hint == "heddle switch main"

    heddle.open(repo.path).switch("main")

    assert git("rev-parse", "main") == captured.state.id.decode()
    assert (repo.path / "agent.txt").exists()
    assert git("status", "--porcelain") == ""


def test_diverged_in_a_mount_keeps_what_is_unsaved(
    side: Path, repo: api.Repository, git: Git
) -> None:
    """Git moves the branch under unsaved work: the capture is refused, and no byte of it is lost."""
    (side / "agent.txt").write_text("unsaved\n")
    git("switch", "-q", "side")
    commit_file(repo.path, "theirs.txt", "theirs\n")
    git("switch", "-q", "main")

    with pytest.raises(HeddleError) as caught:
        heddle.open(side).capture(message="Too late")

    assert caught.value.exit_code in (65, 75)
    assert (side / "agent.txt").read_text() == "unsaved\n"
