"""The head: two numbers per hidden unit."""

from __future__ import annotations

from typing import NamedTuple

import torch
from swift_rm_kernels import gated_pool
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


class GatedHead(nn.Module):
    """Map states ``[T, D]`` to a gated mean per response (SWIFT, arXiv 2505.12225).

    ``weight [2, D]`` and ``bias [2]``: row 0 is the gate, row 1 the reward. Without a gate there is one row, and the
    reward of a response is the plain mean of its tokens' rewards.
    """

    def __init__(self, width: int, gate: bool = True) -> None:
        super().__init__()
        rows = 2 if gate else 1
        self.weight = nn.Parameter(torch.zeros(rows, width))
        self.bias = nn.Parameter(torch.zeros(rows))

    @property
    def gate(self) -> bool:
        """Whether tokens are weighted by gates."""
        return self.weight.shape[0] == 2

    def forward(self, features: States, offsets: Tensor) -> Tensor:
        """Compute the rewards ``[B]`` of packed responses; ``features`` is ``[T, D]`` or a list of ``[T, d]``."""
        return gated_pool(features, self.weight, self.bias, offsets)

    def token_scores(self, features: States) -> TokenScores:
        """Compute gate and reward of each token; without a gate every gate is 1."""
        tokens = len(features if isinstance(features, Tensor) else features[0])
        return self.rewards_and_tokens(features, torch.tensor([0, tokens]))[1]

    def rewards_and_tokens(self, features: States, offsets: Tensor) -> tuple[Tensor, TokenScores]:
        """Compute the rewards ``[B]`` of packed responses, and gate and reward of each token, in one pass."""
        rewards, z, r = gated_pool(features, self.weight, self.bias, offsets, return_tokens=True)
        return rewards, TokenScores.of(z, r, self.gate)
