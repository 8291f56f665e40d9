"""Which names of a view changed since somebody last asked: what git's fsmonitor wants to know.

Owns the order of changes and of questions, and how much of it is remembered. Names are noted as the directory's node
and a name in it, and become paths only when they are told: a change costs an entry in a table, and a directory that is
moved takes what was noted below it along. A file of several names is noted by its inode, since not all may be known.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from heddle.mount.nodes import DirNode

_LIMIT = 50_000
"""Names that are remembered; more, and whoever asks has to look at everything."""


class Changes(NamedTuple):
    """What changed after a token was given.

    Attributes:
        paths: from the root of the view.
        files: real inode numbers of files whose names have to be looked for.
    """

    paths: list[bytes]
    files: frozenset[int]


class Journal:
    """Changes by generation; a token, given with each answer, begins a new one.

    Tokens of other journals, of sessions before this one, mean nothing here.
    """

    def __init__(self) -> None:
        self._id = os.urandom(8).hex().encode("ascii")
        self._generation = 1
        self._since = 1
        self._changed: dict[tuple[DirNode, bytes], int] = {}
        self._files: dict[int, int] = {}

    def note(self, directory: DirNode, name: bytes) -> None:
        """A name of a directory shows something else from now on; one that ends in a slash, and all below it."""
        self._changed[directory, name] = self._generation
        self._keep_to_the_limit()

    def note_file(self, real_ino: int) -> None:
        """A file in the upper that has several names holds something else."""
        self._files[real_ino] = self._generation
        self._keep_to_the_limit()

    def _keep_to_the_limit(self) -> None:
        if len(self._changed) + len(self._files) > _LIMIT:
            self.forget()

    def forget(self) -> None:
        """So much changed, or of it so little is known, that who asks next has to look at everything."""
        self._changed.clear()
        self._files.clear()
        self._since = self._generation

    def token(self) -> bytes:
        """What stands for this moment."""
        self._generation += 1
        return b"heddle:%b:%d" % (self._id, self._generation - 1)

    def since(self, token: bytes) -> Changes | None:
        """What changed after a token was given; None when that can't be told."""
        head, _, number = token.rpartition(b":")
        if head != b"heddle:" + self._id or not number.isdigit() or int(number) < self._since:
            return None
        asked = int(number)
        found = [key for key, generation in self._changed.items() if generation > asked]
        paths = [path for path in (_path(*key) for key in found) if path is not None]
        files = (ino for ino, generation in self._files.items() if generation > asked)
        return Changes(paths, frozenset(files))


def _path(directory: DirNode, name: bytes) -> bytes | None:
    """The path of a name; None below a directory that is gone, which was noted by its own name."""
    parts = [name]
    node = directory
    while node.parent is not None:
        parts.append(node.name)
        node = node.parent
    return None if node.orphan else b"/".join(reversed(parts))
