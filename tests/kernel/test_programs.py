"""Programs that people run all day, run in a mount: git, make, npm, sqlite, tar, rsync, python -m venv."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import heddle
from heddle import api


def run(cwd: Path, *arguments: str | Path, code: int = 0, **options: Any) -> str:
    """Run a program to its end; returns what it printed. Fails unless it exits with ``code``."""
    done = subprocess.run(
        [*map(str, arguments)],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        **options,
    )
    assert done.returncode == code, (arguments, done.returncode, done.stdout)
    printed: str = done.stdout
    return printed


def captured_names(repo: api.Repository, thread: str, path: bytes = b"") -> list[bytes]:
    tree = repo.lookup_path(thread, path)[1] if path else repo.state(thread).tree
    return [name for name, _mode, _id in repo.store.tree_entries(tree)]


def changed(where: Path) -> list[bytes]:
    return [change.path for change in heddle.open(where).status().changes]


# git


def test_git_in_a_mount(repo: api.Repository, mounted: Any) -> None:
    """git makes a repository in a mount, packs it and finds it whole; no capture ever holds its ``.git``."""
    where = mounted("agent-1").mountpoint
    git = ["git", "-c", "user.name=Ann", "-c", "user.email=ann@example.org", "-c", "gc.auto=0"]
    (where / "src").mkdir()
    for number in range(50):
        (where / "src" / f"{number}.txt").write_text(f"line {number}\n" * number)

    run(where, *git, "init", "-q", "-b", "trunk")
    run(where, *git, "add", "-A")
    run(where, *git, "commit", "-q", "-m", "first")
    assert run(where, *git, "status", "--porcelain") == ""
    captured = repo.capture(message="with git below", thread="agent-1")
    assert run(where, *git, "status", "--porcelain") == ""

    (where / "src" / "7.txt").write_text("other\n")
    (where / "src" / "8.txt").unlink()
    assert run(where, *git, "status", "--porcelain") == " M src/7.txt\n D src/8.txt\n"
    assert changed(where) == [b"src/7.txt", b"src/8.txt"]
    run(where, *git, "commit", "-q", "-a", "-m", "second")
    run(where, *git, "checkout", "-q", "-b", "side", "HEAD~1")
    assert changed(where) == []
    run(where, *git, "repack", "-q", "-a", "-d")
    run(where, *git, "fsck", "--strict", "--full")

    assert captured.added == 50
    assert captured_names(repo, "agent-1") == [b"src"]
    repo.unmount("agent-1")
    where = mounted("agent-1").mountpoint
    run(where, *git, "fsck", "--strict", "--full")
    assert run(where, *git, "log", "--format=%s", "trunk").splitlines() == ["second", "first"]


def test_git_sees_the_id_that_the_capture_has(repo: api.Repository, mounted: Any) -> None:
    """The tree that git writes of a mount is the tree of its capture."""
    where = mounted("agent-1").mountpoint
    (where / "a").write_text("a")
    (where / "bin").mkdir()
    (where / "bin" / "run").write_text("#!/bin/sh\n")
    (where / "bin" / "run").chmod(0o755)
    (where / "bin" / "link").symlink_to("../a")
    run(where, "git", "init", "-q")
    run(where, "git", "add", "-A")
    tree = run(where, "git", "write-tree").strip()

    assert repo.capture(message="m", thread="agent-1").state.tree == tree.encode()


def test_the_index_of_git_stays_valid(repo: api.Repository, mounted: Any) -> None:
    """After a capture, a remount and a second capture git finds every file by its stat as the index has it."""
    where = mounted("agent-1").mountpoint
    git = ["git", "-c", "user.name=Ann", "-c", "user.email=ann@example.org"]
    (where / "src").mkdir()
    for number in range(20):
        (where / "src" / f"{number}.txt").write_text(f"line {number}\n" * number)
    repo.capture(message="before git", thread="agent-1")
    (where / "src" / "0.txt").write_text("changed\n")
    (where / "new").write_text("new\n")
    run(where, *git, "init", "-q")
    run(where, *git, "add", "-A")
    run(where, *git, "commit", "-q", "-m", "all")

    def stale() -> str:
        """What git would have to read again: diff-files, unlike status, refreshes nothing."""
        return run(where, *git, "diff-files", "--name-only")

    assert stale() == ""
    repo.capture(message="all", thread="agent-1")
    assert stale() == ""
    repo.unmount("agent-1")
    where = mounted("agent-1").mountpoint
    assert stale() == ""
    (where / "new").write_text("newer\n")
    assert stale() == "new\n"
    repo.capture(message="newer", thread="agent-1")
    assert stale() == "new\n"


# make and a compiler

MAKEFILE = """\
CFLAGS = -O0
build/hello: build/main.o build/greet.o
\tcc -o $@ $^
build/%.o: src/%.c src/greet.h
\t@mkdir -p build
\tcc $(CFLAGS) -c -o $@ $<
"""
SOURCES = {
    "Makefile": MAKEFILE,
    ".gitignore": "build/\n",
    "src/greet.h": "const char *greet(void);\n",
    "src/greet.c": '#include "greet.h"\nconst char *greet(void) { return "hello"; }\n',
    "src/main.c": '#include <stdio.h>\n#include "greet.h"\nint main(void) { puts(greet()); return 0; }\n',
}


def write_project(where: Path) -> None:
    (where / "src").mkdir()
    for name, text in SOURCES.items():
        (where / name).write_text(text)


@pytest.mark.parametrize("begun", ["in the working directory", "in the mount"])
def test_make_has_nothing_to_do(repo: api.Repository, mounted: Any, begun: str) -> None:
    """After a build make has nothing to do: not after a capture, nor a remount, nor a second capture; objects stay."""
    if begun == "in the working directory":
        write_project(repo.path)
        repo.capture(message="project")
        repo.threads.create("agent-1", repo.threads.get("main").state)
        where = mounted("agent-1").mountpoint
    else:
        where = mounted("agent-1").mountpoint
        write_project(where)
    run(where, "make", "-s")
    assert run(where, "./build/hello") == "hello\n"
    repo.capture(message="built", thread="agent-1", allow_empty=True)
    run(where, "make", "-q")

    repo.unmount("agent-1")
    where = mounted("agent-1").mountpoint
    run(where, "make", "-q")
    assert changed(where) == []

    text = SOURCES["src/greet.c"].replace("hello", "good day")
    (where / "src" / "greet.c").write_text(text)
    run(where, "make", "-q", code=1)
    said = run(where, "make")
    assert ("greet.o" in said, "main.c" in said) == (True, False)
    repo.capture(message="greets better", thread="agent-1")
    run(where, "make", "-q")
    repo.unmount("agent-1")
    where = mounted("agent-1").mountpoint
    run(where, "make", "-q")

    assert run(where, "./build/hello") == "good day\n"
    assert captured_names(repo, "agent-1") == [b".gitignore", b"Makefile", b"src"]


def test_make_after_a_capture_between_two_steps(repo: api.Repository, mounted: Any) -> None:
    """A capture between the edit of a source and the build hides nothing from make: it builds what is out of date."""
    where = mounted("agent-1").mountpoint
    write_project(where)
    run(where, "make", "-s")
    repo.capture(message="built", thread="agent-1")
    (where / "src" / "greet.h").write_text(SOURCES["src/greet.h"] + "/* more */\n")
    repo.capture(message="edited", thread="agent-1")
    repo.unmount("agent-1")
    where = mounted("agent-1").mountpoint

    run(where, "make", "-q", code=1)
    run(where, "make", "-s")
    run(where, "make", "-q")


def test_links_that_take_the_place_of_files(repo: api.Repository, mounted: Any) -> None:
    """As build tools do it, link(2) to a new name and rename(2) over the old one: the new file is under both names."""
    where = mounted("agent-1").mountpoint
    (where / "deps").mkdir()
    (where / "app").write_text("captured")
    repo.capture(message="m", thread="agent-1")
    for again in range(3):
        made = where / "deps" / f"app-{again}"
        made.write_text(f"build {again}")
        os.link(made, where / "app.new")
        os.rename(where / "app.new", where / "app")
        os.link(where / "app", where / "app.new")
        os.rename(
            where / "app.new", where / "app"
        )  # two names of one file: nothing happens, both stay
        (where / "app.new").unlink()
        assert made.stat().st_ino == (where / "app").stat().st_ino
        assert (where / "app").stat().st_nlink == 2
        repo.capture(message=f"build {again}", thread="agent-1")

    repo.unmount("agent-1")
    where = mounted("agent-1").mountpoint
    twin = where / "deps" / "app-2"
    assert (where / "app").read_text() == twin.read_text() == "build 2"
    assert (twin.stat().st_ino, twin.stat().st_nlink) == ((where / "app").stat().st_ino, 2)
    assert (where / "deps" / "app-1").stat().st_nlink == 1
    with open(where / "app", "a") as file:
        file.write("!")
    assert twin.read_text() == "build 2!"
    assert changed(where) == [b"app", b"deps/app-2"]


def test_npm_installs_a_package_of_ones_own(repo: api.Repository, mounted: Any) -> None:
    """npm packs a package, installs it without a network and runs it, and has nothing to do after a remount."""
    where = mounted("agent-1").mountpoint
    (where / "tool").mkdir()
    (where / "tool" / "package.json").write_text(
        '{"name": "tool", "version": "1.0.0", "bin": {"tool": "run.js"}, "main": "run.js"}'
    )
    (where / "tool" / "run.js").write_text(
        "#!/usr/bin/env node\nconsole.log('ran ' + __filename)\n"
    )
    run(where, "npm", "pack", "./tool")
    (where / "project").mkdir()
    (where / "project" / "package.json").write_text('{"name": "p", "version": "1.0.0"}')
    (where / ".gitignore").write_text("node_modules/\n")
    npm = ["npm", "install", "--offline", "--no-audit", "--no-fund"]
    run(where / "project", *npm, "../tool-1.0.0.tgz")
    expected = f"ran {where}/project/node_modules/tool/run.js\n"

    assert run(where / "project", "node_modules/.bin/tool") == expected
    repo.capture(message="m", thread="agent-1")
    repo.unmount("agent-1")
    where = mounted("agent-1").mountpoint
    assert run(where / "project", "node_modules/.bin/tool") == expected
    assert "up to date" in run(where / "project", *npm)
    assert changed(where) == []


# sqlite

WRITER = """\
import sqlite3, sys
name, mark, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
db = sqlite3.connect(name, timeout=60, isolation_level=None)
for number in range(count):
    db.execute("BEGIN IMMEDIATE")
    db.execute("INSERT INTO t VALUES (?, ?, ?)", (mark, number, "x" * (number * 37 % 3000)))
    db.execute("UPDATE total SET n = n + 1")
    db.execute("COMMIT")
db.close()
"""


def new_database(path: Path, journal: str) -> None:
    with sqlite3.connect(path) as db:
        assert db.execute(f"PRAGMA journal_mode = {journal}").fetchone() == (journal,)
        db.execute("CREATE TABLE t (who TEXT, number INTEGER, filler TEXT)")
        db.execute("CREATE TABLE total (n INTEGER)")
        db.execute("INSERT INTO total VALUES (0)")
    db.close()


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_two_processes_write_one_database(repo: api.Repository, mounted: Any, journal: str) -> None:
    """Two processes write a database in a mount while captures run: no row is missing, and it is whole."""
    done = mounted("agent-1")
    where, name = done.mountpoint, done.mountpoint / "data.db"
    new_database(name, journal)
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, name, mark, "150"], cwd=where)
        for mark in ("a", "b")
    ]
    captures = 0
    try:
        while any(writer.poll() is None for writer in writers):
            repo.capture(message="in the middle", thread="agent-1", allow_empty=True)
            captures += 1
    finally:
        codes = [writer.wait(60) for writer in writers]
    assert codes == [0, 0]
    assert captures > 0

    for again in (False, True):
        query = "PRAGMA integrity_check; SELECT n FROM total; SELECT count(*), count(DISTINCT who || number) FROM t"
        assert run(where, "sqlite3", "data.db", query).split() == ["ok", "300", "300|300"]
        if not again:
            repo.capture(message="end", thread="agent-1", allow_empty=True)
            repo.unmount("agent-1")
            where = mounted("agent-1").mountpoint


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_a_capture_in_the_middle_of_a_transaction(
    repo: api.Repository, mounted: Any, tmp_path: Path, journal: str
) -> None:
    """A state taken while a transaction is half written opens as it was before the transaction, and is whole."""
    where = mounted("agent-1").mountpoint
    new_database(where / "data.db", journal)
    db = sqlite3.connect(where / "data.db", isolation_level=None)
    db.execute("PRAGMA cache_size = 5")  # pages, so that a transaction's are written before its end
    db.execute("INSERT INTO t VALUES ('before', 1, '')")
    db.execute("BEGIN")
    db.executemany("INSERT INTO t VALUES ('open', ?, ?)", [(n, "y" * 3000) for n in range(200)])
    db.execute("UPDATE t SET filler = 'changed'")
    repo.capture(message="half way", thread="agent-1")
    db.execute("COMMIT")

    out = tmp_path / "out"
    out.mkdir()
    names = captured_names(repo, "agent-1")
    for entry in names:
        blob = repo.lookup_path("agent-1", entry)[1]
        (out / os.fsdecode(entry)).write_bytes(b"".join(repo.store.iter_blob(blob)))
    query = "PRAGMA integrity_check; SELECT who, number, filler FROM t"
    assert (b"data.db-wal" if journal == "wal" else b"data.db-journal") in names
    assert run(out, "sqlite3", "data.db", query).split() == ["ok", "before|1|"]
    assert db.execute("SELECT count(*) FROM t WHERE filler = 'changed'").fetchone() == (201,)
    db.close()


# archives and copies


def write_odd_tree(top: Path) -> None:
    """Files of many kinds, made for being copied."""
    (top / "d" / "e").mkdir(parents=True)
    (top / "empty").mkdir()
    (top / "d" / "large").write_bytes(os.urandom(2_000_000))
    (top / "d" / "e" / "none").write_bytes(b"")
    (top / "d" / "run").write_text("#!/bin/sh\n")
    (top / "d" / "run").chmod(0o751)
    (top / "d" / "link").symlink_to("e/none")
    (top / "dangling").symlink_to("nowhere/at/all")
    os.link(top / "d" / "large", top / "hard")
    os.mkfifo(top / "pipe")
    with open(os.path.join(os.fsencode(top), b"caf\xe9"), "wb") as file:
        file.write(b"latin-1")
    with open(top / "sparse", "wb") as file:
        file.seek(3_000_000)
        file.write(b"end")
    os.setxattr(top / "d" / "run", "user.note", b"kept\0byte")
    os.setxattr(top / "empty", "user.dir", b"also")
    os.utime(top / "d" / "run", ns=(1_000_000_000_123_456_789, 1_111_111_111_987_654_321))
    os.utime(top / "d", ns=(1_200_000_000_000_000_001, 1_200_000_000_000_000_002))


def test_tar_there_and_back(repo: api.Repository, mounted: Any, tmp_path: Path) -> None:
    """tar finds what it archived equal after it was extracted in a mount, captured and mounted again."""
    source = tmp_path / "source"
    source.mkdir()
    write_odd_tree(source)
    options = ["--xattrs", "--sparse", "--format=posix"]
    run(source, "tar", *options, "-cf", tmp_path / "there.tar", ".")

    where = mounted("agent-1").mountpoint
    (where / "copy").mkdir()
    run(where / "copy", "tar", *options, "-xpf", tmp_path / "there.tar")
    assert run(where / "copy", "tar", *options, "--compare", "-f", tmp_path / "there.tar") == ""
    run(where / "copy", "tar", *options, "-cf", where / "back.tar", ".")
    assert run(source, "tar", *options, "--compare", "-f", where / "back.tar") == ""

    repo.capture(message="m", thread="agent-1")
    assert run(where / "copy", "tar", *options, "--compare", "-f", where / "back.tar") == ""
    repo.unmount("agent-1")
    where = mounted("agent-1").mountpoint
    assert run(where / "copy", "tar", *options, "--compare", "-f", where / "back.tar") == ""


def test_rsync_there_and_back(repo: api.Repository, mounted: Any, tmp_path: Path) -> None:
    """rsync -aHAX copies a tree into a mount and back; a dry run with checksums finds no difference anywhere."""
    source, back = tmp_path / "source", tmp_path / "back"
    source.mkdir()
    write_odd_tree(source)
    where = mounted("agent-1").mountpoint / "copy"

    def differences(one: Path, other: Path) -> str:
        return run(tmp_path, "rsync", "-aHAXnic", "--delete", f"{one}/", f"{other}/")

    run(tmp_path, "rsync", "-aHAX", f"{source}/", f"{where}/")
    assert differences(source, where) == ""
    repo.capture(message="m", thread="agent-1")
    assert differences(source, where) == ""
    run(tmp_path, "rsync", "-aHAX", f"{where}/", f"{back}/")
    assert differences(source, back) == ""
    assert (back / "hard").stat().st_ino == (back / "d" / "large").stat().st_ino

    (source / "hard").unlink()
    (source / "empty").rmdir()
    (source / "new").write_text("new")
    (source / "d" / "e" / "none").write_text("some")
    run(tmp_path, "rsync", "-aHAX", "--delete", f"{source}/", f"{where}/")
    assert differences(source, where) == ""
    assert changed(where) == [b"copy/d/e/none", b"copy/empty", b"copy/hard", b"copy/new"]


# programs that live in the mount


def test_a_virtual_environment(repo: api.Repository, mounted: Any) -> None:
    """A virtual environment made in a mount runs its own Python, also after a capture and another mount."""
    where = mounted("agent-1").mountpoint
    run(where, sys.executable, "-m", "venv", "--without-pip", "env")
    packages = next((where / "env" / "lib").glob("python*/site-packages"))
    (packages / "here.py").write_text("found = __file__\n")
    program = "import here, sys; print(sys.prefix); print(here.found)"
    expected = f"{where / 'env'}\n{packages / 'here.py'}\n"

    assert run(where, "env/bin/python", "-c", program) == expected
    repo.capture(message="m", thread="agent-1")
    assert run(where, "env/bin/python", "-c", program) == expected
    repo.unmount("agent-1")
    assert mounted("agent-1").mountpoint == where
    assert run(where, "env/bin/python", "-c", program) == expected


def test_programs_are_executed_from_the_mount(repo: api.Repository, mounted: Any) -> None:
    """A script by its shebang and a compiled binary run from a mount: fresh, captured, mounted again."""
    where = mounted("agent-1").mountpoint
    (where / "script").write_text('#!/bin/sh\necho "script $1"\n')
    (where / "script").chmod(0o755)
    (where / "main.c").write_text(
        '#include <stdio.h>\nint main(void) { puts("ready"); fflush(stdout); getchar(); return 7; }\n'
    )
    run(where, "gcc", "-o", "binary", "main.c")
    with subprocess.Popen(
        [where / "binary"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/"
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"ready\n"
        with pytest.raises(OSError, match="Text file busy"):
            (where / "binary").open("r+b")
        repo.capture(message="m", thread="agent-1")
        running.communicate(b"\n", timeout=60)
    assert running.returncode == 7

    for again in (False, True):
        assert run(where, "./script", "one") == "script one\n"
        assert run(where, "./binary", code=7) == "ready\n"
        if not again:
            repo.unmount("agent-1")
            where = mounted("agent-1").mountpoint
    (where / "script").chmod(0o644)
    with pytest.raises(PermissionError):
        run(where, "./script")
    assert changed(where) == [b"script"]
