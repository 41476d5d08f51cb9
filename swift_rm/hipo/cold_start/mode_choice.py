"""Which mode a question is taught in: the one that was right more often, by labels or by the reward model; off in a tie."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from swift_rm.hipo.response.template import Mode
from swift_rm.hipo.rewards.rollout_reward import RewardSource
from swift_rm.records.rollouts import Rollout, group_by_question
from swift_rm.tasks.task import Question

if TYPE_CHECKING:
    from swift_rm.reward.reward_model import SwiftRewardModel

DELTA, RANDOM_SHARE = 0.1, 0.01


def is_tie(p_on: float, p_off: float, delta: float = DELTA) -> bool:
    """Tell whether two pass rates differ by less than ``delta``; rounding aside, so that 0.6 and 0.5 differ by 0.1."""
    return abs(p_on - p_off) < delta - 1e-9


def choose_mode(p_on: float, p_off: float, delta: float = DELTA) -> Mode:
    """Return the mode of the higher pass rate, "off" if they differ by less than ``delta`` (or not at all)."""
    return "on" if p_on > p_off and not is_tie(p_on, p_off, delta) else "off"


def random_mode(question_id: str, seed: int = 0, share: float = RANDOM_SHARE) -> Mode | None:
    """Return a random mode for a ``share`` of all questions, None for the others; the same for the same id and seed."""
    rng = random.Random(f"{seed}:{question_id}".encode(errors="surrogatepass"))  # an id may hold half a surrogate pair
    if rng.random() >= share:
        return None
    return "on" if rng.random() < 0.5 else "off"


def group_modes(rollouts: Mapping[Mode, Sequence[Rollout]]) -> dict[str, dict[Mode, list[Rollout]]]:
    """Return each question's responses by mode; raise ValueError if it lacks a mode."""
    if not rollouts or set(rollouts) - {"on", "off"}:
        raise ValueError(f"expected rollouts of the modes 'on' and 'off', or one of them, got {sorted(map(str, rollouts))}")
    by_mode = {mode: group_by_question(group) for mode, group in rollouts.items()}
    for mode, groups in by_mode.items():
        if not groups:
            raise ValueError(f"there are no think-{mode} responses")
        for other, others in by_mode.items():
            lacking = next((question_id for question_id in groups if question_id not in others), None)
            if lacking is not None:
                raise ValueError(
                    f"question {lacking!r} has think-{mode} but no think-{other} responses: sample the same ones in both modes"
                )
    first = next(iter(by_mode.values()))
    return {question_id: {mode: groups[question_id] for mode, groups in by_mode.items()} for question_id in first}


def questions_of(groups: Mapping[str, Mapping[Mode, Sequence[Rollout]]], given: Iterable[Question] | None) -> dict[str, Question]:
    """Return the questions that were given, or those of the rollouts; raise ValueError if one is not there, or ambiguous."""
    if given is not None:
        known = {question.question_id: question for question in given}
        lacking = next((question_id for question_id in groups if question_id not in known), None)
        if lacking is not None:
            raise ValueError(f"question {lacking!r} of the rollouts is not among the {len(known)} questions given")
        return known
    asked = {}
    for question_id, of_mode in groups.items():
        all_of_it = [rollout for group in of_mode.values() for rollout in group]
        one = all_of_it[0]
        if any(rollout.prompt != one.prompt for rollout in all_of_it):
            raise ValueError(
                f"the responses to question {question_id!r} have different prompts: give the questions to train on, if that is "
                "meant"
            )
        extra, reference = one.extra.get("question"), one.extra.get("reference")
        asked[question_id] = Question(
            question_id,
            one.prompt,
            reference if isinstance(reference, str) else None,
            extra if isinstance(extra, Mapping) else {},
        )
    return asked


@dataclass(frozen=True)
class Try:
    """One response and the chance that it is right, 0..1: its label, or its probability; None if neither is known."""

    rollout: Rollout
    chance: float | None


def check_source(source: str) -> None:
    """Raise ValueError for what is no source of pass rates."""
    if source not in get_args(RewardSource):
        raise ValueError(f"pass rates come from 'labels', 'swift' (the reward model) or 'both', got {source!r}")


def tries_of(rollouts: Sequence[Rollout], source: RewardSource, rm: SwiftRewardModel | None = None) -> list[Try]:
    """Return each response with its chance: from "labels", from "swift", or from "both", a label where there is one.

    A probability is the record's own, or else what ``rm`` makes of its reward. A response that was cut at its length
    limit has no answer: where it has no label, its chance is 0.
    """
    return [Try(rollout, _chance(rollout, source, rm)) for rollout in rollouts]


def pass_rate(tries: Sequence[Try]) -> float | None:
    """Return the mean chance of the tries whose chance is known, None if none is."""
    known = [one.chance for one in tries if one.chance is not None]
    return sum(known) / len(known) if known else None


def _chance(rollout: Rollout, source: RewardSource, rm: SwiftRewardModel | None) -> float | None:
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
