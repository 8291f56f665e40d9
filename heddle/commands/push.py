"""``heddle push``: send threads and markers to a remote."""

from __future__ import annotations

from typing import Annotated

import typer

from heddle.commands import output
from heddle.commands.fetch import ref_line, ref_record
from heddle.commands.options import Verb, argument, complete_thread, new_app, repository
from heddle.commands.output import printable

app = new_app()


@app.command(
    cls=Verb, epilog="heddle push\nheddle push origin agent-1 agent-2\nheddle push --markers"
)
def push(
    remote: Annotated[str, argument("A remote; origin if not given.", "REMOTE")] = "origin",
    threads: Annotated[
        list[str] | None,
        argument("The threads to send; else the one you are on.", "THREAD...", complete_thread),
    ] = None,
    markers: Annotated[
        bool, typer.Option("--markers", help="Send all markers too, as tags.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Also where the remote holds commits that are not here."),
    ] = False,
) -> None:
    """Send threads to a remote, as branches of their names.

    A state is a git commit: what arrives has the same ids.
    """
    from heddle.git import pushing
    from heddle.git.transport import shown

    repo = repository()
    with output.progress("pushing") as progress:
        pushed = pushing.push(
            repo, remote, threads or (), markers=markers, force=force, progress=progress
        )
    lines = [
        f"{printable(shown(to.url))}: {ref_line(each)}" if len(pushed.to) > 1 else ref_line(each)
        for to in pushed.to
        for each in to.refs
    ]
    name = printable(pushed.remote.name)
    output.answer(
        {
            "remote": pushed.remote.name,
            "url": pushed.remote.push_url,
            "urls": list(pushed.remote.push_urls),
            "refs": [ref_record(each) for each in pushed.refs],
        },
        "\n".join(lines) or f"{name} has everything already",
    )
