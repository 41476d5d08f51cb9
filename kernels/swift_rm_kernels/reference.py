"""The definition of the gated mean over packed tokens: the shortest correct code; everything else is the same, faster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor
from torch.nn import functional as F

States = Tensor | Sequence[Tensor]


def token_scores_reference(
    states: States,  # [T, D] or list of L tensors [T, d]
    weight: Tensor,  # [2, D] or [1, D]
    bias: Tensor,  # [2] or [1]
) -> Tensor:  # [T, 2] or [T, 1]
    """Compute ``W h_t + b`` per token: column 0 is the gate's logit z, column 1 the reward r.

    A list of layers is never concatenated: each layer meets its own columns of ``weight``. The result has the dtype of
    ``weight``.
    """
    layers = [states] if isinstance(states, Tensor) else list(states)
    width = sum(layer.shape[-1] for layer in layers)
    if width != weight.shape[-1]:
        raise ValueError(f"states are {width} wide in all, but weight is {weight.shape[-1]} wide")
    out = bias
    for layer, part in zip(layers, torch.split(weight, [layer.shape[-1] for layer in layers], dim=-1), strict=True):
        out = out + layer.to(weight.dtype) @ part.T
    return out


def pool_reference(
    z: Tensor,  # [T]
    r: Tensor,  # [T]
    offsets: Tensor,  # [B + 1]
    mask: Tensor | None = None,  # [T], True = read this token
) -> Tensor:  # [B]
    """Average the rewards of each response weighted by its gates: ``sum_t g_t r_t / sum_t g_t`` with ``g = sigmoid(z)``.

    Computed as softmax of ``logsigmoid(z)`` within each response, which is equal and stays finite when every gate
    underflows. A response without tokens, or with every token masked, has reward 0 and passes no gradient.
    """
    check_offsets(offsets, z.shape[0])
    log_gate = F.logsigmoid(z)
    if mask is not None:
        log_gate = log_gate.masked_fill(~mask, -torch.inf)
        r = r.masked_fill(~mask, 0)
    size = offsets.numel() - 1
    row = torch.repeat_interleave(torch.arange(size, device=z.device), offsets.diff().to(z.device))
    top = log_gate.detach().new_full((size,), -torch.inf).scatter_reduce(0, row, log_gate.detach(), "amax")
    top = torch.where(torch.isneginf(top), torch.zeros_like(top), top)
    gate = torch.exp(log_gate - top[row])
    mass = gate.new_zeros(size).index_add(0, row, gate)
    total = gate.new_zeros(size).index_add(0, row, gate * r)
    return total / torch.where(mass == 0, torch.ones_like(mass), mass)


def pool_prefixes_reference(
    z: Tensor,  # [T]
    r: Tensor,  # [T]
    offsets: Tensor,  # [B + 1]
) -> Tensor:  # [T]
    """Compute, at each token, the reward of its response up to there; at a response's last token that is ``pool_reference``.

    It is what streaming gives while the response is generated, differentiable. Sums are taken in float64.
    """
    check_offsets(offsets, z.shape[0])
    sizes = offsets.diff().to(z.device)
    row = torch.repeat_interleave(torch.arange(len(sizes), device=z.device), sizes)
    column = torch.arange(len(z), device=z.device) - offsets.to(z.device)[row]
    log_gate = F.logsigmoid(z.double())
    top = log_gate.detach().new_full((len(sizes),), -torch.inf).scatter_reduce(0, row, log_gate.detach(), "amax")
    gate = torch.exp(log_gate - top[row])
    padded = gate.new_zeros(2, len(sizes), int(sizes.max()) if len(sizes) else 0)  # a response a row: sums never meet others'
    padded[:, row, column] = torch.stack([gate * r.double(), gate])
    total, mass = padded.cumsum(2)[:, row, column]
    means: Tensor = total / mass.clamp_min(torch.finfo(torch.float64).tiny)
    return means.to(r.dtype)


@overload
def gated_pool_reference(
    states: States,
    weight: Tensor,
    bias: Tensor,
    offsets: Tensor,
    *,
    mask: Tensor | None = ...,
    return_tokens: Literal[False] = ...,
) -> Tensor: ...
@overload
def gated_pool_reference(
    states: States,
    weight: Tensor,
    bias: Tensor,
    offsets: Tensor,
    *,
    mask: Tensor | None = ...,
    return_tokens: Literal[True],
) -> tuple[Tensor, Tensor, Tensor]: ...
def gated_pool_reference(
    states: States,  # [T, D] or list of L tensors [T, d]
    weight: Tensor,  # [2, D]: row 0 = gate, row 1 = reward; [1, D]: reward only, plain mean
    bias: Tensor,  # [2] or [1]
    offsets: Tensor,  # [B + 1]
    *,
    mask: Tensor | None = None,  # [T]
    return_tokens: bool = False,
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """Compute the reward of each packed response (SWIFT, arXiv 2505.12225): ``R = sum_t g_t r_t / sum_t g_t``.

    Any floating dtype; float64 for gradient checks. With ``return_tokens`` also z and r per token, ``[T]`` each.
    Raises ValueError if the widths or the offsets do not fit.
    """
    scores = token_scores_reference(states, weight, bias)
    r = scores[:, -1]
    z = scores[:, 0] if weight.shape[0] == 2 else torch.zeros_like(r)
    rewards = pool_reference(z, r, offsets, mask)
    return (rewards, z, r) if return_tokens else rewards


def check_offsets(offsets: Tensor, tokens: int) -> None:
    """Raise ValueError unless offsets ascend from 0 to the number of tokens."""
    if offsets.ndim != 1 or offsets.numel() == 0 or offsets.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"offsets must be a 1-D integer tensor [B + 1], got shape {tuple(offsets.shape)} of {offsets.dtype}")
    if int(offsets[0]) != 0 or int(offsets[-1]) != tokens or bool((offsets.diff() < 0).any()):
        raise ValueError(f"offsets must ascend from 0 to {tokens} (the tokens given), got {offsets.tolist()[:8]}")


def add_scores_reference(
    running: Tensor,  # [rows, 3], changed in place
    scores: Tensor,  # [rows, 2] or [rows, 1]: one token's z and r, or r alone; or several tokens' [rows, tokens, 2 or 1]
    active: Tensor | None = None,  # [rows] or [rows, tokens], True = count this token
) -> None:
    """Add tokens to the running gated mean of their rows.

    A row of ``running`` is all that streaming keeps of a response: the largest log gate m so far, and ``sum g r / e^m`` and
    ``sum g / e^m`` (an online softmax of logsigmoid(z), so that gates that all underflow still weigh). It begins as
    ``(-inf, 0, 0)``, see :func:`new_running`. Tokens that are not active change nothing, whatever their scores.
    """
    if scores.dim() == 2:
        scores, active = scores[:, None], None if active is None else active[:, None]
    z, r = scores[..., 0], scores[..., -1]
    log_gate = F.logsigmoid(z) if scores.shape[-1] == 2 else torch.zeros_like(r)
    if active is not None:
        log_gate, r = log_gate.masked_fill(~active, -torch.inf), r.masked_fill(~active, 0)
    top, total, mass = running.unbind(-1)
    new_top = torch.maximum(top, log_gate.amax(-1))
    zero = new_top.masked_fill(torch.isneginf(new_top), 0)
    keep, gate = torch.exp(top - zero), torch.exp(log_gate - zero[:, None])
    running.copy_(torch.stack([new_top, total * keep + (gate * r).sum(-1), mass * keep + gate.sum(-1)], dim=-1))


def gated_step_reference(
    states: Sequence[Tensor],  # L tensors [rows, d]: one decoded token per row
    weight: Tensor,  # [2, D] or [1, D]
    bias: Tensor,  # [2] or [1]
    running: Tensor,  # [rows, 3], changed in place
    active: Tensor | None = None,  # [rows], True = count this row's token
) -> None:
    """Add one decoded token per row to the running gated means; after a response's tokens they give ``gated_pool``'s reward."""
    add_scores_reference(running, token_scores_reference(states, weight, bias), active)


def new_running(rows: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the running state of rows that have counted no token yet, ``[rows, 3]``."""
    return torch.tensor([-torch.inf, 0.0, 0.0], device=device, dtype=dtype).repeat(rows, 1)


def running_rewards(running: Tensor) -> Tensor:
    """Return the gated mean so far of each row, ``[rows]``; NaN where no token was counted."""
    return running[:, 1] / running[:, 2]
