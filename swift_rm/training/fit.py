"""Train reward heads on graded rollouts, epoch by epoch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from swift_rm.features.read_states import Features, FeatureSource, extract_features
from swift_rm.features.record_features import record_features
from swift_rm.features.row_selection import Reading, reading_of
from swift_rm.records.rollouts import Rollout, check_trainable
from swift_rm.reward.config import SwiftConfig
from swift_rm.reward.identity import check_sampled_by, describe_base
from swift_rm.reward.recorded_logprobs import sampled_by
from swift_rm.reward.reward_model import SwiftRewardModel
from swift_rm.scoring.record_rewards import check_record_source
from swift_rm.training.fit_settings import FitSettings
from swift_rm.training.head_bank import HeadBank
from swift_rm.training.head_grid import HeadPlan, bank_layers, bank_views, check_plans
from swift_rm.training.head_validation import ValidatedHead, held_out_auroc, predict, validate_heads
from swift_rm.training.input_standardisation import measure_scaling
from swift_rm.training.question_split import question_batches, responses_of, split_questions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def fit(
    model: PreTrainedModel | None,
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
    """Train a reward model on graded rollouts: read every state once, then fit the head (see :func:`fit_bank`).

    Further keywords are those of :class:`FitSettings`. The base model's identity is recorded in the configuration. Without a
    ``model`` a configuration of the source "top_logprobs" reads the log-probabilities in the rollouts, as APIs return them.
    """
    plan = HeadPlan(config, FitSettings(loss=loss, **settings))  # type: ignore[arg-type]
    return fit_rollouts(
        model, tokenizer, rollouts, [plan], forward_batch_size=forward_batch_size, max_bytes=max_bytes, progress=progress
    )[0].rm


def fit_rollouts(
    model: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase | None,
    rollouts: Sequence[Rollout],
    plans: Sequence[HeadPlan],
    *,
    forward_batch_size: int = 32,
    max_bytes: int | None = None,
    progress: bool = False,
) -> list[ValidatedHead]:
    """Train a bank of heads on graded rollouts: read every state once, then fit them all (see :func:`fit_bank`)."""
    plans = describe_plans(plans, model, tokenizer, rollouts)
    features = read_rollouts_for(
        plans, model, tokenizer, rollouts, forward_batch_size=forward_batch_size, max_bytes=max_bytes, progress=progress
    )
    return fit_bank(features, plans, bank_layers(plans), bank_views(plans), progress=progress)


def read_rollouts_for(
    plans: Sequence[HeadPlan],
    model: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase | None,
    rollouts: Sequence[Rollout],
    *,
    forward_batch_size: int = 32,
    max_bytes: int | None = None,
    progress: bool = False,
) -> Features:
    """Read the states of graded rollouts that the plans' heads read between them; raise ValueError if they cannot train one.

    Without a model the log-probabilities in the rollouts are read.
    """
    check_trainable([(rollout.question_id, rollout.label) for rollout in rollouts])
    if model is None:
        return record_features(rollouts, check_record_source(plans[0].config), max_bytes=max_bytes, progress=progress)
    check_sampled_by(rollouts, model)
    config = replace(plans[0].config, layers=bank_layers(plans))
    return extract_features(
        model, tokenizer, rollouts, config, views=bank_views(plans), batch_size=forward_batch_size, max_bytes=max_bytes,
        progress=progress,
    )  # fmt: skip


def fit_features(
    source: FeatureSource, config: SwiftConfig, settings: FitSettings | None = None, *, progress: bool = False
) -> SwiftRewardModel:
    """Fit one head to packed features of its layers, see :func:`fit_bank`."""
    plan = HeadPlan(config, settings or FitSettings())
    return fit_bank(source, [plan], config.layers, [reading_of(config)], progress=progress)[0].rm


def fit_bank(
    source: FeatureSource,
    plans: Sequence[HeadPlan],
    layers: Sequence[int],
    views: Sequence[Reading],
    *,
    progress: bool = False,
) -> list[ValidatedHead]:
    """Fit heads to packed features with AdamW; each stops early on the within-question AUROC of held-out questions.

    With ``prefixes`` the held-out loss decides instead. ``layers`` and ``views`` are what the features hold.
    Questions, not responses, are split. Inputs are standardised while training, which is folded into the weights at the
    end. Each head's best epoch is kept, and a calibration is fitted on the held-out questions and stored. Questions that are
    all right or all wrong are kept for pointwise losses. One shard is in memory at a time. The same seed gives the same
    weights, whatever other heads are trained beside a head (but for the order of sums).
    """
    bank, held_out, facts = train_bank(source, plans, layers, views, progress=progress)
    return validate_heads(bank, source, held_out, facts)


def train_bank(
    source: FeatureSource,
    plans: Sequence[HeadPlan],
    layers: Sequence[int],
    views: Sequence[Reading],
    *,
    progress: bool = False,
) -> tuple[HeadBank, Tensor, dict[str, Any]]:
    """Train as :func:`fit_bank` does; return the bank, its held-out questions, and what the training was given."""
    check_plans(plans)
    held = getattr(source, "views", ()) or tuple(views)
    if held != tuple(views):
        raise ValueError(f"the features are read as {list(held)}, but the heads read {list(views)} (position, region)")
    settings, stored = plans[0].settings, getattr(source, "states_source", plans[0].config.source)
    if stored != plans[0].config.source:
        raise ValueError(
            f"the features are of the source {stored!r}, but the heads read {plans[0].config.source!r}: train these from rollouts"
        )
    check_trainable(list(zip(map(str, source.question.tolist()), source.labels.tolist(), strict=True)))
    train, held_out = split_questions(source, settings.validation, settings.seed)
    responses = responses_of(source.question, train)
    right_share = float(source.labels[responses].double().mean())
    questions = int(source.question.max()) + 1
    bank = HeadBank(plans, layers, views, measure_scaling(source, train), right_share=right_share, questions=questions)
    order = torch.Generator().manual_seed(settings.seed)
    with tqdm(range(1, settings.epochs + 1), desc="fitting", unit="epoch", disable=not progress, delay=1) as epochs:
        for epoch in epochs:
            for batch in question_batches(source, train, settings.batch_size, order):
                bank.step(batch)
            epochs.set_postfix(auroc=f"{_keep_best(bank, source, held_out, epoch):.3f}")
            bank.active = [member for member in bank.active if epoch - member.best_epoch < settings.patience]
            if not bank.active:
                break
    facts = {
        "questions": len(train), "responses": len(responses), "validation_questions": len(held_out),
        "right_share": round(right_share, 4), **_flags(source),
    }  # fmt: skip
    return bank, held_out, facts


def _flags(source: FeatureSource) -> dict[str, int]:
    """Count the responses that were read whole because their region could not be had."""
    return dict(sum((Counter(source.shard(index).flags) for index in range(len(source))), Counter()))


def describe_plans(
    plans: Sequence[HeadPlan],
    model: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase | None,
    rollouts: Sequence[Rollout] = (),
) -> list[HeadPlan]:
    """Return the plans with the base model's identity in their configurations; raise ValueError if one names another.

    Without a model the rollouts say which one sampled them; what a configuration says already is not changed.
    """
    if model is None:
        for plan in plans:
            check_record_source(plan.config)
        said = sampled_by([] if all(plan.config.base_model for plan in plans) else rollouts)
        return [plan if plan.config.base_model else replace(plan, config=replace(plan.config, **said)) for plan in plans]
    return [replace(plan, config=describe_base(plan.config, model, tokenizer)) for plan in plans]


def _keep_best(bank: HeadBank, source: FeatureSource, held_out: Tensor, epoch: int) -> float:
    """Let each active head remember its weights if they are its best so far; return the highest AUROC."""
    rewards, labels, question = predict(bank, source, held_out)
    aurocs = [held_out_auroc(rewards[:, i], labels, question) for i in range(rewards.shape[1])]
    losses = _held_out_losses(bank, source, held_out) if any(m.plan.settings.prefixes for m in bank.active) else []
    for i, member in enumerate(bank.active):
        member.keep(-losses[i] if member.plan.settings.prefixes else aurocs[i], epoch)
    return max(aurocs)


@torch.no_grad()
def _held_out_losses(bank: HeadBank, source: FeatureSource, held_out: Tensor) -> list[float]:
    total, count = torch.zeros(len(bank.active)), 0
    for batch in question_batches(source, held_out, bank.plans[0].settings.batch_size):
        total += len(batch.labels) * torch.stack(bank.losses(batch, bagged=False)).cpu()
        count += len(batch.labels)
    return (total / count).tolist()
