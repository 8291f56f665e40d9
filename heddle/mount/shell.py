"""What a platform adapter may ask of a mount: the operations, their values and their errors.

The core implements `PlatformShell`; `fuse.py` (and one day NFS) calls it. Nothing here knows FUSE or errno: an
adapter turns a `MountError` into what its protocol wants. The operations are those of the source document
(lookup … read_link), plus link, xattrs, fsync, mknod and statfs, without which a mount is not POSIX.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import NamedTuple

NodeId = int
ROOT: NodeId = 1
NAME_MAX = 255  # bytes of one name; the kernel's FUSE layer itself would allow 1,024


class MountError(Exception):
    """An operation that the merged view refuses; subclasses say why."""


class NotFound(MountError):
    """No such name, or the node is gone."""


class AlreadyExists(MountError):
    """The name is taken."""


class NotADirectory(MountError):
    """A directory was needed."""


class IsADirectory(MountError):
    """A directory was not wanted."""


class NotEmpty(MountError):
    """The directory still shows names."""


class ReadOnly(MountError):
    """The mount takes no changes."""


class Stale(MountError):
    """The node was released or its file vanished below us."""


class InvalidArgument(MountError):
    """No file system could do this (a directory into itself, unknown flags)."""


class NotAllowed(MountError):
    """The operation or the name is reserved."""


class NameTooLong(MountError):
    """A name above `NAME_MAX` bytes."""


class NoAttribute(MountError):
    """No such extended attribute."""


class NotSupported(MountError):
    """This kind of extended attribute can't be kept."""


class Corrupt(MountError):
    """The object store gave no right bytes; the log names the object."""


class Attrs(NamedTuple):
    """Attributes of a node, as stat(2) has them; times in nanoseconds, sizes in bytes."""

    ino: NodeId
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blocks: int  # of 512 bytes
    atime_ns: int
    mtime_ns: int
    ctime_ns: int


class AttrUpdate(NamedTuple):
    """What `set_attrs` shall change; None leaves a field alone."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = (
        None  # an adapter that keeps change times itself says which; otherwise it is now
    )


class Caller(NamedTuple):
    """Who asks: owner of what is created. ``umask`` is applied by the kernel already."""

    uid: int
    gid: int


class Entry(NamedTuple):
    """A name in a directory and what it is."""

    name: bytes
    attrs: Attrs


class PlatformShell(ABC):
    """The operations of one mount. Every method raises `MountError`, or OSError from the file system below.

    Life of an open file: ``on_open`` once per open, then ``read``/``write``/``flush``, then ``release`` once. A
    node that lost its last name stays usable until it is released and forgotten. ``remember`` and ``forget`` carry
    the kernel's lookup counts; a node with none, and not open, is dropped from memory.
    """

    @abstractmethod
    def lookup(self, parent: NodeId, name: bytes) -> Attrs | None: ...
    @abstractmethod
    def attrs(self, node: NodeId) -> Attrs: ...
    @abstractmethod
    def enumerate(self, directory: NodeId) -> list[bytes]: ...
    @abstractmethod
    def remember(self, node: NodeId, count: int = 1) -> None: ...
    @abstractmethod
    def forget(self, node: NodeId, count: int) -> None: ...
    @abstractmethod
    def invalidate(self, node: NodeId) -> None: ...
    @abstractmethod
    def on_open(self, node: NodeId, *, write: bool, truncate: bool, caller: Caller) -> None: ...
    @abstractmethod
    def read(self, node: NodeId, offset: int, size: int) -> bytes: ...
    @abstractmethod
    def write(self, node: NodeId, offset: int, data: bytes) -> int: ...
    @abstractmethod
    def flush(self, node: NodeId) -> None: ...
    @abstractmethod
    def fsync(self, node: NodeId, *, data_only: bool) -> None: ...
    @abstractmethod
    def release(self, node: NodeId, *, write: bool) -> None: ...
    @abstractmethod
    def create_file(self, parent: NodeId, name: bytes, mode: int, caller: Caller) -> Attrs: ...
    @abstractmethod
    def make_node(
        self, parent: NodeId, name: bytes, mode: int, rdev: int, caller: Caller
    ) -> Attrs: ...
    @abstractmethod
    def make_dir(self, parent: NodeId, name: bytes, mode: int, caller: Caller) -> Attrs: ...
    @abstractmethod
    def create_symlink(
        self, parent: NodeId, name: bytes, target: bytes, caller: Caller
    ) -> Attrs: ...
    @abstractmethod
    def link(self, node: NodeId, parent: NodeId, name: bytes) -> Attrs: ...
    @abstractmethod
    def unlink_entry(self, parent: NodeId, name: bytes) -> None: ...
    @abstractmethod
    def rmdir_entry(self, parent: NodeId, name: bytes) -> None: ...
    @abstractmethod
    def rename_entry(
        self,
        old_parent: NodeId,
        old_name: bytes,
        new_parent: NodeId,
        new_name: bytes,
        *,
        no_replace: bool = False,
        exchange: bool = False,
    ) -> None: ...
    @abstractmethod
    def set_attrs(self, node: NodeId, update: AttrUpdate, caller: Caller) -> Attrs: ...
    @abstractmethod
    def read_link(self, node: NodeId) -> bytes: ...
    @abstractmethod
    def get_xattr(self, node: NodeId, name: bytes) -> bytes: ...
    @abstractmethod
    def set_xattr(self, node: NodeId, name: bytes, value: bytes) -> None: ...
    @abstractmethod
    def list_xattrs(self, node: NodeId) -> list[bytes]: ...
    @abstractmethod
    def remove_xattr(self, node: NodeId, name: bytes) -> None: ...
    @abstractmethod
    def statfs(self) -> os.statvfs_result: ...
