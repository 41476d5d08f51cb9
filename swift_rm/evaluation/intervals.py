"""Percentile bootstrap intervals over questions, and over questions and training seeds together.

The responses of one question stay together, as they are not independent. One set of resamples serves every figure of an
evaluation, so that differences between two rules are paired.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A figure with the bounds of its bootstrap interval; NaN where it is not defined."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float | None]:
        """Return the three numbers by name, None for NaN."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        return {name: number if math.isfinite(number) else None for name, number in numbers.items()}


class Resamples:
    """How often each question occurs in the data and in each bootstrap resample.

    ``counts`` is [1 + bootstrap, Q]; row 0 is the data itself, all ones, so a figure computed for every row has its
    value in row 0 and its resampled values below. Raises ValueError for no questions, no resamples, or a confidence not
    between 0 and 1.
    """

    def __init__(self, questions: int, *, bootstrap: int = 2000, seed: int = 0, confidence: float = 0.95) -> None:
        if questions < 1:
            raise ValueError("an interval needs at least 1 question, got 0")
        if bootstrap < 1:
            raise ValueError(f"an interval needs at least 1 bootstrap resample, got {bootstrap}")
        if not 0 < confidence < 1:
            raise ValueError(f"the confidence of an interval must lie between 0 and 1, got {confidence}")
        drawn = np.random.default_rng(seed).multinomial(questions, np.full(questions, 1 / questions), size=bootstrap)
        self.counts: Floats = np.concatenate([np.ones((1, questions)), drawn])
        self.confidence = confidence

    def ratio(self, numerators: Floats, denominators: Floats | None = None) -> Floats:
        """Return sum(numerators) / sum(denominators) over the questions of every row, [1 + bootstrap, ...].

        ``numerators`` is [Q, ...] and ``denominators`` [Q] (default ones, which gives the mean); 0 / 0 is NaN.
        """
        sums = self.counts @ numerators
        shape = (-1,) + (1,) * (sums.ndim - 1)
        sizes = self.counts @ (np.ones(self.counts.shape[1]) if denominators is None else denominators)
        with np.errstate(invalid="ignore"):
            return np.asarray(sums / sizes.reshape(shape))

    def intervals(self, figures: Floats) -> list[Interval]:
        """Return the interval of each column of ``figures`` [1 + bootstrap, M]; undefined resamples are left out."""
        tail = (1 - self.confidence) / 2
        low, high = np.full((2, figures.shape[1]), np.nan)
        defined = ~np.isnan(figures[1:]).all(axis=0)
        if defined.any():
            low[defined], high[defined] = np.nanquantile(figures[1:, defined], [tail, 1 - tail], axis=0)
        return [Interval(float(v), float(lo), float(hi)) for v, lo, hi in zip(figures[0], low, high, strict=True)]

    def interval(self, figures: Floats) -> Interval:
        """Return the interval of one figure, given for every row, [1 + bootstrap]."""
        return self.intervals(figures[:, None])[0]


def paired_difference(
    values_a: Sequence[float] | Floats,
    values_b: Sequence[float] | Floats,
    *,
    bootstrap: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """Return the mean of a - b over questions with its interval; the values are one number a question for each rule.

    Raises ValueError if the two differ in length.
    """
    a, b = np.asarray(values_a, dtype=np.float64), np.asarray(values_b, dtype=np.float64)
    if len(a) != len(b):
        raise ValueError(f"a paired difference needs both rules' values of every question, got {len(a)} and {len(b)}")
    resamples = Resamples(len(a), bootstrap=bootstrap, seed=seed, confidence=confidence)
    return resamples.interval(resamples.ratio(a - b))


def percent(interval: Interval, sign: str = "") -> str:
    """Return a share with its bounds in %; with the sign "+", what is above zero shows it."""
    return f"{100 * interval.value:{sign}z.1f} [{100 * interval.low:{sign}z.1f}, {100 * interval.high:{sign}z.1f}]"


def plain(interval: Interval) -> str:
    """Return a figure with its bounds."""
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


class SeedResamples:
    """How often each seed ``[1 + bootstrap, S]`` and question ``[1 + bootstrap, Q]`` occurs in the data and each resample.

    A two-level bootstrap: a figure's values are [S, Q], what each of S trained heads is worth on each of Q questions, NaN
    where that is not defined. Both are drawn anew, the questions as many as there are and the seeds one fewer than there are:
    the mean of S - 1 draws varies as widely as that of S seeds does, while S draws would make the intervals of few seeds too
    narrow. The same ``question_seed`` draws the same questions, so that two models judged by the same ones share them. With one
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
