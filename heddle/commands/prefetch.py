"""``heddle prefetch``: bring what a lazy clone left with its remote."""

from __future__ import annotations

from typing import Annotated

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

app = new_app()


@app.command(
    cls=VerbWithPaths, epilog="heddle prefetch\nheddle prefetch origin/main -- src docs/index.md"
)
def prefetch(
    ctx: typer.Context,
    spec: Annotated[str, argument("A state; HEAD if not given.", "SPEC", complete_spec)] = "HEAD",
) -> None:
    """Bring the files of a state here that a lazy clone left with its remote.

    What has come is kept when it is interrupted, and the next one goes on from there. Every session
    of the repository sees it at once. Exits with 1 when the remote could not deliver some of them.
    """
    from heddle.git import prefetching

    repo = repository()
    paths = repository_paths(repo, paths_after_dashes(ctx))
    with output.progress("prefetching") as progress:
        done = prefetching.prefetch(repo, spec, paths, progress=progress)
    record = {
        "state": views.hex_id(done.state),
        "objects": done.objects,
        "bytes": done.size_bytes,
        "already": done.already,
        "missing": done.missing,
        "duration_ms": done.duration_ms,
    }
    lost = f"; {views.counted(done.missing, 'file')} can't be had" if done.missing else ""
    output.answer(
        record,
        f"{views.counted(done.objects, 'file')} fetched, {done.already} here already{lost}",
    )
    if done.missing:
        raise typer.Exit(1)
