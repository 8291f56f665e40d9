"""What differs between two trees, as the list of changes that every command shows.

Owns the ``Change`` record, the comparison of two stored trees and the pairing of deletions with
additions into renames. The working directory is compared in ``worktree.py``, a mount in
``mount/overlay.py``; text comes from ``diff.py``.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from dulwich.object_store import BaseObjectStore
    from dulwich.objects import ObjectID

ADDED = "added"
MODIFIED = "modified"
DELETED = "deleted"
RENAMED = "renamed"
TYPE_CHANGED = "type-changed"

DIRECTORY_MODE = 0o040000
EMPTY_TREES = frozenset(
    {
        b"4b825dc642cb6eb9a060e54bf8d69288fbee4904",
        b"6ef19b41225c5369f1c104d45d8d85efa9b057b53b14b4b9b939dd74decc5321",
    }
)
"""The ids of the tree without entries, in SHA-1 and in SHA-256."""

_MAX_COMPARED_PAIRS = 40_000
_MAX_COMPARED_BYTES = 1 << 20
_MAX_COMPARED_TOTAL = 64 << 20
_SIMILAR_PERCENT = 50


class Change(NamedTuple):
    """One path that is not the same on both sides.

    A path is a file, a symbolic link, a link to another repository (mode 160000) or a directory
    without entries (mode 040000); a directory that holds something shows through what it holds.

    Attributes:
        path: where it is now, or where it was when it was deleted; ``/`` between components.
        kind: ``added``, ``modified``, ``deleted``, ``renamed`` or ``type-changed`` (a file that
            became a link, for one).
        old_path: where a renamed path came from; None for every other kind.
        old_mode: git mode before, None when added.
        old_id: object id before, None when added.
        new_mode: git mode now, None when deleted.
        new_id: object id now; None when deleted, or when the bytes are unsaved and were not hashed.
    """

    path: bytes
    kind: str
    old_path: bytes | None
    old_mode: int | None
    old_id: ObjectID | None
    new_mode: int | None
    new_id: ObjectID | None


ANOTHER_REPOSITORY = "another git repository: git add and git commit record its link"


class NotRecorded(NamedTuple):
    """A path that a capture had to leave out, and why."""

    path: bytes
    why: str


class Status(NamedTuple):
    """What is unsaved in one place, the plain working directory or a mount.

    Attributes:
        changes: what differs from the state that it is relative to, in path order.
        ignored_count: how many entries are ignored; an ignored directory counts once.
        not_recorded: what a capture would have to leave out.
    """

    changes: Sequence[Change]
    ignored_count: int
    not_recorded: tuple[NotRecorded, ...]


def not_kept_of_mode(mode: int, umask: int) -> str | None:
    """What a file's permissions say that its state can't, one line; None where nothing is lost.

    A state has the executable bit. Elsewhere the file gets what the umask leaves of 0666 or 0777; if it is closed to
    somebody whom that lets in, or has a set-id or the sticky bit, it is told.

    Args:
        mode: ``st_mode``.
        umask: of whoever works here.
    """
    elsewhere = (0o777 if mode & 0o100 else 0o666) & ~umask
    if mode & 0o7000 or elsewhere & ~mode:
        return f"its mode {mode & 0o7777:04o}: git keeps only the executable bit"
    return None


def current_umask() -> int:
    """This process's umask, without changing it (proc(5))."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o022


Reader = Callable[[Change], bytes]
"""Gives one side of a change: a file's bytes or a link's target."""


def change_between(
    path: bytes,
    old: tuple[int, ObjectID] | None,
    new: tuple[int, ObjectID | None] | None,
) -> Change:
    """Describe one path from its (mode, id) before and now; at most one of them may be None."""
    old_mode, old_id = old or (None, None)
    new_mode, new_id = new or (None, None)
    return Change(path, _kind(old_mode, new_mode), None, old_mode, old_id, new_mode, new_id)


def _kind(old_mode: int | None, new_mode: int | None) -> str:
    if old_mode is None:
        return ADDED
    if new_mode is None:
        return DELETED
    return MODIFIED if stat.S_IFMT(old_mode) == stat.S_IFMT(new_mode) else TYPE_CHANGED


def tree_changes(
    store: BaseObjectStore,
    old_tree: ObjectID | None,
    new_tree: ObjectID | None,
    *,
    paths: Sequence[bytes] = (),
    renames: bool = True,
) -> list[Change]:
    """Compare two stored trees; subtrees with equal ids are not read.

    A directory that lost its last entry shows as the deletion of that entry alone, and one that got
    its first as the addition alone: an empty directory is a change only where no directory was, or
    is.

    Args:
        old_tree: the tree before, None for nothing at all.
        new_tree: the tree now, None for nothing at all.
        paths: only these paths and what lies below them; none means everything.
        renames: pair deletions and additions of the same object.

    Returns:
        The changes in the order of their paths.
    """
    from dulwich.diff_tree import tree_changes as compare

    wanted = normalised(paths)
    found: list[Change] = []
    if old_tree == new_tree:
        return found
    for _, old, new in compare(
        store, old_tree, new_tree, include_trees=True, change_type_same=True, paths=wanted or None
    ):
        path = (old or new).path  # type: ignore[union-attr]
        if path and within(path, wanted):
            found += _leaf_changes(path, _mode_and_id(old), _mode_and_id(new))
    found.sort(key=_by_path)
    return find_renames(found) if renames else found


def _mode_and_id(entry: object) -> tuple[int, ObjectID] | None:
    return None if entry is None else (entry.mode, entry.sha)  # type: ignore[attr-defined]


def _leaf_changes(
    path: bytes, old: tuple[int, ObjectID] | None, new: tuple[int, ObjectID] | None
) -> list[Change]:
    """The change at one path itself; what lies inside its directories is reported path by path."""
    if old and new and stat.S_ISDIR(old[0]) and stat.S_ISDIR(new[0]):
        return []
    old, new = _leaf(old), _leaf(new)
    return [change_between(path, old, new)] if old or new else []


def _leaf(entry: tuple[int, ObjectID] | None) -> tuple[int, ObjectID] | None:
    if entry and stat.S_ISDIR(entry[0]) and entry[1] not in EMPTY_TREES:
        return None
    return entry


def normalised(paths: Iterable[bytes]) -> tuple[bytes, ...]:
    """Paths as they are compared: no ``./`` before, no ``/`` behind; the root means all, ()."""
    result = tuple(path.removeprefix(b"./").strip(b"/") for path in paths)
    return () if b"" in result or b"." in result else result


def within(path: bytes, paths: Sequence[bytes]) -> bool:
    """True when ``path`` is one of ``paths`` or lies below one; without paths, always."""
    return not paths or any(path == p or path.startswith(p + b"/") for p in paths)


def find_renames(
    changes: Iterable[Change],
    *,
    read_old: Reader | None = None,
    read_new: Reader | None = None,
) -> list[Change]:
    """Turn a deletion and an addition of the same thing into one rename.

    Objects with equal ids are always paired, preferring an equal file name. With both readers, what
    remains is compared by content too (dulwich's rename detector), as far as that is affordable.

    Args:
        changes: changes of one comparison.
        read_old: gives the old bytes of a deletion.
        read_new: gives the new bytes of an addition.

    Returns:
        The changes in the order of their paths.
    """
    deleted, added, rest = _partition(changes)
    rest += _pair_equal(deleted, added)
    if read_old and read_new and deleted and added:
        rest += _pair_similar(deleted, added, read_old, read_new)
    return sorted([*rest, *deleted, *added], key=_by_path)


def _by_path(change: Change) -> bytes:
    return change.path


def _partition(changes: Iterable[Change]) -> tuple[list[Change], list[Change], list[Change]]:
    deleted: list[Change] = []
    added: list[Change] = []
    rest: list[Change] = []
    for change in changes:
        mode = change.old_mode if change.kind == DELETED else change.new_mode
        movable = mode is not None and (stat.S_ISREG(mode) or stat.S_ISLNK(mode))
        if movable and change.kind == DELETED:
            deleted.append(change)
        elif movable and change.kind == ADDED:
            added.append(change)
        else:
            rest.append(change)
    return deleted, added, rest


def _renamed(old: Change, new: Change) -> Change:
    return new._replace(kind=RENAMED, old_path=old.path, old_mode=old.old_mode, old_id=old.old_id)


def _pair_equal(deleted: list[Change], added: list[Change]) -> list[Change]:
    """Pair by object id and kind of file, equal names first; the paired leave both lists."""
    renamed: list[Change] = []
    for by_name in (True, False):
        sources: dict[object, list[Change]] = {}
        for change in deleted:
            mode_and_id = change.old_mode, change.old_id
            sources.setdefault(_identity(change, *mode_and_id, by_name), []).append(change)
        pairs = []
        for change in added if sources else ():
            candidates = sources.get(_identity(change, change.new_mode, change.new_id, by_name))
            if candidates and change.new_id is not None:
                pairs.append((candidates.pop(0), change))
        renamed += _take(pairs, deleted, added)
    return renamed


def _identity(change: Change, mode: int | None, id: ObjectID | None, by_name: bool) -> object:
    name = change.path.rpartition(b"/")[2] if by_name else None
    return id, stat.S_IFMT(mode or 0), name


def _take(
    pairs: list[tuple[Change, Change]], deleted: list[Change], added: list[Change]
) -> list[Change]:
    gone = {old.path for old, _ in pairs}
    come = {new.path for _, new in pairs}
    deleted[:] = [change for change in deleted if change.path not in gone]
    added[:] = [change for change in added if change.path not in come]
    return [_renamed(old, new) for old, new in pairs]


def _pair_similar(
    deleted: list[Change], added: list[Change], read_old: Reader, read_new: Reader
) -> list[Change]:
    """Pair by content: each side becomes one flat tree, and dulwich's detector compares these."""
    from dulwich.diff_tree import CHANGE_RENAME, RenameDetector

    if len(deleted) * len(added) > _MAX_COMPARED_PAIRS:
        return []
    store = _Flat()
    old_tree = store.add_side(b"old", deleted, [change.old_mode for change in deleted], read_old)
    new_tree = store.add_side(b"new", added, [change.new_mode for change in added], read_new)
    detector = RenameDetector(store, rename_threshold=_SIMILAR_PERCENT, max_files=None)  # type: ignore[arg-type]
    pairs = []
    for found in detector.changes_with_renames(old_tree, new_tree):
        if found.type == CHANGE_RENAME and found.old and found.new:
            pairs.append((deleted[_index(found.old.path)], added[_index(found.new.path)]))
    return _take(pairs, deleted, added)


def _index(path: bytes | None) -> int:
    return int((path or b"")[3:])


class _Flat(dict[bytes, object]):
    """An object store in memory for one comparison: two flat trees and the blobs they name.

    Attributes:
        size: bytes of all blobs; what goes beyond the bound is left out, and so is no rename.
    """

    size = 0

    def add_side(
        self, side: bytes, changes: list[Change], modes: list[int | None], read: Reader
    ) -> ObjectID:
        from dulwich.objects import Blob, Tree

        tree = Tree()
        for index, (change, mode) in enumerate(zip(changes, modes, strict=True)):
            content = read(change)
            fits = len(content) <= min(_MAX_COMPARED_BYTES, _MAX_COMPARED_TOTAL - self.size)
            if content and fits:
                self.size += len(content)
                blob = Blob.from_string(content)
                self[blob.id] = blob
                tree.add(side + b"%d" % index, mode or 0, blob.id)
        self[tree.id] = tree
        return tree.id
