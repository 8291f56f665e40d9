"""Switching: the directory becomes what the thread holds, and nothing unsaved goes with it."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from histories import ADA, COMMIT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from processes import killed_at, run_script
from trees import DIRECTORY, EXECUTABLE, FILE, GITLINK, SYMLINK, read_files, store_tree, write_files

from heddle.errors import (
    DataError,
    InvalidName,
    StorageError,
    ThreadExists,
    ThreadNotFound,
    UnsavedChanges,
)
from heddle.repo import reading
from heddle.repo.capture import capture_worktree
from heddle.repo.repository import Repository
from heddle.repo.switch import _Move, switch
from heddle.repo.worktree import status

TEXT = b"some text\n"


def publish(repo: Repository, thread: str, files) -> bytes:
    """Make a thread whose state holds these files."""
    tree = files if isinstance(files, bytes) else store_tree(repo.store, files)
    with repo.store.writer() as writer:
        head = b"tree %b\nauthor A <a@b> 1 +0000\ncommitter A <a@b> 1 +0000\n\n%b"
        state = writer.add(COMMIT, head % (tree, thread.encode()))
        writer.commit()
    repo.threads.create(thread, state)
    return state


def standing_on(repo: Repository, files) -> None:
    """Have the working directory hold these files, captured on thread main."""
    write_files(repo.path, files)
    if files:
        capture_worktree(repo, attribution=ADA)


def kinds(repo: Repository) -> list[tuple[str, bytes]]:
    return [(change.kind, change.path) for change in status(repo).changes]


CASES = {
    "added": ({b"a": (FILE, TEXT)}, {b"a": (FILE, TEXT), b"d/e/b": (FILE, b"new")}),
    "modified": ({b"d/a": (FILE, TEXT)}, {b"d/a": (FILE, b"other")}),
    "deleted, with its directories": (
        {b"a": (FILE, TEXT), b"d/e/b": (FILE, b"x")},
        {b"a": (FILE, TEXT)},
    ),
    "deleted, the directory stays": ({b"d/b": (FILE, b"x")}, {b"d": (DIRECTORY, b"")}),
    "executable": ({b"a": (FILE, TEXT)}, {b"a": (EXECUTABLE, TEXT)}),
    "link": ({b"a": (SYMLINK, b"x")}, {b"a": (SYMLINK, b"../y")}),
    "file to link": ({b"a": (FILE, TEXT)}, {b"a": (SYMLINK, b"target")}),
    "link to file": ({b"a": (SYMLINK, b"target")}, {b"a": (EXECUTABLE, TEXT)}),
    "file to directory": ({b"a": (FILE, TEXT)}, {b"a/b/c": (FILE, TEXT)}),
    "directory to file": ({b"a/b/c": (FILE, TEXT), b"a/d": (FILE, b"")}, {b"a": (FILE, TEXT)}),
    "directory to link": ({b"a/b": (FILE, TEXT)}, {b"a": (SYMLINK, b"b")}),
    "link to directory": ({b"a": (SYMLINK, b"d"), b"d/b": (FILE, b"")}, {b"a/b": (FILE, TEXT)}),
    "empty directory": ({b"a": (FILE, TEXT)}, {b"a": (FILE, TEXT), b"d/e": (DIRECTORY, b"")}),
    "empty directory gone": ({b"a": (FILE, b""), b"d/e": (DIRECTORY, b"")}, {b"a": (FILE, b"")}),
    "empty directory filled": ({b"d": (DIRECTORY, b"")}, {b"d/a": (FILE, TEXT)}),
    "empty directory to file": ({b"d": (DIRECTORY, b"")}, {b"d": (FILE, TEXT)}),
    "file to empty directory": ({b"d": (FILE, TEXT)}, {b"d": (DIRECTORY, b"")}),
    "everything gone": ({b"a": (FILE, TEXT), b"d/b": (FILE, b"x")}, {}),
    "from nothing": ({}, {b"a": (FILE, TEXT), b"d/b": (SYMLINK, b"x")}),
    "odd names": ({b"\xff\n": (FILE, b"1"), b"-x": (FILE, b"")}, {b"\xff\n/\x01": (FILE, b"2")}),
    "large": ({b"a": (FILE, b"x" * (5 << 20))}, {b"a": (FILE, b"y" * (9 << 20) + b"z")}),
}


@pytest.mark.parametrize("name", CASES)
def test_directory_becomes_what_the_thread_holds(repo: Repository, name: str) -> None:
    """After switching there and back the directory holds exactly what each thread holds."""
    old, new = CASES[name]
    standing_on(repo, old)
    state = publish(repo, "other", new)
    base = repo.worktree_base()

    there = switch(repo, "other")
    assert (there.thread, there.state) == ("other", state)
    assert read_files(repo.path) == new
    assert (repo.head, repo.worktree_base()) == ("other", state)
    assert kinds(repo) == []

    back = switch(repo, "main")
    assert (back.state, back.changed_paths) == (base, there.changed_paths)
    assert read_files(repo.path) == old
    assert kinds(repo) == []
    assert not (repo.heddle_dir / "switch").exists()


def test_only_paths_that_differ_are_touched(repo: Repository) -> None:
    """A path that both threads hold alike keeps its inode and its mtime."""
    standing_on(repo, {b"same": (FILE, TEXT), b"a": (FILE, b"1")})
    publish(repo, "other", {b"same": (FILE, TEXT), b"a": (FILE, b"2")})
    before = (repo.path / "same").stat()

    assert switch(repo, "other").changed_paths == 1
    assert (repo.path / "same").stat() == before


def test_unrelated_unsaved_changes_go_along(repo: Repository) -> None:
    """What is unsaved where the threads agree stays unsaved, of every kind."""
    kept = {b"d/kept": (FILE, b"1"), b"gone": (FILE, b"1"), b"link": (FILE, b"1")}
    standing_on(repo, {**kept, b"a": (FILE, b"1"), b".gitignore": (FILE, b"*.o\n")})
    publish(repo, "other", {**kept, b"a": (FILE, b"2"), b".gitignore": (FILE, b"*.o\n")})
    (repo.path / "d/kept").write_bytes(b"unsaved")
    (repo.path / "d/new").write_bytes(b"new")
    (repo.path / "x.o").write_bytes(b"ignored")
    (repo.path / "gone").unlink()
    (repo.path / "link").unlink()
    (repo.path / "link").symlink_to("a")
    unsaved = kinds(repo)

    switch(repo, "other")
    assert kinds(repo) == unsaved
    assert (repo.path / "d/kept").read_bytes() == b"unsaved"
    assert (repo.path / "x.o").read_bytes() == b"ignored"
    assert (repo.path / "a").read_bytes() == b"2"


def modify(path: Path) -> None:
    path.write_bytes(b"unsaved")


def make_directory(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()
    (path / "mine").write_bytes(b"mine")


def make_fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


OLD = {
    b"f": (FILE, b"1"), b"dies": (FILE, b"1"), b"d/in": (FILE, b"1"), b"x/in": (FILE, b"1"),
    b".gitignore": (FILE, b"*.o\n"),
}  # fmt: skip
NEW = {
    b"f": (FILE, b"2"), b"added": (FILE, b"2"), b"sub/added": (FILE, b"2"), b"d": (FILE, b"2"),
    b"x/in": (FILE, b"2"), b"out.o": (FILE, b"2"), b".gitignore": (FILE, b"*.o\n"),
}  # fmt: skip
IN_THE_WAY = {
    "modified": ("f", modify, b"f"),
    "modified, to be deleted": ("dies", modify, b"dies"),
    "made executable": ("f", lambda path: path.chmod(0o755), b"f"),
    "deleted": ("f", Path.unlink, b"f"),
    "untracked": ("added", modify, b"added"),
    "untracked, on the way": ("sub", modify, b"sub"),
    "ignored": ("out.o", modify, b"out.o"),
    "untracked in a directory that has to go": ("d/mine", modify, b"d/mine"),
    "untracked directory in one that has to go": ("d/mine", Path.mkdir, b"d/mine"),
    "directory instead of a file": ("f", make_directory, b"f/mine"),
    "fifo": ("f", make_fifo, b"f"),
    "link on the way": (
        "x",
        lambda path: (path.rename(path.with_name("moved")), path.symlink_to("moved")),
        b"x",
    ),
}


@pytest.mark.parametrize("name", IN_THE_WAY)
def test_unsaved_changes_in_the_way_refuse(repo: Repository, name: str) -> None:
    """Whatever no state holds and the switch would overwrite stops it, by name, with nothing done."""
    standing_on(repo, OLD)
    publish(repo, "other", NEW)
    path, change, named = IN_THE_WAY[name]
    change(repo.path / path)
    base = repo.worktree_base()
    before = None if name == "fifo" else read_files(repo.path)

    with pytest.raises(UnsavedChanges) as refused:
        switch(repo, "other")
    assert named.decode() in refused.value.message
    assert (repo.head, repo.worktree_base()) == ("main", base)
    assert name == "fifo" or read_files(repo.path) == before


def test_at_most_ten_paths_are_named(repo: Repository) -> None:
    """The refusal lists ten paths and counts the others."""
    standing_on(repo, {b"f": (FILE, b"")})
    publish(repo, "other", {b"n%02d" % i: (FILE, b"theirs") for i in range(13)})
    for number in range(13):
        (repo.path / f"n{number:02}").write_bytes(b"mine")

    with pytest.raises(UnsavedChanges, match=r"n00, .*, n09 and 3 more$"):
        switch(repo, "other")


def test_equal_content_is_not_in_the_way(repo: Repository) -> None:
    """A file that already is what the other thread holds needs nothing, untracked or not."""
    standing_on(repo, {b"f": (FILE, b"1"), b"dies": (FILE, b"1")})
    publish(repo, "other", {b"f": (FILE, b"2"), b"added": (EXECUTABLE, b"2")})
    (repo.path / "f").write_bytes(b"2")
    (repo.path / "added").write_bytes(b"2")
    (repo.path / "added").chmod(0o755)
    (repo.path / "dies").unlink()
    inode = (repo.path / "added").stat().st_ino

    switch(repo, "other")
    assert (repo.path / "added").stat().st_ino == inode
    assert kinds(repo) == []


def test_emptied_directory_with_untracked_files_stays(repo: Repository) -> None:
    """A directory that the other thread does not have stays for what is untracked or ignored in it."""
    standing_on(repo, {b"f": (FILE, b""), b"d/e/x": (FILE, b"1"), b"d/y": (FILE, b"1")})
    publish(repo, "other", {b"f": (FILE, b"")})
    (repo.path / "d/mine").write_bytes(b"mine")

    switch(repo, "other")
    assert read_files(repo.path) == {b"f": (FILE, b""), b"d/mine": (FILE, b"mine")}


def test_links_to_other_repositories_are_directories(repo: Repository) -> None:
    """A gitlink becomes an empty directory; its files are another repository's and are left alone."""
    standing_on(repo, {b"f": (FILE, b"")})
    publish(repo, "other", {b"f": (FILE, b""), b"m": (GITLINK, b"1" * 40)})
    publish(repo, "later", {b"f": (FILE, b""), b"m": (GITLINK, b"2" * 40)})

    switch(repo, "other")
    assert kinds(repo) == []
    (repo.path / "m/theirs").write_bytes(b"theirs")
    switch(repo, "later")
    assert kinds(repo) == []
    switch(repo, "main")
    assert (repo.path / "m/theirs").read_bytes() == b"theirs"


def test_same_thread_brings_the_directory_up_to_date(repo: Repository) -> None:
    """After its thread was moved elsewhere, the directory follows by switching to the same thread."""
    standing_on(repo, {b"f": (FILE, b"1"), b"mine": (FILE, b"1")})
    state = publish(repo, "other", {b"f": (FILE, b"2"), b"mine": (FILE, b"1")})
    base = repo.worktree_base()
    repo.publish(
        thread="main", expected=base, new=state, kind="capture", message="", attribution=ADA
    )
    (repo.path / "mine").write_bytes(b"unsaved")

    assert switch(repo, "main").changed_paths == 1
    assert repo.worktree_base() == state
    assert kinds(repo) == [("modified", b"mine")]


def test_create_begins_where_we_are(repo: Repository) -> None:
    """--create makes a thread at the directory's state; unsaved changes go along."""
    standing_on(repo, {b"f": (FILE, b"1")})
    (repo.path / "f").write_bytes(b"unsaved")
    base = repo.worktree_base()

    assert switch(repo, "fix", create=True).state == base
    assert (repo.head, repo.threads.get("fix").state) == ("fix", base)
    assert kinds(repo) == [("modified", b"f")]


def test_bad_names(repo: Repository) -> None:
    """A thread that is not there, is there, or can't be is refused."""
    with pytest.raises(ThreadNotFound):
        switch(repo, "nowhere")
    with pytest.raises(ThreadExists):
        switch(repo, "main", create=True)
    with pytest.raises(InvalidName):
        switch(repo, "a..b", create=True)


HOSTILE = [b".", b"..", b".git", b".GiT", b".heddle", b".HEDDLE", b"x" * 256]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused(repo: Repository, name: bytes) -> None:
    """A tree with a name that leads elsewhere, or is ours, is not written, no part of it."""
    standing_on(repo, {b"f": (FILE, b"1")})
    with repo.store.writer() as writer:
        blob = writer.add_blob(b"hostile")
        inner = writer.add_tree([(name, 0o100644, blob)])
        tree = writer.add_tree([(b"ok", 0o100644, blob), (b"d", 0o040000, inner)])
        writer.commit()
    publish(repo, "hostile", tree)
    outside = sorted(os.listdir(repo.path.parent))

    with pytest.raises(DataError, match="not written"):
        switch(repo, "hostile")
    assert read_files(repo.path) == {b"f": (FILE, b"1")}
    assert sorted(os.listdir(repo.path.parent)) == outside


def test_own_names_that_go_are_not_touched(repo: Repository) -> None:
    """Leaving a state that claims our own files leaves these files alone."""
    own = publish(repo, "own", {b".heddle/heddle.db": (FILE, b"x"), b"f": (FILE, b"1")})
    repo.move_head("own", base=own)
    write_files(repo.path, {b"f": (FILE, b"1")})

    switch(repo, "main")
    assert read_files(repo.path) == {}
    assert repo.head == "main"


def test_stat_cache_of_another_tree_is_not_believed(repo: Repository, monkeypatch) -> None:
    """A remembered stat tells that a file is unchanged against the tree it was remembered for only."""
    write_files(repo.path, {b"f": (FILE, b"1")})
    later = os.stat(repo.path).st_ctime_ns + 10**12
    monkeypatch.setattr(reading.time, "time_ns", lambda: later)
    capture_worktree(repo, attribution=ADA)
    repo.move_head("main", base=publish(repo, "second", {b"f": (FILE, b"2")}))
    publish(repo, "third", {b"f": (FILE, b"3")})

    with pytest.raises(UnsavedChanges):
        switch(repo, "third")
    assert read_files(repo.path) == {b"f": (FILE, b"1")}


def test_links_in_a_tree_do_not_lead_outside(repo: Repository, tmp_path: Path) -> None:
    """A directory that replaces a link to the outside is made inside."""
    outside = tmp_path / "outside"
    outside.mkdir()
    standing_on(repo, {b"d": (SYMLINK, os.fsencode(outside))})
    publish(repo, "other", {b"d/f": (FILE, b"1")})

    switch(repo, "other")
    assert not list(outside.iterdir())
    assert read_files(repo.path) == {b"d/f": (FILE, b"1")}


SWITCH = """
import sys
from pathlib import Path
from heddle.repo.repository import Repository
from heddle.repo.switch import _Move, switch
switch(Repository.open(Path(sys.argv[1])), "other")
"""
CRASHING_OLD = {**OLD, b"l": (SYMLINK, b"x"), b"e": (DIRECTORY, b""), b"swap/a": (FILE, b"1")}
CRASHING_NEW = {**NEW, b"l": (FILE, b"x"), b"e": (FILE, b"y"), b"swap": (FILE, b"1")}
POINTS = [
    "switch.staged", "switch.one-removed", "switch.one-removed@3", "switch.removed",
    "switch.one-written", "switch.one-written@4", "switch.before-head",
    "database.before-commit", "database.after-commit",
]  # fmt: skip


@pytest.mark.parametrize("point", POINTS)
def test_killed_switch_is_finished_by_running_it_again(repo: Repository, point: str) -> None:
    """Wherever it dies, HEAD and base agree, each file is whole, and the same switch finishes it."""
    standing_on(repo, CRASHING_OLD)
    base = repo.worktree_base()
    state = publish(repo, "other", CRASHING_NEW)
    repo.close()
    killed_at(point, SWITCH, repo.path)

    assert (repo.head, repo.worktree_base()) in [("main", base), ("other", state)]
    whole = {*CRASHING_OLD.items(), *CRASHING_NEW.items()}
    found = read_files(repo.path)
    assert {item for item in found.items() if item[1][0] != DIRECTORY} <= whole
    switch(repo, "other")
    assert read_files(repo.path) == CRASHING_NEW
    assert kinds(repo) == []
    assert not (repo.heddle_dir / "switch").exists()


def test_failing_disk_changes_nothing(repo: Repository) -> None:
    """When the new files can't all be written, nothing has changed and the error says so."""
    standing_on(repo, {b"f": (FILE, b"1")})
    publish(repo, "other", {b"f": (FILE, b"2"), b"large": (FILE, os.urandom(1 << 20))})
    limited = (
        f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, 1 << 19)){SWITCH}"
    )
    repo.close()
    done = run_script(limited, repo.path)

    assert "StorageError: switching to 'other' stopped" in done.stderr
    assert repo.head == "main"
    assert read_files(repo.path) == {b"f": (FILE, b"1")}
    assert not (repo.heddle_dir / "switch").exists()


def test_missing_object_is_named(repo: Repository) -> None:
    """A state whose file is in no pack is an error that names the object, before anything changes."""
    standing_on(repo, {b"f": (FILE, b"1")})
    with repo.store.writer() as writer:
        tree = writer.add_tree([(b"f", 0o100644, b"1" * 40)])
        writer.commit()
    publish(repo, "broken", tree)

    with pytest.raises(StorageError, match="1111111111"):
        switch(repo, "broken")
    assert read_files(repo.path) == {b"f": (FILE, b"1")}


NAMES = [b"a", b"b", b"a.b", b"\xff"]
CONTENT = st.one_of(
    st.tuples(st.sampled_from([FILE, EXECUTABLE]), st.sampled_from([b"", b"1", b"2\n"])),
    st.tuples(st.just(SYMLINK), st.sampled_from([b"a", b"../b"])),
    st.just((DIRECTORY, b"")),
)


@st.composite
def trees(draw) -> dict[bytes, tuple[int, bytes]]:
    """Small trees in which kinds of entries meet at the same paths."""
    files: dict[bytes, tuple[int, bytes]] = {}
    for _ in range(draw(st.integers(0, 7))):
        path = b"/".join(draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3)))
        taken = any(
            path == p or p.startswith(path + b"/") or path.startswith(p + b"/") for p in files
        )
        if not taken:
            files[path] = draw(CONTENT)
    return files


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(old=trees(), new=trees())
def test_any_tree_becomes_any_other(old, new) -> None:
    """From any tree to any other and back, the directory holds exactly the tree."""
    top = Path(tempfile.mkdtemp())
    try:
        repo = Repository.init(top)
        publish(repo, "old", old)
        publish(repo, "new", new)
        for thread, files in [("old", old), ("new", new), ("old", old)]:
            switch(repo, thread)
            assert read_files(top) == files
            assert kinds(repo) == []
        repo.close()
    finally:
        shutil.rmtree(top)


@pytest.mark.parametrize("change", [modify, Path.unlink, make_directory])
@pytest.mark.parametrize("name", ["f", "dies"])
def test_changes_made_meanwhile_are_not_overwritten(repo, monkeypatch, name, change) -> None:
    """What a program writes after the check and before its turn stops the switch, and is kept."""
    standing_on(repo, {b"f": (FILE, b"1"), b"dies": (FILE, b"1")})
    publish(repo, "other", {b"f": (FILE, b"2")})
    real = _Move._stage

    def meddle(move, staged):
        real(move, staged)
        change(repo.path / name)

    monkeypatch.setattr(_Move, "_stage", meddle)
    with pytest.raises(UnsavedChanges, match=f"^{name} was changed while"):
        switch(repo, "other")
    assert repo.head == "main"
    if change is modify:
        assert (repo.path / name).read_bytes() == b"unsaved"


def test_another_file_system_inside(repo: Repository, monkeypatch) -> None:
    """Where a directory is on another file system, files are copied there and then renamed."""
    standing_on(repo, {b"f": (FILE, b"1"), b"l": (SYMLINK, b"1")})
    new = {b"f": (EXECUTABLE, b"2"), b"l": (SYMLINK, b"2"), b"d/n": (FILE, b"2")}
    publish(repo, "other", new)
    real = os.rename

    def refuse(source, target, **options):
        if "src_dir_fd" not in options:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return real(source, target, **options)

    monkeypatch.setattr(os, "rename", refuse)
    switch(repo, "other")
    monkeypatch.undo()
    assert read_files(repo.path) == new
    assert kinds(repo) == []
