"""What a fetch tells a server that is here, so that it sends no more than the rest (gitprotocol-pack(5)).

Owns the order of that and its end. A server that was told too little sends too much, which does no harm, so a few
states that say much are enough: what it had at the last fetch is behind all that it has now.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.objects.state import State
    from heddle.repo.repository import Repository

IN_VAIN = 256
"""States told one after the other without an answer, then it is enough; as many as git tells."""


class Haves:
    """States that are here, one after the other; what dulwich calls a graph walker.

    Attributes:
        shallow: commits (hex ids) that are here without their parents.
    """

    def __init__(self, repo: Repository) -> None:
        self.shallow = set(repo.shallow)
        self._repo = repo
        self.begin((), ())

    def begin(self, first: Iterable[ObjectID], heads: Iterable[ObjectID]) -> None:
        """Tell all anew.

        Args:
            first: all of these (hex ids), as far as they are states here.
            heads: then these, newest first, with what they come from.
        """
        self._first = [id for id in dict.fromkeys(first) if self._repo.is_state(id)]
        self._left = IN_VAIN
        self._seen = set(self._first)
        self._common: set[ObjectID] = set()
        self._frontier: list[tuple[int, int, State]] = []
        for id in self._first:
            self._reach(self._repo.state(id).parents)
        self._reach(heads)

    def _reach(self, ids: Iterable[ObjectID]) -> None:
        for id in ids:
            if id not in self._seen and self._repo.is_state(id):
                self._seen.add(id)
                state = self._repo.state(id)
                heapq.heappush(self._frontier, (-state.committed_s, len(self._seen), state))

    def __next__(self) -> ObjectID | None:
        """The next one; None: enough was told."""
        if self._first:
            return self._first.pop()
        while self._frontier and self._left:
            state = heapq.heappop(self._frontier)[2]
            if state.id in self._common:
                self._common.update(state.parents)
                continue
            self._left -= 1
            self._reach(state.parents)
            return state.id
        return None

    def ack(self, id: ObjectID) -> None:
        """The server has it, and so what it comes from."""
        self._left = IN_VAIN
        if self._repo.is_state(id):
            self._common |= {id, *self._repo.state(id).parents}

    def nak(self) -> None:
        """The server has said nothing of what it has."""
