"""Rewards of rollouts whose records hold log-probabilities, as an API's do, without the language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from swift_rm.records.rollouts import Rollout
from swift_rm.reward.config import SwiftConfig
from swift_rm.reward.identity import warn_of_others
from swift_rm.reward.recorded_logprobs import BATCH_SIZE, feature_batches, is_empty

if TYPE_CHECKING:
    from swift_rm.reward.reward_model import SwiftRewardModel


def record_rewards(
    rm: SwiftRewardModel, rollouts: Sequence[Rollout], *, batch_size: int = BATCH_SIZE, progress: bool = False
) -> Tensor:
    """Return the rewards that each head gives each response, ``[B, M]`` on the CPU, from the records' log-probabilities.

    A response without a token, or of the end token alone, has no reward: NaN. Raises ValueError as
    :func:`swift_rm.features.record_features.record_features`, and for a reward model of another source; warns of rollouts that
    another model sampled than it was trained on.
    """
    config, weight = rm.config, rm.head.weight
    top = check_record_source(config)
    if config.base_model is not None:
        warn_of_others(rollouts, config.base_model, f"but the reward model was trained on {config.base_model}")
    rewards = torch.full((len(rollouts), config.heads), torch.nan, dtype=torch.promote_types(weight.dtype, torch.float32))
    spoken = [i for i, rollout in enumerate(rollouts) if not is_empty(rollout)]
    with torch.inference_mode():
        for batch, features, offsets in feature_batches(rollouts, spoken, top, batch_size, "scoring", progress):
            rewards[batch] = rm.head_rewards(features.to(weight.device), offsets).cpu()
    return rewards


def check_record_source(config: SwiftConfig) -> int:
    """Return how many alternatives a reward model reads; raise ValueError for one that reads what records do not hold."""
    if config.top_logprobs is None:
        reads = "output logits" if config.source == "logits" else "hidden states"
        raise ValueError(
            f"a reward model of the source {config.source!r} reads {reads}, which records do not hold: "
            f"give --model, the language model{f' ({config.base_model})' if config.base_model else ''}"
        )
    return config.top_logprobs
