"""``heddle mounts``: what is mounted, as the kernel and the processes say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from heddle.commands import output, views
from heddle.commands.options import Verb, new_app
from heddle.commands.output import printable
from heddle.commands.settings import settings
from heddle.errors import NotARepository

if TYPE_CHECKING:
    from heddle.api import MountInfo

app = new_app()

_STYLES = {"live": ("green",), "stale": ("red",), "hung": ("yellow",)}


@app.command(cls=Verb, epilog="heddle mounts\nheddle mounts --json")
def mounts() -> None:
    """List the sessions of this repository; outside one, those of this user."""
    found = _found(Path.cwd())
    if settings.json:
        output.emit({"mounts": [_record(each) for each in found]})
        return
    for each in found:
        output.say(_line(each))
    for each in found:
        if each.state != "live":
            output.note(_advice(each))


def _found(here: Path) -> list[MountInfo]:
    from heddle.mount.disk import DiskProbe

    probe = DiskProbe(here)
    from heddle import api

    if not probe.answers():
        output.note(f"note: the disk below {printable(str(here))} does not answer")
        return api.mounts_around(here)
    try:
        return api.open(here).mounts()
    except NotARepository:
        return api.mounts()


def _record(mount: MountInfo) -> dict[str, object]:
    return {
        "thread": mount.spec,
        "mountpoint": str(mount.mountpoint),
        "state": mount.state,
        "pid": mount.pid,
        "since": _time(mount.since_ns),
        "read_only": mount.read_only,
        "dirty_files": mount.dirty_files,
        "dirty_bytes": mount.dirty_bytes,
        "log": None if mount.log is None else str(mount.log),
        "doing": mount.doing,
        "reason": mount.reason,
        "crashes": [{"time": _time(crash.at_ns), "how": crash.how} for crash in mount.crashes],
        "gave_up": mount.gave_up,
    }


def _time(time_ns: int | None) -> str | None:
    return None if time_ns is None else views.iso_time(time_ns // 10**9)


def _line(mount: MountInfo) -> str:
    state = output.style(f"{mount.state:5}", *_STYLES[mount.state])
    line = f"{state} {printable(mount.spec)} {printable(str(mount.mountpoint))}"
    if mount.read_only:
        line += " (read-only)"
    if mount.dirty_files:
        line += f", {views.counted(mount.dirty_files, 'unsaved file')}"
    if mount.reason:
        line += f": {printable(mount.reason)}"
    elif mount.doing:
        line += f", busy with {printable(mount.doing)}"
    return line


def _advice(mount: MountInfo) -> str:
    name = printable(mount.spec)
    if mount.waits:
        return f"{name}: it goes on by itself when its disk is back"
    if mount.gave_up:
        log = printable(str(mount.log))
        return f"{name}: heddle mount {name} starts it again; what happened is in {log}"
    if mount.read_only:
        return f"{name}: heddle unmount --stale cleans it up"
    return f"{name}: heddle mount {name} recovers it, heddle unmount --stale cleans it up"
