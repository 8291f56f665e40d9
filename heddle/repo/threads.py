"""The threads and the markers of a repository, as collections.

Owns what making, renaming and deleting a name means beyond its database row: names are checked, states must
exist, and the overlay of a thread, which may hold the only copy of somebody's work, moves along or is put
aside. Moving a thread to a new state is ``Repository.publish``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from heddle import atomic, faults
from heddle.errors import (
    DataError,
    MarkerNotFound,
    StateNotFound,
    StorageError,
    ThreadNotFound,
    UnsavedChanges,
)
from heddle.repo.database import Marker, Thread
from heddle.repo.locks import file_locked_nowait
from heddle.repo.names import overlay_dir, overlay_name, valid_marker_name, valid_thread_name
from heddle.repo.parked import parking_place, write_note

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.attribution import Attribution
    from heddle.repo.repository import Repository


class Threads:
    """The threads of one repository."""

    def __init__(self, repo: Repository) -> None:
        self._repo = repo

    def list(self) -> list[Thread]:
        """All threads by name."""
        return self._repo.database.threads()

    def __iter__(self) -> Iterator[Thread]:
        return iter(self.list())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._repo.database.thread(name) is not None

    def get(self, name: str) -> Thread:
        """The thread of this name.

        Raises:
            ThreadNotFound: there is none.
        """
        thread = self._repo.database.thread(name)
        if thread is None:
            raise ThreadNotFound(f"no thread '{name}'", hint="heddle thread list")
        return thread

    def create(
        self,
        name: str,
        state: ObjectID | None = None,
        *,
        attribution: Attribution | None = None,
        message: str = "",
        on_head: bool = False,
    ) -> Thread:
        """Make a thread at a state, or without one.

        Args:
            on_head: put HEAD on it in the same step; it must be where the working directory is.

        Raises:
            InvalidName: the name can't be a thread's.
            ThreadExists: it is taken.
            StateNotFound: ``state`` is no state of this repository.
        """
        valid_thread_name(name)
        with self._repo.store.hold():
            _require_state(self._repo, state)
            if name not in self:
                self._park_orphan(name)
            self._repo.database.create_thread(
                name, state, who=self._repo.who(attribution), message=message, on_head=on_head
            )
        return self.get(name)

    def rename(self, old: str, new: str, *, attribution: Attribution | None = None) -> Thread:
        """Give a thread another name; HEAD and what is unsaved follow.

        Raises:
            InvalidName, ThreadNotFound, ThreadExists: as the names say.
            DataError: it is mounted.
        """
        valid_thread_name(new)
        self.get(old)
        if new not in self:
            self._park_orphan(new)
        with self._overlay_held(old) as overlay:
            move = (overlay_name(old), overlay_name(new)) if overlay else None
            self._repo.database.rename_thread(
                old, new, who=self._repo.who(attribution), overlay_move=move
            )
            finish_overlay_moves(self._repo)
        return self.get(new)

    def delete(
        self, name: str, force: bool = False, *, attribution: Attribution | None = None
    ) -> Path | None:
        """Forget a thread's name. Its states stay, and the operation log keeps which one it was at.

        Args:
            force: also when it has unsaved changes. Its overlay is put aside in any case, never deleted.

        Returns:
            Where the overlay was put, or None if there was none.

        Raises:
            ThreadNotFound: there is none.
            DataError: HEAD is on it, or it is mounted.
            UnsavedChanges: it has unsaved changes, and no ``force``.
        """
        self.get(name)
        with self._overlay_held(name):
            pass  # who asks what is unsaved opens the overlay too
        if not force and self._repo.has_unsaved(name, also_left_out=True):
            raise UnsavedChanges(
                f"thread '{name}' has unsaved changes in {overlay_dir(self._repo, name) / 'upper'}",
                hint=f"heddle capture --thread {name}, or --force to put them aside",
            )
        with self._overlay_held(name) as overlay:
            parked = parking_place(name) if overlay else None
            if overlay is not None:
                base = self._repo.overlay_base(name)
                write_note(overlay, thread=name, base=base, why="deleted")
            move = (overlay_name(name), parked) if parked else None
            self._repo.database.delete_thread(
                name, who=self._repo.who(attribution), overlay_move=move
            )
            finish_overlay_moves(self._repo)
        return self._repo.heddle_dir / "overlays" / parked if parked else None

    @contextmanager
    def _overlay_held(self, name: str) -> Iterator[Path | None]:
        """Keep everybody else from opening a thread's overlay; yields its directory, None if it has none."""
        overlay = overlay_dir(self._repo, name)
        if not overlay.is_dir():
            yield None
            return
        with _as_storage_errors(overlay), file_locked_nowait(overlay / "lock") as free:
            if not free:
                raise DataError(f"thread '{name}' is mounted", hint=f"heddle unmount {name}")
            yield overlay

    def _park_orphan(self, name: str) -> None:
        """Put aside an overlay directory that no thread owns, so that a new thread does not inherit it."""
        orphan = overlay_dir(self._repo, name)
        if not orphan.is_dir():
            return
        with _as_storage_errors(orphan), file_locked_nowait(orphan / "lock") as free:
            if free and name not in self:
                move_overlay(orphan, self._repo.heddle_dir / "overlays" / parking_place(name))


class Markers:
    """The markers of one repository."""

    def __init__(self, repo: Repository) -> None:
        self._repo = repo

    def list(self) -> list[Marker]:
        """All markers by name."""
        return self._repo.database.markers()

    def __iter__(self) -> Iterator[Marker]:
        return iter(self.list())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._repo.database.marker(name) is not None

    def get(self, name: str) -> Marker:
        """The marker of this name.

        Raises:
            MarkerNotFound: there is none.
        """
        marker = self._repo.database.marker(name)
        if marker is None:
            raise MarkerNotFound(f"no marker '{name}'", hint="heddle marker list")
        return marker

    def create(
        self,
        name: str,
        state: ObjectID,
        *,
        attribution: Attribution | None = None,
        message: str = "",
    ) -> Marker:
        """Make a marker.

        Raises:
            InvalidName: the name can't be a marker's.
            MarkerExists: it is taken; markers never move.
            StateNotFound: ``state`` is no state of this repository.
        """
        valid_marker_name(name)
        with self._repo.store.hold():
            _require_state(self._repo, state)
            self._repo.database.create_marker(
                name, state, who=self._repo.who(attribution), message=message
            )
        return self.get(name)

    def delete(self, name: str, *, attribution: Attribution | None = None) -> None:
        """Forget a marker's name; the operation log keeps which state it named.

        Raises:
            MarkerNotFound: there is none.
        """
        self._repo.database.delete_marker(name, who=self._repo.who(attribution))


def finish_overlay_moves(repo: Repository) -> None:
    """Do the directory renames that a committed transaction promised; done ones are only forgotten.

    The rename follows the commit. A crash between them leaves the row, and whoever opens the repository next
    comes through here.
    """
    overlays = repo.heddle_dir / "overlays"
    for source, target in repo.database.overlay_moves():
        faults.reach("threads.before-overlay-move")
        try:
            move_overlay(overlays / source, overlays / target)
        except (FileNotFoundError, FileExistsError):
            pass  # done already, and perhaps the name is in use again
        except OSError as error:
            import errno

            if error.errno != errno.ENOTEMPTY:
                raise
        faults.reach("threads.after-overlay-move")
        repo.database.finish_overlay_move(source)


@contextmanager
def _as_storage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"can't move or lock {path}: {error.strerror}") from error


def move_overlay(source: Path, target: Path) -> None:
    """Rename an overlay's directory; durable on return."""
    target.parent.mkdir(parents=True, exist_ok=True)
    os.rename(source, target)
    faults.reach("threads.overlay-moved")
    atomic.fsync_directory(target.parent)
    atomic.fsync_directory(source.parent)


def _require_state(repo: Repository, state: ObjectID | None) -> None:
    if state is not None and not repo.is_state(state):
        raise StateNotFound(f"{state.decode(errors='replace')} is no state of this repository")
