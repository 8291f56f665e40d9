"""Lazy clones: what comes when, in how many requests, and what happens while the server is away."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from world import wait_until

import heddle
from heddle import api
from heddle.errors import HeddleError, StorageError
from heddle.git import remotes
from heddle.git.cloning import clone
from heddle.git.export import export
from heddle.git.fetching import fetch
from heddle.git.prefetching import prefetch
from heddle.git.promisor import BACK_OFF_S
from heddle.git.pushing import push
from heddle.git.transport import RemoteFailed, RemoteUnreachable

from .conftest import Git, commit_file, run_git
from .servers import (
    WAYS,
    Middle,
    bare_copy,
    fake_server,
    git_daemon,
    in_between,
    made_pack,
    pack_entry,
    served_over,
)

DIRECTORIES, FILES = 6, 8


def text_of(directory: int, number: int) -> str:
    return f"file {number} of {directory}\n" * (number + 1)


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """A bare repository with ``top/dN/fM``, a link and a script, which leaves out what it is asked to."""
    work = tmp_path / "origin"
    work.mkdir()
    run_git(work, "init", "-q", "-b", "main")
    for directory in range(DIRECTORIES):
        for number in range(FILES):
            path = work / "top" / f"d{directory}" / f"f{number}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text_of(directory, number))
    (work / "link").symlink_to("top/d0/f0")
    (work / "run").write_text("#!/bin/sh\necho ran\n")
    (work / "run").chmod(0o755)
    run_git(work, "add", ".")
    run_git(work, "commit", "-q", "-m", "First")
    commit_file(work, "top/d0/f0", "changed\n")
    (tmp_path / "served").mkdir()
    bare = bare_copy(work, tmp_path / "served" / "project.git")
    run_git(bare, "config", "uploadpack.allowFilter", "true")
    return bare


@pytest.fixture
def daemon(served: Path) -> Iterator[str]:
    with git_daemon(served.parent) as address:
        yield address


@pytest.fixture
def middle(daemon: str) -> Iterator[Middle]:
    """The server behind a relay that counts and can fail."""
    with in_between(daemon) as made:
        yield made


def cloned(url: str, path: Path, *, lazy: bool = True) -> api.Repository:
    made = clone(api.Repository, url, path, environment=os.environ, lazy=lazy)[0]
    assert isinstance(made, api.Repository)
    return made


@pytest.fixture
def mine(middle: Middle, tmp_path: Path) -> Iterator[api.Repository]:
    """A lazy clone that has a second to hear from its server."""
    repo = cloned(f"{middle.address}/project.git", tmp_path / "mine")
    repo.config.set("fetch.timeout", "1")
    middle.connections = 0
    yield repo
    repo.close()


Mount = Callable[..., Path]


@pytest.fixture
def mount(mine: api.Repository) -> Iterator[Mount]:
    """Mount a thread of it, unmounted after the test."""

    def mounted(thread: str = "agent") -> Path:
        create = thread not in mine.threads
        return mine.mount(thread, create=create).mountpoint

    yield mounted
    mine.unmount(force=True)


def blobs_here(repo: api.Repository) -> int:
    repo.store.refresh()
    return sum(repo.store.kind(id) == 3 for id in repo.store.iter_ids())


def log_of(repo: api.Repository) -> str:
    found = [each.log for each in repo.mounts() if each.log is not None]
    return "".join(path.read_text() for path in found)


# cloning


def test_all_versions_of_a_file_at_once(tmp_path: Path, nothing_left: None) -> None:
    """Files that a server sends as deltas against each other come in one request, and wait for nobody."""
    work = tmp_path / "versions"
    work.mkdir()
    run_git(work, "init", "-q", "-b", "main")
    for number in range(12):
        commit_file(
            work, "f", "".join(f"{line}\n" for line in range(number * 7, number * 7 + 3000))
        )
    run_git(work, "gc", "-q")
    bare = bare_copy(work, tmp_path / "versions.git")
    run_git(bare, "config", "uploadpack.allowFilter", "true")
    with git_daemon(tmp_path) as daemon, in_between(daemon) as middle:
        repo = cloned(f"{middle.address}/versions.git", tmp_path / "mine")
        middle.connections = 0
        export(repo, ["main"], to=tmp_path / "out.git")

        assert middle.connections == 1
        assert run_git(tmp_path / "out.git", "rev-parse", "main") == run_git(
            work, "rev-parse", "main"
        )
        assert run_git(tmp_path / "out.git", "fsck", "--strict") == ""
        repo.close()


@pytest.fixture(params=WAYS)
def url(request: pytest.FixtureRequest, served: Path) -> Iterator[str]:
    """The server over each way that needs nothing but stock git."""
    with served_over(request.param, served) as address:
        yield address


def test_a_lazy_clone_has_no_file_until_one_is_read(url: str, served: Path, tmp_path: Path) -> None:
    """Over every transport: history and trees come with the clone, one blob with one read, verified and kept."""
    repo = cloned(url, tmp_path / "mine")

    assert blobs_here(repo) == 0
    assert len(list(repo.log())) == 2
    assert list(repo.status().changes) == []

    _mode, blob = repo.lookup_path("main", b"top/d0/f0")

    assert repo.store.get_raw(blob) == (3, b"changed\n")
    assert blobs_here(repo) == 1

    repo.switch("main")

    assert (repo.path / "top/d1/f2").read_text() == text_of(1, 2)
    assert os.readlink(repo.path / "link") == "top/d0/f0"
    assert repo.fsck(full=True).problems == []


def test_a_server_that_leaves_nothing_out(served: Path, tmp_path: Path) -> None:
    """Without ``uploadpack.allowFilter`` everything comes, and nothing is promised."""
    run_git(served, "config", "uploadpack.allowFilter", "false")

    repo = cloned(f"file://{served}", tmp_path / "mine")

    assert blobs_here(repo) == DIRECTORIES * FILES + 3
    assert not repo.store.promises


def test_a_killed_clone_goes_on(served: Path, tmp_path: Path) -> None:
    """After a kill at any step the same command at the same place finishes; another address is refused."""
    for point in ("cloning.before-fetch", "fetching.before-names", "cloning.fetched"):
        where = tmp_path / point
        command = [sys.executable, "-m", "heddle", "clone", "--lazy", str(served), str(where)]
        killed = subprocess.run(command, env={**os.environ, "HEDDLE_FAULT": point})

        assert killed.returncode == -9, point

        other = subprocess.run([*command[:-2], str(served.parent), str(where)], capture_output=True)

        assert other.returncode == 73

        subprocess.run(command, check=True, capture_output=True)
        repo = heddle.open(where)

        assert repo.state("main").id.decode() == run_git(served, "rev-parse", "main")
        assert not (repo.heddle_dir / "cloning").exists()


# sessions


def test_a_file_comes_once_for_all_sessions(
    mine: api.Repository, middle: Middle, mount: Mount
) -> None:
    """What one mount read, another reads without asking; the bytes and modes are those of the state."""
    first, second = mount("one"), mount("two")

    assert (first / "top/d2/f3").read_text() == text_of(2, 3)

    asked = middle.connections

    assert (second / "top/d2/f3").read_text() == text_of(2, 3)
    assert subprocess.check_output([second / "run"]) == b"ran\n"
    assert os.readlink(first / "link") == "top/d0/f0"
    assert asked < middle.connections

    middle.stop()

    assert os.readlink(second / "link") == "top/d0/f0"


def test_the_same_file_is_fetched_once_at_a_time(mine: api.Repository, middle: Middle) -> None:
    """Several who need one object at the same time, in threads here and processes elsewhere, ask for it once."""
    mine.config.set("fetch.timeout", "20")
    _mode, blob = mine.lookup_path("main", b"top/d3/f3")
    others = [heddle.open(mine.path) for _ in range(4)]
    for each in others:
        each.store.size(each.state("main").tree)
    middle.stalled = True
    threads = [threading.Thread(target=each.store.get_raw, args=(blob,)) for each in others]
    for thread in threads:
        thread.start()
    wait_until(lambda: middle.connections > 0, "the first request")
    claims = mine.heddle_dir / "objects/promised/claims"
    wait_until(lambda: len(list(claims.iterdir())) == 1, "the one claim")
    middle.go_on.set()
    for thread in threads:
        thread.join()

    assert middle.connections == 1


def test_a_fetcher_that_was_killed_keeps_nobody_waiting(
    mine: api.Repository, middle: Middle
) -> None:
    """What a killed process had claimed is fetched by the next one at once."""
    mine.config.set("fetch.timeout", "20")
    _mode, blob = mine.lookup_path("main", b"run")
    middle.stalled = True
    command = [sys.executable, "-m", "heddle", "prefetch", "main"]
    with subprocess.Popen(command, cwd=mine.path) as process:
        wait_until(lambda: middle.connections > 0, "the fetch")
        process.kill()
    middle.stalled = False

    assert mine.store.get_raw(blob)[1] == b"#!/bin/sh\necho ran\n"
    assert middle.connections == 2
    assert not list((mine.heddle_dir / "objects/promised/claims").iterdir())


def test_a_fetcher_that_was_stopped_is_not_waited_for_for_ever(
    mine: api.Repository, middle: Middle
) -> None:
    """What a suspended process had claimed is fetched here too after a while."""
    _mode, blob = mine.lookup_path("main", b"run")
    with mine.store.promises.claimed([bytes.fromhex(blob.decode())]):
        assert heddle.open(mine.path).store.get_raw(blob)[1] == b"#!/bin/sh\necho ran\n"

    assert middle.connections == 1


@pytest.mark.parametrize("says_sizes", [True, False])
def test_names_cost_nothing_and_a_walk_little(
    mine: api.Repository, middle: Middle, mount: Mount, tmp_path: Path, says_sizes: bool
) -> None:
    """Listing names asks nothing; grep over all files needs few requests, not one for each."""
    middle.says_sizes = says_sizes
    at = mount()
    names = subprocess.check_output(["find", at, "-name", "f*"]).split()

    assert len(names) == DIRECTORIES * FILES
    assert middle.connections == 0

    found = subprocess.check_output(["grep", "-rl", "file", at / "top"]).split()

    assert len(found) == DIRECTORIES * FILES - 1
    assert 1 <= middle.connections <= 10
    asked = middle.connections

    subprocess.run(["cp", "-r", at / "top", tmp_path / "copy"], check=True)

    assert (tmp_path / "copy/d5/f7").read_text() == text_of(5, 7)
    assert asked == middle.connections


def test_sizes_come_without_contents_where_the_server_can_say_them(
    mine: api.Repository, middle: Middle, mount: Mount
) -> None:
    """``ls -l`` on a server with object-info shows every size and brings no file."""
    at = mount()

    sizes = {path.name: path.stat().st_size for path in (at / "top/d4").iterdir()}

    assert sizes == {f"f{number}": len(text_of(4, number)) for number in range(FILES)}
    assert blobs_here(mine) == 0
    assert middle.connections <= 2

    for directory in range(DIRECTORIES):
        for number in range(1, FILES):
            found = (at / "top" / f"d{directory}" / f"f{number}").stat().st_size

            assert found == len(text_of(directory, number))
    assert blobs_here(mine) == 0
    assert middle.connections <= 8
    assert (at / "top/d4/f1").read_text() == text_of(4, 1)


def test_sizes_are_asked_for_once_for_all_sessions(
    mine: api.Repository, middle: Middle, mount: Mount
) -> None:
    """A second mount, also of another process later, shows the sizes that the first was told, and asks nothing."""

    def sizes(at: Path) -> list[int]:
        paths = [at / f"top/d{directory}/f3" for directory in range(DIRECTORIES)]
        return [path.stat().st_size for path in paths for path in sorted(path.parent.iterdir())]

    first = sizes(mount())
    asked = middle.connections

    assert asked >= 1 and sizes(mount("second")) == first
    mine.unmount()
    middle.stop()

    assert sizes(mount("third")) == first
    assert (asked, 0) == (middle.connections, blobs_here(mine))


def test_sizes_bring_the_directory_where_the_server_can_not_say_them(
    mine: api.Repository, middle: Middle, mount: Mount
) -> None:
    """Without object-info the first question brings its file, the second the rest of the directory."""
    middle.says_sizes = False
    at = mount()
    (at / "top/d1/f1").stat()

    assert blobs_here(mine) == 1

    (at / "top/d1/f2").stat()

    assert blobs_here(mine) == FILES

    asked = middle.connections
    for number in range(FILES):
        assert (at / f"top/d1/f{number}").stat().st_size == len(text_of(1, number))

    assert asked == middle.connections


def test_a_wrong_size_shows_no_wrong_bytes(
    mine: api.Repository, middle: Middle, mount: Mount
) -> None:
    """A server that says another length than a file has: EIO and a line in the log, not cut content."""
    _mode, blob = mine.lookup_path("main", b"top/d4/f3")
    size = len(text_of(4, 3))
    middle.lies[b"%b %d" % (blob, size)] = b"%b %d" % (blob, size - 1)
    at = mount()

    assert (at / "top/d4/f3").stat().st_size == size - 1
    with pytest.raises(OSError) as caught:
        (at / "top/d4/f3").read_bytes()

    assert caught.value.errno == errno.EIO
    assert f"has {size} bytes, and its remote said {size - 1}" in log_of(mine)


def test_a_restarted_session_fetches_too(
    mine: api.Repository, middle: Middle, mount: Mount
) -> None:
    """A session that crashed and was started again knows how to bring what is not here."""
    at = mount()
    (session,) = mine.mounts()
    assert session.pid is not None
    os.kill(session.pid, signal.SIGKILL)
    wait_until(lambda: _reads(at / "top/d3/f1", text_of(3, 1)), "the session to be there again")


def test_git_in_a_mount_of_a_partial_clone(middle: Middle, git: Git, tmp_path: Path) -> None:
    """Git works in a mount of a checkout that it cloned without files; what the mount itself shows is here."""
    url = f"{middle.address}/project.git"
    git("clone", "-q", "--filter=blob:none", "--no-checkout", url, tmp_path / "p", at=tmp_path)
    heddle.init(tmp_path / "p").close()
    middle.connections = 0
    place = heddle.open(tmp_path / "p").mount("agent", tmp_path / "mnt", create=True).mountpoint
    try:
        assert (place / ".git").read_text().startswith("gitdir: ")
        assert middle.connections == 0
        assert git("log", "--oneline", at=place).count("\n") == 1
        assert (place / "top/d1/f1").read_text() == text_of(1, 1)
        commit_file(place, "new", "new\n")
        assert git("status", "--porcelain", at=place) == ""
    finally:
        heddle.open(tmp_path / "p").unmount("agent", force=True)


def test_changes_in_a_lazy_mount_are_captured(
    mine: api.Repository, middle: Middle, served: Path, mount: Mount
) -> None:
    """Edited, overwritten, renamed, removed and made files are captured, and only what was edited was fetched."""
    at = mount()
    (at / "top/d0/f1").open("a").write("more\n")
    (at / "top/d1/f1").write_text("new\n")
    (at / "top/d2").rename(at / "moved")
    (at / "top/d3/f3").unlink()
    (at / "made").write_text("made\n")
    done = mine.capture(message="Changes", thread="agent")

    assert (done.added, done.modified) >= (1, 2)
    assert blobs_here(mine) <= FILES + 4

    push(mine, "origin", ["agent"])

    assert run_git(served, "show", "agent:moved/f7") == text_of(2, 7).strip()
    assert run_git(served, "show", "agent:top/d0/f1") == text_of(0, 1) + "more"
    assert run_git(served, "fsck", "--strict") == ""


# a server that is away


def test_a_stalled_server_stalls_nobody_else(
    mine: api.Repository, middle: Middle, mount: Mount
) -> None:
    """A read of an absent file waits no longer than configured and is EIO; one beside it answers at once."""
    at = mount()
    assert (at / "top/d0/f0").read_text() == "changed\n"
    middle.stalled = True
    started = time.monotonic()
    errors: list[int | None] = []

    def read() -> None:
        try:
            (at / "top/d5/f5").read_text()
        except OSError as error:
            errors.append(error.errno)

    reader = threading.Thread(target=read)
    reader.start()
    asked = middle.connections
    wait_until(lambda: middle.connections > asked, "the read to reach the server")
    beside = time.monotonic()

    assert (at / "top/d0/f0").stat().st_size == len("changed\n")
    assert (at / "top/d0/f0").read_text() == "changed\n"
    assert time.monotonic() - beside < 0.9
    assert reader.is_alive()

    reader.join()

    assert errors == [errno.EIO]
    assert time.monotonic() - started < 10
    said = log_of(mine)
    _mode, blob = mine.lookup_path("main", b"top/d5/f5")

    assert blob.decode() in said and "origin" in said and "heddle prefetch" in said

    middle.stalled = False
    middle.go_on.set()
    wait_until(lambda: _reads(at / "top/d5/f5", text_of(5, 5)), "the same read to work again")


def test_a_server_that_goes_and_comes_back(
    mine: api.Repository, middle: Middle, mount: Mount
) -> None:
    """While it is away names and present files are read and absent ones are EIO; then the same read works."""
    at = mount()
    assert (at / "top/d0/f0").read_text() == "changed\n"
    middle.stop()

    assert sorted(os.listdir(at / "top")) == [f"d{number}" for number in range(DIRECTORIES)]
    assert (at / "top/d0/f0").read_text() == "changed\n"
    for _ in range(2):
        with pytest.raises(OSError) as caught:
            (at / "top/d1/f1").read_text()

        assert caught.value.errno == errno.EIO

    middle.start()
    wait_until(lambda: _reads(at / "top/d1/f1", text_of(1, 1)), "the same read to work again")


def _reads(path: Path, text: str) -> bool:
    try:
        return path.read_text() == text
    except OSError:
        return False


def test_a_walk_does_not_wait_for_each_file(mine: api.Repository, middle: Middle) -> None:
    """A remote that has just failed is left alone for a moment, so a thousand reads are not a thousand waits."""
    tree = mine.store.tree_entries(mine.lookup_path("main", b"top/d1")[1])
    middle.stalled = True
    started = time.monotonic()
    for _name, _mode, blob in tree:
        with pytest.raises(RemoteUnreachable, match="promised by origin"):
            mine.store.get_raw(blob)

    assert middle.connections <= 1 + (time.monotonic() - started) / BACK_OFF_S


# the other commands


def test_commands_fetch_what_they_need_at_once(
    mine: api.Repository, middle: Middle, served: Path, tmp_path: Path
) -> None:
    """Diff, switch and export each need one request for all files that they read."""
    from heddle.git.export import export

    assert [each.path for each in mine.diff("main~1", "main")] == [b"top/d0/f0"]
    assert middle.connections == 1

    export(mine, ["main"], to=tmp_path / "out.git")

    assert run_git(tmp_path / "out.git", "rev-parse", "main") == run_git(
        served, "rev-parse", "main"
    )
    assert run_git(tmp_path / "out.git", "fsck", "--strict") == ""
    assert middle.connections == 2


def test_materialize_needs_few_requests(
    mine: api.Repository, middle: Middle, tmp_path: Path
) -> None:
    """All files become real ones without a request for each."""
    mine.materialize(tmp_path / "out", "main")

    assert (tmp_path / "out/top/d5/f5").read_text() == text_of(5, 5)
    assert os.readlink(tmp_path / "out/link") == "top/d0/f0"
    assert middle.connections <= 5


def test_other_files_than_asked_for_are_refused(mine: api.Repository) -> None:
    """A server that sends another blob: an error that names the one that was asked for, and nothing is kept."""
    from heddle.git import remotes

    _mode, blob = mine.lookup_path("main", b"run")
    with fake_server({}, made_pack(pack_entry(3, b"something else"))) as address:
        remotes.remove(mine, "origin")
        remotes.add(mine, "origin", address, lazy=True)

        with pytest.raises(RemoteFailed, match=f"{blob.decode()}.*other objects") as caught:
            mine.store.get_raw(blob)

    assert caught.value.exit_code == 74
    assert blobs_here(mine) == 0


def test_a_push_elsewhere_needs_few_requests(
    mine: api.Repository, middle: Middle, tmp_path: Path
) -> None:
    """All that another server lacks is brought together, and arrives there whole."""
    from heddle.git import remotes

    run_git(tmp_path, "init", "-q", "--bare", "-b", "main", "elsewhere.git")
    remotes.add(mine, "elsewhere", str(tmp_path / "elsewhere.git"))
    mine.threads.create("copy", mine.resolve("main"))
    push(mine, "elsewhere", ["copy"])

    assert middle.connections == 1
    assert run_git(tmp_path / "elsewhere.git", "fsck", "--strict") == ""
    assert run_git(tmp_path / "elsewhere.git", "show", "copy:top/d5/f5") == text_of(5, 5).strip()


def test_a_switch_brings_its_files_in_one_request(mine: api.Repository, middle: Middle) -> None:
    """Filling the working directory does not ask for each file."""
    mine.switch("main")

    assert (mine.path / "top/d5/f5").read_text() == text_of(5, 5)
    assert middle.connections == 1


def test_a_fetch_into_a_lazy_clone_is_lazy(
    mine: api.Repository, served: Path, tmp_path: Path
) -> None:
    """What is new on the server comes without its files, and they are promised too."""
    other = tmp_path / "other"
    run_git(tmp_path, "clone", "-q", served, other)
    commit_file(other, "top/new", "new\n")
    run_git(other, "push", "-q")

    fetched = fetch(mine)

    assert [each.ref for each in fetched.refs] == ["refs/remotes/origin/main"]
    assert blobs_here(mine) == 0

    _mode, blob = mine.lookup_path("origin/main", b"top/new")

    assert mine.store.get_raw(blob)[1] == b"new\n"


def test_without_the_remote_it_says_what_is_missing(mine: api.Repository) -> None:
    """When the promisor is removed, an absent file names its object and what was promised."""
    from heddle.git import remotes

    remotes.remove(mine, "origin")
    _mode, blob = mine.lookup_path("main", b"run")

    with pytest.raises(HeddleError, match=f"{blob.decode()} was promised"):
        mine.store.get_raw(blob)


# prefetch


def test_prefetch_brings_paths_and_then_the_rest(mine: api.Repository, middle: Middle) -> None:
    """Only what lies below the paths, then only what is not here; afterwards the server is not needed."""
    first = prefetch(mine, "main", [b"top/d1", b"run"])
    second = prefetch(mine)

    assert (first.objects, first.already, first.missing) == (FILES + 1, 0, 0)
    size = sum(len(text_of(1, number)) for number in range(FILES)) + len("#!/bin/sh\necho ran\n")
    assert first.size_bytes == size
    assert second.already == FILES + 1
    assert second.objects == DIRECTORIES * FILES + 2 - (FILES + 1)

    middle.stop()

    assert prefetch(mine).objects == 0
    mine.switch("main")


def test_an_interrupted_prefetch_keeps_what_came(
    mine: api.Repository, middle: Middle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the server goes away in the middle, what came before is here, and the next one brings the rest."""
    monkeypatch.setattr("heddle.git.prefetching._PORTION", 10)
    total = DIRECTORIES * FILES + 2

    def stop_at_the_third(done: int, total: int) -> None:
        if done >= 20:
            middle.stop()

    with pytest.raises(RemoteUnreachable):
        prefetch(mine, progress=stop_at_the_third)
    middle.start()
    time.sleep(0)
    wait_until(lambda: _prefetches(mine, total - 20), "the server to be asked again")


def _prefetches(repo: api.Repository, count: int) -> bool:
    try:
        return prefetch(repo).objects == count
    except RemoteUnreachable:
        return False


def test_a_file_that_the_server_lost(mine: api.Repository, served: Path) -> None:
    """It is counted as missing and does not keep the others away; reading it says which it is."""
    _mode, lost = mine.lookup_path("main", b"top/d1/f1")
    for pack in (served / "objects/pack").glob("*.pack"):
        held = served.parent / pack.name
        pack.rename(held)
        pack.with_suffix(".idx").unlink()
        with held.open("rb") as file:
            subprocess.run(["git", "-C", served, "unpack-objects", "-q"], stdin=file, check=True)
    (served / "objects" / lost[:2].decode() / lost[2:].decode()).unlink()

    done = prefetch(mine)

    assert (done.objects, done.missing) == (DIRECTORIES * FILES + 1, 1)
    with pytest.raises(RemoteFailed, match=lost.decode()):
        mine.store.get_raw(lost)


def test_the_command(mine: api.Repository) -> None:
    """``heddle prefetch`` prints the documented record."""
    import json

    command = [sys.executable, "-m", "heddle", "prefetch", "--json", "main", "--", "top/d2"]
    done = subprocess.run(command, cwd=mine.path, capture_output=True, check=True)
    said = json.loads(done.stdout)

    assert said.pop("duration_ms") > 0
    assert said == {
        "state": mine.resolve("main").decode(),
        "objects": FILES,
        "bytes": sum(len(text_of(2, number)) for number in range(FILES)),
        "already": 0,
        "missing": 0,
    }


# damage


def test_a_damaged_list_of_promises(mine: api.Repository) -> None:
    """It is an error that says so, fsck names it, and the next fetch lists anew what is not here."""
    (path,) = (mine.heddle_dir / "objects/promised").glob("*.ids")
    content = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(content[: len(content) // 2])
    repo = heddle.open(mine.path)
    _mode, blob = repo.lookup_path("main", b"run")

    with pytest.raises(StorageError, match=r"promised objects .* is damaged"):
        repo.store.get_raw(blob)
    assert [each.kind for each in repo.fsck().problems] == ["promised"]

    fetch(repo)

    assert repo.store.get_raw(blob)[1] == b"#!/bin/sh\necho ran\n"
    assert repo.fsck().problems == []


def test_gc_keeps_promises(mine: api.Repository, middle: Middle) -> None:
    """Merging packs asks the server nothing, keeps what was fetched, and what is promised stays promised."""
    _mode, here = mine.lookup_path("main", b"top/d0/f0")
    _mode, there = mine.lookup_path("main", b"top/d0/f1")
    mine.store.get_raw(here)
    asked = middle.connections
    mine.collect()

    assert asked == middle.connections
    assert mine.store.is_promised(there)
    assert mine.store.get_raw(here)[1] == b"changed\n"
    assert asked == middle.connections
    assert mine.store.get_raw(there)[1] == text_of(0, 1).encode()
    assert mine.fsck(full=True).problems == []


# partial clones that git made


def test_on_a_partial_clone_of_gits(served: Path, middle: Middle, tmp_path: Path) -> None:
    """On a checkout that git cloned with a filter, what git left out is fetched too, and git stays content."""
    url = f"{middle.address}/project.git"
    run_git(tmp_path, "clone", "-q", "--no-checkout", "--filter=blob:none", url, tmp_path / "git")
    heddle.init(tmp_path / "git")
    repo = heddle.open(tmp_path / "git")
    _mode, blob = repo.lookup_path("main", b"run")
    asked = middle.connections

    assert repo.store.get_raw(blob)[1] == b"#!/bin/sh\necho ran\n"
    assert middle.connections == asked + 1
    assert prefetch(repo, "main", [b"top/d1"]).objects == FILES

    other = tmp_path / "other"
    run_git(tmp_path, "clone", "-q", served, other)
    commit_file(other, "top/new", "new\n")
    run_git(other, "push", "-q")
    fetch(repo)
    _mode, new = repo.lookup_path("origin/main", b"top/new")

    assert repo.store.is_promised(new)
    assert repo.store.get_raw(new)[1] == b"new\n"
    assert repo.fsck().problems == []
    assert run_git(tmp_path / "git", "fsck", "--strict") == ""
    assert run_git(tmp_path / "git", "show", "origin/main:top/new") == "new"


def test_a_remote_that_comes_back(mine: api.Repository, middle: Middle) -> None:
    """The first remote that a lazy clone is given after its own was removed is asked for what is missing."""
    url = f"{middle.address}/project.git"
    remotes.remove(mine, "origin")
    with pytest.raises(HeddleError) as caught:
        mine.store.get_raw(mine.lookup_path("main", b"run")[1])
    assert caught.value.hint is not None and "heddle remote add" in caught.value.hint
    remotes.add(mine, "again", url)
    remotes.add(mine, "other", url)

    assert mine.store.get_raw(mine.lookup_path("main", b"run")[1])[1].startswith(b"#!")
    assert [each.promisor for each in remotes.remotes(mine)] == [True, False]
