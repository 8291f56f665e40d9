"""Attributes and extended attributes, and what changing them does to a captured file."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from heddle.mount import upper as up
from heddle.mount.files import Files
from heddle.mount.nodes import DirNode, FileNode, Node
from heddle.mount.shell import (
    Attrs,
    AttrUpdate,
    Caller,
    IsADirectory,
    NoAttribute,
    NodeId,
    NotAllowed,
    NotSupported,
    Stale,
)
from heddle.mount.upper import Marks
from heddle.mount.view import stat_key

if TYPE_CHECKING:
    pass

_XATTR_NAMESPACES = (b"user.", b"trusted.", b"security.")


class Attributes(Files):
    """A view whose attributes can be changed."""

    # --- attributes -----------------------------------------------------------------------------------

    def _attributes_change(self, node: FileNode) -> None:
        """The change time moves on: the one kept over a capture no longer holds."""
        if node.marks is not None and node.marks.ctime_ns is not None:
            node.marks.ctime_ns = None
            if node.fd >= 0 or node.parent is not None:
                self._write_marks(node)

    def set_attrs(self, node: NodeId, update: AttrUpdate, caller: Caller) -> Attrs:
        self._require_writable()
        found = self._node(node)
        if isinstance(found, DirNode):
            if update.size is not None:
                raise IsADirectory
            self._set_directory_attrs(found, update)
            return self.attrs_of(found)
        assert isinstance(found, FileNode)
        if update.size is not None:
            self._truncate(found, update.size)
            if caller.uid != 0 and found.parent is not None:
                self._drop_set_id_by_name(found)
        self._set_file_attrs(found, update)
        return self.attrs_of(found)

    def _drop_set_id_by_name(self, node: FileNode) -> None:
        opened = node.fd >= 0
        self._open_file(node)
        self._drop_set_id(node)
        if not opened:
            self._close_file(node)

    def _set_directory_attrs(self, node: DirNode, update: AttrUpdate) -> None:
        if node.orphan:
            return
        fd = self.raise_dir(node)
        if update.uid is not None or update.gid is not None:
            os.fchown(fd, _or_keep(update.uid), _or_keep(update.gid))
        if update.mode is not None:
            upper = self._require_writable()
            shown = stat.S_IMODE(update.mode)
            real = upper.real_mode(shown, directory=True)
            os.fchmod(fd, real)
            if node.mode is not None or real != shown:
                node.mode = shown if real != shown else None
                self._mark_directory(node)
        if update.atime_ns is not None or update.mtime_ns is not None:
            status = os.fstat(fd)
            os.utime(fd, ns=_times(status, update))
        if node.parent is not None:
            self.touch(node.parent)

    def _set_file_attrs(self, node: FileNode, update: AttrUpdate) -> None:
        if update.mode is None and update.uid is None and update.gid is None:
            if update.atime_ns is None and update.mtime_ns is None:
                return
            if update.mtime_ns is None and not node.upper:
                return  # a reader's atime is not worth a copy-up
        if node.orphan and node.fd < 0 and node.upper:
            return
        self.copy_up(node)
        if update.uid is not None or update.gid is not None:
            self._chown(node, _or_keep(update.uid), _or_keep(update.gid))
        if update.mode is not None and not stat.S_ISLNK(node.mode):
            self._chmod(node, stat.S_IMODE(update.mode))
        if update.atime_ns is not None or update.mtime_ns is not None:
            self._set_file_times(node, update)
        self._attributes_change(node)
        self._touch_parents(node)

    def _chown(self, node: FileNode, uid: int, gid: int) -> None:
        if node.fd >= 0:
            os.fchown(node.fd, uid, gid)
        else:
            directory, name = self._at(node)
            os.chown(name, uid, gid, dir_fd=directory, follow_symlinks=False)

    def _chmod(self, node: FileNode, shown: int) -> None:
        upper = self._require_writable()
        is_file = stat.S_ISREG(node.mode)
        real = upper.real_mode(shown) if is_file else shown
        if node.fd >= 0:
            os.fchmod(node.fd, real)
        else:
            directory, name = self._at(node)
            os.chmod(name, real, dir_fd=directory)
        marks = node.marks
        # An ordinary user's session loses the real file's set-id bits when it fills in a captured file's bytes.
        is_kept = real != shown or (is_file and upper.widen and shown & 0o6000 != 0)
        if is_kept or (marks is not None and marks.mode is not None):
            node.marks = marks = marks or Marks()
            marks.mode = shown if is_kept else None
            self._write_marks(node)
        node.cleared = False

    def _set_file_times(self, node: FileNode, update: AttrUpdate) -> None:
        status = self._status(node)
        if status is None:
            return
        times = _times(status, update)
        marks = node.marks
        keeps_content = marks is not None and (marks.blob or self.is_stored(status, marks))
        if marks is not None and keeps_content and update.mtime_ns is not None:
            marks.mtime_ns = update.mtime_ns
            marks.ctime_ns = None
            self._write_marks(node)
        entry = self.known.get(node.real_ino)
        if node.fd >= 0:
            os.utime(node.fd, ns=times)
        else:
            directory, name = self._at(node)
            os.utime(name, ns=times, dir_fd=directory, follow_symlinks=False)
        if entry is not None and stat_key(status) == entry[:3]:
            after = self._status(node)
            if after is not None:  # same bytes at a new time
                self.known[node.real_ino] = (*stat_key(after), entry[3])

    def _at(self, node: FileNode) -> tuple[int, bytes]:
        if node.parent is None:
            raise Stale("the file has no name left")
        return self.fd(node.parent), node.name

    # --- extended attributes ---------------------------------------------------------------------------

    def get_xattr(self, node: NodeId, name: bytes) -> bytes:
        found = self._node(node)
        if not name.startswith(_XATTR_NAMESPACES):
            raise NotSupported
        if not found.upper or found.orphan or name.startswith(up.PRIVATE_PREFIXES):
            raise NoAttribute
        where = self._xattr_path(found)
        try:
            if isinstance(where, int):
                return os.getxattr(where, name)
            return os.getxattr(where, name, follow_symlinks=False)
        except OSError as error:
            if error.errno == errno.ENODATA:
                raise NoAttribute from None
            raise

    def set_xattr(self, node: NodeId, name: bytes, value: bytes) -> None:
        found = self._xattr_writable(node, name)
        where = self._xattr_path(found)
        if isinstance(where, int):
            os.setxattr(where, name, value)
        else:
            os.setxattr(where, name, value, follow_symlinks=False)

    def remove_xattr(self, node: NodeId, name: bytes) -> None:
        self._check_xattr_change(name)
        if not self._node(node).upper:
            raise NoAttribute
        found = self._xattr_writable(node, name)
        where = self._xattr_path(found)
        try:
            if isinstance(where, int):
                os.removexattr(where, name)
            else:
                os.removexattr(where, name, follow_symlinks=False)
        except OSError as error:
            if error.errno == errno.ENODATA:
                raise NoAttribute from None
            raise

    def list_xattrs(self, node: NodeId) -> list[bytes]:
        found = self._node(node)
        if not found.upper or found.orphan:
            return []
        where = self._xattr_path(found)
        names = os.listxattr(where, follow_symlinks=isinstance(where, int))
        encoded = [os.fsencode(name) for name in names]
        return [name for name in encoded if not name.startswith(up.PRIVATE_PREFIXES)]

    def _check_xattr_change(self, name: bytes) -> None:
        self._require_writable()
        if name.startswith(up.PRIVATE_PREFIXES):
            raise NotAllowed
        if not name.startswith(_XATTR_NAMESPACES):
            raise NotSupported

    def _xattr_writable(self, node: NodeId, name: bytes) -> Node:
        found = self._node(node)
        self._check_xattr_change(name)
        if isinstance(found, DirNode):
            self.raise_dir(found)
        else:
            assert isinstance(found, FileNode)
            self.copy_up(found)
            self._attributes_change(found)
        return found

    def _xattr_path(self, node: Node) -> bytes | int:
        if isinstance(node, DirNode):
            return self.fd(node)
        assert isinstance(node, FileNode)
        return self._where(node)


def _times(status: os.stat_result, update: AttrUpdate) -> tuple[int, int]:
    atime = status.st_atime_ns if update.atime_ns is None else update.atime_ns
    mtime = status.st_mtime_ns if update.mtime_ns is None else update.mtime_ns
    return atime, mtime


def _or_keep(owner: int | None) -> int:
    return -1 if owner is None else owner
