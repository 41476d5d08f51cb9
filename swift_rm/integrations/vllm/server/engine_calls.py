"""Calls to a server's engine: for its samples' scores, and for the state at a last token, which vLLM has not computed.

Each ends with its result, or with a sentence where the engine dies, fails or is too slow.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import numpy as np

from swift_rm.integrations.vllm.offline.sample_requests import one_token
from swift_rm.integrations.vllm.versions.version import vllm_name
from swift_rm.integrations.vllm.worker.sample import Sample

T = TypeVar("T")
Prompts = Sequence[Sequence[int] | None]  # token ids; None where they are not all of a prompt
QUEUE_S = 600.0  # for the one more step, which waits for its turn behind the requests of others
LOOK_S = 0.25  # between looks at whether the engine lives: vLLM lets calls wait for one that is dead


class NoScores(Exception):
    """The engine gave no scores, and why."""


async def await_engine(engine: Any, call: Coroutine[Any, Any, T], seconds: float) -> T:
    """Return what a ``call`` to the engine returns; raise NoScores if it dies, fails, or takes longer than ``seconds``."""
    loop = asyncio.get_running_loop()
    task, end = asyncio.ensure_future(call), loop.time() + seconds
    try:
        while not task.done():
            if engine.errored:
                raise NoScores("vLLM's engine died: its own log says why")
            if loop.time() >= end:
                raise NoScores(f"vLLM's engine did not answer within {seconds:g} s")
            await asyncio.wait((task,), timeout=min(LOOK_S, seconds))
    finally:
        task.cancel()
    error = task.exception()
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if error is not None:
        raise NoScores(f"vLLM's engine failed: {type(error).__name__}: {error}") from error
    return task.result()


async def take_scores(engine: Any, samples: Sequence[Sample], width: int, seconds: float) -> None:
    """Give samples the scores ``[places, width]`` that the worker has for them, and let it forget them; raise as `await_engine`.

    A sample whose scores are not those of its tokens gets a fault in their place.
    """
    names = [sample.name for sample in samples]
    answers = await await_engine(engine, engine.collective_rpc("take_scores", args=(names,)), seconds)
    found = next(answer for answer in answers if answer is not None)
    for sample, scores in zip(samples, found, strict=True):
        sample.give(scores, width)


async def read_last(engine: Any, samples: Sequence[Sample], prompts: Prompts, width: int, limit_s: float, salt: Any) -> None:
    """Add to each sample's scores those of the state at its last token, by a request for one token after it.

    ``samples[i].prompt`` is the place of its prompt in ``prompts``; None is one whose token ids are not all of it. Such a sample,
    and one that fills the context, stays without. ``salt`` is what the client's prompts are cached under.
    """
    room = int(engine.vllm_config.model_config.max_model_len)
    asked: list[tuple[Sample, Sample]] = []
    for sample in samples:
        ids, scores = prompts[sample.prompt], sample.scores
        if ids and scores is not None and 0 < len(scores) == len(sample.token_ids) < room - len(ids):
            asked.append((sample, Sample(f"after-{uuid.uuid4().hex}", sample.prompt)))
    if not asked:
        return

    async def step(sample: Sample, after: Sample) -> None:
        ids = [*(prompts[sample.prompt] or ()), *sample.token_ids]
        prompt = {"type": "token", "prompt_token_ids": ids, **({"cache_salt": salt} if salt else {})}
        async for _ in engine.generate(prompt, one_token(), after.name):
            pass

    async def steps() -> None:
        async with asyncio.TaskGroup() as group:
            for sample, after in asked:
                group.create_task(step(sample, after))

    await await_engine(engine, steps(), QUEUE_S)
    await take_scores(engine, [after for _, after in asked], width, limit_s)
    for sample, after in asked:
        if after.fault is None and after.scores is not None and len(after.scores) == 0:
            after.fault = f"{vllm_name()} computed no state at a sample's last token"
        if sample.scores is not None and after.scores is not None:
            sample.scores = np.concatenate([sample.scores, after.scores[:1]])
        sample.fault = after.fault
