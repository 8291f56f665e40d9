"""What git's index of a mount is made of: the listing that git gives of a tree, and the store's, say the same."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from dulwich.objects import ObjectID
from world import wait_until

import heddle
from heddle import api
from heddle.errors import CorruptObject
from heddle.mount import foretold, fsmonitor
from heddle.mount.captured import CapturedListing
from heddle.mount.gitview import GitView
from heddle.mount.listing import Listing
from heddle.mount.lower import Lower
from heddle.mount.makers import only_looks
from heddle.mount.nodes import PinnedFile
from heddle.mount.overlay import Overlay
from heddle.mount.shell import Caller
from heddle.objects.store import ObjectStore
from heddle.repo import gitindex, linked
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
    """A tree that no git writes, with a path for a name, is shown by no mount and listed in no index."""
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
        with pytest.raises(CorruptObject, match=odd.decode()):
            listing.run(look, odd)
    finally:
        overlay.close()


@pytest.fixture
def indexed(checkout: Path, git: Git, tree: ObjectID) -> Path:
    """Git's index of the checkout, which holds the sound part of the tree, refreshed."""
    sound = git("rev-parse", f"{tree.decode()}:sound")
    git("read-tree", "--reset", "-u", sound)
    git("update-index", "-q", "--refresh")
    return checkout / ".git/index"


def by_an_index(
    overlay: Overlay, tree: ObjectID, index: Path, monkeypatch: pytest.MonkeyPatch
) -> Listed:
    """The same where an index holds the tree; git is not asked, the store for none of its directories."""
    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "list_tree", None)
        listing = Listing(overlay.core, overlay.in_loop, index=index)
        root = listing.run(listing.look_at_root(), tree)
    return listing.entries, root


@pytest.mark.parametrize("version", ["2", "3", "4"])
@pytest.mark.parametrize("changed", [[], ["a0/2/new", "a/1"], ["z/one"]])
def test_an_index_says_the_same(
    repo: api.Repository,
    git: Git,
    tree: ObjectID,
    indexed: Path,
    changed: list[str],
    version: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An index of any version that git wrote for a tree gives the same listing as git and the store."""
    if version == "3":  # its mark, and a path that it stands at
        git("update-index", "--skip-worktree", "a/1")
    git("update-index", "--index-version", version)
    sound = ObjectID(git("rev-parse", f"{tree.decode()}:sound").encode())
    overlay = shown(repo, git, sound, changed)
    try:
        found = by_an_index(overlay, sound, indexed, monkeypatch)
        assert found == by_the_store(overlay, sound, monkeypatch)
        assert found == listed(overlay, sound)
        assert len(found[0]) == len(FILES) + 6
    finally:
        overlay.close()


def test_an_index_of_another_tree(
    repo: api.Repository,
    git: Git,
    tree: ObjectID,
    indexed: Path,
    checkout: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is the same in an index of something else is taken from it; only what differs is read."""
    sound = ObjectID(git("rev-parse", f"{tree.decode()}:sound").encode())
    (checkout / "a0/2/other").write_text("staged")
    git("add", "a0/2/other")
    git("write-tree")  # fills the cache tree
    overlay = shown(repo, git, sound)
    read: list[ObjectID] = []
    all_entries = Lower.all_entries

    def noted(lower: Lower, directory: ObjectID) -> object:
        read.append(directory)
        return all_entries(lower, directory)

    try:
        by_store = by_the_store(overlay, sound, monkeypatch)
        monkeypatch.setattr(Lower, "all_entries", noted)
        assert by_an_index(overlay, sound, indexed, monkeypatch) == by_store
        ids = [git("rev-parse", f"{sound.decode()}:{path}") for path in ("a0", "a0/2")]
        assert read == [sound, *(each.encode() for each in ids)]
    finally:
        overlay.close()


def test_an_index_that_lacks_too_much(
    repo: api.Repository, git: Git, tree: ObjectID, indexed: Path, checkout: Path
) -> None:
    """Where an index has hardly anything of a tree, stock git lists it, in the middle of the work too."""
    for number in range(200):
        (checkout / f"a{number:03d}").mkdir()
        (checkout / f"a{number:03d}/file").write_text(f"{number}")
    git("add", ".")
    many = ObjectID(git("write-tree").encode())
    git("read-tree", "--reset", git("rev-parse", f"{tree.decode()}:sound"))
    overlay = shown(repo, git, many)
    try:
        listing = Listing(overlay.core, overlay.in_loop, index=indexed)
        root = listing.run(listing.look_at_root(), many)
        assert (listing.entries, root) == listed(overlay, many)
        assert len(root.inside) > 200
    finally:
        overlay.close()


@pytest.mark.parametrize("by", [by_the_store, by_an_index])
def test_directories_are_counted(
    repo: api.Repository,
    git: Git,
    tree: ObjectID,
    indexed: Path,
    by: Callable[..., Listed],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A directory's link count, which every listing of what it is in shows, needs no look into it any more."""
    sound = ObjectID(git("rev-parse", f"{tree.decode()}:sound").encode())
    overlay = shown(repo, git, sound)
    lower = overlay.core.lower
    try:
        by(overlay, sound, *([indexed] if by is by_an_index else []), monkeypatch)
        ids = [
            sound,
            *(git("rev-parse", f"{sound.decode()}:{one}").encode() for one in ("a", "a0")),
        ]
        before = lower.trees_decoded
        assert [lower.subdirectories(ObjectID(id)) for id in ids] == [5, 1, 1]  # a/module is one
        assert lower.trees_decoded == before
    finally:
        overlay.close()


@pytest.mark.parametrize(
    "spoil",
    ["checksum", "no checksum", "short", "split", "added", "conflict", "no cache tree", "absent"],
)
def test_an_index_that_is_not_believed(
    repo: api.Repository, git: Git, tree: ObjectID, indexed: Path, checkout: Path, spoil: str
) -> None:
    """Of an index that is damaged, unfinished or a part only, nothing is taken that git would not take."""
    sound = ObjectID(git("rev-parse", f"{tree.decode()}:sound").encode())
    overlay = shown(repo, git, sound)
    data = indexed.read_bytes()
    if spoil == "checksum":
        indexed.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    elif spoil == "no checksum":
        indexed.write_bytes(data[:-20] + bytes(20))
    elif spoil == "short":
        indexed.write_bytes(data[:15])
    elif spoil == "split":
        git("update-index", "--split-index")
    elif spoil == "added":
        (checkout / "a/new").touch()
        git("add", "--intent-to-add", "a/new")
    elif spoil == "conflict":
        blob = git("rev-parse", f"{sound.decode()}:a/1")
        lines = "".join(f"100644 {blob} {stage}\ta/both\n" for stage in (1, 2, 3))
        subprocess.run(
            ["git", "update-index", "--index-info"],
            cwd=checkout,
            input=lines,
            text=True,
            check=True,
        )
    elif spoil == "no cache tree":
        git(
            "update-index",
            "--add",
            "--cacheinfo",
            f"100644,{git('rev-parse', f'{sound.decode()}:a/1')},top",
        )
    else:
        indexed.unlink()
    try:
        listing = Listing(overlay.core, overlay.in_loop, index=indexed)
        root = listing.run(listing.look_at_root(), sound)
        assert (listing.entries, root) == listed(overlay, sound)
    finally:
        overlay.close()


def test_sizes_in_an_index_are_those_of_files(
    repo: api.Repository, git: Git, tree: ObjectID, indexed: Path, checkout: Path
) -> None:
    """Git takes a file of another size than its entry's for changed; that of a checkout may have been converted."""
    git("config", "core.autocrlf", "true")
    git("config", "core.safecrlf", "false")
    (checkout / "text").write_text("one\ntwo\n")
    git("add", "text")
    whole = ObjectID(git("write-tree").encode())
    (checkout / "text").unlink()
    git("checkout", "-q", "--", "text")
    git("status")
    assert (checkout / "text").stat().st_size == 10
    overlay = shown(repo, git, whole)
    try:
        listing = Listing(overlay.core, overlay.in_loop, index=indexed)
        root = listing.run(listing.look_at_root(), whole)
        assert (listing.entries, root) == listed(overlay, whole)
        (entry,) = [each for each in listing.entries if each[62:].startswith(b"text\0")]
        assert int.from_bytes(entry[36:40], "big") == 8
    finally:
        overlay.close()


may_fork = foretold._may_fork


@pytest.fixture(autouse=True)
def there_is_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this process had no threads, of which the test's own runner may have some."""
    monkeypatch.setattr(foretold, "_may_fork", lambda: True)


@pytest.fixture
def view(repo: api.Repository, git: Git, tree: ObjectID, indexed: Path) -> Iterator[GitView]:
    """Git in a mount to be, in this process, of the tree that the index holds."""
    sound = ObjectID(git("rev-parse", f"{tree.decode()}:sound").encode())
    repo.config.set(
        "git.fsmonitor_files", "1000"
    )  # an index without a token, which is never twice the same
    overlay = shown(repo, git, sound)
    found = GitView.begin(overlay, "session", repo.path / "nowhere", "work", agent={})
    assert found is not None
    yield found
    found.end()
    overlay.close()


def use_git(view: GitView) -> bytes:
    """Have it be used; returns the index that it is given."""
    pinned = view._overlay.core.child(view._overlay.core.root, b".git")
    assert isinstance(pinned, PinnedFile)
    pinned.opened(os.getpid())
    return (view.linked.git.path / "index").read_bytes()


def test_what_git_will_ask_for(view: GitView, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was listed ahead is not listed again when git is used, and is not kept in memory after that."""
    view.list_ahead()
    with monkeypatch.context() as patch:
        patch.setattr(Listing, "run", None)
        ahead = use_git(view)
    (view.linked.git.path / "index").unlink()
    assert view._ahead is None
    assert use_git(view) == ahead


@contextmanager
def running(*words: str) -> Iterator[int]:
    """A process that waits and is called git."""
    with subprocess.Popen(words, executable=sys.executable, stdin=subprocess.PIPE) as process:
        wait_until(lambda: fsmonitor.words_of(process.pid, "cmdline"), "the program to be loaded")
        yield process.pid
        process.kill()


def test_whoever_only_looks_need_not_wait(view: GitView, checkout: Path) -> None:
    """Once there is an index, and nothing new in the reflog, a git that makes no commit is let through at once."""
    looks = subprocess.Popen(["git", "cat-file", "--batch"], cwd=checkout, stdin=subprocess.PIPE)
    with looks, running("git", "-c", "input()") as commits:
        assert not view._glance(looks.pid)
        use_git(view)
        wait_until(lambda: view._glance(looks.pid), "the program to be loaded")
        assert not view._glance(commits)

        log = view.linked.git.path / "logs/HEAD"
        log.parent.mkdir(exist_ok=True)
        with log.open("a") as file:
            file.write("entry\n")
        assert not view._glance(looks.pid)
        looks.kill()
        looks.wait()
        assert not view._glance(looks.pid)


def test_a_process_with_threads_is_waited_for() -> None:
    """Another thread of it may wait for the mount, and hold what its command line is read under."""
    with running("git", "-c", "print(end=input())") as alone:
        assert fsmonitor.words_of(alone, "cmdline", at_once=True)[0] == "git"
    leave = threading.Event()
    second = threading.Thread(target=leave.wait)
    second.start()
    try:
        with pytest.raises(BlockingIOError):
            fsmonitor.words_of(os.getpid(), "cmdline", at_once=True)
        assert fsmonitor.words_of(os.getpid(), "cmdline")
        assert not only_looks(os.getpid())
        assert fsmonitor.question_of(os.getpid(), at_once=True) is None
    finally:
        leave.set()
        second.join()


def test_what_git_did_not_ask_for(view: GitView, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tree that seems large, and one of which nobody knows it, is not listed before git is used."""
    index = view.linked.git.common / "index"
    with monkeypatch.context() as patch:
        patch.setattr(Listing, "run", None)
        patch.setattr(foretold, "TOLD", len(FILES))
        view.list_ahead()
        index.rename(index.with_name("away"))
        view.list_ahead()
    index.with_name("away").rename(index)
    assert use_git(view)
    with monkeypatch.context() as patch:
        patch.setattr(Listing, "run", None)
        view.list_ahead()  # there is an index


def test_what_changed_since_it_was_listed(view: GitView, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what was listed ahead nothing is used when something was changed meanwhile."""
    runs = []
    run = Listing.run
    monkeypatch.setattr(Listing, "run", lambda *given: runs.append(given) or run(*given))
    view.list_ahead()
    assert len(runs) == 1

    core = view._overlay.core
    core.release(core.create_file(core.root.ino, b"new", 0o100644, Caller(0, 0)).ino)
    use_git(view)
    assert len(runs) > 1


def told(repo: api.Repository, state: ObjectID) -> bytes:
    """What the command tells that mounts a state; without any, the empty bytes."""
    tell = foretold.for_mount(repo, None, state).tell
    written = io.BytesIO()
    if tell is not None:
        tell(written)
    return written.getvalue()


def saying(content: bytes) -> foretold.Command:
    """A command that tells so much, and has ended."""
    read, write = os.pipe()
    os.write(write, content)
    os.close(write)
    return foretold.Command(read)


def soon() -> float:
    """A deadline."""
    return time.monotonic() + 10


@pytest.mark.parametrize("has_index", [True, False])
def test_what_is_told(
    repo: api.Repository, git: Git, tree: ObjectID, indexed: Path, has_index: bool
) -> None:
    """The command knows of a tree what the session's view would show, byte for byte, with all sizes and counts."""
    sound = ObjectID(git("rev-parse", f"{tree.decode()}:sound").encode())
    overlay = shown(repo, git, sound)
    try:
        if not has_index:
            indexed.unlink()
        assert overlay.base is not None
        said = saying(told(repo, overlay.base)).hear(soon())
        listing = Listing(overlay.core, overlay.in_loop)
        root = listing.run(listing.look_at_root(), sound)
        assert said is not None
        assert said.name == listing.name_of(sound)
        assert said.kept == (gitindex.collect(listing.entries, root), listing.counts)
        assert said.sizes == listing.sizes and len(said.sizes) > 3
    finally:
        overlay.close()


def test_a_session_that_is_told(
    repo: api.Repository, view: GitView, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lists nothing itself, looks no size up, and its index is that of one that nobody told."""
    alone = use_git(view)
    (view.linked.git.path / "index").unlink()
    base = view._overlay.base
    assert base is not None
    view._command = saying(told(repo, base))

    with monkeypatch.context() as patch:
        patch.setattr(Listing, "run", None)
        patch.setattr(ObjectStore, "size", None)
        assert use_git(view) == alone
        _, file = view._overlay.core.lower.entries(repo.state(base).tree)[b"ab"]
        assert view._overlay.core.lower.size(file) == len("ab") * 3


@pytest.mark.parametrize("said", [b"", b"\0", b"\0" * 8, b"\0" * 7 + b"\5i\1\0\0\0", None])
def test_what_is_told_in_part(
    repo: api.Repository, git: Git, view: GitView, said: bytes | None
) -> None:
    """Of a command that was killed meanwhile nothing is believed, and the session lists the tree."""
    base = view._overlay.base
    assert base is not None
    content = told(repo, base)[:-20] if said is None else said
    assert saying(content).hear(soon()) is None

    view._command = saying(content)
    assert use_git(view)


def test_the_end_is_not_waited_for(repo: api.Repository, view: GitView) -> None:
    """What is told counts when it is whole, and nothing is waited for any longer than until the deadline."""
    base = view._overlay.base
    assert base is not None
    content = told(repo, base)
    read, write = os.pipe()
    try:
        os.write(write, content[10:])
        command = foretold.Command(os.dup(read), content[:10])
        assert command.hear(soon()) is not None
        os.write(write, content[:-1])
        assert foretold.Command(os.dup(read)).hear(time.monotonic() + 0.01) is None
        view._command = foretold.Command(os.dup(read))  # what is left says that far more is to come
        os.write(write, b"\1" * 8)
        view._begun_s = time.monotonic() - 1
        assert use_git(view)
    finally:
        os.close(read)
        os.close(write)


def test_who_is_told_nothing(
    repo: api.Repository, view: GitView, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody tells where git was used before, of a very large tree, with one processor, or beside a thread."""
    base = view._overlay.base
    assert base is not None
    assert foretold.for_mount(repo, "work", base).tell is not None

    with monkeypatch.context() as patch:
        patch.setattr(foretold, "_LISTED", 3)
        assert foretold.for_mount(repo, "work", base) == (None, True)
    with monkeypatch.context() as patch:
        patch.setattr(foretold, "_may_fork", may_fork)
        patch.setattr(foretold, "processes", lambda _: 1)
        assert foretold.for_mount(repo, "work", base) == (None, True)
    leave = threading.Event()
    second = threading.Thread(target=leave.wait)
    second.start()
    with monkeypatch.context() as patch:
        patch.setattr(foretold, "_may_fork", may_fork)
        patch.setattr(foretold, "processes", lambda _: 2)
        assert foretold.for_mount(repo, "work", base) == (None, True)
    leave.set()
    second.join()
    aside = overlay_dir(repo, "work") / linked.PUT_ASIDE
    aside.mkdir()
    assert foretold.for_mount(repo, "work", base) == (None, True)
    assert foretold.for_mount(repo, "work", None) == (None, False)


def test_a_large_tree_is_kept_and_not_told(
    repo: api.Repository, view: GitView, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is much to be told is where the session finds it, with the counts; it is listed once."""
    base = view._overlay.base
    assert base is not None
    with monkeypatch.context() as patch:
        patch.setattr(foretold, "TOLD", 3)
        assert told(repo, base) == b""
        patch.setattr(CapturedListing, "of_tree", None)
        assert told(repo, base) == b""
    with monkeypatch.context() as patch:
        patch.setattr(Listing, "run", None)
        assert use_git(view)
        patch.setattr(Lower, "entries", None)
        tree = repo.state(base).tree
        assert view._overlay.core.lower.subdirectories(tree) == 5


def test_nothing_can_be_listed(view: GitView, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that can't be read costs what was to be ready, and nothing else."""

    def fail(*_: object) -> None:
        raise CorruptObject("damaged")

    with monkeypatch.context() as patch:
        patch.setattr(Listing, "run", fail)
        view.list_ahead()
    assert use_git(view)
