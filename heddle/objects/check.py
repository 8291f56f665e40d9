"""Checking packs against everything that is recorded about them, and rebuilding indexes.

Owns what ``heddle fsck`` says about the object store; whether the objects that states refer to are all there is asked
one layer up.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from heddle import faults
from heddle.atomic import fsync_directory
from heddle.errors import CorruptObject
from heddle.objects.index import Index, encode_index
from heddle.objects.layout import REINDEX_HINT, Entry
from heddle.objects.pack import TEMPORARY_PREFIX, PackFile, new_hash, write_synced

if TYPE_CHECKING:
    from heddle.objects.store import ObjectStore, Problem


def verify(
    store: ObjectStore, *, full: bool, progress: Callable[[int, int], None] | None
) -> Iterator[Problem]:
    """See ``ObjectStore.verify``."""
    from heddle.objects.store import Problem

    directory = store.path / "packs"
    names = sorted(os.listdir(directory))
    packs = {name[:-5] for name in names if name.endswith(".pack")}
    indexes = {name[:-4] for name in names if name.endswith(".idx")}
    for name in sorted(packs - indexes):
        yield Problem("missing_index", f"{directory / name}.pack has no index", REINDEX_HINT)
    for name in sorted(indexes - packs):
        yield Problem("missing_pack", f"{directory / name}.idx has no pack", _RESTORE)
    opened = []
    for name in sorted(packs & indexes):
        try:
            index = Index(directory / f"{name}.idx", store.id_length)
            index.check()
            opened.append(index)
        except CorruptObject as error:
            yield Problem("damaged_index", error.message, REINDEX_HINT)
    total = sum(index.count for index in opened)
    done = 0
    for index in opened:
        yield from _verify_pack(index, store, full)
        done += index.count
        if progress is not None:
            progress(done, total)


_RESTORE = "restore the pack from a copy of the repository, or capture again what it held"


def _verify_pack(index: Index, store: ObjectStore, full: bool) -> Iterator[Problem]:
    from heddle.objects.store import Problem

    pack = PackFile(index.pack_path, store.id_length)
    if pack.digest() != index.pack_digest or not pack.is_whole():
        yield Problem("damaged_pack", f"{pack.path} is not what was written", _RESTORE)
        full = True
    for entry in index:
        try:
            if full:
                _rehash(pack, entry, store.format_name)
        except CorruptObject as error:
            yield Problem("damaged_object", error.message, _RESTORE)


def _rehash(pack: PackFile, entry: Entry, format_name: str) -> None:
    digest = new_hash(format_name, entry.type_num, entry.raw_size)
    for data in pack.contents(entry):
        digest.update(data)
    if digest.digest() != entry.id:
        raise pack.corrupt(entry, f"its content has the id {digest.hexdigest()}")


def reindex(directory: Path, id_length: int) -> list[str]:
    """Rebuild every missing or damaged index of a directory; see ``ObjectStore.reindex``."""
    rebuilt = []
    for name in sorted(os.listdir(directory)):
        if name.endswith(".pack") and not _is_sound(directory / f"{name[:-5]}.idx", id_length):
            _reindex_pack(directory, name[:-5], id_length)
            rebuilt.append(name[:-5])
    if rebuilt:
        fsync_directory(directory)
    return rebuilt


def _is_sound(path: Path, id_length: int) -> bool:
    try:
        Index(path, id_length).check()
    except (CorruptObject, FileNotFoundError):
        return False
    return True


def _reindex_pack(directory: Path, name: str, id_length: int) -> None:
    pack = PackFile(directory / f"{name}.pack", id_length)
    entries = {entry.id: entry for entry in pack.scan()}
    data = encode_index(
        entries.values(), id_length=id_length, pack_size=pack.size, pack_digest=pack.digest()
    )
    temporary = directory / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
    write_synced(temporary, data)
    faults.reach("pack.reindex-synced")
    os.rename(temporary, directory / f"{name}.idx")
