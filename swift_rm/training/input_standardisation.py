"""Standardised inputs for the head, folded into its weights so that it always reads raw states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from swift_rm.features.read_states import FeatureSource
from swift_rm.reward.reward_model import SwiftRewardModel

CHUNK = 128  # responses read at once
ROWS = 8192  # of them measured at once, in float64


Standardise = Literal["feature", "layer", "none"]
STANDARDISE = ("feature", "layer", "none")


@dataclass(frozen=True)
class Scaling:
    """Mean and deviation of each feature ``[D]``, by which the head's inputs are standardised, inside its weights.

    A feature that does not vary (0 in ``varies``) has deviation 1.
    """

    mean: Tensor
    scale: Tensor
    varies: Tensor | None = None

    def of(self, columns: Tensor | slice, how: Standardise, layers: int, least: float = 0.0) -> Scaling:
        """Return the scaling of some columns, of so many layers: a deviation per feature, one per layer, or none at all.

        A feature that varies by less than ``least`` is not blown up to vary as much as others.
        """
        mean, scale = self.mean[columns], self.scale[columns].clamp_min(least)
        if how == "none":
            return Scaling(torch.zeros_like(mean), torch.ones_like(scale))
        if how == "layer":
            varying = (self.varies[columns] if self.varies is not None else torch.ones_like(scale)).view(layers, -1)
            squares = (scale.view(layers, -1).square() * varying).sum(1, keepdim=True)
            by_layer = torch.where(squares > 0, (squares / varying.sum(1, keepdim=True).clamp_min(1)).sqrt(), 1.0)
            scale = by_layer.expand(layers, scale.numel() // layers).reshape(-1)
        return Scaling(mean, scale)

    def fold(self, rm: SwiftRewardModel) -> tuple[Tensor, Tensor]:
        """Return the weight and bias that read raw states as the head reads standardised ones."""
        weight = rm.head.weight / self.scale
        return weight, rm.head.bias - weight @ self.mean


def measure_scaling(source: FeatureSource, questions: Tensor) -> list[Scaling]:
    """Measure the features of some questions, a chunk at a time, for each view; a constant feature is only centred."""
    total = square = count = torch.zeros((), dtype=torch.float64)  # [V, D] and [V, 1] from the first chunk on
    for index in range(len(source)):
        features = source.shard(index)
        for batch in features.batches(torch.isin(features.question, questions).nonzero().flatten(), CHUNK):
            for start in range(0, len(batch.states), ROWS):
                states = batch.states[start : start + ROWS].double()
                masks = states.new_ones(len(states), 1) if batch.masks is None else batch.masks[start : start + ROWS].to(states)
                total, count = total + masks.T @ states, count + masks.sum(0)[:, None]
                square = square + masks.T @ states.square_()  # in place: a copy more takes longer than the sum
    count = count.clamp_min(1)  # of a view that reads nothing
    mean = total / count
    if not bool(torch.isfinite(mean).all()):
        feature = int((~torch.isfinite(mean)).any(0).nonzero()[0])
        raise ValueError(f"the features hold NaN or Inf (column {feature} of {mean.shape[1]})")
    scale = (square / count - mean.square()).clamp_min(0).sqrt()
    noise = 1e-6 * mean.abs().clamp_min(float(scale.max()) * 1e-3)
    varies = scale > noise
    scale = torch.where(varies, scale, torch.ones_like(scale))
    return [Scaling(*one) for one in zip(mean.float(), scale.float(), varies.float(), strict=True)]
