"""What git would convert is captured as ``git add`` records it: line endings, filters, ``$Id$``, encodings."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import heddle
from heddle import api
from heddle.errors import NothingToCapture, Unavailable
from heddle.mount import upper as up
from heddle.mount.overlay import NotSettled, Overlay
from heddle.repo import gitclean
from heddle.repo.gitclean import NotConverted

from .conftest import Git, run_git

CONTENTS = {
    "crlf": b"one\r\ntwo\r\n",
    "lf": b"one\ntwo\n",
    "mixed": b"one\r\ntwo\nthree\r\n",
    "nul": b"one\r\n\0two\r\n",
    "cr": b"one\rtwo\r\nthree\r\n",
    "empty": b"",
    "id": b"$Id: 0123456789 $\nA\r\n$Id$",
    "utf16": "\ufeffone\r\ntwo\r\n".encode("utf-16-le"),
    "binary": bytes(range(256)) * 8 + b"\r\n",
}
"""What is written over every file of every kind; none of it is what was committed."""
RULES = {
    "plain": "",
    "text": "text",
    "binary": "-text",
    "auto": "text=auto",
    "crlf": "eol=crlf",
    "lf": "text eol=lf",
    "auto-crlf": "text=auto eol=crlf",
    "legacy": "crlf=input",
    "filter": "filter=swap",
    "process": "filter=later",
    "both": "filter=swap text ident",
    "optional": "filter=broken",
    "unknown": "filter=nobody",
    "ident": "ident",
    "utf16": "text working-tree-encoding=UTF-16LE-BOM",
    "latin": "working-tree-encoding=ISO-8859-1",
}
COMMITTED = {"": b"begin\n", ".was-crlf": b"begin\r\n"}
"""What was committed as the attributes have it, and before there were any: git guesses by that, too."""
SWAP = "tr AB BA"
AUTOCRLF = ["false", "true", "input"]


def cells() -> Iterator[tuple[str, bytes]]:
    """Every file of the matrix, with what is to be written to it."""
    for rule in RULES:
        for was in (*COMMITTED, ".new"):
            for content, data in CONTENTS.items():
                if rule != "utf16" or content in ("utf16", "empty"):
                    yield f"{rule}/{content}{was}", data


@pytest.fixture(params=AUTOCRLF)
def world(request: pytest.FixtureRequest, tmp_path: Path, git: Git, nothing_left: None) -> Path:
    """A checkout with a file for every rule and content, all of them clean, and heddle on it."""
    path = tmp_path / "work"
    path.mkdir()
    git("init", "-q", "-b", "main")
    for name, _ in cells():
        file = path / name
        file.parent.mkdir(exist_ok=True)
        if not name.endswith(".new"):
            file.write_bytes(COMMITTED[".was-crlf" if name.endswith(".was-crlf") else ""])
    git("add", ".")
    git("commit", "-q", "-m", "Before there are attributes")
    attributes = [f"/{rule}/** {words}\n" for rule, words in RULES.items() if words]
    (path / ".gitattributes").write_text("".join(attributes))
    git("config", "core.autocrlf", request.param)
    git("config", "core.safecrlf", "false")
    git("config", "filter.swap.clean", SWAP)
    git("config", "filter.later.process", f"{sys.executable} {long_running(tmp_path)}")
    git("config", "filter.broken.clean", "cat >/dev/null; exit 3")
    git("add", ".gitattributes")
    git("commit", "-q", "-m", "Attributes")
    heddle.init(path)
    return path


def long_running(directory: Path) -> Path:
    """A filter that git starts once for all files (gitattributes(5), "Long Running Filter Process")."""
    script = directory / "filter.py"
    script.write_text(LONG_RUNNING)
    return script


LONG_RUNNING = """
import sys
def packets():
    while (length := int(sys.stdin.buffer.read(4) or b"0", 16)) > 4:
        yield sys.stdin.buffer.read(length - 4)
def say(*lines):
    for line in lines:
        sys.stdout.buffer.write(b"%04x%b" % (len(line) + 4, line))
    sys.stdout.buffer.write(b"0000")
    sys.stdout.buffer.flush()
list(packets()); say(b"git-filter-server\\n", b"version=2\\n")
list(packets()); say(b"capability=clean\\n")
while list(packets()):
    content = b"".join(packets())[::-1]
    say(b"status=success\\n")
    say(*(content[at : at + 1000] for at in range(0, len(content), 1000)))
    say()
"""


def write_all(place: Path) -> None:
    for name, data in cells():
        (place / name).write_bytes(data)


def added_by_git(place: Path, copy: Path) -> Mapping[str, str]:
    """What git records of every file in a copy of a checkout, by path."""
    shutil.copytree(place, copy, symlinks=True, ignore=shutil.ignore_patterns(".heddle"))
    write_all(copy)
    run_git(copy, "add", ".")
    return recorded(copy, run_git(copy, "write-tree"))


def recorded(place: Path, tree: str) -> Mapping[str, str]:
    """The blobs of a tree, by path."""
    listed = run_git(place, "ls-tree", "-rz", tree).split("\0")
    return {
        name: about.split()[2]
        for about, _, name in (line.partition("\t") for line in listed if line)
    }


def differing(ours: Mapping[str, str], theirs: Mapping[str, str]) -> set[str]:
    """The paths that are recorded otherwise."""
    return {name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name)}


def is_settled(place: Path) -> None:
    """Both git and heddle say that nothing has changed, and keep to it when files are only touched."""
    for touched in (False, True):
        if touched:
            for name, _ in cells():
                os.utime(place / name)
        assert heddle.open(place).status().changes in ([], ())
        with pytest.raises(NothingToCapture):
            heddle.open(place).capture(message="Again")
        assert run_git(place, "status", "--porcelain") == ""


def test_what_is_captured_is_what_git_adds(world: Path, tmp_path: Path) -> None:
    """Each blob of a capture is the one that ``git add`` makes of the same bytes, and nothing is left to capture."""
    theirs = added_by_git(world, tmp_path / "copy")
    write_all(world)

    made = heddle.open(world).capture(message="All of it").state

    assert differing(recorded(world, made.tree.decode()), theirs) == set()
    assert {name: (world / name).read_bytes() for name, _ in cells()} == dict(cells())
    is_settled(world)


def test_what_is_captured_in_a_mount_is_what_git_adds(world: Path, tmp_path: Path) -> None:
    """So it is in a mount, where what was written stays what it is: live, mounted again, and without a mount."""
    theirs = added_by_git(world, tmp_path / "copy")
    repo = heddle.open(world)
    place = repo.mount("agent", tmp_path / "mnt", create=True).mountpoint
    try:
        write_all(place)
        assert heddle.open(place).status().changes

        made = heddle.open(place).capture(message="All of it").state

        assert differing(recorded(world, made.tree.decode()), theirs) == set()
        is_settled(place)
        repo.unmount("agent")
        assert not heddle.open(world).has_unsaved("agent")
        repo.mount("agent", place)
        assert {name: (place / name).read_bytes() for name, _ in cells()} == dict(cells())
        is_settled(place)
    finally:
        repo.unmount("agent", force=True)


def test_what_is_captured_without_a_mount(world: Path, tmp_path: Path) -> None:
    """What a mount left is captured the same when nothing is mounted any more."""
    theirs = added_by_git(world, tmp_path / "copy")
    repo = heddle.open(world)
    place = repo.mount("agent", tmp_path / "mnt", create=True).mountpoint
    try:
        write_all(place)
    finally:
        repo.unmount("agent", force=True)

    made = heddle.open(world).capture(thread="agent", message="All of it").state

    assert differing(recorded(world, made.tree.decode()), theirs) == set()
    assert not heddle.open(world).has_unsaved("agent")


# single things


@pytest.fixture
def swapping(checkout: Path, git: Git) -> api.Repository:
    """A checkout with a filter and line endings, and heddle on it."""
    git("config", "filter.swap.clean", "tr a-z A-Z")
    git("config", "filter.swap.smudge", "tr A-Z a-z")
    git("config", "filter.strict.clean", "exit 3")
    git("config", "filter.strict.required", "true")
    (checkout / ".gitattributes").write_text(
        "*.txt text=auto\n*.swap filter=swap\n*.strict filter=strict\n*.u16 working-tree-encoding=UTF-16\n"
    )
    for name in ("one.swap", "two.swap"):
        (checkout / name).write_text("aaa\n")
    git("add", ".")
    git("commit", "-q", "-m", "Attributes")
    heddle.init(checkout)
    return heddle.open(checkout)


@pytest.fixture
def place(swapping: api.Repository, tmp_path: Path) -> Iterator[Path]:
    """A mount of a new thread ``agent`` of it."""
    mounted = swapping.mount("agent", tmp_path / "mnt", create=True).mountpoint
    yield mounted
    if os.path.ismount(mounted):
        swapping.unmount("agent", force=True)


@pytest.fixture(params=["directory", "mount"])
def where(request: pytest.FixtureRequest, swapping: api.Repository) -> Path:
    """The working directory, and a mount."""
    if request.param == "directory":
        return swapping.path
    mounted: Path = request.getfixturevalue("place")
    return mounted


def test_a_filter_that_is_required_and_fails(where: Path, git: Git) -> None:
    """The capture fails and names file and filter; nothing was made, and the rest can be captured by its paths."""
    before = run_git(where, "rev-parse", "HEAD")
    (where / "big.strict").write_text("secret\n")
    (where / "one.swap").write_text("aba\n")

    with pytest.raises(NotConverted, match=r"big\.strict.*'strict'") as caught:
        heddle.open(where).capture(message="Refused")

    assert caught.value.exit_code == 65 and caught.value.hint
    assert run_git(where, "rev-parse", "HEAD") == before
    changed = {change.path: change.kind for change in heddle.open(where).status().changes}
    assert changed == {b"big.strict": "added", b"one.swap": "modified"}
    heddle.open(where).capture(message="The other", paths=[b"one.swap"])
    assert run_git(where, "show", "HEAD:one.swap") == "ABA"
    with pytest.raises(NotConverted):
        list(heddle.open(where).diff())


def test_an_unchanged_filter_is_no_change(where: Path) -> None:
    """A file whose conversion is what was captured is unchanged, whatever its bytes; a diff shows what is captured."""
    assert (where / "one.swap").read_text() in ("aaa\n", "AAA\n")
    (where / "one.swap").write_text("aaa\n")
    (where / "a.txt").write_bytes(b"one\r\n")
    os.utime(where / "two.swap")
    assert list(heddle.open(where).status().changes) == []
    assert list(heddle.open(where).diff()) == []

    (where / "a.txt").write_bytes(b"one\r\ntwo\r\n")
    (where / "one.swap").write_text("aab\n")
    patches = {each.path: each.patch for each in heddle.open(where).diff()}

    assert patches.keys() == {b"a.txt", b"one.swap"}
    assert patches[b"a.txt"].endswith(b" one\n+two\n")
    assert patches[b"one.swap"].endswith(b"-AAA\n+AAB\n")
    assert b"".join(patches.values()).decode().strip() == run_git(where, "diff", "--abbrev=10")


def test_a_filter_alone(where: Path) -> None:
    """Where attributes say nothing of line endings, a filter's files are compared and captured as it makes them."""
    (where / ".gitattributes").write_text("*.swap filter=swap -text\n")
    heddle.open(where).capture(message="One")
    (where / "one.swap").write_text("longer aba\n")

    (patch,) = heddle.open(where).diff()
    heddle.open(where).capture(message="Two")

    assert patch.patch.endswith(b"-AAA\n+LONGER ABA\n")
    assert run_git(where, "show", "HEAD:one.swap") == "LONGER ABA"
    assert run_git(where, "status", "--porcelain") == ""


def test_a_diff_of_what_is_not_mounted(swapping: api.Repository, place: Path) -> None:
    """What a mount left is compared as it would be captured."""
    (place / "one.swap").write_text("aab\n")
    (place / "new.txt").write_bytes(b"1\r\n")
    swapping.unmount("agent")

    with Overlay.open(swapping, "agent") as overlay:
        changes = overlay.changes()
        with overlay.reading(changes) as read:
            assert {change.path: read(change.path) for change in changes} == {
                b"one.swap": b"AAB\n",
                b"new.txt": b"1\n",
            }


def test_a_converted_file_that_is_renamed(place: Path) -> None:
    """What git makes of a file holds for its path: under another name it is captured as that name has it."""
    (place / "new.swap").write_text("aba\n")
    heddle.open(place).capture(message="One")
    (place / "new.swap").rename(place / "new.other")
    (place / "deep").mkdir()
    (place / "two.swap").rename(place / "deep" / "two.swap")

    heddle.open(place).capture(message="Two")

    assert run_git(place, "show", "HEAD:new.other") == "aba"
    assert run_git(place, "show", "HEAD:deep/two.swap") == "AAA"
    assert list(heddle.open(place).status().changes) == []
    assert run_git(place, "status", "--porcelain") == ""


RULES_ELSEWHERE = {
    "info": lambda path, home: (path / ".git/info/attributes").write_text("*.cap filter=swap\n"),
    "user": lambda path, home: (home / ".config/git/attributes").write_text("*.cap filter=swap\n"),
    "setting": lambda path, home: (
        (home / "rules").write_text("*.cap filter=swap\n"),
        run_git(path, "config", "core.attributesFile", home / "rules"),
    ),
    "included": lambda path, home: (
        (home / "rules").write_text("*.cap filter=swap\n"),
        (home / "more").write_text("[core]\n\tattributesFile = ~/rules\n"),
        (home / ".gitconfig").write_text(f'[includeIf "gitdir:{path}/"]\n\tpath = "more"\n'),
    ),
}


@pytest.mark.parametrize("where_from", RULES_ELSEWHERE)
def test_rules_that_are_in_no_directory(
    swapping: api.Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where_from: str
) -> None:
    """Attributes count wherever git reads them from: in git's directory, and wherever the user's settings lead."""
    home = tmp_path / "home"
    (home / ".config/git").mkdir(parents=True, exist_ok=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    RULES_ELSEWHERE[where_from](swapping.path, home)
    (swapping.path / "sub").mkdir()
    (swapping.path / ".gitattributes").unlink()
    run_git(swapping.path, "rm", "-q", "--cached", ".gitattributes")
    (swapping.path / "sub" / "one.cap").write_text("aba\n")

    heddle.open(swapping.path).capture(message="One")

    assert run_git(swapping.path, "show", "HEAD:sub/one.cap") == "ABA"


@pytest.mark.parametrize("how", ["file", "included", "environment", "off"])
def test_autocrlf_wherever_it_is_said(
    repo: api.Repository, git: Git, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """``core.autocrlf`` counts from every file and variable that git takes it from; ``safecrlf`` refuses nothing."""
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    monkeypatch.setenv("HOME", str(home))
    git("config", "core.safecrlf", "true")
    if how == "environment":
        monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
        monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.autocrlf")
        monkeypatch.setenv("GIT_CONFIG_VALUE_0", "input")
    elif how == "included":
        (home / "more").write_text("[core]\n\tautocrlf = input\n")
        (home / ".gitconfig").write_text("[include] path = ~/more\n")
    else:
        git("config", "core.autocrlf", "false" if how == "off" else "true")
    (repo.path / "new").write_bytes(b"1\r\n")

    heddle.open(repo.path).capture(message="One")

    assert git("cat-file", "-s", "HEAD:new") == ("3" if how == "off" else "2")


def test_an_attribute_file_that_git_leaves_out(swapping: api.Repository, git: Git) -> None:
    """In a sparse checkout rules count that are not in it: git takes them from its index."""
    git("update-index", "--skip-worktree", ".gitattributes")
    (swapping.path / ".gitattributes").unlink()
    (swapping.path / "new.swap").write_text("aba\n")

    heddle.open(swapping.path).capture(message="One")

    assert git("show", "HEAD:new.swap") == "ABA"
    assert "filter=swap" in git("show", "HEAD:.gitattributes")


def test_names_of_one_file(place: Path) -> None:
    """Of a file with several names each is captured as its own attributes say."""
    (place / "zero.dat").write_bytes(b"a\r\n")
    for name in ("two.swap", "three.txt", "four.txt"):
        (place / name).unlink(missing_ok=True)
        (place / name).hardlink_to(place / "zero.dat")

    heddle.open(place).capture(message="Links")

    sizes = [
        run_git(place, "cat-file", "-s", f"HEAD:{name}")
        for name in ("zero.dat", "two.swap", "three.txt", "four.txt")
    ]
    assert sizes == ["3", "3", "2", "2"]
    assert list(heddle.open(place).status().changes) == []
    (place / "more").touch()  # has the directory looked at again
    assert [change.path for change in heddle.open(place).status().changes] == [b"more"]
    (place / "more").unlink()
    with pytest.raises(NothingToCapture):
        heddle.open(place).capture(message="Again")


def test_a_bare_repository(tmp_path: Path, git: Git, nothing_left: None) -> None:
    """In a mount on a bare repository the same holds; its settings are those of the repository."""
    path = tmp_path / "bare.git"
    run_git(tmp_path, "init", "-q", "--bare", "-b", "main", path)
    git("config", "filter.swap.clean", "tr a-z A-Z", at=path)
    heddle.init(path)
    repo = heddle.open(path)
    place = repo.mount("main", tmp_path / "mnt").mountpoint
    try:
        (place / ".gitattributes").write_text("*.swap filter=swap\n")
        (place / "one.swap").write_text("aba\n")
        heddle.open(place).capture(message="One")
        assert run_git(path, "show", "main:one.swap") == "ABA"
    finally:
        repo.unmount("main", force=True)


def test_a_converted_file_that_leaves_its_attributes(
    repo: api.Repository, git: Git, tmp_path: Path
) -> None:
    """Moved to where no attribute speaks of it, a file is captured with its own bytes."""
    git("config", "filter.swap.clean", "tr a-z A-Z")
    place = repo.mount("agent", tmp_path / "mnt", create=True).mountpoint
    try:
        (place / "sub").mkdir()
        (place / "sub" / ".gitattributes").write_text("* filter=swap\n")
        (place / "sub" / "one").write_text("aba\n")
        heddle.open(place).capture(message="One")
        assert git("show", "HEAD:sub/one", at=place) == "ABA"
        (place / "sub" / "one").rename(place / "one")
        repo.unmount("agent", force=True)
        repo.mount("agent", place)

        heddle.open(place).capture(message="Two")

        assert git("show", "HEAD:one", at=place) == "aba"
    finally:
        repo.unmount("agent", force=True)


def test_attributes_that_change(where: Path) -> None:
    """An attribute file that is new counts from the capture on that records it, and what is unchanged stays."""
    (where / "sub").mkdir()
    (where / "sub" / "one.dat").write_text("ab\n")
    heddle.open(where).capture(message="One")
    (where / "sub" / ".gitattributes").write_text("*.dat filter=swap\n")
    (where / "sub" / "two.dat").write_text("ab\n")

    heddle.open(where).capture(message="Two")

    assert run_git(where, "show", "HEAD:sub/one.dat") == "ab"
    assert run_git(where, "show", "HEAD:sub/two.dat") == "AB"
    assert list(heddle.open(where).status().changes) == []


def test_a_filter_of_the_repository(where: Path, git: Git) -> None:
    """A filter that is a program in the checkout runs, in the directory that git runs it in."""
    git("config", "filter.tool.clean", "./tools/upper")
    (where / "tools").mkdir()
    (where / "tools" / "upper").write_text("#!/bin/sh\ntr a-z A-Z\n")
    (where / "tools" / "upper").chmod(0o755)
    (where / ".gitattributes").write_text("*.loud filter=tool\n")
    (where / "deep").mkdir()
    (where / "deep" / "a.loud").write_text("hear\n")

    heddle.open(where).capture(message="Loud")

    assert run_git(where, "show", "HEAD:deep/a.loud") == "HEAR"


def test_utf_16_as_a_state_has_it(where: Path) -> None:
    """What a mount or a switch shows of such a file is UTF-8, and captured as that when it is edited so."""
    (where / "a.u16").write_bytes("\ufeffone\n".encode("utf-16-le"))
    heddle.open(where).capture(message="As the attributes say")
    assert run_git(where, "show", "HEAD:a.u16") == "one"

    (where / "a.u16").write_text("edited\n")
    heddle.open(where).capture(message="As states have it")

    assert run_git(where, "show", "HEAD:a.u16") == "edited"
    assert list(heddle.open(where).status().changes) == []


def test_a_switch_writes_what_states_hold(swapping: api.Repository, git: Git) -> None:
    """Files that a switch wrote are unchanged to heddle and to git, and one that git wrote is in no switch's way."""
    git("switch", "-q", "-c", "side")
    (swapping.path / "one.swap").write_text("abab\n")
    (swapping.path / "a.txt").write_bytes(b"1\r\n2\r\n")
    git("commit", "-q", "-a", "-m", "Side")
    repo = heddle.open(swapping.path)

    repo.switch("main")
    assert (repo.path / "one.swap").read_text() == "AAA\n"
    assert list(repo.status().changes) == []
    (repo.path / "one.swap").write_text("aaa\n")  # as a checkout of git's has it
    repo.switch("side")
    assert (repo.path / "one.swap").read_text() == "ABAB\n"
    assert list(repo.status().changes) == []
    with pytest.raises(NothingToCapture):
        repo.capture(message="Nothing")


@pytest.mark.parametrize("object_format", ["sha1", "sha256"])
def test_object_formats(tmp_path: Path, git: Git, object_format: str, nothing_left: None) -> None:
    """Ids of converted files are those of the repository's format, also of what git guesses by its index."""
    path = tmp_path / "work"
    run_git(tmp_path, "init", "-q", f"--object-format={object_format}", "-b", "main", path)
    (path / "was").write_bytes(b"1\r\n")
    git("add", ".")
    git("commit", "-q", "-m", "One")
    (path / ".gitattributes").write_text("* text=auto\n")
    heddle.init(path)
    for name in ("was", "new"):
        (path / name).write_bytes(b"1\r\n2\r\n")

    heddle.open(path).capture(message="Two")

    sizes = [git("cat-file", "-s", f"HEAD:{name}") for name in ("was", "new")]
    assert sizes == ["6", "4"]
    assert git("status", "--porcelain") == ""


def test_what_only_heddle_has(swapping: api.Repository, git: Git, tmp_path: Path) -> None:
    """Whether git takes a file for text may go by a blob that git has not got, and that no index of git's names."""
    git("branch", "agent")
    swapping.mount("agent/1", tmp_path / "mnt", create=True)
    git("status", at=tmp_path / "mnt")
    swapping.unmount("agent/1", force=True)
    upper = swapping.heddle_dir / "overlays" / "agent%2F1" / "upper"
    (upper / "was.bin").write_bytes(b"1\r\n")
    first = heddle.open(swapping.path).capture(thread="agent/1", message="One").state
    git("cat-file", "-e", first.id.decode(), code=1)
    (upper / ".gitattributes").write_text("* text=auto\n")
    (upper / "was.bin").write_bytes(b"1\r\n2\r\n")

    made = heddle.open(swapping.path).capture(thread="agent/1", message="Two").state

    blob = {name: id for name, _, id in swapping.store.tree_entries(made.tree)}[b"was.bin"]
    assert swapping.store.get_raw(blob)[1] == b"1\r\n2\r\n"


# what it costs


class Started(Exception):
    """A git was started."""


@pytest.fixture
def no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever starts git to convert files fails."""

    def refuse(*_: object) -> None:
        raise Started

    monkeypatch.setattr(gitclean.Cleaner, "_run", refuse)


@pytest.mark.parametrize("rules", ["", "* text=auto\n", "*.swap -text\n*.txt diff=x\n"])
def test_no_git_is_started(repo: api.Repository, no_git: None, rules: str) -> None:
    """Without attributes, or with line endings that are what they are to be, no git starts, and no scratch is made."""
    if rules:
        (repo.path / ".gitattributes").write_text(rules)
    (repo.path / "a.txt").write_text("changed\n")
    (repo.path / "image").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    with Overlay.open(repo, "main") as overlay:
        upper = overlay.repo.heddle_dir / "overlays" / "main" / "upper"
        (upper / "image").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
        assert [change.path for change in overlay.changes()] == [b"image"]

    assert len(repo.status().changes) == 2 + bool(rules)
    heddle.open(repo.path).capture(message="One", thread=None)
    assert not (repo.heddle_dir / gitclean.PLACE).exists()


def test_git_is_started_once(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many files there are, a capture asks git once for attributes and once to convert."""
    if where.name == "mnt":
        heddle.open(where)
    started: list[str] = []
    run = gitclean.Cleaner._run

    def count(self: gitclean.Cleaner, command: list[str], given: bytes) -> tuple[bytes, bytes, int]:
        started.append(command[0])
        return run(self, command, given)

    monkeypatch.setattr(gitclean.Cleaner, "_run", count)
    repo = heddle.open(where)
    for number in range(50):
        (where / f"{number}.swap").write_text("ab\n")
        (where / f"{number}.txt").write_bytes(b"1\r\n")
    if where.name == "mnt":  # the session starts it; without one, we do
        repo.unmount("agent", force=True)
        repo = heddle.open(repo.path)
        repo.capture(message="Many", thread="agent")
    else:
        repo.capture(message="Many")
    assert started == ["check-attr", "update-index"]


def test_git_is_not_installed(
    swapping: api.Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where git is missing and would have to convert a file, that is said, and nothing captured; the rest can be."""
    (swapping.path / "one.swap").write_text("aba\n")
    (swapping.path / "plain").write_text("1\n")
    empty = tmp_path / "empty"
    empty.mkdir()
    repo = heddle.open(swapping.path, environment={**os.environ, "PATH": str(empty)})

    with pytest.raises(Unavailable, match="git is not installed"):
        repo.capture(message="Refused")
    assert {change.path for change in repo.status().changes} == {b"one.swap", b"plain"}


def test_scratch_directories_go(swapping: api.Repository, tmp_path: Path) -> None:
    """What a conversion needed is removed with it, and what a killed one left with the next."""
    left = swapping.heddle_dir / gitclean.PLACE / "heddle-left"
    left.mkdir(parents=True)
    (left / "file").touch()
    (swapping.path / "one.swap").write_text("aba\n")

    swapping.capture(message="One")

    assert os.listdir(left.parent) == []


# files that do not hold still


def test_a_file_that_changes_while_git_reads_it(
    swapping: api.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is captured is what the file held at one moment; one that never holds still stays as it was captured."""
    path = swapping.path / "one.swap"
    clean = gitclean.Cleaner.clean
    times = iter(range(100))

    def meddle(self: gitclean.Cleaner, *arguments: object) -> object:
        found = clean(self, *arguments)  # type: ignore[arg-type]
        if next(times) < limit:
            path.write_text("bbbb\n")
        return found

    monkeypatch.setattr(gitclean.Cleaner, "clean", meddle)
    limit = 1
    path.write_text("aba\n")
    swapping.capture(message="One")
    assert run_git(swapping.path, "show", "HEAD:one.swap") == "BBBB"

    limit = 100
    path.write_text("aba\n")
    (swapping.path / "more").touch()
    captured = swapping.capture(message="Two")
    assert [each.path for each in captured.not_recorded] == [b"one.swap"]
    assert run_git(swapping.path, "show", "HEAD:one.swap") == "BBBB"


def test_a_file_that_is_written_to_before_the_view_stands_still(
    swapping: api.Repository, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A capture in a mount converts again what was written to meanwhile, and leaves out what never holds still."""
    (place / "new.swap").write_text("aba\n")
    (place / "other").touch()
    swapping.unmount("agent")
    real = swapping.heddle_dir / "overlays" / "agent" / "upper" / "new.swap"
    prestore = Overlay.prestore
    tries = iter(range(100))

    def meddle(self: Overlay, *arguments: object, **how: object) -> None:
        prestore(self, *arguments, **how)  # type: ignore[arg-type]
        if next(tries) < limit:
            real.write_text(real.read_text() + "B\n")

    monkeypatch.setattr(Overlay, "prestore", meddle)
    limit = 100
    captured = swapping.capture(thread="agent", message="One")
    assert [each.path for each in captured.not_recorded] == [b"new.swap"]
    assert captured.added == 1

    limit, tries = 2, iter(range(100))
    swapping.capture(thread="agent", message="Two")
    assert run_git(swapping.path, "show", "agent:new.swap").split() == ["ABA", *7 * ["B"]]


def test_a_capture_gives_up_before_anything_is_made(swapping: api.Repository, place: Path) -> None:
    """The view does not wait for git: what is not converted yet is said, and nothing has changed."""
    (place / "new.swap").write_text("aba\n")
    swapping.unmount("agent")
    before = swapping.threads.get("agent").state
    with Overlay.open(swapping, "agent") as overlay, pytest.raises(NotSettled):
        overlay.capture(message="No", attribution=swapping.attribution(), leave_out=False)

    assert heddle.open(swapping.path).threads.get("agent").state == before


# what an overlay says


def test_marks_of_converted_files(swapping: api.Repository, place: Path) -> None:
    """A captured file says of what size its blob is; cut off by a power failure, it shows what was captured."""
    (place / "new.txt").write_bytes(b"1\r\n2\r\n")
    heddle.open(place).capture(message="One")
    swapping.unmount("agent")
    directory = swapping.heddle_dir / "overlays" / "agent"
    real = directory / "upper" / "new.txt"
    marks = up.read_marks(os.fsencode(real))
    assert marks is not None and (marks.size, marks.cleaned) == (6, 4)
    assert up.Marks.decode(marks.encode()) == marks
    assert heddle.open(swapping.path).fsck(full=True).problems == []

    os.truncate(real, 3)
    (directory / "boot").unlink()
    swapping.mount("agent", place)

    assert (place / "new.txt").read_bytes() == b"1\n2\n"
    assert list(heddle.open(place).status().changes) == []


def test_a_discard_shows_the_state(swapping: api.Repository, place: Path) -> None:
    """Discarded, a mount shows what was captured, byte for byte; what was written is in the park."""
    (place / "new.txt").write_bytes(b"1\r\n2\r\n")
    heddle.open(place).capture(message="One")
    swapping.unmount("agent", discard=True)
    swapping.mount("agent", place)
    assert (place / "new.txt").read_bytes() == b"1\n2\n"
    assert list(heddle.open(place).status().changes) == []

    swapping.unmount("agent")
    swapping.park.restore("agent")
    swapping.mount("agent", place)
    assert (place / "new.txt").read_bytes() == b"1\r\n2\r\n"
    assert list(heddle.open(place).status().changes) == []
