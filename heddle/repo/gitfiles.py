"""Git's refs in files, as dulwich reads them, but that what is no ref is damage.

Owns the difference between a ref that is not there and one that can't be read: a file that a crash has emptied would
else be a branch that is not born, or the older value of the same ref in ``packed-refs``.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from dulwich.objects import ObjectID
from dulwich.refs import SYMREF, DiskRefsContainer, Ref, is_per_worktree_ref

from heddle.errors import StorageError

_HEX_DIGITS = b"0123456789abcdef"
_PART = rb"[A-Za-z0-9_+=-]+(?:\.(?!lock(?:/|\Z))[A-Za-z0-9_+=-]+)*"
_PLAIN = re.compile(rb"refs(?:/%b)+" % _PART)
"""Names that git-check-ref-format(1) takes; not all that it takes."""


class RefFiles(DiskRefsContainer):
    """The refs of a git repository.

    Args:
        common: the directory shared by all work trees.
        path: this checkout's own.
    """

    def __init__(self, common: Path, path: Path) -> None:
        super().__init__(common, path)
        self._common, self._checkout = common, path

    def read_loose_ref(self, name: Ref) -> bytes | None:
        """What a ref's own file holds; None where there is none.

        Raises:
            StorageError: neither an id nor another ref.
        """
        try:
            held = super().read_loose_ref(name)
        except StopIteration as error:  # dulwich asks for a first line behind "ref: "
            raise damaged(self._place(name), name) from error
        if held is None or held.startswith(SYMREF):
            return held
        held = held.lower()
        if len(held) not in (40, 64) or held.strip(_HEX_DIGITS):
            raise damaged(self._place(name), name)
        return held

    def _place(self, name: bytes) -> Path:
        """The directory that a ref's file is in."""
        return self._checkout if is_per_worktree_ref(name) else self._common

    def get_packed_refs(self) -> dict[Ref, ObjectID]:
        """What ``packed-refs`` holds; an empty file holds nothing, as for git."""
        try:
            return super().get_packed_refs()
        except StopIteration:  # dulwich asks for a first line
            return {}

    def only_packed(self, prefix: bytes) -> dict[Ref, ObjectID]:
        """Refs that have no file of their own, by full name; of those with odd names none.

        Args:
            prefix: of their names, with a slash at its end.
        """
        loose = set(self._iter_loose_refs(Ref(prefix.rstrip(b"/"))))
        return {
            name: id
            for name, id in self.get_packed_refs().items()
            if name.startswith(prefix) and name not in loose and _PLAIN.fullmatch(name)
        }


def damaged(path: Path, ref: bytes) -> StorageError:
    """Says that a ref of the git directory at a path can't be read."""
    return StorageError(f"{os.fsdecode(ref)} in {path} is damaged", hint="git fsck says more")
