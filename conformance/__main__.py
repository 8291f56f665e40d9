"""Reads the arguments of ``script/conformance``, makes the places, runs the suites and prints what came out."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from conformance import programs, report, suites
from conformance.places import Place, mount_of, overlayfs

Suite = Callable[[Place], Iterator[suites.Case]]

_SUITES: list[tuple[str, str, Callable[[Path, Place], Iterator[suites.Case]], str]] = [
    ("pjdfstest", "DIR", suites.pjdfstest, "a built checkout of the C version of pjdfstest"),
    ("git-tests", "DIR", suites.git_tests, "a built source tree of git, for its tests t0* and t1*"),
    ("ltp", "DIR", suites.ltp, "a source tree of LTP; what is built there of its tests is run"),
    ("fsx", "PROGRAM", suites.fsx, "a built fsx"),
    ("fsstress", "PROGRAM", suites.fsstress, "a built fsstress"),
]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="script/conformance",
        description="Runs file-system suites and programs in a mount and on the file system below it, and compares.",
        epilog="The suites are built outside the project. Exits with 1 when something holds below and not in the"
        " mount. Works in TMPDIR. For example: script/conformance --pjdfstest ~/src/pjdfstest --programs",
    )
    for name, metavar, _, text in _SUITES:
        parser.add_argument(f"--{name}", metavar=metavar, type=Path, help=text)
    parser.add_argument(
        "--programs", action="store_true", help="npm, cargo, git, sqlite and others"
    )
    parser.add_argument("--linux", metavar="DIR", type=Path, help="a Linux source tree to build")
    parser.add_argument("--peer", action="store_true", help="the kernel's overlayfs too (as root)")
    parser.add_argument("--as-nobody", action="store_true", help="as a user without privileges")
    return parser.parse_args()


@contextmanager
def _work() -> Iterator[Path]:
    """A directory of our own to work in, and an environment in which nobody's own settings play a part."""
    work = Path(tempfile.mkdtemp(prefix="heddle-conformance.")).resolve()
    work.chmod(0o755)  # suites become other users
    (work / "run").mkdir(mode=0o700)
    os.environ |= {
        "XDG_RUNTIME_DIR": str(work / "run"),
        "HEDDLE_PRINCIPAL_NAME": "Conformance",
        "HEDDLE_PRINCIPAL_EMAIL": "conformance@example.org",
    }
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _chosen(arguments: argparse.Namespace) -> Iterator[tuple[str, Suite]]:
    for name, _, suite, _ in _SUITES:
        path: Path | None = getattr(arguments, name.replace("-", "_"))
        if path is not None:
            yield name, partial(suite, path.resolve())


def _drop_rule(ignore_file: Path, rule: str) -> None:
    if ignore_file.exists():
        lines = ignore_file.read_text().splitlines(keepends=True)
        ignore_file.write_text("".join(line for line in lines if line.strip() != rule))


def main() -> int:
    arguments = _arguments()
    good = True
    with _work() as work, ExitStack() as stack:
        (work / "below").mkdir()
        (work / "repo").mkdir()
        (work / "repo" / "file").write_text("captured\n")
        below = Place("below", work / "below")
        mount = stack.enter_context(mount_of(work / "repo"))
        places: list[Place] = [below, mount]
        if arguments.peer:
            places.append(stack.enter_context(overlayfs(work)))
        for name, suite in _chosen(arguments):
            good &= report.suite(name, {place.label: list(suite(place)) for place in places})
        shared = work / "shared"
        shared.mkdir()
        if arguments.programs:
            good &= report.programs(programs.all_programs(below, mount, shared))
        if arguments.linux:
            copy = work / "linux"
            shutil.copytree(arguments.linux, copy, symlinks=True)
            _drop_rule(
                copy / ".gitignore", "/*"
            )  # of Debian's source package: it ignores everything
            built = stack.enter_context(mount_of(copy))
            good &= report.programs(programs.linux_rows(copy, built, shared))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
