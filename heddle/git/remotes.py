"""Remotes: names of other repositories, kept as git keeps them.

Owns the ``[remote "…"]`` sections of one file: git's own configuration in a repository on git, so that both tools
know the same remotes, else ``.heddle/remotes`` in the same format (git-config(1)). Everything else in the file,
comments included, stays as it is, but for branches that follow a remote which is removed. Those of the user's own git
configuration are read as well, and never written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from heddle.errors import DataError, UsageError
from heddle.repo import gitconfig

if TYPE_CHECKING:
    from dulwich.config import ConfigFile

    from heddle.repo.repository import Repository

_ALL = "refs/heads/*"
_EVERYTHING = "refs/*"
_HEADS = "refs/heads/"
_REMOTES = "refs/remotes/"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class Remote:
    """Another repository, by name.

    Attributes:
        url: where it is fetched from.
        push_urls: where pushes go, all of them; mostly the same.
        pushes_apart: that is said of pushes alone, and so git's ``url.<base>.pushInsteadOf`` does not hold for it.
        promisor: it has promised the blobs that are not here (git-config(1), remote.<name>.promisor).
        patterns: which branches are fetched, as ``refs/heads/*``; ``^`` before those that are not.
        tag_option: ``--tags`` or ``--no-tags``; else see ``follows_tags``.
        is_own: the repository says so, and not the user's git configuration alone.
        kept_under: what the names of its branches begin with here; None: ``refs/remotes/<name>/``.
        is_mirrored: git keeps its branches as branches of its own here.
    """

    name: str
    url: str
    push_urls: tuple[str, ...]
    promisor: bool = False
    patterns: tuple[str, ...] = (_ALL,)
    tag_option: str = ""
    pushes_apart: bool = False
    is_own: bool = True
    kept_under: str | None = None
    is_mirrored: bool = False

    @property
    def tracking(self) -> bytes:
        """What the full names of its branches begin with here."""
        prefix = self.kept_under or f"refs/remotes/{self.name}/"
        return prefix.encode(errors="surrogateescape")

    @property
    def push_url(self) -> str:
        """Where pushes go first."""
        return self.push_urls[0]

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
    """All remotes by name: the repository's, and what the user's own git configuration adds.

    Raises:
        DataError: the repository's file does not parse.
        ConfigError: the user's doesn't.
    """
    found: dict[bytes, list[ConfigFile]] = {}
    own, users = _own(repo), _of_the_user(repo.environment)
    for config in [
        *users,
        *([own] if own else []),
    ]:  # in git's order; what comes later is said on top
        for section in config.sections():
            if (
                len(section) == 2
                and section[0].lower() == b"remote"
                and config.has_section(section)
            ):
                found.setdefault(section[1], []).append(config)
    all_remotes = (_remote(name, said, own) for name, said in found.items())
    return sorted((each for each in all_remotes if each is not None), key=lambda each: each.name)


def _own(repo: Repository) -> ConfigFile | None:
    from dulwich.config import ConfigFile

    path = _file(repo)
    try:
        return ConfigFile.from_path(path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(f"{path} can't be read: {error}", hint="edit the file") from error


def _of_the_user(environment: Mapping[str, str]) -> list[ConfigFile]:
    paths = reversed(list(gitconfig.user_files(environment)))
    read = [gitconfig.read(path) for path in paths if gitconfig.may_hold(path, b"remote")]
    return [config for config in read if config is not None]


def _remote(name: bytes, said: Sequence[ConfigFile], own: ConfigFile | None) -> Remote | None:
    """A remote of which some files say something; None if none of them says where it is."""

    def values(key: bytes) -> list[str]:
        return [each for config in said for each in _values(config, (b"remote", name), key)]

    urls = values(b"url")
    if not urls:
        return None
    push_urls = values(b"pushurl")
    specs = [each.lstrip("+").partition(":") for each in values(b"fetch")]
    sources = [_ALL if source == _EVERYTHING else source for source, _, _ in specs]
    patterns = [each for each in sources if each.lstrip("^").startswith(_HEADS)]
    if all(each[0] == "^" for each in sources):
        patterns.append(_ALL)
    places = [
        _place(source, to) for source, _, to in specs if source.startswith((_HEADS, _EVERYTHING))
    ]
    said_last = (each.get_boolean((b"remote", name), b"promisor") for each in reversed(said))
    promises = next((each for each in said_last if each is not None), False)
    return Remote(
        name.decode(errors="surrogateescape"),
        urls[0],
        tuple(push_urls or urls),
        promises,
        tuple(patterns),
        (values(b"tagOpt") or [""])[-1],
        bool(push_urls),
        own in said,
        next((each for each in places if each and each.startswith(_REMOTES)), None),
        any(each == _HEADS for each in places),
    )


def _place(source: str, to: str) -> str | None:
    """What a refspec (git-fetch(1)) puts before the names of branches here; None: it renames them."""
    name = source.removeprefix(_HEADS).removeprefix("refs/")
    if source == _EVERYTHING:
        return _HEADS if to == _EVERYTHING else None
    return to.removesuffix(name) if to.endswith(f"/{name}") else None


def _values(config: ConfigFile, section: tuple[bytes, ...], key: bytes) -> list[str]:
    """All values of a setting; of a remote's addresses git fetches from the first and pushes to all."""
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
    if any(each.name == name and each.is_own for each in remotes(repo)):
        raise DataError(f"remote '{name}' exists", hint=f"heddle remote remove {name}")
    promised = bool(repo.store.promises) and not any(each.promisor for each in remotes(repo))
    lazy = lazy or promised  # somebody has to bring what a lazy clone was promised
    quoted = '"' + url.replace("\\", "\\\\").replace('"', '\\"') + '"'
    section = f'[remote "{name}"]\n\turl = {quoted}\n'
    section += f"\tfetch = +refs/heads/*:refs/remotes/{name}/*\n"
    if lazy:
        section += "\tpromisor = true\n\tpartialclonefilter = blob:none\n"
    gitconfig.edit(
        _file(repo), lambda text: _ended(text) + section.encode(errors="surrogateescape")
    )
    return Remote(name, url, (url,), lazy)


def remove(repo: Repository, name: str) -> None:
    """Forget a remote, its tracking branches, and that branches follow it; threads, markers and objects stay.

    Raises:
        DataError: there is none, or it stands in the user's own git configuration.
        Busy: git has its configuration locked.
    """
    found = remote(repo, name)
    if not found.is_own:
        raise DataError(
            f"remote '{name}' stands in your own git configuration",
            hint=f"git config --global --remove-section remote.{name}",
        )
    gitconfig.edit(_file(repo), lambda text: _without(text, name.encode()))
    prefix = found.tracking
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


def _ended(text: bytes) -> bytes:
    return text if not text or text.endswith(b"\n") else text + b"\n"


def _without(text: bytes, name: bytes) -> bytes:
    """The text without the sections of one remote, and without what makes branches follow it."""
    kept = []
    for section in _sections(text):
        found = _HEADER.match(section[0])
        kind, called = (found[1].lower(), found[2]) if found else (b"", b"")
        if kind == b"remote" and _unquoted(called) == name:
            continue
        lines = _unfollowed(section, name) if kind == b"branch" else section
        if len(lines) > 1 or lines == section:
            kept += lines
    return b"".join(kept)


_HEADER = re.compile(rb'\s*\[\s*([A-Za-z0-9-]+)\s+"((?:[^"\\]|\\.)*)"\s*\]')
_SETTING = re.compile(
    rb"""\s*(remote|merge|pushremote)\s*=\s*("?)(.*?)\2\s*([#;].*)?$""", re.IGNORECASE
)


def _sections(text: bytes) -> list[list[bytes]]:
    """The lines of each section, with its header first; first what stands before them."""
    sections: list[list[bytes]] = [[]]
    for line in text.splitlines(keepends=True):
        if line.lstrip().startswith(b"["):
            sections.append([])
        sections[-1].append(line)
    return [each for each in sections if each]


def _unfollowed(section: list[bytes], name: bytes) -> list[bytes]:
    """The lines of a branch's section without those by which it follows a remote or is pushed there."""
    said = [_SETTING.match(line.rstrip(b"\n")) for line in section]
    named = {each[1].lower() for each in said if each and _unquoted(each[3]) == name}
    gone = named & {b"pushremote"} | ({b"remote", b"merge"} if b"remote" in named else set())
    pairs = zip(section, said, strict=True)
    return [line for line, each in pairs if not each or each[1].lower() not in gone]


def _unquoted(text: bytes) -> bytes:
    return re.sub(rb"\\(.)", rb"\1", text)
