"""Git inside a mount: the ``.git`` that it shows, and git's index written from what the view knows.

Owns what a session does so that stock git works below its mountpoint: the pinned file by which git finds its private
directory (``repo/linked.py``), and an index whose times, sizes and inode numbers are those that the mount shows, so
that the first ``git status`` reads no file. It is written when ``.git`` is first opened, in the thread that answers:
mounting costs the same however large the repository is. Of a tree that is not large, what it will say is put together
when the mount has begun, while the command that made it ends.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from heddle.attribution import Agent
from heddle.errors import DataError, HeddleError, NotMounted
from heddle.mount import everything, foretold, fsmonitor
from heddle.mount.journal import Changes, Journal
from heddle.mount.listing import SETTLED_NS, Listing
from heddle.mount.makers import Makers, only_looks
from heddle.repo import gitindex, keptindex, linked, worktreeconfig
from heddle.repo.gitindex import Listed
from heddle.repo.keptindex import Kept

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.mount.overlay import Overlay

log = logging.getLogger(__name__)

NAME = b".git"
_ALL_FILES, _MANY_FILES = "0", "2000"
_AS_MANY_FILES = 4
"""What a directory counts as: git looks at each as well, for what it does not know."""
_PATIENCE_S = 1.0
_SECOND_NS = 1_000_000_000


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
        agent: Mapping[str, str],
        command: foretold.Command | None,
    ) -> None:
        self.linked = mine
        self._held = held
        self._overlay = overlay
        self._can_be_asked = False
        self._ahead: tuple[str, Kept] | None = None
        self._log_length = 0
        self._makers = Makers(mine.git.path, agent)
        self._lock = threading.Lock()
        self._command = command
        self._begun_s = time.monotonic()
        self._hearing = threading.Lock()

    @classmethod
    def begin(
        cls,
        overlay: Overlay,
        session: str,
        mountpoint: Path,
        thread: str | None,
        *,
        agent: Mapping[str, str],
        command: foretold.Command | None = None,
    ) -> GitView | None:
        """Make git work in a mount that is about to be.

        Args:
            overlay: what is mounted.
            session: the session's short name.
            mountpoint: where.
            thread: None for a read-only mount.
            agent: defaults for which model works in it, by key.
            command: that makes the mount, and may tell (``foretold``).

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
        view = cls(overlay, *taken, agent, command)
        overlay.git_index = view.linked.git.path / "index"
        view._can_be_asked = overlay.core.pin_answer(
            fsmonitor.NAME, view._asked, view._asked_at_once
        )
        view._resume()
        content = b"gitdir: %s\n" % os.fsencode(view.linked.git.path)
        overlay.core.pin(NAME, content, view._opened, view._glance)
        return view

    def _begin_journal(self) -> bytes:
        """Note what changes from now on; returns the token of this moment."""
        journal = self._overlay.core.journal = Journal()
        return journal.token()

    def _monitor(self) -> bool:
        """Have git ask us what changed; whether it will."""
        try:
            return self._can_be_asked and self.linked.monitor(fsmonitor.COMMAND)
        except (HeddleError, OSError) as error:
            log.warning("git is not told what changed: %s", error)
            return False

    def _resume(self) -> None:
        """Go on with git's things of an earlier mount."""
        try:
            is_monitored = self.linked.has_index and self.linked.is_monitored()
            if not self.linked.use_settings():
                return
        except (HeddleError, OSError) as error:
            log.warning("git has no settings of this mount: %s", error)
            return
        if is_monitored:
            self._begin_journal()
            if not self._monitor():
                self._overlay.core.journal = None

    def _asked(self, pid: int) -> bytes:
        """What git reads to learn what changed: a new token and the paths, with a NUL behind each.

        Raises:
            OSError: git has to look itself.
        """
        question = fsmonitor.question_of(pid)
        if question is None:
            raise OSError(errno.EOPNOTSUPP, "this is no question of git's that is answered")
        try:
            token, paths = self._changed_since(os.fsencode(question.token))
            has_directories = any(path.endswith(b"/") for path in paths)
            if has_directories and not fsmonitor.knows_directories(question.git):
                raise NotMounted("this git takes no directories")
        except (HeddleError, ValueError, IndexError) as error:
            raise OSError(errno.EOPNOTSUPP, str(error)) from error
        return _told(token, paths)

    def _asked_at_once(self, pid: int) -> bytes | None:
        """The same, in the loop; None where it takes more than a look at what was noted."""
        question = fsmonitor.question_of(pid, at_once=True)
        if question is None:
            return None
        try:
            token, changes = self._noted_since(os.fsencode(question.token))
        except (HeddleError, ValueError):
            return None
        if changes is None or changes.files or any(path.endswith(b"/") for path in changes.paths):
            return None
        return _told(token, changes.paths)

    def _changed_since(self, token: bytes) -> tuple[bytes, list[bytes]]:
        """What changed; not to be called in the loop.

        Args:
            token: of an earlier answer, or what the index began with.

        Returns:
            A new token, and the paths that may have changed.

        Raises:
            NotMounted: nothing was noted here; git has to look itself.
        """
        core, in_loop = self._overlay.core, self._overlay.in_loop
        new, changes = in_loop(lambda: self._noted_since(token))
        if changes is None:
            return new, everything.paths(core, in_loop, self.linked.git.path / "index")
        paths = changes.paths + everything.below(core, in_loop, changes.paths)
        if changes.files and core.upper is not None:
            paths += core.upper.names_of(changes.files)
        return new, paths

    def _noted_since(self, token: bytes) -> tuple[bytes, Changes | None]:
        core = self._overlay.core
        if core.journal is None:
            raise NotMounted("what changes here is not noted")
        changes = core.journal.since(token)
        if changes is not None:  # of what is open for writing the kernel may hold bytes
            paths = changes.paths + self._overlay.writers()
            linked = {
                each.real_ino for each in core.open_for_writing() if core.has_more_names(each)
            }
            changes = Changes(paths, changes.files | linked)
        return core.journal.token(), changes

    def end(self) -> None:
        """The mount is gone: leave no trace in git, unless the next command has to see where git went."""
        base = self._overlay.base
        try:
            if not linked.leave(self.linked, base):
                linked.put_aside(self._overlay.repo, self.linked, base)
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

    def _glance(self, pid: int) -> bool:
        """Whether somebody who begins to use git only looks, and all that `_opened` does is done; in the loop."""
        return (
            self._command is None
            and not self._hearing.locked()
            and linked.log_length(self.linked.git.path) == self._log_length
            and self.linked.has_index
            and only_looks(pid)
        )

    def _opened(self, pid: int) -> None:
        """Somebody begins to use git: have an index for it, and note who it is."""
        self.hear()
        with self._lock:
            self._makers.note(pid)
            self._note_logged()
            if not self.linked.has_index:
                try:
                    self._write_index()
                except (OSError, HeddleError) as error:
                    # Git can do without, or says itself why not.
                    log.warning("no index for git: %s", error)

    def _note_logged(self) -> None:
        length = linked.log_length(self.linked.git.path)
        if length != self._log_length:
            self._log_length = length
            with suppress(OSError):
                self.linked.note_logged()

    def list_ahead(self) -> None:
        """Have at hand what the first git command here would wait for, unless that takes long; not in the loop."""
        with self._lock:
            if self.linked.has_index:
                return
            try:
                files = foretold.count_files(self.linked.git)
                if self._ahead is None and files and files <= foretold.TOLD:
                    self._listed(self._tree())
                if self._ahead is not None and self._is_large(self._ahead[1].listed):
                    worktreeconfig.may_be_on(self.linked.git)  # loads what it takes
            except (OSError, HeddleError) as error:
                log.debug("nothing is listed for git ahead: %s", error)

    def hear(self) -> None:
        """Wait for what the command tells that made the mount, for a second at most; not in the loop."""
        with self._hearing:
            command, self._command = self._command, None
            told = None if command is None else command.hear(self._begun_s + _PATIENCE_S)
            if told is not None:
                lower = self._overlay.core.lower
                lower.keep_sizes(told.sizes)
                lower.keep_counts(told.kept.counts)
                self._remember(told.name, told.kept)

    def _remember(self, name: str, kept: Kept) -> None:
        self._ahead = name, kept
        if self._is_large(kept.listed):
            keptindex.save(self._kept, name, kept)

    def _tree(self) -> ObjectID | None:
        base = self._overlay.base
        return None if base is None else self._overlay.repo.state(base).tree

    def _write_index(self) -> None:
        started = time.monotonic()
        overlay, git = self._overlay, self.linked.git
        tree = self._tree()
        monitored: bytes | None = overlay.in_loop(self._begin_journal)
        looked_ns = time.time_ns()
        listed, root = self._listed(tree)
        left_ns = _left_of_second(overlay.core.time_ns)
        asked_from = _ALL_FILES if left_ns else _MANY_FILES
        if not (self._is_large(listed, asked_from) and self._monitor()):
            monitored = overlay.core.journal = None
            if left_ns:
                time.sleep(left_ns / _SECOND_NS)
                looked_ns = time.time_ns()
                listed, root = self._listed(tree)  # what changed has other stats
        try:
            gitindex.write(
                git.path / "index",
                listed,
                root,
                object_format=overlay.core.lower.object_format,
                checkout=git.checkout,
                excludes=(_content(git.common / "info" / "exclude"), _content(_user_excludes())),
                monitored=monitored,
                looked_ns=looked_ns - SETTLED_NS,
            )
        except FileExistsError:
            return
        finally:
            self._ahead = None
        log.info("wrote git's index in %.0f ms", (time.monotonic() - started) * 1000)

    def _is_large(self, listed: Listed, many: str = _MANY_FILES) -> bool:
        """Whether asking what changed takes git less time than looking at everything.

        Args:
            listed: a tree.
            many: how many files are, where nobody has said that.
        """
        try:
            least = self._overlay.repo.config.number("git.fsmonitor_files", many)
        except HeddleError:
            least = float(many)
        return listed.length + _AS_MANY_FILES * len(listed.valid) >= least

    def _listed(self, tree: ObjectID | None) -> tuple[Listed, bytes | None]:
        """What the index is to say, and the root's stat.

        Of a large tree in which nothing was changed yet it is the same for every mount by this user.
        """
        core = self._overlay.core
        listing = Listing(
            core,
            self._overlay.in_loop,
            index=self.linked.git.common / "index",
        )
        look = listing.look_at_root()
        is_fresh = tree is not None and look.lower == tree and not look.names
        name = "" if tree is None else listing.name_of(tree)
        if is_fresh and (known := self._known(name)) is not None:
            return known, look.status if look.settled else None
        root = listing.run(look, tree)
        listed = gitindex.collect(listing.entries, root)
        if is_fresh and listing.knew_all:
            self._remember(name, Kept(listed, listing.counts))
        return listed, root.status

    def _known(self, name: str) -> Listed | None:
        """What is at hand of a tree, by the name of its listing; of what an earlier session kept, the counts too."""
        if self._ahead is not None and self._ahead[0] == name:
            return self._ahead[1].listed
        kept = keptindex.load(self._kept, name)
        if kept is None:
            return None
        self._overlay.core.lower.keep_counts(kept.counts)
        return kept.listed

    @property
    def _kept(self) -> Path:
        return self._overlay.repo.heddle_dir / keptindex.DIRECTORY


def _left_of_second(time_ns: int) -> int:
    """How much is left of the second that a time lies in, in ns, if it is the present one; else 0.

    A little longer, since a change may bear a time that is that much too early.

    Git that looks for itself may go by whole seconds: it would read every file that has the time of a state made in
    this one, and could not tell one that is changed in the rest of it.
    """
    end_ns = (time_ns // _SECOND_NS + 1) * _SECOND_NS + SETTLED_NS
    left_ns = end_ns - time.time_ns()
    return left_ns if 0 < left_ns <= _SECOND_NS + SETTLED_NS else 0


def _told(token: bytes, paths: Iterable[bytes]) -> bytes:
    """As git's protocol has it (githooks(5), "fsmonitor-watchman", version 2)."""
    return b"".join(each + b"\0" for each in (token, *paths))


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _user_excludes() -> Path:
    """Where git looks for the user's rules unless told otherwise; where it was, it looks at directories itself."""
    return Path("~/.config/git/ignore").expanduser()
