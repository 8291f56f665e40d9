"""The upper's own words on disk: marks, whiteouts, and changes of one name in one step."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heddle.mount import upper as up
from heddle.mount.upper import Marks, Upper

BLOB = b"0123456789abcdef" * 2 + b"01234567"


@pytest.fixture
def upper(tmp_path: Path) -> Iterator[Upper]:
    upper = Upper(tmp_path, widen=False)
    yield upper
    upper.close()


def write(directory: int, name: bytes, content: bytes = b"x") -> None:
    fd = os.open(name, os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=directory)
    os.write(fd, content)
    os.close(fd)


def kind(directory: int, name: bytes) -> str:
    """What stands at a name."""
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return "nothing"
    if up.is_whiteout(status):
        return "whiteout"
    return "directory" if stat.S_ISDIR(status.st_mode) else "file"


# marks

numbers = st.none() | st.integers(0, 2**64 - 1)
ids = st.sampled_from([BLOB, b"ab" * 32])


@st.composite
def all_marks(draw: st.DrawFn) -> Marks:
    marks = Marks(
        ino=draw(numbers),
        time_ns=draw(numbers),
        mode=draw(st.none() | st.integers(0, 0o7777)),
        lower=draw(st.none() | ids),
        ctime_ns=draw(numbers),
    )
    content = draw(st.sampled_from(["blob", "stored", None]))
    if content is not None:
        marks = marks._replace(**{content: draw(ids)}, size=draw(st.integers(0, 2**63)))
    if content is not None or marks.ctime_ns is not None:
        marks = marks._replace(mtime_ns=draw(st.integers(-(2**63), 2**63)))
    return marks


@given(all_marks())
def test_marks_come_back(marks: Marks) -> None:
    """Whatever marks say is read back from their bytes."""
    value = marks.encode()

    assert (Marks.decode(value) if value else Marks()) == marks


DAMAGED = [
    b"ino=x",
    b"mode=9",
    b"blob=abc size=1 mtime=1",
    b"blob=" + b"g" * 40 + b" size=1 mtime=1",
    b"new=1",
    b"ino",
    b"lower=../../etc",
]


@pytest.mark.parametrize("value", DAMAGED)
def test_damaged_marks_are_an_error(upper: Upper, value: bytes) -> None:
    """Marks that nobody could have written make the file an error that says where it is, checksum or not."""
    write(upper.root, b"f")
    where = up.entry_path(upper.root, b"f")
    for damaged in (value, b"%s sum=%08x" % (value, crc32(value))):
        os.setxattr(where, up.MARKS, damaged)

        with pytest.raises(up.Damaged, match=r"user\.heddle\.node of .*/upper/f is damaged"):
            up.read_marks(where)


@given(marks=all_marks(), position=st.integers(0, 1 << 20), bit=st.integers(0, 7))
def test_any_flipped_bit_of_marks_is_found(marks: Marks, position: int, bit: int) -> None:
    """No flipped bit makes other marks of marks: they are refused."""
    value = bytearray(marks.encode())
    if value:
        value[position % len(value)] ^= 1 << bit
        with pytest.raises(ValueError, match="checksum"):
            Marks.decode(bytes(value))


def test_a_damaged_opaque_mark_is_an_error(upper: Upper) -> None:
    """A directory that may hide its lower, or not, shows neither."""
    os.setxattr(upper.root, up.OPAQUE, b"x")

    with pytest.raises(up.Damaged, match="opaque"):
        up.is_opaque(upper.root)


def test_marks_on_disk(upper: Upper) -> None:
    """Marks are written and read by path and by descriptor; saying nothing removes them."""
    write(upper.root, b"f")
    where = up.entry_path(upper.root, b"f")
    assert up.read_marks(where) is None
    up.write_marks(where, Marks(ino=77))
    fd = os.open(b"f", os.O_RDONLY, dir_fd=upper.root)
    found = up.read_marks(fd)
    assert found is not None and found.ino == 77
    up.write_marks(fd, Marks())
    up.write_marks(where, Marks())
    os.close(fd)

    assert os.listxattr(where) == []


# whiteouts


def test_whiteout_of_an_absent_name(upper: Upper) -> None:
    """A deletion of what only the lower has is one entry; all share an inode."""
    for name in (b"a", b"b", b"c"):
        upper.white_out(upper.root, name, replace=False)

    assert [kind(upper.root, name) for name in (b"a", b"b", b"c")] == ["whiteout"] * 3
    assert len({os.stat(name, dir_fd=upper.root).st_ino for name in (b"a", b"b", b"c")}) == 1


def test_whiteout_over_a_file_and_a_directory(upper: Upper) -> None:
    """A deletion takes the place of a file, and of a directory with whatever is in it."""
    write(upper.root, b"f")
    os.makedirs(up.entry_path(upper.root, b"d/e/f"))
    upper.white_out(upper.root, b"d/e".partition(b"/")[0], replace=True)
    upper.white_out(upper.root, b"f", replace=True)

    assert [kind(upper.root, name) for name in (b"d", b"f")] == ["whiteout"] * 2
    assert [name for name in os.listdir(upper.work) if not name.startswith("whiteout")] == []


def test_whiteouts_go_on_after_the_shared_one_is_gone(upper: Upper) -> None:
    """A cleared work directory, or a full link count, costs a new shared whiteout and nothing else."""
    upper.white_out(upper.root, b"a", replace=False)
    for name in os.listdir(upper.work):
        os.unlink(name, dir_fd=upper.work)
    upper.white_out(upper.root, b"b", replace=False)

    assert kind(upper.root, b"b") == "whiteout"


# names, one step each


def test_rename_leaves_a_whiteout(upper: Upper) -> None:
    """A move can leave a deletion behind."""
    write(upper.root, b"old")
    upper.rename(upper.root, b"old", upper.root, b"new", whiteout=True)

    assert [kind(upper.root, name) for name in (b"old", b"new")] == ["whiteout", "file"]


def test_rename_leaves_a_whiteout_where_the_kernel_can_not(
    upper: Upper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File systems without RENAME_WHITEOUT get there in two steps."""

    def refuse(*_: object) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(up, "renameat2", refuse)
    write(upper.root, b"old")
    upper.rename(upper.root, b"old", upper.root, b"new", whiteout=True)

    assert [kind(upper.root, name) for name in (b"old", b"new")] == ["whiteout", "file"]


def test_publish_replaces_whatever_is_there(upper: Upper) -> None:
    """A finished file takes the place of a file or of a whiteout; a finished directory that of a whiteout."""
    write(upper.root, b"f", b"old")
    upper.white_out(upper.root, b"w", replace=False)
    upper.white_out(upper.root, b"d", replace=False)
    for number, name in enumerate((b"f", b"w")):
        write(upper.work, b"t%d" % number, b"new")
        upper.publish(b"t%d" % number, upper.root, name)
    os.mkdir(b"td", dir_fd=upper.work)
    upper.publish_directory(b"td", upper.root, b"d")
    os.mkdir(b"te", dir_fd=upper.work)
    upper.publish_directory(b"te", upper.root, b"e")

    assert Path(os.fsdecode(up.entry_path(upper.root, b"f"))).read_bytes() == b"new"
    assert [kind(upper.root, n) for n in (b"f", b"w", b"d", b"e")] == ["file", "file"] + [
        "directory"
    ] * 2


def test_staged_leaves_nothing_after_an_error(upper: Upper) -> None:
    """What was half made when something failed is removed."""
    with pytest.raises(ZeroDivisionError), upper.staged() as name:
        os.makedirs(up.entry_path(upper.work, name + b"/deep/er"))
        raise ZeroDivisionError

    assert os.listdir(upper.work) == []


def test_opening_clears_what_a_crash_left(tmp_path: Path) -> None:
    """Half-made things of an earlier session are gone when the upper is opened; the tree stays."""
    first = Upper(tmp_path, widen=False)
    write(first.root, b"kept")
    os.makedirs(up.entry_path(first.work, b"t1/with/things"))
    write(first.work, b"t2")
    first.close()
    second = Upper(tmp_path, widen=False)

    assert os.listdir(second.work) == []
    assert os.listdir(second.root) == ["kept"]
    second.close()


def test_remove_tree_is_not_limited_by_depth(upper: Upper) -> None:
    """A tree whose paths are far longer than PATH_MAX, with colliding names, is removed."""
    fd = os.dup(upper.work)
    for _ in range(40):
        name = b"d" * 200
        os.mkdir(name, dir_fd=fd)
        write(fd, b"file")
        os.mkdir(b".up1", dir_fd=fd)
        inner = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    up.remove_tree(upper.work, b"d" * 200)
    up.remove_tree(upper.work, b"absent")

    assert sorted(os.listdir(upper.work)) == [".up1", "file"]


@pytest.mark.parametrize("mode", [0o644, 0o400, 0, 0o4755])
def test_widened_modes_keep_the_owner_in(tmp_path: Path, mode: int) -> None:
    """For a session that is not root's the real file stays readable and writable to it; for root's it is as shown."""
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
    ordinary, root = Upper(tmp_path / "1", widen=True), Upper(tmp_path / "2", widen=False)

    assert ordinary.real_mode(mode) == mode | 0o600
    assert ordinary.real_mode(mode, directory=True) == mode | 0o700
    assert root.real_mode(mode) == root.real_mode(mode, directory=True) == mode
    ordinary.close()
    root.close()
