"""What tests share: a world of their own, a repository in it, mounts that never outlive their test.

Home, configuration, runtime directory and agent of the person who runs the tests play no part. After every test
that could have mounted something, no mount and no session process may be left; what is left is cleaned up
and fails the test.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from world import processes_of

import heddle
from heddle import api
from heddle.errors import HeddleError
from heddle.mount import mountinfo, mountpoint
from heddle.mount.lifecycle import Mounted

KERNEL = Path(__file__).parent / "kernel"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test on a real mount fails where there can be none: a skip would look like success."""
    if KERNEL in item.path.parents and not mountpoint.FUSE_DEVICE.exists():
        pytest.fail(f"{mountpoint.FUSE_DEVICE} is missing; tests/kernel needs it", pytrace=False)


# a world of its own


@pytest.fixture(scope="session", autouse=True)
def no_templates_left() -> Iterator[None]:
    """What several tests begin with goes at the end."""
    yield
    if "mount.base" in sys.modules:
        sys.modules["mount.base"].remove_templates()


@pytest.fixture(autouse=True)
def isolated(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's own settings play a part."""
    for name in list(os.environ):
        if name.startswith(("HEDDLE_", "GIT_")):
            monkeypatch.delenv(name)
    if "tmp_path" not in request.fixturenames:
        return
    tmp_path: Path = request.getfixturevalue("tmp_path")
    home = tmp_path / "home"
    for directory in (home, tmp_path / "runtime"):
        directory.mkdir(mode=0o700, exist_ok=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("HEDDLE_CONFIG", str(home / "heddle.toml"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("HEDDLE_PRINCIPAL_NAME", "Ann Lee")
    monkeypatch.setenv("HEDDLE_PRINCIPAL_EMAIL", "ann@example.org")


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest, isolated: None) -> Iterator[None]:
    """After the test no mount below its directory and no session that it started is left."""
    if "tmp_path" not in request.fixturenames:
        yield
        return
    tmp_path: Path = request.getfixturevalue("tmp_path")
    yield
    left = [f"a mount at {path}" for path in _unmount_below(tmp_path)]
    left += _end_processes(tmp_path)
    if left:
        pytest.fail(f"left behind: {', '.join(left)}")


def _unmount_below(directory: Path) -> list[Path]:
    found = [
        mount.mountpoint
        for mount in mountinfo.heddle_mounts()
        if directory in mount.mountpoint.parents
    ]
    for path in reversed(found):
        mountpoint.unmount(path, lazy=True)
    return found


def _end_processes(directory: Path) -> list[str]:
    """Sessions and supervisors of the test that still run after they had time to end by themselves."""
    deadline = time.monotonic() + 5
    while (left := processes_of(directory)) and time.monotonic() < deadline:
        time.sleep(0.01)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return [f"{name} {pid}" for pid, name in left.items()]


# things to work with


@pytest.fixture
def no_restarts(tmp_path: Path, isolated: None) -> None:
    """What crashes stays down, whatever its repository: for tests about what a crash leaves."""
    (tmp_path / "home" / "heddle.toml").write_text("[mount]\nrestarts = 0\n")


@pytest.fixture
def repo(tmp_path: Path, nothing_left: None) -> api.Repository:
    """A new repository in a directory of its own, with HEAD on ``main`` and no state yet."""
    return heddle.init(tmp_path / "repo")


@pytest.fixture
def captured_repo(repo: api.Repository) -> api.Repository:
    """A repository with one state on ``main``: ``a.txt``, an executable, a link and a directory."""
    (repo.path / "a.txt").write_text("one\ntwo\n")
    (repo.path / "run").write_text("#!/bin/sh\necho ran\n")
    (repo.path / "run").chmod(0o755)
    (repo.path / "link").symlink_to("a.txt")
    (repo.path / "sub").mkdir()
    (repo.path / "sub" / "b.txt").write_text("b\n")
    repo.capture(message="First state")
    return repo


MountThread = Callable[..., Mounted]


@pytest.fixture
def mounted(repo: api.Repository) -> Iterator[MountThread]:
    """Mount a thread, making it when it is missing; unmounted after the test."""
    made: list[Mounted] = []

    def mount(thread: str = "agent-1", where: Path | None = None, **options: Any) -> Mounted:
        if not options.get("read_only"):
            options.setdefault("create", thread not in repo.threads)
        done = repo.mount(thread, where, **options)
        made.append(done)
        return done

    yield mount
    for each in reversed(made):
        try:
            repo.unmount(each.mountpoint, force=True)
        except HeddleError:
            continue  # the test ended it


@dataclass(frozen=True)
class Ran:
    """What a run of ``heddle`` as a process left."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """The one object on standard output."""
        return json.loads(self.stdout)

    @property
    def error(self) -> Any:
        """The error that ``--json`` puts on the last line of stderr."""
        return json.loads(self.stderr.splitlines()[-1])["error"]


@pytest.fixture
def cli(repo: api.Repository) -> Callable[..., Ran]:
    """Run ``heddle`` as a process in the repository (or in ``cwd``); fails unless it exits with ``code``."""

    def run(*args: str | Path, cwd: Path | None = None, code: int | None = 0, **env: str) -> Ran:
        done = subprocess.run(
            [sys.executable, "-m", "heddle", *map(str, args)],
            cwd=repo.path if cwd is None else cwd,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        ran = Ran(done.returncode, done.stdout, done.stderr)
        assert code is None or ran.code == code, (args, ran)
        return ran

    return run
