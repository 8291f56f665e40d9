"""Opening a pack of ``packs/``, whichever of the two kinds it is: one of our own, or one that git sent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from heddle.objects.layout import GIT_PACK_MAGIC
from heddle.objects.packfile import PackFile

if TYPE_CHECKING:
    from heddle.objects.index import Index


def open_pack(path: Path, id_length: int, index: Index | None = None) -> PackFile:
    """Open a pack; raises as ``PackFile``.

    Args:
        index: of the pack; where it can't say which of the two it is, the pack's first bytes do.
    """
    is_of_git = None if index is None else index.is_of_git()
    if is_of_git is None:
        is_of_git = PackFile(path, id_length).begin(len(GIT_PACK_MAGIC)) == GIT_PACK_MAGIC
    if not is_of_git:
        return PackFile(path, id_length)
    from heddle.objects.keptpack import KeptPack

    return KeptPack(path, id_length)
