"""Writing packs: what goes in comes out, once, whole, and nothing before its time."""

from __future__ import annotations

import hashlib
import io
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import object_processes
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heddle.errors import StorageError
from heddle.objects import output
from heddle.objects.gitformat import BLOB, COMMIT, TAG, TREE
from heddle.objects.layout import FRAME_SIZE, WHOLE_LIMIT
from heddle.objects.pack import ChangedWhileRead
from heddle.objects.store import ObjectStore

LARGE = WHOLE_LIMIT + FRAME_SIZE + 17


def content_of(size: int) -> bytes:
    """Bytes in which no two places look alike, half of them compressible."""
    block = hashlib.sha256(str(size).encode()).digest() * 16
    pieces = [number.to_bytes(8, "big") + block for number in range(size // 520 + 1)]
    return b"".join(pieces)[:size]


@contextmanager
def switching_often() -> Iterator[None]:
    """Let threads take turns at every opportunity, so that races happen that can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


def files(store: ObjectStore) -> list[str]:
    return sorted(os.listdir(store.path / "packs"))


def reopened(store: ObjectStore) -> ObjectStore:
    return ObjectStore(store.path, object_format=store.format_name)


objects = st.lists(
    st.tuples(
        st.sampled_from([BLOB, TREE, COMMIT, TAG]),
        st.one_of(
            st.binary(max_size=300),
            st.builds(
                lambda data, times: data * times, st.binary(max_size=20), st.integers(0, 9000)
            ),
        ),
    ),
    max_size=30,
)


@given(contents=objects, object_format=st.sampled_from(["sha1", "sha256"]))
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, contents: list[tuple[int, bytes]], object_format: str
) -> None:
    """Whatever is added is read back from the pack with its type, its size and git's id."""
    path = tmp_path_factory.mktemp("round") / "objects"
    store = ObjectStore.create(path, object_format=object_format)
    names = {BLOB: b"blob", TREE: b"tree", COMMIT: b"commit", TAG: b"tag"}
    expected = {}
    with store.writer() as writer:
        for type_num, content in contents:
            header = b"%s %d\0" % (names[type_num], len(content))
            object_id = writer.add(type_num, content)
            assert hashlib.new(object_format, header + content).hexdigest() == object_id.decode()
            expected[object_id] = (type_num, content)
        writer.commit()
    store = reopened(store)

    assert expected == {object_id: store.get_raw(object_id) for object_id in store}
    for object_id, (type_num, content) in expected.items():
        assert (type_num, len(content)) == (store.kind(object_id), store.size(object_id))
    assert list(store.verify(full=True)) == []


@pytest.mark.parametrize(
    "size",
    [0, 1, WHOLE_LIMIT - 1, WHOLE_LIMIT, WHOLE_LIMIT + 1, WHOLE_LIMIT + FRAME_SIZE, LARGE],
)
def test_sizes_around_the_limits(store: ObjectStore, size: int) -> None:
    """Content just below, at and above what is stored whole comes back by every way of reading."""
    content = content_of(size)
    with store.writer() as writer:
        object_id = writer.add_blob(content)
        assert (BLOB, content) == writer.get_raw(object_id)
        writer.commit()
    store = reopened(store)

    assert (BLOB, content) == store.get_raw(object_id)
    assert content == b"".join(store.iter_blob(object_id, 100_003))
    assert (size > WHOLE_LIMIT) == store.is_chunked(object_id)
    assert size == store.size(object_id)
    assert list(store.verify(full=True)) == []


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[ObjectStore, bytes, bytes]:
    store = ObjectStore.create(tmp_path_factory.mktemp("large") / "objects")
    content = content_of(LARGE)
    with store.writer() as writer:
        object_id = writer.add_blob_from(io.BytesIO(content).read, LARGE)
        writer.commit()
    return store, object_id, content


@given(
    offset=st.one_of(
        st.integers(0, LARGE + 10), st.integers(0, 5).map(lambda frame: frame * FRAME_SIZE - 1)
    ).filter(lambda offset: offset >= 0),
    size=st.one_of(st.integers(0, 5000), st.integers(0, 3 * FRAME_SIZE)),
)
def test_any_range_of_a_large_blob(
    large: tuple[ObjectStore, bytes, bytes], offset: int, size: int
) -> None:
    """A range of a chunked blob is that range of its content, over frames and past the end."""
    store, object_id, content = large

    assert content[offset : offset + size] == store.read_at(object_id, offset, size)


def test_streamed_and_whole_give_one_object(store: ObjectStore) -> None:
    """A file stored as it is read has the id of its bytes, whatever pieces the reads return."""
    content = content_of(LARGE)
    stream = io.BytesIO(content)
    with store.writer() as writer:
        streamed = writer.add_blob_from(lambda size: stream.read(min(size, 77_777)), LARGE)
        assert writer.count == 1

        assert streamed == writer.add_blob(content)
        assert writer.count == 1


@pytest.mark.parametrize("size", [10, LARGE])
@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_of_another_length_is_refused(store: ObjectStore, size: int, change: int) -> None:
    """A file that turns out shorter or longer than it was said to be leaves nothing in the pack."""
    with store.writer() as writer:
        with pytest.raises(ChangedWhileRead):
            writer.add_blob_from(io.BytesIO(bytes(size + change)).read, size)

        assert None is writer.commit()
    assert files(store) == []


def test_a_failing_read_is_the_callers_own_error(store: ObjectStore) -> None:
    """An OSError of the file that is read stays what it is: the store did not fail."""

    def read(size: int) -> bytes:
        raise PermissionError("no")

    with store.writer() as writer, pytest.raises(PermissionError):
        writer.add_blob_from(read, LARGE)


def test_nothing_is_stored_twice(store: ObjectStore) -> None:
    """An object that a pack, this writer or another writer's commit has is not written again."""
    with store.writer() as writer:
        writer.add_blob(b"one")
        writer.add_blob(b"one")
        assert writer.count == 1
        writer.commit()
    with store.writer() as writer:
        object_id = writer.add_blob(b"one")

        assert None is writer.commit()
    assert object_id in store
    assert len(files(store)) == 2


def test_a_large_file_is_not_stored_twice(store: ObjectStore) -> None:
    """A large object that the store has is hashed, compressed for nothing, and not written again."""
    content = content_of(LARGE)
    with store.writer() as writer:
        object_id = writer.add_blob(content)
        writer.commit()
    with store.writer() as writer:
        assert object_id == writer.add_blob_from(io.BytesIO(content).read, LARGE)
        assert object_id == writer.add_blob(content)

        assert (writer.count, writer.raw_bytes, writer.stored_bytes) == (0, 0, 0)
        assert None is writer.commit()


def test_nothing_is_visible_before_commit(store: ObjectStore) -> None:
    """Others find an object only when the pack is committed, though the writer itself has it."""
    with store.writer() as writer:
        object_id = writer.add_blob(b"one")
        writer.sync()
        assert object_id in writer
        assert object_id not in reopened(store)
        writer.commit()

    assert object_id in reopened(store)
    assert object_id in store


@pytest.mark.parametrize("size", [10, 3 << 20, LARGE])
def test_an_abandoned_writer_leaves_no_file(store: ObjectStore, size: int) -> None:
    """Leaving the block without a commit, by an error or not, removes what was written."""
    with pytest.raises(RuntimeError), store.writer() as writer:
        writer.add_blob(bytes(size))
        writer.add_blob(b"more")
        writer.sync()
        assert files(store) != []
        raise RuntimeError

    assert files(store) == []
    with pytest.raises(ValueError, match="closed"):
        writer.add_blob(b"late")


def test_the_name_is_the_checksum(store: ObjectStore) -> None:
    """A pack is named by the SHA-256 of its bytes, and none of its files can be written to."""
    with store.writer() as writer:
        writer.add_blob(b"one")
        name = writer.commit()
    pack = store.path / "packs" / f"{name}.pack"

    assert hashlib.sha256(pack.read_bytes()).hexdigest() == name
    assert [f"{name}.idx", f"{name}.pack"] == files(store)
    assert 0o444 == pack.stat().st_mode & 0o777 == pack.with_suffix(".idx").stat().st_mode & 0o777


def test_many_threads_feed_one_writer(store: ObjectStore) -> None:
    """Threads adding the same and different objects at once lose none and store each once."""
    contents = [content_of(size) for size in [*range(0, 300_000, 1009), LARGE]]
    errors = []

    def feed(turn: int) -> None:
        try:
            for content in contents[turn:] + contents[:turn]:
                object_id = writer.add_blob(content)
                assert (BLOB, content) == writer.get_raw(object_id)
        except BaseException as error:
            errors.append(error)

    with store.writer() as writer, switching_often():
        threads = [threading.Thread(target=feed, args=(turn,)) for turn in (0, 0, 70, 140)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(contents) == writer.count
        assert sum(map(len, contents)) == writer.raw_bytes
        writer.commit()

    assert errors == []
    assert sorted(contents) == sorted(store.get_raw(object_id)[1] for object_id in reopened(store))


def test_trees_are_gits(store: ObjectStore, git: object) -> None:
    """A tree from entries in any order is byte for byte what git makes of them."""
    assert callable(git)
    git("init", "-q")
    blob = git("hash-object", "-w", "--stdin", input=b"x").strip()
    inner = git("mktree", input=b"100644 blob %s\tb\n" % blob).strip()
    names = [
        (b"a", 0o040000),
        (b"a.b", 0o100644),
        (b"a0", 0o100755),
        (b"a-", 0o120000),
        (b"\xff", 0o100644),
    ]
    entries = [(name, mode, inner if mode == 0o040000 else blob) for name, mode in names]
    lines = [
        b"%06o %s %s\t%s\0" % (mode, b"tree" if mode == 0o040000 else b"blob", object_id, name)
        for name, mode, object_id in entries
    ]
    with store.writer() as writer:
        ours = writer.add_tree(reversed(entries))
        writer.commit()

    assert git("mktree", "-z", input=b"".join(lines)).strip() == ours
    assert sorted(entries) == sorted(store.tree_entries(ours))
    assert git("cat-file", "tree", ours.decode()) == store.get_raw(ours)[1]


@pytest.mark.parametrize("names", [[b""], [b"a/b"], [b"a\0b"], [b"a", b"a"]])
def test_impossible_trees(store: ObjectStore, names: list[bytes]) -> None:
    """A tree with an empty, a nested or a doubled name is refused before it is stored."""
    entries = [
        (name, mode, b"0" * 40) for name, mode in zip(names, [0o100644, 0o040000], strict=False)
    ]
    with store.writer() as writer, pytest.raises(ValueError):
        writer.add_tree(entries)


def test_a_long_pack_goes_to_disk_in_pieces(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written is waited for bit by bit, so that nobody else has to wait for all of it at the end."""
    waited, really_sync = [], os.fdatasync

    def note_and_sync(fd: int) -> None:
        waited.append(os.fstat(fd).st_size)
        really_sync(fd)

    monkeypatch.setattr(output, "SYNC_EVERY", 1 << 20)
    monkeypatch.setattr(os, "fdatasync", note_and_sync)
    with store.writer() as writer:
        for _ in range(40):
            writer.add_blob(os.urandom(200_000))
        writer.commit()

    assert 4 <= len(waited) <= 8
    assert waited == sorted(set(waited))


def test_the_order_of_a_commit(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pack is durable before it has its name, the index before it has its own, the names last."""
    calls: list[str] = []
    fsync, rename = os.fsync, os.rename

    def watch_fsync(fd: int) -> None:
        target = Path(os.readlink(f"/proc/self/fd/{fd}"))
        calls.append(f"fsync {'directory' if target.is_dir() else magic(target)}")
        fsync(fd)

    def watch_rename(source: Path, target: Path) -> None:
        calls.append(f"rename to {target.suffix}")
        rename(source, target)

    def magic(path: Path) -> str:
        return path.read_bytes()[:7].decode()

    monkeypatch.setattr(os, "fsync", watch_fsync)
    monkeypatch.setattr(os, "rename", watch_rename)
    with store.writer() as writer:
        writer.add_blob(b"one")
        writer.commit()

    assert calls == [
        "fsync HDLPACK",
        "rename to .pack",
        "fsync HDLINDX",
        "rename to .idx",
        "fsync directory",
    ]


LIMITED = """
import resource, sys
from pathlib import Path
from heddle.objects.store import ObjectStore

size = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (256 << 20, 256 << 20))
left = size

def read(wanted):
    global left
    data = (left.to_bytes(8, "big") * (wanted // 8 + 1))[: min(wanted, left)]
    left -= len(data)
    return data

store = ObjectStore(Path(sys.argv[1]))
with store.writer() as writer:
    object_id = writer.add_blob_from(read, size)
    writer.commit()
total = sum(len(piece) for piece in store.iter_blob(object_id))
assert total == size == store.size(object_id)
assert not list(store.verify(full=True))
try:
    bytes(size)
except MemoryError:
    print("it would not have fitted")
"""


def test_a_large_file_never_fills_the_memory(store: ObjectStore) -> None:
    """A blob larger than a process may address goes in, out and through fsck, piece by piece."""
    assert object_processes.run(LIMITED, store.path, str(400 << 20)) == "it would not have fitted\n"


FULL = """
import os, resource, signal, sys
from pathlib import Path
from heddle.errors import StorageError
from heddle.objects.store import ObjectStore

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = ObjectStore(Path(sys.argv[1]))
for pieces, size in [(1, 6 << 20), (30, 1 << 20), (1, 2_000_000)]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, -1))
    try:
        with store.writer() as writer:
            for number in range(pieces):
                writer.add_blob(os.urandom(size))
            writer.commit()
    except StorageError as error:
        print(error.message)
    resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
print(sorted(os.listdir(store.path / "packs")))
with store.writer() as writer:
    writer.add_blob(b"there is space again")
    writer.commit()
assert not list(store.verify(full=True))
"""


def test_no_space(store: ObjectStore) -> None:
    """When the file system refuses to grow a file, the error says so and nothing is left behind."""
    out = object_processes.run(FULL, store.path).splitlines()

    assert [f"writing to {store.path}/packs failed: File too large"] * 3 + ["[]"] == out


def test_no_directory(tmp_path: Path) -> None:
    """A store that is not there is an error a user can read, not a traceback."""
    store = ObjectStore(tmp_path / "nowhere")

    with pytest.raises(StorageError, match="No such file or directory"):
        store.get_raw(b"0" * 40)
