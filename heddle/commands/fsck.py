"""``heddle fsck``: check that everything stored is whole, and mend what is not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from heddle.commands import output, views
from heddle.commands.options import Verb, new_app, repository
from heddle.commands.output import printable
from heddle.commands.settings import settings
from heddle.errors import UsageError

if TYPE_CHECKING:
    from heddle.repo.aside import Repair
    from heddle.repo.fsck import Report

app = new_app()
_NAMED = 20
"""States without a name that are named to people."""


@app.command(cls=Verb, epilog="heddle fsck\nheddle fsck --full\nheddle fsck --repair")
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
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Mend what can be mended, set the rest aside, then check."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --repair: only say what it would do.")
    ] = False,
) -> None:
    """Check that everything stored is whole.

    That is: packs and all that names lead to in them, the database, overlays. What is damaged and
    what is lost is listed, and the exit code is 1. A repair deletes nothing: what it puts out of
    use is kept in .heddle/damaged.
    """
    if dry_run and not repair:
        raise UsageError("--dry-run is for --repair", hint="heddle fsck --repair --dry-run")
    repo = repository(damaged=True)
    done = None
    rebuilt = repo.store.reindex() if reindex and not repair else []
    with output.progress("checking") as progress:
        if repair:
            done, report = repo.repair(dry_run=dry_run, full=full, progress=progress)
        else:
            report = repo.fsck(full=full, progress=progress)
    if settings.json:
        output.emit(_record(report) | {"reindexed": rebuilt} | _repair_record(done, dry_run))
    else:
        _print(report, rebuilt, done, dry_run)
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
        "unnamed": [views.state_record(state) for state in report.unnamed],
    }


def _repair_record(done: Repair | None, dry_run: bool) -> dict[str, Any]:
    """What a repair did; without one, nothing."""
    aside = [] if done is None else done.aside
    return {
        "dry_run": dry_run,
        "mended": [] if done is None else done.mended,
        "set_aside": [
            {"path": str(each.path), "to": each.to and str(each.to), "why": each.why}
            for each in aside
        ],
        "lost": [] if done is None else done.lost,
        "left": [] if done is None else done.left,
    }


def _print(report: Report, rebuilt: list[str], done: Repair | None, dry_run: bool) -> None:
    for name in rebuilt:
        output.note(f"rebuilt {printable(name)}")
    if done is not None:
        _print_repair(done, "would be " if dry_run else "")
    for each in report.problems:
        output.say(f"{output.style(each.kind, 'red')}: {printable(each.what)}")
        if each.repair:
            output.say(f"  repair: {printable(each.repair)}")
    if len(report.unnamed) > _NAMED:
        more = views.counted(len(report.unnamed) - _NAMED, "older state")
        output.note(
            f"no name leads to {more}: heddle fsck --json has all, heddle gc drops old ones"
        )
    for state in report.unnamed[-_NAMED:]:
        what = views.subject(state.message) or "without a message"
        output.note(
            f"no name leads to state {views.short(state.id)} ({printable(what)}): "
            f"heddle thread create NAME --from {views.short(state.id)}"
        )
    if not report.problems:
        checked = report.checked.items()
        counted = ", ".join(
            views.counted(number, name.removesuffix("s")) for name, number in checked
        )
        output.confirm_done(f"{output.style('whole', 'green')}: {counted}")


def _print_repair(done: Repair, would_be: str) -> None:
    for line in done.mended:
        output.say(f"{output.style(f'{would_be}mended', 'green')}: {printable(line)}")
    for each in done.aside:
        where = f" to {each.to}" if each.to else ""
        what = printable(f"{each.path}{where}: {each.why}")
        output.say(f"{output.style(f'{would_be}set aside', 'yellow')}: {what}")
    for line in done.lost:
        output.say(f"{output.style('lost', 'red')}: {printable(line)}")
    for line in done.left:
        output.say(f"{output.style('left', 'yellow')}: {printable(line)}")
