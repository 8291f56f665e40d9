"""The object store as dulwich's own store class, for dulwich's walkers, differs and transports.

Owns what that class adds to ``ObjectStore``: taking in git packs (their objects are stored in ours) and giving out
objects for one. It is a module of its own because importing it loads dulwich.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Set
from tempfile import SpooledTemporaryFile
from typing import TYPE_CHECKING, BinaryIO, cast

from dulwich.errors import ApplyDeltaError, ChecksumMismatch, ObjectFormatException
from dulwich.object_format import get_object_format
from dulwich.object_store import MissingObjectFinder, PackCapableObjectStore, PackInputTooLarge
from dulwich.objects import ObjectID, RawObjectID, ShaFile
from dulwich.pack import PackStreamCopier, full_unpacked_object, write_pack_data

from heddle.objects.incoming import take_pack

if TYPE_CHECKING:
    from dulwich.pack import Pack, UnpackedObject

    from heddle.objects.store import ObjectStore

DAMAGE = (
    ApplyDeltaError,
    ChecksumMismatch,
    ObjectFormatException,
    AssertionError,
    EOFError,
    IndexError,
    OSError,
    ValueError,
    zlib.error,
)
"""What dulwich raises for bytes that are not what git wrote."""
_SPOOL_BYTES = 16 << 20
"""An incoming git pack longer than this is kept in a temporary file."""


class DulwichStore(PackCapableObjectStore):
    """The object store behind dulwich's class; see the methods of that class."""

    def __init__(self, store: ObjectStore) -> None:
        super().__init__(object_format=get_object_format(store.format_name))
        self._store = store

    def contains_loose(self, sha: ObjectID) -> bool:
        return self._store.contains_loose(sha)

    def contains_packed(self, sha: ObjectID | RawObjectID) -> bool:
        return self._store.contains_packed(sha)

    def __contains__(self, sha1: ObjectID) -> bool:
        return sha1 in self._store

    @property
    def packs(self) -> list[Pack]:
        return []

    def get_raw(self, name: RawObjectID | ObjectID) -> tuple[int, bytes]:
        return self._store.get_raw(name)

    def __getitem__(self, sha1: ObjectID | RawObjectID) -> ShaFile:
        return self._store[sha1]

    def __iter__(self) -> Iterator[ObjectID]:
        return iter(self._store)

    def iter_prefix(self, prefix: bytes) -> Iterator[ObjectID]:
        return self._store.iter_prefix(prefix)

    def close(self) -> None:
        self._store.close()

    # Taking in

    def add_object(self, obj: ShaFile) -> None:
        self._store.add_object(obj)

    def add_objects(
        self,
        objects: Iterable[tuple[ShaFile, str | None]],
        progress: Callable[..., None] | None = None,
    ) -> None:
        self._store.add_objects(objects)

    def add_pack(self) -> tuple[BinaryIO, Callable[[], None], Callable[[], None]]:
        """Take in a git pack: (file to write it to, what stores its objects, what drops it)."""
        file = cast(BinaryIO, SpooledTemporaryFile(max_size=_SPOOL_BYTES))  # noqa: SIM115

        def commit() -> None:
            with file:
                if file.tell() > 0:
                    self._store_pack(file)

        return file, commit, file.close

    def _store_pack(self, file: BinaryIO) -> None:
        """Store the objects of a git pack; deltas may refer to objects that are here already."""
        with self._store.writer() as writer:
            take_pack(file, self._store, writer)
            writer.commit()

    def add_pack_data(
        self,
        count: int,
        unpacked_objects: Iterator[UnpackedObject],
        progress: Callable[..., None] | None = None,
    ) -> None:
        """Take in objects that dulwich has unpacked, deltas among them."""
        file, commit, abort = self.add_pack()
        try:
            write_pack_data(
                file.write,
                unpacked_objects,
                num_records=count,
                progress=progress,
                compression_level=0,
                object_format=self.object_format,
            )
        except BaseException:
            abort()
            raise
        commit()

    def add_thin_pack(
        self,
        read_all: Callable[[int], bytes],
        read_some: Callable[[int], bytes] | None,
        progress: Callable[..., None] | None = None,
        *,
        max_input_size: int | None = None,
    ) -> None:
        """Take in a git pack from a stream; its deltas may be against objects that are here already.

        Args:
            read_all: reads exactly so many bytes.
            read_some: reads at least one byte and at most so many.
            progress: dulwich's progress callback.
            max_input_size: bytes to accept at most; None or 0 for any number.

        Raises:
            PackInputTooLarge: there were more.
        """
        if max_input_size:
            budget = _Budget(max_input_size)
            read_all = budget.limiting(read_all)
            read_some = budget.limiting(read_some) if read_some else None
        file, commit, abort = self.add_pack()
        try:
            copier = PackStreamCopier(self.object_format.hash_func, read_all, read_some, file)
            copier.verify(progress=progress)
        except BaseException:
            abort()
            raise
        commit()

    # Giving out

    def generate_pack_data(
        self,
        have: Iterable[ObjectID],
        want: Iterable[ObjectID],
        *,
        shallow: Set[ObjectID] | None = None,
        progress: Callable[..., None] | None = None,
        ofs_delta: bool = True,
    ) -> tuple[int, Iterator[UnpackedObject]]:
        """What somebody who has ``have`` needs for ``want``: (number, objects one after the other)."""
        finder = MissingObjectFinder(
            self, haves=have, wants=want, shallow=shallow, progress=progress
        )
        ids = [object_id for object_id, _ in finder]
        self._store.fetch(ids)  # of a lazy clone, in one request
        return len(ids), (full_unpacked_object(self[object_id]) for object_id in ids)


class _Budget:
    """A number of bytes that several read functions together may return."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._left = limit_bytes

    def limiting(self, read: Callable[[int], bytes]) -> Callable[[int], bytes]:
        def limited(size: int) -> bytes:
            data = read(size)
            self._left -= len(data)
            if self._left < 0:
                raise PackInputTooLarge(f"the pack is longer than {self._limit} bytes")
            return data

        return limited
