"""One teacher-forced pass over responses that exist: their states, packed without padding, a batch at a time."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from swift_rm.config import Position
from swift_rm.encoding import Encoded
from swift_rm.evaluating import evaluating
from swift_rm.tap import HiddenStateTap

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class PackedStates:
    """The states of one batch: per layer ``[T, d]``, ``offsets [B + 1]``, and which responses they belong to."""

    indices: list[int]
    layers: list[Tensor]
    offsets: Tensor


def packed_states(
    model: PreTrainedModel,
    layers: Sequence[int],
    position: Position,
    encoded: Sequence[Encoded],
    *,
    batch_size: int = 32,
) -> Iterator[PackedStates]:
    """Yield the states of the responses' regions batch by batch, the longest sequences first, without padding.

    Of a response of R tokens the region may name R as well where the position is ``"generating"``: the state at the last
    token, which produced nothing yet; ``range(R + 1)`` reads the rows of both positions. Batches are padded on the right,
    where causal attention cannot see, whatever the tokenizer's side. The vocabulary's logits are not computed where the
    model allows. Raises ValueError for a token that is not there.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    order = sorted(range(len(encoded)), key=lambda i: -encoded[i].length)
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            yield _read_batch(model, layers, position, encoded, order[start : start + batch_size])


def _read_batch(
    model: PreTrainedModel, layers: Sequence[int], position: Position, encoded: Sequence[Encoded], indices: list[int]
) -> PackedStates:
    """Run one batch and pick the states to read; the padded states are gone when this returns."""
    batch = [encoded[i] for i in indices]
    width = max(one.length for one in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    mask = torch.zeros(len(batch), width, dtype=torch.long)
    spans = []
    for row, one in enumerate(batch):
        ids[row, : one.length] = torch.tensor([*one.prompt_ids, *one.response_ids])
        mask[row, : one.length] = 1
        first = len(one.prompt_ids) - (position == "generating")
        places = torch.tensor(one.region.tokens, dtype=torch.long) + first
        if len(places) and int(places[-1]) >= one.length:
            raise ValueError(f"there is no state at token {one.region.tokens[-1]} of {len(one.response_ids)} of a response")
        spans.append(places + row * width)
    with HiddenStateTap(model, layers) as tap:
        forward_states_only(model, input_ids=ids.to(model.device), attention_mask=mask.to(model.device))
        states = tap.states
    picked = torch.cat(spans)
    offsets = torch.tensor([0, *(len(span) for span in spans)]).cumsum(0)
    return PackedStates(indices, [_pick(states[layer], picked) for layer in layers], offsets)


def forward_states_only(model: PreTrainedModel, **inputs: Tensor) -> None:
    """Run a forward pass for its hidden states: no cache, and logits of one position only where the model can."""
    extra: dict[str, Any] = {"use_cache": False}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        extra["logits_to_keep"] = 1
    model(**inputs, **extra)


def _pick(states: Tensor, picked: Tensor) -> Tensor:
    return states.flatten(0, 1).index_select(0, picked.to(states.device))
