"""gated_step in Triton: one launch reads a decoded token of all rows from all layers and updates the running rewards.

A program reads some rows of one layer. Whichever comes last for its rows adds up what all layers found, always in the layers'
order, and updates the rows; so nothing is added atomically, and the same input gives the same bits. The layers' addresses are
arguments of the launch: a captured CUDA graph holds them, and nothing is copied to the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

import torch
import triton
import triton.language as tl
from torch import Tensor

from swift_rm_kernels.gated_pool_triton_kernels import add_products, log_sigmoid
from swift_rm_kernels.tuning import FUSED, on_device, step_tile

MOST_LAYERS = 256  # whose addresses a launch takes

_arrivals: dict[tuple[torch.device, int], Tensor] = {}  # programs that are done, by device and stream; every step leaves zeros
_unused: dict[torch.device, Tensor] = {}  # zeros for steps that are captured in graphs, each of which gets its own


def gated_step(
    layers: Sequence[Tensor], weight: Tensor, bias: Tensor, running: Tensor, active: Tensor | None, scores: Tensor | None
) -> None:
    """Add one token per row: ``layers`` are checked tensors ``[rows, d]`` or ``[rows, 1, d]``, alike as ``cut`` leaves them."""
    rows = len(running)
    if not rows:
        return
    tile = step_tile(layers[0].shape[-1], layers[0].dtype.itemsize)
    blocks = -(-rows // tile["BLOCK_R"])
    with on_device(running):
        _gated_step_kernel[(len(layers), blocks)](
            tuple(layers), weight.contiguous(), bias.contiguous(), running, active, scores,
            running.new_empty(len(layers), rows, len(bias)), _arrived(blocks, running.device),
            rows, layers[0].stride(0), layers[0].shape[-1], len(layers), weight.shape[1],
            GATE=len(bias) == 2, BLOCK_L=1 << (len(layers) - 1).bit_length(), **tile, **FUSED,
        )  # fmt: skip


def cut(layers: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the same columns as layers of one width and one stride; they are copied only where views cannot do it."""
    width, flat = gcd(*(layer.shape[-1] for layer in layers)), [layer.flatten(0, -2) for layer in layers]
    if sum(layer.shape[-1] for layer in layers) > MOST_LAYERS * width:
        return [torch.cat(flat, dim=1)]
    pieces = [piece for layer in flat for piece in torch.split(layer, width, dim=1)]
    return pieces if len({piece.stride() for piece in pieces}) == 1 else [piece.contiguous() for piece in pieces]


def _arrived(blocks: int, device: torch.device) -> Tensor:
    """Return a counter for each block of rows, which is 0: no two steps that may run at the same time share one."""
    if device.type != "cuda":
        return torch.zeros(blocks, dtype=torch.int32, device=device)
    if torch.cuda.is_current_stream_capturing():
        left = _unused.get(device)
        if left is None or len(left) < blocks:
            return torch.zeros(blocks, dtype=torch.int32, device=device)  # a second node in the graph
        _unused[device] = left[blocks:]
        return left[:blocks]
    key = (device, torch.cuda.current_stream(device).cuda_stream)
    if key not in _arrivals or len(_arrivals[key]) < blocks:
        _arrivals[key] = torch.zeros(max(blocks, 1024), dtype=torch.int32, device=device)
        _unused.setdefault(device, torch.zeros(1 << 16, dtype=torch.int32, device=device))
    return _arrivals[key]


@triton.jit
def _gated_step_kernel(
    layers, weight, bias, running, active, scores, found, arrived, rows, stride, width, count: tl.constexpr, total_width,
    GATE: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Read BLOCK_R rows of one layer a program; the last of a block of rows updates them."""
    index, block = tl.program_id(0), tl.program_id(1)
    HEADS: tl.constexpr = 2 if GATE else 1
    row = block * BLOCK_R + tl.arange(0, BLOCK_R)
    counted = row < rows
    if active is not None:
        counted = counted & (tl.load(active + row, mask=counted, other=0) != 0)
    states = layers[0]
    for i in tl.static_range(1, count):
        states = tl.where(index == i, layers[i], states)
    first = index.to(tl.int64) * width
    z = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
    r = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
    for start in tl.range(0, width, BLOCK_D, num_stages=STAGES):
        column = start + tl.arange(0, BLOCK_D)
        inside = column < width
        z, r = add_products(z, r, states, row.to(tl.int64), stride, counted, column, inside, weight, first, total_width, GATE)
    own = found + (index * rows + row) * HEADS
    if GATE:
        tl.store(own, tl.sum(z, 1), mask=counted)
    tl.store(own + HEADS - 1, tl.sum(r, 1), mask=counted)
    tl.debug_barrier()  # every thread has written before the counter says so
    if tl.atomic_add(arrived + block, 1, sem="acq_rel", scope="gpu") == count - 1:
        layer = tl.arange(0, BLOCK_L)
        theirs = found + (layer[:, None] * rows + row[None, :]) * HEADS
        mask = (layer < count)[:, None] & counted[None, :]
        reward = tl.sum(tl.load(theirs + HEADS - 1, mask=mask, other=0.0, cache_modifier=".cg"), 0) + tl.load(bias + HEADS - 1)
        log_gate = tl.zeros_like(reward)
        if GATE:
            gate_logit = tl.sum(tl.load(theirs, mask=mask, other=0.0, cache_modifier=".cg"), 0) + tl.load(bias)
            log_gate = log_sigmoid(gate_logit)
            if scores is not None:
                tl.store(scores + row * HEADS, gate_logit, mask=counted)
        if scores is not None:
            tl.store(scores + row * HEADS + HEADS - 1, reward, mask=counted)
        top = tl.load(running + row * 3, mask=counted, other=0.0)
        total = tl.load(running + row * 3 + 1, mask=counted, other=0.0)
        mass = tl.load(running + row * 3 + 2, mask=counted, other=0.0)
        higher = tl.maximum(top, log_gate)
        level = tl.where(higher == float("-inf"), 0.0, higher)
        keep, gate = tl.exp(top - level), tl.exp(log_gate - level)
        tl.store(running + row * 3, higher, mask=counted)
        tl.store(running + row * 3 + 1, total * keep + gate * reward, mask=counted)
        tl.store(running + row * 3 + 2, mass * keep + gate, mask=counted)
        tl.store(arrived + block, 0)
