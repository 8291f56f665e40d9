"""Packs that a clone, a fetch or an import keeps as git made them, and what becomes of them."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest

import heddle
from heddle import api
from heddle.errors import HeddleError
from heddle.git import fetching, importing, remotes
from heddle.git.cloning import clone
from heddle.git.export import export
from heddle.git.fetching import fetch
from heddle.git.importing import import_git
from heddle.git.receiving import incoming, place
from heddle.objects.keeping import keep_copy
from heddle.objects.layout import OF_GIT
from heddle.repo import gc

from .conftest import Git, commit_file, objects, refs, run_git
from .servers import bare_copy

LONG = "".join(f"line {number}\n" for number in range(2_000))


@pytest.fixture(autouse=True)
def every_pack_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every pack were long."""
    monkeypatch.setattr(fetching, "KEPT_FROM", 1)
    monkeypatch.setattr(importing, "KEPT_FROM", 1)


@pytest.fixture
def served(checkout: Path, git: Git, tmp_path: Path) -> Path:
    """A bare repository in one pack, with versions of a file, two branches and an annotated tag."""
    for number in range(5):
        commit_file(checkout, "long.txt", LONG.replace(f"line {number * 9}\n", "changed\n"))
    git("branch", "topic", "HEAD~2")
    git("tag", "-a", "-m", "Noted", "noted")
    (tmp_path / "served").mkdir()
    bare = bare_copy(checkout, tmp_path / "served" / "project.git")
    run_git(bare, "repack", "-adq")
    return bare


@pytest.fixture
def mine(served: Path, tmp_path: Path) -> api.Repository:
    return cloned(served, tmp_path / "mine")


def cloned(url: Path, path: Path, *, lazy: bool = False) -> api.Repository:
    made = clone(api.Repository, f"file://{url}", path, environment=os.environ, lazy=lazy)[0]
    assert isinstance(made, api.Repository)
    return made


def kept(repo: api.Repository) -> list[Path]:
    """The packs that are as git made them."""
    found = repo.store.packs_directory.indexes()
    return [index.pack_path for index in found if {entry.kind for entry in index} == {OF_GIT}]


def pack_of(git_directory: Path) -> Path:
    (found,) = (git_directory / "objects" / "pack").glob("*.pack")
    return found


def test_a_clone_is_as_large_as_git_s(served: Path, mine: api.Repository) -> None:
    """What came is what is on disk, and nothing else is; every object is there, and the files are git's."""
    (pack,) = kept(mine)

    assert abs(pack.stat().st_size - pack_of(served).stat().st_size) < 500
    assert {path.name for path in (mine.heddle_dir / "objects").iterdir()} == {"packs"}
    assert {path.stem for path in pack.parent.iterdir()} == {pack.stem}
    assert {id.decode() for id in mine.store} == objects(served)
    assert (mine.path / "long.txt").read_text() == LONG.replace("line 36\n", "changed\n")
    assert mine.fsck(full=True).problems == []


def test_what_is_fetched_then(served: Path, mine: api.Repository, tmp_path: Path) -> None:
    """A thin pack on top of a kept one is kept too, with the bases that it lacks; an export has all of it."""
    run_git(tmp_path, "clone", "-q", served, tmp_path / "other")
    new = commit_file(tmp_path / "other", "long.txt", LONG + "one more\n")
    run_git(tmp_path / "other", "push", "-q")

    fetch(mine)

    assert len(kept(mine)) == 2 and mine.resolve("origin/main") == new.encode()
    export(mine, [], to=tmp_path / "out.git")
    run_git(tmp_path / "out.git", "fsck", "--strict")
    assert mine.fsck(full=True).problems == []


def test_gc_after_a_clone(served: Path, mine: api.Repository) -> None:
    """A collection stores a kept pack anew, each object once, and removes it; a dry run leaves it."""
    before = {id: mine.store.get_raw(id) for id in mine.store}
    gc.collect(mine, dry_run=True)
    assert len(kept(mine)) == 1

    done = gc.collect(mine)

    assert kept(mine) == [] and done.dropped == 0
    assert {id: mine.store.get_raw(id) for id in mine.store} == before
    assert mine.fsck(full=True).problems == []


def test_what_nothing_needs_of_a_kept_pack(
    checkout: Path, git: Git, served: Path, tmp_path: Path
) -> None:
    """It goes when it is old enough, from a kept pack as from any other, and not before."""
    id = git("hash-object", "-w", checkout / "long.txt").encode()
    loose = git("hash-object", "-w", "--stdin", at=checkout).encode()
    (tmp_path / "ids").write_bytes(loose + b"\n" + id)
    with (tmp_path / "ids").open() as ids:
        words = ["git", "-C", checkout, "pack-objects", "-q", tmp_path / "extra"]
        subprocess.run(words, stdin=ids, check=True, stdout=subprocess.DEVNULL)
    mine = cloned(served, tmp_path / "mine")
    (extra,) = tmp_path.glob("extra-*.pack")
    keep_copy(extra, mine.store)

    gc.collect(mine)
    assert loose in mine.store
    assert gc.collect(mine, before_ns=time.time_ns()).dropped == 1

    assert loose not in mine.store and id in mine.store
    assert mine.fsck(full=True).problems == []


def test_a_lazy_clone(served: Path, tmp_path: Path) -> None:
    """Commits and trees are in a kept pack, blobs are promised, and come into packs of heddle's own."""
    run_git(served, "config", "uploadpack.allowFilter", "true")
    lazy = cloned(served, tmp_path / "lazy", lazy=True)
    assert len(kept(lazy)) == 1 == lazy.store.packs_directory.count()

    lazy.switch("main")

    assert len(kept(lazy)) == 1 and lazy.store.packs_directory.count() == 2
    assert (lazy.path / "long.txt").read_text() == LONG.replace("line 36\n", "changed\n")
    assert lazy.fsck(full=True).problems == []


def test_two_fetches_at_once(served: Path, mine: api.Repository, tmp_path: Path) -> None:
    """While one is under way another one from the same remote has a place of its own, and both leave nothing."""
    run_git(tmp_path, "clone", "-q", served, tmp_path / "other")
    new = commit_file(tmp_path / "other", "new", "new\n")
    run_git(tmp_path / "other", "push", "-q")
    remote = remotes.remote(mine, "origin")

    with incoming(mine, remote) as first:
        fetch(mine)
        assert first.path == place(mine, remote) and first.path.exists()

    assert mine.resolve("origin/main") == new.encode()
    assert {path.name for path in (mine.heddle_dir / "objects").iterdir()} == {"packs"}


def test_a_short_pack_is_stored_object_by_object(
    served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clone of little is not kept: its objects are stored as those of a capture are."""
    monkeypatch.undo()
    for name, value in (("HEDDLE_PRINCIPAL_NAME", "A"), ("HEDDLE_PRINCIPAL_EMAIL", "a@b")):
        monkeypatch.setenv(name, value)

    assert kept(cloned(served, tmp_path / "short")) == []


def test_an_import_keeps_packs(served: Path, tmp_path: Path) -> None:
    """A pack of a git repository is copied as it is; importing again copies nothing, and what is new is stored."""
    with closing(heddle.init(tmp_path / "plain")) as repo:
        done = import_git(repo, served)
        assert done.objects == len(objects(served)) == len(set(repo.store))
        (pack,) = kept(repo)
        assert pack.read_bytes() == pack_of(served).read_bytes()
        assert import_git(repo, served).objects == 0
        run_git(tmp_path, "clone", "-q", served, tmp_path / "other")
        commit_file(tmp_path / "other", "new", "new\n")
        run_git(tmp_path / "other", "push", "-q")
        run_git(served, "repack", "-adq")

        assert import_git(repo, served).objects == 3

        assert kept(repo) == [pack] and repo.fsck(full=True).problems == []
        export(repo, [], to=tmp_path / "out.git")
        assert refs(tmp_path / "out.git") == refs(served)


def test_an_import_of_a_damaged_pack(served: Path, tmp_path: Path) -> None:
    """A wrong byte in a long pack is found, the pack is named, and nothing is left of it."""
    pack = pack_of(served)
    content = bytearray(pack.read_bytes())
    content[len(content) // 2] ^= 0xFF
    pack.chmod(0o644)
    pack.write_bytes(content)
    with closing(heddle.init(tmp_path / "plain")) as repo:
        with pytest.raises(HeddleError, match=pack.name):
            import_git(repo, served)

        assert set(repo.store) == set()
        assert list((repo.heddle_dir / "objects" / "packs").iterdir()) == []
