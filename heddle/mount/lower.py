"""The lower layer: a tree in the object store, read lazily and never written.

Owns what may be kept in memory of it (decoded directories by entry count, file bytes by a byte budget) and which
names from objects are safe to show. Knows nothing of the upper, of nodes or of FUSE.
"""

from __future__ import annotations

import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias

from heddle.errors import CorruptObject, HeddleError, ObjectMissing
from heddle.objects.promised import ObjectNotHere

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

    from dulwich.objects import ObjectID

    from heddle.objects.store import ObjectStore

TreeEntries: TypeAlias = "dict[bytes, tuple[int, ObjectID]]"

GITLINK = 0o160000
FRAME = 1 << 20  # bytes; the store's own frame size, so that a window is one frame
_FRAMES_AHEAD = 2
_COUNTS_KEPT = 10_000  # directories, of 100 bytes each
_SIZES_KEPT = 150_000  # files, of 200 bytes each
_RESERVED = frozenset((b".git", b".heddle"))
_NO_ENTRIES: TreeEntries = {}


def is_safe_name(name: bytes) -> bool:
    """Say whether a name from a tree object may reach a disk or a kernel."""
    if not 0 < len(name) <= 255 or b"/" in name or b"\0" in name:
        return False
    return name[:1] != b"." or (name not in (b".", b"..") and name.lower() not in _RESERVED)


class Lower:
    """Read access to trees and blobs for one mount.

    Args:
        store: the repository's object store.
        object_format: how its ids are made, ``sha1`` or ``sha256``.
        blob_bytes: budget of the cache of file bytes.
        tree_entries: budget of the cache of decoded directories, counted in entries.

    Attributes:
        may_be_promised: the repository is a lazy clone.
        trees_decoded, frames_decoded: structural counts for tests and `heddle mounts -v`.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        object_format: str = "sha1",
        blob_bytes: int = 24 << 20,
        tree_entries: int = 150_000,
    ) -> None:
        self.store = store
        self.object_format = object_format
        self.may_be_promised = store.is_partial
        self.trees_decoded = 0
        self.frames_decoded = 0
        self._trees: OrderedDict[ObjectID, TreeEntries] = OrderedDict()
        self._tree_room = tree_entries
        self._with_hidden: set[ObjectID] = set()  # hardly any
        self._subdirectories: dict[ObjectID, int] = {}  # asked for at every change in a directory
        self._blobs: OrderedDict[tuple[ObjectID, int], bytes] = OrderedDict()
        self._blob_room = blob_bytes
        self._lock = threading.Lock()  # reads of large files come from worker threads
        self._ahead: dict[tuple[ObjectID, int], Future[bytes]] = {}
        self._decoders: ThreadPoolExecutor | None = None
        self._pinned: dict[ObjectID, bytes] = {}
        self._sizes: dict[ObjectID, int] = {}

    def pin(self, blob: ObjectID, content: bytes) -> None:
        """Have a blob without an object store: short bytes that a mount shows of itself."""
        self._pinned[blob] = content

    def entries(self, tree: ObjectID | None) -> TreeEntries:
        """The safe entries of a directory: name to (mode, id). The result must not be changed.

        Raises:
            ObjectMissing, CorruptObject: the tree can't be read.
        """
        if tree is None:
            return _NO_ENTRIES
        with self._lock:
            found = self._trees.get(tree)
            if found is not None:
                self._trees.move_to_end(tree)
                return found
        decoded = self.all_entries(tree)
        found = {name: (mode, oid) for name, mode, oid in decoded if is_safe_name(name)}
        with self._lock:
            self.trees_decoded += 1
            if len(found) < len(decoded):
                self._with_hidden.add(tree)
            self._trees[tree] = found
            self._tree_room -= len(found) + 1
            while self._tree_room < 0 and len(self._trees) > 1:
                self._tree_room += len(self._trees.popitem(last=False)[1]) + 1
        return found

    def hidden_entries(self, tree: ObjectID | None) -> list[tuple[bytes, int, ObjectID]]:
        """The entries that are not shown because their names are not safe; a capture keeps them."""
        self.entries(tree)
        if tree is None or tree not in self._with_hidden:
            return []
        return [entry for entry in self.all_entries(tree) if not is_safe_name(entry[0])]

    def all_entries(self, tree: ObjectID) -> list[tuple[bytes, int, ObjectID]]:
        """The entries of a directory in git's order, those that are not safe too; raises as `entries`."""
        try:
            return self.store.tree_entries(tree)
        except KeyError:
            raise _missing(tree) from None

    def subdirectories(self, tree: ObjectID | None) -> int:
        """How many directories a directory shows, for its link count."""
        if tree is None:
            return 0
        found = self._subdirectories.get(tree)
        if found is None:
            if len(self._subdirectories) >= _COUNTS_KEPT:
                self._subdirectories.clear()
            found = sum(is_directory(mode) for mode, _ in self.entries(tree).values())
            self._subdirectories[tree] = found
        return found

    def keep_counts(self, counts: Mapping[ObjectID, int]) -> None:
        """Remember what `subdirectories` will be asked for."""
        self._subdirectories.update(islice(counts.items(), _COUNTS_KEPT))

    def size(self, blob: ObjectID) -> int:
        """Bytes of a file's content, from the index alone."""
        found = self._sizes.get(blob)
        if found is not None:
            return found
        try:
            return self.store.size(blob)
        except KeyError:
            raise _missing(blob) from None

    def size_if_known(self, blob: ObjectID) -> int | None:
        """As `size`; None for a promised file whose size nobody here knows."""
        try:
            return self.size(blob)
        except ObjectNotHere:
            return None

    def require_size(self, blob: ObjectID, size: int) -> None:
        """Check what a remote said of a file before its content was here: the kernel was told that.

        Raises:
            CorruptObject: it has another size.
        """
        found = self.size(blob)
        if found != size:
            raise CorruptObject(
                f"object {blob.decode()} has {found} bytes, and its remote said {size}",
                hint="unmount and mount again, and tell who runs the remote",
            )

    def is_here(self, blob: ObjectID) -> bool:
        """Say whether a file's content can be read without asking a remote."""
        if not self.may_be_promised or blob in self._pinned:
            return True
        return not self.store.is_promised(blob)

    def learn_sizes(self, blobs: Sequence[ObjectID]) -> Sequence[int | None]:
        """The sizes of many files at once; None: nobody here knows."""
        if self.may_be_promised:
            here = list(map(self.is_here, blobs))
            if not all(here):
                pairs = zip(blobs, here, strict=True)
                return [self._size_or_none(blob) if is_here else None for blob, is_here in pairs]
        try:
            return self.store.sizes(blobs)
        except (KeyError, HeddleError):
            return [self._size_or_none(blob) for blob in blobs]

    @contextmanager
    def asking_sizes(self, raw_ids: Sequence[bytes]) -> Iterator[Callable[[], dict[bytes, int]]]:
        """As ``ObjectStore.asking_sizes``; where files may be promised, none is told."""
        if self.may_be_promised:
            yield dict
            return
        with self.store.asking_sizes(raw_ids) as told:
            yield told

    def keep_sizes(self, sizes: Mapping[ObjectID, int]) -> None:
        """Remember the sizes of files that will be asked for one by one."""
        self._sizes = dict(islice(sizes.items(), _SIZES_KEPT))

    def _size_or_none(self, blob: ObjectID) -> int | None:
        try:
            return self.size(blob)
        except HeddleError:
            return None

    def is_framed(self, blob: ObjectID) -> bool:
        """Say whether a large file's bytes can be read at any offset without what lies before them."""
        return self.is_here(blob) and self.store.is_chunked(blob)

    def is_cheap(self, size: int, blob: ObjectID, offset: int) -> bool:
        """Say whether a read is short enough to be done between two awaits."""
        return size <= 128 << 10 or (blob, offset // FRAME) in self._blobs

    def read(self, blob: ObjectID, offset: int, size: int) -> bytes:
        """Bytes of a file, short at its end. Decodes one frame at a time and keeps it within the budget."""
        pieces = []
        while size > 0:
            window, start = divmod(offset, FRAME)
            frame = self._frame(blob, window)
            piece = frame[start : start + size]
            if not piece:
                break
            pieces.append(piece)
            offset += len(piece)
            size -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def view(self, blob: ObjectID, offset: int, size: int) -> bytes | memoryview:
        """As `read`, without copying what lies in one frame."""
        window, start = divmod(offset, FRAME)
        if start + size <= FRAME:
            return memoryview(self._frame(blob, window))[start : start + size]
        return self.read(blob, offset, size)

    def read_ahead(self, blob: ObjectID, offset: int, size: int) -> None:
        """Start decoding the frames that a sequential reader of a large file will ask for next.

        Args:
            blob: what is being read.
            offset: where the reader is.
            size: of the whole blob.
        """
        window = offset // FRAME
        if window and (blob, window - 1) not in self._blobs:
            return  # not sequential
        for number in range(window + 1, min(window + 1 + _FRAMES_AHEAD, -(-size // FRAME))):
            key = (blob, number)
            if key not in self._blobs and key not in self._ahead:
                if self._decoders is None:
                    from concurrent.futures import ThreadPoolExecutor

                    self._decoders = ThreadPoolExecutor(_FRAMES_AHEAD, "decode")
                self._start_ahead(self._decoders, key)

    def _start_ahead(self, decoders: ThreadPoolExecutor, key: tuple[ObjectID, int]) -> None:
        future = self._ahead[key] = decoders.submit(self._decode, *key)
        # Noted before it can be over: an entry that stayed would hold its frame outside the budget.
        future.add_done_callback(lambda _: self._ahead.pop(key, None))

    def _frame(self, blob: ObjectID, window: int) -> bytes:
        key = (blob, window)
        with self._lock:
            found = self._blobs.get(key)
            if found is not None:
                self._blobs.move_to_end(key)
                return found
        under_way = self._ahead.get(key)
        return self._decode(blob, window) if under_way is None else under_way.result()

    def _decode(self, blob: ObjectID, window: int) -> bytes:
        key = (blob, window)
        if blob in self._pinned:
            return self._pinned[blob]
        try:
            if self.store.is_chunked(blob):
                self._keep(key, found := self.store.read_at(blob, window * FRAME, FRAME))
                return found
            whole = self.store.get_raw(blob)[1]
        except KeyError:
            raise _missing(blob) from None
        if len(whole) <= FRAME:
            self._keep((blob, 0), whole)
            return b"" if window else whole
        for number in range(-(-len(whole) // FRAME)):
            self._keep((blob, number), whole[number * FRAME : (number + 1) * FRAME])
        return whole[window * FRAME : (window + 1) * FRAME]

    def _keep(self, key: tuple[ObjectID, int], frame: bytes) -> None:
        with self._lock:
            self.frames_decoded += 1
            if key not in self._blobs:
                self._blobs[key] = frame
                self._blob_room -= len(frame)
            while self._blob_room < 0 and len(self._blobs) > 1:
                self._blob_room += len(self._blobs.popitem(last=False)[1])

    def close(self) -> None:
        """End the decoding threads."""
        if self._decoders is not None:
            self._decoders.shutdown(cancel_futures=True)

    def drop_caches(self) -> None:
        """Forget all that can be read again."""
        with self._lock:
            self._blob_room += sum(map(len, self._blobs.values()))
            self._blobs.clear()
            self._tree_room += sum(len(entries) + 1 for entries in self._trees.values())
            self._trees.clear()


def subtree(entries: TreeEntries, name: bytes) -> ObjectID | None:
    """The tree of a name that is a directory with one, else None."""
    entry = entries.get(name)
    return entry[1] if entry is not None and stat.S_ISDIR(entry[0]) else None


def is_directory(mode: int) -> bool:
    """A tree entry that is shown as a directory: a tree, or a submodule's empty place."""
    return stat.S_IFMT(mode) in (stat.S_IFDIR, GITLINK)


def _missing(oid: ObjectID) -> ObjectMissing:
    return ObjectMissing(
        f"object {oid.decode('ascii', 'replace')} is in no pack and no alternate",
        hint="heddle fsck",
    )
