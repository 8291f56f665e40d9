"""Every durable step has a fault point, every fault point a scenario, and nothing is lost at any of them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import scenarios
from .crash import Reference
from .points import Site, points, sites


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


ON_REAL_MOUNTS = ("session.", "mount.", "unmount.", "registry.")
"""Prefixes of points that only sessions and what starts and ends them reach: see ``test_sessions``."""


@pytest.mark.parametrize(
    "point", sorted(point for point in points() if not point.startswith(ON_REAL_MOUNTS))
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
NOT_KEPT = "in the runtime directory, or a cache: nothing that has to outlive the process"

WITHOUT_POINT = {
    "atomic.fsync_directory": CALLER,
    "git.export._create": NEVER_SEEN,
    "git.pack.write_pack": NEVER_SEEN,
    "git.pack._remove_abandoned": NEVER_SEEN,
    "git.pack._make_durable": CALLER,
    "git.refs.GitRefs._log": NEVER_SEEN,
    "mount.control.ControlServer.close": NOT_KEPT,
    "mount.control._listen": NOT_KEPT,
    "mount.core.ContentAddressedMount._raise_one": NEVER_SEEN,
    "mount.core.ContentAddressedMount.copy_up": NEVER_SEEN,
    "mount.core.ContentAddressedMount._stage_file": NEVER_SEEN,
    "mount.core.ContentAddressedMount.make_node": CALLER,
    "mount.core.ContentAddressedMount.create_symlink": CALLER,
    "mount.core.ContentAddressedMount._move": CALLER,
    "mount.core.ContentAddressedMount.set_xattr": ONE_CALL,
    "mount.core.ContentAddressedMount.remove_xattr": ONE_CALL,
    "mount.core._link": CALLER,
    "mount.mountpoint.make": ONE_CALL,
    "mount.mountpoint.remove": ONE_CALL,
    "mount.mountpoint._fsync": ONE_CALL,
    "mount.runtime.RuntimeDirectory.at": NOT_KEPT,
    "mount.runtime.RuntimeDirectory.default_mountpoint": NOT_KEPT,
    "mount.session._log_to": NOT_KEPT,
    "mount.upper.renameat2": CALLER,
    "mount.upper._remove_quietly": CALLER,
    "mount.upper.Upper.__init__": ONE_CALL,
    "mount.upper.remove_tree": NEVER_SEEN,
    "mount.upper._move_up": NEVER_SEEN,
    "objects.output.PackOutput.close": NEVER_SEEN,
    "objects.output.SideFile.__init__": NEVER_SEEN,
    "objects.output.remove_abandoned": NEVER_SEEN,
    "repo.config.ConfigFile.set": NEVER_SEEN,
    "repo.database.Database.create": NEVER_SEEN,
    "repo.gitlink.exclude_heddle": NEVER_SEEN,
    "repo.repository.Repository.init": NEVER_SEEN,
    "repo.switch._Move._stage": NEVER_SEEN,
    "repo.switch._Move._remove_entry": CALLER,
    "repo.switch._Directories._step": NEVER_SEEN,
    "repo.switch._rename": CALLER,
    "repo.switch._staging": NEVER_SEEN,
}
"""Functions that make something durable and have no fault point of their own, and why none is needed."""


@pytest.mark.parametrize("site", sites(), ids=lambda site: site.function)
def test_a_durable_step_has_a_point(site: Site) -> None:
    """Whoever adds a rename, a link, an fsync, a mark or a commit adds a fault point, or says here why not."""
    assert bool(site.points) != (site.function in WITHOUT_POINT), site


def test_reasons_are_about_something() -> None:
    """No function is excused that makes nothing durable any more."""
    assert set(WITHOUT_POINT) <= {site.function for site in sites()}
