"""Intervals that cover both what was asked and what was trained: a two-level bootstrap over test questions and seeds.

A figure's values are [S, Q]: what each of S trained heads is worth on each of Q questions, NaN where that is not defined.
Both are drawn anew, the questions as many as there are and the seeds one fewer than there are: the mean of S - 1 draws
varies as widely as that of S seeds does, while S draws would make the intervals of few seeds too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from swift_rm.evaluation.intervals import Interval, Resamples

Floats = npt.NDArray[np.float64]


class SeedResamples:
    """How often each seed ``[1 + bootstrap, S]`` and question ``[1 + bootstrap, Q]`` occurs in the data and each resample.

    The same ``question_seed`` draws the same questions, so that two models judged by the same ones share them. With one
    seed, the intervals cover the questions alone.
    """

    def __init__(self, seeds: int, questions: int, *, bootstrap: int = 2000, question_seed: int = 0, seed_seed: int = 0) -> None:
        if seeds < 1:
            raise ValueError(f"an interval over seeds needs at least 1, got {seeds}")
        self._resamples = Resamples(questions, bootstrap=bootstrap, seed=question_seed)
        self.questions = self._resamples.counts
        rng = np.random.default_rng([seed_seed, 1])  # another stream than the questions'
        drawn = rng.multinomial(max(seeds - 1, 1), np.full(seeds, 1 / seeds), size=bootstrap)
        self.seeds: Floats = np.concatenate([np.ones((1, seeds)), drawn])

    def figures(self, values: Floats) -> Floats:
        """Return the mean of ``values`` [S, Q] in the data and in every resample, [1 + bootstrap]; NaN values are left out."""
        defined = ~np.isnan(values)
        sums = ((self.seeds @ np.where(defined, values, 0.0)) * self.questions).sum(axis=1)
        with np.errstate(invalid="ignore"):
            return np.asarray(sums / ((self.seeds @ defined) * self.questions).sum(axis=1))

    def interval(self, *figures: Floats) -> Interval:
        """Return the interval of the mean of figures, each given for every resample: of one setting, or of several."""
        return self._resamples.interval(np.mean(figures, axis=0))


def pooled(resamples: Sequence[SeedResamples], values: Sequence[Floats]) -> Interval:
    """Return the mean over settings, each of which counts the same, of values [S, Q]."""
    return resamples[0].interval(*(one.figures(value) for one, value in zip(resamples, values, strict=True)))
