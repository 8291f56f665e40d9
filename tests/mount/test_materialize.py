"""A state or an overlay as ordinary files: what is written, what is left alone, and nothing outside."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from heddle import api
from heddle.errors import CannotCreate, DataError, PathNotFound, StorageError, UsageError
from heddle.mount.core import ContentAddressedMount
from heddle.mount.materialize import DestinationConflict
from heddle.mount.overlay import Overlay
from heddle.mount.shell import ROOT, Caller

LARGE = bytes(range(256)) * 4096 * 5 + b"end"  # longer than a whole entry: stored in frames


@pytest.fixture
def full(captured_repo: api.Repository) -> api.Repository:
    """A state with everything a git tree can hold."""
    repo = captured_repo
    (repo.path / "large").write_bytes(LARGE)
    (repo.path / "empty").mkdir()
    (repo.path / "sub" / "deep").mkdir()
    (repo.path / "sub" / "deep" / "up").symlink_to("../../a.txt")
    Path(os.fsdecode(os.fsencode(repo.path) + b"/caf\xe9")).write_bytes(b"\xff\0")
    repo.capture(message="Everything")
    return repo


def shown(root: Path) -> dict[str, Any]:
    """Every path below a directory: type and permission bits, mtime, content."""
    found = {}
    for above, directories, files in os.walk(root):
        for name in [*directories, *files]:
            path = Path(above, name)
            status = path.lstat()
            content: Any = None
            if path.is_symlink():
                content = os.readlink(path)
            elif path.is_file():
                content = path.read_bytes()
            found[str(path.relative_to(root))] = (status.st_mode, status.st_mtime_ns, content)
    return found


@pytest.mark.parametrize("jobs", [1, 4])
def test_a_state(full: api.Repository, tmp_path: Path, jobs: int) -> None:
    """Files, executables, links and directories are written with the modes and the time that a mount shows."""
    done = full.materialize(tmp_path / "out", "HEAD", jobs=jobs)

    when = full.state("HEAD").time_s * 10**9
    found = shown(tmp_path / "out")
    mask = os.umask(0)
    os.umask(mask)
    assert {name: (mode, mtime) for name, (mode, mtime, _) in found.items()} == {
        name: (kind & ~mask if not stat.S_ISLNK(kind) else kind, when)
        for name, kind in {
            "a.txt": stat.S_IFREG | 0o644,
            "run": stat.S_IFREG | 0o755,
            "link": stat.S_IFLNK | 0o777,
            "sub": stat.S_IFDIR | 0o755,
            "sub/b.txt": stat.S_IFREG | 0o644,
            "sub/deep": stat.S_IFDIR | 0o755,
            "sub/deep/up": stat.S_IFLNK | 0o777,
            "empty": stat.S_IFDIR | 0o755,
            "large": stat.S_IFREG | 0o644,
            "caf\udce9": stat.S_IFREG | 0o644,
        }.items()
    }
    assert found["large"][2] == LARGE
    assert found["caf\udce9"][2] == b"\xff\0"
    assert found["sub/deep/up"][2] == "../../a.txt"
    assert (done.state, done.written.files) == (full.resolve("HEAD"), 7)
    assert done.written.bytes == sum(
        len(each[2]) for each in found.values() if isinstance(each[2], bytes)
    )


def test_only_some_paths(full: api.Repository, tmp_path: Path) -> None:
    """With paths, these and what lies below them."""
    full.materialize(tmp_path / "out", paths=[b"sub/deep", b"run"])

    assert set(shown(tmp_path / "out")) == {"run", "sub", "sub/deep", "sub/deep/up"}


def test_a_path_that_there_is_not(full: api.Repository, tmp_path: Path) -> None:
    """A path that the state does not hold is an error, and nothing is written."""
    with pytest.raises(PathNotFound, match="nowhere"):
        full.materialize(tmp_path / "out", paths=[b"sub", b"sub/nowhere"])

    assert not (tmp_path / "out").exists()


def test_a_submodule_is_an_empty_directory(repo: api.Repository, tmp_path: Path) -> None:
    """A link to another repository becomes a directory with nothing in it."""
    entries = [(b"module", 0o160000, b"1" * 40), (b"file", 0o100644, blob(repo, b"x"))]
    capture_tree(repo, entries)

    repo.materialize(tmp_path / "out")

    assert {name: found[2] for name, found in shown(tmp_path / "out").items()} == {
        "module": None,
        "file": b"x",
    }


# what is there already


def test_nothing_is_written_when_something_is_in_the_way(
    full: api.Repository, tmp_path: Path
) -> None:
    """By default one existing file, however deep, refuses the whole, and names it."""
    there = tmp_path / "out" / "sub" / "deep"
    there.mkdir(parents=True)
    (there / "up").write_text("mine")
    before = shown(tmp_path / "out")

    with pytest.raises(DestinationConflict, match="sub/deep/up"):
        full.materialize(tmp_path / "out")

    assert before == shown(tmp_path / "out")


def test_directories_that_are_there_are_written_into(full: api.Repository, tmp_path: Path) -> None:
    """A directory is no conflict, and what else is in it stays."""
    (tmp_path / "out" / "sub").mkdir(parents=True)
    (tmp_path / "out" / "sub" / "other").write_text("mine")

    full.materialize(tmp_path / "out")

    assert (tmp_path / "out/sub/other").read_text() == "mine"
    assert (tmp_path / "out/sub/b.txt").read_text() == "b\n"


def test_overwriting(full: api.Repository, tmp_path: Path) -> None:
    """With overwrite, files and links are replaced, also where a directory is needed."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.txt").write_text("mine")
    (out / "run").symlink_to("a.txt")
    os.mkfifo(out / "link")
    (out / "sub").write_text("a file")

    full.materialize(out, on_conflict="overwrite")

    assert {name: found[2] for name, found in shown(out).items()} == {
        name: found[2] for name, found in shown_state(full, tmp_path).items()
    }


def test_overwriting_spares_directories(full: api.Repository, tmp_path: Path) -> None:
    """A directory that stands where a file would go is never removed: nothing is written."""
    (tmp_path / "out" / "a.txt").mkdir(parents=True)

    with pytest.raises(DestinationConflict, match=r"a\.txt"):
        full.materialize(tmp_path / "out", on_conflict="overwrite")

    assert set(shown(tmp_path / "out")) == {"a.txt"}


def test_renaming(full: api.Repository, tmp_path: Path) -> None:
    """With rename, what is there stays, and what is written gets the first name that is free."""
    out = tmp_path / "out"
    out.mkdir()
    for name in ("a.txt", "a.txt~1", "link", "sub"):
        (out / name).write_text("mine")

    done = full.materialize(out, on_conflict="rename")

    assert {(each.path, each.to) for each in done.written.renamed} == {
        (b"a.txt", b"a.txt~2"),
        (b"link", b"link~1"),
        (b"sub", b"sub~1"),
    }
    assert (out / "a.txt~2").read_text() == "one\ntwo\n"
    assert (out / "sub~1" / "b.txt").read_text() == "b\n"
    assert {(out / name).read_text() for name in ("a.txt", "a.txt~1", "link", "sub")} == {"mine"}


def test_a_file_that_comes_meanwhile_stays(
    full: api.Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody's file that appears between the look and the write is not replaced."""
    out = tmp_path / "out"
    link = os.link

    def others_first(source: Any, name: bytes, **rest: Any) -> None:
        if name == b"a.txt":
            (out / "a.txt").write_text("mine")
        link(source, name, **rest)

    monkeypatch.setattr(os, "link", others_first)

    with pytest.raises(DestinationConflict):
        full.materialize(out)

    assert (out / "a.txt").read_text() == "mine"


# hostile places and trees


@pytest.mark.parametrize("on_conflict", ["fail", "overwrite", "rename"])
def test_links_in_the_destination_are_not_followed(
    full: api.Repository, tmp_path: Path, on_conflict: str
) -> None:
    """Links to files and directories elsewhere lead nowhere, whatever is done about conflicts."""
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "deep").mkdir(parents=True)
    (elsewhere / "precious").write_text("mine")
    out = tmp_path / "out"
    out.mkdir()
    (out / "sub").symlink_to(elsewhere)
    (out / "a.txt").symlink_to(elsewhere / "precious")
    (out / "run").symlink_to(elsewhere / "not-there-yet")

    try:
        full.materialize(out, on_conflict=on_conflict)
    except DestinationConflict:
        assert on_conflict == "fail"

    assert {name: found[2] for name, found in shown(elsewhere).items()} == {
        "deep": None,
        "precious": b"mine",
    }


@pytest.mark.parametrize("on_conflict", ["fail", "overwrite", "rename"])
def test_a_directory_that_becomes_a_link_is_not_followed(
    full: api.Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_conflict: str
) -> None:
    """Somebody who puts a link in the place of each directory just made gets nothing written through it."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    mkdir = os.mkdir
    swaps = []

    def swapped(path: Any, *rest: Any, dir_fd: int | None = None) -> None:
        mkdir(path, *rest, dir_fd=dir_fd)
        if dir_fd is not None and len(swaps) < 20:
            swaps.append(path)
            os.rmdir(path, dir_fd=dir_fd)
            os.symlink(elsewhere, path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", swapped)

    try:
        full.materialize(tmp_path / "out", on_conflict=on_conflict)
    except DestinationConflict:
        pass

    assert swaps
    assert list(elsewhere.iterdir()) == []


def test_hostile_names_are_not_written(repo: api.Repository, tmp_path: Path) -> None:
    """A tree with names that lead elsewhere, or into git's or our own files, writes only its good ones."""
    inside = tree(repo, [(b"evil", 0o100644, blob(repo, b"evil"))])
    raw = [
        (b"..", 0o040000, inside),
        (b".", 0o040000, inside),
        (b".git", 0o040000, inside),
        (b".Heddle", 0o040000, inside),
        (b"x" * 300, 0o100644, blob(repo, b"long")),
        (b"good", 0o100644, blob(repo, b"good")),
        (b"link", 0o120000, blob(repo, os.fsencode(tmp_path))),
    ]
    capture_tree(repo, sorted(raw))

    repo.materialize(tmp_path / "out" / "in")

    assert {name: found[2] for name, found in shown(tmp_path / "out").items()} == {
        "in": None,
        "in/good": b"good",
        "in/link": str(tmp_path),
    }


def test_a_link_and_a_directory_of_one_name(repo: api.Repository, tmp_path: Path) -> None:
    """A tree that says both "a link out" and "a directory" of a name writes nothing outside."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    inside = tree(repo, [(b"evil", 0o100644, blob(repo, b"evil"))])
    link = blob(repo, os.fsencode(elsewhere))
    both = (
        b"120000 a\0" + bytes.fromhex(link.decode()) + b"40000 a\0" + bytes.fromhex(inside.decode())
    )
    with repo.store.writer() as writer:
        top = writer.add(2, both)
        writer.commit()
    capture_tree(repo, [(b"top", 0o040000, top)])

    for on_conflict in ("fail", "overwrite", "rename"):
        repo.materialize(tmp_path / on_conflict, on_conflict=on_conflict)

    assert list(elsewhere.iterdir()) == []


def test_places_that_are_refused(full: api.Repository, tmp_path: Path) -> None:
    """A destination in .heddle, or that is a file, or no way of settling conflicts: nothing happens."""
    with pytest.raises(DataError, match="inside"):
        full.materialize(full.heddle_dir / "objects")
    with pytest.raises(CannotCreate):
        full.materialize(full.path / "a.txt")
    with pytest.raises(UsageError):
        full.materialize(tmp_path / "out", on_conflict="hope")
    with pytest.raises(UsageError):
        full.materialize(tmp_path / "out", jobs=0)

    assert not (tmp_path / "out").exists()


# interrupted


@pytest.fixture(params=["files without a name", "temporary names"])
def kind_of_file(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of writing a file that is not there until it is whole."""
    if request.param == "temporary names":
        refuse(monkeypatch, os.O_TMPFILE, errno.EOPNOTSUPP)


def refuse(monkeypatch: pytest.MonkeyPatch, flag: int, number: int) -> None:
    """Have open(2) refuse a flag, as some file systems do."""
    real = os.open

    def guarded(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & flag == flag:
            raise OSError(number, os.strerror(number), path)
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", guarded)


def test_both_kinds_write_the_same(
    full: api.Repository, tmp_path: Path, kind_of_file: None
) -> None:
    """Without O_TMPFILE, the result is the same, overwriting included."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.txt").write_text("mine")

    full.materialize(tmp_path / "out", on_conflict="overwrite")

    assert shown_state(full, tmp_path) == shown(tmp_path / "out")


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_without_hard_links(
    full: api.Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """On a file system without hard links files are renamed into place, and conflicts still seen."""

    def no_links(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    refuse(monkeypatch, os.O_TMPFILE, errno.EOPNOTSUPP)
    monkeypatch.setattr(os, "link", no_links)

    full.materialize(tmp_path / "out")
    with pytest.raises(DestinationConflict):
        full.materialize(tmp_path / "out")
    full.materialize(tmp_path / "out", on_conflict="overwrite")

    right, found = shown_state(full, tmp_path), shown(tmp_path / "out")
    assert {name: each[2] for name, each in right.items()} == {
        name: each[2] for name, each in found.items()
    }


@pytest.mark.parametrize("entries", range(1, 10))
def test_interrupted_it_leaves_whole_files_only(
    full: api.Repository, tmp_path: Path, kind_of_file: None, entries: int
) -> None:
    """Ctrl-C after any number of entries: what has a name is whole, nothing else is there; again finishes it."""
    seen = 0

    def interrupt(done: int, total: int) -> None:
        nonlocal seen
        seen += 1
        if seen == entries:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        full.materialize(tmp_path / "out", progress=interrupt)
    right = {name: found[2] for name, found in shown_state(full, tmp_path).items()}
    left = {name: found[2] for name, found in shown(tmp_path / "out").items()}
    full.materialize(tmp_path / "out", on_conflict="overwrite")

    assert left.items() <= right.items()
    assert right == {name: found[2] for name, found in shown(tmp_path / "out").items()}


def test_a_full_disk(
    full: api.Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind_of_file: None
) -> None:
    """No space is an error that says so; no half file is left."""

    def no_space(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full_disk:
        full_disk.setattr(os, "write", no_space)
        with pytest.raises(StorageError, match="No space left"):
            full.materialize(tmp_path / "out")

    assert all(
        found[2] in (None, "a.txt", "../../a.txt") for found in shown(tmp_path / "out").values()
    )


def test_progress_counts_to_the_end(full: api.Repository, tmp_path: Path) -> None:
    """The last report is that all files are written."""
    reports: list[tuple[int, int]] = []
    full.materialize(tmp_path / "out", progress=lambda done, total: reports.append((done, total)))

    assert reports[-1] == (7, 7)
    assert reports == sorted(reports)


# overlays without a session


def test_an_overlay_that_is_not_mounted(full: api.Repository, tmp_path: Path) -> None:
    """Of a thread's overlay, what is unsaved is written too; what can't be a file is listed."""
    full.threads.create("agent-1", full.resolve("HEAD"))
    overlay = Overlay.open(full, "agent-1")
    core = overlay.core
    change(core, b"a.txt", b"changed")
    change(core, b"large", b"in the middle", offset=2_000_000)
    core.unlink_entry(ROOT, b"run")
    core.make_node(ROOT, b"fifo", stat.S_IFIFO | 0o600, 0, Caller(os.geteuid(), os.getegid()))
    overlay.close()

    done = full.materialize(tmp_path / "out", thread="agent-1")

    found = shown(tmp_path / "out")
    assert found["a.txt"][2] == b"changed"
    assert found["large"][2] == LARGE[:2_000_000] + b"in the middle" + LARGE[2_000_013:]
    assert {"run", "fifo"}.isdisjoint(found)
    assert [(each.path, each.why) for each in done.written.skipped] == [(b"fifo", "a fifo")]
    assert (done.thread, done.state) == ("agent-1", full.resolve("HEAD"))


def test_a_thread_that_was_never_mounted(full: api.Repository, tmp_path: Path) -> None:
    """Its overlay is its state, and none is made for it."""
    full.threads.create("agent-1", full.resolve("HEAD~1"))

    full.materialize(tmp_path / "out", thread="agent-1")

    assert set(shown(tmp_path / "out")) == {"a.txt", "run", "link", "sub", "sub/b.txt"}
    assert not (full.heddle_dir / "overlays" / "agent-1").exists()


# helpers


def shown_state(repo: api.Repository, tmp_path: Path) -> dict[str, Any]:
    """What HEAD looks like, written to a directory of its own."""
    if not (tmp_path / "plain").exists():
        repo.materialize(tmp_path / "plain")
    return shown(tmp_path / "plain")


def change(core: ContentAddressedMount, name: bytes, content: bytes, offset: int = -1) -> None:
    """Write into a file of the root; without an offset, instead of what it holds."""
    attrs = core.lookup(ROOT, name)
    assert attrs is not None
    core.on_open(attrs.ino, write=True, truncate=offset < 0)
    core.write(attrs.ino, max(offset, 0), content)
    core.release(attrs.ino, write=True)


def blob(repo: api.Repository, content: bytes) -> bytes:
    with repo.store.writer() as writer:
        found = writer.add_blob(content)
        writer.commit()
    return found


def tree(repo: api.Repository, entries: list[tuple[bytes, int, bytes]]) -> bytes:
    """Store a tree, whatever its names are."""
    raw = b"".join(
        b"%o %s\0%s" % (mode, name, bytes.fromhex(id.decode())) for name, mode, id in entries
    )
    with repo.store.writer() as writer:
        found = writer.add(2, raw)
        writer.commit()
    return found


def capture_tree(repo: api.Repository, entries: list[tuple[bytes, int, bytes]]) -> None:
    """A state of HEAD with such a tree."""
    commit = b"tree %s\nauthor A <a@b> 1 +0000\ncommitter A <a@b> 1 +0000\n\nmade\n"
    with repo.store.writer() as writer:
        state = writer.add(1, commit % tree(repo, entries))
        writer.commit()
    repo.publish(
        thread=repo.head,
        expected=repo.threads.get(repo.head).state,
        new=state,  # type: ignore[arg-type]
        kind="capture",
        message="made",
        attribution=None,
    )
