"""HGPO's advantages (arXiv 2505.14631): is this the better mode, and is this the best response of its mode.

    inter-mode reward  1 if M_i is the mode of the larger of mean(r_on) and mean(r_off) + margin, else 0
    intra-mode reward  1 if r_i is the highest reward of its mode, else 0

Each is normalised by itself, (x - mean) / (std + eps): the inter-mode one over the group, for the mode marker, the
intra-mode one within the mode, for all later tokens. What differs here: the judge block comes before the marker and decides
the mode, so its tokens get the inter-mode advantage too. The paper takes half of the responses in each mode; here that is
the trainer's choice.

Degenerate groups: equal means (with the margin) go to think-off. Equal best responses all get 1, as rewards are often 0 or
1: then the intra-mode reward is the accuracy. Only one mode present: nothing to choose, inter-mode 0. One response in a
mode, or its rewards all equal: intra-mode 0. All rewards equal: the margin alone decides, for think-off. No mode: the plain
GRPO advantage everywhere, and no part in the others. A reward of NaN: 0, no part. A group of one: ValueError (from ``Groups``).
"""

from __future__ import annotations

import torch

from swift_rm.hipo.rewards.bias import ROUNDING
from swift_rm.hipo.rewards.groups import (
    OFF,
    ON,
    Advantages,
    AdvantageSettings,
    Groups,
    mean,
    normalised,
    plain_elsewhere,
    within_modes,
)


def hgpo(groups: Groups, settings: AdvantageSettings) -> Advantages:
    """Return HGPO's advantages; ``judge`` and ``mode`` are the inter-mode one, ``answer`` is the intra-mode one."""
    exact = groups.exact()
    rewards, on, off = exact.rewards, exact.of(ON), exact.of(OFF)
    on_wins = mean(rewards, on) > mean(rewards, off) + settings.margin + ROUNDING
    inter = torch.where(on_wins, on, off).double()
    inter = torch.where(exact.both, normalised(inter, on | off, settings.eps), 0)
    best = (_best(rewards, on) | _best(rewards, off)).double()
    return plain_elsewhere(inter, within_modes(best, exact, settings.eps), exact, settings.eps).like(groups.rewards)


def _best(rewards: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    highest = torch.where(among, rewards, -torch.inf).amax(dim=1, keepdim=True)
    return among & (rewards == highest)
