"""What git's index of a mount is made of: the listing that git gives of a tree, and the store's, say the same."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from dulwich.objects import ObjectID

import heddle
from heddle import api
from heddle.mount.listing import Listing
from heddle.mount.overlay import Overlay
from heddle.objects.store import ObjectStore
from heddle.repo.gitindex import Directory
from heddle.repo.names import overlay_dir

from .conftest import Git

Listed = tuple[list[bytes], Directory]
FILES = ["a-b/1", "a.b/1", "a/1", "a/.gitignore", "a0/2/3/4", "ab", "z/\xff\t\n/x y"]


@pytest.fixture
def tree(checkout: Path, git: Git) -> ObjectID:
    """A tree with all that a tree can hold, and names that are not shown."""
    for name in FILES:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(name * 3)
    (checkout / "empty").touch()
    (checkout / "run").touch(mode=0o755)
    (checkout / "link").symlink_to("a/1")
    git("add", *FILES, "empty", "run", "link")
    git("update-index", "--add", "--cacheinfo", f"160000,{git('rev-parse', 'HEAD')},a/module")
    whole = git("write-tree")
    blob = git("rev-parse", f"{whole}:a/1")
    lines = [
        f"040000 tree {whole}\tsound",
        f"040000 tree {whole}\t.Heddle",
        f"100644 blob {blob}\t.GIT",
        f"100664 blob {blob}\told",
    ]
    return ObjectID(_made(checkout, *lines).encode())


def _made(checkout: Path, *lines: str) -> str:
    done = subprocess.run(
        ["git", "mktree"],
        cwd=checkout,
        input="\n".join(lines),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def shown(repo: api.Repository, git: Git, tree: ObjectID, files: list[str] = []) -> Overlay:  # noqa: B006
    """An overlay over a tree, with some files in its upper."""
    git("branch", "-f", "work", git("commit-tree", "-m", "Work", tree.decode()))
    opened = heddle.open(repo.path)
    overlay = Overlay.open(opened, "work")
    overlay.close()
    upper = overlay_dir(opened, "work") / "upper"
    for name in files:
        (upper / name).parent.mkdir(parents=True, exist_ok=True)
        (upper / name).write_text("changed")
    return Overlay.open(opened, "work")


def listed(overlay: Overlay, tree: ObjectID) -> Listed:
    """What the index is to say."""
    listing = Listing(overlay.core, overlay.in_loop)
    root = listing.run(listing.look_at_root(), tree)
    return listing.entries, root


def by_the_store(overlay: Overlay, tree: ObjectID, monkeypatch: pytest.MonkeyPatch) -> Listed:
    """The same where git can't list the tree."""
    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "list_tree", lambda *_: [])
        return listed(overlay, tree)


@pytest.mark.parametrize("changed", [[], ["sound/a0/2/new", "sound/a/1"], ["sound/z/one"]])
def test_git_and_the_store_say_the_same(
    repo: api.Repository,
    git: Git,
    tree: ObjectID,
    changed: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a tree with all that one can hold, whatever of it the upper has: the same entries, the same directories."""
    overlay = shown(repo, git, tree, changed)
    try:
        entries, root = listed(overlay, tree)
        assert (entries, root) == by_the_store(overlay, tree, monkeypatch)
        assert len(entries) == len(FILES) + 7
        assert root.tree is None  # it has names that are not shown
        assert [one.name for one in root.inside] == [b"sound"]
    finally:
        overlay.close()


def test_git_s_listing_reads_no_directory(repo: api.Repository, git: Git, tree: ObjectID) -> None:
    """Where git lists the tree and nothing was changed, no tree below the root is decoded here."""
    overlay = shown(repo, git, tree)
    try:
        before = overlay.core.lower.trees_decoded
        listed(overlay, tree)
        assert overlay.core.lower.trees_decoded <= before + 1  # the root's, for its link count
    finally:
        overlay.close()


def test_a_name_with_a_slash(
    repo: api.Repository, git: Git, tree: ObjectID, checkout: Path
) -> None:
    """A tree that no git writes, with a path for a name, is listed without it."""
    blob = bytes.fromhex(git("rev-parse", f"{tree.decode()}:old"))
    raw = b"".join(b"100644 %s\0%s" % (name, blob) for name in (b"a", b"no/such", b"z"))
    done = subprocess.run(
        ["git", "hash-object", "-w", "-t", "tree", "--literally", "--stdin"],
        cwd=checkout,
        input=raw,
        capture_output=True,
        check=True,
    )
    odd = ObjectID(done.stdout.strip())
    overlay = shown(repo, git, tree)
    try:
        listing = Listing(overlay.core, overlay.in_loop)
        look = listing.look_at_root()._replace(lower=odd)
        root = listing.run(look, odd)
        assert [entry[62:63] for entry in listing.entries] == [b"a", b"z"]
        assert root.tree is None
    finally:
        overlay.close()
