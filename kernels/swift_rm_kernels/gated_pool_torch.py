"""gated_pool in plain torch, for any device: the reference's formulas, and no copy of the states larger than a block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from swift_rm_kernels.reference import columns, pool_gradient_reference, pool_reference

BLOCK_BYTES = 1 << 20  # of states that are widened at once: what a core's cache holds


def token_scores(layers: Sequence[Tensor], weight: Tensor, bias: Tensor) -> Tensor:
    """Compute ``W h_t + b`` in the dtype of ``weight [rows, D]``: ``[T, rows]``."""
    scores = bias.repeat(layers[0].shape[0], 1)
    for layer, part in zip(layers, torch.split(weight, [layer.shape[1] for layer in layers], dim=1), strict=True):
        for tokens, block in _blocks(layer, weight.dtype):
            scores[tokens].addmm_(block, part.T)
    return scores


def weight_gradient(layers: Sequence[Tensor], d_scores: Tensor) -> Tensor:
    """Compute ``sum_t d_scores_t h_t`` from ``d_scores [T, rows]``: ``[rows, D]``."""
    widths = [layer.shape[1] for layer in layers]
    gradient = d_scores.new_zeros(d_scores.shape[1], sum(widths))
    for layer, part in zip(layers, torch.split(gradient, widths, dim=1), strict=True):
        for tokens, block in _blocks(layer, d_scores.dtype):
            part.addmm_(d_scores[tokens].T, block)
    return gradient


def pool(scores: Tensor, offsets: Tensor, mask: Tensor | None) -> Tensor:
    """Average the rewards of each response weighted by its gates: ``[B]``."""
    return pool_reference(*columns(scores), offsets, mask)


def score_gradient(scores: Tensor, offsets: Tensor, mask: Tensor | None, rewards: Tensor, grad: Tensor) -> Tensor:
    """Compute the gradient to the scores ``[T, rows]`` from that to the rewards ``[B]``."""
    d_z, d_r = pool_gradient_reference(*columns(scores), offsets, mask, rewards, grad)
    return torch.stack([d_z, d_r][-scores.shape[1] :], dim=1)


def _blocks(layer: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Yield all tokens at once if they need no widening, else a block of them at a time."""
    tokens = len(layer)
    step = tokens if layer.dtype == dtype else max(1, BLOCK_BYTES // max(1, layer.shape[1] * dtype.itemsize))
    for start in range(0, tokens, max(1, step)):
        yield slice(start, start + step), layer[start : start + step].to(dtype)
