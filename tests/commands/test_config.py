"""``heddle config`` and ``heddle whoami``: settings, and who a capture would name."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Heddle


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """No principal in the environment: these tests say where it comes from."""
    monkeypatch.delenv("HEDDLE_PRINCIPAL_NAME")
    monkeypatch.delenv("HEDDLE_PRINCIPAL_EMAIL")


def test_set_get_list_unset(heddle: Heddle, work: Path) -> None:
    """What set writes, get and list give back, until unset removes it."""
    value = {"key": "principal.name", "value": "Bo", "source": "repository config"}

    assert heddle("config", "set", "principal.name", "Bo", "--json").json == {"values": [value]}
    assert heddle("config", "get", "principal.name", "--json").json == {"values": [value]}
    assert heddle("config", "list", "--json").json == {"values": [value]}
    assert heddle("config", "get", "principal.name").text == "Bo\n"
    assert heddle("config", "list").text == "principal.name = Bo  (repository config)\n"
    heddle("config", "unset", "principal.name")
    assert heddle("config", "get", "principal.name", code=1).stdout == b""
    assert heddle("config", "get", "principal.name", "--json", code=1).json == {
        "values": [{"key": "principal.name", "value": None, "source": None}]
    }


def test_user_settings_are_for_all_repositories(heddle: Heddle, work: Path, tmp_path: Path) -> None:
    """--user writes the user's file; the repository's wins over it."""
    heddle("config", "set", "--user", "principal.name", "Everywhere")
    heddle("init", str(tmp_path / "other"))
    heddle("config", "set", "principal.name", "Here")

    assert "Everywhere" in (tmp_path / "home" / "heddle.toml").read_text()
    assert heddle("config", "get", "principal.name").text == "Here\n"
    assert heddle("-C", "../other", "config", "get", "principal.name").text == "Everywhere\n"
    heddle("config", "unset", "principal.name")
    assert heddle("config", "get", "principal.name").text == "Everywhere\n"


def test_a_file_that_does_not_parse_names_line_and_column(heddle: Heddle, work: Path) -> None:
    """A broken configuration is 78 and says where it is broken; nothing is captured by guess."""
    (work / ".heddle" / "config.toml").write_text('[principal]\nname = "a\n')
    (work / "f").write_text("")
    for args in (["whoami"], ["config", "list"], ["config", "set", "principal.name", "x"],
                 ["capture", "-m", "x"]):  # fmt: skip
        found = heddle(*args, "--json", code=78).error
        assert found["kind"] == "configuration"
        assert "config.toml: line 2, column " in found["message"]


@pytest.mark.parametrize("value", ["a\nb", "a<b", "a>b", "a\0b"])
def test_what_a_header_can_not_hold_is_refused(heddle: Heddle, work: Path, value: str) -> None:
    """A name that a state could not carry is 64 when it is set."""
    assert heddle("config", "set", "principal.name", value, "--json", code=64).error["hint"] is None


def test_nobody_is_an_error_that_says_what_to_do(heddle: Heddle, work: Path) -> None:
    """Without a principal whoami and capture are 78, with the command that sets one."""
    (work / "f").write_text("")
    for args in (["whoami"], ["capture", "-m", "x"]):
        found = heddle(*args, "--json", code=78).error
        assert found["kind"] == "no_principal"
        assert found["hint"].startswith("heddle config set principal.name ")


def test_whoami_gives_each_value_with_its_source(
    heddle: Heddle, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flag, environment, repository, git and user are told apart, the first that speaks wins."""
    heddle("config", "set", "principal.name", "Repo")
    heddle("config", "set", "agent.provider", "from-repo")
    heddle("config", "set", "--user", "principal.email", "user@x")
    monkeypatch.setenv("HEDDLE_AGENT_MODEL", "from-environment")
    found = heddle("whoami", "--agent-session", "from-flag", "--json").json

    assert found == {
        "principal": {
            "name": {"value": "Repo", "source": "repository config"},
            "email": {"value": "user@x", "source": "user config"},
        },
        "agent": {
            "provider": {"value": "from-repo", "source": "repository config"},
            "model": {"value": "from-environment", "source": "environment HEDDLE_AGENT_MODEL"},
            "session": {"value": "from-flag", "source": "flag"},
            "task": {"value": None, "source": None},
        },
    }


def test_git_says_who_it_is(heddle: Heddle, work: Path, tmp_path: Path) -> None:
    """The principal of git's configuration counts where heddle has none."""
    (tmp_path / "home").mkdir(exist_ok=True)
    (tmp_path / "home" / ".gitconfig").write_text("[user]\n\tname = Git Name\n\temail = g@x\n")

    found = heddle("whoami", "--json").json
    assert found["principal"]["name"] == {"value": "Git Name", "source": "git config"}
    assert found["agent"] is None


def test_no_agent_opts_out(heddle: Heddle, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--no-agent wins over the environment."""
    monkeypatch.setenv("HEDDLE_AGENT_MODEL", "m")
    name = ["--principal-name", "P", "--principal-email", "p@x"]

    assert heddle("whoami", *name, "--json").json["agent"] is not None
    assert heddle("whoami", *name, "--no-agent", "--json").json["agent"] is None
    assert "agent            none" in heddle("whoami", *name, "--no-agent").text


def test_whoami_as_text(heddle: Heddle, work: Path) -> None:
    """Text gives a value and its source on each line."""
    text = heddle("whoami", "--principal-name", "P", "--principal-email", "p@x").text

    assert text == (
        "principal.name   P  (flag)\nprincipal.email  p@x  (flag)\nagent            none\n"
    )
