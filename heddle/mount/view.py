"""The merged view, to look at: which names there are, what they are, and their nodes.

Nodes are caches of the upper and the lower: one that the kernel forgot and nobody holds open is dropped, and made
again from disk when it is next looked up. Nothing here changes what is seen; `files.py`, `attributes.py` and
`core.py` do, each on top of the one before.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from heddle.mount import upper as up
from heddle.mount.lower import GITLINK, Lower, is_directory, subtree
from heddle.mount.nodes import AnsweringFile, DirNode, FileNode, Node, PinnedFile
from heddle.mount.numbers import lower_number
from heddle.mount.shell import (
    NAME_MAX,
    ROOT,
    Attrs,
    IsADirectory,
    NameTooLong,
    NodeId,
    NotADirectory,
    NotFound,
    ReadOnly,
    Stale,
)
from heddle.mount.upper import NO_MARKS, Marks, Upper

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.mount.journal import Journal

_PROVISIONAL_INO = 1 << 63
_OPEN_DIRECTORIES = 256  # descriptors kept for upper directories, where the process may have many

_SAID = ("ino", "mode", "lower", "explicit", "kept")  # of a directory's node, by its marks

OPEN_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Known(NamedTuple):
    """A real file of which it is known what it is stored as, for as long as size and times are these.

    Attributes:
        size, mtime_ns, ctime_ns: of the real file.
        blob: its bytes; None: they are not known, or being read just now.
        places: by path and epoch of the view, where what git does to a file there was heeded: what it is stored as
            there, and the size of that if it has other bytes.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    blob: ObjectID | None
    places: Mapping[tuple[bytes, int], tuple[ObjectID, int | None]] = MappingProxyType({})

    def is_of(self, status: os.stat_result) -> bool:
        """Whether the file was not touched since."""
        return self[:3] == stat_key(status)


class View:
    """A merged view to look at; its changes are its subclasses'.

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
        pinned: the name in the root that the mount shows of itself, None for none.
        known: what real files are known to be stored as, by inode number. A write takes it away, so that who reads one
            puts a `Known` there first, and is to be believed while it is there.
        journal: is told of every name that shows something else than before; None: nobody asks.
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
        self.pinned: bytes | None = None
        self.known: dict[int, Known] = {}
        self.journal: Journal | None = None
        self.root = DirNode(ROOT, None, b"", tree)
        self.root.lookups = 1
        self.nodes: dict[NodeId, Node] = {ROOT: self.root}
        self._fds: OrderedDict[DirNode, int] = OrderedDict()
        limit = _descriptor_limit()
        self._kept_directories = max(8, min(_OPEN_DIRECTORIES, limit // 4))
        self._last_descriptor = limit - min(64, limit // 4)
        self._as_root = os.geteuid() == 0
        if upper is not None:
            self._adopt_directory(self.root, upper.root)

    def pin(
        self,
        name: bytes,
        content: bytes,
        opened: Callable[[int], None],
        glance: Callable[[int], bool],
    ) -> bool:
        """Show a file in the root that no capture records and nobody can change.

        Args:
            name: one that no tree can have.
            content: short.
            opened, glance: as of `PinnedFile`.

        Returns:
            Whether it is shown: a real file of that name in the upper stands in its place.
        """
        is_shown = self._pin(PinnedFile, name, content, opened, glance)
        if is_shown:
            self.pinned = name
        return is_shown

    def pin_answer(
        self,
        name: bytes,
        answer: Callable[[int], bytes],
        answer_at_once: Callable[[int], bytes | None],
    ) -> bool:
        """Have a file in the root that no listing shows, and that says something else to everyone who opens it.

        Args:
            name: of the file.
            answer, answer_at_once: as of `AnsweringFile`.

        Returns:
            Whether there is: the view may have a file of that name.
        """
        return self._pin(AnsweringFile, name, b"", answer, answer_at_once)

    def _pin(
        self,
        kind: type[PinnedFile],
        name: bytes,
        content: bytes,
        opened: Callable[[int], Any],
        at_once: Callable[[int], Any],
    ) -> bool:
        if self.child(self.root, name) is not None:
            return False
        blob: Any = hashlib.sha1(b"pinned\0" + content).hexdigest().encode()
        self.lower.pin(blob, content)
        ino = self._lower_ino(self.root.ino, name)
        node = kind(ino, self.root, name, stat.S_IFREG | 0o444, opened, at_once)
        node.blob, node.size, node.lookups = blob, len(content), 1
        self._add(node, self.root, name)
        return True

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
            try:
                inner = os.open(node.name, DIRECTORY_FLAGS, dir_fd=fd)
            finally:
                if number:
                    os.close(fd)
            fd = inner
        self._fds[directory] = fd
        if len(self._fds) > self._kept_directories:
            os.close(self._fds.popitem(last=False)[1])
        return fd

    def require_descriptor(self) -> None:
        """Refuse to open one more file for a program when captures and the control socket would have none left.

        Raises:
            OSError: EMFILE. The lowest free number is taken by every open, so it tells how many are in use.
        """
        assert self.upper is not None
        lowest = os.dup(self.upper.root)
        os.close(lowest)
        if lowest > self._last_descriptor:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

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

    def provisional(self, parent: DirNode, name: bytes) -> Attrs:
        """What a listing shows of a captured file whose size is not known: a number that stands for nothing yet.

        The kernel is told to forget it at once, so that whoever wants more than the name looks it up.
        """
        mode = _shown_mode(self.lower.entries(parent.lower)[name][0])
        ino = self._lower_ino(parent.ino, name) | _PROVISIONAL_INO
        when = self.time_ns
        return Attrs(ino, mode, 1, self.uid, self.gid, 0, 0, 0, when, when, when)

    def _lower_ino(self, parent: NodeId, name: bytes) -> NodeId:
        """A number for a captured node that comes out the same at every mount."""
        ino = lower_number(parent, name)
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
        ino = self.number(status, marks)
        same = self.nodes.get(ino)
        if same is not None:
            if isinstance(same, FileNode) and same.is_file(status.st_ino):
                return self._add_link(same, parent, name)
            # the kernel still holds an earlier owner of the number
            ino = self._lower_ino(ino, name)
            if not stat.S_ISREG(status.st_mode):
                self._require_writable().set_number(status.st_ino, ino)
            else:
                marks = self._keeping(status, marks)._replace(ino=ino)
                up.write_marks(up.entry_path(directory_fd, name), marks)
        node = FileNode(ino, parent, name, status.st_mode)
        node.upper = True
        node.real_ino = status.st_ino
        if status.st_nlink > 1:
            node.links = []
        self._take_marks(node, marks)
        return self._add(node, parent, name)

    def number(self, status: os.stat_result, marks: Marks | None) -> NodeId:
        """The number to show of a real entry that is no directory."""
        if marks is not None and marks.ino is not None:
            return marks.ino
        if self.upper is None or stat.S_ISREG(status.st_mode):
            return status.st_ino
        return self.upper.numbers.get(status.st_ino, status.st_ino)

    def _load_upper_directory(self, parent: DirNode, name: bytes) -> DirNode:
        node = DirNode(0, parent, name, subtree(self.lower.entries(parent.lower), name))
        node.upper = True
        self._adopt_directory(node, self.fd(node))
        if node.ino in self.nodes:  # see _load_upper
            self._mark_directory(node, ino=self._lower_ino(node.ino, name))
        self._add(node, parent, name)
        return node

    def _adopt_directory(self, node: DirNode, fd: int) -> None:
        """Take over what an upper directory says of itself."""
        node.upper = True
        marks = up.read_marks(fd) or NO_MARKS
        if marks.ctime_ns is not None:
            node.kept = marks.mtime_ns, marks.ctime_ns
        node.mode = marks.mode
        if marks.lower is not None:
            node.lower, node.explicit = marks.lower, True
        elif up.is_opaque(fd):
            node.lower, node.explicit = None, True
        if node.ino != ROOT:
            node.ino = os.fstat(fd).st_ino if marks.ino is None else marks.ino
        elif marks.time_ns is not None:
            self.time_ns = marks.time_ns
        else:  # a new upper: the root is as old as what it shows
            os.utime(fd, ns=(self.time_ns, self.time_ns))
            self._mark_directory(node, kept=(self.time_ns, self.time_ns))

    def _mark_directory(self, node: DirNode, **changes: Any) -> None:
        """Have an upper directory say what its node knows, with these of its attributes changed: both or neither."""
        if "kept" not in changes:
            changes["kept"] = self._directory_times(node, os.fstat(self.fd(node)))
        said = {name: changes.get(name, getattr(node, name)) for name in _SAID}
        is_root = node is self.root
        marks = Marks(
            ino=None if is_root else said["ino"],
            mode=said["mode"],
            lower=said["lower"] if said["explicit"] else None,
            time_ns=self.time_ns if is_root else None,
        )
        if said["kept"] is not None:
            mtime_ns, ctime_ns = said["kept"]
            marks = marks._replace(mtime_ns=mtime_ns, ctime_ns=ctime_ns)
        up.write_marks(self.fd(node), marks)
        for name, value in changes.items():
            setattr(node, name, value)

    @staticmethod
    def _directory_times(node: DirNode, status: os.stat_result) -> tuple[int, int]:
        """Modification and change time that an upper directory shows."""
        if node.kept is not None and node.kept[0] == status.st_mtime_ns:
            return node.kept
        return status.st_mtime_ns, status.st_ctime_ns

    @staticmethod
    def _keeping(status: os.stat_result, marks: Marks | None) -> Marks:
        """A real file's marks, with the change time that it shows: for a change of the file that nobody is to see."""
        marks = marks or NO_MARKS
        mtime_ns, ctime_ns = marks.times(status)
        return marks._replace(mtime_ns=mtime_ns, ctime_ns=ctime_ns)

    def _take_marks(self, node: FileNode, marks: Marks | None) -> None:
        node.marks = marks
        node.blob = None if marks is None else marks.blob
        if marks is not None and marks.blob is not None:
            node.size = marks.size

    def _write_marks(self, node: FileNode, marks: Marks) -> None:
        """Have a real file say this of itself; known here once it is on disk."""
        if marks != (node.marks or NO_MARKS):
            up.write_marks(self._where(node), marks)
            node.marks = marks

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
                self._drop_links(node)
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

    def _drop_links(self, node: FileNode) -> None:
        links, node.links = node.links, None
        for parent, name in links or ():
            if parent.children.get(name) is node:
                del parent.children[name]
                self.drop_if_unused(parent)

    def _open_file(self, node: FileNode, *, write: bool = False) -> int:
        """The real file's descriptor, kept while somebody has it open.

        Where the file system below has become read-only, one for reading, until somebody wants to write again.
        """
        if node.fd >= 0 and not (write and _is_for_reading(node.fd)):
            return node.fd
        if node.parent is None:
            raise Stale("the file is gone")
        directory = self.fd(node.parent)
        try:
            fd = os.open(node.name, OPEN_FLAGS, dir_fd=directory)
        except OSError as error:
            if error.errno != errno.EROFS or write:
                raise
            fd = os.open(node.name, READ_FLAGS, dir_fd=directory)
        if node.fd >= 0:  # others read through it
            os.dup2(fd, node.fd, inheritable=False)
            os.close(fd)
        else:
            node.fd = fd
        return node.fd

    def _close_file(self, node: FileNode) -> None:
        if node.fd >= 0:
            os.close(node.fd)
            node.fd = -1

    def _require_writable(self) -> Upper:
        if self.upper is None:
            raise ReadOnly
        return self.upper

    # --- looking ---------------------------------------------------------------------------------

    def lookup(self, parent: NodeId, name: bytes) -> Attrs | None:
        directory = self._dir(parent)
        if name == b".":
            return self.attrs_of(directory)
        if name == b"..":
            return self.attrs_of(directory.parent or directory)
        if directory.orphan:
            return None
        check_length(name)
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
        if node.orphan:
            assert node.last is not None
            return node.last
        when = self.time_ns
        if not node.upper:
            nlink = 2 + self.lower.subdirectories(node.lower)
            mode = stat.S_IFDIR | 0o755
            return Attrs(node.ino, mode, nlink, self.uid, self.gid, 0, 4096, 8, when, when, when)
        status = self._directory_status(node)
        mode = status.st_mode if node.mode is None else stat.S_IFDIR | node.mode
        mtime_ns, ctime_ns = self._directory_times(node, status)
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
            mtime_ns,
            ctime_ns,
        )

    def _directory_status(self, node: DirNode) -> os.stat_result:
        if node.parent is None or node in self._fds:
            return os.fstat(self.fd(node))
        return os.stat(node.name, dir_fd=self.fd(node.parent), follow_symlinks=False)

    def _link_count(self, node: DirNode, status: os.stat_result) -> int:
        """2 and one for every directory shown. The real count is right unless a lower shows through."""
        if node.lower is None:
            return status.st_nlink
        below = self.lower.subdirectories(node.lower)
        if below == 0:  # as for most large directories; asked for after every change in them
            return status.st_nlink
        entries = self.lower.entries(node.lower)
        hidden = sum(
            is_directory(entries[name][0]) for name in self.names(node).keys() & entries.keys()
        )
        return status.st_nlink + below - hidden

    def _upper_attrs(self, node: FileNode) -> Attrs:
        status = self._status(node)
        if status is None:
            assert node.last is not None
            return node.last
        marks = node.marks
        mode, size, blocks = status.st_mode, status.st_size, status.st_blocks
        mtime_ns, ctime_ns = status.st_mtime_ns, status.st_ctime_ns
        if marks is not None:
            mtime_ns, ctime_ns = marks.times(status)
            if marks.mode is not None:
                mode = stat.S_IFMT(mode) | marks.mode
            if marks.blob is not None:
                size = marks.size
            if marks.blob is not None or marks.under is not None:  # few blocks are a hole to some
                blocks = -(-size // 512)
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
            mtime_ns,
            ctime_ns,
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
            shown = list(below)
        else:
            names = self.names(directory)
            shown = [name for name, whiteout in names.items() if not whiteout]
            shown += [name for name in below if name not in names]
        if directory is self.root and self.pinned is not None:
            shown.append(self.pinned)
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

    @staticmethod
    def is_stored(status: os.stat_result, marks: Marks) -> bool:
        """Say whether a real file's bytes are still those that were stored as ``marks.stored``."""
        return (
            marks.stored is not None
            and marks.size == status.st_size
            and marks.mtime_ns == status.st_mtime_ns
        )

    def recorded(self, node: FileNode, base: ObjectID | None) -> ObjectID | None:
        """What a file is known to be stored as, None when its bytes would have to be read.

        Args:
            node: the file.
            base: the blob that is recorded at its path.
        """
        if node.blob is not None:
            return node.blob
        status = self._status(node)
        if status is None or not stat.S_ISREG(status.st_mode):
            return None
        noted = self.noted(status, node.marks, base)
        if noted is not None:
            return noted[0]
        known = self.known.get(status.st_ino)
        return known.blob if known is not None and known.is_of(status) else None

    def noted(
        self, status: os.stat_result, marks: Marks | None, base: ObjectID | None
    ) -> tuple[ObjectID, int | None] | None:
        """The blob that a real regular file says it is stored as, and its size if that has other bytes.

        The latter holds only where that blob is recorded: elsewhere git may make another one of the same bytes.

        Args:
            status: of the real file.
            marks: what it says.
            base: the blob that is recorded at its path.
        """
        if marks is None:
            return None
        if marks.blob is not None:
            return marks.blob, None
        if marks.stored is None or not self.is_stored(status, marks):
            return None
        if marks.cleaned is None or marks.stored == base:
            return marks.stored, marks.cleaned
        return None


def _is_for_reading(fd: int) -> bool:
    return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY


def _descriptor_limit() -> int:
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1 << 20 if limit == resource.RLIM_INFINITY else limit


def check_length(name: bytes) -> None:
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


def stat_key(status: os.stat_result) -> tuple[int, int, int]:
    """What tells that a real file was not touched."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
