"""What training while sampling remembers: the states of recent questions, up to so many bytes."""

from __future__ import annotations

from collections import deque
from itertools import accumulate

import torch
from torch import Tensor

from swift_rm.features.read_states import Batch, Features, join_batches
from swift_rm.training.question_split import members_of


class ReplayBuffer:
    """Keep questions' states, of at most ``max_bytes`` together: the latest, the newest batch always, or the ``first`` ones.

    Shards, as a :class:`swift_rm.features.read_states.FeatureSource` has them, are the batches that were added.
    """

    def __init__(self, max_bytes: int, *, first: bool = False) -> None:
        if max_bytes < 1:
            raise ValueError(f"the replay buffer needs at least 1 byte, got {max_bytes}")
        self.max_bytes, self.bytes, self._first = max_bytes, 0, first
        self.forgotten = 0  # questions
        self._shards: deque[tuple[Features, Tensor]] = deque()  # with the questions it holds

    def __len__(self) -> int:
        return len(self._shards)

    @property
    def labels(self) -> Tensor:
        """The labels of the responses that are kept, ``[B]``."""
        return torch.cat([features.labels for features, _ in self._shards])

    @property
    def question(self) -> Tensor:
        """The question numbers of the responses that are kept, ``[B]``."""
        return torch.cat([features.question for features, _ in self._shards])

    def shard(self, index: int) -> Features:
        """Return one of the batches that are kept, the oldest first."""
        return self._shards[index][0]

    def add(self, features: Features) -> None:
        """Take one batch; the oldest are forgotten where they no longer fit, or this one if the first are kept."""
        if self._first and len(self._shards) and self.bytes + _size(features) > self.max_bytes:
            self.forgotten += len(torch.unique(features.question))
            return
        self._shards.append((features, torch.unique(features.question)))
        self.bytes += _size(features)
        while self.bytes > self.max_bytes and len(self._shards) > 1:
            oldest, questions = self._shards.popleft()
            self.bytes -= _size(oldest)
            self.forgotten += len(questions)

    def draw(self, questions: int, generator: torch.Generator) -> Batch:
        """Return so many random questions' responses, or all if there are fewer."""
        ends = list(accumulate(len(held) for _, held in self._shards))
        places = torch.randperm(ends[-1], generator=generator)[:questions].sort().values
        parts, start = [], 0
        for (features, held), end in zip(self._shards, ends, strict=True):
            chosen = held[places[(places >= start) & (places < end)] - start]
            if len(chosen):
                parts.append(features.batch(members_of(features.question, chosen)))
            start = end
        return join_batches(parts)


def _size(features: Features) -> int:
    return features.states.numel() * features.states.itemsize
