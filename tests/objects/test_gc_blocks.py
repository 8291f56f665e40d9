"""Blocks: what repacking makes of histories, read back without the packs that it came from."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heddle.errors import CorruptObject, ObjectMissing
from heddle.objects import repack, state
from heddle.objects.blockindex import encode_index, open_index
from heddle.objects.catalog import Catalog
from heddle.objects.gitformat import BLOB, COMMIT, TAG, TREE, to_raw
from heddle.objects.layout import BASE_DEPTH, BLOCK, CHUNKED, WHOLE, WHOLE_LIMIT, Entry
from heddle.objects.reach import Chain, Walk
from heddle.objects.repack import Plan, Repacker, arrange
from heddle.objects.store import ObjectStore

Content = tuple[int, bytes]


def chain(type_num: int, ids: list[bytes], path: bytes = b"", head: bytes | None = None) -> Chain:
    made = Chain(type_num, path)
    made.ids, made.head = ids, head
    return made


def stored(store: ObjectStore, contents: list[Content]) -> list[bytes]:
    """Store contents as one pack; returns their binary ids."""
    with store.writer() as writer:
        ids = [to_raw(writer.add(*each), store.id_length) for each in contents]
        writer.commit()
    return ids


def repacker(store: ObjectStore) -> Repacker:
    return Repacker(store.packs_directory, Catalog(store, store.packs_directory.indexes()))


def alone(store: ObjectStore, plan: Plan, path: Path) -> ObjectStore:
    """A store that has only what repacking a plan made."""
    old = set((store.path / "packs").iterdir())
    name = repacker(store).write(plan)
    for file in old:
        file.unlink()
    store.path.rename(path)
    found = ObjectStore(path, object_format=store.format_name)
    assert name is None or [index.path.stem for index in found.packs_directory.indexes()] == [name]
    return found


def versions(count: int, lines: int = 200) -> list[bytes]:
    """Texts, each with another line than the one before."""
    source = random.Random(count)
    text = [b"line %d %d\n" % (number, source.getrandbits(64)) for number in range(lines)]
    found = []
    for number in range(count):
        text[source.randrange(lines)] = b"version %d %d\n" % (number, source.getrandbits(64))
        found.append(b"".join(text))
    return found


def kinds(store: ObjectStore) -> dict[bytes, int]:
    return {entry.id: entry.kind for index in store.packs_directory.indexes() for entry in index}


@pytest.mark.parametrize("object_format", ["sha1", "sha256"])
def test_every_object_comes_back(tmp_path: Path, object_format: str) -> None:
    """What went into blocks, was copied, or was both large and old is read as it was, in any order."""
    store = ObjectStore.create(tmp_path / "objects", object_format=object_format)
    texts = versions(150)
    contents: list[Content] = [(BLOB, text) for text in texts]
    contents += [(BLOB, b""), (BLOB, b"x"), (TAG, b"tag"), (TREE, b""), (COMMIT, b"commit")]
    contents += [(BLOB, bytes(WHOLE_LIMIT) + b"end"), (BLOB, random.Random(1).randbytes(2 << 20))]
    ids = stored(store, contents)
    plan = Plan(
        [ids[0], ids[-2]],
        [
            chain(BLOB, ids[1:150], b"long", ids[0]),
            chain(BLOB, ids[150:152], b"short"),
            chain(TAG, ids[152:153]),
            chain(TREE, ids[153:154]),
            chain(COMMIT, ids[154:155]),
            chain(BLOB, ids[-1:], b"random"),
        ],
    )
    found = alone(store, plan, tmp_path / "new")

    order = list(range(len(ids)))
    random.Random(2).shuffle(order)
    for number in order:
        assert contents[number] == found.get_raw(ids[number])
        assert len(contents[number][1]) == found.size(ids[number])
        assert contents[number][0] == found.kind(ids[number])
        assert contents[number][1][5:50] == found.read_at(ids[number], 5, 45)
    assert list(found.verify(full=True)) == []
    assert sorted(ids) == sorted(found.iter_ids())
    assert kinds(found)[ids[0]] == WHOLE
    assert kinds(found)[ids[-2]] == CHUNKED
    assert kinds(found)[ids[5]] == BLOCK


def test_versions_take_little(store: ObjectStore, tmp_path: Path) -> None:
    """A hundred versions of a text take less than three of them do alone."""
    texts = versions(100)
    ids = stored(store, [(BLOB, text) for text in texts])
    single = next(iter(store.packs_directory.indexes()[0])).stored_size
    found = alone(store, Plan(ids[:1], [chain(BLOB, ids[1:], b"a", ids[0])]), tmp_path / "new")

    assert found.packs_directory.indexes()[0].pack_size < single * 3 + 100 * 60


def test_an_index_of_blocks_is_rebuilt(store: ObjectStore, tmp_path: Path) -> None:
    """The ids of a block's objects are in no pack; reindex finds them again from what they hold."""
    ids = stored(store, [(BLOB, text) for text in versions(40)])
    found = alone(store, Plan(ids[:1], [chain(BLOB, ids[1:], b"a", ids[0])]), tmp_path / "new")
    index = found.packs_directory.indexes()[0].path
    before = index.read_bytes()
    index.unlink()

    with pytest.raises(CorruptObject, match="its index is missing"):
        ObjectStore(found.path).get_raw(ids[7])
    assert [index.stem] == ObjectStore(found.path).reindex()
    assert before == index.read_bytes()


def test_damage_in_a_block(store: ObjectStore, tmp_path: Path) -> None:
    """Whatever byte of a pack of blocks changes, an object is right or an error that names it."""
    texts = versions(30, lines=20)
    ids = stored(store, [(BLOB, text) for text in texts])
    found = alone(store, Plan(ids[:1], [chain(BLOB, ids[1:], b"a", ids[0])]), tmp_path / "new")
    pack = found.packs_directory.indexes()[0].pack_path
    sound = pack.read_bytes()
    pack.chmod(0o644)
    noticed = []
    for at in (places := range(16, len(sound) - 24, 5)):
        pack.write_bytes(sound[:at] + bytes([sound[at] ^ 4]) + sound[at + 1 :])
        damaged = ObjectStore(found.path)
        for raw_id, text in zip(ids, texts, strict=True):
            try:
                assert (BLOB, text) == damaged.get_raw(raw_id)
            except CorruptObject as error:
                assert raw_id.hex() in error.message or ids[0].hex() in error.message
                noticed.append(at)
    assert len(set(noticed)) > len(places) * 0.95  # zstd has bits that mean nothing


def test_a_damaged_source_is_not_copied(store: ObjectStore) -> None:
    """Repacking stops at an object that can't be read, and publishes nothing."""
    ids = stored(store, [(BLOB, text) for text in versions(3)])
    index = store.packs_directory.indexes()[0]
    entry = index.find(ids[1])
    assert entry is not None
    sound = index.pack_path.read_bytes()
    at = entry.offset + 60
    index.pack_path.chmod(0o644)
    index.pack_path.write_bytes(sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :])

    for plan in (Plan(ids, []), Plan([], [chain(BLOB, ids)])):
        with pytest.raises(CorruptObject, match=ids[1].hex()):
            repacker(store).write(plan)
    assert len(list((store.path / "packs").iterdir())) == 2


# Cutting


def depth_of(blocks: list[repack.Block]) -> int:
    """The longest way from a block to one without bases."""
    depths: dict[bytes, int] = {}
    for block in blocks:
        depths[block.ids[0]] = 1 + max([depths.get(base, 0) for base in block.bases], default=-1)
    return max(depths.values())


@given(
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=12),
    size=st.integers(0, WHOLE_LIMIT),
    with_head=st.booleans(),
)
def test_cutting(lengths: list[int], size: int, with_head: bool) -> None:
    """Blocks hold each object once, are within their limits, and follow no chain longer than a reader does."""
    chains = []
    for number, length in enumerate(lengths):
        ids = [number.to_bytes(2, "big") + each.to_bytes(18, "big") for each in range(length)]
        head = ids[0] if with_head else None
        chains.append(chain(BLOB, ids[1:] if with_head else ids, b"p%d" % number, head))
    blocks = list(arrange(chains, lambda raw_id: size))
    heads = {each.head for each in chains if each.head}
    written = set(heads)
    for block in blocks:
        assert written.issuperset(block.bases)
        assert len(block.ids) * size <= max(WHOLE_LIMIT, size)
        assert len(block.ids) <= repack.MEMBERS
        written.update(block.ids)

    assert sorted(each for block in blocks for each in block.ids) == sorted(
        each for one in chains for each in one.ids
    )
    if blocks:
        assert depth_of(blocks) < BASE_DEPTH


def test_a_very_long_chain() -> None:
    """However many blocks a chain has, no reader follows more than the limit."""
    ids = [number.to_bytes(20, "big") for number in range(3000)]
    blocks = list(arrange([chain(BLOB, ids[1:], b"p", ids[0])], lambda raw_id: WHOLE_LIMIT))

    assert len(blocks) == 2999
    assert depth_of(blocks) < BASE_DEPTH


# The index


@given(
    st.lists(
        st.tuples(
            st.binary(min_size=20, max_size=20),
            st.sampled_from([WHOLE, CHUNKED, BLOCK]),
            st.integers(0, WHOLE_LIMIT),
        ),
        min_size=1,
        max_size=50,
        unique_by=lambda each: each[0],
    )
)
def test_finding(
    tmp_path_factory: pytest.TempPathFactory, made: list[tuple[bytes, int, int]]
) -> None:
    """Every object is found as it was written, in a block or not."""
    entries = [
        Entry(
            raw_id,
            1000 if kind == BLOCK else number,
            size,
            77,
            kind,
            BLOB,
            number * (kind == BLOCK),
        )
        for number, (raw_id, kind, size) in enumerate(made)
    ]
    path = tmp_path_factory.mktemp("index") / "i.idx"
    path.write_bytes(encode_index(entries, id_length=20, pack_size=7, pack_digest=bytes(range(32))))
    index = open_index(path, 20)

    assert entries == [index.find(entry.id) for entry in entries]
    assert sorted(entries) == list(index)
    index.check()


def test_damage_in_an_index(store: ObjectStore, tmp_path: Path) -> None:
    """A changed byte in an index of blocks gives no wrong entry that a read does not find out."""
    texts = versions(12, lines=5)
    ids = stored(store, [(BLOB, text) for text in texts])
    found = alone(store, Plan([], [chain(BLOB, ids)]), tmp_path / "new")
    path = found.packs_directory.indexes()[0].path
    sound = path.read_bytes()
    path.chmod(0o644)
    for at in range(len(sound)):
        path.write_bytes(sound[:at] + bytes([sound[at] ^ 16]) + sound[at + 1 :])
        damaged = ObjectStore(found.path)
        for raw_id, text in zip(ids, texts, strict=True):
            try:
                assert (BLOB, text) == damaged.get_raw(raw_id)
            except (CorruptObject, KeyError) as error:
                assert isinstance(error, CorruptObject), at


# Walking


class History:
    """Commits on each other, made of what their trees hold."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def commit(self, files: dict[str, bytes], *parents: bytes, time_s: int = 0) -> bytes:
        with self._store.writer() as writer:
            tree = self._tree(files, writer.add_tree, writer.add_blob)
            hexes = b"".join(b"parent %s\n" % each.hex().encode() for each in parents)
            raw = b"tree %s\n%sauthor A <a> %d +0000\ncommitter A <a> %d +0000\n\nm\n" % (
                tree,
                hexes,
                time_s,
                time_s,
            )
            raw_id = to_raw(writer.add(COMMIT, raw), 20)
            writer.commit()
        return raw_id

    def _tree(
        self,
        files: dict[str, bytes],
        add_tree: Callable[..., bytes],
        add_blob: Callable[[bytes], bytes],
    ) -> bytes:
        entries = []
        below: dict[str, dict[str, bytes]] = {}
        for path, content in files.items():
            name, slash, rest = path.partition("/")
            if slash:
                below.setdefault(name, {})[rest] = content
            else:
                entries.append((name.encode(), 0o100644, add_blob(content)))
        for name, inner in below.items():
            entries.append((name.encode(), 0o040000, self._tree(inner, add_tree, add_blob)))
        return add_tree(entries)


def contents_of(store: ObjectStore, ids: list[bytes]) -> list[bytes]:
    return [store.get_raw(raw_id)[1] for raw_id in ids]


def test_chains_follow_paths(store: ObjectStore) -> None:
    """A path's versions are one chain, newest first; the head's is apart; a renamed file's go on in it."""
    history = History(store)
    first = history.commit({"old": b"one", "d/x": b"x1"}, time_s=1)
    second = history.commit({"old": b"two", "d/x": b"x2"}, first, time_s=2)
    third = history.commit({"new": b"two", "d/x": b"x2"}, second, time_s=3)
    last = history.commit({"new": b"three", "d/x": b"x3"}, third, time_s=4)
    walk = Walk(store)
    walk.run([last], heads=[last])
    chains = {each.path: each for each in walk.take_chains() if each.type_num == BLOB}

    assert set(chains) == {b"new", b"d/x"}
    assert contents_of(store, chains[b"new"].ids) == [b"two", b"one"]
    assert contents_of(store, chains[b"d/x"].ids) == [b"x2", b"x1"]
    heads = [chains[path].head for path in (b"new", b"d/x")]
    assert contents_of(store, [each for each in heads if each]) == [b"three", b"x3"]
    assert len(walk.whole) == 2 + 2
    assert walk.seen == set(store.iter_ids())


def test_a_walk_stops_where_something_is_missing(store: ObjectStore) -> None:
    """A history that has a hole is an error, so that nobody takes what lies behind it for unreachable."""
    history = History(store)
    orphan = history.commit({"a": b"1"}, b"\xee" * 20)

    with pytest.raises(ObjectMissing, match="ee" * 20):
        Walk(store).run([orphan])
    Walk(store, is_ours=lambda raw_id: raw_id != b"\xee" * 20, is_shallow=lambda _: True).run(
        [orphan]
    )


def test_tags_and_single_objects(store: ObjectStore) -> None:
    """A walk may begin at a tag, a tree or a blob."""
    commit = History(store).commit({"a": b"1"})
    with store.writer() as writer:
        blob = to_raw(writer.add_blob(b"alone"), 20)
        tree = to_raw(writer.add_tree([(b"n", 0o100644, writer.add_blob(b"below"))]), 20)
        text = b"object %s\ntype commit\ntag t\ntagger A <a> 0 +0000\n\nm\n" % commit.hex().encode()
        tag = to_raw(writer.add(TAG, text), 20)
        writer.commit()
    walk = Walk(store)
    walk.run([tag, tree, blob])

    assert walk.seen == set(store.iter_ids())
    assert sorted(walk.seen) == sorted(raw_id for each in walk.take_chains() for raw_id in each.ids)


def test_an_unsound_commit(store: ObjectStore) -> None:
    """What is no commit or tree although it is named as one stops the walk."""
    raw = state.new_change_id().encode()
    (broken,) = stored(store, [(COMMIT, raw)])

    with pytest.raises(CorruptObject, match=broken.hex()):
        Walk(store).run([broken])


def test_commits_that_are_written_in_another_way(store: ObjectStore) -> None:
    """Whatever stands in a commit beside them, its tree, its parents and its time are found."""
    history = History(store)
    bases = [history.commit({"a": text}, time_s=5) for text in (b"1", b"2")]
    tree = store.get_raw(bases[0])[1].split(b"\n")[0]
    parents = b"".join(b"\nparent %s" % base.hex().encode() for base in bases)
    who = b"A <a> 7 +0000"
    ends = [
        b"\nauthor %s\ncommitter %s\n\nm\n" % (who, who),
        b"\nauthor %s\ncommitter %s\ngpgsig a\n b\nparent %s\n\nm\n" % (who, who, b"0" * 40),
        b"\nauthor %s\nencoding latin1\ncommitter %s\n\nm\n" % (who, who),
        b"\nauthor %s\ncommitter A <a> soon\n\nm\n" % who,
        b"\n\nparent none",
    ]
    made = stored(store, [(COMMIT, tree + parents + end) for end in ends])
    for commit in made:
        walk = Walk(store)
        walk.run([commit])
        assert {commit, *bases} <= walk.seen
    walk = Walk(store)
    walk.run(made)
    order = next(iter(walk.take_chains())).ids

    assert set(order[:3]) == set(made[:3])
    assert set(order[3:5]) == set(bases)
