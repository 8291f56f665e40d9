"""Stock git beside heddle: repositories to work in, and git to ask."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import heddle
from heddle import api

Git = Callable[..., str]

IDENTITY = {
    "GIT_AUTHOR_NAME": "Git User",
    "GIT_AUTHOR_EMAIL": "git@example.org",
    "GIT_COMMITTER_NAME": "Git User",
    "GIT_COMMITTER_EMAIL": "git@example.org",
    "GIT_CONFIG_NOSYSTEM": "1",
}


def run_git(where: Path, *args: str | Path, code: int | None = 0) -> str:
    """Run git in a directory and return what it printed; fails unless it exits with ``code``."""
    done = subprocess.run(
        ["git", "-C", str(where), *map(str, args)],
        env={**os.environ, **IDENTITY},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
    )
    assert code is None or done.returncode == code, (args, done)
    return done.stdout.decode(errors="surrogateescape").strip()


@pytest.fixture
def git(tmp_path: Path) -> Git:
    """Run git in ``work``, or elsewhere with ``at``."""

    def run(*args: str | Path, at: Path | None = None, code: int | None = 0) -> str:
        return run_git(at or tmp_path / "work", *args, code=code)

    return run


@pytest.fixture
def checkout(tmp_path: Path, git: Git, nothing_left: None) -> Path:
    """A git checkout with two commits on ``main``."""
    path = tmp_path / "work"
    path.mkdir()
    git("init", "-q", "-b", "main")
    commit_file(path, "a.txt", "one\n")
    commit_file(path, "b.txt", "two\n")
    return path


@pytest.fixture
def repo(checkout: Path) -> api.Repository:
    """A heddle repository on that checkout."""
    heddle.init(checkout)
    return heddle.open(checkout)


def commit_file(path: Path, name: str, content: str) -> str:
    """Write a file and commit it with git; returns the commit."""
    (path / name).parent.mkdir(parents=True, exist_ok=True)
    (path / name).write_text(content)
    run_git(path, "add", name)
    run_git(path, "commit", "-q", "-m", f"Change {name}")
    return run_git(path, "rev-parse", "HEAD")


def state(repo: api.Repository, thread: str) -> str:
    """Where a thread is, as git would print it."""
    found = repo.threads.get(thread).state
    return found.decode() if found else ""


def refs(path: Path) -> dict[str, str]:
    """Every ref of a git repository with what it names, HEAD's target included."""
    listed = run_git(path, "for-each-ref", "--format=%(refname) %(objectname) %(symref)")
    return dict(line.rstrip().split(" ", 1) for line in listed.splitlines())


def objects(path: Path) -> set[str]:
    """Every object that the refs of a git repository reach."""
    return {
        line.split()[0] for line in run_git(path, "rev-list", "--objects", "--all").splitlines()
    }
