"""Trees that git's index holds whole, so that nobody need read them (gitformat-index(5), "Cache tree").

Owns reading the cache tree, and what its entries say of objects. Git itself makes commits of it; it is believed only in
an index whose checksum is right. Sizes are left out: they are those of files in a checkout, which conversions may have
changed, and git takes a file of another size than its entry's for changed without a look at it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

from heddle.objects.gitformat import plain_hash
from heddle.repo import gitindex, gitstage

_SHORT = 0x0FFF
"""Flags below this say how long the path is, and nothing else."""
_PARTIAL = (b"link", b"sdir")
"""Extensions of an index that is split, or in which a tree may stand for all below."""

File: TypeAlias = "tuple[bytes, bytes, bytes]"
"""Path, mode as an entry has it, four bytes, and all of the entry that is behind its stat."""


class Whole(NamedTuple):
    """What an index holds.

    Attributes:
        files: its entries, in order.
        trees: binary id and number of entries of each directory whose tree is known, by its path with a slash behind
            it; that of the root is empty.
    """

    files: list[File]
    trees: dict[bytes, tuple[bytes, int]]


def read(index: Path, id_length: int) -> Whole | None:
    """The trees that an index holds.

    Args:
        index: git's index.
        id_length: bytes of an id.

    Returns:
        None where it does not say: none or a damaged one, one without a checksum, a part of one, no cache tree.
    """
    try:
        data = index.read_bytes()
    except OSError:
        return None
    end = len(data) - id_length
    if end < gitstage.HEADER.size or plain_hash(id_length, data[:end]) != data[end:]:
        return None
    _, version, count = gitstage.HEADER.unpack_from(data)
    if version not in gitstage.READERS:
        return None
    files, at = _files(data, id_length, count) if version < 4 else _spelled_out(data, id_length)
    extensions = dict(_extensions(data, at, end))
    if (
        len(files) != count
        or b"TREE" not in extensions
        or any(map(extensions.__contains__, _PARTIAL))
    ):
        return None
    try:
        return Whole(files, _trees(extensions[b"TREE"], id_length))
    except ValueError:
        return None


def _files(data: bytes, id_length: int, count: int) -> tuple[list[File], int]:
    """The entries of an index of version 2 or 3, and where they end."""
    files: list[File] = []
    fields = struct.Struct(f">24x4s12x{id_length}xH")
    at = gitstage.HEADER.size
    while len(files) < count:
        mode, flags = fields.unpack_from(data, at)
        if flags >= _SHORT:
            return _spelled_out(data, id_length)
        path = at + fields.size
        begin, at = at + gitstage.STAT.size, at + (fields.size + flags + 8 & -8)
        files.append((data[path : path + flags], mode, data[begin:at]))
    return files, at


def _spelled_out(data: bytes, id_length: int) -> tuple[list[File], int]:
    """The same of any version, with no other flags than a path's length."""
    files: list[File] = []
    at = gitstage.HEADER.size
    version = gitstage.HEADER.unpack_from(data)[1]
    for path, begin, at, _, _ in gitstage.each_entry(data, id_length, version):  # noqa: B007
        id_at = begin + gitstage.STAT.size
        rest = gitindex.behind_stat(data[id_at : id_at + id_length], path)
        files.append((path, data[begin + 24 : begin + 28], rest))
    return files, at


def _extensions(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, bytes]]:
    while at + 8 <= end:
        start = at + 8
        size = int.from_bytes(data[at + 4 : start], "big")
        yield data[at : at + 4], data[start : start + size]
        at = start + size


def _trees(content: bytes, id_length: int) -> dict[bytes, tuple[bytes, int]]:
    """The directories of a cache tree whose trees are known; raises ValueError where it is none."""
    known: dict[bytes, tuple[bytes, int]] = {}
    left = [(b"", 1)]
    at = 0
    while left:
        above, count = left.pop()
        if not count:
            continue
        left.append((above, count - 1))
        zero = content.index(b"\0", at)
        newline = content.index(b"\n", zero)
        name, (entries, inside) = content[at:zero], map(int, content[zero + 1 : newline].split())
        at = newline + 1
        path = above + name + b"/" if name else above
        if entries >= 0:
            known[path] = content[at : at + id_length], entries
            at += id_length
        left.append((path, inside))
    return known
