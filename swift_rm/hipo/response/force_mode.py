"""Force a mode: once the judge block is closed, the mode's marker is the only token that may follow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from swift_rm.hipo.response.template import Mode, Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ForceMode:
    """A logits processor for one mode: after a response's first closing judge tag, only the mode's marker can be sampled.

    Without a judge block in the template, the marker is the first token. A response that never closes its judge block is
    left alone. It goes by each row's tokens and keeps nothing between calls, so that rows may leave the batch. All rows
    begin with ``prompt_length`` tokens of prompt, padding on the left included. It works in transformers' `generate` and in
    the Best-of-N engine. Raises ValueError for a tag that is not a single token of the tokenizer.
    """

    def __init__(self, template: Template, tokenizer: PreTrainedTokenizerBase, mode: Mode, prompt_length: int) -> None:
        self.mode, self.prompt_length = mode, prompt_length
        self.marker = _token(tokenizer, template.marker(mode))
        self.closing = None if template.judge is None else _token(tokenizer, template.judge[1])

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores ``[rows, V]`` of the tokens that follow ``input_ids [rows, seq]``: 0 for the marker, else -inf."""
        forced = self._forced(input_ids)
        if not bool(forced.any()):
            return scores
        only = torch.full_like(scores[:1], -torch.inf)
        only[:, self.marker] = 0
        return torch.where(forced[:, None], only, scores)

    def _forced(self, input_ids: Tensor) -> Tensor:
        """Tell in which rows ``[rows]`` the next token is the marker."""
        sampled = input_ids[:, self.prompt_length :]
        if self.closing is None or not sampled.shape[1]:
            first = self.closing is None and not sampled.shape[1]
            return torch.full((len(input_ids),), first, dtype=torch.bool, device=input_ids.device)
        last = sampled[:, -1] == self.closing
        return last & ((sampled == self.closing).sum(1) == 1) if bool(last.any()) else last


def _token(tokenizer: PreTrainedTokenizerBase, tag: str) -> int:
    ids = tokenizer(tag, add_special_tokens=False)["input_ids"]
    unknown = ids == [tokenizer.unk_token_id] and tag != tokenizer.unk_token
    if len(ids) != 1 or unknown:
        raise ValueError(f"to force a mode, the tag {tag!r} must be one token of the tokenizer, but it spells it {ids}: add it")
    return int(ids[0])
