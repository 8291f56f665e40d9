"""What git will ask of a mount first, put together by the command that makes the mount, while the session starts.

Owns when that is done, and how the session is told: of a tree that is not large behind the request, by the same pipe,
the length first (8 bytes, big-endian); of a large one by what is kept of it. The command has nothing else to do then,
and the session's interpreter would have to be shared with whoever uses the mount already. It is a process of its own,
since it may not be over when the mount answers; whatever becomes of it, a session that is told nothing in time finds
out by itself.
"""

from __future__ import annotations

import marshal
import os
import select
import stat
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from heddle.objects.workers import processes
from heddle.repo import gitstage, keptindex
from heddle.repo.gitindex import Listed
from heddle.repo.keptindex import Kept
from heddle.repo.linked import PUT_ASIDE
from heddle.repo.locks import directory_locked
from heddle.repo.names import overlay_dir

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.repo.gitlink import GitDir
    from heddle.repo.repository import Repository

TOLD = 10_000
"""So many files are listed in 100 ms, and what is said of them is kept by each session until git is used."""
_LISTED = 100_000
"""As many in a second."""
_LOOKED_AT = 1000
"""Names; 25 us each."""
_LOOK_S = 0.1
"""No longer on a machine that has much else to do."""
_LENGTH = 8


class Foretold(NamedTuple):
    """What a mount shows of a state's tree.

    Attributes:
        name: of the listing, as ``CapturedListing.name_of``.
        kept: what the session knows of it from now on, and perhaps the next ones.
        sizes: of its files, in bytes.
    """

    name: str
    kept: Kept
    sizes: Mapping[ObjectID, int]


def count_files(git: GitDir) -> int | None:
    """How many files the main checkout's index has, with which a listing begins; None: there is none."""
    try:
        with (git.common / "index").open("rb") as index:
            count: int = gitstage.HEADER.unpack(index.read(gitstage.HEADER.size))[2]
    except (OSError, struct.error):
        return None
    return count


def look_around(mountpoint: Path) -> None:
    """Have the kernel know the names in a mount that has few.

    Git looks at each, and waits for the session each time; where there are many, it asks what changed (``gitview``).
    At ``.git`` nobody looks: the kernel would know it still when the session has died, and ``git worktree prune`` go by
    that.

    Args:
        mountpoint: of a mount that another process serves.
    """
    left = _LOOKED_AT
    until_s = time.monotonic() + _LOOK_S
    directories = [os.fspath(mountpoint)]
    with suppress(OSError, KeyboardInterrupt):  # the mount is made, whatever becomes of this
        while directories and time.monotonic() < until_s:
            with os.scandir(directories.pop()) as names:
                for each in names:
                    if each.name == ".git":
                        continue
                    status = each.stat(follow_symlinks=False)
                    if stat.S_ISDIR(status.st_mode):
                        directories.append(each.path)
                    left -= 1
                    if left < 0:
                        return


class Ahead(NamedTuple):
    """What a command does ahead for a mount that it makes. Made by `for_mount`.

    Attributes:
        tell: tells the session of its tree, to be run in a process forked off this one; None: nothing does.
        look: `look_around` when the mount answers.
    """

    tell: Callable[[IO[bytes]], None] | None = None
    look: bool = False


def for_mount(repo: Repository, thread: str | None, state: ObjectID | None) -> Ahead:
    """What pays for a mount: nothing where there is no git, or a lazy clone would have to fetch.

    Args:
        repo: the repository; its database is not used by what is returned.
        thread: None for a read-only mount.
        state: what will be mounted.
    """
    if repo.git is None or state is None or repo.store.is_partial:
        return Ahead()
    files = count_files(repo.git)
    tell = None
    had_git = thread is not None and (overlay_dir(repo, thread) / PUT_ASIDE).exists()
    if _may_fork() and not had_git and (files is None or files <= _LISTED):
        is_large = files is None or files > TOLD
        tell = _teller(repo, repo.git, state, is_large)
    return Ahead(tell, files is not None and files <= _LOOKED_AT)


def _may_fork() -> bool:
    """Whether there is a processor for it, and no thread of ours, also none that Python does not know (proc(5))."""
    return processes(2) > 1 and len(os.listdir("/proc/self/task")) == 1


def _teller(
    repo: Repository, git: GitDir, state: ObjectID, is_large: bool
) -> Callable[[IO[bytes]], None]:
    found = repo.state(state)
    kept = repo.heddle_dir / keptindex.DIRECTORY

    def tell(session: IO[bytes]) -> None:
        from heddle.mount.captured import CapturedListing
        from heddle.mount.lower import Lower

        store = repo.forked().store
        lower = Lower(store, object_format=repo.object_format)
        shown = found.time_s * 1_000_000_000, os.geteuid(), os.getegid()
        listing = CapturedListing(lower, *shown, index=git.common / "index")
        name = listing.name_of(found.tree)
        with ExitStack() as held:
            if is_large:  # many mounts of one state may begin at once: one lists it
                kept.mkdir(mode=0o700, exist_ok=True)
                held.enter_context(directory_locked(kept, wait=False))
            if (kept / name).exists():
                return
            listed = listing.of_tree(found.tree)
            if listing.knew_all and listed.length > TOLD:
                keptindex.save(kept, name, Kept(listed, listing.counts))
        if listing.knew_all and listed.length <= TOLD:
            said = marshal.dumps((name, tuple(listed), listing.counts, listing.sizes))
            session.write(len(said).to_bytes(_LENGTH, "big") + said)

    return tell


class Command:
    """The command that makes a mount, as the session hears it.

    Args:
        fd: to be read; closed when it was heard.
        heard: what was read of it already.
    """

    def __init__(self, fd: int, heard: bytes = b"") -> None:
        self._fd = fd
        self._heard = bytearray(heard)

    def hear(self, until_s: float) -> Foretold | None:
        """Wait for what it tells.

        Args:
            until_s: no longer than to this time of ``time.monotonic``, in seconds; others may have the other end.

        Returns:
            None: nothing, not all of it, or where it is kept (``keptindex``).
        """
        try:
            while len(self._heard) < self._length() and self._reads_more(until_s):
                pass
            said = self._heard[_LENGTH : self._length()]
            name, listed, counts, sizes = marshal.loads(said)
        except (OSError, EOFError, ValueError, TypeError):
            return None
        finally:
            self.close()
        return Foretold(name, Kept(Listed(*listed), counts), sizes)

    def close(self) -> None:
        """Not listen."""
        os.close(self._fd)

    def _length(self) -> int:
        """How much it tells, as far as that is known."""
        if len(self._heard) < _LENGTH:
            return _LENGTH
        return _LENGTH + int.from_bytes(self._heard[:_LENGTH], "big")

    def _reads_more(self, until_s: float) -> bool:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        if not poll.poll(max(0.0, until_s - time.monotonic()) * 1000):
            return False
        more = os.read(self._fd, 1 << 20)
        self._heard += more
        return bool(more)
