"""SyntheticTask: questions made of exercises, in several difficulties, and the grader of their answers."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

from swift_rm.tasks.student_exercises import Exercise, Split, World, make_exercise
from swift_rm.tasks.task import Grade, Question


@dataclass(frozen=True)
class Difficulty:
    """Which questions are asked: how many steps (each as often as it is named), and how often 0, 1, 2, ... hold a trap."""

    steps: tuple[int, ...]
    trap_shares: tuple[float, ...]


DIFFICULTIES: Mapping[str, Difficulty] = {
    "mixed": Difficulty((2, 3, 4), (0.35, 0.4, 0.25)),
    "easy": Difficulty((1, 2), (0.5, 0.5)),
    "hard": Difficulty((3, 4), (0.0, 0.5, 0.35, 0.15)),
    "wide": Difficulty((1, 1, 1, 2, 2, 2, 2, 2, 3, 4), (0.5, 0.4, 0.07, 0.03)),  # most can be answered at once, some not
}


def question_prompt(exercise: Exercise[Any, Any]) -> list[dict[str, str]]:
    """Return the question as chat messages."""
    return [{"role": "user", "content": exercise.text}]


def read_answer(world: World, response: str) -> str | None:
    """Return the value in the response's only answer block, or None."""
    found = re.findall(r"<answer>(.*?)</answer>", response)
    return found[0] if len(found) == 1 and re.fullmatch(world.value_form, found[0]) else None


class SyntheticTask:
    """Questions of a world and their grader.

    ``difficulty`` is a name among ``DIFFICULTIES`` or a `Difficulty`. Raises ValueError for a split or a name that is none.
    """

    name: ClassVar[str]
    world: ClassVar[World]

    def __init__(self, split: Split = "reward", difficulty: str | Difficulty = "mixed") -> None:
        if split not in get_args(Split):
            raise ValueError(f"the {self.name} world has the splits {get_args(Split)}, got {split!r}")
        if isinstance(difficulty, str) and difficulty not in DIFFICULTIES:
            raise ValueError(f"the {self.name} world has the difficulties {tuple(DIFFICULTIES)}, got {difficulty!r}")
        self.split, self.label = split, difficulty
        self.difficulty = DIFFICULTIES[difficulty] if isinstance(difficulty, str) else difficulty

    def questions(self, n: int, seed: int = 0) -> Iterator[Question]:
        """Yield ``n`` distinct questions, the number of steps with a trap drawn from the difficulty's shares.

        Raises ValueError when the world has hardly any more that are new.
        """
        kind = "" if self.label == "mixed" else f"-{self.label}"  # questions of "mixed" are those of before the others were
        rng, seen, known = random.Random(f"{self.name}-{self.split}{kind}-{seed}"), set[str](), 0
        shares = self.difficulty.trap_shares
        while len(seen) < n:
            traps = rng.choices(range(len(shares)), shares)[0]
            steps = tuple(s for s in self.difficulty.steps if s >= traps)
            exercise = make_exercise(rng, self.world, self.split, steps, traps)
            if exercise.text in seen:
                known += 1
                if known > 1000:
                    raise ValueError(f"asked for {n} questions, but {self.name} has hardly more than {len(seen)} like these")
                continue
            known = 0
            seen.add(exercise.text)
            extra = {"steps": len(exercise.operands), exercise.traps_name: exercise.traps}
            yield Question(exercise.text, question_prompt(exercise), exercise.show(exercise.answer), extra)

    def grade(self, question: Question, response: str) -> Grade:
        """Compare the answer block with the correct value."""
        answer = read_answer(self.world, response)
        return Grade(None, 0) if answer is None else Grade(answer, int(answer == question.reference))
