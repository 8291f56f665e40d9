"""How long a program in a mount waits at most while a capture stores a gibibyte.

Owns that one row. The peer is a plain directory beside a ``cp`` of the same bytes that is synced as a capture is: what
the disk and the file system below make everybody wait is in both.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import Bench, Row
from benchmarks.peers import Heddle

SECTION = "captures while programs work"
STALL_LIMIT_S = 0.1
_FILES, _FILE_BYTES = 256, 4 << 20  # of bytes that don't compress

PROBE = """
import json, os, sys, time

os.chdir(sys.argv[1])
longest = dict.fromkeys(("stat", "read", "write", "create"), 0.0)

def timed(what, work):
    start = time.perf_counter()
    work()
    longest[what] = max(longest[what], time.perf_counter() - start)

def read():
    with open("captured", "rb") as file:
        file.read(4096)

def write():
    with open("written", "r+b", buffering=0) as file:
        file.write(b"x" * 4096)

def create():
    with open("made", "xb", buffering=0) as file:
        file.write(b"x")
    os.unlink("made")

open("written", "xb").close()
print("ready", flush=True)
number = 0
while os.path.exists(sys.argv[2]):
    number += 1
    timed("stat", lambda: os.path.exists("absent-%d" % number))
    timed("read", read)
    timed("write", write)
    timed("create", create)
    time.sleep(0.001)
os.unlink("written")
print(json.dumps(longest))
"""


def measure(bench: Bench) -> None:
    """The longest wait of any operation, the best of a few turns."""
    bench.say(SECTION)
    tree = bench.work / "stalls"
    tree.mkdir()
    (tree / "captured").write_bytes(b"c" * 4096)
    heddle = Heddle(bench, tree)
    heddle.first_capture()
    samples: dict[str, list[float]] = {"heddle": [], "cp + sync": []}
    waits: list[dict[str, float]] = []
    for number in range(bench.repetitions(5)):
        waits.append(_in_mount(bench, heddle, f"stalls-{number}"))
        samples["heddle"].append(max(waits[-1].values()))
        samples["cp + sync"].append(max(_in_plain(bench).values()))
    for wait in waits:
        bench.say("  ".join(f"{what} {1000 * longest:.1f} ms" for what, longest in wait.items()))
    ours, peer = min(samples["heddle"]), min(samples["cp + sync"])
    what = "longest wait while 1 GiB is captured (<= 100 ms)"
    row = Row(SECTION, what, "warm", "s", ours, {"cp + sync": peer}, {}, STALL_LIMIT_S, samples)
    bench.add(row)
    shutil.rmtree(tree)


def _in_mount(bench: Bench, heddle: Heddle, thread: str) -> dict[str, float]:
    mount = heddle.mount(thread)
    _fill(mount / "large")
    found = _probed(bench, mount, lambda: heddle.run("capture", "-m", "large", cwd=mount))
    heddle.run("unmount", thread)
    heddle.run("thread", "delete", thread, "--force")
    return found


def _in_plain(bench: Bench) -> dict[str, float]:
    plain, copy = bench.work / "plain-stalls", bench.work / "copied-stalls"
    plain.mkdir()
    (plain / "captured").write_bytes(b"c" * 4096)
    _fill(plain / "large")

    def work() -> None:
        shutil.copytree(plain / "large", copy)
        for name in os.listdir(copy):
            fd = os.open(copy / name, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)

    found = _probed(bench, plain, work)
    shutil.rmtree(plain)
    shutil.rmtree(copy)
    return found


def _fill(directory: Path) -> None:
    directory.mkdir()
    block = os.urandom(_FILE_BYTES)
    for number in range(_FILES):
        (directory / str(number)).write_bytes(number.to_bytes(8, "little") + block[8:])
    os.sync()


def _probed(bench: Bench, directory: Path, work: Callable[[], object]) -> dict[str, float]:
    """The longest that each operation in a directory took while something was done."""
    running = bench.work / "probing"
    running.touch()
    command = [sys.executable, "-c", PROBE, str(directory), str(running)]
    probe = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert probe.stdout is not None
    probe.stdout.readline()
    try:
        work()
    finally:
        running.unlink()
        said, _ = probe.communicate(timeout=60)
    result: dict[str, float] = json.loads(said)
    return result
