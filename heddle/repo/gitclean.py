"""Stock git as the one that converts: what ``git add`` would store of files, line endings, filters and all.

Owns one run of git over files that may be converted (gitattributes(5)): an index and an object directory of its own in
a scratch directory, so that nothing of the repository's is written but what filters write themselves (git-lfs keeps
its files in ``.git/lfs``). Which files those are is told by ``conversions.py``; where their bytes come from and
where blobs go is the caller's.

Git runs the filters that the user's settings name, with the user's rights, as ``git add`` does; a repository can only
choose among them.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import struct
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from heddle.atomic import write_all
from heddle.errors import DataError, StorageError, Unavailable
from heddle.objects.gitdir import GitObjects
from heddle.objects.layout import WHOLE_LIMIT
from heddle.repo import gitindex, gitstage
from heddle.repo.conversions import files_above, is_as_stored

if TYPE_CHECKING:
    from types import TracebackType

    from dulwich.objects import ObjectID

    from heddle.objects.pack import PackWriter
    from heddle.objects.store import ObjectStore
    from heddle.repo.gitlink import GitDir

PLACE = "checkin"
"""In ``.heddle``: scratch directories, each flock(2)'d by the process that uses it."""
_ASKED = ("filter", "working-tree-encoding", "ident")
_NONE = frozenset(("unspecified", "unset"))
_UTF_8 = frozenset(("utf-8", "utf8"))
_PIECE = 1 << 20
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
_REPOSITORY = re.compile(
    r"GIT_(ALTERNATE_OBJECT_DIRECTORIES|COMMON_DIR|CONFIG|DIR|GRAFT_FILE|IMPLICIT_WORK_TREE|INDEX_FILE|NAMESPACE"
    r"|NO_REPLACE_OBJECTS|OBJECT_DIRECTORY|PREFIX|QUARANTINE_PATH|REPLACE_REF_BASE|SHALLOW_FILE|WORK_TREE)"
)
"""Variables that would lead git to another repository (git-rev-parse(1), ``--local-env-vars``)."""
_SETTINGS = (
    "core.safecrlf=false",  # what is lost by a conversion is lost in the state only
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.splitIndex=false",
    "core.untrackedCache=false",
    "core.looseCompression=0",
    "core.fsync=none",  # what it writes is read once and removed
)


class NotConverted(DataError):
    """Git could not convert a file: a filter that is required failed, or an encoding does not fit.

    Attributes:
        path: the file.
    """

    kind = "not_converted"

    def __init__(self, message: str, *, hint: str | None = None, path: bytes = b"") -> None:
        super().__init__(message, hint=hint)
        self.path = path


class Special(NamedTuple):
    """What attributes other than those of line endings say of a file; empty for nothing.

    Attributes:
        filter: the name of a filter.
        encoding: what the file is in, where that is not UTF-8.
        ident: whether ``$Id$`` is one.
    """

    filter: str
    encoding: str
    ident: bool


class Cleaner:
    """Git, ready to convert files of one checkout; nothing is made before it is needed.

    Args:
        git: where its things are.
        store: the repository's objects.
        environment: of git and of filters.
        index: what is staged there; it may be missing.
        place: directory for scratch directories, made if it is missing; the system's where it can't be written.
        root: where the files lie, at their paths; None: in a scratch directory, filled by ``put``.
        umask: of git and of filters; -1: this process's.
    """

    def __init__(
        self,
        git: GitDir,
        store: ObjectStore,
        *,
        environment: Mapping[str, str],
        index: Path,
        place: Path,
        root: Path | None = None,
        umask: int = -1,
    ) -> None:
        self._git = git
        self._store = store
        self._environment = environment
        self.index = index
        self._place = place
        self._root = root
        self._umask = umask
        self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._lock >= 0:
            self._objects.close()
            shutil.rmtree(self._scratch, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1

    @cached_property
    def _scratch(self) -> Path:
        with _storage_errors():
            path, self._lock = _make_scratch(self._place)
            (path / "objects" / "info").mkdir(parents=True)
            alternates = path / "objects" / "info" / "alternates"
            alternates.write_bytes(os.fsencode(self._git.objects.resolve()) + b"\n")
            (path / "tree").mkdir()
        return path

    @cached_property
    def _objects(self) -> GitObjects:
        return GitObjects(self._scratch / "objects", self._store.format_name, spool=self._scratch)

    @property
    def root(self) -> Path:
        """Where the files lie."""
        return self._scratch / "tree" if self._root is None else self._root

    def put(self, path: bytes, content: Iterable[bytes]) -> bytes:
        """Put a file where it is to be converted, or an attribute file beside it; returns its path on disk.

        Raises:
            StorageError: the disk is full or failing.
        """
        assert self._root is None
        host = os.path.join(os.fsencode(self.root), path)
        with _storage_errors():
            os.makedirs(os.path.dirname(host), mode=0o700, exist_ok=True)
            fd = os.open(host, _NEW_FILE, 0o600)
        try:
            offset = 0
            for piece in content:
                with _storage_errors():
                    write_all(fd, piece, offset)
                offset += len(piece)
        finally:
            os.close(fd)
        return host

    # asking

    def special(self, paths: Sequence[bytes]) -> dict[bytes, Special]:
        """What attributes other than those of line endings say; files of which they say nothing are left out.

        Raises:
            Unavailable: git is not installed.
            StorageError: git can't tell.
        """
        self._write_index({}, paths)
        said, error, code = self._run(["check-attr", "-z", "--stdin", *_ASKED], _lines(paths))
        values = said.split(b"\0")[:-1]
        if code or len(values) != 3 * len(_ASKED) * len(paths):
            raise StorageError(
                f"git can't tell the attributes of files in {self.root}: {_last_line(error)}"
            )
        found = {}
        for number, path in enumerate(paths):
            at = 3 * len(_ASKED) * number
            name, encoding, ident = (os.fsdecode(each) for each in values[at + 2 : at + 9 : 3])
            one = Special(
                filter="" if name in _NONE else name,
                encoding="" if encoding in _NONE or encoding.lower() in _UTF_8 else encoding,
                ident=ident == "set",
            )
            if any(one):
                found[path] = one
        return found

    # converting

    def clean(
        self, paths: Sequence[bytes], recorded: Mapping[bytes, tuple[int, ObjectID] | None]
    ) -> dict[bytes, ObjectID]:
        """What git makes of files: the blobs' ids. They can be had from ``read`` and ``store`` then.

        Args:
            paths: of regular files that are there.
            recorded: mode and blob of what is recorded there, asked where git has no index: whether git guesses that
                a file is text goes by that too.

        Returns:
            By path; a file that is gone, or whose path git never records, is missing.

        Raises:
            NotConverted: it can't convert one; nothing of the others is returned.
            Unavailable: git is not installed.
        """
        self._write_index(recorded, paths)
        command = ["update-index", "--verbose", "--add", "--remove", "--replace", "-z", "--stdin"]
        said, error, code = self._run(command, _lines(paths))
        done = _reported(paths, said)
        if code:
            ignored = {path for path in paths if b"Ignoring path %b\n" % path in error}
            left = [path for path in paths if path not in done and path not in ignored]
            raise self._failure(left[0] if left else paths[-1], error)
        made = gitstage.entries(self._scratch / "index", done, self._store.id_length) or {}
        return {path: id for path, (_, id) in made.items()}

    def _failure(self, path: bytes, error: bytes) -> NotConverted:
        name = path.decode(errors="backslashreplace")
        return NotConverted(
            f"git can't convert {name}: {_last_line(error)}",
            hint=f"git check-attr -a -- {name} tells what it is to do; git add -- {name} says the same",
            path=path,
        )

    def size(self, id: ObjectID) -> int:
        """The length of a blob that ``clean`` made."""
        return self._objects.size(id)

    def read(self, id: ObjectID) -> bytes:
        """The bytes of a blob that ``clean`` made."""
        return self._objects.get_raw(id)[1]

    def store(self, id: ObjectID, writer: PackWriter) -> None:
        """Store a blob that ``clean`` made, unless the repository has it; a large one piece by piece."""
        size = self.size(id)
        if size <= WHOLE_LIMIT:
            writer.add_blob(self.read(id))
            return
        offset = 0

        def read(count: int) -> bytes:
            nonlocal offset
            piece = self._objects.read_at(id, offset, min(count, _PIECE))
            offset += len(piece)
            return piece

        writer.add_blob_from(read, size)

    # git

    def _run(self, command: list[str], given: bytes) -> tuple[bytes, bytes, int]:
        """Run git among the files; what it said on both streams, and its exit code."""
        import subprocess

        settings = [word for each in _SETTINGS for word in ("-c", each)]
        places = [f"--git-dir={self._git.path}", f"--work-tree={self.root}"]
        environment = {
            name: value
            for name, value in self._environment.items()
            if not _REPOSITORY.fullmatch(name)
        }
        environment["GIT_INDEX_FILE"] = str(self._scratch / "index")
        environment["GIT_OBJECT_DIRECTORY"] = str(self._scratch / "objects")
        try:
            done = subprocess.run(
                ["git", *places, *settings, *command],
                input=given,
                cwd=self.root,
                env=environment,
                capture_output=True,
                umask=self._umask,
            )
        except FileNotFoundError as error:
            raise Unavailable(
                "git is not installed, and .gitattributes or git's settings have it convert files",
                hint="install git",
            ) from error
        return done.stdout, done.stderr, done.returncode

    def _write_index(
        self, recorded: Mapping[bytes, tuple[int, ObjectID] | None], paths: Sequence[bytes]
    ) -> None:
        """Have an index that knows these paths as git's own does, and no stat of any, so that all are read.

        Attribute files are in it for those that are left out of the checkout: git takes them from there.
        """
        above = {each for path in paths for each in files_above(path)}
        entries = gitstage.entries(self.index, {*recorded, *above}, self._store.id_length)
        if entries is None:
            entries = {path: entry for path, entry in recorded.items() if entry is not None}
        for mode, id in entries.values():
            if mode & 0o170000 == 0o100000:
                self._lend(id)
        lines = [
            gitindex.entry(gitindex.NO_STAT, mode, bytes.fromhex(id.decode()), path)
            for path, (mode, id) in sorted(entries.items())
        ]
        body = struct.pack(">4sII", b"DIRC", 2, len(lines)) + b"".join(lines)
        digest = hashlib.new(self._store.format_name, body).digest()
        with _storage_errors():
            (self._scratch / "index").write_bytes(body + digest)

    def _lend(self, id: ObjectID) -> None:
        """Have git find a blob that only heddle has, since whether a file is converted may go by it."""
        from dulwich.objects import Blob

        raw = bytes.fromhex(id.decode())
        if self._objects.contains(raw) or raw not in self._store:
            return
        content = b"".join(self._store.iter_blob(id))
        place = self._scratch / "objects" / raw.hex()[:2]
        with _storage_errors():
            place.mkdir(exist_ok=True)
            (place / raw.hex()[2:]).write_bytes(Blob.from_string(content).as_legacy_object())


def failing_alike(path: bytes, special: Mapping[bytes, Special]) -> set[bytes]:
    """The files that are not tried after one could not be converted: those of the same filter, and itself."""
    its = special.get(path)
    if its is None or not its.filter:
        return {path}
    return {path} | {each for each, other in special.items() if other.filter == its.filter}


@contextmanager
def _storage_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"what git needs to convert files can't be written: {error.strerror}"
        ) from error


def is_stored_form(host: bytes, special: Special) -> bool:
    """Whether a file is as states have it, although it is to be in an encoding; see `is_as_stored`."""
    if not special.encoding or special.filter:
        return False
    fd = os.open(host, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return is_as_stored(lambda count: os.read(fd, count), special.encoding)
    finally:
        os.close(fd)


def _lines(paths: Iterable[bytes]) -> bytes:
    return b"".join(path + b"\0" for path in paths)


def _reported(paths: Sequence[bytes], said: bytes) -> set[bytes]:
    """The paths of which ``git update-index --verbose`` said that it is done with them; it follows their order."""
    done, at = set(), 0
    for path in paths:
        line = b"add '%b'\n" % path
        if said.startswith(line, at):
            done.add(path)
            at += len(line)
    return done


def _last_line(error: bytes) -> str:
    """What git said last, without ``fatal:``, and what a filter said of itself before that."""
    lines = [line for line in error.decode(errors="replace").splitlines() if line.strip()]
    said = [line.removeprefix("fatal: ").removeprefix("error: ") for line in lines[-2:]]
    return "; ".join(reversed(said)) or "it did not say why"


def _make_scratch(place: Path) -> tuple[Path, int]:
    """A directory of our own, with the descriptor that locks it; what dead processes left beside it is removed."""
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        _sweep(place)
        above: Path | None = place
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        above = None
    while True:
        path = Path(tempfile.mkdtemp(prefix="heddle-", dir=above))
        lock = _locked(path)
        if lock is not None and path.exists():  # nobody has swept it up in between
            return path, lock
        if lock is not None:
            os.close(lock)


def _sweep(place: Path) -> None:
    for name in os.listdir(place):
        lock = _locked(place / name)
        if lock is not None:
            shutil.rmtree(place / name, ignore_errors=True)
            os.close(lock)


def _locked(path: Path) -> int | None:
    """A descriptor that locks a directory; None where somebody else has it, or it is gone."""
    with suppress(FileNotFoundError, NotADirectoryError):
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            os.close(lock)
    return None
