"""gated_pool as torch knows it: registered operations with shapes for the compiler and a gradient written out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from swift_rm_kernels.checks import check_mask, check_offsets, check_sizes, check_states
from swift_rm_kernels.dispatch import kernels


@torch.library.custom_op("swift_rm::gated_pool", mutates_args=())
def gated_pool_op(
    states: Sequence[Tensor], weight: Tensor, bias: Tensor, offsets: Tensor, mask: Tensor | None, impl: str
) -> tuple[Tensor, Tensor]:
    """Check the arguments; return rewards ``[B]`` and scores ``[T, rows]`` (z and r). ``impl`` names the kernels."""
    _check(states, weight, bias, mask)
    check_sizes(states, weight)
    check_offsets(offsets, states[0].shape[0])
    dtype, passes = _accumulated_in(weight), kernels("gated_pool", impl, states, weight)
    scores = passes.token_scores(states, weight.to(dtype).contiguous(), bias.to(dtype).contiguous())
    return passes.pool(scores, *_beside(scores, offsets, mask)), scores


@torch.library.custom_op("swift_rm::score_gradient", mutates_args=())
def score_gradient(scores: Tensor, offsets: Tensor, mask: Tensor | None, rewards: Tensor, d_rewards: Tensor, impl: str) -> Tensor:
    """Return the gradient to the scores ``[T, rows]`` from that to the rewards ``[B]``."""
    passes = kernels("gated_pool", impl, [scores], scores)
    return cast(Tensor, passes.score_gradient(scores, *_beside(scores, offsets, mask), rewards, d_rewards.contiguous()))


@torch.library.custom_op("swift_rm::weight_gradient", mutates_args=())
def weight_gradient(states: Sequence[Tensor], d_scores: Tensor, impl: str) -> Tensor:
    """Return the gradient to the weight ``[rows, D]`` from that to the scores ``[T, rows]``: the second pass over the states."""
    return cast(Tensor, kernels("gated_pool", impl, states, d_scores).weight_gradient(states, d_scores.contiguous()))


def _check(states: Sequence[Tensor], weight: Tensor, bias: Tensor, mask: Tensor | None) -> None:
    check_states(states, weight, bias)
    if states[0].dim() != 2:
        raise ValueError(f"states must be [T, d], got {list(states[0].shape)}")
    check_mask(mask, states[0].shape[0], states[0].device)


def _beside(scores: Tensor, offsets: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return offsets and mask where the scores are, without gaps, and without waiting for the device."""
    return offsets.to(scores.device, non_blocking=True).contiguous(), None if mask is None else mask.contiguous()


def _accumulated_in(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)


@gated_pool_op.register_fake
def _(
    states: Sequence[Tensor], weight: Tensor, bias: Tensor, offsets: Tensor, mask: Tensor | None, impl: str
) -> tuple[Tensor, Tensor]:
    _check(states, weight, bias, mask)
    dtype = _accumulated_in(weight)
    rewards = weight.new_empty(offsets.shape[0] - 1, dtype=dtype)
    return rewards, weight.new_empty(states[0].shape[0], weight.shape[0], dtype=dtype)


@score_gradient.register_fake
def _(scores: Tensor, offsets: Tensor, mask: Tensor | None, rewards: Tensor, d_rewards: Tensor, impl: str) -> Tensor:
    return torch.empty_like(scores)


@weight_gradient.register_fake
def _(states: Sequence[Tensor], d_scores: Tensor, impl: str) -> Tensor:
    return d_scores.new_empty(d_scores.shape[1], sum(layer.shape[1] for layer in states))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    states, weight, _, offsets, mask, ctx.impl = inputs
    rewards, scores = output
    ctx.set_materialize_grads(False)
    ctx.unsaved = {i: state for i, state in enumerate(states) if state.is_inference()}  # which autograd refuses to save
    ctx.save_for_backward(weight, offsets, mask, rewards, scores, *(None if s.is_inference() else s for s in states))


def _backward(ctx: Any, d_rewards: Tensor | None, d_scores: Tensor | None) -> tuple[Any, ...]:
    weight, offsets, mask, rewards, scores, *states = ctx.saved_tensors
    states = [ctx.unsaved.get(i, state) for i, state in enumerate(states)]
    d_states: list[Tensor | None] = [None] * len(states)
    if d_rewards is not None:
        through_rewards = score_gradient(scores, offsets, mask, rewards, d_rewards, ctx.impl)
        d_scores = through_rewards if d_scores is None else through_rewards + d_scores
    if d_scores is None:
        return d_states, None, None, None, None, None
    parts = weight.split([state.shape[1] for state in states], dim=1)
    for i, needed in enumerate(ctx.needs_input_grad[0]):
        if needed:
            d_states[i] = d_scores.to(states[i].dtype) @ parts[i].to(states[i].dtype)
    d_weight = weight_gradient(states, d_scores, ctx.impl).to(weight.dtype) if ctx.needs_input_grad[1] else None
    return d_states, d_weight, d_scores.sum(0).to(weight.dtype), None, None, None


gated_pool_op.register_autograd(_backward, setup_context=_setup_context)
