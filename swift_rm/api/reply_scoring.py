"""Score responses of an API by the log-probabilities of their tokens, with a reward model that reads these."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from swift_rm.api.reply import ApiResponse
from swift_rm.selection.candidates import Candidate
from swift_rm.tasks.answers import find_answer

if TYPE_CHECKING:
    from swift_rm.reward.reward_model import SwiftRewardModel


def check_reward_model(rm: SwiftRewardModel, model: str, any_model: bool = False) -> None:
    """Raise ValueError unless a reward model reads log-probabilities, and those of the model of this name."""
    config = rm.config
    if config.source != "top_logprobs":
        raise ValueError(
            f"this reward model reads {config.source!r}, which no API returns: train one with --source top_logprobs on what "
            "`sample --api` wrote"
        )
    if not any_model and config.base_model != model:
        raise ValueError(
            f"the reward model was trained on {config.base_model or 'an unnamed model'}, but the endpoint is asked for "
            f"{model!r}: if they are the same, say any_model=True (--any-model)"
        )


def response_rewards(rm: SwiftRewardModel, responses: Sequence[ApiResponse]) -> list[float]:
    """Return the rewards of responses from their log-probabilities; NaN for one without a token."""
    import torch

    from swift_rm.reward.logprob_features import features_of

    read = [response.logprobs for response in responses if response.logprobs.chosen]
    features, offsets = features_of(read, rm.config.top_logprobs or 0)
    weight = rm.head.weight
    with torch.inference_mode():
        found = iter(rm(features.to(weight), offsets.to(weight.device)).tolist())
    return [float(next(found)) if response.logprobs.chosen else math.nan for response in responses]


def response_candidates(
    rm: SwiftRewardModel, responses: Sequence[ApiResponse], find: Callable[[str], str | None] = find_answer
) -> list[Candidate]:
    """Return responses with their rewards; one without a token has none, and is never chosen."""
    rewards = response_rewards(rm, responses)
    found = []
    for response, reward, probability in zip(responses, rewards, rm.probability(rewards).tolist(), strict=True):
        tokens = response.logprobs.chosen
        if math.isfinite(reward):
            mean = sum(tokens) / len(tokens)
            found.append(
                Candidate(response.text, [], reward, probability, mean, response.finish_reason, find(response.text), None)
            )
        else:
            found.append(Candidate(response.text, [], math.nan, math.nan, math.nan, "not_finite", None, "region_empty"))
    return found
