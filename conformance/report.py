"""The tables: a row for each directory of tests, and every case that is not in the mount what it is below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from conformance.programs import Ran
from conformance.suites import FAILED, SKIPPED, Case

BELOW, MOUNT = "below", "heddle"


def suite(name: str, cases: Mapping[str, Sequence[Case]]) -> bool:
    """Print what a suite came to, by place.

    Args:
        name: the suite.
        cases: its cases by the label of the place.

    Returns:
        Whether everything that holds below holds in the mount.
    """
    groups = list(dict.fromkeys(case.group for each in cases.values() for case in each))
    header = "".join(f"{label:>11} {'failed':>7} {'skipped':>8}" for label in cases)
    print(f"{name:<18}{header}", flush=True)
    for group in [*groups, None]:
        print(f"{group or 'all':<18}" + "".join(map(_counts, _of_group(group, cases))))
    broken = _worse(cases[BELOW], cases[MOUNT])
    for case, below in broken:
        note = " ".join(case.note.split())[:400]
        print(f"  {case.name}: {below} below, {case.result} in the mount: {note}")
    print(flush=True)
    return not any(case.result == FAILED for case, _ in broken)


def _of_group(group: str | None, cases: Mapping[str, Sequence[Case]]) -> list[list[Case]]:
    return [[case for case in each if group in (None, case.group)] for each in cases.values()]


def _counts(cases: Sequence[Case]) -> str:
    failed = sum(case.result == FAILED for case in cases)
    skipped = sum(case.result == SKIPPED for case in cases)
    return f"{len(cases):>11} {failed:>7} {skipped:>8}"


def _worse(below: Sequence[Case], mount: Sequence[Case]) -> list[tuple[Case, str]]:
    """The cases of the mount that are not what they are below, with what they are there."""
    results = {case.name: case.result for case in below}
    return [
        (case, results.get(case.name, "not run"))
        for case in mount
        if case.result != results.get(case.name)
    ]


def programs(rows: Sequence[Ran]) -> bool:
    """Print what the programs came to; returns whether each came to the same in both places."""
    print(f"{'program':<36}{'below':>9}{'heddle':>9}{'ratio':>7}  result")
    for row in rows:
        ratio = f"{row.heddle_s / row.below_s:.2f}" if row.below_s else ""
        seconds = f"{row.below_s:>7.1f} s{row.heddle_s:>7.1f} s{ratio:>7}"
        print(f"{row.name:<36}{seconds}  {row.verdict}")
    print(flush=True)
    return all(row.good for row in rows)
