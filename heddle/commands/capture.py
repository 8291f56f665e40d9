"""``heddle capture``: record what changed as a new state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from heddle.commands import output, views
from heddle.commands.options import (
    AgentModel,
    AgentProvider,
    AgentSession,
    AgentTask,
    Message,
    NoAgent,
    PrincipalEmail,
    PrincipalName,
    Verb,
    attribution_flags,
    complete_thread,
    new_app,
    repository,
    repository_paths,
)
from heddle.commands.settings import settings

if TYPE_CHECKING:
    from heddle.repo.capture import Captured

app = new_app()


@app.command(
    cls=Verb,
    epilog='heddle capture -m "Parse numbers" --agent-provider anthropic --agent-model opus\n'
    'heddle capture --thread agent-1 -m "Nightly"',
)
def capture(
    message: Message = "",
    thread: Annotated[
        str | None,
        typer.Option(
            "--thread",
            metavar="T",
            help="Capture thread T's mount, live or not.",
            autocompletion=complete_thread,
        ),
    ] = None,
    path: Annotated[
        list[str] | None,
        typer.Option("--path", metavar="P", help="Only what changed at or below P; repeatable."),
    ] = None,
    allow_empty: Annotated[
        bool, typer.Option("--allow-empty", help="Make a state even if nothing changed.")
    ] = False,
    principal_name: PrincipalName = None,
    principal_email: PrincipalEmail = None,
    agent_provider: AgentProvider = None,
    agent_model: AgentModel = None,
    agent_session: AgentSession = None,
    agent_task: AgentTask = None,
    no_agent: NoAgent = False,
) -> None:
    """Record what changed as a new state.

    That is: in the mount you stand in, in the working directory, or in T's mount. Ignored files are
    left where they are. The state says who answers for it and which model made it; heddle whoami
    shows both beforehand.
    """
    repo = repository()
    flags = attribution_flags(
        principal_name=principal_name,
        principal_email=principal_email,
        agent_provider=agent_provider,
        agent_model=agent_model,
        agent_session=agent_session,
        agent_task=agent_task,
    )
    with output.progress("capturing") as progress:
        captured = repo.capture(
            message=message,
            thread=thread,
            paths=repository_paths(repo, path or ()),
            allow_empty=allow_empty,
            flags=flags,
            no_agent=no_agent,
            progress=progress,
        )
    output.answer(_record(captured), _text(captured))
    if not settings.json:
        for left in captured.not_recorded:
            views.not_recorded_note(left.path, left.why)


def _record(captured: Captured) -> dict[str, object]:
    return views.state_record(captured.state) | {
        "changes": {
            "added": captured.added,
            "modified": captured.modified,
            "deleted": captured.deleted,
        },
        "not_recorded": [views.not_recorded_record(each) for each in captured.not_recorded],
        "duration_ms": round(captured.duration_ms, 1),
    }


def _text(captured: Captured) -> str:
    counts = f"{captured.added} added, {captured.modified} modified, {captured.deleted} deleted"
    return f"{views.state_line(captured.state)}\n{counts}"
