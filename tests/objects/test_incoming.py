"""Git packs on their way in: whatever stock git packs comes out with the same ids and bytes."""

from __future__ import annotations

import io
import os
import random
import subprocess
from pathlib import Path

import pytest

from heddle.objects import incoming
from heddle.objects.incoming import ObjectTooLarge, check_sizes, take_blobs, take_pack
from heddle.objects.store import ObjectStore


def _git(where: Path, *args: str, stdin: bytes = b"") -> bytes:
    command = ["git", "-C", str(where), *args]
    return subprocess.run(command, input=stdin, capture_output=True, check=True).stdout


def _contents(seed: int) -> list[bytes]:
    """Contents whose packs have everything: long and short, compressible and not, versions of one another."""
    chance = random.Random(seed)
    text = b"".join(b"line %d\n" % chance.randrange(1000) for _ in range(5_000))
    versions = [text]
    for _ in range(30):
        at = chance.randrange(len(text))
        versions.append(versions[-1][:at] + b"changed\n" + versions[-1][at:])
    lengths = [0, 1, 20, 255 << 10, 256 << 10, (256 << 10) + 1, 1 << 20, 5 << 20]
    return versions + [bytes(n) for n in lengths] + [chance.randbytes(n) for n in lengths]


@pytest.mark.parametrize("object_format", ["sha1", "sha256"])
@pytest.mark.parametrize("deltas", ["--delta-base-offset", "--no-delta-base-offset", "--depth=0"])
def test_what_git_packs(tmp_path: Path, object_format: str, deltas: str) -> None:
    """Every object of a pack of git's has its id and its bytes here, whichever way its deltas name their bases."""
    source = tmp_path / "source"
    source.mkdir()
    _git(source, "init", "-q", f"--object-format={object_format}")
    by_id = {}
    for content in _contents(len(deltas)):
        id = _git(source, "hash-object", "-w", "--stdin", stdin=content).strip()
        by_id[id] = content
    options = [] if deltas.startswith("--no") else [deltas]
    pack = tmp_path / "pack"
    pack.write_bytes(
        _git(source, "pack-objects", "--stdout", "-q", *options, stdin=b"\n".join(by_id))
    )
    store = ObjectStore.create(tmp_path / "objects", object_format=object_format)
    with pack.open("rb") as file, store.writer() as writer:
        taken = take_pack(file, store, writer)
        check_sizes(file, object_format, 5 << 20)
        writer.commit()

    assert taken.count == len(by_id)
    assert {each.hex().encode() for each in taken} == set(by_id)
    for id, content in by_id.items():
        assert store.get_raw(id) == (3, content)
    assert not list(store.verify(full=True))


def test_a_thin_pack(tmp_path: Path) -> None:
    """A delta against an object that is here already, and that is not in the pack."""
    source = tmp_path / "source"
    source.mkdir()
    _git(source, "init", "-q")
    old = os.urandom(10_000)
    new = old + b"more"
    store = ObjectStore.create(tmp_path / "objects")
    with store.writer() as writer:
        writer.add_blob(old)
        writer.commit()
    commits = []
    for content in (old, new):
        blob = _git(source, "hash-object", "-w", "--stdin", stdin=content).strip()
        tree = _git(source, "mktree", stdin=b"100644 blob %b\tf\n" % blob).strip()
        who = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
        parents = [word for each in commits for word in ("-p", each.decode())]
        made = _git(source, *who, "commit-tree", tree.decode(), "-m", "m", *parents)
        commits.append(made.strip())
    wanted = b"%b\n^%b\n" % (commits[1], commits[0])
    pack = tmp_path / "pack"
    pack.write_bytes(
        _git(source, "pack-objects", "--thin", "--revs", "--stdout", "-q", stdin=wanted)
    )

    assert pack.stat().st_size < 1_000

    with pack.open("rb") as file, store.writer() as writer:
        take_pack(file, store, writer)
        writer.commit()

    assert store.get_raw(blob) == (3, new)


@pytest.mark.parametrize("kept", [0, 60, 1 << 20])
@pytest.mark.parametrize("chunk", [1, 2, 3, 19, 64, 4096])
def test_wherever_a_read_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, kept: int
) -> None:
    """A pack is taken in whatever part of an entry, a delta's own lengths too, ends a read of the file.

    And whether deltas are kept until their bases are known, or some of them, or none.
    """
    source = tmp_path / "source"
    source.mkdir()
    _git(source, "init", "-q")
    versions = [b"%d\n" % number * 40 + bytes(range(256)) * 9 for number in range(5)]
    ids = [_git(source, "hash-object", "-w", "--stdin", stdin=each).strip() for each in versions]
    pack = tmp_path / "pack"
    pack.write_bytes(_git(source, "pack-objects", "--stdout", "-q", stdin=b"\n".join(ids)))
    store = ObjectStore.create(tmp_path / "objects")
    monkeypatch.setattr(incoming, "_CHUNK", chunk)
    monkeypatch.setattr(incoming, "_DELTAS_KEPT", kept)

    with pack.open("rb") as file, store.writer() as writer:
        take_pack(file, store, writer)
        check_sizes(file, "sha1", 5_000)
        with pytest.raises(ObjectTooLarge):
            check_sizes(file, "sha1", 2_000)
        writer.commit()

    assert pack.stat().st_size < 1_000  # there are deltas
    assert [store.get_raw(id)[1] for id in ids] == versions


def test_the_blobs_of_a_pack_that_is_cut_short(tmp_path: Path) -> None:
    """Wherever a pack ends, the blobs that came whole are stored, deltas too, and nothing else is."""
    source = tmp_path / "source"
    source.mkdir()
    _git(source, "init", "-q")
    versions = [b"%d\n" % number * 40 + bytes(range(256)) * 9 for number in range(4)]
    for number, content in enumerate([*versions, os.urandom(3_000)]):
        (source / ("f" if number < 4 else "g")).write_bytes(content)
        _git(source, "add", ".")
        who = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
        _git(source, *who, "commit", "-q", "-m", "m")
    whole = _git(source, "pack-objects", "--all", "--stdout", "-q", stdin=b"")
    listed = _git(source, "cat-file", "--batch-all-objects", "--batch-check").split(b"\n")
    blobs = {line.split()[0] for line in listed if b" blob " in line}
    assert len(blobs) == 5 and b" blob 2" in b"\n".join(listed)
    found = []
    for cut in (*range(0, len(whole), 97), len(whole)):
        store = ObjectStore.create(tmp_path / f"objects-{cut}")
        with store.writer() as writer:
            count = take_blobs(io.BytesIO(whole[:cut]), store, writer)
            writer.commit()
        assert set(store) <= blobs and len(set(store)) == count
        assert not list(store.verify(full=True))
        found.append(count)
        with store.writer() as writer:
            assert take_blobs(io.BytesIO(whole[:cut]), store, writer) == 0

    assert found == sorted(found) and found[0] == 0 and found[-1] == 5
    assert set(found) == {0, 1, 2, 3, 4, 5}


def test_damage_ends_what_is_kept(tmp_path: Path) -> None:
    """Behind a wrong byte nothing more is taken from a pack, and nothing wrong before it."""
    source = tmp_path / "source"
    source.mkdir()
    _git(source, "init", "-q")
    contents = [os.urandom(2_000) for _ in range(8)]
    ids = [_git(source, "hash-object", "-w", "--stdin", stdin=each).strip() for each in contents]
    whole = _git(source, "pack-objects", "--stdout", "-q", stdin=b"\n".join(ids))
    middle = len(whole) // 2
    store = ObjectStore.create(tmp_path / "objects")
    with store.writer() as writer:
        damaged = whole[:middle] + bytes(64) + whole[middle + 64 :]
        count = take_blobs(io.BytesIO(damaged), store, writer)
        writer.commit()

    assert 0 < count < 8 and set(store) <= set(ids)
    assert not list(store.verify(full=True))
