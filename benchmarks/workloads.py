"""What programs do to files, timed on a mount: reads, stats, writes, deletes, cold and warm, for
every peer.

Owns the list of workloads and the order in which the peers take their turns at them. Every peer
shows the same tree (``trees.WorkTree``) on the same disk.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import (
    Bench,
    Row,
    can_drop_caches,
    drop_caches,
    stopwatch,
    timed_row,
)
from benchmarks.peers import Bindfs, FuseOverlayfs, Heddle, HeddleMount, MountPeer, Plain
from benchmarks.trees import KIB, MIB, WorkTree

SECTION = "files in a mount"
WARM_RUNS = 2


def _nothing(root: Path) -> None:
    """No preparation, no tidying up."""


@dataclass(frozen=True)
class Workload:
    """One thing that programs do; only ``run`` is timed."""

    name: str
    run: Callable[[Path], None]
    reads: bool = False
    prepare: Callable[[Path], None] = _nothing
    tidy: Callable[[Path], None] = _nothing


def _read_file(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        while os.read(descriptor, 128 * KIB):
            pass
    finally:
        os.close(descriptor)


def read_small(root: Path) -> None:
    """Open, read and close 500 files of 4 KiB."""
    for number in range(WorkTree.small):
        _read_file(f"{root}/small/{number:03}")


def map_large(root: Path) -> None:
    """Touch every page of a 64 MiB file through a private, read-only mmap."""
    descriptor = os.open(root / "large", os.O_RDONLY)
    try:
        with mmap.mmap(descriptor, 0, mmap.MAP_PRIVATE, mmap.PROT_READ) as view:
            view[:: mmap.PAGESIZE]
    finally:
        os.close(descriptor)


class Readers:
    """Processes that share out 480 files of 4 KiB among them and start reading at the same moment.

    They are forked beforehand, so that what is timed is their reading.

    Args:
        directory: the directory of the work tree that holds their files.
        count: how many there are.
    """

    def __init__(self, directory: str, count: int) -> None:
        self.directory, self.count = directory, count
        self.children: list[int] = []
        self.gate = -1

    def prepare(self, root: Path) -> None:
        """Fork the readers; they wait at a pipe."""
        paths = [f"{root}/{self.directory}/{number:03}" for number in range(WorkTree.shared)]
        waiting, self.gate = os.pipe()
        self.children = [
            _reader(waiting, self.gate, paths[number :: self.count]) for number in range(self.count)
        ]
        os.close(waiting)

    def run(self, root: Path) -> None:
        """Let them go by closing the pipe, and wait for the last one."""
        os.close(self.gate)
        failed = [child for child in self.children if os.waitpid(child, 0)[1]]
        if failed:
            raise RuntimeError(f"{len(failed)} of {self.count} readers failed below {root}")


def _reader(waiting: int, gate: int, paths: Sequence[str]) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    with contextlib.suppress(OSError):
        os.close(gate)
        os.read(waiting, 1)
        for path in paths:
            _read_file(path)
        status = 0
    os._exit(status)


def read_at_random(root: Path) -> None:
    """1,000 reads of 4 KiB at offsets of a fixed random sequence in a 16 MiB file."""
    source = random.Random(16)
    blocks = WorkTree.medium_bytes // (4 * KIB)
    descriptor = os.open(root / "medium", os.O_RDONLY)
    try:
        for _ in range(1000):
            os.pread(descriptor, 4 * KIB, source.randrange(blocks) * 4 * KIB)
    finally:
        os.close(descriptor)


def stat_listed(root: Path) -> None:
    """Stat 2,000 files as their directories are listed."""
    for number in range(WorkTree.stat_directories):
        with os.scandir(f"{root}/listed/{number:02}") as entries:
            for entry in entries:
                entry.stat()


def stat_named(root: Path) -> None:
    """Stat 2,000 files by name, listing nothing."""
    for number in range(WorkTree.stat_directories):
        for name in range(WorkTree.stat_files):
            os.stat(f"{root}/named/{number:02}/{name:03}")


def write_pieces(root: Path) -> None:
    """Write 4 MiB to a new file in pieces of 16 KiB."""
    piece = b"heddle weaves " * (16 * KIB // 14 + 1)
    with open(root / "written", "wb", buffering=0) as file:
        for _ in range(4 * MIB // (16 * KIB)):
            file.write(piece[: 16 * KIB])


def create_files(root: Path) -> None:
    """Create 1,000 files of 4 KiB in a new directory."""
    content = b"x" * (4 * KIB)
    os.mkdir(root / "made")
    for number in range(1000):
        descriptor = os.open(
            f"{root}/made/{number:04}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666
        )
        os.write(descriptor, content)
        os.close(descriptor)


def remove_files(root: Path) -> None:
    """``rm -r`` of the directory that ``create_files`` made."""
    subprocess.run(["rm", "-r", root / "made"], check=True)


_FOUR, _SIXTEEN = Readers("four", 4), Readers("sixteen", 16)

WORKLOADS = (
    Workload("read 500 files of 4 KiB", read_small, reads=True),
    Workload("mmap of 64 MiB, every page", map_large, reads=True),
    Workload("4 readers, 480 files of 4 KiB", _FOUR.run, reads=True, prepare=_FOUR.prepare),
    Workload("16 readers, 480 files of 4 KiB", _SIXTEEN.run, reads=True, prepare=_SIXTEEN.prepare),
    Workload("1,000 random 4 KiB reads in 16 MiB", read_at_random, reads=True),
    Workload("2,000 stats by listing", stat_listed, reads=True),
    Workload("2,000 stats by name", stat_named, reads=True),
    Workload(
        "4 MiB written in 16 KiB pieces",
        write_pieces,
        tidy=lambda root: os.unlink(root / "written"),
    ),
    Workload("1,000 files of 4 KiB created", create_files, tidy=remove_files),
    Workload("rm -r of 1,000 files", remove_files, prepare=create_files),
)

Samples = dict[tuple[str, str], dict[str, list[float]]]


def _once(workload: Workload, root: Path, *, cold: bool) -> float:
    workload.prepare(root)
    if cold:
        drop_caches()
    seconds = stopwatch(lambda: workload.run(root))
    workload.tidy(root)
    return seconds


def _turn(peer: MountPeer, number: int, samples: Samples, *, cold: bool) -> None:
    """One peer's turn: a fresh mount, then every workload cold and warm."""
    root = peer.mount(number)
    try:
        for workload in WORKLOADS:
            if cold:
                seconds = _once(workload, root, cold=True)
                samples[workload.name, "cold"][peer.name].append(seconds)
            else:
                _once(workload, root, cold=False)
            for _ in range(WARM_RUNS):
                seconds = _once(workload, root, cold=False)
                samples[workload.name, "warm"][peer.name].append(seconds)
    finally:
        peer.unmount()


def _row(workload: Workload, condition: str, samples: dict[str, list[float]]) -> Row:
    reaches = {"fuse-overlayfs": 1.0}
    if workload.reads and condition == "cold":
        reaches["plain"] = 2.0
    return timed_row(SECTION, workload.name, samples, condition=condition, reaches=reaches)


def measure(bench: Bench) -> None:
    """Add a row for each workload, cold and warm."""
    tree = bench.work / "worktree"
    WorkTree(tree)
    captured = bench.work / "captured"
    subprocess.run(["cp", "-a", tree, captured], check=True)
    heddle = Heddle(bench, captured)
    heddle.first_capture()
    peers: list[MountPeer] = [
        Plain(tree),
        Bindfs(bench, tree),
        FuseOverlayfs(bench, tree),
        HeddleMount(heddle),
    ]
    cold = can_drop_caches()
    if not cold:
        bench.say("only root may drop the kernel's caches: the cold rows are left out")
    conditions = ("cold", "warm") if cold else ("warm",)
    samples: Samples = {
        (workload.name, condition): {peer.name: [] for peer in peers}
        for workload in WORKLOADS
        for condition in conditions
    }
    for number in range(bench.repetitions(5)):
        for peer in peers:
            _turn(peer, number, samples, cold=cold)
        peers.reverse()
    for workload in WORKLOADS:
        for condition in conditions:
            bench.add(_row(workload, condition, samples[workload.name, condition]))
