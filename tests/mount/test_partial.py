"""Large captured files come up in parts: what is shown is right at every step, and little is copied."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path as HostPath

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from heddle.mount import mend
from heddle.mount import upper as up
from heddle.mount.lower import FRAME
from heddle.mount.marked import marked_ids
from heddle.mount.partial import Partial
from heddle.mount.shell import AttrUpdate, Caller
from mount.base import OpenThread, captured
from mount.places import outcome
from mount.test_core_failures import failing

SIZE = 6 * FRAME + 12_345
LARGE = (b"large",)
ID = b"1" * 40


def pattern(size: int) -> bytes:
    """Bytes that differ from place to place."""
    line = b"".join(b"%015d\n" % number for number in range(4096))
    return (line * (size // len(line) + 1))[:size]


CONTENT = b"".join(
    hashlib.sha256(b"%d" % number).digest() + pattern(FRAME)[32:] for number in range(7)
)[:SIZE]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> HostPath:
    """A repository whose state holds a file of some frames."""
    place = tmp_path_factory.mktemp("partial") / "repo"
    captured(place, {LARGE: CONTENT}).close()
    return place


@pytest.fixture
def thread(template: HostPath, tmp_path: HostPath) -> Iterator[OpenThread]:
    opened = opened_copy(template, tmp_path / "repo")
    yield opened
    opened.close()


def opened_copy(template: HostPath, place: HostPath) -> OpenThread:
    subprocess.run(["cp", "-a", template, place], check=True)
    return OpenThread(place)


def write(thread: OpenThread, offset: int, data: bytes) -> None:
    thread.view.open(1, LARGE, os.O_RDWR)
    thread.view.write(1, offset, data)
    thread.view.close(1)


def real_size(thread: OpenThread) -> int:
    """Bytes that the real file takes on the disk."""
    assert thread.core.upper is not None
    return os.stat(b"large", dir_fd=thread.core.upper.root).st_blocks * 512


def changed(data: bytes, offset: int, new: bytes) -> bytes:
    data = data.ljust(offset, b"\0")
    return data[:offset] + new + data[offset + len(new) :]


@pytest.mark.parametrize("offset", [0, 3 * FRAME + 5, SIZE - 1])
def test_a_byte_costs_a_unit(thread: OpenThread, offset: int) -> None:
    """Changing a byte of a large captured file reads, copies and keeps one unit of it."""
    before = thread.core.lower.frames_decoded
    write(thread, offset, b"\xff")

    assert thread.core.lower.frames_decoded == before + 1
    assert real_size(thread) <= FRAME + 64 * 1024
    assert thread.view.content(LARGE) == changed(CONTENT, offset, b"\xff")


def test_opening_costs_nothing(thread: OpenThread) -> None:
    """A large file that is opened for writing and not written stays where it is."""
    thread.view.open(1, LARGE, os.O_RDWR)

    assert thread.core.lower.frames_decoded == 0
    assert real_size(thread) < 64 * 1024
    assert thread.status() == {}


def test_a_write_across_units(thread: OpenThread) -> None:
    """A write over the border of two units brings up both, and they are right around it."""
    write(thread, 2 * FRAME - 3, b"abcdef")

    assert thread.view.content(LARGE) == changed(CONTENT, 2 * FRAME - 3, b"abcdef")


def test_the_end_is_not_what_was_cut_off(thread: OpenThread) -> None:
    """A file cut short and made longer again has zeros where its captured bytes were."""
    cut = 2 * FRAME + 100
    thread.view.truncate(LARGE, cut)
    thread.reopen()
    assert thread.view.content(LARGE) == CONTENT[:cut]
    thread.view.truncate(LARGE, SIZE)
    thread.reopen()

    assert thread.view.content(LARGE) == CONTENT[:cut] + bytes(SIZE - cut)


def test_a_write_behind_a_cut(thread: OpenThread) -> None:
    """A write behind the end of a file that was cut short leaves zeros between, whatever was captured there."""
    cut = 3 * FRAME + 100
    thread.view.truncate(LARGE, cut)
    write(thread, cut + 50, b"x")

    assert thread.view.content(LARGE) == CONTENT[:cut] + bytes(50) + b"x"


def test_nothing_left_to_copy(thread: OpenThread) -> None:
    """A file that was written over from end to end is an ordinary file, and copied no unit twice."""
    for offset in range(0, SIZE, 128 << 10):
        write(thread, offset, bytes([offset >> 17 & 255]) * min(128 << 10, SIZE - offset))
    marks = thread.core.nodes[thread.view.walk(LARGE).ino].marks  # type: ignore[attr-defined]

    assert marks.under is None
    assert thread.core.lower.frames_decoded == 7


def test_times_stay(thread: OpenThread) -> None:
    """Bringing up units is not to be seen: after a write that failed the times are as they were."""
    before = thread.view.walk(LARGE)
    thread.view.open(1, LARGE, os.O_RDWR)
    thread.core.end_copy(*started(thread))
    after = thread.view.walk(LARGE)

    assert (before.mtime_ns, before.ctime_ns) == (after.mtime_ns, after.ctime_ns)
    assert thread.status() == {}


def started(thread: OpenThread) -> tuple[object, int]:
    node = thread.core.nodes[thread.view.walk(LARGE).ino]
    partial, units, fd = thread.core.start_copy(node, 10, 20)  # type: ignore[arg-type]
    partial.copy(thread.core.lower.read, fd, units)
    os.close(fd)
    return node, units


def test_a_hole_is_not_shown(thread: OpenThread) -> None:
    """Programs that take few blocks for a sparse file are told of all that the file shows."""
    write(thread, 0, b"x")

    assert thread.view.walk(LARGE).blocks >= SIZE // 512


@pytest.mark.parametrize("prestore", [False, True])
def test_capture_of_parts(thread: OpenThread, prestore: bool) -> None:
    """A capture stores the whole file as it is shown, and changes nothing that is seen."""
    write(thread, FRAME, b"changed")
    write(thread, SIZE, b"longer")
    expected = changed(CONTENT, FRAME, b"changed") + b"longer"
    result = thread.capture(prestore=prestore)
    entry = thread.repo.store.tree_entries(result.state.tree)[0]
    stored = thread.repo.store.get_raw(entry[2])[1]

    assert stored == expected
    assert thread.view.content(LARGE) == expected
    assert thread.status() == {}
    thread.reopen()
    assert thread.status() == {}
    write(thread, 5, b"again")
    assert thread.status() == {b"large": "modified"}
    assert thread.view.content(LARGE) == changed(expected, 5, b"again")


steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, SIZE + FRAME), st.binary(min_size=1)),
        st.tuples(st.just("truncate"), st.integers(0, SIZE + FRAME), st.just(b"")),
        st.tuples(st.sampled_from(["capture", "reopen", "replace"]), st.just(0), st.just(b"")),
    ),
    min_size=1,
    max_size=8,
)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps)
def test_any_changes(
    template: HostPath,
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[str, int, bytes]],
) -> None:
    """Whatever is written and cut, over captures and remounts, a large file holds what a plain one would."""
    thread = opened_copy(template, tmp_path_factory.mktemp("any") / "repo")
    expected = CONTENT
    for kind, offset, data in steps:
        if kind == "write":
            write(thread, offset, data)
            expected = changed(expected, offset, data)
        elif kind == "truncate":
            thread.view.truncate(LARGE, offset)
            expected = expected[:offset].ljust(offset, b"\0")
        elif kind == "replace":
            thread.view.open(1, LARGE, os.O_RDWR | os.O_TRUNC)
            thread.view.close(1)
            expected = b""
        elif kind == "reopen":
            thread.reopen()
        else:
            outcome_of_capture(thread)
        assert thread.view.content(LARGE) == expected
    thread.reopen()
    assert thread.view.content(LARGE) == expected
    thread.close()


def outcome_of_capture(thread: OpenThread) -> None:
    if thread.status():
        thread.capture()


CHANGES: dict[str, Callable[[OpenThread], object]] = {
    "write": lambda thread: write(thread, FRAME + 5, b"new"),
    "truncate": lambda thread: thread.view.truncate(LARGE, 3 * FRAME + 9),
    "grow": lambda thread: thread.view.truncate(LARGE, SIZE + 5),
    "chmod": lambda thread: thread.view.core.set_attrs(
        thread.view.walk(LARGE).ino, AttrUpdate(mode=0o755), Caller(0, 0)
    ),
}


@pytest.mark.parametrize("first", [None, "write", "truncate"])
@pytest.mark.parametrize("name", CHANGES)
def test_no_step_leaves_half_a_change(
    template: HostPath,
    tmp_path: HostPath,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    first: str | None,
) -> None:
    """Whichever step of a change fails, the file is as before or after, and the disk says the same."""

    def attempt(number: int) -> tuple[OpenThread, int, bytes, object]:
        thread = opened_copy(template, tmp_path / str(number))
        if first is not None:
            CHANGES[first](thread)
        before = thread.view.content(LARGE)
        with failing(number, errno.ENOSPC, monkeypatch) as counted:
            got = outcome(CHANGES[name], thread)
        return thread, counted.count, before, got

    thread, count, _, _ = attempt(0)
    after = thread.view.content(LARGE)
    thread.close()
    assert count > 0
    for number in range(1, count + 1):
        thread, _, before, _ = attempt(number)
        seen = thread.view.content(LARGE)
        assert seen in (before, after), number
        for handle in list(thread.view.handles):
            thread.view.close(handle)
        thread.reopen()
        assert thread.view.content(LARGE) == seen, number
        thread.close()


# the map


def test_maps_come_back() -> None:
    """A map is read back from its words, and stays small enough for a file system that allows 4 KiB."""
    for size in (5 << 20, 8 << 30, 1 << 40):
        full = Partial.of(ID, size)
        half = full.with_units((1 << 8192) // 3)
        assert half is not None
        assert Partial.decode(half.encode()) == half
        assert len(half.encode()) < 3000


@pytest.mark.parametrize(
    "text", [b"x", ID + b":1:2:3", ID + b":5:1048576:g", b"g" * 40 + b":5:1048576:1"]
)
def test_damaged_maps_are_refused(text: bytes) -> None:
    """A map that nobody could have written is an error."""
    with pytest.raises(ValueError):
        Partial.decode(text)


def test_who_goes_on_gets_more() -> None:
    """Units are copied in growing runs for a writer who changes one after the other, and singly at random."""
    partial = Partial.of(ID, 100 * FRAME)
    copied = []
    for number in range(40):
        units = partial.to_copy(number * FRAME, 1)
        if units:
            copied.append(units.bit_count())
            more = partial.with_units(units)
            assert more is not None
            partial = more

    assert copied == [1, 2, 4, 8, 16, 17]
    assert partial.to_copy(90 * FRAME, 1).bit_count() == 1


# what relies on it


def test_collecting_keeps_what_is_shown(thread: OpenThread) -> None:
    """The blob that a file still has parts of is among those that an overlay names."""
    blob = thread.core.nodes[thread.view.walk(LARGE).ino].blob  # type: ignore[attr-defined]
    write(thread, FRAME, b"changed")

    assert list(marked_ids(thread.repo.heddle_dir / "overlays")).count(blob) == 1


def flaws(thread: OpenThread, *, full: bool = False) -> list[str]:
    assert thread.overlay._directory is not None
    found = mend.flaws(thread.overlay._directory, thread.repo.store, full=full)
    return [flaw.kind for flaw in found]


def test_a_file_in_parts_is_checked_as_shown(thread: OpenThread) -> None:
    """A full check of an overlay reads what a file shows, not the holes in it."""
    write(thread, FRAME, b"changed")
    thread.capture()

    assert flaws(thread, full=True) == []


def test_a_damaged_map_is_found(thread: OpenThread) -> None:
    """A map with a flipped bit is never believed: the file is refused, and a check names it."""
    write(thread, FRAME, b"changed")
    assert thread.core.upper is not None
    where = up.entry_path(thread.core.upper.root, b"large")
    value = os.getxattr(where, up.MARKS)
    os.setxattr(where, up.MARKS, value.replace(b":1048576:2", b":1048576:6"))
    thread.reopen()

    assert flaws(thread) == ["marks"]
    with pytest.raises(up.Damaged):
        thread.view.content(LARGE)
