"""What every command shares on its way in: global options, common arguments, the shape of help.

A command module defines ``app = new_app()`` and its function under ``@app.command(cls=Verb,
epilog=<examples>)``. ``cli.py`` adds the global options to it; what they said is in ``settings``.
What goes out is ``output.py``'s.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from heddle.commands import output
from heddle.commands.settings import ColorChoice, settings
from heddle.errors import Busy, UsageError, next_command

if TYPE_CHECKING:
    from heddle.api import Repository


def change_directory(paths: list[str] | None) -> None:
    """Run as if started in ``paths``, each relative to the one before it.

    Raises:
        UsageError: one of them can't be entered.
    """
    for path in paths or ():
        try:
            os.chdir(path)
        except OSError as error:
            if error.errno == errno.ENOTCONN:
                raise  # a dead mount: the error says how to recover it
            raise UsageError(f"-C {path}: {error.strerror}") from error


def _set_json(value: bool) -> None:
    settings.json = settings.json or value


def _set_quiet(value: bool) -> None:
    settings.quiet = settings.quiet or value


def _set_verbose(value: bool) -> None:
    settings.verbose = settings.verbose or value


def _set_color(value: ColorChoice | None) -> None:
    settings.color = value or settings.color


def _show_help(ctx: typer.Context, value: bool) -> None:
    if value:
        output.say(ctx.get_help())
        raise typer.Exit


def global_options(
    directory: Annotated[
        list[str] | None,
        typer.Option(
            "-C",
            metavar="PATH",
            help="Run as if started in PATH; may be repeated.",
            callback=change_directory,
            expose_value=False,
            is_eager=True,
        ),
    ] = None,
    json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print one JSON object on one line.",
            callback=_set_json,
            expose_value=False,
            is_eager=True,
        ),
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option(
            "-q",
            "--quiet",
            help="Print results only: no confirmations, no notes.",
            callback=_set_quiet,
            expose_value=False,
            is_eager=True,
        ),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "-v",
            "--verbose",
            help="Say more; show the traceback of an internal error.",
            callback=_set_verbose,
            expose_value=False,
            is_eager=True,
        ),
    ] = False,
    color: Annotated[
        ColorChoice | None,
        typer.Option(
            "--color",
            metavar="auto|always|never",
            help="Colour the text; auto: on a terminal, unless NO_COLOR is set.",
            callback=_set_color,
            expose_value=False,
            is_eager=True,
        ),
    ] = None,
    help: Annotated[
        bool,
        typer.Option(
            "-h", "--help", help="Show this help.", callback=_show_help, expose_value=False
        ),
    ] = False,
) -> None:
    """Carry the declarations of the options that every command takes, before or after the verb."""


GLOBAL_OPTIONS = frozenset({"directory", "json", "quiet", "verbose", "color", "help"})


# Arguments and options that several commands share, so that their help exists once.
# A state spec or a path that starts with "-" can follow "--".

Message = Annotated[
    str,
    typer.Option(
        "-m", "--message", metavar="MSG", help="What was done and why.", show_default=False
    ),
]
PrincipalName = Annotated[
    str | None,
    typer.Option("--principal-name", metavar="NAME", help="The human who answers for it."),
]
PrincipalEmail = Annotated[
    str | None,
    typer.Option("--principal-email", metavar="ADDRESS", help="Their e-mail address."),
]
AgentProvider = Annotated[
    str | None,
    typer.Option("--agent-provider", metavar="NAME", help="Who runs the model, as 'anthropic'."),
]
AgentModel = Annotated[
    str | None,
    typer.Option("--agent-model", metavar="NAME", help="The model that made the change."),
]
AgentSession = Annotated[
    str | None,
    typer.Option("--agent-session", metavar="ID", help="The agent's run, in its own words."),
]
AgentTask = Annotated[
    str | None,
    typer.Option("--agent-task", metavar="ID", help="What the agent works on, in its own words."),
]
NoAgent = Annotated[
    bool,
    typer.Option("--no-agent", help="Record no agent, whatever is configured."),
]


def attribution_flags(
    *,
    principal_name: str | None = None,
    principal_email: str | None = None,
    agent_provider: str | None = None,
    agent_model: str | None = None,
    agent_session: str | None = None,
    agent_task: str | None = None,
) -> dict[str, str | None]:
    """Return the attribution options under the names that ``heddle.attribution`` uses for them."""
    return {
        "principal.name": principal_name,
        "principal.email": principal_email,
        "agent.provider": agent_provider,
        "agent.model": agent_model,
        "agent.session": agent_session,
        "agent.task": agent_task,
    }


def repository(*, damaged: bool = False) -> Repository:
    """Open the repository of the current directory; in a mount, the one it is a mount of."""
    from heddle import api

    repo = api.open(Path.cwd(), damaged=damaged)
    _opened.append(repo)
    return repo


def require_disk(here: Path) -> None:
    """Refuse to begin what would hang, where the disk of the repository does not answer.

    Raises:
        Busy: it does not; nothing was touched.
    """
    from heddle.mount.disk import DiskProbe

    probe = DiskProbe(here)
    from heddle import api  # noqa: F401 - imported while the probe asks

    if not probe.answers():
        raise Busy(f"the disk below {here} does not answer", hint="heddle doctor")


_opened: list[Repository] = []


def close_repositories() -> None:
    """Close what ``repository`` opened: the end of a command must not depend on garbage collection."""
    while _opened:
        repo = _opened.pop()
        _note_git_problems(repo)
        _note_given_up(repo)
        repo.close()


def _note_git_problems(repo: Repository) -> None:
    """Say what keeps threads and git's branches apart; with ``--json``, stderr is for the error alone."""
    if settings.json:
        return
    for problem in repo.git_problems.values():
        output.note(f"note: {output.printable(problem.message)}")
        if hint := next_command(problem):
            output.note(f"hint: {output.printable(hint)}")


def _note_given_up(repo: Repository) -> None:
    """Say that a mount which we have to do with is down for good, and the way out."""
    for crashed in () if settings.json else repo.given_up():
        name = output.printable(crashed.spec)
        output.note(f"note: {name} is not mounted any more: its session crashed again and again")
        log = output.printable(str(crashed.log))
        output.note(f"hint: heddle mount {name}; what happened is in {log}")


def repository_paths(repo: Repository, paths: Iterable[str]) -> list[bytes]:
    """Turn paths relative to the current directory into paths inside the repository."""
    root = os.fsencode(tree_root(repo))
    here = os.fsencode(os.getcwd())
    return [_inside(root, here, os.fsencode(path)) for path in paths]


def tree_root(repo: Repository) -> Path:
    """Return what repository paths are relative to: the mountpoint, or the repository."""
    return repo.mountpoint or repo.path


def _inside(root: bytes, here: bytes, path: bytes) -> bytes:
    parent, name = os.path.split(os.path.normpath(os.path.join(here, path)))
    relative = os.path.relpath(os.path.join(os.path.realpath(parent), name), root)
    if relative.split(b"/", 1)[0] == b"..":
        raise UsageError(f"path {os.fsdecode(path)!r} is outside the repository")
    return b"" if relative == b"." else relative


class Verb(TyperCommand):
    """A command whose help ends with its examples, as typed, and lists the global options apart."""

    def collect_usage_pieces(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """Return the words of the usage line: an argument that may be left out is in brackets."""
        arguments = [each for each in self.params if each.param_type_name == "argument"]
        names = [(each.metavar or each.name, each.required) for each in arguments]
        return ["[OPTIONS]", *(name if needed else f"[{name}]" for name, needed in names)]

    def format_options(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """Write arguments, then the command's own options, then the global ones."""
        _write_parameters(self, ctx, formatter)

    def format_epilog(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """Write the examples; a shell command must not be wrapped."""
        _write_examples(self.epilog, formatter)


class VerbWithPaths(Verb):
    """A command that takes ``-- PATH…``: what follows ``--`` is in ``paths_after_dashes``."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Split at the first ``--``: click would join both sides into one list."""
        if "--" in args:
            split = args.index("--")
            ctx.meta["heddle.paths"] = args[split + 1 :]
            args = args[:split]
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """Show the paths in the usage line."""
        return [*super().collect_usage_pieces(ctx), "[-- PATH...]"]


def paths_after_dashes(ctx: typer.Context) -> list[str]:
    """Return what followed ``--`` on the command line of a ``VerbWithPaths``."""
    paths: list[str] = ctx.meta.get("heddle.paths", [])
    return paths


class VerbGroup(TyperGroup):
    """A command that has commands, as ``heddle thread``."""

    def format_options(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """Write the commands, then the options."""
        self.format_commands(ctx, formatter)
        _write_parameters(self, ctx, formatter)

    def format_epilog(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """Write the examples; a shell command must not be wrapped."""
        _write_examples(self.epilog, formatter)


def new_app(**keywords: Any) -> typer.Typer:
    """Return the typer app of one command module, set up as all of them are.

    Args:
        **keywords: for ``typer.Typer``; a group of commands gives ``help`` and ``epilog``.
    """
    return typer.Typer(
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        cls=VerbGroup,
        **keywords,
    )


def _write_parameters(command: Any, ctx: typer.Context, formatter: Any) -> None:
    sections: dict[str, list[tuple[str, str]]] = {
        "Arguments": [],
        "Options": [],
        "Global options": [],
    }
    for parameter in command.get_params(ctx):
        if parameter.param_type_name == "argument":
            sections["Arguments"].append((parameter.metavar, parameter.help))
            continue
        title = "Global options" if parameter.name in GLOBAL_OPTIONS else "Options"
        sections[title].append(parameter.get_help_record(ctx))
    for title, records in sections.items():
        if records:
            with formatter.section(title):
                formatter.write_dl(records)


def _write_examples(epilog: str | None, formatter: Any) -> None:
    if epilog:
        with formatter.section("Examples"):
            for line in epilog.splitlines():
                formatter.write(f"  {line}\n")


def argument(help: str, metavar: str, complete: Callable[[str], list[str]] | None = None) -> Any:
    """Declare a positional argument.

    Args:
        help: one sentence.
        metavar: its name in the usage line.
        complete: gives the values that begin like what was typed, for the shell.
    """
    return typer.Argument(help=help, metavar=metavar, show_default=False, autocompletion=complete)


def complete_thread(incomplete: str) -> list[str]:
    """Return the threads whose names begin so; nothing, rather than an error, where there is none."""
    try:
        return [name for name in _names(markers=False) if name.startswith(incomplete)]
    except Exception:
        return []


def complete_spec(incomplete: str) -> list[str]:
    """Return the threads and markers whose names begin so."""
    try:
        return [name for name in _names(markers=True) if name.startswith(incomplete)]
    except Exception:
        return []


def _names(*, markers: bool) -> list[str]:
    repo = repository()
    names = [thread.name for thread in repo.threads.list()]
    return [*names, *(marker.name for marker in repo.markers.list())] if markers else names
