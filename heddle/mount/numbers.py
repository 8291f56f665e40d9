"""The inode numbers of captured files and directories: of where one lies alone, so that every mount has the same.

Owns how a number is made. That no two live nodes have one is ``view.py``'s.
"""

from __future__ import annotations

import hashlib

from heddle.mount.shell import NodeId

_LOWER_INO = 1 << 62  # numbers of captured nodes; real inode numbers stay below


def lower_number(parent: NodeId, name: bytes) -> NodeId:
    """The number of a captured node, unless a live one has it."""
    digest = _name_digest(parent.to_bytes(8, "little"), name)
    return int.from_bytes(digest, "little") & (_LOWER_INO - 1) | _LOWER_INO


def low_number(parent: bytes, name: bytes) -> bytes:
    """The lower 32 bits of the same, in network order, as git's index has them.

    Args:
        parent: the number of the directory, eight bytes, the lowest first: many names are asked for in a row.
        name: in it.
    """
    return _name_digest(parent, name)[3::-1]


def _name_digest(parent: bytes, name: bytes) -> bytes:
    return hashlib.blake2b(name, digest_size=8, salt=parent).digest()
