"""Sample N responses per question into a rollout file, resumable at any moment, with their hidden states if asked for."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor
from tqdm.auto import tqdm

from swift_rm.appending import LineAppender
from swift_rm.encoding import encode_prompt
from swift_rm.generation import Response, generate_responses, sampling_settings, seed_for
from swift_rm.grading import DEFAULT_TIMEOUT_S, Graded, Grader, GuardedGrader
from swift_rm.identity import model_identity
from swift_rm.recording import Recording, StateRecorder, read_again
from swift_rm.resuming import check_existing, first_limit
from swift_rm.rollouts import Prompt, Rollout, read_rollouts
from swift_rm.tasks.task import Question

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

States = tuple[Tensor, Tensor]  # [T, D] and offsets [B + 1]


@dataclass(frozen=True)
class SampledBatch:
    """The responses to one batch of questions, all ``n`` of each, question after question.

    ``states [T, D]`` and ``offsets [B + 1]`` are their hidden states where these were asked for, on the model's device, as
    :class:`Recording` says. ``fresh`` tells that all of the batch was sampled now, and nothing of it was in the file.
    """

    rollouts: list[Rollout]
    states: Tensor | None
    offsets: Tensor | None
    fresh: bool


class FeatureWriter(Protocol):
    """What takes the states of sampled responses, batch by batch; whoever opens it closes it."""

    @property
    def recording(self) -> Recording:
        """Which states it takes."""

    def holds(self, rollouts: Sequence[Rollout]) -> bool:
        """Tell whether it has the states of all of these already."""

    def add(self, rollouts: Sequence[Rollout], states: Tensor, offsets: Tensor) -> None:
        """Take the states ``[T, D]`` of a batch, with ``offsets [B + 1]``."""


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Iterable[Question | Prompt],
    n: int = 8,
    out: str | Path | None = None,
    *,
    grade: Grader | None = None,
    grade_timeout: float | None = DEFAULT_TIMEOUT_S,
    batch_size: int = 16,
    max_new_tokens: int | None = None,
    seed: int = 0,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    progress: bool = False,
    features: FeatureWriter | None = None,
    **generation_kwargs: Any,
) -> list[Rollout]:
    """Sample ``n`` responses per question and return them as records, appended to ``out`` batch by batch.

    ``questions`` are a task's, or plain prompts (text or messages). ``batch_size`` counts questions. Sampling is plain
    (temperature 1, no top-p, top-k or penalty) unless ``generation_kwargs`` of `generate` say otherwise;
    ``chat_template_kwargs`` go to the chat template (``{"enable_thinking": False}``, say). A run that was stopped, by
    SIGKILL even, goes on where it was when called again, and its file ends equal to an uninterrupted one: every batch
    has its own seed. An answer on which ``grade`` fails, or takes longer than ``grade_timeout`` seconds (None: no limit),
    is recorded without a label and with ``grade_error``, and a warning counts these at the end; it stays so when the run
    is called again. ``features`` is given the hidden states of every batch that it does not hold: those of generation, or,
    for what is in the file already, those of :func:`read_again`. Raises ValueError if ``out`` holds other questions,
    settings or another model, BlockingIOError if another run is writing it.
    """
    batches = sample_batches(
        model, tokenizer, questions, n, out, grade=grade, grade_timeout=grade_timeout, batch_size=batch_size,
        max_new_tokens=max_new_tokens, seed=seed, chat_template_kwargs=chat_template_kwargs, progress=progress,
        record=features.recording if features is not None else None,
        reread=lambda rollouts: features is not None and not features.holds(rollouts), **generation_kwargs,
    )  # fmt: skip
    rollouts: list[Rollout] = []
    with closing(batches):
        for batch in batches:
            if features is not None and batch.states is not None and batch.offsets is not None:
                features.add(batch.rollouts, batch.states, batch.offsets)
            rollouts += batch.rollouts
    return rollouts


def sample_batches(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Iterable[Question | Prompt],
    n: int = 8,
    out: str | Path | None = None,
    *,
    grade: Grader | None = None,
    grade_timeout: float | None = DEFAULT_TIMEOUT_S,
    batch_size: int = 16,
    max_new_tokens: int | None = None,
    seed: int = 0,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    progress: bool = False,
    record: Recording | None = None,
    reread: Callable[[list[Rollout]], bool] | bool = True,
    **generation_kwargs: Any,
) -> Generator[SampledBatch, None, None]:
    """Yield what :func:`sample` returns batch by batch, in the order of the questions, each when it is in ``out``.

    With ``record`` a batch sampled now has the hidden states of its generation. One that is in ``out``, or partly (begun
    with another batch size), is read again by one teacher-forced pass over its token ids, so that a resumed run sees the
    states of every response; not if ``reread`` says no, of all or of a batch's rollouts: then ``states`` is None. States
    are plain tensors without a gradient. ``out`` is held until the generator is exhausted or closed. What cannot be
    sampled raises at once, ValueErrors about ``out`` at the first batch.
    """
    if n < 1 or batch_size < 1:
        raise ValueError(f"n and batch_size must be at least 1, got {n} and {batch_size}")
    if isinstance(questions, str):
        raise ValueError("questions must be a list, not one text")
    template = dict(chat_template_kwargs or {})
    asked = [_as_question(question, i) for i, question in enumerate(questions)]
    prompts = [encode_prompt(tokenizer, question.prompt, template) for question in asked]
    _check_questions(asked, prompts)
    if max_new_tokens is None and out is not None:
        max_new_tokens = first_limit(out)
    settings = sampling_settings(model, max(map(len, prompts)), n, max_new_tokens, generation_kwargs)
    sampling = {key: _jsonable(value) for key, value in settings.items()} | {"n": n, "seed": seed, "batch_size": batch_size}
    sampling |= {"chat_template_kwargs": template} if template else {}
    identity = model_identity(model)
    guard = GuardedGrader(grade, grade_timeout) if grade is not None else None

    def draw(batch: list[Question], ids: list[list[int]], recording: Recording | None) -> tuple[list[Response], States | None]:
        """Sample one batch: its responses, question after question, and their states if they are to be recorded."""
        with ExitStack() as stack:
            recorder = None
            if recording is not None:
                recorder = stack.enter_context(StateRecorder(model, recording.layers, recording.positions))
            batch_seed = seed_for(seed, [question.question_id for question in batch])
            rows = generate_responses(model, tokenizer, ids, n, batch_seed, settings, recorder)
        responses = [response for row in rows for response in row]
        return responses, recorder.packed([len(one.token_ids) for one in responses]) if recorder is not None else None

    def run() -> Generator[SampledBatch, None, None]:
        with ExitStack() as stack:
            file = stack.enter_context(LineAppender(out, begins='{"question_id": ')) if out is not None else None
            existing = read_rollouts(out) if out is not None else []
            check_existing(out, existing, asked, prompts, sampling, identity)
            done = {(rollout.question_id, rollout.extra.get("sample")): rollout for rollout in existing}
            grader = stack.enter_context(guard) if guard is not None else None
            bar = stack.enter_context(tqdm(total=len(asked), desc="sampling", unit="question", disable=not progress, delay=1))
            for start in range(0, len(asked), batch_size):
                batch, ids = asked[start : start + batch_size], prompts[start : start + batch_size]
                held = [done.get((question.question_id, i)) for question in batch for i in range(n)]
                missing = [place for place, rollout in enumerate(held) if rollout is None]
                fresh, states = len(missing) == len(held), None
                if missing:
                    responses, states = draw(batch, ids, record if fresh else None)
                    answers = [(batch[place // n], responses[place].text) for place in missing]
                    grades = grader.grade(answers) if grader is not None else [Graded(None)] * len(answers)
                    made = [
                        _rollout(batch[place // n], ids[place // n], place % n, responses[place], graded, sampling, identity)
                        for place, graded in zip(missing, grades, strict=True)
                    ]
                    if file is not None:
                        file.append([rollout.to_json() for rollout in made])
                    for place, rollout in zip(missing, made, strict=True):
                        held[place] = rollout
                rollouts = [rollout for rollout in held if rollout is not None]
                if record is not None and not fresh and (reread(rollouts) if callable(reread) else reread):
                    states = read_again(model, record, [r.prompt_ids for r in rollouts], [r.response_ids for r in rollouts])
                packed, offsets = states or (None, None)
                yield SampledBatch(rollouts, packed, offsets, fresh)
                bar.update(len(batch))

    return run()


def _rollout(
    question: Question,
    prompt_ids: list[int],
    index: int,
    response: Response,
    graded: Graded,
    sampling: Mapping[str, Any],
    identity: Mapping[str, Any],
) -> Rollout:
    """Make the record of one response."""
    grade = graded.grade
    extra = {
        "sample": index,
        "reference": question.reference,
        "token_logprobs": [round(value, 4) for value in response.token_logprobs],
        "token_confidence": [round(value, 4) for value in response.token_confidence],
        "self_certainty": response.self_certainty,
        **({"question": dict(question.extra)} if question.extra else {}),
        **({"grade_error": graded.error} if graded.error else {}),
    }
    return Rollout(
        question.question_id, question.prompt, prompt_ids, response.text, response.token_ids, response.finish_reason,
        grade.answer if grade else None, grade.label if grade else None, None, response.logprob_mean,
        sampling, identity, extra,
    )  # fmt: skip


def _as_question(question: Question | Prompt, index: int) -> Question:
    return question if isinstance(question, Question) else Question(f"question-{index}", question, None)


def _check_questions(asked: Sequence[Question], prompts: Sequence[Sequence[int]]) -> None:
    if not asked:
        raise ValueError("there are no questions to sample")
    seen: set[str] = set()
    for question, prompt in zip(asked, prompts, strict=True):
        if question.question_id in seen:
            raise ValueError(f"two questions have the id {question.question_id!r}")
        if not prompt:
            raise ValueError(f"the prompt of question {question.question_id!r} is empty")
        seen.add(question.question_id)


def _jsonable(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str | None) else repr(value)
