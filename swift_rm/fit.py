"""Train a reward head on graded rollouts."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from swift_rm_kernels import gated_pool
from swift_rm_kernels.reference import pool_prefixes_reference
from torch import Tensor
from tqdm.auto import tqdm

from swift_rm.auroc import within_question_auroc
from swift_rm.calibration import Method, fit_calibration
from swift_rm.config import SwiftConfig
from swift_rm.features import Features, extract_features
from swift_rm.identity import check_sampled_by, describe_base
from swift_rm.losses import POINTWISE, get_loss
from swift_rm.reward_model import SwiftRewardModel
from swift_rm.rollouts import Rollout
from swift_rm.scaling import CHUNK, Scaling

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MIN_QUESTIONS = 5


@dataclass(frozen=True)
class FitSettings:
    """How a head is trained: ``batch_size`` counts questions, ``patience`` epochs, ``validation`` is a share of questions.

    ``prefixes`` is the share of the loss that is taken over every beginning of a response instead of the whole: with 1, the
    reward is at each token the logit of ending right, and may guide pruning (needs the loss ``bce`` or ``hinge``).
    """

    loss: str = "bce"
    lr: float = 0.01
    weight_decay: float = 1e-5
    epochs: int = 40
    patience: int = 6
    batch_size: int = 16
    validation: float = 0.2
    calibration: Method = "platt"
    seed: int = 0
    prefixes: float = 0.0

    def __post_init__(self) -> None:
        get_loss(self.loss)
        if not 0 <= self.prefixes <= 1:
            raise ValueError(f"prefixes must be a share of the loss from 0 to 1, got {self.prefixes}")
        if self.prefixes and self.loss not in POINTWISE:
            raise ValueError(f"prefixes need a loss of single responses, one of {sorted(POINTWISE)}, got {self.loss!r}")
        if not 0 < self.validation < 1:
            raise ValueError(f"validation must be a share of questions between 0 and 1, got {self.validation}")
        for name in ("lr", "epochs", "patience", "batch_size"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")


def fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    rollouts: Sequence[Rollout],
    config: SwiftConfig,
    loss: str = "bce",
    *,
    forward_batch_size: int = 32,
    max_bytes: int | None = None,
    progress: bool = False,
    **settings: object,
) -> SwiftRewardModel:
    """Train a reward model on graded rollouts: read every state once, then fit the head (see :func:`fit_features`).

    Further keywords are those of :class:`FitSettings`. The base model's identity is recorded in the configuration.
    """
    chosen = FitSettings(loss=loss, **settings)  # type: ignore[arg-type]
    config = describe_base(config, model, tokenizer)
    check_sampled_by(rollouts, model)
    check_trainable([(rollout.question_id, rollout.label) for rollout in rollouts])
    features = extract_features(
        model, tokenizer, rollouts, config, batch_size=forward_batch_size, max_bytes=max_bytes, progress=progress
    )
    return fit_features(features, config, chosen, progress=progress)


def check_trainable(labels: Sequence[tuple[str, int | None]]) -> None:
    """Raise ValueError with the counts unless there are enough questions with both right and wrong responses to train on."""
    by_question: dict[str, set[int | None]] = {}
    for question, label in labels:
        by_question.setdefault(question, set()).add(label)
    found = {label for _, label in labels if label is not None}
    if len(found) < 2:
        what = {1: "right", 0: "wrong"}[found.pop()] if found else "unlabelled"
        raise ValueError(f"all {len(labels)} responses are {what}: a reward needs right and wrong ones")
    mixed = sum({0, 1} <= values for values in by_question.values())
    if mixed < MIN_QUESTIONS:
        raise ValueError(
            f"only {mixed} of {len(by_question)} questions have both right and wrong responses; "
            f"at least {MIN_QUESTIONS} are needed"
        )


def fit_features(
    features: Features, config: SwiftConfig, settings: FitSettings | None = None, *, progress: bool = False
) -> SwiftRewardModel:
    """Fit a head to packed features with AdamW; stop early on the within-question AUROC of held-out questions.

    With ``prefixes`` the held-out loss decides instead.

    Questions, not responses, are split. Inputs are standardised while training, which is folded into the weights at the
    end. The best epoch's weights are copied, and a calibration is fitted on the held-out questions and stored.
    Questions that are all right or all wrong are kept for pointwise losses. The same seed gives the same weights.
    """
    settings = settings or FitSettings()
    check_trainable(list(zip(map(str, features.question.tolist()), features.labels.tolist(), strict=True)))
    train, held_out = split_questions(features, settings.validation, settings.seed)
    rm, generator = SwiftRewardModel(config), torch.Generator().manual_seed(settings.seed)
    scaling = Scaling.of(features, _members(features, train))
    rate = float(features.labels[_members(features, train)].double().mean().clamp(0.01, 0.99))
    with torch.no_grad():
        rm.head.weight.normal_(0, 0.01 / math.sqrt(config.width), generator=generator)
        rm.head.bias[-1] = math.log(rate / (1 - rate))
    best, best_value, best_epoch = copy.deepcopy(rm.state_dict()), -math.inf, 0
    optimizer = torch.optim.AdamW(rm.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    with tqdm(range(1, settings.epochs + 1), desc="fitting", unit="epoch", disable=not progress, delay=1) as epochs:
        for epoch in epochs:
            for chunk in torch.split(train[torch.randperm(len(train), generator=generator)], settings.batch_size):
                members = _members(features, chunk)
                loss = _loss(rm, features, members, scaling, settings)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            auroc = _held_out_auroc(*_predict(rm, features, held_out, scaling))
            epochs.set_postfix(auroc=f"{auroc:.3f}")
            value = -_held_out_loss(rm, features, held_out, scaling, settings) if settings.prefixes else auroc
            if value > best_value:
                best, best_value, best_epoch = copy.deepcopy(rm.state_dict()), value, epoch
            elif epoch - best_epoch >= settings.patience:
                break
    rm.load_state_dict(best)
    rewards, labels, questions = _predict(rm, features, held_out, scaling)
    auroc = _held_out_auroc(rewards, labels, questions)
    calibration = fit_calibration(rewards.tolist(), labels.tolist(), settings.calibration)
    with torch.no_grad():
        weight, bias = scaling.fold(rm)
        rm.head.weight.copy_(weight)
        rm.head.bias.copy_(bias)
    training = {
        "questions": len(train), "responses": len(_members(features, train)), "validation_questions": len(held_out),
        "right_share": round(rate, 4), "loss": settings.loss, "lr": settings.lr, "seed": settings.seed, "best_epoch": best_epoch,
        "validation_auroc_within": round(auroc, 4), **({"prefixes": settings.prefixes} if settings.prefixes else {}),
        **features.flags,
    }  # fmt: skip
    return rm.with_config(calibration=calibration.to_dict(), training=training)


def split_questions(features: Features, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split question numbers into training and held-out; mixed questions are shared out alike, so that both sides have some."""
    generator = torch.Generator().manual_seed(seed)
    right = torch.zeros(features.questions).index_add(0, features.question, features.labels.float())
    size = torch.bincount(features.question, minlength=features.questions)
    mixed = (right > 0) & (right < size)
    held_out = []
    for group in (mixed.nonzero().flatten(), (~mixed & (size > 0)).nonzero().flatten()):
        shuffled = group[torch.randperm(len(group), generator=generator)]
        held_out.append(shuffled[: math.ceil(share * len(group))])
    chosen = torch.cat(held_out).sort().values
    rest = torch.ones(features.questions, dtype=torch.bool).index_fill(0, chosen, False) & (size > 0)
    if not (rest & mixed).any():
        raise ValueError(
            f"validation={share} leaves no question with right and wrong responses of {int(mixed.sum())} to train on"
        )
    return rest.nonzero().flatten(), chosen


def _loss(rm: SwiftRewardModel, features: Features, members: Tensor, scaling: Scaling, settings: FitSettings) -> Tensor:
    states, offsets = features.take(members)
    labels, question = features.labels[members], features.question[members]
    rewards, z, r = gated_pool(states, *scaling.fold(rm), offsets, return_tokens=True)
    loss = get_loss(settings.loss)(rewards, labels, question)
    if settings.prefixes:
        sizes = offsets.diff()
        beginnings = get_loss(settings.loss)(
            pool_prefixes_reference(z, r, offsets), labels.repeat_interleave(sizes), question.repeat_interleave(sizes)
        )
        loss = torch.lerp(loss, beginnings, settings.prefixes)
    return loss


def _members(features: Features, questions: Tensor) -> Tensor:
    return torch.isin(features.question, questions).nonzero().flatten()


@torch.no_grad()
def _predict(rm: SwiftRewardModel, features: Features, questions: Tensor, scaling: Scaling) -> tuple[Tensor, Tensor, Tensor]:
    members, folded = _members(features, questions), scaling.fold(rm)
    rewards = []
    for chunk in torch.split(members, CHUNK):
        states, offsets = features.take(chunk)
        rewards.append(gated_pool(states, *folded, offsets))
    return torch.cat(rewards), features.labels[members], features.question[members]


@torch.no_grad()
def _held_out_loss(rm: SwiftRewardModel, features: Features, questions: Tensor, scaling: Scaling, settings: FitSettings) -> float:
    members = _members(features, questions)
    chunks = torch.split(members, CHUNK)
    return sum(float(_loss(rm, features, chunk, scaling, settings)) * len(chunk) for chunk in chunks) / len(members)


def _held_out_auroc(rewards: Tensor, labels: Tensor, question: Tensor) -> float:
    groups = [(rewards[question == q].numpy(), labels[question == q].numpy()) for q in torch.unique(question)]
    return float(np.nanmean(within_question_auroc([r for r, _ in groups], [y for _, y in groups])))
