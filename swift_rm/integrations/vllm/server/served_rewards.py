"""Ask the engine of vLLM's server for the rewards of its samples, once a reply is ready."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from typing import Any

from swift_rm.integrations.vllm.server.engine_calls import Prompts, read_last, take_scores
from swift_rm.integrations.vllm.worker.sample import Sample, sample_rewards, score_width
from swift_rm.integrations.vllm.worker.settings import LOGITS_PROCESSOR, WORKER_CLASS, check_served_model, load_reward_models
from swift_rm.reward.identity import fingerprint

LIMIT_S = 60.0  # for a call to the engine, which listens between its steps: those are long on CPUs
Fields = dict[str, Any]
logger = logging.getLogger("vllm.swift_rm")  # vLLM sends what is below its own name to its log


def no_reward() -> Fields:
    """Return what a choice gets whose reward is not known."""
    return {"reward": None, "probability": None}


class ServedRewards:
    """The reward model of a server's worker, and what it says of the engine's samples.

    Raises ValueError for a worker that scores nothing, and for a reward model of another model.
    """

    def __init__(self, engine: Any) -> None:
        config = engine.vllm_config
        worker = config.parallel_config.worker_cls
        if worker != WORKER_CLASS:
            raise ValueError(
                f"vLLM's worker is {worker!r}, which scores nothing: start the server with --worker-cls {WORKER_CLASS}"
            )
        models = load_reward_models(config.additional_config)
        self.rm, self._width = models[0], score_width(*models)
        self._engine, self._limit_s, self._tokenizer = engine, LIMIT_S, engine.renderer.tokenizer
        known = None if self._tokenizer is None else fingerprint(self._tokenizer)
        check_served_model(self.rm.config, config.model_config, known)
        if self.rm.config.marker and self._tokenizer is None:
            raise ValueError(f"the region {self.rm.config.region!r} needs a tokenizer: start vLLM without --skip-tokenizer-init")
        if self.rm.config.source == "logits" and LOGITS_PROCESSOR not in (config.model_config.logits_processors or ()):
            raise ValueError(
                f"requests may change the logits that are read: start the server with --logits-processors {LOGITS_PROCESSOR}"
            )

    async def fields_of(self, samples: Sequence[Sample], prompts: Prompts, salt: Any = None) -> list[Fields]:
        """Return what the choice of each sample gets: ``reward`` (a logit), ``probability``, and ``reward_flag`` if there is one.

        Raises NoScores if the engine gives none; see :func:`read_last` for the rest.
        """
        await take_scores(self._engine, samples, self._width, self._limit_s)
        if self.rm.config.position == "token":
            await read_last(self._engine, samples, prompts, self._width, self._limit_s, salt)
        return await asyncio.to_thread(self._fields, samples)

    async def forget(self, names: Sequence[str]) -> None:
        """Let the worker drop the scores of samples that nobody asks for any more; raise NoScores if it cannot be told."""
        await take_scores(self._engine, [Sample(name, 0) for name in names], self._width, self._limit_s)

    def _fields(self, samples: Sequence[Sample]) -> list[Fields]:
        for sample in samples:
            if sample.fault is not None:
                logger.warning("the answer of %s goes without its reward: %s", sample.name, sample.fault)
            if sample.scored(self.rm) < len(sample.token_ids):
                sample.scores = None  # what part of its tokens say is not its reward
        rewards = sample_rewards(self.rm, self._tokenizer, samples)
        probabilities = self.rm.probability([reward for reward, _ in rewards]).tolist()
        found = []
        for sample, (reward, flag), probability in zip(samples, rewards, probabilities, strict=True):
            known = math.isfinite(reward)
            if not known:
                flag = "not_finite" if sample.scores is not None and sample.token_ids else None
            fields = {"reward": reward, "probability": probability} if known else no_reward()
            found.append(fields if flag is None else {**fields, "reward_flag": flag})
        return found
