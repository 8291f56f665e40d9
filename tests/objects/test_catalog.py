"""The list of everything that some packs hold says what the store says, also where something is damaged."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from heddle.errors import CorruptObject
from heddle.objects.catalog import Catalog
from heddle.objects.gitformat import BLOB, COMMIT, TREE, to_raw
from heddle.objects.layout import WHOLE_LIMIT
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
