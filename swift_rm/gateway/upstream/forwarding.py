"""Pass a request on as it is, and its reply back byte for byte; what is no reply becomes an error that says so."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import cast

import httpx2

from swift_rm.gateway.request.backend import ForwardedReply
from swift_rm.gateway.upstream.client import Deadline, UpstreamClient, UpstreamReply, media_type
from swift_rm.gateway.upstream.faults import UpstreamFault, json_or_none, retry_headers, status_fault, unreadable_reply

JSON, EVENT_STREAM = "application/json", "text/event-stream"
LARGEST_EVENT = 2**24  # bytes of a stream without an end of an event


async def forward(client: UpstreamClient, path: str, body: bytes, stream: bool) -> ForwardedReply:
    """Send a body on and return the reply; a stream's from its first events on.

    Statuses 400 to 499 are the client's own and pass through, but 401 and 403, which are about the gateway's key. Raises
    UpstreamFault for those, for redirects, statuses from 500, and replies that are none; the body of a stream raises it, too,
    where the stream is cut or late.
    """
    deadline = client.deadline()
    if not stream:
        return _passed(client, await client.post(path, body, deadline))
    pieces = _streamed(client, path, body, deadline)
    head = await anext(pieces)
    if isinstance(head, str):
        return ForwardedReply(200, head, cast(AsyncGenerator[bytes, None], pieces))
    await pieces.aclose()
    return _passed(client, cast(UpstreamReply, head))


def _passed(client: UpstreamClient, reply: UpstreamReply) -> ForwardedReply:
    """Return a whole reply as it is passed on."""
    status = reply.status
    if 200 <= status < 300:
        client.checked(reply)
        return ForwardedReply(status, client.content_type(reply.headers, JSON), reply.body)
    text = reply.body.decode("utf-8", "replace")
    told = 400 <= status < 500 and status not in (401, 403, 407) and isinstance(json_or_none(reply.body), dict)
    if not told or client.key.partly_in(text):
        raise status_fault(status, reply.headers, reply.body, client.where, client.key)
    return ForwardedReply(status, client.content_type(reply.headers, JSON), reply.body, retry_headers(reply.headers))


async def _streamed(
    client: UpstreamClient, path: str, body: bytes, deadline: Deadline
) -> AsyncGenerator[str | bytes | UpstreamReply, None]:
    """Yield the content type of a stream, then its bytes, whole events at a time; or a whole reply, if it is no stream.

    It is begun when the connection is open, so that closing it at any time closes the connection.
    """
    async with client.asked(path, body, deadline) as response:
        if not 200 <= response.status_code < 300:
            yield await client.read(response, deadline)
            return
        if media_type(response.headers) != EVENT_STREAM:
            shown = client.key.shown(media_type(response.headers))
            raise unreadable_reply(client.where, f"the content type {shown!r} instead of a stream of events")
        yield client.content_type(response.headers, EVENT_STREAM)
        async with aclosing(_events(client, response)) as events:
            async for event in events:
                yield event


async def _events(client: UpstreamClient, response: httpx2.Response) -> AsyncGenerator[bytes, None]:
    """Yield the bytes of a stream up to the end of an event: a cut within one leaves nothing that a client would read.

    No key passes either: there is none with a line break. A stream may go on for as long as each piece comes in time.
    """
    held = b""
    async with aclosing(client.pieces(response)) as pieces:
        async for piece in pieces:
            held += piece
            end = max(held.rfind(b"\n\n") + 2, held.rfind(b"\r\n\r\n") + 4 if b"\r" in held else 0)
            if end > 1 and held[:end].endswith(b"\n"):
                yield _without_key(client, held[:end])
                held = held[end:]
            if len(held) > LARGEST_EVENT:
                raise UpstreamFault(f"the upstream {client.where} sent an event too long to be read")
    if held:
        yield _without_key(client, held)


def _without_key(client: UpstreamClient, events: bytes) -> bytes:
    if client.key.wholly_in(events.decode("utf-8", "replace")):
        raise UpstreamFault(f"the upstream {client.where} sends the gateway's key back in its replies")
    return events


def with_limit(body: bytes, most: int, name: str) -> bytes:
    """Return a request's JSON with a limit of new tokens called ``name`` if it has none."""
    asked = json_or_none(body)
    if not isinstance(asked, dict) or any(asked.get(key) is not None for key in ("max_tokens", "max_completion_tokens")):
        return body
    return json.dumps({**asked, name: most}).encode()
