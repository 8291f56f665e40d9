"""What git's indexes say of whole trees, kept for the next mount of the same one: many agents begin at one state.

Owns ``.heddle/gitindex``: what a file there is called, that it is believed only whole, and how many stay. All of it can
be made again from the objects.
"""

from __future__ import annotations

import hashlib
import logging
import os
import struct
from binascii import unhexlify
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from heddle import faults
from heddle.objects.gitformat import to_hex
from heddle.repo.gitindex import Listed

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

log = logging.getLogger(__name__)

DIRECTORY = "gitindex"
"""Where they are, in ``.heddle``."""
MAGIC = b"heddle index 2\n\0"
KEPT = 4
"""So many trees; the one that was made or asked for longest ago goes."""
_SIZES = struct.Struct("<10Q")
_COUNT = 4  # bytes
_CHECKSUM = 32


def name_of(*parts: object) -> str:
    """The name for all that an index of a tree depends on: every word of it, in an order."""
    return hashlib.sha256(MAGIC + "\n".join(map(str, parts)).encode()).hexdigest()


class Kept(NamedTuple):
    """What is kept of a tree.

    Attributes:
        listed: what an index says of it.
        counts: how many directories are in each of its directories, by the tree's hex id.
    """

    listed: Listed
    counts: Mapping[ObjectID, int]


def load(directory: Path, name: str) -> Kept | None:
    """What was kept under a name; None: nothing, or not what was written."""
    path = directory / name
    try:
        content = path.read_bytes()
        os.utime(path)
    except OSError:
        return None
    body, checksum = content[:-_CHECKSUM], content[-_CHECKSUM:]
    if not body.startswith(MAGIC) or hashlib.sha256(body).digest() != checksum:
        return None
    length, *sizes = _SIZES.unpack_from(body, len(MAGIC))
    at = len(MAGIC) + _SIZES.size
    pieces = []
    for size in sizes:
        pieces.append(body[at : at + size])
        at += size
    *listed, counts = pieces
    return Kept(Listed(length, *listed), _counts(counts))


def _counts(piece: bytes) -> dict[ObjectID, int]:
    step = piece[0] + _COUNT if piece else 1
    rows = (piece[at : at + step] for at in range(1, len(piece), step))
    return {to_hex(row[:-_COUNT]): int.from_bytes(row[-_COUNT:], "big") for row in rows}


def _piece(counts: Mapping[ObjectID, int]) -> bytes:
    """The length of an id, and all ids with their counts."""
    rows = [unhexlify(id) + count.to_bytes(_COUNT, "big") for id, count in counts.items()]
    return b"".join((bytes([len(rows[0]) - _COUNT]), *rows)) if rows else b""


def save(directory: Path, name: str, kept: Kept) -> None:
    """Keep something under a name; that it can't be kept costs only time later."""
    length, *pieces = kept.listed
    pieces.append(_piece(kept.counts))
    body = b"".join((MAGIC, _SIZES.pack(length, *map(len, pieces)), *pieces))
    temporary = directory / f".tmp-{os.getpid()}"
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        with open(temporary, "wb", opener=_private) as file:
            file.write(body + hashlib.sha256(body).digest())
        faults.reach("keptindex.before-rename")
        os.rename(temporary, directory / name)
        _remove_oldest(directory)
    except OSError as error:
        log.debug("git's index is not kept: %s", error)
        with suppress(OSError):
            temporary.unlink()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)  # a session's umask says nothing


def _remove_oldest(directory: Path) -> None:
    """Also what a kill left behind: it is as old as any."""
    found = sorted(directory.iterdir(), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in found[KEPT:]:
        path.unlink(missing_ok=True)
