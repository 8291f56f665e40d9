"""Trees as dictionaries (path: (mode, content)), and the ways to turn them into directories and objects."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path

from heddle.objects.store import ObjectStore

FILE = 0o100644
EXECUTABLE = 0o100755
SYMLINK = 0o120000
GITLINK = 0o160000
DIRECTORY = 0o040000

Files = Mapping[bytes, tuple[int, bytes]]


def write_files(top: Path, files: Files) -> None:
    """Make a directory hold exactly these files; a DIRECTORY entry is an empty directory."""
    for path, (mode, content) in files.items():
        host = os.path.join(os.fsencode(top), path)
        os.makedirs(os.path.dirname(host), exist_ok=True)
        if mode == SYMLINK:
            os.symlink(content, host)
        elif mode == DIRECTORY:
            os.makedirs(host)
        else:
            with open(host, "wb") as file:
                file.write(content)
            os.chmod(host, 0o755 if mode == EXECUTABLE else 0o644)


def read_files(top: Path) -> dict[bytes, tuple[int, bytes]]:
    """What a directory holds, without .git and .heddle; empty directories are DIRECTORY entries."""
    found: dict[bytes, tuple[int, bytes]] = {}
    root = os.fsencode(top)
    for directory, directories, names in os.walk(root):
        relative = b"" if directory == root else os.path.relpath(directory, root) + b"/"
        directories[:] = [d for d in directories if d.lower() not in (b".git", b".heddle")]
        links = [d for d in directories if os.path.islink(os.path.join(directory, d))]
        for name in [*names, *links]:
            found[relative + name] = _read(os.path.join(directory, name))
        if not names and not directories and relative:
            found[relative[:-1]] = (DIRECTORY, b"")
    return found


def _read(host: bytes) -> tuple[int, bytes]:
    mode = os.lstat(host).st_mode
    if stat.S_ISLNK(mode):
        return SYMLINK, os.readlink(host)
    with open(host, "rb") as file:
        return (EXECUTABLE if mode & 0o100 else FILE), file.read()


def store_tree(store: ObjectStore, files: Files) -> bytes:
    """Store files as trees and blobs; a GITLINK's content is the id it names."""
    with store.writer() as writer:
        tree = _add_tree(writer, files)
        writer.commit()
    return tree


def _add_tree(writer, files: Files) -> bytes:
    entries = []
    below: dict[bytes, dict[bytes, tuple[int, bytes]]] = {}
    for path, (mode, content) in files.items():
        name, slash, rest = path.partition(b"/")
        if slash:
            below.setdefault(name, {})[rest] = (mode, content)
        elif mode == DIRECTORY:
            below.setdefault(name, {})
        elif mode == GITLINK:
            entries.append((name, mode, content))
        else:
            entries.append((name, mode, writer.add_blob(content)))
    entries += [(name, DIRECTORY, _add_tree(writer, inside)) for name, inside in below.items()]
    return writer.add_tree(entries)


def git(directory: Path, *arguments: str | bytes, stdin: bytes = b"", check: bool = True) -> bytes:
    """Run git in a directory, without anybody's settings; returns its output."""
    done = subprocess.run(
        ["git", *arguments],
        cwd=directory,
        input=stdin,
        capture_output=True,
        env={
            "PATH": os.environ["PATH"],
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_CONFIG_SYSTEM": "/dev/null",
            "GIT_AUTHOR_NAME": "Ada",
            "GIT_AUTHOR_EMAIL": "ada@example.org",
            "GIT_COMMITTER_NAME": "Ada",
            "GIT_COMMITTER_EMAIL": "ada@example.org",
        },
    )
    assert not check or done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout
