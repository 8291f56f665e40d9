"""Large objects of git's packs and loose files, inflated once, into temporary files without a name.

Owns how parts of an object are read that is one deflated stream, or a chain of deltas, without inflating it at every
read and without holding it in memory. Where the streams come from is ``gitdir.py``'s and ``keptpack.py``'s.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from heddle.atomic import write_all
from heddle.objects.gitformat import new_hash
from heddle.objects.gitpack import Damaged, Delta

if TYPE_CHECKING:
    from hashlib import _Hash

    from heddle.objects.gitpack import PackEntries

_SPOOLS = 8
"""How many large objects are kept inflated at a time."""
_SPOOLED_BYTES = 2 << 30
"""Their bytes on disk, except that the one in use is kept however large it is."""


class Spools:
    """The temporary files of the large objects that were read last; safe for several threads.

    Args:
        directory: where they are; None, or a directory that can't be written: the system's place.

    Attributes:
        directory: as given.
    """

    def __init__(self, directory: Path | None) -> None:
        self.directory = directory
        self._spools: OrderedDict[bytes, Spool] = OrderedDict()
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Forget them all; those in use go when their readers are done."""
        with self._lock:
            self._spools.clear()

    def get(
        self, raw_id: bytes, kind: int, size: int, pieces: Callable[[], Iterator[bytes]]
    ) -> Spool:
        """The file of an object, made if need be; those unused for longest go.

        Args:
            raw_id: its id, which its content is checked against.
            kind: its type number.
            size: its length in bytes.
            pieces: gives its content, one piece after the other.
        """
        with self._lock:
            found = self._spools.get(raw_id)
            if found is None or found.broken:
                checked = hashed(pieces(), new_hash(len(raw_id), kind, size), raw_id)
                found = self._spools[raw_id] = Spool(checked, size, self.directory)
            self._spools.move_to_end(raw_id)
            while len(self._spools) > 1 and (
                len(self._spools) > _SPOOLS
                or sum(each.size for each in self._spools.values()) > _SPOOLED_BYTES
            ):
                self._spools.popitem(last=False)
        return found


class Spool:
    """A large blob in a temporary file, inflated as far as it has been read.

    Args:
        pieces: its content, one after the other.
        size: its length in bytes.
        directory: where to put the file.

    Attributes:
        size: as given.
        broken: whether it can't be filled any further.
    """

    def __init__(self, pieces: Iterator[bytes], size: int, directory: Path | None) -> None:
        self.size = size
        self.broken = False
        self._pieces = pieces
        self._filled = 0
        self._fd = _temporary_file(directory)
        self._lock = threading.RLock()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            os.close(self._fd)

    def read_at(self, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes from ``offset``."""
        end = min(offset + size, self.size)
        if self._filled < end:
            with self._lock:
                self._fill(end)
        return os.pread(self._fd, max(0, end - offset), offset)

    def fill(self) -> None:
        """Inflate all of it."""
        with self._lock:
            self._fill(self.size)

    def _fill(self, end: int) -> None:
        try:
            while self._filled < end:
                piece = next(self._pieces, None)
                if piece is None or self._filled + len(piece) > self.size:
                    raise Damaged("it is not as long as it says")
                write_all(self._fd, piece, self._filled)
                self._filled += len(piece)
            if end == self.size and next(self._pieces, None):
                raise Damaged("it is longer than it says")
        except BaseException:
            self.broken = (
                True  # a piece may be lost: what came after it would be in the wrong place
            )
            raise


def stream(
    pack: PackEntries,
    offset: int,
    read_elsewhere: Callable[[bytes, int, int], bytes],
    directory: Path | None,
) -> Iterator[bytes]:
    """The content of a packed object, piece by piece, whatever deltas it is made by.

    At most two of the chain's objects are on disk at a time, and none in memory.

    Args:
        offset: of its entry.
        read_elsewhere: reads of a base that is not in the pack: binary id, offset, size.
        directory: as for `Spools`.

    Raises:
        Damaged: an entry that it needs is.
    """
    chain = pack.chain(offset)
    last = chain.pop()
    source: Callable[[int, int], bytes]
    if isinstance(last.base, bytes):
        source = partial(read_elsewhere, last.base)
        chain.append(last)
    elif not chain:
        yield from pack.pieces(last)
        return
    else:
        source = Spool(pack.pieces(last), last.size, directory).read_at
    while len(chain) > 1:
        delta = Delta(pack.inflate(chain.pop()))
        spool = Spool(delta.stream(source), delta.size, directory)
        spool.fill()
        source = spool.read_at
    yield from Delta(pack.inflate(chain.pop())).stream(source)


def hashed(pieces: Iterator[bytes], digest: _Hash, raw_id: bytes) -> Iterator[bytes]:
    """A stream that has to be an object; it is found to be another one only at its end."""
    for piece in pieces:
        digest.update(piece)
        yield piece
    if digest.digest() != raw_id:
        raise Damaged("its content has another id")


def _temporary_file(directory: Path | None) -> int:
    """A descriptor of a file without a name, in a directory if that can be written."""
    from tempfile import TemporaryFile

    for place in (directory, None):
        try:
            with TemporaryFile(dir=place, buffering=0) as file:
                return os.dup(file.fileno())
        except OSError:
            if place is None:
                raise
    raise AssertionError
