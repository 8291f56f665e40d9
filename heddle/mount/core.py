"""What the merged view of one mount means, whole: on top of its bytes and attributes, every change of a name.

`ContentAddressedMount` answers the operations of `shell.py` from a lower tree and an upper directory. It is plain
``def`` throughout and knows neither FUSE nor trio: between two awaits of its caller, all state here is its own
(docs/mount.md). What differs from the base, and how a tree is made of it, is `snapshot.py`'s.

The house from below: `view.py` looks, `files.py` has the bytes, `attributes.py` the attributes, and here are the
names. The upper is the only memory of a change.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from heddle import faults
from heddle.mount import upper as up
from heddle.mount.attributes import Attributes
from heddle.mount.files import CREATE_FLAGS, same_times
from heddle.mount.lower import TreeEntries, subtree
from heddle.mount.nodes import DirNode, FileNode, Node
from heddle.mount.shell import (
    AlreadyExists,
    Attrs,
    AttrUpdate,
    Caller,
    InvalidArgument,
    IsADirectory,
    NodeId,
    NotADirectory,
    NotAllowed,
    NotEmpty,
    NotFound,
    PlatformShell,
)
from heddle.mount.upper import Marks
from heddle.mount.view import DIRECTORY_FLAGS, check_length

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

MakeEntry = Callable[[int, bytes], None]


class ContentAddressedMount(Attributes, PlatformShell):
    """The merged view of a lower tree and an upper directory, as an adapter sees it; made as `View` is."""

    # --- making and removing names -------------------------------------------------------------------

    def _place(self, parent: NodeId, name: bytes) -> tuple[DirNode, int, bool]:
        """Check that a name can be made; returns its directory, the descriptor, and whether a whiteout is there."""
        directory = self._live_dir(parent)
        self._require_writable()
        check_length(name)
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
        self.require_descriptor()
        real = upper.real_mode(mode)
        if whiteout:
            with upper.staged() as temporary:
                file = os.open(temporary, CREATE_FLAGS, real, dir_fd=upper.work)
                self._give_to_caller(file, directory, caller, real)
                upper.publish(temporary, fd, name)
        else:
            file = os.open(name, CREATE_FLAGS, real, dir_fd=fd)
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
                made = os.open(temporary, DIRECTORY_FLAGS, dir_fd=upper.work)
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
        check_length(name)
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
        check_length(name)
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
        check_length(old_name)
        check_length(new_name)
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

    def settle(self, directory: DirNode, name: bytes) -> None:
        """Give what shows through at a name a place in the upper that says by itself what it is."""
        node = self.child(directory, name)
        if node is not None:
            self._settle(node)

    def inherit(self, directory: DirNode, tree: ObjectID | None) -> None:
        """Let an upper directory take its lower from its place again, where it is ``tree``."""
        directory.explicit = False
        directory.lower = tree
        fd = self.fd(directory)
        up.clear_opaque(fd)
        self._mark_directory(directory)

    def drop_whiteouts(self, directory: DirNode, below: TreeEntries) -> None:
        """Remove the whiteouts of an upper directory that hide nothing of what is below it."""
        names = self.names(directory)
        stale = [name for name, whiteout in names.items() if whiteout and name not in below]
        if not stale:
            return
        fd = self.fd(directory)
        with same_times(fd):
            for name in stale:
                faults.reach("core.before-stale-whiteout-goes")
                os.unlink(name, dir_fd=fd)
                del names[name]

    def drop_retained(self, directory: DirNode, name: bytes) -> None:
        """Remove the real entry of a captured name, and its live node, so that the lower's shows again.

        A directory in which something is left stays: that is in no state.
        """
        names = self.names(directory) if directory.upper else {}
        node = directory.children.get(name)
        status = None
        if name in names:
            fd = self.fd(directory)
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            with same_times(fd):
                if not self._remove_real(fd, name, status):
                    return
            del names[name]
        if isinstance(node, DirNode):
            self._orphan_directory(node)
        elif isinstance(node, FileNode):
            self._lose_name(node, directory, name, status)

    @staticmethod
    def _remove_real(fd: int, name: bytes, status: os.stat_result) -> bool:
        faults.reach("core.before-drop")
        if not stat.S_ISDIR(status.st_mode):
            os.unlink(name, dir_fd=fd)
            return True
        try:
            os.rmdir(name, dir_fd=fd)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            return False
        return True

    def drop_unused(self) -> None:
        """Let go of every node that a walk made and nobody holds."""
        for node in list(self.nodes.values()):
            self.drop_if_unused(node)

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


def _refuse_loop(node: Node, into: DirNode) -> None:
    """A directory can't be moved into itself."""
    above: DirNode | None = into
    while above is not None:
        if above is node:
            raise InvalidArgument
        above = above.parent


def _link(source: int, name: bytes, target: int, new_name: bytes) -> None:
    os.link(name, new_name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)


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
