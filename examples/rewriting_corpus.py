"""What drills of rewriting are made of; `graded_corpus` makes the text."""

from __future__ import annotations

import random

from graded_corpus import Lesson

from swift_rm.tasks import rewriting as rw


def draw(rng: random.Random) -> tuple[str, str]:
    """Draw a word and an operation."""
    exercise = rw.Exercise.draw(rng, 1)
    return exercise.start, exercise.operands[0]


def mistaken(rng: random.Random, word: str, operation: str) -> str:
    """Return a wrong result of any kind: the popular mistake, what another operation makes, a letter changed, two swapped."""
    right = rw.rewritten(word, operation)
    result = rw.mistaken(word, operation) if rng.random() < 0.6 else right
    while result == right:
        kind = rng.randrange(3)
        if kind == 0:
            other = rng.choice(rw.OPERATIONS)
            result = rng.choice((word, rw.rewritten(word, other), rw.mistaken(word, other)))
        elif kind == 1:
            result = rw.Exercise.slip(rng, word, operation)
        else:
            first, second = sorted(rng.sample(range(rw.LENGTH), 2))
            letters = list(right)
            letters[first], letters[second] = letters[second], letters[first]
            result = "".join(letters)
    return result


REWRITING = Lesson(rw.Exercise, draw, mistaken, letters=rw.LETTERS, symbols=rw.SYMBOLS)
