"""A thread's overlay on the base tree, without a kernel."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mount.base import OpenThread, copy_base
from mount.places import View


@pytest.fixture(autouse=True)
def no_umask() -> Iterator[None]:
    """A session has none: the kernel took the caller's away before it asks."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def thread(tmp_path: Path) -> Iterator[OpenThread]:
    """The overlay of a thread that holds nothing unsaved."""
    copy_base(tmp_path / "base")
    thread = OpenThread(tmp_path / "base")
    yield thread
    thread.close()


@pytest.fixture
def view(thread: OpenThread) -> View:
    """What the kernel has of ``thread`` until it is opened again."""
    return thread.view
