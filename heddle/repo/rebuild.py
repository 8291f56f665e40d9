"""A new ``heddle.db`` out of what is left of a damaged one, and out of what else knows of it.

Owns what is believed: the rows that can still be read; the operation log, which names every thread and marker a second
time; the states in the packs, which say on which thread they were captured; the directories of overlays. Reading the
damaged file is ``salvage.py``'s, where it goes afterwards ``aside.py``'s.

The order, and what a crash leaves: the new database is complete under another name; the damaged file is copied aside
and its log moved there; the new one is renamed over the old, the commit point. A repair that was killed before that
begins again, and reads the log where it was put.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

from heddle import atomic, faults
from heddle.errors import InvalidName, StorageError
from heddle.objects.gitformat import COMMIT
from heddle.objects.state import decode
from heddle.repo import seal
from heddle.repo.aside import Repair, unfinished
from heddle.repo.database import Database
from heddle.repo.names import valid_marker_name, valid_thread_name
from heddle.repo.parked import PARKED
from heddle.repo.salvage import Row, Salvaged, salvage

if TYPE_CHECKING:
    from pathlib import Path

    from dulwich.objects import ObjectID

    from heddle.repo.repository import Repository

_WHY = "it was damaged; what can be read of it is in the new one"


class _Operation(NamedTuple):
    """A row of the log."""

    id: int
    time_ns: int
    kind: str
    subject: str
    name: str
    old: str | None
    new: str | None
    who: str | None
    message: str


class _Known(NamedTuple):
    """A state that lies in a pack of ours."""

    parents: tuple[ObjectID, ...]
    thread: str | None
    change_id: str
    time_ns: int


def rebuild(repo: Repository, repair: Repair) -> None:
    """Replace ``heddle.db``; to be called while nobody uses it.

    Args:
        repo: the repository, with the object format that its packs have; its database may be missing.
        repair: takes what was done.
    """
    found = salvage(_sources(repo.heddle_dir))
    rows = _Rows(repo, found, repair).all()
    repair.mended.append(
        f"database: {len(rows['threads'])} threads, {len(rows['markers'])} markers and "
        f"{len(rows['operations'])} operations are in a new {repo.database_path.name}"
    )
    if not repair.dry_run:
        _replace(repo, rows, repair)


def _sources(heddle_dir: Path) -> list[Path]:
    """Where the database may be read; where an interrupted repair has put its log, that comes first."""
    current = heddle_dir / "heddle.db"
    aside = [it for it in reversed(unfinished(heddle_dir)) if (it / "heddle.db").exists()]
    if aside and current.exists() and (aside[0] / "heddle.db-wal").exists():
        is_copy = (aside[0] / "heddle.db").read_bytes() == current.read_bytes()
        return [*aside, heddle_dir] if is_copy else [heddle_dir, *aside]
    return [heddle_dir, *aside]


def _replace(repo: Repository, rows: dict[str, list[Row]], repair: Repair) -> None:
    new = repo.heddle_dir / "heddle.db.new"
    new.unlink(missing_ok=True)
    Database.write(new, rows)
    with new.open("rb") as file:
        os.fsync(file.fileno())
    faults.reach("rebuild.written")
    repo.database_path.with_name("heddle.db-shm").unlink(missing_ok=True)
    repair.set_aside(repo.database_path, _WHY, keep=True)
    repair.set_aside(repo.database_path.with_name("heddle.db-wal"), _WHY)
    faults.reach("rebuild.before-rename")
    os.rename(new, repo.database_path)
    atomic.fsync_directory(repo.heddle_dir)
    faults.reach("rebuild.renamed")


class _Rows:
    """The rows of the new database."""

    def __init__(self, repo: Repository, found: Salvaged, repair: Repair) -> None:
        self._repo = repo
        self._store = repo.store
        self._found = found
        self._repair = repair
        self._format = repo.store.format_name
        self._now_ns = time.time_ns()
        self._log = sorted(_Operation._make(row) for row in found.rows("operations"))
        self._log_is_whole = {"operations", "threads", "markers"} <= found.whole
        said = found.tables.get("meta", {}).get((seal.LOG,), ("", None))[1]
        self._log_is_right = said == seal.sum_of_log(self._log)
        if said is not None and not self._log_is_right:
            repair.lost.append("what some operations of the log said; it is kept as it is")
        repair.lost += [
            f"rows of {table} that can't be read any more"
            for table in ("operations", "markers", "refs")
            if table not in found.whole and not (self._log_is_right and table != "refs")
        ]

    def all(self) -> dict[str, list[Row]]:
        """Every table."""
        threads = self._threads()
        markers = self._markers()
        if not self._log_is_whole:
            self._recover(threads, markers)
        head = self._head(threads)
        overlays = self._overlays(threads, head)
        rows = {table: self._found.rows(table) for table in self._found.tables}
        rows |= {
            "meta": self._meta(),
            "head": [(1, head)],
            "threads": sorted(threads.values()),
            "markers": sorted(markers.values()),
            "changes": list(self._changes()),
            "overlays": list(overlays.items()),
            "mounts": [row for row in self._found.rows("mounts") if _is_json(row[11])],
            "worktree": [(1, self._worktree(threads[head][1]))],
            "worktree_cache": [],
            "git": [],
        }
        rows["operations"] = [*self._log, *self._operations(threads, markers)]
        return rows

    def _meta(self) -> list[Row]:
        kept = {row[0]: row[1] for row in self._found.rows("meta")}
        created = kept.get("created_ns", "")
        kept["created_ns"] = created if created.isdecimal() else str(self._now_ns)
        kept["object_format"] = self._format
        return [each for each in kept.items() if each[0] not in (seal.NAMES, seal.LOG)]

    # states

    @cached_property
    def _states(self) -> dict[ObjectID, _Known]:
        """Every state in our own packs that can be read."""
        found = {}
        for id in self._store.ids_of_type(COMMIT):
            try:
                state = decode(id, self._store.get_raw(id)[1])
            except (KeyError, StorageError):
                continue
            known = _Known(state.parents, state.thread, state.change_id, state.time_s * 10**9)
            found[id] = known
        return found

    def _is_usable(self, text: str | None) -> bool:
        """Whether a state and its root tree can be read, so that it can be mounted and built upon."""
        if text is None:
            return True
        id: Any = text.encode("ascii", "replace")
        try:
            kind, raw = self._store.get_raw(id)
            return kind == COMMIT and bool(self._store.tree_entries(decode(id, raw).tree) or True)
        except (KeyError, StorageError):
            return False

    def _descends(self, id: ObjectID, ancestor: str | None) -> bool:
        wanted = None if ancestor is None else ancestor.encode()
        return wanted is None or wanted in self._ancestry([id])

    def _ancestry(self, ids: Iterable[ObjectID]) -> set[ObjectID]:
        """The states, and all that come before them."""
        seen: set[ObjectID] = set()
        pending = list(ids)
        while pending:
            id = pending.pop()
            if id not in seen:
                seen.add(id)
                pending += self._states[id].parents if id in self._states else ()
        return seen

    # names

    def _threads(self) -> dict[str, Row]:
        said = self._last("thread")
        rows = {row[0]: row for row in self._found.rows("threads")}
        if self._log_is_right:  # and the rows may not be
            rows = {name: row for name, row in rows.items() if name in said}
        found = {}
        for name in sorted(rows.keys() | said.keys()):
            if not _is_valid(valid_thread_name, name):
                self._repair.lost.append(f"{name!r} can't name a thread")
                continue
            row, last = rows.get(name), said.get(name)
            if last is not None and _is_gone(last) and (row is None or row[3] <= last.time_ns):
                continue
            found[name] = self._thread(name, row, last)
        return found

    def _last(self, subject: str) -> dict[str, _Operation]:
        """The newest operation of each name."""
        return {it.name: it for it in self._log if it.subject == subject}

    def _thread(self, name: str, row: Row | None, last: _Operation | None) -> Row:
        """Where a thread is: at the newest state known of it that can be read."""
        known: list[tuple[int, str | None]] = []
        if last is not None:
            known.append((last.time_ns, last.new))
        if row is not None and not (self._log_is_right and known):
            known.append((row[3], row[1]))
        known.sort(key=lambda each: each[0], reverse=True)
        wanted = [state for time_ns, state in known if time_ns == known[0][0]]
        updated_ns, state = next(
            (
                each
                for each in [*known, *self._earlier(name), *self._before(wanted)]
                if self._is_usable(each[1])
            ),
            (self._now_ns, None),
        )
        if state not in wanted:
            self._repair.lost.append(
                f"thread '{name}' was at {wanted[0]}, which can't be read; "
                f"it is at {state or 'no state'} now"
            )
        elif not self._log_is_whole:
            updated_ns, state = self._newer(name, updated_ns, state)
        created_ns = row[2] if row is not None else min(updated_ns, known[-1][0])
        return (name, state, created_ns, updated_ns)

    def _earlier(self, name: str) -> Iterator[tuple[int, str | None]]:
        """States that a thread was at before, newest first: from the log, then from the states themselves."""
        for it in reversed(self._log):
            if it.subject == "thread" and it.name == name:
                yield from ((it.time_ns, state) for state in (it.new, it.old) if state is not None)
        yield from ((known.time_ns, id.decode()) for id, known in self._captured_on(name))

    def _before(self, lost: list[str | None]) -> Iterator[tuple[int, str | None]]:
        """Where other threads were before they went to states that can't be read, newest first."""
        for it in reversed(self._log):
            if it.subject == "thread" and it.new in lost and it.old is not None:
                yield it.time_ns, it.old

    def _captured_on(self, name: str) -> list[tuple[ObjectID, _Known]]:
        """The states that were captured on a thread, newest first, those that others stand on last in a second."""
        mine = {id: known for id, known in self._states.items() if known.thread == name}
        below = {parent for known in mine.values() for parent in known.parents}
        return sorted(mine.items(), key=lambda it: (-it[1].time_ns, it[0] in below))

    def _newer(self, name: str, updated_ns: int, state: str | None) -> tuple[int, str | None]:
        """A state that was captured later, on top, and whose operation was lost."""
        for id, known in self._captured_on(name):
            if known.time_ns // 10**9 < updated_ns // 10**9:
                break
            if id.decode() != state and self._descends(id, state) and self._is_usable(id.decode()):
                self._repair.mended.append(f"thread '{name}' is at {id.decode()} as its states say")
                return known.time_ns, id.decode()
        return updated_ns, state

    def _markers(self) -> dict[str, Row]:
        rows = [] if self._log_is_right else self._found.rows("markers")
        found = {row[0]: row for row in rows}
        for name, last in self._last("marker").items():
            if last.new is None:
                found.pop(name, None)
            else:
                found.setdefault(name, (name, last.new, last.time_ns, last.message))
        for name in [it for it in found if not _is_valid(valid_marker_name, it)]:
            self._repair.lost.append(f"{name!r} can't name a marker")
            del found[name]
        for name in [it for it, row in found.items() if not self._is_usable(row[1])]:
            self._repair.lost.append(f"marker '{name}' named {found[name][1]}, which can't be read")
            del found[name]
        return found

    def _recover(self, threads: dict[str, Row], markers: dict[str, Row]) -> None:
        """Threads for states that nothing names: those that they were captured on, then one for each line left."""
        said = self._last("thread")
        for name in sorted({known.thread or "" for known in self._states.values()} - said.keys()):
            if name not in threads and _is_valid(valid_thread_name, name):
                self._make_thread(threads, name, (id for id, _ in self._captured_on(name)))
        named = [row[1] for row in (*threads.values(), *markers.values())]
        named += [state for it in self._log if it.subject != "head" for state in (it.old, it.new)]
        reached = self._ancestry(state.encode() for state in named if state is not None)
        left = self._states.keys() - reached
        tips = left - {parent for id in left for parent in self._states[id].parents}
        for id in sorted(tips, key=lambda id: self._states[id].time_ns, reverse=True):
            self._make_thread(threads, _free_name(threads), [id])

    def _make_thread(self, threads: dict[str, Row], name: str, ids: Iterable[ObjectID]) -> None:
        """A thread at the first of some states that can be read."""
        for id in ids:
            if self._is_usable(id.decode()):
                time_ns = self._states[id].time_ns
                threads[name] = (name, id.decode(), time_ns, time_ns)
                self._repair.mended.append(f"thread '{name}' is made for state {id.decode()}")
                return

    def _head(self, threads: dict[str, Row]) -> str:
        said = [] if self._log_is_right else [row[1] for row in self._found.rows("head")]
        said += [it.new for it in reversed(self._log) if it.subject == "head"]
        said += ["main", *sorted(threads)]
        head: str = next((name for name in said if name in threads), "main")
        if head not in threads:
            threads[head] = (head, None, self._now_ns, self._now_ns)
        if said[0] != head:
            self._repair.mended.append(f"HEAD is on thread '{head}'")
        return head

    # overlays and the rest

    def _overlays(self, threads: dict[str, Row], head: str) -> dict[str, str | None]:
        bases = {row[0]: row[1] for row in self._found.rows("overlays") if row[0] in threads}
        for thread in self._overlay_directories():
            if thread not in threads and not self._log_is_whole:
                state = threads[head][1]
                threads[thread] = (thread, state, self._now_ns, self._now_ns)
                bases[thread] = state
                self._repair.mended.append(
                    f"thread '{thread}' is made again for its overlay, at {state}: nobody knows "
                    "which state it was relative to"
                )
            elif thread in threads and thread not in bases and "overlays" not in self._found.whole:
                bases[thread] = threads[thread][1]
        for thread in [it for it, base in bases.items() if not self._is_usable(base)]:
            self._repair.lost.append(
                f"the overlay of '{thread}' was relative to {bases[thread]}, which can't be read; "
                f"it is relative to {threads[thread][1] or 'no state'} now"
            )
            bases[thread] = threads[thread][1]
        return bases

    def _overlay_directories(self) -> list[str]:
        overlays = self._repo.heddle_dir / "overlays"
        names = os.listdir(overlays) if overlays.is_dir() else []
        found = [unquote(name) for name in sorted(names) if name != PARKED]
        return [name for name in found if _is_valid(valid_thread_name, name)]

    def _worktree(self, head_state: str | None) -> str | None:
        rows = self._found.rows("worktree")
        return rows[0][1] if rows and self._is_usable(rows[0][1]) else head_state

    def _changes(self) -> Iterator[Row]:
        rows = {row[:2]: row for row in self._found.rows("changes")}
        if "changes" not in self._found.whole:
            for id, known in self._states.items():
                key = (known.change_id, id.decode())
                rows.setdefault(key, (*key, known.time_ns))
        yield from rows.values()

    def _operations(self, threads: dict[str, Row], markers: dict[str, Row]) -> Iterator[Row]:
        """What the repair itself moved, so that the log stays right."""
        id = self._log[-1].id if self._log else 0
        now_ns = max(self._now_ns, self._log[-1].time_ns + 1 if self._log else 0)
        for subject, rows in (("thread", threads), ("marker", markers)):
            last = self._last(subject)
            for name in sorted(last.keys() | rows.keys()):
                old = last[name].new if name in last else None
                new = rows[name][1] if name in rows else None
                if old != new:
                    id += 1
                    yield (id, now_ns, "repair", subject, name, old, new, None, "")


def _is_gone(last: _Operation) -> bool:
    """Whether a thread's newest operation took its name away."""
    if last.kind == "thread-rename":
        return last.message.startswith(f"{last.name} is now ")
    return last.kind == "thread-delete"


def _is_valid(check: Any, name: object) -> bool:
    try:
        check(name)
    except (InvalidName, TypeError):
        return False
    return True


def _is_json(text: object) -> bool:
    try:
        return isinstance(json.loads(str(text)), dict)
    except ValueError:
        return False


def _free_name(threads: dict[str, Row]) -> str:
    number = 1
    while f"recovered-{number}" in threads:
        number += 1
    return f"recovered-{number}"
