"""The homework world: multi-step clock arithmetic (mod 100) by imperfect students, each attempt graded.

A question is a start value and one to four additions or subtractions. The popular mistake is a forgotten carry (or
borrow), more often than not wherever one is needed; `swift_rm.tasks.student_exercises` says what students do otherwise.
"""

from __future__ import annotations

import random

from swift_rm.tasks import student_exercises
from swift_rm.tasks.student_exercises import Habits, fillers, split_of, write_attempt
from swift_rm.tasks.synthetic_task import SyntheticTask, question_prompt

__all__ = [
    "SYMBOLS", "Exercise", "Habits", "HomeworkTask", "fillers", "forgotten", "needs_carry", "parse", "question_prompt",
    "split_of", "write_attempt",
]  # fmt: skip

SYMBOLS = (*"0123456789+-=", ", ")


def needs_carry(value: int, operand: int) -> bool:
    """Tell whether ``value + operand`` carries (or borrows) from the units to the tens."""
    units = value % 10
    return units + operand % 10 >= 10 if operand >= 0 else units < -operand % 10


def forgotten(value: int, operand: int) -> int:
    """Return the result of a student who forgets the carry or the borrow."""
    shift = 10 if needs_carry(value, operand) else 0
    return (value + operand - (shift if operand >= 0 else -shift)) % 100


class Exercise(student_exercises.Exercise[int, int]):
    """One question of the world, e.g. ``27+15-08``: a start value and signed operands, all modulo 100."""

    name = "homework"
    example = "27+15-08"
    traps_name = "carries"
    value_form = r"\d\d"
    operation_form = r"[+-]\d\d"
    read = read_operation = staticmethod(int)
    popular = staticmethod(forgotten)

    @staticmethod
    def do(value: int, operation: int) -> int:
        """Return the correct sum."""
        return (value + operation) % 100

    @staticmethod
    def slip(rng: random.Random, value: int, operation: int) -> int:
        """Return a sum that is a little off."""
        return (value + operation + rng.choice((-2, -1, 1, 2, 10, -10))) % 100

    @staticmethod
    def show(value: int) -> str:
        """Write a value with two digits."""
        return f"{value:02d}"

    @staticmethod
    def show_operation(operation: int) -> str:
        """Write a signed operand with two digits."""
        return f"{'-' if operation < 0 else '+'}{abs(operation):02d}"

    @classmethod
    def draw(cls, rng: random.Random, steps: int) -> Exercise:
        """Draw operands other than zero, then the start."""
        operands = tuple(rng.choice((-1, 1)) * rng.randrange(1, 100) for _ in range(steps))
        return cls(rng.randrange(100), operands)

    @property
    def carries(self) -> int:
        """Count the steps that need a carry or a borrow when done correctly."""
        return self.traps


def parse(text: str) -> student_exercises.Exercise[int, int]:
    """Read an exercise back from its text; raise ValueError if it is not one."""
    return Exercise.parse(text)


class HomeworkTask(SyntheticTask):
    """Questions of the homework world and their grader."""

    name = "homework"
    world = Exercise
