"""Collecting: what stays, what goes and when, and that others may go on meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import heddle
from heddle import api, faults
from heddle.errors import Busy, CorruptObject, HeddleError, ObjectMissing, StorageError
from heddle.objects.blockindex import BlockIndex
from heddle.objects.gitformat import to_raw
from heddle.objects.holding import exclusive
from heddle.repo import gc

DAY_NS = 24 * 3600 * 10**9


@pytest.fixture
def repo(
    tmp_path: Path, isolated: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[api.Repository]:
    """A repository with a history of ten states on ``main``."""
    monkeypatch.setenv("HEDDLE_PRINCIPAL_NAME", "Ann Lee")
    monkeypatch.setenv("HEDDLE_PRINCIPAL_EMAIL", "ann@example.org")
    made = heddle.init(tmp_path / "repo")
    made.environment = dict(os.environ)
    for number in range(10):
        capture(made, number)
    yield made
    made.close()


def capture(repo: api.Repository, number: int) -> bytes:
    (repo.path / "sub").mkdir(exist_ok=True)
    lines = [f"line {line} of {number if line == number else 0}\n" for line in range(50)]
    (repo.path / "text").write_text("".join(lines))
    (repo.path / "sub" / "other").write_text("".join(reversed(lines)))
    (repo.path / f"new{number}").write_text(f"{number}\n")
    return repo.capture(message=f"State {number}").state.id


def packs(repo: api.Repository) -> list[Path]:
    return sorted((repo.heddle_dir / "objects" / "packs").glob("*.pack"))


def everything(repo: api.Repository) -> dict[bytes, tuple[int, bytes]]:
    return {object_id: repo.store.get_raw(object_id) for object_id in repo.store}


def aged(repo: api.Repository, *, days: int = 30) -> None:
    """Make every pack that is there older."""
    then = time.time_ns() - days * DAY_NS
    for path in packs(repo):
        os.utime(path, ns=(then, then))


def stored(repo: api.Repository, content: bytes) -> bytes:
    """Store a blob that nothing leads to."""
    with repo.store.writer() as writer:
        found = writer.add_blob(content)
        writer.commit()
    return found


def fresh(repo: api.Repository) -> api.Repository:
    return heddle.open(repo.path)


def test_everything_stays(repo: api.Repository) -> None:
    """Packs become one that is smaller, and every object is what it was, also to whoever had the old ones open."""
    before = everything(repo)
    other = fresh(repo)
    assert before == everything(other)
    done = repo.collect().objects

    assert (done.packs_before, done.packs_after) == (10, 1)
    assert done.bytes_after is not None
    assert done.bytes_after < done.bytes_before / 2
    assert (done.objects, done.dropped) == (len(before), 0)
    for each in (repo, other, fresh(repo)):
        assert before == everything(each)
    assert fresh(repo).fsck(full=True).problems == []


def test_again(repo: api.Repository) -> None:
    """A collection with nothing new writes nothing; one with little new leaves the large pack alone."""
    repo.collect()
    first = packs(repo)
    repo.collect()
    assert first == packs(repo)

    (repo.path / "large").write_bytes(os.urandom(200_000))
    capture(repo, 11)
    repo.collect()
    large = packs(repo)
    capture(repo, 12)
    capture(repo, 13)
    done = repo.collect().objects

    assert (done.packs_before, done.packs_after) == (3, 2)
    assert set(large) < set(packs(repo))
    assert fresh(repo).fsck(full=True).problems == []
    assert all(isinstance(each, BlockIndex) for each in repo.store.packs_directory.indexes())


def test_the_same_pack_once_more(repo: api.Repository) -> None:
    """A run that died after its pack was published is made up for, though the next one writes the same pack."""
    before = everything(repo)

    class Died(Exception):
        pass

    def die(point: str) -> None:
        if point == "gc.rewritten":
            raise Died

    with reaching(die), pytest.raises(Died):
        repo.collect()
    assert len(packs(repo)) == 11
    fresh(repo).collect()

    assert len(packs(repo)) == 1
    assert before == everything(fresh(repo))


def test_head_is_stored_whole(repo: api.Repository) -> None:
    """What the working directory's state holds needs no other object to be read."""
    repo.collect()
    found = repo.store.packs_directory
    tree = repo.state("HEAD").tree
    entries = repo.store.tree_entries(tree)
    ids = [tree, *(object_id for _, _, object_id in entries)]
    kinds = {found.find(to_raw(each, 20))[1].kind for each in ids}  # type: ignore[index]

    assert kinds == {1}


def test_what_nothing_needs(repo: api.Repository) -> None:
    """An object that nothing leads to is kept for its time, wherever collections put it, and then goes."""
    lost = stored(repo, b"nobody's" * 100)
    before = everything(repo)
    assert repo.collect().objects.dropped == 0
    assert before == everything(fresh(repo))

    aged(repo)
    plan = repo.collect(dry_run=True).objects
    assert (plan.dropped, plan.dropped_bytes, plan.packs_after) == (1, 800, None)
    assert lost in fresh(repo).store
    done = repo.collect().objects

    assert (done.dropped, done.dropped_bytes) == (1, 800)
    assert lost not in fresh(repo).store
    del before[lost]
    assert before == everything(fresh(repo))


def test_what_is_kept_keeps_its_age(repo: api.Repository) -> None:
    """What is kept although nothing needs it does not become younger by being moved: the next time, it is old."""
    pack = packs(repo)[0]
    with repo.store.writer() as writer:
        lost = writer.add_blob(b"beside a state that is needed")
        (repo.path / "b").write_text("b")
        needed = writer.add_blob(b"needed")
        tree = writer.add_tree([(b"n", 0o100644, needed)])
        commit = writer.add(
            1, repo.store.get_raw(repo.resolve("HEAD"))[1].replace(b"State 9", b"X")
        )
        writer.commit()
    del tree
    repo.threads.create("side", commit)
    then = time.time_ns() - 10 * DAY_NS
    for each in packs(repo):
        os.utime(each, ns=(then, then))
    repo.collect()
    assert lost in fresh(repo).store
    assert not pack.exists()
    repo.collect(before_ns=time.time_ns() - 11 * DAY_NS)
    assert lost in fresh(repo).store
    repo.collect(before_ns=time.time_ns() - 9 * DAY_NS)

    assert lost not in fresh(repo).store
    assert commit in fresh(repo).store


def test_what_something_young_leads_to(repo: api.Repository) -> None:
    """What is old and needed only by something that is kept is kept as well."""
    below = stored(repo, b"below")
    aged(repo)
    with repo.store.writer() as writer:
        tree = writer.add_tree([(b"n", 0o100644, below)])
        writer.commit()
    repo.collect()
    assert below in fresh(repo).store
    assert tree in fresh(repo).store
    aged(repo)
    repo.collect()

    assert below not in fresh(repo).store
    assert tree not in fresh(repo).store


def test_what_was_deleted_stays(repo: api.Repository) -> None:
    """The state of a deleted thread and of a deleted marker is in the operation log, and so stays."""
    first = repo.resolve("HEAD~5")
    repo.threads.create("gone", first)
    repo.threads.delete("gone")
    repo.markers.create("mark", repo.resolve("HEAD~2"))
    repo.markers.delete("mark")
    aged(repo)
    before = everything(repo)
    repo.collect()

    assert before == everything(fresh(repo))


def test_what_overlays_name(repo: api.Repository) -> None:
    """An object that only a mark in an overlay or in the park names stays."""
    from heddle.mount.overlay import Overlay
    from heddle.mount.upper import Marks, write_marks

    ids = {name: stored(repo, name.encode()) for name in ("blob", "stored", "lower")}
    for name, object_id in ids.items():
        repo.threads.create(name, repo.resolve("HEAD"))
        Overlay.open(repo, name).close()
        upper = repo.heddle_dir / "overlays" / name / "upper"
        (upper / "d").mkdir()
        (upper / "d" / "f").write_text("")
        marks = Marks()._replace(**{name: object_id})
        write_marks(os.fsencode(upper / "d" if name == "lower" else upper / "d" / "f"), marks)
    repo.threads.delete("stored", force=True)
    aged(repo)
    repo.collect()
    assert set(ids.values()) <= set(fresh(repo).store)

    (repo.heddle_dir / "overlays" / "blob" / "upper" / "d" / "f").unlink()
    aged(repo)
    assert repo.collect().objects.dropped == 1


def test_an_overlay_that_cant_be_read(
    repo: api.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is not known what overlays name, packs are merged and nothing is dropped."""
    lost = stored(repo, b"nobody's")
    aged(repo)

    def unreadable() -> Iterator[bytes]:
        raise StorageError("a directory can't be read")

    done = gc.collect(repo, marked=unreadable)

    assert done.dropped == 0
    assert lost in fresh(repo).store


def test_a_damaged_object(repo: api.Repository) -> None:
    """A collection stops at what it can't read: nothing is removed, nothing new is left."""
    found = repo.store.packs_directory.find(to_raw(repo.resolve("HEAD~3"), 20))
    assert found is not None
    path = found[0].pack_path
    data = bytearray(path.read_bytes())
    data[found[1].offset + 60] ^= 1
    path.chmod(0o644)
    path.write_bytes(bytes(data))
    before = sorted(path.parent.iterdir())
    aged(repo)

    with pytest.raises(CorruptObject):
        fresh(repo).collect()
    assert before == sorted(path.parent.iterdir())


def test_a_missing_object(repo: api.Repository) -> None:
    """A history with a hole is not collected, since nobody knows what lies behind the hole."""
    found = repo.store.packs_directory.find(to_raw(repo.resolve("HEAD~3"), 20))
    assert found is not None
    found[0].path.unlink()
    found[0].pack_path.unlink()
    aged(repo)
    before = packs(repo)

    with pytest.raises(ObjectMissing):
        fresh(repo).collect()
    assert before == packs(repo)


def test_a_name_that_leads_nowhere(repo: api.Repository) -> None:
    """When an operation names a state that is gone, nothing is dropped."""
    lost = stored(repo, b"perhaps the gone state's")
    aged(repo)
    repo.database._connection.query(
        "INSERT INTO changes (change_id, state, published_ns) VALUES ('k', ?, 1)", ("ab" * 20,)
    )
    repo.collect()

    assert lost in fresh(repo).store


def test_a_missing_index_is_made(repo: api.Repository) -> None:
    """A pack that lost its index gets one before anything is judged."""
    before = everything(repo)
    packs(repo)[3].with_suffix(".idx").unlink()
    other = fresh(repo)
    other.collect()

    assert before == everything(other)
    assert len(packs(repo)) == 1


def test_a_missing_alternate(repo: api.Repository, tmp_path: Path) -> None:
    """With an alternate away nothing is collected."""
    (tmp_path / "away" / "packs").mkdir(parents=True)
    repo.store.add_alternate(tmp_path / "away")
    (tmp_path / "away" / "packs").rmdir()
    (tmp_path / "away").rmdir()

    with pytest.raises(StorageError, match="away"):
        fresh(repo).collect()


def test_on_git(tmp_path: Path, isolated: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a git checkout only heddle's own objects are rewritten, and both histories stay."""
    for name in ("NAME", "EMAIL"):
        monkeypatch.setenv(f"HEDDLE_PRINCIPAL_{name}", "ann@example.org")
        monkeypatch.setenv(f"GIT_AUTHOR_{name}", "ann@example.org")
        monkeypatch.setenv(f"GIT_COMMITTER_{name}", "ann@example.org")
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "By git"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    repo = heddle.init(tmp_path)
    repo.environment = dict(os.environ)
    for number in range(3):
        capture(repo, number)
    aged(repo)
    own = {each for each in repo.store if repo.store.contains_packed(each)}
    before = everything(repo)
    done = repo.collect().objects

    assert (done.packs_after, done.objects, done.dropped) == (1, len(own), 0)
    assert before == everything(fresh(repo))
    repo.close()


# Together with others


def test_two_collections(repo: api.Repository) -> None:
    """A second collection says that there is one already."""
    from heddle.repo.locks import file_locked_nowait

    with file_locked_nowait(repo.heddle_dir / "gc.lock"), pytest.raises(Busy, match="another"):
        repo.collect()


def test_removal_waits_for_captures(repo: api.Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """While somebody stores, nothing that he may rely on goes; after a while a collection gives up and says so."""
    lost = stored(repo, b"already stored")
    aged(repo)
    monkeypatch.setattr(gc, "_WAIT_S", 0.05)
    with repo.store.writer() as writer:
        with pytest.raises(Busy, match="captures"):
            fresh(repo).collect()
        again = writer.add_blob(b"already stored")
        tree = writer.add_tree([(b"n", 0o100644, again)])
        writer.commit()
        with exclusive(repo.store.packs_directory.path, timeout_s=0) as free:
            assert not free
    with exclusive(repo.store.packs_directory.path, timeout_s=0) as free:
        assert free
    fresh(repo).collect()

    assert lost == again
    assert {lost, tree} <= set(fresh(repo).store)


def test_a_capture_that_relies_on_what_goes(repo: api.Repository) -> None:
    """A state published after the walk and before the removal keeps what it was built on."""
    lost = stored(repo, b"already stored")
    aged(repo)
    other = fresh(repo)
    other.environment = repo.environment

    def late(point: str) -> None:
        if point == "gc.rewritten":
            (repo.path / "late").write_bytes(b"already stored")
            other.capture(message="Late")

    with reaching(late):
        done = repo.collect().objects

    assert done.dropped == 0
    state = fresh(repo).state("HEAD")
    assert lost in {each for _, _, each in fresh(repo).store.tree_entries(state.tree)}
    assert fresh(repo).store.get_raw(lost) == (3, b"already stored")


def test_a_thread_made_of_what_goes(repo: api.Repository) -> None:
    """A thread made meanwhile at a state that nothing led to keeps it; afterwards it is refused."""
    raw = repo.store.get_raw(repo.resolve("HEAD"))[1]
    with repo.store.writer() as writer:
        ids = [writer.add(1, raw.replace(b"State 9", b"Lost %d" % number)) for number in range(2)]
        writer.commit()
    aged(repo)
    other = fresh(repo)

    def late(point: str) -> None:
        if point == "gc.rewritten":
            other.threads.create("late", ids[0])

    with reaching(late):
        repo.collect()
    assert ids[0] in fresh(repo).store
    aged(repo)
    repo.collect()

    assert ids[0] in fresh(repo).store
    assert ids[1] not in fresh(repo).store
    with pytest.raises(HeddleError):
        other.threads.create("later", ids[1])


@contextmanager
def reaching(act: object) -> Iterator[None]:
    """Call something at every fault point."""
    real = faults.reach
    faults.reach = act  # type: ignore[assignment]
    try:
        yield
    finally:
        faults.reach = real


WORKER = """
import os, sys
from itertools import count
from pathlib import Path
import heddle
repo = heddle.open(Path(sys.argv[1]))
repo.environment = dict(os.environ)
from heddle.errors import HeddleError
from heddle.attribution import Attribution
least, enough = int(sys.argv[3]), Path(sys.argv[4])
for number in count():
    if number >= least and enough.exists():
        break
    with repo.store.writer() as writer:
        blob = writer.add_blob(b"shared %d" % number)
        mine = writer.add_blob(sys.argv[2].encode() + b" %d" % number)
        tree = writer.add_tree([(b"shared", 0o100644, blob), (b"mine", 0o100644, mine)])
        raw = b"tree %s\\nauthor A <a> 0 +0000\\ncommitter A <a> 0 +0000\\n\\n%d\\n" % (tree, number)
        state = writer.add(1, raw)
        writer.commit()
        repo.threads.create(f"{sys.argv[2]}-{number}", state)
    for name in ("main", f"{sys.argv[2]}-{number // 2}"):
        for entry in repo.store.tree_entries(repo.state(name).tree):
            repo.store.get_raw(entry[2])
print(number)
"""


def test_captures_and_readers_in_a_loop(repo: api.Repository, tmp_path: Path) -> None:
    """Processes that store, name and read while collections drop everything that nothing needs lose nothing."""
    least, enough = 40, tmp_path / "enough"
    for number in range(least):
        stored(repo, b"shared %d" % number)
    workers = {
        name: subprocess.Popen(
            [sys.executable, "-c", WORKER, str(repo.path), name, str(least), str(enough)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("a", "b")
    }
    try:
        for _ in range(3):
            fresh(repo).collect(before_ns=time.time_ns())
            assert [worker.poll() for worker in workers.values()] == [None, None]
    finally:
        enough.touch()
        ends = {
            name: (*worker.communicate(), worker.returncode) for name, worker in workers.items()
        }
    assert [(error, code) for _, error, code in ends.values()] == [("", 0), ("", 0)]
    last = fresh(repo)
    last.collect(before_ns=time.time_ns())
    assert last.fsck(full=True).problems == []
    for name, (made, _, _) in ends.items():
        for number in range(int(made)):
            tree = last.state(f"{name}-{number}").tree
            found = {
                each: last.store.get_raw(id)[1] for each, _, id in last.store.tree_entries(tree)
            }
            assert found == {
                b"shared": b"shared %d" % number,
                b"mine": b"%s %d" % (name.encode(), number),
            }
