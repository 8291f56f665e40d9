"""History: the states that a state comes from, newest first, and which of them are wanted.

Owns the order, the filters and reading times as people write them. It reads one commit for each state it passes
and holds no more than the frontier and the ids seen, so the first lines of a long log come at once.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import count
from typing import TYPE_CHECKING

from heddle.errors import ObjectMissing, UsageError

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.objects.state import State
    from heddle.repo.repository import Repository

_SLOP = 16
"""States older than ``since`` to look behind before stopping: clocks of different machines disagree a little."""

_FROM_OLD, _FROM_NEW, _BOTH = 1, 2, 3

_TREE = 0o040000


def log(
    repo: Repository,
    starts: Iterable[ObjectID],
    *,
    limit: int | None = None,
    agent: str | None = None,
    since_s: int | None = None,
    paths: Sequence[bytes] = (),
    topological: bool = False,
) -> Iterator[State]:
    """The states reachable from ``starts``, newest first, that pass every filter.

    Args:
        limit: at most this many.
        agent: text that ``provider/model`` must contain, in any case.
        since_s: not older than this, seconds since the epoch.
        paths: only states where one of these differs from the first parent's.
        topological: never a state before one that comes from it, whatever the clocks said; reads the whole
            history before the first state.

    Raises:
        ObjectMissing: a state names a parent that is not here.
    """
    walk = newest_first(repo, starts, since_s=since_s)
    if topological:
        walk = _children_first(walk)
    changed = _PathFilter(repo, paths) if paths else None
    shown = 0
    for state in walk:
        if limit is not None and shown >= limit:
            return
        if agent is not None and agent.lower() not in str(state.agent or "").lower():
            continue
        if changed is None or changed(state):
            shown += 1
            yield state


def newest_first(
    repo: Repository, starts: Iterable[ObjectID], *, since_s: int | None = None
) -> Iterator[State]:
    """Every state reachable from ``starts`` once, by commit time; ties in the order they were reached."""
    frontier: list[tuple[int, int, State]] = []
    seen: set[ObjectID] = set()
    too_old = 0
    _reach(repo, frontier, seen, starts)
    while frontier:
        state = heapq.heappop(frontier)[2]
        if since_s is None or state.committed_s >= since_s:
            too_old = 0
            yield state
        else:
            too_old += 1
            if too_old > _SLOP:
                return
        parents = [parent for parent in state.parents if _is_here(repo, parent, state.id)]
        _reach(repo, frontier, seen, parents)


def is_ancestor(repo: Repository, old: ObjectID, new: ObjectID) -> bool:
    """Whether a state comes from another one, or is it; whatever their clocks said.

    Both are followed back until all that is left to follow comes before both. A state on a way from ``new`` to
    ``old`` never does, so by then the answer is sure; and what only one of them has is soon passed.

    Raises:
        ObjectMissing: a state names a parent that is not here.
    """
    sides = _Sides(repo, [old], [new])
    while sides.left[_FROM_OLD] + sides.left[_FROM_NEW] and sides.marks[old] != _BOTH:
        sides.step()
    return sides.marks[old] == _BOTH


def beyond(
    repo: Repository, old: Iterable[ObjectID], new: Iterable[ObjectID]
) -> tuple[set[ObjectID], set[ObjectID]]:
    """The states that ``new`` come from and ``old`` do not, and those that these begin at.

    Where clocks were wrong, some that ``old`` come from as well can be among the first, with all that is between.

    Raises:
        ObjectMissing: a state names a parent that is not here.
    """
    new = set(new)
    sides = _Sides(repo, old, new)
    while sides.left[_FROM_NEW]:
        sides.step()
    found = {id for id, whose in sides.marks.items() if whose == _FROM_NEW}
    parents = {parent for id in found for parent in repo.state(id).parents}
    return found, {id for id in (parents | new) - found if id in repo.store}


class _Sides:
    """Two histories that are followed back together, newest first.

    Attributes:
        marks: of each state that was reached, from which side.
        left: how many are still to be followed, by the side that they were reached from.
    """

    def __init__(self, repo: Repository, old: Iterable[ObjectID], new: Iterable[ObjectID]) -> None:
        self._repo = repo
        self._frontier: list[tuple[int, int, int, State]] = []
        self._order = count()
        self.marks: dict[ObjectID, int] = {}
        self.left = dict.fromkeys((_FROM_OLD, _FROM_NEW, _BOTH), 0)
        for whose, ids in ((_FROM_OLD, old), (_FROM_NEW, new)):
            for id in ids:
                self._mark(id, whose)

    def _mark(self, id: ObjectID, whose: int) -> None:
        before = self.marks.get(id, 0)
        if before | whose == before:
            return
        self.marks[id] = whose = before | whose
        self.left[whose] += 1
        state = self._repo.state(id)
        heapq.heappush(self._frontier, (-state.committed_s, next(self._order), whose, state))

    def step(self) -> None:
        """Follow the newest one to its parents."""
        _, _, whose, state = heapq.heappop(self._frontier)
        self.left[whose] -= 1
        for parent in state.parents if whose == self.marks[state.id] else ():
            if _is_here(self._repo, parent, state.id):
                self._mark(parent, whose)


def _reach(
    repo: Repository,
    frontier: list[tuple[int, int, State]],
    seen: set[ObjectID],
    ids: Iterable[ObjectID],
) -> None:
    for id in ids:
        if id not in seen:
            seen.add(id)
            state = repo.state(id)
            heapq.heappush(frontier, (-state.committed_s, len(seen), state))


def _is_here(repo: Repository, parent: ObjectID, child: ObjectID) -> bool:
    """False where a shallow clone left the parent out on purpose."""
    if parent in repo.store:
        return True
    if child in repo.shallow:
        return False
    raise ObjectMissing(
        f"state {child[:12].decode()} comes from {parent.decode()}, which is not here",
        hint="heddle fsck",
    )


def _children_first(walk: Iterator[State]) -> Iterator[State]:
    """The same states, each only after all that come from it; otherwise in the order given."""
    states = {state.id: (order, state) for order, state in enumerate(walk)}
    children = dict.fromkeys(states, 0)
    for _, state in states.values():
        for parent in set(state.parents) & children.keys():
            children[parent] += 1
    ready = [states[id] for id, count in children.items() if count == 0]
    heapq.heapify(ready)
    while ready:
        _, state = heapq.heappop(ready)
        yield state
        for parent in set(state.parents) & children.keys():
            children[parent] -= 1
            if children[parent] == 0:
                heapq.heappush(ready, states[parent])


class _PathFilter:
    """Whether a state changed one of some paths, by comparing tree entries down to them."""

    def __init__(self, repo: Repository, paths: Sequence[bytes]) -> None:
        self._repo = repo
        self._paths = [path.strip(b"/") for path in paths]
        # Each parent comes up again as the next state, so half of the lookups are remembered ones.
        self._entry = lru_cache(maxsize=1024)(self._entry_uncached)

    def __call__(self, state: State) -> bool:
        parent_tree = None
        if state.parents and _is_here(self._repo, state.parents[0], state.id):
            parent_tree = self._repo.state(state.parents[0]).tree
        if state.tree == parent_tree:
            return False
        return any(self._entry(state.tree, p) != self._entry(parent_tree, p) for p in self._paths)

    def _entry_uncached(self, tree: ObjectID | None, path: bytes) -> tuple[int, ObjectID] | None:
        return None if tree is None else entry_at(self._repo, tree, path)


def entry_at(repo: Repository, tree: ObjectID, path: bytes) -> tuple[int, ObjectID] | None:
    """The mode and id at ``path`` below a tree, or None; ``b""`` is the tree itself."""
    mode, id = _TREE, tree
    for name in filter(None, path.split(b"/")):
        if mode != _TREE:
            return None
        entries = {entry[0]: entry for entry in repo.store.tree_entries(id)}
        if name not in entries:
            return None
        _, mode, id = entries[name]
    return mode, id


# times as people write them

_UNITS = {
    "s": 1, "sec": 1, "second": 1, "min": 60, "minute": 60, "h": 3600, "hour": 3600,
    "d": 86400, "day": 86400, "w": 604800, "week": 604800, "month": 2629746, "y": 31556952,
    "year": 31556952,
}  # fmt: skip
"""Seconds in each unit; a month and a year are their Gregorian means."""

_AGO = re.compile(r"(\d{1,9})\s*([a-z]+?)s?(?:\s+ago)?")


def parse_time(text: str, now_s: int) -> int:
    """Read a time: ``2026-01-31``, ``2026-01-31T12:00+01:00``, ``@1700000000``, ``2 days ago``, ``3h``.

    Also ``now``, ``today`` and ``yesterday`` (at midnight). A time without a zone is local.

    Args:
        now_s: what "ago" counts from, seconds since the epoch.

    Returns:
        Seconds since the epoch.

    Raises:
        UsageError: it can't be read.
    """
    words = text.strip().lower()
    ago = _AGO.fullmatch(words)
    try:
        if ago and ago[2] in _UNITS:
            return now_s - int(ago[1]) * _UNITS[ago[2]]
        if re.fullmatch(r"@\d{1,12}", words):
            return int(words[1:])
        if words in ("now", "today", "yesterday"):
            return _day(words, now_s)
        return int(datetime.fromisoformat(text.strip()).timestamp())
    except (ValueError, OverflowError, OSError) as error:
        hint = "for example 2026-01-31, '2026-01-31 12:00', '2 days ago'"
        raise UsageError(f"{text!r} is not a time", hint=hint) from error


def _day(word: str, now_s: int) -> int:
    now = datetime.fromtimestamp(now_s)
    if word == "now":
        return now_s
    midnight = now.replace(hour=0, minute=0, second=0)
    return int((midnight - timedelta(days=int(word == "yesterday"))).timestamp())
