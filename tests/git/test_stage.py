"""What git's index says of files is believed where git itself would believe it, and nowhere else."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from world import wait_until

import heddle
from heddle import api
from heddle.repo import checkin
from heddle.repo.gitstage import unchanged
from heddle.repo.statcache import is_settled

from .conftest import Git, run_git


def settle(checkout: Path, git: Git) -> None:
    """Have the index written later than any file's time, as it is when some time has passed."""
    for path in checkout.rglob("*"):
        if path.is_file() and ".git" not in path.relative_to(checkout).parts:
            os.utime(path, (1_600_000_000, 1_600_000_000))
    git("update-index", "-q", "--refresh")


def asked(checkout: Path, git: Git, *names: str) -> set[str]:
    """Which of these files, all tracked in HEAD, are believed to be what HEAD says."""
    files = [
        (
            os.fsencode(name),
            os.lstat(checkout / name),
            bytes.fromhex(git("rev-parse", f":0:{name}")),
        )
        for name in names
    ]
    length = len(files[0][2])
    return {os.fsdecode(path) for path in unchanged(checkout / ".git" / "index", files, length)}


@pytest.mark.parametrize("object_format", ["sha1", "sha256"])
@pytest.mark.parametrize(("extended", "version"), [(False, 2), (True, 3), (False, 4), (True, 4)])
def test_every_entry_is_found(
    tmp_path: Path, git: Git, object_format: str, extended: bool, version: int
) -> None:
    """In every version, with names that are parts of each other, exactly what was touched is not believed."""
    path = tmp_path / "work"
    run_git(tmp_path, "init", "-q", f"--object-format={object_format}", path)
    names = [*"abcefgh", *(f"{'d' * n}/a" for n in range(1, 90)), "x/d/a", "x" * 200, "ü"]
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(name)
    git("add", ".")
    if extended:
        (path / "later").touch()
        git("add", "--intent-to-add", "later")
    if version == 4:
        git("update-index", "--index-version=4")
    settle(path, git)
    os.utime(path / "c")
    (path / "d/a").chmod(0o600)  # another ctime

    assert (path / ".git/index").read_bytes()[7] == version
    assert asked(path, git, *names) == {*names} - {"c", "d/a"}
    found = unchanged(path / ".git/index", [(b"d/aa", os.lstat(path / "a"), bytes(20))], 20)
    assert found == set()


@pytest.mark.parametrize("version", [2, 4])
def test_a_large_index(tmp_path: Path, git: Git, version: int) -> None:
    """An index that git writes in blocks, by several threads, is read across their ends."""
    path = tmp_path / "work"
    run_git(tmp_path, "init", "-q", path)
    names = [f"{number % 7}/{number}" for number in range(12_000)]
    for name in names:
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).touch()
    git("config", "index.threads", "4")
    git("add", ".")
    git("update-index", f"--index-version={version}")
    settle(path, git)
    index = path / ".git/index"
    blob = bytes.fromhex(git("rev-parse", ":0/0"))
    files = [(os.fsencode(name), os.lstat(path / name), blob) for name in names]

    assert b"IEOT" in index.read_bytes()
    assert len(unchanged(index, files, 20)) == len(names)


@pytest.mark.parametrize("version", [2, 4])
def test_a_torn_index(checkout: Path, git: Git, version: int) -> None:
    """Wherever an index ends, what is read of it is what it said."""
    git("update-index", f"--index-version={version}")
    settle(checkout, git)
    index = checkout / ".git" / "index"
    whole, written = index.read_bytes(), index.stat().st_mtime_ns
    names = [b"a.txt", b"b.txt"]
    blobs = [bytes.fromhex(git("rev-parse", f":{os.fsdecode(name)}")) for name in names]
    files = [
        (name, os.lstat(checkout / os.fsdecode(name)), blob)
        for name, blob in zip(names, blobs, strict=True)
    ]
    for length in range(len(whole)):
        index.write_bytes(whole[:length])
        os.utime(index, ns=(written, written))

        assert unchanged(index, files, 20) <= {*names}


def test_what_is_not_believed(checkout: Path, git: Git) -> None:
    """An entry as young as the index, another blob, no index, one in a version that nobody knows: nothing."""
    settle(checkout, git)
    assert asked(checkout, git, "a.txt", "b.txt") == {"a.txt", "b.txt"}
    status, index = os.lstat(checkout / "a.txt"), checkout / ".git" / "index"

    assert unchanged(index, [(b"a.txt", status, b"1" * 20)], 20) == set()
    os.utime(index, ns=(status.st_mtime_ns, status.st_mtime_ns))
    assert asked(checkout, git, "a.txt") == set()
    id = bytes.fromhex(git("rev-parse", ":a.txt"))
    index.write_bytes(index.read_bytes().replace(b"\0\2", b"\0\5", 1))
    assert unchanged(index, [(b"a.txt", status, id)], 20) == set()
    index.write_bytes(b"")
    assert unchanged(index, [(b"a.txt", status, id)], 20) == set()
    index.unlink()
    assert unchanged(index, [(b"a.txt", status, id)], 20) == set()


def test_the_first_status_reads_no_file(
    checkout: Path, git: Git, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a checkout that git finds clean, no file is opened; the second status believes our own cache."""
    settle(checkout, git)
    changed_ns = max(os.lstat(path).st_ctime_ns for path in checkout.iterdir())
    last = (0, 0, 0, changed_ns, 0)
    wait_until(lambda: is_settled(last, time.time_ns()), "the changes to be some time ago")
    read: list[object] = []
    monkeypatch.setattr(checkin, "take", lambda host, *_, **__: read.append(host))
    heddle.init(checkout)

    first = list(heddle.open(checkout).status().changes)
    (checkout / ".git" / "index").unlink()
    second = list(heddle.open(checkout).status().changes)

    assert (first, second, read) == ([], [], [])


@pytest.fixture
def converting(checkout: Path, git: Git) -> api.Repository:
    """A checkout with converted line endings and a filter as git-lfs has one, and heddle on it."""
    git("config", "filter.swap.clean", "sed s/CONTENT/POINTER/")
    git("config", "filter.swap.smudge", "sed s/POINTER/CONTENT/")
    (checkout / ".gitattributes").write_text("*.bat text eol=crlf\n*.bin filter=swap\n")
    (checkout / "run.bat").write_text("one\ntwo\n")
    (checkout / "big.bin").write_text("CONTENT\n")
    git("add", ".")
    git("commit", "-q", "-m", "converted")
    for name in ("run.bat", "big.bin"):
        (checkout / name).unlink()
    git("checkout", "-q", "--", ".")
    settle(checkout, git)
    heddle.init(checkout)
    return heddle.open(checkout)


def test_converted_files_are_not_changes(converting: api.Repository, git: Git) -> None:
    """Files that differ from their blobs only as git's attributes say are unchanged, and captured as they were."""
    path = converting.path
    assert (path / "run.bat").read_bytes() == b"one\r\ntwo\r\n"
    assert (path / "big.bin").read_text() == "CONTENT\n"
    assert list(converting.status().changes) == []
    blobs = git("rev-parse", "HEAD:run.bat", "HEAD:big.bin")
    (path / "other").write_text("other\n")

    converting.capture(message="beside them")

    assert blobs == git("rev-parse", "HEAD:run.bat", "HEAD:big.bin")
    assert git("status", "--porcelain") == ""


def test_files_converted_in_a_mount_are_not_changes(
    converting: api.Repository, tmp_path: Path
) -> None:
    """What git in a mount wrote with conversions is unchanged there, mounted or not, and captured as it was."""
    place = converting.mount("agent", tmp_path / "mnt", create=True).mountpoint
    try:
        for name in ("run.bat", "big.bin"):
            assert (place / name).read_bytes() in (b"one\ntwo\n", b"POINTER\n")
            (place / name).unlink()
        run_git(place, "checkout", "-q", "--", ".")
        for name in ("run.bat", "big.bin"):
            os.utime(place / name, (1_600_000_000, 1_600_000_000))
        run_git(place, "update-index", "-q", "--refresh")
        assert (place / "run.bat").read_bytes() == b"one\r\ntwo\r\n"
        assert (place / "big.bin").read_text() == "CONTENT\n"
        inside = heddle.open(place)
        assert list(inside.status().changes) == []
        (place / "other").write_text("other\n")

        made = inside.capture(message="beside them").state.id.decode()

        blobs = run_git(place, "rev-parse", "main:run.bat", "main:big.bin")
        assert blobs == run_git(place, "rev-parse", f"{made}:run.bat", f"{made}:big.bin")
        assert run_git(place, "status", "--porcelain") == ""
        (place / "run.bat").write_bytes(b"one\r\nTWO\r\n")
        assert [change.path for change in inside.status().changes] == [b"run.bat"]
    finally:
        converting.unmount("agent", force=True)
    converting.capture(thread="agent", message="unmounted")
    changed = run_git(converting.path, "diff", "--name-only", made, "agent")
    assert changed == "run.bat"


def test_a_converted_file_that_changes_is_a_change(converting: api.Repository) -> None:
    """What is written to such a file afterwards is seen."""
    (converting.path / "run.bat").write_bytes(b"one\r\nTWO\r\n")

    assert [change.path for change in converting.status().changes] == [b"run.bat"]
