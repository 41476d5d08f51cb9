"""A sample that vLLM drew, with the heads' numbers for its states, and the reward that is computed from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from swift_rm.decoding.decoded_candidate import DecodedCandidate
from swift_rm.integrations.vllm.versions.version import vllm_name
from swift_rm.selection.candidates import FinishReason
from swift_rm.tokens.region import Flag, find_region

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from swift_rm.reward.reward_model import SwiftRewardModel

FINISH_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length"}


@dataclass(eq=False)
class Sample:
    """Its name in vLLM, its prompt (a number), its tokens so far, the sum of their log-probabilities, and why it ended.

    ``scores`` are what the heads said of its states by place, ``[places, width]``: place k is the state that produced token
    k, and the state at token k - 1. ``fault`` is why there are none.
    """

    name: str
    prompt: int
    token_ids: list[int] = field(default_factory=list)
    logprob: float = math.nan
    finish_reason: FinishReason | None = None
    scores: np.ndarray | None = None
    whole: bool = False  # its scores are all there
    fault: str | None = None

    def give(self, told: bytes | str, width: int) -> None:
        """Take what the worker said of it: the scores, float32 ``[places, width]``, or why there are none.

        There must be one for each token. Where the length ended it there may be one more: vLLM may have begun another step.
        """
        self.scores = None if isinstance(told, str) else np.frombuffer(told, np.float32).reshape(-1, width)
        places, tokens = 0 if self.scores is None else len(self.scores), len(self.token_ids)
        if isinstance(told, str):
            self.fault = told
        elif places < tokens or (self.finish_reason == "length" and places > tokens + 1):
            self.scores = None
            self.fault = f"{vllm_name()}: its worker has scores of {places} of a sample's {tokens} tokens"

    def scored(self, rm: SwiftRewardModel) -> int:
        """Return how many of its tokens have a score."""
        places = 0 if self.scores is None else len(self.scores)
        return min(len(self.token_ids), places - first_scored_place(rm))

    def decoded(self, reward: float, flag: Flag | None, partial: float) -> DecodedCandidate:
        """Return it as the package's own engine gives its candidates."""
        reason: FinishReason = self.finish_reason or "cancelled"
        if not math.isfinite(reward) and reason != "cancelled":
            reason, flag, reward, partial = "not_finite", "not_finite", math.nan, math.nan
        mean = self.logprob / max(len(self.token_ids), 1)
        return DecodedCandidate(self.prompt, self.token_ids, reward, mean, reason, flag, partial)


def first_scored_place(rm: SwiftRewardModel) -> int:
    """Return the place of the state by which a response's first token is scored: the one that produced it, or its own."""
    return 0 if rm.config.position == "generating" else 1


def score_width(*models: SwiftRewardModel) -> int:
    """Return how many numbers these models' heads give for a state."""
    return sum(len(rm.head.bias) for rm in models)


def sample_rewards(
    rm: SwiftRewardModel,
    tokenizer: PreTrainedTokenizerBase | None,
    samples: Sequence[Sample],
    *,
    upto: int | None = None,
    column: int = 0,
) -> list[tuple[float, Flag | None]]:
    """Return the reward of each sample's scored tokens, or of its first ``upto``, and its flag; NaN where there are none.

    ``column`` is where this reward model's numbers begin among the scores. Equal to what ``score`` says of the same tokens.
    """
    if not samples:
        return []
    start, width = first_scored_place(rm), score_width(rm)
    parts, flags, lengths = [], [], [0]
    for sample in samples:
        count = max(0, sample.scored(rm) if upto is None else min(upto, sample.scored(rm)))
        region = find_region(sample.token_ids[:count], rm.config.region, tokenizer) if count else None
        flags.append(region.flag if region is not None else None)
        tokens = np.asarray(region.tokens if region is not None else (), dtype=np.int64)
        scores = sample.scores if sample.scores is not None else np.zeros((0, column + width), np.float32)
        parts.append(scores[start + tokens, column : column + width])
        lengths.append(lengths[-1] + len(tokens))
    rewards: list[float] = rm.head.pool(torch.from_numpy(np.concatenate(parts)), torch.tensor(lengths)).tolist()
    return list(zip(rewards, flags, strict=True))
