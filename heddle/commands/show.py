"""``heddle show``: a state with what it changed, or what it holds at a path."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Annotated

from heddle.commands import output, views
from heddle.commands.log import names_at
from heddle.commands.options import Verb, argument, complete_spec, new_app, repository
from heddle.commands.settings import settings

if TYPE_CHECKING:
    from heddle.api import Repository

app = new_app()


@app.command(cls=Verb, epilog="heddle show agent-1\nheddle show HEAD~2:src/main.c > main.c")
def show(
    spec: Annotated[
        str, argument("A state, or a path in one; HEAD if not given.", "SPEC[:PATH]", complete_spec)
    ] = "HEAD",
) -> None:
    """Show a state, or a file as it was in one.

    A state is shown with its diff; with :PATH, what the state holds there is written as it is.
    """
    repo = repository()
    name, colon, path = spec.partition(":")
    if colon:
        _show_path(repo, name or "HEAD", os.fsencode(path))
    else:
        _show_state(repo, spec)


def _show_state(repo: Repository, spec: str) -> None:
    state = repo.state(spec)
    parent = views.first_parent(repo, state)
    files = repo.diff_states(views.hex_id(parent), state.id.decode())
    if settings.json:
        record = views.state_record(state)
        output.emit(record | {"files": [views.file_record(file) for file in files]})
        return
    with output.paged():
        for line in views.state_lines(state, names_at(repo).get(state.id, ()), full=True):
            output.say(line)
        output.say()
        for file in files:
            output.patch(file.patch)


def _show_path(repo: Repository, spec: str, path: bytes) -> None:
    state = repo.resolve(spec)
    mode, id = repo.lookup_path(state, path.strip(b"/"))
    if settings.json:
        record = {"state": views.hex_id(state), "path": path, "mode": f"{mode:06o}"}
        output.emit(record | {"id": views.hex_id(id)} | _content(repo, mode, id))
    elif stat.S_ISDIR(mode):
        for name, entry_mode, _ in repo.store.tree_entries(id):
            slash = "/" if stat.S_ISDIR(entry_mode) else ""
            output.say(output.printable(name) + slash)
    elif mode == GITLINK:
        output.say(f"commit {views.hex_id(id)}")
    else:
        for piece in repo.store.iter_blob(id):
            output.write(piece)


GITLINK = 0o160000
"""The mode of a link to another repository, whose commit is not stored here."""


def _content(repo: Repository, mode: int, id: bytes) -> dict[str, object]:
    nothing: dict[str, object] = {"size": None, "content": None, "entries": None}
    if mode == GITLINK:
        return nothing
    if stat.S_ISDIR(mode):
        entries = [
            {"name": name, "mode": f"{entry_mode:06o}", "id": views.hex_id(entry_id)}
            for name, entry_mode, entry_id in repo.store.tree_entries(id)
        ]
        return nothing | {"entries": entries}
    content = b"".join(repo.store.iter_blob(id))
    return nothing | {"size": len(content), "content": content}
