"""Everything that a repository holds, as one flat dictionary that two moments can be compared by.

Ids of states differ from run to run (they hold times and change ids), so a state is what it says: its tree and the
messages of its history. Times and inode numbers are told apart, because they must stay and not come out alike.
"""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from heddle import api
from heddle.errors import NotARepository
from heddle.mount.core import ContentAddressedMount
from heddle.mount.overlay import Overlay
from heddle.mount.shell import ROOT, Attrs, AttrUpdate, Caller
from heddle.repo.parked import PARKED

Key = tuple[Any, ...]
ME = Caller(os.geteuid(), os.getegid())


class Hand:
    """A program at work in a mount without a kernel: paths in, the core's operations out."""

    def __init__(self, core: ContentAddressedMount) -> None:
        self.core = core

    def at(self, path: str) -> Attrs:
        """Look a path up and keep it, as the kernel does."""
        attrs = self.core.attrs(ROOT)
        for name in filter(None, path.split("/")):
            found = self.core.lookup(attrs.ino, name.encode())
            if found is None:
                raise FileNotFoundError(path)
            self.core.remember(found.ino)
            attrs = found
        return attrs

    def _place(self, path: str) -> tuple[int, bytes]:
        above, _, name = path.rpartition("/")
        return self.at(above).ino, name.encode()

    def create(self, path: str, mode: int = 0o644) -> None:
        made = self.core.create_file(*self._place(path), stat.S_IFREG | mode, ME)
        self.core.remember(made.ino)
        self.core.release(made.ino, write=True)

    def write(self, path: str, data: bytes, *, offset: int | None = None) -> None:
        """Write at an offset, or at the end, and close."""
        ino = self.at(path).ino
        self.core.on_open(ino, write=True, truncate=False, caller=ME)
        try:
            self.core.write(ino, self.core.attrs(ino).size if offset is None else offset, data)
        finally:
            self.core.release(ino, write=True)

    def truncate(self, path: str, size: int) -> None:
        self.core.set_attrs(self.at(path).ino, AttrUpdate(size=size), ME)

    def chmod(self, path: str, mode: int) -> None:
        self.core.set_attrs(self.at(path).ino, AttrUpdate(mode=mode), ME)

    def utime(self, path: str, mtime_ns: int) -> None:
        update = AttrUpdate(atime_ns=mtime_ns, mtime_ns=mtime_ns)
        self.core.set_attrs(self.at(path).ino, update, ME)

    def unlink(self, path: str) -> None:
        self.at(path)
        self.core.unlink_entry(*self._place(path))

    def rmdir(self, path: str) -> None:
        self.at(path)
        self.core.rmdir_entry(*self._place(path))

    def mkdir(self, path: str) -> None:
        self.core.make_dir(*self._place(path), stat.S_IFDIR | 0o755, ME)

    def symlink(self, target: bytes, path: str) -> None:
        self.core.create_symlink(*self._place(path), target, ME)

    def mkfifo(self, path: str) -> None:
        self.core.make_node(*self._place(path), stat.S_IFIFO | 0o644, 0, ME)

    def link(self, old: str, new: str) -> None:
        self.core.link(self.at(old).ino, *self._place(new))

    def rename(self, old: str, new: str, *, exchange: bool = False) -> None:
        self.at(old)
        with contextlib.suppress(FileNotFoundError):
            self.at(new)
        self.core.rename_entry(*self._place(old), *self._place(new), exchange=exchange)

    def set_xattr(self, path: str, name: bytes, value: bytes) -> None:
        self.core.set_xattr(self.at(path).ino, name, value)

    def sync(self, path: str) -> None:
        """fsync(2) of a file that is opened for it, or of a directory."""
        attrs = self.at(path)
        if not stat.S_ISDIR(attrs.mode):
            self.core.on_open(attrs.ino, write=False, truncate=False, caller=ME)
        self.core.fsync(attrs.ino, data_only=False)
        if not stat.S_ISDIR(attrs.mode):
            self.core.release(attrs.ino, write=False)

    def read(self, path: str) -> bytes:
        return self._content(self.at(path))

    def _content(self, attrs: Attrs) -> bytes:
        if stat.S_ISLNK(attrs.mode):
            return self.core.read_link(attrs.ino)
        if not stat.S_ISREG(attrs.mode):
            return b""
        self.core.on_open(attrs.ino, write=False, truncate=False, caller=ME)
        try:
            return bytes(self.core.read(attrs.ino, 0, attrs.size + 1))
        finally:
            self.core.release(attrs.ino, write=False)

    def everything(self) -> Iterator[tuple[bytes, Attrs, bytes, dict[bytes, bytes]]]:
        """Path, attributes, bytes and extended attributes of every entry."""
        yield from self._below(b"", self.core.attrs(ROOT))

    def _below(
        self, path: bytes, attrs: Attrs
    ) -> Iterator[tuple[bytes, Attrs, bytes, dict[bytes, bytes]]]:
        core = self.core
        xattrs = {name: core.get_xattr(attrs.ino, name) for name in core.list_xattrs(attrs.ino)}
        yield path, attrs, self._content(attrs), xattrs
        if stat.S_ISDIR(attrs.mode):
            for name in sorted(core.enumerate(attrs.ino)):
                found = core.lookup(attrs.ino, name)
                assert found is not None, f"{name!r} is listed and can't be looked up"
                core.remember(found.ino)
                yield from self._below(path + b"/" + name, found)


class View(NamedTuple):
    """What there is, and the times and numbers of what there is."""

    holds: dict[Key, Any]
    stays: dict[Key, Any]


def opened(path: Path) -> api.Repository:
    """The repository of a directory, without what ``heddle.open`` brings up to date."""
    repo = api.Repository.open(path)
    repo.environment = os.environ
    return repo


def look(path: Path, open_overlays: dict[str, Overlay]) -> View:
    """Everything that the repository in a directory holds; nothing where there is none."""
    view = View({}, {})
    try:
        repo = opened(path)
    except NotARepository:
        return view
    try:
        _names(repo, view)
        _worktree(repo, view)
        for thread in repo.threads:
            overlay = open_overlays.get(thread.name)
            if overlay is not None:
                _overlay(thread.name, overlay, view)
            elif repo.database.has_overlay(thread.name):
                with Overlay.open(repo, thread.name) as overlay:
                    _overlay(thread.name, overlay, view)
        _parked(repo, view)
        _git_refs(repo, view)
        return view
    finally:
        repo.close()


def _names(repo: api.Repository, view: View) -> None:
    view.holds["head",] = repo.head
    for thread in repo.threads:
        view.holds["thread", thread.name] = _state(repo, thread.state)
    for marker in repo.markers:
        view.holds["marker", marker.name] = _state(repo, marker.state)
    view.holds["worktree base",] = _state(repo, repo.worktree_base())
    for setting in repo.config.list():
        if setting.source == "repository config":
            view.holds["setting", setting.key] = setting.value


def _git_refs(repo: api.Repository, view: View) -> None:
    """The refs of every git repository in the working directory."""
    for head in (*repo.path.glob("*/HEAD"), *repo.path.glob(".git/HEAD")):
        words = ["git", "-C", head.parent, "for-each-ref", "--format=%(refname) %(tree) %(subject)"]
        done = subprocess.run(words, check=True, capture_output=True, text=True)
        if done.stdout:
            view.holds["git refs", head.parent.name] = done.stdout


def _state(repo: api.Repository, state: bytes | None) -> Any:
    if state is None:
        return None
    return repo.state(state).tree, [each.message for each in repo.log([state])]


def _worktree(repo: api.Repository, view: View) -> None:
    for top, directories, files in os.walk(repo.path):
        directories[:] = [
            name for name in directories if name not in (".heddle", ".git", "out.git")
        ]
        for name in directories + files:
            path = Path(top, name)
            status = path.lstat()
            link = stat.S_ISLNK(status.st_mode)
            content = os.readlink(path) if link else path.read_bytes() if path.is_file() else None
            view.holds["worktree", str(path.relative_to(repo.path))] = status.st_mode, content


def _overlay(thread: str, overlay: Overlay, view: View) -> None:
    hand = Hand(overlay.core)
    first: dict[int, bytes] = {}
    for path, attrs, content, xattrs in hand.everything():
        same = first.setdefault(attrs.ino, path)
        key = "overlay", thread, path
        owner = attrs.mode, attrs.uid, attrs.gid
        view.holds[key] = (*owner, content, xattrs, same)
        if not stat.S_ISDIR(attrs.mode):
            view.stays[key] = attrs.mtime_ns, attrs.ino
        else:
            view.stays[key] = attrs.ino
    changes = (
        overlay.changes()
    )  # whether two of them are seen as a rename is a matter of what is known
    paths = {each.path for each in changes} | {each.old_path for each in changes if each.old_path}
    view.holds["changes", thread] = sorted(paths)


def _parked(repo: api.Repository, view: View) -> None:
    parked = repo.heddle_dir / "overlays" / PARKED
    for place in sorted(parked.iterdir()) if parked.is_dir() else ():
        if place.name.startswith("."):
            continue  # being dropped
        name = place.name.rpartition("-")[2]
        for path in sorted((place / "upper").rglob("*")):
            if path.is_file() and not path.is_symlink():
                view.holds["parked", name, str(path.relative_to(place))] = path.read_bytes()
