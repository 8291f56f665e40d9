"""The power fails between any two system calls: what was synced is there, and a capture that returned is whole."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from heddle import api
from heddle.errors import HeddleError, NotARepository
from heddle.mount.overlay import Overlay

from .powerloss import Call, Disk, Extreme, record, write_image
from .view import Hand, opened

SCRIPT = """
import os, sys, time
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
repo.collect(before_ns=time.time_ns())
repo.threads.delete("moved")
ack("gone moved")
repo.close()
"""

OVERLAY = """
import os, sys
from pathlib import Path
import heddle
from heddle.mount.overlay import Overlay
from faults.view import Hand

top, acks = Path(sys.argv[1]), os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT)
def ack(what):
    os.write(acks, what.encode() + b"\\n")

repo = heddle.init(top)
(top / "sub").mkdir()
for name in ("a", "b", "c", "sub/d"):
    (top / name).write_text("captured " + name + " " * 9000)
repo.capture(message="one")
repo.threads.create("agent", repo.threads.get("main").state)
overlay = Overlay.open(repo, "agent")
hand = Hand(overlay.core)
hand.create("note")
hand.write("note", b"precious")
hand.sync("note")
hand.sync("")
ack("file note precious")
hand.write("sub/d", b"more")
hand.sync("sub/d")
ack("end sub/d more")
hand.write("a", b"not synced")
hand.chmod("b", 0o600)
hand.write("b", b"not synced")
hand.create("late")
hand.write("late", b"captured")
with repo.store.writer() as writer:
    overlay.prestore(writer)
    overlay.capture(message="two", attribution=repo.attribution(), writer=writer)
ack("state agent two")
ack("file late captured")
ack("end b synced")
ack("going note")
hand.unlink("note")
hand.sync("")
ack("none note")
hand.write("c", b"once more")
hand.sync("c")
ack("end c more")
overlay.close()
overlay = Overlay.open(repo, "agent")
ack("discarding -")
overlay.discard()
overlay.close()
repo.park.restore("agent")
ack("restored -")
"""


PARTS = """
import os, sys
from pathlib import Path
import heddle
from heddle.mount.overlay import Overlay
from faults.view import Hand

top, acks = Path(sys.argv[1]), os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT)
def ack(what):
    os.write(acks, what.encode() + b"\\n")

repo = heddle.init(top)
(top / "large").write_bytes(bytes(range(1, 252)) * 17_000)
repo.capture(message="one")
repo.threads.create("agent", repo.threads.get("main").state)
overlay = Overlay.open(repo, "agent")
hand = Hand(overlay.core)
hand.write("large", b"\\0", offset=2 << 20)
hand.sync("large")
ack("zero %d" % (2 << 20))
hand.write("large", b"\\0", offset=5)
hand.write("large", b"\\0", offset=(2 << 20) + 1)
with repo.store.writer() as writer:
    overlay.prestore(writer)
    overlay.capture(message="two", attribution=repo.attribution(), writer=writer)
ack("state agent two")
hand.write("large", b"\\0", offset=4 << 20)
hand.sync("large")
ack("zero %d" % (4 << 20))
overlay.close()
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Call], Path, Path]:
    """The calls of the script, the directory that they are about, and the file of what has returned."""
    return run_recorded(SCRIPT, tmp_path_factory.mktemp("power"))


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Call], Path, Path]:
    """The same for a script that works in an overlay."""
    return run_recorded(OVERLAY, tmp_path_factory.mktemp("power"))


def run_recorded(script: str, place: Path) -> tuple[list[Call], Path, Path]:
    if shutil.which("strace") is None:
        pytest.fail("strace is missing: apt-get install strace", pytrace=False)
    environment = {
        **os.environ,
        "HOME": str(place),
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "XDG_RUNTIME_DIR": str(place),
        "HEDDLE_PRINCIPAL_NAME": "Ann Lee",
        "HEDDLE_PRINCIPAL_EMAIL": "ann@example.org",
    }
    environment.pop("HEDDLE_FAULT", None)
    top, acks = place / "repo", place / "acks"
    calls = record(script, [str(top), str(acks)], place / "log", environment)
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
    assert promised
    return tried


@pytest.mark.parametrize("extreme", ["strict", "names"])
def test_what_returned_is_there(
    recorded: tuple[list[Call], Path, Path], tmp_path: Path, extreme: Extreme
) -> None:
    """After every system call the disk holds all that had returned, and fsck finds nothing that it can't mend."""
    assert replay(recorded, Disk(recorded[1]), extreme, tmp_path / "after") > 20


class Journaled(Disk):
    """A disk on which syncing a file brings the names that lead to it, as ext4, xfs and btrfs do."""

    def _fsync(self, arguments: list[bytes], result: int) -> bool:
        known = self._known(arguments[0])
        if known is not None:
            self.sync_names(known[1])
        return super()._fsync(arguments, result)

    _fdatasync = _fsync


@pytest.mark.parametrize("extreme", ["strict", "names"])
def test_what_was_synced_in_an_overlay_is_there(
    edited: tuple[list[Call], Path, Path], tmp_path: Path, extreme: Extreme
) -> None:
    """After every system call an overlay shows what was fsynced, and no bytes that nobody wrote."""
    assert replay(edited, Journaled(edited[1]), extreme, tmp_path / "after") > 20


@pytest.mark.parametrize("extreme", ["strict", "names"])
def test_a_large_file_in_parts_is_whole(tmp_path: Path, extreme: Extreme) -> None:
    """After every system call a large file that was changed in part shows captured bytes wherever nobody wrote."""
    parts = run_recorded(PARTS, tmp_path)

    assert replay(parts, Journaled(parts[1]), extreme, tmp_path / "after") > 10


def test_the_sync_of_a_part_is_needed(tmp_path: Path) -> None:
    """Where syncing the real file does nothing, captured bytes are missed: the replay can fail."""
    parts = run_recorded(PARTS, tmp_path)

    class WithoutParts(Forgetful, Journaled):
        """A journaling disk that forgets the bytes of one file."""

    with pytest.raises(AssertionError):
        replay(parts, WithoutParts(parts[1], b"/large"), "names", tmp_path / "after")


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
        if "agent" in repo.threads and repo.database.has_overlay("agent"):
            shows(repo, promised, when)
        kinds = {problem.kind for problem in repo.fsck(full=True).problems}
        assert kinds <= {"missing_index"}, (when, repo.fsck(full=True).problems)
    except HeddleError as error:
        raise AssertionError(f"{when}: {error}") from error
    finally:
        repo.close()


def check_parts(large: bytes, promised: list[str], when: str) -> None:
    """A file that was written to in four places only, with zeros, which it had none of."""
    captured = bytes(range(1, 252)) * 17_000
    assert len(large) == len(captured), (when, len(large))
    zeros = (
        {at for at in range(len(large)) if large[at] != captured[at]}
        if large != captured
        else set()
    )
    assert zeros <= {5, 2 << 20, (2 << 20) + 1, 4 << 20}, (when, len(zeros))
    for line in promised:
        what, *words = line.split()
        if what == "zero":
            assert int(words[0]) in zeros, (when, line)


def keeps(repo: api.Repository, promised: list[str], when: str) -> None:
    """Each line of what returned, or what came after it."""
    names = [thread.name for thread in repo.threads]
    for line in promised:
        what, *words = line.split()
        if what == "state":
            messages = [state.message.strip() for state in repo.log(words[0])]
            assert words[1] in messages, (when, line, messages)
        elif what == "thread":
            later = {"side": "moved"}.get(words[0])
            deleted = words[0] in ("side", "moved") and "thread moved" in promised
            assert words[0] in names or later in names or deleted, (when, line, names)
        elif what == "setting":
            assert repo.config.get("agent.model").value == words[0], (when, line)
        elif what == "gone":
            assert words[0] not in names, (when, line)


def shows(repo: api.Repository, promised: list[str], when: str) -> None:
    """What was fsynced in the mount of ``agent`` is there; captured files hold what was written, never less."""
    with Overlay.open(repo, "agent") as overlay:
        hand = Hand(overlay.core)
        found = {path[1:].decode(): content for path, _, content, _ in hand.everything()}
    if b"large" in map(os.fsencode, found):
        check_parts(found["large"], promised, when)
        return
    gone = "going note" in promised
    restoring = "discarding -" in promised and "restored -" not in promised
    for line in promised:
        what, name, *words = line.split()
        if what == "file" and not (name == "note" and gone) and not restoring:
            assert found.get(name, b"").startswith(words[0].encode()), (when, line, found.get(name))
        if what == "end" and not restoring:
            assert found[name].endswith(words[0].encode()), (when, line, found[name][-20:])
        if what == "none" and not restoring:
            assert name not in found, (when, line)
    for name in ("a", "b", "c", "sub/d"):
        text = b"captured " + name.encode() + b" " * 9000
        assert found[name].startswith(text), (when, name, found[name][:20], len(found[name]))
