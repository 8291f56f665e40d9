"""Many processes on one store, none of which locks out another."""

from __future__ import annotations

import os

import object_processes

from heddle.objects.store import ObjectStore

WRITE = """
import sys
from pathlib import Path
from heddle.objects.store import ObjectStore

store = ObjectStore(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for turn in range(10):
    with store.writer() as writer:
        for number in range(20):
            object_id = writer.add_blob(f"{sys.argv[2]} {turn} {number}".encode())
        writer.commit()
    print(object_id.decode(), turn, flush=True)
"""

READ = """
import sys
from pathlib import Path
from heddle.objects.store import ObjectStore

store = ObjectStore(Path(sys.argv[1]))
print("ready", flush=True)
for line in sys.stdin:
    who, object_id, turn = line.split()
    assert store.get_raw(object_id.encode()) == (3, f"{who} {turn} 19".encode())
    ours = [store.get_raw(each)[1] for each in store]
    seen = [content for content in ours if content.startswith(f"{who} {turn} ".encode())]
    assert len(seen) == 20, seen
print("done")
"""


def test_writers_and_readers_at_once(store: ObjectStore) -> None:
    """Every pack that one of several writers commits is seen whole by readers at once, and none is lost."""
    writers = {
        name: object_processes.start(WRITE, store.path, name) for name in ("a", "b", "c", "d")
    }
    readers = [object_processes.start(READ, store.path) for _ in range(2)]
    for process in [*writers.values(), *readers]:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in writers.values():
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for _ in range(10):
        for name, process in writers.items():
            assert process.stdout is not None
            committed = process.stdout.readline()
            for reader in readers:
                assert reader.stdin is not None
                reader.stdin.write(f"{name} {committed}")
                reader.stdin.flush()
    for process in [*writers.values(), *readers]:
        _, error = process.communicate(timeout=60)
        assert process.returncode == 0, error

    expected = {f"{n} {t} {i}".encode() for n in writers for t in range(10) for i in range(20)}
    assert expected == {store.get_raw(object_id)[1] for object_id in store}
    assert list(store.verify(full=True)) == []


SAME = """
import sys
from pathlib import Path
from heddle.objects.store import ObjectStore

store = ObjectStore(Path(sys.argv[1]))
for turn in range(30):
    writer = store.writer()
    for number in range(5):
        writer.add_blob(f"{turn} {number}".encode())
    print("ready", flush=True)
    sys.stdin.readline()
    print(writer.commit(), flush=True)
"""


def test_identical_packs(store: ObjectStore) -> None:
    """Processes that write the same objects at the same moment make one pack between them."""
    processes = [object_processes.start(SAME, store.path) for _ in range(3)]
    for _ in range(30):
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        names = {process.stdout.readline() for process in processes if process.stdout}
        assert len(names) == 1, names
    for process in processes:
        _, error = process.communicate(timeout=60)
        assert process.returncode == 0, error

    assert len(os.listdir(store.path / "packs")) == 60
    assert len(list(store)) == 150
    assert list(store.verify(full=True)) == []
