"""Captures: making a state of what is there and moving its thread to it.

Owns the order of a capture's durable steps, for the working directory and for mounts alike, and the capture of
the working directory. What a mount records is ``mount/snapshot.py``'s.

The order, and what a crash leaves: blobs, trees and the commit become one durable pack (before: nothing; after: a
pack that nothing refers to), then one transaction moves the thread, logs the operation and moves the base along
(the commit point), then the stat cache is updated (without that, the next command reads some files again).
"""

from __future__ import annotations

import stat
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from heddle import faults
from heddle.errors import DataError, NothingToCapture, ThreadMoved
from heddle.objects import state as states
from heddle.objects.gitformat import COMMIT
from heddle.objects.state import State
from heddle.repo.changes import (
    DIRECTORY_MODE,
    Change,
    NotRecorded,
    change_between,
    current_umask,
    not_kept_of_mode,
    within,
)
from heddle.repo.checkin import File
from heddle.repo.reading import NotReadable, Taken
from heddle.repo.statcache import Entry, Stat, collector_paused
from heddle.repo.treeedit import edit_tree
from heddle.repo.worktree import Scan, working_directory_locked

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.attribution import Attribution
    from heddle.objects.pack import PackWriter
    from heddle.repo.repository import Repository

__all__ = ["Captured", "NotRecorded", "capture_worktree", "record_state"]

_REPORT_EVERY = 64


class Captured(NamedTuple):
    """What a capture did.

    Attributes:
        state: the new state.
        added: paths that are new; a rename is one added and one deleted.
        modified: paths with other content, another mode or of another kind.
        deleted: paths that are gone.
        not_recorded: what is there and is not in the state, or not as it is there.
        duration_ms: how long it took, in milliseconds.
    """

    state: State
    added: int
    modified: int
    deleted: int
    not_recorded: tuple[NotRecorded, ...]
    duration_ms: float


def record_state(
    repo: Repository,
    writer: PackWriter,
    *,
    thread: str,
    expected: ObjectID | None,
    tree: ObjectID,
    attribution: Attribution,
    message: str,
    kind: str = "capture",
    overlay_base: bool = False,
    worktree_base: bool = False,
) -> State:
    """Make a state of a tree, make it durable and move the thread to it: the last is the commit point.

    Args:
        writer: holds the tree and everything new below it; is committed here.
        thread: the thread to move.
        expected: the state that it is at, which becomes the parent.
        tree: the state's tree.
        kind: what the operation log calls it.
        overlay_base: the thread's overlay is relative to the new state from then on.
        worktree_base: the working directory is.

    Raises:
        ThreadMoved: the thread is not at ``expected``; nothing was changed.
        StorageError: the disk is full or failing; nothing was changed.
    """
    now_s = int(time.time())
    raw = states.encode(
        tree=tree,
        parents=() if expected is None else (expected,),
        principal=attribution.principal,
        agent=attribution.agent,
        change_id=states.new_change_id(),
        thread=thread,
        message=message,
        time_s=now_s,
        timezone_s=time.localtime(now_s).tm_gmtoff,
    )
    id = writer.add(COMMIT, raw)
    faults.reach("capture.before-pack")
    writer.commit()
    faults.reach("capture.before-publish")
    repo.publish(
        thread=thread,
        expected=expected,
        new=id,
        kind=kind,
        message=message,
        attribution=attribution,
        overlay_base=overlay_base,
        worktree_base=worktree_base,
    )
    faults.reach("capture.after-publish")
    return states.decode(id, raw)


def capture_worktree(
    repo: Repository,
    *,
    attribution: Attribution,
    message: str = "",
    thread: str | None = None,
    paths: Sequence[bytes] = (),
    allow_empty: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Captured:
    """Record what changed in the plain working directory as a new state of the thread that HEAD is on.

    Every file is recorded as it was at one moment. One that can't be read, or never holds still, keeps the
    version that was captured before and is named in ``not_recorded``.

    Args:
        attribution: who answers for it and which model made it.
        message: what was done and why.
        thread: refuse unless HEAD is on this thread.
        paths: only what changed at or below these paths.
        allow_empty: make a state even if nothing changed.
        progress: called with the number of files read and of those to be read.

    Raises:
        NothingToCapture: nothing changed, or nothing that can be recorded.
        ThreadMoved: the thread is not at the state that the working directory was last at.
        DataError: HEAD is on another thread.
        Busy: another command is changing the working directory.
        StorageError: the disk is full or failing; nothing was changed.
    """
    started = time.perf_counter()
    with working_directory_locked(repo), collector_paused():
        head, base = _where_it_is(repo, thread)
        recording = _Recording(repo, None if base is None else repo.state(base).tree, paths)
        with repo.store.writer() as writer:
            tree = recording.store(writer, progress)
            if not recording.changes and tree == (recording.base_tree or tree) and not allow_empty:
                recording.remember()
                raise nothing_to_capture(recording.not_recorded)
            state = record_state(
                repo,
                writer,
                thread=head,
                expected=base,
                tree=tree,
                attribution=attribution,
                message=message,
                worktree_base=True,
            )
        recording.remember()
    return _captured(state, recording, started)


def _where_it_is(repo: Repository, wanted: str | None) -> tuple[str, ObjectID | None]:
    """The thread that HEAD is on, and the state that the working directory was last at."""
    head = repo.head
    if wanted not in (None, head):
        raise DataError(
            f"the working directory is on thread '{head}', not '{wanted}'",
            hint=f"heddle switch {wanted}, or heddle mount {wanted}",
        )
    base, state = repo.worktree_base(), repo.threads.get(head).state
    if base != state:
        was, now = (id[:12].decode() if id else "no state" for id in (base, state))
        raise ThreadMoved(
            f"thread '{head}' was moved to {now} and the working directory is still at {was}",
            hint=f"heddle switch {head}, which keeps unsaved changes; then run this again",
        )
    return head, base


def nothing_to_capture(not_recorded: Sequence[NotRecorded], where: str = "") -> NothingToCapture:
    """Says that nothing has changed, or nothing that can be recorded.

    Args:
        not_recorded: what is left out.
        where: a place to name, with a space before it.
    """
    if not not_recorded:
        return NothingToCapture(f"nothing has changed{where}", hint="heddle status")
    first = not_recorded[0]
    more = f" and {len(not_recorded) - 1} more" if len(not_recorded) > 1 else ""
    name = first.path.decode(errors="backslashreplace")
    return NothingToCapture(f"nothing can be recorded: {name}: {first.why}{more}")


def _captured(state: State, recording: _Recording, started: float) -> Captured:
    counts = {"added": 0, "modified": 0, "deleted": 0}
    for change in recording.changes:
        counts[change.kind if change.kind in counts else "modified"] += 1
    return Captured(
        state,
        **counts,
        not_recorded=tuple(sorted(recording.not_recorded, key=lambda one: one.path)),
        duration_ms=(time.perf_counter() - started) * 1000,
    )


class _Recording:
    """One capture of the working directory, from the walk to its tree.

    Attributes:
        base_tree: the tree that is there already.
        changes: what the new tree has otherwise.
        not_recorded: what could not be had.
    """

    def __init__(
        self, repo: Repository, base_tree: ObjectID | None, paths: Sequence[bytes]
    ) -> None:
        self._repo = repo
        self.base_tree = base_tree
        self.changes: list[Change] = []
        self._scan = Scan(repo, base_tree, paths=paths)
        self.not_recorded = self._scan.not_recorded
        self._edits: dict[bytes, Entry | None] = dict.fromkeys(self._scan.removed)
        self._stats: dict[bytes, Stat] = {}
        self._rebuilt: dict[bytes, tuple[ObjectID, dict[bytes, Entry]]] = {}
        self._umask = current_umask()
        self._lock = threading.Lock()
        self._done = 0

    def store(self, writer: PackWriter, progress: Callable[[int, int], None] | None) -> ObjectID:
        """Store what was found and build the tree."""
        found = self._scan.found
        gone = self._scan.gone.copy()

        def done(one: File, taken: Taken) -> None:
            self._record(one, taken, gone)
            if progress is not None:
                self._report(progress, len(found))

        def failed(one: File, error: Exception) -> None:
            self._leave(one, error, gone)
            if progress is not None:
                self._report(progress, len(found))

        if found:
            with self._scan.checkin(writer) as checkin:
                checkin.take_all(found, done, failed)
        if self._scan.empty:
            self._record_empty(writer.add_tree([]), gone)
        self.changes += [change_between(path, old, None) for path, old in gone.items()]
        if not self._edits and self.base_tree is not None:
            return self.base_tree
        faults.reach("capture.before-trees")
        tree, self._rebuilt = edit_tree(self._repo.store, writer, self.base_tree, self._edits)
        return tree

    def _record(self, found: File, taken: Taken, gone: dict[bytes, Entry]) -> None:
        """Note what a file is stored as; called from several threads."""
        entry = self._scan.mode_of(taken.stat[0], found.old), taken.id
        if entry == found.old:
            self._scan.verified(found.path, taken)
            return
        self._edits[found.path] = entry
        self.changes.append(change_between(found.path, gone.pop(found.path, found.old), entry))
        if taken.settled:
            self._stats[found.path] = taken.stat
        why = not_kept_of_mode(taken.stat[0], self._umask)
        if why is not None and not stat.S_ISLNK(found.status.st_mode):
            self.not_recorded.append(NotRecorded(found.path, why))

    def _leave(self, found: File, error: Exception, gone: dict[bytes, Entry]) -> None:
        """A file that can't be had: it is gone, or keeps the version that was captured before."""
        if isinstance(error, FileNotFoundError):
            if found.old is not None:
                gone[found.path] = found.old
                self._edits[found.path] = None
        elif isinstance(error, NotReadable):
            self.not_recorded.append(NotRecorded(found.path, str(error)))
            self._keep(found.path, gone)
        else:
            raise error

    def _keep(self, path: bytes, gone: dict[bytes, Entry]) -> None:
        """Leave what the base has at a path, were it a directory, as it is."""
        self._edits.pop(path, None)
        for lost in [lost for lost in gone if within(lost, (path,))]:
            del gone[lost]

    def _record_empty(self, tree: ObjectID, gone: dict[bytes, Entry]) -> None:
        for path, was_there in self._scan.empty.items():
            self._edits[path] = (DIRECTORY_MODE, tree)
            old = gone.pop(path, None)
            if not was_there:
                self.changes.append(change_between(path, old, (DIRECTORY_MODE, tree)))

    def _report(self, progress: Callable[[int, int], None], total: int) -> None:
        with self._lock:
            self._done += 1
            if self._done % _REPORT_EVERY == 0 or self._done == total:
                progress(self._done, total)

    def remember(self) -> None:
        """Update the stat cache."""
        self._scan.save(self._rebuilt, self._stats)
