"""``heddle marker``: immutable names of states."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from heddle.commands import output, views
from heddle.commands.options import (
    Message,
    Verb,
    VerbGroup,
    argument,
    complete_spec,
    new_app,
    repository,
)
from heddle.commands.output import printable
from heddle.commands.settings import settings

if TYPE_CHECKING:
    from heddle.api import Repository
    from heddle.repo.database import Marker

app = new_app(epilog="heddle marker create v1.0 main\nheddle marker list")

Name = Annotated[str, argument("A marker.", "NAME")]


@app.callback(cls=VerbGroup)
def marker() -> None:
    """Make, list and delete markers.

    A marker is a name of a state that never moves.
    """


@app.command("create", cls=Verb, epilog='heddle marker create v1.0 main -m "First release"')
def create(
    name: Annotated[str, argument("The new marker.", "NAME")],
    spec: Annotated[
        str, argument("The state to name; HEAD if not given.", "SPEC", complete_spec)
    ] = "HEAD",
    message: Message = "",
) -> None:
    """Name a state for good."""
    repo = repository()
    made = repo.markers.create(name, repo.resolve(spec), message=message)
    output.answer(
        _record(repo, made), f"made marker {printable(name)} at {views.short(made.state)}"
    )


@app.command("list", cls=Verb, epilog="heddle marker list")
def list_() -> None:
    """List the markers."""
    repo = repository()
    markers = repo.markers.list()
    if settings.json:
        output.emit({"markers": [_record(repo, each) for each in markers]})
        return
    width = max((len(printable(each.name)) for each in markers), default=0)
    for each in markers:
        output.say(_line(repo, each, width))


@app.command("show", cls=Verb, epilog="heddle marker show v1.0")
def show(name: Name) -> None:
    """Show one marker and the state it names."""
    repo = repository()
    found = repo.markers.get(name)
    if settings.json:
        output.emit(_record(repo, found))
        return
    output.say(_line(repo, found))
    for line in views.state_lines(repo.state(found.state), full=settings.verbose):
        output.say(f"  {line}")


@app.command("delete", cls=Verb, epilog="heddle marker delete v1.0")
def delete(name: Name) -> None:
    """Forget a marker's name; the state stays."""
    repo = repository()
    state = repo.markers.get(name).state
    repo.markers.delete(name)
    output.answer(
        {"name": name, "state": views.hex_id(state)},
        f"deleted marker {printable(name)}, which was at {views.short(state)}",
    )


def _record(repo: Repository, marker: Marker) -> dict[str, object]:
    return {
        "name": marker.name,
        "state": views.hex_id(marker.state),
        "change_id": repo.state(marker.state).change_id,
        "message": marker.message,
        "created_at": views.iso_time(marker.created_ns // 10**9),
    }


def _line(repo: Repository, marker: Marker, width: int = 0) -> str:
    name = output.style(printable(marker.name).ljust(width), "bold")
    said = views.subject(marker.message) if marker.message else ""
    return f"{name} {views.state_line(repo.state(marker.state))} {said}".rstrip()
