"""gated_pool: the rewards of packed responses in one pass over their states, and one more for the gradient."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor

from swift_rm_kernels.checks import as_layers
from swift_rm_kernels.dispatch import Impl
from swift_rm_kernels.gated_pool_op import gated_pool_op
from swift_rm_kernels.reference import States, columns, gated_pool_reference


@overload
def gated_pool(
    states: States,
    weight: Tensor,
    bias: Tensor,
    offsets: Tensor,
    *,
    mask: Tensor | None = ...,
    return_tokens: Literal[False] = ...,
    impl: Impl = ...,
) -> Tensor: ...
@overload
def gated_pool(
    states: States,
    weight: Tensor,
    bias: Tensor,
    offsets: Tensor,
    *,
    mask: Tensor | None = ...,
    return_tokens: Literal[True],
    impl: Impl = ...,
) -> tuple[Tensor, Tensor, Tensor]: ...
def gated_pool(
    states: States,  # [T, D] or list of L tensors [T, d]: bfloat16, float16, float32 (float64: plain torch), any outer stride
    weight: Tensor,  # [2, D]: row 0 = gate, row 1 = reward; [1, D]: reward only, plain mean
    bias: Tensor,  # [2] or [1]
    offsets: Tensor,  # [B + 1], on the states' device or on the CPU, where they are checked without waiting
    *,
    mask: Tensor | None = None,  # [T], True = read this token
    return_tokens: bool = False,
    impl: Impl = "auto",
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """Compute the reward of each packed response (SWIFT, arXiv 2505.12225): ``R = sum_t g_t r_t / sum_t g_t``, in float32.

    The definition is :func:`gated_pool_reference`. A list of layers is never concatenated. Reads
    ``T * D * bytes_per_element`` bytes once for the rewards and once more for the gradient to weight and bias (it needs the
    rewards' gradient, so two reads are the floor); beyond its results it keeps two floats a token. Gradients flow through
    the rewards, and through z and r ``[T]``, which ``return_tokens`` adds; to the states only if they require it. There is
    no second derivative. A token that is masked weighs nothing, but where its states are NaN, so is the weight's gradient.

    ``impl="auto"`` takes Triton for a GPU, Numba for many states on a CPU where it is installed (``swift-rm[cpu]``), else
    plain torch. Raises ValueError, before anything runs, if devices, dtypes, widths, sizes or offsets do not fit.
    """
    if impl == "reference":
        return gated_pool_reference(states, weight, bias, offsets, mask=mask, return_tokens=return_tokens)
    rewards, scores = gated_pool_op(as_layers(states), weight, bias, offsets, mask, impl)
    return (rewards, *columns(scores)) if return_tokens else rewards
