"""heddle.db: one transaction per change, also with many processes, crashes, forks and damage."""

from __future__ import annotations

import os
import pwd
import shutil
import sqlite3
import tempfile
import threading
from pathlib import Path

import pytest
from histories import ADA, History
from processes import killed_at, race, run_script

from heddle.errors import (
    Busy,
    DataError,
    MarkerExists,
    RepositoryTooNew,
    RepositoryTooOld,
    StorageError,
    ThreadExists,
    ThreadMoved,
    ThreadNotFound,
)
from heddle.repo import connection
from heddle.repo.connection import Connection
from heddle.repo.database import CachedDirectory, MountRecord
from heddle.repo.repository import Repository
from heddle.repo.schema import FORMAT

PUBLISH = """
import sys
from pathlib import Path
from heddle.repo.repository import Repository
repo = Repository.open(Path(sys.argv[1]))
old, new = (None if each == "-" else each.encode() for each in sys.argv[2:4])
repo.publish(thread="main", expected=old, new=new, kind="capture", message="m", attribution=None,
             overlay_base=True, worktree_base=True)
"""


def snapshot(repo: Repository) -> list[object]:
    """Everything that a publish may touch."""
    database = repo.database
    return [
        database.threads(),
        database.operations(),
        database.overlay_base("main"),
        database.worktree_base(),
    ]


def test_publish_moves_thread_and_bases_and_logs(repo, history):
    """One publish moves the thread, both bases and the log together."""
    new = history.commit("first")

    repo.publish(
        thread="main",
        expected=None,
        new=new,
        kind="capture",
        message="first\nmore",
        attribution=ADA,
        overlay_base=True,
        worktree_base=True,
    )

    assert repo.threads.get("main").state == new
    assert repo.overlay_base("main") == new
    assert repo.worktree_base() == new
    newest = repo.database.operations(limit=1)[0]
    assert (newest.kind, newest.subject, newest.name) == ("capture", "thread", "main")
    assert (newest.old, newest.new) == (None, new.decode())
    assert (newest.who, newest.message) == ("Ada <ada@example.org>", "first")


def test_publish_leaves_bases_alone_unless_asked(repo, history):
    """A publish that does not ask for it moves no base."""
    history.capture()

    assert repo.overlay_base("main") is None
    assert repo.worktree_base() is None


def test_publish_loser_changes_nothing_and_is_told(repo, history):
    """The second of two publishes from one state fails with both states named, and nothing of it stays."""
    base = history.capture(message="base")
    won = history.capture(message="won")
    lost = history.commit("lost", parents=[base])
    before = snapshot(repo)

    with pytest.raises(ThreadMoved) as caught:
        repo.publish(
            thread="main",
            expected=base,
            new=lost,
            kind="capture",
            message="lost",
            attribution=ADA,
            overlay_base=True,
            worktree_base=True,
        )

    assert snapshot(repo) == before
    assert base[:12].decode() in caught.value.message
    assert won[:12].decode() in caught.value.message
    assert (caught.value.exit_code, caught.value.retry) == (75, True)
    assert caught.value.hint


def test_publish_to_a_missing_thread(repo, history):
    """A thread that is gone can't be published to."""
    with pytest.raises(ThreadNotFound):
        repo.publish(
            thread="gone",
            expected=None,
            new=history.commit(),
            kind="capture",
            message="",
            attribution=None,
        )


def test_fifty_processes_on_fifty_threads(repo, history):
    """Fifty processes that publish at the same moment, each on its own thread, all succeed."""
    base = history.capture()
    states = {}
    for number in range(50):
        repo.threads.create(f"agent-{number}", base)
        states[number] = [base]
        for step in range(3):
            states[number].append(history.commit(f"{step}", parents=[states[number][-1]]))

    def publish(number: int) -> str:
        mine = Repository.open(repo.path)
        for old, new in zip(states[number], states[number][1:], strict=False):
            mine.publish(
                thread=f"agent-{number}",
                expected=old,
                new=new,
                kind="capture",
                message="",
                attribution=None,
            )
        return "done"

    assert race(50, publish) == ["done"] * 50
    assert {t.name: t.state for t in repo.threads if t.name != "main"} == {
        f"agent-{number}": chain[-1] for number, chain in states.items()
    }
    times = [operation.time_ns for operation in repo.database.operations()]
    assert len([op for op in repo.database.operations() if op.kind == "capture"]) == 1 + 150
    assert times == sorted(times, reverse=True)


def test_ten_processes_on_one_thread(repo, history):
    """Of ten processes that publish on one thread from one state, one wins and nine are told."""
    base = history.capture()
    states = [history.commit(f"{number}", parents=[base]) for number in range(10)]

    def publish(number: int) -> str:
        try:
            Repository.open(repo.path).publish(
                thread="main",
                expected=base,
                new=states[number],
                kind="capture",
                message="",
                attribution=None,
            )
        except ThreadMoved:
            return "moved"
        return "won"

    answers = race(10, publish)

    assert sorted(answers) == ["moved"] * 9 + ["won"]
    assert repo.threads.get("main").state == states[answers.index("won")]


def test_threads_of_one_process_share_a_database(repo, history):
    """Several Python threads publish through one Repository without losing or mixing anything."""
    base = history.capture()
    names = [f"agent-{number}" for number in range(8)]
    states = {name: history.commit(name, parents=[base]) for name in names}
    errors = []

    def publish(name: str) -> None:
        try:
            repo.threads.create(name, base)
            repo.publish(
                thread=name,
                expected=base,
                new=states[name],
                kind="capture",
                message="",
                attribution=None,
            )
        except Exception as error:
            errors.append(error)

    workers = [threading.Thread(target=publish, args=(name,)) for name in names]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)

    assert errors == []
    assert {name: repo.threads.get(name).state for name in names} == states


def test_crash_before_the_commit_leaves_the_old_content(repo, history):
    """A process killed just before the commit has changed nothing, and the next one succeeds."""
    old, new = history.capture(), history.commit("new")
    before = snapshot(repo)
    repo.close()

    killed_at("database.before-commit", PUBLISH, repo.path, old.decode(), new.decode())

    assert snapshot(repo) == before
    assert run_script(PUBLISH, repo.path, old.decode(), new.decode()).returncode == 0
    assert repo.threads.get("main").state == new


def test_crash_after_the_commit_leaves_the_new_content(repo, history):
    """A process killed just after the commit has changed everything."""
    old, new = history.capture(), history.commit("new")
    repo.close()

    killed_at("database.after-commit", PUBLISH, repo.path, old.decode(), new.decode())

    assert repo.threads.get("main").state == new
    assert repo.overlay_base("main") == repo.worktree_base() == new
    assert repo.database.operations(limit=1)[0].new == new.decode()


def test_fork_with_an_open_database(repo, history):
    """After a fork both sides can write, and neither undoes the other."""
    base = history.capture()

    def create(number: int) -> str:
        repo.threads.create(f"child-{number}", base)
        return "done"

    answers = race(3, create)
    repo.threads.create("parent", base)

    assert answers == ["done"] * 3
    names = [thread.name for thread in repo.threads]
    assert names == ["child-0", "child-1", "child-2", "main", "parent"]


def test_no_connection_survives_a_fork(repo):
    """The connection is closed before a fork, so SQLite's locks are never shared with a child."""
    assert repo.head == "main"

    open_in_child = race(1, lambda _: str(repo.database._connection._open))

    assert open_in_child == ["None"]


def test_a_failed_change_is_rolled_back_and_the_next_one_works(repo, history):
    """An error inside a transaction leaves nothing behind, not even the lock."""
    state = history.capture()
    before = repo.database.operations()

    with pytest.raises(ThreadExists):
        repo.threads.create("main", state)

    assert repo.database.operations() == before
    repo.threads.create("other", state)
    assert Repository.open(repo.path).threads.get("other").state == state


def test_a_locked_database_is_busy(repo, monkeypatch):
    """A writer that never ends makes others fail with exit code 75 and nothing changed."""
    monkeypatch.setattr(connection, "BUSY_WAIT_S", 0.05)
    other = sqlite3.connect(repo.database_path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        with (
            pytest.raises(Busy) as caught,
            repo.database._connection.transaction(wait_s=0.05),
        ):
            pass
    finally:
        other.close()

    assert (caught.value.exit_code, caught.value.retry) == (75, True)
    repo.threads.create("after")


def test_no_space_left(repo, history):
    """A database that can't grow is exit code 74, keeps what it had, and works again with space."""
    base = history.capture()
    limit = repo.database._connection.query("PRAGMA page_count")[0][0]
    repo.database._connection.query(f"PRAGMA max_page_count={limit}")

    made = 0
    with pytest.raises(StorageError, match="no space left") as caught:
        for made in range(1000):
            repo.threads.create(f"thread-{made}", base)

    assert caught.value.exit_code == 74
    assert len(repo.threads.list()) == 1 + made
    assert repo.fsck().problems == []
    repo.database._connection.query("PRAGMA max_page_count=1000000")
    repo.threads.create("after", base)


def test_a_newer_version_is_refused_and_left_alone(repo):
    """A database from a newer heddle is refused with exit code 78, and its bytes stay as they were."""
    repo.close()
    with sqlite3.connect(repo.database_path) as raw:
        raw.execute("PRAGMA user_version=99")
    raw.close()
    before = repo.database_path.read_bytes()
    listing = sorted(os.listdir(repo.heddle_dir))

    with pytest.raises(RepositoryTooNew) as caught:
        Repository.open(repo.path).threads.create("x")

    assert caught.value.exit_code == 78
    assert repo.database_path.read_bytes() == before
    assert sorted(os.listdir(repo.heddle_dir)) == listing


def test_an_earlier_version_is_refused_and_not_repaired(repo):
    """A database of format 1 is nobody's damage: it is refused with exit code 78, and says how to bring it along."""
    repo.close()
    with sqlite3.connect(repo.database_path) as raw:
        raw.execute("PRAGMA user_version=1")
    raw.close()
    before = repo.database_path.read_bytes()

    for attempt in (lambda it: it.threads.list(), lambda it: it.fsck()):
        with pytest.raises(RepositoryTooOld) as caught:
            attempt(Repository.open(repo.path))
        assert caught.value.exit_code == 78 and "git export" in caught.value.hint

    assert repo.database_path.read_bytes() == before


def test_a_newer_version_in_the_log_is_refused(repo):
    """A version that so far stands in the write-ahead log alone is noticed too."""
    assert repo.head == "main"
    other = sqlite3.connect(repo.database_path, isolation_level=None)
    other.execute("PRAGMA user_version=99")
    try:
        with pytest.raises(RepositoryTooNew):
            _ = Repository.open(repo.path).head
    finally:
        other.close()


@pytest.mark.parametrize(
    ("offset", "junk"), [(0, b"x" * 100), (60, b"\0\0\0\0"), (5000, os.urandom(40000))]
)
def test_damage_is_a_storage_error_with_a_hint(repo, offset, junk):
    """A damaged database is exit code 74 and says what to run."""
    repo.close()
    with repo.database_path.open("r+b") as file:
        file.seek(offset)
        file.write(junk)

    with pytest.raises(StorageError) as caught:
        _ = Repository.open(repo.path).threads.list(), repo.database.check(lambda _: True)[0]

    assert caught.value.exit_code == 74
    assert "fsck" in caught.value.hint
    assert str(repo.database_path) in caught.value.message


def test_a_truncated_database(repo):
    """A database cut short is exit code 74."""
    repo.close()
    os.truncate(repo.database_path, 50)

    with pytest.raises(StorageError):
        _ = Repository.open(repo.path).head


@pytest.fixture
def shared_directory():
    """A directory that every user can reach, unlike pytest's own."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def as_nobody(function) -> str:
    """Run a function in a child that may not write what root or this test made."""

    def unprivileged(_: int) -> str:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setuid(pwd.getpwnam("nobody").pw_uid)
        return function()

    return race(1, unprivileged)[0]


@pytest.mark.parametrize("log", ["none", "left by a crash"])
def test_a_read_only_repository_can_be_read(shared_directory, log):
    """Who may not write a repository can read it, with what a crash left in the write-ahead log."""
    repo = Repository.init(shared_directory / "repo")
    new = History(repo).commit("new")
    repo.close()
    if log == "none":
        run_script(PUBLISH, repo.path, "-", new.decode())
    else:
        killed_at("database.after-commit", PUBLISH, repo.path, "-", new.decode())
        Path(f"{repo.database_path}-shm").unlink()
    assert Path(f"{repo.database_path}-wal").exists() == (log != "none")
    tree = [repo.heddle_dir, *repo.heddle_dir.rglob("*")]
    for path in tree:
        path.chmod(0o555 if path.is_dir() else 0o444)

    def read() -> str:
        return Repository.open(repo.path).resolve("main").decode()

    def write() -> str:
        try:
            Repository.open(repo.path).threads.create("x")
        except StorageError as error:
            return error.message
        return "written"

    try:
        assert as_nobody(read) == new.decode()
        assert "can't be written" in as_nobody(write)
    finally:
        for path in tree:
            path.chmod(0o755)


def test_stat_cache_round_trip(repo):
    """The stat cache gives back what it was given, adds, replaces and forgets."""
    one = CachedDirectory(b"a/\xff", b"ab" * 20, bytes(range(256)))
    two = one._replace(path=b"", entries=b"")

    assert repo.database.cache_directories([one, two])
    assert sorted(repo.database.cached_directories()) == [two, one]
    assert repo.database.cache_directories([two._replace(entries=b"x")], removed=[b"a/\xff"])
    assert repo.database.cached_directories() == [two._replace(entries=b"x")]


def test_stat_cache_that_cannot_be_written_is_harmless(repo):
    """While another process writes, the cache is not written, says so and stays whole."""
    one = CachedDirectory(b"a", b"ab" * 20, b"entries")
    repo.database.cache_directories([one])
    other = sqlite3.connect(repo.database_path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        written = repo.database.cache_directories([one._replace(entries=b"")], wait_s=0.01)
    finally:
        other.close()

    assert not written
    assert repo.database.cached_directories() == [one]
    assert repo.database.cache_directories([one._replace(entries=b"")])


def mount_record(mountpoint: bytes, pid: int = 42) -> MountRecord:
    return MountRecord(
        mountpoint=mountpoint,
        spec="main",
        thread="main",
        pid=pid,
        start_ticks=1234,
        boot_id="b",
        since_ns=5,
        read_only=False,
        allow_other=True,
        socket=b"/run/s\xff",
        log=b"/l",
        agent={"agent.model": "m"},
        made_mountpoint=True,
    )


def test_mounts_round_trip(repo):
    """A registered session reads back as it was; a second at its place replaces it."""
    repo.database.put_mount(mount_record(b"/m\xff", pid=1))
    repo.database.put_mount(mount_record(b"/m\xff", pid=2))

    assert repo.database.mounts() == [mount_record(b"/m\xff", pid=2)]


def test_a_late_exit_does_not_forget_its_successor(repo):
    """Removing a mount by pid leaves another process's record."""
    repo.database.put_mount(mount_record(b"/m", pid=2))

    repo.database.remove_mount(b"/m", pid=1)
    assert repo.database.mounts() == [mount_record(b"/m", pid=2)]
    repo.database.remove_mount(b"/m", pid=2)
    assert repo.database.mounts() == []


def test_overlay_base(repo, history):
    """A base is recorded for a thread that exists, tells no base from the empty tree, and no other way."""
    state = history.capture()

    assert not repo.database.has_overlay("main")
    repo.set_overlay_base("main", None)
    assert (repo.database.has_overlay("main"), repo.overlay_base("main")) == (True, None)
    repo.set_overlay_base("main", state)
    assert repo.overlay_base("main") == state
    with pytest.raises(ThreadNotFound):
        repo.set_overlay_base("gone", state)


def test_the_log_names_whom_it_can(repo):
    """Changes of names are logged for the one given, else the one configured, else nobody."""
    repo.environment = {"GIT_CONFIG_NOSYSTEM": "1"}
    repo.threads.create("nobody")
    repo.environment = {"HEDDLE_PRINCIPAL_NAME": "Bob", "HEDDLE_PRINCIPAL_EMAIL": "b@example.org"}
    repo.threads.create("configured")
    repo.threads.create("given", attribution=ADA)

    assert [operation.who for operation in repo.database.operations(limit=3)] == [
        "Ada <ada@example.org>",
        "Bob <b@example.org>",
        None,
    ]


def test_move_head_logs_and_moves_the_worktree(repo, history):
    """HEAD and the working directory's base move together."""
    state = history.capture()
    repo.threads.create("other", state)

    repo.move_head("other", base=state)

    assert (repo.head, repo.current_thread, repo.worktree_base()) == ("other", "other", state)
    newest = repo.database.operations(limit=1)[0]
    assert (newest.kind, newest.subject, newest.old, newest.new) == (
        ("switch", "head", "main", "other")
    )
    with pytest.raises(ThreadNotFound):
        repo.move_head("gone", base=None)
    assert repo.head == "other"


def test_markers_never_move(repo, history):
    """A marker is made once; a second of its name is refused and the first stays."""
    first, second = history.capture(), history.capture()
    repo.markers.create("v1", first, message="one")

    with pytest.raises(MarkerExists):
        repo.markers.create("v1", second)

    assert repo.markers.get("v1").state == first
    repo.markers.delete("v1")
    assert repo.markers.list() == []
    kinds = [(op.kind, op.old, op.new) for op in repo.database.operations(name="v1")]
    assert kinds == [
        ("marker-delete", first.decode(), None),
        ("marker-create", None, first.decode()),
    ]


def test_operation_times_rise_though_the_clock_falls(repo, history, monkeypatch):
    """Operations stay in order when the clock is set back; rows of one transaction share their time."""
    state = history.capture()
    monkeypatch.setattr("heddle.repo.database.time.time_ns", lambda: 1)

    repo.threads.create("a", state)
    repo.threads.rename("a", "b")

    rename_to, rename_from, create, capture = repo.database.operations(limit=4)
    assert rename_to.time_ns == rename_from.time_ns == create.time_ns + 1
    assert create.time_ns == capture.time_ns + 1


def test_check_of_a_whole_database(repo, history):
    """A whole database has no problems."""
    history.capture()

    assert repo.database.check(repo.is_state) == []
    assert repo.fsck(full=True).problems == []


@pytest.mark.parametrize("where", ["thread", "marker", "overlay", "working directory", "operation"])
def test_check_finds_a_name_of_a_missing_state(repo, history, where):
    """Whatever names a state that is not there is found and named."""
    state = history.capture()
    repo.markers.create("v1", state)
    repo.set_overlay_base("main", state)
    repo.move_head("main", base=state)
    missing = b"0123" * 10
    sql = {
        "thread": "UPDATE threads SET state = ?",
        "marker": "UPDATE markers SET state = ?",
        "overlay": "UPDATE overlays SET base = ?",
        "working directory": "UPDATE worktree SET base = ?",
        "operation": "UPDATE operations SET old = ? WHERE kind = 'capture'",
    }[where]
    repo.close()
    with Connection(repo.database_path, version=FORMAT).transaction() as raw:
        raw.execute(sql, (missing.decode(),))
        raw.execute("DELETE FROM meta WHERE key = 'log_sum'")  # it is made again
    raw.close()

    problems = repo.fsck().problems

    assert [problem.kind for problem in problems] == ["database"]
    assert where in problems[0].what
    assert missing.decode() in problems[0].what


def test_check_finds_head_on_a_missing_thread(repo):
    """HEAD on a thread that does not exist is found."""
    repo.close()
    with Connection(repo.database_path, version=FORMAT).transaction() as raw:
        raw.execute("UPDATE head SET thread = 'gone'")
    raw.close()

    assert ["'gone'" in problem.what for problem in repo.database.check(repo.is_state)] == [True]


def test_check_finds_damage_inside_the_file(repo, history):
    """Damage that ordinary queries do not meet is found by the check."""
    for _ in range(50):
        history.capture()
    repo.close()
    with Connection(repo.database_path, version=FORMAT).transaction() as raw:
        find = "SELECT rootpage FROM sqlite_schema WHERE name = 'changes'"
        page = raw.execute(find).fetchone()[0]
    raw.close()
    with repo.database_path.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 8)

    assert repo.head == "main"
    assert repo.fsck().problems[0].kind == "database"


def test_deleting_heads_thread_is_refused(repo):
    """The thread that HEAD is on can't be deleted."""
    with pytest.raises(DataError):
        repo.threads.delete("main", True)

    assert repo.threads.get("main").name == "main"


def test_odd_paths(tmp_path, monkeypatch):
    """A repository in a directory with a name that URLs and UTF-8 can't hold works."""
    path = tmp_path / os.fsdecode(b"a?b#c%20 d\xff'")

    Repository.init(path).threads.create("x")

    assert "x" in Repository.open(path).threads


MAKE_THREAD = """
import sys
from pathlib import Path
from heddle.repo.repository import Repository
repo = Repository.open(Path(sys.argv[1]))
repo.threads.create("theirs", None)
"""


def test_the_log_of_a_connection_that_is_in_use(repo):
    """Another process that ends leaves the write-ahead log alone while we use it, whatever was closed here before.

    A cursor that somebody still holds keeps its connection open in SQLite, and all connections of a process have one
    lock: closing a descriptor of the file would drop it.
    """
    repo.database.threads()
    held = repo.database._connection._open.execute("SELECT 1 UNION SELECT 2")
    next(held)
    repo.database._connection.close()
    ours = Repository.open(repo.path)
    ours.threads.create("ours", None)
    log = Path(f"{repo.database_path}-wal")
    before = log.stat().st_ino

    run_script(MAKE_THREAD, repo.path)
    assert log.stat().st_ino == before
    assert {each.name for each in ours.database.threads()} >= {"ours", "theirs"}
    del held
