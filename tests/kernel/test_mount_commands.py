"""``heddle mount``, ``unmount`` and ``mounts`` as programs: fields, exit codes, what a shell sees."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from world import sessions_of, wait_until

from heddle import api
from heddle.mount import mountinfo


@pytest.fixture(autouse=True)
def unmounted_at_last(repo: api.Repository) -> Iterator[None]:
    """What a test mounted is unmounted after it."""
    yield
    repo.unmount(force=True, keep_going=True)


def is_mounted(path: Path) -> bool:
    return mountinfo.topmost(mountinfo.heddle_mounts(), path) is not None


def test_the_fields_of_mount_mounts_and_unmount(
    cli: Any, repo: api.Repository, tmp_path: Path
) -> None:
    """Each prints one object with the fields of the contract and true values."""
    place = tmp_path / "place"
    done = cli("mount", "agent-1", place, "--create", "--json").json
    (place / "f").write_text("123")
    [listed] = cli("mounts", "--json").json["mounts"]
    again = cli("mount", "agent-1", "--json").json
    ended = cli("unmount", "agent-1", "--json").json

    assert done == {
        "thread": "agent-1",
        "state": None,
        "mountpoint": str(place),
        "pid": done["pid"],
        "log": str(repo.heddle_dir / "overlays/agent-1/session.log"),
        "read_only": False,
        "recovered": None,
        "already_mounted": False,
    }
    assert again == {**done, "already_mounted": True}
    assert listed.pop("since") is not None
    assert listed == {
        "thread": "agent-1",
        "mountpoint": str(place),
        "state": "live",
        "pid": done["pid"],
        "read_only": False,
        "dirty_files": 1,
        "dirty_bytes": 3,
        "log": done["log"],
        "doing": None,
        "reason": None,
        "crashes": [],
        "gave_up": False,
    }
    assert ended == {
        "unmounted": [
            {
                "thread": "agent-1",
                "mountpoint": str(place),
                "was": "live",
                "method": "unmounted",
                "dirty": {"files": 1, "bytes": 3},
                "discarded": None,
                "kept_in": None,
            }
        ],
        "failed": [],
    }


def test_a_recovered_mount_says_what_it_found(cli: Any, tmp_path: Path, no_restarts: None) -> None:
    """After kill -9, mount gives the number of files and bytes that were unsaved."""
    done = cli("mount", "agent-1", "--create", "--json").json
    (Path(done["mountpoint"]) / "f").write_text("123")
    os.kill(done["pid"], signal.SIGKILL)
    wait_until(lambda: done["pid"] not in sessions_of(tmp_path), "the session to die")
    assert [it["state"] for it in cli("mounts", "--json").json["mounts"]] == ["stale"]

    again = cli("mount", "agent-1", "--json").json
    assert again["recovered"] == {"files": 1, "bytes": 3}
    assert again["mountpoint"] == done["mountpoint"]


def test_busy_is_75_and_names_the_holders(cli: Any, tmp_path: Path) -> None:
    """A shell standing in the mount keeps it busy: exit code 75, and JSON says which process."""
    place = tmp_path / "place"
    cli("mount", "agent-1", place, "--create")
    holder = subprocess.Popen(["/bin/sleep", "1000"], cwd=place)
    try:
        ran = cli("unmount", "agent-1", "--json", code=75)
        text = cli("unmount", "agent-1", code=75)
    finally:
        holder.kill()
        holder.wait()

    [failed] = ran.json["failed"]
    assert (failed["mountpoint"], ran.json["unmounted"]) == (str(place), [])
    assert failed["holders"] == [{"pid": holder.pid, "command": "/bin/sleep 1000"}]
    assert f"{holder.pid} (/bin/sleep 1000)" in text.stderr
    assert "hint:" in text.stderr


def test_unmount_of_the_mount_one_stands_in(cli: Any, tmp_path: Path) -> None:
    """Without an argument it means the mount around it, and the command itself does not keep it busy."""
    place = tmp_path / "place"
    cli("mount", "agent-1", place, "--create")
    (place / "sub").mkdir()
    cli("unmount", cwd=place / "sub")

    assert not place.exists()
    assert "no mount" in cli("unmount", code=64).stderr


def test_relative_paths(cli: Any, tmp_path: Path) -> None:
    """A mountpoint and a path to unmount are taken from where one stands, or from -C."""
    cli("mount", "agent-1", "../place", "--create")
    assert is_mounted(tmp_path / "place")
    cli("unmount", "../place")
    assert not is_mounted(tmp_path / "place")
    cli("-C", "..", "-C", "repo", "mount", "agent-1", "../place")
    cli("unmount", "place/", cwd=tmp_path)

    assert not is_mounted(tmp_path / "place")


def test_a_thread_named_like_a_directory(cli: Any, repo: api.Repository, tmp_path: Path) -> None:
    """A name that is a thread means the thread, even where a directory has it."""
    (repo.path / "agent-1").mkdir()
    cli("mount", "agent-1", tmp_path / "place", "--create")
    cli("unmount", "agent-1")

    assert not is_mounted(tmp_path / "place")


def test_every_command_means_the_mounted_thread(cli: Any, tmp_path: Path) -> None:
    """In a mount, capture, status, log and whoami need no flag to mean its thread."""
    place = tmp_path / "place"
    cli("mount", "agent-1", place, "--create", "--agent-provider", "p", "--agent-model", "m")
    (place / "f").write_text("x\n")
    status = cli("status", "--json", cwd=place).json
    captured = cli("capture", "-m", "From inside", "--json", cwd=place).json
    [logged] = [json.loads(line) for line in cli("log", "--json", cwd=place).stdout.splitlines()]

    assert (status["thread"], status["mountpoint"]) == ("agent-1", str(place))
    assert [it["path"] for it in status["changes"]] == ["f"]
    assert captured["agent"] == {"provider": "p", "model": "m", "session": None, "task": None}
    assert captured["state"] in json.dumps(logged)
    assert cli("whoami", "--json", cwd=place).json["agent"]["model"]["source"] == "mount"
    assert cli("diff", cwd=place).stdout == ""


@pytest.mark.parametrize(
    ("words", "code", "kind"),
    [
        (["mount", "nobody"], 65, "thread_not_found"),
        (["mount", "a//b", "--create"], 64, "invalid_name"),
        (["mount", "main", ".heddle/x"], 65, "mountpoint_unusable"),
        (["mount", "main", "."], 65, "mountpoint_unusable"),
        (["mount", "main", "no/such/place"], 73, "cannot_create"),
        (["mount", "main", "--from", "main"], 64, "usage"),
        (["mount", "nothing", "--read-only"], 65, "state_not_found"),
        (["unmount", "main"], 65, "not_mounted"),
        (["unmount", "nobody"], 65, "thread_not_found"),
        (["unmount", "main", "--all"], 64, "usage"),
        (["unmount", "main", "-m", "x"], 64, "usage"),
        (["unmount", "main", "--capture", "--discard"], 64, "usage"),
    ],
    ids=lambda it: " ".join(it) if isinstance(it, list) else None,
)
def test_bad_input(cli: Any, words: list[str], code: int, kind: str, tmp_path: Path) -> None:
    """Each refusal has its exit code and its name, and mounts nothing."""
    ran = cli(*words, "--json", code=code)

    assert (ran.error["kind"], ran.error["exit_code"], ran.stdout) == (kind, code, "")
    wait_until(lambda: sessions_of(tmp_path) == [], "the idle session to end")


def test_help_starts_no_session(cli: Any, tmp_path: Path) -> None:
    """Asking for help or giving a wrong option leaves no process behind."""
    cli("mount", "--help")
    cli("mount", "--no-such-option", code=64)

    wait_until(lambda: sessions_of(tmp_path) == [], "the idle session to end")


def test_foreground_serves_until_it_is_unmounted(
    cli: Any, repo: api.Repository, tmp_path: Path
) -> None:
    """--foreground prints what is mounted, stays, and exits with 0 after the unmount."""
    place = tmp_path / "place"
    command = [sys.executable, "-m", "heddle", "mount", "agent-1", str(place), "--create"]
    serving = subprocess.Popen(
        [*command, "--foreground", "--json"], cwd=repo.path, stdout=subprocess.PIPE
    )
    try:
        assert serving.stdout is not None
        said = json.loads(serving.stdout.readline())
        (place / "f").write_text("x")
        assert said["pid"] == serving.pid
        assert [it["pid"] for it in cli("mounts", "--json").json["mounts"]] == [serving.pid]
        cli("unmount", "agent-1")
        assert serving.wait(20) == 0
    finally:
        serving.kill()
        serving.communicate()

    assert not place.exists()


def test_foreground_ends_cleanly_with_ctrl_c(repo: api.Repository, tmp_path: Path) -> None:
    """SIGINT unmounts; what was written stays in the overlay."""
    place = tmp_path / "place"
    command = [sys.executable, "-m", "heddle", "mount", "agent-1", str(place), "--create"]
    serving = subprocess.Popen([*command, "--foreground"], cwd=repo.path, stdout=subprocess.PIPE)
    try:
        assert serving.stdout is not None
        serving.stdout.readline()
        (place / "f").write_text("x")
        serving.send_signal(signal.SIGINT)
        assert serving.wait(20) == 0
    finally:
        serving.kill()
        serving.communicate()

    assert not is_mounted(place)
    assert (repo.heddle_dir / "overlays/agent-1/upper/f").read_text() == "x"


def test_mounts_outside_a_repository(cli: Any, tmp_path: Path) -> None:
    """Outside a repository the sessions of the user are listed, ours among them."""
    cli("mount", "agent-1", tmp_path / "place", "--create")
    listed = cli("mounts", "--json", cwd=tmp_path).json["mounts"]

    assert str(tmp_path / "place") in [it["mountpoint"] for it in listed]


def test_mounts_for_people(cli: Any, tmp_path: Path, no_restarts: None) -> None:
    """The text says state, thread, place and what is unsaved; a dead mount comes with advice."""
    done = cli("mount", "agent-1", tmp_path / "place", "--create", "--json").json
    (tmp_path / "place" / "f").write_text("x")
    lines = cli("mounts").stdout.splitlines()
    assert lines == [f"live  agent-1 {tmp_path / 'place'}, 1 unsaved file"]

    os.kill(done["pid"], signal.SIGKILL)
    wait_until(lambda: done["pid"] not in sessions_of(tmp_path), "the session to die")
    ran = cli("mounts")
    assert ran.stdout.startswith("stale agent-1")
    assert "heddle mount agent-1 " in ran.stderr  # "recovers it", or later "starts it again"


def test_unmount_with_a_last_capture(cli: Any, repo: api.Repository, tmp_path: Path) -> None:
    """--capture records first; --discard puts aside and says where."""
    cli("mount", "agent-1", tmp_path / "place", "--create")
    (tmp_path / "place" / "f").write_text("x")
    cli("unmount", "agent-1", "--capture", "-m", "Done")
    assert repo.state("agent-1").message.strip() == "Done"

    cli("mount", "agent-1", tmp_path / "place")
    (tmp_path / "place" / "g").write_text("12")
    [ended] = cli("unmount", "agent-1", "--discard", "--json").json["unmounted"]
    assert (ended["discarded"], ended["dirty"]) == ({"files": 1, "bytes": 2}, None)
    assert list(Path(ended["kept_in"]).rglob("g"))


def test_all_is_all_of_this_runtime_directory(cli: Any, tmp_path: Path) -> None:
    """Outside a repository, ``unmount --all`` ends what was mounted with the same runtime directory, and no other."""
    place = tmp_path / "place"
    cli("mount", "agent-1", place, "--create")
    (tmp_path / "other").mkdir(mode=0o700)
    other = cli("unmount", "--all", "--json", cwd=tmp_path, XDG_RUNTIME_DIR=f"{tmp_path}/other")

    assert (other.json["unmounted"], is_mounted(place)) == ([], True)
    assert len(cli("unmount", "--all", "--json", cwd=tmp_path).json["unmounted"]) == 1


def test_a_locale_of_another_encoding(repo: api.Repository, tmp_path: Path, cli: Any) -> None:
    """A mount whose place is not ASCII is seen, and ends, whatever encoding the locale of a command has."""
    place = tmp_path / "b\u00e4"
    other = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    cli("mount", "agent-1", place, "--create")
    (place / "f").touch()

    [seen] = cli("mounts", "--json", **other).json["mounts"]
    assert (seen["state"], seen["mountpoint"]) == ("live", str(place))
    [ended] = cli("unmount", "agent-1", "--json", **other).json["unmounted"]
    assert (ended["was"], ended["method"]) == ("live", "unmounted")
    cli("mount", "agent-1", place, **other)
    assert cli("mounts", "--json").json["mounts"][0]["state"] == "live"
    assert (place / "f").exists()


def test_two_threads_at_one_place(repo: api.Repository, tmp_path: Path, cli: Any) -> None:
    """Of two threads that are mounted at one place at once one is there, and the other is refused."""
    place = tmp_path / "place"
    for name in ("x1", "x2"):
        repo.threads.create(name, repo.threads.get("main").state)
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "heddle", "mount", name, str(place)],
            cwd=repo.path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for name in ("x1", "x2")
    ]
    codes = sorted(each.wait(60) for each in started)

    assert codes == [0, 65]
    assert len(repo.mounts()) == 1
    repo.unmount(force=True)


def test_a_read_only_mount_is_no_other_s(repo: api.Repository, tmp_path: Path, cli: Any) -> None:
    """A place where a thread is mounted to be written is not what was asked for read-only, nor the other way round."""
    cli("capture", "-m", "First", "--allow-empty")
    cli("mount", "agent-1", tmp_path / "a", "--create")
    cli("mount", "main", tmp_path / "b", "--read-only")

    error = cli("mount", "agent-1", tmp_path / "a", "--read-only", "--json", code=65).error
    assert error["kind"] == "mountpoint_unusable"
    assert cli("mount", "main", tmp_path / "b", "--json", code=65).error
    assert cli("mount", "agent-1", tmp_path / "a", "--json").json["already_mounted"]
    assert cli("mount", "main", tmp_path / "b", "--read-only", "--json").json["already_mounted"]


def test_a_repository_in_a_mount(repo: api.Repository, tmp_path: Path, cli: Any) -> None:
    """Every command in a mount is about what is mounted, so no other repository is made there."""
    place = tmp_path / "place"
    cli("mount", "agent-1", place, "--create")
    (place / "sub").mkdir()

    assert cli("init", "--json", cwd=place / "sub", code=65).error["kind"] == "refused"
    assert cli("clone", repo.path, "other", cwd=place / "sub", code=65)
    assert os.listdir(place / "sub") == []


def test_a_marker_is_mounted_read_only(repo: api.Repository, cli: Any) -> None:
    """Who mounts a marker without saying how is told."""
    cli("capture", "-m", "First", "--allow-empty")
    cli("marker", "create", "v1")

    assert cli("mount", "v1", code=65).stderr.splitlines()[1] == "hint: heddle mount v1 --read-only"


def test_a_mount_of_another_name_space(repo: api.Repository, tmp_path: Path, cli: Any) -> None:
    """What is mounted where nobody here sees it is not mounted here; an unmount ends it all the same."""
    place = tmp_path / "place"
    command = ["unshare", "--mount", sys.executable, "-m", "heddle", "mount", "agent-1", str(place)]
    subprocess.run([*command, "--create"], cwd=repo.path, check=True, stdout=subprocess.DEVNULL)
    assert not is_mounted(place)

    assert "name space" in cli("mount", "agent-1", place, "--json", code=65).error["message"]
    cli("unmount", "agent-1")
    assert sessions_of(tmp_path) == []
    assert cli("mounts", "--json").json["mounts"] == []
    cli("mount", "agent-1", place)
    assert is_mounted(place)
