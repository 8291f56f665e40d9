"""Git's own formats: object ids, the hash that makes them, and trees.

Owns the few facts of git's object model that the store needs on its hot paths, so that these need not import
dulwich. Commits are ``state.py``'s.
"""

from __future__ import annotations

import re
from binascii import hexlify, unhexlify
from collections.abc import Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import _Hash

    from dulwich.objects import ObjectID

COMMIT, TREE, BLOB, TAG = 1, 2, 3, 4
TYPE_NAMES = {COMMIT: b"commit", TREE: b"tree", BLOB: b"blob", TAG: b"tag"}
ID_LENGTHS = {"sha1": 20, "sha256": 32}

_TREE_ENTRY = {
    length: re.compile(rb"([0-7]+) ([^\0/]+)\0(.{%d})" % length, re.DOTALL)
    for length in ID_LENGTHS.values()
}
_DIRECTORY = 0o040000
_FORMAT_BITS = 0o170000


def to_hex(raw_id: bytes) -> ObjectID:
    """The hex form of an id: dulwich's ObjectID."""
    return hexlify(raw_id)  # type: ignore[return-value]


def to_raw(object_id: bytes, id_length: int) -> bytes:
    """The binary form of an id given in either form.

    Raises:
        KeyError: this can't be an id of this object format.
    """
    if len(object_id) == 2 * id_length:
        try:
            return unhexlify(object_id)
        except ValueError:
            raise KeyError(object_id) from None
    if len(object_id) == id_length:
        return object_id
    raise KeyError(object_id)


def new_hash(id_length: int, type_num: int, size: int) -> _Hash:
    """A hash that has taken in git's header for an object of ``size`` bytes; its digest will be the id."""
    return _hash_of(id_length)(b"%s %d\0" % (TYPE_NAMES[type_num], size), usedforsecurity=False)


def plain_hash(id_length: int, data: bytes) -> bytes:
    """The hash of bytes without a header, as git's own files end with it."""
    return _hash_of(id_length)(data, usedforsecurity=False).digest()


@cache
def _hash_of(id_length: int) -> Callable[..., _Hash]:
    from hashlib import sha1, sha256  # loads OpenSSL, which commands that only read do not need

    return sha1 if id_length == 20 else sha256


def is_id_of(raw_id: bytes, type_num: int, content: bytes) -> bool:
    """Say whether a binary id is that of an object."""
    digest = new_hash(len(raw_id), type_num, len(content))
    digest.update(content)
    return digest.digest() == raw_id


def encode_tree(entries: Iterable[tuple[bytes, int, bytes]]) -> bytes:
    """Write a tree from (name, mode, hex id) in any order.

    Raises:
        ValueError: a name is empty, holds "/" or NUL, or comes twice; an id is not hex.
    """
    ordered = sorted(entries, key=_git_order)
    names = {name for name, _, _ in ordered}
    if len(names) != len(ordered):
        raise ValueError("a name comes twice in a tree")
    for name in names:
        if not name or b"/" in name or b"\0" in name:
            raise ValueError(f"not a name in a tree: {name!r}")
    return b"".join(
        [b"%o %s\0%s" % (mode, name, unhexlify(hex_id)) for name, mode, hex_id in ordered]
    )


def _git_order(entry: tuple[bytes, int, bytes]) -> bytes:
    """Git sorts a directory as if its name ended in a slash."""
    name, mode, _ = entry
    return name + b"/" if mode & _FORMAT_BITS == _DIRECTORY else name


def decode_tree(content: bytes, id_length: int) -> list[tuple[bytes, int, ObjectID]] | None:
    """Read a tree into (name, mode, hex id) in git's order, or None when it is not a sound one."""
    found = raw_tree_entries(content, id_length)
    if found is None:
        return None
    return [(name, int(mode, 8), to_hex(raw_id)) for mode, name, raw_id in found]


def raw_tree_entries(content: bytes, id_length: int) -> Iterable[tuple[bytes, bytes, bytes]] | None:
    """Read a tree into (mode in octal digits, name, binary id) in its order, or None when it is not a sound one."""
    parts = _TREE_ENTRY[id_length].split(content)
    if any(parts[::4]):  # what the pattern does not understand is left between what it does
        return None
    return zip(parts[1::4], parts[2::4], parts[3::4], strict=True)
