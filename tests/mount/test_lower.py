"""Reading captured trees and files: what is shown, what is decoded, and what is kept in memory."""

from __future__ import annotations

import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from heddle.errors import CorruptObject, ObjectMissing
from heddle.mount.lower import FRAME, GITLINK, Lower, is_directory, is_safe_name, subtree
from heddle.objects.store import ObjectStore

FILE = 0o100644
TREE = 0o040000
ABSENT = b"0" * 40


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ObjectStore]:
    store = ObjectStore.create(tmp_path / "objects")
    yield store
    store.close()


def add(store: ObjectStore, *blobs: bytes) -> list[bytes]:
    with store.writer() as writer:
        ids = [writer.add_blob(blob) for blob in blobs]
        writer.commit()
    return ids


def add_tree(store: ObjectStore, *entries: tuple[bytes, int, bytes]) -> bytes:
    with store.writer() as writer:
        tree = writer.add_tree(entries)
        writer.commit()
    return tree


def frames(count: int) -> bytes:
    """Frames that all differ."""
    return b"".join(b"%08d" % number * (FRAME // 8) for number in range(count))


HOSTILE = [b"", b".", b"..", b"a/b", b"/", b"a\0b", b".git", b".GIT", b".Heddle", b"x" * 256]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_name_is_not_safe(name: bytes) -> None:
    """A name that could reach out of the tree, or that means something to git or to us, is not shown."""
    assert not is_safe_name(name)


@pytest.mark.parametrize("name", [b"a", b"...", b".gitignore", b"\xff\n", b"x" * 255, b".git2"])
def test_odd_name_is_safe(name: bytes) -> None:
    """A name that is only unusual is shown."""
    assert is_safe_name(name)


def test_hidden_entries_are_kept_apart(store: ObjectStore) -> None:
    """What is not shown is known, so that a capture does not drop it."""
    (blob,) = add(store, b"x")
    tree = add_tree(store, (b".git", FILE, blob), (b"shown", FILE, blob))
    lower = Lower(store)

    assert lower.entries(tree) == {b"shown": (FILE, blob)}
    assert lower.hidden_entries(tree) == [(b".git", FILE, blob)]


def test_kinds(store: ObjectStore) -> None:
    """A submodule is a directory without a tree; only a real directory has one."""
    (blob,) = add(store, b"x")
    entries = {b"d": (TREE, blob), b"m": (GITLINK, blob), b"f": (FILE, blob)}

    assert [is_directory(mode) for mode, _ in entries.values()] == [True, True, False]
    assert [subtree(entries, name) for name in (b"d", b"m", b"f", b"no")] == [
        blob,
        None,
        None,
        None,
    ]
    assert not stat.S_ISDIR(GITLINK)


def test_no_tree_is_an_empty_one(store: ObjectStore) -> None:
    """A thread without a state shows an empty directory."""
    assert Lower(store).entries(None) == {}
    assert Lower(store).hidden_entries(None) == []


@pytest.mark.parametrize(
    "look",
    [
        lambda lower: lower.entries(ABSENT),
        lambda lower: lower.size(ABSENT),
        lambda lower: lower.read(ABSENT, 0, 1),
    ],
)
def test_missing_object_is_named(store: ObjectStore, look: Callable[[Lower], object]) -> None:
    """An object that nobody has is an error that names it, not a KeyError."""
    with pytest.raises(ObjectMissing, match=ABSENT.decode()):
        look(Lower(store))


def test_corrupt_object_gives_no_bytes(store: ObjectStore, tmp_path: Path) -> None:
    """A damaged pack is an error for the reader, never wrong bytes."""
    (blob,) = add(store, bytes(range(256)) * 64)
    (pack,) = (tmp_path / "objects" / "packs").glob("*.pack")
    damaged = bytearray(pack.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    pack.chmod(0o644)
    pack.write_bytes(damaged)
    store.close()

    with pytest.raises(CorruptObject):
        Lower(ObjectStore(tmp_path / "objects")).read(blob, 0, 1 << 20)


SIZES = [0, 1, FRAME - 1, FRAME, FRAME + 1, 3 * FRAME + 5, 5 * FRAME, 5 * FRAME + 7]


@pytest.mark.parametrize("size", SIZES)
def test_read_is_a_slice(store: ObjectStore, size: int) -> None:
    """A read gives the bytes at its offset, short at the end, whether the blob is in frames or whole."""
    content = frames(6)[:size]
    (blob,) = add(store, content)
    lower = Lower(store)
    edges = sorted(
        {0, 1, FRAME - 3, FRAME, 2 * FRAME - 1, size // 2, max(0, size - 2), size, size + 9}
    )

    assert lower.size(blob) == size
    for offset in edges:
        for length in (0, 1, 5, FRAME, 2 * FRAME + 11):
            expected = content[offset : offset + length]
            assert lower.read(blob, offset, length) == expected, (offset, length)
            assert bytes(lower.view(blob, offset, length)) == expected, (offset, length)


def test_a_read_in_a_large_file_decodes_one_frame(store: ObjectStore) -> None:
    """4 KiB somewhere in 64 MiB cost one frame, and the next 4 KiB of it nothing."""
    content = frames(64)
    (blob,) = add(store, content)
    lower = Lower(store)
    offset = 40 * FRAME + 12_345

    assert lower.read(blob, offset, 4096) == content[offset : offset + 4096]
    assert lower.frames_decoded == 1
    assert lower.read(blob, offset + 4096, 4096) == content[offset + 4096 : offset + 8192]
    assert lower.frames_decoded == 1


def test_cheap_means_no_long_wait(store: ObjectStore) -> None:
    """A large file's read is left to a thread until its frame is there; a small file's never."""
    large, small = add(store, frames(5), b"small")
    lower = Lower(store)
    assert not lower.is_cheap(5 * FRAME, large, 2 * FRAME)
    lower.read(large, 2 * FRAME, 1)

    assert lower.is_cheap(5 * FRAME, large, 2 * FRAME + 77)
    assert not lower.is_cheap(5 * FRAME, large, 3 * FRAME)
    assert lower.is_cheap(5, small, 0)


def test_blob_cache_keeps_its_budget(store: ObjectStore) -> None:
    """However much is read, the bytes that stay in memory are within the budget; the last ones are there."""
    blobs = add(
        store, *(frames(1)[: FRAME // 2] + b"%d" % number for number in range(20)), frames(9)
    )
    lower = Lower(store, blob_bytes=3 * FRAME)
    for blob in blobs:
        for offset in range(0, lower.size(blob), FRAME):
            lower.read(blob, offset, FRAME)
            assert cached_bytes(lower) <= 3 * FRAME
    decoded = lower.frames_decoded
    lower.read(blobs[-1], 8 * FRAME, 10)

    assert lower.frames_decoded == decoded
    assert cached_bytes(lower) > FRAME


def cached_bytes(lower: Lower) -> int:
    return sum(map(len, lower._blobs.values()))


def test_a_frame_above_the_budget_is_served(store: ObjectStore) -> None:
    """One frame is kept even where the budget is smaller, so that a reader gets on."""
    first, second = add(store, frames(1), b"x" * 50)
    lower = Lower(store, blob_bytes=10)

    assert lower.read(first, 0, 8) == b"00000000"
    assert lower.read(second, 0, 8) == b"xxxxxxxx"
    assert cached_bytes(lower) == 50


def test_tree_cache_keeps_its_budget(store: ObjectStore) -> None:
    """Decoded directories stay as long as their entries fit; a directory asked for again costs nothing."""
    (blob,) = add(store, b"x")
    trees = [
        add_tree(store, *((b"%d-%d" % (number, name), FILE, blob) for name in range(10)))
        for number in range(8)
    ]
    lower = Lower(store, tree_entries=33)
    for tree in trees:
        lower.entries(tree)
    lower.entries(trees[-1])
    lower.entries(trees[-2])

    assert lower.trees_decoded == 8
    assert sum(len(entries) for entries in lower._trees.values()) <= 33
    lower.entries(trees[0])
    assert lower.trees_decoded == 9


def test_dropped_caches_are_filled_again(store: ObjectStore) -> None:
    """After a drop everything is decoded anew, and the budget is whole again."""
    (blob,) = add(store, frames(1))
    tree = add_tree(store, (b"f", FILE, blob))
    lower = Lower(store, blob_bytes=FRAME, tree_entries=2)
    for _ in range(3):
        lower.entries(tree)
        lower.read(blob, 0, 1)
        lower.drop_caches()

    assert (lower.trees_decoded, lower.frames_decoded) == (3, 3)
    assert (cached_bytes(lower), lower._blob_room, lower._tree_room) == (0, FRAME, 2)


def test_reading_ahead_is_for_sequential_readers(store: ObjectStore) -> None:
    """A reader at the start or behind what was read gets the next frames decoded; a jump gets none."""
    content = frames(12)
    (blob,) = add(store, content)
    lower = Lower(store)
    lower.read_ahead(blob, 7 * FRAME, len(content))
    assert not lower._ahead
    lower.read_ahead(blob, 0, len(content))
    assert lower.read(blob, 0, len(content)) == content
    lower.close()

    assert not lower._ahead
    assert lower.frames_decoded == 12


def test_frames_decoded_ahead_are_within_the_budget(store: ObjectStore) -> None:
    """Nothing that was decoded ahead is held outside the cache, whoever is quicker."""
    content = frames(30)
    (blob,) = add(store, content)
    lower = Lower(store, blob_bytes=4 * FRAME)
    for offset in range(0, len(content), FRAME):
        lower.read_ahead(blob, offset, len(content))
        assert lower.read(blob, offset, FRAME) == content[offset : offset + FRAME]
    lower.close()

    assert not lower._ahead
    assert cached_bytes(lower) <= 4 * FRAME


def test_many_threads_read_right(store: ObjectStore) -> None:
    """Threads that read the same and other frames at once all get the right bytes."""
    content = frames(10)
    (blob,) = add(store, content)
    lower = Lower(store, blob_bytes=2 * FRAME)
    wrong: list[int] = []

    def read(first: int) -> None:
        for turn in range(30):
            offset = (first + turn * 7) % 10 * FRAME + turn
            if lower.read(blob, offset, 100) != content[offset : offset + 100]:
                wrong.append(offset)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []
    assert cached_bytes(lower) <= 2 * FRAME
    assert lower._blob_room == 2 * FRAME - cached_bytes(lower)
