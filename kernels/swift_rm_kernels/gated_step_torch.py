"""gated_step in plain torch, for any device: one product for all layers, and as few operations as the update takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from swift_rm_kernels.reference import add_scores_reference


@torch.no_grad()
def gated_step(
    layers: Sequence[Tensor], weight: Tensor, bias: Tensor, running: Tensor, active: Tensor | None, scores: Tensor | None
) -> None:
    """Add one token per row: ``layers`` are checked tensors ``[rows, d]`` or ``[rows, 1, d]``."""
    features = (layers[0] if len(layers) == 1 else torch.cat(list(layers), dim=-1)).flatten(0, -2).to(weight.dtype)
    found = torch.addmm(bias, features, weight.T, out=bias.new_empty(len(running), len(bias)))  # with out= autocast keeps away
    add_scores_reference(running, found, active, scores)


def cut(layers: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the layers as they are: these may differ in width and stride."""
    return layers
