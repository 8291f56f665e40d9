"""The refs of a git repository: reading them cheaply, moving them as git would.

Owns compare-and-set with a reflog entry, which branches a checkout holds, and the signature by which a later look
sees that nothing has moved. The files' formats are dulwich's; what a branch means to a thread is ``branches.py``'s.
"""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from heddle.errors import (
    Busy,
    DataError,
    HeddleError,
    NotPermitted,
    StorageError,
    Unavailable,
)
from heddle.repo import gitlink, linked
from heddle.repo.gitlink import GitDir

if TYPE_CHECKING:
    from dulwich.config import ConfigFile
    from dulwich.objects import ObjectID

    from heddle.repo.gitfiles import RefFiles

HEADS = b"refs/heads/"
TAGS = b"refs/tags/"
_SYMBOLIC = b"ref: "


class RefMoved(Busy):
    """Compare-and-set failed: git's ref moved since this change began."""

    kind = "ref_moved"


def find(path: Path) -> GitDir:
    """The git repository at a path: a checkout, its ``.git``, or a bare repository.

    Raises:
        DataError: there is none.
    """
    found = gitlink.find(path)
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

    Attributes:
        config: the repository's own configuration.

    Raises:
        DataError: it has a format that is newer than what is known here, or can't be read.
    """

    def __init__(self, git: GitDir) -> None:
        self.git = git
        self.config: ConfigFile = gitlink.check_format(git)

    @cached_property
    def _files(self) -> RefFiles:
        from heddle.repo.gitfiles import RefFiles

        return RefFiles(self.git.common, self.git.path)

    def _setting(self, section: bytes, name: bytes) -> bytes | None:
        try:
            return self.config.get((section,), name)
        except KeyError:
            return None

    @property
    def is_bare(self) -> bool:
        """Whether it has no checkout of its own."""
        return gitlink.is_bare(self.git)

    @property
    def object_format(self) -> str:
        """``sha1`` or ``sha256``."""
        return (self._setting(b"extensions", b"objectformat") or b"sha1").decode().lower()

    # reading

    def head(self) -> tuple[bytes | None, ObjectID | None]:
        """The full name of the ref that HEAD is on (None: detached), and its commit (None: not born)."""
        return gitlink.follow_head(self.git, self._files)

    def get(self, ref: bytes) -> ObjectID | None:
        """What a ref names, through symbolic refs; None where there is none."""
        from dulwich.refs import Ref

        with self._naming_damage():
            try:
                return self._files[Ref(ref)]
            except KeyError:
                return None

    def under(
        self, prefix: bytes, damaged: dict[bytes, StorageError] | None = None
    ) -> dict[bytes, ObjectID]:
        """Everything that refs below a prefix name, by the rest of their names; those that lead nowhere are left out.

        Args:
            damaged: gets the refs that can't be read, which are else an error, by the rest of their names.
        """
        from dulwich.refs import Ref

        prefix = prefix.rstrip(b"/")
        with self._naming_damage():
            packed = self._files.only_packed(
                prefix + b"/"
            )  # no file for each of 20,000 is looked for
            found = {bytes(name[len(prefix) + 1 :]): id for name, id in packed.items()}
            for name in self._files.subkeys(Ref(prefix)) - found.keys():
                try:
                    found[bytes(name)] = self._files[Ref(prefix + b"/" + name)]
                except KeyError:
                    continue
                except StorageError as error:
                    if damaged is None:
                        raise
                    damaged[bytes(name)] = error
        return found

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

    def move_all(
        self,
        moves: Iterable[tuple[bytes, ObjectID | None, ObjectID]],
        *,
        who: bytes,
        message: bytes,
        environment: Mapping[str, str],
    ) -> None:
        """Move many refs or none, as ``move`` does one; stock git does it, in one transaction.

        Args:
            moves: of each its full name, where it has to be (None: nowhere), and where it goes.
            environment: of git.

        Raises:
            RefMoved, Busy, DataError, NotPermitted, StorageError: as ``move``; nothing was changed.
            Unavailable: git can't be run.
        """
        words = [
            b"update %b\0%b\0%b\0" % (ref, new, old or b"0" * len(new)) for ref, old, new in moves
        ]
        if not words:
            return
        name, _, email = os.fsdecode(who).rpartition(" <")
        by = {"GIT_COMMITTER_NAME": name, "GIT_COMMITTER_EMAIL": email.rstrip(">")}
        command = ["git", f"--git-dir={self.git.common}", "update-ref", "--stdin", "-z"]
        command += ["-m", os.fsdecode(message)]
        others = {key: value for key, value in environment.items() if key[:4] != "GIT_"}
        try:
            done = subprocess.run(
                command, input=b"".join(words), capture_output=True, env={**others, **by}
            )
        except (FileNotFoundError, PermissionError) as error:
            raise Unavailable("git can't be run, and moves its refs", hint="install git") from error
        if done.returncode != 0:
            raise _refusal(done.stderr.decode(errors="replace").strip().removeprefix("fatal: "))

    def log_head(self, old: ObjectID | None, new: ObjectID, who: bytes, message: bytes) -> None:
        """Write into HEAD's reflog that the branch it is on was moved; raises as ``move``."""
        with self._as_errors(b"logs/HEAD"):
            self._log(b"HEAD", old, new, who, message)

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
        """Delete a ref and its reflog if it is where it has to be; returns whether it was. Raises as ``move``."""
        from dulwich.refs import Ref

        with self._as_errors(ref):
            if not self._files.remove_if_equals(Ref(ref), old):
                return False
        log = self.git.common / "logs" / os.fsdecode(ref)
        with suppress(OSError):  # a directory that others need stays
            log.unlink(missing_ok=True)
            for above in list(log.parents)[: ref.count(b"/") - 1]:
                above.rmdir()
        return True

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


def _refusal(said: str) -> HeddleError:
    """What it means that git moves no ref."""
    if "File exists" in said:
        return Busy(f"git's refs are locked: {said}", hint="run it again, or do as git says")
    if "but expected" in said or "reference already exists" in said:
        return RefMoved(f"git's refs have moved: {said}", hint="nothing was lost; run it again")
    if "cannot create" in said:
        return DataError(f"git can't have one ref beside another: {said}", hint="git remote prune")
    if "ermission denied" in said or "Read-only file system" in said:
        return NotPermitted(f"git can't write its refs: {said}")
    return StorageError(f"git can't move its refs: {said}", hint="git fsck says more")


_LOGGED = (HEADS, b"refs/remotes/", b"refs/notes/")


# without reading refs


def signature(git: GitDir) -> bytes:
    """A value that changes when HEAD, a mount's or a branch does; costs some small reads, imports nothing."""
    parts = heads(git)
    for name in ("packed-refs", "reftable/tables.list"):
        try:
            found = os.stat(git.common / name)
            parts.append(b"%d %d %d" % (found.st_mtime_ns, found.st_size, found.st_ino))
        except OSError:
            parts.append(b"")
    parts += [b"%s %s" % loose for loose in sorted(_loose(os.fsencode(git.common / "refs/heads")))]
    return b"\n".join(parts)


def heads(git: GitDir) -> list[bytes]:
    """What HEAD holds, here and in every mount."""
    return [_read(each / "HEAD") for each in (git.path, *linked.private_directories(git))]


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


def _text(name: bytes | str) -> str:
    return os.fsdecode(name)


def _short(id: ObjectID | None) -> str:
    return "no commit" if id is None else id[:12].decode()
