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
    from heddle import api

    try:
        found = api.open(Path.cwd()).mounts()
    except NotARepository:
        found = api.mounts()
    if settings.json:
        output.emit({"mounts": [_record(each) for each in found]})
        return
    for each in found:
        output.say(_line(each))
    for each in found:
        if each.state != "live":
            output.note(_advice(each))


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
    return line


def _advice(mount: MountInfo) -> str:
    name = printable(mount.spec)
    if mount.read_only:
        return f"{name}: heddle unmount --stale cleans it up"
    return f"{name}: heddle mount {name} recovers it, heddle unmount --stale cleans it up"
