"""Questions to answer, read from JSONL: text, messages or token ids, with their ids."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class QuestionRecord:
    """One question: its id, its prompt as people read it (None if there are only ids), and what the model reads."""

    question_id: str
    prompt: str | list[dict[str, str]] | None
    prompt_ids: list[int]


def read_records(path: str) -> list[tuple[str, dict[str, Any]]]:
    """Read the questions of a JSONL file with their ids; raise ValueError with file and line for what is no question.

    A line has ``prompt_ids``, or ``prompt`` (text, given to the model as it is, or messages), or ``question`` (text), and
    perhaps ``question_id`` or ``id``; else the id is ``question-<index>``, counted from 0.
    """
    from swift_rm.files.json_lines import read_json_lines

    seen: set[str] = set()
    named = []
    for index, (number, record) in enumerate(read_json_lines(path)):
        given = record.get("question_id") if record.get("question_id") is not None else record.get("id")
        name = f"question-{index}" if given is None else str(given)
        try:
            _check_record(record)
            if name in seen:
                raise ValueError(f"the id {name!r} was used before")
            name.encode()
        except ValueError as error:
            raise ValueError(f"{path}:{number}: no question to answer: {error}") from error
        seen.add(name)
        named.append((name, record))
    return named


def _check_record(record: Mapping[str, Any]) -> None:
    ids, prompt, question = record.get("prompt_ids"), record.get("prompt"), record.get("question")
    if ids is not None and not (isinstance(ids, list) and ids and all(type(token) is int and token >= 0 for token in ids)):
        raise ValueError(f"'prompt_ids' must be a list of at least one token id, got {ids!r:.60}")
    if prompt is not None and not isinstance(prompt, str):
        messages = prompt if isinstance(prompt, list) and prompt else [None]
        if not all(isinstance(one, dict) and isinstance(one.get("role"), str) and "content" in one for one in messages):
            raise ValueError(f"'prompt' must be text or chat messages, got {prompt!r:.60}")
    if ids is None and prompt is None and not isinstance(question, str):
        raise ValueError(f"there is no 'question' or 'prompt' as text, and no 'prompt_ids'; it has {sorted(record)}")
    json.dumps([prompt, question], ensure_ascii=False).encode()  # half a surrogate pair is refused before work is lost
