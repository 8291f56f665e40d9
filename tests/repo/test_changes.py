"""Comparing stored trees, and pairing what moved."""

from __future__ import annotations

from pathlib import Path

import pytest
from trees import DIRECTORY, EXECUTABLE, FILE, GITLINK, SYMLINK, store_tree

from heddle.objects.store import ObjectStore
from heddle.repo.changes import Change, find_renames, normalised, tree_changes, within

TEXT = b"some lines\nof text\n" * 20


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    """An empty object store."""
    return ObjectStore.create(tmp_path / "objects")


def compare(store, old, new, **options) -> list[tuple[str, bytes, bytes | None]]:
    """(kind, path, old path) of each change between two trees given as files."""
    trees = store_tree(store, old), store_tree(store, new)
    return [(c.kind, c.path, c.old_path) for c in tree_changes(store, *trees, **options)]


CASES = {
    "nothing": ({b"a": (FILE, b"x")}, {b"a": (FILE, b"x")}, []),
    "added": ({}, {b"d/a": (FILE, b"x")}, [("added", b"d/a", None)]),
    "modified": (
        {b"a": (FILE, b"x")},
        {b"a": (FILE, b"y")},
        [("modified", b"a", None)],
    ),
    "executable": (
        {b"a": (FILE, b"x")},
        {b"a": (EXECUTABLE, b"x")},
        [("modified", b"a", None)],
    ),
    "link instead": (
        {b"a": (FILE, b"x")},
        {b"a": (SYMLINK, b"x")},
        [("type-changed", b"a", None)],
    ),
    "renamed": (
        {b"a": (FILE, TEXT)},
        {b"b/a": (EXECUTABLE, TEXT)},
        [("renamed", b"b/a", b"a")],
    ),
    "copied": (
        {b"a": (FILE, TEXT)},
        {b"a": (FILE, TEXT), b"b": (FILE, TEXT)},
        [("added", b"b", None)],
    ),
    "link to file": (
        {b"a": (SYMLINK, b"x")},
        {b"b": (FILE, b"x")},
        [("deleted", b"a", None), ("added", b"b", None)],
    ),
    "file to directory": (
        {b"a": (FILE, b"x")},
        {b"a/b": (FILE, b"y")},
        [("deleted", b"a", None), ("added", b"a/b", None)],
    ),
    "directory to file": (
        {b"a/b": (FILE, b"y"), b"a/c/d": (FILE, b"z")},
        {b"a": (FILE, b"x")},
        [("added", b"a", None), ("deleted", b"a/b", None), ("deleted", b"a/c/d", None)],
    ),
    "empty directory added": ({}, {b"d/e": (DIRECTORY, b"")}, [("added", b"d/e", None)]),
    "empty directory deleted": ({b"d": (DIRECTORY, b"")}, {}, [("deleted", b"d", None)]),
    "directory emptied": (
        {b"d/a": (FILE, b"x")},
        {b"d": (DIRECTORY, b"")},
        [("deleted", b"d/a", None)],
    ),
    "directory filled": (
        {b"d": (DIRECTORY, b"")},
        {b"d/a": (FILE, b"x")},
        [("added", b"d/a", None)],
    ),
    "file to empty directory": (
        {b"d": (FILE, b"x")},
        {b"d": (DIRECTORY, b"")},
        [("type-changed", b"d", None)],
    ),
    "gitlink moved on": (
        {b"m": (GITLINK, b"1" * 40)},
        {b"m": (GITLINK, b"2" * 40)},
        [("modified", b"m", None)],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_kinds_of_change(store: ObjectStore, name: str) -> None:
    """Each kind of difference between two trees gives its changes, in path order."""
    old, new, expected = CASES[name]

    assert compare(store, old, new) == expected


def test_modes_and_ids_of_both_sides(store: ObjectStore) -> None:
    """A change carries mode and id of both sides."""
    old = store_tree(store, {b"a": (FILE, b"x")})
    new = store_tree(store, {b"a": (EXECUTABLE, b"y")})
    ids = [store.tree_entries(tree)[0][2] for tree in (old, new)]

    assert tree_changes(store, old, new) == [
        Change(b"a", "modified", None, FILE, ids[0], EXECUTABLE, ids[1])
    ]


def test_nothing_before_and_nothing_after(store: ObjectStore) -> None:
    """None is the tree without anything, on either side."""
    tree = store_tree(store, {b"a": (FILE, b"x")})

    assert [c.kind for c in tree_changes(store, None, tree)] == ["added"]
    assert [c.kind for c in tree_changes(store, tree, None)] == ["deleted"]
    assert tree_changes(store, None, None) == []


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ((), [b"a", b"d/e/f", b"d/g", b"dd"]),
        ((b"d",), [b"d/e/f", b"d/g"]),
        ((b"./d/e/",), [b"d/e/f"]),
        ((b"a", b"d/g"), [b"a", b"d/g"]),
        ((b".",), [b"a", b"d/e/f", b"d/g", b"dd"]),
        ((b"d/e/f/x",), []),
        ((b"nowhere",), []),
    ],
)
def test_paths_restrict(
    store: ObjectStore, paths: tuple[bytes, ...], expected: list[bytes]
) -> None:
    """Only named paths and what is below them are compared."""
    new = {path: (FILE, path) for path in (b"a", b"d/e/f", b"d/g", b"dd")}

    assert [path for _, path, _ in compare(store, {}, new, paths=paths)] == expected


def test_what_leads_to_a_path_is_not_a_change(store: ObjectStore) -> None:
    """A file above a wanted path is left out, even where it had to go for it."""
    found = compare(store, {b"d": (FILE, b"1")}, {b"d/x": (FILE, b"1")}, paths=[b"d/x"])

    assert found == [("added", b"d/x", None)]


def test_equal_subtrees_are_not_read(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparing reads the trees on the way to a difference and no others."""
    old = {b"%d/f" % i: (FILE, b"%d" % i) for i in range(50)}
    trees = store_tree(store, old), store_tree(store, {**old, b"7/f": (FILE, b"new")})
    read = []
    get_raw = ObjectStore.get_raw
    monkeypatch.setattr(ObjectStore, "get_raw", lambda s, id: read.append(id) or get_raw(s, id))

    assert len(tree_changes(store, *trees)) == 1
    assert len(read) == 4


def test_rename_prefers_the_same_name(store: ObjectStore) -> None:
    """Of several equal candidates the one with the same file name is taken."""
    old = {b"a/one": (FILE, TEXT), b"a/two": (FILE, TEXT)}
    new = {b"b/two": (FILE, TEXT), b"b/one": (FILE, TEXT), b"b/three": (FILE, TEXT)}

    assert compare(store, old, new) == [
        ("renamed", b"b/one", b"a/one"),
        ("added", b"b/three", None),
        ("renamed", b"b/two", b"a/two"),
    ]


def test_renames_can_be_left_apart(store: ObjectStore) -> None:
    """Without renames a move is a deletion and an addition."""
    found = compare(store, {b"a": (FILE, TEXT)}, {b"b": (FILE, TEXT)}, renames=False)

    assert found == [("deleted", b"a", None), ("added", b"b", None)]


def similar(
    old: dict[bytes, bytes], new: dict[bytes, bytes]
) -> list[tuple[str, bytes, bytes | None]]:
    """Renames found by content."""
    changes = [
        Change(p, "deleted", None, FILE, b"%040d" % i, None, None) for i, p in enumerate(old)
    ]
    changes += [Change(p, "added", None, None, None, FILE, None) for p in new]
    found = find_renames(changes, read_old=lambda c: old[c.path], read_new=lambda c: new[c.path])
    return [(c.kind, c.path, c.old_path) for c in found]


def test_similar_files_are_renames() -> None:
    """An edited and moved file is one rename; the most similar pair wins."""
    lines = [b"line %d\n" % i for i in range(40)]
    old = {b"a": b"".join(lines), b"b": b"".join(lines[:20])}
    new = {b"c": b"".join(lines[:38]), b"d": b"quite another thing\n"}

    assert similar(old, new) == [
        ("deleted", b"b", None),
        ("renamed", b"c", b"a"),
        ("added", b"d", None),
    ]


def test_too_many_candidates_are_not_compared() -> None:
    """Beyond the bound only equal ids are paired, so that a great move stays quick."""
    old = {b"o%d" % i: b"text %d\n" % i for i in range(201)}
    new = {b"n%d" % i: b"text %d\n" % i for i in range(201)}

    assert {kind for kind, _, _ in similar(old, new)} == {"added", "deleted"}


def test_empty_files_are_not_similar() -> None:
    """An empty file says nothing about where it came from."""
    assert [k for k, _, _ in similar({b"a": b""}, {b"b": b""})] == ["deleted", "added"]


def test_path_helpers() -> None:
    """Paths are compared by whole components."""
    assert normalised([b"./a/", b"b//"]) == (b"a", b"b")
    assert normalised([b"a", b"."]) == ()
    assert within(b"a/b", (b"a",))
    assert not within(b"ab", (b"a",))


def test_much_content_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a bound on bytes files are not held in memory to find renames; what fits still is."""
    monkeypatch.setattr("heddle.repo.changes._MAX_COMPARED_TOTAL", 3000)
    old = {b"a": b"a\n" * 500, b"b": b"b\n" * 500}

    assert similar(old, {b"c": b"a\n" * 499, b"d": b"b\n" * 499}) == [
        ("deleted", b"b", None),
        ("renamed", b"c", b"a"),
        ("added", b"d", None),
    ]
