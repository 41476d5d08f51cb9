"""A backend with a small model here, and what it answers to requests, for tests."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from swift_rm.gateway.local.backend import LocalBackend
from swift_rm.gateway.request.completion_request import CompletionRequest
from swift_rm.gateway.request.errors import GatewayError
from swift_rm.gateway.request.settings import Settings

SETTINGS = Settings(model="tiny-reasoner", reward_model="tiny-reasoner-reward")


@asynccontextmanager
async def serving(loaded, batches=None, **settings):
    backend = LocalBackend(replace(SETTINGS, **settings), loaded, lambda *told: None if batches is None else batches.append(told))
    backend.start()
    try:
        yield backend
    finally:
        await backend.close()


def message(text):
    return [{"role": "user", "content": text}]


def ask(text="27+15", rule=None, n=1, **fields):
    return CompletionRequest(True, "m", [message(text)], rule, n, fields.pop("returned", 1 if rule else n), **fields)


def answers(loaded, *askings, batches=None, views=False, **settings):
    """Return what requests that come at once are answered."""

    async def run():
        async with serving(loaded, batches, **settings) as backend:
            return await asyncio.gather(*(backend.answer(one, views) for one in askings))

    return asyncio.run(run())


def refusal(loaded, asking, **settings):
    with pytest.raises(GatewayError) as caught:
        answers(loaded, asking, **settings)
    return caught.value
