"""Hidden states in a byte per value: int8 or fp8, with a scale and a zero point for every channel.

A channel of an LLM's states may lie far from zero and hardly move, so each is centred before it is rounded: int8 on the middle
of its range, fp8, which is finest near zero, on its mean. A value is then ``state * scale + zero``.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

StoreDtype = Literal["bfloat16", "float8_e4m3", "int8", "float16", "float32"]
STORE_DTYPES: tuple[StoreDtype, ...] = get_args(StoreDtype)

_TORCH = {"float8_e4m3": torch.float8_e4m3fn}
_LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
_ROWS = 4096  # rounded at a time: what is in float32 meanwhile stays small
_NEAR = 32  # widened at a time on a CPU


def torch_dtype(dtype: StoreDtype) -> torch.dtype:
    """Return torch's dtype for a store's; raise ValueError for any other."""
    if dtype not in STORE_DTYPES:
        raise ValueError(f"the dtype of features must be one of {STORE_DTYPES}, got {dtype!r}")
    found: torch.dtype = _TORCH.get(dtype) or getattr(torch, dtype)
    return found


def is_quantised(dtype: StoreDtype) -> bool:
    """Tell whether a store of this dtype keeps a scale and a zero point for every channel."""
    return torch_dtype(dtype) in _LARGEST


def quantise(states: Tensor, dtype: StoreDtype, out: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Round finite ``states [T, D]``; return them with float32 ``scale [D]`` and ``zero [D]``, on their own device.

    int8 is off by at most half a scale, that is 1/508 of the channel's range, besides float32's own rounding. A channel that
    does not vary has scale 0 and is exact, an empty one scale and zero 0. ``out [T, D]`` receives the rounded states.
    """
    kind = torch_dtype(dtype)
    rounded = torch.empty_like(states, dtype=kind) if out is None else out
    if not len(states):
        return rounded, states.new_zeros(states.shape[1], dtype=torch.float32), states.new_zeros(states.shape[1]).float()
    low, high = (bound.double() for bound in states.aminmax(dim=0))
    middle = (low + high) / 2 if kind == torch.int8 else states.mean(dim=0, dtype=torch.float64)
    zero = middle.float()
    scale = (torch.maximum(high - zero, zero - low) / _LARGEST[kind]).float()
    divisor = torch.where(scale > 0, scale, 1.0)
    for rows, into in zip(torch.split(states, _ROWS), torch.split(rounded, _ROWS), strict=True):
        parts = (rows.float() - zero) / divisor
        parts.clamp_(-_LARGEST[kind], _LARGEST[kind])
        into.copy_(parts.round_() if kind == torch.int8 else parts)
    return rounded, scale, zero


def dequantise(states: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    """Return ``states * scale + zero`` in float32, ``[T, D]`` with ``[D]`` each, on the states' device; no zero counts as 0."""
    scale = scale.to(states.device)
    zero = torch.zeros_like(scale) if zero is None else zero.to(states.device)
    if states.device.type != "cpu":
        return torch.addcmul(zero, states.float(), scale)
    values = torch.empty(states.shape, dtype=torch.float32)
    for rows, into in zip(torch.split(states, _NEAR), torch.split(values, _NEAR), strict=True):
        torch.addcmul(zero, rows.float(), scale, out=into)  # while the rows are in the processor's cache
    return values
