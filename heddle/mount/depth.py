"""Walks as deep as the tree they walk: a directory may lie thousands of levels down, where no path reaches."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_LEVELS = 1_000_000  # calls; memory ends sooner


@contextmanager
def any_depth() -> Iterator[None]:
    """Lift Python's limit on calls within calls while the block runs.

    For functions that call each other directly: since Python 3.11 that takes no C stack, which the limit is there
    to protect.
    """
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, _LEVELS))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)
