"""What git's indexes say of whole trees, kept for the next mount of the same one: many agents begin at one state.

Owns ``.heddle/gitindex``: what a file there is called, that it is believed only whole, and how many stay. All of it can
be made again from the objects.
"""

from __future__ import annotations

import hashlib
import logging
import os
import struct
from contextlib import suppress
from pathlib import Path

from heddle import faults
from heddle.repo.gitindex import Listed

log = logging.getLogger(__name__)

MAGIC = b"heddle index 1\n\0"
KEPT = 4
"""So many trees; the one that was made or asked for longest ago goes."""
_SIZES = struct.Struct("<9Q")
_CHECKSUM = 32


def name_of(*parts: object) -> str:
    """The name for all that an index of a tree depends on: every word of it, in an order."""
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()


def load(directory: Path, name: str) -> Listed | None:
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
    return Listed(length, *pieces)


def save(directory: Path, name: str, listed: Listed) -> None:
    """Keep something under a name; that it can't be kept costs only time later."""
    length, *pieces = listed
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
