r"""Read questions with reference answers from a JSONL file, or from a ``.json`` file that holds one list.

GSM8K's published records (``answer`` ends in ``#### 72``), MATH's (``solution`` with a ``\boxed{...}``) and MATH-500's
(``answer`` beside ``solution``) are read as they are, and so is any record with a question and an answer field.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from swift_rm.tasks.answers import after_hashes, boxed
from swift_rm.tasks.task import Question

QUESTION_FIELDS = ("question", "problem", "prompt", "input")
ANSWER_FIELDS = ("answer", "solution", "reference", "target", "final_answer")
ID_FIELDS = ("question_id", "id", "unique_id")


def read_questions(path: Path, question_field: str | None, answer_field: str | None) -> list[Question]:
    """Return all questions of a file, the prompt as it stands in the file.

    A field that is not named is the first of the known ones that is there. The id is the record's own, else
    ``<stem>-<line>``. Fields that are neither question, reference nor id become ``extra``, and so does a worked
    solution that the reference was taken out of. Raises ValueError with file and line for what cannot be read, for a
    missing field and for an id that was used before; FileNotFoundError if there is no such file.
    """
    questions: list[Question] = []
    seen: dict[str, str] = {}
    for number, where, record in _records(path):
        asked = _field(record, QUESTION_FIELDS, question_field, "question", where)
        answered = _field(record, ANSWER_FIELDS, answer_field, "reference answer", where)
        named = next((name for name in ID_FIELDS if record.get(name) is not None), None)
        question_id = f"{path.stem}-{number}" if named is None else str(record[named])
        if question_id in seen:
            raise ValueError(f"{where}: the question id {question_id!r} was used before, in {seen[question_id]}")
        seen[question_id] = where
        reference = _reference(record[answered], answered, where)
        used = {asked, named} if record[answered] != reference else {asked, named, answered}
        extra = {name: value for name, value in record.items() if name not in used}
        questions.append(Question(question_id, _prompt(record[asked], asked, where), reference, extra))
    if not questions:
        raise ValueError(f"{path}: the file holds no questions")
    return questions


def _records(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield each record with its number and its place in words; lines are numbered from 1 and may be empty."""
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if path.suffix == ".json" and data.lstrip().startswith(b"["):
        items = list(enumerate(_decode(data, str(path)), start=1))
        places = [(number, f"{path}, item {number}", item) for number, item in items]
    else:
        # Only "\n" ends a line: str.splitlines would also cut at the U+2028 that JSON strings may contain.
        lines = [(number, line) for number, line in enumerate(data.split(b"\n"), start=1) if line.strip()]
        places = [(number, where := f"{path}, line {number}", _decode(line, where)) for number, line in lines]
    for number, where, record in places:
        if not isinstance(record, dict):
            raise ValueError(f"{where}: expected a JSON object, got {type(record).__name__}")
        yield number, where, record


def _decode(data: bytes, where: str) -> Any:
    """Parse JSON; raise ValueError with the place for anything that is not valid."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not valid JSON ({error})") from error


def _field(record: dict[str, Any], known: tuple[str, ...], chosen: str | None, role: str, where: str) -> str:
    """Return the name of the record's field for a role: the chosen one, else the first known one with a value."""
    looked_for = known if chosen is None else (chosen,)
    for name in looked_for:
        if record.get(name) is not None:
            return name
    raise ValueError(
        f"{where}: no {role}: looked for {', '.join(map(repr, looked_for))}, the record has "
        f"{', '.join(map(repr, record)) or 'no fields'}"
    )


def _prompt(value: Any, name: str, where: str) -> str | list[dict[str, str]]:
    """Check a question: a text, or a list of chat messages."""
    if isinstance(value, str) and value.strip():
        return value
    messages = value if isinstance(value, list) else []
    if messages and all(
        isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
        for message in messages
    ):
        return messages
    raise ValueError(f"{where}: {name!r} must be a text or a list of messages with role and content, got {value!r:.80}")


def _reference(value: Any, name: str, where: str) -> str:
    r"""Return the reference answer: what is in the last ``\boxed{}``, else what follows ``####``, else all of it."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{where}: {name!r} must be a text or a number, got {value!r:.80}")
    text = str(value)
    if (content := boxed(text)) is not None:
        text = content
    elif (marked := after_hashes(text)) is not None:
        text = marked.replace(",", "")  # GSM8K writes 1,000
    elif name == "solution" and "\n" in text.strip():
        raise ValueError(f"{where}: the solution has several lines and neither '####' nor \\boxed{{...}} marks its final answer")
    if not text.strip():
        raise ValueError(f"{where}: the reference answer in {name!r} is empty")
    return text.strip()
