"""What of the repository's values crosses a control socket, and how: changes, captures, attribution as JSON values.

Owns both directions of each. Framing and errors are ``control``'s. Paths are bytes here and surrogate-escaped text in
JSON, so that every name survives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from heddle.attribution import Agent, Attribution, Principal

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.repo.capture import Captured
    from heddle.repo.changes import Change, NotRecorded
    from heddle.repo.repository import Repository

Json = dict[str, Any]


class Amount(NamedTuple):
    """How much is unsaved.

    Attributes:
        files: how many paths differ from the base; ignored ones are not counted.
        bytes: the size of their contents.
    """

    files: int
    bytes: int

    @classmethod
    def from_json(cls, value: Mapping[str, int] | None) -> Amount | None:
        """As a session says it."""
        return None if value is None else cls(value["files"], value["bytes"])


def text_of(path: bytes) -> str:
    """A path as JSON text."""
    return path.decode("utf-8", "surrogateescape")


def path_of(text: str) -> bytes:
    """The path that ``text_of`` made text."""
    return text.encode("utf-8", "surrogateescape")


def attribution_to_json(attribution: Attribution) -> Json:
    """Who answers for a capture and which model made it; the sources of the values stay behind."""
    principal, agent = attribution.principal, attribution.agent
    return {
        "principal": [principal.name, principal.email],
        "agent": agent and [agent.provider, agent.model, agent.session, agent.task],
    }


def attribution_from_json(value: Mapping[str, Any]) -> Attribution:
    """The attribution again."""
    agent = value["agent"]
    return Attribution(Principal(*value["principal"]), agent and Agent(*agent), {})


def change_to_json(change: Change) -> Json:
    """One change of a status."""
    return {
        "path": text_of(change.path),
        "kind": change.kind,
        "old_path": None if change.old_path is None else text_of(change.old_path),
        "old_mode": change.old_mode,
        "old_id": id_to_json(change.old_id),
        "new_mode": change.new_mode,
        "new_id": id_to_json(change.new_id),
    }


def change_from_json(value: Mapping[str, Any]) -> Change:
    """The change again."""
    from heddle.repo.changes import Change

    return Change(
        path=path_of(value["path"]),
        kind=value["kind"],
        old_path=None if value["old_path"] is None else path_of(value["old_path"]),
        old_mode=value["old_mode"],
        old_id=id_from_json(value["old_id"]),
        new_mode=value["new_mode"],
        new_id=id_from_json(value["new_id"]),
    )


def captured_to_json(captured: Captured) -> Json:
    """What a capture did; the state itself is in the repository."""
    return {
        "state": captured.state.id.decode("ascii"),
        "added": captured.added,
        "modified": captured.modified,
        "deleted": captured.deleted,
        "not_recorded": not_recorded_to_json(captured.not_recorded),
        "duration_ms": captured.duration_ms,
    }


def captured_from_json(repo: Repository, value: Mapping[str, Any]) -> Captured:
    """What a capture did, with its state read from the repository."""
    from heddle.repo.capture import Captured

    return Captured(
        state=repo.state(id_from_json(value["state"])),
        added=value["added"],
        modified=value["modified"],
        deleted=value["deleted"],
        not_recorded=not_recorded_from_json(value["not_recorded"]),
        duration_ms=value["duration_ms"],
    )


def id_to_json(object_id: ObjectID | None) -> str | None:
    return None if object_id is None else object_id.decode("ascii")


def id_from_json(text: str | None) -> Any:
    return None if text is None else text.encode("ascii")


def not_recorded_to_json(found: Iterable[NotRecorded]) -> list[list[str]]:
    """As ``not_recorded_from_json`` reads it."""
    return [[text_of(one.path), one.why] for one in found]


def not_recorded_from_json(value: Iterable[Sequence[str]]) -> tuple[NotRecorded, ...]:
    """What was left out."""
    from heddle.repo.changes import NotRecorded

    return tuple(NotRecorded(path_of(path), why) for path, why in value)
