"""``heddle pull``: fetch, and move a thread forward."""

from __future__ import annotations

from typing import Annotated

import typer

from heddle.commands import fetch, output, views
from heddle.commands.options import Verb, argument, complete_thread, new_app, repository
from heddle.commands.output import printable

app = new_app()


@app.command(cls=Verb, epilog="heddle pull\nheddle pull upstream --thread main")
def pull(
    remote: Annotated[str, argument("A remote; origin if not given.", "REMOTE")] = "origin",
    thread: Annotated[
        str | None,
        typer.Option(
            "--thread",
            metavar="T",
            help="The thread to move; else the one you are on.",
            autocompletion=complete_thread,
        ),
    ] = None,
) -> None:
    """Fetch, and move a thread forward to where the remote's branch is.

    The working directory goes along, or a mount of the thread. A thread with states of its own is
    not moved: both sides are shown.
    """
    repo = repository()
    with output.progress("fetching") as progress:
        pulled = repo.pull(remote, thread, progress=progress)
    name = printable(pulled.thread)
    moved = f"thread {name} {views.short(pulled.old) if pulled.old else 'new'} -> "
    moved += views.short(pulled.new)
    if pulled.changed_paths:  # of the working directory, not of a mount
        moved += f", {views.counted(pulled.changed_paths, 'path')} changed"
    output.answer(
        fetch.record(pulled.fetched)
        | {
            "thread": pulled.thread,
            "old": views.hex_id(pulled.old),
            "state": views.hex_id(pulled.new),
            "changed_paths": pulled.changed_paths,
        },
        moved if pulled.old != pulled.new else f"thread {name} has everything already",
    )
