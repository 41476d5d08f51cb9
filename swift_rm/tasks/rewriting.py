"""The rewriting world: short words rewritten step by step by imperfect students, each attempt graded.

A question is a word of four letters and one to four operations on it: ``~`` reverses it, ``/`` moves its last letter to
the front, ``^`` replaces each letter by the next (after f comes a), ``:`` swaps its halves. Three of them have a popular
mistake, made more often than not where it matters: a reversal leaves the ends in place, a rotation goes the wrong way,
and an f, which has no next letter in sight, stays. `swift_rm.tasks.student_exercises` says what students do otherwise.
"""

from __future__ import annotations

import random

from swift_rm.tasks import student_exercises
from swift_rm.tasks.synthetic_task import SyntheticTask

LETTERS = "abcdef"
LENGTH = 4
OPERATIONS = "~/^:"
SYMBOLS = (*LETTERS, *OPERATIONS)

_NEXT = str.maketrans(LETTERS, LETTERS[1:] + LETTERS[0])
_NEXT_BUT_LAST = str.maketrans(LETTERS, LETTERS[1:] + LETTERS[-1])


def rewritten(word: str, operation: str) -> str:
    """Return the word that an operation makes; raise ValueError if it is none."""
    if operation == "~":
        return word[::-1]
    if operation == "/":
        return word[-1] + word[:-1]
    if operation == "^":
        return word.translate(_NEXT)
    if operation == ":":
        half = len(word) // 2
        return word[half:] + word[:half]
    raise ValueError(f"the rewriting world has the operations {tuple(OPERATIONS)}, got {operation!r}")


def mistaken(word: str, operation: str) -> str:
    """Return the word of a student who makes the popular mistake, if the operation has one."""
    if operation == "~":
        return word[0] + word[-2:0:-1] + word[-1]
    if operation == "/":
        return word[1:] + word[0]
    if operation == "^":
        return word.translate(_NEXT_BUT_LAST)
    return rewritten(word, operation)


class Exercise(student_exercises.Exercise[str, str]):
    """One question of the world, e.g. ``bead~^``: a word and the operations on it."""

    name = "rewriting"
    example = "bead~^"
    value_form = f"[{LETTERS}]{{{LENGTH}}}"
    operation_form = f"[{OPERATIONS}]"
    do = staticmethod(rewritten)
    popular = staticmethod(mistaken)
    show = show_operation = read = read_operation = staticmethod(str)

    @staticmethod
    def slip(rng: random.Random, value: str, operation: str) -> str:
        """Return the right word with one letter changed."""
        right, place = rewritten(value, operation), rng.randrange(LENGTH)
        return right[:place] + rng.choice(LETTERS.replace(right[place], "")) + right[place + 1 :]

    @classmethod
    def draw(cls, rng: random.Random, steps: int) -> Exercise:
        """Draw a word and operations."""
        return cls("".join(rng.choices(LETTERS, k=LENGTH)), tuple(rng.choices(OPERATIONS, k=steps)))


class RewritingTask(SyntheticTask):
    """Questions of the rewriting world and their grader."""

    name = "rewriting"
    world = Exercise
