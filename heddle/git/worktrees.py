"""Mounts as git knows them: where git in each has gone, and how git's things in them are brought along.

Owns the reading of a mount's HEAD, and writing HEAD, its reflog and its index when heddle moved what the mount is
relative to. Their private directories are ``repo/linked.py``'s; which side is followed is ``branches.py``'s.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from heddle.errors import Busy, DataError, HeddleError
from heddle.git import index
from heddle.git.refs import HEADS, GitRefs
from heddle.repo import gitstage, linked
from heddle.repo.linked import Linked

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.repo.gitlink import GitDir
    from heddle.repo.repository import Repository


class Mover(Enum):
    """Who moved a mount's branch; unclear while git is at it."""

    HERE = auto()
    ELSEWHERE = auto()
    UNCLEAR = auto()


@dataclass(slots=True)
class Mount:
    """A thread's mount, as git knows it.

    Attributes:
        linked: its private directory.
        thread: the thread.
        refs: its HEAD, and the refs that all checkouts share.
        ref: the full name of the branch that HEAD is on; None: detached.
        commit: where HEAD is; None: not born.
        base: the state that the mount is relative to.
    """

    linked: Linked
    thread: str
    refs: GitRefs
    ref: bytes | None
    commit: ObjectID | None
    base: ObjectID | None

    @property
    def is_on_branch(self) -> bool:
        """Whether HEAD is on the thread's own branch."""
        return self.ref == HEADS + self.thread.encode()

    @property
    def stands_in(self) -> bool:
        """Whether HEAD, detached, stands for the thread's branch, which another checkout holds."""
        return self.ref is None and self.linked.stands_in

    @property
    def is_on_its_way(self) -> bool:
        """Whether git is moving HEAD from commit to commit, detached: what it shows now is not meant to stay."""
        return self.ref is None and self.linked.doing() in linked.DETACHING

    def moved_by(self, repo: Repository, commit: ObjectID | None) -> Mover:
        """Who brought HEAD's branch to where it was seen.

        Git locks a ref, writes the reflog, then moves the ref. So a reflog that says something else is behind, and
        somebody elsewhere moved the branch, only if the ref is not locked by now, and still where it was seen. But
        entries may have been expired or deleted; an index that holds the commit's tree says the same as one.
        """
        if commit is None or self.linked.last_logged() in (None, commit) or self.ref is None:
            return Mover.HERE
        lock = self.linked.git.common / f"{os.fsdecode(self.ref)}.lock"
        if lock.exists() or self.refs.get(self.ref) != commit:
            return Mover.UNCLEAR
        return Mover.HERE if self._has_staged(repo, commit) else Mover.ELSEWHERE

    def _has_staged(self, repo: Repository, commit: ObjectID) -> bool:
        """Whether the index here holds just what a commit does."""
        if not self.linked.has_index or not repo.is_state(commit):
            return False
        return index.staged_tree(self.linked.git, repo.environment) == repo.state(commit).tree

    def bring_index(
        self,
        repo: Repository,
        old: ObjectID | None,
        new: ObjectID | None,
    ) -> None:
        """Give git's index in the mount what differs between two states; nothing while git was not used there.

        Raises:
            HeddleError: as ``index.update``.
        """
        if not self.linked.has_index:
            return
        trees = [None if id is None else repo.state(id).tree for id in (old, new)]
        index.update(self.linked.git, repo.store, *trees, environment=repo.environment)

    def put_head(self, repo: Repository, new: ObjectID, who: bytes, message: bytes) -> None:
        """Bring a detached HEAD and the index to a state; raises as ``GitRefs.move``."""
        self.bring_index(repo, self.commit, new)
        self.refs.move(b"HEAD", self.commit, new, who=who, message=message)
        self.commit = new

    def note_moved(self, repo: Repository, new: ObjectID, who: bytes, message: bytes) -> None:
        """HEAD's branch was moved from elsewhere, and the mount shows it now: bring index and reflog along."""
        old = self.last_logged(repo) or _known(repo, self.linked.shown())
        self.bring_index(repo, old, new)
        self.refs.log_head(old, new, who, message)

    def last_logged(self, repo: Repository) -> ObjectID | None:
        """Where git here, or heddle for it, was last; None: nobody knows."""
        return _known(repo, self.linked.last_logged())


def _known(repo: Repository, id: bytes | None) -> ObjectID | None:
    from dulwich.objects import ObjectID

    if id is None or not id.strip(b"0"):
        return None
    found = ObjectID(id)
    return found if repo.is_state(found) else None


def mounts(repo: Repository) -> Mapping[str, Mount]:
    """The mounts of threads that git knows of, by thread."""
    found = {}
    for each in linked.of(repo):
        if each.thread is None or not repo.database.has_overlay(each.thread):
            continue
        refs = GitRefs(each.git)
        ref, commit = refs.head()
        base = repo.overlay_base(each.thread)
        found[each.thread] = Mount(each, each.thread, refs, ref, commit, base)
    return found


def went_by_itself(repo: Repository, thread: str) -> Mount | None:
    """A thread's mount, if git in it is on the thread's branch, or stands for it, and went where it is by itself."""
    mount = mounts(repo).get(thread)
    if mount is None or not (mount.is_on_branch or mount.stands_in) or mount.is_on_its_way:
        return None
    return mount if mount.moved_by(repo, mount.commit) is Mover.HERE else None


def other_branch(repo: Repository, thread: str) -> str | None:
    """The branch that git in a thread's mount is on, if it is not the thread's own; None as well while detached."""
    for each in linked.of(repo, thread):
        head = each.head()
        if head.startswith(b"ref: ") and not each.is_on_thread():
            return head.removeprefix(b"ref: ").removeprefix(HEADS).decode(errors="replace")
    return None


def settle_index(repo: Repository, thread: str, state: ObjectID) -> None:
    """Have nothing staged in a mount of which all was captured, unless git can't be told so just now.

    Args:
        state: what was captured; where git is at another by now, nothing is done.
    """
    for each in linked.of(repo, thread):
        is_there = each.has_index and each.is_on_thread() and os.path.isdir(each.git.checkout)
        if is_there and GitRefs(each.git).get(HEADS + thread.encode()) == state:
            with suppress(HeddleError):
                index.settle(each.git, state, environment=repo.environment)


def require_settled(repo: Repository, git: GitDir, doing: str | None) -> None:
    """Refuse to record what git has left in conflict in a checkout, markers and all, or is just now committing.

    Args:
        doing: what git is in the middle of, as ``linked.unfinished`` says.

    Raises:
        DataError: a path is in conflict.
        Busy: this runs in a hook of a commit that has git's index locked: its branch could not follow.
    """
    if "GIT_INDEX_FILE" in repo.environment and (git.path / "index.lock").exists():
        raise Busy(
            f"git is making a commit in {git.checkout}, and this runs in a hook of it",
            hint="heddle capture when the commit is made",
        )
    found = gitstage.conflicts(git.path / "index", repo.store.id_length)
    if found:
        name = os.fsdecode(found[0])
        where = f"{name} is in conflict"
        text = f"{linked.in_words(doing)[0]}, and {where}" if doing else f"to git, {where}"
        raise DataError(text, hint=f"edit it, and git add {name}")


def require_capturable(repo: Repository, thread: str) -> None:
    """Refuse to capture in a mount where git is in the middle of something, or on something else than the thread.

    Raises:
        DataError, Busy: it is; says what to do.
    """
    for each in linked.of(repo, thread):
        doing = each.doing()
        if doing is not None:
            raise linked.in_the_way(each.git, doing)
        require_settled(repo, each.git, None)
        other = other_branch(repo, thread)
        if other is not None:
            hint = f"git commit, git switch {thread}, or heddle mount {other} elsewhere"
            if GitRefs(each.git).get(HEADS + thread.encode()) is None:
                hint = f"git commit, or to have the name of the thread again: git branch -m {other} {thread}"
            raise DataError(
                f"git is on branch '{other}' in {each.git.checkout}, the mount of thread '{thread}'",
                hint=hint,
            )
        head = each.head()
        is_off = not head.startswith(b"ref: ") and not each.stands_in
        if is_off and head != repo.threads.get(thread).state:
            raise DataError(
                f"git is at {head[:12].decode()}, on no branch, in {each.git.checkout}, the mount of thread"
                f" '{thread}'",
                hint=f"git switch {thread}; or git switch -c NEW-NAME, and git commit",
            )
