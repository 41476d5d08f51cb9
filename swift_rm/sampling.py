"""Sample N responses per question into a rollout file, resumable at any moment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from swift_rm.appending import LineAppender
from swift_rm.encoding import encode_prompt
from swift_rm.generation import Response, generate_responses, sampling_settings, seed_for
from swift_rm.identity import model_identity
from swift_rm.resuming import check_existing, first_limit
from swift_rm.rollouts import Prompt, Rollout, read_rollouts
from swift_rm.tasks.task import Grade, Question

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Grader = Callable[[Question, str], Grade]


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Iterable[Question | Prompt],
    n: int = 8,
    out: str | Path | None = None,
    *,
    grade: Grader | None = None,
    batch_size: int = 16,
    max_new_tokens: int | None = None,
    seed: int = 0,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    progress: bool = False,
    **generation_kwargs: Any,
) -> list[Rollout]:
    """Sample ``n`` responses per question and return them as records, appended to ``out`` batch by batch.

    ``questions`` are a task's, or plain prompts (text or messages). ``batch_size`` counts questions. Sampling is plain
    (temperature 1, no top-p, top-k or penalty) unless ``generation_kwargs`` of `generate` say otherwise;
    ``chat_template_kwargs`` go to the chat template (``{"enable_thinking": False}``, say). A run that was stopped, by
    SIGKILL even, goes on where it was when called again, and its file ends equal to an uninterrupted one: every batch
    has its own seed. Raises ValueError if ``out`` holds other questions, settings or another model, BlockingIOError if
    another run is writing it.
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

    def record(question: Question, prompt_ids: list[int], response: Response, index: int) -> Rollout:
        found = grade(question, response.text) if grade else None
        extra = {
            "sample": index,
            "reference": question.reference,
            "token_logprobs": [round(value, 4) for value in response.token_logprobs],
            "token_confidence": [round(value, 4) for value in response.token_confidence],
            "self_certainty": response.self_certainty,
            **({"question": dict(question.extra)} if question.extra else {}),
        }
        return Rollout(
            question.question_id, question.prompt, prompt_ids, response.text, response.token_ids, response.finish_reason,
            found.answer if found else None, found.label if found else None, None, response.logprob_mean,
            sampling, identity, extra,
        )  # fmt: skip

    with ExitStack() as stack:
        file = stack.enter_context(LineAppender(out, begins='{"question_id": ')) if out is not None else None
        existing = read_rollouts(out) if out is not None else []
        check_existing(out, existing, asked, prompts, sampling, identity)
        done = {(rollout.question_id, rollout.extra.get("sample")): rollout for rollout in existing}
        bar = stack.enter_context(tqdm(total=len(asked), desc="sampling", unit="question", disable=not progress, delay=1))
        for start in range(0, len(asked), batch_size):
            batch, ids = asked[start : start + batch_size], prompts[start : start + batch_size]
            if any((question.question_id, i) not in done for question in batch for i in range(n)):
                batch_seed = seed_for(seed, [question.question_id for question in batch])
                responses = generate_responses(model, tokenizer, ids, n, batch_seed, settings)
                fresh = [
                    record(question, prompt_ids, response, i)
                    for question, prompt_ids, row in zip(batch, ids, responses, strict=True)
                    for i, response in enumerate(row)
                    if (question.question_id, i) not in done
                ]
                if file is not None:
                    file.append([rollout.to_json() for rollout in fresh])
                done.update({(rollout.question_id, rollout.extra["sample"]): rollout for rollout in fresh})
            bar.update(len(batch))
    return [done[question.question_id, i] for question in asked for i in range(n)]


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
