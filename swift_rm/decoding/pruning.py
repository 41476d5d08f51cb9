"""Rules that drop hopeless candidates while they are generated, from the rewards so far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from swift_rm.reward.reward_model import SwiftRewardModel


class Prune(Protocol):
    """A rule that drops candidates of a question; ``guide`` is the reward model it goes by, None for the one in use."""

    @property
    def guide(self) -> SwiftRewardModel | None:
        """Return the reward model whose rewards the rule reads."""

    def checks(self, tokens: int) -> bool:
        """Tell whether the rule is to be asked when the responses are ``tokens`` long."""

    def hopeless(self, tokens: int, rewards: Sequence[float], finished: Sequence[float], pruned: int) -> list[bool]:
        """Tell which of a question's unfinished candidates to drop, given their rewards so far, NaN counting as the lowest.

        ``finished`` are the rewards of its candidates that have ended, ``pruned`` is how many were dropped before.
        """


@dataclass(frozen=True)
class Halving:
    """Successive halving: at ``min_tokens``, and whenever the responses are ``growth`` times as long, keep the best share.

    After check k (1, 2, ...) at most ``n * keep ** k`` of a question's n candidates stand, rounded up, at least ``least``;
    those that finished count among them, but only unfinished ones are dropped. Source: Jamieson and Talwalkar, 2016.
    """

    min_tokens: int = 16
    growth: float = 2.0
    keep: float = 0.5
    least: int = 1
    guide: SwiftRewardModel | None = None

    def __post_init__(self) -> None:
        if self.min_tokens < 1 or not self.growth > 1 or not 0 < self.keep < 1 or self.least < 1:
            raise ValueError(
                "halving needs min_tokens >= 1, growth > 1, 0 < keep < 1 and least >= 1, got "
                f"{self.min_tokens}, {self.growth}, {self.keep}, {self.least}"
            )

    def checks(self, tokens: int) -> bool:
        """Tell whether a round ends at this length."""
        return self._rounds(tokens) > self._rounds(tokens - 1)

    def hopeless(self, tokens: int, rewards: Sequence[float], finished: Sequence[float], pruned: int) -> list[bool]:
        """Drop the lowest of the unfinished until the round's number stands; of equals the last go first."""
        started = len(rewards) + len(finished) + pruned
        stand = max(self.least, math.ceil(started * self.keep ** self._rounds(tokens) - 1e-9))
        values = np.nan_to_num(np.array([*finished, *rewards]), nan=-np.inf, neginf=-np.inf, posinf=np.inf)
        kept = set(np.argsort(-values, kind="stable")[:stand].tolist())
        return [len(finished) + i not in kept for i in range(len(rewards))]

    def _rounds(self, tokens: int) -> int:
        """Count the checks up to this length."""
        if tokens < self.min_tokens:
            return 0
        return 1 + math.floor(math.log(tokens / self.min_tokens) / math.log(self.growth) + 1e-9)


@dataclass(frozen=True)
class Confidence:
    """Drop a candidate whose reward so far lies ``margin`` below the best of its question: its odds are that much worse.

    A reward is a logit, so that a margin of 2 means odds e^2 = 7.4 times worse. Asked at ``min_tokens`` and every ``every``
    tokens from there on; the best is never dropped.
    """

    min_tokens: int = 16
    margin: float = 2.0
    every: int = 4
    guide: SwiftRewardModel | None = None

    def __post_init__(self) -> None:
        if self.min_tokens < 1 or self.every < 1 or not self.margin > 0:
            raise ValueError(
                f"confidence needs min_tokens and every >= 1 and margin > 0, got {self.min_tokens}, {self.every}, {self.margin}"
            )

    def checks(self, tokens: int) -> bool:
        """Tell whether this length is one of those."""
        return tokens >= self.min_tokens and (tokens - self.min_tokens) % self.every == 0

    def hopeless(self, tokens: int, rewards: Sequence[float], finished: Sequence[float], pruned: int) -> list[bool]:
        """Drop those that are ``margin`` below the best, finished or not."""
        scored = [reward for reward in [*rewards, *finished] if reward == reward]
        bar = max(scored, default=math.inf) - self.margin
        return [bool(scored) and not reward >= bar for reward in rewards]


PRUNING_RULES: dict[str, type[Halving] | type[Confidence]] = {"halving": Halving, "confidence": Confidence}


def get_prune(prune: Prune | str | None, rm: SwiftRewardModel) -> Prune | None:
    """Return a pruning rule by its name, or as it is; raise ValueError for an unknown name or a guide of other states."""
    if isinstance(prune, str):
        if prune not in PRUNING_RULES:
            raise ValueError(f"prune must be one of {sorted(PRUNING_RULES)}, or such a rule, got {prune!r}")
        prune = PRUNING_RULES[prune]()
    if prune is not None and prune.guide is not None:
        check_guide(rm, prune.guide)
    return prune


def check_guide(rm: SwiftRewardModel, guide: SwiftRewardModel) -> None:
    """Raise ValueError unless both reward models read the same states."""
    layers = ("layers",) if rm.config.source == "hidden" else ()  # the last one's index, or -1: of records no number is known
    for name in ("source", "top_logprobs", "hidden_size", *layers, "position"):
        there, here = getattr(guide.config, name), getattr(rm.config, name)
        if there != here:
            raise ValueError(
                f"the guide of a pruning rule reads other states: its {name} is {there!r}, the reward model's {here!r}"
            )
