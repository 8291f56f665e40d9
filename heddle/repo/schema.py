"""What ``heddle.db`` holds: its tables, what each column means, and the rows as Python sees them.

Owns the schema and the records. The transactions that change them are ``database.py``'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

_NO_AGENT: Mapping[str, str] = MappingProxyType({})

FORMAT = 2
"""``PRAGMA user_version`` of the tables below; raised whenever an older heddle could misread them, or an overlay."""

# State ids are lower-case hex text (40 or 64 digits), NULL where there is no state. Times named ``_ns`` are
# nanoseconds since the epoch (UTC). Names of threads and markers are text as names.py allows them. Paths inside
# the repository and of the host are blobs, byte for byte.
#
# meta            facts fixed when the repository was made
#   key           'object_format' ('sha1' | 'sha256') or 'created_ns'
#
# head            one row: what HEAD means in the plain working directory
#   thread        a threads.name
#
# threads         the mutable names
#   state         the state it is at; NULL before its first capture
#   created_ns    when the name was made
#   updated_ns    when state last moved (created_ns before that)
#
# markers         the immutable names; a row is inserted or deleted, never updated
#   message       why, in the maker's words; '' when nothing was said
#
# changes         every published state by its change id, so that a change id needs no walk over the history
#   published_ns  when publish made it a thread's state; the latest is what the change id means
#
# operations      the log of everything that moved a thread, a marker or HEAD; only ever appended to
#   id            rises by one
#   time_ns       rises from transaction to transaction; rows of one transaction share it
#   kind          what was asked: 'capture', 'thread-create', 'thread-rename', 'thread-delete',
#                 'marker-create', 'marker-delete', 'switch', 'init', and what later commands add
#   subject       which kind of name moved: 'thread' | 'marker' | 'head'
#   name          the thread's or marker's name; 'HEAD' for head
#   old, new      state ids, or thread names where subject is 'head'; NULL: had none, or has none now
#   who           'Name <email>', with ' via provider/model' for an agent; NULL when nobody was named
#   message       one line for people; '' when nothing was said
#
# overlays        threads that have been mounted
#   thread        a threads.name
#   base          the state that .heddle/overlays/<thread>/upper is relative to; NULL is the empty tree
#
# overlay_moves   directory renames under .heddle/overlays that a committed transaction promised and that may not
#                 have happened yet; whoever sees a row finishes it and deletes it
#   source,target names relative to .heddle/overlays
#
# mounts          sessions, as they said when they began: a hint, the kernel and the processes decide
#   mountpoint    absolute host path
#   spec          the state spec it was mounted with
#   thread        the thread it writes to; NULL for a read-only mount of a state
#   pid           the session process
#   start_ticks   its start time in clock ticks since boot (field 22 of /proc/<pid>/stat)
#   boot_id       /proc/sys/kernel/random/boot_id of that boot
#   since_ns      when the mount first answered
#   read_only, allow_other  0 or 1
#   socket, log   host paths of its control socket and its log
#   agent         JSON object of attribution defaults given at the mount, keys as in attribution.py
#   made_mountpoint  0 or 1: whether the mountpoint's directory was made for the mount and goes with it
#
# worktree        one row: the plain working directory
#   base          the state it was last at; NULL is the empty tree
#
# worktree_cache  stat cache of the plain working directory, a row for each directory; may be dropped at any time
#   path          of the directory, relative to the working directory; empty for that itself
#   tree          hex id of the tree that the row remembers
#   entries       that tree's entries and what stat(2) said of each file; the layout is statcache.py's
#
# branches        threads that are branches of the git repository that this one lies on
#   name          of both; the thread may be gone
#   state         where both were when they were last in step; NULL: neither had a commit
#   dropped       1: the thread was deleted or renamed here, and the branch is left alone until it moves; else 0
#
# git             at most one row: git as it was when branches and threads were last compared
#   signature     HEAD, the loose branches and what stat(2) said of packed-refs (git/refs.py)
#   git_head      what git's HEAD was on: a full ref name, or a commit id where it was detached
#   head          the thread that HEAD was on
#
# attributions    which model made a commit that git wrote in a mount; the commit itself stays as git made it
#   state         the commit's id
#   provider, model, session, task  as in heddle.attribution.Agent; NULL: nobody said
#
# refs            refs that came from git repositories and that no thread or marker can stand for
#   name          full name, as 'refs/remotes/origin/main'; byte for byte
#   target        hex id, or 'ref: ' and a full name; of a marker with an annotated tag, the tag's id
SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE head (id INTEGER PRIMARY KEY CHECK (id = 1), thread TEXT NOT NULL);
CREATE TABLE threads (
    name TEXT PRIMARY KEY, state TEXT, created_ns INTEGER NOT NULL, updated_ns INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE markers (
    name TEXT PRIMARY KEY, state TEXT NOT NULL, created_ns INTEGER NOT NULL, message TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE changes (
    change_id TEXT NOT NULL, state TEXT NOT NULL, published_ns INTEGER NOT NULL,
    PRIMARY KEY (change_id, state)
) WITHOUT ROWID;
CREATE TABLE operations (
    id INTEGER PRIMARY KEY AUTOINCREMENT, time_ns INTEGER NOT NULL, kind TEXT NOT NULL,
    subject TEXT NOT NULL CHECK (subject IN ('thread', 'marker', 'head')), name TEXT NOT NULL,
    old TEXT, new TEXT, who TEXT, message TEXT NOT NULL
);
CREATE TABLE overlays (thread TEXT PRIMARY KEY, base TEXT) WITHOUT ROWID;
CREATE TABLE overlay_moves (source TEXT PRIMARY KEY, target TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE mounts (
    mountpoint BLOB PRIMARY KEY, spec TEXT NOT NULL, thread TEXT, pid INTEGER NOT NULL,
    start_ticks INTEGER NOT NULL, boot_id TEXT NOT NULL, since_ns INTEGER NOT NULL,
    read_only INTEGER NOT NULL, allow_other INTEGER NOT NULL, socket BLOB NOT NULL, log BLOB NOT NULL,
    agent TEXT NOT NULL, made_mountpoint INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE worktree (id INTEGER PRIMARY KEY CHECK (id = 1), base TEXT);
CREATE TABLE worktree_cache (path BLOB PRIMARY KEY, tree BLOB NOT NULL, entries BLOB NOT NULL);
CREATE TABLE branches (name TEXT PRIMARY KEY, state TEXT, dropped INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE git (
    id INTEGER PRIMARY KEY CHECK (id = 1), signature BLOB NOT NULL, git_head TEXT NOT NULL,
    head TEXT NOT NULL
);
CREATE TABLE attributions (
    state TEXT PRIMARY KEY, provider TEXT, model TEXT, session TEXT, task TEXT
) WITHOUT ROWID;
CREATE TABLE refs (name BLOB PRIMARY KEY, target BLOB NOT NULL) WITHOUT ROWID;
"""


class Thread(NamedTuple):
    """A mutable name of a state; ``state`` is None before its first capture."""

    name: str
    state: ObjectID | None
    created_ns: int
    updated_ns: int


class Marker(NamedTuple):
    """An immutable name of a state."""

    name: str
    state: ObjectID
    created_ns: int
    message: str


class Operation(NamedTuple):
    """One row of the operation log; the columns are explained above the schema."""

    id: int
    time_ns: int
    kind: str
    subject: str
    name: str
    old: str | None
    new: str | None
    who: str | None
    message: str


class MountRecord(NamedTuple):
    """What a session said of itself when it began; the columns are explained above the schema."""

    mountpoint: bytes
    spec: str
    thread: str | None
    pid: int
    start_ticks: int
    boot_id: str
    since_ns: int
    read_only: bool
    allow_other: bool
    socket: bytes
    log: bytes
    agent: Mapping[str, str] = _NO_AGENT
    made_mountpoint: bool = False


class Branch(NamedTuple):
    """A thread that is a branch in git; see the schema."""

    state: ObjectID | None
    dropped: bool = False


class GitSeen(NamedTuple):
    """Git as it was when branches and threads were last compared; see the schema."""

    signature: bytes
    git_head: str
    head: str


class Move(NamedTuple):
    """A thread or a marker that goes from one state to another.

    Attributes:
        subject: ``thread`` or ``marker``.
        name: its name.
        old: where it has to be; None: without a state, or missing, in which case it is made.
        new: where it goes.
    """

    subject: str
    name: str
    old: ObjectID | None
    new: ObjectID | None


class CachedDirectory(NamedTuple):
    """A directory of the working directory as the stat cache remembers it; see the schema."""

    path: bytes
    tree: ObjectID
    entries: bytes
