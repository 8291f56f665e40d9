"""What a run found, as tables for a terminal and as JSON for programs. Measures nothing."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

from benchmarks.harness import Bench, Row

_MARK = {True: "met", False: "NOT MET", None: ""}


def value(amount: float, unit: str) -> str:
    """An amount as a person reads it."""
    if unit == "bytes":
        return f"{amount / 1e6:.1f} MB"
    return f"{amount:.2f} s" if amount >= 1 else f"{amount * 1e3:.1f} ms"


def _plain_lines(row: Row) -> list[list[str]]:
    """A row with one peer, or none."""
    ours = value(row.ours, row.unit)
    if not row.peers:
        limit = "" if row.limit is None else f"<= {value(row.limit, row.unit)}"
        return [[row.what, ours, "", "", "", limit, _MARK[row.met]]]
    (peer, theirs), *_ = row.peers.items()
    return [
        [
            row.what,
            ours,
            peer,
            value(theirs, row.unit),
            f"{row.ratio(peer):.3f} x",
            f"<= {row.reaches[peer]:g} x" if peer in row.reaches else "",
            _MARK[row.met],
        ]
    ]


_PEERS = ("plain", "bindfs", "fuse-overlayfs")


def _many_lines(row: Row) -> list[list[str]]:
    """A row with the three file-system peers."""
    times = [value(row.peers[peer], row.unit) for peer in _PEERS]
    ratios = [f"{row.ratio(peer):.2f} x" for peer in _PEERS]
    return [[row.what, row.condition, value(row.ours, row.unit), *times, *ratios, _MARK[row.met]]]


_PLAIN_HEAD = ["", "heddle", "against", "", "ratio", "reach", ""]
_MANY_HEAD = ["", "", "heddle", *_PEERS, *(f"/ {peer}" for peer in _PEERS), ""]


def _aligned(lines: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        first, *rest = [
            cell.ljust(width) if column == 0 or cell[:1].isalpha() else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        yield "  ".join(["  " + first, *rest]).rstrip()


def table(rows: Sequence[Row]) -> str:
    """Every row, grouped by section, and at the end how many aims were met."""
    parts: list[str] = []
    for section, group in groupby(rows, key=lambda row: row.section):
        members = list(group)
        many = len(members[0].peers) > 1
        lines = [_MANY_HEAD if many else _PLAIN_HEAD]
        for row in members:
            lines += _many_lines(row) if many else _plain_lines(row)
        parts += [section, *_aligned(lines), ""]
    aimed = [row for row in rows if row.met is not None]
    met = sum(row.met is True for row in aimed)
    parts.append(f"{met} of {len(aimed)} rows met what was aimed at")
    return "\n".join(parts)


def row_record(row: Row) -> dict[str, Any]:
    """A row as its JSON object."""
    return {
        "section": row.section,
        "what": row.what,
        "condition": row.condition or None,
        "unit": row.unit,
        "heddle": row.ours,
        "peers": {
            peer: {"value": theirs, "ratio": row.ratio(peer), "reach": row.reaches.get(peer)}
            for peer, theirs in row.peers.items()
        },
        "limit": row.limit,
        "met": row.met,
        "samples": {name: list(values) for name, values in row.samples.items()},
    }


def document(bench: Bench) -> str:
    """The whole run as one line of JSON: the machine, the versions, every row with its samples."""
    versions = {
        name: bench.run(name, "--version").splitlines()[0]
        for name in ("heddle", "git", "hg", "bindfs", "fuse-overlayfs")
    }
    machine = {
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }
    return json.dumps(
        {
            "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "quick": bench.quick,
            "machine": machine,
            "versions": versions,
            "rows": [row_record(row) for row in bench.rows],
        }
    )
