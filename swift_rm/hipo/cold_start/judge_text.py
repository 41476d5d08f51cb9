"""What the judge block says: why this question is taught in this mode, as an explainer puts it into words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from swift_rm.hipo.response.template import Mode


@dataclass(frozen=True)
class Facts:
    """What is known of a question: its text, the mode that it is taught in, and each mode's pass rate in how many tries.

    A pass rate is None where the mode was not tried.
    """

    question: str
    mode: Mode
    p_on: float | None
    p_off: float | None
    tries_on: int = 0
    tries_off: int = 0


Explainer = Callable[[Facts], str]


@dataclass(frozen=True)
class RuleExplainer:
    """State the measured pass rates and nothing else, in "words" or, for a vocabulary without words, "terse".

    Words: "thinking first was right in 7 of 8 tries, answering at once in 2 of 8 tries". Terse: the tenths of each rate, 9 at
    most, think-on first: "82".
    """

    form: Literal["words", "terse"] = "words"

    def __post_init__(self) -> None:
        if self.form not in ("words", "terse"):
            raise ValueError(f"the form of an explanation must be 'words' or 'terse', got {self.form!r}")

    def __call__(self, facts: Facts) -> str:
        """Return the explanation."""
        rates = [("thinking first", facts.p_on, facts.tries_on), ("answering at once", facts.p_off, facts.tries_off)]
        known = [(name, rate, tries) for name, rate, tries in rates if rate is not None]
        if self.form == "terse":
            return "".join(str(min(9, int(10 * rate + 1e-9))) for _, rate, _ in known)
        told = [f"{name} {'was right ' if not i else ''}in {_told(rate, tries)}" for i, (name, rate, tries) in enumerate(known)]
        return ", ".join(told)


def _told(rate: float, tries: int) -> str:
    right = rate * tries
    if abs(right - round(right)) < 1e-6:
        return f"{round(right)} of {tries} tries"
    return f"about {100 * rate:.0f} % of {tries} tries"
