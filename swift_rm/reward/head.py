"""The head: two numbers per hidden unit; or several such heads that judge together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from swift_rm_kernels import gated_pool, gated_pool_heads, pool_heads
from swift_rm_kernels.reference import States
from torch import Tensor, nn


class TokenScores(NamedTuple):
    """What the head says of each token: ``gate [T]`` in 0..1 and ``reward [T]``."""

    gate: Tensor
    reward: Tensor

    @classmethod
    def of(cls, z: Tensor, r: Tensor, gate: bool) -> TokenScores:
        """Read the gates' logits and the rewards, ``[T]`` each; of a head without a gate every gate is 1."""
        return cls(torch.sigmoid(z) if gate else torch.ones_like(z), r)

    @classmethod
    def mean(cls, scores: Sequence[TokenScores]) -> TokenScores:
        """Average the gates and the rewards of several heads; of one they are its own."""
        if len(scores) == 1:
            return scores[0]
        return cls(torch.stack([one.gate for one in scores]).mean(0), torch.stack([one.reward for one in scores]).mean(0))


class GatedHead(nn.Module):
    """Map states ``[T, D]`` to a gated mean per response (SWIFT, arXiv 2505.12225).

    ``weight [2, D]`` and ``bias [2]``: row 0 is the gate, row 1 the reward. Without a gate there is one row, and the
    reward of a response is the plain mean of its tokens' rewards. Of M heads the rows follow one another, ``[2M, D]`` and
    ``[2M]``; the reward is what :func:`combine` makes of theirs.
    """

    def __init__(self, width: int, gate: bool = True, heads: int = 1, pessimism: float = 0.0) -> None:
        super().__init__()
        rows = heads * (2 if gate else 1)
        self.heads, self.pessimism = heads, pessimism
        self.weight = nn.Parameter(torch.zeros(rows, width))
        self.bias = nn.Parameter(torch.zeros(rows))

    @property
    def gate(self) -> bool:
        """Whether tokens are weighted by gates."""
        return self.weight.shape[0] == 2 * self.heads

    def split(self) -> list[tuple[Tensor, Tensor]]:
        """Return each head's own weight ``[2, D]`` (``[1, D]``) and bias."""
        if self.heads == 1:
            return [(self.weight, self.bias)]
        return list(zip(self.weight.chunk(self.heads), self.bias.chunk(self.heads), strict=True))

    def forward(self, features: States, offsets: Tensor) -> Tensor:
        """Compute the rewards ``[B]`` of packed responses; ``features`` is ``[T, D]`` or a list of ``[T, d]``."""
        return self.combine(self.rewards(features, offsets))

    def rewards(self, features: States, offsets: Tensor) -> Tensor:
        """Compute the reward that each head gives each response, ``[B, M]``."""
        if self.heads == 1:
            return gated_pool(features, self.weight, self.bias, offsets)[:, None]
        rows = len(self.bias) // self.heads
        return gated_pool_heads(features, self.weight.view(self.heads, rows, -1), self.bias.view(self.heads, rows), offsets)

    def pool(self, scores: Tensor, offsets: Tensor) -> Tensor:
        """Compute the rewards ``[B]`` from what ``gated_step`` said of each token, ``[T, rows]``; NaN of no token."""
        each = scores.view(len(scores), self.heads, 2 if self.gate else 1)
        z = each[..., 0] if self.gate else torch.zeros_like(each[..., 0])
        rewards = self.combine(pool_heads(z, each[..., -1], offsets))
        return rewards.masked_fill(offsets.diff() == 0, torch.nan)

    def combine(self, rewards: Tensor) -> Tensor:
        """Return the reward ``[...]`` of what the heads give, ``[..., M]``."""
        return combine(rewards, self.pessimism)

    def token_scores(self, features: States) -> TokenScores:
        """Compute gate and reward of each token, of several heads their means; without a gate every gate is 1."""
        tokens = len(features if isinstance(features, Tensor) else features[0])
        return self.rewards_and_tokens(features, torch.tensor([0, tokens]))[1]

    def rewards_and_tokens(self, features: States, offsets: Tensor) -> tuple[Tensor, TokenScores]:
        """Compute each head's rewards ``[B, M]`` of packed responses, and gate and reward of each token, in one pass a head."""
        found = [gated_pool(features, weight, bias, offsets, return_tokens=True) for weight, bias in self.split()]
        rewards = torch.stack([rewards for rewards, _, _ in found], dim=1)
        return rewards, TokenScores.mean([TokenScores.of(z, r, self.gate) for _, z, r in found])


def combine(rewards: Tensor, pessimism: float) -> Tensor:
    """Return ``mean - pessimism * spread`` over the last dimension, that of the heads; one head's reward is its own.

    A response that the heads disagree about is one unlike those they were trained on: the reward that is highest because
    one of them errs is the first to fall. NaN where a head gave none.
    """
    if rewards.shape[-1] == 1:
        return rewards.squeeze(-1)
    mean = rewards.mean(-1)
    return mean - pessimism * spread(rewards) if pessimism else mean


def spread(rewards: Tensor) -> Tensor:
    """Return the standard deviation over the last dimension, that of the heads (of all of them, so of one it is 0)."""
    return rewards.std(-1, correction=0)
