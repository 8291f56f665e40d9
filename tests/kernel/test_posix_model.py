"""A real mount beside a plain directory: the machine of ``tests/mount``, with the kernel and its caches in between."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import rule
from mount.model import EXAMPLES, MountModel, run_model
from mount.places import Plain

import heddle
from heddle import api
from heddle.mount import unsaved
from heddle.mount.lifecycle import Mounted
from heddle.repo.capture import Captured


class MountedThread:
    """The thread ``agent`` of a repository, mounted; the names mean what those of `mount.base.OpenThread` do."""

    mounted: Mounted
    view: Plain

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self.open()
        self.time_ns = self._time_of_base()

    def open(self) -> None:
        self.repo: api.Repository = heddle.open(self._repository)
        self.mounted = self.repo.mount("agent", self._repository.parent / "mnt")
        where = str(self.mounted.mountpoint)
        self.view = Plain(where, widen=os.geteuid() != 0, pin=False)

    def close(self) -> None:
        self.view.finish()
        self.repo.unmount("agent")
        self.repo.close()

    def reopen(self) -> None:
        modes = self.view.modes
        self.close()
        self.open()
        self.view.modes = modes

    def crash(self) -> None:
        """Kill the session; the next mount recovers what it left."""
        os.kill(self.mounted.pid, signal.SIGKILL)
        self.repo.close()
        modes = self.view.modes
        self.open()
        self.view.modes = modes

    def _time_of_base(self) -> int:
        return self.repo.state("agent").time_s * 1_000_000_000

    @property
    def base(self) -> bytes | None:
        return self.repo.overlay_base("agent")

    def status(self) -> dict[bytes, str]:
        found: dict[bytes, str] = {}
        for change in heddle.open(self.mounted.mountpoint).status().changes:
            if change.old_path is not None:
                found[change.old_path] = "deleted"
            found[change.path] = "added" if change.kind == "renamed" else change.kind
        return found

    def dirty_paths(self) -> int | None:
        (session,) = self.repo.mounts()
        return session.dirty_files

    def store_in_vain(self) -> None:
        """A session stores ahead only for a capture that comes."""

    def cut_next_capture(self) -> None:
        """What a crash between a capture's steps leaves is for the fault tests."""

    def capture(self, *, paths: Sequence[bytes] = (), prestore: bool = False) -> Captured:
        return self.repo.capture(thread="agent", paths=paths)

    def follow(self) -> None:
        unsaved.follow(self.repo, "agent", self.repo.runtime)

    def discard(self) -> int:
        self.view.finish()
        (ended,) = self.repo.unmount("agent", discard=True).unmounted
        self.repo.close()
        self.open()
        self.time_ns = self._time_of_base()
        return 0 if ended.discarded is None else ended.discarded.files


class KernelModel(MountModel):
    """`MountModel` through a kernel."""

    def teardown(self) -> None:
        if sys.exc_info()[0] is not None and isinstance(self.thread, MountedThread):
            note(self.thread.mounted.log.read_text()[-4000:])
        super().teardown()

    def open_thread(self) -> MountedThread:
        return MountedThread(self.top / "repo")

    @rule(look=st.booleans())
    def crash(self, look: bool) -> None:
        """The session is killed when every file is closed: nothing is missing afterwards."""
        assert isinstance(self.thread, MountedThread)
        with self.nothing_shows(look):
            self.thread.crash()


def test_a_mount_behaves_as_a_plain_directory(tmp_path: Path) -> None:
    """Whatever is done to a mount, it is as a plain directory would be, over captures, remounts and crashes."""
    KernelModel.directory = tmp_path
    run_model(KernelModel, examples=EXAMPLES // 5)
