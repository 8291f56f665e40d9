"""Files of a directory as git would store them: as they are, or as git converts them.

Owns telling the one from the other, and that a file which git reads is held still as ``reading.py`` holds others. Which
files, and what becomes of them, is the caller's: a capture, a comparison, a switch. Mounts do the same from their
uppers (``mount/converting.py``).
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Container, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Protocol, Self

from heddle.errors import HeddleError
from heddle.repo import conversions
from heddle.repo.conversions import Attributes, Convertible, Kind, Watching, may_become
from heddle.repo.reading import BlobSink, Hasher, NotReadable, Taken, for_each, take
from heddle.repo.statcache import Entry, Stat, is_settled, settles_at, stat_of

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from dulwich.objects import ObjectID

    from heddle.objects.pack import PackWriter
    from heddle.repo.gitclean import Cleaner, Special
    from heddle.repo.gitlink import GitDir
    from heddle.repo.repository import Repository

_TRIES = 5
_LONGEST_WAIT_NS = 2_000_000_000
"""For a file whose change time lies ahead, as after the clock was set back."""


class File(Protocol):
    """A file or a link that may differ from what a tree has there."""

    @property
    def path(self) -> bytes: ...
    @property
    def old(self) -> Entry | None: ...
    @property
    def status(self) -> os.stat_result: ...


class Checkin:
    """Takes files of one directory as git would store them; a context manager.

    Args:
        repo: the repository.
        git: git's things of the directory; None: nothing is converted.
        root: the directory.
        read: the content of an attribute file at a path inside of it, or None.
        writer: where blobs go; None: only their ids are wanted.
        index: git's index of the directory; None: where it is in a checkout.
    """

    def __init__(
        self,
        repo: Repository,
        git: GitDir | None,
        root: Path,
        read: Callable[[bytes], bytes | None],
        writer: PackWriter | None = None,
        *,
        index: Path | None = None,
    ) -> None:
        self._repo = repo
        self._index = index
        self._store = repo.store
        self._git = git
        self._place = root
        self._root = os.fsencode(root) + b"/"
        self._writer = writer
        self._hasher = Hasher(repo.store.id_length)
        self._sink: BlobSink = writer or self._hasher
        self._special: dict[bytes, Special] = {}
        self._asked: set[bytes] = set()
        self._converted: dict[bytes, ObjectID] = {}
        self._attributes: Attributes | None = None
        if git is not None:
            everywhere = conversions.everywhere(git, repo.environment)
            self._attributes = Attributes(read, everywhere=everywhere)

    @cached_property
    def _cleaner(self) -> Cleaner:
        from heddle.repo.gitclean import PLACE, Cleaner

        assert self._git is not None
        return Cleaner(
            self._git,
            self._store,
            environment=self._repo.environment,
            index=self._index or self._git.path / "index",
            place=self._repo.heddle_dir / PLACE,
            root=self._place,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if "_cleaner" in self.__dict__:
            self._cleaner.__exit__(kind, error, traceback)

    # what may happen to a file

    def ask(self, files: Sequence[File]) -> None:
        """Learn what attributes say of files; git is asked only of those that it may do anything to.

        Raises:
            Unavailable: git is not installed.
            StorageError: git can't tell.
        """
        wanted = [file.path for file in self._to_ask(files)]
        if wanted:
            self._special.update(self._cleaner.special(wanted))
            self._asked.update(wanted)

    def _to_ask(self, files: Sequence[File]) -> list[File]:
        """The files of which git has to be asked what attributes say."""
        attributes = self._attributes
        if attributes is None:
            return []
        return [
            file
            for file in files
            if _is_file(file)
            and file.path not in self._asked
            and attributes.kind(file.path) == Kind.ANYTHING
        ]

    def may_become(self, file: File, size: int) -> bool:
        """Whether a file may be stored as a blob of some size; ``ask`` comes first."""
        return may_become(self._kind(file), file.status.st_size, size)

    def _kind(self, file: File) -> Kind:
        if self._attributes is None or not _is_file(file):
            return Kind.NOTHING
        if file.path in self._special:
            return Kind.ANYTHING
        return self._attributes.lines(file.path)

    # taking

    def take_all(
        self,
        files: Sequence[File],
        done: Callable[[File, Taken], None],
        failed: Callable[[File, Exception], None],
    ) -> None:
        """Take files, many at once.

        Args:
            files: which.
            done: gets each with what it is stored as; called from several threads.
            failed: gets each that can't be had, with a FileNotFoundError or NotReadable, and each that can't be
                converted, with a HeddleError: what that raises ends it all.

        Raises:
            StorageError: from the writer.
        """
        unasked: set[bytes] = set()
        try:
            self.ask(files)
        except HeddleError as error:
            cause = error
            unasked = {file.path for file in self._to_ask(files)}
        later: list[File] = []

        def one(file: File) -> None:
            try:
                taken = self._taken(file, unasked)
            except Convertible:
                if file.path in unasked:
                    failed(file, cause)
                else:
                    later.append(file)
            except (FileNotFoundError, NotReadable) as error:
                failed(file, error)
            else:
                done(file, taken)

        for_each(files, one)
        if later:
            self._convert(sorted(later, key=lambda file: file.path), done, failed)

    def _taken(self, file: File, unasked: Container[bytes]) -> Taken:
        """A file that git stores as it is; of those in ``unasked`` nobody knows that.

        Raises:
            Convertible: it may not.
            FileNotFoundError, NotReadable: as ``take``.
        """
        host = self._root + file.path
        special = self._special.get(file.path)
        kind = self._kind(file)
        is_link = stat.S_ISLNK(file.status.st_mode)
        try:
            if file.path in unasked:
                raise Convertible
            if special is not None and not self._is_stored_form(host, special):
                raise Convertible
            sink = self._sink
            if special is None and kind != Kind.NOTHING:
                sink = Watching(sink, kind)
            return take(host, sink, is_link=is_link)
        except Convertible:
            same = self._as_recorded(file, host)
            if same is None:
                raise
            return same

    def _is_stored_form(self, host: bytes, special: Special) -> bool:
        from heddle.repo.gitclean import is_stored_form

        try:
            return is_stored_form(host, special)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise NotReadable(os.strerror(error.errno or 0)) from error

    def _as_recorded(self, file: File, host: bytes) -> Taken | None:
        """A file that holds just what is recorded, as a switch writes it: that is not converted."""
        if file.old is None or self._store.size(file.old[1]) != file.status.st_size:
            return None
        taken = take(host, self._hasher)
        return taken if taken.id == file.old[1] else None

    # converting

    def _convert(
        self,
        files: list[File],
        done: Callable[[File, Taken], None],
        failed: Callable[[File, Exception], None],
    ) -> None:
        """Take files as git converts them, all in one run of it; those that change meanwhile again."""
        for _ in range(_TRIES):
            read_at_ns, before = self._hold_still(files, failed)
            files = [file for file in files if file.path in before]
            files, ids = self._cleaned(files, failed)
            again = []
            for file in files:
                try:
                    taken = self._result(file, ids.get(file.path), before[file.path], read_at_ns)
                except (FileNotFoundError, NotReadable) as error:
                    failed(file, error)
                    continue
                if taken is None:
                    again.append(file)
                else:
                    done(file, taken)
            files = again
            if not files:
                return
        _fail(files, NotReadable("it kept changing while it was read"), failed)

    def _hold_still(
        self, files: Sequence[File], failed: Callable[[File, Exception], None]
    ) -> tuple[int, dict[bytes, Stat]]:
        """Wait until every later change shows in a stat; the time, and the stats."""
        changed = [_changed_ns(self._root + file.path) for file in files]
        wait_ns = max(map(settles_at, changed)) - time.time_ns()
        time.sleep(max(0, min(wait_ns, _LONGEST_WAIT_NS)) / 1e9)
        read_at_ns = time.time_ns()
        stats = {}
        for file in files:
            try:
                stats[file.path] = _stat(self._root + file.path)
            except (FileNotFoundError, NotReadable) as error:
                failed(file, error)
        return read_at_ns, stats

    def _cleaned(
        self, files: list[File], failed: Callable[[File, Exception], None]
    ) -> tuple[list[File], dict[bytes, ObjectID]]:
        """What git makes of files, without those that it can't convert."""
        from heddle.repo.gitclean import NotConverted, failing_alike

        while files:
            recorded = {file.path: file.old for file in files}
            try:
                return files, self._cleaner.clean([*recorded], recorded)
            except NotConverted as error:
                bad = failing_alike(error.path, self._special)
                _fail([file for file in files if file.path in bad], error, failed)
                files = [file for file in files if file.path not in bad]
            except HeddleError as error:
                _fail(files, error, failed)
                files = []
        return [], {}

    def _result(
        self, file: File, id: ObjectID | None, before: Stat, read_at_ns: int
    ) -> Taken | None:
        """What a file is stored as; None when it changed while git read it."""
        host = self._root + file.path
        if stat_of(os.lstat(host)) != before:
            return None
        if id is None:  # git records no file of such a name
            return take(host, self._sink)
        self._converted[file.path] = id
        if self._writer is not None:
            self._cleaner.store(id, self._writer)
        return Taken(id, before, is_settled(before, read_at_ns))

    def reading(
        self, files: Sequence[File], read: Callable[[bytes], bytes]
    ) -> Callable[[bytes], bytes]:
        """What reads files as they are stored, for a comparison.

        Args:
            files: which are going to be read.
            read: reads one as it is; a symbolic link too.

        Raises:
            NotConverted, Unavailable, StorageError: by what is returned, about the file that it reads.
        """
        errors: dict[bytes, Exception] = {}
        attributes = self._attributes
        wanted = [
            file
            for file in files
            if attributes is not None and attributes.kind(file.path) != Kind.NOTHING
        ]
        self.take_all(
            wanted,
            lambda file, taken: None,
            lambda file, error: errors.update({file.path: error}),
        )

        def read_stored(path: bytes) -> bytes:
            error, id = errors.get(path), self._converted.get(path)
            if isinstance(error, HeddleError):
                raise error
            if id is None:
                return read(path)
            return self._cleaner.read(id)

        return read_stored


def _fail(
    files: Sequence[File], error: Exception, failed: Callable[[File, Exception], None]
) -> None:
    for file in files:
        failed(file, error)


def _is_file(file: File) -> bool:
    """Whether it is a regular file, and does not stand for a link where there are none (``core.symlinks``)."""
    return stat.S_ISREG(file.status.st_mode) and not (
        file.old is not None and stat.S_ISLNK(file.old[0])
    )


def _changed_ns(host: bytes) -> int:
    try:
        return os.lstat(host).st_ctime_ns
    except FileNotFoundError:
        return 0


def _stat(host: bytes) -> Stat:
    """The stat of a file that git is going to read; raises as ``take``."""
    try:
        fd = os.open(host, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise NotReadable(os.strerror(error.errno or 0)) from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise NotReadable("it became something else while it was read")
        return stat_of(status)
    finally:
        os.close(fd)
