"""``heddle mount``: show a thread as an ordinary writable directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from heddle.commands import output, views
from heddle.commands.options import (
    AgentModel,
    AgentProvider,
    AgentSession,
    AgentTask,
    Verb,
    argument,
    attribution_flags,
    complete_spec,
    complete_thread,
    new_app,
    repository,
)
from heddle.commands.output import printable

if TYPE_CHECKING:
    from heddle.api import Mounted

app = new_app()


@app.command(
    cls=Verb,
    epilog="heddle mount agent-1 --create\nheddle mount agent-2 ~/agent-2 --create --from main\n"
    "heddle mount v1.0 /tmp/v1 --read-only",
)
def mount(
    thread: Annotated[str, argument("A thread.", "THREAD", complete_thread)],
    mountpoint: Annotated[
        Path | None, argument("An empty directory, or a name to make.", "MOUNTPOINT")
    ] = None,
    create: Annotated[bool, typer.Option("--create", help="Make the thread first.")] = False,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="SPEC",
            help="Where a made thread begins; else where you are.",
            autocompletion=complete_spec,
        ),
    ] = None,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Take no changes; THREAD can be any state.")
    ] = False,
    allow_other: Annotated[
        bool, typer.Option("--allow-other", help="Let other users in, as file modes allow.")
    ] = False,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay, and serve until it is unmounted.")
    ] = False,
    agent_provider: AgentProvider = None,
    agent_model: AgentModel = None,
    agent_session: AgentSession = None,
    agent_task: AgentTask = None,
) -> None:
    """Show THREAD as a directory at MOUNTPOINT, served by a background process.

    Returns when it answers, which does not depend on how large the tree is. What was unsaved there
    is there again, also after a crash.
    """
    agent = attribution_flags(
        agent_provider=agent_provider,
        agent_model=agent_model,
        agent_session=agent_session,
        agent_task=agent_task,
    )
    repo = repository()
    mounted = repo.mount(
        thread,
        None if mountpoint is None else Path.cwd() / mountpoint,
        create=create,
        start=start,
        read_only=read_only,
        allow_other=allow_other,
        agent=agent,
        foreground=_show if foreground else None,
    )
    if not foreground:
        _show(mounted)


def _show(mounted: Mounted) -> None:
    output.answer(_record(mounted), _text(mounted))
    output.flush()


def _record(mounted: Mounted) -> dict[str, object]:
    recovered = mounted.recovered
    return {
        "thread": mounted.spec,
        "state": views.hex_id(mounted.state),
        "mountpoint": str(mounted.mountpoint),
        "pid": mounted.pid,
        "log": str(mounted.log),
        "read_only": mounted.read_only,
        "recovered": recovered and {"files": recovered.files, "bytes": recovered.bytes},
        "already_mounted": mounted.already_mounted,
    }


def _text(mounted: Mounted) -> str:
    where = f"{printable(mounted.spec)} is mounted at {printable(str(mounted.mountpoint))}"
    if mounted.recovered is None:
        return where
    files, size = mounted.recovered.files, mounted.recovered.bytes
    return f"{where}\nrecovered {views.counted(files, 'unsaved file')}, {size} bytes"
