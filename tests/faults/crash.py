"""kill -9 at a fault point in the middle of a scenario, and what must hold afterwards.

A scenario is a world to begin with and steps, each of which a user would call one act. It is run once in peace, which
tells what the world is after each step and which points each step reaches. Then it is run again in a process of its
own that dies at the n-th time that a step reaches a point; and the world must be as it was before that step, or as it
is after it.
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from heddle import api, faults
from heddle.errors import HeddleError, NotARepository
from heddle.mount.overlay import Overlay

from .view import Hand, Key, View, look, opened

MENDABLE = {"missing_index"}


class World:
    """A repository in a directory, and the overlays that this process has open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.overlays: dict[str, Overlay] = {}

    @cached_property
    def repo(self) -> api.Repository:
        return opened(self.path)

    def overlay(self, thread: str) -> Overlay:
        if thread not in self.overlays:
            self.overlays[thread] = Overlay.open(self.repo, thread)
        return self.overlays[thread]

    def hand(self, thread: str = "agent") -> Hand:
        return Hand(self.overlay(thread).core)

    def close_overlays(self) -> None:
        while self.overlays:
            self.overlays.popitem()[1].close()

    def close(self) -> None:
        self.close_overlays()
        if "repo" in self.__dict__:
            self.repo.close()

    def look(self) -> View:
        return look(self.path, self.overlays)


class Step(NamedTuple):
    """One act.

    Attributes:
        name: what it is.
        do: does it; also when it was half done before.
        command: it may be given again when it is done: then it says so, or changes nothing.
        mixed: it is not one step for whoever looks: each path may be as before or as after.
        both: a crash may leave what was there and what comes (a rename in two steps).
        quiet: it prepares the next ones and is not killed itself.
    """

    name: str
    do: Callable[[World], object]
    command: bool = False
    mixed: bool = False
    both: bool = False
    quiet: bool = False


@dataclass
class Scenario:
    """A world and what is done in it.

    Attributes:
        name: what it is about.
        prepare: makes the world in a directory that does not exist.
        steps: what is done, one after the other, by one process.
        patched: a condition of the machine that holds while it runs.
    """

    name: str
    prepare: Callable[[Path], None]
    steps: list[Step]
    patched: Callable[[], AbstractContextManager[object]] = field(default=nullcontext)


class Visit(NamedTuple):
    """The n-th time (from 1) that a step reaches a point."""

    point: str
    step: int
    number: int


class Reference:
    """A scenario run in peace.

    Attributes:
        views: the world before the first step, and after each.
        visits: every time that a point was reached.
    """

    def __init__(self, scenario: Scenario, directory: Path) -> None:
        self.scenario = scenario
        self._directory = directory
        self._start = directory / "start"
        self._runs = 0
        scenario.prepare(self._start)
        self.views: list[View] = []
        self.visits: list[Visit] = []
        self._run()

    def _copy(self) -> Path:
        self._runs += 1
        path = self._directory / f"run-{self._runs}"
        shutil.copytree(self._start, path, symlinks=True)
        return path

    def _run(self) -> None:
        path = self._copy()
        with self.scenario.patched(), _world(path) as world:
            self.views.append(world.look())
            for number, step in enumerate(self.scenario.steps):
                with _recorded() as names:
                    step.do(world)
                if not step.quiet:
                    self.visits += [
                        Visit(name, number, names[: at + 1].count(name))
                        for at, name in enumerate(names)
                    ]
                self.views.append(world.look())
        shutil.rmtree(path)

    def die(self, visit: Visit) -> None:
        """Kill a run at a point and hold what is left against what was promised."""
        path = self._copy()
        note = path.with_suffix(".before")
        step = self.scenario.steps[visit.step]
        self._killed(path, visit, note)
        before: View = pickle.loads(note.read_bytes())
        expected = self.views[visit.step + 1]
        _same(before.holds, self.views[visit.step].holds, f"{visit}: before the kill")
        with _world(path) as world:
            self._check(visit, step, before, expected, world)
        shutil.rmtree(path)

    def _check(self, visit: Visit, step: Step, before: View, expected: View, world: World) -> None:
        found = world.look()
        wanted = expected.holds
        if step.mixed:
            _mixed(before.holds, wanted, found.holds, str(visit))
        elif step.both and found.holds not in (before.holds, wanted):
            _same(_entries(before.holds | wanted), _entries(found.holds), f"{visit}: both names")
        elif found.holds not in (before.holds, wanted):
            lines = _difference(before.holds, found.holds) + _difference(wanted, found.holds)
            raise AssertionError("\n".join([f"{visit}: neither as before nor as after", *lines]))
        _stayed(before, expected, found, str(visit))
        _sound(world, str(visit))
        with self.scenario.patched():
            if step.command:
                with _refusals():
                    step.do(world)
            elif found.holds != wanted and not step.both:
                step.do(world)
        if step.both:
            return  # a name that was to go is still there, and so the step can't be done again
        _same(wanted, world.look().holds, f"{visit}: run again")
        _sound(world, f"{visit}: run again")

    def _killed(self, path: Path, visit: Visit, note: Path) -> None:
        pid = os.fork()
        if pid == 0:
            _child(self.scenario, path, visit, note)
        _, status = os.waitpid(pid, 0)
        told = note.with_suffix(".error")
        said = told.read_text() if told.exists() else ""
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (
            f"{visit}: the process was not killed there: {said or status}"
        )


def _child(scenario: Scenario, path: Path, visit: Visit, note: Path) -> None:
    try:
        with scenario.patched():
            world = World(path)
            for step in scenario.steps[: visit.step]:
                step.do(world)
            note.write_bytes(pickle.dumps(world.look()))
            faults._wanted, faults._left = visit.point, visit.number
            scenario.steps[visit.step].do(world)
    except BaseException:
        note.with_suffix(".error").write_text(traceback.format_exc())
    finally:
        os._exit(1)


@contextmanager
def _world(path: Path) -> Iterator[World]:
    world = World(path)
    try:
        yield world
    finally:
        world.close()


@contextmanager
def _recorded() -> Iterator[list[str]]:
    names: list[str] = []
    real = faults.reach
    faults.reach = names.append  # type: ignore[assignment]
    try:
        yield names
    finally:
        faults.reach = real


@contextmanager
def _refusals() -> Iterator[None]:
    """A command that is given again when it is done already may say so."""
    try:
        yield
    except HeddleError:
        pass


def _difference(expected: dict[Key, Any], found: dict[Key, Any]) -> list[str]:
    keys = sorted(expected.keys() | found.keys(), key=str)
    return [
        f"{key}: {expected.get(key)!r} became {found.get(key)!r}"
        for key in keys
        if expected.get(key) != found.get(key)
    ]


def _same(expected: dict[Key, Any], found: dict[Key, Any], what: str) -> None:
    difference = _difference(expected, found)
    assert not difference, "\n".join([what, *difference])


def _entries(holds: dict[Key, Any]) -> dict[Key, Any]:
    """Names and bytes, without what follows from them."""
    return {
        key: value[:-1] if key[0] == "overlay" else value
        for key, value in holds.items()
        if key[0] != "changes"
    }


def _mixed(before: dict[Key, Any], after: dict[Key, Any], found: dict[Key, Any], what: str) -> None:
    """Each key is as before or as after."""
    wrong = [
        f"{key}: {found.get(key)!r} is neither {before.get(key)!r} nor {after.get(key)!r}"
        for key in before.keys() | after.keys() | found.keys()
        if found.get(key) not in (before.get(key), after.get(key))
    ]
    assert not wrong, "\n".join([what, *wrong])


def _stayed(before: View, after: View, found: View, what: str) -> None:
    """What the step was not about keeps its time and its inode number."""
    wrong = [
        f"{key}: {value} became {found.stays.get(key)}"
        for key, value in before.stays.items()
        if before.holds.get(key) == after.holds.get(key) == found.holds.get(key)
        and found.stays.get(key) not in (value, after.stays.get(key))
    ]
    assert not wrong, "\n".join([f"{what}: times or numbers changed", *wrong])


def _sound(world: World, what: str) -> None:
    """fsck is clean, or reports only what it says it mends, and mends it."""
    try:
        repo = opened(world.path)
    except NotARepository:
        return
    try:
        problems = repo.fsck(full=True).problems
        kinds = {each.kind for each in problems}
        assert kinds <= MENDABLE, f"{what}: {problems}"
        if problems:
            repo.store.reindex()
            assert repo.fsck(full=True).problems == []
    finally:
        repo.close()
