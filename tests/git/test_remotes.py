"""Clone, fetch, pull and push against stock git as the server, and against servers that fail."""

from __future__ import annotations

import getpass
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, nullcontext
from pathlib import Path
from urllib.parse import quote

import pytest
from world import wait_until

import heddle
from heddle import api
from heddle.errors import (
    Busy,
    CannotCreate,
    DataError,
    HeddleError,
    NotPermitted,
    StorageError,
    Unavailable,
    UnsavedChanges,
    UsageError,
)
from heddle.git import connection, receiving, remotes
from heddle.git.branches import Diverged
from heddle.git.cloning import clone
from heddle.git.fetching import fetch, pull, tracked
from heddle.git.promisor import Promisor
from heddle.git.pushing import PushRejected, _in_its_words, push
from heddle.git.transport import OtherIds, RemoteFailed, RemoteNotFound, RemoteUnreachable
from heddle.objects.incoming import ObjectTooLarge

from .conftest import Git, commit_file, objects, refs, run_git, state
from .servers import (
    WAYS,
    Middle,
    bare_copy,
    certificate,
    cut_off,
    fake_server,
    git_daemon,
    http_server,
    in_between,
    made_pack,
    pack_entry,
    plain_http_server,
    served_over,
    sshd,
)

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


@pytest.fixture(params=WAYS)
def url(request: pytest.FixtureRequest, bare: Path) -> Iterator[str]:
    """The address of ``bare`` over each way that needs nothing but stock git."""
    with served_over(request.param, bare) as address:
        yield address


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


def _local_shell(tmp_path: Path) -> str:
    """An ssh that runs its command here."""
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text(
        f'#!{sys.executable}\nimport os, sys\nos.execv("/bin/sh", ["sh", "-c", sys.argv[-1]])\n'
    )
    ssh.chmod(0o755)
    return str(ssh)


def test_ssh_is_spoken_through_the_ssh_command(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ssh address runs ssh with git's own command on the other side; here ssh is a local shell."""
    ssh = Path(_local_shell(tmp_path))
    monkeypatch.setenv("PATH", f"{ssh.parent}:{os.environ['PATH']}")

    repo = cloned(f"ssh://example.org{bare}", tmp_path / "mine")
    new = capture(repo, "f", "1")
    push(repo)

    assert new == run_git(bare, "rev-parse", "main")


@pytest.mark.parametrize(
    "address",
    ["host:path", "u@host:~x/p", "[host:2222]:path", "[::1]:path", "u@[::1]:/p", "[u@host:22]:p"]
    + ["[::1:22]:p", "[host:x]:p", "h:p:q", "u@h:[x]:y", "ssh://[::1]:22/p", "ssh://u@[::1]/p"]
    + ["ssh://host:99/~u/p", "ssh://u%40x@host/a%20b", "ssh://host:/p", "git+ssh://[u@host:22]/p"]
    + ["host:it's a !path"],
)
def test_an_ssh_address_is_read_as_git_reads_it(
    address: str, mine: api.Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without brackets: ssh is asked by heddle for just what git asks it for."""
    ssh, said = tmp_path / "ssh", tmp_path / "said"
    ssh.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >>{said}\nexit 1\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("GIT_SSH", str(ssh))
    monkeypatch.setenv("GIT_SSH_VARIANT", "ssh")
    run_git(tmp_path, "ls-remote", address, code=128)
    gits = said.read_text()
    said.unlink()
    remotes.add(mine, "far", address)
    with pytest.raises(HeddleError):
        fetch(mine, "far")

    assert gits == said.read_text()


@pytest.mark.parametrize("address", ["ssh://host", "[host:22:p", "[]:p", "ssh://[::1]:99999/p"])
def test_what_is_no_ssh_address(address: str, mine: api.Repository) -> None:
    """What git would not know where to go with is said to be no address."""
    remotes.add(mine, "far", address)
    with pytest.raises(UsageError) as caught:
        fetch(mine, "far")

    assert caught.value.exit_code == 64


def test_ssh_is_gits(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a real sshd with its own keys: clone, lazy clone, push, by each way that git has to name the program."""
    with sshd(tmp_path / "sshd") as (host, command):
        run_git(bare, "config", "uploadpack.allowFilter", "true")
        url = f"ssh://{getpass.getuser()}@{host}{bare}"
        with pytest.raises(HeddleError):
            cloned(url, tmp_path / "refused")

        monkeypatch.setenv("GIT_SSH_COMMAND", command)
        repo = cloned(url, tmp_path / "mine")
        new = capture(repo, "f", "1")
        push(repo)

        assert new == run_git(bare, "rev-parse", "main")

        monkeypatch.delenv("GIT_SSH_COMMAND")
        (tmp_path / "home" / ".gitconfig").write_text(f"[core]\n\tsshCommand = {command}\n")
        lazy = clone(api.Repository, url, tmp_path / "lazy", environment=os.environ, lazy=True)[0]

        assert lazy.store.promises
        assert lazy.store.get_raw(lazy.lookup_path("main", b"f")[1])[1] == b"1"


def test_https_with_a_certificate_of_ones_own(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused until git's configuration or environment names it; then credentials work as over http."""
    tls = certificate(tmp_path)
    with http_server(bare.parent, password="secret", tls=tls) as address:
        store = tmp_path / "home" / ".git-credentials"
        store.write_text(address.replace("https://", "https://ann:secret@") + "\n")
        helper = "[credential]\n\thelper = store\n"
        configuration = tmp_path / "home" / ".gitconfig"
        configuration.write_text(helper)
        with pytest.raises(NotPermitted, match="certificate") as caught:
            cloned(f"{address}/project.git", tmp_path / "refused")

        assert caught.value.exit_code == 77
        assert not (tmp_path / "refused").exists()

        configuration.write_text(f"{helper}[http]\n\tsslCAInfo = {tls[0]}\n")
        repo = cloned(f"{address}/project.git", tmp_path / "mine")
        new = capture(repo, "f", "1")
        push(repo)

        assert new == run_git(bare, "rev-parse", "main")

        configuration.write_text(helper)
        monkeypatch.setenv("GIT_SSL_CAINFO", str(tls[0]))
        cloned(f"{address}/project.git", tmp_path / "by-environment")


def test_a_repository_that_has_moved(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A redirect is followed by clone, fetch, push and the question for sizes, unless git's settings say no."""
    run_git(bare, "config", "uploadpack.allowFilter", "true")
    with http_server(bare.parent) as address:
        repo = cloned(f"{address}/moved/project.git", tmp_path / "mine")
        new = capture(repo, "f", "12345")
        push(repo)
        others_push(bare, tmp_path)

        assert new == run_git(bare, "rev-parse", "main~1")
        assert [each.ref for each in fetch(repo).refs] == ["refs/remotes/origin/main"]

        lazy = clone(
            api.Repository,
            f"{address}/moved/project.git",
            tmp_path / "lazy",
            environment=os.environ,
            lazy=True,
        )[0]
        blob = bytes.fromhex(run_git(bare, "rev-parse", "main:f"))

        assert Promisor(lazy).sizes([blob]) == {blob: 5}

        monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
        monkeypatch.setenv("GIT_CONFIG_KEY_0", "http.followRedirects")
        monkeypatch.setenv("GIT_CONFIG_VALUE_0", "false")
        with pytest.raises(RemoteFailed):
            fetch(repo)


@pytest.mark.parametrize(
    ("status", "exit_code", "retry"), [(403, 77, False), (429, 69, True), (500, 74, False)]
)
def test_what_a_web_server_answers(
    status: int, exit_code: int, retry: bool, mine: api.Repository, tmp_path: Path
) -> None:
    """An HTTP error is named by its number, and says whether to try again."""
    with http_server(tmp_path, status=status) as address:
        remotes.add(mine, "far", f"{address}/project.git")

        with pytest.raises(HeddleError, match=str(status)) as caught:
            fetch(mine, "far")

    assert (exit_code, retry) == (caught.value.exit_code, caught.value.retry)


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


def test_a_fetch_brings_what_git_would(bare: Path, git: Git, tmp_path: Path) -> None:
    """Where git fetches one branch, so does heddle, with the tags of what is here; another is asked for by name."""
    git("clone", "-q", "--depth=1", f"file://{bare}", tmp_path / "mine")
    heddle.init(tmp_path / "mine")
    repo = heddle.open(tmp_path / "mine")
    here = run_git(bare, "rev-parse", "main")
    run_git(bare, "tag", "at-main", "main")
    theirs = others_push(bare, tmp_path)

    fetched = fetch(repo)

    assert {each.ref: each.new.decode() for each in fetched.refs} == {
        "refs/remotes/origin/main": theirs,
        "refs/tags/at-main": here,
    }
    assert "topic" in fetched.branches
    with pytest.raises(DataError, match="not among") as caught:
        pull(repo, thread="topic")
    run_git(repo.path, *str(caught.value.hint).split()[1:])
    fetch(repo)
    assert repo.resolve("origin/topic").decode() == run_git(bare, "rev-parse", "topic")

    git("config", "remote.origin.tagOpt", "--tags", at=repo.path)
    fetch(repo)
    assert "refs/tags/noted" in refs(repo.path)


@pytest.mark.parametrize("on_git", [True, False])
def test_tags_come_with_what_they_are_at(
    url: str, bare: Path, checkout: Path, git: Git, tmp_path: Path, on_git: bool
) -> None:
    """Where git fetches one branch, tags at all that comes, and at what is here, come at once, of both kinds."""
    if on_git:
        git("clone", "-q", "--single-branch", "--no-tags", url, tmp_path / "mine")
        git("config", "--unset", "remote.origin.tagOpt", at=tmp_path / "mine")
        heddle.init(tmp_path / "mine").close()
        repo = heddle.open(tmp_path / "mine")
    else:
        repo = cloned(url, tmp_path / "mine")
        known = repo.heddle_dir / "remotes"
        known.write_text(known.read_text().replace("/*", "/main"))
    git("tag", "-a", "-m", "Old", "annotated-old", "main~1")
    commit_file(checkout, "e.txt", "between\n")
    git("tag", "between")
    git("tag", "-a", "-m", "Between", "annotated-between")
    theirs = commit_file(checkout, "e.txt", "e\n")
    git("tag", "new")
    git("tag", "-a", "-m", "New", "annotated-new")
    git("tag", "-a", "-m", "Twice", "twice", "annotated-new")
    git("switch", "-q", "--orphan", "elsewhere")
    commit_file(checkout, "f.txt", "f\n")
    git("tag", "-a", "-m", "Not here", "elsewhere")
    git("push", "-q", "--mirror", bare)

    fetched = {each.ref: each.new.decode() for each in fetch(repo).refs}

    new = ["annotated-between", "annotated-new", "annotated-old", "between", "new", "twice"]
    expected = {f"refs/tags/{name}": git("rev-parse", name) for name in new}
    if on_git:
        expected |= {f"refs/tags/{name}": git("rev-parse", name) for name in ("light", "noted")}
    assert fetched == {"refs/remotes/origin/main": theirs, **expected}
    assert repo.fsck(full=True).problems == []
    assert fetch(repo).refs == []
    repo.close()


def test_a_remote_as_git_writes_it(repo: api.Repository, git: Git, tmp_path: Path) -> None:
    """Of several addresses the first is fetched from; a name with a quote in it can be removed."""
    git("config", 'remote.a"b.url', "first")
    git("config", "--add", 'remote.a"b.url', "second")
    git("config", 'remote.a"b.fetch', "^refs/heads/no*")

    (found,) = remotes.remotes(repo)

    assert (found.name, found.url, found.push_url) == ('a"b', "first", "first")
    assert found.takes_branch("refs/heads/x")
    assert not found.takes_branch("refs/heads/nothing")

    remotes.remove(repo, 'a"b')

    assert remotes.remotes(repo) == []


def test_where_a_push_goes(repo: api.Repository, bare: Path, git: Git) -> None:
    """``pushInsteadOf`` rewrites an address that is also fetched from; one of its own for pushes only ``insteadOf``."""
    git("config", f"url.{bare.parent}/.pushInsteadOf", "nowhere:")
    git("remote", "add", "origin", "nowhere:project.git")
    new = capture(repo, "f", "1")

    push(repo)
    assert new == run_git(bare, "rev-parse", "main")

    repo.environment = {**os.environ, "GIT_SSH": "/nonexistent/ssh"}  # tells that it was asked for
    git("config", "remote.origin.pushurl", "nowhere:project.git")
    with pytest.raises(Unavailable, match="/nonexistent/ssh"):
        push(repo)

    git("config", f"url.{bare.parent}/.insteadOf", "nowhere:")
    new = capture(repo, "f", "2")
    push(repo)
    assert new == run_git(bare, "rev-parse", "main")


def test_a_push_goes_to_all_addresses(mine: api.Repository, bare: Path, tmp_path: Path) -> None:
    """To each ``pushurl``, also if one fails: the error is that one's, names it, and says who has what was sent."""
    second = bare_copy(bare, tmp_path / "second.git")
    lines = f"\tpushurl = {tmp_path}/nowhere.git\n\tpushurl = {bare}\n\tpushurl = {second}\n"
    path = mine.heddle_dir / "remotes"
    path.write_text(path.read_text() + lines)
    new = capture(mine, "f", "1")

    with pytest.raises(RemoteNotFound) as caught:
        push(mine)

    assert caught.value.exit_code == 65
    assert f"{tmp_path}/nowhere.git: there is no" in caught.value.message
    assert f"{bare} has it; {second} has it" in caught.value.message
    for at in (bare, second):
        assert new == run_git(at, "rev-parse", "main")
    assert new == mine.resolve("origin/main").decode()

    bare_copy(bare, tmp_path / "nowhere.git")
    new = capture(mine, "f", "2")
    pushed = push(mine)

    assert [each.refs for each in pushed.to] == [pushed.refs] * 3
    assert new == run_git(tmp_path / "nowhere.git", "rev-parse", "main")


def test_a_remote_with_two_addresses(
    repo: api.Repository, bare: Path, git: Git, tmp_path: Path
) -> None:
    """Without addresses for pushes alone, all are pushed to, and the first is fetched from; as git does it."""
    second = bare_copy(bare, tmp_path / "second.git")
    git("remote", "add", "origin", bare)
    git("remote", "set-url", "--add", "origin", second)
    others_push(bare, tmp_path)
    fetch(repo)
    repo.threads.create("new", repo.resolve("origin/main"))
    push(repo, "origin", ["new"])

    assert run_git(bare, "rev-parse", "new") == run_git(second, "rev-parse", "new")


@pytest.mark.parametrize("on_git", [True, False])
def test_remotes_of_the_user(
    checkout: Path, bare: Path, git: Git, tmp_path: Path, on_git: bool
) -> None:
    """What stands in the user's git configuration is a remote, on top of which the repository says more."""
    if not on_git:
        (tmp_path / "alone").mkdir()
    repo = heddle.init(checkout if on_git else tmp_path / "alone")
    run_git(tmp_path, "config", "--global", "remote.team.url", bare)
    theirs = run_git(bare, "rev-parse", "main")

    assert [(each.name, each.is_own) for each in remotes.remotes(repo)] == [("team", False)]
    assert {each.ref for each in fetch(repo, "team").refs} >= {"refs/remotes/team/main"}
    assert theirs == repo.resolve("team/main").decode()
    with pytest.raises(DataError, match="your own git configuration") as caught:
        remotes.remove(repo, "team")
    run_git(tmp_path, *str(caught.value.hint).split()[1:])
    assert remotes.remotes(repo) == []

    run_git(tmp_path, "config", "--global", "remote.team.pushurl", "/elsewhere.git")
    remotes.add(repo, "team", str(bare))
    found = remotes.remote(repo, "team")
    assert (found.url, found.push_urls, found.is_own) == (str(bare), ("/elsewhere.git",), True)
    repo.close()


def test_a_removed_remote_is_followed_by_no_branch(
    repo: api.Repository, git: Git, tmp_path: Path
) -> None:
    """What a remote's removal leaves of git's configuration is what git leaves of it."""
    config = tmp_path / "work/.git/config"
    config.write_text(
        config.read_text()
        + '[branch "main"]\n\tremote = origin # where\n\tmerge = refs/heads/main\n\trebase = true\n'
        '[branch "a\\"b"]\n\tremote = "origin"\n\tmerge = refs/heads/a\n'
        '[branch "other"]\n\tremote = up\n\tmerge = refs/heads/x\n\tpushRemote = origin\n'
        '; a word\n[remote "up"]\n\turl = /up\n'
        '[remote "origin"]\n\turl = /origin\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n'
    )
    before = config.read_bytes()
    git("remote", "remove", "origin")
    gits = git("config", "--list", "--local")
    config.write_bytes(before)
    remotes.remove(repo, "origin")

    assert gits == git("config", "--list", "--local")
    assert "; a word" in config.read_text()


def test_a_prefix_for_pushes_goes_before_a_longer_one(
    repo: api.Repository, bare: Path, git: Git
) -> None:
    """Git looks at ``pushInsteadOf`` first, and at ``insteadOf`` only for want of one; of each the longest counts."""
    git("config", f"url.{bare.parent}/.pushInsteadOf", "nowhere:pro")
    git("config", "url./nonexistent/.pushInsteadOf", "nowhere:")
    git("config", "url./nonexistent/.insteadOf", "nowhere:proproject")
    git("remote", "add", "origin", "nowhere:proproject.git")
    new = capture(repo, "f", "1")

    push(repo)

    assert git("remote", "get-url", "--push", "origin") == str(bare)
    assert new == run_git(bare, "rev-parse", "main")


def test_a_clone_of_one_tag(bare: Path, tmp_path: Path) -> None:
    """Where git fetches nothing but a tag, no branches come."""
    options = ["--single-branch", "--branch", "light", "--depth", "1"]
    run_git(tmp_path, "clone", "-q", *options, f"file://{bare}", "one")
    before = refs(tmp_path / "one")
    repo = heddle.init(tmp_path / "one")
    fetch(repo)

    assert refs(tmp_path / "one") == before
    repo.close()


def test_where_git_keeps_what_it_fetches(repo: api.Repository, bare: Path, git: Git) -> None:
    """Remote branches are where git's refspec puts them, for a fetch, a push and a removal."""
    git("remote", "add", "origin", bare)
    git("config", "remote.origin.fetch", "+refs/heads/*:refs/remotes/theirs/*")
    fetch(repo)
    new = capture(repo, "f", "1")
    push(repo, "origin", force=True)

    assert tracked(repo, "origin", "main") == new.encode()
    assert git("for-each-ref", "--format=%(refname)", "refs/remotes/").split() == [
        "refs/remotes/theirs/main",
        "refs/remotes/theirs/topic",
    ]
    remotes.remove(repo, "origin")
    assert git("for-each-ref", "refs/remotes/") == ""


def test_a_mirror(bare: Path, tmp_path: Path) -> None:
    """What git mirrors is git's to fetch; nothing is put beside it, by a push neither."""
    run_git(tmp_path, "clone", "-q", "--mirror", bare, "mirror.git")
    repo = heddle.init(tmp_path / "mirror.git")
    with pytest.raises(DataError, match=r"remote\.origin\.fetch") as caught:
        fetch(repo)
    assert caught.value.hint == "git fetch origin"
    repo.threads.create("new", repo.resolve("main"))
    push(repo, "origin", ["new"])

    assert run_git(bare, "rev-parse", "new") == run_git(bare, "rev-parse", "main")
    assert not any(ref.startswith("refs/remotes/") for ref in refs(tmp_path / "mirror.git"))
    repo.close()


def test_a_push_that_can_t_be_noted(
    mine: api.Repository, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the server has taken is said, also where it can't be noted here."""
    new = capture(mine, "f", "1")

    def fail(*_: object, **__: object) -> None:
        raise StorageError("no space left", hint="free some space")

    monkeypatch.setattr(type(mine.database), "move_names", fail)
    with pytest.raises(StorageError, match="origin has taken refs/heads/main, and here"):
        push(mine)
    assert run_git(bare, "rev-parse", "main") == new


def test_names_that_differ_in_case(repo: api.Repository, git: Git) -> None:
    """To git they are two remotes, of which one is removed, however its section's own name is spelt."""
    git("remote", "add", "origin", "first")
    with (repo.path / ".git" / "config").open("a") as configuration:
        configuration.write('[REMOTE "Origin"]\n\turl = second\n')

    remotes.remove(repo, "Origin")

    assert [each.name for each in remotes.remotes(repo)] == ["origin"]
    assert git("config", "--get-regexp", "^remote.*url") == "remote.origin.url first"


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


def _hook(bare: Path, name: str, text: str) -> None:
    hook = bare / "hooks" / name
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\n{text}\n")
    hook.chmod(0o755)


@pytest.mark.parametrize("hook", ["update", "pre-receive"])
def test_a_hook_that_rejects_is_heard(mine: api.Repository, bare: Path, hook: str) -> None:
    """A push that the server's hook refuses: why, in the hook's words; exit code 65; nothing moved on either side."""
    _hook(bare, hook, "echo no tabs in here >&2; exit 1")
    before = refs(bare)
    capture(mine, "f", "1")
    known = tracked(mine, "origin", "main")

    with pytest.raises(PushRejected, match=r"hook declined.*no tabs in here") as caught:
        push(mine)

    assert caught.value.exit_code == 65
    assert "%" not in caught.value.message
    assert before == refs(bare)
    assert known == tracked(mine, "origin", "main")


def test_a_protected_branch_is_not_forced(mine: api.Repository, bare: Path, tmp_path: Path) -> None:
    """A server that allows no rewriting refuses also ``--force``, and nothing has moved."""
    run_git(bare, "config", "receive.denyNonFastForwards", "true")
    theirs = others_push(bare, tmp_path)
    capture(mine, "f", "1")

    with pytest.raises(PushRejected, match="non-fast-forward"):
        push(mine, force=True)

    assert theirs == run_git(bare, "rev-parse", "main")


def test_what_was_not_refused_has_moved(mine: api.Repository, bare: Path) -> None:
    """Of two branches the server takes one: that one is remembered as moved, the other not, and is named."""
    _hook(bare, "update", 'test "$1" != refs/heads/main')
    new = capture(mine, "f", "1")
    mine.threads.create("side", mine.resolve("main"))
    before = run_git(bare, "rev-parse", "main")

    with pytest.raises(PushRejected, match="refs/heads/main") as caught:
        push(mine, "origin", ["main", "side"])

    assert "took refs/heads/side" in caught.value.message
    assert "counting" not in caught.value.message
    assert (before, new) == (run_git(bare, "rev-parse", "main"), run_git(bare, "rev-parse", "side"))
    assert before == mine.resolve("origin/main").decode()
    assert new == mine.resolve("origin/side").decode()


def test_a_pack_that_the_server_does_not_take(mine: api.Repository, bare: Path) -> None:
    """A server that stops reading in the middle of what is pushed is heard all the same; nothing has moved."""
    run_git(bare, "config", "receive.maxInputSize", "100k")
    before = refs(bare)
    (mine.path / "large").write_bytes(os.urandom(8 << 20))
    mine.capture(message="Large")

    with pytest.raises(
        PushRejected, match=r"could not take .* exceeds maximum allowed size"
    ) as caught:
        push(mine)

    assert caught.value.exit_code == 65
    assert before == refs(bare)


def test_an_object_that_the_server_finds_fault_with(
    repo: api.Repository, bare: Path, git: Git
) -> None:
    """What ``receive.fsckObjects`` refuses is refused here, with the object and the reason in the server's words."""
    run_git(bare, "config", "receive.fsckObjects", "true")
    git("remote", "add", "origin", bare)
    blob = git("rev-parse", "main:a.txt")
    raw = b"0100644 a\0" + bytes.fromhex(blob)
    made = subprocess.run(
        ["git", "-C", repo.path, "hash-object", "-w", "-t", "tree", "--literally", "--stdin"],
        input=raw,
        capture_output=True,
        check=True,
    )
    tree = made.stdout.decode().strip()
    git("update-ref", "refs/heads/odd", git("commit-tree", "-m", "Odd", tree))
    opened = heddle.open(repo.path)

    with pytest.raises(PushRejected, match=f"{tree}.*zeroPaddedFilemode"):
        push(opened, "origin", ["odd"])


def test_somebody_was_faster(mine: api.Repository, bare: Path, tmp_path: Path) -> None:
    """A branch that moves between the look at it and the push is refused by the server; theirs stays."""
    _hook(
        bare,
        "pre-receive",
        f"env -u GIT_QUARANTINE_PATH git -C {bare} update-ref refs/heads/main refs/heads/topic",
    )
    capture(mine, "f", "1")

    with pytest.raises(PushRejected):
        push(mine)

    assert run_git(bare, "rev-parse", "topic") == run_git(bare, "rev-parse", "main")


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


@pytest.mark.parametrize("on_git", [False, True])
def test_a_branch_in_the_place_of_another(
    bare: Path, checkout: Path, tmp_path: Path, on_git: bool
) -> None:
    """Where the server has x/y instead of x, and x again, the one that it has no more makes room."""
    if on_git:
        run_git(tmp_path, "clone", "-q", bare, "mine")
        heddle.init(tmp_path / "mine").close()
        repo = heddle.open(tmp_path / "mine")
    else:
        repo = cloned(str(bare), tmp_path / "mine")
    made = run_git(checkout, "rev-parse", "main")
    before = "topic"
    for now in ("topic/inner", "topic", "topic/inner/most"):
        run_git(bare, "branch", "-D", before)
        run_git(bare, "branch", now, made)
        done = fetch(repo)
        assert done.pruned == (f"refs/remotes/origin/{before}",)
        assert tracked(repo, "origin", now) == made.encode()
        assert tracked(repo, "origin", before) is None
        with pytest.raises(DataError, match="has no branch"):
            pull(repo, thread=before)
        before = now
    if on_git:
        assert run_git(tmp_path / "mine", "fsck", "--strict") == ""
    repo.close()


def test_on_git_refs_move_together(
    repo: api.Repository, bare: Path, git: Git, tmp_path: Path
) -> None:
    """What a fetch brings gets all of its names or none: where git has one of them locked, it is to be tried again."""
    git("remote", "add", "origin", bare)
    fetch(repo)
    others_push(bare, tmp_path)
    for name in ("a", "z"):
        run_git(bare, "branch", name, "main")
    before = refs(repo.path)
    lock = repo.path / ".git/refs/remotes/origin/main.lock"
    lock.touch()

    with pytest.raises(Busy, match=r"main\.lock") as caught:
        fetch(repo)

    assert (caught.value.exit_code, refs(repo.path)) == (75, before)

    lock.unlink()
    moved = fetch(repo).refs

    assert [each.ref.rpartition("/")[2] for each in moved] == ["a", "main", "z"]
    assert "heddle: fetch" in git("reflog", "show", "refs/remotes/origin/main")
    assert not list((repo.path / ".git/objects/pack").glob("*.keep"))


def test_fetches_at_once(bare: Path, tmp_path: Path, nothing_left: None) -> None:
    """Of fetches that bring the same new tags none fails."""
    for number in range(30):
        run_git(bare, "tag", f"t{number}")
    mine = heddle.init(tmp_path / "mine")
    remotes.add(mine, "origin", str(bare))
    mine.close()
    command = [sys.executable, "-m", "heddle", "fetch", "-q"]
    every = [
        subprocess.Popen(command, cwd=tmp_path / "mine", stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [(each.communicate()[1], each.returncode) for each in every] == [("", 0)] * 3
    with closing(heddle.open(tmp_path / "mine")) as repo:
        assert {f"t{number}" for number in range(30)} <= {it.name for it in repo.markers}
        assert repo.fsck(full=True).problems == []


def test_a_detached_server(bare: Path, tmp_path: Path) -> None:
    """A clone of a repository whose HEAD is on no branch is on the branch that is there."""
    run_git(bare, "update-ref", "--no-deref", "HEAD", "topic")

    with closing(cloned(str(bare), tmp_path / "mine")) as repo:
        assert repo.head == "topic"


def test_two_clones_to_one_place(bare: Path, tmp_path: Path, nothing_left: None) -> None:
    """Of two clones that are begun at once one makes the repository; the other is refused and takes nothing away."""
    place = tmp_path / "place"
    command = [sys.executable, "-m", "heddle", "clone", str(bare), str(place)]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = {each.communicate()[1].split("\n")[0]: each.returncode for each in both}

    assert sorted(said.values())[0] == 0 and set(said.values()) <= {0, 73, 75}, said
    with closing(heddle.open(place)) as repo:
        assert repo.resolve("main").decode() == run_git(bare, "rev-parse", "main")
        assert not repo.status().changes and not repo.fsck().problems
    assert not (place / ".heddle" / "cloning").exists()


def test_a_clone_that_goes_on_takes_nothing_away(
    bare: Path, tmp_path: Path, nothing_left: None
) -> None:
    """What a killed clone had made, and what was done there since, stays when going on fails, or is asked otherwise."""
    place = tmp_path / "place"
    command = [sys.executable, "-m", "heddle", "clone", str(bare), str(place)]
    killed = subprocess.run(command, env={**os.environ, "HEDDLE_FAULT": "cloning.named"})
    assert killed.returncode == -9
    with closing(heddle.open(place)) as repo:
        repo.environment = dict(os.environ)
        repo.switch("main")
        mine_now = capture(repo, "mine", "my work\n")
    bare.rename(bare.with_name("away"))
    with pytest.raises(RemoteNotFound):
        cloned(str(bare), place)
    bare.with_name("away").rename(bare)
    with pytest.raises(CannotCreate, match="another way"):
        clone(api.Repository, str(bare), place, environment=os.environ, lazy=True)

    with closing(cloned(str(bare), place)) as repo:
        assert repo.resolve("main").decode() == mine_now
        assert (place / "mine").read_text() == "my work\n"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", ["sha1", "sha256"])
def test_cloning_nothing(way: str, form: str, tmp_path: Path, nothing_left: None) -> None:
    """An empty repository is cloned onto its default branch, and the first push makes that: git clones it."""
    empty = tmp_path / "served" / "empty.git"
    run_git(tmp_path, "init", "-q", "--bare", "-b", "trunk", f"--object-format={form}", empty)
    run_git(empty, "config", "http.receivepack", "true")
    with served_over(way, empty) as address:
        repo = cloned(address, tmp_path / "mine")

        assert ([each.name for each in repo.threads], repo.head) == (["trunk"], "trunk")
        assert state(repo, "trunk") == ""

        new = capture(repo, "f", "1")
        push(repo)
        repo.close()

    assert (new, form) == (run_git(empty, "rev-parse", "HEAD"), repo.object_format)
    run_git(tmp_path, "clone", "-q", empty, "stock")
    assert (tmp_path / "stock/f").read_text() == "1"


def test_a_server_whose_default_branch_is_not_there(bare: Path, tmp_path: Path) -> None:
    """Where the server's HEAD is on a branch without a commit, a clone begins there; its other branches are known."""
    run_git(bare, "symbolic-ref", "HEAD", "refs/heads/next")
    repo = cloned(str(bare), tmp_path / "mine")

    assert (repo.head, state(repo, "next")) == ("next", "")
    assert [each.name for each in (tmp_path / "mine").iterdir()] == [".heddle"]
    assert repo.resolve("origin/main").decode() == run_git(bare, "rev-parse", "main")
    repo.close()


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


def test_credentials_are_those_of_the_address_that_is_spoken_to(bare: Path, tmp_path: Path) -> None:
    """What git's ``insteadOf`` makes of an address is also what its helpers are asked for."""
    with http_server(bare.parent, password="secret") as address:
        store = tmp_path / "home" / ".git-credentials"
        store.write_text(address.replace("http://", "http://ann:secret@") + "\n")
        (tmp_path / "home" / ".gitconfig").write_text(
            f'[credential]\n\thelper = store\n[url "{address}/"]\n\tinsteadOf = short://\n'
        )
        repo = cloned("short://project.git", tmp_path / "mine")

        assert state(repo, "main") == run_git(bare, "rev-parse", "main")


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


def _fetch_from_fake(repo: api.Repository, name: str, *args: object, **options: object) -> None:
    with fake_server(*args, **options) as address:  # type: ignore[arg-type]
        if name not in [each.name for each in remotes.remotes(repo)]:
            remotes.add(repo, name, address)
        else:
            remotes.remove(repo, name)
            remotes.add(repo, name, address)
        fetch(repo, name)


def _packed(bare: Path, *objects: str) -> bytes:
    """A pack of just these objects of a repository."""
    done = subprocess.run(
        ["git", "-C", str(bare), "pack-objects", "--stdout", "-q"],
        input="".join(f"{each}\n" for each in objects).encode(),
        capture_output=True,
        check=True,
    )
    return done.stdout


MAIN = b"refs/heads/main"


@pytest.mark.parametrize("left_out", ["", ":", ":theirs.txt"])
def test_a_pack_that_does_not_hold_everything(
    mine: api.Repository, bare: Path, tmp_path: Path, left_out: str
) -> None:
    """A server that sends a commit without its tree, or without a file, or another commit: nothing of it is kept.

    So the same is refused a second time, too: what came before does not count as complete.
    """
    commit = others_push(bare, tmp_path)
    parts = [commit, f"{commit}:", f"{commit}:theirs.txt"]
    sent = [run_git(bare, "rev-parse", each) for each in parts if each != commit + left_out]
    before, stored = _names(mine), set(mine.store.iter_ids())
    for _ in range(2):
        with pytest.raises(HeddleError) as caught:
            _fetch_from_fake(mine, "fake", {MAIN: commit.encode()}, _packed(bare, *sent))

        assert caught.value.exit_code == 74
        assert before == _names(mine)
        assert stored == set(mine.store.iter_ids())


def test_a_thin_pack_without_its_base(mine: api.Repository) -> None:
    """A delta against an object that is nowhere: an I/O error that names it."""
    delta = pack_entry(7, b"\5\5\x05hello", base=b"\x11" * 20)

    with pytest.raises(HeddleError, match="11" * 20) as caught:
        _fetch_from_fake(mine, "fake", {MAIN: b"22" * 20}, made_pack(delta))

    assert caught.value.exit_code == 74


def _flipped(pack: bytes) -> bytes:
    return pack[:40] + bytes((pack[40] ^ 1,)) + pack[41:]


BAD_PACKS = {
    "no pack": b"nothing of the kind" * 10,
    "cut off": made_pack(pack_entry(3, b"content"))[:-25],
    "empty": b"PACK",
    "flipped": _flipped(made_pack(pack_entry(3, os.urandom(100)))),
    "a wrong count": made_pack(pack_entry(3, b"content"), count=2),
    "too long": made_pack(pack_entry(3, b"content")) + b"more",
    "an unknown type": made_pack(pack_entry(5, b"content")),
    "longer than said": made_pack(pack_entry(3, b"content", size=3)),
    "shorter than said": made_pack(pack_entry(3, b"content", size=9)),
    "a delta to nowhere": made_pack(pack_entry(6, b"\5\5\x05hello", base=b"\x7f")),
    "a length without end": made_pack(b"\xff" * 400),
}


@pytest.mark.parametrize("kind", BAD_PACKS)
def test_a_pack_that_is_none(mine: api.Repository, kind: str) -> None:
    """Whatever a server sends instead of a pack is an I/O error, and nothing is kept."""
    stored = set(mine.store.iter_ids())

    with pytest.raises(HeddleError) as caught:
        _fetch_from_fake(mine, "fake", {MAIN: b"22" * 20}, BAD_PACKS[kind])

    assert caught.value.exit_code == 74
    assert stored == set(mine.store.iter_ids())
    assert not list(mine.heddle_dir.rglob(".tmp-*"))


@pytest.mark.parametrize("type_num", [2, 3])
def test_an_object_over_the_limit(mine: api.Repository, type_num: int) -> None:
    """Its length is enough to refuse it: no memory and no disk is taken for what it only claims."""
    mine.config.set("fetch.max_object_size", "1m")
    for size in (2 << 20, 1 << 45):
        with pytest.raises(ObjectTooLarge, match=str(size)) as caught:
            pack = made_pack(pack_entry(type_num, b"little", size=size))
            _fetch_from_fake(mine, "fake", {MAIN: b"22" * 20}, pack)

        assert caught.value.exit_code == 65


def test_a_delta_over_the_limit(mine: api.Repository) -> None:
    """A few bytes of delta that make a long object are refused by the length that they make."""
    mine.config.set("fetch.max_object_size", "1m")
    base = pack_entry(3, b"base")
    delta = b"\x04\x80\x80\x80\x80\x01"

    with pytest.raises(ObjectTooLarge):
        distance = bytes((len(base),))
        pack = made_pack(base, pack_entry(6, delta, base=distance))
        _fetch_from_fake(mine, "fake", {MAIN: b"22" * 20}, pack)


@pytest.mark.parametrize(
    "ref", [b"refs/heads/../../config", b"refs/heads/a..b", b"refs/tags/.lock"]
)
def test_refs_that_are_no_names(mine: api.Repository, bare: Path, ref: bytes) -> None:
    """A server whose refs can't be refs is refused as a whole."""
    before = _names(mine)
    commit = run_git(bare, "rev-parse", "main").encode()

    with pytest.raises(RemoteFailed, match="can't be one") as caught:
        _fetch_from_fake(mine, "fake", {MAIN: commit, ref: commit})

    assert caught.value.exit_code == 74
    assert before == _names(mine)


@pytest.mark.parametrize("after", [0, 2, 5, 8])
def test_a_server_that_falls_silent(
    mine: api.Repository, bare: Path, tmp_path: Path, after: int
) -> None:
    """Wherever it says no more, it counts as away after the configured time: exit code 69, try again."""
    mine.config.set("fetch.timeout", "0.3")
    commit = others_push(bare, tmp_path)
    started = time.monotonic()

    with pytest.raises(RemoteUnreachable) as caught:
        _fetch_from_fake(
            mine, "fake", {MAIN: commit.encode()}, _packed(bare, commit) * 20, silent_after=after
        )

    assert (caught.value.exit_code, caught.value.retry) == (69, True)
    assert time.monotonic() - started < 20


def test_a_silent_web_server(mine: api.Repository) -> None:
    """The time holds over HTTP too."""
    mine.config.set("fetch.timeout", "0.3")
    with socket.create_server(("127.0.0.1", 0)) as server:
        remotes.add(mine, "silent", f"http://127.0.0.1:{server.getsockname()[1]}/x.git")

        with pytest.raises(RemoteUnreachable):
            fetch(mine, "silent")


def test_a_silent_program(mine: api.Repository) -> None:
    """And over ssh; the program is ended."""
    mine.config.set("fetch.timeout", "0.3")
    mine.environment = {**os.environ, "GIT_SSH_COMMAND": "exec sleep 1234.5 #"}
    remotes.add(mine, "silent", "ssh://example.org/x.git")

    with pytest.raises(RemoteUnreachable):
        fetch(mine, "silent")

    assert b"1234.5" not in subprocess.check_output(["ps", "-eo", "args"])


@pytest.mark.parametrize("variable", ["GIT_SSH", "GIT_SSH_COMMAND"])
def test_ssh_is_not_installed(variable: str, mine: api.Repository) -> None:
    """A program that can't be run is a part that is missing, exit code 69, and no repository that is not there."""
    mine.environment = {**os.environ, variable: "/nonexistent/ssh"}
    remotes.add(mine, "far", "ssh://example.org/x.git")

    with pytest.raises(Unavailable, match="/nonexistent/ssh") as caught:
        fetch(mine, "far")

    assert "core.sshCommand" in str(caught.value.hint)


def test_git_can_t_be_run(mine: api.Repository, tmp_path: Path) -> None:
    """What is said of that, where an address is local, is not about ssh."""
    program = tmp_path / "bin" / "git"
    program.parent.mkdir()
    program.write_text("#!/nonexistent/sh\n")
    program.chmod(0o755)
    mine.environment = {**os.environ, "PATH": str(program.parent)}

    with pytest.raises(Unavailable, match="git can't be run") as caught:
        fetch(mine)

    assert "ssh" not in str(caught.value.hint)


def test_a_large_object_passes_in_pieces(mine: api.Repository, bare: Path, tmp_path: Path) -> None:
    """A blob that is stored in frames arrives whole, from a pack that was larger than what is kept in memory."""
    other = tmp_path / "other"
    run_git(tmp_path, "clone", "-q", bare, other)
    content = os.urandom(20 << 20)
    (other / "large").write_bytes(content)
    run_git(other, "add", "large")
    run_git(other, "commit", "-q", "-m", "Large")
    run_git(other, "push", "-q")

    fetch(mine)
    _mode, blob = mine.lookup_path("origin/main", b"large")

    assert mine.store.is_chunked(blob)
    assert content == b"".join(mine.store.iter_blob(blob))


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A bare repository with forty files of 20 kB that compress to nothing less."""
    (tmp_path / "large").mkdir()
    run_git(tmp_path / "large", "init", "-q", "-b", "main")
    for number in range(40):
        (tmp_path / "large" / f"f{number:02}").write_bytes(os.urandom(20_000))
    run_git(tmp_path / "large", "add", ".")
    run_git(tmp_path / "large", "commit", "-q", "-m", "Forty")
    (tmp_path / "served").mkdir(exist_ok=True)
    bare = bare_copy(tmp_path / "large", tmp_path / "served" / "large.git")
    run_git(bare, "config", "uploadpack.allowFilter", "true")
    return bare


@pytest.fixture
def middle(large: Path) -> Iterator[Middle]:
    with git_daemon(large.parent) as daemon, in_between(daemon) as made:
        yield made


def whole(repo: api.Repository, bare: Path) -> bool:
    """Whether all that a server has is here, on git in git, and nothing of a pack is left over."""
    assert repo.fsck(full=True).problems == []
    if repo.git is not None:
        assert run_git(repo.path, "fsck", "--strict", "--connectivity-only") == ""
        assert objects(bare) <= objects(repo.path)
        assert not list(repo.git.objects.glob("pack/*.keep"))
    assert repo.resolve("origin/main").decode() == run_git(bare, "rev-parse", "main")
    assert not list((repo.heddle_dir / "objects").glob("*incoming*"))
    return True


# Of what git sends in one packet, 64 KiB at most, nothing is had before it is whole; five files are more than one.
@pytest.mark.parametrize("limits", [[400_000], [300_000, 10_000, 85_000]])
def test_a_clone_goes_on_when_the_server_hangs_up(
    middle: Middle, large: Path, tmp_path: Path, limits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came before the server hung up is not sent again, as often as that happens, if it brought anything new."""
    monkeypatch.setattr(receiving, "PORTION", 5)
    middle.limits = list(limits)
    repo = cloned(f"{middle.address}/large.git", tmp_path / "clone")

    assert whole(repo, large)
    assert middle.limits == []
    assert 40 * 20_000 < middle.passed < 40 * 20_000 + 130_000 * len(limits)
    repo.close()


def test_a_server_that_leaves_nothing_out_sends_all_again(
    middle: Middle, large: Path, tmp_path: Path
) -> None:
    """A server that knows no filters is asked for everything again, as long as that brings anything new."""
    run_git(large, "config", "uploadpack.allowFilter", "false")
    middle.limits = [400_000]
    repo = cloned(f"{middle.address}/large.git", tmp_path / "clone")

    assert whole(repo, large)
    assert middle.passed > 40 * 20_000 + 400_000
    repo.close()
    middle.limits = [400_000] * 9
    with pytest.raises(RemoteFailed):
        cloned(f"{middle.address}/large.git", tmp_path / "other")
    assert len(middle.limits) > 3 and not (tmp_path / "other").exists()


def test_a_server_that_gives_no_single_objects(middle: Middle, large: Path, tmp_path: Path) -> None:
    """One that leaves files out but does not give them by their ids sends everything again."""
    middle.asks = {b"version=2": b"version=0"}
    middle.limits = [400_000]
    repo = cloned(f"{middle.address}/large.git", tmp_path / "clone")

    assert whole(repo, large)
    repo.close()


@pytest.fixture(params=["alone", "on git"])
def far(request: pytest.FixtureRequest, middle: Middle, tmp_path: Path) -> Iterator[api.Repository]:
    """A repository that has nothing yet of what is behind the relay; alone, and on a git checkout."""
    if request.param == "on git":
        run_git(tmp_path, "init", "-q", "-b", "trunk", "far")
        commit_file(tmp_path / "far", "own", "own\n")
    heddle.init(tmp_path / "far").close()
    repo = heddle.open(tmp_path / "far")
    remotes.add(repo, "origin", f"{middle.address}/large.git")
    yield repo
    repo.close()


def test_a_fetch_goes_on_later(
    far: api.Repository, middle: Middle, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fetch that failed for good has kept what came, without any name; the next one asks for the rest alone."""
    monkeypatch.setattr(receiving, "PORTION", 5)
    before = _names(far)
    middle.limits = [400_000, 10]
    with pytest.raises(RemoteFailed):
        fetch(far)

    assert before == _names(far)
    assert [path.stat().st_size for path in (far.heddle_dir / "objects").glob("incoming-*")] == [8]

    middle.passed = 0
    assert 2 < fetch(far).objects < 43
    assert middle.passed < 600_000
    assert whole(far, large)


def _kill_a_fetch(repo: api.Repository, sizes: range) -> None:
    """Fetch, and kill that when what has come is so many bytes long."""
    path = receiving.place(repo, remotes.remote(repo, "origin"))
    command = [sys.executable, "-m", "heddle", "fetch"]
    with subprocess.Popen(command, cwd=repo.path, stderr=subprocess.DEVNULL) as fetching:
        wait_until(lambda: path.exists() and path.stat().st_size in sizes, "a part of the pack")
        fetching.kill()


def test_a_killed_fetch_goes_on(far: api.Repository, middle: Middle, large: Path) -> None:
    """A fetch that is killed, and killed again when it goes on, keeps the files that came."""
    before = _names(far)
    for limit, sizes in ((400_000, range(300_000, 400_000)), (2_000, range(8, 9))):
        middle.go_on.clear()
        middle.stops_after = limit
        _kill_a_fetch(far, sizes)
        middle.go_on.set()
    middle.stops_after = 0

    assert before == _names(far)

    middle.passed = 0
    assert 2 < fetch(far).objects < 43
    assert middle.passed < 600_000
    assert whole(far, large)


@pytest.mark.parametrize("far", ["on git"], indirect=True)
@pytest.mark.parametrize("point", ["gitpack.before-pack", "gitpack.before-index"])
def test_on_git_files_go_before_what_needs_them(
    far: api.Repository, middle: Middle, large: Path, point: str
) -> None:
    """Killed while git is given the files, git has nothing that it would miss something for; the next one ends it."""
    assert far.git is not None
    middle.limits = [400_000, 10]
    with pytest.raises(RemoteFailed):
        fetch(far)
    command = [sys.executable, "-m", "heddle", "fetch"]
    killed = subprocess.run(command, cwd=far.path, env={**os.environ, "HEDDLE_FAULT": point})

    assert killed.returncode == -9
    assert "missing" not in run_git(far.path, "fsck", "--connectivity-only")

    middle.passed = 0
    fetch(far)

    assert middle.passed < 100_000
    for left in far.git.objects.glob("pack/tmp_pack_*"):
        left.unlink()
    for kept in far.git.objects.glob("pack/*.keep"):
        kept.unlink()
    assert whole(far, large)


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


# what others made, and where it is


def test_a_relative_address(checkout: Path, tmp_path: Path) -> None:
    """An address that is a relative path begins at the repository, wherever the command is run."""
    repo = heddle.init(tmp_path / "mine")
    remotes.add(repo, "origin", "../work")

    assert fetch(repo).objects > 0
    assert tracked(repo, "origin", "main") == run_git(checkout, "rev-parse", "main").encode()


@pytest.mark.parametrize("way", WAYS)
def test_escapes_in_an_address(way: str, bare: Path, tmp_path: Path) -> None:
    """They are resolved as git does it: in whatever has a scheme, and in no path."""
    odd = bare.rename(bare.with_name("C#?ü 100%25.git"))
    with served_over(way, odd) as address:
        escaped = address if way == "path" else address.replace(odd.name, quote(odd.name))
        repo = cloned(escaped, tmp_path / "mine")

    assert state(repo, "main") == run_git(odd, "rev-parse", "main")


@pytest.mark.parametrize("kind", ["bundle", "plain web server"])
def test_what_is_no_git_server(kind: str, bare: Path, tmp_path: Path) -> None:
    """A bundle, and a repository behind a plain web server, are cloned and fetched from; a push says that it can't."""
    with ExitStack() as stack:
        address = f"{tmp_path}/all.bundle"
        if kind == "bundle":
            run_git(bare, "bundle", "create", "-q", address, "--all", "HEAD")
        else:
            run_git(bare, "update-server-info")
            address = f"{stack.enter_context(plain_http_server(bare.parent))}/project.git"
        repo = cloned(address, tmp_path / "mine")

        assert state(repo, "main") == run_git(bare, "rev-parse", "main")
        assert fetch(repo).refs == []

        capture(repo, "f", "1")
        with pytest.raises(DataError, match="nothing can be pushed to origin") as caught:
            push(repo)

        assert caught.value.exit_code == 65
        repo.close()


def test_a_path_with_a_colon(bare: Path, tmp_path: Path) -> None:
    """A colon behind a slash makes no address of ssh's."""
    (tmp_path / "12:30").mkdir()
    moved = bare.rename(tmp_path / "12:30" / "project.git")

    repo = cloned(str(moved), tmp_path / "mine")
    new = capture(repo, "f", "1")
    push(repo)

    assert new == run_git(moved, "rev-parse", "main")


def test_a_tag_that_is_no_text(checkout: Path, tmp_path: Path) -> None:
    """A tag whose name is not UTF-8 keeps nobody from cloning and fetching; it is a ref like any other."""
    (checkout / ".git/refs/tags").mkdir(exist_ok=True)
    made = run_git(checkout, "rev-parse", "main")
    first, _ = clone(api.Repository, str(checkout), tmp_path / "first", environment=os.environ)
    Path(os.fsdecode(os.fsencode(checkout) + b"/.git/refs/tags/t\xff")).write_text(f"{made}\n")
    second, _ = clone(api.Repository, str(checkout), tmp_path / "second", environment=os.environ)
    fetch(first)

    for repo in (first, second):
        assert repo.database.refs()[b"refs/tags/t\xff"] == made.encode()
        repo.close()


@pytest.fixture
def long(tmp_path: Path, nothing_left: None) -> Path:
    """A bare repository of SHA-256 ids, which lets itself be pushed to, with a branch and an annotated tag."""
    run_git(tmp_path, "init", "-q", "-b", "main", "--object-format=sha256", "work")
    commit_file(tmp_path / "work", "a", "1")
    run_git(tmp_path / "work", "tag", "-a", "-m", "Noted", "noted")
    (tmp_path / "served").mkdir()
    return bare_copy(tmp_path / "work", tmp_path / "served" / "long.git")


@pytest.mark.parametrize("version", ["0", "2"])
@pytest.mark.parametrize("way", [*WAYS, "ssh"])
def test_sha256_over_every_way(
    way: str, version: str, long: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repository of SHA-256 ids is cloned as one, fetched, pulled and pushed to, also by a new branch."""
    monkeypatch.setattr(connection, "_PROTOCOL", f"version={version}")
    if way == "ssh":
        monkeypatch.setenv("GIT_SSH_COMMAND", _local_shell(tmp_path))
    with served_over(way, long) if way != "ssh" else nullcontext(f"ssh://x{long}") as address:
        repo = cloned(address, tmp_path / "mine")

        assert (repo.object_format, len(state(repo, "main"))) == ("sha256", 64)
        assert (tmp_path / "mine/a").read_text() == "1"

        new = capture(repo, "b", "2")
        repo.threads.create("side", repo.resolve("main"))
        pushed = push(repo, "origin", ["main", "side"], markers=True)

        assert [each.old is None for each in pushed.refs] == [False, True]
        assert new == run_git(long, "rev-parse", "main") == run_git(long, "rev-parse", "side")
        assert run_git(long, "fsck", "--strict") == ""

        theirs = others_push(long, tmp_path)
        pull(repo)

        assert theirs == state(repo, "main")
        assert repo.fsck(full=True).problems == []
        repo.close()


def test_the_first_push_of_sha256(long: Path, tmp_path: Path) -> None:
    """What is pushed to an empty repository of SHA-256 ids arrives; one of SHA-1 refuses it, and nothing is sent."""
    repo = cloned(str(long), tmp_path / "mine")
    for form in ("sha256", "sha1"):
        run_git(tmp_path, "init", "-q", "--bare", f"--object-format={form}", form)
        remotes.add(repo, form, str(tmp_path / form))
    push(repo, "sha256", markers=True)

    assert refs(tmp_path / "sha256") == refs(long)
    with pytest.raises(OtherIds, match="sha1 ids") as caught:
        push(repo, "sha1")
    assert caught.value.exit_code == 65
    assert refs(tmp_path / "sha1") == {} and not list((tmp_path / "sha1").glob("objects/??"))
    repo.close()


def test_other_ids_are_not_sent_for_nothing(long: Path, tmp_path: Path) -> None:
    """A fetch from a server with ids of the other format asks for no objects at all."""
    repo = heddle.init(tmp_path / "short")
    with git_daemon(long.parent) as daemon, in_between(daemon) as middle:
        remotes.add(repo, "origin", f"{middle.address}/long.git")
        with pytest.raises(OtherIds, match="sha256 ids"):
            fetch(repo)

        assert middle.passed < 1000
    repo.close()


def test_a_lazy_clone_of_sha256(long: Path, tmp_path: Path) -> None:
    """Blobs of SHA-256 ids stay with the server until they are read, and so do their sizes."""
    run_git(long, "config", "uploadpack.allowFilter", "true")
    environment = os.environ
    repo = clone(api.Repository, str(long), tmp_path / "l", environment=environment, lazy=True)[0]
    blob = repo.lookup_path("main", b"a")[1]
    raw_id = bytes.fromhex(blob.decode())

    assert not repo.store.contains(raw_id)
    assert Promisor(repo).sizes([raw_id]) == {raw_id: 1}
    assert repo.store.get_raw(blob)[1] == b"1"
    repo.close()


def test_on_git_of_sha256(long: Path, git: Git, tmp_path: Path) -> None:
    """On a checkout of SHA-256 ids what is fetched goes to git, and what is captured is pushed."""
    git("clone", "-q", f"file://{long}", tmp_path / "mine")
    heddle.init(tmp_path / "mine").close()
    repo = heddle.open(tmp_path / "mine")
    theirs = others_push(long, tmp_path)
    pull(repo)
    repo.follow_git()

    assert theirs == run_git(repo.path, "rev-parse", "main")

    new = capture(repo, "b", "2")
    push(repo)

    assert (
        new == run_git(long, "rev-parse", "main") == run_git(repo.path, "rev-parse", "origin/main")
    )
    repo.close()


@pytest.mark.parametrize("url", ["foo://host/x", "git://127.0.0.1:99999/x", "http://[::1/x"])
def test_what_is_no_address(tmp_path: Path, url: str) -> None:
    """An address that nobody can reach, ever, is refused at once, and nothing is made."""
    with pytest.raises(UsageError):
        clone(api.Repository, url, tmp_path / "mine", environment=os.environ)

    assert not (tmp_path / "mine").exists()


def test_progress_is_no_reason() -> None:
    """What a server counts while it takes a pack is left out of the words in which it refuses it."""
    said = [
        b"Resolving deltas: 100% (7/7)\rUnpacking objects:  50% ",
        b"(1/2)\nno tabs ",
        b"in here\n",
    ]

    assert _in_its_words(said) == " (no tabs in here)"
