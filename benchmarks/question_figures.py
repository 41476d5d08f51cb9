"""What rewards are worth on each test question: AUROC, the best of its responses, and the votes that rewards weigh."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from worlds import Sampled

from swift_rm.auroc import within_question_auroc
from swift_rm.baselines import mean_logprob
from swift_rm.curves import Count, Subsets, best_of_curves, fixed_weights, sums, vote_curve
from swift_rm.rules import election
from swift_rm.selection import reward_weights, shrunk_means

Floats = npt.NDArray[np.float64]

FIGURES = ("auroc", "best_of_16", "vote_of_16", "shrunk_of_16")


class TestQuestions:
    """Test questions, each with the same number of responses, and what rewards make of them."""

    __test__ = False

    def __init__(self, sampled: Sampled) -> None:
        self._groups, self.labels = sampled.groups, sampled.labels
        self._elections = [
            election([r.answer for r in group], label) for group, label in zip(self._groups, self.labels, strict=True)
        ]
        size = self.labels.shape[1]
        self._all = Subsets(size, 1, np.random.default_rng(0), [size])  # the only subset: every response

    def figures(self, rewards: Any) -> dict[str, Floats]:
        """Return what rewards ``[B]`` or ``[Q, N]`` are worth on each question, [Q] by name of ``FIGURES``.

        AUROC is NaN where all labels are equal; votes weigh by sigmoid(reward), their sums or shrunk means; ties are shared.
        """
        scores = np.asarray(rewards, dtype=np.float64).reshape(self.labels.shape)
        weights = np.stack([reward_weights(row) for row in scores])
        return {
            "auroc": within_question_auroc(scores, self.labels),
            "best_of_16": best_of_curves(scores, self.labels)[:, -1],
            "vote_of_16": self._vote(weights, sums),
            "shrunk_of_16": self._vote(weights, shrunk_means),
        }

    def without_reward(self) -> Mapping[str, dict[str, Floats]]:
        """Return what needs no training, by name: majority vote (a vote of equal weights), and the mean log-probability."""
        logprob = [[mean_logprob(rollout) for rollout in group] for group in self._groups]
        figures = self.figures(logprob)
        return {
            "majority vote": {"vote_of_16": self._vote(np.ones_like(self.labels), sums)},
            "mean log-probability": {name: figures[name] for name in ("auroc", "best_of_16")},
        }

    def _vote(self, weights: Floats, count: Count) -> Floats:
        cases = zip(weights, self._elections, strict=True)
        return np.array([vote_curve(fixed_weights, w, codes, v, self._all, count)[0] for w, (codes, v) in cases])


def stacked(by_seed: list[dict[str, Floats]]) -> dict[str, Floats]:
    """Return the figures of several seeds, [S, Q] by name."""
    return {name: np.stack([one[name] for one in by_seed]) for name in by_seed[0]}
