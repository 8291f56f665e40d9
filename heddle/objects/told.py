"""Sizes of promised objects, as remotes said them: kept, so that no session asks for what another one was told.

Owns the one file of them: records that are only ever added to, until there are too many. It is a cache: what is not
in it is asked for again, and what it says counts only as long as an object is not here.
"""

from __future__ import annotations

import fcntl
import os
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from heddle.atomic import write_all, write_file

KEPT = 200_000
"""Records at most; of more, the older ones and those of objects that are here are dropped."""
_SIZE, _CRC = 8, 4


class ToldSizes:
    """The lengths of objects in bytes, by binary id; safe for several threads and processes.

    Args:
        path: the file; it need not exist, nor its directory.
        id_length: bytes of an id.
    """

    def __init__(self, path: Path, id_length: int) -> None:
        self._path = path
        self._id_length = id_length
        self._length = id_length + _SIZE + _CRC
        self._known: dict[bytes, int] = {}
        self._read: tuple[int, int] = (0, 0)
        self._lock = threading.Lock()

    def get(self, raw_id: bytes) -> int | None:
        """What was said of an object, here or by another process; None: nothing."""
        self.unknown([raw_id])
        return self._known.get(raw_id)

    def unknown(self, raw_ids: Sequence[bytes]) -> list[bytes]:
        """Those of some objects of which nothing was said."""
        if not all(raw_id in self._known for raw_id in raw_ids):
            with self._lock, suppress(OSError):
                self._read_on()
        return [raw_id for raw_id in raw_ids if raw_id not in self._known]

    def add(self, told: Mapping[bytes, int], is_here: Callable[[bytes], bool]) -> None:
        """Remember what was said; a disk that takes no more of it is no error.

        Args:
            is_here: whether an object (binary id) has come meanwhile, so that nobody needs this of it any more.
        """
        if not told:
            return
        with self._lock:
            self._known |= told
            with suppress(OSError):
                with self._alone() as fd:
                    end = os.fstat(fd).st_size
                    end -= end % self._length  # behind what a write that broke off has left
                    write_all(fd, self._records(told), end)
                self._read_on()
            if max(len(self._known), self._read[1] // self._length) > KEPT:
                self._drop(is_here)

    def _read_on(self) -> None:
        """Take in what was added since the last look."""
        try:
            file = open(self._path, "rb")  # noqa: SIM115 - closed below
        except FileNotFoundError:
            return
        with file:
            found, done = os.fstat(file.fileno()), self._read[1]
            if found.st_ino != self._read[0] or found.st_size < done:
                done = 0
            file.seek(done)
            content = file.read()
        whole = len(content) - len(content) % self._length
        for at in range(0, whole, self._length):
            record = content[at : at + self._length]
            if int.from_bytes(record[-_CRC:], "little") == zlib.crc32(record[:-_CRC]):
                size = record[self._id_length : -_CRC]
                self._known[record[: self._id_length]] = int.from_bytes(size, "little")
        self._read = found.st_ino, done + whole

    def _drop(self, is_here: Callable[[bytes], bool]) -> None:
        """Forget half, in the file as well."""
        needed = [each for each in self._known.items() if not is_here(each[0])]
        self._known = dict(needed[-KEPT // 2 :])
        with suppress(OSError), self._alone():
            write_file(self._path, self._records(self._known))

    def _records(self, sizes: Mapping[bytes, int]) -> bytes:
        plain = [raw_id + size.to_bytes(_SIZE, "little") for raw_id, size in sizes.items()]
        return b"".join(each + zlib.crc32(each).to_bytes(_CRC, "little") for each in plain)

    @contextmanager
    def _alone(self) -> Iterator[int]:
        """The file, open for writing, while no other process writes it."""
        self._path.parent.mkdir(exist_ok=True)
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                yield fd
            finally:
                os.close(fd)
        finally:
            os.close(directory)
