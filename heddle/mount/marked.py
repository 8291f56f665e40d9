"""Which objects the overlays of a repository name in their marks, so that nobody drops them.

Owns looking through every upper, those of threads and the parked ones alike, live or not: marks are read from the
files, as whoever opens the overlay next will. What a mark means is ``upper.py``'s.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from heddle.errors import StorageError
from heddle.mount import upper as up
from heddle.repo.parked import PARKED


def marked_ids(overlays: Path) -> Iterator[bytes]:
    """The hex ids that marks name, some more than once.

    Args:
        overlays: ``.heddle/overlays``.

    Raises:
        StorageError: a directory or a mark can't be read, so that there may be others.
    """
    for place in (overlays, overlays / PARKED):
        if place.is_dir():
            for entry in os.scandir(place):
                top = os.path.join(os.fsencode(entry.path), b"upper")
                if os.path.isdir(top):
                    yield from _marked_below(top)


def _marked_below(top: bytes) -> Iterator[bytes]:
    pending = [top]
    while pending:
        path = pending.pop()
        yield from _marked(path)
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        yield from _marked(entry.path)
        except FileNotFoundError:  # a live session removed it
            continue
        except OSError as error:
            raise StorageError(f"{os.fsdecode(path)}: {error.strerror}") from error


def _marked(path: bytes) -> Iterator[bytes]:
    try:
        if not stat.S_ISLNK(os.lstat(path).st_mode):
            marks = up.read_marks(path)
            if marks is not None:
                under = None if marks.under is None else marks.under.blob
                found = (marks.lower, marks.blob, marks.stored, under)
                yield from (each for each in found if each is not None)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(f"{os.fsdecode(path)}: {error.strerror}") from error
