"""Wrap a backend for the life of its process: 503 until it is loaded, and 503 for what is under way after the drain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from swift_rm.gateway.http.responses import closing_iterator
from swift_rm.gateway.request.backend import Backend, Delta, ForwardedReply, PromptResult
from swift_rm.gateway.request.completion_request import CompletionRequest
from swift_rm.gateway.request.errors import LATER, GatewayError, ending

STARTING = "starting"


class BackendLifecycle:
    """A backend that answers 503 until it is opened, and to what is still under way when it is ended.

    What an upstream streams is not ended here: the server breaks it off.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.loaded = self.ended = False
        self._waiting: set[asyncio.Timeout] = set()

    @property
    def name(self) -> str:
        """The plain model's name; raises GatewayError, status 503, before the backend's life, as all that needs it does."""
        self._check()
        return self.backend.name

    @property
    def forwards(self) -> bool:
        """Whether requests for the plain model pass through."""
        return self.backend.forwards

    @property
    def rewards(self) -> bool:
        """Whether there is a reward model."""
        return self.backend.rewards

    def start(self) -> None:
        """Load what is needed; raise what the backend raises."""
        self.backend.start()

    def open(self) -> None:
        """Let requests in: the backend is loaded."""
        self.loaded = True

    def reload(self) -> str:
        """Load the reward model anew; return its name, raise what the backend raises."""
        return self.backend.reload()

    def end(self) -> None:
        """Answer 503 to what is under way, and to what comes."""
        self.ended = True
        for one in self._waiting:
            one.reschedule(0.0)

    async def close(self) -> None:
        """End what is under way."""
        if self.loaded:
            await self.backend.close()

    async def health(self) -> str | None:
        """Return why nothing can be answered now, None if it can."""
        return await self.backend.health() if self.loaded else STARTING

    def ignored(self, request: CompletionRequest) -> list[str]:
        """Return the names of a request's fields about which nothing is done."""
        return self.backend.ignored(request)

    async def answer(self, request: CompletionRequest, views: bool = False) -> list[PromptResult]:
        """Answer each prompt of a request; raise GatewayError, status 503, before and after the backend's life."""
        async with self._within():
            return await self.backend.answer(request, views)

    async def live(self, request: CompletionRequest) -> AsyncIterator[Delta]:
        """Yield the pieces of a plain request; raise GatewayError, status 503, before and after the backend's life."""
        async with self._within():
            deltas = self.backend.live(request)
        async with closing_iterator(deltas):
            async for delta in deltas:
                if self.ended:
                    raise ending()
                yield delta

    async def forward(self, path: str, body: bytes, stream: bool) -> ForwardedReply:
        """Pass a request on; raise GatewayError, status 503, before and after the backend's life."""
        async with self._within():
            return await self.backend.forward(path, body, stream)

    def _check(self) -> None:
        if not self.loaded:
            raise GatewayError(503, "the models are being loaded: ask again soon", code=STARTING, headers=LATER)

    @asynccontextmanager
    async def _within(self) -> AsyncIterator[None]:
        self._check()
        try:
            async with asyncio.timeout(0.0 if self.ended else None) as limit:
                self._waiting.add(limit)
                try:
                    yield
                finally:
                    self._waiting.discard(limit)
        except TimeoutError:
            if not limit.expired():
                raise
            raise ending() from None
