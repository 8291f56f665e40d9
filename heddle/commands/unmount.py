"""``heddle unmount``: end sessions; what is unsaved stays in the overlay."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from heddle.commands import output, views
from heddle.commands.options import Message, Verb, argument, complete_thread, new_app
from heddle.commands.output import printable
from heddle.commands.settings import settings
from heddle.errors import NotARepository, UsageError, next_command

if TYPE_CHECKING:
    from heddle.api import Failed, Repository, Unmounted, Unmounting

app = new_app()


@app.command(
    cls=Verb,
    epilog='heddle unmount agent-1 --capture -m "Done"\nheddle unmount --stale --all',
)
def unmount(
    target: Annotated[
        str | None,
        argument("A thread, or a path at or in a mount.", "THREAD|PATH", complete_thread),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every session of this repository.")
    ] = False,
    stale: Annotated[
        bool, typer.Option("--stale", help="Sessions that died; with --all, of this user.")
    ] = False,
    capture: Annotated[bool, typer.Option("--capture", help="Capture first.")] = False,
    message: Message = "",
    discard: Annotated[
        bool, typer.Option("--discard", help="Put aside what is unsaved, and say what it was.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also when processes use it, or it hangs.")
    ] = False,
) -> None:
    """End the session of a thread, of the mount at PATH, or of the mount you stand in.

    Unsaved changes stay in the overlay and are there again at the next mount. Where processes still
    use the mount, they are named and nothing is done.
    """
    _check(target, everything, stale, capture, message, discard)
    from heddle import api

    here = Path.cwd()
    repo = None if everything and stale else _repository(here)
    if target is None and not everything and not stale:
        target = str(_mount_here(repo))
    elif target is not None:
        target = _thread_or_path(repo, target, here)
    os.chdir("/")  # or we would keep busy what we are to unmount
    end = api.unmount if repo is None else repo.unmount
    done = end(
        target,
        stale=stale,
        capture=message if capture else None,
        discard=discard,
        force=force,
        keep_going=True,
    )
    _show(done)
    if done.failed:
        raise typer.Exit(done.failed[0].error.exit_code)


def _check(
    target: str | None,
    everything: bool,
    stale: bool,
    capture: bool,
    message: str,
    discard: bool,
) -> None:
    if target is not None and (everything or stale):
        raise UsageError("either THREAD or PATH, or --all and --stale")
    if message and not capture:
        raise UsageError("-m is the message of --capture", hint="add --capture")
    if capture and discard:
        raise UsageError("either --capture or --discard, not both")


def _repository(here: Path) -> Repository | None:
    """The repository we are in; outside any, a path can still name a mount."""
    from heddle import api

    try:
        return api.open(here)
    except NotARepository:
        return None


def _mount_here(repo: Repository | None) -> Path:
    if repo is None or repo.mountpoint is None:
        raise UsageError(
            "unmount what? This is no mount", hint="heddle unmount THREAD, or heddle unmount --all"
        )
    return repo.mountpoint


def _thread_or_path(repo: Repository | None, target: str, here: Path) -> str:
    """A name stays as it is; anything that can only be a path is made absolute before we leave."""
    if repo is not None and target in repo.threads:
        return target
    path = here / target
    return str(path) if os.sep in target or os.path.lexists(path) else target


def _show(done: Unmounting) -> None:
    if settings.json:
        output.emit(
            {
                "unmounted": [_record(each) for each in done.unmounted],
                "failed": [_failed_record(each) for each in done.failed],
            }
        )
        return
    for each in done.unmounted:
        output.confirm_done(_text(each))
    for failed in done.failed:
        output.warn(f"heddle: {printable(failed.error.message)}")
        hint = next_command(failed.error)
        if hint:
            output.warn(f"hint: {hint}")
    if not done.unmounted and not done.failed:
        output.confirm_done("nothing to unmount")


def _record(done: Unmounted) -> dict[str, object]:
    dirty, dropped = done.dirty, done.discarded
    return {
        "thread": done.spec,
        "mountpoint": None if done.mountpoint is None else str(done.mountpoint),
        "was": done.was,
        "method": done.method,
        "dirty": dirty and {"files": dirty.files, "bytes": dirty.bytes},
        "discarded": dropped and {"files": dropped.files, "bytes": dropped.bytes},
        "kept_in": None if done.kept_in is None else str(done.kept_in),
    }


def _failed_record(failed: Failed) -> dict[str, object]:
    return {
        "mountpoint": str(failed.mountpoint),
        "reason": failed.error.message,
        "holders": [{"pid": each.pid, "command": each.command} for each in failed.holders],
    }


def _text(done: Unmounted) -> str:
    text = f"unmounted {printable(done.spec)} from {printable(str(done.mountpoint))}"
    if done.was is None:
        text = f"{printable(done.spec)} was not mounted any more"
    elif done.was != "live":
        text += f", which was {done.was}"
    if done.discarded is not None:
        dropped = (
            f"{views.counted(done.discarded.files, 'unsaved file')}, {done.discarded.bytes} bytes"
        )
        return f"{text}\ndropped {dropped}; they are kept in {printable(str(done.kept_in))}"
    if done.dirty is not None and done.dirty.files:
        left = views.counted(done.dirty.files, "unsaved file")
        return f"{text}\n{left} kept in the overlay"
    return text
