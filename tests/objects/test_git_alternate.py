"""A .git/objects directory as an alternate: packed, loose, with deltas, and its own alternates."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from heddle.errors import CorruptObject
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
        assert not both.is_chunked(object_id)
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
