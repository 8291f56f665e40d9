"""What can be reached from some objects, and which of it are versions of one thing.

Owns the walk over histories, newest first, and the chains that it finds: all that a path ever held, in the order in
which it would be undone. What is stored how is ``repack.py``'s; which objects a repository names is one layer up.
"""

from __future__ import annotations

import heapq
import re
from binascii import unhexlify
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Protocol

from heddle.errors import CorruptObject, ObjectMissing
from heddle.objects.gitformat import BLOB, COMMIT, TAG, TREE, raw_tree_entries, to_hex

if TYPE_CHECKING:

    class Objects(Protocol):
        """What the walk asks of the object store."""

        id_length: int

        def kind(self, object_id: bytes) -> int: ...
        def get_raw(self, name: bytes) -> tuple[int, bytes]: ...


_DIRECTORIES = {b"40000", b"040000"}
_GITLINK = b"160000"
_REPORT_EVERY = 1024
_USUAL_COMMIT = re.compile(
    rb"tree ((?:[0-9a-f]{40}){1,2})\n((?:parent (?:[0-9a-f]{40}){1,2}\n)*)"
    rb"author [^\n]*\ncommitter [^\n]* ([0-9]{1,18}) [^ \n]*\n"
)


class Chain:
    """Versions of one thing, newest first.

    Attributes:
        type_num: git's type number of all of them.
        path: where the newest was.
        head: the version that is to be read without any other, if there is one.
        ids: the others, newest first.
    """

    __slots__ = ("head", "ids", "path", "type_num")

    def __init__(self, type_num: int, path: bytes) -> None:
        self.type_num = type_num
        self.path = path
        self.head: bytes | None = None
        self.ids: list[bytes] = []


class Walk:
    """A walk over everything that some objects lead to; each object is visited once, whoever asks for it again.

    What only an alternate has is where the walk ends: whoever has an object has what it leads to. Only the trees of
    the states that the walk begins with are followed everywhere.

    Args:
        store: where the objects are.
        progress: called with the number of objects seen so far.
        is_ours: whether an object (binary id) is in a pack of the store's own.
        is_shallow: whether a commit's parents were left out on purpose.

    Attributes:
        seen: the binary ids of all that was reached; gitlinks are not.
        whole: those that are to be read without any other, each once.
    """

    def __init__(
        self,
        store: Objects,
        *,
        progress: Callable[[int], None] | None = None,
        is_ours: Callable[[bytes], bool] = lambda raw_id: True,
        is_shallow: Callable[[bytes], bool] = lambda raw_id: False,
    ) -> None:
        self._store = store
        self._progress = progress
        self._is_ours = is_ours
        self._is_shallow = is_shallow
        self._reported = 0
        self.seen: set[bytes] = set()
        self.whole: list[bytes] = []
        self._chains: dict[bytes, Chain] = {}
        self._chain_of: dict[bytes, Chain] = {}
        self._names: dict[bytes, set[bytes]] = {}
        self._history = Chain(COMMIT, b"")
        self._tags = Chain(TAG, b"")

    def take_chains(self) -> list[Chain]:
        """The chains found since the last call; those found from now on are others."""
        paths = {id(chain): chain for chain in self._chains.values()}
        found = [self._history, self._tags, *paths.values()]
        self._chains, self._chain_of, self._names = {}, {}, {}
        self._history, self._tags = Chain(COMMIT, b""), Chain(TAG, b"")
        return found

    def run(self, tips: Iterable[bytes], *, heads: Iterable[bytes] = ()) -> None:
        """Visit everything that some objects lead to.

        Args:
            tips: binary ids of any objects.
            heads: binary ids of commits whose trees are to be read without any other object.

        Raises:
            ObjectMissing: a commit, tree or tag is nowhere.
            CorruptObject: one of them is not sound.
        """
        for head in heads:
            tree = self._commit_links(head)[0]
            self._visit_tree(tree, whole=True, everywhere=True)
        self._visit_history(set(self._commits_of(tips)))

    def _commits_of(self, tips: Iterable[bytes]) -> Iterator[bytes]:
        """The commits among some objects and behind tags; what is no commit is visited."""
        for tip in dict.fromkeys(tips):
            raw_id = tip
            while raw_id not in self.seen:
                kind = self._kind(raw_id)
                if kind == COMMIT:
                    yield raw_id
                    break
                if kind == TREE:
                    self._visit_tree(raw_id, everywhere=True)
                    break
                self.seen.add(raw_id)
                if kind == BLOB:
                    self._add(b"", raw_id, BLOB, whole=False)
                    break
                self._tags.ids.append(raw_id)
                raw_id = next(_named(self._get(raw_id, TAG), b"object "))

    def _kind(self, raw_id: bytes) -> int:
        try:
            return self._store.kind(raw_id)
        except KeyError as error:
            raise _missing(raw_id) from error

    def _get(self, raw_id: bytes, type_num: int) -> bytes:
        try:
            found, content = self._store.get_raw(raw_id)
        except KeyError as error:
            raise _missing(raw_id) from error
        if found != type_num:
            raise CorruptObject(f"object {to_hex(raw_id).decode()} is not what refers to it says")
        return content

    # Commits

    def _visit_history(self, tips: set[bytes]) -> None:
        frontier: list[tuple[int, int, bytes, bytes, list[bytes]]] = []

        def reach(raw_id: bytes) -> None:
            if raw_id not in self.seen:
                self.seen.add(raw_id)
                tree, parents, time_s = self._commit_links(raw_id)
                heapq.heappush(frontier, (-time_s, len(self.seen), raw_id, tree, parents))

        for tip in sorted(tips):
            reach(tip)
        while frontier:
            _, _, raw_id, tree, parents = heapq.heappop(frontier)
            self._history.ids.append(raw_id)
            self._visit_tree(tree, everywhere=raw_id in tips)
            self._report()
            if self._is_ours(raw_id):
                for parent in parents:
                    if not self._is_absent(parent, raw_id):
                        reach(parent)

    def _is_absent(self, parent: bytes, child: bytes) -> bool:
        """Whether a shallow clone left the parent out on purpose."""
        return self._is_shallow(child) and not self._is_ours(parent)

    def _commit_links(self, raw_id: bytes) -> tuple[bytes, list[bytes], int]:
        """A commit's tree, parents and time in seconds."""
        content = self._get(raw_id, COMMIT)
        usual = _USUAL_COMMIT.match(content)
        if usual is not None:
            tree, parents, time_s = usual.groups()
            return (
                unhexlify(tree),
                [unhexlify(parent) for parent in parents.split()[1::2]],
                int(time_s),
            )
        try:
            return (
                next(_named(content, b"tree ")),
                list(_named(content, b"parent ")),
                _time_of(content),
            )
        except (StopIteration, ValueError) as error:
            message = f"object {to_hex(raw_id).decode()} is not a sound commit"
            raise CorruptObject(message) from error

    # Trees

    def _visit_tree(self, root: bytes, *, whole: bool = False, everywhere: bool = False) -> None:
        """Visit the trees and blobs below a root; ``everywhere``: also below trees that only an alternate has."""
        if root in self.seen:
            return
        self.seen.add(root)
        pending = [(root, b"")]
        while pending:
            tree, path = pending.pop()
            self._add(path + b"/", tree, TREE, whole=whole)
            if not (everywhere or self._is_ours(tree)):
                continue
            self._visit_entries(tree, path, pending, whole=whole)

    def _visit_entries(
        self, tree: bytes, path: bytes, pending: list[tuple[bytes, bytes]], *, whole: bool
    ) -> None:
        """Visit a tree's entries that were not seen; its directories are added to ``pending``."""
        entries = raw_tree_entries(self._get(tree, TREE), self._store.id_length)
        if entries is None:
            raise CorruptObject(f"object {to_hex(tree).decode()} is not a sound tree")
        names = self._names.setdefault(path, set())
        seen = self.seen
        for mode, name, child in entries:
            if child in seen:
                if name not in names:
                    names.add(name)
                    self._follow(path + name, child)
                continue
            if mode == _GITLINK:
                continue
            seen.add(child)
            names.add(name)
            if mode in _DIRECTORIES:
                pending.append((child, path + name + b"/"))
            else:
                self._add(path + name, child, BLOB, whole=whole)

    # Chains

    def _add(self, path: bytes, raw_id: bytes, type_num: int, *, whole: bool) -> None:
        chain = self._chains.get(path)
        if chain is None:
            chain = self._chains[path] = Chain(type_num, path)
        if type_num == BLOB:
            self._chain_of[raw_id] = chain
        if not whole:
            chain.ids.append(raw_id)
            return
        self.whole.append(raw_id)
        if chain.head is None:
            chain.head = raw_id

    def _follow(self, path: bytes, raw_id: bytes) -> None:
        """A path that turns up with a version of another one: it is where that was before, or a copy."""
        chain = self._chain_of.get(raw_id)
        if chain is not None:
            self._chains.setdefault(path, chain)

    def _report(self) -> None:
        if self._progress is not None and len(self.seen) - self._reported >= _REPORT_EVERY:
            self._reported = len(self.seen)
            self._progress(self._reported)


def _named(content: bytes, word: bytes) -> Iterator[bytes]:
    """The binary ids after a word at the beginning of a commit or tag."""
    for line in content.split(b"\n"):
        if line.startswith(word):
            yield bytes.fromhex(line[len(word) :].decode("ascii"))
        elif not line or line.startswith((b"author ", b"type ")):
            return


def _time_of(content: bytes) -> int:
    """The committer's time of a commit in seconds; 0 where there is none that can be read."""
    _, found, rest = content.partition(b"\ncommitter ")
    words = rest.partition(b"\n")[0].rsplit(b" ", 2) if found else []
    try:
        return int(words[1])
    except (IndexError, ValueError):
        return 0


def _missing(raw_id: bytes) -> ObjectMissing:
    message = f"object {to_hex(raw_id).decode()} is in no pack and in no alternate"
    return ObjectMissing(message, hint="heddle fsck")
