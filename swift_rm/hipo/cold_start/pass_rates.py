"""How often the responses to a question were right: by their labels, by the reward model's probabilities, or by both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from swift_rm.hipo.rewards.rewards import Source
from swift_rm.records.rollouts import Rollout

if TYPE_CHECKING:
    from swift_rm.reward.reward_model import SwiftRewardModel


@dataclass(frozen=True)
class Try:
    """One response and the chance that it is right, 0..1: its label, or its probability; None if neither is known."""

    rollout: Rollout
    chance: float | None


def check_source(source: str) -> None:
    """Raise ValueError for what is no source of pass rates."""
    if source not in get_args(Source):
        raise ValueError(f"pass rates come from 'labels', 'swift' (the reward model) or 'both', got {source!r}")


def tries_of(rollouts: Sequence[Rollout], source: Source, rm: SwiftRewardModel | None = None) -> list[Try]:
    """Return each response with its chance: from "labels", from "swift", or from "both", a label where there is one.

    A probability is the record's own, or else what ``rm`` makes of its reward. A response that was cut at its length
    limit has no answer: where it has no label, its chance is 0.
    """
    return [Try(rollout, _chance(rollout, source, rm)) for rollout in rollouts]


def pass_rate(tries: Sequence[Try]) -> float | None:
    """Return the mean chance of the tries whose chance is known, None if none is."""
    known = [one.chance for one in tries if one.chance is not None]
    return sum(known) / len(known) if known else None


def _chance(rollout: Rollout, source: Source, rm: SwiftRewardModel | None) -> float | None:
    if source != "swift" and rollout.label is not None:
        return float(rollout.label)
    if source == "labels":
        return None
    probability = rollout.extra.get("probability")
    if probability is None and rm is not None and rollout.reward is not None and rollout.reward == rollout.reward:
        probability = float(rm.probability([rollout.reward])[0])
    if probability is not None and not 0 <= probability <= 1:
        raise ValueError(f"a response to question {rollout.question_id!r} has the probability {probability}")
    return 0.0 if probability is not None and rollout.finish_reason != "stop" else probability
