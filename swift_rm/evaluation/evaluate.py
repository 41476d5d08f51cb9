"""What a reward is worth: accuracy, curves over k, AUROC and calibration, with intervals over questions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from swift_rm.evaluation.auroc import pooled_auroc, within_question_auroc
from swift_rm.evaluation.calibration_error import CalibrationBin, brier, calibration
from swift_rm.evaluation.intervals import Interval, Resamples
from swift_rm.evaluation.rule_curves import VOTE_SUBSETS, rule_curves, scores_by_name
from swift_rm.records.rollouts import Rollout, group_by_question
from swift_rm.selection.baselines import DEEPCONF_WINDOW
from swift_rm.selection.rule_table import MAIN_IN_TABLES

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Evaluation:
    """The figures of :func:`evaluate`.

    ``curves`` has one interval for each k = 1 ... n. ``accuracy`` has every rule's last point, k = n, and "first": the
    exact expectation of a single response (pass@1, the mean label), which a random choice shares, so there is no row
    "random". ``paired`` holds differences of two rules' accuracy, named "a-b". Rows whose data are missing are absent:
    the swift rows without rewards, a baseline without its statistics, AUROC where no two labels differ; ``brier``,
    ``ece`` and the bins it is made of, ``calibration``, are None without rewards or probabilities. ``unparsable`` counts
    responses without an answer, ``mixed_questions`` questions with both right and wrong responses.
    """

    questions: int
    n: int
    accuracy: Mapping[str, Interval]
    paired: Mapping[str, Interval]
    auroc_within: Mapping[str, Interval]
    auroc_pooled: Mapping[str, Interval]
    curves: Mapping[str, Sequence[Interval]]
    brier: Interval | None
    ece: Interval | None
    unparsable: int
    mixed_questions: int
    tokens_per_response: float
    calibration: Sequence[CalibrationBin] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON objects; a curve is a list of {"k", "value", "low", "high"}."""
        curves = {
            rule: [{"k": k, **point.to_dict()} for k, point in enumerate(curve, start=1)] for rule, curve in self.curves.items()
        }
        return {
            "questions": self.questions,
            "n": self.n,
            "accuracy": _to_dicts(self.accuracy),
            "paired": _to_dicts(self.paired),
            "auroc_within": _to_dicts(self.auroc_within),
            "auroc_pooled": _to_dicts(self.auroc_pooled),
            "curves": curves,
            "brier": self.brier.to_dict() if self.brier else None,
            "ece": self.ece.to_dict() if self.ece else None,
            "unparsable": self.unparsable,
            "mixed_questions": self.mixed_questions,
            "tokens_per_response": self.tokens_per_response,
            "calibration": None if self.calibration is None else [one.to_dict() for one in self.calibration],
        }


def evaluate(
    rollouts: Sequence[Rollout],
    *,
    n: int | None = None,
    bootstrap: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
    deepconf_window: int = DEEPCONF_WINDOW,
    vote_subsets: int = VOTE_SUBSETS,
    calibrated: Callable[[Floats], Floats] | None = None,
    progress: bool = False,
) -> Evaluation:
    """Measure graded rollouts: what each rule makes of a question's N responses, and how well the scores rank them.

    Every question must have the same number of responses, or at least ``n``, of which the first ``n`` are used. Curves
    are exact expectations over all subsets of k, but sampled for weighted votes between k = 1 and N, see ``rules``. A
    response without a reward ranks below all others and is never chosen. Probabilities, for Brier score and calibration
    error, are ``calibrated(rewards)``, else the record's ``probability``, else sigmoid(reward). The differences
    "swift_...-<baseline>" are to the best of the log-probability baselines on these very questions, which favours it.

    Raises ValueError for no rollouts, missing labels, unequal numbers of responses, or settings out of range.
    """
    groups = graded_groups(rollouts, n)
    flat = [rollout for group in groups for rollout in group]
    shape = (len(groups), len(groups[0]))
    resamples = Resamples(len(groups), bootstrap=bootstrap, seed=seed, confidence=confidence)
    labels = np.array([rollout.label for rollout in flat], dtype=np.float64).reshape(shape)
    scores = scores_by_name(groups, deepconf_window)
    answers = [[rollout.answer for rollout in group] for group in groups]
    curves = rule_curves(answers, labels, scores, vote_subsets, seed, progress=progress)

    points = resamples.intervals(resamples.ratio(np.concatenate(list(curves.values()), axis=1)))
    curve_points = {rule: points[i * shape[1] : (i + 1) * shape[1]] for i, rule in enumerate(curves)}
    first = resamples.interval(resamples.ratio(labels.mean(axis=1)))
    accuracy = {"first": first, **{rule: curve[-1] for rule, curve in curve_points.items()}}

    others = ["majority"]
    rivals = [name for name in scores if name not in ("swift", "length")]
    if rivals:
        others.append(max(rivals, key=lambda name: accuracy[name].value))
    paired = {
        f"{rule}-{other}": resamples.interval(resamples.ratio(curves[rule][:, -1] - curves[other][:, -1]))
        for other in others
        for rule in MAIN_IN_TABLES
        if rule in curves
    }

    mixed = (labels.min(axis=1) < labels.max(axis=1)).astype(np.float64)
    within, pooled = {}, {}
    for name, score in scores.items():
        if mixed.any():
            per_question = np.nan_to_num(within_question_auroc(score, labels))
            within[name] = resamples.interval(resamples.ratio(per_question, mixed))
        if labels.min() < labels.max():
            pooled[name] = resamples.interval(pooled_auroc(score, labels, resamples.counts))
    probabilities = _probabilities(flat, calibrated).reshape(shape)
    known = not np.isnan(probabilities).all()
    found = calibration(probabilities, labels, resamples) if known else None
    return Evaluation(
        questions=shape[0],
        n=shape[1],
        accuracy=accuracy,
        paired=paired,
        auroc_within=within,
        auroc_pooled=pooled,
        curves=curve_points,
        brier=brier(probabilities, labels, resamples) if known else None,
        ece=found.error if found else None,
        unparsable=sum(rollout.answer is None for rollout in flat),
        mixed_questions=int(mixed.sum()),
        tokens_per_response=sum(rollout.tokens for rollout in flat) / len(flat),
        calibration=found.bins if found else None,
    )


def _to_dicts(rows: Mapping[str, Interval]) -> dict[str, dict[str, float | None]]:
    return {name: interval.to_dict() for name, interval in rows.items()}


def graded_groups(rollouts: Sequence[Rollout], n: int | None) -> list[list[Rollout]]:
    """Return the responses of each question, as many for every one; :func:`evaluate` says what raises ValueError."""
    groups = group_by_question(rollouts)
    if not groups:
        raise ValueError("nothing to evaluate: no rollouts")
    ungraded = sum(rollout.label is None for rollout in rollouts)
    if ungraded:
        raise ValueError(f"{ungraded} of {len(rollouts)} rollouts have no label; grade them first")
    if n is not None and n < 1:
        raise ValueError(f"n must be at least 1 response a question, got {n}")
    expected = len(next(iter(groups.values()))) if n is None else n
    for question, group in groups.items():
        if n is None and len(group) != expected:
            other = next(iter(groups))
            raise ValueError(
                f"question {question!r} has {len(group)} responses, but {other!r} has {expected}; "
                f"give n to use the first n of each"
            )
        if len(group) < expected:
            raise ValueError(f"question {question!r} has {len(group)} responses, fewer than n = {expected}")
    return [group[:expected] for group in groups.values()]


def _probabilities(flat: Sequence[Rollout], calibrated: Callable[[Floats], Floats] | None) -> Floats:
    """Return each response's probability of being right, NaN where nothing tells."""
    rewards = np.array([rollout.reward for rollout in flat], dtype=np.float64)  # None becomes NaN
    given = np.array([rollout.extra.get("probability") for rollout in flat], dtype=np.float64)
    if calibrated is not None:
        probabilities = np.asarray(calibrated(rewards), dtype=np.float64)
    else:
        with np.errstate(invalid="ignore"):  # NaN
            probabilities = np.where(np.isnan(given), np.exp(-np.logaddexp(0.0, -rewards)), given)
    outside = (probabilities < 0) | (probabilities > 1)
    if outside.any():
        raise ValueError(f"a probability must lie between 0 and 1, got {probabilities[outside][0]}")
    return probabilities
