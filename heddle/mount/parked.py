"""Putting parked overlays back, removing them for good, and what all overlays take on disk.

Owns the order of a restore and of a removal. Where the park is and what lies in it is ``repo/parked.py``'s.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from heddle import faults
from heddle.errors import AmbiguousSpec, DataError, PathNotFound, StorageError, UnsavedChanges
from heddle.repo.names import overlay_dir, overlay_name, valid_thread_name
from heddle.repo.parked import (
    NOTE,
    PARKED,
    Amount,
    Parked,
    list_parked,
    measure,
    parking_place,
    write_note,
)

if TYPE_CHECKING:
    from pathlib import Path

    from heddle.mount.runtime import RuntimeDirectory
    from heddle.repo.repository import Repository

_DROPPING = ".dropping-"


@dataclass(frozen=True, slots=True)
class Restored:
    """An overlay that is a thread's again.

    Attributes:
        parked: what it was.
        thread: whose it is now.
        created: whether the thread was made for it.
        amount: what it holds.
    """

    parked: Parked
    thread: str
    created: bool
    amount: Amount


@dataclass(frozen=True, slots=True)
class Usage:
    """What one overlay takes.

    Attributes:
        thread: whose it is, or was.
        parked: the parked overlay; None for one that a thread has.
        amount: what it holds.
    """

    thread: str
    parked: Parked | None
    amount: Amount


class Park:
    """The parked overlays of one repository.

    Args:
        repo: the repository.
        runtime: the runtime directory, whose locks keep sessions away from what is being restored.
    """

    def __init__(self, repo: Repository, runtime: RuntimeDirectory) -> None:
        self._repo = repo
        self._runtime = runtime

    def list(self) -> list[Parked]:
        """All of them, oldest first."""
        return list_parked(self._repo)

    def get(self, name: str) -> Parked:
        """The one of this id, of a unique beginning of it, or of this thread.

        Raises:
            PathNotFound: there is none.
            AmbiguousSpec: several are meant.
        """
        parked = self.list()
        for found in (
            [each for each in parked if each.id == name],
            [each for each in parked if each.thread == name and each.why != "replaced"],
            [each for each in parked if each.thread == name],
            [each for each in parked if each.id.startswith(name)],
        ):
            if len(found) == 1:
                return found[0]
            if found:
                ids = ", ".join(each.id for each in found)
                raise AmbiguousSpec(f"'{name}' means several parked overlays: {ids}")
        raise PathNotFound(f"no parked overlay '{name}'", hint="heddle overlay list")

    def expired(self) -> Sequence[Parked]:
        """Those that have been kept long enough."""
        now = time.time_ns()
        return [each for each in self.list() if each.expires_ns <= now]

    # restoring

    def restore(self, name: str, thread: str | None = None) -> Restored:
        """Make a parked overlay a thread's again, as it was when it was parked.

        A thread that is missing is made, at the state that the overlay is relative to. What the thread's overlay
        holds besides unsaved changes (ignored files) is parked in turn.

        Args:
            name: as for `get`.
            thread: whose it shall be; None: whose it was.

        Raises:
            PathNotFound, AmbiguousSpec: about ``name``.
            InvalidName: ``thread`` can't name one.
            UnsavedChanges: the thread has unsaved changes.
            DataError: the thread is at another state; or nobody knows what the overlay is relative to.
            Busy: the thread is mounted.
        """
        parked = self.get(name)
        thread = parked.thread if thread is None else thread
        valid_thread_name(thread)
        if not parked.has_base:
            raise DataError(
                f"nobody wrote down which state {parked.id} is relative to",
                hint=f"copy out of {parked.path / 'upper'} what you need",
            )
        with self._runtime.changing(self._runtime.session_id(self._repo.path, thread)):
            created = thread not in self._repo.threads
            if not created:
                self._require_clean(parked, thread)
            self._make_room(thread)
            amount = measure(parked.path / "upper")
            self._put_back(parked, thread, create=created)
        return Restored(parked, thread, created, amount)

    def _require_clean(self, parked: Parked, thread: str) -> None:
        from heddle.mount.overlay import Overlay

        hint = f"heddle overlay restore {parked.id} --thread {thread}-restored"
        if self._repo.threads.get(thread).state != parked.base:
            raise DataError(f"thread '{thread}' is at another state than this overlay", hint=hint)
        if not overlay_dir(self._repo, thread).is_dir():
            return
        with Overlay.open(self._repo, thread) as overlay:
            if overlay.changes():
                raise UnsavedChanges(f"thread '{thread}' has unsaved changes of its own", hint=hint)

    def _make_room(self, thread: str) -> None:
        """Put aside what is in the way: an overlay that holds nothing unsaved, or nobody's."""
        there = overlay_dir(self._repo, thread)
        if not there.is_dir():
            return
        if _is_empty(there / "upper"):
            self._remove(there.parent, there.name)
            return
        if thread in self._repo.threads:
            base = self._repo.overlay_base(thread)
            write_note(there, thread=thread, base=base, why="replaced")
        target = self._repo.heddle_dir / "overlays" / parking_place(thread)
        target.parent.mkdir(mode=0o700, exist_ok=True)
        faults.reach("parked.before-replacing")
        os.rename(there, target)

    def _put_back(self, parked: Parked, thread: str, *, create: bool) -> None:
        """One transaction makes it so; the directory follows, if need be after a crash."""
        from heddle.repo.threads import finish_overlay_moves

        repo = self._repo
        faults.reach("parked.before-restore")
        repo.database.restore_overlay(
            thread,
            parked.base,
            create=create,
            who=repo.who(None),
            overlay_move=(f"{PARKED}/{parked.id}", overlay_name(thread)),
        )
        finish_overlay_moves(repo)
        if not (overlay_dir(repo, thread) / "upper").is_dir() or parked.path.exists():
            raise StorageError(f"{parked.path} could not be moved back; it is where it was")
        (overlay_dir(repo, thread) / NOTE).unlink(missing_ok=True)

    # removing

    def drop(self, parked: Iterable[Parked]) -> Sequence[Amount]:
        """Remove parked overlays for good: the only thing in Heddle that removes what no state holds.

        Each leaves the park in one step; a crash after it leaves a ``.dropping-*`` that the next call removes.

        Returns:
            What each held.
        """
        amounts = []
        for each in parked:
            amounts.append(measure(each.path / "upper"))
            os.rename(each.path, each.path.with_name(f"{_DROPPING}{each.id}"))
            faults.reach("parked.dropping")
        self._sweep()
        return amounts

    def _sweep(self) -> None:
        park = self._repo.heddle_dir / "overlays" / PARKED
        for name in os.listdir(park) if park.is_dir() else ():
            if name.startswith(_DROPPING):
                self._remove(park, name)

    @staticmethod
    def _remove(directory: Path, name: str) -> None:
        from heddle.mount.upper import remove_tree

        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            remove_tree(fd, os.fsencode(name))
        finally:
            os.close(fd)

    # how much

    def usage(self) -> Sequence[Usage]:
        """What the overlays of threads hold, then what is parked."""
        found = []
        for thread in self._repo.threads:
            upper = overlay_dir(self._repo, thread.name) / "upper"
            if upper.is_dir():
                found.append(Usage(thread.name, None, measure(upper)))
        for each in self.list():
            with suppress(FileNotFoundError):
                found.append(Usage(each.thread, each, measure(each.path / "upper")))
        return found


def _is_empty(upper: Path) -> bool:
    try:
        with os.scandir(upper) as entries:
            return next(entries, None) is None
    except FileNotFoundError:
        return True
