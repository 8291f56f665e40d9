"""Git inside a mount: the ``.git`` that it shows, and git's index written from what the view knows.

Owns what a session does so that stock git works below its mountpoint: the pinned file by which git finds its private
directory (``repo/linked.py``), and an index whose times, sizes and inode numbers are those that the mount shows, so
that the first ``git status`` reads no file. It is written when ``.git`` is first opened, in the thread that answers:
mounting costs the same however large the repository is.
"""

from __future__ import annotations

import logging
import os
import shlex
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from heddle.attribution import Agent
from heddle.errors import ConfigError, DataError, HeddleError, NotMounted
from heddle.mount import everything, fsmonitor
from heddle.mount.depth import any_depth
from heddle.mount.journal import Journal
from heddle.mount.lower import GITLINK
from heddle.mount.makers import Makers
from heddle.mount.nodes import DirNode, FileNode, Node
from heddle.mount.shell import Attrs
from heddle.mount.snapshot import found
from heddle.mount.view import lower_number
from heddle.repo import gitindex, keptindex, linked
from heddle.repo.gitindex import NO_STAT, Directory, Listed

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.mount.core import ContentAddressedMount
    from heddle.mount.overlay import Overlay

T = TypeVar("T")

log = logging.getLogger(__name__)

NAME = b".git"
_LOW = 0xFFFFFFFF
_MONITORED_FILES = "10000"
_AT_ONCE = 256  # names looked at between two turns of the loop
_SETTLED_NS = 50_000_000
"""How old a change has to be to be told from a later one by its time: clocks tick every few milliseconds."""
_SECOND_NS = 1_000_000_000
_SETTLED_WHOLE_NS = 2_000_000_000
"""The same where a file system keeps whole seconds."""


class GitView:
    """Stock git in one mount. Made by `begin`.

    Attributes:
        linked: git's private directory of the mount.
    """

    def __init__(
        self,
        overlay: Overlay,
        mine: linked.Linked,
        held: linked.Held,
        socket: Path,
        agent: Mapping[str, str],
    ) -> None:
        self.linked = mine
        self._socket = socket
        self._held = held
        self._overlay = overlay
        self._makers = Makers(mine.git.path, agent)
        self._lock = threading.Lock()

    @classmethod
    def begin(
        cls,
        overlay: Overlay,
        session: str,
        mountpoint: Path,
        thread: str | None,
        *,
        socket: Path,
        agent: Mapping[str, str],
    ) -> GitView | None:
        """Make git work in a mount that is about to be.

        Args:
            overlay: what is mounted.
            session: the session's short name.
            mountpoint: where.
            thread: None for a read-only mount.
            socket: where the session can be asked what changed.
            agent: defaults for which model works in it, by key.

        Returns:
            None where it can't: not on git, nothing to be at, git's directory can't be written. A mount works without.
        """
        repo = overlay.repo
        if repo.git is None or overlay.core.child(overlay.core.root, NAME) is not None:
            return None
        try:
            taken = linked.take(repo, session, mountpoint, thread, overlay.base)
        except OSError as error:
            log.warning("no git in this mount: %s: %s", error.filename, error.strerror)
            return None
        if taken is None:
            return None
        view = cls(overlay, *taken, socket, agent)
        overlay.git_index = view.linked.git.path / "index"
        view._resume()
        content = b"gitdir: %s\n" % os.fsencode(view.linked.git.path)
        overlay.core.pin(NAME, content, view._opened)
        return view

    def _begin_journal(self) -> bytes | None:
        """Note what changes from now on, if git can be told; returns the token of this moment."""
        try:
            if not self.linked.has_settings():
                return None
        except ConfigError as error:
            log.warning("git is not told what changed: %s", error)
            return None
        journal = self._overlay.core.journal = Journal()
        return journal.token()

    def _monitor(self) -> bool:
        """Have git ask us what changed; whether it will."""
        words = (sys.executable, "-IS", str(Path(fsmonitor.__file__)), str(self._socket))
        try:
            self.linked.monitor(shlex.join(words))
        except (ConfigError, OSError) as error:
            log.warning("git is not told what changed: %s", error)
            return False
        return True

    def _resume(self) -> None:
        """Go on with git's things of an earlier mount."""
        try:
            is_monitored = self.linked.has_index and self.linked.is_monitored()
        except ConfigError:
            return
        if is_monitored and self._begin_journal() is not None:
            self._monitor()

    def changed_since(self, token: bytes) -> tuple[bytes, list[bytes]]:
        """What git's fsmonitor asks; not to be called in the loop.

        Args:
            token: of an earlier answer, or what the index began with.

        Returns:
            A new token, and the paths that may have changed.

        Raises:
            NotMounted: nothing was noted here; git has to look itself.
        """
        new, changed = self._overlay.in_loop(lambda: self._noted_since(token))
        if changed is None:
            core, index = self._overlay.core, self.linked.git.path / "index"
            changed = everything.paths(core, self._overlay.in_loop, index)
        return new, changed

    def _noted_since(self, token: bytes) -> tuple[bytes, list[bytes] | None]:
        journal = self._overlay.core.journal
        if journal is None:
            raise NotMounted("what changes here is not noted")
        changed = journal.since(token)
        if changed is not None:  # of what is open for writing the kernel may hold bytes
            changed += self._overlay.writers()
        return journal.token(), changed

    def end(self) -> None:
        """The mount is gone: leave no trace in git."""
        try:
            linked.put_aside(self._overlay.repo, self.linked, self._overlay.base)
        except OSError as error:
            log.warning("%s stays: %s", self.linked.git.path, error.strerror)
        self._held.close()

    def leave(self) -> None:
        """The session ends and the mount stays, dead: whoever recovers it finds git as it was."""
        self._held.close()

    def require_on_thread(self) -> None:
        """Refuse to show what others did on the thread while git in the mount is on something else.

        Raises:
            DataError: it is.
        """
        if not self.linked.is_on_thread():
            raise DataError(
                f"git in {self.linked.git.checkout} is not on branch {self.linked.thread}",
                hint=f"git switch {self.linked.thread}",
            )

    def agents(self) -> dict[ObjectID, Agent]:
        """Which model made the commits that git made here since the last call, where that is known."""
        with self._lock:
            return self._makers.take()

    def _opened(self, pid: int) -> None:
        """Somebody begins to use git: have an index for it, and note who it is."""
        with self._lock:
            self._makers.note(pid)
            if not self.linked.has_index:
                try:
                    self._write_index()
                except (OSError, HeddleError) as error:
                    # Git can do without, or says itself why not.
                    log.warning("no index for git: %s", error)

    def _write_index(self) -> None:
        started = time.monotonic()
        overlay, git = self._overlay, self.linked.git
        base = overlay.base
        tree = None if base is None else overlay.repo.state(base).tree
        _outlast(overlay.core.time_ns)
        monitored = overlay.in_loop(self._begin_journal)
        listed, root = self._listed(tree, can_keep=monitored is not None)
        if monitored is not None and not (self._is_large(listed) and self._monitor()):
            monitored = overlay.core.journal = None
        try:
            gitindex.write(
                git.path / "index",
                listed,
                root,
                object_format=overlay.core.lower.object_format,
                checkout=git.checkout,
                excludes=(_content(git.common / "info" / "exclude"), _content(_user_excludes())),
                monitored=monitored,
            )
        except FileExistsError:
            return
        log.info("wrote git's index in %.0f ms", (time.monotonic() - started) * 1000)

    def _is_large(self, listed: Listed) -> bool:
        """Whether asking what changed takes git less time than looking at everything."""
        try:
            least = self._overlay.repo.config.number("git.fsmonitor_files", _MONITORED_FILES)
        except HeddleError:
            least = float(_MONITORED_FILES)
        return listed.length >= least

    def _listed(self, tree: ObjectID | None, *, can_keep: bool) -> tuple[Listed, bytes | None]:
        """What the index is to say, and the root's stat.

        Of a mount in which nothing was changed yet it is the same for every mount of the tree by this user.

        Args:
            can_keep: it is looked for among what was kept, and kept. A mount whose names git is going to look up
                needs the sizes that are learned on the way anyway.
        """
        core = self._overlay.core
        listing = _Listing(core, self._overlay.in_loop)
        look = listing.look_at_root()
        is_fresh = can_keep and tree is not None and look.lower == tree and not look.names
        place = self._overlay.repo.heddle_dir / "gitindex"
        name = keptindex.name_of(tree, core.time_ns, core.uid, core.gid, core.lower.object_format)
        if is_fresh and (listed := keptindex.load(place, name)) is not None:
            return listed, look.status if look.settled else None
        with any_depth():
            root = listing.run(look, tree)
        listed = gitindex.collect(listing.entries(), root)
        if is_fresh and listing.knew_all and self._is_large(listed):
            keptindex.save(place, name, listed)
        return listed, root.status


def _outlast(time_ns: int) -> None:
    """Wait for the end of the second that a time lies in, if it is the present one.

    Git may go by whole seconds: it would read every file that has the time of a state made in this one, and could not
    tell one that is changed in the rest of it.
    """
    left_ns = (time_ns // _SECOND_NS + 1) * _SECOND_NS - time.time_ns()
    if 0 < left_ns <= _SECOND_NS:
        time.sleep(left_ns / _SECOND_NS)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _user_excludes() -> Path:
    """Where git looks for the user's rules unless told otherwise; where it was, it looks at directories itself."""
    return Path("~/.config/git/ignore").expanduser()


class _Item(NamedTuple):
    """An entry to be.

    Attributes:
        status: as git will see it, `NO_STAT`, or the low 32 bits of a captured file's number: only its size is missing.
    """

    path: bytes
    mode: int
    id: ObjectID
    status: bytes

    @property
    def lacks_size(self) -> bool:
        """Whether the store has to be asked for its size."""
        return len(self.status) == 4 and self.mode != GITLINK


class _Look(NamedTuple):
    """A directory with a place in the upper.

    Attributes:
        names: what its upper has, True for a whiteout.
        status: of the directory.
        settled: whether a later change would give it another time.
    """

    ino: int
    lower: ObjectID | None
    names: dict[bytes, bool]
    status: bytes
    settled: bool


class _Shown(NamedTuple):
    """A file of the upper; ``id`` is None where only its bytes could tell."""

    mode: int
    id: ObjectID | None
    status: bytes


class _Listing:
    """Everything that a tree holds, with what the view shows of it.

    The view belongs to the loop: what has a place in the upper is looked at there, a few names at a time, the rest is
    known from the tree. What changes meanwhile has another stat than the index says, and git looks for itself.

    Attributes:
        knew_all: whether the size of every captured file was known.
    """

    def __init__(
        self, core: ContentAddressedMount, in_loop: Callable[[Callable[[], object]], object]
    ) -> None:
        self._core = core
        self._lower = core.lower
        self._in_loop: Callable[[Callable[[], T]], T] = in_loop  # type: ignore[assignment]
        self._items: list[_Item] = []
        self.knew_all = True
        self._now_ns = time.time_ns()

    def look_at_root(self) -> _Look:
        """What `run` begins with."""
        return self._look(b"")

    def run(self, look: _Look, tree: ObjectID | None) -> Directory:
        """List it; returns its root."""
        return self._seen(b"", b"", look, tree)

    def entries(self) -> Iterable[bytes]:
        """The index's entries."""
        unknown = [item.id for item in self._items if item.lacks_size]
        sizes = iter(self._lower.learn_sizes(unknown))
        core = self._core
        usual = gitindex.stat_bytes(0, 0, core.uid, core.gid, 0, core.time_ns, core.time_ns)
        times, owner = usual[:20], usual[28:36]
        for item in self._items:
            path, mode, id, status = item
            mode = gitindex.git_mode(mode)
            if mode == GITLINK:  # git looks at no stat of a submodule
                status = NO_STAT
            elif item.lacks_size:
                size = next(sizes)
                self.knew_all &= size is not None
                whole = times + status + b"\0\0\0\0" + owner
                status = NO_STAT if size is None else whole + (size & _LOW).to_bytes(4, "big")
            yield gitindex.entry(status, mode, bytes.fromhex(id.decode()), path)

    # directories

    def _seen(self, path: bytes, name: bytes, look: _Look, base: ObjectID | None) -> Directory:
        """A directory with a place in the upper."""
        first = len(self._items)
        recorded = self._lower.entries(base)
        below = self._lower.entries(look.lower)
        shown = self._files(path, [each for each in look.names if each in recorded], look.names)
        inside = []
        for each, (mode, id) in recorded.items():
            where = path + each
            if each not in look.names:
                one = self._through(where, each, look.ino, below.get(each), (mode, id))
            elif stat.S_ISDIR(mode) and each not in shown and not look.names[each]:
                one = self._seen(where + b"/", each, self._look(where), id)
            else:
                one = self._instead(where, each, shown.get(each), (mode, id))
            if one is not None:
                inside.append(one)
        extra = any(not gone and each not in recorded for each, gone in look.names.items())
        is_plain = look.settled and look.lower == base and not extra
        return self._directory(name, base, first, look.status if is_plain else None, inside)

    def _through(
        self,
        path: bytes,
        name: bytes,
        parent: int,
        shown: tuple[int, ObjectID] | None,
        base: tuple[int, ObjectID],
    ) -> Directory | None:
        """A name that is not in the upper."""
        if shown is not None and stat.S_ISDIR(shown[0]) and stat.S_ISDIR(base[0]):
            ino = lower_number(parent, name)
            if shown[1] == base[1]:
                return self._captured(path + b"/", name, ino, base[1])
            look = _Look(ino, shown[1], {}, NO_STAT, False)
            return self._seen(path + b"/", name, look, base[1])
        if shown == base:
            self._items.append(_Item(path, *base, _low(lower_number(parent, name))))
            return None
        return self._instead(path, name, None, base)

    def _instead(
        self, path: bytes, name: bytes, shown: _Shown | None, base: tuple[int, ObjectID]
    ) -> Directory | None:
        """A name that shows something else than the base has, perhaps nothing."""
        if stat.S_ISDIR(base[0]):
            first = len(self._items)
            entries = self._lower.entries(base[1]).items()
            inside = [self._instead(path + b"/" + each, each, None, its) for each, its in entries]
            listed = [one for one in inside if one is not None]
            return self._directory(name, base[1], first, None, listed)
        is_same = shown is not None and (gitindex.git_mode(shown.mode), shown.id) == (
            gitindex.git_mode(base[0]),
            base[1],
        )
        self._items.append(_Item(path, *base, shown.status if is_same and shown else NO_STAT))
        return None

    def _captured(self, path: bytes, name: bytes, ino: int, tree: ObjectID) -> Directory:
        """A directory that shows a tree as it is: nothing of it is in the upper."""
        first = len(self._items)
        inside = []
        for each, (mode, id) in self._lower.entries(tree).items():
            number = lower_number(ino, each)
            if stat.S_ISDIR(mode):
                inside.append(self._captured(path + each + b"/", each, number, id))
            else:
                self._items.append(_Item(path + each, mode, id, _low(number)))
        core = self._core
        when = core.time_ns
        status = gitindex.stat_bytes(ino, 0, core.uid, core.gid, 4096, when, when)
        return self._directory(name, tree, first, status, inside)

    def _directory(
        self,
        name: bytes,
        tree: ObjectID | None,
        first: int,
        status: bytes | None,
        inside: list[Directory],
    ) -> Directory:
        rules = self._lower.entries(tree).get(b".gitignore")
        is_file = rules is not None and stat.S_ISREG(rules[0])
        is_whole = tree is not None and not self._lower.hidden_entries(tree)
        return Directory(
            name=name,
            tree=bytes.fromhex(tree.decode()) if tree is not None and is_whole else None,
            entries=len(self._items) - first,
            status=status,
            rules=bytes.fromhex(rules[1].decode()) if rules is not None and is_file else None,
            inside=sorted(inside, key=lambda one: one.name),
        )

    # in the loop

    def _look(self, path: bytes) -> _Look:
        def look() -> _Look:
            core = self._core
            with _at(core, path) as node:
                assert isinstance(node, DirNode)
                attrs = core.attrs_of(node)
                names = dict(core.names(node)) if node.upper else {}
                status, settled = self._status(attrs)
                return _Look(node.ino, node.lower, names, status, settled)

        return self._in_loop(look)

    def _files(
        self, path: bytes, names: Sequence[bytes], whiteouts: dict[bytes, bool]
    ) -> dict[bytes, _Shown]:
        """The files among some names of an upper directory."""
        wanted = [name for name in names if not whiteouts[name]]
        shown: dict[bytes, _Shown] = {}
        for start in range(0, len(wanted), _AT_ONCE):
            part = wanted[start : start + _AT_ONCE]
            shown.update(self._in_loop(lambda part=part: self._some(path, part)))  # type: ignore[misc]
        return shown

    def _some(self, path: bytes, names: Sequence[bytes]) -> dict[bytes, _Shown]:
        core = self._core
        shown = {}
        with _at(core, path.rstrip(b"/")) as directory:
            if not isinstance(directory, DirNode):
                return {}
            for name in names:
                node = core.child(directory, name)
                if isinstance(node, FileNode):
                    attrs = core.attrs_of(node)
                    status, settled = self._status(attrs)
                    id = core.known_content(node) if settled else None
                    shown[name] = _Shown(attrs.mode, id, status)
                core.drop_if_unused(node)
        return shown

    def _status(self, attrs: Attrs) -> tuple[bytes, bool]:
        status = gitindex.stat_bytes(
            *(attrs.ino, 0, attrs.uid, attrs.gid, attrs.size, attrs.mtime_ns, attrs.ctime_ns)
        )
        changed_ns = max(attrs.mtime_ns, attrs.ctime_ns)
        needed_ns = _SETTLED_NS if changed_ns % _SECOND_NS else _SETTLED_WHOLE_NS
        is_as_captured = changed_ns == self._core.time_ns
        return status, is_as_captured or changed_ns + needed_ns < self._now_ns


@contextmanager
def _at(core: ContentAddressedMount, path: bytes) -> Iterator[Node | None]:
    """The node of a path from the root, which is the empty one."""
    if not path:
        yield core.root
        return
    with found(core, path) as node:
        yield node


def _low(ino: int) -> bytes:
    return (ino & _LOW).to_bytes(4, "big")
