"""Rollouts of the tiny reasoner as an API would give them: log-probabilities, and neither token ids nor the end token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from swift_rm.models.load import load_language_model
from swift_rm.records.rollouts import Rollout, read_rollouts
from swift_rm.reward.logprobs import TokenLogprobs, logprobs_of
from swift_rm.sampling.sample import sample
from swift_rm.tasks.homework import HomeworkTask


def as_api(model: Any, rollouts: Sequence[Rollout], top: int) -> list[Rollout]:
    """Read each response's log-probabilities by plain passes of the model, and leave out what an API does not tell."""
    return [one for start in range(0, len(rollouts), 64) for one in _as_api(model, rollouts[start : start + 64], top)]


@torch.inference_mode()
def _as_api(model: Any, rollouts: Sequence[Rollout], top: int) -> list[Rollout]:
    end = model.generation_config.eos_token_id
    spoken = [r.response_ids[:-1] if r.response_ids[-1] == end else r.response_ids for r in rollouts]
    whole = [torch.tensor([*r.prompt_ids, *ids]) for r, ids in zip(rollouts, spoken, strict=True)]
    logits = model(torch.nn.utils.rnn.pad_sequence(whole, batch_first=True)).logits  # what follows a token, it cannot see
    found = []
    for rollout, ids, row in zip(rollouts, spoken, logits, strict=True):
        first = len(rollout.prompt_ids) - 1
        chosen, alternatives = logprobs_of(row[first : first + len(ids)], torch.tensor(ids, dtype=torch.long), top)
        said = TokenLogprobs.of(chosen.tolist(), alternatives.tolist()).to_record()
        extra = {"sample": rollout.extra["sample"], **said, "token_confidence": (-alternatives.mean(1)).tolist()}
        found.append(replace(rollout, prompt_ids=[], response_ids=[], extra=extra))
    return found


def sampled_records(questions: int, n: int, top: int, seed: int = 0) -> tuple[Any, list[Rollout], list[Rollout]]:
    """Return the tiny reasoner with its tokenizer, graded rollouts, and the same rollouts as an API would give them."""
    model, tokenizer = load_language_model("tiny-reasoner", device="cpu", dtype="float32")
    task = HomeworkTask("reward", "easy")
    rollouts = sample(model, tokenizer, task.questions(questions, seed=seed), n, grade=task.grade, batch_size=100, seed=seed)
    return (model, tokenizer), rollouts, as_api(model, rollouts, top)


def keys(path):
    return [(one.question_id, one.extra["sample"]) for one in read_rollouts(path)]
