"""``core.fsmonitor`` in mounts: git is told what changed, sees all of it, and looks at nothing else."""

from __future__ import annotations

import mmap
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import PIPE

import pytest
from world import wait_until

import heddle
from heddle import api
from heddle.mount import fsmonitor
from heddle.mount.process import ProcessIdentity
from heddle.repo import gitindex, keptindex, worktreeconfig
from heddle.repo.gitindex import Directory
from heddle.repo.keptindex import Kept

from .conftest import Git, commit_file, run_git

FILES = [f"{directory}/{name}" for directory in ("a", "a/b", "c") for name in ("1", "2", "3")]


@pytest.fixture
def place(repo: api.Repository, git: Git, tmp_path: Path) -> Iterator[Path]:
    """A mount of a thread of some files, in which git asks what changed."""
    for name in FILES:
        (repo.path / name).parent.mkdir(parents=True, exist_ok=True)
        (repo.path / name).write_text(f"{name}\n" * 3)
    git("add", ".")
    git("commit", "-q", "-m", "Files")
    opened = heddle.open(repo.path)
    opened.config.set("git.fsmonitor_files", "1")
    mounted = opened.mount("agent", tmp_path / "mnt", create=True).mountpoint
    yield mounted
    opened.unmount("agent", force=True)


def said(place: Path, *options: str, all: bool = True) -> list[str]:
    """What git says of a mount; it keeps what it saw of directories only where it need not name all of them."""
    command = ["git", *options, "status", "-z", "--porcelain", *(["-uall"] if all else [])]
    done = subprocess.run(command, cwd=place, stdout=subprocess.PIPE, text=True, check=True)
    return sorted(done.stdout.split("\0"))


def right(place: Path, monkeypatch: pytest.MonkeyPatch, *, all: bool = True) -> list[str]:
    """What git says when it looks at everything itself, and keeps nothing of what it saw."""
    with monkeypatch.context() as patch:
        patch.setenv("GIT_OPTIONAL_LOCKS", "0")
        ours = ["-c", "core.fsmonitor=false", "-c", "core.untrackedCache=false"]
        return said(place, *ours, all=all)


def vouched_for(place: Path) -> set[str]:
    """The files at which git need not look."""
    lines = run_git(place, "ls-files", "-f").splitlines()
    return {line[2:] for line in lines if line[0].islower()}


def test_the_first_status_looks_at_nothing(place: Path, git: Git) -> None:
    """In a fresh mount, every file is vouched for, and after an edit all but that one."""
    assert said(place) == [""]
    assert vouched_for(place) == {*FILES, "a.txt", "b.txt"}

    (place / "c/1").write_text("edited\n")
    assert said(place) == ["", " M c/1"]
    assert vouched_for(place) == {*FILES, "a.txt", "b.txt"} - {"c/1"}


def kept(repo: api.Repository) -> list[Path]:
    directory = repo.heddle_dir / "gitindex"
    return sorted(directory.iterdir()) if directory.is_dir() else []


def index_of(place: Path) -> bytes:
    """Git's index in a mount, without the place, the token and the root's times that are its own."""
    private = Path(run_git(place, "rev-parse", "--absolute-git-dir"))
    content = (private / "index").read_bytes()
    return content[: content.index(b"UNTR")]


@pytest.mark.parametrize("damage", [None, b"", b"flipped"])
def test_the_next_mount_of_the_same_tree(
    place: Path, repo: api.Repository, tmp_path: Path, damage: bytes | None
) -> None:
    """What the index says of a whole tree is made once, and made again where what was kept of it is damaged."""
    said(place)
    [first] = kept(repo)
    if damage is not None:
        content = bytearray(first.read_bytes())
        content[len(content) // 2] ^= 1
        first.write_bytes(damage and content)
    before = first.stat().st_ino
    other = heddle.open(repo.path).mount("other", tmp_path / "other", create=True).mountpoint
    try:
        assert said(other) == [""]
        assert vouched_for(other) == {*FILES, "a.txt", "b.txt"}
        assert index_of(other) == index_of(place)
        assert (kept(repo)[0].stat().st_ino == before) == (damage is None)
        (other / "c/1").write_text("edited\n")
        assert said(other) == ["", " M c/1"]
    finally:
        repo.unmount("other", force=True)


def test_a_mount_with_changes(place: Path, repo: api.Repository) -> None:
    """Where something was changed before git was used, nothing is used of what was listed ahead."""
    wait_until(lambda: kept(repo), "the tree to be listed")
    (place / "c/1").write_text("edited\n")

    assert said(place) == ["", " M c/1"]
    assert vouched_for(place) == {*FILES, "a.txt", "b.txt"} - {"c/1"}


def test_few_are_kept(tmp_path: Path) -> None:
    """The one that was asked for longest ago goes."""
    directory = tmp_path / "kept"
    listed = Kept(gitindex.collect([], Directory(b"", None, 0, None, None, [])), {})
    for number in range(keptindex.KEPT + 3):
        keptindex.save(directory, str(number), listed)
        for name in sorted(each.name for each in directory.iterdir())[::-1]:
            os.utime(directory / name, ns=(0, int(name)))
        assert keptindex.load(directory, "0") == listed

    names = sorted(each.name for each in directory.iterdir())
    assert names == ["0", *(str(keptindex.KEPT + number) for number in (0, 1, 2))]


def test_settings_of_others_stay(place: Path, repo: api.Repository, git: Git) -> None:
    """What others have put into the checkout's settings is kept, and the main checkout gets none."""
    git("status", at=place)
    editor = 'sh -c "vi; true" # mine'
    git("config", "--worktree", "core.editor", editor, at=place)
    repo.unmount("agent")
    heddle.open(repo.path).mount("agent", place)

    assert git("config", "core.editor", at=place) == editor
    assert "heddle-fsmonitor" in git("config", "core.fsmonitor", at=place)
    assert not (repo.path / ".git/config.worktree").exists()
    git("config", "core.fsmonitor", code=1)


def test_git_s_configuration(place: Path, repo: api.Repository, git: Git, tmp_path: Path) -> None:
    """Checkouts have settings of their own for as long as a mount needs them; then not a byte is another one."""
    config = repo.path / ".git/config"
    before = config.read_bytes()
    other = heddle.open(repo.path).mount("other", tmp_path / "other", create=True).mountpoint
    assert config.read_bytes() == before
    for each in (place, other):
        assert said(each) == [""]
        assert config.read_bytes() == before + worktreeconfig.OURS
    assert git("config", "--type=bool", "extensions.worktreeConfig") == "true"
    repo.unmount("other")
    assert config.read_bytes() == before + worktreeconfig.OURS
    assert said(place) == [""]
    repo.unmount("agent")
    assert config.read_bytes() == before

    heddle.open(repo.path).mount("agent", place)  # what git had of it is taken up
    assert config.read_bytes() == before + worktreeconfig.OURS
    assert said(place) == [""]
    assert vouched_for(place) == {*FILES, "a.txt", "b.txt"}
    git("config", "--worktree", "core.editor", "vi")
    repo.unmount("agent")
    assert config.read_bytes() == before + worktreeconfig.OURS
    assert git("config", "core.editor") == "vi"
    heddle.open(repo.path).mount("agent", place)


def test_git_s_configuration_after_a_kill(place: Path, repo: api.Repository, git: Git) -> None:
    """A session that was killed took nothing back; the unmount does."""
    config = repo.path / ".git/config"
    before = config.read_bytes()
    said(place)
    end_session(repo)
    assert config.read_bytes() == before + worktreeconfig.OURS
    repo.unmount("agent", force=True)
    assert config.read_bytes() == before
    heddle.open(repo.path).mount("agent", place)


@pytest.mark.parametrize("held", [False, True])
def test_while_somebody_writes_the_configuration(
    place: Path, repo: api.Repository, git: Git, held: bool
) -> None:
    """Where git holds its lock, the mount does without, and waits for nobody; what is on stays on."""
    lock = repo.path / ".git/config.lock"
    if held:
        said(place)
    lock.touch()
    config = (repo.path / ".git/config").read_bytes()
    assert said(place) == [""]
    assert bool(vouched_for(place)) == held
    repo.unmount("agent")
    assert (repo.path / ".git/config").read_bytes() == config
    lock.unlink()
    heddle.open(repo.path).mount("agent", place)
    assert said(place) == [""]
    repo.unmount("agent")
    assert worktreeconfig.OURS not in (repo.path / ".git/config").read_bytes()
    heddle.open(repo.path).mount("agent", place)


def test_a_split_index(
    place: Path, repo: api.Repository, git: Git, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where git has split its index all changes are seen when nobody knows which there were."""
    git("config", "core.splitIndex", "true")
    said(place)
    commit_file(place, "a.txt", "one more\n")
    said(place)
    (place / "b.txt").write_text("edited\n")
    end_session(repo)
    heddle.open(repo.path).mount("agent")
    git("update-index", "--refresh", at=place, code=1)

    assert said(place) == right(place, monkeypatch) == ["", " M b.txt"]


def test_it_can_be_turned_off(place: Path, repo: api.Repository, git: Git) -> None:
    """Remounts leave the settings as they are, and what the user says against it stands."""
    git("status", at=place)
    settings = Path(git("rev-parse", "--absolute-git-dir", at=place)) / "config.worktree"
    before = settings.read_text()
    for _ in range(2):
        repo.unmount("agent")
        heddle.open(repo.path).mount("agent", place)
        settings = Path(git("rev-parse", "--absolute-git-dir", at=place)) / "config.worktree"
        assert settings.read_text() == before
    git("config", "--worktree", "core.fsmonitor", "false", at=place)
    repo.unmount("agent")
    heddle.open(repo.path).mount("agent", place)

    assert git("config", "core.fsmonitor", at=place) == "false"


@pytest.mark.parametrize(
    ("setting", "value", "least"),
    [
        ("extensions.worktreeConfig", "false", "1"),
        ("extensions.worktreeConfig", "true", "1000"),
        ("core.repositoryFormatVersion", "1", "1"),
        ("core.worktree", "/nowhere", "1"),
        ("a.b", "c", "1000"),
    ],
)
def test_where_it_is_not_wanted(
    repo: api.Repository, git: Git, tmp_path: Path, setting: str, value: str, least: str
) -> None:
    """Checkouts get no settings where their owner says so, where those would do harm, and where there are few files."""
    repo.config.set("git.fsmonitor_files", least)
    place = repo.mount("agent", tmp_path / "mnt", create=True).mountpoint
    git("config", setting, value)
    config = (repo.path / ".git/config").read_bytes()
    try:
        assert said(place) == [""]
        assert vouched_for(place) == set()
        [private] = (repo.path / ".git/worktrees").iterdir()
        assert not (private / "config.worktree").exists()
        assert (repo.path / ".git/config").read_bytes() == config
        assert bool(kept(repo)) == (least == "1")
    finally:
        git("config", "--unset", "core.worktree", code=None)
        repo.unmount("agent", force=True)


@pytest.mark.parametrize(("least", "is_asked"), [("20", True), ("40", False)])
def test_directories_count_as_files(
    place: Path, repo: api.Repository, tmp_path: Path, least: str, is_asked: bool
) -> None:
    """Eleven files in four directories are asked about where twenty are needed, and not where forty are."""
    repo.config.set("git.fsmonitor_files", least)
    other = repo.mount("other", tmp_path / "other", create=True).mountpoint
    try:
        assert said(other) == [""]
        assert bool(vouched_for(other)) == is_asked
    finally:
        repo.unmount("other", force=True)


def test_settings_that_nobody_reads(repo: api.Repository, git: Git, tmp_path: Path) -> None:
    """Where the main checkout has settings that are not in force, they are not brought into force."""
    repo.config.set("git.fsmonitor_files", "1")
    place = repo.mount("agent", tmp_path / "mnt", create=True).mountpoint
    (repo.path / ".git/config.worktree").write_text("[core]\n\teditor = old\n")
    try:
        assert said(place) == [""]
        assert vouched_for(place) == set()
        git("config", "core.editor", code=1)
    finally:
        repo.unmount("agent", force=True)


def change_open(path: Path) -> None:
    """A program that goes on writing."""
    file = path.open("r+b", buffering=0)
    file.write(b"!")
    file.flush()
    _kept.append(file)


def change_mapped(path: Path) -> None:
    """A program that has closed the file, and changes it through its mapping."""
    with path.open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0)
    mapped[0:1] = b"?"
    _kept.append(mapped)


_kept: list[object] = []
CHANGES: dict[str, Callable[[Path], object]] = {
    "written": lambda place: (place / "a/1").write_text("x"),
    "same size": lambda place: (place / "a/1").write_text("A/1\n" * 3),
    "appended": lambda place: (place / "a/1").open("a").write("more"),
    "truncated": lambda place: os.truncate(place / "a/1", 3),
    "mode": lambda place: (place / "a/1").chmod(0o755),
    "time": lambda place: os.utime(place / "a/1", (1, 1)),
    "removed": lambda place: (place / "a/1").unlink(),
    "new": lambda place: (place / "a/new").touch(),
    "link": lambda place: (place / "a/new").symlink_to("1"),
    "hard link": lambda place: (place / "a/new").hardlink_to(place / "a/1"),
    "renamed": lambda place: (place / "a/1").rename(place / "c/new"),
    "replaced": lambda place: (place / "a/1").rename(place / "c/1"),
    "directory": lambda place: (place / "a").rename(place / "z"),
    "inner directory": lambda place: (place / "a/b").rename(place / "c/b"),
    "new directory": lambda place: (place / "n" / "m").mkdir(parents=True),
    "directory removed": lambda place: subprocess.run(["rm", "-r", place / "a"], check=True),
    "rules": lambda place: (place / "a/.gitignore").write_text("*\n"),
    "open": lambda place: change_open(place / "a/1"),
    "mapped": lambda place: change_mapped(place / "a/1"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_every_change_is_seen(
    place: Path, change: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each way to change a tree git hears, at once and at every later time."""
    assert said(place) == [""]
    try:
        change(place)
        seen = [said(place), said(place)]
        assert seen == [right(place, monkeypatch)] * 2
        (place / "later").touch()
        assert said(place) == sorted([*seen[0], "?? later"])
    finally:
        _kept.clear()


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("closed", [True, False])
def test_a_write_through_another_name(
    place: Path, repo: api.Repository, known: bool, closed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file with two names that is changed through one of them is changed under both, and nothing else is.

    Also where the session has not seen the other one yet, and where the change has not left the kernel.
    """
    (place / "a/1").unlink()
    (place / "a/1").hardlink_to(place / "c/1")
    run_git(place, "commit", "-q", "-a", "-m", "Linked")
    if not known:
        repo.unmount("agent", force=True)
        heddle.open(repo.path).mount("agent", place)
    assert said(place) == [""]
    assert vouched_for(place) == {*FILES, "a.txt", "b.txt"}
    with (place / "c/1").open("r+") as file:
        file.write("XXX")
        if not closed:
            file.flush()
            assert said(place) == right(place, monkeypatch) == ["", " M a/1", " M c/1"]

    assert said(place) == right(place, monkeypatch) == ["", " M a/1", " M c/1"]
    assert vouched_for(place) == {*FILES, "a.txt", "b.txt"} - {"a/1", "c/1"}


def test_another_directory_of_the_same_name(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What git had seen of directories is not believed of those that came in their place."""
    (place / "a/b/new").touch()
    settled = time.time() + 1.1
    wait_until(lambda: time.time() > settled, "git to tell times apart")
    for _ in range(2):
        said(place, all=False)
    (place / "a").rename(place / "z")
    (place / "c").rename(place / "a")
    (place / "z").rename(place / "c")

    for _ in range(2):
        assert said(place, all=False) == right(place, monkeypatch, all=False)


LOOKING = [
    ["status", "--porcelain"],
    ["diff", "--stat"],
    ["add", "a/1"],
    ["commit", "-q", "-a", "-m", "All"],
    ["update-index", "--refresh"],
    ["ls-files", "-m"],
]
"""What asks the session without listing every directory, some of it."""


@pytest.mark.parametrize("look", LOOKING[2:5], ids=lambda it: " ".join(it))
@pytest.mark.parametrize("how", ["link", "remount", "killed"])
def test_when_nobody_knows_what_changed(
    place: Path, repo: api.Repository, look: list[str], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came while nobody noted it is seen, whichever command asked first: git has to look at everything."""
    commit_file(place, ".gitignore", "target\n")
    (place / "u").mkdir()
    settled = time.time() + 1.1
    wait_until(lambda: time.time() > settled, "git to tell times apart")
    for _ in range(2):
        said(place, all=False)
    (place / "target").mkdir()
    (place / "target/o").write_text("o")
    (place / "target/o2").hardlink_to(place / "target/o")
    (place / "a/b/new").touch()
    (place / "u/new").touch()
    (place / "c/1").write_text("edited\n")
    (place / "b.txt").write_text("edited\n")
    if how == "link":
        (place / "target/o").write_text("changed through one of its names")
    elif how == "killed":
        end_session(repo)
        heddle.open(repo.path).mount("agent")
    else:
        repo.unmount("agent")
        heddle.open(repo.path).mount("agent", place)
    subprocess.run(["git", *look], cwd=place, stdout=subprocess.DEVNULL)

    for _ in range(2):
        assert said(place, all=False) == right(place, monkeypatch, all=False)
    assert {"?? a/b/new", "?? u/"} <= set(said(place, all=False))


def end_session(repo: api.Repository) -> None:
    """Kill the session, and wait for the next one."""
    before = heddle.open(repo.path).mounts()[0].pid
    assert before is not None
    identity = ProcessIdentity.of(before)
    os.kill(before, signal.SIGKILL)
    assert identity is None or identity.wait(10)
    wait_until(lambda: heddle.open(repo.path).mounts()[0].state == "live", "a new session")


@pytest.mark.parametrize("all", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_any_changes_are_seen(
    place: Path, seed: int, all: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However a tree is changed at random, git says what it says when it looks at everything."""
    chance = random.Random(seed)
    for _ in range(30):
        for _ in range(chance.randrange(1, 5)):
            change_somehow(chance, place)
        if chance.random() < 0.5:
            look = chance.choice(LOOKING)
            subprocess.run(["git", *look], cwd=place, capture_output=True)

        assert said(place, all=all) == right(place, monkeypatch, all=all)


def change_somehow(chance: random.Random, place: Path) -> None:
    entries = sorted(it for it in place.rglob("*") if it.name != ".git")
    directories = [place, *(it for it in entries if it.is_dir() and not it.is_symlink())]
    target = chance.choice(directories) / f"n{chance.randrange(8)}"
    source = chance.choice(entries or [place / "none"])
    kind = chance.randrange(7)
    try:
        if kind == 0:
            target.mkdir()
        elif kind == 1:
            source.rename(target)
        elif kind == 2:
            subprocess.run(["rm", "-rf", source], check=True)
        elif kind == 3:
            target.hardlink_to(source)
        else:
            (source if kind < 6 else target).write_text(f"{chance.random()}")
    except OSError:
        pass  # a directory over a file, into itself, or nothing there


def test_what_git_itself_does(place: Path, git: Git, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commits, stashes, resets and switches of git in the mount leave it as right as it was."""
    made = commit_file(place, "c/1", "committed\n")
    (place / "a/1").write_text("stashed\n")
    steps = [
        ["stash", "-q"],
        ["switch", "-q", "-c", "side", "HEAD~1"],
        ["merge", "-q", "--ff-only", made],
        ["stash", "pop", "-q"],
        ["reset", "-q", "--hard"],
        ["rm", "-q", "-r", "a"],
    ]
    for step in steps:
        git(*step, at=place)

        assert said(place) == right(place, monkeypatch)


def test_a_worktree_made_from_a_mount(place: Path, git: Git, tmp_path: Path) -> None:
    """Git gives a new worktree the settings of the checkout it was made from; the mount says nothing about that one."""
    said(place)
    other = tmp_path / "other"
    git("worktree", "add", "-q", "-b", "other", other, at=place)
    assert "heddle-fsmonitor" in git("config", "core.fsmonitor", at=other)
    assert said(other) == [""]
    (other / "c/1").write_text("edited\n")

    assert said(other) == ["", " M c/1"]
    assert vouched_for(other) == set()
    git("worktree", "remove", "--force", other)


def test_a_difference_from_a_commit(place: Path, git: Git) -> None:
    """Git that takes what it need not look at for deleted, as it did at random before 2.43, is not told anything."""
    git("config", "alias.changes", "diff --name-only HEAD")
    assert said(place) == [""]
    (place / "c/1").write_text("edited\n")

    commands = [["diff", "--name-only", "HEAD"], ["diff-index", "--name-only", "HEAD"], ["changes"]]
    assert {git(*command, at=place) for _ in range(30) for command in commands} == {"c/1"}
    assert said(place) == ["", " M c/1"]
    assert vouched_for(place) == {*FILES, "a.txt", "b.txt"} - {"c/1"}


def test_what_heddle_does(
    place: Path, repo: api.Repository, git: Git, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a capture, and after the thread was moved from elsewhere, git sees what the mount shows."""
    said(place)
    (place / "a/1").write_text("captured\n")
    inside = heddle.open(place)
    inside.capture(message="One")

    assert said(place) == right(place, monkeypatch) == [""]

    git("update-ref", "refs/heads/agent", "main")
    heddle.open(repo.path)

    assert (place / "a/1").read_text() == "a/1\n" * 3
    assert said(place) == right(place, monkeypatch) == [""]


def test_another_session(
    place: Path, repo: api.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the session before, which was killed, had told says nothing about what changed since."""
    said(place)
    end_session(repo)
    (place / "c/2").write_text("edited\n")

    assert said(place) == right(place, monkeypatch) == ["", " M c/2"]


def test_who_is_not_answered(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is no git, asks in another version, or would make something else of the answer gets none."""
    assert said(place) == [""]
    file = place / ".heddle-fsmonitor"
    token = "0"
    for command in (
        ["cat", file],
        ["sh", "-c", fsmonitor.COMMAND, "sh", "2", token],
        ["git", "-c", f"alias.x=!{fsmonitor.COMMAND}", "x", "1", token],
        ["git", "-c", f"alias.x=!{fsmonitor.COMMAND}", "x", "2", token],
    ):
        done = subprocess.run(command, cwd=place, capture_output=True, check=False)
        assert done.returncode != 0 and done.stdout == b"", command
    (place / "a/1").write_text("edited\n")
    assert said(place) == right(place, monkeypatch) == ["", " M a/1"]


def test_the_file_that_git_reads(place: Path, repo: api.Repository) -> None:
    """No listing shows it, nobody can change it or take it away, and no capture has it."""
    file = place / ".heddle-fsmonitor"
    said(place)
    assert file.name not in os.listdir(place) and file.stat().st_size == 0
    for change in (file.unlink, lambda: file.write_text("x"), lambda: file.rename(place / "x")):
        with pytest.raises(PermissionError):
            change()
    with pytest.raises(FileExistsError):
        os.open(file, os.O_CREAT | os.O_EXCL)
    (place / "new").touch()
    heddle.open(repo.path).capture(thread="agent", message="New")
    tree = heddle.open(repo.path).state("agent").tree
    assert {name for name, _, _ in repo.store.tree_entries(tree)} >= {b"new"}
    assert b".heddle-fsmonitor" not in {name for name, _, _ in repo.store.tree_entries(tree)}


def test_a_file_of_that_name(
    repo: api.Repository, git: Git, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a repository has a file of that name it is shown, and git looks for itself."""
    commit_file(repo.path, ".heddle-fsmonitor", "mine\n")
    repo.config.set("git.fsmonitor_files", "1")
    place = repo.mount("agent", tmp_path / "mnt", create=True).mountpoint
    try:
        assert said(place) == [""]
        assert (place / ".heddle-fsmonitor").read_text() == "mine\n"
        (place / ".heddle-fsmonitor").write_text("edited\n")
        assert said(place) == right(place, monkeypatch) == ["", " M .heddle-fsmonitor"]
    finally:
        repo.unmount("agent", force=True)


def test_in_a_mount_that_takes_no_writes(repo: api.Repository, git: Git, tmp_path: Path) -> None:
    """Git asks in a read-only mount, too."""
    repo.config.set("git.fsmonitor_files", "1")
    place = repo.mount("HEAD", tmp_path / "mnt", read_only=True).mountpoint
    try:
        assert said(place) == [""]
        assert vouched_for(place) == set(git("ls-files", at=place).splitlines())
    finally:
        repo.unmount(place, force=True)


def test_a_git_that_takes_no_directories(git: Git, repo: api.Repository) -> None:
    """The version of the git that asks tells whether it may be told of a directory."""
    with subprocess.Popen(["git", "cat-file", "--batch"], cwd=repo.path, stdin=PIPE) as asking:
        assert fsmonitor.knows_directories(asking.pid)
        assert not fsmonitor.knows_directories(asking.pid, since=(99, 0))
        with pytest.raises(IndexError):
            fsmonitor.knows_directories(os.getpid())
        assert asking.stdin is not None
        asking.stdin.close()


def test_a_shell_that_has_no_cat(place: Path, git: Git, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the command can't be run git looks for itself, and nothing is complained of."""
    assert said(place) == [""]
    command = git("config", "core.fsmonitor", at=place)
    git("config", "--worktree", "core.fsmonitor", command.replace("cat", "no-cat"), at=place)
    (place / "a/1").write_text("edited\n")
    done = subprocess.run(["git", "status", "-s"], cwd=place, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (" M a/1\n", "")
