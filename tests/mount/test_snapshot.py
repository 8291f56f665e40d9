"""What status and capture find in a view: the cases in which a walk can be wrong, one by one."""

from __future__ import annotations

import os

import pytest

from heddle.errors import NothingToCapture
from heddle.mount.shell import ROOT
from heddle.mount.upper import RENAME_EXCHANGE, remove_tree
from mount.base import OpenThread
from mount.places import Path, View


def edit(view: View, path: Path, data: bytes = b"new") -> None:
    view.open(0, path, os.O_RDWR)
    view.write(0, 0, data)
    view.close(0)


def create(view: View, path: Path, data: bytes = b"new") -> None:
    view.create(0, path, 0o644)
    view.write(0, 0, data)
    view.close(0)


def stored(thread: OpenThread, path: bytes) -> bytes:
    """The bytes of a path in the thread's state."""
    _, blob = thread.repo.lookup_path(thread.repo.threads.get("agent").state, path)
    return thread.repo.store.get_raw(blob)[1]


def test_edit_is_seen_after_a_look_that_found_nothing(thread: OpenThread, view: View) -> None:
    """A change below directories that no walk ever visited is found although the root was found clean."""
    assert thread.status() == {}
    edit(view, (b"a", b"b", b"a"))

    assert thread.status() == {b"a/b/a": "modified"}


def test_edit_is_seen_after_its_directory_was_forgotten(thread: OpenThread, view: View) -> None:
    """A change in a directory that was dropped from memory and loaded again is found."""
    edit(view, (b"a", b"b", b"a"))
    thread.capture()
    view.forget()
    edit(view, (b"a", b"b", b"a"), b"newer")

    assert thread.status() == {b"a/b/a": "modified"}


def test_capture_stores_what_status_hashed(thread: OpenThread, view: View) -> None:
    """A file that a status had to hash, because its size is the captured one's, is stored by the capture."""
    edit(view, (b"a", b"a"), b"CAPTURED")
    assert thread.status() == {b"a/a": "modified"}
    thread.capture()

    assert stored(thread, b"a/a") == b"CAPTURED a/a\n"


def test_capture_stores_what_a_failed_capture_stored(thread: OpenThread, view: View) -> None:
    """What was stored ahead of a capture that never happened went with its pack, and is stored again."""
    create(view, (b"new",), b"never lost")
    with thread.repo.store.writer() as writer:
        thread.overlay.prestore(writer)
        writer.sync()
    thread.capture()

    assert stored(thread, b"new") == b"never lost"


def test_moved_empty_directory_is_added(thread: OpenThread, view: View) -> None:
    """A captured empty directory is a change where it went as well as where it was."""
    view.rename((b"b", b"\xe9"), (b"a", b"empty"), 0)
    expected = {b"b/\xe9": "deleted", b"a/empty": "added"}

    assert expected == thread.status()
    assert expected == thread.status(), "a second look, now that the directory is known"


def test_moved_directory_with_an_empty_one_inside(thread: OpenThread, view: View) -> None:
    """An empty directory that moved along inside a captured one is not left out."""
    view.rename((b"b",), (b"d",), 0)

    assert thread.status() == {
        b"b/b": "deleted",
        b"b/c": "deleted",
        b"b/\xe9": "deleted",
        b"d/b": "added",
        b"d/c": "added",
        b"d/\xe9": "added",
    }


def test_file_in_the_place_of_an_empty_directory(thread: OpenThread, view: View) -> None:
    """One path, one change: what was an empty directory and is a file changed its type."""
    view.rmdir((b"b", b"\xe9"))
    create(view, (b"b", b"\xe9"))

    assert thread.status() == {b"b/\xe9": "type-changed"}


def test_empty_directory_in_the_place_of_a_file(thread: OpenThread, view: View) -> None:
    """One path, one change: what was a file and is an empty directory changed its type."""
    view.unlink((b"c",))
    view.mkdir((b"c",), 0o755)

    assert thread.status() == {b"c": "type-changed"}


def test_capture_of_a_path_that_is_not_there(thread: OpenThread, view: View) -> None:
    """Nothing is captured, and no directory is made on the way to a path that does not exist."""
    view.unlink((b"c",))
    view.mkdir((b"c",), 0o755)
    create(view, (b"c", b"other"))

    with pytest.raises(NothingToCapture):
        thread.capture(paths=[b"c/absent"])


def test_a_walk_keeps_numbers(thread: OpenThread, view: View) -> None:
    """A capture that reads ignore rules on its way loads no directory twice, which would number it anew."""
    edit(view, (b".gitignore",), b"     ")
    view.rename((b"a", b"x.o"), (b"a", b"b", b"b"), RENAME_EXCHANGE)
    before = {path: seen.ino for path, seen in view.glance().items()}
    thread.reopen()
    thread.capture()

    assert before == {path: seen.ino for path, seen in thread.view.glance().items()}


def test_write_through_one_of_two_names_changes_both(thread: OpenThread, view: View) -> None:
    """A hard link's other name is modified too, though only one of them was looked up."""
    create(view, (b"a", b"one"), b"1")
    view.link((b"a", b"one"), (b"b", b"two"))
    thread.capture()
    view.walk((b"b",))
    for ino in [ino for ino in view.held if ino != view.walk((b"b",)).ino]:
        thread.core.forget(ino, view.held.pop(ino))
    edit(view, (b"a", b"one"), b"2")

    assert thread.status() == {b"a/one": "modified", b"b/two": "modified"}


def test_capture_of_a_path_below_what_became_a_file(thread: OpenThread, view: View) -> None:
    """Of a directory that became a file only the path that was asked for is captured: its deletion."""
    view.rename((b"a", b"b"), (b"elsewhere",), 0)
    create(view, (b"a", b"b"))
    captured = thread.capture(paths=[b"a/b/b/a"])
    names = [name for name, _, _ in thread.repo.store.tree_entries(tree_at(thread, b"a/b"))]

    assert (captured.added, captured.modified, captured.deleted) == (0, 0, 1)
    assert names == [b"a", b"b", b"c"]
    assert stored(thread, b"a/b/a") == b"deep\n"


def test_capture_of_a_path_below_an_ignored_directory(thread: OpenThread, view: View) -> None:
    """A path that is ignored and was never captured is not there to be captured, and takes nothing else along."""
    view.rename((b"a", b"x.o"), (b"a", b"b"), RENAME_EXCHANGE)

    with pytest.raises(NothingToCapture):
        thread.capture(paths=[b"a/x.o/a"])


def tree_at(thread: OpenThread, path: bytes) -> bytes:
    """The id of a directory in the thread's state."""
    return thread.repo.lookup_path(thread.repo.threads.get("agent").state, path)[1]


def test_depth_is_no_limit(thread: OpenThread, view: View) -> None:
    """A file 2,000 directories down is seen, captured, and there at the next mount."""
    attrs = thread.core.attrs(ROOT)
    for _ in range(2_000):
        attrs = view.hold(thread.core.make_dir(attrs.ino, b"d", 0o755, view.caller))
    made = thread.core.create_file(attrs.ino, b"f", 0o644, view.caller)
    thread.core.write(made.ino, 0, b"deep")
    thread.core.release(made.ino, write=True)
    path = b"d/" * 2_000 + b"f"

    try:
        assert thread.status() == {path: "added"}
        thread.capture()
        thread.reopen()
        assert stored(thread, path) == b"deep"
        assert thread.status() == {}
    finally:
        remove_tree(thread.core.upper.root, b"d")  # few programs could
