"""The backend with a language model here: the engine's thread decodes, coroutines wait for what it makes."""

from __future__ import annotations

import asyncio
import copy
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Generic, TypeVar

import torch

from swift_rm.decoding.candidate_budget import CandidatePlan
from swift_rm.decoding.engine import Engine, OutOfMemory, PromptState
from swift_rm.gateway.http.logs import log_failure
from swift_rm.gateway.local.batching import BatchQueue, Job, JobSampling
from swift_rm.gateway.local.decoded_jobs import decode_jobs
from swift_rm.gateway.local.prompts import KNOWN_FIELDS, PromptReader, refuse_unsupported
from swift_rm.gateway.request.backend import Delta, ForwardedReply, PromptResult
from swift_rm.gateway.request.completion_request import CompletionRequest
from swift_rm.gateway.request.errors import GatewayError, ending
from swift_rm.gateway.request.settings import Settings
from swift_rm.models.load import load_language_model, resolve
from swift_rm.reward.identity import check_base_model, short_name
from swift_rm.reward.reward_model import SwiftRewardModel
from swift_rm.sampling.generation import sampling_settings, seed_for

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Item = TypeVar("Item")

Loaded = tuple["PreTrainedModel", "PreTrainedTokenizerBase", SwiftRewardModel]


class LocalBackend:
    """Answers requests with a model here. ``loaded`` models are taken as they are.

    ``on_batch`` is called in the engine's thread with each batch's candidates, prompts and seconds.
    """

    forwards, rewards = False, True

    def __init__(
        self, settings: Settings, loaded: Loaded | None = None, on_batch: Callable[[int, int, float], None] | None = None
    ) -> None:
        self.name = settings.name or short_name(settings.model)
        self._settings, self._loaded, self._on_batch = settings, loaded, on_batch
        self._batches = BatchQueue(self._run, settings.batch_rows, settings.batch_wait_ms / 1000, _explained)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="swift-rm-prompts")
        self._prompts: PromptReader | None = None

    def start(self) -> None:
        """Load both models and decode one token, so that a model that cannot be decoded is told before it is asked."""
        settings = self._settings
        if self._loaded is None:
            model, tokenizer = load_language_model(
                settings.model, device=settings.device or None, dtype=settings.dtype or None, revision=settings.revision or None,
                progress=False,
            )  # fmt: skip
            self._loaded = model, tokenizer, self._reward_model(model, tokenizer)
        model, tokenizer, rm = self._loaded
        check_base_model(rm.config, model, tokenizer)
        Engine(model, tokenizer, rm, sampling_settings(model, 1, 1, 1, {}), CandidatePlan(1, 1), None).answer(
            [PromptState([0])], 0
        )
        self._prompts = PromptReader(model, copy.deepcopy(tokenizer), settings.max_tokens or None)

    def reload(self) -> str:
        """Load the reward model anew, for the batches that begin from now on; what is wrong with it leaves the old one."""
        model, tokenizer, _ = self._ready()
        self._loaded = model, tokenizer, self._reward_model(model, tokenizer)
        return short_name(self._settings.reward_model)

    async def close(self) -> None:
        """Cancel what is under way and end the threads."""
        await asyncio.to_thread(self._batches.close)
        self._reader.shutdown(wait=False)

    async def health(self) -> str | None:
        """Return why nothing can be answered now, None if it can."""
        return "the server is ending" if self._batches.closed else "the model is being loaded" if self._prompts is None else None

    def ignored(self, request: CompletionRequest) -> list[str]:
        """Return the names of a request's fields about which nothing is done: all that are not known."""
        return sorted(set(request.others) - KNOWN_FIELDS)

    async def answer(self, request: CompletionRequest, views: bool = False) -> list[PromptResult]:
        """Answer each prompt of a request."""
        jobs = await self._jobs(request, views)
        try:
            for job in jobs:
                self._batches.add(job)
            return await asyncio.gather(*(asyncio.wrap_future(job.future) for job in jobs))
        finally:
            self._cancel(jobs)

    async def live(self, request: CompletionRequest) -> AsyncGenerator[Delta, None]:
        """Yield the pieces of a plain request's responses as they are generated."""
        box = ThreadQueue[Delta | Job]()
        jobs = await self._jobs(request, on_delta=box.put)
        try:
            for job in jobs:
                job.future.add_done_callback(lambda _, job=job: box.put(job))  # type: ignore[misc]
                self._batches.add(job)
            waiting = len(jobs)
            while waiting:
                items = await box.take()
                for delta in _joined([item for item in items if isinstance(item, Delta)]):
                    yield delta
                for job in (item for item in items if isinstance(item, Job)):
                    job.future.result()  # raises what went wrong
                    waiting -= 1
        finally:
            self._cancel(jobs)

    async def forward(self, path: str, body: bytes, stream: bool) -> ForwardedReply:
        """Raise: a model here answers, and passes nothing on."""
        raise NotImplementedError("a model here answers requests itself")

    async def _jobs(
        self, request: CompletionRequest, views: bool = False, on_delta: Callable[[Delta], None] | None = None
    ) -> list[Job]:
        """Return the jobs of a request, one for each prompt."""
        self._ready()
        assert self._prompts is not None
        refuse_unsupported(request.others)
        read = await asyncio.get_running_loop().run_in_executor(self._reader, self._prompts.read, request)
        sampling = JobSampling(request.temperature, request.top_p, request.top_k or 0, request.stop)
        return [
            Job(
                PromptState(one.ids, request.drawn, one.max_new_tokens), sampling, request.rule,
                None if request.seed is None else seed_for(request.seed, place), views, on_delta, place * request.drawn,
            )
            for place, one in enumerate(read)
        ]  # fmt: skip

    def _cancel(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            if not job.future.done() or job.future.cancelled():
                self._batches.cancel(job)

    def _run(self, jobs: Sequence[Job]) -> None:
        begun = time.monotonic()
        decode_jobs(*self._ready(), jobs)
        if self._on_batch is not None:
            self._on_batch(sum(job.rows for job in jobs), len(jobs), time.monotonic() - begun)

    def _ready(self) -> Loaded:
        if self._loaded is None or self._prompts is None:
            raise GatewayError(503, "the model is being loaded: try again later")
        if self._batches.closed:
            raise ending()
        return self._loaded

    def _reward_model(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> SwiftRewardModel:
        rm = SwiftRewardModel.from_pretrained(resolve(self._settings.reward_model)).to(model.device).eval()
        check_base_model(rm.config, model, tokenizer)
        return rm


def _explained(error: BaseException) -> GatewayError:
    """Return what users are told of a batch that failed; nothing of the error's text, in which another's prompt may be."""
    if isinstance(error, (OutOfMemory, torch.OutOfMemoryError, MemoryError)):
        return GatewayError(429, "the server is out of memory for this request: try again, or ask for fewer candidates or tokens")
    log_failure("batch failed", error)
    return GatewayError(500, f"the model here failed: {type(error).__name__}")


def _joined(deltas: Sequence[Delta]) -> list[Delta]:
    """Return as few deltas as there are choices, in their order."""
    joined: dict[int, Delta] = {}
    for one in deltas:
        before = joined.get(one.index)
        text = one.text if before is None else before.text + one.text
        joined[one.index] = Delta(one.index, text, one.candidate, one.prompt_tokens)
    return list(joined.values())


class ThreadQueue(Generic[Item]):
    """What a thread has to tell a coroutine, in order: made and emptied in a running loop, filled from any thread.

    The loop is woken once for all that has come since it last looked.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: deque[Item] = deque()
        self._woken, self._wake = False, asyncio.Event()

    def put(self, item: Item) -> None:
        """Add an item; where the loop has ended, nobody is there to read it."""
        self._items.append(item)
        if not self._woken:
            self._woken = True
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._wake.set)

    async def take(self) -> list[Item]:
        """Wait for items and return all that are there."""
        await self._wake.wait()
        self._wake.clear()
        self._woken = False  # before the box is emptied, so that what comes meanwhile wakes the loop again
        items = []
        while self._items:
            items.append(self._items.popleft())
        return items
