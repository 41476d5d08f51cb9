"""A bank of heads that learns from batches of responses as they come, each with its states."""

from __future__ import annotations

import math
import warnings
from collections import Counter, deque
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from swift_rm.capture.state_recorder import RecordingSpec
from swift_rm.features.read_states import Batch, Features, join_batches
from swift_rm.features.row_selection import reading_masks
from swift_rm.records.rollouts import Rollout
from swift_rm.training.head_bank import HeadBank
from swift_rm.training.head_grid import HeadPlan, bank_layers, bank_views, check_plans
from swift_rm.training.head_validation import ValidatedHead, validate_heads
from swift_rm.training.input_standardisation import measure_scaling
from swift_rm.training.question_split import responses_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REPLAY_BYTES = 1 << 30


class OnlineTrainer:
    """Train heads on the responses to ``questions`` questions, batch by batch.

    ``recording`` is what their states must hold, ``device`` where they must be.
    A batch gives a gradient step for every ``batch_size`` of its questions, and after each ``replay`` more on random
    questions of the last ``replay_bytes`` of states, which stay on their device. A share of the questions, drawn
    beforehand, is held out; their states, the first ``replay_bytes`` of them, wait in main memory and judge the heads at the
    end: a warning says how many questions did not fit. Inputs are standardised by the first batch. The learning rate falls
    to 0 over the second half of the questions. The plans' ``epochs`` and ``patience`` mean nothing here.
    """

    def __init__(
        self,
        plans: Sequence[HeadPlan],
        questions: int,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        device: torch.device | str = "cpu",
        replay: int = 4,
        replay_bytes: int = REPLAY_BYTES,
    ) -> None:
        check_plans(plans)
        if replay < 0:
            raise ValueError(f"replay must be 0 or more gradient steps, got {replay}")
        self._plans, self._questions, self._replay = plans, questions, replay
        self._tokenizer, self.device, self._settings = tokenizer, device, plans[0].settings
        self._layers, self._views = bank_layers(plans), bank_views(plans)
        self.recording = RecordingSpec(
            self._layers, tuple(dict.fromkeys(position for position, _ in self._views)), plans[0].config.source
        )
        self._generator = torch.Generator().manual_seed(self._settings.seed)
        held_out = torch.randperm(questions, generator=self._generator)[: math.ceil(self._settings.validation * questions)]
        self._held_out = held_out.sort().values
        self._train, self._held = ReplayBuffer(replay_bytes), ReplayBuffer(replay_bytes, first=True)
        self._bank: HeadBank | None = None
        self._names: dict[str, int] = {}
        self._flags = Counter[str]()
        self._steps = self._trained_on = self._responses = self._right = self._left_out = 0

    def take(self, rollouts: Sequence[Rollout], states: Tensor, offsets: Tensor) -> None:
        """Learn from one batch of whole questions, whose rows are those of ``recording``; ungraded responses are left out.

        Raises ValueError that names the question if states are NaN or Inf.
        """
        for rollout in rollouts:
            self._names.setdefault(rollout.question_id, len(self._names))
        features = self._features(rollouts, states, offsets)
        seen = torch.unique(features.question)
        held = torch.isin(seen, self._held_out)
        for buffer, chosen, device in ((self._held, seen[held], "cpu"), (self._train, seen[~held], None)):
            if len(chosen):
                buffer.add(features.only(responses_of(features.question, chosen), device))
        if held.all():
            return
        newest = self._train.shard(len(self._train) - 1)
        self._trained_on += len(seen[~held])
        self._responses += len(newest.labels)
        self._right += int(newest.labels.sum())
        self._learn(newest, seen[~held])

    def _learn(self, newest: Features, questions: Tensor) -> None:
        settings = self._settings
        if self._bank is None:
            self._bank = HeadBank(
                self._plans, self._layers, self._views, measure_scaling(newest, questions),
                right_share=float(newest.labels.double().mean()), questions=self._questions, device=self.device,
            )  # fmt: skip
        factor = min(1.0, 2 * (1 - (len(self._names) - 0.5 * len(questions)) / self._questions))
        for chunk in torch.split(questions[torch.randperm(len(questions), generator=self._generator)], settings.batch_size):
            self._bank.step(newest.batch(responses_of(newest.question, chunk)), factor)
            for _ in range(self._replay):
                self._bank.step(self._train.draw(settings.batch_size, self._generator), factor)
            self._steps += 1 + self._replay

    def finish(self) -> list[ValidatedHead]:
        """Return every head, judged and calibrated on the held-out questions; raise ValueError if these cannot tell."""
        judging = self._held
        if self._bank is None or not len(judging):
            raise ValueError(f"{len(self._names)} questions leave none to train on, or none to judge by: sample more")
        by_question = [judging.labels[judging.question == q] for q in torch.unique(judging.question)]
        if not any(0 < int(labels.sum()) < len(labels) for labels in by_question):
            raise ValueError(
                f"none of the {len(by_question)} held-out questions has both right and wrong responses: sample more questions"
            )
        if self._held.forgotten:
            warnings.warn(
                f"the heads are judged by {len(by_question)} held-out questions only: the states of {self._held.forgotten} more "
                f"did not fit into {self._held.max_bytes:,} bytes",
                stacklevel=3,
            )
        for member in self._bank.members:
            member.keep(0.0, 1)
        facts = {
            "online": True, "questions": self._trained_on, "responses": self._responses,
            "validation_questions": len(by_question), "right_share": round(self._right / max(1, self._responses), 4),
            **self._flags,
        }  # fmt: skip
        return validate_heads(self._bank, judging, torch.unique(judging.question), facts)

    @property
    def held_out(self) -> frozenset[str]:
        """The questions, of those taken so far, that judge the heads and train none."""
        chosen = set(self._held_out.tolist())
        return frozenset(name for name, number in self._names.items() if number in chosen)

    def facts(self) -> dict[str, Any]:
        """Return what was done: gradient steps, ungraded responses, questions forgotten, bytes of states kept."""
        return {
            "gradient_steps": self._steps,
            "ungraded_responses": self._left_out,
            "forgotten_questions": self._train.forgotten + self._held.forgotten,
            "states_bytes": self._train.bytes + self._held.bytes,
        }

    def _features(self, rollouts: Sequence[Rollout], states: Tensor, offsets: Tensor) -> Features:
        sums = states.sum(1, dtype=torch.float32)  # not finite if a state is not; much faster than asking each
        if not bool(torch.isfinite(sums).all()) and not bool(torch.isfinite(states).all()):
            row = int((~torch.isfinite(states)).any(1).nonzero()[0])
            owner = int(torch.searchsorted(offsets.cpu(), row, right=True)) - 1
            raise ValueError(f"a response to question {rollouts[owner].question_id!r} has NaN or Inf in its states")
        graded = torch.tensor([i for i, rollout in enumerate(rollouts) if rollout.label is not None], dtype=torch.long)
        self._left_out += len(rollouts) - len(graded)
        masks = None
        if len(self._views) > 1 or self._views[0][1] != "response":
            ids = [rollout.response_ids for rollout in rollouts]
            masks, flags = reading_masks(self._views, ids, [self.recording.rows(len(one)) for one in ids], self._tokenizer)
            self._flags += flags
        labels = torch.tensor([rollout.label if rollout.label is not None else 0 for rollout in rollouts])
        question = torch.tensor([self._names[rollout.question_id] for rollout in rollouts])
        whole = Features(states, offsets.cpu(), labels, question, masks=masks, views=tuple(self._views))
        return whole if len(graded) == len(rollouts) else whole.only(graded)


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
                parts.append(features.batch(responses_of(features.question, chosen)))
            start = end
        return join_batches(parts)


def _size(features: Features) -> int:
    return features.states.numel() * features.states.itemsize
