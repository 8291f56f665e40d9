"""Is everything that the repository holds whole? Objects, database and overlays, in one report.

Owns which checks there are and what is counted. Each part checks itself: the object store its packs, the database
its rows; how an overlay is kept is the mount's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from heddle.errors import StorageError
from heddle.repo.names import overlay_name
from heddle.repo.parked import PARKED

if TYPE_CHECKING:
    from heddle.objects.store import Problem
    from heddle.repo.repository import Repository


@dataclass(frozen=True, slots=True)
class Report:
    """What a check found.

    Attributes:
        checked: how many of each kind were looked at.
        problems: what is wrong: objects first, then the database, then overlays.
    """

    checked: dict[str, int]
    problems: list[Problem]


def check(
    repo: Repository, *, full: bool = False, progress: Callable[[int, int], None] | None = None
) -> Report:
    """Verify everything that a repository holds; changes nothing.

    Where the database can't be read, that is the one problem reported: it says how to read the objects.

    Args:
        full: also read every object and check its id.
        progress: called with objects done and objects in all.
    """
    try:
        database_problems = repo.database.check(repo.is_state)
        counted = {
            "threads": len(repo.threads.list()),
            "markers": len(repo.markers.list()),
            "objects": 0,
        }
    except StorageError as error:
        return Report({}, [_unreadable(error)])

    def count(done: int, total: int) -> None:
        counted["objects"] = total
        if progress is not None:
            progress(done, total)

    problems = list(repo.store.verify(full=full, progress=count))
    problems += database_problems
    problems += _check_overlays(repo)
    return Report(counted, problems)


def _unreadable(error: StorageError) -> Problem:
    from heddle.objects.store import Problem

    repair = (
        "copy heddle.db and heddle.db-wal aside, then put a good copy back; sqlite3 has .recover"
    )
    return Problem("database", error.message, repair)


def _check_overlays(repo: Repository) -> Iterator[Problem]:
    """Overlay directories without a thread hold somebody's work that no command shows."""
    from heddle.objects.store import Problem

    owned = {overlay_name(thread.name) for thread in repo.threads} | {PARKED}
    overlays = repo.heddle_dir / "overlays"
    for name in sorted(os.listdir(overlays)) if overlays.is_dir() else ():
        if name not in owned:
            what = f"{overlays / name} belongs to no thread"
            yield Problem("overlay", what, "copy out what you need from upper/, then remove it")
