"""Changes as text: unified diffs that ``git apply`` takes, binary files, modes and renames included.

Owns the patch format (git's diff-format and its binary literals) and how lines are matched. What changed is
told by ``changes.py``; colours, ``--stat`` and paging are the command's.
"""

from __future__ import annotations

import re
import stat
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from heddle.repo.changes import DIRECTORY_MODE, RENAMED, TYPE_CHANGED, Change, Reader, find_renames

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

CONTEXT_LINES = 3
_LOOKED_AT = 8000
"""A NUL byte within so many bytes makes a file binary, as in git."""
_SHOWN_ID = 10
_WORK_PER_REGION = 500_000
_WORK = 3_000_000
"""Steps of matching that a file may cost (some seconds); what differs after that is replaced whole."""
_LINE = re.compile(rb"[^\n]*\n|[^\n]+")
_QUOTED = re.compile(rb"[\x00-\x1f\"\\\x7f-\xff]")
_ESCAPES = dict(zip(b'\a\b\t\n\v\f\r"\\', b'abtnvfr"\\', strict=True))
_Region = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class FileDiff:
    """One changed path with its patch.

    Attributes:
        path: where it is now, or where it was when it was deleted.
        kind: as in ``Change``.
        old_path: where a renamed file came from, else None.
        additions: lines that are new; 0 for a binary file.
        deletions: lines that are gone; 0 for a binary file.
        binary: whether one side is not text.
        patch: what ``git apply`` takes; empty for an empty directory, which git patches can't express.
    """

    path: bytes
    kind: str
    old_path: bytes | None
    additions: int
    deletions: int
    binary: bool
    patch: bytes


def diff_changes(
    changes: Iterable[Change],
    read_old: Reader,
    read_new: Reader,
    *,
    object_format: str = "sha1",
) -> Iterator[FileDiff]:
    """Give each change its patch; deletions and additions that look alike become renames.

    Args:
        changes: the changes of one comparison.
        read_old: the old bytes of a change (a file's content, a link's target).
        read_new: the new ones.
        object_format: how new bytes that have no id yet are named: ``sha1`` or ``sha256``.
    """
    for change in find_renames(changes, read_old=read_old, read_new=read_new):
        parts = _halves(change) if change.kind == TYPE_CHANGED else [change]
        done = [
            _file_diff(part, read_old, read_new, object_format)
            for part in parts
            if DIRECTORY_MODE not in (part.old_mode, part.new_mode)
        ]
        yield FileDiff(
            change.path,
            change.kind,
            change.old_path,
            sum(one.additions for one in done),
            sum(one.deletions for one in done),
            any(one.binary for one in done),
            b"".join(one.patch for one in done),
        )


def _halves(change: Change) -> list[Change]:
    """A change of type as git writes it: the old thing is deleted and a new one made."""
    return [
        change._replace(kind="deleted", new_mode=None, new_id=None),
        change._replace(kind="added", old_mode=None, old_id=None),
    ]


def _file_diff(change: Change, read_old: Reader, read_new: Reader, object_format: str) -> FileDiff:
    old = _content(change, change.old_mode, change.old_id, read_old)
    new = _content(change, change.new_mode, change.new_id, read_new)
    old_id, new_id = (
        _named(change.old_id, old, change.old_mode, object_format),
        _named(change.new_id, new, change.new_mode, object_format),
    )
    binary = old != new and (_is_binary(old) or _is_binary(new))
    additions = deletions = common = 0
    if binary:
        body = _binary_patch(old, new)
    else:
        body, additions, deletions, common = _text_patch(change, old, new)
    similarity = 100 * common // max(len(old), len(new), 1) if old != new else 100
    shown = None if binary else _SHOWN_ID
    header = _header(change, old_id[:shown], new_id[:shown], similarity)
    return FileDiff(
        change.path,
        change.kind,
        change.old_path,
        additions,
        deletions,
        binary,
        header + body,
    )


def _content(change: Change, mode: int | None, id: ObjectID | None, read: Reader) -> bytes:
    if mode is None:
        return b""
    if stat.S_IFMT(mode) == 0o160000:
        return b"Subproject commit %b\n" % (id or b"")
    return read(change)


def _named(id: ObjectID | None, content: bytes, mode: int | None, object_format: str) -> bytes:
    from hashlib import new

    digest = new(object_format, b"blob %d\0" % len(content), usedforsecurity=False)
    if mode is None:
        return b"0" * (2 * digest.digest_size)
    if id is not None:
        return id
    digest.update(content)
    return digest.hexdigest().encode()


def _is_binary(content: bytes) -> bool:
    return b"\0" in content[:_LOOKED_AT]


# The lines before the content


def _header(change: Change, old_id: bytes, new_id: bytes, similarity: int) -> bytes:
    source = change.old_path or change.path
    lines = [b"diff --git %b %b" % (quoted(b"a/" + source), quoted(b"b/" + change.path))]
    old_mode, new_mode = change.old_mode, change.new_mode
    if old_mode is None:
        lines.append(b"new file mode %06o" % (new_mode or 0))
    elif new_mode is None:
        lines.append(b"deleted file mode %06o" % old_mode)
    elif old_mode != new_mode:
        lines += [b"old mode %06o" % old_mode, b"new mode %06o" % new_mode]
    if change.kind == RENAMED:
        lines.append(b"similarity index %d%%" % similarity)
        lines += [b"rename from " + quoted(source), b"rename to " + quoted(change.path)]
    if old_id != new_id:
        same_mode = b" %06o" % old_mode if old_mode and old_mode == new_mode else b""
        lines.append(b"index %b..%b%b" % (old_id, new_id, same_mode))
    return b"\n".join(lines) + b"\n"


def quoted(name: bytes) -> bytes:
    """A file name as git's patches write it: in C's string syntax where a byte needs that."""
    if not _QUOTED.search(name):
        return name
    return b'"%b"' % _QUOTED.sub(lambda found: _escaped(found[0][0]), name)


def _escaped(byte: int) -> bytes:
    return b"\\%c" % _ESCAPES[byte] if byte in _ESCAPES else b"\\%03o" % byte


def _side(prefix: bytes, path: bytes, mode: int | None) -> bytes:
    """A name after ``---`` or ``+++``; a tab marks the end of one that has spaces."""
    if mode is None:
        return b"/dev/null"
    return quoted(prefix + path) + (b"\t" if b" " in path else b"")


# Binary files


def _binary_patch(old: bytes, new: bytes) -> bytes:
    """Both sides in full, so that the patch can be applied and reversed."""
    return b"GIT binary patch\n" + _literal(new) + _literal(old)


def _literal(content: bytes) -> bytes:
    """Deflated, in lines of 52 bytes: a letter for the length (A-Z 1-26, a-z 27-52), then base 85."""
    import zlib
    from base64 import b85encode

    deflated = zlib.compress(content)
    lines = [b"literal %d" % len(content)]
    for at in range(0, len(deflated), 52):
        piece = deflated[at : at + 52]
        length = len(piece) + (64 if len(piece) <= 26 else 70)
        lines.append(b"%c%b" % (length, b85encode(piece, pad=True)))
    return b"\n".join(lines) + b"\n\n"


# Text


def _text_patch(change: Change, old: bytes, new: bytes) -> tuple[bytes, int, int, int]:
    """The hunks, with how many lines are new, how many are gone, and how many bytes stay."""
    if old == new:
        return b"", 0, 0, len(old)
    a, b = _LINE.findall(old), _LINE.findall(new)
    regions = changed_regions(a, b)
    out = [
        b"--- %b\n" % _side(b"a/", change.old_path or change.path, change.old_mode),
        b"+++ %b\n" % _side(b"b/", change.path, change.new_mode),
    ]
    for group in _grouped(regions):
        out += _hunk(group, a, b)
    deleted = sum(len(line) for i1, i2, _, _ in regions for line in a[i1:i2])
    additions = sum(j2 - j1 for _, _, j1, j2 in regions)
    deletions = sum(i2 - i1 for i1, i2, _, _ in regions)
    return b"".join(out), additions, deletions, len(old) - deleted


def _grouped(regions: list[_Region]) -> Iterator[list[_Region]]:
    """Regions that are near enough to share a hunk."""
    group: list[_Region] = []
    for region in regions:
        if group and region[0] - group[-1][1] > 2 * CONTEXT_LINES:
            yield group
            group = []
        group.append(region)
    if group:
        yield group


def _hunk(group: list[_Region], a: Sequence[bytes], b: Sequence[bytes]) -> Iterator[bytes]:
    before = min(CONTEXT_LINES, group[0][0])
    after = min(CONTEXT_LINES, len(a) - group[-1][1])
    first_a, end_a = group[0][0] - before, group[-1][1] + after
    first_b, end_b = group[0][2] - before, group[-1][3] + after
    yield b"@@ -%b +%b @@\n" % (_range(first_a, end_a), _range(first_b, end_b))
    at = first_a
    for i1, i2, j1, j2 in group:
        yield from _marked(b" ", a[at:i1])
        yield from _marked(b"-", a[i1:i2])
        yield from _marked(b"+", b[j1:j2])
        at = i2
    yield from _marked(b" ", a[at:end_a])


def _range(start: int, end: int) -> bytes:
    """Lines count from 1; an empty range is named by the line before it."""
    if end - start == 1:
        return b"%d" % (start + 1)
    return b"%d,%d" % (start + 1 if end > start else start, end - start)


def _marked(mark: bytes, lines: Sequence[bytes]) -> Iterator[bytes]:
    for line in lines:
        yield mark
        yield line
        if not line.endswith(b"\n"):
            yield b"\n\\ No newline at end of file\n"


# Matching lines


def changed_regions(a: Sequence[bytes], b: Sequence[bytes]) -> list[_Region]:
    """Find where two sequences of lines differ.

    Lines that are unique on both sides are matched first (Bram Cohen's patience diff), what lies
    between them by the shortest edit script (Myers, "An O(ND) Difference Algorithm", 1986). Python's
    difflib takes quadratic time on large files; here the work is bounded, and what it does not reach
    is replaced whole.

    Returns:
        (start in a, end in a, start in b, end in b) of each region that differs, in order.
    """
    return list(_Matcher(a, b).differing())


class _Matcher:
    """Compares two files once; lines are small numbers from here on."""

    def __init__(self, a: Sequence[bytes], b: Sequence[bytes]) -> None:
        numbers: dict[bytes, int] = {}
        self.a = [numbers.setdefault(line, len(numbers)) for line in a]
        self.b = [numbers.setdefault(line, len(numbers)) for line in b]
        self.work = _WORK

    def differing(self) -> Iterator[_Region]:
        """The regions that differ, in order."""
        todo = [(0, len(self.a), 0, len(self.b))]
        while todo:
            region = self._trimmed(*todo.pop())
            i1, i2, j1, j2 = region
            if i1 == i2 or j1 == j2:
                if i1 != i2 or j1 != j2:
                    yield region
            elif unique := self._unique_pairs(region):
                todo += reversed(list(_gaps(unique, region)))
            else:
                yield from _gaps(self._shortest_script(region), region)

    def _trimmed(self, i1: int, i2: int, j1: int, j2: int) -> _Region:
        """Without the lines that are equal at both ends."""
        a, b = self.a, self.b
        while i1 < i2 and j1 < j2 and a[i1] == b[j1]:
            i1, j1 = i1 + 1, j1 + 1
        while i1 < i2 and j1 < j2 and a[i2 - 1] == b[j2 - 1]:
            i2, j2 = i2 - 1, j2 - 1
        return i1, i2, j1, j2

    def _unique_pairs(self, region: _Region) -> list[tuple[int, int]]:
        """Lines that are unique on both sides, in the longest order that both sides share."""
        i1, i2, j1, j2 = region
        self.work -= i2 - i1 + j2 - j1
        if self.work < 0:
            return []
        counts = Counter(self.b[j1:j2])
        places = {line: j for j, line in enumerate(self.b[j1:j2], j1) if counts[line] == 1}
        counts = Counter(self.a[i1:i2])
        pairs = [
            (i, places[line])
            for i, line in enumerate(self.a[i1:i2], i1)
            if counts[line] == 1 and line in places
        ]
        return _longest_rising(pairs)

    def _shortest_script(self, region: _Region) -> list[tuple[int, int]]:
        """The equal lines of a shortest edit script; none when it would be too long to look for."""
        i1, i2, j1, j2 = region
        a, b = self.a[i1:i2], self.b[j1:j2]
        if set(a).isdisjoint(b):
            return []
        furthest = {1: 0}
        trace: list[dict[int, int]] = []
        allowed = min(self.work, _WORK_PER_REGION)
        for edits in range(len(a) + len(b) + 1):
            allowed -= edits + 1
            self.work -= edits + 1
            if allowed < 0:
                return []
            trace.append(furthest.copy())
            if _extend(furthest, edits, a, b):
                return [(i1 + x, j1 + y) for x, y in _walk_back(trace, len(a), len(b))]
        raise AssertionError("deleting and inserting everything is an edit script")


def _gaps(pairs: Iterable[tuple[int, int]], region: _Region) -> Iterator[_Region]:
    """What lies between matched lines."""
    i1, i2, j1, j2 = region
    for i, j in [*pairs, (i2, j2)]:
        if i1 < i or j1 < j:
            yield i1, i, j1, j
        i1, j1 = i + 1, j + 1


def _longest_rising(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The longest part of the pairs whose second numbers rise; the first ones do already."""
    tops: list[int] = []
    ends: list[int] = []
    before: list[int] = []
    for index, (_, j) in enumerate(pairs):
        at = bisect_left(tops, j)
        before.append(ends[at - 1] if at else -1)
        tops[at : at + 1] = [j]
        ends[at : at + 1] = [index]
    chosen = []
    index = ends[-1] if ends else -1
    while index >= 0:
        chosen.append(pairs[index])
        index = before[index]
    return chosen[::-1]


def _extend(furthest: dict[int, int], edits: int, a: list[int], b: list[int]) -> bool:
    """One step of Myers' algorithm: the furthest x on each diagonal; True when both ends are met."""
    n, m = len(a), len(b)
    for k in range(-edits, edits + 1, 2):
        x = furthest[k + 1] if _goes_down(furthest, k, edits) else furthest[k - 1] + 1
        y = x - k
        while x < n and y < m and a[x] == b[y]:
            x, y = x + 1, y + 1
        furthest[k] = x
        if x >= n and y >= m:
            return True
    return False


def _goes_down(furthest: dict[int, int], k: int, edits: int) -> bool:
    """Whether diagonal ``k`` is reached by an insertion rather than by a deletion."""
    return k == -edits or (k != edits and furthest[k - 1] < furthest[k + 1])


def _walk_back(trace: list[dict[int, int]], x: int, y: int) -> list[tuple[int, int]]:
    """The matched lines on the way that the steps took to (x, y), in order."""
    pairs = []
    for edits in range(len(trace) - 1, -1, -1):
        furthest, k = trace[edits], x - y
        k += 1 if _goes_down(furthest, k, edits) else -1
        start_x, start_y = furthest[k], furthest[k] - k
        while x > start_x and y > start_y:
            x, y = x - 1, y - 1
            pairs.append((x, y))
        x, y = start_x, start_y
    return pairs[::-1]
