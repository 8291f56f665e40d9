"""The list of everything that some packs hold says what the store says, also where something is damaged."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from heddle.errors import CorruptObject
from heddle.objects import catalog as catalog_module
from heddle.objects import workers
from heddle.objects.catalog import Catalog
from heddle.objects.gitformat import BLOB, COMMIT, TAG, TREE, to_raw
from heddle.objects.layout import WHOLE_LIMIT, Entry
from heddle.objects.packfile import PackFile
from heddle.objects.reach import Chain
from heddle.objects.repack import Plan, Repacker
from heddle.objects.store import ObjectStore

CONTENTS = [
    (BLOB, b""),
    (BLOB, b"one"),
    (TREE, b""),
    (COMMIT, b"commit"),
    (BLOB, random.Random(1).randbytes(WHOLE_LIMIT + 5)),
    *((BLOB, b"version %d\n" % number * 50) for number in range(20)),
]


def stored(store: ObjectStore, contents: list[tuple[int, bytes]]) -> list[bytes]:
    with store.writer() as writer:
        ids = [to_raw(writer.add(*each), store.id_length) for each in contents]
        writer.commit()
    return ids


def listed(store: ObjectStore) -> Catalog:
    return Catalog(store, store.packs_directory.indexes())


def overwrite(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def check(catalog: Catalog, store: ObjectStore, ids: list[bytes]) -> None:
    for raw_id, content in zip(ids, CONTENTS, strict=True):
        assert (catalog.kind(raw_id), catalog.size(raw_id)) == (content[0], len(content[1]))
        assert catalog.get_raw(raw_id) == content
        assert catalog.is_chunked(raw_id) == store.is_chunked(raw_id)
        assert catalog.find(raw_id) == store.packs_directory.find(raw_id)
    assert catalog.sizes(ids) == [len(content) for _, content in CONTENTS]


@pytest.mark.parametrize("object_format", ["sha1", "sha256"])
def test_it_says_what_the_store_says(tmp_path: Path, object_format: str) -> None:
    """Kind, length, place and content of every object are the store's, in packs of either version."""
    store = ObjectStore.create(tmp_path / "objects", object_format=object_format)
    ids = stored(store, CONTENTS)
    check(listed(store), store, ids)

    chain = Chain(BLOB, b"path")
    chain.ids = ids[5:]
    name = Repacker(store.packs_directory, listed(store)).write(Plan(ids[:5], [chain]))
    for index in store.packs_directory.indexes():
        if index.name != name:
            store.packs_directory.remove([index.name])
    check(listed(store), store, ids)


def test_what_is_not_listed(store: ObjectStore) -> None:
    """What came later is found in the store; what is nowhere is a KeyError."""
    catalog = listed(store)
    ids = stored(store, CONTENTS)
    check(catalog, store, ids)

    for ask in (catalog.kind, catalog.size, catalog.get_raw, catalog.find, catalog.is_chunked):
        with pytest.raises(KeyError):
            ask(b"\xee" * 20)


@pytest.fixture
def read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes read ahead, four objects at a time."""
    monkeypatch.setattr(workers, "processors", lambda: 2)
    monkeypatch.setattr(catalog_module, "_BATCH", 4)


def test_what_is_read_ahead(
    store: ObjectStore, read_ahead: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commits, trees and tags that others have read are what the store says, and are not read here again."""
    contents = [(kind, b"%d of %d" % (at, kind)) for kind in (COMMIT, TREE, TAG) for at in range(9)]
    ids = stored(store, [*contents, (BLOB, b"blob")])
    catalog = listed(store)
    own = Counter[bytes]()
    read = PackFile.get

    def counted(pack: PackFile, entry: Entry) -> bytes:
        own[entry.id] += 1
        return read(pack, entry)

    monkeypatch.setattr(PackFile, "get", counted)
    with catalog.reading_ahead():
        assert [catalog.get_raw(raw_id) for raw_id in ids] == [*contents, (BLOB, b"blob")]
    assert own == {ids[-1]: 1}
    assert [catalog.get_raw(raw_id) for raw_id in ids[:-1]] == contents


def test_damage_in_what_is_read_ahead(store: ObjectStore, read_ahead: None) -> None:
    """What can't be read ahead is an error where it is asked for, and nowhere else."""
    contents = [(TREE, b"%d" % at * 100) for at in range(20)]
    ids = stored(store, contents)
    index, entry = listed(store).find(ids[7])
    overwrite(index.pack_path, entry.offset + 60)
    catalog = listed(ObjectStore(store.path))
    with catalog.reading_ahead():
        for raw_id, content in zip(ids, contents, strict=True):
            if raw_id != ids[7]:
                assert catalog.get_raw(raw_id) == content
        with pytest.raises(CorruptObject, match=ids[7].hex()):
            catalog.get_raw(ids[7])


def test_it_keeps_no_more_than_it_may(
    store: ObjectStore, read_ahead: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more is read ahead than is kept; the rest is read when it is asked for."""
    monkeypatch.setattr(catalog_module, "_KEPT_BYTES", 10 * (250 + 100))
    contents = [(TREE, b"%02d" % at * 50) for at in range(30)]
    ids = stored(store, contents)
    catalog = listed(store)
    with catalog.reading_ahead():
        assert sum(map(len, catalog._batches())) == 10
        assert [catalog.get_raw(raw_id) for raw_id in ids] == contents


def test_a_damaged_index(store: ObjectStore) -> None:
    """Of an index with a wrong row no row is taken on trust: the others are looked up one by one."""
    ids = stored(store, CONTENTS)
    index = store.packs_directory.indexes()[0]
    first = min(ids)
    overwrite(index.path, index.path.read_bytes().index(first) + 21)
    again = ObjectStore(store.path)
    catalog = listed(again)

    with pytest.raises(CorruptObject):
        catalog.size(first)
    for raw_id, content in zip(ids, CONTENTS, strict=True):
        if raw_id != first:
            assert catalog.get_raw(raw_id) == content


def test_a_damaged_object(store: ObjectStore) -> None:
    """A damaged object is read from another pack, and is an error that names it where there is none."""
    (raw_id,) = stored(store, [(BLOB, b"damaged" * 100)])
    index = store.packs_directory.indexes()[0]
    overwrite(index.pack_path, 16 + 60)  # behind the pack's header and the entry's
    with pytest.raises(CorruptObject, match=raw_id.hex()):
        listed(ObjectStore(store.path)).get_raw(raw_id)

    index.path.rename(index.path.with_suffix(".away"))
    stored(ObjectStore(store.path), [(BLOB, b"damaged" * 100), (BLOB, b"other")])
    index.path.with_suffix(".away").rename(index.path)
    assert listed(ObjectStore(store.path)).get_raw(raw_id) == (BLOB, b"damaged" * 100)
