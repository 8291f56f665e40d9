"""Ignore rules: git's answers, for rules a person would write and for those nobody would."""

from __future__ import annotations

import os
import random
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from heddle.repo.ignore import IgnoreRules, always_ignored

# Paths that end in a slash are directories. Rules stand in the .gitignore of the case's top.
CASES: list[tuple[bytes, list[bytes]]] = [
    (b"*.o\n", [b"a.o", b"d/a.o", b"a.oo", b".o", b"x.o/", b"x.o/in"]),
    (b"build\n", [b"build/", b"build/x", b"d/build", b"builds"]),
    (b"build/\n", [b"build", b"d/build/", b"d/build/x", b"e/build"]),
    (b"/build\n", [b"build/x", b"d/build"]),
    (b"/build/\n", [b"build/x", b"d/build/x"]),
    (b"d/build\n", [b"d/build/x", b"e/d/build", b"build"]),
    (b"d/*\n", [b"d/x", b"d/e/x", b"e/d/x"]),
    (b"d/**\n", [b"d/x", b"d/e/x", b"d/e/f/x", b"e/d/x"]),
    (b"**/d\n", [b"d/x", b"e/d/x", b"e/f/d", b"ed"]),
    (b"**/d/x\n", [b"d/x", b"e/d/x", b"e/f/d/x", b"e/d/y"]),
    (b"a/**/b\n", [b"a/b", b"a/x/b", b"a/x/y/b", b"a/xb", b"ab"]),
    (b"a/**/**/b\n", [b"a/b", b"a/x/b", b"a/x/y/b"]),
    (b"x/a**/b\n", [b"x/a/b", b"x/ay/b", b"x/ay/z/b", b"x/y/a/b"]),
    (b"x/a*/b\n", [b"x/a/b", b"x/ay/b", b"x/ay/z/b"]),
    (b"a**b\n", [b"ab", b"axb", b"a/b", b"d/axxb"]),
    (b"**\n", [b"a", b"d/a"]),
    (b"/**\n", [b"a", b"d/a"]),
    (b"**/\n", [b"a", b"d/a", b"d/e/a"]),
    (b"/*\n!/keep\n", [b"a", b"keep", b"d/keep"]),
    (b"/*\n!/d/\n", [b"a", b"d/a", b"e/a"]),
    (b"d\n!d/keep\n", [b"d/keep", b"d/x"]),
    (b"d/*\n!d/keep\n", [b"d/keep", b"d/x", b"d/e/keep"]),
    (b"*\n!*/\n!*.c\n", [b"a.c", b"a.o", b"d/a.c", b"d/e/a.o", b"d/e/a.c"]),
    (b"*.log\n!important.log\n", [b"a.log", b"important.log", b"d/important.log"]),
    (b"!a\na\n", [b"a"]),
    (b"a\n!a\na\n!a\n", [b"a", b"d/a"]),
    (b"# comment\n\\#hash\n", [b"# comment", b"#hash", b"\\#hash"]),
    (b"\\!bang\n!x\n", [b"!bang", b"bang", b"x"]),
    (b"trail  \nkept\\ \n", [b"trail", b"trail  ", b"kept", b"kept "]),
    (b"two\\  \n", [b"two", b"two ", b"two  "]),
    (b"tab\t\n", [b"tab", b"tab\t"]),
    (b" lead\n", [b" lead", b"lead"]),
    (b"crlf\r\n*.d\r\n", [b"crlf", b"crlf\r", b"a.d"]),
    (b"no-newline", [b"no-newline"]),
    (b"\xef\xbb\xbfbom\n", [b"bom", b"\xef\xbb\xbfbom"]),
    (b"foo\\\n", [b"foo", b"foo\\"]),
    (b"foo\\\\\n", [b"foo", b"foo\\", b"foo\\\\"]),
    (b"d\\/x\n", [b"d/x", b"d\\/x", b"e/d/x"]),
    (b"\\/x\n", [b"x", b"d/x"]),
    (b"\\*\n\\?\n", [b"*", b"?", b"a"]),
    (b"[ab]c\n", [b"ac", b"bc", b"cc", b"d/ac"]),
    (b"[!ab]c\n[^x]y\n", [b"ac", b"cc", b"xy", b"yy"]),
    (b"[a-c]1\n[]]2\n[]-]3\n", [b"b1", b"d1", b"]2", b"-3", b"]3"]),
    (b"[z-a]1\n[a\n[[:digit:]]x\n[[:nope:]]y\n", [b"z1", b"[a", b"4x", b"ax", b"ny"]),
    (b"[[:space:]]q\n[[:upper:]]r\n", [b" q", b"Ar", b"ar"]),
    (b"d[/]x\nd?x\n", [b"d/x", b"dax", b"d[/]x"]),
    (b"a?c\n", [b"abc", b"a/c", b"ac", b"a\xffc"]),
    (b"*\xff*\n", [b"a\xffb", b"ab", b"\xff"]),
    (b"/\n//\n!\nfoo//\n", [b"a", b"d/a", b"foo/", b"foo/x"]),
    (b"d/\n", [b"d/e/f/g", b"e/d/f"]),
    (b".*\n!.gitignore\n!.keep*\n", [b".hid", b".keepme", b"d/.hid", b"a"]),
    (b"*foo/bar\n", [b"foo/bar", b"xfoo/bar", b"d/xfoo/bar"]),
    (b"foo*\n!foobar\n", [b"foo", b"foobar", b"foobaz"]),
    (b"a b\n", [b"a b", b"a"]),
    (b"line\\\nbreak\n", [b"line", b"break"]),
    (b"d/e/\n!d/e/f\n", [b"d/e/f", b"d/e/g"]),
    (b"*/x\n", [b"x", b"d/x", b"d/e/x"]),
    (b"/d/*/x\n", [b"d/x", b"d/e/x", b"d/e/f/x"]),
    (b"a/**/\n", [b"a/x", b"a/d/x", b"b/x"]),
    (b"a**/\n", [b"a", b"ab/x", b"d/ab/x"]),
    (b"***\n", [b"a", b"d/a"]),
    (b"d/***/x\n", [b"d/x", b"d/e/x", b"d/e/f/x"]),
    (b"x**\\/y\n", [b"xa/y", b"xa/b/y", b"x/y"]),
    (b"nul\0rest\n", [b"nul", b"nulrest"]),
    (b"new\\\nx\n", [b"new", b"x"]),
]


def test_single_files_of_rules_agree_with_git(tmp_path: Path) -> None:
    """For every tricky line and path we say ignored exactly where git check-ignore does."""
    paths = _lay_out(
        {b"case%d" % i: {b".gitignore": r} for i, (r, _) in enumerate(CASES)}, tmp_path
    )
    for index, (_, named) in enumerate(CASES):
        paths += [b"case%d/%b" % (index, path) for path in named]
    _make(tmp_path, paths)

    assert _ours(tmp_path, paths) == _gits(tmp_path, paths)


def test_nearer_rule_files_are_stronger(tmp_path: Path) -> None:
    """A deeper file overrides a shallower one, but can't reach into an excluded directory."""
    rules = {
        b"": {b".gitignore": b"*.o\n/out\n!keep/\n"},
        b"src": {b".gitignore": b"!main.o\ngen/\n"},
        b"src/gen": {b".gitignore": b"!*\n"},
        b"src/deep/er": {b".gitignore": b"/x\n*.txt\n!a.txt\n"},
        b"out": {b".gitignore": b"!*\n"},
    }
    paths = _lay_out(rules, tmp_path) + [
        b"a.o", b"src/a.o", b"src/main.o", b"src/sub/main.o", b"src/gen/keep", b"out/x",
        b"src/deep/er/x", b"src/deep/er/y/x", b"src/deep/er/y/a.txt", b"src/deep/er/b.txt",
        b"src/deep/x", b"keep/x.o",
    ]  # fmt: skip
    _make(tmp_path, paths)

    assert _ours(tmp_path, paths) == _gits(tmp_path, paths)


def test_exclude_is_the_weakest(tmp_path: Path) -> None:
    """Rules of .git/info/exclude hold where no .gitignore says otherwise."""
    exclude = b"*.tmp\n/top\n"
    paths = _lay_out({b"": {b".gitignore": b"!b.tmp\n"}}, tmp_path)
    paths += [b"a.tmp", b"b.tmp", b"d/a.tmp", b"top", b"d/top"]
    _make(tmp_path, paths)
    (tmp_path / ".git/info").mkdir(exist_ok=True)
    (tmp_path / ".git/info/exclude").write_bytes(exclude)

    assert _ours(tmp_path, paths, exclude) == _gits(tmp_path, paths)


def test_heddleignore_is_stronger_than_gitignore() -> None:
    """In one directory .heddleignore speaks last; a deeper .gitignore still overrides it."""
    files = {
        b".gitignore": b"*.log",
        b".heddleignore": b"!keep.log\n*.big\n",
        b"d/.gitignore": b"keep.log\n",
    }
    rules = IgnoreRules(files.get)

    assert rules.is_ignored(b"a.log", False)
    assert not rules.is_ignored(b"keep.log", False)
    assert rules.is_ignored(b"x.big", False)
    assert rules.is_ignored(b"d/keep.log", False)


@pytest.mark.parametrize("name", [b".git", b".GIT", b".heddle", b".Heddle", b"d/.git", b".git/x"])
def test_own_directories_are_always_ignored(name: bytes) -> None:
    """.git and .heddle are ignored at every level, in every case, whatever the rules say."""
    assert IgnoreRules({b".gitignore": b"!*\n"}.get).is_ignored(name, True)


@pytest.mark.parametrize("name", [b".gitignore", b".heddleignore", b"git", b".gi", b"heddle"])
def test_names_like_our_own_are_ordinary(name: bytes) -> None:
    """Only the exact names are special."""
    assert not always_ignored(name)


def test_rule_files_are_read_once_per_directory() -> None:
    """Asking about many files of one directory reads its rule files once."""
    read: list[bytes] = []

    def reader(path: bytes) -> bytes | None:
        read.append(path)
        return None

    rules = IgnoreRules(reader)
    for index in range(100):
        assert not rules.is_ignored(b"d/%d" % index, False)

    assert sorted(read) == [b".gitignore", b".heddleignore", b"d/.gitignore", b"d/.heddleignore"]


def test_forgotten_directories_are_read_again() -> None:
    """After forget() a changed rule file takes effect, below its directory too."""
    files = {b"d/.gitignore": b"e/\n"}
    rules = IgnoreRules(files.get)
    assert rules.is_ignored(b"d/e/x", False)
    files[b"d/.gitignore"] = b"f\n"
    rules.forget(b"d")

    assert not rules.is_ignored(b"d/e/x", False)
    assert rules.is_ignored(b"d/e/f", False)
    rules.forget(b"")
    assert not rules.is_ignored(b"x", False)


@pytest.mark.parametrize("seed", range(4))
def test_random_rules_agree_with_git(tmp_path: Path, seed: int) -> None:
    """Random lines from the characters that mean something give git's answers on random trees."""
    chance = random.Random(seed)
    rules: dict[bytes, dict[bytes, bytes]] = {}
    paths: list[bytes] = []
    for index in range(60):
        case = b"case%d" % index
        for directory in (case, case + b"/a"):
            lines = [_random_line(chance) for _ in range(chance.randint(1, 4))]
            rules[directory] = {b".gitignore": b"\n".join(lines)}
        paths += [case + b"/" + _random_path(chance) for _ in range(12)]
    paths = _without_conflicts(paths + _lay_out(rules, tmp_path))
    _make(tmp_path, paths)

    assert _ours(tmp_path, paths) == _gits(tmp_path, paths)


def _random_line(chance: random.Random) -> bytes:
    tokens = b"a|b|*|**|?|/|/**/|\\|[ab]|[!a]|[| |.".split(b"|")
    line = chance.choice([b"", b"", b"!"]) + b"".join(
        chance.choices(tokens, k=chance.randint(1, 6))
    )
    # Left out: an escaped slash after two stars (git: at least one directory), and empty components.
    return re.sub(rb"/+", b"/", line.replace(b"*\\/", b"*/"))


def _random_path(chance: random.Random) -> bytes:
    parts = []
    for _ in range(chance.randint(1, 4)):
        part = b"".join(chance.choices([b"a", b"b", b"."], k=chance.randint(1, 3)))
        parts.append(part if part.strip(b".") else b"a")
    return b"/".join(parts)


def _lay_out(rules: Mapping[bytes, Mapping[bytes, bytes]], top: Path) -> list[bytes]:
    """Write rule files below ``top``, which becomes a git repository; their paths are returned."""
    subprocess.run(["git", "init", "-q", str(top)], check=True)
    written = []
    for directory, files in rules.items():
        for name, content in files.items():
            path = os.path.join(directory, name)
            host = os.path.join(os.fsencode(top), path)
            os.makedirs(os.path.dirname(host), exist_ok=True)
            Path(os.fsdecode(host)).write_bytes(content)
            written.append(path)
    return written


def _without_conflicts(paths: Iterable[bytes]) -> list[bytes]:
    """Leave out paths that need a file where another one needs a directory."""
    every = set(paths)
    parents = {path[:i] for path in every for i in range(len(path)) if path[i : i + 1] == b"/"}
    return sorted(every - parents)


def _make(top: Path, paths: Iterable[bytes]) -> None:
    for path in paths:
        host = os.path.join(os.fsencode(top), path)
        if path.endswith(b"/"):
            os.makedirs(host, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(host), exist_ok=True)
            os.close(os.open(host, os.O_CREAT | os.O_WRONLY))


def _gits(top: Path, paths: list[bytes]) -> set[bytes]:
    done = subprocess.run(
        ["git", "-C", str(top), "check-ignore", "--no-index", "--stdin", "-z"],
        input=b"".join(path.rstrip(b"/") + b"\0" for path in paths),
        stdout=subprocess.PIPE,
    )
    assert done.returncode in (0, 1)
    return set(done.stdout.split(b"\0")) - {b""}


def _ours(top: Path, paths: list[bytes], exclude: bytes = b"") -> set[bytes]:
    def read(path: bytes) -> bytes | None:
        host = Path(os.fsdecode(os.path.join(os.fsencode(top), path)))
        return host.read_bytes() if host.is_file() else None

    rules = IgnoreRules(read, exclude=exclude)
    plain = [path.rstrip(b"/") for path in paths]
    return {p for p in plain if rules.is_ignored(p, (top / os.fsdecode(p)).is_dir())}
