"""Is everything that the repository holds whole? Objects, database and overlays, in one report.

Owns which checks there are and what is counted. Each part checks itself: the object store its packs, the database
its rows; how an overlay is kept is the mount's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from heddle.errors import ConfigError, HeddleError, OtherFormat, StorageError
from heddle.objects.repair import unreadable
from heddle.objects.store import Problem
from heddle.repo.missing import Lost, lost_objects, unnamed_states
from heddle.repo.names import overlay_name
from heddle.repo.parked import PARKED

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.objects.state import State
    from heddle.repo.repository import Repository


LOST_HINT = "heddle fetch may bring it; a capture of the same file does"


@dataclass(frozen=True, slots=True)
class Report:
    """What a check found.

    Attributes:
        checked: how many of each kind were looked at.
        problems: what is wrong: objects first, then the database, then overlays.
        unnamed: states that no name leads to, oldest first. That is no damage: a capture that was cut off leaves one;
            it may also be all that is left of what a database said.
    """

    checked: dict[str, int]
    problems: list[Problem]
    unnamed: list[State] = field(default_factory=list)


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
        database_problems = repo.database.check(repo.has_state)
        counted = {
            "threads": len(repo.threads.list()),
            "markers": len(repo.markers.list()),
            "objects": 0,
        }
    except OtherFormat:
        raise
    except HeddleError as error:
        return Report({}, [Problem("database", error.message, error.hint or "")])

    def count(done: int, total: int) -> None:
        counted["objects"] = total
        if progress is not None:
            progress(done, total)

    problems = list(repo.store.verify(full=full, progress=count))
    problems += database_problems
    problems += _check_objects(repo, problems)
    problems += _check_overlays(repo)
    problems += _check_settings(repo)
    return Report(counted, problems, _unnamed(repo))


def _unnamed(repo: Repository) -> list[State]:
    try:
        return unnamed_states(repo, (id for _, id in _roots(repo)))
    except StorageError:  # said already
        return []


def _check_settings(repo: Repository) -> Iterator[Problem]:
    try:
        repo.config.repository.values()
    except ConfigError as error:
        yield Problem("settings", error.message, "edit the file, or heddle fsck --repair")


def _check_objects(repo: Repository, problems: Iterable[Problem]) -> Iterator[Problem]:
    """What of which state is lost."""
    for each in lost(repo, (problem.id for problem in problems if problem.id is not None)):
        yield Problem("lost_object", str(each), LOST_HINT)


def lost(repo: Repository, damaged: Iterable[bytes]) -> Iterator[Lost]:
    """The objects that names need and nothing holds.

    Args:
        repo: the repository.
        damaged: binary ids of objects that a pack holds damaged; another one may have them.
    """
    if not (repo.store.path / "packs").is_dir():
        return iter(())
    return lost_objects(repo, _roots(repo), set(unreadable(repo.store, damaged)))


def _roots(repo: Repository) -> list[tuple[str, ObjectID]]:
    """Everything that names an object, and what it names."""
    return [*reversed(repo.database.named_states()), *_refs(repo)]


def _refs(repo: Repository) -> Iterator[tuple[str, ObjectID]]:
    for name, target in repo.database.refs().items():
        if not target.startswith(b"ref: "):
            yield name.decode("utf-8", "replace"), cast("ObjectID", target)


def _check_overlays(repo: Repository) -> Iterator[Problem]:
    """Overlay directories without a thread hold somebody's work that no command shows."""
    owned = {overlay_name(thread.name) for thread in repo.threads} | {PARKED}
    overlays = repo.heddle_dir / "overlays"
    for name in sorted(os.listdir(overlays)) if overlays.is_dir() else ():
        if name not in owned:
            what = f"{overlays / name} belongs to no thread"
            yield Problem("overlay", what, "heddle fsck --repair parks it")
