"""What people and agents do, step by step, with every way of it that has a fault point."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from unittest.mock import patch

import heddle
from heddle.mount import upper as up
from heddle.mount.parked import Park

from .crash import Scenario, Step, World

FILES = {
    "keep.txt": "kept\n",
    **{name: f"content of {name}\n" for name in "abcdefgh"},
    "dir/x": "x\n",
    "dir/y": "y\n",
    "dir/sub/z": "z\n",
    "gone/p": "p\n",
    "gone/q": "q\n",
    "old/m": "m\n",
    "other/n": "n\n",
    "was/o": "o\n",
}


def captured(path: Path) -> None:
    """A repository with one state on ``main``, and a thread ``agent`` at it."""
    repo = heddle.init(path)
    for name, text in FILES.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(text)
    (path / "link").symlink_to("a")
    repo.capture(message="First")
    repo.threads.create("agent", repo.threads.get("main").state)
    repo.close()


def capture(world: World, **options: object) -> None:
    repo = world.repo
    with repo.store.writer() as writer:
        world.overlay("agent").record(
            message="by the agent", attribution=repo.attribution(), writer=writer, **options
        )


def edit(name: str, *args: object, both: bool = False, **options: object) -> Step:
    """One system call in the mount of ``agent``."""
    called = " ".join([name, *map(str, args)])
    return Step(called, lambda w: getattr(w.hand(), name)(*args, **options), both=both)


OPEN = Step("mount", lambda w: w.overlay("agent"))
CAPTURE = Step("capture", capture, command=True)

EDITS = Scenario(
    "edits",
    captured,
    [
        OPEN,
        edit("create", "new"),
        edit("write", "new", b"new bytes"),
        edit("write", "keep.txt", b"appended"),
        edit("chmod", "b", 0o755),
        edit("write", "b", b"after chmod"),
        edit("chmod", "c", 0o600),
        edit("truncate", "c", 0),
        edit("truncate", "d", 4),
        edit("utime", "e", 10**18 + 5),
        edit("set_xattr", "e", b"user.note", b"one"),
        edit("unlink", "a"),
        edit("unlink", "keep.txt"),
        edit("create", "a"),
        edit("write", "a", b"a again"),
        edit("unlink", "gone/p"),
        edit("unlink", "gone/q"),
        edit("rmdir", "gone"),
        edit("mkdir", "gone"),
        edit("create", "gone/p"),
        edit("rename", "f", "f2"),
        edit("rename", "dir", "moved"),
        edit("write", "moved/x", b"moved"),
        edit("unlink", "moved/x"),
        edit("unlink", "moved/y"),
        edit("unlink", "moved/sub/z"),
        edit("rmdir", "moved/sub"),
        edit("rmdir", "moved"),
        edit("unlink", "old/m"),
        edit("mkdir", "fresh"),
        edit("create", "fresh/inside"),
        edit("rename", "fresh", "old"),
        edit("unlink", "was/o"),
        edit("rmdir", "was"),
        edit("mkdir", "fresh"),
        edit("rename", "fresh", "was"),
        edit("rmdir", "was"),
        edit("rename", "other", "was"),
        edit("rename", "new", "g", exchange=True),
        edit("symlink", b"target", "s"),
        edit("rename", "link", "link2"),
        edit("symlink", b"target", "link"),
        edit("unlink", "link2"),
        edit("link", "h", "h2"),
        edit("mkfifo", "fifo"),
        edit("unlink", "fifo"),
        edit("rename", "s", "f"),
        edit("link", "h", "keep.txt"),
        CAPTURE,
        edit("write", "b", b"after the capture"),
        edit("truncate", "h", 2),
        edit("rename", "was", "elsewhere"),
        Step("capture of a path", lambda w: capture(w, paths=[b"b"])),
        CAPTURE,
    ],
)


def _no_whiteouts(
    old_fd: int, old: bytes, new_fd: int, new: bytes, flags: int, real: object = up.renameat2
) -> None:
    if flags & up.RENAME_WHITEOUT:
        raise OSError(22, "Invalid argument")
    assert callable(real)
    real(old_fd, old, new_fd, new, flags)


@contextmanager
def plain_file_system() -> Iterator[None]:
    """A file system that can't leave a whiteout behind in one step."""
    real = up.renameat2
    up.renameat2 = _no_whiteouts
    try:
        yield
    finally:
        up.renameat2 = real


PLAIN = Scenario(
    "edits on a file system without RENAME_WHITEOUT",
    captured,
    [OPEN, edit("rename", "f", "f2", both=True), edit("rename", "dir", "moved", both=True)],
    patched=plain_file_system,
)


def _others_capture(world: World) -> None:
    """Somebody else captures on the thread: in the plain working directory, which is switched to it."""
    repo = world.repo
    repo.switch("agent")
    (world.path / "a").write_text("by somebody else\n")
    (world.path / "dir" / "x").unlink()
    (world.path / "more").write_text("more\n")
    repo.capture(message="By somebody else")


REBASE = Scenario(
    "rebase",
    captured,
    [
        OPEN,
        edit("utime", "a", 10**18),
        edit("utime", "dir/x", 10**18),
        edit("rename", "old", "older"),
        edit("unlink", "b"),
        edit("create", "short"),
        CAPTURE,
        edit("create", "b"),
        edit("unlink", "short"),
        CAPTURE,
        Step("somebody else captures", _others_capture, quiet=True),
        Step("rebase", lambda w: w.overlay("agent").rebase(), command=True),
        edit("write", "a", b"and mine"),
    ],
)


def _git_goes_on(world: World) -> None:
    """A state that is nowhere seen yet, as git in the mount makes one: some of what is there, and other things."""
    repo = world.repo
    repo.threads.create("elsewhere", repo.threads.get("agent").state)
    repo.switch("elsewhere")
    (world.path / "a").write_text("edited")
    (world.path / "b").write_text("not in the mount\n")
    (world.path / "dir" / "x").unlink()
    shutil.rmtree(world.path / "dir" / "sub")
    (world.path / "dir" / "sub").write_text("a file\n")
    (world.path / "was" / "o").write_text("not in the mount\n")
    (world.path / "appeared").mkdir()
    (world.path / "appeared" / "here").write_text("not in the mount\n")
    repo.capture(message="By git")


def _adopt(world: World) -> None:
    there = world.repo.threads.get("elsewhere").state
    was = world.repo.threads.get("agent").state
    if was != there:
        world.overlay("agent").adopt(there, thread=(was,))


ADOPT = Scenario(
    "git in the mount moves the base",
    captured,
    [
        OPEN,
        edit("truncate", "a", 0),
        edit("write", "a", b"edited"),
        edit("utime", "dir/y", 10**18),
        edit("rename", "old", "older"),
        edit("unlink", "c"),
        Step("git goes on", _git_goes_on, quiet=True),
        Step("adopt", _adopt, command=True),
        edit("write", "b", b"afterwards"),
        CAPTURE,
    ],
)

DISCARD = Scenario(
    "discard",
    captured,
    [
        OPEN,
        edit("create", "new"),
        edit("write", "new", b"precious"),
        edit("write", "a", b"also"),
        Step("discard", lambda w: w.overlay("agent").discard(), command=True),
        edit("write", "a", b"afterwards"),
    ],
)


def _lose_power(world: World) -> None:
    """The machine goes down after a capture: of two files' bytes, and of which boot it was, nothing is left."""
    world.close_overlays()
    overlay = world.path / ".heddle" / "overlays" / "agent"
    (overlay / "boot").write_text("another boot")
    for name in ("new", "b"):
        os.truncate(overlay / "upper" / name, 0)
    world.overlay("agent")


POWER = Scenario(
    "the power fails",
    captured,
    [
        OPEN,
        edit("create", "new"),
        edit("write", "new", b"new bytes"),
        edit("write", "b", b"appended"),
        CAPTURE,
        Step("power fails", _lose_power),
        edit("write", "b", b"and more"),
    ],
)


def _run_park(act: Callable[[Park], object]) -> Callable[[World], object]:
    def do(world: World) -> None:
        world.close_overlays()
        act(world.repo.park)

    return do


def _edit_and_discard(world: World) -> None:
    hand = world.hand()
    hand.create("new")
    hand.write("new", b"precious")
    world.overlay("agent").discard()
    world.hand().utime("a", 10**18)
    world.close_overlays()


PARK = Scenario(
    "the park",
    captured,
    [
        Step("discard", _edit_and_discard, quiet=True),
        Step("restore", _run_park(lambda park: park.restore("agent")), command=True, mixed=True),
        Step("delete", lambda w: w.repo.threads.delete("agent", force=True), command=True),
        Step("restore", _run_park(lambda park: park.restore("agent", "again")), command=True),
        Step("delete", lambda w: w.repo.threads.delete("again", force=True), command=True),
        Step("drop", _run_park(lambda park: park.drop(park.list())), True, mixed=True),
    ],
)


def _write(name: str, text: str) -> Step:
    def do(world: World) -> None:
        place = world.path / name
        place.parent.mkdir(exist_ok=True)
        place.write_text(text)

    return Step(f"write {name}", do)


def _remove(world: World) -> None:
    shutil.rmtree(world.path / "dir", ignore_errors=True)
    (world.path / "a").unlink(missing_ok=True)


def _offline_edit(world: World) -> None:
    hand = world.hand("side")
    hand.create("unsaved")
    hand.write("unsaved", b"never captured")
    world.close_overlays()


NAMES = Scenario(
    "the working directory and names",
    captured,
    [
        _write("a", "second\n"),
        _write("fresh/file", "in a new directory\n"),
        Step("capture", lambda w: w.repo.capture(message="Second"), command=True),
        Step("create", lambda w: w.repo.threads.create("side"), command=True),
        Step("switch --create", lambda w: w.repo.switch("third", create=True), mixed=True),
        Step("remove", _remove, mixed=True),
        Step("capture", lambda w: w.repo.capture(message="Third"), command=True),
        Step("switch back", lambda w: w.repo.switch("main"), command=True, mixed=True),
        Step("switch forth", lambda w: w.repo.switch("third"), command=True, mixed=True),
        Step("marker", lambda w: w.repo.markers.create("v1", w.repo.resolve("main")), command=True),
        Step("no marker", lambda w: w.repo.markers.delete("v1"), command=True),
        Step("setting", lambda w: w.repo.config.set("agent.model", "m"), command=True),
        Step("unsaved", _offline_edit, quiet=True),
        Step("rename", lambda w: w.repo.threads.rename("side", "moved"), command=True),
        Step("delete", lambda w: w.repo.threads.delete("moved", force=True), command=True),
    ],
)


def empty(path: Path) -> None:
    path.mkdir()


def _git(path: Path, *words: str | Path) -> None:
    me = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *me, "-C", path, *words], check=True, capture_output=True)


def _make_git(path: Path) -> None:
    path.mkdir()
    _git(path, "init", "-q", "-b", "main")
    (path / "f").write_text("f\n")
    _git(path, "add", "f")
    _git(path, "commit", "-q", "-m", "One")


INIT = Scenario("init", empty, [Step("init", lambda w: heddle.init(w.path).close(), command=True)])
INIT_ON_GIT = Scenario(
    "init in a git checkout",
    _make_git,
    [Step("init", lambda w: heddle.init(w.path).close(), command=True)],
)


def on_git(path: Path) -> None:
    _make_git(path)
    heddle.init(path).close()


def beside_git(path: Path) -> None:
    """A repository with a git repository inside its working directory, to be imported."""
    captured(path)
    _make_git(path / "source")
    _git(path / "source", "tag", "v1")


def _follow(world: World) -> None:
    from heddle.git.branches import follow

    follow(world.repo, link=["main", "side"])


def _import(world: World) -> None:
    from heddle.git.importing import import_git

    import_git(world.repo, world.path / "source")


def _export(world: World) -> None:
    from heddle.git.export import export

    export(world.repo, ["agent"], to=world.path / "out.git")


def _commit(world: World) -> None:
    (world.path / "g").write_text("by git\n")
    _git(world.path, "add", "g")
    _git(world.path, "commit", "-q", "-m", "By git")


def _fetch(world: World) -> None:
    from heddle.git import fetching, remotes

    if not remotes.remotes(world.repo):
        remotes.add(world.repo, "origin", str(world.path / "source"))
    fetching.fetch(world.repo)


GIT = Scenario(
    "on git",
    on_git,
    [
        _write("f", "captured\n"),
        Step("capture", lambda w: w.repo.capture(message="Captured"), command=True, mixed=True),
        Step("thread", lambda w: w.repo.threads.create("side", w.repo.resolve("main")), True),
        Step("branches follow", _follow, command=True, mixed=True),
        Step("git commits", _commit, quiet=True),
        Step("threads follow", _follow, command=True, mixed=True),
    ],
)

EXPORT = Scenario(
    "out to git and in from git",
    beside_git,
    [
        Step("export", _export, command=True, mixed=True),
        Step("rename", lambda w: w.repo.threads.rename("main", "mine"), command=True),
        Step("import", _import, command=True, mixed=True),
        Step("fetch", _fetch, command=True, mixed=True),
    ],
)


def beside_packed_git(path: Path) -> None:
    """A repository, two git repositories inside its working directory, and one of them has a pack."""
    beside_git(path)
    _make_git(path / "packed")
    for name in ("g", "h"):
        (path / "packed" / name).write_text(f"{name}\n")
        _git(path / "packed", "add", name)
        _git(path / "packed", "commit", "-q", "-m", f"Packed {name}")
    _git(path / "packed", "branch", "-m", "packed")
    _git(path / "packed", "repack", "-adq")


def _kept(step: Callable[[World], None]) -> Callable[[World], None]:
    """A step in which every pack of git's is kept, however short."""

    def do(world: World) -> None:
        with patch("heddle.git.fetching.KEPT_FROM", 1), patch("heddle.git.importing.KEPT_FROM", 1):
            step(world)

    return do


def _import_packed(world: World) -> None:
    from heddle.git.importing import import_git

    import_git(world.repo, world.path / "packed")


def _read_kept(world: World) -> None:
    from heddle.objects.layout import OF_GIT

    assert world.repo.fsck(full=True).problems == []
    indexes = world.repo.store.packs_directory.indexes()
    assert sum(OF_GIT in {entry.kind for entry in index} for index in indexes) >= 2


KEPT = Scenario(
    "packs that are kept as they came",
    beside_packed_git,
    [
        Step("fetch", _kept(_fetch), command=True, mixed=True),
        Step("import", _kept(_import_packed), command=True, mixed=True),
        Step("read", _read_kept, quiet=True),
    ],
)


def with_half_a_pack(path: Path) -> None:
    """A repository that has the beginning of a pack from its remote, as a fetch that was killed leaves it."""
    captured(path)
    _make_half_a_pack(path)


def with_half_a_pack_on_git(path: Path) -> None:
    """The same on a git checkout."""
    on_git(path)
    _make_half_a_pack(path)


def _make_half_a_pack(path: Path) -> None:
    from heddle.git import receiving, remotes

    source = path / "source"
    _make_git(source)
    for name in ("one", "two"):
        (source / name).write_bytes(hashlib.shake_128(name.encode()).digest(4000))
    _git(source, "add", ".")
    _git(source, "commit", "-q", "-m", "Two")
    _git(source, "config", "uploadpack.allowFilter", "true")
    with closing(heddle.open(path)) as repo:
        remotes.add(repo, "origin", str(source))
        words = ["git", "-C", source, "pack-objects", "--all", "--stdout", "-q"]
        pack = subprocess.run(words, input=b"", check=True, capture_output=True).stdout
        receiving.place(repo, remotes.remote(repo, "origin")).write_bytes(pack[:-2000])


def _read_fetched(world: World) -> None:
    state = world.repo.state("origin/main")
    assert [name for name, _, _ in world.repo.store.tree_entries(state.tree)] == [
        b"f",
        b"one",
        b"two",
    ]
    assert world.repo.fsck(full=True).problems == []
    if world.repo.git is not None:
        _git(world.path, "fsck", "--strict")


GOES_ON, GOES_ON_ON_GIT = (
    Scenario(
        f"a fetch that goes on{where}",
        begin,
        [
            Step("fetch", _fetch, command=True, mixed=True),
            Step("read", _read_fetched, quiet=True),
        ],
    )
    for where, begin in (("", with_half_a_pack), (" on git", with_half_a_pack_on_git))
)


def beside_lazy_source(path: Path) -> None:
    """An empty directory, with a git repository beside it that leaves blobs out when asked to."""
    source = path.parent / "source"
    _make_git(source)
    _git(source, "config", "uploadpack.allowFilter", "true")
    path.mkdir()


def _clone_lazily(world: World) -> None:
    from heddle import api
    from heddle.git.cloning import clone

    source = str(world.path.parent / "source")
    clone(api.Repository, source, world.path, environment=os.environ, lazy=True)[0].close()


def _read_promised(world: World) -> None:
    _mode, blob = world.repo.lookup_path("main", b"f")
    assert world.repo.store.get_raw(blob)[1] == b"f\n"


LAZY = Scenario(
    "a lazy clone",
    beside_lazy_source,
    [
        Step("clone", _clone_lazily, command=True, mixed=True),
        Step("read", _read_promised, command=True),
        Step("switch", lambda w: w.repo.switch("main"), command=True, mixed=True),
    ],
)


def _write_large(world: World) -> None:
    (world.path / "large").write_bytes(b"large" * (1 << 20))


LARGE = Scenario(
    "a large file",
    captured,
    [
        Step("write", _write_large, quiet=True),
        Step("capture", lambda w: w.repo.capture(message="Large"), command=True),
    ],
)


def _with_history(path: Path) -> None:
    captured(path)
    repo = heddle.open(path)
    for number in range(3):
        (path / "a").write_text(f"content {number}\n" * 50)
        (path / "dir" / "x").write_text(f"x {number}\n" * 50)
        (path / "large").write_bytes(b"large" * (1 << 20))
        repo.capture(message=f"State {number}")
    with repo.store.writer() as writer:
        writer.add_blob(b"nothing needs it")
        writer.commit()
    repo.close()


def _write_much(world: World) -> None:
    """More than there is, so that what was collected is written once more."""
    (world.path / "a").write_text("".join(str(number) for number in range(20_000)))


COLLECT = Scenario(
    "collecting",
    _with_history,
    [
        Step("collect", lambda w: w.repo.collect(), command=True),
        Step("collect all", lambda w: w.repo.collect(before_ns=time.time_ns()), command=True),
        Step("write", _write_much, quiet=True),
        Step("capture", lambda w: w.repo.capture(message="After"), command=True),
        Step("collect again", lambda w: w.repo.collect(before_ns=time.time_ns()), command=True),
    ],
)


def with_large(path: Path) -> None:
    """As `captured`, and a file that is too large to be copied for a change."""
    captured(path)
    repo = heddle.open(path)
    (path / "large").write_bytes(bytes(range(1, 252)) * 20_000)
    repo.capture(message="Large")
    repo.threads.delete("agent")
    repo.threads.create("agent", repo.threads.get("main").state)
    repo.close()


PARTS = Scenario(
    "changes of a large file",
    with_large,
    [
        OPEN,
        edit("write", "large", b"here", offset=2 << 20),
        edit("truncate", "large", 3 << 20),
        edit("write", "large", b"longer", offset=4 << 20),
        CAPTURE,
        edit("write", "large", b"again", offset=5),
    ],
)


ALL = [
    EDITS,
    PLAIN,
    REBASE,
    ADOPT,
    DISCARD,
    NAMES,
    INIT,
    INIT_ON_GIT,
    LARGE,
    GIT,
    EXPORT,
    KEPT,
    GOES_ON,
    GOES_ON_ON_GIT,
    LAZY,
    PARK,
    POWER,
    COLLECT,
    PARTS,
]
