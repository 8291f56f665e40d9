"""Heddle: version control for many agents on one repository; every thread is a mounted directory.

The package's face: ``heddle.open``, ``heddle.init``, ``heddle.Repository`` and ``heddle.mounted``, which do all that
the commands do. They live in ``heddle.api`` and are loaded when first used, so that importing the package costs
nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as type checkers know it; typing itself would cost every supervisor 1 MB

if TYPE_CHECKING:
    from heddle.api import Repository, init, mounted, open

__version__ = "0.1.0"
__all__ = ["Repository", "__version__", "init", "mounted", "open"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'heddle' has no attribute {name!r}")
    from heddle import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted(__all__)
