"""The store as a whole: finding objects in many packs, in alternates, and while others write."""

from __future__ import annotations

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from dulwich.objects import Blob
from hypothesis import given
from hypothesis import strategies as st

from heddle.errors import CorruptObject
from heddle.objects import packs
from heddle.objects.gitformat import BLOB, TREE, to_raw
from heddle.objects.index import Index
from heddle.objects.output import remove_abandoned
from heddle.objects.store import ObjectStore


def put(store: ObjectStore, *contents: bytes) -> list[bytes]:
    with store.writer() as writer:
        ids: list[bytes] = [writer.add_blob(content) for content in contents]
        writer.commit()
    return ids


def test_what_is_not_there(store: ObjectStore) -> None:
    """A missing object is a KeyError for every question, and an impossible id is a missing object."""
    put(store, b"one")
    for object_id in (b"0" * 40, bytes(20), b"", b"x" * 40, b"0" * 39, b"0" * 64):
        assert object_id not in store
        for ask in (store.get_raw, store.size, store.kind, store.is_chunked, store.tree_entries):
            with pytest.raises(KeyError):
                ask(object_id)
        with pytest.raises(KeyError):
            store.read_at(object_id, 0, 1)
        with pytest.raises(KeyError):
            list(store.iter_blob(object_id))


def test_binary_and_hex_ids(store: ObjectStore) -> None:
    """An id means the same in both forms, as in dulwich."""
    (object_id,) = put(store, b"one")
    raw_id = to_raw(object_id, 20)

    assert object_id in store
    assert raw_id in store
    assert (BLOB, b"one") == store.get_raw(object_id) == store.get_raw(raw_id)
    assert store.sizes([object_id, raw_id]) == [3, 3]


@pytest.mark.parametrize("small", [0, 4096], ids=["large packs", "small packs"])
def test_many_packs(store: ObjectStore, monkeypatch: pytest.MonkeyPatch, small: int) -> None:
    """Objects are found in every one of many packs, through the table in memory and without it."""
    monkeypatch.setattr(packs, "_SMALL", small)
    monkeypatch.setattr(packs, "_OPEN_FILES", 3)
    ids = [put(store, b"%d" % number)[0] for number in range(50)]
    store = ObjectStore(store.path)

    assert [b"%d" % number for number in range(50)] == [store.get_raw(each)[1] for each in ids]
    assert sorted(ids) == sorted(store)
    assert b"0" * 40 not in store


def test_packs_are_opened_newest_first(store: ObjectStore) -> None:
    """What was captured last is found without opening the indexes of all that came before."""
    for number in range(20):
        known = set(store.path.glob("packs/*.idx"))
        (object_id,) = put(store, b"%d" % number)
        (index,) = set(store.path.glob("packs/*.idx")) - known
        if number < 19:
            index.chmod(0o644)
            index.write_bytes(b"whoever opens this calls it damaged")
        os.utime(index, (number, number))
    store = ObjectStore(store.path)

    assert store.size(object_id) == 2
    assert store._packs._damaged == {}
    assert b"0" * 40 not in store
    assert len(store._packs._damaged) == 19


def test_packs_of_others_appear(store: ObjectStore) -> None:
    """A lookup finds what another writer committed since the directory was listed, at once and later."""
    other = ObjectStore(store.path)
    for number in range(20):
        (object_id,) = put(other, b"%d" % number)

        assert object_id in store
        assert object_id in [*store.iter_prefix(object_id[:7])]
    os.utime(store.path / "packs", ns=(0, time.time_ns() - 10**10))
    assert b"0" * 40 not in store
    (object_id,) = put(other, b"later")
    assert store.get_raw(object_id)[1] == b"later"


@given(st.lists(st.integers(0, 400), min_size=1, max_size=3), st.integers(0, 40))
def test_prefixes(tmp_path_factory: pytest.TempPathFactory, counts: list[int], length: int) -> None:
    """The ids that begin with a prefix are exactly those, whatever its length, in order."""
    store = ObjectStore.create(tmp_path_factory.mktemp("prefix") / "objects")
    for count in counts:
        put(store, *[b"%d" % number for number in range(count)])
    for object_id in [*list(store)[:3], b"f" * 40]:
        prefix = object_id[:length]
        expected = sorted(each for each in store if each.startswith(prefix))

        assert expected == list(store.iter_prefix(prefix))


@pytest.mark.parametrize("prefix", [b"x", b"0" * 41, b"\xff", b"0x"])
def test_no_prefix_at_all(store: ObjectStore, prefix: bytes) -> None:
    """What can't begin an id begins none."""
    put(store, b"one")

    assert list(store.iter_prefix(prefix)) == []


@pytest.mark.parametrize(
    "content",
    [
        b"x",
        b"100644 a\0short",
        b"100644 a" + bytes(21) + b"x",
        b"x100644 a" + bytes(21),
        b"100644 a/b" + bytes(21),
        b"100644 " + bytes(21),
        b"10x644 a" + bytes(21),
        b"100648 a" + bytes(21),
    ],
)
def test_an_unsound_tree(store: ObjectStore, content: bytes) -> None:
    """A tree that does not parse to its last byte is corrupt, and so is a blob taken for a tree."""
    with store.writer() as writer:
        object_id = writer.add(TREE, content)
        blob = writer.add_blob(b"")
        writer.commit()

    for each in (object_id, blob):
        with pytest.raises(CorruptObject, match=each.decode()):
            store.tree_entries(each)


def test_trees_are_kept_and_blobs_are_not(store: ObjectStore) -> None:
    """A tree that is read again comes from memory, within a bound; a blob never does."""
    with store.writer() as writer:
        blob = writer.add_blob(b"x" * 100)
        trees = [
            writer.add_tree((b"%d-%d" % (tree, number), 0o100644, blob) for number in range(9000))
            for tree in range(20)
        ]
        writer.commit()
    for tree in trees:
        store.get_raw(tree)
    held = sum(len(content) for _, content in store._cache._contents.values())
    store.get_raw(blob)

    assert store.get_raw(trees[-1])[1] is store.get_raw(trees[-1])[1]
    assert 1 << 20 < held <= 4 << 20
    assert store.get_raw(blob)[1] is not store.get_raw(blob)[1]


def test_an_object_in_two_packs(store: ObjectStore, tmp_path: Path) -> None:
    """When one of two packs that hold an object goes, the object is found in the other."""
    both, _ = put(store, b"both", b"first")
    other = ObjectStore.create(tmp_path / "other")
    put(other, b"both", b"second")
    for path in other.path.glob("packs/*"):
        path.rename(store.path / "packs" / path.name)
    for newest in (True, False):
        copy = tmp_path / f"copy {newest}"
        shutil.copytree(store.path, copy)
        opened = ObjectStore(copy)
        assert len(list(opened)) == 3
        by_age = sorted(copy.glob("packs/*.idx"), key=lambda path: path.stat().st_mtime_ns)
        victim = by_age[-1 if newest else 0]
        victim.with_suffix(".pack").unlink()

        assert opened.get_raw(both)[1] == b"both"
        assert len(list(opened)) == 2


def test_an_index_opened_by_another_thread(store: ObjectStore) -> None:
    """A lookup that had searched what was open when another thread opened the rest searches again."""

    class Interrupted(dict[bytes, Index]):
        def get(self, key: bytes, default: Any = None) -> Any:
            found = super().get(key, default)
            while directory._unopened:  # the other thread, at the worst moment
                directory._open_next()
            return found

    ids = [put(store, b"%d" % number)[0] for number in range(3)]
    store = ObjectStore(store.path)
    directory = store._packs
    directory._small = Interrupted()

    assert [directory.find(to_raw(each, 20)) is not None for each in ids] == [True] * 3


def test_a_directory_listed_by_another_thread(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lookup that missed looks again when another thread has listed the directory meanwhile."""
    directory = store._packs
    directory.refresh()
    find = directory.find
    wanted = Blob.from_string(b"one").id

    def interrupted(raw_id: bytes) -> Any:
        found = find(raw_id)
        if wanted not in other:
            put(other, b"one")
            directory.refresh()  # the other thread, at the worst moment
        return found

    other = ObjectStore(store.path)
    monkeypatch.setattr(directory, "find", interrupted)

    assert wanted in store


def test_a_clock_that_stands_still(store: ObjectStore) -> None:
    """A pack that appears without the directory's mtime changing is found all the same."""
    directory = store.path / "packs"
    soon = time.time_ns() + 10**10
    os.utime(directory, ns=(soon, soon))
    assert b"0" * 40 not in store
    (object_id,) = put(ObjectStore(store.path), b"one")
    os.utime(directory, ns=(soon, soon))

    assert object_id in store


def test_threads_that_look_at_once(store: ObjectStore) -> None:
    """However threads interleave while indexes are opened, each finds what is there."""
    ids = [put(store, b"%d" % number)[0] for number in range(40)]
    turns = [ids[turn:] + ids[:turn] for turn in range(0, 40, 8)]

    def look(store: ObjectStore, wanted: list[bytes]) -> list[bool]:
        return [object_id in store for object_id in wanted]

    for _ in range(10):
        with ThreadPoolExecutor(5) as pool:
            found = list(pool.map(look, [ObjectStore(store.path)] * 5, turns))
        assert found == [[True] * 40] * 5


# Alternates


def test_a_heddle_alternate(store: ObjectStore, tmp_path: Path) -> None:
    """Objects of another repository are read where they are, and not stored again."""
    other = ObjectStore.create(tmp_path / "other")
    small, large = put(other, b"one", bytes(5 << 20))
    store.add_alternate(other.path)
    store = ObjectStore(store.path)

    assert small in store
    assert store.contains_loose(small)
    assert not store.contains_packed(small)
    assert store.get_raw(small) == (BLOB, b"one")
    assert (store.kind(small), store.size(small)) == (BLOB, 3)
    assert store.is_chunked(large)
    assert bytes(10) == store.read_at(large, 4 << 20, 10)
    assert sorted([small, large]) == sorted(store)
    assert [small] == list(store.iter_prefix(small[:9]))
    with store.writer() as writer:
        writer.add_blob(b"one")
        assert None is writer.commit()
    (later,) = put(other, b"later")
    assert later in store


def test_alternates_in_a_circle(store: ObjectStore, tmp_path: Path) -> None:
    """Two repositories that read each other's objects do not go round for ever."""
    other = ObjectStore.create(tmp_path / "other")
    store.add_alternate(other.path)
    other.add_alternate(store.path)
    (object_id,) = put(other, b"one")

    assert object_id in store
    assert b"0" * 40 not in store
    assert b"0" * 40 not in other


def test_alternates_are_added_once_and_may_be_relative(store: ObjectStore, tmp_path: Path) -> None:
    """The file holds one path on each line; a relative one is taken from the object directory."""
    other = ObjectStore.create(tmp_path / "other\udcff")
    (object_id,) = put(other, b"one")
    store.add_alternate(other.path)
    store.add_alternate(other.path)
    assert os.fsencode(other.path) + b"\n" == (store.path / "alternates").read_bytes()

    (store.path / "alternates").write_bytes(b"../other\xff\n")
    assert object_id in ObjectStore(store.path)


def test_a_missing_alternate(store: ObjectStore, tmp_path: Path) -> None:
    """An alternate that is gone hides its objects only, and fsck names it."""
    (object_id,) = put(store, b"one")
    store.add_alternate(tmp_path / "gone")

    assert store.get_raw(object_id)[1] == b"one"
    with pytest.raises(KeyError):
        store.get_raw(b"0" * 40)
    (problem,) = store.verify(full=True)
    assert problem.kind == "missing_alternate"
    assert str(tmp_path / "gone") in problem.what


# Temporary files


def test_abandoned_files_are_removed(store: ObjectStore) -> None:
    """The next writer removes old temporary files of dead writers, and no living writer's."""
    directory = store.path / "packs"
    (directory / ".tmp-young").touch()
    (directory / ".tmp-old").touch()
    os.utime(directory / ".tmp-old", (0, 0))
    with store.writer() as living:
        living.add_blob(b"one")
        living.sync()
        (mine,) = set(os.listdir(directory)) - {".tmp-young"}
        os.utime(directory / mine, (0, 0))
        store.writer().abort()

        assert {".tmp-young", mine} == set(os.listdir(directory))
        assert None is not living.commit()


def test_a_file_that_goes_while_it_is_looked_at(tmp_path: Path) -> None:
    """Two processes that clean up at once do not trip over each other."""
    remove_abandoned(tmp_path, [".tmp-gone"])


def test_progress_counts_every_object(store: ObjectStore) -> None:
    """Checking reports how many objects it has done, up to all of them."""
    put(store, *[b"%d" % number for number in range(5)])
    seen: list[tuple[int, int]] = []

    assert (
        list(store.verify(full=True, progress=lambda done, total: seen.append((done, total)))) == []
    )
    assert [(number, 5) for number in range(1, 6)] == seen
