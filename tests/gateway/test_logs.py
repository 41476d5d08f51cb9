from __future__ import annotations

import asyncio
import json
import logging
import re
import warnings

import pytest

from swift_rm.gateway.http.logs import CAP, LOGGER, OTHERS, capped, configure, log_event, log_failure
from swift_rm.gateway.request.settings import Settings
from tests.gateway.running_gateway import CHAT, running
from tests.gateway.scripted_backend import ScriptedBackend, candidate

CANARY = "CANARY"


def settings(**fields):
    return Settings(**{"model": "m", "reward_model": "r", "page": False, **fields})


@pytest.fixture
def logged(capsys):
    """Configure logs, and return the lines on stderr since; the loggers are as before at the end."""
    names = (LOGGER, *OTHERS, "uvicorn.error", "uvicorn.access", "uvicorn.asgi")
    before = {
        name: (logging.getLogger(name).handlers, logging.getLogger(name).propagate, logging.getLogger(name).level)
        for name in names
    }

    def start(**fields):
        configure(settings(**fields))
        return lambda: capsys.readouterr().err.splitlines()

    yield start
    logging.captureWarnings(False)
    for name, (handlers, propagate, level) in before.items():
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def test_a_request_is_one_line_of_json(logged):
    lines = logged()

    async def run():
        async with running(ScriptedBackend(), settings()) as gateway:
            await gateway.chat("swift-vote-4", x=1)
            await gateway.get("/v1/models?q=CANARY", x_request_id="mine")

    asyncio.run(run())
    events = [json.loads(line) for line in lines()]
    chat, models = (event for event in events if event["event"] == "request")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", chat["ts"]) and 0 < chat.pop("seconds") < 5
    assert chat.pop("id").startswith("req-") and chat.pop("ts")
    assert chat == {
        "level": "info", "event": "request", "method": "POST", "route": CHAT, "status": 200, "model": "swift-vote-4",
        "rule": "vote", "n": 4, "stream": False, "prompt_tokens": 5, "completion_tokens": 12, "probability": 0.75,
    }  # fmt: skip
    assert (models["id"], models["route"], models["status"]) == ("mine", "/v1/models", 200)
    assert any(event["event"] == "server" and event["logger"] == "uvicorn" for event in events)  # its own go the same way


def test_nothing_of_a_request_is_in_the_log(logged):
    lines = logged(log_level="debug")

    async def fail():
        try:
            raise KeyError(CANARY)
        except KeyError as error:
            raise ValueError(f"{CANARY} {error}") from error

    async def run():
        backend = ScriptedBackend([candidate(f"{CANARY} answer")])
        secret = {"authorization": f"Bearer {CANARY}", "x_request_id": f"{CANARY} <>", "user_agent": CANARY}
        async with running(backend, settings(), token=CANARY) as gateway:
            for body in (
                {"model": "plain", "messages": [{"role": "user", "content": CANARY}], "user": CANARY},
                {"model": "plain", "messages": [{"role": "user", "content": CANARY}], "stream": True},
                {"model": CANARY}, {"model": "plain", "messages": CANARY},
                {"model": "plain", "best_of": CANARY, "select": CANARY},
                {"model": "plain", "best_of": [CANARY], "select": {CANARY: CANARY}}, CANARY.encode(), f'"{CANARY}'.encode(),
            ):  # fmt: skip
                await gateway.ask("POST", CHAT, body, **secret)
            for method, path in (
                ("GET", f"/{CANARY}"),
                (CANARY, "/v1/models"),
                ("GET", f"/v1/models/{CANARY}?{CANARY}={CANARY}"),
            ):
                await gateway.ask(method, path, **secret)
            await gateway.ask("POST", CHAT, {"model": "plain"}, authorization=f"Bearer {CANARY}x")
            backend.before = fail
            for stream in (False, True):
                asked = {"model": "swift-vote-2", "messages": [{"role": "user", "content": CANARY}], "stream": stream}
                assert (await gateway.ask("POST", CHAT, asked, **secret)).status == 500

        async def lost():
            raise ValueError(CANARY)

        task = asyncio.create_task(lost())  # nobody asks for its result
        await asyncio.sleep(0)
        del task

    asyncio.run(run())
    written = lines()
    assert CANARY not in "\n".join(written)
    events = [json.loads(line) for line in written]
    assert sum(event["event"] == "request" for event in events) == 14
    failures = [event for event in events if event["event"] == "failure"]
    assert len(failures) == 2 and failures[0]["exception"] == ["ValueError", "KeyError"]
    assert failures[0]["frames"][-1].endswith(" fail") and failures[0]["level"] == "error"
    assert any(event.get("logger") == "asyncio" and event.get("exception") == ["ValueError"] for event in events)


def test_content_is_logged_if_asked_for(logged):
    lines = logged(log_content=True)

    async def run():
        long = "x" * (CAP + 1)
        async with running(ScriptedBackend([candidate("line\n\x1b[31mred")]), settings(log_content=True)) as gateway:
            await gateway.chat("swift-vote-2", messages=[{"role": "user", "content": "27 + 15"}])
            await gateway.ask("POST", "/v1/completions", {"model": "plain", "prompt": long})
        async with running(ScriptedBackend(forwards=True), settings(log_content=True)) as gateway:
            await gateway.chat("plain")

    asyncio.run(run())
    written = [line for line in lines() if '"request"' in line]
    chat, text, passed = map(json.loads, written)
    assert chat["answer"] == "line\n\x1b[31mred" and "\x1b" not in written[0] and "27 + 15" in chat["prompt"]
    assert text["prompt"] == "x" * CAP + f"... ({CAP + 1} characters)" == capped("x" * (CAP + 1))
    assert passed["answer"] == '{"id": 1}' and "27 + 15" in passed["prompt"]


def test_text_for_people_and_levels(logged):
    lines = logged(log_format="text", log_level="warning")
    log_event(logging.INFO, "quiet")
    log_event(logging.WARNING, "loud", where="a\nb", n=3)
    log_failure("failure", OSError(CANARY))
    logging.getLogger("uvicorn.access").warning(CANARY)
    loud, failure = lines()
    assert loud.endswith('WARNING loud where="a\\nb" n=3') and failure.endswith('ERROR   failure exception=["OSError"] frames=[]')


def test_a_warning_is_a_line_too(logged):
    lines = logged()
    warnings.warn("memory is short\n  the code", stacklevel=1)
    (event,) = map(json.loads, lines())
    assert (event["level"], event["logger"]) == ("warning", "py")
    assert "memory is short" in event["message"], "in the form that whoever runs this process has chosen"
