"""Checking packs against everything that is recorded about them, and rebuilding indexes.

Owns what ``heddle fsck`` says about the object store. Whether the objects that states refer to are all there is asked
one layer up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from heddle.atomic import write_file
from heddle.errors import CorruptObject
from heddle.objects.index import Index, encode_index
from heddle.objects.layout import REINDEX_HINT
from heddle.objects.packfile import PackFile

_RESTORE = "restore the file from a copy of the repository, or capture again what it held"


class Problem(NamedTuple):
    """One thing that ``verify`` found.

    Attributes:
        kind: stable name: ``damaged_pack``, ``damaged_object``, ``damaged_index``, ``missing_index``,
            ``missing_pack`` or ``missing_alternate``.
        what: one line for the user.
        repair: what to do about it, one line.
    """

    kind: str
    what: str
    repair: str


def verify(
    directory: Path,
    id_length: int,
    *,
    full: bool,
    progress: Callable[[int, int], None] | None,
) -> Iterator[Problem]:
    """Check every pack and index of a directory; see ``ObjectStore.verify``."""
    sound: list[Index] = []
    yield from verify_indexes(directory, id_length, sound)
    yield from _verify_packs(sound, id_length, full=full, progress=progress)


def verify_indexes(
    directory: Path, id_length: int, sound: list[Index] | None = None
) -> Iterator[Problem]:
    """Check that every pack has an index that is sound in itself, without reading packs.

    Args:
        sound: the sound ones are added to it.
    """
    packs, indexes = _names(directory, ".pack"), _names(directory, ".idx")
    for name in sorted(packs - indexes):
        yield Problem("missing_index", f"{directory / name}.pack has no index", REINDEX_HINT)
    for name in sorted(indexes - packs):
        yield Problem("missing_pack", f"{directory / name}.idx has no pack", _RESTORE)
    for name in sorted(packs & indexes):
        try:
            index = _checked_index(directory, name, id_length)
        except CorruptObject as error:
            yield Problem("damaged_index", error.message, REINDEX_HINT)
        else:
            if sound is not None:
                sound.append(index)


def _names(directory: Path, suffix: str) -> set[str]:
    return {path.stem for path in directory.iterdir() if path.suffix == suffix}


def _checked_index(directory: Path, name: str, id_length: int) -> Index:
    index = Index(directory / f"{name}.idx", id_length)
    index.check()
    return index


def _verify_packs(
    indexes: list[Index],
    id_length: int,
    *,
    full: bool,
    progress: Callable[[int, int], None] | None,
) -> Iterator[Problem]:
    total = sum(index.count for index in indexes)
    done = 0
    for index in indexes:
        try:
            pack = PackFile(index.pack_path, id_length)
        except FileNotFoundError:  # gc has merged it since it was listed
            continue
        whole = pack.is_whole(index.pack_digest) and index.pack_digest.hex() == pack.path.stem
        if not whole:
            yield Problem("damaged_pack", f"{pack.path} is not what was written", _RESTORE)
        for entry in index:
            if full or not whole:
                try:
                    pack.rehash(entry)
                except CorruptObject as error:
                    yield Problem("damaged_object", error.message, _RESTORE)
            done += 1
            if progress is not None:
                progress(done, total)


def reindex(directory: Path, id_length: int) -> list[str]:
    """Rebuild every missing or damaged index of a directory; see ``ObjectStore.reindex``."""
    broken = [
        name
        for name in sorted(_names(directory, ".pack"))
        if not _is_sound(directory, name, id_length)
    ]
    for name in broken:
        _rebuild(directory, name, id_length)
    return broken


def _is_sound(directory: Path, name: str, id_length: int) -> bool:
    try:
        _checked_index(directory, name, id_length)
    except (CorruptObject, FileNotFoundError):
        return False
    return True


def _rebuild(directory: Path, name: str, id_length: int) -> None:
    """Write an index of what can be found in a pack; its rename is the commit point."""
    pack = PackFile(directory / f"{name}.pack", id_length)
    entries = {entry.id: entry for entry in pack.scan()}
    data = encode_index(
        entries.values(), id_length=id_length, pack_size=pack.size, pack_digest=bytes.fromhex(name)
    )
    write_file(directory / f"{name}.idx", data, mode=0o444)
