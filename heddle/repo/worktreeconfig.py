"""``extensions.worktreeConfig``: whether checkouts have settings of their own (git-worktree(1), "Configuration file").

Owns the one thing that heddle writes into git's configuration without being told to: two lines at its end that turn
the extension on while a mount needs it. They come with the first such mount and go with the last, under git's own lock;
one that git holds is not waited for. Where the owner has said anything about it, yes or no, it stands.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from heddle.errors import HeddleError
from heddle.repo import gitconfig

if TYPE_CHECKING:
    from heddle.repo.gitlink import GitDir

SETTINGS = "config.worktree"
"""In a checkout's private directory: its own settings."""
_LINE = b"\tworktreeConfig = true # of heddle's mounts: goes with the last one"
"""What git writes there takes the note along, so that it is the owner's then."""
OURS = b"[extensions]\n" + _LINE + b"\n"
_SECTION = re.compile(
    rb"^%s(?P<rest>(?:(?![ \t]*\[).*\n?)*?)(?=^[ \t]*\[|\Z)" % re.escape(OURS), re.MULTILINE
)
_TRUE = (b"true", b"yes", b"on", b"1", b"")


def is_on(git: GitDir) -> bool:
    """Whether checkouts have settings of their own; raises ConfigError where that can't be read."""
    said = _said(git, b"extensions", b"worktreeConfig")
    return bool(said) and said[-1].lower() in _TRUE


def may_be_on(git: GitDir) -> bool:
    """Whether it is on, or `turn_on` can turn it on; raises as ``is_on``.

    What only the main checkout may have (``core.bare``, ``core.worktree``) would count for all, settings that nobody
    reads would come back, and a configuration of version 1 is refused by programs that do not know all its extensions;
    those that know what a partial clone or SHA-256 takes know this one too.
    """
    if _said(git, b"extensions", b"worktreeConfig"):
        return is_on(git)
    version = _said(git, b"core", b"repositoryformatversion")
    bare = _said(git, b"core", b"bare")
    newer = any(_said(git, b"extensions", each) for each in (b"partialClone", b"objectFormat"))
    return (
        (not version or version[-1] == b"0" or newer)
        and (not bare or bare[-1].lower() not in _TRUE)
        and not _said(git, b"core", b"worktree")
        and not (git.common / SETTINGS).exists()
    )


def turn_on(git: GitDir) -> bool:
    """Have checkouts have settings of their own; returns whether they do.

    Raises:
        ConfigError: the configuration can't be read.
        Busy: git is writing it just now.
        OSError: it can't be written.
    """
    if not may_be_on(git):
        return False
    if not is_on(git):
        gitconfig.edit(_path(git), _with_ours)
    return True


def turn_off(git: GitDir) -> None:
    """Take back what `turn_on` wrote, unless some checkout has settings. What can't be taken back costs nothing."""
    path = _path(git)
    with suppress(HeddleError, OSError):
        if _LINE not in path.read_bytes() and not gitconfig.is_left_half_done(path):
            return
        gitconfig.edit(path, lambda text: text if _is_used(git) else _without_ours(text))
        if _is_used(git):  # git made settings since, because it was on
            turn_on(git)


def _with_ours(text: bytes) -> bytes:
    """A last line that does not end stays so."""
    if _LINE in text:  # another mount was first
        return text
    return text + OURS if text.endswith(b"\n") or not text else text + b"\n" + OURS[:-1]


def _without_ours(text: bytes) -> bytes:
    """Take our lines out; what their owner has put into our section stays in one."""
    if text.endswith(b"\n" + OURS[:-1]):
        return text[: -len(OURS)]
    text = _SECTION.sub(lambda found: _owners_part(found["rest"]), text)
    return text.replace(_LINE + b"\n", b"")


def _owners_part(rest: bytes) -> bytes:
    lines = [line.strip() for line in rest.splitlines()]
    has_settings = any(line and line[:1] not in b"#;" for line in lines)
    return (b"[extensions]\n" if has_settings else b"") + rest


def _said(git: GitDir, section: bytes, name: bytes) -> list[bytes]:
    return gitconfig.values(_path(git), section, name)


def _path(git: GitDir) -> Path:
    return git.common / "config"


def _is_used(git: GitDir) -> bool:
    """Whether a checkout has settings, or is about to: git's lock of them counts."""
    places = [git.common, *(git.common / "worktrees").glob("*")]
    return any(
        (place / name).exists() for place in places for name in (SETTINGS, f"{SETTINGS}.lock")
    )
