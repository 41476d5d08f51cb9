"""gated_step: one decoded token of every row, read from all layers, added to the running rewards in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from swift_rm_kernels.checks import check_states, check_step
from swift_rm_kernels.dispatch import Impl, kernels
from swift_rm_kernels.reference import gated_step_reference


def gated_step(
    states: Sequence[Tensor],  # L tensors [rows, d], or [rows, 1, d] as a decoder gives them
    weight: Tensor,  # [2, D]: row 0 = gate, row 1 = reward; [1, D]: reward only
    bias: Tensor,  # [2] or [1]
    running: Tensor,  # [rows, 3], changed in place; see new_running
    active: Tensor | None = None,  # [rows], True = count this row's token
    *,
    scores: Tensor | None = None,  # [rows, 2] or [rows, 1], changed in place: receives z and r of the active rows' token
    impl: Impl = "auto",
) -> None:
    """Add one decoded token per row to the running gated means; after a response's tokens they give ``gated_pool``'s reward.

    The definition is :func:`gated_step_reference`. On a GPU it is one launch for all layers and rows, reads
    ``rows * D * bytes_per_element`` bytes, skips rows that are not active, waits for nothing, and may be captured in a CUDA
    graph; inside ``torch.compile`` it is the operation ``swift_rm::gated_step``. ``weight``, ``bias``, ``running`` and
    ``scores`` are float32 (float64: plain torch). No gradient flows. Raises ValueError, before anything runs, if
    devices, dtypes or sizes do not fit.
    """
    run = gated_step_op if torch.compiler.is_compiling() else _run
    run(list(states), weight, bias, running, active, scores, impl)


def _run(
    states: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    running: Tensor,
    active: Tensor | None,
    scores: Tensor | None,
    impl: str,
) -> None:
    alike = _check(states, weight, bias, running, active, scores)
    if impl == "reference":
        gated_step_reference([layer.flatten(0, -2) for layer in states], weight, bias, running, active, scores)
        return
    module = kernels("gated_step", impl, states, weight)
    module.gated_step(states if alike else module.cut(states), weight, bias, running, active, scores)


def _check(
    states: Sequence[Tensor], weight: Tensor, bias: Tensor, running: Tensor, active: Tensor | None, scores: Tensor | None
) -> bool:
    alike = check_states(states, weight, bias)
    check_step(states, weight, running, active, scores)
    return alike


gated_step_op = torch.library.custom_op("swift_rm::gated_step", _run, mutates_args=("running", "scores"))


@gated_step_op.register_fake
def _(*arguments: Any) -> None:
    _check(*arguments[:-1])
