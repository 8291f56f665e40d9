"""Git's index file, written from what is known already (gitformat-index(5)).

Owns the bytes: entries of version 2, the extensions by which git need not look further (``TREE``: which trees the
entries are, ``UNTR``: which directories hold nothing else, ``FSMN``: which entries a monitor vouches for), and the
rule that an index appears whole or not at all, and never in place of another. What is in a view, and what stat(2) says
of it, is the caller's.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from heddle import faults
from heddle.objects.gitpack import offset_varint

_SECOND = 1_000_000_000
_LOW = 0xFFFFFFFF
_MAX_LENGTH = 0xFFF
_STAT = struct.Struct(">10I")
NO_STAT = bytes(_STAT.size)
"""Of an entry whose file git has to look at itself."""
_NO_TIMES = bytes(16)
_DIGITS = b"01".ljust(256, b"1")
_PADS = [bytes(8 - (_STAT.size + extra) % 8) for extra in range(8)]
_USUAL_FLAGS = 1 << 1 | 1 << 2  # dir.h: DIR_SHOW_OTHER_DIRECTORIES, DIR_HIDE_EMPTY_DIRECTORIES


def stat_bytes(
    ino: int, mode: int, uid: int, gid: int, size: int, mtime_ns: int, ctime_ns: int
) -> bytes:
    """What an entry says of a file: its times, device, inode number, mode, owner and size, cut to 32 bits each."""
    changed_s, changed_ns = divmod(ctime_ns, _SECOND)
    modified_s, modified_ns = divmod(mtime_ns, _SECOND)
    return _STAT.pack(
        *(changed_s & _LOW, changed_ns, modified_s & _LOW, modified_ns),
        *(0, ino & _LOW, mode, uid & _LOW, gid & _LOW, size & _LOW),
    )


def entry(status: bytes, mode: int, id: bytes, path: bytes) -> bytes:
    """One entry.

    Args:
        status: as ``stat_bytes``, or ``NO_STAT``; its mode is replaced.
        mode: git's mode.
        id: binary.
        path: from the root.
    """
    return b"".join((status[:24], mode.to_bytes(4, "big"), status[28:], behind_stat(id, path)))


def behind_stat(id: bytes, path: bytes) -> bytes:
    """What an entry says behind the stat: its binary id and its path."""
    length = len(path)
    named = (length if length < _MAX_LENGTH else _MAX_LENGTH).to_bytes(2, "big")
    return b"".join((id, named, path, _PADS[(len(id) + 2 + length) % 8]))


class Directory(NamedTuple):
    """A directory of which everything was written, for the extensions.

    Attributes:
        name: the last part of its path; empty for the root.
        tree: the binary id of the tree that its entries are; None when they are not known to be one.
        entries: how many entries lie at and below it.
        status: ``stat_bytes`` of it, if it holds nothing that is not in the index; None: git has to look.
        rules: the binary id of its ``.gitignore``; None: it has none.
        inside: the directories in it, in the order of their names.
    """

    name: bytes
    tree: bytes | None
    entries: int
    status: bytes | None
    rules: bytes | None
    inside: list[Directory]


class Listed(NamedTuple):
    """What an index says of a tree, but for its root directory's own stat. Made by `collect`.

    Attributes:
        length: how many entries.
        entries: all of them.
        unknown: a byte for each: 1 if git has to look at its file.
        trees: the cache tree.
        names: the directories of the untracked cache.
        valid: a byte for each: 1 if there is a stat of it.
        stats: those of the valid ones.
        ruled: a byte for each: 1 if it has rules.
        rules: the ids of those.
    """

    length: int
    entries: bytes
    unknown: bytes
    trees: bytes
    names: bytes
    valid: bytes
    stats: bytes
    ruled: bytes
    rules: bytes


def collect(entries: Iterable[bytes], root: Directory) -> Listed:
    """What an index is to say.

    Args:
        entries: in the order of their paths.
        root: the root directory.
    """
    listed = list(entries)
    directories: list[Directory] = []
    pending = [root]
    while pending:
        one = pending.pop()
        directories.append(one)
        pending += reversed(one.inside)
    below = directories[1:]
    return Listed(
        length=len(listed),
        entries=b"".join(listed),
        unknown=bytes(each.startswith(_NO_TIMES) for each in listed),
        trees=_tree(root),
        # no untracked entries in any of them
        names=b"".join(b"\0%s%s\0" % (_varint(len(one.inside)), one.name) for one in directories),
        valid=bytes([0, *(one.status is not None for one in below)]),
        stats=b"".join(_short_stat(one.status) for one in below if one.status is not None),
        ruled=bytes(one.rules is not None for one in directories),
        rules=b"".join(one.rules for one in directories if one.rules is not None),
    )


def write(
    path: Path,
    listed: Listed,
    root: bytes | None,
    *,
    object_format: str,
    checkout: Path,
    excludes: tuple[bytes | None, bytes | None],
    monitored: bytes | None = None,
    looked_ns: int,
) -> None:
    """Make an index where there is none.

    Its own modification time tells git which entries to doubt: those of files that are not at least a second older,
    since git may go by whole seconds (git's Documentation/technical/racy-git.txt). So it is that of the look: a change
    after that, in the second of an entry's time, would not be seen.

    Args:
        path: of the index.
        listed: what it says.
        root: ``stat_bytes`` of the root directory, as in `Directory`.
        object_format: ``sha1`` or ``sha256``.
        checkout: where git works; the untracked cache is good for this place only.
        excludes: the bytes of ``info/exclude`` and of the user's ignore file; None where there is none.
        monitored: the token of a monitor (githooks(5), "fsmonitor-watchman") that tells what changed since the stats
            were taken: git then looks at no entry that has one; None: there is none.
        looked_ns: when the stats were taken, in ns since the epoch, or before.

    Raises:
        FileExistsError: there is one by now.
        OSError: it can't be written.
    """
    body = b"".join(
        (
            struct.pack(">4sII", b"DIRC", 2, listed.length),
            listed.entries,
            _extension(b"TREE", listed.trees),
            _extension(b"UNTR", _untracked(listed, root, checkout, excludes, object_format)),
            b"" if monitored is None else _extension(b"FSMN", _monitor(monitored, listed)),
        )
    )
    temporary = path.with_name("heddle-index")
    try:
        with temporary.open("wb") as file:
            file.write(body + _digest(object_format, body))
            file.flush()
            os.fchmod(file.fileno(), path.parent.stat().st_mode & 0o666)
            os.utime(file.fileno(), ns=(looked_ns, looked_ns))
        faults.reach("gitindex.before-link")
        os.link(temporary, path)  # not over one that git has made meanwhile
    finally:
        temporary.unlink(missing_ok=True)


def relocate(path: Path, checkout: Path, object_format: str) -> None:
    """Have what an index says of untracked files count for another place; the same is seen there.

    Only for an index that nobody uses.

    Args:
        path: of the index, also one that git wrote since.
        checkout: where git is going to work.
        object_format: ``sha1`` or ``sha256``.

    Raises:
        OSError: it can't be read or written.
    """
    data = path.read_bytes()
    digest = len(_digest(object_format))
    found = extension_at(data, b"UNTR", len(data) - digest)
    if found is None:
        return
    start, length = found
    content = data[start + 8 : start + 8 + length]
    size, at = offset_varint(content, 0)
    where = _place(checkout)
    moved = _extension(b"UNTR", _varint(len(where)) + where + content[at + size :])
    # "EOIE" at the end says where the others are; git goes without it.
    body = data[:start] + moved + data[start + 8 + length : -digest]
    temporary = path.with_name("heddle-index")
    temporary.write_bytes(body + _digest(object_format, body))
    temporary.chmod(path.stat().st_mode & 0o777)
    faults.reach("gitindex.before-relocation")
    os.rename(temporary, path)


def extension_at(data: bytes | mmap.mmap, name: bytes, end: int) -> tuple[int, int] | None:
    """Where an extension of an index begins and how long its content is: those behind it go up to the end."""
    start = data.find(name)
    while start >= 0:
        at = start
        while at + 8 <= end:
            at += 8 + int.from_bytes(data[at + 4 : at + 8], "big")
        if at == end and data[start + 4 : start + 8] != bytes(4):
            return start, int.from_bytes(data[start + 4 : start + 8], "big")
        start = data.find(name, start + 1)
    return None


def _monitor(token: bytes, listed: Listed) -> bytes:
    """The monitor's token, and which entries git has to look at all the same (version 2)."""
    unknown = _bitmap(listed.unknown)
    return b"".join(
        ((2).to_bytes(4, "big"), token, b"\0", len(unknown).to_bytes(4, "big"), unknown)
    )


def _extension(name: bytes, content: bytes) -> bytes:
    return name + len(content).to_bytes(4, "big") + content


def _tree(directory: Directory) -> bytes:
    """The cache tree: each directory before those in it; an entry count of -1 where the tree is not known."""
    parts: list[bytes] = []
    pending = [directory]
    while pending:
        one = pending.pop()
        inside = [each for each in one.inside if each.entries]
        count = -1 if one.tree is None else one.entries
        parts.append(b"%s\0%d %d\n%s" % (one.name, count, len(inside), one.tree or b""))
        pending += reversed(inside)
    return b"".join(parts)


def _untracked(
    listed: Listed,
    root: bytes | None,
    checkout: Path,
    excludes: tuple[bytes | None, bytes | None],
    object_format: str,
) -> bytes:
    """The untracked cache: directories that need not be listed again while stat(2) says the same of them."""
    where = _place(checkout)
    nothing = bytes(len(_digest(object_format)))
    # How git hashes a file of rules: with a newline behind it (dir.c, add_patterns).
    rules = [
        nothing if each is None else _blob_id(each + b"\n", object_format) for each in excludes
    ]
    valid = bytes([root is not None]) + listed.valid[1:]
    return b"".join(
        (
            _varint(len(where)),
            where,
            bytes(2 * 36),
            _USUAL_FLAGS.to_bytes(4, "big"),
            *rules,
            b".gitignore\0",
            _varint(len(valid)),
            listed.names,
            _bitmap(valid),
            _bitmap(bytes(len(valid))),
            _bitmap(listed.ruled),
            b"" if root is None else _short_stat(root),
            listed.stats,
            listed.rules,
            b"\0",
        )
    )


def _place(checkout: Path) -> bytes:
    """For which place an untracked cache is."""
    return b"Location %s, system %s\0" % (os.fsencode(checkout), os.uname().sysname.encode())


def _short_stat(status: bytes) -> bytes:
    """git's struct stat_data: as an entry's, without the mode."""
    return status[:24] + status[28:40]


def _blob_id(content: bytes, object_format: str) -> bytes:
    return _digest(object_format, b"blob %d\0" % len(content) + content)


def _digest(object_format: str, content: bytes = b"") -> bytes:
    from hashlib import (
        new,  # loads OpenSSL, which commands that only look where mounts are do not need
    )

    return new(object_format, content).digest()


def _varint(value: int) -> bytes:
    """git's variable width encoding, as of an offset in a pack (varint.c)."""
    parts = [value & 0x7F]
    while value := value >> 7:
        value -= 1
        parts.append(0x80 | value & 0x7F)
    return bytes(reversed(parts))


def _bitmap(flags: bytes) -> bytes:
    """An EWAH bitmap (gitformat-pack(5), "bitmap-format") of 0 and 1, in one run of literal words."""
    words = []
    for start in range(0, len(flags), 64):
        bits = flags[start : start + 64][::-1].translate(_DIGITS)
        words.append(int(bits, 2).to_bytes(8, "big"))
    marker = (len(words) << 33).to_bytes(8, "big")
    sizes = struct.pack(">II", len(flags), len(words) + 1)
    return b"".join((sizes, marker, *words, bytes(4)))


def git_mode(mode: int) -> int:
    """The mode that git's index has for a tree entry's: it knows two kinds of files."""
    if stat.S_ISREG(mode):
        return 0o100755 if mode & 0o100 else 0o100644
    return mode
