"""The homework world: multi-step clock arithmetic (mod 100) by imperfect students, each attempt graded.

A question is a start value and one to four additions or subtractions. Students write one step after the other and pick
their connecting words freely. They make two kinds of mistakes: rare random slips, and one popular systematic mistake, a
forgotten carry (or borrow), more often than not wherever one is needed. Sometimes they notice ("wait") and redo the
step. So the vote of many attempts elects the popular mistake, log-probabilities prefer it, and the wording clouds both;
only checking the steps tells.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from swift_rm.tasks.task import Grade, Question

SPECIAL_TOKENS = (
    "<pad>", "<bos>", "<eos>", "<question>", "<student>", "<textbook>", "<marked>",
    "<judge>", "</judge>", "<think_on>", "<think_off>", "<think>", "</think>", "<answer>", "</answer>",
    "<right>", "<wrong>",
)  # fmt: skip
TURN_TOKENS = frozenset(SPECIAL_TOKENS[:7])
FILLERS = ("so ", "then ", "next ", "and ", "now ", "ok ", "hmm ", "well ")
NOTICE = "wait "
SYMBOLS = (*"0123456789+-=", ", ")

Split = Literal["lm", "reward", "test"]


@dataclass(frozen=True)
class Habits:
    """How often a student errs and notices, each a probability per step."""

    forget: float = 0.76
    slip: float = 0.02
    notice: float = 0.2
    false_alarm: float = 0.02
    filler: float = 0.55


@dataclass(frozen=True)
class Exercise:
    """One question of the world: a start value and signed operands, all modulo 100."""

    start: int
    operands: tuple[int, ...]

    @property
    def text(self) -> str:
        """Return the question as it is asked, e.g. ``27+15-08``."""
        return f"{self.start:02d}" + "".join(f"{'-' if v < 0 else '+'}{abs(v):02d}" for v in self.operands)

    @property
    def answer(self) -> int:
        """Return the correct final value."""
        return (self.start + sum(self.operands)) % 100

    @property
    def carries(self) -> int:
        """Count the steps that need a carry or a borrow when done correctly."""
        value, count = self.start, 0
        for operand in self.operands:
            count += needs_carry(value, operand)
            value = (value + operand) % 100
        return count


def needs_carry(value: int, operand: int) -> bool:
    """Tell whether ``value + operand`` carries (or borrows) from the units to the tens."""
    units = value % 10
    return units + operand % 10 >= 10 if operand >= 0 else units < -operand % 10


def forgotten(value: int, operand: int) -> int:
    """Return the result of a student who forgets the carry or the borrow."""
    shift = 10 if needs_carry(value, operand) else 0
    return (value + operand - (shift if operand >= 0 else -shift)) % 100


def parse(text: str) -> Exercise:
    """Read an exercise back from its text; raise ValueError if it is not one."""
    if not re.fullmatch(r"\d\d([+-]\d\d)+", text):
        raise ValueError(f"not a homework question: {text!r} (expected e.g. '27+15-08')")
    return Exercise(int(text[:2]), tuple(int(part) for part in re.findall(r"[+-]\d\d", text)))


def split_of(exercise: Exercise) -> Split:
    """Assign a question to the LM's text (80 %), the reward's training (10 %) or the test (10 %), by a hash of its text."""
    bucket = hashlib.sha256(exercise.text.encode()).digest()[0] % 10
    return "test" if bucket == 0 else "reward" if bucket == 1 else "lm"


def make_exercise(rng: random.Random, split: Split, steps: tuple[int, ...] = (2, 3, 4), carries: int | None = None) -> Exercise:
    """Draw an exercise of a split; ``carries`` asks for an exact number of steps that carry."""
    while True:
        operands = tuple(rng.choice((-1, 1)) * rng.randrange(1, 100) for _ in range(rng.choice(steps)))
        exercise = Exercise(rng.randrange(100), operands)
        if split_of(exercise) == split and (carries is None or exercise.carries == carries):
            return exercise


def attempt_step(rng: random.Random, habits: Habits, value: int, operand: int) -> int:
    """Return what a student writes as the result of one step."""
    if rng.random() < habits.slip:
        return (value + operand + rng.choice((-2, -1, 1, 2, 10, -10))) % 100
    if rng.random() < habits.forget:
        return forgotten(value, operand)
    return (value + operand) % 100


def write_step(value: int, operand: int, result: int) -> str:
    """Write one step, e.g. ``27+15=42``."""
    return f"{value:02d}{'-' if operand < 0 else '+'}{abs(operand):02d}={result:02d}"


def fillers(rng: random.Random, habits: Habits) -> str:
    """Return a few connecting words, their number geometric."""
    words: list[str] = []
    while rng.random() < habits.filler and len(words) < 4:
        words.append(rng.choice(FILLERS))
    return "".join(words)


def write_attempt(rng: random.Random, exercise: Exercise, habits: Habits, mark: bool = False) -> tuple[str, int]:
    """Write one attempt step by step; return its text and final value. With ``mark`` a teacher marks each step."""
    value, parts = exercise.start, []
    for operand in exercise.operands:
        while True:
            result = attempt_step(rng, habits, value, operand)
            right = result == (value + operand) % 100
            verdict = ("<right>" if right else "<wrong>") if mark else ""
            parts.append(f"{fillers(rng, habits)}{write_step(value, operand, result)}{verdict}, ")
            if rng.random() >= (habits.false_alarm if right else habits.notice):
                break
            parts.append(NOTICE)
            habits = Habits(forget=habits.forget / 4, slip=habits.slip, notice=habits.notice, filler=habits.filler)
        value = result
    return "".join(parts), value


def question_prompt(exercise: Exercise) -> list[dict[str, str]]:
    """Return the question as chat messages."""
    return [{"role": "user", "content": exercise.text}]


def read_answer(response: str) -> int | None:
    """Return the number in the response's only answer block, or None."""
    found = re.findall(r"<answer>(.*?)</answer>", response)
    return int(found[0]) if len(found) == 1 and re.fullmatch(r"\d\d", found[0]) else None


class HomeworkTask:
    """Questions of the homework world and their grader."""

    name = "homework"

    def __init__(
        self,
        split: Split = "reward",
        carry_shares: tuple[float, ...] = (0.35, 0.4, 0.25),
        steps: tuple[int, ...] = (2, 3, 4),
    ) -> None:
        if split not in get_args(Split):
            raise ValueError(f"the homework world has the splits {get_args(Split)}, got {split!r}")
        self.split, self.carry_shares, self.steps = split, carry_shares, steps

    def questions(self, n: int, seed: int = 0) -> Iterator[Question]:
        """Yield ``n`` distinct questions, the number of carrying steps drawn from ``carry_shares``."""
        rng, seen = random.Random(f"homework-{self.split}-{seed}"), set[str]()
        while len(seen) < n:
            carries = rng.choices(range(len(self.carry_shares)), self.carry_shares)[0]
            exercise = make_exercise(rng, self.split, tuple(s for s in self.steps if s >= carries), carries)
            if exercise.text in seen:
                continue
            seen.add(exercise.text)
            difficulty = {"steps": len(exercise.operands), "carries": exercise.carries}
            yield Question(exercise.text, question_prompt(exercise), f"{exercise.answer:02d}", difficulty)

    def grade(self, question: Question, response: str) -> Grade:
        """Compare the answer block with the correct value."""
        answer = read_answer(response)
        if answer is None:
            return Grade(None, 0)
        return Grade(f"{answer:02d}", int(f"{answer:02d}" == question.reference))
