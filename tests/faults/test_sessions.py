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
from world import processes_of, sessions_of, wait_until

import heddle
from heddle import api
from heddle.mount import mountinfo

from .points import OF_SESSIONS, points
from .scenarios import FILES

_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER, prctl(2): supervisors become our children
_KILLED = 128 + signal.SIGKILL  # how a supervisor ends whose session was killed


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
        """Wait for supervisors that have ended; how their sessions ended is noted."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if os.waitstatus_to_exitcode(status) == _KILLED:
                    self.killed.append("session")

    def wait_for_death(self) -> None:
        """Wait until a session has been killed."""

        def dead() -> bool:
            self.reap()
            return "session" in self.killed

        wait_until(dead, "the session to be killed")


@pytest.fixture
def machine(
    repo: api.Repository, tmp_path: Path, children: None, no_restarts: None
) -> Iterator[Machine]:
    for name, text in FILES.items():
        (repo.path / name).parent.mkdir(exist_ok=True)
        (repo.path / name).write_text(text)
    repo.capture(message="First")
    repo.threads.create("agent", repo.threads.get("main").state)
    machine = Machine(repo, tmp_path / "place", tmp_path)
    yield machine
    wait_until(lambda: not (machine.reap() or processes_of(tmp_path)), "sessions to end")


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
            "overlay.prestored",
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
    if case.who == "session":
        machine.wait_for_death()
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


@pytest.mark.parametrize(
    "point", ["mount.before-start", "session.mounted", "session.registered", "mount.started"]
)
def test_mount_create_can_be_repeated(machine: Machine, point: str) -> None:
    """``mount --create`` that was killed after it had made the thread can be run again as it was; once used, not."""
    words = ("mount", "new", str(machine.place), "--create")
    assert machine.heddle(*words, fault=point) != 0
    machine.reap()
    assert machine.killed and "new" in machine.repo.threads, point

    assert machine.heddle(*words) == 0, machine.said
    (machine.place / "note").write_text("precious")
    assert machine.heddle(*words) == 65
    assert machine.heddle("unmount", "new") == 0, machine.said
    assert machine.heddle(*words) == 65


@pytest.mark.parametrize(
    ("point", "again"),
    [("unmount.unmounted", 0), ("overlay.before-park", 0), ("overlay.parked", 65)],
)
def test_a_discard_can_be_repeated(machine: Machine, point: str, again: int) -> None:
    """``unmount --discard`` that was killed after it had ended the session can be run again; the work is parked."""
    assert machine.mount() == 0
    work(machine.place)
    assert machine.unmount("--discard", fault=point) == -signal.SIGKILL
    wait_until(lambda: not machine.place.exists(), "the session to tidy up")

    assert machine.unmount("--discard") == again, machine.said
    assert machine.heddle("overlay", "restore", "agent") == 0, machine.said
    assert machine.mount() == 0, machine.said
    holds_the_work(machine.place)
    assert machine.unmount() == 0, machine.said


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


# on git


@pytest.fixture
def git_machine(
    tmp_path: Path, nothing_left: None, children: None, no_restarts: None
) -> Iterator[Machine]:
    """The same on a git checkout."""
    path = tmp_path / "repo"
    for name, text in FILES.items():
        (path / name).parent.mkdir(exist_ok=True, parents=True)
        (path / name).write_text(text)
    git(path, "init", "-q", "-b", "main")
    git(path, "add", ".")
    git(path, "commit", "-q", "-m", "First")
    repo = heddle.init(path)
    repo.config.set("git.fsmonitor_files", "1")
    repo.threads.create("agent", repo.threads.get("main").state)
    machine = Machine(repo, tmp_path / "place", tmp_path)
    yield machine
    wait_until(lambda: not (machine.reap() or processes_of(tmp_path)), "sessions to end")


def git(where: Path, *words: str, check: bool = True) -> str:
    me = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    done = subprocess.run(["git", *me, "-C", where, *words], capture_output=True, text=True)
    assert not check or done.returncode == 0, done
    return done.stdout.strip()


def a_first_mount(machine: Machine, point: str) -> None:
    assert machine.mount(fault=point) != 0


def a_second_mount(machine: Machine, point: str) -> None:
    assert machine.mount() == 0
    git(machine.place, "rm", "-q", "--cached", "a")
    assert machine.unmount() == 0
    assert machine.mount(fault=point) != 0


def a_mount_elsewhere(machine: Machine, point: str) -> None:
    assert machine.mount() == 0
    git(machine.place, "rm", "-q", "--cached", "a")
    assert machine.unmount() == 0
    machine.place = machine.directory / "elsewhere"
    assert machine.mount(fault=point) != 0


def a_first_look(machine: Machine, point: str) -> None:
    assert machine.mount(fault=point) == 0
    git(machine.place, "status", check=False)


def an_unmount_after_use(machine: Machine, point: str) -> None:
    assert machine.mount(fault=point) == 0
    git(machine.place, "rm", "-q", "--cached", "a")
    machine.unmount()


def a_commit_is_adopted(machine: Machine, point: str) -> None:
    assert machine.mount(fault=point) == 0
    git(machine.place, "commit", "-q", "--allow-empty", "-m", "By git")
    machine.heddle("status")


def a_stand_in_is_followed(machine: Machine, point: str) -> None:
    """The thread's branch is checked out elsewhere, so HEAD stands for it; the command dies."""
    git(machine.repo.path, "branch", "agent")
    git(machine.repo.path, "worktree", "add", "-q", "../elsewhere", "agent")
    assert machine.mount() == 0
    git(machine.place, "commit", "-q", "--allow-empty", "-m", "By git")
    assert machine.heddle("status", fault=point) == -signal.SIGKILL


GIT_CASES = [
    Case(a_first_mount, "linked.made", "session"),
    Case(a_first_look, "linked.before-settings", "session"),
    Case(a_second_mount, "linked.before-restore", "session"),
    Case(a_first_look, "gitindex.before-link", "session"),
    Case(a_mount_elsewhere, "gitindex.before-relocation", "session"),
    Case(a_first_look, "keptindex.before-rename", "session"),
    Case(a_first_look, "gitconfig.before-rename", "session"),
    Case(an_unmount_after_use, "linked.before-aside", "session"),
    Case(an_unmount_after_use, "linked.before-removal", "session"),
    Case(a_commit_is_adopted, "overlay.before-adopt", "session"),
    Case(a_stand_in_is_followed, "linked.before-agreed", "status"),
]


@pytest.mark.parametrize("case", GIT_CASES, ids=lambda it: f"{it.scenario.__name__}-{it.point}")
def test_git_goes_on(git_machine: Machine, case: Case) -> None:
    """Killed while git's things of a mount come, change or go: git works in the next one, and an unmount clears up."""
    machine = git_machine
    config = machine.repo.path / ".git" / "config"
    before = config.read_bytes()
    case.scenario(machine, case.point)
    if case.who == "session":
        machine.wait_for_death()
    assert case.who in machine.killed, f"{case.point} did not kill the {case.who}: {machine.said}"

    assert machine.mount() == 0, machine.said
    repo = heddle.open(machine.place)
    assert repo.git_problems.keys() <= {"agent"}
    head = git(machine.place, "rev-parse", "HEAD")
    assert repo.threads.get("agent").state == head.encode() == repo.status().state
    assert repo.status().changes == []
    staged = git(machine.place, "diff", "--cached", "--name-only").split()
    assert staged in ([], ["a"])
    git(machine.place, "reset", "-q")
    assert git(machine.place, "status", "--porcelain") == ""
    assert git(machine.place, "fsck", "--strict", "--no-dangling") == ""
    assert machine.unmount() == 0, machine.said
    assert not list((machine.repo.path / ".git" / "worktrees").glob("heddle-*"))
    assert config.read_bytes() == before
    assert list(config.parent.glob("config*")) == [config]


def test_every_point_of_a_session_is_tried() -> None:
    """The points of sessions, of mounting and of unmounting in the source are those tried here."""
    ours = {point for point in points() if point.startswith(OF_SESSIONS)}

    assert ours == {
        case.point for case in [*CASES, *GIT_CASES] if case.point.startswith(OF_SESSIONS)
    }
