"""The manual pages against the commands: every command has a page, and the page says what the command takes."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from heddle.cli import VERBS
from heddle.commands import program
from heddle.commands.options import GLOBAL_OPTIONS

MAN = Path(__file__).parents[2] / "man"
PAGES = sorted(path.name for path in MAN.glob("*.1"))
SECTIONS = [
    "NAME",
    "SYNOPSIS",
    "DESCRIPTION",
    "OPTIONS",
    "JSON OUTPUT",
    "ENVIRONMENT",
    "EXIT STATUS",
    "EXAMPLES",
    "SEE ALSO",
]


def tree() -> Any:
    """The root of the command tree."""
    return program.program(VERBS)


def command(verb: str) -> Any:
    """The command of a verb."""
    root = tree()
    with root.make_context("heddle", [], resilient_parsing=True) as context:
        return root.get_command(context, verb)


def leaves(found: Any) -> list[Any]:
    """The command itself, or the commands of a group."""
    return list(getattr(found, "commands", {}).values()) or [found]


def section(page: str, name: str) -> str:
    """The source of one section of a page."""
    text = (MAN / page).read_text()
    match = re.search(rf"^\.Sh {name}\n(.*?)(?=^\.Sh |\Z)", text, re.MULTILINE | re.DOTALL)
    assert match, f"{page} has no section {name}"
    return match[1]


def flags(macros: str) -> set[str]:
    """The options that mdoc source names: ``Fl m`` is -m, ``Fl -message`` is --message."""
    return {f"-{name}" for name in re.findall(r"\bFl (-?[A-Za-z][\w-]*)", macros)}


def documented(page: str) -> set[str]:
    """The options that have an entry in a page's OPTIONS."""
    entries = re.findall(r"^\.It (Fl .*)$", section(page, "OPTIONS"), re.MULTILINE)
    return set().union(*map(flags, entries))


def options(commands: list[Any], *, shared: bool) -> set[str]:
    """The options that commands take: those of their own, or the ones every command takes."""
    return {
        name
        for each in commands
        for parameter in each.params
        if parameter.param_type_name == "option" and (parameter.name in GLOBAL_OPTIONS) == shared
        for name in (*parameter.opts, *parameter.secondary_opts)
    }


def test_every_command_has_a_page_and_every_page_a_command() -> None:
    """There is one page for each verb, one for heddle itself, and no other."""
    assert set(PAGES) == {"heddle.1", *(f"heddle-{verb}.1" for verb in VERBS)}


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_nothing_to_complain_about(page: str) -> None:
    """mandoc finds neither an error nor anything worth a warning."""
    done = subprocess.run(
        ["mandoc", "-Tlint", "-W", "warning", page],
        cwd=MAN,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("page", PAGES)
def test_pages_are_built_alike(page: str) -> None:
    """The sections of a page are the known ones in the known order; only ENVIRONMENT may be missing."""
    found = re.findall(r"^\.Sh (.*)$", (MAN / page).read_text(), re.MULTILINE)
    found = [name for name in found if name != "FILES"]

    assert found in (SECTIONS, [name for name in SECTIONS if name != "ENVIRONMENT"])


@pytest.mark.parametrize("verb", VERBS)
def test_options_and_page_agree(verb: str) -> None:
    """The OPTIONS of a page are those that the command takes: none is missing, none is invented."""
    assert documented(f"heddle-{verb}.1") == options(leaves(command(verb)), shared=False)


@pytest.mark.parametrize("verb", VERBS)
def test_synopsis_and_options_agree(verb: str) -> None:
    """Every option stands in the SYNOPSIS under one of its names, and nothing else does."""
    shown = flags(section(f"heddle-{verb}.1", "SYNOPSIS"))
    taken = [
        {*parameter.opts, *parameter.secondary_opts}
        for each in leaves(command(verb))
        for parameter in each.params
        if parameter.param_type_name == "option" and parameter.name not in GLOBAL_OPTIONS
    ]

    assert all(names & shown for names in taken)
    assert shown <= set().union(*taken)


@pytest.mark.parametrize("verb", VERBS)
def test_synopsis_and_arguments_agree(verb: str) -> None:
    """Every argument stands in the SYNOPSIS under the name that the help gives it."""
    synopsis = section(f"heddle-{verb}.1", "SYNOPSIS")
    for each in leaves(command(verb)):
        for parameter in each.params:
            if parameter.param_type_name == "argument":
                for word in re.findall(r"[A-Z][A-Z-]*", parameter.metavar):
                    assert re.search(rf"\b{word}\b", synopsis), (each.name, word)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if hasattr(command(verb), "commands")])
def test_subcommands_are_described(verb: str) -> None:
    """A group's page has a SYNOPSIS line and an entry for each of its commands, and for no other."""
    page, names = f"heddle-{verb}.1", set(command(verb).commands)
    synopsis = re.findall(rf"^\.Nm heddle Cm {verb} (\w+)", section(page, "SYNOPSIS"), re.MULTILINE)
    described = re.findall(r"^\.It Cm (\w+)", section(page, "DESCRIPTION"), re.MULTILINE)

    assert set(synopsis) == names
    assert set(described) == names


def test_global_options_and_page_agree() -> None:
    """heddle(1) has the options that every command takes and those of ``heddle`` alone."""
    root = tree()

    assert documented("heddle.1") == options([root], shared=True) | options([root], shared=False)


def test_heddle_page_lists_every_command() -> None:
    """heddle(1) refers to the page of every command."""
    for verb in VERBS:
        assert f".It Xr heddle-{verb} 1\n" in section("heddle.1", "DESCRIPTION")


@pytest.mark.parametrize("page", PAGES)
def test_references_lead_somewhere(page: str) -> None:
    """Every reference to a page of ours is to one that exists."""
    for name in re.findall(r"\.Xr (heddle[\w-]*) 1", (MAN / page).read_text()):
        assert f"{name}.1" in PAGES


@pytest.mark.parametrize("page", PAGES)
def test_environment_variables_are_known(page: str) -> None:
    """Every variable that a page names is in heddle(1)."""
    named = set(
        re.findall(r"\b(?:HEDDLE|XDG)_[A-Z_]+\b|\bNO_COLOR\b|\bPAGER\b", (MAN / page).read_text())
    )

    assert named <= set(re.findall(r"[A-Z_]+", section("heddle.1", "ENVIRONMENT")))


@pytest.mark.parametrize("page", PAGES)
def test_exit_codes_are_known(page: str) -> None:
    """Every exit code that a page names is in heddle(1), which names all there are."""
    codes = set(re.findall(r"^\.It (\d+)$", section(page, "EXIT STATUS"), re.MULTILINE))

    assert codes <= set(
        re.findall(r"^\.It (\d+)$", section("heddle.1", "EXIT STATUS"), re.MULTILINE)
    )


def _fields(page: str) -> set[str]:
    """The names that a page's JSON OUTPUT marks as fields."""
    lines = [line for line in section(page, "JSON OUTPUT").splitlines() if "Va" in line]
    return set(re.findall(r"\b[a-z][a-z0-9_]+\b", " ".join(lines).replace("Va", "")))


def fields_of(value: Any) -> set[str]:
    """Every key in a JSON value, at any depth."""
    if isinstance(value, dict):
        return set(value).union(*map(fields_of, value.values()))
    if isinstance(value, list):
        return set().union(*map(fields_of, value))
    return set()


@pytest.mark.parametrize(
    "words",
    [
        ["status"],
        ["log"],
        ["show"],
        ["show", "HEAD:a.txt"],
        ["show", "HEAD:sub"],
        ["diff", "HEAD~1", "HEAD"],
        ["config", "list"],
        ["thread", "list"],
        ["thread", "show", "main"],
        ["thread", "rename", "other", "another"],
        ["thread", "delete", "other"],
        ["marker", "create", "v2"],
        ["marker", "list"],
        ["mounts"],
        ["whoami"],
        ["init"],
        ["capture", "--allow-empty", "-m", "again"],
        ["switch", "other"],
    ],
    ids=" ".join,
)
def test_json_fields_are_documented(heddle: Any, captured: Path, words: list[str]) -> None:
    """Every field that a command prints is named on its page."""
    heddle("thread", "create", "other")
    (captured / "a.txt").write_text("changed\n")
    heddle("capture", "-m", "Second", "--agent-provider", "p", "--agent-model", "m")
    (captured / "new").write_text("unsaved\n")

    assert fields_of(heddle(*words, "--json", code=None).json) <= _fields(f"heddle-{words[0]}.1")


def test_json_fields_of_mounts_are_documented(heddle: Any, captured: Path, tmp_path: Path) -> None:
    """The same for mount, mounts and unmount, on a real mount."""
    place = str(tmp_path / "mountpoint")
    mounted = heddle("mount", "agent-1", place, "--create", "--json").json
    Path(place, "new").write_text("unsaved")
    listed = heddle("mounts", "--json").json
    ended = heddle("unmount", "agent-1", "--json").json

    assert fields_of(mounted) <= _fields("heddle-mount.1")
    assert fields_of(listed) <= _fields("heddle-mounts.1")
    assert fields_of(ended) <= _fields("heddle-unmount.1")
    assert len(listed["mounts"]) == len(ended["unmounted"]) == 1
