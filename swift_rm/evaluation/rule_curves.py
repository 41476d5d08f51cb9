"""What every rule makes of every question: the scores, and the rules' curves over k.

A vote elects an answer, and that is worth the mean label of the responses that gave it; a best-of rule chooses a
response, and that is worth its label. Every tie is broken uniformly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm

from swift_rm.evaluation.subset_accuracy import (
    Count,
    Subsets,
    Weigh,
    best_of_curves,
    borda_weights,
    fixed_weights,
    majority_curve,
    sums,
    vote_curve,
)
from swift_rm.records.rollouts import Rollout
from swift_rm.selection.baselines import baseline_scores
from swift_rm.selection.rules import reward_weights, shrunk_means

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

VOTE_SUBSETS = 200


def scores_by_name(groups: Sequence[Sequence[Rollout]], deepconf_window: int) -> dict[str, Floats]:
    """Return the baseline scores and the reward, "swift", of Q questions' N responses, [Q, N] each.

    A score that no response has is left out.
    """
    rows: dict[str, Any] = {
        name: [[score(rollout) for rollout in group] for group in groups]
        for name, score in baseline_scores(deepconf_window).items()
    }
    rows["swift"] = [[rollout.reward for rollout in group] for group in groups]
    scores = {name: np.array(row, dtype=np.float64) for name, row in rows.items()}  # None becomes NaN
    return {name: score for name, score in scores.items() if not np.isnan(score).all()}


def rule_curves(
    answers: Sequence[Sequence[str | None]],
    labels: Floats,
    scores: Mapping[str, Floats],
    vote_subsets: int = VOTE_SUBSETS,
    seed: int = 0,
    *,
    progress: bool = False,
) -> dict[str, Floats]:
    """Return each rule's expected accuracy on each question with k = 1 ... N responses, [Q, N] by name.

    "majority" votes among ``answers``; each baseline's name stands for best-of-k by that score, "swift_best" for the same
    by reward, "oracle" for pass@k: all exact over the subsets of k. "swift_vote" weights by sigmoid(reward),
    "swift_shrunk" goes by the shrunk mean of these weights, "deepconf_vote" weights by ``deepconf_mean``, "swift_borda"
    and "self_certainty_borda" by rank: exact where there are no more than ``vote_subsets`` subsets of k (always at N),
    else the average over so many seeded ones. Raises ValueError for a negative confidence.
    """
    elections = [election(answer, label) for answer, label in zip(answers, labels, strict=True)]
    rng = np.random.default_rng([seed, 1])  # another stream than the bootstrap's
    subsets = Subsets(labels.shape[1], vote_subsets, rng)
    orders = rng.permuted(np.tile(np.arange(labels.shape[1]), (len(labels), 1)), axis=1)  # for the reason see Subsets

    def vote(weigh: Weigh, weights: Sequence[Floats] | Floats, count: Count = sums) -> Floats:
        cases = tqdm(
            zip(weights, elections, orders, strict=True),
            "counting votes",
            len(labels),
            unit="question",
            disable=not progress,
            delay=1,
        )
        return np.stack([vote_curve(weigh, w[order], codes[order], v, subsets, count) for w, (codes, v), order in cases])

    curves = {"majority": np.stack([majority_curve(codes, values) for codes, values in elections])}
    curves |= {name: best_of_curves(score, labels) for name, score in scores.items() if name != "swift"}
    if "swift" in scores:
        curves["swift_best"] = best_of_curves(scores["swift"], labels)
        weights = [reward_weights(row) for row in scores["swift"]]
        curves["swift_vote"] = vote(fixed_weights, weights)
        curves["swift_shrunk"] = vote(fixed_weights, weights, shrunk_means)
        curves["swift_borda"] = vote(borda_weights, scores["swift"])
    if "self_certainty" in scores:
        curves["self_certainty_borda"] = vote(borda_weights, scores["self_certainty"])
    if "deepconf_mean" in scores:
        confidence = scores["deepconf_mean"]
        if (confidence < 0).any():
            lowest = np.nanmin(confidence)
            raise ValueError(f"a token confidence is minus a log-probability, so at least 0; a response has {lowest:.4g}")
        curves["deepconf_vote"] = vote(fixed_weights, confidence)
    curves["oracle"] = best_of_curves(labels, labels)
    return curves


def election(answers: Sequence[str | None], labels: Floats) -> tuple[Ints, Floats]:
    """Return each response's answer as a code, [N], -1 for none, and the mean label of each answer's responses, [A].

    The labels of one answer can differ where the grader saw more than the answer.
    """
    known: dict[str, int] = {}
    codes = np.array([-1 if a is None else known.setdefault(a, len(known)) for a in answers], dtype=np.int64)
    return codes, np.array([labels[codes == code].mean() for code in range(len(known))])
