"""``heddle clone``: make a repository of what a git server has."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from heddle.commands import fetch, output, views
from heddle.commands.options import Verb, argument, new_app
from heddle.commands.output import printable
from heddle.errors import UsageError

app = new_app()


@app.command(
    cls=Verb,
    epilog="heddle clone https://example.org/project.git\nheddle clone ../project.git mine"
    "\nheddle clone --lazy https://example.org/huge.git",
)
def clone(
    url: Annotated[str, argument("Where it is: https, ssh, git or a path.", "URL")],
    path: Annotated[
        Path | None, argument("The directory to make; else named as the URL ends.", "PATH")
    ] = None,
    lazy: Annotated[
        bool,
        typer.Option("--lazy", help="Leave the files' contents there until they are read."),
    ] = False,
) -> None:
    """Make a repository of what a git server has.

    Its default branch is a thread and the working directory; its other branches are origin/NAME,
    its tags markers. A lazy clone has the history and the directories; files come when a mount or
    a command first reads them, and the working directory stays empty until heddle switch.
    """
    from heddle import api
    from heddle.git import cloning
    from heddle.git.transport import is_path

    where = path or Path(_named_by(url))
    url = os.path.abspath(url) if os.path.exists(url) or is_path(url) else url
    with output.progress("cloning") as progress:
        repo, fetched = cloning.clone(
            api.Repository, url, where, environment=os.environ, lazy=lazy, progress=progress
        )
    if lazy and fetched.objects and not repo.store.promises:
        output.note("note: this server leaves nothing out; all files were fetched")
    state = repo.threads.get(repo.head).state
    output.answer(
        {"path": str(repo.path), "thread": repo.head, "state": views.hex_id(state)}
        | fetch.record(fetched),
        f"cloned into {printable(str(repo.path))}, on thread {printable(repo.head)}"
        + (f" at {views.short(state)}" if state else ", which has no state yet"),
    )
    repo.close()


def _named_by(url: str) -> str:
    """The last part of an address, as git names a clone."""
    name = url.rstrip("/").removesuffix("/.git").removesuffix(".git").replace(":", "/")
    name = name.rsplit("/", 1)[-1]
    if name in ("", ".", ".."):
        raise UsageError(f"{url!r} says no name for a directory", hint="heddle clone URL PATH")
    return name
