"""Sample n responses per question from an endpoint into the usual records, resumable at any moment."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from swift_rm.api.endpoint import Endpoint
from swift_rm.api.failures import ApiFailure, FatalError
from swift_rm.api.reply import ApiResponse
from swift_rm.api.request_scheduler import RequestedQuestion, RequestScheduler, sampling_fields
from swift_rm.files.jsonl_appender import LineAppender
from swift_rm.records.resume import StoredRollouts, resume_check
from swift_rm.records.rollouts import Prompt, Rollout
from swift_rm.reward.logprobs import MOST_ALTERNATIVES
from swift_rm.sampling.guarded_grader import DEFAULT_TIMEOUT_S, Graded, Grader, GradeTally, GuardedGrader, grade_all
from swift_rm.tasks.task import Question, as_question, check_questions


def sample_api(
    endpoint: Endpoint,
    questions: Iterable[Question | Prompt],
    n: int = 8,
    out: str | Path | None = None,
    *,
    grade: Grader | None = None,
    grade_timeout: float | None = DEFAULT_TIMEOUT_S,
    top_logprobs: int = MOST_ALTERNATIVES,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_tokens: int | None = None,
    seed: int | None = 0,
    progress: bool = False,
) -> Generator[list[Rollout], None, None]:
    """Yield each question's responses, in order, when they are in ``out``; grading is that of :func:`swift_rm.sample`.

    The records have no token ids, and the log-probabilities of each token and of ``top_logprobs`` alternatives. A run that
    was stopped, by SIGKILL even, goes on where it was when called again, response by response. Whatever ends the run, what
    came until then is in ``out`` first. Raises ApiFailure at the end if responses are missing because requests failed;
    ValueError for a wrong key or model, for a server without log-probabilities or with fewer alternatives, and if ``out`` holds
    other questions, settings or another model; BlockingIOError if another run is writing it.
    """
    if n < 1 or not 0 <= top_logprobs <= MOST_ALTERNATIVES:
        raise ValueError(f"n must be at least 1 and top_logprobs 0 to {MOST_ALTERNATIVES}, got {n} and {top_logprobs}")
    if isinstance(questions, str):
        raise ValueError("questions must be a list, not one text")
    asked = [as_question(question, i) for i, question in enumerate(questions)]
    check_questions(asked, [question.prompt for question in asked])
    request = sampling_fields(temperature, top_p, max_tokens)
    sampling = {**request, "max_tokens": max_tokens, "top_logprobs": top_logprobs, "n": n, "seed": seed}
    sampling |= {"extra_body": json.loads(json.dumps(endpoint.extra_body))} if endpoint.extra_body else {}
    run = _Run(asked, n, out, GuardedGrader(grade, grade_timeout) if grade is not None else None, sampling, endpoint.model)
    return run.sample(endpoint, request, top_logprobs, seed, progress)


class _Run:
    """One run: the questions, what the file holds already, and what is written to it."""

    def __init__(
        self,
        asked: Sequence[Question],
        n: int,
        out: str | Path | None,
        guard: GuardedGrader | None,
        sampling: dict[str, Any],
        model: str,
    ) -> None:
        self.asked, self.n, self.out, self.guard = asked, n, out, guard
        self.sampling, self.identity = sampling, {"id": model, "revision": None}
        self.written: set[int] = set()

    def sample(
        self, endpoint: Endpoint, request: dict[str, Any], alternatives: int, seed: int | None, progress: bool
    ) -> Generator[list[Rollout], None, None]:
        with ExitStack() as stack:
            self.file = stack.enter_context(LineAppender(self.out, '{"question_id": ')) if self.out is not None else None
            check = resume_check(self.out, self.asked, [[]] * len(self.asked), self.sampling, self.identity)
            self.kept = StoredRollouts(self.out, check)
            wanted = [RequestedQuestion(one.question_id, one.prompt, self._missing(one)) for one in self.asked]
            self.tally = stack.enter_context(GradeTally())
            bar = stack.enter_context(tqdm(total=len(wanted), desc="sampling", unit="question", disable=not progress, delay=1))
            scheduler = RequestScheduler(endpoint, wanted, request, alternatives, seed)
            numbers = stack.enter_context(closing(scheduler.run()))
            try:
                for number in numbers:
                    made = self._write(number, wanted[number])
                    yield self._whole(number, made)
                    bar.update()
            except (KeyboardInterrupt, GeneratorExit, FatalError):  # stopped here, by whoever reads, or for good
                numbers.close()
                for number, one in enumerate(wanted):
                    if number not in self.written and one.responses:
                        self._write(number, one)
                raise
            if missing := scheduler.missing():
                raise ApiFailure(self._lacking(missing, scheduler.commonest_reason()))

    def _missing(self, question: Question) -> list[int]:
        return [place for place in range(self.n) if (question.question_id, place) not in self.kept]

    def _write(self, number: int, one: RequestedQuestion) -> list[Rollout]:
        """Grade what came of a question and append it to the file."""
        question, places = self.asked[number], sorted(one.responses)
        grades = grade_all(self.guard, [(question, one.responses[place].text) for place in places])
        made = [self._record(question, place, one.responses[place], graded) for place, graded in zip(places, grades, strict=True)]
        self.written.add(number)  # a Ctrl-C after the lines are written must not have them written again
        if self.file is not None and made:
            self.file.append([rollout.to_json() for rollout in made])
        self.tally.count(made)
        return made

    def _whole(self, number: int, made: Sequence[Rollout]) -> list[Rollout]:
        """Return a question's responses in order: those made now, and those that were in the file."""
        held = self.kept.read([(self.asked[number].question_id, place) for place in range(self.n)])
        return sorted([*held, *made], key=lambda rollout: rollout.extra["sample"])

    def _record(self, question: Question, place: int, response: ApiResponse, graded: Graded) -> Rollout:
        """Make the record of one response."""
        chosen, top = response.logprobs.chosen, response.logprobs.top
        extra = {
            "sample": place,
            "reference": question.reference,
            **response.logprobs.to_record(),
            **({"token_confidence": _confidence(top)} if all(top) else {}),
            **graded.recorded(question),
        }
        return Rollout(
            question.question_id, question.prompt, [], response.text, [], response.finish_reason,
            graded.answer, graded.label, None,
            sum(chosen) / len(chosen) if chosen else None, self.sampling, self.identity, extra,
        )  # fmt: skip

    def _lacking(self, missing: int, reason: str) -> str:
        wanted = self.n * len(self.asked)
        there = f"; the others are in {self.out}, and the same command goes on from there" if self.out is not None else ""
        return f"{missing} of {wanted} responses are missing: {reason}{there}"


def _confidence(top: Sequence[Sequence[float]]) -> list[float]:
    """Return DeepConf's confidence of each token: minus the mean log-probability of its alternatives."""
    return [round(-sum(values) / len(values), 4) for values in top]
