"""What every rival of the 2D + 2 head is given, and what it must offer, so that one loop compares them all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from swift_rm.features.read_states import Features
from swift_rm.records.rollouts import check_trainable
from swift_rm.training.head_validation import question_aurocs


@dataclass(frozen=True)
class RivalData:
    """Packed states ``[T, D]`` (float32) with ``offsets [B + 1]``, ``labels [B]`` in {0, 1} and ``question [B]``.

    ``boundary [T]`` marks the rows at step ends, at least one in each response. Raises ValueError where the shapes
    disagree, or a response has no row or no step's end.
    """

    states: Tensor
    offsets: Tensor
    labels: Tensor
    question: Tensor
    boundary: Tensor

    def __post_init__(self) -> None:
        rows, responses = len(self.states), len(self.labels)
        if self.states.dtype != torch.float32:
            raise ValueError(f"rivals read float32 states, got {self.states.dtype}")
        if len(self.offsets) != responses + 1 or len(self.question) != responses or int(self.offsets[-1]) != rows:
            raise ValueError(
                f"{responses} labels, {len(self.question)} questions and {rows} rows do not fit {len(self.offsets)} offsets "
                f"that end at {int(self.offsets[-1])}"
            )
        if self.boundary.dtype != torch.bool or self.boundary.shape != (rows,):
            raise ValueError(f"boundary must be {rows} booleans, got {tuple(self.boundary.shape)} of {self.boundary.dtype}")
        counted = torch.cat([torch.zeros(1, dtype=torch.long), self.boundary.long().cumsum(0)])
        for found, what in ((self.offsets, "row"), (counted[self.offsets], "row at a step's end: mark its last")):
            without = (found.diff() < 1).nonzero().flatten()
            if len(without):
                raise ValueError(
                    f"{len(without)} of {responses} responses (the first is number {int(without[0])}) have no {what}"
                )

    @classmethod
    def of(cls, features: Features, boundary: Tensor) -> RivalData:
        """Return features as rivals read them; a response in which ``boundary [T]`` marks nothing ends one step, its last row.

        For features read with several views, a view's column of ``features.masks`` is such a boundary.
        """
        states, offsets = features.take(torch.arange(len(features.labels)))
        marked = torch.zeros(len(features.labels)).index_add(0, owners(offsets), boundary.float()) > 0
        boundary = boundary.index_fill(0, (offsets[1:] - 1)[~marked], True)
        return cls(states.float(), offsets, features.labels, features.question, boundary)

    @property
    def first(self) -> Tensor:
        """Return each response's first row, ``[B]``."""
        return self.offsets[:-1]

    @property
    def last(self) -> Tensor:
        """Return each response's last row, ``[B]``."""
        return self.offsets[1:] - 1

    def rows(self, kept: Tensor, width: int | None = None) -> Features:
        """Return only the rows ``kept [T]`` (booleans), and of their columns the last ``width``."""
        offsets = torch.cat([kept.new_zeros(1, dtype=torch.long), kept.long().cumsum(0)])[self.offsets]
        return Features(last_columns(self.states, width)[kept], offsets, self.labels, self.question)

    def of_questions(self, questions: Tensor) -> RivalData:
        """Return the responses of some questions, by the questions' numbers."""
        chosen, sizes = torch.isin(self.question, questions), self.offsets.diff()
        rows = chosen[owners(self.offsets)]
        offsets = torch.cat([sizes.new_zeros(1), sizes[chosen].cumsum(0)])
        return RivalData(self.states[rows], offsets, self.labels[chosen], self.question[chosen], self.boundary[rows])


class Rival(Protocol):
    """A reward that is learnt from packed states; ``fit`` may choose by the held-out questions, ``rewards`` is ``[B]``.

    ``parameters`` counts the numbers that were learnt; it is known after ``fit``.
    """

    name: str

    @property
    def parameters(self) -> int:
        """Return how many numbers were learnt."""

    def fit(self, train: RivalData, held_out: RivalData, seed: int) -> None:
        """Learn from the training questions; the same seed gives the same rewards."""

    def rewards(self, data: RivalData) -> Tensor:
        """Return the reward of each response, ``[B]``, higher is better."""


def owners(offsets: Tensor) -> Tensor:
    """Return the response that each row belongs to, ``[T]``."""
    return torch.repeat_interleave(offsets.diff())


def last_columns(states: Tensor, width: int | None) -> Tensor:
    """Return the last ``width`` columns, all without one: the last layer's where layers are concatenated."""
    if width is not None and not 0 < width <= states.shape[-1]:
        raise ValueError(f"cannot read the last {width} of {states.shape[-1]} columns")
    return states if width is None else states[..., -width:]


def check_split(train: RivalData, held_out: RivalData) -> None:
    """Raise ValueError unless there is enough to train on, something to choose by, and both have the same width."""
    check_trainable(list(zip(map(str, train.question.tolist()), train.labels.tolist(), strict=True)))
    if train.states.shape[1] != held_out.states.shape[1]:
        raise ValueError(f"training states are {train.states.shape[1]} wide, held-out ones {held_out.states.shape[1]}")
    if not np.isfinite(within(torch.zeros(len(held_out.labels)), held_out)):
        raise ValueError("no held-out question has both right and wrong responses: there is nothing to choose by")


def within(rewards: Tensor, data: RivalData | Features) -> float:
    """Return the mean within-question AUROC of ``rewards [B]``; NaN where no question has right and wrong responses."""
    each = question_aurocs(rewards, data.labels, data.question)
    return float(np.nanmean(each)) if np.isfinite(each).any() else float("nan")
