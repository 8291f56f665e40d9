"""Trees made of other trees by editing paths."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trees import DIRECTORY, FILE, store_tree

from heddle.objects.store import ObjectStore
from heddle.repo.treeedit import edit_tree

BASE = {b"f": (FILE, b"1"), b"d/x": (FILE, b"1"), b"d/e/y": (FILE, b"1"), b"o/z": (FILE, b"1")}


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    """An empty object store."""
    return ObjectStore.create(tmp_path / "objects")


def edited(store: ObjectStore, base, edits) -> bytes:
    """The tree that edits (path: content, None to drop, DIRECTORY for an empty one) make of files."""
    start = store_tree(store, base)
    with store.writer() as writer:
        ready = {}
        for path, content in edits.items():
            if content == DIRECTORY:
                ready[path] = DIRECTORY, writer.add_tree([])
            else:
                ready[path] = None if content is None else (FILE, writer.add_blob(content))
        tree, rebuilt = edit_tree(store, writer, start, ready)
        writer.commit()
    for path, (id, entries) in rebuilt.items():
        listed = {name: (mode, entry) for name, mode, entry in store.tree_entries(id)}
        assert listed == entries, path
    return tree


CASES = {
    "nothing": ({}, {}),
    "changed": ({b"d/e/y": b"2"}, {b"d/e/y": b"2"}),
    "added deep": ({b"n/m/f": b"2"}, {b"n/m/f": b"2"}),
    "dropped, directory goes too": ({b"d/e/y": None}, {b"d/e/y": None}),
    "dropped, directories above go too": ({b"d/e/y": None, b"d/x": None}, {b"d": None}),
    "directory dropped": ({b"d": None}, {b"d": None}),
    "directory dropped and made again": ({b"d": None, b"d/n": b"2"}, {b"d": None, b"d/n": b"2"}),
    "directory becomes a file": ({b"d": b"2"}, {b"d": None, b"d!": b"2"}),
    "file becomes a directory": ({b"f/g": b"2"}, {b"f": None, b"f/g": b"2"}),
    "emptied and kept": ({b"o/z": None, b"o": DIRECTORY}, {b"o": DIRECTORY}),
    "emptied, inner one kept": ({b"d": None, b"d/e": DIRECTORY}, {b"d": None, b"d/e": DIRECTORY}),
    "directory becomes a file, with what was in it": (
        {b"d": b"2", b"d/x": None, b"d/e/y": None},
        {b"d": None, b"d!": b"2"},
    ),
    "dropping what is not there": ({b"q/r": None, b"f/g": None}, {}),
    "everything dropped": ({b"f": None, b"d": None, b"o": None}, {b"f": None, b"d": None, b"o": None}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_edits(store: ObjectStore, name: str) -> None:
    """Each edit gives the tree that the edited files have."""
    edits, meaning = CASES[name]
    expected = {}
    for path, item in BASE.items():
        if not any(path == p or path.startswith(p + b"/") for p in meaning):
            expected[path] = item
    for path, content in meaning.items():
        if content == DIRECTORY:
            expected[path] = (DIRECTORY, b"")
        elif content is not None:
            expected[path.rstrip(b"!")] = (FILE, content)

    assert edited(store, BASE, edits) == store_tree(store, expected)


def test_what_lies_beside_is_not_read(store: ObjectStore, monkeypatch) -> None:
    """Only trees on the way to an edit are read."""
    base = {b"%d/%d/f" % (i, j): (FILE, b"1") for i in range(5) for j in range(5)}
    start = store_tree(store, base)
    read = []
    real = ObjectStore.tree_entries
    monkeypatch.setattr(ObjectStore, "tree_entries", lambda s, i: read.append(i) or real(s, i))
    with store.writer() as writer:
        edit_tree(store, writer, start, {b"3/3/f": None})

    assert len(read) == 3


PATHS = st.lists(st.sampled_from([b"a", b"b", b"a.b"]), min_size=1, max_size=4).map(b"/".join)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    base=st.dictionaries(PATHS, st.sampled_from([b"1", b"2"]), max_size=6),
    added=st.dictionaries(PATHS, st.sampled_from([b"1", b"3"]), max_size=4),
    dropped=st.lists(PATHS, max_size=3),
)
def test_any_edits(tmp_path_factory, base, added, dropped) -> None:
    """Random additions and removals give the tree of the files that remain."""
    store = ObjectStore.create(tmp_path_factory.mktemp("store") / "objects")
    files = without_conflicts(base)
    new = {p: c for p, c in without_conflicts(added).items() if not meets(p, files, {p})}
    gone = [p for p in dropped if not any(p == n or n.startswith(p + b"/") for n in new)]
    left = {
        p: c for p, c in files.items() if not any(p == g or p.startswith(g + b"/") for g in gone)
    }
    expected = {p: (FILE, c) for p, c in (left | new).items()}
    edits = {**dict.fromkeys(gone), **new}

    tree = edited(store, {p: (FILE, c) for p, c in files.items()}, edits)
    assert tree == store_tree(store, expected)


def meets(path: bytes, files, but=frozenset()) -> bool:
    """Whether a path needs a directory where a file is, or the other way round."""
    return any(
        p not in but and (p == path or p.startswith(path + b"/") or path.startswith(p + b"/"))
        for p in files
    )


def without_conflicts(files: dict[bytes, bytes]) -> dict[bytes, bytes]:
    kept: dict[bytes, bytes] = {}
    for path, content in files.items():
        if not meets(path, kept):
            kept[path] = content
    return kept
