"""Bringing promised objects: the blobs that a lazy clone left with its remote.

Owns which remotes are asked, in what portions, how long they are left alone after they failed, and that what comes is
what was asked for. What is promised, and that nothing is fetched twice at once, is ``objects/promised.py``'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from heddle.errors import DataError, HeddleError
from heddle.git import remotes
from heddle.git.objectinfo import sizes
from heddle.git.receiving import PORTION, bring
from heddle.git.transport import RemoteUnreachable, talk, timeout_s

if TYPE_CHECKING:
    from heddle.git.pack import Progress
    from heddle.git.remotes import Remote
    from heddle.repo.repository import Repository

_T = TypeVar("_T")

BACK_OFF_S = 2.0
"""For so long after a remote failed nobody waits for it again; a walk over a thousand files would for each."""


class Promisor:
    """Fetches from the remotes of a repository that have promised objects; safe for several threads.

    Args:
        repo: the repository; its environment says where git's credentials and ssh's keys are.

    Attributes:
        patience_s: as in ``Provider``.
    """

    def __init__(self, repo: Repository) -> None:
        self._repo = repo
        self._failures: dict[str, tuple[float, HeddleError]] = {}
        self._cannot_size: set[str] = set()
        self.patience_s = 2 * timeout_s(repo)

    def fetch(self, raw_ids: Sequence[bytes], progress: Progress | None = None) -> None:
        """Store promised objects, durably; what came before an error is kept.

        Raises:
            HeddleError: one of them could not be had; names it, the remote and what to do.
        """
        for start in range(0, len(raw_ids), PORTION):
            self._ask(raw_ids[start : start + PORTION], self._fetch_from)
            if progress is not None:
                progress(min(start + PORTION, len(raw_ids)), len(raw_ids))

    def sizes(self, raw_ids: Sequence[bytes]) -> dict[bytes, int]:
        """The lengths that a remote says; of none if it can't say any. Raises as ``fetch``."""
        return self._ask(raw_ids, self._sizes_from)

    def _ask(self, raw_ids: Sequence[bytes], ask: Callable[[Remote, Sequence[bytes]], _T]) -> _T:
        """Ask one remote after the other; the first answer counts."""
        problem: HeddleError | None = None
        for remote in remotes.remotes(self._repo):
            if not remote.promisor:
                continue
            try:
                return self._ask_one(remote, raw_ids, ask)
            except HeddleError as error:
                problem = problem or _explained(error, remote, raw_ids)
        raise problem or DataError(
            f"{_some(raw_ids)} was promised by a remote that is not known here any more",
            hint="heddle remote add NAME URL, with the address that this was cloned from",
        )

    def _ask_one(
        self, remote: Remote, raw_ids: Sequence[bytes], ask: Callable[[Remote, Sequence[bytes]], _T]
    ) -> _T:
        failed_at, error = self._failures.get(remote.name, (0.0, None))
        if error is not None and time.monotonic() < failed_at + BACK_OFF_S:
            raise error
        try:
            return ask(remote, raw_ids)
        except RemoteUnreachable as problem:
            self._failures[remote.name] = time.monotonic(), problem
            raise

    def _fetch_from(self, remote: Remote, raw_ids: Sequence[bytes]) -> None:
        bring(self._repo, remote, raw_ids)

    def _sizes_from(self, remote: Remote, raw_ids: Sequence[bytes]) -> dict[bytes, int]:
        if remote.url in self._cannot_size:
            return {}
        told = talk(
            self._repo,
            remote.url,
            lambda client, path: sizes(client, path, raw_ids, self._repo.object_format),
        )
        if told is None:
            self._cannot_size.add(remote.url)
        return told or {}


def _explained(error: HeddleError, remote: Remote, raw_ids: Sequence[bytes]) -> HeddleError:
    """The same error, saying what it keeps from being read and what to do."""
    hint = f"heddle prefetch, when {remote.name} answers again"
    if "not our ref" in error.message:
        hint = "on the server: git config uploadpack.allowAnySHA1InWant true"
    elif not isinstance(error, RemoteUnreachable):
        hint = error.hint or hint
    message = f"{_some(raw_ids)}, promised by {remote.name}, can't be had: {error.message}"
    return type(error)(message, hint=hint)


def _some(raw_ids: Sequence[bytes]) -> str:
    more = f" and {len(raw_ids) - 1} more" if len(raw_ids) > 1 else ""
    return f"object {raw_ids[0].hex()}{more}"
