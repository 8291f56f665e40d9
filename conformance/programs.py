"""Everyday programs, each run on the disk below and in a mount: exit code, output and time are compared.

Each program is a function of a directory to work in and of one for what it downloads, which both places share; it
fails by raising. What it returns is what must come out the same in both: usually the whole tree of files that it made.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from conformance.places import Place
from conformance.running import difference, execute, tree

Program = Callable[[Path, Path], object]


class Failed(Exception):
    """A program ended with another exit code than it should."""


def run(cwd: Path, *arguments: str | Path, **env: str) -> str:
    """Run a program; returns what it printed.

    Raises:
        Failed: its exit code is not 0.
    """
    ended, printed = execute(*arguments, cwd=cwd, env=env, timeout_s=3600)
    if ended != 0:
        words = " ".join(str(argument) for argument in arguments)
        raise Failed(f"{words}: exit code {ended}: {printed[-1000:]}")
    return printed


# packages of Node.js

_PACKAGES = {"express": "4.21.2", "typescript": "5.7.3", "eslint": "9.20.0"}


def _node_project(where: Path) -> None:
    wanted = ", ".join(f'"{name}": "{version}"' for name, version in _PACKAGES.items())
    (where / "package.json").write_text(f'{{"name": "try", "dependencies": {{{wanted}}}}}\n')


def npm(where: Path, shared: Path) -> object:
    """npm installs packages, and finds nothing to do the second time."""
    _node_project(where)
    cache = {"npm_config_cache": str(shared / "npm"), "npm_config_prefer_offline": "1"}
    run(where, "npm", "install", "--no-audit", "--no-fund", **cache)
    made = tree(where)
    again = run(where, "npm", "install", "--no-audit", "--no-fund", "--offline", **cache)
    if "up to date" not in again:
        raise Failed(again)
    run(where, "node", "-e", "require('express'); require('typescript')")
    return made


def pnpm(where: Path, shared: Path) -> object:
    """pnpm installs the same packages, hard-linked from a store in the same place."""
    tool = shared / "pnpm"
    if not tool.exists():
        run(shared, "npm", "install", "--prefix", tool, "pnpm@9", "--no-audit", "--no-fund")
    _node_project(where)
    command: list[str | Path] = ["node", tool / "node_modules/pnpm/bin/pnpm.cjs"]
    options: list[str | Path] = ["--store-dir", where / "store", "--no-frozen-lockfile"]
    home = {"HOME": str(shared / "pnpm-home"), "CI": "1"}
    run(where, *command, "install", *options, **home)
    run(where, "node", "-e", "require('express'); require('typescript')")
    made = tree(where / "node_modules")
    linked = sum(path.stat().st_nlink > 1 for path in (where / "node_modules").rglob("*.js"))
    run(where, *command, "install", *options, "--offline", "--frozen-lockfile", **home)
    return {
        name: fact
        for name, fact in made.items()
        if "/.bin/" not in f"/{name}" and ".modules.yaml" not in name
    }, linked > 100


# compilers

_CRATE = """\
pub fn word(n: usize) -> String { (0..n).map(|i| char::from(b'a' + (i % 26) as u8)).collect() }
"""


def cargo(where: Path, shared: Path) -> object:
    """cargo builds a workspace with incremental compilation, and rebuilds what was edited only."""
    members = [f"part{number}" for number in range(6)]
    listed = ", ".join(f'"{name}"' for name in [*members, "app"])
    (where / "Cargo.toml").write_text(f'[workspace]\nresolver = "2"\nmembers = [{listed}]\n')
    for name in members:
        _crate(where / name, name, "lib.rs", _CRATE, [])
    calls = "".join(f'println!("{{}}", {name}::word({n + 3}));' for n, name in enumerate(members))
    _crate(where / "app", "app", "main.rs", f"fn main() {{ {calls} }}\n", members)
    build = ["cargo", "build", "--offline", "-j2"]
    run(where, *build)
    first = run(where, "target/debug/app")
    if "Compiling" in run(where, *build):
        raise Failed("cargo built again what was built")
    (where / "part3/src/lib.rs").write_text(_CRATE.replace("b'a'", "b'A'"))
    said = run(where, *build)
    rebuilt = [name for name in [*members, "app"] if f"Compiling {name}" in said]
    binary = (where / "target/debug/app").stat()
    twins = [path.stat().st_ino for path in (where / "target/debug/deps").glob("app-*")]
    return first, rebuilt, run(where, "target/debug/app"), binary.st_ino in twins, binary.st_nlink


def _crate(where: Path, name: str, source: str, text: str, needs: list[str]) -> None:
    (where / "src").mkdir(parents=True)
    lines = "".join(f'{need} = {{ path = "../{need}" }}\n' for need in needs)
    (where / "Cargo.toml").write_text(
        f'[package]\nname = "{name}"\nversion = "1.0.0"\nedition = "2021"\n[dependencies]\n{lines}'
    )
    (where / "src" / source).write_text(text)


_FIXED = {  # what would differ from build to build
    "KBUILD_BUILD_TIMESTAMP": "2026-01-01",
    "KBUILD_BUILD_USER": "user",
    "KBUILD_BUILD_HOST": "host",
}


def linux(where: Path, shared: Path) -> object:
    """``make -j2`` of a Linux tree's smallest configuration; then it has nothing to do."""
    run(where, "make", "tinyconfig", **_FIXED)
    run(where, "make", "-j2", "vmlinux", **_FIXED)
    names = ["vmlinux", "kernel/fork.o", "mm/memory.o", "fs/namei.o", "lib/string.o"]
    return [hashlib.sha256((where / name).read_bytes()).hexdigest() for name in names]


def linux_again(where: Path, shared: Path) -> object:
    """What ``make`` of a built Linux tree still compiles."""
    said = run(where, "make", "-j2", "vmlinux", **_FIXED)
    return [line for line in said.splitlines() if line.split()[:1] in (["CC"], ["LD"], ["AR"])]


# databases, copies, git, Python

_TWO_WRITERS = """
import sqlite3, subprocess, sys
if len(sys.argv) > 1:
    db = sqlite3.connect("data.db", timeout=120, isolation_level=None)
    for number in range(1000):
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT INTO t VALUES (?, ?, ?)", (sys.argv[1], number, "x" * (number * 37 % 3000)))
        db.execute("UPDATE total SET n = n + 1")
        db.execute("COMMIT")
else:
    db = sqlite3.connect("data.db")
    db.execute("PRAGMA journal_mode = wal")
    db.executescript("CREATE TABLE t (who, number, filler); CREATE TABLE total (n); INSERT INTO total VALUES (0)")
    two = [subprocess.Popen([sys.executable, "-c", PROGRAM, who]) for who in "ab"]
    assert [each.wait() for each in two] == [0, 0]
    print(db.execute("PRAGMA integrity_check").fetchall(), db.execute("SELECT n FROM total").fetchall())
    print(db.execute("SELECT count(*), count(DISTINCT who || number), sum(length(filler)) FROM t").fetchall())
"""


def sqlite(where: Path, shared: Path) -> object:
    """Two processes write one database in WAL mode, 1,000 transactions each."""
    program = f"PROGRAM = {_TWO_WRITERS!r}\n{_TWO_WRITERS}"
    return run(where, sys.executable, "-c", program)


SOURCES = Path(os.__file__).parent / "test"
"""Some thousand files of Python's own that are on any machine, or close to it."""


def _sources() -> Path:
    return SOURCES if SOURCES.is_dir() else SOURCES.parent


def rsync(where: Path, shared: Path) -> object:
    """rsync -aHAX there and back; a dry run with checksums finds no difference."""
    run(where, "rsync", "-aHAX", f"{_sources()}/", f"{where}/there/")
    run(where, "rsync", "-aHAX", f"{where}/there/", f"{where}/back/")
    said = run(where, "rsync", "-aHAXnic", "--delete", f"{where}/back/", f"{_sources()}/")
    return said, tree(where / "there"), tree(where / "back")


def tar(where: Path, shared: Path) -> object:
    """tar packs a tree, unpacks it, and compares."""
    (where / "out").mkdir()
    run(where, "tar", "-C", _sources(), "--sort=name", "-cf", where / "all.tar", ".")
    run(where, "tar", "-C", where / "out", "-xpf", where / "all.tar")
    run(where, "tar", "-C", where / "out", "--compare", "-f", where / "all.tar")
    return tree(where)


def git(where: Path, shared: Path) -> object:
    """git adds, commits, clones, packs, collects and checks."""
    author = {"GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@b", "GIT_AUTHOR_DATE": "@1 +0000"}
    env = author | {key.replace("AUTHOR", "COMMITTER"): text for key, text in author.items()}
    shutil.copytree(_sources(), where / "one", ignore=shutil.ignore_patterns("__pycache__"))
    one, two = where / "one", where / "two"
    run(one, "git", "init", "-q", "-b", "main", **env)
    run(one, "git", "add", "-Af", **env)
    run(one, "git", "commit", "-q", "-m", "one", **env)
    run(where, "git", "clone", "-q", "one", "two", **env)
    run(two, "git", "rm", "-q", "-r", "--", min(path.name for path in two.glob("[a-z]*/")), **env)
    run(two, "git", "commit", "-q", "-m", "two", **env)
    run(two, "git", "push", "-q", "origin", "HEAD:side", **env)
    for repo in (one, two):
        run(repo, "git", "repack", "-q", "-a", "-d", **env)
        run(repo, "git", "gc", "-q", "--prune=now", **env)
        run(repo, "git", "fsck", "--strict", "--full", **env)
    clean = run(two, "git", "status", "--porcelain", **env)
    return clean, run(two, "git", "rev-parse", "HEAD", "HEAD^{tree}", "origin/side", **env)


def venv(where: Path, shared: Path) -> object:
    """python -m venv, then pip installs into it, and what it installed runs."""
    env = {"PYTHONPATH": "", "PIP_CACHE_DIR": str(shared / "pip")}
    run(where, sys.executable, "-m", "venv", "env")
    run(where, "env/bin/python", "-m", "pip", "install", "-q", "typer==0.29.2", "attrs", **env)
    said = run(where, "env/bin/python", "-m", "pip", "check", **env)
    program = "import typer, attrs, sys; print(sys.prefix == sys.base_prefix)"
    return said, run(where, "env/bin/python", "-c", program, **env)


PROGRAMS: list[tuple[str, str, Program]] = [
    ("node", "npm install", npm),
    ("node", "pnpm install", pnpm),
    ("cargo", "cargo build", cargo),
    ("sqlite3", "sqlite, WAL, two processes", sqlite),
    ("rsync", "rsync -aHAX there and back", rsync),
    ("tar", "tar", tar),
    ("git", "git add, clone, repack, gc, fsck", git),
    (sys.executable, "python -m venv, pip install", venv),
]
"""The program that must be there; what the row is called; what runs."""


class Ran(NamedTuple):
    """One program in both places.

    Attributes:
        name: what the row is called.
        below_s: seconds on the disk below.
        heddle_s: seconds in the mount.
        verdict: "same", or what was different.
    """

    name: str
    below_s: float
    heddle_s: float
    verdict: str

    @property
    def good(self) -> bool:
        return self.verdict == "same"


def compare(name: str, program: Program, below: Path, mount: Path, shared: Path) -> Ran:
    """Run a program in a directory of each place, and tell what was different."""
    results, seconds = [], []
    for place in (below, mount):
        place.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        try:
            results.append(program(place, shared))
        except (Failed, OSError) as error:
            results.append(f"failed: {error}")
        seconds.append(time.monotonic() - started)
    return Ran(name, seconds[0], seconds[1], _verdict(*results))


def _verdict(below: object, mount: object) -> str:
    failed = isinstance(mount, str) and mount.startswith("failed")
    if below == mount:
        return f"in both {below}" if failed else "same"
    if failed:
        return f"in the mount {mount}; below: {str(below)[:200]}"
    return f"below {_short(below, mount)}"


def _short(below: object, mount: object) -> str:
    if _is_tree(below) and _is_tree(mount):
        assert isinstance(below, dict) and isinstance(mount, dict)
        return difference(below, mount)
    if isinstance(below, tuple) and isinstance(mount, tuple):
        return "; ".join(_short(a, b) for a, b in zip(below, mount, strict=True) if a != b)
    return f"{str(below)[:300]}, in the mount {str(mount)[:300]}"


def _is_tree(result: object) -> bool:
    return isinstance(result, dict) and all(isinstance(fact, tuple) for fact in result.values())


def all_programs(below: Place, mount: Place, shared: Path) -> list[Ran]:
    """Every program that this machine has, in both places; those it has not are rows that say so."""
    rows = []
    for needs, name, program in PROGRAMS:
        if shutil.which(needs) is None:
            rows.append(Ran(name, 0, 0, f"not run: no {needs} here"))
            continue
        where = program.__name__
        rows.append(compare(name, program, below.path / where, mount.path / where, shared))
    return rows


def linux_rows(below: Path, mount: Place, shared: Path) -> list[Ran]:
    """A Linux tree built in both places, and again after a capture and a remount."""
    rows = [compare("make -j2 of Linux, tinyconfig", linux, below, mount.path, shared)]
    rows.append(compare("make again", linux_again, below, mount.path, shared))
    mount.capture()
    mount.mount_again()
    name = "make after capture and remount"
    rows.append(compare(name, linux_again, below, mount.path, shared))
    return rows
