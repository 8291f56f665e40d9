"""Git in mounts on disks that are small, full, or two."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import heddle

from .conftest import Git

Cli = Callable[..., str]


@pytest.fixture
def cli_at() -> Cli:
    """Run a command in a directory; returns what it says to people."""

    def run(where: Path, *words: str | Path, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "heddle", *words], cwd=where, capture_output=True, text=True
        )
        assert done.returncode == code, done
        return done.stdout + done.stderr

    return run


@pytest.fixture
def small_disk(tmp_path: Path, nothing_left: None) -> Iterator[Path]:
    """A directory on a file system of its own."""
    if os.geteuid() != 0:
        pytest.fail("mounting a small tmpfs needs root: run this file with sudo", pytrace=False)
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)


def test_git_on_a_full_disk(checkout: Path, git: Git, small_disk: Path, tmp_path: Path) -> None:
    """Git works in a mount that finds no room for an index, and has one when there is room again."""
    git("clone", "-q", checkout, small_disk / "tree", at=checkout)
    repo = heddle.init(small_disk / "tree")
    place = repo.mount("agent", tmp_path / "mnt", create=True).mountpoint
    try:
        with pytest.raises(OSError, match="No space"), open(small_disk / "fill", "wb") as file:
            file.write(bytes(32 << 20))
        assert len(git("log", "--oneline", at=place).splitlines()) == 2
        assert not list((small_disk / "tree/.git/worktrees").glob("*/heddle-index"))
        (small_disk / "fill").unlink()
        assert git("status", "--porcelain", at=place) == ""
    finally:
        repo.unmount("agent", force=True)
        repo.close()


def fill(disk: Path) -> None:
    """Leave not one block."""
    for size in (1 << 20, 4096):
        with suppress(OSError), open(disk / f"fill-{size}", "wb", buffering=0) as file:
            while True:
                file.write(bytes(size))


def test_reading_on_a_full_disk(checkout: Path, git: Git, small_disk: Path, cli_at: Cli) -> None:
    """What only reads needs no room; what writes says that there is none, and changes nothing."""
    tree = small_disk / "tree"
    git("clone", "-q", checkout, tree, at=checkout)
    cli_at(tree, "init")
    before = cli_at(tree, "log", "-n", "2")
    fill(small_disk)

    assert cli_at(tree, "log", "-n", "2") == before
    for command in ("status", "show", "thread list", "diff", "mounts", "gc --dry-run", "fsck"):
        cli_at(tree, *command.split())
    said = cli_at(tree, "capture", "--allow-empty", "-m", "No room", code=74)
    assert "no space" in said.lower() and "free some space" in said
    for path in small_disk.glob("fill-*"):
        path.unlink()
    assert cli_at(tree, "log", "-n", "2") == before
    cli_at(tree, "capture", "--allow-empty", "-m", "Room")


def test_git_and_overlays_on_two_file_systems(
    checkout: Path, git: Git, small_disk: Path, tmp_path: Path
) -> None:
    """What git was in the middle of comes back where its directory and heddle's are on different file systems."""
    git("worktree", "add", "-q", small_disk / "tree", "-b", "tree")
    repo = heddle.init(small_disk / "tree")
    place = repo.mount("agent", tmp_path / "mnt", create=True).mountpoint
    try:
        (place / "new").write_text("new\n")
        git("add", "new", at=place)
        (place / "a.txt").write_text("changed\n")
        git("stash", "-q", at=place)
        git("bisect", "start", at=place)
        before = git("status", at=place)
        assert "bisecting" in before
        reflog = git("reflog", at=place)
        repo.unmount("agent")
        assert not list((checkout / ".git/worktrees").glob("heddle-*"))
        repo.mount("agent", place)

        assert git("status", at=place) == before
        assert git("reflog", at=place) == reflog
        assert not list((small_disk / "tree/.heddle/overlays/agent").glob("git*"))
        assert git("stash", "list", at=place).startswith("stash@{0}")
    finally:
        repo.unmount("agent", force=True)
        repo.close()


@pytest.mark.parametrize(
    ("size", "on_git"),
    [("1500k", False), ("2450k", False), ("1500k", True), ("2500k", True), ("3600k", True)],
)
def test_a_fetch_onto_a_full_disk(
    git: Git, small_disk: Path, tmp_path: Path, cli_at: Cli, size: str, on_git: bool
) -> None:
    """A fetch that the disk has no room for is an I/O error, keeps nothing, and works when there is room."""
    (tmp_path / "source").mkdir()
    git("init", "-q", "-b", "main", at=tmp_path / "source")
    for number in range(6):
        (tmp_path / "source" / f"f{number}").write_bytes(os.urandom(400_000))
    git("add", ".", at=tmp_path / "source")
    git("commit", "-q", "-m", "Large", at=tmp_path / "source")
    mine = small_disk / "mine"
    mine.mkdir()
    if on_git:
        git("init", "-q", "-b", "main", at=mine)
        git("remote", "add", "origin", tmp_path / "source", at=mine)
    heddle.init(mine).close()
    if not on_git:
        cli_at(mine, "remote", "add", "origin", tmp_path / "source")
    subprocess.run(["mount", "-o", f"remount,size={size}", small_disk], check=True)
    said = cli_at(mine, "fetch", code=74)

    assert "No space" in said or "no space" in said, said
    assert not list((mine / ".heddle/objects").glob("incoming-*"))
    subprocess.run(["mount", "-o", "remount,size=16m", small_disk], check=True)
    cli_at(mine, "fetch")
    cli_at(mine, "fsck", "--full")


def test_init_where_git_can_not_be_told(checkout: Path, git: Git, cli_at: Cli) -> None:
    """Where git's directory can't be written nothing is left of an init that failed; later it works."""
    inner = checkout / ".git"
    subprocess.run(["mount", "--bind", inner, inner], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", inner], check=True)
    try:
        cli_at(checkout, "init", code=73)
        assert not (checkout / ".heddle").exists()
    finally:
        subprocess.run(["umount", inner], check=True)
    cli_at(checkout, "init")
    assert git("status", "--porcelain") == ""
