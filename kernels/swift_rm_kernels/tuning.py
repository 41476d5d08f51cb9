"""How the Triton kernels are launched: block sizes picked by hand, or searched for where ``SWIFT_RM_AUTOTUNE=1`` asks for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

FUSED = {"enable_fp_fusion": True}  # of every launch: Triton's default, which is about to change
AUTOTUNE = os.environ.get("SWIFT_RM_AUTOTUNE") == "1"
BUSY = 264  # programs that give each of a large GPU's multiprocessors two
TILE = 4096  # states that four warps read at a time: 64 bytes a thread in bfloat16, and three such programs a multiprocessor


def on_device(tensor: Tensor) -> AbstractContextManager[Any]:
    """Return a block in which kernels are launched on the tensor's own GPU, whichever is the current one."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def score_tile(tokens: int, widest: int) -> dict[str, int]:
    """Return the tile of tokens x columns for the scores: many tokens share a load of the weight, if there are many."""
    if AUTOTUNE:
        return {}
    block_t = next((size for size in (32, 16, 8) if tokens >= BUSY * size), 4)
    return {"BLOCK_T": block_t, "BLOCK_D": _columns(widest, TILE // block_t), "STAGES": 4, "num_warps": 4}


def gradient_tile(widest: int) -> dict[str, int]:
    """Return the tile of tokens x columns for the weight's gradient, which stays in registers for all tokens."""
    return {} if AUTOTUNE else {"BLOCK_T": 16, "BLOCK_D": _columns(widest, 256), "STAGES": 4, "num_warps": 4}


@cache
def step_tile(width: int, itemsize: int) -> dict[str, int]:
    """Return the tile of rows x columns for a decoded token: a kilobyte of each of 16 rows, which share a load of the weight."""
    return {"BLOCK_R": 16, "BLOCK_D": _columns(width, 1024 // itemsize), "STAGES": 3, "num_warps": 8}


def tuned(configs: Sequence[triton.Config], key: Sequence[str]) -> Callable[[Any], Any]:
    """Return a decorator that searches these configurations where that was asked for, and else does nothing."""
    return triton.autotune(list(configs), key=list(key)) if AUTOTUNE else lambda kernel: kernel


def _columns(widest: int, most: int) -> int:
    return max(16, min(most, 1024, 1 << (widest - 1).bit_length()))


def _configs(tiles: Sequence[tuple[int, int, int]]) -> list[triton.Config]:
    return [
        triton.Config({"BLOCK_T": block_t, "BLOCK_D": block_d, "STAGES": stages}, num_warps=warps)
        for block_t, block_d, warps in tiles
        for stages in (1, 2, 3, 4)
    ]


SCORE_TILES = _configs([(64, 128, 8), (32, 256, 8), (32, 128, 4), (16, 512, 8), (16, 256, 4), (8, 512, 4), (4, 1024, 4)])
GRADIENT_TILES = _configs([(8, 512, 4), (16, 256, 4), (32, 128, 4), (16, 512, 8), (32, 256, 8)])
