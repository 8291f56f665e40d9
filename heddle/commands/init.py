"""``heddle init``: make a repository."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from heddle.commands import output
from heddle.commands.options import Verb, argument, new_app

app = new_app()


@app.command(cls=Verb, epilog="heddle init\nheddle init ~/project --object-format sha256")
def init(
    path: Annotated[
        Path | None, argument("The directory to version; made if it is absent.", "PATH")
    ] = None,
    object_format: Annotated[
        Literal["sha1", "sha256"],
        typer.Option("--object-format", metavar="sha1|sha256", help="How objects are named."),
    ] = "sha1",
) -> None:
    """Make a repository in PATH, or here, with HEAD on thread main.

    Nothing is recorded yet: the first capture does that. In a git checkout, heddle works on top of
    it.
    """
    from heddle import api

    repo = api.init(path or Path.cwd(), object_format=object_format)
    output.answer(
        {
            "path": str(repo.path),
            "head": repo.head,
            "object_format": repo.object_format,
            "git": None,
        },
        f"made a repository in {output.printable(str(repo.path))}, on thread {repo.head}",
    )
