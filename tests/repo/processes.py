"""Real processes for races and crashes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path


def race(count: int, function: Callable[[int], str]) -> list[str]:
    """Run ``function(number)`` in ``count`` forked processes that start at the same moment.

    Returns:
        What each returned, in order; ``error: …`` with a traceback where it raised.
    """
    gate_out, gate_in = os.pipe()
    pipes = []
    for number in range(count):
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.close(gate_in)
            os.read(gate_out, 1)  # ends for all at once, when the parent closes its side
            _report(writer, function, number)
        os.close(writer)
        pipes.append(reader)
    os.close(gate_out)
    os.close(gate_in)
    answers = []
    for reader in pipes:
        with os.fdopen(reader) as file:
            answers.append(file.read())
        os.wait()
    return answers


def _report(writer: int, function: Callable[[int], str], number: int) -> None:
    try:
        answer = function(number)
    except BaseException:
        answer = "error: " + traceback.format_exc()
    os.write(writer, answer.encode())
    os._exit(0)


def killed_at(point: str, script: str, *arguments: str | Path) -> None:
    """Run a Python script that has to die by SIGKILL at a fault point."""
    done = run_script(script, *arguments, environment={"HEDDLE_FAULT": point})
    assert done.returncode == -signal.SIGKILL, done.stderr


def run_script(
    script: str,
    *arguments: str | Path,
    environment: Mapping[str, str] = {},
) -> subprocess.CompletedProcess[str]:
    """Run a Python script in an interpreter of its own."""
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
