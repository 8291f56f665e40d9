"""The git repository that a heddle repository lies on: where it is and what it is at.

Owns finding a ``.git`` beside ``.heddle`` and reading its HEAD, refs and object format, through dulwich. Objects
are read in place by the object store; keeping branches and threads in step is not done here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from heddle import atomic
from heddle.errors import DataError, InvalidName, NotPermitted, StorageError
from heddle.objects.gitformat import ID_LENGTHS

if TYPE_CHECKING:
    from dulwich.config import ConfigFile
    from dulwich.objects import ObjectID
    from dulwich.refs import DiskRefsContainer

    from heddle.objects.gitdir import GitObjects

_MAY_BE_BARE = re.compile(rb"bare[ \t]*(=[ \t\"]*(true|yes|on|[1-9])|[\r\n;#]|$)", re.IGNORECASE)
_BRANCH = b"refs/heads/"
_KNOWN_EXTENSIONS = frozenset(
    (b"objectformat", b"worktreeconfig", b"partialclone", b"noop", b"preciousobjects")
) | {b"relativeworktrees"}


class GitDir(NamedTuple):
    """Where a git checkout keeps its things.

    Attributes:
        checkout: the directory that holds ``.git``; a bare repository itself.
        path: this checkout's own git directory (HEAD, index).
        common: the directory shared by all work trees of the repository (objects, refs, config).
        bare: there is no checkout; all three are the one directory, unless a ``.git`` leads to it.
    """

    checkout: Path
    path: Path
    common: Path
    bare: bool = False

    @property
    def objects(self) -> Path:
        """The object directory."""
        return self.common / "objects"


def find(checkout: Path) -> GitDir | None:
    """The git repository that lies exactly here (gitrepository-layout(5)); parents don't count.

    Returns:
        Where it is, a bare one too; None where there is none.

    Raises:
        DataError: there is a ``.git`` that is no repository.
    """
    path = checkout / ".git"
    if not path.exists():
        return _find_bare(checkout)
    if path.is_file():
        content = path.read_bytes()
        if not content.startswith(b"gitdir: "):
            raise _no_repository(path)
        path = checkout / os.fsdecode(content[len(b"gitdir: ") :].rstrip(b"\r\n"))
    if not (path / "HEAD").exists():
        raise _no_repository(path)
    common = path
    if (path / "commondir").is_file():
        common = path / os.fsdecode((path / "commondir").read_bytes().rstrip(b"\r\n"))
    if not (common / "objects").is_dir() or not (common / "refs").is_dir():
        raise _no_repository(common)
    is_main = path == common
    return GitDir(
        checkout, path.resolve(), common.resolve(), bare=is_main and bool(_says_bare(common))
    )


def _find_bare(path: Path) -> GitDir | None:
    if not (path / "HEAD").is_file() or not (path / "objects").is_dir():
        return None
    if not (path / "refs").is_dir() or not (path / "config").is_file():
        return None
    if not _says_bare(path):
        return None
    path = path.resolve()
    return GitDir(path, path, path, bare=True)


def _says_bare(common: Path) -> bool | None:
    """``core.bare``, which git-worktree(1) moves to where the main checkout's own settings are; None: it is not said.

    Raises:
        ConfigError: that can't be read.
    """
    paths = (common / "config.worktree", common / "config")
    return _is_said(paths, b"bare", _MAY_BE_BARE, (b"true", b"yes", b"on", b"1"))


def _is_said(
    paths: Iterable[Path], name: bytes, may_be: re.Pattern[bytes], values: tuple[bytes, ...]
) -> bool | None:
    """Whether a setting of ``core`` has one of some unusual values; None where no file says anything of it.

    Args:
        paths: of configuration files, the one that counts most first.
        name: of the setting.
        may_be: what stands in a file that may say one of the values.
        values: in lower case.

    Raises:
        ConfigError: a file that may say it can't be read.
    """
    from heddle.repo import gitconfig

    for path in paths:
        content = _content(path)
        if may_be.search(content):  # in hardly any file; parsing takes 20 ms
            said = gitconfig.values(path, b"core", name)
            if said:
                return said[-1].lower() in values
        elif name.lower() in content.lower():
            return False
    return None


def _no_repository(path: Path) -> DataError:
    return DataError(f"{path} is no git repository", hint="repair it with git, or move it away")


def check_owner(git: GitDir, environment: Mapping[str, str]) -> None:
    """Refuse what somebody else owns, as git does, unless ``safe.directory`` names it (git-config(1)).

    Args:
        git: the repository.
        environment: of the command; says where the user's configuration is.

    Raises:
        NotPermitted: it is somebody else's.
    """
    ours = {os.geteuid()}
    if ours == {0} and environment.get("SUDO_UID", "").isdigit():
        ours.add(int(environment["SUDO_UID"]))
    places = [git.path]
    if git.checkout != git.path:
        places += [git.checkout, git.checkout / ".git"]
    strange = [place for place in places if os.lstat(place).st_uid not in ours]
    if strange and not _is_safe(git.checkout, environment):
        raise NotPermitted(
            f"{strange[0]} belongs to somebody else",
            hint=f"git config --global --add safe.directory {git.checkout}",
        )


def _is_safe(checkout: Path, environment: Mapping[str, str]) -> bool:
    from heddle.repo import gitconfig

    safe = False
    for path in reversed(list(gitconfig.user_files(environment))):
        for value in gitconfig.values(path, b"safe", b"directory"):
            if not value:
                safe = False
            elif value == b"*" or _expanded(value, environment) == checkout:
                safe = True
    return safe


def _config(common: Path) -> ConfigFile:
    """The repository's own configuration.

    Raises:
        DataError: it can't be read.
    """
    from dulwich.config import ConfigFile

    path = common / "config"
    try:
        return ConfigFile.from_path(path)
    except FileNotFoundError:
        return ConfigFile()
    except ValueError as error:
        raise DataError(f"git's {path} can't be read: {error}", hint="edit the file") from error


def check_format(git: GitDir) -> ConfigFile:
    """Refuse what gitrepository-layout(5) and git-config(1) did not know when this was written.

    Returns:
        The repository's configuration, which says so.

    Raises:
        DataError: it has a format that is not known here, or its configuration can't be read.
    """
    config = _config(git.common)
    version = _setting(config, b"core", b"repositoryformatversion") or b"0"
    unknown = []
    if version != b"0" and (b"extensions",) in config:  # version 0 has none
        unknown = [
            name + b"=" + value
            for name, value in config[(b"extensions",)].items()
            if name.lower() not in _KNOWN_EXTENSIONS
            and (name.lower(), value.lower()) != (b"refstorage", b"files")
        ]
        said = _setting(config, b"extensions", b"objectformat") or b"sha1"
        if said.decode(errors="replace").lower() not in ID_LENGTHS:
            unknown.append(b"objectformat=" + said)
    if version not in (b"0", b"1") or unknown:
        what = b", ".join([b"version " + version, *sorted(unknown)])
        raise DataError(
            f"the git repository in {git.common} has a format that heddle does not know:"
            f" {what.decode(errors='replace')}",
            hint="a newer heddle may know it",
        )
    return config


def trusts_modes(git: GitDir, environment: Mapping[str, str]) -> bool:
    """Whether git believes executable bits (git-config(1), ``core.fileMode``); raises ConfigError."""
    return not _is_off(git, b"fileMode", environment)


def has_symlinks(git: GitDir, environment: Mapping[str, str]) -> bool:
    """Whether git's checkouts have symbolic links, not files instead (``core.symlinks``); raises ConfigError."""
    return not _is_off(git, b"symlinks", environment)


def _is_off(git: GitDir, name: bytes, environment: Mapping[str, str]) -> bool:
    from heddle.repo import gitconfig

    off = re.compile(rb"%b\s*=[\s\"]*(false|no|off|0)" % name, re.IGNORECASE)
    own = [git.path / "config.worktree", git.common / "config"]
    paths = [*own, *gitconfig.user_files(environment)]
    return bool(_is_said(paths, name, off, (b"false", b"no", b"off", b"0")))


def check_checkout(git: GitDir) -> None:
    """Refuse a checkout whose files are elsewhere (git-config(1), ``core.worktree``).

    Raises:
        DataError: they are.
    """
    said = _setting(_config(git.common), b"core", b"worktree")
    if said and git.path == git.common and not git.bare:
        place = (git.path / os.fsdecode(said)).resolve()
        if place != git.checkout.resolve():
            raise DataError(
                f"git keeps the files of {git.checkout} in {place} (core.worktree)",
                hint=f"git config --unset core.worktree, or a git worktree of its own in {place}",
            )


def _setting(config: ConfigFile, section: bytes, name: bytes) -> bytes | None:
    try:
        return config.get((section,), name)
    except KeyError:
        return None


def is_bare(git: GitDir) -> bool:
    """Whether a repository has no checkout but linked ones; raises ConfigError."""
    said = _says_bare(git.common)
    return git.checkout == git.common if said is None else said


def object_format(git: GitDir) -> str:
    """``sha1`` or ``sha256``, from git's configuration; raises as ``check_format``."""
    return (_setting(check_format(git), b"extensions", b"objectformat") or b"sha1").decode().lower()


def head(git: GitDir) -> tuple[str | None, ObjectID | None]:
    """The branch that git's HEAD is on (None: detached) and its commit (None: no commit yet).

    Raises:
        DataError: the repository's format is not known.
        StorageError: HEAD or the ref that it names is damaged.
    """
    ref, commit = follow_head(git, _refs(git))
    if ref is None or not ref.startswith(_BRANCH):
        return None, commit
    return ref[len(_BRANCH) :].decode(errors="surrogateescape"), commit


def follow_head(git: GitDir, refs: DiskRefsContainer) -> tuple[bytes | None, ObjectID | None]:
    """The full name of the ref that HEAD is on (None: detached), and its commit (None: not born).

    Raises:
        StorageError: HEAD or that ref is damaged.
    """
    from dulwich.errors import PackedRefsException, RefFormatError
    from dulwich.refs import HEADREF, SymrefLoop, check_ref_format

    from heddle.repo.gitfiles import damaged

    try:
        names, commit = refs.follow(HEADREF)
    except PackedRefsException as error:
        raise StorageError(
            f"{git.common / 'packed-refs'} is damaged: {error}", hint="git fsck says more"
        ) from error
    except (SymrefLoop, RefFormatError, KeyError, ValueError) as error:
        raise damaged(git.path, HEADREF) from error
    ref = names[-1]
    if ref == HEADREF and commit is not None:
        return None, commit
    if not ref.startswith(b"refs/") or not check_ref_format(ref):
        raise damaged(git.path, HEADREF)
    return bytes(ref), commit


def check_commit(git: GitDir, commit: ObjectID, format_name: str) -> None:
    """Check that git has the commit that a new repository is to begin at.

    Raises:
        StorageError: it has not, or it is damaged.
    """
    from heddle.objects.gitdir import GitObjects
    from heddle.objects.gitformat import COMMIT

    objects = GitObjects(git.objects, format_name)
    try:
        found = objects.get_raw(commit)[0] == COMMIT
    except KeyError:
        found = False
    finally:
        objects.close()
    if not found:
        raise StorageError(
            f"the git repository in {git.checkout} has no commit {commit.decode()}, which its HEAD"
            " names",
            hint="git fsck says more",
        )


def thread_to_start_on(git: GitDir) -> tuple[str, ObjectID | None]:
    """The thread that a new repository on this checkout begins with: git's branch at git's commit.

    A branch whose name can't be a thread's, and a detached HEAD, begin as ``main``, or as ``detached`` where
    git has a ``main`` of its own.
    """
    from heddle.repo.names import valid_thread_name

    branch, commit = head(git)
    try:
        if branch is not None:
            valid_thread_name(branch)
            return branch, commit
    except InvalidName:
        pass
    return ("detached" if resolve(git, "main") else "main"), commit


def resolve(git: GitDir, name: str) -> dict[str, ObjectID]:
    """The commits that ``name`` means as a branch, a tag or a remote branch, by full ref name."""
    found: dict[str, ObjectID] = {}
    wanted = name.encode(errors="surrogateescape")
    from dulwich.refs import Ref

    from heddle.objects.gitdir import GitObjects

    refs = _refs(git)
    objects = GitObjects(git.objects, object_format(git))
    for prefix in (b"refs/heads/", b"refs/tags/", b"refs/remotes/"):
        try:
            commit = _commit(objects, refs[Ref(prefix + wanted)])
        except (KeyError, ValueError):  # no such ref; a name that can't be one
            continue
        if commit is not None:
            found[os.fsdecode(prefix + wanted)] = commit
    objects.close()
    return found


def shallow(git: GitDir) -> frozenset[ObjectID]:
    """Commits whose parents a shallow clone left out."""
    try:
        return frozenset(cast("list[ObjectID]", (git.common / "shallow").read_bytes().split()))
    except FileNotFoundError:
        return frozenset()


def exclude_rules(git: GitDir, environment: Mapping[str, str]) -> bytes:
    """What git ignores in the whole repository: ``core.excludesFile``, then ``info/exclude`` (gitignore(5))."""
    files = [_excludes_file(git, environment), git.common / "info" / "exclude"]
    return b"".join(_content(path) + b"\n" for path in files if path is not None)


def _excludes_file(git: GitDir, environment: Mapping[str, str]) -> Path | None:
    from heddle.repo import gitconfig

    own = [git.path / "config.worktree", git.common / "config"]
    for path in [*own, *gitconfig.user_files(environment)]:
        found = gitconfig.values(path, b"core", b"excludesfile")
        if found:
            return git.checkout / _expanded(found[-1], environment)
    home_directory = gitconfig.config_home(environment)
    return home_directory / "git" / "ignore" if home_directory else None


def _expanded(value: bytes, environment: Mapping[str, str]) -> Path:
    """A path as git's configuration gives it."""
    path = os.fsdecode(value)
    return Path(environment.get("HOME", "~"), path[2:]) if path.startswith("~/") else Path(path)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def is_empty(git: GitDir) -> bool:
    """Whether a git repository has no ref at all, as ``git init`` makes one."""
    return not any(name.startswith(b"refs/") for name in _refs(git).allkeys())


def begin_on(git: GitDir, branch: str) -> None:
    """Have an empty git repository begin on a branch; left as it is where that can't be one's name."""
    from dulwich.refs import Ref, check_ref_format

    ref = b"refs/heads/" + branch.encode()
    if check_ref_format(Ref(ref)):
        atomic.write_file(git.path / "HEAD", b"ref: " + ref + b"\n")


def exclude_heddle(git: GitDir) -> None:
    """Have git ignore ``.heddle`` in every checkout of this repository, through ``info/exclude``."""
    path = git.common / "info" / "exclude"
    path.parent.mkdir(exist_ok=True)
    old = path.read_bytes() if path.exists() else b""
    if b".heddle/" in old.split():
        return
    if old and not old.endswith(b"\n"):
        old += b"\n"
    atomic.write_file(path, old + b".heddle/\n")


def keep_from_git(git: GitDir, heddle_dir: Path) -> None:
    """Have git's cleaning pass ``.heddle`` by: to ``git clean -x`` and ``git stash --all`` it is another repository.

    What is ignored is theirs to remove, and with it every unsaved change would go. What makes a directory one is in
    git's setup.c (is_git_directory): HEAD, objects and refs. A linked worktree is locked as well, since ``git worktree
    remove`` asks no more than that (git-worktree(1), "lock").
    """
    inner = heddle_dir / ".git"
    for name in ("objects", "refs"):
        (inner / name).mkdir(parents=True, exist_ok=True)
    if git.path != git.common and not (git.path / "locked").exists():
        (git.path / "locked").write_text(f"heddle's repository is in it: {heddle_dir}\n")
    atomic.write_file(inner / "HEAD", b"ref: refs/heads/main\n")


def _commit(objects: GitObjects, id: ObjectID) -> ObjectID | None:
    """The commit that an object leads to through tags; None where it leads to something else."""
    from heddle.objects.gitformat import COMMIT, TAG

    kind, content = objects.get_raw(id)
    while kind == TAG:
        id = content.partition(b"\n")[0].removeprefix(b"object ")  # type: ignore[assignment]
        kind, content = objects.get_raw(id)
    return id if kind == COMMIT else None


def _refs(git: GitDir) -> DiskRefsContainer:
    from heddle.repo.gitfiles import RefFiles

    check_format(git)
    return RefFiles(git.common, git.path)
