"""``heddle doctor``: what is missing or wrong here, and what mends it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from heddle.commands import output
from heddle.commands.options import Verb, new_app
from heddle.commands.output import printable
from heddle.commands.settings import settings
from heddle.errors import NotARepository

if TYPE_CHECKING:
    from heddle.mount.doctor import Finding

app = new_app()
_STYLES = {"ok": "green", "note": "yellow", "wrong": "red"}


@app.command(cls=Verb, epilog="heddle doctor\nheddle doctor --json")
def doctor() -> None:
    """Say what is missing or wrong on this machine and in this repository.

    Each finding comes with the command that mends it. The exit code is 1 if anything is wrong.
    """
    where, findings = _examined(Path.cwd())
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
        output.emit({"ok": not wrong, "repository": where, "checks": records})
    else:
        for each in findings:
            level = output.style(f"{each.level:5}", _STYLES[each.level])
            output.say(f"{level} {each.check}: {printable(each.what)}")
            if each.level != "ok" and each.repair:
                output.say(f"      mend: {printable(each.repair)}")
    if wrong:
        raise typer.Exit(1)


def _examined(here: Path) -> tuple[str | None, list[Finding]]:
    """The repository that we are in, if any, and what was found."""
    from heddle.mount.disk import DiskProbe

    probe = DiskProbe(here)
    from heddle import api
    from heddle.mount.doctor import examine, examine_stalled

    if not probe.answers():
        return None, examine_stalled(here, os.environ)
    try:
        repo = api.open(here, damaged=True)
    except NotARepository:
        return None, examine(None, os.environ)
    try:
        return str(repo.path), examine(repo, os.environ)
    finally:
        repo.close()
