"""What the merged view of one mount means: names, attributes, bytes and every change to them.

`ContentAddressedMount` answers the operations of `shell.py` from a lower tree and an upper directory. It is plain
``def`` throughout and knows neither FUSE nor trio: between two awaits of its caller, all state here is its own
(docs/mount.md). What differs from the base, and how a tree is made of it, is `snapshot.py`'s.

The upper is the only memory of a change. Nodes are caches of it and of the lower: a node that the kernel forgot
and nobody holds open is dropped, and made again from disk when it is next looked up.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import stat
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from heddle import faults
from heddle.mount import upper as up
from heddle.mount.lower import GITLINK, Lower, is_directory, subtree
from heddle.mount.nodes import DirNode, FileNode, Node
from heddle.mount.shell import (
    NAME_MAX,
    ROOT,
    AlreadyExists,
    Attrs,
    AttrUpdate,
    Caller,
    InvalidArgument,
    IsADirectory,
    NameTooLong,
    NoAttribute,
    NodeId,
    NotADirectory,
    NotAllowed,
    NotEmpty,
    NotFound,
    NotSupported,
    PlatformShell,
    ReadOnly,
    Stale,
)
from heddle.mount.upper import Marks, Upper

if TYPE_CHECKING:
    from dulwich.objects import ObjectID


log = logging.getLogger(__name__)

_LOWER_INO = 1 << 62  # numbers of captured nodes; real inode numbers stay below
_OPEN_DIRECTORIES = 256  # descriptors kept for upper directories
_COPY = 1 << 20  # bytes moved at a time
_XATTR_NAMESPACES = (b"user.", b"trusted.", b"security.")


class ContentAddressedMount(PlatformShell):
    """The merged view of a lower tree and an upper directory.

    Args:
        lower: reads the object store.
        upper: the changed files; None for a read-only mount.
        tree: the lower's root tree, None for an empty one.
        time_ns: time of everything captured that has no time of its own; an upper that says another one is right,
            since files must not grow newer because their thread moved on.
        uid, gid: owner of everything captured.

    Attributes:
        nodes: live nodes by number.
        epoch: counts events after which no directory may be thought clean without a look.
        watched: names whose change may change what is ignored elsewhere.
        known: contents known to be a blob: real inode number to (size, mtime_ns, ctime_ns, blob).
    """

    def __init__(
        self,
        lower: Lower,
        upper: Upper | None,
        tree: ObjectID | None,
        *,
        time_ns: int,
        uid: int,
        gid: int,
    ) -> None:
        self.lower = lower
        self.upper = upper
        self.time_ns = time_ns
        self.uid = uid
        self.gid = gid
        self.epoch = 0
        self.watched: frozenset[bytes] = frozenset()
        self.known: dict[int, tuple[int, int, int, ObjectID] | None] = {}
        self.root = DirNode(ROOT, None, b"", tree)
        self.root.lookups = 1
        self.nodes: dict[NodeId, Node] = {ROOT: self.root}
        self._fds: OrderedDict[DirNode, int] = OrderedDict()
        self._as_root = os.geteuid() == 0
        if upper is not None:
            self._adopt_directory(self.root, upper.root)
            self._mark_directory(self.root)

    def close(self) -> None:
        """Give all descriptors back; the view must not be used any more."""
        for node in self.nodes.values():
            if isinstance(node, FileNode) and node.fd >= 0:
                os.close(node.fd)
                node.fd = -1
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
        self.lower.close()
        if self.upper is not None:
            self.upper.close()

    # --- nodes and names -----------------------------------------------------------------------

    def _node(self, ino: NodeId) -> Node:
        node = self.nodes.get(ino)
        if node is None:
            raise Stale(f"node {ino}")
        return node

    def _dir(self, ino: NodeId) -> DirNode:
        node = self._node(ino)
        if not isinstance(node, DirNode):
            raise NotADirectory
        return node

    def _file(self, ino: NodeId) -> FileNode:
        node = self._node(ino)
        if not isinstance(node, FileNode):
            raise IsADirectory
        return node

    def _live_dir(self, ino: NodeId) -> DirNode:
        directory = self._dir(ino)
        if directory.orphan:
            raise NotFound
        return directory

    def path(self, node: Node) -> bytes:
        """A path of a node from the root of the mount; empty for the root."""
        parts = []
        while node.parent is not None:
            parts.append(node.name)
            node = node.parent
        return b"/".join(reversed(parts))

    def names(self, directory: DirNode) -> dict[bytes, bool]:
        """What the upper directory holds: name to "is a whiteout". Listed once, then kept right."""
        if directory.names is None:
            directory.names = {}
            if directory.upper:
                with os.scandir(self.fd(directory)) as entries:
                    for entry in entries:
                        directory.names[os.fsencode(entry.name)] = _is_whiteout_entry(entry)
        return directory.names

    def fd(self, directory: DirNode) -> int:
        """Descriptor of an upper directory, opened through its parents' and kept for a while."""
        if directory is self.root:
            assert self.upper is not None
            return self.upper.root
        fd = self._fds.get(directory)
        if fd is not None:
            self._fds.move_to_end(directory)
            return fd
        # Only the directory asked for is kept: one insertion a call, so that the descriptors of one
        # operation never push each other out however deep they lie.
        chain = [directory]
        while (above := chain[-1].parent) is not None and above not in self._fds:
            if above is self.root:
                break
            chain.append(above)
        assert above is not None
        fd = self.fd(above)
        for number, node in enumerate(reversed(chain)):
            inner = os.open(node.name, _DIRECTORY_FLAGS, dir_fd=fd)
            if number:
                os.close(fd)
            fd = inner
        self._fds[directory] = fd
        if len(self._fds) > _OPEN_DIRECTORIES:
            os.close(self._fds.popitem(last=False)[1])
        return fd

    def _drop_fd(self, directory: DirNode) -> None:
        fd = self._fds.pop(directory, None)
        if fd is not None:
            os.close(fd)

    def child(self, directory: DirNode, name: bytes) -> Node | None:
        """The node of a name, made if it is not live; None when the view has no such name."""
        node = directory.children.get(name)
        if node is not None:
            return node
        if directory.upper:
            whiteout = self.names(directory).get(name)
            if whiteout:
                return None
            if whiteout is not None:
                return self._load_upper(directory, name)
        entry = self.lower.entries(directory.lower).get(name)
        if entry is None:
            return None
        return self._load_lower(directory, name, *entry)

    def _load_lower(self, parent: DirNode, name: bytes, mode: int, oid: ObjectID) -> Node:
        ino = self._lower_ino(parent.ino, name)
        node: Node
        if is_directory(mode):
            node = DirNode(ino, parent, name, None if mode == GITLINK else oid)
        else:
            node = FileNode(ino, parent, name, _shown_mode(mode))
            node.blob = oid
            node.size = self.lower.size(oid)
        return self._add(node, parent, name)

    def _lower_ino(self, parent: NodeId, name: bytes) -> NodeId:
        """A number for a captured node that comes out the same at every mount."""
        digest = hashlib.blake2b(name, digest_size=8, salt=parent.to_bytes(8, "little")).digest()
        ino = int.from_bytes(digest, "little") & (_LOWER_INO - 1) | _LOWER_INO
        while ino in self.nodes:
            ino += 1
        return ino

    def _load_upper(self, parent: DirNode, name: bytes) -> Node:
        directory_fd = self.fd(parent)
        status = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            return self._load_upper_directory(parent, name)
        marks = None
        if stat.S_ISREG(status.st_mode):
            marks = up.read_marks(up.entry_path(directory_fd, name))
        ino = status.st_ino if marks is None or marks.ino is None else marks.ino
        same = self.nodes.get(ino)
        if same is not None:
            if isinstance(same, FileNode) and same.is_file(status.st_ino):
                return self._add_link(same, parent, name)
            ino = self._lower_ino(
                ino, name
            )  # the kernel still holds an earlier owner of the number
            marks = marks or Marks()
            marks.ino = ino
            if stat.S_ISREG(status.st_mode):
                up.write_marks(up.entry_path(directory_fd, name), marks)
        node = FileNode(ino, parent, name, status.st_mode)
        node.upper = True
        node.real_ino = status.st_ino
        if status.st_nlink > 1:
            node.links = []
        self._take_marks(node, marks)
        return self._add(node, parent, name)

    def _load_upper_directory(self, parent: DirNode, name: bytes) -> DirNode:
        node = DirNode(0, parent, name, subtree(self.lower.entries(parent.lower), name))
        node.upper = True
        self._adopt_directory(node, self.fd(node))
        if node.ino in self.nodes:  # see _load_upper
            node.ino = self._lower_ino(node.ino, name)
            self._mark_directory(node)
        self._add(node, parent, name)
        return node

    def _adopt_directory(self, node: DirNode, fd: int) -> None:
        """Take over what an upper directory says of itself."""
        node.upper = True
        marks = up.read_marks(fd) or Marks()
        if node.ino != ROOT:
            node.ino = os.fstat(fd).st_ino if marks.ino is None else marks.ino
        elif marks.time_ns is not None:
            self.time_ns = marks.time_ns
        else:  # a new upper: the root is as old as what it shows
            os.utime(fd, ns=(self.time_ns, self.time_ns))
        node.mode = marks.mode
        if marks.lower is not None:
            node.lower, node.explicit = marks.lower, True
        elif up.is_opaque(fd):
            node.lower, node.explicit = None, True

    def _mark_directory(self, node: DirNode) -> None:
        marks = Marks()
        if node is self.root:
            marks.time_ns = self.time_ns
        else:
            marks.ino = node.ino
        marks.mode = node.mode
        if node.explicit:
            marks.lower = node.lower
        up.write_marks(self.fd(node), marks)

    def _take_marks(self, node: FileNode, marks: Marks | None) -> None:
        node.marks = marks
        node.blob = None if marks is None else marks.blob
        if marks is not None and marks.blob is not None:
            node.size = marks.size

    def _write_marks(self, node: FileNode) -> None:
        if node.marks is not None:
            up.write_marks(self._where(node), node.marks)

    def _where(self, node: FileNode) -> bytes | int:
        """The real file, for calls on xattrs: its descriptor, or a path through its directory."""
        if node.fd >= 0:
            return node.fd
        if node.parent is None:
            raise Stale(f"node {node.ino} has no name left")
        return up.entry_path(self.fd(node.parent), node.name)

    def _add(self, node: Node, parent: DirNode, name: bytes) -> Node:
        self.nodes[node.ino] = node
        parent.children[name] = node
        return node

    def _add_link(self, node: FileNode, parent: DirNode, name: bytes) -> FileNode:
        if node.parent is None:
            node.parent, node.name = parent, name
        else:
            node.links = [*(node.links or ()), (parent, name)]
        parent.children[name] = node
        return node

    def remember(self, node: NodeId, count: int = 1) -> None:
        self.nodes[node].lookups += count

    def forget(self, node: NodeId, count: int) -> None:
        found = self.nodes.get(node)
        if found is not None:
            found.lookups -= count
            self.drop_if_unused(found)

    def invalidate(self, node: NodeId) -> None:
        found = self.nodes.get(node)
        if found is not None:
            self.drop_if_unused(found)

    def drop_if_unused(self, node: Node | None) -> None:
        """Let go of a node that neither the kernel nor a handle nor a child holds, and of parents held only by it."""
        while node is not None and node is not self.root and node.lookups <= 0:
            if isinstance(node, FileNode):
                if node.opens > 0:
                    return
                for parent, name in node.links or ():
                    if parent.children.get(name) is node:
                        del parent.children[name]
                self._close_file(node)
                if node.orphan:
                    self.known.pop(node.real_ino, None)
            else:
                assert isinstance(node, DirNode)
                if node.children:
                    return
                self._drop_fd(node)
            if self.nodes.get(node.ino) is node:
                del self.nodes[node.ino]
            parent_node = node.parent
            if parent_node is not None and parent_node.children.get(node.name) is node:
                del parent_node.children[node.name]
            node = parent_node

    # --- looking ---------------------------------------------------------------------------------

    def lookup(self, parent: NodeId, name: bytes) -> Attrs | None:
        directory = self._dir(parent)
        if name == b".":
            return self.attrs_of(directory)
        if name == b"..":
            return self.attrs_of(directory.parent or directory)
        if directory.orphan:
            return None
        _check_length(name)
        node = self.child(directory, name)
        return None if node is None else self.attrs_of(node)

    def attrs(self, node: NodeId) -> Attrs:
        found = self._node(node)
        return self.attrs_of(found)

    def attrs_of(self, node: Node) -> Attrs:
        """Attributes of a live node."""
        if isinstance(node, DirNode):
            return self._directory_attrs(node)
        assert isinstance(node, FileNode)
        if node.upper:
            return self._upper_attrs(node)
        blocks, when = -(-node.size // 512), self.time_ns
        nlink = 0 if node.orphan else 1
        return Attrs(
            node.ino,
            node.mode,
            nlink,
            self.uid,
            self.gid,
            0,
            node.size,
            blocks,
            when,
            when,
            when,
        )

    def _directory_attrs(self, node: DirNode) -> Attrs:
        when = self.time_ns
        if node.orphan:
            return Attrs(
                node.ino, stat.S_IFDIR | 0o755, 0, self.uid, self.gid, 0, 0, 0, when, when, when
            )
        if not node.upper:
            nlink = 2 + self.lower.subdirectories(node.lower)
            mode = stat.S_IFDIR | 0o755
            return Attrs(node.ino, mode, nlink, self.uid, self.gid, 0, 4096, 8, when, when, when)
        status = self._directory_status(node)
        mode = status.st_mode if node.mode is None else stat.S_IFDIR | node.mode
        return Attrs(
            node.ino,
            mode,
            self._link_count(node, status),
            status.st_uid,
            status.st_gid,
            0,
            status.st_size,
            status.st_blocks,
            status.st_atime_ns,
            status.st_mtime_ns,
            status.st_ctime_ns,
        )

    def _directory_status(self, node: DirNode) -> os.stat_result:
        if node.parent is None or node in self._fds:
            return os.fstat(self.fd(node))
        return os.stat(node.name, dir_fd=self.fd(node.parent), follow_symlinks=False)

    def _link_count(self, node: DirNode, status: os.stat_result) -> int:
        """2 and one for every directory shown. The real count is right unless a lower shows through."""
        if node.lower is None:
            return status.st_nlink
        names = self.names(node)
        hidden = sum(
            is_directory(mode) and name in names
            for name, (mode, _) in self.lower.entries(node.lower).items()
        )
        return status.st_nlink + self.lower.subdirectories(node.lower) - hidden

    def _upper_attrs(self, node: FileNode) -> Attrs:
        status = self._status(node)
        if status is None:
            assert node.last is not None
            return node.last
        marks = node.marks
        mode, size, mtime, ctime = (
            status.st_mode,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
        )
        blocks = status.st_blocks
        if marks is not None:
            if marks.mode is not None:
                mode = stat.S_IFMT(mode) | marks.mode
            if marks.blob is not None:
                size, mtime, blocks = marks.size, marks.mtime_ns, -(-marks.size // 512)
            if marks.ctime_ns is not None:
                ctime = marks.ctime_ns
        return Attrs(
            node.ino,
            mode,
            status.st_nlink,
            status.st_uid,
            status.st_gid,
            status.st_rdev,
            size,
            blocks,
            status.st_atime_ns,
            mtime,
            ctime,
        )

    def _status(self, node: FileNode) -> os.stat_result | None:
        """stat(2) of the real file; None for an orphan that nobody held open."""
        if node.fd >= 0:
            return os.fstat(node.fd)
        if node.parent is None:
            return None
        return os.stat(node.name, dir_fd=self.fd(node.parent), follow_symlinks=False)

    def enumerate(self, directory: NodeId) -> list[bytes]:
        return self.list_names(self._dir(directory))

    def list_names(self, directory: DirNode) -> list[bytes]:
        """All names that a directory shows."""
        if directory.orphan:
            return []
        below = self.lower.entries(directory.lower)
        if not directory.upper:
            return list(below)
        names = self.names(directory)
        shown = [name for name, whiteout in names.items() if not whiteout]
        shown += [name for name in below if name not in names]
        return shown

    def read_link(self, node: NodeId) -> bytes:
        found = self._file(node)
        if found.upper:
            if found.parent is None:
                raise Stale("the link is gone")
            return os.readlink(found.name, dir_fd=self.fd(found.parent))
        assert found.blob is not None
        return self.lower.read(found.blob, 0, found.size)

    def statfs(self) -> os.statvfs_result:
        return os.statvfs(self.upper.root if self.upper is not None else self.lower.store.path)

    # --- open files --------------------------------------------------------------------------------

    def on_open(
        self, node: NodeId, *, write: bool, truncate: bool = False, caller: Caller | None = None
    ) -> None:
        """Count an opener, and bring the bytes up if it may write.

        A caller that must not wait for a large copy calls `fill_size` first and does `start_fill` … `end_fill`.
        """
        found = self._file(node)
        found.opens += 1
        found.writers += write
        try:
            if write:
                self._require_writable()
                if truncate:
                    self._truncate(found, 0)
                else:
                    self.bring_up(found)
                found.privileged = caller is None or caller.uid == 0
            if found.upper:
                self._open_file(found)
        except BaseException:
            self.release(node, write=write)
            raise

    def _open_file(self, node: FileNode) -> int:
        if node.fd < 0:
            if node.parent is None:
                raise Stale("the file is gone")
            node.fd = os.open(node.name, _OPEN_FLAGS, dir_fd=self.fd(node.parent))
        return node.fd

    def _close_file(self, node: FileNode) -> None:
        if node.fd >= 0:
            os.close(node.fd)
            node.fd = -1

    def release(self, node: NodeId, *, write: bool = False) -> None:
        found = self._file(node)
        found.opens -= 1
        found.writers -= write
        if found.opens == 0 and not found.orphan:
            self._close_file(found)
        self.drop_if_unused(found)

    def flush(self, node: NodeId) -> None:
        """Nothing to do: what was written is in the real file already."""

    def fsync(self, node: NodeId, *, data_only: bool) -> None:
        found = self.nodes.get(node)
        fd = self.sync_target(found) if found is not None else -1
        if fd >= 0:
            (os.fdatasync if data_only else os.fsync)(fd)

    def sync_target(self, node: Node) -> int:
        """The descriptor whose fsync(2) makes a node durable, -1 when it is in the store anyway."""
        if isinstance(node, DirNode):
            return self.fd(node) if node.upper and not node.orphan else -1
        assert isinstance(node, FileNode)
        return node.fd

    def read(self, node: NodeId, offset: int, size: int) -> bytes:
        found = self._file(node)
        if found.blob is not None:
            return self.lower.read(found.blob, offset, size)
        return os.pread(found.fd, size, offset)

    def write(self, node: NodeId, offset: int, data: bytes) -> int:
        found = self._file(node)
        if found.blob is not None or found.fd < 0:
            self.bring_up(found)
            self._open_file(found)
        self._content_changes(found)
        if not found.privileged:
            self._drop_set_id(found)
        return os.pwrite(found.fd, data, offset)

    def _content_changes(self, node: FileNode) -> None:
        """The bytes are about to differ from any blob that they were known to be. Before the change, not after."""
        self.known.pop(node.real_ino, None)
        marks = node.marks
        if marks is not None and marks.stored is not None:
            marks.stored = marks.ctime_ns = None
            self._write_marks(node)
            faults.reach("core.content-changes")
        self._touch_parents(node)

    def _touch_parents(self, node: FileNode) -> None:
        if node.parent is not None:
            self.touch(node.parent, node.name)
        if node.links is not None or (node.orphan is False and node.parent is None):
            self.epoch += 1  # names that are not live may share these bytes

    def touch(self, directory: DirNode, name: bytes = b"") -> None:
        """A name of a directory is not as it was when the directory was last found clean.

        The whole way up: a directory that was never looked at may lie below one that was found clean.
        """
        if name in self.watched:
            self.epoch += 1
        node: DirNode | None = directory
        while node is not None:
            node.clean = -1
            node = node.parent

    def _drop_set_id(self, node: FileNode) -> None:
        """A write by somebody who is not root clears set-id bits, as write(2) does below any file system."""
        mode = os.fstat(node.fd).st_mode
        kept = mode & ~stat.S_ISUID
        if mode & stat.S_IXGRP:
            kept &= ~stat.S_ISGID
        if kept != mode:
            os.fchmod(node.fd, stat.S_IMODE(kept))
        node.privileged = True  # nothing left to clear until the next open or chmod

    # --- copy-up -----------------------------------------------------------------------------------

    def _require_writable(self) -> Upper:
        if self.upper is None:
            raise ReadOnly
        return self.upper

    def raise_dir(self, directory: DirNode) -> int:
        """Give a directory a place in the upper, its parents first; the view stays as it is.

        Returns:
            its descriptor, good until `_OPEN_DIRECTORIES` others were used.
        """
        missing = []
        node: DirNode | None = directory
        while node is not None and not node.upper:
            missing.append(node)
            node = node.parent
        for node in reversed(missing):
            self._raise_one(node)
        return self.fd(directory)

    def _raise_one(self, node: DirNode) -> None:
        upper = self._require_writable()
        assert node.parent is not None
        parent_fd = self.fd(node.parent)
        with upper.staged() as temporary:
            os.mkdir(temporary, 0o755, dir_fd=upper.work)
            marks = Marks()
            marks.ino = node.ino
            up.write_marks(up.entry_path(upper.work, temporary), marks)
            self._give_to_owner(upper.work, temporary)
            _set_times(upper.work, temporary, self.time_ns, self.time_ns)
            with _same_times(parent_fd):
                upper.publish(temporary, parent_fd, node.name)
        node.upper = True
        node.names = {}
        self.names(node.parent)[node.name] = False

    def _give_to_owner(self, directory: int, name: bytes) -> None:
        if self._as_root and (self.uid or self.gid):
            os.chown(name, self.uid, self.gid, dir_fd=directory, follow_symlinks=False)

    def copy_up(self, node: FileNode, *, content: bool = False, empty: bool = False) -> None:
        """Give a captured file a place in the upper; the view stays as it is (unless ``empty``).

        Args:
            node: the file or symlink.
            content: with its bytes; otherwise they stay in the blob and the real file is a hole.
            empty: without any bytes, for a truncation to nothing.
        """
        if node.upper:
            return
        upper = self._require_writable()
        parent_fd = self.raise_dir(node.parent) if node.parent is not None else -1
        with upper.staged() as temporary:
            if stat.S_ISLNK(node.mode):
                target = self.read_link(node.ino)
                os.symlink(target, temporary, dir_fd=upper.work)
                marks = None
            else:
                marks = self._stage_file(node, upper, temporary, content=content, empty=empty)
            self._give_to_owner(upper.work, temporary)
            _set_times(upper.work, temporary, self.time_ns, self.time_ns)
            status = os.stat(temporary, dir_fd=upper.work, follow_symlinks=False)
            if node.opens or node.orphan:
                node.fd = os.open(temporary, _OPEN_FLAGS, dir_fd=upper.work)
            if node.parent is None:
                os.unlink(temporary, dir_fd=upper.work)
            else:
                with _same_times(parent_fd):
                    upper.publish(temporary, parent_fd, node.name)
                self.names(node.parent)[node.name] = False
        node.upper = True
        node.real_ino = status.st_ino
        node.marks = marks
        if stat.S_ISLNK(node.mode) or content or empty:
            node.blob = None

    def _stage_file(
        self, node: FileNode, upper: Upper, temporary: bytes, *, content: bool, empty: bool
    ) -> Marks:
        assert node.blob is not None
        marks = Marks()
        marks.ino = node.ino
        marks.size, marks.mtime_ns = node.size, self.time_ns
        fd = os.open(temporary, _CREATE_FLAGS, upper.real_mode(node.mode), dir_fd=upper.work)
        try:
            if content:
                self._copy_bytes(node.blob, node.size, fd)
                marks.stored = node.blob
            elif not empty:
                os.ftruncate(fd, node.size)
                marks.blob = node.blob
            up.write_marks(fd, marks)
        finally:
            os.close(fd)
        return marks

    def _copy_bytes(self, blob: ObjectID, size: int, fd: int) -> None:
        """Write a blob's bytes into a file, leaving holes where there are only zeros."""
        os.ftruncate(fd, size)
        for offset in range(0, size, _COPY):
            piece = self.lower.read(blob, offset, _COPY)
            if piece.count(0) != len(piece):
                faults.reach("core.before-copy")
                os.pwrite(fd, piece, offset)

    def fill_size(self, node: NodeId) -> int:
        """How many bytes `bring_up` would have to copy."""
        found = self._file(node)
        return 0 if found.blob is None or not stat.S_ISREG(found.mode) else found.size

    def bring_up(self, node: FileNode) -> None:
        """Have a file's bytes in the upper, so that they can be changed there."""
        if node.blob is None:
            self.copy_up(node)
        elif not node.upper:
            self.copy_up(node, content=True)
        else:
            self._copy_bytes(node.blob, node.size, self._fill_target(node))
            self.end_fill(node)

    def start_fill(self, node: FileNode) -> tuple[ObjectID, int, int]:
        """First third of `bring_up` for a large file: make the hole. The second, `copy_bytes_to`, may run in a thread.

        Returns:
            blob, its size and a descriptor to write to, which the caller closes.
        """
        self.copy_up(node)
        assert node.blob is not None
        return node.blob, node.size, os.dup(self._fill_target(node))

    def copy_bytes_to(self, blob: ObjectID, size: int, fd: int) -> None:
        """Second third: touches no node, so any thread may run it."""
        self._copy_bytes(blob, size, fd)

    def end_fill(self, node: FileNode) -> None:
        """Last third: from here on the real file's bytes are the truth."""
        if node.blob is None:
            return
        marks = node.marks
        assert marks is not None
        fd = self._fill_target(node)
        os.utime(fd, ns=(os.fstat(fd).st_atime_ns, marks.mtime_ns))
        faults.reach("core.before-fill-ends")
        marks.stored, marks.blob = marks.blob, None
        up.write_marks(fd, marks)
        node.blob = None
        if node.opens == 0 and not node.orphan:
            self._close_file(node)

    def _fill_target(self, node: FileNode) -> int:
        return self._open_file(node)

    def _truncate(self, node: FileNode, size: int) -> None:
        self._require_writable()
        if node.blob is not None and size == 0:
            self._truncate_to_nothing(node)
        else:
            self.bring_up(node)
            self._content_changes(node)
            faults.reach("core.before-truncate")
            os.ftruncate(self._open_file(node), size)
        if node.opens == 0 and not node.orphan:
            self._close_file(node)

    def _truncate_to_nothing(self, node: FileNode) -> None:
        """Drop all bytes without reading them first."""
        if not node.upper:
            self.copy_up(node, empty=True)
        assert node.marks is not None
        fd = self._open_file(node)
        os.ftruncate(fd, 0)
        faults.reach("core.truncated")
        node.marks.blob = node.marks.stored = node.marks.ctime_ns = None
        self._write_marks(node)
        node.blob = None
        os.utime(fd)
        self._content_changes(node)

    # --- making and removing names -------------------------------------------------------------------

    def _place(self, parent: NodeId, name: bytes) -> tuple[DirNode, int, bool]:
        """Check that a name can be made; returns its directory, the descriptor, and whether a whiteout is there."""
        directory = self._live_dir(parent)
        self._require_writable()
        _check_length(name)
        if self.child(directory, name) is not None:
            raise AlreadyExists
        fd = self.raise_dir(directory)
        return directory, fd, name in self.names(directory)

    def _new_file(
        self, directory: DirNode, name: bytes, status: os.stat_result, shown_mode: int
    ) -> FileNode:
        """The node of a file just made, under a number that no live node has."""
        node = FileNode(status.st_ino, directory, name, status.st_mode)
        node.upper = True
        node.real_ino = status.st_ino
        self.known.pop(node.real_ino, None)
        if node.ino in self.nodes:
            node.ino = self._lower_ino(node.ino, name)
            node.marks = Marks()
            node.marks.ino = node.ino
        if stat.S_IMODE(status.st_mode) != shown_mode:
            node.marks = node.marks or Marks()
            node.marks.mode = shown_mode
        self._add(node, directory, name)
        self.names(directory)[name] = False
        self.touch(directory, name)
        return node

    def create_file(self, parent: NodeId, name: bytes, mode: int, caller: Caller) -> Attrs:
        directory, fd, whiteout = self._place(parent, name)
        upper = self._require_writable()
        real = upper.real_mode(mode)
        if whiteout:
            with upper.staged() as temporary:
                file = os.open(temporary, _CREATE_FLAGS, real, dir_fd=upper.work)
                self._give_to_caller(file, directory, caller, real)
                upper.publish(temporary, fd, name)
        else:
            file = os.open(name, _CREATE_FLAGS, real, dir_fd=fd)
            self._give_to_caller(file, directory, caller, real)
        faults.reach("core.file-made")
        node = self._new_file(directory, name, os.fstat(file), mode & 0o7777)
        node.fd = file
        if node.marks is not None:
            self._write_marks(node)
        node.privileged = caller.uid == 0
        node.opens = node.writers = 1
        return self.attrs_of(node)

    def _give_to_caller(
        self, where: int, directory: DirNode, caller: Caller, mode: int, name: bytes | None = None
    ) -> None:
        """Owner of a new file: who asked; its group the directory's where that is set-gid (inode_init_owner)."""
        if not self._as_root:
            return
        above = os.fstat(self.fd(directory))
        gid = above.st_gid if above.st_mode & stat.S_ISGID else caller.gid
        if name is not None:
            os.chown(name, caller.uid, gid, dir_fd=where, follow_symlinks=False)
        elif (caller.uid, gid) != (0, 0) or above.st_mode & stat.S_ISGID:
            os.fchown(where, caller.uid, gid)
            if mode & 0o6000:  # chown(2) cleared them
                os.fchmod(where, mode & 0o7777)

    def make_node(self, parent: NodeId, name: bytes, mode: int, rdev: int, caller: Caller) -> Attrs:
        if stat.S_ISREG(mode):
            attrs = self.create_file(parent, name, mode, caller)
            node = self._file(attrs.ino)
            node.opens = node.writers = 0
            self._close_file(node)
            return attrs
        if stat.S_ISCHR(mode) and rdev == 0:
            raise NotAllowed  # would read as a deletion, here and in the kernel's overlayfs

        def make(where: int, entry: bytes) -> None:
            os.mknod(entry, mode, rdev, dir_fd=where)

        return self._make_special(parent, name, caller, make)

    def create_symlink(self, parent: NodeId, name: bytes, target: bytes, caller: Caller) -> Attrs:
        def make(where: int, entry: bytes) -> None:
            os.symlink(target, entry, dir_fd=where)

        return self._make_special(parent, name, caller, make)

    def _make_special(self, parent: NodeId, name: bytes, caller: Caller, make: MakeEntry) -> Attrs:
        directory, fd, whiteout = self._place(parent, name)
        upper = self._require_writable()
        if whiteout:
            with upper.staged() as temporary:
                make(upper.work, temporary)
                self._give_to_caller(upper.work, directory, caller, 0, temporary)
                upper.publish(temporary, fd, name)
        else:
            make(fd, name)
            self._give_to_caller(fd, directory, caller, 0, name)
        faults.reach("core.special-made")
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        node = self._new_file(directory, name, status, stat.S_IMODE(status.st_mode))
        return self.attrs_of(node)

    def make_dir(self, parent: NodeId, name: bytes, mode: int, caller: Caller) -> Attrs:
        directory, fd, whiteout = self._place(parent, name)
        upper = self._require_writable()
        real = upper.real_mode(mode, directory=True)
        if self._as_root and os.fstat(fd).st_mode & stat.S_ISGID:
            mode, real = mode | stat.S_ISGID, real | stat.S_ISGID
        if whiteout:
            with upper.staged() as temporary:
                self._make_real_dir(upper.work, temporary, directory, caller, real)
                made = os.open(temporary, _DIRECTORY_FLAGS, dir_fd=upper.work)
                try:
                    up.set_opaque(made)
                finally:
                    os.close(made)
                upper.publish_directory(temporary, fd, name)
        else:
            self._make_real_dir(fd, name, directory, caller, real)
        node = DirNode(0, directory, name, None)
        node.upper, node.explicit, node.names = True, whiteout, {}
        node.ino = os.stat(name, dir_fd=fd, follow_symlinks=False).st_ino
        if node.ino in self.nodes:
            node.ino = self._lower_ino(node.ino, name)
            self._mark_directory(node)
        self._add(node, directory, name)
        self.names(directory)[name] = False
        self.touch(directory)
        if real != mode & 0o7777:
            node.mode = mode & 0o7777
            self._mark_directory(node)
        return self.attrs_of(node)

    def _make_real_dir(
        self, where: int, name: bytes, parent: DirNode, caller: Caller, real: int
    ) -> None:
        os.mkdir(name, real, dir_fd=where)
        faults.reach("core.directory-made")
        if self._as_root:
            self._give_to_caller(where, parent, caller, real, name)
            os.chmod(name, real, dir_fd=where)

    def link(self, node: NodeId, parent: NodeId, name: bytes) -> Attrs:
        found = self._node(node)
        if isinstance(found, DirNode):
            raise NotAllowed
        assert isinstance(found, FileNode)
        directory, fd, whiteout = self._place(parent, name)
        if found.orphan or found.parent is None:
            raise NotFound
        upper = self._require_writable()
        self.copy_up(found)
        source = self.fd(found.parent)
        fd = self.fd(directory)
        if whiteout:
            with upper.staged() as temporary:
                _link(source, found.name, upper.work, temporary)
                upper.publish(temporary, fd, name)
        else:
            _link(source, found.name, fd, name)
        faults.reach("core.linked")
        self._add_link(found, directory, name)
        self.names(directory)[name] = False
        self._attributes_change(found)
        self.touch(directory, name)
        return self.attrs_of(found)

    def unlink_entry(self, parent: NodeId, name: bytes) -> None:
        directory = self._live_dir(parent)
        upper = self._require_writable()
        _check_length(name)
        node = self.child(directory, name)
        if node is None:
            raise NotFound
        if not isinstance(node, FileNode):
            raise IsADirectory
        fd = self.raise_dir(directory)
        status = self._status(node) if node.upper else None
        if name in self.lower.entries(directory.lower):
            upper.white_out(fd, name, replace=node.upper)
            self.names(directory)[name] = True
        else:
            faults.reach("core.before-unlink")
            os.unlink(name, dir_fd=fd)
            self.names(directory).pop(name, None)
        self._lose_name(node, directory, name, status)
        self.touch(directory, name)

    def _lose_name(
        self, node: FileNode, directory: DirNode, name: bytes, status: os.stat_result | None
    ) -> None:
        """Take a name from a node whose entry is gone.

        Args:
            status: the real file's, from before; None for a captured file, which has one name only.
        """
        if directory.children.get(name) is node:
            del directory.children[name]
        links = [link for link in node.links or () if link != (directory, name)]
        if (node.parent, node.name) == (directory, name):
            node.parent = None
            if links:
                node.parent, node.name = links.pop(0)
        left = 0 if status is None else status.st_nlink - 1
        node.links = links if left > 1 else None
        if left <= 0:
            node.orphan = True
        self._attributes_change(node)
        if node.parent is None and node.fd < 0 and status is not None:
            last = _attrs_from(node.ino, status)
            node.last = last._replace(nlink=left, ctime_ns=time.time_ns())
        self.drop_if_unused(node)
        self.drop_if_unused(directory)

    def is_empty(self, directory: DirNode) -> bool:
        """Say whether a directory shows no name."""
        below = self.lower.entries(directory.lower)
        if not directory.upper:
            return not below
        names = self.names(directory)
        return all(names.values()) and all(name in names for name in below)

    def rmdir_entry(self, parent: NodeId, name: bytes) -> None:
        directory = self._live_dir(parent)
        upper = self._require_writable()
        _check_length(name)
        node = self.child(directory, name)
        if node is None:
            raise NotFound
        if not isinstance(node, DirNode):
            raise NotADirectory
        if not self.is_empty(node):
            raise NotEmpty
        fd = self.raise_dir(directory)
        names = self.names(directory)
        if name in self.lower.entries(directory.lower):
            upper.white_out(fd, name, replace=node.upper)
            names[name] = True
        else:
            self._remove_real_dir(node, fd, name)
            del names[name]
        self._orphan_directory(node)
        self.touch(directory)

    def _remove_real_dir(self, node: DirNode, fd: int, name: bytes) -> None:
        """Remove an upper directory that shows nothing, whiteouts in it and all, in one step."""
        upper = self._require_writable()
        if not self.names(node):
            os.rmdir(name, dir_fd=fd)
            return
        temporary = upper.temporary_name()
        os.rename(name, temporary, src_dir_fd=fd, dst_dir_fd=upper.work)
        faults.reach("core.rmdir-moved-away")
        up.remove_tree(upper.work, temporary)

    def _orphan_directory(self, node: DirNode) -> None:
        parent = node.parent
        if parent is not None and parent.children.get(node.name) is node:
            del parent.children[node.name]
        self._drop_fd(node)
        node.orphan = True
        node.names = {}
        node.lower = None
        node.parent = None
        self.drop_if_unused(node)
        self.drop_if_unused(parent)

    # --- rename --------------------------------------------------------------------------------------

    def rename_entry(
        self,
        old_parent: NodeId,
        old_name: bytes,
        new_parent: NodeId,
        new_name: bytes,
        *,
        no_replace: bool = False,
        exchange: bool = False,
    ) -> None:
        source_dir, target_dir = self._live_dir(old_parent), self._live_dir(new_parent)
        self._require_writable()
        _check_length(old_name)
        _check_length(new_name)
        source = self.child(source_dir, old_name)
        target = self.child(target_dir, new_name)
        if source is None or (exchange and target is None):
            raise NotFound
        if target is not None and no_replace:
            raise AlreadyExists
        if source is target:
            return
        _refuse_loop(source, target_dir)
        if exchange:
            assert target is not None
            _refuse_loop(target, source_dir)
            self._exchange(source, source_dir, old_name, target, target_dir, new_name)
        else:
            self._check_replaceable(source, target)
            self._move(source, source_dir, old_name, target, target_dir, new_name)
        self.touch(source_dir, old_name)
        self.touch(target_dir, new_name)
        if isinstance(source, DirNode) or isinstance(target, DirNode):
            self.epoch += 1  # what is below was clean, or ignored, at another path

    def _check_replaceable(self, source: Node, target: Node | None) -> None:
        if target is None:
            return
        if isinstance(source, DirNode) and not isinstance(target, DirNode):
            raise NotADirectory
        if isinstance(target, DirNode):
            if not isinstance(source, DirNode):
                raise IsADirectory
            if not self.is_empty(target):
                raise NotEmpty

    def _settle(self, node: Node) -> None:
        """Make a node's upper entry say by itself all that it is, so that it means the same wherever it is moved."""
        if isinstance(node, FileNode):
            self.copy_up(node)
            return
        assert isinstance(node, DirNode)
        fd = self.raise_dir(node)
        if node.explicit:
            return
        node.explicit = True
        if node.lower is None:
            up.set_opaque(fd)
        else:
            self._mark_directory(node)

    def _exchange(
        self,
        source: Node,
        source_dir: DirNode,
        old_name: bytes,
        target: Node,
        target_dir: DirNode,
        new_name: bytes,
    ) -> None:
        self._settle(source)
        self._settle(target)
        faults.reach("core.before-exchange")
        up.renameat2(
            self.fd(source_dir), old_name, self.fd(target_dir), new_name, up.RENAME_EXCHANGE
        )
        self._change_name(source, source_dir, old_name, target_dir, new_name)
        self._change_name(target, target_dir, new_name, source_dir, old_name)
        source_dir.children[old_name] = target
        target_dir.children[new_name] = source

    def _move(
        self,
        source: Node,
        source_dir: DirNode,
        old_name: bytes,
        target: Node | None,
        target_dir: DirNode,
        new_name: bytes,
    ) -> None:
        upper = self._require_writable()
        self.raise_dir(target_dir)
        self._settle(source)
        if isinstance(target, DirNode) and target.upper:
            self._clear_whiteouts(target)
        status = None
        if isinstance(target, FileNode) and target.upper:
            status = self._status(target)
        whiteout = old_name in self.lower.entries(source_dir.lower)
        over_whiteout = self.names(target_dir).get(new_name) is True
        old_fd, new_fd = self.fd(source_dir), self.fd(target_dir)
        if over_whiteout and isinstance(source, DirNode):
            self._swap_with_whiteout(old_fd, old_name, new_fd, new_name, keep=whiteout)
        else:
            upper.rename(old_fd, old_name, new_fd, new_name, whiteout=whiteout)
        source_names = self.names(source_dir)
        if whiteout:
            source_names[old_name] = True
        else:
            source_names.pop(old_name, None)
        self.names(target_dir)[new_name] = False
        if isinstance(target, FileNode):
            self._lose_name(target, target_dir, new_name, status)
        elif isinstance(target, DirNode):
            self._orphan_directory(target)
        if source_dir.children.get(old_name) is source:
            del source_dir.children[old_name]
        target_dir.children[new_name] = source
        self._change_name(source, source_dir, old_name, target_dir, new_name)
        self.drop_if_unused(source_dir)

    def _swap_with_whiteout(
        self, old_fd: int, old: bytes, new_fd: int, new: bytes, *, keep: bool
    ) -> None:
        """Move a directory onto a whiteout: rename(2) would refuse, so exchange them and keep the whiteout or not."""
        up.renameat2(old_fd, old, new_fd, new, up.RENAME_EXCHANGE)
        faults.reach("core.swapped-with-whiteout")
        if not keep:
            os.unlink(old, dir_fd=old_fd)

    def _clear_whiteouts(self, directory: DirNode) -> None:
        """Make an upper directory that shows nothing really empty; the view stays as it is at every step."""
        names = self.names(directory)
        if not names:
            return
        fd = self.fd(directory)
        up.set_opaque(fd)
        directory.lower, directory.explicit = None, True
        self._mark_directory(directory)
        for name in list(names):
            faults.reach("core.before-whiteout-goes")
            os.unlink(name, dir_fd=fd)
            del names[name]

    def _change_name(
        self, node: Node, old_dir: DirNode, old: bytes, new_dir: DirNode, new: bytes
    ) -> None:
        if (node.parent, node.name) == (old_dir, old):
            node.parent, node.name = new_dir, new
        elif isinstance(node, FileNode) and node.links is not None:
            node.links = [(new_dir, new) if link == (old_dir, old) else link for link in node.links]
        if isinstance(node, FileNode):
            self._attributes_change(node)

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
        real = upper.real_mode(shown)
        if node.fd >= 0:
            os.fchmod(node.fd, real)
        else:
            directory, name = self._at(node)
            os.chmod(name, real, dir_fd=directory)
        marks = node.marks
        if real != shown or (marks is not None and marks.mode is not None):
            node.marks = marks = marks or Marks()
            marks.mode = shown if real != shown else None
            if stat.S_ISREG(node.mode):
                self._write_marks(node)
        if node.writers:
            node.privileged = False

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
        if entry is not None and _key(status) == entry[:3]:
            after = self._status(node)
            if after is not None:  # same bytes at a new time
                self.known[node.real_ino] = (*_key(after), entry[3])

    def _at(self, node: FileNode) -> tuple[int, bytes]:
        if node.parent is None:
            raise Stale("the file has no name left")
        return self.fd(node.parent), node.name

    @staticmethod
    def is_stored(status: os.stat_result, marks: Marks) -> bool:
        """Say whether a real file's bytes are still those of ``marks.stored``."""
        return (
            marks.stored is not None
            and marks.size == status.st_size
            and marks.mtime_ns == status.st_mtime_ns
        )

    def content_id(self, status: os.stat_result, marks: Marks | None) -> ObjectID | None:
        """The blob that a real regular file's bytes are known to be, None when they would have to be read."""
        if marks is not None:
            if marks.blob is not None:
                return marks.blob
            if self.is_stored(status, marks):
                return marks.stored
        entry = self.known.get(status.st_ino)
        if entry is not None and entry[:3] == _key(status):
            return entry[3]
        return None

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

    # --- for capture and status ----------------------------------------------------------------------

    def follow_base(self, tree: ObjectID | None) -> None:
        """The base moved to a tree that shows the same: let live directories see it through."""
        pending: list[tuple[DirNode, ObjectID | None]] = [(self.root, tree)]
        while pending:
            directory, lower = pending.pop()
            if directory.explicit or directory.lower == lower:
                continue
            directory.lower = lower
            below = self.lower.entries(lower)
            for name, child in directory.children.items():
                if isinstance(child, DirNode):
                    pending.append((child, subtree(below, name)))

    def live_file(self, directory: DirNode, name: bytes, status: os.stat_result) -> FileNode | None:
        """The live node of a real file, under whichever of its names it was looked up."""
        live = directory.children.get(name)
        if live is None and status.st_nlink > 1:
            marks = up.read_marks(up.entry_path(self.fd(directory), name))
            live = self.nodes.get(status.st_ino if marks is None or not marks.ino else marks.ino)
        return live if isinstance(live, FileNode) and live.is_file(status.st_ino) else None

    def inherit(self, directory: DirNode, tree: ObjectID) -> None:
        """Let an upper directory take its lower from its place again, where it is ``tree``."""
        directory.explicit = False
        directory.lower = tree
        fd = self.fd(directory)
        up.clear_opaque(fd)
        self._mark_directory(directory)

    def drop_retained(self, directory: DirNode, name: bytes) -> None:
        """Remove the real entry of a captured name, and its live node, so that the lower's shows again."""
        names = self.names(directory) if directory.upper else {}
        node = directory.children.get(name)
        if name in names:
            fd = self.fd(directory)
            faults.reach("core.before-drop")
            with _same_times(fd):
                if isinstance(node, DirNode) or self._is_real_dir(fd, name):
                    try:
                        os.rmdir(name, dir_fd=fd)
                    except OSError as error:
                        if error.errno != errno.ENOTEMPTY:
                            raise
                        return  # ignored files live there
                else:
                    os.unlink(name, dir_fd=fd)
            del names[name]
        if node is not None:
            self._detach(node)

    @staticmethod
    def _is_real_dir(fd: int, name: bytes) -> bool:
        return stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode)

    def _detach(self, node: Node) -> None:
        """A node whose name means another one now: open handles keep what they have."""
        if isinstance(node, DirNode):
            self._orphan_directory(node)
        elif isinstance(node, FileNode) and node.parent is not None:
            self._lose_name(node, node.parent, node.name, None)

    def set_time(self, node: FileNode, mtime_ns: int) -> None:
        """Give a file a modification time of its own."""
        self._set_file_times(node, AttrUpdate(mtime_ns=mtime_ns))

    def mark_stored(
        self, directory: DirNode, name: bytes, status: os.stat_result, blob: ObjectID
    ) -> None:
        """Note on a real file that its bytes are a blob, keeping the times that it shows."""
        where = up.entry_path(self.fd(directory), name)
        live = self.live_file(directory, name, status)
        if live is None:
            marks = up.read_marks(where) or Marks()
        else:
            marks = live.marks = live.marks or Marks()
        if marks.blob is not None or marks.stored == blob:
            return
        marks.stored = blob
        marks.size, marks.mtime_ns = status.st_size, status.st_mtime_ns
        if marks.ctime_ns is None:
            marks.ctime_ns = status.st_ctime_ns
        up.write_marks(where, marks)

    def open_for_writing(self) -> Iterator[FileNode]:
        """Files whose dirty pages the kernel may still hold."""
        for node in list(self.nodes.values()):
            if isinstance(node, FileNode) and node.writers > 0:
                yield node


MakeEntry = Callable[[int, bytes], None]

_OPEN_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def _check_length(name: bytes) -> None:
    if len(name) > NAME_MAX:
        raise NameTooLong


def _is_whiteout_entry(entry: os.DirEntry[str]) -> bool:
    if entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False):
        return False
    return not entry.is_symlink() and up.is_whiteout(entry.stat(follow_symlinks=False))


def _shown_mode(mode: int) -> int:
    """Type and permission bits of a file from a git tree's mode."""
    if stat.S_ISLNK(mode):
        return stat.S_IFLNK | 0o777
    return stat.S_IFREG | (0o755 if mode & 0o100 else 0o644)


def _refuse_loop(node: Node, into: DirNode) -> None:
    """A directory can't be moved into itself."""
    above: DirNode | None = into
    while above is not None:
        if above is node:
            raise InvalidArgument
        above = above.parent


def _link(source: int, name: bytes, target: int, new_name: bytes) -> None:
    os.link(name, new_name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)


def _set_times(directory: int, name: bytes, atime_ns: int, mtime_ns: int) -> None:
    os.utime(name, ns=(atime_ns, mtime_ns), dir_fd=directory, follow_symlinks=False)


@contextmanager
def _same_times(directory: int) -> Iterator[None]:
    """Keep a directory's times over a change that its users must not see (a copy-up)."""
    before = os.fstat(directory)
    yield
    os.utime(directory, ns=(before.st_atime_ns, before.st_mtime_ns))


def _times(status: os.stat_result, update: AttrUpdate) -> tuple[int, int]:
    atime = status.st_atime_ns if update.atime_ns is None else update.atime_ns
    mtime = status.st_mtime_ns if update.mtime_ns is None else update.mtime_ns
    return atime, mtime


def _or_keep(owner: int | None) -> int:
    return -1 if owner is None else owner


def _key(status: os.stat_result) -> tuple[int, int, int]:
    """What tells that a real file was not touched."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _attrs_from(ino: NodeId, status: os.stat_result) -> Attrs:
    return Attrs(
        ino,
        status.st_mode,
        status.st_nlink,
        status.st_uid,
        status.st_gid,
        status.st_rdev,
        status.st_size,
        status.st_blocks,
        status.st_atime_ns,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
