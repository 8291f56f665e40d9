"""The mount core, without a kernel, against a plain directory at random."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from mount.model import MountModel, run_model

NOBODY = 65534


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Be nobody in particular, as far as files are concerned; root's own settings come back afterwards."""
    import resource  # noqa: F401  # what a session loads as it begins, and nobody may not read here

    if os.geteuid() != 0:
        yield
        return
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def test_core_behaves_as_a_plain_directory() -> None:
    """Whatever is done to a mount, it is as a plain directory would be, over captures and remounts."""
    run_model(MountModel)


def test_core_behaves_as_a_plain_directory_for_an_ordinary_user() -> None:
    """The same holds for a session without privileges, which has to keep its own access to every file."""
    with ordinary_user():
        run_model(MountModel)
