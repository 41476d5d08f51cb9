"""How responses are scored wherever a language model is: a job that can be sent to other processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from swift_rm.scoring.score import score_heads
from swift_rm.scoring.token_scoring import read_tokens, token_columns
from swift_rm.tokens.encoding import Encoded

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from swift_rm.reward.reward_model import SwiftRewardModel

Columns = dict[str, list[Any]]


@dataclass(frozen=True)
class Scoring:
    """How encoded responses are scored: a function of the model, the tokenizer and some responses.

    It returns what each head gives each, ``[B, M]`` on the CPU, and with ``tokens`` each one's tokens in columns.
    """

    rm: SwiftRewardModel
    batch_size: int
    tokens: bool = False

    def __call__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, encoded: Sequence[Encoded]
    ) -> tuple[Tensor, list[Columns] | None]:
        """Score the responses."""
        rm = self.rm.to(model.device)
        if not self.tokens:
            return score_heads(model, rm, encoded, batch_size=self.batch_size), None
        scored = read_tokens(model, rm, encoded, batch_size=self.batch_size)
        columns = [token_columns(tokenizer, one.prompt_ids, tokens) for one, tokens in zip(encoded, scored, strict=True)]
        return torch.tensor([tokens.heads for tokens in scored]), columns
