"""Repository work, timed against git and Mercurial: first capture, mount, capture of an edit,
status, memory.

Owns the rows about commands; ``workloads.py`` owns those about files in a mount. Each function adds
its own rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from benchmarks import trees
from benchmarks.harness import Bench, Row, disk_bytes, in_turns, pss_bytes, stopwatch, timed_row
from benchmarks.peers import Git, Heddle, HeddleMount

MB = 1_000_000
TENFOLD = "tenfold"


class Pair:
    """One tree, recorded twice: by heddle in one copy, by git in another.

    Args:
        bench: the run.
        label: what the tree is called in the table.
        fill: writes the tree into a directory that does not exist yet.
        repetitions: how often the work that takes long on this tree is measured.
        large: whether the aims of mount, edit and status apply. They are about work that grows with a tree for
            git and not for heddle; on a small one both are mostly the start of a program, and the ratio informs.
    """

    def __init__(
        self,
        bench: Bench,
        label: str,
        fill: Callable[[Path], None],
        *,
        repetitions: int,
        large: bool = False,
    ) -> None:
        self.bench, self.label, self.repetitions, self.large = bench, label, repetitions, large
        slug = "".join(letter if letter.isalnum() else "-" for letter in label)
        ours, theirs = bench.work / f"{slug}-heddle", bench.work / f"{slug}-git"
        fill(ours)
        bench.run("cp", "-a", ours, theirs)
        os.sync()
        self.heddle, self.git = Heddle(bench, ours), Git(bench, theirs)
        self.first = ""
        self.section = f"{label}, {trees.count_files(ours):,} files"

    def add(
        self, what: str, samples: dict[str, list[float]], reach: float | None, peer: str
    ) -> None:
        """Add a warm row of this tree with one peer."""
        reaches = {} if reach is None else {peer: reach}
        self.bench.add(timed_row(self.section, what, samples, reaches=reaches))

    def if_large(self, reach: float) -> float | None:
        """An aim that holds for a large tree only."""
        return reach if self.large else None

    def choose_first(self) -> None:
        """Choose what "until a first file is read" reads: something recorded, as high up as there is."""
        paths = self.git.run("ls-files", "-z").split("\0")[:-1]
        self.first = min(paths, key=lambda path: (path.count("/"), path))

    def read_first(self, root: Path) -> None:
        """Read the chosen file."""
        (root / self.first).read_bytes()


def first_capture(pair: Pair) -> None:
    """``init`` and ``capture`` of everything against git's: time and disk."""

    def ours(_: int) -> float:
        pair.heddle.forget()
        os.sync()
        return stopwatch(pair.heddle.first_capture)

    def theirs(_: int) -> float:
        pair.git.forget()
        os.sync()
        return stopwatch(pair.git.first_commit)

    peer = "git add, commit"
    samples = in_turns(pair.repetitions, {"heddle": ours, peer: theirs})
    pair.add("init + first capture", samples, 0.4, peer)
    pair.choose_first()
    disk = {peer: float(disk_bytes(pair.git.path / ".git"))}
    size = float(disk_bytes(pair.heddle.path / ".heddle"))
    what = "disk after first capture"
    pair.bench.add(Row(pair.section, what, "", "bytes", size, disk, {peer: 0.6}))


def mount_first_read(pair: Pair) -> None:
    """Mount until a first file is read, against ``git worktree add`` and the same read."""
    pair.git.run("config", "gc.auto", "0")
    peer = "git worktree add"
    contenders = {"heddle": _timed_mount(pair), peer: _timed_worktree(pair)}
    pair.add(
        "mount + first read", in_turns(pair.repetitions, contenders), pair.if_large(0.03), peer
    )


def tenfold(pair: Pair) -> None:
    """The same mount where the captured tree has ten times the files.

    The large tree is the captured one with nine more directories, each of which is the captured
    tree again: one new tree object, ten times the files to show. Nothing is written to disk for it
    but that object and a state.
    """
    _make_tenfold(pair)
    peer = "mount at 1 x"
    contenders = {
        "heddle": _timed_mount(pair, "--from", TENFOLD),
        peer: _timed_mount(pair, "--from", "main"),
    }
    samples = in_turns(pair.bench.repetitions(11), contenders)
    pair.add("mount + first read, 10 x the files", samples, 1.2, peer)


def _make_tenfold(pair: Pair) -> None:
    from heddle.attribution import Principal
    from heddle.objects import state
    from heddle.repo.repository import Repository

    repository = Repository.open(pair.heddle.path)
    base = repository.state("main")
    entries = list(repository.store.tree_entries(base.tree))
    entries += [(b"copy-%d" % number, 0o040000, base.tree) for number in range(9)]
    person = Principal("Bench", "bench@example.org")
    with repository.store.writer() as writer:
        commit = state.encode(
            tree=writer.add_tree(entries),
            parents=(),
            principal=person,
            agent=None,
            change_id=state.new_change_id(),
            thread=None,
            message="ten times the tree\n",
            time_s=0,
            timezone_s=0,
        )
        identity = writer.add(1, commit)
        writer.commit()
    repository.threads.create(TENFOLD, identity)


_made = 0


def _new_name() -> str:
    global _made
    _made += 1
    return f"t{_made}"


def _timed_mount(pair: Pair, *options: str) -> Callable[[int], float]:
    def measure(_: int) -> float:
        name = _new_name()
        os.sync()  # what the last turn left to be written is not this one's to wait for
        seconds = stopwatch(lambda: pair.read_first(pair.heddle.mount(name, *options)))
        pair.heddle.unmount(name)
        return seconds

    return measure


def _timed_worktree(pair: Pair) -> Callable[[int], float]:
    def measure(_: int) -> float:
        name = _new_name()
        os.sync()
        seconds = stopwatch(lambda: pair.read_first(pair.git.add_worktree(name)))
        pair.git.remove_worktree(name)
        return seconds

    return measure


def whole_cycle(pair: Pair) -> None:
    """Mount, read one file, unmount, against adding a worktree, reading, and removing it."""

    def ours(_: int) -> float:
        name = _new_name()

        def cycle() -> None:
            pair.read_first(pair.heddle.mount(name))
            pair.heddle.unmount(name)

        return stopwatch(cycle)

    def theirs(_: int) -> float:
        name = _new_name()

        def cycle() -> None:
            pair.read_first(pair.git.add_worktree(name))
            pair.git.remove_worktree(name)

        return stopwatch(cycle)

    peer = "git worktree add, remove"
    samples = in_turns(pair.bench.repetitions(11), {"heddle": ours, peer: theirs})
    pair.add("mount + first read + unmount", samples, 1.0, peer)


def edit_and_status(pair: Pair) -> None:
    """Edit one file and record it; then ``status`` with one change: mount against worktree."""
    mount = pair.heddle.mount("edit")
    worktree = pair.git.add_worktree("edit")

    def edit(root: Path, number: int) -> None:
        with open(root / pair.first, "ab") as file:
            file.write(b"edit %d\n" % number)

    def ours(number: int) -> float:
        def work() -> None:
            edit(mount, number)
            pair.heddle.run("capture", "-m", "edit", cwd=mount)

        return stopwatch(work)

    def theirs(number: int) -> float:
        def work() -> None:
            edit(worktree, number)
            pair.git.commit(worktree)

        return stopwatch(work)

    peer = "git add, commit"
    samples = in_turns(pair.bench.repetitions(9), {"heddle": ours, peer: theirs})
    pair.add("edit one file + capture", samples, pair.if_large(0.5), peer)

    edit(mount, -1)
    edit(worktree, -1)
    status = {
        "heddle": lambda _: stopwatch(lambda: pair.heddle.run("status", cwd=mount)),
        "git status": lambda _: stopwatch(lambda: pair.git.run("status", cwd=worktree)),
    }
    samples = in_turns(pair.bench.repetitions(15), status)
    pair.add("status with one change", samples, pair.if_large(1.0), "git status")
    pair.heddle.unmount("edit")
    pair.git.remove_worktree("edit")


def session_memory(pair: Pair) -> None:
    """Memory of one session: after the mount, and after every file was read through it."""
    mount = HeddleMount(pair.heddle)
    root = mount.mount(0)
    pid = pair.heddle.session_pid(mount.thread)
    idle = pss_bytes(pid)
    seconds = stopwatch(lambda: _read_all(root))
    full = pss_bytes(pid)
    mount.unmount()
    rows = (("session memory (PSS), idle", idle, 60), ("after every file was read", full, 250))
    for what, size, limit in rows:
        pair.bench.add(Row(pair.section, what, "", "bytes", float(size), limit=limit * MB))
    pair.bench.add(Row(pair.section, "reading every file once", "", "s", seconds))


def _read_all(root: Path) -> None:
    for directory, _, names in os.walk(root):
        for name in names:
            path = os.path.join(directory, name)
            if not os.path.islink(path):
                with open(path, "rb", buffering=0) as file:
                    while file.read(1 << 17):
                        pass


def start_up(pair: Pair) -> None:
    """``status`` of an unchanged working directory and ``--version``, against Mercurial."""
    bench, tree = pair.bench, pair.git.path
    bench.run("hg", "init", tree)
    (tree / ".hgignore").write_text("^[.]git/\n")
    bench.run("hg", "addremove", "-q", cwd=tree)
    bench.run("hg", "commit", "-q", "-m", "all", cwd=tree)
    for command in ("status", "--version"):
        contenders = {
            "heddle": _timed_command(pair, "heddle", command, pair.heddle.path),
            f"hg {command}": _timed_command(pair, "hg", command, tree),
        }
        samples = in_turns(bench.repetitions(21), contenders)
        pair.add(f"heddle {command}", samples, 1.0, f"hg {command}")


def _timed_command(pair: Pair, program: str, command: str, where: Path) -> Callable[[int], float]:
    return lambda _: stopwatch(lambda: pair.bench.run(program, command, cwd=where))


def measure_large(pair: Pair) -> None:
    """Every row that asks for a large tree."""
    for rows in (first_capture, mount_first_read, tenfold, edit_and_status, session_memory):
        pair.bench.say(f"{pair.label}: {rows.__name__.replace('_', ' ')}")
        rows(pair)


def measure_small(pair: Pair) -> None:
    """Every row of the large tree, and those that are about the constant part."""
    measure_large(pair)
    for rows in (whole_cycle, start_up):
        pair.bench.say(f"{pair.label}: {rows.__name__.replace('_', ' ')}")
        rows(pair)
