"""GRPO's advantage (arXiv 2402.03300): (r_i - mean(r)) / (std(r) + eps), the same for every token; modes do not matter.

All rewards equal: 0. A reward of NaN: 0, and no part in mean or std. A group of one: ValueError (from ``Groups``).
"""

from __future__ import annotations

from swift_rm.hipo.rewards.groups import Advantages, AdvantageSettings, Groups, normalised


def grpo(groups: Groups, settings: AdvantageSettings) -> Advantages:
    """Return GRPO's advantages."""
    exact = groups.exact()
    plain = normalised(exact.rewards, exact.known, settings.eps)
    return Advantages(plain, plain, plain).like(groups.rewards)
