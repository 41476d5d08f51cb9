from __future__ import annotations

import asyncio
import math
import re

import pytest

from swift_rm.gateway.app.application import create_app
from swift_rm.gateway.http.metrics import Metrics
from swift_rm.gateway.request.settings import Settings
from tests.gateway.running_gateway import CHAT, running
from tests.gateway.scripted_backend import ScriptedBackend, candidate


def settings(**fields):
    return Settings(**{"model": "m", "reward_model": "r", "page": False, **fields})


def test_answers_a_chat_and_a_text_in_openais_form():
    async def run():
        backend = ScriptedBackend()
        async with running(backend, settings()) as gateway:
            chat = await gateway.chat("swift-best-of-4", n=2)
            text = await gateway.ask(
                "POST", "/v1/completions", {"model": "plain", "prompt": ["a", "b"], "return_token_ids": True}
            )
        assert chat.status == 200 and chat.headers["content-type"] == "application/json"
        told = chat.json
        assert told["object"] == "chat.completion" and re.fullmatch("chatcmpl-[0-9a-f]{24}", told["id"])
        assert [one["message"]["content"] for one in told["choices"]] == ["one two", "three"]
        assert [one["reward"] for one in told["choices"]] == [1.0, 0.5]
        assert told["usage"] == {"prompt_tokens": 5, "completion_tokens": 12, "total_tokens": 17}
        assert told["swift"]["rule"] == "best" and told["swift"]["n"] == told["swift"]["drawn"] == 4
        assert backend.asked[0].drawn == 4 and backend.asked[0].chat and not backend.asked[1].chat
        assert [one["text"] for one in text.json["choices"]] == ["one two"] * 2
        assert text.json["choices"][0]["token_ids"] == [0, 1, 2]

    asyncio.run(run())


def test_passes_a_plain_request_on_byte_for_byte():
    from swift_rm.gateway.request.backend import ForwardedReply

    async def pieces():
        yield b"data: {}\n\n"
        yield b"data: [DONE]\n\n"

    async def run():
        backend = ScriptedBackend(forwards=True)
        backend.reply = ForwardedReply(418, "application/teapot", b'{ "odd" :1}', {"x-request-id": "theirs", "retry-after": "7"})
        async with running(backend, settings()) as gateway:
            body = b' {"model": "plain", "messages": "theirs to refuse", "top_p": [1], "n": null}'
            whole = await gateway.ask("POST", CHAT, body)
            backend.reply = ForwardedReply(200, "text/event-stream; charset=utf-8", pieces())
            streamed = await gateway.ask("POST", "/v1/completions", {"model": "plain", "prompt": "a", "stream": True})
            backend.reply = ForwardedReply(200, "application/json", pieces())
            joined = await gateway.chat("plain")
        assert backend.bodies[0] == ("chat/completions", body, False) and backend.bodies[1][0] == "completions"
        assert (whole.status, whole.headers["content-type"], whole.body) == (418, "application/teapot", b'{ "odd" :1}')
        assert whole.headers["retry-after"] == "7" and whole.headers["x-request-id"].startswith("req-")
        assert streamed.headers["content-type"] == "text/event-stream; charset=utf-8" and backend.bodies[1][2] is True
        assert streamed.body == joined.body == b"data: {}\n\ndata: [DONE]\n\n"
        assert joined.headers["content-length"] == str(len(joined.body))

    asyncio.run(run())


@pytest.mark.parametrize(
    ("fields", "words", "status"),
    [
        ({"n": 65}, "65 candidates are more than this server allows, 64", 400),
        ({"max_tokens": 11}, "max_tokens=11 is more than this server allows, 10", 400),
        ({"max_completion_tokens": 11, "max_tokens": 1}, "max_tokens=11", 400),
        ({"messages": [{"role": "user", "content": "x" * 41}]}, "45 characters, and this server takes up to 40", 413),
        ({"abstain_below": 0.5}, "'abstain_below' needs candidates with rewards", 400),
    ],
)
def test_holds_limits_before_passing_on(fields, words, status):
    async def run():
        backend = ScriptedBackend(forwards=True)
        async with running(backend, settings(max_tokens=10, max_prompt_chars=40)) as gateway:
            reply = await gateway.chat("plain", **fields)
        assert reply.status == status and words in reply.message and not backend.bodies

    asyncio.run(run())


def test_refuses_a_rule_without_a_reward_model():
    async def run():
        async with running(ScriptedBackend(forwards=True, rewards=False), settings()) as gateway:
            named = await gateway.chat("swift-vote-8")
            asked = await gateway.chat("plain", best_of=2)
            models = await gateway.get("/v1/models")
            one = await gateway.get("/v1/models/swift-vote-8")
        assert named.status == asked.status == 400 and "without a reward model" in named.message
        assert [model["id"] for model in models.json["data"]] == ["plain"]
        assert one.status == 404 and "no reward model" in one.message

    asyncio.run(run())


def test_lists_models_and_tells_of_each():
    async def run():
        async with running(ScriptedBackend(), settings(max_n=8)) as gateway:
            models = await gateway.get("/v1/models")
            names = [model["id"] for model in models.json["data"]]
            found = [(await gateway.get(f"/v1/models/{name}")).json["id"] for name in [*names, "swift-borda-3"]]
            missing = [
                await gateway.get(f"/v1/models/{name}") for name in ("", "gpt", "swift-best-of-9", "a/b%FF", "swift-rank-2")
            ]
        assert names == ["plain", "swift-best-of-4", "swift-vote-8"] and found == [*names, "swift-borda-3"]
        assert [one.status for one in missing] == [404] * 5
        assert "N up to 8" in missing[2].message and missing[1].json["error"]["code"] == "model_not_found"

    asyncio.run(run())


def test_unknown_routes_and_methods_in_openais_form():
    async def run():
        async with running(ScriptedBackend(), settings()) as gateway:
            nowhere = await gateway.get("/v1/embeddings")
            slash = await gateway.get("/v1/models/?x=1")
            docs = [await gateway.get(path) for path in ("/docs", "/redoc", "/")]
            wrong = await gateway.ask("DELETE", CHAT)
        assert nowhere.status == slash.status == 404 and "/v1/chat/completions" in nowhere.message
        assert [one.status for one in docs] == [404] * 3
        assert wrong.status == 405 and wrong.headers["allow"] == "POST" and "DELETE" in wrong.message

    asyncio.run(run())


def test_health_says_why_not():
    async def slow():
        await asyncio.sleep(60)

    async def run(monkeypatch):
        backend = ScriptedBackend()
        async with running(backend, settings(), token="secret") as gateway:
            well = await gateway.get("/health")
            backend.unwell = "starting"
            unwell = await gateway.get("/health")
            backend.health = slow
            late = await gateway.get("/health")
        assert (well.status, well.json) == (200, {"status": "ok"})
        assert (unwell.status, unwell.json) == (503, {"status": "starting", "reason": "starting"})
        assert late.status == 503 and "no word within 0.05 s" in late.json["reason"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("swift_rm.gateway.app.application.HEALTH_S", 0.05)
        asyncio.run(run(patch))


def test_every_reply_has_careful_headers_and_an_id():
    async def run():
        async with running(ScriptedBackend(), settings(), token="secret") as gateway:
            own = await gateway.get("/health", x_request_id="My_id-1")
            odd = [await gateway.get("/v1/models", x_request_id=one) for one in ("a" * 65, "a b", "<script>")]
        assert own.headers["x-request-id"] == "My_id-1"
        assert all(re.fullmatch("req-[0-9a-f]{24}", one.headers["x-request-id"]) for one in odd)
        for reply in (own, *odd):
            assert reply.headers["x-content-type-options"] == "nosniff" and reply.headers["cache-control"] == "no-store"
            assert reply.headers["referrer-policy"] == "same-origin"

    asyncio.run(run())


def test_a_failure_nobody_foresaw_is_told_without_its_words():
    async def fail():
        raise KeyError("CANARY")

    async def run():
        backend = ScriptedBackend(before=fail)
        backend.health = fail
        async with running(backend, settings()) as gateway:
            replies = [await gateway.chat(), await gateway.chat("plain", stream=True)], [await gateway.get("/health")]
        whole, streamed, health = *replies[0], *replies[1]
        for reply in (whole, health):
            assert reply.status == 500 and reply.headers["x-request-id"] in reply.message and b"CANARY" not in reply.body
        assert streamed.status == 200 and "[DONE]" not in streamed.events  # its first words were said already
        assert streamed.events[-1]["error"]["type"] == "server_error" and b"CANARY" not in streamed.body

    asyncio.run(run())


def test_metrics_count():
    async def run():
        metrics, backend = Metrics(), ScriptedBackend([candidate("a", probability=0.35), candidate("b", probability=0.1)])
        metrics.batch(16, 2, 0.3)
        metrics.reloaded(False)
        async with running(backend, settings(), metrics=metrics) as gateway:
            await gateway.chat("swift-vote-3", n=1)
            await gateway.chat("swift-vote-2", abstain_below=0.9)
            await gateway.chat("plain", best_of=2, select={"made": "up"})
            await gateway.chat("CANARY")
            await gateway.get("/nowhere/CANARY")
            await gateway.get("/v1/models/CANARY")
            backend.candidates = [candidate("a", probability=math.nan)]
            await gateway.chat("plain")
            reply = await gateway.get("/metrics")
        assert reply.headers["content-type"].startswith("text/plain; version=")
        lines = reply.body.decode().splitlines()
        for line in (
            'swift_rm_requests_total{route="/v1/chat/completions",rule="vote",status="200"} 2.0',
            'swift_rm_requests_total{route="/v1/chat/completions",rule="plain",status="200"} 1.0',
            'swift_rm_requests_total{route="/v1/chat/completions",rule="plain",status="400"} 1.0',
            'swift_rm_requests_total{route="/v1/chat/completions",rule="",status="404"} 1.0',
            'swift_rm_requests_total{route="other",rule="",status="404"} 1.0',
            'swift_rm_requests_total{route="/v1/models/{name:path}",rule="",status="404"} 1.0',
            'swift_rm_request_seconds_count{route="/v1/chat/completions"} 5.0',
            "swift_rm_candidates_total 6.0", 'swift_rm_tokens_total{kind="prompt"} 15.0',
            'swift_rm_tokens_total{kind="completion"} 18.0', "swift_rm_abstained_total 1.0", "swift_rm_cancelled_total 0.0",
            'swift_rm_probability_bucket{le="0.3"} 0.0', 'swift_rm_probability_bucket{le="0.4"} 2.0',
            "swift_rm_probability_count 2.0",
            "swift_rm_batch_rows_sum 16.0", "swift_rm_batch_requests_sum 2.0", "swift_rm_batch_seconds_sum 0.3",
            'swift_rm_reward_model_reloads_total{ok="false"} 1.0', "swift_rm_requests_in_progress 1.0",
        ):  # fmt: skip
            assert line in lines, line
        assert "CANARY" not in reply.body.decode() and any(line.startswith("process_resident_memory_bytes") for line in lines)

    asyncio.run(run())


def test_describes_all_of_itself():
    described = create_app(ScriptedBackend(), settings(max_n=9), token="secret").openapi()
    assert set(described["paths"]) == {
        CHAT, "/v1/completions", "/v1/models", "/v1/models/{name}", "/health", "/metrics"
    }  # fmt: skip
    schemas, chat = described["components"]["schemas"], described["paths"][CHAT]["post"]
    assert chat["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/ChatAsked"}
    assert {"ChatAsked", "TextAsked", "Message", "Part", "Error", "ChatCompletion"} <= set(schemas)
    fields = schemas["ChatAsked"]["properties"]
    assert fields["model"]["examples"] == ["plain", "swift-best-of-4", "swift-vote-8"]
    assert fields["best_of"]["anyOf"][0]["maximum"] == 9 and "maximum" not in fields["max_tokens"]["anyOf"][0]
    refs = set(re.findall(r"'\$ref': '#/components/schemas/(\w+)'", str(described)))
    assert refs <= set(schemas) and "'#/$defs" not in str(described)
    assert set(chat["responses"]) == {
        "200", "400", "401", "403", "404", "408", "413", "415", "429", "502", "503", "504"
    }  # fmt: skip
    assert set(chat["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    assert described["security"] == [{"token": []}] and described["paths"]["/health"]["get"]["security"] == []
    assert "security" not in create_app(ScriptedBackend(), settings()).openapi()
    assert all("422" not in one["responses"] for path in described["paths"].values() for one in path.values())


def test_does_not_serve_others_without_a_token():
    with pytest.raises(ValueError, match=r"'0\.0\.0\.0'.* needs a token: set SWIFT_RM_TOKEN"):
        create_app(ScriptedBackend(), settings(host="0.0.0.0"))
    with pytest.raises(ValueError, match="token is empty"):
        create_app(ScriptedBackend(), settings(), token=" ")
