"""Threads and markers on their way out: branches and tags of a git repository, with the same ids.

Owns what is exported where and what is refused. Into the git repository that a repository lies on, threads go by
way of ``branches.py``, which knows about its checkout; into another one they go like a push: nothing is moved unless
everything can be.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from heddle import faults
from heddle.errors import CannotCreate, DataError
from heddle.git import refs as gitrefs
from heddle.git.branches import Diverged, follow, is_ancestor, reflog_identity
from heddle.git.refs import HEADS, TAGS, GitRefs
from heddle.repo import linked

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.git.pack import Progress
    from heddle.repo.gitlink import GitDir
    from heddle.repo.repository import Repository


@dataclass(frozen=True, slots=True)
class RefChange:
    """A ref of git that was moved: its full name, where it was (None: nowhere) and where it is."""

    ref: str
    old: ObjectID | None
    new: ObjectID


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export did.

    Attributes:
        target: the git directory.
        refs: what was moved.
        objects: how many objects were written.
        pack: the git pack that holds them, without suffix; None: git had everything.
        created: whether the git repository was made for it.
    """

    target: Path
    refs: list[RefChange] = field(default_factory=list)
    objects: int = 0
    pack: str | None = None
    created: bool = False


def export(
    repo: Repository,
    threads: Sequence[str] = (),
    *,
    to: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Give git what it does not have yet.

    Args:
        threads: only these; none means all threads, and the markers.
        to: a git repository; made, bare, where there is nothing. None: the one that the repository lies on.
        force: also move branches that hold commits which the thread does not.
        progress: called with objects written and objects in all.

    Raises:
        ThreadNotFound: there is no such thread.
        Diverged: a branch holds commits that its thread does not; nothing was moved.
        DataError: a tag is there already and means something else, or a branch is checked out; nothing was moved.
        HeddleError: as ``GitRefs.move`` and ``write_pack``.
    """
    for name in threads:
        repo.threads.get(name)
    git = repo.git if to is None else _opened(to, repo)
    if git is None:
        raise DataError(f"{repo.path} lies on no git repository", hint="heddle git export --to DIR")
    created = to is not None and not (git.common / "HEAD").exists()
    if created:
        _create(git.common, repo)
    if repo.git is not None and git.common == repo.git.common:
        return _export_here(repo, repo.git, threads, force, progress)
    return _export_there(repo, git, threads, force, progress, created)


def _opened(path: Path, repo: Repository) -> GitDir:
    from heddle.repo.gitlink import GitDir

    path = path.resolve()
    if not path.exists() or (path.is_dir() and not os.listdir(path)):
        return GitDir(path, path, path)
    git = gitrefs.find(path)
    found = GitRefs(git).object_format
    if found != repo.object_format:
        raise DataError(f"{path} has {found} ids, and this repository {repo.object_format} ids")
    return git


def _create(path: Path, repo: Repository) -> None:
    from dulwich.repo import Repo

    try:
        path.mkdir(parents=True, exist_ok=True)
        head = HEADS[len(HEADS) :] + repo.head.encode()
        Repo.init_bare(path, default_branch=head, object_format=repo.object_format).close()
    except OSError as error:
        _make_empty(path)  # or the next attempt would take it for something else's
        raise CannotCreate(f"can't make {path}: {error.strerror}") from error


def _make_empty(path: Path) -> None:
    """Remove the beginning of a repository from a directory that was empty or not there."""
    with suppress(OSError):
        for inside in path.iterdir():
            shutil.rmtree(inside) if inside.is_dir() else inside.unlink()


# into the git repository that we lie on


def _export_here(
    repo: Repository,
    git: GitDir,
    threads: Sequence[str],
    force: bool,
    progress: Progress | None,
) -> Exported:
    names = list(threads) or [each.name for each in repo.threads.list()]
    before = GitRefs(git).under(HEADS)
    step = follow(repo, link=names, force=force, progress=progress)
    for name in names:
        if name in step.problems:
            raise step.problems[name]
    moved = [
        RefChange(f"refs/heads/{name}", before.get(name.encode()), new)
        for name, new in step.moved.items()
    ]
    done = Exported(git.common, moved, step.objects, step.pack)
    if threads:
        return done
    tags = _export_refs(repo, git, _markers(repo), force=False, progress=progress)
    return Exported(
        git.common, [*moved, *tags.refs], step.objects + tags.objects, step.pack or tags.pack
    )


# into another one


def _export_there(
    repo: Repository,
    git: GitDir,
    threads: Sequence[str],
    force: bool,
    progress: Progress | None,
    created: bool,
) -> Exported:
    names = threads or [thread.name for thread in repo.threads]
    states = {HEADS + name.encode(): repo.threads.get(name).state for name in names}
    wanted: dict[bytes, bytes] = {ref: id for ref, id in states.items() if id is not None}
    if not threads:
        wanted = _of_git(repo) | wanted | _markers(repo) | _foreign(repo)
    done = _export_refs(repo, git, wanted, force=force, progress=progress)
    return Exported(done.target, done.refs, done.objects, done.pack, created)


def _of_git(repo: Repository) -> dict[bytes, bytes]:
    """On git, its own refs; what we keep there for ourselves is nobody else's."""
    if repo.git is None:
        return {}
    every = GitRefs(repo.git).verbatim().items()
    return {ref: target for ref, target in every if not ref.startswith(b"refs/heddle/")}


def _markers(repo: Repository) -> dict[bytes, bytes]:
    """Markers as tags; one that came from an annotated tag as that again."""
    refs = repo.database.refs()
    tags = {TAGS + marker.name.encode(): marker.state for marker in repo.markers}
    return {ref: refs.get(ref, state) for ref, state in tags.items()}


def _foreign(repo: Repository) -> dict[bytes, bytes]:
    """What came from a git repository and is neither thread nor marker."""
    return {
        ref: target for ref, target in repo.database.refs().items() if not ref.startswith(TAGS)
    } | {
        ref: target
        for ref, target in repo.database.refs().items()
        if ref.startswith(TAGS) and ref[len(TAGS) :].decode(errors="replace") not in repo.markers
    }


def _export_refs(
    repo: Repository,
    git: GitDir,
    wanted: dict[bytes, bytes],
    *,
    force: bool,
    progress: Progress | None,
) -> Exported:
    from heddle.git.pack import missing_objects, packs_kept, write_pack
    from heddle.objects.gitdir import GitObjects

    refs = GitRefs(git)
    ids = {ref: target for ref, target in wanted.items() if not target.startswith(b"ref: ")}
    changes = _planned(repo, refs, ids, force)
    have = GitObjects(git.objects, repo.object_format)
    missing = missing_objects(repo.store, [each.new for each in changes], have.holds)
    have.close()
    who, message = reflog_identity(repo), b"heddle: git export"
    with packs_kept():
        pack = write_pack(repo.store, missing, git.objects, progress=progress)
        for each in changes:
            faults.reach("export.before-ref")
            refs.move(os.fsencode(each.ref), each.old, each.new, who=who, message=message)
    for ref, target in wanted.items():
        if target.startswith(b"ref: ") and refs.get(ref) is None:
            refs.put_symbolic(ref, target[len(b"ref: ") :])
    return Exported(git.common, changes, len(missing), pack)


def _planned(
    repo: Repository, refs: GitRefs, wanted: dict[bytes, bytes], force: bool
) -> list[RefChange]:
    """What has to be moved; raises if any of it must not be."""
    held = linked.holders(refs.git)
    there = refs.under(b"refs/")
    changes = []
    for ref, new in wanted.items():
        old = there.get(ref[len(b"refs/") :])
        if old == new:
            continue
        name = os.fsdecode(ref)
        change = RefChange(name, old, new)  # type: ignore[arg-type]
        if ref in held:
            raise DataError(
                f"{name} is checked out in {held[ref]}: moving it would leave that behind",
                hint=f"git -C {held[ref]} switch to another branch, or export into a bare repository",
            )
        if old is not None:
            _require_forward(repo, change, force)
        changes.append(change)
    return changes


def _require_forward(repo: Repository, change: RefChange, force: bool) -> None:
    assert change.old is not None
    ids = f"at {change.old[:12].decode()} there and at {change.new[:12].decode()} here"
    if change.ref.startswith("refs/tags/"):
        raise DataError(
            f"{change.ref} is {ids}; tags do not move", hint="heddle marker delete, or git tag -d"
        )
    if not force and not is_ancestor(repo, change.old, change.new):
        raise Diverged(
            f"{change.ref} is {ids}, and holds commits that this one does not",
            hint="bring them here (heddle git import, heddle pull), or move it anyway with --force",
        )
