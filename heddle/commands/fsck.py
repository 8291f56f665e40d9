"""``heddle fsck``: check that everything stored is whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from heddle.commands import output, views
from heddle.commands.options import Verb, new_app, repository
from heddle.commands.output import printable
from heddle.commands.settings import settings

if TYPE_CHECKING:
    from heddle.repo.fsck import Report

app = new_app()


@app.command(cls=Verb, epilog="heddle fsck\nheddle fsck --full\nheddle fsck --reindex")
def fsck(
    full: Annotated[
        bool,
        typer.Option("--full", help="Read every object and check its id; takes as long as that."),
    ] = False,
    reindex: Annotated[
        bool,
        typer.Option(
            "--reindex", help="First rebuild missing and damaged indexes from their packs."
        ),
    ] = False,
) -> None:
    """Check that everything stored is whole.

    That is: objects and packs, the database, overlays. What is damaged is listed with its repair,
    and the exit code is 1.
    """
    repo = repository()
    rebuilt = repo.store.reindex() if reindex else []
    with output.progress("checking") as progress:
        report = repo.fsck(full=full, progress=progress)
    if settings.json:
        output.emit(_record(report) | {"reindexed": rebuilt})
    else:
        _print(report, rebuilt)
    if report.problems:
        raise typer.Exit(1)


def _record(report: Report) -> dict[str, object]:
    return {
        "ok": not report.problems,
        "checked": report.checked,
        "problems": [
            {"kind": each.kind, "what": each.what, "repair": each.repair}
            for each in report.problems
        ],
    }


def _print(report: Report, rebuilt: list[str]) -> None:
    for name in rebuilt:
        output.note(f"rebuilt {printable(name)}")
    for each in report.problems:
        output.say(f"{output.style(each.kind, 'red')}: {printable(each.what)}")
        if each.repair:
            output.say(f"  repair: {printable(each.repair)}")
    if not report.problems:
        checked = report.checked.items()
        counted = ", ".join(
            views.counted(number, name.removesuffix("s")) for name, number in checked
        )
        output.confirm_done(f"{output.style('whole', 'green')}: {counted}")
