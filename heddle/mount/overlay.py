"""One thread's overlay: its lower, its upper and its base, opened together by one process at a time.

Owns the overlay's directory and lock, what its base is, and the order of a capture, a discard and a rebase. Works
with and without a mount: a session serves ``core`` through FUSE, a command without a session opens the same thing.
What the view means is `core.py`'s, what differs `snapshot.py`'s.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from heddle import atomic, faults
from heddle.errors import Busy, NothingToCapture, ObjectMissing, ThreadMoved, UnsavedChanges
from heddle.mount import powerloss
from heddle.mount.core import ContentAddressedMount
from heddle.mount.follow import give_way, in_the_way
from heddle.mount.lower import Lower
from heddle.mount.nodes import DirNode, FileNode
from heddle.mount.snapshot import (
    Snapshot,
    Unknown,
    found,
    hash_blob,
    read_whole,
    settle,
    store_file,
)
from heddle.mount.upper import Upper
from heddle.repo.capture import Captured, record_state
from heddle.repo.changes import Change, find_renames, tree_changes
from heddle.repo.ignore import RULE_FILES
from heddle.repo.names import overlay_dir
from heddle.repo.parked import parking_place, write_note

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.attribution import Attribution
    from heddle.objects.pack import PackWriter
    from heddle.repo.repository import Repository

T = TypeVar("T")

log = logging.getLogger(__name__)

_NEW_TIME_LIMIT = 10_000  # files that get a time of their own when others moved the thread


def _directly(function: Callable[[], T]) -> T:
    return function()


class Overlay:
    """An open overlay. Made by `open`.

    Attributes:
        repo, thread: whose it is; ``thread`` is a state spec for a read-only view.
        core: the merged view.
        base: the state that unsaved changes are relative to, None for the empty tree.
        in_loop: runs a function where nothing else changes the view; a session sets it to its event loop.
    """

    def __init__(
        self,
        repo: Repository,
        thread: str,
        core: ContentAddressedMount,
        base: ObjectID | None,
        directory: Path | None,
        lock: int,
    ) -> None:
        self.repo = repo
        self.thread = thread
        self.core = core
        self.base = base
        self.in_loop: Callable[[Callable[[], T]], T] = _directly
        self._directory = directory
        self._lock = lock
        self._base_tree = core.root.lower if base is not None else None
        self._exclude = _exclude_rules(repo)

    # --- opening and closing -----------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        repo: Repository,
        thread: str,
        *,
        read_only: bool = False,
        base: ObjectID | None = None,
    ) -> Overlay:
        """Open a thread's overlay, making it at its first use; or a read-only view of any state.

        An overlay whose thread was moved by others meanwhile follows it if it holds nothing unsaved; otherwise it
        stays on its old base, and a capture will say so.

        Args:
            repo: the repository.
            thread: the thread's name (for a read-only view, how the view is called).
            read_only: show ``base`` and take no changes; needs no upper and no lock.
            base: the state of a read-only view.

        Raises:
            ThreadNotFound: no such thread.
            Busy: another process has the overlay open.
        """
        lower = Lower(repo.store, object_format=repo.object_format)
        if read_only:
            core = _make_core(repo, lower, None, base, time.time_ns())
            return cls(repo, thread, core, base, None, -1)
        row = repo.threads.get(thread)
        directory = overlay_dir(repo, thread)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = _take_lock(directory, thread)
        try:
            if repo.database.has_overlay(thread):
                state = repo.overlay_base(thread)
            else:
                state = row.state
                repo.set_overlay_base(thread, state)
            faults.reach("overlay.base-recorded")
            for path in powerloss.mend(directory):
                log.warning("%r lost its bytes with the power and shows what was captured", path)
            upper = Upper(directory, widen=os.geteuid() != 0)
            core = _make_core(repo, lower, upper, state, row.created_ns)
            overlay = cls(repo, thread, core, state, directory, lock)
        except BaseException:
            os.close(lock)
            raise
        if state != row.state:
            overlay._follow_if_clean()
        return overlay

    def _follow_if_clean(self) -> None:
        try:
            self.rebase()
        except UnsavedChanges:
            log.warning("thread %s moved while its overlay has unsaved changes", self.thread)

    def leave_loop(self) -> None:
        """The session's event loop has ended: from here on only the caller changes the view."""
        self.in_loop = _directly

    def close(self) -> None:
        """Give everything back; what is unsaved stays on disk."""
        self.core.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Overlay:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- looking ---------------------------------------------------------------------------------------

    def _snapshot(
        self,
        *,
        writer: PackWriter | None = None,
        paths: Sequence[bytes] = (),
        hash_unknown: bool = True,
    ) -> Snapshot:
        return Snapshot(
            self.core,
            self._base_tree,
            exclude=self._exclude,
            writer=writer,
            paths=paths,
            hash_unknown=hash_unknown,
        )

    def _compared(self) -> Snapshot:
        """A finished comparison with the base, its long part outside the loop."""
        snapshot = self._snapshot()
        if self.core.upper is not None:
            self._learn_ids()
            self.in_loop(snapshot.take)
        return snapshot

    def _learn_ids(self) -> None:
        """Hash the changed files that only their bytes can tell from the base's."""

        def identify(fd: int, size: int) -> ObjectID:
            pieces = iter(lambda: os.read(fd, 1 << 20), b"")
            return hash_blob(pieces, size, self.core.lower.object_format)

        self._settle(identify, lambda unknown: unknown.comparable)

    def changes(self) -> list[Change]:
        """Unsaved changes against the base, without what is ignored; renames found by id."""
        return find_renames(self._compared().changes)

    def status(self) -> tuple[list[Change], int]:
        """`changes`, and how many entries are ignored."""
        snapshot = self._compared()
        return find_renames(snapshot.changes), snapshot.ignored

    def ignored_count(self) -> int:
        """Entries left out because of ignore rules; an ignored directory counts once."""
        return self._compared().ignored

    def dirty(self) -> tuple[int, int]:
        """How many paths are unsaved, and the bytes in them."""
        snapshot = self._compared()
        return len(snapshot.changes), snapshot.size

    def read_new(self, path: bytes) -> bytes:
        """The present bytes of a file, or a link's target.

        Raises:
            KeyError: the view has no such file.
        """
        with found(self.core, path) as node:
            if not isinstance(node, FileNode):
                raise KeyError(path)
            return read_whole(self.core, node)

    def writers(self) -> list[bytes]:
        """Paths of files that are open for writing: the kernel may hold bytes of them."""
        return [
            self.core.path(node)
            for node in self.core.open_for_writing()
            if node.parent is not None and not node.orphan
        ]

    # --- capture ---------------------------------------------------------------------------------------

    def _settle(
        self, identify: Callable[[int, int], ObjectID], wanted: Callable[[Unknown], bool]
    ) -> None:
        """Learn the ids of changed files, reading them where the view need not stand still.

        A file is believed only if nothing was written to it meanwhile: `ContentAddressedMount.known` holds a place
        for it, which any write through the mount takes away.
        """
        core = self.core

        def plan() -> list[Unknown]:
            snapshot = self._snapshot(hash_unknown=False)
            snapshot.take()
            chosen = [one for one in snapshot.unknown if wanted(one)]
            core.known.update((one.status.st_ino, None) for one in chosen)
            return chosen

        unknown = self.in_loop(plan)
        if not unknown:
            return
        assert self._directory is not None
        root = os.fsencode(self._directory / "upper")
        found = list(settle(root, unknown, identify))

        def apply() -> None:
            for one, blob in found:
                status = one.status
                key = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
                if core.known.get(status.st_ino, ()) is None:
                    core.known[status.st_ino] = (*key, blob)
            for one in unknown:
                if core.known.get(one.status.st_ino, ()) is None:
                    del core.known[one.status.st_ino]

        self.in_loop(apply)

    def prestore(self, writer: PackWriter) -> None:
        """Store what is closed and unchanged ahead of `capture`, so that the latter is short. For a worker thread."""
        self._settle(
            lambda fd, size: store_file(writer, fd, size), lambda unknown: not unknown.open
        )

    def capture(
        self,
        *,
        message: str,
        attribution: Attribution,
        paths: Sequence[bytes] = (),
        allow_empty: bool = False,
        writer: PackWriter | None = None,
    ) -> Captured:
        """Record the unsaved changes as a new state and move the thread to it.

        To be called where nothing else changes the view. The commit point is the database's transaction in
        `record_state`; what follows only saves work later and may be cut off.

        Args:
            message: of the state.
            attribution: who answers for it, and which agent made it.
            paths: capture these only, and what is below them.
            allow_empty: make a state even if nothing changed.
            writer: one that `prestore` filled, else a new one.

        Raises:
            NothingToCapture: nothing changed.
            ThreadMoved: somebody else moved the thread since this overlay's base.
        """
        started = time.monotonic()
        self._require_on_base()
        with nullcontext(writer) if writer is not None else self.repo.store.writer() as pack:
            snapshot = self._snapshot(writer=pack, paths=paths)
            tree = snapshot.take()
            assert tree is not None
            if not snapshot.changes and not allow_empty:
                raise NothingToCapture(f"nothing has changed on thread {self.thread}")
            faults.reach("overlay.tree-built")
            state = record_state(
                self.repo,
                pack,
                thread=self.thread,
                expected=self.base,
                tree=tree,
                attribution=attribution,
                message=message,
                overlay_base=True,
            )
        faults.reach("overlay.captured")
        self._after_capture(snapshot, state.id, state.tree)
        kinds = [change.kind for change in snapshot.changes]
        return Captured(
            state=state,
            added=kinds.count("added"),
            modified=kinds.count("modified") + kinds.count("type-changed"),
            deleted=kinds.count("deleted"),
            not_recorded=tuple(snapshot.not_recorded),
            duration_ms=(time.monotonic() - started) * 1000,
        )

    def _require_on_base(self) -> None:
        state = self.repo.threads.get(self.thread).state
        if state != self.base:
            raise ThreadMoved(
                f"thread {self.thread} moved to {_short(state)} since this overlay's base {_short(self.base)}",
                hint=f"heddle thread create {self.thread}-2 --from {_short(self.base)}, and mount that",
            )

    def _after_capture(self, snapshot: Snapshot, state: ObjectID, tree: ObjectID) -> None:
        self.base, self._base_tree = state, tree
        self.core.follow_base(tree)
        for one in snapshot.stored:
            try:
                self.core.mark_stored(*one)
            except OSError as error:  # it will be hashed again, that is all
                log.warning("%r is not marked as stored: %s", one.name, error)
        snapshot.mark_clean()

    # --- discard ---------------------------------------------------------------------------------------

    def discard(self) -> tuple[int, int]:
        """Set everything unsaved aside and show the base again. For an overlay without a mount.

        The upper is parked, not deleted: ``.heddle/overlays/.parked/<ns>-<thread>/upper``.

        Returns:
            files and bytes that were unsaved.
        """
        dropped = self.dirty()
        if self._directory is None:
            return dropped
        parked = self._directory.parent / parking_place(self.thread)
        parked.mkdir(mode=0o700, parents=True)
        write_note(parked, thread=self.thread, base=self.base, why="discarded")
        faults.reach("overlay.before-park")
        os.rename(self._directory / "upper", parked / "upper")
        for place in (parked, parked.parent, parked.parent.parent, self._directory):
            atomic.fsync_directory(place)
        faults.reach("overlay.parked")
        state = self.repo.threads.get(self.thread).state
        self.repo.set_overlay_base(self.thread, state)
        lower = self.core.lower
        created = self.core.time_ns
        self.core.close()
        upper = Upper(self._directory, widen=os.geteuid() != 0)
        self.core = _make_core(self.repo, lower, upper, state, created)
        self.base, self._base_tree = state, self.core.root.lower
        return dropped

    # --- rebase ----------------------------------------------------------------------------------------

    def rebase(self) -> list[tuple[int, bytes, int]]:
        """Follow the thread to where others moved it; only an overlay without unsaved changes does.

        The upper keeps what was captured (times, inode numbers) and what is ignored. First it is made to say no
        more than that, which changes nothing that is seen; then the new base is recorded, the commit point.

        Returns:
            what the kernel must forget: (directory's node, name, node or 0).

        Raises:
            UnsavedChanges: there are some; nothing was changed.
        """
        state = self.repo.threads.get(self.thread).state
        if state == self.base:
            return []
        self._learn_ids()
        return self.in_loop(lambda: self._rebase_to(state))

    def _rebase_to(self, state: ObjectID | None) -> list[tuple[int, bytes, int]]:
        snapshot = self._snapshot()
        snapshot.take()
        if snapshot.changes:
            raise UnsavedChanges(
                f"thread {self.thread} moved, and its overlay has unsaved changes",
                hint=f"heddle thread create {self.thread}-2 --from {_short(self.base)}, and capture there",
            )
        tree = None if state is None else self.repo.state(state).tree
        blocking = in_the_way(self.core, self._base_tree, tree)
        if blocking is not None:
            raise UnsavedChanges(
                f"thread {self.thread} moved, and {os.fsdecode(blocking)}, which no state holds, is in the way",
                hint=f"move {os.fsdecode(blocking)} away",
            )
        moved = tree_changes(self.repo.store, self._base_tree, tree, renames=False)
        stale = self._stale_names({change.path for change in moved})
        give_way(self.core, self._base_tree, tree)
        faults.reach("overlay.before-rebase")
        self.repo.set_overlay_base(self.thread, state)
        self.base, self._base_tree = state, tree
        self.core.follow_base(tree)
        self.core.epoch += 1
        self._give_new_times(moved)
        self.core.drop_unused()
        return stale

    def _stale_names(self, paths: set[bytes]) -> list[tuple[int, bytes, int]]:
        """Every live directory on the way to a changed path, with the name in it that is to be forgotten."""
        stale = set()
        for path in paths:
            directory: DirNode = self.core.root
            for name in path.split(b"/"):
                child = directory.children.get(name)
                stale.add((directory.ino, name, 0 if child is None else child.ino))
                if not isinstance(child, DirNode):
                    break
                directory = child
        return sorted(stale)

    def _give_new_times(self, moved: list[Change]) -> None:
        """Files that others changed are newer than what was built from them here."""
        for change in moved[:_NEW_TIME_LIMIT]:
            with found(self.core, change.path) as node:
                if isinstance(node, FileNode) and node.blob is not None and node.parent is not None:
                    self.core.copy_up(node)
                    self.core.set_time(node, time.time_ns())


def _make_core(
    repo: Repository,
    lower: Lower,
    upper: Upper | None,
    state: ObjectID | None,
    created_ns: int,
) -> ContentAddressedMount:
    tree, when = None, created_ns
    if state is not None:
        found = repo.state(state)
        tree, when = found.tree, found.time_s * 1_000_000_000
        if tree not in repo.store:
            raise ObjectMissing(f"tree {tree.decode()} of state {_short(state)} is missing")
    core = ContentAddressedMount(
        lower, upper, tree, time_ns=when, uid=os.geteuid(), gid=os.getegid()
    )
    core.watched = frozenset(RULE_FILES)
    return core


def _take_lock(directory: Path, thread: str) -> int:
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise Busy(
            f"another process has the overlay of thread {thread} open", hint="heddle mounts"
        ) from None
    return fd


def _exclude_rules(repo: Repository) -> bytes:
    """Git's own rules for the whole repository, where there is a git repository."""
    if repo.git is None:
        return b""
    try:
        return (repo.git.common / "info" / "exclude").read_bytes()
    except OSError:
        return b""


def _short(state: ObjectID | None) -> str:
    return "no state" if state is None else state[:12].decode()
