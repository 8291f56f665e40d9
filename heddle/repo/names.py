"""What a thread or a marker may be called, and the directory of a thread's overlay.

The rules are git's for a branch (git-check-ref-format(1)), so that every thread can be a branch, plus a few
that keep names apart from options, from HEAD and from state and change ids. Whether a name is taken is the
database's.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from heddle.errors import InvalidName

if TYPE_CHECKING:
    from heddle.repo.repository import Repository

MAX_BYTES = 200
"""Length of a name as UTF-8: its quoted form with a time before it stays one file name (255 bytes)."""

_LOOKS_LIKE_ID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}|[k-z]{32}")
_FORBIDDEN = " ~^:?*[\\"


def valid_thread_name(name: str) -> None:
    """Check that ``name`` can be a thread's.

    Raises:
        InvalidName: it can't; the message says which rule it breaks.
    """
    _check(name, "thread")


def valid_marker_name(name: str) -> None:
    """Check that ``name`` can be a marker's.

    Raises:
        InvalidName: it can't; the message says which rule it breaks.
    """
    _check(name, "marker")


def overlay_name(thread: str) -> str:
    """A thread's name as one path component: ``%`` and ``/`` as ``%25`` and ``%2F``, the rest as it is."""
    return thread.replace("%", "%25").replace("/", "%2F")


def overlay_dir(repo: Repository, thread: str) -> Path:
    """The directory that holds everything unsaved of a thread; it may not exist."""
    return repo.heddle_dir / "overlays" / overlay_name(thread)


def _check(name: str, what: str) -> None:
    wrong = _what_is_wrong(name)
    if wrong is not None:
        hint = "letters, digits, '-', '_', '.' and '/' between parts are always fine"
        raise InvalidName(f"{name!r} can't name a {what}: {wrong}", hint=hint)


def _what_is_wrong(name: str) -> str | None:
    """The first rule that a name breaks, as the end of a sentence; None if it breaks none."""
    if not name:
        return "it is empty"
    if name in ("HEAD", "@"):
        return "that always means the thread you are on"
    if not name.isprintable():
        return "it holds a control or an invisible character"
    for character in _FORBIDDEN:
        if character in name:
            return f"it holds {character!r}"
    for pair in ("..", "@{"):
        if pair in name:
            return f"it holds {pair!r}"
    if name.startswith("-"):
        return "it begins with '-', like an option"
    if _LOOKS_LIKE_ID.fullmatch(name):
        return "it looks like a state id or a change id"
    if max(len(name.encode()), len(overlay_name(name).encode())) > MAX_BYTES:
        return f"it is longer than {MAX_BYTES} bytes"
    return _what_is_wrong_with_parts(name.split("/"))


def _what_is_wrong_with_parts(parts: list[str]) -> str | None:
    for part in parts:
        if not part:
            return "it begins or ends with '/' or holds '//'"
        if part.startswith("."):
            return f"{part!r} begins with '.'"
        if part.endswith(".lock"):
            return f"{part!r} ends with '.lock'"
    return "it ends with '.'" if parts[-1].endswith(".") else None
