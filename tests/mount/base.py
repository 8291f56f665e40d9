"""A captured tree to start from, and a thread on it whose overlay can be opened, closed and opened again."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path as HostPath

from heddle.attribution import Attribution, Principal
from heddle.mount.core import ContentAddressedMount
from heddle.mount.overlay import Overlay
from heddle.mount.shell import Caller
from heddle.objects.pack import PackWriter
from heddle.repo.capture import Captured, record_state
from heddle.repo.repository import Repository
from mount import gitmodel
from mount.gitmodel import Tree
from mount.places import Path, Plain, View

ADA = Attribution(Principal("Ada", "ada@example.org"), None, {})

FILES = {
    (b".gitignore",): b"*.o\n",
    (b"a", b"a"): b"captured a/a\n",
    (b"a", b"b", b"a"): b"deep\n",
    (b"a", b"b", b"b", b"a"): b"deeper\n" * 500,
    (b"a", b"b", b"c"): b"",
    (b"a", b"x.o"): b"tracked in spite of the rules\n",
    (b"b", b"b"): b"1" * 9_000,
    (b"c",): bytes(200_000) + b"end\n",
    (b"\xe9",): b"not utf-8 \xff\n",
}
RULES = (b".gitignore",)
LINK = (b"b", b"c")
EMPTY_DIRECTORY = (b"b", b"\xe9")
PATHS = sorted({p[:n] for p in [*FILES, LINK, EMPTY_DIRECTORY] for n in range(1, len(p) + 1)})


def fill(place: View | Plain, wanted: Sequence[Path] = PATHS) -> None:
    """Make the tree, or these paths of it; files called ``a`` are executable."""
    for path in wanted:
        if path == LINK:
            place.symlink(b"../a/b", path)
        elif path in FILES:
            place.create(0, path, 0o755 if path[-1] == b"a" else 0o644)
            place.write(0, 0, FILES[path])
            place.close(0)
        else:
            place.mkdir(path, 0o755)


_made: list[HostPath] = []


def remove_templates() -> None:
    """Leave nothing behind, at the end of a run."""
    while _made:
        shutil.rmtree(_made.pop(), ignore_errors=True)


@cache
def _template(uid: int) -> tuple[HostPath, Tree]:
    """A repository with the tree as the state of ``main`` and of ``agent``; made once for each user."""
    top = HostPath(tempfile.mkdtemp(prefix="heddle-base-"))
    _made.append(top)
    Repository.init(top / "repo").close()
    main = OpenThread(top / "repo", "main")
    fill(main.view, [path for path in PATHS if path != RULES])
    main.capture("before there were rules")
    tree = gitmodel.expected_tree(main.view.glance(), {})
    fill(main.view, [RULES])
    tree = gitmodel.expected_tree(main.view.glance(), tree)
    assert main.capture("base").state.tree == gitmodel.tree_id(tree)
    main.repo.threads.create("agent", main.repo.resolve("main"))
    main.close()
    return top, tree


def copy_base(to: HostPath) -> Tree:
    """Copy the repository to a new directory; returns its tree."""
    source, tree = _template(os.geteuid())
    shutil.copytree(source / "repo", to)
    return tree


class OpenThread:
    """A thread's overlay, open, and the view of it as the kernel has it.

    Attributes:
        repo, overlay, core, view: made anew by ``reopen``.
    """

    repo: Repository
    overlay: Overlay
    view: View

    def __init__(self, repository: HostPath, thread: str = "agent") -> None:
        self._repository = repository
        self._thread = thread
        self.open()

    def open(self) -> None:
        self.repo = Repository.open(self._repository)
        self.overlay = Overlay.open(self.repo, self._thread)
        self.look_again()

    def look_again(self) -> None:
        """Know nothing of the view, as a kernel after a mount."""
        self.view = View(self.overlay.core, Caller(os.geteuid(), os.getegid()))

    def close(self) -> None:
        self.overlay.close()
        self.repo.close()

    def reopen(self) -> None:
        """As an unmount and a mount do: nothing but the disk remembers."""
        self.close()
        self.open()

    @property
    def core(self) -> ContentAddressedMount:
        return self.overlay.core

    @property
    def time_ns(self) -> int:
        """The time of captured files that have none of their own."""
        return self.core.time_ns

    @property
    def base(self) -> bytes | None:
        """The state that the overlay is relative to."""
        return self.overlay.base

    def store_in_vain(self) -> None:
        """Store everything ahead of a capture that never comes."""
        with self.repo.store.writer() as writer:
            self.overlay.prestore(writer)

    def cut_next_capture(self) -> None:
        """Have the next capture end at its commit point, as if the process died there."""
        self.overlay._after_capture = lambda *_: None  # type: ignore[method-assign]

    def follow(self) -> None:
        """Follow the thread, as a session does when others moved it; the kernel is told what to forget."""
        for _, _, ino in self.overlay.rebase():
            self.view.forget_one(ino)

    def discard(self) -> int:
        """Drop everything unsaved; returns how many paths that were."""
        self.reopen()
        dropped = self.overlay.discard()
        self.look_again()
        return dropped[0]

    def dirty_paths(self) -> int:
        """How many paths are unsaved."""
        return self.overlay.dirty()[0]

    def capture(
        self,
        message: str = "",
        *,
        paths: Sequence[bytes] = (),
        prestore: bool = False,
    ) -> Captured:
        """Capture as a command does, storing ahead what can be if asked to."""
        with self.repo.store.writer() as writer:
            if prestore:
                self.overlay.prestore(writer)
            return self.overlay.capture(
                message=message, attribution=ADA, paths=paths, writer=writer
            )

    def status(self) -> dict[bytes, str]:
        """Path to kind of every unsaved change; a rename is a deletion and an addition."""
        found: dict[bytes, str] = {}
        for change in self.overlay.changes():
            if change.old_path is not None:
                found[change.old_path] = "deleted"
            found[change.path] = "added" if change.kind == "renamed" else change.kind
        return found


def captured(to: HostPath, files: Mapping[Path, bytes]) -> OpenThread:
    """A thread on a new repository whose state holds these files and nothing else."""
    repo = Repository.init(to)
    with repo.store.writer() as writer:
        tree: Tree = {}
        for path, content in files.items():
            blob = writer.add_blob(content)
            tree = gitmodel.with_entry(tree, path, (0o100644, blob, None))
        state = record_state(
            repo,
            writer,
            thread="main",
            expected=None,
            tree=add_tree(writer, tree),
            attribution=ADA,
            message="base",
        )
    repo.threads.create("agent", state.id)
    repo.close()
    return OpenThread(to)


def add_tree(writer: PackWriter, tree: Tree) -> bytes:
    """Store the trees of a tree whose blobs are stored."""
    return writer.add_tree(
        (name, mode, oid if inside is None else add_tree(writer, inside))
        for name, (mode, oid, inside) in tree.items()
    )
