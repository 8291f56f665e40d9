"""Which files git may convert before it stores them, told without git and without matching a pattern.

Owns the words of gitattributes(5) and of git's settings without which nothing is converted, and the look at a file's
bytes without which no line endings are. Most repositories have no such word, and most files no CRLF: then nothing is
asked and no git starts. What git makes of the others is ``gitclean.py``'s.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from heddle.repo import gitconfig

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.repo.gitlink import GitDir
    from heddle.repo.reading import BlobSink

NAME = b".gitattributes"
_SYSTEM = (Path("/etc/gitattributes"), Path("/usr/local/etc/gitattributes"))
"""Where git's attributes for all users are, as far as packagers are known to put them."""
_COMMENT = re.compile(rb"^[ \t]*#.*$", re.MULTILINE)
_ELSE = re.compile(rb"filter|ident|working-tree-encoding")
_LINES = re.compile(rb"text|crlf|eol")
_OFF = re.compile(rb"(?<=\s)[-!](text|crlf|eol)(?=\s|$)")
_GUESSED = re.compile(rb"(?<=\s)text=auto(?=\s|$)")
_NOT_AUTOCRLF = re.compile(rb"autocrlf[ \t]*=[ \t\"]*(false|no|off|0)\b")
_MAY_BE_ANY = b"* filter\n"
_MAY_BE_AUTOCRLF = b"* text=auto\n"
_UTF_8_NEVER = re.compile(r"utf-?(16|32)|ucs-?[24]", re.IGNORECASE)


class Kind(IntEnum):
    """What git may do to a file; each includes those before it."""

    NOTHING = 0
    GUESSED = 1
    """Convert line endings, if it takes the file for text."""
    LINES = 2
    """Convert line endings."""
    ANYTHING = 3
    """Convert it in any way: a filter, an encoding, ``$Id$``."""


class _Said(NamedTuple):
    """What rules may do to files: to line endings, and whether anything else."""

    lines: Kind
    else_too: bool


def _said(rules: bytes) -> _Said:
    """What the rules of an attribute file may do to any file; too much rather than too little."""
    rules = _COMMENT.sub(b"", rules)
    left = _OFF.sub(b"", rules)
    lines = Kind.GUESSED if _GUESSED.search(left) else Kind.NOTHING
    if _LINES.search(_GUESSED.sub(b"", left)):
        lines = Kind.LINES
    return _Said(lines, _ELSE.search(rules) is not None)


def everywhere(git: GitDir, environment: Mapping[str, str]) -> bytes:
    """Rules for all files of a checkout that are in none of its directories.

    Settings that convert count as the rule that they amount to; one that may be set where a condition holds
    (``includeIf``) counts as set.

    Args:
        git: the checkout.
        environment: says where the user's settings are.
    """
    own = [git.path / "config.worktree", git.common / "config"]
    said = list(gitconfig.texts([*own, *gitconfig.user_files(environment)], environment))
    said += [os.fsencode(value) for name, value in environment.items() if name[:10] == "GIT_CONFIG"]
    settings = b"\n".join(said).lower()
    rules = [_content(path) for path in _files(git, environment)]
    if b"attributesfile" in settings:
        rules.append(_MAY_BE_ANY)
    if b"autocrlf" in _NOT_AUTOCRLF.sub(b"", settings):
        rules.append(_MAY_BE_AUTOCRLF)
    return b"\n".join(filter(None, rules))


def _files(git: GitDir, environment: Mapping[str, str]) -> Iterable[Path]:
    """The attribute files that git reads besides those in directories (gitattributes(5), FILES)."""
    yield git.common / "info" / "attributes"
    home = gitconfig.config_home(environment)
    if home is not None:
        yield home / "git" / "attributes"
    if not environment.get("GIT_ATTR_NOSYSTEM"):
        yield from _SYSTEM


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


class Attributes:
    """Answers what git may do to a file, reading each directory's rules once.

    Args:
        read: the content of an attribute file at a path inside the tree, or None when there is none. A symbolic link
            is none (git does not follow it either).
        everywhere: rules for the whole tree, as `everywhere` gives them.

    Attributes:
        files: the content of those that were read and are there, by the path of their directory.
    """

    def __init__(self, read: Callable[[bytes], bytes | None], *, everywhere: bytes = b"") -> None:
        self._read = read
        self.files: dict[bytes, bytes] = {}
        self._everywhere = everywhere
        self._known: dict[bytes, _Said] = {}

    def kind(self, path: bytes) -> Kind:
        """What git may do to a file at a path."""
        said = self._of(path.rpartition(b"/")[0])
        return Kind.ANYTHING if said.else_too else said.lines

    def lines(self, path: bytes) -> Kind:
        """What it may do there to line endings."""
        return self._of(path.rpartition(b"/")[0]).lines

    def _of(self, directory: bytes) -> _Said:
        """What is said of a directory's files, there and above."""
        unknown = []
        while directory not in self._known:
            unknown.append(directory)
            if not directory:
                break
            directory = directory.rpartition(b"/")[0]
        said = self._known.get(directory) or _said(self._everywhere)
        for directory in reversed(unknown):
            here = self._rules(directory)
            said = _Said(max(said.lines, here.lines), said.else_too or here.else_too)
            self._known[directory] = said
        return said

    def _rules(self, directory: bytes) -> _Said:
        rules = self._read(directory + b"/" + NAME if directory else NAME)
        if rules is None:
            return _Said(Kind.NOTHING, False)
        self.files[directory] = rules
        return _said(rules)


def files_above(path: bytes) -> Iterator[bytes]:
    """The attribute files that speak about a path, were they there."""
    while path:
        path = path.rpartition(b"/")[0]
        yield path + b"/" + NAME if path else NAME


# a file's bytes


class Convertible(Exception):
    """Git may store other bytes than a file has."""


class _Watch:
    """Looks at a file's bytes, piece by piece, for what would have git convert its line endings."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self._has_crlf = self._has_nul = self._ends_with_cr = False

    def see(self, piece: bytes) -> None:
        if not self._has_crlf:
            joined = self._ends_with_cr and piece.startswith(b"\n")
            self._has_crlf = joined or b"\r\n" in piece
            self._ends_with_cr = piece.endswith(b"\r")
        if self._kind == Kind.GUESSED and not self._has_nul:
            self._has_nul = b"\0" in piece
        if self._has_crlf and self._kind != Kind.GUESSED:
            raise Convertible

    def end(self) -> None:
        if self._has_crlf and not self._has_nul:
            raise Convertible


def watched(read: Callable[[int], bytes], kind: Kind) -> Callable[[int], bytes]:
    """What reads the same, and raises Convertible, at its end at the latest, if git may convert line endings of it.

    Args:
        read: gives at most so many bytes, none at the end.
        kind: what git may do to the file.
    """
    if kind == Kind.NOTHING:
        return read
    watch = _Watch(kind)

    def look(count: int) -> bytes:
        piece = read(count)
        if piece:
            watch.see(piece)
        else:
            watch.end()
        return piece

    return look


class Watching:
    """A sink that takes only what git stores as it is.

    Args:
        sink: takes it then.
        kind: what git may do to the file.
    """

    def __init__(self, sink: BlobSink, kind: Kind) -> None:
        self._sink = sink
        self._kind = kind

    def add_blob(self, content: bytes) -> ObjectID:
        """As the sink; raises Convertible."""
        watch = _Watch(self._kind)
        watch.see(content)
        watch.end()
        return self._sink.add_blob(content)

    def add_blob_from(self, read: Callable[[int], bytes], size: int) -> ObjectID:
        """As the sink; raises Convertible."""
        return self._sink.add_blob_from(watched(read, self._kind), size)


def may_become(kind: Kind, size: int, stored: int) -> bool:
    """Whether git may make of a file of one size a blob of another: line endings become shorter, by half at most."""
    if kind == Kind.ANYTHING:
        return True
    return size == stored or (kind != Kind.NOTHING and stored < size <= 2 * stored)


def is_as_stored(read: Callable[[int], bytes], encoding: str) -> bool:
    """Whether a file that is to be in an encoding holds UTF-8, as states have it and as mounts show it.

    Told only where it can't be taken for the other: what is UTF-8 and holds no NUL is no text in UTF-16 or UTF-32.

    Args:
        read: gives its bytes.
        encoding: git's ``working-tree-encoding``.
    """
    if not _UTF_8_NEVER.match(encoding):
        return False
    import codecs

    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        while piece := read(1 << 20):
            if b"\0" in piece:
                return False
            decoder.decode(piece)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True
