"""What a backend answers before it is loaded and after the drain, and what becomes of what is under way."""

import asyncio

import pytest

from swift_rm.gateway.app.backend_lifecycle import BackendLifecycle
from swift_rm.gateway.request.backend import Delta
from swift_rm.gateway.request.completion_request import CompletionRequest
from swift_rm.gateway.request.errors import GatewayError
from tests.gateway.stub import Stub

ASKING = CompletionRequest(True, "stub", [[{"role": "user", "content": "x"}]])


class Slow(Stub):
    """A backend whose answers take until they are cancelled, and whose streams note that they were closed."""

    cancelled = closed = 0

    async def answer(self, asking, views=False):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def live(self, asking):
        try:
            while True:
                yield Delta(0, "x")
                await asyncio.sleep(0.001)
        finally:
            self.closed += 1


def told(error):
    return error.value.status, error.value.code, error.value.headers


def test_nothing_is_answered_before_it_is_loaded():
    async def run():
        lifetime = BackendLifecycle(Stub())
        assert await lifetime.health() == "starting"
        for work in (lifetime.answer(ASKING), lifetime.forward("completions", b"", False), anext(lifetime.live(ASKING))):
            with pytest.raises(GatewayError) as error:
                await work
            assert told(error) == (503, "starting", {"retry-after": "5"})
        with pytest.raises(GatewayError):
            _ = lifetime.name
        lifetime.open()
        assert (lifetime.name, await lifetime.health()) == ("stub", None)
        assert (await lifetime.answer(ASKING))[0].drawn == 1

    asyncio.run(run())


def test_the_end_cancels_what_is_under_way_and_says_so():
    async def run():
        backend = Slow()
        lifetime = BackendLifecycle(backend)
        lifetime.open()
        working = [asyncio.ensure_future(lifetime.answer(ASKING)) for _ in range(3)]
        await asyncio.sleep(0.01)
        pieces = lifetime.live(ASKING)
        assert (await anext(pieces)).text == "x"
        leaving = lifetime.live(ASKING)
        await anext(leaving)
        await leaving.aclose()
        assert backend.closed == 1, "who leaves a stream closes the backend's"
        working[0].cancel()
        await asyncio.sleep(0.01)
        assert (backend.cancelled, working[0].cancelled()) == (1, True)
        lifetime.end()
        for one in (working[1], working[2], anext(pieces), lifetime.answer(ASKING)):
            with pytest.raises(GatewayError) as error:
                await asyncio.wait_for(one, 5)
            assert told(error) == (503, "stopping", {"retry-after": "5"})
        assert (backend.cancelled, backend.closed) == (4, 2)

    asyncio.run(run())


def test_a_timeout_of_the_backend_stays_its_own():
    class Late(Stub):
        async def answer(self, asking, views=False):
            raise TimeoutError("its own")

    async def run():
        lifetime = BackendLifecycle(Late())
        lifetime.open()
        with pytest.raises(TimeoutError, match="its own"):
            await lifetime.answer(ASKING)

    asyncio.run(run())
