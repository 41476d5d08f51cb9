"""What drills of homework are made of; `graded_corpus` makes the text."""

from __future__ import annotations

import random

from graded_corpus import Lesson, make_tokenizer

from swift_rm.tasks import homework as hw

__all__ = ["HOMEWORK", "make_tokenizer", "mistaken"]


def draw(rng: random.Random) -> tuple[int, int]:
    """Draw a value and an operand."""
    return rng.randrange(100), rng.choice((-1, 1)) * rng.randrange(1, 100)


def mistaken(rng: random.Random, value: int, operand: int) -> int:
    """Return a wrong result of any kind: students' own mistakes alone differ so little that checking is not learnt from them."""
    right = (value + operand) % 100
    if hw.needs_carry(value, operand) and rng.random() < 0.3:
        return hw.forgotten(value, operand)
    kind = rng.randrange(3)
    if kind == 0:
        return (right + rng.randrange(1, 100)) % 100
    if kind == 1:
        return (right + 10 * rng.randrange(1, 10)) % 100
    return right // 10 * 10 + (right % 10 + rng.randrange(1, 10)) % 10


HOMEWORK = Lesson(hw.Exercise, draw, mistaken, letters="0123456789")
