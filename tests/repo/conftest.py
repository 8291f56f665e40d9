"""A real repository for every test, and a short way to put states into it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from histories import History

from heddle.repo.repository import Repository


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[Repository]:
    """An empty repository."""
    repo = Repository.init(tmp_path / "repo")
    yield repo
    repo.close()


@pytest.fixture
def history(repo: Repository) -> History:
    """States for ``repo``."""
    return History(repo)
