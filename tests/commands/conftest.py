"""A command line to run in this process, and repositories to run it in."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from heddle.cli import main


@dataclass(frozen=True)
class Result:
    """What a run of ``heddle`` left: its exit code and what it wrote."""

    code: int
    stdout: bytes
    stderr: str

    @property
    def text(self) -> str:
        return self.stdout.decode("utf-8", "surrogateescape")

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @property
    def json(self) -> Any:
        """The one object on the one line of standard output."""
        line = self.stdout.decode("ascii")
        assert line.endswith("\n") and line.count("\n") == 1, line
        return json.loads(line)

    @property
    def error(self) -> Any:
        """The error that ``--json`` puts on the one line of stderr."""
        assert self.stderr.count("\n") == 1, self.stderr
        return json.loads(self.stderr)["error"]


Heddle = Callable[..., Result]


def run(*args: str, code: int | None = 0) -> Result:
    """Run a command line in this process and hold its exit code against ``code``; None: any."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        got = main([str(arg) for arg in args])
    result = Result(got, out.buffer.getvalue(), err.buffer.getvalue().decode())  # type: ignore[attr-defined]
    assert code is None or got == code, (args, got, result)
    return result


@pytest.fixture(autouse=True)
def here(isolated: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start in a directory of the test's own, which is no repository."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def heddle() -> Heddle:
    """Run ``heddle`` with these arguments; fails unless it exits with ``code`` (0)."""
    return run


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heddle: Heddle) -> Path:
    """A new repository, which is the current directory."""
    path = tmp_path / "work"
    heddle("init", str(path))
    monkeypatch.chdir(path)
    return path


@pytest.fixture
def captured(work: Path, heddle: Heddle) -> Path:
    """A repository with one state: ``a.txt`` and ``sub/b.txt``."""
    (work / "a.txt").write_text("one\ntwo\n")
    (work / "sub").mkdir()
    (work / "sub" / "b.txt").write_text("b\n")
    heddle("capture", "-m", "First state")
    return work
