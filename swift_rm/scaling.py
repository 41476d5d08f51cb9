"""Standardised inputs for the head, folded into its weights so that it always reads raw states."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from swift_rm.features import Features
from swift_rm.reward_model import SwiftRewardModel

CHUNK = 128  # responses read at once


@dataclass(frozen=True)
class Scaling:
    """Mean and deviation of each feature ``[D]``, by which the head's inputs are standardised, inside its weights."""

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, features: Features, responses: Tensor) -> Scaling:
        """Measure the features of some responses, a chunk at a time; a constant feature is only centred."""
        total = square = torch.zeros(features.states.shape[1], dtype=torch.float64)
        count = 0
        for chunk in torch.split(responses, CHUNK):
            states = features.take(chunk)[0].double()
            total = total + states.sum(0)
            square = square + states.square_().sum(0)  # in place: a copy more takes longer than the sum
            count += len(states)
        mean = total / count
        scale = (square / count - mean.square()).clamp_min(0).sqrt()
        noise = 1e-6 * mean.abs().clamp_min(float(scale.max()) * 1e-3)
        return cls(mean.float(), torch.where(scale > noise, scale, torch.ones_like(scale)).float())

    def fold(self, rm: SwiftRewardModel) -> tuple[Tensor, Tensor]:
        """Return the weight and bias that read raw states as the head reads standardised ones."""
        weight = rm.head.weight / self.scale
        return weight, rm.head.bias - weight @ self.mean
