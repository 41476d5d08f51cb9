"""Two states that stand for a response, layer by layer: the mean over the tokens that are read, and the last of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from swift_rm.features.read_states import Features
from swift_rm.features.row_selection import reading_of
from swift_rm.reward.config import SwiftConfig

READS = ("mean", "last")
CHUNK = 128  # responses read at once

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Summaries:
    """Of B responses the ``mean`` and the ``last`` state of each layer, [B, L, d], with ``labels`` and ``question`` [B]."""

    layers: tuple[int, ...]
    mean: Floats
    last: Floats
    labels: Integers
    question: Integers

    def states(self, read: str, column: int) -> Floats:
        """Return the states [B, d] of the layer in this column; ``read`` is ``"mean"`` or ``"last"``."""
        return {"mean": self.mean, "last": self.last}[read][:, column]

    @classmethod
    def joined(cls, parts: Sequence[Summaries], question: Integers) -> Summaries:
        """Return the responses of all parts one after another; ``question`` numbers their questions anew."""
        mean, last, labels = (np.concatenate([getattr(part, name) for part in parts]) for name in ("mean", "last", "labels"))
        return cls(parts[0].layers, mean, last, labels, question)


def summarise(features: Features, config: SwiftConfig) -> Summaries:
    """Return the mean and the last state of each response in packed features, in float32, a chunk of responses at a time.

    Of features with several views, the configuration's position and region are read; raises ValueError if they are not there.
    """
    if features.views and reading_of(config) not in features.views:
        raise ValueError(f"the features were read at {features.views}, not at {reading_of(config)}")
    means, lasts = [], []
    for chunk in torch.split(torch.arange(len(features.labels)), CHUNK):
        states, offsets, _, _, masks = features.batch(chunk)
        if masks is not None:
            read = masks[:, features.views.index(reading_of(config))]
            ends = torch.cat([read.new_zeros(1, dtype=torch.long), read.cumsum(0)])
            states, offsets = states[read.to(states.device)], ends[offsets]
        means.append(torch.segment_reduce(states.float().cpu(), "mean", lengths=offsets.diff(), axis=0))
        lasts.append(states[(offsets[1:] - 1).to(states.device)].float().cpu())
    shape = (len(features.labels), len(config.layers), config.hidden_size)
    mean, last = (torch.cat(parts).reshape(shape).numpy() for parts in (means, lasts))
    return Summaries(config.layers, mean, last, features.labels.numpy(), features.question.numpy())
