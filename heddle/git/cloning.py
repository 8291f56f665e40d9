"""Cloning: a new repository of what a git server has.

Owns what a new repository begins with, and that nothing is left when it can't begin. The rest is ``fetching.py``'s.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from heddle import atomic, faults
from heddle.errors import Busy, CannotCreate, InvalidName
from heddle.git import remotes
from heddle.git.fetching import Fetched, fetch, tracked
from heddle.git.transport import OtherIds
from heddle.repo.database import Move
from heddle.repo.names import valid_thread_name

if TYPE_CHECKING:
    from heddle.git.pack import Progress
    from heddle.repo.repository import Repository


def clone(
    repo_class: type[Repository],
    url: str,
    path: Path,
    *,
    environment: Mapping[str, str],
    lazy: bool = False,
    progress: Progress | None = None,
) -> tuple[Repository, Fetched]:
    """Make a repository of what a git server has, with the remote ``origin`` and the default branch checked out.

    A lazy one has commits and trees; blobs come when they are read, and the working directory stays empty until
    ``switch`` fills it. A clone that was killed goes on when it is run again, the same way.

    Args:
        repo_class: the class to open it as.
        path: a new or empty directory.
        environment: as for ``heddle.open``.
        lazy: leave the blobs with the server until they are needed.

    Raises:
        CannotCreate: there is something at ``path``.
        Busy: another clone is going on there.
        HeddleError: as ``fetch``; what was made is removed again, unless a clone went on that had been killed.
    """
    path = path.absolute()
    try:
        existed = path.exists()
        place = _Place(path, url, lazy=lazy)
    except OSError as error:
        raise CannotCreate(f"can't make {path}: {error.strerror}") from error
    with place:
        try:
            repo = _made(repo_class, path, url, environment, lazy=lazy)
            faults.reach("cloning.before-fetch")
            try:
                fetched = fetch(repo, progress=progress)
            except OtherIds as other:  # the server says so, and nothing is here yet
                repo.close()
                _clear(place.note.parent, but=place.note)
                repo = _made(
                    repo_class, path, url, environment, lazy=lazy, object_format=other.found
                )
                fetched = fetch(repo, progress=progress)
            faults.reach("cloning.fetched")
            _start(repo, fetched, check_out=not lazy)
            place.note.unlink()
            return repo, fetched
        except BaseException:
            if place.is_new:
                shutil.rmtree(path / ".heddle" if existed else path, ignore_errors=True)
            raise


class _Place:
    """A directory that is being made a clone, by nobody else; a context manager.

    Attributes:
        note: says so, from where and how; held by flock(2) as long as the clone is under way.
        is_new: whether it began here; otherwise a clone that was killed goes on.

    Raises:
        CannotCreate: there is something else at ``path``.
        Busy: another clone is going on there.
        OSError: it can't be made.
    """

    def __init__(self, path: Path, url: str, *, lazy: bool) -> None:
        self.note = path / ".heddle" / "cloning"
        said = f"{url}\n{'lazy' if lazy else 'whole'}\n".encode(errors="surrogateescape")
        if not self.note.is_file() and not _is_empty(path):
            raise CannotCreate(f"{path} is there already and not empty")
        self.note.parent.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.note, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self.is_new = self._begin(path, said)
        except BaseException:
            os.close(self._lock)
            raise

    def _begin(self, path: Path, said: bytes) -> bool:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"another heddle clone is going on in {path}") from None
        found = os.pread(self._lock, len(said) + 1, 0)
        is_there = os.fstat(self._lock).st_nlink > 0  # else its clone has just ended
        if is_there and found == said:
            return False
        if is_there and found:
            raise CannotCreate(
                f"in {path} a clone was killed that was begun in another way",
                hint="run it in the same way, or remove the directory",
            )
        if found or not _is_empty(path):
            if not found:
                self.note.unlink(missing_ok=True)
            raise CannotCreate(f"{path} is there already and not empty")
        atomic.write_all(self._lock, said, 0)
        os.fsync(self._lock)
        return True

    def __enter__(self) -> _Place:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._lock)


def _made(
    repo_class: type[Repository],
    path: Path,
    url: str,
    environment: Mapping[str, str],
    *,
    lazy: bool,
    object_format: str | None = None,
) -> Repository:
    """The repository, with its remote; one that is there already goes on."""
    repo = repo_class.init(path, object_format=object_format)
    repo.environment = environment
    if not any(each.is_own for each in remotes.remotes(repo)):
        remotes.add(repo, "origin", url, lazy=lazy)
    return repo


def _clear(directory: Path, *, but: Path) -> None:
    """Empty a directory that was a repository; without its database, which goes first, it is none any more."""
    for each in sorted(directory.iterdir(), key=lambda path: not path.name.startswith("heddle.db")):
        if each.is_dir():
            shutil.rmtree(each)
        elif each != but:
            each.unlink()


def _is_empty(path: Path) -> bool:
    """Whether there is nothing at a path, or a directory with nothing in it but a note."""
    if not os.path.lexists(path):
        return True
    if not path.is_dir() or {each.name for each in path.iterdir()} - {".heddle"}:
        return False
    inside = path / ".heddle"
    return not inside.exists() or {each.name for each in inside.iterdir()} <= {"cloning"}


def _start(repo: Repository, fetched: Fetched, *, check_out: bool) -> None:
    """Put HEAD, and the working directory if asked, on the thread of the server's default branch."""
    prefix = "refs/remotes/origin/"
    refs = (ref.decode(errors="surrogateescape") for ref in repo.database.refs())
    branches = [ref.removeprefix(prefix) for ref in refs if ref.startswith(prefix)]
    name = _first_thread(fetched.default, branches)
    if name is None:
        return
    row = repo.database.thread(name)
    if name not in branches:
        if row is None:
            repo.threads.create(name, on_head=True)
    elif row is None or row.state is None:
        moves = [Move("thread", name, None, tracked(repo, "origin", name))]
        message = f"from {fetched.remote.url}"
        repo.database.move_names(moves, kind="clone", message=message, head=name)
    faults.reach("cloning.named")
    for each in list(repo.threads):
        if each.state is None and each.name != name:
            repo.threads.delete(each.name)
    if check_out:
        from heddle.repo.switch import switch

        switch(repo, name)


def _first_thread(default: str | None, branches: Sequence[str]) -> str | None:
    """The thread to begin on: the server's default branch, also if it has no commit yet; None: there is none."""
    if default is not None and default not in branches and _can_be_thread(default):
        return default
    wanted = [default or "main", "main", "master", *branches]
    return next((each for each in wanted if each in branches and _can_be_thread(each)), None)


def _can_be_thread(name: str) -> bool:
    try:
        valid_thread_name(name)
    except InvalidName:
        return False
    return True
