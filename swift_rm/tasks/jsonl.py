"""JsonlTask: any file of questions with reference answers, graded as words, as numbers or as mathematics."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Literal

from swift_rm.tasks.answers import find_answer, normalise, same_text, strip_delimiters
from swift_rm.tasks.math_grading import MathGrader
from swift_rm.tasks.numeric import find_number, read_number, same_number
from swift_rm.tasks.question_file import read_questions
from swift_rm.tasks.task import Grade, Question

Grading = Literal["auto", "exact", "numeric", "math"]

_SLOT = "{question}"
_WORDS = re.compile(r"[^\W\d_]{1,2}|(?=.*[^\W\d_]{3})(?:[^\W\d_]|[ .,:;?!()'\"\u2019-])+")


def grading_of(reference: str) -> Literal["exact", "numeric", "math"]:
    """Choose how ``grading="auto"`` grades: a number as a number, plain words as words, all else as mathematics."""
    if read_number(reference, bare=True) is not None:
        return "numeric"
    return "exact" if _WORDS.fullmatch(normalise(reference)) else "math"


class JsonlTask:
    r"""Questions of a JSONL file (or a ``.json`` list) and their grader.

    Args:
        path: the file; it is read at once. `question_file` says which fields it may have.
        question_field: the question's field, if it is none of question, problem, prompt, input.
        answer_field: the reference's field, if it is none of answer, solution, reference, target, final_answer.
        grading: ``exact`` compares words (case, spaces and a full stop aside), ``numeric`` numbers as exact fractions,
            ``math`` asks math-verify; ``auto`` chooses by each reference. In a file where ``auto`` finds mathematics,
            math-verify also judges the answers to number references that are no plain number, such as ``\sqrt{4}``.
        prompt_template: makes the prompt a plain text, with the question in the place of ``{question}``.
        system: a system message put before the question.
        timeout_s: time for math-verify to judge one answer; an answer that takes longer counts as unparsable.
        workers: processes that run math-verify.

    A question that already is a list of chat messages is used as is. Raises ValueError for a file, field or option that
    does not fit, ImportError if the file needs math-verify and it is missing. Use it as a context manager, or `close`
    it, to end the worker processes. A pickled copy grades, in other processes say, and has no questions.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        question_field: str | None = None,
        answer_field: str | None = None,
        grading: Grading = "auto",
        prompt_template: str | None = None,
        system: str | None = None,
        timeout_s: float = 5.0,
        workers: int = 1,
    ) -> None:
        if grading not in ("auto", "exact", "numeric", "math"):
            raise ValueError(f"grading must be 'auto', 'exact', 'numeric' or 'math', got {grading!r}")
        if prompt_template is not None and _SLOT not in prompt_template:
            raise ValueError(f"prompt_template must contain {_SLOT!r}, got {prompt_template!r}")
        if prompt_template is not None and system is not None:
            raise ValueError("prompt_template makes plain text, which has no place for a system message: give only one")
        self.path, self.grading, self.prompt_template, self.system = Path(path), grading, prompt_template, system
        self.name = self.path.stem
        read = read_questions(self.path, question_field, answer_field)
        self._questions = [replace(question, prompt=self._prompt(question)) for question in read]
        kinds = {self._kind(question) for question in read}
        self.grader = MathGrader(timeout_s, workers) if "math" in kinds else None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_questions": []}

    def __len__(self) -> int:
        return len(self._questions)

    def questions(self, n: int | None = None, seed: int = 0) -> Iterator[Question]:
        """Return the first ``n`` questions (None: all), in the file's order; a seed other than 0 shuffles them first.

        The same seed always gives the same order. Raises ValueError if the file holds fewer than ``n``.
        """
        if n is not None and not 0 <= n <= len(self):
            raise ValueError(f"{self.path}: asked for {n} questions, the file holds {len(self)}")
        order = list(self._questions)
        if seed != 0:
            random.Random(seed).shuffle(order)
        return iter(order[:n])

    def grade(self, question: Question, response: str) -> Grade:
        """Grade one response; raise ValueError if the question has no reference that this task can grade by."""
        return self.grade_many([(question, response)])[0]

    def grade_many(self, pairs: Iterable[tuple[Question, str]]) -> list[Grade]:
        """Grade responses, those that need math-verify with all workers at once; the results keep the order."""
        pairs = list(pairs)
        drafts = [self._grade_or_ask(question, response) for question, response in pairs]
        asked = [
            (str(question.reference), draft) for (question, _), draft in zip(pairs, drafts, strict=True) if isinstance(draft, str)
        ]
        verdicts = iter(self.grader.grade_many(asked) if self.grader is not None and asked else [])
        return [draft if isinstance(draft, Grade) else _grade_of(draft, next(verdicts)) for draft in drafts]

    def close(self) -> None:
        """End the worker processes, if any were started."""
        if self.grader is not None:
            self.grader.close()

    def __enter__(self) -> JsonlTask:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _prompt(self, question: Question) -> str | list[dict[str, str]]:
        """Make the prompt of a question as it stands in the file."""
        if not isinstance(question.prompt, str):
            if self.prompt_template is not None or self.system is not None:
                option = "prompt_template" if self.system is None else "system"
                raise ValueError(f"{self.path}: question {question.question_id!r} is chat messages already: no {option}")
            return question.prompt
        if self.prompt_template is not None:
            # Not str.format: templates and questions are full of LaTeX braces.
            return self.prompt_template.replace(_SLOT, question.prompt)
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, {"role": "user", "content": question.prompt}]

    def _kind(self, question: Question) -> Literal["exact", "numeric", "math"]:
        """Return how a question is graded, checking that its reference allows it."""
        if question.reference is None:
            raise ValueError(f"{self.path}: question {question.question_id!r} has no reference to grade by")
        if self.grading == "numeric" and read_number(question.reference) is None:
            raise ValueError(
                f"{self.path}: the reference of question {question.question_id!r} is no number: {question.reference!r}"
            )
        return grading_of(question.reference) if self.grading == "auto" else self.grading

    def _grade_or_ask(self, question: Question, response: str) -> Grade | str:
        """Return the grade, or the answer that math-verify must judge."""
        kind, reference = self._kind(question), str(question.reference)
        if kind == "numeric":
            expected, number = read_number(reference), find_number(response)
            if expected is not None and number is not None:
                return Grade(str(number), int(same_number(expected, number)))
        answer = find_answer(response)
        if answer is None or (kind == "numeric" and self.grader is None):
            return Grade(None, 0)
        if kind == "exact":
            return Grade(normalise(answer), int(same_text(reference, answer)))
        if self.grader is None:
            raise ValueError(f"question {question.question_id!r} needs math-verify, which {self.path} did not")
        spelt = " ".join(answer.split())
        return Grade(spelt, 1) if spelt == strip_delimiters(reference) else spelt


def _grade_of(answer: str, verdict: bool | None) -> Grade:
    """Turn math-verify's verdict into a grade."""
    return Grade(None, 0) if verdict is None else Grade(answer, int(verdict))
