"""Which paths are ignored: git's rules from ``.gitignore`` and ``.heddleignore``, per directory.

Owns the reading of rule lines, their order of strength and the exclusion of everything below an
excluded directory; what a glob matches is dulwich's ``wildmatch``. It opens no file: whoever knows
the tree (a working directory, a mount) gives the rule files through a callback, and asks only about
paths that no state holds yet, since what was captured once is never ignored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

RULE_FILES = (b".gitignore", b".heddleignore")
"""The files that hold rules for their directory; a later one is stronger."""

ALWAYS_IGNORED = frozenset({b".git", b".heddle"})
"""Names that are never captured nor written, at any level and in any case."""

_NEVER_LONGER = max(map(len, ALWAYS_IGNORED))
_GLOB = re.compile(rb"[*?\[\\]")
_SAME = re.compile(rb"\\.|\*\*+", re.DOTALL)
_SIMPLER = {b"\\/": b"/", b"**": b"**"}
_Decision = bool | None


def always_ignored(name: bytes) -> bool:
    """True for a name that is never captured nor written: ``.git`` and ``.heddle``, in any case."""
    return len(name) <= _NEVER_LONGER and name.lower() in ALWAYS_IGNORED


class IgnoreRules:
    """Answers whether a path is ignored, reading each directory's rules once.

    Args:
        read_rules: the content of a rule file at a path inside the tree, or None when there is
            none. A symbolic link is not a rule file (git does not follow it either).
        exclude: rules for the whole tree that are weaker than every file's (``.git/info/exclude``).
    """

    def __init__(
        self, read_rules: Callable[[bytes], bytes | None], *, exclude: bytes = b""
    ) -> None:
        self._read = read_rules
        self._exclude = _rule_set(exclude)
        self._chains: dict[bytes, _Chain] = {}
        self._excluded: dict[bytes, bool] = {b"": False}

    def is_ignored(self, path: bytes, is_dir: bool) -> bool:
        """Say whether git's rules exclude a path, by itself or through a directory above it.

        Args:
            path: a path inside the tree, ``/`` between components.
            is_dir: True for a directory (not for a link to one).
        """
        parent, _, name = path.rpartition(b"/")
        if always_ignored(name):
            return True
        excluded = self._excluded.get(parent)
        if excluded is None:
            excluded = self._is_excluded(parent)
        return excluded or self._decide(path, parent, name, is_dir)

    def _is_excluded(self, directory: bytes) -> bool:
        """Whether a directory is ignored; all above it are looked at first, so no depth is too much."""
        unknown = []
        while directory not in self._excluded:
            unknown.append(directory)
            directory = directory.rpartition(b"/")[0]
        excluded = self._excluded[directory]
        for directory in reversed(unknown):
            parent, _, name = directory.rpartition(b"/")
            excluded = (
                excluded or always_ignored(name) or self._decide(directory, parent, name, True)
            )
            self._excluded[directory] = excluded
        return excluded

    def forget(self, directory: bytes) -> None:
        """Drop what is known of a directory and all below it: rule files may have changed."""
        prefix = directory + b"/" if directory else b""
        for cache in (self._chains, self._excluded):
            for known in [d for d in cache if d == directory or d.startswith(prefix)]:
                del cache[known]
        self._excluded[b""] = False

    def _decide(self, path: bytes, parent: bytes, name: bytes, is_dir: bool) -> bool:
        """The nearest directory with something to say decides."""
        chain = self._chains.get(parent)
        if chain is None:
            chain = self._chain(parent)
        for skip, rules in chain:
            decision = rules.decide(name, path[skip:], is_dir)
            if decision is not None:
                return decision
        return False

    def _chain(self, directory: bytes) -> _Chain:
        """The rule sets that speak about a directory's entries, nearest first, no empty ones."""
        if directory:
            parent = directory.rpartition(b"/")[0]
            above = self._chains.get(parent)
            if above is None:
                above = self._chain(parent)
            prefix = directory + b"/"
        else:
            above = ((0, self._exclude),) if self._exclude.rules else ()
            prefix = b""
        content = b"".join(_terminated(self._read(prefix + name)) for name in RULE_FILES)
        chain = ((len(prefix), _rule_set(content)), *above) if content else above
        self._chains[directory] = chain
        return chain


def _terminated(content: bytes | None) -> bytes:
    """A rule file's text, made safe to be followed by another one's."""
    return content.removeprefix(b"\xef\xbb\xbf") + b"\n" if content else b""


class _Rule(NamedTuple):
    """One line: ``pattern`` matches a name, or with ``anchored`` the path below the rule file."""

    excludes: bool
    only_directories: bool
    anchored: bool
    matches: Callable[[bytes], object]


class _RuleSet:
    """The rules of one directory, with a filter that dismisses most names without trying each."""

    def __init__(
        self,
        rules: list[_Rule],
        literals: frozenset[bytes],
        suffixes: tuple[bytes, ...],
        names: Callable[[bytes], object] | None,
        paths: Callable[[bytes], object] | None,
    ) -> None:
        self.rules = rules
        self._literals = literals
        self._suffixes = suffixes
        self._names = names
        self._paths = paths

    def decide(self, name: bytes, path: bytes, is_dir: bool) -> _Decision:
        """True: excluded; False: included again; None: nothing said. The last match wins."""
        if (
            name not in self._literals
            and not name.endswith(self._suffixes)
            and not (self._names and self._names(name))
            and not (self._paths and self._paths(path))
        ):
            return None
        for rule in self.rules:
            if rule.only_directories and not is_dir:
                continue
            if rule.matches(path if rule.anchored else name):
                return rule.excludes
        return None


_Chain = tuple[tuple[int, _RuleSet], ...]


def _rule_set(content: bytes) -> _RuleSet:
    rules: list[_Rule] = []
    literals: set[bytes] = set()
    suffixes: list[bytes] = []
    names: list[bytes] = []
    paths: list[bytes] = []
    for line in _lines(content):
        excludes = not line.startswith(b"!")
        pattern = line if excludes else line[1:]
        only_directories = pattern.endswith(b"/")
        pattern = pattern[:-1] if only_directories else pattern
        anchored = b"/" in pattern
        if anchored:
            pattern = pattern.removeprefix(b"/")
        matches: Callable[[bytes], object]
        if not _GLOB.search(pattern):
            matches = pattern.__eq__
            (paths.append(re.escape(pattern)) if anchored else literals.add(pattern))
        elif not anchored and pattern[:1] == b"*" and not _GLOB.search(pattern, 1):
            matches = re.compile(b".*" + re.escape(pattern[1:]), re.DOTALL).fullmatch
            suffixes.append(pattern[1:])
        else:
            translated = _translate(pattern, anchored)
            if translated is None:
                continue
            matches = re.compile(translated, re.DOTALL).fullmatch
            (paths if anchored else names).append(translated)
        rules.append(_Rule(excludes, only_directories, anchored, matches))
    rules.reverse()
    return _RuleSet(rules, frozenset(literals), tuple(suffixes), _any_of(names), _any_of(paths))


def _any_of(patterns: list[bytes]) -> Callable[[bytes], object] | None:
    if not patterns:
        return None
    return re.compile(b"|".join(b"(?:%b)" % p for p in patterns), re.DOTALL).fullmatch


def _lines(content: bytes) -> Iterator[bytes]:
    """The lines that are rules, as git's dir.c cuts them."""
    for line in content.split(b"\n"):
        if line and not line.startswith(b"#"):
            rule = _trimmed(line.removesuffix(b"\r").partition(b"\0")[0])
            if rule:
                yield rule


def _trimmed(line: bytes) -> bytes:
    r"""Without the spaces at its end, except one that a backslash protects."""
    kept = line.rstrip(b" ")
    backslashes = len(kept) - len(kept.rstrip(b"\\"))
    if backslashes % 2 and len(kept) < len(line):
        return kept + b" "
    return kept


def _translate(pattern: bytes, anchored: bool) -> bytes | None:
    r"""A glob as a regular expression, or None when git would never match it.

    dulwich's ``wildmatch`` agrees with git but for four cases, which are settled here: a backslash
    at the end matches nothing; ``\/`` is a plain slash; three stars or more are two; and since git
    compares the part before the first wildcard as text and only then begins to match, ``x/a**/b``
    is ``**/b`` after ``x/a``.
    """
    from dulwich.wildmatch import MalformedPattern, translate

    backslashes = len(pattern) - len(pattern.rstrip(b"\\"))
    if backslashes % 2:
        return None
    pattern = _SAME.sub(lambda found: _SIMPLER.get(found[0][:2], found[0]), pattern)
    wildcard = _GLOB.search(pattern)
    start = wildcard.start() if wildcard and anchored else 0
    if not pattern.startswith(b"**", start):
        start = 0
    try:
        return re.escape(pattern[:start]) + translate(pattern[start:])
    except MalformedPattern:
        return None
