"""How git is told to look at everything, when nobody knows what changed since it asked last.

Owns the paths that say so. Git's protocol has a word for it (``/``; githooks(5), "fsmonitor-watchman"), after which git
2.39 looks at every file but believes what it had seen of directories from the next question on, even if it did not list
them in between. So each directory is named instead, by a name in it: then git lists it again whenever it comes to it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from heddle.mount.depth import any_depth
from heddle.mount.nodes import DirNode
from heddle.mount.snapshot import found
from heddle.repo import gitstage

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.mount.core import ContentAddressedMount

T = TypeVar("T")
InLoop = Callable[[Callable[[], T]], T]

_NAME_IN = b"/heddle"  # whether there is one: it has to be a name that git takes
_AT_ONCE = 64  # directories looked at between two turns of the loop


def paths(
    core: ContentAddressedMount, in_loop: InLoop[list[ObjectID | None]], index: Path
) -> list[bytes]:
    """What git's monitor answers when anything may have changed; not to be called in the loop.

    Args:
        core: the view.
        in_loop: runs a function where nothing else changes the view.
        index: git's, of the mount: what it lists may be gone by now.
    """
    listed = gitstage.paths(index, core.lower.store.id_length)
    with any_depth():
        directories = {*_shown(core, in_loop), *_directories_of(listed)}
    tops = {path.split(b"/", 1)[0] for path in directories}
    named = {top + b"/" for top in tops if top}  # git looks at each of the entries below
    named.update(path for path in listed if b"/" not in path)
    named.update(_names_at_the_top(core))  # the index may be a part of a split one
    named.update((path + _NAME_IN).lstrip(b"/") for path in directories)
    return sorted(named - {b""})


def _directories_of(listed: Iterable[bytes]) -> Iterator[bytes]:
    """The directories that some paths lie in."""
    last = b""
    for path in listed:
        above = path.rpartition(b"/")[0]
        if above != last:
            last = above
            while above:
                yield above
                above = above.rpartition(b"/")[0]


def _names_at_the_top(core: ContentAddressedMount) -> Iterator[bytes]:
    """What is shown there, and perhaps some names that are hidden."""
    yield from core.lower.entries(core.root.lower)
    if core.upper is not None:
        yield from map(os.fsencode, os.listdir(core.upper.root))


def _shown(core: ContentAddressedMount, in_loop: InLoop[list[ObjectID | None]]) -> Iterator[bytes]:
    """Every directory of the view, the root too, and perhaps some that it hides."""
    real = _real_directories(core)
    where = list(real)
    for start in range(0, len(where), _AT_ONCE):
        part = where[start : start + _AT_ONCE]
        trees = in_loop(lambda part=part: [_tree_below(core, path) for path in part])  # type: ignore[misc]
        for path, tree in zip(part, trees, strict=True):
            yield path
            yield from _below(core, path, tree, real[path])


def _real_directories(core: ContentAddressedMount) -> dict[bytes, set[bytes]]:
    """The directories that the upper has, with the names of those in each."""
    if core.upper is None:
        return {b"": set()}
    walk = os.fwalk(b".", dir_fd=core.upper.root)
    return {where[2:]: set(inside) for where, inside, _files, _fd in walk}


def _tree_below(core: ContentAddressedMount, path: bytes) -> ObjectID | None:
    """What a directory shows where the upper has nothing."""
    if not path:
        return core.root.lower
    with found(core, path) as node:
        return node.lower if isinstance(node, DirNode) else None


def _below(
    core: ContentAddressedMount, path: bytes, tree: ObjectID | None, but: set[bytes]
) -> Iterator[bytes]:
    for name, (mode, id) in core.lower.entries(tree).items():
        if stat.S_ISDIR(mode) and name not in but:
            inner = path + b"/" + name if path else name
            yield inner
            yield from _below(core, inner, id, set())
