"""Cloning: a new repository of what a git server has.

Owns what a new repository begins with, and that nothing is left when it can't begin. The rest is ``fetching.py``'s.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from heddle.errors import CannotCreate, InvalidName
from heddle.git import remotes
from heddle.git.fetching import Fetched, fetch, tracked
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
    progress: Progress | None = None,
) -> tuple[Repository, Fetched]:
    """Make a repository of what a git server has, with the remote ``origin`` and the default branch checked out.

    Args:
        repo_class: the class to open it as.
        path: a new or empty directory.
        environment: as for ``heddle.open``.

    Raises:
        CannotCreate: there is something at ``path``.
        HeddleError: as ``fetch``; what was made is removed again.
    """
    path = path.absolute()
    existed = path.exists()
    if existed and (not path.is_dir() or any(path.iterdir())):
        raise CannotCreate(f"{path} is there already and not empty")
    try:
        repo = repo_class.init(path)
        repo.environment = environment
        remotes.add(repo, "origin", url)
        fetched = fetch(repo, progress=progress)
        _start(repo, fetched)
        return repo, fetched
    except BaseException:
        shutil.rmtree(path / ".heddle" if existed else path, ignore_errors=True)
        raise


def _start(repo: Repository, fetched: Fetched) -> None:
    """Put HEAD and the working directory on the thread of the server's default branch."""
    prefix = "refs/remotes/origin/"
    branches = [
        each.ref.removeprefix(prefix) for each in fetched.refs if each.ref.startswith(prefix)
    ]
    wanted = [fetched.default or "main", "main", "master", *branches]
    name = next((each for each in wanted if each in branches and _can_be_thread(each)), None)
    if name is None:
        return
    first = repo.head
    moves = [Move("thread", name, None, tracked(repo, "origin", name))]
    repo.database.move_names(moves, kind="clone", message=f"from {fetched.remote.url}", head=name)
    if first != name:
        repo.threads.delete(first)
    from heddle.repo.switch import switch

    switch(repo, name)


def _can_be_thread(name: str) -> bool:
    try:
        valid_thread_name(name)
    except InvalidName:
        return False
    return True
