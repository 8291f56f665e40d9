"""Changes of git's configuration: whole or not at all, under git's lock, and beside git."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from heddle.errors import Busy
from heddle.repo import gitconfig, worktreeconfig
from heddle.repo.gitlink import GitDir


def git(where: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", where, *words], capture_output=True, text=True)


@pytest.fixture
def linked(tmp_path: Path) -> GitDir:
    """A checkout of a new repository."""
    assert git(tmp_path, "init", "-q", "work").returncode == 0
    path = tmp_path / "work"
    return GitDir(path, path / ".git", path / ".git")


def test_the_file_s_mode_and_place_stay(tmp_path: Path) -> None:
    """A link leads to the same file as before, with the mode and the owner that it had."""
    real = tmp_path / "real"
    real.write_bytes(b"[a]\n")
    real.chmod(0o640)
    os.chown(real, 1234 if os.geteuid() == 0 else -1, -1)
    owner = real.stat().st_uid
    (tmp_path / "config").symlink_to(real)
    gitconfig.edit(tmp_path / "config", lambda content: content + b"\tb = c\n")

    assert (tmp_path / "config").is_symlink()
    assert real.read_bytes() == b"[a]\n\tb = c\n"
    assert (stat.S_IMODE(real.stat().st_mode), real.stat().st_uid) == (0o640, owner)
    assert not list(tmp_path.glob("*.lock"))


@pytest.mark.parametrize(
    ("left", "age_s", "taken"),
    [
        (b"[a]\nnew", 3600, False),
        (b"[a]", 3600, False),
        (b"", 3600, False),
        (b"[a]\nnew", 0, True),
        (b"[b]", 3600, True),
    ],
)
def test_a_lock(tmp_path: Path, left: bytes, age_s: int, taken: bool) -> None:
    """Another one's is not broken; one that a kill left in the middle of the same change is in nobody's way."""
    path, lock = tmp_path / "config", tmp_path / "config.lock"
    path.write_bytes(b"[a]\n")
    lock.write_bytes(left)
    when = lock.stat().st_mtime - age_s
    os.utime(lock, (when, when))
    if taken:
        with pytest.raises(Busy, match="is locked by"):
            gitconfig.edit(path, lambda content: content + b"new")
        assert (path.read_bytes(), lock.read_bytes()) == (b"[a]\n", left)
    else:
        gitconfig.edit(path, lambda content: content + b"new")
        assert (path.read_bytes(), lock.exists()) == (b"[a]\nnew", False)


def test_nothing_to_change(tmp_path: Path) -> None:
    """Then nothing is written, and no lock is in the way."""
    path = tmp_path / "config"
    path.write_bytes(b"[a]\n")
    before = path.stat().st_ino
    (tmp_path / "config.lock").touch()
    gitconfig.edit(path, lambda content: content)

    assert path.stat().st_ino == before


TOGGLE = """
import sys
from pathlib import Path
from heddle.errors import Busy
from heddle.repo import worktreeconfig
from heddle.repo.gitlink import GitDir

path = Path(sys.argv[1])
git = GitDir(path, path / ".git", path / ".git")
for number in range(40):
    try:
        worktreeconfig.turn_on(git)
    except Busy:
        pass
    worktreeconfig.turn_off(git)
"""


def test_beside_git(linked: GitDir) -> None:
    """While several turn the extension on and off, what git writes stays, and what it reads is always sound."""
    toggling = [subprocess.Popen([sys.executable, "-c", TOGGLE, linked.checkout]) for _ in range(3)]
    written = 0
    while any(each.poll() is None for each in toggling):
        done = git(linked.checkout, "config", "--add", "a.b", str(written))
        assert done.returncode == 0 or "could not lock" in done.stderr, done
        written += done.returncode == 0
    assert [each.returncode for each in toggling] == [0, 0, 0]
    worktreeconfig.turn_off(linked)

    said = git(linked.checkout, "config", "--get-all", "a.b").stdout.split()
    assert said == [str(number) for number in range(written)]
    assert written > 0
    assert not worktreeconfig.is_on(linked)
    assert worktreeconfig.OURS not in (linked.common / "config").read_bytes()


def test_without_a_last_newline(linked: GitDir) -> None:
    """Two lines are added behind the last one, whether it ends or not."""
    config = linked.common / "config"
    config.write_bytes(config.read_bytes() + b"[a]\n\tb = c")
    assert worktreeconfig.turn_on(linked)

    assert git(linked.checkout, "config", "a.b").stdout == "c\n"
    assert git(linked.checkout, "config", "extensions.worktreeConfig").stdout == "true\n"


@pytest.mark.parametrize(
    ("settings", "may"),
    [
        ({}, True),
        ({"core.repositoryFormatVersion": "1"}, False),
        ({"core.repositoryFormatVersion": "1", "extensions.partialClone": "origin"}, True),
        ({"core.repositoryFormatVersion": "1", "extensions.preciousObjects": "true"}, False),
        ({"core.bare": "true"}, False),
        ({"core.worktree": "/elsewhere"}, False),
        ({"extensions.worktreeConfig": "no"}, False),
        ({"extensions.worktreeConfig": "yes"}, True),
    ],
    ids=str,
)
def test_where_it_may_be_on(linked: GitDir, settings: dict[str, str], may: bool) -> None:
    """Not where its owner, or what else the configuration says, is against it."""
    for name, value in settings.items():
        git(linked.checkout, "config", name, value)
    before = (linked.common / "config").read_bytes()

    assert worktreeconfig.turn_on(linked) == may
    added = worktreeconfig.OURS if may and "extensions.worktreeConfig" not in settings else b""
    assert (linked.common / "config").read_bytes() == before + added
