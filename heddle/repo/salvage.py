"""What can still be read of a damaged ``heddle.db``, row by row.

Owns the ways of getting at rows when SQLite refuses to read the file as a whole. Which of them are believed, and what
a new database is made of, is ``rebuild.py``'s.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from heddle.repo.schema import FORMAT, SCHEMA

Row = tuple[Any, ...]

_PAGE = 4096
_TABLE_LEAF = 0x0D
_WAL_HEADER, _FRAME_HEADER = 32, 24
_OPERATION_COLUMNS = 9
_SUBJECTS = ("thread", "marker", "head")


@dataclass
class Salvaged:
    """The rows that were found.

    Attributes:
        tables: by table, then by primary key, the row.
        whole: tables of which every row was read.
    """

    tables: dict[str, dict[Row, Row]] = field(default_factory=dict)
    whole: set[str] = field(default_factory=set)

    def rows(self, table: str) -> list[Row]:
        """A table's rows in order of their keys."""
        found = self.tables.get(table, {})
        return [found[key] for key in sorted(found, key=repr)]

    def add(self, table: str, key: Row, row: Row) -> None:
        """Take a row in, unless its key is known already."""
        self.tables.setdefault(table, {}).setdefault(key, row)


def salvage(sources: list[Path]) -> Salvaged:
    """Read whatever can be read.

    Args:
        sources: directories with a ``heddle.db`` and perhaps its log, the one to be believed first.
    """
    found = Salvaged()
    columns = _columns()
    for directory in sources:
        path = directory / "heddle.db"
        if path.is_file():
            found.whole |= _read_tables(path, columns, found)
            _scan_operations(path, found)
    return found


# through SQLite


def _columns() -> dict[str, tuple[list[str], list[int]]]:
    """Of each table its columns, and which of them are its primary key."""
    with closing(_fresh(Path(":memory:"))) as sql:
        tables = [row[0] for row in sql.execute("SELECT name FROM sqlite_schema WHERE sql <> ''")]
        found = {}
        for table in tables:
            about = sql.execute(f"PRAGMA table_info({table})").fetchall()
            keys = [number for number, column in enumerate(about) if column[5]]
            found[table] = ([column[1] for column in about], keys)
        found.pop("sqlite_sequence", None)
        return found


def _fresh(path: Path) -> sqlite3.Connection:
    sql = sqlite3.connect(path, isolation_level=None)
    sql.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version={FORMAT}; COMMIT")
    return sql


def _read_tables(
    path: Path, columns: dict[str, tuple[list[str], list[int]]], found: Salvaged
) -> set[str]:
    """Read a private copy, as it is or with the first page of a new database; the tables read as a whole.

    With a new first page the log may be of another time than the rest, and is then left out.
    """
    with tempfile.TemporaryDirectory(prefix="heddle-") as place:
        copy = Path(place, "heddle.db")
        _copy_with_log(path, copy)
        for keep_log in (True, False):
            if _opens(copy):
                break
            _copy_with_log(path, copy)
            _graft_first_page(copy)
            if not keep_log:
                copy.with_name("heddle.db-wal").unlink(missing_ok=True)
        whole = set()
        for table, (names, keys) in columns.items():
            if _read_table(copy, table, names, keys, found):
                whole.add(table)
        return whole


def _copy_with_log(path: Path, copy: Path) -> None:
    for name in ("heddle.db-wal", "heddle.db-shm"):
        copy.with_name(name).unlink(missing_ok=True)
    shutil.copyfile(path, copy)
    log = path.with_name("heddle.db-wal")
    if log.is_file():
        shutil.copyfile(log, copy.with_name(log.name))


def _opens(copy: Path) -> bool:
    try:
        with closing(sqlite3.connect(copy)) as sql:
            sql.execute("SELECT count(*) FROM threads").fetchone()
    except (sqlite3.Error, UnicodeDecodeError):
        return False
    return True


def _graft_first_page(copy: Path) -> None:
    """Put a new database's first page, which holds its schema, in place of a damaged one.

    Tables are made in one order and never dropped, so the page says of every repository where they begin.
    """
    new = copy.with_name("new.db")
    new.unlink(missing_ok=True)
    _fresh(new).close()
    data = bytearray(copy.read_bytes())
    data += bytes(-len(data) % _PAGE)
    data[:_PAGE] = new.read_bytes()[:_PAGE]
    data[28:32] = (len(data) // _PAGE).to_bytes(4, "big")  # its length in pages
    copy.write_bytes(data)


def _read_table(path: Path, table: str, names: list[str], keys: list[int], found: Salvaged) -> bool:
    """Read a table from both of its ends, as far as that goes; says whether that was all of it."""
    order = ", ".join(names[key] + " {0}" for key in keys)
    for direction in ("ASC", "DESC"):
        query = f"SELECT {', '.join(names)} FROM {table} ORDER BY {order.format(direction)}"
        try:
            with closing(sqlite3.connect(path)) as sql:
                for row in sql.execute(query):
                    found.add(table, tuple(row[key] for key in keys), row)
        except (sqlite3.Error, UnicodeDecodeError):
            continue
        return direction == "ASC"
    return False


# page by page


def _scan_operations(path: Path, found: Salvaged) -> None:
    """Look for operations in every page of a file and its log, whatever leads to it.

    Operations are only ever added, so one in a page that is not in use any more is as good as any.
    """
    for page in _pages(path):
        for rowid, values in _leaf_rows(page):
            row = (rowid, *values[1:])
            if _is_operation(row):
                found.add("operations", (rowid,), row)


def _is_operation(row: Row) -> bool:
    texts = row[4:5] + row[8:9]
    optional = row[5:8]
    return (
        len(row) == _OPERATION_COLUMNS
        and isinstance(row[1], int)
        and isinstance(row[2], str)
        and row[3] in _SUBJECTS
        and all(isinstance(each, str) for each in texts)
        and all(each is None or isinstance(each, str) for each in optional)
    )


def _pages(path: Path) -> Iterator[bytes]:
    """Every page of a database file, then of its write-ahead log."""
    data = path.read_bytes()
    for at in range(0, len(data), _PAGE):
        yield data[at : at + _PAGE]
    log = path.with_name("heddle.db-wal")
    if log.is_file():
        data = log.read_bytes()
        for at in range(_WAL_HEADER, len(data), _FRAME_HEADER + _PAGE):
            yield data[at + _FRAME_HEADER : at + _FRAME_HEADER + _PAGE]


def _leaf_rows(page: bytes) -> Iterator[tuple[int, Row]]:
    """The rows of a leaf page of a table with row ids; see "The SQLite Database Format", sections 1.6 and 2.1."""
    if len(page) < _PAGE or page[0] != _TABLE_LEAF:
        return
    for number in range(int.from_bytes(page[3:5], "big")):
        at = int.from_bytes(page[8 + 2 * number : 10 + 2 * number], "big")
        try:
            size, at = _varint(page, at)
            rowid, at = _varint(page, at)
            yield rowid, tuple(_record(page[at : at + size]))
        except (IndexError, ValueError):  # damaged, or continued on another page
            continue


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """SQLite's integer of one to nine bytes; returns (value, next position)."""
    value = 0
    for number in range(8):
        byte = data[at + number]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + number + 1
    return value << 8 | data[at + 8], at + 9


_INTEGER_SIZES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}


def _record(data: bytes) -> Iterator[Any]:
    """The values of a record; raises IndexError or ValueError where it is not a sound one."""
    header_size, at = _varint(data, 0)
    body = header_size
    while at < header_size:
        serial, at = _varint(data, at)
        if serial in _INTEGER_SIZES:
            size = _INTEGER_SIZES[serial]
        elif serial >= 12:
            size = (serial - 12) // 2
        elif serial in (0, 8, 9):
            size = 0
        else:
            raise ValueError(serial)
        piece = data[body : body + size]
        if len(piece) != size:
            raise ValueError("cut off")
        body += size
        yield _value(serial, piece)


def _value(serial: int, piece: bytes) -> Any:
    if serial in _INTEGER_SIZES:
        return int.from_bytes(piece, "big", signed=True)
    if serial >= 12:
        return piece.decode() if serial % 2 else piece
    return {0: None, 8: 0, 9: 1}[serial]
