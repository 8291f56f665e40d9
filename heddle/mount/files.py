"""The bytes of files: opening, reading, writing, and bringing captured files into the upper for that.

Owns copy-up, which changes where a file or directory lies and nothing that is seen of it, and the rule that what was
known of a file's bytes is forgotten before they change.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from heddle import faults
from heddle.atomic import write_all
from heddle.mount import upper as up
from heddle.mount.nodes import DirNode, FileNode, Node, PinnedFile
from heddle.mount.partial import Partial
from heddle.mount.shell import (
    Caller,
    NodeId,
    NotAllowed,
)
from heddle.mount.upper import Marks, Upper
from heddle.mount.view import OPEN_FLAGS, View

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

log = logging.getLogger(__name__)

_COPY = 1 << 20  # bytes moved at a time
LARGE = 4 << 20  # bytes above which a file's bytes come up in parts

CREATE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Files(View):
    """A view whose files can be read and written."""

    # --- open files --------------------------------------------------------------------------------

    def on_open(
        self, node: NodeId, *, write: bool, truncate: bool = False, caller: Caller | None = None
    ) -> None:
        """Count an opener, and bring the bytes up if it may write.

        A caller that must not wait for a large copy calls `fill_size` first and does `start_fill` … `end_fill`.
        """
        found = self._file(node)
        if found.fd < 0 and self.upper is not None and (write or found.upper):
            self.require_descriptor()
        found.opens += 1
        found.writers += write
        try:
            if write:
                self._require_writable()
                if truncate:
                    self._truncate(found, 0)
                else:
                    self.bring_up(found)
                found.privileged = caller is None or caller.uid == 0
                found.cleared = False
            if found.upper:
                self._open_file(found, write=write)
            if truncate and not found.privileged:
                self._drop_set_id(found)
        except BaseException:
            self.release(node, write=write)
            raise

    def release(self, node: NodeId, *, write: bool = False) -> None:
        found = self._file(node)
        found.opens -= 1
        found.writers -= write
        if found.opens == 0 and not found.orphan:
            self._close_file(found)
        self.drop_if_unused(found)

    def flush(self, node: NodeId) -> None:
        """Nothing to do: what was written is in the real file already."""

    def fsync(self, node: NodeId, *, data_only: bool) -> None:
        found = self.nodes.get(node)
        fd = self.sync_target(found) if found is not None else -1
        if fd >= 0:
            (os.fdatasync if data_only else os.fsync)(fd)

    def sync_target(self, node: Node) -> int:
        """The descriptor whose fsync(2) makes a node durable, -1 when it is in the store anyway."""
        if isinstance(node, DirNode):
            return self.fd(node) if node.upper and not node.orphan else -1
        assert isinstance(node, FileNode)
        return node.fd

    def read(self, node: NodeId, offset: int, size: int) -> bytes:
        found = self._file(node)
        if found.blob is not None:
            return self.lower.read(found.blob, offset, size)
        if found.marks is not None and found.marks.under is not None:
            return found.marks.under.read(self.lower.read, found.fd, offset, size)
        return os.pread(found.fd, size, offset)

    def write(self, node: NodeId, offset: int, data: bytes) -> int:
        found = self._file(node)
        if found.blob is not None or found.fd < 0:
            self.bring_up(found)
            self._open_file(found)
        if found.marks is not None and (found.blob or found.marks.under):
            self._own(found, offset, len(data))
        self._content_changes(found)
        if not found.privileged and not found.cleared:
            self._drop_set_id(found)
        write_all(found.fd, data, offset)  # the kernel's cache does not ask again for what is left
        return len(data)

    def _content_changes(self, node: FileNode) -> None:
        """The bytes are about to differ from any blob that they were known to be. Before the change, not after."""
        self.known.pop(node.real_ino, None)
        marks = node.marks
        if marks is not None and marks.stored is not None:
            self._write_marks(node, marks._replace(stored=None, cleaned=None))
            faults.reach("files.content-changes")
        self._touch_parents(node)

    def _touch_parents(self, node: FileNode) -> None:
        if node.parent is not None:
            self.touch(node.parent, node.name)
        if node.links is not None or (node.orphan is False and node.parent is None):
            self.epoch += 1  # names that are not live may share these bytes
        if self.journal is not None and self.has_more_names(node):
            self.journal.note_file(node.real_ino)

    def has_more_names(self, node: FileNode) -> bool:
        """Whether a file in the upper has several names, live or not."""
        status = self._status(node)
        return status is not None and status.st_nlink > 1

    def touch(self, directory: DirNode, name: bytes) -> None:
        """A name of a directory is not as it was when the directory was last found clean.

        The whole way up: a directory that was never looked at may lie below one that was found clean.
        """
        if name in self.watched:
            self.epoch += 1
        if self.journal is not None:
            self.journal.note(directory, name)
        node: DirNode | None = directory
        while node is not None:
            node.clean = -1
            node = node.parent

    def _drop_set_id(self, node: FileNode) -> None:
        """A write by somebody who is not root clears set-id bits, as write(2) does below any file system."""
        marks = node.marks
        shown = stat.S_IMODE(os.fstat(node.fd).st_mode)
        if marks is not None and marks.mode is not None:
            shown = marks.mode
        kept = shown & ~stat.S_ISUID
        if shown & stat.S_IXGRP:
            kept &= ~stat.S_ISGID
        if kept != shown:
            os.fchmod(node.fd, self._require_writable().real_mode(kept))
            if marks is not None and marks.mode is not None:
                self._write_marks(node, marks._replace(mode=kept))
        node.cleared = True

    # --- copy-up -----------------------------------------------------------------------------------

    def raise_dir(self, directory: DirNode) -> int:
        """Give a directory a place in the upper, its parents first; the view stays as it is.

        Returns:
            its descriptor, good until some others were used.
        """
        missing = []
        node: DirNode | None = directory
        while node is not None and not node.upper:
            missing.append(node)
            node = node.parent
        for node in reversed(missing):
            self._raise_one(node)
        return self.fd(directory)

    def _raise_one(self, node: DirNode) -> None:
        upper = self._require_writable()
        assert node.parent is not None
        names = self.names(node.parent)
        when = self.time_ns
        with upper.staged() as temporary, self._unseen(node.parent) as parent_fd:
            os.mkdir(temporary, dir_fd=upper.work)
            os.chmod(temporary, 0o755, dir_fd=upper.work)  # whatever the umask of a command is
            marks = Marks(ino=node.ino, mtime_ns=when, ctime_ns=when)
            up.write_marks(up.entry_path(upper.work, temporary), marks)
            self._give_to_owner(upper.work, temporary)
            _set_times(upper.work, temporary, when, when)
            upper.publish(temporary, parent_fd, node.name)
        node.upper = True
        node.kept = when, when
        node.names = {}
        names[node.name] = False

    @contextmanager
    def _unseen(self, directory: DirNode) -> Iterator[int]:
        """A change in an upper directory that its users must not see (a copy-up): its times stay.

        Once the change is made nothing here fails: times that moved are better than a change that was half refused.
        """
        fd = self.fd(directory)
        before = os.fstat(fd)
        yield fd
        try:
            os.utime(fd, ns=(before.st_atime_ns, before.st_mtime_ns))
            times = self._directory_times(directory, before)
            if times != directory.kept:
                self._mark_directory(directory, kept=times)
        except OSError as error:
            log.warning("a directory's times moved: %s", error)

    def _give_to_owner(self, directory: int, name: bytes) -> None:
        if self._as_root and (self.uid or self.gid):
            os.chown(name, self.uid, self.gid, dir_fd=directory, follow_symlinks=False)

    def copy_up(self, node: FileNode, *, content: bool = False, empty: bool = False) -> None:
        """Give a captured file a place in the upper; the view stays as it is (unless ``empty``).

        Args:
            node: the file or symlink.
            content: with its bytes; otherwise they stay in the blob and the real file is a hole.
            empty: without any bytes, for a truncation to nothing.
        """
        if node.upper:
            return
        if isinstance(node, PinnedFile):
            raise NotAllowed
        upper = self._require_writable()
        if node.parent is not None:
            self.raise_dir(node.parent)
            self.names(node.parent)
        with upper.staged() as temporary:
            if stat.S_ISLNK(node.mode):
                target = self.read_link(node.ino)
                os.symlink(target, temporary, dir_fd=upper.work)
                marks = None
            else:
                marks = self._stage_file(node, upper, temporary, content=content, empty=empty)
            self._give_to_owner(upper.work, temporary)
            if not empty:
                _set_times(upper.work, temporary, self.time_ns, self.time_ns)
            status = os.stat(temporary, dir_fd=upper.work, follow_symlinks=False)
            if marks is None:
                upper.set_number(status.st_ino, node.ino)
            fd = self._publish_file(node, upper, temporary)
        node.upper = True
        node.fd = fd
        node.real_ino = status.st_ino
        node.marks = marks
        if stat.S_ISLNK(node.mode) or content or empty:
            node.blob = None

    def _publish_file(self, node: FileNode, upper: Upper, temporary: bytes) -> int:
        """Move a staged file to its node's name, if it has one; returns its descriptor if the node is open, else -1."""
        fd = -1
        if node.opens or node.orphan:
            fd = os.open(temporary, OPEN_FLAGS, dir_fd=upper.work)
        try:
            if node.parent is None:
                os.unlink(temporary, dir_fd=upper.work)
            else:
                with self._unseen(node.parent) as parent_fd:
                    upper.publish(temporary, parent_fd, node.name)
                self.names(node.parent)[node.name] = False
        except BaseException:
            if fd >= 0:
                os.close(fd)
            raise
        return fd

    def _stage_file(
        self, node: FileNode, upper: Upper, temporary: bytes, *, content: bool, empty: bool
    ) -> Marks:
        assert node.blob is not None
        marks = Marks(ino=node.ino)
        if not empty:
            when = self.time_ns
            marks = marks._replace(size=node.size, mtime_ns=when, ctime_ns=when)
            marks = marks._replace(**{"stored" if content else "blob": node.blob})  # type: ignore[arg-type]
        fd = os.open(temporary, CREATE_FLAGS, dir_fd=upper.work)
        try:
            os.fchmod(fd, upper.real_mode(node.mode))
            if content:
                self._copy_bytes(node.blob, node.size, fd)
            elif not empty:
                os.ftruncate(fd, node.size)
            up.write_marks(fd, marks)
        finally:
            os.close(fd)
        return marks

    def _copy_bytes(self, blob: ObjectID, size: int, fd: int) -> None:
        """Write a blob's bytes into a file, leaving holes where there are only zeros; durable on return.

        They were durable in the store, and the file is about to stand for them: a power failure must not leave less
        (the kernel's overlayfs syncs a copy-up for the same reason).
        """
        os.ftruncate(fd, size)
        for offset in range(0, size, _COPY):
            piece = self.lower.read(blob, offset, _COPY)
            if piece.count(0) != len(piece):
                faults.reach("files.before-copy")
                write_all(fd, piece, offset)
        if size:
            os.fdatasync(fd)

    def fill_size(self, node: NodeId) -> int:
        """How many bytes `bring_up` would have to copy."""
        found = self._file(node)
        is_copied = found.blob is not None and not self._is_partial(found)
        return found.size if is_copied and stat.S_ISREG(found.mode) else 0

    def _is_partial(self, node: FileNode) -> bool:
        """Say whether a captured file is brought up in parts, as they are changed."""
        return node.size > LARGE and node.blob is not None and self.lower.is_framed(node.blob)

    def bring_up(self, node: FileNode) -> None:
        """Have a file's bytes in the upper, so that they can be changed there; a large file's only as they are."""
        if node.blob is None or self._is_partial(node):
            self.copy_up(node)
        elif not node.upper:
            self.copy_up(node, content=True)
        else:
            self._copy_bytes(node.blob, node.size, self._fill_target(node))
            self.end_fill(node)

    def start_fill(self, node: FileNode) -> tuple[ObjectID, int, int]:
        """First third of `bring_up` for a large file: make the hole. The second, `copy_bytes_to`, may run in a thread.

        Returns:
            blob, its size and a descriptor to write to, which the caller closes.
        """
        self.copy_up(node)
        assert node.blob is not None
        return node.blob, node.size, os.dup(self._fill_target(node))

    def copy_bytes_to(self, blob: ObjectID, size: int, fd: int) -> None:
        """Second third: touches no node, so any thread may run it."""
        self._copy_bytes(blob, size, fd)

    def end_fill(self, node: FileNode) -> None:
        """Last third: from here on the real file's bytes are the truth."""
        if node.blob is None:
            return
        marks = node.marks
        assert marks is not None
        fd = self._open_file(node)
        os.utime(fd, ns=(os.fstat(fd).st_atime_ns, marks.mtime_ns))
        faults.reach("files.before-fill-ends")
        self._write_marks(node, marks._replace(stored=marks.blob, blob=None))
        node.blob = None
        if node.opens == 0 and not node.orphan:
            self._close_file(node)

    def _fill_target(self, node: FileNode) -> int:
        """A hole to be filled, which will go on to show the times that it shows now."""
        fd = self._open_file(node)
        self._write_marks(node, self._keeping(os.fstat(fd), node.marks))
        return fd

    # --- files that come up in parts -------------------------------------------------------------------

    def lacks(self, node: FileNode, offset: int, size: int) -> bool:
        """Say whether bytes that a write wants to change have to be copied first, by `start_copy` … `end_copy`."""
        if node.blob is not None:
            return self._is_partial(node) and offset < node.size
        under = node.marks.under if node.marks is not None else None
        return under is not None and under.lacks(offset, size)

    def start_copy(self, node: FileNode, offset: int, size: int) -> tuple[Partial, int, int]:
        """First third of bringing up the part of a large file that a write wants to change.

        Returns:
            the map, the units to copy as bits, and a descriptor to write to, which the caller closes. The second
            third is `Partial.copy`, which may run in a thread while nothing is truncated.
        """
        self.copy_up(node)
        assert node.marks is not None
        fd = self._fill_target(node)
        if node.blob is not None:
            os.ftruncate(fd, node.size)
            partial = Partial.of(node.blob, node.size)
        else:
            assert node.marks.under is not None
            partial = node.marks.under
        return partial, partial.to_copy(offset, size), os.dup(fd)

    def end_copy(self, node: FileNode, units: int) -> None:
        """Last third: from here on these units are the real file's. What is seen stays."""
        marks = node.marks
        assert marks is not None
        under = marks.under
        if marks.blob is not None:
            under = Partial.of(marks.blob, marks.size)
            marks = marks._replace(stored=marks.blob, blob=None)
        fd = self._open_file(node)
        os.utime(fd, ns=(os.fstat(fd).st_atime_ns, marks.mtime_ns))
        faults.reach("files.before-units-count")
        under = None if under is None else under.with_units(units)
        self._write_marks(node, marks._replace(under=under))
        node.blob = None

    def _own(self, node: FileNode, offset: int, size: int) -> None:
        """Have the real file be the truth about a range that is about to change, and about all behind its end."""
        if self.lacks(node, offset, size) or node.blob is not None:
            partial, units, fd = self.start_copy(node, offset, size)
            try:
                partial.copy(self.lower.read, fd, units)
            finally:
                os.close(fd)
            self.end_copy(node, units)
        self._cut(node, offset + size)

    def _cut(self, node: FileNode, size: int) -> None:
        """Before a file grows: what was cut off it before is not to come back from its blob."""
        marks = node.marks
        if marks is None or marks.under is None:
            return
        end = os.fstat(self._open_file(node)).st_size
        if end < min(size, marks.under.limit):
            faults.reach("files.before-cut")
            self._write_marks(node, marks._replace(under=marks.under.cut(end)))

    def _truncate(self, node: FileNode, size: int) -> None:
        self._require_writable()
        if node.blob is not None and size == 0:
            self._truncate_to_nothing(node)
        else:
            self.bring_up(node)
            if node.blob is not None:
                self._own(node, 0, 0)
            self._cut(node, size)
            self._content_changes(node)
            faults.reach("files.before-truncate")
            os.ftruncate(self._open_file(node, write=True), size)
        if node.opens == 0 and not node.orphan:
            self._close_file(node)

    def _truncate_to_nothing(self, node: FileNode) -> None:
        """Drop all bytes without reading them first."""
        if node.upper:
            assert node.marks is not None
            fd = self._open_file(node)
            os.ftruncate(fd, 0)
            os.utime(fd)
            faults.reach("files.truncated")
            self._write_marks(node, node.marks._replace(blob=None, ctime_ns=None))
            node.blob = None
        else:
            self.copy_up(node, empty=True)
        self._content_changes(node)


def _set_times(directory: int, name: bytes, atime_ns: int, mtime_ns: int) -> None:
    os.utime(name, ns=(atime_ns, mtime_ns), dir_fd=directory, follow_symlinks=False)
