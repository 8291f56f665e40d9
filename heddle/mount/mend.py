"""What overlays say of themselves, held against the object store and against their own bytes; and mended.

Owns the check of every entry of an upper, of threads and in the park, and what is done about a damaged one: real
bytes win where they are there, else what is captured shows through again. Nothing is removed: what can't be used is
set aside. Marks and their meaning are ``upper.py``'s.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from heddle import faults
from heddle.errors import StorageError
from heddle.mount import upper as up
from heddle.mount.files import LARGE
from heddle.mount.partial import reader
from heddle.mount.snapshot import hash_file
from heddle.mount.upper import NO_MARKS, Damaged, Marks
from heddle.objects.gitformat import BLOB, TREE
from heddle.repo.locks import file_locked_nowait
from heddle.repo.names import overlay_dir
from heddle.repo.parked import list_parked

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.objects.store import ObjectStore
    from heddle.repo.aside import Repair
    from heddle.repo.repository import Repository

_PATH_MAX = 4096  # bytes, the final NUL among them
_FLIPPED_DIGITS = 4
"""As many hex digits of an id may be damaged for it to be recognised."""

Kind = Literal["unreadable", "marks", "opaque", "blob", "stored", "bytes", "under", "lower"]


@dataclass(frozen=True, slots=True)
class Flaw:
    """One entry of an upper that is not as it should be.

    Attributes:
        kind: ``unreadable``: the file system below refuses it; ``marks``, ``opaque``: the attribute is damaged;
            ``blob``, ``under``, ``lower``: it is to show an object that can't be had; ``stored``: its bytes are
            recorded as an object that can't be had; ``bytes``: its bytes are not the object that they were
            recorded as.
        path: on the host.
        what: one line for people.
        marks: what it says of itself, as far as that can be read.
    """

    kind: Kind
    path: bytes
    what: str
    marks: Marks


def overlays(repo: Repository) -> Iterator[tuple[str, Path, ObjectID | None]]:
    """Every directory with an upper: whose it is, where, and the state that it is relative to."""
    for thread in repo.threads:
        directory = overlay_dir(repo, thread.name)
        if (directory / "upper").is_dir():
            yield f"the overlay of '{thread.name}'", directory, repo.overlay_base(thread.name)
    for parked in list_parked(repo):
        yield f"parked overlay {parked.id}", parked.path, parked.base


# checking


def flaws(directory: Path, store: ObjectStore, *, full: bool) -> Iterator[Flaw]:
    """Check every entry of an overlay.

    Args:
        directory: the overlay's.
        store: where its objects are.
        full: also read files whose bytes are captured, and compare.
    """
    top = os.fsencode(directory / "upper")
    for path, is_directory in _entries(top):
        try:
            marks = up.read_marks(path) or Marks()
        except Damaged as error:
            yield Flaw("marks", path, error.message, Marks.guess(_value(path)))
            continue
        except OSError as error:
            yield _refused(path, error)
            continue
        if is_directory:
            yield from _directory_flaws(path, marks, store)
        else:
            yield from _file_flaws(path, marks, store, full=full)


def _entries(top: bytes) -> Iterator[tuple[bytes, bool]]:
    """Directories and regular files, the top first; says which is a directory.

    Without those that lie deeper than a path can say: a mount reaches them step by step, and shows them.
    """
    pending = [top]
    while pending:
        here = pending.pop()
        yield here, True
        try:
            with os.scandir(here) as entries:
                for entry in entries:
                    if len(entry.path) >= _PATH_MAX:
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        yield entry.path, False
        except OSError:
            continue  # its own check tells


def _value(path: bytes) -> bytes:
    try:
        return os.getxattr(path, up.MARKS, follow_symlinks=False)
    except OSError:
        return b""


def _refused(path: bytes, error: OSError) -> Flaw:
    return Flaw("unreadable", path, f"{os.fsdecode(path)}: {error.strerror}", Marks())


def _directory_flaws(path: bytes, marks: Marks, store: ObjectStore) -> Iterator[Flaw]:
    fd = -1
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        os.listdir(fd)
        up.is_opaque(fd)
    except Damaged as error:
        yield Flaw("opaque", path, error.message, marks)
    except OSError as error:
        yield _refused(path, error)
    finally:
        if fd >= 0:
            os.close(fd)
    if marks.lower is not None and not _is_object(store, marks.lower, TREE):
        what = f"{os.fsdecode(path)} shows directory {marks.lower.decode()}, which can't be had"
        yield Flaw("lower", path, what, marks)


def _file_flaws(path: bytes, marks: Marks, store: ObjectStore, *, full: bool) -> Iterator[Flaw]:
    name = os.fsdecode(path)
    try:
        status = os.stat(path, follow_symlinks=False)
        if marks.blob is not None:
            if not _is_object(store, marks.blob, BLOB, marks.size):
                what = f"{name} shows file {marks.blob.decode()}, which can't be had"
                yield Flaw("blob", path, what, marks)
        elif marks.under is not None and not _is_object(store, marks.under.blob, BLOB):
            what = f"{name} shows parts of {marks.under.blob.decode()}, which can't be had"
            yield Flaw("under", path, what, marks)
        elif marks.stored is not None and _is_settled(status, marks):
            size = marks.size if marks.cleaned is None else marks.cleaned
            if not _is_object(store, marks.stored, BLOB, size):
                what = f"{name} was captured as {marks.stored.decode()}, which can't be had"
                yield Flaw("stored", path, what, marks)
            elif full and marks.cleaned is None and _hash(path, marks, store) != marks.stored:
                what = f"{name} is not what was captured as {marks.stored.decode()}"
                yield Flaw("bytes", path, what, marks)
    except OSError as error:
        yield _refused(path, error)


def _is_settled(status: os.stat_result, marks: Marks) -> bool:
    return (status.st_size, status.st_mtime_ns) == (marks.size, marks.mtime_ns)


def _is_object(store: ObjectStore, id: ObjectID, kind: int, size: int | None = None) -> bool:
    """Whether an object is there, of this type and size, going by the index; or a remote has promised it."""
    try:
        if kind == BLOB and store.is_promised(id):
            return True
        return store.kind(id) == kind and (size is None or store.size(id) == size)
    except (KeyError, StorageError):
        return False


def _hash(path: bytes, marks: Marks, store: ObjectStore) -> ObjectID:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        read = reader(store.read_at, fd, marks.under)
        return hash_file(read, os.fstat(fd).st_size, store.format_name)
    finally:
        os.close(fd)


# mending


class _Known:
    """The objects that an overlay's marks can mean: those of the state that it is relative to."""

    def __init__(self, repo: Repository, base: ObjectID | None) -> None:
        self.store = repo.store
        self._repo = repo
        self._base = base

    def complete(self, marks: Marks) -> Marks:
        """Damaged marks with ids that name nothing replaced by those of the base that they were."""
        if marks.lower is not None and not _is_object(self.store, marks.lower, TREE):
            marks = marks._replace(lower=self._nearest(marks.lower, self._ids[0]))
        if marks.blob is not None and not _is_object(self.store, marks.blob, BLOB):
            marks = marks._replace(blob=self._nearest(marks.blob, self._ids[1]))
        return marks

    def _nearest(self, damaged: ObjectID, ids: set[ObjectID]) -> ObjectID | None:
        """The one id that differs in a few digits only; two of a repository never do by chance."""
        for id in ids:
            if len(id) == len(damaged) and _distance(id, damaged) <= _FLIPPED_DIGITS:
                return id
        return None

    @cached_property
    def _ids(self) -> tuple[set[ObjectID], set[ObjectID]]:
        """Trees and blobs of the base."""
        trees: set[ObjectID] = set()
        blobs: set[ObjectID] = set()
        pending = [] if self._base is None else [self._repo.state(self._base).tree]
        while pending:
            tree = pending.pop()
            if tree in trees:
                continue
            trees.add(tree)
            with suppress(KeyError, StorageError):
                for _name, mode, id in self.store.tree_entries(tree):
                    pending += [id] if stat.S_ISDIR(mode) else []
                    blobs.add(id)
        return trees, blobs


def _distance(one: bytes, other: bytes) -> int:
    return sum(a != b for a, b in zip(one, other, strict=True))


def mend(repo: Repository, repair: Repair, *, full: bool) -> None:
    """Mend every overlay that no session has open.

    Each entry is mended by one replacement of its attributes, or by one rename; killed between two, it can be run
    again.
    """
    for label, directory, base in overlays(repo):
        found = list(flaws(directory, repo.store, full=full))
        if not found:
            continue
        with file_locked_nowait(directory / "lock") as free:
            if not free:
                repair.left.append(f"{label} is mounted: unmount it, then repair again")
                continue
            known = _Known(repo, base)
            for flaw in found:
                if flaw.kind == "marks":
                    flaw = replace(flaw, marks=known.complete(flaw.marks))
                _mend(flaw, repo.store, repair)


def _mend(flaw: Flaw, store: ObjectStore, repair: Repair) -> None:
    if flaw.kind == "unreadable":
        repair.left.append(flaw.what)
    elif flaw.kind == "opaque":
        _apply(repair, lambda: _write_opaque(flaw.path))
        repair.mended.append(f"{flaw.what}: it hides what was captured there, as it did")
    elif stat.S_ISDIR(os.stat(flaw.path, follow_symlinks=False).st_mode):
        _mend_directory(flaw, store, repair)
    else:
        _mend_file(flaw, store, repair)


def _apply(repair: Repair, change: Callable[[], None]) -> None:
    if not repair.dry_run:
        faults.reach("mend.before-change")
        change()


def _write_opaque(path: bytes) -> None:
    faults.reach("mend.before-opaque")
    os.setxattr(path, up.OPAQUE, b"y", follow_symlinks=False)


def _mend_directory(flaw: Flaw, store: ObjectStore, repair: Repair) -> None:
    """A directory shows the captured one that it says, or else that of its own place."""
    marks = flaw.marks
    name = os.fsdecode(flaw.path)
    if marks.lower is not None and not _is_object(store, marks.lower, TREE):
        repair.lost.append(f"what {name} showed of directory {marks.lower.decode()}")
        marks = marks._replace(lower=None)
        _apply(repair, lambda: _write_opaque(flaw.path))
    elif flaw.kind == "marks" and marks.lower is None:
        repair.lost.append(f"which captured directory {name} showed, if not that of its own place")
    _apply(repair, lambda: up.write_marks(flaw.path, marks))
    repair.mended.append(flaw.what)


def _mend_file(flaw: Flaw, store: ObjectStore, repair: Repair) -> None:
    path, status = flaw.path, os.stat(flaw.path, follow_symlinks=False)
    if flaw.kind == "bytes":
        repair.set_aside(Path(os.fsdecode(path)), flaw.what, keep=True)
        _apply(repair, lambda: _show_blob(path, flaw.marks))
        repair.mended.append(f"{flaw.what}: it shows what was captured")
        return
    if flaw.kind == "stored" or _has_own_bytes(path, status, flaw.marks, store):
        under = flaw.marks.under if flaw.kind == "stored" else None  # else nobody knows which parts
        marks: Marks | None = flaw.marks._replace(
            blob=None, stored=None, cleaned=None, under=under, ctime_ns=None
        )
    else:
        marks = _showing(flaw.marks, status, store)
    if marks is None:
        repair.set_aside(Path(os.fsdecode(path)), flaw.what)
        repair.lost.append(f"the bytes of {os.fsdecode(path)}")
        return
    written = marks
    _apply(repair, lambda: up.write_marks(path, written))
    repair.mended.append(flaw.what)


def _has_own_bytes(path: bytes, status: os.stat_result, marks: Marks, store: ObjectStore) -> bool:
    """Whether a file's bytes are in the file: it is no hole, and none that was being filled, or filled in parts."""
    if status.st_size == 0:
        return True
    if _is_hole(path):
        return False
    if marks.blob is None:
        return status.st_size <= LARGE or status.st_blocks * 512 >= status.st_size
    return _hash(path, NO_MARKS, store) == marks.blob


def _is_hole(path: bytes) -> bool:
    """Whether a file has no data of its own; its blocks may hold attributes and tell nothing."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.lseek(fd, 0, os.SEEK_DATA)
    except OSError as error:
        return error.errno == errno.ENXIO
    finally:
        os.close(fd)
    return False


def _showing(marks: Marks, status: os.stat_result, store: ObjectStore) -> Marks | None:
    """Damaged marks of a hole with what they need to show their blob; None where that can't be had."""
    if marks.blob is None or not _is_object(store, marks.blob, BLOB, status.st_size):
        return None
    mtime_ns = marks.mtime_ns or status.st_mtime_ns
    return marks._replace(stored=None, size=status.st_size, mtime_ns=mtime_ns)


def _show_blob(path: bytes, marks: Marks) -> None:
    """Let a file whose own bytes are wrong stand for its blob; from the first step on it shows that."""
    up.write_marks(path, marks._replace(blob=marks.stored, stored=None, under=None))
    faults.reach("mend.shows-blob")
    os.truncate(path, 0)
    os.truncate(path, marks.size)
