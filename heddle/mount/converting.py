"""Changed files of an upper, read and told what they are stored as, while the view need not stand still.

Owns which of them go through git: it gets a copy of their bytes, in a directory that has the view's attribute files and
otherwise, for filters that are programs of the repository, links to what the mount shows. So git needs no mount, and no
filter waits for the session's loop. What git may do to a file is told by ``repo/conversions.py``, git is run by
``repo/gitclean.py``, and whether a file was written to meanwhile is for the caller to find out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from heddle.errors import Busy, HeddleError
from heddle.mount.lower import Lower
from heddle.mount.partial import Reader
from heddle.mount.snapshot import Unknown, hash_file, pieces, same_file, shown_bytes, store_file
from heddle.mount.upper import Damaged
from heddle.mount.view import Known
from heddle.repo.conversions import NAME, Convertible, Kind, watched
from heddle.repo.gitclean import (
    Cleaner,
    NotConverted,
    Special,
    failing_alike,
    is_stored_form,
)

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.objects.pack import PackWriter


class Settled(NamedTuple):
    """What a file is stored as.

    Attributes:
        file: the file.
        blob: as that.
        cleaned: its size, if it has other bytes than the file.
        at_path: that holds where the file is, and says nothing of its bytes elsewhere.
    """

    file: Unknown
    blob: ObjectID
    cleaned: int | None = None
    at_path: bool = False

    def added_to(self, known: Known, epoch: int) -> Known:
        """What is known of the file, with this."""
        if not self.at_path:
            return known._replace(blob=self.blob)
        place = {(self.file.path, epoch): (self.blob, self.cleaned)}
        return known._replace(places={**known.places, **place})


class Settling:
    """Reads files by their path on disk, in any thread; those that move or change meanwhile are passed over.

    Args:
        upper: path of the upper directory.
        lower: where the bytes are that a file does not have.
        writer: stores what is read; None: only ids are wanted.
        cleaner: git, with a directory of its own for the files; None: nothing is converted.
        attributes: the view's attribute files, by the path of their directory.
        mountpoint: where the view is mounted, if it is.
        strict: a file that git can't convert is an error; else it is passed over.
    """

    def __init__(
        self,
        upper: bytes,
        lower: Lower,
        writer: PackWriter | None,
        cleaner: Cleaner | None,
        *,
        attributes: Mapping[bytes, bytes],
        mountpoint: Path | None,
        strict: bool,
    ) -> None:
        self._upper = upper
        self._lower = lower
        self._writer = writer
        self._cleaner = cleaner
        self._attributes = attributes
        self._mountpoint = mountpoint
        self._strict = strict
        self._special: dict[bytes, Special] = {}
        self.plain: set[bytes] = set()

    def settle(self, files: Sequence[Unknown]) -> Iterator[Settled]:
        """What each is stored as.

        Raises:
            NotConverted, Unavailable: about git, if ``strict``.
        """
        if self._cleaner is not None:
            files = self._asked(self._cleaner, files)
        later = []
        for file in files:
            with _opened(self._upper, file) as fd:
                if fd < 0:
                    continue
                settled = self._settled(file, fd)
                if settled is None:
                    later.append(file)
                elif same_file(os.fstat(fd), file.status):
                    yield settled
        if later and self._cleaner is not None:
            yield from self._converted(self._cleaner, later)

    def _asked(self, cleaner: Cleaner, files: Sequence[Unknown]) -> Sequence[Unknown]:
        """Learn what attributes say of files; returns those that can be gone on with."""
        wanted = [file.path for file in files if file.kind == Kind.ANYTHING]
        if not wanted:
            return files
        try:
            self._put_attributes(cleaner)
            self._special = cleaner.special(wanted)
        except HeddleError:
            if self._strict:
                raise
            return [file for file in files if file.kind != Kind.ANYTHING]
        self.plain = {path for path in wanted if path not in self._special}
        return files

    def _put_attributes(self, cleaner: Cleaner) -> None:
        for directory, content in self._attributes.items():
            cleaner.put(directory + b"/" + NAME if directory else NAME, [content])

    def _settled(self, file: Unknown, fd: int) -> Settled | None:
        """An open file; None if it is for git to say, which has a copy then."""
        special = self._special.get(file.path)
        if special is None:
            try:
                read = watched(shown_bytes(self._lower, fd), file.lines)
                at_path = file.kind != Kind.NOTHING
                return Settled(file, self._identify(read, file), None, at_path)
            except Convertible:
                pass
        if self._is_as_recorded(file, fd):
            assert file.base is not None
            return Settled(file, file.base[1], None, True)
        assert self._cleaner is not None
        host = self._cleaner.put(file.path, pieces(self._again(fd)))
        if special is not None and is_stored_form(host, special):
            return Settled(file, self._identify(self._again(fd), file), None, True)
        return None

    def _is_as_recorded(self, file: Unknown, fd: int) -> bool:
        """Whether a file holds just what is recorded: that is not converted."""
        base = None if file.base is None else file.base[1]
        if base is None or self._lower.size_if_known(base) != file.status.st_size:
            return False
        return self._hash(self._again(fd), file) == base

    def _again(self, fd: int) -> Reader:
        os.lseek(fd, 0, os.SEEK_SET)
        return shown_bytes(self._lower, fd)

    def _identify(self, read: Reader, file: Unknown) -> ObjectID:
        if self._writer is not None:
            return store_file(self._writer, read, file.status.st_size)
        return self._hash(read, file)

    def _hash(self, read: Reader, file: Unknown) -> ObjectID:
        return hash_file(read, file.status.st_size, self._lower.object_format)

    # what git says

    def _converted(self, cleaner: Cleaner, files: Sequence[Unknown]) -> Iterator[Settled]:
        self._put_attributes(cleaner)
        if any(each.filter for each in self._special.values()):
            self._link_programs(cleaner)
        ids, files = self._cleaned(cleaner, list(files))
        for file in files:
            with _opened(self._upper, file) as fd:
                if fd < 0:  # changed meanwhile
                    continue
                id = ids.get(file.path)
                if id is None:  # git records no file of such a name
                    yield Settled(file, self._identify(self._again(fd), file), None, True)
                    continue
                if self._writer is not None:
                    cleaner.store(id, self._writer)
                size = cleaner.size(id)
                is_same = file.path not in self._special and size == file.status.st_size
                yield Settled(file, id, None if is_same else size, True)

    def _cleaned(
        self, cleaner: Cleaner, files: list[Unknown]
    ) -> tuple[dict[bytes, ObjectID], list[Unknown]]:
        """What git makes of files, and those of which it could."""
        while files:
            try:
                return cleaner.clean(
                    [file.path for file in files], {file.path: file.base for file in files}
                ), files
            except NotConverted as error:
                if self._strict:
                    raise
                bad = failing_alike(error.path, self._special)
                files = [file for file in files if file.path not in bad]
            except HeddleError:
                if self._strict:
                    raise
                break
        return {}, []

    def _link_programs(self, cleaner: Cleaner) -> None:
        """Have a filter that is a program of the repository find it, and what it needs, where git runs it."""
        if self._mountpoint is None:
            return
        top = os.fsencode(cleaner.root)
        for where, directories, _ in list(os.walk(top)):
            inside = os.path.relpath(where, top)
            shown = os.path.normpath(os.path.join(os.fsencode(self._mountpoint), inside))
            with suppress(OSError):
                for name in os.listdir(shown):
                    if name not in directories and name != b".git":
                        with suppress(FileExistsError):
                            os.symlink(os.path.join(shown, name), os.path.join(where, name))


@contextmanager
def _opened(upper: bytes, file: Unknown) -> Iterator[int]:
    """A descriptor of a real file, -1 if it is another by now; what can't be read in the block is passed over."""
    try:
        fd = os.open(upper + b"/" + file.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        yield -1
        return
    try:
        yield fd if same_file(os.fstat(fd), file.status) else -1
    except (OSError, ValueError, Busy, Damaged):  # Busy: it had more or fewer bytes
        pass
    finally:
        os.close(fd)
