"""Stock git in a mount against stock git in a linked worktree of the same repository.

Owns the rows about git inside mounts. The repository is the pair's git one, with heddle on top of it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import in_turns, stopwatch
from benchmarks.peers import Heddle
from benchmarks.repositories import Pair

PEER = "git worktree"
FIRST, AGAIN, EDITED, WHOLE = "first", "again", "edited", "whole"


def measure(pair: Pair) -> None:
    """``git status`` in a fresh checkout, once more, after one edit; and from nothing to the first answer.

    Once as git is, and once with checkouts that have settings of their own, so that git asks the session.
    """
    heddle = Heddle(pair.bench, pair.git.path)
    heddle.run("init")
    _rows(pair, heddle, "git", "")
    pair.git.run("config", "extensions.worktreeConfig", "true")
    _rows(pair, heddle, "asked", ", core.fsmonitor")
    pair.git.run("config", "--unset", "extensions.worktreeConfig")
    shutil.rmtree(pair.git.path / ".heddle")


def _rows(pair: Pair, heddle: Heddle, threads: str, how: str) -> None:
    seen: dict[str, dict[str, list[float]]] = {what: {} for what in (FIRST, AGAIN, EDITED, WHOLE)}
    contenders = {"heddle": _in_mount(pair, heddle, threads, seen), PEER: _in_worktree(pair, seen)}
    in_turns(pair.repetitions, contenders)
    pair.add(f"git status in a fresh checkout{how}", seen[FIRST], 1.5, PEER)
    pair.add(f"git status, again{how}", seen[AGAIN], None, PEER)
    pair.add(f"git status after one edit{how}", seen[EDITED], 1.2, PEER)
    pair.add(f"checkout + first git status{how}", seen[WHOLE], pair.if_large(0.5), PEER)


Seen = dict[str, dict[str, list[float]]]


def _in_mount(pair: Pair, heddle: Heddle, threads: str, seen: Seen) -> Callable[[int], float]:
    def run(number: int) -> float:
        thread = f"{threads}-{number}"
        made = stopwatch(lambda: heddle.mount(thread))
        _statuses(pair, pair.bench.work / "mnt" / thread, "heddle", made, seen)
        heddle.unmount(thread)
        return made

    return run


def _in_worktree(pair: Pair, seen: Seen) -> Callable[[int], float]:
    def run(number: int) -> float:
        where = pair.bench.work / f"status-{number}"
        made = stopwatch(lambda: pair.git.run("worktree", "add", "-q", "--detach", where))
        _statuses(pair, where, PEER, made, seen)
        pair.git.run("worktree", "remove", "--force", where)
        return made

    return run


def _statuses(pair: Pair, where: Path, who: str, made: float, seen: Seen) -> None:
    def status() -> float:
        return stopwatch(lambda: pair.git.run("status", "--porcelain", cwd=where))

    def keep(what: str, seconds: float) -> None:
        seen[what].setdefault(who, []).append(seconds)

    first = status()
    keep(FIRST, first)
    keep(WHOLE, made + first)
    keep(AGAIN, status())
    with (where / pair.first).open("ab") as file:
        file.write(b"edited\n")
    keep(EDITED, min(status(), status()))
