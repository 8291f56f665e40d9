"""``fsck`` with all that it knows, and ``fsck --repair``: the whole repository, part by part.

Owns the order: packs, whose states the database may have to be made of; the database; then what stands on it:
settings, alternates, sessions; then what is lost is looked for in files that are still there, before overlays are
mended, which set aside what needs it. How each part is mended is its own module's.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING

from heddle.errors import Busy, ConfigError, HeddleError, OtherFormat
from heddle.mount import mend, mountinfo, registry
from heddle.mount.partial import plain_reader
from heddle.mount.snapshot import hash_blob, hash_file, store_file
from heddle.objects.repair import broken_packs, object_format, rewrite
from heddle.objects.store import Problem
from heddle.repo import fsck
from heddle.repo.aside import Repair
from heddle.repo.fsck import Report
from heddle.repo.locks import directory_locked, file_locked_nowait
from heddle.repo.names import overlay_name
from heddle.repo.parked import PARKED, parking_place
from heddle.repo.rebuild import rebuild
from heddle.repo.repository import OBJECT_FORMATS, objects_of
from heddle.repo.threads import move_overlay

if TYPE_CHECKING:
    from heddle.mount.runtime import RuntimeDirectory
    from heddle.objects.pack import PackWriter
    from heddle.repo.repository import Repository

Progress = Callable[[int, int], None]

_OVERLAY_HINT = "heddle unmount it, then heddle fsck --repair"


def check(repo: Repository, *, full: bool = False, progress: Progress | None = None) -> Report:
    """What ``fsck.check`` finds, and what is wrong inside of overlays."""
    report = fsck.check(repo, full=full, progress=progress)
    if report.checked:
        report.problems.extend(_check_overlays(repo, full=full))
    return report


def _check_overlays(repo: Repository, *, full: bool) -> Iterator[Problem]:
    for _label, directory, _base in mend.overlays(repo):
        for flaw in mend.flaws(directory, repo.store, full=full):
            yield Problem("damaged_overlay", flaw.what, _OVERLAY_HINT)


def repair(
    repo: Repository,
    runtime: RuntimeDirectory,
    *,
    dry_run: bool = False,
    full: bool = False,
    progress: Progress | None = None,
) -> tuple[Repair, Report]:
    """Mend what can be mended from redundancy, set the rest aside, and check again.

    Can be run again after it was killed at any point.

    Args:
        repo: the repository; its database may be missing.
        runtime: where sessions say that they are.
        dry_run: only say what would be done.
        full: also compare the bytes of captured files in overlays.
        progress: as for ``check``, and called with packs done and packs in all before that.

    Raises:
        Busy: the database has to be made anew while sessions use it; or gc runs.
        OtherFormat: a newer or an earlier heddle wrote it.
    """
    done = Repair(repo.heddle_dir, dry_run)
    with file_locked_nowait(repo.heddle_dir / "gc.lock") as free, directory_locked(repo.heddle_dir):
        if not free:
            raise Busy("heddle gc is running here", hint="run it again when that is done")
        _mend_directories(repo, done)
        repo.forget(_object_format(repo))
        _mend_packs(repo, done, progress)
        if _is_database_broken(repo):
            _require_no_session(repo)
            repo.forget(repo.object_format)
            rebuild(repo, done)
            if dry_run:
                return done, check(repo, full=full)
            repo.forget(repo.object_format)
        _mend_settings(repo, done)
        _mend_alternates(repo, done)
        _mend_registry(repo, runtime, done)
        _park_orphans(repo, done)
        if not dry_run:
            _find_lost(repo, done)
        mend.mend(repo, done, full=full)
        report = check(repo, full=full, progress=progress)
        done.lost += [each.what for each in report.problems if each.kind == "lost_object"]
        done.finish()
    return done, report


def _object_format(repo: Repository) -> str:
    """What the packs say; without any, what the database says."""
    found = object_format(repo.heddle_dir / "objects" / "packs")
    if found is not None:
        return found
    try:
        said = repo.object_format
    except OtherFormat:
        raise
    except HeddleError:
        said = ""
    return said if said in OBJECT_FORMATS else OBJECT_FORMATS[0]


# the database


def _is_database_broken(repo: Repository) -> bool:
    """Whether something is wrong with it that a new one would not have."""
    try:
        problems = repo.database.check(repo.has_state)
    except (OtherFormat, Busy):
        raise
    except HeddleError:
        return True
    return any(not each.what.startswith("operation ") for each in problems)


def _require_no_session(repo: Repository) -> None:
    for mount in mountinfo.heddle_mounts():
        served = mount.served()
        if served is not None and served[0] == repo.path and not mount.read_only:
            raise Busy(
                f"the database has to be made anew, and the session of {mount.mountpoint} uses it",
                hint="heddle unmount --all, then heddle fsck --repair",
            )


def _mend_directories(repo: Repository, done: Repair) -> None:
    for path in (repo.heddle_dir / "objects" / "packs", repo.heddle_dir / "overlays"):
        if not path.is_dir() and not done.dry_run:
            path.mkdir(parents=True)
            done.mended.append(f"{path} is there again, empty")


# objects and settings


def _mend_settings(repo: Repository, done: Repair) -> None:
    file = repo.config.repository
    try:
        file.values()
    except ConfigError as error:
        assert file.path is not None
        done.set_aside(file.path, error.message)


def _mend_alternates(repo: Repository, done: Repair) -> None:
    """Lines that lead nowhere are only kept aside; git's objects are read again where they are needed."""
    store = repo.store
    kept = [path for path in store.alternate_paths() if path not in store.missing_alternates()]
    wanted = list(kept)
    if repo.git is not None:
        path = objects_of(repo.git, store.path)
        lacks_git = path not in kept and repo.git.objects not in kept
        was_moved = kept != store.alternate_paths()
        if lacks_git and (was_moved or next(fsck.lost(repo, ()), None) is not None):
            wanted.append(path)
    if wanted == store.alternate_paths():
        return
    done.set_aside(store.path / "alternates", "it does not lead to all objects", keep=True)
    if not done.dry_run:
        store.write_alternates(wanted)
    done.mended.append(f"{store.path / 'alternates'} names only directories that are there")


def _mend_packs(repo: Repository, done: Repair, progress: Progress | None) -> None:
    store = repo.store
    broken = list(broken_packs(store.path / "packs", store.id_length, progress))
    names = {each.path.stem for each in broken}
    if done.dry_run:
        for each in broken:
            done.mended.append(f"{len(each.sound)} objects of {each.path} can be kept")
            done.set_aside(each.path, each.why)
        return
    count, new = rewrite(store, broken, done.set_aside) if broken else (0, [])
    if new:
        done.mended.append(f"{count} objects of damaged packs are in new ones: {', '.join(new)}")
    done.mended += [f"index {name} is made anew" for name in store.reindex() if name not in names]


# sessions


def _mend_registry(repo: Repository, runtime: RuntimeDirectory, done: Repair) -> None:
    """Sessions that the kernel shows and that answer are written down again."""
    rows = {row.mountpoint for row in repo.database.mounts()}
    for session in registry.survey(runtime, repo):
        record = session.record
        if session.state != "live" or record is None or os.fsencode(record.mountpoint) in rows:
            continue
        if not done.dry_run:
            registry.register(runtime, record)
            repo.database.put_mount(record.to_row())
        done.mended.append(f"the session of {record.mountpoint} is in the registry again")


# overlays


def _park_orphans(repo: Repository, done: Repair) -> None:
    """Overlays that belong to no thread go to the park, where people can find them."""
    overlays = repo.heddle_dir / "overlays"
    owned = {overlay_name(thread.name) for thread in repo.threads} | {PARKED}
    for name in sorted(set(os.listdir(overlays)) - owned):
        if not done.dry_run:
            move_overlay(overlays / name, overlays / parking_place(name))
        done.mended.append(f"{overlays / name}, which belongs to no thread, is parked")


# what is lost


def _find_lost(repo: Repository, done: Repair) -> None:
    """Store again what is lost of states and still lies in a file: of an overlay, or of the working directory."""
    lost = {each.id: each for each in fsck.lost(repo, ()) if each.kind == "file"}
    if not lost:
        return
    wanted = set(lost)
    with repo.store.writer() as writer:
        for path in _files(repo):
            if not wanted:
                break
            wanted.discard(_store_again(path, repo.object_format, wanted, writer))
        found = writer.count
        writer.commit()
    if found:
        done.mended.append(f"{found} lost files are stored again from copies that are still there")


def _files(repo: Repository) -> Iterator[bytes]:
    """Every file and link of the working directory and of overlays: lost bytes may lie under any name.

    Mounts are passed by, since one that hangs would not be left again.
    """
    tops = [repo.path, *(directory / "upper" for _label, directory, _ in mend.overlays(repo))]
    passed_by = {os.fsencode(mount.mountpoint) for mount in mountinfo.heddle_mounts()}
    passed_by |= {os.fsencode(repo.heddle_dir), os.fsencode(repo.path / ".git")}
    for top in map(os.fsencode, tops):
        for where, directories, names in os.walk(top):
            inside = {name: os.path.join(where, name) for name in names + directories}
            directories[:] = [name for name in directories if inside[name] not in passed_by]
            yield from (path for path in inside.values() if path not in passed_by)


def _store_again(
    path: bytes, object_format: str, wanted: Collection[bytes], writer: PackWriter
) -> bytes | None:
    """Store the bytes of a file, or of a link, if they are wanted.

    Returns:
        Their id, if they were stored.
    """
    try:
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            target = os.readlink(path)
            found = hash_blob(iter([target]), len(target), object_format)
            return writer.add_blob(target) if found in wanted else None
        if not stat.S_ISREG(status.st_mode):
            return None
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        size = os.fstat(fd).st_size
        if hash_file(plain_reader(fd), size, object_format) not in wanted:
            return None
        os.lseek(fd, 0, os.SEEK_SET)
        return store_file(writer, plain_reader(fd), size)
    except OSError:  # the disk can't read it
        return None
    finally:
        os.close(fd)
