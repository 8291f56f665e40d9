"""Who a change is recorded for: order of sources, sources named, and what can't be recorded."""

from __future__ import annotations

import pytest

from heddle.attribution import AGENT_KEYS, PRINCIPAL_KEYS, Agent, Principal, Sourced, find, resolve
from heddle.errors import ConfigError, NoPrincipal, UsageError

USER = {"principal.name": "User", "principal.email": "user@example.org"}
LAYERS = ["repository config", "git config", "user config"]


def layers(key: str, *without: str):
    """Every configuration gives ``key`` its own name, but those left out; principal from the user's."""
    given = [(source, {key: source} if source not in without else {}) for source in LAYERS]
    given.append(("user config", USER))
    return given


@pytest.mark.parametrize("key", PRINCIPAL_KEYS + AGENT_KEYS)
def test_order_of_sources(key):
    """Each value comes from the most important source that has it, and names that source."""
    variable = "HEDDLE_" + key.upper().replace(".", "_")
    arguments = {
        "flags": {key: "flag", "agent.provider": "p"} | ({key: "flag"}),
        "environment": {variable: "environment"},
        "mount_defaults": {key: "mount"},
        "layers": layers(key),
    }
    order = ["flags", "environment", "mount_defaults", "layers"]
    if key in PRINCIPAL_KEYS:
        del arguments["mount_defaults"]
        order.remove("mount_defaults")
    expected = {
        "flags": "flag",
        "environment": f"environment {variable}",
        "mount_defaults": "mount",
    }

    for number, source in enumerate(order):
        left = {name: arguments[name] for name in order[number:]}
        found = find(**left)[key]
        assert found.source == expected.get(source, "repository config")
    without_repository = find(layers=layers(key, "repository config"))[key]
    without_git = find(layers=layers(key, "repository config", "git config"))[key]
    assert without_repository.source == "git config"
    assert without_git.source == "user config"


def test_values_combine_across_sources():
    """A flag for the model keeps the provider that the environment gives."""
    attribution = resolve(
        flags={"agent.model": "m", "agent.session": None},
        environment={"HEDDLE_AGENT_PROVIDER": "p", "HEDDLE_AGENT_TASK": "t"},
        mount_defaults={"agent.model": "ignored", "agent.session": "s"},
        layers=[("user config", USER)],
    )

    assert attribution.principal == Principal("User", "user@example.org")
    assert attribution.agent == Agent("p", "m", "s", "t")
    assert attribution.sources["agent.session"] == Sourced("s", "mount")
    assert str(attribution) == "User <user@example.org> via p/m"


def test_no_agent():
    """--no-agent drops every agent value, whoever gives it."""
    attribution = resolve(
        environment={"HEDDLE_AGENT_MODEL": "m"},
        mount_defaults={"agent.provider": "p"},
        layers=[("repository config", {"agent.model": "x"}), ("user config", USER)],
        no_agent=True,
    )

    assert attribution.agent is None
    assert attribution.sources["agent.model"] == Sourced(None, None)


def test_no_agent_contradicts_an_agent_flag():
    """--no-agent with an agent's flag is an error, not a silent choice."""
    with pytest.raises(UsageError) as caught:
        find(flags={"agent.model": "m"}, no_agent=True)

    assert "--agent-model" in caught.value.message


def test_a_session_alone_is_no_agent():
    """A session variable without a model records no agent; a session flag without one is an error."""
    environment = {"HEDDLE_AGENT_SESSION": "s"}
    assert resolve(environment=environment, layers=[("user config", USER)]).agent is None
    with pytest.raises(UsageError):
        resolve(flags={"agent.session": "s"}, layers=[("user config", USER)])


@pytest.mark.parametrize(
    ("given", "missing"),
    [({}, "no name and no email"), ({"principal.name": "A"}, "no email")],
)
def test_no_principal(given, missing):
    """Without a name or an email the error is exit code 78, says which and how to set it."""
    with pytest.raises(NoPrincipal) as caught:
        resolve(layers=[("user config", given)])

    assert caught.value.exit_code == 78
    assert missing in caught.value.message
    assert "heddle config set principal.email" in caught.value.hint


def test_empty_variables_count_as_unset():
    """A variable that is empty or blank gives way to the next source."""
    environment = {"HEDDLE_PRINCIPAL_NAME": "", "HEDDLE_PRINCIPAL_EMAIL": "  "}

    found = resolve(environment=environment, layers=[("user config", USER)])

    assert found.principal == Principal("User", "user@example.org")


BAD = ["a\nb", "a<b", "a>b", "a\0b", "a\tb", "a\x7fb", "a\udcffb", ""]


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("key", ["principal.name", "principal.email", "agent.model", "agent.task"])
def test_what_a_commit_cannot_hold(key, value):
    """Such a value is a usage error from a flag and a configuration error from a file; both name the source."""
    with pytest.raises(UsageError) as from_flag:
        find(flags={key: value})
    with pytest.raises(ConfigError) as from_file:
        find(layers=[("git config", {key: value})])

    assert key in from_flag.value.message
    assert "git config" in from_file.value.message
    assert from_flag.value.message.isprintable()


def test_a_provider_holds_no_slash():
    """A slash separates provider and model, so a provider can't hold one; a model can."""
    assert find(flags={"agent.model": "meta/llama"})["agent.model"].value == "meta/llama"
    with pytest.raises(UsageError):
        find(flags={"agent.provider": "a/b"})


def test_white_space_around_values_is_dropped():
    """Blanks around a value are not part of it."""
    assert find(flags={"agent.model": " m "})["agent.model"].value == "m"
