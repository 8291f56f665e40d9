"""A tree made of another one by changing some of its paths; what lies beside them is not read.

Owns the order in which directories are rebuilt. dulwich's ``commit_tree_changes`` drops empty directories and
depends on the order of its changes, hence this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from heddle.repo.changes import DIRECTORY_MODE, EMPTY_TREES

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.objects.pack import PackWriter
    from heddle.objects.store import ObjectStore

Entries = dict[bytes, "tuple[int, ObjectID]"]
Edits = Mapping[bytes, "tuple[int, ObjectID] | None"]
"""By path: the mode and id that it gets, or None to drop what the base has there."""


def edit_tree(
    store: ObjectStore, writer: PackWriter, base: ObjectID | None, edits: Edits
) -> tuple[ObjectID, dict[bytes, tuple[ObjectID, Entries]]]:
    """Apply edits to a tree.

    A directory that is left without entries vanishes, unless an edit gives its path the empty tree. Where an
    edit needs a directory and the base has something else, the directory takes its place.

    Args:
        store: where the base is read.
        writer: gets the new trees.
        base: the tree to begin with; None for an empty one.
        edits: what becomes of which path.

    Returns:
        The new tree's id, and every directory that was rebuilt: its id and entries by path, the root as ``b""``.
    """
    by_directory = _grouped(edits)
    directories: dict[bytes, Entries] = {}
    for path in sorted(by_directory):
        below = _base_entries(store, directories, base, path)
        directories[path] = _edited(below, by_directory[path])
    rebuilt: dict[bytes, tuple[ObjectID, Entries]] = {}
    for path in sorted(directories, key=_depth, reverse=True):
        entries = directories[path]
        if path and not entries and not _is_directory(edits.get(path)):
            continue
        tree = writer.add_tree([(name, mode, id) for name, (mode, id) in entries.items()])
        rebuilt[path] = tree, entries
        if path:
            parent, _, name = path.rpartition(b"/")
            directories[parent][name] = (DIRECTORY_MODE, tree)
    return rebuilt[b""][0], rebuilt


def _depth(path: bytes) -> int:
    return path.count(b"/") + 1 if path else 0


def _grouped(edits: Edits) -> dict[bytes, dict[bytes, tuple[int, ObjectID] | None]]:
    """The edits of each directory by name, with every directory above them."""
    grouped: dict[bytes, dict[bytes, tuple[int, ObjectID] | None]] = {b"": {}}
    for path, entry in edits.items():
        directory, _, name = path.rpartition(b"/")
        if directory in grouped:
            grouped[directory][name] = entry
            continue
        grouped[directory] = {name: entry}
        while directory:
            directory = directory.rpartition(b"/")[0]
            if directory in grouped:
                break
            grouped[directory] = {}
    return grouped


def _base_entries(
    store: ObjectStore, directories: dict[bytes, Entries], base: ObjectID | None, path: bytes
) -> Entries:
    """What the base has in a directory, which is taken out of the one above until it is rebuilt."""
    tree = base
    if path:
        parent, _, name = path.rpartition(b"/")
        is_directory = _is_directory(directories[parent].get(name))
        tree = directories[parent].pop(name)[1] if is_directory else None
    if tree is None or tree in EMPTY_TREES:
        return {}
    return {name: (mode, id) for name, mode, id in store.tree_entries(tree)}


def _is_directory(entry: tuple[int, ObjectID] | None) -> bool:
    return entry is not None and entry[0] == DIRECTORY_MODE


def _edited(entries: Entries, edits: dict[bytes, tuple[int, ObjectID] | None]) -> Entries:
    for name, entry in edits.items():
        if entry is None:
            entries.pop(name, None)
        else:
            entries[name] = entry
    return entries
