"""Send a reply of vLLM's application on: as it is, with rewards added as it streams, or changed once it is whole."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from swift_rm.integrations.vllm.server.reward_request import RefusedRequest, RewardRequest
from swift_rm.integrations.vllm.server.streamed_reply import StreamedReply
from swift_rm.integrations.vllm.server.whole_reply import FetchRewards, with_rewards

Message = MutableMapping[str, Any]


class Reply:
    """Send a reply: of a request that was refused what it says, of one for samples theirs with rewards, else as it comes.

    Where a header tells the id ``own``, which vLLM was given, the client gets the one it gave.
    """

    def __init__(self, send: Callable[[Message], Awaitable[None]], own: str, told: str | None) -> None:
        self._send, self._ids = send, (own.encode("latin-1"), (own if told is None else told).encode("latin-1"))
        self._head: Message | None = None  # while the body is not all there
        self._body = bytearray()
        self._whole: Callable[[bytes], Awaitable[bytes]] | None = None
        self._stream: StreamedReply | None = None

    async def begin(self, head: Message, request: RewardRequest | RefusedRequest | None, rewards: FetchRewards) -> None:
        """Take the head of the reply to ``request``, if it was understood; ``rewards`` gives those of samples."""
        own, told = self._ids
        headers = [(name, told if value == own else value) for name, value in head.get("headers", [])]
        head = {**head, "headers": headers}
        kind = next((value for name, value in headers if name.lower() == b"content-type"), b"").partition(b";")[0]
        if isinstance(request, RefusedRequest):
            refused, head = request.body(), {**head, "status": 400, "headers": _json_type(headers)}
            self._whole = lambda _: _at_once(refused)
        elif request is not None and head["status"] == 200 and kind == b"application/json":
            self._whole = lambda body: with_rewards(body, request, rewards)
        elif request is not None and head["status"] == 200 and kind == b"text/event-stream":
            self._stream = StreamedReply(request, rewards)
        if self._whole is None:
            await self._send(head)
        else:
            self._head = head

    async def go_on(self, message: Message) -> None:
        """Take what follows the head."""
        if message["type"] != "http.response.body":
            return await self._send(message)
        body, more = message.get("body", b""), message.get("more_body", False)
        if self._stream is not None:
            body = await self._stream.feed(body, more)
            if not body and more:
                return None
        elif self._whole is not None:
            self._body += body
            if more:
                return None
            body = await self._whole(bytes(self._body))
            assert self._head is not None
            others = [(name, value) for name, value in self._head["headers"] if name.lower() != b"content-length"]
            await self._send({**self._head, "headers": [*others, (b"content-length", b"%d" % len(body))]})
        return await self._send({"type": "http.response.body", "body": body, "more_body": more})


def _json_type(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [*(one for one in headers if one[0].lower() != b"content-type"), (b"content-type", b"application/json")]


async def _at_once(body: bytes) -> bytes:
    return body
