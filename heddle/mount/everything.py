"""How git is told to look at whole directories: at all of them, when nobody knows what changed since it asked last.

Owns the paths that say so. Git's protocol has a word for everything (``/``; githooks(5), "fsmonitor-watchman"), after
which git 2.39 looks at every file but believes what it had seen of directories from the next question on, even if it
did not list them in between; and of a directory that is named it believes what it had seen of those below. So each
directory is named instead, by a name in it: then git lists it again whenever it comes to it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from heddle.mount.depth import any_depth
from heddle.mount.nodes import DirNode
from heddle.mount.snapshot import found
from heddle.repo import gitstage

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.mount.core import ContentAddressedMount

T = TypeVar("T")


class InLoop(Protocol):
    """Runs a function where nothing else changes the view."""

    def __call__(self, run: Callable[[], T], /) -> T: ...


_NAME_IN = b"/heddle"  # whether there is one: it has to be a name that git takes
_AT_ONCE = 64  # directories looked at between two turns of the loop


def paths(core: ContentAddressedMount, in_loop: InLoop, index: Path) -> list[bytes]:
    """What git's monitor answers when anything may have changed; not to be called in the loop.

    Args:
        core: the view.
        in_loop: of the session.
        index: git's, of the mount: what it lists may be gone by now.
    """
    listed = gitstage.paths(index, core.lower.store.id_length)
    with any_depth():
        directories = {*_shown(core, in_loop, b""), *_directories_of(listed)}
    tops = {path.split(b"/", 1)[0] for path in directories}
    named = {top + b"/" for top in tops if top}  # git looks at each of the entries below
    named.update(path for path in listed if b"/" not in path)
    named.update(_names_at_the_top(core))  # the index may be a part of a split one
    named.update(map(_name_in, directories))
    return sorted(named - {b""})


def below(core: ContentAddressedMount, in_loop: InLoop, changed: Iterable[bytes]) -> list[bytes]:
    """A name in each directory that is at or below one that came from elsewhere; not to be called in the loop.

    Args:
        core: the view.
        in_loop: as for ``paths``.
        changed: what changed; of that, the paths that end in a slash are the directories.
    """
    named: list[bytes] = []
    last = None
    with any_depth():
        for path in sorted(path for path in changed if path.endswith(b"/")):
            if last is None or not path.startswith(last):
                last = path
                named += map(_name_in, _shown(core, in_loop, path[:-1]))
    return named


def _name_in(directory: bytes) -> bytes:
    return (directory + _NAME_IN).lstrip(b"/")


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


def _shown(core: ContentAddressedMount, in_loop: InLoop, top: bytes) -> Iterator[bytes]:
    """Every directory of the view at and below one, and perhaps some that it hides."""
    real = _real_directories(core, in_loop, top)
    where = list(real)
    for start in range(0, len(where), _AT_ONCE):
        part = where[start : start + _AT_ONCE]
        trees = in_loop(lambda part=part: [_tree_below(core, path) for path in part])  # type: ignore[misc]
        for path, tree in zip(part, trees, strict=True):
            yield path
            yield from _below(core, path, tree, real[path])


def _real_directories(
    core: ContentAddressedMount, in_loop: InLoop, top: bytes
) -> dict[bytes, set[bytes]]:
    """The directories that the upper has at and below one, with the names of those in each."""
    fd = in_loop(lambda: _opened(core, top))
    if fd is None:
        return {top: set()}
    try:
        walk = os.fwalk(b".", dir_fd=fd)
        return {_joined(top, where[2:]): set(inside) for where, inside, _files, _fd in walk}
    finally:
        os.close(fd)


def _opened(core: ContentAddressedMount, path: bytes) -> int | None:
    """A descriptor of what the upper has of a directory; None: nothing, or it is none any more."""
    with found(core, path) as node:
        return os.dup(core.fd(node)) if isinstance(node, DirNode) and node.upper else None


def _tree_below(core: ContentAddressedMount, path: bytes) -> ObjectID | None:
    """What a directory shows where the upper has nothing."""
    with found(core, path) as node:
        return node.lower if isinstance(node, DirNode) else None


def _below(
    core: ContentAddressedMount, path: bytes, tree: ObjectID | None, but: set[bytes]
) -> Iterator[bytes]:
    for name, (mode, id) in core.lower.entries(tree).items():
        if stat.S_ISDIR(mode) and name not in but:
            inner = _joined(path, name)
            yield inner
            yield from _below(core, inner, id, set())


def _joined(directory: bytes, rest: bytes) -> bytes:
    return directory + b"/" + rest if directory and rest else directory or rest
