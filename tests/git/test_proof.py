"""``script/proof`` on small histories that hold everything odd which git's own importer can make."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from heddle.objects.store import ObjectStore

from . import proof
from .conftest import run_git

NAMES = [
    *(b"plain", b"sub/deep/er", b"caf\\351", b"\\377\\376", b"new\\nline", b'quo\\"te', b"-dash"),
    *("ünïcödé/ß".encode(), b"sub/caf\\351/x", b"sp ace"),
]
ENCODINGS = {b"ISO-8859-1": b"caf\xe9", b"ISO-2022-JP": b'\x1b$B$"\x1b(B', b"": b"\xff raw"}


def history(source: random.Random) -> Iterator[bytes]:
    """A stream for ``git fast-import``: branches and merges, odd names, modes, encodings and tags."""
    marks: list[int] = []
    for mark in range(1, 41):
        branch = source.choice([b"main", b"side", b"caf\xc3\xa9/x"]) if mark > 1 else b"main"
        encoding, message = source.choice(list(ENCODINGS.items()))
        yield b"commit refs/heads/%s\nmark :%d\n" % (branch, mark)
        yield b"author Ren\xe9 <r@example.org> %d %+05d\n" % (
            mark * 1000,
            source.choice([0, 545, -930]),
        )
        yield b"committer C <> %d +0000\n" % (mark * 1000)
        yield b"encoding %s\n" % encoding if encoding else b""
        yield b"data %d\n%s\n" % (len(message), message)
        yield b"from :%d\n" % source.choice(marks) if marks else b""
        for parent in source.sample(marks, min(len(marks), source.choice([0, 0, 0, 1, 7]))):
            yield b"merge :%d\n" % parent
        yield from _files(source)
        marks.append(mark)
    for number in range(5):
        yield b"tag v%d\nfrom :%d\ntagger T\xe9 <t@b> 5 +0000\ndata 4\n\xe9ag\n\n" % (
            number,
            source.choice(marks),
        )


def _files(source: random.Random) -> Iterator[bytes]:
    for name in source.sample(NAMES, 3):
        mode = source.choice([b"100644", b"100755", b"120000", b"160000"])
        if mode == b"160000":
            yield b'M 160000 %s "%s"\n' % (b"%040x" % source.getrandbits(160), name)
            continue
        content = b"target" if mode == b"120000" else source.randbytes(9) * source.randrange(2000)
        yield b'M %s inline "%s"\ndata %d\n%s\n' % (mode, name, len(content), content)
    if source.random() < 0.2:
        yield b'D "%s"\n' % source.choice(NAMES)


@pytest.fixture
def generated(tmp_path: Path) -> Path:
    """A bare repository with such a history, half of it packed with deltas."""
    path = tmp_path / "generated.git"
    run_git(tmp_path, "init", "-q", "--bare", "-b", "main", path)
    stream = b"".join(history(random.Random(4)))
    command = ["git", "-C", str(path), "fast-import", "--quiet"]
    subprocess.run(command, input=stream, check=True)
    run_git(path, "repack", "-a", "-d", "-q", "-f")
    blob = subprocess.run(
        ["git", "-C", str(path), "hash-object", "-w", "--stdin"],
        input=bytes(range(256)) * 20_000,  # large, and loose
        capture_output=True,
        check=True,
    )
    run_git(path, "tag", "a-blob", blob.stdout.decode().strip())
    return path


def test_a_history_of_oddities(generated: Path, tmp_path: Path) -> None:
    """Every object, mounts of some commits and every ref after a round trip are what git has."""
    work = tmp_path / "proof"
    work.mkdir()

    found = proof.prove(generated, work, commits=2)

    assert found.wrong == []
    assert set(found.objects) == {"blob", "commit", "tag", "tree"}
    assert (found.objects["commit"] > 20, found.refs) == (True, 9)
    assert (len(found.commits), found.trees > 10) == (2, True)


def test_a_difference_is_found(
    generated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check itself: one wrong byte in one blob, or one wrong mode in a tree, is reported."""
    work = tmp_path / "proof"
    work.mkdir()
    real = ObjectStore.get_raw
    wrong = run_git(generated, "rev-parse", "main^{tree}").encode()

    def lying(self: ObjectStore, name: bytes) -> tuple[int, bytes]:
        kind, content = real(self, name)
        return kind, content.replace(b"100644", b"100755") if name == wrong else content

    monkeypatch.setattr(ObjectStore, "get_raw", lying)
    found = proof.prove(generated, work, commits=0, there_and_back=False)

    assert found.wrong == [f"content of {wrong.decode()}"]
