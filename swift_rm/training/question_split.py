"""Which questions train a head and which judge it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from swift_rm.features.read_states import Batch, FeatureSource, join_batches


def mixed_questions(source: FeatureSource) -> Tensor:
    """Return which questions have both right and wrong responses, ``[Q]`` by their numbers."""
    size = torch.bincount(source.question)
    right = torch.zeros(len(size)).index_add(0, source.question, source.labels.float())
    return (right > 0) & (right < size)


def split_questions(source: FeatureSource, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split question numbers into training and held-out; mixed questions are shared out alike, so that both sides have some."""
    generator = torch.Generator().manual_seed(seed)
    size, mixed = torch.bincount(source.question), mixed_questions(source)
    held_out = []
    for group in (mixed.nonzero().flatten(), (~mixed & (size > 0)).nonzero().flatten()):
        shuffled = group[torch.randperm(len(group), generator=generator)]
        held_out.append(shuffled[: math.ceil(share * len(group))])
    chosen = torch.cat(held_out).sort().values
    rest = torch.ones(len(size), dtype=torch.bool).index_fill(0, chosen, False) & (size > 0)
    if not (rest & mixed).any():
        raise ValueError(
            f"validation={share} leaves no question with right and wrong responses of {int(mixed.sum())} to train on"
        )
    return rest.nonzero().flatten(), chosen


def responses_of(question: Tensor, chosen: Tensor) -> Tensor:
    """Return the indices of the responses to the chosen questions."""
    return torch.isin(question, chosen).nonzero().flatten()


def question_batches(
    source: FeatureSource, questions: Tensor, size: int, order: torch.Generator | None = None
) -> Iterator[Batch]:
    """Yield the responses to some questions, ``size`` questions at a time, shard after shard; ``order`` shuffles both.

    A batch may span shards, of which one at a time is open.
    """
    shards = torch.arange(len(source)) if order is None else torch.randperm(len(source), generator=order)
    parts: list[Batch] = []
    missing = size
    for index in shards.tolist():
        features = source.shard(index)
        here = questions[torch.isin(questions, features.question)]
        here = here if order is None else here[torch.randperm(len(here), generator=order)]
        while len(here):
            chosen, here = here[:missing], here[missing:]
            parts.append(features.batch(responses_of(features.question, chosen)))
            missing -= len(chosen)
            if not missing:
                yield join_batches(parts)
                parts, missing = [], size
    if parts:
        yield join_batches(parts)
