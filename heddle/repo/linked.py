"""What git keeps of a mount: its private directory, as every linked worktree has one (gitrepository-layout(5)).

Owns ``.git/worktrees/heddle-<id>``: making it without git, telling whether its mount is alive, putting it aside at an
unmount together with what git was in the middle of, and taking it away. Nothing is shared between mounts but the
directory above, so that any number of them can come and go at once. What git does in it is git's; what it means to
threads is ``git/branches.py``'s; the index in it is ``mount/gitview.py``'s.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from heddle import faults
from heddle.errors import DataError, HeddleError
from heddle.repo import gitconfig, gitindex, gitlink, worktreeconfig
from heddle.repo.gitlink import GitDir
from heddle.repo.names import overlay_dir

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.repo.repository import Repository

PREFIX = "heddle-"
NOTE = "heddle"
"""JSON in a private directory: whose it is. Its mount's session holds a flock(2) on it."""
AGREED = "heddle-agreed"
"""In a private directory whose HEAD stands for a branch: the commit at which it was in step with the thread."""
SHOWN = "heddle-shown"
"""In a private directory whose HEAD is on the thread's branch: the commit that its index was last brought to."""
LOGGED = "heddle-logged"
"""In a private directory: where HEAD's reflog said that HEAD is when git was last used there."""
PUT_ASIDE = "git"
"""In an overlay's directory: the private directory of a thread that is not mounted just now."""
HEADS = b"refs/heads/"
_SYMBOLIC = b"ref: "
_MONITOR_LINE = re.compile(rb"\s*fsmonitor(hookversion)?\s*=", re.IGNORECASE)
_MONITOR_SECTION = "[core] # of heddle's mount"
_MONITOR = b"heddle-fsmonitor"
"""In the command that is ours."""
_TRIES = 100
DETACHING = ("rebase", "bisect")
"""What git does with HEAD detached, on its way from one commit to another."""
_UNFINISHED = {
    "am": ("rebase-apply/applying",),
    "rebase": ("rebase-merge", "rebase-apply"),
    "merge": ("MERGE_HEAD",),
    "cherry-pick": ("CHERRY_PICK_HEAD",),
    "revert": ("REVERT_HEAD",),
    "bisect": ("BISECT_LOG",),
}


class Linked(NamedTuple):
    """A mount as git knows it.

    Attributes:
        git: where git keeps its things: ``checkout`` is the mountpoint, ``path`` the private directory.
        thread: the mounted thread; None for a read-only mount.
        base: what the mount showed when the directory was put aside, as hex; None: it was not, or nothing.
    """

    git: GitDir
    thread: str | None
    base: str | None = None

    @property
    def stands_in(self) -> bool:
        """Whether HEAD was detached because the thread's branch is checked out elsewhere, and stands for it."""
        return (self.git.path / AGREED).exists()

    def detach(self, commit: ObjectID) -> None:
        """Have HEAD, detached at a commit, stand for a branch that git can't have."""
        self.agree(commit)
        temporary = self.git.path / f"HEAD.{os.getpid()}"
        _write_lines(temporary, commit.decode())
        os.rename(temporary, self.git.path / "HEAD")

    def doing(self) -> str | None:
        """What git is in the middle of there: ``rebase``, ``merge``, …; None: nothing."""
        return unfinished(self.git)

    def head(self) -> bytes:
        """What HEAD holds: ``ref: `` and a full name, or a commit's hex id."""
        return _read(self.git.path / "HEAD")

    def is_on_thread(self) -> bool:
        """Whether HEAD is on the thread's branch, or stands for it."""
        head = self.head()
        if head.startswith(_SYMBOLIC):
            return self.thread is not None and head == _SYMBOLIC + HEADS + self.thread.encode()
        return self.stands_in and self.doing() not in DETACHING

    def agreed(self) -> ObjectID | None:
        """Where HEAD was when it was last in step with the thread that it stands for."""
        return cast("ObjectID", _read(self.git.path / AGREED)) or None

    def shown(self) -> ObjectID | None:
        """The commit that the index was last known to belong to; its reflog may have been expired since."""
        return cast("ObjectID", _read(self.git.path / SHOWN)) or None

    def note_shown(self, commit: ObjectID) -> None:
        """The index belongs to a commit now; not durable: the reflog says the same, as long as it is there."""
        if commit != self.shown():
            _write_lines(self.git.path / SHOWN, commit.decode())

    def agree(self, commit: ObjectID) -> None:
        """HEAD is in step with the thread that it stands for."""
        if commit != self.agreed():
            temporary = self.git.path / f"{AGREED}.{os.getpid()}"
            _write_lines(temporary, commit.decode())
            faults.reach("linked.before-agreed")
            os.rename(temporary, self.git.path / AGREED)

    def note_logged(self) -> None:
        """Note where git's last command here left HEAD, in case the reflog's entries expire; not durable."""
        logged = self.last_logged()
        if logged and logged != _read(self.git.path / LOGGED):
            _write_lines(self.git.path / LOGGED, logged.decode("ascii", "replace"))

    def is_monitored(self) -> bool:
        """Whether git asks us what changed here, and nobody has told it otherwise; raises ConfigError."""
        said = gitconfig.values(self._settings, b"core", b"fsmonitor")
        return bool(said) and _MONITOR in said[-1]

    def monitor(self, command: str) -> bool:
        """Have git ask a command what changed here (``core.fsmonitor``); what else is in the settings stays.

        Returns:
            Whether it will: no checkout has settings of its own where git's owner does not want that.

        Raises:
            ConfigError: git's configuration can't be read.
            Busy: git is writing it just now.
            OSError: the settings can't be read or written.
        """
        if not worktreeconfig.may_be_on(self.git):
            return False
        try:
            lines = self._settings.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            lines = []
        quoted = command.replace("\\", "\\\\").replace('"', '\\"')
        ours = f'{_MONITOR_SECTION}\n\tfsmonitor = "{quoted}"\n\tfsmonitorHookVersion = 2\n'
        section = _MONITOR_SECTION.encode()
        kept = b"".join(
            line for line in lines if not (_MONITOR_LINE.match(line) or line.startswith(section))
        )
        if kept and not kept.endswith(b"\n"):
            kept += b"\n"
        temporary = self.git.path / "heddle-config"
        temporary.write_bytes(ours.encode(errors="surrogateescape") + kept)
        temporary.chmod(self.git.path.stat().st_mode & 0o666)
        faults.reach("linked.before-settings")
        os.rename(temporary, self._settings)
        return worktreeconfig.turn_on(
            self.git
        )  # last: a mount that ends meanwhile sees that they are needed

    def use_settings(self) -> bool:
        """Have git read the settings that there are; returns whether there are any. Raises as ``turn_on``."""
        return self._settings.exists() and worktreeconfig.turn_on(self.git)

    @property
    def _settings(self) -> Path:
        return self.git.path / worktreeconfig.SETTINGS

    @property
    def has_index(self) -> bool:
        """Whether git was used there."""
        return (self.git.path / "index").exists()

    def last_logged(self) -> bytes | None:
        """Where the last entry of HEAD's reflog says that HEAD is, as hex; None: there is no reflog.

        Where all entries were expired, what was noted before; empty if nothing was.
        """
        path = self.git.path / "logs" / "HEAD"
        lines = _read(path).splitlines()
        if not lines and path.exists():
            return _read(self.git.path / LOGGED)
        words = lines[-1].split(b" ", 2) if lines else []
        return words[1] if len(words) > 1 else None


def log_length(path: Path) -> int:
    """How long HEAD's reflog in a private directory is, in bytes; 0: there is none."""
    try:
        return (path / "logs" / "HEAD").stat().st_size
    except OSError:
        return 0


# which there are


def place(git: GitDir, session: str) -> Path:
    """The private directory of a session's mount."""
    return git.common / "worktrees" / f"{PREFIX}{session}"


def private_directories(git: GitDir) -> list[Path]:
    """The private directories of mounts, of whatever heddle repository, dead ones too."""
    above = git.common / "worktrees"
    try:
        names = os.listdir(above)
    except OSError:
        return []
    return [above / name for name in sorted(names) if name.startswith(PREFIX)]


def of(repo: Repository, thread: str | None = None) -> list[Linked]:
    """The private directories of a repository's mounts, dead ones too.

    Args:
        thread: only those of its mounts.
    """
    if repo.git is None:
        return []
    found = _ours(repo, repo.git, private_directories(repo.git))
    return [each for each in found if thread is None or each.thread == thread]


def _ours(repo: Repository, git: GitDir, paths: Iterable[Path]) -> Iterator[Linked]:
    """Those private directories that are of this repository's mounts; others may be on the same git."""
    for path in paths:
        linked = read(path, git.common)
        if linked is not None and _note(path).get("repository") == str(repo.path):
            yield linked


def stand_ins_agree(repo: Repository) -> bool:
    """Whether every HEAD that stands for a branch is where its thread is, as far as heddle moved that."""
    assert repo.git is not None
    for path in private_directories(repo.git):
        if not (path / AGREED).exists():
            continue
        found = read(path, repo.git.common)
        thread = None if found is None else repo.database.thread(found.thread or "")
        if found is not None and thread is not None and thread.state != found.agreed():
            return False
    return True


def read(path: Path, common: Path) -> Linked | None:
    """A private directory, wherever it lies; None: it is none, or not a whole one."""
    note = _note(path)
    checkout = Path(os.fsdecode(_read(path / "gitdir"))).parent
    if "thread" not in note or not (path / "HEAD").exists():
        return None
    git = GitDir(checkout, path, common)
    return Linked(git, note["thread"], note.get("base"))


def _note(path: Path) -> dict[str, Any]:
    try:
        note = json.loads(_read(path / NOTE) or b"{}")
    except ValueError:
        return {}
    return note if isinstance(note, dict) else {}


def holders(git: GitDir) -> dict[bytes, Path]:
    """The branches that a checkout is on or is rebasing, by full ref name, with the checkout."""
    is_bare = gitlink.is_bare(git)
    places = {}
    if not is_bare:
        places[git.common] = git.common.parent if git.common.name == ".git" else git.common
    for private in (git.common / "worktrees").glob("*"):
        places[private] = Path(os.fsdecode(_read(private / "gitdir"))).parent
    if git.path != git.common or not is_bare:
        places[git.path] = git.checkout
    found = {}
    for private, checkout in places.items():
        for name in ("HEAD", "rebase-merge/head-name", "rebase-apply/head-name"):
            held = _read(private / name).removeprefix(_SYMBOLIC)
            if held.startswith(HEADS):
                found[held] = checkout
    return found


def unfinished(git: GitDir) -> str | None:
    """What git is in the middle of in a checkout: ``rebase``, ``merge``, ``cherry-pick`` …; None: nothing."""
    for what, names in _UNFINISHED.items():
        if any((git.path / name).exists() for name in names):
            return what
    return None


def in_the_way(git: GitDir, doing: str) -> DataError:
    """Refuses what has to wait until git in a checkout has finished something.

    Args:
        git: the checkout.
        doing: as `unfinished` says.
    """
    what, way_out = in_words(doing)
    return DataError(f"{what} in {git.checkout}", hint=way_out)


def in_words(doing: str) -> tuple[str, str]:
    """What `unfinished` says, for people: that git is at it, and the commands that end it."""
    article = "an" if doing == "am" else "a"
    end = "reset" if doing == "bisect" else "--continue, or --abort"
    return f"git is in the middle of {article} {doing}", f"git {doing} {end}"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes().strip()
    except OSError:
        return b""


# coming and going


class Held:
    """A private directory in use: its mount lives for as long as this is not closed.

    Args:
        path: the directory.
        wait: for who has it; otherwise that is a BlockingIOError.
    """

    def __init__(self, path: Path, *, wait: bool) -> None:
        self._lock = os.open(path / NOTE, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BaseException:
            os.close(self._lock)
            raise

    def close(self) -> None:
        """The mount is over."""
        os.close(self._lock)


def take(
    repo: Repository,
    session: str,
    mountpoint: Path,
    thread: str | None,
    base: ObjectID | None,
) -> tuple[Linked, Held] | None:
    """Make a mount known to git, or take up what an earlier mount of the thread left.

    Written without git and its locks. ``locked`` comes first and ``gitdir`` last, so that no ``git worktree prune``
    takes a directory away that is being made. HEAD is on the thread's branch; where another checkout holds that, or
    the mount shows an earlier state, HEAD is detached and stands for it.

    Args:
        session: the session's short name.
        mountpoint: absolute.
        thread: None for a read-only mount.
        base: the state that the mount is relative to.

    Returns:
        None where git could not be told what the mount is at: there is no state, and no branch to be born.

    Raises:
        OSError: git's directory can't be written.
    """
    assert repo.git is not None
    path = place(repo.git, session)
    found = read(path, repo.git.common)
    if found is None:
        shutil.rmtree(path, ignore_errors=True)
        _restore(repo, path, mountpoint, thread, base)
        found = read(path, repo.git.common) or _make(repo, path, thread, base)
    if found is None:
        return None
    held = Held(path, wait=True)  # somebody may be looking whether it is alive
    _write_lines(path / "locked", f"a mount of heddle; heddle unmount {thread or mountpoint}")
    _write_lines(path / "gitdir", str(mountpoint / ".git"))
    return found._replace(git=GitDir(mountpoint, path, repo.git.common)), held


def _make(repo: Repository, path: Path, thread: str | None, base: ObjectID | None) -> Linked | None:
    assert repo.git is not None
    ref = None if thread is None else HEADS + thread.encode()
    # On its branch, git would take all that differs between the branch and what is shown for staged changes.
    is_behind = thread is not None and repo.threads.get(thread).state != base
    taken = ref is None or is_behind or ref in holders(repo.git)
    if taken and base is None:
        return None
    _make_directory(path)
    _write_lines(path / "locked", "being made")
    _write_lines(path / "commondir", "../..")
    if taken and thread is not None and base is not None:
        _write_lines(path / AGREED, base.decode())
    _log_beginning(path, base)
    if base is not None:
        _write_lines(path / SHOWN, base.decode())
    note = {"repository": str(repo.path), "thread": thread}
    _write_lines(path / NOTE, json.dumps(note))
    # Last: whoever sees HEAD has to see whose it is, or would remember having looked at it in vain.
    _write_lines(path / "HEAD", os.fsdecode(base if taken and base else _SYMBOLIC + (ref or b"")))
    faults.reach("linked.made")
    return read(path, repo.git.common)


def _make_directory(path: Path) -> None:
    """``worktrees`` is made by whoever needs it and removed by whoever leaves it empty."""
    for _ in range(_TRIES):
        with suppress(FileExistsError):
            _make_one(path.parent)
        with suppress(FileNotFoundError):
            _make_one(path)
            return
    raise FileNotFoundError(f"{path.parent} does not stay")


def _make_one(path: Path) -> None:
    path.mkdir()
    path.chmod(path.parent.stat().st_mode & 0o7777)


def _log_beginning(path: Path, base: ObjectID | None) -> None:
    """HEAD's reflog as ``git worktree add`` begins it: what it says last tells whether git in the mount moved HEAD."""
    if base is None:
        return
    zone = time.strftime("%z")
    who = f"heddle <heddle@localhost> {int(time.time())} {zone}\theddle: mounted"
    _make_one(path / "logs")
    _write_lines(path / "logs" / "HEAD", f"{'0' * len(base)} {base.decode()} {who}")


def _write_lines(path: Path, text: str) -> None:
    """Write a file as open to others as git's directory is; a session's umask says nothing."""
    path.write_text(text + "\n", encoding="utf-8", errors="surrogateescape")
    path.chmod(path.parent.stat().st_mode & 0o666)


def _restore(
    repo: Repository, path: Path, mountpoint: Path, thread: str | None, base: ObjectID | None
) -> None:
    """Bring back what was put aside, if the mount shows what it showed then and its branch is free and still there."""
    assert repo.git is not None
    if thread is None:
        return
    aside = overlay_dir(repo, thread) / PUT_ASIDE
    found = read(aside, repo.git.common)
    if found is None:
        return
    head = _read(aside / "HEAD").removeprefix(_SYMBOLIC)
    is_usable = not head.startswith(HEADS) or (
        head not in holders(repo.git) and _text(_commit_of(found)) == found.base
    )
    if found.base == _text(base) and found.thread == thread and is_usable:
        if found.git.checkout != mountpoint:
            with suppress(OSError):  # git would only warn, and list directories again
                gitindex.relocate(aside / "index", mountpoint, repo.object_format)
        with suppress(OSError):
            _rename_into(aside, path)
            return
    shutil.rmtree(aside, ignore_errors=True)


def _commit_of(linked: Linked) -> ObjectID | None:
    """Where HEAD is; None: not born, or damaged."""
    try:
        return gitlink.head(linked.git)[1]
    except HeddleError:
        return None


def _rename_into(aside: Path, path: Path) -> None:
    _make_directory(path)
    faults.reach("linked.before-restore")
    with _across_file_systems():
        os.rename(aside, path)
        return
    for each in aside.iterdir():
        if each.is_dir():
            shutil.copytree(each, path / each.name, symlinks=True, dirs_exist_ok=True)
        elif each.name != "HEAD":
            shutil.copy2(each, path)
    shutil.copy2(aside / "HEAD", path)  # without it the directory is none: the next try begins anew
    shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _across_file_systems() -> Iterator[None]:
    """A rename that can't be one, since git's directory and ours are on different file systems."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise


def put_aside(repo: Repository, linked: Linked, base: ObjectID | None) -> None:
    """The mount is over: leave no trace of it in git; what git kept of it waits for the thread's next mount.

    Args:
        base: what the mount was relative to.
    """
    path = linked.git.path
    if linked.thread is not None and linked.has_index:
        aside = overlay_dir(repo, linked.thread) / PUT_ASIDE
        note = _note(path) | {"base": _text(base)}
        shutil.rmtree(aside, ignore_errors=True)
        try:
            _write_lines(path / NOTE, json.dumps(note))
            (path / "locked").unlink(missing_ok=True)
            faults.reach("linked.before-aside")
            _rename_aside(path, aside)
        except FileNotFoundError:
            pass  # no overlay any more
        except OSError:
            return  # no room for it there: it stays, for git worktree prune to take
    remove(linked)


def _rename_aside(path: Path, aside: Path) -> None:
    with _across_file_systems():
        os.rename(path, aside)
        return
    temporary = aside.with_name(f"{aside.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        shutil.copytree(path, temporary, symlinks=True)
        os.rename(temporary, aside)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def leave(linked: Linked, base: ObjectID | None) -> bool:
    """Have a mount that is over stay known to git, if git in it went where heddle has not followed; `ended` names it.

    Args:
        base: what the mount was relative to.

    Returns:
        Whether it stays.
    """
    commit = _commit_of(linked)
    went_by_itself = linked.last_logged() in (None, commit)  # and was not moved from elsewhere
    if linked.thread is None or linked.doing() in DETACHING or commit == base or not went_by_itself:
        return False
    path = linked.git.path
    _write_lines(path / NOTE, json.dumps(_note(path) | {"ended": True}))
    return True


def ended(repo: Repository) -> list[Linked]:
    """The mounts that `leave` left: to be followed to where git is, and then put aside."""
    if repo.git is None:
        return []
    dead = [path for path in private_directories(repo.git) if not (path / "locked").exists()]
    return list(_ours(repo, repo.git, (path for path in dead if _note(path).get("ended"))))


def clear(repo: Repository, session: str) -> None:
    """A mount whose session died is over: as ``put_aside``."""
    if repo.git is None:
        return
    found = read(place(repo.git, session), repo.git.common)
    if found is not None:
        base = None if found.thread is None else repo.overlay_base(found.thread)
        put_aside(repo, found, base)


def remove(linked: Linked) -> None:
    """Take a private directory away; half removed it is nothing to ``git worktree list``, and prunable."""
    path = linked.git.path
    with suppress(OSError):
        (path / "locked").unlink()
    with suppress(OSError):
        (path / "gitdir").unlink()
    faults.reach("linked.before-removal")
    shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        path.parent.rmdir()
    worktreeconfig.turn_off(linked.git)


def release_dead(git: GitDir) -> None:
    """Let ``git worktree prune`` have what dead mounts left; those that live are not touched."""
    for path in private_directories(git):
        with suppress(OSError):
            if (path / "locked").exists():
                held = Held(path, wait=False)
                (path / "locked").unlink()
                held.close()


def _text(base: ObjectID | None) -> str | None:
    return None if base is None else base.decode("ascii")
