"""What the merged view of one mount means, whole: on top of its bytes and attributes, every change of a name.

`ContentAddressedMount` answers the operations of `shell.py` from a lower tree and an upper directory. It is plain
``def`` throughout and knows neither FUSE nor trio: between two awaits of its caller, all state here is its own
(docs/mount.md). What differs from the base, and how a tree is made of it, is `snapshot.py`'s.

The house from below: `view.py` looks, `files.py` has the bytes, `attributes.py` the attributes, and here are the
names. The upper is the only memory of a change.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from heddle import faults
from heddle.mount import upper as up
from heddle.mount.attributes import Attributes
from heddle.mount.files import CREATE_FLAGS
from heddle.mount.lower import TreeEntries, subtree
from heddle.mount.nodes import DirNode, FileNode, Node, PinnedFile
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
from heddle.mount.upper import NO_MARKS, Marks
from heddle.mount.view import check_length

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

log = logging.getLogger(__name__)

MakeEntry = Callable[[int, bytes], None]


class ContentAddressedMount(Attributes, PlatformShell):
    """The merged view of a lower tree and an upper directory, as an adapter sees it; made as `View` is."""

    # --- making and removing names -------------------------------------------------------------------

    def _place(self, parent: NodeId, name: bytes) -> tuple[DirNode, bool]:
        """Check that a name can be made; returns its directory, now in the upper, and whether a whiteout is there."""
        directory = self._live_dir(parent)
        self._require_writable()
        check_length(name)
        if self.child(directory, name) is not None:
            raise AlreadyExists
        self.raise_dir(directory)
        return directory, name in self.names(directory)

    def _make(
        self, node: Node, caller: Caller, make: MakeEntry, *, mode: int, whiteout: bool
    ) -> None:
        """Make the entry of a new node at its name: whole, or not at all.

        In its place if one call makes it; what takes more is made in ``work`` and moved.

        Args:
            node: a directory's or a file's, with parent and name; gets its number and its marks here.
            caller: who asks; the entry becomes theirs.
            make: makes an entry in a directory under a name, with the session's owner.
            mode: permission bits to show.
            whiteout: one is there.
        """
        directory, name = node.parent, node.name
        assert directory is not None
        upper = self._require_writable()
        owner = self._owner(directory, caller, staged=whiteout)
        if whiteout or owner is not None:
            with upper.staged() as temporary:
                make(upper.work, temporary)
                self._describe(node, upper.work, temporary, owner, mode)
                if isinstance(node, DirNode):
                    if whiteout:
                        up.set_opaque(up.entry_path(upper.work, temporary))
                    upper.publish_directory(temporary, self.fd(directory), name)
                else:
                    upper.publish(temporary, self.fd(directory), name)
        else:
            fd = self.fd(directory)
            make(fd, name)
            with up.undone(fd, name):
                self._describe(node, fd, name, None, mode)
        node.upper = True
        self._add(node, directory, name)
        self.names(directory)[name] = False
        self.touch(directory, name)

    def _owner(self, directory: DirNode, caller: Caller, *, staged: bool) -> tuple[int, int] | None:
        """Whose a new entry is: who asked; its group the directory's where that is set-gid (inode_init_owner).

        None where the file system below gives it to them by itself.
        """
        if not self._as_root:
            return None
        above = os.fstat(self.fd(directory))
        gid = above.st_gid if above.st_mode & stat.S_ISGID else caller.gid
        is_inherited = not staged and (caller.uid, caller.gid) == (0, 0)
        return None if is_inherited or (caller.uid, gid) == (0, 0) else (caller.uid, gid)

    def _describe(
        self, node: Node, where: int, name: bytes, owner: tuple[int, int] | None, mode: int
    ) -> None:
        """Give an entry just made its owner and mode, and its node a number that no live node has."""
        if owner is not None:
            os.chown(name, *owner, dir_fd=where, follow_symlinks=False)
        if isinstance(node, FileNode) and node.fd >= 0:
            status = os.fstat(node.fd)
        else:
            status = os.stat(name, dir_fd=where, follow_symlinks=False)
        is_link = stat.S_ISLNK(status.st_mode)
        real = stat.S_IMODE(status.st_mode) if is_link else self._real_mode(status.st_mode, mode)
        if real != stat.S_IMODE(status.st_mode):  # chown(2) or a command's umask took from it
            os.chmod(name, real, dir_fd=where)
        node.ino = status.st_ino
        marks = Marks(mode=None if is_link or real == mode else mode)
        if node.ino in self.nodes:
            node.ino = self._lower_ino(node.ino, name)
            marks = marks._replace(ino=node.ino)
        if isinstance(node, FileNode):
            node.mode = stat.S_IFMT(status.st_mode) | mode
            node.real_ino = status.st_ino
            self.known.pop(node.real_ino, None)
            node.marks = None if marks == NO_MARKS else marks
        elif isinstance(node, DirNode):
            node.mode = marks.mode
        if stat.S_IFMT(status.st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
            self._require_writable().set_number(status.st_ino, marks.ino)
        elif marks != NO_MARKS:
            up.write_marks(up.entry_path(where, name), marks)

    def _real_mode(self, kind: int, mode: int) -> int:
        """The permission bits of the real entry of something that shows these."""
        upper = self._require_writable()
        if stat.S_ISREG(kind) or stat.S_ISDIR(kind):
            return upper.real_mode(mode, directory=stat.S_ISDIR(kind))
        return mode

    def create_file(self, parent: NodeId, name: bytes, mode: int, caller: Caller) -> Attrs:
        directory, whiteout = self._place(parent, name)
        upper = self._require_writable()
        self.require_descriptor()
        node = FileNode(0, directory, name, 0)
        real = upper.real_mode(mode)

        def make(where: int, entry: bytes) -> None:
            node.fd = os.open(entry, CREATE_FLAGS, real, dir_fd=where)
            faults.reach("core.file-made")

        try:
            self._make(node, caller, make, mode=mode & 0o7777, whiteout=whiteout)
        except BaseException:
            self._close_file(node)
            raise
        node.privileged = caller.uid == 0
        node.opens = node.writers = 1
        return self.attrs_of(node)

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
            faults.reach("core.special-made")

        return self._make_special(parent, name, stat.S_IMODE(mode), caller, make)

    def create_symlink(self, parent: NodeId, name: bytes, target: bytes, caller: Caller) -> Attrs:
        def make(where: int, entry: bytes) -> None:
            os.symlink(target, entry, dir_fd=where)

        return self._make_special(parent, name, 0o777, caller, make)

    def _make_special(
        self, parent: NodeId, name: bytes, mode: int, caller: Caller, make: MakeEntry
    ) -> Attrs:
        directory, whiteout = self._place(parent, name)
        node = FileNode(0, directory, name, 0)
        self._make(node, caller, make, mode=mode, whiteout=whiteout)
        return self.attrs_of(node)

    def make_dir(self, parent: NodeId, name: bytes, mode: int, caller: Caller) -> Attrs:
        directory, whiteout = self._place(parent, name)
        upper = self._require_writable()
        mode &= 0o7777
        mode |= os.fstat(self.fd(directory)).st_mode & stat.S_ISGID  # inode_init_owner
        real = upper.real_mode(mode, directory=True)
        node = DirNode(0, directory, name, None)
        node.explicit, node.names = whiteout, {}

        def make(where: int, entry: bytes) -> None:
            os.mkdir(entry, real, dir_fd=where)
            faults.reach("core.directory-made")

        self._make(node, caller, make, mode=mode, whiteout=whiteout)
        self._note_directory(directory, name)
        return self.attrs_of(node)

    def link(self, node: NodeId, parent: NodeId, name: bytes) -> Attrs:
        found = self._node(node)
        if isinstance(found, DirNode):
            raise NotAllowed
        assert isinstance(found, FileNode)
        directory, whiteout = self._place(parent, name)
        if found.orphan or found.parent is None:
            raise NotFound
        upper = self._require_writable()
        self.copy_up(found)
        self._attributes_change(found)
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
        if isinstance(node, PinnedFile):
            raise NotAllowed
        fd = self.raise_dir(directory)
        names = self.names(directory)
        status = self._before_name_goes(node)
        if name in self.lower.entries(directory.lower):
            upper.white_out(fd, name, replace=node.upper)
            names[name] = True
        else:
            faults.reach("core.before-unlink")
            os.unlink(name, dir_fd=fd)
            names.pop(name, None)
        self._lose_name(node, directory, name, status)
        self.touch(directory, name)

    def _before_name_goes(self, node: FileNode) -> os.stat_result | None:
        """What `_lose_name` needs to know of a file; if other names of it stay, its change time moves on."""
        status = self._status(node) if node.upper else None
        if status is not None and status.st_nlink > 1:
            self._attributes_change(node)
        return status

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
            self._forget_number(node)
            node.orphan = True
            if node.marks is not None:
                node.marks = node.marks._replace(ctime_ns=None)  # the real one's, which just moved
        if node.parent is None and node.fd < 0 and status is not None:
            last = _attrs_from(node.ino, status)
            node.last = last._replace(nlink=left, ctime_ns=time.time_ns())
        self.drop_if_unused(node)
        self.drop_if_unused(directory)

    def _forget_number(self, node: FileNode) -> None:
        """The file below is gone. What can't be removed is replaced when its real number comes again."""
        if self.upper is not None and node.upper and node.real_ino in self.upper.numbers:
            with suppress(OSError):
                self.upper.set_number(node.real_ino, None)

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
        self._before_directory_goes(node)
        if name in self.lower.entries(directory.lower):
            upper.white_out(fd, name, replace=node.upper)
            names[name] = True
        else:
            self._remove_real_dir(node, fd, name)
            del names[name]
        self._orphan_directory(node)
        self.touch(directory, name)
        self._note_directory(directory, name)

    def _remove_real_dir(self, node: DirNode, fd: int, name: bytes) -> None:
        """Remove an upper directory that shows nothing, whiteouts in it and all, in one step."""
        upper = self._require_writable()
        if not self.names(node):
            os.rmdir(name, dir_fd=fd)
            return
        temporary = upper.temporary_name()
        os.rename(name, temporary, src_dir_fd=fd, dst_dir_fd=upper.work)
        faults.reach("core.rmdir-moved-away")
        upper.clear_away(temporary)

    def _before_directory_goes(self, node: DirNode) -> None:
        """Note what those who are in a directory still see of it when it is gone: who may do what is asked of that."""
        node.last = self.attrs_of(node)._replace(nlink=0, size=0, blocks=0, ctime_ns=time.time_ns())

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
            self._note_directory(source_dir, old_name)
            self._note_directory(target_dir, new_name)

    def _note_directory(self, directory: DirNode, name: bytes) -> None:
        """What is, or was, below a name has come or gone with it."""
        if self.journal is not None:
            self.journal.note(directory, name + b"/")

    def _check_replaceable(self, source: Node, target: Node | None) -> None:
        if target is None:
            return
        if isinstance(target, PinnedFile):
            raise NotAllowed
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
        if node.lower is None:
            up.set_opaque(fd)
            node.explicit = True
        else:
            self._mark_directory(node, explicit=True)

    def _exchange(
        self,
        source: Node,
        source_dir: DirNode,
        old_name: bytes,
        target: Node,
        target_dir: DirNode,
        new_name: bytes,
    ) -> None:
        for node in (source, target):
            self._settle(node)
            self._attributes_change(node)
        self.names(source_dir), self.names(target_dir)
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
        self._attributes_change(source)
        if isinstance(target, DirNode):
            self._before_directory_goes(target)
            if target.upper:
                self._clear_whiteouts(target)
        status = self._before_name_goes(target) if isinstance(target, FileNode) else None
        whiteout = old_name in self.lower.entries(source_dir.lower)
        source_names, target_names = self.names(source_dir), self.names(target_dir)
        old_fd, new_fd = self.fd(source_dir), self.fd(target_dir)
        if target_names.get(new_name) is True and isinstance(source, DirNode):
            whiteout = _swap_with_whiteout(old_fd, old_name, new_fd, new_name, keep=whiteout)
        else:
            upper.rename(old_fd, old_name, new_fd, new_name, whiteout=whiteout)
        if whiteout:
            source_names[old_name] = True
        else:
            source_names.pop(old_name, None)
        target_names[new_name] = False
        if isinstance(target, FileNode):
            self._lose_name(target, target_dir, new_name, status)
        elif isinstance(target, DirNode):
            self._orphan_directory(target)
        if source_dir.children.get(old_name) is source:
            del source_dir.children[old_name]
        target_dir.children[new_name] = source
        self._change_name(source, source_dir, old_name, target_dir, new_name)
        self.drop_if_unused(source_dir)

    def _clear_whiteouts(self, directory: DirNode) -> None:
        """Make an upper directory that shows nothing really empty; the view stays as it is at every step."""
        names = self.names(directory)
        if not names:
            return
        fd = self.fd(directory)
        up.set_opaque(fd)
        self._mark_directory(directory, lower=None, explicit=True)
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
            live = self.nodes.get(self.number(status, marks))
        return live if isinstance(live, FileNode) and live.is_file(status.st_ino) else None

    def settle(self, directory: DirNode, name: bytes) -> None:
        """Give what shows through at a name a place in the upper that says by itself what it is."""
        node = self.child(directory, name)
        if node is not None:
            self._settle(node)

    def hide(self, directory: DirNode, name: bytes) -> None:
        """Record that nothing is shown at a name which neither the upper nor the lower has."""
        self.raise_dir(directory)
        with self._unseen(directory) as fd:
            self._require_writable().white_out(fd, name, replace=False)
        self.names(directory)[name] = True

    def inherit(self, directory: DirNode, tree: ObjectID | None) -> None:
        """Let an upper directory take its lower from its place again, where it is ``tree``."""
        with self._unseen(directory) as fd:
            up.clear_opaque(fd)
            self._mark_directory(directory, explicit=False, lower=tree)

    def drop_whiteouts(self, directory: DirNode, below: TreeEntries) -> None:
        """Remove the whiteouts of an upper directory that hide nothing of what is below it."""
        names = self.names(directory)
        stale = [name for name, whiteout in names.items() if whiteout and name not in below]
        if not stale:
            return
        with self._unseen(directory) as fd:
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
        if isinstance(node, DirNode):
            self._before_directory_goes(node)
        status = None
        if name in names:
            with self._unseen(directory) as fd:
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
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

    def set_times(self, node: FileNode, mtime_ns: int, ctime_ns: int) -> None:
        """Give a file a modification and a change time to show."""
        self._set_file_times(node, AttrUpdate(mtime_ns=mtime_ns, ctime_ns=ctime_ns))

    def mark_stored(
        self,
        directory: DirNode,
        name: bytes,
        status: os.stat_result,
        blob: ObjectID,
        cleaned: int | None,
    ) -> None:
        """Note on a real file what it is stored as, keeping the times that it shows.

        Args:
            directory, name: where it is.
            status: of it, when it was read.
            blob: what it is stored as.
            cleaned: the blob's size, if it has other bytes than the file.
        """
        where = up.entry_path(self.fd(directory), name)
        live = self.live_file(directory, name, status)
        known = up.read_marks(where) if live is None else live.marks
        if known is not None and (
            known.blob is not None or (known.stored, known.cleaned) == (blob, cleaned)
        ):
            return
        marks = self._keeping(status, known)._replace(
            stored=blob, cleaned=cleaned, size=status.st_size
        )
        up.write_marks(where, marks)
        if live is not None:
            live.marks = marks

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


def _swap_with_whiteout(old_fd: int, old: bytes, new_fd: int, new: bytes, *, keep: bool) -> bool:
    """Move a directory onto a whiteout: rename(2) would refuse, so exchange them and keep the whiteout or not.

    Returns:
        whether a whiteout is at the old name now. One that was not to be kept hides nothing.
    """
    up.renameat2(old_fd, old, new_fd, new, up.RENAME_EXCHANGE)
    faults.reach("core.swapped-with-whiteout")
    if not keep:
        try:
            os.unlink(old, dir_fd=old_fd)
        except OSError as error:
            log.warning("a whiteout is left that hides nothing: %s", error)
            return True
    return keep


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
