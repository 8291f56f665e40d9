"""Patches: git applies them, and the result is the other tree."""

from __future__ import annotations

import random
import re
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trees import EXECUTABLE, FILE, GITLINK, SYMLINK, git, read_files, store_tree, write_files

from heddle.objects.store import ObjectStore
from heddle.repo.changes import Change, tree_changes
from heddle.repo.diff import FileDiff, _Matcher, changed_regions, diff_changes, quoted

LINES = [b"line %d\n" % i for i in range(60)]
TEXT = b"".join(LINES)
BINARY = bytes(random.Random(1).randbytes(5000))


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    """An empty object store."""
    return ObjectStore.create(tmp_path / "objects")


def diff(store, old, new) -> list[FileDiff]:
    """The patches between two trees given as files."""
    trees = store_tree(store, old), store_tree(store, new)
    return list(
        diff_changes(
            tree_changes(store, *trees),
            lambda change: store.get_raw(change.old_id)[1],
            lambda change: store.get_raw(change.new_id)[1],
        )
    )


def without_line(number: int) -> bytes:
    return b"".join(LINES[:number] + LINES[number + 1 :])


CASES = {
    "one line": ({b"a": (FILE, TEXT)}, {b"a": (FILE, without_line(30))}),
    "first line": ({b"a": (FILE, TEXT)}, {b"a": (FILE, without_line(0))}),
    "last line": ({b"a": (FILE, TEXT)}, {b"a": (FILE, without_line(59))}),
    "two far apart": (
        {b"a": (FILE, TEXT)},
        {b"a": (FILE, TEXT.replace(b"line 5\n", b"x\n").replace(b"line 50\n", b"y\n"))},
    ),
    "no newline at the end, old": ({b"a": (FILE, b"x\ny")}, {b"a": (FILE, b"x\ny\n")}),
    "no newline at the end, new": ({b"a": (FILE, b"x\ny\n")}, {b"a": (FILE, b"x\ny")}),
    "no newline at the end, both": ({b"a": (FILE, b"w\nx\ny")}, {b"a": (FILE, b"v\nx\ny")}),
    "new file": ({}, {b"d/e/a": (FILE, TEXT)}),
    "new empty file": ({}, {b"a": (FILE, b"")}),
    "new executable": ({}, {b"a": (EXECUTABLE, b"#!/bin/sh\n")}),
    "deleted": ({b"d/a": (FILE, TEXT), b"b": (FILE, b"b")}, {b"b": (FILE, b"b")}),
    "deleted empty file": ({b"a": (FILE, b""), b"b": (FILE, b"b")}, {b"b": (FILE, b"b")}),
    "emptied": ({b"a": (FILE, TEXT)}, {b"a": (FILE, b"")}),
    "filled": ({b"a": (FILE, b"")}, {b"a": (FILE, TEXT)}),
    "mode": ({b"a": (FILE, TEXT)}, {b"a": (EXECUTABLE, TEXT)}),
    "mode and text": ({b"a": (EXECUTABLE, TEXT)}, {b"a": (FILE, without_line(3))}),
    "binary": ({b"a": (FILE, BINARY)}, {b"a": (FILE, BINARY + b"\0end")}),
    "binary new": ({}, {b"a": (FILE, b"\0\1")}),
    "binary deleted": ({b"a": (FILE, BINARY), b"b": (FILE, b"b")}, {b"b": (FILE, b"b")}),
    "binary to text": ({b"a": (FILE, BINARY)}, {b"a": (EXECUTABLE, TEXT)}),
    "binary to nothing": ({b"a": (FILE, BINARY)}, {b"a": (FILE, b"")}),
    "renamed": ({b"a": (FILE, TEXT)}, {b"d/b": (FILE, TEXT)}),
    "renamed and edited": ({b"a": (FILE, TEXT)}, {b"d/b": (EXECUTABLE, without_line(9))}),
    "swapped": (
        {b"a": (FILE, TEXT), b"b": (FILE, BINARY)},
        {b"b": (FILE, TEXT), b"a": (FILE, BINARY)},
    ),
    "link": ({b"a": (SYMLINK, b"x")}, {b"a": (SYMLINK, b"../y")}),
    "new link": ({}, {b"d/a": (SYMLINK, b"no newline")}),
    "file to link": ({b"a": (FILE, TEXT)}, {b"a": (SYMLINK, b"target")}),
    "link to binary": ({b"a": (SYMLINK, b"target")}, {b"a": (FILE, BINARY)}),
    "file to directory": ({b"a": (FILE, TEXT)}, {b"a/b": (FILE, b"another\n")}),
    "directory to file": ({b"a/b": (FILE, b"another\n")}, {b"a": (FILE, TEXT)}),
    "carriage returns": ({b"a": (FILE, b"x\r\ny\rz\r\n")}, {b"a": (FILE, b"x\r\nY\rz\r\n")}),
    "form feeds": ({b"a": (FILE, b"x\x0c\x1c\x85y\n1\n")}, {b"a": (FILE, b"x\x0c\x1c\x85y\n2\n")}),
    "late NUL": ({b"a": (FILE, b"x\n" * 5000 + b"\0")}, {b"a": (FILE, b"y\n" * 5000 + b"\0")}),
    "looks like a patch": (
        {b"a": (FILE, b"--- a/a\n+++ b/a\n@@ -1 +1 @@\n-x\n+y\n")},
        {b"a": (FILE, b"--- a/b\n+++ b/b\n@@ -1 +1 @@\n-x\n+z\n")},
    ),
    "odd names": (
        {b'q"uo\\te': (FILE, b"x\n"), b"sp ace/s p": (FILE, b"x\n"), b"\xff\xfe": (FILE, b"x\n")},
        {b'q"uo\\te': (FILE, b"y\n"), b"sp ace/s p": (FILE, b"y\n"), b"\xff\xfe": (FILE, b"y\n")},
    ),
    "odder names": (
        {b"tab\t": (FILE, TEXT), b"new\nline": (FILE, b"x\n"), b"\x01\x7f": (FILE, b"")},
        {b"tab\t2 ": (FILE, TEXT), b"new\nline": (FILE, b"y\n"), "ü €".encode(): (SYMLINK, b"x")},
    ),
    "latin-1 text": ({b"a": (FILE, b"\xe4\n\xf6\n")}, {b"a": (FILE, b"\xe4\n\xfc\n")}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_git_applies_the_patch(store: ObjectStore, tmp_path: Path, name: str) -> None:
    """git apply makes the new tree of the old one, and the old one of the new."""
    old, new = CASES[name]
    patch = b"".join(file.patch for file in diff(store, old, new))
    work = tmp_path / "work"
    work.mkdir()
    write_files(work, old)
    git(work, "init", "-q")

    git(work, "apply", stdin=patch)
    assert read_files(work) == new
    git(work, "apply", "-R", stdin=patch)
    assert read_files(work) == old


@pytest.mark.parametrize("name", CASES)
def test_git_counts_the_same(store: ObjectStore, tmp_path: Path, name: str) -> None:
    """git apply --numstat reads our counts, paths and binary marks out of the patch."""
    files = diff(store, *CASES[name])
    expected = {}
    for file in files:
        if file.kind == "type-changed":
            continue  # git counts the two halves apart
        counts = (b"-", b"-") if file.binary else (b"%d" % file.additions, b"%d" % file.deletions)
        expected[file.path] = counts
    patch = b"".join(file.patch for file in files if file.kind != "type-changed")
    found = {}
    for line in git(tmp_path, "apply", "--allow-empty", "--numstat", "-z", stdin=patch).split(
        b"\0"
    )[:-1]:
        added, deleted, path = line.split(b"\t", 2)
        found[path] = (added, deleted)

    assert found == expected


@pytest.mark.parametrize("name", CASES)
def test_git_writes_the_same_headers(store: ObjectStore, tmp_path: Path, name: str) -> None:
    """Names, modes, renames and the ranges of hunks are written as git diff writes them."""
    old, new = CASES[name]
    work = tmp_path / "work"
    work.mkdir()
    git(work, "init", "-q")
    write_files(work, old)
    git(work, "add", "-A")
    git(work, "commit", "-q", "--allow-empty", "-m", "old")
    git(work, "rm", "-q", "-r", "--ignore-unmatch", ".")
    write_files(work, new)
    git(work, "add", "-A")
    theirs = git(work, "diff", "--cached", "--binary", "-M", "--patience", "HEAD")

    assert headers(b"".join(file.patch for file in diff(store, old, new))) == headers(theirs)


def headers(patch: bytes) -> dict[bytes, list[bytes]]:
    """By file: all lines before the first hunk but index and similarity, and the ranges of hunks."""
    found = {}
    for part in re.split(rb"^(?=diff --git )", patch, flags=re.MULTILINE)[1:]:
        lines = part.split(b"\n")
        start = next((i for i, line in enumerate(lines) if line.startswith(b"@@")), len(lines))
        kept = [
            line for line in lines[:start] if re.match(rb"---|\+\+\+|old|new|deleted|rename", line)
        ]
        kept += re.findall(rb"^@@ [^@]* @@", part, re.MULTILINE)
        found.setdefault(lines[0], []).append(kept)
    return found


def test_binary_patches_of_every_length(store: ObjectStore, tmp_path: Path) -> None:
    """Binary files of every small length survive the patch."""
    chance = random.Random(4)
    files = {b"%d" % n: (FILE, b"\0" + chance.randbytes(n)) for n in range(120)}
    patch = b"".join(file.patch for file in diff(store, {}, files))
    work = tmp_path / "work"
    work.mkdir()
    git(work, "apply", stdin=patch)

    assert read_files(work) == files


def test_gitlink(store: ObjectStore, tmp_path: Path) -> None:
    """A link to another repository shows as git shows it, without reading the other repository."""
    old, new = {b"m": (GITLINK, b"1" * 40)}, {b"m": (GITLINK, b"2" * 40)}
    [file] = diff(store, old, new)

    assert b"index 1111111111..2222222222 160000\n" in file.patch
    assert file.patch.endswith(
        b"@@ -1 +1 @@\n-Subproject commit %b\n+Subproject commit %b\n" % (b"1" * 40, b"2" * 40)
    )


def test_renames_say_how_similar(store: ObjectStore) -> None:
    """A pure rename has 100 % and no hunks; an edited one the share of bytes that stayed."""
    [pure] = diff(store, {b"a": (FILE, TEXT)}, {b"b": (FILE, TEXT)})
    [edited] = diff(store, {b"a": (FILE, TEXT)}, {b"b": (FILE, TEXT[: len(TEXT) * 3 // 4])})

    assert pure.patch == (
        b"diff --git a/a b/b\nsimilarity index 100%\nrename from a\nrename to b\n"
    )
    assert (edited.kind, edited.old_path) == ("renamed", b"a")
    assert b"similarity index 7" in edited.patch


def test_unsaved_bytes_get_their_git_id() -> None:
    """New bytes without an id are named in the patch by the id that git gives them."""
    change = Change(b"a", "added", None, None, None, FILE, None)
    [file] = diff_changes([change], lambda _: b"", lambda _: b"hello\n")

    assert b"\nindex 0000000000..ce01362503\n" in file.patch


def test_empty_directories_have_no_patch(store: ObjectStore) -> None:
    """An empty directory is named, but git's patches have no words for it."""
    [file] = diff(store, {}, {b"d": (0o040000, b"")})

    assert (file.path, file.kind, file.patch) == (b"d", "added", b"")


def test_quoting_is_gits(tmp_path: Path) -> None:
    """Every byte in a name is quoted as git quotes it."""
    names = [b"n%ce" % byte for byte in range(1, 256) if byte != 0x2F]
    write_files(tmp_path, dict.fromkeys(names, (FILE, b"")))
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")

    listed = git(tmp_path, "ls-files").splitlines()
    assert sorted(map(quoted, names)) == sorted(listed)


def pieces() -> st.SearchStrategy[list[bytes]]:
    return st.lists(st.sampled_from([b"a\n", b"b\n", b"\n", b"}\n", b"c\r\n", b"d"]), max_size=14)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(old=pieces(), new=pieces(), modes=st.tuples(*[st.sampled_from([FILE, EXECUTABLE])] * 2))
def test_random_texts_round_trip(
    old: list[bytes], new: list[bytes], modes: tuple[int, int]
) -> None:
    """Any text becomes any other through its patch, forward and back."""
    top = Path(tempfile.mkdtemp())
    try:
        store = ObjectStore.create(top / "objects")
        before = {b"f": (modes[0], b"".join(old))}
        after = {b"f": (modes[1], b"".join(new))}
        patch = b"".join(file.patch for file in diff(store, before, after))
        work = top / "work"
        work.mkdir()
        write_files(work, before)
        if patch:
            git(work, "apply", "--unidiff-zero", stdin=patch)
        assert read_files(work) == after
    finally:
        shutil.rmtree(top)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=30), st.lists(st.integers(0, 5), max_size=30))
def test_regions_cover_all_that_differs(a: list[int], b: list[int]) -> None:
    """Outside the regions both sides are equal, regions are apart and none is empty."""
    lines_a, lines_b = [b"%d\n" % n for n in a], [b"%d\n" % n for n in b]
    at_a = at_b = 0
    for i1, i2, j1, j2 in changed_regions(lines_a, lines_b):
        assert lines_a[at_a:i1] == lines_b[at_b:j1]
        assert i2 - i1 + j2 - j1 > 0
        assert i1 > at_a or i1 == 0
        at_a, at_b = i2, j2

    assert lines_a[at_a:] == lines_b[at_b:]


def test_small_edits_have_the_shortest_script() -> None:
    """Without unique lines the edit script is as short as it can be."""
    a = [b"x\n", b"y\n"] * 20
    b = [*a[:11], b"y\n", *a[11:30], *a[31:]]

    assert sum(i2 - i1 + j2 - j1 for i1, i2, j1, j2 in changed_regions(a, b)) == 2


@pytest.mark.parametrize("kind", ["rewritten", "shuffled", "no unique lines", "repeated"])
def test_large_files_stay_within_the_work_allowed(kind: str) -> None:
    """A wholly different file of 20,000 lines ends within the bound on steps, regions correct."""
    chance = random.Random(7)
    a = [b"line %d\n" % i for i in range(20_000)]
    b = {
        "rewritten": [b"other %d\n" % i for i in range(20_000)],
        "shuffled": chance.sample(a, len(a)),
        "no unique lines": [chance.choice([b"{\n", b"}\n"]) for _ in a],
        "repeated": [b"line 1\n"] * 20_000,
    }[kind]
    if kind == "no unique lines":
        a = [chance.choice([b"{\n", b"}\n"]) for _ in a]
    matcher = _Matcher(a, b)
    at_a = at_b = 0
    for i1, i2, j1, j2 in matcher.differing():
        assert a[at_a:i1] == b[at_b:j1]
        at_a, at_b = i2, j2

    assert a[at_a:] == b[at_b:]
    assert matcher.work > -50_000
