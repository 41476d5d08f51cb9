"""Replies on their way: JSON, errors, and streams whose head waits for their first piece."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.responses import Response

from swift_rm.gateway.http.disconnects import ClientGone, Receive, run_while_connected, timeout_error
from swift_rm.gateway.http.logs import log_failure
from swift_rm.gateway.http.request_log import RequestRecord, Scope, Send, record_of
from swift_rm.gateway.request.errors import GatewayError

T = TypeVar("T")
EVENTS = "text/event-stream"
DONE = b"data: [DONE]\n\n"
WAITING = b": waiting\n\n"  # a comment, which clients skip and proxies take for life
LAST_WORD_S = 5.0  # for an error to reach a client that may not read at all


@dataclass(frozen=True)
class StreamHead:
    """The status and headers of a stream; ``StreamPiece`` is either this, first, or bytes."""

    status: int = 200
    content_type: str = EVENTS
    headers: Mapping[str, str] = field(default_factory=dict)


StreamPiece = StreamHead | bytes


def json_bytes(value: Any) -> bytes:
    """Return JSON in ASCII: a text's half of a surrogate pair cannot break it."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def json_reply(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a reply with a JSON body."""
    return Response(json_bytes(value), status, headers, "application/json")


def error_reply(error: GatewayError) -> Response:
    """Return the reply that says an error."""
    return json_reply(error.body(), error.status, error.headers)


def event(value: Any) -> bytes:
    """Return a server-sent event."""
    return b"data: %s\n\n" % json_bytes(value)


def to_gateway_error(error: BaseException, record: RequestRecord) -> GatewayError:
    """Return what a client is told of an exception; of one that is no GatewayError the log has more, but not its words."""
    if isinstance(error, GatewayError):
        return error
    log_failure("failure", error, id=record.id)
    return GatewayError(500, f"the server failed; its log has more (request id {record.id})")


async def send_stream(
    scope: Scope, receive: Receive, send: Send, pieces: AsyncGenerator[StreamPiece, None], seconds: float, renewed: bool = False
) -> None:
    """Send pieces as they come, the head with the first one, so that what fails before has a status of its own.

    All takes at most ``seconds`` or, if ``renewed``, each piece does. What fails later is the last event, without [DONE]; where
    the stream is not one of events the connection breaks off. Raises GatewayError before the head is sent, ClientGone always.
    """
    head, begun = StreamHead(), False

    async def sending() -> None:
        nonlocal head, begun
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(seconds) as clock, aclosing(pieces):
                async for piece in pieces:
                    if isinstance(piece, StreamHead):
                        head = piece
                        continue
                    if not begun:
                        begun = True
                        await send({"type": "http.response.start", "status": head.status, "headers": _raw(head)})
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                    await asyncio.sleep(0)  # the loop learns here that a connection is lost; writes to it would fill the log
                    if renewed:
                        clock.reschedule(loop.time() + seconds)
        except TimeoutError:
            if not clock.expired():
                raise
            raise timeout_error(seconds) from None

    (failed,) = await asyncio.gather(run_while_connected(receive, sending()), return_exceptions=True)
    if isinstance(failed, ClientGone) or (failed is not None and not begun):
        raise failed
    if failed is None:
        return await send({"type": "http.response.body", "body": b""})
    record = record_of(scope)
    error = to_gateway_error(failed, record)
    record.fields["failed"] = error.status
    if head.content_type.startswith(EVENTS):
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORD_S):
                await send({"type": "http.response.body", "body": event(error.body())})


@asynccontextmanager
async def closing_iterator(pieces: AsyncIterator[T]) -> AsyncIterator[AsyncIterator[T]]:
    """Give an iterator, and close it at the end, if it can be closed: a loop that is left early does not."""
    try:
        yield pieces
    finally:
        if isinstance(pieces, AsyncGenerator):
            await pieces.aclose()


def _raw(head: StreamHead) -> list[tuple[bytes, bytes]]:
    headers = {**head.headers, "content-type": head.content_type}
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
