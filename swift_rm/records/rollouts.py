"""The rollout record: one sampled response as one JSON object a line."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import Any

from swift_rm.files.json_lines import iter_json_lines, json_line

MIN_QUESTIONS = 5

Prompt = str | list[dict[str, str]]


@dataclass(frozen=True)
class Rollout:
    """One response to one question, as it was sampled.

    ``prompt_ids`` and ``response_ids`` are the truth (the response's end-of-sequence token included); the texts are for
    people. Both are empty where an API answered, which tells no ids. ``answer`` is None where the grader found none;
    ``label`` is 1 right, 0 not, None ungraded. ``extra`` keeps unknown keys and the per-token statistics of sampling:
    ``token_logprobs``, ``token_confidence`` (DeepConf's), [R] each, ``top_logprobs``, R lists of the likeliest tokens',
    whether the last token is the ``end_token``, and ``self_certainty``.
    """

    question_id: str
    prompt: Prompt
    prompt_ids: list[int]
    response: str
    response_ids: list[int]
    finish_reason: str
    answer: str | None = None
    label: int | None = None
    reward: float | None = None
    logprob_mean: float | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Return the number of the response's tokens: of its ids, or where none are known of its log-probabilities."""
        return len(self.response_ids) or len(self.extra.get("token_logprobs") or ())

    def to_json(self) -> str:
        """Write the record as one line of JSON, without the line's end; a non-finite number becomes null."""
        known = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        return json_line(finite({**known, **self.extra}))

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Rollout:
        """Read a record from its JSON object; raise ValueError that says which key is missing or of the wrong kind."""
        for key, (kind, word) in _REQUIRED.items():
            if key not in record:
                raise ValueError(f"the record has no {key!r}")
            if not isinstance(record[key], kind):
                raise ValueError(f"{key!r} must be {word}, got {record[key]!r:.60}")
        for key in ("prompt_ids", "response_ids"):
            ids = record[key]
            if ids and (set(map(type, ids)) != {int} or min(ids) < 0 or max(ids) > _LARGEST_ID):
                raise ValueError(f"{key!r} must be a list of token ids")
        if record.get("label") not in (None, 0, 1):
            raise ValueError(f"'label' must be 1, 0 or null, got {record['label']!r:.60}")
        if not isinstance(record.get("answer"), str | None):
            raise ValueError(f"'answer' must be text or null, got {record['answer']!r:.60}")
        for key in ("sampling", "model"):
            if not isinstance(record.get(key, {}), Mapping):
                raise ValueError(f"{key!r} must be an object, got {record[key]!r:.60}")
        if not isinstance(record.get("model", {}).get("id", ""), str):
            raise ValueError(f"'model' must have its id as text, got {record['model']['id']!r:.60}")
        for key in _PER_TOKEN:
            _check_numbers(key, record.get(key))
        _check_lists("top_logprobs", record.get("top_logprobs"))
        if not isinstance(record.get("end_token", False), bool):
            raise ValueError(f"'end_token' must be true or false, got {record['end_token']!r:.60}")
        record = {**record, **{key: _number(key, record[key]) for key in _NUMBERS if key in record}}
        names = {f.name for f in fields(cls)} - {"extra"}
        extra = {key: value for key, value in record.items() if key not in names}
        return cls(**{key: value for key, value in record.items() if key in names}, extra=extra)


_REQUIRED: dict[str, tuple[type | tuple[type, ...], str]] = {
    "question_id": (str, "text"),
    "prompt": ((str, list), "text or a list of chat messages"),
    "prompt_ids": (list, "a list of token ids"),
    "response": (str, "text"),
    "response_ids": (list, "a list of token ids"),
    "finish_reason": (str, "text"),
}
_NUMBERS = ("reward", "logprob_mean", "probability", "self_certainty")
_PER_TOKEN = ("token_logprobs", "token_confidence")
_JSON_FLOATS = {float, type(None)}
_LARGEST_ID = 2**63 - 1  # JSON's numbers know no bounds


def _number(key: str, given: Any) -> float | None:
    """Return a number as a float, None for null; raise ValueError for anything else, and for what no float can hold."""
    if isinstance(given, bool) or not isinstance(given, int | float | None):
        raise ValueError(f"{key!r} must be a number or null, got {given!r:.60}")
    try:
        return None if given is None else float(given)
    except OverflowError:
        raise ValueError(f"{key!r} must be a number that a float can hold, got {given!r:.60}") from None


def _check_numbers(key: str, given: Any) -> None:
    """Raise ValueError unless this is null, or a list of numbers and nulls."""
    if given is None:
        return
    if not isinstance(given, list):
        raise ValueError(f"{key!r} must be a list of numbers or null, got {given!r:.60}")
    kinds = set(map(type, given)) - _JSON_FLOATS  # most lists hold floats alone: no loop over their items
    for place, value in enumerate(given) if kinds else ():
        if type(value) not in _JSON_FLOATS:
            _number(f"{key}[{place}]", value)


def _check_lists(key: str, given: Any) -> None:
    """Raise ValueError unless this is null, or a list of lists of numbers and nulls."""
    if given is None:
        return
    if not isinstance(given, list) or set(map(type, given)) - {list}:
        raise ValueError(f"{key!r} must be a list of lists of numbers or null, got {given!r:.60}")
    if set(map(type, chain.from_iterable(given))) - _JSON_FLOATS:
        for place, values in enumerate(given):
            _check_numbers(f"{key}[{place}]", values)


def finite(value: Any) -> Any:
    """Return JSON-ready values with None for every number that JSON lacks."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


def iter_rollouts(path: str | Path, *, skip_bad_lines: bool = False, skipped: Counter[str] | None = None) -> Iterator[Rollout]:
    """Yield the records of a JSONL file; a bad line raises ValueError with file and line, or is counted in ``skipped``."""
    for number, record in iter_json_lines(path):
        try:
            if isinstance(record, ValueError):
                raise record
            rollout = Rollout.from_dict(record)
        except ValueError as error:
            if not skip_bad_lines:
                raise (error if error is record else ValueError(f"{path}:{number}: not a rollout record: {error}")) from error
            if skipped is not None:
                skipped[str(path)] += 1
            continue
        yield rollout


def read_rollouts(path: str | Path, *, skip_bad_lines: bool = False, skipped: Counter[str] | None = None) -> list[Rollout]:
    """Read all records of a JSONL file; see :func:`iter_rollouts`."""
    return list(iter_rollouts(path, skip_bad_lines=skip_bad_lines, skipped=skipped))


def labels_of(rollouts: Sequence[Rollout]) -> list[int]:
    """Return the labels; raise ValueError, with their count and the first, if some are missing."""
    missing = [i for i, rollout in enumerate(rollouts) if rollout.label is None]
    if missing:
        raise ValueError(f"{len(missing)} of {len(rollouts)} rollouts have no label (the first is number {missing[0]})")
    return [int(rollout.label or 0) for rollout in rollouts]


def question_numbers(rollouts: Sequence[Rollout]) -> list[int]:
    """Return each rollout's question as a number 0 ... Q - 1, in the order of their first appearance."""
    numbers = {name: i for i, name in enumerate(dict.fromkeys(rollout.question_id for rollout in rollouts))}
    return [numbers[rollout.question_id] for rollout in rollouts]


def group_by_question(rollouts: Iterable[Rollout]) -> dict[str, list[Rollout]]:
    """Group records by question, in the order of their first appearance."""
    groups: dict[str, list[Rollout]] = {}
    for rollout in rollouts:
        groups.setdefault(rollout.question_id, []).append(rollout)
    return groups


def check_trainable(labels: Sequence[tuple[str, int | None]]) -> None:
    """Raise ValueError with the counts unless there are enough questions with both right and wrong responses to train on."""
    by_question: dict[str, set[int | None]] = {}
    for question, label in labels:
        by_question.setdefault(question, set()).add(label)
    found = {label for _, label in labels if label is not None}
    if len(found) < 2:
        what = {1: "right", 0: "wrong"}[found.pop()] if found else "unlabelled"
        raise ValueError(f"all {len(labels)} responses are {what}: a reward needs right and wrong ones")
    mixed = sum({0, 1} <= values for values in by_question.values())
    if mixed < MIN_QUESTIONS:
        raise ValueError(
            f"only {mixed} of {len(by_question)} questions have both right and wrong responses; "
            f"at least {MIN_QUESTIONS} are needed"
        )
