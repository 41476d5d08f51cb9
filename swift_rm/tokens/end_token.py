"""The token that ends a response: a reward model of log-probabilities does not read it, because few servers return it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from swift_rm.models.generation_config import end_tokens_of
from swift_rm.reward.config import Source
from swift_rm.tokens.encoding import Encoded
from swift_rm.tokens.region import Region

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def own_ends(model: PreTrainedModel) -> frozenset[int]:
    """Return the ids of the tokens with which a model says by itself that its response is done."""
    return frozenset(end_tokens_of(model, {}).tolist())


def says_nothing(ends: frozenset[int], response_ids: Sequence[int]) -> bool:
    """Tell whether a response is one of the end tokens ``ends`` alone."""
    return len(response_ids) == 1 and response_ids[0] in ends


def without_ends(model: PreTrainedModel, source: Source, encoded: Sequence[Encoded]) -> list[Encoded]:
    """Leave out the end token of each response from what is read of it, if the ``source`` does not read it.

    Of a response of nothing else no token is left, and it is flagged.
    """
    if source != "top_logprobs":
        return list(encoded)
    ends = own_ends(model)
    return [_without_end(one) if one.response_ids and one.response_ids[-1] in ends else one for one in encoded]


def _without_end(one: Encoded) -> Encoded:
    last = len(one.response_ids) - 1
    tokens = range(last) if isinstance(one.region.tokens, range) else [i for i in one.region.tokens if i < last]
    return replace(one, region=Region(tokens, one.region.flag if len(tokens) else "region_empty"))
