"""Who answers for a change and which model made it.

Owns the two names that every state carries, Principal and Agent, and how they are resolved. How they are
written into a commit is ``objects/state.py``'s.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Principal:
    """The human who answers for a change.

    Attributes:
        name: as people call them.
        email: their address, without angle brackets.
    """

    name: str
    email: str


@dataclass(frozen=True, slots=True)
class Agent:
    """The model that made a change; at least one of provider and model is set.

    Attributes:
        provider: who runs the model, for example ``anthropic``.
        model: the model's name.
        session: the run of the agent that made the change, in the agent's own words.
        task: what it was working on, in the agent's own words.
    """

    provider: str | None
    model: str | None
    session: str | None = None
    task: str | None = None
