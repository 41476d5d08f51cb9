"""What rewards are worth on the test questions of a benchmark, and what needs no training there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from swift_rm.records.rollouts import Rollout, group_by_question
from swift_rm.selection.baselines import mean_logprob
from swift_rm.training.label_curve import question_figures

Floats = npt.NDArray[np.float64]

FIGURES = ("auroc", "best_of_16", "vote_of_16", "shrunk_of_16")


class TestQuestions:
    """Test questions, each with the same number of responses, and what rewards make of them."""

    __test__ = False

    def __init__(self, rollouts: Sequence[Rollout]) -> None:
        self._groups = list(group_by_question(rollouts).values())
        self.labels = np.array([[rollout.label for rollout in group] for group in self._groups], dtype=np.float64)
        self._answers = [[rollout.answer for rollout in group] for group in self._groups]

    def figures(self, rewards: Any) -> dict[str, Floats]:
        """Return what rewards ``[B]`` or ``[Q, N]`` are worth on each question, [Q] by name of ``FIGURES``."""
        scores = np.asarray(rewards, dtype=np.float64).reshape(self.labels.shape)
        found = question_figures(scores, self.labels, self._answers)
        return {name: found[name.removesuffix("_of_16")] for name in FIGURES}

    def of_score(self, score: Callable[[Rollout], float]) -> dict[str, Floats]:
        """Return what a score of single responses is worth, as :meth:`figures`."""
        return self.figures([[score(rollout) for rollout in group] for group in self._groups])

    def without_reward(self) -> Mapping[str, dict[str, Floats]]:
        """Return what needs no training, by name: majority vote (a vote of equal weights), and the mean log-probability."""
        logprob = self.of_score(mean_logprob)
        return {
            "majority vote": {"vote_of_16": self.figures(np.zeros_like(self.labels))["vote_of_16"]},
            "mean log-probability": {name: logprob[name] for name in ("auroc", "best_of_16")},
        }


def stacked(by_seed: list[dict[str, Floats]]) -> dict[str, Floats]:
    """Return the figures of several seeds, [S, Q] by name."""
    return {name: np.stack([one[name] for one in by_seed]) for name in by_seed[0]}
