"""What went wrong, as text or JSON on stderr and an exit code.

Every exception that reaches the top ends here. Heddle's own errors carry their exit code; those of
the operating system, of SQLite and of the command line's parser are mapped; anything else is a bug
and says so in one line.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence

from heddle.commands import output
from heddle.commands.output import OutputClosed
from heddle.commands.settings import settings
from heddle.errors import (
    Busy,
    CannotCreate,
    HeddleError,
    NotPermitted,
    ObjectMissing,
    StaleMount,
    StorageError,
    UsageError,
    as_told,
    error_record,
    next_command,
)

INTERRUPTED = 130
OUTPUT_CLOSED = 141  # as a shell reports a program that SIGPIPE ended


class InternalError(HeddleError):
    """A bug of ours."""

    kind = "internal"


def guarded(args: Sequence[str], run: Callable[[], int]) -> int:
    """Run a command, report what it raises, and return the exit code.

    Args:
        args: the command line, to know whether ``--json`` was asked for if it can't be parsed.
        run: the command.
    """
    settings.reset()
    try:
        code = run()
        output.flush()
        return code
    except OutputClosed:
        _discard_output()
        return OUTPUT_CLOSED
    except SystemExit as request:  # typer's completion options end so
        return request.code if isinstance(request.code, int) else 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        code_asked = _exit_asked(error)
        if code_asked is not None:
            return code_asked
        settings.json = settings.json or _json_asked(args)
        settings.verbose = settings.verbose or "HEDDLE_DEBUG" in os.environ
        code = _report(error)
        _discard_unwritable_output()
        return code


def _exit_asked(error: Exception) -> int | None:
    """Return the code when ``error`` is one of typer's two ways of ending early on purpose."""
    typer = sys.modules.get("typer")
    if typer is None:
        return None
    if isinstance(error, typer.Exit):
        return int(error.exit_code)
    return INTERRUPTED if isinstance(error, typer.Abort) else None


def _json_asked(args: Sequence[str]) -> bool:
    before_paths = list(args)[: list(args).index("--")] if "--" in args else args
    return "--json" in before_paths


def _discard_unwritable_output() -> None:
    """What can't be written now, on a full disk say, the interpreter's last flush can't write either."""
    try:
        sys.stdout.flush()
    except OSError:
        _discard_output()


def _discard_output() -> None:
    """Point standard output at nothing, so that the interpreter's last flush can't fail."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def _report(error: Exception) -> int:
    problem = as_heddle_error(error)
    if settings.verbose and isinstance(problem, InternalError):
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    try:
        _print(problem)
    except OSError:
        pass  # stderr is gone too: the exit code is all that is left to say it with
    return problem.exit_code


def _print(problem: HeddleError) -> None:
    if settings.json:
        output.warn(output.to_json({"error": error_record(problem)}))
        return
    output.warn(f"heddle: {_printable(problem.message)}")
    hint = next_command(problem)
    if hint:
        output.warn(f"hint: {_printable(hint)}")


def _printable(message: str) -> str:
    return "\n  ".join(output.printable(line) for line in message.splitlines())


def as_heddle_error(error: Exception) -> HeddleError:
    """Return the error that says to a user what ``error`` means."""
    if isinstance(error, HeddleError):
        return as_told(error)
    typer = sys.modules.get("typer")
    if typer is not None and isinstance(error, typer.TyperException):
        return _usage_error(error)
    if isinstance(error, OSError):
        return _system_error(error)
    if isinstance(error, UnicodeEncodeError):  # of what was typed: nothing of ours makes surrogates
        return UsageError(f"{error.object!r} is not UTF-8")
    if isinstance(error, KeyError) and _is_object_id(error.args):
        name = error.args[0].decode()
        return ObjectMissing(f"object {name} is in no pack", hint="heddle fsck --full")
    sqlite3 = sys.modules.get("sqlite3")
    if sqlite3 is not None and isinstance(error, sqlite3.Error):
        return _database_error(error)
    return InternalError(
        f"internal error: {type(error).__name__}: {error}",
        hint="run it again with -v for the traceback, and report it",
    )


def _is_object_id(args: Sequence[object]) -> bool:
    """Whether a KeyError names an object, which is how dulwich's object stores say that they lack one."""
    id = args[0] if args else None
    return isinstance(id, bytes) and len(id) in (40, 64) and not id.strip(b"0123456789abcdef")


def _usage_error(error: Exception) -> UsageError:
    message = str(getattr(error, "format_message", error.__str__)()).strip().rstrip(".")
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "heddle"
    return UsageError(message[:1].lower() + message[1:], hint=f"{command} --help")


_KINDS: dict[int, type[HeddleError]] = {
    errno.EACCES: NotPermitted,
    errno.EPERM: NotPermitted,
    errno.EROFS: NotPermitted,
    errno.EEXIST: CannotCreate,
    errno.ENOTDIR: CannotCreate,
    errno.EISDIR: CannotCreate,
    errno.ENAMETOOLONG: CannotCreate,
    errno.ENOTEMPTY: CannotCreate,
    errno.EAGAIN: Busy,
    errno.EBUSY: Busy,
}


def _system_error(error: OSError) -> HeddleError:
    if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
        return _stale_mount(error)
    reason = error.strerror or str(error) or type(error).__name__
    where = f"{_text(error.filename)}: " if error.filename is not None else ""
    message = f"{where}{reason}"
    if error.errno == errno.ENOENT and error.filename is None and _directory_is_gone():
        return StorageError("the current directory no longer exists", hint="cd to one that does")
    problem = _KINDS.get(error.errno or 0, StorageError)(message)
    problem.__cause__ = error
    return problem


def _directory_is_gone() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def _text(name: object) -> str:
    return os.fsdecode(name) if isinstance(name, bytes | str | os.PathLike) else str(name)


def _stale_mount(error: OSError) -> StaleMount:
    """Name the thread whose session died under ``error``'s path, or under the current directory."""
    from pathlib import Path
    from shlex import quote

    from heddle.mount.mountinfo import locate

    try:
        path = Path(_text(error.filename)) if error.filename is not None else Path(os.getcwd())
        location = locate(Path(os.path.abspath(path)))
    except OSError:  # it was detached with us in it: nobody can say any more where that was
        return StaleMount(
            "the mount that the current directory lay in is gone", hint="cd to another directory"
        )
    if location is None:
        return StaleMount(f"{path}: the file system below it is gone", hint="heddle mounts")
    again = f"heddle -C {quote(str(location.repository))} "
    again += "unmount --stale" if location.read_only else f"mount {quote(location.thread)}"
    return StaleMount(f"the session that served {location.mountpoint} is gone", hint=again)


def _database_error(error: Exception) -> HeddleError:
    """Map an error of SQLite by its primary result code (sqlite.org/rescode.html)."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    message = f"heddle.db: {error}"
    if code in (5, 6):  # SQLITE_BUSY, SQLITE_LOCKED
        return Busy(message, hint="run it again")
    if code in (3, 8, 23):  # SQLITE_PERM, SQLITE_READONLY, SQLITE_AUTH
        return NotPermitted(message)
    if code == 13:  # SQLITE_FULL
        return StorageError(message, hint="free some space and run it again; nothing was lost")
    if code in (10, 11, 14, 26):  # SQLITE_IOERR, SQLITE_CORRUPT, SQLITE_CANTOPEN, SQLITE_NOTADB
        return StorageError(message, hint="heddle fsck")
    return InternalError(f"internal error: {type(error).__name__}: {message}")
