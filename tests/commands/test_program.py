"""The program around the verbs: options, help, errors as text and JSON, exit codes, what start-up imports."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pty
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from heddle import __version__, errors
from heddle.cli import VERBS, main
from heddle.commands import failures, program
from heddle.mount import control

from .conftest import Heddle

EXIT_CODES = {64, 65, 69, 70, 73, 74, 75, 77, 78}


def spawn(*args: str, **keywords: object) -> subprocess.CompletedProcess[bytes]:
    """Run ``heddle`` as a user does, in a process of its own."""
    command = [sys.executable, "-m", "heddle", *args]
    return subprocess.run(command, capture_output=True, check=False, **keywords)  # type: ignore[call-overload,no-any-return]


def modules_after(*args: str) -> set[str]:
    """The modules that a command line leaves imported."""
    code = "import sys; from heddle.cli import main; main(sys.argv[1:]); sys.stdout.flush();"
    code += "sys.stderr.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, check=True)
    return set(done.stderr.decode().splitlines()[-1].split())


# options


def test_version_is_one_line(heddle: Heddle) -> None:
    """``--version`` and ``version`` print the same line."""
    assert heddle("--version").text == f"heddle {__version__}\n" == heddle("version").text


def test_version_as_json(heddle: Heddle) -> None:
    """``--version --json`` and ``version --json`` give the same object, with what heddle runs on."""
    found = heddle("--version", "--json").json

    assert found == heddle("version", "--json").json
    assert found["version"] == __version__
    assert set(found) == {"version", "python", "dependencies"}


@pytest.mark.parametrize("where", ["before", "after"])
def test_global_options_stand_before_and_after_the_verb(
    heddle: Heddle, work: Path, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """-C and --json mean the same on either side of the verb."""
    monkeypatch.chdir("/")
    options = ["-C", str(work), "--json"]
    args = [*options, "whoami"] if where == "before" else ["whoami", *options]

    assert heddle(*args).json["principal"]["name"]["value"] == "Ann Lee"


def test_directories_add_up(heddle: Heddle, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each -C is relative to the one before it, and the process is back where it was afterwards."""
    monkeypatch.chdir("/")

    heddle("-C", str(work.parent), "-C", work.name, "whoami")

    assert os.getcwd() == "/"


def test_quiet_drops_confirmations_and_keeps_results(heddle: Heddle, work: Path) -> None:
    """-q silences what was done, not what was asked."""
    assert heddle("-q", "thread", "create", "t").stdout == b""
    assert "Ann Lee" in heddle("-q", "whoami").text


@pytest.mark.parametrize(
    ("options", "no_color", "colored"),
    [
        (["--color", "always"], "", True),
        (["--color", "always"], "1", True),
        (["--color", "never"], "", False),
        ([], "", False),
        (["--color", "auto"], "1", False),
    ],
)
def test_color_is_asked_for(
    heddle: Heddle,
    work: Path,
    options: list[str],
    no_color: str,
    colored: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Text is coloured when asked for; by itself only on a terminal, which a test's output is not."""
    monkeypatch.setenv("NO_COLOR", no_color)

    assert (b"\x1b[" in heddle(*options, "whoami").stdout) == colored


def on_a_terminal(*args: str, **environment: str) -> bytes:
    """What ``heddle`` shows on a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "heddle", *args],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm"} | environment,
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the other side is closed
        while piece := os.read(ours, 4096):
            shown += piece
    process.wait()
    os.close(ours)
    return shown


def test_a_terminal_gets_color_unless_no_color_is_set(work: Path) -> None:
    """On a terminal text is coloured; NO_COLOR turns that off."""
    assert b"\x1b[" in on_a_terminal("whoami", PAGER="")
    assert b"\x1b[" not in on_a_terminal("whoami", PAGER="", NO_COLOR="1")


def test_a_terminal_gets_a_pager(captured: Path, tmp_path: Path) -> None:
    """A long answer goes through $PAGER on a terminal, and only there."""
    pager = tmp_path / "pager"
    pager.write_text("#!/bin/sh\necho PAGED\ncat\n")
    pager.chmod(0o755)

    shown = on_a_terminal("log", PAGER=str(pager))

    assert b"PAGED" in shown and b"First state" in shown
    assert b"PAGED" not in spawn("log", env=os.environ | {"PAGER": str(pager)}).stdout


def test_a_pager_that_is_missing_loses_nothing(captured: Path) -> None:
    """When $PAGER can't be run, the answer is printed without it."""
    assert b"First state" in on_a_terminal("log", PAGER="no-such-pager")


# help


def all_commands() -> list[tuple[str, ...]]:
    """Every command and subcommand, as the words that call it."""
    words = []
    root = program.program(VERBS)
    with root.make_context("heddle", [], resilient_parsing=True) as context:
        for verb in VERBS:
            command = root.get_command(context, verb)
            words.append((verb,))
            words += [(verb, name) for name in getattr(command, "commands", {})]
    return words


@pytest.mark.parametrize("words", all_commands(), ids=" ".join)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_has_an_example(heddle: Heddle, words: tuple[str, ...], flag: str) -> None:
    """Every command has help, a first sentence, and an example that begins with itself."""
    text = heddle(*words, flag).text

    assert text.startswith(f"Usage: heddle {' '.join(words)} ")
    assert re.search(rf"^  (.*&& )?(\S+=\S+ )?heddle (-C \S+ )?{words[0]}\b", text, re.MULTILINE)


def test_root_help_lists_every_verb(heddle: Heddle) -> None:
    """``heddle --help`` names every command with a sentence."""
    text = heddle("--help").text
    for verb in VERBS:
        assert re.search(rf"^  {verb} +\w+", text, re.MULTILINE), verb


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_install_completion(shell: str, tmp_path: Path) -> None:
    """--install-completion writes the shell's completion below the home directory."""
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    done = spawn("--install-completion", shell, env=os.environ | {"SHELL": f"/bin/{shell}"})
    written = [path.read_text() for path in home.rglob("*") if path.is_file()]

    assert done.returncode == 0, done
    assert any("_HEDDLE_COMPLETE" in text for text in written)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [("heddle thr", "thread"), ("heddle thread show ma", "main"), ("heddle log --gr", "--graph")],
)
def test_the_shell_completes(work: Path, typed: str, expected: str) -> None:
    """Verbs, threads and options complete."""
    asked = {
        "_HEDDLE_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(typed.split()) - 1),
    }
    done = spawn(env=os.environ | asked)

    assert done.stdout.decode().split() == [expected]


# errors


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["frobnicate"],
        ["--frobnicate"],
        ["status", "--frobnicate"],
        ["status", "too", "many"],
        ["thread"],
        ["thread", "frobnicate"],
        ["thread", "create"],
        ["log", "-n", "many"],
        ["log", "-n", "-1"],
        ["log", "--since", "when I was young"],
        ["log", "--all", "main"],
        ["diff", "--stat", "--name-only"],
        ["init", "--object-format", "md5"],
        ["status", "--color", "blue"],
        ["-C", "/no/such/directory", "status"],
        ["config", "get", "no.such.key"],
        ["capture", "-m"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_64(heddle: Heddle, work: Path, args: list[str]) -> None:
    """What is wrong whatever the repository holds exits with 64, as text and as JSON."""
    text = heddle(*args, code=64)
    assert text.stdout == b""
    assert text.stderr.startswith("heddle: ")

    found = heddle("--json", *args, code=64)
    assert found.stdout == b""
    assert found.error["exit_code"] == 64
    assert found.error["kind"] in ("usage", "invalid_name")


def test_a_usage_error_says_where_help_is(heddle: Heddle, work: Path) -> None:
    """The hint of a usage error is the command's own help."""
    assert "hint: heddle thread create --help\n" in heddle("thread", "create", code=64).stderr


def test_a_mistyped_verb_gets_a_suggestion(heddle: Heddle) -> None:
    """An unknown verb names the one it resembles."""
    assert "did you mean capture" in heddle("captrue", code=64).stderr


def test_json_after_a_mistake_is_still_seen(heddle: Heddle) -> None:
    """--json counts even when the command line can't be parsed as far as that."""
    assert heddle("status", "--frobnicate", "--json", code=64).error["kind"] == "usage"


def test_json_behind_the_dashes_is_a_path(heddle: Heddle) -> None:
    """After ``--`` nothing is an option."""
    assert heddle("log", "--frob", "--", "--json", code=64).stderr.startswith("heddle: ")


def test_not_a_repository_is_78(heddle: Heddle) -> None:
    """Outside of a repository every command says so, with the command that makes one."""
    for args in (
        ["status"],
        ["log"],
        ["capture", "-m", "x"],
        ["diff"],
        ["thread", "list"],
        ["fsck"],
    ):
        found = heddle(*args, "--json", code=78).error
        assert (found["kind"], found["hint"]) == ("not_a_repository", "heddle init")


def all_error_classes() -> list[type[errors.HeddleError]]:
    found, todo = [], [errors.HeddleError]
    while todo:
        for cls in todo.pop().__subclasses__():
            found.append(cls)
            todo.append(cls)
    return found


@pytest.mark.parametrize("cls", all_error_classes(), ids=lambda cls: cls.__name__)
def test_every_error_class_reaches_the_user(
    heddle: Heddle, cls: type[errors.HeddleError], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each error's exit code, kind, message, hint and retry arrive as they stand on its class."""

    def fail() -> None:
        raise cls("the message", hint="the hint")

    monkeypatch.setattr("heddle.commands.version.report", fail)
    text = heddle("version", code=cls.exit_code)
    found = heddle("version", "--json", code=cls.exit_code)

    assert cls.exit_code in EXIT_CODES
    assert (text.stdout, text.stderr) == (b"", "heddle: the message\nhint: the hint\n")
    assert found.stdout == b""
    assert found.error == {
        "kind": cls.kind,
        "message": "the message",
        "hint": "the hint",
        "exit_code": cls.exit_code,
        "retry": cls.retry,
    }


def test_an_error_without_a_hint_has_none(heddle: Heddle, monkeypatch: pytest.MonkeyPatch) -> None:
    """No hint: one line of text, null in JSON."""

    def fail() -> None:
        raise errors.DataError("the message")

    monkeypatch.setattr("heddle.commands.version.report", fail)

    assert heddle("version", code=65).stderr == "heddle: the message\n"
    assert heddle("version", "--json", code=65).error["hint"] is None


@pytest.mark.parametrize(
    ("error", "number", "expected"),
    [
        (errors.StorageError("m", hint="its own"), errno.ENOSPC, "its own"),
        (errors.StorageError("m"), errno.ENOSPC, "free some space"),
        (errors.CannotCreate("m"), errno.EDQUOT, "free some space"),
        (errors.StorageError("m"), errno.EMFILE, "ulimit -n"),
        (errors.StorageError("m"), errno.EIO, "heddle doctor"),
        (errors.NotPermitted("m"), errno.EROFS, "heddle doctor"),
        (errors.CorruptObject("m"), None, "heddle fsck --full"),
        (errors.Busy("m"), None, "run it again"),
    ],
)
def test_an_error_without_a_hint_is_given_one(
    heddle: Heddle,
    error: errors.HeddleError,
    number: int | None,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A full disk, too few descriptors, damage: the next command is said though who met it did not know; across a
    session's socket too."""

    def fail() -> None:
        raise error from (None if number is None else OSError(number, os.strerror(number)))

    monkeypatch.setattr("heddle.commands.version.report", fail)
    text = heddle("version", code=error.exit_code).stderr
    found = heddle("version", "--json", code=error.exit_code).error
    crossed = control.error_from(control.error_record(error))

    assert text.splitlines()[-1].startswith(f"hint: {expected}")
    assert found["hint"].startswith(expected)
    assert (crossed.hint or "").startswith(expected)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, 74),
        (errno.EDQUOT, 74),
        (errno.EIO, 74),
        (errno.ENOENT, 74),
        (errno.EACCES, 77),
        (errno.EPERM, 77),
        (errno.EROFS, 77),
        (errno.EEXIST, 73),
        (errno.ENOTDIR, 73),
        (errno.EBUSY, 75),
        (errno.ENOTCONN, 65),
    ],
)
def test_an_operating_system_error_is_named(
    heddle: Heddle, number: int, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An OSError names its file and its reason, and exits with the code that fits."""

    def fail() -> None:
        raise OSError(number, os.strerror(number), "/some/file")

    monkeypatch.setattr("heddle.commands.version.report", fail)
    stderr = heddle("version", code=code).stderr

    assert "/some/file" in stderr
    assert number == errno.ENOTCONN or os.strerror(number) in stderr


@pytest.mark.parametrize(
    ("sqlite_code", "code"),
    [
        (sqlite3.SQLITE_BUSY, 75),
        (sqlite3.SQLITE_LOCKED, 75),
        (sqlite3.SQLITE_READONLY, 77),
        (sqlite3.SQLITE_FULL, 74),
        (sqlite3.SQLITE_IOERR, 74),
        (sqlite3.SQLITE_CORRUPT, 74),
        (sqlite3.SQLITE_NOTADB, 74),
        (sqlite3.SQLITE_MISUSE, 70),
    ],
)
def test_a_database_error_is_mapped(sqlite_code: int, code: int) -> None:
    """An error of SQLite that nobody caught becomes a code by its number."""
    error = sqlite3.OperationalError("what sqlite said")
    error.sqlite_errorcode = sqlite_code

    problem = failures.as_heddle_error(error)

    assert problem.exit_code == code
    assert "what sqlite said" in problem.message


@pytest.mark.parametrize(
    ("number", "code"), [(errno.EACCES, 77), (errno.EROFS, 77), (errno.EIO, 74), (errno.ENOENT, 74)]
)
def test_what_storage_may_not_do_is_no_damage(number: int, code: int) -> None:
    """A storage error because of an owner, a mode or a read-only disk is 77, with its own words and hint."""
    error = errors.StorageError("what was tried", hint="what to do")
    error.__cause__ = OSError(number, os.strerror(number))
    refused = errors.StorageError("what was tried", hint="what to do")
    refused.__cause__ = sqlite3.OperationalError("readonly")
    refused.__cause__.sqlite_errorcode = sqlite3.SQLITE_READONLY_DIRECTORY

    problem, database = failures.as_heddle_error(error), failures.as_heddle_error(refused)
    crossed = control.error_from(control.error_record(error))

    assert (crossed.exit_code, crossed.kind) == (code, problem.kind)
    assert (problem.exit_code, problem.message, problem.hint) == (code, error.message, error.hint)
    assert database.exit_code == 77


def test_a_missing_object_is_74(heddle: Heddle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A KeyError that names an object is not a bug: the object is missing, and fsck says more."""

    def fail() -> None:
        raise KeyError(b"4b825dc642cb6eb9a060e54bf8d69288fbee4904")

    monkeypatch.setattr("heddle.commands.version.report", fail)
    found = heddle("version", "--json", code=74).error

    assert (found["kind"], found["hint"]) == ("object_missing", "heddle fsck --full")


def test_an_unexpected_exception_is_one_line(
    heddle: Heddle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug exits with 70 and says so in one line; -v and HEDDLE_DEBUG add the traceback."""

    def fail() -> None:
        raise KeyError("surprise")

    monkeypatch.setattr("heddle.commands.version.report", fail)
    plain = heddle("version", code=70).stderr
    assert plain.startswith("heddle: internal error: KeyError: 'surprise'\nhint: ")
    assert "Traceback" not in plain
    assert heddle("version", "--json", code=70).error["kind"] == "internal"
    assert "Traceback" in heddle("-v", "version", code=70).stderr
    monkeypatch.setenv("HEDDLE_DEBUG", "1")
    assert "Traceback" in heddle("version", code=70).stderr


def test_an_interrupt_is_130(heddle: Heddle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends with 130 and no words."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("heddle.commands.version.report", interrupt)

    assert heddle("version", code=130).stderr == ""


def test_a_name_that_could_be_nobodys_is_64(heddle: Heddle, captured: Path) -> None:
    """A thread's name that is not UTF-8 is wrong in itself, wherever it is asked for."""
    name = os.fsdecode(b"a\xff")
    for words in (
        ["thread", "create"], ["thread", "show"], ["thread", "delete"], ["switch"], ["show"], ["log"],
        ["marker", "show"], ["capture", "--thread"], ["mount"], ["unmount"],
    ):  # fmt: skip
        error = heddle(*words, name, "--json", code=None).error
        assert error["exit_code"] in (64, 65), words


def test_control_characters_of_an_error_are_escaped(heddle: Heddle, work: Path) -> None:
    """A name can't move the cursor of whoever reads the error."""
    stderr = heddle("thread", "show", "a\x1b[2Jb", code=None).stderr

    assert "\x1b" not in stderr


def test_output_that_nobody_reads_is_quiet() -> None:
    """A reader that is gone ends the program as SIGPIPE would, without a word."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "heddle", "version"]
    process = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)

    assert (process.returncode, process.stderr) == (141, b"")


@pytest.mark.parametrize("args", [["--version"], ["version"], ["version", "--json"]], ids=" ".join)
def test_output_that_can_not_be_written_is_74(args: list[str]) -> None:
    """Standard output on a full disk is an I/O error, not a traceback."""
    command = [sys.executable, "-m", "heddle", *args]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)

    assert done.returncode == 74
    assert b"No space left on device" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams_harm_nothing(captured: Path, heddle: Heddle, closed: str) -> None:
    """A command works with any standard stream closed, and no file of ours takes its place."""
    (captured / "a.txt").write_text("changed\n")
    line = f'"$0" -m heddle capture -m x {closed}'
    done = subprocess.run(["sh", "-c", line, sys.executable], check=False)

    assert done.returncode == 0
    assert heddle("fsck", "--full").code == 0
    assert heddle("log", "--json").json["states"][0]["message"] == "x"


def test_a_current_directory_that_is_gone(tmp_path: Path) -> None:
    """In a deleted directory a command says so."""
    gone = tmp_path / "gone"
    gone.mkdir()
    code = "import os, sys; os.rmdir(os.getcwd()); from heddle.cli import main; sys.exit(main(['status']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=gone, capture_output=True, check=False)

    assert done.returncode == 74
    assert done.stderr.startswith(b"heddle: the current directory no longer exists")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_output_never_fails_to_encode(work: Path, heddle: Heddle, encoding: str) -> None:
    """Names reach standard output and errors reach stderr in any locale."""
    heddle("thread", "create", "zwölf-€")
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    listed = spawn("thread", "list", env=environment)
    missing = spawn("thread", "show", "dreißig-€", env=environment)

    assert "zwölf-€" in listed.stdout.decode("utf-8")
    assert (listed.returncode, missing.returncode) == (0, 65)
    assert missing.stderr.startswith(b"heddle: ")


# start-up


def test_version_imports_no_parser() -> None:
    """``heddle --version`` answers before typer is imported."""
    assert not {"typer", "rich", "pydantic", "dulwich"} & modules_after("--version")


@pytest.mark.parametrize(
    "args",
    [
        ["status"],
        ["log"],
        ["thread", "list"],
        ["whoami"],
        ["diff", "--stat"],
        ["capture", "-m", "x"],
    ],
    ids=" ".join,
)
def test_a_command_imports_only_its_own(captured: Path, args: list[str]) -> None:
    """A command loads its own module and none of the heavy libraries that it does not need."""
    loaded = modules_after(*args)
    verbs = {name.split(".")[2] for name in loaded if name.startswith("heddle.commands.")} & set(
        VERBS
    )

    assert verbs == {args[0]}
    assert not {"rich", "pydantic", "trio", "pyfuse3", "asyncio", "dulwich.porcelain"} & loaded


def test_every_answer_is_one_json_line(heddle: Heddle, captured: Path) -> None:
    """Each command that only looks prints one object on one line with --json, and nothing on stderr."""
    for words in (
        ["status"], ["log"], ["show"], ["show", "HEAD:a.txt"], ["show", "HEAD:"], ["diff"], ["whoami"],
        ["fsck"], ["config", "list"], ["thread", "list"], ["thread", "show", "main"],
        ["marker", "list"], ["mounts"], ["version"],
    ):  # fmt: skip
        result = heddle(*words, "--json")
        assert isinstance(result.json, dict), words
        assert result.stderr == "", words


def test_main_takes_the_arguments_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without arguments, main reads those of the process."""
    monkeypatch.setattr(sys, "argv", ["heddle", "frobnicate"])

    assert main() == 64


def test_errors_in_json_are_ascii(heddle: Heddle, work: Path) -> None:
    """The JSON error line can be printed anywhere."""
    found = heddle("--json", "thread", "show", "zwölf", code=65)

    assert found.stderr.isascii()
    assert "zwölf" in json.loads(found.stderr)["error"]["message"]
