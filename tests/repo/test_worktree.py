"""Status of the plain working directory: every kind of change, and nothing read that need not be."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest
from histories import ADA, COMMIT
from trees import DIRECTORY, EXECUTABLE, FILE, GITLINK, SYMLINK, git, store_tree, write_files

from heddle.repo import reading, worktree
from heddle.repo.capture import capture_worktree
from heddle.repo.repository import Repository
from heddle.repo.statcache import UNKNOWN, Remembered, StatCache, is_settled
from heddle.repo.worktree import status

LONG_AGO_NS = 1_600_000_000_000_000_001


def start(repo: Repository, files) -> None:
    """Capture these files on main."""
    write_files(repo.path, files)
    capture_worktree(repo, attribution=ADA)


def set_base(repo: Repository, files) -> None:
    """Make main's state hold these files, whatever the working directory holds."""
    tree = store_tree(repo.store, files)
    with repo.store.writer() as writer:
        head = b"tree %b\nauthor A <a@b> 1 +0000\ncommitter A <a@b> 1 +0000\n\n"
        state = writer.add(COMMIT, head % tree)
        writer.commit()
    repo.publish(
        thread="main",
        expected=repo.threads.get("main").state,
        new=state,
        kind="capture",
        message="",
        attribution=ADA,
        worktree_base=True,
    )


def found(repo: Repository, **options) -> list[tuple[str, bytes, bytes | None]]:
    """(kind, path, old path) of every change."""
    return [(c.kind, c.path, c.old_path) for c in status(repo, **options).changes]


def replace_with(kind: int, content: bytes = b""):
    def change(path: Path) -> None:
        path.unlink()
        write_files(path.parent, {os.fsencode(path.name): (kind, content)})

    return change


def move(to: str):
    def change(path: Path) -> None:
        target = path.parent / to
        target.parent.mkdir(exist_ok=True)
        path.rename(target)

    return change


BASE = {
    b"f": (FILE, b"twelve bytes"),
    b"d/x": (EXECUTABLE, b"#!"),
    b"d/e/y": (FILE, b"y"),
    b"l": (SYMLINK, b"f"),
    b"empty": (DIRECTORY, b""),
}
CHANGES = {
    "nothing": ("f", lambda path: None, []),
    "touched": ("f", os.utime, []),
    "rewritten": ("f", lambda path: path.write_bytes(b"twelve bytes"), []),
    "same size": ("f", lambda path: path.write_bytes(b"TWELVE bytes"), [("modified", b"f", None)]),
    "longer": ("f", lambda path: path.write_bytes(b"more"), [("modified", b"f", None)]),
    "executable": ("f", lambda path: path.chmod(0o755), [("modified", b"f", None)]),
    "no longer executable": ("d/x", lambda path: path.chmod(0o644), [("modified", b"d/x", None)]),
    "other permissions": ("f", lambda path: path.chmod(0o600), []),
    "deleted": ("f", Path.unlink, [("deleted", b"f", None)]),
    "link elsewhere": ("l", replace_with(SYMLINK, b"d"), [("modified", b"l", None)]),
    "link instead": ("f", replace_with(SYMLINK, b"d"), [("type-changed", b"f", None)]),
    "file instead": ("l", replace_with(FILE, b"f"), [("type-changed", b"l", None)]),
    "directory instead": (
        "f",
        replace_with(DIRECTORY),
        [("type-changed", b"f", None)],
    ),
    "full directory instead": (
        "f",
        lambda path: (path.unlink(), path.mkdir(), (path / "g").touch()),
        [("deleted", b"f", None), ("added", b"f/g", None)],
    ),
    "file instead of a directory": (
        "d",
        lambda path: (subprocess.run(["rm", "-r", path], check=True), path.touch()),
        [("added", b"d", None), ("deleted", b"d/e/y", None), ("deleted", b"d/x", None)],
    ),
    "fifo instead": (
        "f",
        lambda path: (path.unlink(), os.mkfifo(path)),
        [("deleted", b"f", None)],
    ),
    "new file": ("new", Path.touch, [("added", b"new", None)]),
    "new link": ("new", lambda path: path.symlink_to("/"), [("added", b"new", None)]),
    "new empty directory": ("n/m", lambda p: p.mkdir(parents=True), [("added", b"n/m", None)]),
    "empty directory gone": ("empty", Path.rmdir, [("deleted", b"empty", None)]),
    "empty directory filled": ("empty/x", Path.touch, [("added", b"empty/x", None)]),
    "directory emptied": ("d/e/y", Path.unlink, [("deleted", b"d/e/y", None)]),
    "directory gone": (
        "d",
        lambda path: subprocess.run(["rm", "-r", path], check=True),
        [("deleted", b"d/e/y", None), ("deleted", b"d/x", None)],
    ),
    "moved": ("f", move("g"), [("renamed", b"g", b"f")]),
    "moved into a new directory": ("d/x", move("n/x"), [("renamed", b"d/n/x", b"d/x")]),
    "link moved": ("l", move("k"), [("renamed", b"k", b"l")]),
    "directory moved": (
        "d",
        move("D"),
        [("renamed", b"D/e/y", b"d/e/y"), ("renamed", b"D/x", b"d/x")],
    ),
    "odd name": ("\udcff\n", Path.touch, [("added", b"\xff\n", None)]),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("remembered", [True, False])
def test_kinds_of_change(repo: Repository, name: str, remembered: bool) -> None:
    """Each change of the directory shows as what it is, with the stat cache and without."""
    start(repo, BASE)
    if not remembered:
        with repo.database._connection.transaction() as sql:
            sql.execute("DELETE FROM worktree_cache")
    path, change, expected = CHANGES[name]
    change(repo.path / path)

    assert found(repo) == expected
    assert found(repo) == expected


def test_before_the_first_capture_everything_is_new(repo: Repository) -> None:
    """Against no state at all, every entry is an addition."""
    assert found(repo) == []
    write_files(repo.path, BASE)

    assert [(kind, path) for kind, path, _ in found(repo)] == [
        ("added", path) for path in sorted(BASE)
    ]


@pytest.fixture
def files_read(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Names of the files that are read from now on."""
    names: list[bytes] = []
    real = reading._take_file

    def noting(host: bytes, sink):
        names.append(os.path.basename(host))
        return real(host, sink)

    monkeypatch.setattr(reading, "_take_file", noting)
    return names


def age(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the files' times, which nobody can set back, be long ago: the present moves on."""
    later = os.stat(repo.path).st_ctime_ns + 10**12
    monkeypatch.setattr(reading.time, "time_ns", lambda: later)


def test_unchanged_files_are_read_once(repo, monkeypatch, files_read) -> None:
    """A second status of an unchanged directory reads no file and no tree."""
    write_files(repo.path, {b"%d/%d" % (d, n): (FILE, b"x") for d in range(5) for n in range(5)})
    age(repo, monkeypatch)
    capture_worktree(repo, attribution=ADA)
    assert len(files_read) == 25
    files_read.clear()
    trees = []
    real = type(repo.store).tree_entries
    monkeypatch.setattr(
        type(repo.store), "tree_entries", lambda s, i: trees.append(i) or real(s, i)
    )

    assert found(repo) == []
    assert (files_read, trees) == ([], [])
    (repo.path / "3/3").write_bytes(b"y")
    assert found(repo) == [("modified", b"3/3", None)]
    assert (files_read, trees) == ([b"3"], [])


def test_files_of_another_size_are_not_read(repo, monkeypatch, files_read) -> None:
    """A file whose length differs from its blob's has changed; only equal lengths are compared."""
    set_base(repo, {b"a": (FILE, b"1"), b"b": (FILE, b"1")})
    write_files(repo.path, {b"a": (FILE, b"12"), b"b": (FILE, b"2")})

    assert [path for _, path, _ in found(repo)] == [b"a", b"b"]
    assert files_read == [b"b"]


def test_what_status_verified_is_remembered(repo, monkeypatch, files_read) -> None:
    """Without a cache the first status reads what it must, and the next one nothing."""
    write_files(repo.path, {b"a": (FILE, b"1"), b"d/b": (FILE, b"1")})
    set_base(repo, {b"a": (FILE, b"1"), b"d/b": (FILE, b"1")})
    age(repo, monkeypatch)

    assert found(repo) == []
    assert len(files_read) == 2
    assert found(repo) == []
    assert len(files_read) == 2


def test_what_capture_verified_is_remembered(repo, monkeypatch, files_read) -> None:
    """A touched file that a capture read and found unchanged is not read again."""
    write_files(repo.path, {b"a": (FILE, b"1"), b"d/b": (FILE, b"1")})
    age(repo, monkeypatch)
    capture_worktree(repo, attribution=ADA)
    os.utime(repo.path / "d/b")
    (repo.path / "a").write_bytes(b"2")
    capture_worktree(repo, attribution=ADA)
    files_read.clear()

    assert found(repo) == []
    assert files_read == []


def test_another_base_keeps_what_still_holds(repo, monkeypatch, files_read) -> None:
    """After the base moved, files that both trees hold alike need not be read again."""
    write_files(repo.path, {b"d/a": (FILE, b"1"), b"d/b": (FILE, b"1")})
    age(repo, monkeypatch)
    capture_worktree(repo, attribution=ADA)
    files_read.clear()
    set_base(repo, {b"d/a": (FILE, b"1"), b"d/b": (FILE, b"2")})

    assert found(repo) == [("modified", b"d/b", None)]
    assert files_read == [b"b"]


def test_fresh_files_are_not_trusted(repo: Repository) -> None:
    """A file captured within a tick of its last change is read again: it may change unseen."""
    start(repo, {b"f": (FILE, b"1")})

    row = StatCache(repo.database).get(b"")
    assert row is not None
    assert row.files == {b"f": UNKNOWN}


@pytest.mark.parametrize(
    ("newest_ns", "read_at_ns", "expected"),
    [
        (10**18 + 1, 10**18 + 2, False),
        (10**18 + 1, 10**18 + 10**8, True),
        (10**18, 10**18 + 10**8, False),  # whole seconds: a coarse clock
        (10**18, 10**18 + 3 * 10**9, True),
        (10**18 + 1, 10**17, False),  # a clock that is behind
    ],
)
def test_settled(newest_ns: int, read_at_ns: int, expected: bool) -> None:
    """A stat is trusted when its newest time is older than a tick of the clock behind it."""
    assert is_settled((0, 0, 0, newest_ns, 0), read_at_ns) is expected
    assert is_settled((0, 0, newest_ns, 0, 0), read_at_ns) is expected


@pytest.mark.parametrize("width", [40, 64])
def test_cache_rows_round_trip(width: int) -> None:
    """A row gives back names, modes, ids and stats, for both lengths of ids."""
    ids = [b"%0*d" % (width, number) for number in range(5)]
    entries = {
        b"f\xff": (FILE, ids[0]), b"d": (DIRECTORY, ids[1]), b"l": (SYMLINK, ids[2]),
        b"m": (GITLINK, ids[3]),
    }  # fmt: skip
    row = Remembered(ids[4], entries)
    row.files[b"f\xff"] = (0o100644, 2**40, -1, 2**62, 2**64 - 1)
    read = Remembered.decode(ids[4], row.encode())

    assert read.files == {b"f\xff": (0o100644, 2**40, -1, 2**62, 2**64 - 1), b"l": UNKNOWN}
    assert read.others == {b"d": (DIRECTORY, ids[1]), b"m": (GITLINK, ids[3])}
    assert read.entries() == entries
    assert Remembered.decode(ids[4], Remembered(ids[4], {}).encode()).entries() == {}


@pytest.mark.parametrize("damage", [b"", b"x", b"\xff" * 100, b"\1\0\0\0\1\0\0\0"])
def test_damaged_cache_is_ignored(repo: Repository, damage: bytes) -> None:
    """A row that can't be read costs time only."""
    start(repo, BASE)
    with repo.database._connection.transaction() as sql:
        sql.execute("UPDATE worktree_cache SET entries = ?", (damage,))

    assert found(repo) == []


def test_directories_that_are_gone_are_forgotten(repo: Repository) -> None:
    """The cache keeps no rows of directories that no longer exist."""
    start(repo, BASE)
    subprocess.run(["rm", "-r", repo.path / "d"], check=True)
    capture_worktree(repo, attribution=ADA)

    rows = {row.path for row in repo.database.cached_directories()}
    assert rows == {b"", b"empty"}


def test_ignored_entries_are_counted_once(repo: Repository) -> None:
    """Ignored files and directories are left out and counted; what was captured is never ignored."""
    start(repo, {b"tracked.o": (FILE, b"1"), b"out/tracked": (FILE, b"1")})
    write_files(
        repo.path,
        {
            b".gitignore": (FILE, b"*.o\nout/\n"),
            b".heddleignore": (FILE, b"!keep.o\n"),
            b"x.o": (FILE, b""),
            b"keep.o": (FILE, b""),
            b"d/out/deep/down": (FILE, b""),
            b"out/new": (FILE, b""),
        },
    )
    (repo.path / "tracked.o").write_bytes(b"2")
    (repo.path / "out/tracked").write_bytes(b"2")

    assert [path for _, path, _ in found(repo)] == [
        b".gitignore", b".heddleignore", b"keep.o", b"out/tracked", b"tracked.o",
    ]  # fmt: skip
    assert status(repo).ignored_count == 3


def test_linked_rule_files_hold_no_rules(repo: Repository, tmp_path: Path) -> None:
    """A .gitignore that is a link is a link, as for git."""
    (tmp_path / "rules").write_bytes(b"*\n")
    write_files(repo.path, {b".gitignore": (SYMLINK, b"../rules"), b"f": (FILE, b"")})

    assert [path for _, path, _ in found(repo)] == [b".gitignore", b"f"]


def test_git_exclude_file_counts(tmp_path: Path) -> None:
    """On a git checkout .git/info/exclude holds rules too."""
    git(tmp_path, "init", "-q", "repo")
    repo = Repository.init(tmp_path / "repo")
    with (repo.path / ".git/info/exclude").open("a") as file:
        file.write("*.tmp\n")
    write_files(repo.path, {b"a.tmp": (FILE, b""), b"b": (FILE, b"")})

    assert [path for _, path, _ in found(repo)] == [b"b"]


def test_directories_with_only_ignored_things_are_not_recorded(repo: Repository) -> None:
    """A directory is recorded when it is empty, not when all it holds is ignored."""
    write_files(
        repo.path,
        {b".gitignore": (FILE, b"*.pyc\n"), b"cache/x.pyc": (FILE, b""), b"e": (DIRECTORY, b"")},
    )

    assert [path for _, path, _ in found(repo)] == [b".gitignore", b"e"]


def test_special_files_are_named(repo: Repository) -> None:
    """Fifos, sockets and devices can't be recorded, and status says which there are."""
    os.mkfifo(repo.path / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(repo.path / "socket"))
    left_out = {one.path: one.why for one in status(repo).not_recorded}

    assert left_out == {b"fifo": "a fifo", b"socket": "a socket"}
    assert found(repo) == []


def test_own_directories_are_invisible(repo: Repository) -> None:
    """.git and .heddle are never looked into, at any level; a nested repository is plain files."""
    write_files(
        repo.path,
        {b"sub/.git/config": (FILE, b""), b"sub/f": (FILE, b""), b"sub/.Heddle/x": (FILE, b"")},
    )

    assert [path for _, path, _ in found(repo)] == [b"sub/f"]


def test_own_names_in_a_tree_are_left_alone(repo: Repository) -> None:
    """A state with .git or .heddle in it does not make status look into ours."""
    set_base(repo, {b".heddle/x": (FILE, b"1"), b"d/.git": (FILE, b"1"), b"d/f": (FILE, b"1")})
    write_files(repo.path, {b"d/f": (FILE, b"1")})

    assert found(repo) == []


def test_gitlinks_are_kept(repo: Repository) -> None:
    """A link to another repository is unchanged while there is a directory, whatever is in it."""
    set_base(repo, {b"m": (GITLINK, b"1" * 40)})
    (repo.path / "m").mkdir()
    (repo.path / "m/file").touch()

    assert found(repo) == []
    (repo.path / "m/file").unlink()
    (repo.path / "m").rmdir()
    assert found(repo) == [("deleted", b"m", None)]
    (repo.path / "m").touch()
    assert found(repo) == [("type-changed", b"m", None)]


def test_what_was_captured_is_never_ignored(repo: Repository) -> None:
    """A rule that matches a captured path does not hide that it became another kind of thing."""
    set_base(repo, {b"m": (GITLINK, b"1" * 40), b"x.o": (FILE, b"1")})
    write_files(repo.path, {b"m": (FILE, b""), b".heddleignore": (FILE, b"m\n*.o\n.heddleignore")})
    os.mkfifo(repo.path / "x.o")

    assert found(repo) == [("type-changed", b"m", None), ("deleted", b"x.o", None)]
    assert [left.path for left in status(repo).not_recorded] == [b"x.o"]


def test_older_modes_are_not_changes(repo: Repository) -> None:
    """A group-writable file, as early versions of git recorded them, is unchanged."""
    set_base(repo, {b"f": (0o100664, b"1")})
    write_files(repo.path, {b"f": (FILE, b"1")})

    assert found(repo) == []


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ([b"d"], [("deleted", b"d/e/y"), ("added", b"d/n")]),
        ([b"d/e"], [("deleted", b"d/e/y")]),
        ([b"d/e/y", b"new"], [("deleted", b"d/e/y"), ("added", b"new")]),
        ([b"nowhere"], []),
        ([b"f/inside"], []),
    ],
)
def test_paths_restrict(repo: Repository, paths: list[bytes], expected) -> None:
    """Only what lies at or below the given paths is compared."""
    start(repo, BASE)
    (repo.path / "f").write_bytes(b"1")
    subprocess.run(["rm", "-r", repo.path / "d/e"], check=True)
    (repo.path / "d/n").touch()
    (repo.path / "new").touch()

    assert [(kind, path) for kind, path, _ in found(repo, paths=paths)] == expected


def test_paths_restrict_what_is_gone(repo: Repository) -> None:
    """Of a directory that is gone, only what was asked for counts as deleted."""
    start(repo, BASE)
    subprocess.run(["rm", "-r", repo.path / "d"], check=True)

    assert found(repo, paths=[b"d/e/y"]) == [("deleted", b"d/e/y", None)]


def test_mounts_inside_are_not_entered(repo, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount of ours inside the directory shows another thread's files; they are not ours to record."""
    write_files(repo.path, {b"agent/f": (FILE, b""), b"mine": (FILE, b"")})
    monkeypatch.setattr(
        worktree, "_heddle_mountpoints", lambda: frozenset({os.fsencode(repo.path / "agent")})
    )

    assert [path for _, path, _ in found(repo)] == [b"mine"]


def test_mountpoints_are_read_from_the_kernels_table() -> None:
    """Only our file system type counts; escaped names are decoded; others are left alone."""
    table = (
        b"36 35 98:0 / /mnt/a\\040b rw,noatime - fuse.heddle heddle:x:main rw\n"
        b"37 35 98:0 / /mnt/c rw shared:1 master:2 - fuse.heddle y rw\n"
        b"38 35 98:0 / /mnt/fuse.heddle rw - ext4 /dev/sda rw\n"
    )

    assert worktree.mountpoints_in(table) == {b"/mnt/a b", b"/mnt/c"}


def test_deep_directories(repo: Repository) -> None:
    """A thousand nested directories are no problem; a path too long for the system is named."""
    path = b"d/" * 1000 + b"f"
    try:
        deepen(repo.path, 1000)
        assert found(repo) == [("added", path, None)]
        capture_worktree(repo, attribution=ADA)
        assert found(repo) == []

        deepen(repo.path, 2500)
        [left] = status(repo).not_recorded
        assert left.why == "File name too long"
    finally:
        subprocess.run(["rm", "-rf", repo.path / "d"], check=True)


def deepen(top: Path, depth: int) -> None:
    """Nest directories named d, with a file f in the innermost."""
    fd = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        try:
            os.mkdir("d", dir_fd=fd)
        except FileExistsError:
            pass
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
