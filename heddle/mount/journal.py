"""Which names of a view changed since somebody last asked: what git's fsmonitor wants to know.

Owns the order of changes and of questions, and how much of it is remembered. Names are noted as the directory's node
and a name in it, and become paths only when they are told: a change costs an entry in a table, and a directory that is
moved takes what was noted below it along. A file of several names is noted by its inode, since not all may be known.
"""

from __future__ import annotations

import os
import time
from typing import NamedTuple

from heddle.mount.nodes import DirNode

_LIMIT = 50_000
"""Names that are remembered; more, and whoever asks has to look at everything."""
_UNSEEN_NS = 5_000_000_000
"""How long a change may stay unseen: the kernel shows it when the program that made it runs on, after our reply."""


class Changes(NamedTuple):
    """What changed after a token was given.

    Attributes:
        paths: from the root of the view.
        files: real inode numbers of files whose names have to be looked for.
    """

    paths: list[bytes]
    files: frozenset[int]


class Journal:
    """Changes by the time they were made; a token is the time of a question.

    Tokens of other journals, of sessions before this one, mean nothing here.
    """

    def __init__(self) -> None:
        self._id = os.urandom(8).hex().encode("ascii")
        self._forgotten_ns: int | None = None
        self._changed: dict[tuple[DirNode, bytes], int] = {}
        self._files: dict[int, int] = {}

    def note(self, directory: DirNode, name: bytes) -> None:
        """A name of a directory shows something else from now on; one that ends in a slash, and all below it."""
        self._changed[directory, name] = time.monotonic_ns()
        self._keep_to_the_limit()

    def note_file(self, real_ino: int) -> None:
        """A file in the upper that has several names holds something else."""
        self._files[real_ino] = time.monotonic_ns()
        self._keep_to_the_limit()

    def _keep_to_the_limit(self) -> None:
        if len(self._changed) + len(self._files) > _LIMIT:
            self.forget()

    def forget(self) -> None:
        """So much changed, or of it so little is known, that who asks next has to look at everything."""
        self._changed.clear()
        self._files.clear()
        self._forgotten_ns = time.monotonic_ns()

    def token(self) -> bytes:
        """What stands for this moment."""
        return b"heddle:%b:%d" % (self._id, time.monotonic_ns())

    def since(self, token: bytes) -> Changes | None:
        """What changed after a token was given, or so shortly before that it may not have been seen.

        Returns:
            None when that can't be told.
        """
        head, _, number = token.rpartition(b":")
        if head != b"heddle:" + self._id or not number.isdigit():
            return None
        asked_ns = int(number) - _UNSEEN_NS
        if self._forgotten_ns is not None and self._forgotten_ns >= asked_ns:
            return None
        found = [key for key, changed_ns in self._changed.items() if changed_ns >= asked_ns]
        paths = [path for path in (_path(*key) for key in found) if path is not None]
        files = (ino for ino, changed_ns in self._files.items() if changed_ns >= asked_ns)
        return Changes(paths, frozenset(files))


def _path(directory: DirNode, name: bytes) -> bytes | None:
    """The path of a name; None below a directory that is gone, which was noted by its own name."""
    parts = [name]
    node = directory
    while node.parent is not None:
        parts.append(node.name)
        node = node.parent
    return None if node.orphan else b"/".join(reversed(parts))
