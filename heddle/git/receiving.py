"""Packs on their way in from a server: where one lies while it comes, and what of it outlives an interruption.

Owns that a fetch which broke off need not begin again. Git's protocol has no way to go on in the middle of a pack, but
two that together do: to leave the blobs out, and to ask for single ones. So the blobs that came are kept, since
nothing has to be there for a blob to be whole, and the next attempt asks for commits and trees, and then for the blobs
that are still missing, portion by portion. A server that can't do that sends everything again. When a name may move is
``fetching.py``'s.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, TYPE_CHECKING, cast

from heddle import faults
from heddle.git.transport import RemoteFailed, RemoteUnreachable, talk, talking_to
from heddle.objects.gitformat import to_hex
from heddle.objects.incoming import take_blobs, take_pack
from heddle.objects.output import SYNC_EVERY

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.git.pack import Progress
    from heddle.git.remotes import Remote
    from heddle.repo.repository import Repository

Place = tuple[IO[bytes], Path]
"""A file for a pack, and where it is."""
PORTION = 2_000
"""Objects asked for at once: what came is kept, so an interruption costs no more than this."""
_NO_REFS = (b"refs/heddle/none/",)
_SPOOL_BYTES = 16 << 20
_PREFIX = "incoming-"
_NOTE = b"goes on\n"
"""In place of a pack whose blobs were kept."""


def max_object_bytes(repo: Repository) -> int | None:
    """The longest object that is taken from a server, ``fetch.max_object_size``; None: any."""
    return int(repo.config.number("fetch.max_object_size", "0")) or None


class Incoming:
    """The pack of a fetch as it comes.

    Args:
        outliving: the file that outlives an interruption; None: what comes is not worth it.
        scratch: makes one that does not.

    Attributes:
        file: empty at first.
        path: where that is.
        goes_on: whether blobs of an attempt that broke off are here, so that the others can be asked for.
    """

    def __init__(
        self,
        repo: Repository,
        remote: Remote,
        outliving: Place | None,
        scratch: Callable[[], Place],
    ) -> None:
        self.file, self.path = outliving or scratch()
        self.goes_on = False
        self._repo = repo
        self._remote = remote
        self._outliving = outliving
        self._scratch = scratch
        self._asked: Sequence[bytes] = ()
        self._unsynced = 0

    def write(self, data: bytes) -> int:
        """Put more of the pack at the end; returns how many bytes."""
        left = memoryview(data)
        while left:
            left = left[self.file.write(left) :]
        self._unsynced += len(data)
        if self._unsynced >= SYNC_EVERY and self._repo.git is None:  # where it may be kept as it is
            os.fdatasync(self.file.fileno())
            self._unsynced = 0
        return len(data)

    def resume(self) -> None:
        """Take up what an earlier attempt left in the file."""
        if self.file.read(len(_NOTE)) == _NOTE:
            self.goes_on = True
        elif self.file.tell():
            self.keep_blobs()

    def begin(self) -> None:
        """Empty the file for another attempt; one that goes on leaves a note in its place, also if it is killed."""
        self._asked = ()
        if self.goes_on and self._is_outliving():
            self._empty()
            self.write(_NOTE)
            self.file, self.path = self._scratch()
        self._empty()

    def _is_outliving(self) -> bool:
        return self._outliving is not None and self.file is self._outliving[0]

    def _empty(self) -> None:
        self.file.seek(0)
        self.file.truncate()

    def bring(self, raw_ids: Sequence[bytes], progress: Progress | None = None) -> None:
        """Ask for blobs that were left out; raises as `bring`."""
        self._asked = raw_ids
        bring(self._repo, self._remote, raw_ids, progress)

    def keep_blobs(self) -> bool:
        """Store the blobs that came, durably; whether this attempt brought any that were not here before."""
        if self._outliving is None:
            return False
        found = _keep_blobs(self._repo, self.file)
        if found or any(map(self._repo.store.contains, self._asked)):
            self.goes_on = True
            return True
        return False

    def give_up(self) -> None:
        """The server can't be asked for single blobs: everything is to come in one piece."""
        if self._is_outliving():
            self.file, self.path = self._scratch()
        self.goes_on, self._outliving = False, None


@contextmanager
def incoming(repo: Repository, remote: Remote) -> Iterator[Incoming]:
    """A place for the pack of a fetch; where an earlier one from there broke off, its blobs are taken first.

    What comes without blobs, or beside another fetch, is not worth keeping when it breaks off.
    """
    path = place(repo, remote)
    _remove_dead(path)
    fd = -1 if remote.promisor else _locked(path)
    with ExitStack() as stack:
        scratch = partial(_scratch, path, stack)
        if fd < 0:
            yield Incoming(repo, remote, None, scratch)
            return
        # Without a buffer: closing it would write, to a full disk perhaps.
        with os.fdopen(fd, "r+b", buffering=0) as file:
            pack = Incoming(repo, remote, (file, path), scratch)
            is_wanted = False
            try:
                pack.resume()
                yield pack
            except KeyboardInterrupt:
                is_wanted = True  # what came is looked at the next time
                raise
            except (RemoteFailed, RemoteUnreachable):
                is_wanted = pack.goes_on
                raise
            finally:
                if not is_wanted:
                    _remove_own(path, fd)


def _scratch(path: Path, stack: ExitStack) -> Place:
    """A file beside a place, which goes with the stack unless it was renamed."""
    while True:
        mine = path.with_name(f"{path.name}-{os.urandom(8).hex()}")
        if (fd := _locked(mine)) >= 0:  # else somebody takes it for a dead one's
            break
    file = stack.enter_context(os.fdopen(fd, "r+b", buffering=0))
    stack.callback(_remove_own, mine, fd)
    return file, mine


def _remove_own(path: Path, fd: int) -> None:
    """Remove a file that we have locked, unless it was renamed and the name is another's now."""
    if _is_at(path, fd):
        path.unlink()


def _remove_dead(path: Path) -> None:
    """Remove the files beside a place that killed fetches left."""
    for each in path.parent.glob(f"{path.name}-*"):
        if (fd := _locked(each)) >= 0:
            each.unlink()
            os.close(fd)


def _is_at(path: Path, fd: int) -> bool:
    """Whether a file that we have open still has its name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False


def forget_old(repo: Repository, before_ns: int) -> None:
    """Remove what fetches left that broke off before then, in ns since the epoch, and were not tried again."""
    for path in (repo.heddle_dir / "objects").glob(f"{_PREFIX}*"):
        with suppress(FileNotFoundError):
            if path.stat().st_mtime_ns < before_ns and (fd := _locked(path)) >= 0:
                path.unlink()
                os.close(fd)


def place(repo: Repository, remote: Remote) -> Path:
    """Where the pack of a fetch from a remote lies while it comes."""
    name = hashlib.sha256(remote.url.encode(errors="surrogateescape")).hexdigest()[:16]
    return repo.heddle_dir / "objects" / f"{_PREFIX}{name}"


def _locked(path: Path) -> int:
    """A descriptor of a file that nobody else has; -1 while somebody has it."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return -1
        if _is_at(path, fd):
            return fd
        os.close(fd)  # who had it has just removed or renamed it


@contextmanager
def spooled(repo: Repository) -> Iterator[IO[bytes]]:
    """A file for a pack of unknown length, on the repository's disk when it is long."""
    place = str(repo.heddle_dir / "objects")
    with SpooledTemporaryFile(max_size=_SPOOL_BYTES, dir=place, prefix=f".tmp-{_PREFIX}") as file:
        yield cast("IO[bytes]", file)


def bring(
    repo: Repository, remote: Remote, raw_ids: Sequence[bytes], progress: Progress | None = None
) -> None:
    """Ask a remote for single objects and store them, durably; what came before an error is kept.

    Args:
        raw_ids: binary ids, of blobs.
        progress: called with objects here and objects in all.

    Raises:
        HeddleError: as ``talk``; RemoteFailed where it sends others than those.
    """
    for start in range(0, len(raw_ids), PORTION):
        portion = raw_ids[start : start + PORTION]
        _bring(repo, remote, portion)
        if progress is not None:
            progress(start + len(portion), len(raw_ids))


def _keep_blobs(repo: Repository, file: IO[bytes]) -> int:
    """Store the blobs of a pack that broke off, durably; returns how many are new here."""
    with repo.store.writer() as writer:
        found = take_blobs(file, repo.store, writer, max_bytes=max_object_bytes(repo))
        if found:
            faults.reach("receiving.before-blobs")
            writer.commit()
    return found


def _bring(repo: Repository, remote: Remote, raw_ids: Sequence[bytes]) -> None:
    store, wants = repo.store, [to_hex(each) for each in raw_ids]
    with spooled(repo) as pack:
        try:
            talk(
                repo,
                remote.url,
                lambda client, path: client.fetch_pack(
                    path,
                    lambda refs, depth=None: wants,
                    _Nothing(),
                    pack.write,
                    ref_prefix=_NO_REFS,
                ),
            )
        except (RemoteFailed, RemoteUnreachable):
            _keep_blobs(repo, pack)
            raise
        with talking_to(remote.url), store.writer() as writer:
            limit, got = max_object_bytes(repo), set[bytes]()
            if pack.tell():
                got.update(take_pack(pack, store, writer, max_bytes=limit, thin=False))
            if not got.issuperset(raw_ids):
                raise RemoteFailed(f"{remote.name} sent other objects than those asked for")
            faults.reach("receiving.before-pack")
            writer.commit()


class _Nothing:
    """Tells a server that nothing is here: single blobs have no history to be found in common."""

    shallow: frozenset[ObjectID] = frozenset()

    def __next__(self) -> None:
        return None

    def ack(self, id: ObjectID) -> None:
        """Hear of something in common."""

    def nak(self) -> None:
        """Hear of nothing in common."""
