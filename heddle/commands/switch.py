"""``heddle switch``: move HEAD and the plain working directory to another thread."""

from __future__ import annotations

from typing import Annotated

import typer

from heddle.commands import output, views
from heddle.commands.options import Verb, argument, complete_thread, new_app, repository
from heddle.commands.output import printable

app = new_app()


@app.command(cls=Verb, epilog="heddle switch agent-1\nheddle switch --create fix-parser")
def switch(
    name: Annotated[str, argument("The thread to go to.", "NAME", complete_thread)],
    create: Annotated[
        bool, typer.Option("--create", help="Make the thread where you are, then go to it.")
    ] = False,
) -> None:
    """Move HEAD and the working directory to another thread.

    Only paths that differ are written. Unsaved changes go along where the two threads agree, and
    nothing is done where they would be overwritten.
    """
    repo = repository()
    switched = repo.switch(name, create=create)
    output.answer(
        {
            "thread": switched.thread,
            "state": views.hex_id(switched.state),
            "changed_paths": switched.changed_paths,
        },
        f"on thread {printable(switched.thread)} at {views.short(switched.state)}, "
        f"{views.counted(switched.changed_paths, 'path')} changed",
    )
