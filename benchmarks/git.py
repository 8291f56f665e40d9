"""Heddle on a git repository with a long history, timed against git itself.

Owns the rows about existing repositories: ``init`` and the first commands on one, a directory for one of its
branches, a clone of it, a lazy one too, a push of all of it. The history is one that is given, or one that is made up.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.harness import Bench, Row, bytes_below, in_turns, stopwatch, timed_row
from benchmarks.peers import Git, Heddle

COMMITS = 50_000
QUICK_COMMITS = 5_000
_FILES = 2_000
_LINES = 60
INIT_LIMIT_S = 1.0


def measure(bench: Bench, chosen: Path | None) -> None:
    """Every row.

    Args:
        bench: the run.
        chosen: a git repository to take the history from; None: one is made up.
    """
    source = bench.work / "history.git"
    if chosen is None:
        count = QUICK_COMMITS if bench.quick else COMMITS
        bench.say(f"making a history of {count:,} commits")
        make_history(bench, source, count)
        name = "a made-up history"
    else:
        bench.run("git", "clone", "-q", "--bare", "--shared", chosen.resolve(), source)
        name = chosen.resolve().name
    commits = int(bench.run("git", "-C", source, "rev-list", "--count", "HEAD"))
    rows = _Rows(bench, source, f"on git: {name}, {commits:,} commits")
    for each in (rows.first_commands, rows.directory, rows.clone, rows.lazy_clone, rows.push):
        bench.say(f"{rows.section}: {each.__name__.replace('_', ' ')}")
        each()


def make_history(bench: Bench, path: Path, commits: int) -> None:
    """Make a bare repository whose commits each change a line or two of one of 2,000 files, and pack it."""
    bench.run("git", "init", "-q", "--bare", "-b", "main", path)
    command = ["git", "-C", str(path), "fast-import", "--quiet", "--depth=50"]
    with subprocess.Popen(command, env=bench.environment, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        for piece in _stream(random.Random(50), commits):
            process.stdin.write(piece)
    if process.returncode:
        raise RuntimeError(f"git fast-import: exit {process.returncode}")


def _stream(source: random.Random, commits: int) -> Iterator[bytes]:
    """The history for ``git fast-import``."""
    files = [
        [b"%d %d\n" % (number, source.getrandbits(60)) for number in range(_LINES)]
        for _ in range(_FILES)
    ]
    for number in range(1, commits + 1):
        yield b"commit refs/heads/main\ncommitter B <b@example.org> %d +0000\n" % (1e9 + number)
        yield b"data 8\nCommit.\n\n"
        changed = range(_FILES) if number == 1 else (source.randrange(_FILES),)
        for file in changed:
            files[file][source.randrange(_LINES)] = b"%d\n" % source.getrandbits(60)
            content = b"".join(files[file])
            name = b"directory-%02d/part-%d/file-%d" % (file % 40, file % 7, file)
            yield b"M 100644 inline %s\ndata %d\n%s\n" % (name, len(content), content)


class _Rows:
    """The rows about one history.

    Args:
        bench: the run.
        source: a bare repository.
        section: what its table is called.
    """

    def __init__(self, bench: Bench, source: Path, section: str) -> None:
        self.bench, self.source, self.section = bench, source, section
        checkout = bench.work / "on-git"
        bench.run("git", "clone", "-q", "--no-hardlinks", source, checkout)
        self.heddle, self.git = Heddle(bench, checkout), Git(bench, checkout)
        listed = self.git.run("ls-files", "-z").split("\0")[:-1]
        plain = [path for path in listed if (checkout / path).is_file()]
        self.three = [plain[len(plain) * part // 4] for part in (1, 2, 3)]
        os.sync()

    def first_commands(self) -> None:
        """``init``, then the first ``status`` and ``log -n 20`` on the checkout."""
        taken: dict[str, list[float]] = {"init": [], "status": [], "log": []}
        for _ in range(self.bench.repetitions(5)):
            self.heddle.forget()
            os.sync()
            taken["init"].append(stopwatch(lambda: self.heddle.run("init")))
            taken["status"].append(stopwatch(lambda: self.heddle.run("status")))
            taken["log"].append(stopwatch(lambda: self.heddle.run("log", "-n", "20")))
        self.bench.add(
            Row(
                self.section,
                "init on a checkout",
                "",
                "s",
                min(taken["init"]),
                limit=INIT_LIMIT_S,
                samples={"heddle": taken["init"]},
            )
        )
        for what, arguments in (("status", ("status",)), ("log", ("log", "-n", "20"))):
            theirs = [
                stopwatch(lambda: self.git.run(*arguments))  # noqa: B023
                for _ in taken[what]
            ]
            samples = {"heddle": taken[what], f"git {what}": theirs}
            self._add(f"first {' '.join(arguments)}", samples)

    def directory(self) -> None:
        """A mount of a branch against ``git worktree add``, with three files read; and real files against it."""
        number = iter(range(1_000_000))

        def mounted(_: int) -> float:
            name = f"mounted-{next(number)}"
            seconds = stopwatch(lambda: self._read(self.heddle.mount(name)))
            self.heddle.unmount(name)
            return seconds

        def worktree(_: int) -> float:
            name = f"worktree-{next(number)}"
            seconds = stopwatch(lambda: self._read(self.git.add_worktree(name)))
            self.git.remove_worktree(name)
            return seconds

        def files(_: int) -> float:
            to = self.bench.work / "files"
            seconds = stopwatch(lambda: self.heddle.run("materialize", to))
            shutil.rmtree(to)
            return seconds

        peer = "git worktree add"
        count = self.bench.repetitions(5)
        self._add(
            "mount a branch + read 3 files", in_turns(count, {"heddle": mounted, peer: worktree})
        )
        self._add("materialize all of it", in_turns(count, {"heddle": files, peer: worktree}))

    def clone(self) -> None:
        """``clone`` of all of it against git's, over the same way: the time, and what it takes beside the files."""
        url, place = f"file://{self.source}", self.bench.work / "clone"
        sizes: dict[str, float] = {}

        def of(name: str, *command: str) -> Callable[[int], float]:
            def work(_: int) -> float:
                seconds = stopwatch(lambda: self.bench.run(*command, url, place))
                sizes[name] = bytes_below(place / (".heddle" if name == "heddle" else ".git"))
                shutil.rmtree(place)
                return seconds

            return work

        peer = "git clone"
        contenders = {
            "heddle": of("heddle", "heddle", "clone"),
            peer: of(peer, "git", "clone", "-q"),
        }
        samples = in_turns(self.bench.repetitions(3), contenders)
        self.bench.add(timed_row(self.section, "clone", samples, reaches={peer: 1.5}))
        disk = {peer: sizes[peer]}
        self.bench.add(
            Row(self.section, "disk after it", "", "bytes", sizes["heddle"], disk, {peer: 1.2})
        )

    def lazy_clone(self) -> None:
        """``clone --lazy`` and a mount against a partial clone of git's, each with three files read."""
        for key in ("allowFilter", "allowAnySHA1InWant"):
            self.bench.run("git", "-C", self.source, "config", f"uploadpack.{key}", "true")
        url = f"file://{self.source}"
        place = self.bench.work / "clone"

        def ours(_: int) -> float:
            def work() -> None:
                self.bench.run("heddle", "clone", "--lazy", url, place)
                lazy = Heddle(self.bench, place)
                self._read(lazy.mount("lazy"))

            seconds = stopwatch(work)
            Heddle(self.bench, place).unmount("lazy")
            shutil.rmtree(place)
            return seconds

        def theirs(_: int) -> float:
            def work() -> None:
                self.bench.run("git", "clone", "-q", "--filter=blob:none", url, place)
                self._read(place)

            seconds = stopwatch(work)
            shutil.rmtree(place)
            return seconds

        peer = "git clone --filter=blob:none"
        count = self.bench.repetitions(3)
        self._add("clone --lazy + read 3 files", in_turns(count, {"heddle": ours, peer: theirs}))

    def push(self) -> None:
        """``push`` of the branch to an empty repository against git's: the time, and what arrives there."""
        place = self.bench.work / "pushed.git"
        sizes: dict[str, float] = {}

        def of(name: str, run: Callable[..., str]) -> Callable[[int], float]:
            def work(_: int) -> float:
                self.bench.run("git", "init", "-q", "--bare", place)
                seconds = stopwatch(lambda: run("push", "pushed"))
                sizes[name] = bytes_below(place / "objects")
                shutil.rmtree(place)
                return seconds

            return work

        self.git.run("remote", "add", "pushed", place)
        self.git.run("config", "push.default", "current")
        peer = "git push"
        contenders = {"heddle": of("heddle", self.heddle.run), peer: of(peer, self.git.run)}
        self._add("push all of it", in_turns(self.bench.repetitions(3), contenders))
        there = {peer: sizes[peer]}
        self.bench.add(
            Row(self.section, "disk over there", "", "bytes", sizes["heddle"], there, {peer: 1.2})
        )

    def _read(self, root: Path) -> None:
        for path in self.three:
            (root / path).read_bytes()

    def _add(self, what: str, samples: dict[str, list[float]]) -> None:
        self.bench.add(timed_row(self.section, what, samples, reaches={}))
