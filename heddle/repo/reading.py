"""Files of the working directory, read whole as they were at one moment.

Owns the check that nobody wrote to a file while it was read, and reading many files at once. Where the bytes go is
the caller's: a pack that is being written, or a hash.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from heddle.objects.gitformat import BLOB
from heddle.objects.layout import WHOLE_LIMIT
from heddle.repo.statcache import Stat, is_settled, stat_of

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

_PAUSES_S = (0.001, 0.005, 0.02, 0.1)
"""How long to wait for a writer before each further try, in seconds."""
_STROKE_S = 0.02
"""How long a writer's thread may stand still within one write(2) and not be noticed, in seconds."""
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_ALONE = 16
_Item = TypeVar("_Item")


class NotReadable(Exception):
    """A path whose content could not be had; the text says why."""


class Taken(NamedTuple):
    """A file's or a link's content at one moment.

    Attributes:
        id: the blob's id.
        stat: its stat at that moment.
        settled: whether any later change will show in the stat.
    """

    id: ObjectID
    stat: Stat
    settled: bool


class BlobSink(Protocol):
    """Where bytes become a blob; ``PackWriter`` is one."""

    def add_blob(self, content: bytes) -> ObjectID: ...
    def add_blob_from(self, read: Callable[[int], bytes], size: int) -> ObjectID: ...


class Hasher:
    """A sink that only tells the id.

    Args:
        id_length: of an id, in bytes: 20 or 32.
    """

    def __init__(self, id_length: int) -> None:
        self._id_length = id_length

    def add_blob(self, content: bytes) -> ObjectID:
        """The id of these bytes as a blob."""
        return self._id(len(content), iter([content]))

    def add_blob_from(self, read: Callable[[int], bytes], size: int) -> ObjectID:
        """The id of what ``read`` gives.

        Raises:
            ChangedWhileRead: it is not ``size`` bytes.
        """
        from heddle.objects.pack import ChangedWhileRead

        counted = 0

        def pieces() -> Iterator[bytes]:
            nonlocal counted
            while piece := read(1 << 20):
                counted += len(piece)
                yield piece

        id = self._id(size, pieces())
        if counted != size:
            raise ChangedWhileRead("a file became shorter or longer while it was read")
        return id

    def _id(self, size: int, pieces: Iterator[bytes]) -> ObjectID:
        from heddle.objects.gitformat import new_hash

        digest = new_hash(self._id_length, BLOB, size)
        for piece in pieces:
            digest.update(piece)
        return digest.hexdigest().encode()  # type: ignore[return-value]


def take(host: bytes, sink: BlobSink, *, is_link: bool = False) -> Taken:
    """Give a file's bytes, or a link's target, to a sink.

    The stat before and after reading must agree. Since a file can change twice within one tick of the clock
    behind its times, a file changed just now is read twice and must give the same bytes both times; with a pause in
    between if somebody has it open for writing, since the times move when a write(2) begins, not when it ends.

    Args:
        host: the path; its last component is not followed.
        sink: gets the bytes, possibly more than once.
        is_link: what it was when it was last looked at.

    Raises:
        FileNotFoundError: it is gone.
        NotReadable: it kept changing, may not be read, or is neither file nor link any more.
        StorageError: from the sink.
    """
    for pause_s in (*_PAUSES_S, None):
        try:
            taken = _take_link(host, sink) if is_link else _take_file(host, sink)
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.EINVAL) or pause_s is None:
                raise NotReadable(os.strerror(error.errno or 0)) from error
            is_link = error.errno == errno.ELOOP
            continue
        if taken is not None:
            return taken
        if pause_s is not None:
            time.sleep(pause_s)
    raise NotReadable("it kept changing while it was read")


def _take_link(host: bytes, sink: BlobSink) -> Taken | None:
    read_at_ns = time.time_ns()
    before = stat_of(os.lstat(host))
    target = os.readlink(host)
    if stat_of(os.lstat(host)) != before:
        return None
    return Taken(sink.add_blob(target), before, is_settled(before, read_at_ns))


def _take_file(host: bytes, sink: BlobSink) -> Taken | None:
    """One try; None when somebody wrote to it meanwhile."""
    read_at_ns = time.time_ns()
    fd = os.open(host, _FLAGS)
    try:
        before = stat_of(os.fstat(fd))
        if not stat.S_ISREG(before[0]):
            raise NotReadable("it became something else while it was read")
        settled = is_settled(before, read_at_ns)
        id = _read_into(sink, fd, before[1])
        if id is not None and not settled:
            if _has_writer(fd):
                time.sleep(_STROKE_S)
            os.lseek(fd, 0, os.SEEK_SET)
            id = id if _read_into(sink, fd, before[1]) == id else None
        if id is None or stat_of(os.fstat(fd)) != before:
            return None
        return Taken(id, before, settled)
    finally:
        os.close(fd)


def _has_writer(fd: int) -> bool:
    """Whether somebody has a file open for writing, as far as the kernel tells us: then it refuses a lease on it.

    fcntl(2), F_SETLEASE: for the file's owner only, and not on every file system. Whoever opens it in the moment
    in which we have the lease makes the kernel send us a signal, which by default would end the process; SIGURG does
    nothing.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def _read_into(sink: BlobSink, fd: int, size: int) -> ObjectID | None:
    """Give ``size`` bytes to the sink; None when there are more or fewer."""
    if size <= WHOLE_LIMIT:
        content = os.read(fd, size + 1)
        while len(content) < size and (more := os.read(fd, size + 1 - len(content))):
            content += more
        return sink.add_blob(content) if len(content) == size else None
    from heddle.objects.pack import ChangedWhileRead  # costs a status that needs it not at all

    try:
        return sink.add_blob_from(lambda count: os.read(fd, count), size)
    except ChangedWhileRead:
        return None


def for_each(items: Sequence[_Item], work: Callable[[_Item], None]) -> None:
    """Call ``work`` for every item, on all processors where there are enough items.

    Raises:
        BaseException: the first that ``work`` raised; what others had begun is finished, no more.
    """
    threads = len(os.sched_getaffinity(0)) if len(items) > _ALONE else 0
    numbers = itertools.count()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            while not failures and (number := next(numbers)) < len(items):
                work(items[number])
        except BaseException as failure:
            failures.append(failure)

    helpers = [threading.Thread(target=run, name="heddle-read") for _ in range(threads)]
    for helper in helpers:
        helper.start()
    if not helpers:
        run()
    for helper in helpers:
        helper.join()
    if failures:
        raise failures[0]
