"""``fsck --repair``: what it mends, sets aside and says is lost; and that it can be killed and run again."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sqlite3
import traceback
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

import heddle
from heddle import api, faults
from heddle.errors import Busy, HeddleError
from heddle.mount import upper as up
from heddle.mount.files import LARGE
from heddle.mount.overlay import Overlay
from heddle.objects.gitformat import BLOB
from heddle.repo.gc import collect
from heddle.repo.locks import file_locked_nowait

from .crash import World
from .points import points
from .test_points import IN_REPAIRS
from .view import look


@pytest.fixture
def world(tmp_path: Path, nothing_left: None) -> Path:
    """A repository with history, a marker, two threads with overlays, one of them captured, and a parked one."""
    path = tmp_path / "repo"
    repo = heddle.init(path)
    for number in range(4):
        (path / "f").write_text(f"version {number}\n")
        (path / "dir").mkdir(exist_ok=True)
        (path / "dir" / f"g{number}").write_text(f"content {number}\n" * 50)
        repo.capture(message=f"State {number}")
    repo.markers.create("v1", repo.resolve("main~1"), message="the first one")
    for thread in ("agent", "other", "gone"):
        repo.threads.create(thread, repo.resolve("main"))
        world = World(path)
        hand = world.hand(thread)
        hand.create("captured")
        hand.write("captured", b"by " + thread.encode())
        world.overlay(thread).capture(message=f"By {thread}", attribution=repo.attribution())
        hand.create("unsaved")
        hand.write("unsaved", b"unsaved of " + thread.encode())
        hand.chmod("f", 0o755)
        hand.rename("dir", "moved")
        world.close()
    repo.threads.delete("gone", force=True)
    repo.close()
    return path


def opened(path: Path) -> api.Repository:
    return api.open(path, damaged=True)


def repaired(path: Path, **options: bool) -> tuple[api.Repository, object, object]:
    repo = opened(path)
    done, report = repo.repair(**options)
    return repo, done, report


def mended(path: Path) -> None:
    """A repair leaves nothing to say, nothing lost."""
    repo, done, report = repaired(path)
    assert (report.problems, done.lost, done.left) == ([], [], []), (report, done)  # type: ignore[attr-defined]
    assert repo.fsck(full=True).problems == []
    repo.close()


def pack_of(path: Path, spec: str, name: bytes) -> Path:
    """The pack that holds a file of a state."""
    repo = opened(path)
    raw_id = bytes.fromhex(repo.lookup_path(spec, name)[1].decode())
    found = repo.store._packs.find_anew(raw_id)
    repo.close()
    assert found is not None
    return found[0].pack_path


def change(path: Path, at: int = -1, piece: bytes = b"") -> None:
    """Overwrite bytes in the middle of a file, or at a place."""
    data = bytearray(path.read_bytes())
    at = len(data) // 2 if at < 0 else at
    piece = piece or bytes(byte ^ 0xFF for byte in data[at : at + 8])
    data[at : at + len(piece)] = piece
    path.chmod(0o644)
    path.write_bytes(data)


# the database

DATABASE: dict[str, Callable[[Path], None]] = {
    "missing": lambda db: db.unlink(),
    "empty": lambda db: db.write_bytes(b""),
    "its first page": lambda db: change(db, 0, bytes(4096)),
    "its header": lambda db: change(db, 0, b"\xff" * 100),
    "another format": lambda db: change(db, 60, bytes(4)),
    "page 2": lambda db: change(db, 4096, bytes(4096)),
    "page 3": lambda db: change(db, 2 * 4096, bytes(4096)),
    "page 4": lambda db: change(db, 3 * 4096, bytes(4096)),
    "page 7": lambda db: change(db, 6 * 4096, bytes(4096)),
    "cut off": lambda db: os.truncate(db, 5 * 4096),
    "nonsense": lambda db: db.write_bytes(os.urandom(db.stat().st_size)),
}


@pytest.mark.parametrize("how", DATABASE)
def test_a_damaged_database(world: Path, how: str) -> None:
    """Threads, markers, HEAD, overlays and their bases are there again, and the damaged file is kept."""
    before = look(world, {}).holds
    db = world / ".heddle" / "heddle.db"
    DATABASE[how](db)
    damaged = db.read_bytes() if db.exists() else None
    if how != "page 7":  # of a table that a command may not need
        with pytest.raises(HeddleError):
            api.open(world).threads.list()
    assert opened(world).fsck().problems != []

    repo, _done, report = repaired(world)
    assert report.problems == []  # type: ignore[attr-defined]
    repo.close()
    after = look(world, {}).holds
    if how in (
        "missing",
        "empty",
        "nonsense",
        "cut off",
        "page 7",
    ):  # the log is lost: names from states
        assert {"main", "agent", "other"} <= {it.name for it in api.open(world).threads}
    else:
        assert after == before
    assert all(row.new != "" for row in api.open(world).database.operations())
    kept = [path.read_bytes() for path in (world / ".heddle" / "damaged").rglob("heddle.db")]
    assert kept == ([] if damaged is None else [damaged])


def test_a_renamed_thread_in_a_sound_file(world: Path) -> None:
    """A flipped bit in a name, which SQLite can't see, is an error; the repair knows the name from the log."""
    before = look(world, {}).holds
    db = world / ".heddle" / "heddle.db"
    data = db.read_bytes()
    at = data.rindex(b"v1", 0, data.index(b"the first one"))
    change(db, at, b"w1")

    with pytest.raises(HeddleError, match="a name is not what was written"):
        api.open(world).markers.list()
    mended(world)
    assert look(world, {}).holds == before


def test_an_operation_that_was_changed(world: Path) -> None:
    """A flipped bit in the log is found, and said to be lost."""
    db = world / ".heddle" / "heddle.db"
    data = db.read_bytes()
    change(db, data.index(b"State 2"), b"Stale 2")

    assert any("operation" in it.what for it in opened(world).fsck().problems)
    repo, done, report = repaired(world)
    assert "operations" in done.lost[0]  # type: ignore[attr-defined]
    assert report.problems == []  # type: ignore[attr-defined]
    repo.close()


def test_a_thread_whose_state_is_lost(world: Path) -> None:
    """The thread goes back to the newest state that can be read, and the report says what is lost.

    That the log goes on naming the lost state is told as well, but not as something that another repair would mend.
    """
    repo = opened(world)
    lost, before = (repo.resolve(spec) for spec in ("main", "main~1"))
    pack = repo.store._packs.find_anew(bytes.fromhex(lost.decode()))
    repo.close()
    assert pack is not None
    pack[0].pack_path.unlink()
    pack[0].path.unlink()

    repo, done, report = repaired(world)
    assert repo.threads.get("main").state == before
    assert any(lost.decode() in line for line in done.lost)  # type: ignore[attr-defined]
    logged = [it for it in report.problems if it.what.startswith("operation ")]  # type: ignore[attr-defined]
    assert logged and all("--repair" not in it.repair for it in logged)
    repo.close()


def test_a_live_session_keeps_its_database(world: Path, tmp_path: Path) -> None:
    """While a session uses it, a database is not replaced; afterwards it is, and nothing unsaved is lost."""
    repo = api.open(world)
    place = repo.mount("agent", tmp_path / "place").mountpoint
    (place / "live").write_text("unsaved in a live mount")
    change(world / ".heddle" / "heddle.db", 2 * 4096, bytes(4096))

    with pytest.raises(Busy, match="uses it"):
        opened(world).repair()
    api.unmount(place)
    repo.close()
    repaired(world)[0].close()
    repo = api.open(world)
    again = repo.mount("agent", tmp_path / "place").mountpoint
    assert (again / "live").read_text() == "unsaved in a live mount"
    repo.unmount("agent")


# packs


def test_an_index_from_its_pack(world: Path) -> None:
    """Missing and damaged indexes are made again."""
    before = look(world, {}).holds
    indexes = sorted((world / ".heddle" / "objects" / "packs").glob("*.idx"))
    indexes[0].unlink()
    change(indexes[1])
    shutil.copyfile(indexes[3], indexes[2].with_name("copy"))
    indexes[2].chmod(0o644)
    (indexes[2].with_name("copy")).rename(indexes[2])

    assert len([it for it in opened(world).fsck().problems if "index" in it.kind]) == 3
    mended(world)
    assert look(world, {}).holds == before


def test_a_damaged_entry(world: Path) -> None:
    """What is sound of a pack is kept, the pack is set aside whole, and what is lost is named with its path."""
    pack = pack_of(world, "main", b"dir/g0")
    repo = opened(world)
    id = repo.lookup_path("main", b"dir/g0")[1]
    found = repo.store._packs.find_anew(bytes.fromhex(id.decode()))
    repo.close()
    assert found is not None
    (world / "dir" / "g0").unlink()  # else it would be found there
    change(pack, found[1].offset + 60)
    damaged = pack.read_bytes()

    said = [it.what for it in opened(world).fsck().problems if it.kind == "lost_object"]
    assert len(said) == 1 and "'dir/g0'" in said[0] and id.decode() in said[0]
    repo, done, report = repaired(world)
    assert done.lost == said  # type: ignore[attr-defined]
    assert [it.kind for it in report.problems] == ["lost_object"]  # type: ignore[attr-defined]
    assert not pack.exists()
    [aside] = (world / ".heddle" / "damaged").rglob(pack.name)
    assert aside.read_bytes() == damaged
    assert repo.store.get_raw(repo.lookup_path("main", b"dir/g3")[1]) == (BLOB, b"content 3\n" * 50)
    repo.close()


@pytest.mark.parametrize("where", ["behind it", "its header", "its end"])
def test_a_damaged_pack_of_which_nothing_is_lost(world: Path, where: str) -> None:
    """A pack whose objects are all sound is made anew under its own name, and stays in use."""
    pack = pack_of(world, "main", b"dir/g0")
    (world / "dir" / "g0").unlink()  # else it would be found there
    before, data = look(world, {}).holds, pack.read_bytes()
    pack.chmod(0o644)
    if where == "behind it":
        pack.write_bytes(data + b"garbage")
    else:
        change(pack, 0 if where == "its header" else len(data) - 8, b"\xff" * 4)
    assert opened(world).fsck().problems != []

    mended(world)
    assert pack.read_bytes() == data
    assert look(world, {}).holds == before


def test_lost_bytes_that_are_still_in_a_file(world: Path) -> None:
    """What a pack lost and the working directory or an overlay still has, under whatever name, is stored again."""
    (world / "link").symlink_to("somewhere/" + hashlib.shake_128(b"").hexdigest(50))
    with closing(heddle.open(world)) as repo:
        repo.capture(message="A link")
    (world / "dir" / "g1").rename(world / "dir" / "another name")
    for spec, name in (("main", b"dir/g1"), ("agent", b"captured"), ("main", b"link")):
        pack = pack_of(world, spec, name)
        repo = opened(world)
        id = repo.lookup_path(spec, name)[1]
        found = repo.store._packs.find_anew(bytes.fromhex(id.decode()))
        repo.close()
        assert found is not None
        change(pack, found[1].offset + 60)

    repo, done, report = repaired(world)
    assert any("stored again" in line for line in done.mended)  # type: ignore[attr-defined]
    assert (report.problems, done.lost) == ([], [])  # type: ignore[attr-defined]
    repo.close()


def test_a_large_file_in_parts_whose_captured_bytes_are_found_again(world: Path) -> None:
    """A change in a large file stays where its captured bytes are lost with a pack and still lie in a file."""
    content = bytes(range(251)) * (6 * LARGE // 5 // 251)
    (world / "large").write_bytes(content)
    with closing(heddle.open(world)) as repo:
        repo.capture(message="Large")
        repo.threads.create("editor", repo.resolve("main"))
    editor = World(world)
    editor.hand("editor").write("large", b"HERE", offset=5)
    editor.close()
    pack = pack_of(world, "main", b"large")
    change(pack, pack.stat().st_size // 2)

    mended(world)
    with closing(World(world)) as editor:
        assert editor.hand("editor").read("large") == content[:5] + b"HERE" + content[9:]


def test_an_object_that_another_pack_has(world: Path) -> None:
    """A damaged object is read from its copy without any repair."""
    repo = opened(world)
    id = repo.lookup_path("main", b"f")[1]
    content = repo.store.get_raw(id)[1]
    other = heddle.init(world.parent / "other")
    with other.store.writer() as writer:
        writer.add_blob(content)
        name = writer.commit()
    for suffix in ("pack", "idx"):
        file = f"packs/{name}.{suffix}"
        shutil.copyfile(other.store.path / file, repo.store.path / file)
    pack = pack_of(world, "main", b"f")
    change(pack, 16 + 60)
    change(pack)
    repo.close()
    other.close()

    assert opened(world).store.get_raw(id) == (BLOB, content)


# overlays


def upper_of(world: Path, thread: str = "agent") -> Path:
    return world / ".heddle" / "overlays" / thread / "upper"


def spoil(path: Path, name: str = up.MARKS) -> None:
    value = bytearray(os.getxattr(path, name))
    value[len(value) // 2] ^= 4
    os.setxattr(path, name, bytes(value))


def reads(world: Path, thread: str = "agent") -> dict[str, bytes]:
    """The files of a thread's view."""
    holds = look(world, {}).holds
    return {key[2]: value for key, value in holds.items() if key[:2] == ("overlay", thread)}


@pytest.mark.parametrize("name", ["f", "captured", "unsaved", "moved"])
def test_damaged_marks(world: Path, name: str) -> None:
    """Real bytes win, a hole shows the blob that its marks still name, a directory what it showed."""
    before = reads(world)
    path = upper_of(world) / name
    if not any(it == up.MARKS for it in os.listxattr(path)):
        os.setxattr(path, up.MARKS, b"damaged")
    else:
        spoil(path)
    problems = opened(world).fsck().problems
    assert [it.kind for it in problems] == ["damaged_overlay"]
    assert str(path) in problems[0].what

    repo, _done, report = repaired(world)
    assert report.problems == []  # type: ignore[attr-defined]
    repo.close()
    after = reads(world)
    assert {key: value[1] for key, value in after.items()} == {
        key: value[1] for key, value in before.items()
    }


def test_marks_of_a_lost_object(world: Path) -> None:
    """A file that was to show a lost blob is set aside, and what is captured of that name shows again."""
    path = upper_of(world) / "f"
    marks = up.read_marks(os.fsencode(path))
    assert marks is not None and marks.blob is not None
    up.write_marks(os.fsencode(path), marks._replace(blob=b"0" * 40))  # type: ignore[arg-type]

    repo, done, report = repaired(world)
    assert [Path(it.path).name for it in done.aside] == ["f"]  # type: ignore[attr-defined]
    assert (len(done.lost), report.problems) == (1, [])  # type: ignore[attr-defined]
    repo.close()
    with Overlay.open(api.open(world), "agent") as overlay:
        assert overlay.read_new(b"f") == b"version 3\n"


def test_marks_of_which_nothing_is_left(world: Path) -> None:
    """A hole whose marks say nothing any more is never taken for a file of zeros: it is set aside."""
    path = upper_of(world) / "f"
    os.setxattr(
        path, up.MARKS, bytes(2000)
    )  # outside of the inode, in a block that counts as the file's

    repo, done, report = repaired(world)
    assert [Path(it.path).name for it in done.aside] == ["f"]  # type: ignore[attr-defined]
    assert (len(done.lost), report.problems) == (1, [])  # type: ignore[attr-defined]
    repo.close()
    with Overlay.open(api.open(world), "agent") as overlay:
        assert overlay.read_new(b"f") == b"version 3\n"


def test_captured_bytes_that_changed_below(world: Path) -> None:
    """A captured file that the disk changed is found by --full; it shows what was captured, its bytes are kept."""
    path = upper_of(world) / "captured"
    status = path.stat()
    path.write_bytes(b"by igent")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    assert [it.kind for it in opened(world).fsck(full=True).problems] == ["damaged_overlay"]
    repo, done, report = repaired(world, full=True)
    assert report.problems == []  # type: ignore[attr-defined]
    repo.close()
    with Overlay.open(api.open(world), "agent") as overlay:
        assert overlay.read_new(b"captured") == b"by agent"
    assert [Path(it.to).read_bytes() for it in done.aside] == [b"by igent"]  # type: ignore[attr-defined]


def test_an_overlay_without_a_thread(world: Path) -> None:
    """It is parked, where it can be found."""
    overlay = world / ".heddle" / "overlays" / "agent"
    overlay.rename(overlay.with_name("nobody"))

    mended(world)
    assert [it.why for it in api.open(world).park.list() if it.thread == "nobody"] == ["orphan"]


def test_settings_and_alternates(world: Path) -> None:
    """A settings file that can't be read is set aside, and a line of alternates that leads nowhere too."""
    (world / ".heddle" / "config.toml").write_text("= nonsense")
    (world / ".heddle" / "objects" / "alternates").write_bytes(
        b"/no\0where\n" + b"x" * 5000 + b"\n"
    )
    assert {it.kind for it in opened(world).fsck().problems} == {"settings", "missing_alternate"}

    mended(world)
    kept = {path.name for path in (world / ".heddle" / "damaged").rglob("*") if path.is_file()}
    assert {"config.toml", "alternates"} <= kept


def test_a_dry_run_changes_nothing(world: Path) -> None:
    """It says what would be done, and every byte stays."""
    change(pack_of(world, "main", b"f"))
    spoil(upper_of(world) / "f")
    before = files_of(world)

    _repo, done, report = repaired(world, dry_run=True)
    assert files_of(world) == before
    assert done.mended and done.aside and report.problems  # type: ignore[attr-defined]
    assert {it.to for it in done.aside} == {None}  # type: ignore[attr-defined]


def files_of(world: Path) -> dict[str, str]:
    """Every file below ``.heddle`` by the hash of its bytes, without locks and what SQLite keeps beside its file."""
    found = {}
    for path in sorted((world / ".heddle").rglob("*")):
        if path.is_file() and not path.name.startswith(("heddle.db-", "gc.lock")):
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


# killed


def damage_all(world: Path) -> None:
    """Something that every step of a repair is needed for."""
    change(world / ".heddle" / "heddle.db", 0, bytes(4096))
    change(pack_of_unopened(world))
    for name in ("f", "moved"):
        spoil(upper_of(world) / name)
    os.setxattr(upper_of(world, "other") / "moved", up.OPAQUE, b"n")
    captured = upper_of(world, "other") / "captured"
    status = captured.stat()
    captured.write_bytes(b"xy other")
    os.utime(captured, ns=(status.st_atime_ns, status.st_mtime_ns))


def pack_of_unopened(world: Path) -> Path:
    return min((world / ".heddle" / "objects" / "packs").glob("*.pack"))


def visits_of(world: Path) -> list[str]:
    """The points that a repair reaches, one after the other."""
    names: list[str] = []
    real = faults.reach
    faults.reach = names.append  # type: ignore[assignment]
    try:
        repaired(world, full=True)[0].close()
    finally:
        faults.reach = real
    return [name for name in names if name.startswith(IN_REPAIRS)]


def killed(world: Path, point: str, number: int) -> None:
    """Repair in a process that dies the n-th time that it reaches a point."""
    pid = os.fork()
    if pid == 0:
        try:
            faults._wanted, faults._left = point, number
            repaired(world, full=True)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (point, number)


def test_a_repair_can_be_killed_anywhere(world: Path, tmp_path: Path) -> None:
    """Killed at any step and run again, a repair comes to the same, and no damaged byte is gone."""
    damage_all(world)
    start = tmp_path / "start"
    world.rename(start)
    before = set(files_of(start).values())

    def copy() -> Path:
        shutil.rmtree(world, ignore_errors=True)
        subprocess_copy(start, world)
        return world

    visits = visits_of(copy())
    assert {it for it in points() if it.startswith(IN_REPAIRS)} == set(visits)
    wanted = look(world, {}).holds
    for at, point in enumerate(visits):
        killed(copy(), point, visits[: at + 1].count(point))
        repo, _done, _report = repaired(world, full=True)
        repo.close()
        assert look(world, {}).holds == wanted, point
        gone = before - set(files_of(world).values())
        assert gone <= set(rewritten(start)), (point, gone)


def rewritten(start: Path) -> list[str]:
    """Files that are no evidence: locks and notes that every opening writes anew."""
    return [
        digest
        for name, digest in files_of(start).items()
        if Path(name).name in ("boot", "lock", "session.log")
    ]


def subprocess_copy(source: Path, target: Path) -> None:
    """A copy with extended attributes, holes, times and device nodes."""
    import subprocess

    subprocess.run(["cp", "-a", "--sparse=always", source, target], check=True)


def test_the_log_of_a_killed_repair_is_read_again(world: Path) -> None:
    """What only the write-ahead log held is not lost when the repair dies between its steps."""
    raw = sqlite3.connect(world / ".heddle" / "heddle.db")
    repo = api.open(world)
    repo.threads.create("late", repo.resolve("main"))
    log = world / ".heddle" / "heddle.db-wal"
    saved = {it: it.read_bytes() for it in (log, world / ".heddle" / "heddle.db")}
    repo.close()
    raw.close()
    for path, data in saved.items():
        path.write_bytes(data)
    change(world / ".heddle" / "heddle.db", 0, b"\xff" * 100)

    killed(world, "rebuild.before-rename", 1)
    repaired(world)[0].close()
    assert "late" in api.open(world).threads


# after gc


def test_a_damaged_pack_that_gc_made(world: Path) -> None:
    """Of a pack in which versions lie against each other, what can be read is kept, the rest named."""
    repo = api.open(world)
    collect(repo)
    repo.close()
    [pack] = (world / ".heddle" / "objects" / "packs").glob("*.pack")
    before = look(world, {}).holds
    shutil.rmtree(world / "dir")
    change(pack, pack.stat().st_size * 3 // 4)

    repo, done, report = repaired(world)
    lost = [it.what for it in report.problems if it.kind == "lost_object"]  # type: ignore[attr-defined]
    assert [it for it in done.lost if "lost: object" in it] == lost  # type: ignore[attr-defined]
    assert not pack.exists()
    assert repo.fsck(full=True).problems == report.problems  # type: ignore[attr-defined]
    repo.close()
    if not report.problems:  # type: ignore[attr-defined]
        assert look(world, {}).holds == before


def test_no_repair_while_gc_runs(world: Path) -> None:
    """Both would replace packs: the second is told to come again."""
    with (
        file_locked_nowait(world / ".heddle" / "gc.lock"),
        pytest.raises(Busy, match="heddle gc is running"),
    ):
        opened(world).repair()
