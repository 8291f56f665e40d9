"""Git's index of a checkout, brought along when heddle moves the branch that the checkout is on.

Owns which entries change: those that differ between two trees, and no other, so that what is staged elsewhere
stays staged. Writing the file is stock git's own (`git update-index`), which knows every extension that an index
may have and takes ``index.lock``.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING

from heddle.errors import Busy, StorageError, Unavailable
from heddle.repo.changes import DIRECTORY_MODE, Change, tree_changes

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.objects.store import ObjectStore
    from heddle.repo.gitlink import GitDir

_TIMEOUT_S = 600
_GITLINK = b"160000"


def update(
    git: GitDir,
    store: ObjectStore,
    old_tree: ObjectID | None,
    new_tree: ObjectID | None,
    *,
    environment: Mapping[str, str],
) -> None:
    """Give every path that differs between two trees the entry of the new one.

    Can be run again: what has the new entry keeps it. The objects must be where git finds them.

    Args:
        environment: for git; what would lead it to another index or repository is left out.

    Raises:
        Busy: the index is locked.
        Unavailable: git is not installed.
        StorageError: git could not write it.
    """
    changes = tree_changes(store, old_tree, new_tree, renames=False)
    lines = [line for each in changes if (line := _line(each)) is not None]
    # Deletions first: a directory may take the place of a file, and the other way round.
    lines.sort(key=lambda line: not line.startswith(b"000000"))
    if lines:
        _run(git, b"".join(lines), environment)


def settle(git: GitDir, state: ObjectID, *, environment: Mapping[str, str]) -> None:
    """Take back what is staged and a state has not, where all of a checkout is in that.

    What was added and is there stays staged: it is ignored, or meant to be added later. So do submodules.

    Args:
        git: the checkout.
        state: what it was captured as just now, a commit in git.
        environment: as in ``update``.

    Raises:
        Busy, Unavailable, StorageError: as ``update``.
    """
    command = ["diff-index", "--cached", "--raw", "-z", "--no-renames", state.decode()]
    words = _git(git, command, b"", environment).split(b"\0")
    lines = []
    for said, path in zip(words[::2], words[1::2], strict=False):
        old_mode, new_mode, old_id, _, _ = said.lstrip(b":").split(b" ")
        if _GITLINK in (old_mode, new_mode):
            continue
        if int(old_mode):
            lines.append(b"%b %b\t%b\0" % (old_mode, old_id, path))
        elif not os.path.lexists(os.path.join(os.fsencode(git.checkout), path)):
            lines.append(b"000000 %b\t%b\0" % (old_id, path))
    if lines:
        _run(git, b"".join(lines), environment)


def staged_tree(git: GitDir, environment: Mapping[str, str]) -> ObjectID | None:
    """What ``git commit`` would record: the tree of an index, written into git; None where it holds a conflict.

    Git is given a copy: it would lock the index, and whoever works in the checkout would be refused meanwhile.
    """
    from tempfile import TemporaryDirectory

    from dulwich.objects import ObjectID

    command = ["git", f"--git-dir={git.path}", "write-tree"]
    try:
        with TemporaryDirectory(prefix="heddle-") as directory:
            copy = Path(directory, "index")
            copyfile(git.path / "index", copy)
            done = subprocess.run(
                command,
                env=_own(environment) | {"GIT_INDEX_FILE": str(copy)},
                capture_output=True,
                timeout=_TIMEOUT_S,
            )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ObjectID(done.stdout.strip()) if done.returncode == 0 else None


def _own(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without what would lead git to another index or repository."""
    return {name: value for name, value in environment.items() if name[:4] != "GIT_"}


def _line(change: Change) -> bytes | None:
    """What git is told about a path; directories have no entries in an index."""
    if change.new_mode not in (None, DIRECTORY_MODE):
        return b"%06o %s\t%s\0" % (change.new_mode, change.new_id, change.path)
    if change.old_mode in (None, DIRECTORY_MODE):
        return None
    return b"000000 %s\t%s\0" % (b"0" * len(change.old_id or b""), change.path)


def _run(git: GitDir, lines: bytes, environment: Mapping[str, str]) -> None:
    _git(git, ["update-index", "-z", "--index-info"], lines, environment)


def _git(git: GitDir, words: list[str], told: bytes, environment: Mapping[str, str]) -> bytes:
    # Where a mount is dead or over, another directory does: no file is looked at.
    where = git.checkout if os.path.isdir(git.checkout) else git.path
    command = ["git", f"--git-dir={git.path}", f"--work-tree={where}", *words]
    lock = git.path / "index.lock"
    try:
        done = subprocess.run(
            command,
            input=told,
            cwd=where,
            env=_own(environment),
            capture_output=True,
            timeout=_TIMEOUT_S,
        )
    except FileNotFoundError as error:
        raise Unavailable(
            "git is not installed, and git's index has to be brought along", hint="install git"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise Busy(f"git did not finish with the index of {git.checkout}") from error
    if done.returncode == 0:
        return done.stdout
    if lock.exists() or os.fsencode(lock.name) in done.stderr:
        raise Busy(
            f"git's index is locked by {lock}",
            hint=f"run it again; if no git is running, remove {lock}",
        )
    said = done.stderr.decode(errors="replace").strip().replace("\n", "; ")
    raise StorageError(f"git could not bring the index of {git.checkout} along: {said}")
