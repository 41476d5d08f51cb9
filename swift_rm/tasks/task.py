"""What a task is: questions with a reference, and a grader of responses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
