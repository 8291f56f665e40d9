"""Which objects that something refers to can't be had, what is lost with them, and which states have no name.

Owns the walk from every name to every object. Whether stored bytes are right is the object store's to say.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from heddle.errors import CorruptObject, StorageError
from heddle.objects.gitformat import COMMIT, TAG, to_raw
from heddle.objects.layout import REINDEX_HINT
from heddle.objects.promised import RELIST_HINT
from heddle.objects.state import State, decode

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.repo.repository import Repository

GITLINK = 0o160000


class Lost(NamedTuple):
    """An object that can't be had.

    Attributes:
        id: the object.
        kind: ``state``, ``directory`` or ``file``.
        path: of the directory or file, in the first state that was found to hold it.
        state: that state, or one that follows the lost one.
        where: the name that leads there.
    """

    id: ObjectID
    kind: str
    path: bytes
    state: ObjectID
    where: str

    def __str__(self) -> str:
        what = f"{self.kind} {os.fsdecode(self.path)!r}" if self.path else self.kind
        of = "before" if self.kind == "state" else "of"
        return (
            f"{what} {of} state {self.state[:12].decode()} ({self.where}) is lost: "
            f"object {self.id.decode()}"
        )


def lost_objects(
    repo: Repository,
    roots: Iterable[tuple[str, ObjectID]],
    unreadable: Collection[bytes] = frozenset(),
) -> Iterator[Lost]:
    """Walk from names to everything that they need.

    A name whose own state is missing is passed over: whoever checks names says so.

    Args:
        repo: the repository.
        roots: names and the objects that they name.
        unreadable: binary ids of blobs that are stored and known to be damaged.
    """
    walk = _Walk(repo, unreadable)
    for where, id in roots:
        yield from walk.history(where, id)


def unnamed_states(repo: Repository, named: Iterable[ObjectID]) -> list[State]:
    """The states in this repository's own packs that no name leads to, but for those that another of them stands on.

    A capture that was cut off before its commit point leaves one, and so does a database that lost its last
    transactions. Reads no history where every state has a name of its own, as captures have in the operation log.

    Args:
        repo: the repository.
        named: what names say.
    """
    pending = list(named)
    left = set(repo.store.ids_of_type(COMMIT)).difference(pending)
    seen: set[ObjectID] = set()
    while left and pending:
        id = pending.pop()
        if id not in seen:
            seen.add(id)
            left.discard(id)
            state = _state(repo, id)
            pending += () if state is None else state.parents
    states = [state for state in (_state(repo, id) for id in sorted(left)) if state is not None]
    below = {parent for state in states for parent in state.parents}
    return sorted((it for it in states if it.id not in below), key=lambda it: it.time_s)


def _state(repo: Repository, id: ObjectID) -> State | None:
    """A state, or the one that a tag leads to; None where nothing can be read."""
    try:
        kind, raw = repo.store.get_raw(id)
        while kind == TAG:
            id = _tagged(raw)
            kind, raw = repo.store.get_raw(id)
        return decode(id, raw) if kind == COMMIT else None
    except (KeyError, StorageError):
        return None


class _Walk:
    """What was seen so far; every object is looked at once."""

    def __init__(self, repo: Repository, unreadable: Collection[bytes]) -> None:
        self._store = repo.store
        self._shallow = repo.shallow
        self._unreadable = unreadable
        self._seen: set[bytes] = set()

    def history(self, where: str, start: ObjectID) -> Iterator[Lost]:
        """A state and all before it."""
        pending = [(start, start)]
        while pending:
            id, after = pending.pop()
            if not self._is_new(id):
                continue
            found = self._read(id)
            if found is None:
                if id != start:
                    yield Lost(id, "state", b"", after, where)
                continue
            kind, raw = found
            if kind == TAG:
                pending.append((_tagged(raw), start))
            elif kind == COMMIT:
                try:
                    state = decode(id, raw)
                except CorruptObject:
                    yield Lost(id, "state", b"", after, where)
                    continue
                yield from self._tree(state.tree, id, where)
                if id not in self._shallow:
                    pending += [(parent, id) for parent in reversed(state.parents)]

    def _tree(self, root: ObjectID, state: ObjectID, where: str) -> Iterator[Lost]:
        pending = [(root, b"")]
        while pending:
            tree, path = pending.pop()
            if not self._is_new(tree):
                continue
            try:
                entries = self._store.tree_entries(tree)
            except (KeyError, StorageError) as error:
                if not _is_only_hidden(error):
                    yield Lost(tree, "directory", path, state, where)
                continue
            prefix = path + b"/" if path else b""
            for name, mode, id in entries:
                if stat.S_ISDIR(mode):
                    pending.append((id, prefix + name))
                elif mode != GITLINK and self._is_new(id) and self._is_lost(id):
                    yield Lost(id, "file", prefix + name, state, where)

    def _is_new(self, id: ObjectID) -> bool:
        raw_id = to_raw(id, self._store.id_length)
        if raw_id in self._seen:
            return False
        self._seen.add(raw_id)
        return True

    def _is_lost(self, id: ObjectID) -> bool:
        raw_id = to_raw(id, self._store.id_length)
        if raw_id in self._unreadable:
            return True
        try:
            if not self._store.holds(raw_id):
                self._store.kind(raw_id)  # looks at the directory again
        except (KeyError, StorageError) as error:
            return not _is_only_hidden(error)
        return False

    def _read(self, id: ObjectID) -> tuple[int, bytes] | None:
        try:
            return self._store.get_raw(id)
        except (KeyError, StorageError):
            return None


def _is_only_hidden(error: Exception) -> bool:
    """Whether the object is in a pack whose index, or in a list of promises that, has to be made again."""
    return isinstance(error, StorageError) and error.hint in (REINDEX_HINT, RELIST_HINT)


def _tagged(raw: bytes) -> ObjectID:
    """What a tag object names (git's format: its first line)."""
    from dulwich.objects import ObjectID

    return ObjectID(raw.partition(b"\n")[0].removeprefix(b"object "))
