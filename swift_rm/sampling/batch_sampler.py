"""Sample, grade and re-read one batch of questions, in any process that has the language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from swift_rm.capture.state_recorder import RecordingSpec, StateRecorder
from swift_rm.records.rollouts import Rollout
from swift_rm.sampling.generation import SampledResponse, generate_responses, seed_for
from swift_rm.sampling.guarded_grader import Graded, GuardedGrader, grade_all
from swift_rm.scoring.teacher_forced_states import read_again
from swift_rm.tasks.task import Question

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

StatesAndOffsets = tuple[Tensor, Tensor]  # [T, D] and offsets [B + 1]


@dataclass(frozen=True)
class SampleJob:
    """One batch of questions with their prompts' ids, n responses each, question after question.

    ``missing`` are the places of those that are to be sampled. ``stored`` are the others, in order, if the states of all are to
    be read again.
    """

    questions: Sequence[Question]
    prompts: Sequence[Sequence[int]]
    missing: Sequence[int]
    stored: Sequence[Rollout] = ()

    def whole(self, made: Sequence[Rollout], stored: Sequence[Rollout], n: int) -> list[Rollout]:
        """Return all responses in order: those ``made`` in the missing places, and those ``stored`` in the others."""
        new, old, missing = iter(made), iter(stored), set(self.missing)
        return [next(new if place in missing else old) for place in range(n * len(self.questions))]


@dataclass(frozen=True)
class SampleJobResult:
    """The rollouts that were missing, in order, and the states of all of the batch if they were wanted.

    The states are on the device that made them, and on the CPU once they have left its process.
    """

    made: list[Rollout]
    states: StatesAndOffsets | None

    def __reduce__(self) -> tuple[Any, ...]:
        if self.states is None:
            return SampleJobResult, (self.made, None)
        states, offsets = (tensor.cpu().contiguous() for tensor in self.states)
        return _unpacked, (self.made, states.view(torch.uint8).numpy(), states.dtype, offsets.numpy())


def _unpacked(made: list[Rollout], states: NDArray[np.uint8], dtype: torch.dtype, offsets: NDArray[np.int64]) -> SampleJobResult:
    """Make a :class:`SampleJobResult` of bytes, which are pickled many times faster than tensors."""
    rows, ends = (torch.from_numpy(one if one.flags.writeable else one.copy()) for one in (states, offsets))
    return SampleJobResult(made, (rows.view(dtype), ends))


@dataclass(frozen=True)
class BatchSampler:
    """How every batch of a run is sampled: a function of the model, the tokenizer and the :class:`SampleJob`.

    ``settings`` are those of `generate`, ``sampling`` and ``identity`` what the records say of them and of the model. With
    ``top_logprobs`` the records hold the log-probabilities of so many of the likeliest tokens at each place, too.
    """

    n: int
    seed: int
    settings: Mapping[str, Any]
    sampling: Mapping[str, Any]
    identity: Mapping[str, Any]
    record: RecordingSpec | None = None
    guard: GuardedGrader | None = None
    top_logprobs: int | None = None

    def __call__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, job: SampleJob) -> SampleJobResult:
        """Sample and grade what is missing; the same batch gives the same, wherever and whenever it is sampled."""
        made, states = self._sample(model, tokenizer, job) if job.missing else ([], None)
        if job.stored and self.record is not None:
            whole = job.whole(made, job.stored, self.n)
            states = read_again(model, self.record, [r.prompt_ids for r in whole], [r.response_ids for r in whole])
        return SampleJobResult(made, states)

    def _sample(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, job: SampleJob
    ) -> tuple[list[Rollout], StatesAndOffsets | None]:
        with ExitStack() as stack:
            recorder = None
            if self.record is not None and len(job.missing) == self.n * len(job.questions):
                recorder = stack.enter_context(
                    StateRecorder(model, self.record.layers, self.record.positions, self.record.source)
                )
            seed = seed_for(self.seed, [question.question_id for question in job.questions])
            rows = generate_responses(model, tokenizer, job.prompts, self.n, seed, self.settings, recorder, self.top_logprobs)
        responses = [response for row in rows for response in row]
        states = recorder.packed([len(one.token_ids) for one in responses]) if recorder is not None else None
        answers = [(job.questions[place // self.n], responses[place].text) for place in job.missing]
        grades = grade_all(self.guard, answers)
        made = [
            self._rollout(job.questions[place // self.n], job.prompts[place // self.n], place, responses[place], graded)
            for place, graded in zip(job.missing, grades, strict=True)
        ]
        return made, states

    def _rollout(
        self, question: Question, prompt_ids: Sequence[int], place: int, response: SampledResponse, graded: Graded
    ) -> Rollout:
        """Make the record of one response."""
        extra = {
            "sample": place % self.n,
            "reference": question.reference,
            "token_logprobs": [round(value, 4) for value in response.token_logprobs],
            "token_confidence": [round(value, 4) for value in response.token_confidence],
            "self_certainty": response.self_certainty,
            **(response.logprobs.to_record() | {"end_token": response.ended} if response.logprobs else {}),
            **graded.recorded(question),
        }
        return Rollout(
            question.question_id, question.prompt, list(prompt_ids), response.text, response.token_ids, response.finish_reason,
            graded.answer, graded.label, None, response.logprob_mean,
            self.sampling, self.identity, extra,
        )  # fmt: skip
