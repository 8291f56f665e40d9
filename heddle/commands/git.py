"""``heddle git``: states out to git repositories, and git repositories in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from heddle.commands import output, views
from heddle.commands.options import (
    Verb,
    VerbGroup,
    argument,
    complete_thread,
    new_app,
    repository,
)
from heddle.commands.output import printable
from heddle.commands.settings import settings

if TYPE_CHECKING:
    from heddle.git.export import RefChange

app = new_app(epilog="heddle git export agent-1\nheddle git import ~/project/.git")


@app.callback(cls=VerbGroup)
def git() -> None:
    """Take states to git repositories, and git repositories in.

    A state is a git commit: ids are the same on both sides. On a git checkout, branches and the
    threads of their names are kept in step without being asked.
    """


@app.command(
    "export",
    cls=Verb,
    epilog="heddle git export\nheddle git export agent-1\nheddle git export --to ~/copy.git",
)
def export(
    threads: Annotated[
        list[str] | None,
        argument("Only these threads; else all, and the markers.", "THREAD...", complete_thread),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(
            "--to",
            metavar="GITDIR",
            help="Another git repository than the one here; made if it is absent.",
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Also move branches that hold commits the thread does not."),
    ] = False,
) -> None:
    """Make branches of threads and tags of markers.

    Objects that git does not have are written as one pack, then the refs are moved.
    """
    from heddle.git import export as exporting

    repo = repository()
    with output.progress("writing objects") as progress:
        done = exporting.export(repo, threads or (), to=to, force=force, progress=progress)
    if settings.json:
        output.emit(
            {
                "target": str(done.target),
                "created": done.created,
                "objects": done.objects,
                "pack": done.pack,
                "refs": [_ref_record(each) for each in done.refs],
            }
        )
        return
    for each in done.refs:
        was = views.short(each.old) if each.old else "new"
        output.confirm_done(f"{printable(each.ref)} {was} -> {views.short(each.new)}")
    where = printable(str(done.target))
    if done.refs:
        output.confirm_done(f"{views.counted(done.objects, 'object')} to {where}")
    else:
        output.confirm_done(f"{where} has everything already")


def _ref_record(change: RefChange) -> dict[str, object]:
    return {
        "ref": change.ref,
        "old": views.hex_id(change.old),
        "new": views.hex_id(change.new),
    }


@app.command("import", cls=Verb, epilog="heddle git import ~/project")
def import_(
    source: Annotated[
        Path, argument("A checkout, its .git, or a bare repository.", "GITDIR")
    ] = Path(".git"),
) -> None:
    """Take in everything that a git repository holds.

    Branches become threads and tags markers. Nothing is changed unless all of it can be.
    """
    from heddle.git import importing

    repo = repository()
    with output.progress("reading objects") as progress:
        done = importing.import_git(repo, source, progress=progress)
    output.answer(
        {
            "source": str(done.source),
            "objects": done.objects,
            "threads": _named(done.threads),
            "markers": _named(done.markers),
            "refs": done.refs,
        },
        f"{views.counted(done.objects, 'new object')}, "
        f"{views.counted(len(done.threads), 'thread')} made or moved, "
        f"{views.counted(len(done.markers), 'new marker')}",
    )


def _named(names: Mapping[str, bytes]) -> list[dict[str, object]]:
    return [{"name": name, "state": views.hex_id(state)} for name, state in names.items()]
