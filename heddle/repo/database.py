"""``heddle.db``: everything in a repository that changes, in one SQLite file.

Owns the transactions that read and change it. What the tables mean is ``schema.py``'s; how the file is opened,
locked and protected is ``connection.py``'s; what a thread or an overlay means to a user is decided above.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from heddle.attribution import Agent
from heddle.errors import (
    Busy,
    DataError,
    MarkerExists,
    MarkerNotFound,
    StorageError,
    ThreadExists,
    ThreadMoved,
    ThreadNotFound,
)
from heddle.repo import seal
from heddle.repo.connection import REPAIR_HINT, Connection
from heddle.repo.schema import (
    FORMAT,
    SCHEMA,
    Branch,
    CachedDirectory,
    GitSeen,
    Marker,
    MountRecord,
    Move,
    Operation,
    Thread,
)

__all__ = [
    "Branch",
    "CachedDirectory",
    "Database",
    "GitSeen",
    "Marker",
    "MountRecord",
    "Move",
    "Operation",
    "Thread",
]

if TYPE_CHECKING:
    import sqlite3

    from dulwich.objects import ObjectID

    from heddle.objects.store import Problem

_LOGGED_HINT = "heddle fetch may bring it; only the log remembers it, and nothing needs it"


class Database:
    """The tables of one repository. Every changing method is one transaction and logs what it moved.

    Args:
        path: ``heddle.db``; opened at first use.

    Every method may raise StorageError (damaged, unreadable), Busy (locked for too long) and OtherFormat.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection = Connection(path, version=FORMAT)

    @staticmethod
    def create(path: Path, *, object_format: str, thread: str, state: ObjectID | None) -> None:
        """Write a new database to ``path``, which must not exist, with HEAD on ``thread`` at ``state``.

        The file is complete and closed on return; the caller makes it durable and gives it its name.

        Raises:
            StorageError: it can't be written.
        """
        with _new_file(path) as connection:
            now_ns = time.time_ns()
            facts = [("object_format", object_format), ("created_ns", str(now_ns))]
            connection.executemany("INSERT INTO meta VALUES (?, ?)", facts)
            log = _Log(connection, "init", None, "")
            _insert_thread(log, thread, state)
            connection.execute("INSERT INTO head VALUES (1, ?)", (thread,))
            log.add("head", "HEAD", None, thread)
            connection.execute("INSERT INTO worktree VALUES (1, ?)", (_text(state),))

    @staticmethod
    def write(path: Path, rows: Mapping[str, Iterable[tuple[Any, ...]]]) -> None:
        """Write a new database of these rows to ``path``, which must not exist; as ``create``.

        Rows that the tables do not take are left out.
        """
        with _new_file(path) as connection:
            for table, values in rows.items():
                for row in values:
                    places = ", ".join("?" * len(row))
                    connection.execute(f"INSERT OR IGNORE INTO {table} VALUES ({places})", row)

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        self._connection.close()

    @contextmanager
    def at_one_moment(self) -> Iterator[None]:
        """All that is read in the block, by this thread, is as it was at one moment; nothing can be changed in it."""
        with self._connection.reading():
            yield

    def object_format(self) -> str:
        """``sha1`` or ``sha256``."""
        return cast(str, self._one("SELECT value FROM meta WHERE key = 'object_format'")[0])

    # threads

    def threads(self) -> list[Thread]:
        """All threads by name."""
        rows = self._connection.query("SELECT * FROM threads ORDER BY name")
        return [Thread(name, _id(state), made, moved) for name, state, made, moved in rows]

    def thread(self, name: str) -> Thread | None:
        """The thread of this name, or None."""
        rows = self._connection.query("SELECT * FROM threads WHERE name = ?", (name,))
        return Thread(rows[0][0], _id(rows[0][1]), *rows[0][2:]) if rows else None

    def create_thread(
        self,
        name: str,
        state: ObjectID | None,
        *,
        who: str | None = None,
        message: str = "",
        on_head: bool = False,
    ) -> None:
        """Make a thread.

        Args:
            on_head: also put HEAD on it.

        Raises:
            ThreadExists: the name is taken.
        """
        with self._connection.transaction() as sql:
            if _thread_row(sql, name) is not None:
                raise ThreadExists(f"thread '{name}' exists", hint=f"heddle thread show {name}")
            _insert_thread(_Log(sql, "thread-create", who, message), name, state)
            if on_head:
                _put_head(sql, name, who, "switch")

    def rename_thread(
        self, old: str, new: str, *, who: str | None = None, overlay_move: tuple[str, str] | None
    ) -> None:
        """Give a thread another name; HEAD and its overlay row follow.

        Args:
            overlay_move: the directory rename under ``overlays/`` that goes with it, recorded to be done.

        Raises:
            ThreadNotFound: there is no thread ``old``.
            ThreadExists: ``new`` is taken.
        """
        with self._connection.transaction() as sql:
            state = _existing_thread(sql, old)
            if _thread_row(sql, new) is not None:
                raise ThreadExists(f"thread '{new}' exists", hint=f"heddle thread show {new}")
            sql.execute("UPDATE threads SET name = ? WHERE name = ?", (new, old))
            sql.execute("DELETE FROM overlays WHERE thread = ?", (new,))
            sql.execute("UPDATE overlays SET thread = ? WHERE thread = ?", (new, old))
            log = _Log(sql, "thread-rename", who, f"{old} is now {new}")
            log.add("thread", old, state, None)
            log.add("thread", new, None, state)
            if _head(sql) == old:
                sql.execute("UPDATE head SET thread = ?", (new,))
                log.add("head", "HEAD", old, new)
            _promise_move(sql, overlay_move)

    def delete_thread(
        self, name: str, *, who: str | None = None, overlay_move: tuple[str, str] | None
    ) -> None:
        """Forget a thread's name; its states stay and the operation log keeps which it was at.

        Args:
            overlay_move: the directory rename under ``overlays/`` that goes with it, recorded to be done.

        Raises:
            ThreadNotFound: there is no such thread.
            DataError: HEAD is on it.
        """
        with self._connection.transaction() as sql:
            state = _existing_thread(sql, name)
            if _head(sql) == name:
                raise DataError(
                    f"thread '{name}' is the one HEAD is on", hint="heddle switch to another first"
                )
            sql.execute("DELETE FROM threads WHERE name = ?", (name,))
            sql.execute("DELETE FROM overlays WHERE thread = ?", (name,))
            _Log(sql, "thread-delete", who, "").add("thread", name, state, None)
            _promise_move(sql, overlay_move)

    def publish(
        self,
        *,
        thread: str,
        expected: ObjectID | None,
        new: ObjectID,
        change_id: str,
        kind: str,
        who: str | None,
        message: str,
        overlay_base: bool = False,
        worktree_base: bool = False,
    ) -> None:
        """Move a thread from ``expected`` to ``new``: the commit point of every capture.

        Args:
            overlay_base: also record that the thread's overlay is now relative to ``new``.
            worktree_base: also record that the working directory is now at ``new``.

        Raises:
            ThreadNotFound: the thread is gone.
            ThreadMoved: it is not at ``expected``; nothing was changed.
        """
        with self._connection.transaction() as sql:
            found = _existing_thread(sql, thread)
            if found != _text(expected):
                raise ThreadMoved(
                    f"thread '{thread}' moved from {_short(_text(expected))} to {_short(found)} "
                    "while this change was being recorded",
                    hint="nothing was lost; look at heddle log, then run the command again",
                )
            log = _Log(sql, kind, who, message)
            values = (_text(new), log.time_ns, thread)
            sql.execute("UPDATE threads SET state = ?, updated_ns = ? WHERE name = ?", values)
            change = (change_id, _text(new), log.time_ns)
            sql.execute("INSERT OR REPLACE INTO changes VALUES (?, ?, ?)", change)
            log.add("thread", thread, found, _text(new))
            if overlay_base:
                sql.execute("INSERT OR REPLACE INTO overlays VALUES (?, ?)", (thread, _text(new)))
            if worktree_base:
                sql.execute("UPDATE worktree SET base = ?", (_text(new),))

    # markers

    def markers(self) -> list[Marker]:
        """All markers by name."""
        rows = self._connection.query("SELECT * FROM markers ORDER BY name")
        return [Marker(row[0], _known_id(row[1]), row[2], row[3]) for row in rows]

    def marker(self, name: str) -> Marker | None:
        """The marker of this name, or None."""
        rows = self._connection.query("SELECT * FROM markers WHERE name = ?", (name,))
        return Marker(rows[0][0], _known_id(rows[0][1]), *rows[0][2:]) if rows else None

    def create_marker(
        self, name: str, state: ObjectID, *, who: str | None = None, message: str = ""
    ) -> None:
        """Make a marker.

        Raises:
            MarkerExists: the name is taken; markers never move.
        """
        with self._connection.transaction() as sql:
            if sql.execute("SELECT 1 FROM markers WHERE name = ?", (name,)).fetchone():
                raise MarkerExists(f"marker '{name}' exists", hint=f"heddle marker delete {name}")
            log = _Log(sql, "marker-create", who, message)
            values = (name, _text(state), log.time_ns, message)
            sql.execute("INSERT INTO markers VALUES (?, ?, ?, ?)", values)
            log.add("marker", name, None, _text(state))

    def delete_marker(self, name: str, *, who: str | None = None) -> None:
        """Forget a marker's name; the operation log keeps which state it named.

        Raises:
            MarkerNotFound: there is no such marker.
        """
        with self._connection.transaction() as sql:
            row = sql.execute("SELECT state FROM markers WHERE name = ?", (name,)).fetchone()
            if row is None:
                raise MarkerNotFound(f"no marker '{name}'", hint="heddle marker list")
            sql.execute("DELETE FROM markers WHERE name = ?", (name,))
            _Log(sql, "marker-delete", who, "").add("marker", name, row[0], None)

    # HEAD and the plain working directory

    def head(self) -> str:
        """The name of the thread that HEAD is on."""
        return cast(str, self._one("SELECT thread FROM head")[0])

    def move_head(
        self, thread: str, *, base: ObjectID | None, who: str | None = None, kind: str = "switch"
    ) -> None:
        """Put HEAD on a thread and record that the working directory is at ``base``.

        Raises:
            ThreadNotFound: there is no such thread.
        """
        with self._connection.transaction() as sql:
            _existing_thread(sql, thread)
            sql.execute("UPDATE worktree SET base = ?", (_text(base),))
            _put_head(sql, thread, who, kind)

    def worktree_base(self) -> ObjectID | None:
        """The state the plain working directory was last at; None is the empty tree."""
        return _id(self._one("SELECT base FROM worktree")[0])

    def set_worktree_base(self, state: ObjectID | None) -> None:
        """Record what state the plain working directory is at."""
        with self._connection.transaction() as sql:
            sql.execute("UPDATE worktree SET base = ?", (_text(state),))

    def cached_directories(self) -> list[CachedDirectory]:
        """The whole stat cache of the plain working directory."""
        rows = self._connection.query("SELECT * FROM worktree_cache")
        return list(map(CachedDirectory._make, rows))

    def cache_directories(
        self,
        changed: Iterable[CachedDirectory],
        removed: Iterable[bytes] = (),
        *,
        wait_s: float = 0.1,
    ) -> bool:
        """Update the stat cache; a cache that can't be written is left as it was.

        Args:
            changed: rows to add or replace.
            removed: paths to forget.
            wait_s: how long to wait for another writer, in seconds.

        Returns:
            Whether it was written.
        """
        try:
            with self._connection.transaction(wait_s=wait_s) as sql:
                gone = [(path,) for path in removed]
                sql.executemany("DELETE FROM worktree_cache WHERE path = ?", gone)
                insert = "INSERT OR REPLACE INTO worktree_cache VALUES (?, ?, ?)"
                sql.executemany(insert, changed)
        except (Busy, StorageError):
            return False
        return True

    # overlays and mounts

    def overlay_base(self, thread: str) -> ObjectID | None:
        """The state a thread's overlay is relative to; None: the empty tree, or never mounted."""
        rows = self._connection.query("SELECT base FROM overlays WHERE thread = ?", (thread,))
        return _id(rows[0][0]) if rows else None

    def has_overlay(self, thread: str) -> bool:
        """Whether a base was ever recorded for this thread's overlay."""
        return bool(self._connection.query("SELECT 1 FROM overlays WHERE thread = ?", (thread,)))

    def set_overlay_base(self, thread: str, state: ObjectID | None) -> None:
        """Record what state a thread's overlay is relative to.

        Raises:
            ThreadNotFound: there is no such thread.
        """
        with self._connection.transaction() as sql:
            _existing_thread(sql, thread)
            sql.execute("INSERT OR REPLACE INTO overlays VALUES (?, ?)", (thread, _text(state)))

    def restore_overlay(
        self,
        thread: str,
        base: ObjectID | None,
        *,
        create: bool,
        who: str | None,
        overlay_move: tuple[str, str],
    ) -> None:
        """Record that an overlay relative to ``base`` is a thread's from now on.

        Args:
            create: make the thread, at ``base``.
            overlay_move: the directory rename under ``overlays/`` that goes with it, recorded to be done.

        Raises:
            ThreadExists: it is to be made, and the name is taken.
            ThreadMoved: it is not to be made, and is not at ``base``.
        """
        with self._connection.transaction() as sql:
            row = _thread_row(sql, thread)
            if create:
                if row is not None:
                    raise ThreadExists(f"thread '{thread}' exists", hint="run it again")
                _insert_thread(_Log(sql, "thread-create", who, "overlay restored"), thread, base)
            elif row is None or row[0] != _text(base):
                raise ThreadMoved(f"thread '{thread}' moved meanwhile", hint="heddle thread list")
            sql.execute("INSERT OR REPLACE INTO overlays VALUES (?, ?)", (thread, _text(base)))
            _promise_move(sql, overlay_move)

    def overlay_moves(self) -> list[tuple[str, str]]:
        """Directory renames under ``overlays/`` that were promised and perhaps not done: (source, target)."""
        return self._connection.query("SELECT source, target FROM overlay_moves")

    def finish_overlay_move(self, source: str) -> None:
        """Forget a promised directory rename that has been done."""
        with self._connection.transaction() as sql:
            sql.execute("DELETE FROM overlay_moves WHERE source = ?", (source,))

    def mounts(self) -> list[MountRecord]:
        """Every session that registered itself and was not removed, oldest first."""
        rows = self._connection.query("SELECT * FROM mounts ORDER BY since_ns, mountpoint")
        return [_mount_record(*row) for row in rows]

    def put_mount(self, record: MountRecord) -> None:
        """Register a session, in place of whatever was registered at its mountpoint."""
        import json

        row = (
            *(record.mountpoint, record.spec, record.thread, record.pid, record.start_ticks),
            *(record.boot_id, record.since_ns, int(record.read_only), int(record.allow_other)),
            *(record.socket, record.log, json.dumps(dict(record.agent))),
            int(record.made_mountpoint),
        )
        with self._connection.transaction() as sql:
            sql.execute(f"INSERT OR REPLACE INTO mounts VALUES ({','.join('?' * 13)})", row)

    def remove_mount(self, mountpoint: bytes, *, pid: int | None = None) -> None:
        """Forget the session registered at a mountpoint.

        Args:
            pid: only if it is this process, so that a late exit does not forget its successor.
        """
        where = "mountpoint = ? AND (? IS NULL OR pid = ?)"
        with self._connection.transaction() as sql:
            sql.execute(f"DELETE FROM mounts WHERE {where}", (mountpoint, pid, pid))

    # git

    def move_names(
        self,
        moves: Iterable[Move],
        *,
        kind: str,
        who: str | None = None,
        message: str = "",
        head: str | None = None,
        worktree: tuple[ObjectID | None] | None = None,
        refs: Mapping[bytes, bytes | None] | None = None,
        overlays: Mapping[str, ObjectID | None] | None = None,
        agents: Mapping[ObjectID, Agent] | None = None,
    ) -> None:
        """Move many names at once, or none: the commit point of following, importing and fetching from git.

        Args:
            moves: what goes where; a name that is missing is made. A thread that goes nowhere has to be there.
            head: put HEAD on this thread.
            worktree: (state,): the working directory is at this state now.
            refs: rows of ``refs`` to write; None: to delete.
            overlays: by thread, the state that its overlay is relative to from now on.
            agents: by state, which model made it, where the state itself does not say.

        Raises:
            ThreadMoved: a thread is not where it has to be; nothing was changed.
            MarkerExists: a marker is there already; nothing was changed.
        """
        with self._connection.transaction() as sql:
            log = _Log(sql, kind, who, message)
            for move in moves:
                (_move_thread if move.subject == "thread" else _make_marker)(log, move)
            if head is not None and head != _head(sql):
                _existing_thread(sql, head)
                log.add("head", "HEAD", _head(sql), head)
                sql.execute("UPDATE head SET thread = ?", (head,))
            if worktree is not None:
                sql.execute("UPDATE worktree SET base = ?", (_text(worktree[0]),))
            for id, agent in (agents or {}).items():
                made = (_text(id), agent.provider, agent.model, agent.session, agent.task)
                sql.execute("INSERT OR IGNORE INTO attributions VALUES (?, ?, ?, ?, ?)", made)
            for thread, state in (overlays or {}).items():
                sql.execute("INSERT OR REPLACE INTO overlays VALUES (?, ?)", (thread, _text(state)))
            for name, target in (refs or {}).items():
                sql.execute("DELETE FROM refs WHERE name = ?", (name,))
                if target is not None:
                    sql.execute("INSERT INTO refs VALUES (?, ?)", (name, target))

    def agent_of(self, state: ObjectID) -> Agent | None:
        """Which model made a state that does not say so itself; None when nobody knows."""
        sql = "SELECT provider, model, session, task FROM attributions WHERE state = ?"
        rows = self._connection.query(sql, (_text(state),))
        return Agent(*rows[0]) if rows else None

    def refs(self) -> dict[bytes, bytes]:
        """Refs of git that are neither threads nor markers, by full name."""
        return dict(self._connection.query("SELECT name, target FROM refs ORDER BY name"))

    def branches(self) -> dict[str, Branch]:
        """The threads that are branches in git, and where both were when they were last in step."""
        rows = self._connection.query("SELECT name, state, dropped FROM branches")
        return {name: Branch(_id(state), bool(dropped)) for name, state, dropped in rows}

    def git_seen(self) -> GitSeen | None:
        """What ``put_git_seen`` recorded, or None when branches and threads were never compared."""
        rows = self._connection.query("SELECT signature, git_head, head FROM git")
        return GitSeen(*rows[0]) if rows else None

    def is_in_step(self) -> bool:
        """Whether no thread that is a branch in git, and not HEAD, has moved since they were last compared."""
        return not self._connection.query(_OUT_OF_STEP)

    def put_git_seen(self, seen: GitSeen, branches: Mapping[str, Branch | None]) -> None:
        """Record that branches and threads were compared.

        Args:
            seen: what git was like before the comparison.
            branches: rows of ``branches`` to write; None: to delete.
        """
        with self._connection.transaction() as sql:
            sql.execute("INSERT OR REPLACE INTO git VALUES (1, ?, ?, ?)", seen)
            for name, branch in branches.items():
                sql.execute("DELETE FROM branches WHERE name = ?", (name,))
                if branch is not None:
                    row = (name, _text(branch.state), int(branch.dropped))
                    sql.execute("INSERT INTO branches VALUES (?, ?, ?)", row)

    # looking back

    def operations(self, *, limit: int | None = None, name: str | None = None) -> list[Operation]:
        """The operation log, newest first.

        Args:
            limit: at most this many.
            name: only those that moved the thread or marker of this name.
        """
        rows = self._connection.query(
            "SELECT * FROM operations WHERE ?1 IS NULL OR name = ?1 ORDER BY id DESC LIMIT ?2",
            (name, -1 if limit is None else limit),
        )
        return [Operation(*row) for row in rows]

    def changes(self, prefix: str) -> list[tuple[str, ObjectID]]:
        """Published states whose change id begins with ``prefix``, latest first: (change id, state)."""
        rows = self._connection.query(
            "SELECT change_id, state FROM changes WHERE change_id >= ? AND change_id < ? "
            "ORDER BY published_ns DESC",
            (prefix, prefix + "\U0010ffff"),
        )
        return [(change_id, _known_id(state)) for change_id, state in rows]

    def check(self, is_state: Callable[[ObjectID], bool]) -> list[Problem]:
        """Verify the file and that everything it names exists.

        Args:
            is_state: whether an id is a commit in the object store.
        """
        found = [
            self._problem(f"{self.path}: {row[0]}")
            for row in self._connection.query("PRAGMA integrity_check")
            if row[0] != "ok"
        ]
        if found:
            return found
        with self._connection.reading() as sql:
            if not seal.log_is_right(sql):
                found.append(self._problem(f"{self.path}: an operation is not what was written"))
        if self.thread(self.head()) is None:
            found.append(self._problem(f"HEAD is on thread '{self.head()}', which does not exist"))
        known: dict[ObjectID, bool] = {}
        # What git did, git may take back: a branch that was rewritten is dropped by its gc.
        by_git = {f"operation {each.id}" for each in self.operations() if each.kind == "git"}
        for where, state in self.named_states():
            if where in by_git:
                continue
            if state not in known:
                known[state] = is_state(state)
            if not known[state]:
                what = f"{where} names state {state.decode()}, which is not in the object store"
                logged = where.startswith("operation ")
                found.append(self._problem(what, _LOGGED_HINT if logged else REPAIR_HINT))
        return found

    def named_states(self) -> list[tuple[str, ObjectID]]:
        """Everything that names a state, newest operations last: (what it is, state)."""
        rows = self._connection.query(_NAMED_STATES)
        return [(where, _known_id(state)) for where, state in rows]

    @staticmethod
    def _problem(what: str, repair: str = REPAIR_HINT) -> Problem:
        from heddle.objects.store import Problem

        return Problem("database", what, repair)

    def named_ids(self) -> set[bytes]:
        """The hex id of every object that a row names, in whatever table, but for caches."""
        found = {_known_id(row[0]) for row in self._connection.query(_NAMED_IDS)}
        return found | {
            target for target in self.refs().values() if not target.startswith(b"ref: ")
        }

    def _one(self, sql: str) -> Any:
        rows = self._connection.query(sql)
        if not rows:
            raise StorageError(
                f"the database {self.path} is damaged: a row is missing", hint=REPAIR_HINT
            )
        return rows[0]


@contextmanager
def _new_file(path: Path) -> Iterator[sqlite3.Connection]:
    """One transaction in a new database, which is complete and closed after the block."""
    import sqlite3

    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version={FORMAT}; COMMIT")
        connection.execute("BEGIN")
        yield connection
        seal.renew(connection)
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise StorageError(f"can't write {path}: {error}") from error
    finally:
        connection.close()


_NAMED_STATES = """
SELECT 'thread ' || name AS what, state FROM threads WHERE state IS NOT NULL
UNION ALL SELECT 'marker ' || name, state FROM markers
UNION ALL SELECT 'the overlay of ' || thread, base FROM overlays WHERE base IS NOT NULL
UNION ALL SELECT 'the working directory', base FROM worktree WHERE base IS NOT NULL
UNION ALL SELECT 'operation ' || id, old FROM operations WHERE subject <> 'head' AND old IS NOT NULL
UNION ALL SELECT 'operation ' || id, new FROM operations WHERE subject <> 'head' AND new IS NOT NULL
"""

_NAMED_IDS = f"""
SELECT state FROM ({_NAMED_STATES})
UNION SELECT state FROM changes
UNION SELECT state FROM branches WHERE state IS NOT NULL
"""

_OUT_OF_STEP = """
SELECT 1 FROM branches LEFT JOIN threads USING (name)
WHERE dropped <> (threads.name IS NULL) OR (NOT dropped AND branches.state IS NOT threads.state)
UNION ALL SELECT 1 FROM git, head WHERE git.head <> head.thread LIMIT 1
"""


class _Log:
    """The operation rows of one transaction: they share a kind, a maker and a time."""

    def __init__(self, sql: sqlite3.Connection, kind: str, who: str | None, message: str) -> None:
        self.sql = sql
        self._shared = (kind, who and _as_text(who), _as_text(message))
        last = sql.execute("SELECT time_ns FROM operations ORDER BY id DESC LIMIT 1").fetchone()
        self.time_ns = max(time.time_ns(), last[0] + 1 if last else 0)

    def add(self, subject: str, name: str, old: str | None, new: str | None) -> None:
        kind, who, message = self._shared
        self.sql.execute(
            "INSERT INTO operations (time_ns, kind, subject, name, old, new, who, message) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (self.time_ns, kind, subject, name, old, new, who, message),
        )


def _as_text(words: str) -> str:
    """Words for people: bytes that were not UTF-8, which SQLite can't hold as text, become ``?``."""
    return words.encode("utf-8", "replace").decode()


def _insert_thread(log: _Log, name: str, state: ObjectID | None) -> None:
    values = (name, _text(state), log.time_ns, log.time_ns)
    log.sql.execute("INSERT INTO threads VALUES (?, ?, ?, ?)", values)
    log.add("thread", name, None, _text(state))


def _move_thread(log: _Log, move: Move) -> None:
    row = _thread_row(log.sql, move.name)
    found = row[0] if row else None
    if found != _text(move.old):
        raise ThreadMoved(
            f"thread '{move.name}' moved from {_short(_text(move.old))} to {_short(found)} meanwhile",
            hint="nothing was changed; run it again",
        )
    if row is None:
        _insert_thread(log, move.name, move.new)
        return
    if move.new == move.old:
        return
    values = (_text(move.new), log.time_ns, move.name)
    log.sql.execute("UPDATE threads SET state = ?, updated_ns = ? WHERE name = ?", values)
    log.add("thread", move.name, found, _text(move.new))


def _make_marker(log: _Log, move: Move) -> None:
    if log.sql.execute("SELECT 1 FROM markers WHERE name = ?", (move.name,)).fetchone():
        raise MarkerExists(f"marker '{move.name}' exists", hint=f"heddle marker show {move.name}")
    log.sql.execute(
        "INSERT INTO markers VALUES (?, ?, ?, '')", (move.name, _text(move.new), log.time_ns)
    )
    log.add("marker", move.name, None, _text(move.new))


def _thread_row(sql: sqlite3.Connection, name: str) -> tuple[str | None] | None:
    row = sql.execute("SELECT state FROM threads WHERE name = ?", (name,)).fetchone()
    return cast("tuple[str | None] | None", row)


def _existing_thread(sql: sqlite3.Connection, name: str) -> str | None:
    """The state of a thread that has to exist."""
    row = _thread_row(sql, name)
    if row is None:
        raise ThreadNotFound(f"no thread '{name}'", hint="heddle thread list")
    return row[0]


def _head(sql: sqlite3.Connection) -> str:
    return cast(str, sql.execute("SELECT thread FROM head").fetchone()[0])


def _put_head(sql: sqlite3.Connection, thread: str, who: str | None, kind: str) -> None:
    old = _head(sql)
    sql.execute("UPDATE head SET thread = ?", (thread,))
    _Log(sql, kind, who, "").add("head", "HEAD", old, thread)


def _promise_move(sql: sqlite3.Connection, move: tuple[str, str] | None) -> None:
    if move is not None:
        sql.execute("INSERT OR REPLACE INTO overlay_moves VALUES (?, ?)", move)


def _mount_record(*row: Any) -> MountRecord:
    import json

    record = MountRecord(*row)
    return record._replace(
        read_only=bool(record.read_only),
        allow_other=bool(record.allow_other),
        agent=json.loads(cast(str, record.agent)),
        made_mountpoint=bool(record.made_mountpoint),
    )


def _text(state: ObjectID | None) -> str | None:
    return None if state is None else state.decode("ascii")


def _id(text: str | None) -> ObjectID | None:
    return None if text is None else _known_id(text)


def _known_id(text: str) -> ObjectID:
    return cast("ObjectID", text.encode("ascii", "replace"))


def _short(state: str | None) -> str:
    return "no state" if state is None else state[:12]
