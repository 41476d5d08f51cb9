"""The features of tokens that are being generated, made of the output logits by which they were chosen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from swift_rm.models.generation_config import model_end_tokens
from swift_rm.reward.logprob_features import LogprobFeatures
from swift_rm.reward.logprobs import logprobs_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class RunningLogprobs:
    """Make the features ``[rows, F]`` of each row's next token from the logits of its step; end tokens are not counted.

    A token is an end token where it is one of the model's own and, see :meth:`ended_by`, ends a response of this call.
    """

    def __init__(self, model: PreTrainedModel, top: int) -> None:
        self._top, self._own = top, model_end_tokens(model)
        self._maker = LogprobFeatures(top)
        self.ended_by(self._own)

    def ended_by(self, ends: Iterable[int]) -> None:
        """Say which tokens end a response in the calls to come."""
        self._ends = torch.tensor(sorted(self._own.intersection(ends)), dtype=torch.long)

    def begin(self) -> None:
        """Start responses; how many there are is seen with their first tokens."""
        self._begun = False

    def step(self, logits: Tensor, tokens: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        """Take logits ``[rows, 1, V]`` and the tokens chosen; return features ``[rows, 1, F]`` and which rows count them."""
        if not self._begun:
            self._maker.begin(len(tokens), logits.device)
            self._ends, self._begun = self._ends.to(tokens.device), True
        features = self._maker.step(*logprobs_of(logits[:, -1], tokens.to(logits.device), self._top))
        return features[:, None], active & ~torch.isin(tokens, self._ends)

    def select(self, rows: Tensor) -> None:
        """Keep these rows ``[kept]``, in this order; one may be kept several times."""
        if self._begun:
            self._maker.select(rows)

    def row_bytes(self) -> int:
        """Return the bytes that are kept for a row."""
        return self._maker.row_bytes() if self._begun else 0
