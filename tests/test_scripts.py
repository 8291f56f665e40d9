"""The scripts that everybody runs: they say how they are used, set up once, and measure what they claim."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks/ is a package of the checkout, not of the installation

from benchmarks import report, trees, workloads  # noqa: E402
from benchmarks.harness import Bench, Row, in_turns, mounts_below, timed_row  # noqa: E402


def run(*argv: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in argv],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_setup_does_nothing_the_second_time(tmp_path: Path) -> None:
    """When everything is there, script/setup calls neither apt nor pip nor the network."""
    tripwire = tmp_path / "bin"
    tripwire.mkdir()
    for name in ("apt-get", "sudo", "pip", "curl"):
        (tripwire / name).write_text(f"#!/bin/sh\necho {name} >> {tmp_path}/called\nexit 1\n")
        (tripwire / name).chmod(0o755)
    path = f"{tripwire}{os.pathsep}{os.environ['PATH']}"

    first = run(ROOT / "script/setup", "test")
    done = run(ROOT / "script/setup", "test", PATH=path, PIP_NO_INDEX="1")

    assert first.returncode == 0, first.stderr
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "called").exists()
    assert "installing" not in done.stderr


def test_setup_refuses_a_group_that_it_does_not_know() -> None:
    """A mistyped argument is exit code 64 and the usage, before anything is installed."""
    done = run(ROOT / "script/setup", "tests")

    assert done.returncode == 64
    assert "usage: script/setup" in done.stderr


def test_setup_says_what_is_missing_without_apt(tmp_path: Path) -> None:
    """On a machine without apt-get, what is missing is named, and the exit code is 69."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "dirname", "sh"):
        (tools / name).symlink_to(shutil.which(name) or "")

    done = run(tools / "bash", ROOT / "script/setup", PATH=str(tools), HEDDLE_PYTHON=sys.executable)

    assert done.returncode == 69
    assert "fuse3" in done.stderr
    assert "git" in done.stderr


def test_setup_refuses_an_old_python(tmp_path: Path) -> None:
    """HEDDLE_PYTHON that is not a Python of at least 3.11 is refused by name."""
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)

    done = run(ROOT / "script/setup", HEDDLE_PYTHON=str(fake))

    assert done.returncode == 69
    assert str(fake) in done.stderr


def test_demo_refuses_what_is_no_directory(tmp_path: Path) -> None:
    """script/demo of a path that is no directory is exit code 64, before anything is set up."""
    done = run(ROOT / "script/demo", tmp_path / "missing")

    assert done.returncode == 64
    assert "not a directory" in done.stderr


def small_tree(root: Path) -> Path:
    for number in range(8):
        (root / f"part-{number}").mkdir(parents=True)
        (root / f"part-{number}" / "text").write_text(f"line one of {number}\nline two\n")
    (root / "readme").write_text("a small tree\n")
    return root


def test_demo_keeps_every_promise_on_a_tree_of_ones_own(tmp_path: Path) -> None:
    """script/demo PATH runs to its end, every claim in it holds, and it leaves nothing behind."""
    tree, temporary = small_tree(tmp_path / "tree"), tmp_path / "tmp"
    temporary.mkdir()

    done = run(ROOT / "script/demo", tree, TMPDIR=str(temporary))

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert done.stdout.count("✓") >= 20
    assert "✗" not in done.stdout + done.stderr
    assert list(temporary.iterdir()) == []
    assert mounts_below(temporary) == []


def test_demo_tidies_up_when_it_fails(tmp_path: Path) -> None:
    """script/demo on a tree too small for it says so, fails, and leaves no mount and no file."""
    tree, temporary = tmp_path / "tree", tmp_path / "tmp"
    temporary.mkdir()
    tree.mkdir()
    (tree / "only").write_text("one file\n")

    done = run(ROOT / "script/demo", tree, TMPDIR=str(temporary))

    assert done.returncode == 65
    assert "too few" in done.stderr
    assert list(temporary.iterdir()) == []
    assert mounts_below(temporary) == []


def test_a_ratio_is_ours_to_theirs() -> None:
    """A row's ratio is heddle's best over the peer's best, and it is met up to its reach."""
    samples = {"heddle": [3.0, 2.0, 9.0], "git": [4.0, 5.0, 8.0]}

    row = timed_row("tree", "work", samples, reaches={"git": 0.5})

    assert row.ratio("git") == 0.5
    assert row.met is True
    assert timed_row("tree", "work", samples, reaches={"git": 0.49}).met is False


def test_a_row_without_an_aim_is_neither_met_nor_missed() -> None:
    """A row that only informs says nothing in the last column."""
    assert Row("tree", "reading", "", "s", 1.0).met is None


def test_a_limit_counts_where_there_is_no_peer() -> None:
    """A row about memory is met when it stays within its limit."""
    assert Row("tree", "memory", "", "bytes", 60e6, limit=60e6).met is True
    assert Row("tree", "memory", "", "bytes", 61e6, limit=60e6).met is False


def test_contenders_take_turns() -> None:
    """Samples are interleaved, and who begins changes from turn to turn."""
    order: list[str] = []

    def contender(name: str) -> float:
        order.append(name)
        return 1.0

    samples = in_turns(2, {"a": lambda _: contender("a"), "b": lambda _: contender("b")})

    assert order == ["a", "b", "b", "a"]
    assert samples == {"a": [1.0, 1.0], "b": [1.0, 1.0]}


@pytest.mark.parametrize("workload", workloads.WORKLOADS, ids=lambda workload: workload.name)
def test_a_workload_leaves_the_tree_as_it_was(
    workload: workloads.Workload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every workload runs on a plain directory and can run again: it leaves what it found."""
    monkeypatch.setattr(trees.WorkTree, "large_bytes", 1 << 20)
    root = tmp_path / "tree"
    trees.WorkTree(root)
    before = sorted(root.rglob("*"))

    workload.prepare(root)
    workload.run(root)
    workload.tidy(root)

    assert sorted(root.rglob("*")) == before


def test_the_table_and_the_json_tell_the_same(tmp_path: Path) -> None:
    """Every row is in both, with its ratio, and the table counts the aims that were met."""
    work = tmp_path / "bench"
    work.mkdir()
    bench = Bench(work, quick=True)
    samples = {"heddle": [1.0], "git": [4.0]}
    bench.add(timed_row("tree", "capture", samples, reaches={"git": 0.4}))
    bench.add(timed_row("tree", "status", samples, reaches={"git": 0.2}))

    table, records = report.table(bench.rows), [report.row_record(row) for row in bench.rows]

    assert [row["peers"]["git"]["ratio"] for row in records] == [0.25, 0.25]
    assert [row["met"] for row in records] == [True, False]
    assert "1 of 2 rows met" in table
    assert "0.250 x" in table
