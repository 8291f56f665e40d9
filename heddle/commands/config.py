"""``heddle config``: read and write settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from heddle.commands import output
from heddle.commands.options import Verb, VerbGroup, argument, new_app, repository
from heddle.commands.output import printable
from heddle.commands.settings import settings

if TYPE_CHECKING:
    from heddle.repo.config import Value

app = new_app(epilog='heddle config set principal.name "Ann Lee"\nheddle config list')

User = Annotated[
    bool, typer.Option("--user", help="In the user's file, for all repositories of this user.")
]
Key = Annotated[str, argument("A setting, as principal.name.", "KEY")]


@app.callback(cls=VerbGroup)
def config() -> None:
    """Read and write settings."""


@app.command("get", cls=Verb, epilog="heddle config get principal.email")
def get(key: Key) -> None:
    """Print the value that counts; exit with 1 where there is none."""
    found = repository().config.get(key)
    if settings.json:
        output.emit({"values": [_record(found)]})
    elif found.value is not None:
        output.say(found.value)
    if found.value is None:
        raise typer.Exit(1)


@app.command("list", cls=Verb, epilog="heddle config list")
def list_() -> None:
    """Print every setting with the place it comes from."""
    values = repository().config.list()
    if settings.json:
        output.emit({"values": [_record(each) for each in values]})
        return
    for each in values:
        source = output.style(f"({each.source})", "dim")
        output.say(f"{each.key} = {printable(each.value or '')}  {source}")


@app.command("set", cls=Verb, epilog="heddle config set principal.email ann@example.org")
def set_(
    key: Key,
    value: Annotated[str, argument("What it shall be.", "VALUE")],
    user: User = False,
) -> None:
    """Write one setting into the repository's config.toml, or the user's."""
    written = repository().config.set(key, value, user=user)
    output.answer({"values": [_record(written)]}, f"{key} = {printable(value)}")


@app.command("unset", cls=Verb, epilog="heddle config unset agent.model")
def unset(key: Key, user: User = False) -> None:
    """Remove one setting from the repository's config.toml, or the user's."""
    removed = repository().config.set(key, None, user=user)
    output.answer({"values": [_record(removed)]}, f"{key} is not set in the {removed.source}")


def _record(value: Value) -> dict[str, object]:
    return {"key": value.key, "value": value.value, "source": value.source}
