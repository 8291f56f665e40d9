"""What git runs in a mount to learn what changed there: ``core.fsmonitor`` (githooks(5), "fsmonitor-watchman").

Run as ``python -IS fsmonitor.py SOCKET 2 TOKEN``. Owns nothing: it asks the session, which knows every change that
went through the mount. Git waits for it with each command, so it imports nothing of heddle's. When it fails, git looks
at all files itself; so it does for those of git's commands that may not make of the answer what it says.
"""

import json
import os
import socket
import sys
from collections.abc import Sequence

PATIENCE_S = 10.0
_NAMES = """
add am apply checkout cherry-pick clean commit describe diff-files grep ls-files merge mv pull read-tree rebase reset
restore revert rm stage stash status switch update-index write-tree
"""
_ANSWERED = frozenset(_NAMES.split())
"""Commands of git that get an answer. Before git 2.43 ``git diff COMMIT`` and ``git diff-index COMMIT`` at random take
what is said to be unchanged for deleted (they use a stat(2) that they did not make); an alias may be either."""
_WITH_VALUE = ("-C", "-c", "--git-dir", "--work-tree", "--namespace")
_GENERATIONS = 3
"""Git starts us by a shell, which may stay."""


def main() -> int:
    """Print a new token and the paths that changed since the old one, each with a NUL behind it."""
    path, version, token = sys.argv[1:]
    if version != "2" or _asking(os.getppid()) not in _ANSWERED:
        return 1
    asked = {"v": 1, "op": "changed", "token": token}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE_S)
        os.chdir(os.path.dirname(path))  # a socket's own path may be too long (unix(7))
        connection.connect(os.path.basename(path))
        connection.sendall(json.dumps(asked).encode("ascii") + b"\n")
        changed: list[str] = []
        with connection.makefile("rb") as lines:
            for line in lines:
                said = json.loads(line)
                if "part" not in said:
                    break
                changed += said["part"]
            else:
                return 1
    if "ok" not in said:
        return 1
    answer = [said["ok"]["token"], *changed]
    sys.stdout.buffer.write(
        b"".join(each.encode("utf-8", "surrogateescape") + b"\0" for each in answer)
    )
    return 0


def _asking(pid: int) -> str:
    """The command of the git that started us (proc(5)); empty where that can't be told."""
    try:
        for _ in range(_GENERATIONS):
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = os.fsdecode(file.read()).split("\0")
            if os.path.basename(words[0]) == "git":
                return command_of(words)
            with open(f"/proc/{pid}/stat", "rb") as file:
                pid = int(file.read().rpartition(b")")[2].split()[1])
    except OSError:
        pass
    return ""


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
