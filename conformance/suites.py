"""The suites: how each is started in a directory, and what it says of each of its cases.

A suite is a function of a place; it yields cases, so that a long one shows how far it is. How the cases of two
places compare is the report's.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from conformance.places import Place
from conformance.running import difference, execute, tree

PASSED, FAILED, SKIPPED, KNOWN = "passed", "failed", "skipped", "known to fail"


class Case(NamedTuple):
    """What one case of a suite came to.

    Attributes:
        group: the directory or kind of tests that it belongs to: a row of the table.
        name: its name, unique in the suite.
        result: one of the four words above.
        note: what it printed when it failed, shortened; for a reader, not compared.
    """

    group: str
    name: str
    result: str
    note: str = ""


# TAP, which pjdfstest and git speak

_TAP_LINE = re.compile(r"^(not )?ok\s+(\d+)(.*)$", re.MULTILINE)
_TAP_PLAN = re.compile(r"^1\.\.(\d+)", re.MULTILINE)


def tap(group: str, script: str, printed: str) -> Iterator[Case]:
    """The cases of one script; those that it planned and never came to have failed."""
    plan = _TAP_PLAN.search(printed)
    count = int(plan[1]) if plan else 1
    results = {int(found[2]): found for found in _TAP_LINE.finditer(printed)}
    for number in range(1, max([count, *results]) + 1):
        found = results.get(number)
        note = found[0] if found else printed[-300:]
        yield Case(group, f"{script}:{number}", _tap_result(found), note)
    if not plan:
        yield Case(group, f"{script}:plan", FAILED, printed[-300:])


def _tap_result(found: re.Match[str] | None) -> str:
    if found is None:
        return FAILED
    if re.search(r"#\s*skip", found[3], re.IGNORECASE):
        return SKIPPED
    if re.search(r"#\s*TODO", found[3]):
        return KNOWN
    return FAILED if found[1] else PASSED


def pjdfstest(suite: Path, place: Place) -> Iterator[Case]:
    """The C version of pjdfstest, built in ``suite``."""
    scratch = place.path / "pjdfstest"
    scratch.mkdir()
    for script in sorted(suite.glob("tests/*/*.t")):
        group = script.parent.name
        _, printed = execute("sh", script, cwd=scratch)
        yield from tap(group, f"{group}/{script.name}", printed)


def git_tests(suite: Path, place: Place) -> Iterator[Case]:
    """Git's own tests t0* and t1*, of a git built in ``suite``, with their repositories in the place."""
    scratch = place.path / "git-tests"
    scratch.mkdir()
    for script in sorted((suite / "t").glob("t[01][0-9][0-9][0-9]-*.sh")):
        group = script.name[:3] + "*"
        results = {"TEST_OUTPUT_DIRECTORY": str(scratch / "results")}
        _, printed = execute("bash", script, f"--root={scratch}", cwd=suite / "t", env=results)
        if re.search(r"^1\.\.0 # SKIP", printed, re.MULTILINE):
            yield Case(group, script.name, SKIPPED, printed[-300:])
        else:
            yield from tap(group, script.name, printed)


# LTP

_LTP_CODES = {0: PASSED, 32: SKIPPED}
_LTP_FILES = 4096  # one test opens all that it may; a session needs a descriptor for each, and some of its own


def ltp(suite: Path, place: Place) -> Iterator[Case]:
    """Those of LTP's system call and lock tests that are built in ``suite``."""
    scratch = place.path / "ltp"
    scratch.mkdir(mode=0o777)
    scratch.chmod(0o777)  # some of them become another user first
    built = {path.name: path for path in (suite / "testcases").rglob("*") if _is_program(path)}
    for line in (suite / "runtest/syscalls").read_text().splitlines():
        words = line.partition("#")[0].split()
        if len(words) < 2 or words[1] not in built:
            continue
        program = built[words[1]]
        code, printed = execute(
            *["prlimit", f"--nofile={_LTP_FILES}"],
            program,
            *words[2:],
            cwd=program.parent,
            env={
                "TMPDIR": str(scratch),
                "LTP_COLORIZE_OUTPUT": "0",
                "LTPROOT": str(suite),
                "LTP_SINGLE_FS_TYPE": "ext4",  # of a loop device, which says nothing of the place
                "PATH": f"{program.parent}:/usr/sbin:/usr/bin:/sbin:/bin",
            },
            timeout_s=300,
        )
        wrong = [text for text in printed.splitlines() if "TFAIL" in text or "TBROK" in text]
        note = " | ".join(wrong)[:400] or printed[-300:]
        yield Case(program.parent.name, words[0], _LTP_CODES.get(code, FAILED), note)
    if "locktests" in built:
        file = scratch / "locktests"
        code, printed = execute(built["locktests"], "-n", "50", "-f", file, cwd=scratch)
        yield Case("locktests", "50 processes", _word(code == 0), printed[-300:])


def _is_program(path: Path) -> bool:
    return path.is_file() and path.stat().st_mode & 0o111 != 0


# fsx and fsstress

_FSX_RUNS = {
    "20,000 operations, with mmap": ["-N", "20000", "-S", "1"],
    "20,000 operations, without mmap": ["-R", "-W", "-N", "20000", "-S", "2"],
    "100,000 operations, with mmap": ["-N", "100000", "-S", "3"],
    "100,000 operations, without mmap": ["-R", "-W", "-N", "100000", "-S", "4"],
}


def fsx(program: Path, place: Place) -> Iterator[Case]:
    """One file written and read in every way, by fsx."""
    scratch = place.path / "fsx"
    scratch.mkdir()
    for number, (name, options) in enumerate(_FSX_RUNS.items()):
        code, printed = execute(program, "-q", *options, f"file{number}", cwd=scratch)
        yield Case("fsx", name, _word(code == 0), printed[-300:])
    with _captures(place):
        code, printed = execute(program, "-q", "-N", "20000", "-S", "5", "file5", cwd=scratch)
    yield Case("fsx", "20,000 operations, captures meanwhile", _word(code == 0), printed[-300:])


@contextmanager
def _captures(place: Place) -> Iterator[None]:
    """Capture again and again while the block runs."""
    over = threading.Event()

    def capture() -> None:
        while not over.wait(0.5):
            place.capture()

    with ThreadPoolExecutor(1) as pool:
        capturing = pool.submit(capture)
        try:
            yield
        finally:
            over.set()
        capturing.result()


# What every file system does alike, so that a run with the same seed comes to the same tree anywhere: no ioctl(2),
# and no mknod(2), since fsstress makes character devices 0/0, which an overlay keeps for itself.
_ALIKE = (
    "chown=3 creat=4 getdents=1 link=2 listfattr=1 mkdir=2 mread=2 mwrite=2 read=2 readlink=1"
    " readv=1 removefattr=1 rename=3 rnoreplace=2 rexchange=2 rmdir=1 setfattr=2 stat=1 symlink=2 truncate=2"
    " unlink=1 write=6 writev=4 fsync=1 fdatasync=1"
)


def fsstress(program: Path, place: Place) -> Iterator[Case]:
    """Eight processes of fsstress; then the tree, compared with a shadow made below and over capture and remount."""
    scratch, shadow = place.path / "fsstress", place.path.with_name(place.label + ".shadow")
    scratch.mkdir()
    shadow.mkdir()
    everything = ["-n", "1000", "-p", "8", "-s", "1"]
    code, printed = execute(program, "-d", scratch / "all", *everything, cwd=scratch)
    yield Case("fsstress", "8 processes, all operations", _word(code == 0), printed[-300:])

    frequencies = [word for each in _ALIKE.split() for word in ("-f", each)]
    for name, top in (("operations that all have", scratch), ("its shadow", shadow)):
        options = ["-z", *frequencies, "-n", "2000", "-p", "8", "-s", "2"]
        code, printed = execute(program, "-d", top / "alike", *options, cwd=top)
        yield Case("fsstress", f"8 processes, {name}", _word(code == 0), printed[-300:])
    differs = difference(tree(shadow / "alike"), tree(scratch / "alike"))
    yield Case("fsstress", "the tree is its shadow's", _word(not differs), differs)

    before = tree(scratch, identity=True)
    for name, step in (("capture", place.capture), ("remount", place.mount_again)):
        step()
        differs = difference(before, tree(scratch, identity=True))
        yield Case("fsstress", f"the tree after a {name} is as before", _word(not differs), differs)


def _word(good: bool) -> str:
    return PASSED if good else FAILED
