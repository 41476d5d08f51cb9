"""Which kernels read which states: by device, dtype and size, or as the caller says."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

Impl = Literal["auto", "reference", "torch", "numba", "triton"]
OFFERED = {"gated_pool": ("torch", "numba", "triton"), "gated_step": ("torch", "triton")}
SOURCE = {"numba": 'pip install "swift-rm[cpu]"', "triton": "a torch for GPUs brings it, or pip install triton"}
HOME = os.getpid()  # a process forked from here would wait for ever for an OpenMP team that it has not
WORTH_NUMBA = 1 << 24  # bytes of states: below, a compiled kernel saves less than loading it costs


def kernels(operation: str, impl: str, layers: Sequence[Tensor], head: Tensor) -> Any:
    """Return the module that runs an operation (a key of OFFERED) on these states and a head; imported when first asked for.

    Float64 in either, which is for checking gradients, is left to plain torch. Raises ValueError if the kernels that were
    asked for cannot read the states, ModuleNotFoundError if they are not installed.
    """
    device, exact = layers[0].device, torch.float64 in (layers[0].dtype, head.dtype)
    chosen = impl
    if impl == "auto":
        chosen = "torch" if exact else _automatic(operation, layers)
    if chosen not in OFFERED[operation]:
        raise ValueError(f"impl of {operation} must be one of {('auto', 'reference', *OFFERED[operation])}, got {impl!r}")
    if chosen != "torch" and exact:
        raise ValueError(f"impl={impl!r} reads bfloat16, float16 and float32, got torch.float64; take impl='torch'")
    if chosen == "numba" and device.type != "cpu":
        raise ValueError(f"impl='numba' reads states on a CPU, these are on {device}")
    if chosen == "triton" and device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"impl='triton' needs states on a GPU (or TRITON_INTERPRET=1), these are on {device}")
    if chosen in SOURCE and not _installed(chosen):
        raise ModuleNotFoundError(f"impl={impl!r} needs {chosen}: {SOURCE[chosen]}")
    return _module(f"swift_rm_kernels.{operation}_{chosen}")


def _automatic(operation: str, layers: Sequence[Tensor]) -> str:
    device = layers[0].device.type
    if device == "cuda" and _installed("triton"):
        return "triton"
    if device == "cpu" and "numba" in OFFERED[operation] and _installed("numba"):
        return "numba" if sum(layer.nbytes for layer in layers) >= WORTH_NUMBA else "torch"
    return "torch"


@cache
def _installed(package: str) -> bool:
    return find_spec(package) is not None


_module = cache(import_module)
