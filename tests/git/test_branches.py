"""Threads and branches in step, whoever moved them: heddle on a checkout that git uses too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import heddle
from heddle import api, faults
from heddle.errors import DataError
from heddle.git.branches import Action, Diverged, decide, follow
from heddle.git.export import export
from heddle.git.fetching import fetch
from heddle.repo import gitstage
from heddle.repo.database import Branch, Thread

from .conftest import Git, commit_file, run_git, state

A, B, C = (letter * 40 for letter in (b"a", b"b", b"c"))


def thread(at: bytes | None) -> Thread:
    return Thread("t", at, 0, 0)


@pytest.mark.parametrize(
    ("here", "there", "row", "expected"),
    [
        (None, A, None, Action.MAKE),
        (thread(A), A, None, Action.SAME),
        (thread(A), A, Branch(A), Action.NOTHING),
        (thread(A), A, Branch(B), Action.SAME),
        (thread(A), B, Branch(A), Action.FOLLOW),
        (thread(None), B, Branch(None), Action.FOLLOW),
        (thread(B), A, Branch(A), Action.PUSH),
        (thread(B), C, Branch(A), Action.WEIGH),
        (thread(B), C, None, Action.WEIGH),
        (thread(A), None, Branch(A), Action.FORGET),
        (thread(B), None, Branch(None), Action.PUSH),
        (thread(A), None, None, Action.NOTHING),
        (None, A, Branch(A), Action.DROP),
        (None, B, Branch(A), Action.MAKE),
        (None, A, Branch(A, dropped=True), Action.NOTHING),
        (None, B, Branch(A, dropped=True), Action.MAKE),
        (thread(B), A, Branch(A, dropped=True), Action.WEIGH),
        (None, None, Branch(A), Action.FORGET),
    ],
)
def test_who_moved_decides(
    here: Thread | None, there: bytes | None, row: Branch | None, expected: Action
) -> None:
    """The side that left where both last agreed is followed; when both did, or never agreed, history is weighed."""
    assert expected == decide(here, there, row)


# what git did


def test_branches_are_threads(checkout: Path, git: Git) -> None:
    """Every branch of a checkout is a thread of its name at its commit."""
    git("branch", "side", "HEAD~1")
    heddle.init(checkout)

    repo = heddle.open(checkout)

    assert [(each.name, each.state) for each in repo.threads] == [
        ("main", git("rev-parse", "main").encode()),
        ("side", git("rev-parse", "side").encode()),
    ]


def test_a_commit_is_seen(repo: api.Repository) -> None:
    """After git commit the thread is at the new commit and nothing counts as changed."""
    new = commit_file(repo.path, "c.txt", "c\n")

    again = heddle.open(repo.path)

    assert new == state(again, "main")
    assert list(again.status().changes) == []


def test_a_switch_is_seen(repo: api.Repository, git: Git) -> None:
    """After git switch -c HEAD is on that thread."""
    git("switch", "-q", "-c", "topic")

    assert heddle.open(repo.path).head == "topic"


def test_a_conflict_is_not_captured(repo: api.Repository, git: Git) -> None:
    """In a rebase that stands at a conflict nothing is captured until git is told how it ends; then it may be."""
    git("switch", "-q", "-c", "side", "HEAD~1")
    commit_file(repo.path, "b.txt", "other\n")
    git("rebase", "main", code=1)
    inside = heddle.open(repo.path)
    before = inside.head, state(inside, inside.head)
    with pytest.raises(DataError, match=r"a rebase, and b\.txt is in conflict") as caught:
        inside.capture(message="Markers")
    assert caught.value.exit_code == 65
    assert before == (inside.head, state(inside, inside.head))

    (repo.path / "b.txt").write_text("both\n")
    git("add", "b.txt")
    solved = heddle.open(repo.path).capture(message="Solved").state.id.decode()
    assert state(repo, "detached") == solved


@pytest.mark.parametrize("where", ["checkout", "mount"])
@pytest.mark.parametrize("by", ["stash", "squash"])
def test_a_conflict_that_is_no_operation(
    repo: api.Repository, git: Git, tmp_path: Path, where: str, by: str
) -> None:
    """Also where git is in the middle of nothing, what it has in conflict is not captured, markers and all."""
    place = repo.path
    if where == "mount":
        place = repo.mount("side", tmp_path / "mnt", create=True, start="main").mountpoint
    try:
        (place / "b.txt").write_text("mine\n")
        if by == "stash":
            git("stash", "-q", at=place)
            commit_file(place, "b.txt", "other\n")
            git("stash", "pop", at=place, code=1)
        else:
            git("commit", "-qam", "Mine", at=place)
            git("branch", "theirs", at=place)
            git("reset", "-q", "--hard", "HEAD~1", at=place)
            commit_file(place, "b.txt", "other\n")
            git("merge", "--squash", "theirs", at=place, code=1)
        inside = heddle.open(place)
        with pytest.raises(DataError, match=r"b\.txt is in conflict") as caught:
            inside.capture(message="Markers")
        assert (caught.value.exit_code, caught.value.hint) == (65, "edit it, and git add b.txt")
        assert git("ls-files", "-u", at=place)

        (place / "b.txt").write_text("both\n")
        git("add", "b.txt", at=place)
        made = heddle.open(place).capture(message="Solved").state.id.decode()
        assert git("show", f"{made}:b.txt") == "both"
    finally:
        if where == "mount":
            repo.unmount("side", force=True)


@pytest.mark.parametrize("version", ["2", "3", "4"])
def test_conflicts_are_found_without_a_look_at_each_entry(
    repo: api.Repository, git: Git, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """An index that git has written a tree of has none, which it says itself; of any other the flags are read."""
    index = repo.path / ".git/index"
    for length in range(1, 30):
        (repo.path / ("n" * length)).write_text("a name of any length\n")
    (repo.path / ("long/" + "l" * 200) / ("l" * 250)).mkdir(parents=True)
    git("add", ".")
    git("update-index", f"--index-version={version}")
    if version == "3":
        git("update-index", "--skip-worktree", "nnn", "nnnn")
    (repo.path / "TREE").mkdir()
    (repo.path / "TREE/TREE").write_text("TREE")
    git("add", ".")
    with monkeypatch.context() as patch:
        patch.setattr(gitstage, "each_entry", None if version != "4" else gitstage.each_entry)
        assert gitstage.conflicts(index, 20) == []
    git("commit", "-q", "-m", "A name")
    with monkeypatch.context() as patch:
        patch.setattr(gitstage, "each_entry", None)
        assert gitstage.conflicts(index, 20) == []
    blob = git("rev-parse", "HEAD:TREE/TREE")
    lines = "".join(f"100644 {blob} {stage}\tTREE/TREE\n" for stage in (1, 2, 3))
    command = ["git", "update-index", "--index-info"]
    zero = f"0 {'0' * 40}\tTREE/TREE\n"
    subprocess.run(command, cwd=repo.path, input=zero + lines, text=True, check=True)
    assert gitstage.conflicts(index, 20) == [b"TREE/TREE"]


def test_a_capture_in_a_hook_of_a_commit(repo: api.Repository, git: Git) -> None:
    """While git has the index locked for a commit a capture is refused; the commit goes on, and both are in step."""
    hook = repo.path / ".git/hooks/pre-commit"
    hook.parent.mkdir(exist_ok=True)
    command = f"{sys.executable} -m heddle capture -m hooked"
    hook.write_text(f"#!/bin/sh\n{command} 2>.git/said; echo $? >.git/code\n")
    hook.chmod(0o755)
    (repo.path / "b.txt").write_text("new\n")
    git("commit", "-q", "-a", "-m", "Real")

    assert (repo.path / ".git/code").read_text() == "75\n"
    assert "in a hook of it" in (repo.path / ".git/said").read_text()
    again = heddle.open(repo.path)
    assert state(again, "main") == git("rev-parse", "main")
    assert again.git_problems == {}


def test_a_branch_that_is_elsewhere(repo: api.Repository, git: Git, tmp_path: Path) -> None:
    """Who has a branch checked out is named, and what to do about it: of a mount its place, whatever its thread is."""
    git("worktree", "add", "-q", "-b", "theirs", tmp_path / "theirs")
    with pytest.raises(DataError) as caught:
        heddle.open(repo.path).switch("theirs")
    assert str(tmp_path / "theirs") in caught.value.message and caught.value.hint == "work there"

    place = repo.mount("agent", tmp_path / "mnt", create=True).mountpoint
    try:
        git("branch", "-m", "another", at=place)
        with pytest.raises(DataError) as caught:
            heddle.open(repo.path).switch("another")
        assert caught.value.hint == f"heddle unmount {place}, or work there"
    finally:
        repo.unmount(str(place), force=True)


def test_a_rebase_is_seen(repo: api.Repository, git: Git) -> None:
    """After git rebase the thread is at the rewritten commits."""
    git("switch", "-q", "-c", "topic", "HEAD~1")
    commit_file(repo.path, "t.txt", "t\n")
    old = state(heddle.open(repo.path), "topic")
    git("rebase", "-q", "main")

    again = heddle.open(repo.path)

    assert old != state(again, "topic") == git("rev-parse", "topic")
    assert again.git_problems == {}


def test_a_detached_head_is_a_thread_of_its_own(repo: api.Repository, git: Git) -> None:
    """On a detached HEAD captures go to a thread beside the branches, and the way back is followed."""
    git("switch", "-q", "--detach", "HEAD~1")
    there = heddle.open(repo.path)

    assert ("detached", git("rev-parse", "HEAD")) == (there.head, state(there, there.head))

    git("switch", "-q", "main")

    assert heddle.open(repo.path).head == "main"


def test_a_deleted_branch_leaves_its_thread(repo: api.Repository, git: Git) -> None:
    """git branch -D takes the branch; the thread keeps the state."""
    git("branch", "gone")
    kept = state(heddle.open(repo.path), "gone")
    git("branch", "-q", "-D", "gone")

    assert kept == state(heddle.open(repo.path), "gone")


def test_what_git_drops_is_kept(repo: api.Repository, git: Git) -> None:
    """States of a branch that git rewound or deleted outlive git's gc: the operation log names them."""
    git("switch", "-q", "-c", "gone")
    rewound = commit_file(repo.path, "x", "x")
    heddle.open(repo.path)
    git("reset", "-q", "--hard", "HEAD~1")
    heddle.open(repo.path)
    deleted = commit_file(repo.path, "y", "y")
    git("switch", "-q", "main")
    heddle.open(repo.path)
    git("branch", "-q", "-D", "gone")
    heddle.open(repo.path)
    git("reflog", "expire", "--expire=now", "--all")
    git("gc", "-q", "--prune=now")

    assert [git("show", f"{id}:{name}") for id, name in ((rewound, "x"), (deleted, "y"))] == [
        "x",
        "y",
    ]
    assert heddle.open(repo.path).fsck().problems == []


def test_a_deleted_thread_leaves_its_branch(repo: api.Repository, git: Git) -> None:
    """A thread that was deleted does not come back until its branch moves."""
    git("branch", "side", "HEAD~1")
    heddle.open(repo.path).threads.delete("side")

    assert "side" not in heddle.open(repo.path).threads

    git("branch", "-f", "side", "main")

    assert git("rev-parse", "side") == state(heddle.open(repo.path), "side")


@pytest.mark.parametrize("born", [True, False])
def test_a_deleted_thread_whose_branch_git_switches_to(
    repo: api.Repository, git: Git, born: bool
) -> None:
    """The thread is there again: HEAD is on it, and a capture moves the branch."""
    git("branch", "side", "HEAD~1")
    heddle.open(repo.path).threads.delete("side")
    if born:
        assert "side" not in heddle.open(repo.path).threads
        git("switch", "-q", "side")
    else:
        git("update-ref", "-d", "refs/heads/side")
        git("switch", "-q", "--orphan", "side")

    again = heddle.open(repo.path)
    (repo.path / "new").write_text("new\n")
    again.capture(message="On it")

    assert (again.head, again.git_problems) == ("side", {})
    assert state(again, "side") == git("rev-parse", "side") == git("rev-parse", "HEAD")
    assert git("status", "--porcelain") == ""


def test_packed_refs_are_seen(repo: api.Repository, git: Git) -> None:
    """A branch that only packed-refs names is a thread too."""
    git("branch", "packed", "HEAD~1")
    git("pack-refs", "--all")

    assert git("rev-parse", "packed") == state(heddle.open(repo.path), "packed")


def test_nothing_is_read_when_nothing_moved(
    repo: api.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second look costs no reading of refs."""
    follow(repo)
    monkeypatch.setattr("heddle.git.branches.GitRefs", None)

    assert follow(repo).followed == {}


# what heddle did


def test_a_capture_moves_the_branch(repo: api.Repository, git: Git) -> None:
    """A capture is a commit of git's branch, with index, reflog and objects that git finds sound."""
    (repo.path / "a.txt").write_text("changed\n")
    (repo.path / "new.txt").write_text("new\n")
    (repo.path / "b.txt").unlink()

    captured = repo.capture(message="By heddle")

    assert captured.state.id.decode() == git("rev-parse", "main")
    assert git("status", "--porcelain") == ""
    assert "heddle: By heddle" in git("reflog", "-1", "main") and git("reflog", "-1", "HEAD")
    assert git("fsck", "--strict", "--full") == ""


def test_a_linked_worktree(repo: api.Repository, git: Git, tmp_path: Path) -> None:
    """On a worktree that git added, captures move its branch and its own index."""
    there = tmp_path / "linked"
    git("worktree", "add", "-q", there, "-b", "linked")
    heddle.init(there)
    linked = heddle.open(there)
    (there / "f").write_text("1")
    linked.capture(message="There")

    assert state(linked, "linked") == git("rev-parse", "linked")
    assert (git("status", "--porcelain", at=there), git("status", "--porcelain")) == ("", "")


def test_sha256_ids(tmp_path: Path, git: Git) -> None:
    """A checkout with sha256 ids is kept in step like any other."""
    (tmp_path / "work").mkdir()
    git("init", "-q", "-b", "main", "--object-format=sha256")
    commit_file(tmp_path / "work", "a", "1")
    heddle.init(tmp_path / "work")
    repo = heddle.open(tmp_path / "work")
    (repo.path / "a").write_text("2")
    repo.capture(message="Second")

    assert state(repo, "main") == git("rev-parse", "main")
    assert (git("status", "--porcelain"), git("fsck", "--strict")) == ("", "")
    assert "heddle: Second" in git("reflog", "-1")


def test_submodules_stay(repo: api.Repository, git: Git) -> None:
    """A gitlink that git recorded is in the next capture, byte for byte."""
    git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", repo.path, "sub")
    git("commit", "-q", "-m", "Submodule")
    before = git("ls-tree", "HEAD", "sub")
    repo = heddle.open(repo.path)
    (repo.path / "a.txt").write_text("changed\n")
    repo.capture(message="Beside it")

    assert before == git("ls-tree", "HEAD", "sub")
    assert git("status", "--porcelain") == ""


def test_what_is_staged_elsewhere_stays_staged(repo: api.Repository, git: Git) -> None:
    """A capture of one path leaves git's index as it was at the others."""
    (repo.path / "a.txt").write_text("changed\n")
    (repo.path / "b.txt").write_text("staged\n")
    git("add", "b.txt")

    repo.capture(message="Only a", paths=[b"a.txt"])

    assert git("status", "--porcelain") == "M  b.txt"


def test_a_file_that_becomes_a_directory(repo: api.Repository, git: Git) -> None:
    """Git's index follows a file that becomes a directory, and back."""
    (repo.path / "a.txt").unlink()
    (repo.path / "a.txt").mkdir()
    (repo.path / "a.txt" / "inside").write_text("in\n")
    repo.capture(message="A directory")

    assert git("status", "--porcelain") == ""

    (repo.path / "a.txt" / "inside").unlink()
    (repo.path / "a.txt").rmdir()
    (repo.path / "a.txt").write_text("file\n")
    repo.capture(message="A file")

    assert git("status", "--porcelain") == ""


def test_the_first_capture_of_an_empty_git_repository(tmp_path: Path, git: Git) -> None:
    """A branch that has no commit yet is born by a capture."""
    (tmp_path / "work").mkdir()
    git("init", "-q", "-b", "trunk")
    heddle.init(tmp_path / "work")
    repo = heddle.open(tmp_path / "work")
    (repo.path / "f").write_text("1")

    repo.capture(message="First")

    assert state(repo, "trunk") == git("rev-parse", "trunk")
    assert git("status", "--porcelain") == ""


def test_a_heddle_switch_moves_gits_head(repo: api.Repository, git: Git) -> None:
    """heddle switch is git switch: HEAD, index and working directory go together."""
    git("branch", "side", "HEAD~1")
    repo = heddle.open(repo.path)

    repo.switch("side")

    assert (git("branch", "--show-current"), git("status", "--porcelain")) == ("side", "")


def test_a_thread_that_is_switched_to_becomes_a_branch(repo: api.Repository, git: Git) -> None:
    """heddle switch --create makes the branch, and captures on it move that."""
    repo.switch("mine", create=True)
    (repo.path / "mine.txt").write_text("mine\n")
    repo.capture(message="Mine")

    assert state(repo, "mine") == git("rev-parse", "mine") == git("rev-parse", "HEAD")
    assert git("status", "--porcelain") == ""


def test_other_threads_stay_out_of_git(repo: api.Repository, git: Git) -> None:
    """A thread that is no branch is none of git's business."""
    repo.threads.create("agent-1", repo.resolve("main"))
    heddle.open(repo.path)

    assert git("for-each-ref", "--format=%(refname:short)", "refs/heads") == "main"


def test_a_branch_checked_out_elsewhere_is_not_moved(
    repo: api.Repository, git: Git, tmp_path: Path
) -> None:
    """A branch that a linked worktree is on stays, and why is said."""
    git("worktree", "add", "-q", tmp_path / "linked", "-b", "linked")
    repo = heddle.open(repo.path)
    before = git("rev-parse", "linked")
    _advance(repo, "linked")

    repo.follow_git()

    assert before == git("rev-parse", "linked")
    assert str(tmp_path / "linked") in repo.git_problems["linked"].message


def _advance(repo: api.Repository, name: str, message: str = "Advance") -> bytes:
    """Put a new state on a thread without touching the working directory."""
    from heddle.repo.capture import record_state

    old = repo.threads.get(name).state
    with repo.store.writer() as writer:
        blob = writer.add_blob(message.encode())
        tree = writer.add_tree([(b"made.txt", 0o100644, blob)])
        made = record_state(
            repo, writer, thread=name, expected=old, tree=tree,
            attribution=repo.attribution(), message=message,
        )  # fmt: skip
    return made.id


# both did


@pytest.fixture
def diverged(repo: api.Repository, git: Git) -> api.Repository:
    """Thread and branch ``side``, each with a state that the other has not."""
    git("branch", "side")
    repo = heddle.open(repo.path)
    _advance(repo, "side")
    git(
        "update-ref",
        "refs/heads/side",
        git("commit-tree", "-p", "side", "-m", "git", "side^{tree}"),
    )
    return heddle.open(repo.path)


def test_diverged_sides_are_both_kept(diverged: api.Repository, git: Git) -> None:
    """Neither is overwritten, both ids are shown, and a way out is named."""
    problem = diverged.git_problems["side"]

    assert isinstance(problem, Diverged) and problem.exit_code == 65
    assert state(diverged, "side")[:12] in problem.message
    assert git("rev-parse", "side")[:12] in problem.message
    assert state(diverged, "side") != git("rev-parse", "side")
    assert problem.hint and "heddle thread rename side" in problem.hint


def test_a_capture_on_a_diverged_thread_is_refused(diverged: api.Repository, git: Git) -> None:
    """Before anything is recorded."""
    before = state(diverged, "main")
    _advance(diverged, "main")
    git("commit", "-q", "--allow-empty", "-m", "Git's own")
    repo = heddle.open(diverged.path)
    (repo.path / "more").write_text("more")
    kept = state(repo, "main")

    with pytest.raises(Diverged):
        repo.capture(message="More")

    assert before != kept == state(repo, "main")


def test_a_problem_is_said_until_it_is_solved(repo: api.Repository, git: Git) -> None:
    """A branch that never had anything in common with its thread is told of by every command, not by the first."""
    repo.threads.create("side", repo.resolve("main"))
    git("update-ref", "refs/heads/side", git("commit-tree", "-m", "Apart", "main^{tree}"))
    heddle.open(repo.path)

    again = heddle.open(repo.path)

    assert isinstance(again.git_problems["side"], Diverged)
    git("update-ref", "refs/heads/side", "main")
    assert heddle.open(repo.path).git_problems == {}


def test_a_detached_head_that_goes_on_while_a_branch_is_moved(
    repo: api.Repository, git: Git, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where git's HEAD went after it was read is followed by the next command."""
    git("branch", "side")
    git("switch", "-q", "--detach", "main")
    repo = heddle.open(repo.path)
    _advance(repo, "side")

    def meanwhile(point: str) -> None:
        if point == "branches.before-ref":
            git("switch", "-q", "--detach", "main~1")

    with monkeypatch.context() as patched:
        patched.setattr(faults, "reach", meanwhile)
        repo.follow_git()
    assert state(repo, "side") == git("rev-parse", "side")

    again = heddle.open(repo.path)

    assert state(again, again.head) == git("rev-parse", "HEAD") == git("rev-parse", "main~1")


def test_renaming_the_thread_keeps_both(diverged: api.Repository, git: Git) -> None:
    """The first way out: the thread goes on under another name and the branch is a thread again."""
    mine = state(diverged, "side")
    diverged.threads.rename("side", "side-mine")

    again = heddle.open(diverged.path)

    assert (git("rev-parse", "side"), mine) == (state(again, "side"), state(again, "side-mine"))
    assert again.git_problems == {}


def test_renaming_the_thread_that_git_is_on(repo: api.Repository, git: Git) -> None:
    """Where both have moved, git stays on its branch: that is a thread again, and what we are on."""
    git("switch", "-q", "-c", "side")
    mine = commit_file(repo.path, "mine", "mine\n")
    heddle.open(repo.path).close()
    git("switch", "-q", "main")
    git("branch", "-q", "-D", "side")
    heddle.open(repo.path).close()
    git("switch", "-q", "-c", "side")
    theirs = commit_file(repo.path, "theirs", "theirs\n")
    (repo.path / "more").write_text("more\n")
    both = heddle.open(repo.path)
    assert isinstance(both.git_problems["side"], Diverged)
    both.threads.rename("side", "side-mine")

    again = heddle.open(repo.path)

    assert again.git_problems == {}
    assert git("symbolic-ref", "HEAD") == "refs/heads/side"
    assert (again.head, state(again, "side"), state(again, "side-mine")) == ("side", theirs, mine)
    assert [change.path for change in again.status().changes] == [b"more"]
    assert git("status", "--porcelain") == "?? more"
    assert again.capture(message="More").state.parents == (theirs.encode(),)


def test_renaming_the_thread_that_both_are_on(repo: api.Repository, git: Git) -> None:
    """Where nothing had moved, git goes along to the new name."""
    repo.threads.rename("main", "trunk")
    again = heddle.open(repo.path)

    assert git("symbolic-ref", "HEAD") == "refs/heads/trunk"
    assert again.head == "trunk" and not again.status().changes


def test_forcing_the_export_moves_the_branch(diverged: api.Repository, git: Git) -> None:
    """The second way out: the branch goes to the thread's state, and git's reflog keeps the other."""
    from heddle.git.export import export

    theirs = git("rev-parse", "side")
    export(diverged, ["side"], force=True)

    assert state(diverged, "side") == git("rev-parse", "side")
    assert theirs == git("rev-parse", "side@{1}")


# bad input


def test_a_locked_index_keeps_the_branch_and_says_so(repo: api.Repository, git: Git) -> None:
    """The capture is recorded; branch and index wait together and are brought along when the lock is gone."""
    before = git("rev-parse", "main")
    lock = repo.path / ".git" / "index.lock"
    lock.touch()
    (repo.path / "a.txt").write_text("changed\n")
    captured = repo.capture(message="Locked out")

    assert before == git("rev-parse", "main")
    assert str(lock) in repo.git_problems["main"].message
    assert repo.git_problems["main"].exit_code == 75

    lock.unlink()
    heddle.open(repo.path)

    assert captured.state.id.decode() == git("rev-parse", "main")
    assert git("status", "--porcelain") == ""


def test_a_switch_with_a_locked_index_is_finished_later(repo: api.Repository, git: Git) -> None:
    """The working directory has gone; git's HEAD and index follow when the lock is gone."""
    git("branch", "side", "HEAD~1")
    repo = heddle.open(repo.path)
    lock = repo.path / ".git" / "index.lock"
    lock.touch()
    repo.switch("side")

    assert (repo.head, git("branch", "--show-current")) == ("side", "main")
    assert str(lock) in repo.git_problems["side"].message

    lock.unlink()
    heddle.open(repo.path)

    assert (git("branch", "--show-current"), git("status", "--porcelain")) == ("side", "")


def test_an_index_named_by_the_environment_is_not_ours(
    repo: api.Repository, git: Git, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A capture from within a git hook brings along the checkout's index, not the one of the hook."""
    (repo.path / "a.txt").write_text("changed\n")
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "other"))
    repo.capture(message="From a hook")
    monkeypatch.delenv("GIT_INDEX_FILE")

    assert git("status", "--porcelain") == ""
    assert not (tmp_path / "other").exists()


def test_a_locked_branch_is_moved_later(repo: api.Repository, git: Git) -> None:
    """A ref that git holds locked is a problem that names the lock, and is moved by a later command."""
    git("branch", "side")
    repo = heddle.open(repo.path)
    new = _advance(repo, "side")
    lock = repo.path / ".git/refs/heads/side.lock"
    lock.touch()
    repo.follow_git()

    assert "side.lock" in repo.git_problems["side"].message

    lock.unlink()
    repo.follow_git()

    assert new.decode() == git("rev-parse", "side")


def test_no_capture_in_the_middle_of_a_merge(repo: api.Repository, git: Git) -> None:
    """A capture would lose the second parent: it is refused and says what to do."""
    git("switch", "-q", "-c", "other", "HEAD~1")
    commit_file(repo.path, "b.txt", "conflict\n")
    git("merge", "-q", "main", code=1)
    repo = heddle.open(repo.path)

    with pytest.raises(DataError, match="middle of a merge"):
        repo.capture(message="Half")


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize(
    "begin",
    [
        ["merge", "--no-ff", "--no-commit", "other"],
        ["rebase", "-q", "--exec", "false", "HEAD~1"],
        ["revert", "--no-commit", "HEAD"],
    ],
    ids=lambda begin: begin[0],
)
def test_no_switch_in_the_middle_of_a_merge(
    repo: api.Repository, git: Git, begin: list[str], create: bool
) -> None:
    """Git would finish it on the other branch: it is refused, as git refuses it, and nothing has moved."""
    git("switch", "-q", "-c", "other", "HEAD~1")
    commit_file(repo.path, "b.txt", "other\n")
    git("switch", "-q", "main")
    commit_file(repo.path, "a.txt", "once more\n")
    git(*begin, code=None)
    repo = heddle.open(repo.path)
    before = git("status", "--porcelain"), git("rev-parse", "HEAD"), repo.head

    with pytest.raises(DataError, match=f"middle of a {begin[0]}"):
        repo.switch("new" if create else "other", create=create)

    assert (git("status", "--porcelain"), git("rev-parse", "HEAD"), repo.head) == before


def test_a_format_of_the_future_is_refused(repo: api.Repository, git: Git) -> None:
    """A git repository with an unknown extension is not written to; heddle itself still opens."""
    git("config", "core.repositoryformatversion", "1")
    git("config", "extensions.heddletest", "true")
    git("branch", "-f", "side", code=None)
    (repo.path / ".git/refs/heads/side").write_text(state(repo, "main") + "\n")

    again = heddle.open(repo.path)

    assert "does not know" in again.git_problems[""].message
    assert "main" in again.threads


def test_damaged_refs_are_said_and_nothing_moves(repo: api.Repository) -> None:
    """A branch that holds no id is left out or reported; the threads stay as they were."""
    before = [(each.name, each.state) for each in repo.threads]
    (repo.path / ".git/packed-refs").write_bytes(b"# pack-refs with: peeled\nrubbish\n")

    again = heddle.open(repo.path)

    assert before == [(each.name, each.state) for each in again.threads]
    assert "damaged" in again.git_problems[""].message


CRASHES = [
    "gitpack.before-pack",
    "gitpack.before-index",
    "branches.before-ref",
    "branches.before-follow",
]


@pytest.mark.parametrize("point", CRASHES)
def test_a_crash_is_finished_by_the_next_command(
    repo: api.Repository, git: Git, point: str
) -> None:
    """Killed between any two steps, git stays sound, and the next command brings both in step."""
    git("branch", "side")
    heddle.open(repo.path)
    commit_file(repo.path, "c.txt", "c\n")
    (repo.path / "a.txt").write_text("changed\n")
    done = subprocess.run(
        [sys.executable, "-m", "heddle", "capture", "-m", "Killed"],
        cwd=repo.path,
        env={**os.environ, "HEDDLE_FAULT": point},
        capture_output=True,
    )

    assert done.returncode == -9, done
    run_git(repo.path, "fsck", "--strict")
    again = heddle.open(repo.path)

    assert again.git_problems == {}
    assert state(again, "main") == git("rev-parse", "main")
    run_git(repo.path, "fsck", "--strict")


@pytest.mark.parametrize("how", ["capture", "fetch", "export"])
def test_a_repack_in_the_middle(
    repo: api.Repository, git: Git, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What git is given stays, though it repacks everything just before a ref leads to it."""
    points = {
        "capture": "branches.before-ref",
        "fetch": "fetching.before-names",
        "export": "export.before-ref",
    }
    target = tmp_path / "out.git" if how == "export" else repo.path / ".git"
    seen = []

    def repack(point: str) -> None:
        if point == points[how]:
            seen.append(list((target / "objects/pack").glob("*.keep")))
            git("repack", "-a", "-d", "-q", at=target)
            git("prune", "--expire=now", at=target)

    (repo.path / "new").write_text("new\n")
    if how == "fetch":
        git("clone", "-q", repo.path, tmp_path / "theirs")
        theirs = commit_file(tmp_path / "theirs", "theirs", "theirs\n")
        git("remote", "add", "origin", tmp_path / "theirs")
    with monkeypatch.context() as patch:
        patch.setattr(faults, "reach", repack)
        if how == "capture":
            repo.capture(message="New")
        elif how == "fetch":
            assert fetch(repo).refs[0].new == theirs.encode()
        else:
            export(repo, ["main"], to=target)

    assert seen and seen[0]
    assert git("fsck", "--strict", "--connectivity-only", at=target) == ""
    assert not list((target / "objects/pack").glob("*.keep"))
