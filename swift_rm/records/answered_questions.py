"""Questions with their responses, read from JSONL: a line is one response, or one question with its candidates."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class AnsweredRecord:
    """One response of a file: where it stands, the prompt and response to encode, and the record that says more of it."""

    place: str
    prompt: Any
    response: Any
    record: Mapping[str, Any]


@dataclass(frozen=True)
class AnsweredQuestion:
    """One question of a file: its id if it has one, its prompt as people read it if that is there, and its responses."""

    question_id: str | None
    prompt: Any
    answered: list[AnsweredRecord] = field(default_factory=list)


def read_answered_questions(path: str | Path) -> list[AnsweredQuestion]:
    """Read the questions of a JSONL file with their responses, in the order of their first appearance.

    A line is one response (``prompt`` or ``prompt_ids``, ``response`` or ``response_ids``) or one question with its
    ``candidates`` (``text`` or ``token_ids`` each). Responses with the same ``question_id`` and prompt belong together.
    Raises ValueError with file and line for a line that is neither.
    """
    from swift_rm.files.json_lines import read_json_lines

    questions: dict[str, AnsweredQuestion] = {}
    for number, record in read_json_lines(path):
        try:
            known = None if record.get("question_id") is None else str(record["question_id"])
            ids_or_text = _either(record, "prompt_ids", "prompt")
            readable = ids_or_text if record.get("prompt") is None else record["prompt"]
            question = questions.setdefault(json.dumps([known, readable]), AnsweredQuestion(known, readable))
            for response, details in _responses(record):
                question.answered.append(AnsweredRecord(f"{path}:{number}", ids_or_text, response, details))
        except ValueError as error:
            raise ValueError(f"{path}:{number}: neither a response nor a question with candidates: {error}") from error
    return list(questions.values())


def _responses(record: Mapping[str, Any]) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """Yield the responses of a line, each with the object that says more of it."""
    candidates = record.get("candidates", [record])
    if not isinstance(candidates, list) or not candidates or not all(isinstance(one, dict) for one in candidates):
        raise ValueError(f"'candidates' must be a list of at least one object, got {candidates!r:.60}")
    for one in candidates:
        yield _either(one, "token_ids", "text") if "candidates" in record else _either(one, "response_ids", "response"), one


def _either(record: Mapping[str, Any], ids: str, text: str) -> Any:
    """Return a record's token ids, or else its text (a prompt's may be messages)."""
    key = ids if record.get(ids) is not None else text
    value = record.get(key)
    if value is None:
        raise ValueError(f"there is neither {ids!r} nor {text!r}; it has {sorted(record)}")
    kinds = {type(item) for item in value} if isinstance(value, list) else set()
    readable = kinds <= {int} if isinstance(value, list) else isinstance(value, str) and key == text
    if not readable and not (key == "prompt" and kinds == {dict}):
        raise ValueError(f"{key!r} must be {'text or token ids' if key == text else 'token ids'}, got {value!r:.60}")
    return value
