"""What passes through an upstream's backend, byte for byte, and what becomes of faults on the way."""

import asyncio
import json
import re
import socket
import time
from contextlib import suppress

import pytest

from swift_rm.gateway.request.errors import GatewayError
from swift_rm.gateway.request.settings import Settings
from swift_rm.gateway.upstream.backend import UpstreamBackend
from tests.api.api_server import (
    KEY,
    MODEL,
    Left,
    answer,
    completion,
    cut,
    dripping,
    kept,
    leaks,
    raw,
    send,
    slow,
    status,
    streamed,
)
from tests.gateway.upstream_requests import CHAT, fault, passed, settings

EVENTS = ['data: {"choices": [{"delta": {"content": "1"}}]}\n\n', ": a comment\n\n", "data: {}\n\nda", "ta: [DONE]\n\n"]


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_requests_and_replies_pass_byte_for_byte(api, path):
    body = json.dumps(completion([]), indent=3).encode() + b"\n \xc3\xa9"[:2]
    api.usual = lambda handler, request: send(handler, 200, body, {"X-Other": "x"}, kind="application/json; charset=utf-8")
    reply, whole = passed(api, path=path)
    assert (reply.status, reply.content_type, whole) == (200, "application/json; charset=utf-8", body)
    assert api.bodies == [CHAT] and api.paths == [f"/v1/{path}"]
    assert api.headers[0]["authorization"] == f"Bearer {KEY}" and not reply.headers


@pytest.mark.parametrize(
    "pieces", [EVENTS, ["".join(EVENTS)], list("".join(EVENTS)), ["data: a\r\n\r", "\ndata: b\r\n\r\n"], ["x"]]
)
def test_streams_pass_byte_for_byte(api, pieces):
    api.usual = streamed(*pieces)
    reply, whole = passed(api, stream=True)
    assert (reply.status, reply.content_type) == (200, "text/event-stream; charset=utf-8")
    assert whole.decode() == "".join(pieces)


def test_events_pass_as_they_come(api):
    api.usual = streamed("data: 1\n\n", "data: 2\n\n", gap_s=0.3)

    async def run():
        backend = UpstreamBackend(settings(api))
        backend.start()
        reply = await backend.forward("chat/completions", CHAT, True)
        start, times = time.monotonic(), []
        async for _ in reply.body:
            times.append(time.monotonic() - start)
        await backend.close()
        return times

    first, second = asyncio.run(run())
    assert first < 0.15 and 0.25 < second < 0.6


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("code", [400, 404, 408, 413, 422, 429])
def test_errors_of_the_request_pass_byte_for_byte(api, code, stream):
    api.usual = status(code, "no such \x1b thing", retry_after=7)
    reply, whole = passed(api, stream=stream)
    assert reply.status == code and whole == json.dumps({"error": {"message": "no such \x1b thing"}}).encode()
    assert reply.content_type == "application/json" and reply.headers == {"retry-after": "7"}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (status(500, "oh no"), "failed: HTTP status 500: 'oh no'"),
        (status(503, f"key {KEY} is busy"), "failed: HTTP status 503"),
        (status(407, "not you"), "the proxy in front of the upstream"),
        (status(401, f"wrong key {KEY}"), "refuses the gateway's key: HTTP status 401; who runs the gateway sets OPENAI_API_KEY"),
        (status(403, "not you"), "refuses the gateway's key: HTTP status 403"),
        (
            lambda handler, request: send(handler, 307, b"", {"location": f"http://x/?{KEY}"}),
            "redirects .* which is not followed",
        ),
        (lambda handler, request: send(handler, 404, b"<html>", kind="text/html"), "no such model or route"),
        (raw("<html>", "text/html"), "the content type 'text/html' instead of"),
        (lambda handler, request: handler.connection.close(), "was cut"),
    ],
)
def test_faults_of_the_upstream_are_502(api, reply, said, stream):
    api.usual = reply
    error = fault(api, stream=stream)
    assert error.status == 502 and error.body()["error"]["type"] == "upstream_error" and api.url in error.message
    assert re.search(said, error.message), error.message
    assert "not you" not in error.message and len(api.requests) == 1


@pytest.mark.parametrize("body", [b"{not json", b"", b"[" * 100_000, b'{"a": "\xe9"}'])
def test_what_is_no_json_is_502(api, body):
    api.usual = lambda handler, request: send(handler, 200, body)
    assert "a reply that is not JSON" in fault(api).message
    api.usual = cut
    assert "was cut" in fault(api).message


def test_an_upstream_that_is_not_there_is_502_and_a_late_one_504(api):
    gone = Settings(model=MODEL, upstream="http://127.0.0.1:9/v1")
    error = fault(api, upstream=gone.upstream)
    assert error.status == 502 and "http://127.0.0.1:9/v1 cannot be reached (ConnectionRefusedError)" in error.message
    for late in (slow(1.0), dripping):
        api.usual = late
        start = time.monotonic()
        error = fault(api, timeout_s=0.2)
        assert (error.status, error.code) == (504, "timeout") and "did not answer within 0.2 s" in error.message
        assert time.monotonic() - start < 0.8


def test_no_key_comes_back(api):
    api.usual = raw(json.dumps({"choices": [], "echo": KEY}))
    assert "sends the gateway's key back" in fault(api).message
    for words in (f"your {KEY}", f"your {KEY[2:12]}..."):
        api.usual = status(400, words)
        assert fault(api).status in (400, 502)
    api.usual = streamed("data: 1\n\n", f"data: {KEY[:9]}", f"{KEY[9:]}\n\n", "data: 2\n\n")
    read, error = read_on(api)
    assert read == b"data: 1\n\n" and "sends the gateway's key back" in error.message


@pytest.mark.parametrize("stream", [False, True])
def test_headers_that_are_no_text_or_hold_the_key_do_not_pass(api, stream):
    kind, body = ("text/event-stream", "data: 1\n\n") if stream else ("application/json", "{}")

    def told(more):
        def reply(handler, request):
            head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}; x={more}\r\nContent-Length: {len(body)}\r\n\r\n"
            handler.wfile.write((head + body).encode())

        return reply

    for more in ("€", KEY):
        api.usual = told(more)
        reply, whole = passed(api, stream=stream)
        assert (reply.content_type, whole.decode()) == (kind, body)
    api.usual = status(429, "later", retry_after=KEY, retry_after_ms=20)
    assert passed(api, stream=stream)[0].headers == {"retry-after-ms": "20"}


def read_on(api, **changed):
    """Return what is read of a stream until it fails, and how it fails."""

    async def run():
        backend = UpstreamBackend(settings(api, **changed))
        backend.start()
        reply, read = await backend.forward("chat/completions", CHAT, True), b""
        try:
            async for piece in reply.body:
                read += piece
        except GatewayError as error:
            assert backend.client._slots._value == 32 and not leaks(error.message)
            return read, error
        finally:
            await backend.close()

    return asyncio.run(run())


@pytest.mark.parametrize(("reply", "said"), [
    (streamed("data: 1\n\n", 'data: {"hal', cut_off=True), "was cut"),
    (streamed("data: 1\n\n", "data", gap_s=0.5), "did not answer within 0.3 s"),
])  # fmt: skip
def test_a_stream_that_goes_no_further_fails_after_its_last_whole_event(api, reply, said):
    api.usual = reply
    read, error = read_on(api, timeout_s=0.3)
    assert read == b"data: 1\n\n" and said in error.message and error.status in (502, 504)


def test_a_stream_may_take_longer_than_a_reply_as_long_as_it_goes_on(api):
    api.usual = streamed(*EVENTS, gap_s=0.15)
    assert passed(api, stream=True, timeout_s=0.4)[1].decode() == "".join(EVENTS)


@pytest.mark.parametrize("begun", [None, "data: 1\n\n"])
def test_who_leaves_ends_the_upstreams_work(api, begun):
    api.usual = left = Left(begun)

    async def run():
        backend = UpstreamBackend(settings(api))
        backend.start()

        async def read():
            reply = await backend.forward("chat/completions", CHAT, begun is not None)
            async for _ in reply.body:
                pass

        task = asyncio.create_task(read())
        assert await asyncio.to_thread(left.begun.wait, 5)
        await asyncio.sleep(0.05)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        gone = await asyncio.to_thread(left.event.wait, 2)
        free = backend.client._slots._value
        await backend.close()
        return gone, free

    assert asyncio.run(run()) == (True, 32)


def test_a_stream_that_is_never_read_is_closed(api):
    api.usual = left = Left("data: 1\n\n")

    async def run():
        backend = UpstreamBackend(settings(api))
        backend.start()
        reply = await backend.forward("chat/completions", CHAT, True)
        await reply.body.aclose()
        assert await asyncio.to_thread(left.event.wait, 2) and backend.client._slots._value == 32
        await backend.close()

    asyncio.run(run())


def test_a_connection_that_was_closed_while_it_was_kept_loses_no_request(api):
    def gone(handler, request):
        handler.connection.shutdown(socket.SHUT_RDWR)

    async def run():
        backend = UpstreamBackend(settings(api))
        backend.start()
        api.next.extend([kept, gone])
        replies = [await backend.forward("chat/completions", CHAT, False) for _ in range(2)]
        api.next.extend([kept, gone, gone])
        await backend.forward("chat/completions", CHAT, False)
        with pytest.raises(GatewayError, match="was cut"):  # the second time on a connection of its own
            await backend.forward("chat/completions", CHAT, False)
        await backend.close()
        return replies

    first, second = asyncio.run(run())
    assert first.body == second.body and len(api.requests) == 6


def test_no_more_requests_at_once_than_allowed(api):
    api.busy_s = 0.1

    async def run():
        backend = UpstreamBackend(settings(api, concurrency=3))
        backend.start()
        await asyncio.gather(*(backend.forward("chat/completions", CHAT, False) for _ in range(9)))
        await backend.close()

    asyncio.run(run())
    assert api.most == 3 and len(api.requests) == 9


def test_a_limit_of_tokens_is_added_where_there_is_none(api):
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "é"}]}
    for more, sent in (
        ({}, {"max_tokens": 9}),
        ({"max_tokens": 4}, {}),
        ({"max_completion_tokens": 4}, {}),
        ({"max_tokens": None}, {"max_tokens": 9}),
    ):
        passed(api, json.dumps({**asked, **more}).encode(), max_tokens=9)
        assert api.requests[-1] == {**asked, **more, **sent}
    api.usual = answer()
    passed(api, CHAT)
    assert api.bodies[-1] == CHAT
