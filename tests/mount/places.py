"""Two places with the same operations: a mount core driven as the kernel's VFS drives it, and a plain directory.

Paths are tuples of names from the top; symbolic links are never followed. What fails raises `MountError` or OSError;
`outcome` makes both comparable. A handle is known by a number that the caller picks.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from heddle.mount.core import ContentAddressedMount
from heddle.mount.fuse import to_fuse_error
from heddle.mount.shell import ROOT, Attrs, AttrUpdate, Caller, MountError
from heddle.mount.upper import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2

Path = tuple[bytes, ...]
BIG_READ = 1 << 17


class Seen(NamedTuple):
    """One entry of a tree, as far as the two places must agree about it."""

    mode: int
    nlink: int
    size: int
    uid: int
    gid: int
    content: bytes
    xattrs: dict[bytes, bytes]
    mtime_ns: int
    ctime_ns: int
    ino: int


def outcome(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a call gave: its result, or the name of its errno."""
    try:
        return function(*arguments)
    except (MountError, OSError) as error:
        return "E", errno.errorcode[to_fuse_error(error).errno]


def _fail(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class View:
    """A core, with what the kernel does before it asks: walking, and the checks that are the VFS's.

    Attributes:
        held: lookups that the core was told of and not yet told to forget, by inode number.
        handles: open files, by the caller's number: inode number and "may write".
    """

    def __init__(self, core: ContentAddressedMount, caller: Caller) -> None:
        self.core = core
        self.caller = caller
        self.held: dict[int, int] = {}
        self.handles: dict[int, tuple[int, bool]] = {}

    # walking

    def hold(self, attrs: Attrs) -> Attrs:
        """Count a lookup, as the kernel does for everything it is answered with."""
        self.core.remember(attrs.ino)
        self.held[attrs.ino] = self.held.get(attrs.ino, 0) + 1
        return attrs

    def find(self, parent: Attrs, name: bytes) -> Attrs | None:
        if not stat.S_ISDIR(parent.mode):
            raise _fail(errno.ENOTDIR)
        attrs = self.core.lookup(parent.ino, name)
        return None if attrs is None else self.hold(attrs)

    def walk(self, path: Path) -> Attrs:
        attrs = self.core.attrs(ROOT)
        for name in path:
            found = self.find(attrs, name)
            if found is None:
                raise _fail(errno.ENOENT)
            attrs = found
        return attrs

    def _directory(self, path: Path) -> Attrs:
        attrs = self.walk(path)
        if not stat.S_ISDIR(attrs.mode):
            raise _fail(errno.ENOTDIR)
        return attrs

    def _parent(self, path: Path) -> tuple[Attrs, Attrs | None]:
        """The directory of a path, and what is at the path."""
        directory = self._directory(path[:-1])
        return directory, self.find(directory, path[-1])

    def forget(self, part: int = 0, parts: int = 1) -> None:
        """Have the kernel drop what it cached, or every so many-th of it; never what is open."""
        is_open = {ino for ino, _ in self.handles.values()}
        for number, ino in enumerate(list(self.held)):
            if number % parts == part and ino not in is_open:
                self.core.forget(ino, self.held.pop(ino))

    def forget_one(self, ino: int) -> None:
        """Have the kernel drop one node, as an invalidation does; not if it is open."""
        if ino in self.held and ino not in {ino for ino, _ in self.handles.values()}:
            self.core.forget(ino, self.held.pop(ino))

    # files

    def create(self, handle: int, path: Path, mode: int) -> None:
        directory, found = self._parent(path)
        if found is not None:
            raise _fail(errno.EEXIST)
        made = self.core.create_file(directory.ino, path[-1], stat.S_IFREG | mode, self.caller)
        self.hold(made)
        self.handles[handle] = made.ino, True

    def open(self, handle: int, path: Path, flags: int) -> None:
        attrs = self.walk(path)
        write = bool(flags & (os.O_WRONLY | os.O_RDWR))
        _check_openable(attrs.mode, write)
        truncate = bool(flags & os.O_TRUNC)
        self.core.on_open(attrs.ino, write=write, truncate=truncate, caller=self.caller)
        self.handles[handle] = attrs.ino, write

    def may_write(self, handle: int) -> bool:
        return self.handles[handle][1]

    def close(self, handle: int) -> None:
        ino, write = self.handles.pop(handle)
        self.core.release(ino, write=write)

    def write(self, handle: int, offset: int, data: bytes) -> int:
        return self.core.write(self.handles[handle][0], offset, data)

    def append(self, handle: int, data: bytes) -> int:
        ino = self.handles[handle][0]
        return self.core.write(ino, self.core.attrs(ino).size, data)

    def read(self, handle: int, offset: int, size: int) -> bytes:
        return bytes(self.core.read(self.handles[handle][0], offset, size))

    def resize(self, handle: int, size: int) -> int:
        update = AttrUpdate(size=size)
        return self.core.set_attrs(self.handles[handle][0], update, self.caller).size

    def status(self, handle: int) -> tuple[int, ...]:
        """Attributes through an open file: type and mode, links, size."""
        attrs = self.core.attrs(self.handles[handle][0])
        return attrs.mode, attrs.nlink, attrs.size

    def sync(self, handle: int) -> None:
        self.core.fsync(self.handles[handle][0], data_only=False)

    def truncate(self, path: Path, size: int) -> None:
        attrs = self.walk(path)
        _check_openable(attrs.mode, True)
        self.core.set_attrs(attrs.ino, AttrUpdate(size=size), self.caller)

    # names

    def mkdir(self, path: Path, mode: int) -> None:
        directory, _ = self._parent(path)
        self.hold(self.core.make_dir(directory.ino, path[-1], stat.S_IFDIR | mode, self.caller))

    def mkfifo(self, path: Path) -> None:
        directory, _ = self._parent(path)
        mode = stat.S_IFIFO | 0o644
        self.hold(self.core.make_node(directory.ino, path[-1], mode, 0, self.caller))

    def symlink(self, target: bytes, path: Path) -> None:
        directory, _ = self._parent(path)
        self.hold(self.core.create_symlink(directory.ino, path[-1], target, self.caller))

    def link(self, old: Path, new: Path) -> None:
        source = self.walk(old)
        directory, found = self._parent(new)
        if found is not None:
            raise _fail(errno.EEXIST)
        self.hold(self.core.link(source.ino, directory.ino, new[-1]))

    def unlink(self, path: Path) -> None:
        directory, _ = self._parent(path)
        self.core.unlink_entry(directory.ino, path[-1])

    def rmdir(self, path: Path) -> None:
        directory, _ = self._parent(path)
        self.core.rmdir_entry(directory.ino, path[-1])

    def rename(self, old: Path, new: Path, flags: int) -> None:
        """The VFS (namei.c) refuses a directory below itself and a target above the source before it asks."""
        old_dir, new_dir = self._directory(old[:-1]), self._directory(new[:-1])
        source, target = self.find(old_dir, old[-1]), self.find(new_dir, new[-1])
        if source is None:
            raise _fail(errno.ENOENT)
        if target is not None and flags & RENAME_NOREPLACE:
            raise _fail(errno.EEXIST)
        if target is None and flags & RENAME_EXCHANGE:
            raise _fail(errno.ENOENT)
        if old != new and new[: len(old)] == old:
            raise _fail(errno.EINVAL)
        if old != new and old[: len(new)] == new:
            raise _fail(errno.EINVAL if flags & RENAME_EXCHANGE else errno.ENOTEMPTY)
        self.core.rename_entry(
            old_dir.ino,
            old[-1],
            new_dir.ino,
            new[-1],
            no_replace=bool(flags & RENAME_NOREPLACE),
            exchange=bool(flags & RENAME_EXCHANGE),
        )

    # attributes

    def chmod(self, path: Path, mode: int) -> None:
        self.core.set_attrs(self.walk(path).ino, AttrUpdate(mode=mode), self.caller)

    def utimens(self, path: Path, mtime_ns: int) -> None:
        update = AttrUpdate(atime_ns=mtime_ns, mtime_ns=mtime_ns)
        self.core.set_attrs(self.walk(path).ino, update, self.caller)

    def set_xattr(self, path: Path, name: bytes, value: bytes) -> None:
        self.core.set_xattr(self._bears_xattrs(path), name, value)

    def remove_xattr(self, path: Path, name: bytes) -> None:
        self.core.remove_xattr(self._bears_xattrs(path), name)

    def _bears_xattrs(self, path: Path) -> int:
        """The VFS (xattr.c) lets files and directories alone have ``user.`` attributes."""
        attrs = self.walk(path)
        if not stat.S_ISREG(attrs.mode) and not stat.S_ISDIR(attrs.mode):
            raise _fail(errno.EPERM)
        return attrs.ino

    # looking

    def stat(self, path: Path) -> tuple[int, ...]:
        attrs = self.walk(path)
        return attrs.mode, attrs.nlink, *_sizes(attrs.mode, attrs.size)

    def content(self, path: Path) -> bytes:
        attrs = self.walk(path)
        if stat.S_ISLNK(attrs.mode):
            return self.core.read_link(attrs.ino)
        _check_openable(attrs.mode, False)
        return self._bytes(attrs.ino)

    def _bytes(self, ino: int) -> bytes:
        self.core.on_open(ino, write=False, truncate=False, caller=self.caller)
        try:
            pieces, offset = [], 0
            while piece := self.core.read(ino, offset, BIG_READ):
                pieces.append(bytes(piece))
                offset += len(piece)
            return b"".join(pieces)
        finally:
            self.core.release(ino, write=False)

    def listing(self, path: Path) -> list[bytes]:
        attrs = self.walk(path)
        if not stat.S_ISDIR(attrs.mode):
            raise _fail(errno.ENOTDIR)
        names = self.core.enumerate(attrs.ino)
        assert len(names) == len(set(names)), "a name is listed twice"
        return sorted(names)

    def glance(self) -> dict[Path, Seen]:
        """Everything, without keeping more than was held before."""
        mine, self.held = self.held, {}
        try:
            return dict(self._everything((), self.core.attrs(ROOT)))
        finally:
            for ino, count in reversed(self.held.items()):
                self.core.forget(ino, count)
            self.held = mine

    def _everything(self, path: Path, attrs: Attrs) -> Iterator[tuple[Path, Seen]]:
        content = b""
        if stat.S_ISLNK(attrs.mode):
            content = self.core.read_link(attrs.ino)
        elif stat.S_ISREG(attrs.mode):
            content = self._bytes(attrs.ino)
        names = self.core.list_xattrs(attrs.ino)
        yield (
            path,
            Seen(
                attrs.mode,
                attrs.nlink,
                *_sizes(attrs.mode, attrs.size) or (0,),
                attrs.uid,
                attrs.gid,
                content,
                {name: self.core.get_xattr(attrs.ino, name) for name in names},
                attrs.mtime_ns,
                attrs.ctime_ns,
                attrs.ino,
            ),
        )
        if stat.S_ISDIR(attrs.mode):
            names = self.core.enumerate(attrs.ino)
            assert len(names) == len(set(names)), "a name is listed twice"
            for name in sorted(names):
                found = self.find(attrs, name)
                assert found is not None, f"{name!r} is listed in {path} and can't be looked up"
                yield from self._everything((*path, name), found)


def _check_openable(mode: int, write: bool) -> None:
    if stat.S_ISLNK(mode):
        raise _fail(errno.ELOOP)
    if stat.S_ISDIR(mode) and write:
        raise _fail(errno.EISDIR)
    if not stat.S_ISREG(mode):
        raise _fail(errno.ENXIO)


def _sizes(mode: int, size: int) -> tuple[int, ...]:
    """The size of what has one that means something: a directory's differs between file systems."""
    return () if stat.S_ISDIR(mode) else (size,)


class Plain:
    """A directory of the file system below, used through directory descriptors.

    Args:
        top: the directory.
        widen: the user is not root; owner permission stays on the real entries and the mode is kept here, so that the
            user can go on as the session can.
        pin: hold on to everything glanced at.

    Attributes:
        handles: open files, by the caller's number.
        pins: descriptors of everything ever glanced at, so that an inode number means one file for good.
    """

    def __init__(self, top: str, *, widen: bool = False, pin: bool = True) -> None:
        self.top = top
        self._pins = pin
        self.handles: dict[int, int] = {}
        self.pins: dict[int, int] = {}
        self._widen = widen
        self.modes: dict[int, int] = {}

    def forget(self, part: int = 0, parts: int = 1) -> None:
        """Nothing: what is cached here is the kernel's business."""

    def finish(self) -> None:
        """Close everything."""
        for fd in [*self.handles.values(), *self.pins.values()]:
            os.close(fd)

    @contextmanager
    def _parent(self, path: Path) -> Iterator[tuple[int, bytes]]:
        fd = os.open(self.top, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for name in path[:-1]:
                inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
                os.close(fd)
                fd = inner
            yield fd, path[-1] if path else b"."
        finally:
            os.close(fd)

    def _lstat(self, path: Path) -> os.stat_result:
        with self._parent(path) as (fd, name):
            return os.stat(name, dir_fd=fd, follow_symlinks=False)

    def _real(self, mode: int, directory: bool = False) -> int:
        return mode | (0o700 if directory else 0o600) if self._widen else mode

    def _note_mode(self, path: Path, mode: int) -> None:
        if self._widen:
            self.modes[self._pin(path).st_ino] = mode

    def _shown(self, status: os.stat_result) -> int:
        mode = self.modes.get(status.st_ino)
        return status.st_mode if mode is None else stat.S_IFMT(status.st_mode) | mode

    def _note_write(self, fd: int) -> None:
        """A write by somebody who is not root clears set-id bits: the mode kept here loses what the real one did."""
        if self._widen:
            status = os.fstat(fd)
            if status.st_ino in self.modes:
                self.modes[status.st_ino] &= status.st_mode | 0o1777

    def _pin(self, path: Path) -> os.stat_result:
        with self._parent(path) as (fd, name):
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if self._pins and status.st_ino not in self.pins:
                self.pins[status.st_ino] = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=fd)
        return status

    # files

    def create(self, handle: int, path: Path, mode: int) -> None:
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR
        with self._parent(path) as (fd, name):
            self.handles[handle] = os.open(name, flags, self._real(mode), dir_fd=fd)
        self._note_mode(path, mode)

    def open(self, handle: int, path: Path, flags: int) -> None:
        _check_openable(self._lstat(path).st_mode, bool(flags & (os.O_WRONLY | os.O_RDWR)))
        with self._parent(path) as (fd, name):
            self.handles[handle] = os.open(name, flags | os.O_NOFOLLOW, dir_fd=fd)
        self._note_write(self.handles[handle])

    def may_write(self, handle: int) -> bool:
        return fcntl.fcntl(self.handles[handle], fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY

    def close(self, handle: int) -> None:
        os.close(self.handles.pop(handle))

    def write(self, handle: int, offset: int, data: bytes) -> int:
        written = os.pwrite(self.handles[handle], data, offset)
        self._note_write(self.handles[handle])
        return written

    def append(self, handle: int, data: bytes) -> int:
        return self.write(handle, os.fstat(self.handles[handle]).st_size, data)

    def read(self, handle: int, offset: int, size: int) -> bytes:
        return os.pread(self.handles[handle], size, offset)

    def resize(self, handle: int, size: int) -> int:
        os.ftruncate(self.handles[handle], size)
        self._note_write(self.handles[handle])
        return size

    def status(self, handle: int) -> tuple[int, ...]:
        status = os.fstat(self.handles[handle])
        return self._shown(status), status.st_nlink, status.st_size

    def sync(self, handle: int) -> None:
        os.fsync(self.handles[handle])

    def truncate(self, path: Path, size: int) -> None:
        _check_openable(self._lstat(path).st_mode, True)
        with self._parent(path) as (fd, name):
            file = os.open(name, os.O_WRONLY | os.O_NOFOLLOW, dir_fd=fd)
        os.ftruncate(file, size)
        self._note_write(file)
        os.close(file)

    # names

    def mkdir(self, path: Path, mode: int) -> None:
        with self._parent(path) as (fd, name):
            os.mkdir(name, self._real(mode, True), dir_fd=fd)
        self._note_mode(path, mode)

    def mkfifo(self, path: Path) -> None:
        with self._parent(path) as (fd, name):
            os.mkfifo(name, 0o644, dir_fd=fd)
        self._note_mode(path, 0o644)

    def symlink(self, target: bytes, path: Path) -> None:
        with self._parent(path) as (fd, name):
            os.symlink(target, name, dir_fd=fd)
        self._note_mode(path, 0o777)

    def link(self, old: Path, new: Path) -> None:
        with self._parent(old) as (old_fd, old_name):
            os.stat(old_name, dir_fd=old_fd, follow_symlinks=False)
            with self._parent(new) as (new_fd, new_name):
                os.link(
                    old_name, new_name, src_dir_fd=old_fd, dst_dir_fd=new_fd, follow_symlinks=False
                )

    def unlink(self, path: Path) -> None:
        with self._parent(path) as (fd, name):
            os.unlink(name, dir_fd=fd)

    def rmdir(self, path: Path) -> None:
        with self._parent(path) as (fd, name):
            os.rmdir(name, dir_fd=fd)

    def rename(self, old: Path, new: Path, flags: int) -> None:
        with (
            self._parent(old) as (old_fd, old_name),
            self._parent(new) as (new_fd, new_name),
        ):
            renameat2(old_fd, old_name, new_fd, new_name, flags)

    # attributes

    def chmod(self, path: Path, mode: int) -> None:
        is_directory = stat.S_ISDIR(self._lstat(path).st_mode)
        with self._parent(path) as (fd, name):
            os.chmod(name, self._real(mode, is_directory), dir_fd=fd)
        self._note_mode(path, mode)

    def utimens(self, path: Path, mtime_ns: int) -> None:
        with self._parent(path) as (fd, name):
            os.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=fd, follow_symlinks=False)

    def set_xattr(self, path: Path, name: bytes, value: bytes) -> None:
        with self._parent(path) as (fd, last):
            os.setxattr(_through(fd, last), name, value, follow_symlinks=False)

    def remove_xattr(self, path: Path, name: bytes) -> None:
        with self._parent(path) as (fd, last):
            os.removexattr(_through(fd, last), name, follow_symlinks=False)

    # looking

    def stat(self, path: Path) -> tuple[int, ...]:
        status = self._lstat(path)
        return self._shown(status), status.st_nlink, *_sizes(status.st_mode, status.st_size)

    def content(self, path: Path) -> bytes:
        status = self._lstat(path)
        with self._parent(path) as (fd, name):
            if stat.S_ISLNK(status.st_mode):
                return os.readlink(name, dir_fd=fd)
            _check_openable(status.st_mode, False)
            file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=fd)
        with open(file, "rb") as stream:
            return stream.read()

    def listing(self, path: Path) -> list[bytes]:
        self._lstat(path)
        with self._parent((*path, b".")) as (fd, _):
            return sorted(map(os.fsencode, os.listdir(fd)))

    def paths(self, path: Path = ()) -> Iterator[tuple[Path, bool]]:
        """Every path below one, in order, and whether it is a directory."""
        for name in self.listing(path):
            inner = (*path, name)
            is_directory = stat.S_ISDIR(self._lstat(inner).st_mode)
            yield inner, is_directory
            if is_directory:
                yield from self.paths(inner)

    def glance(self) -> dict[Path, Seen]:
        """Everything; pins it."""
        return dict(self._everything(()))

    def _everything(self, path: Path) -> Iterator[tuple[Path, Seen]]:
        status = self._pin(path)
        regular = stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)
        with self._parent(path) as (fd, name):
            where = _through(fd, name)
            names = map(os.fsencode, os.listxattr(where, follow_symlinks=False))
            xattrs = {one: os.getxattr(where, one, follow_symlinks=False) for one in names}
        yield (
            path,
            Seen(
                self._shown(status),
                status.st_nlink,
                *_sizes(status.st_mode, status.st_size) or (0,),
                status.st_uid,
                status.st_gid,
                self.content(path) if regular else b"",
                xattrs,
                status.st_mtime_ns,
                status.st_ctime_ns,
                status.st_ino,
            ),
        )
        if stat.S_ISDIR(status.st_mode):
            for inner in self.listing(path):
                yield from self._everything((*path, inner))


def _through(fd: int, name: bytes) -> bytes:
    return b"/proc/self/fd/%d/%s" % (fd, name)
