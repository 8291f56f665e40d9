"""What every measurement shares: a clean place and environment, timing in turns, cold caches,
memory of a process.

Knows neither heddle nor its peers; ``peers.py`` does. Times are seconds, sizes are bytes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

DROP_CACHES = Path("/proc/sys/vm/drop_caches")


@dataclass(frozen=True)
class Row:
    """One line of the result: what heddle took, what each peer took, and how far heddle should get.

    Attributes:
        section: the table that it belongs to.
        what: the work, in a few words.
        condition: "warm", "cold", or what else has to be said about the run.
        unit: "s" or "bytes".
        ours: what heddle took.
        peers: what each peer took, by its name.
        reaches: for a peer, the largest ratio of ours to theirs that was aimed at.
        limit: the largest value of ``ours`` that was aimed at, for rows without a peer.
        samples: every single measurement, by contender.
    """

    section: str
    what: str
    condition: str
    unit: str
    ours: float
    peers: Mapping[str, float] = field(default_factory=dict)
    reaches: Mapping[str, float] = field(default_factory=dict)
    limit: float | None = None
    samples: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def ratio(self, peer: str) -> float:
        """Ours to theirs: below 1, heddle took less."""
        return self.ours / self.peers[peer]

    @property
    def met(self) -> bool | None:
        """Whether every aim of this row was met; None when it has none."""
        checks = [self.ratio(peer) <= reach for peer, reach in self.reaches.items()]
        if self.limit is not None:
            checks.append(self.ours <= self.limit)
        return all(checks) if checks else None


def timed_row(
    section: str,
    what: str,
    samples: Mapping[str, Sequence[float]],
    *,
    condition: str = "warm",
    reaches: Mapping[str, float],
) -> Row:
    """Make a row of the best sample of "heddle" and of each of its peers.

    The best, because everything else that a machine does only ever adds to a sample; the other samples are in the
    JSON.
    """
    best = {name: min(values) for name, values in samples.items()}
    ours = best.pop("heddle")
    return Row(section, what, condition, "s", ours, best, reaches, samples=samples)


def bytes_below(root: Path) -> float:
    """The length of all files in a directory and below, in bytes."""
    return float(sum(path.stat().st_size for path in root.rglob("*") if path.is_file()))


class Bench:
    """The place where one run happens, and the environment of every command in it.

    Args:
        work: an empty directory; everything that a run writes is below it.
        quick: fewer repetitions, and the small tree only.
    """

    def __init__(self, work: Path, *, quick: bool) -> None:
        self.work = work
        self.quick = quick
        self.rows: list[Row] = []
        for name in ("home", "run", "mnt"):
            (work / name).mkdir(mode=0o700)
        self.environment = _environment(work)

    def repetitions(self, full: int) -> int:
        """How often to measure: ``full`` times, or about half as often in a quick run."""
        return max(3, full // 2) if self.quick else full

    def add(self, row: Row) -> None:
        """Keep a row, and say on stderr that it is there."""
        self.rows.append(row)

    def say(self, text: str) -> None:
        """Tell the person who waits what happens now (on stderr)."""
        print(f"bench: {text}", file=sys.stderr, flush=True)

    def run(self, *argv: str | Path, cwd: Path | None = None) -> str:
        """Run a command and return its stdout.

        Raises:
            RuntimeError: it failed; the message holds what it printed.
        """
        done = subprocess.run(
            [str(part) for part in argv],
            cwd=cwd or self.work,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="surrogateescape",
        )
        if done.returncode != 0:
            command = " ".join(str(part) for part in argv)
            raise RuntimeError(f"{command}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout


def _environment(work: Path) -> dict[str, str]:
    """An environment in which nobody's own configuration plays a part."""
    person = {"NAME": "Bench", "EMAIL": "bench@example.org"}
    return {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "HOME": str(work / "home"),
        "LANG": "C.UTF-8",
        "XDG_RUNTIME_DIR": str(work / "run"),
        "HEDDLE_CONFIG": str(work / "home/heddle.toml"),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "HGRCPATH": "",
        "HGUSER": "Bench <bench@example.org>",
        **{f"HEDDLE_PRINCIPAL_{key}": value for key, value in person.items()},
        **{f"GIT_AUTHOR_{key}": value for key, value in person.items()},
        **{f"GIT_COMMITTER_{key}": value for key, value in person.items()},
    }


def stopwatch(work: Callable[[], object]) -> float:
    """Seconds that ``work`` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turns(
    repetitions: int, contenders: Mapping[str, Callable[[int], float]]
) -> dict[str, list[float]]:
    """Measure the contenders in turns, so that a slow minute of the machine hits them all.

    Args:
        repetitions: how many samples of each.
        contenders: by name, a function of the repetition's number that prepares, measures, tidies
        up, and
            returns seconds.
    """
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders.items())
    for number in range(repetitions):
        for name, measure in order:
            samples[name].append(measure(number))
        order.reverse()
    return samples


def can_drop_caches() -> bool:
    """Whether this process may empty the kernel's caches (root may)."""
    return os.access(DROP_CACHES, os.W_OK)


def drop_caches() -> None:
    """Write what is dirty, then drop page cache, dentries and inodes: next, the disk is read."""
    os.sync()
    DROP_CACHES.write_text("3\n")


def pss_bytes(pid: int) -> int:
    """Proportional set size of a process: its own memory, its share of the rest (proc(5))."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no Pss line for process {pid}")


def disk_bytes(root: Path) -> int:
    """Disk space that everything below ``root`` takes, in whole blocks."""
    total = 0
    for directory, _, names in os.walk(root):
        total += sum(
            os.lstat(os.path.join(directory, name)).st_blocks * 512 for name in [".", *names]
        )
    return total


def mounts_below(root: Path) -> list[str]:
    """Mountpoints at or below ``root``, innermost last, from the kernel's own list."""
    found = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        point = os.fsdecode(line.split()[4].decode("unicode_escape").encode("latin-1"))
        if Path(point) == root or root in Path(point).parents:
            found.append(point)
    return found


def _unmount_all(root: Path) -> None:
    for point in reversed(mounts_below(root)):
        subprocess.run(["fusermount3", "-uz", point], capture_output=True)


@contextmanager
def workplace(parent: Path | None) -> Iterator[Path]:
    """A temporary directory that leaves no mount, session or file behind, however the run ends."""
    work = Path(tempfile.mkdtemp(prefix="heddle-bench.", dir=parent)).resolve()
    try:
        yield work
    finally:
        _unmount_all(work)
        left = mounts_below(work)
        if left:
            print(f"bench: still mounted, so {work} is left: {left}", file=sys.stderr)
        else:
            shutil.rmtree(work, ignore_errors=True)
