"""The losses of a reward head over the responses of each question (SWIFT, arXiv 2505.12225)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Callable[..., Tensor]  # (rewards [B], labels [B] in {0, 1}, question [B], weight [B] or None) -> scalar
NCA_ALPHA = 0.01


def bce(rewards: Tensor, labels: Tensor, question: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the binary cross-entropy of ``sigmoid(reward)``: the reward becomes the logit of being right."""
    return _mean(F.binary_cross_entropy_with_logits(rewards, labels.to(rewards.dtype), reduction="none"), weight)


def hinge(rewards: Tensor, labels: Tensor, question: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the mean of ``max(0, 1 - y R)`` with y = +1 for right and -1 for wrong responses."""
    return _mean(F.relu(1 - (2 * labels.to(rewards.dtype) - 1) * rewards), weight)


def dpo(rewards: Tensor, labels: Tensor, question: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the mean of ``-log sigmoid(R+ - R-)`` over all right x wrong pairs of a question; 0 where there is no pair.

    A pair weighs the product of its two weights.
    """
    pairs = (question[:, None] == question[None, :]) & (labels[:, None] == 1) & (labels[None, :] == 0)
    margins = (rewards[:, None] - rewards[None, :])[pairs]
    if not len(margins):
        return rewards.sum() * 0
    return _mean(-F.logsigmoid(margins), None if weight is None else (weight[:, None] * weight[None, :])[pairs])


def infonca(rewards: Tensor, labels: Tensor, question: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the mean over questions of ``-sum_i softmax(label / alpha)_i log softmax(R)_i``, alpha = 0.01.

    A question weighs the sum of its responses' weights.
    """
    return _by_question(
        lambda r, y: -(torch.softmax(y / NCA_ALPHA, 0) * torch.log_softmax(r, 0)).sum(), rewards, labels, question, weight
    )


def nca(rewards: Tensor, labels: Tensor, question: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the mean over questions of ``-sum_i softmax(label / alpha)_i log sigmoid(R_i) + (1 / K) log sigmoid(-R_i)``.

    A question weighs the sum of its responses' weights.
    """
    return _by_question(
        lambda r, y: -(torch.softmax(y / NCA_ALPHA, 0) * F.logsigmoid(r)).sum() - F.logsigmoid(-r).mean(),
        rewards, labels, question, weight,
    )  # fmt: skip


def question_weights(labels: Tensor, question: Tensor) -> Tensor:
    """Return weights ``[B]`` by which every question counts the same, and in it right and wrong responses the same.

    A question whose responses are all right or all wrong has weight 0.
    """
    groups = 2 * torch.unique(question, return_inverse=True)[1] + labels
    sizes = torch.bincount(groups, minlength=2 * (int(groups.max()) // 2 + 1) if len(groups) else 0)
    return torch.where(sizes[groups ^ 1] > 0, 0.5 / sizes[groups], 0.0)


POINTWISE = ("bce", "hinge")  # each response by itself, so that any number of them may stand in one batch
LOSSES: dict[str, Loss] = {"bce": bce, "hinge": hinge, "dpo": dpo, "infonca": infonca, "nca": nca}


def get_loss(name: str) -> Loss:
    """Return a loss by name; raise ValueError that lists the names."""
    if name not in LOSSES:
        raise ValueError(f"loss must be one of {sorted(LOSSES)}, got {name!r}")
    return LOSSES[name]


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return values.mean()
    weight = weight.to(values.dtype)
    return (weight * values).sum() / weight.sum().clamp_min(torch.finfo(values.dtype).tiny)


def _by_question(
    loss: Callable[[Tensor, Tensor], Tensor], rewards: Tensor, labels: Tensor, question: Tensor, weight: Tensor | None
) -> Tensor:
    members = [question == q for q in torch.unique(question)]
    losses = torch.stack([loss(rewards[here], labels[here].to(rewards.dtype)) for here in members])
    return _mean(losses, None if weight is None else torch.stack([weight[here].sum() for here in members]))
