"""What a tiny reasoner learns from, stage by stage: a course from nothing, and one for a model that was grown."""

from __future__ import annotations

from dataclasses import dataclass, field

import graded_corpus as text


@dataclass(frozen=True)
class Stage:
    """A text to learn from: for so many steps, or until so large a share of its drills' marks is told right in every world.

    ``newest`` is the share of the last world's documents, the others having equal parts of the rest; None: all equal parts.
    ``rate`` scales the learning rates.
    """

    name: str
    mix: dict[str, float]
    rows: int
    steps: int = 0
    goal: float = 2.0
    decays: bool = False
    weights: dict[str, float] = field(default_factory=dict)
    newest: float | None = None
    rate: float = 1.0

    def shares(self, worlds: list[str]) -> dict[str, float]:
        """Return each world's share of the documents."""
        last = 1 / len(worlds) if self.newest is None or len(worlds) == 1 else self.newest
        return {world: last if world == worlds[-1] else (1 - last) / (len(worlds) - 1) for world in worlds}


POLISHED = {"grade_weight": 12.0, "notice_weight": 3.0}
HALF_POLISHED = {"grade_weight": 6.0, "notice_weight": 1.5}
PLAIN = {"mark_weight": 1.0, "grade_weight": 1.0}
NEARLY_PLAIN = {"mark_weight": 2.0, "grade_weight": 3.0}
STAGES = (
    Stage("sums", text.SUMS, 384, steps=400),
    Stage("checks", text.CHECKS, 384, steps=3000, goal=0.985),
    Stage("longer checks", text.LONGER_CHECKS, 192, steps=2000, goal=0.97),
    Stage("early", text.EARLY, 96, steps=800),
    Stage("late", text.LATE, 96, steps=4000, decays=True),
    Stage("polish", text.POLISH, 96, steps=1800, decays=True, weights=POLISHED),
)
# As it went: checking of the new world first, and homework's own steps, which that had blurred, brought back after.
GROWING_STAGES = (
    Stage("new sums", text.SUMS, 128, steps=300, newest=0.9),
    Stage("new checks", text.CHECKS, 128, steps=700, goal=0.985, newest=0.85),
    Stage("new longer checks", text.LONGER_CHECKS, 96, steps=300, goal=0.985, newest=0.7, rate=0.5),
    Stage("grown early", text.GROWN, 64, steps=300, newest=0.5, rate=0.5),
    Stage("grown checks", text.MARKS, 96, steps=300, goal=0.985, newest=0.8, rate=0.5),
    Stage("grown late", text.GROWN, 64, steps=600, decays=True, weights=POLISHED, newest=0.6, rate=0.5),
    Stage("grown texts", text.TEXTS, 48, steps=1400, decays=True, weights=HALF_POLISHED, newest=0.5, rate=0.7),
    Stage("grown polish", text.COPIES, 96, steps=300, decays=True, weights=HALF_POLISHED, newest=0.25, rate=0.5),
    Stage("grown copies", text.COPIES, 96, steps=200, weights=PLAIN, newest=0.12),
    Stage("grown last", text.COPIES, 96, steps=500, decays=True, weights=NEARLY_PLAIN, newest=0.3, rate=0.4),
)
