"""Heddle on git repositories of every kind and age, made by stock git or by hashing what git would refuse to make."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

import heddle
from heddle import api
from heddle.errors import (
    CannotCreate,
    CorruptObject,
    DataError,
    HeddleError,
    NotARepository,
    NotPermitted,
    StateNotFound,
    StorageError,
)
from heddle.git import export, importing
from heddle.git.cloning import clone
from heddle.git.fetching import fetch

from .conftest import IDENTITY, Git, commit_file, objects, refs, run_git, state

ZERO_TIME = b"1700000000 +0000"


def hash_object(where: Path, kind: str, content: bytes) -> str:
    """Store any bytes as an object, whatever git thinks of them; returns its id."""
    command = ["git", "-C", str(where), "hash-object", "--literally", "-w", "-t", kind, "--stdin"]
    done = subprocess.run(command, input=content, capture_output=True, check=True)
    return done.stdout.decode().strip()


def commit(where: Path, *headers: bytes, tree: str | None = None, message: bytes = b"odd\n") -> str:
    """Store a commit with these lines after its committer, and put ``main`` and the checkout there."""
    tree = tree or run_git(where, "rev-parse", "HEAD^{tree}")
    head = run_git(where, "rev-parse", "HEAD")
    lines = [
        b"tree " + tree.encode(),
        *(
            []
            if any(each.startswith(b"parent") for each in headers)
            else [b"parent " + head.encode()]
        ),
        *(each for each in headers if each.startswith(b"parent")),
        b"author A <a@example.org> " + ZERO_TIME,
        b"committer A <a@example.org> " + ZERO_TIME,
        *(each for each in headers if not each.startswith(b"parent")),
        b"",
        message,
    ]
    found = hash_object(where, "commit", b"\n".join(lines))
    run_git(where, "reset", "-q", "--hard", found)
    return found


def same_objects(one: Path, other: Path) -> None:
    """Everything that refs of ``one`` reach is in ``other`` too, byte for byte (ids are content)."""
    assert refs(one) == refs(other)
    assert objects(one) == objects(other)


def out_and_back(source: Path, tmp_path: Path) -> Path:
    """Import a repository into one that stands alone and export that again; returns the git repository made."""
    alone = heddle.init(tmp_path / "alone", object_format=git_format(source))
    importing.import_git(alone, source)
    export.export(alone, to=tmp_path / "back.git")
    alone.close()
    return tmp_path / "back.git"


def git_format(where: Path) -> str:
    return run_git(where, "rev-parse", "--show-object-format")


def opened(path: Path) -> api.Repository:
    heddle.init(path).close()
    repo = heddle.open(path)
    assert repo.git_problems == {}
    return repo


def changed(repo: api.Repository) -> list[bytes]:
    return [change.path for change in repo.status().changes]


# kinds of repositories


@pytest.mark.parametrize("object_format", ["sha1", "sha256"])
def test_both_kinds_of_ids(tmp_path: Path, object_format: str) -> None:
    """On a checkout with SHA-1 or SHA-256 ids, captures are commits of it."""
    path = tmp_path / "work"
    run_git(tmp_path, "init", "-q", f"--object-format={object_format}", "-b", "main", path)
    commit_file(path, "a.txt", "one\n")
    repo = opened(path)
    (path / "b.txt").write_text("two\n")

    made = repo.capture(message="by heddle").state

    assert changed(repo) == []
    assert made.id.decode() == run_git(path, "rev-parse", "main")
    assert run_git(path, "status", "--porcelain") == ""
    run_git(path, "fsck", "--strict")
    same_objects(path, out_and_back(path, tmp_path))


def test_a_linked_worktree(checkout: Path, git: Git, tmp_path: Path) -> None:
    """In a linked worktree HEAD is its branch, a capture moves that, and git ignores .heddle there."""
    linked = tmp_path / "linked"
    git("worktree", "add", "-q", "-b", "side", linked)
    repo = opened(linked)
    (linked / "new").write_text("new\n")

    made = repo.capture(message="by heddle").state

    assert ("side", made.id.decode()) == (repo.head, git("rev-parse", "side"))
    assert (git("status", "--porcelain", at=linked), git("status", "--porcelain")) == ("", "")
    assert (repo.git.checkout, repo.git.common) == (linked, checkout / ".git")  # type: ignore[union-attr]


def test_a_linked_worktree_whose_repository_was_moved(
    checkout: Path, git: Git, tmp_path: Path
) -> None:
    """Git's objects are read where git has them now, and a repair loses nothing."""
    linked, moved = tmp_path / "linked", tmp_path / "moved"
    git("worktree", "add", "-q", linked, "-b", "other")
    opened(linked).close()
    checkout.rename(moved)
    git("worktree", "repair", at=moved)
    commit_file(moved, "c.txt", "three\n")
    repo = heddle.open(linked)
    (linked / "a.txt").write_text("changed\n")

    repo.capture(message="Moved")
    repaired, report = repo.repair()
    again = heddle.open(linked)

    assert (repo.git_problems, again.git_problems) == ({}, {})
    assert (repaired.lost, report.problems, again.fsck().problems) == ([], [], [])
    assert state(again, "main") == git("rev-parse", "main", at=moved)
    assert len(list(again.log())) == 3
    assert git("status", "--porcelain", at=linked) == ""


def test_heddle_in_a_checkout_and_in_its_linked_worktree(
    repo: api.Repository, git: Git, tmp_path: Path
) -> None:
    """Two repositories on one git repository see each other's captures as git's branches."""
    linked = tmp_path / "linked"
    git("worktree", "add", "-q", "-b", "side", linked)
    other = opened(linked)
    (linked / "new").write_text("new\n")

    made = other.capture(message="there").state.id

    assert made == heddle.open(repo.path).resolve("side")


def test_a_bare_repository(checkout: Path, git: Git, tmp_path: Path) -> None:
    """In a bare repository branches are threads; there is no working directory to capture or to switch."""
    bare = tmp_path / "bare.git"
    git("clone", "-q", "--bare", ".", bare)
    repo = opened(bare)

    assert (repo.head, state(repo, "main")) == ("main", git("rev-parse", "main"))
    assert changed(repo) == []
    for refused in (lambda: repo.capture(message="x"), lambda: repo.switch("main")):
        with pytest.raises(DataError, match="bare"):
            refused()


@pytest.mark.parametrize("layout", [".git file", "core.bare", "config.worktree"])
def test_a_bare_repository_that_does_not_look_like_one(
    checkout: Path, git: Git, tmp_path: Path, layout: str
) -> None:
    """What git takes for bare is bare: no file beside its ``.git`` is anybody's working directory."""
    place, bare = tmp_path / "place", tmp_path / "place/.bare"
    if layout == "core.bare":
        place, bare = checkout, checkout / ".git"
        git("config", "core.bare", "true")
    else:
        git("clone", "-q", "--bare", ".", bare)
        (place / ".git").write_text("gitdir: ./.bare\n")
    if layout == "config.worktree":
        git("worktree", "add", "-q", tmp_path / "tree", "-b", "other", at=bare)
        git("sparse-checkout", "set", "d", at=tmp_path / "tree")  # moves core.bare there
        place = bare
    repo = opened(place)
    (place / "new").write_text("new\n")
    other = tmp_path / "linked"
    git("worktree", "add", "-q", other, "main", at=bare)

    assert (repo.head, state(repo, "main")) == ("main", git("rev-parse", "main", at=bare))
    assert changed(repo) == []
    for refused in (lambda: repo.capture(message="x"), lambda: repo.switch("main")):
        with pytest.raises(DataError, match="bare"):
            refused()
    assert opened(other).switch("main").thread == "main"


def test_a_capture_moves_the_branch_of_a_bare_repository(
    checkout: Path, git: Git, tmp_path: Path
) -> None:
    """What is captured in a mount's overlay on a bare repository is git's branch, HEAD's branch too."""
    from heddle.mount.overlay import Overlay

    bare = tmp_path / "bare.git"
    git("clone", "-q", "--bare", ".", bare)
    repo = opened(bare)
    with Overlay.open(repo, "main") as overlay:
        (tmp_path / "bare.git/.heddle/overlays/main/upper/new").write_text("new\n")

    made = repo.capture(message="by heddle", thread="main").state

    assert made.id.decode() == git("rev-parse", "main", at=bare)
    assert git("show", "main:new", at=bare) == "new"
    assert heddle.open(bare).git_problems == {}
    assert overlay.thread == "main"


def test_inside_dot_git_is_no_place(checkout: Path) -> None:
    """The .git of a checkout is not taken for a bare repository: heddle init there knows no git."""
    assert heddle.init(checkout / ".git" / "info").git is None
    assert gitless(checkout / ".git")


def gitless(path: Path) -> bool:
    from heddle.repo import gitlink

    return gitlink.find(path) is None


def test_a_shallow_clone(checkout: Path, git: Git, tmp_path: Path) -> None:
    """History ends where the clone's does; captures go on top; standing alone it can't."""
    shallow = tmp_path / "shallow"
    git("clone", "-q", "--depth=1", f"file://{checkout}", shallow)
    repo = opened(shallow)
    (shallow / "new").write_text("new\n")

    made = repo.capture(message="by heddle").state

    assert [each.id for each in repo.log()] == [made.id, git("rev-parse", "main").encode()]
    assert git("rev-parse", "main", at=shallow) == made.id.decode()
    with pytest.raises(DataError, match="shallow"):
        out_and_back(shallow, tmp_path)


def test_packed_refs_and_everything_packed(checkout: Path, git: Git) -> None:
    """A repository after git gc, with a commit graph and a multi-pack-index, is the same repository."""
    git("tag", "-a", "-m", "a tag", "v1")
    git("branch", "side", "HEAD~1")
    git("gc", "-q")
    git("commit-graph", "write", "--reachable")
    git("multi-pack-index", "write")
    repo = opened(checkout)

    assert not (checkout / ".git/refs/heads/main").exists()
    assert {each.name for each in repo.threads} == {"main", "side"}
    assert repo.resolve("v1") == git("rev-parse", "main").encode()
    assert changed(repo) == []
    assert len(list(repo.log())) == 2


def test_a_chain_of_alternates(checkout: Path, git: Git, tmp_path: Path) -> None:
    """A clone that borrows from a clone that borrows from here is read through both."""
    git("clone", "-q", "--shared", ".", tmp_path / "two")
    git("clone", "-q", "--shared", tmp_path / "two", tmp_path / "three")
    repo = opened(tmp_path / "three")

    assert changed(repo) == []
    assert len(list(repo.log())) == 2
    assert objects(checkout) == {id.decode() for id in repo.store}


# formats that are not known


@pytest.mark.parametrize(
    "settings",
    [
        {"core.repositoryformatversion": "2"},
        {"core.repositoryformatversion": "1", "extensions.fancy": "true"},
        {"core.repositoryformatversion": "1", "extensions.refStorage": "reftable"},
        {"core.repositoryformatversion": "1", "extensions.objectFormat": "sha512"},
        {"core.repositoryformatversion": "1", "extensions.compatObjectFormat": "sha256"},
    ],
    ids=lambda settings: list(settings)[-1],
)
def test_a_newer_format_is_refused(checkout: Path, settings: dict[str, str]) -> None:
    """What a repository says it needs and heddle does not know is named, and nothing is made there."""
    with (checkout / ".git" / "config").open("a") as file:
        for key, value in settings.items():
            section, _, name = key.partition(".")
            file.write(f"[{section}]\n\t{name} = {value}\n")
    before = sorted(checkout.rglob("*"))

    with pytest.raises(DataError, match="a format that heddle does not know") as caught:
        heddle.init(checkout)

    assert list(settings.values())[-1] in caught.value.message
    assert before == sorted(checkout.rglob("*"))


@pytest.mark.parametrize(
    "settings",
    [
        {"core.repositoryformatversion": "0", "extensions.fancy": "true"},
        {"core.repositoryformatversion": "1", "extensions.refStorage": "files"},
        {"core.repositoryformatversion": "1", "extensions.worktreeConfig": "true"},
        {"core.repositoryformatversion": "1", "extensions.noop": "x"},
    ],
    ids=lambda settings: list(settings)[-1],
)
def test_what_git_takes_is_taken(checkout: Path, git: Git, settings: dict[str, str]) -> None:
    """Extensions that change nothing for us, and any of version 0, are no obstacle."""
    with (checkout / ".git" / "config").open("a") as file:
        for key, value in settings.items():
            section, _, name = key.partition(".")
            file.write(f"[{section}]\n\t{name} = {value}\n")

    assert changed(opened(checkout)) == []


def test_a_repository_that_became_newer(repo: api.Repository, git: Git) -> None:
    """After git upgraded its format, a command says so, and moves nothing."""
    (repo.path / "new").write_text("new\n")
    with (repo.path / ".git" / "config").open("a") as file:
        file.write("[core]\n\trepositoryformatversion = 9\n")
    before = (repo.path / ".git/refs/heads/main").read_text()

    again = heddle.open(repo.path)
    again.capture(message="kept here")
    problems = list(heddle.open(repo.path).git_problems.values())

    assert "version 9" in problems[0].message
    assert before == (repo.path / ".git/refs/heads/main").read_text()


# damaged, locked, somebody else's


def damage(path: Path, content: str = "garbage\n") -> Callable[[Path], None]:
    def do(checkout: Path) -> None:
        (checkout / path).unlink(missing_ok=True)
        (checkout / path).write_text(content)

    return do


def without_objects(checkout: Path) -> None:
    for directory in (checkout / ".git" / "objects").iterdir():
        if len(directory.name) == 2:
            shutil.rmtree(directory)


def nowhere(checkout: Path) -> None:
    shutil.rmtree(checkout / ".git")
    (checkout / ".git").write_text("gitdir: /nowhere\n")


def empty(checkout: Path) -> None:
    shutil.rmtree(checkout / ".git")
    (checkout / ".git").mkdir()


@pytest.mark.parametrize(
    ("break_it", "kind", "says"),
    [
        (damage(Path(".git/HEAD")), StorageError, "HEAD"),
        (damage(Path(".git/HEAD"), ""), StorageError, "HEAD"),
        (damage(Path(".git/refs/heads/main")), StorageError, "refs/heads/main"),
        (damage(Path(".git/HEAD"), "ref: ../main\n"), StorageError, "HEAD"),
        (damage(Path(".git/HEAD"), "ref: refs/heads/\n"), StorageError, "HEAD"),
        (damage(Path(".git/refs/heads/main"), ""), StorageError, "refs/heads/main"),
        (damage(Path(".git/refs/heads/main"), "1" * 40), StorageError, "1" * 40),
        (damage(Path(".git/config"), "[core\nx"), DataError, "config"),
        (without_objects, StorageError, "no commit"),
        (nowhere, DataError, "no git repository"),
        (empty, DataError, "no git repository"),
        (lambda checkout: shutil.rmtree(checkout / ".git/objects"), DataError, "no git repository"),
        (lambda checkout: shutil.rmtree(checkout / ".git/refs"), DataError, "no git repository"),
    ],
    ids=[
        *("HEAD", "empty HEAD", "ref", "HEAD elsewhere", "HEAD on no name", "empty ref"),
        *("ref to nothing", "config", "no objects", "no .git"),
        *("empty .git", "no object directory", "no refs"),
    ],
)
def test_a_damaged_repository_is_refused(
    checkout: Path, break_it: Callable[[Path], None], kind: type[HeddleError], says: str
) -> None:
    """heddle init on a .git that is not whole says what is wrong with it, and makes nothing."""
    break_it(checkout)
    before = sorted(checkout.rglob("*"))

    with pytest.raises(kind) as caught:
        heddle.init(checkout)

    assert says in caught.value.message
    assert before == sorted(checkout.rglob("*"))


@pytest.mark.parametrize("name", ["refs/heads/main", "HEAD", "packed-refs"])
def test_refs_damaged_later(repo: api.Repository, git: Git, name: str) -> None:
    """A ref that breaks is said by the next command; what heddle has is read and captured as before."""
    if name == "packed-refs":
        git("pack-refs", "--all")
    expected = state(repo, "main")
    damage(Path(".git") / name)(repo.path)

    again = heddle.open(repo.path)

    assert state(again, "main") == expected
    assert len(list(again.log())) == 2
    assert [problem.exit_code for problem in again.git_problems.values()] == [74]
    assert (repo.path / ".git" / name).read_text() == "garbage\n"


@pytest.mark.parametrize("name", ["main", "side"])
def test_a_ref_that_a_crash_emptied(repo: api.Repository, git: Git, name: str) -> None:
    """It is damaged, for heddle as for git: its older place in packed-refs is not where the branch is."""
    git("branch", "-f", "side", "HEAD~1")
    git("pack-refs", "--all")
    git("branch", "-f", "side", "HEAD")
    commit_file(repo.path, "a.txt", "newer\n")
    expected = {thread.name: thread.state for thread in heddle.open(repo.path).threads}
    (repo.path / f".git/refs/heads/{name}").write_bytes(b"")

    again = heddle.open(repo.path)

    assert {thread.name: thread.state for thread in again.threads} == expected
    assert [problem.exit_code for problem in again.git_problems.values()] == [74]
    (problem,) = again.git_problems.values()
    assert f"refs/heads/{name}" in problem.message


def test_an_empty_list_of_packed_refs(checkout: Path, git: Git) -> None:
    """It holds nothing, as for git."""
    (checkout / ".git/packed-refs").write_bytes(b"")

    assert state(opened(checkout), "main") == git("rev-parse", "main")


def test_a_damaged_object(repo: api.Repository, git: Git) -> None:
    """A blob of git's that is not what was written is an error that names it, whoever reads it."""
    id = git("rev-parse", "main:a.txt")
    path = repo.path / ".git/objects" / id[:2] / id[2:]
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-3])

    with pytest.raises(CorruptObject, match=id):
        repo.materialize(repo.path.parent / "out")
    assert not (repo.path.parent / "out" / "a.txt").exists()


@pytest.mark.parametrize("lock", ["index.lock", "packed-refs.lock", "refs/heads/main.lock"])
def test_while_git_has_a_lock(repo: api.Repository, git: Git, lock: str) -> None:
    """A capture is recorded though git has something locked; the branch follows when it is free."""
    git("pack-refs", "--all")
    (repo.path / ".git" / lock).touch()
    (repo.path / "new").write_text("new\n")

    made = repo.capture(message="by heddle").state.id.decode()
    waiting = heddle.open(repo.path)
    held = {git("rev-parse", "main"), state(waiting, "main")}
    (repo.path / ".git" / lock).unlink()
    done = heddle.open(repo.path)

    assert made in held
    assert (git("rev-parse", "main"), done.git_problems) == (made, {})
    assert git("status", "--porcelain") == ""


@pytest.fixture
def theirs(checkout: Path) -> Path:
    """The checkout, given to another user."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    for path in [checkout, *checkout.rglob("*")]:
        os.lchown(path, 65534, 65534)
    return checkout


def test_somebody_elses_repository(theirs: Path, tmp_path: Path) -> None:
    """As git does, heddle refuses a repository of another user, and names the setting that allows it."""
    with pytest.raises(NotPermitted, match="somebody else") as caught:
        heddle.init(theirs)

    assert not (theirs / ".heddle").exists()
    assert caught.value.hint == f"git config --global --add safe.directory {theirs}"
    refused = subprocess.run(["git", "-C", theirs, "status"], capture_output=True)
    assert b"dubious ownership" in refused.stderr


@pytest.mark.parametrize(
    ("values", "is_safe"),
    [
        (["{path}"], True),
        (["*"], True),
        (["/elsewhere"], False),
        (["{path}", ""], False),
        (["*", "", "{path}"], True),
    ],
)
def test_safe_directories(theirs: Path, git: Git, values: list[str], is_safe: bool) -> None:
    """safe.directory is taken as git takes it: paths, a star, and an empty value that takes back."""
    for value in values:
        run_git(
            theirs.parent,
            "config",
            "--global",
            "--add",
            "safe.directory",
            value.format(path=theirs),
        )
    agrees = subprocess.run(["git", "-C", theirs, "status"], capture_output=True).returncode == 0

    try:
        heddle.init(theirs)
        done = True
    except NotPermitted:
        done = False

    assert is_safe == done == agrees


def test_sudo(theirs: Path) -> None:
    """Root by sudo may use what belongs to the user who called it."""
    assert heddle.init(theirs, environment={**os.environ, "SUDO_UID": "65534"}).git is not None


@pytest.fixture
def read_only(checkout: Path) -> Iterator[Path]:
    """The checkout on a disk that can't be written to."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    subprocess.run(["mount", "--bind", checkout, checkout], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", checkout], check=True)
        yield checkout
    finally:
        subprocess.run(["umount", "-l", checkout], check=True)


def test_on_a_read_only_disk(read_only: Path) -> None:
    """heddle init where nothing can be written is an error that says so."""
    with pytest.raises(CannotCreate, match="Read-only file system"):
        heddle.init(read_only)


def test_a_repository_whose_disk_became_read_only(checkout: Path, git: Git) -> None:
    """With git's directory read-only, a capture is kept in .heddle and the branch is said to lag behind."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    repo = opened(checkout)
    (checkout / "new").write_text("new\n")
    inner = checkout / ".git"
    before = git("rev-parse", "main")
    subprocess.run(["mount", "--bind", inner, inner], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", inner], check=True)
        made = repo.capture(message="by heddle").state.id.decode()
        again = heddle.open(checkout)
        behind = git("rev-parse", "main")
    finally:
        subprocess.run(["umount", "-l", inner], check=True)

    assert (before, made) == (behind, state(again, "main"))
    assert again.git_problems
    assert heddle.open(checkout).git_problems == {}
    assert git("rev-parse", "main") == made


# what commits, tags and trees can hold


ODD_COMMITS: dict[str, tuple[tuple[bytes, ...], bytes]] = {
    "signed": (
        (
            b"gpgsig -----BEGIN PGP SIGNATURE-----\n \n iQEzBAABCAAdFiEE\n =abcd\n"
            b" -----END PGP SIGNATURE-----",
        ),
        b"signed\n",
    ),
    "signed with sha256": ((b"gpgsig-sha256 -----BEGIN SSH SIGNATURE-----\n x",), b"x\n"),
    "a merged tag": (
        (
            b"mergetag object "
            + b"1" * 40
            + b"\n type commit\n tag v1\n tagger A <a@b> 1 +0000\n \n x",
        ),
        b"x\n",
    ),
    "latin-1": ((b"encoding ISO-8859-1",), b"caf\xe9\n"),
    "no such encoding": ((b"encoding klingon",), b"\xff\xfe\n"),
    "unknown headers": ((b"HG:extra amend_source:1", b"x-y z", b"empty "), b"x\n"),
    "no message": ((), b""),
    "no final newline": ((), b"text"),
    "only newlines": ((), b"\n\n\n"),
    "not UTF-8": ((), b"\x80\x81 caf\xe9\n"),
    "zero byte": ((), b"before\0after\n"),
}


@pytest.mark.parametrize("name", ODD_COMMITS)
def test_an_odd_commit(checkout: Path, git: Git, tmp_path: Path, name: str) -> None:
    """Whatever headers and message a commit has, it is read, shown, built upon and passed on as it is."""
    headers, message = ODD_COMMITS[name]
    id = commit(checkout, *headers, message=message).encode()
    repo = opened(checkout)
    raw = repo.store.get_raw(id)[1]

    assert hash_object(checkout, "commit", raw).encode() == id
    assert next(repo.log()).id == id
    assert repo.state(id).tree == git("rev-parse", "main^{tree}").encode()
    assert from_cli(repo.path, "show", "HEAD") == from_cli(repo.path, "log", "-n", "1") == 0
    (checkout / "new").write_text("new\n")
    repo.capture(message="on top")
    same_objects(checkout, out_and_back(checkout, tmp_path))


@pytest.mark.parametrize(
    "identity",
    [
        b"A <a@b> 1 +9999",
        b"A <a@b> 99999999999 -0000",
        b"  <> 0 +0000",
        b"A a@b 5 +0000",
        b"A <a@b>",
        b"A <<a@b>> 7 +0000",
        b"\xff <\xfe> 1 +0000",
        b"A <a@b> -5 +0000",
    ],
)
def test_an_odd_identity(checkout: Path, git: Git, identity: bytes) -> None:
    """Whatever stands for an author and a date in old histories, it is shown, and kept byte for byte."""
    tree = git("rev-parse", "HEAD^{tree}").encode()
    raw = b"tree %s\nauthor %s\ncommitter %s\n\nodd\n" % (tree, identity, identity)
    id = hash_object(checkout, "commit", raw)
    git("reset", "-q", "--hard", id)
    repo = opened(checkout)

    assert repo.store.get_raw(id.encode()) == (1, raw)
    assert repo.state("HEAD").tree == tree
    for command in (("log",), ("show",), ("log", "--graph"), ("--json", "log")):
        assert from_cli(checkout, *command) == 0


def from_cli(where: Path, *args: str) -> int:
    """Run a command in a directory; returns its exit code."""
    from heddle.cli import main

    return main(["-q", "-C", str(where), *args])


def test_a_rebased_history(checkout: Path, git: Git) -> None:
    """History is ordered, and cut off, by when commits were written, as git does; authors' times may be anything."""
    base = git("rev-parse", "HEAD")
    for year in range(1990, 2015):
        git("commit", "-q", "--allow-empty", "-m", str(year), "--date", f"{year}-01-01T00:00:00Z")
    git("branch", "side", "HEAD~3")
    git("switch", "-q", "side")
    commit_file(checkout, "c.txt", "beside\n")
    git("switch", "-q", "main")
    git("merge", "-q", "--no-edit", "side")
    repo = opened(checkout)
    since_s = int(git("log", "-1", "--format=%ct", base))

    assert [each.id.decode() for each in repo.log()] == git("log", "--format=%H").split()
    assert base in [each.id.decode() for each in repo.log(since=since_s)]


def test_a_merge_with_many_parents(checkout: Path, git: Git, tmp_path: Path) -> None:
    """An octopus keeps all of its parents in their order, and their histories are walked."""
    parents = []
    for number in range(9):
        git("switch", "-q", "-c", f"side-{number}", "main")
        parents.append(commit_file(checkout, f"{number}", "x"))
    git("switch", "-q", "main")
    commit(checkout, *(b"parent " + each.encode() for each in parents))
    repo = opened(checkout)

    assert [each.decode() for each in repo.state("HEAD").parents] == parents
    assert len(list(repo.log())) == 12
    assert from_cli(checkout, "log", "--graph") == 0
    same_objects(checkout, out_and_back(checkout, tmp_path))


def test_tags_of_everything(checkout: Path, git: Git, tmp_path: Path) -> None:
    """A tag of a tag leads to its commit; tags of trees and blobs are no states, and all are kept."""
    git("tag", "-a", "-m", "one", "one")
    git("tag", "-a", "-m", "two", "two", "one")
    git("tag", "-a", "-m", "tree", "tree", "HEAD^{tree}")
    git("tag", "blob", "HEAD:a.txt")
    repo = opened(checkout)

    assert repo.resolve("two") == repo.resolve("main")
    for name in ("tree", "blob"):
        with pytest.raises(HeddleError):
            repo.resolve(name)
    same_objects(checkout, out_and_back(checkout, tmp_path))


def tree_of(checkout: Path, *entries: tuple[bytes, bytes, str]) -> str:
    """Store a tree of (mode as written, name, id)."""
    raw = b"".join(b"%s %s\0%s" % (mode, name, bytes.fromhex(id)) for mode, name, id in entries)
    return hash_object(checkout, "tree", raw)


def test_old_modes(checkout: Path, git: Git, tmp_path: Path) -> None:
    """Files of mode 100664 and trees written as 040000 are read, unchanged, and kept when others change."""
    blob, inner = git("rev-parse", "HEAD:a.txt"), git("rev-parse", "HEAD^{tree}")
    odd = tree_of(checkout, (b"100664", b"group", blob), (b"040000", b"sub", inner))
    top = tree_of(checkout, (b"40000", b"odd", odd), (b"100664", b"old", blob))
    commit(checkout, tree=top)
    repo = opened(checkout)
    assert changed(repo) == []
    (checkout / "new").write_text("new\n")

    repo.capture(message="beside them")

    assert repo.lookup_path("HEAD", b"odd")[1].decode() == odd
    assert repo.lookup_path("HEAD", b"old")[0] == 0o100664
    same_objects(checkout, out_and_back(checkout, tmp_path))


def test_git_comes_later(tmp_path: Path) -> None:
    """A git repository that is made beside heddle's is left alone until ``heddle init`` puts one on the other."""
    repo = heddle.init(tmp_path)
    (tmp_path / "ours").write_text("ours\n")
    ours = repo.capture(message="ours").state.id
    run_git(tmp_path, "init", "-q", "-b", "trunk")
    theirs = commit_file(tmp_path, "theirs", "theirs\n")

    alone = heddle.open(tmp_path)
    assert alone.git is None and isinstance(alone.git_problems[""], DataError)
    assert alone.git_problems[""].hint == "heddle init"
    (tmp_path / "ours").write_text("more\n")
    more = alone.capture(message="more").state
    assert more.parents == (ours,)
    assert run_git(tmp_path, "for-each-ref", "--format=%(refname)") == "refs/heads/trunk"

    heddle.init(tmp_path)
    both = heddle.open(tmp_path)
    assert both.git_problems == {}
    assert (state(both, "main"), state(both, "trunk")) == (more.id.decode(), theirs)
    assert both.head == "trunk" and ".heddle" not in run_git(tmp_path, "status", "--porcelain")
    assert both.fsck(full=True).problems == []
    assert b"ours" in {change.path for change in both.status().changes}


@pytest.mark.parametrize("branch", ["main", "trunk"])
def test_git_comes_later_and_empty(tmp_path: Path, branch: str) -> None:
    """A git repository without anything begins where heddle is: the same thread, its base, and its history."""
    repo = heddle.init(tmp_path / "here")
    (repo.path / "file").write_text("one\n")
    first = repo.capture(message="one").state.id
    run_git(repo.path, "init", "-q", "-b", branch)
    (repo.path / "file").write_text("two\n")

    heddle.init(repo.path)
    both = heddle.open(repo.path)
    assert (both.head, changed(both)) == ("main", [b"file"])
    second = both.capture(message="two").state

    assert second.parents == (first,)
    assert run_git(repo.path, "rev-parse", "HEAD") == second.id.decode()
    assert run_git(repo.path, "status", "--porcelain") == ""


def test_a_link_to_git_that_a_crash_left_half_done(tmp_path: Path) -> None:
    """What ``init`` had begun when it was killed, the next one finishes; until then nobody takes it for done."""
    repo = heddle.init(tmp_path / "here")
    run_git(repo.path, "init", "-q")
    (repo.heddle_dir / ".git" / "objects").mkdir(parents=True)
    assert heddle.open(repo.path).git is None

    heddle.init(repo.path)

    assert heddle.open(repo.path).git is not None
    assert ".heddle" not in run_git(repo.path, "clean", "-fdxn")


def test_a_damaged_branch_is_its_own_problem(checkout: Path, git: Git) -> None:
    """A ref that a crash has emptied is named, and keeps no other branch from following."""
    repo = opened(checkout)
    for name, left in (("one", ""), ("two", "ref: ")):
        git("branch", name)
        (checkout / ".git/refs/heads" / name).write_text(left)
    (checkout / "a.txt").write_text("more\n")

    captured = repo.capture(message="on main").state.id.decode()

    assert git("rev-parse", "main") == captured
    assert repo.git_problems.keys() == {"one", "two"}


def test_git_comes_later_with_other_ids(tmp_path: Path) -> None:
    """Heddle's repository can't lie on a git repository of another format, and says so; nothing is changed."""
    heddle.init(tmp_path, object_format="sha256")
    run_git(tmp_path, "init", "-q")
    excluded = (tmp_path / ".git/info/exclude").read_bytes()

    with pytest.raises(DataError, match="sha1 ids"):
        heddle.init(tmp_path)

    assert (tmp_path / ".git/info/exclude").read_bytes() == excluded
    assert heddle.open(tmp_path).git is None


def test_directories_that_hold_nothing(checkout: Path, git: Git, tmp_path: Path) -> None:
    """A clone by git lacks directories that hold nothing: nobody misses them, and a capture keeps them."""
    first = opened(checkout)
    before = git("rev-parse", "HEAD")
    (checkout / "alone" / "below").mkdir(parents=True)
    (checkout / "beside" / "below").mkdir(parents=True)
    (checkout / "beside" / "file").write_text("file\n")
    first.capture(message="with directories")
    run_git(tmp_path, "clone", "-q", checkout, "clone")
    repo = opened(tmp_path / "clone")
    assert changed(repo) == []
    (repo.path / "more").write_text("more\n")

    kept = repo.capture(message="more").state

    assert repo.lookup_path(kept.id, b"alone/below")[0] == 0o040000
    assert repo.lookup_path(kept.id, b"beside/below")[0] == 0o040000
    repo.threads.create("old", state=before.encode())  # type: ignore[arg-type]
    repo.switch("old")
    repo.switch("main")
    assert changed(repo) == [] and (repo.path / "alone" / "below").is_dir()
    shutil.rmtree(repo.path / "beside")
    assert changed(repo) == [b"beside/below", b"beside/file"]


def test_a_checkout_in_a_checkout(checkout: Path, git: Git) -> None:
    """In a linked worktree that lies in the checkout, a command does not work on the checkout around it."""
    heddle.init(checkout)
    git("worktree", "add", "-q", "--detach", "inner")
    (checkout / "inner" / "below").mkdir()

    with pytest.raises(NotARepository, match="inner is a git checkout of its own"):
        heddle.open(checkout / "inner" / "below")
    heddle.init(checkout / "inner")

    assert heddle.open(checkout / "inner" / "below").path == checkout / "inner"
    (checkout / "vendor" / ".git").mkdir(parents=True)  # none that git would take
    for below in ("vendor", ".heddle/objects"):
        assert heddle.open(checkout / below).path == checkout


def test_an_old_mode_in_a_mount(checkout: Path, git: Git, tmp_path: Path) -> None:
    """A file of mode 100664 that a mount had to copy up is unchanged."""
    commit(checkout, tree=tree_of(checkout, (b"100664", b"old", git("rev-parse", "HEAD:a.txt"))))
    repo = opened(checkout)
    place = repo.mount("agent", tmp_path / "mnt", create=True).mountpoint
    try:
        content = (place / "old").read_bytes()
        (place / "old").write_bytes(b"other")
        (place / "old").write_bytes(content)
        inside = heddle.open(place)
        assert list(inside.status().changes) == []
    finally:
        repo.unmount("agent", force=True)


def test_names_that_are_not_utf8(checkout: Path, git: Git, tmp_path: Path) -> None:
    """Names of any bytes are read, shown and captured as they are."""
    names = [b"caf\xe9", b"\xff\xfe", "ü".encode(), b'quo"te', b"tab\there", b"new\nline", b"-dash"]
    for name in names:
        (checkout / os.fsdecode(name)).write_bytes(name)
    git("add", ".")
    git("commit", "-q", "-m", "names")
    repo = opened(checkout)
    assert changed(repo) == []
    (checkout / os.fsdecode(names[0])).write_bytes(b"changed")

    repo.capture(message="one changed")
    repo.materialize(tmp_path / "out")

    assert set(names) <= set(map(os.fsencode, os.listdir(tmp_path / "out")))
    assert (git("status", "--porcelain"), from_cli(checkout, "show")) == ("", 0)
    same_objects(checkout, out_and_back(checkout, tmp_path))


@pytest.mark.parametrize("name", [b"", b"a/b"])
def test_names_that_can_not_be(checkout: Path, git: Git, name: bytes) -> None:
    """A tree with an empty name, or one with a slash, is damage that is named, never half a directory."""
    bad = tree_of(checkout, (b"100644", name, git("rev-parse", "HEAD:a.txt")))
    raw = b"tree %s\nauthor A <a@b> 1 +0000\ncommitter A <a@b> 1 +0000\n\nbad\n" % bad.encode()
    id = hash_object(checkout, "commit", raw)
    git("update-ref", "refs/heads/bad", id)
    repo = opened(checkout)

    with pytest.raises(CorruptObject, match=bad):
        repo.materialize(checkout.parent / "out", "bad")


# what is not files


@pytest.fixture
def with_submodule(checkout: Path, git: Git, tmp_path: Path) -> Path:
    """The checkout with a submodule ``module``, checked out."""
    git("clone", "-q", "--bare", ".", tmp_path / "module.git")
    git(
        "-c",
        "protocol.file.allow=always",
        "submodule",
        "add",
        "-q",
        tmp_path / "module.git",
        "module",
    )
    git("commit", "-q", "-m", "a submodule")
    return checkout


def test_a_submodule(with_submodule: Path, git: Git, tmp_path: Path) -> None:
    """A gitlink is no change, is an empty directory elsewhere, and is captured as it was."""
    link = git("rev-parse", "HEAD:module")
    repo = opened(with_submodule)
    assert changed(repo) == []
    (with_submodule / "new").write_text("new\n")
    (with_submodule / "module" / "inside").write_text("the submodule's own business\n")

    repo.capture(message="beside it")
    repo.materialize(tmp_path / "out")

    assert repo.lookup_path("HEAD", b"module") == (0o160000, link.encode())
    assert list((tmp_path / "out" / "module").iterdir()) == []
    assert git("ls-tree", "HEAD", "module").split()[:3] == ["160000", "commit", link]
    same_objects(with_submodule, out_and_back(with_submodule, tmp_path))


def test_a_submodule_in_an_overlay(with_submodule: Path, git: Git) -> None:
    """What a mount's overlay captures beside a submodule leaves it what it was."""
    from heddle.mount.overlay import Overlay

    repo = opened(with_submodule)
    repo.threads.create("agent-1", repo.resolve("main"))
    with Overlay.open(repo, "agent-1"):
        (repo.heddle_dir / "overlays/agent-1/upper/new").write_text("new\n")

    repo.capture(message="beside it", thread="agent-1")

    assert repo.lookup_path("agent-1", b"module") == repo.lookup_path("main", b"module")
    assert repo.lookup_path("agent-1", b"new")


@pytest.mark.parametrize("read_only", [False, True])
def test_git_in_a_mount_with_a_submodule(
    with_submodule: Path, git: Git, tmp_path: Path, read_only: bool
) -> None:
    """Stock git in a mount finds a submodule that is not checked out there, and nothing changed."""
    repo = opened(with_submodule)
    repo.threads.create("agent-1", repo.resolve("main"))
    place = repo.mount("agent-1", tmp_path / "mnt", read_only=read_only).mountpoint
    try:
        found = git("status", "--porcelain", at=place), git("submodule", "status", at=place)
    finally:
        repo.unmount(place)

    assert found == ("", f"-{git('rev-parse', 'main:module')} module")


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 12345\n" % ("4d" * 32)


@pytest.mark.parametrize("whose", ["the repository's", "the user's"])
def test_files_instead_of_links(checkout: Path, git: Git, tmp_path: Path, whose: str) -> None:
    """With core.symlinks off a file stands for a link: it is no change, is captured as a link, and switched as one."""
    (checkout / "link").symlink_to("a.txt")
    (checkout / "other").symlink_to("a.txt")
    git("add", ".")
    git("commit", "-q", "-m", "Links")
    git("clone", "-q", "-c", "core.symlinks=false", ".", tmp_path / "plain")
    plain = tmp_path / "plain"
    if whose == "the user's":
        git("config", "--unset", "core.symlinks", at=plain)
        git("config", "--global", "core.symlinks", "false")
    repo = opened(plain)
    before = changed(repo)
    repo.switch("side", create=True)
    (plain / "link").unlink()
    (plain / "link").write_text("b.txt")
    (plain / "new").write_text("a.txt")

    repo.capture(message="elsewhere")
    modes = {line.split()[3]: line[:6] for line in git("ls-tree", "side", at=plain).splitlines()}
    repo.switch("main")

    assert before == []
    assert (modes["link"], modes["other"], modes["new"]) == ("120000", "120000", "100644")
    assert git("show", "side:link", at=plain) == "b.txt"
    assert not (plain / "link").is_symlink()
    assert (plain / "link").read_text() == "a.txt"
    assert git("status", "--porcelain", at=plain) == ""
    assert changed(heddle.open(plain)) == []


def test_lfs_pointers(checkout: Path, git: Git, tmp_path: Path) -> None:
    """A file that git-lfs keeps elsewhere is its pointer in states, in materialized files and after captures."""
    (checkout / ".gitattributes").write_text("*.bin filter=lfs diff=lfs merge=lfs -text\n")
    commit_file(checkout, "large.bin", POINTER)
    commit_file(checkout, ".gitattributes", (checkout / ".gitattributes").read_text())
    repo = opened(checkout)
    assert changed(repo) == []
    (checkout / "new").write_text("new\n")

    repo.capture(message="beside it")
    repo.materialize(tmp_path / "out")

    assert (tmp_path / "out" / "large.bin").read_text() == POINTER
    assert git("show", "HEAD:large.bin") + "\n" == POINTER


# what is ignored


def test_gits_own_ignore_files(checkout: Path, git: Git, tmp_path: Path) -> None:
    """core.excludesFile, its default place and info/exclude are honoured, in that order of strength."""
    (tmp_path / "mine").write_text("*.tmp\n*.log\n")
    git("config", "core.excludesFile", tmp_path / "mine")
    (checkout / ".git/info/exclude").write_text("!kept.log\nprivate\n")
    for name in ("a.tmp", "b.log", "kept.log", "private", "seen"):
        (checkout / name).write_text(name)
    repo = opened(checkout)

    listed = git("ls-files", "--others", "--exclude-standard").split()

    assert [path.decode() for path in changed(repo)] == listed == ["kept.log", "seen"]


def test_the_default_excludes_file(checkout: Path, git: Git) -> None:
    """Without core.excludesFile it is git/ignore in the configuration directory; an overlay honours it too."""
    from heddle.mount.overlay import Overlay

    ignore = Path(os.environ["XDG_CONFIG_HOME"]) / "git" / "ignore"
    ignore.parent.mkdir(parents=True)
    ignore.write_text("*.tmp\n")
    (checkout / "a.tmp").write_text("x")
    repo = opened(checkout)
    repo.threads.create("agent-1", repo.resolve("main"))
    with Overlay.open(repo, "agent-1"):
        (repo.heddle_dir / "overlays/agent-1/upper/b.tmp").write_text("x")
    with Overlay.open(repo, "agent-1") as overlay:
        found = overlay.status()

    assert changed(repo) == []
    assert found == ([], 1, ())
    assert IDENTITY


@pytest.mark.parametrize(
    "sweep",
    [["clean", "-q", "-f", "-d", "-x"], ["clean", "-q", "-f", "-d", "-X"], ["stash", "--all"]],
)
def test_what_git_sweeps_away(checkout: Path, git: Git, tmp_path: Path, sweep: list[str]) -> None:
    """Git's cleaning takes what is ignored, and leaves heddle's repository and what is unsaved in its mounts alone."""
    repo = heddle.init(checkout)
    place = repo.mount("agent", tmp_path / "mnt", create=True).mountpoint
    try:
        (place / "unsaved").write_text("unsaved\n")
        (checkout / ".git/info/exclude").open("a").write("*.o\n")
        (checkout / "a.o").touch()
        git(*sweep)

        assert not (checkout / "a.o").exists()
        assert (place / "unsaved").read_text() == "unsaved\n"
        assert heddle.open(place).status().changes
        with closing(heddle.open(checkout)) as after:
            assert after.fsck(full=True).problems == [] and not after.status().changes
        assert git("status", "--porcelain", "--ignored") == "!! .heddle/"
    finally:
        heddle.open(checkout).unmount("agent", force=True)


def test_a_worktree_with_a_repository_in_it(checkout: Path, git: Git, tmp_path: Path) -> None:
    """Git does not remove a linked worktree that heddle's repository is in, unless it is forced to."""
    git("worktree", "add", "-q", tmp_path / "tree", "-b", "tree")
    heddle.init(tmp_path / "tree").close()

    git("worktree", "remove", tmp_path / "tree", code=128)
    with closing(heddle.open(tmp_path / "tree")) as repo:
        assert repo.fsck(full=True).problems == []


def test_a_fetch_into_a_shallow_clone(checkout: Path, git: Git, tmp_path: Path) -> None:
    """What is new on the server comes; what a shallow clone left out is not looked for."""
    commit_file(checkout, "c", "c\n")
    git("clone", "-q", "--depth", "2", f"file://{checkout}", tmp_path / "mine", at=tmp_path)
    heddle.init(tmp_path / "mine").close()
    theirs = commit_file(checkout, "d", "d\n")
    with closing(heddle.open(tmp_path / "mine")) as repo:
        assert repo.pull().new == theirs.encode()
    assert git("rev-parse", "HEAD", at=tmp_path / "mine") == theirs
    assert git("status", "--porcelain", at=tmp_path / "mine") == ""


def test_a_branch_from_where_a_shallow_clone_begins(
    checkout: Path, git: Git, tmp_path: Path
) -> None:
    """A branch that leads to the first commit which a shallow clone has is fetched; nothing is missed behind it."""
    commit_file(checkout, "c", "c\n")
    options = ("-q", "--depth", "2", "--no-single-branch")
    git("clone", *options, f"file://{checkout}", tmp_path / "mine", at=tmp_path)
    heddle.init(tmp_path / "mine").close()
    git("switch", "-q", "-c", "side", "HEAD~1")
    theirs = commit_file(checkout, "d", "d\n")
    with closing(heddle.open(tmp_path / "mine")) as repo:
        fetch(repo)
        assert repo.resolve("origin/side") == theirs.encode()
    assert git("fsck", "--strict", at=tmp_path / "mine") == ""


def test_a_fetch_brings_what_was_lost(checkout: Path, git: Git, tmp_path: Path) -> None:
    """A fetch brings states again that a disk has lost, below one that was captured here."""
    repo = clone(api.Repository, str(checkout), tmp_path / "mine", environment=os.environ)[0]
    lost = list((repo.heddle_dir / "objects/packs").iterdir())
    (repo.path / "n").write_text("n\n")
    assert isinstance(repo, api.Repository)
    repo.capture(message="Mine")
    repo.close()
    for path in lost:
        path.unlink()
    with closing(heddle.open(repo.path)) as again:
        assert again.fsck().problems != []
        fetch(again)
        assert again.fsck(full=True).problems == []


def test_files_that_git_keeps_elsewhere(checkout: Path, git: Git, tmp_path: Path) -> None:
    """A checkout whose files are in another directory is refused before anything is made."""
    (tmp_path / "files").mkdir()
    git("config", "core.worktree", tmp_path / "files")
    with pytest.raises(DataError, match=r"core\.worktree"):
        heddle.init(checkout)
    assert not (checkout / ".heddle").exists()
    git("config", "core.worktree", checkout)
    with closing(heddle.init(checkout)) as repo:
        assert not repo.status().changes


def test_a_branch_that_is_no_text(checkout: Path, git: Git) -> None:
    """A branch whose name is not UTF-8 is a state like any other; a name that nothing has is not found."""
    made = git("rev-parse", "HEAD~1")
    (checkout / os.fsdecode(b".git/refs/heads/b\xff")).write_text(f"{made}\n")
    with closing(heddle.init(checkout)) as repo:
        assert repo.resolve("b\udcff") == made.encode()
        with pytest.raises(StateNotFound):
            repo.resolve("c\udcff")
