"""Train while you sample: the states of the responses that are sampled are the training batch, and nothing is run twice."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from swift_rm.records.rollouts import Prompt, Rollout, check_trainable
from swift_rm.reward.config import SwiftConfig
from swift_rm.reward.reward_model import SwiftRewardModel
from swift_rm.sampling.guarded_grader import Grader
from swift_rm.sampling.sample import sample_batches
from swift_rm.tasks.task import Question
from swift_rm.training.fit import describe_plans
from swift_rm.training.fit_settings import FitSettings
from swift_rm.training.head_grid import HeadPlan
from swift_rm.training.head_validation import ValidatedHead, best_of
from swift_rm.training.online_trainer import REPLAY_BYTES, OnlineTrainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class OnlineFit:
    """What training while sampling gave: every head in the plans' order, the rollouts, and which questions were held out.

    ``facts`` has the gradient steps, the responses left out because they could not be graded, the questions that the
    replay buffer forgot, and the seconds that training and the whole took.
    """

    judged: tuple[ValidatedHead, ...]
    rollouts: list[Rollout]
    held_out: frozenset[str]
    facts: Mapping[str, Any]

    @property
    def best(self) -> ValidatedHead:
        """The head with the highest within-question AUROC on held-out questions."""
        return best_of(self.judged)

    @property
    def rm(self) -> SwiftRewardModel:
        """The best head's reward model."""
        return self.best.rm


def fit_online(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Iterable[Question | Prompt],
    heads: SwiftConfig | Sequence[HeadPlan],
    n: int = 8,
    *,
    grade: Grader,
    settings: FitSettings | None = None,
    out: str | Path | None = None,
    replay: int = 4,
    replay_bytes: int = REPLAY_BYTES,
    **sampling: Any,
) -> OnlineFit:
    """Sample ``n`` responses per question and train a bank of heads on their states as they come.

    ``heads`` is a configuration, trained as ``settings`` say, or plans (see ``plan_grid``), trained at once from the same
    states, as :class:`OnlineTrainer` does. ``out`` keeps the rollouts, ``**sampling`` goes to ``sample``; a run that was
    stopped reads what is in ``out`` again by one teacher-forced pass, and comes out the same but for rounding. Responses
    that could not be graded are left out and counted. Raises ValueError if all labels are equal, or too few questions have
    both; what is in ``out`` is kept.
    """
    begun = time.monotonic()
    if isinstance(heads, SwiftConfig):
        heads = [HeadPlan(heads, settings or FitSettings())]
    elif settings is not None:
        raise ValueError("settings go with a configuration; plans have their own")
    asked = list(questions)
    plans = describe_plans(heads, model, tokenizer)
    trainer = OnlineTrainer(plans, len(asked), tokenizer=tokenizer, device=_here(model), replay=replay, replay_bytes=replay_bytes)
    rollouts: list[Rollout] = []
    training = 0.0
    batches = sample_batches(model, tokenizer, asked, n, out, grade=grade, record=trainer.recording, **sampling)
    with closing(batches):
        for batch in batches:
            start = time.monotonic()
            if batch.states is not None and batch.offsets is not None:
                trainer.take(batch.rollouts, batch.states.to(trainer.device), batch.offsets)
            rollouts += batch.rollouts
            training += time.monotonic() - start
    labelled = [(rollout.question_id, rollout.label) for rollout in rollouts if rollout.label is not None]
    check_trainable(labelled)
    start = time.monotonic()
    judged = trainer.finish()
    now = time.monotonic()
    facts = {**trainer.facts(), "seconds_training": round(training + now - start, 2), "seconds": round(now - begun, 2)}
    return OnlineFit(tuple(judged), rollouts, trainer.held_out, facts)


def _here(model: PreTrainedModel) -> torch.device:
    """Return where heads are trained: beside the model, or on a GPU of this machine if the model's weights are elsewhere."""
    if model.device.type != "meta":
        return model.device
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
