"""How much the share of think-on swings from step to step."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from itertools import pairwise
from statistics import fmean
from typing import Any

STEPS = 10


class ModeHistory:
    """The last think rates, and the mean absolute change between them.

    A model whose choice is not settled swings between the modes while its mean rate looks calm.
    """

    def __init__(self, rates: Iterable[float] = (), steps: int = STEPS) -> None:
        if steps < 1:
            raise ValueError(f"the oscillation is over at least 1 change of the think rate, got {steps}")
        self._rates: deque[float] = deque(rates, maxlen=steps + 1)

    @classmethod
    def from_log(cls, log: Iterable[Mapping[str, Any]], steps: int = STEPS) -> ModeHistory:
        """Return the history that a resumed run has behind it, from the trainer's ``state.log_history``."""
        rates = (entry.get("hipo/think_rate") for entry in log)
        return cls((float(rate) for rate in rates if rate is not None), steps)

    def step(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Note a step's ``hipo/think_rate``, if it has one, and return the oscillation by its name; nothing before 2 steps."""
        if "hipo/think_rate" in metrics:
            self._rates.append(metrics["hipo/think_rate"])
        if len(self._rates) < 2:
            return {}
        return {"hipo/think_rate_oscillation": fmean(abs(later - rate) for rate, later in pairwise(self._rates))}
