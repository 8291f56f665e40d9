"""States out to git and git repositories in: the same ids and refs on both sides, whatever they hold."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

import heddle
from heddle import api
from heddle.errors import CannotCreate, DataError, HeddleError, ThreadNotFound
from heddle.git.branches import Diverged
from heddle.git.export import export
from heddle.git.importing import import_git

from .conftest import Git, commit_file, objects, refs, run_git, state


@pytest.fixture
def plain(tmp_path: Path, nothing_left: None) -> api.Repository:
    """A repository that lies on no git repository, with two states and a marker."""
    repo = heddle.init(tmp_path / "plain")
    (repo.path / "a.txt").write_text("one\n")
    (repo.path / "run").write_text("#!/bin/sh\n")
    (repo.path / "run").chmod(0o755)
    (repo.path / "link").symlink_to("a.txt")
    repo.capture(message="First", flags={"agent.provider": "p", "agent.model": "m"})
    (repo.path / "big").write_bytes(os.urandom(5 << 20))
    repo.capture(message="Second")
    repo.markers.create("v1", repo.resolve("HEAD~1"))
    return repo


def test_export_makes_a_bare_repository_that_git_finds_sound(
    plain: api.Repository, tmp_path: Path
) -> None:
    """Threads are branches and markers tags, with the same ids; git clones it."""
    target = tmp_path / "out.git"

    done = export(plain, to=target)

    assert done.created
    assert refs(target) == {
        "refs/heads/main": state(plain, "main"),
        "refs/tags/v1": _id(plain, "v1"),
    }
    assert run_git(target, "fsck", "--strict", "--full") == ""
    run_git(tmp_path, "clone", "-q", target, tmp_path / "clone")
    assert os.readlink(tmp_path / "clone" / "link") == "a.txt"
    assert (plain.path / "big").read_bytes() == (tmp_path / "clone" / "big").read_bytes()


def _id(repo: api.Repository, spec: str) -> str:
    return repo.resolve(spec).decode()


def test_a_second_export_writes_only_what_is_new(plain: api.Repository, tmp_path: Path) -> None:
    """What git has is not written again; with nothing new no pack is."""
    target = tmp_path / "out.git"
    export(plain, to=target)
    (plain.path / "a.txt").write_text("changed\n")
    plain.capture(message="Third")

    third, again = export(plain, to=target), export(plain, to=target)

    assert third.objects == 3  # the commit, its tree and the file
    assert (again.objects, again.pack, again.refs) == (0, None, [])
    run_git(target, "fsck", "--strict")


def test_sha256(tmp_path: Path, nothing_left: None) -> None:
    """A repository with sha256 ids goes to a git repository with sha256 ids, and back."""
    repo = heddle.init(tmp_path / "plain", object_format="sha256")
    (repo.path / "f").write_text("1")
    repo.capture(message="First")
    export(repo, to=tmp_path / "out.git")

    assert run_git(tmp_path / "out.git", "fsck", "--strict") == ""

    back = heddle.init(tmp_path / "back", object_format="sha256")
    import_git(back, tmp_path / "out.git")

    assert state(repo, "main") == state(back, "main")


def test_one_thread_alone(plain: api.Repository, tmp_path: Path) -> None:
    """Named threads go without the others and without markers."""
    plain.threads.create("side", plain.resolve("HEAD~1"))

    export(plain, ["side"], to=tmp_path / "out.git")

    assert {"refs/heads/side": state(plain, "side")} == refs(tmp_path / "out.git")
    with pytest.raises(ThreadNotFound):
        export(plain, ["no-such"], to=tmp_path / "out.git")


def test_a_thread_becomes_a_branch_of_the_checkout(repo: api.Repository, git: Git) -> None:
    """Exported once, a thread is a branch, and its captures move that."""
    repo.threads.create("agent-1", repo.resolve("main"))

    export(repo, ["agent-1"])

    assert state(repo, "agent-1") == git("rev-parse", "agent-1")
    assert git("status", "--porcelain") == ""


def test_markers_become_tags_of_the_checkout(repo: api.Repository, git: Git) -> None:
    """An export of everything takes the markers along."""
    repo.markers.create("v1", repo.resolve("main"))

    export(repo)

    assert git("rev-parse", "main") == git("rev-parse", "refs/tags/v1")


# refusals


def test_what_would_lose_commits_is_refused(plain: api.Repository, tmp_path: Path) -> None:
    """A branch that holds commits which the thread does not stays, both ids are shown; --force moves it."""
    target = tmp_path / "out.git"
    export(plain, to=target)
    theirs = run_git(target, "commit-tree", "-p", "main", "-m", "theirs", "main^{tree}")
    run_git(target, "update-ref", "refs/heads/main", theirs)
    (plain.path / "a.txt").write_text("ours\n")
    plain.capture(message="Ours")
    plain.threads.create("other", plain.resolve("main"))

    with pytest.raises(Diverged, match=f"{theirs[:12]}.*{state(plain, 'main')[:12]}"):
        export(plain, to=target)

    assert theirs == run_git(target, "rev-parse", "main")
    assert "refs/heads/other" not in refs(target)

    export(plain, to=target, force=True)

    assert state(plain, "main") == run_git(target, "rev-parse", "main")


def test_a_checked_out_branch_of_another_repository_is_refused(
    plain: api.Repository, checkout: Path, git: Git
) -> None:
    """As git refuses a push to it."""
    before = git("rev-parse", "main")

    with pytest.raises(DataError, match="checked out"):
        export(plain, to=checkout)

    assert before == git("rev-parse", "main")


def test_tags_do_not_move(plain: api.Repository, tmp_path: Path) -> None:
    """A tag that means something else is a refusal, and nothing is moved."""
    target = tmp_path / "out.git"
    export(plain, ["main"], to=target)
    run_git(target, "tag", "v1", "main")

    with pytest.raises(DataError, match="tags do not move"):
        export(plain, to=target)


def test_a_name_that_git_can_not_have_beside_another(plain: api.Repository, tmp_path: Path) -> None:
    """Threads a and a/b can't both be branches: said with the name, and the rest of git stays sound."""
    plain.threads.create("a", plain.resolve("main"))
    plain.threads.create("a/b", plain.resolve("main"))

    with pytest.raises(DataError, match="a/b"):
        export(plain, to=tmp_path / "out.git")

    run_git(tmp_path / "out.git", "fsck", "--strict")


def test_a_target_of_another_format(plain: api.Repository, tmp_path: Path) -> None:
    """Ids of another kind can't be exported."""
    run_git(tmp_path, "init", "-q", "--bare", "--object-format=sha256", "out.git")

    with pytest.raises(DataError, match="sha256"):
        export(plain, to=tmp_path / "out.git")


def test_a_target_that_is_no_git_repository(plain: api.Repository, tmp_path: Path) -> None:
    """A directory with something else in it is left alone."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()

    with pytest.raises(DataError, match="not a git repository"):
        export(plain, to=tmp_path / "out")

    assert os.listdir(tmp_path / "out") == ["mine"]


def test_a_target_that_could_not_be_made(
    plain: api.Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that was full when the target was begun is no reason to refuse it later."""
    from dulwich.repo import Repo

    def half(path: Path, **_options: object) -> None:
        (path / "refs").mkdir()
        (path / "description").touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Repo, "init_bare", half)
        with pytest.raises(CannotCreate):
            export(plain, to=tmp_path / "out.git")

    export(plain, to=tmp_path / "out.git")
    assert run_git(tmp_path / "out.git", "fsck", "--strict") is not None


@pytest.mark.parametrize(
    "point", ["gitpack.before-pack", "gitpack.before-index", "export.before-ref"]
)
def test_a_crash_leaves_git_sound(plain: api.Repository, tmp_path: Path, point: str) -> None:
    """Killed between any two steps, git's refs name nothing that is not there; run again, it finishes."""
    target = tmp_path / "out.git"
    plain.close()
    command = [sys.executable, "-m", "heddle", "git", "export", "--to", str(target)]
    killed = subprocess.run(command, cwd=plain.path, env={**os.environ, "HEDDLE_FAULT": point})

    assert killed.returncode == -9
    run_git(target, "fsck", "--strict")

    for begun in (target / "objects/pack").glob("tmp_*"):
        os.utime(begun, (0, 0))
    subprocess.run(command, cwd=plain.path, check=True)

    assert state(plain, "main") == run_git(target, "rev-parse", "main")
    assert list((target / "objects/pack").glob("tmp_*")) == []


# in, and out again


@pytest.fixture
def rich(checkout: Path, git: Git) -> Path:
    """A git repository with everything that a ref or a commit can be."""
    git("branch", "topic/one", "HEAD~1")
    git("tag", "light")
    git("tag", "-a", "-m", "Annotated", "noted")
    git("tag", "-a", "-m", "Of a tag", "nested", "noted")
    git("tag", "of-a-blob", "main:a.txt")
    git("update-ref", "refs/heads/not a thread".replace(" ", "%") + "{}", "main", code=None)
    git("update-ref", "refs/remotes/origin/main", "HEAD~1")
    git("symbolic-ref", "refs/remotes/origin/HEAD", "refs/remotes/origin/main")
    git("notes", "add", "-m", "A note")
    git("update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},module")
    git("commit", "-q", "-m", "A submodule")
    (checkout / "b.txt").write_text("stashed\n")
    git("stash")
    git("switch", "-q", "-c", "many", "HEAD~1")
    commit_file(checkout, "m1", "1")
    git("merge", "-q", "--no-ff", "-m", "Merge", "main", "topic/one")
    git("-c", "i18n.commitEncoding=latin1", "commit", "-q", "--allow-empty", "-m", "caf\udce9")
    name = os.fsencode(checkout) + b"/n\xffame"
    with open(name, "wb") as file:
        file.write(b"not UTF-8")
    git("add", "-A")
    git("commit", "-q", "-m", "Odd name")
    git("gc", "-q")
    commit_file(checkout, "loose", "after the gc\n")
    return checkout


def test_import_then_export_is_the_same_repository(rich: Path, tmp_path: Path) -> None:
    """Every id and every ref: annotated and nested tags, notes, stash, remote branches, symbolic refs."""
    repo = heddle.init(tmp_path / "plain")

    import_git(repo, rich)
    export(repo, to=tmp_path / "out.git")

    assert refs(rich) == refs(tmp_path / "out.git")
    assert objects(rich) == objects(tmp_path / "out.git")
    run_git(tmp_path / "out.git", "fsck", "--strict", "--full")
    head = run_git(rich, "symbolic-ref", "HEAD")
    assert head == run_git(tmp_path / "out.git", "symbolic-ref", "HEAD")


def test_every_object_reads_as_git_reads_it(rich: Path, tmp_path: Path) -> None:
    """Type and bytes of every object are what git cat-file gives."""
    repo = heddle.init(tmp_path / "plain")
    import_git(repo, rich)

    for id in objects(rich):
        kind = run_git(rich, "cat-file", "-t", id)
        content = subprocess.run(
            ["git", "-C", str(rich), "cat-file", kind, id], capture_output=True, check=True
        ).stdout
        names = {1: "commit", 2: "tree", 3: "blob", 4: "tag"}
        type_num, stored = repo.store.get_raw(id.encode())

        assert (kind, content) == (names[type_num], stored)


def test_import_makes_threads_and_markers(rich: Path, tmp_path: Path, git: Git) -> None:
    """Branches are threads, tags of commits markers at the commit, and HEAD is git's."""
    repo = heddle.init(tmp_path / "plain")

    import_git(repo, rich)

    assert git("rev-parse", "topic/one") == state(repo, "topic/one")
    assert git("rev-parse", "nested^{commit}") == _id(repo, "nested")
    assert repo.head == "many"
    assert git("rev-parse", "origin/main") == _id(repo, "origin/main")


def test_import_again_takes_only_what_is_new(checkout: Path, git: Git, tmp_path: Path) -> None:
    """A second import moves threads forward and stores no object twice."""
    repo = heddle.init(tmp_path / "plain")
    import_git(repo, checkout)
    new = commit_file(checkout, "c.txt", "c\n")

    done = import_git(repo, checkout)

    assert ({"main": new.encode()}, 3) == (done.threads, done.objects)
    assert import_git(repo, checkout).objects == 0


def test_import_does_not_overwrite_a_thread(checkout: Path, plain: api.Repository) -> None:
    """A thread with states of its own is a refusal with both ids; nothing is made."""
    before = state(plain, "main")

    with pytest.raises(Diverged, match=before[:12]):
        import_git(plain, checkout)

    assert [("main", before)] == [(each.name, state(plain, each.name)) for each in plain.threads]


def test_what_it_lies_on_is_not_imported(repo: api.Repository) -> None:
    """A repository on git has all that git has: said, instead of copying it."""
    with pytest.raises(DataError, match="lies on this git repository"):
        import_git(repo, repo.path / ".git")


def test_a_shallow_clone_is_refused(checkout: Path, git: Git, tmp_path: Path) -> None:
    """Half a history can't stand alone; the hint says how to get the rest."""
    git("clone", "-q", "--depth=1", f"file://{checkout}", tmp_path / "shallow")

    with pytest.raises(DataError, match="shallow") as caught:
        import_git(heddle.init(tmp_path / "plain"), tmp_path / "shallow")

    assert "--unshallow" in (caught.value.hint or "")


def test_objects_in_an_alternate_are_taken_too(checkout: Path, git: Git, tmp_path: Path) -> None:
    """A clone that borrows its objects is imported whole."""
    git("clone", "-q", "--shared", checkout, tmp_path / "shared")
    repo = heddle.init(tmp_path / "plain")

    import_git(repo, tmp_path / "shared")

    assert git("rev-parse", "main") == state(repo, "main")
    assert repo.fsck(full=True).problems == []


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_repository_changes_nothing(
    checkout: Path, git: Git, tmp_path: Path, damage: str
) -> None:
    """A pack that is cut off, has a wrong byte or lacks an object: an I/O error, and no name is made."""
    git("gc", "-q")
    (pack,) = (checkout / ".git/objects/pack").glob("*.pack")
    pack.chmod(0o644)
    content = bytearray(pack.read_bytes())
    if damage == "truncated":
        del content[len(content) // 2 :]
    elif damage == "flipped":
        content[len(content) // 2] ^= 0xFF
    if damage == "missing":
        pack.unlink()
        pack.with_suffix(".idx").unlink()
    else:
        pack.write_bytes(content)
    repo = heddle.init(tmp_path / "plain")

    with pytest.raises(HeddleError) as caught:
        import_git(repo, checkout)

    assert caught.value.exit_code == 74
    assert [(each.name, state(repo, each.name)) for each in repo.threads] == [("main", "")]


def test_an_export_from_a_checkout_has_every_ref(checkout: Path, git: Git, tmp_path: Path) -> None:
    """Tags, notes, remote branches and whatever else git has is exported with what heddle has, with the same ids."""
    git("tag", "light")
    git("tag", "-a", "-m", "Noted", "noted")
    git("notes", "add", "-m", "A note")
    git("update-ref", "refs/remotes/origin/main", "HEAD~1")
    git("symbolic-ref", "refs/remotes/origin/HEAD", "refs/remotes/origin/main")
    (checkout / "a.txt").write_text("stashed\n")
    git("stash", "-q")
    with closing(heddle.init(checkout)) as repo:
        repo.threads.create("mine", repo.resolve("main"))
        export(repo, [], to=tmp_path / "out.git")

    here = refs(checkout) | {"refs/heads/mine": git("rev-parse", "main")}
    assert {"refs/tags/noted", "refs/notes/commits", "refs/stash"} < here.keys()
    assert refs(tmp_path / "out.git") == here
    assert git("fsck", "--strict", at=tmp_path / "out.git") == ""
