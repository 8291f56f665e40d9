"""After the machine went down: captured files whose bytes never reached the disk show what was captured.

A capture makes a state durable, not the file that it was read from: the file system may still hold its bytes in memory
when the power fails. What is left then is a file shorter than its marks say. Its bytes are in the store, so it becomes
a file whose bytes are there. Owns that repair, once for each boot; what marks mean is ``upper``'s.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from heddle import faults
from heddle.mount import upper as up
from heddle.mount.process import boot_id

BOOT = "boot"
"""In the overlay's directory: the boot in which it was last opened. Not synced: without it, the repair is done."""


def mend(directory: Path) -> list[bytes]:
    """Repair an overlay that was last opened before the machine started; for whoever holds its lock.

    Args:
        directory: the overlay's.

    Returns:
        the paths, below the overlay's ``upper``, of files whose bytes were lost.
    """
    now = boot_id()
    note = directory / BOOT
    if _read(note) == now:
        return []
    top = os.fsencode(directory / "upper")
    lost = [os.path.relpath(path, top) for path in _files(top) if _mend_file(path)]
    faults.reach("powerloss.mended")
    note.write_text(now)
    return lost


def _read(note: Path) -> str | None:
    try:
        return note.read_text()
    except (OSError, UnicodeDecodeError):
        return None


def _files(top: bytes) -> Iterator[bytes]:
    pending = [top]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        yield entry.path
        except OSError:
            continue  # deeper than a path can say


def _mend_file(path: bytes) -> bool:
    """One file; the marks say what it was, so that it can be done again after a crash at any point."""
    status = os.stat(path, follow_symlinks=False)
    marks = up.read_marks(path) if stat.S_ISREG(status.st_mode) else None
    if marks is None or marks.stored is None or status.st_size >= marks.size:
        return False
    os.truncate(path, 0)
    faults.reach("powerloss.emptied")
    size = marks.size if marks.cleaned is None else marks.cleaned
    shown = marks._replace(blob=marks.stored, stored=None, cleaned=None, under=None, size=size)
    up.write_marks(path, shown)
    os.truncate(path, size)
    return True
