"""The git verbs as a script meets them: JSON as the manual says, exit codes, notes on stderr."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from world import processes_of, wait_until

from heddle import api
from heddle.mount.foretold import TOLD
from heddle.objects.output import processors

from .conftest import Git, commit_file, run_git, state
from .servers import bare_copy

MAN = Path(__file__).parents[2] / "man"
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run ``heddle`` as a process; fails unless it exits with ``code``."""

    def run(*args: object, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "heddle", *map(str, args)]
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=os.environ)
        assert done.returncode == code, (args, done)
        return done

    return run


def fields(value: Any) -> set[str]:
    """Every key in a JSON value, at any depth."""
    if isinstance(value, dict):
        return set(value).union(*map(fields, value.values()))
    return set().union(*map(fields, value)) if isinstance(value, list) else set()


def documented(verb: str) -> set[str]:
    """The fields that a page names."""
    lines = [line for line in (MAN / f"heddle-{verb}.1").read_text().splitlines() if "Va" in line]
    return set(re.findall(r"\b[a-z][a-z0-9_]+\b", " ".join(lines).replace("Va", "")))


def test_a_mount_lists_for_git_before_git_comes(run: Run, git: Git, tmp_path: Path) -> None:
    """A process that the command leaves behind lists a large tree, where the session would wait for git, and ends."""
    bare = tmp_path / "bare.git"
    git("init", "-q", "--bare", "-b", "main", bare, at=tmp_path)
    files = "".join(f"M 100644 inline d{n % 9}/{n}\ndata 2\n{n % 9}\n" for n in range(TOLD + 1))
    stream = f"commit refs/heads/main\ncommitter A <a@b> 1700000000 +0000\ndata 1\nx\n{files}"
    subprocess.run(["git", "-C", bare, "fast-import", "--quiet"], input=stream.encode(), check=True)
    run("init", cwd=bare)
    place = tmp_path / "mnt"
    run("mount", "main", place, cwd=bare)
    try:
        if processors() > 1:
            kept = bare / ".heddle/gitindex"
            wait_until(lambda: kept.is_dir() and len(list(kept.iterdir())) == 1, "the listing")
        assert not list((bare / "worktrees").glob("*/index"))
        assert run_git(place, "status", "--porcelain") == ""
        assert run_git(place, "ls-files").count("\n") == TOLD
        assert run_git(place, "-c", "core.fsmonitor=false", "diff", "--stat") == ""
    finally:
        run("unmount", "main", cwd=bare)
    wait_until(lambda: not processes_of(tmp_path), "the processes to end")


def test_json_of_every_git_verb(run: Run, checkout: Path, git: Git, tmp_path: Path) -> None:
    """One object on one line, nothing on stderr, and every field is on the verb's page."""
    import json

    git("tag", "v1")
    bare = bare_copy(checkout, tmp_path / "s.git")
    mine = tmp_path / "mine"
    steps: list[tuple[Path, tuple[object, ...]]] = [
        (tmp_path, ("clone", bare, mine)),
        (mine, ("fetch",)),
        (mine, ("pull",)),
        (mine, ("push", "--markers")),
        (mine, ("remote", "list")),
        (mine, ("remote", "add", "other", bare)),
        (mine, ("remote", "remove", "other")),
        (mine, ("git", "export", "--to", tmp_path / "out.git")),
        (mine, ("git", "import", tmp_path / "out.git")),
    ]
    for where, words in steps:
        done = run(*words, "--json", cwd=where)

        assert done.stderr == ""
        assert done.stdout.count("\n") == 1
        assert fields(json.loads(done.stdout)) <= documented(str(words[0])), words


def test_a_relative_path_begins_where_the_command_runs(
    run: Run, checkout: Path, tmp_path: Path
) -> None:
    """Also one that git completes with ``.git``."""
    bare_copy(checkout, tmp_path / "served.git")
    (tmp_path / "here").mkdir()

    run("clone", "../served", "mine", cwd=tmp_path / "here")

    assert (tmp_path / "here/mine/a.txt").read_text() == "one\n"


def test_diverged_is_noted_on_stderr_and_refuses_captures(
    run: Run, repo: api.Repository, git: Git
) -> None:
    """A command that only looks works and notes it; a capture exits with 65 and records nothing."""
    (repo.path / "a.txt").write_text("heddle\n")
    run("capture", "-m", "Heddle's", cwd=repo.path)
    (repo.path / ".git" / "index.lock").touch()
    (repo.path / "a.txt").write_text("heddle again\n")
    captured = run("capture", "-m", "Not in git yet", cwd=repo.path)

    assert "index.lock" in captured.stderr

    (repo.path / ".git" / "index.lock").unlink()
    git(
        "update-ref",
        "refs/heads/main",
        git("commit-tree", "-p", "main", "-m", "git", "main^{tree}"),
    )
    looked = run("thread", "list", cwd=repo.path)

    assert "each has what the other has not" in looked.stderr and "hint:" in looked.stderr

    before = state(repo, "main")
    (repo.path / "a.txt").write_text("third\n")
    refused = run("--json", "capture", "-m", "Third", cwd=repo.path, code=65)

    assert '"kind": "diverged"' in refused.stderr
    assert before == state(repo, "main")


def test_clone_is_named_as_its_address_ends(run: Run, checkout: Path, tmp_path: Path) -> None:
    """As git names it; a relative address is kept absolute."""
    bare_copy(checkout, tmp_path / "project.git")
    (tmp_path / "at").mkdir()

    run("clone", "../project.git", cwd=tmp_path / "at")

    assert (tmp_path / "at" / "project" / "a.txt").exists()
    commit_file(checkout, "n", "new\n")
    run_git(checkout, "push", "-q", tmp_path / "project.git", "main")
    run("pull", cwd=tmp_path / "at" / "project")
    assert (tmp_path / "at" / "project" / "n").exists()


def test_export_to_a_place_that_can_not_be_written(run: Run, repo: api.Repository) -> None:
    """An error with its own exit code, and no traceback."""
    done = run("git", "export", "--to", "/proc/nowhere/x.git", cwd=repo.path, code=73)

    assert "Traceback" not in done.stderr


def test_status_says_what_git_is_at(run: Run, repo: api.Repository, git: Git) -> None:
    """In the middle of a merge, status says so and how to end it."""
    git("switch", "-q", "-c", "other")
    commit_file(repo.path, "a.txt", "other's\n")
    git("switch", "-q", "main")
    commit_file(repo.path, "a.txt", "main's\n")
    assert "in the middle" not in run("status", cwd=repo.path).stdout
    git("merge", "other", code=1)

    said = run("status", cwd=repo.path).stdout
    assert "git is in the middle of a merge here: git merge --continue, or --abort\n" in said
    assert '"git_doing": "merge"' in run("status", "--json", cwd=repo.path).stdout
