"""Remotes: names of other repositories, kept as git keeps them.

Owns the ``[remote "…"]`` sections of one file: git's own configuration in a repository on git, so that both tools
know the same remotes, else ``.heddle/remotes`` in the same format (git-config(1)). Everything else in the file,
comments included, stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from heddle.errors import DataError, UsageError
from heddle.repo import gitconfig
from heddle.repo.locks import directory_locked

if TYPE_CHECKING:
    from dulwich.config import ConfigFile

    from heddle.repo.repository import Repository

_ALL = "refs/heads/*"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class Remote:
    """Another repository, by name.

    Attributes:
        url: where it is fetched from.
        push_url: where pushes go, which is mostly the same.
        pushes_apart: that is said of pushes alone, and so git's ``url.<base>.pushInsteadOf`` does not hold for it.
        promisor: it has promised the blobs that are not here (git-config(1), remote.<name>.promisor).
        patterns: which branches are fetched, as ``refs/heads/*``; ``^`` before those that are not.
        tag_option: ``--tags`` or ``--no-tags``; else see ``follows_tags``.
    """

    name: str
    url: str
    push_url: str
    promisor: bool = False
    patterns: tuple[str, ...] = (_ALL,)
    tag_option: str = ""
    pushes_apart: bool = False

    @property
    def follows_tags(self) -> bool:
        """Whether a tag comes only with what it is at, since it might lead to what is not wanted."""
        return not self.tag_option and _ALL not in self.patterns

    def takes_branch(self, ref: str) -> bool:
        """Whether a branch, by its full name, is fetched from there."""
        no = any(_matches(each[1:], ref) for each in self.patterns if each[0] == "^")
        return not no and any(_matches(each, ref) for each in self.patterns)


def _matches(pattern: str, ref: str) -> bool:
    before, star, after = pattern.partition("*")
    if not star:
        return ref == pattern
    return len(ref) >= len(pattern) - 1 and ref.startswith(before) and ref.endswith(after)


def remotes(repo: Repository) -> list[Remote]:
    """All remotes by name.

    Raises:
        DataError: the file does not parse.
    """
    from dulwich.config import ConfigFile

    path = _file(repo)
    try:
        config = ConfigFile.from_path(path)
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise DataError(f"{path} can't be read: {error}", hint="edit the file") from error
    found = []
    for section in config.sections():
        if len(section) != 2 or section[0].lower() != b"remote" or not config.has_section(section):
            continue
        urls = _values(config, section, b"url")
        if not urls:
            continue
        push_urls = _values(config, section, b"pushurl")
        patterns = [each.lstrip("+").split(":")[0] for each in _values(config, section, b"fetch")]
        patterns = [each for each in patterns if each.lstrip("^").startswith("refs/heads/")]
        if all(each[0] == "^" for each in patterns):
            patterns.append(_ALL)
        options = _values(config, section, b"tagOpt")
        found.append(
            Remote(
                section[1].decode(errors="surrogateescape"),
                urls[0],
                (push_urls or urls)[0],
                bool(config.get_boolean(section, b"promisor", False)),
                tuple(patterns),
                options[-1] if options else "",
                bool(push_urls),
            )
        )
    return sorted(found, key=lambda remote: remote.name)


def _values(config: ConfigFile, section: tuple[bytes, ...], key: bytes) -> list[str]:
    """All values of a setting; of a remote's addresses git takes the first."""
    try:
        found = list(config.get_multivar(section, key))
    except KeyError:
        return []
    return [each.decode(errors="surrogateescape") for each in found if each]


def remote(repo: Repository, name: str) -> Remote:
    """The remote of this name.

    Raises:
        DataError: there is none.
    """
    for each in remotes(repo):
        if each.name == name:
            return each
    raise DataError(f"no remote '{name}'", hint=f"heddle remote add {name} URL")


def add(repo: Repository, name: str, url: str, *, lazy: bool = False) -> Remote:
    """Remember a remote.

    Args:
        lazy: blobs are left there until they are needed; so it is as well for the first remote of a lazy clone.

    Raises:
        UsageError: the name or the URL can't be one.
        DataError: the name is taken.
        Busy: git has its configuration locked.
    """
    if not _NAME.fullmatch(name) or name.endswith((".lock", ".")) or ".." in name:
        raise UsageError(f"{name!r} can't name a remote", hint="letters, digits, '-', '_', '.'")
    if not url or url.startswith("-") or any(ord(char) < 32 for char in url):
        raise UsageError(f"{url!r} can't be the address of a remote")
    if any(each.name == name for each in remotes(repo)):
        raise DataError(f"remote '{name}' exists", hint=f"heddle remote remove {name}")
    promised = bool(repo.store.promises) and not any(each.promisor for each in remotes(repo))
    lazy = lazy or promised  # somebody has to bring what a lazy clone was promised
    quoted = '"' + url.replace("\\", "\\\\").replace('"', '\\"') + '"'
    section = f'[remote "{name}"]\n\turl = {quoted}\n'
    section += f"\tfetch = +refs/heads/*:refs/remotes/{name}/*\n"
    if lazy:
        section += "\tpromisor = true\n\tpartialclonefilter = blob:none\n"
    _edit(_file(repo), lambda text: _ended(text) + section.encode(errors="surrogateescape"))
    return Remote(name, url, url, lazy)


def remove(repo: Repository, name: str) -> None:
    """Forget a remote and its tracking branches; threads, markers and objects stay.

    Raises:
        DataError: there is none.
        Busy: git has its configuration locked.
    """
    remote(repo, name)
    _edit(_file(repo), lambda text: _without(text, name.encode()))
    prefix = f"refs/remotes/{name}/".encode()
    if repo.git is None:
        gone = {ref: None for ref in repo.database.refs() if ref.startswith(prefix)}
        repo.database.move_names([], kind="remote-remove", refs=gone)
        return
    from heddle.git.refs import GitRefs

    refs = GitRefs(repo.git)
    for rest, id in refs.under(prefix).items():
        refs.remove(prefix + rest, id)


def _file(repo: Repository) -> Path:
    return repo.heddle_dir / "remotes" if repo.git is None else repo.git.common / "config"


def _edit(path: Path, change: Callable[[bytes], bytes]) -> None:
    with directory_locked(path.parent):
        gitconfig.edit(path, change)


def _ended(text: bytes) -> bytes:
    return text if not text or text.endswith(b"\n") else text + b"\n"


def _without(text: bytes, name: bytes) -> bytes:
    """The text without the sections of one remote."""
    quoted = re.escape(name.replace(b"\\", b"\\\\").replace(b'"', b'\\"'))
    kept, inside = [], False
    for line in text.splitlines(keepends=True):
        if line.lstrip().startswith(b"["):
            inside = re.match(rb'\s*\[(?i:remote)\s+"%s"\]' % quoted, line) is not None
        if not inside:
            kept.append(line)
    return b"".join(kept)
