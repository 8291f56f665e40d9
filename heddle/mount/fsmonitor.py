"""What git runs in a mount to learn what changed there: ``core.fsmonitor`` (githooks(5), "fsmonitor-watchman").

Run as ``python -IS fsmonitor.py MOUNTPOINT SOCKET 2 TOKEN``. Owns nothing: it asks the session, which knows every
change that went through the mount. Git waits for it with each command, so it imports nothing of heddle's, and neither
json nor socket, which take as long as all the rest. When it fails, git looks at all files itself; so it does
for those of git's commands that may not make of the answer what it says, and in a worktree that was given the settings
of a mount.
"""

import os
import sys
from _socket import AF_UNIX, SOCK_STREAM, socket
from collections.abc import Sequence

PATIENCE_S = 10.0
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
_GENERATIONS = 3
"""Git starts us by a shell, which may stay."""


def main() -> int:
    """Print a new token and the paths that changed since the old one, each with a NUL behind it."""
    mountpoint, path, version, token = sys.argv[1:]
    command, asking = _asking(os.getppid())
    if version != "2" or command not in _ANSWERED:
        return 1
    try:
        if not os.path.samefile(mountpoint, "."):  # git starts us at the top of its worktree
            return 1
        said = _answer(path, token).splitlines()
        if not said or not said[-1].startswith(b'{"ok"'):
            return 1
        *parts, end = [_only_string(line) for line in said]
        changed = bytes.fromhex(b"".join(parts).decode())
        if b"/\0" in changed and not knows_directories(asking):
            return 1
    except (OSError, ValueError, IndexError):
        return 1
    sys.stdout.buffer.write(end + b"\0" + changed)
    return 0


def _answer(path: str, token: str) -> bytes:
    """What a session says, up to its end."""
    known = token if token.replace(":", "").isalnum() and token.isascii() else ""
    connection = socket(AF_UNIX, SOCK_STREAM)
    connection.settimeout(PATIENCE_S)
    os.chdir(os.path.dirname(path))  # a socket's own path may be too long (unix(7))
    connection.connect(os.path.basename(path))
    connection.sendall(b'{"v":1,"op":"changed","token":"%s"}\n' % known.encode())
    received = []
    while piece := connection.recv(1 << 16):
        received.append(piece)
    return b"".join(received)


def _only_string(line: bytes) -> bytes:
    """The last string of a JSON line in which nothing is escaped."""
    return line.split(b'"')[-2]


def _asking(pid: int) -> tuple[str, int]:
    """The command of the git that started us (proc(5)), and its process; empty where that can't be told."""
    try:
        for _ in range(_GENERATIONS):
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = os.fsdecode(file.read()).split("\0")
            if os.path.basename(words[0]) == "git":
                return command_of(words), pid
            with open(f"/proc/{pid}/stat", "rb") as file:
                pid = int(file.read().rpartition(b")")[2].split()[1])
    except OSError:
        pass
    return "", 0


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


if __name__ == "__main__":
    sys.exit(main())
