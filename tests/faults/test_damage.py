"""Damage at random places: right bytes or a clear error, never wrong bytes; found by fsck, and mended or named.

Packs, indexes, the database, its log, settings, alternates and the attributes of overlays are flipped, overwritten,
cut off or removed. The bytes of files that were never captured are left alone: they have no second copy.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

import heddle
from heddle import api
from heddle.cli import main
from heddle.errors import HeddleError
from heddle.git import importing
from heddle.mount import upper as up

from .crash import World
from .view import Hand

Reads = dict[tuple[str, ...], Any]
SETTINGS = settings(
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # an example takes a second
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
OLDER = ("main~1", "main~2", "main~3", "main~4")
LOST = {"lost_object", "database"}
"""What a repair may leave: objects that nothing holds any more, and operations that name them."""


class Origin:
    """A sound repository, and all that can be read of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reads = read_all(path)


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Origin]:
    """History, a marker, overlays with every kind of mark, a parked one, a database with a log, alternates."""
    top = tmp_path_factory.mktemp("damage")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(top))
        patch.setenv("HEDDLE_CONFIG", str(top / "heddle.toml"))
        patch.setenv("HEDDLE_PRINCIPAL_NAME", "Ann Lee")
        patch.setenv("HEDDLE_PRINCIPAL_EMAIL", "ann@example.org")
        other = heddle.init(top / "other")
        (other.path / "shared").write_text("shared by two repositories\n" * 20)
        other.capture(message="Other")
        other.close()
        path = top / "repo"
        repo = heddle.init(path)
        repo.config.set("agent.model", "m")
        for number in range(5):
            for name in ("f", "dir/g", f"dir/sub/h{number}"):
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                (path / name).write_text(f"{name} {number}\n" * 30)
            if number == 4:
                (path / "large").write_bytes(bytes(range(256)) * 20_000)
            if number == 1:
                repo.store.add_alternate(other.store.path)
                (path / "shared").write_text("shared by two repositories\n" * 20)
            repo.capture(message=f"State {number}")
        _import(repo, top / "source", patch)
        repo.markers.create("v1", repo.resolve("main~1"), message="one")
        for thread in ("agent", "gone"):
            repo.threads.create(thread, repo.resolve("main"))
            _edit(World(path), thread, repo)
        repo.threads.delete("gone", force=True)
        shutil.rmtree(path / "dir")  # so that nothing is restored from there
        kept = top / "kept"
        subprocess.run(["cp", "-a", path, kept], check=True)  # with the log of the open database
        repo.close()
        shutil.rmtree(path)
        kept.rename(path)
        _leave_open(path)
        yield Origin(path)


def _import(repo: api.Repository, source: Path, patch: pytest.MonkeyPatch) -> None:
    """Have a pack in the repository that is kept as git made it, with deltas."""
    git = ["git", "-C", str(source), "-c", "user.name=A", "-c", "user.email=a@example.org"]
    source.mkdir()
    subprocess.run([*git, "init", "-q", "-b", "imported"], check=True)
    lines = [f"line {number}\n" for number in range(300)]
    for number in range(4):
        lines[number * 50] = f"changed {number}\n"
        (source / "versions").write_text("".join(lines))
        subprocess.run([*git, "add", "."], check=True)
        subprocess.run([*git, "commit", "-q", "-m", str(number)], check=True)
    subprocess.run([*git, "repack", "-adq"], check=True)
    patch.setattr(importing, "KEPT_FROM", 1)
    importing.import_git(repo, source)


def _leave_open(path: Path) -> None:
    (path / ".heddle" / "heddle.db-shm").unlink(missing_ok=True)
    assert (path / ".heddle" / "heddle.db-wal").stat().st_size > 0


def _edit(world: World, thread: str, repo: api.Repository) -> None:
    hand = world.hand(thread)
    hand.create("captured")
    hand.write("captured", b"captured by " + thread.encode())
    hand.mkdir("new")
    hand.create("new/file")
    world.overlay(thread).capture(message=f"By {thread}", attribution=repo.attribution())
    hand.create("unsaved")
    hand.write("unsaved", b"unsaved of " + thread.encode())
    hand.chmod("f", 0o755)
    hand.rename("dir/sub", "moved")
    hand.unlink("dir/g")
    world.close()


# reading everything


def read_all(path: Path) -> Reads:
    """Every read through the library; a refusal is a value, anything else but the right bytes an error."""
    reads: Reads = {}
    repo = api.open(path, damaged=True)

    def take(key: tuple[str, ...], read: Callable[[], Any]) -> Any:
        try:
            reads[key] = read()
        except HeddleError as error:
            assert error.message and error.exit_code in (65, 74, 78), error
            reads[key] = Refused(error.message)
            return None
        return reads[key]

    take(("threads",), lambda: [(it.name, it.state) for it in repo.threads.list()])
    take(("markers",), lambda: [(it.name, it.state, it.message) for it in repo.markers.list()])
    take(("head",), lambda: repo.head)
    for spec in (
        *("main", *OLDER),
        "agent",
        "v1",
        "imported",
        "imported~1",
        "imported~2",
        "imported~3",
    ):
        state = take((spec,), lambda spec=spec: repo.state(spec))
        if state is not None:
            _read_tree(repo, take, spec, state.tree)
    _read_overlay(path, take)
    repo.close()
    return reads


class Refused(NamedTuple):
    """A read that was refused, and what was said."""

    message: str


def _read_tree(repo: api.Repository, take: Any, where: str, tree: Any) -> None:
    def entries() -> Any:
        try:
            return repo.store.tree_entries(tree)
        except KeyError as error:
            raise HeddleMissing from error

    def content(id: Any) -> bytes:
        try:
            return repo.store.get_raw(id)[1]
        except KeyError as error:
            raise HeddleMissing from error

    for name, mode, id in take((where, "tree"), entries) or ():
        below = f"{where}/{name.decode()}"
        if mode == 0o040000:
            _read_tree(repo, take, below, id)
        else:
            take((below,), lambda id=id: content(id))


class HeddleMissing(HeddleError):
    """An object that is not there: what ``KeyError`` means in the store's dulwich face."""

    exit_code = 74

    def __init__(self) -> None:
        super().__init__("missing")


def _read_overlay(path: Path, take: Any) -> None:
    world = World(path)
    try:
        hand = take(("overlay",), lambda: Known(world.hand("agent")))
        if hand is not None:
            _read_view(hand.hand, take, "")
    finally:
        world.close()


class Known:
    """Equal to any other: there is a view."""

    def __init__(self, hand: Hand) -> None:
        self.hand = hand

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Known)

    __hash__ = None  # type: ignore[assignment]


def _read_view(hand: Hand, take: Any, directory: str) -> None:
    names = take(("view", directory), lambda: sorted(hand.core.enumerate(hand.at(directory).ino)))
    for raw in names or ():
        path = f"{directory}/{raw.decode()}".lstrip("/")
        attrs = take(("kind", path), lambda path=path: hand.at(path).mode)
        if attrs is not None and attrs & 0o170000 == 0o040000:
            _read_view(hand, take, path)
        elif attrs is not None:
            take(("file", path), lambda path=path: hand.read(path))


# damaging


class Damage(NamedTuple):
    """What is done to one file: which, where (as a share of its length), and how."""

    target: int
    at: float
    how: str
    piece: bytes


damages = st.builds(
    Damage,
    target=st.integers(0, 10_000),
    at=st.floats(0, 1, exclude_max=True),
    how=st.sampled_from(["flip", "flip", "flip", "overwrite", "zero", "cut", "remove"]),
    piece=st.binary(min_size=1, max_size=40),
)


def targets(path: Path) -> list[Path]:
    """The files that may be damaged, in an order that does not depend on their names."""
    base = path / ".heddle"
    packs = sorted((base / "objects" / "packs").iterdir(), key=lambda it: (it.stat().st_size, it))
    return [
        *packs,
        *(base / name for name in ["heddle.db"] * 6 + ["config.toml", "objects/alternates"]),
        *sorted(_marked(base / "overlays")),
    ]


def _marked(overlays: Path) -> Iterator[Path]:
    for path in overlays.rglob("*"):
        if not path.is_symlink() and up.MARKS in os.listxattr(path):
            yield path


def apply(damage: Damage, path: Path) -> Path:
    """Damage a repository; returns what."""
    files = [it for it in targets(path) if it.exists()]
    target = files[damage.target % len(files)]
    if "overlays" in target.parts:
        value = os.getxattr(target, up.MARKS)
        changed = _changed(value, damage._replace(how=damage.how.replace("remove", "flip")))
        os.setxattr(target, up.MARKS, changed)
    elif damage.how == "remove":
        target.unlink()
    else:
        target.chmod(0o644)
        target.write_bytes(_changed(target.read_bytes(), damage))
    return target


def _changed(data: bytes, damage: Damage) -> bytes:
    at = int(damage.at * len(data))
    if damage.how == "cut":
        return data[:at]
    if damage.how == "flip":
        piece = bytes([data[at] ^ (1 << damage.piece[0] % 8)]) if data else b""
    elif damage.how == "zero":
        at -= at % 512
        piece = bytes(min(512, len(data) - at))
    else:
        piece = damage.piece
    return data[:at] + piece + data[at + len(piece) :]


@contextlib.contextmanager
def copied(origin: Origin, tmp_path: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=tmp_path) as directory:
        path = Path(directory, "repo")
        subprocess.run(["cp", "-a", "--sparse=always", origin.path, path], check=True)
        yield path


# what must hold


def wrong(origin: Origin, found: Reads) -> dict[Any, Any]:
    """Reads that gave something else than the right answer, and were not refused."""
    return {
        key: value
        for key, value in found.items()
        if not isinstance(value, Refused) and value != origin.reads.get(key, value)
    }


def refused(found: Reads) -> list[str]:
    return [value.message for value in found.values() if isinstance(value, Refused)]


@given(st.lists(damages, min_size=1, max_size=3))
@settings(SETTINGS, max_examples=40)
def test_any_damage(origin: Origin, tmp_path: Path, damage: list[Damage]) -> None:
    """No read gives wrong bytes, fsck finds what any read met, and what a repair can't mend it names."""
    with copied(origin, tmp_path) as path:
        for each in damage:
            note(f"{each.how} of {apply(each, path).relative_to(path)}")
        before = read_all(path)
        assert wrong(origin, before) == {}
        repo = api.open(path, damaged=True)
        problems = repo.fsck(full=True).problems
        assert problems or not refused(before), refused(before)
        done, report = repo.repair(full=True)
        note(f"mended {done.mended}, aside {done.aside}, lost {done.lost}, left {done.left}")
        assert {it.kind for it in report.problems} <= LOST, report.problems
        assert done.left == []
        repo.close()

        after = read_all(path)
        assert not refused(after) or done.lost, refused(after)
        if not done.lost:
            assert {key: after.get(key) for key in origin.reads} == origin.reads
        repo = api.open(path)
        assert repo.fsck(full=True).problems == report.problems
        repo.close()


COMMANDS = (
    ["status"],
    ["log", "main"],
    ["log", "-n", "1", "agent"],
    ["show", "main:dir/g"],
    ["show", "agent"],
    ["diff", "main~1", "main"],
    ["thread", "list"],
    ["marker", "list"],
    ["mounts"],
    ["overlay", "list"],
    ["overlay", "du"],
    ["whoami"],
    ["config", "list"],
    ["capture", "--thread", "agent", "-m", "after"],
    ["switch", "agent"],
    ["doctor"],
    ["fsck"],
    ["fsck", "--repair", "--dry-run"],
    ["fsck", "--repair"],
    ["thread", "list"],
)


@given(damages)
@settings(SETTINGS, max_examples=25)
def test_no_command_breaks(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Damage
) -> None:
    """Every command ends with an exit code that scripts know and one line that says why; none with a traceback."""
    with copied(origin, tmp_path) as path:
        note(f"{damage.how} of {apply(damage, path).relative_to(path)}")
        monkeypatch.chdir(path)
        for words in COMMANDS:
            out, err = io.BytesIO(), io.StringIO()
            with (
                contextlib.redirect_stdout(io.TextIOWrapper(out, write_through=True)),
                contextlib.redirect_stderr(err),
            ):
                code = main([*words, "--json"])
            note(f"{words}: {code} {err.getvalue()}")
            assert code in (0, 1, 65, 74, 78), (words, code, err.getvalue())
            if code not in (0, 1):
                said = json.loads(err.getvalue())["error"]
                assert said["exit_code"] == code and said["message"]
                assert said["kind"] != "internal", said
        monkeypatch.chdir(tmp_path)


@given(damages)
@settings(SETTINGS, max_examples=10)
def test_a_mount_of_something_damaged(origin: Origin, tmp_path: Path, damage: Damage) -> None:
    """A program in the mount gets right bytes or EIO; the session lives, or never began and said why."""
    with copied(origin, tmp_path) as path:
        note(f"{damage.how} of {apply(damage, path).relative_to(path)}")
        place = path.parent / "place"
        repo = api.open(path, damaged=True)
        try:
            repo.mount("agent", place)
        except HeddleError as error:
            assert error.exit_code in (65, 74, 78), error
            assert repo.fsck(full=True).problems != []
            repo.close()
            return
        try:
            met = []
            for key, value in origin.reads.items():
                if key[0] == "file":
                    try:
                        assert (place / key[1]).read_bytes() == value, key
                    except OSError as error:
                        met.append((key[1], error.errno))
            (place / "written").write_text("it goes on")
            assert [it.state for it in repo.mounts()] == ["live"]
        finally:
            repo.unmount("agent", force=True)
        problems = repo.fsck(full=True).problems
        assert {number for _, number in met} <= {5, 2}, (
            met
        )  # EIO; ENOENT below a directory of which nothing shows
        assert problems or not met
        repo.close()
