"""The mount core against a plain directory: random operations, with captures, remounts and forgetting in between.

What the plain directory does is right by definition; what a capture must record is said by `gitmodel`.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
import time
from pathlib import Path as HostPath

from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from heddle.errors import NothingToCapture
from heddle.mount.upper import RENAME_EXCHANGE, RENAME_NOREPLACE
from mount import gitmodel
from mount.base import PATHS, OpenThread, copy_base, fill
from mount.gitmodel import Tree
from mount.places import Path, Plain, Seen, View, outcome

# Few names, so that they meet often: one is not UTF-8, one is ignored where nothing says otherwise.
NAMES = (b"a", b"b", b"c", b"\xe9", b"x.o", b".gitignore")
RULE_FILES = (b"*.o\n", b"", b"b\n", b"/a/\n!x.o\n", b"*\n!*.o\n")
names = st.sampled_from(NAMES)
paths = st.one_of(st.sampled_from(PATHS), st.lists(names, min_size=1, max_size=3).map(tuple))
handles = st.integers(0, 2)
offsets = st.one_of(st.integers(0, 12), st.integers(0, 12_000))
chunks = st.one_of(
    st.binary(min_size=1, max_size=8),
    st.builds(lambda byte, count: bytes([byte]) * count, st.integers(0, 255), st.integers(1, 6000)),
    st.sampled_from(RULE_FILES).filter(bool),
)
file_modes = st.sampled_from((0o644, 0o755, 0o600, 0o444, 0o4755, 0o2640, 0))
directory_modes = st.sampled_from((0o755, 0o700, 0o1777, 0o555))
times = st.sampled_from(
    (1, 1_000_000_000_123_456_789, 1_600_000_000_000_000_001, 5_000_000_000_000_000_007)
)
xattr_names = st.sampled_from((b"user.a", b"user.b"))
flags = st.sampled_from((0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE))


class MountModel(RuleBasedStateMachine):
    """The two places, and what was captured last."""

    def __init__(self) -> None:
        super().__init__()
        self.mask = os.umask(0)
        self.start_ns = time.time_ns() - 1_000_000_000
        self.top = HostPath(tempfile.mkdtemp(prefix="heddle-model-"))
        self.base = copy_base(self.top / "repo")
        self.thread = OpenThread(self.top / "repo")
        self.numbers: dict[int, int] = {}
        self._make_plain()

    def _make_plain(self) -> None:
        plain = self.top / "plain"
        plain.mkdir(0o755)
        self.plain = Plain(str(plain), widen=os.geteuid() != 0)
        fill(self.plain)
        for path in reversed([(), *PATHS]):
            self.plain.utimens(path, self.thread.core.time_ns)

    @property
    def view(self) -> View:
        return self.thread.view

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:
                self.compare()
                self.remount()
                self.compare()
                self.capture(look=False, prestore=False)
        finally:
            self.thread.close()
            self.plain.finish()
            shutil.rmtree(self.top)
            os.umask(self.mask)

    # the operations

    def both(self, operation: str, *arguments: object) -> object:
        """Do the same in both places; both must answer the same."""
        expected = outcome(getattr(self.plain, operation), *arguments)
        got = outcome(getattr(self.view, operation), *arguments)
        assert expected == got, (operation, arguments)
        return got

    def is_free(self, handle: int) -> bool:
        return handle not in self.plain.handles

    def drop_handle(self, handle: int) -> None:
        if not self.is_free(handle):
            self.both("close", handle)

    @rule(handle=handles, path=paths, mode=file_modes, data=st.none() | chunks)
    def create(self, handle: int, path: Path, mode: int, data: bytes | None) -> None:
        self.drop_handle(handle)
        self.both("create", handle, path, mode)
        if data is not None and not self.is_free(handle):
            self.both("write", handle, 0, data)
            self.both("close", handle)

    @rule(
        handle=handles,
        path=paths,
        flags=st.sampled_from((os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_TRUNC)),
    )
    def open(self, handle: int, path: Path, flags: int) -> None:
        self.drop_handle(handle)
        self.both("open", handle, path, flags)

    @rule(path=paths, offset=offsets, data=chunks)
    def edit(self, path: Path, offset: int, data: bytes) -> None:
        """Open, write, close, as most programs do."""
        self.drop_handle(0)
        self.both("open", 0, path, os.O_RDWR)
        if not self.is_free(0):
            self.both("write", 0, offset, data)
            self.both("close", 0)

    def may_write(self, handle: int) -> bool:
        return not self.is_free(handle) and self.view.handles[handle][1]

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

    @rule(path=paths, size=offsets)
    def truncate(self, path: Path, size: int) -> None:
        self.both("truncate", path, size)

    @rule(path=paths, mode=directory_modes)
    def mkdir(self, path: Path, mode: int) -> None:
        self.both("mkdir", path, mode)

    @rule(path=paths)
    def mkfifo(self, path: Path) -> None:
        self.both("mkfifo", path)

    @rule(path=paths, points_to=st.sampled_from((b"a", b"../nowhere", b"\xff")))
    def symlink(self, path: Path, points_to: bytes) -> None:
        self.both("symlink", points_to, path)

    @rule(old=paths, new=paths)
    def link(self, old: Path, new: Path) -> None:
        self.both("link", old, new)

    @rule(path=paths)
    def unlink(self, path: Path) -> None:
        self.both("unlink", path)

    @rule(path=paths)
    def rmdir(self, path: Path) -> None:
        self.both("rmdir", path)

    @rule(path=paths)
    def remove_all(self, path: Path) -> None:
        """``rm -r``."""
        names = self.both("listing", path)
        if not isinstance(names, list):
            self.both("unlink", path)
            return
        for name in names:
            self.remove_all((*path, name))
        self.both("rmdir", path)

    @rule(old=paths, new=paths, flags=flags)
    def rename(self, old: Path, new: Path, flags: int) -> None:
        self.both("rename", old, new, flags)

    @rule(path=paths, mode=file_modes)
    def chmod(self, path: Path, mode: int) -> None:
        kind = outcome(self.plain.stat, path)[0]
        if kind == "E" or not stat.S_ISLNK(kind):
            self.both("chmod", path, mode)

    @rule(path=paths, when=times)
    def utimens(self, path: Path, when: int) -> None:
        self.both("utimens", path, when)

    @rule(path=paths, name=xattr_names, value=st.binary(max_size=4))
    def set_xattr(self, path: Path, name: bytes, value: bytes) -> None:
        self.both("set_xattr", path, name, value)

    @rule(path=paths, name=xattr_names)
    def remove_xattr(self, path: Path, name: bytes) -> None:
        self.both("remove_xattr", path, name)

    @rule(path=paths)
    def look(self, path: Path) -> None:
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

    @rule()
    def remount(self) -> None:
        for handle in list(self.plain.handles):
            self.plain.close(handle)
        self.thread.reopen()

    @rule()
    def compare(self) -> None:
        self.assert_same(self.plain.glance(), self.view.glance())

    def assert_same(self, expected: dict[Path, Seen], got: dict[Path, Seen]) -> None:
        assert sorted(expected) == sorted(got)
        for path, want in expected.items():
            have = got[path]
            exact = want.mtime_ns < self.start_ns or want.mtime_ns in (5_000_000_000_000_000_007,)
            mtime = want.mtime_ns if exact else max(self.start_ns, have.mtime_ns)
            assert want._replace(mtime_ns=mtime, ctime_ns=0, ino=0) == have._replace(
                ctime_ns=0, ino=0
            ), path
            self.assert_numbered(path, want, have)
        assert len({one.ino for one in expected.values()}) == len({one.ino for one in got.values()})

    def assert_numbered(self, path: Path, want: Seen, have: Seen) -> None:
        """A file or directory keeps its number; where a number can't be written down, it may change."""
        if stat.S_ISREG(want.mode) or stat.S_ISDIR(want.mode):
            assert self.numbers.setdefault(want.ino, have.ino) == have.ino, path

    @rule(early=st.booleans())
    def status(self, early: bool) -> None:
        if early:  # a capture that came to nothing
            with self.thread.repo.store.writer() as writer:
                self.thread.overlay.prestore(writer)
        self.check_status(gitmodel.expected_tree(self.plain.glance(), self.base))

    def check_status(self, now: Tree) -> None:
        expected = gitmodel.differences(self.base, now)
        assert expected == self.thread.status()
        assert self.thread.overlay.dirty()[0] == len(expected)

    @rule(look=st.booleans(), prestore=st.booleans())
    def capture(self, look: bool, prestore: bool) -> None:
        seen = self.plain.glance()
        now = gitmodel.expected_tree(seen, self.base)
        expected = gitmodel.differences(self.base, now)
        before = self.view.glance() if look else None
        try:
            captured = self.thread.capture(prestore=prestore)
        except NothingToCapture:
            assert not expected
            return
        kinds = list(expected.values())
        modified = kinds.count("modified") + kinds.count("type-changed")
        assert captured.state.tree == gitmodel.tree_id(now), note(
            f"{self.read_tree(captured.state.tree)} {now}"
        )
        assert (captured.added, captured.modified, captured.deleted) == (
            kinds.count("added"),
            modified,
            kinds.count("deleted"),
        )
        self.base = now
        self.check_stored(seen, now, ())
        self.check_status(now)
        after = self.view.glance()
        self.assert_same(seen, after)
        assert before is None or before == after

    def read_tree(self, tree: bytes) -> object:
        """For a failure's message."""
        return {
            name: self.read_tree(oid) if stat.S_ISDIR(mode) else (mode, oid)
            for name, mode, oid in self.thread.repo.store.tree_entries(tree)
        }

    def check_stored(self, seen: dict[Path, Seen], tree: Tree, path: Path) -> None:
        """Every blob of a captured tree holds the plain directory's bytes."""
        for name, (_mode, oid, inside) in tree.items():
            inner = (*path, name)
            if inside is None:
                assert self.thread.repo.store.get_raw(oid)[1] == seen[inner].content, inner
            else:
                self.check_stored(seen, inside, inner)

    @rule(path=paths, prestore=st.booleans())
    def capture_path(self, path: Path, prestore: bool) -> None:
        """A capture of one path leaves the rest as unsaved as it was."""
        seen = self.plain.glance()
        now = gitmodel.expected_tree(seen, self.base)
        wanted = gitmodel.selected(self.base, now, path)
        try:
            captured = self.thread.capture(paths=[b"/".join(path)], prestore=prestore)
        except NothingToCapture:
            assert not gitmodel.differences(self.base, wanted)
            return
        assert captured.state.tree == gitmodel.tree_id(wanted), note(
            f"{self.read_tree(captured.state.tree)} {wanted}"
        )
        self.base = wanted
        self.check_status(gitmodel.expected_tree(seen, self.base))
        self.assert_same(seen, self.view.glance())


EXAMPLES = int(os.environ.get("HEDDLE_MODEL_EXAMPLES", "60"))
STEPS = int(os.environ.get("HEDDLE_MODEL_STEPS", "40"))


def run_model(machine: type[RuleBasedStateMachine]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_core_behaves_as_a_plain_directory() -> None:
    """Whatever is done to a mount, it is as a plain directory would be, over captures and remounts."""
    run_model(MountModel)
