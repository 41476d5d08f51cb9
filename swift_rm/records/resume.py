"""What a file of rollouts or results holds already, and what must agree before a run may go on with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from swift_rm.files.json_lines import iter_json_lines
from swift_rm.records.rollouts import Rollout, iter_rollouts
from swift_rm.tasks.task import Question

Key = tuple[str, Any]  # the question's id, and the response's number
RESULT_KEYS = (
    "question_id", "prompt", "prompt_ids", "best", "candidates", "tokens_spent", "tokens_saved", "ended",
    "settings", "model", "reward_model",
)  # fmt: skip


class StoredRollouts:
    """The rollouts of the file ``path`` (None: of none), each passed to ``check`` once; the last of those with one key counts.

    Raises ValueError with file and line for a line that is none, and whatever ``check`` raises.
    """

    def __init__(self, path: str | Path | None, check: Callable[[Rollout], None]) -> None:
        self._path = path
        self._places: dict[Key, int] = {}
        if path is None:
            return
        for place, rollout in zip(_line_places(path), iter_rollouts(path), strict=True):
            check(rollout)
            self._places[rollout.question_id, rollout.extra.get("sample")] = place

    def __contains__(self, key: Key) -> bool:
        return key in self._places

    def read(self, keys: Sequence[Key]) -> list[Rollout]:
        """Read those of the keys that are there, in their order."""
        places = [self._places[key] for key in keys if key in self._places]
        if not places or self._path is None:
            return []
        with open(self._path, "rb") as file:
            found = []
            for place in places:
                file.seek(place)
                found.append(Rollout.from_dict(json.loads(file.readline())))
            return found


def _line_places(path: str | Path) -> Iterator[int]:
    """Yield where each line begins that is not blank."""
    place = 0
    with open(path, "rb") as lines:
        for line in lines:
            if line.strip():
                yield place
            place += len(line)


def resume_check(
    out: str | Path | None,
    asked: Sequence[Question],
    prompts: Sequence[Sequence[int]],
    sampling: Mapping[str, Any],
    model: Mapping[str, Any],
) -> Callable[[Rollout], None]:
    """Return a check that raises ValueError, with the difference, unless a record is of these questions, settings and model."""
    known = {question.question_id: (question, ids) for question, ids in zip(asked, prompts, strict=True)}

    def check(rollout: Rollout) -> None:
        name = rollout.question_id
        if name not in known:
            raise ValueError(f"{out} holds rollouts of question {name!r}, which is not among the questions given")
        question, ids = known[name]
        other = list(rollout.prompt_ids) != list(ids) or (not ids and rollout.prompt != question.prompt)  # an API tells no ids
        if other or rollout.extra.get("reference") != question.reference:
            raise ValueError(f"{out} holds rollouts of another question {name!r}: its prompt or reference answer differs")
        for what, there, now in (("settings", rollout.sampling, sampling), ("model", rollout.model, model)):
            differ = _differences(there, now)
            differ.pop("batch_size", None)  # a run that ran out of memory may go on with smaller batches
            if differ:
                raise ValueError(f"{out} was sampled with other {what} (there, now): {differ}; choose another file")

    return check


def read_results(
    out: str | Path, asked: Mapping[str, tuple[Any, list[int]]], decided_by: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return by question what a file of best-of-n's results holds of costs; the candidates are not kept in memory.

    ``asked`` are the questions' prompts, as people read them and as ids. Raises ValueError that shows the difference unless
    all records are of these questions and ``decided_by`` the same settings, model and reward model.
    """
    done: dict[str, dict[str, Any]] = {}
    for number, record in iter_json_lines(out):
        if isinstance(record, ValueError):
            raise record
        if missing := [key for key in RESULT_KEYS if key not in record]:
            raise ValueError(f"{out}:{number}: not a result of best-of-n: it has no {missing[0]!r}; choose another file")
        name = record["question_id"]
        if name not in asked:
            raise ValueError(f"{out}:{number} answers question {name!r}, which is not among the questions given")
        if (record["prompt"], record["prompt_ids"]) != asked[name]:
            raise ValueError(f"{out}:{number} answers another question {name!r}: its prompt differs")
        for what, now in decided_by.items():
            there = record[what]
            both = (there, now) if isinstance(there, dict) and isinstance(now, dict) else ({what: there}, {what: now})
            if differ := _differences(*both):
                raise ValueError(
                    f"{out} was made with other {what.replace('_', ' ')} (there, now): {differ}; choose another file"
                )
        done[name] = {key: record[key] for key in ("tokens_spent", "tokens_saved", "ended")}
    return done


def first_limit(out: str | Path) -> int | None:
    """Return the limit of new tokens that a file was begun with: the default depends on the longest question."""
    if not Path(out).is_file():
        return None
    for _, record in iter_json_lines(out):
        limit = record.get("sampling", {}).get("max_new_tokens") if isinstance(record, dict) else None
        return limit if isinstance(limit, int) else None
    return None


def _differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {key: (there.get(key), now.get(key)) for key in sorted({*there, *now}) if there.get(key) != now.get(key)}
