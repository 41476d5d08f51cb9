"""What heads are worth on held-out questions, and how the reward models come out of a trained bank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swift_rm.evaluation.auroc import within_question_auroc
from swift_rm.evaluation.intervals import Interval, Resamples
from swift_rm.features.read_states import FeatureSource
from swift_rm.reward.calibration import fit_calibration
from swift_rm.reward.reward_model import SwiftRewardModel
from swift_rm.training.head_bank import HeadBank
from swift_rm.training.head_grid import HeadPlan, table_row
from swift_rm.training.input_standardisation import CHUNK
from swift_rm.training.question_split import responses_of


@dataclass(frozen=True)
class ValidatedHead:
    """One trained plan: its reward model, its within-question AUROC on held-out questions, and its row of the table."""

    plan: HeadPlan
    rm: SwiftRewardModel
    auroc: Interval
    row: Mapping[str, Any]


@torch.no_grad()
def predict(bank: HeadBank, source: FeatureSource, questions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the active heads' rewards ``[B, H]`` of the responses to some questions, with their labels and questions."""
    rewards, labels, question = [], [], []
    for index in range(len(source)):
        features = source.shard(index)
        for batch in features.batches(responses_of(features.question, questions), CHUNK):
            rewards.append(bank.rewards(batch).cpu())
            labels.append(batch.labels)
            question.append(batch.question)
    return torch.cat(rewards), torch.cat(labels), torch.cat(question)


def question_aurocs(rewards: Tensor, labels: Tensor, question: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the AUROC of each question, ``[Q]``, of rewards ``[B]``; NaN where all its labels are equal."""
    groups = [(rewards[question == q].numpy(), labels[question == q].numpy()) for q in torch.unique(question)]
    return within_question_auroc([r for r, _ in groups], [y for _, y in groups])


def held_out_auroc(rewards: Tensor, labels: Tensor, question: Tensor) -> float:
    """Return the mean of the questions' AUROC of rewards ``[B]``."""
    return float(np.nanmean(question_aurocs(rewards, labels, question)))


def validate_heads(bank: HeadBank, source: FeatureSource, held_out: Tensor, facts: Mapping[str, Any]) -> list[ValidatedHead]:
    """Return every plan's reward model with its best weights, calibrated on the held-out questions, in the plans' order.

    ``facts`` of the training are kept in each model's configuration.
    """
    bank.restore()
    rewards, labels, question = predict(bank, source, held_out)
    judged = []
    for group, plan in enumerate(bank.plans):
        members = [i for i, member in enumerate(bank.members) if member.group == group]
        heads = [bank.members[i].finished() for i in members]
        if not bool(torch.isfinite(rewards[:, members]).all()):
            raise ValueError(f"the head {plan.name!r} has no finite rewards: its features hold NaN or Inf, or are too large")
        rm = SwiftRewardModel.ensemble(heads, plan.settings.pessimism)
        combined = rm.head.combine(rewards[:, members])
        each = question_aurocs(combined, labels, question)
        auroc = _mean_interval(each)
        calibration = fit_calibration(combined.tolist(), labels.tolist(), plan.settings.calibration)
        epochs = [bank.members[i].best_epoch for i in members]
        training = {
            **facts, "loss": plan.settings.loss, "lr": plan.settings.lr, "seed": plan.settings.seed, "best_epoch": max(epochs),
            "validation_auroc_within": round(auroc.value, 4), **_unusual(plan),
        }  # fmt: skip
        row = {**table_row(plan), "auroc_within": auroc.to_dict(), "best_epoch": max(epochs), "parameters": _size(rm)}
        judged.append(ValidatedHead(plan, rm.with_config(calibration=calibration.to_dict(), training=training), auroc, row))
    return judged


def best_of(judged: Sequence[ValidatedHead]) -> ValidatedHead:
    """Return the plan with the highest held-out AUROC, the first of equals."""
    return max(judged, key=lambda one: one.auroc.value)


def _mean_interval(values: np.ndarray[Any, np.dtype[np.float64]]) -> Interval:
    defined = values[~np.isnan(values)]
    resamples = Resamples(len(defined), bootstrap=500)
    return resamples.interval(resamples.ratio(defined))


def _unusual(plan: HeadPlan) -> dict[str, Any]:
    settings = plan.settings
    usual = {"prefixes": 0.0, "standardise": "feature", "balance": "response", "centre": False, "ensemble": 1, "pessimism": 0.0}
    return {name: getattr(settings, name) for name, value in usual.items() if getattr(settings, name) != value}


def _size(rm: SwiftRewardModel) -> int:
    return sum(parameter.numel() for parameter in rm.parameters())
