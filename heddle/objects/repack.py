"""Storing objects that are alike together: which go into one block, against what, and the pack that they make.

Owns how chains of versions are cut into blocks (`arrange`) and what is compressed how. Where the chains come from is
``reach.py``'s; the processes that do it are ``workers.py``'s; what a block looks like is ``layout.py``'s; which packs
the new one replaces is one layer up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from heddle.objects.blockindex import BlockIndex
from heddle.objects.gitformat import BLOB
from heddle.objects.layout import (
    BASE_DEPTH,
    BASES_LIMIT,
    BLOCK,
    WHOLE_LIMIT,
    Entry,
    is_large,
)
from heddle.objects.output import PackOutput, SideFile, compress, framed
from heddle.objects.workers import results

if TYPE_CHECKING:
    from heddle.objects.catalog import Catalog
    from heddle.objects.index import Index
    from heddle.objects.packs import PackDirectory
    from heddle.objects.reach import Chain

LEVEL = 10
"""zstd's level; the figures are in docs/decisions.md."""
HASH_LOG = 19
"""Logarithm of the entries of zstd's table at most: a larger one takes longer to clear than it wins."""
FAR_FROM = 16 << 10
"""Objects of at least so many bytes on average are searched for versions that lie far apart, too."""
FAR_MATCH = 256
"""The shortest of such matches, in bytes; shorter ones are found without."""
WHOLE_LEVEL = 9
"""The same for objects that are read alone."""
BLOCK_BYTES = {BLOB: 256 << 10}
"""Content of a block of objects of a type, in bytes; more where the objects are large."""
SMALL_BLOCK_BYTES = 128 << 10
"""The same for commits, trees and tags, of which one is often read alone."""
VERSIONS = 16
"""Versions of a large object that share a block."""
RUN = 20
"""Blocks that follow each other; see `_cut`."""
MEMBERS = 4096
"""Objects in a block."""
ALONE_BYTES = 256 << 10
"""Objects that are stored alone are compressed in batches of about so many bytes of content."""
IN_A_ROW = 8
"""Blocks that one process makes one after the other: objects in them are often deltas of each other."""

Sizes = Callable[[bytes], int]


class Block(NamedTuple):
    """Objects that are compressed together.

    Attributes:
        type_num: git's type number of all of them.
        ids: binary, in the order of their content.
        bases: ids of the objects that they are compressed against: whole ones, or first ones of earlier blocks.
    """

    type_num: int
    ids: tuple[bytes, ...]
    bases: tuple[bytes, ...]


# Cutting


def arrange(chains: Iterable[Chain], size_of: Sizes) -> Iterator[Block]:
    """Cut chains of versions into blocks; a base's own block comes before those that need it.

    A long chain becomes blocks of its own; short ones share blocks, those of files of the same name side by side.

    Args:
        chains: of objects that are not chunked, without those that lie elsewhere.
        size_of: the length of an object's content in bytes.
    """
    ordered = sorted((each for each in chains if each.ids), key=_likeness)
    for type_num, group in groupby(ordered, lambda chain: chain.type_num):
        yield from _arrange_type(type_num, group, size_of)


def _likeness(chain: Chain) -> tuple[int, bytes, bytes]:
    directory, _, name = chain.path.rstrip(b"/").rpartition(b"/")
    return chain.type_num, name, directory


def _arrange_type(type_num: int, chains: Iterable[Chain], size_of: Sizes) -> Iterator[Block]:
    limit = BLOCK_BYTES.get(type_num, SMALL_BLOCK_BYTES)
    shared = _Shared(type_num, limit)
    for chain in chains:
        size = sum(map(size_of, chain.ids))
        if size > limit // 2 or len(chain.ids) > MEMBERS // 2:
            yield from _cut(chain, limit, size_of)
            continue
        size += 0 if chain.head is None else size_of(chain.head)
        if not shared.has_room(chain, size):
            yield shared.take()
        shared.add(chain, size)
    if shared.ids:
        yield shared.take()


class _Shared:
    """A block of several short chains while it is collected."""

    def __init__(self, type_num: int, limit_bytes: int) -> None:
        self._type_num = type_num
        self._limit = limit_bytes
        self._start()

    def _start(self) -> None:
        self.ids: list[bytes] = []
        self._bases: list[bytes] = []
        self._bytes = 0

    def has_room(self, chain: Chain, size: int) -> bool:
        return not self.ids or (
            self._bytes + size <= self._limit
            and len(self.ids) + len(chain.ids) <= MEMBERS
            and len(self._bases) < BASES_LIMIT
        )

    def add(self, chain: Chain, size: int) -> None:
        self.ids += chain.ids
        if chain.head is not None:
            self._bases.append(chain.head)
        self._bytes += size

    def take(self) -> Block:
        block = Block(self._type_num, tuple(self.ids), tuple(self._bases))
        self._start()
        return block


def _cut(chain: Chain, limit: int, size_of: Sizes) -> Iterator[Block]:
    """Blocks of one chain, each against the first object of the one before: its nearest relative that is cheap to read.

    So that no reader follows more than BASE_DEPTH of them, every RUN-th block is against the one RUN before it.
    """
    firsts: list[bytes] = []
    depths: list[int] = []
    for number, ids in enumerate(_pieces(chain.ids, limit, size_of)):
        begins = number % RUN == 0
        before = number - (RUN if begins else 1)
        base, depth = chain.head, 1
        if before >= 0 and depths[before] < BASE_DEPTH - (RUN if begins else 1):
            base, depth = firsts[before], depths[before] + 1
        firsts.append(ids[0])
        depths.append(depth)
        yield Block(chain.type_num, tuple(ids), () if base is None else (base,))


def _pieces(ids: list[bytes], limit: int, size_of: Sizes) -> Iterator[list[bytes]]:
    piece: list[bytes] = []
    left = 0
    for raw_id in ids:
        size = size_of(raw_id)
        if piece and (size > left or len(piece) == MEMBERS):
            yield piece
            piece = []
        if not piece:
            left = max(limit, min(WHOLE_LIMIT, size * VERSIONS))
        piece.append(raw_id)
        left -= size
    yield piece


# Writing


class Plan(NamedTuple):
    """What a new pack shall hold; every object in it lies in a pack of the same directory.

    Attributes:
        alone: ids of objects that are stored without any other: chunked ones, and those that are often read.
        chains: the others.
    """

    alone: list[bytes]
    chains: list[Chain]


class _Job(NamedTuple):
    """A part of a pack.

    Attributes:
        compress: makes the frames of it; called in another process.
        append: called here with the frames, when all that comes before it is written.
    """

    compress: Callable[[], list[bytes]]
    append: Callable[[list[bytes]], None]


class Repacker:
    """Writes one new pack of objects that lie in other packs; those stay.

    Args:
        packs: the directory.
        catalog: of these packs.
        progress: called with bytes of content written and in all.
    """

    def __init__(
        self,
        packs: PackDirectory,
        catalog: Catalog,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._packs = packs
        self._catalog = catalog
        self._progress = progress
        self._entries: dict[bytes, Entry] = {}
        self._done = 0
        self._total = 0

    def write(self, plan: Plan, *, modified_ns: int | None = None) -> str | None:
        """Write the pack; durable and visible on return.

        Args:
            plan: what it shall hold.
            modified_ns: its modification time, in ns since the epoch; None: now.

        Returns:
            Its name, or None where there is nothing to write.

        Raises:
            CorruptObject: an object can't be read; nothing was published.
            StorageError: the disk is full or failing.
        """
        if not plan.alone and not any(chain.ids for chain in plan.chains):
            return None
        self._total = sum(self._catalog.sizes(plan.alone))
        self._total += sum(sum(self._catalog.sizes(chain.ids)) for chain in plan.chains)
        output = PackOutput(self._packs.path, self._catalog.id_length)
        try:
            jobs = list(self._jobs(plan, output))
            frames = results([job.compress for job in jobs], in_a_row=IN_A_ROW)
            with closing(frames):
                for job, made in zip(jobs, frames, strict=True):
                    job.append(made)
            name = output.publish(self._entries.values(), modified_ns=modified_ns, collected=True)
        finally:
            output.close()
        self._packs.refresh()
        return name

    def _jobs(self, plan: Plan, output: PackOutput) -> Iterator[_Job]:
        yield from self._alone(plan.alone, output)
        for block in arrange(plan.chains, self._catalog.size):
            yield _Job(
                partial(self._compress_block, block), partial(self._append_block, output, block)
            )

    def _contents(self, ids: Iterable[bytes]) -> list[bytes]:
        get = self._catalog.get_raw
        return [get(raw_id)[1] for raw_id in ids]

    # Objects alone

    def _alone(self, ids: Iterable[bytes], output: PackOutput) -> Iterator[_Job]:
        """Each gets a frame of its own, in batches.

        Large ones are written here, and so are those that were collected before: they have good frames.
        """
        batch: list[Entry] = []
        size = 0
        for raw_id in ids:
            index, entry = self._catalog.find(raw_id)
            if isinstance(index, BlockIndex) and entry.kind != BLOCK:
                yield _Job(list, partial(self._copy, index, entry, output))
            elif is_large(entry):
                yield _Job(list, partial(self._write_large, index, entry, output))
            else:
                batch.append(entry)
                size += entry.raw_size
            if size >= ALONE_BYTES:
                yield self._batch(batch, output)
                batch, size = [], 0
        if batch:
            yield self._batch(batch, output)

    def _batch(self, batch: list[Entry], output: PackOutput) -> _Job:
        return _Job(
            partial(self._compress_batch, batch), partial(self._append_batch, output, batch)
        )

    def _copy(self, index: Index, entry: Entry, output: PackOutput, _frames: list[bytes]) -> None:
        """Copy an object as it is stored, after its checksums were looked at."""
        pack = self._packs.open(index)
        for _ in pack.contents(entry):
            pass
        self._entries[entry.id] = output.append_stored(entry, pack.stored(entry))
        self._report(entry.raw_size)

    def _write_large(
        self, index: Index, entry: Entry, output: PackOutput, _frames: list[bytes]
    ) -> None:
        with SideFile(self._packs.path, level=WHOLE_LEVEL) as side:
            side.write(framed(self._packs.open(index).contents(entry)))
            self._entries[entry.id] = output.append_chunked(entry.id, entry.type_num, side)
        self._report(entry.raw_size)

    def _compress_batch(self, batch: list[Entry]) -> list[bytes]:
        contents = self._contents(entry.id for entry in batch)
        return list(map(bytes, compress(contents, threads=1, level=WHOLE_LEVEL)))

    def _append_batch(self, output: PackOutput, batch: list[Entry], frames: list[bytes]) -> None:
        objects = [(entry.id, entry.type_num, entry.raw_size) for entry in batch]
        self._entries.update((entry.id, entry) for entry in output.append(objects, frames))
        self._report(sum(entry.raw_size for entry in batch))

    # Blocks

    def _compress_block(self, block: Block) -> list[bytes]:
        contents = self._contents(block.ids)
        content = b"".join(contents)
        bases = b"".join(self._contents(block.bases))
        return [_compress(content, bases, is_far=len(content) >= FAR_FROM * len(contents))]

    def _append_block(self, output: PackOutput, block: Block, frames: list[bytes]) -> None:
        sizes = self._catalog.sizes(block.ids)
        if len(block.ids) == 1 and not block.bases:
            entries = output.append([(block.ids[0], block.type_num, sizes[0])], frames)
        else:
            bases = [self._entries[base].offset for base in block.bases]
            objects = list(zip(block.ids, sizes, strict=True))
            entries = output.append_block(block.type_num, objects, bases, frames[0])
        self._entries.update((entry.id, entry) for entry in entries)
        self._report(sum(sizes))

    def _report(self, size: int) -> None:
        self._done += size
        if self._progress is not None:
            self._progress(self._done, self._total)


def _compress(content: bytes, bases: bytes, *, is_far: bool) -> bytes:
    """Compress a block's content; ``is_far``: versions lie far apart in it."""
    import zstandard

    options: dict[str, Any] = {}
    if bases:
        kind = zstandard.DICT_TYPE_RAWCONTENT
        options["dict_data"] = zstandard.ZstdCompressionDict(bases, dict_type=kind)
    size = len(content) + len(bases)
    usual = zstandard.ZstdCompressionParameters.from_level(LEVEL, source_size=size)
    parameters = zstandard.ZstdCompressionParameters.from_level(
        LEVEL,
        source_size=size,
        hash_log=min(usual.hash_log, HASH_LOG),
        write_checksum=True,
        write_content_size=True,
        enable_ldm=is_far,
        ldm_min_match=FAR_MATCH,
    )
    return zstandard.ZstdCompressor(compression_params=parameters, **options).compress(content)
