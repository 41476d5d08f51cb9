"""Step-SRPO-like advantages: one reward for the choice of the mode, one for the answer under it, each normalised.

    judge, mode marker:  ( c_i - mean(c) ) / (std(c) + eps)     c_i = mode_choice_reward, over the group
    all later tokens:    ( r_i - mean(r_{M_i}) ) / (std(r_{M_i}) + eps)

Step-SRPO (KwaiCoder-AutoThink, KAT-V1) is known to reward the two steps apart; its formula is unpublished, so this is not
it. Against HiPO, the choice is right or wrong whatever the distance of the modes, and there is no share of the response's
own success (gamma).

Degenerate groups: only one mode present: the choice gets 0. One response in a mode, or its rewards all equal: its answer
gets 0. All rewards equal: think-off is right, unless they are 0 or below, when nothing is. No mode: the plain GRPO advantage
everywhere. A reward of NaN: 0, no part. A group of one: ValueError (from ``Groups``).
"""

from __future__ import annotations

from swift_rm.hipo.rewards.groups import NO_MODE, Advantages, AdvantageSettings, Groups, normalised, plain_elsewhere, within_modes
from swift_rm.hipo.rewards.rollout_reward import mode_choice_reward


def step_srpo(groups: Groups, settings: AdvantageSettings) -> Advantages:
    """Return the Step-SRPO-like advantages; ``judge`` and ``mode`` are the same. ``bias="none"`` is omega 0."""
    exact = groups.exact()
    choice = mode_choice_reward(exact, 0.0 if settings.bias == "none" else settings.omega)
    chosen = exact.known & (exact.modes != NO_MODE)
    decision = normalised(choice, chosen, settings.eps)
    answer = within_modes(exact.rewards, exact, settings.eps)
    return plain_elsewhere(decision, answer, exact, settings.eps).like(groups.rewards)
