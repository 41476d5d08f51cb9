"""What the middleware passes on as it is: other requests and replies, bodies that are no JSON, and what the server says."""

import asyncio
import json
from types import SimpleNamespace

import pytest

from swift_rm.integrations.vllm.server.middleware import RewardMiddleware
from tests.integrations.vllm.fake_server import CHAT, JSON, TEXT, ask, reply
from tests.integrations.vllm.middleware.replies import BODY, choices


@pytest.mark.parametrize(
    ("status", "kind", "body"),
    [
        (400, b"application/json", b'{"error": {"message": "bad", "choices": []}}'),
        (401, b"application/json", b'{"error":"Unauthorized"}'),
        (500, b"application/json", b'{"choices": [] }'),
        (200, b"text/plain", b"  {}"),
        (200, b"application/json", b"null"),
        (200, b"application/json", b"{cut"),
        (200, b"application/json", b' { "object" : "error" } '),
    ],
)
def test_what_is_no_completion_passes_byte_for_byte(make, status, kind, body):
    app = make("generating")

    async def vllm(scope, receive, send):
        await receive()
        await reply(send, status, [(b"content-type", kind), (b"x-of-vllm", b"1")], body)

    app.answer = vllm
    answer = ask(app, BODY)
    assert (answer.status, answer.body, answer.headers[b"content-type"]) == (status, body, kind)
    assert answer.headers[b"x-of-vllm"] == b"1"


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'"text"', b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000])
def test_a_body_that_is_no_json_object_reaches_vllm_byte_for_byte(make, body):
    app, got = make("generating"), []

    async def vllm(scope, receive, send):
        got.append((await receive())["body"])
        await reply(send, 400, JSON, b'{"error": {}}')

    app.answer = vllm
    assert ask(app, body).body == b'{"error": {}}' and got == [body]
    odd = json.dumps(BODY, indent=3).encode()
    ask(app, odd, headers=[(b"content-type", b"text/plain")])
    assert got[1] == odd


@pytest.mark.parametrize(
    ("path", "method"), [("/v1/models", "GET"), (CHAT, "GET"), ("/v1/responses", "POST"), ("/v1/chat/completions/batch", "POST")]
)
def test_other_requests_are_none_of_its_business(make, path, method):
    app, got = make("generating"), []

    async def vllm(scope, receive, send):
        got.append((scope, (await receive())["body"]))
        await reply(send, 200, JSON, b'{"choices": [{"index": 0}]}')

    app.answer = vllm
    answer = ask(app, b' {"swift_select": 1}', path, method=method, pieces=1)
    assert answer.body == b'{"choices": [{"index": 0}]}' and got[0][1] == b' {"swift_select": 1}'
    assert got[0][0]["headers"] == JSON


def test_what_is_not_http_and_an_application_without_an_engine_pass(make):
    app, seen = make("generating"), []

    async def vllm(scope, receive, send):
        seen.append((scope, receive, send))

    app.answer = vllm
    given = [({"type": kind}, object(), object()) for kind in ("lifespan", "websocket")]
    for scope, receive, send in given:
        asyncio.run(RewardMiddleware(app)(scope, receive, send))
    app.state = SimpleNamespace()
    given.append(({"type": "http", "path": CHAT, "method": "POST", "app": app}, object(), object()))
    asyncio.run(RewardMiddleware(app)(*given[-1]))
    assert all(a is b for one, other in zip(seen, given, strict=True) for a, b in zip(one, other, strict=True))


def test_a_root_path_is_no_part_of_the_route(make):
    app = make("generating")
    app.answer = None
    assert "reward" in choices(ask(app, {"model": "m", "prompt": "1+1"}, TEXT, root="/llm"))[0]


def test_who_has_no_key_sends_no_body(make):
    app = make("generating")

    async def locked(scope, receive, send):
        await reply(send, 401, JSON, b'{"error":"Unauthorized"}')

    app.answer = locked
    answer = ask(app, BODY, pieces=4)
    assert answer.status == 401 and answer.left == 4  # pieces that nobody read


def test_what_the_server_says_after_the_body_reaches_vllm(make):
    app, heard = make("generating"), []

    async def vllm(scope, receive, send):
        heard.extend([await receive(), await receive()])
        await reply(send, 200, JSON, b"null")

    app.answer = vllm
    messages = [{"type": "http.request", "body": b'{"n":'}, {"type": "http.disconnect"}, {"type": "http.disconnect"}]

    async def run(parts):
        async def receive():
            return parts.pop(0)

        async def send(message):
            pass

        scope = {"type": "http", "method": "POST", "path": CHAT, "headers": JSON, "app": app}
        await RewardMiddleware(app)(scope, receive, send)

    messages[0]["more_body"] = True
    asyncio.run(run(list(messages)))
    assert heard == [{"type": "http.disconnect"}] * 2
    heard.clear()
    asyncio.run(run([{"type": "http.request", "body": json.dumps(BODY).encode()}, {"type": "http.disconnect"}]))
    assert json.loads(heard[0]["body"])["n"] == 4 and heard[1] == {"type": "http.disconnect"}
