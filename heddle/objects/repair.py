"""Mending packs: what is sound of a damaged one is written anew, so that the damaged file can be set aside.

Owns the judgement of each pack and the order of the steps; checks without changes are ``check.py``'s. Where damaged
files go, and which lost objects something refers to, is asked one layer up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from heddle import faults
from heddle.errors import StorageError
from heddle.objects.blockindex import open_index
from heddle.objects.check import checked_index, names
from heddle.objects.gitformat import BLOB, ID_LENGTHS
from heddle.objects.holding import Hold
from heddle.objects.layout import PACK_HEADER_SIZE, Entry, encode_pack_header, is_large
from heddle.objects.opening import open_pack
from heddle.objects.pack import PackWriter
from heddle.objects.packfile import PackFile

if TYPE_CHECKING:
    from heddle.objects.index import Index
    from heddle.objects.store import ObjectStore

SetAside = Callable[[Path, str], None]


class BrokenPack(NamedTuple):
    """A pack that is not what was written, or of which only the index is left.

    Attributes:
        path: the pack file, which may be missing.
        why: what is wrong, in a few words.
        sound: entries whose content has its id.
        damaged: binary ids of the objects that can't be read.
        pack: the file, if it is there.
    """

    path: Path
    why: str
    sound: list[Entry]
    damaged: list[bytes]
    pack: PackFile | None = None


def object_format(directory: Path) -> str | None:
    """The format that packs were written in, from the first with a sound header; a pack of git's does not say it."""
    headers = {encode_pack_header(length): name for name, length in ID_LENGTHS.items()}
    for path in sorted(directory.glob("*.pack")):
        with suppress(OSError), path.open("rb") as file:
            found = headers.get(file.read(PACK_HEADER_SIZE))
            if found is not None:
                return found
    for path in sorted(directory.glob("*.idx")):
        for name, length in ID_LENGTHS.items():
            with suppress(OSError, StorageError):
                open_index(path, length)
                return name
    return None


def broken_packs(
    directory: Path, id_length: int, progress: Callable[[int, int], None] | None = None
) -> Iterator[BrokenPack]:
    """Find the packs of a directory that are damaged, reading every pack once.

    Args:
        directory: ``objects/packs``.
        id_length: bytes of an id.
        progress: called with packs done and packs in all.
    """
    packs, indexes = names(directory, ".pack"), names(directory, ".idx")
    everything = sorted(packs | indexes)
    for number, name in enumerate(everything):
        index = _index(directory, name, id_length) if name in indexes else None
        if name not in packs:
            if not (directory / f"{name}.idx").exists():
                continue  # somebody has removed the pack, and now the index
            entries = [] if index is None else list(index)
            path = directory / f"{name}.pack"
            yield BrokenPack(path, "it is missing", [], [entry.id for entry in entries])
        else:
            pack = _open(directory / f"{name}.pack", id_length, index)
            if pack is not None and not pack.is_named_right():
                yield _examined(pack, index)
        if progress is not None:
            progress(number + 1, len(everything))


def _index(directory: Path, name: str, id_length: int) -> Index | None:
    try:
        return checked_index(directory, name, id_length)
    except (StorageError, FileNotFoundError):
        return None


def _open(path: Path, id_length: int, index: Index | None) -> PackFile | None:
    try:
        return open_pack(path, id_length, index)
    except FileNotFoundError:  # gc has merged it since it was listed
        return None


def _examined(pack: PackFile, index: Index | None) -> BrokenPack:
    """Try every entry that the index or the pack itself knows of."""
    entries = {} if index is None else {entry.id: entry for entry in index}
    for entry in pack.scan():
        entries.setdefault(entry.id, entry)
    sound, damaged = [], []
    for entry, problem in pack.check(entries.values()):
        if problem is None:
            sound.append(entry)
        else:
            damaged.append(entry.id)
    return BrokenPack(pack.path, "it is not what was written", sound, damaged, pack)


def rewrite(
    store: ObjectStore, broken: Iterable[BrokenPack], set_aside: SetAside
) -> tuple[int, list[str]]:
    """Write what is sound of damaged packs into new ones, then set the damaged ones aside.

    Each new pack is durable before the old one goes, the pack before its index: a reader that has listed it looks
    again and finds its objects in the new one. Killed at any point it can be run again.

    Args:
        store: the store that they are of.
        broken: what ``broken_packs`` found.
        set_aside: moves a file out of use.

    Returns:
        How many objects were written anew, and the names of the new packs.
    """
    every = list(broken)
    keeping = _Keeping(store, {each.path.stem for each in every})
    count, new = 0, []
    for each in every:
        with PackWriter(keeping, Hold(keeping.path / "packs")) as writer:
            if each.pack is not None:
                _copy(each.pack, each.sound, writer)
            count += writer.count
            name = writer.commit()
        keeping.refresh()
        if name is not None:
            new.append(name)
        faults.reach("repair.rewritten")
        if name == each.path.stem:  # everything in it was sound: the new one has taken its place
            continue
        set_aside(each.path, each.why)
        set_aside(each.path.with_suffix(".idx"), "its pack is damaged")
    store.reload()
    return count, new


def _copy(pack: PackFile, entries: Iterable[Entry], writer: PackWriter) -> None:
    for entry in entries:
        if entry.type_num == BLOB and is_large(entry):
            writer.add_blob_from(_reader(pack.contents(entry)), entry.raw_size)
        else:
            writer.add(entry.type_num, pack.get(entry))


def _reader(pieces: Iterator[bytes]) -> Callable[[int], bytes]:
    """Read an object piece by piece as a file is read."""
    held = b""

    def read(size: int) -> bytes:
        nonlocal held
        while len(held) < size and (piece := next(pieces, b"")):
            held += piece
        data, held = held[:size], held[size:]
        return data

    return read


class _Keeping:
    """The store without its damaged packs, for a writer that is to store what else only they hold."""

    def __init__(self, store: ObjectStore, broken: set[str]) -> None:
        self.path = store.path
        self.id_length = store.id_length
        self._store = store
        self._broken = broken
        self._indexes: dict[str, Index] = {}
        self.refresh()

    def holds(self, raw_id: bytes) -> bool:
        for index in self._indexes.values():
            if index.find(raw_id) is not None:
                return True
        return any(alternate.contains(raw_id) for alternate in self._store.alternates)

    def refresh(self) -> None:
        directory = self.path / "packs"
        for name in names(directory, ".idx") - self._broken - self._indexes.keys():
            index = _index(directory, name, self.id_length)
            if index is not None:
                self._indexes[name] = index


def unreadable(store: ObjectStore, raw_ids: Iterable[bytes]) -> list[bytes]:
    """Those objects that can't be read from anywhere, in order and once each."""
    return [raw_id for raw_id in sorted(set(raw_ids)) if not _is_readable(store, raw_id)]


def _is_readable(store: ObjectStore, raw_id: bytes) -> bool:
    try:
        for _ in store.iter_blob(raw_id):
            pass
    except (KeyError, StorageError):
        return False
    return True
