"""The inputs: Python's standard library, the Linux source tree, any directory, and a made-up tree
for file work.

Owns where an input comes from and what is left out of it. Measures nothing.
"""

from __future__ import annotations

import base64
import os
import random
import shutil
import subprocess
import sysconfig
from pathlib import Path

LINUX_ARCHIVE = Path("/usr/src/linux-source-6.1.tar.xz")
_LEFT_OUT = shutil.ignore_patterns(
    "__pycache__", "site-packages", "dist-packages", ".git", ".heddle"
)

KIB = 1024
MIB = 1024 * KIB


def copy_stdlib(target: Path) -> None:
    """Copy the running Python's standard library, without installed packages and caches."""
    copy_tree(Path(sysconfig.get_path("stdlib")), target)


def copy_tree(source: Path, target: Path) -> None:
    """Copy a directory tree, without repositories and Python's leavings in it."""
    shutil.copytree(source, target, symlinks=True, ignore=_LEFT_OUT)


def extract_linux(target: Path) -> None:
    """Unpack Debian's Linux source package to ``target``.

    The package's top .gitignore ends in lines of Debian's that ignore everything; they are dropped.
    """
    target.mkdir()
    subprocess.run(["tar", "-xJf", LINUX_ARCHIVE, "--strip-components=1", "-C", target], check=True)
    rules = target / ".gitignore"
    lines = rules.read_text().splitlines(keepends=True)
    start = next(n for n, line in enumerate(lines) if line.startswith("# Debian packaging"))
    rules.write_text("".join(lines[:start]))


def count_files(root: Path) -> int:
    """Regular files and symlinks below ``root``."""
    return sum(len(names) for _, _, names in os.walk(root))


class WorkTree:
    """A tree for the file-system workloads: every workload has files that no other workload reads.

    Contents are words (small files) and base64 (large ones), so that they compress somewhat, as
    text does.
    """

    small = 500
    shared = 480
    stat_directories = 20
    stat_files = 100
    large_bytes = 64 * MIB
    medium_bytes = 16 * MIB

    def __init__(self, root: Path) -> None:
        """Write the tree below ``root``, which must not exist."""
        source = random.Random(6)
        for directory, count in (
            ("small", self.small),
            ("four", self.shared),
            ("sixteen", self.shared),
        ):
            (root / directory).mkdir(parents=True)
            for number in range(count):
                (root / directory / f"{number:03}").write_bytes(_words(source, 4 * KIB))
        for group in ("listed", "named"):
            for number in range(self.stat_directories):
                where = root / group / f"{number:02}"
                where.mkdir(parents=True)
                for name in range(self.stat_files):
                    (where / f"{name:03}").write_bytes(
                        b"%s %d %d\n" % (group.encode(), number, name)
                    )
        (root / "large").write_bytes(_base64(source, self.large_bytes))
        (root / "medium").write_bytes(_base64(source, self.medium_bytes))


_VOCABULARY = [
    b"self",
    b"return",
    b"if",
    b"the",
    b"of",
    b"path",
    b"value",
    b"not",
    b"None",
    b"import",
]


def _words(source: random.Random, size_bytes: int) -> bytes:
    words = source.choices(_VOCABULARY, k=size_bytes // 2)
    words[0] = b"%x" % source.getrandbits(64)
    return b" ".join(words)[:size_bytes]


def _base64(source: random.Random, size_bytes: int) -> bytes:
    return base64.encodebytes(source.randbytes(size_bytes))[:size_bytes]
