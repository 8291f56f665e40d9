"""How states and changes look, in JSON and in text, wherever a command shows one.

Owns the field names of a state and of a change and their lines for people. Which of them a command
shows, and where they come from, is the command's.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from heddle.commands import output
from heddle.commands.output import printable, style

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.api import Repository
    from heddle.attribution import Agent, Principal
    from heddle.objects.state import State
    from heddle.repo.changes import Change, NotRecorded
    from heddle.repo.diff import FileDiff

SHORT = 8
"""How much of an id is shown to people; four digits are enough to name a state while they are unique."""

BAR_WIDTH = 40
LETTERS = {"added": "A", "modified": "M", "deleted": "D", "renamed": "R", "type-changed": "T"}
_LETTER_STYLES = {"A": "green", "M": "yellow", "D": "red", "R": "cyan", "T": "magenta"}


def short(id: bytes | str | None) -> str:
    """Return the part of a state's or change's id that people are shown."""
    if id is None:
        return "-"
    return (id.decode() if isinstance(id, bytes) else id)[:SHORT]


def hex_id(id: bytes | None) -> str | None:
    """Return an id as JSON carries it."""
    return None if id is None else id.decode()


def principal_record(principal: Principal) -> dict[str, object]:
    """Return the fields of a principal."""
    return {"name": principal.name, "email": principal.email}


def agent_record(agent: Agent | None) -> dict[str, object] | None:
    """Return the fields of an agent; None when no agent was named."""
    if agent is None:
        return None
    return {
        "provider": agent.provider,
        "model": agent.model,
        "session": agent.session,
        "task": agent.task,
    }


def state_record(state: State) -> dict[str, object]:
    """Return the fields that every command gives of a state."""
    return {
        "state": hex_id(state.id),
        "change_id": state.change_id,
        "parents": [hex_id(parent) for parent in state.parents],
        "tree": hex_id(state.tree),
        "thread": state.thread,
        "message": message(state),
        "principal": principal_record(state.principal),
        "agent": agent_record(state.agent),
        "time": iso_time(state.time_s, state.timezone_s),
    }


def message(state: State) -> str:
    """Return a state's message as it was given: a commit's ends with a newline that nobody typed."""
    return state.message.rstrip("\n")


def count_record(changes: Iterable[Change]) -> dict[str, int]:
    """Return how many paths were added, modified and deleted; a rename is one of each end."""
    counts = {"added": 0, "modified": 0, "deleted": 0}
    for change in changes:
        if change.kind == "renamed":
            counts["added"] += 1
            counts["deleted"] += 1
        else:
            counts[change.kind if change.kind in counts else "modified"] += 1
    return counts


def first_parent(repo: Repository, state: State) -> ObjectID | None:
    """Return the state that another is compared with; None at a root, or where a shallow clone ends."""
    return None if not state.parents or state.id in repo.shallow else state.parents[0]


def changes_of(repo: Repository, state: State) -> list[Change]:
    """Return what a state changed against its first parent, renames as a deletion and an addition."""
    from heddle.repo.changes import tree_changes

    parent = first_parent(repo, state)
    before = None if parent is None else repo.state(parent).tree
    return tree_changes(repo.store, before, state.tree, renames=False)


def change_record(change: Change) -> dict[str, object]:
    """Return the fields of one changed path."""
    return {"path": change.path, "kind": change.kind, "from": change.old_path}


def file_record(file: FileDiff) -> dict[str, object]:
    """Return the fields of one file of a diff."""
    return {
        "path": file.path,
        "kind": file.kind,
        "from": file.old_path,
        "additions": file.additions,
        "deletions": file.deletions,
        "binary": file.binary,
    }


def stat_lines(files: Sequence[FileDiff]) -> Iterator[str]:
    """Yield a diff as counts: a line for each file, with bars to the scale of the largest, and a sum."""
    if not files:
        return
    names = [_renamed(file.old_path, file.path) for file in files]
    width = max(map(len, names))
    largest = max(file.additions + file.deletions for file in files)
    scale = min(1.0, BAR_WIDTH / max(largest, 1))
    for name, file in zip(names, files, strict=True):
        yield f" {name.ljust(width)} | {_bar(file, scale)}"
    added, deleted = sum(file.additions for file in files), sum(file.deletions for file in files)
    yield f" {counted(len(files), 'path')} changed, {added} added, {deleted} deleted"


def _bar(file: FileDiff, scale: float) -> str:
    if file.binary:
        return "binary"
    plus, minus = (
        "" if not number else sign * max(1, round(number * scale))
        for number, sign in ((file.additions, "+"), (file.deletions, "-"))
    )
    return (
        f"{file.additions + file.deletions:4} {style(plus, 'green')}{style(minus, 'red')}".rstrip()
    )


def counted(number: int, thing: str) -> str:
    """Return a number with its noun: ``1 path``, ``2 paths``."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _renamed(old_path: bytes | None, path: bytes) -> str:
    name = printable(path)
    return name if old_path is None else f"{printable(old_path)} -> {name}"


def change_line(change: Change) -> str:
    """Return one changed path for people: its letter and its name."""
    letter = LETTERS[change.kind]
    return f"{style(letter, _LETTER_STYLES[letter])} {_renamed(change.old_path, change.path)}"


def iso_time(time_s: int, timezone_s: int = 0) -> str:
    """Return a time as RFC 3339 writes it, at its own offset from UTC in seconds.

    A time that no calendar holds, which a commit may claim, is ``@<seconds>``.
    """
    try:
        local = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time_s + timezone_s))
    except (OverflowError, ValueError, OSError):
        return f"@{time_s}"
    sign = "-" if timezone_s < 0 else "+"
    hours, minutes = divmod(abs(timezone_s) // 60, 60)
    return f"{local}{sign}{hours:02}:{minutes:02}"


def subject(message: str) -> str:
    """Return the first line of a message for people."""
    lines = message.strip().splitlines()
    return printable(lines[0]) if lines else "(no message)"


def made_by(state: State) -> str:
    """Return who answers for a state and which model made it."""
    text = printable(f"{state.principal.name} <{state.principal.email}>")
    agent = agent_text(state.agent)
    return f"{text} via {style(agent, 'cyan')}" if agent else text


def agent_text(agent: Agent | None) -> str:
    """Return an agent as ``provider/model``, or nothing."""
    if agent is None:
        return ""
    return printable("/".join(part for part in (agent.provider, agent.model) if part))


def state_lines(state: State, names: Iterable[str] = (), *, full: bool = False) -> Iterator[str]:
    """Yield a state for people: ids and names, who and when, what.

    Args:
        state: the state.
        names: the threads and markers at it.
        full: whole ids, and the agent's session and task.
    """
    yield state_heading(state, names, full=full)
    thread = f" on {printable(state.thread)}" if state.thread else ""
    when = iso_time(state.time_s, state.timezone_s).replace("T", " ")
    yield f"{made_by(state)}{thread}, {style(when, 'dim')}"
    if full and state.agent is not None:
        for label, value in (("session", state.agent.session), ("task", state.agent.task)):
            if value:
                yield f"{label} {printable(value)}"
    for line in state.message.strip().splitlines():
        yield f"  {printable(line)}".rstrip()


def state_heading(state: State, names: Iterable[str] = (), *, full: bool = False) -> str:
    """Return a state's ids, coloured, and the names that are at it."""
    ids = [hex_id(state.id) or "", state.change_id]
    if not full:
        ids = [short(id) for id in ids]
    heading = f"{style(ids[0], 'yellow')} {style(ids[1], 'magenta')}"
    return f"{heading} {decoration(names)}".rstrip()


def state_line(state: State, names: Iterable[str] = ()) -> str:
    """Return a state as one line."""
    agent = agent_text(state.agent)
    end = f" {style(f'[{agent}]', 'cyan')}" if agent else ""
    return f"{state_heading(state, names)} {subject(state.message)}{end}"


def decoration(names: Iterable[str]) -> str:
    """Return the names at a state, in brackets."""
    joined = ", ".join(printable(name) for name in names)
    return style(f"({joined})", "green", "bold") if joined else ""


def not_recorded_note(path: bytes, why: str) -> None:
    """Tell a person that a path stays unrecorded; it is not lost, it is where it was."""
    output.note(f"not recorded: {printable(path)}: {why}")


def not_recorded_record(left: NotRecorded) -> dict[str, object]:
    """The same for programs."""
    return {"path": left.path, "why": left.why}
