"""Rewards of responses that already exist, as text, chat messages or token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from swift_rm.records.rollouts import Rollout
from swift_rm.reward.head import spread
from swift_rm.reward.identity import check_base_model
from swift_rm.scoring.record_rewards import record_rewards
from swift_rm.scoring.teacher_forced_states import drop_end_tokens, packed_features, states_named
from swift_rm.tokens.encoding import Encoded, PromptInput, ResponseInput, encode

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from swift_rm.reward.reward_model import SwiftRewardModel


def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    rm: SwiftRewardModel,
    prompts: Sequence[PromptInput],
    responses: Sequence[ResponseInput],
    *,
    batch_size: int = 32,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> list[float]:
    """Compute the reward of each response to its prompt by one teacher-forced pass of the language model.

    A prompt is text, chat messages (the tokenizer's template is applied) or token ids; a response is text (the
    end-of-sequence token is appended, as when it was sampled) or token ids, which are read as they are. The tokenizer
    may be None where all are ids and the region is the whole response. States of one batch at a time are held. A reward
    model of log-probabilities does not read the end token. Raises ValueError for another base model, an empty response, a
    region without tokens, a sequence longer than the model's context, and states that are NaN or Inf.
    """
    return _score(model, tokenizer, rm, prompts, responses, batch_size, progress, chat_template_kwargs)[0]


def _score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    rm: SwiftRewardModel,
    prompts: Sequence[PromptInput],
    responses: Sequence[ResponseInput],
    batch_size: int,
    progress: bool,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> tuple[list[float], Tensor]:
    """Return the rewards as ``score`` does, and those that each head gave."""
    check_base_model(rm.config, model, tokenizer)
    encoded = encode(model, tokenizer, prompts, responses, rm.config.region, chat_template_kwargs)
    encoded = drop_end_tokens(model, rm.config.source, encoded)
    empty = [i for i, one in enumerate(encoded) if one.region.flag == "region_empty"]
    if empty:
        where = f"after the marker {rm.config.marker!r}" if rm.config.marker else "before its end token, which is not read"
        raise ValueError(f"response {empty[0]} has no token {where}")
    heads = score_heads(model, rm, encoded, batch_size=batch_size, progress=progress)
    rewards: list[float] = rm.head.combine(heads).tolist()
    broken = [i for i, reward in enumerate(rewards) if reward != reward or abs(reward) == float("inf")]
    if broken:
        where = find_broken_layer(model, rm, encoded[broken[0]])
        raise ValueError(f"response {broken[0]} has NaN or Inf in {where} ({len(broken)} responses are affected)")
    return rewards, heads


def score_rollouts(
    model: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase | None,
    rm: SwiftRewardModel,
    rollouts: Sequence[Rollout],
    *,
    batch_size: int = 32,
    progress: bool = False,
) -> list[Rollout]:
    """Return the rollouts with their rewards and, in ``extra``, probabilities: what ``evaluate`` reads. Raises as ``score``.

    Of several heads ``extra`` has ``reward_spread`` too, the standard deviation of their rewards. Without a ``model`` the
    log-probabilities in the records are read, see :func:`swift_rm.scoring.record_rewards.record_rewards`; a response that has
    none but its end token's has the reward NaN.
    """
    if model is None:
        heads = record_rewards(rm, rollouts, progress=progress)
        rewards: list[float] = rm.head.combine(heads).tolist()
    else:
        prompts, responses = [r.prompt_ids for r in rollouts], [r.response_ids for r in rollouts]
        rewards, heads = _score(model, tokenizer, rm, prompts, responses, batch_size, progress)
    said = zip(rollouts, rewards, rm.probability(rewards).tolist(), reward_spreads(heads), strict=True)
    return [
        replace(rollout, reward=reward, extra={**rollout.extra, "probability": probability, **spread_})
        for rollout, reward, probability, spread_ in said
    ]


def reward_spreads(heads: Tensor) -> list[dict[str, float]]:
    """Return what a record says of the heads' rewards ``[B, M]``: ``reward_spread``, or nothing where there is one head."""
    if heads.shape[1] == 1:
        return [{} for _ in heads]
    return [{"reward_spread": value} for value in spread(heads).tolist()]


def score_encoded(
    model: PreTrainedModel,
    rm: SwiftRewardModel,
    encoded: Sequence[Encoded],
    *,
    batch_size: int = 32,
    progress: bool = False,
) -> list[float]:
    """Compute the rewards of encoded responses; NaN where the states are not finite."""
    rewards: list[float] = rm.head.combine(score_heads(model, rm, encoded, batch_size=batch_size, progress=progress)).tolist()
    return rewards


def score_heads(
    model: PreTrainedModel,
    rm: SwiftRewardModel,
    encoded: Sequence[Encoded],
    *,
    batch_size: int = 32,
    progress: bool = False,
) -> Tensor:
    """Compute the rewards that each head gives encoded responses, ``[B, M]``, on the CPU; NaN where states are not finite.

    NaN, too, for a response of nothing but an end token that is not read.
    """
    config, device = rm.config, rm.head.weight.device
    encoded = drop_end_tokens(model, config.source, encoded)
    dtype = torch.promote_types(rm.head.weight.dtype, torch.float32)
    rewards = torch.full((len(encoded), config.heads), torch.nan, dtype=dtype)
    with (
        tqdm(total=len(encoded), desc="scoring", unit="response", disable=not progress, delay=2) as bar,
        torch.inference_mode(),
    ):
        for packed in packed_features(model, config, encoded, batch_size=batch_size):
            heads = rm.head_rewards([layer.to(device) for layer in packed.layers], packed.offsets)
            rewards[packed.indices] = packed.nan_where_unread(heads).cpu()
            bar.update(len(packed.indices))
            del packed  # before the next batch is read
    return rewards


def find_broken_layer(model: PreTrainedModel, rm: SwiftRewardModel, encoded: Encoded) -> str:
    """Return which states of this response are not finite, the first layer's, or say that only their sum is not."""
    with torch.inference_mode():
        for packed in packed_features(model, rm.config, [encoded]):
            for layer, states in zip(rm.config.layers, packed.layers, strict=True):
                if not bool(torch.isfinite(states).all()):
                    return states_named(rm.config.source, layer)
    return "its reward alone (the states are finite, their product with the head is not)"
