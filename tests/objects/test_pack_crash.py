"""kill -9 between any two steps of writing a pack: what was there stays, what was not committed is not."""

from __future__ import annotations

import os

import object_processes
import pytest

from heddle.objects.store import ObjectStore

WRITE = """
import sys
from pathlib import Path
from heddle.objects.store import ObjectStore

store = ObjectStore(Path(sys.argv[1]))
with store.writer() as writer:
    for number in range(300):
        writer.add_blob(b"%d" % number * 9000)
    writer.add_blob(b"large" * (1 << 20))
    writer.add_blob(b"last")
    writer.sync()
    writer.commit()
"""
REINDEX = """
import sys
from pathlib import Path
from heddle.objects.store import ObjectStore

ObjectStore(Path(sys.argv[1])).reindex()
"""

BEFORE_COMMIT_POINT = [
    "pack.entries-written",
    "pack.entries-written@2",
    "pack.chunks-written",
    "pack.part-synced",
    "pack.synced",
    "pack.renamed",
    "atomic.before-rename",
]
AFTER_COMMIT_POINT = ["atomic.before-directory-fsync", "pack.published"]


@pytest.fixture
def filled(store: ObjectStore) -> tuple[ObjectStore, list[bytes]]:
    with store.writer() as writer:
        ids: list[bytes] = [writer.add_blob(b"before %d" % number) for number in range(50)]
        writer.commit()
    return store, ids


def last_id() -> bytes:
    from dulwich.objects import Blob

    return Blob.from_string(b"last").id


def check(store: ObjectStore, ids: list[bytes]) -> ObjectStore:
    """What was there before is still there and sound, for a process that begins now."""
    store = ObjectStore(store.path)
    assert [b"before %d" % number for number in range(50)] == [
        store.get_raw(each)[1] for each in ids
    ]
    assert {problem.kind for problem in store.verify(full=True)} <= {"missing_index"}
    return store


@pytest.mark.parametrize("point", BEFORE_COMMIT_POINT)
def test_before_the_commit_point(filled: tuple[ObjectStore, list[bytes]], point: str) -> None:
    """A writer that dies before its index has its name has written nothing that anybody sees, and
    the same capture done again succeeds."""
    store, ids = filled
    object_processes.killed_at(point, WRITE, store.path)
    store = check(store, ids)

    assert sorted(ids) == sorted(store)
    object_processes.run(WRITE, store.path)
    assert store.get_raw(last_id())[1] == b"last"
    check(store, ids)


@pytest.mark.parametrize("point", AFTER_COMMIT_POINT)
def test_after_the_commit_point(filled: tuple[ObjectStore, list[bytes]], point: str) -> None:
    """A writer that dies after its index got its name has written the whole pack."""
    store, ids = filled
    object_processes.killed_at(point, WRITE, store.path)
    store = check(store, ids)

    assert len(ids) + 302 == len(list(store))
    assert store.get_raw(last_id())[1] == b"last"
    assert list(store.verify(full=True)) == []


@pytest.mark.parametrize("point", BEFORE_COMMIT_POINT)
def test_what_a_dead_writer_leaves_goes(
    filled: tuple[ObjectStore, list[bytes]], point: str
) -> None:
    """Of a dead writer's files nothing is left once they are old and somebody writes, except a pack
    that only lacks its index: that is whole, and rebuilding the index brings it back."""
    store, ids = filled
    object_processes.killed_at(point, WRITE, store.path)
    for path in (store.path / "packs").glob(".tmp-*"):
        os.utime(path, (0, 0))
    ObjectStore(store.path).writer().abort()
    orphan = point in ("pack.renamed", "atomic.before-rename")

    assert 2 + orphan == len(os.listdir(store.path / "packs"))
    assert orphan == (len(store.reindex()) == 1)
    assert orphan == (last_id() in store)
    check(store, ids)


@pytest.mark.parametrize("point", ["atomic.before-rename", "atomic.before-directory-fsync"])
def test_while_an_index_is_rebuilt(filled: tuple[ObjectStore, list[bytes]], point: str) -> None:
    """Rebuilding that dies leaves the index missing or whole; doing it again is enough."""
    store, ids = filled
    (index,) = (store.path / "packs").glob("*.idx")
    index.unlink()
    object_processes.killed_at(point, REINDEX, store.path)

    object_processes.run(REINDEX, store.path)

    check(store, ids)
    assert list(store.verify(full=True)) == []
