"""The power fails between any two system calls: what was synced is there, and a capture that returned is whole."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from heddle.errors import HeddleError, NotARepository

from .powerloss import Call, Disk, Extreme, record, write_image
from .view import opened

SCRIPT = """
import os, sys
from pathlib import Path
import heddle

top, acks = Path(sys.argv[1]), os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT)
def ack(what):
    os.write(acks, what.encode() + b"\\n")

repo = heddle.init(top)
ack("init")
(top / "f").write_text("one")
repo.capture(message="one")
ack("state main one")
(top / "f").write_text("two")
(top / "large").write_bytes(os.urandom(5 << 20))
repo.capture(message="two")
ack("state main two")
repo.threads.create("side", repo.threads.get("main").state)
ack("thread side")
repo.threads.rename("side", "moved")
ack("thread moved")
repo.config.set("agent.model", "m")
ack("setting m")
repo.close()
repo = heddle.open(top)
(top / "f").write_text("three")
repo.capture(message="three")
ack("state main three")
repo.threads.delete("moved")
ack("gone moved")
repo.close()
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Call], Path, Path]:
    """The calls of the script, the directory that they are about, and the file of what has returned."""
    if shutil.which("strace") is None:
        pytest.fail("strace is missing: apt-get install strace", pytrace=False)
    place = tmp_path_factory.mktemp("power")
    environment = {
        **os.environ,
        "HOME": str(place),
        "XDG_RUNTIME_DIR": str(place),
        "HEDDLE_PRINCIPAL_NAME": "Ann Lee",
        "HEDDLE_PRINCIPAL_EMAIL": "ann@example.org",
    }
    environment.pop("HEDDLE_FAULT", None)
    top, acks = place / "repo", place / "acks"
    calls = record(SCRIPT, [str(top), str(acks)], place / "log", environment)
    return calls, top, acks


def acknowledged(call: Call, acks: Path) -> list[str]:
    """What a call tells of: the script writes a line when something has returned."""
    wanted = os.fsencode(acks).hex().encode()
    if call.name != "write" or wanted not in call.arguments[0].replace(b"\\x", b""):
        return []
    text = bytes.fromhex(call.arguments[1].strip(b'"').replace(b"\\x", b"").decode())
    return text.decode().splitlines()


def replay(
    recorded: tuple[list[Call], Path, Path], disk: Disk, extreme: Extreme, after: Path
) -> int:
    """Cut the power after every call and look; returns how many different disks were looked at."""
    calls, _, acks = recorded
    promised: list[str] = []
    last: object = None
    tried = 0
    for call in calls:
        new = acknowledged(call, acks)
        promised += new
        if not disk.apply(call) and not new:
            continue
        image = disk.image(extreme)
        if not new and image == last:
            continue
        last = image
        tried += 1
        write_image(image, after)
        check(after, promised, f"{extreme}, after {call.name}, having been told {promised[-1:]}")
        shutil.rmtree(after)
    assert "gone moved" in promised
    return tried


@pytest.mark.parametrize("extreme", ["strict", "names"])
def test_what_returned_is_there(
    recorded: tuple[list[Call], Path, Path], tmp_path: Path, extreme: Extreme
) -> None:
    """After every system call the disk holds all that had returned, and fsck finds nothing that it can't mend."""
    assert replay(recorded, Disk(recorded[1]), extreme, tmp_path / "after") > 20


class Forgetful(Disk):
    """A disk on which syncing one kind of file does nothing."""

    def __init__(self, top: Path, ending: bytes) -> None:
        super().__init__(top)
        self._ending = ending

    def _fsync(self, arguments: list[bytes], result: int) -> bool:
        path = bytes.fromhex(
            arguments[0].partition(b"<")[2].partition(b">")[0].replace(b"\\x", b"").decode()
        )
        return False if path.endswith(self._ending) else super()._fsync(arguments, result)

    _fdatasync = _fsync


@pytest.mark.parametrize("ending", [b"packs", b"heddle.db-wal", b".heddle", b""])
def test_each_sync_is_needed(
    recorded: tuple[list[Call], Path, Path], tmp_path: Path, ending: bytes
) -> None:
    """Where one kind of fsync does nothing, something is missed: the replay can fail."""
    with pytest.raises(AssertionError):
        replay(recorded, Forgetful(recorded[1], ending), "strict", tmp_path / "after")


def check(top: Path, promised: list[str], when: str) -> None:
    try:
        repo = opened(top)
    except NotARepository:
        assert promised == [], when
        return
    try:
        keeps(repo, promised, when)
        kinds = {problem.kind for problem in repo.fsck(full=True).problems}
        assert kinds <= {"missing_index"}, (when, repo.fsck(full=True).problems)
    except HeddleError as error:
        raise AssertionError(f"{when}: {error}") from error
    finally:
        repo.close()


def keeps(repo: object, promised: list[str], when: str) -> None:
    """Each line of what returned, or what came after it."""
    names = [thread.name for thread in repo.threads]  # type: ignore[attr-defined]
    for line in promised:
        what, *words = line.split()
        if what == "state":
            messages = [state.message.strip() for state in repo.log(words[0])]  # type: ignore[attr-defined]
            assert words[1] in messages, (when, line, messages)
        elif what == "thread":
            later = {"side": "moved"}.get(words[0])
            deleted = words[0] in ("side", "moved") and "thread moved" in promised
            assert words[0] in names or later in names or deleted, (when, line, names)
        elif what == "setting":
            assert repo.config.get("agent.model").value == words[0], (when, line)  # type: ignore[attr-defined]
        elif what == "gone":
            assert words[0] not in names, (when, line)
