"""The backend in front of another server: it answers the plain model, and samples the candidates that are ranked here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from swift_rm.api.endpoint import limit_name
from swift_rm.api.reply import ApiResponse
from swift_rm.api.reply_scoring import check_reward_model, response_candidates
from swift_rm.gateway.request.backend import Delta, ForwardedReply, PromptResult
from swift_rm.gateway.request.completion_request import CompletionRequest
from swift_rm.gateway.request.errors import refused
from swift_rm.gateway.request.settings import Settings
from swift_rm.gateway.upstream.client import UpstreamClient
from swift_rm.gateway.upstream.faults import UpstreamFault, status_fault
from swift_rm.gateway.upstream.forwarding import forward, with_limit
from swift_rm.gateway.upstream.sampler import GATEWAY_FIELDS, ChoiceLimit, UpstreamSampler, UpstreamSamples
from swift_rm.report.token_view_data import CandidateView, TokenView
from swift_rm.selection.candidates import Candidate, Ended, ranked

if TYPE_CHECKING:
    from swift_rm.reward.reward_model import SwiftRewardModel


LOOK_S, LOOKED_S = 3.0, 5.0  # how long a look at the upstream may take, and how long it is believed


class UpstreamBackend:
    """Answer by the OpenAI-compatible server at ``settings.upstream``, called ``settings.model`` there and here.

    Its reward model reads log-probabilities; without one only what passes through is answered. An upstream that is not
    there yet does not keep the gateway from starting: ``health`` tells, and requests are answered 502. ``rm`` takes the
    place of ``settings.reward_model``.
    """

    forwards = True

    def __init__(self, settings: Settings, rm: SwiftRewardModel | None = None) -> None:
        self.name, self.rewards = settings.model, bool(rm or settings.reward_model)
        self._settings, self._rm = settings, rm
        self._choices = {True: ChoiceLimit(), False: ChoiceLimit()}  # of chats, and of text completions
        self._ranking_thread = ThreadPoolExecutor(1, thread_name_prefix="judge")
        self._looked: tuple[float, str | None] | None = None
        self._looking = asyncio.Lock()
        self._client: UpstreamClient | None = None

    @property
    def client(self) -> UpstreamClient:
        """Return the connection; raise RuntimeError before ``start``."""
        if self._client is None:
            raise RuntimeError("the upstream is asked before it is looked up")
        return self._client

    def start(self) -> None:
        """Check address and key, and load the reward model; the upstream itself is not asked."""
        self._client = UpstreamClient(self._settings)
        if self._rm is not None:
            check_reward_model(self._rm, self.name, self._settings.any_model)
        elif self._settings.reward_model:
            self._rm = self._loaded()

    def reload(self) -> str:
        """Load the reward model anew; requests that are under way keep the one they began with."""
        if not self._settings.reward_model:
            raise ValueError("there is no reward model to load again: start with --reward-model")
        self._rm = self._loaded()
        return self._settings.reward_model

    def _loaded(self) -> SwiftRewardModel:
        from swift_rm.models.load import resolve
        from swift_rm.reward.reward_model import SwiftRewardModel

        rm = SwiftRewardModel.from_pretrained(resolve(self._settings.reward_model))
        check_reward_model(rm, self.name, self._settings.any_model)
        return rm

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()
        self._ranking_thread.shutdown(wait=False, cancel_futures=True)

    async def health(self) -> str | None:
        """Return why the upstream cannot be asked, None if it answers; looked up at most every few seconds."""
        async with self._looking:
            if self._looked is None or time.monotonic() - self._looked[0] > LOOKED_S:
                self._looked = time.monotonic(), await self._look()
            return self._looked[1]

    async def _look(self) -> str | None:
        try:
            reply = await self.client.get("models", LOOK_S)
        except UpstreamFault as fault:
            return fault.message
        if reply.status in (401, 403) or reply.status >= 500:  # a server may have no list of models
            return status_fault(reply.status, reply.headers, b"", self.client.where, self.client.key).message
        return None

    def ignored(self, request: CompletionRequest) -> list[str]:
        """Return the names of a request's fields about which nothing is done: those that the gateway asks for itself."""
        return sorted(name for name in set(request.others) & GATEWAY_FIELDS if request.others[name])

    async def answer(self, request: CompletionRequest, views: bool = False) -> list[PromptResult]:
        """Sample each prompt's candidates and rank them; raise GatewayError where a prompt has none.

        Where some of a prompt's requests fail after all retries, it is answered from what came: "failed" is how it ended.
        """
        rm = self._rm
        if rm is None:
            raise refused("this gateway has no reward model: start it with --reward-model", "model")
        client, deadline = self.client, self.client.deadline()
        limit, alternatives = self._choices[request.chat], rm.config.top_logprobs or 0
        samplers = [
            UpstreamSampler(client, limit, self.name, self._settings.retries, request, number, alternatives)
            for number in range(len(request.prompts))
        ]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one.run(deadline)) for one in samplers]
        drawn = [task.result() for task in tasks]
        for one in drawn:
            if not one.responses:
                raise one.failure or UpstreamFault(f"the upstream {client.where} gave no candidate")
        ranking = partial(_ranked, rm, request, drawn, views)
        return await asyncio.get_running_loop().run_in_executor(self._ranking_thread, ranking)

    def live(self, request: CompletionRequest) -> AsyncIterator[Delta]:
        """Raise RuntimeError: what is plain passes through."""
        raise RuntimeError("an upstream's plain responses pass through, and are not made here")

    async def forward(self, path: str, body: bytes, stream: bool) -> ForwardedReply:
        """Pass a request on as it is; only a limit of new tokens is added, if the gateway has one and the request none."""
        if self._settings.max_tokens:
            name = limit_name(self.client.where) if path.startswith("chat") else "max_tokens"
            body = with_limit(body, self._settings.max_tokens, name)
        return await forward(self.client, path, body, stream)


def _ranked(rm: SwiftRewardModel, request: CompletionRequest, drawn: list[UpstreamSamples], views: bool) -> list[PromptResult]:
    return [result_of_samples(rm, request, one, views) for one in drawn]


def result_of_samples(rm: SwiftRewardModel, request: CompletionRequest, drawn: UpstreamSamples, views: bool) -> PromptResult:
    """Return the answer to one prompt; a response without a token is an empty one without a reward, and comes last."""
    responses = [response for _, response in sorted(drawn.responses.items())]
    candidates = response_candidates(rm, responses)
    order = list(range(len(candidates)))
    ended: Ended = "all" if len(responses) == request.drawn else "failed"
    if request.rule is not None and any(one.complete for one in candidates):
        result = ranked(None, candidates, request.rule, drawn.completion_tokens, 0, ended)
        place = {id(one): i for i, one in enumerate(candidates)}
        order = [place[id(one)] for one in (result.best, *(one for one in result.candidates if one is not result.best))]
    told = [replace(candidates[i], finish_reason=responses[i].finish_reason) for i in order]  # with a reward or without
    shown = views_of(rm, [responses[i] for i in order], told) if views else ()
    return PromptResult(drawn.prompt_tokens, drawn.completion_tokens, len(responses), told, ended, shown)


def views_of(rm: SwiftRewardModel, responses: Sequence[ApiResponse], candidates: Sequence[Candidate]) -> list[CandidateView]:
    """Return responses with the gate and reward of each of their tokens."""
    import torch

    from swift_rm.reward.logprob_features import features_of

    read = [response.logprobs for response in responses if response.logprobs.chosen]
    gates: list[float] = []
    rewards: list[float] = []
    if read:
        features, _ = features_of(read, rm.config.top_logprobs or 0)
        with torch.inference_mode():
            scores = rm.token_scores(features.to(rm.head.weight))
        gates, rewards = scores.gate.tolist(), scores.reward.tolist()
    numbers = iter(zip(gates, rewards, strict=True))
    return [
        CandidateView(
            [TokenView(piece, None, *next(numbers)) for piece in response.pieces], one.reward, one.probability, one.answer,
            finish_reason=one.finish_reason, flag=one.flag,
        )
        for response, one in zip(responses, candidates, strict=True)
    ]  # fmt: skip
