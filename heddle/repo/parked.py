"""The park: overlays that were discarded, or whose thread was deleted, put aside instead of removed.

Owns where they lie (``overlays/.parked/<ns>-<quoted thread>/``), the note that says what each was relative to, and the
list of them. Putting one back and removing one is ``mount/parked.py``'s; when one is parked decides whoever parks it.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import unquote

from heddle import atomic, faults
from heddle.repo.names import overlay_name

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.repo.repository import Repository

PARKED = ".parked"
"""Under ``overlays/``: the park."""
KEPT_NS = 14 * 24 * 3600 * 10**9
"""How long a parked overlay is kept before ``overlay drop --expired`` takes it, in nanoseconds."""
NOTE = "parked.json"


class Parked(NamedTuple):
    """A parked overlay.

    Attributes:
        id: the name of its directory in the park.
        path: that directory; the files are in its ``upper``.
        thread: whose it was.
        parked_ns: when it was parked, ns since the epoch.
        why: ``discarded``, ``deleted`` (with its thread), ``replaced`` (by one that was restored) or ``orphan``.
        has_base: whether it is known what it was relative to; without that it can't be restored.
        base: the state that it was relative to; None is the empty tree.
    """

    id: str
    path: Path
    thread: str
    parked_ns: int
    why: str
    has_base: bool
    base: ObjectID | None

    @property
    def expires_ns(self) -> int:
        """From when on ``overlay drop --expired`` removes it."""
        return self.parked_ns + KEPT_NS


def parking_place(thread: str) -> str:
    """A new place in the park, relative to ``overlays/``."""
    return f"{PARKED}/{time.time_ns()}-{overlay_name(thread)}"


def write_note(overlay: Path, *, thread: str, base: ObjectID | None, why: str) -> None:
    """Say in an overlay's directory what it is, before it is moved into the park; durable on return."""
    text = None if base is None else base.decode("ascii")
    note = {"thread": thread, "base": text, "why": why}
    atomic.write_file(overlay / NOTE, json.dumps(note).encode("ascii") + b"\n", mode=0o600)
    faults.reach("parked.noted")


def list_parked(repo: Repository) -> list[Parked]:
    """Everything in the park, oldest first."""
    park = repo.heddle_dir / "overlays" / PARKED
    names = os.listdir(park) if park.is_dir() else []
    found = [_read(park / name) for name in names]
    return sorted((each for each in found if each is not None), key=lambda each: each.id)


def _read(path: Path) -> Parked | None:
    """One parked overlay; None for a place that was only begun, or is being removed."""
    time_ns, dash, quoted = path.name.partition("-")
    if not (dash and time_ns.isdigit() and (path / "upper").is_dir()):
        return None
    note = _note(path)
    base = note.get("base")
    return Parked(
        id=path.name,
        path=path,
        thread=str(note.get("thread") or unquote(quoted)),
        parked_ns=int(time_ns),
        why=str(note.get("why", "orphan")),
        has_base="base" in note,
        base=None if base is None else cast("ObjectID", str(base).encode("ascii")),
    )


def _note(path: Path) -> dict[str, Any]:
    try:
        note = json.loads((path / NOTE).read_bytes())
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


class Amount(NamedTuple):
    """How much an overlay holds.

    Attributes:
        files: its files and links; what stands for a deletion does not count.
        bytes: in them, without holes.
    """

    files: int
    bytes: int


def measure(upper: Path) -> Amount:
    """Count what an upper holds, whether or not it was captured."""
    files = size = 0
    for status in _entries(upper):
        if stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
            files += 1
            size += min(status.st_size, status.st_blocks * 512)
    return Amount(files, size)


def _entries(top: Path) -> Iterator[os.stat_result]:
    """Everything below a directory that is no directory."""
    pending = [os.fsencode(top)]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    else:
                        yield entry.stat(follow_symlinks=False)
        except OSError:
            continue  # gone meanwhile, or deeper than a path can say
