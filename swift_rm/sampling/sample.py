"""Sample N responses per question into a rollout file, resumable at any moment, with their hidden states if asked for."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor
from tqdm.auto import tqdm

from swift_rm.capture.state_recorder import RecordingSpec
from swift_rm.files.jsonl_appender import LineAppender
from swift_rm.records.resume import Key, StoredRollouts, first_limit, resume_check
from swift_rm.records.rollouts import Prompt, Rollout
from swift_rm.reward.identity import model_identity
from swift_rm.reward.logprobs import MOST_ALTERNATIVES
from swift_rm.sampling.batch_runner import InProcess, Workers
from swift_rm.sampling.batch_sampler import BatchSampler, SampleJob, SampleJobResult
from swift_rm.sampling.generation import sampling_settings
from swift_rm.sampling.guarded_grader import DEFAULT_TIMEOUT_S, Grader, GradeTally, GuardedGrader
from swift_rm.tasks.task import Question, as_question, check_questions
from swift_rm.tokens.encoding import encode_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class SampledBatch:
    """The responses to one batch of questions, all ``n`` of each, question after question.

    ``states [T, D]`` and ``offsets [B + 1]`` are their hidden states where these were asked for, on the model's device, as
    :class:`RecordingSpec` says. ``fresh`` tells that all of the batch was sampled now, and nothing of it was in the file.
    """

    rollouts: list[Rollout]
    states: Tensor | None
    offsets: Tensor | None
    fresh: bool


class FeatureWriter(Protocol):
    """What takes the states of sampled responses, batch by batch; the caller opens and closes it."""

    @property
    def recording(self) -> RecordingSpec:
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
    workers: Workers | None = None,
    top_logprobs: int | None = None,
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
    for what is in the file already, those of :func:`read_again`. ``workers`` run the language model in other processes, see
    ``swift_rm.integrations.ray_actors``; the file is the same. With ``top_logprobs`` the records hold what an API returns of
    each token as well, so that a reward model can be trained on them without the language model: the log-probabilities of so
    many of the likeliest tokens (0 to 20), and whether the last token is the ``end_token``. Raises ValueError if ``out``
    holds other questions, settings or another model, BlockingIOError if another run is writing it.
    """
    batches = iter_samples(
        model, tokenizer, questions, n, out, grade=grade, grade_timeout=grade_timeout, batch_size=batch_size,
        max_new_tokens=max_new_tokens, seed=seed, chat_template_kwargs=chat_template_kwargs, progress=progress,
        features=features, workers=workers, top_logprobs=top_logprobs, **generation_kwargs,
    )  # fmt: skip
    return [rollout for rollouts in batches for rollout in rollouts]


def iter_samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Iterable[Question | Prompt],
    n: int = 8,
    out: str | Path | None = None,
    *,
    features: FeatureWriter | None = None,
    **options: Any,
) -> Generator[list[Rollout], None, None]:
    """Yield what :func:`sample` returns batch by batch, and remember none of it: memory does not grow with the questions."""
    batches = sample_batches(
        model, tokenizer, questions, n, out, record=features.recording if features is not None else None,
        reread=lambda rollouts: features is not None and not features.holds(rollouts), **options,
    )  # fmt: skip
    with closing(batches):
        for batch in batches:
            if features is not None and batch.states is not None and batch.offsets is not None:
                features.add(batch.rollouts, batch.states, batch.offsets)
            yield batch.rollouts


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
    record: RecordingSpec | None = None,
    reread: Callable[[list[Rollout]], bool] | bool = True,
    workers: Workers | None = None,
    top_logprobs: int | None = None,
    **generation_kwargs: Any,
) -> Generator[SampledBatch, None, None]:
    """Yield what :func:`sample` returns batch by batch, in the order of the questions, each when it is in ``out``.

    With ``record`` a batch sampled now has the hidden states of its generation. One that is in ``out``, or partly (begun
    with another batch size), is read again by one teacher-forced pass over its token ids, so that a resumed run sees the
    states of every response, unless ``reread`` is False or returns False for that batch: then ``states`` is None. States
    are plain tensors without a gradient. ``out`` is held until the generator is exhausted or closed. What cannot be
    sampled raises at once, ValueErrors about ``out`` at the first batch.
    """
    if n < 1 or batch_size < 1:
        raise ValueError(f"n and batch_size must be at least 1, got {n} and {batch_size}")
    if isinstance(questions, str):
        raise ValueError("questions must be a list, not one text")
    if top_logprobs is not None and not 0 <= top_logprobs <= MOST_ALTERNATIVES:
        raise ValueError(f"top_logprobs must be 0 to {MOST_ALTERNATIVES} of the likeliest tokens, got {top_logprobs}")
    template = dict(chat_template_kwargs or {})
    asked = [as_question(question, i) for i, question in enumerate(questions)]
    prompts = [encode_prompt(tokenizer, question.prompt, template) for question in asked]
    check_questions(asked, prompts)
    if max_new_tokens is None and out is not None:
        max_new_tokens = first_limit(out)
    settings = sampling_settings(model, max(map(len, prompts)), n, max_new_tokens, generation_kwargs)
    sampling = {key: _jsonable(value) for key, value in settings.items()} | {"n": n, "seed": seed, "batch_size": batch_size}
    sampling |= {"chat_template_kwargs": template} if template else {}
    sampling |= {"top_logprobs": top_logprobs} if top_logprobs is not None else {}
    guard = GuardedGrader(grade, grade_timeout) if grade is not None else None
    sampler = BatchSampler(n, seed, settings, sampling, model_identity(model), record, guard, top_logprobs)
    runner = InProcess(model, tokenizer) if workers is None else workers

    def planned(stored: StoredRollouts) -> Iterator[tuple[SampleJob, bool]]:
        """Yield every batch with what is missing of it, and whether the states of what is in ``out`` are to be read again."""
        for start in range(0, len(asked), batch_size):
            job = SampleJob(asked[start : start + batch_size], prompts[start : start + batch_size], [])
            keys = _keys(job, n)
            missing = [place for place, key in enumerate(keys) if key not in stored]
            again = record is not None and len(missing) < len(keys) and reread is not False
            if again and not missing and callable(reread):
                again = reread(stored.read(keys))
            yield replace(job, missing=missing), again

    def run() -> Generator[SampledBatch, None, None]:
        with ExitStack() as stack:
            file = stack.enter_context(LineAppender(out, begins='{"question_id": ')) if out is not None else None
            stored = StoredRollouts(out, resume_check(out, asked, prompts, sampling, sampler.identity))
            plan = list(planned(stored))
            tally = stack.enter_context(GradeTally()) if guard is not None else None
            bar = stack.enter_context(tqdm(total=len(asked), desc="sampling", unit="question", disable=not progress, delay=1))
            jobs = (
                replace(job, stored=stored.read(_keys(job, n)) if again else ()) for job, again in plan if job.missing or again
            )
            results = stack.enter_context(closing(runner.run(sampler, jobs)))
            for job, again in plan:
                done = next(results) if job.missing or again else SampleJobResult([], None)
                old = stored.read(_keys(job, n))
                if file is not None and done.made:
                    file.append([rollout.to_json() for rollout in done.made])
                if tally is not None:
                    tally.count(done.made)
                packed, offsets = done.states or (None, None)
                yield SampledBatch(job.whole(done.made, old, n), packed, offsets, fresh=not old)
                bar.update(len(job.questions))

    return run()


def _keys(job: SampleJob, n: int) -> list[Key]:
    return [(question.question_id, i) for question in job.questions for i in range(n)]


def _jsonable(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str | None) else repr(value)
