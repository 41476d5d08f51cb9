"""Exercises made by a program, and the attempts of imperfect students at them, step by step.

A question is a start value and a few operations on it. Students write one step after the other and pick their connecting
words freely. They make two kinds of mistakes: rare random slips, and one popular systematic mistake, more often than not
wherever there is a trap for it. Sometimes they notice ("wait") and redo the step. So the vote of many attempts elects the
popular mistake, log-probabilities prefer it, and the wording clouds both; only checking the steps tells.
"""

from __future__ import annotations

import hashlib
import random
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, Literal, TypeVar

SPECIAL_TOKENS = (
    "<pad>", "<bos>", "<eos>", "<question>", "<student>", "<textbook>", "<marked>",
    "<judge>", "</judge>", "<think_on>", "<think_off>", "<think>", "</think>", "<answer>", "</answer>",
    "<right>", "<wrong>",
)  # fmt: skip
TURN_TOKENS = frozenset(SPECIAL_TOKENS[:7])
FILLERS = ("so ", "then ", "next ", "and ", "now ", "ok ", "hmm ", "well ")
NOTICE = "wait "

Split = Literal["lm", "reward", "test"]
Value = TypeVar("Value")
Operation = TypeVar("Operation")


@dataclass(frozen=True)
class Habits:
    """How often a student errs and notices, each a probability per step."""

    forget: float = 0.76
    slip: float = 0.02
    notice: float = 0.2
    false_alarm: float = 0.02
    filler: float = 0.55


@dataclass(frozen=True)
class Exercise(ABC, Generic[Value, Operation]):
    """One question: a start value and the operations to do on it. A world is a subclass, which says what they are."""

    start: Value
    operands: tuple[Operation, ...]

    name: ClassVar[str]
    example: ClassVar[str]
    traps_name: ClassVar[str] = "traps"
    value_form: ClassVar[str]
    operation_form: ClassVar[str]

    @staticmethod
    @abstractmethod
    def do(value: Value, operation: Operation, /) -> Value:
        """Return the correct result of one step."""

    @staticmethod
    @abstractmethod
    def popular(value: Value, operation: Operation, /) -> Value:
        """Return the result of a student who makes the popular mistake; the correct one where there is no trap."""

    @staticmethod
    @abstractmethod
    def slip(rng: random.Random, value: Value, operation: Operation, /) -> Value:
        """Return a result with a random slip."""

    @staticmethod
    @abstractmethod
    def show(value: Value, /) -> str:
        """Write a value."""

    @staticmethod
    @abstractmethod
    def show_operation(operation: Operation, /) -> str:
        """Write an operation."""

    @staticmethod
    @abstractmethod
    def read(text: str, /) -> Value:
        """Read a value of the form ``value_form``."""

    @staticmethod
    @abstractmethod
    def read_operation(text: str, /) -> Operation:
        """Read an operation of the form ``operation_form``."""

    @classmethod
    @abstractmethod
    def draw(cls, rng: random.Random, steps: int) -> Exercise[Value, Operation]:
        """Draw any exercise of so many steps."""

    @classmethod
    def parse(cls, text: str) -> Exercise[Value, Operation]:
        """Read an exercise back from its text; raise ValueError if it is not one."""
        found = re.fullmatch(f"({cls.value_form})((?:{cls.operation_form})+)", text)
        if not found:
            raise ValueError(f"not a {cls.name} question: {text!r} (expected e.g. {cls.example!r})")
        operations = re.findall(cls.operation_form, found[2])
        return cls(cls.read(found[1]), tuple(cls.read_operation(one) for one in operations))

    @property
    def text(self) -> str:
        """Return the question as it is asked."""
        return self.show(self.start) + "".join(self.show_operation(operation) for operation in self.operands)

    @property
    def answer(self) -> Value:
        """Return the correct final value."""
        value = self.start
        for operation in self.operands:
            value = self.do(value, operation)
        return value

    @property
    def traps(self) -> int:
        """Count the steps at which the popular mistake is one, when those before them are done correctly."""
        value, count = self.start, 0
        for operation in self.operands:
            right = self.do(value, operation)
            count += self.popular(value, operation) != right
            value = right
        return count

    def write_step(self, value: Value, operation: Operation, result: Value) -> str:
        """Write one step, e.g. ``27+15=42``."""
        return f"{self.show(value)}{self.show_operation(operation)}={self.show(result)}"


World = type[Exercise[Any, Any]]


def split_of(exercise: Exercise[Any, Any]) -> Split:
    """Assign a question to the LM's text (80 %), the reward's training (10 %) or the test (10 %), by a hash of its text."""
    bucket = hashlib.sha256(exercise.text.encode()).digest()[0] % 10
    return "test" if bucket == 0 else "reward" if bucket == 1 else "lm"


def make_exercise(
    rng: random.Random, world: World, split: Split, steps: tuple[int, ...] = (2, 3, 4), traps: int | None = None
) -> Exercise[Any, Any]:
    """Draw an exercise of a split; ``traps`` asks for an exact number of steps with one."""
    while True:
        exercise = world.draw(rng, rng.choice(steps))
        if split_of(exercise) == split and (traps is None or exercise.traps == traps):
            return exercise


def fillers(rng: random.Random, habits: Habits) -> str:
    """Return a few connecting words, their number geometric."""
    words: list[str] = []
    while rng.random() < habits.filler and len(words) < 4:
        words.append(rng.choice(FILLERS))
    return "".join(words)


def attempt_step(rng: random.Random, world: World, habits: Habits, value: Any, operation: Any) -> Any:
    """Return what a student writes as the result of one step."""
    if rng.random() < habits.slip:
        return world.slip(rng, value, operation)
    return world.popular(value, operation) if rng.random() < habits.forget else world.do(value, operation)


def write_attempt(rng: random.Random, exercise: Exercise[Any, Any], habits: Habits, mark: bool = False) -> tuple[str, Any]:
    """Write one attempt step by step; return its text and final value. With ``mark`` a teacher marks each step."""
    value, parts = exercise.start, []
    for operation in exercise.operands:
        while True:
            result = attempt_step(rng, type(exercise), habits, value, operation)
            right = result == exercise.do(value, operation)
            verdict = ("<right>" if right else "<wrong>") if mark else ""
            parts.append(f"{fillers(rng, habits)}{exercise.write_step(value, operation, result)}{verdict}, ")
            if rng.random() >= (habits.false_alarm if right else habits.notice):
                break
            parts.append(NOTICE)
            habits = replace(habits, forget=habits.forget / 4)
        value = result
    return "".join(parts), value
