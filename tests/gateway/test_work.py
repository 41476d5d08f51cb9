"""What becomes of work: over the limit, too slow, its client gone; and streams, before and after their head."""

from __future__ import annotations

import asyncio
import json
from http.client import HTTPConnection

import pytest

from swift_rm.gateway.app.completions import QueueLimit
from swift_rm.gateway.http.disconnects import run_while_connected
from swift_rm.gateway.http.metrics import Metrics
from swift_rm.gateway.request.backend import ForwardedReply
from swift_rm.gateway.request.errors import GatewayError
from swift_rm.gateway.request.settings import Settings
from tests.gateway.running_gateway import CHAT, running, until
from tests.gateway.scripted_backend import ScriptedBackend, candidate

MESSAGES = [{"role": "user", "content": "27 + 15"}]


def settings(**fields):
    return Settings(**{"model": "m", "reward_model": "r", "page": False, **fields})


def counted(metrics, name):
    return next(float(line.split()[1]) for line in metrics.text().decode().splitlines() if line.startswith(f"{name} "))


async def forever():
    await asyncio.Event().wait()


def test_a_full_server_refuses_exactly_the_surplus():
    async def run():
        gate, metrics = asyncio.Event(), Metrics()
        backend = ScriptedBackend(before=gate.wait)
        async with running(backend, settings(queue=4), metrics=metrics) as gateway:
            asked = [asyncio.create_task(gateway.chat(stream=i % 2 == 0)) for i in range(11)]
            await until(lambda: sum(one.done() for one in asked) == 7 and backend.begun == 4)
            gate.set()
            replies = await asyncio.gather(*asked)
            after = await gateway.chat()
        refused = [one for one in replies if one.status == 429]
        assert len(refused) == 7 and after.status == 200 and [one.status for one in replies].count(200) == 4
        assert refused[0].headers["retry-after"] == "1" and refused[0].json["error"]["type"] == "rate_limit_error"
        assert counted(metrics, "swift_rm_rejected_total") == 7

    asyncio.run(run())


def test_a_place_is_free_again_however_its_request_ended():
    admission = QueueLimit(1)
    with pytest.raises(KeyError), admission:
        assert admission.inside == 1
        raise KeyError
    with admission, pytest.raises(GatewayError, match="full"), admission:
        pass
    assert admission.inside == 0


@pytest.mark.parametrize("kind", ["whole", "chosen", "live", "forwarded", "forwarded stream"])
def test_what_is_too_slow_is_ended_with_504(kind):
    async def run():
        backend = ScriptedBackend(before=forever, forwards=kind.startswith("forwarded"), pieces=())
        backend.live = _silent(backend)
        model = "swift-best-of-2" if kind in ("whole", "chosen") else "plain"
        async with running(backend, settings(timeout_s=0.1)) as gateway:
            reply = await gateway.chat(model, stream=kind not in ("whole", "forwarded"))
        assert reply.status == 504 and "no reply within 0.1 s" in reply.message and backend.cancelled == 1

    asyncio.run(run())


def _silent(backend):
    async def live(asking):
        await backend._ready()
        yield

    return live


@pytest.mark.parametrize("kind", ["whole", "chosen", "live", "forwarded", "forwarded stream"])
def test_work_ends_when_its_client_leaves(kind):
    async def run():
        metrics = Metrics()
        backend = ScriptedBackend(before=forever, forwards=kind.startswith("forwarded"))
        model = "swift-best-of-2" if kind in ("whole", "chosen") else "plain"
        async with running(backend, settings(queue=1), metrics=metrics) as gateway:
            asked = {"model": model, "messages": MESSAGES, "stream": kind not in ("whole", "forwarded")}
            reader, writer = await gateway.open("POST", CHAT, asked)
            if kind == "live":
                assert b"one " in await reader.readuntil(b"one ")
            await until(lambda: backend.begun == 1)
            writer.close()
            await until(lambda: backend.cancelled == 1 and counted(metrics, "swift_rm_cancelled_total") == 1)
            backend.before = None
            assert (await gateway.chat(model)).status == 200  # its place is free
        assert (
            f'route="{CHAT}",rule="{"best" if kind in ("whole", "chosen") else "plain"}",status="499"' in metrics.text().decode()
        )

    asyncio.run(run())


def test_an_upstreams_stream_is_closed_when_its_client_leaves():
    async def run():
        closed = []

        async def pieces():
            try:
                yield b"data: 1\n\n"
                await forever()
            finally:
                closed.append(True)

        backend = ScriptedBackend(forwards=True)
        backend.reply = ForwardedReply(200, "text/event-stream", pieces())
        async with running(backend, settings()) as gateway:
            reader, writer = await gateway.open("POST", CHAT, {"model": "plain", "messages": MESSAGES, "stream": True})
            await reader.readuntil(b"data: 1")
            writer.close()
            await until(lambda: closed)

    asyncio.run(run())


def test_streams_the_winner_word_by_word():
    async def run():
        async with running(ScriptedBackend(), settings()) as gateway:
            reply = await gateway.chat(stream=True, stream_options={"include_usage": True})
        assert reply.status == 200 and reply.headers["content-type"] == "text/event-stream"
        *chunks, told, done = reply.events
        assert done == "[DONE]" and told["choices"] == [] and told["usage"]["completion_tokens"] == 6
        assert [one["choices"][0]["delta"].get("content") for one in chunks] == ["one ", "two", None]
        assert chunks[0]["choices"][0]["delta"]["role"] == "assistant" and chunks[-1]["choices"][0]["finish_reason"] == "stop"
        assert len({one["id"] for one in (*chunks, told)}) == 1 and chunks[-1]["choices"][0]["reward"] == 1.0

    asyncio.run(run())


def test_streams_a_plain_response_as_it_comes():
    async def run():
        gate = asyncio.Event()
        backend = ScriptedBackend(before=gate.wait)
        async with running(backend, settings()) as gateway:
            asked = {"model": "plain", "messages": MESSAGES, "stream": True, "n": 2, "stream_options": {"include_usage": True}}
            reader, writer = await gateway.open("POST", CHAT, asked)
            early = await asyncio.wait_for(reader.readuntil(b"one "), 5)
            assert b" 200 OK" in early and not gate.is_set()
            gate.set()
            rest = await asyncio.wait_for(reader.read(), 5)
            writer.close()
        lines = [line[6:] for line in (early + rest).decode().splitlines() if line.startswith("data: {")]
        *chunks, told = [json.loads(line) for line in lines]
        said = [(one["choices"][0]["index"], one["choices"][0]["delta"].get("content")) for one in chunks]
        assert said == [(0, "one "), (0, "two"), (0, None), (1, "one "), (1, "two"), (1, None)]
        assert [one["choices"][0]["finish_reason"] for one in chunks] == [None, None, "stop"] * 2
        assert told["usage"] == {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}
        assert rest.rstrip().endswith(b"data: [DONE]\n\n\r\n0") and backend.asked[0].returned == 2

    asyncio.run(run())


def test_a_response_without_text_still_begins():
    async def run():
        backend = ScriptedBackend(pieces=())
        async with running(backend, settings()) as gateway:
            reply = await gateway.chat("plain", stream=True)
        first, last, done = reply.events
        assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""} and done == "[DONE]"
        assert last["choices"][0]["finish_reason"] == "stop"

    asyncio.run(run())


def test_a_stream_that_fails_before_its_head_has_a_status():
    async def fail():
        raise GatewayError(502, "the upstream is gone", headers={"retry-after": "3"})

    async def run():
        chosen, passed = ScriptedBackend(before=fail), ScriptedBackend(before=fail, forwards=True)
        for backend, model in ((chosen, "swift-vote-2"), (passed, "plain")):
            async with running(backend, settings()) as gateway:
                reply = await gateway.chat(model, stream=True)
            assert reply.status == 502 and reply.message == "the upstream is gone" and reply.headers["retry-after"] == "3"

    asyncio.run(run())


def test_a_stream_that_waits_says_so_and_may_still_fail(monkeypatch):
    async def run():
        gate = asyncio.Event()

        async def fail():
            await gate.wait()
            raise GatewayError(502, "the upstream is gone")

        for before in (gate.wait, fail):
            gate.clear()
            async with running(ScriptedBackend(before=before), settings()) as gateway:
                reader, writer = await gateway.open(
                    "POST", CHAT, {"model": "swift-best-of-2", "messages": MESSAGES, "stream": True}
                )
                head = await asyncio.wait_for(reader.readuntil(b": waiting\n\n"), 5)
                await asyncio.wait_for(reader.readuntil(b": waiting\n\n"), 5)
                gate.set()
                rest = await asyncio.wait_for(reader.read(), 5)
                writer.close()
            assert b" 200 OK" in head
            if before is fail:
                assert b'data: {"error":{"message":"the upstream is gone"' in rest and b"[DONE]" not in rest
            else:
                assert rest.count(b"data: ") == 4 and b"[DONE]" in rest

    monkeypatch.setattr("swift_rm.gateway.app.completions.PATIENCE_S", 0.05)
    asyncio.run(run())


def test_a_live_stream_may_be_slow_between_pieces_once_but_not_for_ever():
    async def run():
        waits = iter([0.15, 0.15, 0.15, 60])

        async def before():
            await asyncio.sleep(next(waits))

        backend = ScriptedBackend(before=before, pieces=("a", "b", "c", "d"))
        async with running(backend, settings(timeout_s=0.3)) as gateway:
            reply = await gateway.chat("plain", stream=True)
        *chunks, error = reply.events
        assert [one["choices"][0]["delta"]["content"] for one in chunks] == ["a", "b", "c", "d"]
        assert "no reply within 0.3 s" in error["error"]["message"] and backend.cancelled == 1

    asyncio.run(run())


def test_an_upstreams_reply_that_breaks_is_not_completed():
    async def run():
        async def pieces():
            yield b'{"half": '
            raise GatewayError(502, "the upstream is gone")

        backend = ScriptedBackend([candidate("a")], forwards=True)
        async with running(backend, settings()) as gateway:
            backend.reply = ForwardedReply(200, "application/json", pieces())
            whole = await gateway.chat("plain")
            backend.reply = ForwardedReply(200, "application/octets", pieces())
            reader, writer = await gateway.open("POST", CHAT, {"model": "plain", "messages": MESSAGES, "stream": True})
            broken = await reader.read()
            writer.close()
        assert whole.status == 502
        assert broken.endswith(b'{"half": \r\n')  # no last chunk: a client sees that there was more to come

    asyncio.run(run())


def test_a_request_that_the_end_of_the_server_cuts_off_is_told_so(caplog):
    async def run():
        async with running(ScriptedBackend(), settings()) as gateway:
            reader, writer = await gateway.open("POST", CHAT, b"{", content_length=99)
            await until(lambda: gateway.server.server_state.tasks)
            await asyncio.sleep(0.02)
            for task in gateway.server.server_state.tasks:  # as uvicorn does after the drain
                task.cancel()
            return await gateway.reply(reader, writer)

    reply = asyncio.run(run())
    assert (reply.status, reply.json["error"]["code"]) == (503, "stopping") and "x-request-id" in reply.headers
    assert "Exception" not in caplog.text


def test_a_client_that_leaves_a_fast_stream_does_not_fill_the_log(caplog):
    def leave(port):
        client = HTTPConnection("127.0.0.1", port)
        asked = {"model": "plain", "messages": MESSAGES, "stream": True}
        client.request("POST", CHAT, json.dumps(asked), {"content-type": "application/json"})
        client.getresponse().close()  # with much of it not read, so that writes fail

    async def run():
        async with running(ScriptedBackend(pieces=("word ",) * 20_000), settings()) as gateway:
            await asyncio.to_thread(leave, gateway.port)

    asyncio.run(run())
    assert "socket.send()" not in caplog.text


def test_work_that_others_cancel_is_no_cancellation_of_the_request():
    async def run():
        async def work():
            raise asyncio.CancelledError

        with pytest.raises(GatewayError, match="about to end") as refusal:
            await run_while_connected(forever, work())
        assert refusal.value.status == 503 and len(asyncio.all_tasks()) == 1

    asyncio.run(run())
