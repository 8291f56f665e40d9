"""``heddle log``: the history of a state, or of every thread, as a list or as a drawing."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from heddle.commands import output, views
from heddle.commands.graph import Graph, without_hidden
from heddle.commands.options import (
    VerbWithPaths,
    argument,
    complete_spec,
    new_app,
    paths_after_dashes,
    repository,
    repository_paths,
)
from heddle.commands.settings import settings
from heddle.errors import UsageError

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.api import Repository
    from heddle.objects.state import State

app = new_app()


@app.command(
    cls=VerbWithPaths,
    epilog="heddle log -n 5\nheddle log --graph --all\nheddle log agent-1 --agent opus -- src/",
)
def log(
    ctx: typer.Context,
    spec: Annotated[
        str | None, argument("Where to begin; HEAD if not given.", "SPEC", complete_spec)
    ] = None,
    limit: Annotated[
        int | None, typer.Option("-n", "--limit", metavar="N", help="At most N states.")
    ] = None,
    graph: Annotated[bool, typer.Option("--graph", help="Draw how the states descend.")] = False,
    oneline: Annotated[bool, typer.Option("--oneline", help="One line for each state.")] = False,
    every: Annotated[bool, typer.Option("--all", help="Begin at every thread.")] = False,
    agent: Annotated[
        str | None,
        typer.Option("--agent", metavar="A", help="Only states whose provider/model contains A."),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="T", help="Only since T: 2026-01-31, '2 days ago'."),
    ] = None,
) -> None:
    """Show the history.

    That is: the states that led to SPEC, newest first; with paths, those that changed them.
    """
    if limit is not None and limit < 0:
        raise UsageError(f"-n {limit}: how many states can't be negative")
    if every and spec is not None:
        raise UsageError("either --all or a state to begin at, not both")
    since_s = _since(since)
    repo = repository()
    starts = _starts(repo, spec, every)
    paths = repository_paths(repo, paths_after_dashes(ctx))
    states = repo.log(
        starts,
        limit=limit,
        agent=agent,
        since=since_s,
        paths=paths,
        topological=graph,
    )
    if settings.json:
        output.emit({"states": [_record(repo, state) for state in states]})
        return
    hides_some = agent is not None or bool(paths)
    with output.paged():
        _print(repo, starts, states, graph=graph, oneline=oneline, hides_some=hides_some)


def _since(text: str | None) -> int | None:
    if text is None:
        return None
    from heddle.repo.log import parse_time

    return parse_time(text, int(time.time()))


def _starts(repo: Repository, spec: str | None, every: bool) -> list[ObjectID]:
    if every:
        return [thread.state for thread in repo.threads.list() if thread.state is not None]
    return [repo.resolve(spec or "HEAD")]


def _record(repo: Repository, state: State) -> dict[str, object]:
    return views.state_record(state) | {
        "changes": views.count_record(views.changes_of(repo, state))
    }


def _print(
    repo: Repository,
    starts: Sequence[ObjectID],
    states: Iterator[State],
    *,
    graph: bool,
    oneline: bool,
    hides_some: bool,
) -> None:
    names = names_at(repo)
    if graph:
        _draw(repo, starts, states, names, oneline=oneline, hides_some=hides_some)
        return
    for state in states:
        for line in _lines(state, names, oneline):
            output.say(line)
        if not oneline:
            output.say()


def _lines(state: State, names: Mapping[bytes, list[str]], oneline: bool) -> list[str]:
    at = names.get(state.id, ())
    if oneline:
        return [views.state_line(state, at)]
    return list(views.state_lines(state, at, full=settings.verbose))


def _draw(
    repo: Repository,
    starts: Sequence[ObjectID],
    states: Iterator[State],
    names: Mapping[bytes, list[str]],
    *,
    oneline: bool,
    hides_some: bool,
) -> None:
    drawing = Graph(ascii_only=not output.draws_lines())
    shown = list(states)
    parents: Mapping[bytes, Sequence[bytes]] = {state.id: state.parents for state in shown}
    if hides_some:
        whole = ((state.id, state.parents) for state in repo.log(starts, topological=True))
        parents = without_hidden(parents.keys(), whole)
    here = repo.threads.get(repo.current_thread).state
    for state in shown:
        lines = _lines(state, names, oneline)
        for row in drawing.rows(state.id, parents[state.id], lines, here=state.id == here):
            output.say(row)


def names_at(repo: Repository) -> dict[bytes, list[str]]:
    """Return the threads and markers at each state; the current thread first, as ``HEAD = <name>``."""
    names: dict[bytes, list[str]] = {}
    for thread in repo.threads.list():
        if thread.state is not None:
            at = names.setdefault(thread.state, [])
            if thread.name == repo.current_thread:
                at.insert(0, f"HEAD = {thread.name}")
            else:
                at.append(thread.name)
    for marker in repo.markers.list():
        names.setdefault(marker.state, []).append(f"marker {marker.name}")
    return names
