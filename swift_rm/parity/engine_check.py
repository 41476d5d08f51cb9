"""Parity of an inference engine with transformers: the same token ids through both, states and rewards compared.

In float32 the two must agree. In a smaller dtype they cannot: there transformers in float32 is the truth, and the engine may
err twice as much as transformers itself does in that dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from swift_rm.parity.engine_verdict import EngineCheck, LayerComparison, RewardComparison, explain_verdict
from swift_rm.parity.recorded_run import EngineRun, TeacherForced, teacher_force
from swift_rm.reward.config import SwiftConfig, resolve_layer

if TYPE_CHECKING:
    from swift_rm.reward.reward_model import SwiftRewardModel

# Of float32, as a fraction of a layer's size and of a reward's. Kernels that add in another order part by about 1e-5 there, and
# GPUs that multiply with the 10 bits of TF32 by some 1e-4; the states of neighbouring layers part by 1e-2 at the least.
TOLERANCE = 1e-3
FACTOR = 2.0  # of the error that transformers itself makes in a smaller dtype
SAME = 0.05  # how far apart, as a fraction of their size, states may be that are called the same
NEARER = 4.0  # and how many times nearer than the states that they should be
_SHIFTS = {0: "", 1: " of the token before", -1: " of the token after"}
OpenModel = Callable[[str], tuple[Any, Any]]  # from a dtype's name to a language model and its tokenizer


def check_engine(run: EngineRun, model: str, reward_model: str, rm: SwiftRewardModel, open_model: OpenModel) -> EngineCheck:
    """Read a run's responses with transformers and compare; ``open_model`` loads it in a dtype, one at a time.

    ``model`` and ``reward_model`` are what the result calls them. Raises ValueError for a run without responses, and where
    transformers' own states are not finite.
    """
    if not run.responses:
        raise ValueError(f"{run.engine} gave no responses to compare")
    exact = teacher_force(*open_model("float32"), rm, run.responses)
    own = None if run.dtype == "float32" else teacher_force(*open_model(run.dtype), rm, run.responses)
    layers, rewards = _layer_rows(run, rm.config, exact, own), _reward_row(run, exact, own)
    return EngineCheck(
        run.engine, run.version, model, reward_model, run.dtype, len(run.responses), run.tokens, tuple(layers), rewards,
        explain_verdict(run, layers, rewards),
    )  # fmt: skip


def _layer_rows(run: EngineRun, config: SwiftConfig, exact: TeacherForced, own: TeacherForced | None) -> list[LayerComparison]:
    found = [torch.from_numpy(one.states) for one in run.responses]
    rows = []
    for number, layer in enumerate(config.layers):
        part = slice(number * config.hidden_size, (number + 1) * config.hidden_size)
        name: int | str = "logits" if exact.every is None else resolve_layer(layer, len(exact.every) - 1)
        theirs = None if own is None else _part(own.states, part)
        row = _layer_row(name, run.dtype, _part(found, part), _part(exact.states, part), theirs)
        if not row.equal and exact.every is not None:
            row = replace(row, resembles=identify_states(found[exact.varied][:, part], exact.every, int(name)))
        rows.append(row)
    return rows


def _part(states: Sequence[Tensor], part: slice) -> Tensor:
    return torch.cat([one[:, part] for one in states]).double()


def _layer_row(layer: int | str, dtype: str, found: Tensor, exact: Tensor, own: Tensor | None) -> LayerComparison:
    for states, kind in ((exact, "float32"), (exact if own is None else own, dtype)):
        if not bool(states.isfinite().all()):
            what = "output logits" if layer == "logits" else f"states of layer {layer}"
            raise ValueError(f"transformers' own {what} are not finite in {kind}: there is nothing to compare with")
    size = size_of(exact)
    most = float((found - (exact if own is None else own)).abs().nan_to_num(nan=math.inf, posinf=math.inf).max())
    error = rms(found - exact) / size
    if own is None:
        return LayerComparison(layer, most, most / size, error, None, most / size <= TOLERANCE)
    allowed = rms(own - exact) / size
    return LayerComparison(layer, most, most / size, error, allowed, error <= FACTOR * allowed + _rounding(dtype))


def _reward_row(run: EngineRun, exact: TeacherForced, own: TeacherForced | None) -> RewardComparison:
    found = torch.tensor([one.reward for one in run.responses], dtype=torch.float64)
    truth = torch.tensor(exact.rewards, dtype=torch.float64)
    same = truth if own is None else torch.tensor(own.rewards, dtype=torch.float64)
    apart, error = _apart(found, same), rms(_apart(found, truth))
    if own is None:
        equal = bool((apart <= TOLERANCE * truth.abs().nan_to_num().clamp(min=1)).all())
        return RewardComparison(float(apart.max()), error, None, equal)
    allowed, size = rms(_apart(same, truth)), max(1.0, rms(truth.nan_to_num()))
    return RewardComparison(float(apart.max()), error, allowed, error <= FACTOR * allowed + _rounding(run.dtype) * size)


def _apart(found: Tensor, expected: Tensor) -> Tensor:
    """Return the absolute differences: none where both are NaN, as of a response of which nothing is read, else infinite."""
    both = found.isnan() & expected.isnan()
    return (found - expected).abs().nan_to_num(nan=math.inf, posinf=math.inf).masked_fill(both, 0.0)


def _rounding(dtype: str) -> float:
    """Return, about, the root mean square of one more rounding to a dtype: transformers may have none at all in layer 0."""
    return torch.finfo(getattr(torch, dtype)).eps / 4


def identify_states(found: Tensor, every: Tensor, own: int) -> str | None:
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
    if (layer, shift) == (own, 0) or distance > SAME or distance * NEARER >= distances[own, 0]:
        return None
    return f"layer {layer}{_SHIFTS[shift]}"


def rms(values: Tensor) -> float:
    """Return the root mean square; infinite where a value is not finite."""
    return float(values.square().mean().sqrt().nan_to_num(nan=math.inf, posinf=math.inf))


def size_of(states: Tensor) -> float:
    """Return the root mean square of states to divide by: not 0."""
    return max(rms(states), torch.finfo(torch.float32).tiny)
