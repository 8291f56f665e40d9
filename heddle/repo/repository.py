"""A repository: finding and making one, and the operations that its parts have in common.

Owns the layout of ``.heddle`` and the order in which it comes into being. What a table, a spec, a setting or a
thread means is its own module's; capturing, switching and mounting stand on top.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Self

from heddle import atomic, faults
from heddle.errors import (
    CannotCreate,
    ConfigError,
    DataError,
    HeddleError,
    NotARepository,
    ObjectMissing,
    PathNotFound,
    StateNotFound,
    StorageError,
    UsageError,
)
from heddle.repo.database import Database, Marker, Operation, Thread
from heddle.repo.locks import directory_locked
from heddle.repo.names import overlay_dir
from heddle.repo.threads import Markers, Threads, finish_overlay_moves

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.attribution import Attribution
    from heddle.objects.promised import Provider
    from heddle.objects.state import State
    from heddle.objects.store import ObjectStore
    from heddle.repo.config import Config
    from heddle.repo.fsck import Report
    from heddle.repo.gitlink import GitDir

__all__ = ["OBJECT_FORMATS", "Marker", "Markers", "Operation", "Repository", "Thread", "Threads"]

OBJECT_FORMATS = ("sha1", "sha256")
_COMMIT = 1  # type number of a commit, as in a git pack (gitformat-pack(5))
_NOTHING: Mapping[str, str] = MappingProxyType({})


class Repository:
    """One repository, named by the directory that holds ``.heddle``.

    Opening reads nothing; the database, the objects and the settings are opened when first used. Usable from
    several threads, and after a fork.

    Attributes:
        path: the directory that holds ``.heddle``, absolute, without symbolic links.
        heddle_dir: ``path/.heddle``.
        created: whether ``init`` made it just now.
        joined_git: whether ``init`` put it just now on a git repository that had come later.
        environment: of the command that this is for, set by it: where the user's settings are, and attribution.
        provider: what brings objects that a remote has promised, as ``module:class``; None: nobody does. It is a
            layer above that knows remotes, and a session is told the name in its request.
    """

    provider: str | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self.heddle_dir = path / ".heddle"
        self.created = self.joined_git = False
        self.environment: Mapping[str, str] = _NOTHING
        self._current_thread: str | None = None

    @classmethod
    def init(
        cls,
        path: Path,
        *,
        object_format: str | None = None,
        environment: Mapping[str, str] = _NOTHING,
    ) -> Self:
        """Make a repository in a directory; where there is one already, open it.

        HEAD is on a new thread ``main`` without a state; in a git checkout it is on a thread with the name of
        git's branch, at git's commit, and git's objects are read where they are. A repository that was there before
        git is put on top of git now.

        The database appears last, under its final name and complete: before that there is no repository, and
        ``init`` can simply be run again.

        Args:
            path: the directory; made if it is missing.
            object_format: ``sha1`` or ``sha256``; None: git's, or ``sha1``.
            environment: of the command that this is for.

        Raises:
            UsageError: no such object format.
            CannotCreate: the directory can't be made or written.
            DataError: the place already has another format, or is inside a ``.heddle``; or the git repository there
                has a format that is not known.
            NotPermitted, StorageError: the git repository there is somebody else's, or damaged. Nothing was made.
        """
        if object_format is not None and object_format not in OBJECT_FORMATS:
            known = " or ".join(OBJECT_FORMATS)
            raise UsageError(f"no object format {object_format!r}", hint=f"it can be {known}")
        repo = cls(path.resolve())
        repo.environment = environment
        if ".heddle" in repo.path.parts:
            raise DataError(f"{repo.path} is inside a repository's .heddle")
        try:
            if not repo.database_path.exists():
                repo._exists()
                ground = repo._ground(object_format)
                is_new = not repo.heddle_dir.exists()
                repo.heddle_dir.mkdir(parents=True, exist_ok=True)
                with directory_locked(repo.heddle_dir):
                    if not repo.database_path.exists():
                        repo._create_whole(ground, is_new)
                        repo.created = True
            elif repo.git_came_later:
                repo._lie_on_git()
        except OSError as error:
            raise CannotCreate(
                f"can't make a repository in {repo.path}: {error.strerror}"
            ) from error
        if object_format not in (None, repo.object_format):
            raise DataError(f"{repo.path} is a repository already, with {repo.object_format} ids")
        return repo

    @classmethod
    def open(cls, path: Path) -> Self:
        """The repository of exactly this directory.

        Raises:
            NotARepository: it has none.
            StorageError: it has objects but no database.
        """
        repo = cls(path.resolve())
        if not repo._exists():
            raise NotARepository(f"{repo.path} is not a heddle repository", hint="heddle init")
        return repo

    @classmethod
    def discover(cls, start: Path) -> Self:
        """The repository of this directory or of the nearest parent that has one.

        One on git does not reach into another git checkout, a linked worktree or a submodule, as git's does not.

        Raises:
            NotARepository: none has.
            StorageError: the nearest has objects but no database.
        """
        start = start.resolve()
        inner: Path | None = None
        for path in (start, *start.parents):
            repo = cls(path)
            git = path / ".git"
            # Not what keeps git from cleaning ours away, nor a directory that git does not take for its own.
            has_git = path.name != ".heddle" and (git.is_file() or (git / "HEAD").exists())
            if repo._exists():
                if inner is not None and has_git:
                    raise NotARepository(
                        f"{inner} is a git checkout of its own, and has no heddle repository",
                        hint=f"heddle init {inner}, or work in {path}",
                    )
                return repo
            if has_git and inner is None:
                inner = path
        raise NotARepository(f"no heddle repository in {start} or above", hint="heddle init")

    @classmethod
    def discover_damaged(cls, start: Path) -> Self:
        """As ``discover``, for a check or a repair: the database may be missing, and nothing is read.

        Raises:
            NotARepository: no directory has a ``.heddle`` with anything of a repository in it.
        """
        start = start.resolve()
        for path in (start, *start.parents):
            repo = cls(path)
            if any((repo.heddle_dir / name).exists() for name in ("heddle.db", "objects")):
                return repo
        raise NotARepository(f"no heddle repository in {start} or above", hint="heddle init")

    def forked(self) -> Repository:
        """The same where all files were closed: for a process that was forked off, and leaves the database alone."""
        again = Repository(self.path)
        again.environment, again.provider = self.environment, self.provider
        again.object_format, again.git = self.object_format, self.git
        return again

    # parts

    @property
    def database_path(self) -> Path:
        """``heddle.db``."""
        return self.heddle_dir / "heddle.db"

    @cached_property
    def database(self) -> Database:
        """Everything that changes."""
        database = Database(self.database_path)
        self.__dict__["database"] = database
        self._finish_what_a_crash_left()
        return database

    @cached_property
    def object_format(self) -> str:
        """``sha1`` or ``sha256``; fixed when the repository was made."""
        return self.database.object_format()

    @cached_property
    def trusts_modes(self) -> bool:
        """Whether executable bits of files mean anything here: git's ``core.fileMode``."""
        if self.git is None:
            return True
        from heddle.repo import gitlink

        return gitlink.trusts_modes(self.git, self.environment)

    @cached_property
    def has_symlinks(self) -> bool:
        """Whether the plain working directory has symbolic links, not files instead: git's ``core.symlinks``."""
        if self.git is None:
            return True
        from heddle.repo import gitlink

        return gitlink.has_symlinks(self.git, self.environment)

    @cached_property
    def store(self) -> ObjectStore:
        """Everything that never changes."""
        from heddle.objects.store import ObjectStore

        store = ObjectStore(
            self.heddle_dir / "objects",
            object_format=self.object_format,
            git_objects=self._git_objects,
        )
        if self.provider is not None:
            store.provide_with(lambda: _made(self.provider, self))
        return store

    def _git_objects(self) -> Path | None:
        try:
            return self.git.objects if self.git is not None else None
        except (HeddleError, OSError):  # who needs git is told
            return None

    @property
    def config(self) -> Config:
        """Settings of the repository, the user and git."""
        from heddle.repo.config import Config

        return Config(self.heddle_dir, self.git, self.environment)

    @cached_property
    def git(self) -> GitDir | None:
        """The git repository it lies on, or None.

        Raises:
            DataError: there is a ``.git`` that is no repository.
            NotPermitted: it is somebody else's, as git sees it.
        """
        return None if self.git_came_later else self._git_here()

    @property
    def git_came_later(self) -> bool:
        """Whether there is a git repository here that ``init`` has not seen: it is left alone until ``init`` has."""
        is_linked = (self.heddle_dir / ".git" / "HEAD").is_file()
        return not is_linked and self.database_path.exists() and (self.path / ".git").exists()

    def _git_here(self) -> GitDir | None:
        if not (self.path / ".git").exists() and not (self.path / "HEAD").is_file():
            return None
        from heddle.repo import gitlink

        found = gitlink.find(self.path)
        if found is not None:
            gitlink.check_owner(found, self.environment)
        return found

    def require_worktree(self) -> None:
        """Refuse what needs a plain working directory where there is none.

        Raises:
            DataError: the repository lies on a bare git repository.
        """
        if self.git is not None and self.git.bare:
            raise DataError(
                f"{self.path} is a bare git repository and has no working directory",
                hint="heddle mount THREAD, or heddle mount NEW-NAME --create",
            )

    def exclude_rules(self) -> bytes:
        """Rules of git's for the whole repository that are weaker than any ``.gitignore``."""
        if self.git is None:
            return b""
        from heddle.repo import gitlink

        return gitlink.exclude_rules(self.git, self.environment)

    @cached_property
    def shallow(self) -> frozenset[ObjectID]:
        """States whose parents git left out of a shallow clone."""
        if self.git is None:
            return frozenset()
        from heddle.repo import gitlink

        return gitlink.shallow(self.git)

    @cached_property
    def threads(self) -> Threads:
        """The mutable names."""
        return Threads(self)

    @cached_property
    def markers(self) -> Markers:
        """The immutable names."""
        return Markers(self)

    def close(self) -> None:
        """Close the files that are open; the next use opens them again."""
        for part in ("database", "store"):
            if part in self.__dict__:
                self.__dict__[part].close()

    def forget(self, object_format: str) -> None:
        """Close everything and forget what was read, since the database was or will be replaced.

        Args:
            object_format: what the objects have, whatever the database says.
        """
        self.close()
        for part in ("database", "store", "threads", "markers"):
            self.__dict__.pop(part, None)
        self.__dict__["object_format"] = object_format

    # HEAD

    @property
    def head(self) -> str:
        """The thread that the plain working directory is on."""
        return self.database.head()

    @property
    def current_thread(self) -> str:
        """What ``HEAD`` and ``@`` mean: ``head``, or the thread that a mount has set here."""
        return self.head if self._current_thread is None else self._current_thread

    @current_thread.setter
    def current_thread(self, name: str) -> None:
        self._current_thread = name

    def move_head(
        self, thread: str, *, base: ObjectID | None, attribution: Attribution | None = None
    ) -> None:
        """Put HEAD on a thread and record that the working directory is at ``base``, in one transaction.

        Raises:
            ThreadNotFound: there is no such thread.
        """
        self.database.move_head(thread, base=base, who=self.who(attribution))

    def worktree_base(self) -> ObjectID | None:
        """The state the plain working directory was last at; None is the empty tree."""
        return self.database.worktree_base()

    # states

    def resolve(self, spec: str) -> ObjectID:
        """The state that a spec means; the forms are those of ``revisions.resolve``, which see.

        Raises:
            StateNotFound, AmbiguousSpec, DataError, UsageError: as there.
        """
        from heddle.repo import revisions

        return revisions.resolve(self, spec)

    def is_state(self, id: ObjectID) -> bool:
        """Whether an id is a commit in the object store, read from the index alone."""
        return id in self.store and self.store.kind(id) == _COMMIT

    def has_state(self, id: ObjectID) -> bool:
        """As ``is_state``, for checks: a commit whose index is damaged is there, one that is damaged itself is not."""
        from heddle.objects.layout import REINDEX_HINT

        try:
            return self.is_state(id) and bool(self.store.get_raw(id))
        except StorageError as error:
            return error.hint == REINDEX_HINT
        except KeyError:
            return False

    def state(self, spec: str | ObjectID) -> State:
        """A state, by spec (str) or by id (bytes).

        Raises:
            StateNotFound: the id is of something else; or as ``resolve``.
            ObjectMissing: there is no such object.
        """
        from heddle.objects.state import decode

        id = self.resolve(spec) if isinstance(spec, str) else spec
        try:
            kind, raw = self.store.get_raw(id)
        except KeyError as error:
            raise self._no_such_state(id) from error
        if kind != _COMMIT:
            raise StateNotFound(f"{id.decode()} is not a state")
        found = decode(id, raw)
        if found.agent is None and (agent := self.database.agent_of(id)) is not None:
            return found._replace(agent=agent)
        return found

    def _no_such_state(self, id: bytes) -> ObjectMissing:
        message, hint = (
            f"state {id.decode(errors='replace')} is not in the object store",
            "heddle fsck",
        )
        for gone in self.store.missing_alternates():
            message = f"{message}, and {os.path.normpath(self.store.path / gone)} is not there"
            hint = "bring that directory back"
        return ObjectMissing(message, hint=hint)

    def lookup_path(self, state: str | ObjectID, path: bytes) -> tuple[int, ObjectID]:
        """The mode and the id of what a state holds at a path; ``b""`` is its root.

        Raises:
            PathNotFound: it holds no such path.
        """
        from heddle.repo.log import entry_at

        found = self.state(state)
        entry = entry_at(self, found.tree, path)
        if entry is None:
            where = os.fsdecode(path)
            raise PathNotFound(f"{found.id[:12].decode()} has no {where!r}", hint="heddle show")
        return entry

    def log(
        self,
        spec: str | Iterable[ObjectID] = "HEAD",
        *,
        limit: int | None = None,
        agent: str | None = None,
        since: int | None = None,
        paths: Sequence[bytes] = (),
        topological: bool = False,
    ) -> Iterator[State]:
        """History, newest first; see ``log.log`` for the filters.

        Args:
            spec: where to begin: a spec, or ids of several states.
            since: seconds since the epoch; ``log.parse_time`` reads what people write.

        Raises:
            StateNotFound, AmbiguousSpec, DataError: as ``resolve``, before the first state.
        """
        from heddle.repo.log import log

        starts = [self.resolve(spec)] if isinstance(spec, str) else list(spec)
        return log(
            self,
            starts,
            limit=limit,
            agent=agent,
            since_s=since,
            paths=paths,
            topological=topological,
        )

    # changing

    def attribution(
        self,
        *,
        flags: Mapping[str, str | None] = _NOTHING,
        environment: Mapping[str, str] | None = None,
        no_agent: bool = False,
        mount_defaults: Mapping[str, str] = _NOTHING,
    ) -> Attribution:
        """Who a capture is recorded for; see ``attribution.resolve`` for the order.

        Args:
            flags: by key (``agent.model``, …).
            environment: of the capturing command; None: ``self.environment``.

        Raises:
            NoPrincipal, UsageError, ConfigError: as there.
        """
        from heddle import attribution
        from heddle.repo.config import Config

        if environment is None:
            environment = self.environment
        return attribution.resolve(
            flags=flags,
            environment=environment,
            layers=Config(self.heddle_dir, self.git, environment).layers(),
            mount_defaults=mount_defaults,
            no_agent=no_agent,
        )

    def who(self, attribution: Attribution | None) -> str | None:
        """Whom the operation log names: the one given, else the one configured, else nobody."""
        if attribution is None:
            try:
                attribution = Repository.attribution(self)
            except (ConfigError, UsageError):
                return None
        return str(attribution)

    def publish(
        self,
        *,
        thread: str,
        expected: ObjectID | None,
        new: ObjectID,
        kind: str,
        message: str,
        attribution: Attribution | None,
        overlay_base: bool = False,
        worktree_base: bool = False,
    ) -> None:
        """Move a thread to a new state if it is still at the one expected: the commit point of a capture.

        One transaction moves the thread, logs the operation and, when asked, records that the thread's overlay
        or the working directory is now relative to the new state. ``new`` must be durable in the object store.

        Raises:
            ThreadMoved: the thread is elsewhere by now; nothing was changed.
            ThreadNotFound: it is gone.
        """
        self.database.publish(
            thread=thread,
            expected=expected,
            new=new,
            change_id=self.state(new).change_id,
            kind=kind,
            who=self.who(attribution),
            message=message.partition("\n")[0],
            overlay_base=overlay_base,
            worktree_base=worktree_base,
        )

    def fsck(
        self, *, full: bool = False, progress: Callable[[int, int], None] | None = None
    ) -> Report:
        """Verify objects, database and overlays; see ``fsck.check``."""
        from heddle.repo import fsck

        return fsck.check(self, full=full, progress=progress)

    def overlay_base(self, thread: str) -> ObjectID | None:
        """The state a thread's overlay is relative to; None: the empty tree, or never mounted."""
        return self.database.overlay_base(thread)

    def has_unsaved(self, thread: str, *, also_left_out: bool = False) -> bool:
        """Whether a thread's overlay may hold unsaved changes.

        Here, without the mount's understanding of an overlay, any file in it counts; ``api.Repository`` looks closer.
        """
        try:
            with os.scandir(overlay_dir(self, thread) / "upper") as entries:
                return next(entries, None) is not None
        except FileNotFoundError:
            return False

    def set_overlay_base(self, thread: str, state: ObjectID | None) -> None:
        """Record what state a thread's overlay is relative to; ThreadNotFound if the thread is gone."""
        self.database.set_overlay_base(thread, state)

    # coming into being

    def _exists(self) -> bool:
        if self.database_path.exists():
            return True
        packs = self.heddle_dir / "objects" / "packs"
        if packs.is_dir() and any(packs.iterdir()):
            raise StorageError(
                f"{self.database_path} is missing, and {packs} holds objects",
                hint="put heddle.db back from a copy, or heddle fsck --repair",
            )
        return False

    def _ground(self, object_format: str | None) -> _Ground:
        """What a new repository here begins with, read from git before anything is made.

        Raises:
            DataError, NotPermitted, StorageError: as ``init``.
        """
        if self.git is None:
            return _Ground(object_format or "sha1", "main", None)
        from heddle.repo import gitlink

        found = gitlink.object_format(self.git)
        if object_format not in (None, found):
            raise DataError(f"the git repository in {self.path} has {found} ids")
        gitlink.check_checkout(self.git)
        thread, state = gitlink.thread_to_start_on(self.git)
        if state is not None:
            gitlink.check_commit(self.git, state, found)
        return _Ground(found, thread, state)

    def _create_whole(self, ground: _Ground, is_new: bool) -> None:
        """Lay out ``.heddle``, or take away what was made of a new one."""
        try:
            self._create(ground)
        except BaseException:
            if is_new and not self.database_path.exists():
                shutil.rmtree(self.heddle_dir, ignore_errors=True)
            raise

    def _create(self, ground: _Ground) -> None:
        """Lay out ``.heddle``; the rename of the database is the commit point."""
        self._create_store(ground.object_format)
        (self.heddle_dir / "overlays").mkdir(exist_ok=True)
        faults.reach("repository.before-database")
        self._create_database(ground.object_format, ground.thread, ground.state)

    def _create_store(self, object_format: str) -> None:
        from heddle.objects.store import ObjectStore

        objects = self.heddle_dir / "objects"
        if (objects / "packs").is_dir():  # from an init that did not finish
            store = ObjectStore(objects, object_format=object_format)
        else:
            store = ObjectStore.create(objects, object_format=object_format)
        if self.git is not None:
            _link(self.git, self.heddle_dir)
        store.close()

    def _lie_on_git(self) -> None:
        """Lie on a git repository that came later; threads and branches are brought in step by who looks next."""
        from heddle.repo import gitlink

        git = self._git_here()
        assert git is not None
        found = gitlink.object_format(git)
        if found != self.object_format:
            raise DataError(
                f"the git repository in {self.path} has {found} ids, and heddle's {self.object_format} ids",
                hint="heddle git export --to DIR makes another git repository",
            )
        gitlink.check_checkout(git)
        with directory_locked(self.heddle_dir):
            if gitlink.is_empty(git):
                gitlink.begin_on(git, self.head)
            _link(git, self.heddle_dir)
        self.joined_git = True
        for part in ("git", "store"):
            self.__dict__.pop(part, None)

    def _create_database(self, object_format: str, thread: str, state: ObjectID | None) -> None:
        building = self.heddle_dir / "heddle.db.new"
        building.unlink(missing_ok=True)
        Database.create(building, object_format=object_format, thread=thread, state=state)
        with building.open("rb") as file:
            os.fsync(file.fileno())
        faults.reach("repository.before-database-rename")
        os.rename(building, self.database_path)
        faults.reach("repository.database-renamed")
        atomic.fsync_directory(self.heddle_dir)
        atomic.fsync_directory(self.path)

    def _finish_what_a_crash_left(self) -> None:
        """Overlay directories that a crash kept from following their thread; later, where we can't write."""
        try:
            finish_overlay_moves(self)
        except (OSError, StorageError):
            if os.access(self.heddle_dir, os.W_OK):
                raise


class _Ground(NamedTuple):
    """What a new repository begins with: the format of its ids, and HEAD."""

    object_format: str
    thread: str
    state: ObjectID | None


def _link(git: GitDir, heddle_dir: Path) -> None:
    """Read git's objects where they are, and keep git from taking ours; what says so comes last."""
    from heddle.repo import gitlink

    objects = heddle_dir / "objects"
    line = os.fsencode(objects_of(git, objects)) + b"\n"
    alternates = objects / "alternates"
    others = alternates.read_bytes() if alternates.exists() else b""
    if line not in others.splitlines(keepends=True):
        atomic.write_file(alternates, others + line)
    gitlink.exclude_heddle(git)
    gitlink.keep_from_git(git, heddle_dir)


def objects_of(git: GitDir, objects: Path) -> Path:
    """Git's objects as an alternate of ``objects`` names them: relative where both move together."""
    if git.objects.is_relative_to(git.checkout):
        return Path(os.path.relpath(git.objects, objects))
    return git.objects


def _made(provider: str | None, repo: Repository) -> Provider:
    """The provider of a name, for a repository."""
    from importlib import import_module

    assert provider is not None
    module, _, name = provider.partition(":")
    made: Provider = getattr(import_module(module), name)(repo)
    return made
