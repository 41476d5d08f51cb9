"""The states of graded rollouts as one packed table, the training data of a reward head."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm.auto import tqdm

from swift_rm.config import SwiftConfig
from swift_rm.encoding import Encoded, check_ids
from swift_rm.packing import packed_states
from swift_rm.region import find_region
from swift_rm.rollouts import Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Features:
    """Packed states ``[T, D]`` of B responses with ``offsets [B + 1]``, ``labels [B]`` and ``question [B]`` (0..Q-1).

    ``flags`` counts the responses read whole because their region could not be had.
    """

    states: Tensor
    offsets: Tensor
    labels: Tensor
    question: Tensor
    flags: Mapping[str, int] = field(default_factory=dict)

    @property
    def questions(self) -> int:
        """Return Q, the number of questions."""
        return int(self.question.max()) + 1 if len(self.question) else 0

    def take(self, responses: Tensor) -> tuple[Tensor, Tensor]:
        """Return packed states and offsets of some responses, by their indices ``[b]``."""
        starts, sizes = self.offsets[responses], self.offsets.diff()[responses]
        offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        rows = torch.arange(int(offsets[-1])) + torch.repeat_interleave(starts - offsets[:-1], sizes)
        return self.states.index_select(0, rows), offsets


def extract_features(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    rollouts: Sequence[Rollout],
    config: SwiftConfig,
    *,
    batch_size: int = 32,
    max_bytes: int | None = None,
    progress: bool = False,
) -> Features:
    """Read the states of every rollout once, in the language model's own dtype, and keep them in memory.

    Raises ValueError if they would need more than ``max_bytes``, by default half of the memory that is free (said
    before anything is run), if a label is missing, if a sequence is not the model's, or if states are NaN or Inf.
    """
    missing = [i for i, rollout in enumerate(rollouts) if rollout.label is None]
    if missing:
        raise ValueError(f"{len(missing)} of {len(rollouts)} rollouts have no label (the first is number {missing[0]})")
    for i, rollout in enumerate(rollouts):
        check_ids(model, rollout.prompt_ids, rollout.response_ids, f"rollout {i} (question {rollout.question_id!r})")
    encoded = [Encoded(r.prompt_ids, r.response_ids, find_region(r.response_ids, config.marker, tokenizer)) for r in rollouts]
    sizes = torch.tensor([len(one.response_ids) - one.region.start for one in encoded])
    offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    dtype = model.dtype
    needed = int(offsets[-1]) * config.width * dtype.itemsize
    max_bytes = max_bytes or free_bytes() // 2
    if needed > max_bytes:
        raise ValueError(
            f"the states of {len(rollouts)} responses ({int(offsets[-1]):,} tokens x {config.width} features) "
            f"need {needed / 2**30:.1f} GiB, "
            f"more than max_bytes = {max_bytes / 2**30:.1f} GiB: read fewer layers (now {len(config.layers)}) or fewer responses"
        )
    states = torch.empty(int(offsets[-1]), config.width, dtype=dtype)
    with (
        tqdm(total=len(encoded), desc="reading states", unit="response", disable=not progress, delay=1) as bar,
        torch.inference_mode(),
    ):
        for packed in packed_states(model, config.layers, config.position, encoded, batch_size=batch_size):
            for layer, part, column in zip(config.layers, packed.layers, range(len(config.layers)), strict=True):
                if not bool(torch.isfinite(part).all()):
                    row = int((~torch.isfinite(part)).any(-1).nonzero()[0])
                    owner = packed.indices[int(torch.searchsorted(packed.offsets, row, right=True)) - 1]
                    raise ValueError(
                        f"response {owner} (question {rollouts[owner].question_id!r}) has NaN or Inf "
                        f"in the states of layer {layer}"
                    )
                columns = slice(column * config.hidden_size, (column + 1) * config.hidden_size)
                for i, owner in enumerate(packed.indices):
                    source = part[packed.offsets[i] : packed.offsets[i + 1]]
                    states[offsets[owner] : offsets[owner + 1], columns] = source.to(states.device)
            bar.update(len(packed.indices))
            del packed, part  # before the next batch is read
    names = {name: i for i, name in enumerate(dict.fromkeys(rollout.question_id for rollout in rollouts))}
    labels = torch.tensor([rollout.label for rollout in rollouts])
    flags = Counter(str(one.region.flag) for one in encoded if one.region.flag)
    return Features(states, offsets, labels, torch.tensor([names[r.question_id] for r in rollouts]), dict(flags))


def free_bytes() -> int:
    """Return how much physical memory is free."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
