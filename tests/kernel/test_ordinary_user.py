"""The tests on real mounts once more, as a user without privileges, where those who run them are root.

That is how most people use Heddle, and how none of these tests runs in a container. A mount name space of its own
gives the user what a usual machine has (a FUSE device open to all, a line in fuse.conf, a way to this tree and its
interpreter), and ends with the test.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import heddle

NOBODY = 65534
TESTS = Path(__file__).parent
WANTED = ["test_lifecycle.py", "test_posix.py", "test_posix_model.py", "test_programs.py"]

IN_NAME_SPACE = r"""
set -eu
mknod -m 666 "$1/fuse" c 10 229
mount --bind "$1/fuse" /dev/fuse
echo user_allow_other > "$1/fuse.conf"
mount --bind "$1/fuse.conf" /etc/fuse.conf
shift
while [ "$1" != -- ]; do
    above=$1 below=$2 held=$3
    shift 3
    mkdir "$held"
    mount --bind "$above" "$held"
    mount -t tmpfs -o mode=755 tmpfs "$above"
    mkdir "$above/$below"
    mount --bind "$held/$below" "$above/$below"
done
shift
exec setpriv --reuid=65534 --regid=65534 --clear-groups -- "$@"
"""
"""Arguments: a scratch directory; a closed directory, what to open in it, where to hold it, …; ``--``; a command."""


def closed(paths: Iterable[Path]) -> list[tuple[Path, str]]:
    """The directories above some paths that the user may not pass through, with the next step on the way."""
    found: dict[Path, str] = {}
    for path in paths:
        for step in [*reversed(path.parents), path]:
            if step.parent != step and not step.parent.stat().st_mode & 0o001:
                found[step.parent] = step.name
    return list(found.items())


def test_mounts_work_for_an_ordinary_user(tmp_path: Path) -> None:
    """Everything that a mount promises holds for a session and programs without privileges."""
    if os.geteuid() != 0:
        return  # then all tests here are an ordinary user's
    scratch, place = tmp_path / "scratch", Path(f"/tmp/heddle-test-{os.getpid()}")
    scratch.mkdir()
    place.mkdir(mode=0o700)
    os.chown(place, NOBODY, NOBODY)
    package = Path(heddle.__file__).resolve().parent.parent
    way = closed([package, Path(sys.prefix), Path(sys.base_prefix).resolve(), TESTS])
    opened = [
        word
        for number, (above, below) in enumerate(way)
        for word in (str(above), below, str(scratch / str(number)))
    ]
    pytest = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
    where = [f"--rootdir={TESTS.parent}", f"--basetemp={place / 't'}"]
    done = subprocess.run(
        [
            *["unshare", "--mount", "--propagation", "private", "sh", "-c", IN_NAME_SPACE, "sh"],
            *[scratch, *opened, "--", *pytest, *where, *(TESTS / name for name in WANTED)],
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
    subprocess.run(["rm", "-rf", place], check=True)

    assert done.returncode == 0, done.stdout
