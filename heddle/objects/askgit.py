"""Stock git as a reader of objects: quicker at very many of them than anything in Python.

Owns how it is asked: in a directory of its own, since in the repository's it might fetch what a partial clone lacks,
and beside whoever asks, who has other things to do meanwhile. Nothing depends on an answer: where git is missing or
fails there is none.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from heddle.objects.gitformat import ID_LENGTHS

_PATIENCE_S = 120


@contextmanager
def asking_git(
    objects: Path, id_length: int, *words: str, asked: bytes = b""
) -> Iterator[Callable[[], bytes]]:
    """Have git begin with an answer; gives the function that waits for it.

    Args:
        objects: git's object directory.
        id_length: bytes of an id there.
        words: of the command, without ``git``.
        asked: what it reads.

    Yields:
        A function that returns what git printed; nothing where it failed.
    """
    process: subprocess.Popen[bytes] | None = None
    with ExitStack() as kept:
        with suppress(OSError):
            place = Path(kept.enter_context(TemporaryDirectory(prefix="heddle-")))
            process = _begin(objects, id_length, place, words, asked)
            kept.callback(_end, process)
        yield lambda: (place / "answer").read_bytes() if _succeeds(process) else b""


def _begin(
    objects: Path, id_length: int, place: Path, words: tuple[str, ...], asked: bytes
) -> subprocess.Popen[bytes]:
    environment = bare_environment() | {"GIT_OBJECT_DIRECTORY": str(objects)}
    make_bare(place, id_length)
    (place / "asked").write_bytes(asked)
    command = ["git", f"--git-dir={place}", *words]
    with open(place / "asked", "rb") as said, open(place / "answer", "wb") as to:
        return subprocess.Popen(
            command, stdin=said, stdout=to, stderr=subprocess.DEVNULL, env=environment
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _succeeds(process: subprocess.Popen[bytes] | None) -> bool:
    try:
        return process is not None and process.wait(_PATIENCE_S) == 0
    except subprocess.TimeoutExpired:
        return False


def bare_environment() -> dict[str, str]:
    """The environment of a git that no setting of anybody's reaches."""
    return {
        "PATH": os.pathsep.join(os.get_exec_path()),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
    }


def make_bare(directory: Path, id_length: int, alternate: Path | None = None) -> None:
    """Make a git repository with nothing in it (gitrepository-layout(5)).

    Args:
        id_length: bytes of an id in it.
        alternate: an object directory that it reads.
    """
    for name in ("objects/info", "refs"):
        (directory / name).mkdir(parents=True)
    if alternate is not None:
        (directory / "objects/info/alternates").write_bytes(os.fsencode(alternate) + b"\n")
    (directory / "HEAD").write_text("ref: refs/heads/none\n")
    name = next(name for name, length in ID_LENGTHS.items() if length == id_length)
    version, extension = (
        ("0", "") if name == "sha1" else ("1", f"[extensions]\nobjectformat={name}\n")
    )
    config = f"[core]\nrepositoryformatversion={version}\nbare=true\n{extension}"
    (directory / "config").write_text(config)
