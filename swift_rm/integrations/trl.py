"""Reward functions for TRL's trainers: one reads prompt and completion again, one hands on what the rollouts came with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from swift_rm.reward.identity import check_base_model
from swift_rm.scoring.score import score_encoded
from swift_rm.tokens.encoding import encode

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from swift_rm.reward.reward_model import SwiftRewardModel
    from swift_rm.tokens.encoding import PromptInput, ResponseInput


class SwiftReward:
    """Reward completions by one pass over each: ``GRPOTrainer(..., reward_funcs=SwiftReward(model, tokenizer, rm))``.

    The free way is ``rollout_func=SwiftRollouts(rm), reward_funcs=rollout_reward``; this one asks nothing of the generation
    (vLLM's was not run). ``model`` is the reward model's base model: a copy of its own stays what the head was trained on,
    while the policy itself (no second copy in memory) moves its states as it learns. Completions are the token ids that were
    sampled: with the end token if there was one, and what tools answered; without ``completion_ids`` their text, as ``score``
    reads it. ``chat_template_kwargs`` are the trainer's, and its ``tools``. ``probability`` rewards by that, not the logit.

    Raises ValueError for another base model, a completion that is empty or too long, and several messages without ids.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rm: SwiftRewardModel,
        *,
        probability: bool = False,
        batch_size: int = 16,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        check_base_model(rm.config, model, tokenizer)
        self.__name__ = "swift_reward"
        self.model, self.tokenizer, self.rm = model, tokenizer, rm
        self.probability, self.batch_size, self.chat_template_kwargs = probability, batch_size, chat_template_kwargs

    def __call__(
        self,
        prompts: Sequence[PromptInput],
        completions: Sequence[Any],
        completion_ids: Sequence[ResponseInput] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Return a reward for each completion, None where its states are not finite; log the probabilities."""
        if completion_ids is None:
            if odd := [one for one in completions if not isinstance(one, str) and len(one) != 1]:
                raise ValueError(f"without its token ids a completion must be one message, got {odd[0]!r:.200}")
            completion_ids = [one if isinstance(one, str) else one[0]["content"] for one in completions]
        encoded = encode(self.model, self.tokenizer, prompts, completion_ids, self.rm.config.region, self.chat_template_kwargs)
        read = score_encoded(self.model, self.rm, encoded, batch_size=self.batch_size)
        rewards = [reward if math.isfinite(reward) else math.nan for reward in read]
        probabilities: list[float] = self.rm.probability(rewards).tolist()
        if "log_metric" in columns and (known := [one for one in probabilities if math.isfinite(one)]):
            columns["log_metric"]("swift/probability", sum(known) / len(known))
        if "log_extra" in columns:
            columns["log_extra"]("swift_probability", probabilities)
        return _finite(probabilities if self.probability else rewards)


def rollout_reward(swift_reward: Sequence[float] | None = None, **columns: Any) -> list[float | None]:
    """Return the rewards that the rollouts of ``SwiftRollouts`` came with; raise ValueError if there are none."""
    if swift_reward is None:
        raise ValueError("these rollouts have no column swift_reward: give the trainer rollout_func=SwiftRollouts(rm)")
    return _finite(swift_reward)


def _finite(rewards: Sequence[float]) -> list[float | None]:
    return [reward if math.isfinite(reward) else None for reward in rewards]
