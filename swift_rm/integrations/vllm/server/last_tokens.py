"""The states at the last tokens of a server's samples, which vLLM has not computed: `requests.read_last` of an async engine."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np

from swift_rm.integrations.vllm.offline.requests import one_token
from swift_rm.integrations.vllm.server.engine_calls import take_scores, within
from swift_rm.integrations.vllm.versions.version import described
from swift_rm.integrations.vllm.worker.sample import Sample

Prompts = Sequence[Sequence[int] | None]
QUEUE_S = 600.0  # for the one more step, which waits for its turn behind the requests of others


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

    await within(engine, steps(), QUEUE_S)
    await take_scores(engine, [after for _, after in asked], width, limit_s)
    for sample, after in asked:
        if after.fault is None and after.scores is not None and len(after.scores) == 0:
            after.fault = f"{described()} computed no state at a sample's last token"
        if sample.scores is not None and after.scores is not None:
            sample.scores = np.concatenate([sample.scores, after.scores[:1]])
        sample.fault = after.fault
