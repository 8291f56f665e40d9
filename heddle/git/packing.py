"""The pack of a push: with deltas, as stock git makes it (git-pack-objects(1)), since a line is slower than a disk.

Owns what is sent, and what git is told: where it has all, two sets of ids; else which objects, at which paths they
were found, and what the other side can build on, with those that it has not in a pack of their own, for the time.
Where git is missing or fails, and for a few objects that git has not, the pack is `pack.pack_pieces`'s, without deltas.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence, Set
from contextlib import closing, contextmanager, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING, NamedTuple

from heddle.errors import ObjectMissing, StorageError
from heddle.git.pack import missing_with_paths, objects_below, pack_pieces, peeled, write_pack
from heddle.git.transport import sideband
from heddle.objects.askgit import bare_environment, make_bare
from heddle.objects.gitdir import GitObjects
from heddle.objects.gitformat import to_hex, to_raw
from heddle.repo import log
from heddle.repo.locks import directory_locked

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.git.pack import Progress
    from heddle.repo.repository import Repository

_PREFIX = ".tmp-outgoing-"
_BEING_MADE_S = 60
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
    repo: Repository,
    there: Collection[bytes],
    wanted: Sequence[bytes],
    offered: Set[bytes],
    progress: Progress | None = None,
) -> Iterator[bytes]:
    """A pack of what a server lacks, in pieces; what takes time before the first one is done on return.

    Args:
        there: what its refs are at, as hex ids; what is not here is passed over.
        wanted: what it is to have, with all below it, as hex ids.
        offered: what the server can (gitprotocol-capabilities(5)).
        progress: called with numbers of objects, done and in all, several times over.

    Raises:
        ObjectMissing, CorruptObject: an object can't be read.
        StorageError: git broke off in the middle.
    """
    with suppress(_NotByGit, OSError):
        return _begun(_of_git(repo, there, wanted, offered, progress))
    sending = to_send(repo, there, wanted)
    with suppress(_NotByGit, OSError, StorageError):
        return _begun(_of_both(repo, sending, offered, progress))
    return pack_pieces(repo.store, sending.ids, progress)


def _begun(pieces: Iterator[bytes]) -> Iterator[bytes]:
    return chain((next(pieces),), pieces)


def to_send(repo: Repository, there: Iterable[bytes], wanted: Sequence[bytes]) -> Sending:
    """What a server lacks of some objects (hex ids) and all below them; of a lazy clone, brought here.

    Args:
        there: what its refs are at; what is not here is passed over.

    Raises:
        ObjectMissing: something is not here.
    """
    store = repo.store
    known = {id for id in there if id in store}
    new, begins = log.beyond(repo, _states(repo, known), _states(repo, wanted))
    known |= begins
    has = {to_raw(id, store.id_length) for id in known}
    if new:
        has.update(objects_below(store, {repo.state(id).tree for id in begins}))
    ids, paths = missing_with_paths(store, wanted, has.__contains__, repo.shallow)
    store.fetch(ids)  # in one request
    return Sending(ids, paths, begins)


def _states(repo: Repository, ids: Iterable[bytes]) -> set[ObjectID]:
    """What ids lead to, through annotated tags, where that is a state that is here."""
    found = set()
    for id in ids:
        with suppress(ObjectMissing):
            found.add(peeled(repo.store, id))
    return {id for id in found if repo.is_state(id)}  # type: ignore[misc, arg-type]


def _of_git(
    repo: Repository,
    there: Iterable[bytes],
    wanted: Sequence[bytes],
    offered: Set[bytes],
    progress: Progress | None,
) -> Iterator[bytes]:
    """Where git has what is wanted, it has all below, unless it is a partial clone, and finds out what that is."""
    if repo.git is None:
        raise _NotByGit
    with closing(GitObjects(repo.git.objects, repo.object_format)) as have:
        held = {id for id in (*wanted, *there) if have.holds(to_raw(id, repo.store.id_length))}
        if have.is_partial or not held.issuperset(wanted):
            raise _NotByGit
    with _place(repo) as place:
        if repo.shallow:
            (place / "shallow").write_bytes(b"\n".join(repo.shallow) + b"\n")
        options = ["--revs", *([] if b"no-thin" in offered else ["--thin"])]
        lines = [*wanted, *(b"^" + id for id in held.intersection(there))]
        yield from _pieces(place, options, offered, lines, progress)


def _of_both(
    repo: Repository, sending: Sending, offered: Set[bytes], progress: Progress | None
) -> Iterator[bytes]:
    """Git is told of each object, and has those that it has not beside its own."""
    lacking = _lacking(repo, sending.ids)
    if lacking and len(sending.ids) < _FEW:
        raise _NotByGit
    with _place(repo) as place:
        write_pack(repo.store, lacking, place / "objects", progress=progress)
        # What is whole in a pack git takes for what no delta could be made of.
        options = ["--no-reuse-delta"] if lacking else []
        lines = _lines(sending, is_thin=b"no-thin" not in offered)
        yield from _pieces(place, options, offered, lines, progress)


@contextmanager
def _place(repo: Repository) -> Iterator[Path]:
    """A repository for git to work in, for the block, that reads the one we are on."""
    remove_abandoned(repo)
    with TemporaryDirectory(prefix=_PREFIX, dir=repo.heddle_dir / "objects") as directory:
        place = Path(directory)
        with directory_locked(place):
            make_bare(place, repo.store.id_length, None if repo.git is None else repo.git.objects)
            yield place


def remove_abandoned(repo: Repository) -> None:
    """Remove what killed pushes left: what nobody holds, and is not only just being made."""
    for path in (repo.heddle_dir / "objects").glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if path.stat().st_mtime < time.time() - _BEING_MADE_S:
                with directory_locked(path, wait=False):
                    shutil.rmtree(path, ignore_errors=True)


def _lacking(repo: Repository, ids: list[bytes]) -> list[bytes]:
    """What git has not."""
    if repo.git is None:
        return ids
    with closing(GitObjects(repo.git.objects, repo.object_format)) as have:
        return [id for id in ids if not have.holds(id)]


def _lines(sending: Sending, *, is_thin: bool) -> Iterator[bytes]:
    """The states with whose trees deltas may begin, and each object with its path."""
    if is_thin:
        yield from (b"-" + state for state in sending.begins)
    for id in sending.ids:
        path = sending.paths.get(id, b"").rstrip(b"/")
        is_sayable = b"\n" not in path and len(path) < _LONGEST_PATH
        yield b"%b %b" % (to_hex(id), path if is_sayable else b"")


def _pieces(
    place: Path,
    options: list[str],
    offered: Set[bytes],
    lines: Iterable[bytes],
    progress: Progress | None,
) -> Iterator[bytes]:
    """The pieces of git's pack; raises _NotByGit before the first where there is none."""
    command = ["git", f"--git-dir={place}", "-c", _LARGE, "-c", _WINDOW, "pack-objects"]
    command += ["--stdout", "--all-progress", *options]
    if b"ofs-delta" in offered:
        command.append("--delta-base-offset")
    with (place / "asked").open("w+b") as asked:
        asked.writelines(line + b"\n" for line in lines)
        asked.seek(0)
        process = subprocess.Popen(
            command,
            stdin=asked,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=bare_environment(),
        )
    with process:
        assert process.stdout is not None and process.stderr is not None
        said = bytearray()
        told = (process.stderr, said, sideband(progress))
        listener = threading.Thread(target=_listen, args=told, daemon=True)
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
                why = said.decode(errors="replace").split("\r")[-1].strip().rpartition("\n")[2]
                message = f"git broke off while it made the pack: {why}"
                raise StorageError(message, hint="git fsck; heddle fsck")
        finally:
            process.kill()
            listener.join()


def _listen(stream: IO[bytes], said: bytearray, hear: Callable[[bytes], None] | None) -> None:
    """Take down what git says, and pass on how far it is."""
    for text in iter(partial(os.read, stream.fileno(), _PIECE), b""):
        said += text
        if hear is not None:
            hear(text)
