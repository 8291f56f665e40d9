"""Every durable step has a fault point, every fault point a scenario, and nothing is lost at any of them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import scenarios
from .crash import Reference
from .points import ON_REAL_MOUNTS, Site, points, sites


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where fsync(2) costs nothing: a process that is killed leaves the same there as on a disk."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path_factory.mktemp("worlds")
        return
    with tempfile.TemporaryDirectory(prefix="heddle-faults-", dir=memory) as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def references(place: Path) -> Iterator[list[Reference]]:
    """Every scenario, run once in peace."""
    with pytest.MonkeyPatch.context() as patch:
        _as_somebody(patch)
        found = []
        for number, scenario in enumerate(scenarios.ALL):
            found.append(Reference(scenario, _made(place / str(number))))
        yield found


@pytest.fixture(autouse=True)
def somebody(isolated: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody answers for what is captured."""
    _as_somebody(monkeypatch)


def _as_somebody(patch: pytest.MonkeyPatch) -> None:
    patch.setenv("HEDDLE_PRINCIPAL_NAME", "Ann Lee")
    patch.setenv("HEDDLE_PRINCIPAL_EMAIL", "ann@example.org")


def _made(path: Path) -> Path:
    path.mkdir()
    return path


IN_REPAIRS = ("aside.", "mend.", "rebuild.", "repair.")
"""Prefixes of points that only a repair of something damaged reaches: see ``test_repair``."""


@pytest.mark.parametrize(
    "point",
    sorted(point for point in points() if not point.startswith(ON_REAL_MOUNTS + IN_REPAIRS)),
)
def test_nothing_is_lost_at(point: str, references: list[Reference]) -> None:
    """Killed there, at each time that it is reached, a process leaves the world as before its step or as after."""
    visits = [(each, visit) for each in references for visit in each.visits if visit.point == point]
    assert visits, f"no scenario reaches {point}"
    for reference, visit in visits:
        reference.die(visit)


ONE_CALL = "one system call: before it the old view, after it the new one"
NEVER_SEEN = (
    "what it makes or removes is never looked at before a later step, which has a point, names it"
)
CALLER = "the step of a function that has the point"
CLAIM = "a claim lives only as long as the process that locked it"
OUTSIDE = "no part of a repository: a file gets its name when it is whole, and whoever is killed runs it again"
NOT_KEPT = "in the runtime directory, or a cache: nothing that has to outlive the process"

SCRATCH = "a scratch directory that nobody else looks at, and the next that needs one removes"

WITHOUT_POINT = {
    "atomic.fsync_directory": CALLER,
    "git.__init__": NEVER_SEEN,
    "git._begin": NEVER_SEEN,
    "git._clear": NEVER_SEEN,
    "git._create": NEVER_SEEN,
    "git._remove_dead": NEVER_SEEN,
    "git._remove_own": NEVER_SEEN,
    "git.write": NEVER_SEEN,
    "git.write_pack": NEVER_SEEN,
    "objects._alone": NOT_KEPT,
    "objects._copy": NEVER_SEEN,
    "objects._held_by_another": CLAIM,
    "objects.keep_copy": NEVER_SEEN,
    "objects._release": CLAIM,
    "objects._take_claim": CLAIM,
    "objects.put_damaged_aside": ONE_CALL,
    "objects.say_failed": CLAIM,
    "git._remove_abandoned": NEVER_SEEN,
    "git.forget_old": ONE_CALL,
    "git.packs_kept": NEVER_SEEN,
    "git.remove_abandoned": NEVER_SEEN,
    "git.remove": ONE_CALL,
    "git._make_durable": CALLER,
    "git._make_empty": NEVER_SEEN,
    "git._log": NEVER_SEEN,
    "mount.close": NOT_KEPT,
    "mount._opened": OUTSIDE,
    "mount._save": NOT_KEPT,
    "mount._teller": NOT_KEPT,
    "mount.directory": OUTSIDE,
    "mount._made": OUTSIDE,
    "mount._put": OUTSIDE,
    "mount.__exit__": OUTSIDE,
    "mount.link_to": OUTSIDE,
    "mount._rename_to": OUTSIDE,
    "mount._temporary_name": OUTSIDE,
    "mount._touch": "nothing: what it removes is never there",
    "mount._listen": NOT_KEPT,
    "mount._raise_one": NEVER_SEEN,
    "mount.copy_up": NEVER_SEEN,
    "mount.start_copy": NEVER_SEEN,
    "mount._publish_file": NEVER_SEEN,
    "mount._stage_file": NEVER_SEEN,
    "mount.make_node": CALLER,
    "mount.create_symlink": CALLER,
    "mount._move": CALLER,
    "mount.set_xattr": ONE_CALL,
    "mount.remove_xattr": ONE_CALL,
    "mount._link": CALLER,
    "mount.make": ONE_CALL,
    "mount.remove": ONE_CALL,
    "mount._fsync": ONE_CALL,
    "mount.at": NOT_KEPT,
    "mount.default_mountpoint": NOT_KEPT,
    "mount.log_to": NOT_KEPT,
    "mount._missing_features": NOT_KEPT,
    "mount.renameat2": CALLER,
    "mount._remove_quietly": CALLER,
    "mount.__init__": ONE_CALL,
    "mount.remove_tree": NEVER_SEEN,
    "mount._move_up": NEVER_SEEN,
    "objects.close": NEVER_SEEN,
    "objects.__init__": NEVER_SEEN,
    "objects.remove_abandoned": NEVER_SEEN,
    "objects.make_bare": NOT_KEPT,
    "mount._link_programs": SCRATCH,
    "repo.__exit__": SCRATCH,
    "repo._lend": SCRATCH,
    "repo._make_scratch": SCRATCH,
    "repo._scratch": SCRATCH,
    "repo._sweep": SCRATCH,
    "repo.put": SCRATCH,
    "repo.set": NEVER_SEEN,
    "repo.detach": ONE_CALL,
    "repo._new_file": NEVER_SEEN,
    "repo._place_for": NEVER_SEEN,
    "repo._rename_aside": CALLER,
    "repo._make_directory": NEVER_SEEN,
    "repo._copy": CALLER,
    "repo._fresh": NOT_KEPT,
    "repo._copy_with_log": NOT_KEPT,
    "repo._read_tables": NOT_KEPT,
    "repo._graft_first_page": NOT_KEPT,
    "mount._mend_directories": NEVER_SEEN,
    "repo.exclude_heddle": NEVER_SEEN,
    "repo._create_whole": NEVER_SEEN,
    "repo.keep_from_git": NEVER_SEEN,
    "repo.init": NEVER_SEEN,
    "repo._stage": NEVER_SEEN,
    "repo.take": NEVER_SEEN,
    "repo._make_one": NEVER_SEEN,
    "repo._restore": NEVER_SEEN,
    "repo.release_dead": ONE_CALL,
    "repo._remove_entry": CALLER,
    "repo._step": NEVER_SEEN,
    "repo._remove_oldest": NOT_KEPT,
    "repo._rename": CALLER,
    "repo._staging": NEVER_SEEN,
    "repo._take_away": NEVER_SEEN,
    "repo._write_new": NEVER_SEEN,
    "git.clone": NEVER_SEEN,
}
"""Functions, by part and name, that make something durable without a fault point, and why none is needed."""


@pytest.mark.parametrize("site", sites(), ids=lambda site: site.function)
def test_a_durable_step_has_a_point(site: Site) -> None:
    """Whoever adds a rename, a link, an fsync, a mark or a commit adds a fault point, or says here why not."""
    assert site.points or site.name in WITHOUT_POINT, site


def test_reasons_are_about_something() -> None:
    """No function is excused that makes nothing durable any more."""
    assert set(WITHOUT_POINT) <= {site.name for site in sites()}
