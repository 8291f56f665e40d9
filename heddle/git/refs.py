"""The refs of a git repository: reading them cheaply, moving them as git would.

Owns compare-and-set with a reflog entry, which branches a checkout holds, and the signature by which a later look
sees that nothing has moved. The files' formats are dulwich's; what a branch means to a thread is ``branches.py``'s.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from heddle.errors import Busy, DataError, NotPermitted, StorageError
from heddle.repo import gitlink
from heddle.repo.gitlink import GitDir

if TYPE_CHECKING:
    from dulwich.config import ConfigFile
    from dulwich.objects import ObjectID
    from dulwich.refs import DiskRefsContainer

HEADS = b"refs/heads/"
TAGS = b"refs/tags/"
_SYMBOLIC = b"ref: "
_KNOWN_EXTENSIONS = {
    *(b"objectformat", b"worktreeconfig", b"partialclone", b"noop", b"preciousobjects"),
    b"relativeworktrees",
}


class RefMoved(Busy):
    """Compare-and-set failed: git's ref moved since this change began."""

    kind = "ref_moved"


def find(path: Path) -> GitDir:
    """The git repository at a path: a checkout, its ``.git``, or a bare repository.

    Raises:
        DataError: there is none.
    """
    found = gitlink.find(path) if (path / ".git").exists() else None
    if found is not None:
        return found
    if all((path / name).exists() for name in ("HEAD", "objects", "refs")):
        path = path.resolve()
        return GitDir(path.parent if path.name == ".git" else path, path, path)
    raise DataError(f"{path} is not a git repository", hint="git init --bare makes one")


class GitRefs:
    """The refs of one git repository.

    Args:
        git: where it is.

    Raises:
        DataError: it has a format that is newer than what is known here.
    """

    def __init__(self, git: GitDir) -> None:
        self.git = git
        self._check_format()

    @cached_property
    def _files(self) -> DiskRefsContainer:
        from dulwich.refs import DiskRefsContainer

        return DiskRefsContainer(self.git.common, self.git.path)

    @cached_property
    def config(self) -> ConfigFile:
        """The repository's own configuration."""
        from dulwich.config import ConfigFile

        path = self.git.common / "config"
        try:
            return ConfigFile.from_path(path)
        except FileNotFoundError:
            return ConfigFile()
        except ValueError as error:
            raise DataError(f"git's {path} can't be read: {error}", hint="edit the file") from error

    def _check_format(self) -> None:
        """Refuse what gitrepository-layout(5) and git-config(1) did not know when this was written."""
        version = self._setting(b"core", b"repositoryformatversion") or b"0"
        unknown = set()
        if (b"extensions",) in self.config:
            unknown = set(self.config[(b"extensions",)].keys()) - _KNOWN_EXTENSIONS
        if version not in (b"0", b"1") or unknown:
            what = ", ".join(sorted(name.decode(errors="replace") for name in unknown))
            raise DataError(
                f"the git repository in {self.git.common} has a format that heddle does not know"
                f" (version {version.decode(errors='replace')}{', ' + what if what else ''})"
            )

    def _setting(self, section: bytes, name: bytes) -> bytes | None:
        try:
            return self.config.get((section,), name)
        except KeyError:
            return None

    @property
    def is_bare(self) -> bool:
        """Whether it has no checkout."""
        bare = (self._setting(b"core", b"bare") or b"").lower()
        return bare == b"true" or (not bare and self.git.checkout == self.git.path)

    @property
    def object_format(self) -> str:
        """``sha1`` or ``sha256``."""
        return (self._setting(b"extensions", b"objectformat") or b"sha1").decode().lower()

    # reading

    def head(self) -> tuple[bytes | None, ObjectID | None]:
        """The full name of the ref that HEAD is on (None: detached), and its commit (None: not born)."""
        from dulwich.refs import HEADREF

        with self._naming_damage():
            names, commit = self._files.follow(HEADREF)
        return (names[-1] if len(names) > 1 else None), commit

    def get(self, ref: bytes) -> ObjectID | None:
        """What a ref names, through symbolic refs; None where there is none."""
        from dulwich.refs import Ref

        with self._naming_damage():
            try:
                return self._files[Ref(ref)]
            except KeyError:
                return None

    def under(self, prefix: bytes) -> dict[bytes, ObjectID]:
        """Everything that refs below a prefix name, by the rest of their names; broken refs are left out."""
        from dulwich.refs import Ref

        with self._naming_damage():
            return {bytes(name): id for name, id in self._files.as_dict(Ref(prefix)).items()}

    def verbatim(self) -> dict[bytes, bytes]:
        """Every ref but HEAD by full name, with what it holds: an id, or ``ref: `` and a name."""
        with self._naming_damage():
            held = {bytes(name): self._files.read_ref(name) for name in self._files.allkeys()}
        return {
            name: target
            for name, target in held.items()
            if target is not None and name.startswith(b"refs/")
        }

    @contextmanager
    def _naming_damage(self) -> Iterator[None]:
        from dulwich.errors import PackedRefsException, RefFormatError
        from dulwich.refs import SymrefLoop

        try:
            yield
        except (PackedRefsException, RefFormatError, SymrefLoop, ValueError, KeyError) as error:
            raise StorageError(
                f"the refs of {self.git.common} are damaged: {error}", hint="git fsck says more"
            ) from error

    # moving

    def move(
        self, ref: bytes, old: ObjectID | None, new: ObjectID, *, who: bytes, message: bytes
    ) -> None:
        """Move a ref from where it has to be, and write that into the reflog.

        Args:
            ref: its full name.
            old: where it has to be; None: it must not exist.
            new: an object that the repository has.
            who: ``Name <email>``.
            message: for the reflog.

        Raises:
            RefMoved: it is elsewhere; nothing was changed.
            Busy: somebody has it locked.
            DataError: it can't exist beside another ref, or the name is no ref's.
            NotPermitted: it can't be written.
        """
        from dulwich.objects import ZERO_SHA
        from dulwich.refs import Ref

        was_on = self.head()[0]
        with self._as_errors(ref):
            done = self._files.set_if_equals(Ref(ref), old or ZERO_SHA, new)
        if not done:
            raise RefMoved(
                f"git's {_text(ref)} is no longer at {_short(old)}",
                hint="nothing was lost; run it again",
            )
        with self._as_errors(b"logs/" + ref):
            for name in [ref, b"HEAD"] if was_on == ref else [ref]:
                self._log(name, old, new, who, message)

    def put_head(self, ref: bytes, *, who: bytes, message: bytes) -> None:
        """Put HEAD on a branch, as ``git symbolic-ref`` with a reflog entry; raises as ``move``."""
        from dulwich.refs import HEADREF, Ref

        old = self.head()[1]
        with self._as_errors(b"HEAD"):
            self._files.set_symbolic_ref(HEADREF, Ref(ref))
        new = self.get(ref)
        if new is not None:
            self._log(b"HEAD", old, new, who, message)

    def put_symbolic(self, ref: bytes, target: bytes) -> None:
        """Make a ref stand for another one; raises as ``move``."""
        from dulwich.refs import Ref

        with self._as_errors(ref):
            self._files.set_symbolic_ref(Ref(ref), Ref(target))

    def remove(self, ref: bytes, old: ObjectID) -> bool:
        """Delete a ref if it is where it has to be; returns whether it was. Raises as ``move``."""
        from dulwich.refs import Ref

        with self._as_errors(ref):
            return self._files.remove_if_equals(Ref(ref), old)

    @contextmanager
    def _as_errors(self, ref: bytes) -> Iterator[None]:
        from dulwich.errors import RefFormatError
        from dulwich.file import FileLocked

        try:
            yield
        except FileLocked as error:
            lock = _text(error.lockfilename)
            raise Busy(
                f"git's {_text(ref)} is locked by {lock}",
                hint=f"run it again; if no git is running, remove {lock}",
            ) from error
        except RefFormatError as error:
            raise DataError(f"{_text(ref)} can't be a ref of git") from error
        except (NotADirectoryError, IsADirectoryError, FileExistsError) as error:
            raise DataError(
                f"git can't have {_text(ref)} beside another ref that is a directory of it,"
                " or the other way round",
                hint="heddle thread rename",
            ) from error
        except PermissionError as error:
            raise NotPermitted(f"can't write {_text(ref)} in {self.git.common}") from error
        except OSError as error:
            kind = NotPermitted if error.errno == errno.EROFS else StorageError
            raise kind(
                f"can't write {_text(ref)} in {self.git.common}: {error.strerror}"
            ) from error

    def _log(
        self, name: bytes, old: ObjectID | None, new: ObjectID, who: bytes, message: bytes
    ) -> None:
        """Append to a reflog as core.logAllRefUpdates says (git-config(1))."""
        base = self.git.path if name == b"HEAD" else self.git.common
        path = base / "logs" / os.fsdecode(name)
        wanted = (self._setting(b"core", b"logallrefupdates") or b"").lower()
        if wanted == b"false" or (not wanted and self.is_bare):
            if not path.exists():
                return
        elif wanted != b"always" and name != b"HEAD" and not name.startswith(_LOGGED):
            return
        from dulwich.reflog import format_reflog_line

        now_s = int(time.time())
        zone_s = time.localtime(now_s).tm_gmtoff
        before = old or b"0" * len(new)
        line = format_reflog_line(before, new, who, now_s, zone_s, message.replace(b"\n", b" "))
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(line.rstrip(b"\n") + b"\n")


_LOGGED = (HEADS, b"refs/remotes/", b"refs/notes/")


# without reading refs


def signature(git: GitDir) -> bytes:
    """A value that changes when HEAD or a branch does; costs a stat and the loose branches, imports nothing."""
    parts = [_read(git.path / "HEAD")]
    for name in ("packed-refs", "reftable/tables.list"):
        try:
            found = os.stat(git.common / name)
            parts.append(b"%d %d %d" % (found.st_mtime_ns, found.st_size, found.st_ino))
        except OSError:
            parts.append(b"")
    parts += [b"%s %s" % loose for loose in sorted(_loose(os.fsencode(git.common / "refs/heads")))]
    return b"\n".join(parts)


def _loose(directory: bytes) -> Iterator[tuple[bytes, bytes]]:
    try:
        entries = list(os.scandir(directory))
    except OSError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _loose(entry.path)
        elif not entry.name.endswith(b".lock"):
            yield entry.path, _read(Path(os.fsdecode(entry.path)))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes().strip()
    except OSError:
        return b""


def checked_out(git: GitDir) -> dict[bytes, Path]:
    """The branches that a checkout is on or is rebasing, by full ref name: moving them is not for others."""
    places = {git.common: git.common.parent if git.common.name == ".git" else git.common}
    for private in (git.common / "worktrees").glob("*"):
        places[private] = Path(os.fsdecode(_read(private / "gitdir"))).parent
    places[git.path] = git.checkout
    found = {}
    for private, checkout in places.items():
        for name in ("HEAD", "rebase-merge/head-name", "rebase-apply/head-name"):
            held = _read(private / name).removeprefix(_SYMBOLIC)
            if held.startswith(HEADS):
                found[held] = checkout
    return found


def unfinished(git: GitDir) -> str | None:
    """What git is in the middle of in a checkout: ``merge``, ``cherry-pick`` or ``revert``; None: nothing."""
    files = {"merge": "MERGE_HEAD", "cherry-pick": "CHERRY_PICK_HEAD", "revert": "REVERT_HEAD"}
    return next((what for what, name in files.items() if (git.path / name).exists()), None)


def _text(name: bytes | str) -> str:
    return os.fsdecode(name)


def _short(id: ObjectID | None) -> str:
    return "no commit" if id is None else id[:12].decode()
