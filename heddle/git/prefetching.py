"""Fetching ahead: all files of a state that a lazy clone has left with its remote, or those at some paths.

Owns which files those are, in what portions they come so that an interruption keeps what came, and that one file which
the remote has lost does not keep the others away. How they come is ``promisor.py``'s.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from heddle.errors import HeddleError, Unavailable
from heddle.git.pack import blobs_below

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.git.pack import Progress
    from heddle.repo.repository import Repository

_PORTION = 256


@dataclass(frozen=True, slots=True)
class Prefetched:
    """What a prefetch did.

    Attributes:
        state: whose files.
        objects: how many came.
        size_bytes: the length of their contents.
        already: how many were here.
        missing: how many the remote could not deliver.
        duration_ms: how long it took.
    """

    state: ObjectID
    objects: int
    size_bytes: int
    already: int
    missing: int
    duration_ms: float


def prefetch(
    repo: Repository,
    spec: str = "HEAD",
    paths: Sequence[bytes] = (),
    *,
    progress: Progress | None = None,
) -> Prefetched:
    """Have the files of a state here; what came before an error or an interruption is kept.

    Args:
        spec: a state.
        paths: only what lies at or below these paths of it.
        progress: called with files here and files in all.

    Raises:
        StateNotFound, AmbiguousSpec, PathNotFound: about the arguments.
        RemoteUnreachable, NotPermitted: the remote does not answer, or does not let us in.
    """
    started = time.perf_counter()
    state = repo.resolve(spec)
    tops = [repo.lookup_path(state, path)[1] for path in paths or (b"",)]
    blobs = blobs_below(repo.store, tops)
    wanted = repo.store.absent(blobs)
    already, size_bytes, missing = len(blobs) - len(wanted), 0, 0
    for start in range(0, len(wanted), _PORTION):
        portion = wanted[start : start + _PORTION]
        missing += _fetch(repo, portion)
        size_bytes += sum(repo.store.size(id) for id in portion if repo.store.contains(id))
        if progress is not None:
            progress(already + start + len(portion), len(blobs))
    duration_ms = (time.perf_counter() - started) * 1000
    return Prefetched(
        state, len(wanted) - missing, size_bytes, already, missing, round(duration_ms, 3)
    )


def _fetch(repo: Repository, raw_ids: list[bytes]) -> int:
    """Fetch some objects, and if that fails parts of them, down to those that can't be had; returns how many."""
    try:
        repo.store.fetch(raw_ids)
        return 0
    except Unavailable:
        raise
    except HeddleError:
        if len(raw_ids) == 1:
            return 1
    half = len(raw_ids) // 2
    return _fetch(repo, raw_ids[:half]) + _fetch(repo, raw_ids[half:])
