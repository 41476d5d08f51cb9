"""Pass one request's ASGI messages on to vLLM's application, and those of its reply back, with rewards added."""

from __future__ import annotations

import json
import uuid
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from swift_rm.integrations.vllm.server.engine_calls import NoScores, Prompts
from swift_rm.integrations.vllm.server.reply import Reply
from swift_rm.integrations.vllm.server.reward_request import RefusedRequest, RewardRequest, read_request, refuse_reward_fields
from swift_rm.integrations.vllm.server.served_rewards import Fields, ServedRewards, logger, no_reward
from swift_rm.integrations.vllm.worker.sample import Sample

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Exchange:
    """Stand between vLLM's application and its server for one request: of a conversation, if ``chat``.

    ``rewards`` is a sentence where there are none. The body is read when vLLM reads it, after it has looked at the key. What
    is not understood passes as it is.
    """

    def __init__(self, rewards: ServedRewards | str, chat: bool, scope: Message, receive: Receive, send: Send) -> None:
        self._rewards, self._chat, self._receive = rewards, chat, receive
        self._adapters = getattr(getattr(scope["app"].state, "openai_serving_models", None), "lora_requests", {})
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        self._json = headers.get(b"content-type", "").partition(";")[0].strip().lower() == "application/json"
        self._told = headers.get(b"x-request-id")
        self._own = uuid.uuid4().hex if self._told is None else f"{self._told}-{uuid.uuid4().hex}"
        self.scope = scope
        if isinstance(rewards, ServedRewards):
            others = [(name, value) for name, value in scope["headers"] if name.lower() != b"x-request-id"]
            self.scope = {**scope, "headers": [*others, (b"x-request-id", self._own.encode("latin-1"))]}
        self._read = False
        self._request: RewardRequest | RefusedRequest | None = None
        self._reply = Reply(send, self._own, self._told)
        self.unclaimed: Sequence[str] = ()  # names of samples whose scores nobody has asked for

    async def receive(self) -> Message:
        """Return the next message to vLLM: first the whole body, changed, and then what the server says."""
        body, more = bytearray(), not self._read
        if not more:
            return await self._receive()
        while more:
            message = await self._receive()
            if message["type"] != "http.request":
                return message
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self._read = True
        return {"type": "http.request", "body": self._changed(bytes(body)), "more_body": False}

    def _changed(self, raw: bytes) -> bytes:
        try:
            body = json.loads(raw) if self._json else None
            if not isinstance(body, dict):
                return raw
            if isinstance(self._rewards, str):
                refuse_reward_fields(body, self._rewards)
                return raw
            request = read_request(body, self._chat, self._own, self._told)
            changed = json.dumps(request.body).encode()
        except RefusedRequest as refused:
            self._request = refused
            return b""  # vLLM makes an error of it, whose words are replaced
        except (ValueError, RecursionError):
            return raw
        self._request = request
        return changed

    async def send(self, message: Message) -> None:
        """Take the next message of vLLM's reply."""
        if message["type"] == "http.response.start":
            if isinstance(self._request, RewardRequest) and message["status"] == 200:
                self.unclaimed = self._request.names()
            await self._reply.begin(message, self._request, self._fields_of)
        else:
            await self._reply.go_on(message)

    async def _fields_of(self, samples: Sequence[Sample], prompts: Prompts) -> list[Fields]:
        request, rewards = self._request, self._rewards
        assert isinstance(request, RewardRequest) and isinstance(rewards, ServedRewards)
        if request.body.get("model") in self._adapters:  # another model than the one that the reward model knows
            return [no_reward() for _ in samples]
        self.unclaimed = ()
        try:
            known = prompts if request.text_only else [None] * len(prompts)
            return await rewards.fields_of(samples, known, request.body.get("cache_salt"))
        except NoScores as error:
            logger.warning("the answer to %s goes without rewards: %s", request.name, error)
            return [no_reward() for _ in samples]
