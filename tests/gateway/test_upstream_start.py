"""How a gateway in front of an upstream starts, says how it is, and what its clients see of the upstream's faults."""

import asyncio
import http.client
import json
import socket
import threading

import pytest

from swift_rm.gateway.upstream import backend as upstream
from swift_rm.gateway.upstream.backend import UpstreamBackend
from tests.api.api_server import KEY, MODEL, Left, cut, drawn, fake_api, leaks, status, streamed
from tests.api.best_of_n_runs import reward_model
from tests.gateway.running_gateway import serving
from tests.gateway.upstream_requests import CHAT, fault, settings


def test_health_says_why_nothing_can_be_answered(api, monkeypatch):
    async def look(**changed):
        backend = UpstreamBackend(settings(api, **changed))
        backend.start()
        told = [await backend.health() for _ in range(3)]
        await backend.close()
        assert told[0] == told[1] == told[2]
        return told[0]

    assert asyncio.run(look()) is None  # 404: no list of models
    api.models = []
    assert asyncio.run(look()) is None and api.looks == 2
    api.listed = 401
    assert "refuses the gateway's key" in asyncio.run(look())
    api.listed = 503
    assert "failed: HTTP status 503" in asyncio.run(look())
    assert "cannot be reached" in asyncio.run(look(upstream="http://127.0.0.1:9/v1"))
    monkeypatch.setattr(upstream, "LOOK_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        told = asyncio.run(look(upstream=f"http://127.0.0.1:{silent.getsockname()[1]}/v1"))
    assert "did not answer within 0.1 s" in told


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"upstream": "localhost:8000"}, "'localhost:8000' is no address with a host"),
        ({"upstream": "http://h:99999/v1"}, "is no address"),
        ({"upstream": f"http://h/{KEY}"}, "the endpoint's address holds the key"),
        ({"api_key_env": "NO_SUCH_VARIABLE"}, "the environment variable that is to hold the key is not set"),
        ({"reward_model": "tiny-reasoner-reward"}, "this reward model reads 'hidden', which no API returns"),
        ({"reward_model": "./nowhere"}, "no reward model folder"),
    ],
)
def test_what_cannot_start_says_so(api, changed, said):
    with pytest.raises((ValueError, OSError), match=said) as error:
        UpstreamBackend(settings(api, **changed)).start()
    assert not leaks(error.value)


def test_an_address_with_a_password_and_a_query_shows_neither(api):
    with fake_api() as other:
        address = other.url.replace("http://", "http://me:secret@") + "/?api-version=2"
        other.usual = status(500, "no")
        error = fault(api, upstream=address)
        assert (
            other.paths == ["/v1/chat/completions?api-version=2"]
            and "secret" not in error.message
            and "version" not in error.message
        )


@pytest.fixture
def gateway(api):
    backend = UpstreamBackend(settings(api, retries=0), reward_model())
    backend.start()
    with serving(backend, settings(api)) as address:
        yield address.removeprefix("http://")


def post(gateway, **fields):
    connection = http.client.HTTPConnection(gateway, timeout=10)
    headers = {"Content-Type": "application/json", "Authorization": "Bearer the-clients-own-token"}
    connection.request("POST", "/v1/chat/completions", json.dumps({**json.loads(CHAT), **fields}).encode(), headers)
    return connection


@pytest.mark.parametrize(
    "fields", [{}, {"stream": True}, {"model": "swift-best-of-4"}, {"model": "swift-vote-4", "stream": True}]
)
def test_a_client_that_leaves_ends_the_upstreams_work(api, gateway, fields):
    api.usual = left = Left("data: 1\n\n" if fields == {"stream": True} else None)
    connection = post(gateway, **fields)
    assert left.begun.wait(5) and not left.event.is_set()
    connection.close()
    assert left.event.wait(2)


@pytest.mark.parametrize("model", [MODEL, "swift-best-of-4"])
@pytest.mark.parametrize("reply", [status(500, f"no {KEY}"), cut, status(401, f"your {KEY}")])
def test_an_upstreams_fault_is_502_without_the_key(api, gateway, model, reply):
    api.usual = reply
    told = post(gateway, model=model).getresponse()
    body = told.read().decode()
    assert told.status == 502 and json.loads(body)["error"]["type"] == "upstream_error" and not leaks(body, told.headers)
    assert api.headers[0]["authorization"] == f"Bearer {KEY}"


def test_a_stream_that_is_cut_ends_with_an_error_event(api, gateway):
    api.usual = streamed("data: 1\n\n", "data: {", cut_off=True)
    first, error, end = post(gateway, stream=True).getresponse().read().decode().split("\n\n")
    assert (first, end) == ("data: 1", "")
    assert "was cut" in json.loads(error.removeprefix("data: "))["error"]["message"]


@pytest.mark.parametrize(
    "fields", [{"n": "65"}, {"n": 65.0}, {"max_tokens": "99"}, {"max_tokens": -1}, {"max_completion_tokens": 1, "max_tokens": 99}]
)
def test_no_other_way_to_write_a_number_passes_a_limit(api, fields):
    backend = UpstreamBackend(settings(api))
    backend.start()
    with serving(backend, settings(api, max_tokens=9)) as address:
        told = post(address.removeprefix("http://"), **fields).getresponse()
        assert told.status == 400 and list(fields)[-1] in json.loads(told.read())["error"]["message"] and not api.requests


def test_replies_are_not_mixed_up(api, gateway):
    def own(number):
        asked = [{"role": "user", "content": f"question {number}"}]
        told = json.loads(post(gateway, messages=asked, model="swift-best-of-3" if number % 2 else MODEL).getresponse().read())
        return number, told["choices"][0]["message"]["content"]

    api.busy_s = 0.02
    found = []
    threads = [threading.Thread(target=lambda number=number: found.append(own(number))) for number in range(12)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(found) == 12
    for number, text in found:
        sent = {"messages": [{"role": "user", "content": f"question {number}"}]}
        logprobs = {"top_logprobs": 3} if number % 2 else {}
        assert text in [drawn({**sent, **logprobs}, i)["message"]["content"] for i in range(3)]
