"""``heddle materialize``: a state or an overlay as ordinary files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from heddle.commands import output, views
from heddle.commands.options import (
    VerbWithPaths,
    argument,
    complete_spec,
    complete_thread,
    new_app,
    paths_after_dashes,
    repository,
    repository_paths,
)
from heddle.commands.output import printable
from heddle.commands.settings import settings
from heddle.errors import UsageError

app = new_app()


@app.command(
    cls=VerbWithPaths,
    epilog="heddle materialize v1.0 ../release\n"
    "heddle materialize --thread agent-1 /tmp/look -- src/",
)
def materialize(
    ctx: typer.Context,
    places: Annotated[
        list[str],
        argument(
            "A state, by default HEAD or what this mount shows; and the directory to write to,"
            " made if it is absent.",
            "[SPEC] DEST",
            complete_spec,
        ),
    ],
    thread: Annotated[
        str | None,
        typer.Option(
            "--thread",
            metavar="NAME",
            help="The overlay of this thread, with what is unsaved.",
            autocompletion=complete_thread,
        ),
    ] = None,
    on_conflict: Annotated[
        Literal["fail", "overwrite", "rename"],
        typer.Option(
            "--on-conflict",
            metavar="fail|overwrite|rename",
            help="What to do where something is already.",
        ),
    ] = "fail",
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", "-j", metavar="N", help="Threads; by default one a processor."),
    ] = None,
) -> None:
    """Write a state, or an overlay, into a directory as ordinary files.

    They are what a mount would show, with executable bits, symbolic links and times. Interrupted,
    it leaves whole files only; nothing is ever written outside DEST.
    """
    *state, where = places
    if len(state) > 1 or not where:
        raise UsageError("one state at most, and one DEST", hint="heddle materialize --help")
    repo = repository()
    with output.progress("writing") as progress:
        done = repo.materialize(
            Path(where),
            state[0] if state else None,
            thread=thread,
            paths=repository_paths(repo, paths_after_dashes(ctx)),
            on_conflict=on_conflict,
            jobs=jobs,
            progress=progress,
        )
    written = done.written
    record = {
        "state": views.hex_id(done.state),
        "thread": done.thread,
        "dest": str(done.destination),
        "files": written.files,
        "bytes": written.bytes,
        "skipped": [{"path": each.path, "why": each.why} for each in written.skipped],
        "renamed": [{"path": each.path, "to": each.to} for each in written.renamed],
        "duration_ms": round(written.duration_ms, 3),
    }
    noun = "file" if written.files == 1 else "files"
    output.answer(record, f"wrote {written.files} {noun} to {printable(str(done.destination))}")
    if not settings.json:
        for skipped in written.skipped:
            output.note(f"not written: {printable(skipped.path)}: {skipped.why}")
        for renamed in written.renamed:
            output.note(f"{printable(renamed.path)} is {printable(renamed.to)} there")
