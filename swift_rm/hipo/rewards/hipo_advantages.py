"""HiPO's advantages (arXiv 2509.23967): one for choosing a mode, one for answering under it.

For a response i of reward r_i and mode M_i, among the G responses to its question:

    judge, mode marker:  ( [mean(r_{M_i}) - mean(r)] + gamma (r_i - mean(r)) ) / (std(r) + eps)
    all later tokens:    ( r_i - mean(r_{M_i}) ) / (std(r_{M_i}) + eps)

The bracket says how much better the mode does than the group, and so pays every response for its choice, right or wrong;
gamma adds a share of its own success. The later tokens are compared with those of the same mode only, so that a mode is
never blamed for the other's ease.

The structure is the paper's, the formula a reading of it. ``bias="mean"`` adds the bias (see ``bias``) to think-off's mean
in the bracket, and so ``bias n_off / n`` to the mean(r) it is compared with: the bracket still sums to 0 over the group.
``bias="sample"`` adds it to each think-off reward, and so to the gamma term as well. In A_answer it would cancel, as that
is centred by mode. std(r) is of the rewards as given in either case.

Degenerate groups:

- All rewards equal: std is 0, so that the bracket is divided by eps alone. With eps = omega = 0.01 a tie between right
  answers, r = 1.2, is +-0.6 when the modes are evenly mixed, as large as a usual advantage; one between wrong answers that
  are well formed, r = 0.2, is +-0.1; one at 0 is 0. A much smaller eps would let ties drown everything else.
- Only one mode present: the bracket is 0 and there is no bias; the gamma term and A_answer remain.
- One response in a mode, or its rewards all equal: its A_answer is 0.
- No mode: the plain GRPO advantage everywhere. Its reward counts in mean(r) and std(r).
- A reward of NaN: advantage 0, and no part in any mean.
- A group of one: ValueError (from ``Groups``).
"""

from __future__ import annotations

import torch

from swift_rm.hipo.rewards.bias import off_bias
from swift_rm.hipo.rewards.groups import (
    OFF,
    ON,
    Advantages,
    AdvantageSettings,
    Groups,
    deviation,
    mean,
    plain_elsewhere,
    within_modes,
)


def hipo(groups: Groups, settings: AdvantageSettings) -> Advantages:
    """Return HiPO's advantages; ``judge`` and ``mode`` are the same."""
    exact = groups.exact()
    rewards, known, on, off = exact.rewards, exact.known, exact.of(ON), exact.of(OFF)
    shifted = rewards if settings.bias == "none" else rewards + off * off_bias(exact, settings.omega)
    own = shifted if settings.bias == "sample" else rewards
    of_mode = torch.where(on, mean(shifted, on), mean(shifted, off))
    bracket = torch.where(exact.both, of_mode - mean(shifted, known), 0)
    decision = (bracket + settings.gamma * (own - mean(own, known))) / (deviation(rewards, known) + settings.eps)
    decision = torch.where(on | off, decision, 0)
    answer = within_modes(rewards, exact, settings.eps)
    return plain_elsewhere(decision, answer, exact, settings.eps).like(groups.rewards)
