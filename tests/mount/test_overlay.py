"""One overlay without a kernel: opening, counting the work, capturing, discarding, following its thread."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path as HostPath

import pytest

from heddle.errors import Busy, NothingToCapture, ObjectMissing, ThreadMoved, UnsavedChanges
from heddle.mount import snapshot
from heddle.mount.overlay import Overlay
from heddle.mount.shell import ROOT, ReadOnly
from heddle.objects.gitformat import BLOB
from heddle.repo.capture import record_state
from mount import gitmodel
from mount.base import ADA, FILES, OpenThread, add_tree, captured
from mount.gitmodel import Tree
from mount.places import Path, View


def put(view: View, path: Path, data: bytes = b"new") -> None:
    """Write a file, making it if it is not there."""
    if view.core.lookup(view.walk(path[:-1]).ino, path[-1]) is None:
        view.create(0, path, 0o644)
    else:
        view.open(0, path, os.O_RDWR | os.O_TRUNC)
    view.write(0, 0, data)
    view.close(0)


def others_capture(thread: OpenThread, files: Mapping[Path, bytes]) -> bytes:
    """Move the thread, as another process does, to a state that holds these files; returns the state."""
    with thread.repo.store.writer() as writer:
        tree: Tree = {}
        for path, content in files.items():
            tree = gitmodel.with_entry(tree, path, (0o100644, writer.add_blob(content), None))
        return record_state(
            thread.repo,
            writer,
            thread="agent",
            expected=thread.repo.threads.get("agent").state,
            tree=add_tree(writer, tree),
            attribution=ADA,
            message="theirs",
        ).id


def contents(thread: OpenThread) -> dict[bytes, bytes]:
    """Every file's bytes by its path."""
    return {
        b"/".join(path): seen.content
        for path, seen in thread.view.glance().items()
        if stat.S_ISREG(seen.mode)
    }


def named(files: Mapping[Path, bytes]) -> dict[bytes, bytes]:
    return {b"/".join(path): content for path, content in files.items()}


# opening


def test_one_process_at_a_time(thread: OpenThread) -> None:
    """An overlay that is open can't be opened again; when it is closed it can."""
    with pytest.raises(Busy, match="agent"):
        Overlay.open(thread.repo, "agent")
    thread.reopen()

    assert thread.status() == {}


def test_failed_opening_leaves_no_lock(thread: OpenThread) -> None:
    """An overlay that can't be opened, because its tree is missing, does not stay locked."""
    thread.close()
    database = thread.repo.database
    state = thread.repo.threads.get("agent").state
    packs = [*(thread.repo.heddle_dir / "objects" / "packs").iterdir()]
    aside = thread.repo.heddle_dir / "aside"
    aside.mkdir()
    for pack in packs:
        pack.rename(aside / pack.name)
    with pytest.raises((ObjectMissing, KeyError)):
        thread.open()
    for pack in packs:
        (aside / pack.name).rename(pack)
    thread.open()

    assert database is not None and thread.overlay.base == state


def test_read_only_view_takes_no_change_and_no_lock(thread: OpenThread) -> None:
    """Any state can be shown beside the thread's own overlay; such a view is never dirty."""
    put(thread.view, (b"new",))
    with Overlay.open(thread.repo, "view", read_only=True, base=thread.overlay.base) as overlay:
        view = View(overlay.core, thread.view.caller)
        with pytest.raises(ReadOnly):
            view.create(0, (b"x",), 0o644)

        assert overlay.changes() == []
        assert overlay.dirty() == (0, 0)
        assert named(FILES) == {
            b"/".join(p): s.content for p, s in view.glance().items() if stat.S_ISREG(s.mode)
        }


def test_empty_thread(tmp_path: HostPath) -> None:
    """A thread without a state is an empty directory, and its first capture has no parent."""
    from heddle.repo.repository import Repository

    Repository.init(tmp_path / "repo").close()
    thread = OpenThread(tmp_path / "repo", "main")
    assert thread.view.listing(()) == []
    with pytest.raises(NothingToCapture):
        thread.capture()
    put(thread.view, (b"first",))

    assert thread.capture().state.parents == ()
    thread.close()


# structural counts: what must not be read is not read


@pytest.fixture
def big(tmp_path: HostPath) -> Iterator[OpenThread]:
    """A tree of 1,110 directories with three files each."""
    files = {
        (b"d%d" % a, b"d%d" % b, b"d%d" % c, b"f%d" % f): b"%d%d%d%d" % (a, b, c, f)
        for a in range(10)
        for b in range(10)
        for c in range(10)
        for f in range(3)
    }
    thread = captured(tmp_path / "big", files)
    yield thread
    thread.close()


class Decoded:
    """Counts what is decoded from the store while the block runs."""

    def __init__(self, thread: OpenThread, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trees: list[bytes] = []
        self.blobs: list[bytes] = []
        store = thread.repo.store
        read_tree, read_raw, read_at = store.tree_entries, store.get_raw, store.read_at

        def tree_entries(oid: bytes) -> object:
            self.trees.append(oid)
            return read_tree(oid)

        def get_raw(oid: bytes) -> object:
            found = read_raw(oid)
            if found[0] == BLOB:
                self.blobs.append(oid)
            return found

        def at(oid: bytes, offset: int, size: int) -> object:
            self.blobs.append(oid)
            return read_at(oid, offset, size)

        for name, count in [("tree_entries", tree_entries), ("get_raw", get_raw), ("read_at", at)]:
            monkeypatch.setattr(store, name, count)


def test_status_and_capture_decode_the_way_to_the_change(
    big: OpenThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one file changed in 1,110 directories only the four above it are decoded, in status and in capture."""
    put(big.view, (b"d3", b"d1", b"d4", b"f1"))
    big.reopen()
    decoded = Decoded(big, monkeypatch)
    assert big.status() == {b"d3/d1/d4/f1": "modified"}
    assert len(decoded.trees) == 4
    assert big.overlay.dirty() == (1, 3)
    big.capture()

    assert len(decoded.trees) <= 4 + 4  # and the new ones, to see the base through
    assert decoded.blobs == []


def test_clean_overlay_reads_no_file(big: OpenThread, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a capture and a remount a status opens no file, stored or real, and decodes no blob."""
    for number in range(10):
        put(big.view, (b"d%d" % number, b"d1", b"d4", b"f1"), b"%d" % number * 1_000)
        put(big.view, (b"d%d" % number, b"new"), b"n" * number)
    big.capture()
    big.reopen()
    decoded = Decoded(big, monkeypatch)
    opened = files_opened(monkeypatch)

    assert big.status() == {}
    assert decoded.blobs == []
    assert opened == []
    assert len(decoded.trees) <= 31


def files_opened(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The names that os.open was asked for, without those of directories."""
    opened: list[object] = []
    really_open = os.open

    def note_and_open(path: object, flags: int, *args: object, **kwargs: object) -> int:
        if not flags & os.O_DIRECTORY:
            opened.append(path)
        return really_open(path, flags, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", note_and_open)
    return opened


def test_second_status_looks_at_nothing(big: OpenThread, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found clean and not touched since is not looked at again, real files included."""
    for number in range(10):
        put(big.view, (b"d%d" % number, b"d1", b"d4", b"f1"))
    big.capture()
    for path in [(), *[(b"d%d" % n, b"d1", b"d4") for n in range(10)]]:
        big.view.walk(path)
    looked: list[object] = []
    really_stat = os.stat

    def note_and_stat(path: object, **kwargs: object) -> os.stat_result:
        looked.append(path)
        return really_stat(path, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", note_and_stat)
    assert big.status() == {}
    assert looked == []
    put(big.view, (b"d5", b"d1", b"d4", b"f1"), b"again")
    looked.clear()

    assert big.status() == {b"d5/d1/d4/f1": "modified"}
    assert len(looked) <= 2 * (10 + 1 + 1 + 1)  # the names beside the way, in two walks


def test_listing_decodes_no_blob(big: OpenThread, monkeypatch: pytest.MonkeyPatch) -> None:
    """A captured directory is listed and its entries are looked at without a byte of their files."""
    decoded = Decoded(big, monkeypatch)
    for name in big.view.listing((b"d0", b"d0", b"d0")):
        assert big.view.stat((b"d0", b"d0", b"d0", name))[2] == 4

    assert decoded.blobs == []
    assert len(decoded.trees) == 4


def test_copy_up_without_content_reads_nothing(
    big: OpenThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chmod, a rename, a link and new times of a captured file copy no byte; nor does truncating it to nothing."""
    decoded = Decoded(big, monkeypatch)
    at = (b"d0", b"d0", b"d0")
    big.view.chmod((*at, b"f0"), 0o600)
    big.view.rename((*at, b"f0"), (b"moved",), 0)
    big.view.utimens((*at, b"f1"), 1_000)
    big.view.link((*at, b"f1"), (b"linked",))
    big.view.truncate((*at, b"f2"), 0)

    assert decoded.blobs == []
    assert big.view.content((b"moved",)) == b"0000"
    assert big.view.content((b"linked",)) == b"0001"


def test_moved_directory_decodes_nothing_below(
    big: OpenThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A captured directory of 111 is moved by one entry, and captured by its tree's id."""
    decoded = Decoded(big, monkeypatch)
    big.view.rename((b"d7",), (b"d8", b"moved"), 0)
    in_upper = sum(
        len(names) for _, *names in os.walk(big.repo.heddle_dir / "overlays" / "agent" / "upper")
    )

    assert len(decoded.trees) == 3  # the root, and the two directories
    assert in_upper <= 6
    state = big.capture().state
    assert big.repo.lookup_path(state.id, b"d8/moved/d1/d4/f1")[0] == 0o100644


# capture


def test_unsynced_bytes_of_an_open_file_are_captured(thread: OpenThread) -> None:
    """What a program has written to a file that it still holds open is in the capture, and it writes on."""
    thread.view.create(1, (b"log",), 0o644)
    thread.view.write(1, 0, b"first ")
    first = thread.capture(prestore=True).state
    thread.view.write(1, 6, b"second")

    assert thread.status() == {b"log": "modified"}
    second = thread.capture(prestore=True).state
    assert [content_at(thread, state.id, b"log") for state in (first, second)] == [
        b"first ",
        b"first second",
    ]


def content_at(thread: OpenThread, state: bytes, path: bytes) -> bytes:
    return thread.repo.store.get_raw(thread.repo.lookup_path(state, path)[1])[1]


def test_writers_are_named(thread: OpenThread) -> None:
    """Files that are open for writing are listed by their present paths; readers and nameless files are not."""
    thread.view.open(1, (b"c",), os.O_RDWR)
    thread.view.open(2, (b"a", b"a"), os.O_RDONLY)
    thread.view.create(3, (b"gone",), 0o644)
    thread.view.unlink((b"gone",))
    thread.view.rename((b"c",), (b"b", b"moved"), 0)

    assert thread.overlay.writers() == [b"b/moved"]


def test_change_while_stored_ahead_is_captured_as_it_is_then(
    thread: OpenThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is written to while a thread stores it is stored again: no capture holds half of two contents."""
    put(thread.view, (b"busy",), b"before")
    really_read = os.read

    def write_and_read(fd: int, size: int) -> bytes:
        monkeypatch.setattr(os, "read", really_read)
        thread.view.open(1, (b"busy",), os.O_RDWR)
        thread.view.write(1, 0, b"during")
        return really_read(fd, size)

    with thread.repo.store.writer() as writer:
        monkeypatch.setattr(os, "read", write_and_read)
        thread.overlay.prestore(writer)
        thread.view.write(1, 0, b"AFTER!")
        state = thread.overlay.capture(message="", attribution=ADA, writer=writer).state

    assert content_at(thread, state.id, b"busy") == b"AFTER!"


@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o1644, 0o600, 0o700, 0o444])
def test_what_git_can_not_hold_is_said(thread: OpenThread, mode: int) -> None:
    """A capture names the modes and the special files that it could not record; they stay in the overlay."""
    thread.view.mkfifo((b"pipe",))
    put(thread.view, (b"tool",))
    thread.view.chmod((b"tool",), mode)
    said = {one.path: one.why for one in thread.capture().not_recorded}
    thread.reopen()

    assert set(said) == {b"pipe", b"tool"}
    assert "fifo" in said[b"pipe"] and f"{mode:04o}" in said[b"tool"]
    assert thread.status() == {}
    assert thread.view.stat((b"tool",))[0] == stat.S_IFREG | mode
    assert stat.S_ISFIFO(thread.view.stat((b"pipe",))[0])


def test_ignored_files_stay(thread: OpenThread) -> None:
    """Build output is counted, not captured, and still there after a capture and a remount."""
    put(thread.view, (b"a", b"built.o"), b"output")
    thread.view.mkdir((b"cache.o",), 0o755)
    put(thread.view, (b"cache.o", b"inner"), b"more")
    put(thread.view, (b"source",), b"kept")
    assert thread.overlay.ignored_count() == 2
    captured = thread.capture()
    thread.reopen()

    assert (captured.added, captured.modified, captured.deleted) == (1, 0, 0)
    assert thread.view.content((b"a", b"built.o")) == b"output"
    assert thread.view.content((b"cache.o", b"inner")) == b"more"
    assert thread.overlay.status() == ([], 2, ())


def test_rules_that_change_are_seen(thread: OpenThread) -> None:
    """What a changed rule file ignores no longer, or ignores now, is right at the next status."""
    put(thread.view, (b"a", b"built.o"), b"output")
    put(thread.view, (b"a", b"note"), b"n")
    assert thread.status() == {b"a/note": "added"}
    put(thread.view, (b".gitignore",), b"note\n")

    assert thread.status() == {b".gitignore": "modified", b"a/built.o": "added"}


def test_hidden_names_survive_a_capture(tmp_path: HostPath) -> None:
    """A name that is not shown because it could do harm is still in the next state."""
    thread = captured(
        tmp_path / "hostile", {(b"a",): b"1", (b"d", b".git"): b"evil", (b"d", b"f"): b"2"}
    )
    assert thread.view.listing((b"d",)) == [b"f"]
    put(thread.view, (b"d", b"f"), b"3")
    state = thread.capture().state

    assert content_at(thread, state.id, b"d/.git") == b"evil"
    thread.close()


def test_loser_of_a_race_is_told(thread: OpenThread) -> None:
    """A capture on a thread that others moved is refused, and everything stays as it was."""
    put(thread.view, (b"mine",), b"mine")
    others_capture(thread, {(b"theirs",): b"theirs"})
    with pytest.raises(ThreadMoved) as refused:
        thread.capture()
    thread.reopen()

    assert refused.value.exit_code == 75
    assert thread.status() == {b"mine": "added"}
    assert thread.view.content((b"mine",)) == b"mine"


# discard


def test_discard_shows_the_base_and_keeps_what_was_dropped(thread: OpenThread) -> None:
    """Discarding counts what was unsaved, shows the base again, and puts the upper aside for a person to find."""
    put(thread.view, (b"c",), b"precious")
    thread.view.unlink((b"a", b"a"))
    dropped = thread.overlay.discard()
    thread.look_again()
    parked = [*(thread.repo.heddle_dir / "overlays" / ".parked").rglob("c")]

    assert dropped == (2, len(b"precious"))
    assert contents(thread) == named(FILES)
    assert [path.read_bytes() for path in parked] == [b"precious"]
    thread.reopen()
    assert contents(thread) == named(FILES)


# following


def follow(thread: OpenThread) -> None:
    """Have the overlay follow and the kernel forget, as a session does."""
    for _, _, ino in thread.overlay.rebase():
        thread.view.forget_one(ino)


@pytest.mark.parametrize("how", [follow, OpenThread.reopen])
def test_clean_overlay_follows(thread: OpenThread, how: Callable[[OpenThread], None]) -> None:
    """An overlay without unsaved changes shows what others captured, alive or when it is opened."""
    put(thread.view, (b"a", b"b", b"a"), b"captured here")
    put(thread.view, (b"a", b"built.o"), b"ignored")
    thread.capture()
    thread.view.glance()
    for path in [(b"a", b"b", b"a"), (b"c",), (b"b", b"b")]:
        thread.view.walk(path)
    state = others_capture(
        thread, {(b"a", b"b", b"a"): b"theirs", (b"new", b"x"): b"1", (b"c", b"c"): b"2"}
    )
    how(thread)

    assert thread.overlay.base == state
    assert contents(thread) == {
        b"a/b/a": b"theirs",
        b"a/built.o": b"ignored",
        b"new/x": b"1",
        b"c/c": b"2",
    }
    assert thread.view.listing(()) == [b"a", b"c", b"new"]
    assert thread.status() == {b"a/built.o": "added"}  # their state has no rules


def test_dirty_overlay_does_not_follow(thread: OpenThread) -> None:
    """With unsaved changes an overlay stays where it is and says so; nothing of it changes."""
    put(thread.view, (b"mine",), b"mine")
    before = thread.view.glance()
    base = thread.overlay.base
    others_capture(thread, {(b"theirs",): b"theirs"})
    with pytest.raises(UnsavedChanges):
        thread.overlay.rebase()
    thread.reopen()

    assert thread.overlay.base == base
    assert thread.view.glance() == before


def test_ignored_file_is_never_overwritten(thread: OpenThread) -> None:
    """A file that no state holds is not replaced by one of the same name from others."""
    put(thread.view, (b"a", b"built.o"), b"hours of work")
    others_capture(thread, {**FILES, (b"a", b"built.o"): b"theirs"})
    with pytest.raises(UnsavedChanges, match=r"a/built\.o"):
        thread.overlay.rebase()

    assert thread.view.content((b"a", b"built.o")) == b"hours of work"


def test_removed_directory_goes_with_what_was_kept_of_it(thread: OpenThread) -> None:
    """A directory that others removed disappears, though files of it were changed and captured here."""
    put(thread.view, (b"a", b"b", b"a"), b"captured here")
    thread.capture()
    others_capture(thread, {(b"c",): b"only this"})
    follow(thread)

    assert thread.view.listing(()) == [b"c"]
    assert thread.status() == {}


def test_one_of_two_names_goes(thread: OpenThread) -> None:
    """Of a hard-linked file others remove one name: the other stays, with its number and one link."""
    put(thread.view, (b"one",), b"1")
    thread.view.link((b"one",), (b"two",))
    thread.capture()
    ino = thread.view.walk((b"one",)).ino
    thread.view.walk((b"two",))
    others_capture(thread, {**FILES, (b"two",): b"1"})
    follow(thread)
    attrs = thread.view.walk((b"two",))

    assert (attrs.ino, attrs.nlink, thread.view.content((b"two",))) == (ino, 1, b"1")
    assert (b"one",) not in thread.view.glance()


def test_moved_directory_keeps_what_is_in_no_state(thread: OpenThread) -> None:
    """A captured file that became ignored by a move of its directory is still there after following."""
    thread.view.rename((b"a",), (b"moved",), 0)
    thread.capture()
    assert thread.view.content((b"moved", b"x.o")) == FILES[b"a", b"x.o"]
    state = thread.overlay.base
    theirs = {(b"moved", b"a"): FILES[b"a", b"a"], (b".gitignore",): b"*.o\n", (b"extra",): b"e"}
    assert others_capture(thread, theirs) != state
    follow(thread)

    assert thread.view.content((b"moved", b"x.o")) == FILES[b"a", b"x.o"]
    assert thread.status() == {}


def test_opener_keeps_what_it_opened(thread: OpenThread) -> None:
    """A file that others changed is new for who looks it up; who has it open reads on in the old one."""
    thread.view.open(1, (b"c",), os.O_RDONLY)
    before = thread.view.walk((b"c",)).ino
    others_capture(thread, {**FILES, (b"c",): b"theirs"})
    follow(thread)

    assert thread.view.read(1, 200_000, 10) == b"end\n"
    assert thread.view.content((b"c",)) == b"theirs"
    assert thread.view.walk((b"c",)).ino != before


def test_changed_files_are_newer(thread: OpenThread) -> None:
    """What others changed is newer than what was built from it here; the rest keeps its time."""
    was = thread.view.walk((b"c",)).mtime_ns
    others_capture(thread, {**FILES, (b"a", b"a"): b"theirs"})
    follow(thread)

    assert thread.view.walk((b"a", b"a")).mtime_ns > was
    assert thread.view.walk((b"c",)).mtime_ns == was


def test_following_leaves_no_node_behind(thread: OpenThread) -> None:
    """What a capture, a status and a rebase had to look at is let go."""
    for path in [(b"a", b"b", b"a"), (b"b", b"b"), (b"c",)]:
        put(thread.view, path)
    thread.capture()
    thread.status()
    thread.view.forget()
    others_capture(thread, {**FILES, (b"a", b"a"): b"theirs"})
    follow(thread)
    thread.status()

    assert list(thread.core.nodes) == [ROOT]


def test_umask_of_a_command_is_no_mode(thread: OpenThread) -> None:
    """A command that opens the overlay with a tight umask gives no captured file another mode."""
    others_capture(thread, {**FILES, (b"new", b"f"): b"theirs"})
    before = os.umask(0o077)
    thread.reopen()
    os.umask(before)

    assert thread.view.stat((b"new", b"f"))[0] == stat.S_IFREG | 0o644
    assert thread.view.stat((b"new",))[0] == stat.S_IFDIR | 0o755


def test_a_file_that_grows_while_it_is_stored_ahead(
    thread: OpenThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Storing ahead passes over a large file that had more bytes than it was said to; the capture stores it."""
    content = bytes(range(256)) * (20 << 10)
    thread.view.create(0, (b"large",), 0o644)
    thread.view.write(0, 0, content)
    thread.view.close(0)
    with thread.repo.store.writer() as writer:
        with monkeypatch.context() as patch:
            patch.setattr(snapshot, "shown_bytes", lambda *_: io.BytesIO(content + b"more").read)
            thread.overlay.prestore(writer)
        done = thread.overlay.capture(message="m", attribution=ADA, writer=writer)
    _mode, blob = thread.repo.lookup_path(done.state.id.decode(), b"large")

    assert thread.repo.store.get_raw(blob)[1] == content
