"""Every error a user can meet, with its exit code and the next command to run.

The class says the kind (the stable name in ``--json``) and the exit code (sysexits(3)); the raiser says what
is wrong and, in ``hint``, what to do next. Who raises knows what failed there; what the operating system's error
below it means for a user, ``as_told`` and ``next_command`` say.
"""

from __future__ import annotations

import errno

_SQLITE_READONLY = 8
_SQLITE_FULL = 13
_FREE_SPACE = "free some space and run it again; nothing was lost"
_MORE_FILES = "ulimit -n says how many files may be open: raise it, then run it again"
_WHO_MAY = "ls -ld says who may do that, id who you are"
_BY_ERRNO = {
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
    errno.EMFILE: _MORE_FILES,
    errno.ENFILE: _MORE_FILES,
    errno.EACCES: _WHO_MAY,
    errno.EPERM: _WHO_MAY,
    errno.EROFS: "heddle doctor",
}


class HeddleError(Exception):
    """Something a user can be told in one sentence.

    Args:
        message: what is wrong, one line, no final full stop.
        hint: the next command to run, or None.

    Attributes:
        kind: stable snake_case name, part of the ``--json`` contract.
        exit_code: the process's exit code, from sysexits(3).
        retry: True when the same command may succeed if it is simply run again.
        advice: the hint of the whole class, for want of a better one.
    """

    kind = "error"
    exit_code = 70
    retry = False
    advice: str | None = None

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def next_command(error: HeddleError) -> str | None:
    """What to do about an error: as its raiser says, else as the operating system's error below it or its class asks.

    Returns:
        The hint for a user, or None when the message says it all.
    """
    below = _FREE_SPACE if _sqlite_code(error) == _SQLITE_FULL else _BY_ERRNO.get(_errno(error))
    return error.hint or below or error.advice


def as_told(error: HeddleError) -> HeddleError:
    """The error that a user is told: what an owner, a mode or a read-only disk forbids is no damage."""
    refused = _errno(error) in (errno.EACCES, errno.EPERM, errno.EROFS)
    if type(error) is not StorageError or not (refused or _sqlite_code(error) == _SQLITE_READONLY):
        return error
    told = NotPermitted(error.message, hint=error.hint)
    told.__cause__ = error.__cause__
    return told


def error_record(error: HeddleError) -> dict[str, object]:
    """What of an error is in JSON, and crosses a socket or a pipe; the system's error below it does not."""
    told = as_told(error)
    return {
        "kind": told.kind,
        "message": told.message,
        "hint": next_command(told),
        "exit_code": told.exit_code,
        "retry": told.retry,
    }


def _errno(error: HeddleError) -> int:
    return error.__cause__.errno or 0 if isinstance(error.__cause__, OSError) else 0


def _sqlite_code(error: HeddleError) -> int:
    """The primary result code (sqlite.org/rescode.html), or 0."""
    code: int = getattr(error.__cause__, "sqlite_errorcode", 0)
    return code & 0xFF


# 64: wrong in itself, whatever the repository holds


class UsageError(HeddleError):
    """An argument that no repository could accept."""

    kind = "usage"
    exit_code = 64


class InvalidName(UsageError):
    """A name that can't be a thread's or a marker's."""

    kind = "invalid_name"


# 65: the data or the state of the repository refuses


class DataError(HeddleError):
    """The repository's present state refuses what was asked."""

    kind = "refused"
    exit_code = 65


class ThreadNotFound(DataError):
    """No thread has this name."""

    kind = "thread_not_found"


class ThreadExists(DataError):
    """A thread of this name exists already."""

    kind = "thread_exists"


class MarkerNotFound(DataError):
    """No marker has this name."""

    kind = "marker_not_found"


class MarkerExists(DataError):
    """A marker of this name exists already; markers never move."""

    kind = "marker_exists"


class StateNotFound(DataError):
    """No state answers to this spec."""

    kind = "state_not_found"


class AmbiguousSpec(DataError):
    """More than one state answers to this spec; the message lists them."""

    kind = "ambiguous"


class PathNotFound(DataError):
    """The state holds no such path."""

    kind = "path_not_found"


class NothingToCapture(DataError):
    """Nothing has changed since the base."""

    kind = "nothing_to_capture"


class UnsavedChanges(DataError):
    """The operation would overwrite or drop changes that no state holds."""

    kind = "unsaved_changes"


class MountpointUnusable(DataError):
    """The mountpoint is a file, not empty, or inside something of ours."""

    kind = "mountpoint_unusable"


class NotMounted(DataError):
    """No session serves this thread or path."""

    kind = "not_mounted"
    advice = "heddle mounts"


class StaleMount(DataError):
    """The session that served this place is gone and has to be recovered first."""

    kind = "stale_mount"
    advice = "heddle mounts"


# 69: a needed part is missing


class Unavailable(HeddleError):
    """A part of the machine that is needed is missing."""

    kind = "unavailable"
    exit_code = 69
    advice = "heddle doctor"


# 73 and 74: cannot create, input/output


class CannotCreate(HeddleError):
    """A file or directory could not be made."""

    kind = "cannot_create"
    exit_code = 73


class StorageError(HeddleError):
    """Reading or writing failed below us."""

    kind = "io_error"
    exit_code = 74
    advice = "heddle doctor"


class CorruptObject(StorageError):
    """Stored bytes are not what was written; names the file and the object."""

    kind = "corrupt_object"
    advice = "heddle fsck --full"


class ObjectMissing(StorageError):
    """An object that something refers to is in no pack and no alternate."""

    kind = "object_missing"
    advice = "heddle fsck --full"


# 75: busy, try again


class Busy(HeddleError):
    """Somebody else holds what is needed just now."""

    kind = "busy"
    exit_code = 75
    retry = True
    advice = "run it again in a moment"


class ThreadMoved(Busy):
    """Compare-and-set failed: the thread moved since this change began."""

    kind = "thread_moved"


# 77: not permitted


class NotPermitted(HeddleError):
    """The owner or the mode of something is not what safety asks."""

    kind = "not_permitted"
    exit_code = 77


# 78: configuration


class ConfigError(HeddleError):
    """A configuration that can't be used; names file, line and column where there is one."""

    kind = "configuration"
    exit_code = 78


class NotARepository(ConfigError):
    """No .heddle here or in any parent."""

    kind = "not_a_repository"


class NoPrincipal(ConfigError):
    """No human answers for the change."""

    kind = "no_principal"


class OtherFormat(ConfigError):
    """Another heddle than this one wrote the repository; nothing is wrong with it."""

    kind = "other_format"


class RepositoryTooOld(OtherFormat):
    """An earlier heddle wrote this repository."""

    kind = "repository_too_old"


class RepositoryTooNew(OtherFormat):
    """A newer heddle wrote this repository."""

    kind = "repository_too_new"
