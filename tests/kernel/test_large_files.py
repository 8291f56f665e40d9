"""Files that are larger than the memory of the session that serves them.

``HEDDLE_LARGE_MIB`` and ``HEDDLE_LARGE_LIMIT_MIB`` set the size and the limit, as 5120 and 512 for a run by hand, and
``HEDDLE_LARGE_CGROUP`` a memory cgroup's directory whose limit then holds for the session.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from heddle import api

MIB = 1 << 20
SIZE_MIB = int(os.environ.get("HEDDLE_LARGE_MIB", "200"))
LIMIT_MIB = int(os.environ.get("HEDDLE_LARGE_LIMIT_MIB", "128"))
LINE = bytes(range(256)) * 16


def pieces() -> Iterator[bytes]:
    """A file's bytes, each MiB another one, every third of them zeros; quick to compress."""
    for number in range(SIZE_MIB):
        yield bytes(MIB) if number % 3 == 2 else ((b"%016d" % number + LINE) * 256)[:MIB]


def write_large(path: Path) -> str:
    digest = hashlib.sha1()
    with open(path, "wb", buffering=0) as file:
        for piece in pieces():
            digest.update(piece)
            view = memoryview(piece)
            while view:
                view = view[file.write(view) :]
    return digest.hexdigest()


def read_large(path: Path) -> str:
    digest = hashlib.sha1()
    with open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while piece := file.read(MIB):
            digest.update(piece)
    return digest.hexdigest()


def confined(mounted: Any) -> Any:
    """A mount whose session is in the cgroup, if there is one."""
    done = mounted("agent-1")
    if "HEDDLE_LARGE_CGROUP" in os.environ:
        (Path(os.environ["HEDDLE_LARGE_CGROUP"]) / "cgroup.procs").write_text(str(done.pid))
    return done


def most_held(pid: int) -> int:
    """The most memory, in MiB, that a process ever held of its own."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) // 1024
    raise AssertionError("no VmHWM")


def test_a_file_larger_than_memory(repo: api.Repository, mounted: Any) -> None:
    """Written, captured, read back, changed and captured again in less memory than it has bytes."""
    done = confined(mounted)
    large = done.mountpoint / "large"
    written = write_large(large)
    first = repo.capture(message="large", thread="agent-1")
    held = most_held(done.pid)
    repo.unmount("agent-1", discard=True)
    done = confined(mounted)
    size = large.stat().st_size
    read = read_large(large)
    with open(large, "r+b", buffering=0) as file:
        file.seek(size // 2)
        file.write(b"!")
    upper = repo.path / ".heddle" / "overlays" / "agent-1" / "upper" / "large"
    copied = upper.stat().st_blocks * 512
    changed = read_large(large)
    second = repo.capture(message="a byte", thread="agent-1")
    again = most_held(done.pid)

    assert (read, changed != read) == (written, True)
    assert (first.added, second.modified) == (1, 1)
    assert copied <= 2 * MIB
    assert max(held, again) < LIMIT_MIB
    assert stored(repo) == changed


def stored(repo: api.Repository) -> str:
    digest = hashlib.sha1()
    _mode, blob = repo.lookup_path("agent-1", b"large")
    for piece in repo.store.iter_blob(blob):
        digest.update(piece)
    return digest.hexdigest()
