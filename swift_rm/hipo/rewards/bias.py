"""HiPO's bias adjustment: a question that both modes answer about equally well counts as one for think-off.

    bias = omega * mean(r_on);   if 0 <= mean(r_on) - mean(r_off) <= bias:   mean(r_off) += bias

A tie between right answers goes to the short mode by ``omega`` times their reward, one between wrong answers, whose reward
is near 0, by next to nothing, and one below 0 (a penalty) by nothing. Where think-off is better there is no tie to break.
The paper (arXiv 2509.23967) does not say whether it shifts the mode's mean or each sample: see ``hipo_advantages``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from swift_rm.hipo.rewards.groups import OFF, ON, Groups, mean

ROUNDING = 1e-6  # means that are equal on paper differ by less, in float32 too


def off_bias(groups: Groups, omega: float) -> Tensor:
    """Return what is added to think-off's mean reward, [Q, 1]; 0 where one of the modes has no response."""
    groups = groups.exact()
    on, off = mean(groups.rewards, groups.of(ON)), mean(groups.rewards, groups.of(OFF))
    bias = omega * on
    tied = (on - off >= -ROUNDING) & (on - off <= bias + ROUNDING) & (bias > 0)
    return torch.where(groups.both & tied, bias, 0)


def biased_means(groups: Groups, omega: float) -> tuple[Tensor, Tensor]:
    """Return the mean reward of think-on and the adjusted one of think-off, [Q] each; NaN for a mode without responses."""
    groups = groups.exact()
    on, off = (
        torch.where(groups.of(mode).any(dim=1), mean(groups.rewards, groups.of(mode))[:, 0], torch.nan) for mode in (ON, OFF)
    )
    return on, off + off_bias(groups, omega)[:, 0]
