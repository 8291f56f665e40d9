"""A real tree and odd things beside it, captured, mounted, walked: equal in everything that a git tree can hold."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sysconfig
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import heddle
from heddle import api

ODD_NAMES = (
    b"caf\xe9",
    b"\xff\xfe\x80",
    "naïve ☃".encode(),
    b"new\nline",
    b"tab\tand \\ and \"quotes' ",
    b" leading",
    b"-dash",
    b"*?[a]",
    b"\x01\x7f",
    b"CON",
    b"n" * 255,
    b"\xc3" * 255,
)


class Entry(NamedTuple):
    """What a git tree can hold of one entry: type, executable bit, and bytes or link target (by digest)."""

    kind: str
    executable: bool
    content: bytes


CLOSED = {b"mode-600", b"mode-444", b"mode-100", b"mode-711"}
"""Of the odd things those whose mode lets fewer people in than a new file's."""


def walk(top: Path) -> dict[bytes, Entry]:
    """Every entry below a directory, empty directories among them, by its path in bytes."""
    root = os.fsencode(top)
    found: dict[bytes, Entry] = {}
    for directory, directories, files in os.walk(root):
        directories[:] = [name for name in directories if name not in (b".git", b".heddle")]
        for name in directories + files:
            path = os.path.join(directory, name)
            found[os.path.relpath(path, root)] = look(path)
    return found


def look(path: bytes) -> Entry:
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        target = os.readlink(path)
        assert status.st_size == len(target)
        return Entry("link", False, target)
    if stat.S_ISDIR(status.st_mode):
        return Entry("directory", False, b"")
    assert stat.S_ISREG(status.st_mode)
    with open(path, "rb") as file:
        content = file.read()
    assert status.st_size == len(content)
    return Entry("file", bool(status.st_mode & 0o100), hashlib.sha256(content).digest())


def copy_standard_library(top: Path) -> None:
    """Python's standard library, without what was installed into it or compiled from it."""
    source = Path(sysconfig.get_paths()["stdlib"])
    ignored = shutil.ignore_patterns("site-packages", "dist-packages", "__pycache__", ".git*")
    shutil.copytree(source, top / "lib", symlinks=True, ignore=ignored)


def write_odd_things(top: Path) -> None:
    """What a git tree can hold and a standard library has not."""
    odd = os.fsencode(top / "odd")
    os.mkdir(odd)
    for number, name in enumerate(ODD_NAMES):
        with open(os.path.join(odd, name), "wb") as file:
            file.write(b"%d" % number)
        os.makedirs(os.path.join(odd, b"dirs", name))
        with open(os.path.join(odd, b"dirs", name, name), "wb") as file:
            file.write(name)
    (top / "none").write_bytes(b"")
    (top / "large").write_bytes(os.urandom(5 * 1024 * 1024))
    (top / "zeros").write_bytes(bytes(5 * 1024 * 1024 + 1))
    for mode in (0o100, 0o755, 0o711, 0o644, 0o600, 0o444, 0o654):
        (top / f"mode-{mode:o}").write_text("#!/bin/sh\n")
        (top / f"mode-{mode:o}").chmod(mode)
    # in git's order of names a directory counts as if it ended in a slash
    for word in ("order", "order-", "order.d", "order0"):
        (top / word).mkdir()
        (top / word / "f").write_text(word)
        (top / f"{word}.txt").write_text(word)
    write_links(top)


def write_links(top: Path) -> None:
    (top / "links").mkdir()
    targets = {
        b"file": b"../none",
        b"directory": b"../odd",
        b"dangling": b"nowhere/\xff\xfe",
        b"absolute": b"/etc/passwd",
        b"self": b"self",
        b"long": b"t" * 4095,
        b"newline": b"a\nb\n",
        b"slashes": b"..//./none/",
    }
    for name, target in targets.items():
        os.symlink(target, os.path.join(os.fsencode(top), b"links", name))


def write_empty_directories(top: Path) -> None:
    (top / "hollow").mkdir()
    (top / "nested" / "in" / "nothing").mkdir(parents=True)
    (top / "nested" / "in" / "beside").mkdir()
    (top / "half" / "empty").mkdir(parents=True)
    (top / "half" / "file").write_text("x")


def git_tree(top: Path, scratch: Path) -> bytes:
    """The id that git gives the tree of a directory, with its index and objects elsewhere."""

    def git(*arguments: str) -> bytes:
        done = subprocess.run(
            ["git", f"--git-dir={scratch}", f"--work-tree={top}", *arguments],
            cwd=top,
            capture_output=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    subprocess.run(["git", "init", "-q", "--bare", scratch], check=True, timeout=60)
    (scratch / "info" / "exclude").write_text("/.heddle/\n")
    git("-c", "core.compression=0", "add", "--all", "--force", "--", ".", ":(exclude).heddle")
    return git("write-tree")


@pytest.fixture
def real_tree(repo: api.Repository) -> dict[bytes, Entry]:
    """What the working directory holds: the standard library and odd things, no empty directory."""
    copy_standard_library(repo.path)
    write_odd_things(repo.path)
    return walk(repo.path)


def assert_equal(found: dict[bytes, Entry], expected: dict[bytes, Entry]) -> None:
    """Fails with the few paths that differ, not with thousands that do not."""
    wrong = [path for path in found.keys() | expected if found.get(path) != expected.get(path)]
    assert [(path, found.get(path), expected.get(path)) for path in sorted(wrong)[:10]] == []


@pytest.mark.parametrize("read_only", [False, True], ids=["writable", "read-only"])
def test_a_captured_directory_is_what_a_mount_shows(
    repo: api.Repository,
    mounted: Any,
    tmp_path: Path,
    real_tree: dict[bytes, Entry],
    read_only: bool,
) -> None:
    """Name by name, type, bytes, executable bit and link target: a mount shows what was captured, nothing else."""
    write_empty_directories(repo.path)
    expected = walk(repo.path)
    captured = repo.capture(message="everything")
    done = mounted("main", tmp_path / "place", read_only=read_only)
    found = walk(done.mountpoint)

    assert {it.path for it in captured.not_recorded} == CLOSED
    assert len(expected) > 500
    assert {b"hollow", b"nested/in/nothing", b"nested/in/beside", b"half/empty"} <= expected.keys()
    assert expected.keys() >= real_tree.keys()
    assert_equal(found, expected)
    assert list(heddle.open(repo.path).status().changes) == []
    assert list(heddle.open(done.mountpoint).status().changes) == []


def test_a_tree_written_through_a_mount_is_what_the_next_shows(
    repo: api.Repository, mounted: Any, tmp_path: Path
) -> None:
    """The same tree written into a mount, captured, mounted elsewhere without the overlay: equal, and captured once."""
    done = mounted("agent-1")
    copy_standard_library(done.mountpoint)
    write_odd_things(done.mountpoint)
    write_empty_directories(done.mountpoint)
    written = walk(done.mountpoint)
    captured = repo.capture(message="everything", thread="agent-1")
    assert {it.path for it in captured.not_recorded} == CLOSED
    assert_equal(walk(done.mountpoint), written)
    assert list(heddle.open(done.mountpoint).status().changes) == []

    shown = mounted(captured.state.id.decode(), tmp_path / "shown", read_only=True)
    assert_equal(walk(shown.mountpoint), written)
    repo.unmount("agent-1")
    assert_equal(walk(mounted("agent-1").mountpoint), written)


def test_git_agrees_on_the_tree(
    repo: api.Repository, mounted: Any, tmp_path: Path, real_tree: dict[bytes, Entry]
) -> None:
    """Where there is no empty directory, git's id of the directory, of the mount and the captured one are one."""
    captured = repo.capture(message="everything")
    done = mounted("main", tmp_path / "place")

    assert git_tree(repo.path, tmp_path / "one.git") == captured.state.tree
    assert git_tree(done.mountpoint, tmp_path / "two.git") == captured.state.tree


def test_what_a_git_tree_can_not_hold_is_shown_the_same_everywhere(
    repo: api.Repository, mounted: Any, tmp_path: Path
) -> None:
    """Permission bits beside the executable one are not in a tree: mounts show 0644 and 0755, one time for all."""
    write_odd_things(repo.path)
    captured = repo.capture(message="m")
    modes: list[dict[str, int]] = []
    times: set[int] = set()
    for name in ("one", "two"):
        done = mounted(captured.state.id.decode(), tmp_path / name, read_only=True)
        entries = [entry for entry in done.mountpoint.iterdir() if entry.name.startswith("mode-")]
        modes.append({entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in entries})
        times |= {entry.stat().st_mtime_ns for entry in entries}

    executable = {"mode-100", "mode-755", "mode-711"}
    assert modes[0] == modes[1]
    assert {name for name, mode in modes[0].items() if mode == 0o755} == executable
    assert {mode for name, mode in modes[0].items() if name not in executable} == {0o644}
    assert len(times) == 1
