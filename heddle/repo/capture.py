"""Captures: making a state of a tree and moving its thread there.

Owns the order of a capture's durable steps, for the working directory and for mounts alike.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from heddle import faults
from heddle.objects import state as states
from heddle.objects.state import State

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.attribution import Attribution
    from heddle.objects.pack import PackWriter
    from heddle.repo.repository import Repository


@dataclass(frozen=True, slots=True)
class NotRecorded:
    """A path that a capture had to leave out, and why."""

    path: bytes
    why: str


@dataclass(frozen=True, slots=True)
class Captured:
    """What a capture did."""

    state: State
    added: int
    modified: int
    deleted: int
    not_recorded: tuple[NotRecorded, ...]
    duration_ms: float


def record_state(
    repo: Repository,
    writer: PackWriter,
    *,
    thread: str,
    expected: ObjectID | None,
    tree: ObjectID,
    attribution: Attribution,
    message: str,
    kind: str = "capture",
    overlay_base: bool = False,
    worktree_base: bool = False,
) -> State:
    """Make a state of a tree, make it durable, and move the thread to it: the last is the commit point."""
    raw = states.encode(
        tree=tree,
        parents=() if expected is None else (expected,),
        principal=attribution.principal,
        agent=attribution.agent,
        change_id=states.new_change_id(),
        thread=thread,
        message=message,
        time_s=int(time.time()),
        timezone_s=-time.timezone,
    )
    oid = writer.add(1, raw)
    writer.commit()
    faults.reach("capture.before-publish")
    repo.publish(
        thread=thread,
        expected=expected,
        new=oid,
        kind=kind,
        message=message,
        attribution=attribution,
        overlay_base=overlay_base,
        worktree_base=worktree_base,
    )
    return states.decode(oid, raw)
