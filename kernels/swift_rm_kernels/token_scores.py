"""token_scores: what a head says of each token, without pooling and without a gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from swift_rm_kernels.checks import as_layers, check_sizes, check_states
from swift_rm_kernels.dispatch import Impl, kernels
from swift_rm_kernels.reference import States


@torch.no_grad()
def token_scores(
    states: States,  # [T, D] or list of L tensors [T, d]
    weight: Tensor,  # [2, D]: row 0 = gate, row 1 = reward; [1, D]: reward only; float32
    bias: Tensor,  # [2] or [1]
    *,
    impl: Impl = "auto",
) -> Tensor:  # [T, 2] or [T, 1]
    """Compute ``W h_t + b``, z and r of each token: those that :func:`gated_pool` returns with ``return_tokens``.

    It is for states that come step by step and are pooled elsewhere. Raises ValueError if devices, dtypes or sizes do not fit.
    """
    layers = as_layers(states)
    check_states(layers, weight, bias)
    check_sizes(layers, weight)
    scores: Tensor = kernels("gated_pool", impl, layers, weight).token_scores(layers, weight, bias)
    return scores
