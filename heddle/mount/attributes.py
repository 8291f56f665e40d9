"""Attributes and extended attributes, and what changing them does to a captured file."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeAlias

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
from heddle.mount.upper import NO_MARKS, Marks
from heddle.mount.view import Known, stat_key

_XATTR_NAMESPACES = (b"user.", b"trusted.", b"security.")


class Attributes(Files):
    """A view whose attributes can be changed."""

    # --- attributes -----------------------------------------------------------------------------------

    def _attributes_change(self, node: Node) -> None:
        """The change time is about to move on: one that was noted no longer holds. Before the change, not after."""
        if isinstance(node, DirNode):
            if node.kept is not None:
                self._mark_directory(node, kept=None)
            return
        assert isinstance(node, FileNode)
        if node.marks is not None and node.marks.ctime_ns is not None:
            self._write_marks(node, node.marks._replace(ctime_ns=None))

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
        before = os.fstat(fd)
        self._attributes_change(node)
        with _undo_unless_done() as undo:
            if update.uid is not None or update.gid is not None:
                os.fchown(fd, _or_keep(update.uid), _or_keep(update.gid))
                undo(os.fchown, fd, before.st_uid, before.st_gid)
            if update.mode is not None:
                shown = stat.S_IMODE(update.mode)
                real = self._require_writable().real_mode(shown, directory=True)
                os.fchmod(fd, real)
                undo(os.fchmod, fd, stat.S_IMODE(before.st_mode))
                if node.mode is not None or real != shown:
                    undo(self._mark_directory, node, mode=node.mode)
                    self._mark_directory(node, mode=shown if real != shown else None)
            if update.atime_ns is not None or update.mtime_ns is not None:
                os.utime(fd, ns=_times(before, update))
        if node.parent is not None:
            self.touch(node.parent, node.name)

    def _set_file_attrs(self, node: FileNode, update: AttrUpdate) -> None:
        is_owned = update.uid is not None or update.gid is not None
        if update.mode is None and not is_owned:
            if update.atime_ns is None and update.mtime_ns is None:
                return
            if update.mtime_ns is None and not node.upper:
                return  # a reader's atime is not worth a copy-up
        if node.orphan and node.fd < 0 and node.upper:
            return
        self.copy_up(node)
        if update.mode is None and not is_owned:
            self._set_file_times(node, update)
        else:
            self._set_file_access(node, update)
        self._touch_parents(node)

    def _set_file_access(self, node: FileNode, update: AttrUpdate) -> None:
        """Owner and mode, and whatever comes with them."""
        before = self._status(node)
        assert before is not None
        with _undo_unless_done() as undo:
            undo(self._write_marks, node, node.marks or NO_MARKS)
            if update.uid is not None or update.gid is not None:
                self._chown(node, _or_keep(update.uid), _or_keep(update.gid))
                undo(self._chown, node, before.st_uid, before.st_gid)
            if update.mode is not None and not stat.S_ISLNK(node.mode):
                undo(self._chmod_real, node, stat.S_IMODE(before.st_mode))
                self._chmod(node, stat.S_IMODE(update.mode))
            self._set_file_times(node, update)

    def _chown(self, node: FileNode, uid: int, gid: int) -> None:
        if node.fd >= 0:
            os.fchown(node.fd, uid, gid)
        else:
            directory, name = self._at(node)
            os.chown(name, uid, gid, dir_fd=directory, follow_symlinks=False)

    def _chmod_real(self, node: FileNode, mode: int) -> None:
        if node.fd >= 0:
            os.fchmod(node.fd, mode)
        else:
            directory, name = self._at(node)
            os.chmod(name, mode, dir_fd=directory)

    def _chmod(self, node: FileNode, shown: int) -> None:
        upper = self._require_writable()
        is_file = stat.S_ISREG(node.mode)
        real = upper.real_mode(shown) if is_file else shown
        self._chmod_real(node, real)
        # An ordinary user's session loses the real file's set-id bits when it fills in a captured file's bytes.
        is_kept = real != shown or (is_file and upper.widen and shown & 0o6000 != 0)
        marks = node.marks or NO_MARKS
        if is_kept or marks.mode is not None:
            self._write_marks(node, marks._replace(mode=shown if is_kept else None))
        node.cleared = False

    def _set_file_times(self, node: FileNode, update: AttrUpdate) -> None:
        """Times as given, and the change time in any case: what was noted of it no longer holds."""
        status = self._status(node)
        if status is None:
            return
        marks = self._marks_at(node, status, update)
        if marks.blob is None:
            self._write_marks(node, marks)
        if update.atime_ns is not None or update.mtime_ns is not None:
            self._touch_real(node, status, _times(status, update))
        if marks.blob is not None:  # its marks alone say what it shows
            self._write_marks(node, marks)

    def _marks_at(self, node: FileNode, status: os.stat_result, update: AttrUpdate) -> Marks:
        """What a file is to say of itself once its times are these."""
        marks = node.marks or NO_MARKS
        if not stat.S_ISREG(node.mode):
            return marks
        mtime_ns = update.mtime_ns
        if mtime_ns is None:
            mtime_ns = marks.times(status)[0]
        if marks is NO_MARKS:  # nearly all: cheaper than a replacement
            return Marks(mtime_ns=mtime_ns, ctime_ns=update.ctime_ns) if update.ctime_ns else marks
        if not self.is_stored(status, marks):
            marks = marks._replace(stored=None, cleaned=None)
        if marks.blob is None and marks.stored is None and update.ctime_ns is None:
            return marks._replace(ctime_ns=None)
        return marks._replace(mtime_ns=mtime_ns, ctime_ns=update.ctime_ns)

    def _touch_real(self, node: FileNode, status: os.stat_result, times: tuple[int, int]) -> None:
        entry = self.known.get(node.real_ino)
        if node.fd >= 0:
            os.utime(node.fd, ns=times)
        else:
            directory, name = self._at(node)
            os.utime(name, ns=times, dir_fd=directory, follow_symlinks=False)
        if entry is not None and entry.is_of(status):
            after = self._status(node)
            if after is not None:  # same bytes at a new time
                self.known[node.real_ino] = Known(*stat_key(after), *entry[3:])

    def _at(self, node: FileNode) -> tuple[int, bytes]:
        if node.parent is None:
            raise Stale("the file has no name left")
        return self.fd(node.parent), node.name

    # --- extended attributes ---------------------------------------------------------------------------

    def get_xattr(self, node: NodeId, name: bytes) -> bytes:
        found = self._node(node)
        if not name.startswith(_XATTR_NAMESPACES):
            raise NotSupported
        if not self._has_xattrs(found) or name.startswith(up.PRIVATE_PREFIXES):
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
        if not self._has_xattrs(found):
            return []
        where = self._xattr_path(found)
        names = os.listxattr(where, follow_symlinks=isinstance(where, int))
        encoded = [os.fsencode(name) for name in names]
        return [name for name in encoded if not name.startswith(up.PRIVATE_PREFIXES)]

    @staticmethod
    def _has_xattrs(node: Node) -> bool:
        """Say whether there is a real entry to ask; of one without a name only a file that is open is left."""
        if node.orphan:
            return isinstance(node, FileNode) and node.fd >= 0
        return node.upper

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


Undo: TypeAlias = "Callable[..., object]"


@contextmanager
def _undo_unless_done() -> Iterator[Undo]:
    """Steps that are to be seen all or not at all: each one done notes its opposite, for when a later one fails."""
    with ExitStack() as undoing:
        yield undoing.callback
        undoing.pop_all()


def _or_keep(owner: int | None) -> int:
    return -1 if owner is None else owner
