"""Trees of which all that is below them is known at once, from whoever knows it quickest.

Owns who that is: another index of git's, as far as it holds the trees; or stock git, which lists one in one answer,
with the sizes of its files.
"""

from __future__ import annotations

from binascii import unhexlify
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from heddle.mount.lower import is_safe_name
from heddle.repo import cachetree, gitindex
from heddle.repo.cachetree import File

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.objects.store import ObjectStore

_TREE = b"040000"


class Held:
    """Trees and all that is below them. Made by `by_index` and `by_git`.

    Of a tree in which a name is not shown nothing is held, nor of those that it is in.

    Args:
        files: of all of them, in the order of an index.
        trees: the binary id and the number of files of each directory, by its path with a slash behind it.
        sizes: of those of them that are known, in bytes, by binary id.

    Attributes:
        files, sizes: as given.
    """

    def __init__(
        self,
        files: list[File],
        trees: dict[bytes, tuple[bytes, int]],
        sizes: dict[bytes, int],
    ) -> None:
        self.files = files
        self.sizes = sizes
        self._trees = trees
        self._first: dict[bytes, int] = {b"": 0}
        last = b""
        for number, (path, _, _) in enumerate(files):
            end = path.rfind(b"/") + 1
            above = path[:end]
            if above != last:
                last = above
                self._enter(above, number)
            if (path[end : end + 1] == b"." or len(path) - end > 255) and not is_safe_name(
                path[end:]
            ):
                self._forget(above)

    def _enter(self, directory: bytes, number: int) -> None:
        while directory not in self._first:
            self._first[directory] = number
            above = _above(directory)
            if directory not in self._trees or not is_safe_name(directory[len(above) : -1]):
                self._forget(directory)  # a name with a slash looks like a directory
            directory = above

    def _forget(self, directory: bytes) -> None:
        self._trees.pop(directory, None)
        while directory:
            directory = _above(directory)
            self._trees.pop(directory, None)

    def __len__(self) -> int:
        """How many trees there are."""
        return len(self._trees)

    def id(self, directory: bytes) -> bytes | None:
        """The binary id of the tree that is held for a directory.

        Args:
            directory: its path with a slash behind it; empty for the root.
        """
        found = self._trees.get(directory)
        return None if found is None else found[0]

    def below(self, directory: bytes) -> Sequence[File]:
        """All files below a directory whose tree is held."""
        first = self._first.get(directory, 0)
        return self.files[first : first + self._trees[directory][1]]


def by_index(index: Path, id_length: int) -> Held | None:
    """What an index of git's holds; None: nothing. See ``cachetree.read``."""
    found = cachetree.read(index, id_length)
    return None if found is None else Held(*found, {})


def by_git(store: ObjectStore, tree: ObjectID) -> Held | None:
    """What stock git says of a tree; None where it can't."""
    lines = store.list_tree(tree)
    if not lines:
        return None
    files: list[File] = []
    ids = {b"": unhexlify(tree)}
    sizes: dict[bytes, int] = {}
    for line in lines:
        said, _, path = line.partition(b"\t")
        digits, _, id, size = said.split()
        if digits == _TREE:
            ids[path + b"/"] = unhexlify(id)
            continue
        raw_id = unhexlify(id)
        if size.isdigit():
            sizes[raw_id] = int(size)
        mode = gitindex.git_mode(int(digits, 8)).to_bytes(4, "big")
        files.append((path, mode, gitindex.behind_stat(raw_id, path)))
    return Held(files, _counted(ids, files), sizes)


def _counted(ids: dict[bytes, bytes], files: Iterable[File]) -> dict[bytes, tuple[bytes, int]]:
    """Trees with the number of files below each; without those that are empty, or hold an empty one."""
    counts = Counter(path[: path.rfind(b"/") + 1] for path, _, _ in files)
    for directory in sorted(ids, key=len, reverse=True):
        if directory:
            counts[_above(directory)] += counts[directory]
    for directory in [each for each in ids if not counts[each]]:
        while directory:
            counts[directory] = 0
            directory = _above(directory)
        counts[directory] = 0
    return {each: (id, counts[each]) for each, id in ids.items() if counts[each]}


def _above(directory: bytes) -> bytes:
    """The directory that one is in, with the slash behind it."""
    return directory[: directory.rfind(b"/", 0, -1) + 1]
