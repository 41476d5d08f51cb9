"""Rewards in the replies of vLLM's own server: an ASGI middleware for its ``--middleware``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from swift_rm.integrations.vllm.server.asgi_messages import Exchange, Message, Receive, Send
from swift_rm.integrations.vllm.server.engine_calls import NoScores
from swift_rm.integrations.vllm.server.served_rewards import ServedRewards, logger

CHAT, ROUTES = "/v1/chat/completions", ("/v1/chat/completions", "/v1/completions")


class RewardMiddleware:
    """Give each choice of a completion its ``reward``, a logit, and its ``probability`` of being right.

    They are null where they are not known: for an adapter's answers, where the state at the last token is read and the response
    fills the context or its prompt is not text alone, and if the engine does not say in time. A stream has them in a chunk of its
    own before its end. ``"swift_select": RULE`` in a request puts its choices into order. The reward model is loaded at the first
    request; if that fails, or the worker is not `RewardWorker`, a warning says so and answers are vLLM's own.
    """

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]]) -> None:
        self._app, self._loading = app, asyncio.Lock()
        self._rewards: ServedRewards | str | None = None
        self._forgetting: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve a request, or whatever else a server asks of an application."""
        path = scope["path"].removeprefix(scope.get("root_path", "")) if scope["type"] == "http" else None
        engine = getattr(scope["app"].state, "engine_client", None) if path in ROUTES else None
        if engine is None or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        rewards = await self._load(engine)
        exchange = Exchange(rewards, path == CHAT, scope, receive, send)
        try:
            await self._app(exchange.scope, exchange.receive, exchange.send)
        finally:
            if exchange.unclaimed and isinstance(rewards, ServedRewards):  # the client has left
                task = asyncio.create_task(_forget(rewards, exchange.unclaimed))
                self._forgetting.add(task)
                task.add_done_callback(self._forgetting.discard)

    async def _load(self, engine: Any) -> ServedRewards | str:
        """Return what gives rewards, or the sentence that says why nothing does."""
        async with self._loading:
            if self._rewards is None:
                try:
                    self._rewards = await asyncio.to_thread(ServedRewards, engine)
                except (ValueError, OSError) as error:
                    logger.warning("vLLM's answers go without rewards: %s", error)
                    self._rewards = str(error)
            return self._rewards


async def _forget(rewards: ServedRewards, names: Sequence[str]) -> None:
    with suppress(NoScores):  # then they stay until the worker needs the room
        await rewards.forget(names)
