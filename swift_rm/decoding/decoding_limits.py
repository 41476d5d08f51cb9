"""What may end candidates before their end token: a pruning rule, limits of tokens, a cancelled request."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import dataclass, field

from swift_rm.decoding.decoded_candidate import DecodedCandidate
from swift_rm.decoding.pruning import Prune
from swift_rm.selection.candidates import FinishReason


@dataclass(frozen=True)
class DecodingLimits:
    """What may end candidates early: a pruning rule, with the rewards of each prompt's earlier candidates, and a token limit.

    ``lengths`` are limits of single prompts, in new tokens a candidate. ``cancelled`` tells, token by token, which prompts
    nobody wants to be answered any more. ``on_done(number, candidate)`` is called when one finishes
    or is dropped.
    """

    prune: Prune | None = None
    earlier: Mapping[int, Sequence[float]] | None = None
    tokens: int | None = None
    lengths: Mapping[int, int] = field(default_factory=dict)
    cancelled: Callable[[], Container[int]] | None = None
    on_done: Callable[[int, DecodedCandidate], None] | None = None

    def to_prune(
        self,
        length: int,
        unfinished: Sequence[int],
        rewards: Mapping[int, float],
        prompts: Sequence[int],
        ended: Mapping[int, FinishReason],
        done: Collection[DecodedCandidate],
    ) -> dict[int, FinishReason]:
        """Return which of the ``unfinished`` candidates the pruning rule drops now, ``length`` tokens being scored.

        ``rewards`` are those of all candidates in the batch so far, ``prompts`` the prompt of each; ``ended`` have ended and
        leave with the next token, ``done`` have left.
        """
        dropped: dict[int, FinishReason] = {}
        if self.prune is None:
            return dropped
        for prompt in sorted({prompts[candidate] for candidate in unfinished}):
            own = [candidate for candidate in unfinished if prompts[candidate] == prompt]
            gone = [one for one in done if one.prompt == prompt]
            pruned = sum(one.finish_reason == "pruned" for one in gone)
            finished = [one.partial for one in gone if one.finish_reason != "pruned"]
            finished += [
                math.nan if reason == "not_finite" else rewards[candidate]
                for candidate, reason in ended.items() if prompts[candidate] == prompt
            ]  # fmt: skip
            finished += (self.earlier or {}).get(prompt, [])
            hopeless = self.prune.hopeless(length, [rewards[candidate] for candidate in own], finished, pruned)
            dropped.update((candidate, "pruned") for candidate, drop in zip(own, hopeless, strict=True) if drop)
        return dropped
