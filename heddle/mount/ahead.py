"""What is brought together with a promised file that somebody needs: a walk must not cost a request for each file.

Owns the guess only: the first file that is missed in a directory is brought alone, the second with the rest of its
directory; and once two directories of one parent went that way, all below the parent comes. Files are brought by the
object store, from the thread that calls `bring`; choosing is for the event loop.
"""

from __future__ import annotations

import stat
from collections import Counter, deque
from collections.abc import Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING, NamedTuple

from heddle.errors import HeddleError, Unavailable
from heddle.mount.lower import Lower, is_directory

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.mount.nodes import DirNode

_MOST = 2_000  # blobs in one request
_MOST_TREES = 5_000  # directories looked into for one request
_WALKED = 2  # directories of one parent, after which their siblings are expected to follow


class Company(NamedTuple):
    """What may be brought with a file.

    Attributes:
        near: the tree whose files come first, not those of its directories.
        below: the tree of which everything comes.
    """

    near: ObjectID | None
    below: ObjectID | None


class Ahead:
    """Guesses for one mount, about sizes or about contents.

    Args:
        lower: reads the object store.
        sizes: it is sizes that are asked for.
    """

    def __init__(self, lower: Lower, *, sizes: bool) -> None:
        self._lower = lower
        self._sizes = sizes
        self._missed: Counter[int] = Counter()
        self._walked: Counter[int] = Counter()

    def choose(self, directory: DirNode | None) -> Company:
        """Which files may come along, now that one is missed in a directory."""
        if directory is None:
            return Company(None, None)
        self._missed[directory.ino] += 1
        top = directory
        while top.parent is not None and self._walked[top.parent.ino] >= _WALKED:
            top = top.parent
        if top is directory and self._missed[directory.ino] == 1:
            return Company(None, None)
        if top.parent is not None:
            self._walked[top.parent.ino] += 1
        return Company(directory.lower, None if top is directory else top.lower)

    def bring(self, blob: ObjectID, company: Company) -> None:
        """Have a file here, or know its size, and what comes along; waits for the remote.

        Raises:
            HeddleError: the file itself could not be had.
        """
        wanted = [blob, *islice(self._promised(company), _MOST)]
        try:
            self._bring(wanted)
        except Unavailable:
            raise
        except HeddleError:
            if len(wanted) == 1:
                raise
            self._bring([blob])  # it may have been another that the remote has not

    def bring_listed(self, directory: DirNode) -> None:
        """Have all files of a directory here, since each of them will be read; others may come along.

        Raises:
            HeddleError: one of them could not be had.
        """
        listed = Company(directory.lower, None)
        if next(self._promised(listed), None) is None:
            return
        self._missed[directory.ino] += 1
        company = self.choose(directory)
        while blobs := list(islice(self._promised(company), _MOST)):
            self._bring(blobs)
            company = listed

    def _bring(self, blobs: list[ObjectID]) -> None:
        store = self._lower.store
        if self._sizes:
            store.learn_sizes(blobs)
        else:
            store.fetch(blobs)

    def _promised(self, company: Company) -> Iterator[ObjectID]:
        near = () if company.near is None else (company.near,)
        for tree in chain(near, islice(self._trees(company.below), _MOST_TREES)):
            for mode, oid in self._lower.entries(tree).values():
                if not is_directory(mode) and self._lower.store.is_promised(oid):
                    yield oid

    def _trees(self, top: ObjectID | None) -> Iterator[ObjectID]:
        """A tree and all below it, those at the top first."""
        todo = deque(() if top is None else (top,))
        while todo:
            tree = todo.popleft()
            yield tree
            entries = self._lower.entries(tree).values()
            todo += (oid for mode, oid in entries if stat.S_ISDIR(mode))
