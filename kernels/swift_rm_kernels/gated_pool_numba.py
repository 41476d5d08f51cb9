"""The heavy passes of gated_pool on a CPU, compiled by numba: each reads the states once, at the speed of memory.

The threads are those of torch itself, its OpenMP team: threads of our own would share the cores with torch's, which spin
for milliseconds after every operation, and lose a quarter of the speed. The first call of a dtype compiles, in about a
second; numba keeps the result beside the code or, where it cannot write there, in the user's cache or NUMBA_CACHE_DIR.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swift_rm_kernels import gated_pool_torch
from swift_rm_kernels.dispatch import HOME
from swift_rm_kernels.gated_pool_numba_kernels import CLAIM, TILE, compiled, job_type, take_gradient, take_scores, widens_half
from swift_rm_kernels.gated_pool_torch import pool, score_gradient

__all__ = ["pool", "score_gradient", "token_scores", "weight_gradient"]

GRAIN = 1 << 15  # elements that are worth a thread, as in torch

# numba has no 16-bit floats on a CPU: integers stand for them
ELEMENTS = {torch.float32: np.float32, torch.bfloat16: np.uint16, torch.float16: np.int16}

Table = np.ndarray[Any, np.dtype[np.int64]]  # [pieces, 4]


def token_scores(layers: Sequence[Tensor], weight: Tensor, bias: Tensor) -> Tensor:
    """Compute ``W h_t + b`` in float32: ``[T, rows]`` from layers ``[T, d]``, ``weight [rows, D]`` and ``bias [rows]``."""
    if _left_to_torch(layers):
        return gated_pool_torch.token_scores(layers, weight, bias)
    scores = weight.new_empty(len(layers[0]), len(weight))
    addresses = {"weight": weight.data_ptr(), "bias": bias.data_ptr(), "scores": scores.data_ptr()}
    _run(take_scores, layers, _table(layers, sys.maxsize), -(-len(scores) // CLAIM), rows=len(weight), **addresses)
    return scores


def weight_gradient(layers: Sequence[Tensor], d_scores: Tensor) -> Tensor:
    """Compute ``sum_t d_scores_t h_t`` in float32: ``[rows, D]`` from layers ``[T, d]`` and ``d_scores [T, rows]``."""
    if _left_to_torch(layers):
        return gated_pool_torch.weight_gradient(layers, d_scores)
    tokens, rows = d_scores.shape
    table, columns = _table(layers, TILE), sum(layer.shape[1] for layer in layers)
    wanted = -(-4 * torch.get_num_threads() // max(1, len(table)))  # four pieces a thread: none waits long for the last
    part = max(CLAIM, -(-tokens // max(1, min(wanted, tokens // max(1, columns)))))  # the sums take two floats a token at most
    sums = d_scores.new_empty(max(1, -(-tokens // part)), 2, columns)  # without a gate both rows are alike
    fields = {"scores": d_scores.data_ptr(), "part": part, "parts": len(sums), "sums": sums.data_ptr()}
    _run(take_gradient, layers, table, len(sums) * len(table), rows=rows, **fields)
    return (sums.sum(0) if len(sums) > 1 else sums[0])[-rows:]


def _left_to_torch(layers: Sequence[Tensor]) -> bool:
    return layers[0].dtype == torch.float16 and not widens_half()


def _table(layers: Sequence[Tensor], tile: int) -> Table:
    """List address, stride in bytes, width and first column of each layer, in pieces at most ``tile`` columns wide."""
    rows, column = [], 0
    for layer in layers:
        address, size, width = layer.data_ptr(), layer.element_size(), layer.shape[1]
        stride = layer.stride(0) * size
        rows += [(address + i * size, stride, min(tile, width - i), column + i) for i in range(0, width, tile)]
        column += width
    return np.array(rows, np.int64).reshape(-1, 4)


def _run(function: Callable[[Any], None], layers: Sequence[Tensor], table: Table, work: int, **fields: int) -> None:
    """Run a kernel on as many threads as the states are worth, at most one for each of the parts of the work."""
    tokens, columns, element = len(layers[0]), sum(layer.shape[1] for layer in layers), ELEMENTS[layers[0].dtype]
    job = np.zeros(1, job_type(element))
    fields |= {"tokens": tokens, "columns": columns, "pieces": len(table), "table": table.ctypes.data}
    for name, value in fields.items():
        job[name] = value
    threads = min(torch.get_num_threads(), work, 1 + tokens * columns // GRAIN) if os.getpid() == HOME else 1
    _parallel(compiled(function, element).address, job.ctypes.data, threads)


def _parallel(kernel: int, job: int, threads: int) -> None:
    """Call the kernel in so many threads; they share the job and take parts of it until none is left."""
    call, team = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(kernel), _team()
    if threads <= 1:
        call(job)
    elif team:
        team(ctypes.c_void_p(kernel), ctypes.c_void_p(job), ctypes.c_uint(threads), ctypes.c_uint(0))
    else:
        with ThreadPoolExecutor(threads) as executor:
            list(executor.map(call, [job] * threads))


@cache
def _team() -> Any:
    """Find the entry to the OpenMP that torch has loaded; None where there is none, as on Windows."""
    return None if os.name == "nt" else getattr(ctypes.CDLL(None), "GOMP_parallel", None)
