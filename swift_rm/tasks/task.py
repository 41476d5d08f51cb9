"""What a task is: questions with a reference, and a grader of responses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Question:
    """One question: a stable id, a prompt (text or chat messages), the reference answer and what else is known of it."""

    question_id: str
    prompt: str | list[dict[str, str]]
    reference: str | None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Grade:
    """The answer found in a response (None: unparsable, counted apart from wrong) and its label, 1 right or 0 not."""

    answer: str | None
    label: int


class Task(Protocol):
    """A source of questions and the judge of their responses."""

    name: str

    def questions(self, n: int, seed: int = 0) -> Iterable[Question]:
        """Yield ``n`` questions."""

    def grade(self, question: Question, response: str) -> Grade:
        """Grade one response's text."""


def as_question(question: Question | str | list[dict[str, str]], index: int) -> Question:
    """Return a task's question as it is, and a plain prompt as a question named by its index."""
    return question if isinstance(question, Question) else Question(f"question-{index}", question, None)


def check_questions(asked: Sequence[Question], prompts: Sequence[Sequence[Any]]) -> None:
    """Raise ValueError if there is no question, two have one id, or a prompt is empty."""
    if not asked:
        raise ValueError("there are no questions to sample")
    seen: set[str] = set()
    for question, prompt in zip(asked, prompts, strict=True):
        if question.question_id in seen:
            raise ValueError(f"two questions have the id {question.question_id!r}")
        if not prompt:
            raise ValueError(f"the prompt of question {question.question_id!r} is empty")
        seen.add(question.question_id)
