"""Damaged packs and indexes: the right bytes or an error that names the file, never anything else."""

from __future__ import annotations

import gc
import hashlib
import os
import shutil
import struct
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from heddle.errors import CorruptObject
from heddle.objects import blockindex
from heddle.objects.gitformat import BLOB, new_hash, to_raw
from heddle.objects.index import Index, encode_index
from heddle.objects.layout import (
    BASE_DEPTH,
    BLOCK,
    CHUNKED,
    FRAME_SIZE,
    WHOLE,
    WHOLE_LIMIT,
    Entry,
    EntryHeader,
    encode_chunk,
    encode_pack_header,
    encode_pack_trailer,
    encode_table,
    with_crc,
)
from heddle.objects.store import ObjectStore

REINDEX = "run `heddle fsck --reindex`"


class Sample(NamedTuple):
    """A store with one pack, and what it should give."""

    path: Path
    pack: Path
    index: Path
    contents: dict[bytes, tuple[int, bytes]]


def entries_of(sample: Sample) -> list[Entry]:
    """Every entry of the sample's pack, as they lie in it."""
    return sorted(Index(sample.index, 20), key=lambda entry: entry.offset)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    store = ObjectStore.create(tmp_path_factory.mktemp("sample") / "objects")
    with store.writer() as writer:
        blobs = [writer.add_blob(b"line %d\n" % number * number) for number in range(40)]
        writer.add_blob(b"".join(number.to_bytes(4, "big") for number in range(1_100_000)))
        writer.add_tree((b"%d" % number, 0o100644, blob) for number, blob in enumerate(blobs))
        name = writer.commit()
    pack = store.path / "packs" / f"{name}.pack"
    contents = {object_id: store.get_raw(object_id) for object_id in store}
    return Sample(store.path, pack, pack.with_suffix(".idx"), contents)


@pytest.fixture(scope="module")
def spare(sample: Sample, tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """A copy of the sample, to be damaged."""
    path = tmp_path_factory.mktemp("spare") / "objects"
    shutil.copytree(sample.path, path)
    pack, index = (path / "packs" / each.name for each in (sample.pack, sample.index))
    pack.chmod(0o644)
    index.chmod(0o644)
    return sample._replace(path=path, pack=pack, index=index)


def flipped(data: bytes, position: int, bit: int) -> bytes:
    changed = bytearray(data)
    changed[position % len(data)] ^= 1 << bit
    return bytes(changed)


def overwritten(data: bytes, position: int, piece: bytes) -> bytes:
    position %= len(data)
    return data[:position] + piece + data[position + len(piece) :]


DAMAGE = st.one_of(
    st.builds(
        lambda position, bit: lambda data: flipped(data, position, bit),
        st.one_of(st.integers(0, 1 << 40), st.integers(0, 4000), st.integers(-1000, -1)),
        st.integers(0, 7),
    ),
    st.builds(
        lambda position, piece: lambda data: overwritten(data, position, piece),
        st.integers(0, 1 << 40),
        st.binary(min_size=1, max_size=70),
    ),
    st.builds(
        lambda length: lambda data: data[: length % len(data)],
        st.one_of(st.integers(0, 1 << 40), st.integers(-100, -1)),
    ),
    st.builds(lambda more: lambda data: data + more, st.binary(min_size=1, max_size=100)),
)


def assert_right_or_refused(
    path: Path, contents: dict[bytes, tuple[int, bytes]], *names: str
) -> None:
    """Every object gives its own bytes by every way of reading, or an error naming a damaged file."""
    for object_id, (type_num, content) in contents.items():
        for expected, read in [
            ((type_num, content), ObjectStore.get_raw),
            (len(content), ObjectStore.size),
            (type_num, ObjectStore.kind),
            (content[1 << 20 : (1 << 20) + 10], lambda store, id: store.read_at(id, 1 << 20, 10)),
            (content, lambda store, id: b"".join(store.iter_blob(id))),
        ]:
            try:
                assert expected == read(ObjectStore(path), object_id)
            except CorruptObject as error:
                assert any(name in error.message for name in names)
                assert error.hint is not None


@given(damage=DAMAGE)
def test_any_damage_to_a_pack(
    sample: Sample, spare: Sample, damage: Callable[[bytes], bytes]
) -> None:
    """Flipped, overwritten, cut off or added bytes of a pack never come out as an object's content,
    and fsck finds them."""
    data = sample.pack.read_bytes()
    spare.pack.write_bytes(damage(data))

    assert_right_or_refused(spare.path, sample.contents, sample.pack.name)
    found = {problem.kind for problem in ObjectStore(spare.path).verify(full=False)}
    assert (damage(data) != data) == ("damaged_pack" in found)


@given(damage=DAMAGE)
def test_any_damage_to_an_index(
    sample: Sample, spare: Sample, damage: Callable[[bytes], bytes]
) -> None:
    """A damaged index gives the right objects or says what rebuilds it, fsck finds it, and rebuilding
    makes it what it was."""
    data = sample.index.read_bytes()
    spare.pack.write_bytes(sample.pack.read_bytes())
    spare.index.write_bytes(damage(data))
    store = ObjectStore(spare.path)
    problems = list(store.verify(full=False))

    assert_right_or_refused(spare.path, sample.contents, sample.index.name, sample.pack.name)
    assert (["damaged_index"] if damage(data) != data else []) == [each.kind for each in problems]
    assert [sample.pack.stem] * len(problems) == store.reindex()
    spare.index.chmod(0o644)
    assert data == spare.index.read_bytes()
    assert sample.contents == {object_id: store.get_raw(object_id) for object_id in store}


def test_an_unread_row_of_a_damaged_index(sample: Sample, spare: Sample) -> None:
    """An object whose id is damaged in the index is not reported missing but found to be in the pack."""
    spare.pack.write_bytes(sample.pack.read_bytes())
    for object_id in sample.contents:
        data = sample.index.read_bytes()
        spare.index.write_bytes(data.replace(to_raw(object_id, 20), bytes(20)))

        with pytest.raises(CorruptObject, match=object_id.decode()) as caught:
            ObjectStore(spare.path).get_raw(object_id)
        assert caught.value.hint == REINDEX


@pytest.fixture
def damaged(sample: Sample, tmp_path: Path) -> Sample:
    """A copy of the sample for one test."""
    path = tmp_path / "copy"
    shutil.copytree(sample.path, path)
    return sample._replace(
        path=path, pack=path / "packs" / sample.pack.name, index=path / "packs" / sample.index.name
    )


def test_a_missing_index(damaged: Sample) -> None:
    """Without its index a pack's objects are known to be there, and the error says what rebuilds it."""
    damaged.index.unlink()
    store = ObjectStore(damaged.path)
    for object_id in damaged.contents:
        with pytest.raises(CorruptObject, match="its index is missing") as caught:
            store.get_raw(object_id)
        assert caught.value.hint == REINDEX
    with pytest.raises(KeyError):
        store.get_raw(b"1" * 40)
    assert [problem.kind for problem in store.verify(full=True)] == ["missing_index"]

    assert [damaged.pack.stem] == store.reindex()
    assert store.reindex() == []
    assert damaged.contents == {object_id: store.get_raw(object_id) for object_id in store}


def test_another_process_rebuilds_an_index(damaged: Sample) -> None:
    """A store that stays open sees an index that was rebuilt behind it."""
    damaged.index.chmod(0o644)
    damaged.index.write_bytes(b"nonsense")
    store = ObjectStore(damaged.path)
    object_id = next(iter(damaged.contents))
    with pytest.raises(CorruptObject):
        store.get_raw(object_id)

    ObjectStore(damaged.path).reindex()

    assert damaged.contents[object_id] == store.get_raw(object_id)


def test_a_missing_pack(damaged: Sample) -> None:
    """An index without its pack holds nothing, and fsck says so."""
    damaged.pack.unlink()
    store = ObjectStore(damaged.path)

    assert list(store) == []
    with pytest.raises(KeyError):
        store.get_raw(next(iter(damaged.contents)))
    assert [problem.kind for problem in store.verify(full=False)] == ["missing_pack"]


def test_a_pack_that_goes_while_it_is_open(damaged: Sample) -> None:
    """When gc takes away a pack that another process has listed, the object is looked for anew."""
    store = ObjectStore(damaged.path)
    object_id = next(iter(damaged.contents))
    assert store.size(object_id) >= 0
    other = ObjectStore.create(damaged.path.parent / "other")
    with other.writer() as writer:
        writer.add(*damaged.contents[object_id])
        name = writer.commit()
    for suffix in ("pack", "idx"):
        shutil.move(other.path / "packs" / f"{name}.{suffix}", damaged.path / "packs")
    damaged.pack.unlink()

    assert damaged.contents[object_id] == store.get_raw(object_id)
    with pytest.raises(KeyError):
        store.get_raw(list(damaged.contents)[1])


def test_a_torn_pack_keeps_what_is_whole(damaged: Sample) -> None:
    """From a pack that was cut off, rebuilding the index saves every object before the cut."""
    entries = entries_of(damaged)
    cut = entries[len(entries) // 2]
    damaged.pack.chmod(0o644)
    with damaged.pack.open("r+b") as file:
        file.truncate(cut.offset + 30)
    damaged.index.unlink()
    store = ObjectStore(damaged.path)
    store.reindex()
    before = {entry.id.hex().encode() for entry in entries if entry.offset < cut.offset}

    assert before == set(store)
    assert {each: damaged.contents[each] for each in before} == {
        each: store.get_raw(each) for each in before
    }
    assert {"damaged_pack"} == {problem.kind for problem in store.verify(full=True)}


def test_a_hole_in_a_pack_costs_only_what_lay_there(damaged: Sample) -> None:
    """A damaged header in the middle does not hide the objects behind it from a rebuilt index."""
    entries = entries_of(damaged)
    hole = entries[len(entries) // 2]
    damaged.pack.chmod(0o644)
    with damaged.pack.open("r+b") as file:
        file.seek(hole.offset)
        file.write(bytes(20))
    damaged.index.unlink()
    store = ObjectStore(damaged.path)
    store.reindex()

    assert set(damaged.contents) - {hole.id.hex().encode()} == set(store)


def test_fsck_names_the_damaged_object(damaged: Sample) -> None:
    """For a damaged pack fsck lists which objects are lost, with a checksum error for each."""
    victim = entries_of(damaged)[-1]
    damaged.pack.chmod(0o644)
    last = victim.offset + EntryHeader(20).size + victim.stored_size - 1
    damaged.pack.write_bytes(flipped(damaged.pack.read_bytes(), last, 3))
    problems = list(ObjectStore(damaged.path).verify(full=False))

    assert [problem.kind for problem in problems] == ["damaged_pack", "damaged_object"]
    assert victim.id.hex() in problems[1].what


def test_what_could_not_be_read_is_let_go(damaged: Sample) -> None:
    """A store that met damage and was closed keeps no pack open, whenever the collector may run."""
    damaged.pack.chmod(0o644)
    damaged.pack.write_bytes(bytes(damaged.pack.stat().st_size))
    store = ObjectStore(damaged.path)
    gc.disable()
    try:
        for object_id in (id for id, (_, content) in damaged.contents.items() if content):
            with pytest.raises(CorruptObject):
                store.read_at(object_id, 0, 1)
        store.close()

        assert os.fsencode(damaged.pack) not in open_files()
    finally:
        gc.enable()


def open_files() -> set[bytes]:
    """What this process has open, by path."""
    found = set()
    for entry in os.listdir(b"/proc/self/fd"):
        with suppress(FileNotFoundError):  # the listing's own
            found.add(os.readlink(b"/proc/self/fd/" + entry))
    return found


# Packs that nobody wrote


class Forged:
    """A pack put together by hand, with sound checksums around whatever it says."""

    def __init__(self, path: Path) -> None:
        self.store = ObjectStore.create(path)
        self.header = EntryHeader(20)
        self.data = encode_pack_header(20)
        self.entries: list[Entry] = []

    def add(self, content: bytes, payload: bytes, kind: int = WHOLE, **lies: int | bytes) -> bytes:
        digest = new_hash(20, BLOB, len(content))
        digest.update(content)
        entry = Entry(digest.digest(), len(self.data), len(content), len(payload), kind, BLOB)
        entry = entry._replace(**lies)  # type: ignore[arg-type]
        self.data += self.header.encode(entry) + payload
        self.entries.append(entry)
        return digest.hexdigest().encode()

    def publish_blocks(self) -> ObjectStore:
        return self.publish(blockindex.encode_index)

    def publish(self, encode: Callable[..., bytes] = encode_index) -> ObjectStore:
        self.data += encode_pack_trailer(len(self.entries))
        digest = hashlib.sha256(self.data)
        index = encode(
            self.entries, id_length=20, pack_size=len(self.data), pack_digest=digest.digest()
        )
        directory = self.store.path / "packs"
        (directory / f"{digest.hexdigest()}.pack").write_bytes(self.data)
        (directory / f"{digest.hexdigest()}.idx").write_bytes(index)
        return self.store


@pytest.fixture
def forged(tmp_path: Path) -> Forged:
    return Forged(tmp_path / "forged")


def frame(content: bytes, base: bytes | None = None) -> bytes:
    dictionary = (
        zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        if base
        else None
    )
    return zstandard.ZstdCompressor(
        dict_data=dictionary, write_checksum=True, write_content_size=True
    ).compress(content)


HUGE = 1 << 60


def lying_frame() -> bytes:
    """A zstd frame whose header says 2^60 bytes (RFC 8878, section 3.1.1.1)."""
    return bytes.fromhex("28b52ffd") + bytes([0b11100000]) + struct.pack("<Q", HUGE) + b"\x01\0\0"


@pytest.mark.parametrize(
    ("payload", "lies"),
    [
        (frame(b"x"), {"raw_size": HUGE}),
        (frame(b"x"), {"stored_size": HUGE}),
        (frame(b"x"), {"raw_size": HUGE, "kind": CHUNKED}),
        (frame(b"x"), {"raw_size": HUGE, "stored_size": 2 * HUGE, "kind": CHUNKED}),
        (frame(b"x"), {"raw_size": WHOLE_LIMIT + 1, "kind": CHUNKED}),
        (frame(b"x"), {"kind": 9}),
        (frame(b"x"), {"type_num": 7}),
        (frame(b"x"), {"kind": BLOCK}),
        (frame(b"other bytes"), {}),
        (frame(b"x") + b"more", {}),
        (lying_frame(), {}),
        (lying_frame(), {"raw_size": WHOLE_LIMIT}),
        (b"", {}),
    ],
)
def test_an_entry_that_lies(forged: Forged, payload: bytes, lies: dict[str, int]) -> None:
    """Sizes and kinds that can't be true are refused before anything is allocated for them."""
    object_id = forged.add(b"x", payload, **lies)
    store = forged.publish()

    for read in (store.get_raw, lambda each: store.read_at(each, 0, 10)):
        with pytest.raises(CorruptObject, match=object_id.decode()):
            read(object_id)


@pytest.mark.parametrize(
    ("content", "payload", "lies"),
    [
        (b"x", frame(b"x") + bytes(16 << 20), {}),
        (b"x", frame(b"x"), {"stored_size": 16 << 20}),
        (bytes(WHOLE_LIMIT + 1), frame(bytes(WHOLE_LIMIT + 1)), {}),
    ],
    ids=["padded", "over the next entry", "more than is stored whole"],
)
def test_nothing_is_read_for_a_lie(
    forged: Forged,
    monkeypatch: pytest.MonkeyPatch,
    content: bytes,
    payload: bytes,
    lies: dict[str, int],
) -> None:
    """An entry longer than zstd makes one, or with more content than is stored whole, is not read."""
    object_id = forged.add(content, payload, **lies)
    forged.add(b"next", bytes(20 << 20))
    store = forged.publish()
    asked = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda *args: asked.append(args[1]) or pread(*args))

    with pytest.raises(CorruptObject, match=object_id.decode()):
        store.get_raw(object_id)
    assert asked == []


def test_content_of_another_id(forged: Forged) -> None:
    """Sound bytes under a wrong id are what fsck --full is for."""
    object_id = forged.add(b"x", frame(b"y"))
    store = forged.publish()

    assert list(store.verify(full=False)) == []
    assert [problem.kind for problem in store.verify(full=True)] == ["damaged_object"]
    assert object_id.decode() in next(store.verify(full=True)).what


def chunked_payload(
    content: bytes, raw_id: bytes, order: Callable[[list[int]], list[int]]
) -> bytes:
    """Frames and their table, whose rows may be in another order than the frames."""
    frames = [frame(content[at : at + FRAME_SIZE]) for at in range(0, len(content), FRAME_SIZE)]
    starts = [sum(map(len, frames[:number])) for number in range(len(frames))]
    rows = [
        encode_chunk(raw_id, number, starts[source], len(frames[source]))
        for number, source in enumerate(order(list(range(len(frames)))))
    ]
    return b"".join(frames + rows)


def test_frames_out_of_order(forged: Forged) -> None:
    """A chunk table may point anywhere within its payload: the table alone says what comes when."""
    content = b"".join(bytes([number]) * FRAME_SIZE for number in range(5))
    digest = new_hash(20, BLOB, len(content))
    digest.update(content)
    swapped = (
        content[FRAME_SIZE : 2 * FRAME_SIZE] + content[:FRAME_SIZE] + content[2 * FRAME_SIZE :]
    )
    payload = chunked_payload(swapped, digest.digest(), lambda order: [1, 0, *order[2:]])
    object_id = forged.add(content, payload, CHUNKED)

    assert (BLOB, content) == forged.publish().get_raw(object_id)


def test_a_row_of_another_object(forged: Forged) -> None:
    """A chunk table that was made for another object is refused, since its rows are bound to the id."""
    content = bytes(5 * FRAME_SIZE)
    object_id = forged.add(content, chunked_payload(content, b"?" * 20, list), CHUNKED)

    with pytest.raises(CorruptObject, match="the place of frame 0"):
        forged.publish().read_at(object_id, 0, 1)


@pytest.mark.parametrize("row", [(0, 1 << 30), (1 << 40, 100), (0, 3 << 20)])
def test_a_row_that_leads_out(forged: Forged, row: tuple[int, int]) -> None:
    """A chunk table's row that leaves the payload, or is longer than a frame, is not followed."""
    content = bytes(5 * FRAME_SIZE)
    digest = new_hash(20, BLOB, len(content))
    digest.update(content)
    frames = frame(bytes(FRAME_SIZE)) + bytes(8 << 20)
    rows = [encode_chunk(digest.digest(), number, *row) for number in range(5)]
    object_id = forged.add(content, frames + b"".join(rows), CHUNKED)

    with pytest.raises(CorruptObject, match="the place of frame 0"):
        forged.publish().get_raw(object_id)


def blob_id(content: bytes) -> bytes:
    digest = new_hash(20, BLOB, len(content))
    digest.update(content)
    return digest.digest()


def block_payload(bases: list[int], contents: list[bytes], dictionary: bytes) -> bytes:
    table = encode_table(blob_id(contents[0]), bases, [len(each) for each in contents])
    return table + frame(b"".join(contents), dictionary)


def test_a_chain_of_blocks(forged: Forged) -> None:
    """A block that needs another one's bytes is read through a chain of bases, up to a length."""
    text = b"".join(b"line %d\n" % number for number in range(2000))
    versions = [text + b"version %d\n" % number for number in range(BASE_DEPTH + 2)]
    offset = len(forged.data)
    ids = [forged.add(versions[0], frame(versions[0]))]
    for base, content in pairwise(versions):
        payload = block_payload([offset], [content], base)
        offset = len(forged.data)
        ids.append(forged.add(content, payload, BLOCK))
    store = forged.publish()

    assert forged.entries[1].stored_size < 100 < forged.entries[0].stored_size
    for object_id, content in zip(ids[:-1], versions, strict=False):
        assert (BLOB, content) == store.get_raw(object_id)
        assert content[50:70] == store.read_at(object_id, 50, 20)
    with pytest.raises(CorruptObject, match="too long"):
        ObjectStore(store.path).get_raw(ids[-1])  # another one, since this one still has its base


@pytest.mark.parametrize("back", [0, -1000, HUGE])
def test_a_base_that_is_not_earlier(forged: Forged, back: int) -> None:
    """A base at or behind the block itself would be a circle, and one that is no entry is none."""
    at = len(forged.data)
    object_id = forged.add(b"x", block_payload([max(0, at + back)], [b"x"], b"y"), BLOCK)

    with pytest.raises(CorruptObject, match="base"):
        forged.publish().get_raw(object_id)


@pytest.mark.parametrize(
    ("contents", "member", "why"),
    [
        ([b"one", b"two"], 2, "another object"),
        ([b"one", b"two"], 0, "another object"),
        ([b"one", b"other"], 1, "another object"),
    ],
)
def test_a_member_that_is_another(
    forged: Forged, contents: list[bytes], member: int, why: str
) -> None:
    """An index that points at the wrong object of a block, or behind its last one, is found out by the id."""
    size = sum(map(len, contents))
    forged.add(contents[0], block_payload([], contents, b""), BLOCK, raw_size=size)
    lying = forged.entries[0]._replace(id=blob_id(b"two"), raw_size=3, member=member)
    forged.entries = [lying]

    with pytest.raises(CorruptObject, match=why):
        forged.publish_blocks().get_raw(lying.id)


@pytest.mark.parametrize("at", range(0, 20, 3))
def test_a_damaged_table(forged: Forged, at: int) -> None:
    """No byte of a block's table can change without being noticed."""
    payload = block_payload([], [b"one", b"two"], b"")
    forged.add(b"one", flipped(payload, at, 1), BLOCK, raw_size=6)
    entry = forged.entries[0]
    forged.entries = [entry._replace(id=blob_id(b"two"), raw_size=3, member=1)]

    with pytest.raises(CorruptObject, match="table"):
        forged.publish_blocks().get_raw(blob_id(b"two"))


@pytest.mark.parametrize("count", [HUGE, (1 << 64) - 1])
def test_an_index_that_lies(sample: Sample, spare: Sample, count: int) -> None:
    """An index that says it holds 2^60 objects is refused by its length."""
    data = sample.index.read_bytes()
    header = data[:16] + struct.pack("<Q", count) + data[24:64]
    assert data[:68] == with_crc(data[:64])
    assert crc32(data[:64]) == struct.unpack("<I", data[64:68])[0]
    spare.pack.write_bytes(sample.pack.read_bytes())
    spare.index.write_bytes(with_crc(header) + data[68:])

    with pytest.raises(CorruptObject, match="its length is not what its header says"):
        ObjectStore(spare.path).get_raw(next(iter(sample.contents)))


def test_a_store_of_another_format(sample: Sample) -> None:
    """A SHA-1 pack in a SHA-256 store is refused, not misread."""
    store = ObjectStore(sample.path, object_format="sha256")

    assert list(store) == []
    assert [problem.kind for problem in store.verify(full=False)] == ["damaged_index"]
