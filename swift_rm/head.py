"""The head: two numbers per hidden unit."""

from __future__ import annotations

from typing import NamedTuple

import torch
from swift_rm_kernels import gated_pool_reference
from swift_rm_kernels.reference import States, token_scores_reference
from torch import Tensor, nn


class TokenScores(NamedTuple):
    """What the head says of each token: ``gate [T]`` in 0..1 and ``reward [T]``."""

    gate: Tensor
    reward: Tensor


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

    def forward(self, features: States, offsets: Tensor) -> Tensor:
        """Compute the rewards ``[B]`` of packed responses; ``features`` is ``[T, D]`` or a list of ``[T, d]``."""
        return gated_pool_reference(features, self.weight, self.bias, offsets)

    def token_scores(self, features: States) -> TokenScores:
        """Compute gate and reward of each token; without a gate every gate is 1."""
        scores = token_scores_reference(features, self.weight, self.bias)
        gate = torch.sigmoid(scores[:, 0]) if self.weight.shape[0] == 2 else torch.ones_like(scores[:, 0])
        return TokenScores(gate, scores[:, -1])
