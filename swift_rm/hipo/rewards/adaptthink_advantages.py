"""AdaptThink's advantage (arXiv 2505.13417): r_i - baseline + delta [M_i = off], the same for every token.

The baseline is the reference model's mean reward on the question, measured once before training, so think-off is taken up
where it costs less accuracy than delta. Nothing is divided by a deviation. In the paper half of the responses are forced
into each mode; here that is the trainer's choice.

Degenerate groups: all rewards equal, one mode only, or one response in a mode change nothing, as responses are not
compared with one another. No mode: no delta. A reward of NaN: 0. A question without a baseline (none given, or NaN): the
group's own mean takes its place, which differs from the paper: the advantage then tells right from wrong within the group,
and delta alone is left of how the modes compare with the reference. A group of one: ValueError (from ``Groups``).
"""

from __future__ import annotations

import torch

from swift_rm.hipo.rewards.groups import OFF, Advantages, AdvantageSettings, Groups, mean


def adaptthink(groups: Groups, settings: AdvantageSettings) -> Advantages:
    """Return AdaptThink's advantages."""
    exact = groups.exact()
    baseline = mean(exact.rewards, exact.known)
    if exact.baseline is not None:
        baseline = torch.where(exact.baseline.isfinite()[:, None], exact.baseline[:, None], baseline)
    gain = exact.rewards - baseline + settings.delta * exact.of(OFF)
    plain = torch.where(exact.known, gain, 0)
    return Advantages(plain, plain, plain).like(groups.rewards)
