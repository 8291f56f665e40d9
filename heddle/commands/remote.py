"""``heddle remote``: the names of other repositories."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from heddle.commands import output
from heddle.commands.options import Verb, VerbGroup, argument, new_app, repository
from heddle.commands.output import printable
from heddle.commands.settings import settings

if TYPE_CHECKING:
    from heddle.git.remotes import Remote

app = new_app(epilog="heddle remote add origin https://example.org/project.git\nheddle remote list")

Name = Annotated[str, argument("A remote.", "NAME")]


@app.callback(cls=VerbGroup)
def remote() -> None:
    """List, add and remove remotes.

    A remote is a name of another repository, to fetch from and push to. On a git checkout the
    remotes are git's own.
    """


@app.command("list", cls=Verb, epilog="heddle remote list")
def list_() -> None:
    """List the remotes."""
    from heddle.git import remotes

    found = remotes.remotes(repository())
    if settings.json:
        output.emit({"remotes": [_record(each) for each in found]})
        return
    width = max((len(each.name) for each in found), default=0)
    for each in found:
        pushed = ", ".join(map(printable, each.push_urls))
        also = "" if each.push_urls == (each.url,) else f" (push: {pushed})"
        name = output.style(printable(each.name).ljust(width), "bold")
        output.say(f"{name} {printable(each.url)}{also}")


@app.command("add", cls=Verb, epilog="heddle remote add origin https://example.org/project.git")
def add(
    name: Annotated[str, argument("What to call it.", "NAME")],
    url: Annotated[str, argument("Its address: https, ssh, git or a path.", "URL")],
) -> None:
    """Remember a remote."""
    from heddle.git import remotes

    made = remotes.add(repository(), name, url)
    output.answer(_record(made), f"added remote {printable(name)}: {printable(url)}")


@app.command("remove", cls=Verb, epilog="heddle remote remove origin")
def remove(name: Name) -> None:
    """Forget a remote, where its branches were, and that branches follow it; nothing else goes."""
    from heddle.git import remotes

    repo = repository()
    known = remotes.remote(repo, name)
    remotes.remove(repo, name)
    output.answer(_record(known), f"removed remote {printable(name)}")


def _record(remote: Remote) -> dict[str, object]:
    return {
        "name": remote.name,
        "url": remote.url,
        "push_url": remote.push_url,
        "push_urls": list(remote.push_urls),
    }
