"""The definition of the gated mean over packed tokens: the shortest correct code; everything else is the same, faster."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from swift_rm_kernels.checks import as_layers, check_offsets

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
    layers = as_layers(states)
    width = sum(layer.shape[-1] for layer in layers)
    if width != weight.shape[-1]:
        raise ValueError(f"states are {width} wide in all, but weight is {weight.shape[-1]} wide")
    out = bias
    for layer, part in zip(layers, torch.split(weight, [layer.shape[-1] for layer in layers], dim=-1), strict=True):
        out = out + layer.to(weight.dtype) @ part.T
    return out


def columns(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return z and r, ``[T]`` each, of scores ``[T, 2]``, or of ``[T, 1]``, where there is no gate and every z is 0."""
    return (scores[:, 0] if scores.shape[1] == 2 else torch.zeros_like(scores[:, 0])), scores[:, -1]


def pool_reference(
    z: Tensor,  # [T], or [T, H] of H heads, as everything below
    r: Tensor,  # [T]
    offsets: Tensor,  # [B + 1]
    mask: Tensor | None = None,  # [T], True = read this token
) -> Tensor:  # [B]
    """Average the rewards of each response weighted by its gates: ``sum_t g_t r_t / sum_t g_t`` with ``g = sigmoid(z)``.

    Computed as softmax of ``logsigmoid(z)`` within each response, which is equal and stays finite when every gate
    underflows. A response without tokens, or with every token masked, has reward 0 and passes no gradient.
    """
    check_offsets(offsets, z.shape[0])
    gate, r, mass, row = _gates(z, r, offsets, mask)
    total = torch.zeros_like(mass).index_add(0, row, gate * r)
    return total / _nonzero(mass)


def _gates(z: Tensor, r: Tensor, offsets: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return each token's gate, scaled by the largest of its response, its reward, 0 if masked, ``mass [B]`` and its row."""
    log_gate = F.logsigmoid(z)
    if mask is not None:
        log_gate = log_gate.masked_fill(~mask, -torch.inf)
        r = r.masked_fill(~mask, 0)
    size = offsets.numel() - 1
    row = torch.repeat_interleave(torch.arange(size, device=z.device), offsets.diff().to(z.device), output_size=len(z))
    places = row if z.dim() == 1 else row[:, None].expand_as(z)
    top = log_gate.detach().new_full((size, *z.shape[1:]), -torch.inf).scatter_reduce(0, places, log_gate.detach(), "amax")
    top = torch.where(torch.isneginf(top), torch.zeros_like(top), top)
    gate = torch.exp(log_gate - top[row])
    return gate, r, gate.new_zeros(size, *z.shape[1:]).index_add(0, row, gate), row


def _nonzero(mass: Tensor) -> Tensor:
    return torch.where(mass == 0, torch.ones_like(mass), mass)


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
    z, r = columns(scores)
    rewards = pool_reference(z, r, offsets, mask)
    return (rewards, z, r) if return_tokens else rewards


def pool_gradient_reference(
    z: Tensor,  # [T]
    r: Tensor,  # [T]
    offsets: Tensor,  # [B + 1]
    mask: Tensor | None,  # [T]
    rewards: Tensor,  # [B]: of pool_reference
    grad: Tensor,  # [B]: of the rewards
) -> tuple[Tensor, Tensor]:  # [T], [T]
    """Write out the gradient of :func:`pool_reference` to z and r, which autograd would have to store the way for.

    With ``p_t`` the share of token t in its response, ``dR/dr_t = p_t`` and ``dR/dz_t = p_t (r_t - R) sigmoid(-z_t)``.
    """
    gate, r, mass, row = _gates(z, r, offsets, mask)
    share = gate / _nonzero(mass)[row] * grad[row]
    return share * (r - rewards[row]) * torch.sigmoid(-z), share


def add_scores_reference(
    running: Tensor,  # [rows, 3], changed in place
    found: Tensor,  # [rows, 2] or [rows, 1]: one token's z and r, or r alone
    active: Tensor | None = None,  # [rows], True = count this row's token
    scores: Tensor | None = None,  # [rows, 2] or [rows, 1], changed in place: receives what was found in the active rows
) -> None:
    """Add one token per row to the running gated means.

    A row of ``running`` is all that streaming keeps of a response: the largest log gate m so far, and ``sum g r / e^m`` and
    ``sum g / e^m`` (an online softmax of logsigmoid(z), so that gates that all underflow still weigh). It begins as
    ``(-inf, 0, 0)``, see :func:`new_running`. Rows that are not active keep what they have, whatever was found.
    """
    r = found[:, -1]
    log_gate = F.logsigmoid(found[:, 0]) if found.shape[1] == 2 else torch.zeros_like(r)
    top, total, mass = running.unbind(1)
    new_top = torch.maximum(top, log_gate)
    level = new_top.clamp_min(torch.finfo(running.dtype).min)  # while all gates are shut, exp(-inf) and not exp(-inf + inf)
    keep, gate = (top - level).exp_(), (log_gate - level).exp_()
    after = (new_top, torch.addcmul(total * keep, gate, r), torch.addcmul(gate, mass, keep))
    for old, new in zip((top, total, mass), after, strict=True):
        old.copy_(new) if active is None else torch.where(active, new, old, out=old)
    if scores is not None:
        scores.copy_(found if active is None else torch.where(active[:, None], found, scores))


@torch.no_grad()
def gated_step_reference(
    states: Sequence[Tensor],  # L tensors [rows, d]: one decoded token per row
    weight: Tensor,  # [2, D] or [1, D]
    bias: Tensor,  # [2] or [1]
    running: Tensor,  # [rows, 3], changed in place
    active: Tensor | None = None,  # [rows], True = count this row's token
    scores: Tensor | None = None,  # [rows, 2] or [rows, 1], changed in place: receives the active rows' z and r
) -> None:
    """Add one decoded token per row to the running gated means; after a response's tokens they give ``gated_pool``'s reward."""
    add_scores_reference(running, token_scores_reference(states, weight, bias), active, scores)


def new_running(rows: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the running state of rows that have counted no token yet, ``[rows, 3]``."""
    return torch.tensor([-torch.inf, 0.0, 0.0], device=device, dtype=dtype).repeat(rows, 1)


def running_rewards(running: Tensor) -> Tensor:
    """Return the gated mean so far of each row, ``[rows]``; NaN where no token was counted."""
    return running[:, 1] / running[:, 2]
