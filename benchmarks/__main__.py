"""``python -m benchmarks``: choose the inputs, run everything, print the table, write the JSON."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from benchmarks import gc, git, mounted_git, report, repositories, stalls, trees, workloads
from benchmarks.harness import Bench, workplace

STDLIB = "Python's standard library"
LINUX = "Linux 6.1 source"
SECTIONS = ("trees", "files", "git", "gc")
"""What can be measured alone."""


def parse(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="script/bench",
        description="Measure heddle against git, Mercurial, bindfs and fuse-overlayfs: in turns, "
        "the best sample of each.",
    )
    parser.add_argument("--quick", action="store_true", help="small tree only, fewer repetitions")
    parser.add_argument("--json", action="store_true", help="print the JSON instead of the table")
    parser.add_argument("--output", type=Path, help="also write the JSON to this file")
    parser.add_argument("--tree", type=Path, help="a directory to use as the large tree")
    parser.add_argument("--history", type=Path, help="a git repository to use as the history")
    parser.add_argument("--only", choices=SECTIONS, help="measure nothing else")
    parser.add_argument("--work", type=Path, help="where to put everything (default: TMPDIR)")
    return parser.parse_args(argv)


def large_tree(bench: Bench, chosen: Path | None) -> repositories.Pair | None:
    """The large input: the directory that was asked for, or Linux when its package is here."""
    if chosen is not None:
        source = chosen.resolve(strict=True)
        return repositories.Pair(
            bench, source.name, lambda to: trees.copy_tree(source, to), repetitions=3, large=True
        )
    if bench.quick:
        return None
    if not trees.LINUX_ARCHIVE.exists():
        bench.say(
            f"no {trees.LINUX_ARCHIVE}: its rows are left out (apt-get install linux-source-6.1)"
        )
        return None
    bench.say(f"unpacking {trees.LINUX_ARCHIVE}")
    return repositories.Pair(bench, LINUX, trees.extract_linux, repetitions=3, large=True)


def measure(bench: Bench, options: argparse.Namespace) -> None:
    """Every row of every table, or of the tables asked for."""

    def wanted(section: str) -> bool:
        return options.only in (None, section)

    if wanted("trees"):
        small = repositories.Pair(
            bench, STDLIB, trees.copy_stdlib, repetitions=bench.repetitions(7)
        )
        repositories.measure_small(small)
        mounted_git.measure(small)
    if wanted("files"):
        bench.say(workloads.SECTION)
        workloads.measure(bench)
        stalls.measure(bench)
    if wanted("git"):
        git.measure(bench, options.history)
    if wanted("gc"):
        if options.history is None:
            bench.say(
                "no --history: the rows about gc are left out, a made-up one would say nothing"
            )
        else:
            gc.measure(bench, options.history.resolve(strict=True))
    large = large_tree(bench, options.tree) if wanted("trees") else None
    if large is not None:
        repositories.measure_large(large)
        mounted_git.measure(large)


def main(argv: list[str]) -> int:
    """Run it all; returns the exit code."""
    options = parse(argv)
    # A terminated run tidies up as an interrupted one does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with workplace(options.work) as work:
        bench = Bench(work, quick=options.quick)
        try:
            measure(bench, options)
        finally:
            # What was measured before something failed is worth having too.
            found = report.document(bench)
            if options.output:
                options.output.write_text(found + "\n")
            print(found if options.json else report.table(bench.rows), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
