"""Git packs that are kept as they came: what stock git packs reads back as it is, whole, damaged and thin."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import pytest

from heddle.errors import CorruptObject, ObjectMissing, StorageError
from heddle.objects import incoming, packfile
from heddle.objects.catalog import Catalog
from heddle.objects.incoming import DamagedPack, ObjectTooLarge
from heddle.objects.keeping import Keeper, keep_copy
from heddle.objects.layout import OF_GIT
from heddle.objects.links import Links
from heddle.objects.reach import Chain
from heddle.objects.repack import Plan, Repacker
from heddle.objects.repair import broken_packs, object_format, rewrite
from heddle.objects.store import ObjectStore

FORMATS = ("sha1", "sha256")
LARGE = 5 << 20


class Source:
    """A git repository whose objects are put into packs."""

    def __init__(self, path: Path, object_format: str = "sha1") -> None:
        self.path = path
        path.mkdir()
        self.git("init", "-q", f"--object-format={object_format}")

    def git(self, *words: str, stdin: bytes = b"") -> bytes:
        command = ["git", "-C", str(self.path), "-c", "core.bigFileThreshold=1g", *words]
        return subprocess.run(command, input=stdin, capture_output=True, check=True).stdout

    def blob(self, content: bytes) -> bytes:
        return self.git("hash-object", "-w", "--stdin", stdin=content).strip()

    def pack(self, *words: str, stdin: bytes) -> bytes:
        return self.git("pack-objects", "--stdout", "-q", *words, stdin=stdin)


def contents() -> list[bytes]:
    """Versions of one another, large ones too, and contents that have nothing in common."""
    chance = random.Random(7)
    versions = [b"".join(b"line %d\n" % chance.randrange(1000) for _ in range(5_000))]
    large = [chance.randbytes(LARGE)]
    for number in range(12):
        at = chance.randrange(len(versions[-1]))
        versions.append(versions[-1][:at] + b"changed\n" + versions[-1][at:])
        if number < 3:
            large.append(large[-1] + b"more %d\n" % number)
    return versions + large + [b"", b"x", bytes(300_000), bytes(LARGE), chance.randbytes(70_000)]


def keep(store: ObjectStore, pack: bytes, **options: object) -> str:
    """Keep a pack that has come; returns its name."""
    path = store.path / "incoming-test"
    path.write_bytes(pack)
    with path.open("r+b", buffering=0) as file, store.hold(), Keeper(store, file, path) as keeper:
        keeper.take(**options)  # type: ignore[arg-type]
        return keeper.commit()


@pytest.fixture
def versions(tmp_path: Path, store: ObjectStore) -> tuple[dict[bytes, bytes], Path]:
    """Six versions of a file in a kept pack, each a delta against the one before but the first: (by id, pack)."""
    source = Source(tmp_path / "source")
    made = [random.Random(3).randbytes(4_000)]
    while len(made) < 6:
        made.append(made[-1] + b"more %d\n" % len(made))
    by_id = {source.blob(each): each for each in made}
    name = keep(store, source.pack("--depth=1", stdin=b"\n".join(by_id)))
    return by_id, store.path / "packs" / f"{name}.pack"


@pytest.mark.parametrize("object_format", FORMATS)
@pytest.mark.parametrize("deltas", ["--delta-base-offset", "--no-delta-base-offset", "--depth=0"])
def test_what_git_packs(tmp_path: Path, object_format: str, deltas: str) -> None:
    """Of a kept pack every object reads as git has it, whole and in parts, however its deltas name their bases."""
    source = Source(tmp_path / "source", object_format)
    by_id = {source.blob(each): each for each in contents()}
    pack = source.pack(*[] if deltas.startswith("--no") else [deltas], stdin=b"\n".join(by_id))
    store = ObjectStore.create(tmp_path / "objects", object_format=object_format)

    name = keep(store, pack)

    assert (store.path / "packs" / f"{name}.pack").read_bytes() == pack
    assert set(store) == set(by_id)
    for id, content in by_id.items():
        assert store.get_raw(id) == (3, content)
        assert (store.kind(id), store.size(id)) == (3, len(content))
        assert store.is_chunked(id) == (len(content) > 4 << 20)
        assert b"".join(store.iter_blob(id, 700_001)) == content
        assert store.read_at(id, 4_321, 99_999) == content[4_321 : 4_321 + 99_999]
    (index,) = store.packs_directory.indexes()
    assert {entry.kind for entry in index} == {OF_GIT}
    assert sum(entry.stored_size for entry in index) + 12 + store.id_length == len(pack)
    assert not list(store.verify(full=True))


@pytest.mark.parametrize("chunk", [1, 3, 64, 4096])
def test_wherever_a_read_ends(
    tmp_path: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """A pack is kept whatever part of an entry ends a read of the file, and whether deltas are held or read again."""
    source = Source(tmp_path / "source")
    by_id = {
        source.blob(each): each for each in (b"%d\n" % n * 40 + b"abc" * 900 for n in range(5))
    }
    monkeypatch.setattr(incoming, "_CHUNK", chunk)
    monkeypatch.setattr(incoming, "_DELTAS_KEPT", 60)

    keep(store, source.pack(stdin=b"\n".join(by_id)))

    assert {id: store.get_raw(id)[1] for id in by_id} == by_id


@pytest.mark.parametrize("object_format", FORMATS)
def test_a_thin_pack_gets_its_bases(tmp_path: Path, object_format: str) -> None:
    """A delta against what is here already: its base is added, so that the pack needs no other; git finds it sound."""
    source = Source(tmp_path / "source", object_format)
    store = ObjectStore.create(tmp_path / "objects", object_format=object_format)
    old = os.urandom(10_000)
    with store.writer() as writer:
        writer.add_blob(old)
        first = writer.commit()

    name = keep(store, thin_pack(source, old, old + b"more"), links=Links(store.id_length))
    assert first is not None
    store.packs_directory.remove([first])

    assert store.get_raw(source.blob(old + b"more")) == (3, old + b"more")
    assert store.get_raw(source.blob(old)) == (3, old)
    kept = tmp_path / "kept.pack"
    shutil.copyfile(store.path / "packs" / f"{name}.pack", kept)
    source.git("index-pack", "--strict", str(kept))
    assert not list(store.verify(full=True))


def test_a_thin_pack_whose_base_is_nowhere(tmp_path: Path, store: ObjectStore) -> None:
    """A delta against what is neither in the pack nor here: said, and nothing is kept."""
    source = Source(tmp_path / "source")
    base = os.urandom(5_000)

    with pytest.raises(ObjectMissing):
        keep(store, thin_pack(source, base, base + b"more"))

    assert list(store) == []


def thin_pack(source: Source, old: bytes, new: bytes) -> bytes:
    """A pack of a commit that changes a file, with the file as a delta against what is not in it."""
    commits: list[bytes] = []
    for content in (old, new):
        tree = source.git("mktree", stdin=b"100644 blob %b\tf\n" % source.blob(content)).strip()
        who = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
        parents = [word for each in commits for word in ("-p", each.decode())]
        made = source.git(*who, "commit-tree", tree.decode(), "-m", "m", *parents)
        commits.append(made.strip())
    pack = source.pack("--thin", "--revs", stdin=b"%b\n^%b\n" % (commits[1], commits[0]))
    assert len(pack) < 1_000
    return pack


def test_what_it_has_before_it_is_kept(tmp_path: Path, store: ObjectStore) -> None:
    """Whoever checks whether a pack is whole can read it, and nobody else sees it."""
    source = Source(tmp_path / "source")
    id = source.blob(b"content")
    path = store.path / "incoming-test"
    path.write_bytes(source.pack(stdin=id))

    with path.open("r+b", buffering=0) as file, Keeper(store, file, path) as keeper:
        assert [each.hex().encode() for each in keeper.take()] == [id]

        assert id in keeper and b"1" * 40 not in keeper and b"no id" not in keeper
        assert (keeper.kind(id), keeper.get_raw(id)) == (3, (3, b"content"))
        with pytest.raises(KeyError):
            keeper.get_raw(b"1" * 40)
        assert id not in store


@pytest.mark.parametrize("where", [3, 20, -30, -5])
def test_a_damaged_pack_is_not_kept(tmp_path: Path, store: ObjectStore, where: int) -> None:
    """A wrong byte anywhere in what came: an error, and no pack."""
    source = Source(tmp_path / "source")
    pack = bytearray(source.pack(stdin=source.blob(os.urandom(500))))
    pack[where] ^= 0x10

    with pytest.raises((DamagedPack, ObjectTooLarge)):
        keep(store, bytes(pack))

    assert os.listdir(store.path / "packs") == []


def test_what_is_too_large(tmp_path: Path, store: ObjectStore) -> None:
    """An object over the limit, one that a delta makes too, is refused."""
    source = Source(tmp_path / "source")
    ids = [source.blob(bytes(range(256)) * 40 + bytes(n)) for n in (0, 900)]

    with pytest.raises(ObjectTooLarge):
        keep(store, source.pack(stdin=b"\n".join(ids)), max_bytes=11_000)

    keep(store, source.pack(stdin=b"\n".join(ids)), max_bytes=11_140)
    assert set(store) == set(ids)


def chain_of(count: int) -> bytes:
    """A pack of a blob of 1,000 bytes and so many more, each the one before and a letter."""
    entries = [b"\xb8\x3e" + zlib.compress(bytes(1_000))]
    for size in range(1_000, 1_000 + count):
        head = b"".join(bytes([each & 0x7F | 0x80, each >> 7]) for each in (size, size + 1))
        delta = head + b"\xb0" + size.to_bytes(2, "little") + b"\x01x"
        back = len(entries[-1])
        entries.append(bytes([0x60 | len(delta), back]) + zlib.compress(delta))
    pack = b"PACK" + struct.pack(">II", 2, len(entries)) + b"".join(entries)
    return pack + hashlib.sha1(pack).digest()


def test_a_chain_that_no_reader_would_follow(store: ObjectStore) -> None:
    """Deltas on deltas are kept as long as they can be read, and more of them are refused."""
    with pytest.raises(DamagedPack, match="chain"):
        keep(store, chain_of(4097))

    keep(store, chain_of(4096))

    last = hashlib.sha1(b"blob 5096\0" + bytes(1_000) + b"x" * 4096).hexdigest()
    assert store.get_raw(last.encode())[1] == bytes(1_000) + b"x" * 4096


def test_another_object_with_the_same_id(
    tmp_path: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is here stays what it is: a pack with something else under its id is refused, the same thing is not."""
    source = Source(tmp_path / "source")
    id = source.blob(b"the same")
    pack = source.pack(stdin=id)
    store.add_object(_Blob(b"the same"))  # type: ignore[arg-type]
    keep(store, pack)

    monkeypatch.setattr(ObjectStore, "iter_blob", lambda *_: iter([b"not the same"]))
    with pytest.raises(DamagedPack, match=id.decode()):
        keep(store, pack)


def test_the_same_object_where_it_is_damaged(tmp_path: Path, store: ObjectStore) -> None:
    """What comes takes the place of what can't be read here."""
    source = Source(tmp_path / "source")
    id = source.blob(b"the same")
    store.add_object(_Blob(b"the same"))  # type: ignore[arg-type]
    (path,) = (store.path / "packs").glob("*.pack")
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:20])

    keep(store, source.pack(stdin=id))

    assert store.get_raw(id) == (3, b"the same")


class _Blob:
    type_num = 3

    def __init__(self, content: bytes) -> None:
        self.as_raw_string = lambda: content


# damage


def test_damage_is_an_error_and_nothing_else(
    versions: tuple[dict[bytes, bytes], Path], store: ObjectStore
) -> None:
    """Whichever byte of a kept pack is wrong, an object is right or the error names pack and object."""
    by_id, path = versions
    whole = path.read_bytes()
    path.chmod(0o600)
    for at in range(12, len(whole) - 20, 37):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :])
        store.reload()
        wrong = []
        for id, content in by_id.items():
            try:
                assert store.get_raw(id) == (3, content)
            except CorruptObject as error:
                assert path.name in error.message and id.decode() in error.message
                wrong.append(bytes.fromhex(id.decode()))
        found = [each for each in store.verify(full=True) if each.kind == "damaged_object"]
        assert sorted(wrong) == sorted(each.id for each in found if each.id is not None) != []
        assert "damaged_pack" in {each.kind for each in store.verify(full=False)}


@pytest.mark.parametrize("deltas", ["--delta-base-offset", "--no-delta-base-offset"])
@pytest.mark.parametrize("missing", [True, False])
def test_an_index_is_made_again(tmp_path: Path, deltas: str, missing: bool) -> None:
    """The index of a kept pack is derived from the pack, byte for byte."""
    source = Source(tmp_path / "source")
    store = ObjectStore.create(tmp_path / "objects")
    ids = [source.blob(each) for each in contents()]
    name = keep(store, source.pack(*[deltas] * (deltas[2] == "d"), stdin=b"\n".join(ids)))
    index = store.path / "packs" / f"{name}.idx"
    before = index.read_bytes()
    if missing:
        index.unlink()
    else:
        index.chmod(0o600)
        index.write_bytes(before[:900] + bytes(40) + before[940:])
    store.reload()

    assert [each.kind for each in store.verify(full=False)] == [
        "missing_index" if missing else "damaged_index"
    ]
    with pytest.raises(CorruptObject, match=r"index"):
        store.get_raw(ids[0]) and [store.get_raw(id) for id in ids]
    assert store.reindex() == [name]

    assert index.read_bytes() == before
    assert not list(store.verify(full=True))


@pytest.mark.parametrize("index", ["whole", "missing"])
@pytest.mark.parametrize("hole", ["first bytes", "middle", "end"])
def test_what_is_sound_of_a_damaged_pack(
    versions: tuple[dict[bytes, bytes], Path], store: ObjectStore, hole: str, index: str
) -> None:
    """A repair writes anew what a hole has left, all but the objects in it and those that are made of them."""
    by_id, path = versions
    whole = path.read_bytes()
    path.chmod(0o600)
    places = sorted((entry.offset, entry.id) for entry in store.packs_directory.indexes()[0])
    at, lost = {
        "first bytes": (4, set[bytes]()),
        "middle": (places[2][0] + 3, {places[2][1]}),
        "end": (places[5][0], {places[5][1]}),
    }[hole]
    path.write_bytes(whole[:at] + b"\xff" * 8 + whole[at + 8 :])
    if index == "missing":
        path.with_suffix(".idx").unlink()
    store.reload()

    broken = list(broken_packs(store.path / "packs", store.id_length))
    count, _ = rewrite(store, broken, lambda path, why: path.unlink(missing_ok=True))

    assert count == len(by_id) - len(lost)
    kept = {id: content for id, content in by_id.items() if bytes.fromhex(id.decode()) not in lost}
    assert {id: store.get_raw(id)[1] for id in store} == kept
    assert not list(store.verify(full=True))


def test_what_the_disk_can_not_read(
    versions: tuple[dict[bytes, bytes], Path],
    store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A part of a pack that the disk can't read costs the objects in it, and no check of the others."""
    by_id, path = versions
    places = sorted((entry.offset, entry.id) for entry in store.packs_directory.indexes()[0])
    bad, lost = places[3][0] + 5, places[3][1]
    pread = os.pread

    def failing(fd: int, size: int, offset: int) -> bytes:
        if offset <= bad < offset + size and os.readlink(f"/proc/self/fd/{fd}") == str(path):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(fd, size, offset)

    monkeypatch.setattr(packfile, "_SECTOR", 8)
    monkeypatch.setattr(os, "pread", failing)
    found = [each.id for each in store.verify(full=True) if each.kind == "damaged_object"]
    assert found == [lost]
    store.reload()
    with pytest.raises(StorageError):
        store.get_raw(lost)
    pack = store.packs_directory.open(store.packs_directory.indexes()[0])
    everything = {bytes.fromhex(id.decode()) for id in by_id}
    assert {entry.id for entry in pack.scan()} == everything - {lost}


def test_the_format_is_told_by_an_index(
    versions: tuple[dict[bytes, bytes], Path], store: ObjectStore
) -> None:
    """Where every pack is git's, which says no length of ids, the index of one does."""
    assert object_format(store.path / "packs") == "sha1"


# becoming one of ours


def test_collecting(tmp_path: Path, store: ObjectStore) -> None:
    """The objects of a kept pack become blocks, and what is large is chunked, without being held whole."""
    source = Source(tmp_path / "source")
    by_id = {source.blob(each): each for each in contents()}
    old = keep(store, source.pack(stdin=b"\n".join(by_id)))
    chain = Chain(3, b"f")
    large = [bytes.fromhex(id.decode()) for id in by_id if store.is_chunked(id)]
    chain.ids = [raw for raw in map(bytes.fromhex, map(bytes.decode, by_id)) if raw not in large]

    found = store.packs_directory
    Repacker(found, Catalog(store, found.indexes())).write(Plan(large, [chain]))
    store.packs_directory.remove([old])

    assert {id: store.get_raw(id)[1] for id in by_id} == by_id
    assert OF_GIT not in {entry.kind for each in store.packs_directory.indexes() for entry in each}
    assert not list(store.verify(full=True))


def test_a_copy_is_kept(
    tmp_path: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else's pack stays theirs, whether or not the file system can share its bytes."""
    source = Source(tmp_path / "source")
    path = tmp_path / "pack"
    for number, supported in enumerate((True, False)):
        id = source.blob(os.urandom(3_000))
        path.write_bytes(source.pack(stdin=id))
        if not supported:
            monkeypatch.setattr(os, "copy_file_range", _unsupported)
        keep_copy(path, store)

        assert id in store and path.exists()
        assert len(os.listdir(store.path / "packs")) == 2 * (number + 1)


def _unsupported(*_: object) -> int:
    raise OSError(95, "Operation not supported")


def test_the_umask_holds(tmp_path: Path, store: ObjectStore) -> None:
    """A pack that came as nobody else's file gets the mode of every other one."""
    source = Source(tmp_path / "source")
    before = os.umask(0o027)
    try:
        name = keep(store, source.pack(stdin=source.blob(b"x")))
    finally:
        os.umask(before)

    modes = {path.stat().st_mode & 0o777 for path in (store.path / "packs").glob(f"{name}.*")}
    assert modes == {0o440}
