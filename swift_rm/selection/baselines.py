"""Baseline scores: what a rollout's length and token probabilities say about it, without any reward model.

Every score is higher for the better response and NaN where the rollout lacks what it needs (also where a non-finite
value was stored as null). Majority vote and oracle are rules over answers and labels, not scores: they live in
``evaluation``.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from swift_rm.records.rollouts import Rollout

DEEPCONF_WINDOW = 2048


def first(candidates: Sequence[Rollout]) -> list[float]:
    """Score a question's candidates by position, so that the first is chosen."""
    return [-float(position) for position in range(len(candidates))]


def random(candidates: Sequence[Rollout], seed: int = 0) -> list[float]:
    """Score a question's candidates uniformly in [0, 1), as a function of seed, question id and position only."""
    return [_uniform(f"{seed}:{position}:{rollout.question_id}") for position, rollout in enumerate(candidates)]


def _uniform(key: str) -> float:
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) / 2**53


def length(rollout: Rollout) -> float:
    """Return minus the number of response tokens: shorter is better.

    Among responses to one question the wrong ones tend to be longer: they ramble, or run into the token limit.
    """
    return -float(rollout.tokens)


def mean_logprob(rollout: Rollout) -> float:
    """Return the mean token log-probability, from ``token_logprobs`` or else the record's ``logprob_mean``."""
    values = _tokens(rollout, "token_logprobs")
    if values.size:
        return float(values.mean())
    return math.nan if rollout.logprob_mean is None else float(rollout.logprob_mean)


def sum_logprob(rollout: Rollout) -> float:
    """Return the log-probability of the whole response, the sum over its tokens."""
    values = _tokens(rollout, "token_logprobs")
    return float(values.sum()) if values.size else math.nan


def min_logprob(rollout: Rollout) -> float:
    """Return the log-probability of the least likely token."""
    values = _tokens(rollout, "token_logprobs")
    return float(values.min()) if values.size else math.nan


def self_certainty(rollout: Rollout) -> float:
    """Return the self-certainty stored at sampling: how far from uniform the predictions were.

    The mean over tokens and vocabulary of -log(V p), arXiv 2502.18581.
    """
    value = rollout.extra.get("self_certainty")
    return math.nan if value is None else float(value)


def deepconf_mean(rollout: Rollout) -> float:
    """Return DeepConf's average trace confidence (arXiv 2508.15260): the mean token confidence.

    A token's confidence is minus the mean of its top-k log-probabilities: high where the other choices are unlikely.
    """
    values = _tokens(rollout, "token_confidence")
    return float(values.mean()) if values.size else math.nan


def deepconf_tail(rollout: Rollout, tail: int = DEEPCONF_WINDOW) -> float:
    """Return DeepConf's tail confidence: the mean over the last ``tail`` tokens."""
    values = _tokens(rollout, "token_confidence")
    return float(values[-_positive("tail", tail) :].mean()) if values.size else math.nan


def deepconf_bottom(rollout: Rollout, window: int = DEEPCONF_WINDOW, share: float = 0.1) -> float:
    """Return DeepConf's bottom-10 % group confidence: the mean of the lowest tenth of the windows, at least of one."""
    means = np.sort(_window_means(rollout, window))  # NaN is sorted last, but one NaN token is to spoil the score
    lowest = means[: max(1, int(share * len(means)))]
    return float(lowest.mean()) if means.size and not np.isnan(means).any() else math.nan


def deepconf_lowest(rollout: Rollout, window: int = DEEPCONF_WINDOW) -> float:
    """Return DeepConf's lowest group confidence: the mean of the least confident window."""
    means = _window_means(rollout, window)
    return float(means.min()) if means.size else math.nan


def baseline_scores(deepconf_window: int = DEEPCONF_WINDOW) -> dict[str, Callable[[Rollout], float]]:
    """Return the scores by name, with DeepConf's window (and tail) of so many tokens.

    A response no longer than the window is one window, and then DeepConf's four scores are one and the same: give short
    responses a shorter window. Raises ValueError if the window is not at least 1.
    """
    window = _positive("window", deepconf_window)
    return {
        "length": length,
        "mean_logprob": mean_logprob,
        "sum_logprob": sum_logprob,
        "min_logprob": min_logprob,
        "self_certainty": self_certainty,
        "deepconf_mean": deepconf_mean,
        "deepconf_tail": partial(deepconf_tail, tail=window),
        "deepconf_bottom": partial(deepconf_bottom, window=window),
        "deepconf_lowest": partial(deepconf_lowest, window=window),
    }


def _tokens(rollout: Rollout, key: str) -> npt.NDArray[np.float64]:
    """Return the per-token statistic [R], empty where the rollout has none; null becomes NaN."""
    return np.array(rollout.extra.get(key) or [], dtype=np.float64)


def _window_means(rollout: Rollout, window: int) -> npt.NDArray[np.float64]:
    """Return the mean confidence of every window of tokens: max(1, R - window + 1) of them, none if R = 0."""
    values = _tokens(rollout, "token_confidence")
    width = min(_positive("window", window), len(values))
    if not width:
        return values
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return np.asarray((sums[width:] - sums[:-width]) / width)


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"DeepConf's {name} must be at least 1 token, got {value}")
    return value


BASELINES = baseline_scores()
