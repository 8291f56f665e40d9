"""What every command shares on its way out: text for people, JSON for scripts, notes on stderr.

Owns the byte stream (names that are not UTF-8 leave as they are), colour, the pager and progress
bars. What the fields of a JSON object are is each command's; how states and changes look is
``views.py``'s.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

from heddle.commands.settings import settings

STYLES = {
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "blue": "34",
    "magenta": "35",
    "cyan": "36",
}
PROGRESS_DELAY_S = 1.0
PROGRESS_EVERY_S = 0.1


class OutputClosed(Exception):
    """Whoever read our standard output stopped reading: nothing is wrong, nobody is left to tell."""


_pager: IO[bytes] | None = None


def write(data: bytes) -> None:
    """Write bytes to standard output, or to the pager while one is open.

    Raises:
        OutputClosed: the reader is gone.
    """
    try:
        if _pager is not None:
            _pager.write(data)
        elif hasattr(sys.stdout, "buffer"):
            sys.stdout.flush()
            sys.stdout.buffer.write(data)
        else:
            sys.stdout.write(data.decode("utf-8", "surrogateescape"))
    except BrokenPipeError as error:
        raise OutputClosed from error


def flush() -> None:
    """Hand everything written to whoever reads standard output.

    Raises:
        OutputClosed: the reader is gone.
        OSError: it can't be written, as on a full disk.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError as error:
        raise OutputClosed from error


def say(text: str = "") -> None:
    """Print one piece of a result: always shown, also with ``-q``."""
    write(text.encode("utf-8", "surrogateescape") + b"\n")


def confirm_done(text: str) -> None:
    """Print that something was done, unless ``-q``."""
    if not settings.quiet:
        say(text)


def note(text: str) -> None:
    """Tell a person something beside the result, on stderr, unless ``-q``."""
    if not settings.quiet:
        warn(text)


def warn(text: str) -> None:
    """Print a line on stderr, whatever the encoding of stderr can hold."""
    encoding = getattr(sys.stderr, "encoding", None) or "ascii"
    sys.stderr.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    sys.stderr.flush()


def emit(record: Mapping[str, object]) -> None:
    """Print a result as JSON: one object, one line, ASCII only."""
    say(to_json(record))


def answer(record: Mapping[str, object], text: str) -> None:
    """Report what a command did: the record with ``--json``, else the text, unless ``-q``."""
    if settings.json:
        emit(record)
    else:
        confirm_done(text)


def to_json(record: Mapping[str, object]) -> str:
    """Return ``record`` as one line of JSON.

    A string that came from bytes that are not UTF-8 is surrogate-escaped, and the key ``<key>_b64``
    beside it holds the exact bytes in base64.
    """
    import json

    return json.dumps(_with_exact_bytes(record), separators=(", ", ": "))


def _with_exact_bytes(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, Mapping):
        result: dict[str, Any] = {}
        for key, item in value.items():
            result[key] = _with_exact_bytes(item)
            if isinstance(item, str | bytes) and not _is_utf8(result[key]):
                result[f"{key}_b64"] = _base64(result[key])
        return result
    if isinstance(value, list | tuple):
        return [_with_exact_bytes(item) for item in value]
    return value


def _is_utf8(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _base64(text: str) -> str:
    import base64

    return base64.b64encode(text.encode("utf-8", "surrogateescape")).decode()


def printable(name: bytes | str) -> str:
    """Return a name with its control characters escaped: it must not move a terminal's cursor."""
    text = name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or "\udc80" <= char <= "\udcff" else _escaped(char)
        for char in text
    )


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode()


# colour


def colored() -> bool:
    """Return True when text should be coloured: asked for, or a terminal and no ``NO_COLOR``."""
    if settings.color != "auto":
        return settings.color == "always"
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return sys.stdout.isatty()


def style(text: str, *names: str) -> str:
    """Return ``text`` in the named styles when colour is on."""
    if not names or not text or not colored():
        return text
    return f"\x1b[{';'.join(STYLES[name] for name in names)}m{text}\x1b[0m"


def patch(data: bytes) -> None:
    """Write a piece of a unified diff; on a terminal, its lines by what they mean."""
    if not colored():
        write(data)
        return
    for line in data.splitlines(keepends=True):
        names = next((names for start, names in _PATCH_STYLES if line.startswith(start)), ())
        text = line.rstrip(b"\n").decode("utf-8", "surrogateescape")
        ending = b"\n" if line.endswith(b"\n") else b""
        write(style(text, *names).encode("utf-8", "surrogateescape") + ending)


_PATCH_STYLES: tuple[tuple[bytes, tuple[str, ...]], ...] = (
    (b"diff ", ("bold",)),
    (b"index ", ("bold",)),
    (b"--- ", ("bold",)),
    (b"+++ ", ("bold",)),
    (b"@@", ("cyan",)),
    (b"+", ("green",)),
    (b"-", ("red",)),
)


def draws_lines() -> bool:
    """Return True when whoever reads standard output can be shown box-drawing characters."""
    encoding: str = getattr(sys.stdout, "encoding", None) or "utf-8"
    return encoding.lower().replace("-", "") == "utf8"


# pager


@contextmanager
def paged() -> Iterator[None]:
    """Send what the block prints through the user's pager, if standard output is a terminal.

    The block ends early, and well, when the user leaves the pager before the end.
    """
    global _pager
    process = _start_pager() if sys.stdout.isatty() and not settings.json else None
    if process is None:
        yield
        return
    _pager = process.stdin
    try:
        yield
    except OutputClosed:
        pass
    finally:
        _pager = None
        _finish_pager(process)


def _start_pager() -> Any:
    command = os.environ.get("PAGER", "less")
    if command in ("", "cat"):
        return None
    import shlex
    import subprocess

    environment = {"LESS": "FRX", "LV": "-c"} | dict(os.environ)
    try:
        return subprocess.Popen(shlex.split(command), stdin=subprocess.PIPE, env=environment)
    except (OSError, ValueError):
        return None


def _finish_pager(process: Any) -> None:
    """Close the pager's input and wait until the user leaves it; till then Ctrl-C is the pager's."""
    try:
        process.stdin.close()
    except BrokenPipeError:
        pass
    while True:
        try:
            process.wait()
            return
        except KeyboardInterrupt:
            continue


# progress


@contextmanager
def progress(description: str) -> Iterator[Callable[[int, int], None] | None]:
    """Give the block a ``report(done, total)`` that draws a bar once it has taken a second.

    Yields None when stderr is no terminal or ``-q`` was given: no work is done to report what
    nobody sees.
    """
    if settings.quiet or not sys.stderr.isatty():
        yield None
        return
    bar = _Bar(description)
    try:
        yield bar.report
    finally:
        bar.close()


class _Bar:
    """A progress bar that is made, and rich imported, only when the wait is felt."""

    def __init__(self, description: str) -> None:
        self._description = description
        self._next_at = time.monotonic() + PROGRESS_DELAY_S
        self._bar: Any = None
        self._task: Any = None

    def report(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now < self._next_at:
            return
        self._next_at = now + PROGRESS_EVERY_S
        if self._bar is None:
            self._open()
        self._bar.update(self._task, completed=done, total=total or None, refresh=True)

    def _open(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True, no_color=settings.color == "never" or None),
            transient=True,
            auto_refresh=False,  # rich would start a thread, which keeps ``workers.py`` from using processes
        )
        self._task = self._bar.add_task(self._description, total=None)
        self._bar.start()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
