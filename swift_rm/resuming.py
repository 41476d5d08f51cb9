"""What a rollout file must agree on before a run may go on with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from swift_rm.json_lines import iter_json_lines
from swift_rm.rollouts import Rollout
from swift_rm.tasks.task import Question


def check_existing(
    out: str | Path | None,
    existing: Sequence[Rollout],
    asked: Sequence[Question],
    prompts: Sequence[Sequence[int]],
    sampling: Mapping[str, Any],
    model: Mapping[str, Any],
) -> None:
    """Raise ValueError that shows the difference unless all records are of these questions, settings and this model."""
    known = {question.question_id: (question, ids) for question, ids in zip(asked, prompts, strict=True)}
    for rollout in existing:
        name = rollout.question_id
        if name not in known:
            raise ValueError(f"{out} holds rollouts of question {name!r}, which is not among the questions given")
        question, ids = known[name]
        if list(rollout.prompt_ids) != list(ids) or rollout.extra.get("reference") != question.reference:
            raise ValueError(f"{out} holds rollouts of another question {name!r}: its prompt or reference answer differs")
        for what, there, now in (("settings", rollout.sampling, sampling), ("model", rollout.model, model)):
            differ = {key: (there.get(key), now.get(key)) for key in sorted({*there, *now}) if there.get(key) != now.get(key)}
            differ.pop("batch_size", None)  # a run that ran out of memory may go on with smaller batches
            if differ:
                raise ValueError(f"{out} was sampled with other {what} (there, now): {differ}; choose another file")


def first_limit(out: str | Path) -> int | None:
    """Return the limit of new tokens that a file was begun with: the default depends on the longest question."""
    if not Path(out).is_file():
        return None
    for _, record in iter_json_lines(out):
        limit = record.get("sampling", {}).get("max_new_tokens") if isinstance(record, dict) else None
        return limit if isinstance(limit, int) else None
    return None
