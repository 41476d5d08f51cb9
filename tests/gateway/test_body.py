from __future__ import annotations

import asyncio
import json
import time
from http.client import HTTPConnection

import pytest

from swift_rm.gateway.http.body import parse
from swift_rm.gateway.request.errors import GatewayError
from swift_rm.gateway.request.settings import Settings
from tests.gateway.running_gateway import CHAT, running
from tests.gateway.scripted_backend import ScriptedBackend

SETTINGS = Settings(model="m", reward_model="r", page=False, max_body_kib=2)
GOOD = {"model": "plain", "messages": [{"role": "user", "content": "27 + 15"}]}


def nested(depth):
    return b'{"a": ' + b"[" * depth + b"]" * depth + b"}"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "the body is no JSON: expecting value at line 1, column 1"),
        (b'{"model": CANARY}', "no JSON: expecting value at line 1, column 11"),
        (b'{"model": "pl\xff"}', "not UTF-8: see byte 13"),
        (b'\xef\xbb\xbf{"model": "plain"}', "no JSON"),
        (json.dumps(GOOD).encode("utf-16"), "not UTF-8"),
        (b'{"temperature": NaN}', "NaN is no number"),
        (b'{"temperature": -Infinity}', "-Infinity is no number"),
        (b"[1]", "must be a JSON object, got list"),
        (b'"CANARY"', "must be a JSON object, got str"),
        (b'{"n": ' + b"9" * 5000 + b"}", "integer of more digits than are read"),
        (b'{"CANARY": "\\ud83d"}', "half of a surrogate pair"),
        (b'{"\\udc00": 1}', "half of a surrogate pair"),
        (nested(64), "more than 64 deep"),
        (nested(200_000), "more than 64 deep"),
        (b'{"a": ' * 100_000, "more than 64 deep"),
    ],
)
def test_refuses_what_is_no_object_without_its_content(body, words):
    with pytest.raises(GatewayError, match=words) as refusal:
        parse(body)
    assert refusal.value.status == 400 and "CANARY" not in refusal.value.message


def test_reads_what_is_one():
    assert parse(nested(63)) and parse(b' {"a": 1, "a": 2}\n') == {"a": 2}
    assert parse('{"é": "\\ud83d\\ude00 \U0001f600", "n": 1e400}'.encode()) == {"é": "\U0001f600 \U0001f600", "n": float("inf")}
    assert parse(b'{"n": ' + b"9" * 4000 + b"}")["n"] == 10**4000 - 1


@pytest.mark.parametrize("asked", [{"n": 10**4000}, {"best_of": 10**4000}, {"max_tokens": 10**4000}, {"temperature": 10**4000}])
def test_numbers_of_any_size_are_refused_or_taken(asked):
    async def run():
        async with running(ScriptedBackend(), Settings(model="m", reward_model="r", page=False)) as gateway:
            reply = await gateway.chat("plain", **asked)
        assert reply.status in (200, 400)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 200), ("Application/JSON; charset=utf-8", 200), ("text/plain", 415), (None, 415),
        ("application/x-www-form-urlencoded", 415), ("multipart/form-data", 415), ("application/jsonx", 415),
    ],
)  # fmt: skip
def test_takes_nothing_but_json_by_its_type(kind, status):
    async def run():
        async with running(ScriptedBackend(), SETTINGS) as gateway:
            reply = await gateway.ask("POST", CHAT, GOOD, content_type=kind)
            zipped = await gateway.ask("POST", CHAT, GOOD, content_encoding="gzip")
        assert reply.status == status and (status == 200 or "application/json" in reply.message)
        assert zipped.status == 415 and "compressed" in zipped.message

    asyncio.run(run())


def test_a_body_over_the_limit_is_not_read_to_its_end():
    async def run():
        backend = ScriptedBackend()
        async with running(backend, SETTINGS) as gateway:
            fits = {**GOOD, "user": ""}
            fits["user"] = "x" * (2048 - len(json.dumps(fits)))
            assert (await gateway.ask("POST", CHAT, fits)).status == 200
            over = await gateway.ask("POST", CHAT, {**fits, "user": fits["user"] + "x"})
            told = await gateway.ask("POST", CHAT, b"{}", content_length=10**12, connection="keep-alive")
            reader, writer = await gateway.open("POST", CHAT, content_length=None, transfer_encoding="chunked", connection=None)
            for _ in range(3):  # never ended
                writer.write(b"400\r\n" + b"x" * 1024 + b"\r\n")
            endless = await gateway.reply(reader, writer)
        for reply in (over, told, endless):
            assert reply.status == 413 and "2 KiB" in reply.message and reply.headers["connection"] == "close"
        assert len(backend.asked) == 1

    asyncio.run(run())


@pytest.mark.parametrize(("kind", "status"), [("application/json", 413), ("text/plain", 415)])
def test_a_client_that_sends_all_of_a_large_body_gets_the_sentence_and_may_ask_again(kind, status):
    def send(port):
        client = HTTPConnection("127.0.0.1", port, timeout=20)
        client.request("POST", CHAT, b"x" * 2**23, {"content-type": kind})
        refused = client.getresponse()
        told = refused.status, refused.read()
        client.request("GET", "/health")
        return *told, client.getresponse().status

    async def run():
        async with running(ScriptedBackend(), SETTINGS) as gateway:
            return await asyncio.to_thread(send, gateway.port)

    got, body, health = asyncio.run(run())
    assert (got, health) == (status, 200) and b"the body " in body


def test_a_body_in_pieces_is_read_and_one_that_stops_ends(monkeypatch):
    async def run():
        backend = ScriptedBackend()
        async with running(backend, SETTINGS) as gateway:
            body = json.dumps(GOOD).encode()
            reader, writer = await gateway.open("POST", CHAT, body[:10], content_length=len(body))
            await asyncio.sleep(0.05)
            writer.write(body[10:])
            assert (await gateway.reply(reader, writer)).status == 200
            monkeypatch.setattr("swift_rm.gateway.app.completions.BODY_S", 0.2)
            reader, writer = await gateway.open("POST", CHAT, body[:10], content_length=len(body))
            began = time.perf_counter()
            slow = await gateway.reply(reader, writer)
            assert 0.15 < time.perf_counter() - began < 5
            reader, writer = await gateway.open("POST", CHAT, body[:10], content_length=len(body))
            writer.close()
        assert slow.status == 408 and "0.2 s" in slow.message and slow.headers["connection"] == "close"
        assert len(backend.asked) == 1

    asyncio.run(run())
