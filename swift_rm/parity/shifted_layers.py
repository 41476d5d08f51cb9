"""Telling whose hidden states an engine shows where they are not the layer's that was asked for."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LIKE = 0.05  # how far apart, as a fraction of their size, states may be that are called the same
NEARER = 4.0  # and how many times nearer than the states that they should be
_SHIFTS = {0: "", 1: " of the token before", -1: " of the token after"}


def resembling(found: Tensor, every: Tensor, own: int) -> str | None:
    """Say which of ``every [L + 1, R, d]`` state of a response the ``found [R, d]`` are, if not those of the layer ``own``.

    They may be those of another layer, of the token before or after, or both. None where nothing is clearly nearer.
    """
    found, every = found.double(), every.double()
    distances: dict[tuple[int, int], float] = {}
    for shift in _SHIFTS if len(found) > 2 else (0,):
        theirs = found[max(0, shift) : len(found) + min(0, shift)]
        for layer, states in enumerate(every):
            expected = states[max(0, -shift) : len(states) - max(0, shift)]
            distances[layer, shift] = rms(theirs - expected) / size_of(expected)
    (layer, shift), distance = min(distances.items(), key=lambda item: item[1])
    if (layer, shift) == (own, 0) or distance > LIKE or distance * NEARER >= distances[own, 0]:
        return None
    return f"layer {layer}{_SHIFTS[shift]}"


def rms(values: Tensor) -> float:
    """Return the root mean square; infinite where a value is not finite."""
    return float(values.square().mean().sqrt().nan_to_num(nan=math.inf, posinf=math.inf))


def size_of(states: Tensor) -> float:
    """Return the root mean square of states to divide by: not 0."""
    return max(rms(states), torch.finfo(torch.float32).tiny)
