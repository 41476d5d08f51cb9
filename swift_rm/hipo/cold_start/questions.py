"""Turn a task's questions into the rows that HiPO trains on, and its grader into one of parsed answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from swift_rm.records.rollouts import Prompt
from swift_rm.tasks.task import Grade, Question

if TYPE_CHECKING:
    from datasets import Dataset

DIFFICULTY = ("difficulty", "level")  # what a file may call it


def hipo_rows(questions: Sequence[Question], baseline: Mapping[str, float] | None = None) -> Dataset:
    """Return a data set with the columns prompt, question_id, reference, difficulty, and baseline where it is known.

    Prompts are chat messages as long as all questions' are. ``baseline`` is the accuracy on each question before training,
    by id, which AdaptThink compares with; a question that it lacks has none. Raises ValueError for no questions, or for a
    prompt that is no Unicode text; in the other columns half a surrogate pair becomes its code point.
    """
    from datasets import Dataset

    if not questions:
        raise ValueError("there are no questions to train on")
    for question in questions:
        check_prompt(question.prompt, f"the prompt of question {question.question_id!r}")
    columns: dict[str, list[Any]] = {
        "prompt": [question.prompt for question in questions],
        "question_id": [encodable(question.question_id) for question in questions],
        "reference": [encodable(question.reference) for question in questions],
        "difficulty": [encodable(difficulty_of(question)) for question in questions],
    }
    if baseline is not None:
        columns["baseline"] = [float(baseline.get(question.question_id, math.nan)) for question in questions]
    return Dataset.from_dict(columns)


def check_prompt(prompt: Prompt, name: str) -> None:
    """Raise ValueError as :func:`check_text`, for a text or for messages."""
    for text in [prompt] if isinstance(prompt, str) else [str(part) for message in prompt for part in message.values()]:
        check_text(text, name)


def check_text(text: str, name: str) -> None:
    """Raise ValueError for a text with half a surrogate pair, which JSON can bring, and which no tokenizer reads."""
    if encodable(text) != text:
        raise ValueError(f"{name} is no Unicode text, it holds half a surrogate pair: {text!r:.60}")


def encodable(text: str | None) -> str | None:
    """Return a text as UTF-8, and so a data set, can hold it: half a surrogate pair becomes its code point."""
    return None if text is None else text.encode(errors="backslashreplace").decode()


def difficulty_of(question: Question) -> str | None:
    """Return a question's difficulty as a short text: a world's number of steps, or what a file says; None if unknown."""
    steps = question.extra.get("steps")
    if isinstance(steps, int):
        return f"{steps} step{'' if steps == 1 else 's'}"
    return next((str(question.extra[name]) for name in DIFFICULTY if question.extra.get(name) is not None), None)


def answer_grader(grade: Callable[[Question, str], Grade]) -> Callable[[Mapping[str, Any], str], float | None]:
    """Return a grader of parsed answers, from a task's grader of responses.

    The answer is given to it in an answer block, which every task reads first, whatever the tags of the template are. A row
    without a reference has no label.
    """

    def graded(row: Mapping[str, Any], answer: str) -> float | None:
        if row["reference"] is None:
            return None
        question = Question(row["question_id"], row["prompt"], row["reference"])
        return float(grade(question, f"<answer>{answer}</answer>").label)

    return graded
