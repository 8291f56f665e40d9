"""What a mount shows, to be read without one: a state, an overlay nobody serves, or a live mount itself.

Owns listing a directory of such a view and giving out the content of its files in pieces. It decides nothing about
where they go; that is ``materialize.py``'s.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from heddle.mount.ahead import Ahead
from heddle.mount.lower import FRAME, is_safe_name
from heddle.mount.nodes import DirNode, FileNode, Node

if TYPE_CHECKING:
    from heddle.mount.core import ContentAddressedMount

Pieces = Callable[[], Iterator[bytes]]


@dataclass(frozen=True, slots=True)
class Entry:
    """One name of a directory.

    Attributes:
        name: its name.
        mode: type and permission bits.
        size: bytes of a regular file.
        mtime_ns: when it was changed.
        directory: of a directory, what ``Source.list`` takes.
        target: of a symbolic link, what it says.
        pieces: of a regular file, gives its content.
        anywhere: whether ``pieces`` may be called, and its content be read, in any thread.
    """

    name: bytes
    mode: int
    size: int
    mtime_ns: int
    directory: Any = None
    target: bytes = b""
    pieces: Pieces | None = None
    anywhere: bool = False


class Vanished(Exception):
    """A file of a live mount was removed between listing and reading it."""


class Source(Protocol):
    """A tree of files to read."""

    @property
    def root(self) -> Any:
        """Its top, for ``list``."""

    def list(self, directory: Any) -> Iterator[Entry]:
        """The entries of a directory; each is good until the next one is asked for.

        A directory's own are good until all that was listed from it is done with.
        """


class CoreSource:
    """A view that this process has opened itself.

    Args:
        core: the view; nobody else uses it.
    """

    def __init__(self, core: ContentAddressedMount) -> None:
        self._core = core
        self._ahead = Ahead(core.lower, sizes=False)

    @property
    def root(self) -> DirNode:
        """The root directory."""
        return self._core.root

    def list(self, directory: DirNode) -> Iterator[Entry]:
        """What the mount would list."""
        core = self._core
        if core.lower.may_be_promised:
            self._ahead.bring_listed(directory)
        for name in sorted(core.list_names(directory)):
            node = core.child(directory, name)
            if node is None:
                continue
            node.lookups += 1
            try:
                yield self._entry(name, node)
            finally:
                node.lookups -= 1
                if isinstance(node, FileNode):
                    core.drop_if_unused(node)
        core.drop_if_unused(directory)

    def _entry(self, name: bytes, node: Node) -> Entry:
        attrs = self._core.attrs_of(node)
        entry = Entry(name, attrs.mode, attrs.size, attrs.mtime_ns)
        if isinstance(node, DirNode):
            return Entry(name, attrs.mode, 0, attrs.mtime_ns, directory=node)
        if stat.S_ISLNK(attrs.mode):
            target = self._core.read_link(node.ino)
            return Entry(name, attrs.mode, 0, attrs.mtime_ns, target=target)
        assert isinstance(node, FileNode)
        if not stat.S_ISREG(attrs.mode):
            return entry
        if not node.upper and node.blob is not None:
            blob, read = node.blob, self._core.lower.read
            return Entry(
                name,
                attrs.mode,
                attrs.size,
                attrs.mtime_ns,
                pieces=lambda: _in_frames(lambda at, size: read(blob, at, size), attrs.size),
                anywhere=True,
            )
        return Entry(
            name,
            attrs.mode,
            attrs.size,
            attrs.mtime_ns,
            pieces=lambda: self._changed(node, attrs.size),
        )

    def _changed(self, node: FileNode, size: int) -> Iterator[bytes]:
        core = self._core
        core.on_open(node.ino, write=False)
        try:
            yield from _in_frames(lambda at, count: core.read(node.ino, at, count), size)
        finally:
            core.release(node.ino)


class _Opened:
    """A directory of a live mount, open from when it is listed until its last file was read.

    Args:
        name: a path, or a name in ``parent``.
        parent: the directory above it.
    """

    def __init__(self, name: bytes, parent: _Opened | None = None) -> None:
        self._name = name
        self._parent = parent
        self._fd = -1

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    @property
    def fd(self) -> int:
        """Its descriptor."""
        if self._fd < 0 and self._parent is None:
            self._fd = os.open(self._name, _DIRECTORY)
        elif self._fd < 0 and self._parent is not None:
            self._fd = os.open(self._name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=self._parent.fd)
            self._parent = None
        return self._fd


_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class LiveSource:
    """A mount that a session serves, read through the kernel.

    Args:
        mountpoint: where it is.
    """

    def __init__(self, mountpoint: Path) -> None:
        self._mountpoint = os.fsencode(mountpoint)

    @property
    def root(self) -> _Opened:
        """The mountpoint."""
        return _Opened(self._mountpoint)

    def list(self, directory: _Opened) -> Iterator[Entry]:
        """What the mount lists, without ``.git`` and ``.heddle``; what is removed meanwhile is left out."""
        try:
            names = sorted(map(os.fsencode, os.listdir(directory.fd)))
        except FileNotFoundError:
            return
        for name in filter(is_safe_name, names):
            try:
                entry = self._entry(directory, name)
            except FileNotFoundError:
                continue
            yield entry

    def _entry(self, parent: _Opened, name: bytes) -> Entry:
        status = os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
        mode, when = status.st_mode, status.st_mtime_ns
        if stat.S_ISDIR(mode):
            return Entry(name, mode, 0, when, directory=_Opened(name, parent))
        if stat.S_ISLNK(mode):
            return Entry(name, mode, 0, when, target=os.readlink(name, dir_fd=parent.fd))
        if not stat.S_ISREG(mode):
            return Entry(name, mode, 0, when)
        return Entry(
            name,
            mode,
            status.st_size,
            when,
            pieces=lambda: _real(parent, name, status.st_size),
            anywhere=True,
        )


def _real(parent: _Opened, name: bytes, size: int) -> Iterator[bytes]:
    """The bytes of a real file, to its present end."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent.fd)
    except FileNotFoundError:
        raise Vanished from None
    try:
        while piece := os.read(fd, min(FRAME, max(size, 1 << 16))):
            yield piece
    finally:
        os.close(fd)


def _in_frames(read: Callable[[int, int], bytes], size: int) -> Iterator[bytes]:
    """Content by the pieces in which the store keeps it.

    Raises:
        EOFError: there is less than ``size`` says.
    """
    for at in range(0, size, FRAME):
        piece = read(at, min(FRAME, size - at))
        if not piece:
            raise EOFError
        yield piece
