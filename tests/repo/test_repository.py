"""Making, finding and opening repositories, and what threads do beyond their database row."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from processes import killed_at, race, run_script

from heddle.errors import (
    CannotCreate,
    DataError,
    InvalidName,
    MarkerNotFound,
    NotARepository,
    PathNotFound,
    StateNotFound,
    StorageError,
    ThreadExists,
    ThreadNotFound,
    UnsavedChanges,
    UsageError,
)
from heddle.repo.locks import file_locked_nowait
from heddle.repo.names import overlay_dir
from heddle.repo.repository import Repository

INIT = """
import sys
from pathlib import Path
from heddle.repo.repository import Repository
Repository.init(Path(sys.argv[1]))
"""
RENAME = """
import sys
from pathlib import Path
from heddle.repo.repository import Repository
Repository.open(Path(sys.argv[1])).threads.rename("a", "b")
"""
DELETE = RENAME.replace('rename("a", "b")', 'delete("a", True)')


def test_init(tmp_path):
    """A new repository has HEAD on main, no state, and everything in its place."""
    repo = Repository.init(tmp_path / "new" / "repo")

    assert (repo.created, repo.head, repo.object_format, repo.git) == (True, "main", "sha1", None)
    assert repo.threads.get("main").state is None
    assert [operation.kind for operation in repo.database.operations()] == ["init", "init"]
    assert sorted(os.listdir(repo.heddle_dir)) == ["heddle.db", "objects", "overlays"] or set(
        os.listdir(repo.heddle_dir)
    ) == {"heddle.db", "heddle.db-wal", "heddle.db-shm", "objects", "overlays"}


def test_init_twice_is_harmless(repo, history):
    """A second init opens what is there and changes nothing."""
    state = history.capture()

    again = Repository.init(repo.path)

    assert not again.created
    assert again.threads.get("main").state == state


def test_init_with_another_object_format(tmp_path):
    """sha256 is kept; asking an existing repository for another format is refused; so is an unknown one."""
    Repository.init(tmp_path, object_format="sha256")

    assert Repository.open(tmp_path).object_format == "sha256"
    assert not Repository.init(tmp_path, object_format="sha256").created
    with pytest.raises(DataError):
        Repository.init(tmp_path, object_format="sha1")
    with pytest.raises(UsageError):
        Repository.init(tmp_path / "x", object_format="md5")
    assert not (tmp_path / "x").exists()


def test_init_where_nothing_can_be_made(tmp_path):
    """A file in the way is exit code 73."""
    (tmp_path / "file").touch()

    with pytest.raises(CannotCreate):
        Repository.init(tmp_path / "file")


def test_init_without_space(tmp_path):
    """A disk that is full, here a limit on file sizes, is an error of ours; with space init succeeds."""
    script = "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    script += "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))" + INIT

    failed = run_script(script, tmp_path)

    assert "heddle.errors.StorageError: can't write" in failed.stderr
    with pytest.raises(NotARepository):
        Repository.open(tmp_path)
    assert Repository.init(tmp_path).fsck().problems == []


def test_init_inside_heddle(repo):
    """A repository inside another one's .heddle is refused."""
    with pytest.raises(DataError):
        Repository.init(repo.heddle_dir / "overlays")


@pytest.mark.parametrize("point", ["repository.before-database-rename", "atomic.before-rename"])
def test_init_that_was_killed(tmp_path, point):
    """A killed init leaves no repository, and the next init makes a whole one."""
    if point == "atomic.before-rename":  # git's objects are recorded through atomic.py
        subprocess.run(["git", "init", "-q", "-b", "main", tmp_path], check=True)
    killed_at(point, INIT, tmp_path)

    with pytest.raises(NotARepository):
        Repository.open(tmp_path)
    repo = Repository.init(tmp_path)
    assert repo.created
    assert repo.head == "main"
    assert repo.fsck().problems == []


def test_init_by_many_processes_at_once(tmp_path):
    """Of many inits at the same moment one makes the repository and all can use it."""

    def init(number: int) -> str:
        repo = Repository.init(tmp_path)
        repo.threads.create(f"t{number}")
        return str(repo.created)

    answers = race(10, init)

    assert sorted(answers) == ["False"] * 9 + ["True"]
    assert len(Repository.open(tmp_path).threads.list()) == 11


def test_open_and_discover(repo, tmp_path):
    """open wants the exact directory; discover walks up, also through symbolic links."""
    below = repo.path / "a" / "b"
    below.mkdir(parents=True)
    (tmp_path / "link").symlink_to(below)

    assert Repository.open(repo.path).path == repo.path
    assert Repository.discover(below).path == repo.path
    assert Repository.discover(tmp_path / "link").path == repo.path
    for opened, place in [(Repository.open, below), (Repository.discover, tmp_path)]:
        with pytest.raises(NotARepository) as caught:
            opened(place)
        assert (caught.value.exit_code, caught.value.hint) == (78, "heddle init")


def test_objects_without_a_database(repo, history):
    """A repository whose database vanished is an error, never taken for no or a new repository."""
    history.capture()
    repo.close()
    repo.database_path.unlink()

    for attempt in (Repository.open, Repository.discover, Repository.init):
        with pytest.raises(StorageError):
            attempt(repo.path)
    assert not repo.database_path.exists()


def test_opening_reads_nothing(tmp_path):
    """open only looks whether the database is there."""
    (tmp_path / ".heddle").mkdir()
    (tmp_path / ".heddle" / "heddle.db").write_bytes(b"not a database")

    repo = Repository.open(tmp_path)

    with pytest.raises(StorageError):
        _ = repo.head
    assert [problem.kind for problem in repo.fsck().problems] == ["database"]


def test_common_imports_stay_light(tmp_path):
    """Reading HEAD, a thread and its state imports neither dulwich's store nor anything of the network."""
    script = (
        f"path = {str(tmp_path / 'light')!r}"
        + """
import sys
from pathlib import Path
from heddle.repo.repository import Repository
repo = Repository.init(Path(path))
assert repo.head == "main" and not repo.threads.get("main").state and not repo.is_state(b"0" * 40)
heavy = {"dulwich.object_store", "dulwich.repo", "asyncio", "trio", "typer", "subprocess", "tomllib",
         "json.decoder.scanner", "multiprocessing", "http", "email", "rich", "urllib.request"}
print(sorted(heavy & set(sys.modules)))
"""
    )
    done = run_script(script)

    assert done.stdout.strip() == "[]", done.stderr


def test_state_of_something_else(repo, history):
    """Only commits are states."""
    tree = repo.state(history.commit(files={b"f": b""})).tree

    with pytest.raises(StateNotFound):
        repo.state(tree)
    assert not repo.is_state(tree)


def test_lookup_path(repo, history):
    """A path gives mode and id; the empty path the root; what is not there says so."""
    state = history.capture(files={b"d/e/f": b"x", b"g": b"y"})

    mode, blob = repo.lookup_path("HEAD", b"d/e/f")
    assert (mode, repo.store.get_raw(blob)[1]) == (0o100644, b"x")
    assert repo.lookup_path(state, b"") == (0o040000, repo.state(state).tree)
    assert repo.lookup_path(state, b"d/e")[0] == 0o040000
    for missing in (b"x", b"g/h", b"d/e/f/x"):
        with pytest.raises(PathNotFound):
            repo.lookup_path(state, missing)


# threads


def unsaved(repo: Repository, thread: str, content: str = "work") -> Path:
    """Give a thread an overlay with an unsaved file."""
    overlay = overlay_dir(repo, thread)
    (overlay / "upper").mkdir(parents=True)
    (overlay / "upper" / "file").write_text(content)
    return overlay


def test_create_thread(repo, history):
    """A thread is made at a state or without one; a bad name, a taken one and a strange state are refused."""
    state = history.capture()

    assert repo.threads.create("a/b", state).state == state
    assert repo.threads.create("empty").state is None
    assert [thread.name for thread in repo.threads] == ["a/b", "empty", "main"]
    with pytest.raises(ThreadExists):
        repo.threads.create("a/b")
    with pytest.raises(InvalidName):
        repo.threads.create("a..b")
    with pytest.raises(StateNotFound):
        repo.threads.create("c", b"0" * 40)
    with pytest.raises(StateNotFound):
        repo.threads.create("c", repo.state(state).tree)
    assert "c" not in repo.threads


def test_rename_takes_head_and_overlay_along(repo, history):
    """Renaming keeps the state, moves HEAD, the overlay's row and its files."""
    state = history.capture()
    repo.set_overlay_base("main", state)
    unsaved(repo, "main")

    renamed = repo.threads.rename("main", "trunk/one")

    assert (renamed.name, renamed.state, repo.head) == ("trunk/one", state, "trunk/one")
    assert repo.overlay_base("trunk/one") == state
    assert (overlay_dir(repo, "trunk/one") / "upper" / "file").read_text() == "work"
    assert not overlay_dir(repo, "main").exists()
    with pytest.raises(ThreadNotFound):
        repo.threads.get("main")


def test_rename_refusals(repo):
    """A missing thread, a taken and an invalid name are refused."""
    repo.threads.create("a")

    with pytest.raises(ThreadNotFound):
        repo.threads.rename("x", "y")
    with pytest.raises(ThreadExists):
        repo.threads.rename("a", "main")
    with pytest.raises(InvalidName):
        repo.threads.rename("a", "-a")


@pytest.mark.parametrize("change", ["rename", "delete"])
def test_a_mounted_thread_stays(repo, change):
    """While somebody holds a thread's overlay open it can be neither renamed nor deleted."""
    repo.threads.create("a")
    overlay = unsaved(repo, "a")

    with file_locked_nowait(overlay / "lock") as free, pytest.raises(DataError) as caught:
        assert free
        if change == "rename":
            repo.threads.rename("a", "b")
        else:
            repo.threads.delete("a", True)

    assert "mounted" in caught.value.message
    assert caught.value.hint == "heddle unmount a"
    assert (overlay / "upper" / "file").read_text() == "work"
    assert [thread.name for thread in repo.threads] == ["a", "main"]


def test_delete_refuses_unsaved_changes(repo):
    """A thread with unsaved changes is only deleted by force, and then they are put aside."""
    repo.threads.create("a")
    overlay = unsaved(repo, "a")

    with pytest.raises(UnsavedChanges):
        repo.threads.delete("a")
    assert (overlay / "upper" / "file").exists()

    parked = repo.threads.delete("a", True)
    assert (parked / "upper" / "file").read_text() == "work"
    assert parked.parent == repo.heddle_dir / "overlays" / ".parked"
    assert "a" not in repo.threads
    assert repo.fsck().problems == []


def test_delete_asks_the_repository_what_is_unsaved(repo, monkeypatch):
    """A repository that knows better decides what is unsaved; the overlay is put aside all the same."""
    repo.threads.create("a")
    unsaved(repo, "a")
    monkeypatch.setattr(repo, "has_unsaved", lambda thread, also_left_out: not also_left_out)

    parked = repo.threads.delete("a")

    assert (parked / "upper" / "file").exists()


def test_delete_without_an_overlay(repo):
    """A thread that was never mounted leaves nothing."""
    repo.threads.create("a")

    assert repo.threads.delete("a") is None
    with pytest.raises(ThreadNotFound):
        repo.threads.delete("a")


def test_a_new_thread_inherits_no_old_overlay(repo):
    """An overlay directory that belongs to no thread is put aside when its name is given again."""
    overlay = unsaved(repo, "a", "of nobody")

    repo.threads.create("a")

    assert not overlay.exists()
    kept = list((repo.heddle_dir / "overlays" / ".parked").glob("*/upper/file"))
    assert [path.read_text() for path in kept] == ["of nobody"]


@pytest.mark.parametrize("point", ["threads.before-overlay-move", "threads.after-overlay-move"])
@pytest.mark.parametrize("change", ["rename", "delete"])
def test_a_crash_between_the_row_and_the_overlay(repo, point, change):
    """A rename or a deletion killed after its commit is finished by whoever comes next."""
    repo.threads.create("a")
    unsaved(repo, "a")
    repo.close()

    killed_at(point, RENAME if change == "rename" else DELETE, repo.path)

    after = Repository.open(repo.path)
    after.threads.list()
    assert not overlay_dir(after, "a").exists()
    if change == "rename":
        assert (overlay_dir(after, "b") / "upper" / "file").read_text() == "work"
        assert [thread.name for thread in after.threads] == ["b", "main"]
    else:
        kept = list((after.heddle_dir / "overlays" / ".parked").glob("*-a/upper/file"))
        assert [path.read_text() for path in kept] == ["work"]
        assert "a" not in after.threads
    assert after.database.overlay_moves() == []


@pytest.mark.parametrize("change", ["rename", "delete"])
def test_a_crash_before_the_row(repo, change):
    """A rename or a deletion killed before its commit has moved nothing."""
    repo.threads.create("a")
    overlay = unsaved(repo, "a")
    repo.close()

    killed_at("database.before-commit", RENAME if change == "rename" else DELETE, repo.path)

    assert [thread.name for thread in Repository.open(repo.path).threads] == ["a", "main"]
    assert (overlay / "upper" / "file").read_text() == "work"


def test_fsck_finds_an_overlay_of_nobody(repo):
    """An overlay without a thread is a problem that says where it is."""
    overlay = unsaved(repo, "ghost")

    assert [str(overlay) in problem.what for problem in repo.fsck().problems] == [True]


def test_missing_marker(repo):
    """A marker that does not exist says so."""
    with pytest.raises(MarkerNotFound):
        repo.markers.get("v1")
    with pytest.raises(MarkerNotFound):
        repo.markers.delete("v1")


# on top of git


def git(directory: Path, *arguments: str) -> str:
    """Run git with a principal and without anybody's configuration."""
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("GIT_")},
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_NOSYSTEM": "1",
    }
    who = ["-c", "user.name=G", "-c", "user.email=g@example.org", "-c", "init.defaultBranch=main"]
    done = subprocess.run(
        ["git", *who, *arguments],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    """A git checkout on branch ``work/one`` with two commits and a tag."""
    path = tmp_path / "checkout"
    path.mkdir()
    git(path, "init", "-q", "-b", "work/one")
    for number in (1, 2):
        (path / "file").write_text(f"{number}")
        git(path, "add", "-A")
        git(path, "commit", "-q", "-m", f"commit {number}")
    git(path, "tag", "-a", "v1", "-m", "one", "HEAD~1")
    git(path, "update-ref", "refs/remotes/origin/x", "HEAD~1")
    return path


def test_init_in_a_git_checkout(checkout):
    """The repository starts on git's branch and commit, reads git's objects, and git does not see it."""
    repo = Repository.init(checkout)

    head = git(checkout, "rev-parse", "HEAD").encode()
    assert repo.git.path == checkout / ".git"
    assert (repo.head, repo.resolve("HEAD"), repo.worktree_base()) == ("work/one", head, head)
    assert [state.message for state in repo.log()] == ["commit 2\n", "commit 1\n"]
    assert repo.lookup_path("HEAD", b"file")[0] == 0o100644
    assert git(checkout, "status", "--porcelain") == ""
    assert Repository.init(checkout).created is False
    assert (checkout / ".git" / "info" / "exclude").read_text().count(".heddle/") == 1


def test_a_git_checkout_can_be_moved(checkout, tmp_path):
    """After the checkout's directory was renamed, git's objects are still found."""
    state = Repository.init(checkout).resolve("HEAD")

    checkout.rename(tmp_path / "elsewhere")

    moved = Repository.open(tmp_path / "elsewhere")
    assert moved.resolve("HEAD") == state
    assert [each.message for each in moved.log()] == ["commit 2\n", "commit 1\n"]
    assert moved.fsck().problems == []


def test_git_names_are_specs(checkout):
    """Branches, tags and remote branches of git answer where no thread or marker does."""
    git(checkout, "branch", "side", "HEAD~1")
    repo = Repository.init(checkout)
    first = git(checkout, "rev-parse", "HEAD~1").encode()

    assert [repo.resolve(spec) for spec in ("side", "v1", "origin/x")] == [first] * 3
    git(checkout, "tag", "side", "HEAD")
    with pytest.raises(DataError, match="refs/tags/side"):
        repo.resolve("side")
    with pytest.raises(StateNotFound):
        repo.resolve("a^{}..b")


def test_init_in_a_linked_work_tree(checkout, tmp_path):
    """In a linked work tree the objects are those of the main one."""
    git(checkout, "worktree", "add", "-q", "-b", "linked", str(tmp_path / "linked"), "HEAD~1")

    repo = Repository.init(tmp_path / "linked")

    first = git(checkout, "rev-parse", "HEAD~1").encode()
    assert (repo.head, repo.resolve("@")) == ("linked", first)
    assert repo.git.common == checkout / ".git"
    assert git(tmp_path / "linked", "status", "--porcelain") == ""


def test_init_on_a_detached_head(checkout):
    """A detached HEAD starts main at that commit, or another name where git has a main elsewhere."""
    git(checkout, "checkout", "-q", "--detach", "HEAD~1")
    first = git(checkout, "rev-parse", "HEAD").encode()

    repo = Repository.init(checkout)
    assert (repo.head, repo.resolve("@")) == ("main", first)

    repo.close()
    shutil.rmtree(repo.heddle_dir)
    git(checkout, "branch", "main", "work/one")
    assert Repository.init(checkout).head == "detached"


def test_init_in_an_empty_git_repository(tmp_path):
    """Before git's first commit the thread has git's branch name and no state."""
    git(tmp_path, "init", "-q", "-b", "trunk")

    repo = Repository.init(tmp_path)

    assert (repo.head, repo.threads.get("trunk").state) == ("trunk", None)


def test_init_on_a_broken_git_configuration(checkout):
    """A git configuration that does not parse is an error that names it, and leaves no repository."""
    (checkout / ".git" / "config").write_text("[core\n")

    with pytest.raises(DataError, match="config"):
        Repository.init(checkout)
    with pytest.raises(NotARepository):
        Repository.open(checkout)


def test_init_in_a_sha256_git_repository(tmp_path):
    """Git's object format is taken over; asking for the other one is refused."""
    git(tmp_path, "init", "-q", "--object-format=sha256")
    (tmp_path / "file").touch()
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "one")

    with pytest.raises(DataError):
        Repository.init(tmp_path, object_format="sha1")
    repo = Repository.init(tmp_path)
    assert repo.object_format == "sha256"
    assert repo.resolve("HEAD") == git(tmp_path, "rev-parse", "HEAD").encode()


def test_log_of_a_shallow_clone(checkout, tmp_path):
    """Where git left parents out, history ends without an error."""
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{checkout}", "clone")

    repo = Repository.init(tmp_path / "clone")

    assert [state.message for state in repo.log()] == ["commit 2\n"]


def test_gits_principal(checkout):
    """The checkout's own git configuration gives the principal."""
    git(checkout, "config", "user.name", "Local")
    git(checkout, "config", "user.email", "l@example.org")
    repo = Repository.init(checkout)

    assert str(repo.attribution(environment={}).principal) == "Local <l@example.org>"
