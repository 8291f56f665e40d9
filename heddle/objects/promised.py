"""Promised objects: blobs that are not here and that a remote has said it holds (a partial clone's).

Owns the lists of their ids on disk, and the claims by which threads and processes that need the same blobs have each
fetched once. Who fetches them is a `Provider` given from above; when that is asked is ``store.py``'s to say.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from heddle import faults
from heddle.atomic import fsync_directory, write_file
from heddle.errors import CorruptObject, HeddleError, StorageError

if TYPE_CHECKING:
    from heddle.objects.check import Problem

MAGIC = b"HEDPROM1"
_HEADER = len(MAGIC) + 16  # magic, id length, zero, number of ids
_CHECKSUM = 32
_SUFFIX = ".ids"
_FAILED = b"!"  # no claim of whole ids begins so and is one byte longer
_POLL_S = 0.01
RELIST_HINT = "heddle fetch, which lists anew what is not here"

Progress = Callable[[int, int], None]


class Provider(Protocol):
    """What can bring promised objects."""

    patience_s: float
    """How long somebody else's fetch is waited for before the same is fetched here too, in seconds."""

    def fetch(self, raw_ids: Sequence[bytes], progress: Progress | None = None) -> None:
        """Store these objects, durably and verified; raises a HeddleError that names one of them if any is not."""

    def sizes(self, raw_ids: Sequence[bytes]) -> dict[bytes, int]:
        """The lengths in bytes that the remote says, of as many as it says."""


class ObjectNotHere(StorageError):
    """An object that a remote has promised is needed where nobody can wait for it, or nobody can bring it.

    Attributes:
        raw_id: the object; empty where the error came from another process.
    """

    kind = "object_not_here"
    raw_id = b""

    @classmethod
    def of(cls, raw_id: bytes) -> Self:
        """The error about this object."""
        error = cls(
            f"object {raw_id.hex()} is promised by a remote and not here yet",
            hint="heddle prefetch",
        )
        error.raw_id = raw_id
        return error


class Promises:
    """The ids of all promised blobs, in lists that are only ever added to.

    A list is one file: the magic, the length of an id and the number of ids, the ids in order, and a SHA-256 of all
    that, which also names the file. An object that arrives stays in its list: what is here is looked for first.

    Args:
        path: ``.heddle/objects/promised``; where it is missing nothing is promised.
        id_length: bytes of an id.
    """

    def __init__(self, path: Path, id_length: int) -> None:
        self.path = path
        self._id_length = id_length
        self._listed: int | None = None
        self._lists: dict[str, _List] = {}
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        """Whether anything was ever promised here."""
        return self.path.is_dir()

    def holds(self, raw_id: bytes) -> bool:
        """Say whether an object is promised.

        Raises:
            CorruptObject: a list is damaged.
            StorageError: one can't be read.
        """
        return not self.unlisted([raw_id])

    def unlisted(self, raw_ids: Iterable[bytes]) -> list[bytes]:
        """Those objects that are not promised; raises as ``holds``."""
        lists = self._refreshed()
        return [raw_id for raw_id in raw_ids if not any(raw_id in each for each in lists)]

    def _refreshed(self) -> list[_List]:
        try:
            modified = os.stat(self.path).st_mtime_ns
        except FileNotFoundError:
            return []
        with self._lock:
            if modified != self._listed:
                names = {name for name in os.listdir(self.path) if name.endswith(_SUFFIX)}
                kept = {name: each for name, each in self._lists.items() if name in names}
                for name in names - kept.keys():
                    kept[name] = _List(self.path / name, self._id_length)
                self._lists = kept
                # A list added within the clock's tick would not show in the time: look again then.
                settled = modified < time.time_ns() - 50_000_000
                self._listed = modified if settled else None
            return list(self._lists.values())

    def add(self, raw_ids: Iterable[bytes]) -> None:
        """Remember that objects are promised; durable on return.

        Raises:
            StorageError: the disk is full or failing.
        """
        ids = sorted(set(raw_ids))
        if not ids:
            return
        size = self._id_length.to_bytes(4, "little") + bytes(4) + len(ids).to_bytes(8, "little")
        content = MAGIC + size + b"".join(ids)
        digest = hashlib.sha256(content)
        try:
            if not self.path.is_dir():
                self.path.mkdir(exist_ok=True)
                fsync_directory(self.path.parent)
            faults.reach("promised.before-list")
            name = digest.hexdigest() + _SUFFIX
            write_file(self.path / name, content + digest.digest(), mode=0o444)
        except OSError as error:
            raise StorageError(f"writing in {self.path} failed: {error.strerror}") from error

    def verify(self) -> Iterator[Problem]:
        """Check every list against its checksum."""
        from heddle.objects.check import Problem

        for path in self._damaged():
            yield Problem(
                "promised", f"the list of promised objects {path} is damaged", RELIST_HINT
            )

    def put_damaged_aside(self) -> None:
        """Rename damaged lists, so that they are not read any more; what they promised was listed anew."""
        for path in self._damaged():
            path.rename(path.with_suffix(".damaged"))

    def _damaged(self) -> Iterator[Path]:
        for path in sorted(self.path.glob(f"*{_SUFFIX}")):
            content = path.read_bytes()
            digest = hashlib.sha256(content[:-_CHECKSUM])
            if content[-_CHECKSUM:] != digest.digest() or path.stem != digest.hexdigest():
                yield path

    # Claims

    @contextmanager
    def claimed(self, raw_ids: Iterable[bytes], *, heed_others: bool = True) -> Iterator[Claim]:
        """Say, while the block runs, that some objects are being fetched here; those that others fetch are left out.

        Args:
            raw_ids: binary ids.
            heed_others: otherwise all are fetched here, whoever does it too.

        Raises:
            StorageError: the claim can't be written.
        """
        try:
            claim = self._take_claim(set(raw_ids), heed_others)
        except OSError as error:
            raise StorageError(f"writing in {self.path} failed: {error.strerror}") from error
        try:
            yield claim
        except HeddleError as error:
            claim.say_failed(error)
            raise
        finally:
            claim.close()

    def _take_claim(self, wanted: set[bytes], heed_others: bool) -> Claim:
        directory = self.path / "claims"
        directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            others: list[int] = []
            for path in directory.iterdir() if heed_others else ():
                held, fd = _held_by_another(path, self._id_length)
                if fd >= 0 and wanted & held:
                    wanted = wanted - held
                    others.append(fd)
                elif fd >= 0:
                    os.close(fd)
            return Claim(directory, sorted(wanted), others)
        finally:
            os.close(lock)


class Claim:
    """A file with ids, locked while they are being fetched; a file that is not locked is a dead process's.

    Attributes:
        mine: the binary ids that are to be fetched here.
    """

    _count = 0

    def __init__(self, directory: Path, mine: list[bytes], others: list[int]) -> None:
        self.mine = mine
        self._others = others
        self._path: Path | None = None
        if not mine:
            return
        Claim._count += 1  # under the directory's lock
        self._path = directory / f"{os.getpid()}-{threading.get_ident()}-{Claim._count}"
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        os.write(self._fd, b"".join(mine))

    def wait_for_others(self, patience_s: float) -> bool:
        """Wait until those who fetch the rest are done, whatever came of it.

        Returns:
            Whether they are; a process that was stopped (Ctrl-Z) never is.

        Raises:
            StorageError: somebody's fetch failed; says why.
        """
        self._release()
        deadline = time.monotonic() + patience_s
        for fd in self._others:
            while not _is_free(fd):
                if time.monotonic() > deadline:
                    return False
                time.sleep(_POLL_S)
            said = os.pread(fd, 4096, 0)
            if said.startswith(_FAILED):
                raise StorageError(said[1:].decode(errors="replace"))
        return True

    def say_failed(self, error: HeddleError) -> None:
        """Tell those who wait for this fetch why it failed, so that not each of them waits for the server too."""
        if self._path is not None:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, _FAILED + error.message.encode(errors="replace")[:4000], 0)

    def _release(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._fd)
            self._path = None

    def close(self) -> None:
        """The fetch is over."""
        self._release()
        for fd in self._others:
            os.close(fd)
        self._others = []


def _held_by_another(path: Path, id_length: int) -> tuple[set[bytes], int]:
    """The ids of a live claim, with a descriptor to wait on; one whose owner is gone is removed."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return set(), -1
    if _is_free(fd):
        path.unlink(missing_ok=True)
        os.close(fd)
        return set(), -1
    with open(fd, "rb", closefd=False) as file:
        content = file.read()
    return {content[at : at + id_length] for at in range(0, len(content), id_length)}, fd


def _is_free(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class _List:
    """One list of ids, mapped."""

    def __init__(self, path: Path, id_length: int) -> None:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise StorageError(f"reading {path} failed: {error.strerror}") from error
        self._length = id_length
        self._count = int.from_bytes(content[16:24], "little")
        expected = _HEADER + self._count * id_length + _CHECKSUM
        length = int.from_bytes(content[8:12], "little")
        if content[:8] != MAGIC or length != id_length or len(content) != expected:
            raise CorruptObject(f"the list of promised objects {path} is damaged", hint=RELIST_HINT)
        self._content = content

    def __contains__(self, raw_id: bytes) -> bool:
        low, high = 0, self._count
        while low < high:
            middle = (low + high) // 2
            at = _HEADER + middle * self._length
            found = self._content[at : at + self._length]
            if found == raw_id:
                return True
            if found < raw_id:
                low = middle + 1
            else:
                high = middle
        return False
