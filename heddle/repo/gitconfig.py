"""Git's configuration files: where they are, what they say, and how one is changed.

Owns the order of git-config(1), FILES, and git's lock around a change. Which settings matter is the asker's to know.
Dulwich parses; it is loaded only when a file may hold what is asked for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from heddle import atomic, faults
from heddle.errors import Busy, ConfigError
from heddle.repo.locks import directory_locked

if TYPE_CHECKING:
    from dulwich.config import ConfigFile

_PATH = re.compile(
    rb"^[ \t]*(?:\[[^\]\n]*\][ \t]*)?path[ \t]*=[ \t]*(.*?)[ \t\r]*$", re.IGNORECASE | re.MULTILINE
)
_DEPTH = 10  # of includes, as git's

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


def edit(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Replace a configuration file by what a function makes of its content, under the lock that git takes for it.

    Git's commands wait for nobody who has that lock, so it is held for no longer than it takes to see that nothing
    has changed meanwhile: what is new is on disk before. The lock is a second name of that file, so that one which a
    kill left is known for ours. Its rename is the commit point.

    Args:
        path: of the file; it may be missing, which is as if it were empty.
        change: may be called more than once, and without anything being written.

    Raises:
        Busy: it is locked.
        OSError: it can't be read or written.
    """
    path = Path(os.path.realpath(path))  # git, too, replaces what a link leads to
    with directory_locked(path.parent):
        _take_away(*_beside(path))
        while (after := change(before := _content(path))) != before:
            if _replace(path, before, after):
                return


def is_left_half_done(path: Path) -> bool:
    """Whether a change of a file is under way, or was killed: the next `edit` clears up."""
    return _beside(Path(os.path.realpath(path)))[0].exists()


def _beside(path: Path) -> tuple[Path, Path]:
    """What is going to replace a file, and git's lock of that."""
    return path.with_name(f"{path.name}.heddle"), path.with_name(f"{path.name}.lock")


def _replace(path: Path, before: bytes, after: bytes) -> bool:
    """Write a file anew, unless it is not what it was before; returns whether it was."""
    new, lock = _beside(path)
    try:
        _write_new(new, after, path)
        try:
            os.link(new, lock)
        except FileExistsError:
            raise Busy(
                f"{path} is locked by {lock}",
                hint=f"run it again; if no git is running, remove {lock}",
            ) from None
        faults.reach("gitconfig.before-rename")
        is_as_before = _content(path) == before
        if is_as_before:
            os.rename(lock, path)
            atomic.fsync_directory(path.parent)
        return is_as_before
    finally:
        _take_away(new, lock)


def _take_away(new: Path, lock: Path) -> None:
    """Take away what is left of a change that failed, or was killed; the lock only if it is ours."""
    with suppress(FileNotFoundError):
        if os.path.samefile(new, lock):
            lock.unlink()
    new.unlink(missing_ok=True)


def _write_new(new: Path, content: bytes, path: Path) -> None:
    """Write what is going to replace a file: as open to others as that, and its owner's where root replaces it."""
    with open(new, "xb") as file:
        with suppress(FileNotFoundError):
            status = path.stat()
            with suppress(PermissionError):
                os.fchown(file.fileno(), status.st_uid, status.st_gid)
            os.fchmod(file.fileno(), status.st_mode & 0o777)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def texts(paths: Iterable[Path], environment: Mapping[str, str]) -> Iterator[bytes]:
    """The bytes of configuration files and of all that they may include, whatever the condition: to look for a word.

    Args:
        paths: of the files; those that are missing are left out.
        environment: says what ``~`` is.
    """
    todo = [(path, 0) for path in paths]
    while todo:
        path, depth = todo.pop()
        try:
            content = path.read_bytes()
        except OSError:
            continue
        yield content
        if b"[include" in content.lower() and depth < _DEPTH:
            for said in _PATH.findall(content):
                name = os.fsdecode(said.strip(b'"'))
                if name.startswith("~/"):
                    name = environment.get("HOME", "~") + name[1:]
                todo.append((path.parent / name, depth + 1))
