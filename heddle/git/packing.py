"""The pack of a push: with deltas, as stock git makes it (git-pack-objects(1)), since a line is slower than a disk.

Owns what git is told: which objects, at which paths they were found, and what the other side can build on; and how it
reads those that it has not: from a pack of their own, for the time. Where git is missing or fails, and for a few
objects that git has not, the pack is `pack.pack_pieces`'s, which has none.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterator, Set
from contextlib import closing, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING, NamedTuple

from heddle.errors import StorageError
from heddle.git.pack import pack_pieces, write_pack
from heddle.git.transport import sideband
from heddle.objects.askgit import bare_environment, make_bare
from heddle.objects.gitdir import GitObjects
from heddle.objects.gitformat import to_hex

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.git.pack import Progress
    from heddle.repo.repository import Repository

_PREFIX = ".tmp-outgoing-"
_ABANDONED_S = 86400
_FEW = 200
"""Objects that git has not: of fewer, deltas win less than it takes to show them to it."""
_LONGEST_PATH = 4096  # bytes, that git has room for
_PIECE = 64 << 10  # bytes
_LARGE = "core.bigFileThreshold=32m"
"""What is larger is sent whole, and read in pieces; git's own limit is 512 MiB, and it holds several in memory."""
_WINDOW = "pack.windowMemory=256m"


class Sending(NamedTuple):
    """What a server is to get.

    Attributes:
        ids: binary, each once.
        paths: where its trees and blobs are, by id; a tree's ends in a slash.
        begins: states (hex ids) that the server has, next to what it gets.
    """

    ids: list[bytes]
    paths: dict[bytes, bytes]
    begins: Collection[ObjectID]


class _NotByGit(Exception):
    """Git made nothing."""


def packed(
    repo: Repository, sending: Sending, offered: Set[bytes], progress: Progress | None = None
) -> Iterator[bytes]:
    """A pack for a server, in pieces; what takes time before the first one is done on return.

    Args:
        offered: what the server can (gitprotocol-capabilities(5)).
        progress: called with numbers of objects, done and in all, several times over.

    Raises:
        ObjectMissing, CorruptObject: an object can't be read.
        StorageError: git broke off in the middle.
    """
    pieces = _by_git(repo, sending, offered, progress)
    try:
        return chain((next(pieces),), pieces)
    except (_NotByGit, OSError, StorageError):
        return pack_pieces(repo.store, sending.ids, progress)


def _by_git(
    repo: Repository, sending: Sending, offered: Set[bytes], progress: Progress | None
) -> Iterator[bytes]:
    """The pieces of git's pack; raises _NotByGit, OSError or StorageError before the first where there is none."""
    lacking = _lacking(repo, sending.ids)
    if lacking and len(sending.ids) < _FEW:
        raise _NotByGit
    above = repo.heddle_dir / "objects"
    _remove_abandoned(above)
    with TemporaryDirectory(prefix=_PREFIX, dir=above) as directory:
        place = Path(directory)
        make_bare(place, repo.store.id_length, None if repo.git is None else repo.git.objects)
        write_pack(repo.store, lacking, place / "objects", progress=progress)
        command = ["git", f"--git-dir={place}", "-c", _LARGE, "-c", _WINDOW, "pack-objects"]
        command += ["--stdout", "--all-progress"]
        if b"ofs-delta" in offered:
            command.append("--delta-base-offset")
        if lacking:  # what is whole in a pack git takes for what no delta could be made of
            command.append("--no-reuse-delta")
        with (place / "asked").open("w+b") as asked:
            asked.writelines(_lines(sending, is_thin=b"no-thin" not in offered))
            asked.seek(0)
            yield from _pieces(command, asked, sideband(progress))


def _remove_abandoned(directory: Path) -> None:
    """Remove what killed pushes left."""
    for path in directory.glob(f"{_PREFIX}*"):
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < time.time() - _ABANDONED_S:
                shutil.rmtree(path, ignore_errors=True)


def _lacking(repo: Repository, ids: list[bytes]) -> list[bytes]:
    """What git has not."""
    if repo.git is None:
        return ids
    with closing(GitObjects(repo.git.objects, repo.object_format)) as have:
        return [id for id in ids if not have.holds(id)]


def _lines(sending: Sending, *, is_thin: bool) -> Iterator[bytes]:
    """What git reads: the states with whose trees deltas may begin, and each object with its path."""
    if is_thin:
        yield from (b"-%b\n" % state for state in sending.begins)
    for id in sending.ids:
        path = sending.paths.get(id, b"").rstrip(b"/")
        is_sayable = b"\n" not in path and len(path) < _LONGEST_PATH
        yield b"%b %b\n" % (to_hex(id), path if is_sayable else b"")


def _pieces(
    command: list[str], asked: IO[bytes], hear: Callable[[bytes], None] | None
) -> Iterator[bytes]:
    process = subprocess.Popen(
        command,
        stdin=asked,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=bare_environment(),
    )
    said = bytearray()
    with process:
        assert process.stdout is not None and process.stderr is not None
        listener = threading.Thread(target=_listen, args=(process.stderr, said, hear), daemon=True)
        listener.start()
        try:
            read = partial(process.stdout.read, _PIECE)
            first = read()
            if not first:
                raise _NotByGit
            yield first
            yield from iter(read, b"")
            if process.wait() != 0:
                listener.join()
                why = said.decode(errors="replace").strip().rpartition("\n")[2]
                raise StorageError(
                    f"git broke off while it made the pack: {why}", hint="git fsck; heddle fsck"
                )
        finally:
            process.kill()
            listener.join()


def _listen(stream: IO[bytes], said: bytearray, hear: Callable[[bytes], None] | None) -> None:
    """Take down what git says, and pass on how far it is."""
    for text in iter(partial(os.read, stream.fileno(), _PIECE), b""):
        said += text
        if hear is not None:
            hear(text)
