"""A question as the report shows it: its responses best first, what the main rules chose of them, and whether rightly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from swift_rm.evaluation.rule_outcome import SCORES, chosen
from swift_rm.records.rollouts import Rollout
from swift_rm.selection.baselines import mean_logprob
from swift_rm.selection.rule_table import MAIN_EVALUATED
from swift_rm.selection.rules import shrunk_means

MAIN_RULES = (*MAIN_EVALUATED, "majority", "mean_logprob")  # the default rule first

Kind = Literal["missed", "gained", "kept", "lost"]
KINDS: tuple[Kind, ...] = ("missed", "gained", "kept", "lost")


@dataclass(frozen=True)
class Answer:
    """An answer and what each rule goes by: how many gave it, their rewards' sum, shrunk mean and maximum (None: no rewards)."""

    answer: str
    responses: int
    right: int
    total: float | None = None
    shrunk: float | None = None
    highest: float | None = None


@dataclass(frozen=True)
class QuestionSummary:
    """One question, ``number`` in the order of the file.

    ``ranked`` holds the candidates' places by reward, best first, those without one last. ``choices`` says which place each
    rule chose, None if it chose none; the first rule is the one that the report explains.
    """

    number: int
    candidates: Sequence[Rollout]
    ranked: Sequence[int]
    choices: Mapping[str, int | None]

    def is_right(self, rule: str) -> bool:
        """Tell whether what a rule chose is right; to choose nothing is not."""
        place = self.choices[rule]
        return place is not None and self.candidates[place].label == 1

    @property
    def main(self) -> str:
        """Return the rule that the report explains."""
        return next(iter(self.choices))

    @property
    def right(self) -> int:
        """Return the number of right candidates."""
        return sum(one.label == 1 for one in self.candidates)

    @property
    def best_right(self) -> int | None:
        """Return the place of the right candidate with the highest reward."""
        return next((place for place in self.ranked if self.candidates[place].label == 1), None)

    @property
    def kind(self) -> Kind:
        """Tell a question that the rule missed, one it gained over the majority vote, one both got right, and a lost one."""
        if not self.is_right(self.main):
            return "missed" if self.right else "lost"
        return "kept" if self.is_right("majority") else "gained"

    @property
    def parted(self) -> bool:
        """Tell whether the responses of some answer are graded both ways."""
        return any(0 < one.right < one.responses for one in self.answers())

    @property
    def certainty(self) -> float:
        """Return the reward of what the rule chose, the more of a surprise where that is wrong."""
        place = self.choices[self.main]
        reward = None if place is None else self.candidates[place].reward
        return -math.inf if reward is None or math.isnan(reward) else reward

    def answers(self) -> list[Answer]:
        """Return the answers with what the rules go by, the highest shrunk mean first, or the most frequent without rewards."""
        groups: dict[str, list[Rollout]] = {}
        for one in self.candidates:
            if one.answer is not None:
                groups.setdefault(one.answer, []).append(one)
        counted = [(said, len(group), sum(one.label == 1 for one in group)) for said, group in groups.items()]
        rewards = [np.array([r for one in group if (r := one.reward) is not None and r == r]) for group in groups.values()]
        if not any(map(len, rewards)):
            return sorted((Answer(*one) for one in counted), key=lambda one: -one.responses)
        totals = np.array([np.exp(-np.logaddexp(0.0, -some)).sum() for some in rewards])
        means = shrunk_means(totals, np.array([float(len(some)) for some in rewards])).tolist()
        tops = [float(some.max()) if len(some) else None for some in rewards]
        found = [Answer(*row, *more) for row, *more in zip(counted, totals.tolist(), means, tops, strict=True)]
        return sorted(found, key=lambda one: -(one.shrunk or 0.0))


def summarise_questions(groups: Sequence[Sequence[Rollout]]) -> list[QuestionSummary]:
    """Apply the main rules to questions with their graded responses, those rules whose scores are there."""
    rewards = [_floats([one.reward for one in group]) for group in groups]
    logprobs = [_floats([mean_logprob(one) for one in group]) for group in groups]
    known = {"swift": rewards, "mean_logprob": logprobs}
    rules = [rule for rule in MAIN_RULES if (s := SCORES[rule]) is None or any(not np.isnan(row).all() for row in known[s])]
    judged = []
    for i, group in enumerate(groups):
        answers = [one.answer for one in group]
        choices = {rule: chosen(rule, known[SCORES[rule] or "swift"][i], answers) for rule in rules}
        ranked = np.argsort(-rewards[i], kind="stable").tolist()  # NaN is last
        judged.append(QuestionSummary(i + 1, group, ranked, choices))
    return judged


def by_kind(questions: Sequence[QuestionSummary]) -> dict[Kind, list[QuestionSummary]]:
    """Sort questions by kind: first what was missed and what was certain of, then where fewest candidates are right."""
    groups: dict[Kind, list[QuestionSummary]] = {kind: [] for kind in KINDS}
    for question in questions:
        groups[question.kind].append(question)
    for kind, some in groups.items():
        some.sort(key=lambda one: -one.certainty if kind in ("missed", "lost") else one.right)
    return groups


def probability(candidate: Rollout) -> float:
    """Return a response's probability of being right, the record's or else sigmoid(reward); NaN without either."""
    given = candidate.extra.get("probability")
    if isinstance(given, int | float) and math.isfinite(given):
        return float(given)
    return math.nan if candidate.reward is None else float(np.exp(-np.logaddexp(0.0, -candidate.reward)))


def _floats(values: Sequence[float | None]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.array(values, dtype=np.float64)  # None becomes NaN
