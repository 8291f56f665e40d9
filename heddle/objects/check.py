"""Checking packs against everything that is recorded about them, and rebuilding indexes.

Owns what ``heddle fsck`` says about the object store. Whether the objects that states refer to are all there is asked
one layer up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from heddle.atomic import write_file
from heddle.errors import StorageError
from heddle.objects.blockindex import encode_index, open_index
from heddle.objects.index import Index
from heddle.objects.layout import REINDEX_HINT, corrupt
from heddle.objects.opening import open_pack

_NAME = re.compile("[0-9a-f]{64}")
REPAIR_HINT = "heddle fsck --repair keeps what is sound of it, and says what is lost"


class Problem(NamedTuple):
    """One thing that ``verify`` found.

    Attributes:
        kind: stable name: ``damaged_pack``, ``damaged_object``, ``damaged_index``, ``missing_index``,
            ``missing_pack`` or ``missing_alternate``.
        what: one line for the user.
        repair: what to do about it, one line.
        id: binary id of the object that is damaged, if it is about one.
    """

    kind: str
    what: str
    repair: str
    id: bytes | None = None


def verify(
    directory: Path,
    id_length: int,
    *,
    full: bool,
    progress: Callable[[int, int], None] | None,
) -> Iterator[Problem]:
    """Check every pack and index of a directory; see ``ObjectStore.verify``."""
    if not directory.is_dir():
        yield Problem("missing_pack", f"{directory} is missing", REPAIR_HINT)
        return
    sound: list[Index] = []
    yield from verify_indexes(directory, id_length, sound)
    yield from _verify_packs(directory, id_length, sound, full=full, progress=progress)


def verify_indexes(
    directory: Path, id_length: int, sound: list[Index] | None = None
) -> Iterator[Problem]:
    """Check that every pack has an index that is sound in itself, without reading packs.

    Args:
        sound: the sound ones are added to it.
    """
    packs, indexes = names(directory, ".pack"), names(directory, ".idx")
    for name in sorted(packs - indexes):
        yield Problem("missing_index", f"{directory / name}.pack has no index", REINDEX_HINT)
    for name in sorted(indexes - packs):
        yield Problem("missing_pack", f"{directory / name}.idx has no pack", REPAIR_HINT)
    for name in sorted(packs & indexes):
        try:
            index = checked_index(directory, name, id_length)
        except StorageError as error:
            yield Problem("damaged_index", error.message, REINDEX_HINT)
        else:
            if sound is not None:
                sound.append(index)


def names(directory: Path, suffix: str) -> set[str]:
    """The packs, by name, that have a file of this suffix."""
    return {
        path.stem
        for path in directory.iterdir()
        if path.suffix == suffix and _NAME.fullmatch(path.stem)
    }


def checked_index(directory: Path, name: str, id_length: int) -> Index:
    """An index that is sound as a whole and is this pack's.

    Raises:
        CorruptObject: it is not.
        FileNotFoundError: there is none.
    """
    index = open_index(directory / f"{name}.idx", id_length)
    index.check()
    if index.pack_digest.hex() != name:
        raise corrupt(str(index.path), None, "it is another pack's", hint=REINDEX_HINT)
    return index


def _verify_packs(
    directory: Path,
    id_length: int,
    sound: list[Index],
    *,
    full: bool,
    progress: Callable[[int, int], None] | None,
) -> Iterator[Problem]:
    indexes = {index.path.stem: index for index in sound}
    total = sum(index.count for index in sound)
    done = 0
    for name in sorted(names(directory, ".pack")):
        index = indexes.get(name)
        try:
            pack = open_pack(directory / f"{name}.pack", id_length, index)
        except FileNotFoundError:  # gc has merged it since it was listed
            continue
        whole = pack.is_named_right()
        if not whole:
            yield Problem("damaged_pack", f"{pack.path} is not what was written", REPAIR_HINT)
        if full or not whole:
            for entry, problem in pack.check(pack.scan() if index is None else index):
                if problem is not None:
                    yield Problem("damaged_object", problem.message, REPAIR_HINT, entry.id)
                done += index is not None
                if progress is not None:
                    progress(done, total)
        elif index is not None:
            done += index.count
            if progress is not None:
                progress(done, total)


def reindex(directory: Path, id_length: int) -> list[str]:
    """Rebuild every missing or damaged index of a directory; see ``ObjectStore.reindex``."""
    broken = [
        name
        for name in sorted(names(directory, ".pack"))
        if not _is_sound(directory, name, id_length)
    ]
    for name in broken:
        _rebuild(directory, name, id_length)
    return broken


def _is_sound(directory: Path, name: str, id_length: int) -> bool:
    try:
        checked_index(directory, name, id_length)
    except (StorageError, FileNotFoundError):
        return False
    return True


def _rebuild(directory: Path, name: str, id_length: int) -> None:
    """Write an index of what can be found in a pack; its rename is the commit point."""
    pack = open_pack(directory / f"{name}.pack", id_length)
    entries = {entry.id: entry for entry in pack.scan()}
    data = encode_index(
        entries.values(), id_length=id_length, pack_size=pack.size, pack_digest=bytes.fromhex(name)
    )
    write_file(directory / f"{name}.idx", data, mode=0o444)
