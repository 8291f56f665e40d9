"""Git's own object directories, read where they are as an alternate.

Owns which packs, loose objects and further directories there are, and in which order they are asked; what is in a
pack is ``gitpack.py``'s. Reads alone: nothing of git's is ever written or locked here. Large blobs, which git
stores as one deflated stream, are inflated once, into a temporary file without a name.
"""

from __future__ import annotations

import os
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from heddle.errors import CorruptObject, StorageError
from heddle.objects.cache import ContentCache
from heddle.objects.gitformat import BLOB, ID_LENGTHS, TYPE_NAMES, is_id_of, to_hex, to_raw
from heddle.objects.gitpack import PIECE, Damaged, GitPack, Replaced, make
from heddle.objects.layout import WHOLE_LIMIT
from heddle.objects.spool import Spools, stream

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

_TYPE_NUMS = {name: number for number, name in TYPE_NAMES.items()}
_BASES_BYTES = 8 << 20
"""Contents kept for the deltas that build on them, and for trees and commits that are read again."""
_LOOSE_HEAD_BYTES = 1024
"""Enough for the header, and for deflate's tables (at most 286 bytes) before it."""
_LOOSE_HEADER = 32
"""Bytes of the longest ``type size NUL``."""
_MANY = 1000
"""Objects whose sizes are worth a git process, which takes as long as so many."""
_SETTLED_NS = 50_000_000
"""A directory whose mtime was older than this when it was listed shows every later change by another mtime."""
_T = TypeVar("_T")


class GitObjects:
    """A ``.git/objects`` directory with its packs, its loose objects and its own alternates.

    Safe for several threads. What git adds or repacks meanwhile is seen by the lookup that needs it.

    Args:
        path: the directory.
        format_name: ``sha1`` or ``sha256``.
        opened_by: the directories that led here, so that a circle ends.
        spool: where large blobs are inflated to; None, or a directory that can't be written: the system's place.
    """

    def __init__(
        self,
        path: Path,
        format_name: str,
        opened_by: frozenset[Path] = frozenset(),
        *,
        spool: Path | None = None,
    ) -> None:
        self.path = path
        self._id_length = ID_LENGTHS[format_name]
        self._packs = _Packs(path / "pack", self._id_length)
        self._prefix = f"{path}{os.sep}"
        self._loose: dict[str, frozenset[str]] = {}
        self._bases = ContentCache[tuple[GitPack, int]](_BASES_BYTES)
        self._spools = Spools(spool)
        opened_by |= {path.resolve()}
        self._alternates = [
            GitObjects(each, format_name, opened_by, spool=spool)
            for each in _read_alternates(path)
            if each.resolve() not in opened_by
        ]

    def close(self) -> None:
        """Close what is open; the directory can still be read."""
        self._packs.forget()
        self._spools.clear()
        for alternate in self._alternates:
            alternate.close()

    # Looking up

    def contains(self, raw_id: bytes) -> bool:
        """Say whether an object is here or in an alternate, looking at the directories again."""
        return self._here(raw_id) is not None or any(
            alternate.contains(raw_id) for alternate in self._alternates
        )

    @cached_property
    def is_partial(self) -> bool:
        """Whether it is a partial clone of git's: a remote has promised what its packs refer to and lack.

        Git marks the packs that came so (gitformat-pack(5) has nothing of it; git-index-pack(1), ``--promisor``).
        """
        try:
            marked = any(name.endswith(".promisor") for name in os.listdir(f"{self._prefix}pack"))
        except (FileNotFoundError, NotADirectoryError):
            marked = False
        return marked or any(each.is_partial for each in self._alternates)

    def promises_id(self, raw_id: bytes) -> bool:
        """Say whether a remote may have an object: git does not list what was left out, so it may have any."""
        return self.is_partial

    def holds(self, raw_id: bytes) -> bool:
        """As ``contains``, going by the first look at each directory: costs no system call."""
        return (
            self._packs.find(raw_id) is not None
            or self._is_loose(raw_id)
            or any(alternate.holds(raw_id) for alternate in self._alternates)
        )

    def _is_loose(self, raw_id: bytes) -> bool:
        name = raw_id.hex()
        return name[2:] in self._loose_names(name[:2])

    def _loose_names(self, directory: str) -> frozenset[str]:
        names = self._loose.get(directory)
        if names is None:
            try:
                names = frozenset(os.listdir(self._prefix + directory))
            except (FileNotFoundError, NotADirectoryError):
                names = frozenset()
            self._loose[directory] = names
        return names

    def _loose_path(self, raw_id: bytes) -> str:
        name = raw_id.hex()
        return f"{self._prefix}{name[:2]}{os.sep}{name[2:]}"

    def _here(self, raw_id: bytes) -> tuple[GitPack, int] | str | None:
        """Where an object is in this directory itself: (pack, offset) or the path of a loose one."""
        found = self._packs.find(raw_id)
        if found is not None:
            return found
        path = self._loose_path(raw_id)
        if os.path.exists(path):
            return path
        return self._packs.find_anew(raw_id)

    def _read(
        self,
        raw_id: bytes,
        packed: Callable[[GitPack, int], _T],
        loose: Callable[[str], _T],
        elsewhere: Callable[[GitObjects], _T],
    ) -> _T:
        """Read an object where it is; looks again when git took its file away meanwhile.

        Raises:
            KeyError: there is no such object.
            CorruptObject: it can't be read.
        """
        for again in (True, True, False):
            found = self._here(raw_id)
            try:
                with self._naming_damage(raw_id):
                    if isinstance(found, tuple):
                        return packed(*found)
                    if found is not None:
                        return loose(found)
            except _Gone as gone:
                if again:
                    self._packs.forget()
                    continue
                raise _corrupt(self.path, raw_id, gone) from None
            break
        for alternate in self._alternates:
            if alternate.contains(raw_id):
                return elsewhere(alternate)
        damage = self._packs.damage
        if damage:  # the object may be in a pack whose index can't be read
            raise _corrupt(self.path, raw_id, damage[0])
        raise KeyError(to_hex(raw_id))

    @contextmanager
    def _naming_damage(self, raw_id: bytes) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, Replaced) as error:
            raise _Gone(error) from error
        except OSError as error:
            raise StorageError(
                f"object {raw_id.hex()} in {self.path} can't be read: {error.strerror}"
            ) from error
        except KeyError as error:
            raise _corrupt(self.path, raw_id, "the base of its delta is missing") from error
        except (zlib.error, ValueError, RecursionError) as error:
            raise _corrupt(self.path, raw_id, error) from error

    # Type and size from the first bytes

    def kind(self, object_id: bytes) -> int:
        """An object's type number, as headers say."""
        raw_id = self._raw(object_id)
        return self._read(
            raw_id,
            lambda pack, offset: pack.kind(offset, self.kind),
            lambda path: _loose_head(path)[0],
            lambda alternate: alternate.kind(raw_id),
        )

    def size(self, object_id: bytes) -> int:
        """The length of an object's content in bytes, as headers say."""
        raw_id = self._raw(object_id)
        return self._read(
            raw_id,
            lambda pack, offset: pack.size(offset),
            lambda path: _loose_head(path)[1],
            lambda alternate: alternate.size(raw_id),
        )

    @contextmanager
    def asking_sizes(self, raw_ids: Sequence[bytes]) -> Iterator[Callable[[], dict[bytes, int]]]:
        """As `ObjectStore.asking_sizes`; of very many objects in packs, stock git is asked."""
        is_many = len(raw_ids) >= _MANY
        packed = [raw_id for raw_id in raw_ids if is_many and not self._is_loose(raw_id)]
        if len(packed) < _MANY:
            yield lambda: dict(self._sizes(raw_ids))
            return
        loose = set(raw_ids).difference(packed)
        with self._asking_git(packed) as told:
            yield lambda: dict(self._sizes(loose)) | told()

    @contextmanager
    def _asking_git(self, raw_ids: Sequence[bytes]) -> Iterator[Callable[[], dict[bytes, int]]]:
        """It takes 1 us for an object in a pack, and 35 for a loose one, of which `_sizes` takes 10."""
        ids = b"\n".join(map(to_hex, raw_ids)) + b"\n"
        words = ("cat-file", "--batch-check=%(objectsize)", "--buffer")
        from heddle.objects.askgit import asking_git  # and subprocess with it

        with asking_git(self.path, self._id_length, *words, asked=ids) as answer:

            def told() -> dict[bytes, int]:
                sizes = answer().splitlines()
                if len(sizes) != len(raw_ids):
                    return {}
                pairs = zip(raw_ids, sizes, strict=True)
                return {id: int(size) for id, size in pairs if size.isdigit()}

            yield told

    def _sizes(self, raw_ids: Iterable[bytes]) -> Iterator[tuple[bytes, int]]:
        """Those that can be told at once; whoever asks for another one is told why not."""
        find = self._packs.find
        for raw_id in raw_ids:
            found = find(raw_id)
            with suppress(OSError, ValueError, zlib.error):
                if found is not None:
                    yield raw_id, found[0].size(found[1])
                else:
                    yield raw_id, _loose_head(self._loose_path(raw_id))[1]

    def list_tree(self, tree: bytes) -> list[bytes]:
        """All that lies below a tree, as `ObjectStore.list_tree`."""
        words = ("ls-tree", "-r", "-t", "-l", "-z", "--full-tree", tree.decode())
        from heddle.objects.askgit import asking_git

        with asking_git(self.path, self._id_length, *words) as answer:
            return answer().split(b"\0")[:-1]

    def _raw(self, object_id: bytes) -> bytes:
        return to_raw(object_id, self._id_length)

    def is_chunked(self, object_id: bytes) -> bool:
        """Say whether an object is large: then ``read_at`` does not inflate the whole each time."""
        return self.size(object_id) > WHOLE_LIMIT and self.kind(object_id) == BLOB

    # Reading

    def get_raw(self, name: bytes) -> tuple[int, bytes]:
        """An object's type number and content, which are what its id says.

        Raises:
            KeyError: there is no such object.
            CorruptObject, StorageError: it can't be read.
        """
        raw_id = self._raw(name)
        return self._read(
            raw_id,
            lambda pack, at: _checked(raw_id, *make(pack, at, self._bases, self.get_raw)),
            lambda path: _checked(raw_id, *_loose_whole(path)),
            lambda alternate: alternate.get_raw(raw_id),
        )

    def read_at(self, object_id: bytes, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes of an object's content from ``offset``, short at its end."""
        raw_id = self._raw(object_id)
        if not self.is_chunked(raw_id):
            return self.get_raw(raw_id)[1][offset : offset + size]

        def spooled(pieces: Callable[[], Iterator[bytes]]) -> bytes:
            found = self._spools.get(raw_id, BLOB, self.size(raw_id), pieces)
            return found.read_at(offset, size)

        return self._read(
            raw_id,
            lambda pack, at: spooled(
                lambda: stream(pack, at, self.read_at, self._spools.directory)
            ),
            lambda path: spooled(lambda: _loose_stream(path)),
            lambda alternate: alternate.read_at(raw_id, offset, size),
        )

    # Listing

    def directories(self) -> Iterator[GitObjects]:
        """This directory and all that it reads too."""
        yield self
        for alternate in self._alternates:
            yield from alternate.directories()

    def packs(self) -> tuple[GitPack, ...]:
        """The packs of this directory itself.

        Raises:
            CorruptObject: the index of one can't be read.
        """
        found = self._packs.all()
        for damage in self._packs.damage:
            raise CorruptObject(
                f"{self.path} is damaged: {damage}", hint="run `git fsck --full` there"
            )
        return found

    def loose_ids(self) -> Iterator[bytes]:
        """The binary ids of the objects that lie alone in this directory itself."""
        return self._loose_ids("")

    def iter_ids(self) -> Iterator[bytes]:
        """The binary id of every object here and in the alternates, some more than once."""
        for pack in self._packs.all():
            yield from pack.index.ids()
        yield from self._loose_ids("")
        for alternate in self._alternates:
            yield from alternate.iter_ids()

    def _loose_ids(self, prefix: str) -> Iterator[bytes]:
        directories = [prefix[:2]] if len(prefix) >= 2 else [f"{byte:02x}" for byte in range(256)]
        for directory in directories:
            if not directory.startswith(prefix[:2]):
                continue
            try:
                names = os.listdir(self._prefix + directory)
            except (FileNotFoundError, NotADirectoryError):
                continue
            for name in names:
                if len(name) == 2 * self._id_length - 2 and name.startswith(prefix[2:]):
                    try:
                        yield bytes.fromhex(directory + name)
                    except ValueError:
                        continue

    def iter_prefix(self, prefix: bytes) -> Iterator[ObjectID]:
        """The hex ids that begin with some hex digits, some more than once."""
        digits = prefix.decode("ascii", "replace").lower()
        if len(digits) < 2 or digits.strip("0123456789abcdef"):
            wanted = [] if digits.strip("0123456789abcdef") else self.iter_ids()
            yield from (to_hex(id) for id in wanted if id.hex().startswith(digits))
            return
        for pack in self._packs.all():
            for raw_id in pack.index.ids(int(digits[:2], 16)):
                if raw_id.hex().startswith(digits):
                    yield to_hex(raw_id)
        yield from map(to_hex, self._loose_ids(digits))
        for alternate in self._alternates:
            yield from alternate.iter_prefix(prefix)


class _Gone(Exception):
    """The file that held an object is no longer there, or another one is."""


class _Packs:
    """The packs of one directory, as they were when it was last looked at.

    Looking again costs one stat(2) as long as the directory's mtime is the same.

    Args:
        path: the directory.
        id_length: bytes of an id.

    Attributes:
        damage: what is wrong with the packs whose index can't be used.
    """

    def __init__(self, path: Path, id_length: int) -> None:
        self.damage: list[Exception] = []
        self._path = path
        self._id_length = id_length
        self._packs: dict[str, GitPack] = {}
        self._order: tuple[GitPack, ...] = ()
        self._listed: int | None = None
        self._lock = threading.Lock()

    def forget(self) -> None:
        """Look again at the next lookup, and open every file again."""
        with self._lock:
            self._packs, self._order, self._listed = {}, (), None

    def all(self) -> tuple[GitPack, ...]:
        """Every pack with a sound index, from a new look."""
        self._refresh()
        return self._order

    def find(self, raw_id: bytes) -> tuple[GitPack, int] | None:
        """Where an object is among the packs of the last look: which, and at what offset."""
        if self._listed is None:
            self._refresh()
        order = self._order
        for number, pack in enumerate(order):
            offset = pack.index.find(raw_id)
            if offset is not None:
                if number:  # what is asked for next is likely to be near
                    self._prefer(pack, order)
                return pack, offset
        return None

    def _prefer(self, pack: GitPack, order: tuple[GitPack, ...]) -> None:
        """Ask a pack first from now on, unless another thread has seen others meanwhile."""
        with self._lock:
            if self._order is order:
                self._order = (pack, *(each for each in order if each is not pack))

    def find_anew(self, raw_id: bytes) -> tuple[GitPack, int] | None:
        """Where an object is that the last look did not find, if there are new packs."""
        return self.find(raw_id) if self._refresh() else None

    def _refresh(self) -> bool:
        """List the directory if it may have changed; returns whether there are new packs."""
        try:
            now_ns = time.time_ns()
            modified = os.stat(self._path).st_mtime_ns
            if modified == self._listed:
                return False
            names = set(os.listdir(self._path))
        except (FileNotFoundError, NotADirectoryError):
            modified, names = -1, set()
        with self._lock:
            before, packs, damage = self._packs, dict[str, GitPack](), list[Exception]()
            for name in names:
                if name.endswith(".pack") and f"{name[:-5]}.idx" in names:
                    try:
                        packs[name] = before.get(name) or GitPack(
                            self._path / name, self._id_length
                        )
                    except FileNotFoundError:
                        continue
                    except (Damaged, OSError) as error:
                        damage.append(error)
            self._packs, self.damage = packs, damage
            self._order = tuple(packs[name] for name in sorted(packs))
            settled = modified + _SETTLED_NS < now_ns
            self._listed = modified if settled else -1
        return bool(packs.keys() - before.keys())


def _checked(raw_id: bytes, kind: int, content: bytes) -> tuple[int, bytes]:
    """Refuse what is not the object that was asked for: not every damage shows while an entry is read."""
    if not is_id_of(raw_id, kind, content):
        raise Damaged("its content has another id")
    return kind, content


def _corrupt(path: Path, raw_id: bytes, why: object) -> CorruptObject:
    return CorruptObject(
        f"{path} is damaged at object {raw_id.hex()}: {why}", hint="run `git fsck --full` there"
    )


def _read_alternates(path: Path) -> list[Path]:
    """The directories that git itself reads too; relative ones are taken from this one."""
    try:
        lines = (path / "info" / "alternates").read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    return [path / os.fsdecode(line) for line in lines if line and not line.startswith(b"#")]


# loose objects (gitformat-loose(5))


def _loose_head(path: str) -> tuple[int, int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # of thousands, open() would take twice as long
    try:
        deflated = os.read(fd, _LOOSE_HEAD_BYTES)
    finally:
        os.close(fd)
    return _loose_header(zlib.decompressobj().decompress(deflated, _LOOSE_HEADER))[:2]


def _loose_header(begin: bytes) -> tuple[int, int, int]:
    """Type number, size in bytes, and where the content begins."""
    end = begin.index(b"\0", 0, _LOOSE_HEADER)
    name, _, size = begin[:end].partition(b" ")
    if name not in _TYPE_NUMS:
        raise Damaged("its type is none of git's")
    return _TYPE_NUMS[name], int(size), end + 1


def _loose_whole(path: str) -> tuple[int, bytes]:
    return _loose_head(path)[0], b"".join(_loose_stream(path))


def _loose_stream(path: str) -> Iterator[bytes]:
    """The content of a loose object, piece by piece."""
    inflater = zlib.decompressobj()
    left: int | None = None
    with open(path, "rb", buffering=0) as file:
        while not inflater.eof:
            deflated = inflater.unconsumed_tail or file.read(PIECE)
            if not deflated:
                raise Damaged("it ends too early")
            piece = inflater.decompress(deflated, PIECE)
            if left is None:
                _, left, at = _loose_header(piece)
                piece = piece[at:]
            left -= len(piece)
            if left < 0:
                break
            yield piece
    if left:
        raise Damaged("it is not as long as it says")
