"""What an upper has to say before its overlay takes another base: no more than that, or all that is seen.

Others moved the thread: an overlay without unsaved changes shows the new base. What its upper holds then is equal to
the old base (kept for its times and inode numbers) or is in no state at all (ignored files, fifos). The former gives
way where others changed something, the latter never does.

Git moved it, in the mount itself: the files are as git wants them, and the view stays as it is (`keep_view`).

No step here changes what is seen while the old base stands; moving the base is `overlay.py`'s.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from heddle.mount.core import ContentAddressedMount
from heddle.mount.depth import any_depth
from heddle.mount.lower import GITLINK, TreeEntries, subtree
from heddle.mount.nodes import DirNode, Node

if TYPE_CHECKING:
    from dulwich.objects import ObjectID


def in_the_way(
    core: ContentAddressedMount, old: ObjectID | None, new: ObjectID | None
) -> bytes | None:
    """The path of something that is in no state and stands where a new base has something; None when there is none."""
    with any_depth():
        blocking = _blocking(core, core.root, old, new)
    return None if blocking is None else core.path(blocking)


def give_way(core: ContentAddressedMount, old: ObjectID | None, new: ObjectID | None) -> None:
    """Have the upper say nothing of its own about what is in ``old``, and nothing at all about what differs in ``new``.

    Args:
        core: a view that equals ``old`` but for what is in no state; nothing of that may be in the way.
        old: root tree of the present base.
        new: root tree of the one to come.
    """
    with any_depth():
        _inherit(core, core.root, old)
        _let_go(core, core.root, old, new)


def keep_view(core: ContentAddressedMount, old: ObjectID | None, new: ObjectID | None) -> None:
    """Have the upper say by itself all that a new base would show otherwise.

    Args:
        core: any view on ``old``.
        old: root tree of the present base.
        new: root tree of the one to come.
    """
    with any_depth():
        _keep_directory(core, core.root, old, new)


def _keep_directory(
    core: ContentAddressedMount, directory: DirNode, old: ObjectID | None, new: ObjectID | None
) -> None:
    """One directory whose lower is the base's at its place, and will be."""
    before, after = core.lower.entries(old), core.lower.entries(new)
    changed = {*before, *after} if old != new else set()
    with _held(directory):
        for name in sorted(name for name in changed if before.get(name) != after.get(name)):
            has_upper = directory.upper and name in core.names(directory)
            if has_upper:
                _keep_upper(core, directory, name, before, after)
            elif name in before:
                if not all(entries.get(name, (0,))[0] == GITLINK for entries in (before, after)):
                    core.settle(directory, name)
            else:
                core.hide(directory, name)


def _keep_upper(
    core: ContentAddressedMount,
    directory: DirNode,
    name: bytes,
    before: TreeEntries,
    after: TreeEntries,
) -> None:
    """A name with a place in the upper: only through a directory does the base show."""
    if core.names(directory)[name]:
        return
    node = core.child(directory, name)
    if not isinstance(node, DirNode) or node.explicit:
        core.drop_if_unused(node)
        return
    if name in after and stat.S_ISDIR(after[name][0]):
        _keep_directory(core, node, subtree(before, name), subtree(after, name))
    elif node.lower is not None:
        core.settle(directory, name)
    core.drop_if_unused(node)


@contextmanager
def _held(node: Node) -> Iterator[None]:
    """Keep a node that nobody else holds."""
    node.lookups += 1
    try:
        yield
    finally:
        node.lookups -= 1


def _shown(core: ContentAddressedMount, directory: DirNode, name: bytes) -> Node | None:
    """What a directory with a place in the upper shows; what shows through elsewhere is in the base."""
    return core.child(directory, name) if directory.upper else None


def _blocking(
    core: ContentAddressedMount, directory: DirNode, old: ObjectID | None, new: ObjectID | None
) -> Node | None:
    before, after = core.lower.entries(old), core.lower.entries(new)
    with _held(directory):
        for name, entry in after.items():
            node = None if before.get(name) == entry else _shown(core, directory, name)
            if node is None:
                continue
            found = _blocking_at(core, node, name in before, subtree(before, name), entry)
            if found is not None:
                return found
    return None


def _blocking_at(
    core: ContentAddressedMount,
    node: Node,
    is_captured: bool,
    old: ObjectID | None,
    entry: tuple[int, ObjectID],
) -> Node | None:
    if not isinstance(node, DirNode):
        return None if is_captured else node
    if not stat.S_ISDIR(entry[0]):
        return _uncaptured(core, node, old) if is_captured else node
    if not is_captured and node.lower is not None:
        return node  # moved here with what it shows; it can't show the new base as well
    return _blocking(core, node, old, entry[1])


def _uncaptured(
    core: ContentAddressedMount, directory: DirNode, old: ObjectID | None
) -> Node | None:
    """Something in or below a directory that is in no state."""
    before = core.lower.entries(old)
    with _held(directory):
        for name in core.list_names(directory) if directory.upper else ():
            node = core.child(directory, name)
            if node is None or name not in before:
                return node
            if isinstance(node, DirNode):
                found = _uncaptured(core, node, subtree(before, name))
                if found is not None:
                    return found
    return None


def _inherit(core: ContentAddressedMount, directory: DirNode, base: ObjectID | None) -> None:
    """Have an upper directory take its lower from its place, where the base shows the same."""
    if not directory.upper or (directory.explicit and base is None and directory.lower is not None):
        return  # moved to where it is in no state: its lower is its own for good
    below = core.lower.entries(base)
    with _held(directory):
        if directory.explicit:
            for name in core.lower.entries(directory.lower):
                if name not in core.names(directory) and name not in below:
                    core.settle(directory, name)
            core.inherit(directory, base)
        core.drop_whiteouts(directory, below)
        for name in [name for name, whiteout in core.names(directory).items() if not whiteout]:
            child = core.child(directory, name)
            if isinstance(child, DirNode):
                _inherit(core, child, subtree(below, name))


def _let_go(
    core: ContentAddressedMount, directory: DirNode, old: ObjectID | None, new: ObjectID | None
) -> None:
    """Remove what the upper, and what memory, keeps of captured names that differ in the new base."""
    before, after = core.lower.entries(old), core.lower.entries(new)
    with _held(directory):
        for name in [name for name in before if before[name] != after.get(name)]:
            node = directory.children.get(name) or _shown(core, directory, name)
            if isinstance(node, DirNode):
                _let_go(core, node, subtree(before, name), subtree(after, name))
            if not (isinstance(node, DirNode) and _is_directory(after, name)):
                core.drop_retained(directory, name)


def _is_directory(entries: TreeEntries, name: bytes) -> bool:
    return name in entries and stat.S_ISDIR(entries[name][0])
