"""States: how a snapshot with its attribution is written as a git commit, and read from any git commit.

The only module that knows the extra headers. Who the principal and the agent are is decided in ``attribution.py``;
which states there are and how they are named is the repository's.

The headers, after ``committer`` and in this order, each left out when there is nothing to say:

``change-id``       32 letters k to z, kept when a state is rewritten (the form that Jujutsu writes)
``heddle-agent``    ``<provider>/<model>``; either may be empty
``heddle-session``  the agent's session
``heddle-task``     what the agent worked on
``heddle-thread``   the thread that the state was captured on

A value is UTF-8; ``%`` and control characters are percent-encoded, in an agent's provider also ``/``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from heddle.attribution import Agent, Principal
from heddle.errors import CorruptObject

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

_HEX = "0123456789abcdef"
_REVERSE = str.maketrans(_HEX, "zyxwvutsrqponmlk")
_CHANGE_ID = re.compile(r"[k-z]{1,64}")
_IDENTITY = re.compile(rb"(.*?) ?<(.*?)>(?: (-?\d+) ([+-]\d+))?.*", re.DOTALL)
_ID = re.compile(rb"[0-9a-f]{40}|[0-9a-f]{64}")
_ENCODED = re.compile(r"%([0-9A-F]{2})")
_YEARS_0001_TO_9999 = range(-62_135_510_400, 253_402_214_400)  # in any time zone
_DAY_S = 86_400
_UNSAFE = re.compile(r"[\x00-\x1f\x7f%]")
_UNSAFE_IN_PROVIDER = re.compile(r"[\x00-\x1f\x7f%/]")


class State(NamedTuple):
    """A view of a commit; the commit itself may hold more (a signature, other headers).

    Attributes:
        id: the commit's id.
        tree: the tree's id.
        parents: the ids of the states it was made from.
        principal: the human who answers for it: the commit's author.
        committer: who wrote the commit; the principal, in states of ours.
        agent: the model that made it, or None.
        change_id: what stays when the state is rewritten.
        thread: the thread it was captured on, where it says so.
        message: what the author says about it.
        time_s: when the author made it, in seconds since 1970; 0 where the commit says nothing a calendar holds.
        timezone_s: the author's offset from UTC, in seconds east; less than a day.
        committed_s: when the commit was written, which a rebase does again: what history is ordered by. As ``time_s``.
    """

    id: ObjectID
    tree: ObjectID
    parents: tuple[ObjectID, ...]
    principal: Principal
    committer: Principal
    agent: Agent | None
    change_id: str
    thread: str | None
    message: str
    time_s: int
    timezone_s: int
    committed_s: int


def new_change_id() -> str:
    """A change id that nobody has: 16 random bytes in Jujutsu's reverse hex."""
    return _reverse_hex(os.urandom(16))


def _reverse_hex(data: bytes) -> str:
    return data.hex().translate(_REVERSE)


def _derived_change_id(state_id: bytes) -> str:
    """The change id of a commit that has none: the last 16 bytes of its id, each bit in reverse order.

    Bits are reversed as Jujutsu does, so that the beginnings of the two ids of one state do not look alike.
    """
    tail = bytes.fromhex(state_id.decode())[-16:]
    return _reverse_hex(bytes(int(f"{byte:08b}"[::-1], 2) for byte in reversed(tail)))


# Writing


def encode(
    *,
    tree: bytes,
    parents: Sequence[bytes],
    principal: Principal,
    agent: Agent | None,
    change_id: str,
    thread: str | None,
    message: str,
    time_s: int,
    timezone_s: int,
) -> bytes:
    """Write a state as the content of a git commit.

    Args:
        tree: the tree's id, in hex.
        parents: the parents' ids, in hex, in order.
        principal: author and committer.
        agent: the model that made it, or None.
        change_id: from ``new_change_id``, or the one that a rewritten state had.
        thread: the thread it is captured on.
        message: any text; NUL characters are left out, since git ends a message there.
        time_s: seconds since 1970.
        timezone_s: seconds east of UTC.

    Raises:
        ValueError: a name or an address holds a character that a commit can't.
    """
    who = _encode_identity(principal, time_s, timezone_s)
    headers = [(b"tree", tree)]
    headers += [(b"parent", parent) for parent in parents]
    headers += [(b"author", who), (b"committer", who), (b"change-id", change_id.encode())]
    headers += _attribution_headers(agent, thread)
    head = b"".join(b"%s %s\n" % header for header in headers)
    return head + b"\n" + _encode_message(message)


def _encode_message(message: str) -> bytes:
    text = message.replace("\0", "").encode("utf-8", "surrogateescape")
    return text if not text or text.endswith(b"\n") else text + b"\n"


def _attribution_headers(agent: Agent | None, thread: str | None) -> list[tuple[bytes, bytes]]:
    headers = []
    if agent is not None:
        provider = _quote(agent.provider or "", _UNSAFE_IN_PROVIDER)
        headers.append((b"heddle-agent", provider + b"/" + _quote(agent.model or "")))
        headers.append((b"heddle-session", _quote(agent.session or "")))
        headers.append((b"heddle-task", _quote(agent.task or "")))
    headers.append((b"heddle-thread", _quote(thread or "")))
    return [(name, value) for name, value in headers if value]


def _encode_identity(who: Principal, time_s: int, timezone_s: int) -> bytes:
    for part in (who.name, who.email):
        if any(character in part for character in "<>\n\0"):
            raise ValueError(f"a commit can't hold {part!r} as a name or an address")
    sign = "-" if timezone_s < 0 else "+"
    hours, minutes = divmod(abs(timezone_s) // 60, 60)
    text = f"{who.name} <{who.email}> {time_s} {sign}{hours:02}{minutes:02}"
    return text.encode("utf-8", "surrogateescape")


def _quote(value: str, unsafe: re.Pattern[str] = _UNSAFE) -> bytes:
    quoted = unsafe.sub(lambda found: f"%{ord(found[0]):02X}", value)
    return quoted.encode("utf-8", "surrogateescape")


def _unquote(value: str) -> str:
    return _ENCODED.sub(lambda found: chr(int(found[1], 16)), value)


# Reading


def decode(id: ObjectID, raw: bytes) -> State:
    """Read a state from the content of any git commit.

    A commit without a change id gets one that is derived from its id, always the same.

    Args:
        id: the commit's id, in hex.
        raw: its content.

    Raises:
        CorruptObject: this is not the content of a commit.
    """
    head, _, body = raw.partition(b"\n\n")
    headers: dict[bytes, bytes] = {}
    parents = []
    for name, value in _headers(head):
        if name == b"parent":
            parents.append(value)
        else:
            headers.setdefault(name, value)
    references = [headers.get(b"tree", b""), *parents]
    if not all(map(_ID.fullmatch, references)):
        raise CorruptObject(f"object {id.decode()} is not a sound commit")
    encoding = headers.get(b"encoding", b"utf-8").decode("ascii", "replace")
    # Git shows commits that lack one of the two, or both, and so do we.
    author = headers.get(b"author", headers.get(b"committer", b""))
    principal, time_s, timezone_s = _decode_identity(author, encoding)
    committer, committed_s, _ = _decode_identity(headers.get(b"committer", author), encoding)
    return State(
        id=id,
        tree=headers[b"tree"],  # type: ignore[arg-type]
        parents=tuple(parents),  # type: ignore[arg-type]
        principal=principal,
        committer=committer,
        agent=_decode_agent(headers),
        change_id=_decode_change_id(headers, id),
        thread=_value(headers, b"heddle-thread"),
        message=_text(body, encoding),
        time_s=time_s,
        timezone_s=timezone_s,
        committed_s=committed_s,
    )


def _headers(head: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield each header; the further lines of a folded one (a signature) begin with a space, so their name is empty."""
    for line in head.split(b"\n"):
        name, _, value = line.partition(b" ")
        yield name, value


def _decode_identity(value: bytes, encoding: str) -> tuple[Principal, int, int]:
    """Read ``Name <address> seconds zone``, forgiving what other tools have written there."""
    found = _IDENTITY.fullmatch(value)
    if found is None:
        return Principal(_text(value, encoding), ""), 0, 0
    name, email, time, zone = found.groups()
    who = Principal(_text(name, encoding), _text(email, encoding))
    return who, _decode_time(time or b"0"), _decode_zone(zone or b"+0000")


def _decode_time(digits: bytes) -> int:
    """Seconds since 1970; git too takes a time that it can't represent for 0."""
    time_s = int(digits) if len(digits) < 20 else 0
    return time_s if time_s in _YEARS_0001_TO_9999 else 0


def _decode_zone(zone: bytes) -> int:
    if len(zone) > 5:  # never written by git, and no calendar takes it
        return 0
    hours, minutes = divmod(int(zone[1:]), 100)
    seconds = hours * 3600 + minutes * 60
    if seconds >= _DAY_S:
        return 0
    return -seconds if zone.startswith(b"-") else seconds


def _text(value: bytes, encoding: str = "utf-8") -> str:
    try:
        return value.decode(encoding)
    except (LookupError, ValueError):
        return value.decode("utf-8", "surrogateescape")


def _value(headers: dict[bytes, bytes], name: bytes) -> str | None:
    value = headers.get(name)
    return _unquote(_text(value)) if value else None


def _decode_agent(headers: dict[bytes, bytes]) -> Agent | None:
    value = headers.get(b"heddle-agent")
    if value is None:
        return None
    provider, _, model = _text(value).partition("/")
    return Agent(
        provider=_unquote(provider) or None,
        model=_unquote(model) or None,
        session=_value(headers, b"heddle-session"),
        task=_value(headers, b"heddle-task"),
    )


def _decode_change_id(headers: dict[bytes, bytes], state_id: bytes) -> str:
    written = headers.get(b"change-id", b"").decode("ascii", "replace")
    return written if _CHANGE_ID.fullmatch(written) else _derived_change_id(state_id)
