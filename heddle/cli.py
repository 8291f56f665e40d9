"""The ``heddle`` program: from a command line to an exit code.

Owns the table of verbs and the order of things: options, then the verb, then what it raised as text
and a number (``commands/failures.py``). What a verb does is its module's in ``commands/``. Nothing
heavy is imported here: start-up is felt.
"""

from __future__ import annotations

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
    "log",
    "show",
    "diff",
    "whoami",
    "config",
    "fsck",
    "version",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``heddle`` and return its exit code; prints, and never raises.

    Args:
        argv: the arguments after the program's name; by default those of this process.
    """
    from heddle.commands import failures

    args = list(sys.argv[1:] if argv is None else argv)
    run = _version if args == ["--version"] else _program
    started_in = _current_directory()
    try:
        return failures.guarded(args, lambda: run(args))
    finally:
        if started_in is not None and started_in != _current_directory():
            os.chdir(started_in)


def _version(args: list[str]) -> int:
    """Answer ``heddle --version`` without the parser, which takes longest to import."""
    from heddle import __version__

    sys.stdout.write(f"heddle {__version__}\n")
    return 0


def _program(args: list[str]) -> int:
    from heddle.commands.program import program

    root = program(VERBS)
    if "_HEDDLE_COMPLETE" in os.environ:
        root.main(args, prog_name="heddle")
    with root.make_context("heddle", args) as context:
        result = root.invoke(context)
    return result if isinstance(result, int) else 0


def _current_directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        return None


if __name__ == "__main__":
    sys.exit(main())
