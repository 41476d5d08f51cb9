"""One question's candidates in the order of their rewards, and the one that a rule chose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from swift_rm.records.rollouts import Prompt
from swift_rm.selection.rules import select
from swift_rm.tokens.region import Flag

Ended = Literal["all", "probability", "gain", "budget", "interrupted", "failed", "cancelled"]

FinishReason = Literal["stop", "length", "pruned", "budget", "cancelled", "not_finite"]


@dataclass(frozen=True)
class Candidate:
    """One sampled response with its reward (a logit; NaN if its states were not finite) and probability of being right.

    ``logprob`` is the mean log-probability of its tokens, ``answer`` what votes are cast with, ``flag`` tells why the
    whole response was read instead of the configured region, that it is "not_finite", or, where a reward model of
    log-probabilities found nothing but the end token, "region_empty". A candidate whose ``finish_reason`` is "pruned",
    "budget" or "cancelled" was dropped on its way: its reward is that of the tokens there are, and it is never chosen.
    ``external`` is what the external reward function said of it.
    """

    text: str
    token_ids: list[int]
    reward: float
    probability: float
    logprob: float
    finish_reason: FinishReason
    answer: str | None
    flag: Flag | None
    external: float | None = None

    @property
    def complete(self) -> bool:
        """Tell whether it may be chosen: it came to its end, or to the end of the room for it, with a reward."""
        return self.finish_reason in ("stop", "length")


@dataclass(frozen=True)
class BestOfN:
    """The candidates of one question, whole ones first, each in the order of their rewards, and the one the rule chose.

    ``tokens_spent`` were generated for it. ``tokens_saved`` is an estimate of what all n whole candidates would have cost
    beyond that, from the mean length of those that finished. ``ended`` says why it got no more candidates: "all" of them
    were there, the highest "probability" reached ``stop_at``, the expected "gain" was too small, the "budget" was
    spent, it was "interrupted" by Ctrl-C, or "cancelled" by who asked, or some requests to a server "failed".
    """

    prompt: Prompt | Sequence[int]
    candidates: list[Candidate]
    best: Candidate
    tokens_spent: int
    tokens_saved: int
    ended: Ended


def ranked(
    prompt: Any, candidates: Sequence[Candidate], rule: str, tokens_spent: int, tokens_saved: int, ended: Ended
) -> BestOfN:
    """Order candidates and choose among those that are complete by ``rule``; raise ValueError if none has a reward."""
    able = [candidate for candidate in candidates if candidate.complete]
    external = [c.external for c in able] if any(c.external is not None for c in able) else None
    selection = select(rule, [c.reward for c in able], [c.answer for c in able], external)
    order = sorted(candidates, key=lambda c: (math.isnan(c.reward), not c.complete, -c.reward))
    return BestOfN(prompt, order, able[selection.index], tokens_spent, tokens_saved, ended)


def why_no_reward(flags: Sequence[Flag | None]) -> str:
    """Say why no candidate has a reward, from their ``flags``."""
    if "region_empty" in flags:
        return "some said nothing but their end token, which is not read"
    return "their states are NaN or Inf"
