"""Bodies made from the gateway's own OpenAPI description, right and wrong ones: no crash, no leak, every status described."""

import json
import threading
from contextlib import contextmanager

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from swift_rm import SwiftConfig, SwiftRewardModel
from swift_rm.gateway.local.backend import LocalBackend
from swift_rm.gateway.request.settings import Settings
from swift_rm.gateway.upstream.backend import UpstreamBackend
from swift_rm.models.load import TINY, TINY_REWARD, load_language_model, resolve
from tests.api.api_server import KEY
from tests.gateway.running_gateway import serving

PATHS = ("/v1/chat/completions", "/v1/completions")
CHECKS = [status_code_conformance, content_type_conformance]
SOUND = {"temperature", "top_p", "top_k", "seed", "stop", "stream", "stream_options", "abstain_below", "return_candidates"}
CANARY = "canary-7f3a9c"  # in another user's prompt


@pytest.fixture(scope="module")
def local():
    loaded = (*load_language_model(TINY, progress=False), SwiftRewardModel.from_pretrained(resolve(TINY_REWARD)))
    limits = {"max_tokens": 4, "max_n": 4, "batch_wait_ms": 0.0, "queue": 4096}
    options = Settings(model=TINY, reward_model=TINY_REWARD, **limits)
    backend = LocalBackend(options, loaded)
    backend.start()
    with serving(backend, options, token=KEY) as address:
        yield address, TINY


@pytest.fixture
def upstream(api):
    rm = SwiftRewardModel(SwiftConfig.of_top_logprobs(0, base_model="tiny"))
    options = Settings(model="tiny", reward_model="r", upstream=api.url, max_n=4, max_tokens=4, retries=0)
    backend = UpstreamBackend(options, rm)
    backend.start()
    with serving(backend, options, token=KEY) as address:
        yield address, "tiny"


@contextmanager
def another_user(address, model):
    """Ask something secret again and again, beside what is tested."""
    over = threading.Event()

    def run():
        with httpx2.Client(base_url=address, headers={"Authorization": f"Bearer {KEY}"}, timeout=30, trust_env=False) as client:
            while not over.wait(0.05):
                client.post(PATHS[0], json={"model": model, "messages": [{"role": "user", "content": CANARY}], "max_tokens": 2})

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def fuzz(address, model, examples, forwards):
    """Send so many bodies, a quarter to each path of right ones and of wrong ones, and check every reply."""
    headers = {"Authorization": f"Bearer {KEY}"}
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json", headers=headers)
    names = st.sampled_from([None, model, model, "swift-best-of-2", "swift-vote-3", "swift-best-of-999", "swift-none-2"])
    checks = CHECKS if forwards else [*CHECKS, response_schema_conformance]  # what passes through is as the upstream made it
    statuses = []
    many = settings(
        max_examples=examples // 4, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True
    )

    def check(path, mode):
        @many
        @given(case=schema[path]["POST"].as_strategy(generation_mode=mode), name=names, sound=st.booleans())
        def sent(case, name, sound):
            if name and isinstance(case.body, dict):
                case.body = {**({key: case.body[key] for key in SOUND & set(case.body)} if sound else case.body), "model": name}
                if sound:  # what is right but for these fields, so that much of it reaches the model
                    case.body |= {"messages": [{"role": "user", "content": "27+15"}], "prompt": "27+15", "max_tokens": 3}
            reply = case.call(headers=headers)
            case.validate_response(reply, checks=checks, headers=headers)
            said = reply.content.decode()
            assert KEY not in said and CANARY not in said and "Traceback" not in said
            if reply.status_code >= 400:
                error = json.loads(said)["error"]
                assert error["message"], "every refusal has a sentence"
                assert reply.status_code < 500 or (forwards and error["type"] == "upstream_error"), said
            statuses.append(reply.status_code)

        sent()

    with another_user(address, model):
        for path in PATHS:
            for mode in schemathesis.GenerationMode:
                check(path, mode)
    return statuses


@pytest.mark.parametrize("where", ["local", "upstream"])
def test_no_body_breaks_the_gateway(where, request):
    address, model = request.getfixturevalue(where)
    statuses = fuzz(address, model, 160, where == "upstream")
    assert statuses.count(200) > 10 and {400, 404} <= set(statuses), f"right and wrong bodies were sent: {sorted(statuses)}"


@pytest.mark.servers
@pytest.mark.parametrize("where", ["local", "upstream"])
def test_ten_thousand_bodies_break_nothing(where, request):
    address, model = request.getfixturevalue(where)
    statuses = fuzz(address, model, 10_000, where == "upstream")
    assert len(statuses) >= 9_000, "hypothesis may find fewer that are different"
    assert statuses.count(200) > 100


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    body=st.one_of(st.binary(max_size=64), st.text(max_size=32).map(str.encode), st.integers(1, 20_000).map(lambda n: b"[" * n))
)
def test_bytes_that_are_no_json_are_refused(local, body):
    address, _ = local
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    reply = httpx2.post(address + PATHS[0], content=body, headers=headers, trust_env=False)
    assert reply.status_code == 400 and reply.json()["error"]["type"] == "invalid_request_error"
