"""kill -9 of a session, or of the command that mounts or unmounts, at each of its fault points, on a real mount.

Bytes that were written and closed before are there again, nothing else has changed, fsck is clean, no mount and no
process is left, and the command that was interrupted can be given again.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from world import sessions_of, wait_until

from heddle import api
from heddle.mount import mountinfo

from .points import points
from .scenarios import FILES

_SUBREAPER = (
    36  # PR_SET_CHILD_SUBREAPER, prctl(2): sessions become our children, so we see how they end
)


@pytest.fixture
def children() -> Iterator[None]:
    """What a command leaves running is ours to wait for."""
    prctl = ctypes.CDLL(None).prctl
    prctl(_SUBREAPER, 1)
    yield
    prctl(_SUBREAPER, 0)
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


class Machine:
    """A repository with a thread ``agent``, its mount, and commands as processes."""

    def __init__(self, repo: api.Repository, place: Path, directory: Path) -> None:
        self.repo = repo
        self.place = place
        self.directory = directory
        self.killed: list[str] = []

    def heddle(self, *words: str, fault: str = "", input: str | None = None) -> int:
        """Run a command, in which (and in whose session) a point may be deadly; its exit code."""
        done = subprocess.run(
            [sys.executable, "-m", "heddle", *words],
            cwd=self.repo.path,
            env={**os.environ, "HEDDLE_FAULT": fault},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "Traceback" not in done.stderr, done.stderr
        if done.returncode == -signal.SIGKILL:
            self.killed.append(words[0])
        self.said = done.stderr
        return done.returncode

    def mount(self, fault: str = "") -> int:
        return self.heddle("mount", "agent", str(self.place), fault=fault)

    def unmount(self, *words: str, fault: str = "") -> int:
        return self.heddle("unmount", "agent", *words, fault=fault)

    def reap(self) -> None:
        """Wait for sessions that have ended; how they ended is noted."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
                    self.killed.append("session")

    def wait_for_death(self) -> None:
        """Wait until a session has been killed."""

        def dead() -> bool:
            self.reap()
            return "session" in self.killed

        wait_until(dead, "the session to be killed")


@pytest.fixture
def machine(repo: api.Repository, tmp_path: Path, children: None) -> Iterator[Machine]:
    for name, text in FILES.items():
        (repo.path / name).parent.mkdir(exist_ok=True)
        (repo.path / name).write_text(text)
    repo.capture(message="First")
    repo.threads.create("agent", repo.threads.get("main").state)
    machine = Machine(repo, tmp_path / "place", tmp_path)
    yield machine
    wait_until(lambda: (machine.reap() or sessions_of(tmp_path)) == [], "sessions to end")


def work(place: Path) -> None:
    """What a program does; every file is closed."""
    (place / "note").write_text("precious")
    (place / "a").write_text("changed")
    (place / "b").unlink()
    (place / "dir").rename(place / "moved")


def holds_the_work(place: Path) -> None:
    assert (place / "note").read_text() == "precious"
    assert (place / "a").read_text() == "changed"
    assert not (place / "b").exists() and not (place / "dir").exists()
    assert (place / "moved" / "sub" / "z").read_text() == "z\n"
    expected = {name for name in FILES if "/" not in name} - {"b"} | {"note", "moved"}
    expected |= {name.partition("/")[0] for name in FILES if "/" in name} - {"dir"}
    assert {path.name for path in place.iterdir()} == expected


# scenarios: each is killed at a point and says whom


def while_mounting(machine: Machine, point: str) -> None:
    assert machine.mount() == 0
    work(machine.place)
    assert machine.unmount() == 0
    assert machine.mount(fault=point) != 0
    machine.reap()


def while_unmounting(machine: Machine, point: str) -> None:
    """The command is killed."""
    assert machine.mount() == 0
    work(machine.place)
    assert machine.unmount(fault=point) == -signal.SIGKILL
    if "before" not in point:
        wait_until(lambda: not machine.place.exists(), "the session to tidy up")


def while_the_session_ends(machine: Machine, point: str) -> None:
    assert machine.mount(fault=point) == 0
    work(machine.place)
    machine.unmount()
    machine.wait_for_death()


def while_cleaning_up(machine: Machine, point: str) -> None:
    """The session is dead already, the command that cleans up is killed."""
    assert machine.mount() == 0
    work(machine.place)
    kill_session(machine)
    assert machine.heddle("unmount", "--stale", fault=point) == -signal.SIGKILL


def while_recovering(machine: Machine, point: str) -> None:
    """The session is dead already, the next one is killed as it comes up."""
    assert machine.mount() == 0
    work(machine.place)
    kill_session(machine)
    machine.killed.clear()
    assert machine.mount(fault=point) != 0
    machine.reap()


def while_capturing(machine: Machine, point: str) -> None:
    assert machine.mount(fault=point) == 0
    work(machine.place)
    assert machine.heddle("capture", "--thread", "agent", "-m", "x") != 0
    machine.wait_for_death()
    with pytest.raises(OSError) as caught:
        os.listdir(machine.place)
    assert caught.value.errno == errno.ENOTCONN


def kill_session(machine: Machine) -> None:
    [pid] = sessions_of(machine.directory)
    os.kill(pid, signal.SIGKILL)
    machine.wait_for_death()
    machine.killed.clear()


class Case(NamedTuple):
    scenario: Callable[[Machine, str], None]
    point: str
    who: str


CASES = [
    *(Case(while_mounting, f"mount.{name}", "mount") for name in ("before-start", "started")),
    *(
        Case(scenario, point, "session")
        for scenario in (while_mounting, while_recovering)
        for point in (
            "session.before-mount",
            "session.mounted",
            "registry.before-rename",
            "session.registered",
        )
    ),
    *(
        Case(while_unmounting, f"unmount.{name}", "unmount")
        for name in ("before-unmount", "unmounted")
    ),
    *(
        Case(while_the_session_ends, point, "session")
        for point in (
            "session.unmounted",
            "session.closed",
            "registry.before-forget",
            "registry.before-row-goes",
        )
    ),
    *(
        Case(while_cleaning_up, point, "unmount")
        for point in (
            "unmount.before-detach",
            "unmount.detached",
            "registry.before-forget",
            "registry.before-row-goes",
        )
    ),
    *(
        Case(while_capturing, point, "session")
        for point in (
            "session.prestored",
            "overlay.tree-built",
            "pack.renamed",
            "capture.before-publish",
            "overlay.captured",
        )
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda it: f"{it.scenario.__name__}-{it.point}")
def test_nothing_is_lost(machine: Machine, case: Case) -> None:
    """Whoever is killed, at whatever point: the work is there, and going on needs one command."""
    case.scenario(machine, case.point)
    assert case.who in machine.killed, f"{case.point} did not kill the {case.who}: {machine.said}"

    assert machine.mount() == 0, machine.said
    holds_the_work(machine.place)
    assert machine.unmount() == 0, machine.said

    assert machine.repo.mounts() == []
    assert [
        it for it in mountinfo.heddle_mounts() if machine.directory in it.mountpoint.parents
    ] == []
    kinds = {problem.kind for problem in machine.repo.fsck(full=True).problems}
    assert kinds <= {"missing_index"}
    assert leftovers(machine) == []


def leftovers(machine: Machine) -> list[str]:
    """What is left in the runtime directory besides locks, which are empty and stay."""
    names = os.listdir(machine.repo.runtime.path)
    return [name for name in names if not name.endswith(".lock") and name != "mounts"]


PROGRAMS: dict[str, Callable[[Path], Any]] = {
    "upper.before-whiteout": lambda place: (place / "c").unlink(),
    "upper.before-publish": lambda place: (place / "c").chmod(0o755),
    "core.file-made": lambda place: (place / "another").touch(),
    "upper.before-rename": lambda place: (place / "c").rename(place / "another"),
    "files.before-fill-ends": lambda place: (place / "e").open("a").close(),
}


@pytest.mark.parametrize("point", PROGRAMS)
def test_killed_under_a_program(machine: Machine, point: str) -> None:
    """A session that dies under a system call fails that call; what the program had closed before is there."""
    assert machine.mount() == 0
    work(machine.place)
    (machine.place / "e").chmod(0o600)
    assert machine.unmount() == 0
    assert machine.mount(fault=point) == 0
    (machine.place / "late").write_text("closed") if point != "core.file-made" else None
    with pytest.raises(OSError) as caught:
        PROGRAMS[point](machine.place)
    machine.wait_for_death()

    assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    assert machine.mount() == 0
    for name in ("another", "late"):
        with contextlib.suppress(FileNotFoundError):
            wanted = {"late": "closed"}.get(name)
            assert wanted is None or (machine.place / name).read_text() == wanted
            (machine.place / name).unlink()
    if not (machine.place / "c").exists():  # it was unlinked or renamed when the session died
        (machine.place / "c").touch()
    holds_the_work(machine.place)
    assert machine.unmount() == 0


def test_every_point_of_a_session_is_tried() -> None:
    """The points of sessions, of mounting and of unmounting in the source are those tried here."""
    ours = {
        point
        for point in points()
        if point.partition(".")[0] in ("session", "mount", "unmount", "registry")
    }

    assert ours == {
        case.point
        for case in CASES
        if case.point.partition(".")[0] in ("session", "mount", "unmount", "registry")
    }
