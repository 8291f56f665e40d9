"""The ``heddle`` program: from a command line to an exit code.

Owns the table of verbs and the order of things: options, then the verb, then what it raised as text
and a number (``commands/failures.py``). What a verb does is its module's in ``commands/``. Nothing
heavy is imported here: start-up is felt.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence

VERBS = (
    "init",
    "status",
    "capture",
    "thread",
    "marker",
    "switch",
    "mount",
    "unmount",
    "mounts",
    "overlay",
    "log",
    "show",
    "diff",
    "materialize",
    "whoami",
    "clone",
    "fetch",
    "pull",
    "push",
    "prefetch",
    "remote",
    "git",
    "config",
    "fsck",
    "gc",
    "doctor",
    "version",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``heddle`` and return its exit code; prints, and never raises.

    Args:
        argv: the arguments after the program's name; by default those of this process.
    """
    try:
        from heddle.commands import failures
    except KeyboardInterrupt:  # nothing is there yet that could say so
        return 130

    if argv is None:
        _speak_utf8()
        _fill_closed_streams()
        _expect_a_short_life()
    args = list(sys.argv[1:] if argv is None else argv)
    if _will_mount(args):
        from heddle.mount.starting import Starting

        Starting.ahead(os.environ)
    run = _version if args == ["--version"] else _program
    started_in = _current_directory()
    try:
        return failures.guarded(args, lambda: run(args))
    finally:
        if started_in is not None and started_in != _current_directory():
            _go_back(started_in)
        if "heddle.mount.starting" in sys.modules:
            sys.modules["heddle.mount.starting"].Starting.abandon()
        if argv is None:
            gc.freeze()  # the interpreter's last collections need not look at what ends with it


def _will_mount(args: list[str]) -> bool:
    """Whether this is ``heddle mount``: a session's process is then started before the parser is even loaded.

    It takes longer to start than all that this command does, and ends by itself when it is not needed.
    """
    words = iter(args)
    for word in words:
        if word in ("-C", "--color"):
            next(words, None)
        elif not word.startswith("-"):
            return word == "mount" and not {"-h", "--help", "--foreground"} & set(args)
    return False


def _speak_utf8() -> None:
    """Begin again where the locale has names of files in another encoding: sessions, records and git have UTF-8."""
    if sys.getfilesystemencoding() != "utf-8" and "utf8" not in sys.orig_argv[:3]:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _fill_closed_streams() -> None:
    """Give a closed standard stream a place to write to nobody.

    Else the next file to be opened, such as the database, would be standard output to somebody.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            while (fd := os.open(os.devnull, os.O_RDWR)) < number:
                pass
            setattr(sys, name, os.fdopen(fd, "r" if number == 0 else "w", encoding="utf-8"))


def _expect_a_short_life() -> None:
    """Collect garbage rarely: a command is over before there is much, and start-up makes none.

    With ``gc.freeze`` at the end this takes 16 of 122 ms from ``heddle whoami``.
    """
    gc.set_threshold(100_000, 50, 50)


def _version(args: list[str]) -> int:
    """Answer ``heddle --version`` without the parser, which takes longest to import."""
    from heddle import __version__

    sys.stdout.write(f"heddle {__version__}\n")
    return 0


def _program(args: list[str]) -> int:
    from heddle.commands.options import close_repositories
    from heddle.commands.program import program

    root = program(VERBS)
    if "_HEDDLE_COMPLETE" in os.environ:
        root.main(args, prog_name="heddle")
    try:
        with root.make_context("heddle", args.copy()) as context:  # the parser eats it
            root.invoke(context)
    finally:
        close_repositories()
    return 0


def _go_back(directory: str) -> None:
    try:
        os.chdir(directory)
    except OSError:
        pass  # it was a mount, and is no more


def _current_directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        return None


if __name__ == "__main__":
    sys.exit(main())
