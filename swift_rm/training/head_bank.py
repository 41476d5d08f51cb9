"""A bank of heads, trained at once from the same states: the language model is the cost, another head hardly any."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from swift_rm_kernels import head_scores, pool_heads
from swift_rm_kernels.reference import pool_prefixes_reference
from torch import Tensor

from swift_rm.features.read_states import Batch
from swift_rm.features.row_selection import Reading, reading_of
from swift_rm.reward.config import SwiftConfig
from swift_rm.reward.logprob_features import LEAST_DEVIATION
from swift_rm.reward.reward_model import SwiftRewardModel
from swift_rm.training.head_grid import HeadPlan
from swift_rm.training.input_standardisation import Scaling
from swift_rm.training.losses import get_loss, question_weights

BAGGED = 0.8  # share of the questions that each head of an ensemble learns from


class Member:
    """One head while it is trained: its reward model reads standardised states; ``keep`` remembers its best."""

    def __init__(
        self, plan: HeadPlan, group: int, seed: int, columns: Tensor | slice, view: int | None, scaling: Scaling
    ) -> None:
        self.plan, self.group, self.columns, self.view, self.scaling = plan, group, columns, view, scaling
        self.seed, self.rm = seed, SwiftRewardModel(plan.config)
        self.best_value, self.best_epoch = -math.inf, 0
        self.bag: Tensor | None = None  # [Q]: which questions it learns from

    def begin(self, rate: float, questions: int) -> None:
        """Draw the first weights; the reward begins at the logit of the share of right responses."""
        generator = torch.Generator().manual_seed(self.seed)
        with torch.no_grad():
            weight = torch.empty(self.rm.head.weight.shape).normal_(
                0, 0.01 / math.sqrt(self.plan.config.width), generator=generator
            )
            self.rm.head.weight.copy_(weight)
            self.rm.head.bias.zero_()[-1] = math.log(rate / (1 - rate))
        self.best = copy.deepcopy(self.rm.state_dict())
        if self.plan.settings.ensemble > 1:
            self.bag = torch.rand(questions, generator=generator) < BAGGED

    def keep(self, value: float, epoch: int) -> None:
        """Remember the weights if ``value`` is the best so far, and they are finite."""
        if value > self.best_value and all(bool(torch.isfinite(p).all()) for p in self.rm.parameters()):
            self.best, self.best_value, self.best_epoch = copy.deepcopy(self.rm.state_dict()), value, epoch

    def finished(self) -> SwiftRewardModel:
        """Return the reward model with its best weights, which reads raw states."""
        self.rm.load_state_dict(self.best)
        raw = SwiftRewardModel(self.plan.config)
        with torch.no_grad():
            for parameter, value in zip((raw.head.weight, raw.head.bias), self.scaling.fold(self.rm), strict=True):
                parameter.copy_(value)
        return raw


class HeadBank:
    """Heads for the states of ``layers``, ``[T, D]`` in this order, trained together; ``views`` are the masks' columns.

    Each head has its own layers, view, loss, learning rate; a plan of an ensemble becomes several heads. One product reads
    the states for all heads that are still ``active``, one more takes all gradients.
    """

    def __init__(
        self,
        plans: Sequence[HeadPlan],
        layers: Sequence[int],
        views: Sequence[Reading],
        scalings: Sequence[Scaling],
        *,
        right_share: float,
        questions: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.plans, self.members = list(plans), list[Member]()
        for group, plan in enumerate(plans):
            columns = _columns(plan.config, layers)
            view = _place(reading_of(plan.config), views) if len(views) > 1 else None
            least = LEAST_DEVIATION if plan.config.source == "top_logprobs" else 0.0
            scaling = scalings[view or 0].of(columns, plan.settings.standardise, len(plan.config.layers), least)
            for i in range(plan.settings.ensemble):
                member = Member(plan, group, plan.settings.seed + i, columns, view, scaling)
                member.begin(min(max(right_share, 0.01), 0.99), questions)
                member.rm.to(device)
                member.scaling = Scaling(scaling.mean.to(device), scaling.scale.to(device))
                self.members.append(member)
        self.active = list(self.members)
        self._width = sum(plans[0].config.hidden_size for _ in layers)
        groups = [
            {"params": list(m.rm.parameters()), "lr": m.plan.settings.lr, "weight_decay": m.plan.settings.weight_decay}
            for m in self.members
        ]
        self._rates = [float(group["lr"]) for group in groups]  # type: ignore[arg-type]
        self._optimizer = torch.optim.AdamW(groups, foreach=True)

    def step(self, batch: Batch, factor: float = 1.0) -> None:
        """Take one gradient step with every active head, its learning rate times ``factor``."""
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        self._optimizer.zero_grad(set_to_none=True)
        torch.stack(self.losses(batch)).sum().backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()

    def losses(self, batch: Batch, *, bagged: bool = True) -> list[Tensor]:
        """Return the loss of each active head on a batch of whole questions, of its own ones if it has a bag."""
        z, r, mask = self._scores(batch)
        device = z.device
        question, labels = batch.question.to(device), batch.labels.to(device)
        z, r = self._centred(z, r, mask, batch.offsets, question)
        rewards = pool_heads(z, r, batch.offsets, mask)
        balances = any(member.plan.settings.balance == "question" for member in self.active)
        balanced = question_weights(labels, question) if balances else None
        found = []
        for i, member in enumerate(self.active):
            settings, loss = member.plan.settings, get_loss(member.plan.settings.loss)
            weight = balanced if settings.balance == "question" else None
            if bagged and member.bag is not None:
                inside = member.bag[batch.question].to(rewards)
                weight = inside if weight is None else weight * inside
            value = loss(rewards[:, i], labels, question, weight)
            if settings.prefixes:
                rows = torch.ones_like(z[:, i], dtype=torch.bool) if mask is None else mask[:, i]
                owner = torch.repeat_interleave(torch.arange(len(labels), device=device), batch.offsets.diff().to(device))[rows]
                ends = torch.bincount(owner, minlength=len(labels)).cumsum(0)
                so_far = pool_prefixes_reference(z[rows, i], r[rows, i], torch.cat([ends.new_zeros(1), ends]))
                each = None if weight is None else weight[owner]
                value = torch.lerp(value, loss(so_far, labels[owner], question[owner], each), settings.prefixes)
            found.append(value)
        return found

    def rewards(self, batch: Batch) -> Tensor:
        """Return the rewards of every active head, ``[B, H]``, as it will read when it is finished."""
        z, r, mask = self._scores(batch)
        return pool_heads(z, r, batch.offsets, mask)

    def restore(self) -> None:
        """Bring back every head's best weights, and make all active."""
        self.active = list(self.members)
        for member in self.members:
            member.rm.load_state_dict(member.best)

    def _scores(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        folded = [self._widened(member) for member in self.active]
        weight, bias = torch.stack([one[0] for one in folded]), torch.stack([one[1] for one in folded])
        gates = [member.plan.config.gate for member in self.active]
        gated = None if all(gates) else torch.tensor(gates, device=weight.device)
        z, r = head_scores(batch.states.to(weight.device), weight, bias, batch.offsets, gated=gated)
        if batch.masks is None:
            return z, r, None
        return z, r, batch.masks.to(z.device)[:, [member.view or 0 for member in self.active]]

    def _widened(self, member: Member) -> tuple[Tensor, Tensor]:
        """Return a head's weight ``[2, D]`` and bias ``[2]`` for raw states of all layers."""
        weight, bias = member.scaling.fold(member.rm)
        if not member.plan.config.gate:
            weight, bias = torch.cat([torch.zeros_like(weight), weight]), torch.cat([torch.zeros_like(bias), bias])
        if isinstance(member.columns, slice):
            return weight, bias
        return weight.new_zeros(2, self._width).index_copy(1, member.columns.to(weight.device), weight), bias

    def _centred(self, z: Tensor, r: Tensor, mask: Tensor | None, offsets: Tensor, question: Tensor) -> tuple[Tensor, Tensor]:
        """Take each question's mean from the scores of heads that centre: a linear head's scores of centred states."""
        which = torch.tensor([member.plan.settings.centre for member in self.active], device=z.device)
        if not bool(which.any()):
            return z, r
        names, place = torch.unique(question, return_inverse=True)
        row = place.repeat_interleave(offsets.diff().to(z.device))
        counted = torch.ones_like(z) if mask is None else mask.to(z)
        sizes = z.new_zeros(len(names), z.shape[1]).index_add(0, row, counted).clamp_min(1)
        centred = []
        for column, scores in ((0, z), (-1, r)):
            mean = scores.new_zeros(sizes.shape).index_add(0, row, scores * counted) / sizes
            bias = torch.stack([member.rm.head.bias[column] for member in self.active])
            gated = torch.tensor([member.plan.config.gate or column == -1 for member in self.active], device=z.device)
            centred.append(torch.where(which & gated, scores - mean[row] + bias, scores))
        return centred[0], centred[1]


def _columns(config: SwiftConfig, layers: Sequence[int]) -> Tensor | slice:
    if tuple(config.layers) == tuple(layers):
        return slice(None)
    missing = [layer for layer in config.layers if layer not in layers]
    if missing:
        raise ValueError(f"a head reads layer {missing[0]}, but the features hold the layers {tuple(layers)}")
    size = config.hidden_size
    return torch.cat([torch.arange(size) + size * list(layers).index(layer) for layer in config.layers])


def _place(view: Reading, views: Sequence[Reading]) -> int:
    if view not in views:
        raise ValueError(f"a head reads position {view[0]!r} and region {view[1]!r}, but the features hold {list(views)}")
    return list(views).index(view)
