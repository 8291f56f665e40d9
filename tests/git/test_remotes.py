"""Clone, fetch, pull and push against stock git as the server, and against servers that fail."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import heddle
from heddle import api
from heddle.errors import (
    CannotCreate,
    DataError,
    HeddleError,
    NotPermitted,
    UnsavedChanges,
    UsageError,
)
from heddle.git import remotes
from heddle.git.branches import Diverged
from heddle.git.cloning import clone
from heddle.git.fetching import fetch, pull, tracked
from heddle.git.pushing import PushRejected, push
from heddle.git.transport import RemoteFailed, RemoteNotFound, RemoteUnreachable

from .conftest import Git, commit_file, refs, run_git, state
from .servers import bare_copy, cut_off, git_daemon, http_server

Address = Callable[[str], str]


@pytest.fixture
def bare(checkout: Path, git: Git, tmp_path: Path) -> Path:
    """What the servers serve: two branches, a tag, and an annotated tag of what no branch is at."""
    git("branch", "topic", "HEAD~1")
    git("tag", "light")
    commit_file(checkout, "c.txt", "c\n")
    git("tag", "-a", "-m", "Noted", "noted")
    commit_file(checkout, "d.txt", "d\n")
    (tmp_path / "served").mkdir()
    return bare_copy(checkout, tmp_path / "served" / "project.git")


@pytest.fixture(params=["path", "file", "git", "http"])
def url(request: pytest.FixtureRequest, bare: Path) -> Iterator[str]:
    """The address of ``bare`` over each way that needs nothing but stock git."""
    if request.param == "path":
        yield str(bare)
    elif request.param == "file":
        yield f"file://{bare}"
    elif request.param == "git":
        with git_daemon(bare.parent) as address:
            yield f"{address}/project.git"
    else:
        with http_server(bare.parent) as address:
            yield f"{address}/project.git"


def cloned(url: str, path: Path) -> api.Repository:
    return clone(api.Repository, url, path, environment=os.environ)[0]  # type: ignore[return-value]


@pytest.fixture
def mine(bare: Path, tmp_path: Path) -> api.Repository:
    """A clone over a local path."""
    return cloned(str(bare), tmp_path / "mine")


def capture(repo: api.Repository, name: str, content: str) -> str:
    (repo.path / name).write_text(content)
    return repo.capture(message=f"Change {name}").state.id.decode()


def others_push(bare: Path, tmp_path: Path, name: str = "theirs.txt") -> str:
    """Somebody else pushes a commit to ``main``; returns it."""
    other = tmp_path / "other"
    if not other.exists():
        run_git(tmp_path, "clone", "-q", bare, other)
    run_git(other, "pull", "-q")
    made = commit_file(other, name, "theirs\n")
    run_git(other, "push", "-q")
    return made


# over every transport


def test_clone_push_fetch_pull(url: str, bare: Path, git: Git, tmp_path: Path) -> None:
    """All four over one transport; stock git clones what was pushed, with the same ids."""
    repo = cloned(url, tmp_path / "mine")

    assert git("rev-parse", "main") == state(repo, "main")
    assert git("rev-parse", "topic") == repo.resolve("origin/topic").decode()
    assert [each.name for each in repo.markers] == ["light", "noted"]
    assert (repo.path / "b.txt").read_text() == "two\n"
    assert list(repo.status().changes) == []
    assert repo.fsck(full=True).problems == []

    new = capture(repo, "mine.txt", "mine\n")
    push(repo)
    run_git(tmp_path, "clone", "-q", bare, tmp_path / "stock")

    assert new == run_git(tmp_path / "stock", "rev-parse", "main")
    assert run_git(bare, "fsck", "--strict") == ""

    theirs = others_push(bare, tmp_path)
    fetched = fetch(repo)

    assert [each.ref for each in fetched.refs] == ["refs/remotes/origin/main"]
    assert new == state(repo, "main")

    pulled = pull(repo)

    assert (theirs, 1) == (state(repo, "main"), pulled.changed_paths)
    assert (repo.path / "theirs.txt").exists()


def test_ssh_is_spoken_through_the_ssh_command(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ssh address runs ssh with git's own command on the other side; here ssh is a local shell."""
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text(
        f'#!{sys.executable}\nimport os, sys\nos.execv("/bin/sh", ["sh", "-c", sys.argv[-1]])\n'
    )
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ssh.parent}:{os.environ['PATH']}")

    repo = cloned(f"ssh://example.org{bare}", tmp_path / "mine")
    new = capture(repo, "f", "1")
    push(repo)

    assert new == run_git(bare, "rev-parse", "main")


# in a repository on git


def test_on_git_the_remotes_are_gits(repo: api.Repository, bare: Path, git: Git) -> None:
    """What git remote add said is known, and the other way round."""
    git("remote", "add", "origin", bare)
    remotes.add(repo, "second", "https://example.org/x.git")

    assert [each.name for each in remotes.remotes(repo)] == ["origin", "second"]
    assert git("remote", "get-url", "second") == "https://example.org/x.git"

    remotes.remove(repo, "second")

    assert git("remote") == "origin"


def test_on_git_a_fetch_is_gits(repo: api.Repository, bare: Path, git: Git, tmp_path: Path) -> None:
    """Objects and remote branches are git's own; a pull moves branch, index and directory; a push is remembered."""
    git("remote", "add", "origin", bare)
    theirs = others_push(bare, tmp_path)

    pull(repo)
    repo.follow_git()

    assert (
        theirs == git("rev-parse", "origin/main") == git("rev-parse", "main") == state(repo, "main")
    )
    assert git("status", "--porcelain") == ""

    repo.threads.create("agent-1", repo.resolve("main"))
    push(repo, "origin", ["agent-1"])

    assert theirs == git("rev-parse", "origin/agent-1") == run_git(bare, "rev-parse", "agent-1")
    assert git("fsck", "--strict") == ""


def test_a_shallow_clone_of_git_pushes(bare: Path, git: Git, tmp_path: Path) -> None:
    """On a shallow clone that git made, heddle captures and pushes what is new."""
    git("clone", "-q", "--depth=1", f"file://{bare}", tmp_path / "shallow")
    heddle.init(tmp_path / "shallow")
    repo = heddle.open(tmp_path / "shallow")
    new = capture(repo, "f", "1")

    push(repo)

    assert new == run_git(bare, "rev-parse", "main")
    assert run_git(bare, "fsck", "--strict") == ""


# refusals


def test_a_push_that_would_lose_commits_is_refused(
    mine: api.Repository, bare: Path, tmp_path: Path
) -> None:
    """Both ids are shown, the server is as it was; --force moves it."""
    theirs = others_push(bare, tmp_path)
    ours = capture(mine, "f", "1")

    with pytest.raises(Diverged, match=f"{theirs[:12]}.*{ours[:12]}") as caught:
        push(mine)

    assert caught.value.exit_code == 65
    assert theirs == run_git(bare, "rev-parse", "main")

    push(mine, force=True)

    assert ours == run_git(bare, "rev-parse", "main")


def test_a_hook_that_rejects_is_heard(mine: api.Repository, bare: Path) -> None:
    """A push that the server's hook refuses: why, exit code 65, and nothing moved on either side."""
    hook = bare / "hooks" / "update"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    before = refs(bare)
    capture(mine, "f", "1")
    known = tracked(mine, "origin", "main")

    with pytest.raises(PushRejected, match="hook declined") as caught:
        push(mine)

    assert caught.value.exit_code == 65
    assert before == refs(bare)
    assert known == tracked(mine, "origin", "main")


def test_a_checked_out_branch_refuses_as_git_does(checkout: Path, tmp_path: Path, git: Git) -> None:
    """A push to the branch that a repository with a checkout is on is refused by git itself."""
    repo = cloned(str(checkout), tmp_path / "mine")
    before = git("rev-parse", "main")
    capture(repo, "f", "1")

    with pytest.raises(PushRejected, match="checked out"):
        push(repo)

    assert before == git("rev-parse", "main")


def test_a_pull_does_not_overwrite_states(mine: api.Repository, bare: Path, tmp_path: Path) -> None:
    """Diverged: both ids, the thread stays, and what was fetched is there to look at."""
    theirs = others_push(bare, tmp_path)
    ours = capture(mine, "f", "1")

    with pytest.raises(Diverged, match=f"{ours[:12]}.*{theirs[:12]}"):
        pull(mine)

    assert (ours, theirs) == (state(mine, "main"), mine.resolve("origin/main").decode())


def test_a_pull_does_not_overwrite_unsaved_changes(
    mine: api.Repository, bare: Path, tmp_path: Path
) -> None:
    """A file that would be overwritten stays, and so does the thread."""
    others_push(bare, tmp_path, "a.txt")
    before = state(mine, "main")
    (mine.path / "a.txt").write_text("unsaved\n")

    with pytest.raises(UnsavedChanges):
        pull(mine)

    assert (before, "unsaved\n") == (state(mine, "main"), (mine.path / "a.txt").read_text())
    assert len(mine.status().changes) == 1


def test_clone_needs_an_empty_place(bare: Path, tmp_path: Path) -> None:
    """What is there stays."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "f").touch()

    with pytest.raises(CannotCreate):
        cloned(str(bare), tmp_path / "mine")

    assert os.listdir(tmp_path / "mine") == ["f"]


def test_cloning_nothing(tmp_path: Path, nothing_left: None) -> None:
    """An empty repository is cloned: no state yet, and a push makes its first branch."""
    run_git(tmp_path, "init", "-q", "--bare", "-b", "main", "empty.git")

    repo = cloned(str(tmp_path / "empty.git"), tmp_path / "mine")
    new = capture(repo, "f", "1")
    push(repo)

    assert new == run_git(tmp_path / "empty.git", "rev-parse", "main")


@pytest.mark.parametrize("url", ["-oProxyCommand=x", "ext::sh -c date", ""])
def test_an_address_that_could_run_something(mine: api.Repository, url: str) -> None:
    """What git would take for an option or a helper is no address."""
    with pytest.raises(UsageError):
        remotes.add(mine, "evil", url)
        fetch(mine, "evil")


def test_remotes_come_and_go(mine: api.Repository) -> None:
    """A remote that is removed takes its tracking branches; its name must be free to be added."""
    with pytest.raises(DataError):
        remotes.add(mine, "origin", "elsewhere")

    remotes.remove(mine, "origin")

    assert remotes.remotes(mine) == []
    assert not [ref for ref in mine.database.refs() if ref.startswith(b"refs/remotes/")]
    with pytest.raises(DataError):
        remotes.remove(mine, "origin")


# credentials


def test_git_helpers_are_asked_for_credentials(bare: Path, tmp_path: Path) -> None:
    """A server that wants a password gets the one that git's credential store knows."""
    with http_server(bare.parent, password="secret") as address:
        with pytest.raises(NotPermitted) as caught:
            cloned(f"{address}/project.git", tmp_path / "refused")

        assert caught.value.exit_code == 77
        assert not (tmp_path / "refused").exists()

        store = tmp_path / "home" / ".git-credentials"
        store.write_text(address.replace("http://", "http://ann:secret@") + "\n")
        (tmp_path / "home" / ".gitconfig").write_text("[credential]\n\thelper = store\n")

        repo = cloned(f"{address}/project.git", tmp_path / "mine")

        new = capture(repo, "f", "1")
        push(repo)

        assert new == run_git(bare, "rev-parse", "main")


def test_a_password_in_an_address_is_not_shown(mine: api.Repository) -> None:
    """Errors name the address without it."""
    remotes.add(mine, "far", "http://ann:secret@127.0.0.1:1/x.git")

    with pytest.raises(RemoteUnreachable) as caught:
        fetch(mine, "far")

    assert "secret" not in caught.value.message


# servers that fail


def _names(repo: api.Repository) -> tuple[dict[bytes, bytes], list[object], list[object]]:
    return repo.database.refs(), list(repo.threads), list(repo.markers)


@pytest.mark.parametrize("after", [0, 10, 300, 700, 2_000, 100_000])
def test_a_server_that_hangs_up(
    mine: api.Repository, bare: Path, tmp_path: Path, after: int
) -> None:
    """Wherever the connection ends, it is an error that says so, and no name has moved."""
    other = tmp_path / "other"
    run_git(tmp_path, "clone", "-q", bare, other)
    (other / "big").write_bytes(os.urandom(1 << 20))
    run_git(other, "add", "big")
    run_git(other, "commit", "-q", "-m", "Big")
    run_git(other, "push", "-q")
    before = _names(mine)
    with git_daemon(bare.parent) as daemon, cut_off(daemon, after) as address:
        remotes.add(mine, "cut", f"{address}/project.git")
        with pytest.raises(RemoteFailed) as caught:
            fetch(mine, "cut")

        assert caught.value.exit_code == 74
        assert before == _names(mine)
        assert not list(mine.heddle_dir.rglob(".tmp-*"))

        with pytest.raises(RemoteFailed):
            cloned(f"{address}/project.git", tmp_path / "half")

        assert not (tmp_path / "half").exists()


def test_a_server_that_is_not_there(mine: api.Repository) -> None:
    """Nobody listens: exit code 69, try again later."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for scheme in ("git", "http"):
        remotes.add(mine, scheme, f"{scheme}://127.0.0.1:{port}/x.git")

        with pytest.raises(RemoteUnreachable) as caught:
            fetch(mine, scheme)

        assert (caught.value.exit_code, caught.value.retry) == (69, True)


def test_a_server_without_the_repository(url: str, mine: api.Repository) -> None:
    """There is a server, but no such repository: exit code 65."""
    remotes.add(mine, "wrong", url.replace("project.git", "nothing.git"))

    with pytest.raises(RemoteNotFound):
        fetch(mine, "wrong")


def test_a_server_that_lost_an_object(mine: api.Repository, bare: Path, tmp_path: Path) -> None:
    """A repository that is damaged on the server: an I/O error, and no name has moved."""
    commit = others_push(bare, tmp_path)
    blob = run_git(bare, "rev-parse", f"{commit}:theirs.txt")
    for pack in (bare / "objects/pack").glob("*.pack"):
        (tmp_path / pack.name).write_bytes(pack.read_bytes())
    (bare / "objects" / blob[:2] / blob[2:]).unlink()
    before = _names(mine)

    with pytest.raises(HeddleError) as caught:
        fetch(mine)

    assert caught.value.exit_code == 74
    assert before == _names(mine)


def test_a_pack_that_does_not_hold_everything(
    mine: api.Repository, bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that names a commit and sends it without its tree: refused before any name moves."""
    others_push(bare, tmp_path)
    before = _names(mine)

    def take(self: object, pack: object) -> int:
        return 0

    monkeypatch.setattr("heddle.git.fetching._Target.take", take)
    with pytest.raises(HeddleError, match="is in no pack") as caught:
        fetch(mine)

    assert caught.value.exit_code == 74
    assert before == _names(mine)


def test_killed_before_the_names_move(mine: api.Repository, bare: Path, tmp_path: Path) -> None:
    """A fetch that is killed when all objects are here is as if it had not been; the next one finishes."""
    theirs = others_push(bare, tmp_path)
    before = _names(mine)
    mine.close()
    command = [sys.executable, "-m", "heddle", "fetch"]
    environment = {**os.environ, "HEDDLE_FAULT": "fetching.before-names"}
    killed = subprocess.run(command, cwd=mine.path, env=environment)

    assert killed.returncode == -9
    assert before == _names(mine)

    fetch(mine)

    assert theirs == mine.resolve("origin/main").decode()
