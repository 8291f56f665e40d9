"""``heddle overlay``: what was discarded or belonged to a deleted thread, and can be had back."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from heddle.commands import output, views
from heddle.commands.options import Verb, VerbGroup, argument, complete_thread, new_app, repository
from heddle.commands.output import printable
from heddle.commands.settings import settings
from heddle.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from heddle.mount.parked import Usage
    from heddle.repo.parked import Amount, Parked

app = new_app(epilog="heddle overlay list\nheddle overlay restore agent-1")


@app.callback(cls=VerbGroup)
def overlay() -> None:
    """List, restore and remove parked overlays: what was discarded, what deleted threads held.

    They are kept for 14 days, and after that until somebody drops them.
    """


@app.command("list", cls=Verb, epilog="heddle overlay list\nheddle overlay list --json")
def list_() -> None:
    """List the parked overlays, oldest first."""
    repo = repository()
    usage = {each.parked.id: each for each in repo.park.usage() if each.parked}
    if settings.json:
        records = [_record(each.parked, each.amount) for each in usage.values() if each.parked]
        output.emit({"parked": records})
        return
    for each in usage.values():
        if each.parked is not None:
            output.say(_line(each.parked, each.amount))


@app.command("restore", cls=Verb, epilog="heddle overlay restore agent-1 --thread agent-1-again")
def restore(
    name: Annotated[str, argument("A parked overlay, or the thread that it was of.", "OVERLAY")],
    thread: Annotated[
        str | None,
        typer.Option(
            "--thread",
            metavar="NAME",
            help="Whose it shall be, made if there is none; else the thread it was of.",
            autocompletion=complete_thread,
        ),
    ] = None,
) -> None:
    """Make a parked overlay a thread's again.

    Refused if that thread has unsaved changes, or has moved to another state since.
    """
    done = repository().park.restore(name, thread)
    output.answer(
        {
            "id": done.parked.id,
            "thread": done.thread,
            "created": done.created,
            "base": views.hex_id(done.parked.base),
            "files": done.amount.files,
            "bytes": done.amount.bytes,
        },
        f"restored {views.counted(done.amount.files, 'file')} to thread {printable(done.thread)}",
    )


@app.command("drop", cls=Verb, epilog="heddle overlay drop --expired")
def drop(
    names: Annotated[
        list[str] | None,
        argument("Parked overlays, or the threads that they were of.", "OVERLAY..."),
    ] = None,
    expired: Annotated[
        bool, typer.Option("--expired", help="All that have been parked for 14 days.")
    ] = False,
) -> None:
    """Remove parked overlays for good."""
    park = repository().park
    if bool(names) == expired:
        raise UsageError("say which, or --expired", hint="heddle overlay list")
    chosen = park.expired() if expired else [park.get(name) for name in names or ()]
    unique = list({each.id: each for each in chosen}.values())
    amounts = park.drop(unique)
    _report_dropped(unique, amounts)


def _report_dropped(dropped: Sequence[Parked], amounts: Sequence[Amount]) -> None:
    pairs = list(zip(dropped, amounts, strict=True))
    if settings.json:
        output.emit({"dropped": [_record(each, amount) for each, amount in pairs]})
        return
    for each, amount in pairs:
        output.confirm_done(f"dropped {_line(each, amount)}")
    if not pairs:
        output.note("nothing to drop")


@app.command("du", cls=Verb, epilog="heddle overlay du")
def du() -> None:
    """Say how much the overlays of threads, and the parked ones, hold."""
    usage = repository().park.usage()
    total = sum(each.amount.bytes for each in usage)
    if settings.json:
        output.emit({"overlays": [_usage_record(each) for each in usage], "total_bytes": total})
        return
    for each in usage:
        where = f"parked {each.parked.id}" if each.parked else f"thread {printable(each.thread)}"
        output.say(f"{each.amount.bytes:>14} {where}")
    output.say(f"{total:>14} in all")


def _usage_record(usage: Usage) -> dict[str, object]:
    return {
        "thread": usage.thread,
        "parked": usage.parked.id if usage.parked else None,
        "files": usage.amount.files,
        "bytes": usage.amount.bytes,
    }


def _record(parked: Parked, amount: Amount) -> dict[str, object]:
    return {
        "id": parked.id,
        "thread": parked.thread,
        "why": parked.why,
        "base": views.hex_id(parked.base),
        "parked_at": views.iso_time(parked.parked_ns // 10**9),
        "expires_at": views.iso_time(parked.expires_ns // 10**9),
        "expired": parked.expires_ns <= time.time_ns(),
        "files": amount.files,
        "bytes": amount.bytes,
        "path": str(parked.path),
    }


def _line(parked: Parked, amount: Amount) -> str:
    when = views.iso_time(parked.parked_ns // 10**9)
    held = f"{views.counted(amount.files, 'file')}, {amount.bytes} bytes"
    end = ", expired" if parked.expires_ns <= time.time_ns() else ""
    return f"{printable(parked.id)} {when} {parked.why}: {held}{end}"
