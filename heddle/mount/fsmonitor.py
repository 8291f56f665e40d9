"""What git runs in a mount to learn what changed there: ``core.fsmonitor`` (githooks(5), "fsmonitor-watchman").

Run as ``python -IS fsmonitor.py SOCKET 2 TOKEN``. Owns nothing: it asks the session, which knows every change that
went through the mount. Git waits for it with each command, so it imports nothing of heddle's. When it fails, git looks
at all files itself.
"""

import json
import os
import socket
import sys

PATIENCE_S = 10.0


def main() -> int:
    """Print a new token and the paths that changed since the old one, each with a NUL behind it."""
    path, version, token = sys.argv[1:]
    if version != "2":
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


if __name__ == "__main__":
    sys.exit(main())
