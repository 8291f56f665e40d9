"""One thread's overlay: its lower, its upper and its base, opened together by one process at a time.

Owns the overlay's directory and lock, what its base is, and the order of a capture, a discard and a rebase. Works
with and without a mount: a session serves ``core`` through FUSE, a command without a session opens the same thing.
What the view means is `core.py`'s, what differs `snapshot.py`'s.
"""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from heddle import atomic, faults
from heddle.errors import (
    Busy,
    HeddleError,
    ObjectMissing,
    ThreadMoved,
    UnsavedChanges,
)
from heddle.mount import powerloss
from heddle.mount.core import ContentAddressedMount
from heddle.mount.follow import give_way, in_the_way, keep_view
from heddle.mount.lower import Lower
from heddle.mount.nodes import DirNode, FileNode
from heddle.mount.runtime import lock_within
from heddle.mount.snapshot import NOTHING_SKIPPED, Snapshot, Unknown, found, read_whole
from heddle.mount.upper import NUMBERS, Upper
from heddle.mount.view import Known, stat_key
from heddle.repo import conversions, linked, worktree
from heddle.repo.capture import Captured, nothing_to_capture, record_state
from heddle.repo.changes import Change, Status, current_umask, find_renames, tree_changes
from heddle.repo.database import Move
from heddle.repo.gitstage import Skipped, Staged, read_staged, skipped
from heddle.repo.ignore import RULE_FILES
from heddle.repo.linked import PUT_ASIDE
from heddle.repo.names import overlay_dir
from heddle.repo.parked import measure, parking_place, write_note

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.attribution import Agent, Attribution
    from heddle.mount.converting import Settled, Settling
    from heddle.objects.pack import PackWriter
    from heddle.repo.gitclean import Cleaner
    from heddle.repo.gitlink import GitDir
    from heddle.repo.repository import Repository

T = TypeVar("T")

log = logging.getLogger(__name__)

_TRIES = 5
_NEW_TIME_LIMIT = 10_000  # files that get a time of their own when others moved the thread


def _directly(function: Callable[[], T]) -> T:
    return function()


class NotSettled(Busy):
    """A changed file has to be converted by git, and was not: what a capture needs has to be settled once more."""


class Overlay:
    """An open overlay. Made by `open`.

    Attributes:
        repo, thread: whose it is; ``thread`` is a state spec for a read-only view.
        core: the merged view.
        base: the state that unsaved changes are relative to, None for the empty tree.
        in_loop: runs a function where nothing else changes the view; a session sets it to its event loop.
        git_index: git's index of the mount, or of the last one; it may be missing.
        mountpoint: where it is mounted just now, if it is.
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
        self.git_index = None if directory is None else _git_index(repo, thread, directory)
        self.mountpoint: Path | None = None
        self._lock = lock
        self._base_tree = core.root.lower if base is not None else None
        self._exclude = self._found_exclude = repo.exclude_rules()
        self._everywhere = self._found_everywhere = self._conversions()
        self._plain: set[bytes] = set()
        self._plain_since = 0
        self._was_skipped = NOTHING_SKIPPED
        self._index_seen: tuple[int, int, int] | None = None
        self._umask = current_umask()  # of whoever mounts: a session sets its own to 0 later

    # --- opening and closing -----------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        repo: Repository,
        thread: str,
        *,
        read_only: bool = False,
        base: ObjectID | None = None,
        patience_s: float = 0.0,
    ) -> Overlay:
        """Open a thread's overlay, making it at its first use; or a read-only view of any state.

        An overlay whose thread was moved by others meanwhile follows it if it holds nothing unsaved; otherwise it
        stays on its old base, and a capture will say so. So it does where a session died while git in its mount was on
        something else than the thread: git's index there belongs to what was shown.

        Args:
            repo: the repository.
            thread: the thread's name (for a read-only view, how the view is called).
            read_only: show ``base`` and take no changes; needs no upper and no lock.
            base: the state of a read-only view.
            patience_s: how long to wait, in seconds, for another process that has it open.

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
        lock = _take_lock(directory, thread, patience_s)
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
        if state != row.state and not _is_elsewhere_in_git(repo, thread):
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
        ahead_of: PackWriter | None = None,
        paths: Sequence[bytes] = (),
        hash_unknown: bool = True,
    ) -> Snapshot:
        exclude, skipped, everywhere = self._found_exclude, self._skipped(), self._found_everywhere
        if (exclude, skipped, everywhere) != (self._exclude, self._was_skipped, self._everywhere):
            self._exclude, self._was_skipped, self._everywhere = exclude, skipped, everywhere
            self.core.epoch += 1  # what was found clean may not be any more
        if self._plain_since != self.core.epoch:
            self._plain, self._plain_since = set(), self.core.epoch
        return Snapshot(
            self.core,
            self._base_tree,
            exclude=exclude,
            writer=writer,
            ahead_of=ahead_of,
            paths=paths,
            hash_unknown=hash_unknown,
            umask=self._umask,
            skipped=skipped,
            staged=self._read_staged,
            on_git=self.repo.git is not None,
            trusts_modes=self.repo.trusts_modes,
            everywhere=everywhere,
            plain=self._plain,
        )

    def _excluded(self) -> bytes:
        """What git ignores everywhere, as it says now; as it said before where that can't be read."""
        try:
            return self.repo.exclude_rules()
        except HeddleError as error:
            log.warning("what git ignores can't be read: %s", error)
            return self._found_exclude

    def _conversions(self) -> bytes | None:
        """Rules for what git converts that are in no directory; None: it converts nothing here."""
        git = self._git()
        return None if git is None else conversions.everywhere(git, self.repo.environment)

    def _git(self) -> GitDir | None:
        """Git's things of the mount, of the repository while there are none."""
        git = self.repo.git
        if git is None or self.git_index is None:
            return git
        private = self.git_index.parent
        is_there = private.parent == git.common / "worktrees" and (private / "HEAD").exists()
        return git._replace(path=private) if is_there else git

    def _staged_at(self, git: GitDir) -> Path:
        """Git's index of the mount; one that was put aside counts while the overlay is as it was then."""
        index = self.git_index
        if index is None:
            return git.path / "index"
        if index.parent.name == PUT_ASIDE:
            aside = linked.read(index.parent, git.common)
            if aside is None or (aside.base or "").encode() != (self.base or b""):
                return index.with_name("none")
        return index

    def _skipped(self) -> Skipped:
        """What git leaves out of the mount."""
        if self.repo.git is None or self.git_index is None:
            return NOTHING_SKIPPED
        try:
            status = self.git_index.stat()
        except OSError:
            self._index_seen = None
            return NOTHING_SKIPPED
        key = status.st_ino, status.st_size, status.st_mtime_ns
        if key != self._index_seen:
            self._index_seen = key
            return skipped(self.git_index, self.repo.store.id_length)
        return self._was_skipped

    def _read_staged(self) -> Staged | None:
        """What git in the mount knows of its files; None where it was not used, or its index can't be read."""
        if self.repo.git is None or self.git_index is None:
            return None
        try:
            return read_staged(self.git_index, self.repo.store.id_length)
        except OSError as error:
            log.warning("git's index can't be read: %s", error)
            return None

    def _compared(self) -> Snapshot:
        """A finished comparison with the base, its long part outside the loop."""
        if self.core.upper is None:
            return self._snapshot()
        self._learn_ids()

        def take() -> Snapshot:
            snapshot = self._snapshot()  # a new one whenever it is run again
            snapshot.take()
            return snapshot

        return self.in_loop(take)

    def _learn_ids(self) -> None:
        """Learn the ids of the changed files that only their bytes can tell from the base's."""
        self._settle(None, lambda unknown: unknown.comparable)

    def changes(self) -> list[Change]:
        """Unsaved changes against the base, without what is ignored; renames found by id."""
        return find_renames(self._compared().changes)

    def status(self) -> Status:
        """`changes`, how many entries are ignored, and what a capture would leave out."""
        snapshot = self._compared()
        left_out = tuple(snapshot.not_recorded)
        return Status(find_renames(snapshot.changes), snapshot.ignored, left_out)

    def ignored_count(self) -> int:
        """Entries left out because of ignore rules; an ignored directory counts once."""
        return self._compared().ignored

    def dirty(self) -> tuple[int, int]:
        """How many paths are unsaved, and the bytes in them."""
        snapshot = self._compared()
        return len(snapshot.changes), snapshot.size

    def dirty_if_known(self) -> tuple[int, int] | None:
        """`dirty`, for those who must go on without it: None where something damaged is in the way."""
        try:
            return self.dirty()
        except (HeddleError, OSError) as error:
            log.warning("what is unsaved can't be counted: %s", error)
            return None

    def read_new(self, path: bytes) -> bytes:
        """The present bytes of a file, or a link's target.

        Raises:
            KeyError: the view has no such file.
        """
        with found(self.core, path) as node:
            if not isinstance(node, FileNode):
                raise KeyError(path)
            return read_whole(self.core, node)

    def _rules_at(self, path: bytes) -> bytes | None:
        """The content of a file with rules, None where there is none."""
        try:
            return self.read_new(path)
        except KeyError:
            return None

    def _copied(self, change: Change, cleaner: Cleaner, attributes: conversions.Attributes) -> bool:
        """Give git a copy of a changed file that it may convert, and of what says so; whether it may."""
        is_file = change.new_mode is not None and stat.S_ISREG(change.new_mode)
        if not is_file or attributes.kind(change.path) == conversions.Kind.NOTHING:
            return False
        for path in (*conversions.files_above(change.path), change.path):
            with suppress(KeyError):
                cleaner.put(path, [self.read_new(path)])
        return True

    def writers(self) -> list[bytes]:
        """Paths of files that are open for writing: the kernel may hold bytes of them."""
        return [
            self.core.path(node)
            for node in self.core.open_for_writing()
            if node.parent is not None and not node.orphan
        ]

    # --- capture ---------------------------------------------------------------------------------------

    def _settle(
        self,
        writer: PackWriter | None,
        wanted: Callable[[Unknown], bool],
        paths: Sequence[bytes] = (),
    ) -> None:
        """Learn what changed files are stored as, reading them where the view need not stand still.

        A file is believed only if nothing was written to it meanwhile: what `ContentAddressedMount.known` holds of it
        then is what was put there before it was read.

        Args:
            writer: stores them; None: only ids are wanted, and what git can't convert stays unknown.
            wanted: which of the changed files.
            paths: only those at or below these paths.

        Raises:
            NotConverted, Unavailable: git can't convert one that is to be stored.
        """
        core = self.core
        pending: dict[int, Known] = {}

        def plan() -> tuple[list[Unknown], Mapping[bytes, bytes], int]:
            snapshot = self._snapshot(ahead_of=writer, paths=paths, hash_unknown=False)
            snapshot.take()
            chosen = [one for one in snapshot.unknown if wanted(one)]
            for one in chosen:
                was = core.known.get(one.status.st_ino)
                places = was.places if was is not None and was.is_of(one.status) else {}
                pending[one.status.st_ino] = Known(*stat_key(one.status), None, places)
            core.known.update(pending)
            return chosen, snapshot.attributes.files, core.epoch

        # not in the loop: git's settings may name files of the mount
        self._found_exclude, self._found_everywhere = self._excluded(), self._conversions()
        unknown, attributes, epoch = self.in_loop(plan)
        if not unknown:
            return
        found: list[Settled] = []
        plain: set[bytes] = set()

        def apply() -> None:
            if self._plain_since == epoch:
                self._plain |= plain
            learned = pending.copy()
            for each in found:
                ino = each.file.status.st_ino
                learned[ino] = each.added_to(learned[ino], epoch)
            for ino, known in learned.items():
                if core.known.get(ino) is not pending[ino]:
                    continue  # it was written to meanwhile
                if known.blob is None and not known.places:
                    del core.known[ino]
                else:
                    core.known[ino] = known

        try:
            with self._settling(writer, attributes) as settling:
                found += settling.settle(unknown)
                plain |= settling.plain
        finally:
            self.in_loop(apply)

    @contextmanager
    def _settling(
        self, writer: PackWriter | None, attributes: Mapping[bytes, bytes]
    ) -> Iterator[Settling]:
        from heddle.mount.converting import Settling

        assert self._directory is not None
        with self._cleaner() as cleaner:
            yield Settling(
                os.fsencode(self._directory / "upper"),
                self.core.lower,
                writer,
                cleaner,
                attributes=attributes,
                mountpoint=self.mountpoint,
                strict=writer is not None,
            )

    @contextmanager
    def _cleaner(self) -> Iterator[Cleaner | None]:
        """Git, to convert copies of files; None where it is not to."""
        git = self._git()
        if git is None:
            yield None
            return
        from heddle.repo.gitclean import PLACE, Cleaner

        with Cleaner(
            git,
            self.repo.store,
            environment=self.repo.environment,
            index=self._staged_at(git),
            place=self.repo.heddle_dir / PLACE,
            umask=self._umask,
        ) as cleaner:
            yield cleaner

    @contextmanager
    def reading(self, changes: Sequence[Change]) -> Iterator[Callable[[bytes], bytes]]:
        """What reads changed paths as they would be captured, for a comparison. For an overlay without a mount."""
        with self._cleaner() as cleaner:
            if cleaner is None:
                yield self.read_new
                return
            attributes = conversions.Attributes(
                self._rules_at, everywhere=self._conversions() or b""
            )
            copied = [change for change in changes if self._copied(change, cleaner, attributes)]
            if not copied:
                yield self.read_new
                return
            with worktree.reading(
                self.repo,
                copied,
                git=self._git(),
                index=cleaner.index,
                root=cleaner.root,
                read=self.read_new,
            ) as read:
                yield read

    def prestore(
        self, writer: PackWriter, *, paths: Sequence[bytes] = (), also_open: bool = True
    ) -> None:
        """Store what is unchanged ahead of `capture`, so that the latter is short. For a worker thread.

        Args:
            writer: which `capture` gets.
            paths: as it gets.
            also_open: files too that a program may be writing.
        """
        self._settle(writer, lambda unknown: also_open or not unknown.open, paths)

    def record(
        self,
        *,
        message: str,
        attribution: Attribution,
        paths: Sequence[bytes] = (),
        allow_empty: bool = False,
        writer: PackWriter,
    ) -> Captured:
        """Record the unsaved changes, long things first and where the view need not stand still; see `capture`.

        A file that git has to convert is converted before the view stands still. One that is written to just then
        is tried again, and left out in the end.

        Raises:
            NotConverted, Unavailable: git can't convert a file; nothing was changed.
        """
        for left in reversed(range(_TRIES)):
            self.prestore(writer, paths=paths, also_open=left < _TRIES - 1)
            writer.sync()
            faults.reach("overlay.prestored")
            with suppress(NotSettled):
                return self.in_loop(
                    lambda left=left: self.capture(  # type: ignore[misc]
                        message=message,
                        attribution=attribution,
                        paths=paths,
                        allow_empty=allow_empty,
                        writer=writer,
                        leave_out=left == 0,
                    )
                )
        raise AssertionError("the last try leaves out what it can't have")

    def capture(
        self,
        *,
        message: str,
        attribution: Attribution,
        paths: Sequence[bytes] = (),
        allow_empty: bool = False,
        writer: PackWriter | None = None,
        leave_out: bool = True,
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
            leave_out: a file that git would have to convert first is left out; else that is an error.

        Raises:
            NothingToCapture: nothing changed.
            NotSettled: a file has to be converted; nothing was changed.
            ThreadMoved: somebody else moved the thread since this overlay's base.
        """
        started = time.monotonic()
        self._require_on_base()
        with nullcontext(writer) if writer is not None else self.repo.store.writer() as pack:
            snapshot = self._snapshot(writer=pack, paths=paths)
            tree = snapshot.take()
            assert tree is not None
            if snapshot.unconverted and not leave_out:
                raise NotSettled(f"{snapshot.unconverted[0]!r} is not converted")
            if not snapshot.changes and not allow_empty:
                raise nothing_to_capture(snapshot.not_recorded, f" on thread {self.thread}")
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
                hint=self._way_out(),
            )

    def _way_out(self) -> str:
        """How to have what is unsaved on a thread of its own, at the state that it is relative to."""
        thread = self.thread
        return f"heddle unmount {thread} --discard, then heddle overlay restore {thread} --thread {thread}-2"

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
        if self._directory is None:
            return 0, 0
        dropped = self.dirty_if_known()
        if dropped is None:  # damaged: all of it goes to the park
            amount = measure(self._directory / "upper")
            dropped = amount.files, amount.bytes
        parked = self._directory.parent / parking_place(self.thread)
        parked.mkdir(mode=0o700, parents=True)
        write_note(parked, thread=self.thread, base=self.base, why="discarded")
        faults.reach("overlay.before-park")
        os.rename(self._directory / "upper", parked / "upper")
        for name in (NUMBERS, PUT_ASIDE):
            with suppress(FileNotFoundError):
                os.rename(self._directory / name, parked / name)
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
                hint=self._way_out(),
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
        self._take_base(state, tree)
        self._give_new_times(moved)
        if self.core.journal is not None:
            self.core.journal.forget()
        self.core.drop_unused()
        return stale

    def adopt(
        self,
        state: ObjectID | None,
        *,
        thread: tuple[ObjectID | None] | None,
        agents: Mapping[ObjectID, Agent] | None = None,
    ) -> None:
        """Take the state that git went to in the mount for the base; what is seen stays exactly as it is.

        First the upper is made to say what another base would show otherwise, which changes nothing that is seen;
        then the base is recorded, and the thread moved with it: the commit point.

        Args:
            state: the new base.
            thread: (where the thread is,): move it there as well.
            agents: by commit that git made on the way, which model made it.

        Raises:
            ThreadMoved: the thread is elsewhere; nothing was changed.
        """
        self.in_loop(lambda: self._adopt(state, thread, agents))

    def _adopt(
        self,
        state: ObjectID | None,
        thread: tuple[ObjectID | None] | None,
        agents: Mapping[ObjectID, Agent] | None,
    ) -> None:
        tree = None if state is None else self.repo.state(state).tree
        if self.core.upper is not None and tree != self._base_tree:
            keep_view(self.core, self._base_tree, tree)
        faults.reach("overlay.before-adopt")
        moves = [Move("thread", self.thread, thread[0], state)] if thread is not None else []
        self.repo.database.move_names(
            moves,
            kind="git",
            message="as git has it",
            overlays={self.thread: state},
            agents=agents,
        )
        self._take_base(state, tree)
        self.core.drop_unused()

    def _take_base(self, state: ObjectID | None, tree: ObjectID | None) -> None:
        self.base, self._base_tree = state, tree
        self.core.follow_base(tree)
        self.core.epoch += 1

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
                    now = time.time_ns()
                    self.core.set_times(node, now, now)


def _git_index(repo: Repository, thread: str, directory: Path) -> Path:
    """Git's index of a thread's mount: in git while it is mounted or its session is dead, else put aside."""
    for each in linked.of(repo, thread):
        return each.git.path / "index"
    return directory / PUT_ASIDE / "index"


def _is_elsewhere_in_git(repo: Repository, thread: str) -> bool:
    """Whether git in a thread's mount, live or dead, is on something else than the thread."""
    return any(not each.is_on_thread() for each in linked.of(repo, thread))


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
    core.watched = frozenset((*RULE_FILES, conversions.NAME))
    return core


def _take_lock(directory: Path, thread: str, patience_s: float) -> int:
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    if not lock_within(fd, patience_s):
        os.close(fd)
        raise Busy(f"another process has the overlay of thread {thread} open", hint="heddle mounts")
    return fd


def _short(state: ObjectID | None) -> str:
    return "no state" if state is None else state[:12].decode()
