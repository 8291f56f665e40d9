"""Captures of the plain working directory: whole, durable, and git's own trees."""

from __future__ import annotations

import os
import pwd
import random
import shutil
import tempfile
import threading
from pathlib import Path

import pytest
from histories import ADA, EMPTY_TREE
from processes import killed_at, race, run_script
from trees import DIRECTORY, EXECUTABLE, FILE, GITLINK, SYMLINK, git, read_files, write_files

from heddle.errors import Busy, DataError, NothingToCapture, ThreadMoved
from heddle.objects.pack import PackWriter
from heddle.objects.store import ObjectStore
from heddle.repo import checkin, reading, worktree
from heddle.repo.capture import Captured, capture_worktree
from heddle.repo.reading import Hasher, NotReadable, for_each, take
from heddle.repo.repository import Repository
from heddle.repo.worktree import status


def capture(repo: Repository, **options) -> Captured:
    return capture_worktree(repo, attribution=ADA, **options)


def recorded(repo: Repository, tree: bytes, prefix: bytes = b"") -> dict[bytes, tuple[int, bytes]]:
    """What a stored tree holds, as ``trees.read_files`` gives it of a directory."""
    found: dict[bytes, tuple[int, bytes]] = {}
    for name, mode, id in repo.store.tree_entries(tree):
        if mode == DIRECTORY and id != EMPTY_TREE:
            found |= recorded(repo, id, prefix + name + b"/")
        elif mode in (DIRECTORY, GITLINK):
            found[prefix + name] = mode, b"" if mode == DIRECTORY else id
        else:
            found[prefix + name] = mode, b"".join(repo.store.iter_blob(id))
    return found


FILES = {
    b"f": (FILE, b"text\n"),
    b"empty": (FILE, b""),
    b"run": (EXECUTABLE, b"#!/bin/sh\n"),
    b"d/e/f/g": (FILE, b"deep"),
    b"link": (SYMLINK, b"d/e"),
    b"dangling": (SYMLINK, b"/nowhere/\xff"),
    b"\xff\xfe": (FILE, b"not UTF-8"),
    b"new\nline": (FILE, b"x"),
    b"a.b": (FILE, b"sorts before a/"),
    b"a/x": (FILE, b"1"),
    b"a-b": (FILE, b"1"),
    b"hollow/inner": (DIRECTORY, b""),
    b"large": (FILE, random.Random(3).randbytes(5 << 20)),
}


def test_everything_is_recorded(repo: Repository) -> None:
    """Bytes, names, executable bits, links and empty directories come back as they were."""
    write_files(repo.path, FILES)
    captured = capture(repo, message="first")

    assert recorded(repo, captured.state.tree) == FILES
    assert (captured.added, captured.modified, captured.deleted) == (len(FILES), 0, 0)
    assert captured.not_recorded == ()
    assert captured.state.parents == ()
    assert repo.threads.get("main").state == repo.worktree_base() == captured.state.id
    assert status(repo).changes == ()


def test_trees_are_gits(repo: Repository) -> None:
    """The tree has the id that git write-tree gives the same files, at first and after changes."""
    files = {path: item for path, item in FILES.items() if item[0] != DIRECTORY}
    write_files(repo.path, files)
    chance = random.Random(5)
    git(repo.path, "init", "-q")
    for _ in range(4):
        git(repo.path, "add", "-A", ".", ":!.heddle")
        tree = git(repo.path, "write-tree").strip()
        assert capture(repo).state.tree == tree
        for path in chance.sample(sorted(read_files(repo.path)), 3):
            host = Path(os.fsdecode(os.path.join(os.fsencode(repo.path), path)))
            host.unlink()
            if chance.random() < 0.6:
                host.write_bytes(b"changed %d" % chance.getrandbits(30))
            elif not any(host.parent.iterdir()):
                shutil.rmtree(host.parent)
        write_files(repo.path, {b"n/%d" % chance.getrandbits(30): (FILE, b"new")})


def test_sha256_repositories(tmp_path: Path) -> None:
    """Captures work with SHA-256 ids, and agree with git's."""
    repo = Repository.init(tmp_path / "r", object_format="sha256")
    write_files(repo.path, {b"f": (FILE, b"1"), b"d/g": (EXECUTABLE, b"2"), b"l": (SYMLINK, b"f")})
    git(repo.path, "init", "-q", "--object-format=sha256")
    git(repo.path, "add", "-A", ".", ":!.heddle")

    assert capture(repo).state.tree == git(repo.path, "write-tree").strip()
    assert status(repo).changes == ()


def test_second_capture_counts_what_changed(repo: Repository) -> None:
    """Counts say what differs from the last state; a move is one added and one deleted."""
    write_files(repo.path, FILES)
    first = capture(repo)
    (repo.path / "f").write_bytes(b"changed")
    (repo.path / "run").chmod(0o644)
    (repo.path / "link").unlink()
    (repo.path / "link").write_bytes(b"")
    (repo.path / "empty").rename(repo.path / "moved")
    (repo.path / "hollow/inner").rmdir()
    (repo.path / "hollow").rmdir()
    second = capture(repo)

    assert (second.added, second.modified, second.deleted) == (1, 3, 2)
    assert second.state.parents == (first.state.id,)
    assert recorded(repo, second.state.tree) == read_files(repo.path)


def test_unchanged_subtrees_are_not_written(repo: Repository, monkeypatch) -> None:
    """A capture builds the trees on the way to what changed and no others."""
    write_files(repo.path, {b"%d/%d/f" % (d, e): (FILE, b"1") for d in range(9) for e in range(9)})
    capture(repo)
    (repo.path / "3/5/f").write_bytes(b"2")
    built = []
    real = PackWriter.add_tree
    monkeypatch.setattr(PackWriter, "add_tree", lambda s, e: built.append(1) or real(s, e))

    capture(repo)
    assert len(built) == 3


def test_nothing_to_capture(repo: Repository) -> None:
    """Without changes there is no state, except where one is asked for."""
    with pytest.raises(NothingToCapture):
        capture(repo)
    assert capture(repo, allow_empty=True).state.tree == EMPTY_TREE
    (repo.path / "f").touch()
    capture(repo)

    with pytest.raises(NothingToCapture, match="nothing has changed"):
        capture(repo)
    assert capture(repo, allow_empty=True).added == 0
    os.mkfifo(repo.path / "fifo")
    with pytest.raises(NothingToCapture, match="fifo: a fifo"):
        capture(repo)


def test_paths_restrict(repo: Repository) -> None:
    """Only what is asked for is recorded; the rest stays unsaved."""
    write_files(repo.path, {b"d/x": (FILE, b"1"), b"d/y": (FILE, b"1"), b"f": (FILE, b"1")})
    capture(repo)
    for name in ("d/x", "d/y", "f"):
        (repo.path / name).write_bytes(b"2")
    (repo.path / "d/new").mkdir()
    captured = capture(repo, paths=[b"d/x", b"d/new"])

    assert (captured.added, captured.modified) == (1, 1)
    assert [change.path for change in status(repo).changes] == [b"d/y", b"f"]
    with pytest.raises(NothingToCapture):
        capture(repo, paths=[b"d/x"])
    (repo.path / "d/y").unlink()
    assert capture(repo, paths=[b"d"]).deleted == 1


def test_emptied_directories(repo: Repository) -> None:
    """A directory that lost its last file stays while it is there, and goes when it is gone."""
    write_files(repo.path, {b"stays/f": (FILE, b"1"), b"goes/e/f": (FILE, b"1"), b"k": (FILE, b"")})
    capture(repo)
    (repo.path / "stays/f").unlink()
    shutil.rmtree(repo.path / "goes")
    captured = capture(repo)

    assert recorded(repo, captured.state.tree) == {b"stays": (DIRECTORY, b""), b"k": (FILE, b"")}
    assert (captured.added, captured.deleted) == (0, 2)


def test_links_to_other_repositories_are_kept(repo: Repository) -> None:
    """A gitlink of an earlier state stays in later ones, whatever its directory holds."""
    write_files(repo.path, {b"f": (FILE, b"1"), b"m/theirs": (FILE, b"1")})
    with repo.store.writer() as writer:
        tree = writer.add_tree([(b"m", GITLINK, b"1" * 40)])
        head = b"tree %b\nauthor A <a@b> 1 +0000\ncommitter A <a@b> 1 +0000\n\n"
        state = writer.add(1, head % tree)
        writer.commit()
    repo.publish(
        thread="main", expected=None, new=state, kind="capture", message="", attribution=ADA,
        worktree_base=True,
    )  # fmt: skip

    found = recorded(repo, capture(repo).state.tree)
    assert found == {b"f": (FILE, b"1"), b"m": (GITLINK, b"1" * 40)}


def test_special_modes_are_named(repo: Repository) -> None:
    """A set-user-id bit is not recorded, and the capture says so."""
    write_files(repo.path, {b"f": (EXECUTABLE, b"1")})
    (repo.path / "f").chmod(0o4755)

    [left] = capture(repo).not_recorded
    assert (left.path, left.why) == (
        b"f", "its mode 4755: git keeps only the executable bit",
    )  # fmt: skip


def test_unreadable_paths_keep_their_last_version(tmp_path: Path) -> None:
    """What may not be read is named with the reason, and stays in the state as it was captured before."""
    top = Path(tempfile.mkdtemp())
    repo = Repository.init(top)
    before = {b"f": (FILE, b"1"), b"d/g": (FILE, b"1"), b"was/a/directory": (FILE, b"1")}
    write_files(top, {**before, b"ok": (FILE, b"1")})
    capture(repo)
    shutil.rmtree(top / "was")
    (top / "was").write_bytes(b"a file")
    (top / "was").chmod(0)
    for name in ("f", "d/g", "ok"):
        (top / name).write_bytes(b"22")
    (top / "new").write_bytes(b"3")
    (top / "f").chmod(0)
    (top / "new").chmod(0)
    (top / "d").chmod(0)
    repo.close()

    def unprivileged(_: int) -> str:
        captured = capture(repo)
        return repr([(left.path, left.why) for left in captured.not_recorded])

    try:
        answer = as_owner_who_is_not_root(top, unprivileged)
        captured = repo.state("main")
    finally:
        (top / "d").chmod(0o755)
    assert answer == repr([(name, "Permission denied") for name in (b"d", b"f", b"new", b"was")])
    assert recorded(repo, captured.tree) == {**before, b"ok": (FILE, b"22")}
    repo.close()
    shutil.rmtree(top)


def as_owner_who_is_not_root(top: Path, function) -> str:
    """Run a function in a child that is not root and owns everything below ``top``."""
    if os.geteuid() != 0:
        return race(1, function)[0]
    nobody = pwd.getpwnam("nobody").pw_uid
    for path in [top, *top.rglob("*")]:
        os.chown(path, nobody, -1, follow_symlinks=False)

    def unprivileged(number: int) -> str:
        os.setgroups([])
        os.setuid(nobody)
        return function(number)

    return race(1, unprivileged)[0]


# A file that changes while it is read


class Meddling(Hasher):
    """A sink that does something else each time it gets bytes."""

    def __init__(self, *actions) -> None:
        super().__init__(20)
        self._actions = list(actions)
        self.seen: list[bytes] = []

    def add_blob(self, content: bytes) -> bytes:
        self.seen.append(content)
        if self._actions:
            self._actions.pop(0)()
        return super().add_blob(content)


def test_file_that_changes_once_is_read_again(tmp_path: Path) -> None:
    """A change between reading and the second stat is noticed, and the later content taken."""
    path = tmp_path / "f"
    path.write_bytes(b"old")
    sink = Meddling(lambda: path.write_bytes(b"new"))

    assert take(os.fsencode(path), sink).id == Hasher(20).add_blob(b"new")
    assert sink.seen[0] == b"old"


def test_change_within_a_tick_is_noticed(tmp_path: Path, monkeypatch) -> None:
    """A change that leaves the stat as it was is noticed too, when the file was changed just now."""
    path = tmp_path / "f"
    path.write_bytes(b"old")
    frozen = reading.stat_of(path.stat())
    monkeypatch.setattr(reading, "stat_of", lambda status: frozen)
    sink = Meddling(lambda: path.write_bytes(b"new"))

    assert take(os.fsencode(path), sink).id == Hasher(20).add_blob(b"new")
    assert sink.seen == [b"old", b"new", b"new", b"new"]


@pytest.mark.parametrize("change", ["rewrite", "grow", "shrink"])
def test_file_that_never_holds_still_is_named(tmp_path: Path, change: str, monkeypatch) -> None:
    """After a few tries a file that is written all the time is given up, with the reason."""
    monkeypatch.setattr(reading.time, "sleep", lambda seconds: None)
    path = tmp_path / "f"
    path.write_bytes(b"x" * 1000)
    count = iter(range(1000))
    actions = {
        "rewrite": lambda: path.write_bytes(b"%01000d" % next(count)),
        "grow": lambda: path.write_bytes(b"x" * (1000 + next(count))),
        "shrink": lambda: path.write_bytes(b"x" * (999 - next(count))),
    }
    sink = Meddling(*[actions[change]] * 100)

    with pytest.raises(NotReadable, match="kept changing"):
        take(os.fsencode(path), sink)


def test_large_file_that_changes_is_read_again(repo: Repository) -> None:
    """A streamed file that shrinks under the reader is not recorded torn."""
    path = repo.path / "large"
    path.write_bytes(b"x" * (6 << 20))
    real = PackWriter.add_blob_from
    calls = []

    def meddle(writer, read, size):
        if not calls:
            path.write_bytes(b"y" * (5 << 20))
        calls.append(size)
        return real(writer, read, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PackWriter, "add_blob_from", meddle)
        captured = capture(repo)
    assert recorded(repo, captured.state.tree) == {b"large": (FILE, b"y" * (5 << 20))}
    assert calls[0] == 6 << 20


def test_file_that_vanishes_is_deleted(repo: Repository, monkeypatch) -> None:
    """A file that goes between the walk and the reading is recorded as gone."""
    write_files(repo.path, {b"f": (FILE, b"1"), b"keep": (FILE, b"1")})
    capture(repo)
    (repo.path / "f").write_bytes(b"2")
    (repo.path / "never").write_bytes(b"2")
    real = checkin.take

    def vanish(host, sink, **how):
        if not host.endswith(b"keep"):
            os.unlink(host)
        return real(host, sink, **how)

    monkeypatch.setattr(checkin, "take", vanish)
    captured = capture(repo)

    assert (captured.added, captured.modified, captured.deleted) == (0, 0, 1)
    assert recorded(repo, captured.state.tree) == {b"keep": (FILE, b"1")}


def test_file_that_becomes_something_else(tmp_path: Path) -> None:
    """A file that became a link is taken as the link; one that became a directory or a fifo is named."""
    path = tmp_path / "f"
    path.symlink_to("target")
    assert take(os.fsencode(path), Hasher(20)).id == Hasher(20).add_blob(b"target")
    path.unlink()
    path.write_bytes(b"file")
    taken = take(os.fsencode(path), Hasher(20), is_link=True)
    assert taken.id == Hasher(20).add_blob(b"file")
    path.unlink()
    os.mkfifo(path)

    with pytest.raises(NotReadable, match="something else"):
        take(os.fsencode(path), Hasher(20))


def test_whole_while_it_is_being_written(repo: Repository) -> None:
    """Under a writer that rewrites a file in place, each capture has one whole version or names it."""
    size = 1 << 18
    path = repo.path / "f"
    path.write_bytes(b"a" * size)
    stop = threading.Event()

    def write() -> None:
        with path.open("r+b", buffering=0) as file:
            number = 0
            while not stop.is_set():
                number += 1
                file.seek(0)
                file.write(b"%c" % (97 + number % 26) * size)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(10):
            try:
                captured = capture(repo, allow_empty=True)
            except NothingToCapture:
                continue
            content = recorded(repo, captured.state.tree).get(b"f", (FILE, b""))[1]
            assert len(set(content)) <= 1
            assert content or captured.not_recorded
    finally:
        stop.set()
        writer.join()


def test_first_failure_of_many_is_raised() -> None:
    """An error in one of many files ends the others and is raised."""
    done = []

    def work(number: int) -> None:
        if number == 500:
            raise RuntimeError("one of many")
        done.append(number)

    with pytest.raises(RuntimeError, match="one of many"):
        for_each(range(100_000), work)
    assert len(done) < 99_000


# Others at the same time


def test_moved_thread_is_refused(repo: Repository) -> None:
    """When the thread was moved elsewhere, capture says where to, and what to do."""
    write_files(repo.path, {b"f": (FILE, b"1")})
    first = capture(repo)
    with repo.store.writer() as writer:
        head = b"tree %b\nauthor A <a@b> 1 +0000\ncommitter A <a@b> 1 +0000\n\n"
        state = writer.add(1, head % first.state.tree)
        writer.commit()
    repo.publish(
        thread="main", expected=first.state.id, new=state, kind="capture", message="",
        attribution=ADA,
    )  # fmt: skip
    (repo.path / "f").write_bytes(b"2")

    with pytest.raises(ThreadMoved) as refused:
        capture(repo)
    assert refused.value.hint is not None
    assert "heddle switch main" in refused.value.hint
    assert repo.threads.get("main").state == state


def test_thread_moved_during_the_capture_is_refused(repo: Repository, monkeypatch) -> None:
    """A thread that moves between the walk and the end makes the capture lose, with nothing changed."""
    write_files(repo.path, {b"f": (FILE, b"1")})
    first = capture(repo)
    (repo.path / "f").write_bytes(b"2")
    real = PackWriter.commit

    def meddle(writer):
        monkeypatch.setattr(PackWriter, "commit", real)
        with repo.store.writer() as other:
            head = b"tree %b\nauthor A <a@b> 1 +0000\ncommitter A <a@b> 1 +0000\n\n"
            state = other.add(1, head % first.state.tree)
            other.commit()
        repo.publish(
            thread="main", expected=first.state.id, new=state, kind="capture", message="",
            attribution=ADA,
        )  # fmt: skip
        return real(writer)

    monkeypatch.setattr(PackWriter, "commit", meddle)
    with pytest.raises(ThreadMoved):
        capture(repo)
    assert repo.worktree_base() == first.state.id
    assert [change.path for change in status(repo).changes] == [b"f"]


def test_other_thread_is_refused(repo: Repository) -> None:
    """The working directory is captured on the thread it is on and on no other."""
    repo.threads.create("other")

    with pytest.raises(DataError, match="is on thread 'main', not 'other'"):
        capture(repo, thread="other")


def test_many_captures_at_once(repo: Repository) -> None:
    """Of many processes that capture one directory, each gets a state or hears that nothing is left."""
    repo.close()

    def work(number: int) -> str:
        (repo.path / f"f{number}").write_bytes(b"%d" % number)
        try:
            capture(repo, message=str(number))
        except NothingToCapture:
            return "nothing"
        return "state"

    answers = race(6, work)
    assert set(answers) <= {"nothing", "state"}
    assert answers.count("state") == len(list(repo.log("main")))
    assert set(recorded(repo, repo.state("main").tree)) == {b"f%d" % n for n in range(6)}
    assert status(repo).changes == ()


def test_hanging_neighbour(repo: Repository, monkeypatch) -> None:
    """Who waits too long for another command's work on the directory is told so, and may retry."""
    monkeypatch.setattr(worktree, "_LOCK_WAIT_S", 0.0)

    with (
        worktree.working_directory_locked(repo),
        pytest.raises(Busy, match="busy with the working directory"),
    ):
        capture(repo)


# Failing and dying

CAPTURE = """
import sys
from pathlib import Path
from heddle.attribution import Attribution, Principal
from heddle.repo.capture import capture_worktree
from heddle.repo.repository import Repository
ada = Attribution(Principal("Ada", "ada@example.org"), None, {})
capture_worktree(Repository.open(Path(sys.argv[1])), attribution=ada)
"""
POINTS = {
    "capture.before-trees": False,
    "capture.before-pack": False,
    "capture.before-publish": False,
    "database.before-commit": False,
    "database.after-commit": True,
    "capture.after-publish": True,
}


@pytest.mark.parametrize("point", POINTS)
def test_killed_capture(repo: Repository, point: str) -> None:
    """Wherever it dies, the thread has the old state or the new one, whole, and the next capture works."""
    write_files(repo.path, {b"f": (FILE, b"1")})
    first = capture(repo)
    (repo.path / "f").write_bytes(b"2")
    (repo.path / "g").write_bytes(b"2")
    repo.close()
    killed_at(point, CAPTURE, repo.path)
    unsaved = [change.path for change in status(repo).changes]

    if POINTS[point]:
        assert unsaved == []
        assert repo.worktree_base() == repo.threads.get("main").state != first.state.id
    else:
        assert unsaved == [b"f", b"g"]
        assert repo.worktree_base() == repo.threads.get("main").state == first.state.id
        capture(repo)
    assert recorded(repo, repo.state("main").tree) == read_files(repo.path)
    assert repo.fsck(full=True).problems == []


def test_failing_disk(repo: Repository) -> None:
    """When the disk takes no more, the capture fails with a clear error and nothing has changed."""
    write_files(repo.path, {b"f": (FILE, b"1")})
    first = capture(repo)
    for number in range(50):
        (repo.path / f"n{number}").write_bytes(os.urandom(100_000))
    (repo.path / "large").write_bytes(os.urandom(8 << 20))
    repo.close()
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
    done = run_script(limit + CAPTURE, repo.path)

    assert "heddle.errors.StorageError: " in done.stderr
    assert repo.threads.get("main").state == first.state.id
    assert len(status(repo).changes) == 51
    assert not [name for name in os.listdir(repo.heddle_dir / "objects/packs") if "tmp" in name]
    assert repo.fsck(full=True).problems == []


def test_progress_reaches_the_total(repo: Repository) -> None:
    """Progress is told with the number of files, up to all of them."""
    write_files(repo.path, {b"%d" % n: (FILE, b"%d" % n) for n in range(200)})
    told: list[tuple[int, int]] = []
    capture(repo, progress=lambda done, total: told.append((done, total)))

    assert told[-1] == (200, 200)
    assert told == sorted(told)


def test_stat_cache_failure_is_harmless(repo: Repository, monkeypatch) -> None:
    """A stat cache that can't be written does not fail a capture that is done."""
    write_files(repo.path, FILES)
    monkeypatch.setattr(type(repo.database), "cache_directories", lambda *a, **k: False)

    assert capture(repo).added == len(FILES)
    assert status(repo).changes == ()


def test_store_is_asked_for_no_blob(repo: Repository, monkeypatch) -> None:
    """Capturing reads trees and its own directory, never stored file content."""
    write_files(repo.path, FILES)
    capture(repo)
    (repo.path / "f").write_bytes(b"2")
    read = []
    real = ObjectStore.get_raw
    monkeypatch.setattr(
        ObjectStore, "get_raw", lambda s, id: read.append(s.kind(id)) or real(s, id)
    )

    capture(repo)
    assert 3 not in read
