"""How git in a mount learns what changed there: ``core.fsmonitor`` (githooks(5), "fsmonitor-watchman").

Owns what git runs for it, and who is answered. Git starts a shell with the token of its last question behind the
command, and the shell reads a file that only the mount has: the session sees who opens it, and has both the token and
git's own command from there (proc(5)). That takes 3 ms, where a program in Python took 18. Where nothing is read, git
looks at all files itself: in a container without the mount, after the session's end, in a worktree that was
given a mount's settings, and for those of git's commands that may not make of the answer what it says.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

NAME = b".heddle-fsmonitor"
"""In the root of a mount: what changed since the question of whoever opens it."""
COMMAND = f"exec cat 2>/dev/null <{NAME.decode()} #"
"""For sh(1), at the top of the mount; git's own words come behind it, where the shell does not look."""
_VERSION = "2"
_NAMES = """
add am apply checkout cherry-pick clean commit describe diff-files grep ls-files merge mv pull read-tree rebase reset
restore revert rm stage stash status switch update-index write-tree
"""
_ANSWERED = frozenset(_NAMES.split())
"""Commands of git that get an answer. Before git 2.43 ``git diff COMMIT`` and ``git diff-index COMMIT`` at random take
what is said to be unchanged for deleted (they use a stat(2) that they did not make); an alias may be either."""
_KNOWS_DIRECTORIES = (2, 31)
"""Git's first version that takes a name with a slash behind it for all that is below."""
_WITH_VALUE = ("-C", "-c", "--git-dir", "--work-tree", "--namespace")
_PARENT, _THREADS = 1, 17
_GENERATIONS = 3
"""Git starts the shell, which may start another process."""


class Question(NamedTuple):
    """What git asks.

    Attributes:
        token: of an earlier answer, or what the index began with.
        git: its process.
    """

    token: str
    git: int


def question_of(pid: int, *, at_once: bool = False) -> Question | None:
    """What git asks by a process that it has started; None where that is not to be answered.

    Args:
        pid: of the shell.
        at_once: None too where it may have to be waited for, as in ``words_of``.
    """
    try:
        words = words_of(pid, "cmdline", at_once=at_once)
        if len(words) < 3 or words[-2] != _VERSION:
            return None
        for _ in range(_GENERATIONS):
            pid = int(_stat(pid)[_PARENT])
            asking = words_of(pid, "cmdline", at_once=at_once)
            if os.path.basename(asking[0]) == "git":
                return Question(words[-1], pid) if command_of(asking) in _ANSWERED else None
    except (OSError, ValueError, IndexError):
        pass
    return None


def words_of(pid: int, what: str, *, at_once: bool = False) -> list[str]:
    """A process's ``cmdline`` or ``environ`` (proc(5)).

    They are read from its memory, for which another thread of it may just now wait for a mount of ours.

    Args:
        pid: the process.
        what: which of the two.
        at_once: not of a process with several threads.

    Raises:
        OSError: we may not see it, or it may have to be waited for.
    """
    if at_once and _stat(pid)[_THREADS] != b"1":
        raise BlockingIOError(f"process {pid} has threads")
    with open(f"/proc/{pid}/{what}", "rb") as file:
        return os.fsdecode(file.read()).split("\0")[:-1]


def _stat(pid: int) -> list[bytes]:
    """The fields of a process's ``stat`` (proc(5)) behind its name."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()


def knows_directories(pid: int, since: tuple[int, int] = _KNOWS_DIRECTORIES) -> bool:
    """Whether the git of a process takes a name with a slash behind it for all that is below it.

    Raises:
        OSError: it can't be asked.
        IndexError, ValueError: it is no git.
    """
    reading, writing = os.pipe()
    out = [(os.POSIX_SPAWN_DUP2, writing, 1)]
    try:
        child = os.posix_spawn(f"/proc/{pid}/exe", ["git", "version"], os.environ, file_actions=out)
    finally:
        os.close(writing)
    with open(reading, "rb") as file:
        words = file.read().split()  # git version 2.39.5
    os.waitpid(child, 0)
    return tuple(map(int, words[2].split(b".")[:2])) >= since


def command_of(words: Sequence[str]) -> str:
    """Git's command in a command line: the first word that is no option of git's, nor the value of one."""
    rest = iter(words[1:])
    for word in rest:
        if word in _WITH_VALUE:
            next(rest, None)
        elif not word.startswith("-"):
            return word
    return ""
