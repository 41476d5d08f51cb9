"""Rewards that training cannot move: the rollouts are read once more by the model that it started from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from swift_rm.scoring.score import score_encoded
from swift_rm.tokens.encoding import Encoded
from swift_rm.tokens.region import find_region

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from swift_rm.reward.reward_model import SwiftRewardModel


class FrozenScorer:
    """Score sampled token ids by one teacher-forced pass of a model that is not trained, ``batch_size`` rollouts at a time.

    The policy cannot change the states that judge it, but neither do these know the policy: the pass costs what in-pass
    rewards save, and a policy far from the start writes text that the frozen model reads as odd.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rm: SwiftRewardModel, batch_size: int = 32
    ) -> None:
        self.model, self._tokenizer, self._rm, self._batch_size = model.requires_grad_(False), tokenizer, rm, batch_size

    def __call__(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[float]:
        """Return the rewards of the responses to the prompts; NaN where the states are not finite."""
        region = self._rm.config.region
        encoded = [
            Encoded(prompt, response, find_region(response, region, self._tokenizer))
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        return score_encoded(self.model, self._rm, encoded, batch_size=self._batch_size) if encoded else []
