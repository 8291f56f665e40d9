"""The drawing of a history."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from heddle.commands.graph import Graph, without_hidden

History = list[tuple[bytes, list[bytes]]]


def history(text: str) -> History:
    """``c:ab b:a a`` is c with parents a and b, then b with parent a, then a."""
    states = [item.partition(":")[::2] for item in text.split()]
    return [(name.encode(), [parent.encode() for parent in parents]) for name, parents in states]


def drawn(text: str, *, ascii_only: bool = False, here: str = "") -> list[str]:
    graph = Graph(ascii_only=ascii_only)
    return [
        row
        for state, parents in history(text)
        for row in graph.rows(state, parents, [state.decode()], here=state.decode() == here)
    ]


def test_a_line_of_descent_is_one_column() -> None:
    """States that follow each other stand below each other; the one HEAD is at is a diamond."""
    assert drawn("c:b b:a a", here="c") == ["◆  c", "●  b", "●  a"]


def test_a_fork_joins_where_it_began() -> None:
    """Two threads from one state are two columns that join at it."""
    assert drawn("x:b y:b b:a a") == ["●  x", "│ ●  y", "├─╯", "●  b", "●  a"]


def test_a_merge_opens_a_column_for_each_further_parent() -> None:
    """A state with three parents leads down to all of them."""
    assert drawn("m:abc a:r b:r c:r r") == [
        "●  m",
        "├─┬─╮",
        "● │ │  a",
        "│ ● │  b",
        "├─╯ │",
        "│   ●  c",
        "├───╯",
        "●  r",
    ]


def test_a_connection_passes_over_the_lines_between() -> None:
    """A connection crosses columns that have nothing to do with it without touching them."""
    assert drawn("x:b y:c w:e z:be c:a b:a e:a a")[4] == "├─│─┼─╯"


def test_two_roots_are_two_drawings() -> None:
    """Histories that share nothing do not touch."""
    assert drawn("b:a a y:x x") == ["●  b", "●  a", "", "●  y", "●  x"]


def test_further_lines_stand_beside_the_column() -> None:
    """The column goes on beside the lines of a state's text, and ends at a root."""
    graph = Graph()
    rows = [*graph.rows(b"b", [b"a"], ["b", "more"]), *graph.rows(b"a", [], ["a", "more"])]

    assert rows == ["●  b", "│  more", "●  a", "   more"]


def test_plain_characters_draw_the_same() -> None:
    """Where box characters can't be shown the drawing has the same shape."""
    assert drawn("m:ab a:r b:r r", ascii_only=True, here="m") == [
        "@  m",
        "+-\\",
        "* |  a",
        "| *  b",
        "+-/",
        "*  r",
    ]


def test_hidden_states_do_not_break_lines() -> None:
    """A line leads past states that are not shown to the nearest that are."""
    whole = history("d:c c:ab b:a a")

    assert without_hidden({b"d", b"a"}, whole)[b"d"] == (b"a",)
    assert without_hidden({b"d", b"b", b"a"}, whole)[b"d"] == (b"a", b"b")
    assert without_hidden({b"d"}, whole)[b"d"] == ()


@st.composite
def histories(draw: st.DrawFn) -> History:
    """Any history, children before parents."""
    count = draw(st.integers(1, 12))
    found = []
    for number in range(count):
        older = st.lists(st.integers(number + 1, count - 1), max_size=3, unique=True)
        parents = draw(older) if number + 1 < count else []
        found.append((b"%d" % number, [b"%d" % parent for parent in parents]))
    return found


@given(histories())
def test_any_history_can_be_read_back_from_its_drawing(whole: History) -> None:
    """Following the lines of a drawing from each state leads to exactly its parents."""
    graph = Graph()
    rows = [list(graph.rows(state, parents, [state.decode()])) for state, parents in whole]

    assert _edges(rows) == {
        (state.decode(), parent.decode()) for state, parents in whole for parent in parents
    }


def _edges(groups: list[list[str]]) -> set[tuple[str, str]]:
    """Read a drawing as a person does: which states come down each column, row by row."""
    found: set[tuple[str, str]] = set()
    above: dict[int, set[str]] = {}
    state, at = "", 0
    for row in (row for group in groups for row in group):
        if "●" in row:
            at, state = row.index("●") // 2, row.split()[-1]
            found |= {(child, state) for child in above.get(at, ())}
            drawing = row[: 2 * at + 1] + row[2 * at + 1 :].rpartition(" ")[0]
            above = {column: above.get(column, set()) for column in _columns(drawing, "│")}
            above[at] = {state}
        else:
            above = _through(row, above, at, state)
    return found


def _columns(row: str, cells: str) -> list[int]:
    return [column for column in range((len(row) + 1) // 2) if row[2 * column] in cells]


def _through(row: str, above: dict[int, set[str]], at: int, state: str) -> dict[int, set[str]]:
    """What comes down each column after a row of connections, which are those of ``state``."""
    after = {column: set(above.get(column, ())) for column in _columns(row, "│├┤┼╭╮┬")}
    for column in set(after) & set(_columns(row, "├┤┼╭╮┬")):
        after[column].add(state)
    for column in _columns(row, "╰╯┴"):
        if column != at and at in after:
            after[at] |= above.get(column, set())  # a line that moves to the left
    return after
