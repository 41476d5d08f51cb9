"""The reward of a rollout: whether it is right, and a little for its format.

    r = ACC + format_weight FORMAT [+ dense P]          and 0 for a malformed response, whose answer is never guessed

ACC is the label, or where the settings say so the probability P of being right that the hidden states give (HiPO,
arXiv 2509.23967, has labels and format_weight 0.2). A think-off response over the length cap gets ``cap_penalty`` instead,
right or wrong. The bias adjustment of HiPO's mode choice is in ``bias``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from swift_rm.hipo.rewards.bias import ROUNDING, biased_means
from swift_rm.hipo.rewards.groups import OFF, ON, Groups

__all__ = ["RewardSettings", "RewardSource", "biased_means", "mode_choice_reward", "over_cap", "rewards"]

RewardSource = Literal["labels", "swift", "both"]


@dataclass(frozen=True)
class RewardSettings:
    """What a rollout's reward is made of.

    ``source`` says where ACC comes from: "labels", "swift" (the probability), or "both" (the label where there is one,
    else the probability). ``dense`` weighs the probability as a term of its own. ``length_cap`` is the factor of
    :func:`over_cap`, None for no cap. Raises ValueError for a number that is not finite, a negative weight, a cap that is
    not above 0, or another source.
    """

    format_weight: float = 0.2
    source: RewardSource = "labels"
    dense: float = 0.0
    length_cap: float | None = None
    cap_penalty: float = -2.0

    def __post_init__(self) -> None:
        for name in ("format_weight", "dense", "cap_penalty"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be a finite number, got {getattr(self, name)}")
        if self.format_weight < 0 or self.dense < 0:
            raise ValueError(f"format_weight and dense must not be negative, got {self.format_weight} and {self.dense}")
        if self.length_cap is not None and not (math.isfinite(self.length_cap) and self.length_cap > 0):
            raise ValueError(f"length_cap must be a finite factor above 0, or None for no cap, got {self.length_cap}")
        if self.source not in get_args(RewardSource):
            raise ValueError(f"the source of rewards must be one of {', '.join(get_args(RewardSource))}, got {self.source!r}")

    @property
    def reads_probability(self) -> bool:
        """Whether a probability is needed."""
        return self.source != "labels" or self.dense > 0


def rewards(
    accuracy: Tensor,  # [B], NaN: no label
    formatted: Tensor,  # [B], bool
    probability: Tensor | None,  # [B]
    settings: RewardSettings,
    over_cap: Tensor | None = None,  # [B], bool
) -> Tensor:
    """Return the reward of each rollout, [B]; NaN where nothing can be said.

    That is a well-formed rollout of which the settings ask for a label or a probability that is not there (a
    probability that is not finite is not). A malformed one gets 0, labelled or not. Raises ValueError for shapes that
    differ, or without probabilities where the settings need them.
    """
    if settings.reads_probability and probability is None:
        wanted = f"source={settings.source!r}" if settings.source != "labels" else f"dense={settings.dense}"
        raise ValueError(f"{wanted} needs the probability of each rollout, which only a hidden-state reward model gives")
    for name, given in (("formatted", formatted), ("probability", probability), ("over_cap", over_cap)):
        if given is not None and given.shape != accuracy.shape:
            raise ValueError(f"{name} of shape {tuple(given.shape)} does not fit {tuple(accuracy.shape)} accuracies")
    right = accuracy
    if probability is not None:
        likely = torch.where(probability.isfinite(), probability, torch.nan).to(accuracy)
        if settings.source == "swift":
            right = likely
        elif settings.source == "both":
            right = torch.where(accuracy.isnan(), likely, accuracy)
        if settings.dense:
            right = right + settings.dense * likely
    reward = torch.where(formatted.bool(), right + settings.format_weight, 0.0)
    return reward if over_cap is None else torch.where(over_cap.bool() & formatted.bool(), settings.cap_penalty, reward)


def over_cap(modes: Tensor, answer_tokens: Tensor, factor: float) -> Tensor:
    """Return which think-off answers are longer than ``factor`` times what follows ``</think>`` on average, [B] bool.

    The mean is over the think-on responses of the batch (TNT, arXiv 2601.04805, takes those of the question): reasoning
    that leaks into an answer without thinking makes it longer than an answer after thinking has any need to be.
    ``modes`` [B] is 1 for think-on, 0 for think-off, and -1 for a response that is not to count, such as a malformed one.
    Without a think-on response nothing can be compared, and none is over.
    """
    on = modes == ON
    if not on.any():
        return torch.zeros_like(on)
    allowed = factor * answer_tokens[on].double().mean()
    return (modes == OFF) & (answer_tokens.double() > allowed)


def mode_choice_reward(groups: Groups, omega: float) -> Tensor:
    """Return whether each response chose the better mode of its group, 1 or 0, [Q, G], for Step-SRPO-like training.

    The better mode is that of the larger mean reward, after the bias adjustment by ``omega``. 0 for all where only one
    mode is present or the adjusted means are equal, and for a response without a mode or a reward.
    """
    on, off = (one[:, None] for one in biased_means(groups, omega))  # NaN for a mode that is not present: neither is better
    chosen = (groups.of(ON) & (on - off > ROUNDING)) | (groups.of(OFF) & (off - on > ROUNDING))
    return chosen.to(groups.rewards.dtype)
