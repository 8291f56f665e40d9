"""What arriving objects refer to, noted as they come by.

Owns whether a pack is whole in itself: whether all that its commits, trees and tags name is in it or was here before.
Where that is so nothing has to be read again to know that names may be moved; where it is not, a walk has to tell
(``git/pack.py``), since a pack may hold more than what is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet

from heddle.objects.gitformat import BLOB, TAG, TREE, raw_tree_entries

_DIRECTORIES = (b"40000", b"040000")
_GITLINK = b"160000"


class Links:
    """The ids (binary) that some objects refer to.

    Args:
        id_length: bytes of an id.
    """

    def __init__(self, id_length: int) -> None:
        self._id_length = id_length
        self._blobs: set[bytes] = set()
        self._others: set[bytes] = set()
        self._is_sound = True

    def follow(self, type_num: int, content: bytes) -> None:
        """Note what an object refers to."""
        if type_num == BLOB:
            return
        if type_num != TREE:
            try:
                self._others.update(referred(type_num, content))
            except ValueError:
                self._is_sound = False
            return
        entries = raw_tree_entries(content, self._id_length)
        if entries is None:
            self._is_sound = False
            return
        for mode, _, id in entries:
            if mode != _GITLINK:
                (self._others if mode in _DIRECTORIES else self._blobs).add(id)

    def missing(self, came: AbstractSet[bytes], has: Callable[[bytes], bool]) -> list[bytes] | None:
        """The blobs that are referred to and are nowhere.

        Args:
            came: the objects whose links were noted.
            has: whether an object was here before, with all that it refers to.

        Returns:
            None when something else than blobs is missing, or an object can't be read.
        """
        if not self._is_sound or not all(map(has, self._others - came)):
            return None
        return [id for id in self._blobs - came if not has(id)]


def referred(type_num: int, content: bytes) -> Iterator[bytes]:
    """The binary ids that a commit's or a tag's header names: its tree, parents or object."""
    wanted = (b"object",) if type_num == TAG else (b"tree", b"parent")
    for line in content.split(b"\n\n", 1)[0].split(b"\n"):
        name, _, value = line.partition(b" ")
        if name not in wanted:
            if name in (b"author", b"tagger"):
                return
            continue
        yield bytes.fromhex(value.decode("ascii"))
