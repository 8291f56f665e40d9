"""Where ``fsck --repair`` puts what is damaged: ``.heddle/damaged/<time>``, from which nothing is ever removed.

Owns that directory's layout and the report of a repair. What is damaged, and what is done about it, is decided by
whoever checks it.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from heddle import atomic, faults

DAMAGED = "damaged"
"""Under ``.heddle``: everything that repairs have set aside."""
FINISHED = "repair.json"
"""In a repair's directory: its report, written last. Without it the repair was interrupted."""


class SetAside(NamedTuple):
    """Something damaged that is not used any more.

    Attributes:
        path: where it was.
        to: where it is now; None in a dry run.
        why: what is wrong with it.
    """

    path: Path
    to: Path | None
    why: str


@dataclass
class Repair:
    """What one repair does, as it is done; with ``dry_run`` what it would do.

    Attributes:
        heddle_dir: ``.heddle``.
        dry_run: change nothing.
        mended: what is right again, one line each.
        aside: what was damaged beyond that.
        lost: what nothing could bring back, one line each.
        left: what could not be looked at or mended now, and why, one line each.
    """

    heddle_dir: Path
    dry_run: bool = False
    mended: list[str] = field(default_factory=list)
    aside: list[SetAside] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    _directory: Path | None = None

    def set_aside(self, path: Path, why: str, *, keep: bool = False) -> None:
        """Move a file or a directory of ``.heddle`` out of use, to the same place below this repair's directory.

        Durable on return. What is gone already (an earlier repair was killed) is passed over.

        Args:
            path: what is damaged.
            why: what is wrong with it.
            keep: copy it and leave it where it is; the caller replaces it.
        """
        if not os.path.lexists(path):
            return
        target = None if self.dry_run else self._place_for(path)
        if target is not None:
            faults.reach("aside.before-move")
            if keep:
                _copy(path, target)
            else:
                os.rename(path, target)
                atomic.fsync_directory(path.parent)
            atomic.fsync_directory(target.parent)
            faults.reach("aside.moved")
        self.aside.append(SetAside(path, target, why))

    def finish(self) -> None:
        """Write the report beside what was set aside, if anything was."""
        if self._directory is None:
            return
        import json

        report = {
            "mended": self.mended,
            "set_aside": [[str(each.path), each.why] for each in self.aside],
            "lost": self.lost,
        }
        content = json.dumps(report, indent=1).encode("ascii") + b"\n"
        atomic.write_file(self._directory / FINISHED, content)

    def _place_for(self, path: Path) -> Path:
        if self._directory is None:
            self._directory = self._make_directory()
        target = self._directory / path.relative_to(self.heddle_dir)
        target.parent.mkdir(parents=True, exist_ok=True)
        while os.path.lexists(target):  # set aside twice in one repair
            target = target.with_name(target.name + "~")
        return target

    def _make_directory(self) -> Path:
        """A new directory, named by the time and durable in its parents."""
        name = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        directory = self.heddle_dir / DAMAGED / f"{name}-{time.time_ns() % 10**9:09}"
        directory.mkdir(mode=0o700, parents=True)
        for place in (directory.parent, self.heddle_dir):
            atomic.fsync_directory(place)
        return directory


def unfinished(heddle_dir: Path) -> list[Path]:
    """Directories of repairs that were interrupted: what they hold may be needed once more."""
    damaged = heddle_dir / DAMAGED
    names = sorted(os.listdir(damaged)) if damaged.is_dir() else []
    return [damaged / name for name in names if not (damaged / name / FINISHED).exists()]


def _copy(path: Path, target: Path) -> None:
    shutil.copyfile(path, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())
