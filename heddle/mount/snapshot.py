"""What a mount's view holds that its base does not, and the tree that a capture makes of it.

One walk serves status, diff and capture. It visits the directories that have a place in the upper, and nothing else:
what was never changed is known by its tree id. Owns what of a POSIX tree a git tree can say; the view itself is
`core.py`'s.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeGuard, cast

from heddle.mount import upper as up
from heddle.mount.core import ContentAddressedMount
from heddle.mount.depth import any_depth
from heddle.mount.lower import GITLINK, Lower, TreeEntries
from heddle.mount.nodes import DirNode, FileNode, Node
from heddle.mount.partial import Reader, reader
from heddle.repo.capture import NotRecorded
from heddle.repo.changes import (
    ANOTHER_REPOSITORY,
    Change,
    change_between,
    normalised,
    not_kept_of_mode,
    within,
)
from heddle.repo.conversions import Attributes, Convertible, Kind, may_become, watched
from heddle.repo.gitstage import Seen, Skipped, Staged
from heddle.repo.ignore import IgnoreRules, always_ignored
from heddle.repo.worktree import git_mode

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.objects.pack import PackWriter

Entry: TypeAlias = "tuple[int, ObjectID | None]"

DIRECTORY = 0o040000
SYMLINK = 0o120000
NOTHING_SKIPPED = Skipped()
_STREAMED = 4 << 20  # bytes above which a file is never held whole
_CHUNK = 1 << 20


class Unknown(NamedTuple):
    """A changed file whose blob id nobody knows yet.

    Attributes:
        path: from the root of the mount.
        status: of the real file when the walk met it.
        comparable: the base has a file here that it may be stored as: only its bytes can tell whether it changed.
        open: a program may be writing it.
        kind: what git may do to it.
        lines: what of that to line endings.
        base: what the base has here, if that is a file.
    """

    path: bytes
    status: os.stat_result
    comparable: bool
    open: bool
    kind: Kind
    lines: Kind
    base: tuple[int, ObjectID] | None


class Stored(NamedTuple):
    """A real file that this walk stored or found stored, as ``ContentAddressedMount.mark_stored`` takes it."""

    directory: DirNode
    name: bytes
    status: os.stat_result
    blob: ObjectID
    cleaned: int | None


class _Unconverted(Exception):
    """What git makes of a file is not known, and not to be found out while the view stands still."""


class _Result(NamedTuple):
    """What a directory comes to.

    Attributes:
        tree: its tree id; None when nothing of it can be recorded, or nothing is built.
        present: there is something to record, if only an empty directory.
    """

    tree: ObjectID | None
    present: bool


class Snapshot:
    """One walk over the view.

    Args:
        core: the view.
        base: root tree to compare with, None for none.
        exclude: rules of the whole repository (``.git/info/exclude``).
        writer: build trees and store files in it; None only compares.
        ahead_of: the writer that a later walk is to store files in: a known file that is not stored is unknown.
        paths: look at these and what is below them only; elsewhere the base stands.
        hash_unknown: read files that only their bytes can tell from the base's.
        umask: modes that it gives are not told as not recorded.
        skipped: what git leaves out of the mount: the base stands there.
        staged: git's index of the mount; called when something may be asked of it.
        trusts_modes: executable bits mean something.
        everywhere: rules of git's for conversions that are in no directory; None: nothing is converted.
        plain: files that no attribute but those of line endings speaks about; what is not in it is not known.
        on_git: a new directory with a ``.git`` is another repository, whose link only git records.

    Attributes:
        changes: what differs from the base, path by path, without renames.
        ignored: entries left out because of ignore rules, a directory counted once.
        not_recorded: what a git tree can't hold.
        unknown: changed files whose id is not known (when they were not hashed or stored here).
        unconverted: changed files that could not be stored, since git would have had to convert them.
        attributes: what git may do to files.
        stored: real files whose blob is known now.
        size: bytes of the changed files.
    """

    def __init__(
        self,
        core: ContentAddressedMount,
        base: ObjectID | None,
        *,
        exclude: bytes = b"",
        writer: PackWriter | None = None,
        ahead_of: PackWriter | None = None,
        paths: Sequence[bytes] = (),
        hash_unknown: bool = True,
        umask: int = 0o022,
        skipped: Skipped = NOTHING_SKIPPED,
        staged: Callable[[], Staged | None] = lambda: None,
        on_git: bool = False,
        trusts_modes: bool = True,
        everywhere: bytes | None = None,
        plain: Container[bytes] = (),
    ) -> None:
        self.changes: list[Change] = []
        self.ignored = 0
        self.not_recorded: list[NotRecorded] = []
        self._left_out = 0  # of these, what is not in the state at all
        self.unknown: list[Unknown] = []
        self.unconverted: list[bytes] = []
        self.stored: list[Stored] = []
        self.size = 0
        self._core = core
        self._base = base
        self._writer = writer
        self._stores_in = writer or ahead_of
        self._paths = normalised(paths)
        self._hash_unknown = hash_unknown
        self._umask = umask
        self._skipped = skipped
        self._read_staged = staged
        self._on_git = on_git
        self._trusts_modes = trusts_modes
        self._rules = IgnoreRules(self._read_rules, exclude=exclude)
        self._converts = everywhere is not None
        self.attributes = Attributes(self._read_rules, everywhere=everywhere or b"")
        self._plain = plain
        self._visited: list[tuple[DirNode, int]] = []

    def take(self) -> ObjectID | None:
        """Walk; returns the root's tree id when a writer was given."""
        with any_depth():
            result = self._directory(self._core.root, self._core.root.lower, self._base, b"")
        self.changes.sort(key=lambda change: change.path)
        if self._writer is not None and result.tree is None:
            return self._writer.add_tree([])
        return result.tree

    def mark_clean(self) -> None:
        """After a capture of everything: what was visited equals the new base."""
        if not self._paths and not self._left_out:
            for directory, ignored in self._visited:
                directory.clean, directory.ignored = self._core.epoch, ignored

    # --- directories ---------------------------------------------------------------------------------

    def _directory(
        self, node: DirNode | None, lower: ObjectID | None, base: ObjectID | None, path: bytes
    ) -> _Result:
        """One directory.

        Args:
            node: its node when it has a place in the upper, else None.
            lower: the tree that shows through.
            base: the base's tree at this path.
            path: of the directory.
        """
        if node is None and lower == base:
            return _Result(base, True)
        if base is not None and self._is_clean(node):
            self.ignored += node.ignored
            return _Result(base, True)
        before = len(self.changes), self._left_out, self.ignored
        entries = self._entries(node, lower, base, path)
        ignored = self.ignored - before[2]
        left_out = ignored or self._left_out > before[1]
        if node is not None:
            self._visited.append((node, ignored))
            if (len(self.changes), self._left_out) == before[:2] and not self._paths:
                node.clean, node.ignored = self._core.epoch, ignored
        if not entries and left_out and not self._is_empty(base):
            return _Result(None, False)
        if self._writer is None:
            return _Result(None, True)
        hidden = self._core.lower.hidden_entries(lower) if lower is not None else []
        listed = [(name, mode, oid) for name, (mode, oid) in entries.items() if oid is not None]
        return _Result(self._writer.add_tree([*listed, *hidden]), True)

    def _is_clean(self, node: DirNode | None) -> TypeGuard[DirNode]:
        """Say whether a directory was found equal to the base and not touched since."""
        return node is not None and node.clean == self._core.epoch and not self._paths

    def _is_empty(self, tree: ObjectID | None) -> bool:
        return tree is not None and not self._core.lower.entries(tree)

    def _entries(
        self, node: DirNode | None, lower: ObjectID | None, base: ObjectID | None, path: bytes
    ) -> dict[bytes, Entry]:
        """Everything in a directory that can be recorded, reporting what differs from the base on the way."""
        below = self._core.lower.entries(lower)
        recorded = self._core.lower.entries(base)
        names = {} if node is None else self._core.names(node)
        entries: dict[bytes, Entry] = dict(below)
        candidates = set(names) if lower == base else {*names, *below, *recorded}
        prefix = path + b"/" if path else b""
        for name in sorted(candidates):
            entry = self._entry(node, names.get(name), below, recorded.get(name), prefix + name)
            if entry is None:
                entries.pop(name, None)
            else:
                entries[name] = entry
        return entries

    def _entry(
        self,
        node: DirNode | None,
        whiteout: bool | None,
        below: TreeEntries,
        base: tuple[int, ObjectID] | None,
        path: bytes,
    ) -> Entry | None:
        """One name: what of it is recorded."""
        name = path.rpartition(b"/")[2]
        if not self._is_selected(path) or (base is not None and path in self._skipped):
            return base
        if not within(path, self._paths) and not self._shows_directory(node, whiteout, below, name):
            is_directory = base is not None and stat.S_ISDIR(base[0])
            return self._walked(None, None, base, path) if is_directory else base
        if whiteout is True or always_ignored(name):
            return None if base is None else self._deleted(path, base)
        if whiteout is False:
            assert node is not None
            return self._upper_entry(node, name, base, path)
        return self._captured_entry(below.get(name), base, path)

    def _is_selected(self, path: bytes) -> bool:
        if not self._paths or within(path, self._paths):
            return True
        return any(wanted.startswith(path + b"/") for wanted in self._paths)

    def _shows_directory(
        self, node: DirNode | None, whiteout: bool | None, below: TreeEntries, name: bytes
    ) -> bool:
        if whiteout is None:
            return name in below and stat.S_ISDIR(below[name][0])
        assert node is not None
        where = self._core.fd(node)
        return not whiteout and stat.S_ISDIR(
            os.stat(name, dir_fd=where, follow_symlinks=False).st_mode
        )

    # --- what shows through ------------------------------------------------------------------------------

    def _captured_entry(
        self, entry: tuple[int, ObjectID] | None, base: tuple[int, ObjectID] | None, path: bytes
    ) -> Entry | None:
        """A name that the lower shows (of a directory that was moved here, or of an older base)."""
        if entry == base:
            return entry
        if entry is not None and base is None and self._is_ignored(path, entry[0]):
            return None
        if entry is None or not stat.S_ISDIR(entry[0]):
            return self._leaf(path, base, entry)
        return self._walked(None, entry[1], base, path)

    def _is_ignored(self, path: bytes, mode: int) -> bool:
        if self._rules.is_ignored(path, stat.S_ISDIR(mode)):
            self.ignored += 1
            return True
        return False

    def _walked(
        self,
        node: DirNode | None,
        lower: ObjectID | None,
        base: tuple[int, ObjectID] | None,
        path: bytes,
    ) -> Entry | None:
        """A directory with all below it; one that is empty and came or went is a change in itself."""
        tree = base[1] if base is not None and stat.S_ISDIR(base[0]) else None
        before = len(self.changes)
        result = self._directory(node, lower, tree, path)
        is_silent = len(self.changes) == before
        if is_silent and tree is None and not within(path, self._paths):
            return base  # of what is below nothing was asked for
        if is_silent and tree is None and result.present:
            empty = None if self._writer is None else self._writer.add_tree([])
            self.changes.append(change_between(path, base, (DIRECTORY, empty)))
        elif base is not None and (tree is None or (not result.present and self._is_empty(tree))):
            self._report_deleted(path, base)
        return (DIRECTORY, result.tree) if result.present else None

    def _leaf(
        self, path: bytes, base: tuple[int, ObjectID] | None, entry: Entry | None
    ) -> Entry | None:
        """A name that is not a directory now, or is nothing: report how it differs."""
        if base is not None and stat.S_ISDIR(base[0]) and not self._is_empty(base[1]):
            self._report_deleted(path, base)
            base = None
        if entry != base:
            self.changes.append(change_between(path, base, entry))
        return entry

    def _deleted(self, path: bytes, base: tuple[int, ObjectID]) -> Entry | None:
        """A name that is gone: what of it stays recorded, because git leaves it out of the mount."""
        if path in self._skipped:
            return base
        if not stat.S_ISDIR(base[0]) or not self._skipped.lie_below(path):
            self._report_deleted(path, base)
            return None
        kept = {
            name: self._deleted(path + b"/" + name, entry)
            for name, entry in self._core.lower.entries(base[1]).items()
        }
        if self._writer is None:
            return (DIRECTORY, None)
        listed = [(name, *entry) for name, entry in kept.items() if entry is not None]
        hidden = self._core.lower.hidden_entries(base[1])
        return (DIRECTORY, self._writer.add_tree([*listed, *hidden]))  # type: ignore[list-item]

    def _report_deleted(self, path: bytes, base: tuple[int, ObjectID]) -> None:
        if not stat.S_ISDIR(base[0]):
            self.changes.append(change_between(path, base, None))
            return
        inside = self._core.lower.entries(base[1])
        if not inside:
            self.changes.append(change_between(path, base, None))
        for name, entry in inside.items():
            self._report_deleted(path + b"/" + name, entry)

    # --- what is in the upper ------------------------------------------------------------------------------

    def _upper_entry(
        self, parent: DirNode, name: bytes, base: tuple[int, ObjectID] | None, path: bytes
    ) -> Entry | None:
        core = self._core
        status = os.stat(name, dir_fd=core.fd(parent), follow_symlinks=False)
        kind = stat.S_IFMT(status.st_mode)
        if base is None and self._is_ignored(path, kind):
            return None
        if kind == stat.S_IFDIR:
            return self._upper_directory(parent, name, base, path)
        if kind == stat.S_IFLNK:
            return self._leaf(path, base, self._symlink(parent, name))
        if kind == stat.S_IFREG:
            return self._upper_file(parent, name, status, base, path)
        self.not_recorded.append(NotRecorded(path, f"{_KINDS.get(kind, 'a special file')}"))
        self._left_out += 1
        if base is not None:
            self._report_deleted(path, base)
        return None

    def _upper_directory(
        self, parent: DirNode, name: bytes, base: tuple[int, ObjectID] | None, path: bytes
    ) -> Entry | None:
        if base is not None and base[0] == GITLINK:
            return base  # a submodule's own files are its own repository's business
        node = self._core.child(parent, name)
        assert isinstance(node, DirNode)
        if base is None and self._on_git and self._core.names(node).get(b".git") is False:
            self._core.drop_if_unused(node)
            self.not_recorded.append(NotRecorded(path, ANOTHER_REPOSITORY))
            self._left_out += 1
            return None
        node.lookups += 1  # reading rules on the way may let go of what nobody holds
        try:
            return self._walked(node, node.lower, base, path)
        finally:
            node.lookups -= 1
            self._core.drop_if_unused(node)

    def _symlink(self, parent: DirNode, name: bytes) -> Entry:
        target = os.readlink(name, dir_fd=self._core.fd(parent))
        if self._writer is not None:
            return (SYMLINK, self._writer.add_blob(target))
        return (SYMLINK, self._hash(iter([target]), len(target)))

    def _upper_file(
        self,
        parent: DirNode,
        name: bytes,
        status: os.stat_result,
        base: tuple[int, ObjectID] | None,
        path: bytes,
    ) -> Entry | None:
        core = self._core
        live = core.live_file(parent, name, status)
        where = up.entry_path(core.fd(parent), name)
        marks = up.read_marks(where) if live is None else live.marks
        permissions = status.st_mode if marks is None or marks.mode is None else marks.mode
        mode = git_mode(permissions, base, trusted=self._trusts_modes)
        blob, cleaned = self._known_as(status, marks, base, path)
        if blob is not None and not self._is_kept(blob, marks):
            blob = None
        if self._is_as_git_made_it(parent, name, (mode, blob), base, path):
            return base
        size = marks.size if marks is not None and marks.blob is not None else status.st_size
        if blob is None:
            cleaned = None
            try:
                blob = self._identify(parent, name, status, base, path, live)
            except _Unconverted:
                self.unconverted.append(path)
                self.not_recorded.append(NotRecorded(path, "it kept changing while it was read"))
                self._left_out += 1
                return base
        if base is None or base != (mode, blob):
            self.size += size
            why = not_kept_of_mode(permissions, self._umask)
            if why is not None:
                self.not_recorded.append(NotRecorded(path, why))
        says = None if marks is None else (marks.blob or marks.stored, marks.cleaned)
        if blob is not None and says != (blob, cleaned):
            self.stored.append(Stored(parent, name, status, blob, cleaned))
        return self._leaf(path, base, (mode, blob))

    def _known_as(
        self,
        status: os.stat_result,
        marks: up.Marks | None,
        base: tuple[int, ObjectID] | None,
        path: bytes,
    ) -> tuple[ObjectID | None, int | None]:
        """The blob that a file is known to be stored as, and its size if that has other bytes."""
        core = self._core
        recorded = None if base is None else base[1]
        noted = core.noted(status, marks, recorded)
        if noted is not None:
            is_hole = marks is not None and marks.blob is not None
            if is_hole or noted[0] == recorded or self._kind(path) == Kind.NOTHING:
                return noted
        known = core.known.get(status.st_ino)
        if known is None or not known.is_of(status):
            return None, None
        at_path = known.places.get((path, core.epoch))
        if at_path is not None:
            return at_path
        return (known.blob, None) if self._kind(path) == Kind.NOTHING else (None, None)

    def _kind(self, path: bytes) -> Kind:
        """What git may do to a file."""
        kind = self.attributes.kind(path) if self._converts else Kind.NOTHING
        return self._lines(path) if kind == Kind.ANYTHING and path in self._plain else kind

    def _lines(self, path: bytes) -> Kind:
        """What of that to line endings."""
        return self.attributes.lines(path) if self._converts else Kind.NOTHING

    def _is_as_git_made_it(
        self,
        parent: DirNode,
        name: bytes,
        entry: Entry,
        base: tuple[int, ObjectID] | None,
        path: bytes,
    ) -> bool:
        """Whether git in the mount wrote the base's file, with line endings converted, say, or by a filter."""
        if base is None or entry == base or entry[0] != base[0] or self._staged is None:
            return False
        node = self._core.child(parent, name)
        assert node is not None
        attrs = self._core.attrs_of(node)
        self._core.drop_if_unused(node)
        seen = Seen(attrs.ctime_ns, attrs.mtime_ns, attrs.ino, attrs.size)
        return self._staged.holds(path, seen, bytes.fromhex(base[1].decode()))

    @cached_property
    def _staged(self) -> Staged | None:
        return self._read_staged()

    def _is_kept(self, blob: ObjectID, marks: up.Marks | None) -> bool:
        """Say whether a known blob need not be stored: a status only hashed it, a failed capture's pack is gone."""
        if self._stores_in is None or (marks is not None and blob in (marks.blob, marks.stored)):
            return True
        return blob in self._stores_in or blob in self._core.lower.store

    def _identify(
        self,
        parent: DirNode,
        name: bytes,
        status: os.stat_result,
        base: tuple[int, ObjectID] | None,
        path: bytes,
        live: object,
    ) -> ObjectID | None:
        """The blob id of a file that nobody knows: store it, hash it if only that can tell, or note it for later.

        Raises:
            _Unconverted: it is to be stored, and git may store something else.
        """
        kind = self._kind(path)
        recorded = base if base is not None and stat.S_ISREG(base[0]) else None
        stored = None if recorded is None else self._core.lower.size_if_known(recorded[1])
        comparable = recorded is not None and (
            stored is None or may_become(kind, status.st_size, stored)
        )
        is_worth_it = kind == Kind.NOTHING or stored in (status.st_size, None)
        if self._writer is None and not (comparable and is_worth_it and self._hash_unknown):
            is_open = isinstance(live, FileNode) and live.writers > 0
            self.unknown.append(
                Unknown(path, status, comparable, is_open, kind, self._lines(path), recorded)
            )
            return None
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._core.fd(parent))
        try:
            read = shown_bytes(self._core.lower, fd)
            if self._writer is None:
                blob = hash_file(read, status.st_size, self._core.lower.object_format)
                is_told = kind == Kind.NOTHING or (recorded is not None and blob == recorded[1])
                return blob if is_told else None
            if kind == Kind.ANYTHING:
                raise _Unconverted
            return store_file(self._writer, watched(read, kind), status.st_size)
        except Convertible:
            raise _Unconverted from None
        finally:
            os.close(fd)

    def _hash(self, pieces: Iterator[bytes], size: int) -> ObjectID:
        return hash_blob(pieces, size, self._core.lower.object_format)

    def _read_rules(self, path: bytes) -> bytes | None:
        """The content of an ignore file as the view shows it."""
        with found(self._core, path) as node:
            if not isinstance(node, FileNode) or not stat.S_ISREG(self._core.attrs_of(node).mode):
                return None
            return read_whole(self._core, node)


_KINDS = {
    stat.S_IFIFO: "a fifo",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def hash_blob(pieces: Iterator[bytes], size: int, object_format: str) -> ObjectID:
    """The git id of a blob given in pieces (gitformat: ``blob <size>NUL`` and the bytes)."""
    digest = hashlib.new(object_format, b"blob %d\0" % size)
    for piece in pieces:
        digest.update(piece)
    return cast("ObjectID", digest.hexdigest().encode())


def hash_file(read: Reader, size: int, object_format: str) -> ObjectID:
    """The git id of what is to be read, as a blob."""
    return hash_blob(pieces(read), size, object_format)


def shown_bytes(lower: Lower, fd: int) -> Reader:
    """What reads an open real file from its beginning, as it is shown."""
    marks = up.read_marks(fd)
    return reader(lower.read, fd, None if marks is None else marks.under)


def store_file(writer: PackWriter, read: Reader, size: int) -> ObjectID:
    """Store a file of a known size.

    Raises:
        ChangedWhileRead: it had more or fewer bytes.
    """
    if size > _STREAMED:
        return writer.add_blob_from(read, size)
    return writer.add_blob(b"".join(pieces(read)))


def pieces(read: Reader) -> Iterator[bytes]:
    """All that is to be read, bit by bit."""
    while piece := read(_CHUNK):
        yield piece


@contextmanager
def found(core: ContentAddressedMount, path: bytes) -> Iterator[Node | None]:
    """The node of a path from the root, which is the empty one; None: the view has none. Let go when the block ends."""
    node: Node | None = core.root
    last: Node = core.root
    for name in path.split(b"/") if path else ():
        node = core.child(node, name) if isinstance(node, DirNode) else None
        last = node or last
    try:
        yield node
    finally:
        core.drop_if_unused(last)


def read_whole(core: ContentAddressedMount, node: FileNode) -> bytes:
    """All bytes of a file, or a link's target."""
    if stat.S_ISLNK(core.attrs_of(node).mode):
        return core.read_link(node.ino)
    core.on_open(node.ino, write=False)
    try:
        return core.read(node.ino, 0, core.attrs_of(node).size)
    finally:
        core.release(node.ino)


def same_file(status: os.stat_result, before: os.stat_result) -> bool:
    """Whether a real file was not touched between two looks at it."""
    return (
        status.st_ino == before.st_ino
        and status.st_size == before.st_size
        and status.st_mtime_ns == before.st_mtime_ns
        and status.st_ctime_ns == before.st_ctime_ns
    )
