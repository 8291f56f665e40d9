"""Heddle as a library: what the commands do, for Python.

Owns the choice between the plain working directory and a mount, so that ``capture``, ``status`` and ``diff`` mean the
place that the repository was opened from. It prints nothing; every error is a ``heddle.errors.HeddleError`` that says
what to do next. How a thing is done is the layers' below.

    import heddle

    repo = heddle.open("project")
    with heddle.mounted(repo, "agent-1", create=True) as path:
        (path / "notes.txt").write_text("done\\n")
        repo.capture(message="Take notes", thread="agent-1")
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from heddle.errors import (
    Busy,
    DataError,
    HeddleError,
    NotARepository,
    NothingToCapture,
    NotMounted,
    UnsavedChanges,
    UsageError,
)
from heddle.mount import ending, lifecycle, mountinfo, registry, unsaved
from heddle.mount.ending import Unmounted
from heddle.mount.lifecycle import Mounted, MountInfo, MountOptions
from heddle.mount.process import Holder
from heddle.mount.registry import Session, SessionRecord
from heddle.mount.runtime import RuntimeDirectory
from heddle.repo import repository

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.attribution import Attribution
    from heddle.git.fetching import Pulled
    from heddle.mount.materialize import Written
    from heddle.mount.parked import Park
    from heddle.mount.sources import Source
    from heddle.repo import changes as changed
    from heddle.repo.aside import Repair
    from heddle.repo.capture import Captured
    from heddle.repo.changes import Change, NotRecorded
    from heddle.repo.diff import FileDiff
    from heddle.repo.fsck import Report
    from heddle.repo.gc import Collected
    from heddle.repo.switch import Switched

__all__ = [
    "Failed",
    "GarbageCollected",
    "Materialized",
    "MountInfo",
    "Mounted",
    "Repository",
    "Status",
    "Unmounted",
    "Unmounting",
    "init",
    "mounted",
    "mounts",
    "open",
    "unmount",
]

Progress = Callable[[int, int], None]
MANY_PACKS = 50
"""From so many packs on ``status`` suggests to collect them."""
_CAPTURES = 5
"""So often a capture in a mount is made anew because git committed there meanwhile."""
_NOTHING: Mapping[str, str] = MappingProxyType({})
_NO_PROBLEMS: Mapping[str, HeddleError] = MappingProxyType({})


class Status(NamedTuple):
    """Where we are and what has changed.

    Attributes:
        repository: the directory that holds ``.heddle``.
        thread: what ``HEAD`` means here.
        state: the state that the changes are against; None before the first capture.
        mountpoint: the mount we are in, or None in the plain working directory.
        changes: what is unsaved, without what is ignored.
        ignored_count: how many entries are ignored; an ignored directory counts once.
        not_recorded: what a capture would leave out, other git repositories for example.
        mounts_stale: mounts of this repository that died or hang.
        git_branch: in a mount, the branch that git is on there, if not the thread's own.
        git_doing: what git is in the middle of here, as ``linked.unfinished`` says; None: nothing.
        many_packs: whether there are so many packs, or so many versions in one, that ``collect`` would help.
    """

    repository: Path
    thread: str
    state: ObjectID | None
    mountpoint: Path | None
    changes: Sequence[Change]
    ignored_count: int
    mounts_stale: Sequence[MountInfo]
    many_packs: bool = False
    git_branch: str | None = None
    git_doing: str | None = None
    not_recorded: Sequence[NotRecorded] = ()


class Materialized(NamedTuple):
    """Real files that were made of a state or of an overlay.

    Attributes:
        state: the state; of an overlay, the one that it is relative to; None is the empty tree.
        thread: the thread whose overlay it was; None for a state.
        destination: the directory, absolute.
        written: what was written, and what could not be.
    """

    state: ObjectID | None
    thread: str | None
    destination: Path
    written: Written


class GarbageCollected(NamedTuple):
    """What ``collect`` did.

    Attributes:
        objects: what became of packs and objects.
        parked_dropped: how many parked overlays went.
    """

    objects: Collected
    parked_dropped: int


class Failed(NamedTuple):
    """A mount that could not be ended, and is as it was.

    Attributes:
        mountpoint: where it is.
        error: why.
        holders: the processes that keep it busy, as far as we may see them.
    """

    mountpoint: Path
    error: HeddleError
    holders: Sequence[Holder] = ()


class Unmounting(NamedTuple):
    """What became of the mounts that were to be ended."""

    unmounted: Sequence[Unmounted]
    failed: Sequence[Failed]

    def raise_failed(self) -> None:
        """Raise the first error, if there is any."""
        if self.failed:
            raise self.failed[0].error


class _Here(NamedTuple):
    """What is unsaved in one place, and what reads such changes as they would be captured."""

    base: ObjectID | None
    found: changed.Status
    reading: Callable[[Sequence[Change]], AbstractContextManager[Callable[[bytes], bytes]]]


class Repository(repository.Repository):
    """A repository as seen from one place: its plain working directory, or a mount of one of its threads.

    Made by ``heddle.open`` and ``heddle.init``.

    Attributes:
        mountpoint: the mount that it was opened in, or None.
        shown: the spec of the state that a read-only mount shows, when it was opened in one.
        environment: where the user's settings and the attribution of captures come from.
        git_problems: by thread, why it and its branch in git were not in step at the last look.
    """

    provider = "heddle.git.promisor:Promisor"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.mountpoint: Path | None = None
        self.git_problems: Mapping[str, HeddleError] = _NO_PROBLEMS
        self.shown: str | None = None
        self._asked: set[str] = set()  # threads whose mounts were named

    @classmethod
    def init(
        cls,
        path: Path,
        *,
        object_format: str | None = None,
        environment: Mapping[str, str] = _NOTHING,
    ) -> Self:
        """Make a repository in a directory, or open the one that is there.

        Raises:
            DataError: the directory is in a mount: every command there is about what is mounted.
            CannotCreate, DataError, UsageError: as ``heddle.repo.repository.Repository.init``.
        """
        location = mountinfo.locate(path.absolute())
        if location is not None:
            raise DataError(
                f"{path.absolute()} is in the mount of '{location.thread}' of {location.repository}",
                hint="heddle init in a directory outside",
            )
        return super().init(path, object_format=object_format, environment=environment)

    @property
    def runtime(self) -> RuntimeDirectory:
        """The runtime directory, checked.

        Raises:
            NotPermitted: it is not safe to use.
        """
        return RuntimeDirectory.from_environment(self.environment)

    # what changed

    def attribution(
        self,
        *,
        flags: Mapping[str, str | None] = _NOTHING,
        environment: Mapping[str, str] | None = None,
        no_agent: bool = False,
        mount_defaults: Mapping[str, str] | None = None,
    ) -> Attribution:
        """Who a capture made here is recorded for; inside a mount its defaults count.

        Args:
            flags: values given for this capture, by key (``agent.model``, …).
            environment: of the capturing command; None: ``self.environment``.
            no_agent: record no agent, whatever is configured.
            mount_defaults: given when the thread was mounted; None: those of the mount we are in.

        Raises:
            NoPrincipal, UsageError, ConfigError: as ``heddle.attribution.resolve``.
        """
        if mount_defaults is None:
            mount_defaults = _NOTHING
            if self.mountpoint is not None:
                mount_defaults = unsaved.agent_defaults(self, self.current_thread, self.runtime)
        return super().attribution(
            flags=flags, environment=environment, no_agent=no_agent, mount_defaults=mount_defaults
        )

    # in step with git

    def follow_git(self) -> None:
        """Bring threads and git's branches in step, where the repository lies on git; mounts follow too.

        Nothing is raised: what could not be done is in ``git_problems``.
        """
        if self.git_came_later:
            came = f"{self.path / '.git'} came after .heddle, and neither knows of the other"
            self.git_problems = {"": DataError(came, hint="heddle init")}
            return
        if not (self.path / ".git").exists() and self.git is None:
            return
        from heddle.git import branches

        try:
            step = branches.follow(self, adopt=self._adopt)
            told = {*step.followed, *step.behind} - step.adopted
            showing = [self._tell_mount(thread) for thread in sorted(told)]
            if any(showing):
                step = branches.follow(
                    self, adopt=self._adopt
                )  # git's side of what those mounts show
        except HeddleError as error:
            self.git_problems = {"": error}
            return
        except OSError as error:
            self.git_problems = {
                "": DataError(f"git's {os.fsdecode(error.filename)}: {error.strerror}")
            }
            return
        self.git_problems = step.problems

    def _adopt(
        self, thread: str, state: ObjectID | None, moved_from: tuple[ObjectID | None] | None
    ) -> None:
        """Git in a thread's mount went to a state: what is unsaved is relative to that from now on."""
        unsaved.adopt(self, thread, state, self.runtime, moved_from=moved_from)

    def _other_branch(self) -> str | None:
        if self.mountpoint is None or self.git is None:
            return None
        from heddle.git import worktrees

        return worktrees.other_branch(self, self.current_thread)

    def _git_doing(self) -> str | None:
        if self.git is None:
            return None
        from heddle.repo import linked

        if self.mountpoint is None:
            return linked.unfinished(self.git)
        return next((each.doing() for each in linked.of(self, self.current_thread)), None)

    def _require_in_step(self, thread: str) -> None:
        """Refuse to capture on a thread that has diverged from its branch, or in the middle of git's own work."""
        if self.git is None:
            return
        from heddle.git import branches, worktrees
        from heddle.repo import linked

        self.follow_git()
        problem = self.git_problems.get(thread)
        if isinstance(problem, branches.Diverged):
            raise problem
        if self._is_working_directory(thread):
            doing = linked.unfinished(self.git)
            if doing and doing not in linked.DETACHING:
                raise linked.in_the_way(self.git, doing)
            # In the middle of a rebase, what is captured is a thread's of its own.
            worktrees.require_settled(self, self.git, doing)
        worktrees.require_capturable(self, thread)

    def pull(
        self,
        remote: str = "origin",
        thread: str | None = None,
        *,
        progress: Progress | None = None,
    ) -> Pulled:
        """Fetch, and move a thread forward; the working directory, or a live mount of it, goes along.

        Args:
            remote: from where.
            thread: None: the one that we are on.
            progress: called with what the server counts, and the total.

        Raises:
            HeddleError: as ``heddle.git.fetching.pull``; the thread was not moved.
        """
        from heddle.git import fetching

        pulled = fetching.pull(self, remote, thread, show=self._require_shown, progress=progress)
        self.follow_git()
        return pulled

    def _require_shown(self, thread: str) -> None:
        try:
            if not unsaved.follow(self, thread, self.runtime) and self.has_unsaved(thread):
                raise DataError("its mount is not live")
        except DataError as error:
            raise UnsavedChanges(
                f"the mount of thread '{thread}' has changes that no state holds",
                hint=f"heddle capture --thread {thread}, or put them aside: heddle unmount {thread} --discard",
            ) from error

    def status(self) -> Status:
        """What changed here since the last capture, and which mounts need attention.

        Raises:
            Busy: the mount we are in hangs.
        """
        stale = lifecycle.need_attention(self.runtime, self)
        with self._here() as here:
            pass
        return Status(
            repository=self.path,
            thread=self.current_thread if self.shown is None else self.shown,
            state=here.base,
            mountpoint=self.mountpoint,
            changes=here.found.changes,
            ignored_count=here.found.ignored_count,
            not_recorded=here.found.not_recorded,
            mounts_stale=stale,
            many_packs=self.store.packs_directory.count() >= MANY_PACKS
            or self.store.packs_directory.holds_versions(),
            git_branch=self._other_branch(),
            git_doing=self._git_doing(),
        )

    def capture(
        self,
        *,
        message: str = "",
        thread: str | None = None,
        paths: Sequence[bytes] = (),
        allow_empty: bool = False,
        flags: Mapping[str, str | None] = _NOTHING,
        no_agent: bool = False,
        progress: Progress | None = None,
    ) -> Captured:
        """Record what changed as a new state: here, or in a thread's mount, live or not.

        Args:
            message: what was done and why.
            thread: capture this thread's mount; None: the mount we are in, or the working directory.
            paths: only what changed at or below these paths, relative to the repository's root.
            allow_empty: make a state even if nothing changed.
            flags: attribution values for this capture, by key (``agent.model``, …).
            no_agent: record no agent, whatever is configured.
            progress: called with what is done and the total.

        Raises:
            NothingToCapture: nothing changed.
            ThreadMoved: somebody else moved the thread meanwhile.
            NoPrincipal: nobody answers for it.
            ThreadNotFound, NotMounted, Busy, StorageError: as they say.
        """
        if thread is None and self.mountpoint is not None:
            thread = self._writable_thread()
        if thread is not None:
            self._asked.add(thread)
            self.threads.get(thread)
        self._require_in_step(self.head if thread is None else thread)
        if thread is None or self._is_working_directory(thread):
            done = self._capture_worktree(message, paths, allow_empty, flags, no_agent, progress)
            self.follow_git()
            return done
        for attempt in range(_CAPTURES):
            try:
                done = self._capture_mount(thread, message, paths, allow_empty, flags, no_agent)
            except NothingToCapture:
                if attempt == 0:
                    raise
                raise NothingToCapture(
                    f"git in the mount of thread '{thread}' has committed everything meanwhile",
                    hint="heddle log",
                ) from None
            self.follow_git()
            if not self._git_was_first(thread, done):
                if self.git is not None and not paths and thread not in self.git_problems:
                    from heddle.git import worktrees

                    worktrees.settle_index(self, thread, done.state.id)
                return done
            self._require_in_step(thread)
        raise Busy(f"git in the mount of thread '{thread}' commits all the time")

    def _git_was_first(self, thread: str, captured: Captured) -> bool:
        """Give way where git in a mount committed while we captured: the thread goes where git did, and shows the same.

        What was captured is in the operation log, and unsaved again as far as git has not committed it.
        """
        from heddle.git import branches, worktrees

        if isinstance(self.git_problems.get(thread), Busy):
            self.follow_git()  # the branch moved just when it was to follow, perhaps
        if not isinstance(self.git_problems.get(thread), branches.Diverged):
            return False
        mount, ours = worktrees.went_by_itself(self, thread), captured.state.id
        if mount is None or self.threads.get(thread).state != ours:
            return False
        self._adopt(thread, mount.commit, (ours,))
        # It may have what we captured already; while git holds it, the next round brings it along.
        with suppress(HeddleError):
            mount.bring_index(self, ours, mount.commit)
        return True

    def _writable_thread(self) -> str:
        if self.shown is not None:
            raise DataError(
                f"{self.mountpoint} is a read-only mount of {self.shown}: there is nothing to capture",
                hint="heddle capture --thread THREAD",
            )
        return self.current_thread

    def _is_working_directory(self, thread: str) -> bool:
        """Whether what is unsaved of a thread can only be in the plain working directory."""
        from heddle.repo.names import overlay_dir

        return (
            self.mountpoint is None
            and thread == self.head
            and not overlay_dir(self, thread).is_dir()
        )

    def _capture_mount(
        self,
        thread: str,
        message: str,
        paths: Sequence[bytes],
        allow_empty: bool,
        flags: Mapping[str, str | None],
        no_agent: bool,
    ) -> Captured:
        defaults = unsaved.agent_defaults(self, thread, self.runtime)
        attribution = self.attribution(flags=flags, no_agent=no_agent, mount_defaults=defaults)
        with unsaved.unsaved(self, thread, self.runtime) as mine:
            return mine.capture(
                message=message, attribution=attribution, paths=paths, allow_empty=allow_empty
            )

    def _capture_worktree(
        self,
        message: str,
        paths: Sequence[bytes],
        allow_empty: bool,
        flags: Mapping[str, str | None],
        no_agent: bool,
        progress: Progress | None,
    ) -> Captured:
        from heddle.repo.capture import capture_worktree

        self.require_worktree()
        captured = capture_worktree(
            self,
            message=message,
            attribution=self.attribution(flags=flags, no_agent=no_agent),
            paths=paths,
            allow_empty=allow_empty,
            progress=progress,
        )
        self._tell_mount(self.head)
        return captured

    def has_unsaved(self, thread: str, *, also_left_out: bool = False) -> bool:
        """Whether a thread's mount, or what its last one left, holds changes that no state does.

        Args:
            also_left_out: other git repositories there count as well.

        Raises:
            Busy: its session hangs.
        """
        from heddle.repo.changes import ANOTHER_REPOSITORY
        from heddle.repo.names import overlay_dir

        if not overlay_dir(self, thread).is_dir():
            return False
        with unsaved.unsaved(self, thread, self.runtime) as mine:
            found = mine.status()
        left_out = any(one.why == ANOTHER_REPOSITORY for one in found.not_recorded)
        return bool(found.changes) or (also_left_out and left_out)

    def _tell_mount(self, thread: str) -> bool:
        """A thread was moved from the working directory: a live mount of it follows if it can.

        One with unsaved changes of its own stays where it is; its next capture says what to do.

        Returns:
            Whether a mount shows the new state.
        """
        try:
            return unsaved.follow(self, thread, self.runtime)
        except HeddleError:
            return False

    def diff(
        self, a: str | None = None, b: str | None = None, *, paths: Sequence[bytes] = ()
    ) -> Iterator[FileDiff]:
        """What differs, file by file, with patches that ``git apply`` takes.

        Args:
            a: the state before; None: the one that unsaved changes are against.
            b: the state after; None: what is here now.
            paths: only these paths and what lies below them.

        Raises:
            StateNotFound, AmbiguousSpec: about a spec; before the first file.
        """
        if a is not None and b is not None:
            return self.diff_states(a, b, paths=paths)
        return self._diff_here(None if a is None else self.resolve(a), paths)

    def diff_states(
        self, a: str | None, b: str, *, paths: Sequence[bytes] = ()
    ) -> Iterator[FileDiff]:
        """What differs between two states.

        Args:
            a: the state before; None: nothing at all.
            b: the state after.
            paths: as for ``diff``.

        Raises:
            StateNotFound, AmbiguousSpec: about a spec; before the first file.
        """
        from heddle.repo.changes import tree_changes
        from heddle.repo.diff import diff_changes

        before = None if a is None else self.state(a).tree
        changes = tree_changes(self.store, before, self.state(b).tree, paths=paths, renames=False)
        self._fetch_contents(changes)
        return diff_changes(
            changes, self._read_old, self._read_stored, object_format=self.object_format
        )

    def _diff_here(self, start: ObjectID | None, paths: Sequence[bytes]) -> Iterator[FileDiff]:
        from heddle.repo.changes import normalised, tree_changes, within
        from heddle.repo.diff import diff_changes

        with self._here() as (base, found, reading):
            here = changes = list(_without_renames(found.changes))
            if start is not None and start != base:
                trees = [None if it is None else self.state(it).tree for it in (start, base)]
                changes = _composed(tree_changes(self.store, *trees, renames=False), changes)
            inside = normalised(paths)
            wanted = [change for change in changes if within(change.path, inside)]
            self._fetch_contents(wanted)

            stored = {each.path for each in wanted if each.new_id and each.new_id in self.store}
            unstored = {each.path for each in wanted} - stored
            with reading([each for each in here if each.path in unstored]) as read_new:

                def read(change: Change) -> bytes:
                    is_stored = change.path in stored
                    return self._read_stored(change) if is_stored else read_new(change.path)

                yield from diff_changes(
                    wanted, self._read_old, read, object_format=self.object_format
                )

    def _fetch_contents(self, changes: Iterable[Change]) -> None:
        """Have here what a comparison is going to read: of a lazy clone, in one request."""
        self.store.fetch(id for each in changes for id in (each.old_id, each.new_id) if id)

    @contextmanager
    def _here(self) -> Iterator[_Here]:
        """What is unsaved in the place that we are in."""
        from heddle.repo.changes import Status as Unsaved

        nothing = Unsaved((), 0, ())
        if self.mountpoint is None and self.git is not None and self.git.bare:
            yield _Here(self.worktree_base(), nothing, self._reading)
        elif self.mountpoint is None:
            from heddle.repo import worktree

            found = worktree.status(self)
            yield _Here(self.worktree_base(), found, self._reading)
        elif self.shown is not None:
            shown = unsaved.shown_state(self.mountpoint, self.runtime)
            yield _Here(shown, nothing, self._reading)
        else:
            with unsaved.unsaved(self, self.current_thread, self.runtime) as mine:
                yield _Here(mine.base, mine.status(), mine.reading)

    def _reading(
        self, changes: Sequence[Change]
    ) -> AbstractContextManager[Callable[[bytes], bytes]]:
        from heddle.repo import worktree

        return worktree.reading(self, changes)

    def _read_old(self, change: Change) -> bytes:
        assert change.old_id is not None
        return b"".join(self.store.iter_blob(change.old_id))

    def _read_stored(self, change: Change) -> bytes:
        assert change.new_id is not None
        return b"".join(self.store.iter_blob(change.new_id))

    def switch(self, name: str, *, create: bool = False) -> Switched:
        """Move ``HEAD`` and the plain working directory to a thread.

        Args:
            name: the thread.
            create: make it first, where we are.

        Raises:
            DataError: we are in a mount, which stays with its thread.
            ThreadNotFound, ThreadExists, UnsavedChanges: as they say; nothing was changed.
        """
        if self.mountpoint is not None:
            raise DataError(
                f"{self.mountpoint} is the mount of thread '{self.current_thread}' and stays with it",
                hint=f"heddle mount {name}{' --create' if create else ''}, or run it in {self.path}",
            )
        self.require_worktree()
        from heddle.repo import linked, switch

        if self.git is not None and not create:
            holder = linked.holders(self.git).get(linked.HEADS + name.encode(), self.git.checkout)
            if holder != self.git.checkout:
                is_ours = any(each.git.checkout == holder for each in linked.of(self))
                raise DataError(
                    f"git's branch '{name}' is checked out in {holder}",
                    hint=f"heddle unmount {holder}, or work there" if is_ours else "work there",
                )
        done = switch.switch(self, name, create=create)
        self.follow_git()
        return done

    def collect(
        self,
        *,
        before_ns: int | None = None,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> GarbageCollected:
        """Make what is stored small: merge packs, store versions against each other, drop what nothing needs.

        Parked overlays that have been kept long enough are dropped first.

        Args:
            before_ns: drop only objects that were stored before then, in ns since the epoch; None: 14 days ago.
            dry_run: change nothing, only say what would be dropped.
            progress: called with what is done and the total.

        Raises:
            Busy, CorruptObject, ObjectMissing, StorageError: as ``heddle.repo.gc.collect``.
        """
        from heddle.git import packing, receiving
        from heddle.mount.marked import marked_ids
        from heddle.repo import gc

        park = self.park
        expired = park.expired()
        if not dry_run:
            park.drop(expired)
        found = gc.collect(
            self,
            before_ns=before_ns,
            dry_run=dry_run,
            marked=lambda: marked_ids(self.heddle_dir / "overlays"),
            progress=progress,
        )
        if not dry_run:
            receiving.forget_old(self, time.time_ns() - gc.KEPT_NS)
            packing.remove_abandoned(self)
        return GarbageCollected(found, len(expired))

    def materialize(
        self,
        destination: str | os.PathLike[str],
        spec: str | None = None,
        *,
        thread: str | None = None,
        paths: Sequence[bytes] = (),
        on_conflict: str = "fail",
        jobs: int | None = None,
        progress: Progress | None = None,
    ) -> Materialized:
        """Write a state, or an overlay as its mount shows it, into a directory as ordinary files.

        Args:
            destination: the directory; made if it is missing.
            spec: the state; None: what the mount that we are in shows, or ``HEAD``.
            thread: this thread's overlay instead, with what is unsaved in it.
            paths, on_conflict, jobs, progress: as for ``heddle.mount.materialize.materialize``.

        Raises:
            UsageError: both a state and a thread.
            DataError: the destination lies in ``.heddle`` or in the mount.
            StateNotFound, AmbiguousSpec, ThreadNotFound, Busy: as they say.
            HeddleError: as ``heddle.mount.materialize.materialize``.
        """
        from heddle.mount.materialize import materialize

        if spec is not None and thread is not None:
            raise UsageError("either a state or a thread's overlay, not both")
        if spec is None and thread is None and self.mountpoint is not None and self.shown is None:
            thread = self.current_thread
        target = Path(os.fspath(destination)).resolve()
        self._require_outside(target)
        with self._view(spec, thread) as (state, source):
            written = materialize(
                source,
                target,
                paths=paths,
                on_conflict=on_conflict,
                jobs=jobs,
                progress=progress,
            )
        return Materialized(state, thread, target, written)

    def _require_outside(self, target: Path) -> None:
        """Refuse to write where it would be read, or where only we may write."""
        location = mountinfo.locate(target)
        if ".heddle" in target.parts or (location is not None and location.repository == self.path):
            what = "a .heddle" if location is None else f"the mount {location.mountpoint}"
            raise DataError(f"{target} is inside {what}", hint="choose a directory outside")

    @contextmanager
    def _view(
        self, spec: str | None, thread: str | None
    ) -> Iterator[tuple[ObjectID | None, Source]]:
        """What to materialize, and the state that it is or is relative to."""
        if thread is not None:
            with unsaved.view(self, thread, self.runtime) as source:
                yield self.overlay_base(thread) or self.threads.get(thread).state, source
            return
        if spec is None and self.shown is not None and self.mountpoint is not None:
            state = unsaved.shown_state(self.mountpoint, self.runtime)
        else:
            state = self.resolve(spec or "HEAD")
        with unsaved.state_view(self, spec or "HEAD", state) as source:
            yield state, source

    # whole or not

    def fsck(self, *, full: bool = False, progress: Progress | None = None) -> Report:
        """Verify objects, database and overlays, inside and out; see ``mount.repair.check``."""
        from heddle.mount import repair

        return repair.check(self, full=full, progress=progress)

    def repair(
        self, *, dry_run: bool = False, full: bool = False, progress: Progress | None = None
    ) -> tuple[Repair, Report]:
        """Mend what can be mended, set the rest aside, and check again; see ``mount.repair.repair``.

        Raises:
            Busy: the database has to be made anew, and sessions use it.
        """
        from heddle.mount import repair

        return repair.repair(self, self.runtime, dry_run=dry_run, full=full, progress=progress)

    # the park

    @property
    def park(self) -> Park:
        """Overlays that were discarded or whose thread was deleted: list, restore, drop."""
        from heddle.mount.parked import Park

        return Park(self, self.runtime)

    # mounts

    def mount(
        self,
        spec: str,
        mountpoint: str | os.PathLike[str] | None = None,
        *,
        create: bool = False,
        start: str | None = None,
        read_only: bool = False,
        allow_other: bool = False,
        agent: Mapping[str, str | None] = _NOTHING,
        foreground: Callable[[Mounted], None] | None = None,
    ) -> Mounted:
        """Mount a thread as an ordinary writable directory; returns when the mount answers.

        The session is a process of its own that outlives this one. What a dead session of the thread left unsaved is
        there again, and counted in ``recovered``. Mounting what is mounted there already is success.

        Args:
            spec: a thread; with ``read_only`` any state spec.
            mountpoint: an empty directory, or a name to make, which goes again at the unmount; None: where a dead
                session of the thread was, or a place in the runtime directory.
            create: make the thread; an error when it exists.
            start: the state that a thread made by ``create`` begins at; None: ``HEAD``'s.
            read_only: show a state and take no changes.
            allow_other: let other users use the mount.
            agent: defaults for who made captures of this mount, by key (``agent.model``, …).
            foreground: serve in this process until it is unmounted; called when the mount answers.

        Raises:
            InvalidName, ThreadNotFound, ThreadExists, StateNotFound: about ``spec``.
            MountpointUnusable, CannotCreate, NotPermitted: about ``mountpoint``.
            DataError: the thread is mounted elsewhere.
            Unavailable: this machine can't mount.
            Busy: another command is mounting it, or a session that hangs can't be ended.
        """
        options = MountOptions(
            create=create,
            start=start,
            read_only=read_only,
            allow_other=allow_other,
            agent={key: value for key, value in agent.items() if value is not None},
            foreground=foreground,
        )
        where = None if mountpoint is None else Path(os.fspath(mountpoint))
        if self.git is not None:
            return self._mount_on_git(spec, where, options)
        return lifecycle.mount(self, spec, where, options, self.runtime)

    def _mount_on_git(self, spec: str, where: Path | None, options: MountOptions) -> Mounted:
        """Mount, with git at hand: it has the objects before the mount names them, and the branch before we return."""
        from heddle.git import branches
        from heddle.git.pack import packs_kept

        self.follow_git()  # to where git in the last mount went
        shown = options.foreground

        def show(mounted: Mounted) -> None:
            with suppress(HeddleError):
                branches.follow(
                    self
                )  # the session is this process, so no mount is asked to do anything
            assert shown is not None
            shown(mounted)

        if shown is not None:
            options = options._replace(foreground=show)
        state = self._state_to_mount(spec, options)
        with packs_kept() if shown is None else nullcontext():  # a mount in the foreground lasts
            if state is not None:
                branches.hand_over(self, [state])
            done = lifecycle.mount(self, spec, where, options, self.runtime)
            if shown is None and not done.read_only:
                self.follow_git()
        return done

    def _state_to_mount(self, spec: str, options: MountOptions) -> ObjectID | None:
        """The state that a mount will be relative to, as far as it exists; what is wrong is said when it is mounted."""
        if options.read_only:
            return self.resolve(spec)
        if spec not in self.threads:
            if options.start is not None:
                return self.resolve(options.start) if options.create else None
            return self.threads.get(self.current_thread).state
        if self.database.has_overlay(spec):
            return self.overlay_base(spec)
        return self.threads.get(spec).state

    def mounts(self) -> list[MountInfo]:
        """Every session of this repository, as the kernel and the processes say. Never blocks on a mount."""
        return lifecycle.mounts(self.runtime, self)

    def given_up(self) -> list[SessionRecord]:
        """The mounts that we are in or have captured, and that crashed so often that nobody starts them again."""
        if self.mountpoint is None and not self._asked:
            return []
        return [
            record
            for record in registry.given_up(self.runtime, self.path)
            if record.mountpoint == self.mountpoint or record.thread in self._asked
        ]

    def unmount(
        self,
        target: str | os.PathLike[str] | None = None,
        *,
        stale: bool = False,
        capture: str | None = None,
        discard: bool = False,
        force: bool = False,
        keep_going: bool = False,
    ) -> Unmounting:
        """End sessions; when it returns, their processes are gone and their overlays free.

        Unsaved changes stay in the overlay and are back at the next mount.

        Args:
            target: a thread, or a path at or in a mount; None: all sessions of this repository.
            stale: only sessions whose process is gone or hangs.
            capture: first record what is unsaved, with this message.
            discard: drop what is unsaved; it is put aside under ``.heddle/overlays/.parked``.
            force: also when processes use it, or it hangs.
            keep_going: report what could not be ended in the result instead of raising.

        Returns:
            What was ended, and with ``keep_going`` what could not be.

        Raises:
            ThreadNotFound, NotMounted: ``target`` means nothing that is mounted; nor, with ``discard``, a thread
                that a session which is over left something unsaved.
            MountBusy: processes use one; it was left as it is, and the others were ended.
            HeddleError: one could not be ended, or not be captured first.
        """
        self.follow_git()  # where git in them is now is what the next mounts show
        try:
            sessions = _selected(self.runtime, self, target, stale)
        except NotMounted:
            if not discard or target not in self.threads:
                raise
            return Unmounting([ending.discard_left(self, str(target), self.runtime)], [])
        if self.git is not None and not discard:
            from heddle.git import branches

            with suppress(HeddleError):
                branches.keep_staged(self, {each.thread for each in sessions if each.thread})
        done = _end(sessions, self.runtime, self, _Ending(stale, capture, discard, force))
        if not keep_going:
            done.raise_failed()
        return done


# without a repository


def open(
    path: str | os.PathLike[str] = ".",
    *,
    environment: Mapping[str, str] | None = None,
    damaged: bool = False,
) -> Repository:
    """Open the repository that a path lies in; inside a mount, the mounted thread of its repository.

    Args:
        path: any path in the working directory or in a mount; the mount may be dead.
        environment: where the user's settings and the attribution of captures come from; None: this process's.
        damaged: to check or repair it: look at nothing in it yet, its database may be missing.

    Raises:
        NotARepository: the path lies in none.
    """
    start = Path(os.fspath(path))
    location = mountinfo.locate(start)
    if damaged:
        repo = Repository.discover_damaged(start if location is None else location.repository)
    else:
        repo = Repository.discover(start) if location is None else _open_mounted(location)
    repo.environment = os.environ if environment is None else environment
    if not damaged:
        repo.follow_git()
    return repo


def _open_mounted(location: mountinfo.Location) -> Repository:
    try:
        repo = Repository.open(location.repository)
    except NotARepository as error:
        raise NotARepository(
            f"the repository of this mount is gone: {location.repository}",
            hint=f"heddle unmount {location.mountpoint}",
        ) from error
    repo.mountpoint = location.mountpoint
    if location.read_only:
        repo.shown = location.thread
    if not location.read_only or location.thread in repo.threads:
        repo.current_thread = location.thread
    return repo


def init(
    path: str | os.PathLike[str] = ".",
    *,
    object_format: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Repository:
    """Make a repository in a directory, or open the one that is there.

    Args:
        path: the directory; made if it is missing.
        object_format: ``sha1`` or ``sha256``; None: that of the git repository there, or ``sha1``.
        environment: as for ``open``.

    Raises:
        CannotCreate, DataError, UsageError: as ``heddle.repo.repository.Repository.init``.
    """
    return Repository.init(
        Path(os.fspath(path)),
        object_format=object_format,
        environment=os.environ if environment is None else environment,
    )


@contextmanager
def mounted(
    repo: Repository | str | os.PathLike[str],
    thread: str,
    mountpoint: str | os.PathLike[str] | None = None,
    *,
    create: bool = False,
    start: str | None = None,
    agent: Mapping[str, str | None] = _NOTHING,
) -> Iterator[Path]:
    """Have a thread mounted while the block runs.

    What is unsaved at its end stays in the overlay and is there again at the next mount. A thread that was mounted
    before is left mounted.

    Args:
        repo: a repository, or a path in one.
        thread: the thread to mount.
        mountpoint: as for ``Repository.mount``.
        create: make the thread if it is missing.
        start: where a thread that is made begins; None: ``HEAD``'s state.
        agent: as for ``Repository.mount``.

    Yields:
        The mountpoint.

    Raises:
        HeddleError: as ``Repository.mount`` and ``Repository.unmount``.
    """
    if not isinstance(repo, Repository):
        repo = open(repo)
    create = create and thread not in repo.threads
    start = start if create else None
    made = repo.mount(thread, mountpoint, create=create, start=start, agent=agent)
    try:
        yield made.mountpoint
    finally:
        if not made.already_mounted:
            repo.unmount(thread)


def mounts(*, environment: Mapping[str, str] | None = None) -> list[MountInfo]:
    """Every session of this user, whatever its repository."""
    return lifecycle.mounts(_runtime(environment))


def mounts_around(
    path: str | os.PathLike[str], *, environment: Mapping[str, str] | None = None
) -> list[MountInfo]:
    """The sessions of the repository that a path lies in, without opening it: its disk may not answer."""
    return lifecycle.mounts_around(_runtime(environment), Path(os.fspath(path)).absolute())


def unmount(
    target: str | os.PathLike[str] | None = None,
    *,
    stale: bool = False,
    capture: str | None = None,
    discard: bool = False,
    force: bool = False,
    keep_going: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Unmounting:
    """End sessions of this user, whatever their repository; as ``Repository.unmount``.

    Args:
        target: a path at or in a mount; None: all of this runtime directory, and what is stale wherever it was.
        stale, capture, discard, force, keep_going: as there.
        environment: as for ``open``.
    """
    runtime = _runtime(environment)
    sessions = _selected(runtime, None, target, stale)
    if target is None and not stale:  # those that live are ended where they were begun from
        sessions = [each for each in sessions if each.record is not None]
    done = _end(sessions, runtime, None, _Ending(stale, capture, discard, force, environment))
    if not keep_going:
        done.raise_failed()
    return done


def _runtime(environment: Mapping[str, str] | None) -> RuntimeDirectory:
    return RuntimeDirectory.from_environment(os.environ if environment is None else environment)


# ending sessions


class _Ending(NamedTuple):
    """How sessions are to be ended."""

    stale: bool
    capture: str | None
    discard: bool
    force: bool
    environment: Mapping[str, str] | None = None


def _selected(
    runtime: RuntimeDirectory,
    repo: Repository | None,
    target: str | os.PathLike[str] | None,
    stale: bool,
) -> list[Session]:
    if target is None:
        return ending.select(runtime, repo, stale=stale)
    path = Path(os.fspath(target)).absolute()
    return ending.select(runtime, repo, target=os.fspath(target), path=path, stale=stale)


def _end(
    sessions: Iterable[Session],
    runtime: RuntimeDirectory,
    repo: Repository | None,
    how: _Ending,
) -> Unmounting:
    unmounted: list[Unmounted] = []
    failed: list[Failed] = []
    for session in sessions:
        try:
            its = _repository_of(session, repo, how.environment)
            unmounted.append(_end_one(session, runtime, its, how))
        except NotMounted:
            continue  # somebody else has ended it
        except HeddleError as error:
            holders = error.holders if isinstance(error, ending.MountBusy) else ()
            failed.append(Failed(session.mountpoint, error, holders))
    return Unmounting(unmounted, failed)


def _end_one(
    session: Session, runtime: RuntimeDirectory, repo: Repository | None, how: _Ending
) -> Unmounted:
    if how.capture is not None and repo is not None and session.thread is not None:
        try:
            repo.capture(message=how.capture, thread=session.thread)
        except NothingToCapture:
            pass
    return ending.unmount(
        repo, session, runtime, force=how.force, stale=how.stale, discard=how.discard
    )


def _repository_of(
    session: Session, repo: Repository | None, environment: Mapping[str, str] | None
) -> Repository | None:
    """The repository that a session serves; None when it is gone."""
    if repo is not None and repo.path == session.repository:
        return repo
    try:
        found = Repository.open(session.repository)
    except HeddleError:
        return None
    found.environment = os.environ if environment is None else environment
    return found


# comparing


def _without_renames(changes: Iterable[Change]) -> Iterator[Change]:
    """Renames as the deletion and the addition that they are made of."""
    for change in changes:
        if change.old_path is None:
            yield change
            continue
        yield change._replace(
            path=change.old_path, kind="deleted", old_path=None, new_mode=None, new_id=None
        )
        yield change._replace(kind="added", old_path=None, old_mode=None, old_id=None)


def _composed(first: Iterable[Change], then: Iterable[Change]) -> list[Change]:
    """The changes from the start of ``first`` to the end of ``then``, which begins where that ends."""
    from heddle.repo.changes import change_between

    old: dict[bytes, Any] = {}
    new: dict[bytes, Any] = {}
    for change in (*first, *then):
        before = (change.old_mode, change.old_id) if change.old_mode is not None else None
        old.setdefault(change.path, before)
        after = (change.new_mode, change.new_id) if change.new_mode is not None else None
        new[change.path] = after
    return [
        change_between(path, old[path], new[path]) for path in sorted(old) if old[path] != new[path]
    ]
