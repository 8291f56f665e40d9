"""``heddle fetch``: bring a remote's branches and tags here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from heddle.commands import output, views
from heddle.commands.options import Verb, argument, new_app, repository
from heddle.commands.output import printable

if TYPE_CHECKING:
    from heddle.git.export import RefChange
    from heddle.git.fetching import Fetched

app = new_app()


@app.command(cls=Verb, epilog="heddle fetch\nheddle fetch upstream\nheddle log origin/main")
def fetch(
    remote: Annotated[str, argument("A remote; origin if not given.", "REMOTE")] = "origin",
) -> None:
    """Bring a remote's branches and tags here.

    They are origin/main and so on, in every place where a state is asked for. Threads stay where
    they are; heddle pull moves them too.
    """
    from heddle.git import fetching

    repo = repository()
    with output.progress("fetching") as progress:
        fetched = fetching.fetch(repo, remote, progress=progress)
    output.answer(record(fetched), text(fetched))


def record(fetched: Fetched) -> dict[str, object]:
    """The fields of a fetch, for ``--json``."""
    return {
        "remote": fetched.remote.name,
        "url": fetched.remote.url,
        "objects": fetched.objects,
        "refs": [ref_record(each) for each in fetched.refs],
        "pruned": list(fetched.pruned),
    }


def ref_record(change: RefChange) -> dict[str, object]:
    """One moved ref, for ``--json``."""
    return {"ref": change.ref, "old": views.hex_id(change.old), "new": views.hex_id(change.new)}


def text(fetched: Fetched) -> str:
    """A fetch, for people."""
    if not fetched.refs and not fetched.objects:
        return f"nothing new from {printable(fetched.remote.name)}"
    return "\n".join(
        [
            *(f"{printable(_short_name(ref))} is gone there" for ref in fetched.pruned),
            *map(ref_line, fetched.refs),
            f"{views.counted(fetched.objects, 'object')} received",
        ]
    )


def ref_line(change: RefChange) -> str:
    """One moved ref, for people."""
    name = _short_name(change.ref)
    was = views.short(change.old) if change.old else "new"
    return f"{printable(name)} {was} -> {views.short(change.new)}"


def _short_name(ref: str) -> str:
    return ref.removeprefix("refs/").removeprefix("remotes/").removeprefix("heads/")
