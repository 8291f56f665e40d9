"""What objects refer to, noted as they come by: enough to tell that nothing is missing, or that a walk has to tell."""

from __future__ import annotations

import hashlib

import pytest

from heddle.objects.gitformat import BLOB, COMMIT, TAG, TREE, encode_tree
from heddle.objects.links import Links

Objects = dict[bytes, tuple[int, bytes]]


def id_of(number: int) -> bytes:
    return hashlib.sha1(b"%d" % number).digest()


BELOW, ROOT, FIRST, SECOND, TAGGED = (id_of(number) for number in range(5))
ONE, TWO, MODULE = (id_of(number) for number in (10, 11, 12))


@pytest.fixture
def objects() -> Objects:
    """A tag of a commit with a parent; its tree has a file, a submodule, and a directory with a link."""
    below = encode_tree([(b"link", 0o120000, TWO.hex().encode())])
    root = encode_tree(
        [
            (b"dir", 0o040000, BELOW.hex().encode()),
            (b"file", 0o100755, ONE.hex().encode()),
            (b"module", 0o160000, MODULE.hex().encode()),
        ]
    )
    end = b"author A <a> 0 +0000\ntree 0000\n\ntree 1111\n"
    first = b"tree %s\n%s" % (BELOW.hex().encode(), end)
    second = b"tree %s\nparent %s\n%s" % (ROOT.hex().encode(), FIRST.hex().encode(), end)
    tag = b"object %s\ntype commit\ntag t\n\nobject 2222\n" % SECOND.hex().encode()
    return {
        BELOW: (TREE, below),
        ROOT: (TREE, root),
        FIRST: (COMMIT, first),
        SECOND: (COMMIT, second),
        TAGGED: (TAG, tag),
        ONE: (BLOB, b"tree"),
        TWO: (BLOB, b"40000 x\0"),
    }


def missing(objects: Objects, *here: bytes) -> list[bytes] | None:
    links = Links(20)
    for type_num, content in objects.values():
        links.follow(type_num, content)
    return links.missing(objects.keys(), here.__contains__)


def test_nothing_is_missing(objects: Objects) -> None:
    """A pack with all that its objects name misses nothing; a submodule's commit is nobody's to bring."""
    assert missing(objects) == []


def test_blobs_are_missing(objects: Objects) -> None:
    """Blobs that did not come are named, unless they were here."""
    del objects[ONE], objects[TWO]

    assert sorted(missing(objects) or []) == sorted([ONE, TWO])
    assert missing(objects, ONE) == [TWO]


@pytest.mark.parametrize("gone", [BELOW, ROOT, FIRST, SECOND])
def test_something_else_is_missing(objects: Objects, gone: bytes) -> None:
    """Without a tree or a commit that something names nothing is said, unless it was here."""
    del objects[gone]

    assert missing(objects) is None
    assert missing(objects, gone, ONE, TWO) == []


@pytest.mark.parametrize(
    ("id", "content"), [(ROOT, b"40000 dir\0too short"), (SECOND, b"tree no-hex\nauthor A\n")]
)
def test_what_can_not_be_read(objects: Objects, id: bytes, content: bytes) -> None:
    """Of objects that are not sound nothing is concluded."""
    objects[id] = (objects[id][0], content)

    assert missing(objects) is None
