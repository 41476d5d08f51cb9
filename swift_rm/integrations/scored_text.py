"""A response's text that carries its reward through code that knows of texts only."""

from __future__ import annotations

import math


class ScoredText(str):
    """A text with the ``reward`` of the tokens it was made of, a logit; what is cut from it is plain text again.

    What makes another text of its type, as lm-evaluation-harness does of a reference, makes one whose reward is NaN.
    """

    __slots__ = ("reward",)
    reward: float

    def __new__(cls, text: str, reward: float = math.nan) -> ScoredText:
        """Make a text that carries a reward."""
        scored = super().__new__(cls, text)
        scored.reward = reward
        return scored

    def __getnewargs__(self) -> tuple[str, float]:  # type: ignore[override]
        """Return what makes a copy."""
        return str(self), self.reward
