"""What the kernel says is mounted: ``/proc/<pid>/mountinfo`` read, and the name a Heddle mount carries there.

Owns the parsing (proc(5)) and the ``heddle:<repository>:<what>`` source. Answers come from the table alone: no path is
looked up inside a mount, so a dead or hung session can't block us. Who serves a mount is ``registry``'s question.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote_from_bytes, unquote_to_bytes

FSTYPE = "fuse.heddle"
_SOURCE_PREFIX = "heddle:"
_MAX_SYMLINKS = 40


class KernelMount(NamedTuple):
    """One line of mountinfo.

    Attributes:
        mount_id: the kernel's number of the mount.
        device: ``major:minor`` of the mounted file system; bind mounts of one have the same.
        root: what of the mounted file system is shown (``/`` unless it is a bind mount of a part).
        mountpoint: where it is mounted.
        fstype: file system type, ``fuse.heddle`` for ours.
        source: the file system's name, ``heddle:…`` for ours.
        read_only: whether the mount or the file system is read-only.
        user_id: whose FUSE file system it is; None for other file systems.
    """

    mount_id: int
    device: str
    root: Path
    mountpoint: Path
    fstype: str
    source: str
    read_only: bool
    user_id: int | None

    def served(self) -> tuple[Path, str] | None:
        """Repository and thread (or state spec) that a Heddle mount shows; None for every other mount."""
        return parse_source(self.source) if self.fstype == FSTYPE else None


class Location(NamedTuple):
    """A host path as seen by the Heddle mount it lies in.

    Attributes:
        repository: the directory that holds the repository's ``.heddle``.
        thread: the thread that is mounted, or the state spec of a read-only mount.
        mountpoint: where it is mounted.
        path: the path inside the mount, ``b""`` for its root.
        read_only: whether it is a read-only mount (of any state) instead of a thread's.
    """

    repository: Path
    thread: str
    mountpoint: Path
    path: bytes
    read_only: bool


def format_source(repository: Path, name: str) -> str:
    """The fsname of a mount: no comma, colon, space or control character of either part survives quoting."""
    quoted = quote_from_bytes(os.fsencode(repository), safe="/")
    return f"{_SOURCE_PREFIX}{quoted}:{quote_from_bytes(os.fsencode(name), safe='/')}"


def parse_source(source: str) -> tuple[Path, str] | None:
    """The repository and the name in a mount's source, or None when it isn't one of ours."""
    if not source.startswith(_SOURCE_PREFIX):
        return None
    repository, colon, name = source[len(_SOURCE_PREFIX) :].partition(":")
    if not colon or not repository.startswith("/"):
        return None
    return Path(os.fsdecode(unquote_to_bytes(repository))), os.fsdecode(unquote_to_bytes(name))


def read_mountinfo(process: str = "self") -> list[KernelMount]:
    """Every mount of a process's namespace, in the order in which they were mounted.

    Args:
        process: a pid, or ``self``.

    Raises:
        OSError: the process is gone or belongs to somebody else.
    """
    with open(f"/proc/{process}/mountinfo", "rb") as lines:
        return [_parse(line) for line in lines]


def heddle_mounts(process: str = "self") -> list[KernelMount]:
    """Every Heddle mount of a process's namespace, in the order in which they were mounted."""
    marker = b" " + FSTYPE.encode() + b" "
    with open(f"/proc/{process}/mountinfo", "rb") as lines:
        return [mount for line in lines if marker in line and (mount := _parse(line)).served()]


def topmost(mounts: list[KernelMount], mountpoint: Path) -> KernelMount | None:
    """The mount that a path shows: the last one mounted there, None when nothing is."""
    return next((mount for mount in reversed(mounts) if mount.mountpoint == mountpoint), None)


def is_mounted(path: Path, source: str) -> bool:
    """Whether a session's mount is at a path, be it covered by another one."""
    return any(it.mountpoint == path and it.source == source for it in heddle_mounts())


def resolve_outside(path: Path, mounts: list[KernelMount] | None = None) -> Path:
    """The absolute path with symbolic links followed, but never a look-up at or below a Heddle mount.

    ``Path.resolve`` would block on a hung session and fail on a dead one. What lies in a Heddle mount is
    normalised as text.
    """
    ours = {mount.mountpoint for mount in (heddle_mounts() if mounts is None else mounts)}
    todo = list(reversed(path.absolute().parts[1:]))
    done = Path("/")
    links_left = _MAX_SYMLINKS
    while todo:
        name = todo.pop()
        if name == "..":
            done = done.parent
            continue
        step = done / name
        inside = not ours.isdisjoint((step, *step.parents))
        target = None if inside or not links_left else _readlink(step)
        if target is None:
            done = step
            continue
        links_left -= 1
        todo.extend(part for part in reversed(Path(target).parts) if part != "/")
        if target.startswith("/"):
            done = Path("/")
    return done


def locate(path: Path) -> Location | None:
    """The Heddle mount that a host path lies in, told from the kernel's table alone.

    Works where the session is dead or hung. A path on another file system that is mounted inside a Heddle mount lies in
    none.

    Args:
        path: any host path; it need not exist.
    """
    if FSTYPE.encode() not in Path("/proc/self/mountinfo").read_bytes():
        return None
    mounts = read_mountinfo()
    where = resolve_outside(path, [mount for mount in mounts if mount.fstype == FSTYPE])
    for prefix in (where, *where.parents):
        mount = topmost(mounts, prefix)
        if mount is not None:
            return _location(mount, where)
    return None


def _location(mount: KernelMount, where: Path) -> Location | None:
    served = mount.served()
    if served is None:
        return None
    inside = mount.root.relative_to("/") / where.relative_to(mount.mountpoint)
    path = b"" if inside == Path(".") else os.fsencode(inside)
    return Location(served[0], served[1], mount.mountpoint, path, mount.read_only)


def _readlink(path: Path) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def _parse(line: bytes) -> KernelMount:
    before, _, after = line.rstrip(b"\n").partition(b" - ")
    mount_id, _parent, device, root, mountpoint, options = before.split(b" ")[:6]
    fstype, source, super_options = after.split(b" ")[:3]
    return KernelMount(
        mount_id=int(mount_id),
        device=device.decode("ascii"),
        root=Path(os.fsdecode(_unescape(root))),
        mountpoint=Path(os.fsdecode(_unescape(mountpoint))),
        fstype=_unescape(fstype).decode("utf-8", "surrogateescape"),
        source=_unescape(source).decode("utf-8", "surrogateescape"),
        read_only=b"ro" in options.split(b",") or b"ro" in super_options.split(b","),
        user_id=next(
            (int(it[8:]) for it in super_options.split(b",") if it[:8] == b"user_id="), None
        ),
    )


def _unescape(field: bytes) -> bytes:
    """Undo the kernel's octal escapes of space, tab, newline, backslash and ``#``."""
    first, *rest = field.split(b"\\")
    return first + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in rest)
