"""The losses of a reward head over the responses of each question (SWIFT, arXiv 2505.12225)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # rewards [B], labels [B] in {0, 1}, question [B] -> scalar
NCA_ALPHA = 0.01


def bce(rewards: Tensor, labels: Tensor, question: Tensor) -> Tensor:
    """Return the binary cross-entropy of ``sigmoid(reward)``: the reward becomes the logit of being right."""
    return F.binary_cross_entropy_with_logits(rewards, labels.to(rewards.dtype))


def hinge(rewards: Tensor, labels: Tensor, question: Tensor) -> Tensor:
    """Return the mean of ``max(0, 1 - y R)`` with y = +1 for right and -1 for wrong responses."""
    return F.relu(1 - (2 * labels.to(rewards.dtype) - 1) * rewards).mean()


def dpo(rewards: Tensor, labels: Tensor, question: Tensor) -> Tensor:
    """Return the mean of ``-log sigmoid(R+ - R-)`` over all right x wrong pairs of a question; 0 where there is no pair."""
    pairs = (question[:, None] == question[None, :]) & (labels[:, None] == 1) & (labels[None, :] == 0)
    margins = (rewards[:, None] - rewards[None, :])[pairs]
    return -F.logsigmoid(margins).mean() if len(margins) else rewards.sum() * 0


def infonca(rewards: Tensor, labels: Tensor, question: Tensor) -> Tensor:
    """Return the mean over questions of ``-sum_i softmax(label / alpha)_i log softmax(R)_i``, alpha = 0.01."""
    losses = [
        -(torch.softmax(y / NCA_ALPHA, 0) * torch.log_softmax(r, 0)).sum() for r, y in _questions(rewards, labels, question)
    ]
    return torch.stack(losses).mean()


def nca(rewards: Tensor, labels: Tensor, question: Tensor) -> Tensor:
    """Return the mean over questions of ``-sum_i softmax(label / alpha)_i log sigmoid(R_i) + (1 / K) log sigmoid(-R_i)``."""
    losses = [
        -(torch.softmax(y / NCA_ALPHA, 0) * F.logsigmoid(r)).sum() - F.logsigmoid(-r).mean()
        for r, y in _questions(rewards, labels, question)
    ]
    return torch.stack(losses).mean()


POINTWISE = ("bce", "hinge")  # each response by itself, so that any number of them may stand in one batch
LOSSES: dict[str, Loss] = {"bce": bce, "hinge": hinge, "dpo": dpo, "infonca": infonca, "nca": nca}


def get_loss(name: str) -> Loss:
    """Return a loss by name; raise ValueError that lists the names."""
    if name not in LOSSES:
        raise ValueError(f"loss must be one of {sorted(LOSSES)}, got {name!r}")
    return LOSSES[name]


def _questions(rewards: Tensor, labels: Tensor, question: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(rewards[question == q], labels[question == q].to(rewards.dtype)) for q in torch.unique(question)]
