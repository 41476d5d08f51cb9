"""Answer a completion: read it, let it in if the server is not full, parse it; then pass it on, reply whole, or stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import Response

from swift_rm.gateway.http.body import BODY_S, parse, read_body
from swift_rm.gateway.http.disconnects import ClientGone, Receive, cancel_all, run_while_connected, task_result
from swift_rm.gateway.http.logs import capped
from swift_rm.gateway.http.metrics import GONE, Metrics
from swift_rm.gateway.http.replies import LiveReply, Replies
from swift_rm.gateway.http.request_log import PLAIN, RequestRecord, Scope, Send, record_of
from swift_rm.gateway.http.responses import (
    DONE,
    WAITING,
    StreamHead,
    StreamPiece,
    closing_iterator,
    event,
    json_reply,
    send_stream,
)
from swift_rm.gateway.request.backend import Backend, PromptResult
from swift_rm.gateway.request.completion_request import CompletionRequest, RequestLimits, check_limits, choose_rule, parse_request
from swift_rm.gateway.request.errors import GatewayError, refused
from swift_rm.gateway.request.settings import Settings
from swift_rm.selection.rule_table import SERVED_RULES

PATIENCE_S = 5.0  # between signs of life, while the candidates of a stream are drawn


class Completions:
    """Answers the requests of both kinds: chat, and text."""

    def __init__(self, backend: Backend, settings: Settings, queue_limit: QueueLimit, metrics: Metrics) -> None:
        self.backend, self.settings, self.queue_limit, self.metrics = backend, settings, queue_limit, metrics
        self.limits = RequestLimits.of(settings)

    async def __call__(self, chat: bool, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; raise GatewayError where that has not begun yet."""
        record = record_of(scope)
        try:
            body = await read_body(Headers(scope=scope), receive, self.settings.max_body_kib * 1024, BODY_S)
            raw = parse(body)
            with self.queue_limit:
                reply = await self._answer(raw, body, chat, record, scope, receive, send)
            if reply is not None:  # its place is free while a slow client reads it
                await reply(scope, receive, send)
        except ClientGone:
            record.status = GONE

    async def _answer(
        self, raw: dict[str, Any], body: bytes, chat: bool, record: RequestRecord, scope: Scope, receive: Receive, send: Send
    ) -> Response | None:
        """Stream an answer, or return the reply that has it whole."""
        backend, seconds = self.backend, self.settings.timeout_s
        chosen = choose_rule(raw, backend.name)
        record.rule = chosen.rule if chosen.rule in SERVED_RULES else PLAIN  # no client makes up names in metrics
        stream = raw.get("stream") is True
        record.fields |= {"model": raw["model"][:100], "rule": record.rule, "stream": stream}
        self.log_content(record, prompt=raw.get("messages" if chat else "prompt"))
        if chosen.rule is None and backend.forwards:
            _check_forwarded(raw, chat, self.limits)
            pieces = self._forwarded("chat/completions" if chat else "completions", body, stream, record)
            if not stream:
                return await run_while_connected(receive, _whole(pieces), seconds)
            await send_stream(scope, receive, send, pieces, seconds, renewed=True)
            return None
        if chosen.rule is not None and not backend.rewards:
            raise refused(
                f"without a reward model there is nothing to choose by: ask for {backend.name!r}, or start the server with a "
                "--reward-model", "model",
            )  # fmt: skip
        request = parse_request(raw, chat, backend.name, self.limits)
        record.fields["n"] = request.drawn
        replies = Replies(request, self.backend.ignored(request))
        if not stream:
            results = await run_while_connected(receive, backend.answer(request), seconds)
            self.note(record, replies, results)
            return json_reply(replies.whole(results))
        live = request.rule is None
        pieces = (self._live if live else self._chosen)(request, replies, record)
        await send_stream(scope, receive, send, pieces, seconds, renewed=live)
        return None

    async def _chosen(
        self, request: CompletionRequest, replies: Replies, record: RequestRecord
    ) -> AsyncGenerator[StreamPiece, None]:
        """Yield signs of life until candidates are drawn and one is chosen, and then all of the stream."""
        work = asyncio.ensure_future(self.backend.answer(request))
        try:
            while not (await asyncio.wait((work,), timeout=PATIENCE_S))[0]:
                yield WAITING
            results = task_result(work)
        finally:
            await cancel_all(work)
        self.note(record, replies, results)
        yield b"".join(map(event, replies.chunks(results))) + DONE

    async def _live(
        self, request: CompletionRequest, replies: Replies, record: RequestRecord
    ) -> AsyncGenerator[StreamPiece, None]:
        """Yield the pieces of responses as they are generated."""
        live_reply = LiveReply(request, replies)
        async with closing_iterator(self.backend.live(request)) as deltas:
            async for delta in deltas:
                yield b"".join(map(event, live_reply.chunks(delta)))
        results = live_reply.results()
        self.note(record, replies, results)
        yield b"".join(map(event, replies.end(results))) + DONE

    async def _forwarded(self, path: str, body: bytes, stream: bool, record: RequestRecord) -> AsyncGenerator[StreamPiece, None]:
        """Yield what the upstream replies, byte for byte."""
        reply = await self.backend.forward(path, body, stream)
        head = StreamHead(reply.status, reply.content_type, reply.headers)
        if isinstance(reply.body, bytes):
            self.log_content(record, answer=reply.body)
            yield head
            yield reply.body
            return
        async with closing_iterator(reply.body) as pieces:
            yield head
            yield await anext(pieces, b"")
            async for piece in pieces:
                yield piece

    def note(self, record: RequestRecord, replies: Replies, results: Sequence[PromptResult]) -> None:
        """Count what an answer took, and note it for the log."""
        self.metrics.answered(results, sum(map(replies.abstains, results)))
        chosen = results[0].candidates[0]
        record.fields |= {
            "prompt_tokens": sum(one.prompt_tokens for one in results),
            "completion_tokens": sum(one.completion_tokens for one in results),
            "probability": None if chosen.probability != chosen.probability else round(chosen.probability, 6),
        }
        self.log_content(record, answer=chosen.text)

    def log_content(self, record: RequestRecord, **texts: Any) -> None:
        """Note texts for the log, where the settings want content in it."""
        if self.settings.log_content:
            for name, text in texts.items():
                said = text.decode(errors="replace") if isinstance(text, bytes) else text
                record.fields[name] = capped(said if isinstance(said, str) else json.dumps(said))


async def _whole(pieces: AsyncGenerator[StreamPiece, None]) -> Response:
    head, body = StreamHead(), bytearray()
    async with closing_iterator(pieces):
        async for piece in pieces:
            if isinstance(piece, StreamHead):
                head = piece
            else:
                body += piece
    return Response(bytes(body), head.status, {**head.headers, "content-type": head.content_type})


def _check_forwarded(raw: Mapping[str, Any], chat: bool, limits: RequestLimits) -> None:
    """Raise GatewayError for a request that asks for more than the server allows, or for what the upstream cannot do.

    Fields that are not limited are the upstream's to refuse. It may take "1000" for 1,000, and -1 for no limit.
    """
    for name in ("abstain_below", "return_candidates"):
        if raw.get(name):
            raise refused(f"{name!r} needs candidates with rewards: ask for a model such as swift-best-of-4", name)
    prompt = raw.get("messages" if chat else "prompt")
    several = not chat and isinstance(prompt, list) and bool(prompt) and not isinstance(prompt[0], int)
    prompts: Any = prompt if several else [prompt]
    n, *tokens = (_whole_number(raw, name) for name in ("n", "max_tokens", "max_completion_tokens"))
    if limits.max_tokens is not None and min(tokens) < 0:
        raise refused(f"max_tokens={min(tokens)} is no number of tokens: this server allows {limits.max_tokens}", "max_tokens")
    check_limits(prompts, max(1, n), max(tokens), limits)


def _whole_number(raw: Mapping[str, Any], name: str) -> int:
    value = raw.get(name) or 0
    if not isinstance(value, int):
        raise refused(f"{name!r} must be a whole number, got {value!r:.60}", name)
    return value


class QueueLimit:
    """A bounded count of requests, entered as a context by each; ``on_full`` is called for those that find it full.

    It lives on one event loop. Raises GatewayError, status 429, on entering when ``most`` are inside.
    """

    def __init__(self, most: int, on_full: Callable[[], None] | None = None) -> None:
        self.most, self.inside, self._on_full = most, 0, on_full

    def __enter__(self) -> QueueLimit:
        if self.inside >= self.most:
            if self._on_full is not None:
                self._on_full()
            raise GatewayError(
                429, f"the server is full: it has {self.most} requests to answer already; ask again in a second",
                code="server_full", headers={"retry-after": "1"},
            )  # fmt: skip
        self.inside += 1
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.inside -= 1
