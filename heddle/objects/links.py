"""What arriving objects refer to, noted as they come by.

Owns whether a pack is whole in itself: whether all that its commits, trees and tags name is in it or was here before.
Where that is so nothing has to be read again to know that names may be moved; where it is not, a walk has to tell
(``git/pack.py``), since a pack may hold more than what is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet

from heddle.objects.gitformat import BLOB, ID_LENGTHS, TAG, TREE

_ENTRY = {
    length: re.compile(rb"[0-7]+ [^\0/]+\0.{%d}" % length, re.DOTALL)
    for length in ID_LENGTHS.values()
}
_DIRECTORY = (b"40000 ", b"040000 ")
_GITLINK = b"160000 "


class Links:
    """The ids (binary) that some objects refer to.

    Args:
        id_length: bytes of an id.
    """

    def __init__(self, id_length: int) -> None:
        self._id_length = id_length
        self._pattern = _ENTRY[id_length]
        self._entries: set[bytes] = (
            set()
        )  # of trees, as they are: most come again in the next version
        self._others: set[bytes] = set()
        self._is_sound = True

    def follow(self, type_num: int, content: bytes) -> None:
        """Note what an object refers to."""
        if type_num == BLOB:
            return
        if type_num == TREE:
            entries = self._pattern.findall(content)
            # The pattern skips what it does not understand: then the lengths do not add up.
            self._is_sound &= sum(map(len, entries)) == len(content)
            self._entries.update(entries)
            return
        try:
            self._others.update(referred(type_num, content))
        except ValueError:
            self._is_sound = False

    def missing(self, came: AbstractSet[bytes], has: Callable[[bytes], bool]) -> list[bytes] | None:
        """The blobs that are referred to and are nowhere.

        Args:
            came: the objects whose links were noted.
            has: whether an object was here before, with all that it refers to.

        Returns:
            None when something else than blobs is missing, or an object can't be read.
        """
        if not self._is_sound or not all(id in came or has(id) for id in self._others):
            return None
        blobs: dict[bytes, None] = {}
        for entry in self._entries:
            id = entry[-self._id_length :]
            if id in came or entry.startswith(_GITLINK) or has(id):
                continue
            if entry.startswith(_DIRECTORY):
                return None
            blobs[id] = None
        return list(blobs)


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
