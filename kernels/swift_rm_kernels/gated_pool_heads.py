"""gated_pool for many heads at once: one matrix product reads the states for all of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from swift_rm_kernels.checks import as_layers, check_offsets
from swift_rm_kernels.gated_pool import gated_pool
from swift_rm_kernels.gated_pool_torch import token_scores, weight_gradient
from swift_rm_kernels.reference import States, pool_gradient_reference, pool_reference


def gated_pool_heads(
    states: States,  # [T, D] or list of L tensors [T, d]
    weight: Tensor,  # [H, 2, D]: row 0 of a head = gate, row 1 = reward; [H, 1, D]: rewards only, plain means
    bias: Tensor,  # [H, 2] or [H, 1]
    offsets: Tensor,  # [B + 1]
    *,
    mask: Tensor | None = None,  # [T, H], or [T, 1] for all heads: True = this head reads this token
    gated: Tensor | None = None,  # [H]: False = plain mean
) -> Tensor:  # [B, H]
    """Compute the rewards that H heads give each packed response: of each head what :func:`gated_pool` gives.

    The states are read once for all heads' rewards and once more for their gradients; to the states only if they require it.
    Raises ValueError if widths, offsets or masks do not fit.
    """
    return pool_heads(*head_scores(states, weight, bias, offsets, gated=gated), offsets, mask)


def head_scores(
    states: States, weight: Tensor, bias: Tensor, offsets: Tensor, *, gated: Tensor | None = None
) -> tuple[Tensor, Tensor]:  # [T, H], [T, H]
    """Compute z and r of every token for each head, in float32; z of a head that is not ``gated`` is 0."""
    heads, rows, width = weight.shape if weight.dim() == 3 else (-1, -1, -1)
    layers = as_layers(states)
    if rows not in (1, 2) or bias.shape != (heads, rows) or width != sum(layer.shape[-1] for layer in layers):
        raise ValueError(
            f"weight and bias must be [H, 2, D] and [H, 2] for states {sum(layer.shape[-1] for layer in layers)} wide, "
            f"got {list(weight.shape)} and {list(bias.shape)}"
        )
    if heads == 1:  # what has faster kernels
        _, *scores = gated_pool(states, weight[0], bias[0], offsets, return_tokens=True)
        z, r = (score[:, None] for score in scores)
    else:
        dtype = torch.promote_types(weight.dtype, torch.float32)
        rows_of_all = weight.flatten(0, 1).to(dtype), bias.flatten().to(dtype)
        found: Tensor = _HeadScores.apply(*rows_of_all, *layers)  # type: ignore[no-untyped-call]
        each = found.view(-1, heads, rows)
        z, r = (each[..., 0] if rows == 2 else torch.zeros_like(each[..., 0])), each[..., -1]
    return (z if gated is None else torch.where(gated.to(z.device), z, 0)), r


def pool_heads(
    z: Tensor,  # [T, H]
    r: Tensor,  # [T, H]
    offsets: Tensor,  # [B + 1]
    mask: Tensor | None = None,  # [T, H] or [T, 1]
) -> Tensor:  # [B, H]
    """Average each head's rewards within each response, weighted by its gates; 0 where it reads no token."""
    check_offsets(offsets, len(z))
    if mask is not None and (mask.dtype != torch.bool or mask.shape not in (z.shape, (len(z), 1))):
        raise ValueError(f"mask must be bool [T, H] or [T, 1], {list(z.shape)} here, got {mask.dtype} {list(mask.shape)}")
    rewards: Tensor = _PoolHeads.apply(z, r, offsets, mask)  # type: ignore[no-untyped-call]
    return rewards


class _HeadScores(torch.autograd.Function):
    """``W h_t + b`` for any number of rows, no copy of the states larger than a block, in either direction."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor, *layers: Tensor) -> Tensor:
        ctx.layers = layers  # not saved by autograd, which refuses inference-mode states
        ctx.save_for_backward(weight)
        return token_scores(layers, weight, bias)

    @staticmethod
    def backward(ctx: Any, d_scores: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        parts = weight.split([layer.shape[1] for layer in ctx.layers], dim=1)
        d_layers = [
            (d_scores @ part).to(layer.dtype) if needed else None
            for layer, part, needed in zip(ctx.layers, parts, ctx.needs_input_grad[2:], strict=True)
        ]
        return weight_gradient(ctx.layers, d_scores), d_scores.sum(0), *d_layers


class _PoolHeads(torch.autograd.Function):
    """The pooling with its gradient written out, which autograd would have to store the way for."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, r: Tensor, offsets: Tensor, mask: Tensor | None) -> Tensor:
        rewards = pool_reference(z, r, offsets, mask)
        ctx.save_for_backward(z, r, offsets, mask, rewards)
        return rewards

    @staticmethod
    def backward(ctx: Any, d_rewards: Tensor) -> tuple[Tensor | None, ...]:
        z, r, offsets, mask, rewards = ctx.saved_tensors
        return *pool_gradient_reference(z, r, offsets, mask, rewards, d_rewards), None, None
