"""A .git/objects directory as an alternate: packed, loose, with deltas, and its own alternates."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from heddle.errors import CorruptObject, StorageError
from heddle.objects import askgit, spool
from heddle.objects.gitdir import GitObjects
from heddle.objects.gitpack import GitIndex
from heddle.objects.layout import WHOLE_LIMIT
from heddle.objects.store import ObjectStore

Git = Callable[..., bytes]


@pytest.fixture(params=["sha1", "sha256"])
def both(request: pytest.FixtureRequest, git: Git, tmp_path: Path) -> ObjectStore:
    """A store with a git directory as alternate in which objects are packed (as deltas too) and loose."""
    git("init", "-q", f"--object-format={request.param}", "-b", "main")
    file = tmp_path / "git" / "file"
    lines = [b"line %d\n" % (number * 7919) for number in range(3000)]
    source = random.Random(1)
    noise = source.randbytes(50_000)
    often = [1.04**each for each in range(256)]
    source.shuffle(often)
    for number in range(8):
        lines[number * 100] = b"changed\n" * number
        file.write_bytes(b"".join(lines))
        # New bytes of every value, some of them often: deflate begins such a delta with long tables.
        own = bytes(source.choices(range(256), often, k=9000))
        (tmp_path / "git" / "noise").write_bytes(noise + own)
        git("add", ".")
        git("commit", "-q", "-m", f"commit {number}")
        if number == 5:
            git("tag", "-a", "-m", "a tag", "v1")
            git("repack", "-q", "-a", "-d", "-f")
    store = ObjectStore.create(tmp_path / "objects", object_format=request.param)
    store.add_alternate(tmp_path / "git" / ".git" / "objects")
    return store


def test_every_object(both: ObjectStore, git: Git) -> None:
    """Each object's type, size and content are what git says of it, packed or loose."""
    listed = git("cat-file", "--batch-all-objects", "--batch-check").split(b"\n")[:-1]
    names = {1: b"commit", 2: b"tree", 3: b"blob", 4: b"tag"}

    assert {line.split()[0] for line in listed} == set(both)
    for line in listed:
        object_id, name, size = line.split()
        assert (name, int(size)) == (names[both.kind(object_id)], both.size(object_id))
        content = git("cat-file", name.decode(), object_id.decode())
        assert content == both.get_raw(object_id)[1]
        assert content[1000:1010] == both.read_at(object_id, 1000, 10)
        assert content == b"".join(both.iter_blob(object_id, 999))
        assert (names[3] == name and int(size) > WHOLE_LIMIT) == both.is_chunked(object_id)
        assert both.holds(bytes.fromhex(object_id.decode()))
        assert object_id in list(both.iter_prefix(object_id[:8]))


def test_deltas_were_there(both: ObjectStore, git: Git, tmp_path: Path) -> None:
    """The fixture is what it claims: some objects are deltas in the pack, some are loose."""
    count = dict(line.split(b": ") for line in git("count-objects", "-v").splitlines())
    (index,) = (tmp_path / "git/.git/objects/pack").glob("*.idx")

    assert int(count[b"count"]) > 0 < int(count[b"in-pack"])
    assert b"chain length = 1" in git("verify-pack", "-v", index)


def test_nothing_is_copied(both: ObjectStore, git: Git, tmp_path: Path) -> None:
    """Adding what the alternate has stores nothing."""
    with both.writer() as writer:
        writer.add_blob((tmp_path / "git" / "file").read_bytes())

        assert None is writer.commit()


def test_what_git_adds_later(both: ObjectStore, git: Git) -> None:
    """An object that git stores while we have its directory open is found."""
    assert b"0" * 2 * both.id_length not in both
    object_id = git("hash-object", "-w", "--stdin", input=b"later").strip()

    assert both.get_raw(object_id)[1] == b"later"
    git("repack", "-q", "-a", "-d")
    assert object_id in both
    with pytest.raises(KeyError):
        both.size(b"0" * 2 * both.id_length)


def test_an_alternate_of_the_alternate(both: ObjectStore, git: Git, tmp_path: Path) -> None:
    """What git itself borrows from elsewhere is found through it."""
    git("clone", "-q", "--shared", ".", tmp_path / "clone")
    store = ObjectStore.create(tmp_path / "third", object_format=both.format_name)
    store.add_alternate(tmp_path / "clone" / ".git" / "objects")
    object_id = git("rev-parse", "main").strip()

    assert both.get_raw(object_id) == store.get_raw(object_id)
    assert both.size(object_id) == store.size(object_id)
    assert store.holds(bytes.fromhex(object_id.decode()))


def test_a_damaged_loose_object(both: ObjectStore, git: Git, tmp_path: Path) -> None:
    """A loose object that is not what git wrote is an error that names it and its directory."""
    object_id = git("hash-object", "-w", "--stdin", input=b"to be damaged").strip().decode()
    path = tmp_path / "git/.git/objects" / object_id[:2] / object_id[2:]
    path.chmod(0o644)
    path.write_bytes(b"not zlib at all")

    for read in (both.get_raw, both.size, both.kind):
        with pytest.raises(CorruptObject, match=object_id):
            read(object_id.encode())


# packs as git can make them


def objects_of(tmp_path: Path) -> Path:
    return tmp_path / "git" / ".git" / "objects"


def everything(store: ObjectStore) -> dict[bytes, tuple[int, bytes]]:
    return {object_id: store.get_raw(object_id) for object_id in store}


@pytest.mark.parametrize("version", ["1", "2", "2,0x40"])
def test_every_version_of_an_index(
    both: ObjectStore, git: Git, tmp_path: Path, version: str
) -> None:
    """Version 1, version 2, and version 2 with offsets of 64 bits give the same objects."""
    if version == "1" and both.format_name == "sha256":
        version = "2"  # git has no version 1 with these ids
    expected = everything(both)
    git("repack", "-q", "-a", "-d")
    (pack,) = (objects_of(tmp_path) / "pack").glob("*.pack")
    pack.with_suffix(".idx").unlink()
    git("index-pack", f"--index-version={version}", pack)

    both.close()

    assert expected == everything(both)
    assert GitIndex(pack.with_suffix(".idx"), both.id_length).count == len(expected)


def test_bases_by_name(both: ObjectStore, git: Git) -> None:
    """Deltas that name their bases, as a fetch may bring them, give the same objects."""
    expected = everything(both)
    git("-c", "repack.useDeltaBaseOffset=false", "repack", "-q", "-a", "-d", "-f")

    assert expected == everything(both)


def test_a_multi_pack_index(both: ObjectStore, git: Git) -> None:
    """A multi-pack-index changes nothing, be it up to date or older than the packs."""
    expected = everything(both)
    git("repack", "-q")
    git("multi-pack-index", "write")
    both.close()

    assert expected == everything(both)

    git("repack", "-q", "-a", "-d")

    assert expected == everything(both)


def test_packs_go_while_they_are_open(both: ObjectStore, git: Git) -> None:
    """A repack between a look at the directory and a read is not noticed by the reader."""
    ids = list(both)
    kinds = [both.kind(object_id) for object_id in ids]
    git("repack", "-q", "-a", "-d", "-f", "--depth=1")
    git("prune-packed")

    assert kinds == [both.kind(object_id) for object_id in ids]
    assert kinds == [both.get_raw(object_id)[0] for object_id in ids]


def test_a_miss_costs_no_listing(
    both: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asking for what git does not have lists no directory of its a second time."""
    git_objects = GitObjects(objects_of(tmp_path), both.format_name)
    absent = [bytes([1, number]) * (both.id_length // 2) for number in range(100)]
    long_ago = 1_000_000_000
    os.utime(objects_of(tmp_path) / "pack", (long_ago, long_ago))
    assert not git_objects.holds(absent[0]) and not git_objects.contains(absent[0])
    listed: list[object] = []

    with monkeypatch.context() as watched:
        watched.setattr(os, "listdir", listed.append)
        found = [*map(git_objects.holds, absent), *map(git_objects.contains, absent)]

    assert (any(found), listed) == (False, [])


def test_packs_that_come_during_a_lookup(
    both: ObjectStore, git: Git, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another thread finds in a new pack while this one looks into the old ones stays found."""
    git("repack", "-q")  # two packs
    objects = GitObjects(objects_of(tmp_path), both.format_name)
    packs = objects._packs.all()
    new = git("hash-object", "-w", "--stdin", input=b"new").strip()
    raw_id = bytes.fromhex(new.decode())
    find = GitIndex.find

    def finds(index: GitIndex, wanted: bytes) -> int | None:
        if index is packs[-1].index and wanted != raw_id:
            git("pack-objects", "-q", objects_of(tmp_path) / "pack" / "pack", input=new)
            git("prune-packed")
            assert objects.contains(raw_id)
        return find(index, wanted)

    monkeypatch.setattr(GitIndex, "find", finds)
    assert objects.contains(next(packs[-1].index.ids()))

    assert len(packs) == 2
    assert objects.holds(raw_id) and objects.contains(raw_id)


# large blobs


@pytest.fixture(params=["packed", "a delta", "loose"])
def large(request: pytest.FixtureRequest, git: Git, tmp_path: Path) -> tuple[bytes, bytes]:
    """The id and content of a blob of 5 MB, stored in one of git's ways."""
    git("init", "-q")
    source = random.Random(9)
    lines = [b"%d %d\n" % (number, source.randrange(1 << 60)) for number in range(230_000)]
    found = [(git("hash-object", "-w", "--stdin", input=b"".join(lines)).strip(), b"".join(lines))]
    for version in range(1, 3):
        lines[version * 1000] = b"changed\n" * version
        del lines[version * 70_000 : version * 70_010]
        content = b"".join(lines)
        found.append((git("hash-object", "-w", "--stdin", input=content).strip(), content))
    if request.param == "loose":
        return found[0]
    names = b"".join(id + b" file\n" for id, _ in found)
    git("pack-objects", "-q", objects_of(tmp_path) / "pack" / "pack", input=names)
    git("prune-packed")
    (index,) = (objects_of(tmp_path) / "pack").glob("*.idx")
    said = [line.split() for line in git("verify-pack", "-v", index).splitlines()]
    depths = {line[0]: int(line[5]) if len(line) > 5 else 0 for line in said if len(line[0]) == 40}
    deep, whole = max(depths, key=depths.__getitem__), min(depths, key=depths.__getitem__)
    assert depths[deep] > 1 > depths[whole]
    wanted = deep if request.param == "a delta" else whole
    return wanted, dict(found)[wanted]


def test_a_large_blob_is_read_in_parts(large: tuple[bytes, bytes], tmp_path: Path) -> None:
    """Any part of a large blob is what git has there, wherever reading begins."""
    object_id, content = large
    store = ObjectStore.create(tmp_path / "objects")
    store.add_alternate(objects_of(tmp_path))

    assert store.is_chunked(object_id)
    for offset in (4_900_001, 0, 5, len(content) - 3, len(content), len(content) + 10, 4_000_000):
        assert content[offset : offset + 70_000] == store.read_at(object_id, offset, 70_000)
    assert content == b"".join(store.iter_blob(object_id)) == store.get_raw(object_id)[1]
    assert {path.name for path in (tmp_path / "objects").iterdir()} == {"packs", "alternates"}


def test_a_large_blob_is_inflated_once(
    large: tuple[bytes, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading all of a large blob in small parts inflates no byte of it twice, and not before it is asked for."""
    object_id, content = large
    objects = GitObjects(objects_of(tmp_path), "sha1")
    written: list[int] = []
    pwrite = os.pwrite

    def counting(fd: int, data: bytes, offset: int) -> int:
        written.append(len(data))
        return pwrite(fd, data, offset)

    assert objects.read_at(object_id, 0, 10) == content[:10]
    monkeypatch.setattr(os, "pwrite", counting)
    monkeypatch.setattr(spool, "_temporary_file", None)  # a second one would fail
    step = 1 << 16
    read = [objects.read_at(object_id, at, step) for at in range(0, len(content), step)]

    assert content == b"".join(read)
    assert len(content) - 2 * (1 << 20) < sum(written) < len(content)


def test_a_full_disk_loses_no_byte_of_a_large_blob(
    large: tuple[bytes, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the temporary file can't grow the read is an error; when it can again, the bytes are right."""
    object_id, content = large
    objects = GitObjects(objects_of(tmp_path), "sha1")
    assert objects.read_at(object_id, 0, 10) == content[:10]

    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", _no_space)
        with pytest.raises(StorageError, match="No space left"):
            objects.read_at(object_id, 4_900_000, 10)

    assert objects.read_at(object_id, 4_900_000, 10) == content[4_900_000:4_900_010]


def _no_space(fd: int, data: bytes, offset: int) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# damage


def test_any_damage_of_a_pack_is_named_or_harmless(
    both: ObjectStore, git: Git, tmp_path: Path
) -> None:
    """Whatever byte of a pack or its index changes, an object is right, or an error names it."""
    expected = everything(both)
    git("repack", "-q", "-a", "-d")
    git("prune-packed")
    (pack,) = (objects_of(tmp_path) / "pack").glob("*.pack")
    source = random.Random(2)
    failures = 0
    for path in (pack, pack.with_suffix(".idx")):
        path.chmod(0o644)
        sound = path.read_bytes()
        for _ in range(40):
            damaged = bytearray(sound)
            damaged[source.randrange(len(damaged))] ^= 1 << source.randrange(8)
            path.write_bytes(damaged[: source.choice([len(damaged), source.randrange(len(sound))])])
            both.close()
            failures += check_damaged(both, expected)
        path.write_bytes(sound)
    both.close()

    assert failures > 100
    assert expected == everything(both)


def check_damaged(store: ObjectStore, expected: dict[bytes, tuple[int, bytes]]) -> int:
    """Read everything; returns how many objects could not be read."""
    failures = 0
    for object_id, right in expected.items():
        for read in (store.get_raw, store.kind, store.size):
            try:
                got = read(object_id)
            except CorruptObject as error:
                assert object_id.decode() in error.message
                failures += 1
            except KeyError:
                failures += 1  # a damaged index does not know all that is in the pack
            else:
                assert read != store.get_raw or right == got
    return failures


@pytest.mark.parametrize("packed", [0, 600, 1100, 1200])
def test_sizes_of_very_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: int) -> None:
    """Stock git is asked for the sizes of very many objects in packs; where it can't be, they come one by one."""
    run = partial(subprocess.run, cwd=tmp_path, check=True, capture_output=True, text=True)
    run(["git", "init", "-q"])
    contents = [b"%d" % number * (number % 9) for number in range(1200)]
    for number, content in enumerate(contents):
        (tmp_path / f"{number}").write_bytes(content)
    if packed:
        run(["git", "add", *map(str, range(packed))])
        run(["git", "repack", "-adq"])
    run(["git", "add", "."])
    ids = [line.split()[1] for line in run(["git", "ls-files", "-s"]).stdout.splitlines()]
    names = [line.split("\t")[1] for line in run(["git", "ls-files", "-s"]).stdout.splitlines()]
    expected = [len(contents[int(name)]) for name in names]
    raw_ids = [bytes.fromhex(each) for each in ids]

    def sizes() -> list[int]:
        store = ObjectStore.create(tmp_path / os.urandom(4).hex())
        store.add_alternate(tmp_path / ".git/objects")
        with store.asking_sizes([*raw_ids, bytes(20)]) as told:
            told()
        return store.sizes(raw_ids)

    asked: list[object] = []
    ask = askgit.asking_git
    with monkeypatch.context() as patch:
        patch.setattr(
            askgit, "asking_git", lambda *given, **more: asked.append(given) or ask(*given, **more)
        )
        assert sizes() == expected
    assert bool(asked) == (packed > 1000)
    for name, value in (("PATH", "/nowhere"), ("TMPDIR", "/proc")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            patch.setattr(tempfile, "tempdir", None)
            assert sizes() == expected
