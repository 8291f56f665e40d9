"""One SQLite file, opened safely: locking, forks, read-only media, and errors a user can read.

Owns how the file is opened, who may use the connection when, and what an SQLite error means to a user. What the
tables mean is ``database.py``'s, which of them have checksums ``seal.py``'s; this module knows no table.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from heddle import faults
from heddle.errors import Busy, HeddleError, RepositoryTooNew, RepositoryTooOld, StorageError
from heddle.repo import seal

BUSY_WAIT_S = 30.0
"""How long a command waits for another one's transaction, in seconds; transactions take milliseconds."""

_ROOM_BYTES = 64 << 10  # for the log and the index of it (sqlite.org/wal.html)

REPAIR_HINT = "heddle fsck --repair makes a new one of all that is left, and keeps this one aside"
_NO_WRITE = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN}
_NO_ROOM = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}


class Connection:
    """One SQLite database in WAL mode, usable from every thread of a process and across fork.

    The threads of a process share one connection under a lock that is held for one query or one transaction.
    No connection survives fork(2): SQLite forgets its POSIX locks in the child, so it is closed before the
    fork and each side opens its own when it next needs one.

    Args:
        path: the database file; must exist.
        version: the newest ``user_version`` understood. A file with another one is refused unread.
    """

    def __init__(self, path: Path, *, version: int) -> None:
        self.path = path
        self._version = version
        self._lock = threading.RLock()
        self._open: sqlite3.Connection | None = None
        _connections.add(self)

    def query(self, sql: str, parameters: Sequence[object] = ()) -> list[Any]:
        """Run one reading statement and return all its rows; none has text that is not UTF-8.

        Raises:
            StorageError: the database can't be read or is damaged.
            Busy: another process kept it locked for ``BUSY_WAIT_S``.
            RepositoryTooNew, RepositoryTooOld: another heddle wrote it.
        """
        with self._lock, self._translated():
            try:
                return self._connection().execute(sql, parameters).fetchall()
            except UnicodeEncodeError:
                return []

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, for several queries in a row that see one moment; raises as ``query``.

        ``query`` belongs to them where it is called in the block, by the same thread. Blocks don't nest.
        """
        with self._lock, self._translated():
            connection = self._connection()
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                if connection.in_transaction:  # some errors end it
                    connection.execute("ROLLBACK")

    @contextmanager
    def transaction(self, *, wait_s: float = BUSY_WAIT_S) -> Iterator[sqlite3.Connection]:
        """Everything executed in the block happens at once when it ends well, or not at all.

        The write lock is taken at the start (BEGIN IMMEDIATE), so what the block reads can't change before
        it commits. The commit is the commit point: a crash before it leaves the old content, a crash after
        it the new, also when the power fails (synchronous=FULL syncs the log first).

        Args:
            wait_s: how long to wait for another writer, in seconds.

        Raises:
            Busy: another process kept writing for ``wait_s``.
            StorageError: the database can't be written (damaged, read-only, no space).
        """
        with self._lock, self._translated():
            connection = self._connection()
            assert not connection.in_transaction, "transactions don't nest"
            connection.execute(f"PRAGMA busy_timeout={int(wait_s * 1000)}")
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                seal.renew(connection)
                faults.reach("database.before-commit")
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            faults.reach("database.after-commit")

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        with self._lock:
            if self._open is not None:
                self._open.close()
                self._open = None

    def _connection(self) -> sqlite3.Connection:
        if self._open is None:
            self._require_readable()
            self._open = self._connect()
        return self._open

    def _require_readable(self) -> None:
        """Refuse a file that is not there, or not for us.

        It is opened by SQLite alone: close(2) of any descriptor drops all locks that the process has on a file
        (fcntl(2)), those of other connections to it too. Another process would take itself for the last user then, and
        remove the write-ahead log that they go on reading and writing.
        """
        try:
            os.stat(self.path)
            if not os.access(self.path, os.R_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            raise StorageError(
                f"can't open the database {self.path}: {error.strerror}", hint=REPAIR_HINT
            ) from error

    def _check_version(self, found: int) -> None:
        if found > self._version:
            raise RepositoryTooNew(
                f"{self.path} has format {found}; this heddle knows formats up to {self._version}",
                hint="install the newer heddle that wrote it",
            )
        if 0 < found < self._version:
            raise RepositoryTooOld(
                f"{self.path} has format {found}; this heddle reads format {self._version}",
                hint="with the heddle that wrote it: capture, heddle git export --to DIR; "
                "then heddle git import DIR in a new repository",
            )
        if found != self._version:  # of an empty file it is 0
            raise self._damaged("not SQLite" if not found else f"format {found}")

    def _damaged(self, why: object) -> StorageError:
        return StorageError(f"the database {self.path} is damaged: {why}", hint=REPAIR_HINT)

    def _connect(self) -> sqlite3.Connection:
        try:
            connection = self._configured(f"file:{_uri_path(self.path)}?mode=rw")
        except sqlite3.OperationalError as error:
            is_stuck = _primary(error) in _NO_ROOM and _is_full(self.path.parent)
            if not is_stuck and _primary(error) not in _NO_WRITE:
                raise
            connection = self._snapshot()
        try:
            self._check_version(connection.execute("PRAGMA user_version").fetchone()[0])
            if not seal.names_are_right(connection):
                raise self._damaged("a name is not what was written")
        except BaseException:
            connection.close()
            raise
        return connection

    def _configured(self, uri: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            uri, uri=True, timeout=BUSY_WAIT_S, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA trusted_schema=OFF")
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        except BaseException:
            connection.close()
            raise
        return connection

    def _snapshot(self) -> sqlite3.Connection:
        """Read a database whose directory can't be written or is full, where WAL mode could not make its files.

        With nothing in the write-ahead log the file itself is complete; otherwise a private copy of both is
        read into memory.
        """
        log = self.path.with_name(self.path.name + "-wal")
        if not log.exists() or log.stat().st_size == 0:
            return self._configured(f"file:{_uri_path(self.path)}?mode=ro&immutable=1")
        from shutil import copyfile
        from tempfile import TemporaryDirectory

        memory = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        with TemporaryDirectory(prefix="heddle-") as directory:
            copy = Path(directory, self.path.name)
            copyfile(log, copy.with_name(log.name))
            copyfile(self.path, copy)
            source = self._configured(f"file:{_uri_path(copy)}?mode=rw")
            source.backup(memory)
            source.close()
        memory.execute("PRAGMA query_only=ON")
        return memory

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError:
            raise
        except sqlite3.Error as error:
            raise self._as_heddle_error(error) from error

    def _as_heddle_error(self, error: sqlite3.Error) -> HeddleError:
        match _primary(error):
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                return Busy(f"{self.path} is in use by another process", hint="run it again")
            case sqlite3.SQLITE_READONLY if _is_full(self.path.parent):
                return self._no_space()
            case sqlite3.SQLITE_READONLY:
                return StorageError(
                    f"{self.path} can't be written",
                    hint=f"check who may write to {self.path.parent}",
                )
            case sqlite3.SQLITE_FULL:
                return self._no_space()
            case sqlite3.SQLITE_IOERR | sqlite3.SQLITE_CANTOPEN if _is_full(self.path.parent):
                return self._no_space()
            case sqlite3.SQLITE_IOERR | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_NOMEM:
                return StorageError(
                    f"can't use the database {self.path}: {error}", hint=REPAIR_HINT
                )
        return self._damaged(error)

    def _no_space(self) -> StorageError:
        return StorageError(
            f"no space left to write {self.path}", hint="free some space and run it again"
        )


def _is_full(directory: Path) -> bool:
    """Whether a disk has no room for what SQLite makes beside a database (sqlite.org/tempfiles.html)."""
    try:
        found = os.statvfs(directory)
    except OSError:
        return False
    return found.f_bavail * found.f_frsize < _ROOM_BYTES or (found.f_files > 0 == found.f_favail)


def _primary(error: sqlite3.Error) -> int:
    """The primary result code: the low byte of SQLite's extended one."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


def _uri_path(path: Path) -> str:
    """A path as SQLite's URI file names want it: every byte but plain ones as %XX."""
    plain = b"/abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~"
    return "".join(chr(c) if c in plain else f"%{c:02X}" for c in os.fsencode(path))


_connections: weakref.WeakSet[Connection] = weakref.WeakSet()
_held_for_fork: list[Connection] = []


def _before_fork() -> None:
    for connection in list(_connections):
        connection._lock.acquire()
        _held_for_fork.append(connection)
        if connection._open is not None and not connection._open.in_transaction:
            connection.close()


def _after_fork() -> None:
    while _held_for_fork:
        _held_for_fork.pop()._lock.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
