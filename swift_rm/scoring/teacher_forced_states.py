"""One teacher-forced pass over responses that exist: their states, packed without padding, a batch at a time."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from swift_rm.capture.logits_tap import open_tap
from swift_rm.capture.state_recorder import RecordingSpec
from swift_rm.capture.step_order import out_of_step
from swift_rm.models.eval_mode import in_eval_mode
from swift_rm.models.generation_config import model_end_tokens
from swift_rm.models.model_shape import output_width
from swift_rm.reward.config import Position, StateSource, SwiftConfig
from swift_rm.reward.logprob_features import response_features
from swift_rm.reward.logprobs import logprobs_of
from swift_rm.tokens.encoding import Encoded
from swift_rm.tokens.region import Region

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Of the logits of one forward pass, in float32, the dtype in which log-probabilities are made: a vocabulary of 150,000 is as
# wide as 40 hidden states, so that a batch that is right for states would need tens of gigabytes.
LOGITS_BYTES = 512 * 2**20
TOKENS = 256  # whose log-probabilities are made at once: those of a long response would be copies of all of its logits


@dataclass(frozen=True)
class PackedStates:
    """The states of one batch: per layer ``[T, d]``, ``offsets [B + 1]``, and which responses they belong to."""

    indices: list[int]
    layers: list[Tensor]
    offsets: Tensor

    def nan_where_unread(self, rewards: Tensor) -> Tensor:
        """Return rewards ``[B, M]`` with NaN for a response of which nothing is read."""
        return rewards.masked_fill((self.offsets.diff() == 0).to(rewards.device)[:, None], torch.nan)


def packed_features(
    model: PreTrainedModel, config: SwiftConfig, encoded: Sequence[Encoded], *, batch_size: int = 32
) -> Iterator[PackedStates]:
    """Yield what a reward model of this configuration reads of the responses' regions, as :func:`packed_states` does.

    Log-probabilities come as their features ``[T, F]``; of these a region must begin with the response's first token.
    """
    return packed_states(
        model, config.layers, config.position, encoded, batch_size=batch_size, source=config.source, top=config.top_logprobs
    )


def packed_states(
    model: PreTrainedModel,
    layers: Sequence[int],
    position: Position,
    encoded: Sequence[Encoded],
    *,
    batch_size: int = 32,
    source: StateSource = "hidden",
    top: int | None = None,
) -> Iterator[PackedStates]:
    """Yield the states of the responses' regions batch by batch, the longest sequences first, without padding.

    Of a response of R tokens the region may name R as well where the position is ``"generating"``: the state at the last
    token, which produced nothing yet; ``range(R + 1)`` reads the rows of both positions. Batches are padded on the right,
    where causal attention cannot see, whatever the tokenizer's side. The vocabulary's logits are not computed where the
    model allows. Raises ValueError for a token that is not there.

    With another ``source`` the states are output logits ``[T, V]``, computed for the responses only where the model allows,
    in batches of no more than ``LOGITS_BYTES`` (but one response at least), or the features of log-probabilities with
    ``top`` alternatives.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    order = sorted(range(len(encoded)), key=lambda i: -encoded[i].length)
    with in_eval_mode(model):
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            rows = batch_size if source == "hidden" else _rows_at_once(model, [encoded[i] for i in indices])
            for first in range(0, len(indices), rows):
                yield _read_batch(model, layers, position, encoded, indices[first : first + rows], source, top)


def _rows_at_once(model: PreTrainedModel, batch: Sequence[Encoded]) -> int:
    """Return how many responses' logits may be computed at once."""
    tokens = _kept(batch) if _keeps_logits(model) else batch[0].length
    return max(1, LOGITS_BYTES // (4 * tokens * output_width(model)))


def _kept(batch: Sequence[Encoded]) -> int:
    """Return how many of the last tokens of a batch, padded on the right, are responses, each with the token before it."""
    return max(one.length for one in batch) - min(len(one.prompt_ids) for one in batch) + 1


def _keeps_logits(model: PreTrainedModel) -> bool:
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def _read_batch(
    model: PreTrainedModel,
    layers: Sequence[int],
    position: Position,
    encoded: Sequence[Encoded],
    indices: list[int],
    source: StateSource,
    top: int | None,
) -> PackedStates:
    """Run one batch and pick the states to read; the padded states are gone when this returns."""
    batch = [encoded[i] for i in indices]
    width = max(one.length for one in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    mask = torch.zeros(len(batch), width, dtype=torch.long)
    places = []
    for row, one in enumerate(batch):
        ids[row, : one.length] = torch.tensor([*one.prompt_ids, *one.response_ids])
        mask[row, : one.length] = 1
        first = len(one.prompt_ids) - (position == "generating")
        places.append(torch.tensor(one.region.tokens, dtype=torch.long) + first)
        if len(places[-1]) and int(places[-1][-1]) >= one.length:
            raise ValueError(f"there is no state at token {one.region.tokens[-1]} of {len(one.response_ids)} of a response")
    with open_tap(model, source, layers) as tap:
        extra: dict[str, Any] = {"use_cache": False}
        if _keeps_logits(model):
            extra["logits_to_keep"] = 1 if source == "hidden" else _kept(batch)
        model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), **extra)
        states = tap.states
    rows, seen = states[layers[0]].shape[:2]  # of output logits perhaps the last tokens' only
    if rows != len(batch) or seen not in ({width} if source == "hidden" else {width, _kept(batch)}):
        raise out_of_step("the teacher-forced pass", f"states of {[rows, seen]} rows and tokens came of {[len(batch), width]}")
    picked = torch.cat([place + row * seen - (width - seen) for row, place in enumerate(places)])
    offsets = torch.tensor([0, *map(len, places)]).cumsum(0)
    if top is None:
        return PackedStates(indices, [_pick(states[layer], picked) for layer in layers], offsets)
    chosen = torch.tensor([one.response_ids[token] for one in batch for token in one.region.tokens], dtype=torch.long)
    logprobs = _logprobs(states[layers[0]], picked, chosen, top)
    return PackedStates(indices, [response_features(*logprobs, offsets)], offsets)


def _logprobs(logits: Tensor, picked: Tensor, chosen: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities ``[T]`` of the ``chosen`` tokens, and ``[T, top]`` of the likeliest, a part at a time."""
    parts = [
        logprobs_of(_pick(logits, places), tokens.to(logits.device), top)
        for places, tokens in zip(torch.split(picked, TOKENS), torch.split(chosen, TOKENS), strict=True)
    ]
    return torch.cat([part for part, _ in parts]), torch.cat([part for _, part in parts])


def states_named(source: StateSource, layer: int) -> str:
    """Return what an error calls the states of a layer."""
    kinds = {"logits": "its output logits", "top_logprobs": "the features of its log-probabilities"}
    return kinds.get(source, f"the states of layer {layer}")


def _pick(states: Tensor, picked: Tensor) -> Tensor:
    return states.flatten(0, 1).index_select(0, picked.to(states.device))


def drop_end_tokens(model: PreTrainedModel, source: StateSource, encoded: Sequence[Encoded]) -> list[Encoded]:
    """Leave out the end token of each response from what is read of it, if the ``source`` does not read it.

    Of a response of nothing else no token is left, and it is flagged.
    """
    if source != "top_logprobs":
        return list(encoded)
    ends = model_end_tokens(model)
    return [_drop_end_token(one) if one.response_ids and one.response_ids[-1] in ends else one for one in encoded]


def _drop_end_token(one: Encoded) -> Encoded:
    last = len(one.response_ids) - 1
    tokens = range(last) if isinstance(one.region.tokens, range) else [i for i in one.region.tokens if i < last]
    return replace(one, region=Region(tokens, one.region.flag if len(tokens) else "region_empty"))


@torch.no_grad()
def read_again(
    model: PreTrainedModel,
    recording: RecordingSpec,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    *,
    batch_size: int = 32,
) -> tuple[Tensor, Tensor]:
    """Return what :meth:`StateRecorder.packed` would of responses that exist, by one teacher-forced pass over their ids."""
    # The row numbers of a position, as the indices of tokens that the pass is asked for: a row more than "generating" has.
    position: Position = "generating" if "generating" in recording.positions else "token"
    encoded = []
    for prompt, response in zip(prompts, responses, strict=True):
        encoded.append(Encoded(prompt, response, Region(range(len(recording.rows(len(response)))))))
    counts = torch.tensor([len(one.region.tokens) for one in encoded])
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    states: Tensor | None = None
    for packed in packed_states(model, recording.layers, position, encoded, batch_size=batch_size, source=recording.source):
        if states is None:
            width = sum(layer.shape[1] for layer in packed.layers)
            states = torch.empty(int(offsets[-1]), width, dtype=packed.layers[0].dtype, device=model.device)
        rows = torch.cat([torch.arange(int(offsets[i]), int(offsets[i + 1])) for i in packed.indices]).to(states.device)
        states[rows] = torch.cat([layer.to(states.device) for layer in packed.layers], dim=1).to(states.dtype)
    if states is None:
        raise ValueError("there are no responses to read again")
    return states, offsets.to(model.device)
