"""Pass requests on to an upstream through its backend, for tests."""

from __future__ import annotations

import asyncio
import json

import pytest

from swift_rm.gateway.request.errors import GatewayError
from swift_rm.gateway.request.settings import Settings
from swift_rm.gateway.upstream.backend import UpstreamBackend
from tests.api.api_server import (
    MODEL,
    leaks,
)

CHAT = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "é 1 + 1"}]}, indent=1).encode()


def settings(api, **changed):
    return Settings(**{"model": MODEL, "upstream": api.url, "timeout_s": 5.0, **changed})


def passed(api, body=CHAT, path="chat/completions", stream=False, **changed):
    """Pass a request on; return the reply and its whole body."""

    async def run():
        backend = UpstreamBackend(settings(api, **changed))
        backend.start()
        try:
            reply = await backend.forward(path, body, stream)
            whole = reply.body if isinstance(reply.body, bytes) else b"".join([piece async for piece in reply.body])
            assert backend.client._slots._value == backend._settings.concurrency
            return reply, whole
        finally:
            await backend.close()

    return asyncio.run(run())


def fault(api, **options):
    with pytest.raises(GatewayError) as raised:
        passed(api, **options)
    assert not leaks(raised.value.message, raised.value.headers) and "1 + 1" not in raised.value.message
    return raised.value
