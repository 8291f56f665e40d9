"""Checksums over the rows of ``heddle.db``: SQLite has none, and a flipped bit in a name would be another name.

Owns which tables are covered and how a checksum is made. Who computes it (every transaction) and when it is checked
(names whenever the file is opened, the log by ``fsck``) is ``connection.py``'s and ``database.py``'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from zlib import crc32

if TYPE_CHECKING:
    import sqlite3

NAMES = "names_sum"
"""Key in ``meta``: the checksum over the tables that say where names are; 8 hex digits."""
LOG = "log_sum"
"""Key in ``meta``: id of the newest operation, a colon and the checksum over all of them in order; 8 hex digits."""

_NAMES_SQL = (
    f"SELECT * FROM meta WHERE key NOT IN ('{NAMES}', '{LOG}') ORDER BY key",
    "SELECT * FROM head",
    "SELECT * FROM threads ORDER BY name",
    "SELECT * FROM markers ORDER BY name",
    "SELECT * FROM overlays ORDER BY thread",
    "SELECT * FROM overlay_moves ORDER BY source",
    "SELECT * FROM worktree",
    "SELECT * FROM mounts ORDER BY mountpoint",
    "SELECT * FROM branches ORDER BY name",
    "SELECT * FROM git",
)


def renew(sql: sqlite3.Connection) -> None:
    """Bring both checksums up to what the open transaction leaves; the last thing before its commit."""
    kept = _kept(sql)
    names, log = _names_sum(sql), _log_sum(sql, kept.get(LOG))
    for key, value in ((NAMES, names), (LOG, log)):
        if kept.get(key) != value:
            sql.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))


def names_are_right(sql: sqlite3.Connection) -> bool:
    """Whether names are as the last transaction left them; True where nobody has made a checksum yet."""
    sql.execute("BEGIN")
    try:
        kept = _kept(sql).get(NAMES)
        return kept is None or kept == _names_sum(sql)
    finally:
        sql.execute("ROLLBACK")


def log_is_right(sql: sqlite3.Connection) -> bool:
    """Whether the operations, read in a transaction, are as the transactions that added them left them."""
    kept = _kept(sql).get(LOG)
    return kept is None or kept == _log_sum(sql, None)


def _kept(sql: sqlite3.Connection) -> dict[str, str]:
    return dict(sql.execute("SELECT * FROM meta WHERE key IN (?, ?)", (NAMES, LOG)).fetchall())


def _names_sum(sql: sqlite3.Connection) -> str:
    crc = 0
    for query in _NAMES_SQL:
        crc = _sum(sql.execute(query), crc32(b"table", crc))
    return f"{crc:08x}"


def sum_of_log(operations: Iterable[tuple[Any, ...]]) -> str:
    """What ``LOG`` should say of these operations, all of them in order."""
    found = list(operations)
    return f"{found[-1][0] if found else 0}:{_sum(found, 0):08x}"


def _log_sum(sql: sqlite3.Connection, kept: str | None) -> str:
    """Continue from what is kept; the log is only ever added to."""
    newest, _, crc = (kept or "0:0").partition(":")
    rows = sql.execute("SELECT * FROM operations WHERE id > ? ORDER BY id", (int(newest),))
    found = rows.fetchall()
    last = found[-1][0] if found else int(newest)
    return f"{last}:{_sum(found, int(crc, 16)):08x}"


def _sum(rows: Iterable[tuple[Any, ...]], crc: int) -> int:
    for row in rows:
        crc = crc32(b"".join(map(_field, row)), crc)
    return crc


def _field(value: Any) -> bytes:
    """One column: a letter for its type, the length of what follows, a colon, the bytes."""
    if value is None:
        return b"n0:"
    kind, data = b"b", value
    if isinstance(value, int):
        kind, data = b"i", b"%d" % value
    elif isinstance(value, str):
        kind, data = b"t", value.encode()
    return b"%s%d:%s" % (kind, len(data), data)
