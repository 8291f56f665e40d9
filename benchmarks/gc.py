"""What a whole history takes on disk, and how long making it small does: ``heddle gc`` against git's own.

Owns the rows about histories. Both begin with every object stored without the others: git's loose, as its commits
leave them, heddle's as an import does.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from benchmarks.harness import Bench, Row, bytes_below, stopwatch, timed_row
from benchmarks.peers import Heddle

_TURNS = 3
"""How often the two are measured, in turns."""
_READ = """
import sys, time
from pathlib import Path
import heddle
repo = heddle.open(Path(sys.argv[1]))
pending = [repo.state(sys.argv[2]).tree]
start = time.perf_counter()
while pending:
    for name, mode, object_id in repo.store.tree_entries(pending.pop()):
        if mode == 0o040000:
            pending.append(object_id)
        elif mode != 0o160000:
            repo.store.get_raw(object_id)
print(time.perf_counter() - start)
"""


def measure(bench: Bench, source: Path) -> None:
    """Every row of one history.

    Args:
        source: a git repository; only what its HEAD leads to is taken.
    """
    label = f"history of {source.name.removesuffix('.git')}"
    bench.say(label)
    place = bench.work / "history"
    place.mkdir()
    whole = place / "whole.git"
    bench.run(
        "git", "clone", "-q", "--bare", "--single-branch", "--no-tags", f"file://{source}", whole
    )
    count = len(bench.run("git", "-C", whole, "rev-list", "--objects", "HEAD").splitlines())
    section = f"{label}, {count:,} objects"
    heddle = _imported(bench, whole, place / "heddle")
    before = {spec: _reading(bench, heddle.path, spec) for spec in _states(bench, whole)}
    unpacked = _loose(bench, whole, place / "unpacked.git")
    ours: list[float] = []
    peers: dict[str, list[float]] = {"git gc": [], "git repack --window=250": []}
    for turn in range(_TURNS):
        last = turn == _TURNS - 1
        mine = heddle if last else Heddle(bench, _copy(bench, heddle.path, place / "copy"))
        ours.append(stopwatch(partial(mine.run, "gc")))
        seconds, gc_size = _git_gc(bench, _copy(bench, unpacked, place / "loose.git"))
        peers["git gc"].append(seconds)
    seconds, best_size = _git_repack(bench, whole, place / "window.git")
    peers["git repack --window=250"].append(seconds)
    size = bytes_below(heddle.path / ".heddle/objects/packs")
    for name, reach in (("git gc", 0.3), ("git repack --window=250", None)):
        samples = {"heddle": ours, name: peers[name]}
        reaches = {} if reach is None else {name: reach}
        bench.add(timed_row(section, "making it small", samples, reaches=reaches))
    for name, theirs, limit in (
        ("git gc", gc_size, None),
        ("git repack --window=250", best_size, 0.9),
    ):
        aims = {} if limit is None else {name: limit}
        bench.add(Row(section, "size on disk", "", "bytes", size, {name: theirs}, aims))
    for (spec, seconds_before), what in zip(before.items(), ("HEAD", "an old state"), strict=True):
        samples = {"heddle": [_reading(bench, heddle.path, spec)], "before gc": [seconds_before]}
        reaches = {"before gc": 1.1} if what == "HEAD" else {}
        bench.add(timed_row(section, f"reading every file of {what}", samples, reaches=reaches))
    shutil.rmtree(place)


def _states(bench: Bench, repository: Path) -> list[str]:
    """The newest state, and the one in the middle of the history."""
    ids = bench.run("git", "-C", repository, "rev-list", "--first-parent", "HEAD").split()
    return [ids[0], ids[len(ids) // 2]]


def _imported(bench: Bench, source: Path, target: Path) -> Heddle:
    target.mkdir()
    heddle = Heddle(bench, target)
    heddle.run("init")
    heddle.run("git", "import", source)
    return heddle


def _reading(bench: Bench, repository: Path, spec: str) -> float:
    """Seconds to read every file of a state, the best of three."""
    return min(float(bench.run("python", "-c", _READ, repository, spec)) for _ in range(3))


def _copy(bench: Bench, source: Path, target: Path) -> Path:
    """A copy of a directory, on disk, in the place of the last one."""
    if target.exists():
        shutil.rmtree(target)
    bench.run("cp", "-a", source, target)
    bench.run("sync")
    return target


def _loose(bench: Bench, source: Path, target: Path) -> Path:
    """A repository of the same history with each object in a file of its own."""
    bench.run("git", "init", "-q", "--bare", target)
    for name in ("HEAD", "packed-refs"):
        shutil.copy(source / name, target / name)
    for pack in (source / "objects/pack").glob("*.pack"):
        bench.run("sh", "-c", 'git -C "$1" unpack-objects -q < "$2"', "sh", target, pack)
    return target


def _git_gc(bench: Bench, repository: Path) -> tuple[float, float]:
    """Seconds and bytes of ``git gc``."""
    seconds = stopwatch(lambda: bench.run("git", "-C", repository, "gc", "-q"))
    return seconds, bytes_below(repository / "objects")


def _git_repack(bench: Bench, source: Path, target: Path) -> tuple[float, float]:
    """Seconds and bytes of the most that git is asked to do in practice."""
    bench.run("cp", "-a", source, target)
    seconds = stopwatch(
        lambda: bench.run("git", "-C", target, "repack", "-q", "-adf", "--window=250")
    )
    return seconds, bytes_below(target / "objects/pack")
