"""Sending to a git server (gitprotocol-pack(5), "Pushing Data To a Server").

Owns the request that moves refs there and the pack behind it, for ids of both lengths and objects of any size; what
carries it, and the server's answer, are dulwich's clients'. Theirs can do it for SHA-1 alone, and hold each object
whole. What may move is ``pushing.py``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from heddle.errors import DataError
from heddle.git.transport import require_format

if TYPE_CHECKING:
    from dulwich.objects import ObjectID

    from heddle.git.export import RefChange

_CAPABILITIES = (b"report-status", b"side-band-64k", b"quiet")
_NOBODY = b"capabilities^{}"
"""The name under which a server without refs says what it can."""

Refs = Mapping[bytes, "ObjectID"]


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of a server.

    Attributes:
        name: of the remote, for errors.
        format_name: of the ids, ``sha1`` or ``sha256``.
        choose: what is to move, given all refs of the server's; none: nothing is asked.
        pack: a pack of what these changes need, in pieces, given all refs of the server's and what it can.
        hear: called with what the server says beside its answer.
        shallow: commits (hex ids) whose parents are not here.
    """

    name: str
    format_name: str
    choose: Callable[[Refs], list[RefChange]]
    pack: Callable[[Refs, list[RefChange], Set[bytes]], Iterable[bytes]]
    hear: Callable[[bytes], None]
    shallow: Set[bytes] = frozenset()


def send(client: Any, path: Any, request: Request) -> dict[bytes, str | None]:
    """Ask a server to move refs.

    Args:
        client: one of dulwich's, and the path there.

    Returns:
        By ref, why the server did not move it; None: it did.

    Raises:
        DataError: the address is not one of a server's that can be pushed to, or its ids have another format.
        GitProtocolError: the server could not take what came.
    """
    from dulwich.client import AbstractHttpGitClient, TraditionalGitClient

    if isinstance(client, AbstractHttpGitClient):
        return _over_http(client, path, request)
    if isinstance(client, TraditionalGitClient):
        return _over_connection(client, path, request)
    raise _cant_be_pushed_to(request, "it is a file")


def _cant_be_pushed_to(request: Request, why: str) -> DataError:
    return DataError(
        f"nothing can be pushed to {request.name}: {why}", hint="heddle remote add NAME ADDRESS"
    )


def _over_connection(client: Any, path: Any, request: Request) -> dict[bytes, str | None]:
    from dulwich.client import _remote_error_from_stderr, read_pkt_refs_v1
    from dulwich.errors import HangupException

    protocol, _can_read, said = client._connect(b"receive-pack", path)
    with protocol:
        try:
            refs, offered = read_pkt_refs_v1(protocol.read_pkt_seq())
        except HangupException as error:
            raise _remote_error_from_stderr(said) from error
        try:
            asked = _Asked(client, request, refs, offered)
            said_last = asked.body()
        except BaseException:
            protocol.write_pkt_line(None)
            raise
        # One that has had enough says why in its answer.
        with suppress(BrokenPipeError, ConnectionResetError):
            for piece in said_last:
                protocol.write(piece)
        return asked.answer(protocol) if asked.changes else {}


def _over_http(client: Any, path: Any, request: Request) -> dict[bytes, str | None]:
    from dulwich.protocol import Protocol

    refs, offered, base, _symbolic, _peeled = client._discover_references(
        b"git-receive-pack", client._get_url(path)
    )
    if client.dumb:
        raise _cant_be_pushed_to(request, "a plain web server has it")
    asked = _Asked(client, request, refs, offered)
    if not asked.changes:
        return {}
    response, read = client._smart_request("git-receive-pack", base, asked.body())
    try:
        return asked.answer(Protocol(read, lambda _data: None))
    finally:
        response.close()


class _Asked:
    """A request to a server that has said what it has and can.

    Attributes:
        changes: what it is asked to move.
    """

    def __init__(
        self, client: Any, request: Request, refs: Mapping[Any, Any], offered: set[bytes]
    ) -> None:
        from dulwich.client import extract_object_format_from_capabilities
        from dulwich.protocol import capability_agent, capability_object_format

        self._client = client
        self._request = request
        self._offered = offered
        self._refs: Refs = {ref: id for ref, id in refs.items() if ref != _NOBODY}
        found = extract_object_format_from_capabilities(offered) or "sha1"
        require_format(request.name, found, request.format_name)
        self._agreed = {*_CAPABILITIES, capability_object_format(found)} & offered
        self._agreed.add(capability_agent())
        self.changes = request.choose(self._refs)

    def body(self) -> Iterator[bytes]:
        """What is said: the refs and where they are to go, and the pack; a flush alone where nothing is asked.

        What takes time is done on return, since servers do not wait for the rest of a request for ever.
        """
        from dulwich.protocol import pkt_line

        agreed = b"\0" + b" ".join(sorted(self._agreed))
        head = [pkt_line(b"shallow " + id) for id in sorted(self._request.shallow)]
        for change in self.changes:
            none = b"0" * len(change.new)
            ref = change.ref.encode(errors="surrogateescape")
            head.append(pkt_line(b"%b %b %b" % (change.old or none, change.new, ref) + agreed))
            agreed = b""
        head.append(pkt_line(None))
        if not self.changes:
            return iter((pkt_line(None),))
        return chain(head, self._request.pack(self._refs, self.changes, self._offered))

    def answer(self, protocol: Any) -> dict[bytes, str | None]:
        """What the server says came of it; returns as `send`."""
        from dulwich.client import ReportStatusParser

        if b"report-status" in self._agreed:
            self._client._report_status_parser = ReportStatusParser()
        status = self._client._handle_receive_pack_tail(protocol, self._agreed, self._request.hear)
        return dict(status or {})
