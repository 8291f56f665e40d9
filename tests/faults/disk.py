"""A disk of the tests' own: one file behind FUSE, which fails to read or to write when it is told to.

Run as ``python disk.py MOUNTPOINT BACKING``; it serves ``MOUNTPOINT/image``, on which a loop device can lie. What it
does is the text in ``BACKING.mode``: nothing, or words of ``no-read`` and ``no-write``. (The device mapper's ``error``
and ``flakey`` targets would do the same where a kernel has them.)
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path

import pyfuse3
import trio

IMAGE = 2


class Disk(pyfuse3.Operations):
    """One file, its bytes in another."""

    def __init__(self, backing: str) -> None:
        super().__init__()
        self._fd = os.open(backing, os.O_RDWR)
        self._mode = Path(backing + ".mode")

    def _check(self, what: str) -> None:
        if what in self._mode.read_text().split():
            raise pyfuse3.FUSEError(errno.EIO)

    async def getattr(self, inode, ctx=None):
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = stat.S_IFDIR | 0o755
        if inode == IMAGE:
            entry.st_mode = stat.S_IFREG | 0o600
            entry.st_size = os.fstat(self._fd).st_size
        return entry

    async def lookup(self, parent_inode, name, ctx=None):
        if name != b"image":
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(IMAGE)

    async def open(self, inode, flags, ctx):
        return pyfuse3.FileInfo(fh=1, direct_io=True)

    async def read(self, fh, off, size):
        self._check("no-read")
        return os.pread(self._fd, size, off)

    async def write(self, fh, off, buf):
        self._check("no-write")
        return os.pwrite(self._fd, buf, off)

    async def fsync(self, fh, datasync):
        self._check("no-write")


def main() -> None:
    mountpoint, backing = sys.argv[1:]
    pyfuse3.init(Disk(backing), mountpoint, {"fsname=heddle-test-disk", "default_permissions"})
    print("ready", flush=True)
    trio.run(pyfuse3.main)
    pyfuse3.close()


if __name__ == "__main__":
    main()
