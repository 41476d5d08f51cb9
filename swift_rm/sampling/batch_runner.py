"""Run functions of a language model: in this process, or in others that hold a replica of it each."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Job = TypeVar("Job")
Result = TypeVar("Result")
Work = Callable[[Any, Any, Job], Result]  # of a model, its tokenizer and a job


class Workers(Protocol):
    """What runs jobs on a language model. Work, jobs and results are made for leaving the process: they can be pickled."""

    def run(self, work: Work[Job, Result], jobs: Iterable[Job]) -> Generator[Result, None, None]:
        """Yield ``work(model, tokenizer, job)`` of each job once, in the order of the jobs."""


@dataclass(frozen=True)
class InProcess:
    """Run jobs here, one after another, each when its result is asked for."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None

    def run(self, work: Work[Job, Result], jobs: Iterable[Job]) -> Generator[Result, None, None]:
        """Yield ``work(model, tokenizer, job)`` of each job, in order."""
        for job in jobs:
            yield work(self.model, self.tokenizer, job)
