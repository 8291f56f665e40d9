"""``heddle version``: which heddle this is, and with ``-v`` on what it runs."""

from __future__ import annotations

import platform

from heddle import __version__
from heddle.commands import output
from heddle.commands.options import Verb, new_app
from heddle.commands.settings import settings

DEPENDENCIES = ("dulwich", "pyfuse3", "trio", "typer", "zstandard")

app = new_app()


@app.command(cls=Verb, epilog="heddle version\nheddle version -v\nheddle --version")
def version() -> None:
    """Print the version.

    With -v also those of Python and of the libraries that heddle stands on.
    """
    report()


def report() -> None:
    """Print the version as text or JSON."""
    detailed = settings.verbose or settings.json
    versions = _dependencies() if detailed else {}
    if settings.json:
        output.emit(
            {
                "version": __version__,
                "python": platform.python_version(),
                "dependencies": versions,
            }
        )
        return
    output.say(f"heddle {__version__}")
    if detailed:
        output.say(f"python {platform.python_version()}")
        for name, number in versions.items():
            output.say(f"{name} {number or 'missing'}")


def _dependencies() -> dict[str, str | None]:
    from importlib import metadata

    versions: dict[str, str | None] = {}
    for name in DEPENDENCIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions
