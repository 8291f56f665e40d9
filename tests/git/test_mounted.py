"""Branches and threads in step while a thread is mounted: captures in the mount, commits beside it."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
from world import sessions_of, wait_until

import heddle
from heddle import api, faults
from heddle.attribution import Agent
from heddle.errors import DataError, HeddleError, NothingToCapture, ThreadMoved, UnsavedChanges
from heddle.git import branches
from heddle.mount import lifecycle
from heddle.mount.gitview import GitView
from heddle.mount.overlay import Overlay
from heddle.repo.capture import record_state

from .conftest import IDENTITY, Git, commit_file, run_git, state


@pytest.fixture
def side(repo: api.Repository, git: Git, tmp_path: Path) -> Iterator[Path]:
    """A mount of the branch ``side``."""
    git("branch", "side")
    opened = heddle.open(repo.path)
    mounted = opened.mount("side", tmp_path / "mnt").mountpoint
    yield mounted
    opened.unmount("side", force=True)


def test_a_capture_in_a_mount_moves_the_branch(side: Path, git: Git) -> None:
    """What an agent captures in its mount is a commit of the branch; the checkout is not touched."""
    (side / "agent.txt").write_text("made in a mount\n")
    captured = heddle.open(side).capture(message="By an agent")

    assert git("rev-parse", "side") == captured.state.id.decode()
    assert git("show", "side:agent.txt") == "made in a mount"
    assert git("status", "--porcelain") == ""
    assert git("fsck", "--strict") == ""


def test_the_names_of_a_small_tree_are_known(side: Path, repo: api.Repository, git: Git) -> None:
    """When the mount answers, the kernel knows every name in it: git need not wait for the session at any."""
    mounts = repo.mounts()
    pid = mounts[0].pid
    assert pid is not None and len(mounts) == 1
    names = git("ls-tree", "-r", "--name-only", "side").splitlines()
    os.kill(pid, signal.SIGSTOP)
    try:
        looked = subprocess.run(["stat", "-c", "%s", *names], cwd=side, timeout=10, stdout=PIPE)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert looked.returncode == 0
    sizes = [git("cat-file", "-s", f"side:{name}") for name in names]
    assert looked.stdout.decode().split() == sizes and sizes


def test_a_mount_follows_what_git_commits(side: Path, repo: api.Repository, git: Git) -> None:
    """A commit that git makes on the branch is in the mount after the next command."""
    made = git("commit-tree", "-p", "main", "-m", "Git", git("rev-parse", "main~1^{tree}"))
    git("update-ref", "refs/heads/side", made)

    again = heddle.open(repo.path)

    assert state(again, "side") == made
    assert sorted(os.listdir(side)) == [".git", "a.txt"]


def test_a_capture_in_a_mount_of_the_checked_out_branch(
    repo: api.Repository, git: Git, tmp_path: Path
) -> None:
    """The branch waits for its checkout: ``heddle switch`` brings directory, index and branch along together."""
    before = git("rev-parse", "main")
    place = repo.mount("main", tmp_path / "mnt").mountpoint
    try:
        (place / "agent.txt").write_text("made in a mount\n")
        inside = heddle.open(place)
        captured = inside.capture(message="By an agent")
    finally:
        repo.unmount("main", force=True)

    assert git("rev-parse", "main") == before
    assert git("status", "--porcelain") == ""
    assert inside.git_problems["main"].hint == "heddle switch main"

    heddle.open(repo.path).switch("main")

    assert git("rev-parse", "main") == captured.state.id.decode()
    assert (repo.path / "agent.txt").exists()
    assert git("status", "--porcelain") == ""


def test_diverged_in_a_mount_keeps_what_is_unsaved(
    side: Path, repo: api.Repository, git: Git
) -> None:
    """Git elsewhere moves the branch under unsaved work: the capture is refused, and no byte of it is lost."""
    (side / "agent.txt").write_text("unsaved\n")
    commit_file(repo.path, "theirs.txt", "theirs\n")
    git("update-ref", "refs/heads/side", "main")

    with pytest.raises(HeddleError) as caught:
        heddle.open(side).capture(message="Too late")

    assert caught.value.exit_code in (65, 75)
    assert (side / "agent.txt").read_text() == "unsaved\n"


# git in the mount


@pytest.fixture
def place(repo: api.Repository, tmp_path: Path) -> Iterator[Path]:
    """A mount of a new thread ``agent`` at the checkout's commit."""
    mounted = repo.mount("agent", tmp_path / "mnt", create=True).mountpoint
    yield mounted
    if os.path.ismount(mounted):
        repo.unmount("agent", force=True)


def agree(place: Path, thread: str = "agent") -> None:
    """Heddle and git say the same of a mount: where it is, and what has changed there."""
    inside = heddle.open(place)
    status = inside.status()
    lines = run_git(place, "status", "-bz", "--porcelain", "-uall", "--no-renames").split("\0")[1:]

    assert inside.git_problems == {}
    assert state(inside, thread) == run_git(place, "rev-parse", thread)
    assert (status.state or b"").decode() == run_git(place, "rev-parse", "HEAD")
    paths = {change.path for change in status.changes} | {
        change.old_path for change in status.changes if change.old_path is not None
    }
    assert {line[3:].encode() for line in lines if line} == paths


def view(place: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file of a mount: inode number, time and content."""
    found = {}
    for path in sorted(place.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(place))] = (status.st_ino, status.st_mtime_ns, content)
    return found


def test_rules_that_lie_in_the_mount(place: Path, git: Git) -> None:
    """Where git's settings name a file of the mount for what is ignored, the session does not wait for itself."""
    (place / "rules").write_text("*.o\n")
    (place / "x.o").touch()
    git("config", "core.excludesFile", place / "rules")
    command = [sys.executable, "-m", "heddle", "status", "--json"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=60)

    assert done.returncode == 0
    assert "rules" in done.stdout
    assert "x.o" not in done.stdout


def test_a_mount_is_a_linked_worktree(place: Path, repo: api.Repository, git: Git) -> None:
    """Git in a fresh mount is on the thread's branch, clean, and every checkout lists it, locked with the reason."""
    assert git("status", "--porcelain=v1", "-b", at=place) == "## agent"
    assert git("rev-parse", "--show-toplevel", at=place) == str(place)
    listed = git("worktree", "list", "--porcelain")
    assert git("worktree", "list", "--porcelain", at=place) == listed
    assert f"worktree {place}\nHEAD {git('rev-parse', 'main')}\nbranch refs/heads/agent" in listed
    assert "locked a mount of heddle; heddle unmount agent" in listed
    agree(place)


def test_the_git_file_is_nobodys_to_change(place: Path, git: Git) -> None:
    """The mount's .git can be read, and not written, removed, renamed, linked, covered or given another mode."""
    before = (place / ".git").read_bytes()
    attempts: list[Callable[[], object]] = [
        lambda: (place / ".git").unlink(),
        lambda: (place / ".git").rename(place / "x"),
        lambda: (place / "a.txt").rename(place / ".git"),
        lambda: (place / "x").hardlink_to(place / ".git"),
        lambda: (place / ".git").chmod(0o600),
        lambda: os.truncate(place / ".git", 0),
        lambda: os.setxattr(place / ".git", "user.x", b""),
        lambda: os.open(place / ".git", os.O_WRONLY),
        lambda: os.mkdir(place / ".git"),
    ]
    for attempt in attempts:
        with pytest.raises(OSError) as caught:
            attempt()
        assert caught.value.errno in (errno.EPERM, errno.EACCES, errno.EEXIST)

    assert (place / ".git").read_bytes() == before
    assert ".git" in os.listdir(place)
    agree(place)


def test_an_unmount_leaves_no_trace(place: Path, repo: api.Repository, git: Git) -> None:
    """After the unmount git knows of no other worktree, and its configuration is as it was."""
    config = (repo.path / ".git" / "config").read_bytes()
    git("status", at=place)
    repo.unmount("agent")

    assert not (repo.path / ".git" / "worktrees").exists()
    assert len(git("worktree", "list").splitlines()) == 1
    assert (repo.path / ".git" / "config").read_bytes() == config


def test_what_git_commits_is_the_threads(place: Path, git: Git) -> None:
    """git add and commit: the thread is at the commit, the mount relative to it, and nothing that is seen changes."""
    (place / "a.txt").write_text("edited\n")
    (place / "sub").mkdir()
    (place / "sub" / "new").write_text("new\n")
    (place / "later").write_text("not yet\n")
    git("add", "a.txt", "sub", at=place)
    git("commit", "-q", "-m", "By git", at=place)
    before = view(place)
    agree(place)

    assert view(place) == before
    assert [change.path for change in heddle.open(place).status().changes] == [b"later"]
    assert git("log", "--format=%s", "-1", "agent") == "By git"


HISTORY = {
    "amend": ["commit -q --amend -m Other"],
    "soft reset": ["reset -q --soft HEAD~1"],
    "mixed reset": ["reset -q HEAD~1"],
    "hard reset": ["reset -q --hard HEAD~1"],
    "far reset": ["reset -q --soft root"],
    "checkout of a file": ["checkout -q HEAD~1 -- a.txt", "commit -q -m Back"],
    "removal from git alone": ["rm -q -r --cached dir", "commit -q -m Untracked"],
    "removal": ["rm -q -r dir", "commit -q -m Gone"],
    "move": ["mv dir elsewhere", "commit -q -m Moved"],
    "stash": ["stash -q -u"],
    "stash and back": ["stash -q -u", "stash pop -q"],
    "merge": ["merge -q --no-edit other"],
    "rebase": ["rebase -q other"],
    "cherry-pick": ["cherry-pick other"],
    "revert": ["revert --no-edit HEAD"],
    "there and back": ["switch -q -c away", "switch -q agent"],
    "clean": ["clean -fdxq"],
}


@pytest.mark.parametrize("commands", HISTORY.values(), ids=HISTORY)
def test_git_and_heddle_agree_after(
    commands: list[str], place: Path, repo: api.Repository, git: Git
) -> None:
    """Whatever git does in a mount, heddle is where git is, counts as unsaved what git does, shows what git left."""
    commit_file(place, "dir/one", "one\n")
    commit_file(place, "dir/two/deep", "deep\n")
    git("tag", "root", "main", at=place)
    git("branch", "-q", "other", "main", at=place)
    commit_file(place, "a.txt", "agent's\n")
    tree = git("rev-parse", "main^{tree}")
    made = git("commit-tree", tree, "-p", "main", "-m", "Other", at=place)
    git("update-ref", "refs/heads/other", made, at=place)
    if not any(words.startswith(("merge", "rebase", "cherry")) for words in commands):
        (place / "b.txt").write_text("unsaved\n")
        (place / "loose").write_text("untracked\n")
    heddle.open(place)
    for words in commands:
        if words.startswith("cherry-pick"):
            words += " --allow-empty"
        git(*words.split(), at=place)
    before = view(place)

    agree(place)

    assert view(place) == before
    assert git("fsck", "--strict", "--no-dangling") == ""


def test_a_capture_moves_the_branch_and_the_index(place: Path, git: Git) -> None:
    """heddle capture in a mount: git is at the new state and clean, and its reflog says who moved it."""
    git("status", at=place)
    (place / "a.txt").write_text("edited\n")
    (place / "b.txt").unlink()
    (place / "new").write_text("new\n")
    captured = heddle.open(place).capture(message="By heddle")

    assert git("rev-parse", "HEAD", at=place) == captured.state.id.decode()
    assert git("status", "--porcelain", at=place) == ""
    assert git("reflog", "-1", "--format=%gs", at=place) == "heddle: By heddle"
    agree(place)


def test_another_branch_in_a_mount(place: Path, repo: api.Repository, git: Git) -> None:
    """git switch -c in a mount: what is unsaved counts from that branch, a capture is refused with the way out."""
    git("switch", "-q", "-c", "feature", at=place)
    commit_file(place, "feature.txt", "f\n")
    (place / "more").write_text("unsaved\n")
    inside = heddle.open(place)

    assert state(inside, "feature") == git("rev-parse", "feature")
    assert state(inside, "agent") == git("rev-parse", "main")
    assert [change.path for change in inside.status().changes] == [b"more"]
    assert inside.status().git_branch == "feature"
    with pytest.raises(DataError, match="on branch 'feature'"):
        inside.capture(message="Where?")
    (place / "more").unlink()
    git("switch", "-q", "agent", at=place)
    agree(place)


@pytest.mark.parametrize("how", [("-c", "feature"), ("--detach",)])
def test_a_session_that_died_on_another_branch(
    place: Path, repo: api.Repository, git: Git, how: tuple[str, ...], no_restarts: None
) -> None:
    """A recovered mount shows what git in it is at, not its thread: git would take the difference for changes."""
    git("switch", "-q", *how, at=place)
    commit_file(place, "feature.txt", "f\n")
    assert heddle.open(place).status().changes == []
    [found] = repo.mounts()
    assert found.pid is not None
    os.kill(found.pid, signal.SIGKILL)
    wait_until(lambda: repo.mounts()[0].state == "stale", "the session to die")
    assert heddle.open(repo.path).mount("agent").mountpoint == place

    assert git("status", "--porcelain", at=place) == ""
    assert (place / "feature.txt").read_text() == "f\n"
    assert heddle.open(place).status().changes == []
    git("switch", "-q", "agent", at=place)
    agree(place)


def test_a_mount_of_the_checked_out_branch_has_a_detached_head(
    repo: api.Repository, git: Git, tmp_path: Path
) -> None:
    """No two checkouts are on one branch: HEAD stands for the thread, which goes where git and captures go."""
    place = repo.mount("main", tmp_path / "mnt").mountpoint
    try:
        assert git("symbolic-ref", "-q", "HEAD", at=place, code=1) == ""
        made = commit_file(place, "one", "1\n")
        inside = heddle.open(place)
        assert state(inside, "main") == made
        (place / "two").write_text("2\n")
        captured = inside.capture(message="Two")
        assert git("rev-parse", "HEAD", at=place) == captured.state.id.decode()
        assert git("status", "--porcelain", at=place) == ""
        made = commit_file(place, "three", "3\n")
        assert state(heddle.open(place), "main") == made
        assert git("status", "--porcelain") == ""
    finally:
        repo.unmount("main", force=True)


def end_by_umount(place: Path, repo: api.Repository) -> None:
    subprocess.run(["umount", place], check=True)


def end_by_signal(place: Path, repo: api.Repository) -> None:
    """As at the end of a login, or of the machine."""
    pid = repo.mounts()[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGTERM)


def end_by_another_object(place: Path, repo: api.Repository) -> None:
    """One that was opened before git did anything."""
    repo.unmount("agent")


@pytest.mark.parametrize("end", [end_by_umount, end_by_signal, end_by_another_object])
def test_where_git_went_just_before_the_end(
    place: Path, repo: api.Repository, git: Git, end: Callable[[Path, api.Repository], None]
) -> None:
    """A commit that no heddle command saw before the mount ended is what the next is at, with what was staged."""
    made = commit_file(place, "a.txt", "committed\n")
    (place / "b.txt").write_text("staged\n")
    git("add", "b.txt", at=place)
    sessions = sessions_of(place.parent)
    end(place, repo)
    wait_until(lambda: not set(sessions) & set(sessions_of(place.parent)), "the session to end")

    again = heddle.open(repo.path)
    assert not (repo.path / ".git" / "worktrees").exists()
    again.mount("agent", place)
    assert (git("rev-parse", "agent"), state(again, "agent")) == (made, made)
    assert git("branch", "--show-current", at=place) == "agent"
    assert git("status", "--porcelain", at=place) == "M  b.txt"
    assert [change.path for change in heddle.open(place).status().changes] == [b"b.txt"]


def test_in_the_middle_of_a_rebase(place: Path, repo: api.Repository, git: Git) -> None:
    """A rebase that stops is git's to finish: captures wait, and an unmount keeps it for the next mount."""
    git("branch", "-q", "other", "main", at=place)
    commit_file(place, "a.txt", "agent's\n")
    git("switch", "-q", "other", at=place)
    commit_file(place, "a.txt", "other's\n")
    git("switch", "-q", "agent", at=place)
    git("rebase", "-q", "other", at=place, code=1)
    with pytest.raises(DataError, match="in the middle of a rebase"):
        heddle.open(place).capture(message="Half")
    assert heddle.open(place).status().git_doing == "rebase"
    assert heddle.open(repo.path).status().git_doing is None

    repo.unmount("agent", force=True)
    assert not (repo.path / ".git" / "worktrees").exists()
    repo.mount("agent", place)

    (place / "a.txt").write_text("both\n")
    git("add", "a.txt", at=place)
    git("-c", "core.editor=true", "rebase", "--continue", at=place)
    agree(place)
    assert git("log", "--format=%s", "-3", "agent").splitlines()[1:] == [
        "Change a.txt",
        "Change b.txt",
    ]


def test_what_is_staged_is_there_again(place: Path, repo: api.Repository, git: Git) -> None:
    """An unmount keeps git's index, and the mount after it reads no file to find everything clean."""
    (place / "a.txt").write_text("staged\n")
    git("add", "a.txt", at=place)
    (place / "a.txt").write_text("and changed again\n")
    repo.unmount("agent", force=True)
    repo.mount("agent", place)

    assert git("status", "--porcelain", at=place) == "MM a.txt"
    assert git("show", ":a.txt", at=place) == "staged"


def test_a_dead_mount_is_pruned_and_a_live_one_kept(
    place: Path, repo: api.Repository, git: Git, tmp_path: Path, no_restarts: None
) -> None:
    """git worktree prune takes what a session that died left, once heddle has looked, and nothing of a live one."""
    other = repo.mount("other", tmp_path / "other", create=True)
    os.kill(other.pid, signal.SIGKILL)
    wait_until(lambda: repo.mounts()[-1].state == "stale", "the session to die")
    heddle.open(repo.path)
    git("worktree", "prune", "--expire=now")

    listed = git("worktree", "list")
    assert str(place) in listed and str(other.mountpoint) not in listed

    dead = repo.mount("other", other.mountpoint)
    assert git("status", "--porcelain=v1", "-b", at=other.mountpoint) == "## other"
    os.kill(dead.pid, signal.SIGKILL)
    wait_until(lambda: repo.mounts()[-1].state == "stale", "the session to die")
    repo.unmount(stale=True)
    assert str(other.mountpoint) not in git("worktree", "list")


def test_a_read_only_mount_has_a_detached_head(
    repo: api.Repository, git: Git, tmp_path: Path
) -> None:
    """Git can look around in a state that is mounted read-only: status, log, blame, grep."""
    mounted = repo.mount("main~1", tmp_path / "ro", read_only=True)
    try:
        assert git("status", "--porcelain", at=mounted.mountpoint) == ""
        assert git("rev-parse", "HEAD", at=mounted.mountpoint) == git("rev-parse", "main~1")
        assert "one" in git("blame", "a.txt", at=mounted.mountpoint)
        assert git("grep", "-c", "one", at=mounted.mountpoint) == "a.txt:1"
    finally:
        repo.unmount(mounted.mountpoint)
    assert not (repo.path / ".git" / "worktrees").exists()


def test_states_of_heddle_reach_git_with_the_mount(
    repo: api.Repository, git: Git, tmp_path: Path
) -> None:
    """A thread with captures that git never saw becomes a branch when it is mounted, objects and all."""
    place = repo.mount("old", tmp_path / "old", create=True).mountpoint
    (place / "x").write_text("x\n")
    heddle.open(place).capture(message="One")
    repo.unmount("old")
    repo = heddle.open(repo.path)
    repo.threads.create("young", repo.threads.get("old").state)
    place = repo.mount("young", tmp_path / "young").mountpoint
    try:
        assert git("log", "-1", "--format=%s", at=place) == "One"
        assert git("status", "--porcelain", at=place) == ""
        assert git("rev-parse", "young") == state(repo, "young")
    finally:
        repo.unmount("young")


def test_many_mounts_at_once(repo: api.Repository, git: Git, tmp_path: Path) -> None:
    """Twelve mounts made at once, a commit in each at once: every branch has its own, and git's directory is sound."""
    threads = [f"agent-{number}" for number in range(12)]

    def work(thread: str) -> None:
        mine = heddle.open(repo.path)
        place = mine.mount(thread, tmp_path / thread, create=True).mountpoint
        commit_file(place, "who", thread)
        heddle.open(place)

    with ThreadPoolExecutor(len(threads)) as pool:
        list(pool.map(work, threads))
    try:
        after = heddle.open(repo.path)
        assert after.git_problems == {}
        for thread in threads:
            assert git("show", f"{thread}:who") == thread
            assert state(after, thread) == git("rev-parse", thread)
        assert git("fsck", "--strict") == ""
    finally:
        with ThreadPoolExecutor(len(threads)) as pool:
            list(pool.map(lambda thread: heddle.open(repo.path).unmount(thread), threads))
    assert not (repo.path / ".git" / "worktrees").exists()
    assert list((repo.path / ".git").rglob("*.lock")) == []


def test_commits_of_git_say_which_model_made_them(
    place: Path, repo: api.Repository, git: Git, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment of git tells for whom it commits; the commit stays git's, and log, show and --agent know."""
    commit_file(place, "by-hand", "1\n")
    with monkeypatch.context() as agent:
        agent.setenv("HEDDLE_AGENT_PROVIDER", "anthropic")
        agent.setenv("HEDDLE_AGENT_MODEL", "opus")
        agent.setenv("HEDDLE_AGENT_TASK", "mending")
        made = commit_file(place, "by-agent", "2\n")
        git("status", at=place)
    git("status", at=place)
    after = commit_file(place, "by-hand-again", "3\n")
    inside = heddle.open(place)

    agents = {state.id.decode(): state.agent for state in inside.log(limit=3)}

    assert agents.pop(made) == Agent("anthropic", "opus", None, "mending")
    assert set(agents.values()) == {None} and after in agents
    assert [state.id.decode() for state in inside.log(agent="opus")] == [made]
    assert "heddle-agent" not in git("cat-file", "-p", made)


def test_a_rebase_by_an_agent(
    repo: api.Repository, git: Git, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that a rebase makes anew is the agent's that ran it, and nothing of what it went on top of."""
    place = repo.mount(
        "agent", tmp_path / "mnt", create=True, agent={"agent.model": "default"}
    ).mountpoint
    try:
        git("branch", "-q", "other", "main", at=place)
        for name in ("one", "two"):
            commit_file(place, name, name)
        git("switch", "-q", "other", at=place)
        base = commit_file(place, "three", "3")
        git("switch", "-q", "agent", at=place)
        inside = heddle.open(place)
        assert {str(state.agent) for state in inside.log(limit=2)} == {"default"}
        with monkeypatch.context() as agent:
            agent.setenv("HEDDLE_AGENT_MODEL", "rebaser")
            git("rebase", "-q", "other", at=place)
        inside = heddle.open(place)
        found = [(state.message.strip(), str(state.agent)) for state in inside.log(limit=3)]

        assert found[:2] == [("Change two", "rebaser"), ("Change one", "rebaser")]
        assert found[2] == ("Change three", "default") and inside.state(base.encode()).agent
    finally:
        repo.unmount("agent", force=True)


def agent_commit(place: Path, name: str, model: str, *words: str, **more: str) -> None:
    """A commit by a model, which its environment names."""
    (place / name).write_text(name)
    run_git(place, "add", name)
    environment = {**os.environ, **IDENTITY, "HEDDLE_AGENT_MODEL": model, **more}
    command = ["git", *words, "commit", "-q", *(["-m", name] if not more else [])]
    subprocess.run(command, cwd=place, env=environment, check=True)


def models(place: Path, count: int) -> list[str]:
    return [str(state.agent) for state in heddle.open(place).log(limit=count)]


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("looked_at", [False, True])
def test_a_maker_outlives_its_session(
    repo: api.Repository,
    git: Git,
    tmp_path: Path,
    no_restarts: None,
    end: signal.Signals,
    looked_at: bool,
) -> None:
    """Who made a commit is known after the session which saw it begin, however it ended and whoever looks first."""
    place = repo.mount(
        "agent", tmp_path / "mnt", create=True, agent={"agent.model": "default"}
    ).mountpoint
    try:
        commit_file(place, "by the default", "1")
        agent_commit(place, "one", "first")
        [found] = repo.mounts()
        assert found.pid is not None
        os.kill(found.pid, end)
        wait_until(lambda: not sessions_of(tmp_path), "the session to end")
        if looked_at:
            heddle.open(repo.path)
        repo.mount("agent", place)
        assert models(place, 2) == ["first", "default"]
    finally:
        repo.unmount("agent", force=True)


def test_a_series_that_is_looked_at(place: Path, git: Git, tmp_path: Path) -> None:
    """All commits of a cherry-pick are its maker's, whoever looks at them meanwhile, or reads ``.git``."""
    git("switch", "-q", "-c", "source", at=place)
    for name in ("s1", "s2", "s3"):
        commit_file(place, name, name)
    git("switch", "-q", "agent", at=place)
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    look = (
        f"cd {place}; env -u GIT_DIR -u GIT_INDEX_FILE {sys.executable} -m heddle status; cat .git"
    )
    (hooks / "post-commit").write_text(
        f"#!/bin/sh\nunset HEDDLE_AGENT_MODEL\n({look}) >/dev/null 2>&1\n"
    )
    (hooks / "post-commit").chmod(0o755)
    environment = {**os.environ, **IDENTITY, "HEDDLE_AGENT_MODEL": "picker"}
    command = ["git", "-c", f"core.hooksPath={hooks}", "cherry-pick", "agent..source"]
    subprocess.run(command, cwd=place, env=environment, check=True, stdout=subprocess.DEVNULL)

    assert models(place, 3) == ["picker"] * 3


def test_makers_of_a_rewritten_reflog(place: Path, git: Git) -> None:
    """Entries that were expired do not hide who made the commits after them."""
    for name in ("a1", "a2", "a3"):
        agent_commit(place, name, "early")
    assert models(place, 3) == ["early"] * 3
    git("reflog", "expire", "--expire=now", "--all", at=place)
    agent_commit(place, "b", "late")

    assert models(place, 2) == ["late", "early"]


def test_others_that_look_while_an_editor_is_open(place: Path, git: Git, tmp_path: Path) -> None:
    """A prompt that runs git while somebody writes a message is not who commits."""
    editor = tmp_path / "editor"
    looks = "; ".join(
        f"git -C {place} {each}" for each in ("stash list", "merge-base HEAD HEAD~1", "status")
    )
    editor.write_text(
        f"#!/bin/sh\nunset GIT_DIR GIT_INDEX_FILE HEDDLE_AGENT_MODEL\n({looks}) >/dev/null\necho Message > $1\n"
    )
    editor.chmod(0o755)
    agent_commit(place, "one", "writer", GIT_EDITOR=str(editor))

    assert models(place, 1) == ["writer"]


def test_what_to_do_before_a_capture(place: Path, git: Git, tmp_path: Path) -> None:
    """A capture where git is on no branch, in the middle of a patch, or renamed the branch says what helps."""

    def hint() -> str:
        with pytest.raises(DataError) as caught:
            heddle.open(place).capture(message="No", allow_empty=True)
        assert not isinstance(caught.value, ThreadMoved)
        return caught.value.hint or ""

    git("switch", "-q", "--detach", "HEAD~1", at=place)
    assert "git switch agent" in hint()
    git("switch", "-q", "agent", at=place)
    (place / "a.txt").write_text("other\n")
    git("commit", "-q", "-a", "-m", "Other", at=place)
    patch = git("format-patch", "-1", "--stdout", at=place)
    (tmp_path / "patch").write_text(patch.replace("\n-one", "\n-none") + "\n")
    git("am", tmp_path / "patch", at=place, code=128)
    assert "git am --continue" in hint()
    git("am", "--abort", at=place)
    git("branch", "-m", "agent", "better", at=place)
    assert "git branch -m better agent" in hint()
    git("branch", "-m", "better", "agent", at=place)

    heddle.open(place).capture(message="Yes", allow_empty=True)
    agree(place)


@pytest.mark.parametrize("mounted", [True, False])
def test_modes_that_git_does_not_believe(
    repo: api.Repository, git: Git, tmp_path: Path, mounted: bool
) -> None:
    """With core.fileMode off executable bits of files mean nothing, and those of states stay."""
    git("config", "core.fileMode", "false")
    place = repo.path
    if mounted:
        place = heddle.open(place).mount("agent", tmp_path / "mnt", create=True).mountpoint
    try:
        git("update-index", "--chmod=+x", "a.txt", at=place)
        git("commit", "-q", "-m", "Executable", at=place)
        (place / "b.txt").chmod(0o755)
        assert git("status", "--porcelain", at=place) == ""
        assert not heddle.open(place).status().changes
        (place / "new").write_text("new\n")
        (place / "new").chmod(0o755)
        (place / "a.txt").write_text("changed\n")
        heddle.open(place).capture(message="New")

        modes = {
            line.split()[3]: line[:6] for line in git("ls-tree", "HEAD", at=place).splitlines()
        }
        assert modes == {"a.txt": "100755", "b.txt": "100644", "new": "100644"}
        assert git("status", "--porcelain", at=place) == ""
        if not mounted:
            heddle.open(place).switch("other", create=True)
    finally:
        if mounted:
            repo.unmount("agent", force=True)


def test_the_first_status_reads_no_file(place: Path, repo: api.Repository, git: Git) -> None:
    """Git in a fresh mount, and after a remount, opens .git and the directories' rules, and lists nothing."""
    repo.config.set("git.fsmonitor_files", "1000")
    watched = watch([place])
    assert git("status", "--porcelain", at=place) == ""
    assert opened(watched) == {".git"}
    os.close(watched)
    (place / "dir").mkdir()
    (place / "dir" / ".gitignore").write_text("*.o\n")
    (place / "dir" / "x").write_text("x\n")
    inside = heddle.open(place)
    inside.capture(message="More")
    inside.unmount("agent")
    shutil.rmtree(inside.heddle_dir / "overlays" / "agent" / "git", ignore_errors=True)
    inside.mount("agent", place)
    changed = [path.lstat().st_ctime_ns for path in (place, place / "dir", place / "dir" / "x")]
    wait_until(lambda: time.time() > max(changed) // 10**9 + 1.1, "git to tell times apart")
    watched = watch([place, place / "dir"])
    try:
        assert git("status", "--porcelain", at=place) == ""
        assert opened(watched) == {".git", ".gitignore"}
        (place / "a.txt").write_text("edited\n")
        opened(watched)
        assert git("status", "--porcelain", "-b", at=place).splitlines()[1:] == [" M a.txt"]
        assert opened(watched) <= {".git", ".gitignore", "a.txt"}
    finally:
        os.close(watched)


def test_git_goes_on_in_a_mount_elsewhere(
    place: Path, repo: api.Repository, git: Git, tmp_path: Path
) -> None:
    """What git kept of a mount counts at another mountpoint too: what is staged, and which directories it has seen."""
    git("status", at=place)
    (place / "new").write_text("new\n")
    git("add", "new", at=place)
    repo.unmount("agent")
    there = heddle.open(repo.path).mount("agent", tmp_path / "there").mountpoint
    try:
        done = subprocess.run(
            ["git", "-C", there, "status", "--porcelain"], capture_output=True, text=True
        )
        assert (done.stdout, done.stderr) == ("A  new\n", "")
        git("fsck", "--strict", at=there)
    finally:
        repo.unmount("agent", force=True)


def test_a_branch_that_moved_between_two_mounts(
    place: Path, repo: api.Repository, git: Git
) -> None:
    """Git's things of an earlier mount do not come back on a branch that moved: its next commit would undo others'."""
    (place / "unsaved").write_text("unsaved\n")
    git("status", at=place)
    repo.unmount("agent")
    git("switch", "-q", "agent")
    theirs = commit_file(repo.path, "theirs", "theirs\n")
    git("switch", "-q", "main")
    heddle.open(repo.path).mount("agent", place)

    assert git("status", "--porcelain", "-b", at=place).splitlines() == [
        "## HEAD (no branch)",
        "?? unsaved",
    ]
    git("add", "unsaved", at=place)
    git("commit", "-q", "-m", "Mine", at=place)
    assert git("rev-parse", "agent") == theirs
    assert git("ls-tree", "--name-only", "agent").split() == ["a.txt", "b.txt", "theirs"]


@pytest.mark.parametrize("forget", ["expire --expire=now --all", "delete HEAD@{0}"])
def test_a_reflog_that_lost_its_entries(place: Path, git: Git, forget: str) -> None:
    """What git did in a mount is known from its index where the reflog does not say it any more."""
    commit_file(place, "new", "new\n")
    git("reflog", *forget.split(), at=place)

    agree(place)
    assert heddle.open(place).status().changes == []
    (place / "more").write_text("more\n")
    heddle.open(place).capture(message="More")
    agree(place)


def test_the_index_is_looked_at_while_git_has_it(
    place: Path, repo: api.Repository, git: Git
) -> None:
    """To see what is in an index of a mount, nobody takes git's lock on it."""
    made = commit_file(place, "new", "new\n")
    git("reflog", "expire", "--expire=now", "--all", at=place)
    private = Path(git("rev-parse", "--absolute-git-dir", at=place))
    (private / "heddle-logged").unlink()
    (private / "index.lock").touch()
    try:
        assert heddle.open(repo.path).overlay_base("agent") == made.encode()
    finally:
        (private / "index.lock").unlink()
    agree(place)


def test_others_go_on_from_what_git_made(place: Path, repo: api.Repository, git: Git) -> None:
    """A mount follows where its branch was moved on from a commit that git made there, before heddle saw that."""
    git("status", at=place)
    mine = commit_file(place, "mine", "mine\n")
    tree = git("rev-parse", f"{commit_file(repo.path, 'theirs', 'theirs')}^{{tree}}")
    git("update-ref", "refs/heads/agent", git("commit-tree", "-p", mine, "-m", "On", tree))

    assert heddle.open(place).status().changes == []
    agree(place)
    assert not (place / "mine").exists()
    assert (place / "theirs").read_text() == "theirs"
    (place / "more").write_text("more\n")
    heddle.open(place).capture(message="More")
    agree(place)


def test_others_go_on_and_something_is_unsaved(place: Path, repo: api.Repository, git: Git) -> None:
    """What is unsaved then stays, relative to what git made, and holds the mount where it is."""
    git("status", at=place)
    mine = commit_file(place, "mine", "mine\n")
    (place / "unsaved").write_text("unsaved\n")
    tree = git("rev-parse", f"{commit_file(repo.path, 'theirs', 'theirs')}^{{tree}}")
    git("update-ref", "refs/heads/agent", git("commit-tree", "-p", mine, "-m", "On", tree))

    inside = heddle.open(place)
    assert [change.path for change in inside.status().changes] == [b"unsaved"]
    assert inside.overlay_base("agent") == mine.encode()
    with pytest.raises(ThreadMoved):
        inside.capture(message="More")


def test_a_reflog_that_lost_its_entries_while_something_is_staged(place: Path, git: Git) -> None:
    """What the session saw in it when git was last used says as much."""
    commit_file(place, "new", "new\n")
    git("reflog", "expire", "--expire=now", "--all", at=place)
    (place / "staged").write_text("staged\n")
    git("add", "staged", at=place)

    inside = heddle.open(place)
    assert [change.path for change in inside.status().changes] == [b"staged"]
    inside.capture(message="Staged")
    agree(place)


def test_another_repository_in_a_mount(place: Path, repo: api.Repository, git: Git) -> None:
    """It is not captured, and not passed over: status and capture name it, and the thread is not just deleted."""
    git("init", "-q", "dep", at=place)
    (place / "dep/work").write_text("work\n")
    inside = heddle.open(place)
    status = inside.status()
    assert not status.changes
    assert [each.path for each in status.not_recorded] == [b"dep"]
    with pytest.raises(NothingToCapture, match="dep: another git repository"):
        inside.capture(message="Nothing")
    repo.unmount("agent")

    assert [each.path for each in heddle.open(repo.path).status().not_recorded] == []
    with pytest.raises(UnsavedChanges):
        repo.threads.delete("agent")
    repo.threads.delete("agent", force=True)


def purge(git: Git, *places: Path) -> None:
    """Have git drop what nothing names."""
    for each in places:
        git("reflog", "expire", "--expire=now", "--all", at=each)
    git("gc", "-q", "--prune=now")


def test_a_commit_that_git_dropped(place: Path, repo: api.Repository, git: Git) -> None:
    """A commit that was rewritten and pruned is lost and nothing else: threads follow, and the repository is whole."""
    for where in (repo.path, place):
        secret = commit_file(where, "secret", f"secret in {where.name}\n")
        assert heddle.open(repo.path).is_state(secret.encode())
        git("reset", "-q", "--hard", "HEAD~1", at=where)
        purge(git, repo.path, place)
        with closing(heddle.open(repo.path)) as after:
            assert not after.is_state(secret.encode())
            assert not after.status().changes and not after.fsck(full=True).problems
        agree(place)
    (place / "more").write_text("more\n")
    heddle.open(place).capture(message="More")
    agree(place)


def test_a_pull_in_a_mount(checkout: Path, git: Git, tmp_path: Path) -> None:
    """A pull brings mount, branch and index along; a mount with unsaved changes stays, and the thread with it."""
    git("branch", "feat")
    git("clone", "-q", "--bare", checkout, tmp_path / "origin.git")
    git("clone", "-q", tmp_path / "origin.git", tmp_path / "mine", at=tmp_path)
    git("branch", "-q", "feat", "origin/feat", at=tmp_path / "mine")
    git("switch", "-q", "feat")
    theirs = commit_file(checkout, "theirs", "theirs\n")
    git("push", "-q", tmp_path / "origin.git", "feat")
    heddle.init(tmp_path / "mine").close()
    place = heddle.open(tmp_path / "mine").mount("feat", tmp_path / "mnt").mountpoint
    try:
        (place / "a.txt").write_text("unsaved\n")
        before = git("rev-parse", "HEAD", at=place)
        with pytest.raises(UnsavedChanges):
            heddle.open(place).pull()
        assert heddle.open(place).threads.get("feat").state == before.encode()
        agree(place, "feat")
        git("checkout", "-q", "a.txt", at=place)

        assert heddle.open(place).pull().new == theirs.encode()
        assert (place / "theirs").read_text() == "theirs\n"
        assert git("rev-parse", "HEAD", at=place) == theirs
        agree(place, "feat")
    finally:
        heddle.open(tmp_path / "mine").unmount("feat", force=True)


def test_a_purged_capture(repo: api.Repository, git: Git) -> None:
    """Git's cleaning goes on after a capture was rewritten and pruned: what is kept for the log is there."""
    (repo.path / "secret").write_text("secret\n")
    repo.capture(message="Secret")
    git("commit", "-q", "--amend", "-m", "Better")
    purge(git, repo.path)
    with closing(heddle.open(repo.path)) as after:
        assert after.git_problems == {}
    git("gc", "-q")
    assert git("fsck", "--strict", "--no-dangling") == ""
    git("switch", "-q", "-c", "short")
    commit_file(repo.path, "gone", "gone\n")
    git("switch", "-q", "main")
    heddle.open(repo.path).close()
    git("branch", "-q", "-D", "short")
    purge(git, repo.path)
    heddle.open(repo.path).close()
    git("gc", "-q")


def test_moves_by_others_after_the_reflog_went(place: Path, repo: api.Repository, git: Git) -> None:
    """A mount and its index follow a branch there and back though the reflog was expired."""
    first = git("rev-parse", "agent~1")
    last = git("rev-parse", "agent")
    git("status", at=place)
    heddle.open(place).close()
    git("reflog", "expire", "--expire=now", "--expire-unreachable=now", "--all")
    for where, names in ((first, ["a.txt"]), (last, ["a.txt", "b.txt"]), (first, ["a.txt"])):
        git("update-ref", "refs/heads/agent", where)
        heddle.open(repo.path).close()
        agree(place)
        assert git("status", "--porcelain", at=place) == ""
        assert sorted(os.listdir(place)) == [".git", *names]


def test_a_pull_that_the_mount_refuses(checkout: Path, git: Git, tmp_path: Path) -> None:
    """Where a mount, live or dead, can't come along, the working directory stays as well."""
    git("clone", "-q", checkout, tmp_path / "mine", at=tmp_path)
    mine = tmp_path / "mine"
    heddle.init(mine).close()
    repo = heddle.open(mine)
    repo.config.set("mount.restarts", "0")
    mounted = repo.mount("main", tmp_path / "mnt")
    try:
        (mounted.mountpoint / "unsaved").write_text("unsaved\n")
        before = commit_file(checkout, "theirs", "theirs\n") and git("rev-parse", "HEAD", at=mine)
        for alive in (True, False):
            if not alive:
                os.kill(mounted.pid, signal.SIGKILL)
                wait_until(lambda: repo.mounts()[0].state == "stale", "its end")
            with pytest.raises(UnsavedChanges):
                heddle.open(mine).pull()
            after = heddle.open(mine)
            assert after.threads.get("main").state == before.encode() == after.status().state
            assert not (mine / "theirs").exists() and git("status", "--porcelain", at=mine) == ""
    finally:
        heddle.open(mine).unmount("main", force=True)


def test_the_first_commit_is_a_capture(git: Git, tmp_path: Path, nothing_left: None) -> None:
    """The first capture in a mount of a repository without commits makes the branch, and git goes on from it."""
    (tmp_path / "new").mkdir()
    git("init", "-q", "-b", "main", at=tmp_path / "new")
    heddle.init(tmp_path / "new").close()
    place = heddle.open(tmp_path / "new").mount("agent", tmp_path / "mnt", create=True).mountpoint
    try:
        (place / "a").write_text("a\n")
        assert git("status", "--porcelain", at=place) == "?? a"
        assert heddle.open(place).status().changes
        made = heddle.open(place).capture(message="First").state.id
        assert git("rev-parse", "agent", at=place) == made.decode()
        agree(place)
        second = commit_file(place, "b", "b\n")
        (place / "c").write_text("c\n")
        third = heddle.open(place).capture(message="Third").state
        assert third.parents == (second.encode(),)
        agree(place)
    finally:
        heddle.open(tmp_path / "new").unmount("agent", force=True)


@pytest.mark.parametrize("how", [("merge", "-q", "--ff-only"), ("reset", "-q", "--hard")])
def test_git_catches_up_with_a_mount(
    repo: api.Repository, git: Git, how: tuple[str, ...], tmp_path: Path
) -> None:
    """A checkout that git brings to where its thread went in a mount is there for heddle too."""
    place = repo.mount("main", tmp_path / "mnt").mountpoint
    try:
        (place / "a.txt").write_text("changed\n")
        made = heddle.open(place).capture(message="In the mount").state.id
        assert git("rev-parse", "main") != made.decode()
        git(*how, made.decode())

        with closing(heddle.open(repo.path)) as after:
            assert after.git_problems == {} and not after.status().changes
            (repo.path / "more").write_text("more\n")
            assert after.capture(message="More").state.parents == (made,)
        assert git("status", "--porcelain") == ""
    finally:
        repo.unmount("main", force=True)


def test_the_way_out_of_both_have_moved(repo: api.Repository, git: Git, tmp_path: Path) -> None:
    """What is told to do where a mount stands for a branch and both have moved brings them together again."""
    place = repo.mount("main", tmp_path / "mnt").mountpoint
    try:
        mine = commit_file(place, "mine", "mine\n")
        theirs = commit_file(repo.path, "theirs", "theirs\n")
        problem = heddle.open(place).git_problems["main"]
        assert isinstance(problem, branches.Diverged)
        assert f"git switch --detach {theirs[:12]}" in (problem.hint or "")
        git("switch", "-q", "-c", "kept", at=place)
        git("switch", "-q", "--detach", theirs[:12], at=place)

        inside = heddle.open(place)
        assert inside.git_problems == {} and not inside.status().changes
        (place / "more").write_text("more\n")
        assert inside.capture(message="More").state.parents == (theirs.encode(),)
        assert git("rev-parse", "kept") == mine
    finally:
        repo.unmount("main", force=True)


@pytest.mark.parametrize("least", ["1000", None], ids=["by itself", "asked"])
def test_an_edit_right_after_the_state(
    repo: api.Repository, git: Git, tmp_path: Path, least: str | None
) -> None:
    """Git, which may go by whole seconds, sees a change in place that keeps the size, however soon it comes.

    Where nobody has said from how many files on it asks what changed, it need not wait for the second to end; it sees
    the change too where the session that knew is gone.
    """
    repo.config.set("git.fsmonitor_files", least)
    wait_until(lambda: time.time() % 1 < 0.2, "a second to begin")
    made = commit_file(repo.path, "five", "12345")
    place = heddle.open(repo.path).mount("soon", tmp_path / "mnt", create=True).mountpoint
    try:
        assert git("rev-parse", "HEAD", at=place) == made
        assert git("status", "--porcelain", at=place) == ""
        is_asked = git("config", "core.fsmonitor", at=place, code=None) != ""
        assert is_asked == (least is None)
        with (place / "five").open("r+") as file:
            file.write("54321")

        own = ["-c", "core.fsmonitor=false"] if is_asked else []
        assert git(*own, "status", "--porcelain", at=place) == "M five"
        assert git("status", "--porcelain", at=place) == "M five"
    finally:
        repo.unmount("soon", force=True)


def test_an_index_is_not_younger_than_what_it_says(
    repo: api.Repository, git: Git, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is changed while it is written, in the second of the state, is seen by git that goes by whole seconds."""
    overlay = Overlay.open(repo, "main")
    try:
        view = GitView.begin(overlay, "session", tmp_path / "nowhere", "main", agent={})
        assert view is not None
        listed = GitView._listed
        looked: list[float] = []

        def slowly(*given: Any) -> Any:
            looked.append(time.time())
            try:
                return listed(*given)
            finally:
                wait_until(lambda: int(time.time()) > int(looked[-1]), "the second to end")

        monkeypatch.setattr(GitView, "_listed", slowly)
        view._write_index()
        index = (view.linked.git.path / "index").stat()
        assert looked[0] - 0.1 < index.st_mtime_ns / 10**9 <= looked[0]
        view.end()
    finally:
        overlay.close()


def test_nothing_is_staged_after_a_capture_of_everything(
    place: Path, repo: api.Repository, git: Git
) -> None:
    """What git had staged of what is not there is taken back; ignored files, and what is to come, stay staged."""
    for name, content in (("a.txt", "staged\n"), ("gone", "gone\n")):
        (place / name).write_text(content)
        git("add", name, at=place)
    (place / "gone").unlink()
    (place / "a.txt").write_text(git("show", "HEAD:a.txt", at=place) + "\n")
    (place / ".gitignore").write_text("ignored\n")
    (place / "ignored").write_text("kept\n")
    git("add", "-f", "ignored", at=place)
    git("rm", "-q", "--cached", "b.txt", at=place)
    (place / "new").write_text("new\n")

    heddle.open(place).capture(message="A part", paths=[b"new"])
    staged = git("diff", "--cached", "--name-status", at=place).splitlines()
    assert staged == ["M\ta.txt", "D\tb.txt", "A\tgone", "A\tignored"]

    made = heddle.open(place).capture(message="Everything").state.id.decode()
    assert git("rev-parse", "HEAD", at=place) == made
    assert git("status", "--porcelain", at=place) == "A  ignored"
    assert git("diff", "--cached", "--name-only", at=place) == "ignored"
    assert git("ls-tree", "-r", "--name-only", made).split() == [
        ".gitignore",
        "a.txt",
        "b.txt",
        "new",
    ]


@pytest.mark.parametrize("back", [False, True])
def test_what_others_did_is_in_the_index(
    place: Path, repo: api.Repository, git: Git, back: bool
) -> None:
    """A branch that others moved, forward or back, is what git in its mount is at: index, reflog and files."""
    agree(place)
    (place / "a.txt").write_text("captured\n")
    captured = heddle.open(place).capture(message="One").state.id.decode()
    made = git("commit-tree", "-p", captured, "-m", "Git", git("rev-parse", "main^{tree}"))
    to = git("rev-parse", "main") if back else made
    git("update-ref", "refs/heads/agent", to)
    heddle.open(repo.path)

    agree(place)
    assert git("status", "--porcelain", at=place) == ""
    assert git("rev-parse", "HEAD@{0}", at=place) == to


IN_OPEN, IN_NONBLOCK = 0x20, 0x800  # inotify(7)


def watch(directories: list[Path]) -> int:
    """An inotify descriptor that tells what is opened in some directories."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor: int = libc.inotify_init1(IN_NONBLOCK)
    for directory in directories:
        assert libc.inotify_add_watch(descriptor, os.fsencode(directory), IN_OPEN) >= 0
    return descriptor


def opened(descriptor: int) -> set[str]:
    """What was opened since the last call; a watched directory itself is a dot."""
    names = set()
    while True:
        try:
            events = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            return names
        at = 0
        while at < len(events):
            _, _, _, length = struct.unpack_from("iIII", events, at)
            name = os.fsdecode(events[at + 16 : at + 16 + length].rstrip(b"\0"))
            names.add(name or ".")
            at += 16 + length


def test_a_thread_that_can_be_no_branch(repo: api.Repository, git: Git, tmp_path: Path) -> None:
    """Where git can't have the branch, HEAD is detached and stands for the thread, which commits and captures move."""
    git("branch", "agent")
    place = repo.mount("agent/1", tmp_path / "mnt", create=True).mountpoint
    try:
        assert git("status", "--porcelain", at=place) == ""
        assert git("symbolic-ref", "-q", "HEAD", at=place, code=1) == ""
        made = commit_file(place, "one", "1\n")
        assert state(heddle.open(place), "agent/1") == made
        (place / "two").write_text("2\n")
        captured = heddle.open(place).capture(message="Two")
        assert git("rev-parse", "HEAD", at=place) == captured.state.id.decode()
        assert git("status", "--porcelain", at=place) == ""
    finally:
        repo.unmount("agent/1", force=True)


def test_a_mount_before_the_first_commit(tmp_path: Path, git: Git) -> None:
    """In a repository without commits a mount works, and the first commit in it is the thread's first state."""
    path = tmp_path / "work"
    path.mkdir()
    git("init", "-q", "-b", "main")
    repo = heddle.init(path)
    place = repo.mount("agent", tmp_path / "mnt", create=True).mountpoint
    try:
        made = commit_file(place, "one", "1\n")
        agree(place)
        assert state(heddle.open(place), "agent") == made
    finally:
        repo.unmount("agent", force=True)


def test_a_commit_under_way_is_not_taken_back(place: Path, repo: api.Repository, git: Git) -> None:
    """Between git's reflog and git's ref a heddle command changes nothing: the commit is followed when it is there."""
    made = commit_file(place, "one", "1\n")
    ref = repo.path / ".git" / "refs" / "heads" / "agent"
    base = state(repo, "agent")
    ref.write_text(f"{base}\n")  # as it was a moment ago, with git's lock still there
    lock = ref.with_name("agent.lock")
    lock.touch()
    log = git("reflog", at=place)

    heddle.open(repo.path)

    assert git("reflog", at=place) == log
    lock.unlink()
    ref.write_text(f"{made}\n")
    agree(place)
    assert state(heddle.open(repo.path), "agent") == made


def test_a_mount_made_while_a_branch_is_moved(
    place: Path, repo: api.Repository, git: Git, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mount that comes while a capture moves another branch is not taken for seen: its own branch is made."""
    capturing, mounting = heddle.open(place), heddle.open(repo.path)
    options = lifecycle.MountOptions(create=True)
    late = tmp_path / "late"

    def meanwhile(point: str) -> None:
        if point == "branches.before-ref" and "late" not in mounting.threads:
            lifecycle.mount(mounting, "late", late, options, mounting.runtime)

    (place / "new").write_text("new\n")
    with monkeypatch.context() as patched:
        patched.setattr(faults, "reach", meanwhile)
        capturing.capture(message="Moves a branch")
    try:
        assert os.path.ismount(late)
        mounting.follow_git()
        assert git("rev-parse", "late") == state(mounting, "late")
        commit_file(late, "who", "late")
        agree(late, "late")
        assert git("rev-parse", "late~1") == git("rev-parse", "main")
    finally:
        mounting.unmount("late", force=True)


def capture_of_the_session(repo: api.Repository, thread: str) -> str:
    """The commit point of a capture in a mount, which asks nobody for the comparison's lock."""
    old = repo.database.thread(thread)
    assert old is not None and old.state is not None
    with repo.store.writer() as writer:
        made = record_state(
            repo, writer, thread=thread, expected=old.state, tree=repo.state(old.state).tree,
            attribution=repo.attribution(), message="Meanwhile", overlay_base=True,
        )  # fmt: skip
    return made.id.decode()


def test_a_capture_while_threads_and_mounts_are_read(
    place: Path, repo: api.Repository, git: Git, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A capture between the reading of threads and of mounts does not bring its mount back to the state before."""
    comparing = heddle.open(repo.path)
    made = []
    read = branches.mounts

    def meanwhile(of: api.Repository) -> object:
        made.append(capture_of_the_session(repo, "agent"))
        return read(of)

    git("branch", "other", "main~1")
    with monkeypatch.context() as patched:
        patched.setattr(branches, "mounts", meanwhile)
        branches.follow(comparing, adopt=comparing._adopt)

    assert (repo.overlay_base("agent") or b"").decode() == state(repo, "agent") == made[0]
    comparing.follow_git()
    assert git("rev-parse", "agent") == made[0] and comparing.git_problems == {}


@pytest.mark.parametrize(
    ("thread", "when"),
    [(name, when) for name in ("agent", "main") for when in ("before", "after")]
    + [("agent", "branches.before-ref")],
)
def test_a_commit_while_a_capture_is_made(
    repo: api.Repository, git: Git, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, thread: str, when: str
) -> None:  # fmt: skip
    """Where git in a mount commits during a capture, the capture comes on top of the commit, with what is left."""
    place = repo.mount(thread, tmp_path / "mnt", create=thread == "agent").mountpoint
    try:
        assert git("status", "--porcelain", at=place) == ""
        (place / "captured").write_text("c\n")
        inside = heddle.open(place)
        capture, made = inside._capture_mount, []

        def meanwhile(*arguments: object) -> object:
            if made:
                return capture(*arguments)  # type: ignore[arg-type]
            done = None if when == "before" else capture(*arguments)  # type: ignore[arg-type]
            if when == "branches.before-ref":
                monkeypatch.setattr(faults, "reach", lambda point: point == when and commit())
            else:
                commit()
            return done or capture(*arguments)  # type: ignore[arg-type]

        def commit() -> None:
            if not made:
                (place / "captured").write_text("again\n")
                git("add", "captured", at=place)
                made.append(commit_file(place, "committed", "g\n"))
                (place / "captured").write_text("and again\n")

        monkeypatch.setattr(inside, "_capture_mount", meanwhile)
        captured = inside.capture(message="Both").state

        assert [parent.decode() for parent in captured.parents] == made
        assert git("rev-parse", "HEAD", at=place) == captured.id.decode()
        assert git("show", "--name-only", "--format=", at=place) == "captured"
        assert git("status", "--porcelain", at=place) == ""
        assert state(heddle.open(place), thread) == captured.id.decode()
        assert heddle.open(place).status().changes == []
    finally:
        repo.unmount(thread, force=True)


def test_a_capture_gives_way_while_git_holds_its_index(
    place: Path, git: Git, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Git that commits during a capture may hold its index still: the capture comes on top all the same."""
    assert git("status", "--porcelain", at=place) == ""
    lock = Path(git("rev-parse", "--git-path", "index.lock", at=place))
    (place / "captured").write_text("c\n")
    inside = heddle.open(place)
    capture, made = inside._capture_mount, []

    def meanwhile(*arguments: object) -> object:
        if made:
            lock.unlink()
            return capture(*arguments)  # type: ignore[arg-type]
        done = capture(*arguments)  # type: ignore[arg-type]
        (place / "captured").write_text("again\n")
        made.append(commit_file(place, "committed", "g\n"))
        lock.touch()
        return done

    monkeypatch.setattr(inside, "_capture_mount", meanwhile)
    captured = inside.capture(message="On top").state

    assert [parent.decode() for parent in captured.parents] == made
    assert git("status", "--porcelain", at=place) == ""


def test_git_commits_all_that_is_being_captured(
    place: Path, git: Git, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where git in a mount commits everything during a capture, it is said who has it."""
    assert git("status", "--porcelain", at=place) == ""
    (place / "captured").write_text("c\n")
    inside = heddle.open(place)
    capture, made = inside._capture_mount, []

    def meanwhile(*arguments: object) -> object:
        done = capture(*arguments)  # type: ignore[arg-type]
        if not made:
            git("add", "-A", at=place)
            git("commit", "-q", "-m", "All of it", at=place)
            made.append(git("rev-parse", "HEAD", at=place))
        return done

    monkeypatch.setattr(inside, "_capture_mount", meanwhile)
    with pytest.raises(NothingToCapture, match="git in the mount"):
        inside.capture(message="Too late")

    assert state(heddle.open(place), "agent") == made[0]
    assert git("status", "--porcelain", at=place) == ""


def test_a_capture_before_a_mount_is_brought_along(
    place: Path, repo: api.Repository, git: Git
) -> None:
    """A mount whose thread goes on while it is to be brought to where both were stays with its thread."""
    commit_file(place, "one", "1\n")
    branches.follow(repo)  # the thread follows; nobody tells the mount
    made = []

    def adopt(thread: str, *where: object) -> None:
        made.append(capture_of_the_session(repo, "agent"))
        repo._adopt(thread, *where)  # type: ignore[arg-type]

    git("branch", "other", "main~1")
    step = branches.follow(repo, adopt=adopt)

    assert isinstance(step.problems["agent"], ThreadMoved)
    assert (repo.overlay_base("agent") or b"").decode() == state(repo, "agent") == made[0]
