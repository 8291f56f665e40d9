"""``heddle thread``: the mutable names of states, one for each agent at work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from heddle.commands import output, views
from heddle.commands.options import (
    Verb,
    VerbGroup,
    argument,
    complete_spec,
    complete_thread,
    new_app,
    repository,
)
from heddle.commands.output import printable
from heddle.commands.settings import settings

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.api import Repository
    from heddle.mount.lifecycle import MountInfo
    from heddle.objects.state import State
    from heddle.repo.database import Thread

app = new_app(epilog="heddle thread create agent-1 --from main\nheddle thread list")

Name = Annotated[str, argument("A thread.", "NAME", complete_thread)]


@app.callback(cls=VerbGroup)
def thread() -> None:
    """Make, list, rename and delete threads.

    A thread is a name of a state that moves with each capture. Each can be mounted on its own.
    """


@app.command("create", cls=Verb, epilog="heddle thread create agent-1 --from main")
def create(
    name: Annotated[str, argument("The new thread.", "NAME")],
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="SPEC",
            help="The state to begin at; else where you are.",
            autocompletion=complete_spec,
        ),
    ] = None,
) -> None:
    """Make a thread at the state you are at, or at SPEC."""
    repo = repository()
    made = repo.threads.create(name, _start(repo, start))
    output.answer(
        _record(repo, made, {}),
        f"made thread {printable(name)} at {views.short(made.state)}",
    )


@app.command("list", cls=Verb, epilog="heddle thread list\nheddle thread list --json")
def list_() -> None:
    """List the threads: where each is, and where it is mounted."""
    repo = repository()
    mounts = _mounts(repo)
    threads = repo.threads.list()
    if settings.json:
        output.emit({"threads": [_record(repo, each, mounts) for each in threads]})
        return
    width = max((len(printable(each.name)) for each in threads), default=0)
    for each in threads:
        output.say(_line(repo, each, mounts, width))


@app.command("show", cls=Verb, epilog="heddle thread show agent-1")
def show(name: Name) -> None:
    """Show one thread."""
    repo = repository()
    found = repo.threads.get(name)
    mounts = _mounts(repo)
    if settings.json:
        output.emit(_record(repo, found, mounts))
        return
    output.say(_line(repo, found, mounts))
    if found.state is not None:
        for line in views.state_lines(repo.state(found.state), full=settings.verbose):
            output.say(f"  {line}")


@app.command("rename", cls=Verb, epilog="heddle thread rename agent-1 parser")
def rename(
    name: Name,
    new_name: Annotated[str, argument("What to call it now.", "NEW-NAME")],
) -> None:
    """Give a thread another name.

    What is unsaved in its overlay goes with it.
    """
    repo = repository()
    renamed = repo.threads.rename(name, new_name)
    output.answer(
        _record(repo, renamed, {}) | {"from": name},
        f"thread {printable(name)} is now {printable(new_name)}",
    )


@app.command("delete", cls=Verb, epilog="heddle thread delete agent-1")
def delete(
    name: Name,
    force: Annotated[
        bool,
        typer.Option("--force", help="Even with unsaved changes; they are put aside, not deleted."),
    ] = False,
) -> None:
    """Forget a thread's name; its states stay."""
    repo = repository()
    state = repo.threads.get(name).state
    kept = repo.threads.delete(name, force)
    output.answer(
        {
            "name": name,
            "state": views.hex_id(state),
            "unsaved_kept_in": None if kept is None else str(kept),
        },
        f"deleted thread {printable(name)}, which was at {views.short(state)}",
    )
    if kept is not None and not settings.json:
        output.note(f"what its overlay held is in {printable(str(kept))}")


def _start(repo: Repository, spec: str | None) -> ObjectID | None:
    """Return the state a new thread begins at: none in a repository that has none yet."""
    if spec is None:
        return repo.threads.get(repo.current_thread).state
    return repo.resolve(spec)


def _mounts(repo: Repository) -> dict[str, MountInfo]:
    return {mount.thread: mount for mount in repo.mounts() if mount.thread and not mount.read_only}


def _record(repo: Repository, thread: Thread, mounts: dict[str, MountInfo]) -> dict[str, object]:
    state = _state(repo, thread)
    mount = mounts.get(thread.name)
    return {
        "name": thread.name,
        "state": views.hex_id(thread.state),
        "change_id": state.change_id if state else None,
        "message": views.message(state) if state else None,
        "agent": views.agent_record(state.agent) if state else None,
        "updated_at": views.iso_time(thread.updated_ns // 10**9),
        "mountpoint": str(mount.mountpoint) if mount else None,
        "dirty": _is_dirty(mount),
        "is_head": thread.name == repo.head,
    }


def _is_dirty(mount: MountInfo | None) -> bool | None:
    """Whether a mounted thread has unsaved changes; None where no live session can say."""
    if mount is None or mount.dirty_files is None:
        return None
    return mount.dirty_files > 0


def _state(repo: Repository, thread: Thread) -> State | None:
    return None if thread.state is None else repo.state(thread.state)


def _line(repo: Repository, thread: Thread, mounts: dict[str, MountInfo], width: int = 0) -> str:
    state, mount = _state(repo, thread), mounts.get(thread.name)
    is_here = thread.name == repo.current_thread
    name = output.style(printable(thread.name).ljust(width), "green" if is_here else "bold")
    line = f"{'*' if is_here else ' '} {name} "
    line += views.state_line(state) if state else "(no state yet)"
    if mount is not None:
        changes = ", unsaved changes" if _is_dirty(mount) else ""
        line += output.style(f" {printable(str(mount.mountpoint))}{changes}", "blue")
    return line
