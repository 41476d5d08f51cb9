"""gated_pool in Triton: each pass reads every state once, straight from the layers' own memory, through a table of pointers.

The two passes over the states share their work by tokens (scores) and by columns (gradient of the weight), not by response,
so that long and short responses are balanced; what is done by response reads two floats a token. Accumulation is in float32,
addresses are in 64 bits, and the same input gives the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

import torch
import triton
import triton.language as tl
from torch import Tensor

from swift_rm_kernels.gated_pool_triton_kernels import (
    pool_kernel,
    score_gradient_kernel,
    token_scores_kernel,
    weight_gradient_kernel,
)
from swift_rm_kernels.tuning import FUSED, gradient_tile, on_device, score_tile

ELEMENT = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
SPREAD = 528  # programs that keep a large GPU busy to the end
POOL_BLOCK = 1024  # tokens of a response at a time


def token_scores(layers: Sequence[Tensor], weight: Tensor, bias: Tensor) -> Tensor:
    """Compute ``W h_t + b`` of contiguous ``weight [rows, D]`` in float32: ``[T, rows]``, with one pass over the states."""
    tokens = layers[0].shape[0]
    scores = weight.new_empty(tokens, weight.shape[0])
    if tokens:
        with on_device(weight):
            token_scores_kernel[lambda tile: (triton.cdiv(tokens, tile["BLOCK_T"]),)](
                *_table(layers), weight, bias, scores, tokens, len(layers), weight.shape[1],
                GATE=weight.shape[0] == 2, **_alignment(layers), **score_tile(tokens, _widest(layers)), **FUSED,
            )  # fmt: skip
    return scores


def weight_gradient(layers: Sequence[Tensor], d_scores: Tensor) -> Tensor:
    """Compute ``sum_t d_scores_t h_t`` from ``d_scores [T, rows]``: ``[rows, D]``, with one pass over the states.

    Where there are few columns, the tokens are split as well; the parts' sums take no more than two floats a token.
    """
    (tokens, rows), width = d_scores.shape, sum(layer.shape[1] for layer in layers)
    tile = gradient_tile(_widest(layers))
    if not width:
        return d_scores.new_empty(rows, 0)
    blocks = sum(triton.cdiv(layer.shape[1], 256) for layer in layers)
    parts = max(1, min(triton.cdiv(SPREAD, blocks), 2 * tokens // (rows * width)))
    sums = d_scores.new_empty(parts, rows, width)
    with on_device(d_scores):
        weight_gradient_kernel[lambda tile: (triton.cdiv(_widest(layers), tile["BLOCK_D"]), len(layers), parts)](
            *_table(layers), d_scores, sums, tokens, triton.cdiv(tokens, parts), width,
            GATE=rows == 2, **_alignment(layers), **tile, **FUSED,
        )  # fmt: skip
    return sums[0] if parts == 1 else sums.sum(0)


def pool(scores: Tensor, offsets: Tensor, mask: Tensor | None) -> Tensor:
    """Average the rewards of each response weighted by its gates: ``[B]``."""
    rewards = scores.new_empty(len(offsets) - 1)
    if len(rewards):
        with on_device(scores):
            pool_kernel[(len(rewards),)](scores, offsets, mask, rewards, GATE=scores.shape[1] == 2, BLOCK=POOL_BLOCK, **FUSED)
    return rewards


def score_gradient(scores: Tensor, offsets: Tensor, mask: Tensor | None, rewards: Tensor, grad: Tensor) -> Tensor:
    """Compute the gradient to the scores ``[T, rows]`` from that to the rewards ``[B]``."""
    d_scores = torch.empty_like(scores)
    if len(rewards):
        with on_device(scores):
            score_gradient_kernel[(len(rewards),)](
                scores, offsets, mask, rewards, grad, d_scores, GATE=scores.shape[1] == 2, BLOCK=POOL_BLOCK, **FUSED
            )
    return d_scores


def _table(layers: Sequence[Tensor]) -> tuple[Tensor, tl.dtype]:
    """Return address, stride, width and first column of every layer, ``[L, 4]`` on their device, and their element type."""
    rows, first = [], 0
    for layer in layers:
        rows.append((layer.data_ptr(), layer.stride(0), layer.shape[1], first))
        first += layer.shape[1]
    return torch.tensor(rows, dtype=torch.int64).to(layers[0].device, non_blocking=True), ELEMENT[layers[0].dtype]


def _alignment(layers: Sequence[Tensor]) -> dict[str, int]:
    """Return how many elements may be loaded at once, and the power of two, up to 1024, that divides all widths."""
    vector = 16 // layers[0].dtype.itemsize
    step = gcd(1024, *(layer.shape[1] for layer in layers))
    aligned = step % 16 == 0 and all(layer.data_ptr() % 16 == 0 and layer.stride(0) % vector == 0 for layer in layers)
    return {"VECTOR": vector if aligned else 1, "STEP": step}


def _widest(layers: Sequence[Tensor]) -> int:
    return max(layer.shape[1] for layer in layers)
