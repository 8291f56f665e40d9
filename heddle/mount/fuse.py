"""The FUSE protocol over the mount core: inode numbers, handles, caching, errno, and no meaning of its own.

The only file that knows pyfuse3's types and errno. Handlers that can't wait are written as plain functions and run
to their end between two awaits; those that may wait (a large read, a large copy-up, fsync) say so by `waiting`.
An exception here is EIO and a line in the log: one that escaped would end pyfuse3's loop and with it the mount.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import pyfuse3
import trio

from heddle.errors import HeddleError
from heddle.mount import shell
from heddle.mount.ahead import Ahead
from heddle.mount.core import ContentAddressedMount
from heddle.mount.jobs import from_remote, in_thread
from heddle.mount.jobs import waiting as waiting_for
from heddle.mount.nodes import AnsweringFile, DirNode, FileNode, PinnedFile
from heddle.mount.shell import Attrs, AttrUpdate, Caller, NodeId
from heddle.objects.promised import ObjectNotHere

if TYPE_CHECKING:
    _Handlers = object  # the decorators below make the signatures; pyfuse3's are checked by running
else:
    _Handlers = pyfuse3.Operations

log = logging.getLogger(__name__)

FOREVER = 1e9  # seconds; every change goes through the kernel or is announced to it
SMALL = 128 << 10  # bytes: copied or pushed at once, without leaving the loop
LARGE = 4 << 20  # bytes: stored in frames that can be decoded ahead, several at a time
_OPEN_FLAGS_WRITE = os.O_WRONLY | os.O_RDWR

_ERRNO: dict[type[shell.MountError], int] = {
    shell.NotFound: errno.ENOENT,
    shell.AlreadyExists: errno.EEXIST,
    shell.NotADirectory: errno.ENOTDIR,
    shell.IsADirectory: errno.EISDIR,
    shell.NotEmpty: errno.ENOTEMPTY,
    shell.ReadOnly: errno.EROFS,
    shell.Stale: errno.ESTALE,
    shell.InvalidArgument: errno.EINVAL,
    shell.NotAllowed: errno.EPERM,
    shell.NameTooLong: errno.ENAMETOOLONG,
    shell.NoAttribute: pyfuse3.ENOATTR,
    shell.NotSupported: errno.EOPNOTSUPP,
    shell.Corrupt: errno.EIO,
}

# What no program's mistake leads to: the disk is full or failing, or what belongs to us was taken away.
_FROM_BELOW = frozenset(
    (
        *(errno.EIO, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EMFILE),
        *(errno.EBADF, errno.ENOENT, errno.ESTALE),
    )
)
_SILENCE_S = 600.0
_complained_s: dict[int, float] = {}  # by errno: when it was last said
NO_THREAD = "can't start new thread"
"""What Python's RuntimeError says where the kernel has no memory for one more thread."""

Result = TypeVar("Result")


def to_fuse_error(error: Exception) -> pyfuse3.FUSEError:
    """The errno that the caller of a failed operation gets; what nobody expected is EIO and logged."""
    if isinstance(error, pyfuse3.FUSEError):
        return error
    if isinstance(error, shell.MountError):
        return pyfuse3.FUSEError(_ERRNO[type(error)])
    if isinstance(error, OSError) and error.errno is not None:
        if error.errno in _FROM_BELOW:
            _complain(error.errno, error)
        return pyfuse3.FUSEError(error.errno)
    if isinstance(error, MemoryError) or str(error) == NO_THREAD:
        log.warning("no memory for an operation")
        return pyfuse3.FUSEError(errno.ENOMEM)
    if isinstance(error, HeddleError):
        log.error("%s%s", error.message, f" ({error.hint})" if error.hint else "")
        return pyfuse3.FUSEError(errno.EIO)
    log.exception("unexpected error in a callback", exc_info=error)
    return pyfuse3.FUSEError(errno.EIO)


def _complain(number: int, error: OSError) -> None:
    """Say what is wrong below, once in a while: every request would say the same."""
    now_s = time.monotonic()
    if now_s - _complained_s.get(number, -_SILENCE_S) >= _SILENCE_S:
        _complained_s[number] = now_s
        log.warning("the file system below: %s; not said again for ten minutes", error)


def at_once(handler: Callable[..., Result]) -> Callable[..., Awaitable[Result]]:
    """Make a plain function a handler: no await inside, so the state it sees is the state it leaves."""

    async def run(*args: Any) -> Result:
        try:
            return handler(*args)
        except Exception as error:
            raise to_fuse_error(error) from None

    return run


def waiting(handler: Callable[..., Awaitable[Result]]) -> Callable[..., Awaitable[Result]]:
    """Guard a handler that awaits; its awaits are listed in docs/mount.md."""

    async def run(*args: Any) -> Result:
        try:
            return await handler(*args)
        except Exception as error:
            raise to_fuse_error(error) from None

    return run


def entry_attributes(attrs: Attrs) -> pyfuse3.EntryAttributes:
    """What the kernel may keep for ever, since every change goes through it."""
    entry = pyfuse3.EntryAttributes()
    (
        entry.st_ino,
        entry.st_mode,
        entry.st_nlink,
        entry.st_uid,
        entry.st_gid,
        entry.st_rdev,
        entry.st_size,
        entry.st_blocks,
        entry.st_atime_ns,
        entry.st_mtime_ns,
        entry.st_ctime_ns,
    ) = attrs
    entry.st_blksize = 4096
    entry.entry_timeout = FOREVER
    entry.attr_timeout = FOREVER
    return entry


def _absent() -> pyfuse3.EntryAttributes:
    """The answer that makes the kernel remember that a name does not exist."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = pyfuse3.InodeT(0)
    entry.entry_timeout = FOREVER
    return entry


def _nameless(attrs: Attrs) -> pyfuse3.EntryAttributes:
    """What a listing says of a file that nobody may take for known."""
    entry = entry_attributes(attrs)
    entry.entry_timeout = entry.attr_timeout = 0
    return entry


class Handle:
    """One open file or directory.

    Attributes:
        ino: its node.
        write: it may write.
        names: a directory's names as they were when its listing began.
        answer: what is read here and nowhere else; see `AnsweringFile`.
    """

    __slots__ = ("answer", "ino", "names", "write")

    def __init__(self, ino: NodeId, write: bool) -> None:
        self.ino = ino
        self.write = write
        self.names: list[bytes] = []
        self.answer: bytes | None = None


class Operations(_Handlers):
    """pyfuse3's handlers over a `ContentAddressedMount`.

    Args:
        core: the merged view.
    """

    supports_dot_lookup = True
    enable_writeback_cache = True

    def __init__(self, core: ContentAddressedMount) -> None:
        super().__init__()
        self.core = core
        self._handles: dict[int, Handle] = {}
        self._next_handle = 1
        self._filling: dict[NodeId, trio.Lock] = {}
        self._shown_times: dict[NodeId, tuple[int, int]] = {}

    @cached_property
    def _sizes(self) -> Ahead:
        return Ahead(self.core.lower, sizes=True)

    @cached_property
    def _contents(self) -> Ahead:
        return Ahead(self.core.lower, sizes=False)

    # --- names -----------------------------------------------------------------------------------

    async def lookup(self, parent: NodeId, name: bytes, ctx: object) -> pyfuse3.EntryAttributes:
        try:
            return self._lookup(parent, name)
        except ObjectNotHere:
            return await self._lookup_promised(parent, name)
        except Exception as error:
            raise to_fuse_error(error) from None

    def _lookup(self, parent: NodeId, name: bytes) -> pyfuse3.EntryAttributes:
        attrs = self.core.lookup(parent, name)
        if attrs is None:
            return _absent()
        return self._known(attrs)

    @waiting
    async def _lookup_promised(self, parent: NodeId, name: bytes) -> pyfuse3.EntryAttributes:
        """A file of a lazy clone whose size is not known; a link is brought whole, since its target is its size."""
        while True:
            directory = self.core.nodes[parent]
            assert isinstance(directory, DirNode)
            mode, blob = self.core.lower.entries(directory.lower)[name]
            ahead = self._contents if stat.S_ISLNK(mode) else self._sizes
            await from_remote(ahead.bring, blob, ahead.choose(directory))
            try:
                return self._lookup(parent, name)
            except ObjectNotHere:
                continue  # it is another file by now

    async def _bring_content(self, ino: NodeId) -> None:
        """Have a captured file's bytes here before they are read."""
        node = self.core.nodes[ino]
        while (
            isinstance(node, FileNode)
            and node.blob is not None
            and not self.core.lower.is_here(node.blob)
        ):
            company = self._contents.choose(node.parent)
            await from_remote(self._contents.bring, node.blob, company)
        if isinstance(node, FileNode) and node.blob is not None:
            self.core.lower.require_size(node.blob, node.size)

    def _known(self, attrs: Attrs) -> pyfuse3.EntryAttributes:
        """Answer with a node, which the kernel now holds once more."""
        self.core.remember(attrs.ino)
        return entry_attributes(attrs)

    async def forget(self, inode_list: Any) -> None:
        try:
            for ino, count in inode_list:
                self.core.forget(ino, count)
        except Exception:
            log.exception("forget")

    @at_once
    def mkdir(
        self, parent: NodeId, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return self._known(self.core.make_dir(parent, name, mode, Caller(ctx.uid, ctx.gid)))

    @at_once
    def mknod(
        self, parent: NodeId, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        caller = Caller(ctx.uid, ctx.gid)
        return self._known(self.core.make_node(parent, name, mode, rdev, caller))

    @at_once
    def symlink(
        self, parent: NodeId, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        caller = Caller(ctx.uid, ctx.gid)
        return self._known(self.core.create_symlink(parent, name, target, caller))

    @at_once
    def link(
        self, node: NodeId, parent: NodeId, name: bytes, ctx: object
    ) -> pyfuse3.EntryAttributes:
        return self._known(self.core.link(node, parent, name))

    @at_once
    def unlink(self, parent: NodeId, name: bytes, ctx: object) -> None:
        self.core.unlink_entry(parent, name)

    @at_once
    def rmdir(self, parent: NodeId, name: bytes, ctx: object) -> None:
        self.core.rmdir_entry(parent, name)

    @at_once
    def rename(
        self,
        old_parent: NodeId,
        old: bytes,
        new_parent: NodeId,
        new: bytes,
        flags: int,
        ctx: object,
    ) -> None:
        if flags & ~(pyfuse3.RENAME_NOREPLACE | pyfuse3.RENAME_EXCHANGE):
            raise shell.InvalidArgument
        self.core.rename_entry(
            old_parent,
            old,
            new_parent,
            new,
            no_replace=bool(flags & pyfuse3.RENAME_NOREPLACE),
            exchange=bool(flags & pyfuse3.RENAME_EXCHANGE),
        )

    @waiting
    async def readlink(self, node: NodeId, ctx: object) -> bytes:
        await self._bring_content(node)
        return self.core.read_link(node)

    # --- attributes --------------------------------------------------------------------------------

    @at_once
    def getattr(self, node: NodeId, ctx: object) -> pyfuse3.EntryAttributes:
        return entry_attributes(self.core.attrs(node))

    @waiting
    async def setattr(
        self,
        node: NodeId,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        if fields.update_size:
            await self._fill(node, replaced=attr.st_size == 0)
        mtime_ns, ctime_ns = self._times_to_show(node, attr, fields)
        update = AttrUpdate(
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=mtime_ns,
            ctime_ns=ctime_ns,
        )
        return entry_attributes(self.core.set_attrs(node, update, Caller(ctx.uid, ctx.gid)))

    def _times_to_show(
        self, ino: NodeId, attr: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields
    ) -> tuple[int | None, int | None]:
        """The modification and change time that a setattr sets, None for those that it leaves to the upper.

        A size without a time is the size that the kernel has already: it leaves the times, so resizing must not move
        them. Of chmod(2) and chown(2) it says the change time only; that is what a release is to show.
        """
        mtime_ns = attr.st_mtime_ns if fields.update_mtime else None
        ctime_ns = attr.st_ctime_ns if fields.update_ctime else None
        if mtime_ns is None and fields.update_size:
            mtime_ns, before_ns = self._shown(ino)
            ctime_ns = before_ns if ctime_ns is None else ctime_ns
        elif fields.update_mtime:
            self._shown_times.pop(ino, None)
        if ino in self._shown_times and ctime_ns is not None:
            self._shown_times[ino] = self._shown_times[ino][0], ctime_ns
        return mtime_ns, ctime_ns

    def _shown(self, ino: NodeId) -> tuple[int, int]:
        """The modification and change time that the kernel shows, if it has said all that it knows."""
        if ino in self._shown_times:
            return self._shown_times[ino]
        attrs = self.core.attrs(ino)
        return attrs.mtime_ns, attrs.ctime_ns

    @at_once
    def getxattr(self, node: NodeId, name: bytes, ctx: object) -> bytes:
        return self.core.get_xattr(node, name)

    @at_once
    def setxattr(self, node: NodeId, name: bytes, value: bytes, ctx: object) -> None:
        self.core.set_xattr(node, name, value)

    @at_once
    def listxattr(self, node: NodeId, ctx: object) -> list[bytes]:
        return self.core.list_xattrs(node)

    @at_once
    def removexattr(self, node: NodeId, name: bytes, ctx: object) -> None:
        self.core.remove_xattr(node, name)

    @at_once
    def statfs(self, ctx: object) -> pyfuse3.StatvfsData:
        below = self.core.statfs()
        answer = pyfuse3.StatvfsData()
        answer.f_bsize, answer.f_frsize = below.f_bsize, below.f_frsize
        answer.f_blocks, answer.f_bfree = below.f_blocks, below.f_bfree
        answer.f_bavail, answer.f_files = below.f_bavail, below.f_files
        answer.f_ffree, answer.f_favail = below.f_ffree, below.f_favail
        answer.f_namemax = shell.NAME_MAX
        return answer

    # --- files ---------------------------------------------------------------------------------------

    def _new_handle(self, ino: NodeId, write: bool) -> int:
        number = self._next_handle
        self._next_handle += 1
        self._handles[number] = Handle(ino, write)
        return number

    @at_once
    def create(
        self, parent: NodeId, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        attrs = self.core.create_file(parent, name, stat.S_IFREG | mode, Caller(ctx.uid, ctx.gid))
        handle = self._new_handle(attrs.ino, True)
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(handle)), self._known(attrs)

    @waiting
    async def open(self, ino: NodeId, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        write = bool(flags & _OPEN_FLAGS_WRITE)
        truncate = bool(flags & os.O_TRUNC)
        node = self.core.nodes.get(ino)
        if isinstance(node, AnsweringFile):
            return await self._ask(node, ctx.pid, write=write)
        if isinstance(node, PinnedFile):
            if not node.glance(ctx.pid):
                await in_thread(node.opened, ctx.pid)
        elif self.core.lower.may_be_promised and not truncate:
            await self._bring_content(ino)
        if write or truncate:
            await self._fill(ino, replaced=truncate)
        caller = Caller(ctx.uid, ctx.gid)
        self.core.on_open(ino, write=write or truncate, truncate=truncate, caller=caller)
        handle = self._new_handle(ino, write or truncate)
        if not write:
            self._push(ino)
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(handle), keep_cache=True)

    async def _ask(self, node: AnsweringFile, pid: int, *, write: bool) -> pyfuse3.FileInfo:
        if write:
            raise pyfuse3.FUSEError(errno.EPERM)
        answer = node.answer_at_once(pid)
        if answer is None:
            answer = await in_thread(node.answer, pid)
        self.core.on_open(node.ino, write=False, truncate=False, caller=None)
        handle = self._new_handle(node.ino, False)
        self._handles[handle].answer = answer
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(handle), direct_io=True)

    def _push(self, ino: NodeId) -> None:
        """Put a small captured file's bytes into the page cache before the open is answered: no READ will come.

        Only for the sole open handle: a READ under way holds its pages' locks, which this would wait for; and
        dirty pages that the session has not seen would be overwritten.
        """
        node = self.core.nodes[ino]
        if not isinstance(node, FileNode) or node.blob is None or node.pushed or node.opens > 1:
            return
        if not 0 < node.size <= SMALL:
            return
        node.pushed = True
        data = self.core.read(ino, 0, node.size)
        try:
            pyfuse3.notify_store(pyfuse3.InodeT(ino), 0, data)
        except OSError as error:
            log.debug("notify_store: %s", error)

    async def _fill(self, ino: NodeId, *, replaced: bool = False) -> None:
        """Bring up a large captured file in a worker thread, once, whoever asks first.

        Args:
            ino: its node.
            replaced: it will be truncated to nothing, so only a copy under way is waited for: its thread would
                write into what is new.
        """
        if ino not in self._filling and (replaced or not self.core.fill_size(ino)):
            return
        async with self._copying(ino) as node:
            if not replaced and self.core.fill_size(ino):
                blob, size, fd = self.core.start_fill(node)
                try:
                    await in_thread(self.core.copy_bytes_to, blob, size, fd)
                finally:
                    os.close(fd)
                self.core.end_fill(node)

    async def _copy_part(self, ino: NodeId, offset: int, size: int) -> None:
        """Bring up, in a worker thread, what a write to a large captured file is about to change."""
        async with self._copying(ino) as node:
            if self.core.lacks(node, offset, size):
                partial, units, fd = self.core.start_copy(node, offset, size)
                try:
                    await in_thread(partial.copy, self.core.lower.read, fd, units)
                finally:
                    os.close(fd)
                self.core.end_copy(node, units)

    @asynccontextmanager
    async def _copying(self, ino: NodeId) -> AsyncIterator[FileNode]:
        """One copy at a time for each file; keeps its node and its descriptor while the block waits."""
        lock = self._filling.setdefault(ino, trio.Lock())
        with waiting_for():
            await lock.acquire()
        try:
            node = self.core.nodes[ino]
            assert isinstance(node, FileNode)
            node.opens += 1
            try:
                yield node
            finally:
                self.core.release(ino)
        finally:
            lock.release()
            if not lock.locked():
                del self._filling[ino]

    @waiting
    async def read(self, fh: int, offset: int, size: int) -> bytes | bytearray | memoryview:
        handle = self._handles[fh]
        if handle.answer is not None:
            return memoryview(handle.answer)[offset : offset + size]
        ino = handle.ino
        node = self.core.nodes[ino]
        assert isinstance(node, FileNode)
        lower = self.core.lower
        if node.blob is not None:
            if node.size > LARGE:
                lower.read_ahead(node.blob, offset, node.size)
            if lower.is_cheap(node.size, node.blob, offset):
                return lower.view(node.blob, offset, size)
            return await in_thread(lower.view, node.blob, offset, size)
        under = node.marks.under if node.marks is not None else None
        if under is not None and under.lacks(offset, size):
            fd = os.dup(node.fd)
            try:
                return await in_thread(under.read, lower.read, fd, offset, size)
            finally:
                os.close(fd)
        return await _read_real(node.fd, offset, size)

    @waiting
    async def write(self, fh: int, offset: int, data: bytes) -> int:
        ino = self._handles[fh].ino
        self._shown_times[ino] = self._shown(ino)
        node = self.core.nodes[ino]
        assert isinstance(node, FileNode)
        if node.marks is not None and self.core.lacks(node, offset, len(data)):
            await self._copy_part(ino, offset, len(data))
        return self.core.write(ino, offset, data)

    def _show_times(self, ino: NodeId) -> None:
        """Give a written file back the times that the kernel shows.

        With the write-back cache the kernel keeps modification and change time, and says them (setattr) only if a
        write(2) moved them; one that follows another within a tick does not. Our own writing must not move them either.
        """
        shown = self._shown_times.pop(ino, None)
        node = self.core.nodes.get(ino)
        if shown is not None and isinstance(node, FileNode) and node.fd >= 0:
            self.core.set_times(node, *shown)

    async def flush(self, fh: int) -> None:
        # Answered once: the kernel stops asking and still writes dirty pages back on close.
        raise pyfuse3.FUSEError(errno.ENOSYS)

    @at_once
    def release(self, fh: int) -> None:
        handle = self._handles.pop(fh)
        try:
            if handle.write:
                self._show_times(handle.ino)
        finally:
            self.core.release(handle.ino, write=handle.write)

    @waiting
    async def fsync(self, fh: int, datasync: bool) -> None:
        self._show_times(self._handles[fh].ino)
        await self._sync(self._handles[fh].ino, datasync)

    @waiting
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._sync(self._handles[fh].ino, datasync)

    async def _sync(self, ino: NodeId, datasync: bool) -> None:
        fd = self.core.sync_target(self.core.nodes[ino])
        if fd < 0:
            return
        fd = os.dup(fd)
        try:
            await in_thread(os.fdatasync if datasync else os.fsync, fd)
        finally:
            os.close(fd)

    # --- directories -----------------------------------------------------------------------------------

    @at_once
    def opendir(self, ino: NodeId, ctx: object) -> int:
        return self._new_handle(ino, False)

    @at_once
    def releasedir(self, fh: int) -> None:
        del self._handles[fh]

    @at_once
    def readdir(self, fh: int, start: int, token: pyfuse3.ReaddirToken) -> None:
        """List names as they were when the listing began, so that it is stable; those gone since are left out."""
        handle = self._handles[fh]
        core = self.core
        directory = core.nodes[handle.ino]
        assert isinstance(directory, DirNode)
        if start == 0:
            handle.names = [b".", b"..", *core.list_names(directory)]
        names, live = handle.names, directory.children
        for number in range(start, len(names)):
            name = names[number]
            if number < 2:
                node = directory if number == 0 else directory.parent or directory
                if not pyfuse3.readdir_reply(
                    token, name, entry_attributes(core.attrs_of(node)), number + 1
                ):
                    return
                continue
            try:
                child = live.get(name) or core.child(directory, name)
            except ObjectNotHere:
                if not pyfuse3.readdir_reply(
                    token, name, _nameless(core.provisional(directory, name)), number + 1
                ):
                    return
                continue
            if child is None:
                continue
            told = _nameless if isinstance(child, PinnedFile) else entry_attributes
            entry = told(core.attrs_of(child))
            if not pyfuse3.readdir_reply(token, name, entry, number + 1):
                core.drop_if_unused(child)
                return
            child.lookups += 1


async def _read_real(fd: int, offset: int, size: int) -> bytes | bytearray | memoryview:
    """Read a real file: at once what the page cache has, the rest in a worker thread (preadv2(2), RWF_NOWAIT)."""
    buffer = bytearray(size)
    try:
        count = os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EOPNOTSUPP):
            raise
        count = -1
    if count == size:
        return buffer
    if count >= 0 and offset + count >= os.fstat(fd).st_size:
        return memoryview(buffer)[:count]
    return await in_thread(os.pread, fd, size, offset)
