"""Sample the candidates of one prompt from an upstream: in as few requests as it takes, again where they fail."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from swift_rm.api.capability_probe import logprob_fields
from swift_rm.api.endpoint import limit_name
from swift_rm.api.failures import RetryableFault, UnusableReply, error_words
from swift_rm.api.reply import ApiResponse, read_reply
from swift_rm.api.request_scheduler import SEEDS
from swift_rm.api.retry_delay import LONGEST_WAIT_S, backoff
from swift_rm.api.usage import Usage
from swift_rm.gateway.request.completion_request import CompletionRequest
from swift_rm.gateway.request.errors import refused
from swift_rm.gateway.upstream.client import Deadline, UpstreamClient, UpstreamReply
from swift_rm.gateway.upstream.faults import UpstreamFault, status_fault, too_late, unreadable_reply
from swift_rm.gateway.upstream.text_completions import as_chat, text_logprob_fields

LEARNT_S = 600.0  # then all choices are asked for at once again: one odd request must not slow all that follow
GATEWAY_FIELDS = frozenset(
    {"model", "messages", "prompt", "n", "best_of", "logprobs", "top_logprobs", "stream", "stream_options", "seed", "temperature",
     "top_p", "top_k", "stop", "max_tokens", "max_completion_tokens"}
)  # fmt: skip
NOT_TEXT_FIELDS = ("tools", "functions", "echo")  # what makes of a choice something else than one text to be judged


class ChoiceLimit:
    """How many choices the upstream gives a request, as far as that is known."""

    def __init__(self) -> None:
        self._most, self._until = 0, 0.0

    def most(self, wanted: int) -> int:
        """Return how many to ask for, of so many."""
        return min(wanted, self._most) if time.monotonic() < self._until else wanted

    def learn(self, given: int) -> None:
        """Remember that more than these are refused, or not given."""
        self._most, self._until = self.most(given), time.monotonic() + LEARNT_S


@dataclass
class UpstreamSamples:
    """What came for one prompt: ``responses`` by their places, tokens, and why others did not come."""

    responses: dict[int, ApiResponse] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    failure: UpstreamFault | None = None


class UpstreamSampler:
    """The candidates of the prompt of this ``number`` of a request, each token with ``alternatives`` at least."""

    def __init__(
        self,
        client: UpstreamClient,
        choices: ChoiceLimit,
        model: str,
        retries: int,
        request: CompletionRequest,
        number: int,
        alternatives: int,
    ) -> None:
        self._client, self._choices, self._request = client, choices, request
        self._retries, self._number, self._alternatives = retries, number, alternatives
        self._fields = upstream_request(request, number, model, max(1, alternatives), limit_name(client.where))
        self._path = "chat/completions" if request.chat else "completions"
        self.drawn = UpstreamSamples()

    async def run(self, deadline: Deadline) -> UpstreamSamples:
        """Return what came until the deadline."""
        self._deadline = deadline
        try:
            async with asyncio.timeout_at(deadline.at):
                await self._all(range(self._request.drawn))
        except TimeoutError:
            self.drawn.failure = too_late(self._client.where, deadline.seconds)
        return self.drawn

    async def _all(self, places: Sequence[int]) -> None:
        """Draw for these places, in requests of as many choices as are given, all at once."""
        size = self._choices.most(len(places))
        async with asyncio.TaskGroup() as group:
            for at in range(0, len(places), size):
                group.create_task(self._part(places[at : at + size]))

    async def _part(self, places: Sequence[int]) -> None:
        """Make one request; where it is refused for its number of choices, with half as many, and so on."""
        try:
            responses, given = await self._responses(places)
        except UpstreamFault as fault:
            half = places[: len(places) // 2]
            if not fault.refused or not half:
                self.drawn.failure = fault
                return
            await self._part(half)
            if half[0] in self.drawn.responses:
                self._choices.learn(len(half))
                await self._all(places[len(half) :])
            return
        self.drawn.responses.update(zip(places, responses, strict=False))
        if given < len(places):
            self._choices.learn(given)
        if len(responses) < len(places):
            await self._all(places[len(responses) :])

    async def _responses(self, places: Sequence[int]) -> tuple[list[ApiResponse], int]:
        """Return the responses of one request that can be read, and how many choices came; try again where that may help."""
        fields = dict(self._fields)
        if len(places) > 1:
            fields["n"] = len(places)
        if self._request.seed is not None:
            from swift_rm.sampling.generation import seed_for

            fields["seed"] = seed_for(self._request.seed, self._number, places[0]) % SEEDS
        body = json.dumps(fields).encode()
        for attempt in range(self._retries + 1):
            try:
                return await self._once(body, len(places))
            except UpstreamFault as fault:
                if not fault.again or attempt == self._retries:
                    raise
                wait_s = backoff(attempt, LONGEST_WAIT_S) if fault.wait_s is None else fault.wait_s
                if asyncio.get_running_loop().time() + wait_s > self._deadline.at:
                    raise
            await asyncio.sleep(wait_s)
        raise AssertionError("every try returns or raises")

    async def _once(self, body: bytes, count: int) -> tuple[list[ApiResponse], int]:
        client = self._client
        reply = await client.post(self._path, body, self._deadline)
        if not 200 <= reply.status < 300:
            raise status_fault(reply.status, reply.headers, reply.body, client.where, client.key)
        try:  # in threads: replies are megabytes, for which all other requests would wait
            found = await asyncio.to_thread(self._body_of, reply)
            self._count(found)
            responses = await asyncio.to_thread(read_reply, found, count, self._alternatives)
            return responses, min(count, len(found["choices"]))
        except RetryableFault as fault:
            raise unreadable_reply(client.where, str(fault)) from None
        except UnusableReply as fault:
            raise UpstreamFault(f"the upstream {client.where} cannot be used with this reward model: {fault}") from None

    def _body_of(self, reply: UpstreamReply) -> Any:
        """Return the JSON of a reply as that of a chat."""
        client = self._client
        found = client.checked(reply)
        if isinstance(found, dict) and found.get("error") and not found.get("choices"):
            words = client.key.shown(error_words(found))
            raise unreadable_reply(client.where, "a reply with an error" + (f": {words!r}" if words else ""))
        return found if self._request.chat else as_chat(found, max(1, self._alternatives))

    def _count(self, body: Any) -> None:
        """Count what a reply cost; the prompt is one, however often it was sent."""
        told = Usage()
        told.count_reply(body)
        self.drawn.prompt_tokens = max(self.drawn.prompt_tokens, told.prompt_tokens)
        self.drawn.completion_tokens += told.completion_tokens


def upstream_request(request: CompletionRequest, number: int, model: str, alternatives: int, limit: str) -> dict[str, Any]:
    """Return the JSON of a request for candidates of one prompt, but for their number and seed.

    ``limit`` is what chat completions call the limit of new tokens. Raises GatewayError, status 400, for fields that make of
    the candidates something else than texts.
    """
    others: Mapping[str, Any] = request.others
    for name in NOT_TEXT_FIELDS:
        if others.get(name):
            raise refused(f"{name!r} cannot go with a rule: candidates are compared by their text", name)
    fields = {name: value for name, value in others.items() if name not in GATEWAY_FIELDS}
    prompt = request.prompts[number]
    fields |= {"model": model, **({"messages": prompt} if request.chat else {"prompt": prompt})}
    fields |= {"temperature": request.temperature, "top_p": request.top_p}
    fields |= logprob_fields(alternatives) if request.chat else text_logprob_fields(alternatives)
    if request.top_k is not None:
        fields["top_k"] = request.top_k
    if request.stop:
        fields["stop"] = list(request.stop)
    if request.max_tokens is not None:
        fields[limit if request.chat else "max_tokens"] = request.max_tokens
    if request.template:
        fields["chat_template_kwargs"] = dict(request.template)
    return fields
