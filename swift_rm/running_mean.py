"""The gated mean of tokens that come one by one: three floats a row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from swift_rm_kernels import gated_step, new_running, running_rewards
from torch import Tensor

from swift_rm.head import GatedHead


class RunningMean:
    """Keep what a head, as it is now, makes of each row's tokens, whatever their number: ``running [rows, 3]``."""

    def __init__(self, head: GatedHead) -> None:
        dtype = torch.promote_types(head.weight.dtype, torch.float32)  # a long sum in less loses the tokens that come last
        self.weight, self.bias = (part.detach().to(dtype, copy=True) for part in (head.weight, head.bias))
        self.begin(0)

    def __len__(self) -> int:
        return len(self._running)

    def begin(self, rows: int) -> None:
        """Begin anew, with rows that have counted no token."""
        self._running = new_running(rows, self.weight.device, self.weight.dtype)

    def add(self, states: Sequence[Tensor], active: Tensor, scores: Tensor | None = None) -> None:
        """Add a token to the rows that are ``active [rows]``; ``scores [rows, 2]`` (``[rows, 1]``) receives z and r."""
        gated_step(states, self.weight, self.bias, self._running, active, scores=scores)

    def select(self, rows: Tensor) -> None:
        """Keep these rows ``[kept]``, in this order; one may be kept several times."""
        self._running = self._running.index_select(0, rows)

    def rewards(self) -> Tensor:
        """Return the gated mean of each row, ``[rows]``; NaN where no token was counted."""
        return running_rewards(self._running)

    def begun(self) -> Tensor:
        """Tell which rows have counted a token, ``[rows]``."""
        return self._running[:, 2] != 0

    def row_bytes(self) -> int:
        """Return the bytes that are kept for a row."""
        return 3 * self._running.itemsize
