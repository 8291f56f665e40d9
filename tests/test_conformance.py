"""``script/conformance`` with small suites of our own: what it runs, how it compares, what it says and leaves."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from world import sessions_of

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # conformance/ is a package of the checkout, not of the installation

from conformance import programs, report, suites  # noqa: E402
from conformance.running import TIMED_OUT, difference, execute, tree  # noqa: E402


@pytest.fixture
def work() -> Iterator[Path]:
    """A directory to work in that every user can reach, empty again after the test."""
    path = Path(tempfile.mkdtemp(prefix="heddle-test-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    assert (list(path.iterdir()), sessions_of(path)) == ([], [])
    path.rmdir()


def run(work: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "script/conformance", *arguments],
        env={**os.environ, "TMPDIR": str(work)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


def a_suite(top: Path, *lines: str) -> Path:
    """A pjdfstest of one script."""
    (top / "tests" / "chmod").mkdir(parents=True)
    (top / "tests" / "chmod" / "00.t").write_text("\n".join(lines) + "\n")
    return top


def words(printed: str) -> list[list[str]]:
    return [line.split() for line in printed.splitlines()]


def test_a_suite_that_holds_everywhere(work: Path, tmp_path: Path) -> None:
    """A suite that passes in both places is a table with a row for each directory, and exit code 0."""
    suite = a_suite(
        tmp_path / "suite", "echo 1..2", "touch file && echo ok 1", "test -f file && echo ok 2"
    )
    done = run(work, "--pjdfstest", suite)

    assert (done.returncode, done.stderr) == (0, "")
    assert ["chmod", "2", "0", "0", "2", "0", "0"] in words(done.stdout)
    assert ["all", "2", "0", "0", "2", "0", "0"] in words(done.stdout)


def test_a_case_that_fails_in_the_mount_only(work: Path, tmp_path: Path) -> None:
    """A case that holds below and not in the mount is named, and the exit code is 1."""
    suite = a_suite(
        tmp_path / "suite",
        "echo 1..2",
        "echo ok 1",
        'case $(stat -f -c %T .) in fuse*) echo "not ok 2 - in a mount";; *) echo ok 2;; esac',
    )
    done = run(work, "--pjdfstest", suite)

    assert done.returncode == 1
    assert "chmod/00.t:2: passed below, failed in the mount: not ok 2 - in a mount" in done.stdout


def test_a_case_that_fails_below_too(work: Path, tmp_path: Path) -> None:
    """A case that fails in both places is counted, and is no failure of the mount."""
    suite = a_suite(tmp_path / "suite", "echo 1..2", "echo ok 1", "echo not ok 2")
    done = run(work, "--pjdfstest", suite)

    assert done.returncode == 0
    assert ["chmod", "2", "1", "0", "2", "1", "0"] in words(done.stdout)


def test_an_ordinary_user(work: Path, tmp_path: Path) -> None:
    """With --as-nobody the suites run without privileges, in a mount of a session without them."""
    suite = a_suite(
        tmp_path / "suite",
        "echo 1..2",
        "id -u | grep -qv '^0$' && echo ok 1",
        "touch file && stat -c %u file | grep -qv '^0$' && echo ok 2",
    )
    if os.geteuid() != 0:
        return  # then every other test here is an ordinary user's
    done = run(work, "--as-nobody", "--pjdfstest", suite)

    assert (done.returncode, done.stderr) == (0, "")
    assert ["all", "2", "0", "0", "2", "0", "0"] in words(done.stdout)


def test_the_results_of_a_script() -> None:
    """TAP says passed, failed, skipped and known; what was planned and never said has failed."""
    said = "1..6\nok 1 - a\nnot ok 2 - b\nok 3 # skip c\nnot ok 4 # TODO d\nok 5\n"
    results = [case.result for case in suites.tap("group", "script", said)]

    assert results == ["passed", "failed", "skipped", "known to fail", "passed", "failed"]


def test_a_script_that_dies_at_once() -> None:
    """A script that says nothing has failed."""
    assert {case.result for case in suites.tap("group", "script", "")} == {"failed"}


def test_a_program_that_does_not_end(tmp_path: Path) -> None:
    """A program is ended when its time is over, with all that it started."""
    code, _ = execute("sh", "-c", "sleep 1000 & sleep 1000", cwd=tmp_path, timeout_s=0.2)

    assert code == TIMED_OUT


def test_trees_are_compared_to_the_byte(tmp_path: Path) -> None:
    """Two trees differ in a byte, a mode, a link, a name or an attribute, and the first of them is named."""
    changes = {
        "byte": lambda top: (top / "file").write_text("other"),
        "mode": lambda top: (top / "file").chmod(0o600),
        "link": lambda top: os.link(top / "file", top / "again"),
        "attribute": lambda top: os.setxattr(top / "file", "user.a", b"1"),
    }
    for name in ("same", *changes):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("bytes")
        (tmp_path / name / "file").chmod(0o644)
    for name, change in changes.items():
        change(tmp_path / name)
        assert (
            "file" in difference(tree(tmp_path / "same"), tree(tmp_path / name)) or name == "link"
        )
        assert difference(tree(tmp_path / "same"), tree(tmp_path / name)) != ""
    assert difference(tree(tmp_path / "same"), tree(tmp_path / "same")) == ""


def test_programs_are_compared(tmp_path: Path) -> None:
    """A program that fails or makes something else in one place only is named; one that fails in both is too."""

    def makes(where: Path, shared: Path) -> object:
        (where / "file").write_text(where.name if shared.name == "differ" else "same")
        return tree(where)

    def fails(where: Path, shared: Path) -> object:
        return programs.run(where, "false")

    def verdict(program: programs.Program, shared: str) -> programs.Ran:
        places = (tmp_path / "below", tmp_path / "mount")
        return programs.compare("name", program, *places, tmp_path / shared)

    assert verdict(makes, "same").verdict == "same"
    assert "1 differ, such as file" in verdict(makes, "differ").verdict
    assert "in both failed: false: exit code 1" in verdict(fails, "same").verdict
    assert report.programs([verdict(makes, "same")])
    assert not report.programs([verdict(makes, "same"), verdict(fails, "same")])
