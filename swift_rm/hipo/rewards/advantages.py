"""The advantages of a group's responses by the name of the algorithm; each algorithm is a file of its own."""

from __future__ import annotations

from collections.abc import Mapping

from swift_rm.hipo.rewards.adaptthink_advantages import adaptthink
from swift_rm.hipo.rewards.groups import Advantages, AdvantageSettings, Algorithm, Groups
from swift_rm.hipo.rewards.grpo_advantages import grpo
from swift_rm.hipo.rewards.hgpo_advantages import hgpo
from swift_rm.hipo.rewards.hipo_advantages import hipo
from swift_rm.hipo.rewards.step_srpo_advantages import step_srpo

__all__ = [
    "ADVANTAGES",
    "AdvantageSettings",
    "Advantages",
    "Groups",
    "adaptthink",
    "advantages",
    "grpo",
    "hgpo",
    "hipo",
    "step_srpo",
]

ADVANTAGES: Mapping[str, Algorithm] = {
    "hipo": hipo,
    "grpo": grpo,
    "adaptthink": adaptthink,
    "hgpo": hgpo,
    "step_srpo": step_srpo,
}


def advantages(name: str, groups: Groups, settings: AdvantageSettings | None = None) -> Advantages:
    """Return the advantages of the algorithm of this name; raise ValueError if there is none."""
    if name not in ADVANTAGES:
        raise ValueError(f"advantages must be one of {', '.join(ADVANTAGES)}, got {name!r}")
    return ADVANTAGES[name](groups, settings or AdvantageSettings())
