"""Spread a response's three advantages over its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from swift_rm.hipo.response.template import Parsed


def token_advantages(
    parsed: Sequence[Parsed],
    judge: Tensor,  # [B]
    mode: Tensor,  # [B]
    answer: Tensor,  # [B]
    width: int,
) -> Tensor:
    """Return the advantage of every token, ``[B, width]``.

    A response's first ``decision`` tokens are the judge block and the mode marker: the marker gets ``mode``, the others
    ``judge``. Later ones get ``answer``, padding gets 0. A response without a mode has no decision: all of it is answer.
    """
    spread = judge.new_zeros(len(parsed), width)
    for row, response in enumerate(parsed):
        length = response.decision + response.think_tokens + response.answer_tokens
        spread[row, :length] = answer[row]
        if response.decision:
            spread[row, : response.decision] = judge[row]
            start, end = response.spans["mode"]
            spread[row, start:end] = mode[row]
    return spread
