"""A guard around a grader: where it fails or hangs on one answer, that answer stays ungraded, counted, and the run goes on."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from swift_rm.files.time_limit import call_within
from swift_rm.records.rollouts import Rollout
from swift_rm.tasks.task import Grade, Question

Grader = Callable[[Question, str], Grade]

DEFAULT_TIMEOUT_S = 60.0
MOST_HANGS = 3  # in a row: after that, the rest of the batch is not tried
LONGEST_REASON = 160


@dataclass(frozen=True)
class Graded:
    """One answer's grade, or None and, where the grader failed, why: one short sentence."""

    grade: Grade | None
    error: str | None = None

    @property
    def answer(self) -> str | None:
        """Return the answer that was graded, None where there is none."""
        return self.grade.answer if self.grade else None

    @property
    def label(self) -> int | None:
        """Return 1 for right, 0 for not, None without a grade."""
        return self.grade.label if self.grade else None

    def recorded(self, question: Question) -> dict[str, Any]:
        """Return what a rollout's record says besides: the question's own values, and why there is no grade."""
        own = {"question": dict(question.extra)} if question.extra else {}
        return {**own, **({"grade_error": self.error} if self.error else {})}


class GuardedGrader:
    """Grade answers batch by batch, each within ``timeout_s`` seconds (None: no limit).

    An answer on which the grader raises, hangs or returns no Grade is left ungraded with the reason. Where it hangs on three
    answers in a row the rest of the batch is not tried, so that a grader that is down costs three time limits a batch and not
    one an answer; the next batch tries again. Ctrl-C and SystemExit go through. The limit is :func:`call_within`'s. Raises
    ValueError for a limit that is no positive number.
    """

    def __init__(self, grade: Grader, timeout_s: float | None = DEFAULT_TIMEOUT_S) -> None:
        if timeout_s is not None and not (0 < timeout_s < math.inf):
            raise ValueError(f"grade_timeout must be a positive number of seconds or None, got {timeout_s}")
        self._grade, self._timeout_s = grade, timeout_s

    def grade(self, answers: Sequence[tuple[Question, str]]) -> list[Graded]:
        """Grade the answers of one batch, in order."""
        found: list[Graded] = []
        hangs = 0
        for question, response in answers:
            if hangs < MOST_HANGS:
                one, hung = self._one(question, response)
                hangs = hangs + 1 if hung else 0
            else:
                one = Graded(None, f"not tried: the grader had hung on {MOST_HANGS} answers in a row")
            found.append(one)
        return found

    def _one(self, question: Question, response: str) -> tuple[Graded, bool]:
        """Grade one answer, and tell whether the grader hung on it."""
        outcome = call_within(self._timeout_s, lambda: _plain(self._grade(question, response)))
        if outcome is None:
            return Graded(None, f"the grader took longer than {self._timeout_s:g} s"), True
        if outcome.error is None:
            error = _fault(outcome.value)
            return Graded(None if error else outcome.value, error), False
        if not isinstance(outcome.error, Exception):
            raise outcome.error
        text = " ".join(f"the grader raised {type(outcome.error).__name__}: {outcome.error}".split())
        return Graded(None, text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 3] + "..."), False


def grade_all(guard: GuardedGrader | None, answers: Sequence[tuple[Question, str]]) -> list[Graded]:
    """Grade answers, or leave them all ungraded without a guard."""
    return [Graded(None)] * len(answers) if guard is None else guard.grade(answers)


class GradeTally:
    """Count the rollouts that a guarded grader left ungraded, and say at the end of the ``with`` block how many there were."""

    def __init__(self) -> None:
        self.graded = self.failed = 0
        self._first = ""

    def count(self, rollouts: Sequence[Rollout]) -> None:
        """Count rollouts by whether they have a ``grade_error``."""
        for rollout in rollouts:
            error = rollout.extra.get("grade_error")
            self.graded += error is None
            self.failed += error is not None
            if error is not None and not self._first:
                self._first = f"question {rollout.question_id!r}: {error}"

    def __enter__(self) -> GradeTally:
        """Begin to count."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        """Say how many answers stayed ungraded, if any did."""
        if self.failed:
            warnings.warn(
                f"{self.failed} of {self.graded + self.failed} answers could not be graded and have no label; the first is of "
                f"{self._first}",
                stacklevel=2,
            )


def _plain(grade: Grade | None) -> Grade | None:
    """Return a grade with its label as an int where it is 0 or 1 of another kind, which JSON may not know (NumPy's, say)."""
    if not isinstance(grade, Grade) or type(grade.label) is int or grade.label not in (0, 1):
        return grade
    return replace(grade, label=int(grade.label))


def _fault(grade: Grade | None) -> str | None:
    """Say what is wrong with what a grader returned, if it cannot be recorded; None stands for no grade."""
    if grade is None:
        return None
    if not isinstance(grade, Grade):
        return f"the grader returned a {type(grade).__name__}, not a Grade"
    if not isinstance(grade.answer, str | None):
        return f"the grader returned the answer of a Grade as a {type(grade.answer).__name__}, not as text"
    return None if grade.label in (0, 1) else f"the grader returned the label {grade.label!r:.40}, not 1 or 0"
