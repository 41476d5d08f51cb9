"""Measure a policy on questions: whether it thinks when it should, and whether it is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from swift_rm.hipo.response.template import FREE, Template
from swift_rm.hipo.trainer.metrics import Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Mapping[str, Any]],
    grade: Callable[[Mapping[str, Any], str], float | None],
    n: int = 4,
    *,
    template: Template | None = None,
    chat_template_kwargs: Mapping[str, Any] = FREE,
    seed: int = 0,
    batch_size: int = 64,
    **sampling: Any,
) -> list[Row]:
    """Sample ``n`` responses to each question (rows as `HiPOTrainer`'s data set has them) and judge them, n rows a question.

    ``sampling`` goes to :func:`swift_rm.sample` (temperature 1 unless told otherwise). :func:`step_metrics` makes figures
    of the rows. Raises ValueError for rows without ``question_id`` or ``prompt``.
    """
    from swift_rm.sampling.generation import end_tokens
    from swift_rm.sampling.sample import iter_samples
    from swift_rm.tasks.task import Question

    template = Template() if template is None else template
    for i, row in enumerate(questions):
        if missing := [name for name in ("question_id", "prompt") if name not in row]:
            raise ValueError(f"row {i} has no {' and no '.join(missing)}, but {', '.join(row) or 'nothing'}")
    asked = [Question(str(row["question_id"]), row["prompt"], None) for row in questions]
    ends = end_tokens(model, sampling)
    batches = iter_samples(
        model, tokenizer, asked, n, seed=seed, batch_size=batch_size, chat_template_kwargs=chat_template_kwargs, **sampling
    )
    rollouts = [rollout for batch in batches for rollout in batch]
    rows = []
    for i, rollout in enumerate(rollouts):
        question = questions[i // n]
        ids = rollout.response_ids
        parsed = template.parse(ids, tokenizer, ids[-1] in ends)
        accuracy = 0.0 if parsed.answer is None else grade(question, parsed.answer)
        rows.append(Row(rollout.question_id, question.get("difficulty"), parsed, len(ids), accuracy, None, None, labelled=True))
    return rows
