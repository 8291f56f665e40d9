"""The tests on real mounts once more, as a user without privileges, where those who run them are root.

That is how most people use Heddle, and how none of these tests runs in a container. ``script/as-nobody`` gives the
user what a usual machine has: a FUSE device open to all, a line in fuse.conf, a way to this tree and its interpreter.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import heddle

TESTS = Path(__file__).parent
WANTED = [
    "test_lifecycle.py",
    "test_posix.py",
    "test_posix_model.py",
    "test_programs.py",
    "test_system_calls.py",
    "../git/test_mounted.py",
]


def test_mounts_work_for_an_ordinary_user() -> None:
    """Everything that a mount promises holds for a session and programs without privileges."""
    if os.geteuid() != 0:
        return  # then all tests here are an ordinary user's
    place = Path(f"/tmp/heddle-test-{os.getpid()}")
    package = Path(heddle.__file__).resolve().parent.parent
    reached = [package, Path(sys.prefix), Path(sys.base_prefix).resolve(), TESTS]
    pytest = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
    where = [f"--rootdir={TESTS.parent}", f"--basetemp={place / 'home' / 't'}"]
    done = subprocess.run(
        [
            *[TESTS.parents[1] / "script/as-nobody", place, *reached, "--"],
            *[*pytest, *where, *(TESTS / name for name in WANTED)],
        ],
        cwd="/",
        env={
            **os.environ,
            "PYTHONPATH": str(package),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HEDDLE_MODEL_EXAMPLES": "25",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )

    assert done.returncode == 0, done.stdout
    assert not place.exists()
