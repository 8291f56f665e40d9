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

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

from heddle import faults
from heddle.errors import DataError, HeddleError, InvalidName, ObjectMissing
from heddle.git import refs as gitrefs
from heddle.git.refs import HEADS, GitRefs
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
        moved: branches that went where their thread went, with their new states.
        problems: by thread, why it and its branch are not in step.
        pack: the git pack that was written, without suffix; None: git had everything.
        objects: how many objects it holds.
    """

    followed: dict[str, ObjectID | None] = field(default_factory=dict)
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
    progress: Progress | None = None,
) -> Step:
    """Bring branches and threads in step; costs next to nothing when neither has moved.

    Args:
        repo: a repository; on one that does not lie on git nothing happens.
        link: threads that become branches if they are none.
        force: of those, also where git's branch holds commits that the thread does not; git's reflog keeps them.
        progress: called with objects written for git and objects in all.

    Returns:
        What was done; what could not be is in ``problems``, and nothing of it was changed.

    Raises:
        HeddleError: git's refs or heddle's database can't be read.
    """
    if repo.git is None:
        return Step()
    wanted = tuple(link)
    seen = repo.database.git_seen()
    signature = gitrefs.signature(repo.git)
    if not wanted and seen and seen.signature == signature and repo.database.is_in_step():
        return Step()
    with directory_locked(repo.heddle_dir):
        return _Comparison(repo, repo.git, wanted, force, progress).run()


def is_ancestor(repo: Repository, old: ObjectID, new: ObjectID) -> bool:
    """Whether a state comes from another one, or is it."""
    from heddle.repo.log import newest_first

    if old == new:
        return True
    if not repo.is_state(old):
        return False
    if _is_recent_ancestor(repo, old, new):
        return True
    return any(state.id == old for state in newest_first(repo, [new]))  # clocks can lie


def _is_recent_ancestor(repo: Repository, old: ObjectID, new: ObjectID) -> bool:
    """The same without looking behind the older state's time."""
    from heddle.repo.log import newest_first

    since_s = repo.state(old).time_s
    return any(state.id == old for state in newest_first(repo, [new], since_s=since_s))


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
        progress: Progress | None,
    ) -> None:
        self._repo = repo
        self._git = git
        self._refs = GitRefs(git)
        self._link = link
        self._force = force
        self._progress = progress
        self._seen = repo.database.git_seen()
        self._signature = gitrefs.signature(git)
        head_ref, self._head_commit = self._refs.head()
        self._head_ref = head_ref
        self._branches = self._read_branches()
        self._threads = {thread.name: thread for thread in repo.database.threads()}
        self._rows = repo.database.branches()
        self._new_rows: dict[str, Branch | None] = {}
        self._moves: list[Move] = []
        self._pushes: dict[str, ObjectID] = {}
        self.step = Step()

    def _read_branches(self) -> dict[str, ObjectID]:
        """Git's branches whose names can be threads'."""
        found = {}
        for raw, id in self._refs.under(HEADS).items():
            name = raw.decode(errors="surrogateescape")
            try:
                valid_thread_name(name)
            except InvalidName:
                continue
            found[name] = id
        return found

    def run(self) -> Step:
        for name in sorted({*self._branches, *self._rows, *self._link}):
            self._compare(name)
        head, worktree = self._head_to_follow()
        self._follow(head, worktree)
        self._push()
        self._push_head(follows=head is not None)
        self._remember()
        return self.step

    # deciding

    def _compare(self, name: str) -> None:
        thread, branch = self._threads.get(name), self._branches.get(name)
        action = decide(thread, branch, self._rows.get(name))
        if name in self._link and thread is not None and thread.state not in (None, branch):
            action = Action.WEIGH if action in (Action.WEIGH, Action.FOLLOW) else Action.PUSH
            if self._force:
                action = Action.PUSH
        if action is Action.WEIGH:
            action = self._weigh(name)
        match action:
            case Action.SAME:
                self._new_rows[name] = Branch(branch)
            case Action.MAKE | Action.FOLLOW:
                self._note_follow(name, thread, branch)
            case Action.PUSH:
                self._pushes[name] = cast("ObjectID", cast(Thread, thread).state)
            case Action.FORGET:
                self._new_rows[name] = None
                self._keep(name, self._rows[name].state)
            case Action.DROP:
                self._new_rows[name] = Branch(branch, dropped=True)

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
            self.step.problems[name] = error
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
            self.step.problems[name] = ObjectMissing(
                f"git's branch '{name}' is at {_short(branch)}, which is no commit that can be read",
                hint="git fsck",
            )
            return
        old = thread.state if thread else None
        self._moves.append(Move("thread", name, old, branch))
        self._new_rows[name] = Branch(branch)
        if old and branch and not _is_recent_ancestor(self._repo, old, branch):
            self._keep(name, old)

    def _keep(self, name: str, state: ObjectID | None) -> None:
        """Keep git's gc from taking a state that a branch was at, and that the operation log names."""
        ref = KEPT + (state or b"")
        if state is None or self._refs.get(ref) is not None:
            return
        try:
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
            self._make_unborn(head)
            return head, (commit,)
        went = {move.name for move in self._moves}
        if self._repo.database.head() in went and self._repo.database.head() == self._head_branch:
            return None, (commit,)
        return None, None

    def _make_unborn(self, head: str) -> None:
        """A branch without a commit has no ref: its thread is made all the same, and linked."""
        if head == self._head_branch and self._head_commit is None:
            if head not in self._threads:
                self._moves.append(Move("thread", head, None, None))
            if head not in self._rows:
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

    def _follow(self, head: str | None, worktree: tuple[ObjectID | None] | None) -> None:
        if not self._moves and head is None and worktree is None:
            return
        faults.reach("branches.before-follow")
        self._repo.database.move_names(
            self._moves, kind="git", message="as git has it", head=head, worktree=worktree
        )
        self.step.followed = {move.name: move.new for move in self._moves}

    @cached_property
    def _elsewhere(self) -> dict[bytes, Path]:
        return gitrefs.checked_out(self._git)

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
                continue
            self.step.moved[name] = new
            self._branches[name] = new
            self._new_rows[name] = Branch(new)

    def _may_push(self, name: str, new: ObjectID) -> bool:
        """Whether no checkout would be left behind by its branch."""
        place = self._elsewhere.get(HEADS + name.encode())
        if place is None or self._is_here(name, new):
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

    def _store_objects(self, tips: Iterable[ObjectID]) -> None:
        from heddle.git.pack import missing_objects, write_pack
        from heddle.objects.gitdir import GitObjects

        have = GitObjects(self._git.objects, self._repo.object_format)
        ids = missing_objects(self._repo.store, tips, have.holds)
        self.step.pack = write_pack(
            self._repo.store, ids, self._git.objects, progress=self._progress
        )
        self.step.objects += len(ids)
        have.close()

    def _push_branch(self, name: str, new: ObjectID) -> None:
        old = self._branches.get(name)
        if name == self._head_branch:
            self._bring_index(old, new)
        faults.reach("branches.before-ref")
        subject = self._repo.state(new).message.partition("\n")[0]
        self._refs.move(
            HEADS + name.encode(),
            old,
            new,
            who=self._who,
            message=f"heddle: {subject}".encode(errors="surrogateescape"),
        )

    def _bring_index(self, old: ObjectID | None, new: ObjectID | None) -> None:
        from heddle.git import index

        trees = [None if id is None else self._repo.state(id).tree for id in (old, new)]
        environment = self._repo.environment
        index.update(self._git, self._repo.store, *trees, environment=environment)

    def _push_head(self, *, follows: bool) -> None:
        """Put git's HEAD on the thread that heddle's HEAD was moved to, as a branch."""
        head = self._repo.database.head()
        if follows or self._seen is None or self._seen.head == head or head == self._head_branch:
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
        """Record what is in step, with the signature that git has now, if its refs are still as we left them."""
        signature = self._signature
        if self.step.moved or self._head_text != (self._seen.git_head if self._seen else ""):
            signature = gitrefs.signature(self._git)
            if self._read_branches() != self._branches or self._refs.head()[0] != self._head_ref:
                signature = b""
        head = self._repo.database.head()
        waits = head in self.step.problems and self._seen is not None and head != self._head_branch
        seen_head = self._seen.head if waits and self._seen else head
        self._repo.database.put_git_seen(
            GitSeen(signature, self._head_text, seen_head), self._new_rows
        )


def _short(id: bytes | None) -> str:
    return "no commit" if id is None else id[:12].decode()
