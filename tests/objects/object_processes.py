"""Scripts in interpreters of their own, for crashes, limits and races."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path


def start(script: str, *arguments: str | Path, fault: str = "") -> subprocess.Popen[str]:
    """Start a Python script; it can be killed at a fault point."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, "HEDDLE_FAULT": fault},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(script: str, *arguments: str | Path) -> str:
    """Run a Python script that has to succeed; returns what it printed."""
    process = start(script, *arguments)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    return out


def killed_at(point: str, script: str, *arguments: str | Path) -> None:
    """Run a Python script that has to die by SIGKILL at a fault point."""
    process = start(script, *arguments, fault=point)
    _, error = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, f"{point} was not reached: {error}"
