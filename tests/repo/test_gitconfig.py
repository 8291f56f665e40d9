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


def add(content: bytes) -> bytes:
    return content + b"new"


@pytest.mark.parametrize("left", [b"[a]\nnew", b"[b]", b""])
def test_a_lock_of_another_s(tmp_path: Path, left: bytes) -> None:
    """It is not broken, whatever is in it."""
    path, lock = tmp_path / "config", tmp_path / "config.lock"
    path.write_bytes(b"[a]\n")
    lock.write_bytes(left)
    with pytest.raises(Busy, match="is locked by"):
        gitconfig.edit(path, add)

    assert (path.read_bytes(), lock.read_bytes()) == (b"[a]\n", left)
    assert sorted(tmp_path.glob("config*")) == [path, lock]


@pytest.mark.parametrize("names", [["config.heddle"], ["config.heddle", "config.lock"]])
def test_what_a_kill_left(tmp_path: Path, names: list[str]) -> None:
    """A file that was not whole, and a lock of ours, are in nobody's way."""
    path = tmp_path / "config"
    path.write_bytes(b"[a]\n")
    (tmp_path / names[0]).write_bytes(b"[a]")
    for name in names[1:]:
        (tmp_path / name).hardlink_to(tmp_path / names[0])
    gitconfig.edit(path, add)

    assert path.read_bytes() == b"[a]\nnew"
    assert list(tmp_path.glob("config*")) == [path]


def test_a_kill_is_cleared_up_by_who_has_nothing_to_change(linked: GitDir) -> None:
    """An unmount takes the lock away also where our lines did not come into force."""
    config = linked.common / "config"
    (linked.common / "config.heddle").write_bytes(config.read_bytes() + worktreeconfig.OURS)
    (linked.common / "config.lock").hardlink_to(linked.common / "config.heddle")
    worktreeconfig.turn_off(linked)

    assert list(linked.common.glob("config*")) == [config]


def test_git_was_first(tmp_path: Path) -> None:
    """What git wrote between our look at the file and our lock stays."""
    path = tmp_path / "config"
    path.write_bytes(b"[a]\n")

    def change(content: bytes) -> bytes:
        if content == b"[a]\n":
            path.write_bytes(b"[a]\n\tb = c\n")
        return add(content)

    gitconfig.edit(path, change)

    assert path.read_bytes() == b"[a]\n\tb = c\nnew"
    assert list(tmp_path.glob("config*")) == [path]


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
    worktreeconfig.turn_off(linked)
    assert config.read_bytes().endswith(b"[a]\n\tb = c")


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


def said(linked: GitDir) -> list[str]:
    return sorted(git(linked.checkout, "config", "--local", "--list").stdout.splitlines())


SAYS = [
    ["extensions.partialClone", "origin"],
    ["extensions.worktreeConfig", "false"],
    ["extensions.worktreeConfig", "true"],
    ["--unset", "extensions.worktreeConfig"],
    ["a.b", "c"],
]
"""What an owner may say while our lines are there."""


@pytest.mark.parametrize("first", SAYS, ids=lambda it: " ".join(it))
@pytest.mark.parametrize("then", SAYS, ids=lambda it: " ".join(it))
def test_what_the_owner_says_meanwhile(linked: GitDir, first: list[str], then: list[str]) -> None:
    """It counts when our lines are gone, as if they had never been, and none of ours is left."""
    config = linked.common / "config"
    config.write_bytes(config.read_bytes() + b"[z]\n\ty = x\n")
    before = config.read_bytes()
    for words in (first, then):
        git(linked.checkout, "config", *words)
    expected = said(linked)
    config.write_bytes(before)

    worktreeconfig.turn_on(linked)
    for words in (first, then):
        git(linked.checkout, "config", *words)
    worktreeconfig.turn_off(linked)

    assert b"heddle" not in config.read_bytes()
    assert said(linked) == expected


def test_text_behind_ours(linked: GitDir) -> None:
    """What somebody has written behind our lines is, to the byte, what is left."""
    config = linked.common / "config"
    before = config.read_bytes()
    worktreeconfig.turn_on(linked)
    more = b"\n# mine\n[z]\n\ty = x\n"
    config.write_bytes(config.read_bytes() + more)
    worktreeconfig.turn_off(linked)

    assert config.read_bytes() == before + more
