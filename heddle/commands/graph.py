"""A history as a drawing: one column per line of descent, states as dots, forks and merges as corners.

Owns the columns and the characters; what is written beside a state, and which states come in which
order, is ``log.py``'s. A column keeps its place until its line ends, so every connection is one
row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set

# Which ways lead out of a cell, as up, down, left, right: the character that draws it.
_BOX = {
    "ud": "│",
    "udr": "├",
    "udl": "┤",
    "udlr": "┼",
    "ur": "╰",
    "ul": "╯",
    "dr": "╭",
    "dl": "╮",
    "ulr": "┴",
    "dlr": "┬",
    "lr": "─",
    "": " ",
}
_ASCII = str.maketrans("│├┤┼╰╯╭╮┴┬─●◆", "|+++\\//\\++-*@")

_LEFT = b""  # in a column that ends in this row: not free before the next


class Graph:
    """Draws states as they come, children before their parents.

    Args:
        ascii_only: use characters that every terminal has.
    """

    def __init__(self, *, ascii_only: bool = False) -> None:
        self._ascii_only = ascii_only
        self._columns: list[bytes | None] = []  # the state each column leads down to
        self._root_above: int | None = None  # the column of a root in the row above

    def rows(
        self, state: bytes, parents: Sequence[bytes], text: Sequence[str], *, here: bool = False
    ) -> Iterator[str]:
        """Yield the lines that show one state: the dot beside its text, then its connections.

        Args:
            state: its id.
            parents: the ids of its parents, first parent first.
            text: what to write beside it, one or more lines.
            here: True for the state HEAD is at, which is drawn as a diamond.
        """
        begins = state not in self._columns
        at = self._place(state) if begins else self._columns.index(state)
        if begins and at == self._root_above:  # the two must not seem related
            yield self._line(self._node_row(at, " "), "")
        yield self._line(self._node_row(at, "◆" if here else "●"), text[0])
        before = [column is not None for column in self._columns]
        targets = self._continue(at, parents)
        before[at] = bool(parents)
        for line in text[1:]:
            yield self._line("".join("│ " if active else "  " for active in before), line)
        if targets:
            yield self._line(self._connections(at, targets, before), "")
        self._columns = [None if column == _LEFT else column for column in self._columns]
        self._root_above = at if not parents and len(text) == 1 else None
        while self._columns and self._columns[-1] is None:
            self._columns.pop()

    def _place(self, state: bytes) -> int:
        """Start a line in the leftmost free column."""
        if None not in self._columns:
            self._columns.append(None)
        at = self._columns.index(None)
        self._columns[at] = state
        return at

    def _continue(self, at: int, parents: Sequence[bytes]) -> list[int]:
        """Lead the state's column on to its parents; returns the other columns it now connects to."""
        targets: list[int] = []
        self._columns[at] = None
        for parent in parents:
            if parent in self._columns:
                targets.append(self._join(at, self._columns.index(parent)))
            elif self._columns[at] is None:
                self._columns[at] = parent
            else:
                targets.append(self._place(parent))
        return [target for target in dict.fromkeys(targets) if target != at]

    def _join(self, at: int, other: int) -> int:
        """Connect to a column that leads to the parent already; the line goes on in the left one."""
        if self._columns[at] is None and at < other:
            self._columns[at], self._columns[other] = self._columns[other], _LEFT
        return other

    def _node_row(self, at: int, dot: str) -> str:
        cells = ["│" if column is not None else " " for column in self._columns]
        cells[at] = dot
        return "".join(cell + " " for cell in cells)

    def _connections(self, at: int, targets: Sequence[int], before: Sequence[bool]) -> str:
        low, high = min(at, *targets), max(at, *targets)
        cells = []
        for number, column in enumerate(self._columns):
            up = number < len(before) and before[number]
            ways = ("u" if up else "") + ("d" if column not in (None, _LEFT) else "")
            if number == at or number in targets:
                ways += ("l" if number > low else "") + ("r" if number < high else "")
            elif not ways and low < number < high:
                ways = "lr"
            cells.append(_BOX.get(ways, "│") + ("─" if low <= number < high else " "))
        return "".join(cells)

    def _line(self, drawing: str, text: str) -> str:
        if self._ascii_only:
            drawing = drawing.translate(_ASCII)
        return f"{drawing} {text}".rstrip()


def without_hidden(
    shown: Set[bytes], history: Iterable[tuple[bytes, Sequence[bytes]]]
) -> Mapping[bytes, tuple[bytes, ...]]:
    """Return the parents to draw when some states of a history are not shown.

    A hidden parent is replaced by the nearest shown states before it, so that lines do not end at a
    gap.

    Args:
        shown: the ids that are shown.
        history: every state and its parents, children before parents.
    """
    nearest: dict[bytes, tuple[bytes, ...]] = {}
    drawn: dict[bytes, tuple[bytes, ...]] = {}
    for state, parents in reversed(list(history)):
        found = tuple(
            dict.fromkeys(ancestor for parent in parents for ancestor in nearest.get(parent, ()))
        )
        drawn[state] = found
        nearest[state] = (state,) if state in shown else found
    return drawn
