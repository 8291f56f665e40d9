"""An empty object store for every test, and a git that no configuration of this machine reaches."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from heddle.objects.store import ObjectStore

# A busy machine must not fail a test: what is claimed here is never how long something takes.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

Git = Callable[..., bytes]


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore.create(tmp_path / "objects")


@pytest.fixture
def git(tmp_path: Path) -> Git:
    """Run git in ``tmp_path/git`` (made on first use) and return what it printed."""
    directory = tmp_path / "git"
    directory.mkdir()
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "Ann",
        "GIT_AUTHOR_EMAIL": "ann@example.org",
        "GIT_COMMITTER_NAME": "Ann",
        "GIT_COMMITTER_EMAIL": "ann@example.org",
    }

    def run(*arguments: str | Path, input: bytes = b"") -> bytes:
        done = subprocess.run(
            ["git", *map(str, arguments)],
            cwd=directory,
            env=environment,
            input=input,
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    return run
