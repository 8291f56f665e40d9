"""A mount's view as real files in a directory.

Owns writing below one directory and nowhere else: every component is opened by descriptor without following a symbolic
link, a file appears under its name only when it is whole, and what was there stays unless the caller said otherwise.
What is read from is ``sources.py``'s.
"""

from __future__ import annotations

import errno
import itertools
import os
import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from heddle.errors import CannotCreate, DataError, PathNotFound, StorageError, UsageError
from heddle.mount.sources import Entry, Source, Vanished
from heddle.repo.changes import normalised, within
from heddle.repo.directories import OPEN_DIRECTORY, Blocked, Directories

Progress = Callable[[int, int], None]

CONFLICTS = ("fail", "overwrite", "rename")
"""What to do where something is already."""
_AHEAD = 8
"""Files for each thread that may wait to be written."""
_SHOWN = 5
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT, errno.ENOSYS)
_NO_LINK = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOENT, errno.EMLINK, errno.EXDEV, errno.ENOSYS)
_KINDS = {stat.S_IFIFO: "a fifo", stat.S_IFSOCK: "a socket"}


class DestinationConflict(DataError):
    """Something is where a file has to go."""

    kind = "conflict"


@dataclass(frozen=True, slots=True)
class Skipped:
    """A path that could not become a file, and why."""

    path: bytes
    why: str


@dataclass(frozen=True, slots=True)
class Renamed:
    """A path that was written under another name, because its own was taken."""

    path: bytes
    to: bytes


@dataclass(frozen=True, slots=True)
class Written:
    """What was written.

    Attributes:
        files: how many files and symbolic links.
        bytes: in the files.
        skipped: what is not written: fifos, sockets, devices, and what a live mount lost meanwhile.
        renamed: what has another name there.
        duration_ms: how long it took.
    """

    files: int
    bytes: int
    skipped: tuple[Skipped, ...]
    renamed: tuple[Renamed, ...]
    duration_ms: float


def materialize(
    source: Source,
    destination: Path,
    *,
    paths: Sequence[bytes] = (),
    on_conflict: str = "fail",
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Written:
    """Write what a view shows into a directory, as ordinary files.

    Interrupted, it leaves whole files only. With ``fail``, nothing is written when anything is in the way.

    Args:
        source: the view.
        destination: a directory; made if it is missing.
        paths: only these, and what lies below them.
        on_conflict: where something is already: ``fail``; ``overwrite`` it, unless a directory would have to go for
            a file; or ``rename`` what is written, to ``NAME~1``.
        jobs: threads that decode and write; None: as many as there are processors.
        progress: called with files written and files in all.

    Raises:
        UsageError: no such ``on_conflict``; fewer than one job.
        PathNotFound: the view has no such path.
        DestinationConflict: something is in the way.
        CannotCreate: the destination can't be made or written to.
        StorageError: reading or writing failed; files that were whole stay.
    """
    if on_conflict not in CONFLICTS:
        raise UsageError(f"no way to settle conflicts is called {on_conflict!r}")
    if jobs is not None and jobs < 1:
        raise UsageError("--jobs has to be at least 1")
    started = time.monotonic()
    wanted = normalised(paths)
    _require(source, wanted)
    root = _Directory(_opened(destination))
    with _errors(destination):
        total = 0
        if progress is not None or os.listdir(root.fd):
            total = _survey(source, root.path, wanted, on_conflict)
        run = _Run(source, root, wanted, on_conflict, jobs or len(os.sched_getaffinity(0)))
        run.run(progress, total)
    return Written(
        run.files,
        run.bytes,
        tuple(run.skipped),
        tuple(run.renamed),
        (time.monotonic() - started) * 1000,
    )


def _opened(destination: Path) -> int:
    try:
        destination.mkdir(parents=True, exist_ok=True)
        return os.open(destination, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise CannotCreate(f"can't write to {destination}: {error.strerror}") from error


def _require(source: Source, wanted: Sequence[bytes]) -> None:
    """Check that the view has every path that was asked for."""
    for path in wanted:
        directory = source.root
        for name in filter(None, path.split(b"/")):
            entries = source.list(directory) if directory is not None else iter(())
            found = next((each for each in entries if each.name == name), None)
            if found is None:
                raise PathNotFound(f"there is no {os.fsdecode(path)!r} to write")
            directory = found.directory


def _selected(path: bytes, entry: Entry, wanted: Sequence[bytes]) -> bool:
    if not wanted or within(path, wanted):
        return True
    return entry.directory is not None and any(each.startswith(path + b"/") for each in wanted)


# looking before anything is written


def _survey(source: Source, root: Path, wanted: Sequence[bytes], on_conflict: str) -> int:
    """Count what will be written.

    Raises:
        DestinationConflict: something is in the way that may not be touched.
    """
    count = 0
    conflicts: list[bytes] = []
    with Directories(root) as there:
        todo = [(b"", source.root)]
        while todo:
            above, directory = todo.pop()
            fd = _existing(there, above)
            for entry in source.list(directory):
                path = above + b"/" + entry.name if above else entry.name
                if not _selected(path, entry, wanted):
                    continue
                if entry.directory is not None:
                    todo.append((path, entry.directory))
                else:
                    count += 1
                if fd is not None and _is_in_the_way(fd, entry, on_conflict):
                    conflicts.append(path)
    if conflicts:
        raise _conflict(conflicts, on_conflict)
    return count


def _existing(there: Directories, path: bytes) -> int | None:
    try:
        return there.open(path)
    except Blocked:  # was found when its parent was looked at
        return None


def _is_in_the_way(parent: int, entry: Entry, on_conflict: str) -> bool:
    try:
        mode = os.stat(entry.name, dir_fd=parent, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return False
    if on_conflict == "rename":
        return False
    if entry.directory is not None:
        return on_conflict == "fail" and not stat.S_ISDIR(mode)
    return on_conflict == "fail" or stat.S_ISDIR(mode)


def _conflict(paths: Sequence[bytes], on_conflict: str) -> DestinationConflict:
    shown = ", ".join(os.fsdecode(path) for path in paths[:_SHOWN])
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    if on_conflict == "fail":
        hint = "--on-conflict overwrite, or rename"
    else:
        hint = "move the directories away, or use --on-conflict rename"
    return DestinationConflict(f"already there: {shown}{more}", hint=hint)


# writing


class _Directory:
    """A directory that is written to, open while something may still be written there."""

    def __init__(self, fd: int, is_new: bool = False) -> None:
        self.fd = fd
        self.is_new = is_new

    def __del__(self) -> None:
        os.close(self.fd)

    @property
    def path(self) -> Path:
        """A path to it that holds whatever it is called meanwhile."""
        return Path(f"/proc/self/fd/{self.fd}")


class _Run:
    """One materialization.

    Files are decoded and written by threads; directories are made, and what only one thread may read is written, by
    the caller's.
    """

    def __init__(
        self,
        source: Source,
        root: _Directory,
        wanted: Sequence[bytes],
        on_conflict: str,
        jobs: int,
    ) -> None:
        self._source = source
        self._root = root
        self._wanted = wanted
        self._on_conflict = on_conflict
        self._jobs = jobs
        self._room = threading.Semaphore(jobs * _AHEAD)
        self._lock = threading.Lock()
        self._failure: BaseException | None = None
        self._stopped = False
        self._times: list[tuple[bytes, int]] = []
        self.files = 0
        self.bytes = 0
        self.skipped: list[Skipped] = []
        self.renamed: list[Renamed] = []

    def run(self, progress: Progress | None, total: int) -> None:
        pool = ThreadPoolExecutor(self._jobs, "materialize")
        try:
            for _ in self._walk(pool):
                if self._failure is not None:
                    break
                if progress is not None:
                    progress(self.files, total)
        except BaseException:
            self._stopped = True
            raise
        finally:
            pool.shutdown(cancel_futures=self._stopped)
        if self._failure is not None:
            raise self._failure
        if progress is not None:
            progress(self.files, total)
        self._set_times()

    def _walk(self, pool: ThreadPoolExecutor) -> Iterator[None]:
        """Hand out everything; stops for a moment at each entry."""
        todo = [_Place(b"", b"", self._source.root, self._root)]
        while todo:
            place = todo.pop()
            directory, where = place.made(self)
            for entry in self._source.list(place.directory):
                path = place.path + b"/" + entry.name if place.path else entry.name
                if not _selected(path, entry, self._wanted):
                    continue
                if entry.directory is not None:
                    todo.append(_Place(path, where, entry.directory, directory, entry))
                else:
                    self._leaf(pool, directory, entry, path)
                yield

    def _leaf(
        self, pool: ThreadPoolExecutor, parent: _Directory, entry: Entry, path: bytes
    ) -> None:
        if entry.pieces is not None and entry.anywhere:
            self._room.acquire()
            pool.submit(self._file, parent, entry, path).add_done_callback(self._done)
        elif entry.pieces is not None:
            self._file(parent, entry, path)
        elif stat.S_ISLNK(entry.mode):
            self._link(parent, entry, path)
        else:
            kind = _KINDS.get(stat.S_IFMT(entry.mode), "a device")
            self.skipped.append(Skipped(path, kind))

    def _done(self, job: Future[None]) -> None:
        self._room.release()
        error = None if job.cancelled() else job.exception()
        if error is not None:
            self._failure = self._failure or error
            self._stopped = True

    def _note(self, path: bytes, entry: Entry, name: bytes) -> None:
        if name != entry.name:
            self.renamed.append(Renamed(path, path[: -len(entry.name)] + name))

    def _names(self, name: bytes) -> Iterator[bytes]:
        """The names to try."""
        yield name
        if self._on_conflict == "rename":
            for number in itertools.count(1):
                yield b"%b~%d" % (name, number)

    # directories

    def directory(self, parent: _Directory, entry: Entry, path: bytes) -> tuple[bytes, _Directory]:
        """Make a directory, or take the one that is there; returns the name that it has, too."""
        for name in self._names(entry.name):
            made = self._made(parent, name, entry.mode)
            if made is None and self._on_conflict == "overwrite":
                os.unlink(name, dir_fd=parent.fd)
                made = self._made(parent, name, entry.mode)
            if made is not None:
                self._note(path, entry, name)
                return name, made
        raise _conflict([path], self._on_conflict)

    @staticmethod
    def _made(parent: _Directory, name: bytes, mode: int) -> _Directory | None:
        """The directory of a name, made if need be; None where something else is."""
        is_new = True
        try:
            os.mkdir(name, mode & 0o777 | stat.S_IRWXU, dir_fd=parent.fd)
        except FileExistsError:
            is_new = False
        try:
            return _Directory(os.open(name, OPEN_DIRECTORY, dir_fd=parent.fd), is_new)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                return None
            raise

    def set_time_later(self, place: bytes, mtime_ns: int) -> None:
        """Remember the time of a new directory, which what is written into it would change."""
        self._times.append((place, mtime_ns))

    def _set_times(self) -> None:
        with Directories(self._root.path) as there:
            for place, mtime_ns in sorted(self._times, reverse=True):
                with suppress(Blocked):
                    fd = there.open(place)
                    if fd is not None:
                        os.utime(fd, ns=(mtime_ns, mtime_ns))

    # files and links

    def _file(self, parent: _Directory, entry: Entry, path: bytes) -> None:
        try:
            self._copy(parent, entry, path)
        except Vanished:
            self.skipped.append(Skipped(path, "it was removed meanwhile"))

    def _copy(self, parent: _Directory, entry: Entry, path: bytes) -> None:
        assert entry.pieces is not None
        size = 0
        with _NewFile(parent.fd, entry.mode & 0o777) as file:
            for piece in entry.pieces():
                if self._stopped:
                    return
                file.write(piece)
                size += len(piece)
            os.utime(file.fd, ns=(entry.mtime_ns, entry.mtime_ns))
            name = self._put(parent.fd, entry, path, file.link_to)
        with self._lock:
            self.files += 1
            self.bytes += size
            self._note(path, entry, name)

    def _link(self, parent: _Directory, entry: Entry, path: bytes) -> None:
        def put(name: bytes) -> None:
            os.symlink(entry.target, name, dir_fd=parent.fd)

        name = self._put(parent.fd, entry, path, put)
        times = (entry.mtime_ns, entry.mtime_ns)
        os.utime(name, ns=times, dir_fd=parent.fd, follow_symlinks=False)
        with self._lock:
            self.files += 1
            self._note(path, entry, name)

    def _put(self, parent: int, entry: Entry, path: bytes, put: Callable[[bytes], None]) -> bytes:
        """Give something its name in one step; returns the name that it got."""
        for name in self._names(entry.name):
            try:
                put(name)
                return name
            except FileExistsError:
                if self._on_conflict != "overwrite":
                    continue
            with _temporary_name(parent) as temporary:
                put(temporary)
                try:
                    os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
                except IsADirectoryError:
                    break
            return name
        raise _conflict([path], self._on_conflict)


@dataclass(frozen=True, slots=True)
class _Place:
    """A directory to be written.

    Attributes:
        path: its path in the view.
        above: the path of its parent in the destination.
        directory: what the source lists.
        parent: where it is made; for the top, the destination itself.
        entry: how the source calls it; None for the top.
    """

    path: bytes
    above: bytes
    directory: object
    parent: _Directory
    entry: Entry | None = None

    def made(self, run: _Run) -> tuple[_Directory, bytes]:
        """Make it; returns it and its path in the destination."""
        if self.entry is None:
            return self.parent, b""
        name, made = run.directory(self.parent, self.entry, self.path)
        place = self.above + b"/" + name if self.above else name
        if made.is_new:
            run.set_time_later(place, self.entry.mtime_ns)
        return made, place


class _NewFile:
    """A file without a name, which a crash takes along; where there are none, one with a temporary name.

    Args:
        parent: descriptor of the directory that it will be in.
        mode: its permission bits, before the umask.
    """

    def __init__(self, parent: int, mode: int) -> None:
        self._parent = parent
        self._temporary: bytes | None = None
        try:
            self.fd = os.open(b".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, mode, dir_fd=parent)
        except OSError as error:
            if error.errno not in _NO_TMPFILE:
                raise
            self._temporary = _random_name()
            self.fd = os.open(self._temporary, _NEW, mode, dir_fd=parent)

    def __enter__(self) -> _NewFile:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self.fd)
        if self._temporary is not None:
            with suppress(FileNotFoundError):
                os.unlink(self._temporary, dir_fd=self._parent)

    def write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self.fd, data) :]

    def link_to(self, name: bytes) -> None:
        """Give it a name.

        Raises:
            FileExistsError: the name is taken.
        """
        if self._temporary is None:
            os.link(b"/proc/self/fd/%d" % self.fd, name, dst_dir_fd=self._parent)
            return
        try:
            os.link(self._temporary, name, src_dir_fd=self._parent, dst_dir_fd=self._parent)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            self._rename_to(name)

    def _rename_to(self, name: bytes) -> None:
        """The next best on a file system without hard links: nobody may take the name between two steps."""
        assert self._temporary is not None
        try:
            os.stat(name, dir_fd=self._parent, follow_symlinks=False)
        except FileNotFoundError:
            os.rename(self._temporary, name, src_dir_fd=self._parent, dst_dir_fd=self._parent)
        else:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)


_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def _random_name() -> bytes:
    return b".heddle-%b" % secrets.token_hex(8).encode()


@contextmanager
def _temporary_name(parent: int) -> Iterator[bytes]:
    """A name for one step; whatever still has it at the end is removed."""
    name = _random_name()
    try:
        yield name
    finally:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=parent)


@contextmanager
def _errors(destination: Path) -> Iterator[None]:
    try:
        yield
    except EOFError:
        raise StorageError("a file became shorter while it was read", hint="run it again") from None
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            raise  # the mount that is read from died: the error says how to recover it
        where = f"{os.fsdecode(error.filename)} in " if isinstance(error.filename, bytes) else ""
        message = f"{where}{destination}: {error.strerror}"
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG):
            raise CannotCreate(message) from error
        raise StorageError(message, hint="files that are there are whole") from error
