"""The command tree: a typer group that imports a verb's module when the verb is asked for.

Adds to each command what all of them take (the global options) and keeps typer from importing
pydantic, which it would do to turn a string into a string. What a command is and prints is its own
module's.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from typer.core import TyperGroup

from heddle.commands import output
from heddle.commands.options import VerbGroup, global_options, new_app

EPILOG = """\
heddle init && heddle capture -m "First state"
heddle mount agent-1 --create
heddle log --graph
"""


class Program(VerbGroup):
    """The root: its commands are the modules of ``heddle.commands`` that ``verbs`` names."""

    verbs: tuple[str, ...] = ()

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """Return every verb, without importing any."""
        return list(self.verbs)

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # type: ignore[override]
        """Import one verb's module and return its command."""
        if cmd_name not in self.verbs:
            return None
        if cmd_name not in self.commands:
            module = importlib.import_module(f"heddle.commands.{cmd_name}")
            self.commands[cmd_name] = finished(module.app, cmd_name)
        return self.commands[cmd_name]

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> Any:  # type: ignore[override]
        """Suggest a verb when an unknown one resembles it."""
        if args[0] not in self.verbs and not args[0].startswith("-"):
            from difflib import get_close_matches

            close = get_close_matches(args[0], self.verbs)
            also = f"; did you mean {' or '.join(close)}?" if close else ""
            ctx.fail(f"no command {output.printable(args[0])!r}{also}")
        return super().resolve_command(ctx, args)


def _print_version(value: bool) -> None:
    if value:
        from heddle.commands.version import report

        report()
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_print_version),
    ] = False,
) -> None:
    """Version control for many agents on one repository: every thread is a mounted directory."""


def program(verbs: Sequence[str]) -> Program:
    """Build the root command.

    Args:
        verbs: the names of the modules in ``heddle.commands`` that are commands, in the order of
        the help.
    """
    app = typer.Typer(
        cls=Program,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"max_content_width": 100},
        epilog=EPILOG,
    )
    app.callback()(_root)
    root = typer.main.get_command(app)
    assert isinstance(root, Program)
    root.verbs = tuple(verbs)
    _prepare(root)
    return root


def finished(app: typer.Typer, name: str) -> Any:
    """Return the command of a module's app under its name, with the global options added to it."""
    command = typer.main.get_command(app)
    command.name = name
    _prepare(command)
    return command


def _prepare(command: Any) -> None:
    if not any(parameter.name == "json" for parameter in command.params):
        command.params.extend(_global_parameters())
        command.add_help_option = False  # ours is among the global ones
    for parameter in command.params:
        if parameter._runtime_param is None:
            _coerce_plainly(parameter)
    if isinstance(command, TyperGroup):
        for child in command.commands.values():
            _prepare(child)


@cache
def _global_parameters() -> list[Any]:
    app = new_app()
    app.command()(global_options)
    return typer.main.get_command(app).params


# From text to values without pydantic: 60 ms of imports that str, int and Path do not need.


class _Plain:
    """What typer calls a runtime parameter, for the annotations that Heddle's commands use."""

    def __init__(self, kind: Any, is_list: bool) -> None:
        self._kind = kind
        self._is_list = is_list

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        if value is None:
            return () if self._is_list else None
        if self._is_list:
            return [self._one(item, param, ctx) for item in value]
        return self._one(value, param, ctx)

    def _one(self, value: Any, param: Any, ctx: Any) -> Any:
        if get_origin(self._kind) is Literal:
            if value not in get_args(self._kind):
                allowed = ", ".join(get_args(self._kind))
                raise typer.BadParameter(f"{value!r} is none of {allowed}", ctx=ctx, param=param)
            return value
        if isinstance(value, self._kind):
            return value
        try:
            return self._kind(value)
        except ValueError:
            message = f"{value!r} is no whole number"
            raise typer.BadParameter(message, ctx=ctx, param=param) from None


def _coerce_plainly(parameter: Any) -> None:
    annotation = parameter.type_descriptor.annotation
    is_list = get_origin(annotation) is list
    kind = get_args(annotation)[0] if is_list else annotation
    if kind in (str, int, Path, bool) or get_origin(kind) is Literal:
        parameter._runtime_param = _Plain(kind, is_list)
