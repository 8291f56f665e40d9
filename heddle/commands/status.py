"""``heddle status``: where am I, what changed, and which mounts need attention."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from heddle.commands import output, views
from heddle.commands.options import Verb, new_app, repository, require_disk
from heddle.commands.output import printable, style
from heddle.commands.settings import settings

if TYPE_CHECKING:
    from heddle.api import Status

app = new_app()


@app.command(cls=Verb, epilog="heddle status\nheddle -C ~/agent-1 status --json")
def status() -> None:
    """Show where you are and what changed.

    That is: the thread, what changed since its last capture, and mounts whose session died.
    """
    require_disk(Path.cwd())
    found = repository().status()
    if settings.json:
        output.emit(_record(found))
    else:
        _print(found)


def _record(found: Status) -> dict[str, object]:
    return {
        "repository": str(found.repository),
        "thread": found.thread,
        "state": views.hex_id(found.state),
        "mountpoint": None if found.mountpoint is None else str(found.mountpoint),
        "changes": [views.change_record(change) for change in found.changes],
        "ignored_count": found.ignored_count,
        "not_recorded": [views.not_recorded_record(each) for each in found.not_recorded],
        "mounts_stale": [
            {
                "thread": mount.spec,
                "mountpoint": str(mount.mountpoint),
                "state": mount.state,
                "reason": mount.reason,
                "gave_up": mount.gave_up,
            }
            for mount in found.mounts_stale
        ],
        "many_packs": found.many_packs,
        "git_branch": found.git_branch,
        "git_doing": found.git_doing,
    }


def _print(found: Status) -> None:
    at = views.short(found.state) if found.state else "no state yet"
    output.say(f"on thread {style(printable(found.thread), 'bold')} ({style(at, 'yellow')})")
    place = found.mountpoint or found.repository
    kind = "mounted at" if found.mountpoint else "in"
    output.say(f"{kind} {printable(str(place))}")
    if found.git_branch is not None:
        output.say(f"git is on branch {style(printable(found.git_branch), 'bold')} here")
    if found.git_doing is not None:
        from heddle.repo.linked import in_words

        what, way_out = in_words(found.git_doing)
        output.say(f"{style(what, 'bold')} here: {way_out}")
    for change in found.changes:
        output.say(f"  {views.change_line(change)}")
    if not found.changes:
        output.say("nothing changed")
    for left in found.not_recorded:
        views.not_recorded_note(left.path, left.why)
    if found.ignored_count and settings.verbose:
        output.say(f"{found.ignored_count} ignored")
    for mount in found.mounts_stale:
        name, where = printable(mount.spec), printable(str(mount.mountpoint))
        why = f" ({printable(mount.reason)})" if mount.reason else ""
        output.say(style(f"{mount.state} mount of {name}: {where}{why}", "red"))
        repair = "unmount --stale" if mount.read_only else f"mount {name}"
        log = f"; see {printable(str(mount.log))}" if mount.gave_up else ""
        output.say(f"  heddle {repair}{log}")
    if found.many_packs:
        output.note("many packs, or many versions in one: heddle gc makes one of them, and smaller")
