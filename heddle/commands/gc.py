"""``heddle gc``: make what is stored small."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from heddle.commands import output, views
from heddle.commands.options import Verb, new_app, repository
from heddle.commands.settings import settings

if TYPE_CHECKING:
    from heddle.api import GarbageCollected

app = new_app()


@app.command(cls=Verb, epilog="heddle gc\nheddle gc --dry-run --prune-older-than 2d")
def gc(
    prune_older_than: Annotated[
        str,
        typer.Option(
            "--prune-older-than",
            metavar="TIME",
            help="Drop what nothing needs if it was stored before this: 14d, 'now', a date.",
        ),
    ] = "14d",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Change nothing, only say what would be dropped.")
    ] = False,
) -> None:
    """Make what is stored small.

    That is: merge packs, store older versions against newer ones, and drop what no thread, marker,
    operation or overlay leads to. Safe while mounts are in use and captures go on.
    """
    from heddle.repo.log import parse_time

    started = time.monotonic()
    before_s = parse_time(prune_older_than, int(time.time()))
    repo = repository()
    with output.progress("collecting") as progress:
        found = repo.collect(before_ns=before_s * 10**9, dry_run=dry_run, progress=progress)
    if settings.json:
        duration_ms = (time.monotonic() - started) * 1000
        output.emit(_record(found) | {"dry_run": dry_run, "duration_ms": round(duration_ms, 1)})
    else:
        _print(found, dry_run=dry_run)


def _record(found: GarbageCollected) -> dict[str, object]:
    objects = found.objects
    return {
        "packs_before": objects.packs_before,
        "packs_after": objects.packs_after,
        "objects": objects.objects,
        "bytes_before": objects.bytes_before,
        "bytes_after": objects.bytes_after,
        "dropped": {"objects": objects.dropped, "bytes": objects.dropped_bytes},
        "parked_dropped": found.parked_dropped,
    }


def _print(found: GarbageCollected, *, dry_run: bool) -> None:
    objects = found.objects
    would = "would drop" if dry_run else "dropped"
    lines = []
    if objects.packs_after is not None and objects.bytes_after is not None:
        packs = views.counted(objects.packs_before, "pack")
        won = objects.bytes_before - objects.bytes_after
        lines.append(
            f"{packs} became {objects.packs_after}: {objects.bytes_before:,} bytes became"
            f" {objects.bytes_after:,}, {won:,} won"
        )
    if objects.dropped:
        what = views.counted(objects.dropped, "object")
        lines.append(f"{would} {what} ({objects.dropped_bytes:,} bytes) that nothing needs")
    if found.parked_dropped:
        lines.append(f"{would} {views.counted(found.parked_dropped, 'parked overlay')}")
    output.confirm_done("\n".join(lines) if lines else "nothing to drop")
