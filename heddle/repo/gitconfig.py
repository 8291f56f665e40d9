"""Git's configuration files: where they are and what they say.

Owns the order of git-config(1), FILES. Which settings matter is the asker's to know. Dulwich parses; it is loaded only
when a file may hold what is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from heddle.errors import ConfigError

if TYPE_CHECKING:
    from dulwich.config import ConfigFile

IsIn = Callable[[str], bool]
"""Whether a pattern of ``includeIf "gitdir:…"`` holds."""


def config_home(environment: Mapping[str, str]) -> Path | None:
    """``$XDG_CONFIG_HOME``, else ``~/.config``."""
    # A relative $XDG_CONFIG_HOME is to be ignored (XDG Base Directory Specification).
    configured = environment.get("XDG_CONFIG_HOME", "")
    if configured.startswith("/"):
        return Path(configured)
    home = environment.get("HOME")
    return Path(home, ".config") if home else None


def user_files(environment: Mapping[str, str]) -> Iterator[Path]:
    """The user's files and the system's, most important first; git trusts these whoever owns a repository."""
    get = environment.get
    if get("GIT_CONFIG_GLOBAL") is not None:
        yield Path(get("GIT_CONFIG_GLOBAL") or os.devnull)
    else:
        if get("HOME"):
            yield Path(get("HOME") or "", ".gitconfig")
        home = config_home(environment)
        if home is not None:
            yield home / "git" / "config"
    if get("GIT_CONFIG_NOSYSTEM", "").lower() not in ("1", "true", "yes", "on"):
        yield Path(get("GIT_CONFIG_SYSTEM") or "/etc/gitconfig")


def read(path: Path, is_in: IsIn | None = None) -> ConfigFile | None:
    """One file with those that it includes; None where there is none.

    Raises:
        ConfigError: it can't be read.
    """
    if not path.is_file():
        return None
    from dulwich.config import ConfigFile

    matchers = None if is_in is None else {"gitdir:": is_in}
    try:
        return ConfigFile.from_path(path, condition_matchers=matchers)
    except (OSError, ValueError) as error:
        raise ConfigError(f"can't read git's {path}: {error}") from error


def may_hold(path: Path, name: bytes) -> bool:
    """Whether a file can give a setting at all, itself or by an include: a look at its bytes, without parsing."""
    try:
        content = path.read_bytes().lower()
    except OSError:
        return False
    return name.lower() in content or b"[include" in content


def values(path: Path, section: bytes, name: bytes) -> list[bytes]:
    """Every value that one file gives for a setting, in its order.

    Raises:
        ConfigError: it can't be read.
    """
    if not may_hold(path, name):
        return []
    config = read(path)
    try:
        return [] if config is None else list(config.get_multivar((section,), name))
    except KeyError:
        return []
