"""The git repository that a heddle repository lies on: where it is and what it is at.

Owns finding a ``.git`` beside ``.heddle`` and reading its HEAD, refs and object format, through dulwich. Objects
are read in place by the object store; keeping branches and threads in step is not done here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from heddle import atomic
from heddle.errors import DataError, InvalidName

if TYPE_CHECKING:
    from dulwich.objects import ObjectID
    from dulwich.repo import Repo

_BRANCH = b"refs/heads/"


@dataclass(frozen=True, slots=True)
class GitDir:
    """Where a git checkout keeps its things.

    Attributes:
        checkout: the directory that holds ``.git``.
        path: this checkout's own git directory (HEAD, index).
        common: the directory shared by all work trees of the repository (objects, refs, config).
    """

    checkout: Path
    path: Path
    common: Path

    @property
    def objects(self) -> Path:
        """The object directory."""
        return self.common / "objects"


def find(checkout: Path) -> GitDir | None:
    """The git directory of ``checkout`` itself (gitrepository-layout(5)), or None; parents don't count."""
    path = checkout / ".git"
    if path.is_file():
        content = path.read_bytes()
        if not content.startswith(b"gitdir: "):
            return None
        path = checkout / os.fsdecode(content[len(b"gitdir: ") :].rstrip(b"\r\n"))
    if not (path / "HEAD").exists():
        return None
    common = path
    if (path / "commondir").is_file():
        common = path / os.fsdecode((path / "commondir").read_bytes().rstrip(b"\r\n"))
    return GitDir(checkout, path.resolve(), common.resolve())


def object_format(git: GitDir) -> str:
    """``sha1`` or ``sha256``, from git's configuration."""
    from dulwich.config import ConfigFile

    try:
        config = ConfigFile.from_path(git.common / "config")
        return config.get((b"extensions",), b"objectformat").decode().lower()
    except (FileNotFoundError, KeyError):
        return "sha1"
    except ValueError as error:
        raise DataError(f"git's {git.common / 'config'} can't be read: {error}") from error


def head(git: GitDir) -> tuple[str | None, ObjectID | None]:
    """The branch that git's HEAD is on (None: detached) and its commit (None: no commit yet)."""
    from dulwich.refs import HEADREF

    with _opened(git) as repo:
        names, commit = repo.refs.follow(HEADREF)
    branch = names[-1]
    if not branch.startswith(_BRANCH):
        return None, commit
    return branch[len(_BRANCH) :].decode(errors="surrogateescape"), commit


def thread_to_start_on(git: GitDir) -> tuple[str, ObjectID | None]:
    """The thread that a new repository on this checkout begins with: git's branch at git's commit.

    A branch whose name can't be a thread's, and a detached HEAD, begin as ``main``, or as ``detached`` where
    git has a ``main`` of its own.
    """
    from heddle.repo.names import valid_thread_name

    branch, commit = head(git)
    try:
        if branch is not None:
            valid_thread_name(branch)
            return branch, commit
    except InvalidName:
        pass
    return ("detached" if resolve(git, "main") else "main"), commit


def resolve(git: GitDir, name: str) -> dict[str, ObjectID]:
    """The commits that ``name`` means as a branch, a tag or a remote branch, by full ref name."""
    found: dict[str, ObjectID] = {}
    wanted = name.encode(errors="surrogateescape")
    with _opened(git) as repo:
        for prefix in (b"refs/heads/", b"refs/tags/", b"refs/remotes/"):
            try:
                commit = _commit(repo, prefix + wanted)
            except (KeyError, ValueError):  # no such ref; a name that can't be one
                continue
            if commit is not None:
                found[os.fsdecode(prefix + wanted)] = commit
    return found


def shallow(git: GitDir) -> frozenset[ObjectID]:
    """Commits whose parents a shallow clone left out."""
    try:
        return frozenset(cast("list[ObjectID]", (git.common / "shallow").read_bytes().split()))
    except FileNotFoundError:
        return frozenset()


def exclude_heddle(git: GitDir) -> None:
    """Have git ignore ``.heddle`` in every checkout of this repository, through ``info/exclude``."""
    path = git.common / "info" / "exclude"
    path.parent.mkdir(exist_ok=True)
    old = path.read_bytes() if path.exists() else b""
    if b".heddle/" in old.split():
        return
    if old and not old.endswith(b"\n"):
        old += b"\n"
    atomic.write_file(path, old + b".heddle/\n")


def _commit(repo: Repo, ref: bytes) -> ObjectID | None:
    """The commit that a ref leads to through tags; None where it leads to something else."""
    from dulwich.objects import Commit, Tag
    from dulwich.refs import Ref

    target = repo[repo.refs[Ref(ref)]]
    while isinstance(target, Tag):
        target = repo[target.object[1]]
    return target.id if isinstance(target, Commit) else None


def _opened(git: GitDir) -> Repo:
    from dulwich.errors import NotGitRepository
    from dulwich.repo import Repo, UnsupportedExtension, UnsupportedVersion

    try:
        return Repo(git.checkout)
    except (NotGitRepository, UnsupportedExtension, UnsupportedVersion, ValueError) as error:
        raise DataError(f"the git repository in {git.checkout} can't be read: {error}") from error
