"""Asking a git server for the sizes of objects (gitprotocol-v2(5), object-info).

Owns that one command, which dulwich has not; what carries it is dulwich's clients. A server says that it knows the
command only if it was told to (``transfer.advertiseObjectInfo``), so "it can't say" is an ordinary answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from heddle.objects.gitformat import to_hex

if TYPE_CHECKING:
    from dulwich.protocol import Protocol

_AT_ONCE = 5_000
_SIZE = re.compile(rb"[0-9]{1,18}")
"""A length that a file can have."""
_DELIMITER = b"0001"
_FLUSH = b"0000"


def sizes(
    client: Any, path: Any, raw_ids: Sequence[bytes], object_format: str
) -> dict[bytes, int] | None:
    """The lengths in bytes of objects on a server, by binary id.

    Args:
        client: one of dulwich's, and the path there.
        raw_ids: binary ids.
        object_format: ``sha1`` or ``sha256``.

    Returns:
        As many as the server knows; None if it does not know the command.
    """
    from dulwich.client import AbstractHttpGitClient

    ask = _over_http if isinstance(client, AbstractHttpGitClient) else _over_connection
    return ask(client, path, [*_requests(raw_ids, object_format)])


def _requests(raw_ids: Sequence[bytes], object_format: str) -> Iterator[bytes]:
    from dulwich.protocol import pkt_line

    command = [b"command=object-info", f"object-format={object_format}".encode()]
    begin = b"".join(map(pkt_line, command)) + _DELIMITER + pkt_line(b"size")
    for start in range(0, len(raw_ids), _AT_ONCE):
        ids = (b"oid " + to_hex(each) for each in raw_ids[start : start + _AT_ONCE])
        yield begin + b"".join(map(pkt_line, ids)) + _FLUSH


def _over_connection(client: Any, path: Any, requests: list[bytes]) -> dict[bytes, int] | None:
    protocol, _can_read, _said = client._connect(b"upload-pack", path, 2)
    with protocol:
        if not _knows_command(protocol):
            return None
        told: dict[bytes, int] = {}
        for request in requests:
            protocol.write(request)
            told.update(_answer(protocol.read_pkt_seq()))
        protocol.write(_FLUSH)
        return told


def _over_http(client: Any, path: Any, requests: list[bytes]) -> dict[bytes, int] | None:
    from urllib.parse import urljoin

    from dulwich.protocol import Protocol

    base = client._get_url(path)
    greeting = "info/refs?service=git-upload-pack"
    address = urljoin(base, greeting)
    response, read = client._http_request(address, {"Git-Protocol": "version=2"})
    try:
        if not _knows_command(Protocol(read, lambda _data: None)):
            return None
        base = urljoin(address, response.redirect_location).removesuffix(greeting)
    finally:
        response.close()
    client.protocol_version = 2
    told: dict[bytes, int] = {}
    for request in requests:
        response, read = client._smart_request("git-upload-pack", base, request)
        try:
            told.update(_answer(Protocol(read, lambda _data: None).read_pkt_seq()))
        finally:
            response.close()
    return told


def _knows_command(protocol: Protocol) -> bool:
    """Whether a server's greeting is of version 2 and names the command."""
    lines = [line.rstrip(b"\n") for line in protocol.read_pkt_seq()]
    if lines[:1] == [b"# service=git-upload-pack"]:
        lines = [line.rstrip(b"\n") for line in protocol.read_pkt_seq()]
    return lines[:1] == [b"version 2"] and b"object-info" in lines


def _answer(lines: Iterable[bytes]) -> Iterator[tuple[bytes, int]]:
    """Ids and sizes; of an object that the server has not, it says no size."""
    for line in lines:
        words = line.split()
        if len(words) == 2 and _SIZE.fullmatch(words[1]) and len(words[0]) in (40, 64):
            yield bytes.fromhex(words[0].decode("ascii")), int(words[1])
