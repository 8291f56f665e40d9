"""A mount beside a plain directory: random operations, with captures, remounts and forgetting in between.

What the plain directory does is right by definition; what a capture must record is said by `gitmodel`.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path as HostPath
from typing import Protocol, TypeAlias

import pytest
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from heddle.errors import NothingToCapture, UnsavedChanges
from heddle.mount.upper import RENAME_EXCHANGE, RENAME_NOREPLACE
from heddle.objects.pack import PackWriter
from heddle.repo.capture import Captured, record_state
from heddle.repo.repository import Repository
from mount import gitmodel
from mount.base import ADA, OpenThread, add_tree, copy_base, fill
from mount.gitmodel import Tree
from mount.places import Path, Plain, Seen, View, outcome

Where: TypeAlias = "Path | int | tuple[int, bytes]"

# Few names, so that they meet often: one is not UTF-8, one is ignored where nothing says otherwise.
NAMES = (b"a", b"b", b"c", b"\xe9", b"x.o", b".gitignore")
RULE_FILES = (b"*.o\n", b"", b"b\n", b"/a/\n!x.o\n", b"*\n!*.o\n")
CAPTURED_NUMBERS = 1 << 62  # from here on; real inode numbers stay below
LONG_AFTER_NS = 5_000_000_000_000_000_007

names = st.sampled_from(NAMES)
# A path: any, or that of the n-th thing there is, or a name in the n-th directory there is.
some = st.lists(names, min_size=1, max_size=3).map(tuple)
existing = st.integers(0, 40)
inside = st.tuples(st.integers(0, 15), names)
paths = st.one_of(existing, existing, existing, inside, some)
places = st.one_of(inside, inside, inside, existing, some)
handles = st.integers(0, 2)
offsets = st.one_of(st.integers(0, 12), st.integers(0, 12_000))
chunks = st.one_of(
    st.binary(min_size=1, max_size=8),
    st.builds(lambda byte, count: bytes([byte]) * count, st.integers(0, 255), st.integers(1, 6000)),
    st.sampled_from(RULE_FILES).filter(bool),
)
file_modes = st.sampled_from((0o644, 0o755, 0o600, 0o444, 0o4755, 0o2640, 0))
directory_modes = st.sampled_from((0o755, 0o700, 0o1777, 0o555))
times = st.sampled_from((1, 1_000_000_000_123_456_789, 1_600_000_000_000_000_001, LONG_AFTER_NS))
open_flags = st.sampled_from((os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_TRUNC))
xattr_names = st.sampled_from((b"user.a", b"user.b"))
rename_flags = st.sampled_from((0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE))


base_paths = st.one_of(existing, existing, some)
ENTRIES: dict[str, Callable[[PackWriter], tuple[int, bytes, Tree | None] | None]] = {
    "nothing": lambda writer: None,
    "file": lambda writer: (0o100644, writer.add_blob(b"theirs\n"), None),
    "program": lambda writer: (0o100755, writer.add_blob(b"theirs too\n"), None),
    "rules": lambda writer: (0o100644, writer.add_blob(b"*.o\nb\n"), None),
    "link": lambda writer: (0o120000, writer.add_blob(b"theirs"), None),
    "directory": lambda writer: (gitmodel.DIRECTORY, writer.add_tree([]), {}),
}
base_entries = st.sampled_from(sorted(ENTRIES))


def in_the_way(seen: dict[Path, Seen], now: Tree, new: Tree) -> bool:
    """Whether something that no capture would record stands where others put something."""
    for path, one in seen.items():
        if not path or gitmodel.entry(now, path) is not None:
            continue
        theirs = gitmodel.entry(new, path)
        both_directories = stat.S_ISDIR(one.mode) and theirs is not None and theirs[2] is not None
        above = [gitmodel.entry(new, path[:depth]) for depth in range(1, len(path))]
        if theirs is not None and not both_directories:
            return True
        if any(entry is not None and entry[2] is None for entry in above):
            return True
    return False


def lasting(seen: dict[Path, Seen]) -> dict[Path, Seen]:
    """All of a tree but its numbers, which `MountModel.assert_alike` follows."""
    return {path: one._replace(ino=0) for path, one in seen.items()}


class AnyThread(Protocol):
    """A thread's overlay, served by whatever: what `OpenThread` says of each."""

    @property
    def repo(self) -> Repository: ...
    @property
    def view(self) -> View | Plain: ...
    @property
    def time_ns(self) -> int: ...
    @property
    def base(self) -> bytes | None: ...
    def reopen(self) -> None: ...
    def close(self) -> None: ...
    def status(self) -> dict[bytes, str]: ...
    def dirty_paths(self) -> int: ...
    def store_in_vain(self) -> None: ...
    def capture(self, *, paths: Sequence[bytes] = (), prestore: bool = False) -> Captured: ...
    def cut_next_capture(self) -> None: ...
    def follow(self) -> None: ...
    def discard(self) -> int: ...


class MountModel(RuleBasedStateMachine):
    """The two places, and what was captured last.

    Attributes:
        base: the thread's state.
        numbers: inode number in the view of every file and directory, by the plain one.
        directory: where to work; None is where temporary files go.
        settled_ns: changes of the plain directory before this moment have none beside them in the view.
    """

    directory: HostPath | None = None

    def __init__(self) -> None:
        super().__init__()
        self.mask = os.umask(0)
        self.start_ns = time.time_ns() - 1_000_000_000
        self.top = HostPath(tempfile.mkdtemp(prefix="heddle-model-", dir=self.directory))
        self.base = copy_base(self.top / "repo")
        self.thread = self.open_thread()
        self.plain = self._new_plain()
        fill(self.plain)
        self._settle()

    def open_thread(self) -> AnyThread:
        return OpenThread(self.top / "repo")

    def _new_plain(self) -> Plain:
        top = HostPath(tempfile.mkdtemp(dir=self.top))
        top.chmod(0o755)
        return Plain(str(top), widen=os.geteuid() != 0)

    def _settle(self) -> None:
        """Everything is as captured: as old as the state, and with numbers that nobody has seen."""
        for path in reversed([(), *(path for path, _ in self.plain.paths())]):
            self.plain.utimens(path, self.thread.time_ns)
        self.numbers: dict[int, int] = {}
        self.settled_ns = time.time_ns()

    @property
    def view(self) -> View | Plain:
        return self.thread.view

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:
                self.compare()
                self.remount(False)
                self.compare()
                self.capture(look=False, prestore=False, cut=False)
        finally:
            self.thread.close()
            self.plain.finish()
            shutil.rmtree(self.top)
            os.umask(self.mask)

    # the operations

    def at(self, where: Where) -> Path:
        """The path that a drawn one means just now."""
        if isinstance(where, int):
            known = [path for path, _ in self.plain.paths()]
            return known[where % len(known)] if known else (b"a",)
        if isinstance(where[0], int):
            directories = [(), *(path for path, is_directory in self.plain.paths() if is_directory)]
            return (*directories[where[0] % len(directories)], where[1])
        return where

    def both(self, operation: str, *arguments: object) -> object:
        """Do the same in both places; both must answer the same."""
        expected = outcome(getattr(self.plain, operation), *arguments)
        got = outcome(getattr(self.view, operation), *arguments)
        note(f"{operation} {arguments}: {expected!r:.80}")
        assert expected == got, (operation, arguments)
        return got

    def is_free(self, handle: int) -> bool:
        return handle not in self.plain.handles

    def drop_handle(self, handle: int) -> None:
        if not self.is_free(handle):
            self.both("close", handle)

    @rule(handle=handles, where=places, mode=file_modes, data=st.none() | chunks)
    def create(self, handle: int, where: Where, mode: int, data: bytes | None) -> None:
        self.drop_handle(handle)
        self.both("create", handle, self.at(where), mode)
        if data is not None and not self.is_free(handle):
            self.both("write", handle, 0, data)
            self.both("close", handle)

    @rule(handle=handles, where=paths, flags=open_flags)
    def open(self, handle: int, where: Where, flags: int) -> None:
        self.drop_handle(handle)
        self.both("open", handle, self.at(where), flags)

    @rule(where=paths, offset=offsets, data=chunks)
    def edit(self, where: Where, offset: int, data: bytes) -> None:
        """Open, write, close, as most programs do."""
        self.drop_handle(0)
        self.both("open", 0, self.at(where), os.O_RDWR)
        if not self.is_free(0):
            self.both("write", 0, offset, data)
            self.both("close", 0)

    def may_write(self, handle: int) -> bool:
        return not self.is_free(handle) and self.view.may_write(handle)

    @rule(handle=handles, offset=offsets, data=chunks)
    def write(self, handle: int, offset: int, data: bytes) -> None:
        if self.may_write(handle):
            self.both("write", handle, offset, data)

    @rule(handle=handles, data=chunks)
    def append(self, handle: int, data: bytes) -> None:
        if self.may_write(handle):
            self.both("append", handle, data)

    @rule(handle=handles, size=offsets)
    def resize(self, handle: int, size: int) -> None:
        if self.may_write(handle):
            self.both("resize", handle, size)

    @rule(handle=handles)
    def use(self, handle: int) -> None:
        if not self.is_free(handle):
            self.both("status", handle)
            self.both("read", handle, 0, 1 << 20)
            self.both("read", handle, 5, 7)
            self.both("sync", handle)

    @rule(handle=handles)
    def close(self, handle: int) -> None:
        self.drop_handle(handle)

    @rule(where=paths, size=offsets)
    def truncate(self, where: Where, size: int) -> None:
        self.both("truncate", self.at(where), size)

    @rule(where=places, mode=directory_modes)
    def mkdir(self, where: Where, mode: int) -> None:
        self.both("mkdir", self.at(where), mode)

    @rule(where=places)
    def mkfifo(self, where: Where) -> None:
        self.both("mkfifo", self.at(where))

    @rule(where=places, points_to=st.sampled_from((b"a", b"../nowhere", b"\xff")))
    def symlink(self, where: Where, points_to: bytes) -> None:
        self.both("symlink", points_to, self.at(where))

    @rule(old=paths, new=places)
    def link(self, old: Where, new: Where) -> None:
        self.both("link", self.at(old), self.at(new))

    @rule(where=paths)
    def unlink(self, where: Where) -> None:
        self.both("unlink", self.at(where))

    @rule(where=paths)
    def rmdir(self, where: Where) -> None:
        self.both("rmdir", self.at(where))

    @rule(where=paths)
    def remove_all(self, where: Where) -> None:
        """``rm -r``."""
        path = self.at(where)
        names = self.both("listing", path)
        if not isinstance(names, list):
            self.both("unlink", path)
            return
        for name in names:
            self.remove_all((*path, name))
        self.both("rmdir", path)

    @rule(old=paths, new=places, flags=rename_flags)
    def rename(self, old: Where, new: Where, flags: int) -> None:
        self.both("rename", self.at(old), self.at(new), flags)

    @rule(where=paths, mode=file_modes)
    def chmod(self, where: Where, mode: int) -> None:
        path = self.at(where)
        kind = outcome(self.plain.stat, path)[0]
        if kind == "E" or not stat.S_ISLNK(kind):
            self.both("chmod", path, mode)

    @rule(where=paths, when=times)
    def utimens(self, where: Where, when: int) -> None:
        self.both("utimens", self.at(where), when)

    @rule(where=paths, name=xattr_names, value=st.binary(max_size=4))
    def set_xattr(self, where: Where, name: bytes, value: bytes) -> None:
        self.both("set_xattr", self.at(where), name, value)

    @rule(where=paths, name=xattr_names)
    def remove_xattr(self, where: Where, name: bytes) -> None:
        self.both("remove_xattr", self.at(where), name)

    @rule(where=paths)
    def look(self, where: Where) -> None:
        path = self.at(where)
        self.both("stat", path)
        self.both("content", path)
        self.both("listing", path)

    # what only a mount knows

    @rule(part=st.integers(0, 3))
    def forget(self, part: int) -> None:
        """The kernel drops a third of its caches, or all."""
        if part == 3:
            self.view.forget()
        else:
            self.view.forget(part, 3)

    def close_all(self) -> None:
        for handle in list(self.plain.handles):
            self.plain.close(handle)

    @rule(look=st.booleans())
    def remount(self, look: bool) -> None:
        with self.nothing_shows(look):
            self.thread.reopen()

    @contextmanager
    def nothing_shows(self, look: bool) -> Iterator[None]:
        """What happens to a mount in which every file is closed is not to be seen, neither bytes nor times nor numbers.

        Args:
            look: look before and after, which brings much into memory that would not be there.
        """
        self.close_all()
        before = self.view.glance() if look else None
        yield
        if before is not None:
            assert lasting(before) == lasting(self.view.glance())

    @rule()
    def compare(self) -> None:
        self.assert_same(self.plain.glance(), self.view.glance())

    def assert_same(self, expected: dict[Path, Seen], got: dict[Path, Seen]) -> None:
        assert sorted(expected) == sorted(got)
        for path, want in expected.items():
            self.assert_alike(path, want, got[path])
        assert len({one.ino for one in expected.values()}) == len({one.ino for one in got.values()})

    def assert_alike(self, path: Path, want: Seen, have: Seen) -> None:
        """The same but for moments; those that somebody set are the same, too."""
        was_set = want.mtime_ns < self.start_ns or want.mtime_ns == LONG_AFTER_NS
        mtime_ns = want.mtime_ns if was_set else max(self.start_ns, have.mtime_ns)
        assert want._replace(mtime_ns=mtime_ns, ctime_ns=0, ino=0) == have._replace(
            ctime_ns=0, ino=0
        ), path
        if want.ctime_ns > self.settled_ns:
            assert want.ctime_ns <= have.ctime_ns, f"{path!r} changed and its ctime did not"
        # Where a number can't be written down (links, fifos), it may be another one later.
        if stat.S_ISREG(want.mode) or stat.S_ISDIR(want.mode):
            number = self.numbers.setdefault(want.ino, have.ino)
            # What others put where something was removed steps aside while the kernel holds that.
            assert 0 <= abs(number - have.ino) <= (8 if have.ino >= CAPTURED_NUMBERS else 0), path

    @rule(early=st.booleans())
    def status(self, early: bool) -> None:
        if early:
            self.thread.store_in_vain()
        self.check_status(gitmodel.expected_tree(self.plain.glance(), self.base))

    def check_status(self, now: Tree) -> None:
        expected = gitmodel.differences(self.base, now)
        assert expected == self.thread.status()
        assert self.thread.dirty_paths() == len(expected)

    @rule(look=st.booleans(), prestore=st.booleans(), cut=st.booleans())
    def capture(self, look: bool, prestore: bool, cut: bool) -> None:
        """Capture all; cut off after the commit point, it is complete at the next mount."""
        seen = self.plain.glance()
        now = gitmodel.expected_tree(seen, self.base)
        expected = gitmodel.differences(self.base, now)
        before = self.view.glance() if look else None
        if cut:
            self.thread.cut_next_capture()
        try:
            captured = self.thread.capture(prestore=prestore)
        except NothingToCapture:
            assert not expected
            return
        finally:
            if cut:
                self.remount(False)
        kinds = list(expected.values())
        modified = kinds.count("modified") + kinds.count("type-changed")
        assert captured.state.tree == gitmodel.tree_id(now)
        assert captured.added == kinds.count("added")
        assert captured.modified == modified
        assert captured.deleted == kinds.count("deleted")
        self.base = now
        self.check_stored(seen, now, ())
        self.check_status(now)
        after = self.view.glance()
        self.assert_same(self.plain.glance(), after)
        if before is not None and not cut:
            assert before == after, "a capture showed"

    def check_stored(self, seen: dict[Path, Seen], tree: Tree, path: Path) -> None:
        """Every blob of a captured tree holds the plain directory's bytes."""
        for name, (_mode, oid, inside) in tree.items():
            inner = (*path, name)
            if inside is None:
                assert self.thread.repo.store.get_raw(oid)[1] == seen[inner].content, inner
            else:
                self.check_stored(seen, inside, inner)

    @rule(where=paths, prestore=st.booleans())
    def capture_path(self, where: Where, prestore: bool) -> None:
        """A capture of one path leaves the rest as unsaved as it was."""
        path = self.at(where)
        seen = self.plain.glance()
        now = gitmodel.expected_tree(seen, self.base)
        wanted = gitmodel.selected(self.base, now, path)
        try:
            captured = self.thread.capture(paths=[b"/".join(path)], prestore=prestore)
        except NothingToCapture:
            assert not gitmodel.differences(self.base, wanted)
            return
        assert captured.state.tree == gitmodel.tree_id(wanted)
        self.base = wanted
        self.check_status(gitmodel.expected_tree(seen, self.base))
        self.assert_same(seen, self.view.glance())

    @rule()
    def discard(self) -> None:
        """Everything unsaved is dropped, ignored files and times with it."""
        now = gitmodel.expected_tree(self.plain.glance(), self.base)
        self.close_all()
        assert self.thread.discard() == len(gitmodel.differences(self.base, now))
        self.plain.finish()
        self.plain = self._new_plain()
        self.make(self.base, ())
        self._settle()
        self.compare()
        self.check_status(self.base)

    @rule(
        edits=st.lists(st.tuples(base_paths, base_entries), min_size=1, max_size=3),
        live=st.booleans(),
    )
    def others_capture(self, edits: list[tuple[Path | int, str]], live: bool) -> None:
        """The thread moves; a mount without unsaved changes follows, any other one stays as it is."""
        new = self.base
        with self.thread.repo.store.writer() as writer:
            for drawn, what in edits:
                known = sorted(gitmodel.leaves(new))
                path = drawn
                if isinstance(drawn, int):
                    path = tuple(known[drawn % len(known)].split(b"/")) if known else (b"a",)
                new = gitmodel.with_entry(new, path, ENTRIES[what](writer))
            if not gitmodel.differences(self.base, new):
                return
            old = self.thread.repo.threads.get("agent").state
            state = record_state(
                self.thread.repo,
                writer,
                thread="agent",
                expected=old,
                tree=add_tree(writer, new),
                attribution=ADA,
                message="",
            )
        seen = self.plain.glance()
        now = gitmodel.expected_tree(seen, self.base)
        follows = not gitmodel.differences(self.base, now) and not in_the_way(seen, now, new)
        note(f"others made {gitmodel.differences(self.base, new)}, follows: {follows}")
        if follows:
            self.apply(now, new, seen)
        if not live:
            self.remount(False)
        elif follows:
            self.thread.follow()
        else:
            with pytest.raises(UnsavedChanges):
                self.thread.follow()
        if follows:
            self.base = new
        else:
            self.thread.repo.publish(
                thread="agent", expected=state.id, new=old, kind="undo", message="", attribution=ADA
            )
        assert self.thread.base == (state.id if follows else old)
        self.check_status(gitmodel.expected_tree(self.plain.glance(), self.base))
        self.compare()

    def apply(self, old: Tree, new: Tree, seen: dict[Path, Seen]) -> None:
        """Do to the plain directory what others did to the tree; directories keep their times."""
        for path in sorted(gitmodel.differences(old, new), reverse=True):
            at = tuple(path.split(b"/"))
            kind = outcome(self.plain.stat, at)[0]
            if kind != "E":
                outcome(self.plain.rmdir if stat.S_ISDIR(kind) else self.plain.unlink, at)
        for path in sorted(
            (p for p, one in seen.items() if p and stat.S_ISDIR(one.mode)), reverse=True
        ):
            if gitmodel.inside(old, path) is not None and gitmodel.inside(new, path) is None:
                outcome(self.plain.rmdir, path)
        for path in sorted(gitmodel.differences(old, new)):
            at = tuple(path.split(b"/"))
            entry = gitmodel.entry(new, at)
            if entry is not None and not entry[2]:
                for depth in range(1, len(at)):
                    self.make_directory(at[:depth])
                self.make_entry(at, entry)
        for path, is_directory in reversed([((), True), *self.plain.paths()]):
            if is_directory:
                known = path in seen and stat.S_ISDIR(seen[path].mode)
                when = seen[path].mtime_ns if known else self.thread.time_ns
                self.plain.utimens(path, when)
        self.settled_ns = time.time_ns()

    def make(self, tree: Tree, path: Path) -> None:
        """Make a captured tree in the plain directory."""
        for name, entry in tree.items():
            self.make_entry((*path, name), entry)

    def make_directory(self, path: Path) -> None:
        """Make a directory where none is; it inherits no set-gid bit from the one above, which a tree has not."""
        if outcome(self.plain.mkdir, path, 0o755) is None:
            self.plain.chmod(path, 0o755)

    def make_entry(self, path: Path, entry: tuple[int, bytes, Tree | None]) -> None:
        mode, oid, inside = entry
        if inside is not None:
            self.make_directory(path)
            self.make(inside, path)
            return
        content = self.thread.repo.store.get_raw(oid)[1]
        if stat.S_ISLNK(mode):
            self.plain.symlink(content, path)
        else:
            self.plain.create(9, path, mode & 0o777)
            self.plain.write(9, 0, content)
            self.plain.close(9)


EXAMPLES = int(os.environ.get("HEDDLE_MODEL_EXAMPLES", "60"))
STEPS = int(os.environ.get("HEDDLE_MODEL_STEPS", "40"))


def run_model(machine: type[MountModel], examples: int = EXAMPLES) -> None:
    """Run a machine; ``HEDDLE_MODEL_EXAMPLES`` and ``HEDDLE_MODEL_STEPS`` make it a long run."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            deadline=None,
            database=None if os.geteuid() != os.getuid() else settings.default.database,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
