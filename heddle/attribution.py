"""Who answers for a change and which model made it.

Owns the two names that every state carries, Principal and Agent, and the order in which flags, environment and
configurations give them. How they are written into a commit is ``objects/state.py``'s; reading the
configurations is ``repo/config.py``'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from heddle.errors import ConfigError, HeddleError, NoPrincipal, UsageError

PRINCIPAL_KEYS = ("principal.name", "principal.email")
AGENT_KEYS = ("agent.provider", "agent.model", "agent.session", "agent.task")
_ENVIRONMENT = {
    key: "HEDDLE_" + key.upper().replace(".", "_") for key in PRINCIPAL_KEYS + AGENT_KEYS
}
_NOTHING: Mapping[str, str] = MappingProxyType({})
_HINT = (
    "heddle config set principal.name 'Your Name' && heddle config set principal.email "
    "you@example.org, or set HEDDLE_PRINCIPAL_NAME and HEDDLE_PRINCIPAL_EMAIL"
)


class Principal(NamedTuple):
    """The human who answers for a change.

    Attributes:
        name: as people call them.
        email: their address, without angle brackets.
    """

    name: str
    email: str

    def __str__(self) -> str:
        return f"{self.name} <{self.email}>"


class Agent(NamedTuple):
    """The model that made a change; at least one of provider and model is set.

    Attributes:
        provider: who runs the model, for example ``anthropic``; holds no ``/``.
        model: the model's name.
        session: the run of the agent that made the change, in the agent's own words.
        task: what it was working on, in the agent's own words.
    """

    provider: str | None
    model: str | None
    session: str | None = None
    task: str | None = None

    def __str__(self) -> str:
        return "/".join(part for part in (self.provider, self.model) if part)


class Sourced(NamedTuple):
    """A value and where it came from.

    Attributes:
        value: None when nothing gave one.
        source: ``flag``, ``environment HEDDLE_…``, ``mount``, ``repository config``, ``git config`` or
            ``user config``; None with a value of None.
    """

    value: str | None
    source: str | None


class Attribution(NamedTuple):
    """What a capture records.

    Attributes:
        principal: the human.
        agent: the model; None when a human made the change alone.
        sources: where each value came from, for all of ``PRINCIPAL_KEYS`` and ``AGENT_KEYS``.
    """

    principal: Principal
    agent: Agent | None
    sources: Mapping[str, Sourced]

    def __str__(self) -> str:
        return f"{self.principal} via {self.agent}" if self.agent else str(self.principal)


def resolve(
    *,
    flags: Mapping[str, str | None] = _NOTHING,
    environment: Mapping[str, str] = _NOTHING,
    layers: Sequence[tuple[str, Mapping[str, str]]] = (),
    mount_defaults: Mapping[str, str] = _NOTHING,
    no_agent: bool = False,
) -> Attribution:
    """Decide who a capture is recorded for.

    Each value is looked for by itself: flag, then environment, then (agent only) the defaults of the mount,
    then each layer. An empty variable counts as unset.

    Args:
        flags: by key (``principal.name``, ``agent.model``, …); None: not given.
        environment: of the capturing command, not of a session.
        layers: configurations, most important first: name of the source and values by key.
        mount_defaults: agent values given when the thread was mounted, by key.
        no_agent: record no agent, whatever would give one.

    Raises:
        NoPrincipal: no name or no email was found.
        UsageError: a flag or a variable holds what a commit can't, or contradicts ``no_agent``.
        ConfigError: a configuration holds what a commit can't.
    """
    sources = find(
        flags=flags,
        environment=environment,
        layers=layers,
        mount_defaults=mount_defaults,
        no_agent=no_agent,
    )
    name, email = (sources[key].value for key in PRINCIPAL_KEYS)
    if name is None or email is None:
        missing = " and no ".join(
            key.partition(".")[2] for key in PRINCIPAL_KEYS if sources[key].value is None
        )
        raise NoPrincipal(f"no principal answers for this change: no {missing} is set", hint=_HINT)
    return Attribution(Principal(name, email), _agent(sources), MappingProxyType(sources))


def agent_of(environment: Mapping[str, str], mount_defaults: Mapping[str, str]) -> Agent | None:
    """Which model a program works for, as its environment says or else the defaults of its mount.

    Returns:
        None when neither says, or says what can't be recorded.
    """
    try:
        return _agent(find(environment=environment, mount_defaults=mount_defaults))
    except HeddleError:
        return None


def find(
    *,
    flags: Mapping[str, str | None] = _NOTHING,
    environment: Mapping[str, str] = _NOTHING,
    layers: Sequence[tuple[str, Mapping[str, str]]] = (),
    mount_defaults: Mapping[str, str] = _NOTHING,
    no_agent: bool = False,
) -> dict[str, Sourced]:
    """Look every value up as ``resolve`` does, and say what is missing instead of failing."""
    given = [key for key in AGENT_KEYS if flags.get(key) is not None]
    if no_agent and given:
        raise UsageError(f"--no-agent contradicts --{given[0].replace('.', '-')}")
    found: dict[str, Sourced] = {}
    for key in PRINCIPAL_KEYS:
        found[key] = _look_up(key, flags, environment, layers)
    for key in AGENT_KEYS:
        below = [("mount", mount_defaults), *layers]
        nothing = Sourced(None, None)
        found[key] = nothing if no_agent else _look_up(key, flags, environment, below)
    return found


def _look_up(
    key: str,
    flags: Mapping[str, str | None],
    environment: Mapping[str, str],
    layers: Sequence[tuple[str, Mapping[str, str]]],
) -> Sourced:
    flag = flags.get(key)
    if flag is not None:
        return Sourced(_checked(key, flag, "flag"), "flag")
    variable = _ENVIRONMENT[key]
    if environment.get(variable, "").strip():
        source = f"environment {variable}"
        return Sourced(_checked(key, environment[variable], source), source)
    for source, values in layers:
        value = values.get(key)
        if value is not None:
            return Sourced(_checked(key, value, source), source)
    return Sourced(None, None)


def _agent(sources: Mapping[str, Sourced]) -> Agent | None:
    provider, model, session, task = (sources[key].value for key in AGENT_KEYS)
    if provider is not None or model is not None:
        return Agent(provider, model, session, task)
    for key in AGENT_KEYS:
        if sources[key].source == "flag":
            option = "--" + key.replace(".", "-")
            raise UsageError(f"{option} says nothing without --agent-provider or --agent-model")
    return None


def _checked(key: str, value: str, source: str) -> str:
    """The value without white space around it; refused where a commit header can't hold it."""
    value = value.strip()
    wrong = what_is_wrong(key, value)
    if wrong is None:
        return value
    message = f"{key} from {source} {wrong}"
    error: HeddleError = ConfigError(message) if "config" in source else UsageError(message)
    raise error


def what_is_wrong(key: str, value: str) -> str | None:
    """Why ``value`` can't be recorded for ``key``, as the end of a sentence; None if it can."""
    if not value:
        return "is empty"
    for character in value:
        if character in "<>" or character < " " or "\x7f" <= character < "\xa0":
            return f"holds {character!r}, which a commit can't record"
        if "\ud800" <= character <= "\udfff":
            return "is not UTF-8"
    if key == "agent.provider" and "/" in value:
        return "holds '/', which separates provider and model"
    return None
