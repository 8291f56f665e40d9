"""``heddle whoami``: who the next capture would name, and where each value comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from heddle.commands import output
from heddle.commands.options import (
    AgentModel,
    AgentProvider,
    AgentSession,
    AgentTask,
    NoAgent,
    PrincipalEmail,
    PrincipalName,
    Verb,
    attribution_flags,
    new_app,
    repository,
)
from heddle.commands.settings import settings

if TYPE_CHECKING:
    from heddle.attribution import Attribution

app = new_app()


@app.command(cls=Verb, epilog="heddle whoami\nHEDDLE_AGENT_MODEL=opus heddle whoami --json")
def whoami(
    principal_name: PrincipalName = None,
    principal_email: PrincipalEmail = None,
    agent_provider: AgentProvider = None,
    agent_model: AgentModel = None,
    agent_session: AgentSession = None,
    agent_task: AgentTask = None,
    no_agent: NoAgent = False,
) -> None:
    """Show who the next capture would name.

    That is: the principal and the agent, each value with the place it comes from.
    """
    flags = attribution_flags(
        principal_name=principal_name,
        principal_email=principal_email,
        agent_provider=agent_provider,
        agent_model=agent_model,
        agent_session=agent_session,
        agent_task=agent_task,
    )
    attribution = repository().attribution(flags=flags, no_agent=no_agent)
    if settings.json:
        output.emit(_record(attribution))
    else:
        _print(attribution)


def _record(attribution: Attribution) -> dict[str, object]:
    def group(prefix: str, *names: str) -> dict[str, object]:
        sources = attribution.sources
        return {
            name: {
                "value": sources[f"{prefix}.{name}"].value,
                "source": sources[f"{prefix}.{name}"].source,
            }
            for name in names
        }

    agent = group("agent", "provider", "model", "session", "task")
    return {
        "principal": group("principal", "name", "email"),
        "agent": agent if attribution.agent is not None else None,
    }


def _print(attribution: Attribution) -> None:
    for key, sourced in attribution.sources.items():
        if sourced.value is not None:
            value = output.printable(sourced.value)
            output.say(f"{key:16} {value}  {output.style(f'({sourced.source})', 'dim')}")
    if attribution.agent is None:
        output.say(f"{'agent':16} none")
