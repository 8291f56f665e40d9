"""``heddle diff``: what differs, as a patch that git applies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from heddle.commands import output, views
from heddle.commands.options import (
    VerbWithPaths,
    argument,
    complete_spec,
    new_app,
    paths_after_dashes,
    repository,
    repository_paths,
)
from heddle.commands.settings import settings
from heddle.errors import UsageError

if TYPE_CHECKING:
    from heddle.repo.diff import FileDiff

app = new_app()


@app.command(
    cls=VerbWithPaths,
    epilog="heddle diff\nheddle diff main agent-1 --stat\nheddle diff HEAD~1 -- src/",
)
def diff(
    ctx: typer.Context,
    a: Annotated[
        str | None, argument("The state before; by default the last one.", "A", complete_spec)
    ] = None,
    b: Annotated[
        str | None, argument("The state after; by default what is there now.", "B", complete_spec)
    ] = None,
    stat: Annotated[bool, typer.Option("--stat", help="How many lines of each file.")] = False,
    name_only: Annotated[bool, typer.Option("--name-only", help="Only the paths.")] = False,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="Exit with 1 when there are differences.")
    ] = False,
) -> None:
    """Show what differs, as a patch that git applies.

    Without states: what is unsaved here. With A: from that state to what is here. With A and B:
    from one to the other.
    """
    if stat and name_only:
        raise UsageError("either --stat or --name-only, not both")
    repo = repository()
    files = repo.diff(a, b, paths=repository_paths(repo, paths_after_dashes(ctx)))
    if settings.json:
        found = list(files)
        output.emit({"files": [views.file_record(file) for file in found]})
        differs = bool(found)
    else:
        differs = True  # unless printing all of it shows otherwise
        with output.paged():
            differs = _print(files, stat=stat, name_only=name_only)
    if exit_code and differs:
        raise typer.Exit(1)


def _print(files: Iterable[FileDiff], *, stat: bool, name_only: bool) -> bool:
    """Print differences as they are found; returns whether there were any."""
    if stat:
        found = list(files)
        for line in views.stat_lines(found):
            output.say(line)
        return bool(found)
    differs = False
    for file in files:
        differs = True
        if name_only:
            output.say(output.printable(file.path))
        else:
            output.patch(file.patch)
    return differs
