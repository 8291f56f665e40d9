"""Moving HEAD and the plain working directory to another thread, or to where their thread has moved.

Owns the order of it. Only paths that differ between the two trees are looked at; whatever else is unsaved stays.
What is there must be what the old tree says, or already what the new one says, else nothing is done: also an
ignored or untracked file is never overwritten by other content.

The order, and what a crash leaves:

1. every new file is written under ``.heddle/switch`` (before: nothing has changed; a full disk shows here),
2. paths that are gone are removed, directories that this empties too, then files are renamed into place one by
   one, each whole (between: some paths are as in the new tree; HEAD and the base are the old ones, so ``status``
   shows them; running the same switch again takes them for done and finishes),
3. one transaction moves HEAD and the base (the commit point).
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from heddle import faults
from heddle.errors import (
    DataError,
    HeddleError,
    ObjectMissing,
    StorageError,
    ThreadExists,
    UnsavedChanges,
)
from heddle.repo.changes import DIRECTORY_MODE, Change, tree_changes
from heddle.repo.directories import Blocked, Directories
from heddle.repo.ignore import always_ignored
from heddle.repo.reading import Hasher, NotReadable, Taken, take
from heddle.repo.statcache import Entry, Remembered, Stat, StatCache, stat_of
from heddle.repo.worktree import GITLINK_MODE, checkin_of, git_mode, working_directory_locked

if TYPE_CHECKING:
    from pathlib import Path

    from dulwich.objects import ObjectID

    from heddle.attribution import Attribution
    from heddle.repo.gitstage import Skipped
    from heddle.repo.repository import Repository

_SHOWN = 10
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LONGEST_NAME = 255
_STAYS = frozenset({errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY, errno.ENOENT})


@dataclass(frozen=True, slots=True)
class Switched:
    """Where the working directory is now.

    Attributes:
        thread: the thread that HEAD is on.
        state: the state that the working directory is at; None before the thread's first capture.
        changed_paths: how many paths differ between the state it was at and this one.
    """

    thread: str
    state: ObjectID | None
    changed_paths: int


def switch(
    repo: Repository,
    name: str,
    *,
    create: bool = False,
    attribution: Attribution | None = None,
) -> Switched:
    """Put HEAD on a thread and make the working directory what the thread holds.

    Unsaved changes go along where the two trees agree. Switching to the thread that HEAD is on brings the
    working directory to where the thread has moved.

    Args:
        name: the thread.
        create: make it first, at the state that the working directory is at.
        attribution: who is named in the operation log.

    Raises:
        ThreadNotFound, ThreadExists, InvalidName: about ``name``.
        UnsavedChanges: something unsaved is in the way; nothing was changed.
        DataError: the thread holds a name that can't be written, or git is in the middle of something; nothing was
            changed.
        Busy: another command is changing the working directory.
        StorageError: the disk is full or failing; running it again finishes what was begun.
    """
    with working_directory_locked(repo):
        _refuse_unfinished(repo)
        base = repo.worktree_base()
        if create:
            return _switch_to_new(repo, name, base, attribution)
        target = repo.threads.get(name).state
        count = _Move(repo, _tree(repo, base), _tree(repo, target)).run(name)
        faults.reach("switch.before-head")
        if (repo.head, base) != (name, target):
            repo.move_head(name, base=target, attribution=attribution)
        return Switched(name, target, count)


def _refuse_unfinished(repo: Repository) -> None:
    """Git would finish on another branch what it has begun on this one; a bisect goes on anywhere, as for git."""
    from heddle.repo import linked

    doing = None if repo.git is None else linked.unfinished(repo.git)
    if repo.git is not None and doing not in (None, "bisect"):
        raise linked.in_the_way(repo.git, doing)


def _switch_to_new(
    repo: Repository, name: str, base: ObjectID | None, attribution: Attribution | None
) -> Switched:
    if name in repo.threads:
        raise ThreadExists(f"thread '{name}' exists", hint=f"heddle switch {name}")
    repo.threads.create(name, base, attribution=attribution, on_head=True)
    return Switched(name, base, 0)


def _tree(repo: Repository, state: ObjectID | None) -> ObjectID | None:
    return None if state is None else repo.state(state).tree


class _Move:
    """One way from a tree to another: checked, staged, done."""

    def __init__(self, repo: Repository, old: ObjectID | None, new: ObjectID | None) -> None:
        self._repo = repo
        self._store = repo.store
        self._new_tree = new
        self._changes = tree_changes(repo.store, old, new, renames=False)
        self._lost = {change.path for change in self._changes if change.new_mode is None}
        self._above_lost = {parent for path in self._lost for parent in _parents(path)}
        self._in_the_way: list[bytes] = []
        self._to_remove: list[tuple[Change, Stat | None]] = []
        self._to_write: list[tuple[Change, Stat | None]] = []

    def run(self, name: str) -> int:
        """Do it; returns how many paths differ."""
        for change in self._changes:
            if change.new_mode is not None:
                _check_name(change.path)
        with Directories(self._repo.path) as self._directories, _errors(name):
            self._check_all(name)
            with _staging(self._repo.heddle_dir / "switch") as staged:
                self._stage(staged)
                faults.reach("switch.staged")
                self._remove()
                faults.reach("switch.removed")
                self._put(staged)
        return len(self._changes)

    # Looking

    def _check_all(self, name: str) -> None:
        """Decide what has to be done about each path.

        Raises:
            UnsavedChanges: something that no state holds is in the way.
        """
        if not self._changes:
            return
        self._rows = lru_cache(maxsize=16)(StatCache(self._repo.database).get)
        self._hasher = Hasher(self._store.id_length)
        doubtful = []
        for change in self._changes:
            if any(map(always_ignored, change.path.split(b"/"))):
                continue
            try:
                place = self._place(change)
                if self._repo.git is not None and place.is_neither(*_entries(change)):
                    doubtful.append(change)
                else:
                    self._check(change, place)
            except Blocked as blocked:
                self._check_blocked(change, blocked.path)
        stored = self._as_stored(doubtful)
        for change in doubtful:
            self._check(change, self._place(change, stored.get(change.path)))
        if self._in_the_way:
            raise _refusal(name, self._in_the_way)

    @cached_property
    def _left_out(self) -> Skipped:
        """What git leaves out of the checkout: nothing there counts as somebody's."""
        from heddle.repo.gitstage import Skipped, skipped

        git = self._repo.git
        return Skipped() if git is None else skipped(git.path / "index", self._store.id_length)

    def _place(self, change: Change, stored: Taken | None = None) -> _Place:
        return _Place(self._repo, self._directories, change.path, self._rows, self._hasher, stored)

    def _as_stored(self, changes: list[Change]) -> dict[bytes, Taken]:
        """What git would store of files whose bytes are neither the old tree's nor the new one's."""
        if not changes:
            return {}
        stored: dict[bytes, Taken] = {}
        with suppress(HeddleError), checkin_of(self._repo, changes) as (checkin, files):
            checkin.take_all(
                files, lambda file, taken: stored.update({file.path: taken}), lambda *_: None
            )
        return stored

    def _check(self, change: Change, place: _Place) -> None:
        old, new = _entries(change)
        if place.holds(new):
            return
        foreign: bytes | None = change.path
        if new is None:
            if place.holds(old):
                self._to_remove.append((change, place.stat))
            if place.is_directory or place.holds(old):
                return
        elif place.stat is None:
            may_be_absent = old is None or _is_directory(old) or change.path in self._left_out
            foreign = None if may_be_absent else change.path
        elif place.is_directory:
            foreign = self._foreign_below(change.path)
        elif place.holds(old):
            foreign = None
        if foreign is None:
            self._to_write.append((change, place.stat))
        else:
            self._in_the_way.append(foreign)

    def _check_blocked(self, change: Change, blocked: bytes) -> None:
        """Something that is no directory stands where the path needs one."""
        if change.new_mode is None:
            return
        if blocked in self._lost:
            self._to_write.append((change, None))
        else:
            self._in_the_way.append(blocked)

    def _foreign_below(self, path: bytes) -> bytes | None:
        """Something below a directory that is not removed by this switch anyway."""
        todo = [path]
        while todo:
            directory = todo.pop()
            fd = self._directories.open(directory)
            for name in map(os.fsencode, os.listdir(fd)) if fd is not None else ():
                inside = directory + b"/" + name
                if inside in self._above_lost:
                    todo.append(inside)
                elif inside not in self._lost:
                    return inside
        return None

    # Doing

    def _stage(self, staged: Path) -> None:
        """Write every new file and link where nobody sees it yet."""
        self._store.fetch(change.new_id for change, _ in self._to_write if change.new_id)
        for number, (change, _) in enumerate(self._to_write):
            _, new = _entries(change)
            if new is None or _is_directory(new):
                continue
            place = staged / str(number)
            if stat.S_ISLNK(new[0]) and self._repo.has_symlinks:
                os.symlink(b"".join(self._store.iter_blob(new[1])), os.fsencode(place))
                continue
            fd = os.open(place, _NEW_FILE, 0o777 if new[0] & 0o100 else 0o666)
            with os.fdopen(fd, "wb") as file:
                for piece in self._store.iter_blob(new[1]):
                    file.write(piece)

    def _remove(self) -> None:
        for change, before in reversed(self._to_remove):
            directory, _, name = change.path.rpartition(b"/")
            parent = self._directories.open(directory)
            if parent is None:
                continue
            _check_unchanged(change.path, name, parent, before)
            self._remove_entry(name, parent, before)
            faults.reach("switch.one-removed")
        self._directories.close()
        for directory in sorted(self._above_lost, reverse=True):
            if not self._is_in_new_tree(directory):
                self._remove_directory(directory)

    def _remove_entry(self, name: bytes, parent: int, before: Stat | None) -> None:
        """Remove a file, or a directory if nothing is in it."""
        if before is not None and not stat.S_ISDIR(before[0]):
            os.unlink(name, dir_fd=parent)
            return
        try:
            os.rmdir(name, dir_fd=parent)
        except OSError as error:
            if error.errno not in _STAYS:
                raise

    def _remove_directory(self, path: bytes) -> None:
        above, _, name = path.rpartition(b"/")
        try:
            parent = self._directories.open(above)
            if parent is not None:
                self._remove_entry(name, parent, None)
        except (Blocked, NotADirectoryError):
            pass  # it is something else by now, which is not ours to remove

    def _is_in_new_tree(self, directory: bytes) -> bool:
        from heddle.repo.log import entry_at

        if self._new_tree is None:
            return False
        entry = entry_at(self._repo, self._new_tree, directory)
        return entry is not None and entry[0] == DIRECTORY_MODE

    def _put(self, staged: Path) -> None:
        """Move the new files into place."""
        for number, (change, before) in enumerate(self._to_write):
            directory, _, name = change.path.rpartition(b"/")
            parent = self._directories.open(directory, make=True)
            assert parent is not None
            if before is not None and not stat.S_ISDIR(before[0]):
                _check_unchanged(change.path, name, parent, before)
            _, new = _entries(change)
            if new is not None and _is_directory(new):
                if before is not None:
                    os.unlink(name, dir_fd=parent)
                os.mkdir(name, dir_fd=parent)
            else:
                if before is not None and stat.S_ISDIR(before[0]):
                    self._remove_entry(name, parent, None)
                _rename(os.fsencode(staged / str(number)), name, parent)
            faults.reach("switch.one-written")


class _Place:
    """What is at a path of the working directory.

    Args:
        stored: what git would store of it, if that is known.

    Attributes:
        stat: its lstat; None when nothing is there.
        is_directory: whether it is a directory.

    Raises:
        Blocked: something that is no directory stands on the way to it.
    """

    def __init__(
        self,
        repo: Repository,
        directories: Directories,
        path: bytes,
        rows: Callable[[bytes], Remembered | None],
        hasher: Hasher,
        stored: Taken | None = None,
    ) -> None:
        self._repo = repo
        self._directory, _, self._name = path.rpartition(b"/")
        self._rows = rows
        self._hasher = hasher
        self._id: ObjectID | None = None
        self.stat: Stat | None = None
        parent = directories.open(self._directory)
        if parent is not None:
            self._host = b"/proc/self/fd/%d/%b" % (parent, self._name)
            try:
                self.stat = stat_of(os.lstat(self._host))
            except FileNotFoundError:
                pass
        self.is_directory = self.stat is not None and stat.S_ISDIR(self.stat[0])
        if stored is not None and stored.stat == self.stat:
            self._id = stored.id

    def is_neither(self, old: Entry | None, new: Entry | None) -> bool:
        """Whether this is a file, and holds what neither of two trees says."""
        is_file = self.stat is not None and stat.S_ISREG(self.stat[0])
        return is_file and old is not None and not (self.holds(new) or self.holds(old))

    def holds(self, entry: Entry | None) -> bool:
        """Whether this is what a tree says."""
        if entry is None or self.stat is None:
            return entry is None and self.stat is None
        if _is_directory(entry) or self.is_directory:
            return _is_directory(entry) and self.is_directory
        if not (stat.S_ISREG(self.stat[0]) or stat.S_ISLNK(self.stat[0])):
            return False
        trusted, links = self._repo.trusts_modes, self._repo.has_symlinks
        if git_mode(self.stat[0], entry, trusted=trusted, links=links) != entry[0]:
            return False
        return self._is_remembered_as(entry) or self._blob() == entry[1]

    def _is_remembered_as(self, entry: Entry) -> bool:
        row = self._rows(self._directory)
        if row is None or row.files.get(self._name) != self.stat:
            return False
        return row.entries()[self._name] == entry

    def _blob(self) -> ObjectID | None:
        """The id of its bytes, read once; None when they can't be had."""
        if self._id is None and self.stat is not None:
            try:
                is_link = stat.S_ISLNK(self.stat[0])
                taken = take(self._host, self._hasher, is_link=is_link)
            except (NotReadable, FileNotFoundError):
                return None
            self._id, self.stat = taken.id, taken.stat
        return self._id


def _entries(change: Change) -> tuple[Entry | None, Entry | None]:
    """Mode and id on the old side and on the new one."""
    old = None if change.old_mode is None else (change.old_mode, change.old_id)
    new = None if change.new_mode is None else (change.new_mode, change.new_id)
    return old, new  # type: ignore[return-value]


def _is_directory(entry: Entry) -> bool:
    """Whether a tree's entry is a directory on disk; another repository's is not looked into."""
    return entry[0] in (DIRECTORY_MODE, GITLINK_MODE)


def _parents(path: bytes) -> Iterator[bytes]:
    while path := path.rpartition(b"/")[0]:
        yield path


def _check_name(path: bytes) -> None:
    """Refuse what a hostile tree could use to write elsewhere, and what no directory can hold."""
    for name in path.split(b"/"):
        bad = name in (b"", b".", b"..") or b"\0" in name or always_ignored(name)
        if bad or len(name) > _LONGEST_NAME:
            shown = path.decode(errors="backslashreplace")
            raise DataError(f"the state holds a name that is not written to a directory: {shown!r}")


def _check_unchanged(path: bytes, name: bytes, parent: int, before: Stat | None) -> None:
    """Look again, just before something goes away."""
    try:
        now = stat_of(os.stat(name, dir_fd=parent, follow_symlinks=False))
    except FileNotFoundError:
        now = None
    if now != before:
        raise _changed_meanwhile(path)


def _changed_meanwhile(path: bytes) -> UnsavedChanges:
    shown = path.decode(errors="backslashreplace")
    return UnsavedChanges(
        f"{shown} was changed while the working directory was being switched",
        hint="look at it, then run the same switch again to finish it",
    )


def _refusal(name: str, paths: list[bytes]) -> UnsavedChanges:
    found = sorted(set(paths))
    shown = ", ".join(path.decode(errors="backslashreplace") for path in found[:_SHOWN])
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return UnsavedChanges(
        f"switching to '{name}' would overwrite what no state holds: {shown}{more}",
        hint="heddle capture first, or move these away",
    )


def _rename(staged: bytes, name: bytes, parent: int) -> None:
    """Move a staged file or link into place, also onto another file system."""
    try:
        os.rename(staged, name, dst_dir_fd=parent)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        temporary = b".heddle-%b" % secrets.token_hex(8).encode()
        shutil.copy2(staged, b"/proc/self/fd/%d/%b" % (parent, temporary), follow_symlinks=False)
        os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)


@contextmanager
def _staging(path: Path) -> Iterator[Path]:
    """A directory for files that are not in place yet; what a crash left in it is removed."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _errors(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = os.fsdecode(error.filename) if error.filename else "the working directory"
        raise StorageError(
            f"switching to '{name}' stopped at {where}: {os.strerror(error.errno or 0)}",
            hint=f"nothing is lost; heddle switch {name} again finishes it",
        ) from error
    except KeyError as error:
        raise ObjectMissing(
            f"'{name}' needs an object that is not in the object store: {error.args[0]!r}",
            hint="heddle fsck",
        ) from error
    except Blocked as blocked:
        raise _changed_meanwhile(blocked.path) from None
