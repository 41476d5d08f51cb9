"""What one rule makes of every question of one file: its value, and the response that it chooses.

The value is the expected label: 1 right, 0 wrong, and between them where a tie is broken uniformly or the responses of an
elected answer are graded differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from swift_rm.evaluation.auroc import within_question_auroc
from swift_rm.evaluation.rule_curves import VOTE_SUBSETS, rule_curves, scores_by_name
from swift_rm.records.rollouts import Rollout
from swift_rm.selection.baselines import BASELINES, DEEPCONF_WINDOW
from swift_rm.selection.rule_table import EVALUATED_BY_REWARD, EVALUATED_VOTES
from swift_rm.selection.rules import best, select, weighted_vote

Floats = npt.NDArray[np.float64]

# What each rule goes by: the name of a score, or None where it needs none.
SCORES: dict[str, str | None] = {
    "first": None, "majority": None, **{name: name for name in BASELINES},
    **dict.fromkeys(EVALUATED_BY_REWARD, "swift"),
    "self_certainty_borda": "self_certainty", "deepconf_vote": "deepconf_mean", "oracle": None,
}  # fmt: skip
VOTES = {**EVALUATED_VOTES, "self_certainty_borda": "borda"}


@dataclass(frozen=True)
class ChosenResponse:
    """What a rule makes of a question: the place of the response it chooses (None: it chooses none), and its value.

    ``answer`` and ``reward`` are those of the response chosen; the value is the expected label.
    """

    place: int | None
    answer: str | None
    reward: float | None
    value: float

    def to_dict(self) -> dict[str, Any]:
        """Return the choice as a JSON object."""
        return {"answer": self.answer, "right": self.value, "reward": self.reward, "place": self.place}


@dataclass(frozen=True)
class RuleOutcome:
    """A rule on one file: each question's value with k responses, [Q, N], its choice at N, its AUROC [Q] if it has a score.

    ``unscored`` counts the responses without the score that the rule goes by: they are never chosen. ``tokens`` is the mean
    number that a question's responses have together.
    """

    file: str
    rule: str
    values: Floats
    choices: Sequence[ChosenResponse]
    aurocs: Floats | None
    unscored: int
    tokens: float

    def to_dict(self) -> dict[str, Any]:
        """Return what the side is as a JSON object."""
        return {"file": self.file, "rule": self.rule, "tokens_per_question": self.tokens, "unscored": self.unscored}


def check_rule(rule: str) -> None:
    """Raise ValueError, with the names of all rules, for a rule that is none."""
    if rule not in SCORES:
        raise ValueError(f"unknown rule {rule!r}; the rules are {', '.join(SCORES)}")


def measure(
    groups: Sequence[Sequence[Rollout]],
    rule: str,
    file: str = "the file",
    *,
    vote_subsets: int = VOTE_SUBSETS,
    seed: int = 0,
    progress: bool = False,
) -> RuleOutcome:
    """Return what a rule makes of Q questions' N graded responses each: the same values as ``evaluate`` averages.

    Raises ValueError for an unknown rule, or one whose score no response of the ``file`` has.
    """
    check_rule(rule)
    score = SCORES[rule]
    known = scores_by_name(groups, DEEPCONF_WINDOW)
    if score is not None and score not in known:
        lacking = "a reward, which `swift-rm score` writes" if score == "swift" else f"the score {score!r}"
        raise ValueError(
            f"{file}: the rule {rule} needs {lacking}, and none of its {len(groups) * len(groups[0])} responses has it"
        )
    labels = np.array([[rollout.label for rollout in group] for group in groups], dtype=np.float64)
    answers = [[rollout.answer for rollout in group] for group in groups]
    if rule == "first":
        values = np.repeat(labels.mean(axis=1, keepdims=True), labels.shape[1], axis=1)
    else:
        scores = {} if score is None else {score: known[score]}
        values = rule_curves(answers, labels, scores, vote_subsets, seed, progress=progress)[rule]
    if score is None:
        basis = known.get("swift", np.full(labels.shape, np.nan)) if rule == "majority" else labels
    else:
        basis = known[score]
    choices = [
        _choice(group, chosen(rule, row, answer), value)
        for group, row, answer, value in zip(groups, basis, answers, values[:, -1].round(9).tolist(), strict=True)
    ]
    return RuleOutcome(
        file,
        rule,
        values,
        choices,
        None if score is None else within_question_auroc(known[score], labels),
        0 if score is None else int(np.isnan(known[score]).sum()),
        sum(rollout.tokens for group in groups for rollout in group) / len(groups),
    )


def chosen(rule: str, scores: Floats, answers: Sequence[str | None]) -> int | None:
    """Return the place of the response that a rule chooses among a question's, None if it chooses none.

    ``scores`` are what the rule goes by: for "majority" the rewards (NaN if there are none), which choose among the responses
    of the elected answer, for "oracle" the labels. Where ``rules`` breaks a tie uniformly, the first is taken here, and so
    it is for "first", whose value is that of any single response.
    """
    if rule == "first":
        return 0
    if rule in VOTES or rule == "deepconf_vote":
        ballots = answers if rule == "majority" else [a if s == s else None for a, s in zip(answers, scores, strict=True)]
        if all(answer is None for answer in ballots):
            return None
        if rule in VOTES:
            return select(VOTES[rule], scores, ballots).index
        winner = weighted_vote(scores, ballots)
        return best(np.where([answer == winner for answer in ballots], scores, np.nan))
    return None if np.isnan(scores).all() else best(scores)


def _choice(group: Sequence[Rollout], place: int | None, value: float) -> ChosenResponse:
    if place is None:
        return ChosenResponse(None, None, None, value)
    return ChosenResponse(place, group[place].answer, group[place].reward, value)
