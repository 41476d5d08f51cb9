"""How many candidates each question gets next: all at once, or in waves until another would hardly help, or within a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from swift_rm.selection.candidates import Ended

PRIOR = 2.0  # what the other questions' candidates weigh, in candidates, in the guess of a question's next one
QUANTILES = 65  # by which these are known where they are many, so that a wave of thousands of questions is planned at once
FEW = 32  # other candidates: with fewer, a next one may as well be anything, or a lone question would end with its first wave
ANYTHING = tuple((i + 0.5) / 16 for i in range(16))


@dataclass(frozen=True)
class QuestionProgress:
    """What is known of a question: the probabilities of its finished candidates, how many were started, and their tokens.

    ``n`` is its own number of candidates, if not the plan's; ``cancelled`` that nobody wants it to be answered any more.
    """

    probabilities: Sequence[float]
    started: int
    tokens: int
    n: int | None = None
    cancelled: bool = False


def expected_gain(own: Sequence[float], others: Sequence[float], more: int) -> float:
    """Return by how much ``more`` new candidates are expected to raise a question's best probability of being right.

    A new candidate's probability is guessed to be one of the question's own, or, with the weight of two of these, one of
    the ``others``; the gain is that of the best of ``more`` independent guesses. 1 where nothing is known.
    """
    values = np.array([*own, *others], dtype=np.float64)
    if not len(values):
        return 1.0
    prior = PRIOR if len(others) and len(own) else 1.0
    weights = np.array([1.0] * len(own) + [prior / max(len(others), 1)] * len(others))
    order = np.argsort(values)
    values, below = values[order], np.cumsum(weights[order]) / weights.sum()
    chance = np.diff(np.concatenate([[0.0], below**more]))  # that the best of `more` is this value
    return float((chance * np.maximum(values - max(own, default=0.0), 0.0)).sum())


@dataclass(frozen=True)
class CandidatePlan:
    """How candidates are handed out: at most ``n`` a question, unless it has a number of its own, ``wave`` at a time.

    Without ``stop_at`` and ``budget`` all ``n`` come at once. With ``stop_at`` a question is done when its best candidate's
    probability of being right reaches it, or when another wave's :func:`expected_gain` is below ``min_gain``, for which the
    other questions' candidates are the guesses, and anything from 0 to 1 as long as these are few. With
    ``budget`` each question gets one wave, and then the waves go, as long as the budget of tokens lasts, where the
    expected gain per expected token is highest.
    """

    n: int
    wave: int
    stop_at: float | None = None
    budget: int | None = None
    min_gain: float = 0.0

    def __post_init__(self) -> None:
        if self.n < 1 or self.wave < 1:
            raise ValueError(f"n and wave must be at least 1, got {self.n} and {self.wave}")
        if self.stop_at is not None and not 0 < self.stop_at <= 1:
            raise ValueError(f"stop_at is a probability above 0 and at most 1, got {self.stop_at}")
        if self.budget is not None and self.budget < 1:
            raise ValueError(f"budget must be at least 1 token, got {self.budget}")
        if not 0 <= self.min_gain < 1:
            raise ValueError(f"min_gain is a probability from 0 to below 1, got {self.min_gain}")

    @property
    def in_waves(self) -> bool:
        """Tell whether candidates come in several waves."""
        return self.stop_at is not None or self.budget is not None

    def next_wave(self, sampled: Sequence[QuestionProgress]) -> tuple[list[int], list[Ended | None]]:
        """Return how many candidates each question gets now, and why those that get none have ended."""
        counts: list[int] = [0] * len(sampled)
        ended: list[Ended | None] = [None] * len(sampled)
        worth: list[tuple[float, int]] = []
        seen = [p for one in sampled for p in one.probabilities]
        many = np.quantile(seen, np.linspace(0, 1, QUANTILES)).tolist() if len(seen) > 4 * QUANTILES else None
        for i, one in enumerate(sampled):
            size = min(self.wave, self._room(one)) if self.in_waves else self._room(one)
            others = many or [p for j, other in enumerate(sampled) if j != i for p in other.probabilities]
            if len(others) < FEW:
                others = [*others, *ANYTHING]
            gain = expected_gain(one.probabilities, others, size) if one.started and size else 1.0
            if one.cancelled:
                ended[i] = "cancelled"
            elif size == 0:
                ended[i] = "all"
            elif self.stop_at is not None and max(one.probabilities, default=0.0) >= self.stop_at:
                ended[i] = "probability"
            elif one.started and gain < self.min_gain:
                ended[i] = "gain"
            elif not one.started or self.budget is None:
                counts[i] = size
            else:
                worth.append((-gain * one.started / max(one.tokens, 1), i))
        self._spend(counts, ended, worth, sampled)
        return counts, ended

    def _room(self, one: QuestionProgress) -> int:
        return (self.n if one.n is None else one.n) - one.started

    def _spend(
        self, counts: list[int], ended: list[Ended | None], worth: list[tuple[float, int]], sampled: Sequence[QuestionProgress]
    ) -> None:
        """Hand out the remaining budget, the most useful first; ``worth`` is minus the gain per token, and whose."""
        remaining = float(self.budget or 0) - sum(one.tokens for one in sampled)
        for _, i in sorted(worth):
            cost = sampled[i].tokens / sampled[i].started
            size = min(self.wave, self._room(sampled[i]), int(remaining / max(cost, 1e-9)))
            if size < 1:
                ended[i] = "budget"
                continue
            counts[i] = size
            remaining -= size * cost
