"""States are git commits: what we write, what git and dulwich make of it, and what others wrote."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from dulwich.objects import Commit, ObjectID
from hypothesis import assume, given
from hypothesis import strategies as st

from heddle.attribution import Agent, Principal
from heddle.errors import CorruptObject
from heddle.objects.state import State, decode, encode, new_change_id

Git = Callable[..., bytes]

EMPTY_TREE = b"4b825dc642cb6eb9a060e54bf8d69288fbee4904"
ANN = Principal("Ann", "ann@example.org")

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
words = text.filter(bool)
identity = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="<>\n\0"), max_size=20
).map(str.strip)
ids = st.binary(min_size=20, max_size=20).map(lambda raw: ObjectID(raw.hex().encode()))
agents = st.builds(
    Agent, st.none() | words, st.none() | words, st.none() | words, st.none() | words
).filter(lambda agent: agent.provider or agent.model)

states = st.fixed_dictionaries(
    {
        "tree": ids,
        "parents": st.lists(ids, max_size=3),
        "principal": st.builds(Principal, identity, identity),
        "agent": st.none() | agents,
        "change_id": st.builds(new_change_id),
        "thread": st.none() | words,
        "message": text,
        "time_s": st.integers(0, 2**37),
        "timezone_s": st.integers(-14 * 60, 14 * 60).map(lambda minutes: minutes * 60),
    }
)

BASE: dict[str, Any] = {
    "tree": EMPTY_TREE,
    "parents": [],
    "principal": ANN,
    "agent": Agent("example", "model-1", "s-7", "fix it"),
    "change_id": "kkllmmnnooppqqrrssttuuvvwwxxyyzz",
    "thread": "agent/1",
    "message": "what was done\n\nand why",
    "time_s": 1_700_000_000,
    "timezone_s": -19_800,
}


def commit_id(raw: bytes) -> ObjectID:
    return Commit.from_string(raw).id


def test_the_bytes_of_a_state() -> None:
    """A state is this commit, header by header."""
    raw = encode(**{**BASE, "parents": [b"1" * 40, b"2" * 40]})

    assert raw.decode() == (
        f"tree {EMPTY_TREE.decode()}\n"
        f"parent {'1' * 40}\n"
        f"parent {'2' * 40}\n"
        "author Ann <ann@example.org> 1700000000 -0530\n"
        "committer Ann <ann@example.org> 1700000000 -0530\n"
        "change-id kkllmmnnooppqqrrssttuuvvwwxxyyzz\n"
        "heddle-agent example/model-1\n"
        "heddle-session s-7\n"
        "heddle-task fix it\n"
        "heddle-thread agent/1\n"
        "\n"
        "what was done\n"
        "\n"
        "and why\n"
    )


def test_what_is_not_known_is_not_written() -> None:
    """Without agent and thread no header speaks of them."""
    raw = encode(**{**BASE, "agent": None, "thread": None, "message": ""})

    assert b"heddle" not in raw
    assert raw.endswith(b"\n\n")
    state = decode(commit_id(raw), raw)
    assert (state.agent, state.thread, state.message) == (None, None, "")


@given(fields=states)
def test_round_trip(fields: dict[str, Any]) -> None:
    """Every name, agent, thread and message comes back as it was, whatever characters it holds."""
    raw = encode(**fields)
    state = decode(commit_id(raw), raw)
    message = fields["message"].replace("\0", "")

    expected = State(
        id=commit_id(raw),
        committer=fields["principal"],
        committed_s=fields["time_s"],
        **{
            **fields,
            "parents": tuple(fields["parents"]),
            "message": message if not message or message.endswith("\n") else message + "\n",
        },
    )
    assert expected == state


@given(fields=states)
def test_dulwich_reads_the_same(fields: dict[str, Any]) -> None:
    """Dulwich's parser and ours agree on everything that both know, and dulwich writes it back."""
    assume(fields["principal"].name and fields["principal"].email)
    raw = encode(**fields)
    commit = Commit.from_string(raw)
    state = decode(commit.id, raw)

    assert commit.tree == state.tree
    assert tuple(commit.parents) == state.parents
    assert commit.message == state.message.encode()
    assert commit.author == f"{state.principal.name} <{state.principal.email}>".encode()
    assert commit.committer == commit.author
    assert (commit.author_time, commit.author_timezone) == (state.time_s, state.timezone_s)
    assert (b"change-id", state.change_id.encode()) in commit._extra
    commit.message = commit.message + b"x"
    commit.message = commit.message[:-1]
    assert raw == commit.as_raw_string()


NASTY = [
    Agent("a/b", "c/d%2F", "line\nbreak", "nul\0 tab\t del\x7f"),
    Agent(None, "only model"),
    Agent("only provider", None, " space ", "ünïcödé \u2028 \x85"),
]


@pytest.mark.parametrize("agent", NASTY)
def test_git_accepts_it(git: Git, agent: Agent) -> None:
    """git fsck --strict has nothing against a state, whatever the agent is called, and shows it."""
    git("init", "-q")
    git("hash-object", "-w", "-t", "tree", "--stdin")
    raw = encode(**{**BASE, "agent": agent, "message": "a state"})
    object_id = git("hash-object", "-w", "-t", "commit", "--stdin", input=raw).strip()
    git("update-ref", "refs/heads/main", object_id.decode())

    assert git("fsck", "--strict", "--full") == b""
    assert raw == git("cat-file", "commit", object_id.decode())
    assert (
        git("log", "-1", "--format=%an|%ae|%at|%ad|%s", "--date=format:%z", object_id.decode())
        == b"Ann|ann@example.org|1700000000|-0530|a state\n"
    )
    assert agent == decode(ObjectID(object_id), raw).agent


@pytest.mark.parametrize("name", ["a<b", "a>b", "a\nb", "a\0b"])
@pytest.mark.parametrize("field", ["name", "email"])
def test_a_name_that_a_commit_cannot_hold(name: str, field: str) -> None:
    """What would end the author's header or address early is refused, not written."""
    principal = Principal(**{"name": "Ann", "email": "a@b", field: name})
    with pytest.raises(ValueError, match="a commit can't hold"):
        encode(**{**BASE, "principal": principal})


def test_change_ids() -> None:
    """A new change id is 32 letters from k to z, and never the same twice."""
    made = {new_change_id() for _ in range(1000)}

    assert len(made) == 1000
    assert all(len(each) == 32 and set(each) <= set("klmnopqrstuvwxyz") for each in made)


# What others wrote


def test_a_plain_git_commit(git: Git) -> None:
    """A commit that git made is a state without agent, thread and change id of its own."""
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "from git", "--date", "1700000000 +0230")
    object_id = ObjectID(git("rev-parse", "HEAD").strip())
    raw = git("cat-file", "commit", "HEAD")
    state = decode(object_id, raw)

    assert (state.principal, state.committer, state.agent, state.thread) == (ANN, ANN, None, None)
    assert (state.message, state.time_s, state.timezone_s) == ("from git\n", 1_700_000_000, 9_000)
    assert (state.tree, state.parents) == (EMPTY_TREE, ())
    assert state.change_id == decode(object_id, raw).change_id


def test_a_derived_change_id() -> None:
    """A commit without a change id gets the last 16 bytes of its id, bit by bit from the end, in
    reverse hex; worked out by hand for an id whose bytes are easy to reverse."""
    raw = b"tree %s\nauthor a <b> 1 +0000\ncommitter a <b> 1 +0000\n\n" % EMPTY_TREE
    object_id = ObjectID(b"ffffffff" + b"01" * 8 + b"f0" * 4 + b"00" * 3 + b"80")

    # The last byte 80 comes first, its bits reversed: 01, whose digits 0 and 1 are z and y.
    assert decode(object_id, raw).change_id == "zy" + "zz" * 3 + "zk" * 4 + "rz" * 8


SIGNED = b"""tree %s
parent %s
author A U Thor <author@example.org> 1700000000 +0000
committer C O Mitter <committer@example.org> 1700000100 +0100
gpgsig -----BEGIN PGP SIGNATURE-----
 Version: none
 heddle-agent not/really
 author nobody
 -----END PGP SIGNATURE-----
encoding iso-8859-1

Gr\xfc\xdfe

tree is a word
""" % (EMPTY_TREE, b"1" * 40)


def test_a_signed_commit_in_another_encoding() -> None:
    """The lines of a signature are no headers, the message is read in the commit's encoding."""
    state = decode(ObjectID(b"1" * 40), SIGNED)

    assert None is state.agent
    assert state.principal.name == "A U Thor"
    assert Principal("C O Mitter", "committer@example.org") == state.committer
    assert state.message == "Grüße\n\ntree is a word\n"
    assert state.parents == (b"1" * 40,)


@pytest.mark.parametrize(
    ("author", "principal", "time_s", "timezone_s"),
    [
        (b"A <a@b> 1 +0000", Principal("A", "a@b"), 1, 0),
        (b"A <a@b> 1 -0000", Principal("A", "a@b"), 1, 0),
        (b"A <a@b> 1 +051800", Principal("A", "a@b"), 1, 0),
        (b"A <a@b> 1 +9999", Principal("A", "a@b"), 1, 0),
        (b"A <a@b> -5 -0100", Principal("A", "a@b"), -5, -3600),
        (b" <> 1 +0000", Principal("", ""), 1, 0),
        (b"<a@b> 1 +0000", Principal("", "a@b"), 1, 0),
        (b"A <a@b>", Principal("A", "a@b"), 0, 0),
        (b"A <a <b> c> 7 +0000", Principal("A", "a <b"), 0, 0),
        (b"nothing of the kind", Principal("nothing of the kind", ""), 0, 0),
        (b"\xff\xfe <a@b> 1 +0000", Principal("\udcff\udcfe", "a@b"), 1, 0),
        (b"A <a@b> 99999999999999999999 +0000", Principal("A", "a@b"), 0, 0),
        (b"A <a@b> 253402300800 +0000", Principal("A", "a@b"), 0, 0),
    ],
)
def test_authors_as_tools_have_written_them(
    author: bytes, principal: Principal, time_s: int, timezone_s: int
) -> None:
    """An author line that is not quite git's is read as far as it goes and never an error."""
    state = decode(ObjectID(b"1" * 40), b"tree %s\nauthor %s\n\n" % (EMPTY_TREE, author))

    assert (principal, time_s, timezone_s) == (state.principal, state.time_s, state.timezone_s)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\n\n",
        b"author A <a@b> 1 +0000\n\n",
        b"tree short\nauthor A <a@b> 1 +0000\n\n",
        b"tree %s\nparent zz\nauthor A <a@b> 1 +0000\n\n" % EMPTY_TREE,
    ],
)
def test_what_is_no_commit(raw: bytes) -> None:
    """Content without a tree, an author or sound ids is corrupt, and the error names the object."""
    with pytest.raises(CorruptObject, match="1" * 40):
        decode(ObjectID(b"1" * 40), raw)


@given(
    raw=st.binary(max_size=300)
    | st.builds(
        lambda at, piece: SIGNED[:at] + piece + SIGNED[at + len(piece) :],
        st.integers(0, len(SIGNED)),
        st.binary(max_size=30) | st.text("0123456789+-<> \n", max_size=30).map(str.encode),
    )
)
def test_any_bytes(raw: bytes) -> None:
    """Whatever stands where a commit should be is a state with a time that a calendar takes, or
    CorruptObject."""
    try:
        state = decode(ObjectID(b"1" * 40), raw)
    except CorruptObject:
        return
    zone = timezone(timedelta(seconds=state.timezone_s))
    assert state.time_s == datetime.fromtimestamp(state.time_s, zone).timestamp()


def test_undecodable_agent_headers_survive() -> None:
    """A heddle header that is not UTF-8 is shown as well as it can be, and written back as it was."""
    raw = b"tree %s\nauthor A <a@b> 1 +0000\nheddle-agent x/\xff\n\n" % EMPTY_TREE
    agent = decode(ObjectID(b"1" * 40), raw).agent

    assert Agent("x", "\udcff") == agent
    assert b"heddle-agent x/\xff\n" in encode(**{**BASE, "agent": agent})
    assert os.fsencode(agent.model or "") == b"\xff"


@pytest.mark.parametrize("who", [b"", b"committer C <c@example.org> 7 +0100\n"])
def test_a_commit_without_an_author(who: bytes) -> None:
    """A commit that lacks lines which git misses in ``fsck`` and shows all the same is a state."""
    state = decode(ObjectID(b"a" * 40), b"tree " + b"1" * 40 + b"\n" + who + b"\nSubject\n")

    assert (state.message, state.parents) == ("Subject\n", ())
    assert (state.principal, state.time_s) == (state.committer, 7 if who else 0)
