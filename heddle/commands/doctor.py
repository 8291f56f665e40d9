"""``heddle doctor``: what is missing or wrong here, and what mends it."""

from __future__ import annotations

import os
from pathlib import Path

import typer

from heddle.commands import output
from heddle.commands.options import Verb, new_app
from heddle.commands.output import printable
from heddle.commands.settings import settings
from heddle.errors import NotARepository

app = new_app()
_STYLES = {"ok": "green", "note": "yellow", "wrong": "red"}


@app.command(cls=Verb, epilog="heddle doctor\nheddle doctor --json")
def doctor() -> None:
    """Say what is missing or wrong on this machine and in this repository.

    Each finding comes with the command that mends it. The exit code is 1 if anything is wrong.
    """
    from heddle import api
    from heddle.mount.doctor import examine

    try:
        repo = api.open(Path.cwd())
    except NotARepository:
        repo = None
    findings = examine(repo, os.environ)
    if repo is not None:
        repo.close()
    wrong = [each for each in findings if each.level == "wrong"]
    if settings.json:
        records = [
            {
                "check": each.check,
                "level": each.level,
                "what": each.what,
                "repair": each.repair,
            }
            for each in findings
        ]
        where = None if repo is None else str(repo.path)
        output.emit({"ok": not wrong, "repository": where, "checks": records})
    else:
        for each in findings:
            level = output.style(f"{each.level:5}", _STYLES[each.level])
            output.say(f"{level} {each.check}: {printable(each.what)}")
            if each.level != "ok" and each.repair:
                output.say(f"      mend: {printable(each.repair)}")
    if wrong:
        raise typer.Exit(1)
