"""Named fault points: the places between two durable steps where a crash test may kill the process.

``reach(name)`` costs one global read in production. With ``HEDDLE_FAULT=<name>`` in the environment the process
kills itself with SIGKILL on reaching that point (``<name>@3``: at the third time), which is what ``kill -9`` at
the worst moment looks like. Names are ``<module>.<step>`` and are listed by ``tests/faults``.
"""

from __future__ import annotations

import os
import signal

_wanted, _, _count = os.environ.get("HEDDLE_FAULT", "").partition("@")
_left = int(_count) if _count.isdigit() else 1


def reach(name: str) -> None:
    """Mark a point between two durable steps; dies here when a test asked for it.

    Args:
        name: the point's stable name, ``<module>.<step>``.
    """
    global _left
    if name != _wanted:
        return
    _left -= 1
    if _left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
