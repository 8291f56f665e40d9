"""Whatever verbs are given in whatever order, and whenever sessions die: no byte that was closed is gone.

It is in a state that a name was ever at, in an overlay, in the park or in the working directory. Only a program that
writes over its own file, or removes it, loses what that file held since the last capture.
"""

from __future__ import annotations

import itertools
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import heddle
from heddle.errors import HeddleError
from heddle.mount.parked import Park
from heddle.mount.process import ProcessIdentity

THREADS = ("one", "two", "main")
NAMES = ("a", "b", "sub/c")
VERBS = (
    *("write", "write", "write", "remove", "rename", "capture", "mount", "unmount"),
    *("discard", "delete", "switch", "kill", "clean", "worktree", "move"),
    *("restore", "collect", "repair", "force"),
)

Act = tuple[str, str, str]
acts = st.lists(
    st.tuples(st.sampled_from(VERBS), st.sampled_from(THREADS), st.sampled_from(NAMES)),
    min_size=6,
    max_size=16,
)


class Life:
    """A repository, what was done to it, and what must therefore be somewhere in it.

    Attributes:
        kept: contents that must be found.
        unsaved: by place (a thread's mount, or the working directory) and file, the content that nobody recorded yet.
    """

    def __init__(self, path: Path) -> None:
        self.repo = heddle.init(path / "repo")
        (self.repo.path / "first").write_text("first")
        self.repo.capture(message="First")
        self._places = path
        self._serial = itertools.count()
        self.kept: set[bytes] = set()
        self.unsaved: dict[tuple[str, str], bytes] = {}
        self.mounted: dict[str, Path] = {}

    def run(self, act: Act) -> None:
        verb, thread, name = act
        try:
            getattr(self, f"_{verb}")(thread, name)
        except HeddleError:
            pass  # refused: then nothing may have changed

    def end(self) -> None:
        self.repo.unmount(force=True, keep_going=True)
        self.repo.close()

    # verbs

    def _mount(self, thread: str, name: str) -> None:
        done = self.repo.mount(
            thread, self._places / thread, create=thread not in self.repo.threads
        )
        self.mounted[thread] = done.mountpoint

    def _put(self, where: Path, place: str, name: str) -> None:
        content = b"%d bytes of %s" % (next(self._serial), place.encode())
        (where / name).parent.mkdir(exist_ok=True)
        (where / name).write_bytes(content)
        self.kept.discard(self.unsaved.get((place, name), b""))
        self.unsaved[place, name] = content
        self.kept.add(content)

    def _write(self, thread: str, name: str) -> None:
        if thread not in self.mounted:
            self._mount(thread, name)
        try:
            self._put(self.mounted[thread], thread, name)
        except OSError:
            assert not self._is_live(thread)

    def _is_live(self, thread: str) -> bool:
        return any(it.thread == thread and it.state == "live" for it in self.repo.mounts())

    def _remove(self, thread: str, name: str) -> None:
        if thread in self.mounted:
            try:
                (self.mounted[thread] / name).unlink()
            except OSError:
                return
            self.kept.discard(self.unsaved.pop((thread, name), b""))

    def _rename(self, thread: str, name: str) -> None:
        if thread in self.mounted:
            try:
                (self.mounted[thread] / name).rename(self.mounted[thread] / "renamed")
            except OSError:
                return
            self.kept.discard(self.unsaved.pop((thread, "renamed"), b""))
            if (thread, name) in self.unsaved:
                self.unsaved[thread, "renamed"] = self.unsaved.pop((thread, name))

    def _recorded(self, place: str) -> None:
        for key in [key for key in self.unsaved if key[0] == place]:
            del self.unsaved[key]

    def _capture(self, thread: str, name: str) -> None:
        self.repo.capture(message="x", thread=thread)
        on_disk = thread == self.repo.head and not self._has_overlay(thread)
        self._recorded("worktree" if on_disk else thread)

    def _has_overlay(self, thread: str) -> bool:
        return (self.repo.heddle_dir / "overlays" / thread).is_dir()

    def _unmount(self, thread: str, name: str) -> None:
        self.repo.unmount(thread)
        self.mounted.pop(thread, None)

    def _discard(self, thread: str, name: str) -> None:
        self.repo.unmount(thread, discard=True)
        self.mounted.pop(thread, None)
        self._recorded(thread)

    def _delete(self, thread: str, name: str) -> None:
        self.repo.threads.delete(thread, force=True)
        self._recorded(thread)

    def _move(self, thread: str, name: str) -> None:
        self.repo.threads.rename(thread, f"{thread}-{next(self._serial)}")
        self._recorded(thread)

    def _switch(self, thread: str, name: str) -> None:
        self.repo.switch(thread, create=thread not in self.repo.threads)

    def _worktree(self, thread: str, name: str) -> None:
        self._put(self.repo.path, "worktree", name)

    def _kill(self, thread: str, name: str) -> None:
        for info in self.repo.mounts():
            if info.thread == thread and info.pid is not None:
                identity = ProcessIdentity.of(info.pid)
                os.kill(info.pid, signal.SIGKILL)
                assert identity is None or identity.wait(20)

    def _clean(self, thread: str, name: str) -> None:
        for ended in self.repo.unmount(stale=True).unmounted:
            self.mounted.pop(ended.thread or "", None)

    def _force(self, thread: str, name: str) -> None:
        self.repo.unmount(thread, force=True)
        self.mounted.pop(thread, None)

    def _restore(self, thread: str, name: str) -> None:
        park = Park(self.repo, self.repo.runtime)
        for parked in park.list()[:1]:
            upper = parked.path / "upper"
            files = [path for path in upper.rglob("*") if path.is_file()]
            held = {(thread, str(path.relative_to(upper))): path.read_bytes() for path in files}
            park.restore(parked.id, thread)
            self._recorded(thread)
            self.unsaved.update(held)

    def _collect(self, thread: str, name: str) -> None:
        self.repo.collect(before_ns=time.time_ns())

    def _repair(self, thread: str, name: str) -> None:
        done, report = self.repo.repair(full=True)
        assert (done.lost, done.aside, report.problems) == ([], [], [])

    # what there is

    def found(self) -> set[bytes]:
        """Every content that a person could get back."""
        return {content for content in self._contents() if content in self.kept}

    def _contents(self) -> Iterator[bytes]:
        for top, directories, files in os.walk(self.repo.path):
            inside = Path(top).relative_to(self.repo.path).parts
            if inside == (".heddle",):
                directories[:] = ["overlays"]
            for name in files:
                if Path(top, name).is_file():  # not a whiteout
                    yield Path(top, name).read_bytes()
        for state in self._states():
            yield from self._blobs(self.repo.state(state).tree)

    def _states(self) -> set[bytes]:
        rows = self.repo.database.operations()
        return {row.new.encode() for row in rows if row.new and row.subject != "head"}

    def _blobs(self, tree: bytes) -> Iterator[bytes]:
        for _name, mode, oid in self.repo.store.tree_entries(tree):
            if mode == 0o040000:
                yield from self._blobs(oid)
            else:
                yield self.repo.store.get_raw(oid)[1]

    def missing(self) -> set[bytes]:
        return self.kept - self.found()


@given(acts)
@example([("write", "one", "a"), ("kill", "one", "a"), ("discard", "one", "a")])
@example(
    [("write", "one", "a"), ("capture", "one", "a"), ("write", "one", "a"), ("delete", "one", "a")]
)
@example(
    [
        *[("write", "one", "a"), ("unmount", "one", "a"), ("move", "one", "a")],
        *[("write", "one", "b"), ("unmount", "one", "a"), ("delete", "one", "a")],
    ]
)
@example([("write", "main", "a"), ("worktree", "main", "a"), ("capture", "main", "a")])
@example([("write", "two", "a"), ("discard", "two", "a"), ("restore", "two", "a")])
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_every_byte_that_was_closed_is_somewhere(
    tmp_path: Path, no_restarts: None, acts: list[Act]
) -> None:
    """Random verbs over three threads and the working directory: all that was closed can be got back."""
    with tempfile.TemporaryDirectory(dir=tmp_path) as directory:
        life = Life(Path(directory))
        try:
            for act in acts:
                life.run(act)
            missing = life.missing()
            problems = life.repo.fsck(full=True).problems
        finally:
            life.end()
    assert (missing, problems) == (set(), [])
