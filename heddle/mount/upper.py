"""The upper layer: the changed files of one mount, as real files on disk.

Owns the directory ``upper/`` beside its ``work/``, how a deletion, a moved directory and a file without its own
bytes are written there (`Marks`, docs/format.md "Overlay"), and the primitives that change one name in one step.
What a name means is the core's. Everything is addressed through directory descriptors, so that depth costs no
path its length.

Conventions are the kernel overlayfs's where it has one: a whiteout is a character device 0/0, a directory that
hides its lower carries ``user.overlay.opaque=y`` (Documentation/filesystems/overlayfs.rst).
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import stat
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from zlib import crc32

from heddle import faults
from heddle.errors import StorageError
from heddle.mount.depth import any_depth
from heddle.mount.partial import Partial, object_id

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

log = logging.getLogger(__name__)


class Damaged(StorageError):
    """What the upper says of one of its entries is not what was written."""

    kind = "damaged_overlay"


REPAIR = "heddle fsck --repair"
MARKS = "user.heddle.node"
OPAQUE = "user.overlay.opaque"
NUMBERS = "numbers"
PRIVATE_PREFIXES = (b"user.heddle.", b"user.overlay.", b"trusted.overlay.")

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4

_libc = ctypes.CDLL(None, use_errno=True)
_libc.renameat2.argtypes = (
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_uint,
)


def renameat2(old_fd: int, old: bytes, new_fd: int, new: bytes, flags: int) -> None:
    """renameat2(2). Raises OSError."""
    if _libc.renameat2(old_fd, old, new_fd, new, flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Marks(NamedTuple):
    """What a real file or directory of the upper says about itself beyond stat(2): one xattr, ``key=value`` words.

    Attributes:
        ino: inode number that the mount shows, when it is not the real file's.
        mode: permission bits that the mount shows, when the real ones must be wider for the session's user.
        lower: a directory's lower is this tree, wherever the directory was moved to.
        time_ns: on the root: the time of captured files that have none of their own.
        blob: the bytes are not here but in this blob (the real file is a hole of the right size).
        stored: the bytes are here and are also this blob's, for as long as size and mtime are the recorded ones.
        cleaned: with ``stored``: they are not, but git makes that blob of them at the path where it is recorded; its
            size.
        under: some of the bytes are not here but in a blob; size and times are the real file's.
        size: belongs to ``blob`` (authoritative) or ``stored`` (to be compared).
        mtime_ns: with ``blob`` the time to show; otherwise the real file's when ``stored`` and ``ctime_ns`` were
            noted, which hold as long as it is that.
        ctime_ns: the change time to show: the real one moves with everything that is noted here.
    """

    ino: int | None = None
    mode: int | None = None
    lower: ObjectID | None = None
    time_ns: int | None = None
    blob: ObjectID | None = None
    stored: ObjectID | None = None
    cleaned: int | None = None
    under: Partial | None = None
    size: int = 0
    mtime_ns: int = 0
    ctime_ns: int | None = None

    def encode(self) -> bytes:
        """The attribute's value; empty when there is nothing to say."""
        words = b" ".join(self._words())
        return b"%s sum=%08x" % (words, crc32(words)) if words else b""

    def _words(self) -> list[bytes]:
        words = []
        if self.ino is not None:
            words.append(b"ino=%d" % self.ino)
        if self.mode is not None:
            words.append(b"mode=%o" % self.mode)
        if self.lower is not None:
            words.append(b"lower=" + self.lower)
        if self.time_ns is not None:
            words.append(b"time=%d" % self.time_ns)
        content = self.blob or self.stored
        if content is not None and self.blob is None and self.cleaned is not None:
            words.append(b"cleaned=%s:%d size=%d" % (content, self.cleaned, self.size))
        elif content is not None:
            kind = b"blob" if self.blob else b"stored"
            words.append(b"%s=%s size=%d" % (kind, content, self.size))
        if self.under is not None:
            words.append(b"under=" + self.under.encode())
        if content is not None or self.ctime_ns is not None:
            words.append(b"mtime=%d" % self.mtime_ns)
        if self.ctime_ns is not None:
            words.append(b"ctime=%d" % self.ctime_ns)
        return words

    @classmethod
    def decode(cls, value: bytes) -> Marks:
        """Parse an attribute's value.

        Raises:
            ValueError: it is not one of ours (a damaged upper).
        """
        words, _, checksum = value.rpartition(b" sum=")
        if checksum != b"%08x" % crc32(words):
            raise ValueError("its checksum is wrong")
        return cls._of(words)

    @classmethod
    def guess(cls, value: bytes) -> Marks:
        """What a damaged value says, as far as it is readable; for a repair, which checks it.

        Ids may be wrong in some digits.
        """
        found: dict[str, Any] = {}
        for word in value.split():
            key, _, text = word.partition(b"=")
            if key in (b"lower", b"blob") and len(text) in (40, 64):
                found[key.decode()] = text
            elif key in _WORDS:
                name, read = _WORDS[key]
                with suppress(ValueError):
                    found[name] = read(text)
        return cls(**found)

    @classmethod
    def _of(cls, words: bytes) -> Marks:
        found: dict[str, Any] = {}
        for word in words.split():
            key, _, text = word.partition(b"=")
            if key == b"cleaned":
                key, text, size = b"stored", *_split(text)
                found["cleaned"] = int(size)
            if key not in _WORDS:
                raise ValueError(f"unknown word {word!r}")
            name, read = _WORDS[key]
            found[name] = read(text)
        return cls(**found)

    def times(self, status: os.stat_result) -> tuple[int, int]:
        """Modification and change time to show of the real file or directory that says this."""
        mtime_ns = self.mtime_ns if self.blob is not None else status.st_mtime_ns
        if self.ctime_ns is not None and self.mtime_ns == mtime_ns:
            return mtime_ns, self.ctime_ns
        return mtime_ns, status.st_ctime_ns


NO_MARKS = Marks()


def _octal(text: bytes) -> int:
    return int(text, 8)


def _split(text: bytes) -> tuple[bytes, bytes]:
    id, _, size = text.partition(b":")
    return id, size


_WORDS: dict[bytes, tuple[str, Callable[[bytes], object]]] = {
    b"ino": ("ino", int),
    b"mode": ("mode", _octal),
    b"lower": ("lower", object_id),
    b"time": ("time_ns", int),
    b"blob": ("blob", object_id),
    b"stored": ("stored", object_id),
    b"under": ("under", Partial.decode),
    b"size": ("size", int),
    b"mtime": ("mtime_ns", int),
    b"ctime": ("ctime_ns", int),
}


def is_whiteout(status: os.stat_result) -> bool:
    """A recorded deletion: a character device 0/0."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def entry_path(directory: int, name: bytes) -> bytes:
    """A path for calls that take no directory descriptor (the xattr family)."""
    return b"/proc/self/fd/%d/%s" % (directory, name)


def read_marks(where: bytes | int) -> Marks | None:
    """The marks of a file or directory, None when it has none.

    Raises:
        Damaged: the attribute is; its path is in the message.
    """
    try:
        value = _getxattr(where, MARKS)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EPERM, errno.ENOTSUP):
            return None
        raise
    try:
        return Marks.decode(value)
    except ValueError as error:
        raise Damaged(f"{MARKS} of {place_of(where)} is damaged: {error}", hint=REPAIR) from None


def place_of(where: bytes | int) -> str:
    """Where something lies, for people."""
    if isinstance(where, int):
        return os.readlink(f"/proc/self/fd/{where}")
    directory, slash, name = where.rpartition(b"/")
    with suppress(OSError):
        directory = os.readlink(directory)
    return os.fsdecode(directory + slash + name)


def write_marks(where: bytes | int, marks: Marks) -> None:
    """Replace the marks in one step; removes the attribute when they say nothing."""
    value = marks.encode()
    faults.reach("upper.before-marks")
    if isinstance(where, int):
        if value:
            os.setxattr(where, MARKS, value)
        else:
            _remove_quietly(where)
    elif value:
        os.setxattr(where, MARKS, value, follow_symlinks=False)
    else:
        _remove_quietly(where)


def _getxattr(where: bytes | int, name: str) -> bytes:
    if isinstance(where, int):
        return os.getxattr(where, name)
    return os.getxattr(where, name, follow_symlinks=False)


def _remove_quietly(where: bytes | int) -> None:
    try:
        if isinstance(where, int):
            os.removexattr(where, MARKS)
        else:
            os.removexattr(where, MARKS, follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise


def is_opaque(directory: int) -> bool:
    """Say whether an upper directory hides its lower.

    Raises:
        Damaged: the attribute is.
    """
    try:
        value = os.getxattr(directory, OPAQUE)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP):
            return False
        raise
    if value != b"y":
        raise Damaged(f"{OPAQUE} of {place_of(directory)} is {value!r}", hint=REPAIR)
    return True


def set_opaque(directory: bytes | int) -> None:
    """Make an upper directory hide its lower."""
    faults.reach("upper.before-opaque")
    os.setxattr(directory, OPAQUE, b"y")


def clear_opaque(directory: int) -> None:
    """Let the lower show through again."""
    faults.reach("upper.before-no-opaque")
    try:
        os.removexattr(directory, OPAQUE)
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise


class Upper:
    """The two directories of one overlay and the one-step changes made with them.

    Args:
        directory: the overlay's directory; ``upper`` and ``work`` are made in it.
        widen: the session's user is not root: keep owner permission on real files whatever the mount shows.

    Attributes:
        numbers: the inode number that the mount shows of a symlink or special file, by the real one, where that is
            another; they can have no marks.
    """

    def __init__(self, directory: Path, *, widen: bool) -> None:
        self.widen = widen
        for name in ("upper", "work"):
            (directory / name).mkdir(mode=0o755, exist_ok=True)
        self.root = os.open(directory / "upper", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.work = os.open(directory / "work", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._serial = 0
        self._whiteout: bytes | None = None
        self.numbers = _read_numbers(directory / NUMBERS)
        self._clear_work()

    def close(self) -> None:
        """Give the descriptors back."""
        os.close(self.root)
        os.close(self.work)
        os.close(self._top)

    def names_of(self, files: Container[int]) -> Iterator[bytes]:
        """The paths of all names that some files have, while they may come and go.

        Args:
            files: real inode numbers of regular files with several names.
        """
        with any_depth():
            for where, _, names, directory in os.fwalk(b".", dir_fd=self.root):
                for name in names:
                    with suppress(FileNotFoundError):
                        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
                        if status.st_nlink > 1 and status.st_ino in files:
                            yield os.path.join(where[2:], name)

    def set_number(self, real_ino: int, shown: int | None) -> None:
        """Note the inode number that the mount shows of a symlink or special file; None: the real one."""
        if self.numbers.get(real_ino) == shown:
            return
        name = f"{NUMBERS}/{real_ino}"
        faults.reach("upper.before-number")
        if self.numbers.pop(real_ino, None) is not None:
            os.unlink(name, dir_fd=self._top)
        if shown is not None:
            with suppress(FileExistsError):
                os.mkdir(NUMBERS, 0o700, dir_fd=self._top)
            os.symlink(str(shown), name, dir_fd=self._top)
            self.numbers[real_ino] = shown

    def _clear_work(self) -> None:
        """Remove what a crash left half made; nothing in ``work`` was ever visible."""
        for name in os.listdir(self.work):
            remove_tree(self.work, os.fsencode(name))

    def temporary_name(self) -> bytes:
        """A name in ``work`` that nobody uses."""
        self._serial += 1
        return b"t%d" % self._serial

    @contextmanager
    def staged(self) -> Iterator[bytes]:
        """A name in ``work`` to make something under; when the block fails, what was made is removed."""
        name = self.temporary_name()
        with undone(self.work, name):
            yield name

    def publish(self, temporary: bytes, directory: int, name: bytes) -> None:
        """Move a finished entry from ``work`` to its place, over a file or whiteout if one is there."""
        faults.reach("upper.before-publish")
        os.rename(temporary, name, src_dir_fd=self.work, dst_dir_fd=directory)

    def publish_directory(self, temporary: bytes, directory: int, name: bytes) -> None:
        """Move a finished directory from ``work`` to its place, over a whiteout if one is there."""
        faults.reach("upper.before-publish")
        try:
            renameat2(self.work, temporary, directory, name, RENAME_NOREPLACE)
        except OSError as error:
            if error.errno != errno.EEXIST:
                raise
            self.swap_out(temporary, directory, name)

    def swap_out(self, temporary: bytes, directory: int, name: bytes) -> None:
        """Exchange a staged entry with the one in place, then remove the latter (whatever it is)."""
        renameat2(self.work, temporary, directory, name, RENAME_EXCHANGE)
        faults.reach("upper.after-exchange")
        self.clear_away(temporary)

    def clear_away(self, temporary: bytes) -> None:
        """Remove what was moved into ``work`` to be gone. That it can't be removed changes nothing that is seen."""
        try:
            remove_tree(self.work, temporary)
        except OSError as error:
            log.warning("left in work until the overlay is opened again: %s", error)

    def white_out(self, directory: int, name: bytes, *, replace: bool) -> None:
        """Record a deletion in one step.

        Args:
            directory: descriptor of the upper directory.
            name: the deleted name.
            replace: an upper entry (file, or directory that shows nothing) is there now.
        """
        if not replace:
            self._link_whiteout(directory, name)
            return
        with self.staged() as temporary:
            self._link_whiteout(self.work, temporary)
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                self.swap_out(temporary, directory, name)
            else:
                self.publish(temporary, directory, name)

    def _link_whiteout(self, directory: int, name: bytes) -> None:
        """Hard-link the shared whiteout: one inode serves up to the file system's link limit."""
        faults.reach("upper.before-whiteout")
        if self._whiteout is not None:
            try:
                os.link(self._whiteout, name, src_dir_fd=self.work, dst_dir_fd=directory)
                return
            except OSError as error:
                if error.errno not in (errno.EMLINK, errno.ENOENT):
                    raise
        shared = b"whiteout%d" % self._serial
        self._serial += 1
        os.mknod(shared, stat.S_IFCHR | 0o600, 0, dir_fd=self.work)
        self._whiteout = shared
        os.link(shared, name, src_dir_fd=self.work, dst_dir_fd=directory)

    def rename(self, old_dir: int, old: bytes, new_dir: int, new: bytes, *, whiteout: bool) -> None:
        """Move an entry in one step, leaving a whiteout at the old name if asked.

        File systems without RENAME_WHITEOUT get two steps, new name first: a crash between them shows both.
        """
        faults.reach("upper.before-rename")
        if not whiteout:
            os.rename(old, new, src_dir_fd=old_dir, dst_dir_fd=new_dir)
            return
        try:
            renameat2(old_dir, old, new_dir, new, RENAME_WHITEOUT)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EPERM):
                raise
            with self.staged() as temporary:
                self._link_whiteout(self.work, temporary)
                os.rename(old, new, src_dir_fd=old_dir, dst_dir_fd=new_dir)
                faults.reach("upper.rename-without-whiteout")
                self.publish(temporary, old_dir, old)

    def real_mode(self, mode: int, *, directory: bool = False) -> int:
        """The permission bits a real file gets so that the session can always reach it."""
        mode &= 0o7777
        return mode | (0o700 if directory else 0o600) if self.widen else mode


@contextmanager
def undone(directory: int, name: bytes) -> Iterator[None]:
    """Remove what a block made under a name when the block fails; what it failed of is raised."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            remove_tree(directory, name)
        raise


def _read_numbers(directory: Path) -> dict[int, int]:
    """What was noted by `Upper.set_number`; a number that can't be read is forgotten, and the real one is shown."""
    found: dict[int, int] = {}
    with suppress(FileNotFoundError):
        for name in os.listdir(directory):
            with suppress(ValueError, OSError):
                found[int(name)] = int(os.readlink(directory / name))
    return found


def remove_tree(directory: int, name: bytes) -> None:
    """Remove an entry and all below it; absent is fine. Iterative, so that depth is no limit."""
    try:
        os.unlink(name, dir_fd=directory)
        return
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):
        pass
    top = os.open(
        name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory
    )
    # Flatten: every directory found below is moved up beside the first level, so no path grows.
    try:
        serial = 0
        again = True
        while again:
            again = False
            for child in list(os.scandir(top)):
                child_name = os.fsencode(child.name)
                if not child.is_dir(follow_symlinks=False):
                    os.unlink(child_name, dir_fd=top)
                    continue
                inner = os.open(
                    child_name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top
                )
                try:
                    for grandchild in os.listdir(inner):
                        serial += 1
                        again = True
                        _move_up(inner, os.fsencode(grandchild), top, serial)
                finally:
                    os.close(inner)
                os.rmdir(child_name, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=directory)


def _move_up(inner: int, name: bytes, top: int, serial: int) -> None:
    while True:
        try:
            renameat2(inner, name, top, b".up%d" % serial, RENAME_NOREPLACE)
            return
        except OSError as error:
            if error.errno != errno.EEXIST:
                raise
            serial += 1_000_003
