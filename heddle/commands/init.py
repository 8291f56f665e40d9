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
        Literal["sha1", "sha256"] | None,
        typer.Option(
            "--object-format",
            metavar="sha1|sha256",
            help="How objects are named: git's way here, else sha1.",
        ),
    ] = None,
) -> None:
    """Make a repository.

    In PATH, or here, with HEAD on thread main. Nothing is recorded yet: the first capture does
    that. In a git checkout, heddle works on top of it.
    """
    from heddle import api

    repo = api.init(path or Path.cwd(), object_format=object_format)
    done = "made a repository in" if repo.created else "there is a repository already in"
    if repo.joined_git:
        done = "put on top of git: the repository in"
    output.answer(
        {
            "path": str(repo.path),
            "head": repo.head,
            "object_format": repo.object_format,
            "git": None if repo.git is None else str(repo.git.path),
            "created": repo.created,
        },
        f"{done} {output.printable(str(repo.path))}, on thread {repo.head}",
    )
