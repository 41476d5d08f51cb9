"""Reliability of probabilities: Brier score and expected calibration error, with their bootstrap over questions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from swift_rm.intervals import Interval, Resamples

Floats = npt.NDArray[np.float64]

BINS = 15


def brier(probabilities: Floats, labels: Floats, resamples: Resamples) -> Interval:
    """Return the mean of (probability - label)^2 over the responses that have a probability; both are [Q, N]."""
    known = ~np.isnan(probabilities)
    errors = np.where(known, probabilities - labels, 0.0) ** 2
    return resamples.interval(resamples.ratio(errors.sum(axis=1), known.sum(axis=1).astype(np.float64)))


def expected_calibration_error(probabilities: Floats, labels: Floats, resamples: Resamples, bins: int = BINS) -> Interval:
    """Return the mean over responses of their bin's |mean probability - share of right responses|; both are [Q, N].

    The bins are of equal width over 0 ... 1, each with its lower edge, the last with 1 too. The absolute value makes a
    sample's error larger than the true one on average, and a resample's larger still: the interval leans upwards.
    """
    known = ~np.isnan(probabilities)
    place = np.minimum(np.where(known, probabilities, 0.0) * bins, bins - 1).astype(np.int64)
    gaps = np.where(known, probabilities - labels, 0.0)
    per_bin = np.stack([np.where(place == index, gaps, 0.0).sum(axis=1) for index in range(bins)], axis=1)  # [Q, bins]
    figures = np.abs(resamples.ratio(per_bin, known.sum(axis=1).astype(np.float64))).sum(axis=1)
    return resamples.interval(figures)
