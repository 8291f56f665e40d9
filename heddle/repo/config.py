"""Settings: which keys there are, the files they live in, and editing one without disturbing the rest.

Owns ``.heddle/config.toml`` and the user's configuration file, and reads git's for the principal. Which layer
wins for which value of an attribution is ``attribution.py``'s. The environment is passed in by the caller.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from heddle import atomic
from heddle.attribution import what_is_wrong
from heddle.errors import CannotCreate, ConfigError, UsageError
from heddle.repo import gitconfig
from heddle.repo.gitconfig import config_home
from heddle.repo.locks import directory_locked

if TYPE_CHECKING:
    from heddle.repo.gitlink import GitDir

KEYS: Mapping[str, str] = {
    "principal.name": "the human who answers for captures",
    "principal.email": "their address",
    "agent.provider": "who runs the model that makes the changes, such as anthropic",
    "agent.model": "the model's name",
    "agent.session": "the run of the agent",
    "agent.task": "what the agent is working on",
    "mount.restarts": "how often in five minutes a session that crashed is started again; 0: never",
    "git.fsmonitor_files": "git asks the session what changed in mounts of at least so many files; 2000 if not set",
    "fetch.timeout": "seconds that a server may be silent before it counts as away; 30 if not set",
    "fetch.max_object_size": "the longest object that is taken from a server: bytes, or as 500m",
}
"""Every key that can be set, with its help; all are text."""

_GIT_KEYS = {"principal.name": b"name", "principal.email": b"email"}


def check_key(key: str) -> None:
    """Check that a key exists.

    Raises:
        UsageError: it does not; the hint lists the near ones.
    """
    if key in KEYS:
        return
    from difflib import get_close_matches

    near = get_close_matches(key, KEYS, n=3) or sorted(KEYS)
    raise UsageError(f"no setting is called {key!r}", hint="did you mean " + ", ".join(near) + "?")


def _what_is_wrong(key: str, value: str) -> str | None:
    """Why a setting can't have a value, as the end of a sentence; None if it can."""
    check = _NUMBERS.get(key)
    if check is None:
        return what_is_wrong(key, value)
    try:
        check(value)
    except ConfigError as error:
        return error.message
    return None


def seconds(text: str) -> float:
    """A setting that is a time, in seconds.

    Raises:
        ConfigError: it is none.
    """
    if not re.fullmatch(r"\d{1,6}(\.\d+)?", text) or float(text) == 0:
        raise ConfigError(f"is {text!r}, and no number of seconds")
    return float(text)


def size_bytes(text: str) -> int:
    """A setting that is a size: bytes, or with one of git's suffixes k, m and g.

    Raises:
        ConfigError: it is none.
    """
    match = re.fullmatch(r"(\d{1,15})([kmg]?)", text.lower())
    if match is None:
        raise ConfigError(f"is {text!r}, and no size such as 500m")
    return int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[match[2]]


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ConfigError("has to be a number, 0 or more")
    return int(text)


_NUMBERS: Mapping[str, Callable[[str], float]] = {
    "mount.restarts": _count,
    "git.fsmonitor_files": _count,
    "fetch.timeout": seconds,
    "fetch.max_object_size": size_bytes,
}


class ConfigFile:
    """One TOML file of settings; a missing file is an empty one.

    Args:
        path: the file, or None for a layer that has no place (no home directory).
        source: what users call it: ``repository config`` or ``user config``.
    """

    def __init__(self, path: Path | None, source: str) -> None:
        self.path = path
        self.source = source

    def values(self) -> dict[str, str]:
        """The known settings that the file gives, by key.

        Raises:
            ConfigError: it does not parse, or a value is not text; names the line and column or the key.
        """
        tables = self._parse(self._read())
        found = {}
        for key in KEYS:
            value = _lookup(tables, key)
            if value is None:
                continue
            if key in _NUMBERS and type(value) is int:
                value = str(value)
            if not isinstance(value, str):
                raise ConfigError(f"{self.path}: {key} has to be text in quotes")
            found[key] = value
        return found

    def set(self, key: str, value: str | None) -> None:
        """Give a setting a value, or take it out; comments and everything else stay as they are.

        The new file replaces the old one whole; two commands at once can't lose each other's change.

        Args:
            value: None removes the setting.

        Raises:
            UsageError: no such setting, or not a value for it.
            ConfigError: the file does not parse, or is written in a way that only a person can edit.
            CannotCreate: it can't be written.
        """
        check_key(key)
        wrong = None if value is None else _what_is_wrong(key, value)
        if wrong is not None:
            raise UsageError(f"{key} {wrong}")
        if self.path is None:
            raise ConfigError("there is no home directory to keep a user configuration in")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with directory_locked(self.path.parent):
                old = self._read()
                atomic.write_file(self.path, self._edited(old, key, value).encode())
        except OSError as error:
            raise CannotCreate(f"can't write {self.path}: {error.strerror}") from error

    def _read(self) -> str:
        if self.path is None:
            return ""
        try:
            return self.path.read_bytes().decode()
        except FileNotFoundError:
            return ""
        except UnicodeDecodeError as error:
            before = error.object[: error.start]
            line = before.count(b"\n") + 1
            column = error.start - before.rfind(b"\n")
            raise ConfigError(
                f"{self.path}: line {line}, column {column}: not UTF-8", hint="edit the file"
            ) from error
        except OSError as error:
            raise ConfigError(f"can't read {self.path}: {error.strerror}") from error

    def _parse(self, text: str) -> dict[str, Any]:
        if not text:
            return {}
        import tomllib

        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            message, line, column = _position(str(error), text)
            raise ConfigError(
                f"{self.path}: line {line}, column {column}: {message}", hint="edit the file"
            ) from error

    def _edited(self, text: str, key: str, value: str | None) -> str:
        """The text with one setting changed, proved by parsing both."""
        wanted = self._parse(text)
        _assign(wanted, key, value)
        edited = _edit(text, key, value)
        try:
            good = _without_empty(self._parse(edited)) == _without_empty(wanted)
        except ConfigError:
            good = False
        if not good:
            raise ConfigError(
                f"{self.path} gives {key} in a way that only a person can edit",
                hint="edit the file",
            )
        return edited


class Value(NamedTuple):
    """A setting as it holds.

    Attributes:
        key: its name.
        value: None where no layer gives one.
        source: the layer that gives it: ``repository config``, ``git config`` or ``user config``.
    """

    key: str
    value: str | None
    source: str | None


class Config:
    """All settings that hold for one repository, from every layer.

    Args:
        heddle_dir: the repository's ``.heddle``.
        git: the git repository it lies on, if any.
        environment: of the command; says where the user's files are.
    """

    def __init__(
        self, heddle_dir: Path, git: GitDir | None, environment: Mapping[str, str]
    ) -> None:
        self.repository = ConfigFile(heddle_dir / "config.toml", "repository config")
        self.user = user_file(environment)
        self._git = _GitValues(heddle_dir, git, environment)

    def layers(self) -> list[tuple[str, Mapping[str, str]]]:
        """The layers in order, most important first: name and values; git's is read when asked a value."""
        return [
            (self.repository.source, self.repository.values()),
            ("git config", self._git),
            (self.user.source, self.user.values()),
        ]

    def get(self, key: str) -> Value:
        """The value of one setting and the layer that gives it.

        Raises:
            UsageError: no such setting.
            ConfigError: a file does not parse.
        """
        check_key(key)
        return self._get(key, self.layers())

    def number(self, key: str, default: str) -> float:
        """The value of a setting that is a time in seconds or a size in bytes.

        Args:
            default: as it would be written, for where no layer gives one.

        Raises:
            ConfigError: it is no such number, or a file does not parse.
        """
        value = self.get(key).value or default
        try:
            return _NUMBERS[key](value)
        except ConfigError as error:
            raise ConfigError(f"{key} {error.message}", hint=f"heddle config set {key}") from error

    def list(self) -> list[Value]:
        """Every setting that has a value.

        Raises:
            ConfigError: a file does not parse.
        """
        layers = self.layers()
        found = [self._get(key, layers) for key in KEYS]
        return [each for each in found if each.value is not None]

    def set(self, key: str, value: str | None, *, user: bool = False) -> Value:
        """Write one setting into the repository's file, or the user's; None takes it out.

        Raises:
            UsageError, ConfigError, CannotCreate: as ``ConfigFile.set``.
        """
        file = self.user if user else self.repository
        file.set(key, value)
        return Value(key, value, file.source)

    def _get(self, key: str, layers: Sequence[tuple[str, Mapping[str, str]]]) -> Value:
        for source, values in layers:
            value = values.get(key)
            if value is not None:
                return Value(key, value, source)
        return Value(key, None, None)


def user_file(environment: Mapping[str, str]) -> ConfigFile:
    """The user's configuration: ``$HEDDLE_CONFIG``, else under ``$XDG_CONFIG_HOME``, else ``~/.config``."""
    named = environment.get("HEDDLE_CONFIG")
    if named:
        return ConfigFile(Path(named), "user config")
    home = config_home(environment)
    return ConfigFile(home / "heddle" / "config.toml" if home else None, "user config")


class _GitValues(Mapping[str, str]):
    """The principal as git is configured (git-config(1), FILES), read when first asked for."""

    def __init__(
        self, heddle_dir: Path, git: GitDir | None, environment: Mapping[str, str]
    ) -> None:
        self._heddle_dir = heddle_dir
        self._git = git
        self._environment = environment
        self._read: dict[str, str] | None = None

    def __getitem__(self, key: str) -> str:
        if key not in _GIT_KEYS:
            raise KeyError(key)
        return self._values()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values())

    def __len__(self) -> int:
        return len(self._values())

    def _values(self) -> dict[str, str]:
        if self._read is None:
            self._read = {}
            for path in self._files():
                for key, value in _git_user(path, self._is_in).items():
                    self._read.setdefault(key, value)
        return self._read

    def _is_in(self, pattern: str) -> bool:
        """Whether ``includeIf "gitdir:…"`` holds here (git-config(1)); without git, ``.heddle`` counts."""
        from dulwich.config import match_glob_pattern

        if pattern.startswith("~/"):
            pattern = self._environment.get("HOME", "~") + pattern[1:]
        if not pattern.startswith("/"):
            pattern = "**/" + pattern
        if pattern.endswith("/"):
            pattern += "**"
        here = self._heddle_dir if self._git is None else self._git.path
        return match_glob_pattern(str(here), pattern)

    def _files(self) -> Iterator[Path]:
        """Most important first."""
        if self._git is not None:
            yield self._git.path / "config.worktree"
            yield self._git.common / "config"
        yield from gitconfig.user_files(self._environment)


def _git_user(path: Path, is_in: Callable[[str], bool]) -> dict[str, str]:
    """The principal that one git configuration file gives, with the files it includes."""
    config = gitconfig.read(path, is_in)
    if config is None:
        return {}
    found = {}
    for key, name in _GIT_KEYS.items():
        try:
            value = config.get((b"user",), name).decode(errors="surrogateescape").strip()
        except KeyError:
            continue
        if value:
            found[key] = value
    return found


# editing TOML line by line


_TABLE = re.compile(r"\s*\[\s*([A-Za-z0-9_-]+)\s*\]\s*(#.*)?$")
_ANY_TABLE = re.compile(r"\s*\[")
_SINGLE_LINE = r"""("(?:[^"\\]|\\.)*"|'[^']*'|[^\s#"']+)"""


def _edit(text: str, key: str, value: str | None) -> str:
    """Change, add or remove one setting in its ``[table]``; unusual spellings come out wrong or unchanged."""
    table, _, name = key.partition(".")
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    start, end = _table_span(lines, table)
    setting = re.compile(rf"(\s*{name}\s*=\s*){_SINGLE_LINE}(\s*(?:#.*)?)$", re.DOTALL)
    for number in range(start, end):
        match = setting.match(lines[number])
        if match:
            changed = f"{match[1]}{_quoted(value)}{match[3]}" if value is not None else ""
            return "".join([*lines[:number], changed, *lines[number + 1 :]])
    if value is None:
        return "".join(lines)
    if start == end:
        gap = "\n" if lines else ""
        return "".join([*lines, f"{gap}[{table}]\n{name} = {_quoted(value)}\n"])
    while end > start + 1 and not lines[end - 1].strip():
        end -= 1
    return "".join([*lines[:end], f"{name} = {_quoted(value)}\n", *lines[end:]])


def _table_span(lines: list[str], table: str) -> tuple[int, int]:
    """The lines of ``[table]`` with its header; an empty span at the end where there is none."""
    for start, line in enumerate(lines):
        match = _TABLE.match(line)
        if match and match[1] == table:
            end = start + 1
            while end < len(lines) and not _ANY_TABLE.match(lines[end]):
                end += 1
            return start, end
    return len(lines), len(lines)


def _quoted(value: str) -> str:
    """A TOML basic string; control characters have been refused before."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _lookup(tables: Mapping[str, Any], key: str) -> Any:
    found: Any = tables
    for part in key.split("."):
        if not isinstance(found, dict):
            return None
        found = found.get(part)
    return found


def _assign(tables: dict[str, Any], key: str, value: str | None) -> None:
    table, _, name = key.partition(".")
    values = tables.setdefault(table, {})
    if not isinstance(values, dict):
        return
    if value is None:
        values.pop(name, None)
    else:
        values[name] = value


def _without_empty(tables: dict[str, Any]) -> dict[str, Any]:
    return {name: values for name, values in tables.items() if values != {}}


def _position(message: str, text: str) -> tuple[str, int, int]:
    """tomllib's message without its position, and the position: line and column from 1."""
    match = re.search(r" \(at line (\d+), column (\d+)\)$", message)
    if match:
        return message[: match.start()], int(match[1]), int(match[2])
    last = text.rfind("\n") + 1
    return message.removesuffix(" (at end of document)"), text.count("\n") + 1, len(text) - last + 1
