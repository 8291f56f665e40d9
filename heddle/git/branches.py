"""Branches of git and threads of the same name, kept in step in a repository that lies on git.

Owns the comparison and what follows from it, in both directions; who calls it is ``api.py``: when a repository is
opened and after a capture or a switch. Each branch is remembered where both were when they last agreed, so that it
is known which side has moved: that side is followed. When both have, neither is touched, unless one contains the
other.

The order, and what a crash leaves: threads that follow move in one transaction; then the missing objects become one
git pack; then, branch by branch, the index of the checkout is brought along (if it is on that branch) and the ref is
moved; last, one transaction remembers what is in step. Every step can be repeated: whatever a crash interrupts, the
next command compares again and finishes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

from heddle import faults
from heddle.errors import (
    Busy,
    DataError,
    HeddleError,
    InvalidName,
    ObjectMissing,
    StorageError,
)
from heddle.git import index
from heddle.git import refs as gitrefs
from heddle.git.refs import HEADS, GitRefs
from heddle.git.worktrees import Mount, Mover, mounts
from heddle.repo import linked
from heddle.repo.database import Branch, GitSeen, Move, Thread
from heddle.repo.locks import directory_locked
from heddle.repo.names import valid_thread_name

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.git.pack import Progress
    from heddle.repo.gitlink import GitDir
    from heddle.repo.repository import Repository

DETACHED = "detached"
"""The thread that stands for git's HEAD while that is on no branch."""
Adopt = Callable[[str, "ObjectID | None", "tuple[ObjectID | None] | None"], None]
"""Have a thread's mount be relative to a state and show what it shows; (where the thread is,): that goes along."""
KEPT = b"refs/heddle/keep/"
"""Refs, by id, of states that branches were at before they were deleted or rewritten."""


class Diverged(DataError):
    """A thread and its branch have both moved, apart from each other."""

    kind = "diverged"


@dataclass(slots=True)
class Step:
    """What keeping in step did.

    Attributes:
        followed: threads that went where git's branch went, with their new states.
        adopted: threads whose mount is relative to where git in the mount went.
        behind: threads whose mount shows an earlier state than the branch, which others moved.
        moved: branches that went where their thread went, with their new states.
        problems: by thread, why it and its branch are not in step.
        pack: the git pack that was written, without suffix; None: git had everything.
        objects: how many objects it holds.
    """

    followed: dict[str, ObjectID | None] = field(default_factory=dict)
    adopted: set[str] = field(default_factory=set)
    behind: set[str] = field(default_factory=set)
    moved: dict[str, ObjectID] = field(default_factory=dict)
    problems: dict[str, HeddleError] = field(default_factory=dict)
    pack: str | None = None
    objects: int = 0


class Action(Enum):
    """What one comparison of a thread and a branch asks for."""

    NOTHING = auto()
    SAME = auto()
    MAKE = auto()
    FOLLOW = auto()
    PUSH = auto()
    FORGET = auto()
    DROP = auto()
    WEIGH = auto()


def decide(thread: Thread | None, branch: ObjectID | None, row: Branch | None) -> Action:
    """What to do about a name, from where the thread and the branch are and where they last agreed.

    ``WEIGH`` means that both have moved, or were never compared: only history can tell.
    """
    if row is not None and row.dropped:
        if thread is None and branch == row.state:
            return Action.NOTHING
        row = None
    if branch is None:
        return _without_branch(thread, row)
    if thread is None:
        return Action.DROP if row is not None and row.state == branch else Action.MAKE
    if thread.state == branch:
        return Action.SAME if row is None or row.state != branch else Action.NOTHING
    if thread.state is None or (row is not None and row.state == thread.state):
        return Action.FOLLOW
    return Action.PUSH if row is not None and row.state == branch else Action.WEIGH


def _without_branch(thread: Thread | None, row: Branch | None) -> Action:
    if row is None:
        return Action.NOTHING
    if thread is None or row.state is not None:
        return Action.FORGET
    return Action.PUSH if thread.state is not None else Action.NOTHING


def follow(
    repo: Repository,
    *,
    link: Iterable[str] = (),
    force: bool = False,
    adopt: Adopt | None = None,
    progress: Progress | None = None,
) -> Step:
    """Bring branches and threads in step; costs next to nothing when neither has moved.

    Args:
        repo: a repository; on one that does not lie on git nothing happens.
        link: threads that become branches if they are none.
        force: of those, also where git's branch holds commits that the thread does not; git's reflog keeps them.
        adopt: has a mount be relative to where git in it went; None: mounts follow as any thread does.
        progress: called with objects written for git and objects in all.

    Returns:
        What was done; what could not be is in ``problems``, and nothing of it was changed.

    Raises:
        HeddleError: git's refs or heddle's database can't be read.
    """
    if repo.git is None:
        return Step()
    wanted = tuple(link)
    linked.release_dead(repo.git)
    seen = repo.database.git_seen()
    signature = gitrefs.signature(repo.git)
    ended = linked.ended(repo)
    is_as_seen = not (wanted or ended) and seen is not None and seen.signature == signature
    if is_as_seen and repo.database.is_in_step() and linked.stand_ins_agree(repo):
        return Step()
    from heddle.git.pack import packs_kept

    with directory_locked(repo.heddle_dir), packs_kept():
        step = _Comparison(repo, repo.git, wanted, force, adopt, progress).run()
        if adopt is not None:
            _put_aside(repo, ended, step)
        return step


def _put_aside(repo: Repository, ended: Iterable[linked.Linked], step: Step) -> None:
    """Mounts that are over have been followed; where one is just closing, the next command sees to it."""
    for each in ended:
        thread = each.thread or ""
        if not isinstance(step.problems.get(thread), Busy):
            linked.put_aside(repo, each, repo.overlay_base(thread))


def keep_staged(repo: Repository, threads: Collection[str]) -> None:
    """Keep git's gc from taking what is staged in mounts that are going to end: their indexes leave git's sight.

    Args:
        threads: whose mounts they are.
    """
    if repo.git is None:
        return
    for name, mount in mounts(repo).items():
        if name not in threads or not mount.linked.has_index:
            continue
        tree = index.staged_tree(mount.linked.git, repo.environment)
        recorded = None if mount.commit is None else repo.state(mount.commit).tree
        refs = GitRefs(repo.git)
        if tree is not None and tree != recorded and refs.get(KEPT + tree) is None:
            refs.move(KEPT + tree, None, tree, who=reflog_identity(repo), message=b"heddle: kept")


def hand_over(repo: Repository, states: Iterable[ObjectID]) -> None:
    """Give git the objects of some states, as one pack, where it lacks any."""
    if repo.git is not None:
        _write_missing(repo, repo.git, states, None)


def _write_missing(
    repo: Repository, git: GitDir, tips: Iterable[ObjectID], progress: Progress | None
) -> tuple[str | None, int]:
    """Write what git lacks of some states; the pack's name and the number of objects in it."""
    from heddle.git.pack import missing_objects, write_pack
    from heddle.objects.gitdir import GitObjects

    have = GitObjects(git.objects, repo.object_format)
    try:
        ids = missing_objects(repo.store, tips, have.holds)
        return write_pack(repo.store, ids, git.objects, progress=progress), len(ids)
    finally:
        have.close()


def is_ancestor(repo: Repository, old: ObjectID, new: ObjectID) -> bool:
    """Whether a state comes from another one, or is it; an id that is no state here comes before none."""
    from heddle.repo import log

    return old == new or (repo.is_state(old) and log.is_ancestor(repo, old, new))


def reflog_identity(repo: Repository) -> bytes:
    """For reflogs: whoever answers for what is done here."""
    try:
        return str(repo.attribution().principal).encode()
    except HeddleError:
        return b"heddle <heddle@localhost>"


class _Comparison:
    """One comparison of all branches and threads, under the repository's lock."""

    def __init__(
        self,
        repo: Repository,
        git: GitDir,
        link: tuple[str, ...],
        force: bool,
        adopt: Adopt | None,
        progress: Progress | None,
    ) -> None:
        self._repo = repo
        self._git = git
        self._refs = GitRefs(git)
        self._link = link
        self._force = force
        self._adopt = adopt
        self._progress = progress
        self._seen = repo.database.git_seen()
        self._signature = gitrefs.signature(git)
        self._heads = gitrefs.heads(git)
        head_ref, self._head_commit = self._refs.head()
        self._head_ref = head_ref
        self.step = Step()
        self._branches = self._read_branches()
        # A capture moves a thread and its mount's base together: neither is to be read without the other.
        with repo.database.at_one_moment():
            self._threads = {thread.name: thread for thread in repo.database.threads()}
            self._rows = repo.database.branches()
            self._mounts = mounts(repo)
        self._new_rows: dict[str, Branch | None] = {}
        self._moves: list[Move] = []
        self._pushes: dict[str, ObjectID] = {}
        self._adoptions: dict[str, ObjectID | None] = {}
        # Where git in mounts had gone when others moved its branch on.
        self._overtaken: dict[str, ObjectID] = {}
        # Branches that git brought to where their threads were already.
        self._arrived: set[str] = set()
        self._waits = False

    def _read_branches(self) -> dict[str, ObjectID]:
        """Git's branches whose names can be threads'; one that is damaged is a problem of its thread's alone."""
        found = {}
        damaged: dict[bytes, StorageError] = {}
        branches = self._refs.under(HEADS, damaged)
        for raw, error in damaged.items():
            self.step.problems[raw.decode(errors="surrogateescape")] = error
        for raw, id in branches.items():
            name = raw.decode(errors="surrogateescape")
            try:
                valid_thread_name(name)
            except InvalidName:
                continue
            found[name] = id
        return found

    def run(self) -> Step:
        names = {*self._branches, *self._rows, *self._link, *self._mounts}
        for name in sorted(names - self.step.problems.keys()):
            self._compare(name)
        self._adopt_overtaken()
        head, worktree = self._head_to_follow()
        self._follow(head, worktree)
        self._follow_in_mounts()
        self._push()
        self._push_head(follows=head is not None)
        for mount in self._mounts.values():
            self._settle_mount(mount)
        self._remember()
        return self.step

    # deciding

    def _compare(self, name: str) -> None:
        thread, branch = self._threads.get(name), self._branches.get(name)
        action = decide(thread, branch, self._rows.get(name))
        if self._is_unborn_in_mount(name) and thread is not None and thread.state is not None:
            action = Action.PUSH
        if name in self._link and thread is not None and thread.state not in (None, branch):
            action = Action.WEIGH if action in (Action.WEIGH, Action.FOLLOW) else Action.PUSH
            if self._force:
                action = Action.PUSH
        if action is Action.WEIGH:
            action = self._weigh(name)
        match action:
            case Action.SAME:
                self._new_rows[name] = Branch(branch)
                if name in self._rows:
                    self._arrived.add(name)
            case Action.MAKE | Action.FOLLOW:
                self._note_follow(name, thread, branch)
            case Action.PUSH:
                self._pushes[name] = cast("ObjectID", cast(Thread, thread).state)
            case Action.FORGET:
                self._new_rows[name] = None
                self._keep(name, self._rows[name].state)
            case Action.DROP:
                self._new_rows[name] = Branch(branch, dropped=True)

    def _is_unborn_in_mount(self, name: str) -> bool:
        """Whether a mounted thread is to become a branch."""
        mount = self._mounts.get(name)
        return mount is not None and mount.is_on_branch and name not in self._branches

    def _weigh(self, name: str) -> Action:
        """Both sides moved, or met for the first time: follow the one that contains the other."""
        branch = self._branches.get(name)
        state = self._threads[name].state
        if branch is None or state is None:
            return Action.PUSH
        try:
            if is_ancestor(self._repo, branch, state):
                return Action.PUSH
            if is_ancestor(self._repo, state, branch):
                return Action.FOLLOW
        except ObjectMissing as error:
            is_ours = self._repo.is_state(branch)
            self.step.problems[name] = error if is_ours else _unreadable(name, branch)
            return Action.NOTHING
        self.step.problems[name] = Diverged(
            f"thread '{name}' is at {_short(state)} and git's branch '{name}' at {_short(branch)}:"
            " each has what the other has not",
            hint=f"keep both: heddle thread rename {name} NEW-NAME; "
            f"or move the branch to the thread's state: heddle git export {name} --force",
        )
        return Action.NOTHING

    def _note_follow(self, name: str, thread: Thread | None, branch: ObjectID | None) -> None:
        if branch is not None and not self._repo.is_state(branch):
            self.step.problems[name] = _unreadable(name, branch)
            return
        old = thread.state if thread else None
        mover = self._mover(name, branch)
        if mover is Mover.UNCLEAR:
            self._waits = True
            return
        if mover is Mover.HERE:
            self._adoptions[name] = branch
        else:
            self._moves.append(Move("thread", name, old, branch))
            self._note_overtaken(name, old)
        self._new_rows[name] = Branch(branch)
        if old and branch:
            self._keep_if_rewritten(name, old, branch)

    def _mover(self, name: str, commit: ObjectID | None) -> Mover:
        """Whether a branch was moved by git in its own mount, whose files are as git wants them, or elsewhere."""
        mount = self._mounts.get(name)
        if mount is None or self._adopt is None or not mount.is_on_branch:
            return Mover.ELSEWHERE
        return mount.moved_by(self._repo, commit)

    def _note_overtaken(self, name: str, old: ObjectID | None) -> None:
        mount = self._mounts.get(name)
        if mount is None or self._adopt is None or not mount.is_on_branch or mount.base != old:
            return
        made = mount.last_logged(self._repo)
        if made is not None and made != old:
            self._overtaken[name] = made

    def _keep_if_rewritten(self, name: str, old: ObjectID, new: ObjectID) -> None:
        if self._repo.is_state(old) and not is_ancestor(self._repo, old, new):
            self._keep(name, old)

    def _keep(self, name: str, state: ObjectID | None) -> None:
        """Keep git's gc from taking a state that a branch was at, and that the operation log names."""
        ref = KEPT + (state or b"")
        if state is None or self._refs.get(ref) is not None or not self._repo.is_state(state):
            return
        try:
            self._store_objects([state])  # what git has pruned may still be here
            self._refs.move(ref, None, state, who=self._who, message=b"heddle: kept")
        except HeddleError as error:
            self.step.problems[name] = error

    # HEAD

    @cached_property
    def _head_branch(self) -> str | None:
        """The thread name of the branch that git's HEAD is on; None: detached, or no thread's name."""
        if self._head_ref is None or not self._head_ref.startswith(HEADS):
            return None
        name = self._head_ref[len(HEADS) :].decode(errors="surrogateescape")
        try:
            valid_thread_name(name)
        except InvalidName:
            return None
        return name

    @property
    def _head_text(self) -> str:
        if self._head_branch is not None and self._head_ref is not None:
            return self._head_ref.decode(errors="surrogateescape")
        return (self._head_commit or b"").decode()

    def _head_to_follow(self) -> tuple[str | None, tuple[ObjectID | None] | None]:
        """The thread to put HEAD on, and where the working directory is now; None: as it is."""
        commit = self._head_commit
        if self._seen is None or self._seen.git_head != self._head_text:
            head = self._head_branch or self._detached_thread()
            self._make_thread_of_head(head)
            thread = self._threads.get(head)
            if commit is None and thread is not None and thread.state is not None:
                return head, None  # git has nothing yet, and the working directory is where it was
            return head, (commit,)
        if self._is_left_by_name():
            return self._head_branch, (commit,)
        went = {move.name for move in self._moves} | self._arrived
        if self._repo.database.head() in went and self._repo.database.head() == self._head_branch:
            return None, (commit,)
        return None, None

    def _is_left_by_name(self) -> bool:
        """Whether the thread of git's branch got another name, and the branch had gone another way: git stays on it."""
        return (
            self._seen is not None
            and self._seen.head == self._head_branch != self._repo.database.head()
            and self._head_branch not in self._threads
            and any(move.name == self._head_branch for move in self._moves)
        )

    def _make_thread_of_head(self, head: str) -> None:
        """Git came to a branch without a thread: it has no commit and so no ref, or its thread was deleted."""
        if head != self._head_branch:
            return
        commit = self._head_commit
        is_made = any(move.name == head for move in self._moves)
        if head not in self._threads and not is_made:
            self._moves.append(Move("thread", head, None, commit))
            self._new_rows[head] = Branch(commit)
        elif commit is None and head not in self._rows:
            self._new_rows[head] = Branch(None)

    def _detached_thread(self) -> str:
        """A thread at git's detached HEAD: the usual one, unless something was captured on it."""
        commit = self._head_commit
        thread = self._threads.get(DETACHED)
        last = self._seen.git_head if self._seen else None
        name = DETACHED
        if thread and thread.state and thread.state not in (commit, (last or "").encode()):
            name = f"{DETACHED}-{_short(commit)}"
            thread = self._threads.get(name)
        if name in self._branches:
            name, thread = f"{DETACHED}-at-{_short(commit)}", None
        if thread is None or thread.state != commit:
            self._moves.append(Move("thread", name, thread.state if thread else None, commit))
        return name

    # doing

    def _adopt_overtaken(self) -> None:
        """Have mounts be relative to what git in them made, so that they can follow those who went on from there."""
        for name, made in self._overtaken.items():
            if not self._has_taken(name, made, None):
                self._moves = [move for move in self._moves if move.name != name]
                self._new_rows.pop(name, None)

    def _follow(self, head: str | None, worktree: tuple[ObjectID | None] | None) -> None:
        if not self._moves and head is None and worktree is None:
            return
        faults.reach("branches.before-follow")
        self._repo.database.move_names(
            self._moves, kind="git", message="as git has it", head=head, worktree=worktree
        )
        self.step.followed = {move.name: move.new for move in self._moves}

    # mounts

    def _follow_in_mounts(self) -> None:
        """Move threads to where git in their mounts brought their branches; the mounts show what they showed."""
        for name, commit in self._adoptions.items():
            thread = self._threads.get(name)
            if self._have_adopted(name, commit, (thread.state if thread else None,)):
                self.step.followed[name] = commit
            else:
                self._new_rows.pop(name, None)

    def _have_adopted(
        self, name: str, commit: ObjectID | None, moved_from: tuple[ObjectID | None] | None
    ) -> bool:
        """Have a mount stay at a commit; whether it does."""
        if not self._has_taken(name, commit, moved_from):
            return False
        self.step.adopted.add(name)
        return True

    def _has_taken(
        self, name: str, commit: ObjectID | None, moved_from: tuple[ObjectID | None] | None
    ) -> bool:
        """Have a mount be relative to a commit; whether it is."""
        assert self._adopt is not None
        try:
            self._adopt(name, commit, moved_from)
        except HeddleError as error:
            self.step.problems[name] = error
            return False
        self._mounts[name].base = commit
        return True

    def _settle_mount(self, mount: Mount) -> None:
        """Bring a mount and git's HEAD in it together, once branches and threads are."""
        name = mount.thread
        if mount.ref is None and mount.commit is not None:
            self._keep(name, mount.commit)  # nothing else in git names it once we unmount
        thread = self._threads.get(name)
        # No ref that shows what becomes of it: a capture there makes the branch, and nothing else would tell.
        self._waits |= mount.is_on_branch and name not in self._branches
        is_unclear = mount.is_on_branch and name in self.step.problems
        if thread is None or is_unclear or mount.is_on_its_way:
            self._waits |= mount.is_on_its_way
            return
        state = self.step.followed.get(name, thread.state)
        try:
            if mount.stands_in:
                self._settle_stand_in(mount, state)
            elif mount.is_on_branch:
                self._settle_branch(mount, state)
            elif mount.base != mount.commit and self._adopt is not None:
                self._have_adopted(name, mount.commit, None)
        except HeddleError as error:
            self.step.problems[name] = error

    def _settle_branch(self, mount: Mount, state: ObjectID | None) -> None:
        """HEAD is on the thread's branch."""
        commit = self._branches.get(mount.thread)
        if commit is None or commit != state:
            return
        mover = mount.moved_by(self._repo, commit)
        self._waits |= mover is Mover.UNCLEAR
        if mover is Mover.ELSEWHERE and mount.base != commit:
            self.step.behind.add(mount.thread)
            self._waits = True  # the index here is brought along when the mount shows it
        if mount.base != commit and mover is Mover.HERE and self._adopt is not None:
            self._have_adopted(mount.thread, commit, (state,))
        elif mount.base == commit and mover is Mover.ELSEWHERE:
            mount.note_moved(self._repo, commit, self._who, b"heddle: followed")
        if mount.base == commit:
            mount.linked.note_shown(commit)

    def _settle_stand_in(self, mount: Mount, state: ObjectID | None) -> None:
        """HEAD is detached because the branch is checked out elsewhere: it stands for the thread."""
        commit, agreed = mount.commit, mount.linked.agreed()
        assert commit is not None
        if commit == agreed and state not in (agreed, None) and mount.base == state:
            self._store_objects([state])
            mount.put_head(self._repo, state, self._who, b"heddle: captured")
        elif commit == state != agreed and mount.base != commit and self._adopt is not None:
            self._have_adopted(mount.thread, commit, (state,))
        elif commit not in (agreed, state) and state == agreed and self._adopt is not None:
            if self._have_adopted(mount.thread, commit, (state,)) and state is not None:
                self._keep_if_rewritten(mount.thread, state, commit)
        elif commit not in (agreed, state) and state != agreed:
            self.step.problems[mount.thread] = Diverged(
                f"thread '{mount.thread}' is at {_short(state)} and git in {mount.linked.git.checkout}"
                f" at {_short(commit)}: both have moved",
                hint=f"keep both: git switch -c NEW-NAME there, then git switch --detach {_short(state)}",
            )
            return
        if mount.base == mount.commit and mount.commit is not None:
            mount.linked.agree(mount.commit)

    @cached_property
    def _elsewhere(self) -> dict[bytes, Path]:
        return linked.holders(self._git)

    def _push(self) -> None:
        ready = {name: new for name, new in self._pushes.items() if self._may_push(name, new)}
        if not ready:
            return
        self._store_objects(ready.values())
        for name, new in ready.items():
            try:
                self._push_branch(name, new)
            except HeddleError as error:
                self.step.problems[name] = error
                if not isinstance(error, Busy) and self._is_unborn_in_mount(name):
                    self._mounts[name].linked.detach(new)
                continue
            self.step.moved[name] = new
            self._branches[name] = new
            self._new_rows[name] = Branch(new)

    def _may_push(self, name: str, new: ObjectID) -> bool:
        """Whether no checkout would be left behind by its branch."""
        place = self._elsewhere.get(HEADS + name.encode())
        if place is None or self._is_here(name, new) or self._is_mounted_at(name, new):
            return True
        if name == self._head_branch:
            why, hint = "is checked out here, and the working directory is behind", "heddle switch "
            hint += name
        else:
            why, hint = f"is checked out in {place}", f"git -C {place} switch to another branch"
        self.step.problems[name] = DataError(
            f"git's branch '{name}' {why}: it stays at {_short(self._branches.get(name))},"
            f" the thread is at {_short(new)}",
            hint=hint,
        )
        return False

    def _is_here(self, name: str, new: ObjectID) -> bool:
        """Whether our own working directory is on the branch, in git and here, and at the new state."""
        database = self._repo.database
        return name == self._head_branch == database.head() and database.worktree_base() == new

    def _is_mounted_at(self, name: str, new: ObjectID) -> bool:
        """Whether the thread's own mount is on the branch, and at the new state."""
        mount = self._mounts.get(name)
        return mount is not None and mount.is_on_branch and mount.base == new

    def _store_objects(self, tips: Iterable[ObjectID]) -> None:
        self.step.pack, count = _write_missing(self._repo, self._git, tips, self._progress)
        self.step.objects += count

    def _push_branch(self, name: str, new: ObjectID) -> None:
        old = self._branches.get(name)
        refs, mount = self._refs, self._mounts.get(name)
        if name == self._head_branch and not self._git.bare:
            self._bring_index(old, new)
        if mount is not None and mount.is_on_branch:
            refs = mount.refs
            mount.bring_index(self._repo, old, new)
        faults.reach("branches.before-ref")
        subject = self._repo.state(new).message.partition("\n")[0]
        refs.move(
            HEADS + name.encode(),
            old,
            new,
            who=self._who,
            message=f"heddle: {subject}".encode(errors="surrogateescape"),
        )

    def _bring_index(self, old: ObjectID | None, new: ObjectID | None) -> None:
        trees = [None if id is None else self._repo.state(id).tree for id in (old, new)]
        environment = self._repo.environment
        index.update(self._git, self._repo.store, *trees, environment=environment)

    def _push_head(self, *, follows: bool) -> None:
        """Put git's HEAD on the thread that heddle's HEAD was moved to, as a branch."""
        head = self._repo.database.head()
        if (
            self._git.bare
            or follows
            or self._seen is None
            or self._seen.head == head
            or head == self._head_branch
        ):
            return
        new = self._repo.database.worktree_base()
        try:
            self._make_branch(head, new)
            if head in self.step.problems:
                return
            self._bring_index(self._head_commit, new)
            message = f"heddle: moving to {head}".encode()
            self._refs.put_head(HEADS + head.encode(), who=self._who, message=message)
        except HeddleError as error:
            self.step.problems[head] = error
            return
        self._head_ref, self._head_commit = HEADS + head.encode(), new
        self.__dict__.pop("_head_branch", None)
        if new is None:
            self._new_rows[head] = Branch(None)

    def _make_branch(self, name: str, new: ObjectID | None) -> None:
        """Make a thread a branch if it is none yet."""
        if new is None or name in self._branches or name in self.step.problems:
            return
        self._store_objects([new])
        self._push_branch(name, new)
        self.step.moved[name] = self._branches[name] = new
        self._new_rows[name] = Branch(new)

    @cached_property
    def _who(self) -> bytes:
        return reflog_identity(self._repo)

    def _remember(self) -> None:
        """Record what is in step, with a signature only where the next look would find what this one has seen.

        That is the one from before git was read; or, when we have moved branches, the one that git has now, if all
        else that it is made of is as we read it. What is not in step is looked at, and said, each time.
        """
        signature = self._signature
        if self.step.moved:
            signature = gitrefs.signature(self._git)
            if self._read_branches() != self._branches or gitrefs.heads(self._git) != self._heads:
                signature = b""
        if self._waits or self.step.problems:
            signature = b""
        head = self._repo.database.head()
        waits = head in self.step.problems and self._seen is not None and head != self._head_branch
        seen_head = self._seen.head if waits and self._seen else head
        self._repo.database.put_git_seen(
            GitSeen(signature, self._head_text, seen_head), self._new_rows
        )


def _short(id: bytes | None) -> str:
    return "no commit" if id is None else id[:12].decode()


def _unreadable(name: str, branch: ObjectID) -> ObjectMissing:
    return ObjectMissing(
        f"git's branch '{name}' is at {_short(branch)}, which is no commit that can be read",
        hint="git fsck",
    )
