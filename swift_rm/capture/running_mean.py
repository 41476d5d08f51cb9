"""The gated mean of tokens that come one by one: three floats a row for each head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from swift_rm_kernels import gated_step, new_running, running_rewards
from torch import Tensor

from swift_rm.reward.head import GatedHead, TokenScores, combine


class RunningMean:
    """Keep what a head, as it is now, makes of each row's tokens, whatever their number: ``running [M, rows, 3]`` for M heads."""

    def __init__(self, head: GatedHead) -> None:
        dtype = torch.promote_types(head.weight.dtype, torch.float32)  # a long sum in less loses the tokens that come last
        self._heads = [
            (weight.detach().to(dtype, copy=True), bias.detach().to(dtype, copy=True)) for weight, bias in head.split()
        ]
        self._gate, self._pessimism = head.gate, head.pessimism
        self.begin(0)

    def __len__(self) -> int:
        return self._running.shape[1]

    @property
    def device(self) -> torch.device:
        """Return where the rows are kept."""
        return self._running.device

    def begin(self, rows: int) -> None:
        """Begin anew, with rows that have counted no token."""
        weight, _ = self._heads[0]
        self._keep(new_running(len(self._heads) * rows, weight.device, weight.dtype).view(len(self._heads), rows, 3))

    def _keep(self, running: Tensor) -> None:
        self._running, self._of_heads = running, running.unbind(0)  # here once: a decoded token has little time

    def add(self, states: Sequence[Tensor], active: Tensor | None, scores: Tensor | None = None) -> None:
        """Add a token to the rows that are ``active [rows]`` (None: all); ``scores`` of ``new_scores`` gets each head's z, r."""
        for number, ((weight, bias), running) in enumerate(zip(self._heads, self._of_heads, strict=True)):
            gated_step(states, weight, bias, running, active, scores=None if scores is None else scores[number])

    def new_scores(self, rows: int) -> Tensor:
        """Return room for what the heads say of a token of each row, ``[M, rows, 2]`` (without a gate ``[M, rows, 1]``)."""
        weight, _ = self._heads[0]
        return weight.new_empty(len(self._heads), rows, len(weight))

    def token_scores(self, scores: Tensor) -> TokenScores:
        """Read gate and reward ``[t]`` of tokens from their scores ``[M, t, 2]``: of several heads the means."""
        return TokenScores.mean([TokenScores.of(one[..., 0], one[..., -1], self._gate) for one in scores])

    def select(self, rows: Tensor) -> None:
        """Keep these rows ``[kept]``, in this order; one may be kept several times."""
        self._keep(self._running.index_select(1, rows))

    def rewards(self) -> Tensor:
        """Return the reward of each row, ``[rows]``: what the heads' gated means give; NaN where no token was counted."""
        return combine(running_rewards(self._running.flatten(0, 1)).view(self._running.shape[:2]).T, self._pessimism)

    def begun(self) -> Tensor:
        """Tell which rows have counted a token, ``[rows]``."""
        return (self._running[..., 2] != 0).any(0)

    def row_bytes(self) -> int:
        """Return the bytes that are kept for a row."""
        return 3 * len(self._heads) * self._running.itemsize
