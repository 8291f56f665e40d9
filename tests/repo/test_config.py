"""Settings: layers, errors with a place, and edits that disturb nothing else."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import race

from heddle.errors import CannotCreate, ConfigError, UsageError
from heddle.repo.config import KEYS, Config, ConfigFile, Value, user_file


@pytest.fixture
def file(tmp_path):
    """A settings file that does not exist yet."""
    return ConfigFile(tmp_path / "config.toml", "repository config")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[principal]\nname = \n", "line 2, column 8"),
        ("[principal\nname = 1", "line 1, column 11"),
        ('[principal]\nname = "a', "line 2, column 10"),
    ],
)
def test_a_file_that_does_not_parse(file, text, place):
    """The error is exit code 78 and names file, line and column."""
    file.path.write_text(text)

    with pytest.raises(ConfigError) as caught:
        file.values()

    assert caught.value.exit_code == 78
    assert str(file.path) in caught.value.message
    assert place in caught.value.message


def test_a_file_that_is_not_utf8(file):
    """Bytes that are not UTF-8 are an error that names line and column."""
    file.path.write_bytes(b'[principal]\nname = "\xff"\n')

    with pytest.raises(ConfigError, match="line 2, column 9"):
        file.values()


def test_a_value_that_is_not_text(file):
    """A number where text belongs is an error that names the key."""
    file.path.write_text("[principal]\nname = 3\n")

    with pytest.raises(ConfigError, match=r"principal\.name"):
        file.values()


def test_a_missing_file_is_empty(file):
    """No file, no settings, no error."""
    assert file.values() == {}


EDITS = [
    ("", '[principal]\nname = "X"\n'),
    ("# top", '# top\n\n[principal]\nname = "X"\n'),
    ('[principal]\nname = "A" # who\n', '[principal]\nname = "X" # who\n'),
    ("[principal]\n  name='A'\n", '[principal]\n  name="X"\n'),
    (
        '[principal]\nemail = "e"\n\n[agent]\nmodel = "m"\n',
        '[principal]\nemail = "e"\nname = "X"\n\n[agent]\nmodel = "m"\n',
    ),
    (
        '[ principal ] # p\n[agent]\nname = "b"',
        '[ principal ] # p\nname = "X"\n[agent]\nname = "b"\n',
    ),
    ("[other]\nk = [\n  1,\n]\n", '[other]\nk = [\n  1,\n]\n\n[principal]\nname = "X"\n'),
]


@pytest.mark.parametrize(("old", "new"), EDITS)
def test_set_keeps_everything_else(file, old, new):
    """Setting one key changes that key's line alone: comments, order and other keys stay."""
    file.path.write_text(old)

    file.set("principal.name", "X")

    assert file.path.read_text() == new
    assert file.values()["principal.name"] == "X"


@pytest.mark.parametrize(
    "text",
    [
        'principal = { name = "A" }\n',
        'principal.name = "A"\n',
        '[principal]\nname = """A"""\n',
        '["principal"]\nname = "A"\n',
    ],
)
def test_a_spelling_that_only_a_person_can_edit(file, text):
    """A spelling that the editor does not know is refused, and the file stays as it was."""
    file.path.write_text(text)

    with pytest.raises(ConfigError, match="edit"):
        file.set("principal.name", "X")

    assert file.path.read_text() == text
    assert file.values() == {"principal.name": "A"}


def test_unset(file):
    """Setting None takes the line out, and is fine when there is none."""
    file.path.write_text('[principal]\nname = "A"\nemail = "e"\n')

    file.set("principal.name", None)
    file.set("agent.model", None)

    assert file.path.read_text() == '[principal]\nemail = "e"\n'


@given(st.lists(st.tuples(st.sampled_from(sorted(KEYS)), st.text(min_size=1, max_size=8))))
def test_any_sequence_of_sets(tmp_path_factory, changes):
    """Whatever is set reads back, by us and by any TOML reader; what can't be held changes nothing."""
    file = ConfigFile(tmp_path_factory.mktemp("config") / "config.toml", "repository config")
    expected = {}
    for key, value in changes:
        try:
            file.set(key, value)
        except UsageError:
            continue
        expected[key] = value

    assert file.values() == expected
    if expected:
        tomllib.loads(file.path.read_text())


def test_processes_that_set_different_keys_lose_nothing(file):
    """Settings made at the same moment by several processes are all there."""
    keys = sorted(KEYS)

    answers = race(len(keys), lambda number: str(file.set(keys[number], "7")))

    assert answers == ["None"] * len(keys)
    assert file.values() == dict.fromkeys(keys, "7")


def test_numbers(file):
    """A setting that is a number is refused as anything else, and may stand in the file without quotes."""
    for value in ("often", "-1", "", "²"):
        with pytest.raises(UsageError, match="has to be a number"):
            file.set("mount.restarts", value)
    file.path.write_text("[mount]\nrestarts = 5\n")

    assert file.values() == {"mount.restarts": "5"}


def test_unknown_key(file):
    """A key that does not exist is a usage error with the near ones."""
    with pytest.raises(UsageError) as caught:
        file.set("principal.nmae", "X")

    assert "principal.name" in caught.value.hint
    assert not file.path.exists()


@pytest.mark.parametrize("value", ["a\nb", "", "a<b"])
def test_a_value_that_cannot_be_recorded(file, value):
    """A value that no capture could record is refused when it is set."""
    with pytest.raises(UsageError):
        file.set("principal.name", value)

    assert not file.path.exists()


def test_a_file_that_cannot_be_written(tmp_path):
    """A place where nothing can be written is exit code 73."""
    (tmp_path / "file").touch()

    with pytest.raises(CannotCreate):
        ConfigFile(tmp_path / "file" / "config.toml", "user config").set("agent.model", "m")


def test_where_the_user_file_is(tmp_path):
    """$HEDDLE_CONFIG, else $XDG_CONFIG_HOME, else ~/.config; a relative $XDG_CONFIG_HOME does not count."""
    assert user_file({"HEDDLE_CONFIG": "/c", "HOME": "/h"}).path.as_posix() == "/c"
    xdg = user_file({"XDG_CONFIG_HOME": "/x", "HOME": "/h"})
    assert xdg.path.as_posix() == "/x/heddle/config.toml"
    for environment in ({"HOME": "/h"}, {"HOME": "/h", "XDG_CONFIG_HOME": "x"}):
        assert user_file(environment).path.as_posix() == "/h/.config/heddle/config.toml"
    assert user_file({}).path is None
    assert user_file({}).values() == {}


@pytest.fixture
def environment(tmp_path):
    """A home of its own, without the system's git configuration."""
    return {"HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}


def test_layers(repo, tmp_path, environment):
    """The repository's value goes before git's, git's before the user's; each is listed with its source."""
    repo.environment = environment
    repo.config.set("principal.name", "User", user=True)
    repo.config.set("agent.model", "m", user=True)
    assert repo.config.get("principal.name") == Value("principal.name", "User", "user config")

    (tmp_path / ".gitconfig").write_text("[user]\n\tname = Git\n\temail = g@example.org\n")
    assert repo.config.get("principal.name") == Value("principal.name", "Git", "git config")

    repo.config.set("principal.name", "Repo")
    assert repo.config.list() == [
        Value("principal.name", "Repo", "repository config"),
        Value("principal.email", "g@example.org", "git config"),
        Value("agent.model", "m", "user config"),
    ]
    assert (repo.heddle_dir / "config.toml").read_text() == '[principal]\nname = "Repo"\n'
    attribution = repo.attribution()
    assert str(attribution) == "Repo <g@example.org> via m"
    assert attribution.sources["principal.email"].source == "git config"


def test_git_files(repo, tmp_path):
    """Git's own order: $GIT_CONFIG_GLOBAL instead of ~/.gitconfig, which goes before the XDG file."""
    (tmp_path / "global").write_text("[user]\nname = Global\n")
    (tmp_path / ".config" / "git").mkdir(parents=True)
    (tmp_path / ".config" / "git" / "config").write_text("[user]\nname = Xdg\nemail = x\n")
    (tmp_path / ".gitconfig").write_text("[user]\nname = Home\n")
    home = {"HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}

    def values(environment):
        config = Config(repo.heddle_dir, None, environment)
        return [config.get(key).value for key in ("principal.name", "principal.email")]

    assert values(home) == ["Home", "x"]
    assert values(home | {"GIT_CONFIG_GLOBAL": str(tmp_path / "global")}) == ["Global", None]
    assert values({"GIT_CONFIG_NOSYSTEM": "1"}) == [None, None]


def test_git_files_that_include_others(repo, tmp_path, environment):
    """Included files count, those for certain directories where they hold."""
    (tmp_path / ".gitconfig").write_text(
        "[user]\nname = Home\nemail = home@example.org\n"
        '[include]\npath = always\n[includeIf "gitdir:~/repo/"]\npath = here\n'
        '[includeIf "gitdir:~/elsewhere/"]\npath = elsewhere\n'
    )
    (tmp_path / "always").write_text("[user]\nname = Always\n")
    (tmp_path / "here").write_text("[user]\nemail = here@example.org\n")
    (tmp_path / "elsewhere").write_text("[user]\nemail = elsewhere@example.org\n")
    repo.environment = environment

    assert str(repo.attribution().principal) == "Always <here@example.org>"


def test_git_is_not_read_unless_needed(repo, tmp_path, environment):
    """A broken git configuration does not matter while a more important layer has the answer."""
    (tmp_path / ".gitconfig").write_text("[user\nname")
    repo.environment = environment
    repo.config.set("principal.name", "A")
    repo.config.set("principal.email", "a@example.org")

    assert str(repo.attribution()) == "A <a@example.org>"
    repo.config.set("principal.email", None)
    with pytest.raises(ConfigError, match="gitconfig"):
        repo.attribution()
