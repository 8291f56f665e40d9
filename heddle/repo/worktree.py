"""The plain working directory against a tree: what is there that the tree does not say.

Owns the walk over the directory, its stat cache in use, and ``status``. Reading files is ``reading.py``'s, making a
state of what was found ``capture.py``'s, changing the directory ``switch.py``'s.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, cast

from heddle.errors import Busy, HeddleError
from heddle.repo.changes import (
    ANOTHER_REPOSITORY,
    DIRECTORY_MODE,
    EMPTY_TREES,
    Change,
    NotRecorded,
    Status,
    change_between,
    find_renames,
    normalised,
    within,
)
from heddle.repo.checkin import Checkin, File
from heddle.repo.ignore import IgnoreRules, always_ignored
from heddle.repo.reading import NotReadable, Taken
from heddle.repo.statcache import (
    Entry,
    Remembered,
    Stat,
    StatCache,
    collector_paused,
    is_settled,
    stat_of,
)

if TYPE_CHECKING:
    from pathlib import Path

    from dulwich.objects import ObjectID

    from heddle.objects.pack import PackWriter
    from heddle.repo.gitlink import GitDir
    from heddle.repo.gitstage import Skipped
    from heddle.repo.repository import Repository

GITLINK_MODE = 0o160000
LINK_MODE = 0o120000
FILE_MODE = 0o100644
EXECUTABLE_MODE = 0o100755
_LOCK_WAIT_S = 30.0
_MOUNT_LINE = re.compile(rb"^\S+ \S+ \S+ \S+ (\S+) .* - fuse\.heddle ", re.MULTILINE)
_OCTAL = re.compile(rb"\\([0-7]{3})")
_SPECIAL = {
    stat.S_IFIFO: "a fifo",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class Found(NamedTuple):
    """A file or a symbolic link that is new, or has another stat than the one remembered.

    Attributes:
        path: inside the working directory.
        old: what the tree has there, when that is a file or a link too.
        status: lstat(2) of it.
    """

    path: bytes
    old: Entry | None
    status: os.stat_result


class Scan:
    """One walk over the working directory; nothing is read but directories, rules and unknown trees.

    What lies in ``.git`` or ``.heddle`` is never looked at, so a repository inside this one is plain files. A
    link to another repository that the tree has (mode 160000) is left as it is while a directory is there.

    Args:
        repo: the repository.
        tree: what to compare with; None for nothing.
        paths: look at these and what lies below them only.

    Attributes:
        found: files that have to be read, or at least looked at more closely.
        gone: what the tree has and the directory has not, or has as something else: leaves by path.
        removed: the topmost paths of those that are gone.
        empty: directories without anything in them that the tree does not know as such; True where
            the tree knows a directory of that name.
        ignored: entries left out because of ignore rules; an ignored directory counts once.
        not_recorded: what is there and can't be recorded.
    """

    def __init__(
        self, repo: Repository, tree: ObjectID | None, *, paths: Sequence[bytes] = ()
    ) -> None:
        self.found: list[Found] = []
        self.gone: dict[bytes, Entry] = {}
        self.removed: list[bytes] = []
        self.empty: dict[bytes, bool] = {}
        self.ignored = 0
        self.not_recorded: list[NotRecorded] = []
        self._repo = repo
        self._store = repo.store
        self._root = os.fsencode(repo.path) + b"/"
        self._paths = normalised(paths)
        self._tree = tree
        self._left_out: Skipped | None = None
        self._rules = IgnoreRules(self._read_rules, exclude=repo.exclude_rules())
        self._cache = StatCache(repo.database)
        self._directories: dict[bytes, Remembered] = {}
        self._stale: set[bytes] = set()
        self._todo: list[tuple[bytes, ObjectID | None]] = [(b"", tree)]
        while self._todo:
            self._directory(*self._todo.pop())
        self._believe_git()
        self._heed_skipped()
        self._forgive_empty()

    def host(self, path: bytes) -> bytes:
        """Where a path of the working directory is."""
        return self._root + path

    # The walk

    def _directory(self, path: bytes, tree: ObjectID | None) -> None:
        known = None if tree is None else self._remembered(path, tree)
        try:
            with os.scandir(self._root + path) as listing:
                if known is None:
                    nothing = self._new_directory(path, listing)
                else:
                    nothing = self._known_directory(path, known, listing)
        except (FileNotFoundError, NotADirectoryError):
            if tree is not None:
                self._lost(path, (DIRECTORY_MODE, tree))
        except OSError as error:
            self._leave_out(path, os.strerror(error.errno or 0))
        else:
            if nothing and path and tree not in EMPTY_TREES:
                self.empty[path] = tree is not None

    def _known_directory(
        self, path: bytes, known: Remembered, listing: Iterator[os.DirEntry[bytes]]
    ) -> bool:
        """Compare a directory with what is remembered of it; True if it holds nothing at all."""
        self._directories[path] = known
        files, others = known.files, known.others
        prefix = path + b"/" if path else b""
        present: list[bytes] = []
        nothing = True
        for entry in listing:
            nothing = False
            name = entry.name
            remembered = files.get(name)
            try:
                if remembered is not None:
                    status = entry.stat(follow_symlinks=False)
                    present.append(name)
                    if remembered != (
                        status.st_mode,
                        status.st_size,
                        status.st_mtime_ns,
                        status.st_ctime_ns,
                        status.st_ino,
                    ):
                        self._differs(prefix + name, known.entries()[name], entry, status)
                elif name in others:
                    self._other(prefix + name, others[name], entry)
                    present.append(name)
                elif self._is_wanted(prefix + name):
                    self._new(prefix + name, entry)
            except FileNotFoundError:
                continue
        if len(present) < len(files) + len(others):
            for name in (files.keys() | others.keys()).difference(present):
                if not always_ignored(name):
                    self._lost(prefix + name, known.entries()[name])
        return nothing

    def _new_directory(self, path: bytes, listing: Iterator[os.DirEntry[bytes]]) -> bool:
        """Look at a directory that the tree does not have; True if it holds nothing at all."""
        nothing = True
        for entry in listing:
            nothing = False
            name = path + b"/" + entry.name if path else entry.name
            if self._is_wanted(name):
                try:
                    self._new(name, entry)
                except FileNotFoundError:
                    continue
        return nothing

    def _differs(
        self, path: bytes, old: Entry, entry: os.DirEntry[bytes], status: os.stat_result
    ) -> None:
        """A file or link of the tree, whose stat is not the one remembered."""
        if always_ignored(entry.name):
            return
        if stat.S_ISDIR(status.st_mode) and self._is_wanted(path):
            self._lost(path, old, wanted=True)
            self._new(path, entry)
        elif within(path, self._paths):
            if stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
                self.found.append(Found(path, old, status))
            else:
                self._lost(path, old)
                self._new(path, entry, tracked=True)

    def _other(self, path: bytes, old: Entry, entry: os.DirEntry[bytes]) -> None:
        """A directory of the tree, or a link to another repository, which is left as it is."""
        if always_ignored(entry.name) or not self._is_wanted(path):
            return
        if not entry.is_dir(follow_symlinks=False):
            self._lost(path, old)
            self._new(path, entry, tracked=old[0] == GITLINK_MODE)
        elif old[0] == DIRECTORY_MODE and not self._is_covered(path, old[1]):
            self._todo.append((path, old[1]))

    def _new(self, path: bytes, entry: os.DirEntry[bytes], *, tracked: bool = False) -> None:
        """Something that the tree does not have, or has as another kind of thing."""
        if always_ignored(entry.name):
            return
        is_dir = entry.is_dir(follow_symlinks=False)
        if is_dir and self._is_mountpoint(path):
            return
        if not tracked and self._rules.is_ignored(path, is_dir):
            self.ignored += 1
        elif is_dir and self._repo.git is not None and os.path.lexists(self.host(path) + b"/.git"):
            self._leave_out(path, ANOTHER_REPOSITORY)
        elif is_dir:
            self._todo.append((path, None))
        elif within(path, self._paths):
            status = entry.stat(follow_symlinks=False)
            special = _SPECIAL.get(stat.S_IFMT(status.st_mode))
            if special:
                self._leave_out(path, special)
            else:
                self.found.append(Found(path, None, status))

    def _lost(self, path: bytes, old: Entry, *, wanted: bool = False) -> None:
        """The tree has something that is not there, or is something else now."""
        todo = [(path, old, wanted)]
        while todo:
            path, (mode, id), inside = todo.pop()
            if not inside and within(path, self._paths):
                self.removed.append(path)
                inside = True
            if mode == DIRECTORY_MODE and id not in EMPTY_TREES:
                if inside or self._is_wanted(path):
                    entries = self._store.tree_entries(id)
                    todo += [(path + b"/" + n, (m, i), inside) for n, m, i in entries]
            elif inside:
                self.gone[path] = (mode, id)

    def _leave_out(self, path: bytes, why: str) -> None:
        self.not_recorded.append(NotRecorded(path, why))

    def _is_wanted(self, path: bytes) -> bool:
        """Whether a path was asked for, or leads to one that was."""
        if not self._paths or within(path, self._paths):
            return True
        return any(wanted.startswith(path + b"/") for wanted in self._paths)

    def _is_mountpoint(self, path: bytes) -> bool:
        """Whether one of our own mounts covers a directory: its files are another thread's."""
        return self._root + path in self._mountpoints

    def _is_covered(self, path: bytes, tree: ObjectID) -> bool:
        """Whether a directory of the tree has a mount of ours on it, which takes an empty one."""
        return tree in EMPTY_TREES and self._is_mountpoint(path)

    @cached_property
    def _mountpoints(self) -> frozenset[bytes]:
        return _heddle_mountpoints()

    def _read_rules(self, path: bytes) -> bytes | None:
        return read_rules(self._root + path)

    def checkin(self, writer: PackWriter | None = None) -> Checkin:
        """Takes files of the directory as git would store them; see there."""
        git = self._repo.git
        if git is None or git.bare:
            git = None
        return Checkin(self._repo, git, self._repo.path, self._read_attributes, writer)

    def _read_attributes(self, path: bytes) -> bytes | None:
        """The content of an attribute file: of one that git leaves out of the checkout, the tree's."""
        content = self._read_rules(path)
        if content is None and self._left_out and path in self._left_out and self._tree:
            from heddle.repo.log import entry_at

            entry = entry_at(self._repo, self._tree, path)
            if entry is not None and stat.S_ISREG(entry[0]):
                return b"".join(self._store.iter_blob(entry[1]))
        return content

    # What is remembered

    def _believe_git(self) -> None:
        """Take files out of those found that git knows to be what the tree says.

        It saves reading them, at the first look at a checkout above all; and only git can say it of files that
        differ from their blobs because line endings were converted or a filter was applied.
        """
        git = self._repo.git
        candidates = [] if git is None or git.bare else self._comparable()
        if git is None or not candidates:
            return
        from heddle.repo.gitstage import unchanged

        known = unchanged(
            git.path / "index",
            [(each.path, each.status, bytes.fromhex(id.decode())) for each, id in candidates],
            self._store.id_length,
        )
        now_ns = time.time_ns()
        for found, id in candidates:
            if found.path in known:
                seen = stat_of(found.status)
                self.verified(found.path, Taken(id, seen, is_settled(seen, now_ns)))
        self.found = [found for found in self.found if found.path not in known]

    def _heed_skipped(self) -> None:
        """What git leaves out of the checkout (sparse, skip-worktree) is as the tree has it, whatever is there."""
        git = self._repo.git
        if git is None or git.bare or not (self.gone or self.found or self.empty):
            return
        from heddle.repo.gitstage import skipped

        left_out = skipped(git.path / "index", self._store.id_length)
        if not left_out:
            return
        self._left_out = left_out
        self.found = [each for each in self.found if each.old is None or each.path not in left_out]
        removed = []
        for path in self.removed:
            if left_out.lie_below(path):
                removed += [each for each in self.gone if within(each, [path])]
            else:
                removed.append(path)
        self.removed = [path for path in removed if path not in left_out]
        self.gone = {path: old for path, old in self.gone.items() if path not in left_out}
        self.empty = {path: old for path, old in self.empty.items() if not left_out.lie_below(path)}

    def _forgive_empty(self) -> None:
        """In a git checkout nobody misses directories that hold nothing: git neither makes them nor keeps them."""
        git = self._repo.git
        empty = {path for path, (mode, _) in self.gone.items() if mode == DIRECTORY_MODE}
        if git is None or git.bare or not empty:
            return
        missed = {top for path in self.gone.keys() - empty for top in _and_above(path)}
        forgiven = {
            top for top in self.removed if top not in missed and not os.path.lexists(self.host(top))
        }
        self.removed = [top for top in self.removed if top not in forgiven]
        for path in empty:
            if not forgiven.isdisjoint(_and_above(path)):
                del self.gone[path]

    def mode_of(self, st_mode: int, old: Entry | None) -> int:
        """The mode that git gives a file here; see `git_mode`."""
        return git_mode(
            st_mode, old, trusted=self._repo.trusts_modes, links=self._repo.has_symlinks
        )

    def _comparable(self) -> list[tuple[Found, ObjectID]]:
        """The files found whose mode is the tree's, so that nothing but their content may differ."""
        return [
            (found, found.old[1])
            for found in self.found
            if found.old is not None
            and self.mode_of(found.status.st_mode, found.old) == found.old[0]
        ]

    def _remembered(self, path: bytes, tree: ObjectID) -> Remembered:
        """The row of a directory; of another tree's row, what holds for this tree too."""
        row = self._cache.get(path)
        if row is not None and row.tree == tree:
            return row
        entries = {name: (mode, id) for name, mode, id in self._store.tree_entries(tree)}
        fresh = Remembered(tree, entries)
        self._stale.add(path)
        if row is not None:
            fresh.take_over(row)
        return fresh

    def verified(self, path: bytes, taken: Taken) -> None:
        """A file that was found turned out to be what the tree says."""
        directory, _, name = path.rpartition(b"/")
        if taken.settled:
            self._directories[directory].files[name] = taken.stat
            self._stale.add(directory)

    def save(
        self,
        rebuilt: Mapping[bytes, tuple[ObjectID, Mapping[bytes, Entry]]] = {},
        stats: Mapping[bytes, Stat] = {},
    ) -> None:
        """Write what was learned to the stat cache.

        Args:
            rebuilt: directories that have another tree by now, with their entries.
            stats: of files in them that were read and settled.
        """
        for path in self._stale.difference(rebuilt):
            self._cache.put(path, self._directories[path])
        for path, (tree, entries) in rebuilt.items():
            row = Remembered(tree, entries)
            if path in self._directories:
                row.take_over(self._directories[path])
            prefix = path + b"/" if path else b""
            row.files.update((n, stats[prefix + n]) for n in row.files if prefix + n in stats)
            self._cache.put(path, row)
        if not self._paths:
            self._cache.keep_only({*self._directories, *rebuilt})
        self._cache.save()


def _and_above(path: bytes) -> Iterator[bytes]:
    """A path and the directories that lead to it."""
    while path:
        yield path
        path = path.rpartition(b"/")[0]


def status(repo: Repository, *, paths: Sequence[bytes] = ()) -> Status:
    """Compare the plain working directory with the state it was last at.

    A file whose stat is the remembered one is not read. What was read and found unchanged is remembered, so
    that the next call need not read it again.

    Args:
        paths: only these paths and what lies below them.
    """
    with collector_paused():
        base = repo.worktree_base()
        scan = Scan(repo, None if base is None else repo.state(base).tree, paths=paths)
        changes = _Comparison(repo, scan).changes()
        scan.save()
    return Status(tuple(changes), scan.ignored, tuple(scan.not_recorded))


class _Comparison:
    """Makes changes of what a scan found, reading only files that nothing else can tell apart."""

    def __init__(self, repo: Repository, scan: Scan) -> None:
        self._store = repo.store
        self._scan = scan
        self._new: dict[bytes, tuple[int, ObjectID | None] | None] = {}

    def changes(self) -> list[Change]:
        old = [*self._scan.gone.values(), *(each.old for each in self._scan.found if each.old)]
        self._store.learn_sizes(id for mode, id in old if stat.S_ISREG(mode))
        sizes = {
            self._store.size(id) for mode, id in self._scan.gone.values() if stat.S_ISREG(mode)
        }
        if self._scan.found:
            with self._scan.checkin() as checkin:
                self._read(checkin, sizes)
        changes = list(self._compared())
        changes.sort(key=lambda change: change.path)
        return find_renames(changes)

    def _read(self, checkin: Checkin, sizes: set[int]) -> None:
        found = self._scan.found
        with suppress(HeddleError):  # said of each file that needs git
            checkin.ask(found)
        wanted = [each for each in found if self._must_be_read(each, checkin, sizes)]
        checkin.take_all(wanted, self._note, self._note_failure)

    def _must_be_read(self, found: Found, checkin: Checkin, sizes_of_gone: set[int]) -> bool:
        """Whether only the bytes tell that a file is unchanged, or that it was moved here."""
        mode, size = found.status.st_mode, found.status.st_size
        if stat.S_ISLNK(mode):
            return True
        if found.old is None:
            return size in sizes_of_gone
        return checkin.may_become(found, self._store.size(found.old[1]))

    def _note(self, found: File, taken: Taken) -> None:
        entry = self._scan.mode_of(taken.stat[0], found.old), taken.id
        self._new[found.path] = entry
        if entry == found.old:
            self._scan.verified(found.path, taken)

    def _note_failure(self, found: File, error: Exception) -> None:
        """One that can't be had counts as changed, for what it is."""
        if isinstance(error, FileNotFoundError):
            self._new[found.path] = None
        elif isinstance(error, NotReadable):
            self._scan.not_recorded.append(NotRecorded(found.path, str(error)))
            self._new[found.path] = found.old

    def _compared(self) -> Iterator[Change]:
        gone = self._scan.gone.copy()
        for found in self._scan.found:
            unread = self._scan.mode_of(found.status.st_mode, found.old), None
            new = self._new.get(found.path, unread)
            old = gone.pop(found.path, found.old)
            if old != new:
                yield change_between(found.path, old, new)
        for path, was_there in self._scan.empty.items():
            old = gone.pop(path, None)
            if not was_there:
                yield change_between(path, old, (DIRECTORY_MODE, None))
        for path, old in gone.items():
            yield change_between(path, old, None)


@contextmanager
def checkin_of(
    repo: Repository,
    changes: Iterable[Change],
    *,
    git: GitDir | None = None,
    index: Path | None = None,
    root: Path | None = None,
) -> Iterator[tuple[Checkin, list[Found]]]:
    """Takes changed paths of a directory as git would store them.

    Args:
        repo: the repository.
        changes: what differs from what is recorded.
        git: git's things of the directory; None: the repository's.
        index: git's index of it; None: the one among them.
        root: the directory; None: the working directory.

    Yields:
        What takes them, and those of them that are there.
    """
    top = os.fsencode(root or repo.path) + b"/"
    files = []
    for change in changes:
        with suppress(OSError):
            status = os.lstat(top + change.path)
            is_file = change.old_mode is not None and change.old_mode != DIRECTORY_MODE
            old = cast("Entry", (change.old_mode, change.old_id)) if is_file else None
            files.append(Found(change.path, old, status))
    with Checkin(
        repo,
        git or repo.git,
        root or repo.path,
        lambda path: read_rules(top + path),
        index=index,
    ) as checkin:
        yield checkin, files


@contextmanager
def reading(
    repo: Repository,
    changes: Iterable[Change],
    *,
    git: GitDir | None = None,
    index: Path | None = None,
    root: Path | None = None,
    read: Callable[[bytes], bytes] | None = None,
) -> Iterator[Callable[[bytes], bytes]]:
    """What reads changed paths of a directory as they would be captured, for a comparison.

    Args:
        repo, changes, git, index, root: as for ``checkin_of``.
        read: reads a file as it is, or a link's target; None: from the directory.

    Raises:
        HeddleError: by what is yielded, if git can't convert the file.
    """
    top = os.fsencode(root or repo.path) + b"/"
    with checkin_of(repo, changes, git=git, index=index, root=root) as (checkin, files):
        yield checkin.reading(files, read or (lambda path: read_file(top + path)))


def read_file(host: bytes) -> bytes:
    """The content of a file, or where a link leads."""
    try:
        return os.readlink(host)
    except OSError:
        with open(host, "rb") as file:
            return file.read()


def git_mode(st_mode: int, old: Entry | None, *, trusted: bool = True, links: bool = True) -> int:
    """The mode that git gives a file or link; an older form of the same one is kept.

    Args:
        st_mode: as stat(2) has it.
        old: what the tree has.
        trusted: whether executable bits mean anything here (git-config(1), ``core.fileMode``).
        links: whether there are symbolic links here, not files instead that hold where they lead (``core.symlinks``).
    """
    if stat.S_ISLNK(st_mode) or (not links and old is not None and stat.S_ISLNK(old[0])):
        return LINK_MODE
    old_mode = old[0] if old is not None and stat.S_ISREG(old[0]) else None
    if not trusted:
        return FILE_MODE if old_mode is None else old_mode
    if old_mode is not None and bool(old_mode & 0o100) == bool(st_mode & 0o100):
        return old_mode
    return EXECUTABLE_MODE if st_mode & 0o100 else FILE_MODE


def read_rules(host: bytes) -> bytes | None:
    """The content of a rule file; a link, a directory and what can't be read hold no rules."""
    try:
        fd = os.open(host, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(fd, "rb") as file:
        return file.read() if stat.S_ISREG(os.fstat(fd).st_mode) else None


def _heddle_mountpoints() -> frozenset[bytes]:
    """Where heddle's mounts are, as the kernel says and without touching them."""
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            return mountpoints_in(file.read())
    except OSError:
        return frozenset()


def mountpoints_in(table: bytes) -> frozenset[bytes]:
    """Where heddle's mounts are in a mount table (proc_pid_mountinfo(5))."""
    found = _MOUNT_LINE.findall(table)
    return frozenset(_OCTAL.sub(lambda code: bytes([int(code[1], 8)]), path) for path in found)


@contextmanager
def working_directory_locked(repo: Repository) -> Iterator[None]:
    """Let one command at a time change the working directory or make a state of it.

    Raises:
        Busy: another one has been at it for too long.
    """
    from heddle.repo.locks import file_locked_nowait

    deadline = time.monotonic() + _LOCK_WAIT_S
    while True:
        with file_locked_nowait(repo.heddle_dir / "worktree.lock") as free:
            if free:
                yield
                return
        if time.monotonic() > deadline:
            raise Busy(
                f"another command is busy with the working directory {repo.path}",
                hint="run it again when that has ended",
            )
        time.sleep(0.02)
