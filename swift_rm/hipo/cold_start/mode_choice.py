"""Which mode a question is taught in: the one that was right more often, think-off where it makes no difference."""

from __future__ import annotations

import random

from swift_rm.hipo.response.template import Mode

DELTA, RANDOM_SHARE = 0.1, 0.01


def is_tie(p_on: float, p_off: float, delta: float = DELTA) -> bool:
    """Tell whether two pass rates differ by less than ``delta``; rounding aside, so that 0.6 and 0.5 differ by 0.1."""
    return abs(p_on - p_off) < delta - 1e-9


def choose_mode(p_on: float, p_off: float, delta: float = DELTA) -> Mode:
    """Return the mode of the higher pass rate, "off" if they differ by less than ``delta`` (or not at all)."""
    return "on" if p_on > p_off and not is_tie(p_on, p_off, delta) else "off"


def random_mode(question_id: str, seed: int = 0, share: float = RANDOM_SHARE) -> Mode | None:
    """Return a random mode for a ``share`` of all questions, None for the others; the same for the same id and seed."""
    rng = random.Random(f"{seed}:{question_id}".encode(errors="surrogatepass"))  # an id may hold half a surrogate pair
    if rng.random() >= share:
        return None
    return "on" if rng.random() < 0.5 else "off"
