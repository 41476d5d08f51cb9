"""What the decoding loop returns: candidates, the batch they came in, and what a callback sees after each token."""

from __future__ import annotations

from dataclasses import dataclass

from swift_rm.selection.candidates import FinishReason
from swift_rm.tokens.region import Flag


@dataclass(frozen=True)
class DecodedCandidate:
    """One candidate: the prompt it answers, its tokens (end-of-sequence included), and what was read of them.

    ``logprob`` is the mean log-probability of its tokens under the model's own distribution. The reward is that of the
    tokens there are, also where the candidate was dropped before its end ("pruned", "budget", "cancelled"); NaN if
    "not_finite".
    ``partial`` is what a pruning rule goes by: the same, or the reward of the rule's own reward model.
    """

    prompt: int
    token_ids: list[int]
    reward: float
    logprob: float
    finish_reason: FinishReason
    flag: Flag | None
    partial: float

    @property
    def complete(self) -> bool:
        """Tell whether it came to its end, or to the end of the room for it, with a reward."""
        return self.finish_reason in ("stop", "length")


@dataclass(frozen=True)
class DecodedBatch:
    """What one batch gave: its candidates in the order asked for (after Ctrl-C: those that finished), and all its tokens."""

    candidates: list[DecodedCandidate]
    tokens: int
    interrupted: bool = False


@dataclass(frozen=True)
class Step:
    """What a callback sees after a token: the rows still decoded, by candidate (numbered as asked for) and prompt.

    Prompts have the numbers by which the batch's maker knows them: the engine's are those of all that it was asked.
    """

    candidates: list[int]
    prompts: list[int]
    token_ids: list[list[int]]
    partial_rewards: list[float]
