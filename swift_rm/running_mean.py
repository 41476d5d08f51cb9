"""The gated mean of tokens that come one by one: three floats a row."""

from __future__ import annotations

import torch
from swift_rm_kernels.reference import add_scores_reference, new_running, running_rewards
from torch import Tensor

WAITING = 16  # tokens that are added together: a step of a small model takes hardly longer than adding one


class RunningMean:
    """Keep the gated mean of each row's tokens, whatever their number: ``running [rows, 3]``.

    The scores of up to 16 tokens wait until they are added all at once, or until somebody asks.
    """

    def __init__(self, rows: int, device: torch.device | str | None = None) -> None:
        self._running = new_running(rows, device)
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._token_bytes = 0

    def __len__(self) -> int:
        return len(self._running)

    def add(self, scores: Tensor, active: Tensor) -> None:
        """Add a token's z and r, ``scores [rows, 2]`` (or r alone), to the rows that are ``active [rows]``."""
        if not self._token_bytes:
            self._token_bytes = scores[:1].nbytes + active[:1].nbytes
        self._waiting.append((scores, active))
        if len(self._waiting) == WAITING:
            self._settle()

    def select(self, rows: Tensor) -> None:
        """Keep these rows ``[kept]``, in this order; one may be kept several times."""
        self._running = self._settle().index_select(0, rows)

    def rewards(self) -> Tensor:
        """Return the gated mean of each row, ``[rows]``; NaN where no token was counted."""
        return running_rewards(self._settle())

    def begun(self) -> Tensor:
        """Tell which rows have counted a token, ``[rows]``."""
        return self._settle()[:, 2] != 0

    def row_bytes(self) -> int:
        """Return the most bytes that are kept for a row."""
        return self._running[:1].nbytes + WAITING * self._token_bytes

    def _settle(self) -> Tensor:
        if self._waiting:
            scores, active = (torch.stack(part, dim=1) for part in zip(*self._waiting, strict=True))
            add_scores_reference(self._running, scores, active)
            self._waiting = []
        return self._running
