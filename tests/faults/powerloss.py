"""What a disk holds after the power failed: system calls recorded by strace(1), replayed with unsynced data dropped.

The model is POSIX's promise and nothing of any file system's kindness: bytes are on disk when the file was fsynced
after they were written, a name when its directory was fsynced after it was made. What was not synced may be there or
not; two extremes are tried: none of it (``strict``), and all names but no unsynced byte (``names``, as a file system
that journals names only).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

_CALLS = (
    "openat,close,write,pwrite64,writev,lseek,fsync,fdatasync,rename,renameat,renameat2,link,linkat,"
    "unlink,unlinkat,mkdir,mkdirat,rmdir,ftruncate,symlinkat,mknodat,mknod,utimensat,"
    "setxattr,lsetxattr,fsetxattr,removexattr,lremovexattr,fremovexattr"
)
_REFUSED = "pwritev,pwritev2,copy_file_range,sendfile,splice,fallocate,truncate,creat,open"
_LINE = re.compile(rb"^(\d+) (\w+)\((.*)\) += (-?\d+|\?)")
Extreme = Literal["strict", "names"]


class Call:
    """One system call that succeeded.

    Attributes:
        name: of the call.
        arguments: its arguments; strings are bytes, descriptors are paths.
        result: what it returned.
    """

    def __init__(self, name: str, arguments: list[bytes], result: int) -> None:
        self.name = name
        self.arguments = arguments
        self.result = result


def record(script: str, arguments: list[str], log: Path, environment: dict[str, str]) -> list[Call]:
    """Run a Python script under strace(1) and return its calls in order."""
    command = ["strace", "-f", "-y", "-xx", "-s", "100000000", "-o", log, "-e"]
    command += [f"trace={_CALLS},{_REFUSED}", sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(parse(log.read_bytes()))


def parse(log: bytes) -> Iterator[Call]:
    """Read strace's output; a call that another thread interrupts stands where it ended."""
    begun: dict[bytes, bytes] = {}
    for line in log.splitlines():
        pid, _, rest = line.partition(b" ")
        rest = rest.lstrip()
        if rest.endswith(b"<unfinished ...>"):
            begun[pid] = rest.removesuffix(b"<unfinished ...>").rstrip()
            continue
        resumed = re.match(rb"<\.\.\. \w+ resumed>(.*)", rest)
        if resumed:
            rest = begun.pop(pid) + resumed[1]
        match = _LINE.match(pid + b" " + rest)
        if match is None or match[4] == b"?" or int(match[4]) < 0:
            continue
        yield Call(match[2].decode(), _arguments(match[3]), int(match[4]))


def _arguments(text: bytes) -> list[bytes]:
    parts = re.findall(rb'(?:[^,"<{\[]|"[^"]*"|<[^>]*>|\[[^\]]*\]|\{[^}]*\})+', text)
    return [part.strip() for part in parts]


def _string(argument: bytes) -> bytes:
    """A quoted string, in which every byte is written in hexadecimal."""
    assert argument.startswith(b'"'), argument
    return bytes.fromhex(argument.split(b'"')[1].replace(b"\\x", b"").decode())


def _opened(argument: bytes) -> tuple[int, bytes]:
    """A descriptor and its path: ``5</path>``, written in hexadecimal."""
    number, _, path = argument.partition(b"<")
    raw = path.partition(b">")[0]
    number = number if number != b"AT_FDCWD" else b"-100"
    return int(number), bytes.fromhex(raw.replace(b"\\x", b"").decode())


class Inode:
    """A file, directory or link: what it holds, and what of it is on disk."""

    def __init__(self, kind: str, content: bytes = b"") -> None:
        self.kind = kind
        self.content = bytearray(content)
        self.marks: dict[bytes, bytes] = {}
        self.names: dict[bytes, Inode] = {}
        self.disk = bytes(content)
        self.disk_names: dict[bytes, Inode] = {}
        self.device: tuple[int, int] | None = None

    def sync(self) -> None:
        self.disk = bytes(self.content)
        self.disk_names = dict(self.names)


class Disk:
    """One directory as a process changes it, and as it would be after a power failure.

    Args:
        top: the directory; everything outside it is ignored.
    """

    def __init__(self, top: Path) -> None:
        self.top = os.fsencode(top)
        self.root = Inode("directory")
        self._files: dict[int, tuple[Inode, int, bool]] = {}
        self._paths: dict[int, bytes] = {}

    def inside(self, path: bytes) -> bool:
        return path == self.top or path.startswith(self.top + b"/")

    def find(self, path: bytes) -> Inode:
        node = self.root
        for name in self._parts(path):
            node = node.names[name]
        return node

    def _parts(self, path: bytes) -> list[bytes]:
        return [part for part in os.path.normpath(path)[len(self.top) :].split(b"/") if part]

    def _place(self, path: bytes) -> tuple[Inode, bytes]:
        path = os.path.normpath(path)
        return self.find(os.path.dirname(path)), os.path.basename(path)

    def apply(self, call: Call) -> bool:
        """Follow a call; returns whether it was about this directory."""
        do = getattr(self, f"_{call.name}", None)
        if do is None:
            touches = any(
                self.top.hex().encode() in arg.replace(b"\\x", b"") for arg in call.arguments
            )
            assert not touches, f"the model does not know {call.name}"
            return False
        return bool(do(call.arguments, call.result))

    # paths of calls

    def _at(self, directory: bytes, name: bytes) -> bytes:
        return os.path.join(_opened(directory)[1], _string(name))

    def _path(self, argument: bytes) -> bytes:
        path = _string(argument)
        match = re.match(rb"/proc/self/fd/(\d+)/(.*)", path)
        if match:
            above = self._files.get(int(match[1]))
            path = os.path.join(self._paths.get(int(match[1]), b"?"), match[2]) if above else b"?"
        return path

    # calls: each returns whether it was about this directory

    def _openat(self, arguments: list[bytes], fd: int) -> bool:
        path = os.path.normpath(self._at(arguments[0], arguments[1]))
        self._files.pop(fd, None)
        if not self.inside(path):
            return False
        flags = arguments[2]
        if path == self.top:
            node = self.root
        else:
            above, name = self._place(path)
            if name not in above.names:
                assert b"O_CREAT" in flags, path
                above.names[name] = Inode("file")
            node = above.names[name]
        if b"O_TRUNC" in flags:
            node.content.clear()
        self._files[fd] = node, 0, b"O_APPEND" in flags
        self._paths[fd] = path
        return b"O_CREAT" in flags or b"O_TRUNC" in flags

    def _close(self, arguments: list[bytes], _: int) -> bool:
        """Its number may be a duplicate's next, which no call traced here tells."""
        self._files.pop(_opened(arguments[0])[0], None)
        return False

    def _known(self, argument: bytes) -> tuple[int, Inode] | None:
        fd, path = _opened(argument)
        if not self.inside(path):
            return None
        if fd in self._files:
            return fd, self._files[fd][0]
        try:
            return fd, self.find(path)  # a duplicate of a descriptor
        except KeyError:
            return None

    def _write(self, arguments: list[bytes], written: int) -> bool:
        known = self._known(arguments[0])
        if known is None:
            return False
        fd, node = known
        _, position, append = self._files[fd]
        position = len(node.content) if append else position
        self._put(node, position, _string(arguments[1])[:written])
        self._files[fd] = node, position + written, append
        return True

    def _pwrite64(self, arguments: list[bytes], written: int) -> bool:
        known = self._known(arguments[0])
        if known is None:
            return False
        self._put(known[1], int(arguments[3]), _string(arguments[1])[:written])
        return True

    def _put(self, node: Inode, position: int, data: bytes) -> None:
        if len(node.content) < position:
            node.content.extend(bytes(position - len(node.content)))
        node.content[position : position + len(data)] = data

    def _lseek(self, arguments: list[bytes], position: int) -> bool:
        known = self._known(arguments[0])
        if known is not None and known[0] in self._files:
            node, _, append = self._files[known[0]]
            self._files[known[0]] = node, position, append
        return False

    def _ftruncate(self, arguments: list[bytes], _: int) -> bool:
        known = self._known(arguments[0])
        if known is None:
            return False
        size = int(arguments[1])
        del known[1].content[size:]
        self._put(known[1], size, b"")
        return True

    def _fsync(self, arguments: list[bytes], _: int) -> bool:
        known = self._known(arguments[0])
        if known is None:
            return False
        known[1].sync()
        return True

    _fdatasync = _fsync

    def sync_names(self, node: Inode) -> bool:
        """Make the names durable that lead to a file."""
        return self._lead_to(self.root, node)

    def _lead_to(self, above: Inode, node: Inode) -> bool:
        found = above is node
        for name, child in above.names.items():
            if self._lead_to(child, node):
                above.disk_names[name] = child
                found = True
        return found

    def _mkdirat(self, arguments: list[bytes], _: int) -> bool:
        return self._make(self._at(arguments[0], arguments[1]), Inode("directory"))

    def _mkdir(self, arguments: list[bytes], _: int) -> bool:
        return self._make(self._path(arguments[0]), Inode("directory"))

    def _mknodat(self, arguments: list[bytes], _: int) -> bool:
        assert b"S_IFCHR" in arguments[2], arguments
        return self._make(self._at(arguments[0], arguments[1]), Inode("whiteout"))

    def _symlinkat(self, arguments: list[bytes], _: int) -> bool:
        link = Inode("link", _string(arguments[0]))
        return self._make(self._at(arguments[1], arguments[2]), link)

    def _make(self, path: bytes, node: Inode) -> bool:
        if not self.inside(path):
            return False
        if os.path.normpath(path) != self.top:
            above, name = self._place(path)
            above.names[name] = node
        return True

    def _rename(self, arguments: list[bytes], _: int) -> bool:
        return self._move(self._path(arguments[0]), self._path(arguments[1]), b"0")

    def _renameat(self, arguments: list[bytes], _: int) -> bool:
        return self._move(
            self._at(arguments[0], arguments[1]), self._at(arguments[2], arguments[3]), b"0"
        )

    def _renameat2(self, arguments: list[bytes], _: int) -> bool:
        return self._move(
            self._at(arguments[0], arguments[1]),
            self._at(arguments[2], arguments[3]),
            arguments[4],
        )

    def _move(self, old: bytes, new: bytes, flags: bytes) -> bool:
        if not self.inside(old):
            return False
        above, name = self._place(old)
        into, target = self._place(new)
        moved = above.names.pop(name)
        if b"EXCHANGE" in flags:
            above.names[name] = into.names[target]
        elif b"WHITEOUT" in flags:
            above.names[name] = Inode("whiteout")
        into.names[target] = moved
        return True

    def _linkat(self, arguments: list[bytes], _: int) -> bool:
        old, new = self._at(arguments[0], arguments[1]), self._at(arguments[2], arguments[3])
        return self._make(new, self.find(old)) if self.inside(old) else False

    def _unlinkat(self, arguments: list[bytes], _: int) -> bool:
        return self._remove(self._at(arguments[0], arguments[1]))

    def _unlink(self, arguments: list[bytes], _: int) -> bool:
        return self._remove(self._path(arguments[0]))

    _rmdir = _unlink

    def _remove(self, path: bytes) -> bool:
        if not self.inside(path):
            return False
        above, name = self._place(path)
        del above.names[name]
        return True

    def _fsetxattr(self, arguments: list[bytes], _: int) -> bool:
        known = self._known(arguments[0])
        if known is None:
            return False
        known[1].marks[_string(arguments[1])] = _string(arguments[2])
        return True

    def _setxattr(self, arguments: list[bytes], _: int) -> bool:
        path = self._path(arguments[0])
        if not self.inside(path):
            return False
        self.find(path).marks[_string(arguments[1])] = _string(arguments[2])
        return True

    _lsetxattr = _setxattr

    def _fremovexattr(self, arguments: list[bytes], _: int) -> bool:
        known = self._known(arguments[0])
        return known is not None and known[1].marks.pop(_string(arguments[1]), None) is not None

    def _removexattr(self, arguments: list[bytes], _: int) -> bool:
        path = self._path(arguments[0])
        return (
            self.inside(path) and self.find(path).marks.pop(_string(arguments[1]), None) is not None
        )

    _lremovexattr = _removexattr

    def _utimensat(self, arguments: list[bytes], _: int) -> bool:
        return False

    # after the power failed

    def image(self, extreme: Extreme) -> dict[bytes, Image]:
        """What is on disk, by path below the top."""
        found: dict[bytes, Image] = {}
        self._collect(self.root, b"", extreme, found)
        return found

    def _collect(
        self, node: Inode, path: bytes, extreme: Extreme, found: dict[bytes, Image]
    ) -> None:
        names = node.names if extreme == "names" else node.disk_names
        for name, child in names.items():
            where = path + b"/" + name if path else name
            content = bytes(child.content) if child.kind == "link" else child.disk
            found[where] = child.kind, content, tuple(sorted(child.marks.items())), id(child)
            if child.kind == "directory":
                self._collect(child, where, extreme, found)


Image = tuple[str, bytes, tuple[tuple[bytes, bytes], ...], int]


def write_image(image: dict[bytes, Image], top: Path) -> None:
    """Make a directory of an image."""
    top.mkdir()
    made: dict[int, bytes] = {}
    for path, (kind, content, marks, number) in image.items():
        where = os.path.join(os.fsencode(top), path)
        if number in made and kind != "directory":
            os.link(made[number], where, follow_symlinks=False)
            continue
        made[number] = where
        if kind == "directory":
            os.mkdir(where)
        elif kind == "link":
            os.symlink(content, where)
        elif kind == "whiteout":
            os.mknod(where, 0o020600, 0)
        else:
            with open(where, "wb") as file:
                file.write(content)
        for name, value in marks if kind in ("file", "directory") else ():
            os.setxattr(where, name, value)
