"""The inodes of a mount's view, as they live in memory: what is known of each and nothing else.

`core.py` makes, changes and drops them; the upper and the lower are the truth that they cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from heddle.mount.shell import Attrs, NodeId
from heddle.mount.upper import Marks

if TYPE_CHECKING:
    from dulwich.objects import ObjectID


class Node:
    """One inode of the view.

    Attributes:
        ino: its number, stable over copy-up, rename, capture and remount.
        parent, name: a known name; parent is None when no name is known.
        lookups: how often the kernel was given it and has not forgotten it.
        upper: it has a real file or directory in the upper.
        orphan: its last name is gone for good.
        last: attributes of an orphan that has no descriptor.
    """

    __slots__ = ("ino", "last", "lookups", "name", "orphan", "parent", "upper")

    def __init__(self, ino: NodeId, parent: DirNode | None, name: bytes) -> None:
        self.ino = ino
        self.parent = parent
        self.name = name
        self.lookups = 0
        self.upper = False
        self.orphan = False
        self.last: Attrs | None = None


class DirNode(Node):
    """A directory.

    Attributes:
        children: live nodes by name; not all names.
        lower: the tree that shows through, None for none.
        explicit: the upper directory says its lower itself (moved, or opaque), so a new base does not change it.
        names: what the upper directory holds, True for a whiteout; None until listed.
        clean: `ContentAddressedMount.epoch` at which all below was last found equal to the base, -1 for never.
        ignored: how many ignored entries there were then.
        mode: permission bits to show when the real ones are wider, else None.
        kept: modification and change time that it showed when the real directory changed unseen; they hold as
            long as the former is the real one's.
    """

    __slots__ = ("children", "clean", "explicit", "ignored", "kept", "lower", "mode", "names")

    def __init__(
        self, ino: NodeId, parent: DirNode | None, name: bytes, lower: ObjectID | None
    ) -> None:
        super().__init__(ino, parent, name)
        self.children: dict[bytes, Node] = {}
        self.lower = lower
        self.explicit = False
        self.names: dict[bytes, bool] | None = None
        self.clean = -1
        self.ignored = 0
        self.mode: int | None = None
        self.kept: tuple[int, int] | None = None


class FileNode(Node):
    """Anything that is not a directory.

    Attributes:
        mode: type and permission bits, for captured nodes; the upper's real ones otherwise.
        blob: the bytes come from this blob; None when they are in the real file.
        size: bytes of the blob.
        marks: what the real file says of itself, None for nothing.
        real_ino: inode number of the real file.
        fd: descriptor of the real file while the node is open, else -1.
        opens, writers: open handles, and those of them that may write.
        links: further known names of a hard-linked file; None while it has one name.
        pushed: its bytes were given to the kernel's page cache.
        privileged: the last opener for writing may keep set-id bits (it is root).
        cleared: its writes have cleared them; nothing to do before the next open or chmod.
    """

    __slots__ = (
        "blob",
        "cleared",
        "fd",
        "links",
        "marks",
        "mode",
        "opens",
        "privileged",
        "pushed",
        "real_ino",
        "size",
        "writers",
    )

    def __init__(self, ino: NodeId, parent: DirNode | None, name: bytes, mode: int) -> None:
        super().__init__(ino, parent, name)
        self.mode = mode
        self.blob: ObjectID | None = None
        self.size = 0
        self.marks: Marks | None = None
        self.real_ino = 0
        self.fd = -1
        self.opens = 0
        self.writers = 0
        self.links: list[tuple[DirNode, bytes]] | None = None
        self.pushed = False
        self.privileged = True
        self.cleared = False

    def is_file(self, real_ino: int) -> bool:
        """Say whether this node stands for the upper's real file of that inode number."""
        return self.upper and not self.orphan and self.real_ino == real_ino


class PinnedFile(FileNode):
    """A file that the mount shows of itself: in no upper and no tree, and nobody can change it.

    Attributes:
        opened: called with the process id before an open of it is answered; may wait, so not in the loop.
        glance: called before that, in the loop: whether nothing of it is needed this time.
    """

    __slots__ = ("glance", "opened")

    def __init__(
        self,
        ino: NodeId,
        parent: DirNode,
        name: bytes,
        mode: int,
        opened: Callable[[int], None],
        glance: Callable[[int], bool],
    ) -> None:
        super().__init__(ino, parent, name, mode)
        self.opened = opened
        self.glance = glance


class AnsweringFile(PinnedFile):
    """One that no listing shows, and that has another content for each open.

    Attributes:
        answer: called with the process id of who opens it, gives what is read there; may wait, so not in the loop.
        answer_at_once: called before that, in the loop; None where it would have to wait.
    """

    __slots__ = ("answer", "answer_at_once")

    def __init__(
        self,
        ino: NodeId,
        parent: DirNode,
        name: bytes,
        mode: int,
        answer: Callable[[int], bytes],
        answer_at_once: Callable[[int], bytes | None],
    ) -> None:
        super().__init__(ino, parent, name, mode, lambda pid: None, lambda pid: True)
        self.answer = answer
        self.answer_at_once = answer_at_once
