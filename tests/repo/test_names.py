"""What a thread may be called."""

from __future__ import annotations

import subprocess
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heddle.errors import InvalidName
from heddle.repo.names import overlay_dir, overlay_name, valid_marker_name, valid_thread_name

GOOD = ["main", "agent-1", "a/b/c", "v1.0", "ünïcode", "a@b", "a-", "1234", "feature/x.y", "k" * 31]
BAD = [
    "",
    "HEAD",
    "@",
    "-x",
    "a b",
    "a..b",
    "a//b",
    "/a",
    "a/",
    ".a",
    "a/.b",
    "a.lock",
    "a.lock/b",
    "a.",
    "a~1",
    "a^",
    "a:b",
    "a?",
    "a*",
    "a[",
    "a\\b",
    "a@{1}",
    "a\n",
    "a\x00",
    "a\x1b[31m",
    "a\x7f",
    "a\x85",
    "a\u200bb",
    "a\u202eb",
    "a\udcff",
    "../../etc",
    "0123456789" * 4,
    "a" * 40,
    "0" * 64,
    "k" * 32,
    "x" * 201,
    "%" * 70,
]


@pytest.mark.parametrize("name", GOOD)
def test_good_names(name):
    """Ordinary names are fine."""
    valid_thread_name(name)
    valid_marker_name(name)


@pytest.mark.parametrize("name", BAD)
def test_bad_names(name):
    """A name that breaks a rule is refused with exit code 64, the name and what is wrong with it."""
    with pytest.raises(InvalidName) as caught:
        valid_thread_name(name)

    assert caught.value.exit_code == 64
    assert repr(name) in caught.value.message
    assert "thread" in caught.value.message
    assert caught.value.message.isprintable()


@given(
    st.text(
        alphabet=st.sampled_from(list("abk.-/@{~^:?*[\\ \t\x7fé%HEAD"))
        | st.characters(codec="utf-8"),
        max_size=12,
    )
)
def test_what_we_allow_git_allows(name):
    """Every name that we allow can be a git branch; the overlay directory is one harmless component."""
    try:
        valid_thread_name(name)
    except InvalidName:
        return
    done = subprocess.run(["git", "check-ref-format", "--branch", name], capture_output=True)

    assert done.returncode == 0
    quoted = overlay_name(name)
    assert "/" not in quoted
    assert not quoted.startswith(".")
    assert unquote(quoted) == name


def test_overlay_dir(repo):
    """A nested name is one directory under overlays/."""
    assert overlay_dir(repo, "a/b%c") == repo.heddle_dir / "overlays" / "a%2Fb%25c"
