"""The states of graded rollouts as one packed table, the training data of a reward head."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor
from tqdm.auto import tqdm

from swift_rm.features.quantised import dequantise
from swift_rm.features.row_selection import Reading, mark_rows, reading_of, reading_rows
from swift_rm.records.rollouts import Rollout, labels_of, question_numbers
from swift_rm.reward.config import SwiftConfig
from swift_rm.scoring.teacher_forced_states import drop_end_tokens, packed_features, states_named
from swift_rm.tokens.encoding import Encoded, check_ids
from swift_rm.tokens.region import Region

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Batch(NamedTuple):
    """Some responses: packed states ``[T, D]``, ``offsets [B + 1]``, ``labels [B]``, ``question [B]``, ``masks [T, V]``."""

    states: Tensor
    offsets: Tensor
    labels: Tensor
    question: Tensor
    masks: Tensor | None


def join_batches(parts: Sequence[Batch]) -> Batch:
    """Return the responses of several batches as one."""
    if len(parts) == 1:
        return parts[0]
    sizes = torch.cat([part.offsets.diff() for part in parts])
    offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    masks = None if parts[0].masks is None else torch.cat([part.masks for part in parts if part.masks is not None])
    labels, question = torch.cat([part.labels for part in parts]), torch.cat([part.question for part in parts])
    return Batch(torch.cat([part.states for part in parts]), offsets, labels, question, masks)


@dataclass(frozen=True)
class Features:
    """Packed states ``[T, D]`` of B responses with ``offsets [B + 1]``, ``labels [B]`` and ``question [B]`` (0..Q-1).

    ``masks [T, V]`` tells which rows each of V ``views`` reads (None: every row). Quantised states stand for
    ``states * scale + zero``, ``[D]`` each. ``flags`` counts the responses read whole because their region could not be had.
    """

    states: Tensor
    offsets: Tensor
    labels: Tensor
    question: Tensor
    flags: Mapping[str, int] = field(default_factory=dict)
    masks: Tensor | None = None
    views: tuple[Reading, ...] = ()
    scale: Tensor | None = None
    zero: Tensor | None = None

    @property
    def questions(self) -> int:
        """Return Q, the number of questions."""
        return int(self.question.max()) + 1 if len(self.question) else 0

    def __len__(self) -> int:
        """Return the number of shards: what is in memory is one, see :class:`FeatureSource`."""
        return 1

    def shard(self, index: int) -> Features:
        """Return the only shard."""
        return self

    def take(self, responses: Tensor) -> tuple[Tensor, Tensor]:
        """Return packed states, no longer quantised, and offsets of some responses, by their indices ``[b]``."""
        states, offsets, *_ = self.batch(responses)
        return states, offsets

    def batch(self, responses: Tensor) -> Batch:
        """Return some responses, by their indices ``[b]``, with everything that training asks of them."""
        sizes = self.offsets.diff()[responses]
        offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        runs = _runs(self.offsets[responses].tolist(), self.offsets[responses + 1].tolist())
        states = torch.cat([self.states[start:end] for start, end in runs])
        if self.scale is not None:
            states = dequantise(states, self.scale, self.zero)
        masks = None if self.masks is None else torch.cat([self.masks[start:end] for start, end in runs])
        return Batch(states, offsets, self.labels[responses], self.question[responses], masks)

    def batches(self, responses: Tensor, size: int) -> Iterator[Batch]:
        """Yield some responses, by their indices ``[b]``, ``size`` at a time."""
        for start in range(0, len(responses), size):
            yield self.batch(responses[start : start + size])

    def only(self, responses: Tensor, device: torch.device | str | None = None) -> Features:
        """Return a copy of some responses, by their indices ``[b]``, no longer quantised, on a device (default: the same)."""
        batch = self.batch(responses)
        return Features(batch.states.to(device), batch.offsets, batch.labels, batch.question, masks=batch.masks, views=self.views)


def _runs(starts: Sequence[int], ends: Sequence[int]) -> list[tuple[int, int]]:
    """Join neighbours: a few long slices are copied much faster than many rows."""
    runs = [(0, 0)]
    for start, end in zip(starts, ends, strict=True):
        if runs[-1][1] == start:
            runs[-1] = (runs[-1][0], end)
        else:
            runs.append((start, end))
    return runs


class FeatureSource(Protocol):
    """Features in shards, of which one at a time is in memory; labels and questions of all, shard after shard."""

    @property
    def labels(self) -> Tensor:
        """The labels of all responses, ``[B]``."""

    @property
    def question(self) -> Tensor:
        """The question numbers of all responses, ``[B]``."""

    def __len__(self) -> int:
        """Return the number of shards."""

    def shard(self, index: int) -> Features:
        """Return one shard; its question numbers are those of the whole."""


def extract_features(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    rollouts: Sequence[Rollout],
    config: SwiftConfig,
    *,
    views: Sequence[Reading] = (),
    batch_size: int = 32,
    max_bytes: int | None = None,
    progress: bool = False,
) -> Features:
    """Read the states of every rollout once, in the language model's own dtype, and keep them in memory.

    What is read is what the configuration's position and region say, or, with ``views``, what any of these read. By its
    source the states are output logits, or the features of log-probabilities, in float32 and without a response's end token.
    Raises ValueError if they would need more than ``max_bytes``, by default half of the memory that is free (said
    before anything is run), if a label is missing, if a sequence is not the model's, or if states are NaN or Inf.
    """
    labels = torch.tensor(labels_of(rollouts))
    for i, rollout in enumerate(rollouts):
        check_ids(model, rollout.prompt_ids, rollout.response_ids, f"rollout {i} (question {rollout.question_id!r})")
    views = tuple(views) or (reading_of(config),)
    found = [reading_rows(views, rollout.response_ids, tokenizer) for rollout in rollouts]
    held = [_rows([rows for rows, _ in each]) for each in found]
    masks, flags = mark_rows(found, held)
    encoded = [Encoded(r.prompt_ids, r.response_ids, Region(rows)) for r, rows in zip(rollouts, held, strict=True)]
    if config.source == "top_logprobs":  # whose region is the whole response, so that there are no masks
        encoded = drop_end_tokens(model, config.source, encoded)
        held = [one.region.tokens for one in encoded]
        for i, rows in enumerate(held):
            if not len(rows):
                raise ValueError(
                    f"rollout {i} (question {rollouts[i].question_id!r}) has no token before its end token, which is not read"
                )
    sizes = torch.tensor([len(rows) for rows in held])
    offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    dtype = model.dtype if config.source != "top_logprobs" else torch.float32
    needed = int(offsets[-1]) * config.width * dtype.itemsize
    max_bytes = max_bytes or free_bytes() // 2
    if needed > max_bytes:
        raise ValueError(
            f"the states of {len(rollouts)} responses ({int(offsets[-1]):,} tokens x {config.width} features) "
            f"need {needed / 2**30:.1f} GiB, "
            f"more than max_bytes = {max_bytes / 2**30:.1f} GiB: {_less(config)}"
        )
    states = torch.empty(int(offsets[-1]), config.width, dtype=dtype)
    with (
        tqdm(total=len(encoded), desc="reading states", unit="response", disable=not progress, delay=1) as bar,
        torch.inference_mode(),
    ):
        for packed in packed_features(model, replace(config, position="generating"), encoded, batch_size=batch_size):
            for layer, part, column in zip(config.layers, packed.layers, range(len(config.layers)), strict=True):
                if not bool(torch.isfinite(part).all()):
                    row = int((~torch.isfinite(part)).any(-1).nonzero()[0])
                    owner = packed.indices[int(torch.searchsorted(packed.offsets, row, right=True)) - 1]
                    raise ValueError(
                        f"response {owner} (question {rollouts[owner].question_id!r}) has NaN or Inf "
                        f"in {states_named(config.source, layer)}"
                    )
                columns = slice(column * config.hidden_size, (column + 1) * config.hidden_size)
                for i, owner in enumerate(packed.indices):
                    source = part[packed.offsets[i] : packed.offsets[i + 1]]
                    states[offsets[owner] : offsets[owner + 1], columns] = source.to(states.device)
            bar.update(len(packed.indices))
            del packed, part  # before the next batch is read
    question = torch.tensor(question_numbers(rollouts))
    return Features(states, offsets, labels, question, dict(flags), masks if len(views) > 1 else None, views)


def _rows(wanted: Sequence[Sequence[int]]) -> Sequence[int]:
    """Return the rows of a response that one view reads, or all between the first and the last that several read."""
    return wanted[0] if len(wanted) == 1 else range(min(rows[0] for rows in wanted), max(rows[-1] for rows in wanted) + 1)


def _less(config: SwiftConfig) -> str:
    """Return what could be done where states need too much memory."""
    if config.source == "logits":
        return (
            "read hidden states, the features of log-probabilities, or fewer responses, or train while sampling (--online), "
            "which keeps no more than --replay-gib"
        )
    what = "alternatives" if config.source == "top_logprobs" else "layers"
    return f"read fewer {what} (now {config.top_logprobs if what == 'alternatives' else len(config.layers)}) or fewer responses"


def free_bytes() -> int:
    """Return how much physical memory is free."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
