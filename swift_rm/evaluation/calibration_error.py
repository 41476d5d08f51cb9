"""Reliability of probabilities: Brier score, calibration bins and error, with their bootstrap over questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from swift_rm.evaluation.intervals import Interval, Resamples

Floats = npt.NDArray[np.float64]

BINS = 15


@dataclass(frozen=True)
class CalibrationBin:
    """The responses whose probability lies in [low, high): how many, their mean probability, the share that is right.

    The last bin has 1 too.
    """

    low: float
    high: float
    responses: int
    probability: float
    right: Interval

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {**vars(self), "right": self.right.to_dict()}


@dataclass(frozen=True)
class Calibration:
    """The expected calibration error, and the bins it is made of, those without responses left out."""

    error: Interval
    bins: Sequence[CalibrationBin]


def brier(probabilities: Floats, labels: Floats, resamples: Resamples) -> Interval:
    """Return the mean of (probability - label)^2 over the responses that have a probability; both are [Q, N]."""
    known = ~np.isnan(probabilities)
    errors = np.where(known, probabilities - labels, 0.0) ** 2
    return resamples.interval(resamples.ratio(errors.sum(axis=1), known.sum(axis=1).astype(np.float64)))


def calibration(probabilities: Floats, labels: Floats, resamples: Resamples, bins: int = BINS) -> Calibration:
    """Return the calibration of the responses that have a probability; both arguments are [Q, N].

    The error is the mean over responses of their bin's |mean probability - share of right responses|. The bins are of
    equal width over 0 ... 1, each with its lower edge, the last with 1 too. The absolute value makes a sample's error
    larger than the true one on average, and a resample's larger still: the error's interval leans upwards.
    """
    questions = len(probabilities)
    known = ~np.isnan(probabilities)
    place = np.minimum(np.where(known, probabilities, 0.0) * bins, bins - 1).astype(np.int64)
    cells = (place + np.arange(questions)[:, None] * bins)[known]

    def per_bin(values: Floats) -> Floats:  # [Q, bins]
        return np.asarray(np.bincount(cells, values[known], questions * bins).reshape(questions, bins), dtype=np.float64)

    sizes, chances, right = per_bin(np.ones_like(probabilities)), per_bin(probabilities), per_bin(labels)
    gaps = resamples.ratio(chances - right, sizes.sum(axis=1))
    filled = np.flatnonzero(sizes.any(axis=0))
    shares = np.stack([resamples.ratio(right[:, index], sizes[:, index]) for index in filled], axis=1)
    found = [
        CalibrationBin(
            low=float(index / bins),
            high=float((index + 1) / bins),
            responses=int(sizes[:, index].sum()),
            probability=float(chances[:, index].sum() / sizes[:, index].sum()),
            right=share,
        )
        for index, share in zip(filled, resamples.intervals(shares), strict=True)
    ]
    return Calibration(resamples.interval(np.abs(gaps).sum(axis=1)), found)
